//! The multiplexer with a peer that sends anything, and two honest ones whose application does anything.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use hedgerow_shared::Role;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::session::{Event, Mux, MuxConfig, Read, Room, Side};
use hedgerow_shared::wire::frame::{Decoder, Frame, FrameError, StreamId};
use hedgerow_shared::wire::message::{GoAway, Limits, Resume, ResumeStream, Wake};

use super::Input;

/// Small, so that an input of a few hundred bytes reaches every one of them.
const LIMITS: Limits = Limits { streams: 6, stream_window: 2048, connection_window: 6144, datagram: 64 };

fn config(retain: bool) -> MuxConfig {
    let timers = Timers::default();
    let config =
        if retain { MuxConfig::session(LIMITS, LIMITS, timers) } else { MuxConfig::link(LIMITS, LIMITS, timers) };
    MuxConfig { max_stream_window: 8192, ..config }
}

/// `session::Mux` fed with any bytes as its peer. The first byte: which side, whether sent bytes are kept, whether the
/// application reads, writes, refuses. Then pieces, each after a byte with its length (0: time passes).
pub fn mux(data: &[u8]) {
    let mut input = Input(data);
    let flags = input.u8();
    let flag = |bit: u8| flags & (1 << bit) != 0;
    let side = if flag(0) { Side::Dialler } else { Side::Acceptor };
    let mut now = Duration::ZERO;
    let mut mux = Mux::new(side, config(flag(1)), now);
    let mut out = Sent::default();
    let mut streams = Vec::new();
    if flag(5) {
        streams.extend(mux.open(Bytes::from_static(b"ours"), now));
    }
    while !input.0.is_empty() {
        let length = usize::from(input.u8());
        let result = if length == 0 {
            now += Duration::from_secs(4);
            mux.handle_timeout(now)
        } else {
            now += Duration::from_millis(5);
            mux.handle(Bytes::copy_from_slice(input.take(length)), now)
        };
        let dead = result.is_err();
        while let Some(event) = mux.poll_event() {
            if let Event::Incoming(id, _) = event {
                let code = if flag(4) { Code::Forbidden } else { Code::Ok };
                mux.answer(id, Fault::new(code, ""));
                streams.push(id);
            }
        }
        for id in &streams {
            let mut chunks = VecDeque::new();
            if flag(2) && mux.read(*id, 4, &mut chunks, now) == Read::Finished {
                mux.finish(*id);
                mux.release(*id);
            }
            if flag(3) && mux.room(*id) == Room::Some {
                mux.write(*id, Bytes::from_static(&[1; 700]));
            }
        }
        // What the application gave to be sent is its own affair.
        assert!(flag(3) || mux.held() <= LIMITS.connection_window, "{} bytes held", mux.held());
        assert!(mux.open_streams() <= 1 + LIMITS.streams as usize);
        if let Err(fault) = result {
            assert!(fault.text.len() <= 200);
            mux.end(&fault);
        }
        out.take_from(&mut mux, 4096);
        if dead {
            break;
        }
    }
    over(&mut mux, &streams);
}

/// After the end nothing is sent, nothing is kept, and every stream knows.
fn over(mux: &mut Mux, streams: &[StreamId]) {
    mux.end(&Fault::new(Code::Lost, "the input ended"));
    assert_eq!(mux.transmit(usize::MAX, |_| panic!("something is sent after the end")), 0);
    for id in streams {
        assert!(mux.reset_of(*id).is_some());
        mux.release(*id);
    }
    while mux.poll_event().is_some() {}
    assert_eq!((mux.held(), mux.open_streams()), (0, 0));
}

/// Reads what a multiplexer sends: every frame must be one.
#[derive(Default)]
struct Sent {
    decoder: Decoder,
    bytes: VecDeque<u8>,
    /// Bytes of each stream's data.
    data: BTreeMap<StreamId, u64>,
}

