//! What the two ends of a session say first, inside the TLS of its lane.
//!
//! ```text
//!   device                                          node
//!   a new session
//!   HELLO {session, half of a secret}         --->
//!                                             <---  HELLO {session, the other half}
//!   one that goes on, or gets another lane
//!   HELLO {session, resumes}                  --->
//!                                             <---  HELLO {session, MAC as node} | REFUSE
//!   RESUME {MAC as device, streams ...}       --->
//!                                             <---  RESUME {streams ...} | REFUSE
//! ```
//! The MACs are by the secret of the session's first hand-shake over both fresh nonces: whoever does not know it
//! neither learns where the streams stand nor disturbs the lanes that carry it.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits;
use hedgerow_shared::session::{MuxConfig, Side};
use hedgerow_shared::verify::VerifiedCertificate;
use hedgerow_shared::wire::frame::{self, Frame, kind};
use hedgerow_shared::wire::message::{Hello, Limits, Refuse, Resume, Resumption, resumption_mac, resumption_secret};
use hedgerow_shared::{Role, SessionId};
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Endpoint, Records, Secret, Served, Session};
use crate::clock::random;
use crate::mux::{Carrier, Mux};

/// Why a session did not go on over a connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// The node does not go on with it.
    #[error("the node does not go on with the session: {0}")]
    Refused(Fault),
    /// This connection did not work; another may.
    #[error("{0}")]
    Failed(Fault),
}

impl From<Fault> for ResumeError {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault)
    }
}

/// The frames of the greeting, one at a time.
struct Greeting<IO> {
    records: Records<IO>,
    input: BytesMut,
}

impl<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static> Greeting<IO> {
    fn new(records: Records<IO>) -> Self {
        Self { records, input: BytesMut::new() }
    }

    async fn say(&mut self, frames: &[Bytes]) -> Result<(), Fault> {
        for frame in frames {
            self.records.stage(&[frame]);
        }
        poll_fn(|cx| self.records.poll_flush(cx)).await.map_err(cut)
    }

    async fn next(&mut self) -> Result<Frame, Fault> {
        let mut pieces: Vec<Bytes> = Vec::new();
        loop {
            let first = frame::take_first(&mut self.input).map_err(|e| Fault::new(Code::Protocol, e.to_string()))?;
            if let Some(frame) = first {
                return Ok(frame);
            }
            if poll_fn(|cx| self.records.poll_read(cx, &mut pieces)).await.map_err(cut)? == 0 {
                return Err(Fault::new(Code::Lost, "the peer closed during the session's greeting"));
            }
            pieces.drain(..).for_each(|p| self.input.extend_from_slice(&p));
        }
    }

    async fn hello(&mut self, ours: &Hello) -> Result<Hello, ResumeError> {
        let theirs: Hello = match self.next().await? {
            Frame::Hello(body) => read("HELLO", &body)?,
            Frame::Refuse(body) => return Err(ResumeError::Refused(read::<Refuse>("REFUSE", &body)?.fault)),
            _ => return Err(Fault::new(Code::Protocol, "the session does not begin with HELLO").into()),
        };
        ours.agree(&theirs)?;
        Ok(theirs)
    }

    /// Where the peer stands: all its RESUME frames as one.
    async fn resume(&mut self) -> Result<Resume, ResumeError> {
        let mut whole: Option<Resume> = None;
        loop {
            let part: Resume = match self.next().await? {
                Frame::Resume(body) => read("RESUME", &body)?,
                Frame::Refuse(body) => return Err(ResumeError::Refused(read::<Refuse>("REFUSE", &body)?.fault)),
                _ => return Err(Fault::new(Code::Protocol, "expected RESUME").into()),
            };
            let more = part.more;
            let whole = match &mut whole {
                Some(whole) => {
                    whole.streams.extend(part.streams);
                    whole
                }
                None => whole.insert(Resume { more: false, ..part }),
            };
            // Both ends may have opened as many as they may.
            if whole.streams.len() > 2 * limits::MAX_STREAMS as usize {
                return Err(Fault::new(Code::Protocol, "RESUME names more streams than there can be").into());
            }
            if !more {
                return Ok(whole.clone());
            }
        }
    }

    async fn refuse(mut self, fault: Fault) -> Fault {
        let refuse = Refuse { fault: fault.clone(), retry_after_ms: 0 };
        // The peer may be gone; our own answer stands either way.
        if self.say(&[frame::cbor(kind::REFUSE, 0, &refuse)]).await.is_ok() {
            let _ = poll_fn(|cx| self.records.poll_close(cx)).await;
        }
        fault
    }
}

