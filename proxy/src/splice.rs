//! Moving bytes between a TCP connection and a stream of an end-to-end session or a link: the bulk path.
//!
//! ```text
//!   TCP readable → read what fits (16 to 256 KiB) → chunk ──────► stream   waits for the peer's credit
//!   TCP ◄── one vectored write of all chunks that are ready ◄──── stream   a slow reader holds credit back
//! ```
//! What costs is system calls and wake-ups, so a read takes as much as there is and a write everything that is ready;
//! chunks are moved, not copied. A buffer exists only between "readable" and "handed over": an idle connection holds
//! none. Half-close passes as FIN ↔ FINISH, a reset as RST ↔ RESET, in both directions.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use hedgerow_runtime::fair::Share;
use hedgerow_runtime::link::{ReadHalf, Stream, WriteHalf};
use hedgerow_shared::fault::{Code, Fault};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// The first read of a burst.
const MIN_READ: usize = 16 * 1024;
/// Chunks written to TCP in one call.
const MAX_WRITE_CHUNKS: usize = 64;

/// How a connection ended, and what it carried.
#[derive(Debug)]
pub struct Outcome {
    /// Bytes from the TCP connection into the stream.
    pub up: u64,
    /// Bytes from the stream into the TCP connection.
    pub down: u64,
    /// None when both directions ended orderly.
    pub fault: Option<Fault>,
}

/// The far side of a connection that a client made to us.
#[derive(Debug)]
pub enum Outbound {
    /// A stream through the tunnel.
    Tunnel(Stream),
    /// A connection from here.
    Direct(TcpStream),
}

/// Bytes that were read ahead on either side before splicing began.
#[derive(Debug, Default)]
pub struct ReadAhead {
    /// From the TCP connection, to be sent first.
    pub up: Bytes,
    /// From the far side, to be sent first.
    pub down: Bytes,
}

/// Moves bytes both ways until both directions have ended or one is reset. Dropping the future resets both sides.
pub async fn splice(tcp: TcpStream, far: Outbound, ahead: ReadAhead) -> Outcome {
    let outcome = match far {
        Outbound::Tunnel(stream) => splice_stream(tcp, stream, ahead).await,
        Outbound::Direct(far) => splice_tcp(tcp, far, ahead).await,
    };
    metrics::counter!("hedgerow_proxy_spliced_bytes_total", "direction" => "up").increment(outcome.up);
    metrics::counter!("hedgerow_proxy_spliced_bytes_total", "direction" => "down").increment(outcome.down);
    if let Some(fault) = &outcome.fault {
        metrics::counter!("hedgerow_proxy_connections_broken_total", "reason" => fault.code.label()).increment(1);
    }
    outcome
}

/// Which side broke, and how.
enum Broken {
    Tcp(io::Error),
    Stream(Fault),
}

impl From<io::Error> for Broken {
    fn from(e: io::Error) -> Self {
        Self::Tcp(e)
    }
}

impl Broken {
    fn fault(&self) -> Fault {
        match self {
            Self::Tcp(e) if e.kind() == io::ErrorKind::TimedOut => {
                Fault::new(Code::TimedOut, format!("the connection died: {e}"))
            }
            Self::Tcp(e) => Fault::new(Code::ConnectionReset, format!("the connection was reset: {e}")),
            Self::Stream(fault) => fault.clone(),
        }
    }
}

async fn splice_stream(tcp: TcpStream, stream: Stream, ahead: ReadAhead) -> Outcome {
    let on_drop = ResetOnDrop(&tcp);
    let (mut from_stream, mut to_stream) = stream.into_split();
    let (mut up, mut down) = (0, 0);
    let down_ended = AtomicBool::new(false);
    let ended = {
        let mut upward = pin!(tcp_to_stream(&tcp, &mut to_stream, ahead.up, &mut up, &down_ended));
        let mut downward = pin!(stream_to_tcp(&mut from_stream, &tcp, ahead.down, &mut down, &down_ended));
        let mut watch = pin!(wait_for_error(&tcp));
        both_or_broken(&mut upward, &mut downward, &mut watch).await
    };
    let fault = ended.err().map(|broken| {
        let fault = broken.fault();
        if let Broken::Tcp(_) = broken {
            to_stream.reset(fault.clone());
        }
        fault
    });
    if fault.is_none() {
        on_drop.disarm();
    }
    Outcome { up, down, fault }
}

