//! The load: bounded in count and time, from plain threads, so that the generator costs the same for every subject.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

const BUFFER: usize = 256 * 1024;
const PATIENCE: Duration = Duration::from_secs(10);

/// How the load reaches the target.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    /// A loopback port that leads to the target.
    Port(u16),
    /// The target's port behind a SOCKS5 proxy on a loopback port.
    Socks { proxy: u16, target: u16 },
}

impl Way {
    pub(crate) fn open(self) -> io::Result<TcpStream> {
        let port = match self {
            Self::Port(port) | Self::Socks { proxy: port, .. } => port,
        };
        let mut tcp = TcpStream::connect(("127.0.0.1", port))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        if let Self::Socks { target, .. } = self {
            tcp.write_all(&[5, 1, 0])?;
            let mut reply = [0; 10];
            tcp.read_exact(&mut reply[..2])?;
            let [high, low] = target.to_be_bytes();
            tcp.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low])?;
            tcp.read_exact(&mut reply)?;
            if reply[1] != 0 {
                return Err(io::Error::other(format!("SOCKS reply {}", reply[1])));
            }
        }
        Ok(tcp)
    }
}

/// Which way bulk flows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Direction {
    Down,
    Up,
}

/// What a throughput run gave.
pub(crate) struct Throughput {
    /// Over the measured time.
    pub(crate) megabits_per_second: f64,
    /// Over the whole run, warm-up included: what CPU time is divided by.
    pub(crate) bytes: u64,
}

/// Moves bulk over `streams` connections for `time` after half a second of warm-up.
pub(crate) fn throughput(way: Way, streams: usize, direction: Direction, time: Duration) -> io::Result<Throughput> {
    let (rate, bytes) = while_bulk_moves(way, streams, direction, |bytes| {
        let (before, since) = (bytes.load(Relaxed), Instant::now());
        std::thread::sleep(time);
        (bytes.load(Relaxed) - before) as f64 * 8e-6 / since.elapsed().as_secs_f64()
    })?;
    Ok(Throughput { megabits_per_second: rate, bytes })
}

/// Does `work` while bulk moves, after half a second of warm-up; also returns the bytes that moved in all.
fn while_bulk_moves<T>(
    way: Way,
    streams: usize,
    direction: Direction,
    work: impl FnOnce(&AtomicU64) -> T,
) -> io::Result<(T, u64)> {
    let (bytes, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let failure = std::sync::Mutex::new(None);
    let result = std::thread::scope(|threads| {
        for _ in 0..streams {
            threads.spawn(|| {
                if let Err(error) = bulk(way, direction, &bytes, &stop) {
                    failure.lock().map(|mut f| *f = Some(error)).ok();
                }
            });
        }
        std::thread::sleep(Duration::from_millis(500));
        let result = work(&bytes);
        stop.store(true, Relaxed);
        result
    });
    match failure.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok((result, bytes.load(Relaxed))),
    }
}

/// What small requests took, one after the other on a connection that stays open.
pub(crate) struct Requests {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// Small requests for `time`, one after the other on one connection, beside `bulk` downloads the same way.
pub(crate) fn requests(way: Way, bulk: usize, time: Duration) -> io::Result<Requests> {
    let mut times = match bulk {
        0 => ask(way, time)?,
        _ => while_bulk_moves(way, bulk, Direction::Down, |_| ask(way, time))?.0?,
    };
    times.sort_unstable();
    Ok(Requests { p50: percentile(&times, 0.50), p99: percentile(&times, 0.99) })
}

fn ask(way: Way, time: Duration) -> io::Result<Vec<Duration>> {
    let mut tcp = way.open()?;
    let (mut times, begun) = (Vec::new(), Instant::now());
    let mut reply = [0; 512];
    // The first opens the connection to the target; it is not counted.
    while times.len() < 2 || begun.elapsed() < time {
        let since = Instant::now();
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        let mut have = 0;
        while !is_whole(&reply[..have]) {
            let n = tcp.read(&mut reply[have..])?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            have += n;
        }
        times.push(since.elapsed());
    }
    times.remove(0);
    Ok(times)
}

/// A head and the 128 bytes after it.
fn is_whole(reply: &[u8]) -> bool {
    reply.windows(4).position(|w| w == b"\r\n\r\n").is_some_and(|head| reply.len() >= head + 4 + 128)
}

/// The value that this share of sorted times does not exceed; zero when there are none.
fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

fn bulk(way: Way, direction: Direction, bytes: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    let mut tcp = way.open()?;
    let mut buffer = vec![0x5a; BUFFER];
    tcp.write_all(match direction {
        Direction::Down => b"D",
        Direction::Up => b"U",
    })?;
    while !stop.load(Relaxed) {
        let n = match direction {
            Direction::Down => tcp.read(&mut buffer)?,
            Direction::Up => tcp.write(&buffer)?,
        };
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.fetch_add(n as u64, Relaxed);
    }
    Ok(())
}

/// What a run of short connections gave.
pub(crate) struct Connections {
    pub(crate) per_second: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) done: usize,
}

/// `total` short HTTP requests, each on a new connection, from `clients` threads.
pub(crate) fn connections(way: Way, clients: usize, total: usize) -> io::Result<Connections> {
    let left = AtomicUsize::new(total);
    let started = Instant::now();
    let results: Vec<io::Result<Vec<Duration>>> = std::thread::scope(|threads| {
        let workers: Vec<_> = (0..clients)
            .map(|_| {
                threads.spawn(|| {
                    let mut times = Vec::with_capacity(total / clients + 1);
                    while left.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok() {
                        let since = Instant::now();
                        request(way)?;
                        times.push(since.elapsed());
                    }
                    Ok(times)
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap_or_else(|_| Err(io::Error::other("a worker panicked")))).collect()
    });
    let elapsed = started.elapsed();
    let mut times: Vec<Duration> = results.into_iter().collect::<io::Result<Vec<_>>>()?.concat();
    times.sort_unstable();
    Ok(Connections {
        per_second: times.len() as f64 / elapsed.as_secs_f64(),
        p50: percentile(&times, 0.50),
        p99: percentile(&times, 0.99),
        done: times.len(),
    })
}

fn request(way: Way) -> io::Result<()> {
    let mut tcp = way.open()?;
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut reply = Vec::with_capacity(512);
    tcp.read_to_end(&mut reply)?;
    if reply.starts_with(b"HTTP/1.1 200") && reply.len() > 128 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "not the answer that was asked for"))
}

/// Connections over which one byte went round and that are now idle.
pub(crate) struct Held(Vec<TcpStream>);

impl Held {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Opens `total` connections and sends one byte round each.
pub(crate) fn hold(way: Way, total: usize) -> io::Result<Held> {
    let workers = 16;
    let parts: Vec<io::Result<Vec<TcpStream>>> = std::thread::scope(|threads| {
        let workers: Vec<_> = (0..workers)
            .map(|_| {
                threads.spawn(move || {
                    (0..total / workers)
                        .map(|_| {
                            let mut tcp = way.open()?;
                            tcp.write_all(b"Ex")?;
                            tcp.read_exact(&mut [0])?;
                            Ok(tcp)
                        })
                        .collect()
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap_or_else(|_| Err(io::Error::other("a worker panicked")))).collect()
    });
    Ok(Held(parts.into_iter().collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect()))
}
