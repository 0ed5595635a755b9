//! A tap on UDP: forwards datagrams and keeps every payload, beside the TCP tap of the same address.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

use crate::tap::Conversation;

/// See the module. It serves until the test's process ends.
#[derive(Debug)]
pub struct UdpTap {
    seen: Arc<Mutex<Conversation>>,
}

impl UdpTap {
    /// Starts one at `at`, in front of `to`.
    ///
    /// # Panics
    /// The port is taken.
    #[must_use]
    pub fn start(at: &str, to: &str) -> Self {
        let near = Arc::new(UdpSocket::bind(at).expect("the UDP port beside the tap's TCP port is free"));
        let to: SocketAddr = to.parse().expect("an address");
        let seen: Arc<Mutex<Conversation>> = Arc::default();
        let kept = seen.clone();
        std::thread::spawn(move || {
            let mut peers: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
            let mut block = vec![0; 64 * 1024];
            while let Ok((length, peer)) = near.recv_from(&mut block) {
                let far = peers.entry(peer).or_insert_with(|| beyond(to, peer, &near, &kept));
                lock(&kept).up.extend_from_slice(&block[..length]);
                // What finds no room is lost, as datagrams are.
                let _ = far.send(&block[..length]);
            }
        });
        Self { seen }
    }

    /// Every payload so far, one after the other, in each direction.
    #[must_use]
    pub fn seen(&self) -> Conversation {
        lock(&self.seen).clone()
    }

    /// Bytes of payload so far, both directions.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let seen = lock(&self.seen);
        seen.up.len() + seen.down.len()
    }
}

/// A socket that stands for one peer, and the thread that brings its answers back.
fn beyond(to: SocketAddr, peer: SocketAddr, near: &Arc<UdpSocket>, kept: &Arc<Mutex<Conversation>>) -> Arc<UdpSocket> {
    let far = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
    far.connect(to).expect("a loopback address");
    let (back, near, kept) = (far.clone(), near.clone(), kept.clone());
    std::thread::spawn(move || {
        let mut block = vec![0; 64 * 1024];
        while let Ok(length) = back.recv(&mut block) {
            lock(&kept).down.extend_from_slice(&block[..length]);
            let _ = near.send_to(&block[..length], peer);
        }
    });
    far
}

fn lock(seen: &Mutex<Conversation>) -> std::sync::MutexGuard<'_, Conversation> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
