//! The rules of the frame table, one by one.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::mux::GAIN;
use super::{Event, Mux, MuxConfig, Read, Room, Side};
use crate::fault::{Code, DropReason, Fault};
use crate::limits::{self, Timers};
use crate::wire::frame::{self, StreamId, kind};
use crate::wire::message::{Control, Limits, Wake};

const T0: Duration = Duration::ZERO;

fn pair_with(limits: Limits, retain: bool) -> (Mux, Mux) {
    let config = if retain {
        MuxConfig::session(limits, limits, Timers::default())
    } else {
        MuxConfig::link(limits, limits, Timers::default())
    };
    (Mux::new(Side::Dialler, config.clone(), T0), Mux::new(Side::Acceptor, config, T0))
}

fn pair() -> (Mux, Mux) {
    pair_with(Limits::default(), false)
}

fn wire(from: &mut Mux) -> Vec<u8> {
    let mut bytes = Vec::new();
    while from.transmit(usize::MAX, |parts| bytes.extend(parts.concat())) > 0 {}
    bytes
}

fn carry(from: &mut Mux, to: &mut Mux) -> Result<(), Fault> {
    let bytes = wire(from);
    to.handle(bytes.into(), T0)
}

fn settle(a: &mut Mux, b: &mut Mux) {
    for _ in 0..100 {
        let (x, y) = (wire(a), wire(b));
        if x.is_empty() && y.is_empty() {
            return;
        }
        b.handle(x.into(), T0).unwrap();
        a.handle(y.into(), T0).unwrap();
    }
    panic!("two idle multiplexers keep talking");
}

fn events(mux: &mut Mux) -> Vec<Event> {
    std::iter::from_fn(|| mux.poll_event()).collect()
}

fn open(a: &mut Mux, b: &mut Mux) -> StreamId {
    let id = a.open(Bytes::from_static(b"header"), T0).unwrap();
    carry(a, b).unwrap();
    assert!(events(b).contains(&Event::Incoming(id, Bytes::from_static(b"header"))));
    b.answer(id, Fault::new(Code::Ok, ""));
    settle(a, b);
    assert_eq!(a.answer_of(id).unwrap().code, Code::Ok);
    id
}

fn read_all(mux: &mut Mux, id: StreamId) -> (Vec<u8>, Read) {
    let mut bytes = Vec::new();
    loop {
        let mut out = VecDeque::new();
        let read = mux.read(id, 16, &mut out, T0);
        out.iter().for_each(|c| bytes.extend_from_slice(c));
        if read != Read::Data {
            return (bytes, read);
        }
    }
}

#[test]
fn a_stream_carries_bytes_both_ways_and_half_closes() {
    let (mut a, mut b) = pair();
    let id = open(&mut a, &mut b);
    a.write(id, Bytes::from_static(b"question"));
    a.finish(id);
    settle(&mut a, &mut b);
    assert_eq!(read_all(&mut b, id), (b"question".to_vec(), Read::Finished));
    b.write(id, Bytes::from_static(b"answer"));
    b.finish(id);
    settle(&mut a, &mut b);
    assert_eq!(read_all(&mut a, id), (b"answer".to_vec(), Read::Finished));
    a.release(id);
    b.release(id);
    settle(&mut a, &mut b);
    assert_eq!((a.open_streams(), b.open_streams()), (0, 0));
}

#[test]
fn nothing_is_kept_of_a_finished_stream_even_when_sent_bytes_are_retained() {
    let (mut a, mut b) = pair_with(Limits::default(), true);
    let id = open(&mut a, &mut b);
    a.write(id, Bytes::from(vec![7; 100_000]));
    a.finish(id);
    b.finish(id);
    settle(&mut a, &mut b);
    assert_eq!(a.held(), 0, "FINISH is acknowledged");
    assert_eq!(read_all(&mut b, id).0.len(), 100_000);
    a.release(id);
    b.release(id);
    settle(&mut a, &mut b);
    assert_eq!((a.open_streams(), b.open_streams(), a.held(), b.held()), (0, 0, 0, 0));
}

