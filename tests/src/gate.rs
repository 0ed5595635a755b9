//! The way to a relay, in the test's hand: what it lets through can be changed while everything runs.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// Forwards TCP, and UDP where wanted, to a relay. Lanes of devices can be refused and cut.
#[derive(Debug)]
pub struct Gate {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    no_lanes: AtomicBool,
    no_udp: AtomicBool,
    ends: AtomicBool,
    /// Both sockets of every lane that runs.
    lanes: Mutex<Vec<TcpStream>>,
}

impl Gate {
    /// In front of `target`, on the same port of another loopback address.
    #[must_use]
    pub fn before(target: &str, listen: &str, udp: bool) -> Self {
        let listener = TcpListener::bind(listen).expect("the address is free");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared::default());
        if udp {
            forward_udp(UdpSocket::bind(address).expect("the address is free"), target.to_owned(), shared.clone());
        }
        let (target, gate) = (target.to_owned(), shared.clone());
        std::thread::spawn(move || {
            for from in listener.incoming().flatten() {
                if gate.ends.load(Ordering::Relaxed) {
                    return;
                }
                let (target, gate) = (target.clone(), gate.clone());
                std::thread::spawn(move || gate.pass(from, &target));
            }
        });
        Self { address, shared }
    }

    /// Lets lanes through, or cuts them and refuses new ones.
    pub fn lanes(&self, pass: bool) {
        self.shared.no_lanes.store(!pass, Ordering::Relaxed);
        if !pass {
            for socket in self.shared.lanes.lock().drain(..) {
                // It may have ended by itself.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Gate {
    /// Lets datagrams through, or swallows them without a word.
    pub fn udp(&self, pass: bool) {
        self.shared.no_udp.store(!pass, Ordering::Relaxed);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        // The listener's thread looks when somebody comes.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn pass(&self, from: TcpStream, target: &str) {
        let is_lane = asks_for_a_lane(&from);
        if is_lane && self.no_lanes.load(Ordering::Relaxed) {
            return;
        }
        let Ok(to) = TcpStream::connect(target) else { return };
        if is_lane {
            self.lanes.lock().extend([&from, &to].into_iter().filter_map(|s| s.try_clone().ok()));
        }
        let (Ok(back_from), Ok(back_to)) = (to.try_clone(), from.try_clone()) else { return };
        let back = std::thread::spawn(move || copy(back_from, back_to));
        copy(from, to);
        let _ = back.join();
    }
}

/// Whether the server name in the ClientHello is a lane's.
fn asks_for_a_lane(from: &TcpStream) -> bool {
    let _ = from.set_read_timeout(Some(Duration::from_secs(10)));
    let mut first = [0; 4096];
    let mut seen = 0;
    // A whole record, or as much as a ClientHello of ours has at most.
    while let Ok(length @ 1..) = from.peek(&mut first) {
        let whole = if length < 5 { 5 } else { 5 + usize::from(u16::from_be_bytes([first[3], first[4]])) };
        if length >= whole.min(first.len()) || first[0] != 22 {
            seen = length;
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = from.set_read_timeout(None);
    first[..seen].windows(6).any(|w| w == b".lane.")
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut block = vec![0; 256 * 1024];
    while let Ok(length @ 1..) = from.read(&mut block) {
        if to.write_all(&block[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// One socket towards the relay for every client.
fn forward_udp(near: UdpSocket, target: String, gate: Arc<Shared>) {
    const LOOK: Duration = Duration::from_millis(200);
    let near = Arc::new(near);
    std::thread::spawn(move || {
        let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut block = vec![0; 64 * 1024];
        let _ = near.set_read_timeout(Some(LOOK));
        while !gate.ends.load(Ordering::Relaxed) {
            let Ok((length, client)) = near.recv_from(&mut block) else { continue };
            if gate.no_udp.load(Ordering::Relaxed) {
                continue;
            }
            let far = clients.entry(client).or_insert_with(|| {
                let far = Arc::new(UdpSocket::bind("127.0.0.1:0").expect("a port"));
                far.connect(&target).expect("a loopback address");
                let _ = far.set_read_timeout(Some(LOOK));
                let (back, near, gate) = (far.clone(), near.clone(), gate.clone());
                std::thread::spawn(move || {
                    let mut block = vec![0; 64 * 1024];
                    while !gate.ends.load(Ordering::Relaxed) {
                        if let Ok(length) = back.recv(&mut block)
                            && !gate.no_udp.load(Ordering::Relaxed)
                        {
                            let _ = near.send_to(&block[..length], client);
                        }
                    }
                });
                far
            });
            let _ = far.send(&block[..length]);
        }
    });
}
