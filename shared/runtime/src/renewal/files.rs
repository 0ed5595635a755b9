//! A holder's key and certificate on disk, and the next pair beside them.
//!
//! ```text
//!   KEY, CERTIFICATE              what is in force
//!   KEY.next                      the next key; written before the core is asked
//!   CERTIFICATE.next              its certificate; in force once the core has acknowledged it
//! ```
//! Putting the next pair in force is two renames, certificate first: a start that finds the new certificate beside the old
//! key takes the second step.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::disk;
use crate::tls::{SigningKey, read_certificates};

/// Where a role keeps its key and certificate.
#[derive(Debug, Clone)]
pub struct Files {
    folder: PathBuf,
    key: &'static str,
    certificate: &'static str,
}

impl Files {
    /// Files of these names in a state folder.
    #[must_use]
    pub fn new(folder: &Path, key: &'static str, certificate: &'static str) -> Self {
        Self { folder: folder.to_owned(), key, certificate }
    }

    /// Reads what is in force, after finishing a replacement that was cut off.
    ///
    /// # Errors
    /// A file is missing, open to others, or does not parse; or certificate and key do not belong together.
    pub fn load(&self) -> anyhow::Result<(CertificateDer<'static>, Arc<SigningKey>)> {
        let path = self.at(self.certificate);
        let leaf = read_certificates(&path)?.into_iter().next();
        let leaf = leaf.with_context(|| format!("{} is empty", path.display()))?;
        let key = SigningKey::read(&self.at(self.key))?;
        if key.is_of(&leaf) {
            return Ok((leaf, key));
        }
        match SigningKey::read(&self.next(self.key)) {
            Ok(next) if next.is_of(&leaf) => {
                self.put(self.key)?;
                Ok((leaf, next))
            }
            _ => bail!("{} is for another key than {}", path.display(), self.at(self.key).display()),
        }
    }

    /// Whether a renewal was begun.
    pub(super) fn has_next(&self) -> bool {
        self.next(self.key).exists()
    }

    /// The next key; made, and on disk, when there is none yet.
    pub(super) fn next_key(&self) -> anyhow::Result<Arc<SigningKey>> {
        let path = self.next(self.key);
        if !path.exists() {
            let pair = rcgen::KeyPair::generate().context("cannot make a key")?;
            let pkcs8 = Zeroizing::new(pair.serialize_der());
            let text = Zeroizing::new(pem::encode(&pem::Pem::new("PRIVATE KEY", pkcs8.as_slice())));
            write(&path, text.as_bytes())?;
        }
        Ok(SigningKey::read(&path)?)
    }

    /// The certificate that was issued for the next key, if it came.
    pub(super) fn next_certificate(&self, key: &SigningKey) -> Option<CertificateDer<'static>> {
        let leaf = read_certificates(&self.next(self.certificate)).ok()?.into_iter().next()?;
        key.is_of(&leaf).then_some(leaf)
    }

    /// Keeps the certificate of the next key.
    pub(super) fn keep_certificate(&self, leaf: &CertificateDer<'_>) -> anyhow::Result<()> {
        let text = pem::encode(&pem::Pem::new("CERTIFICATE", leaf.as_ref()));
        write(&self.next(self.certificate), text.as_bytes())
    }

    /// Puts the next pair in force and drops the old one.
    pub(super) fn commit(&self) -> anyhow::Result<()> {
        self.put(self.certificate)?;
        self.put(self.key)
    }

    /// Removes a renewal that was begun: with the key in force goes the next one.
    ///
    /// # Errors
    /// A file that is there cannot be removed; the other is gone.
    pub fn erase_next(&self) -> anyhow::Result<()> {
        let gone = |path: PathBuf| match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        };
        let (key, certificate) = (gone(self.next(self.key)), gone(self.next(self.certificate)));
        key.and(certificate)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn next(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.next"))
    }

    fn put(&self, name: &str) -> anyhow::Result<()> {
        let (from, to) = (self.next(name), self.at(name));
        let replace = || -> std::io::Result<()> {
            fs::rename(&from, &to)?;
            File::open(&self.folder)?.sync_all()
        };
        replace().with_context(|| format!("cannot put {} in force", from.display()))
    }
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    disk::replace(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// A PKCS#10 request for this key, DER.
pub(super) fn request(key: &SigningKey) -> anyhow::Result<Vec<u8>> {
    let secret = key.secret();
    let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&secret.expose().into(), &rcgen::PKCS_ECDSA_P256_SHA256)
        .context("the next key cannot be used")?;
    let made = rcgen::CertificateParams::default().serialize_request(&pair);
    Ok(made.context("cannot make a certificate request")?.der().to_vec())
}
