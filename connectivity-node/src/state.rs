//! The node's state folder.
//!
//! ```text
//!   node.key.pem     private key, 0600; written before anything is asked of the core
//!   node.json        who this node is and where its relays are; written last: with it the node is enrolled
//!   node.key.pem.next, node.pem.next    the next pair, while a renewal lasts
//!   node.pem         its certificate       tenant-ca.pem   the CA it trusts; two while it is rolled over
//!   config.cbor      the newest signed configuration       config.seen   the highest version ever accepted
//!   lock             held by the process that runs on this folder
//! ```
//! Files are replaced whole: written beside, flushed, renamed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use hedgerow_runtime::clock;
use hedgerow_runtime::config::ConfigFault;
use hedgerow_runtime::dial::{Network, RelayTarget};
use hedgerow_runtime::disk;
use hedgerow_runtime::renewal::Files;
use hedgerow_runtime::tls::{InForce, Own, RelayRoots, SigningKey, read_certificates};
use hedgerow_shared::verify::{SignedConfig, TenantCa, Usage, VerifiedCertificate, Version};
use hedgerow_shared::wire::core_api;
use hedgerow_shared::{EntityId, GroupName, Origin, Role, TenantId};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::config::relay_host;

const KEY: &str = "node.key.pem";
const RECORD: &str = "node.json";
const CERTIFICATE: &str = "node.pem";
const CA: &str = "tenant-ca.pem";
const CONFIG: &str = "config.cbor";
const SEEN: &str = "config.seen";
const LOCK: &str = "lock";

/// `node.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Whose node it is.
    pub tenant: TenantId,
    /// Which one.
    pub id: EntityId,
    /// Its name, for people.
    pub name: String,
    /// Its server group.
    pub group: GroupName,
    /// Origins it registers.
    pub origins: Vec<Origin>,
    /// Relays, `host:port`.
    pub relays: Vec<String>,
    /// The relays' TLS name when it is not the host part.
    #[serde(default)]
    pub relay_name: Option<String>,
    /// The relays' CA, PEM.
    #[serde(default)]
    pub relay_ca_pem: Option<String>,
    /// SHA-256 of the relay CA's public key info, hexadecimal: the token's pin.
    #[serde(default)]
    pub relay_ca_pin: Option<String>,
}

/// A state folder.
#[derive(Debug, Clone)]
pub struct State {
    folder: PathBuf,
}

/// What an enrolled node is and has.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// Who and where.
    pub record: Record,
    /// Whom it trusts.
    pub ca: TenantCa,
    /// Certificate chain and key in force; renewal replaces them.
    pub own: InForce,
    /// Its own certificate, as it was when it was loaded.
    pub certificate: VerifiedCertificate,
}

/// Holds the lock of a state folder; dropping it lets go.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the lock lives as long as the file is open")] File);

