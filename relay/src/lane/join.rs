//! Moving bytes between the two legs of a lane: by splice(2) where both are plain sockets and the system allows it,
//! else by copies of 256 KiB. Either way an idle lane holds no buffer and no pipe.
//!
//! When a direction ends, by EOF or error of its leg, the other may finish writing what it holds; then both legs are
//! closed. Nothing in between: half-close exists only inside the session.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::{Carrier, Leg};
use crate::fair::{Meter, Way};

/// What is moved at once: 16 KiB cost the relay twice the processor time of 256 KiB (`lanes-spike.md`).
const BUFFER: usize = 256 * 1024;
/// Buffers kept for the next burst.
const SPARE_BUFFERS: usize = 32;
/// How long a direction may go on writing what it holds after the other has ended.
const FLUSH: Duration = Duration::from_secs(2);

/// Why a lane ended. Not an error: lanes end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The device's leg was closed or failed.
    Device,
    /// The node's leg was closed or failed.
    Node,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "by the device's leg",
            Self::Node => "by the node's leg",
        })
    }
}

/// What one direction is counted in and charged to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Toll<'a> {
    pub(super) count: &'a AtomicU64,
    pub(super) meter: &'a Meter,
    pub(super) way: Way,
}

/// The name of the way `run` will take.
#[must_use]
pub fn path(device: &Carrier, node: &Carrier) -> &'static str {
    match (device, node) {
        #[cfg(target_os = "linux")]
        (Carrier::Plain(_), Carrier::Plain(_)) => "splice",
        _ => "copy",
    }
}

/// Moves bytes both ways until a leg ends, counting what was written: `up` towards the node. Each leg is read no faster
/// than the meter allows. Dropping the future closes both legs at once.
pub fn run<'a>(
    device: Leg,
    node: Leg,
    up: &'a AtomicU64,
    down: &'a AtomicU64,
    meter: &'a Meter,
) -> impl Future<Output = End> + Send + 'a {
    // Of the legs only what is still needed: it is kept as long as the lane.
    let permits = (device.permit, node.permit);
    let (device, node) = ((device.carrier, device.first), (node.carrier, node.first));
    async move {
        let _permits = permits;
        let up = Toll { count: up, meter, way: Way::Up };
        let down = Toll { count: down, meter, way: Way::Down };
        match (device.0, node.0) {
            #[cfg(target_os = "linux")]
            (Carrier::Plain(mut d), Carrier::Plain(mut n)) => {
                let (device_first, node_first) = (device.1, node.1);
                let first = async {
                    write_first(&mut n, &device_first, up.count).await?;
                    write_first(&mut d, &node_first, down.count).await
                };
                if first.await.is_err() {
                    return End::Device;
                }
                // An idle lane keeps no buffer: these would be there as long as the lane.
                drop((device_first, node_first));
                let (stop, d, n) = (CancellationToken::new(), &d, &n);
                let upwards = pin!(super::splice::direction(d, n, up, &stop));
                let downwards = pin!(super::splice::direction(n, d, down, &stop));
                let end = both(&stop, upwards, downwards).await;
                super::splice::shut(d);
                super::splice::shut(n);
                end
            }
            // Boxed: it is larger, and most lanes need no room for it.
            (d, n) => Box::pin(copy(boxed(d), device.1, boxed(n), node.1, up, down)).await,
        }
    }
}

fn boxed(carrier: Carrier) -> Box<dyn super::Io> {
    match carrier {
        Carrier::Plain(socket) => Box::new(socket),
        Carrier::Wrapped(io) => io,
    }
}

/// `run` by copies, whatever the legs are.
async fn copy(
    device: impl AsyncRead + AsyncWrite + Send + Unpin,
    device_first: Bytes,
    node: impl AsyncRead + AsyncWrite + Send + Unpin,
    node_first: Bytes,
    up: Toll<'_>,
    down: Toll<'_>,
) -> End {
    let stop = CancellationToken::new();
    let (mut device_read, mut device_write) = tokio::io::split(device);
    let (mut node_read, mut node_write) = tokio::io::split(node);
    let upwards = async {
        write_first(&mut node_write, &device_first, up.count).await?;
        direction(&mut device_read, &mut node_write, up, &stop).await
    };
    let downwards = async {
        write_first(&mut device_write, &node_first, down.count).await?;
        direction(&mut node_read, &mut device_write, down, &stop).await
    };
    both(&stop, pin!(upwards), pin!(downwards)).await
}

