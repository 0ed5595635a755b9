//! Others' tunnels on a ground: each with its two ends, and with the kernel or a plain forwarder of datagrams at the hop.

use std::path::PathBuf;
use std::process::Command;

use super::ground::{Ground, HOP, Place, SERVER, ip, run};
use super::subjects::Subject;
use crate::subjects::peers_folder;

/// Addresses inside the tunnels.
const SERVER_INNER: &str = "203.0.113.1";
const CLIENT_INNER: &str = "203.0.113.2";
/// What the client is to reach through a tunnel.
const INTRANET: &str = "10.71.3.0/24";

/// Forwards ports at the hop with socat, one read and one write a datagram, or lets the kernel route there. The address
/// that the client dials, and the hop's processes.
fn hop(ground: &mut Ground, hop: bool, ports: &[(&str, u16)]) -> anyhow::Result<(&'static str, Vec<u32>)> {
    if !hop {
        ground.route_at(Place::Hop)?;
        return Ok((SERVER, vec![]));
    }
    let mut pids = Vec::new();
    for (kind, port) in ports {
        let words = format!("socat {kind}4-LISTEN:{port},fork,reuseaddr {kind}4:{SERVER}:{port}");
        pids.push(ground.start(Place::Hop, &words, &format!("hop-{kind}"))?);
    }
    Ok((HOP, pids))
}

fn subject(name: &'static str, ground: Ground, client: u32, hop: Vec<u32>, server: u32) -> Subject {
    let mut parts = vec![("client end", client)];
    parts.extend(hop.into_iter().map(|pid| ("hop", pid)));
    parts.push(("server end", server));
    Subject { name, ground, parts, way: None }
}

pub(crate) fn boringtun_binary() -> PathBuf {
    peers_folder().join("bin/boringtun-cli")
}

/// WireGuard in user space at both ends, with its default threads.
pub(crate) fn boringtun(name: &'static str, mut ground: Ground, with_hop: bool) -> anyhow::Result<Subject> {
    const PORT: u16 = 51820;
    let (address, hop) = hop(&mut ground, with_hop, &[("UDP", PORT)])?;
    ground.route_at(Place::Server)?;
    let mut pids = Vec::new();
    let mut keys = Vec::new();
    for (place, inner) in [(Place::Server, SERVER_INNER), (Place::Client, CLIENT_INNER)] {
        let (device, netns) = (ground.device(place), ground.netns(place));
        let mut command = ground.at(place, &boringtun_binary().display().to_string());
        let _ = command.args(["-f", "--disable-drop-privileges", &device]).env("WG_LOG_LEVEL", "error");
        pids.push(ground.keep(&mut command, &device)?);
        let file = ground.path(&format!("{device}.key"));
        let pair = format!("umask 077; wg genkey | tee {} | wg pubkey", file.display());
        keys.push((file.display().to_string(), run(Command::new("sh").args(["-c", &pair]))?.trim().to_owned()));
        ground.wait("no WireGuard device", &[&device], || ground.say(place, &format!("wg show {device}")).is_ok())?;
        ip(&format!("-n {netns} addr add {inner}/24 dev {device}"))?;
        ip(&format!("-n {netns} link set {device} mtu 1420 up"))?;
    }
    let [(server_file, server_key), (client_file, client_key)] = &keys[..] else { unreachable!("two ends") };
    let (server, client) = (ground.device(Place::Server), ground.device(Place::Client));
    ground.say(
        Place::Server,
        &format!(
            "wg set {server} listen-port {PORT} private-key {server_file} peer {client_key} allowed-ips {CLIENT_INNER}/32"
        ),
    )?;
    ground.say(
        Place::Client,
        &format!(
            "wg set {client} private-key {client_file} peer {server_key} endpoint {address}:{PORT} allowed-ips {SERVER_INNER}/32,{INTRANET}"
        ),
    )?;
    ip(&format!("-n {} route add {INTRANET} dev {client}", ground.netns(Place::Client)))?;
    ground.wait_for_inside(&[&client, &server])?;
    Ok(subject(name, ground, pids[1], hop, pids[0]))
}

