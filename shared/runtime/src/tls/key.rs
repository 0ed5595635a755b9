//! Private keys and certificates on disk.

use std::path::Path;
use std::sync::Arc;

use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::certificate::verify_signature;
use rustls::SignatureScheme;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::Signer;
use zeroize::Zeroizing;

use super::provider;

/// Why a key or certificate file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Reading failed.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others can read a private key.
    #[error("{path} holds a private key that others can read (mode {mode:o}): chmod 600 {path}")]
    Exposed {
        /// The file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// Not what was expected.
    #[error("{path} is not {expected}")]
    Form {
        /// The file.
        path: String,
        /// What was expected.
        expected: &'static str,
    },
}

/// An ECDSA P-256 key: signs link proofs and serves TLS, by the provider in use.
pub struct SigningKey {
    signer: Box<dyn Signer>,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

impl SigningKey {
    /// Reads a PKCS#8 key.
    ///
    /// # Errors
    /// `None` when it is not an ECDSA P-256 key.
    #[must_use]
    pub fn from_pkcs8(der: &[u8]) -> Option<Arc<Self>> {
        let key = PrivatePkcs8KeyDer::from(der.to_vec()).into();
        let key = provider().key_provider.load_private_key(key).ok()?;
        let signer = key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256])?;
        Some(Arc::new(Self { signer, pkcs8: Zeroizing::new(der.to_vec()) }))
    }

    /// Reads a PEM file with one PKCS#8 ECDSA P-256 key; refused when others can read it.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read(path: &Path) -> Result<Arc<Self>, KeyError> {
        let text = Zeroizing::new(read_private(path)?);
        let form = || KeyError::Form {
            path: path.display().to_string(),
            expected: "a PEM file with one PKCS#8 ECDSA P-256 private key",
        };
        let parsed = pem::parse(text.as_slice()).map_err(|_| form())?;
        Self::from_pkcs8(parsed.contents()).ok_or_else(form)
    }

    /// Signs with SHA-256; ASN.1.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.signer.sign(message).unwrap_or_default()
    }

    /// Whether a certificate (DER) was issued for this key.
    #[must_use]
    pub fn is_of(&self, leaf: &CertificateDer<'_>) -> bool {
        const PROBE: &[u8] = b"hedgerow: does this certificate belong to this key";
        verify_signature(leaf, PROBE, &self.sign(PROBE)).is_ok()
    }

    /// The key as PKCS #8, for libraries other than rustls.
    #[must_use]
    pub fn secret(&self) -> Secret {
        Secret::new(self.pkcs8.to_vec())
    }

    /// The key as rustls takes it.
    #[must_use]
    pub fn to_rustls(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()).into()
    }
}

fn read_private(path: &Path) -> Result<Vec<u8>, KeyError> {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    let read = |source| KeyError::Read { path: path.display().to_string(), source };
    let mut file = std::fs::File::open(path).map_err(read)?;
    let mode = file.metadata().map_err(read)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.display().to_string(), mode });
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(read)?;
    Ok(bytes)
}

/// Reads every certificate of a PEM file; at least one.
///
/// # Errors
/// What is wrong with the file.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, KeyError> {
    let read = |source| KeyError::Read { path: path.display().to_string(), source };
    let form = || KeyError::Form { path: path.display().to_string(), expected: "a PEM file with certificates" };
    let text = std::fs::read(path).map_err(read)?;
    let certificates: Vec<_> = pem::parse_many(text)
        .map_err(|_| form())?
        .into_iter()
        .filter(|p| p.tag() == "CERTIFICATE")
        .map(|p| CertificateDer::from(p.into_contents()))
        .collect();
    if certificates.is_empty() { Err(form()) } else { Ok(certificates) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let pair = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new()).unwrap();
        std::fs::write(&path, pem::encode(&pem::Pem::new("PRIVATE KEY", pair.as_ref()))).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = SigningKey::read(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!SigningKey::read(&path).unwrap().sign(b"x").is_empty());
    }

    #[test]
    fn a_key_of_another_kind_is_refused() {
        let other = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, &SystemRandom::new()).unwrap();
        assert!(SigningKey::from_pkcs8(other.as_ref()).is_none());
        assert!(SigningKey::from_pkcs8(b"no key").is_none());
    }
}