impl State {
    /// The folder, made with mode 0700 when it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(folder: &Path) -> anyhow::Result<Self> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("cannot make the state folder {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The folder of an enrolled node.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Keeps a second process off the folder.
    ///
    /// # Errors
    /// Another process has it, or it cannot be written.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        let path = self.folder.join(LOCK);
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = open.with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock(file)),
            Err(TryLockError::WouldBlock) => {
                bail!("another process runs on the state folder {}", self.folder.display())
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// Whether a node was enrolled into this folder.
    #[must_use]
    pub fn is_enrolled(&self) -> bool {
        self.folder.join(RECORD).exists()
    }

    /// Stores the private key, before the core is asked to certify it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn store_key(&self, pkcs8: &[u8]) -> anyhow::Result<Arc<SigningKey>> {
        let text = zeroize::Zeroizing::new(pem::encode(&pem::Pem::new("PRIVATE KEY", pkcs8)));
        self.replace(KEY, text.as_bytes())?;
        Ok(SigningKey::read(&self.folder.join(KEY))?)
    }

    /// Stores what the core answered; the record last.
    ///
    /// # Errors
    /// Something cannot be written.
    pub fn store_enrolment(&self, record: &Record, ca: &[u8], certificate: &[u8]) -> anyhow::Result<()> {
        let as_pem = |der: &[u8]| pem::encode(&pem::Pem::new("CERTIFICATE", der));
        self.replace(CA, as_pem(ca).as_bytes())?;
        self.replace(CERTIFICATE, as_pem(certificate).as_bytes())?;
        self.replace(RECORD, &serde_json::to_vec_pretty(record)?)
    }

    /// Reads and checks everything an enrolled node has.
    ///
    /// # Errors
    /// Not enrolled, a file is damaged or open to others, or key, certificate and CA do not belong together.
    pub fn load(&self) -> anyhow::Result<Enrolled> {
        let shown = self.folder.display();
        let text = match fs::read(self.folder.join(RECORD)) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let problem = format!("{shown} holds no enrolled node: run `hedgerow node enroll` with a token first");
                return Err(ConfigFault::new(problem).into());
            }
            Err(e) => return Err(e).with_context(|| format!("cannot read {RECORD} in {shown}")),
        };
        let record: Record =
            serde_json::from_slice(&text).with_context(|| format!("{RECORD} in {shown} is damaged"))?;
        let (leaf, key) = self.files().load()?;
        let ca = read_certificates(&self.folder.join(CA))?;
        let ca = TenantCa::from_ders(&ca).with_context(|| format!("{CA} in {shown}"))?;
        // One that has expired is still good for asking for the next.
        let lapsed = ca.verify_lapsed(&leaf, Role::Node, Usage::Client, clock::now());
        let certificate = lapsed.with_context(|| format!("{CERTIFICATE} in {shown}"))?;
        ensure!(
            certificate.identity.id == record.id && *ca.tenant() == record.tenant,
            "{RECORD} in {shown} is of another node"
        );
        let own = InForce::new(Own { chain: vec![leaf, ca.der()], key });
        Ok(Enrolled { record, ca, own, certificate })
    }

    /// Where key and certificate lie.
    #[must_use]
    pub fn files(&self) -> Files {
        Files::new(&self.folder, KEY, CERTIFICATE)
    }

    /// The configuration on disk and the highest version ever accepted. A file that cannot be read counts as none: the
    /// node then denies everything until the core answers.
    #[must_use]
    pub fn config(&self) -> (Option<SignedConfig>, Option<Version>) {
        let config = fs::read(self.folder.join(CONFIG)).ok().and_then(|b| minicbor::decode(&b).ok());
        let seen = fs::read(self.folder.join(SEEN)).ok().and_then(|b| serde_json::from_slice(&b).ok());
        (config, seen)
    }

    /// Keeps the CAs that are believed from now on.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn store_cas(&self, cas: &[CertificateDer<'_>]) -> anyhow::Result<()> {
        let text: String = cas.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.as_ref()))).collect();
        self.replace(CA, text.as_bytes())
    }

    /// Keeps a configuration that verified.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn store_config(&self, config: &SignedConfig, version: Version) -> anyhow::Result<()> {
        self.replace(CONFIG, &minicbor::to_vec(config)?)?;
        self.replace(SEEN, &serde_json::to_vec(&version)?)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        disk::replace(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Whether the certificate stands under this CA, is a node's, and is of this key.
pub(crate) fn check_leaf(
    ca: &TenantCa,
    leaf: &CertificateDer<'_>,
    key: &SigningKey,
) -> anyhow::Result<VerifiedCertificate> {
    let certificate = ca.verify(leaf, Role::Node, Usage::Client, clock::now())?;
    ensure!(key.is_of(leaf), "the certificate is for another key");
    Ok(certificate)
}

impl Record {
    /// The relays as the dialler takes them; `instead` replaces the addresses named at enrolment.
    ///
    /// # Errors
    /// The stored CA or pin is damaged, or there is no relay.
    pub fn relay_targets(&self, instead: &[String], network: &Network) -> anyhow::Result<Vec<RelayTarget>> {
        let roots = match (&self.relay_ca_pem, &self.relay_ca_pin) {
            (Some(text), _) => {
                let parsed = pem::parse_many(text).context("the relay CA in node.json is damaged")?;
                RelayRoots::Ca(parsed.into_iter().map(|p| CertificateDer::from(p.into_contents())).collect())
            }
            (None, Some(pin)) => {
                let pin = data_encoding::HEXLOWER.decode(pin.as_bytes()).ok().and_then(|p| p.try_into().ok());
                RelayRoots::Pin(pin.context("the relay CA pin in node.json is damaged")?)
            }
            (None, None) => RelayRoots::System,
        };
        let addresses = if instead.is_empty() { &self.relays } else { instead };
        ensure!(!addresses.is_empty(), "no relay is known: add `relays = [\"host:port\"]` to the node's configuration");
        for address in addresses {
            relay_host(address).with_context(|| format!("the relay {address:?} is not host:port"))?;
        }
        let relays = core_api::relays_of(self.relay_name.as_deref(), addresses);
        let target = |(name, addresses)| RelayTarget::new(addresses, name, roots.clone()).over(network.clone());
        Ok(relays.into_iter().map(target).collect())
    }
}
