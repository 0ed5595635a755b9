//! Datagrams: lost, doubled, overtaken, and dropped when they are larger than the path takes.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::{Duration, Instant, Sleep};

use super::{HostId, Net, State, delay};

/// Datagrams a socket holds; further ones are dropped.
const QUEUE: usize = 512;

#[derive(Default)]
pub(super) struct Udp {
    sockets: BTreeMap<SocketAddr, Arc<Inbox>>,
    hosts: BTreeMap<SocketAddr, HostId>,
    counter: u64,
}

#[derive(Default)]
struct Inbox(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    /// By the time of arrival: a later one may overtake.
    datagrams: BTreeMap<(Instant, u64), (SocketAddr, Bytes)>,
    waker: Option<Waker>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Udp {
    pub(super) fn forget(&mut self, host: HostId) {
        let gone: Vec<SocketAddr> = self.hosts.iter().filter(|(_, h)| **h == host).map(|(a, _)| *a).collect();
        for address in gone {
            self.sockets.remove(&address);
            self.hosts.remove(&address);
        }
    }
}

/// A socket on a host; without a port, on a free one.
pub(crate) fn bind(net: &Net, host: HostId, port: Option<u16>) -> Arc<dyn AsyncUdpSocket> {
    let mut state = net.0.lock();
    let own = &mut state.hosts[host];
    own.next_port = own.next_port.checked_add(1).unwrap_or(40_000);
    let local = SocketAddr::new(own.address, port.unwrap_or(own.next_port));
    let inbox = Arc::new(Inbox::default());
    state.udp.sockets.insert(local, inbox.clone());
    state.udp.hosts.insert(local, host);
    drop(state);
    Arc::new(Socket { net: net.clone(), local, inbox })
}

struct Socket {
    net: Net,
    local: SocketAddr,
    inbox: Arc<Inbox>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "udp {}", self.local)
    }
}

impl State {
    fn carry(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let ends = (self.udp.hosts.get(&from).copied(), self.udp.hosts.get(&to).copied());
        let (Some(a), Some(b)) = ends else { return };
        let weather = self.weather;
        if !weather.udp || !self.reaches(a, b) || bytes.len() > weather.mtu || self.dice.below(1000) < weather.loss {
            return;
        }
        let copies = if self.dice.below(1000) < weather.doubled { 2 } else { 1 };
        for _ in 0..copies {
            let at = Instant::now() + delay(&mut self.dice, &weather) + Duration::from_millis(self.dice.below(3));
            self.udp.counter += 1;
            let counter = self.udp.counter;
            let Some(inbox) = self.udp.sockets.get(&to) else { return };
            let mut queue = inbox.0.lock();
            if queue.datagrams.len() < QUEUE {
                queue.datagrams.insert((at, counter), (from, Bytes::copy_from_slice(bytes)));
            }
            if let Some(waker) = queue.waker.take() {
                waker.wake();
            }
        }
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let mut state = self.net.0.lock();
        for segment in transmit.contents.chunks(size) {
            state.carry(self.local, transmit.destination, segment);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut queue = self.inbox.0.lock();
        loop {
            let Some((&(at, _), _)) = queue.datagrams.first_key_value() else {
                queue.waker = Some(cx.waker().clone());
                return Poll::Pending;
            };
            if at > Instant::now() {
                queue.waker = Some(cx.waker().clone());
                let timer = queue.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
                if timer.deadline() != at {
                    timer.as_mut().reset(at);
                }
                if Future::poll(timer.as_mut(), cx).is_pending() {
                    return Poll::Pending;
                }
                queue.timer = None;
                continue;
            }
            let Some((_, (from, bytes))) = queue.datagrams.pop_first() else { return Poll::Pending };
            let length = bytes.len().min(bufs[0].len());
            bufs[0][..length].copy_from_slice(&bytes[..length]);
            let mut told = RecvMeta::default();
            (told.addr, told.len, told.stride) = (from, length, length);
            meta[0] = told;
            return Poll::Ready(Ok(1));
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut state = self.net.0.lock();
        if state.udp.sockets.get(&self.local).is_some_and(|inbox| Arc::ptr_eq(inbox, &self.inbox)) {
            state.udp.sockets.remove(&self.local);
            state.udp.hosts.remove(&self.local);
        }
    }
}
