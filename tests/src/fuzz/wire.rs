//! What arrives first: frames, messages, lane preambles, ClientHellos, tokens and names.

use bytes::{Bytes, BytesMut};
use data_encoding::BASE64URL_NOPAD;
use futures_util::FutureExt;
use hedgerow_proxy::socks::read_target;
use hedgerow_proxy::target::Target;
use hedgerow_relay::accept::client_hello as hello;
use hedgerow_relay::connect::destination;
use hedgerow_relay::{tunnel, udp};
use hedgerow_runtime::dial;
use hedgerow_runtime::proxy_protocol;
use hedgerow_runtime::quic::Datagram;
use hedgerow_shared::fault::{DropReason, Fault};
use hedgerow_shared::limits::MAX_FIRST_BYTES;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::policy::normal_name;
use hedgerow_shared::verify::{Identity, SignedConfig};
use hedgerow_shared::wire::frame::{self as frames, Decoder, Frame, FrameError, kind};
use hedgerow_shared::wire::lane;
use hedgerow_shared::wire::message::{
    Accept, CaRegistration, Claim, Control, Destination, GoAway, Hello, LinkOpen, OPTIONAL_CONTROL, Proof, Refuse,
    Registrations, Resume, ServiceReply, SessionOpen, Vouched,
};
use hedgerow_shared::wire::token::EnrolmentToken;
use hedgerow_shared::wire::tunnel::{self as wire, HalfId};
use hedgerow_shared::{EntityId, GroupName, InstanceId, Origin, Role, SessionId, TenantId, Ticket};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use super::{Input, cbor_round_trip, text_round_trip};

/// `wire::frame`. The first byte says how many lengths of pieces follow; the rest is the wire. Cutting changes
/// nothing, and every frame reads the same after it was written again.
pub fn frame(data: &[u8]) {
    let mut input = Input(data);
    let count = usize::from(input.u8() % 16);
    let lengths = input.take(count);
    let wire = input.0;

    let mut rest = BytesMut::from(wire);
    let (mut whole, mut error) = (Vec::new(), None);
    loop {
        match frames::take_first(&mut rest) {
            Ok(Some(frame)) => whole.push(frame),
            Ok(None) => break,
            Err(e) => {
                error = Some(e);
                break;
            }
        }
    }

    let mut decoder = Decoder::default();
    let (mut pieces, mut cut_error) = (Vec::new(), None);
    let mut left = Bytes::copy_from_slice(wire);
    let mut cycle = lengths.iter().map(|l| usize::from(*l) + 1).cycle();
    while !left.is_empty() && cut_error.is_none() {
        let length = cycle.next().unwrap_or(usize::MAX).min(left.len());
        let fed = decoder.feed(left.split_to(length), |frame| {
            pieces.push(frame);
            Ok::<(), FrameError>(())
        });
        cut_error = fed.err();
        assert!(decoder.pending() < frames::MAX_FRAME);
    }
    assert_eq!(pieces, whole);
    assert_eq!(cut_error, error);
    assert!(error.is_some() || decoder.pending() == rest.len());

    for frame in &whole {
        let mut again = BytesMut::from(&written(frame)[..]);
        assert_eq!(frames::take_first(&mut again).as_ref().ok(), Some(&Some(frame.clone())));
        assert!(again.is_empty());
    }
}

