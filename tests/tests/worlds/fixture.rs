//! What every world begins with, made once a process from a fixed seed: a tenant with its certificates, two relays that
//! know it, nodes and devices that have theirs. Worlds only read it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use hedgerow_connectivity_node::{Enrolled, Record, State};
use hedgerow_device::config::DeviceConfigFile;
use hedgerow_device::state::{DeviceState, RelayFile};
use hedgerow_relay::config::{Drain, LaneConfig, Limits, Listen, RelayConfig};
use hedgerow_relay::identity;
use hedgerow_relay::store::Store;
use hedgerow_runtime::clock;
use hedgerow_runtime::tls::{self, InForce, Own, RelayRoots, SigningKey};
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::certificate::read_leaf;
use hedgerow_shared::verify::config::{Head, RelayConfig as SignedRelayConfig, SignedConfig};
use hedgerow_shared::verify::{Audience, DeviceConfig, Identity, NodeConfig, Revoked, TenantCa, Version, Via};
use hedgerow_shared::{EntityId, GroupName, Origin, Role, TenantId};
use hedgerow_uem_core::ca::{Authority, ConfigKey, Key};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::json;

use super::dice::Dice;

pub(crate) const RELAYS: usize = 2;
pub(crate) const NODES: usize = 3;
pub(crate) const DEVICES: usize = 3;
/// What the nodes reach inside.
pub(crate) const PORT: u16 = 7000;
const NAME: &str = "relay.example";
/// Longer than anybody lets this process run.
const LIFETIME: u64 = 6 * 86_400;

pub(crate) struct RelayKit {
    pub(crate) config: RelayConfig,
    pub(crate) server: Arc<rustls::ServerConfig>,
}

pub(crate) struct NodeKit {
    pub(crate) enrolled: Arc<Enrolled>,
    pub(crate) folder: PathBuf,
}

pub(crate) struct DeviceKit {
    pub(crate) id: EntityId,
    pub(crate) state: DeviceState,
    pub(crate) file: DeviceConfigFile,
}

pub(crate) struct Fixture {
    pub(crate) tenant: TenantId,
    pub(crate) ca: TenantCa,
    pub(crate) relays: Vec<RelayKit>,
    pub(crate) roots: RelayRoots,
    pub(crate) core_key: Secret,
    pub(crate) core: Own,
    config_key: ConfigKey,
    pub(crate) nodes: Vec<NodeKit>,
    pub(crate) devices: Vec<DeviceKit>,
    _folder: tempfile::TempDir,
}

pub(crate) fn relay_address(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, u8::try_from(n + 1).unwrap()], 3101))
}

pub(crate) fn get() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        super::one_length::sign();
        let made = std::thread::spawn(|| {
            super::dice::seed_system(7);
            make()
        });
        made.join().expect("the fixture can be made")
    })
}

fn make() -> Fixture {
    let mut dice = Dice::new(1);
    let mut random = move |bytes: &mut [u8]| {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&dice.next().to_le_bytes()[..chunk.len()]);
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let tenant: TenantId = "S12345678".parse().unwrap();
    let now = clock::now();
    let authority = Authority::create(tenant.clone(), now, &mut random).unwrap();
    let config_key = Key::generate(&mut random).unwrap();
    let certificate = authority.issue_config_key(&config_key, now, &mut random).unwrap();
    let config_key = ConfigKey::from_parts(config_key, certificate);
    let ca = TenantCa::from_der(authority.certificate()).unwrap();
    let head = |audience| Head {
        tenant: tenant.clone(),
        audience,
        version: Version { epoch: 1, version: 1 },
        issued: now,
        expires: now.plus(LIFETIME),
    };
    let group: GroupName = "default".parse().unwrap();
    let mut issue = |role: Role, n: u8| {
        let origins = match role {
            Role::Core => vec![Origin::Core, Origin::Bws],
            Role::Node => vec![Origin::Proxy],
            Role::Device => Vec::new(),
        };
        let group = (role == Role::Node).then(|| group.clone());
        let mut id = [n; 16];
        id[0] = role as u8;
        let identity = Identity { tenant: tenant.clone(), role, id: EntityId::from_random(id), group, origins };
        let key = Key::generate(&mut random).unwrap();
        let leaf = authority.issue_for_key(&key, &identity, now, &mut random).unwrap().certificate;
        let chain = vec![CertificateDer::from(leaf), ca.der().clone()];
        (Own { chain, key: SigningKey::from_pkcs8(&key.to_pkcs8()).unwrap() }, identity)
    };

    let core_key = Secret::new(vec![9; 32]);
    let first = SignedRelayConfig { authorities: Vec::new(), head: head(Audience::Relay), revoked: Revoked::default() };
    let signed = config_key.sign(&first).unwrap();
    let mut cas = String::new();
    let relays: Vec<RelayKit> = (0..RELAYS)
        .map(|n| {
            let config = relay_config(folder.path().join(format!("relay-{n}")), n);
            let store = Store::open(&config.state).unwrap();
            store.add_with_key(tenant.clone(), core_key.clone()).unwrap();
            store.register_ca(&tenant, authority.certificate()).unwrap();
            store.put_config(&tenant, signed.clone(), now).unwrap();
            let (server, ca) = relay_identity();
            cas.push_str(&ca);
            RelayKit { config, server }
        })
        .collect();
    let addresses: Vec<String> = (0..RELAYS).map(|n| relay_address(n).to_string()).collect();

    let rule = json!({ "action": "allow", "target": "127.0.0.1", "ports": PORT.to_string() });
    let rules = vec![serde_json::from_value(rule).unwrap()];
    let node_config = config_key
        .sign(&NodeConfig {
            authorities: Vec::new(),
            head: head(Audience::Node),
            revoked: Revoked::default(),
            rules,
            scopes: Vec::new(),
        })
        .unwrap();
    let nodes = (0..NODES)
        .map(|n| {
            let (own, identity) = issue(Role::Node, u8::try_from(n).unwrap());
            let path = folder.path().join(format!("node-{n}"));
            State::create(&path).unwrap().store_config(&node_config, Version { epoch: 1, version: 1 }).unwrap();
            let record = Record {
                tenant: tenant.clone(),
                id: identity.id,
                name: format!("node-{n}"),
                group: group.clone(),
                origins: vec![Origin::Proxy],
                relays: addresses.clone(),
                relay_name: Some(NAME.into()),
                relay_ca_pem: Some(cas.clone()),
                relay_ca_pin: None,
            };
            let certificate = read_leaf(&own.chain[0]).unwrap();
            NodeKit {
                enrolled: Arc::new(Enrolled { record, ca: ca.clone(), own: InForce::new(own), certificate }),
                folder: path,
            }
        })
        .collect();

    let route = json!({ "target": "127.0.0.1", "via": "group:default" });
    let routes = vec![serde_json::from_value(route).unwrap()];
    let device_config =
        DeviceConfig { authorities: Vec::new(), head: head(Audience::Device), routes, default_route: Via::Deny };
    let device_config = config_key.sign(&device_config).unwrap();
    let devices = (0..DEVICES)
        .map(|n| {
            let (own, identity) = issue(Role::Device, u8::try_from(n).unwrap());
            let dir = folder.path().join(format!("device-{n}"));
            std::fs::create_dir(&dir).unwrap();
            let relay = RelayFile { addresses: addresses.clone(), name: NAME.into(), ca: Some(cas.clone()) };
            let state = DeviceState::of(dir.clone(), own, ca.clone(), relay).unwrap();
            state.write_config(&device_config).unwrap();
            let file = serde_json::from_value(json!({ "state": dir })).unwrap();
            DeviceKit { id: identity.id, state, file }
        })
        .collect();
    let (core, _) = issue(Role::Core, 0);
    let parsed = pem::parse_many(&cas).unwrap();
    let roots = RelayRoots::Ca(parsed.into_iter().map(|p| p.into_contents().into()).collect());
    Fixture { tenant, ca, relays, roots, core_key, core, config_key, nodes, devices, _folder: folder }
}

