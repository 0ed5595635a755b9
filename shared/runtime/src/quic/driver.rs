//! The task of a QUIC link: its control stream both ways, new streams, datagrams, and the end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use hedgerow_shared::fault::{Code, DropReason, Fault};
use hedgerow_shared::limits;
use hedgerow_shared::wire::frame::{self, Decoder, Frame, FrameError, kind};
use hedgerow_shared::wire::message::{Control, GoAway};
use quinn::{RecvStream, SendStream};
use tokio::time::{Instant, timeout};

use super::datagram::Datagram;
use super::incoming::Incoming;
use super::inner::{INBOX, Inner, Lingering, Place};
use super::{FIRST_STREAMS, allow, allowance, close, connection_fault, stream};
use crate::scope::Scope;
use crate::telemetry::dropped;

/// How long the last words may take to arrive.
const CLOSE: Duration = Duration::from_secs(2);
/// Bytes read from the control stream in one call.
const CHUNK: usize = 16 * 1024;

pub(super) async fn run(inner: Arc<Inner>, mut send: SendStream, receive: RecvStream, leftover: Bytes, scope: Scope) {
    // Control messages overtake data; a stream that has ended already says so by itself.
    let _ = send.set_priority(i32::MAX);
    let mut lingering = FuturesUnordered::new();
    let fault = tokio::select! {
        fault = output(&inner, &mut send, &mut lingering) => fault,
        fault = control(&inner, receive, leftover) => fault,
        fault = streams(&inner) => fault,
        fault = datagrams(&inner) => fault,
        fault = asked(&inner) => fault,
        error = inner.connection.closed() => inner.told().unwrap_or_else(|| connection_fault(&error)),
        () = scope.cancelled() => Fault::new(Code::Draining, "this end is shutting down"),
    };
    if inner.connection.close_reason().is_none() {
        // Nobody is there to hear when the path is dead, and others wait to be told that it is.
        if fault.code != Code::Lost {
            // A peer that takes nothing any more has had its time.
            let _ = timeout(CLOSE, say_goodbye(&inner, send, lingering, &fault)).await;
        }
        close(&inner.connection, &fault);
    }
    let endpoint = inner.endpoint();
    inner.end(&fault);
    if let Some(endpoint) = endpoint {
        let _ = timeout(CLOSE, endpoint.wait_idle()).await;
    }
}

/// Until the application wants the link to close.
async fn asked(inner: &Inner) -> Fault {
    loop {
        let notified = inner.closing.notified();
        if let Some(fault) = inner.state.lock().closing.clone() {
            return fault;
        }
        notified.await;
    }
}

/// Sends control frames and sees finished streams to their end.
async fn output(inner: &Inner, send: &mut SendStream, lingering: &mut FuturesUnordered<Lingering>) -> Fault {
    loop {
        let frame = {
            let mut state = inner.state.lock();
            lingering.extend(state.lingering.drain(..));
            state.out.front().cloned()
        };
        match frame {
            // What was written is taken off at once: the last words may have to go on from there.
            Some(frame) => match send.write(&frame).await {
                Ok(written) => inner.written(written),
                Err(error) => {
                    return told_or(inner, Fault::new(Code::Lost, format!("the control stream ended: {error}")));
                }
            },
            None => tokio::select! {
                () = inner.driver.notified() => {}
                Some(()) = lingering.next() => {}
            },
        }
    }
}

/// Takes the control stream's frames. A peer whose control messages nobody takes is not read from until someone does.
async fn control(inner: &Inner, mut receive: RecvStream, leftover: Bytes) -> Fault {
    let mut decoder = Decoder::default();
    let mut next = Some(leftover);
    loop {
        if let Some(piece) = next.take()
            && let Err(Broken(fault)) = decoder.feed(piece, |frame| take(inner, frame))
        {
            return fault;
        }
        loop {
            let taken = inner.control_taken.notified();
            if inner.state.lock().control.len() < INBOX {
                break;
            }
            taken.await;
        }
        match receive.read_chunk(CHUNK, true).await {
            Ok(Some(chunk)) => next = Some(chunk.bytes),
            Ok(None) => {
                // The peer is about to close, and waits for what it has sent.
                let ended = timeout(2 * CLOSE, inner.connection.closed()).await;
                let said = ended.ok().map(|error| connection_fault(&error));
                return told_or(
                    inner,
                    said.unwrap_or_else(|| Fault::new(Code::Lost, "the peer closed the connection")),
                );
            }
            Err(quinn::ReadError::ConnectionLost(error)) => return told_or(inner, connection_fault(&error)),
            Err(error) => return Fault::new(Code::Protocol, format!("the control stream ended: {error}")),
        }
    }
}

struct Broken(Fault);

impl From<FrameError> for Broken {
    fn from(error: FrameError) -> Self {
        Self(Fault::new(Code::Protocol, error.to_string()))
    }
}

