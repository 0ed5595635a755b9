//! A QUIC client made by hand: it sends what no well-behaved library sends, and says what comes back. Included by
//! integration tests.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_runtime::tls::RelayRoots;
use hedgerow_shared::wire::message::ALPN_LINK;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::quic::{ClientConnection, KeyChange, Keys, Version};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::common::{LONG, NAME, World};

/// The connection id that the relay sends to.
pub const OURS: [u8; 8] = [7; 8];
/// The least size of a datagram with a client's Initial (RFC 9000 section 14.1).
pub const FULL: usize = 1200;
const V1: u32 = 1;

pub const INITIAL: usize = 0;
pub const HANDSHAKE: usize = 1;
pub const DATA: usize = 2;

/// Numbers of errors (RFC 9000 section 20.1).
pub const FLOW_CONTROL: u64 = 3;
pub const STREAM_LIMIT: u64 = 4;
pub const STREAM_STATE: u64 = 5;
pub const FRAME_ENCODING: u64 = 7;
pub const TRANSPORT_PARAMETER: u64 = 8;
pub const CONNECTION_ID_LIMIT: u64 = 9;
pub const PROTOCOL_VIOLATION: u64 = 10;
pub const INVALID_TOKEN: u64 = 11;
pub const CRYPTO_BUFFER: u64 = 13;

/// What is in a datagram of the relay's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Got {
    /// A frame that is not one of those below: its type.
    Frame(u64),
    /// CONNECTION_CLOSE, with its error.
    Close(u64),
    PathResponse([u8; 8]),
    RetireConnectionId(u64),
    NewConnectionId(Vec<u8>),
    Retry(Vec<u8>),
    Versions(Vec<u32>),
    /// What no key of the connection opens.
    Sealed(usize),
}

#[derive(Default)]
struct Space {
    keys: Option<Keys>,
    next: u64,
    largest: Option<u64>,
    sent_crypto: u64,
    read_crypto: u64,
    pieces: BTreeMap<u64, Vec<u8>>,
    to_acknowledge: Option<u64>,
}

pub struct Craft {
    pub socket: UdpSocket,
    pub to: SocketAddr,
    tls: ClientConnection,
    /// Where packets go: the relay's connection id.
    pub theirs: Vec<u8>,
    pub token: Vec<u8>,
    hello: Vec<u8>,
    level: usize,
    spaces: [Space; 3],
    /// Whether what comes is acknowledged.
    pub acknowledges: bool,
    pub sent: usize,
    pub received: usize,
    /// The largest datagram that came.
    pub largest: usize,
}

pub fn varint(n: u64) -> Vec<u8> {
    match n {
        0..0x40 => vec![u8::try_from(n).unwrap()],
        0x40..0x4000 => (u16::try_from(n).unwrap() | 0x4000).to_be_bytes().to_vec(),
        0x4000..0x4000_0000 => (u32::try_from(n).unwrap() | 0x8000_0000).to_be_bytes().to_vec(),
        _ => (n | 0xc000_0000_0000_0000).to_be_bytes().to_vec(),
    }
}

/// Takes a number off the front.
fn number(bytes: &mut &[u8]) -> u64 {
    let length = 1 << (bytes[0] >> 6);
    let (head, rest) = bytes.split_at(length);
    *bytes = rest;
    head.iter().fold(0, |n, b| n << 8 | u64::from(*b)) & (u64::MAX >> (66 - 8 * length))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (head, rest) = bytes.split_at(length);
    *bytes = rest;
    head
}

/// Transport parameters, in the order given.
pub type Parameters = Vec<(u64, Vec<u8>)>;

/// What an ordinary client says.
pub fn parameters() -> Parameters {
    let mut all: Parameters =
        [(1, 30_000), (4, 1 << 20), (5, 1 << 18), (6, 1 << 18), (7, 1 << 18), (8, 100), (9, 100), (0x0e, 2)]
            .map(|(id, n)| (id, varint(n)))
            .to_vec();
    all.push((0x0f, OURS.to_vec()));
    all
}

