//! What applications do in a world, and the reference model: what each end has promised of every connection and what
//! it has seen. Every byte that was written arrives once and in order, or the stream says why not.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use hedgerow_connectivity_node::Servers;
use hedgerow_device::agent::{Agent, Path};
use hedgerow_proxy::target::Target;
use hedgerow_runtime::link::{ReadHalf, Stream, WriteHalf};
use hedgerow_shared::fault::{Code, Fault};
use parking_lot::Mutex;
use tokio::time::{Duration, Instant, sleep};

use super::dice::Dice;
use super::fixture::PORT;
use super::trace;

/// What one connection is to carry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    pub(crate) id: u64,
    pub(crate) up: u32,
    pub(crate) down: u32,
    /// The longest pause between two writes, milliseconds.
    pub(crate) pace: u32,
}

/// How one end saw a connection end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    Whole,
    Broken(Fault),
}

/// What is known of a connection.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    pub(crate) device: usize,
    /// Refused: it carried nothing.
    pub(crate) refused: Option<Fault>,
    pub(crate) wanted: (u32, u32),
    /// Bytes the device wrote and the server read; those the server wrote and the device read.
    pub(crate) up: (u64, u64),
    pub(crate) down: (u64, u64),
    pub(crate) device_end: Option<Ending>,
    pub(crate) server_end: Option<Ending>,
    /// How often a server took it: never more than once.
    pub(crate) served: u32,
}

/// The reference model of one world. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Model(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    seen: BTreeMap<u64, Seen>,
    wrong: Vec<String>,
    is_broken: bool,
    mended: Option<Instant>,
    /// Devices that are revoked, since every relay knows.
    revoked: BTreeMap<usize, Instant>,
    last_id: u64,
    slowest: Duration,
    quic: usize,
    is_narrow: bool,
    /// The only relay drains, or when it last did: nobody has a new session before it is back.
    alone: (bool, Option<Instant>),
}

/// The byte that a connection carries at an offset of one direction: a reader needs nobody to check it.
fn byte_at(id: u64, direction: u64, offset: u64) -> u8 {
    let mixed = offset.wrapping_mul(0x9e37_79b9).wrapping_add(id * 7919 + direction * 104_729);
    (mixed >> 7) as u8
}

fn bytes(id: u64, direction: u64, from: u64, length: u64) -> Bytes {
    (from..from + length).map(|offset| byte_at(id, direction, offset)).collect()
}

impl Model {
    fn note(&self, id: u64, change: impl FnOnce(&mut Seen)) {
        change(self.0.lock().seen.entry(id).or_default());
    }

    pub(crate) fn wrong(&self, what: String) {
        trace::line(&format!("WRONG {what}"));
        self.0.lock().wrong.push(what);
    }

    /// Something is broken from now on.
    pub(crate) fn disturb(&self) {
        let mut inner = self.0.lock();
        (inner.is_broken, inner.mended) = (true, None);
    }

    /// Everything is as it should be from now on.
    pub(crate) fn mend(&self) {
        let mut inner = self.0.lock();
        (inner.is_broken, inner.mended) = (false, Some(Instant::now()));
    }

    /// Every relay knows that a device is revoked.
    pub(crate) fn revoke(&self, device: usize) {
        self.0.lock().revoked.insert(device, Instant::now());
    }

    pub(crate) fn is_revoked(&self, device: usize) -> bool {
        self.0.lock().revoked.contains_key(&device)
    }

    /// Whether a device must have nothing any more.
    fn is_cut(&self, device: usize) -> bool {
        self.0.lock().revoked.get(&device).is_some_and(|at| at.elapsed() > CUT)
    }

    /// A number for a connection.
    pub(crate) fn next_id(&self) -> u64 {
        let mut inner = self.0.lock();
        inner.last_id += 1;
        inner.last_id
    }

    /// The longest that a connection took to open while there was a relay.
    pub(crate) fn slowest(&self) -> Duration {
        self.0.lock().slowest
    }

    pub(crate) fn count_quic(&self, links: usize) {
        self.0.lock().quic = links;
    }

    /// Links over QUIC at the beginning.
    pub(crate) fn quic(&self) -> usize {
        self.0.lock().quic
    }

