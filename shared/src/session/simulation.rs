//! Two multiplexers over wires that split, delay and, for sessions, are cut at any moment, against a model of what was
//! promised: every byte that was written arrives once and in order, or the stream says why not. The same seed gives
//! the same run, byte for byte.
//!
//! One seed: `HEDGEROW_SEED=42 cargo test -p hedgerow-shared simulation`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::{Event, Lane, Mux, MuxConfig, Read, Room, Side};
use crate::fault::{Code, Fault};
use crate::limits::Timers;
use crate::wire::frame::StreamId;
use crate::wire::message::Limits;

/// SplitMix64: small, seeded, the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What one end has promised and seen on a stream.
#[derive(Debug, Default)]
struct Model {
    written: u64,
    read: u64,
    answered: bool,
    finished: bool,
    saw_finish: bool,
    reset_by_us: bool,
    ended: bool,
}

struct End {
    mux: Mux,
    models: BTreeMap<StreamId, Model>,
    /// Bytes on their way to the other end by each lane, with the time they arrive.
    wires: Vec<VecDeque<(Duration, Bytes)>>,
}

/// The byte every stream carries at an offset: a receiver can check it without the sender.
fn byte_at(side: usize, id: StreamId, offset: u64) -> u8 {
    (offset.wrapping_mul(31).wrapping_add(u64::from(id.0) * 7 + side as u64 * 101) >> 3) as u8
}

fn run(seed: u64) -> String {
    let mut dice = Dice(seed);
    let limits = Limits {
        streams: 20,
        stream_window: 1 << (10 + dice.below(8)),
        connection_window: 1 << (14 + dice.below(6)),
        datagram: 1200,
    };
    let is_session = dice.below(3) > 0;
    let config = if is_session {
        let bulk = 1 + dice.below(100_000);
        // So small that it is met: a slow peer must not make a sender keep more than it wants to.
        let retain = Some((1 << 15) + dice.below(1 << 20));
        MuxConfig { bulk, retain, ..MuxConfig::session(limits, limits, Timers::default()) }
    } else {
        MuxConfig::link(limits, limits, Timers::default())
    };
    let cuts = if is_session { dice.below(20) } else { 0 };
    let mut now = Duration::ZERO;
    let end = |side| End {
        mux: Mux::new(side, config.clone(), Duration::ZERO),
        models: BTreeMap::new(),
        wires: vec![VecDeque::new()],
    };
    let mut ends = [end(Side::Dialler), end(Side::Acceptor)];
    let mut trace = String::new();
    let (steps, mut opened) = (600, 0);
    for step in 0..steps + 4000 {
        let calm = step >= steps;
        now += Duration::from_micros(dice.below(3000));
        let side = dice.below(2) as usize;
        if !calm {
            act(&mut ends, side, &mut dice, now, &mut opened);
        } else {
            wind_down(&mut ends[side], now);
        }
        if is_session && dice.below(600) < cuts {
            trace.push_str("cut\n");
            cut(&mut ends, &mut dice, now, calm, &mut opened);
        }
        if is_session && dice.below(100) == 0 {
            for end in &mut ends {
                if end.mux.attach(now).is_some() {
                    end.wires.push(VecDeque::new());
                }
            }
        }
        for s in 0..2 {
            read_some(&mut ends, s, &mut dice, now, calm);
            transmit(&mut ends[s], &mut dice, now);
            deliver(&mut ends, s, now, &mut trace);
        }
        if calm && ends.iter().all(|e| e.mux.open_streams() == 0 && e.wires.iter().all(VecDeque::is_empty)) {
            break;
        }
    }
    for (s, end) in ends.iter().enumerate() {
        assert_eq!(end.mux.open_streams(), 0, "seed {seed}: streams left at end {s}: {:?}", end.models);
        assert_eq!(end.mux.held(), 0, "seed {seed}: bytes left at end {s}");
        assert_eq!(end.mux.retained(), 0, "seed {seed}: end {s} counts bytes that it does not keep");
        for (id, model) in &end.models {
            let Some(other) = ends[1 - s].models.get(id) else {
                // Refused: the other end still held as many streams as it takes.
                assert!(model.read == 0 && !model.saw_finish, "seed {seed}: {id:?}");
                continue;
            };
            let reset = model.reset_by_us || other.reset_by_us;
            let is_ours = id.0 % 2 == s as u32;
            assert!(reset || !is_ours || model.answered, "seed {seed}: {id:?} was never answered");
            assert!(model.read <= other.written, "seed {seed}: {id:?} read more than was written");
            if !reset && other.finished {
                assert_eq!(model.read, other.written, "seed {seed}: {id:?} lost bytes");
                assert!(model.saw_finish, "seed {seed}: {id:?} never saw the end");
            }
        }
    }
    trace
}

