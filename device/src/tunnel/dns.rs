//! Split DNS: a forwarder on loopback that asks the name servers inside about the domains inside, and those that the
//! machine had before about all others. It passes whole messages on and changes none.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hedgerow_runtime::dial::mark;
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::telemetry::dropped;
use hedgerow_shared::fault::DropReason;
use parking_lot::RwLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

/// Questions under way at once.
const QUESTIONS: usize = 256;
/// Time for one server's answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a TCP client may take, all in all.
const TCP: Duration = Duration::from_secs(15);
/// The largest answer over UDP (EDNS).
const ANSWER: usize = 4096;

/// Who is asked what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Split {
    /// Name servers inside.
    pub(super) inside: Vec<SocketAddr>,
    /// Domains that they are asked about; all when empty.
    pub(super) suffixes: Vec<String>,
    /// Name servers for the rest, and for everything while `inside` is empty.
    pub(super) outside: Vec<SocketAddr>,
    /// Names that are never asked inside: the relays', without which there is no inside.
    pub(super) never_inside: Vec<String>,
}

impl Split {
    /// Whether a name is asked about inside.
    pub(super) fn is_inside(&self, name: &str) -> bool {
        let under = |suffix: &str| name.strip_suffix(suffix).is_some_and(|head| head.is_empty() || head.ends_with('.'));
        !self.inside.is_empty()
            && !self.never_inside.iter().any(|never| never == name)
            && (self.suffixes.is_empty() || self.suffixes.iter().any(|s| under(s)))
    }
}

/// The forwarder. Clones of the `Arc` are the same.
pub(super) struct Forwarder {
    split: RwLock<Arc<Split>>,
    room: Semaphore,
    /// Answers of servers inside, for whoever wants to know their addresses.
    answers: mpsc::Sender<Vec<u8>>,
}

impl Forwarder {
    /// Listens until the scope ends.
    ///
    /// # Errors
    /// The address is taken.
    pub(super) async fn start(
        listen: SocketAddr,
        answers: mpsc::Sender<Vec<u8>>,
        scope: &Scope,
    ) -> anyhow::Result<Arc<Self>> {
        let taken = || format!("cannot serve DNS on {listen}: tunnel.dns_listen takes any other loopback address");
        let udp = Arc::new(UdpSocket::bind(listen).await.with_context(taken)?);
        let tcp = TcpListener::bind(listen).await.with_context(taken)?;
        let forwarder = Arc::new(Self { split: RwLock::default(), room: Semaphore::new(QUESTIONS), answers });
        let (over_udp, over_tcp) = (forwarder.clone(), forwarder.clone());
        let tasks = scope.clone();
        scope.spawn(async move { over_udp.udp(&udp, &tasks).await });
        let tasks = scope.clone();
        scope.spawn(async move { over_tcp.tcp(&tcp, &tasks).await });
        Ok(forwarder)
    }

    pub(super) fn set(&self, split: Split) {
        *self.split.write() = Arc::new(split);
    }

    async fn udp(self: Arc<Self>, socket: &Arc<UdpSocket>, scope: &Scope) {
        let mut buffer = vec![0; ANSWER];
        loop {
            let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
            let (forwarder, socket, question) = (self.clone(), socket.clone(), buffer[..length].to_vec());
            scope.spawn(async move {
                let Ok(_permit) = forwarder.room.try_acquire() else { return dropped(DropReason::RateLimited) };
                if let Some(answer) = forwarder.ask(&question).await {
                    // A client that has gone has its reasons.
                    let _ = socket.send_to(&answer, client).await;
                }
            });
        }
    }

    /// The first answer that a server gives in time; none: the client asks again, as it would anyway.
    async fn ask(&self, question: &[u8]) -> Option<Vec<u8>> {
        let name = question_name(question)?;
        let split = self.split.read().clone();
        let inside = split.is_inside(&name);
        let servers = if inside { &split.inside } else { &split.outside };
        for server in servers {
            if let Ok(Ok(answer)) = timeout(PATIENCE, ask_udp(*server, question, inside)).await {
                if inside {
                    // Whoever is too slow to take it learns the addresses from the next one.
                    let _ = self.answers.try_send(answer.clone());
                }
                return Some(answer);
            }
        }
        None
    }

