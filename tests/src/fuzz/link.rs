//! The hand-shake of links, with a peer that says anything, at either end.

use std::pin::Pin;
use std::task::{Context, Poll};

use hedgerow_runtime::link::{Admit, Credentials, LinkError, Peer, answer_on, connect_on};
use hedgerow_runtime::tls::{InForce, SigningKey};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::{Usage, VerifiedCertificate};
use hedgerow_shared::wire::frame::{self, kind};
use hedgerow_shared::wire::message::{Accept, Claim, Hello, Limits, Proof, Prover, Refuse, srp_mac, transcript};
use hedgerow_shared::{InstanceId, Origin, Role, SessionId, TenantId};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, ReadBuf};

use super::Input;
use super::fixture::{NOW, fixture};

const EXPORTER: [u8; 32] = [9; 32];
const KEY: [u8; 32] = [7; 32];
/// The relay's challenge, the same in every run, so that stored inputs can carry proofs that fit.
const CHALLENGE: [u8; 32] = [2; 32];
/// That of the diallers whose proofs are stored.
pub(super) const NONCE: [u8; 32] = [1; 32];

/// The peer: pieces of a stored input, then the end.
struct Pieces<'a> {
    left: &'a [u8],
    each: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let (piece, left) = self.left.split_at(self.each.min(self.left.len()).min(out.remaining()));
        out.put_slice(piece);
        self.left = left;
        Poll::Ready(Ok(()))
    }
}

struct Relay;

impl Admit for Relay {
    fn srp_key(&self, tenant: &TenantId) -> Option<Secret> {
        (*tenant == fixture().tenant).then(|| Secret::new(KEY.to_vec()))
    }

    fn certificate(&self, claim: &Claim, leaf: &CertificateDer<'_>) -> Result<VerifiedCertificate, Fault> {
        let verified = fixture().ca.verify(leaf, claim.role, Usage::Client, NOW);
        verified.map_err(|e| Fault::new(Code::Unauthenticated, e.to_string()))
    }

    fn accept(&self, peer: &Peer) -> Result<Accept, Refuse> {
        Ok(accept(peer.session))
    }
}

fn accept(session: SessionId) -> Accept {
    Accept { session, relay: "relay.example".into(), lookup_key: None, config: None, time: NOW.0 }
}

fn instance(n: u8) -> InstanceId {
    InstanceId::from_random([n; 16])
}

/// The hand-shake of a link. The first byte: at which end the input is the peer, in what pieces it comes, and with what a
/// dialler shows who it is. A relay lets in nobody who does not hold a key, and a core takes no relay that does not
/// know its own; what is said of the peer's mistakes stays short.
pub fn link_handshake(data: &[u8]) {
    let mut input = Input(data);
    let flags = input.u8();
    let each = [usize::MAX, 1, 7, 300][usize::from(flags >> 1 & 3)];
    let io = tokio::io::join(Pieces { left: input.0, each }, tokio::io::sink());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let error = if flags & 1 == 0 {
        let hello = Hello::new(instance(2), CHALLENGE, Limits::default());
        match runtime.block_on(answer_on(io, &hello, &Relay, &EXPORTER, &Timers::default())) {
            Ok((peer, _)) => return let_in(&peer),
            Err(error) => error,
        }
    } else {
        let core = flags & 8 != 0;
        match runtime.block_on(connect_on(io, &credentials(core), instance(1), &EXPORTER)) {
            // The relay of a node or device is known by its TLS.
            Ok(_) => return assert!(!core, "a core believes a relay that cannot know its fresh challenge"),
            Err(error) => error,
        }
    };
    let (LinkError::Refused { fault, .. } | LinkError::Failed(fault) | LinkError::Twin(fault)) = error;
    assert!(fault.text.len() <= 200, "{fault}");
}

/// Only the stored proofs fit, and they fit one nonce.
fn let_in(peer: &Peer) {
    assert_eq!((&peer.tenant, peer.hello.nonce), (&fixture().tenant, NONCE), "somebody got in without a key");
    assert_eq!(peer.certificate.is_none(), peer.role == Role::Core);
    if let Some(certificate) = &peer.certificate {
        assert_eq!((&certificate.identity.tenant, certificate.identity.role), (&peer.tenant, peer.role));
    }
}

fn credentials(core: bool) -> Credentials {
    let fixture = fixture();
    let tenant = fixture.tenant.clone();
    if core {
        return Credentials::Srp { tenant, key: Secret::new(KEY.to_vec()) };
    }
    let leaf = CertificateDer::from(leaf(Role::Node).to_vec());
    let key = SigningKey::from_pkcs8(&fixture.node_key.to_pkcs8()).expect("the fixture's key");
    Credentials::Certificate { role: Role::Node, tenant, own: InForce::of(leaf, key), origins: vec![Origin::Proxy] }
}

fn leaf(role: Role) -> &'static [u8] {
    let leaf = fixture().leaves.iter().find(|(identity, _)| identity.role == role);
    leaf.map(|(_, der)| der.as_slice()).expect("a leaf of each role")
}

/// What an honest dialler sends, and an honest relay.
pub(super) fn honest() -> Vec<(&'static str, u8, Vec<u8>)> {
    let tenant = &fixture().tenant;
    let hello =
        |nonce, claim| Hello { claim, build: "hedgerow/0".into(), ..Hello::new(instance(1), nonce, Limits::default()) };
    let mut all = Vec::new();
    for role in Role::ALL {
        let claim = Claim { role: *role, tenant: tenant.clone() };
        let text = transcript(Prover::Dialler(*role), tenant, &NONCE, &CHALLENGE, &EXPORTER);
        let proof = match role {
            Role::Core => Proof::Srp { challenge: CHALLENGE, mac: srp_mac(&KEY, &text) },
            Role::Node | Role::Device => Proof::Certificate {
                challenge: CHALLENGE,
                leaf: leaf(*role).to_vec(),
                signature: fixture().node_key.sign_message(&text),
                origins: if *role == Role::Node { vec![Origin::Proxy] } else { vec![] },
            },
        };
        let says = [frame::cbor(kind::HELLO, 0, &hello(NONCE, Some(claim))), frame::cbor(kind::PROOF, 0, &proof)];
        all.push((role.as_str(), 0, says.concat()));
    }
    let relay = [
        frame::cbor(kind::HELLO, 0, &hello(CHALLENGE, None)),
        frame::cbor(kind::ACCEPT, 0, &accept(SessionId::from_random([3; 16]))),
    ];
    all.push(("relay", 1, relay.concat()));
    let proof = Proof::Srp { challenge: NONCE, mac: [4; 32] };
    let false_one = [frame::cbor(kind::HELLO, 0, &hello(CHALLENGE, None)), frame::cbor(kind::PROOF, 0, &proof)];
    all.push(("relay-of-a-core", 9, false_one.concat()));
    let refusal = Refuse { fault: Fault::new(Code::Displaced, "another process"), retry_after_ms: 9 };
    all.push(("refusal", 1, frame::cbor(kind::REFUSE, 0, &refusal).to_vec()));
    all
}
