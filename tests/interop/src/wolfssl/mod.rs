//! wolfSSL's end of DTLS 1.3, with datagrams that are taken from it and given to it.

mod data;
mod handshake;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hedgerow_secure_connect::session::dtls::Own;
use wolfssl::{
    ContextBuilder, Error, IOCallbackResult, IOCallbacks, Method, Poll, ProtocolVersion, RootCertificate, Secret,
    Session, SessionConfig, SslVerifyMode,
};

use crate::path::End;

/// wolfSSL counts in whole seconds.
const TIMER: Duration = Duration::from_secs(1);
/// Built with a pause between two retransmissions that it measures by the real clock (`DTLS13_MIN_RTX_INTERVAL`).
const PAUSE: Duration = Duration::from_millis(110);

#[derive(Default)]
struct Datagrams {
    arrived: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

impl IOCallbacks for Datagrams {
    fn recv(&mut self, room: &mut [u8]) -> IOCallbackResult<usize> {
        let Some(datagram) = self.arrived.pop_front() else {
            return IOCallbackResult::WouldBlock;
        };
        let length = datagram.len().min(room.len());
        room[..length].copy_from_slice(&datagram[..length]);
        IOCallbackResult::Ok(length)
    }

    fn send(&mut self, datagram: &[u8]) -> IOCallbackResult<usize> {
        self.sent.push(datagram.to_vec());
        IOCallbackResult::Ok(datagram.len())
    }
}

pub struct Wolf {
    session: Session<Datagrams>,
    connected: bool,
    plaintexts: Vec<Vec<u8>>,
    /// Why the connection is over; a goodbye of the peer is no error.
    pub ended: Option<Error>,
    pub closed: bool,
    /// How often the timer is still to ring. It rings for the whole hand-shake; after that wolfSSL does not say whether
    /// anything waits to be acknowledged.
    rings: u8,
    due: Instant,
    rang: Option<std::time::Instant>,
}

impl Wolf {
    /// An end that trusts `root` and asks the other for a certificate.
    pub fn new(method: Method, own: Option<&Own>, root: &[u8], now: Instant) -> Self {
        let mut context = ContextBuilder::new(method).unwrap();
        context = context.with_root_certificate(RootCertificate::Asn1Buffer(root)).unwrap();
        if let Some(own) = own {
            context = context.with_certificate(Secret::Asn1Buffer(&own.certificate)).unwrap();
            context = context.with_private_key(Secret::Asn1Buffer(own.key.expose())).unwrap();
        }
        // A server asks with this, and verifies what it is shown.
        let config = SessionConfig::new(Datagrams::default())
            .with_dtls_nonblocking(true)
            .with_dtls_mtu(1500)
            .with_ssl_verify_mode(SslVerifyMode::SslVerifyPeer);
        let session = context.build().new_session(config).unwrap();
        Self {
            session,
            connected: false,
            plaintexts: Vec::new(),
            ended: None,
            closed: false,
            rings: u8::MAX,
            due: now,
            rang: None,
        }
    }

    pub fn is_connected(&self) -> bool {
        self.connected && self.ended.is_none()
    }

    pub fn version(&mut self) -> ProtocolVersion {
        self.session.version()
    }

    pub fn write(&mut self, plaintext: &[u8]) {
        match self.session.try_write_slice(plaintext) {
            Ok(Poll::Ready(length)) => assert_eq!(length, plaintext.len()),
            other => panic!("wolfSSL does not write: {other:?}"),
        }
    }

    pub fn plaintexts(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.plaintexts)
    }

    /// What it sends may be lost: it needs its timer for a while.
    pub fn ring(&mut self, now: Instant) {
        const RETRIES: u8 = 5;
        (self.rings, self.due) = (RETRIES, now + TIMER);
    }

    pub fn update_keys(&mut self) {
        match self.session.try_trigger_update_key() {
            Ok(Poll::Ready(()) | Poll::PendingWrite) => {}
            other => panic!("wolfSSL does not update its keys: {other:?}"),
        }
    }

    pub fn close(&mut self) {
        match self.session.try_shutdown() {
            Ok(_) => {}
            Err(error) => panic!("wolfSSL does not say goodbye: {error}"),
        }
    }

    fn go_on(&mut self) {
        while self.ended.is_none() && !self.closed {
            let step = if self.connected { self.read() } else { self.negotiate() };
            match step {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) if matches!(error.kind(), wolfssl::ErrorKind::PeerClosed) => self.closed = true,
                Err(error) => self.ended = Some(error),
            }
        }
    }

    /// Whether there may be more to do.
    fn negotiate(&mut self) -> Result<bool, Error> {
        match self.session.try_negotiate()? {
            Poll::Ready(()) => {
                self.connected = true;
                self.rings = 0;
                Ok(true)
            }
            Poll::AppData(plaintext) => {
                self.plaintexts.push(plaintext.to_vec());
                Ok(true)
            }
            Poll::PendingRead | Poll::PendingWrite => Ok(!self.session.io_cb().arrived.is_empty()),
        }
    }

    fn read(&mut self) -> Result<bool, Error> {
        let mut room = [0; 2048];
        match self.session.try_read_slice(&mut room)? {
            Poll::Ready(0) | Poll::PendingRead | Poll::PendingWrite => Ok(!self.session.io_cb().arrived.is_empty()),
            Poll::Ready(length) => {
                self.plaintexts.push(room[..length].to_vec());
                Ok(true)
            }
            Poll::AppData(plaintext) => {
                self.plaintexts.push(plaintext.to_vec());
                Ok(true)
            }
        }
    }
}

impl End for Wolf {
    fn wake(&mut self, now: Instant) {
        if self.ended.is_some() {
            return;
        }
        if self.rings > 0 && now >= self.due {
            self.rings -= u8::from(self.connected);
            if let Some(rang) = self.rang {
                std::thread::sleep(PAUSE.saturating_sub(rang.elapsed()));
                // The first call is the beginning of the hand-shake, not a timer.
                let _ = self.session.dtls_has_timed_out();
            }
            self.rang = Some(std::time::Instant::now());
            self.due = now + TIMER;
        }
        self.go_on();
    }

    fn take(&mut self, datagram: &[u8]) {
        self.session.io_cb_mut().arrived.push_back(datagram.to_vec());
        self.go_on();
    }

    fn sent(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.session.io_cb_mut().sent)
    }

    fn due(&self) -> Option<Instant> {
        Some(self.due).filter(|_| self.rings > 0 && self.ended.is_none())
    }
}