fn written(frame: &Frame) -> Bytes {
    match frame {
        Frame::Hello(b) => frames::raw(kind::HELLO, 0, b),
        Frame::Proof(b) => frames::raw(kind::PROOF, 0, b),
        Frame::Accept(b) => frames::raw(kind::ACCEPT, 0, b),
        Frame::Refuse(b) => frames::raw(kind::REFUSE, 0, b),
        Frame::Resume(b) => frames::raw(kind::RESUME, 0, b),
        Frame::Open(id, b) => frames::raw(kind::OPEN, id.0, b),
        Frame::Answer(id, fault) => frames::cbor(kind::ANSWER, id.0, fault),
        Frame::Data(id, offset, b) => [&frames::data_prefix(*id, *offset, b.len())[..], b].concat().into(),
        Frame::Window { stream, delivered, limit } => frames::window(*stream, *delivered, *limit),
        Frame::Finish(id, offset) => frames::raw(kind::FINISH, id.0, &offset.to_be_bytes()),
        Frame::Reset(id, fault) => frames::cbor(kind::RESET, id.0, fault),
        Frame::Control(control, b) => frames::control(*control, b),
        Frame::Datagram(b) => frames::raw(kind::DATAGRAM, 0, b),
        Frame::Ping(word) => frames::raw(kind::PING, 0, &word.to_be_bytes()),
        Frame::Pong(word) => frames::raw(kind::PONG, 0, &word.to_be_bytes()),
        Frame::GoAway(b) => frames::raw(kind::GOAWAY, 0, b),
        Frame::Unknown(kind) => frames::raw(*kind, 0, b""),
    }
}

/// `wire::message`: the first byte chooses the type (its place in the match below), the rest is its CBOR; a control
/// message has its kind before it.
pub fn message(data: &[u8]) {
    let mut input = Input(data);
    let choice = input.u8();
    let body = &input.0[..input.0.len().min(frames::MAX_PAYLOAD - 2)];
    match choice {
        0 => cbor_round_trip::<Hello>(body),
        1 => cbor_round_trip::<Proof>(body),
        2 => cbor_round_trip::<Accept>(body),
        3 => cbor_round_trip::<Refuse>(body),
        4 => cbor_round_trip::<GoAway>(body),
        5 => cbor_round_trip::<Resume>(body),
        6 => cbor_round_trip::<LinkOpen>(body),
        7 => cbor_round_trip::<SessionOpen>(body),
        8 => cbor_round_trip::<Registrations>(body),
        9 => cbor_round_trip::<CaRegistration>(body),
        10 => cbor_round_trip::<ServiceReply>(body),
        11 => cbor_round_trip::<Fault>(body),
        12 => cbor_round_trip::<Vouched>(body),
        13 => cbor_round_trip::<Destination>(body),
        14 => cbor_round_trip::<Claim>(body),
        15 => cbor_round_trip::<SignedConfig>(body),
        16 => {
            let kind = input.u16();
            match Control::read(kind, input.0.get(..frames::MAX_PAYLOAD - 2).unwrap_or(input.0)) {
                Ok(Some(message)) => {
                    let mut frame = BytesMut::from(&message.to_frame()[..]);
                    let Ok(Some(Frame::Control(again, body))) = frames::take_first(&mut frame) else {
                        panic!("{message:?} is not one frame")
                    };
                    assert_eq!(again, kind);
                    assert_eq!(Control::read(kind, &body).expect("what was written can be read"), Some(message));
                }
                Ok(None) => assert!(kind >= OPTIONAL_CONTROL),
                Err(fault) => assert!(fault.text.len() <= 200),
            }
        }
        // Both ends of a hand-shake compare their HELLOs.
        _ => {
            let ours = Hello::new(InstanceId::from_random([0; 16]), [0; 32], Default::default());
            if let Ok(theirs) = minicbor::decode::<Hello>(body) {
                let agreed = ours.agree(&theirs);
                assert_eq!(agreed.is_ok(), theirs.agree(&ours).is_ok() && theirs.magic == ours.magic);
                assert!(agreed.is_err() || agreed == Ok(frames::VERSION));
            }
        }
    }
}

/// `dial`: what an HTTP proxy answers to CONNECT. What is decided early stays decided; nothing unreadable is passed on.
pub fn proxy_answer(data: &[u8]) {
    let parsed = dial::parse_proxy_answer(data);
    for cut in 0..data.len().min(2048) {
        match (dial::parse_proxy_answer(&data[..cut]), &parsed) {
            (dial::Parsed::Incomplete, _) | (dial::Parsed::Garbage, dial::Parsed::Garbage) => {}
            (dial::Parsed::Answer(early), dial::Parsed::Answer(whole)) => {
                assert_eq!(dial::Head { more: whole.more, ..early }, *whole, "decided differently at {cut}");
            }
            (early, _) => panic!("{early:?} at {cut}, then {parsed:?}"),
        }
    }
    if let dial::Parsed::Answer(head) = parsed {
        let shown = head.schemes.iter().chain(&head.location);
        assert!(shown.flat_map(|s| s.chars()).all(|c| !c.is_control()));
    }
}

