//! ECDSA signatures of one length. DER writes them in 70 to 72 bytes as it happens, and a byte more or less decides what
//! goes into one datagram, and so what is lost and when things come.

use std::sync::Arc;

use hedgerow_runtime::tls::{self, Provider};
use rustls::SignatureScheme;
use rustls::crypto::KeyProvider;
use rustls::pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use rustls::sign::{Signer, SigningKey};

/// Every second signature has it.
const LENGTH: usize = 71;

/// Has everything in this process signed so.
pub(crate) fn sign() {
    tls::select_with(Provider::default(), |provider| {
        let inner = provider.key_provider;
        provider.key_provider = Box::leak(Box::new(Keys(inner)));
    });
}

#[derive(Debug)]
struct Keys(&'static dyn KeyProvider);

impl KeyProvider for Keys {
    fn load_private_key(&self, key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        Ok(Arc::new(Key(self.0.load_private_key(key)?)))
    }
}

#[derive(Debug)]
struct Key(Arc<dyn SigningKey>);

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(OneLength(self.0.choose_scheme(offered)?)))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.0.public_key()
    }

    fn algorithm(&self) -> rustls::SignatureAlgorithm {
        self.0.algorithm()
    }
}

#[derive(Debug)]
struct OneLength(Box<dyn Signer>);

impl Signer for OneLength {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        loop {
            let signature = self.0.sign(message)?;
            if self.scheme() != SignatureScheme::ECDSA_NISTP256_SHA256 || signature.len() == LENGTH {
                return Ok(signature);
            }
        }
    }

    fn scheme(&self) -> SignatureScheme {
        self.0.scheme()
    }
}
