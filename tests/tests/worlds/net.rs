//! The modelled network: hosts with addresses, listeners, and connections that carry bytes in order but split, late,
//! stalled by lost segments, held up by partitions, and reset by restarts; and, in `udp`, datagrams that are lost,
//! doubled, overtaken and too large.
//!
//! A host has an epoch. A crash, or another address, begins a new one: what stood in the old one is silent from then on.

pub(crate) mod udp;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use hedgerow_runtime::dial::{Given, Sockets};
use parking_lot::Mutex;
use quinn::AsyncUdpSocket;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant, Sleep, sleep};

use super::dice::Dice;

/// Who is on the network.
pub(crate) type HostId = usize;

/// How the network treats what it carries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// The way there takes so many milliseconds at least,
    pub(crate) delay: u64,
    /// and up to so many more.
    pub(crate) jitter: u64,
    /// Segments of connections lost and sent again, datagrams lost: so many in a thousand.
    pub(crate) loss: u64,
    /// Datagrams doubled: so many in a thousand.
    pub(crate) doubled: u64,
    /// The largest datagram that passes.
    pub(crate) mtu: usize,
    /// Whether datagrams pass at all.
    pub(crate) udp: bool,
    /// Chunks a connection holds before its writer waits.
    pub(crate) window: usize,
    /// The most one write takes.
    pub(crate) write: usize,
}

/// See the module. Clones are the same network.
#[derive(Clone)]
pub(crate) struct Net(Arc<Mutex<State>>);

struct State {
    dice: Dice,
    weather: Weather,
    hosts: Vec<Host>,
    /// Pairs that cannot reach each other.
    apart: BTreeSet<(HostId, HostId)>,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    udp: udp::Udp,
    /// Connections asked for within the last second, by who asked whom; and the most there ever were.
    dials: BTreeMap<(HostId, HostId), VecDeque<Instant>>,
    busiest: usize,
}

struct Host {
    name: String,
    address: IpAddr,
    epoch: u64,
    next_port: u16,
    listener: Option<Arc<Listening>>,
}

#[derive(Default)]
struct Listening {
    waiting: Mutex<VecDeque<Stream>>,
    notify: Notify,
}

/// One connection; side 0 dialled.
struct Connection {
    hosts: [HostId; 2],
    epochs: [u64; 2],
    /// `pipes[s]` carries what side `s` writes.
    pipes: [Pipe; 2],
    /// Sides whose handle is dropped.
    gone: [bool; 2],
}

