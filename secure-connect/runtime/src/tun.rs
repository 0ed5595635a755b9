//! A TUN device of Linux with offload: one read gives the segments of a whole TCP burst, one write takes them merged.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tun_rs::{DeviceBuilder, GROTable, IDEAL_BATCH_SIZE, SyncDevice, VIRTIO_NET_HDR_LEN};

/// The largest packet that we take from the kernel, bytes; a device's MTU is set below.
const PACKET: usize = 2048;
/// The largest packet that the kernel takes merged, bytes.
const MERGED: usize = 65_535;
/// Packets that wait in the kernel while we are busy: some milliseconds of small ones.
const QUEUE: u32 = 2000;
/// In front of every packet on its way to the kernel.
const FRONT: usize = VIRTIO_NET_HDR_LEN;

/// How a device is to be made.
#[derive(Debug, Clone)]
pub struct TunSetup {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its MTU, bytes.
    pub mtu: u16,
}

/// See the module. The device goes when the last clone does. Clones are the same device.
#[derive(Clone)]
pub struct Tun {
    device: Arc<AsyncFd<Device>>,
    name: Arc<str>,
}

impl std::fmt::Debug for Tun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tun({})", self.name)
    }
}

struct Device(SyncDevice);

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the device owns the descriptor and closes it when it is dropped, not before.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// Packets on their way to the kernel; buffers are used again.
#[derive(Default)]
pub struct Packets {
    buffers: Vec<Vec<u8>>,
    used: usize,
    /// A megabyte; made when something is written.
    table: Option<GROTable>,
}

impl std::fmt::Debug for Packets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packets({})", self.used)
    }
}

impl Packets {
    /// How many one write takes.
    pub const MOST: usize = IDEAL_BATCH_SIZE;

    /// Room for the next packet.
    pub fn room(&mut self) -> &mut [u8] {
        if self.used == self.buffers.len() {
            // Room for those that are merged into it; the system gives us what is written to.
            self.buffers.push(Vec::with_capacity(FRONT + MERGED));
        }
        let buffer = &mut self.buffers[self.used];
        buffer.resize(FRONT + PACKET, 0);
        &mut buffer[FRONT..]
    }

    /// The room holds a packet of so many bytes.
    pub fn keep(&mut self, length: usize) {
        self.buffers[self.used].truncate(FRONT + length);
        self.used += 1;
    }

    /// Adds a packet.
    pub fn push(&mut self, packet: &[u8]) {
        let length = packet.len().min(PACKET);
        self.room()[..length].copy_from_slice(&packet[..length]);
        self.keep(length);
    }

    /// The packet added last.
    pub fn last(&mut self) -> Option<&mut [u8]> {
        let last = self.used.checked_sub(1)?;
        Some(&mut self.buffers[last][FRONT..])
    }

    /// Takes back the packet added last.
    pub fn pop(&mut self) {
        self.used = self.used.saturating_sub(1);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// The packets, and none any more.
    pub fn drain(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let used = std::mem::take(&mut self.used);
        self.buffers[..used].iter_mut().map(|b| &mut b[FRONT..])
    }
}

/// Packets from the kernel; buffers are used again.
pub struct Taken {
    whole: Vec<u8>,
    buffers: Vec<Vec<u8>>,
    sizes: Vec<usize>,
    count: usize,
}

impl std::fmt::Debug for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Taken({})", self.count)
    }
}

impl Default for Taken {
    fn default() -> Self {
        Self {
            whole: vec![0; VIRTIO_NET_HDR_LEN + 65535],
            buffers: vec![vec![0; PACKET]; IDEAL_BATCH_SIZE],
            sizes: vec![0; IDEAL_BATCH_SIZE],
            count: 0,
        }
    }
}

impl Taken {
    /// The packets of the last read.
    pub fn packets(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.buffers.iter_mut().zip(&self.sizes).take(self.count).map(|(buffer, size)| &mut buffer[..*size])
    }
}

impl Tun {
    /// Makes the device; it has no address yet and is down (`system`).
    ///
    /// # Errors
    /// This process may not (CAP_NET_ADMIN), there is no `/dev/net/tun`, or the name is taken.
    pub fn open(setup: &TunSetup) -> io::Result<Self> {
        let builder = DeviceBuilder::new().name(setup.name.clone()).mtu(setup.mtu).tx_queue_len(QUEUE).enable(false);
        let device = builder.with(|b| _ = b.offload(true)).build_sync()?;
        device.set_nonblocking(true)?;
        let name = device.name()?.into();
        // SAFETY: `Device` owns its descriptor, never replaces it, and closes it only when the `AsyncFd` drops it.
        let device = unsafe { AsyncFd::register(Device(device)) }?;
        Ok(Self { device: Arc::new(device), name })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets its MTU, bytes.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        self.device.get_ref().0.set_mtu(mtu)
    }

    /// Waits for packets. Cancel safe.
    ///
    /// # Errors
    /// The device is gone.
    pub async fn read(&self, into: &mut Taken) -> io::Result<()> {
        loop {
            let mut ready = self.device.readable().await?;
            let read = ready.try_io(|device| {
                let Taken { whole, buffers, sizes, .. } = &mut *into;
                device.get_ref().0.recv_multiple(whole, buffers, sizes, 0)
            });
            match read {
                Ok(Ok(count)) => {
                    into.count = count;
                    return Ok(());
                }
                // EBADFD: somebody has taken the device away.
                Ok(Err(error)) if matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EIO)) => return Err(error),
                // One packet that the library cannot split is no reason to stop.
                Ok(Err(error)) => tracing::debug!(%error, "a packet of the TUN device is of no use"),
                Err(_would_block) => {}
            }
        }
    }

    /// Takes what is there already; `false` when nothing is. Programs that send datagrams give one a read: whoever sends after each
    /// makes a call of each.
    pub fn read_more(&self, into: &mut Taken) -> bool {
        let Taken { whole, buffers, sizes, .. } = &mut *into;
        let read = self.device.get_ref().0.recv_multiple(whole, buffers, sizes, 0);
        into.count = read.unwrap_or(0);
        into.count > 0
    }

    /// Gives the kernel all packets, merged where they belong together; none are left. What it does not take is lost, as
    /// on any network.
    pub fn write(&self, packets: &mut Packets) {
        let used = std::mem::take(&mut packets.used);
        if used == 0 {
            return;
        }
        let table = packets.table.get_or_insert_with(GROTable::new);
        let written = self.device.get_ref().0.send_multiple(table, &mut packets.buffers[..used], FRONT);
        if let Err(error) = written {
            tracing::debug!(%error, "the kernel did not take a packet of the tunnel");
        }
    }
}
