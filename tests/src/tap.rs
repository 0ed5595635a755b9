//! Wire taps: TCP proxies that record every byte, a way to stop the traffic while somebody looks, and what it takes to
//! open a recording afterwards: TLS 1.3 by a key log, links by the frame table.
//!
//! ```text
//!   Tap (raw) ── open_tls(key log) ── frame streams ── open_tls(key log) ── frame streams
//! ```

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use aho_corasick::AhoCorasick;
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use bytes::BytesMut;
use hedgerow_shared::wire::frame::{self, Frame};
use hkdf::Hkdf;
use sha2::{Sha256, Sha384};
use socket2::{Domain, Socket, Type};

use crate::process;

/// What one TCP connection, TLS connection or stream carried; `up` is what its opener sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    /// From the opener.
    pub up: Vec<u8>,
    /// To the opener.
    pub down: Vec<u8>,
}

/// A gate that several taps share. While it is shut nothing comes out of what stands behind them; what goes in goes in
/// until that is full, so that it holds traffic of every direction and connection.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Debug, Default)]
struct GateState {
    recorded: usize,
    shut_at: Option<usize>,
}

impl Gate {
    /// Shuts once `bytes` more have come to the taps, over all of them and both directions.
    pub fn shut_after(&self, bytes: usize) {
        let mut state = self.0.0.lock().expect("no tap panics");
        state.shut_at = Some(state.recorded + bytes);
    }

    /// Opens it again.
    pub fn open(&self) {
        self.0.0.lock().expect("no tap panics").shut_at = None;
        self.0.1.notify_all();
    }

    /// Waits until it has shut and nothing has come to a tap for a while: what is behind them is full.
    pub fn wait_shut(&self, limit: Duration) {
        let since = Instant::now();
        let mut quiet = (usize::MAX, Instant::now());
        loop {
            let (recorded, shut) = {
                let state = self.0.0.lock().expect("no tap panics");
                (state.recorded, state.shut_at.is_some_and(|at| state.recorded >= at))
            };
            if quiet.0 != recorded {
                quiet = (recorded, Instant::now());
            }
            if shut && quiet.1.elapsed() > Duration::from_millis(300) {
                return;
            }
            assert!(since.elapsed() < limit, "{recorded} bytes passed the taps: not enough to shut the gate");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Counts bytes; those that come out wait while the gate is shut.
    fn pass(&self, bytes: usize, out: bool) {
        let mut state = self.0.0.lock().expect("no tap panics");
        state.recorded += bytes;
        while out && state.shut_at.is_some_and(|at| state.recorded >= at) {
            state = self.0.1.wait(state).expect("no tap panics");
        }
    }
}

type Shared = Arc<Mutex<Conversation>>;

/// A recording proxy on a loopback port.
#[derive(Debug)]
pub struct Tap {
    address: SocketAddr,
    connections: Arc<Mutex<Vec<Shared>>>,
}

impl Tap {
    /// Starts one in front of `to`. It serves until the test's process ends.
    #[must_use]
    pub fn start(to: &str, gate: &Gate) -> Self {
        Self::start_as(to, gate, false)
    }

    /// As `start`, on a network whose firewall passes only what begins like TLS: anything else is cut at once.
    #[must_use]
    pub fn behind_a_firewall(to: &str, gate: &Gate) -> Self {
        Self::start_as(to, gate, true)
    }

    fn start_as(to: &str, gate: &Gate, only_tls: bool) -> Self {
        let to: SocketAddr = to.parse().expect("an address");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("its address");
        let connections: Arc<Mutex<Vec<Shared>>> = Arc::default();
        let (list, gate) = (connections.clone(), gate.clone());
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                // Everybody speaks first here, and at once.
                if only_tls && !begins_like_tls(&near) {
                    continue;
                }
                let Ok(far) = connect(to) else { continue };
                let recording = Shared::default();
                list.lock().expect("no tap panics").push(recording.clone());
                for up in [true, false] {
                    let (near, far) = (near.try_clone().expect("a socket"), far.try_clone().expect("a socket"));
                    let (from, to) = if up { (near, far) } else { (far, near) };
                    let (recording, gate) = (recording.clone(), gate.clone());
                    std::thread::spawn(move || pump(from, to, up, &recording, &gate));
                }
            }
        });
        Self { address, connections }
    }

    /// Where to send those who should be overheard.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Everything so far, one entry a connection.
    #[must_use]
    pub fn conversations(&self) -> Vec<Conversation> {
        let connections = self.connections.lock().expect("no tap panics");
        connections.iter().map(|c| c.lock().expect("no tap panics").clone()).collect()
    }
}

fn begins_like_tls(near: &TcpStream) -> bool {
    let mut first = [0];
    let _ = near.set_read_timeout(Some(Duration::from_secs(2)));
    let tls = matches!(near.peek(&mut first), Ok(1)) && first[0] == 22;
    tls && near.set_read_timeout(None).is_ok()
}

