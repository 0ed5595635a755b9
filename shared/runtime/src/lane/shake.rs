//! The TLS 1.3 hand-shake of an end-to-end session, by rustls's unbuffered interface, one record at a time: what
//! follows the hand-shake is ours to open and must not be touched by rustls.

use std::io;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use hedgerow_shared::fault::{Code, Fault};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, InsufficientSizeError, UnbufferedStatus};
use rustls::{ClientConfig, ConnectionTrafficSecrets, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::records::{Records, Rekey};
use crate::dial::tls_fault;

/// Bytes of hand-shake taken from a peer before it is through: certificates are bounded at 8 KiB each.
const MAX_HANDSHAKE: usize = 64 * 1024;
const HEADER: usize = 5;

type Chain = Vec<CertificateDer<'static>>;

struct ClientRekey(KernelConnection<ClientConnectionData>);
struct ServerRekey(KernelConnection<ServerConnectionData>);

macro_rules! rekey {
    ($name:ident) => {
        impl Rekey for $name {
            fn next_tx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
                self.0.update_tx_secret()
            }
            fn next_rx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
                self.0.update_rx_secret()
            }
        }
    };
}
rekey!(ClientRekey);
rekey!(ServerRekey);

/// What one step of the state machine wants.
enum Step {
    /// Send what was encoded and go on.
    Again,
    /// More bytes from the peer.
    Read,
    Done,
}

macro_rules! shake {
    ($name:ident, $connection:ty, $rekey:ident) => {
        async fn $name<IO>(mut io: IO, mut connection: $connection) -> Result<(Records<IO>, Chain), Fault>
        where
            IO: AsyncRead + AsyncWrite + Unpin,
        {
            let mut input = BytesMut::new();
            let mut output = Vec::new();
            // How much of the input rustls may see: whole records only, and no more than it has asked for.
            let mut shown = 0;
            loop {
                let UnbufferedStatus { discard, state, .. } = connection.process_tls_records(&mut input[..shown]);
                let step = match state {
                    Ok(ConnectionState::EncodeTlsData(mut data)) => {
                        encode(&mut output, |out| data.encode(out))?;
                        Step::Again
                    }
                    Ok(ConnectionState::TransmitTlsData(data)) => {
                        data.done();
                        Step::Again
                    }
                    Ok(ConnectionState::BlockedHandshake) => Step::Read,
                    Ok(ConnectionState::WriteTraffic(_)) => Step::Done,
                    Ok(_) => return Err(Fault::new(Code::Lost, "the peer closed during the end-to-end hand-shake")),
                    Err(error) => {
                        // The peer is owed the alert that says why.
                        send_alert(&mut io, &mut output, &mut connection).await;
                        return Err(tls_fault(&io::Error::other(error)));
                    }
                };
                input.advance(discard);
                shown -= discard;
                if matches!(step, Step::Again) {
                    continue;
                }
                if !output.is_empty() {
                    io.write_all(&output).await.map_err(lost)?;
                    io.flush().await.map_err(lost)?;
                    output.clear();
                }
                if matches!(step, Step::Done) {
                    break;
                }
                shown = next_record(&mut io, &mut input, shown).await?;
            }
            let chain: Chain =
                connection.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect();
            let (secrets, kernel) = connection.dangerous_into_kernel_connection().map_err(internal)?;
            let rekey = Box::new($rekey(kernel));
            let records = Records::new(io, rekey, secrets.tx, secrets.rx, input).map_err(internal)?;
            Ok((records, chain))
        }
    };
}
shake!(shake_client, UnbufferedClientConnection, ClientRekey);
shake!(shake_server, UnbufferedServerConnection, ServerRekey);

/// The device's end.
pub(super) async fn client<IO>(
    io: IO,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<(Records<IO>, Chain), Fault>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    shake_client(io, UnbufferedClientConnection::new(config, name).map_err(internal)?).await
}

/// The node's end.
pub(super) async fn server<IO>(io: IO, config: Arc<ServerConfig>) -> Result<(Records<IO>, Chain), Fault>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    shake_server(io, UnbufferedServerConnection::new(config).map_err(internal)?).await
}

/// Reads until one more whole record follows the `shown` bytes; returns the new length to show.
async fn next_record<IO: AsyncRead + Unpin>(io: &mut IO, input: &mut BytesMut, shown: usize) -> Result<usize, Fault> {
    loop {
        if let Some(header) = input[shown..].first_chunk::<HEADER>() {
            let whole = shown + HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
            if whole > MAX_HANDSHAKE {
                return Err(Fault::new(Code::Protocol, "the end-to-end hand-shake is too long"));
            }
            if input.len() >= whole {
                return Ok(whole);
            }
        }
        if io.read_buf(input).await.map_err(lost)? == 0 {
            return Err(Fault::new(Code::Lost, "the connection was cut during the end-to-end hand-shake"));
        }
    }
}

fn encode(output: &mut Vec<u8>, mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>) -> Result<(), Fault> {
    let at = output.len();
    match encode(&mut []) {
        Ok(_) => Ok(()),
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
            output.resize(at + required_size, 0);
            let n = encode(&mut output[at..]).map_err(internal)?;
            output.truncate(at + n);
            Ok(())
        }
        Err(EncodeError::AlreadyEncoded) => Ok(()),
    }
}

/// Sends whatever rustls still has to say after an error; the connection is over either way.
async fn send_alert<IO, D>(io: &mut IO, output: &mut Vec<u8>, connection: &mut D)
where
    IO: AsyncWrite + Unpin,
    D: LastWords,
{
    connection.last_words(output);
    let _ = io.write_all(output).await;
    let _ = io.shutdown().await;
}

trait LastWords {
    fn last_words(&mut self, output: &mut Vec<u8>);
}

macro_rules! last_words {
    ($connection:ty) => {
        impl LastWords for $connection {
            fn last_words(&mut self, output: &mut Vec<u8>) {
                if let Ok(ConnectionState::EncodeTlsData(mut data)) = self.process_tls_records(&mut []).state {
                    // An alert that cannot be encoded is not sent: the peer sees the close.
                    let _ = encode(output, |out| data.encode(out));
                }
            }
        }
    };
}
last_words!(UnbufferedClientConnection);
last_words!(UnbufferedServerConnection);

fn lost(error: io::Error) -> Fault {
    Fault::new(Code::Lost, format!("the connection ended during the end-to-end hand-shake: {error}"))
}

fn internal(error: impl std::fmt::Display) -> Fault {
    Fault::new(Code::Internal, format!("end-to-end TLS: {error}"))
}