#[derive(Default)]
struct Pipe {
    chunks: VecDeque<(Instant, Bytes)>,
    /// No more comes after the chunks: closed properly, or reset.
    end: Option<(Instant, End)>,
    last: Option<Instant>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

impl Net {
    pub(crate) fn new(dice: Dice, weather: Weather) -> Self {
        let state = State {
            dice,
            weather,
            hosts: Vec::new(),
            apart: BTreeSet::new(),
            connections: BTreeMap::new(),
            next: 0,
            udp: udp::Udp::default(),
            dials: BTreeMap::new(),
            busiest: 0,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    pub(crate) fn add_host(&self, name: &str, address: IpAddr) -> HostId {
        let mut state = self.0.lock();
        let host = Host { name: name.to_owned(), address, epoch: 0, next_port: 40_000, listener: None };
        state.hosts.push(host);
        state.hosts.len() - 1
    }

    /// What connections from this host are made by.
    pub(crate) fn sockets(&self, host: HostId) -> Arc<dyn Sockets> {
        Arc::new(From { net: self.clone(), host })
    }

    pub(crate) fn listen(&self, host: HostId) -> Listener {
        let listening = Arc::new(Listening::default());
        self.0.lock().hosts[host].listener = Some(listening.clone());
        Listener { listening }
    }

    /// Nobody listens on the host any more; what was not accepted is refused.
    pub(crate) fn stop_listening(&self, host: HostId) {
        let listening = self.0.lock().hosts[host].listener.take();
        drop(listening.map(|l| std::mem::take(&mut *l.waiting.lock())));
    }

    /// The processes of a host are gone at once: the other ends hear a reset.
    pub(crate) fn crash(&self, host: HostId) {
        self.stop_listening(host);
        self.new_epoch(host, true);
    }

    /// The host has another address from now on: what stood on the old one hears and says nothing any more.
    pub(crate) fn readdress(&self, host: HostId, address: IpAddr) {
        self.0.lock().hosts[host].address = address;
        self.new_epoch(host, false);
    }

    fn new_epoch(&self, host: HostId, reset: bool) {
        let mut state = self.0.lock();
        state.hosts[host].epoch += 1;
        let State { connections, dice, weather, udp, .. } = &mut *state;
        for connection in connections.values_mut() {
            for side in 0..2 {
                if connection.hosts[side] == host
                    && reset
                    && connection.pipes[side].end != Some((Instant::now(), End::Closed))
                {
                    let at = Instant::now() + delay(dice, weather);
                    // What had been sent and was still on its way goes with it.
                    connection.pipes[side].chunks.clear();
                    connection.pipes[side].end = Some((at, End::Reset));
                    connection.pipes[side].wake();
                }
            }
        }
        udp.forget(host);
    }

    /// Cuts two hosts off each other.
    pub(crate) fn part(&self, a: HostId, b: HostId) {
        self.0.lock().apart.insert((a.min(b), a.max(b)));
    }

    /// Joins them again; what was lost meanwhile is sent again by and by.
    pub(crate) fn heal(&self, a: HostId, b: HostId) {
        let mut state = self.0.lock();
        if !state.apart.remove(&(a.min(b), a.max(b))) {
            return;
        }
        let State { connections, dice, .. } = &mut *state;
        for connection in connections.values_mut().filter(|c| c.hosts == [a, b] || c.hosts == [b, a]) {
            for pipe in &mut connection.pipes {
                let again = Instant::now() + Duration::from_millis(dice.between(1, 800));
                if let Some(first) = pipe.chunks.front_mut() {
                    first.0 = first.0.max(again);
                } else if let Some(end) = &mut pipe.end {
                    end.0 = end.0.max(again);
                }
                pipe.wake();
            }
        }
    }

    /// Resets one connection between two hosts, as a firewall does that has forgotten it; whether there was one.
    pub(crate) fn reset_one(&self, a: HostId, b: HostId) -> bool {
        let mut state = self.0.lock();
        let State { connections, dice, weather, hosts, .. } = &mut *state;
        let live = |c: &Connection| {
            (c.hosts == [a, b] || c.hosts == [b, a])
                && (0..2).all(|s| hosts[c.hosts[s]].epoch == c.epochs[s] && c.pipes[s].end.is_none())
        };
        let those: Vec<u64> = connections.iter().filter(|(_, c)| live(c)).map(|(id, _)| *id).collect();
        if those.is_empty() {
            return false;
        }
        let id = those[usize::try_from(dice.below(those.len() as u64)).unwrap_or(0)];
        if let Some(connection) = connections.get_mut(&id) {
            for pipe in &mut connection.pipes {
                pipe.chunks.clear();
                pipe.end = Some((Instant::now() + delay(dice, weather), End::Reset));
                pipe.wake();
            }
        }
        true
    }

    pub(crate) fn set_weather(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.0.lock().weather);
    }

    /// Whether anything passes between two hosts.
    pub(crate) fn passes_between(&self, a: HostId, b: HostId) -> bool {
        self.0.lock().reaches(a, b)
    }

    /// The most connections that a host asked another one for within a second.
    pub(crate) fn busiest(&self) -> usize {
        self.0.lock().busiest
    }

    pub(crate) fn name(&self, host: HostId) -> String {
        self.0.lock().hosts[host].name.clone()
    }
}

fn delay(dice: &mut Dice, weather: &Weather) -> Duration {
    Duration::from_millis(weather.delay + dice.below(weather.jitter + 1))
}

impl State {
    fn dialled(&mut self, from: HostId, to: HostId) {
        let (now, of_pair) = (Instant::now(), self.dials.entry((from, to)).or_default());
        of_pair.push_back(now);
        while of_pair.front().is_some_and(|first| now - *first >= Duration::from_secs(1)) {
            of_pair.pop_front();
        }
        self.busiest = self.busiest.max(of_pair.len());
    }