impl Fixture {
    /// What the core puts at a relay.
    pub(crate) fn configuration(&self, version: u64, revoked: &[EntityId]) -> SignedConfig {
        let now = clock::now();
        let head = Head {
            tenant: self.tenant.clone(),
            audience: Audience::Relay,
            version: Version { epoch: 1, version },
            issued: now,
            expires: now.plus(LIFETIME),
        };
        let revoked = Revoked { ids: revoked.to_vec(), serials: Vec::new() };
        self.config_key.sign(&SignedRelayConfig { authorities: Vec::new(), head, revoked }).unwrap()
    }
}

fn relay_config(state: PathBuf, n: usize) -> RelayConfig {
    RelayConfig {
        name: NAME.into(),
        state,
        listen: Listen {
            link: vec![relay_address(n)],
            device: vec![],
            udp: true,
            http: vec![],
            trusted_proxies: Default::default(),
        },
        tls: Default::default(),
        lanes: LaneConfig::default(),
        admin: serde_json::from_value(json!({ "listen": "127.0.0.1:9101" })).unwrap(),
        limits: Limits::default(),
        timers: Default::default(),
        drain: Drain::default(),
        bandwidth: Default::default(),
        licences: Default::default(),
    }
}

/// A relay's TLS and the PEM of its CA, by Ed25519: its signatures are all of one length, so that QUIC's first packets are,
/// and what is lost and sent again does not depend on the run.
fn relay_identity() -> (Arc<rustls::ServerConfig>, String) {
    let key = || KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.serial_number = Some(vec![1; 8].into());
    let ca = CertifiedIssuer::self_signed(params, key()).unwrap();
    let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    params.serial_number = Some(vec![2; 8].into());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let own = key();
    let leaf = params.signed_by(&own, &ca).unwrap();
    let chain = vec![leaf.der().clone(), ca.der().clone()];
    let private = PrivatePkcs8KeyDer::from(own.serialize_der()).into();
    (tls::as_relay(chain, private, identity::ALPN).unwrap(), ca.pem())
}

/// A copy of a relay's state for one run of it: two must not share a folder, and one that crashed may not have let go.
pub(crate) fn copy_state(kit: &RelayKit, from: &Path, to: &Path) -> RelayConfig {
    std::fs::create_dir_all(to.join("tenants")).unwrap();
    for folder in ["", "tenants"] {
        for entry in std::fs::read_dir(from.join(folder)).unwrap().flatten() {
            if entry.file_type().unwrap().is_file() && entry.file_name() != "lock" {
                std::fs::copy(entry.path(), to.join(folder).join(entry.file_name())).unwrap();
            }
        }
    }
    use std::os::unix::fs::PermissionsExt;
    for folder in [to.to_owned(), to.join("tenants")] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    RelayConfig { state: to.to_owned(), ..kit.config.clone() }
}