impl Sent {
    fn take_from(&mut self, mux: &mut Mux, budget: usize) -> usize {
        let mut wire = Vec::new();
        let total = mux.transmit(budget, |slices| slices.iter().for_each(|s| wire.extend_from_slice(s)));
        // A stream whose turn had nothing to send counts as a byte.
        assert!((wire.len()..=wire.len() + 16).contains(&total), "{total} bytes said, {} sent", wire.len());
        let checked = self.decoder.feed(Bytes::from(wire.clone()), |frame| {
            match frame {
                Frame::Data(id, _, bytes) => *self.data.entry(id).or_default() += bytes.len() as u64,
                other => assert!(!matches!(other, Frame::Unknown(_))),
            }
            Ok::<(), FrameError>(())
        });
        assert_eq!((checked, self.decoder.pending()), (Ok(()), 0), "what is sent are whole frames");
        self.bytes.extend(wire);
        total
    }
}

/// One end of the pair.
struct End {
    mux: Mux,
    wire: Sent,
    /// Streams this end knows, in the order it met them.
    streams: Vec<StreamId>,
    written: BTreeMap<StreamId, u64>,
    read: BTreeMap<StreamId, u64>,
    finished: Vec<StreamId>,
    released: Vec<StreamId>,
}

impl End {
    fn new(side: Side, retain: bool) -> Self {
        Self {
            mux: Mux::new(side, config(retain), Duration::ZERO),
            wire: Sent::default(),
            streams: Vec::new(),
            written: BTreeMap::new(),
            read: BTreeMap::new(),
            finished: Vec::new(),
            released: Vec::new(),
        }
    }

    fn events(&mut self, refuse: bool) {
        while let Some(event) = self.mux.poll_event() {
            if let Event::Incoming(id, _) = event {
                let code = if refuse { Code::Forbidden } else { Code::Ok };
                self.mux.answer(id, Fault::new(code, "as asked"));
                self.streams.push(id);
            }
        }
    }

    fn write(&mut self, id: StreamId, length: usize) {
        if self.mux.room(id) != Room::Some {
            return;
        }
        let from = self.written.entry(id).or_default();
        let bytes: Vec<u8> = (*from..*from + length as u64).map(|offset| pattern(id, offset)).collect();
        *from += length as u64;
        self.mux.write(id, bytes.into());
    }

    /// Checks that what arrives is what was written, in its order.
    fn read(&mut self, id: StreamId, most: usize, now: Duration) {
        let mut chunks = VecDeque::new();
        let result = self.mux.read(id, most, &mut chunks, now);
        let offset = self.read.entry(id).or_default();
        for byte in chunks.iter().flatten() {
            assert_eq!(*byte, pattern(id, *offset), "stream {id:?} at {offset}");
            *offset += 1;
        }
        if result == Read::Finished && !self.finished.contains(&id) {
            self.finished.push(id);
        }
    }
}

