//! ECDSA P-256 keys, made from random bytes that the caller gives. Signatures are deterministic (RFC 6979), so
//! signing needs no randomness at all.

use p256::ecdsa::signature::Signer;
use p256::ecdsa::{DerSignature, SigningKey};
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use rcgen::{CertificateParams, PublicKeyData, SignatureAlgorithm};
use zeroize::Zeroizing;

use super::CaError;
use crate::random::{self, Random};

/// A private key; wiped when dropped.
pub struct Key {
    signing: SigningKey,
    /// The public point, uncompressed (SEC 1).
    public: Vec<u8>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(<secret>)")
    }
}

impl Key {
    /// A new key.
    ///
    /// # Errors
    /// `Randomness` when `random` is broken (a good one fails once in 2^32 tries, and is asked again).
    pub fn generate(random: &mut dyn Random) -> Result<Self, CaError> {
        for _ in 0..16 {
            let bytes: Zeroizing<[u8; 32]> = Zeroizing::new(random::bytes(random));
            if let Ok(signing) = SigningKey::from_slice(bytes.as_slice()) {
                return Ok(Self::from_signing(signing));
            }
        }
        Err(CaError::Randomness)
    }

    /// Reads PKCS#8 DER.
    ///
    /// # Errors
    /// `Key`.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, CaError> {
        SigningKey::from_pkcs8_der(der).map(Self::from_signing).map_err(|_| CaError::Key)
    }

    /// PKCS#8 DER, with the public key in it, as TLS libraries read it.
    #[must_use]
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        self.signing.to_pkcs8_der().map(|d| Zeroizing::new(d.as_bytes().to_vec())).expect("a P-256 key always encodes")
    }

    /// The public half: SubjectPublicKeyInfo, DER.
    #[must_use]
    pub fn public_key_info(&self) -> Vec<u8> {
        self.subject_public_key_info()
    }

    /// A certificate request (PKCS#10 DER) that shows possession of this key. It names nobody: who the holder is
    /// stands in the certificate by the CA's own knowledge.
    ///
    /// # Errors
    /// `Encoding`, never in practice.
    pub fn certificate_request(&self) -> Result<Vec<u8>, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(self).map_err(|e| CaError::Encoding(e.to_string()))?;
        Ok(request.der().to_vec())
    }

    /// Signs a message: ECDSA over SHA-256, ASN.1.
    #[must_use]
    pub fn sign_message(&self, message: &[u8]) -> Vec<u8> {
        let signature: DerSignature = self.signing.sign(message);
        signature.as_bytes().to_vec()
    }

    fn from_signing(signing: SigningKey) -> Self {
        let public = signing.verifying_key().to_sec1_point(false).as_bytes().to_vec();
        Self { signing, public }
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.sign_message(message))
    }
}