/// With one of them replaced, or added.
pub fn with(id: u64, value: Vec<u8>) -> Parameters {
    let mut all = parameters();
    all.retain(|(other, _)| *other != id);
    all.push((id, value));
    all
}

/// Transport parameters as they travel.
pub fn encoded(parameters: &Parameters) -> Vec<u8> {
    parameters
        .iter()
        .flat_map(|(id, value)| [varint(*id), varint(value.len() as u64), value.clone()].concat())
        .collect()
}

/// A STREAM frame with an offset and a length.
pub fn stream(id: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    [&[0x0e][..], &varint(id), &varint(offset), &varint(data.len() as u64), data].concat()
}

/// A CRYPTO frame.
pub fn crypto(offset: u64, data: &[u8]) -> Vec<u8> {
    [&[6][..], &varint(offset), &varint(data.len() as u64), data].concat()
}

/// NEW_CONNECTION_ID.
pub fn new_connection_id(sequence: u64, retire_prior_to: u64) -> Vec<u8> {
    // As long as `OURS`, so that what is sent to it can be read.
    [&[0x18][..], &varint(sequence), &varint(retire_prior_to), &[8], &sequence.to_be_bytes(), &[9; 16]].concat()
}

impl Craft {
    /// A client on `source`, which has sent nothing yet.
    pub async fn new(world: &World, source: &str, parameters: &Parameters) -> Self {
        Self::made(&world.roots(), world.relay.link[0], source, encoded(parameters)).await
    }

    /// One on the socket of another.
    pub fn on(socket: UdpSocket, world: &World) -> Self {
        Self::with_socket(socket, &world.roots(), world.relay.link[0], encoded(&parameters()))
    }

    /// One that believes whom it likes.
    pub async fn with_roots(roots: &RelayRoots, to: SocketAddr, source: &str, parameters: &Parameters) -> Self {
        Self::made(roots, to, source, encoded(parameters)).await
    }

    /// One whose transport parameters are any bytes.
    pub async fn with_raw_parameters(world: &World, parameters: &[u8]) -> Self {
        Self::made(&world.roots(), world.relay.link[0], "127.0.0.1:0", parameters.to_vec()).await
    }

    async fn made(roots: &RelayRoots, to: SocketAddr, source: &str, parameters: Vec<u8>) -> Self {
        Self::with_socket(UdpSocket::bind(source).await.unwrap(), roots, to, parameters)
    }

