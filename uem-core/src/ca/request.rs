//! Certificate requests (PKCS#10) from peers. Only the public key is taken; subject, extensions and attributes are
//! the requester's wishes and ignored.

use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{DerSignature, VerifyingKey};
use rcgen::{PublicKeyData, SignatureAlgorithm};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256};
use x509_parser::prelude::FromDer;

/// The largest request read, bytes.
const MAX_REQUEST: usize = 8 * 1024;

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not a PKCS#10 request, or larger than 8 KiB.
    #[error("the certificate request is malformed")]
    Malformed,
    /// Its key is of another kind.
    #[error("the certificate request's key is not ECDSA P-256")]
    WrongKey,
    /// Its signature was not made by its key.
    #[error("the certificate request is not signed by its own key")]
    BadSignature,
}

/// The public key of a request whose signature holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRequest {
    public: Vec<u8>,
}

impl CertificateRequest {
    /// Reads a request and checks that its sender holds the private key.
    ///
    /// # Errors
    /// Which of these failed.
    pub fn from_der(der: &[u8]) -> Result<Self, RequestError> {
        if der.len() > MAX_REQUEST {
            return Err(RequestError::Malformed);
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| RequestError::Malformed)?;
        if !rest.is_empty() {
            return Err(RequestError::Malformed);
        }
        let info = &request.certification_request_info;
        let key = &info.subject_pki;
        let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
        if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
            return Err(RequestError::WrongKey);
        }
        if request.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 {
            return Err(RequestError::WrongKey);
        }
        let public = VerifyingKey::from_sec1_bytes(&key.subject_public_key.data).map_err(|_| RequestError::WrongKey)?;
        let signature =
            DerSignature::try_from(request.signature_value.data.as_ref()).map_err(|_| RequestError::BadSignature)?;
        public.verify(info.raw, &signature).map_err(|_| RequestError::BadSignature)?;
        Ok(Self { public: public.to_sec1_point(false).as_bytes().to_vec() })
    }
}

impl PublicKeyData for CertificateRequest {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}
