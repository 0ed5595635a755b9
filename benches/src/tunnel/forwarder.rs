//! The relay's forwarder alone, on loopback: datagrams a second and CPU, by the number of pairings. The forwarder is a
//! process of its own, with the relay's port, table and receive loops and nothing else; this one sends datagrams of all
//! pairings in turn from one socket and reads at another what arrives.

use std::io::{BufRead, BufReader, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hedgerow_relay::fair::Fairness;
use hedgerow_relay::registry::Registry;
use hedgerow_relay::tunnel::{Owner, Tunnels};
use hedgerow_relay::udp::{Arrived, Forwarder, Outbox, Port};
use hedgerow_runtime::clock;
use hedgerow_runtime::link::Channel;
use hedgerow_runtime::scope::Scope;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::wire::tunnel::{Half, HalfId, Message, kind};
use hedgerow_shared::{EntityId, InstanceId, Role, SessionId, TenantId, TunnelId, UnixTime};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use serde::{Deserialize, Serialize};

use crate::figures::Figures;
use crate::process::{Process, cpu_seconds, memory_of_tree};
use crate::progress::Progress;

/// Numbers of pairings.
const PAIRINGS: [usize; 3] = [1, 100, 10_000];
/// What a datagram holds: as those of a tunnel whose packets have 1400 bytes.
const DATAGRAM: usize = 1440;
/// Datagrams of one pairing in a row, sent in one call: as a TCP stream's come, and alone.
const ROWS: [usize; 2] = [32, 1];
/// Devices have a process of a node each; ids are random.
const TENANT: &str = "S12345678";
/// An answer of the forwarder's that takes longer was lost.
const PATIENCE: Duration = Duration::from_millis(500);

/// A pairing's halves, as the forwarder's process tells them: a line of JSON each.
#[derive(Serialize, Deserialize)]
struct Told {
    device: Token,
    node: Token,
}

/// Id and secret.
#[derive(Serialize, Deserialize)]
struct Token(u64, [u8; 32]);

impl Token {
    fn of(half: &Half) -> anyhow::Result<Self> {
        Ok(Self(u64::from_be_bytes(half.id.to_bytes()), half.secret.expose().try_into()?))
    }

    fn half(&self) -> Half {
        Half { id: HalfId::from_random(self.0.to_be_bytes()), secret: Secret::new(self.1.to_vec()) }
    }
}

struct Alone {
    pairings: Tunnels,
    links: Registry<Channel>,
}

impl Forwarder for Alone {
    fn take(&self, arrived: &Arrived<'_>, stride: usize, datagrams: &mut [u8], out: &mut Outbox) {
        self.pairings.take(&self.links, arrived, stride, datagrams, out);
    }
}

/// The forwarder's process: tells its address and its pairings, and forwards until its standard input ends.
#[expect(clippy::print_stdout, reason = "the bench reads it")]
pub(crate) fn serve(count: usize) -> anyhow::Result<()> {
    let pairings = Tunnels::new(Duration::from_secs(3600), count, count, Fairness::default());
    let forwarder = Arc::new(Alone { pairings, links: Registry::default() });
    let tenant: TenantId = TENANT.parse()?;
    let owner = |role| Owner {
        role,
        entity: EntityId::from_random(clock::random()),
        serial: u128::from_be_bytes(clock::random()).to_string(),
        not_after: UnixTime(u64::MAX),
        issuer: [0; 32],
        instance: InstanceId::from_random(clock::random()),
        session: SessionId::from_random(clock::random()),
    };
    let pairs = (0..count).map(|_| {
        let tunnel = TunnelId::from_random(clock::random());
        let (device, node) = (owner(Role::Device), owner(Role::Node));
        Ok(forwarder.pairings.add(&forwarder.links, &tenant, tunnel, &device, &node)?)
    });
    let pairs: Vec<_> = pairs.collect::<anyhow::Result<_>>()?;
    // As the relay runs: a worker a core, a shard a core.
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = socket.local_addr()?;
        let port = Port::sharded(socket, std::thread::available_parallelism().map_or(1, usize::from))?;
        let scope = Scope::new();
        for shard in 0..port.received().len() {
            let (port, forwarder) = (port.clone(), forwarder.clone());
            scope.spawn(async move { port.receive(shard, Some(forwarder)).await });
        }
        println!("{address}");
        for pair in pairs {
            let told = Told { device: Token::of(&pair.device.half)?, node: Token::of(&pair.node.half)? };
            println!("{}", serde_json::to_string(&told)?);
        }
        let end = tokio::task::spawn_blocking(|| std::io::stdin().lines().last());
        let _ = end.await;
        Ok(())
    })
}

/// Measures every number of pairings, in rounds.
pub(crate) fn measure(repetitions: usize, time: Duration, figures: &mut Figures) -> anyhow::Result<()> {
    let mut progress = Progress::new(PAIRINGS.len() * repetitions);
    for round in 0..repetitions {
        let mut first = None;
        for count in PAIRINGS {
            progress.next(&format!("round {} of {repetitions}: {count} pairings", round + 1));
            let bytes = pairings(count, round, time, figures).with_context(|| subject(count))?;
            let (fewest, least) = *first.get_or_insert((count, bytes));
            if count >= 1000 {
                let each = (bytes - least) / (count - fewest) as f64;
                figures.add(round, &subject(count), "memory of a pairing, both ends at an address", "bytes", each);
            }
        }
    }
    progress.clear();
    Ok(())
}

