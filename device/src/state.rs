//! What an activated device keeps on disk.
//!
//! | file | holds |
//! |---|---|
//! | `key.pem` | the device's private key, PKCS#8, mode 0600 |
//! | `certificate.pem` | its certificate |
//! | `key.pem.next`, `certificate.pem.next` | the next pair, while a renewal lasts |
//! | `tenant-ca.pem` | the tenant's CA; two while it is rolled over |
//! | `relay.json` | how to find and trust the relay |
//! | `config.cbor` | the newest signed configuration |
//! | `commands.json` | commands that were carried out lately, and what was answered |

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use hedgerow_runtime::dial::RelayTarget;
use hedgerow_runtime::disk;
use hedgerow_runtime::renewal::Files;
use hedgerow_runtime::tls::{InForce, Own, RelayRoots, read_certificates};
use hedgerow_shared::verify::{DeviceConfig, Identity, SignedConfig, TenantCa, VerifiedCertificate};
use hedgerow_shared::wire::core_api;
use serde::{Deserialize, Serialize};

/// Private key.
pub const KEY: &str = "key.pem";
/// Certificate.
pub const CERTIFICATE: &str = "certificate.pem";
/// Tenant CA.
pub const TENANT_CA: &str = "tenant-ca.pem";
/// Relay.
pub const RELAY: &str = "relay.json";
/// Signed configuration.
pub const CONFIG: &str = "config.cbor";

/// How to find and trust the relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayFile {
    /// `host:port`, in order of preference.
    pub addresses: Vec<String>,
    /// The name in its certificate.
    pub name: String,
    /// PEM certificates of the CA it stands under; absent = the system's CAs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

impl RelayFile {
    /// As a dialler takes them: addresses of one host are one relay. A name that follows from the first address is that
    /// relay's; any other is the name of all.
    ///
    /// # Errors
    /// The CA certificates do not parse.
    pub fn targets(&self) -> anyhow::Result<Vec<RelayTarget>> {
        let roots = match &self.ca {
            None => RelayRoots::System,
            Some(text) => {
                let parsed = pem::parse_many(text).context("the relay's CA certificate is not PEM")?;
                RelayRoots::Ca(parsed.into_iter().map(|p| p.into_contents().into()).collect())
            }
        };
        let follows = core_api::relay_name(None, &self.addresses).is_some_and(|n| n == self.name);
        let relays = core_api::relays_of((!follows).then_some(self.name.as_str()), &self.addresses);
        Ok(relays.into_iter().map(|(name, addresses)| RelayTarget::new(addresses, name, roots.clone())).collect())
    }
}

/// An activated device's state.
#[derive(Debug, Clone)]
pub struct DeviceState {
    /// The folder.
    pub dir: PathBuf,
    /// Certificate and key in force; renewal replaces them in every clone.
    pub own: InForce,
    /// Whom the certificate names.
    identity: Identity,
    /// The tenant's CA.
    pub ca: TenantCa,
    /// The relay.
    pub relay: RelayFile,
}

impl DeviceState {
    /// Reads the state.
    ///
    /// # Errors
    /// Not activated, a file that others can read, or one that does not parse; says which and what to do.
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        if !dir.join(CERTIFICATE).exists() {
            bail!("no activated device in {}: run `hedgerow device activate` first", dir.display());
        }
        let (leaf, key) = files(dir).load()?;
        let ca_chain = read_certificates(&dir.join(TENANT_CA))?;
        let ca = TenantCa::from_ders(&ca_chain).context("tenant-ca.pem")?;
        let relay = fs::read(dir.join(RELAY)).with_context(|| format!("reading {}", dir.join(RELAY).display()))?;
        let relay: RelayFile =
            serde_json::from_slice(&relay).with_context(|| format!("{} does not parse", dir.join(RELAY).display()))?;
        let own = Own { chain: vec![leaf, ca.der()], key };
        Self::of(dir.to_owned(), own, ca, relay).context("certificate.pem")
    }

    /// The state made of these parts.
    ///
    /// # Errors
    /// The certificate is not one of ours.
    pub fn of(dir: PathBuf, own: Own, ca: TenantCa, relay: RelayFile) -> anyhow::Result<Self> {
        let identity = own.read()?.identity;
        Ok(Self { dir, own: InForce::new(own), identity, ca, relay })
    }

    /// Whom the certificate names.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What the certificate in force says, unverified.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn certificate(&self) -> anyhow::Result<VerifiedCertificate> {
        Ok(self.own.get().read()?)
    }

    /// The signed configuration on disk, unverified; `None` when there is none.
    ///
    /// # Errors
    /// Reading failed, or it does not parse.
    pub fn read_config(&self) -> anyhow::Result<Option<SignedConfig>> {
        let path = self.dir.join(CONFIG);
        match fs::read(&path) {
            Ok(bytes) => {
                Ok(Some(minicbor::decode(&bytes).with_context(|| format!("{} does not parse", path.display()))?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Keeps a verified configuration, and believes the CAs that it announces as far as those believed until now vouch for
    /// them. Whenever the power fails, what is on disk verifies: a new CA comes before its documents, an old one goes after.
    ///
    /// # Errors
    /// None of the CAs is vouched for, or writing failed.
    pub fn take(&self, config: &DeviceConfig, signed: &SignedConfig) -> anyhow::Result<()> {
        let Some(believed) = self.ca.after(&config.authorities)? else { return self.write_config(signed) };
        let text: String =
            believed.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.as_ref()))).collect();
        let keep_cas = || write_file(&self.dir, TENANT_CA, text.as_bytes());
        if believed.len() < self.ca.ders().len() {
            self.write_config(signed)?;
            keep_cas()?;
        } else {
            keep_cas()?;
            self.write_config(signed)?;
        }
        self.ca.replace(&believed)?;
        tracing::info!(cas = believed.len(), first = self.ca.pin(), "the tenant's CA changes");
        Ok(())
    }

    /// Keeps a verified configuration.
    ///
    /// # Errors
    /// Writing failed.
    pub fn write_config(&self, config: &SignedConfig) -> anyhow::Result<()> {
        write_file(&self.dir, CONFIG, &minicbor::to_vec(config)?)
    }
}

impl DeviceState {
    /// Erases what makes this an organisation's device: the key first.
    ///
    /// # Errors
    /// Files that could not be removed; the others are gone.
    pub fn erase(&self) -> anyhow::Result<()> {
        let mut failed: Vec<String> =
            files(&self.dir).erase_next().err().map(|e| format!("{e:#}")).into_iter().collect();
        for name in [KEY, CERTIFICATE, TENANT_CA, RELAY, CONFIG, crate::commands::FILE] {
            let path = self.dir.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    failed.push(format!("{}: {error}", path.display()));
                }
                _ => {}
            }
        }
        // So that they are gone after a power cut as well.
        let _ = fs::File::open(&self.dir).and_then(|dir| dir.sync_all());
        if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
    }
}

/// Where key and certificate lie.
#[must_use]
pub fn files(dir: &Path) -> Files {
    Files::new(dir, KEY, CERTIFICATE)
}

/// Makes the state folder, mode 0700.
///
/// # Errors
/// It cannot be made.
pub fn make_dir(dir: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make {}", dir.display()))
}

/// Writes a file of the state folder whole or not at all, mode 0600.
///
/// # Errors
/// Writing failed; the old file is still there.
pub fn write_file(dir: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let path = dir.join(name);
    disk::replace(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