    async fn tcp(self: Arc<Self>, listener: &TcpListener, scope: &Scope) {
        loop {
            let Ok((client, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let forwarder = self.clone();
            scope.spawn(async move {
                let Ok(_permit) = forwarder.room.try_acquire() else { return dropped(DropReason::RateLimited) };
                // Errors are the client's to notice: the connection closes.
                let _ = timeout(TCP, forwarder.serve_tcp(client)).await;
            });
        }
    }

    async fn serve_tcp(&self, mut client: TcpStream) -> std::io::Result<()> {
        loop {
            let question = read_message(&mut client).await?;
            let name = question_name(&question).ok_or(std::io::ErrorKind::InvalidData)?;
            let split = self.split.read().clone();
            let inside = split.is_inside(&name);
            let servers = if inside { &split.inside } else { &split.outside };
            let mut answered = false;
            for server in servers {
                if let Ok(Ok(answer)) = timeout(PATIENCE, ask_tcp(*server, &question, inside)).await {
                    write_message(&mut client, &answer).await?;
                    answered = true;
                    break;
                }
            }
            if !answered {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
        }
    }
}

async fn ask_udp(server: SocketAddr, question: &[u8], inside: bool) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    if !inside {
        mark::apply(&socket)?;
    }
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; ANSWER];
    loop {
        let length = socket.recv(&mut answer).await?;
        // An answer to this question, by its number; the address is checked by the system.
        if length >= 12 && answer[..2] == question[..2] && answer[2] & 0x80 != 0 {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, question: &[u8], inside: bool) -> std::io::Result<Vec<u8>> {
    let socket = if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if !inside {
        mark::apply(&socket)?;
    }
    let mut stream = socket.connect(server).await?;
    write_message(&mut stream, question).await?;
    read_message(&mut stream).await
}

async fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| std::io::ErrorKind::InvalidData)?;
    let mut whole = Vec::with_capacity(2 + message.len());
    whole.extend_from_slice(&length.to_be_bytes());
    whole.extend_from_slice(message);
    stream.write_all(&whole).await
}

/// The name of the first question (RFC 1035 section 4.1.2), lower case, without the last dot. `None` for what is no
/// question.
fn question_name(message: &[u8]) -> Option<String> {
    let header = message.get(..12)?;
    if header[2] & 0x80 != 0 || u16::from_be_bytes([header[4], header[5]]) == 0 {
        return None;
    }
    let mut name = String::new();
    let mut rest = &message[12..];
    loop {
        let (length, after) = rest.split_first()?;
        match usize::from(*length) {
            0 => return Some(name),
            // The first name of a message has nothing to point back to.
            length @ 1..=63 => {
                let label = after.get(..length)?;
                if !name.is_empty() {
                    name.push('.');
                }
                name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
                rest = &after[length..];
            }
            _ => return None,
        }
        if name.len() > 255 {
            return None;
        }
    }
}

/// The name servers of a resolv.conf.
pub(super) fn servers_of(resolv_conf: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let address = (words.next() == Some("nameserver")).then(|| words.next()).flatten()?;
        // A scope (`%eth0`) belongs to link-local servers, which are asked past us as they are.
        address.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53))
    };
    resolv_conf.lines().filter_map(address).collect()
}

