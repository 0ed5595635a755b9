//! A visitor who takes his time: what happens to his connection between two steps is up to the test.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use super::scene::{Device, Scene};
use super::site::{Reading, exchange};

/// A connection to the scene's site in the middle of its exchange.
#[derive(Debug)]
pub struct Paced {
    tcp: TcpStream,
    got: Vec<u8>,
    up: Arc<[u8]>,
    sent: usize,
}

impl Paced {
    /// Opens it.
    ///
    /// # Panics
    /// It was refused.
    #[must_use]
    pub fn begin(scene: &Scene, device: &Device) -> Self {
        let tcp = device.connect(scene.site.port).unwrap_or_else(|| panic!("refused:\n{}", scene.log(&device.name)));
        Self { tcp, got: Vec::new(), up: scene.site.up.clone(), sent: 0 }
    }

    /// Reads so much more of the site's document.
    ///
    /// # Panics
    /// It does not come.
    pub fn read(&mut self, length: usize) {
        let at = self.got.len();
        self.got.resize(at + length, 0);
        let read = self.tcp.read_exact(&mut self.got[at..]);
        assert!(read.is_ok(), "{at} bytes and then no {length} more: {read:?}");
    }

    /// Sends so much more of its own document.
    ///
    /// # Panics
    /// It cannot.
    pub fn write(&mut self, length: usize) {
        let to = self.up.len().min(self.sent + length);
        self.tcp.write_all(&self.up[self.sent..to]).expect("the connection stands");
        self.sent = to;
    }

    /// Sends and reads the rest; everything that was read.
    #[must_use]
    pub fn finish(self) -> Reading {
        let rest = exchange(&self.tcp, &self.up[self.sent..]);
        Reading { bytes: [self.got, rest.bytes].concat(), in_order: rest.in_order }
    }

    /// As `finish`; both documents must have come whole, once and in order.
    ///
    /// # Panics
    /// They have not.
    pub fn finish_well(self, scene: &Scene, what: &str) {
        let reading = self.finish();
        assert!(reading.check(&scene.site.down, what), "{what}: the download was cut: {reading:?}");
        let taken = scene.site.readings();
        assert!(!taken.is_empty(), "{what}: the site has seen nobody");
        assert!(taken.iter().all(|r| r.check(&scene.site.up, what)), "{what}: the upload was cut: {taken:?}");
    }
}
