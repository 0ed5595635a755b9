//! The dialling end of a link's hand-shake.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::session::{MuxConfig, Side};
use hedgerow_shared::wire::frame::{self, Frame, kind};
use hedgerow_shared::wire::message::{
    ALPN_LINK, Accept, Claim, Hello, Limits, Proof, Prover, Refuse, srp_mac, transcript,
};
use hedgerow_shared::{InstanceId, Origin, Role, TenantId};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Endpoint};
use rustls::pki_types::CertificateDer;
use subtle::ConstantTimeEq;
use tokio::time::timeout;

use super::twins::{Entry, Hold};
use super::{Channel, Link, LinkError, Reason, Shaking, Transport, read, unexpected};
use crate::clock::random;
use crate::dial::{self, Reached, RelayTarget};
use crate::mux::{Mux, Plain};
use crate::quic;
use crate::scope::Scope;
use crate::tls::{self, Below, InForce, Replacements};

/// The next address is tried over UDP this long after the one before (RFC 8305).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// So many of a relay's addresses are tried over UDP.
const ADDRESSES: usize = 8;

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
        /// Its certificate and key, as they are at each hand-shake.
        own: InForce,
        /// Origins to register.
        origins: Vec<Origin>,
    },
}

impl Credentials {
    /// Replacements of what is shown: a relay that refused the old certificate may take the new one.
    pub(super) fn replacements(&self) -> Replacements {
        match self {
            Self::Srp { .. } => Replacements::default(),
            Self::Certificate { own, .. } => own.replacements(),
        }
    }

    fn claim(&self) -> Claim {
        match self {
            Self::Srp { tenant, .. } => Claim { role: Role::Core, tenant: tenant.clone() },
            Self::Certificate { role, tenant, .. } => Claim { role: *role, tenant: tenant.clone() },
        }
    }
}

/// Who dials, and how long it may take: what every attempt of one process shares.
#[derive(Debug, Clone)]
pub(super) struct Dialling<'a> {
    pub(super) target: &'a RelayTarget,
    pub(super) credentials: &'a Credentials,
    pub(super) instance: InstanceId,
    pub(super) timers: &'a Timers,
    pub(super) scope: &'a Scope,
    /// Where other entries of the list may lead to the same relay.
    pub(super) entry: Option<&'a Entry>,
}

/// Opens one link over TLS, without looking at UDP. Cancel safe: dropping the future closes the connection.
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
    let dialling = Dialling { target, credentials, instance, timers, scope, entry: None };
    let reached = dialling.tls().await?;
    dialling.link_over_tls(reached).await
}

/// Opens one link over QUIC, without falling back. Cancel safe: dropping the future closes the connection.
///
/// # Errors
/// The relay's refusal, or what failed.
pub async fn connect_quic(
    target: &RelayTarget,
    credentials: &Credentials,
    instance: InstanceId,
    timers: &Timers,
    scope: &Scope,
) -> Result<Link, LinkError> {
    let dialling = Dialling { target, credentials, instance, timers, scope, entry: None };
    let connected = timeout(timers.handshake, dialling.quic())
        .await
        .map_err(|_| Fault::new(Code::TimedOut, "the relay does not answer over UDP"))??;
    dialling.link_over_quic(connected).await
}

/// The dialler's end of the hand-shake alone, on a connection that somebody else looks after: for fuzzing.
///
/// # Errors
/// As `connect`.
pub async fn connect_on<IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    io: IO,
    credentials: &Credentials,
    instance: InstanceId,
    exporter: &[u8; 32],
) -> Result<(Hello, Accept), LinkError> {
    let met = |_: &Hello| Ok(None);
    let shaken = shake(&mut Shaking::new(io), credentials, instance, Limits::default(), exporter, met).await;
    shaken.map(|(hello, accept, _)| (hello, accept))
}