/// The device's end of a new session.
pub(super) async fn open<IO>(
    endpoint: &Endpoint,
    records: Records<IO>,
    peer: VerifiedCertificate,
) -> Result<Session, Fault>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut greeting = Greeting::new(records);
    let (id, half) = (SessionId::from_random(random()), random());
    let hello = hello(endpoint, Resumption { session: id, secret: half, resumes: false, adds: false });
    greeting.say(&[frame::cbor(kind::HELLO, 0, &hello)]).await?;
    let theirs = match greeting.hello(&hello).await {
        Ok(theirs) => theirs,
        Err(ResumeError::Refused(fault) | ResumeError::Failed(fault)) => return Err(fault),
    };
    let other = theirs.resumption.as_ref().filter(|r| r.session == id && !r.resumes);
    let other = other.ok_or_else(|| Fault::new(Code::Protocol, "the node's HELLO answers another session"))?.secret;
    Ok(start(endpoint, greeting, Side::Dialler, peer, id, theirs, resumption_secret(id, &half, &other)))
}

/// The device's end of a session that goes on.
pub(super) async fn resume<IO>(
    endpoint: &Endpoint,
    records: Records<IO>,
    session: &Session,
    adds: bool,
) -> Result<(), ResumeError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut greeting = Greeting::new(records);
    let hello = hello(endpoint, Resumption { session: session.id, secret: [0; 32], resumes: true, adds });
    greeting.say(&[frame::cbor(kind::HELLO, 0, &hello)]).await?;
    let theirs = greeting.hello(&hello).await?;
    if theirs.instance != session.hello.instance {
        return Err(Fault::new(Code::Unauthenticated, "the lane leads to another process than the session's").into());
    }
    let mac = |prover| resumption_mac(&session.secret.0, prover, session.id, &hello.nonce, &theirs.nonce);
    let shown = theirs.resumption.as_ref().filter(|r| r.session == session.id && r.resumes);
    if !shown.is_some_and(|r| bool::from(r.secret.ct_eq(&mac(Role::Node)))) {
        return Err(Fault::new(Code::Unauthenticated, "the node does not know the session's secret").into());
    }
    let proof = Some(mac(Role::Device));
    if adds {
        let nothing = Resume { streams: vec![], highest_opened: 0, highest_accepted: 0, more: false, mac: proof };
        greeting.say(&nothing.into_frames()).await?;
        greeting.resume().await?;
        return Ok(session.mux.attach(greeting.records, greeting.input.freeze(), &endpoint.scope)?);
    }
    let turn = session.mux.begin_resume().map_err(ResumeError::Refused)?;
    let ours = Resume { mac: proof, ..turn.resume.clone() };
    greeting.say(&ours.into_frames()).await?;
    let stands = greeting.resume().await?;
    Ok(session.mux.resume(&turn, greeting.records, &stands, greeting.input.freeze(), &endpoint.scope)?)
}

/// The node's end.
pub(super) async fn answer<IO>(
    endpoint: &Endpoint,
    records: Records<IO>,
    peer: VerifiedCertificate,
    find: impl FnOnce(SessionId) -> Option<Session>,
) -> Result<Served, Fault>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut greeting = Greeting::new(records);
    let theirs: Hello = match greeting.next().await? {
        Frame::Hello(body) => read("HELLO", &body)?,
        _ => return Err(Fault::new(Code::Protocol, "the session does not begin with HELLO")),
    };
    let wants = theirs.resumption.clone();
    let wants = wants.ok_or_else(|| Fault::new(Code::Protocol, "a session's HELLO without a session id"))?;
    if wants.resumes {
        return go_on(endpoint, greeting, peer, &theirs, &wants, find).await;
    }
    let half = random();
    let ours = hello(endpoint, Resumption { session: wants.session, secret: half, resumes: false, adds: false });
    ours.agree(&theirs)?;
    greeting.say(&[frame::cbor(kind::HELLO, 0, &ours)]).await?;
    let secret = resumption_secret(wants.session, &wants.secret, &half);
    Ok(Served::New(start(endpoint, greeting, Side::Acceptor, peer, wants.session, theirs, secret)))
}