#[test]
fn a_slow_reader_stops_the_sender_at_the_window_and_memory_stays_bounded() {
    let (mut a, mut b) = pair();
    let id = open(&mut a, &mut b);
    let mut written = 0u64;
    for _ in 0..1000 {
        if a.room(id) == Room::Some {
            a.write(id, Bytes::from(vec![0; 64 * 1024]));
            written += 64 * 1024;
        }
        settle(&mut a, &mut b);
    }
    assert!(b.held() <= limits::INITIAL_STREAM_WINDOW, "{}", b.held());
    assert!(written <= limits::INITIAL_STREAM_WINDOW + 512 * 1024 + 64 * 1024, "{written}");
    assert_eq!(a.room(id), Room::Full);
    let mut out = VecDeque::new();
    while b.read(id, 4, &mut out, T0) == Read::Data {}
    settle(&mut a, &mut b);
    assert!(events(&mut a).contains(&Event::Writable(id)));
}

#[test]
fn a_stream_that_is_not_read_leaves_room_for_the_others() {
    let (mut a, mut b) = pair();
    let slow = open(&mut a, &mut b);
    let good = open(&mut a, &mut b);
    a.write(slow, Bytes::from(vec![0; 1024 * 1024]));
    a.write(good, Bytes::from_static(b"hello"));
    settle(&mut a, &mut b);
    assert_eq!(read_all(&mut b, good).0, b"hello");
}

/// Whatever is left of the connection's window is enough for those who read: here an eighth, then 64 KiB.
#[test]
fn streams_that_are_not_read_leave_the_rest_of_the_window_to_the_others() {
    let (mut a, mut b) = pair();
    let most = limits::CONNECTION_WINDOW - GAIN;
    for stuck in [limits::CONNECTION_WINDOW * 7 / 8, most] {
        while b.held() < stuck {
            let id = open(&mut a, &mut b);
            let part = (stuck - b.held()).min(limits::INITIAL_STREAM_WINDOW);
            a.write(id, Bytes::from(vec![0; usize::try_from(part).unwrap()]));
            settle(&mut a, &mut b);
        }
        let live = open(&mut a, &mut b);
        let mut arrived = 0;
        for _ in 0..1024 {
            a.write(live, Bytes::from(vec![1; 64 * 1024]));
            settle(&mut a, &mut b);
            arrived += read_all(&mut b, live).0.len();
        }
        settle(&mut a, &mut b);
        arrived += read_all(&mut b, live).0.len();
        assert_eq!(arrived, 64 << 20, "beside {stuck} bytes");
        a.reset(live, Fault::new(Code::Ok, ""));
        settle(&mut a, &mut b);
    }
}

/// Streams that are stuck fill a queue that has an end, and leave room in it to many that are not.
#[test]
fn streams_that_are_stuck_queue_no_more_than_the_connection_may_and_leave_room_for_the_next() {
    for retain in [false, true] {
        let (mut a, mut b) = pair_with(Limits::default(), retain);
        let piece = Bytes::from(vec![0; 16 * 1024]);
        let fill = |a: &mut Mux, id| {
            while a.room(id) == Room::Some {
                a.write(id, piece.clone());
            }
        };
        let mut ids = Vec::new();
        for n in 0..200 {
            let id = open(&mut a, &mut b);
            assert_eq!(a.room(id), Room::Some, "stream {n} finds room");
            // The wire takes what the peer allows; the peer reads nothing.
            for _ in 0..10 {
                fill(&mut a, id);
                carry(&mut a, &mut b).unwrap();
            }
            ids.push(id);
        }
        assert!(a.unsent() > limits::CONNECTION_QUEUE / 2, "long queues have their half: {}", a.unsent());
        // Many times as many: now the queue is full, and not a piece more.
        for _ in 0..2000 {
            let id = open(&mut a, &mut b);
            fill(&mut a, id);
            ids.push(id);
        }
        let full = limits::CONNECTION_QUEUE..limits::CONNECTION_QUEUE + piece.len() as u64;
        assert!(full.contains(&a.unsent()), "{}", a.unsent());
        assert_eq!(a.room(ids[2199]), Room::Full);
        events(&mut a);

        // Room that one makes is offered to those who wait for it, once.
        a.reset(ids[0], Fault::new(Code::Limited, "stuck"));
        settle(&mut a, &mut b);
        let writable = |e: &Event| matches!(e, Event::Writable(_));
        assert!(events(&mut a).contains(&Event::Writable(ids[2199])));
        assert_eq!(a.room(ids[2199]), Room::Some);
        settle(&mut a, &mut b);
        assert!(!events(&mut a).iter().any(writable));
        ids.iter().for_each(|id| a.release(*id));
        settle(&mut a, &mut b);
        assert_eq!((a.held(), a.unsent()), (0, 0));
    }
}