/// Runs both directions until one ends, then gives the other the time to write what it holds.
async fn both(
    stop: &CancellationToken,
    mut upwards: Pin<&mut impl Future<Output = io::Result<()>>>,
    mut downwards: Pin<&mut impl Future<Output = io::Result<()>>>,
) -> End {
    let end = tokio::select! {
        _ = &mut upwards => End::Device,
        _ = &mut downwards => End::Node,
    };
    stop.cancel();
    let _ = match end {
        End::Device => tokio::time::timeout(FLUSH, downwards).await,
        End::Node => tokio::time::timeout(FLUSH, upwards).await,
    };
    end
}

async fn write_first(to: &mut (impl AsyncWrite + Unpin), first: &Bytes, count: &AtomicU64) -> io::Result<()> {
    if !first.is_empty() {
        to.write_all(first).await?;
        to.flush().await?;
        count.fetch_add(first.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Copies until EOF, an error, or `stop` while nothing is held.
async fn direction(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    toll: Toll<'_>,
    stop: &CancellationToken,
) -> io::Result<()> {
    loop {
        // Before there is a buffer: one that is paused holds none.
        let reading = async {
            let grant = toll.meter.admit(toll.way).await;
            let most = grant.of(BUFFER);
            (read_some(from, most).await, grant)
        };
        let (read, mut grant) = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            (read, grant) = reading => (read?, grant),
        };
        let Some((buffer, length)) = read else {
            // The other end must see the end of the data, not a reset.
            return to.shutdown().await;
        };
        grant.spend(length as u64);
        drop(grant);
        let written = match to.write_all(&buffer.0[..length]).await {
            Ok(()) => to.flush().await,
            Err(error) => Err(error),
        };
        drop(buffer);
        written?;
        toll.count.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// Waits for bytes, `most` of them; a buffer is taken only for the moment of looking, and kept only when there are some.
async fn read_some(from: &mut (impl AsyncRead + Unpin), most: usize) -> io::Result<Option<(Buffer, usize)>> {
    poll_fn(|cx| {
        let mut buffer = Buffer::take();
        let mut target = ReadBuf::new(&mut buffer.0[..most]);
        match Pin::new(&mut *from).poll_read(cx, &mut target) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {
                let length = target.filled().len();
                Poll::Ready(Ok((length > 0).then_some((buffer, length))))
            }
        }
    })
    .await
}

/// A buffer that goes back to the spare ones.
struct Buffer(Box<[u8]>);

static SPARE: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

impl Buffer {
    fn take() -> Self {
        Self(SPARE.lock().pop().unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice()))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut spare = SPARE.lock();
        if spare.len() < SPARE_BUFFERS {
            spare.push(std::mem::take(&mut self.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    fn free() -> Meter {
        crate::fair::Fairness::default().meter(&"S12345678".parse().unwrap(), &[])
    }

    /// A TCP connection: the far end and the relay's end.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (far, listener.accept().await.unwrap().0)
    }

    fn leg(socket: TcpStream, wrapped: bool) -> Leg {
        let address = socket.peer_addr().unwrap();
        let carrier = if wrapped { Carrier::Wrapped(Box::new(socket)) } else { Carrier::Plain(socket) };
        Leg { carrier, first: Bytes::new(), address, probe: None, permit: Box::new(()) }
    }

    /// Sends pseudo-random bytes while reading as many back; the hashes of both.
    async fn exchange(far: TcpStream, length: usize, seed: u64) -> ([u8; 32], [u8; 32]) {
        let (mut read, mut write) = far.into_split();
        let send = async {
            let (mut hash, mut state, mut left) = (Sha256::new(), seed, length);
            let mut piece = vec![0; 100_003];
            while left > 0 {
                for word in piece.chunks_mut(8) {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let n = word.len();
                    word.copy_from_slice(&state.to_be_bytes()[..n]);
                }
                let n = left.min(piece.len());
                write.write_all(&piece[..n]).await.unwrap();
                hash.update(&piece[..n]);
                left -= n;
            }
            hash.finalize().into()
        };
        let receive = async {
            let (mut hash, mut left, mut piece) = (Sha256::new(), length, vec![0; 65_536]);
            while left > 0 {
                let n = read.read(&mut piece).await.unwrap();
                assert!(n > 0, "{left} bytes missing");
                hash.update(&piece[..n]);
                left -= n;
            }
            hash.finalize().into()
        };
        let (sent, received) = tokio::join!(send, receive);
        drop(write);
        (sent, received)
    }

    async fn both_ways(wrapped: bool) {
        const LENGTH: usize = 64 * 1024 * 1024;
        let ((device, device_inside), (node, node_inside)) = (pair().await, pair().await);
        let (up, down, meter) = (AtomicU64::new(0), AtomicU64::new(0), free());
        let (device_leg, node_leg) = (leg(device_inside, wrapped), leg(node_inside, wrapped));
        assert_eq!(path(&device_leg.carrier, &node_leg.carrier), if wrapped { "copy" } else { "splice" });
        let ends = async { tokio::join!(exchange(device, LENGTH, 1), exchange(node, LENGTH, 2)) };
        let (_, (device, node)) = tokio::join!(run(device_leg, node_leg, &up, &down, &meter), ends);
        assert!(device.0 == node.1 && node.0 == device.1, "the bytes arrived changed");
        assert_ne!(device.0, node.0);
        assert_eq!((up.load(Ordering::Relaxed), down.load(Ordering::Relaxed)), (LENGTH as u64, LENGTH as u64));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sixty_four_mebibytes_both_ways_by_splice() {
        both_ways(false).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sixty_four_mebibytes_both_ways_by_copy() {
        both_ways(true).await;
    }

    async fn what_was_sent_before_the_end_arrives(wrapped: bool) {
        let ((mut device, device_inside), (mut node, node_inside)) = (pair().await, pair().await);
        let (up, down, meter) = (AtomicU64::new(0), AtomicU64::new(0), free());
        let run = run(leg(device_inside, wrapped), leg(node_inside, wrapped), &up, &down, &meter);
        let ends = async {
            device.write_all(b"last words").await.unwrap();
            drop(device);
            let mut got = Vec::new();
            node.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"last words");
        };
        assert_eq!(tokio::join!(run, ends).0, End::Device);
    }

    #[tokio::test]
    async fn what_was_sent_before_the_end_arrives_by_splice() {
        what_was_sent_before_the_end_arrives(false).await;
    }

    #[tokio::test]
    async fn what_was_sent_before_the_end_arrives_by_copy() {
        what_was_sent_before_the_end_arrives(true).await;
    }

    #[tokio::test]
    async fn a_reader_that_stops_holds_back_the_sender() {
        let ((device, device_inside), (_node, node_inside)) = (pair().await, pair().await);
        let (up, down, meter) = (AtomicU64::new(0), AtomicU64::new(0), free());
        let run = run(leg(device_inside, false), leg(node_inside, false), &up, &down, &meter);
        tokio::pin!(run);
        let mut stalled = 0;
        let mut sent = 0u64;
        while stalled < 20 {
            tokio::select! {
                _ = &mut run => panic!("the lane ended"),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
            match device.try_write(&[0; 65_536]) {
                Ok(n) => (sent, stalled) = (sent + n as u64, 0),
                Err(e) => {
                    assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                    stalled += 1;
                }
            }
        }
        assert!(up.load(Ordering::Relaxed) < sent, "some of it still stands in queues");
        assert!(sent < 64 * 1024 * 1024, "{sent}");
    }
}
