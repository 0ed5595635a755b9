//! Moving bytes through the relay where no lane can be had: between two link streams, and between an HTTP CONNECT and a
//! link stream. Ends are passed on as what they are: FINISH as FINISH or half-close, RESET as RESET or abort. The relay
//! holds what is being written and nothing else; back-pressure is the streams' own, and a meter's, which stops reading
//! where somebody is over a limit.

use bytes::{BufMut, Bytes, BytesMut};
use hedgerow_runtime::link::{ReadHalf, Stream, WriteHalf};
use hedgerow_shared::fault::{Code, Fault};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::fair::{Meter, Way};
use crate::stall::{Relieved, Stalls, Streaming};
use crate::state::count_refusal;

/// What is read from a client at once.
const BUFFER: usize = 16 * 1024;

/// Until both directions have finished or either stream is reset; the other is then reset with the same fault. `a` is
/// whose peer asked for the stream; each comes with the stalls of its link.
pub async fn streams((a, a_stalls): (Stream, &Stalls), (b, b_stalls): (Stream, &Stalls), meter: &Meter) {
    let ((mut a_read, mut a_write), (mut b_read, mut b_write)) = (a.into_split(), b.into_split());
    let result = tokio::try_join!(
        one_way(&mut a_read, &mut b_write, meter, Way::Up, Streaming::new(Some(a_stalls), Some(b_stalls))),
        one_way(&mut b_read, &mut a_write, meter, Way::Down, Streaming::new(Some(b_stalls), Some(a_stalls)))
    );
    if let Err(fault) = result {
        a_write.reset(fault.clone());
        b_write.reset(fault);
    }
}

async fn one_way(
    from: &mut ReadHalf,
    to: &mut WriteHalf,
    meter: &Meter,
    way: Way,
    streaming: Streaming<'_>,
) -> Result<(), Fault> {
    loop {
        let reading = async {
            let grant = meter.admit(way).await;
            (from.read_chunk().await, grant)
        };
        let (chunk, mut grant) = tokio::select! {
            biased;
            fault = to.ended() => return unwanted(fault),
            (chunk, grant) = reading => (chunk?, grant),
        };
        match chunk {
            Some(chunk) => {
                grant.spend(chunk.len() as u64);
                drop(grant);
                if let Err(fault) = streaming.deliver(to.write_chunk(chunk)).await.map_err(relieved)? {
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
pub async fn client(io: impl AsyncRead + AsyncWrite + Unpin, (stream, stalls): (Stream, &Stalls), meter: &Meter) {
    let (mut io_read, mut io_write) = tokio::io::split(io);
    let (mut read, mut write) = stream.into_split();
    let upwards = async {
        let streaming = Streaming::new(None, Some(stalls));
        let mut buffer = BytesMut::new();
        loop {
            let reading = async {
                let grant = meter.admit(Way::Up).await;
                buffer.reserve(BUFFER);
                let mut room = (&mut buffer).limit(grant.of(BUFFER));
                (io_read.read_buf(&mut room).await, grant)
            };
            let (length, mut grant) = tokio::select! {
                biased;
                fault = write.ended() => return unwanted(fault),
                (length, grant) = reading => (length.map_err(|_| gone())?, grant),
            };
            grant.spend(length as u64);
            drop(grant);
            if length == 0 {
                write.finish();
                return Ok(());
            }
            let chunk: Bytes = buffer.split().freeze();
            if let Err(fault) = streaming.deliver(write.write_chunk(chunk)).await.map_err(relieved)? {
                return unwanted(fault);
            }
        }
    };
    let downwards = async {
        let streaming = Streaming::new(Some(stalls), None);
        loop {
            let mut grant = meter.admit(Way::Down).await;
            let Some(chunk) = read.read_chunk().await? else { break };
            grant.spend(chunk.len() as u64);
            drop(grant);
            let writing = async {
                io_write.write_all(&chunk).await?;
                io_write.flush().await
            };
            streaming.deliver(writing).await.map_err(relieved)?.map_err(|_| gone())?;
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

fn relieved(_: Relieved) -> Fault {
    let fault = Fault::new(Code::Limited, "too many streams whose other ends do not read wait on one link");
    count_refusal(&fault);
    fault
}

fn gone() -> Fault {
    Fault::new(Code::ConnectionReset, "the client's connection ended")
}