    fn reaches(&self, a: HostId, b: HostId) -> bool {
        !self.apart.contains(&(a.min(b), a.max(b)))
    }

    /// Whether bytes still pass between the two ends as they were.
    fn passes(&self, connection: &Connection) -> bool {
        let [a, b] = connection.hosts;
        self.reaches(a, b) && (0..2).all(|s| self.hosts[connection.hosts[s]].epoch == connection.epochs[s])
    }
}

impl Pipe {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

#[derive(Clone)]
struct From {
    net: Net,
    host: HostId,
}

impl fmt::Debug for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a modelled network")
    }
}

impl Sockets for From {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Given>>> {
        Box::pin(async move {
            let to: SocketAddr = address.parse().map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
            let (there, found) = {
                let mut state = self.net.0.lock();
                let State { dice, weather, hosts, .. } = &mut *state;
                (delay(dice, weather) * 2, hosts.iter().position(|h| h.address == to.ip()))
            };
            let Some(to_host) = found else { return std::future::pending().await };
            self.net.0.lock().dialled(self.host, to_host);
            sleep(there).await;
            // A lost SYN is sent again.
            while !self.net.0.lock().reaches(self.host, to_host) {
                sleep(Duration::from_secs(1)).await;
            }
            let mut state = self.net.0.lock();
            let Some(listening) = state.hosts[to_host].listener.clone() else {
                return Err(io::ErrorKind::ConnectionRefused.into());
            };
            state.next += 1;
            let id = state.next;
            let own = &mut state.hosts[self.host];
            own.next_port = own.next_port.checked_add(1).unwrap_or(40_000);
            let from = SocketAddr::new(own.address, own.next_port);
            // A process's sockets are those of its address when it dials.
            let epochs = [own.epoch, state.hosts[to_host].epoch];
            let connection =
                Connection { hosts: [self.host, to_host], epochs, pipes: Default::default(), gone: [false; 2] };
            state.connections.insert(id, connection);
            drop(state);
            let stream = |side, peer| Stream { net: self.net.clone(), id, side, peer, timer: None };
            listening.waiting.lock().push_back(stream(1, from));
            listening.notify.notify_one();
            let given: Box<dyn Given> = Box::new(stream(0, to));
            Ok(given)
        })
    }

    fn datagrams(&self, _: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(udp::bind(&self.net, self.host, None))
    }
}

/// Where a host's connections arrive.
pub(crate) struct Listener {
    listening: Arc<Listening>,
}

impl Listener {
    pub(crate) async fn accept(&self) -> Stream {
        loop {
            let notified = self.listening.notify.notified();
            if let Some(stream) = self.listening.waiting.lock().pop_front() {
                return stream;
            }
            notified.await;
        }
    }
}

/// One end of a connection.
pub(crate) struct Stream {
    net: Net,
    id: u64,
    side: usize,
    pub(crate) peer: SocketAddr,
    timer: Option<Pin<Box<Sleep>>>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({}, {})", self.id, self.side)
    }
}