#[test]
fn control_goes_before_data() {
    let (mut a, mut b) = pair();
    let id = open(&mut a, &mut b);
    a.write(id, Bytes::from(vec![0; 200_000]));
    a.send_control(&Control::Wake(Wake { roles: vec![], ids: vec![] })).unwrap();
    let mut kinds = Vec::new();
    a.transmit(usize::MAX, |parts| kinds.push(parts[0][0]));
    assert_eq!(kinds[0], kind::CONTROL);
    assert!(kinds.iter().filter(|k| **k == kind::DATA).count() > 10);
}

#[test]
fn the_control_queue_is_bounded() {
    let (mut a, _) = pair();
    let message = Control::Wake(Wake { roles: vec![], ids: vec![] });
    let sent = (0..100_000).take_while(|_| a.send_control(&message).is_ok()).count();
    assert!(sent > 100 && sent * 10 <= limits::MAX_CONTROL_QUEUE);
    assert!(events(&mut a).contains(&Event::Dropped(DropReason::ControlQueueFull)));
}

#[test]
fn datagrams_drop_the_oldest() {
    let (mut a, mut b) = pair();
    for n in 0..limits::MAX_DATAGRAM_QUEUE + 3 {
        a.send_datagram(Bytes::from(n.to_be_bytes().to_vec()));
    }
    a.send_datagram(Bytes::from(vec![0; limits::MAX_DATAGRAM + 1]));
    let mut dropped = events(&mut a);
    dropped.retain(|e| matches!(e, Event::Dropped(_)));
    assert_eq!(dropped.len(), 4);
    assert_eq!(dropped[3], Event::Dropped(DropReason::DatagramTooLarge));
    settle(&mut a, &mut b);
    let first = events(&mut b).into_iter().find_map(|e| match e {
        Event::Datagram(d) => Some(d),
        _ => None,
    });
    assert_eq!(first.unwrap(), Bytes::from(3usize.to_be_bytes().to_vec()));
}

#[test]
fn a_refused_stream_tells_why_and_is_forgotten() {
    let (mut a, mut b) = pair();
    let id = a.open(Bytes::new(), T0).unwrap();
    carry(&mut a, &mut b).unwrap();
    b.answer(id, Fault::new(Code::DeniedByPolicy, "no rule allows it"));
    settle(&mut a, &mut b);
    assert_eq!(a.answer_of(id).unwrap().code, Code::DeniedByPolicy);
    assert!(matches!(a.room(id), Room::Ended(f) if f.code == Code::DeniedByPolicy));
    a.release(id);
    settle(&mut a, &mut b);
    assert_eq!((a.open_streams(), b.open_streams()), (0, 0));
}

#[test]
fn a_reset_reaches_the_other_end_and_frees_what_was_waiting() {
    let (mut a, mut b) = pair();
    let id = open(&mut a, &mut b);
    a.write(id, Bytes::from(vec![1; 300_000]));
    carry(&mut a, &mut b).unwrap();
    a.reset(id, Fault::new(Code::ConnectionReset, "reset"));
    settle(&mut a, &mut b);
    assert!(matches!(read_all(&mut b, id).1, Read::Reset(f) if f.code == Code::ConnectionReset));
    assert_eq!((a.held(), b.held()), (0, 0));
    // The credit of bytes that nobody read comes back: the connection can still move more than its window.
    for _ in 0..300 {
        let id = open(&mut a, &mut b);
        a.write(id, Bytes::from(vec![1; 250_000]));
        settle(&mut a, &mut b);
        b.reset(id, Fault::new(Code::Ok, ""));
        settle(&mut a, &mut b);
        a.release(id);
        b.release(id);
    }
    settle(&mut a, &mut b);
    assert!(b.open_streams() <= 1);
}

