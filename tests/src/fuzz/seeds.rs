//! The inputs the corpora begin with: something valid of every kind, the same in every run, and each of it cut short
//! and with one byte changed. `tests/tests/corpora.rs` checks that they lie in the corpora, so that a change of a
//! format cannot leave the corpora with nothing but noise.

use bytes::Bytes;
use hedgerow_runtime::proxy_protocol::{self, Version as Form};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::config::{Audience, DeviceConfig, Head, NodeConfig, RelayConfig, Revoked, Version};
use hedgerow_shared::verify::policy::{Action, Route, Rule, Via};
use hedgerow_shared::verify::{Scope, Standing};
use hedgerow_shared::wire::core_api::{Activated, EnrolNode, NodeEnrolled, Refused};
use hedgerow_shared::wire::frame::{self, StreamId, kind};
use hedgerow_shared::wire::lane;
use hedgerow_shared::wire::message::{
    Accept, CaRegistration, Claim, Control, Destination, GoAway, Hello, LaneCall, LaneOffer, LaneRefused, LaneRequest,
    LicencePresent, LicenceVerdict, Limits, LinkOpen, OpenActivation, PairCall, PairEnd, PairOffer, PairRefused,
    PairRequest, Proof, Refuse, Registrations, Resume, ResumeStream, Resumption, Service, ServiceReply, SessionOpen,
    TUNNEL_HOST, TunnelAsk, Vouched, Wake,
};
use hedgerow_shared::wire::names::{RefusedName, RegisteredName};
use hedgerow_shared::wire::token::EnrolmentToken;
use hedgerow_shared::wire::tunnel::{self, Half, HalfId};
use hedgerow_shared::{EntityId, InstanceId, Origin, Role, SessionId, Ticket, TunnelId};
use hedgerow_uem_core::activation::pake::Start;
use hedgerow_uem_core::activation::{EnrolReply, EnrolRequest};
use minicbor::Encode;
use serde::Serialize;

use super::activation::SEALED;
use super::fixture::{NOW, channels, fixture, proof, random, run};
use super::trust::{licence_key, sign_licence};

/// A licence with every field there is, and some that there are not.
const LICENCE: &str = r#"{"id":"L-1","tenant":"S12345678","licensee":"Example","issued":1790000000,"not_before":1790000000,"expires":1810000000,"grace_seconds":2592000,"seats":50,"features":["proxy","teleport","tunnel"],"note":"x"}"#;

/// One input.
pub struct Seed {
    /// Of which target.
    pub target: &'static str,
    /// Its file's name.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Every input the corpora begin with.
#[must_use]
pub fn seeds() -> Vec<Seed> {
    let mut all = Collected(Vec::new());
    frames(&mut all);
    messages(&mut all);
    first_bytes(&mut all);
    trust(&mut all);
    policies(&mut all);
    core(&mut all);
    activations(&mut all);
    multiplexer(&mut all);
    for (name, flags, wire) in super::link::honest() {
        all.chosen("link_handshake", name, flags, &wire);
        all.chosen("link_handshake", &format!("{name}-in-pieces"), flags | 4, &wire);
    }
    all.0
}

struct Collected(Vec<Seed>);

impl Collected {
    /// The input, two thirds of it, and with the lowest bit of its middle changed.
    fn add(&mut self, target: &'static str, name: &str, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        let mut put = |suffix: &str, bytes| self.0.push(Seed { target, name: format!("seed-{name}{suffix}"), bytes });
        let mut flipped = bytes.clone();
        if let Some(byte) = flipped.get_mut(bytes.len() / 2) {
            *byte ^= 1;
            put("-flip", flipped);
            put("-cut", bytes[..bytes.len() * 2 / 3].to_vec());
        }
        put("", bytes);
    }

    /// With the byte before it by which the target chooses.
    fn chosen(&mut self, target: &'static str, name: &str, choice: u8, body: &[u8]) {
        self.add(target, name, [&[choice], body].concat());
    }

    fn cbor(&mut self, name: &str, choice: u8, value: &impl Encode<()>) {
        self.chosen("message", name, choice, &cbor(value));
    }

