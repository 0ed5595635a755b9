//! The relay's end of a link's hand-shake.

use std::time::Duration;

use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::session::{MuxConfig, Side};
use hedgerow_shared::verify::VerifiedCertificate;
use hedgerow_shared::verify::certificate::verify_signature;
use hedgerow_shared::wire::frame::{self, Frame, kind};
use hedgerow_shared::wire::message::{Accept, Claim, Hello, Limits, Proof, Prover, Refuse, srp_mac, transcript};
use hedgerow_shared::{InstanceId, Origin, Role, SessionId, TenantId};
use rustls::pki_types::CertificateDer;
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::server::TlsStream;

use super::{Channel, Link, LinkError, Reason, Shaking, Transport, read, unexpected};
use crate::clock::random;
use crate::mux::{Mux, Plain};
use crate::quic;
use crate::scope::Scope;
use crate::tls;

/// How long a refusal may take to arrive.
const REFUSAL: Duration = Duration::from_secs(2);

/// What a relay knows and decides during the hand-shake.
pub trait Admit: Send + Sync {
    /// The SRP authentication key of a tenant; `None` when the tenant is unknown (the hand-shake still runs to its
    /// end, so that a stranger does not learn which tenants exist).
    fn srp_key(&self, tenant: &TenantId) -> Option<Secret>;

    /// Checks a leaf of a node or device against the tenant CA it claims: signature, expiry, role, revocation.
    ///
    /// # Errors
    /// Why not; the fault goes to the peer.
    fn certificate(&self, claim: &Claim, leaf: &CertificateDer<'_>) -> Result<VerifiedCertificate, Fault>;

    /// The last word, after the proof: tenant state, origins within the certificate, displacement, limits.
    ///
    /// # Errors
    /// The refusal to send.
    fn accept(&self, peer: &Peer) -> Result<Accept, Refuse>;
}

/// A peer that has shown who it is.
#[derive(Debug, Clone)]
pub struct Peer {
    /// What it is.
    pub role: Role,
    /// Whose it is.
    pub tenant: TenantId,
    /// Nodes and devices.
    pub certificate: Option<VerifiedCertificate>,
    /// What it wants to serve.
    pub origins: Vec<Origin>,
    /// What it said of itself.
    pub hello: Hello,
    /// The link's id.
    pub session: SessionId,
    /// Address and port it came from.
    pub address: String,
}

/// Answers a link's hand-shake on a TLS connection whose ALPN is `ALPN_LINK`. Cancel safe: dropping closes. The connection
/// is boxed because it is passed on from task to task, and each step would keep room for it.
///
/// # Errors
/// `Refused` when the peer was refused (it has been told), otherwise what failed.
pub async fn answer<IO>(
    stream: impl Into<Box<TlsStream<IO>>>,
    address: String,
    admit: &dyn Admit,
    limits: Limits,
    instance: InstanceId,
    timers: &Timers,
    scope: &Scope,
) -> Result<(Link, Peer), LinkError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = stream.into();
    let exporter = tls::exporter(stream.get_ref().1)?;
    let mut shaking = Shaking::new(stream);
    let hello = Hello::new(instance, random(), limits);
    let until = Instant::now() + timers.handshake;
    let (peer, accept) = shake_or_refuse(&mut shaking, &hello, address.clone(), admit, &exporter, until).await?;
    let config = MuxConfig::link(limits, peer.hello.limits, *timers);
    let (io, leftover) = shaking.end();
    let mux = Channel::Framed(Mux::start(Plain::new(io), Side::Acceptor, config, leftover, scope));
    Ok((
        Link {
            mux,
            peer: peer.hello.clone(),
            accept,
            transport: Transport::Tls,
            reason: Reason::Asked,
            address,
            at: None,
        },
        peer,
    ))
}

/// The relay's end of the hand-shake alone, on a connection that somebody else looks after: for fuzzing.
///
/// # Errors
/// As `answer`.
pub async fn answer_on<IO: AsyncRead + AsyncWrite + Unpin>(
    io: IO,
    hello: &Hello,
    admit: &dyn Admit,
    exporter: &[u8; 32],
    timers: &Timers,
) -> Result<(Peer, Accept), LinkError> {
    let until = Instant::now() + timers.handshake;
    shake_or_refuse(&mut Shaking::new(io), hello, String::new(), admit, exporter, until).await
}

/// Answers a link's hand-shake on a QUIC connection that has finished its own. Cancel safe: dropping closes.
///
/// # Errors
/// `Refused` when the peer was refused (it has been told), otherwise what failed.
pub async fn answer_quic(
    connection: quinn::Connection,
    admit: &dyn Admit,
    limits: Limits,
    instance: InstanceId,
    timers: &Timers,
    scope: &Scope,
) -> Result<(Link, Peer), LinkError> {
    let exporter = quic::exporter(&connection)?;
    let address = connection.remote_address().to_string();
    let until = Instant::now() + timers.handshake;
    let (send, receive) = timeout_at(until, connection.accept_bi())
        .await
        .map_err(|_| Fault::new(Code::TimedOut, "the peer did not begin the link's hand-shake in time"))?
        .map_err(|e| quic::connection_fault(&e))?;
    let mut shaking = Shaking::new(tokio::io::join(receive, send));
    let hello = Hello::new(instance, random(), limits);
    let shaken = shake_or_refuse(&mut shaking, &hello, address.clone(), admit, &exporter, until).await;
    let (io, leftover) = shaking.end();
    let (receive, send) = io.into_inner();
    let (peer, accept) = match shaken {
        Ok(opened) => opened,
        Err(error) => {
            // The refusal arrives before the connection closes.
            let _ = timeout(REFUSAL, send.stopped()).await;
            let fault = error.fault();
            quic::close(&connection, fault);
            return Err(error);
        }
    };
    let opened = quic::Opened {
        send,
        receive,
        leftover,
        ours: limits,
        theirs: peer.hello.limits,
        handshake: timers.handshake,
        endpoint: None,
    };
    let mux = Channel::Quic(quic::Mux::start(connection, opened, scope));
    Ok((
        Link {
            mux,
            peer: peer.hello.clone(),
            accept,
            transport: Transport::Quic,
            reason: Reason::Asked,
            address,
            at: None,
        },
        peer,
    ))
}