fn act(ends: &mut [End; 2], side: usize, dice: &mut Dice, now: Duration, opened: &mut u32) {
    let end = &mut ends[side];
    let ids: Vec<StreamId> = end.models.iter().filter(|(_, m)| !m.ended).map(|(id, _)| *id).collect();
    let pick = |dice: &mut Dice| ids.get(dice.below(ids.len().max(1) as u64) as usize).copied();
    match dice.below(20) {
        0..=2 if *opened < 60 => {
            if let Ok(id) = end.mux.open(Bytes::from_static(b"h"), now) {
                *opened += 1;
                end.models.insert(id, Model::default());
            }
        }
        3 => {
            if let Some(id) = pick(dice) {
                end.mux.finish(id);
                end.models.get_mut(&id).unwrap().finished = true;
            }
        }
        4 if dice.below(4) == 0 => {
            if let Some(id) = pick(dice) {
                end.mux.reset(id, Fault::new(Code::ConnectionReset, ""));
                end.models.get_mut(&id).unwrap().reset_by_us = true;
            }
        }
        _ => {
            let Some(id) = pick(dice) else { return };
            let model = end.models.get_mut(&id).unwrap();
            if !model.finished && end.mux.room(id) == Room::Some {
                let length = 1 + dice.below(40_000);
                let bytes: Vec<u8> = (model.written..model.written + length).map(|o| byte_at(side, id, o)).collect();
                model.written += length;
                end.mux.write(id, bytes.into());
            }
        }
    }
}

fn wind_down(end: &mut End, _now: Duration) {
    for (id, model) in &mut end.models {
        if !model.finished {
            model.finished = true;
            end.mux.finish(*id);
        }
    }
}

fn read_some(ends: &mut [End; 2], side: usize, dice: &mut Dice, now: Duration, calm: bool) {
    let end = &mut ends[side];
    for (id, model) in &mut end.models {
        if model.ended || (!calm && dice.below(3) == 0) {
            continue;
        }
        let mut out = VecDeque::new();
        let read = end.mux.read(*id, 1 + dice.below(4) as usize, &mut out, now);
        for byte in out.iter().flatten() {
            assert_eq!(*byte, byte_at(1 - side, *id, model.read), "{id:?} at {}", model.read);
            model.read += 1;
        }
        match read {
            Read::Finished if model.finished => {
                model.saw_finish = true;
                model.ended = true;
                end.mux.release(*id);
            }
            Read::Reset(_) => {
                model.ended = true;
                end.mux.release(*id);
            }
            Read::Data | Read::Blocked | Read::Finished => {}
        }
    }
}