/// Drives both directions. A direction that has ended orderly leaves the other running; the first break ends both.
async fn both_or_broken<E>(
    mut up: impl Future<Output = Result<(), E>> + Unpin,
    mut down: impl Future<Output = Result<(), E>> + Unpin,
    mut broken: impl Future<Output = E> + Unpin,
) -> Result<(), E> {
    let (mut up_ended, mut down_ended) = (false, false);
    while !(up_ended && down_ended) {
        tokio::select! {
            biased;
            ended = &mut down, if !down_ended => { ended?; down_ended = true; }
            ended = &mut up, if !up_ended => { ended?; up_ended = true; }
            error = &mut broken => return Err(error),
        }
    }
    Ok(())
}

/// Ends when both directions have: after its own end it goes on watching for a reset, because the other direction
/// cannot while it waits for a slow reader.
async fn tcp_to_stream(
    tcp: &TcpStream,
    stream: &mut WriteHalf,
    ahead: Bytes,
    count: &mut u64,
    down_ended: &AtomicBool,
) -> Result<(), Broken> {
    if !ahead.is_empty() {
        *count += ahead.len() as u64;
        stream.write_chunk(ahead).await.map_err(Broken::Stream)?;
    }
    let mut reader = Reader::new(tcp);
    loop {
        let chunk = tokio::select! {
            biased;
            read = reader.next() => read.map_err(Broken::Tcp)?,
            fault = stream.ended() => return Err(Broken::Stream(fault)),
        };
        let Some(chunk) = chunk else { break };
        let length = chunk.len() as u64;
        stream.write_chunk(chunk).await.map_err(Broken::Stream)?;
        *count += length;
    }
    drop(reader);
    stream.finish();
    let mut reset = pin!(stream.ended());
    poll_fn(|cx| match down_ended.load(Ordering::Relaxed) {
        true => Poll::Ready(Ok(())),
        false => reset.as_mut().poll(cx).map(|fault| Err(Broken::Stream(fault))),
    })
    .await
}

async fn stream_to_tcp(
    stream: &mut ReadHalf,
    tcp: &TcpStream,
    ahead: Bytes,
    count: &mut u64,
    down_ended: &AtomicBool,
) -> Result<(), Broken> {
    let mut ready = VecDeque::new();
    ready.extend((!ahead.is_empty()).then_some(ahead));
    let mut share = Share::default();
    loop {
        let bytes: usize = ready.iter().map(Bytes::len).sum();
        write_all(tcp, &mut ready).await.map_err(Broken::Tcp)?;
        *count += bytes as u64;
        share.moved(bytes).await;
        ready = VecDeque::new();
        if !stream.read_chunks(&mut ready).await.map_err(Broken::Stream)? {
            break;
        }
    }
    shut_down(tcp).map_err(Broken::Tcp)?;
    down_ended.store(true, Ordering::Relaxed);
    Ok(())
}

/// Reads as much as there is at a time. Holds a buffer only while data keeps coming.
struct Reader<'a> {
    tcp: &'a TcpStream,
    buffer: BytesMut,
    size: usize,
    /// What the last read gave.
    last: usize,
    share: Share,
}

impl<'a> Reader<'a> {
    fn new(tcp: &'a TcpStream) -> Self {
        Self { tcp, buffer: BytesMut::new(), size: MIN_READ, last: 0, share: Share::default() }
    }

