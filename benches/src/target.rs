//! What is loaded: a server whose first byte chooses what it does, and a plain hop. Each is a process of its own.

use anyhow::Context;
use hedgerow_runtime::fair::Share;
use hedgerow_runtime::scope::Scope;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const BUFFER: usize = 256 * 1024;
const CLOSE: &[u8] = b"Connection: close\r\n";

/// `D` = source, `U` = sink, `E` = echo, `S` = a numbered line every millisecond; anything else is taken for HTTP and
/// answered with 128 bytes.
pub(crate) fn serve(port: u16) -> anyhow::Result<()> {
    run(port, |tcp| async move {
        // A peer that goes away ends its own connection only.
        let _ = answer(tcp).await;
    })
}

async fn answer(mut tcp: TcpStream) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    let mut first = [0];
    tcp.read_exact(&mut first).await?;
    match first[0] {
        b'D' => {
            let bytes = vec![0x5a; BUFFER];
            let mut share = Share::default();
            loop {
                tcp.write_all(&bytes).await?;
                share.moved(bytes.len()).await;
            }
        }
        b'U' => {
            let mut bytes = vec![0; BUFFER];
            let mut share = Share::default();
            loop {
                match tcp.read(&mut bytes).await? {
                    0 => return Ok(()),
                    length => share.moved(length).await,
                }
            }
        }
        b'E' => loop {
            tcp.read_exact(&mut first).await?;
            tcp.write_all(&first).await?;
        },
        b'S' => {
            // Lines that are due are caught up with, so that what comes late is still all there.
            let mut tick = tokio::time::interval(std::time::Duration::from_millis(1));
            for n in 0_u64.. {
                tick.tick().await;
                tcp.write_all(format!("{n}\n").as_bytes()).await?;
            }
            Ok(())
        }
        _ => loop {
            let mut head = Vec::with_capacity(1024);
            while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 {
                if tcp.read_buf(&mut head).await? == 0 {
                    return Ok(());
                }
            }
            let body = [b'x'; 128];
            let close = head.windows(CLOSE.len()).any(|w| w == CLOSE);
            let mut reply = b"HTTP/1.1 200 OK\r\nContent-Length: 128\r\n".to_vec();
            if close {
                reply.extend_from_slice(CLOSE);
            }
            reply.extend_from_slice(b"\r\n");
            reply.extend_from_slice(&body);
            tcp.write_all(&reply).await?;
            if close {
                return tcp.shutdown().await;
            }
        },
    }
}

pub(crate) fn hop(port: u16, to: u16) -> anyhow::Result<()> {
    run(port, move |mut near| async move {
        let Ok(mut far) = TcpStream::connect(("127.0.0.1", to)).await else { return };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let _ = tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER, BUFFER).await;
    })
}

fn run<F, Fut>(port: u16, each: F) -> anyhow::Result<()>
where
    F: Fn(TcpStream) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        socket.bind(&address.into()).with_context(|| format!("cannot listen on {address}"))?;
        socket.listen(4096)?;
        let listener = TcpListener::from_std(socket.into())?;
        let scope = Scope::new();
        loop {
            if let Ok((tcp, _)) = listener.accept().await {
                scope.spawn(each(tcp));
            }
        }
    })
}