    pub(crate) fn is_narrow(&self) -> bool {
        self.0.lock().is_narrow
    }

    /// The only relay drains, or does no more.
    pub(crate) fn alone(&self, drains: bool) {
        self.0.lock().alone = (drains, Some(Instant::now()));
    }

    /// Links over QUIC may stand on which only small packets pass: nobody notices before more is sent.
    pub(crate) fn narrow(&self) {
        self.0.lock().is_narrow = true;
    }

    fn is_quiet_for(&self, time: Duration) -> bool {
        let inner = self.0.lock();
        !inner.is_broken && !inner.is_narrow && inner.mended.is_none_or(|at| at.elapsed() > time)
    }

    pub(crate) fn seen(&self) -> BTreeMap<u64, Seen> {
        self.0.lock().seen.clone()
    }

    pub(crate) fn faults(&self) -> Vec<String> {
        self.0.lock().wrong.clone()
    }

    fn check(&self, id: u64, direction: u64, at: u64, chunk: &[u8]) -> bool {
        let device = self.0.lock().seen.get(&id).map(|s| s.device);
        if device.is_some_and(|d| self.is_cut(d)) {
            self.wrong(format!("connection {id}, direction {direction}: bytes of a revoked device still arrive"));
        }
        let odd = chunk.iter().zip(at..).find(|(byte, offset)| **byte != byte_at(id, direction, *offset));
        if let Some((_, offset)) = odd {
            self.wrong(format!("connection {id}, direction {direction}: another byte at {offset} than was written"));
        }
        odd.is_none()
    }
}

async fn write(
    mut half: WriteHalf,
    model: &Model,
    order: Order,
    direction: u64,
    length: u64,
    mut dice: Dice,
    first: Option<Bytes>,
) -> Result<WriteHalf, Fault> {
    if let Some(first) = first {
        half.write_chunk(first).await?;
    }
    let mut at = 0;
    while at < length {
        let most = if length > 1 << 20 { 200_000 } else { 20_000 };
        let n = (1 + dice.below(most)).min(length - at);
        // Promised from here on: a reader may see it before this end knows that the stream has taken it.
        model.note(order.id, |s| if direction == 0 { s.up.0 = at + n } else { s.down.0 = at + n });
        half.write_chunk(bytes(order.id, direction, at, n)).await?;
        at += n;
        let pause = dice.below(u64::from(order.pace) + 1);
        if pause > 0 {
            tokio::select! {
                () = sleep(Duration::from_millis(pause)) => {}
                fault = half.ended() => return Err(fault),
            }
        }
    }
    half.finish();
    Ok(half)
}

async fn read(half: &mut ReadHalf, model: &Model, id: u64, direction: u64, ahead: Bytes) -> Result<u64, Fault> {
    let mut at = 0;
    let mut next = Some(ahead);
    while let Some(chunk) = next {
        if !model.check(id, direction, at, &chunk) {
            return Ok(at);
        }
        at += chunk.len() as u64;
        model.note(id, |s| if direction == 0 { s.up.1 = at } else { s.down.1 = at });
        next = half.read_chunk().await?;
    }
    Ok(at)
}

/// Both directions of one end; whole when everything was said and everything was heard.
async fn carry(
    stream: Stream,
    model: &Model,
    order: Order,
    is_server: bool,
    dice: Dice,
    head: Option<Bytes>,
    ahead: Bytes,
) -> Ending {
    let (mut reader, writer) = stream.into_split();
    let (out, back) = if is_server { (1, 0) } else { (0, 1) };
    let (says, hears) = if is_server { (order.down, order.up) } else { (order.up, order.down) };
    let writing = write(writer, model, order, out, u64::from(says), dice, head);
    let reading = read(&mut reader, model, order.id, back, ahead);
    match futures_util::future::try_join(Box::pin(writing), Box::pin(reading)).await {
        Ok((_, heard)) => {
            if heard != u64::from(hears) {
                model.wrong(format!("connection {}: {heard} bytes of {hears}, and then its end", order.id));
            }
            Ending::Whole
        }
        Err(fault) => Ending::Broken(fault),
    }
}

