//! Attack line 24 as far as one packet shows it, and properties for packets of any content.

mod changes;

use proptest::prelude::*;

use super::build::{V4, V6, fragment_header, icmp, ip, tcp, udp};
use super::*;

const SYN: u8 = Summary::SYN;

fn spoilt(packet: &[u8], at: usize, value: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[at] = value;
    packet
}

#[test]
fn both_versions_are_read() {
    let four = parse(&V4 { flags: 0x4000, ..V4::default() }.bytes()).unwrap();
    assert_eq!((four.source, four.destination), (ip("10.64.0.5"), ip("10.1.2.3")));
    assert_eq!((four.protocol, four.fragment, four.dont_fragment), (protocol::UDP, Fragment::Whole, true));
    assert_eq!((four.source_port, four.destination_port), (Some(4000), Some(53)));
    assert_eq!((four.hop_limit, four.transport, four.is_v4()), (64, 20, true));

    let segment = V6 { next: protocol::TCP, payload: tcp(5000, 443, SYN, &[], b""), ..V6::default() }.bytes();
    let six = parse(&segment).unwrap();
    assert_eq!((six.source, six.destination), (ip("fd64::5"), ip("2001:db8::3")));
    assert_eq!((six.source_port, six.destination_port), (Some(5000), Some(443)));
    assert!(six.opens_connection() && six.dont_fragment && !six.is_v4());
    let answer = V4 { protocol: protocol::TCP, payload: tcp(1, 2, SYN | Summary::ACK, &[], b""), ..V4::default() };
    assert!(!parse(&answer.bytes()).unwrap().opens_connection());
}

#[test]
fn the_payload_of_udp_is_what_its_header_tells() {
    let packet = V4::default().bytes();
    assert_eq!(udp_payload(&packet, &parse(&packet).unwrap()), Some(&b"hello"[..]));
    let mut longer = V4 { payload: [udp(1, 2, b"abc"), vec![0; 9]].concat(), ..V4::default() }.bytes();
    assert_eq!(udp_payload(&longer, &parse(&longer).unwrap()), Some(&b"abc"[..]));
    let summary = parse(&longer).unwrap();
    longer.truncate(25);
    assert_eq!(udp_payload(&longer, &summary), None, "a summary of another packet does no harm");
}

#[test]
fn a24_a_bad_version_and_a_datagram_of_no_bytes_are_refused() {
    assert_eq!(parse(&[]), Err(Malformed::Empty));
    for version in (0..16).filter(|version| ![4, 6].contains(version)) {
        assert_eq!(parse(&spoilt(&V4::default().bytes(), 0, version << 4 | 5)), Err(Malformed::Version));
    }
}

#[test]
fn a24_lengths_that_lie_are_refused() {
    for (packet, header, total) in [(V4::default().bytes(), 20, 3), (V6::default().bytes(), 40, 5)] {
        for length in 1..packet.len() {
            let reason = if length < header { Malformed::HeaderLength } else { Malformed::TotalLength };
            assert_eq!(parse(&packet[..length]), Err(reason), "{length}");
        }
        assert_eq!(parse(&[&packet[..], &[0]].concat()), Err(Malformed::TotalLength), "something behind it");
        for value in (0..=255).filter(|value| *value != packet[total]) {
            assert_eq!(parse(&spoilt(&packet, total, value)), Err(Malformed::TotalLength));
        }
    }
    let four = V4::default().bytes();
    for words in 0..5 {
        assert_eq!(parse(&spoilt(&four, 0, 0x40 | words)), Err(Malformed::HeaderLength));
    }
    assert_eq!(parse(&spoilt(&four, 0, 0x4f)), Err(Malformed::HeaderLength), "a header beyond the packet");
}

#[test]
fn a24_transport_headers_that_are_cut_off_or_lie_are_refused() {
    let whole = |protocol, payload: &[u8]| parse(&V4 { protocol, payload: payload.to_vec(), ..V4::default() }.bytes());
    let segment = tcp(1, 2, SYN, &[1, 1, 1, 1], b"");
    for length in 0..segment.len() {
        assert_eq!(whole(protocol::TCP, &segment[..length]), Err(Malformed::Transport), "{length}");
    }
    for words in [0, 4, 15] {
        assert_eq!(whole(protocol::TCP, &spoilt(&segment, 12, words << 4)), Err(Malformed::Transport));
    }
    let datagram = udp(1, 2, b"abc");
    for length in 0..8 {
        assert_eq!(whole(protocol::UDP, &datagram[..length]), Err(Malformed::Transport));
        assert_eq!(whole(protocol::UDP, &spoilt(&datagram, 5, length as u8)), Err(Malformed::Transport));
        assert_eq!(whole(protocol::ICMP, &[8; 8][..length]), Err(Malformed::Transport));
    }
    assert_eq!(whole(protocol::UDP, &spoilt(&datagram, 5, 12)), Err(Malformed::Transport));
}

