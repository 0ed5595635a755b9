//! A UDP socket to one relay, many datagrams to a call both ways.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use hedgerow_runtime::udp_buffers;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// The largest batch that the kernel merges.
const BUFFER: usize = 64 * 1024;

/// See the module. It is not connected: where this machine's address changes, the next datagram leaves from the new one.
#[derive(Debug)]
pub struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    relay: SocketAddr,
}

/// Room for what one call receives.
#[derive(Debug)]
pub struct Received {
    memory: Vec<u8>,
    metas: [RecvMeta; BATCH_SIZE],
    count: usize,
}

impl Default for Received {
    fn default() -> Self {
        Self { memory: vec![0; BATCH_SIZE * BUFFER], metas: [RecvMeta::default(); BATCH_SIZE], count: 0 }
    }
}

impl Socket {
    /// A socket for one relay. `mark` (`SO_MARK`) keeps its datagrams out of the tunnel's own routes.
    ///
    /// # Errors
    /// The system has no socket for us, or this process may not mark it.
    pub fn open(relay: SocketAddr, mark: Option<u32>) -> io::Result<Self> {
        let domain = socket2::Domain::for_address(relay);
        let socket = socket2::Socket::new(domain, socket2::Type::DGRAM.nonblocking(), None)?;
        if let Some(mark) = mark {
            socket.set_mark(mark)?;
        }
        udp_buffers::raise(&socket);
        let any: SocketAddr =
            if relay.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        socket.bind(&any.into())?;
        let socket: std::net::UdpSocket = socket.into();
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self { socket: UdpSocket::from_std(socket)?, state, relay })
    }

    /// Datagrams that one call may send.
    #[must_use]
    pub fn most_segments(&self) -> usize {
        self.state.max_gso_segments().max(1)
    }

    /// Sends datagrams of `segment` bytes each, the last one maybe shorter; does not wait.
    ///
    /// # Errors
    /// `WouldBlock` when the kernel's buffer is full, and what else the kernel says.
    pub fn send(&self, datagrams: &[u8], segment: usize) -> io::Result<()> {
        let segment_size = (datagrams.len() > segment).then_some(segment);
        let transmit = Transmit { destination: self.relay, ecn: None, contents: datagrams, segment_size, src_ip: None };
        // Asked directly: of a socket that is new the runtime does not know yet that it can be written to.
        match self.state.send((&self.socket).into(), &transmit) {
            // And now it knows that it cannot.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.socket.try_io(Interest::WRITABLE, || Err(error))
            }
            sent => sent,
        }
    }

    /// Waits until the kernel has room again. Cancel safe.
    pub async fn writable(&self) {
        // An error is one of the socket's, and comes again with the next call.
        let _ = self.socket.writable().await;
    }

    /// Waits for datagrams. Cancel safe.
    ///
    /// # Errors
    /// The socket is of no more use.
    pub async fn receive(&self, into: &mut Received) -> io::Result<()> {
        loop {
            self.socket.readable().await?;
            let mut slices: Vec<IoSliceMut<'_>> = into.memory.chunks_mut(BUFFER).map(IoSliceMut::new).collect();
            let received = self
                .socket
                .try_io(Interest::READABLE, || self.state.recv((&self.socket).into(), &mut slices, &mut into.metas));
            match received {
                Ok(count) => {
                    into.count = count;
                    return Ok(());
                }
                // Errors of single datagrams (ICMP) say no more than silence does.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => tracing::debug!(%error, "UDP receive failed"),
            }
        }
    }

    /// The relay's datagrams of the last call, in order. What comes from anybody else is not among them.
    pub fn datagrams<'a>(&self, received: &'a Received) -> impl Iterator<Item = &'a [u8]> {
        let relay = self.relay;
        received.metas.iter().zip(received.memory.chunks(BUFFER)).take(received.count).flat_map(move |(meta, bytes)| {
            let length = if meta.addr == relay { meta.len.min(BUFFER) } else { 0 };
            bytes[..length].chunks(meta.stride.max(1))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_batch_arrives_datagram_by_datagram_and_strangers_are_not_heard() {
        let relay = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = Socket::open(relay.local_addr().unwrap(), None).unwrap();
        let batch: Vec<u8> = (0..5u8).flat_map(|n| vec![n; if n == 4 { 30 } else { 100 }]).collect();
        socket.send(&batch, 100).unwrap();
        let mut buffer = [0; 200];
        for n in 0..5u8 {
            let (length, from) = relay.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..length], vec![n; if n == 4 { 30 } else { 100 }]);
            let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, from.port()));
            stranger.send_to(b"not from the relay", to).unwrap();
            relay.send_to(&buffer[..length], to).unwrap();
        }
        let (mut received, mut got) = (Received::default(), Vec::new());
        while got.len() < 5 {
            socket.receive(&mut received).await.unwrap();
            got.extend(socket.datagrams(&received).map(<[u8]>::to_vec));
        }
        assert!(got.iter().enumerate().all(|(n, d)| d.iter().all(|b| usize::from(*b) == n)), "{got:?}");
    }
}