fn pattern(id: StreamId, offset: u64) -> u8 {
    let mixed = (offset + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(id.0);
    (mixed >> 40) as u8
}

/// Two multiplexers and a wire between them that delivers in pieces. The first byte: whether sent bytes are kept.
/// Then operations of two or three bytes: what (its lower bit: at which end), at which stream, how much. Operation 14
/// puts bytes of the input itself on the wire. Without it nothing is ever an error, no byte is lost, and when everybody
/// reads everything arrives.
pub fn mux_calls(data: &[u8]) {
    let mut input = Input(data);
    let retain = input.u8() & 1 != 0;
    let mut now = Duration::ZERO;
    let mut ends = [End::new(Side::Dialler, retain), End::new(Side::Acceptor, retain)];
    // Whether foreign bytes are on the wire: then errors are right and contents are not checked.
    let mut honest = true;
    while !input.0.is_empty() {
        if let Err(fault) = step(&mut ends, &mut input, &mut now, Some(&mut honest)) {
            assert!(!honest || fault.code == Code::Lost, "an honest peer is cut off: {fault}");
            return end_both(&mut ends, &fault);
        }
    }
    if honest {
        drain(&mut ends, now, false);
    }
    end_both(&mut ends, &Fault::new(Code::Lost, "the input ended"));
}

/// One operation at one end. `honest` is unset when foreign bytes go on the wire; without it none do. The fault is `Lost`
/// when time has run out, otherwise that of an end which was sent what may not be.
fn step(
    ends: &mut [End; 2],
    input: &mut Input<'_>,
    now: &mut Duration,
    mut honest: Option<&mut bool>,
) -> Result<(), Fault> {
    let operation = input.u8();
    let (here, what) = (usize::from(operation & 1), operation >> 1 & 15);
    let end = &mut ends[here];
    let pick = usize::from(input.u8());
    let id = end.streams.get(pick % end.streams.len().max(1)).copied().unwrap_or(StreamId(1));
    match what {
        0 => end.streams.extend(end.mux.open(Bytes::copy_from_slice(&[0; 4][..pick % 5]), *now)),
        1 | 2 => end.write(id, usize::from(input.u8()) * 16 + 1),
        3 => end.mux.finish(id),
        4 => end.mux.reset(id, Fault::new(Code::ConnectionReset, "as asked")),
        5 => {
            end.mux.release(id);
            end.released.push(id);
        }
        6 | 7 if honest.as_ref().is_none_or(|honest| **honest) => end.read(id, pick % 8 + 1, *now),
        8 => drop(end.wire.take_from(&mut end.mux, pick * 64 + 1)),
        9 | 10 => {
            let most = usize::from(input.u8()) * 8 + 1;
            deliver(ends, here, most, *now)?;
            ends[1 - here].events(pick == 255);
        }
        11 => end.mux.send_datagram(Bytes::from(vec![0; pick])),
        12 => drop(end.mux.send_control(&Wake { roles: vec![Role::Node], ids: Vec::new() }.into())),
        13 => {
            *now += Duration::from_millis(40 * pick as u64);
            end.mux.handle_timeout(*now)?;
        }
        14 => {
            if let Some(honest) = &mut honest {
                **honest = false;
                end.wire.bytes.extend(input.take(pick));
            }
        }
        15 if pick == 0 => {
            let fault = Fault::new(Code::Draining, "");
            end.mux.go_away(&GoAway { fault, return_after_ms: 0, alternatives: Vec::new() });
        }
        _ => {}
    }
    Ok(())
}

/// A session that loses its lane up to three times. The first byte: whether the last RESUME lies, and to which end.
/// Before each loss a byte that says how many operations follow, as in `mux_calls`. Two honest ends go on without a
/// fault, and every byte arrives; a lie is refused or changes nothing that memory depends on.
pub fn mux_resume(data: &[u8]) {
    let mut input = Input(data);
    let flags = input.u8();
    let (lies, victim) = (flags & 1 != 0, usize::from(flags >> 1 & 1));
    let losses = flags >> 2 & 3;
    let mut now = Duration::ZERO;
    let mut ends = [End::new(Side::Dialler, true), End::new(Side::Acceptor, true)];
    for loss in 0..=losses {
        for _ in 0..input.u8() % 64 {
            if let Err(fault) = step(&mut ends, &mut input, &mut now, None) {
                assert_eq!(fault.code, Code::Lost, "an honest peer is cut off: {fault}");
                return end_both(&mut ends, &fault);
            }
        }
        for end in &mut ends {
            end.wire.bytes.clear();
            end.mux.suspend(now);
        }
        let stands = ends.each_ref().map(|end| end.mux.resumption());
        if lies && loss == losses {
            let theirs = lie(stands[1 - victim].clone(), &mut input);
            return lied_to(&mut ends, victim, &theirs, &mut input, now);
        }
        for (here, end) in ends.iter_mut().enumerate() {
            let resumed = end.mux.resume(&stands[1 - here], now);
            assert_eq!(resumed, Ok(()), "an honest peer is cut off");
            end.events(false);
        }
    }
    drain(&mut ends, now, true);
    end_both(&mut ends, &Fault::new(Code::Lost, "the input ended"));
}

/// What a peer may say instead of the truth.
fn lie(mut said: Resume, input: &mut Input<'_>) -> Resume {
    let number = |input: &mut Input<'_>| match input.u8() {
        small @ 0..=239 => u64::from(small) * 16,
        240 => u64::MAX,
        241 => u64::MAX - 1,
        242 => 1 << 63,
        _ => u64::from(input.u16()),
    };
    for _ in 0..input.u8() % 16 {
        let (what, pick) = (input.u8() % 9, usize::from(input.u8()));
        let count = said.streams.len().max(1);
        let stream = said.streams.get_mut(pick % count);
        match (what, stream) {
            (0, Some(stream)) => stream.expected = number(input),
            (1, Some(stream)) => stream.limit = number(input),
            (2, Some(stream)) => stream.finished ^= true,
            (3, Some(stream)) => stream.reset ^= true,
            (4, Some(stream)) => stream.answered ^= true,
            (5, Some(_)) => drop(said.streams.remove(pick % count)),
            (6, _) => said.streams.push(ResumeStream {
                stream: number(input) as u32,
                expected: number(input),
                limit: number(input),
                finished: pick & 1 != 0,
                reset: pick & 2 != 0,
                answered: pick & 4 != 0,
            }),
            (7, _) => said.highest_opened = number(input) as u32,
            (8, _) => said.highest_accepted = number(input) as u32,
            _ => {}
        }
    }
    said
}