    fn json(&mut self, target: &'static str, name: &str, choice: u8, value: &impl Serialize) {
        self.chosen(target, name, choice, &serde_json::to_vec(value).expect("a sample can be written"));
    }
}

fn cbor(value: &impl Encode<()>) -> Vec<u8> {
    minicbor::to_vec(value).expect("a sample can be written")
}

fn id(n: u8) -> EntityId {
    EntityId::from_random([n; 16])
}

fn destination() -> Destination {
    let group = "berlin".parse().ok();
    Destination { tenant: fixture().tenant.clone(), origin: Origin::Proxy, group, instance: None, node: None }
}

fn vouched() -> Vouched {
    Vouched { role: Some(Role::Device), id: Some(id(3)), address: "192.0.2.1:40000".into() }
}

fn through() -> LinkOpen {
    LinkOpen::Through { to: destination(), vouched: Some(vouched()), trace: Some("0123456789abcdef".repeat(2)) }
}

fn hello() -> Hello {
    let claim = Some(Claim { role: Role::Node, tenant: fixture().tenant.clone() });
    let resumption =
        Resumption { session: SessionId::from_random([4; 16]), secret: [5; 32], resumes: true, adds: false };
    let hello = Hello::new(InstanceId::from_random([1; 16]), [2; 32], Limits::default());
    Hello { claim, resumption: Some(resumption), build: "hedgerow/0".into(), ..hello }
}

fn goaway() -> GoAway {
    let fault = Fault::new(Code::Draining, "restart");
    GoAway { fault, return_after_ms: 2000, alternatives: vec!["relay2.example:3101".into()] }
}

fn controls() -> Vec<(&'static str, Control)> {
    let ticket = Ticket::from_random([6; 20]);
    let instance = InstanceId::from_random([1; 16]);
    let tunnel = TunnelId::from_random([8; 16]);
    let half = Half { id: HalfId::from_random([3; 8]), secret: Secret::new(vec![4; 32]) };
    vec![
        ("lane-request", LaneRequest { request: 1, to: destination() }.into()),
        ("lane-offer", LaneOffer { request: 1, ticket, node: id(2), instance }.into()),
        ("lane-refused", LaneRefused { request: 1, fault: Fault::new(Code::NoRoute, "nobody") }.into()),
        ("lane-call", LaneCall { ticket, origin: Origin::Proxy, vouched: vouched() }.into()),
        ("pair-request", PairRequest { request: 1, tunnel, node: id(2), instance }.into()),
        ("pair-offer", PairOffer { request: 1, half: half.clone() }.into()),
        ("pair-refused", PairRefused { request: 1, fault: Fault::new(Code::Limited, "full") }.into()),
        ("pair-call", PairCall { tunnel, half: half.clone(), vouched: vouched() }.into()),
        ("pair-end", PairEnd { half: half.id, fault: Fault::new(Code::Ok, "") }.into()),
        ("licence-present", LicencePresent { request: 1, licence: sign_licence(LICENCE.as_bytes()) }.into()),
        (
            "licence-verdict",
            LicenceVerdict {
                request: 1,
                fault: Fault::new(Code::Ok, ""),
                standing: Some(Standing::Grace { until: NOW }),
                required: true,
            }
            .into(),
        ),
        ("wake", Wake { roles: vec![Role::Node, Role::Device], ids: vec![id(9)] }.into()),
    ]
}

fn frames(all: &mut Collected) {
    let fault = Fault::new(Code::Ok, "");
    let data = |stream: u32, offset: u64, bytes: &[u8]| {
        Bytes::from([&frame::data_prefix(StreamId(stream), offset, bytes.len())[..], bytes].concat())
    };
    let mut samples = vec![
        ("hello", frame::cbor(kind::HELLO, 0, &hello())),
        ("open", frame::cbor(kind::OPEN, 2, &through())),
        ("answer", frame::cbor(kind::ANSWER, 2, &fault)),
        ("data", data(2, 0, b"hello, world")),
        ("window", frame::window(Some(StreamId(2)), 12, 4096)),
        ("window-link", frame::window(None, 12, 1 << 20)),
        ("finish", frame::raw(kind::FINISH, 2, &12u64.to_be_bytes())),
        ("reset", frame::cbor(kind::RESET, 2, &Fault::new(Code::Lost, "gone"))),
        ("datagram", frame::raw(kind::DATAGRAM, 0, b"datagram")),
        ("ping", frame::raw(kind::PING, 0, &7u64.to_be_bytes())),
        ("pong", frame::raw(kind::PONG, 0, &7u64.to_be_bytes())),
        ("goaway", frame::cbor(kind::GOAWAY, 0, &goaway())),
        ("optional", frame::raw(0x90, 5, b"from the future")),
        ("required", frame::raw(0x7f, 5, b"from the future")),
    ];
    samples.extend(controls().iter().map(|(name, control)| (*name, control.to_frame())));
    for (name, bytes) in &samples {
        all.chosen("frame", name, 0, bytes);
    }
    let wire: Vec<u8> = samples.iter().filter(|(n, _)| *n != "required").flat_map(|(_, b)| b.to_vec()).collect();
    all.chosen("frame", "all-whole", 0, &wire);
    all.add("frame", "all-in-pieces", [&[4, 0, 6, 40, 1], wire.as_slice()].concat());
    let mut long = frame::raw(kind::DATAGRAM, 0, b"").to_vec();
    long[2..4].copy_from_slice(&[0xff, 0xff]);
    all.chosen("frame", "too-long", 0, &long);
}

fn messages(all: &mut Collected) {
    let fault = Fault::new(Code::Limited, "too many");
    let (_, leaf) = &fixture().leaves[1];
    let mac = Proof::Srp { challenge: [1; 32], mac: [2; 32] };
    let signature = fixture().node_key.sign_message(b"transcript");
    let origins = vec![Origin::Proxy];
    let shown = Proof::Certificate { challenge: [1; 32], leaf: leaf.clone(), signature, origins };
    let accept = Accept {
        session: SessionId::from_random([4; 16]),
        relay: "relay.example".into(),
        lookup_key: Some([3; 32]),
        config: Some(Version { epoch: 1, version: 7 }),
        time: NOW.0,
    };
    let stream = ResumeStream { stream: 2, expected: 10, limit: 4096, finished: false, reset: true, answered: true };
    let open = vec![OpenActivation { hash: [8; 32], until: NOW.0 }];
    all.cbor("hello", 0, &hello());
    all.cbor("proof-srp", 1, &mac);
    all.cbor("proof-certificate", 1, &shown);
    all.cbor("accept", 2, &accept);
    all.cbor("refuse", 3, &Refuse { fault: fault.clone(), retry_after_ms: 500 });
    all.cbor("goaway", 4, &goaway());
    all.cbor(
        "resume",
        5,
        &Resume { streams: vec![stream], highest_opened: 2, highest_accepted: 3, more: false, mac: Some([6; 32]) },
    );
    all.cbor("open-through", 6, &through());
    all.cbor("open-service", 6, &LinkOpen::Service { service: Service::PutConfig });
    all.cbor("open-session", 7, &SessionOpen { host: "intranet.example".into(), port: 443, trace: None, tunnel: None });
    let ask = Some(TunnelAsk { mtu: 1441 });
    all.cbor("open-tunnel", 7, &SessionOpen { host: TUNNEL_HOST.into(), port: 0, trace: None, tunnel: ask });
    let name = |name: &str, origin| RegisteredName { name: name.into(), origin };
    let names = vec![name("mail.example.com", Origin::Gateway), name("mdm.example.com", Origin::Mdm)];
    // As cores wrote it that knew nothing of names: one field.
    all.chosen("message", "registrations-1", 8, &[&[0x81][..], &cbor(&open)].concat());
    all.cbor("registrations", 8, &Registrations { open, names: names.clone(), serves: vec![Origin::Mdm] });
    all.cbor("ca-registration", 9, &CaRegistration { certificate: fixture().authority.certificate().to_vec() });
    for (what, wanted) in
        [("good", name("mail.example.com", Origin::Core)), ("address", name("192.0.2.1", Origin::Mdm))]
    {
        all.add("registrations", what, cbor(&Registrations { names: vec![wanted], ..Registrations::default() }));
    }
    let refused = RefusedName { name: "mail.example.com".into(), fault: fault.clone() };
    let reply = ServiceReply {
        fault: fault.clone(),
        version: Some(Version::default()),
        refused: Some(vec![refused]),
        web: vec!["http://relay.example:8080".into()],
    };
    all.cbor("service-reply", 10, &reply);
    all.cbor("fault", 11, &fault);
    all.cbor("vouched", 12, &vouched());
    all.cbor("destination", 13, &destination());
    all.cbor("claim", 14, &Claim { role: Role::Core, tenant: fixture().tenant.clone() });
    all.cbor("agree", 17, &hello());
    for (name, control) in controls() {
        all.chosen("message", name, 16, &control.to_frame()[frame::HEADER..]);
    }
    all.chosen("message", "control-optional", 16, &[0x80, 1, 0]);
}

fn first_bytes(all: &mut Collected) {
    let ticket = Ticket::from_random([6; 20]);
    let preamble = lane::preamble(&ticket);
    let lane_name = lane::server_name(&ticket, "relay.example");
    all.chosen("lane_preamble", "preamble", 0, &preamble);
    all.chosen("lane_preamble", "preamble-and-more", 0, &[&preamble[..], b"then"].concat());
    all.chosen("lane_preamble", "name", 1, lane_name.as_bytes());
    all.chosen("lane_preamble", "name-capitals", 1, lane_name.to_uppercase().as_bytes());
    all.chosen("lane_preamble", "name-bare", 1, b"lane.relay.example");

    for (name, answer) in [
        ("open", "HTTP/1.1 200 Connection established\r\n\r\n"),
        ("credentials", "HTTP/1.1 407 Auth\r\nProxy-Authenticate: Negotiate, Basic realm=\"a, b\"\r\n\r\n"),
        ("portal", "HTTP/1.0 302 Found\r\nLocation: http://portal.example/login?u=1\r\nContent-Length: 0\r\n\r\nmore"),
    ] {
        all.add("proxy_answer", name, answer.as_bytes());
    }

    let (four, six) = ("192.0.2.7:4711".parse().ok(), "[2001:db8::7]:4711".parse().ok());
    for (name, version, client) in [
        ("v1-four", Form::One, four),
        ("v1-six", Form::One, six),
        ("v1-unknown", Form::One, None),
        ("v2-four", Form::Two, four),
        ("v2-six", Form::Two, six),
        ("v2-local", Form::Two, None),
    ] {
        all.add("proxy_header", name, proxy_protocol::header(version, client, ([192, 0, 2, 1], 443).into()));
    }
    let mut more = proxy_protocol::header(Form::Two, four, ([192, 0, 2, 1], 443).into());
    more[15] += 5;
    more.extend_from_slice(b"\x01\x00\x02h2");
    all.add("proxy_header", "v2-more", more);
    for (name, head) in [
        ("bws", "Host: server01:18084\nTenant-Id: S12345678\nOrigin-Server-Id: bws"),
        ("core", "tenant-id:s12345678\norigin-server-id: CORE \nX: y"),
        ("twice", "Tenant-Id: S12345678\nTenant-Id: S87654321\nOrigin-Server-Id: bws"),
        ("body", "Tenant-Id: S12345678\nOrigin-Server-Id: bws\nContent-Length: 5"),
    ] {
        all.add("connect_head", name, head.as_bytes());
    }
    for (name, request) in [
        ("name", &b"\x05\x01\x00\x05\x01\x00\x03\x0cserver.corp.\x01\xbb"[..]),
        ("four", b"\x05\x02\x00\x02\x05\x01\x00\x01\x0a\x01\x02\x03\x00\x50"),
        ("six", b"\x05\x01\x00\x05\x01\x00\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07\x00\x50"),
        ("bind", b"\x05\x01\x00\x05\x02\x00\x01\x0a\x01\x02\x03\x00\x50"),
        ("password", b"\x05\x01\x02"),
        ("four-of-old", b"\x04\x01\x00\x50\x0a\x01\x02\x03\x00"),
    ] {
        all.add("socks", name, request);
    }
    let word = [0, 0, 0, 0, 0, 0, 0, 7];
    for (name, first, rest) in
        [("data", kind::DATAGRAM, &b"a record"[..]), ("ping", kind::PING, &word), ("pong", kind::PONG, &word)]
    {
        all.add("quic_datagram", name, [&[8, 0, first], rest].concat());
    }
    all.add("quic_datagram", "padded-ping", [&[8, 0, kind::PING][..], &word, &[0; 40]].concat());
    all.add("quic_datagram", "too-large", [&[0, 4, kind::DATAGRAM][..], &[1; 5]].concat());

    let own = Half { id: HalfId::from_random([1; 8]), secret: Secret::new(vec![1; 32]) };
    let other = HalfId::from_random([2; 8]);
    let of = |id: HalfId, body: &[u8]| [&[tunnel::kind::DATA], &id.to_bytes()[..], body].concat();
    let datagrams = |stride: u8, all: &[Vec<u8>]| [&[0, stride][..], &all.concat()].concat();
    for (name, message) in [
        ("attach", tunnel::Message::attach(&own, 7)),
        ("challenge", tunnel::Message::Challenge { nonce: [3; 16] }),
        ("confirm", tunnel::Message::confirm(&own, [3; 16])),
        ("attached", tunnel::Message::Attached { nonce: [3; 16] }),
        ("ping", tunnel::Message::Ping(1)),
        ("pong", tunnel::Message::Pong(1)),
        ("bind", tunnel::Message::Bind),
    ] {
        all.add("tunnel_datagram", name, datagrams(200, &[message.to_datagram(own.id)]));
    }
    let batch = [
        of(own.id, b"abcd"),
        of(own.id, b"efgh"),
        of(other, b"ijkl"),
        tunnel::Message::Ping(1).to_datagram(other),
        of(own.id, b"m"),
    ];
    all.add("tunnel_datagram", "batch", datagrams(13, &batch));
    all.add("tunnel_datagram", "empty", datagrams(9, &[of(own.id, b""), of(own.id, b"")]));

    all.add("udp_batch", "mixed", [0, 2, 0x40, 1, 0xc0, 2, 0x80, 3, 0xbf, 4, 0x7f, 5, 0xa0]);
    all.add("udp_batch", "one-kind", [0, 3, 0x80, 1, 2, 0x81, 3, 4, 0x9f, 5]);
    all.add("udp_batch", "single", [5, 220, 0x45, 1, 2, 3]);

    let token = EnrolmentToken {
        tenant: fixture().tenant.clone(),
        relays: vec!["relay.example:3101".into(), "[2001:db8::1]:443".into()],
        relay_ca_pin: Some([1; 32]),
        tenant_ca_pin: fixture().ca.key_id(),
        id: id(3),
        secret: [4; 32],
    };
    all.chosen("token", "text", 0, token.to_text().as_bytes());
    all.chosen("token", "cbor", 1, &cbor(&token));

    for (name, text) in [
        ("tenant", "srp00000"),
        ("entity", "01010101-0101-4101-8101-010101010101"),
        ("group", "berlin-2.a_b"),
        ("role", "device"),
        ("origin", "secure-connect"),
        ("session", &SessionId::from_random([4; 16]).to_string()),
        ("ticket", &ticket.to_string()),
        ("identity", &fixture().leaves[1].0.to_uri()),
    ] {
        all.add("names", name, text);
    }

    let hellos = [
        ("plain", client_hello(Some("relay.example"), &[b"hedgerow-link/1"])),
        ("http", client_hello(Some("Relay.Example"), &[b"h2", b"http/1.1"])),
        ("lane", client_hello(Some(&lane_name), &[])),
        ("nameless", client_hello(None, &[b"h2"])),
        ("address", client_hello(Some("192.0.2.1"), &[])),
        ("hostile-name", client_hello(Some("relay.example\0.evil"), &[])),
        ("large", client_hello(Some("relay.example"), &[&[b'x'; 255][..]; 40])),
    ];
    for (name, message) in &hellos {
        for (cut, size) in [("whole", 16 * 1024), ("split", 50)] {
            let records: Vec<u8> = message.chunks(size).flat_map(|piece| record(22, piece)).collect();
            all.add("client_hello", &format!("{name}-{cut}"), records);
        }
    }
    all.add("client_hello", "alert-inside", [record(22, &hellos[0].1[..20]), record(21, &[2, 40])].concat());
    all.add("client_hello", "http-request", "GET / HTTP/1.1\r\nHost: relay.example\r\n\r\n");
}

fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[kind, 3, 1, high, low], body].concat()
}