    fn with_socket(socket: UdpSocket, roots: &RelayRoots, to: SocketAddr, parameters: Vec<u8>) -> Self {
        let RelayRoots::Ca(ca) = roots else { panic!("a CA") };
        let mut roots = RootCertStore::empty();
        ca.iter().for_each(|c| roots.add(c.clone()).unwrap());
        // One small share, so that a ClientHello fits a datagram.
        let provider = rustls::crypto::CryptoProvider {
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        };
        let mut config = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN_LINK.to_vec()];
        let mut tls =
            ClientConnection::new(Arc::new(config), Version::V1, NAME.try_into().unwrap(), parameters).unwrap();
        let mut hello = Vec::new();
        assert!(tls.write_hs(&mut hello).is_none());
        let theirs = hedgerow_runtime::clock::random::<8>().to_vec();
        let spaces =
            [Space { keys: Some(initial_keys(&theirs)), ..Space::default() }, Space::default(), Space::default()];
        Self {
            socket,
            to,
            tls,
            theirs,
            token: Vec::new(),
            hello,
            level: INITIAL,
            spaces,
            acknowledges: true,
            sent: 0,
            received: 0,
            largest: 0,
        }
    }

    /// One with a hand-shake behind it.
    pub async fn connected(world: &World) -> Self {
        let mut craft = Self::new(world, "127.0.0.1:0", &parameters()).await;
        let first = craft.first();
        craft.send(&first).await;
        craft.shake().await;
        craft
    }

    /// The datagram with the ClientHello.
    pub fn first(&mut self) -> Vec<u8> {
        let hello = crypto(0, &self.hello);
        self.packet(INITIAL, &hello, FULL)
    }

    pub async fn send(&mut self, datagram: &[u8]) {
        self.sent += datagram.len();
        self.socket.send_to(datagram, self.to).await.unwrap();
    }

    /// Sends frames in a packet of the application's space.
    pub async fn say(&mut self, frames: &[u8]) {
        let packet = self.packet(DATA, frames, 0);
        self.send(&packet).await;
    }

    /// The next packet of a space with these frames, padded to a size.
    pub fn packet(&mut self, space: usize, frames: &[u8], size: usize) -> Vec<u8> {
        let number = self.spaces[space].next;
        self.spaces[space].next += 1;
        let mut header = match space {
            DATA => [&[0x43][..], &self.theirs].concat(),
            _ => {
                let first = if space == INITIAL { 0xc3 } else { 0xe3 };
                let mut header = [&[first][..], &V1.to_be_bytes(), &[self.theirs.len() as u8], &self.theirs].concat();
                header.extend([&[OURS.len() as u8][..], &OURS].concat());
                if space == INITIAL {
                    header.extend([varint(self.token.len() as u64), self.token.clone()].concat());
                }
                header
            }
        };
        let mut payload = frames.to_vec();
        // Length, number and tag follow; the sample of the header's protection needs four bytes.
        let around = header.len() + if space == DATA { 0 } else { 2 } + 4 + 16;
        payload.resize(payload.len().max(size.saturating_sub(around)).max(4), 0);
        if space != DATA {
            header.extend((u16::try_from(4 + payload.len() + 16).unwrap() | 0x4000).to_be_bytes());
        }
        let at = header.len();
        header.extend(u32::try_from(number).unwrap().to_be_bytes());
        let keys = &self.spaces[space].keys.as_ref().expect("keys of this space").local;
        let tag = keys.packet.encrypt_in_place(number, &header, &mut payload).unwrap();
        let mut packet = [&header[..], &payload, tag.as_ref()].concat();
        let (head, sample) = packet.split_at_mut(at + 4);
        let (first, rest) = head.split_first_mut().unwrap();
        keys.header.encrypt_in_place(&sample[..16], first, &mut rest[at - 1..]).unwrap();
        packet
    }

    /// Waits for a datagram and reads it; `None` when none comes in time.
    pub async fn receive(&mut self, limit: Duration) -> Option<Vec<Got>> {
        let mut buffer = vec![0; 65_536];
        let length = timeout(limit, self.socket.recv(&mut buffer)).await.ok()?.unwrap();
        self.received += length;
        self.largest = self.largest.max(length);
        let mut got = Vec::new();
        let mut rest = &mut buffer[..length];
        while !rest.is_empty() && rest[0] != 0 {
            let used = self.read_packet(rest, &mut got);
            rest = &mut rest[used..];
        }
        if self.acknowledges {
            self.acknowledge().await;
        }
        Some(got)
    }

    async fn acknowledge(&mut self) {
        for space in [INITIAL, HANDSHAKE, DATA] {
            if let Some(number) = self.spaces[space].to_acknowledge.take() {
                let ack = [&[2][..], &varint(number), &[0, 0, 0]].concat();
                let packet = self.packet(space, &ack, if space == INITIAL { FULL } else { 0 });
                self.send(&packet).await;
            }
        }
    }

    /// Reads one packet; how long it is.
    fn read_packet(&mut self, packet: &mut [u8], got: &mut Vec<Got>) -> usize {
        let first = packet[0];
        let all = packet.len();
        let (space, at, end) = if first & 0x80 == 0 {
            (DATA, 1 + OURS.len(), all)
        } else {
            let mut rest = &packet[1..];
            let version = take(&mut rest, 4).to_vec();
            let length = usize::from(take(&mut rest, 1)[0]);
            take(&mut rest, length);
            let length = usize::from(take(&mut rest, 1)[0]);
            let source = take(&mut rest, length).to_vec();
            if version == [0; 4] {
                let versions = rest.chunks_exact(4).map(|v| u32::from_be_bytes(v.try_into().unwrap()));
                got.push(Got::Versions(versions.collect()));
                return all;
            }
            if first & 0x30 == 0x30 {
                let token = rest[..rest.len() - 16].to_vec();
                self.theirs = source;
                self.token.clone_from(&token);
                self.spaces[INITIAL].keys = Some(initial_keys(&self.theirs));
                got.push(Got::Retry(token));
                return all;
            }
            let space = if first & 0x30 == 0 { INITIAL } else { HANDSHAKE };
            if space == INITIAL {
                let length = number(&mut rest);
                take(&mut rest, usize::try_from(length).unwrap());
                self.theirs = source;
            }
            let length = usize::try_from(number(&mut rest)).unwrap();
            let at = all - rest.len();
            (space, at, at + length)
        };
        let Some(payload) = self.open(space, &mut packet[..end], at) else {
            got.push(Got::Sealed(end));
            return end;
        };
        self.read_frames(space, &payload, got);
        self.advance();
        end
    }

    fn open(&mut self, space: usize, packet: &mut [u8], at: usize) -> Option<Vec<u8>> {
        let state = &mut self.spaces[space];
        let keys = &state.keys.as_ref()?.remote;
        let sample: [u8; 16] = packet.get(at + 4..at + 20)?.try_into().unwrap();
        let (first, rest) = packet.split_first_mut().unwrap();
        keys.header.decrypt_in_place(&sample, first, &mut rest[at - 1..at + 3]).ok()?;
        let length = usize::from(packet[0] & 3) + 1;
        let said = packet[at..at + length].iter().fold(0, |n, b| n << 8 | u64::from(*b));
        // The nearest number to the next one that ends so (RFC 9000 appendix A.3).
        let (expected, window) = (state.largest.map_or(0, |n| n + 1), 1u64 << (8 * length));
        let near = expected & !(window - 1) | said;
        let number = match near {
            n if n + window / 2 <= expected => n + window,
            n if n > expected + window / 2 && n >= window => n - window,
            n => n,
        };
        let (header, payload) = packet.split_at_mut(at + length);
        let payload = keys.packet.decrypt_in_place(number, header, payload).ok()?.to_vec();
        state.largest = state.largest.max(Some(number));
        // Only this one, because numbers are left out to catch who acknowledges what did not come.
        state.to_acknowledge = Some(number);
        Some(payload)
    }

    fn read_frames(&mut self, space: usize, payload: &[u8], got: &mut Vec<Got>) {
        let mut rest = payload;
        while !rest.is_empty() {
            let kind = number(&mut rest);
            let mut skip = |count: usize| (0..count).for_each(|_| _ = number(&mut rest));
            match kind {
                0 => continue,
                1 | 0x1e => {}
                2 | 3 => {
                    skip(2);
                    let ranges = number(&mut rest);
                    (0..1 + 2 * ranges + if kind == 3 { 3 } else { 0 }).for_each(|_| _ = number(&mut rest));
                }
                6 => {
                    let (offset, length) = (number(&mut rest), number(&mut rest));
                    let data = take(&mut rest, usize::try_from(length).unwrap());
                    self.spaces[space].pieces.insert(offset, data.to_vec());
                }
                4 => skip(3),
                5 | 0x11 | 0x15 => skip(2),
                0x10 | 0x12 | 0x13 | 0x14 | 0x16 | 0x17 => skip(1),
                7 | 0x31 => {
                    let length = number(&mut rest);
                    take(&mut rest, usize::try_from(length).unwrap());
                }
                8..=0x0f => {
                    skip(1 + usize::from(kind & 4 != 0));
                    let length = if kind & 2 == 0 { rest.len() } else { usize::try_from(number(&mut rest)).unwrap() };
                    take(&mut rest, length);
                }
                0x18 => {
                    skip(2);
                    let length = usize::from(take(&mut rest, 1)[0]);
                    let id = take(&mut rest, length).to_vec();
                    take(&mut rest, 16);
                    got.push(Got::NewConnectionId(id));
                    continue;
                }
                0x19 => {
                    got.push(Got::RetireConnectionId(number(&mut rest)));
                    continue;
                }
                0x1b => {
                    got.push(Got::PathResponse(take(&mut rest, 8).try_into().unwrap()));
                    continue;
                }
                0x1c | 0x1d => {
                    let error = number(&mut rest);
                    if kind == 0x1c {
                        number(&mut rest);
                    }
                    let length = number(&mut rest);
                    take(&mut rest, usize::try_from(length).unwrap());
                    got.push(Got::Close(error));
                    continue;
                }
                0x1a => _ = take(&mut rest, 8),
                // Datagrams without a length, and what is not known here.
                _ => rest = &[],
            }
            got.push(Got::Frame(kind));
        }
        let state = &mut self.spaces[space];
        while let Some((offset, data)) = state.pieces.pop_first() {
            let known = state.read_crypto.saturating_sub(offset);
            if offset > state.read_crypto {
                state.pieces.insert(offset, data);
                break;
            }
            let new = data.get(usize::try_from(known).unwrap()..).unwrap_or_default();
            state.read_crypto += new.len() as u64;
            if !new.is_empty() {
                self.tls.read_hs(new).unwrap();
            }
        }
    }

    /// Takes the keys that TLS has, and what it wants to say.
    fn advance(&mut self) {
        loop {
            let mut said = Vec::new();
            let change = self.tls.write_hs(&mut said);
            if !said.is_empty() {
                // The client's Finished: kept for `shake`.
                self.hello = said;
            }
            let keys = match change {
                Some(KeyChange::Handshake { keys } | KeyChange::OneRtt { keys, .. }) => keys,
                None => return,
            };
            self.level += 1;
            self.spaces[self.level].keys = Some(keys);
        }
    }

    /// Goes on until the relay says that the hand-shake is done.
    pub async fn shake(&mut self) {
        let mut finished = false;
        loop {
            let got = self.receive(LONG).await.expect("the relay answers");
            assert!(!got.iter().any(|g| matches!(g, Got::Close(_))), "{got:?}");
            if self.level == DATA && !finished {
                finished = true;
                let message = crypto(0, &self.hello.clone());
                let packet = self.packet(HANDSHAKE, &message, 0);
                self.send(&packet).await;
            }
            if got.contains(&Got::Frame(0x1e)) {
                return;
            }
        }
    }

    /// Begins again with a token, at a connection id.
    pub fn use_token(&mut self, theirs: &[u8], token: Vec<u8>) {
        self.theirs = theirs.to_vec();
        self.token = token;
        self.spaces[INITIAL].keys = Some(initial_keys(theirs));
    }

    /// Bytes that come in this time, read by nobody.
    pub async fn count(&mut self, limit: Duration) -> usize {
        let deadline = tokio::time::Instant::now() + limit;
        let (mut bytes, mut buffer) = (0, vec![0; 65_536]);
        while let Ok(length) = tokio::time::timeout_at(deadline, self.socket.recv(&mut buffer)).await {
            bytes += length.unwrap();
        }
        bytes
    }

    /// Whether the relay goes on with the hand-shake; `None` when it says nothing.
    pub async fn is_greeted(&mut self, limit: Duration) -> Option<bool> {
        let got = self.receive(limit).await?;
        Some(got.contains(&Got::Frame(6)))
    }

    /// The error with which the relay ends the connection; `None` when it says none in time.
    pub async fn closed(&mut self, limit: Duration) -> Option<u64> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let got = self.receive(left).await?;
            if let Some(error) = got.iter().find_map(|g| if let Got::Close(e) = g { Some(*e) } else { None }) {
                return Some(error);
            }
        }
    }
}

fn initial_keys(theirs: &[u8]) -> Keys {
    let suite = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().and_then(|s| s.quic_suite());
    suite.expect("the suite of Initial packets").keys(theirs, rustls::Side::Client, Version::V1)
}
