//! Who a dialler is, shown. A link's hand-shake, over TLS 1.3 whose server certificate the dialler verified:
//! ```text
//!   dialler                                    relay
//!   HELLO {claim: role, tenant; nonce d}  --->
//!                                         <--- HELLO {nonce r}
//!                                         <--- PROOF Srp {MAC as relay}        (only to a core: the relay goes first)
//!   PROOF Srp {MAC as core}               --->
//!     or Certificate {leaf, signature}    --->
//!                                         <--- ACCEPT | REFUSE
//! ```
//! Both proofs are over `transcript`: label, role, tenant, both nonces, and the TLS exporter of RFC 9266.

use minicbor::{Decode, Encode};

use super::keyed_hash;
use crate::{Origin, Role, TenantId};

/// Shows that a peer is who it claims to be.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Proof {
    /// Core and relay: HMAC-SHA-256 by the tenant's SRP authentication key.
    #[n(0)]
    Srp {
        /// The nonce of the other end's HELLO, repeated: tells a replay from a wrong key.
        #[cbor(n(0), with = "minicbor::bytes")]
        challenge: [u8; 32],
        /// HMAC over `transcript`.
        #[cbor(n(1), with = "minicbor::bytes")]
        mac: [u8; 32],
    },
    /// Node and device: ECDSA P-256 signature by the leaf's key.
    #[n(1)]
    Certificate {
        /// The nonce of the other end's HELLO, repeated.
        #[cbor(n(0), with = "minicbor::bytes")]
        challenge: [u8; 32],
        /// The leaf, DER.
        #[cbor(n(1), with = "minicbor::bytes")]
        leaf: Vec<u8>,
        /// Over `transcript`, SHA-256, ASN.1.
        #[cbor(n(2), with = "minicbor::bytes")]
        signature: Vec<u8>,
        /// Origins this session registers; each must stand in the leaf.
        #[n(3)]
        origins: Vec<Origin>,
    },
}

/// Who signs or MACs a transcript: the word goes into it, so that no proof fits the other direction or role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prover {
    /// The relay, to a core.
    Relay,
    /// The dialler, in its role.
    Dialler(Role),
}

/// What a proof is made over.
#[must_use]
pub fn transcript(
    prover: Prover,
    tenant: &TenantId,
    dialler_nonce: &[u8; 32],
    relay_nonce: &[u8; 32],
    exporter: &[u8; 32],
) -> Vec<u8> {
    let word = match prover {
        Prover::Relay => "relay",
        Prover::Dialler(role) => role.as_str(),
    };
    let mut out = b"hedgerow link proof v1\0".to_vec();
    for part in [word.as_bytes(), tenant.as_str().as_bytes(), dialler_nonce, relay_nonce, exporter] {
        out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// HMAC-SHA-256 by the SRP key over a transcript.
#[must_use]
pub fn srp_mac(key: &[u8], transcript: &[u8]) -> [u8; 32] {
    keyed_hash(key, transcript)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transcripts_differ_in_every_part() {
        let t: TenantId = "S12345678".parse().unwrap();
        let base = transcript(Prover::Relay, &t, &[1; 32], &[2; 32], &[3; 32]);
        for other in [
            transcript(Prover::Dialler(Role::Core), &t, &[1; 32], &[2; 32], &[3; 32]),
            transcript(Prover::Relay, &"S12345679".parse().unwrap(), &[1; 32], &[2; 32], &[3; 32]),
            transcript(Prover::Relay, &t, &[0; 32], &[2; 32], &[3; 32]),
            transcript(Prover::Relay, &t, &[1; 32], &[0; 32], &[3; 32]),
            transcript(Prover::Relay, &t, &[1; 32], &[2; 32], &[0; 32]),
        ] {
            assert_ne!(base, other);
        }
    }
}
