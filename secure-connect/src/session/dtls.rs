//! DTLS 1.3 (RFC 9147) behind one narrow type, so that the library can be replaced: records in, records out, and between
//! them whole plaintexts. Both ends show a certificate; nothing is decrypted for anybody whose certificate was not checked.
//!
//! The library is `dimpl` (docs/decisions/0002): it proves that the peer holds its certificate's key, and leaves the
//! certificate itself to us. It has randomness of its own; the clock is ours to give.

use std::sync::Arc;
use std::time::Instant;

use dimpl::{Config, Output};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::secret::Secret;

/// What a record costs, bytes: header, inner content type, tag. Sealing makes records of one plaintext.
pub const OVERHEAD: usize = 5 + 1 + 16;
/// The largest datagram of records in a hand-shake: passes every path that has our smallest MTU.
const HANDSHAKE_MTU: usize = 1200;
/// Room that `Sink::room` has at least.
pub const ROOM: usize = 2048;
/// Records after which the keys are changed; far below what RFC 9147 section 4.5.3 allows for AES-GCM.
const RECORDS_A_KEY: u64 = 1 << 22;
/// Datagrams of a flight, and records that wait for their turn.
const QUEUE: usize = 64;

/// Checks the peer's certificate (DER): chain, role, identity, expiry, revocation.
pub type Check = Box<dyn FnMut(&[u8]) -> Result<(), Fault> + Send>;

/// This end's certificate and key.
#[derive(Clone)]
pub struct Own {
    /// The leaf, DER.
    pub certificate: Vec<u8>,
    /// Its key, PKCS #8 DER.
    pub key: Secret,
}

impl Own {
    fn to_library(&self) -> dimpl::DtlsCertificate {
        dimpl::DtlsCertificate { certificate: self.certificate.clone(), private_key: self.key.expose().to_vec() }
    }
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Own")
    }
}

/// Which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The device: begins the hand-shake.
    Client,
    /// The node.
    Server,
}

/// Where plaintexts and records go. What is told of stands at the beginning of the room that was asked for last.
pub trait Sink {
    /// At least `ROOM` bytes.
    fn room(&mut self) -> &mut [u8];
    /// A plaintext of so many bytes has arrived.
    fn plaintext(&mut self, length: usize);
    /// Records of so many bytes are to be sent, as one datagram.
    fn records(&mut self, length: usize);
}

/// What a call changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changed {
    /// The hand-shake is complete and the peer's certificate was checked.
    pub connected: bool,
    /// The peer has said goodbye.
    pub closed: bool,
}

/// One DTLS connection.
pub struct Dtls {
    inner: dimpl::Dtls,
    check: Check,
    checked: bool,
    connected: bool,
    due: Option<Instant>,
}

impl std::fmt::Debug for Dtls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dtls").field("connected", &self.connected).finish_non_exhaustive()
    }
}

/// Settings that all connections of a process share.
#[derive(Clone)]
pub struct Settings {
    config: Arc<Config>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Settings")
    }
}

impl Settings {
    /// Ours: 1.3 only, certificates required on both sides. The cookie of RFC 9147 section 5.1 stays: it costs a round
    /// trip, and a forged ClientHello one small record.
    ///
    /// # Errors
    /// The library refuses them.
    pub fn new() -> Result<Self, Fault> {
        Self::with_records_a_key(RECORDS_A_KEY)
    }

    /// As `new`, with keys that are changed after so many records.
    ///
    /// # Errors
    /// As `new`.
    pub fn with_records_a_key(records: u64) -> Result<Self, Fault> {
        let config = Config::builder()
            .mtu(HANDSHAKE_MTU)
            .max_queue_tx(QUEUE)
            .max_queue_rx(QUEUE)
            .require_client_certificate(true)
            .use_server_cookie(true)
            .flight_start_rto(std::time::Duration::from_millis(500))
            .aead_encryption_limit(records)
            .build();
        let config = config.map_err(|e| Fault::new(Code::Internal, format!("DTLS cannot be set up: {e}")))?;
        Ok(Self { config: Arc::new(config) })
    }
}

