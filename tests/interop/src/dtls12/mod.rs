//! DTLS 1.2, for those that have no 1.3: the same driver with the library's other version, over UDP of this machine.
//! Times are real here: the other ends keep clocks of their own.

mod openssl;
mod webrtc;

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hedgerow_secure_connect::session::dtls::{Check, Dtls, Own, Settings, Side};

use crate::ours::Ours;
use crate::path::{Dice, End};

/// Time for anything that is expected; what has failed needs all of it.
const TIME: Duration = Duration::from_secs(15);

/// Our end and its socket.
pub struct Line {
    pub ours: Ours,
    socket: UdpSocket,
    to: Option<SocketAddr>,
    dice: Dice,
    /// Datagrams of 100 that are lost, each way.
    pub lost: u64,
    /// How many were.
    pub counted: u32,
}

impl Line {
    /// A client of the end at `to`, or a server of whoever comes first.
    pub fn new(own: &Own, check: Check, to: Option<SocketAddr>) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let side = if to.is_some() { Side::Client } else { Side::Server };
        let ours = Ours::around(Dtls::new_12(&Settings::new().unwrap(), own, side, check, Instant::now()));
        Self { ours, socket, to, dice: Dice::of(1), lost: 0, counted: 0 }
    }

    pub fn bad(mut self, seed: u64, lost: u64) -> Self {
        (self.dice, self.lost) = (Dice::of(seed), lost);
        self
    }

    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    pub fn connect(&mut self) -> bool {
        self.talk(TIME, |ours| ours.is_connected())
    }

    /// Sends one plaintext and waits for the next that comes, if one does.
    pub fn ask(&mut self, plaintext: &[u8]) -> Option<Vec<u8>> {
        self.ours.seal(plaintext);
        self.next()
    }

    pub fn next(&mut self) -> Option<Vec<u8>> {
        let mut arrived = Vec::new();
        self.talk(TIME, |ours| {
            arrived.append(&mut ours.plaintexts());
            !arrived.is_empty()
        });
        assert!(arrived.len() < 2, "one plaintext became {}", arrived.len());
        arrived.pop()
    }

    /// Until `done`, the end, or for `most`; returns whether it was done.
    pub fn talk(&mut self, most: Duration, mut done: impl FnMut(&mut Ours) -> bool) -> bool {
        const LOOK: Duration = Duration::from_millis(20);
        let end = Instant::now() + most;
        let mut room = [0; 2048];
        loop {
            let now = Instant::now();
            self.ours.wake(now);
            for datagram in self.ours.sent() {
                if let Some(to) = self.to
                    && self.passes()
                {
                    // Whoever has gone already refuses it: that is for the test to find.
                    let _ = self.socket.send_to(&datagram, to);
                }
            }
            if done(&mut self.ours) {
                return true;
            }
            if now >= end || self.ours.ended.is_some() {
                return false;
            }
            self.socket.set_read_timeout(Some(LOOK)).unwrap();
            match self.socket.recv_from(&mut room) {
                Ok((length, from)) if *self.to.get_or_insert(from) == from && (is_last(&room) || self.passes()) => {
                    self.ours.take(&room[..length]);
                }
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// By the dice.
    fn passes(&mut self) -> bool {
        let passes = self.dice.throw() >= self.lost;
        self.counted += u32::from(!passes);
        passes
    }
}

/// Whether a datagram begins a last flight (ChangeCipherSpec, or a record sealed already). None of these is lost on the
/// way to us: a server of webrtc-dtls 0.12 leaves its state machine when it has sent its own (`handshake` in its
/// `handshaker.rs` returns at `Finished`) and does not send it again, whatever we repeat (RFC 6347 section 4.2.4).
fn is_last(datagram: &[u8]) -> bool {
    const CHANGE_CIPHER_SPEC: u8 = 20;
    datagram[0] == CHANGE_CIPHER_SPEC || datagram[3..5] != [0, 0]
}