#[test]
fn streams_beyond_the_limit_are_refused_and_an_open_flood_ends_the_connection() {
    let (_, mut b) = pair();
    let mut bytes = Vec::new();
    for n in 1..=limits::MAX_STREAMS + 1024 {
        bytes.extend_from_slice(&frame::raw(kind::OPEN, 2 * n, b""));
    }
    b.handle(bytes.into(), T0).unwrap();
    assert_eq!(b.open_streams(), limits::MAX_STREAMS as usize);
    let next = frame::raw(kind::OPEN, 2 * (limits::MAX_STREAMS + 1025), b"");
    assert_eq!(b.handle(next, T0).unwrap_err().code, Code::Limited);
    let small = Limits { streams: 1, ..Limits::default() };
    let config = MuxConfig::link(Limits::default(), small, Timers::default());
    let mut a = Mux::new(Side::Dialler, config, T0);
    a.open(Bytes::new(), T0).unwrap();
    assert_eq!(a.open(Bytes::new(), T0).unwrap_err().code, Code::Limited);
}

#[test]
fn what_breaks_the_protocol_ends_the_connection() {
    let stream = StreamId(2);
    let data = |offset, bytes: &[u8]| {
        let mut f = frame::data_prefix(stream, offset, bytes.len()).to_vec();
        f.extend_from_slice(bytes);
        Bytes::from(f)
    };
    let finish = |at: u64| frame::raw(kind::FINISH, 2, &at.to_be_bytes());
    let cases: Vec<(&str, Vec<Bytes>)> = vec![
        ("gap", vec![data(1, b"x")]),
        ("finish beyond the data", vec![finish(1)]),
        ("data after finish", vec![finish(0), data(0, b"x")]),
        ("offset overflow", vec![data(u64::MAX, b"xx")]),
        ("acknowledges the unsent", vec![frame::window(Some(stream), 1, 9)]),
        ("acknowledges the unsent on the link", vec![frame::window(None, 1, 9)]),
        ("answer to their own stream", vec![frame::cbor(kind::ANSWER, 2, &Fault::new(Code::Ok, ""))]),
        ("a stream never opened", vec![frame::window(Some(StreamId(4)), 0, 9)]),
        ("our stream, never opened", vec![frame::window(Some(StreamId(1)), 0, 9)]),
        ("an id twice", vec![frame::raw(kind::OPEN, 2, b"")]),
        ("an id with a gap", vec![frame::raw(kind::OPEN, 8, b"")]),
        ("an id of our side", vec![frame::raw(kind::OPEN, 1, b"")]),
        ("a header too long", vec![frame::raw(kind::OPEN, 4, &[0; limits::MAX_OPEN_HEADER + 1])]),
        ("hand-shake again", vec![frame::raw(kind::HELLO, 0, b"")]),
        ("beyond the window", (0..17).map(|n| data(n * 16_000, &[0; 16_000])).collect()),
    ];
    for (name, frames) in cases {
        let (mut a, mut b) = pair();
        open(&mut a, &mut b);
        let result = frames.into_iter().try_for_each(|f| b.handle(f, T0));
        assert_eq!(result.unwrap_err().code, Code::Protocol, "{name}");
    }
}

#[test]
fn frames_of_ended_streams_are_noise() {
    let (mut a, mut b) = pair();
    let id = open(&mut a, &mut b);
    b.reset(id, Fault::new(Code::Ok, ""));
    b.release(id);
    a.write(id, Bytes::from_static(b"on its way"));
    let late = wire(&mut a);
    wire(&mut b);
    b.handle(late.into(), T0).unwrap();
    assert!(events(&mut b).contains(&Event::Dropped(DropReason::StreamEnded)));
}

#[test]
fn replayed_data_is_dropped_by_its_offset() {
    let (mut a, mut b) = pair();
    let id = open(&mut a, &mut b);
    a.write(id, Bytes::from_static(b"abcdef"));
    let bytes = wire(&mut a);
    b.handle(bytes.clone().into(), T0).unwrap();
    b.handle(bytes.into(), T0).unwrap();
    assert_eq!(read_all(&mut b, id).0, b"abcdef");
}

#[test]
fn a_silent_peer_is_dead_after_two_misses_and_an_answer_gives_the_round_trip_time() {
    let timers = Timers::default();
    let (mut a, mut b) = pair();
    a.handle_timeout(T0).unwrap();
    let ping = wire(&mut a);
    b.handle(ping.into(), T0).unwrap();
    let pong = wire(&mut b);
    a.handle(pong.into(), Duration::from_millis(30)).unwrap();
    assert_eq!(a.rtt(), Some(Duration::from_millis(30)));
    let due = a.poll_timeout();
    assert_eq!(due, timers.ping_interval);
    a.handle_timeout(due).unwrap();
    let dead = a.poll_timeout();
    assert_eq!(dead, due + 2 * timers.ping_timeout);
    a.handle_timeout(dead - Duration::from_millis(1)).unwrap();
    assert_eq!(a.handle_timeout(dead).unwrap_err().code, Code::Lost);
}