/// A small receive buffer: what the tap does not take stays with the relay.
fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_recv_buffer_size(64 * 1024)?;
    socket.connect(&to.into())?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn pump(mut from: TcpStream, mut to: TcpStream, up: bool, recording: &Shared, gate: &Gate) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 {
            break;
        }
        {
            let mut recording = recording.lock().expect("no tap panics");
            let side = if up { &mut recording.up } else { &mut recording.down };
            side.extend_from_slice(&buffer[..n]);
        }
        gate.pass(n, !up);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    // The peers may be gone; then there is nothing to end.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

// ---- key logs ------------------------------------------------------------------------------------------------------

/// Secrets in the format of `SSLKEYLOGFILE`, by client random and label.
#[derive(Debug, Clone, Default)]
pub struct KeyLog(HashMap<[u8; 32], BTreeMap<String, Vec<u8>>>);

/// Bytes to look for, and what they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needle {
    /// For the failure's text.
    pub name: String,
    /// At least 12.
    pub bytes: Vec<u8>,
}

impl KeyLog {
    /// Reads the file as far as it is written; none yet is an empty log.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut log: HashMap<[u8; 32], BTreeMap<String, Vec<u8>>> = HashMap::new();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let parts: Vec<&str> = line.split(' ').collect();
            let [label, random, secret] = parts[..] else { continue };
            let random = unhex(random).try_into().expect("a client random of 32 bytes");
            log.entry(random).or_default().insert(label.to_owned(), unhex(secret));
        }
        Self(log)
    }

    /// The log without connections that the other one knows too.
    #[must_use]
    pub fn without(mut self, other: &KeyLog) -> Self {
        self.0.retain(|random, _| !other.0.contains_key(random));
        self
    }

    /// Connections in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no connection is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every secret, and the record keys and IVs that follow from it.
    #[must_use]
    pub fn needles(&self, whose: &str) -> Vec<Needle> {
        let mut needles = Vec::new();
        for (label, secret) in self.0.values().flatten() {
            let mut add = |what: &str, bytes: Vec<u8>| {
                needles.push(Needle { name: format!("{whose}: {what} of {label}"), bytes });
            };
            add("secret", secret.clone());
            if label.contains("TRAFFIC_SECRET") {
                let lengths: &[usize] = if secret.len() == 48 { &[32] } else { &[16, 32] };
                lengths.iter().for_each(|n| add("record key", expand(secret, "key", *n)));
                add("record IV", expand(secret, "iv", 12));
            }
        }
        needles
    }

    fn of(&self, conversation: &Conversation) -> Option<&BTreeMap<String, Vec<u8>>> {
        let random = conversation.up.get(11..43)?;
        let is_client_hello = conversation.up.starts_with(&[22, 3]) && conversation.up[5] == 1;
        is_client_hello.then(|| self.0.get(random)).flatten()
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal digits");
    (0..text.len()).step_by(2).map(byte).collect()
}

/// HKDF-Expand-Label of RFC 8446 section 7.1 with an empty context; the hash goes by the secret's length.
fn expand(secret: &[u8], label: &str, length: usize) -> Vec<u8> {
    let mut info = vec![0, u8::try_from(length).expect("short"), u8::try_from(label.len() + 6).expect("short")];
    info.extend_from_slice(b"tls13 ");
    info.extend_from_slice(label.as_bytes());
    info.push(0);
    let mut out = vec![0; length];
    match secret.len() {
        32 => Hkdf::<Sha256>::from_prk(secret).expect("its length fits").expand(&info, &mut out).expect("short"),
        48 => Hkdf::<Sha384>::from_prk(secret).expect("its length fits").expand(&info, &mut out).expect("short"),
        other => panic!("a traffic secret of {other} bytes"),
    }
    out
}

// ---- TLS 1.3 -------------------------------------------------------------------------------------------------------

/// Opens a TLS 1.3 connection; `None` when it is none, or the log does not have its keys. Panics when a record does
/// not open by the keys logged for it.
#[must_use]
pub fn open_tls(sealed: &Conversation, keys: &KeyLog) -> Option<Conversation> {
    let keys = keys.of(sealed)?;
    let suite = suite(&sealed.down)?;
    let secret = |label: &str| keys.get(label).map(Vec::as_slice);
    let up = secret("CLIENT_HANDSHAKE_TRAFFIC_SECRET").zip(secret("CLIENT_TRAFFIC_SECRET_0"));
    let down = secret("SERVER_HANDSHAKE_TRAFFIC_SECRET").zip(secret("SERVER_TRAFFIC_SECRET_0"));
    let open = |bytes: &[u8], secrets: Option<(&[u8], &[u8])>| {
        secrets.map(|(shake, traffic)| open_direction(bytes, suite, shake, traffic)).unwrap_or_default()
    };
    Some(Conversation { up: open(&sealed.up, up), down: open(&sealed.down, down) })
}

/// The records of one direction: content type and the whole record. An unfinished last one is left out.
fn records(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<5>()?;
        let (record, rest) = bytes.split_at_checked(5 + usize::from(u16::from_be_bytes([header[3], header[4]])))?;
        bytes = rest;
        Some((record[0], record))
    })
}