fn take(inner: &Inner, frame: Frame) -> Result<(), Broken> {
    match frame {
        Frame::Control(kind, body) => match Control::read(kind, &body).map_err(Broken)? {
            Some(message) => inner.controlled(message),
            None => dropped(DropReason::UnknownOptionalMessage),
        },
        Frame::GoAway(body) => {
            let message: GoAway = minicbor::decode(&body).map_err(|_| FrameError::Malformed(kind::GOAWAY))?;
            inner.going_away(message);
        }
        Frame::Reset(stream, fault) => inner.explained(stream, fault),
        Frame::Unknown(_) => dropped(DropReason::UnknownOptionalFrame),
        other => {
            let name = format!("{other:?}");
            let name = name.split(['(', ' ']).next().unwrap_or_default().to_owned();
            return Err(Broken(Fault::new(Code::Protocol, format!("{name} does not belong on QUIC's control stream"))));
        }
    }
    Ok(())
}

/// Takes new streams and reads their headers. QUIC bounds how many wait; each has a peer's time to say what it is.
async fn streams(inner: &Arc<Inner>) -> Fault {
    let mut opening = FuturesUnordered::new();
    let (mut allowed, most) = (inner.ours.streams.min(FIRST_STREAMS), inner.ours.streams);
    // QUIC counts a stream until the peer knows of its end: those that came within a round trip may all count still.
    let (mut since, mut lately) = (Instant::now(), 0);
    loop {
        tokio::select! {
            opened = inner.connection.accept_bi() => match opened {
                Ok((send, receive)) => {
                    opening.push(header(Place::new(inner.clone(), false), send, receive));
                    if since.elapsed() > 2 * inner.connection.rtt() {
                        (since, lately) = (Instant::now(), 0);
                    }
                    lately += 1;
                    let more = allowance(inner.open_theirs().max(lately), allowed, most);
                    if more > std::mem::replace(&mut allowed, more) {
                        allow(&inner.connection, more);
                    }
                }
                Err(error) => return told_or(inner, connection_fault(&error)),
            },
            Some(incoming) = opening.next() => {
                if let Some(incoming) = incoming {
                    inner.arrived(incoming);
                }
            }
        }
    }
}

async fn header(place: Place, send: SendStream, receive: RecvStream) -> Option<Incoming> {
    let inner = place.link().clone();
    let (mut read, mut write) = stream::halves(place, send, receive, Bytes::new());
    let fault = match timeout(inner.handshake, read.read_frame()).await {
        Ok(Ok(Frame::Open(_, header))) if header.len() <= limits::MAX_OPEN_HEADER => {
            return Some(Incoming::new(inner, (read, write), header));
        }
        Ok(Ok(Frame::Open(..))) => Fault::new(Code::Protocol, "the stream header is too long"),
        Ok(Ok(_)) => Fault::new(Code::Protocol, "a stream did not begin with OPEN"),
        Ok(Err(fault)) => fault,
        Err(_) => {
            dropped(DropReason::HandshakeTimeout);
            Fault::new(Code::TimedOut, "a stream's header did not come in time")
        }
    };
    write.reset(fault);
    None
}

async fn datagrams(inner: &Inner) -> Fault {
    loop {
        let bytes = match inner.connection.read_datagram().await {
            Ok(bytes) => bytes,
            Err(error) => return told_or(inner, connection_fault(&error)),
        };
        match Datagram::read(&bytes, inner.ours.datagram as usize) {
            Ok(Datagram::Data(payload)) => inner.datagram(payload),
            Ok(Datagram::Ping(echo)) => inner.send_datagram(kind::PONG, &echo, 0),
            Ok(Datagram::Pong(word)) => {
                inner.pong.send_replace(word);
            }
            Err(reason) => dropped(reason),
        }
    }
}

/// What is queued, GOAWAY with the reason, the end of the control stream; then until all of it has arrived.
async fn say_goodbye(inner: &Inner, mut send: SendStream, mut lingering: FuturesUnordered<Lingering>, fault: &Fault) {
    let rest = {
        let mut state = inner.state.lock();
        lingering.extend(state.lingering.drain(..));
        state.out_bytes = 0;
        std::mem::take(&mut state.out)
    };
    let away = GoAway { fault: fault.clone(), return_after_ms: 0, alternatives: Vec::new() };
    for frame in rest.into_iter().chain([frame::cbor(kind::GOAWAY, 0, &away)]) {
        if send.write_all(&frame).await.is_err() {
            return;
        }
    }
    if send.finish().is_ok() {
        let _ = send.stopped().await;
    }
    while lingering.next().await.is_some() {}
}

fn told_or(inner: &Inner, otherwise: Fault) -> Fault {
    inner.told().unwrap_or(otherwise)
}