/// A sender whose peer grants everything and acknowledges nothing: how much it keeps.
fn kept_by_a_sender(cap: u64, budget: Option<std::sync::Arc<super::RetainBudget>>) -> (Mux, u64) {
    let generous = Limits { stream_window: 1 << 30, connection_window: 1 << 30, ..Limits::default() };
    let config = MuxConfig { retain: Some(cap), budget, ..MuxConfig::session(generous, generous, Timers::default()) };
    let mut sender = Mux::new(Side::Dialler, config, T0);
    for _ in 0..3 {
        let id = sender.open(Bytes::from_static(b"header"), T0).unwrap();
        while sender.room(id) == Room::Some {
            sender.write(id, vec![7; 64 * 1024].into());
            wire(&mut sender);
            assert!(sender.retained() <= cap, "{} kept, more than {cap}", sender.retained());
        }
    }
    let kept = sender.retained();
    (sender, kept)
}

#[test]
fn unacknowledged_bytes_fill_the_senders_own_cap_and_not_a_byte_more_whatever_the_peer_grants() {
    let cap = 1_000_000;
    assert_eq!(kept_by_a_sender(cap, None).1, cap);
    // A process that has spent its budget leaves each further session its floor.
    let budget = super::RetainBudget::new(cap);
    let (first, kept) = kept_by_a_sender(cap, Some(budget.clone()));
    assert_eq!((kept, budget.used()), (cap, cap));
    let (second, kept) = kept_by_a_sender(cap, Some(budget.clone()));
    assert_eq!((kept, budget.used()), (256 * 1024, cap + 256 * 1024));
    drop((first, second));
    assert_eq!(budget.used(), 0, "what was kept is given back");
}

#[test]
fn many_streams_that_acknowledge_nothing_yet_do_not_hold_up_the_session() {
    let cap = 1_000_000;
    let config =
        MuxConfig { retain: Some(cap), ..MuxConfig::session(Limits::default(), Limits::default(), Timers::default()) };
    let (mut a, mut b) = (Mux::new(Side::Dialler, config.clone(), T0), Mux::new(Side::Acceptor, config, T0));
    // Each is read to the end and stays open: less than half a window, so that no WINDOW is due.
    for n in 0..50 {
        let id = open(&mut a, &mut b);
        a.write(id, vec![7; 100_000].into());
        let mut got = 0;
        for _ in 0..4 {
            a.handle_timeout(T0).unwrap();
            settle(&mut a, &mut b);
            got += read_all(&mut b, id).0.len();
        }
        assert_eq!(got, 100_000, "stream {n} stands still, {} bytes are kept", a.retained());
    }
}

#[test]
fn a_probe_finds_a_dead_peer_sooner_and_leaves_a_live_one() {
    let timers = Timers::default();
    let (mut a, mut b) = pair();
    settle(&mut a, &mut b);
    let now = Duration::from_secs(1);
    a.probe(now);
    a.handle_timeout(now).unwrap();
    assert!(!wire(&mut a).is_empty());
    assert_eq!(a.poll_timeout(), now + timers.probe);
    a.handle_timeout(now + timers.probe / 2).unwrap();
    a.probe(now + timers.probe / 2);
    assert_eq!(a.poll_timeout(), now + timers.probe, "asking again gives a dead peer no more time");
    assert_eq!(a.handle_timeout(now + timers.probe).unwrap_err().code, Code::Lost);

    let (mut a, mut b) = pair();
    a.handle_timeout(T0).unwrap();
    let ping = wire(&mut a);
    a.probe(now);
    assert_eq!(a.poll_timeout(), now + timers.probe, "the ping under way has less time too");
    b.handle(ping.into(), now).unwrap();
    a.handle(wire(&mut b).into(), now).unwrap();
    a.handle_timeout(now + timers.probe).unwrap();
}