/// The cipher suite of the ServerHello.
fn suite(down: &[u8]) -> Option<&'static Algorithm> {
    let (_, hello) = records(down).find(|(kind, record)| *kind == 22 && record.get(5) == Some(&2))?;
    let id = 5 + 4 + 2 + 32;
    let at = id + 1 + usize::from(*hello.get(id)?);
    match hello.get(at..at + 2)? {
        [0x13, 1] => Some(&AES_128_GCM),
        [0x13, 2] => Some(&AES_256_GCM),
        [0x13, 3] => Some(&CHACHA20_POLY1305),
        other => panic!("cipher suite {other:02x?}"),
    }
}

struct RecordKey {
    key: LessSafeKey,
    iv: Vec<u8>,
    sequence: u64,
}

impl RecordKey {
    fn new(suite: &'static Algorithm, secret: &[u8]) -> Self {
        let key = UnboundKey::new(suite, &expand(secret, "key", suite.key_len())).expect("its length fits");
        Self { key: LessSafeKey::new(key), iv: expand(secret, "iv", 12), sequence: 0 }
    }

    /// Content and its type.
    fn open(&mut self, record: &[u8]) -> (Vec<u8>, u8) {
        let mut nonce: [u8; 12] = self.iv.as_slice().try_into().expect("12 bytes");
        nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()).for_each(|(n, s)| *n ^= s);
        self.sequence += 1;
        let mut plain = record[5..].to_vec();
        let header: [u8; 5] = record[..5].try_into().expect("a record's header");
        let opened = self.key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(header), &mut plain);
        let length = opened.expect("the record opens by the logged key").len();
        let end = plain[..length].iter().rposition(|b| *b != 0).expect("a record has content");
        let kind = plain[end];
        plain.truncate(end);
        (plain, kind)
    }
}

fn open_direction(bytes: &[u8], suite: &'static Algorithm, shake: &[u8], traffic: &[u8]) -> Vec<u8> {
    let mut key = RecordKey::new(suite, shake);
    let (mut out, mut messages, mut shaking) = (Vec::new(), Vec::new(), true);
    for (_, record) in records(bytes).filter(|(kind, _)| *kind == 23) {
        match key.open(record) {
            (content, 23) => out.extend_from_slice(&content),
            (content, 22) if shaking => {
                messages.extend_from_slice(&content);
                if finished(&messages) {
                    key = RecordKey::new(suite, traffic);
                    shaking = false;
                }
            }
            // Tickets follow the hand-shake; a key update would need the next secret.
            (content, 22) => assert_ne!(content.first(), Some(&24), "a key update"),
            _ => {}
        }
    }
    out
}

/// Whether the last of these hand-shake messages is a whole Finished.
fn finished(mut messages: &[u8]) -> bool {
    let mut last = 0;
    while let Some([kind, a, b, c]) = messages.first_chunk::<4>().copied() {
        let length = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
        let Some(rest) = messages.get(length..) else { return false };
        (last, messages) = (kind, rest);
    }
    last == 20 && messages.is_empty()
}

// ---- frames --------------------------------------------------------------------------------------------------------

/// What the streams of a link or session carried, put together from its DATA frames; empty when it is neither.
#[must_use]
pub fn streams(link: &Conversation) -> Vec<Conversation> {
    let (up, down) = (data(&link.up), data(&link.down));
    let mut all: BTreeMap<u32, Conversation> = BTreeMap::new();
    // The dialler's streams have even numbers; on the others the sides are the other way round.
    for (from_dialler, side) in [(true, up), (false, down)] {
        for (id, bytes) in side {
            let stream = all.entry(id).or_default();
            if from_dialler == id.is_multiple_of(2) { stream.up = bytes } else { stream.down = bytes }
        }
    }
    all.into_values().collect()
}

fn data(bytes: &[u8]) -> BTreeMap<u32, Vec<u8>> {
    let mut streams: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut input = BytesMut::from(bytes);
    while let Ok(Some(frame)) = frame::take_first(&mut input) {
        if let Frame::Data(id, _, bytes) = frame {
            streams.entry(id.0).or_default().extend_from_slice(&bytes);
        }
    }
    streams
}

// ---- looking -------------------------------------------------------------------------------------------------------

/// The names of the needles that are in the haystack, each once.
#[must_use]
pub fn find(needles: &[Needle], haystack: &[u8]) -> Vec<String> {
    assert!(needles.iter().all(|n| n.bytes.len() >= 12), "a needle that chance could make");
    let automaton = AhoCorasick::new(needles.iter().map(|n| &n.bytes)).expect("few needles");
    let mut found = vec![false; needles.len()];
    automaton.find_overlapping_iter(haystack).for_each(|hit| found[hit.pattern().as_usize()] = true);
    needles.iter().zip(found).filter(|(_, found)| *found).map(|(needle, _)| needle.name.clone()).collect()
}

/// The memory of a process, by gdb's gcore; the process goes on.
#[must_use]
pub fn memory(pid: u32) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let prefix = folder.path().join("core");
    let mut gcore = Command::new("gcore");
    gcore.arg("-o").arg(&prefix).arg(pid.to_string());
    let _ = process::run(&mut gcore, Duration::from_secs(60));
    std::fs::read(folder.path().join(format!("core.{pid}"))).expect("gcore has written the dump")
}