/// The hand-shake to its end, or to the refusal, which is sent.
async fn shake_or_refuse<IO: AsyncRead + AsyncWrite + Unpin>(
    shaking: &mut Shaking<IO>,
    hello: &Hello,
    address: String,
    admit: &dyn Admit,
    exporter: &[u8; 32],
    until: Instant,
) -> Result<(Peer, Accept), LinkError> {
    let shaken = timeout_at(until, shake(shaking, hello, address, admit, exporter))
        .await
        .map_err(|_| Fault::new(Code::TimedOut, "the peer did not finish the link's hand-shake in time"))?;
    match shaken {
        Ok(opened) => Ok(opened),
        Err(refusal) => {
            let frame = frame::cbor(kind::REFUSE, 0, &refusal);
            // The peer may be gone; the refusal is counted by the caller either way.
            let _ = timeout(REFUSAL, async {
                shaking.send(frame).await.ok();
                tokio::io::AsyncWriteExt::shutdown(&mut shaking.io).await
            })
            .await;
            Err(LinkError::Refused { fault: refusal.fault, retry_after_ms: refusal.retry_after_ms })
        }
    }
}

fn refuse(fault: Fault) -> Refuse {
    // Wrong credentials do not mend themselves in a second; a broken version will not in an hour.
    Refuse { fault, retry_after_ms: 5_000 }
}

async fn shake<IO: AsyncRead + AsyncWrite + Unpin>(
    io: &mut Shaking<IO>,
    hello: &Hello,
    address: String,
    admit: &dyn Admit,
    exporter: &[u8; 32],
) -> Result<(Peer, Accept), Refuse> {
    let theirs: Hello = match io.next().await.map_err(refuse)? {
        Frame::Hello(body) => read("HELLO", &body).map_err(refuse)?,
        other => return Err(refuse(unexpected("HELLO", &other))),
    };
    hello.agree(&theirs).map_err(refuse)?;
    let claim = theirs.claim.clone().ok_or_else(|| refuse(Fault::new(Code::Protocol, "HELLO without a claim")))?;
    io.send(frame::cbor(kind::HELLO, 0, hello)).await.map_err(refuse)?;
    let text = |prover| transcript(prover, &claim.tenant, &theirs.nonce, &hello.nonce, exporter);

    let srp = (claim.role == Role::Core).then(|| admit.srp_key(&claim.tenant));
    if let Some(key) = &srp {
        // An unknown tenant gets a proof of a random key: alike in form and time.
        let stand_in = Secret::new(random::<32>().to_vec());
        let mac = srp_mac(key.as_ref().unwrap_or(&stand_in).expose(), &text(Prover::Relay));
        let proof = Proof::Srp { challenge: theirs.nonce, mac };
        io.send(frame::cbor(kind::PROOF, 0, &proof)).await.map_err(refuse)?;
    }
    let proof: Proof = match io.next().await.map_err(refuse)? {
        Frame::Proof(body) => read("PROOF", &body).map_err(refuse)?,
        other => return Err(refuse(unexpected("PROOF", &other))),
    };
    let replayed =
        || refuse(Fault::new(Code::Unauthenticated, "the proof answers another challenge than the one sent: a replay"));
    let (certificate, origins) = match (proof, srp) {
        (Proof::Srp { challenge, mac }, Some(key)) => {
            if challenge != hello.nonce {
                return Err(replayed());
            }
            let wrong = || refuse(Fault::new(Code::Unauthenticated, "wrong SRP authentication key, or unknown tenant"));
            let key = key.ok_or_else(wrong)?;
            let expected = srp_mac(key.expose(), &text(Prover::Dialler(Role::Core)));
            if !bool::from(mac.ct_eq(&expected)) {
                return Err(wrong());
            }
            (None, vec![Origin::Core, Origin::Bws])
        }
        (Proof::Certificate { challenge, leaf, signature, origins }, None) => {
            if challenge != hello.nonce {
                return Err(replayed());
            }
            let leaf = CertificateDer::from(leaf);
            let verified = admit.certificate(&claim, &leaf).map_err(refuse)?;
            verify_signature(&leaf, &text(Prover::Dialler(claim.role)), &signature).map_err(|_| {
                refuse(Fault::new(Code::Unauthenticated, "the peer does not hold its certificate's key"))
            })?;
            (Some(verified), origins)
        }
        (Proof::Srp { .. } | Proof::Certificate { .. }, _) => {
            return Err(refuse(Fault::new(Code::Unauthenticated, "the proof does not fit the claimed role")));
        }
    };
    let peer = Peer {
        role: claim.role,
        tenant: claim.tenant,
        certificate,
        origins,
        hello: theirs,
        session: SessionId::from_random(random()),
        address,
    };
    let accept = admit.accept(&peer)?;
    io.send(frame::cbor(kind::ACCEPT, 0, &accept)).await.map_err(refuse)?;
    Ok((peer, accept))
}