/// `proxy_protocol`: what is decided stays decided when more arrives, nobody is waited for longer than a header may be,
/// and a client that was read is written and read again.
pub fn proxy_header(data: &[u8]) {
    use proxy_protocol::{MAX_HEADER, Parsed, parse};
    let whole = parse(data);
    for cut in 0..data.len().min(MAX_HEADER + 16) {
        match parse(&data[..cut]) {
            Parsed::Incomplete(wanted) => assert!(wanted > cut && wanted <= MAX_HEADER, "{wanted} at {cut}"),
            early => assert_eq!(early, whole, "decided differently at {cut}"),
        }
    }
    if let Parsed::Header(header) = whole {
        assert!(header.length <= data.len().min(MAX_HEADER));
        let server = header.client.unwrap_or(([192, 0, 2, 1], 443).into());
        let again = proxy_protocol::header(header.version, header.client, server);
        let read = Parsed::Header(proxy_protocol::Header { length: again.len(), ..header });
        assert_eq!(parse(&again), read);
    }
}

/// The headers of a CONNECT at the relay, as lines `name: value`: what passes names one tenant and one origin, once each,
/// and no body.
pub fn connect_head(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|b| *b == b'\n').take(64) {
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    match destination(&headers) {
        Ok(to) => {
            assert_eq!(to.tenant.to_string().parse::<TenantId>().as_ref(), Ok(&to.tenant));
            assert_eq!(to.origin.to_string().parse::<Origin>().as_ref(), Ok(&to.origin));
            assert_eq!((to.group, to.instance, to.node), (None, None, None), "only links choose among nodes");
            for name in ["tenant-id", "origin-server-id"] {
                assert_eq!(headers.get_all(name).iter().count(), 1);
            }
            assert!(!headers.contains_key("content-length") && !headers.contains_key("transfer-encoding"));
        }
        Err(why) => assert!(why.len() < 200 && !why.contains('\n')),
    }
}

/// Greeting and request at the device's SOCKS5 proxy: what comes out has one spelling, and every answer is one of SOCKS5.
pub fn socks(data: &[u8]) {
    let mut said = Vec::new();
    let target = read_target(tokio::io::join(data, &mut said)).now_or_never().expect("all bytes are there");
    assert!(said.is_empty() || matches!(said[..], [5, 0 | 0xff, ..]), "{said:?}");
    let Some(target) = target else { return };
    assert_eq!(said, [5, 0], "a request was read without a greeting");
    assert_eq!(Target::new(&target.host_text(), target.port).as_ref(), Ok(&target));
}

/// What a core registers with a relay: a name that passes the check is one that a ClientHello can ask for, in the same
/// spelling, and no address.
pub fn registrations(data: &[u8]) {
    cbor_round_trip::<Registrations>(data);
    let Ok(registrations) = minicbor::decode::<Registrations>(data) else { return };
    for wanted in &registrations.names {
        if wanted.check().is_ok() {
            assert_eq!(normal_name(&wanted.name).as_ref(), Some(&wanted.name));
            assert!(wanted.name.contains('.') && wanted.name.len() <= 253, "{wanted:?}");
            assert!(wanted.name.parse::<std::net::IpAddr>().is_err(), "{wanted:?}");
            assert!(!wanted.name.bytes().any(|b| b.is_ascii_uppercase() || b == b'_'), "{wanted:?}");
            assert!(matches!(wanted.origin, Origin::Gateway | Origin::Mdm | Origin::Core), "{wanted:?}");
        }
    }
}

