//! A relay on loopback, and what dials it. Included by each integration test.
#![allow(dead_code, unreachable_pub, missing_docs)]

#[path = "../../src/testing.rs"]
pub(crate) mod testing;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hedgerow_relay::config::{Drain, LaneConfig, Licences, Limits, Listen, RelayConfig, Tls};
use hedgerow_relay::fair::Bandwidth;
use hedgerow_relay::{Running, identity};
use hedgerow_runtime::boot::Context;
use hedgerow_runtime::clock;
use hedgerow_runtime::config::sections::{Admin, TimerScale};
use hedgerow_runtime::dial::RelayTarget;
use hedgerow_runtime::link::{Credentials, Link, LinkError, connect, connect_quic};
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls::{self, InForce, RelayRoots, SigningKey};
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::certificate::Identity;
use hedgerow_shared::wire::message::{
    CaRegistration, LinkOpen, OpenActivation, Registrations, Service, ServiceReply, address_hash,
};
use hedgerow_shared::{EntityId, InstanceId, Origin, Role, TenantId};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

pub(crate) use testing::TestCa;

pub const NAME: &str = "relay.example";
pub const TENANT: &str = "S12345678";
/// Longer than anything a test waits for.
pub const LONG: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub relay: Running,
    pub context: Context,
    pub(crate) ca: TestCa,
    pub tenant: TenantId,
    pub srp_key: Secret,
    pub scope: Scope,
    pub _folder: tempfile::TempDir,
}

impl World {
    /// The end of a lane, as the holder of a certificate of the tenant's: others are cut when anything is decided anew.
    pub fn end(&self, tenant: &TenantId, n: u8) -> hedgerow_relay::lane::End {
        let record = self.relay.relay().store.tenant(tenant);
        let issuer = record.and_then(|t| t.ca.as_ref().map(|ca| ca.key_id())).unwrap_or_default();
        hedgerow_relay::lane::End { issuer, ..end(n) }
    }

    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut RelayConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut config = RelayConfig {
            name: NAME.into(),
            state: folder.path().join("state"),
            listen: Listen {
                link: vec![loopback],
                device: vec![loopback],
                udp: true,
                http: vec![loopback],
                trusted_proxies: vec![],
            },
            tls: Tls::default(),
            lanes: LaneConfig::default(),
            admin: Admin { listen: loopback },
            limits: Limits::default(),
            bandwidth: Bandwidth::default(),
            licences: Licences::default(),
            timers: TimerScale { scale: 0.1 },
            drain: Drain::default(),
        };
        change(&mut config);
        let context = Context::new(Duration::from_secs(5));
        let relay = hedgerow_relay::run(config, &context).await.unwrap();
        let tenant: TenantId = TENANT.parse().unwrap();
        let srp_key = relay.relay().store.add(tenant.clone()).unwrap().srp_key.clone();
        Self { relay, context, ca: TestCa::new(TENANT), tenant, srp_key, scope: Scope::new(), _folder: folder }
    }

    pub fn target(&self) -> RelayTarget {
        RelayTarget::new(vec![self.relay.link[0].to_string()], NAME, self.roots())
    }

    pub fn roots(&self) -> RelayRoots {
        let pem = std::fs::read_to_string(self.relay.ca.as_ref().unwrap()).unwrap();
        RelayRoots::Ca(identity::certificates(&pem).unwrap())
    }

    pub async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.relay.device[0]).await.unwrap()
    }

    /// TLS to the relay under a name, with one protocol.
    pub async fn tls(&self, name: &str, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        let config = tls::to_relay(&self.roots(), &[alpn]).unwrap();
        let connector = tokio_rustls::TlsConnector::from(config);
        connector.connect(name.to_owned().try_into().unwrap(), self.tcp().await).await
    }

    pub async fn dial(&self, credentials: &Credentials, instance: u8) -> Result<Link, LinkError> {
        let timers = self.relay.relay().timers;
        connect(&self.target(), credentials, InstanceId::from_random([instance; 16]), &timers, &self.scope).await
    }

    pub async fn dial_quic(&self, credentials: &Credentials, instance: u8) -> Result<Link, LinkError> {
        let timers = self.relay.relay().timers;
        connect_quic(&self.target(), credentials, InstanceId::from_random([instance; 16]), &timers, &self.scope).await
    }

    /// A core's link that has registered its CA and a configuration without revocations.
    pub async fn core(&self) -> Link {
        let core = self.core_only().await;
        let ca = CaRegistration { certificate: self.ca.der().to_vec() };
        assert!(service(&core, Service::RegisterCa, &ca).await.is_ok());
        assert!(service(&core, Service::PutConfig, &self.ca.relay_config(1, &[])).await.is_ok());
        core
    }

    pub async fn core_only(&self) -> Link {
        let credentials = Credentials::Srp { tenant: self.tenant.clone(), key: self.srp_key.clone() };
        self.dial(&credentials, 1).await.unwrap()
    }

    pub fn credentials(&self, role: Role, id: u8) -> Credentials {
        let origins = if role == Role::Node { vec![Origin::Proxy] } else { vec![] };
        let identity = Identity {
            tenant: self.tenant.clone(),
            role,
            id: entity(id),
            group: (role == Role::Node).then(Default::default),
            origins: origins.clone(),
        };
        let (leaf, key) = self.ca.leaf(&identity, Duration::from_secs(3600));
        let key = SigningKey::from_pkcs8(&key.serialize_der()).unwrap();
        let own = InForce::of(leaf, key);
        Credentials::Certificate { role, tenant: self.tenant.clone(), own, origins }
    }

    pub async fn node(&self, id: u8) -> Link {
        self.dial(&self.credentials(Role::Node, id), id).await.unwrap()
    }

    pub async fn device(&self, id: u8) -> Link {
        self.dial(&self.credentials(Role::Device, id), id).await.unwrap()
    }

    pub async fn open_activation(&self, core: &Link, email: &str) {
        let hash = address_hash(&core.accept.lookup_key.unwrap(), email);
        let open = vec![OpenActivation { hash, until: clock::now().plus(600).0 }];
        service(core, Service::PutRegistrations, &Registrations { open, ..Registrations::default() }).await.unwrap();
    }

    pub async fn control(&self, method: http::Method, path: &str, body: Option<Value>) -> Value {
        hedgerow_runtime::admin::control::request(&self.relay.control, method, path, body.as_ref()).await.unwrap()
    }
}