/// The end that was lied to, and then gets the rest of the input as its peer's bytes.
fn lied_to(ends: &mut [End; 2], victim: usize, theirs: &Resume, input: &mut Input<'_>, now: Duration) {
    let mut result = ends[victim].mux.resume(theirs, now);
    let own: u64 = ends[victim].written.values().sum();
    while result.is_ok() && !input.0.is_empty() {
        let end = &mut ends[victim];
        end.wire.take_from(&mut end.mux, 4096);
        let length = usize::from(input.u8());
        result = end.mux.handle(Bytes::copy_from_slice(input.take(length)), now);
        end.events(false);
        // What the application gave to be sent is its own affair.
        assert!(end.mux.held() <= own + LIMITS.connection_window, "{} bytes held", end.mux.held());
        assert!(end.mux.open_streams() <= 2 * LIMITS.streams as usize);
    }
    let fault = result.err().unwrap_or_else(|| Fault::new(Code::Lost, "the input ended"));
    assert!(fault.text.len() <= 200);
    end_both(ends, &fault);
}

/// Carries up to `most` bytes that `from` has sent to the other end.
fn deliver(ends: &mut [End; 2], from: usize, most: usize, now: Duration) -> Result<(), Fault> {
    let wire = &mut ends[from].wire.bytes;
    let piece: Vec<u8> = wire.drain(..most.min(wire.len())).collect();
    if piece.is_empty() {
        return Ok(());
    }
    ends[1 - from].mux.handle(piece.into(), now)
}

/// Everybody reads and everything is carried until nothing moves: then every byte of every stream that was not reset
/// has arrived, and the ends of those that were finished.
fn drain(ends: &mut [End; 2], now: Duration, resent: bool) {
    for _ in 0..10_000 {
        let mut moved = 0;
        for here in 0..2 {
            let end = &mut ends[here];
            end.wire.take_from(&mut end.mux, 1 << 20);
            moved += end.wire.bytes.len();
            let carried = deliver(ends, here, usize::MAX, now);
            assert_eq!(carried, Ok(()), "an honest peer is cut off");
            ends[1 - here].events(false);
            for id in ends[1 - here].streams.clone() {
                ends[1 - here].read(id, usize::MAX, now);
            }
        }
        // Reading may have asked for a WINDOW although nothing was carried.
        if moved == 0 && ends.iter().all(|end| end.mux.is_flushed()) {
            break;
        }
    }
    for (here, there) in [(0, 1), (1, 0)] {
        for (id, written) in &ends[here].written {
            let whole =
                [here, there].iter().all(|e| ends[*e].streams.contains(id) && ends[*e].mux.reset_of(*id).is_none());
            // Whoever let go reads no more, but leaves nobody waiting for room.
            let (what, bytes) = match ends[there].released.contains(id) {
                true => ("sent", ends[here].wire.data.get(id)),
                false => ("arrived", ends[there].read.get(id)),
            };
            let bytes = bytes.copied().unwrap_or(0);
            // What a lane lost is sent again.
            let all = bytes == *written || (what == "sent" && resent && bytes > *written);
            assert!(!whole || all, "{bytes} of {written} bytes of {id:?} {what}");
        }
        let end = &ends[here];
        assert!(end.mux.is_flushed() && end.wire.bytes.is_empty(), "something is never sent: {:?}", end.mux);
    }
}

fn end_both(ends: &mut [End; 2], fault: &Fault) {
    for end in ends {
        while let Some(event) = end.mux.poll_event() {
            if let Event::Incoming(id, _) = event {
                end.streams.push(id);
            }
        }
        end.mux.end(fault);
        over(&mut end.mux, &end.streams);
    }
}
