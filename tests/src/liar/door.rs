//! What comes by TCP: legs of lanes, and TLS with a link or HTTP inside.

use std::io;
use std::sync::Arc;

use hedgerow_shared::Origin;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::wire::lane::{self, Parsed};
use hedgerow_shared::wire::message::{ALPN_LANE, ALPN_LINK, Destination, LinkOpen, Vouched};
use rustls::server::Acceptor;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::conduit::{Conn, What, carry};
use super::lanes::Side;
use super::notes::Recorded;
use super::{Answer, Shared, lanes, link, lock, middle};

pub(super) async fn listen(shared: Arc<Shared>, listener: TcpListener) {
    while let Ok((tcp, _)) = listener.accept().await {
        let _ = tcp.set_nodelay(true);
        let shared = shared.clone();
        shared.scope.clone().spawn(async move {
            // A peer that goes away in the middle is what many tests are about.
            let _ = connection(shared, tcp).await;
        });
    }
}

async fn connection(shared: Arc<Shared>, tcp: TcpStream) -> io::Result<()> {
    let address = tcp.peer_addr()?.to_string();
    let mut first = vec![0; 16 * 1024];
    let ticket = loop {
        let n = tcp.peek(&mut first).await?;
        match lane::parse(&first[..n]) {
            _ if n == 0 => return Ok(()),
            Parsed::Ticket(ticket, _) => break Some((ticket, Side::Node)),
            Parsed::Unknown => match server_name(&first[..n]) {
                Some(name) => {
                    break lane::ticket_of(&name, &shared.name).and_then(Result::ok).map(|t| (t, Side::Device));
                }
                None => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
            },
            Parsed::Incomplete => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
        }
    };
    let wrapped_elsewhere = lock(&shared.lies).wrapped_by_own_ca && offers_lane(&first);
    let mut io = Recorded::new(tcp, shared.notes.socket());
    if let Some((ticket, side)) = ticket {
        if side == Side::Node {
            if lock(&shared.lies).bare_legs_cut {
                return Ok(());
            }
            Shared::count(&shared.counts.node_legs);
            io.read_exact(&mut [0; lane::LENGTH]).await?;
        }
        lanes::arrive(&shared, &ticket, Box::new(io));
        return Ok(());
    }
    let config = if wrapped_elsewhere { &shared.foreign } else { &shared.tls };
    let shaken = TlsAcceptor::from(config.clone()).accept(io).await;
    if wrapped_elsewhere {
        Shared::count(if shaken.is_ok() { &shared.counts.believed } else { &shared.counts.disbelieved });
    }
    let mut tls = shaken?;
    if tls.get_ref().1.alpn_protocol() == Some(ALPN_LANE) {
        let mut preamble = [0; lane::LENGTH];
        tls.read_exact(&mut preamble).await?;
        if let Parsed::Ticket(ticket, _) = lane::parse(&preamble) {
            Shared::count(&shared.counts.node_legs);
            Shared::count(&shared.counts.wrapped_legs);
            lanes::arrive(&shared, &ticket, Box::new(tls));
        }
        return Ok(());
    }
    if tls.get_ref().1.alpn_protocol() == Some(ALPN_LINK) {
        let elsewhere = lock(&shared.lies).links_led_to.clone();
        if let Some(relay) = elsewhere {
            return middle::lead(&shared, tls, &relay).await;
        }
        link::serve(shared, tls, address).await;
        return Ok(());
    }
    http(shared, Box::new(tls), address).await
}

/// The server name of a whole ClientHello, empty when it has none; `None` while bytes are missing.
fn server_name(mut bytes: &[u8]) -> Option<String> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        acceptor.read_tls(&mut bytes).ok()?;
    }
    match acceptor.accept() {
        Ok(None) => None,
        Ok(Some(accepted)) => Some(accepted.client_hello().server_name().unwrap_or_default().to_owned()),
        Err(_) => Some(String::new()),
    }
}

/// Whether a ClientHello asks for the leg of a lane: its ALPN stands there as it is.
fn offers_lane(first: &[u8]) -> bool {
    first.windows(ALPN_LANE.len()).any(|w| w == ALPN_LANE)
}