/// `wire::lane`: an even first byte: the bytes of a preamble; an odd one: a server name.
pub fn lane_preamble(data: &[u8]) {
    const RELAY: &str = "relay.example";
    let mut input = Input(data);
    if input.u8().is_multiple_of(2) {
        let bytes = input.0;
        let parsed = lane::parse(bytes);
        if let lane::Parsed::Ticket(ticket, length) = &parsed {
            assert_eq!(bytes[..*length], lane::preamble(ticket));
        }
        for cut in 0..bytes.len().min(lane::LENGTH) {
            let early = lane::parse(&bytes[..cut]);
            assert!(early == lane::Parsed::Incomplete || early == parsed, "decided differently at {cut}");
        }
        assert!(bytes.len() < lane::LENGTH || parsed != lane::Parsed::Incomplete);
    } else if let Some(name) = input.text() {
        let under = name.to_ascii_lowercase();
        match lane::ticket_of(name, RELAY) {
            Some(Ok(ticket)) => assert_eq!(lane::server_name(&ticket, RELAY), under),
            Some(Err(())) => assert!(under.ends_with("lane.relay.example")),
            None => assert!(!under.ends_with(".lane.relay.example")),
        }
    }
}

/// The relay's look at a ClientHello: what is decided early stays decided, and never is more asked for than allowed.
pub fn client_hello(data: &[u8]) {
    let parsed = hello::parse(data);
    match &parsed {
        hello::Parsed::Incomplete(needed) => assert!(*needed > data.len() && *needed <= MAX_FIRST_BYTES),
        hello::Parsed::Hello(hello) => {
            if let Some(name) = &hello.server_name {
                let address = name.parse::<std::net::IpAddr>().is_ok_and(|a| a.to_string() == *name);
                assert!(address || normal_name(name).as_deref() == Some(name), "{name:?}");
            }
        }
        hello::Parsed::NotTls => assert_ne!(data.first(), Some(&22)),
        hello::Parsed::Malformed(_) => {}
    }
    // Sixteen cuts at places that depend on the input.
    let length = data.len().min(MAX_FIRST_BYTES);
    for i in 0..16 {
        let cut = (length * i / 16 + usize::from(data.get(i).copied().unwrap_or(0))).min(length);
        match hello::parse(&data[..cut]) {
            hello::Parsed::Incomplete(needed) => {
                // A relay waits for as many: fewer must not have been enough.
                assert!(needed <= data.len() || !matches!(parsed, hello::Parsed::Hello(_)), "at {cut}: {needed}");
            }
            early @ (hello::Parsed::Hello(_) | hello::Parsed::NotTls) => assert_eq!(early, parsed, "at {cut}"),
            hello::Parsed::Malformed(_) => {
                assert!(matches!(parsed, hello::Parsed::Malformed(_)), "at {cut}: {parsed:?}");
            }
        }
    }
}

/// `wire::token`: an even first byte: the text of a token; an odd one: CBOR that is given the frame of a token.
pub fn token(data: &[u8]) {
    let mut input = Input(data);
    let text = if input.u8().is_multiple_of(2) {
        let Some(text) = input.text() else { return };
        text.to_owned()
    } else {
        let sum = Sha256::digest(input.0);
        format!("hedgerow1.{}", BASE64URL_NOPAD.encode(&[input.0, &sum[..4]].concat()))
    };
    if let Ok(token) = EnrolmentToken::from_secret(&Secret::from_text(text)) {
        assert_eq!(EnrolmentToken::from_secret(&Secret::from_text(token.to_text())), Ok(token));
    }
}

/// Names and ids, and the identity in a certificate's SAN: what is taken has one spelling.
pub fn names(data: &[u8]) {
    let Some(text) = Input(data).text() else { return };
    text_round_trip::<TenantId>(text);
    text_round_trip::<EntityId>(text);
    text_round_trip::<GroupName>(text);
    text_round_trip::<InstanceId>(text);
    text_round_trip::<SessionId>(text);
    text_round_trip::<Role>(text);
    text_round_trip::<Origin>(text);
    if let Ok(ticket) = text.parse::<Ticket>() {
        assert!(ticket.to_string().parse::<Ticket>().is_ok_and(|t| t == ticket));
    }
    if let Ok(identity) = Identity::from_uri(text) {
        assert_eq!(identity.to_uri(), text);
    }
    if let Some(name) = normal_name(text) {
        assert_eq!(normal_name(&name).as_ref(), Some(&name));
        assert!(name.len() <= 253 && name.is_ascii() && !name.bytes().any(|b| b.is_ascii_uppercase()));
    }
}

