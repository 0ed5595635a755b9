//! Boxes on the way to the relay that look at what passes.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Passes connections on whose first bytes are a TLS record, and cuts all others.
#[derive(Debug)]
pub struct TlsOnly {
    /// Where it listens.
    pub address: SocketAddr,
    passed: Arc<AtomicUsize>,
    cut: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
}

impl TlsOnly {
    /// In front of `target`.
    #[must_use]
    pub fn before(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let wall = Self {
            address: listener.local_addr().expect("an address"),
            passed: Arc::default(),
            cut: Arc::default(),
            ends: Arc::default(),
        };
        let (target, passed, cut, ends) = (target.to_owned(), wall.passed.clone(), wall.cut.clone(), wall.ends.clone());
        std::thread::spawn(move || {
            for from in listener.incoming().flatten() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let (target, passed, cut) = (target.clone(), passed.clone(), cut.clone());
                std::thread::spawn(move || {
                    if looks_like_tls(&from) {
                        passed.fetch_add(1, Ordering::Relaxed);
                        if let Ok(to) = TcpStream::connect(&target) {
                            join(from, to);
                        }
                    } else {
                        cut.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        wall
    }

    /// Connections passed on, and connections cut.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.passed.load(Ordering::Relaxed), self.cut.load(Ordering::Relaxed))
    }
}

impl Drop for TlsOnly {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // The listener's thread looks when somebody comes.
        let _ = TcpStream::connect(self.address);
    }
}

fn looks_like_tls(from: &TcpStream) -> bool {
    let _ = from.set_read_timeout(Some(Duration::from_secs(10)));
    let mut first = [0; 2];
    while matches!(from.peek(&mut first), Ok(1)) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = from.set_read_timeout(None);
    first == [22, 3]
}

/// Copies both ways until both ends are done.
fn join(from: TcpStream, to: TcpStream) {
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        let mut block = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut block) {
            if to.write_all(&block[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    };
    let (Ok(back_from), Ok(back_to)) = (to.try_clone(), from.try_clone()) else { return };
    let back = std::thread::spawn(move || copy(back_from, back_to));
    copy(from, to);
    let _ = back.join();
}
