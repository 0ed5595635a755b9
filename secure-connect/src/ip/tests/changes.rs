//! What is written: checksums, the MSS clamp, answers, fragments.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::super::build::{V4, V6, checksums_hold, fragment_header, icmp, ip, tcp, udp};
use super::super::*;
use super::nearly;

const NODE_V4: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 0, 0, 1);
const SYN: u8 = Summary::SYN;

fn naive(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn syn(four: bool, options: &[u8]) -> Vec<u8> {
    let payload = tcp(4000, 443, SYN, options, b"");
    match four {
        true => V4 { protocol: protocol::TCP, payload, ..V4::default() }.bytes(),
        false => V6 { next: protocol::TCP, payload, ..V6::default() }.bytes(),
    }
}

/// The MSS options of a packet, by a reader that knows nothing of ours.
fn mss_of(packet: &[u8]) -> Vec<u16> {
    let at = parse(packet).unwrap().transport;
    let mut options = &packet[at + 20..at + usize::from(packet[at + 12] >> 4) * 4];
    let mut found = Vec::new();
    while options.len() >= 2 && options[0] != 0 {
        if options[0] == 1 {
            options = &options[1..];
            continue;
        }
        let length = usize::from(options[1]);
        if length < 2 || length > options.len() {
            break;
        }
        if options[0] == 2 && length == 4 {
            found.push(u16::from_be_bytes([options[2], options[3]]));
        }
        options = &options[length..];
    }
    found
}

#[test]
fn checksums_of_known_packets() {
    // RFC 1071 section 3, and an IPv4 header from Wikipedia.
    assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    let header = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
    assert_eq!(checksum(&header), 0xb861);
    assert_eq!(checksum(&[]), 0xffff);
    // RFC 1624 section 4: where the earlier formula went wrong.
    assert_eq!(updated(0xdd2f, 0x5555, 0x3285), 0);
}

#[test]
fn the_segment_size_of_both_versions_is_lowered_and_never_raised() {
    for (four, most) in [(true, 1360 - 40), (false, 1360 - 60)] {
        let mut packet = syn(four, &[2, 4, 0x05, 0xb4]);
        assert!(clamp_mss(&mut packet, 1360) && checksums_hold(&packet));
        assert_eq!(mss_of(&packet), [most]);
        let was = packet.clone();
        assert!(!clamp_mss(&mut packet, 1360) && !clamp_mss(&mut packet, 9000));
        assert_eq!(packet, was);
        let mut without = syn(four, &[1, 1, 1, 1]);
        assert!(!clamp_mss(&mut without, 1360) && without == syn(four, &[1, 1, 1, 1]), "nothing is added");
    }
    let established = tcp(1, 2, Summary::ACK, &[2, 4, 0xff, 0xff], b"");
    let mut packet = V4 { protocol: protocol::TCP, payload: established, ..V4::default() }.bytes();
    assert!(!clamp_mss(&mut packet, 1360));
}

#[test]
fn a24_odd_options_are_neither_followed_beyond_the_header_nor_missed() {
    for (options, expected) in [
        (&[1, 2, 4, 0xff, 0xff, 0, 0, 0][..], &[1240][..]),
        (&[1, 1, 1, 2, 4, 0xff, 0xff, 1], &[1240]),
        (&[3, 3, 7, 2, 4, 0x05, 0xb4, 0], &[1240]),
        (&[2, 4, 0xff, 0xff, 1, 2, 4, 0x05, 0xb4, 0, 0, 0], &[1240, 1240]),
        (&[2, 4, 1, 0, 2, 4, 0xff, 0xff], &[256, 1240]),
        (&[0, 2, 4, 0xff, 0xff, 0, 0, 0], &[]),
        (&[7, 0, 2, 4, 0xff, 0xff, 0, 0], &[]),
        (&[7, 1, 2, 4, 0xff, 0xff, 0, 0], &[]),
        (&[2, 3, 0xff, 0xff], &[]),
        (&[2, 5, 0xff, 0xff, 0xff, 0, 0, 0], &[]),
        (&[1, 1, 2, 4], &[]),
        (&[1, 1, 1, 2], &[]),
    ] {
        let mut packet = syn(true, options);
        let was = packet.clone();
        assert_eq!(clamp_mss(&mut packet, 1280), !expected.is_empty(), "{options:?}");
        assert_eq!(mss_of(&packet), expected, "{options:?}");
        assert!(checksums_hold(&packet), "{options:?}");
        assert!(!expected.is_empty() || packet == was);
    }
}

#[test]
fn a24_a_wrong_checksum_stays_wrong() {
    let mut packet = syn(true, &[2, 4, 0x05, 0xb4]);
    packet[36] ^= 0x10;
    assert!(!checksums_hold(&packet));
    assert!(clamp_mss(&mut packet, 1280) && !checksums_hold(&packet));
    let mut header = V4::default().bytes();
    header[10] ^= 1;
    assert!(parse(&header).is_ok(), "the kernel behind the tunnel verifies it");
}

#[test]
fn what_does_not_fit_is_answered_with_the_size_that_does() {
    let mut out = vec![9; 4];
    let data = udp(1, 2, &[7; 1400]);
    let four = V4 { flags: 0x4000, payload: data.clone(), ..V4::default() }.bytes();
    assert!(too_big(&four, 1280, NODE_V4, NODE_V6, &mut out));
    let summary = parse(&out).unwrap();
    assert!(checksums_hold(&out) && out.len() == 576);
    assert_eq!((summary.source, summary.destination), (ip("10.64.0.1"), ip("10.64.0.5")));
    assert_eq!((&out[20..22], &out[26..28], &out[28..]), (&[3, 4][..], &[5, 0][..], &four[..548]));
    assert_eq!(summary.quoted.unwrap().ports, Some((1, 2)));

    let six = V6 { payload: data.clone(), ..V6::default() }.bytes();
    assert!(too_big(&six, 1300, NODE_V4, NODE_V6, &mut out));
    let summary = parse(&out).unwrap();
    assert!(checksums_hold(&out) && out.len() == 1280);
    assert_eq!((summary.source, summary.destination), (ip("fd64::1"), ip("fd64::5")));
    assert_eq!((&out[40..42], &out[44..48], &out[48..]), (&[2, 0][..], &[0, 0, 5, 20][..], &six[..1232]));

    assert!(too_big(&six, 500, NODE_V4, NODE_V6, &mut out) && out[44..48] == [0, 0, 5, 0], "never below 1280");
    assert!(too_big(&four, 500, NODE_V4, NODE_V6, &mut out) && out[26..28] == [2, 64], "never below 576");
    assert!(!too_big(&four, 1428, NODE_V4, NODE_V6, &mut out), "it fits");
    assert!(!too_big(&V4 { payload: data, ..V4::default() }.bytes(), 1280, NODE_V4, NODE_V6, &mut out), "cut it up");
}

#[test]
fn a24_no_answer_answers_an_error_a_later_fragment_or_a_group() {
    let mut out = Vec::new();
    let mut answered = |packet: &[u8]| {
        let prohibited = unreachable(packet, NODE_V4, NODE_V6, &mut out);
        let large = too_big(packet, 1, NODE_V4, NODE_V6, &mut out);
        (prohibited, large)
    };
    let four = |protocol, flags, payload| V4 { protocol, flags, payload, ..V4::default() }.bytes();
    for kind in [3, 4, 5, 11, 12, 13, 255] {
        let error = icmp(kind, 0, [0xff; 4], &V4::default().bytes());
        assert_eq!(answered(&four(protocol::ICMP, 0x4000, error)), (false, false), "{kind}");
    }
    for kind in [1, 2, 3, 4, 100, 127, 134, 137, 143] {
        let payload = icmp(kind, 0, [0, 0, 0xff, 0xff], &V6::default().bytes());
        assert_eq!(
            answered(&V6 { next: protocol::ICMP_V6, payload, ..V6::default() }.bytes()),
            (false, false),
            "{kind}"
        );
    }
    assert_eq!(answered(&four(protocol::ICMP, 0x4000, icmp(8, 0, [0; 4], b"ping"))), (true, true));
    assert_eq!(answered(&four(protocol::UDP, 0x4004, vec![0; 64])), (false, false));
    let extensions = fragment_header(protocol::UDP, 64, true, 1);
    assert_eq!(answered(&V6 { next: 44, extensions, payload: vec![0; 16], ..V6::default() }.bytes()), (false, false));
    assert_eq!(answered(&V4 { destination: "224.0.0.251".parse().unwrap(), ..V4::default() }.bytes()), (false, false));
    assert_eq!(answered(&V6 { destination: "ff02::fb".parse().unwrap(), ..V6::default() }.bytes()), (false, false));
    assert_eq!(answered(&[]), (false, false));
}

#[test]
fn a_denied_packet_is_answered_at_once() {
    let mut out = Vec::new();
    assert!(unreachable(&syn(true, &[]), NODE_V4, NODE_V6, &mut out));
    assert!(checksums_hold(&out) && out[20..22] == [3, 13] && out[28..] == syn(true, &[])[..]);
    assert!(unreachable(&syn(false, &[]), NODE_V4, NODE_V6, &mut out));
    assert!(checksums_hold(&out) && out[40..42] == [1, 1] && out[48..] == syn(false, &[])[..]);
}

fn cut(packet: &[u8], mtu: u16) -> Option<Vec<Vec<u8>>> {
    let mut parts = Vec::new();
    fragment_v4(packet, mtu, |part| parts.push(part.to_vec())).then_some(parts)
}

#[test]
fn options_go_where_their_copy_bit_says() {
    let options = vec![148, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0, 1, 0x88, 4, 1, 2];
    let packet = V4 { options: options.clone(), payload: udp(1, 2, &[5; 300]), ..V4::default() }.bytes();
    let parts = cut(&packet, 120).unwrap();
    assert_eq!(parts[0][20..36], options);
    for part in &parts[1..] {
        assert_eq!((part[0], &part[20..28]), (0x47, &[148, 4, 0, 0, 0x88, 4, 1, 2][..]));
    }
}

#[test]
fn what_may_not_be_cut_up_is_left() {
    let long = udp(1, 2, &[5; 300]);
    assert_eq!(cut(&V4 { flags: 0x4000, payload: long.clone(), ..V4::default() }.bytes(), 120), None);
    assert_eq!(cut(&V6 { payload: long.clone(), ..V6::default() }.bytes(), 120), None);
    assert_eq!(cut(&V6::default().bytes(), 1280), None);
    assert_eq!(cut(&V4 { payload: long, ..V4::default() }.bytes(), 27), None);
    assert_eq!(cut(&[], 1280), None);
    let fits = V4 { flags: 0x4000, ..V4::default() }.bytes();
    assert_eq!(cut(&fits, 1280), Some(vec![fits]));
}

/// Puts fragments together as a receiver does.
fn joined(parts: &[Vec<u8>]) -> (Vec<u8>, usize, bool) {
    let (mut data, mut more) = (Vec::new(), true);
    let first = parse(&parts[0]).unwrap().fragment_offset;
    for part in parts {
        let summary = parse(part).unwrap();
        assert!(more && checksum(&part[..summary.transport]) == 0);
        assert_eq!(usize::from(summary.fragment_offset - first), data.len());
        data.extend(&part[summary.transport..]);
        more = part[6] & 0x20 != 0;
    }
    (data, first.into(), more)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_fast_sum_is_the_slow_sum(bytes in prop::collection::vec(any::<u8>(), 0..200), split in 0..100usize) {
        prop_assert_eq!(checksum(&bytes), naive(&bytes));
        let (one, two) = bytes.split_at((split * 2).min(bytes.len() / 2 * 2));
        prop_assert_eq!(Sum::default().plus(one).plus(two).finish(), naive(&bytes));
    }

    #[test]
    fn an_update_is_a_new_sum(mut bytes in prop::collection::vec(1u8.., 4..40), word: u16, at in 0..20usize) {
        let at = at * 2 % (bytes.len() / 2 * 2);
        let (was, old) = (checksum(&bytes), u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
        // Both zeros of this arithmetic mean the same.
        prop_assert_eq!(updated(was, old, word) % 0xffff, naive(&bytes) % 0xffff);
    }

    #[test]
    fn options_of_any_content_keep_the_checksum_and_lose_no_byte(
        options in prop::collection::vec(prop_oneof![Just(2u8), Just(4), Just(1), Just(0), any::<u8>()], 0..40),
        four: bool,
        mtu in 576u16..,
    ) {
        let options = &options[..options.len() / 4 * 4];
        let mut packet = syn(four, options);
        let (was, most) = (packet.clone(), mtu - if four { 40 } else { 60 });
        let changed = clamp_mss(&mut packet, mtu);
        prop_assert!(checksums_hold(&packet));
        prop_assert_eq!(changed, packet != was);
        let expected: Vec<_> = mss_of(&was).into_iter().map(|mss| mss.min(most)).collect();
        prop_assert_eq!(mss_of(&packet), expected);
    }

    #[test]
    fn answers_to_packets_of_any_content_are_right_and_never_panic(packet in nearly(), mtu: u16) {
        let mut out = Vec::new();
        for large in [true, false] {
            let answered = match large {
                true => too_big(&packet, mtu, NODE_V4, NODE_V6, &mut out),
                false => unreachable(&packet, NODE_V4, NODE_V6, &mut out),
            };
            if answered {
                let summary = parse(&out).unwrap();
                prop_assert!(checksums_hold(&out));
                prop_assert_eq!(summary.destination, parse(&packet).unwrap().source);
                prop_assert!(!unreachable(&out.clone(), NODE_V4, NODE_V6, &mut out), "no answer is answered");
            }
        }
    }

    #[test]
    fn fragments_make_the_datagram_again(
        data in prop::collection::vec(any::<u8>(), 8..6000),
        mtu in 68u16..3000,
        again in 68u16..1000,
        options in prop_oneof![Just(vec![]), Just(vec![148, 4, 0, 0]), Just(vec![7, 7, 4, 0, 0, 0, 0, 1])],
    ) {
        let packet = V4 { payload: udp(1, 2, &data), options, ..V4::default() }.bytes();
        let header = parse(&packet).unwrap().transport;
        let parts = cut(&packet, mtu).unwrap();
        prop_assert!(parts.iter().all(|part| part.len() <= usize::from(mtu)));
        prop_assert_eq!(joined(&parts), (packet[header..].to_vec(), 0, false));
        for part in parts {
            let summary = parse(&part).unwrap();
            let smaller = cut(&part, again).unwrap();
            prop_assert!(smaller.iter().all(|part| part.len() <= usize::from(again)));
            let expected = (part[summary.transport..].to_vec(), summary.fragment_offset.into(), part[6] & 0x20 != 0);
            prop_assert_eq!(joined(&smaller), expected);
        }
    }

    #[test]
    fn packets_of_any_content_are_cut_up_or_left(packet in nearly(), mtu: u16) {
        if let Some(parts) = cut(&packet, mtu) {
            let length: usize = parts.iter().map(|part| part.len() - parse(part).unwrap().transport).sum();
            prop_assert_eq!(length, packet.len() - parse(&packet).unwrap().transport);
        }
    }
}
