//! What `--tunnel` runs in its namespaces besides the roles: the servers there, and visits from there. Commands of their
//! own, because a name is looked up as the namespace's own resolv.conf has it only in a process that `ip` started there.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hedgerow_runtime::boot;
use hedgerow_runtime::scope::Scope;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpStream, UdpSocket};

use super::site;
use super::world::{SITE, exchange};
use crate::output::print;

/// Time for a visit.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for one echo.
const ECHO: Duration = Duration::from_secs(2);
/// How many echoes are asked for.
const ECHOES: u16 = 5;
/// Time between two of them.
const PAUSE: Duration = Duration::from_millis(50);

/// A part of `demo --tunnel`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Part {
    /// Serve a page, and DNS for one name, until killed
    #[command(hide = true)]
    Serve {
        /// The name's address
        address: Ipv4Addr,
        /// The name
        name: String,
    },
    /// Fetch a page and say in JSON what came
    #[command(hide = true)]
    Fetch {
        /// Where it is
        url: http::Uri,
    },
    /// Ask for ICMP echoes and say in JSON what came
    #[command(hide = true)]
    Ping {
        /// Who is asked
        address: Ipv4Addr,
    },
}

/// Runs it.
pub(super) fn run(part: Part) -> ExitCode {
    boot::block_on(async move {
        match part {
            Part::Serve { address, name } => serve(address, &name).await,
            Part::Fetch { url } => fetch(&url).await,
            Part::Ping { address } => ping(address),
        }
    })
}

/// On every address of the namespace, so that only a rule keeps anybody from one of them.
async fn serve(address: Ipv4Addr, name: &str) -> anyhow::Result<()> {
    let page = if name == SITE { &site::INSIDE } else { &site::OUTSIDE };
    site::serve(SocketAddr::from(([0, 0, 0, 0], 80)), page, &Scope::new()).await?;
    let socket = UdpSocket::bind((address, 53)).await?;
    let mut buffer = [0; 512];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).await?;
        if let Some(answer) = answer(&buffer[..length], name, address) {
            // A client that has gone has its reasons.
            let _ = socket.send_to(&answer, client).await;
        }
    }
}

/// The answer to a DNS question: one name with one address, and no other. None for what is no question.
fn answer(question: &[u8], known: &str, address: Ipv4Addr) -> Option<Vec<u8>> {
    let (head, mut rest) = question.split_at_checked(12)?;
    let mut labels: Vec<String> = Vec::new();
    loop {
        let (length, tail) = rest.split_first()?;
        let (label, tail) = tail.split_at_checked(usize::from(*length))?;
        rest = tail;
        if label.is_empty() {
            break;
        }
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
    }
    let (kind, after) = rest.split_at_checked(4)?;
    let is_known = labels.join(".") == known;
    let has_address = is_known && kind == [0, 1, 0, 1];
    // Identity; authoritative answer, no error or no such name; one question, which comes back as it was.
    let mut out = head[..2].to_vec();
    out.extend_from_slice(&[0x85, if is_known { 0x80 } else { 0x83 }, 0, 1, 0, has_address.into(), 0, 0, 0, 0]);
    out.extend_from_slice(&question[12..question.len() - after.len()]);
    if has_address {
        // The name of the question, A, IN, 60 s, 4 bytes.
        out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        out.extend_from_slice(&address.octets());
    }
    Some(out)
}

async fn fetch(url: &http::Uri) -> anyhow::Result<()> {
    let visit = async {
        let host = url.host().context("the URL has no host")?;
        let tcp = TcpStream::connect((host, url.port_u16().unwrap_or(80))).await?;
        exchange(tcp, host, url.path()).await
    };
    let said = match tokio::time::timeout(PATIENCE, visit).await {
        Ok(Ok((status, body))) => json!({ "status": status, "body": body }),
        Ok(Err(error)) => json!({ "failed": error.to_string() }),
        Err(_) => json!({ "failed": format!("no answer within {} s", PATIENCE.as_secs()) }),
    };
    print(&format!("{said}\n"))
}

/// As the program `ping` does, which is not everywhere. It blocks: this process does nothing else.
fn ping(address: Ipv4Addr) -> anyhow::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).context("no raw socket")?;
    socket.connect(&SocketAddr::from((address, 0)).into())?;
    let mut times: Vec<f64> = Vec::new();
    let mut lost = "no answer".to_owned();
    for number in 0..ECHOES {
        match echo(&socket, number) {
            Ok(time) => times.push(time.as_secs_f64() * 1e3),
            Err(error) => lost = error.to_string(),
        }
        std::thread::sleep(PAUSE);
    }
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2);
    print(&format!("{}\n", json!({ "asked": ECHOES, "answered": times.len(), "median_ms": median, "lost": lost })))
}

/// One echo: how long it took.
fn echo(mut socket: &Socket, number: u16) -> anyhow::Result<Duration> {
    let [low, high] = [0, 1].map(|n| std::process::id().to_be_bytes()[3 - n]);
    let [number_high, number_low] = number.to_be_bytes();
    let mut request = [0; 64];
    request[..8].copy_from_slice(&[8, 0, 0, 0, high, low, number_high, number_low]);
    let sum = checksum(&request);
    request[2..4].copy_from_slice(&sum.to_be_bytes());
    let since = Instant::now();
    socket.send(&request)?;
    let mut buffer = [0; 256];
    loop {
        let left = ECHO.saturating_sub(since.elapsed());
        if left.is_zero() {
            bail!("no answer within {} s", ECHO.as_secs());
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.read(&mut buffer)?;
        // The IP header stands before it; 0 is the answer to 8.
        let header = usize::from(buffer[0] & 15) * 4;
        let answer = buffer.get(header..length).unwrap_or_default();
        if answer.first() == Some(&0) && answer.get(4..8) == Some(&request[4..8]) {
            return Ok(since.elapsed());
        }
    }
}

/// RFC 1071.
fn checksum(packet: &[u8]) -> u16 {
    let sum: u32 = packet.chunks(2).map(|p| u32::from(p[0]) << 8 | u32::from(p.get(1).copied().unwrap_or(0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: &[u8] =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x04Wiki\x04demo\x00\x00\x01\x00\x01extra";

    #[test]
    fn the_one_name_has_its_address_and_others_do_not_exist() {
        let address = Ipv4Addr::new(10, 83, 3, 2);
        let known = answer(QUESTION, "wiki.demo", address).unwrap();
        assert_eq!(known[..8], [0x12, 0x34, 0x85, 0x80, 0, 1, 0, 1]);
        assert!(known.ends_with(&[0, 4, 10, 83, 3, 2]) && known.len() == 12 + 15 + 16);
        let other = answer(QUESTION, "other.demo", address).unwrap();
        assert_eq!((other[3], other[7], other.len()), (0x83, 0, 12 + 15));
        // AAAA: the name is there, but no such address.
        let mut v6 = QUESTION.to_vec();
        v6[24] = 28;
        let none = answer(&v6, "wiki.demo", address).unwrap();
        assert_eq!((none[3], none[7]), (0x80, 0));
        for cut in 0..27 {
            assert_eq!(answer(&QUESTION[..cut], "wiki.demo", address), None, "{cut} bytes");
        }
    }

    #[test]
    fn a_packet_with_its_checksum_sums_up_to_nothing() {
        let mut packet = [8, 0, 0, 0, 0xff, 0xfe, 0, 7, 9];
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&packet), 0);
    }
}
