//! Datagrams in, datagrams out. For DATA: one look-up for a run of neighbours of one half, no cryptography, no lock and
//! no memory for each datagram; the other half's id is written over the first in place.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use hedgerow_runtime::link::Channel;
use hedgerow_shared::fault::DropReason;
use hedgerow_shared::wire::tunnel::{HEADER, HalfId, Message, kind};

use super::end::{End, Path};
use super::split::{self, Run};
use super::table::{Pair, Side};
use super::{Tunnels, split::next};
use crate::registry::{Live, Registry};
use crate::udp::{Arrived, Outbox};

impl Tunnels {
    /// Takes datagrams from a UDP port.
    pub fn take(
        &self,
        links: &Registry<Channel>,
        arrived: &Arrived<'_>,
        stride: usize,
        datagrams: &mut [u8],
        out: &mut Outbox,
    ) {
        let mut at = 0;
        while let Some(run) = next(datagrams, stride, &mut at) {
            match run {
                Run::Data(id, range) => self.data(links, arrived, id, stride, &mut datagrams[range], out),
                Run::Other(range) => self.other(arrived, &datagrams[range], out),
                Run::Malformed(count) => out.dropped(DropReason::TunnelMalformed, count),
            }
        }
    }

    /// DATA of one half.
    fn data(
        &self,
        links: &Registry<Channel>,
        arrived: &Arrived<'_>,
        id: HalfId,
        stride: usize,
        run: &mut [u8],
        out: &mut Outbox,
    ) {
        let count = run.len().div_ceil(stride.max(1)) as u64;
        let Some((pair, side)) = self.table.get(id) else {
            return out.dropped(DropReason::TunnelUnknown, count);
        };
        if !pair.end(side).is_at(arrived.from) {
            return out.dropped(DropReason::TunnelAddress, count);
        }
        self.pass(links, &pair, side, stride, run, arrived.now, out);
    }

    /// Passes on DATA of a half that is known to be its owner's.
    #[allow(clippy::too_many_arguments, reason = "what a run is, and where it goes: nothing of it belongs together")]
    fn pass(
        &self,
        links: &Registry<Channel>,
        pair: &Arc<Pair>,
        side: Side,
        stride: usize,
        run: &mut [u8],
        now: Instant,
        out: &mut Outbox,
    ) {
        let (from, to) = (pair.end(side), pair.end(side.other()));
        let (bytes, stride) = (run.len() as u64, stride.max(1));
        let count = run.len().div_ceil(stride) as u64;
        from.hear(self.at(now));
        if !pair.meter.try_take(side.way(), bytes, now) {
            return out.dropped(DropReason::RateLimited, count);
        }
        let id = to.half.id.to_bytes();
        for datagram in run.chunks_mut(stride) {
            datagram[1..HEADER].copy_from_slice(&id);
        }
        let path = to.path.read();
        match &*path {
            Path::None => return out.dropped(DropReason::TunnelNotAttached, count),
            Path::Udp(target) => out.push(target, stride, run),
            Path::Link(_) => {
                drop(path);
                let Some(live) = self.link_of(links, pair, to) else {
                    return out.dropped(DropReason::TunnelNotAttached, count);
                };
                for datagram in run.chunks(stride) {
                    live.handle.send_datagram(Bytes::copy_from_slice(datagram));
                }
            }
        }
        self.counts.passed(side.way(), count, bytes);
        from.bytes.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        from.datagrams.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
    }

    /// The link that an end is on. Where that has ended, or another has taken its place, the newest of the same process;
    /// where there is none, the end is nowhere until it says where it is.
    fn link_of(&self, links: &Registry<Channel>, pair: &Pair, end: &End) -> Option<Arc<Live<Channel>>> {
        let Path::Link(known) = end.path() else { return None };
        let known = known.upgrade().filter(|live| !live.handle.is_closed());
        if let Some(live) = known.as_ref().filter(|live| !live.is_draining()) {
            return Some(live.clone());
        }
        let owner = &end.owner;
        let newest = links
            .of_process(&pair.tenant, owner.entity, owner.instance)
            .filter(|live| !live.handle.is_closed())
            .or(known);
        let mut path = end.path.write();
        // It may have moved in the meantime.
        if let Path::Link(now) = &mut *path {
            match &newest {
                Some(live) => *now = Arc::downgrade(live),
                None => *path = Path::None,
            }
        }
        newest
    }

    /// One datagram of another kind, from a UDP port.
    fn other(&self, arrived: &Arrived<'_>, datagram: &[u8], out: &mut Outbox) {
        let answer = self.answer(arrived, datagram);
        match answer {
            // Never longer than what asked for it.
            Ok((id, message)) => {
                let answer = message.to_datagram(id);
                out.push(&arrived.target(), answer.len(), &answer);
            }
            Err(reason) => out.dropped(reason, 1),
        }
    }

    fn answer(&self, arrived: &Arrived<'_>, datagram: &[u8]) -> Result<(HalfId, Message), DropReason> {
        let (id, message) = Message::parse(datagram).ok_or(DropReason::TunnelMalformed)?;
        // Nothing is computed for a stranger.
        let (pair, side) = self.table.get(id).ok_or(DropReason::TunnelUnknown)?;
        let (end, now) = (pair.end(side), arrived.now);
        let answer = match message {
            Message::Attach { counter, .. } => end.attach(&message, counter, arrived.from, now)?,
            Message::Confirm { nonce, .. } => {
                let answer = end.confirm(&message, nonce, arrived.target(), now)?;
                end.hear(self.at(now));
                answer
            }
            Message::Ping(number) => {
                if !end.is_at(arrived.from) {
                    return Err(DropReason::TunnelAddress);
                }
                end.hear(self.at(now));
                Message::Pong(number)
            }
            Message::Challenge { .. } | Message::Attached { .. } | Message::Pong(_) | Message::Bind => {
                return Err(DropReason::TunnelMalformed);
            }
        };
        Ok((id, answer))
    }

    /// Takes a datagram from a link.
    pub fn take_from_link(
        &self,
        links: &Registry<Channel>,
        live: &Arc<Live<Channel>>,
        datagram: Bytes,
        now: Instant,
        out: &mut Outbox,
    ) {
        let (id, is_data) = match split::split(&datagram, datagram.len()).next() {
            Some(Run::Data(id, _)) => (id, true),
            Some(Run::Other(_)) => match Message::parse(&datagram) {
                Some((id, Message::Bind)) => (id, false),
                // Addresses are no matter of links.
                Some(_) | None => return out.dropped(DropReason::TunnelMalformed, 1),
            },
            Some(Run::Malformed(_)) | None => return out.dropped(DropReason::TunnelMalformed, 1),
        };
        let Some((pair, side)) = self.table.get(id) else {
            return out.dropped(DropReason::TunnelUnknown, 1);
        };
        let end = pair.end(side);
        if pair.tenant != live.facts.tenant || !end.owner.is(&live.facts) {
            return out.dropped(DropReason::TunnelAddress, 1);
        }
        if is_data {
            debug_assert_eq!(datagram[0], kind::DATA);
            let mut own = BytesMut::from(datagram);
            let length = own.len();
            self.pass(links, &pair, side, length, &mut own, now, out);
        } else {
            end.hear(self.at(now));
            end.bind(Arc::downgrade(live), now);
        }
    }
}