impl Stream {
    /// Waits until there is something to read: how many bytes, 0 at the end.
    fn poll_front(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            let at = {
                let mut state = self.net.0.lock();
                let (epoch_is_mine, passes) = {
                    let Some(c) = state.connections.get(&self.id) else {
                        return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                    };
                    (state.hosts[c.hosts[self.side]].epoch == c.epochs[self.side], state.passes(c))
                };
                let Some(connection) = state.connections.get_mut(&self.id) else { return Poll::Pending };
                let pipe = &mut connection.pipes[1 - self.side];
                let reset = matches!(pipe.end, Some((_, End::Reset)));
                if !epoch_is_mine || (!passes && !reset) {
                    pipe.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                let now = Instant::now();
                match (pipe.chunks.front(), pipe.end) {
                    (Some((at, chunk)), _) if *at <= now => return Poll::Ready(Ok(chunk.len())),
                    (Some((at, _)), _) => *at,
                    (None, Some((at, end))) if at <= now => {
                        return Poll::Ready(match end {
                            End::Closed => Ok(0),
                            End::Reset => Err(io::ErrorKind::ConnectionReset.into()),
                        });
                    }
                    (None, Some((at, _))) => at,
                    (None, None) => {
                        pipe.reader = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                }
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if timer.deadline() != at {
                timer.as_mut().reset(at);
            }
            ready!(Future::poll(timer.as_mut(), cx));
            self.timer = None;
        }
    }
}

impl Given for Stream {
    fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_front(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let there = ready!(self.poll_front(cx))?;
        if there == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.net.0.lock();
        let Some(connection) = state.connections.get_mut(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        let pipe = &mut connection.pipes[1 - self.side];
        if let Some((_, chunk)) = pipe.chunks.front_mut() {
            let n = chunk.len().min(buf.remaining());
            buf.put_slice(&chunk[..n]);
            chunk.advance(n);
            if chunk.is_empty() {
                pipe.chunks.pop_front();
                if let Some(writer) = pipe.writer.take() {
                    writer.wake();
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut state = self.net.0.lock();
        let State { connections, dice, weather, hosts, .. } = &mut *state;
        let Some(connection) = connections.get_mut(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let now = Instant::now();
        let mine = hosts[connection.hosts[self.side]].epoch == connection.epochs[self.side];
        if !mine {
            // Nobody hears what leaves an address that is gone.
            return Poll::Ready(Ok(bytes.len()));
        }
        if connection.pipes[1 - self.side].end.is_some_and(|(at, end)| end == End::Reset && at <= now) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let nobody_reads = connection.gone[1 - self.side];
        let pipe = &mut connection.pipes[self.side];
        if pipe.end.is_some() || nobody_reads {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.chunks.len() >= weather.window {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = bytes.len().min(weather.write);
        let mut at = now + delay(dice, weather);
        if dice.below(1000) < weather.loss {
            at += Duration::from_millis(dice.between(200, 1200));
        }
        let at = pipe.last.map_or(at, |last| last.max(at));
        pipe.last = Some(at);
        // Segments: the reader sees the parts one by one.
        let mut rest = Bytes::copy_from_slice(&bytes[..n]);
        // How many must not hang on the exact length: that of a signature differs from run to run.
        for _ in 0..[0, 0, 0, 1, 2][usize::try_from(dice.below(5)).unwrap_or(0)] {
            let part = rest.len() / 2;
            if part > 0 {
                pipe.chunks.push_back((at, rest.split_to(part)));
            }
        }
        pipe.chunks.push_back((at, rest));
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.net.0.lock();
        let State { connections, dice, weather, .. } = &mut *state;
        if let Some(connection) = connections.get_mut(&self.id) {
            connection.close(self.side, dice, weather);
        }
        Poll::Ready(Ok(()))
    }
}

impl Connection {
    fn close(&mut self, side: usize, dice: &mut Dice, weather: &Weather) {
        let pipe = &mut self.pipes[side];
        if pipe.end.is_none() {
            let at = Instant::now() + delay(dice, weather);
            pipe.end = Some((pipe.last.map_or(at, |last| last.max(at)), End::Closed));
            pipe.wake();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.net.0.lock();
        let State { connections, dice, weather, hosts, .. } = &mut *state;
        let Some(connection) = connections.get_mut(&self.id) else { return };
        if hosts[connection.hosts[self.side]].epoch == connection.epochs[self.side] {
            connection.close(self.side, dice, weather);
            // Whoever writes to it hears that nobody reads.
            let other = &mut connection.pipes[1 - self.side];
            if other.end.is_none() && !other.chunks.is_empty() {
                connection.pipes[self.side].end = Some((Instant::now() + delay(dice, weather), End::Reset));
                connection.pipes[self.side].wake();
            }
        }
        connection.gone[self.side] = true;
        if connection.gone == [true; 2] {
            connections.remove(&self.id);
        } else if let Some(writer) = connection.pipes[1 - self.side].writer.take() {
            writer.wake();
        }
    }
}