/// One request: the look-up, or CONNECT.
async fn http(shared: Arc<Shared>, tls: Conn, address: String) -> io::Result<()> {
    let mut tls = BufReader::new(tls);
    let mut line = String::new();
    tls.read_line(&mut line).await?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        tls.read_line(&mut header).await?;
        if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if header.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    tls.read_exact(&mut body).await?;
    if line.starts_with("POST /lookup") {
        let (status, body) = look_up(&shared, &body);
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        tls.write_all(answer.as_bytes()).await?;
        return tls.shutdown().await;
    }
    let refused = lock(&shared.lies).connect_refused.clone();
    if let Some(text) = refused {
        let answer = format!("HTTP/1.1 502 Bad Gateway\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        tls.write_all(answer.as_bytes()).await?;
        return tls.shutdown().await;
    }
    let authority = line.split(' ').nth(1).unwrap_or_default();
    let mut names = authority.split('.');
    let (Some(Ok(origin)), Some(Ok(tenant))) = (names.next().map(str::parse), names.next().map(str::parse)) else {
        return Ok(());
    };
    let to = Destination { tenant, origin, group: None, instance: None, node: None };
    let vouched = Vouched { role: None, id: None, address };
    match far_end(&shared, to, vouched).await {
        Ok(far) => {
            tls.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            tls.flush().await?;
            to_core(&shared, Box::new(tls), far).await;
            Ok(())
        }
        Err(fault) => {
            let text = fault.to_string();
            let answer = format!("HTTP/1.1 502 Bad Gateway\r\nContent-Length: {}\r\n\r\n{text}", text.len());
            tls.write_all(answer.as_bytes()).await?;
            tls.shutdown().await
        }
    }
}

fn look_up(shared: &Shared, body: &[u8]) -> (String, String) {
    if let Some(lie) = lock(&shared.lies).look_up.clone() {
        return lie;
    }
    let asked: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let tenant = asked["email"].as_str().and_then(|e| lock(&shared.look_ups).get(e).cloned());
    match tenant {
        Some(tenant) => ("200 OK".into(), serde_json::json!({ "tenant": tenant }).to_string()),
        None => ("404 Not Found".into(), "nobody is responsible for this address".into()),
    }
}

/// A stream to the tenant's core (or what else lives on its link); none where the liar itself will answer.
pub(super) async fn far_end(shared: &Shared, to: Destination, vouched: Vouched) -> Result<Option<Conn>, Fault> {
    Shared::count(&shared.counts.to_core);
    let answer = if to.origin == Origin::Core { lock(&shared.lies).core.clone() } else { Answer::Honest };
    let no_route = || Fault::new(Code::NoRoute, "no core is linked to this relay");
    match answer {
        Answer::Imposter(_) | Answer::Replay(_) => Ok(None),
        Answer::Nobody => Err(no_route()),
        Answer::Honest | Answer::Middle(_) => {
            let core = shared.live_links().into_iter().rev().find(|k| k.role == hedgerow_shared::Role::Core);
            let core = core.ok_or_else(no_route)?;
            let vouched = lock(&shared.lies).vouched.clone().unwrap_or(vouched);
            let header = LinkOpen::Through { to, vouched: Some(vouched), trace: None };
            Ok(Some(Box::new(core.link.mux.open(&header).await?)))
        }
    }
}

/// Whoever answers for the core.
pub(super) async fn to_core(shared: &Arc<Shared>, near: Conn, far: Option<Conn>) {
    let answer = lock(&shared.lies).core.clone();
    match (answer, far) {
        (Answer::Imposter(imposter), _) => middle::answer(shared, &imposter, near).await,
        (Answer::Middle(imposter), Some(far)) => middle::between(shared, &imposter, near, far).await,
        (Answer::Replay(bytes), _) => middle::replay(bytes, near).await,
        (_, Some(far)) => carry(shared.clone(), What::Core, near, far).await,
        (_, None) => {}
    }
}