/// A resolv.conf that leads to the forwarder, with what else the old one said.
pub(super) fn resolv_conf(listen: SocketAddr, old: &str, suffixes: &[String]) -> String {
    let keep = |line: &&str| {
        let word = line.split_whitespace().next().unwrap_or("");
        !matches!(word, "nameserver" | "search" | "domain" | "") && !word.starts_with(['#', ';'])
    };
    let searched = |line: &str| {
        let mut words = line.split_whitespace();
        let has = matches!(words.next(), Some("search" | "domain"));
        has.then(|| words.map(str::to_owned).collect::<Vec<_>>())
    };
    let mut search: Vec<String> = old.lines().filter_map(searched).next_back().unwrap_or_default();
    search.extend(suffixes.iter().filter(|s| !search.contains(s)).cloned().collect::<Vec<_>>());
    let mut text = format!("{}\nnameserver {}\n", super::system::SIGNATURE, listen.ip());
    if !search.is_empty() {
        // glibc takes six.
        search.truncate(6);
        text += &format!("search {}\n", search.join(" "));
    }
    for line in old.lines().filter(keep) {
        text += &format!("{line}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(name: &str) -> Vec<u8> {
        let mut message = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|l| !l.is_empty()) {
            message.push(label.len() as u8);
            message.extend_from_slice(label.as_bytes());
        }
        message.extend_from_slice(&[0, 0, 1, 0, 1]);
        message
    }

    #[test]
    fn names_are_read_and_nothing_else_is() {
        assert_eq!(question_name(&question("Intranet.Corp.Example")).as_deref(), Some("intranet.corp.example"));
        assert_eq!(question_name(&question("")).as_deref(), Some(""));
        let whole = question("a.b");
        for cut in 0..whole.len() - 4 {
            assert_eq!(question_name(&whole[..cut]), None, "cut to {cut}");
        }
        let mut answer = question("a");
        answer[2] |= 0x80;
        assert_eq!(question_name(&answer), None);
        let mut pointer = question("");
        pointer[12] = 0xc0;
        assert_eq!(question_name(&pointer), None);
    }

    #[test]
    fn demands11_only_the_named_domains_are_asked_inside_and_never_the_relays_own() {
        let split = Split {
            inside: vec!["10.0.0.53:53".parse().unwrap()],
            suffixes: vec!["corp.example".into()],
            outside: vec!["192.0.2.1:53".parse().unwrap()],
            never_inside: vec!["relay.corp.example".into()],
        };
        assert!(split.is_inside("corp.example") && split.is_inside("a.b.corp.example"));
        for outside in ["example", "evilcorp.example", "relay.corp.example", ""] {
            assert!(!split.is_inside(outside), "{outside}");
        }
        let whole = Split { suffixes: vec![], ..split.clone() };
        assert!(whole.is_inside("anything") && !whole.is_inside("relay.corp.example"));
        assert!(!Split { inside: vec![], ..split }.is_inside("corp.example"), "while the tunnel is down");
    }

    #[test]
    fn a_resolv_conf_keeps_what_it_can() {
        let old =
            "# made by dhcp\nsearch home.example\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\noptions timeout:1\n";
        assert_eq!(servers_of(old), ["192.0.2.1:53".parse().unwrap()]);
        let new = resolv_conf("127.0.0.153:53".parse().unwrap(), old, &["corp.example".into()]);
        let body: Vec<_> = new.lines().skip(1).collect();
        assert_eq!(body, ["nameserver 127.0.0.153", "search home.example corp.example", "options timeout:1"]);
        assert!(new.starts_with(super::super::system::SIGNATURE));
    }

    #[tokio::test]
    async fn questions_go_to_their_servers_over_udp_and_tcp() {
        async fn server(answer: u8, scope: &Scope) -> SocketAddr {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = tcp.local_addr().unwrap();
            let udp = UdpSocket::bind(at).await.unwrap();
            scope.spawn(async move {
                let mut buffer = [0; 512];
                loop {
                    let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
                    buffer[2] |= 0x80;
                    buffer[length] = answer;
                    udp.send_to(&buffer[..=length], from).await.unwrap();
                }
            });
            scope.spawn(async move {
                loop {
                    let (mut stream, _) = tcp.accept().await.unwrap();
                    let mut message = read_message(&mut stream).await.unwrap();
                    message.push(answer);
                    write_message(&mut stream, &message).await.unwrap();
                }
            });
            at
        }
        let scope = Scope::new();
        let (answers, mut seen) = mpsc::channel(4);
        let probe = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let listen = probe.local_addr().unwrap();
        drop(probe);
        let forwarder = Forwarder::start(listen, answers, &scope).await.unwrap();
        let dead = "127.0.0.1:9".parse().unwrap();
        forwarder.set(Split {
            inside: vec![dead, server(1, &scope).await],
            suffixes: vec!["corp.example".into()],
            outside: vec![server(2, &scope).await],
            never_inside: vec![],
        });
        for (name, expected) in [("a.corp.example", 1), ("a.example", 2)] {
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            client.send_to(&question(name), listen).await.unwrap();
            let mut buffer = [0; 512];
            let (length, _) = client.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[length - 1], expected, "{name} over UDP");
            let mut client = TcpStream::connect(listen).await.unwrap();
            write_message(&mut client, &question(name)).await.unwrap();
            assert_eq!(read_message(&mut client).await.unwrap().last(), Some(&expected), "{name} over TCP");
        }
        assert!(seen.try_recv().is_ok() && seen.try_recv().is_err(), "answers from inside only");
        scope.cancel();
    }
}
