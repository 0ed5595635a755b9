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
    fn open(self) -> io::Result<TcpStream> {
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
    let (bytes, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let failure = std::sync::Mutex::new(None);
    let rate = std::thread::scope(|threads| {
        for _ in 0..streams {
            threads.spawn(|| {
                if let Err(error) = bulk(way, direction, &bytes, &stop) {
                    failure.lock().map(|mut f| *f = Some(error)).ok();
                }
            });
        }
        std::thread::sleep(Duration::from_millis(500));
        let (before, since) = (bytes.load(Relaxed), Instant::now());
        std::thread::sleep(time);
        let rate = (bytes.load(Relaxed) - before) as f64 * 8e-6 / since.elapsed().as_secs_f64();
        stop.store(true, Relaxed);
        rate
    });
    match failure.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(Throughput { megabits_per_second: rate, bytes: bytes.load(Relaxed) }),
    }
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
    let at =
        |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1))).copied();
    Ok(Connections {
        per_second: times.len() as f64 / elapsed.as_secs_f64(),
        p50: at(0.50).unwrap_or_default(),
        p99: at(0.99).unwrap_or_default(),
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
