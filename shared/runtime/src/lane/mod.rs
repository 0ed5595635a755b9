//! The end-to-end session: mutual TLS 1.3 between device and node with our multiplexer inside, over a lane (a TCP
//! connection that the relay joined) or over a stream of a link. Same code, same bytes.
//!
//! rustls makes the hand-shake (unbuffered interface); then we seal and open records ourselves, because stock streams
//! cost 70 % more on bulk (`docs/decisions/0006`). `records` is the record layer, `shake` the hand-shake.

//!
//! A session outlives its lanes (`mux::resume`): `greet` tells a new one from one that goes on.

mod greet;
mod keys;
mod records;
mod shake;

use std::sync::Arc;

use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::{self, Timers};
use hedgerow_shared::session::RetainBudget;
use hedgerow_shared::verify::{TenantCa, Usage, VerifiedCertificate};
use hedgerow_shared::wire::message::Hello;
use hedgerow_shared::{InstanceId, Role, SessionId};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

pub use greet::ResumeError;
pub use records::Records;

use crate::mux::Mux;
use crate::scope::Scope;
use crate::tls;

/// An end-to-end session that is open.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its id, the same at both ends.
    pub id: SessionId,
    /// Its streams.
    pub mux: Mux,
    /// The verified certificate of the other end: what policy uses.
    pub peer: VerifiedCertificate,
    /// What the other end said of itself.
    pub hello: Hello,
    secret: Secret,
}

/// What a resumption must know. Never shown.
#[derive(Clone)]
struct Secret(Arc<[u8; 32]>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// One end's side of all its sessions.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Whom to trust.
    pub ca: TenantCa,
    /// This process.
    pub instance: InstanceId,
    /// Timers.
    pub timers: Timers,
    /// What all sessions of this process may keep for a replay.
    pub budget: Arc<RetainBudget>,
    /// The sessions' tasks.
    pub scope: Scope,
}

/// What a device brought to a node.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one is made a session, and taken apart at once")]
pub enum Served {
    /// A new session.
    New(Session),
    /// A lane for a session that this node has already; it carries it now.
    Lane(SessionId),
}

impl Endpoint {
    /// An end with the usual budget.
    #[must_use]
    pub fn new(ca: TenantCa, instance: InstanceId, timers: Timers, scope: Scope) -> Self {
        Self { ca, instance, timers, budget: RetainBudget::new(limits::RETAIN_BUDGET), scope }
    }

    /// Opens a session as device: TLS client. `config` comes from `tls::to_tenant` with `ALPN_SESSION`; `name` is
    /// `tls::any_name()`, or the lane's server name. Cancel safe: dropping closes.
    ///
    /// # Errors
    /// `Unauthenticated` when the node's certificate does not hold, otherwise what failed.
    pub async fn open<IO>(&self, io: IO, config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Session, Fault>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let open = async {
            let (records, peer) = self.shake(io, config, name).await?;
            greet::open(self, records, peer).await
        };
        timeout(self.timers.handshake, open).await.map_err(|_| late())?
    }

    /// Goes on with a session over another connection, as device; what carries it now is let go of. Cancel safe: the
    /// session then stays suspended.
    ///
    /// # Errors
    /// `Refused` when the node does not go on with it: the session has ended. `Failed` otherwise.
    pub async fn resume<IO>(
        &self,
        session: &Session,
        io: IO,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<(), ResumeError>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.bring(session, io, config, name, false).await
    }

    /// Adds a connection to a session, as device, for its long streams. Cancel safe.
    ///
    /// # Errors
    /// As `resume`; the session itself goes on.
    pub async fn add<IO>(
        &self,
        session: &Session,
        io: IO,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<(), ResumeError>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.bring(session, io, config, name, true).await
    }

    async fn bring<IO>(
        &self,
        session: &Session,
        io: IO,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        adds: bool,
    ) -> Result<(), ResumeError>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let bring = async {
            let (records, peer) = self.shake(io, config, name).await?;
            if peer.identity.id != session.peer.identity.id {
                return Err(ResumeError::Failed(Fault::new(
                    Code::Unauthenticated,
                    "the lane leads to another node than the session's",
                )));
            }
            greet::resume(self, records, session, adds).await
        };
        timeout(self.timers.handshake, bring).await.map_err(|_| late())?
    }

    async fn shake<IO>(
        &self,
        io: IO,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<(Records<IO>, VerifiedCertificate), Fault>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (records, chain) = shake::client(io, config, name).await?;
        let peer = tls::peer_certificate(Some(&chain), &self.ca, Role::Node, Usage::Server)?;
        Ok((records, peer))
    }

    /// Answers as node: TLS server. `config` comes from `tls::as_tenant` with `ALPN_SESSION`; `check` is asked about
    /// the device's verified certificate (revocation) before anything else happens, `find` for the session that a
    /// device wants to go on with. Cancel safe: dropping closes.
    ///
    /// # Errors
    /// `Unauthenticated` when the device's certificate does not hold, what `check` said, otherwise what failed.
    pub async fn serve<IO>(
        &self,
        io: IO,
        config: Arc<ServerConfig>,
        check: impl FnOnce(&VerifiedCertificate) -> Result<(), Fault>,
        find: impl FnOnce(SessionId) -> Option<Session>,
    ) -> Result<Served, Fault>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let serve = async {
            let (records, chain) = shake::server(io, config).await?;
            let peer = tls::peer_certificate(Some(&chain), &self.ca, Role::Device, Usage::Client)?;
            check(&peer)?;
            greet::answer(self, records, peer, find).await
        };
        timeout(self.timers.handshake, serve).await.map_err(|_| late())?
    }
}

fn late() -> Fault {
    Fault::new(Code::TimedOut, "the end-to-end hand-shake took too long")
}

#[cfg(test)]
mod tests;