/// A handshake message with the extensions that the relay looks at and one that it does not.
fn client_hello(name: Option<&str>, protocols: &[&[u8]]) -> Vec<u8> {
    let list = |body: Vec<u8>| [&u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes()[..], &body].concat();
    let extension = |kind: u16, body: Vec<u8>| [kind.to_be_bytes().to_vec(), list(body)].concat();
    let mut extensions = extension(0x0a0a, Vec::new());
    if let Some(name) = name {
        extensions.extend(extension(0, list([vec![0], list(name.into())].concat())));
    }
    if !protocols.is_empty() {
        let names = protocols.iter().flat_map(|p| [&[p.len() as u8], *p].concat()).collect();
        extensions.extend(extension(16, list(names)));
    }
    let head: [&[u8]; 5] = [&[3, 3], &[7; 32], &[0], &[0, 2, 0x13, 0x01], &[1, 0]];
    let body = [head.concat(), list(extensions)].concat();
    [&[1], &u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes()[1..], &body].concat()
}

fn trust(all: &mut Collected) {
    let fixture = fixture();
    all.chosen("certificate", "ca", 0, fixture.authority.certificate());
    all.chosen("certificate", "leaf-as-ca", 0, &fixture.leaves[1].1);
    for (identity, leaf) in &fixture.leaves {
        all.chosen("certificate", identity.role.as_str(), 1, leaf);
    }
    all.add("certificate", "patched", [2, 1, 0, 40, 1, 1, 0, 2]);
    all.add("certificate", "unpatched", [2, 2]);
    all.add("csr", "request", fixture.node_key.certificate_request().expect("a request"));

    let signed = sign_licence(LICENCE.as_bytes());
    all.chosen("licence", "cbor", 0, &cbor(&signed));
    all.chosen("licence", "mail", 1, format!("Dear customer,\r\n\r\n{}\r\nYours", signed.to_pem()).as_bytes());
    all.chosen("licence", "payload", 2, LICENCE.as_bytes());
    all.chosen("licence", "key", 3, licence_key().to_pem().as_bytes());

    let (relay, node, device) = documents();
    let sign = "a document can be signed";
    let signed = [fixture.config_key.sign(&relay), fixture.config_key.sign(&node), fixture.config_key.sign(&device)];
    for (name, config) in ["relay", "node", "device"].iter().zip(signed) {
        let config = config.expect(sign);
        all.chosen("signed_config", &format!("{name}-cbor"), 0, &cbor(&config));
        all.chosen("signed_config", &format!("{name}-json"), 1, &config.payload);
        all.cbor(&format!("signed-{name}"), 15, &config);
    }
}

