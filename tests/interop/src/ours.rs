//! Our end: the driver that the product uses, its datagrams and plaintexts kept for whoever asks.

use std::time::Instant;

use hedgerow_secure_connect::session::dtls::{Changed, Check, Dtls, Own, ROOM, Settings, Side, Sink};
use hedgerow_shared::fault::Fault;

use crate::path::End;

pub struct Held {
    room: Vec<u8>,
    datagrams: Vec<Vec<u8>>,
    plaintexts: Vec<Vec<u8>>,
}

impl Sink for Held {
    fn room(&mut self) -> &mut [u8] {
        &mut self.room
    }

    fn plaintext(&mut self, length: usize) {
        self.plaintexts.push(self.room[..length].to_vec());
    }

    fn records(&mut self, length: usize) {
        self.datagrams.push(self.room[..length].to_vec());
    }
}

pub struct Ours {
    dtls: Dtls,
    held: Held,
    /// Why the connection is over, if it is.
    pub ended: Option<Fault>,
    /// The peer has said goodbye.
    pub closed: bool,
}

impl Ours {
    pub fn new(settings: &Settings, own: &Own, side: Side, check: Check, now: Instant) -> Self {
        Self::around(Dtls::new(settings, own, side, check, now))
    }

    pub fn around(dtls: Dtls) -> Self {
        let held = Held { room: vec![0; ROOM], datagrams: Vec::new(), plaintexts: Vec::new() };
        Self { dtls, held, ended: None, closed: false }
    }

    pub fn is_connected(&self) -> bool {
        self.dtls.is_connected()
    }

    pub fn seal(&mut self, plaintext: &[u8]) {
        self.dtls.seal(plaintext, &mut self.held).unwrap();
    }

    pub fn close(&mut self) {
        self.dtls.close(&mut self.held);
    }

    /// The plaintexts that have arrived since the last time.
    pub fn plaintexts(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.held.plaintexts)
    }

    fn note(&mut self, changed: Result<Changed, Fault>) {
        match changed {
            Ok(changed) => self.closed |= changed.closed,
            Err(fault) => self.ended = Some(fault),
        }
    }
}

impl End for Ours {
    fn wake(&mut self, now: Instant) {
        // As the product: who is over is asked no more.
        if self.ended.is_none() {
            let changed = self.dtls.tick(now, &mut self.held);
            self.note(changed);
        }
    }

    fn take(&mut self, datagram: &[u8]) {
        if self.ended.is_none() {
            let changed = self.dtls.handle(datagram, &mut self.held);
            self.note(changed);
        }
    }

    fn sent(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.held.datagrams)
    }

    fn due(&self) -> Option<Instant> {
        self.dtls.due().filter(|_| self.ended.is_none())
    }
}