/// The relay's look at a batch from its UDP socket. Two bytes say how long its datagrams are. Nothing is lost or
/// reordered, every datagram goes whole to the side that its first byte names, and neighbours of one kind stay together.
pub fn udp_batch(data: &[u8]) {
    let mut input = Input(data);
    let stride = usize::from(input.u16());
    let batch = input.0;
    let mut at = 0;
    let mut last = None;
    for (is_tunnel, run) in udp::runs(batch, stride) {
        assert_eq!(run, &batch[at..at + run.len()]);
        assert!(!run.is_empty() && last != Some(is_tunnel));
        assert_eq!(at % stride.max(1), 0, "a run begins where a datagram does");
        for datagram in run.chunks(stride.max(1)) {
            assert_eq!(udp::is_tunnel(datagram), Some(is_tunnel));
            assert_eq!(udp::TUNNEL.contains(&datagram[0]), is_tunnel);
        }
        at += run.len();
        last = Some(is_tunnel);
    }
    assert_eq!(at, batch.len());
}

/// The relay's look at a batch of tunnel datagrams. Two bytes say how long they are. None is lost or reordered; those that
/// are passed on together are DATA of one half, every one of them, and not fewer than there are; what is not DATA stands
/// alone, and reads the same after it was written again.
pub fn tunnel_datagram(data: &[u8]) {
    let mut input = Input(data);
    let stride = usize::from(input.u16()).max(1);
    let batch = input.0;
    let length = |at: usize| stride.min(batch.len() - at);
    let (mut at, mut last) = (0, None);
    for run in tunnel::split(batch, stride) {
        let this = match run {
            tunnel::Run::Data(id, range) => {
                assert_eq!(range.start, at);
                for datagram in batch[range.clone()].chunks(stride) {
                    assert_eq!((datagram[0], HalfId::of(datagram)), (wire::kind::DATA, Some(id)));
                    assert!((wire::HEADER + 1..=wire::MAX).contains(&datagram.len()));
                }
                assert_ne!(last, Some(id), "neighbours of one half stay together");
                at = range.end;
                Some(id)
            }
            tunnel::Run::Other(range) => {
                assert_eq!(range, at..at + length(at));
                let datagram = &batch[range.clone()];
                assert_ne!(datagram[0], wire::kind::DATA);
                if let Some((id, message)) = wire::Message::parse(datagram) {
                    assert_eq!(message.to_datagram(id), datagram);
                }
                at = range.end;
                None
            }
            tunnel::Run::Malformed(count) => {
                assert_eq!((count, batch[at]), (1, wire::kind::DATA));
                assert!(!(wire::HEADER + 1..=wire::MAX).contains(&length(at)));
                at += length(at);
                None
            }
        };
        last = this;
    }
    assert_eq!(at, batch.len());
}

/// A datagram of a QUIC link. Two bytes say what this end takes. Nothing longer gets through, and what a PING is
/// answered with is the PONG of its word.
pub fn quic_datagram(data: &[u8]) {
    let mut input = Input(data);
    let most = usize::from(input.u16());
    let bytes = Bytes::copy_from_slice(input.0);
    match Datagram::read(&bytes, most) {
        Ok(Datagram::Data(payload)) => {
            assert!(payload.len() <= most && payload == bytes[1..]);
            assert_eq!(bytes[0], kind::DATAGRAM);
        }
        Ok(Datagram::Ping(echo)) => {
            assert!(echo.len() < bytes.len(), "never more out than in");
            let answer = Bytes::from([&[kind::PONG], &echo[..]].concat());
            let word = u64::from_be_bytes(echo[..8].try_into().expect("a word"));
            assert_eq!(Datagram::read(&answer, most), Ok(Datagram::Pong(word)));
        }
        Ok(Datagram::Pong(word)) => assert_eq!(bytes[1..9], word.to_be_bytes()),
        Err(DropReason::DatagramTooLarge) => assert!(bytes.len() > most),
        Err(reason) => assert_eq!(reason, DropReason::UnknownOptionalFrame),
    }
}