/// What devices reach behind the nodes.
pub(crate) struct Intranet {
    pub(crate) model: Model,
    pub(crate) dice: Mutex<Dice>,
}

impl fmt::Debug for Intranet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Intranet")
    }
}

impl Servers for Intranet {
    fn serve(&self, _: Target, mut stream: Stream) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (model, dice) = (self.model.clone(), self.dice.lock().fork());
        Box::pin(async move {
            let mut head = Vec::new();
            while head.len() < 20 {
                match stream.read_chunk().await {
                    Ok(Some(chunk)) => head.extend_from_slice(&chunk),
                    Ok(None) | Err(_) => return,
                }
            }
            let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
            let id = u64::from_be_bytes(head[..8].try_into().unwrap());
            let order = Order { id, up: word(8), down: word(12), pace: word(16) };
            let mut twice = false;
            model.note(id, |s| {
                s.served += 1;
                twice = s.served > 1;
            });
            if twice {
                model.wrong(format!("connection {id} came to a server twice"));
            }
            let ahead = Bytes::from(head.split_off(20));
            let ending = carry(stream, &model, order, true, dice, None, ahead).await;
            trace::line(&format!("server  {id} {}", shown(&ending)));
            model.note(id, |s| s.server_end = Some(ending));
        })
    }
}

fn shown(ending: &Ending) -> String {
    match ending {
        Ending::Whole => "whole".to_owned(),
        Ending::Broken(fault) => format!("broken: {fault}"),
    }
}

/// A connection may be refused while things are broken, and this long after: a relay of the list that is not there takes
/// 10 s to be given up, and the pause before the next attempt is as long.
const MENDED: Duration = Duration::from_secs(45);
/// The longest that opening a connection may take, whatever is broken.
const PATIENCE: Duration = Duration::from_secs(31);
/// A revoked device has nothing any more so long after the relays know.
const CUT: Duration = Duration::from_secs(5);

/// One connection of an application, to its end; tried again while it is refused for a reason.
pub(crate) async fn connection(agent: Agent, device: usize, model: Model, order: Order, dice: Dice) {
    let target = Target::new("127.0.0.1", PORT).unwrap();
    for _ in 0..12 {
        let since = Instant::now();
        let opened = agent.connect(&target).await;
        let took = since.elapsed();
        if !model.is_revoked(device) {
            let mut inner = model.0.lock();
            if !inner.alone.0 && inner.alone.1.is_none_or(|at| at < since) {
                inner.slowest = inner.slowest.max(took);
            }
        }
        if opened.is_ok() && model.is_cut(device) {
            model.wrong(format!("connection {} was opened by a device that is revoked", order.id));
        }
        if took > PATIENCE {
            model.wrong(format!("connection {}: {:?} to open", order.id, since.elapsed()));
        }
        let fault = match opened {
            Ok(Path::Tunnel(stream)) => {
                trace::line(&format!("opened  {} on device {device} after {took:?}: {order:?}", order.id));
                model.note(order.id, |s| {
                    (s.device, s.wanted, s.refused) = (device, (order.up, order.down), None);
                });
                let mut head = order.id.to_be_bytes().to_vec();
                [order.up, order.down, order.pace].iter().for_each(|n| head.extend(n.to_be_bytes()));
                let ending = carry(stream, &model, order, false, dice, Some(head.into()), Bytes::new()).await;
                trace::line(&format!("device  {} {}", order.id, shown(&ending)));
                model.note(order.id, |s| s.device_end = Some(ending));
                return;
            }
            Ok(Path::Direct) => Fault::new(Code::Internal, "the routes say direct"),
            Err(fault) => fault,
        };
        trace::line(&format!("refused {} on device {device} after {took:?}: {fault}", order.id));
        if fault.text.is_empty() {
            model.wrong(format!("connection {} was refused without a word", order.id));
        }
        if model.is_quiet_for(MENDED) && !model.is_revoked(device) {
            model.wrong(format!("connection {} was refused although nothing is broken: {fault}", order.id));
        }
        model.note(order.id, |s| (s.device, s.refused) = (device, Some(fault)));
        sleep(Duration::from_secs(2)).await;
    }
}
