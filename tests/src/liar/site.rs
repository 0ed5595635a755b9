//! What there is to reach inside: a server that exchanges a marked document with each visitor, and how what was read
//! is judged.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hedgerow_runtime::clock;

use super::lock;
use super::scene::PATIENCE;
use crate::process::wait_until;
use crate::tap::Needle;

/// How a stream looked at the end that read it.
#[derive(Clone, PartialEq, Eq)]
pub struct Reading {
    /// What came.
    pub bytes: Vec<u8>,
    /// Whether it ended in order.
    pub in_order: bool,
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, {}", self.bytes.len(), if self.in_order { "ended in order" } else { "cut" })
    }
}

impl Reading {
    fn of(mut tcp: &TcpStream) -> Self {
        let mut bytes = Vec::new();
        let end = tcp.read_to_end(&mut bytes);
        let stood = end.as_ref().is_err_and(|e| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        assert!(!stood, "{} bytes, then nothing for {} s: neither data nor an error", bytes.len(), PATIENCE.as_secs());
        Self { bytes, in_order: end.is_ok() }
    }

    /// Whether everything came and ended in order. Panics when anything came that was not sent, or when what was cut
    /// off looks as if it were all.
    pub fn check(&self, sent: &[u8], what: &str) -> bool {
        assert!(sent.starts_with(&self.bytes), "{what}: wrong bytes among {} of {}", self.bytes.len(), sent.len());
        let whole = self.bytes.len() == sent.len();
        assert!(whole || !self.in_order, "{what}: {} of {} bytes, and an end in order", self.bytes.len(), sent.len());
        whole && self.in_order
    }
}

/// A server inside: sends one document and takes another from each visitor, and remembers what it read.
#[derive(Debug)]
pub struct Site {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// What it sends; begins with a mark that nobody has written before.
    pub down: Arc<[u8]>,
    /// What visitors send.
    pub up: Arc<[u8]>,
    pub(super) marks: Vec<Needle>,
    read: Arc<Mutex<Vec<Reading>>>,
    visitors: Arc<AtomicUsize>,
}

impl Site {
    pub(super) fn start(length: usize) -> Self {
        let mark = |way: &str| {
            let dice: String = clock::random::<16>().iter().map(|b| format!("{b:02x}")).collect();
            format!("<marked {way} {dice}>").into_bytes()
        };
        let marks = [mark("down"), mark("up")];
        let document = |mark: &[u8]| {
            // A counter, so that bytes at a wrong place are wrong bytes.
            let mut text = mark.to_vec();
            let mut n = 0u64;
            while text.len() < length {
                n += 1;
                text.extend_from_slice(mark);
                text.extend_from_slice(&n.to_be_bytes());
            }
            Arc::<[u8]>::from(text)
        };
        let (down, up) = (document(&marks[0]), document(&marks[1]));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let read: Arc<Mutex<Vec<Reading>>> = Arc::default();
        let visitors: Arc<AtomicUsize> = Arc::default();
        let (send, kept, here) = (down.clone(), read.clone(), visitors.clone());
        std::thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                here.fetch_add(1, Ordering::SeqCst);
                let (send, kept, here) = (send.clone(), kept.clone(), here.clone());
                std::thread::spawn(move || {
                    let reading = exchange(&tcp, &send);
                    lock(&kept).push(reading);
                    here.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        let marks = marks.iter().map(|m| Needle { name: "the document's mark".into(), bytes: m.clone() }).collect();
        Self { port, down, up, marks, read, visitors }
    }

    /// What visitors sent, as it was read, since the last time it was asked; waits until all have gone. A connection
    /// that a node opened in vain, before anybody was told of it, is none of them.
    #[must_use]
    pub fn readings(&self) -> Vec<Reading> {
        wait_until("the site's visitors have gone", PATIENCE, || self.visitors.load(Ordering::SeqCst) == 0);
        let mut readings = std::mem::take(&mut *lock(&self.read));
        readings.retain(|r| !(r.in_order && r.bytes.is_empty()));
        readings
    }
}

/// Sends and reads at the same time. A reset is told once, to the writer or to the reader; whichever heard of it, the
/// end was not in order.
pub(super) fn exchange(tcp: &TcpStream, send: &[u8]) -> Reading {
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| {
            (&mut &*tcp).write_all(send)?;
            tcp.shutdown(Shutdown::Write)
        });
        let mut reading = Reading::of(tcp);
        reading.in_order &= sent.join().expect("it does not panic").is_ok();
        reading
    })
}