fn documents() -> (RelayConfig, NodeConfig, DeviceConfig) {
    let head = |audience| Head {
        tenant: fixture().tenant.clone(),
        audience,
        version: Version { epoch: 1, version: 7 },
        issued: NOW,
        expires: NOW.plus(3600),
    };
    let revoked = Revoked { ids: vec![id(1)], serials: vec!["40ab".into()] };
    let rule = |action, target: &str, ports: &str| Rule {
        action,
        target: target.parse().expect("a pattern"),
        ports: ports.parse().expect("ports"),
        group: "berlin".parse().ok(),
    };
    let route = |target: &str, via| Route {
        target: target.parse().expect("a pattern"),
        ports: "443".parse().expect("ports"),
        via,
    };
    let group = Via::Group("berlin".parse().expect("a group"));
    (
        RelayConfig { authorities: Vec::new(), head: head(Audience::Relay), revoked: revoked.clone() },
        NodeConfig {
            authorities: Vec::new(),
            head: head(Audience::Node),
            revoked,
            scopes: vec![Scope {
                name: "field sales".into(),
                enabled: true,
                tunnel: false,
                rest: true,
                devices: vec![EntityId::from_random([7; 16])],
                ..Scope::default()
            }],
            rules: vec![rule(Action::Allow, "*.corp.example", "80,443"), rule(Action::Deny, "10.0.0.0/8", "*")],
        },
        DeviceConfig {
            authorities: Vec::new(),
            head: head(Audience::Device),
            routes: vec![route("*.corp.example", group), route("2001:db8::/32", Via::Direct)],
            default_route: Via::Deny,
        },
    )
}