#[test]
fn a24_tiny_and_misplaced_fragments_are_refused() {
    let part = |protocol, flags, length| {
        let payload = tcp(1, 2, SYN, &[1; 20], &[0; 40]);
        parse(&V4 { protocol, flags, payload: payload[..length].to_vec(), ..V4::default() }.bytes())
    };
    for length in [8, 16, 24, 32] {
        assert_eq!(part(protocol::TCP, 0x2000, length), Err(Malformed::TinyFragment), "{length}");
    }
    let first = part(protocol::TCP, 0x2000, 40).unwrap();
    assert_eq!((first.fragment, first.source_port, first.fragment_length), (Fragment::First, Some(1), 40));
    assert_eq!(part(protocol::TCP, 1, 40), Err(Malformed::TinyFragment), "laid over the flags");
    let later = part(protocol::TCP, 2, 40).unwrap();
    assert_eq!((later.fragment, later.source_port, later.fragment_offset), (Fragment::Later, None, 16));
    assert_eq!(part(protocol::UDP, 0x2000, 12), Err(Malformed::FragmentBounds), "the next could not begin there");
    assert_eq!(part(protocol::UDP, 4, 0), Err(Malformed::FragmentBounds));
    assert_eq!(part(protocol::UDP, 0x1fff, 8), Err(Malformed::FragmentBounds), "the ping of death");
    assert!(part(protocol::UDP, 8189 - 3, 23).is_ok());
    assert_eq!(part(protocol::UDP, 8189 - 3, 28), Err(Malformed::FragmentBounds));
}

#[test]
fn a24_fragments_of_ipv6_hold_the_whole_chain_of_headers() {
    let part = |extensions: Vec<u8>, next, payload: &[u8]| {
        parse(&V6 { next, extensions, payload: payload.to_vec(), ..V6::default() }.bytes())
    };
    let segment = tcp(1, 443, SYN, &[], &[0; 20]);
    let first = part(fragment_header(protocol::TCP, 0, true, 9), 44, &segment).unwrap();
    assert_eq!((first.fragment, first.destination_port, first.fragment_id), (Fragment::First, Some(443), 9));
    for length in [8, 16] {
        let tiny = part(fragment_header(protocol::TCP, 0, true, 9), 44, &segment[..length]);
        assert_eq!(tiny, Err(Malformed::TinyFragment));
    }
    let options = [&[protocol::TCP, 1][..], &[0; 14]].concat();
    let header_in_next = [fragment_header(60, 0, true, 9), options[..8].to_vec()].concat();
    assert_eq!(part(header_in_next, 44, b""), Err(Malformed::TinyFragment));
    let later = part(fragment_header(60, 64, true, 9), 44, &[0xff; 16]).unwrap();
    assert_eq!((later.fragment, later.protocol, later.destination_port), (Fragment::Later, 60, None));
    assert_eq!(part(fragment_header(protocol::TCP, 8, false, 9), 44, &[0; 16]), Err(Malformed::TinyFragment));
    let twice = [fragment_header(44, 0, true, 9), fragment_header(protocol::TCP, 0, true, 9)].concat();
    assert_eq!(part(twice, 44, &segment), Err(Malformed::Extension));
    assert_eq!(part(fragment_header(protocol::UDP, 65528, false, 9), 44, &[0; 8]), Err(Malformed::FragmentBounds));
    let alone = part(fragment_header(protocol::TCP, 0, false, 9), 44, &segment).unwrap();
    assert_eq!((alone.fragment, alone.destination_port), (Fragment::Whole, Some(443)), "RFC 6946");
}

#[test]
fn a24_chains_of_extension_headers_end() {
    let chain = |kinds: &[u8], last: u8| {
        let next = kinds.iter().skip(1).chain([&last]);
        let extensions = kinds.iter().zip(next).flat_map(|(kind, next)| {
            // Of routing headers one of type 2 without segments left.
            [*next, 0, if *kind == 43 { 2 } else { 1 }, 0, 0, 0, 0, 0]
        });
        V6 { next: kinds.first().copied().unwrap_or(last), extensions: extensions.collect(), ..V6::default() }
    };
    let ports = |packet: &V6| parse(&packet.bytes()).map(|summary| summary.destination_port);
    assert_eq!(ports(&chain(&[0, 60, 43, 51, 60], protocol::UDP)), Ok(Some(53)));
    assert_eq!(ports(&chain(&[60; 8], protocol::UDP)), Ok(Some(53)));
    assert_eq!(ports(&chain(&[60; 9], protocol::UDP)), Err(Malformed::Extension), "too many");
    assert_eq!(ports(&chain(&[60, 0], protocol::UDP)), Err(Malformed::Extension), "hop-by-hop is the first");
    for ends in [50, 59, 4, 41, 47, 135, 200] {
        let mut packet = chain(&[60], ends);
        packet.payload = vec![0xff; 3];
        assert_eq!(parse(&packet.bytes()).unwrap().protocol, ends);
    }
    let mut routed = chain(&[43], protocol::UDP);
    routed.extensions[2] = 0;
    assert_eq!(ports(&routed), Err(Malformed::SourceRoute), "type 0, RFC 5095");
    routed.extensions[2..4].copy_from_slice(&[4, 1]);
    assert_eq!(ports(&routed), Err(Malformed::SourceRoute), "segments left");
    let mut long = chain(&[60], protocol::UDP);
    long.extensions[1] = 255;
    assert_eq!(ports(&long), Err(Malformed::Extension), "beyond the packet");
    long.payload.clear();
    long.extensions = vec![protocol::UDP, 0, 0, 0];
    assert_eq!(ports(&long), Err(Malformed::Extension), "cut off");
}