impl Dialling<'_> {
    /// TCP and TLS, until the link's own hand-shake.
    pub(super) async fn tls(&self) -> Result<Reached, LinkError> {
        let reached = dial::relay(self.target, &[ALPN_LINK], self.timers).await?;
        if reached.stream.get_ref().1.alpn_protocol() != Some(ALPN_LINK) {
            return Err(no_link_protocol().into());
        }
        Ok(reached)
    }

    pub(super) async fn link_over_tls(&self, Reached { stream, at }: Reached) -> Result<Link, LinkError> {
        let (_, connection) = stream.get_ref();
        let address = at.addresses.first().cloned().unwrap_or_default();
        let exporter = tls::exporter(connection)?;
        let leaf = connection.peer_certificates().and_then(<[_]>::first).cloned();
        let limits = Limits::default();
        let mut shaking = Shaking::new(Box::new(stream));
        let shaken = self.shake(&mut shaking, limits, &exporter, leaf.as_ref()).await;
        let (peer, accept, hold) = shaken.inspect_err(|error| {
            if error.fault().code == Code::Unauthenticated {
                at.suspect_inspection();
            }
        })?;
        let config = MuxConfig::link(limits, peer.limits, *self.timers);
        let (io, leftover) = shaking.end();
        let mux = Channel::Framed(Mux::start(Plain::new(io), Side::Dialler, config, leftover, self.scope));
        self.keep(&mux, hold);
        Ok(Link {
            mux,
            peer,
            accept,
            transport: Transport::Tls,
            reason: Reason::Asked,
            address,
            at: Some(Arc::new(at)),
        })
    }

    /// QUIC's own hand-shake with the first of the relay's addresses that answers; each begins a moment after the one
    /// before. Bounded by the caller.
    pub(super) async fn quic(&self) -> Result<(Connection, Endpoint), LinkError> {
        let (tls, _) = self.target.sessions.link(Below::Quic, &self.target.roots)?;
        let config = quic::client_config(tls, self.timers)?;
        let mut last = Fault::new(Code::Unreachable, "no relay address is configured");
        let mut waiting = VecDeque::new();
        for address in &self.target.addresses {
            match dial::resolve(address).await {
                Ok(found) => waiting.extend(found.into_iter().take(ADDRESSES)),
                Err(error) => last = Fault::new(Code::NameNotFound, format!("{address}: {error}")),
            }
        }
        waiting.truncate(ADDRESSES);
        let mut running = FuturesUnordered::new();
        loop {
            match waiting.pop_front() {
                Some(address) => running.push(self.quic_to(address, config.clone())),
                None if running.is_empty() => return Err(last.into()),
                None => {}
            }
            tokio::select! {
                Some(done) = running.next() => match done {
                    Ok(connected) => return Ok(connected),
                    Err(fault) => last = fault,
                },
                () = tokio::time::sleep(ATTEMPT_DELAY), if !waiting.is_empty() => {}
            }
        }
    }

    async fn quic_to(&self, address: SocketAddr, config: quinn::ClientConfig) -> Result<(Connection, Endpoint), Fault> {
        let endpoint = quic::client_endpoint(address, &self.target.network, self.scope)?;
        let refused = |e: quinn::ConnectError| Fault::new(Code::Unreachable, format!("udp {address}: {e}"));
        let connection = endpoint.connect_with(config, address, &self.target.name).map_err(refused)?;
        let connection = connection.await.map_err(|e| quic::connection_fault(&e))?;
        let data = connection.handshake_data().and_then(|d| d.downcast::<HandshakeData>().ok());
        if data.and_then(|d| d.protocol).as_deref() != Some(ALPN_LINK) {
            return Err(no_link_protocol());
        }
        Ok((connection, endpoint))
    }

    pub(super) async fn link_over_quic(
        &self,
        (connection, endpoint): (Connection, Endpoint),
    ) -> Result<Link, LinkError> {
        let exporter = quic::exporter(&connection)?;
        let address = connection.remote_address().to_string();
        let limits = Limits::default();
        let (send, receive) = connection.open_bi().await.map_err(|e| quic::connection_fault(&e))?;
        let mut shaking = Shaking::new(tokio::io::join(receive, send));
        let chain = connection.peer_identity().and_then(|i| i.downcast::<Vec<CertificateDer<'static>>>().ok());
        let leaf = chain.as_ref().and_then(|chain| chain.first());
        let (peer, accept, hold) = self.shake(&mut shaking, limits, &exporter, leaf).await?;
        let (io, leftover) = shaking.end();
        let (receive, send) = io.into_inner();
        let opened = quic::Opened {
            send,
            receive,
            leftover,
            ours: limits,
            theirs: peer.limits,
            handshake: self.timers.handshake,
            endpoint: Some(endpoint),
        };
        let mux = Channel::Quic(quic::Mux::start(connection, opened, self.scope));
        self.keep(&mux, hold);
        let at = Some(Arc::new(self.target.directly_at(address.clone())));
        Ok(Link { mux, peer, accept, transport: Transport::Quic, reason: Reason::Asked, address, at })
    }

    async fn shake<IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
        &self,
        shaking: &mut Shaking<IO>,
        limits: Limits,
        exporter: &[u8; 32],
        leaf: Option<&CertificateDer<'_>>,
    ) -> Result<(Hello, Accept, Option<Hold>), LinkError> {
        let met = |peer: &Hello| match self.entry.zip(leaf) {
            Some((entry, leaf)) => entry.hold(peer.instance, leaf).map(Some).map_err(LinkError::Twin),
            None => Ok(None),
        };
        timeout(self.timers.handshake, shake(shaking, self.credentials, self.instance, limits, exporter, met))
            .await
            .map_err(|_| Fault::new(Code::TimedOut, "the relay did not finish the link's hand-shake in time"))?
    }

    /// The relay is held for as long as the link lives.
    fn keep(&self, mux: &Channel, hold: Option<Hold>) {
        if let Some(hold) = hold {
            let mux = mux.clone();
            self.scope.spawn(async move {
                let _hold = hold;
                mux.closed().await;
            });
        }
    }
}

fn no_link_protocol() -> Fault {
    Fault::new(Code::Protocol, "the server does not speak the link protocol: is it the relay?")
}

/// `met` looks at the relay's HELLO before anything is proved to it.
async fn shake<IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    io: &mut Shaking<IO>,
    credentials: &Credentials,
    instance: InstanceId,
    limits: Limits,
    exporter: &[u8; 32],
    met: impl Fn(&Hello) -> Result<Option<Hold>, LinkError>,
) -> Result<(Hello, Accept, Option<Hold>), LinkError> {
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
    let hold = met(&peer)?;
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
        Credentials::Certificate { role, own, origins, .. } => {
            let own = own.get();
            Proof::Certificate {
                challenge: peer.nonce,
                leaf: own.leaf()?.to_vec(),
                signature: own.key.sign(&proof_text(Prover::Dialler(*role))),
                origins: origins.clone(),
            }
        }
    };
    io.send(frame::cbor(kind::PROOF, 0, &proof)).await?;
    match io.next().await? {
        Frame::Accept(body) => Ok((peer, read("ACCEPT", &body)?, hold)),
        Frame::Refuse(body) => Err(refused(read("REFUSE", &body)?)),
        other => Err(unexpected("ACCEPT", &other).into()),
    }
}

fn refused(refuse: Refuse) -> LinkError {
    LinkError::Refused { fault: refuse.fault, retry_after_ms: refuse.retry_after_ms }
}