fn policies(all: &mut Collected) {
    for (i, text) in
        ["*", "intranet.example", "*.intranet.example", "10.1.0.0/16", "2001:db8::/32", "::ffff:10.0.0.0/104"]
            .iter()
            .enumerate()
    {
        all.chosen("policy", &format!("pattern-{i}"), 0, text.as_bytes());
    }
    all.chosen("policy", "ports", 1, b"80, 443,8000-8999");
    all.chosen("policy", "ports-any", 1, b"*");
    all.chosen("policy", "via", 2, b"group:berlin");
    let (_, node, device) = documents();
    all.json("policy", "rule", 3, &node.rules[0]);
    all.json("policy", "route", 4, &device.routes[0]);

    for (i, text) in [
        "Intranet.Example.:443",
        "B\u{fc}cher.example:80",
        "[2001:db8::1]:8443",
        "::ffff:127.0.0.1",
        "0x7f.1",
        "①②⑦.0.0.1",
        "xn--bcher-kva.example",
        "fe80::1%eth0",
        "user@host:80",
        "[::1]",
    ]
    .iter()
    .enumerate()
    {
        all.add("target", &format!("{i}"), *text);
    }

    let general =
        "allow *.corp.example 443\nallow 10.0.0.0/8\ndeny 10.9.0.0/16\nallow 127.0.0.1/32 8080\nown 10.0.0.1:443\n";
    for (name, ask) in [
        ("name", "ask app.corp.example:443 10.1.2.3,127.0.0.1,10.0.0.1"),
        ("address", "ask 10.9.1.1:80\nask 127.0.0.1:8080"),
        ("embedded", "ask [64:ff9b::7f00:1]:443\nask [2002:7f00:1::]:443\nask [::ffff:10.1.1.1]:443"),
        ("metadata", "allow 169.254.0.0/16\nask 169.254.169.254:80\nask md.corp.example:443 169.254.169.254"),
        ("any", "allow *\nask 127.0.0.1:1\nask [fe80::1]:1\nask a.example 0.0.0.0"),
    ] {
        all.add("acl", name, format!("{general}{ask}"));
    }

    all.chosen("role_config", "short", 2, b"state = '/tmp/x'\n[timers]\nscale = 0.01\n[proxy]\nsocks5 = \"[::1]:0\"");
    all.chosen("role_config", "nan", 2, b"state = 'x'\n[timers]\nscale = nan");
    all.chosen("role_config", "key-of-two-lines", 2, b"state = 'x'\n\"a\\nb\" = 1");
    let ages = b"name = 'r'\nstate = 'x'\nlisten = { link = ['[::]:1'], device = [] }\ntimers.scale = 10.0\n\
        drain.seconds = 9223372036854775807";
    all.chosen("role_config", "drain-for-ages", 0, ages);
    all.chosen("role_config", "unknown", 0, b"name = 1\nstte = 'x'\n[listen]\nlinks = []\ndevice = 0x1f");
    all.chosen("role_config", "hosts", 1, b"state = 'x'\n[hosts]\n'a b' = []\n\"intranet.example\" = ['10.1.2.3']");
}