#[test]
fn a24_source_routes_and_options_that_lie_are_refused() {
    let with = |options: &[u8]| parse(&V4 { options: options.to_vec(), ..V4::default() }.bytes()).map(|_| ());
    assert_eq!(with(&[131, 7, 4, 10, 9, 9, 9, 0]), Err(Malformed::SourceRoute));
    assert_eq!(with(&[1, 137, 7, 4, 10, 9, 9, 9]), Err(Malformed::SourceRoute));
    assert_eq!(with(&[148, 4, 0, 0]), Ok(()), "router alert");
    assert_eq!(with(&[0, 131, 7, 4]), Ok(()), "nothing counts behind the end");
    for lie in [[7, 0, 0, 0], [7, 1, 0, 0], [7, 5, 0, 0], [1, 1, 1, 7]] {
        assert_eq!(with(&lie), Err(Malformed::Options), "{lie:?}");
    }
}

#[test]
fn a24_addresses_of_no_host_are_refused() {
    let four = |source: &str, destination: &str| {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        parse(&V4 { source, destination, ..V4::default() }.bytes()).map(|_| ())
    };
    for other in ["224.0.0.1", "255.255.255.255", "0.0.0.0", "0.1.2.3", "127.0.0.1", "169.254.1.1", "239.1.1.1"] {
        assert_eq!(four(other, "10.1.2.3"), Err(Malformed::Source), "{other}");
        assert_eq!(four("10.64.0.5", other), Err(Malformed::NotRouted), "{other}");
        assert_eq!(four(other, other), Err(Malformed::NotRouted), "what hosts send by themselves is no forgery");
    }
    assert_eq!(four("240.0.0.1", "10.1.2.3"), Err(Malformed::Source));
    assert_eq!(four("10.1.2.3", "10.1.2.3"), Err(Malformed::Source), "the land attack");
    let six = |source: &str, destination: &str| {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        parse(&V6 { source, destination, ..V6::default() }.bytes()).map(|_| ())
    };
    for other in ["ff02::1", "::", "::1", "fe80::1", "::ffff:10.1.2.3"] {
        assert_eq!(six(other, "2001:db8::1"), Err(Malformed::Source), "{other}");
        assert_eq!(six("fd64::5", other), Err(Malformed::NotRouted), "{other}");
    }
    assert_eq!(six("fd64::5", "fd64::5"), Err(Malformed::Source));
}

#[test]
fn a24_without_a_hop_left_a_packet_is_refused_and_with_one_it_is_the_kernels() {
    for (hops, expected) in [(0, Err(Malformed::HopLimit)), (1, Ok(1))] {
        assert_eq!(parse(&V4 { ttl: hops, ..V4::default() }.bytes()).map(|s| s.hop_limit), expected);
        assert_eq!(parse(&V6 { hops, ..V6::default() }.bytes()).map(|s| s.hop_limit), expected);
    }
}

#[test]
fn a24_a_packet_of_65535_bytes_is_read() {
    let four = V4 { protocol: 200, payload: vec![1; 65535 - 20], ..V4::default() }.bytes();
    assert_eq!((four.len(), parse(&four).unwrap().protocol), (65535, 200));
    let six = V6 { next: 200, payload: vec![1; 65535], ..V6::default() }.bytes();
    assert_eq!((six.len(), parse(&six).unwrap().fragment_length), (65575, 65535));
}

