//! Moving bytes through the relay where no lane can be had: between two link streams, and between an HTTP CONNECT and a
//! link stream. Ends are passed on as what they are: FINISH as FINISH or half-close, RESET as RESET or abort. The relay
//! holds what is being written and nothing else; back-pressure is the streams' own.

use bytes::{Bytes, BytesMut};
use hedgerow_runtime::link::{ReadHalf, Stream, WriteHalf};
use hedgerow_shared::fault::{Code, Fault};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What is read from a client at once.
const BUFFER: usize = 16 * 1024;

/// Until both directions have finished or either stream is reset; the other is then reset with the same fault.
pub async fn streams(a: Stream, b: Stream) {
    let ((mut a_read, mut a_write), (mut b_read, mut b_write)) = (a.into_split(), b.into_split());
    let result = tokio::try_join!(one_way(&mut a_read, &mut b_write), one_way(&mut b_read, &mut a_write));
    if let Err(fault) = result {
        a_write.reset(fault.clone());
        b_write.reset(fault);
    }
}

async fn one_way(from: &mut ReadHalf, to: &mut WriteHalf) -> Result<(), Fault> {
    loop {
        let chunk = tokio::select! {
            biased;
            fault = to.ended() => return unwanted(fault),
            chunk = from.read_chunk() => chunk?,
        };
        match chunk {
            Some(chunk) => {
                if let Err(fault) = to.write_chunk(chunk).await {
                    return unwanted(fault);
                }
            }
            None => {
                to.finish();
                return Ok(());
            }
        }
    }
}

/// As `streams`, with a client's connection on one side. Dropping `io` without shutting it down is the abort.
pub async fn client(io: impl AsyncRead + AsyncWrite + Unpin, stream: Stream) {
    let (mut io_read, mut io_write) = tokio::io::split(io);
    let (mut read, mut write) = stream.into_split();
    let upwards = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(BUFFER);
            let length = tokio::select! {
                biased;
                fault = write.ended() => return unwanted(fault),
                length = io_read.read_buf(&mut buffer) => length.map_err(|_| gone())?,
            };
            if length == 0 {
                write.finish();
                return Ok(());
            }
            let chunk: Bytes = buffer.split().freeze();
            if let Err(fault) = write.write_chunk(chunk).await {
                return unwanted(fault);
            }
        }
    };
    let downwards = async {
        while let Some(chunk) = read.read_chunk().await? {
            io_write.write_all(&chunk).await.map_err(|_| gone())?;
            io_write.flush().await.map_err(|_| gone())?;
        }
        io_write.shutdown().await.map_err(|_| gone())
    };
    let result = tokio::try_join!(upwards, downwards);
    if let Err(fault) = result {
        read.reset(fault);
    }
}

/// An end that has said everything and let go wants no more bytes; what it said may still be on its way. (Over QUIC the
/// news overtake the data; over TLS they come after it, and then the other direction has ended too.)
fn unwanted(fault: Fault) -> Result<(), Fault> {
    if fault.code == Code::Ok { Ok(()) } else { Err(fault) }
}

fn gone() -> Fault {
    Fault::new(Code::ConnectionReset, "the client's connection ended")
}