fn core(all: &mut Collected) {
    let fixture = fixture();
    let csr = fixture.node_key.certificate_request().expect("a request");
    let (_, node, device) = documents();
    let sign = "a document can be signed";
    let enrolled = NodeEnrolled {
        node: id(2),
        name: "berlin-1".into(),
        group: "berlin".parse().expect("a group"),
        origins: vec![Origin::Proxy],
        certificate: fixture.leaves[1].1.clone(),
        ca: fixture.authority.certificate().to_vec(),
        relays: vec!["relay.example:3101".into()],
        relay_name: Some("relay.example".into()),
        relay_ca_pem: None,
        config: fixture.config_key.sign(&node).expect(sign),
    };
    let sealed = channels().0.seal(SEALED, &mut random("seal")).expect("the first message can be sealed");
    let activated = Activated { sealed, config: fixture.config_key.sign(&device).expect(sign) };
    let request = EnrolNode { token: id(3), secret: vec![4; 32], csr, name: Some("berlin-1".into()) };
    all.json("core_api", "enrol", 0, &request);
    all.json("core_api", "enrolled", 1, &enrolled);
    all.json("core_api", "activated", 2, &activated);
    all.json("core_api", "refused", 3, &Refused { error: "the token is used".into() });
    all.chosen("core_api", "have", 4, b"2.41");
    all.chosen("core_api", "relays", 5, b"[::1]:443\nrelay.example:3101");
}