#[test]
fn a24_a_forged_too_big_is_refused_and_others_tell_what_they_are_about() {
    let about = V4 { protocol: protocol::TCP, payload: tcp(4000, 443, 0, &[], &[0; 100]), ..V4::default() }.bytes();
    let four = |mtu: u16| {
        let [high, low] = mtu.to_be_bytes();
        let payload = icmp(3, 4, [0, 0, high, low], &about[..28]);
        let destination = "10.64.0.5".parse().unwrap();
        parse(&V4 { source: "10.9.9.9".parse().unwrap(), destination, protocol: 1, payload, ..V4::default() }.bytes())
    };
    for mtu in [0, 1, 68, 575] {
        assert_eq!(four(mtu), Err(Malformed::ForgedMtu));
    }
    let summary = four(1280).unwrap();
    assert_eq!(summary.icmp, Some(Icmp::Error));
    let quoted = summary.quoted.unwrap();
    assert_eq!((quoted.source, quoted.destination), (ip("10.64.0.5"), ip("10.1.2.3")));
    assert_eq!((quoted.protocol, quoted.ports), (protocol::TCP, Some((4000, 443))));
    let about = V6::default().bytes();
    for (mtu, expected) in [(0, false), (1279, false), (1280, true), (u32::MAX, true)] {
        let payload = icmp(2, 0, u32::to_be_bytes(mtu), &about);
        let destination = "fd64::5".parse().unwrap();
        let source = "2001:db8::99".parse().unwrap();
        let packet = V6 { source, destination, next: protocol::ICMP_V6, payload, ..V6::default() }.bytes();
        let ports = parse(&packet).map(|summary| summary.quoted.unwrap().ports);
        assert_eq!(ports, if expected { Ok(Some((4000, 53))) } else { Err(Malformed::ForgedMtu) });
    }
}

#[test]
fn what_cannot_be_told_of_a_quoted_packet_is_not_guessed() {
    let quoted = |about: &[u8]| {
        let payload = icmp(3, 1, [0; 4], about);
        parse(&V4 { protocol: protocol::ICMP, payload, ..V4::default() }.bytes()).unwrap().quoted
    };
    let about = V4::default().bytes();
    for length in 0..24 {
        assert_eq!(quoted(&about[..length]), None, "{length}");
    }
    assert!(quoted(&about[..24]).is_some());
    assert_eq!(quoted(&spoilt(&about, 0, 0x41)), None);
    assert_eq!(quoted(&spoilt(&about, 7, 9)), None, "a later fragment");
    assert_eq!(quoted(&V6::default().bytes()), None, "of the other version");
    let ping = V4 { protocol: protocol::ICMP, payload: icmp(8, 0, [0; 4], b"x"), ..V4::default() }.bytes();
    assert_eq!(quoted(&ping).unwrap().icmp, Some(Icmp::EchoRequest));
}

#[test]
fn every_reason_has_a_label_of_its_own() {
    let labels: std::collections::BTreeSet<_> = Malformed::ALL.iter().map(|reason| reason.label()).collect();
    assert_eq!(labels.len(), Malformed::ALL.len());
    assert!(Malformed::ALL.iter().all(|reason| !reason.to_string().is_empty()));
}

/// Headers that are nearly right, so that the search gets beyond the first check.
pub(super) fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let four =
        (prop::collection::vec(any::<u8>(), 20..120), 5..16u8, prop_oneof![Just(6u8), Just(17), Just(1), any::<u8>()])
            .prop_map(|(mut packet, words, protocol)| {
                let length = u16::try_from(packet.len()).unwrap();
                packet[0] = 0x40 | words;
                packet[2..4].copy_from_slice(&length.to_be_bytes());
                packet[9] = protocol;
                packet[12..20].copy_from_slice(&[10, 64, 0, 5, 10, 1, 2, 3]);
                packet
            });
    let kinds =
        prop_oneof![Just(0u8), Just(43), Just(44), Just(51), Just(60), Just(6), Just(17), Just(58), any::<u8>()];
    let six = (prop::collection::vec(prop_oneof![kinds.clone(), Just(0u8), any::<u8>()], 40..160), kinds).prop_map(
        |(mut packet, next)| {
            let length = u16::try_from(packet.len() - 40).unwrap();
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&length.to_be_bytes());
            packet[6] = next;
            (packet[8], packet[24]) = (0xfd, 0x20);
            packet
        },
    );
    prop_oneof![four, six, prop::collection::vec(any::<u8>(), 0..100)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn packets_of_any_content_are_read_or_refused_and_never_panic(packet in nearly()) {
        if let Ok(summary) = parse(&packet) {
            prop_assert!(summary.transport <= packet.len());
            prop_assert!(summary.fragment != Fragment::Later || summary.source_port.is_none());
            prop_assert!(summary.hop_limit > 0);
            let _ = udp_payload(&packet, &summary);
        }
    }

    #[test]
    fn a_summary_of_another_packet_does_no_harm(mut one in nearly(), other in nearly(), mtu: u16) {
        if let Ok(summary) = parse(&other) {
            let _ = udp_payload(&one, &summary);
            let _ = clamp_mss_of(&mut one, &summary, mtu);
        }
    }
}