/// Both lanes are gone with everything on them; after a while in which both applications go on, the session resumes.
fn cut(ends: &mut [End; 2], dice: &mut Dice, now: Duration, calm: bool, opened: &mut u32) {
    for end in ends.iter_mut() {
        end.wires = vec![VecDeque::new()];
        end.mux.suspend(now);
    }
    // Some say less than they have, and must not mind what they get twice.
    let mut told = |end: &End| {
        if dice.below(3) == 0 { end.mux.modest_resumption() } else { end.mux.resumption() }
    };
    let told = [told(&ends[0]), told(&ends[1])];
    for _ in 0..dice.below(20) {
        let side = dice.below(2) as usize;
        if !calm {
            act(ends, side, dice, now, opened);
        }
        read_some(ends, side, dice, now, calm);
    }
    for (end, theirs) in ends.iter_mut().zip(told.iter().rev()) {
        // As it travels: in frames.
        let mut whole = crate::wire::message::Resume { streams: vec![], ..theirs.clone() };
        let mut decoder = crate::wire::frame::Decoder::default();
        for frame in theirs.clone().into_frames() {
            let read = |frame| {
                let crate::wire::frame::Frame::Resume(body) = frame else { panic!("{frame:?}") };
                let part: crate::wire::message::Resume = minicbor::decode(&body).unwrap();
                whole.streams.extend(part.streams);
                Ok::<_, crate::wire::frame::FrameError>(())
            };
            decoder.feed(frame, read).unwrap();
        }
        assert_eq!(&whole, theirs);
        end.mux.resume(&whole, now).expect("an honest peer resumes where it stands");
    }
}

fn transmit(end: &mut End, dice: &mut Dice, now: Duration) {
    for lane in 0..end.wires.len() {
        let mut bytes = Vec::new();
        let budget = 1 + dice.below(60_000) as usize;
        end.mux.transmit_on(lane as Lane, budget, |parts| bytes.extend(parts.concat()));
        let mut bytes = Bytes::from(bytes);
        let wire = &mut end.wires[lane];
        let mut at = wire.back().map_or(now, |(t, _)| *t);
        while !bytes.is_empty() {
            at += Duration::from_micros(dice.below(500));
            let cut = (1 + dice.below(9000) as usize).min(bytes.len());
            wire.push_back((at, bytes.split_to(cut)));
        }
    }
}

fn deliver(ends: &mut [End; 2], from: usize, now: Duration, trace: &mut String) {
    for lane in 0..ends[from].wires.len() {
        deliver_lane(ends, from, lane, now, trace);
    }
    let end = &mut ends[from];
    if end.mux.poll_timeout() <= now {
        end.mux.handle_timeout(now).expect("nobody is silent for long");
    }
    while let Some(event) = end.mux.poll_event() {
        trace.push_str(&format!("{now:?} {from} {event:?}\n"));
        note(end, event);
    }
}

fn deliver_lane(ends: &mut [End; 2], from: usize, lane: usize, now: Duration, trace: &mut String) {
    while ends[from].wires[lane].front().is_some_and(|(at, _)| *at <= now) {
        let (_, bytes) = ends[from].wires[lane].pop_front().unwrap();
        let to = &mut ends[1 - from];
        to.mux.handle_on(lane as Lane, bytes, now).expect("an honest peer breaks no rule");
        while let Some(event) = to.mux.poll_event() {
            trace.push_str(&format!("{now:?} {} {event:?}\n", 1 - from));
            note(to, event);
        }
    }
}

fn note(end: &mut End, event: Event) {
    match event {
        Event::Incoming(id, _) => {
            end.mux.answer(id, Fault::new(Code::Ok, ""));
            end.models.insert(id, Model::default());
        }
        Event::Answered(id) => end.models.entry(id).or_default().answered = true,
        _ => {}
    }
}

#[test]
fn n09_what_was_promised_arrives_once_and_in_order_or_the_stream_says_why_not() {
    let seeds: Vec<u64> = match std::env::var("HEDGEROW_SEED") {
        Ok(seed) => vec![seed.parse().expect("HEDGEROW_SEED is a number")],
        Err(_) => (0..300).collect(),
    };
    for seed in seeds {
        let result = std::panic::catch_unwind(|| run(seed));
        assert!(result.is_ok(), "replay with HEDGEROW_SEED={seed}");
    }
}

#[test]
fn n09_the_same_seed_gives_the_same_run() {
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