fn activations(all: &mut Collected) {
    let start = Start { user: "anna@example.com".parse().expect("an address") };
    let (mut core, _, confirmation) = channels();
    let reply = EnrolReply {
        device: id(3),
        email: start.user.clone(),
        display_name: "Anna".into(),
        ca: fixture().authority.certificate().to_vec(),
        certificate: fixture().leaves[2].1.clone(),
        relays: vec!["relay.example:443".into()],
        relay_name: None,
        relay_ca_pem: None,
        activation: None,
    };
    let csr = fixture().node_key.certificate_request().expect("a request");
    all.json("activation", "start", 0, &start);
    all.json("activation", "offer", 1, &run().offer);
    all.json("activation", "proof", 2, &proof().1);
    all.json("activation", "confirmation", 3, &confirmation);
    let sealed = core.seal(SEALED, &mut random("seal")).expect("the first message can be sealed");
    all.json("activation", "sealed", 4, &sealed);
    all.json("activation", "request", 5, &EnrolRequest { csr, name: "laptop".into(), platform: "Linux 6".into() });
    all.json("activation", "reply", 6, &reply);
    all.chosen("activation", "email", 7, " Anna.Smith@Example.COM ".as_bytes());
    let mut infinity = run().offer;
    infinity.share = [0; 133];
    all.json("activation", "infinity", 1, &infinity);
}