impl Dtls {
    /// A new connection; the client's first records come with the first `tick`.
    #[must_use]
    pub fn new(settings: &Settings, own: &Own, side: Side, check: Check, now: Instant) -> Self {
        let inner = dimpl::Dtls::new_13(settings.config.clone(), own.to_library(), now);
        Self::around(inner, side, check, now)
    }

    /// As `new`, with DTLS 1.2 (RFC 6347): the tests in `tests/interop` reach with it the implementations that have no
    /// 1.3. No build of the product has it; its nonces and what it shows of certificates are not what we promise.
    #[cfg(feature = "dtls12-interop")]
    #[must_use]
    pub fn new_12(settings: &Settings, own: &Own, side: Side, check: Check, now: Instant) -> Self {
        let inner = dimpl::Dtls::new_12(settings.config.clone(), own.to_library(), now);
        Self::around(inner, side, check, now)
    }

    fn around(mut inner: dimpl::Dtls, side: Side, check: Check, now: Instant) -> Self {
        inner.set_active(side == Side::Client);
        Self { inner, check, checked: false, connected: false, due: Some(now) }
    }

    /// Whether plaintexts pass.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// When `tick` wants to be called, whatever else happens.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Tells the time: before a batch of datagrams, and when `due`.
    ///
    /// # Errors
    /// The hand-shake took too long; the connection is over.
    pub fn tick(&mut self, now: Instant, sink: &mut impl Sink) -> Result<Changed, Fault> {
        self.inner.handle_timeout(now).map_err(|e| over(&e))?;
        self.drain(sink)
    }

    /// Takes the records of one datagram. What is forged, replayed or malformed leaves no trace.
    ///
    /// # Errors
    /// The peer broke the protocol, or its certificate does not hold; the connection is over.
    pub fn handle(&mut self, records: &[u8], sink: &mut impl Sink) -> Result<Changed, Fault> {
        self.inner.handle_packet(records).map_err(|e| over(&e))?;
        self.drain(sink)
    }

    /// Seals one plaintext into one datagram.
    ///
    /// # Errors
    /// There is no connection yet, or no more.
    pub fn seal(&mut self, plaintext: &[u8], sink: &mut impl Sink) -> Result<(), Fault> {
        if !self.connected {
            return Err(Fault::new(Code::Internal, "the DTLS hand-shake is not complete"));
        }
        self.inner.send_application_data(plaintext).map_err(|e| over(&e))?;
        self.drain(sink).map(|_| ())
    }

    /// Says goodbye.
    pub fn close(&mut self, sink: &mut impl Sink) {
        if self.inner.close().is_ok() {
            // Whatever comes of it: this was the last word.
            let _ = self.drain(sink);
        }
        self.connected = false;
    }

    fn drain(&mut self, sink: &mut impl Sink) -> Result<Changed, Fault> {
        let mut changed = Changed::default();
        loop {
            match self.inner.poll_output(sink.room()) {
                Output::Packet(records) => {
                    let length = records.len();
                    sink.records(length);
                }
                Output::PeerCert(certificate) => {
                    (self.check)(certificate)?;
                    self.checked = true;
                }
                Output::Connected if self.checked => {
                    self.connected = true;
                    changed.connected = true;
                }
                Output::Connected => {
                    return Err(Fault::new(Code::Unauthenticated, "the other end of the tunnel shows no certificate"));
                }
                Output::ApplicationData(plaintext) if self.connected => {
                    let length = plaintext.len();
                    sink.plaintext(length);
                }
                Output::ApplicationData(_) | Output::KeyingMaterial(..) => {}
                Output::CloseNotify => {
                    self.connected = false;
                    changed.closed = true;
                }
                Output::Timeout(due) => {
                    self.due = Some(due);
                    return Ok(changed);
                }
                Output::BufferTooSmall { needed } => {
                    return Err(Fault::new(Code::Internal, format!("DTLS needs {needed} bytes of room")));
                }
                // The library may learn to say more; none of it is for us.
                _ => {}
            }
        }
    }
}

fn over(error: &dimpl::Error) -> Fault {
    let code = match error {
        dimpl::Error::Timeout(_) => Code::TimedOut,
        _ => Code::Protocol,
    };
    Fault::new(code, format!("DTLS: {error}"))
}
