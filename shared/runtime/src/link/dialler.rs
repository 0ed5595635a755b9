//! The dialling end of a link's hand-shake.

use std::sync::Arc;

use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::session::{MuxConfig, Side};
use hedgerow_shared::wire::frame::{self, Frame, kind};
use hedgerow_shared::wire::message::{
    ALPN_LINK, Accept, Claim, Hello, Limits, Proof, Prover, Refuse, srp_mac, transcript,
};
use hedgerow_shared::{InstanceId, Origin, Role, TenantId};
use rustls::pki_types::CertificateDer;
use subtle::ConstantTimeEq;
use tokio::time::timeout;

use super::{Link, LinkError, Shaking, Transport, read, unexpected};
use crate::clock::random;
use crate::dial::{self, RelayTarget};
use crate::mux::{Mux, Plain};
use crate::scope::Scope;
use crate::tls::{self, SigningKey};

/// How a dialler shows who it is.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// A core: by the tenant's SRP authentication key, and the relay shows that it has it too.
    Srp {
        /// The tenant.
        tenant: TenantId,
        /// The key.
        key: Secret,
    },
    /// A node or device: by its certificate's key.
    Certificate {
        /// Node or device.
        role: Role,
        /// The tenant.
        tenant: TenantId,
        /// The certificate.
        leaf: CertificateDer<'static>,
        /// Its key.
        key: Arc<SigningKey>,
        /// Origins to register.
        origins: Vec<Origin>,
    },
}

impl Credentials {
    fn claim(&self) -> Claim {
        match self {
            Self::Srp { tenant, .. } => Claim { role: Role::Core, tenant: tenant.clone() },
            Self::Certificate { role, tenant, .. } => Claim { role: *role, tenant: tenant.clone() },
        }
    }
}

/// Opens one link. Cancel safe: dropping the future closes the connection.
///
/// # Errors
/// The relay's refusal, or what failed.
pub async fn connect(
    target: &RelayTarget,
    credentials: &Credentials,
    instance: InstanceId,
    timers: &Timers,
    scope: &Scope,
) -> Result<Link, LinkError> {
    let dial::Reached { stream, at } = dial::relay(target, &[ALPN_LINK], timers).await?;
    let (_, connection) = stream.get_ref();
    if connection.alpn_protocol() != Some(ALPN_LINK) {
        return Err(Fault::new(Code::Protocol, "the server does not speak the link protocol: is it the relay?").into());
    }
    let address = at.addresses.first().cloned().unwrap_or_default();
    let exporter = tls::exporter(connection)?;
    let limits = Limits::default();
    let mut shaking = Shaking::new(stream);
    let shake = shake(&mut shaking, credentials, instance, limits, &exporter);
    let (peer, accept) = timeout(timers.handshake, shake)
        .await
        .map_err(|_| Fault::new(Code::TimedOut, "the relay did not finish the link's hand-shake in time"))??;
    let config = MuxConfig::link(limits, peer.limits, *timers);
    let Shaking { io, input } = shaking;
    let mux = Mux::start(Plain::new(io), Side::Dialler, config, input.freeze(), scope);
    Ok(Link { mux, peer, accept, transport: Transport::Tls, address, at: Some(at) })
}

async fn shake<IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    io: &mut Shaking<IO>,
    credentials: &Credentials,
    instance: InstanceId,
    limits: Limits,
    exporter: &[u8; 32],
) -> Result<(Hello, Accept), LinkError> {
    let nonce = random();
    let claim = credentials.claim();
    let hello = Hello { claim: Some(claim.clone()), ..Hello::new(instance, nonce, limits) };
    io.send(frame::cbor(kind::HELLO, 0, &hello)).await?;
    let peer: Hello = match io.next().await? {
        Frame::Hello(body) => read("the relay's HELLO", &body)?,
        Frame::Refuse(body) => return Err(refused(read("REFUSE", &body)?)),
        other => return Err(unexpected("HELLO", &other).into()),
    };
    hello.agree(&peer)?;
    let proof_text = |prover| transcript(prover, &claim.tenant, &nonce, &peer.nonce, exporter);
    let proof = match credentials {
        Credentials::Srp { key, .. } => {
            let theirs = match io.next().await? {
                Frame::Proof(body) => read("the relay's PROOF", &body)?,
                Frame::Refuse(body) => return Err(refused(read("REFUSE", &body)?)),
                other => return Err(unexpected("PROOF", &other).into()),
            };
            let expected = srp_mac(key.expose(), &proof_text(Prover::Relay));
            let honest = match &theirs {
                Proof::Srp { challenge, mac } => challenge == &nonce && bool::from(mac.ct_eq(&expected)),
                Proof::Certificate { .. } => false,
            };
            if !honest {
                let text = "the relay does not know this tenant's SRP authentication key: the key is wrong, or it is another relay";
                return Err(Fault::new(Code::Unauthenticated, text).into());
            }
            Proof::Srp { challenge: peer.nonce, mac: srp_mac(key.expose(), &proof_text(Prover::Dialler(Role::Core))) }
        }
        Credentials::Certificate { role, leaf, key, origins, .. } => Proof::Certificate {
            challenge: peer.nonce,
            leaf: leaf.to_vec(),
            signature: key.sign(&proof_text(Prover::Dialler(*role))),
            origins: origins.clone(),
        },
    };
    io.send(frame::cbor(kind::PROOF, 0, &proof)).await?;
    match io.next().await? {
        Frame::Accept(body) => Ok((peer, read("ACCEPT", &body)?)),
        Frame::Refuse(body) => Err(refused(read("REFUSE", &body)?)),
        other => Err(unexpected("ACCEPT", &other).into()),
    }
}

fn refused(refuse: Refuse) -> LinkError {
    LinkError::Refused { fault: refuse.fault, retry_after_ms: refuse.retry_after_ms }
}