pub fn entity(id: u8) -> EntityId {
    EntityId::from_random([id; 16])
}

/// One request to the relay's services.
pub async fn service(
    core: &Link,
    service: Service,
    request: &impl minicbor::Encode<()>,
) -> Result<ServiceReply, ServiceReply> {
    let mut stream = core.mux.open(&LinkOpen::Service { service }).await.unwrap();
    stream.write_chunk(minicbor::to_vec(request).unwrap().into()).await.unwrap();
    stream.finish();
    let mut answer = Vec::new();
    while let Some(chunk) = stream.read_chunk().await.unwrap() {
        answer.extend_from_slice(&chunk);
    }
    let reply: ServiceReply = minicbor::decode(&answer).unwrap();
    if reply.fault.code == hedgerow_shared::fault::Code::Ok { Ok(reply) } else { Err(reply) }
}

/// Waits for a condition that must come true.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

pub fn config_for_tests(alpn: &[&[u8]], roots: &RelayRoots) -> Arc<rustls::ClientConfig> {
    tls::to_relay(roots, alpn).unwrap()
}

pub type Body = http_body_util::Full<Bytes>;

/// One end of a lane, as its link would describe it.
fn end(n: u8) -> hedgerow_relay::lane::End {
    hedgerow_relay::lane::End {
        session: hedgerow_shared::SessionId::from_random([n; 16]),
        entity: entity(n),
        serial: format!("{n:02x}"),
        not_after: hedgerow_shared::UnixTime(u64::MAX),
        issuer: [0; 32],
        address: "127.0.0.1:1".parse().unwrap(),
    }
}