    /// The next bytes; `None` at the end of the stream. Cancel safe.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        // A fast sender must not keep the other direction, or other connections of this worker, waiting.
        self.share.moved(std::mem::take(&mut self.last)).await;
        loop {
            // Asking first costs nothing when readiness is known, and while waiting there is no buffer.
            match self.tcp.readable().now_or_never() {
                Some(known) => known?,
                None => {
                    self.buffer = BytesMut::new();
                    self.tcp.readable().await?;
                }
            }
            if self.buffer.capacity() < MIN_READ {
                self.buffer = BytesMut::with_capacity(self.size);
            }
            let room = self.buffer.capacity();
            match self.tcp.try_read_buf(&mut self.buffer) {
                Ok(0) => return Ok(None),
                Ok(n) => {
                    self.last = n;
                    if n == room && room >= self.size {
                        self.size *= 2;
                    } else if n < self.size / 4 {
                        self.size /= 2;
                    }
                    self.size = self.size.clamp(MIN_READ, self.share.size());
                    return Ok(Some(self.buffer.split().freeze()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

async fn write_all(tcp: &TcpStream, chunks: &mut VecDeque<Bytes>) -> io::Result<()> {
    while !chunks.is_empty() {
        let result = match chunks.as_slices() {
            ([one], []) => tcp.try_write(one),
            _ => {
                let mut slices = [IoSlice::new(&[]); MAX_WRITE_CHUNKS];
                let mut used = 0;
                for (slot, chunk) in slices.iter_mut().zip(chunks.iter()) {
                    *slot = IoSlice::new(chunk);
                    used += 1;
                }
                tcp.try_write_vectored(&slices[..used])
            }
        };
        match result {
            Ok(mut written) => {
                while let Some(front) = chunks.front_mut() {
                    if written < front.len() {
                        front.advance(written);
                        break;
                    }
                    written -= front.len();
                    chunks.pop_front();
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => tcp.writable().await?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Completes when the connection is reset, also while nobody reads or writes it.
async fn wait_for_error<E: From<io::Error>>(tcp: &TcpStream) -> E {
    loop {
        if let Err(e) = tcp.ready(Interest::ERROR).await {
            return e.into();
        }
        match tcp.take_error() {
            Ok(Some(e)) => return e.into(),
            Ok(None) => {}
            Err(e) => return e.into(),
        }
        // Nothing is wrong (yet): forget this readiness, so that the next wait is for a new event.
        let _ = tcp.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
}

/// FIN: no more from this side. A peer that is gone already has nothing to be told.
fn shut_down(tcp: &TcpStream) -> io::Result<()> {
    match SockRef::from(tcp).shutdown(std::net::Shutdown::Write) {
        Err(e) if e.kind() != io::ErrorKind::NotConnected => Err(e),
        _ => Ok(()),
    }
}

/// Makes the close of a connection a RST unless both directions ended orderly: the client must not take a cut
/// transfer for a complete one.
struct ResetOnDrop<'a>(&'a TcpStream);

impl ResetOnDrop<'_> {
    fn disarm(self) {
        std::mem::forget(self);
    }
}

impl Drop for ResetOnDrop<'_> {
    fn drop(&mut self) {
        reset_on_close(self.0);
    }
}

fn reset_on_close(tcp: &TcpStream) {
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

async fn splice_tcp(near: TcpStream, far: TcpStream, ahead: ReadAhead) -> Outcome {
    let (reset_near, reset_far) = (ResetOnDrop(&near), ResetOnDrop(&far));
    let (mut up, mut down) = (0, 0);
    let ended = {
        let mut upward = pin!(tcp_to_tcp(&near, &far, ahead.up, &mut up));
        let mut downward = pin!(tcp_to_tcp(&far, &near, ahead.down, &mut down));
        let mut watch = pin!(async {
            tokio::select! { e = wait_for_error::<io::Error>(&near) => e, e = wait_for_error::<io::Error>(&far) => e }
        });
        both_or_broken(&mut upward, &mut downward, &mut watch).await
    };
    let fault = ended.err().map(|e| Broken::Tcp(e).fault());
    if fault.is_none() {
        reset_near.disarm();
        reset_far.disarm();
    }
    Outcome { up, down, fault }
}

async fn tcp_to_tcp(from: &TcpStream, to: &TcpStream, ahead: Bytes, count: &mut u64) -> io::Result<()> {
    let mut chunks = VecDeque::new();
    chunks.extend((!ahead.is_empty()).then_some(ahead));
    let mut reader = Reader::new(from);
    loop {
        let length: usize = chunks.iter().map(Bytes::len).sum();
        write_all(to, &mut chunks).await?;
        *count += length as u64;
        match reader.next().await? {
            Some(chunk) => chunks.push_back(chunk),
            None => return shut_down(to),
        }
    }
}

impl AsyncRead for Outbound {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Direct(tcp) => Pin::new(tcp).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Outbound {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Direct(tcp) => Pin::new(tcp).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_flush(cx),
            Self::Direct(tcp) => Pin::new(tcp).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Direct(tcp) => Pin::new(tcp).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests;