async fn go_on<IO>(
    endpoint: &Endpoint,
    mut greeting: Greeting<IO>,
    peer: VerifiedCertificate,
    theirs: &Hello,
    wants: &Resumption,
    find: impl FnOnce(SessionId) -> Option<Session>,
) -> Result<Served, Fault>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // A stranger's session is answered like one that never was.
    let session = find(wants.session).filter(|s| s.peer.identity.id == peer.identity.id && !s.mux.is_closed());
    let Some(session) = session else {
        return Err(greeting.refuse(Fault::new(Code::Gone, "this node has no such session of the device")).await);
    };
    let mut ours = hello(endpoint, Resumption { secret: [0; 32], ..wants.clone() });
    ours.agree(theirs)?;
    let mac = |prover| resumption_mac(&session.secret.0, prover, session.id, &theirs.nonce, &ours.nonce);
    let (shown, expected) = (mac(Role::Node), mac(Role::Device));
    if let Some(resumption) = &mut ours.resumption {
        resumption.secret = shown;
    }
    greeting.say(&[frame::cbor(kind::HELLO, 0, &ours)]).await?;
    let stands = match greeting.resume().await {
        Ok(stands) => stands,
        Err(ResumeError::Refused(fault) | ResumeError::Failed(fault)) => return Err(fault),
    };
    if !stands.mac.is_some_and(|m| bool::from(m.ct_eq(&expected))) {
        let fault = Fault::new(Code::Unauthenticated, "the proof does not fit the session's secret");
        return Err(greeting.refuse(fault).await);
    }
    if wants.adds {
        let nothing = Resume { streams: vec![], highest_opened: 0, highest_accepted: 0, more: false, mac: None };
        greeting.say(&nothing.into_frames()).await?;
        session.mux.attach(greeting.records, greeting.input.freeze(), &endpoint.scope)?;
        return Ok(Served::Lane(session.id));
    }
    let turn = match session.mux.begin_resume() {
        Ok(turn) => turn,
        Err(fault) => return Err(greeting.refuse(fault).await),
    };
    greeting.say(&turn.resume.clone().into_frames()).await?;
    session.mux.resume(&turn, greeting.records, &stands, greeting.input.freeze(), &endpoint.scope)?;
    Ok(Served::Lane(session.id))
}

fn hello(endpoint: &Endpoint, resumption: Resumption) -> Hello {
    Hello { resumption: Some(resumption), ..Hello::new(endpoint.instance, random(), Limits::default()) }
}

fn start<IO>(
    endpoint: &Endpoint,
    greeting: Greeting<IO>,
    side: Side,
    peer: VerifiedCertificate,
    id: SessionId,
    hello: Hello,
    secret: [u8; 32],
) -> Session
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let config = MuxConfig {
        budget: Some(endpoint.budget.clone()),
        ..MuxConfig::session(Limits::default(), hello.limits, endpoint.timers)
    };
    let mux = Mux::start_resumable(
        greeting.records,
        side,
        config,
        greeting.input.freeze(),
        endpoint.timers.resume,
        &endpoint.scope,
    );
    Session { id, mux, peer, hello, secret: Secret(Arc::new(secret)) }
}

fn read<T: for<'b> minicbor::Decode<'b, ()>>(what: &str, body: &Bytes) -> Result<T, Fault> {
    minicbor::decode(body).map_err(|_| Fault::new(Code::Protocol, format!("{what} is malformed")))
}

fn cut(error: std::io::Error) -> Fault {
    if error.kind() == std::io::ErrorKind::InvalidData {
        let text = format!("the end-to-end hand-shake carried bytes that do not authenticate: {error}");
        return Fault::new(Code::Protocol, text);
    }
    Fault::new(Code::Lost, format!("the connection ended during the end-to-end hand-shake: {error}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Plays a device that knows a session's id but not its secret; returns what the node answers.
    pub(in super::super) async fn prove_wrongly<IO>(
        records: Records<IO>,
        id: SessionId,
        instance: hedgerow_shared::InstanceId,
    ) -> Fault
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut greeting = Greeting::new(records);
        let resumption = Resumption { session: id, secret: [0; 32], resumes: true, adds: false };
        let hello = Hello { resumption: Some(resumption), ..Hello::new(instance, random(), Limits::default()) };
        greeting.say(&[frame::cbor(kind::HELLO, 0, &hello)]).await.unwrap();
        greeting.hello(&hello).await.unwrap();
        let forged =
            Resume { streams: vec![], highest_opened: 0, highest_accepted: 0, more: false, mac: Some([9; 32]) };
        greeting.say(&forged.into_frames()).await.unwrap();
        match greeting.resume().await.unwrap_err() {
            ResumeError::Refused(fault) | ResumeError::Failed(fault) => fault,
        }
    }
}