fn multiplexer(all: &mut Collected) {
    let header = cbor(&SessionOpen { host: "intranet.example".into(), port: 80, trace: None, tunnel: None });
    let data = |stream: u32, offset: u64, bytes: &[u8]| {
        [&frame::data_prefix(StreamId(stream), offset, bytes.len())[..], bytes].concat()
    };
    let word = |kind, stream, n: u64| frame::raw(kind, stream, &n.to_be_bytes()).to_vec();
    // The dialler's streams are even, the acceptor's odd.
    for (name, side, first) in [("dialler", 1u8, 1u32), ("acceptor", 0, 2)] {
        let wire = [
            frame::raw(kind::OPEN, first, &header).to_vec(),
            data(first, 0, b"hello"),
            data(first, 5, &[7; 150]),
            frame::window(Some(StreamId(first)), 0, 8192).to_vec(),
            frame::window(None, 0, 8192).to_vec(),
            word(kind::FINISH, first, 155),
            word(kind::PING, 0, 1),
            controls()[4].1.to_frame().to_vec(),
            frame::raw(kind::DATAGRAM, 0, b"datagram").to_vec(),
            frame::raw(kind::OPEN, first + 2, b"").to_vec(),
            frame::cbor(kind::RESET, first + 2, &Fault::new(Code::Ok, "")).to_vec(),
            data(first + 2, 0, b"late"),
            frame::cbor(kind::GOAWAY, 0, &goaway()).to_vec(),
        ];
        for flags in [0, 0b10, 0b100, 0b1110, 0b10000, 0b100110] {
            let pieces = wire.iter().flat_map(|f| {
                let chunks: Vec<Vec<u8>> = f.chunks(255).map(|c| [&[c.len() as u8], c].concat()).collect();
                chunks.concat()
            });
            let bytes: Vec<u8> = std::iter::once(flags | side).chain(pieces).collect();
            all.add("mux", &format!("{name}-{flags}"), bytes);
        }
    }
    all.add("mux", "silence", [0; 12]);
    // Open, write, send, deliver, read, finish, both ways; see `mux_calls` for the numbers.
    let exchange: &[u8] = &[
        0, 4, 2, 0, 200, 16, 255, 18, 0, 255, 18, 0, 255, 13, 0, 3, 0, 90, 17, 255, 19, 0, 255, 12, 0, 6, 0, 16, 255,
        18, 0, 255, 13, 0, 7, 0, 17, 255, 19, 0, 255, 12, 0, 10, 0, 11, 0,
    ];
    all.chosen("mux_calls", "exchange-link", 0, exchange);
    all.chosen("mux_calls", "exchange-session", 1, exchange);
    all.chosen("mux_calls", "window", 0, &[0, 0, 2, 0, 255, 2, 0, 255, 2, 0, 255, 16, 255, 18, 0, 255, 13, 3, 17, 9]);
    all.chosen("mux_calls", "reset", 1, &[0, 0, 2, 0, 255, 16, 255, 18, 0, 255, 9, 0, 17, 255, 19, 0, 255]);
    all.chosen("mux_calls", "refused", 0, &[0, 0, 2, 0, 9, 16, 255, 18, 255, 255, 17, 255, 19, 0, 255]);
    all.chosen("mux_calls", "drain", 0, &[0, 0, 30, 0, 0, 0, 16, 9, 18, 0, 9, 22, 4, 24, 0, 26, 5, 27, 250]);
    all.chosen("mux_calls", "foreign", 1, &[0, 0, 28, 9, 0x20, 0, 0, 1, 0, 0, 0, 0, 0, 18, 0, 255]);
    // A request and half its answer before the lane is lost; then honest, and with each of the lies.
    let life = |rest: &[u8]| [&[14u8], &exchange[..44], &[0, 0, 0], rest].concat();
    all.chosen("mux_resume", "honest", 0, &life(&[]));
    all.chosen("mux_resume", "twice", 4, &life(&life(&[])));
    for what in 0..9u8 {
        for victim in [1u8, 3] {
            let lie = life(&[1, what, 0, 3, 3, 3]);
            all.chosen("mux_resume", &format!("lie-{what}-{victim}"), victim, &lie);
        }
    }
}