/// ocserv and openconnect over DTLS, as Debian builds them; no compression, no search for the MTU.
pub(crate) fn ocserv(name: &'static str, mut ground: Ground, with_hop: bool) -> anyhow::Result<Subject> {
    const PORT: u16 = 4443;
    let (address, hop) = hop(&mut ground, with_hop, &[("UDP", PORT), ("TCP", PORT)])?;
    ground.route_at(Place::Server)?;
    let path = |file: &str| ground.path(file).display().to_string();
    let folder = path("");
    let prepare = "cd \"$0\" && umask 077 && \
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=vpn \
        -keyout vpn.key -out vpn.pem 2>/dev/null && \
        printf 'pw\\npw\\n' | ocpasswd -c ocpasswd test >/dev/null && echo pw >password && \
        openssl x509 -in vpn.pem -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64";
    let pin = run(Command::new("sh").args(["-c", prepare, &folder]))?.trim().to_owned();
    std::fs::write(ground.path("ocserv.conf"), configuration(&folder, PORT))?;
    let script = format!(
        "#!/bin/sh\nif [ \"$reason\" = connect ]; then\nip addr add \"$INTERNAL_IP4_ADDRESS/32\" dev \"$TUNDEV\"\n\
         ip link set \"$TUNDEV\" mtu \"${{INTERNAL_IP4_MTU:-1400}}\" up\nip route add 203.0.113.0/24 dev \"$TUNDEV\"\n\
         ip route add {INTRANET} dev \"$TUNDEV\"\nfi\nexit 0\n"
    );
    std::fs::write(ground.path("script"), script)?;
    run(Command::new("chmod").args(["700", &path("script")]))?;

    let server = ground.start(Place::Server, &format!("ocserv -f -c {folder}/ocserv.conf"), "ocserv")?;
    let answers = format!("curl -ks -o /dev/null https://{address}:{PORT}/");
    ground.wait("ocserv does not answer", &["ocserv"], || ground.say(Place::Client, &answers).is_ok())?;
    // The password comes by standard input.
    let dial = format!(
        "exec openconnect --protocol=anyconnect --servercert pin-sha256:{pin} -u test --passwd-on-stdin -i {} \
         --script {folder}/script -v https://{address}:{PORT} <{folder}/password",
        ground.device(Place::Client)
    );
    let mut command = ground.at(Place::Client, "sh");
    let client = ground.keep(command.args(["-c", &dial]), "openconnect")?;
    let logs = ["openconnect", "ocserv"];
    ground.wait("no DTLS", &logs, || ground.log("openconnect").contains("Established DTLS"))?;
    ground.wait_for_inside(&logs)?;
    Ok(subject(name, ground, client, hop, server))
}

fn configuration(folder: &str, port: u16) -> String {
    format!(
        "auth = \"plain[passwd={folder}/ocpasswd]\"
tcp-port = {port}
udp-port = {port}
run-as-user = root
run-as-group = root
socket-file = {folder}/ocserv.sock
server-cert = {folder}/vpn.pem
server-key = {folder}/vpn.key
isolate-workers = false
max-clients = 16
max-same-clients = 16
keepalive = 3600
dpd = 300
try-mtu-discovery = false
compression = false
tls-priorities = \"NORMAL:%SERVER_PRECEDENCE\"
auth-timeout = 60
min-reauth-time = 1
cookie-timeout = 300
rekey-time = 172800
use-utmp = false
use-occtl = false
pid-file = {folder}/ocserv.pid
device = vpns
predictable-ips = true
ipv4-network = 203.0.113.0
ipv4-netmask = 255.255.255.0
ping-leases = false
cisco-client-compat = true
dtls-legacy = true
"
    )
}