/// The memory of the forwarder's process before anything was forwarded, bytes.
fn pairings(count: usize, round: usize, time: Duration, figures: &mut Figures) -> anyhow::Result<f64> {
    let me = std::env::current_exe()?;
    let (process, input, output) = Process::talking(Command::new(me).args(["forwarder", &count.to_string()]))?;
    let mut lines = BufReader::new(output).lines();
    let mut line = || lines.next().context("the forwarder ended")?.context("the forwarder ended");
    let relay: SocketAddr = line()?.parse()?;
    let told: Vec<Told> = (0..count).map(|_| Ok(serde_json::from_str(&line()?)?)).collect::<anyhow::Result<_>>()?;
    let (sender, receiver) = (Peer::new(relay)?, Peer::new(relay)?);
    for pair in &told {
        sender.attach(&pair.device.half())?;
        receiver.attach(&pair.node.half())?;
    }
    let subject = subject(count);
    let held = memory_of_tree(process.pid());

    let arrived = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let reader = {
        let (arrived, done) = (arrived.clone(), done.clone());
        std::thread::spawn(move || receiver.count(&arrived, &done))
    };
    for row in ROWS {
        let how = if row == 1 { "alone" } else { "32 in a row" };
        let (before, from) = (cpu_seconds(process.pid()), arrived.load(Ordering::Relaxed));
        let begun = Instant::now();
        let sent = sender.flood(&told, row, time)?;
        let took = begun.elapsed();
        // What is on its way arrives.
        let mut seen = 0;
        while seen != arrived.load(Ordering::Relaxed) {
            seen = arrived.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(200));
        }
        let (cpu, passed) = (cpu_seconds(process.pid()) - before, (seen - from) as f64);
        if passed == 0.0 {
            bail!("nothing arrived");
        }
        let rate = passed / took.as_secs_f64();
        figures.add(round, &subject, &format!("datagrams passed on, {how}"), "1000/s", rate / 1e3);
        figures.add(round, &subject, &format!("CPU, {how}"), "s/million", cpu / passed * 1e6);
        figures.add(round, &subject, &format!("lost, {how}"), "%", (1.0 - passed / sent as f64) * 100.0);
    }
    done.store(true, Ordering::Relaxed);
    let _ = reader.join();
    drop(input);
    Ok(held as f64)
}

fn subject(count: usize) -> String {
    format!("{count} pairings")
}

/// An end of all pairings.
struct Peer {
    socket: UdpSocket,
    state: UdpSocketState,
    relay: SocketAddr,
}

impl Peer {
    fn new(relay: SocketAddr) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let _ = (
            socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20),
            socket2::SockRef::from(&socket).set_send_buffer_size(4 << 20),
        );
        let state = UdpSocketState::new((&socket).into())?;
        // quinn-udp makes it one that does not wait.
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket, state, relay })
    }

    /// Says where a half is.
    fn attach(&self, half: &Half) -> anyhow::Result<()> {
        for counter in 1..=10 {
            let Some(Message::Challenge { nonce }) = self.ask(half, &Message::attach(half, counter))? else { continue };
            if matches!(self.ask(half, &Message::confirm(half, nonce))?, Some(Message::Attached { .. })) {
                return Ok(());
            }
        }
        bail!("the forwarder does not answer")
    }

    fn ask(&self, half: &Half, message: &Message) -> anyhow::Result<Option<Message>> {
        self.socket.send_to(&message.to_datagram(half.id), self.relay)?;
        let mut answer = [0; 256];
        let Ok(length) = self.socket.recv(&mut answer) else { return Ok(None) };
        Ok(Message::parse(&answer[..length]).map(|(_, message)| message))
    }

    /// Sends rows of datagrams of all pairings in turn, each in one call. How many datagrams.
    fn flood(&self, told: &[Told], row: usize, time: Duration) -> anyhow::Result<u64> {
        let (begun, mut sent) = (Instant::now(), 0);
        let mut bytes = vec![0x5a; DATAGRAM * row];
        let row = row.min(self.state.max_gso_segments());
        for pair in told.iter().cycle() {
            for datagram in bytes.chunks_mut(DATAGRAM) {
                datagram[0] = kind::DATA;
                datagram[1..9].copy_from_slice(&pair.device.0.to_be_bytes());
            }
            let contents = &bytes[..DATAGRAM * row];
            let segment_size = (row > 1).then_some(DATAGRAM);
            let transmit = Transmit { destination: self.relay, ecn: None, contents, segment_size, src_ip: None };
            match self.state.try_send((&self.socket).into(), &transmit) {
                Ok(()) => sent += row as u64,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => return Err(error.into()),
            }
            if begun.elapsed() > time {
                break;
            }
        }
        Ok(sent)
    }

    /// Counts what arrives, as the kernel merged it.
    fn count(&self, arrived: &AtomicU64, done: &AtomicBool) {
        let mut memory = vec![0; 8 * 65_536];
        let mut metas = [RecvMeta::default(); 8];
        while !done.load(Ordering::Relaxed) {
            let mut slices: Vec<IoSliceMut<'_>> = memory.chunks_mut(65_536).map(IoSliceMut::new).collect();
            let Ok(count) = self.state.recv((&self.socket).into(), &mut slices, &mut metas) else { continue };
            let datagrams = metas.iter().take(count).map(|m| m.len.div_ceil(m.stride.max(1)) as u64).sum();
            arrived.fetch_add(datagrams, Ordering::Relaxed);
        }
    }
}