#[test]
fn a_ping_flood_costs_one_pong() {
    let (_, mut b) = pair();
    let flood: Vec<u8> = (0..10_000u64).flat_map(|n| frame::raw(kind::PING, 0, &n.to_be_bytes()).to_vec()).collect();
    b.handle(flood.into(), T0).unwrap();
    let answer = wire(&mut b);
    assert_eq!(answer.len(), frame::HEADER + 8);
    assert_eq!(answer[frame::HEADER..], 9_999u64.to_be_bytes());
}

/// A piece that waits keeps the whole buffer that it arrived in: a hostile peer would have us keep a buffer a byte.
#[test]
fn small_pieces_that_wait_for_their_reader_are_put_together() {
    let (mut a, mut b) = pair();
    let id = open(&mut a, &mut b);
    for offset in 0..100_000u64 {
        let mut one = frame::data_prefix(id, offset, 1).to_vec();
        one.push(offset as u8);
        b.handle(one.into(), T0).unwrap();
    }
    let mut out = VecDeque::new();
    while b.read(id, 16, &mut out, T0) == Read::Data {}
    assert!(out.len() <= 8, "{} pieces", out.len());
    assert!(out.iter().flatten().copied().eq((0..100_000u64).map(|n| n as u8)));
}

#[test]
fn nothing_small_that_waits_keeps_the_buffer_it_arrived_in() {
    let (mut a, mut b) = pair();
    let id = open(&mut a, &mut b);
    let mut one = frame::data_prefix(id, 0, 1).to_vec();
    one.push(7);
    let next = frame::raw(kind::OPEN, id.0 + 2, b"header");
    for frame in [Bytes::from(one), next, frame::raw(kind::DATAGRAM, 0, b"datagram")] {
        let noise = (0..1000u64).flat_map(|n| frame::raw(kind::PING, 0, &n.to_be_bytes()).to_vec());
        let buffer = Bytes::from([frame.to_vec(), noise.collect()].concat());
        b.handle(buffer.clone(), T0).unwrap();
        assert!(buffer.is_unique(), "kind {:#04x}", frame[0]);
    }
    assert_eq!(read_all(&mut b, id).0, [7]);
}

#[test]
fn windows_grow_for_a_reader_that_keeps_up() {
    let (mut a, mut b) = pair();
    let id = open(&mut a, &mut b);
    let mut largest = 0;
    for _ in 0..400 {
        while a.room(id) == Room::Some {
            a.write(id, Bytes::from(vec![0; 256 * 1024]));
        }
        carry(&mut a, &mut b).unwrap();
        largest = largest.max(b.held());
        read_all(&mut b, id);
        carry(&mut b, &mut a).unwrap();
    }
    assert!(largest > limits::INITIAL_STREAM_WINDOW && largest <= limits::MAX_STREAM_WINDOW, "{largest}");
}

#[test]
fn the_end_of_the_connection_reaches_every_stream() {
    let (mut a, mut b) = pair();
    let id = open(&mut a, &mut b);
    a.write(id, Bytes::from_static(b"x"));
    a.end(&Fault::new(Code::Lost, "cable cut"));
    assert!(matches!(a.room(id), Room::Ended(f) if f.text == "cable cut"));
    assert!(a.open(Bytes::new(), T0).is_err());
    assert!(wire(&mut a).is_empty());
    a.release(id);
    assert_eq!(a.open_streams(), 0);
}

#[test]
fn what_was_finished_still_arrives_after_the_application_let_go() {
    for retain in [false, true] {
        let (mut a, mut b) = pair_with(Limits::default(), retain);
        let id = open(&mut a, &mut b);
        a.write(id, Bytes::from(vec![3; 400_000]));
        a.finish(id);
        a.release(id);
        let mut got = 0;
        let end = loop {
            settle(&mut a, &mut b);
            let (bytes, read) = read_all(&mut b, id);
            got += bytes.len();
            if bytes.is_empty() {
                break read;
            }
        };
        assert_eq!((got, end), (400_000, Read::Finished));
        // Whoever goes on sending to it is told.
        b.write(id, Bytes::from_static(b"still there?"));
        settle(&mut a, &mut b);
        assert!(matches!(b.room(id), Room::Ended(_)));
        b.release(id);
        settle(&mut a, &mut b);
        assert_eq!((a.open_streams(), b.open_streams(), a.held(), b.held()), (0, 0, 0, 0));
    }
}
