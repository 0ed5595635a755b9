//! Out of a corporate network: through its proxies, with their passwords, by lane and by link.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use hedgerow_tests::corporate::{CorporateProxy, PASSWORD, SQUID, USER, password_file};
use hedgerow_tests::firewall::TlsOnly;
use hedgerow_tests::inspector::{CA, Inspector};
use hedgerow_tests::office::{Office, RELAY, Ways};
use hedgerow_tests::process::wait_until;

/// Both ports of the relay, by a name that only proxies can resolve.
fn relay() -> Vec<String> {
    vec![format!("{RELAY}:3101"), format!("{RELAY}:443")]
}

fn outbound(kind: &str, port: u16, password: &str) -> String {
    format!("proxy = \"{kind}://127.0.0.1:{port}\"\nproxy_user = {USER:?}\nproxy_password_file = {password:?}")
}

/// No role wrote the password anywhere.
fn password_is_kept(office: &Office) {
    for role in ["relay", "core", "node", "device"] {
        let log = office.log(role);
        assert!(!log.contains("horse") && !log.contains("Y29ycHVzZX"), "{role}: {log}");
    }
}

#[test]
fn p11_every_role_reaches_the_relay_only_through_squid_with_a_password() {
    let mut office = Office::open();
    let squid = CorporateProxy::squid(&format!("{} {RELAY}\n", office.address));
    let password = password_file(&office.path("proxy.password"), PASSWORD);
    let mut ways = Ways::all(&relay(), &outbound("http", squid.port, &password));
    // The node has it from the environment instead, password included.
    ways.outbound.remove("node");
    let url = format!("http://{USER}:correct%20horse@127.0.0.1:{}", squid.port);
    ways.environment.insert("node", vec![("HTTPS_PROXY".into(), url)]);
    office.move_in(ways);

    assert_eq!(office.load_page(), "lane");
    let sessions = office.at_relay();
    let addresses = ["address", "device_address", "node_address"].iter().flat_map(|k| sessions.iter().map(|s| &s[*k]));
    let addresses: Vec<&str> = addresses.filter_map(|a| a.as_str()).collect();
    assert!(addresses.len() >= 5, "three links and both legs of a lane: {sessions:#?}");
    assert!(addresses.iter().all(|a| a.starts_with(SQUID)), "somebody came past the proxy: {sessions:#?}");
    assert!(sessions.iter().any(|s| s["path"] == "copy"), "behind a proxy the node's leg is wrapped: {sessions:#?}");

    office.restart_device("off");
    assert_eq!(office.load_page(), "link");
    let link = office.get("device", "/status")["link"].clone();
    assert_eq!(link["proxy"], format!("http://127.0.0.1:{}", squid.port));
    assert_eq!(link["address"], format!("{RELAY}:443"));

    let log = squid.log();
    assert!(log.contains(&format!("CONNECT {RELAY}:443 {USER}")), "{log}");
    assert!(!log.contains(":3101"), "a port that HTTP proxies do not let through was tried: {log}");
    password_is_kept(&office);
}

#[test]
fn p11_every_role_reaches_the_relay_only_through_dante_with_a_password() {
    let mut office = Office::open();
    let dante = CorporateProxy::dante(&format!("{} {RELAY}", office.address));
    let password = password_file(&office.path("proxy.password"), PASSWORD);
    let mut ways = Ways::all(&relay(), &outbound("socks5", dante.port, &password));
    ways.outbound.remove("device");
    let url = format!("socks5h://{USER}:correct%20horse@127.0.0.1:{}", dante.port);
    ways.environment.insert("device", vec![("all_proxy".into(), url), ("NO_PROXY".into(), "other.corp.test".into())]);
    office.move_in(ways);

    assert_eq!(office.load_page(), "lane");
    assert!(office.at_relay().iter().any(|s| s["path"] == "copy"), "behind a proxy the node's leg is wrapped");
    office.restart_device("off");
    assert_eq!(office.load_page(), "link");
    let node = office.get("node", "/node")["link"].clone();
    assert_eq!(node["proxy"], format!("socks5://127.0.0.1:{}", dante.port));
    assert_eq!(node["address"], format!("{RELAY}:3101"), "SOCKS takes every port, in the order given");
    assert!(dante.log().contains(&office.address), "{}", dante.log());
    password_is_kept(&office);
}

#[test]
fn p11_proxies_that_refuse_are_named_with_what_to_do() {
    let mut office = Office::open();
    let squid = CorporateProxy::squid(&format!("{} {RELAY}\n", office.address));
    let password = password_file(&office.path("proxy.password"), PASSWORD);
    office.move_in(Ways::all(&relay(), &outbound("http", squid.port, &password)));

    let wrong = password_file(&office.path("wrong.password"), "battery staple");
    let at = format!("127.0.0.1:{}", squid.port);
    let portal = answering(b"HTTP/1.1 302 Found\r\nLocation: http://portal.corp.test/login\r\n\r\n");
    let kerberos = answering(b"HTTP/1.1 407 Auth\r\nProxy-Authenticate: Negotiate\r\nContent-Length: 0\r\n\r\n");
    let garbage = answering(b"220 mail.corp.test ESMTP\r\n");
    let silent = answering(b"");
    let cases = [
        (outbound("http", squid.port, &wrong), at.as_str(), "user name or password is wrong"),
        (format!("proxy = \"http://{at}\""), &at, "set outbound.proxy_user"),
        (format!("proxy = \"http://{portal}\""), &portal, "redirection to portal.corp.test"),
        (outbound("http", port(&kerberos), &password), &kerberos, "negotiate"),
        (format!("proxy = \"http://{garbage}\""), &garbage, "no HTTP proxy"),
        (format!("proxy = \"socks5://{garbage}\""), &garbage, "does not speak SOCKS5"),
        (format!("proxy = \"http://{silent}\""), &silent, "did not answer"),
        ("proxy = \"http://127.0.0.1:1\"".to_owned(), "127.0.0.1:1", "cannot be reached"),
    ];
    for (outbound, proxy, words) in cases {
        let output = office.try_activate_at(&relay()[1], &outbound);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{outbound} works");
        assert!(said.contains(words) && said.contains(proxy), "{outbound}: {said}");
        assert!(!said.contains("horse") && !said.contains("staple"), "{said}");
    }
}

/// A small server that says the same to everybody; nothing at all when `words` is empty.
fn answering(words: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for mut io in listener.incoming().flatten() {
            if !words.is_empty() {
                let _ = io.read(&mut [0; 4096]);
                let _ = io.write_all(words);
                // Read to the client's end, so that nothing is reset before it has read the words.
                let _ = io.set_read_timeout(Some(Duration::from_secs(5)));
                let _ = io.shutdown(std::net::Shutdown::Write);
                let _ = io.read(&mut [0; 4096]);
            }
            kept.push(io);
        }
    });
    address
}

fn port(address: &str) -> u16 {
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[test]
fn p01_where_a_firewall_cuts_bare_legs_the_lane_comes_wrapped_and_that_is_remembered() {
    let mut office = Office::open();
    let direct = vec![format!("{}:443", office.address)];
    let wall = TlsOnly::before(&format!("{}:3101", office.address));
    let mut ways = Ways::all(&direct, "");
    ways.node_relay = vec![wall.address.to_string()];
    office.move_in(ways);

    assert_eq!(office.load_page(), "lane", "the first lane works already");
    assert_eq!(wall.counts().1, 1, "one bare leg was tried");
    assert!(office.at_relay().iter().any(|s| s["path"] == "copy"), "wrapped: {:#?}", office.at_relay());
    let refused = || office.metric("node", "hedgerow_node_lane_legs_refused_total", "");
    wait_until("the node has learnt it", Duration::from_secs(5), || refused() > 0.0);
    let before = wall.counts().0;

    office.restart_device("auto");
    assert_eq!(office.load_page(), "lane");
    assert_eq!(wall.counts().1, 1, "no bare leg is tried again on this network");
    assert!(wall.counts().0 > before);
}

#[test]
fn p11_a_network_that_opens_tls_is_noticed_and_its_issuer_named() {
    let mut office = Office::open();
    office.move_in(Ways::all(&[format!("{}:443", office.address)], ""));
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let inspector = Inspector::before(&format!("{}:443", office.address), &office.path(""), vec![version]);
        let output = office.try_activate_at(&inspector.address.to_string(), "");
        let said = String::from_utf8_lossy(&output.stderr);
        let words = [CA, RELAY, "bypass", &inspector.address.to_string(), "inspected_ok"];
        assert!(!output.status.success() && words.iter().all(|w| said.contains(w)), "{version:?}: {said}");
    }
}

#[test]
fn p11_where_tls_is_opened_and_that_is_allowed_the_link_runs_inside_a_websocket() {
    let mut office = Office::open();
    let both = vec![&rustls::version::TLS13, &rustls::version::TLS12];
    let inspector = Inspector::before(&format!("{}:443", office.address), &office.path(""), both);
    let outbound = format!("inspected_ok = true\ninspection_ca_file = {:?}", inspector.ca);
    office.move_in(Ways::all(&[inspector.address.to_string()], &outbound));

    assert_eq!(office.load_page(), "link", "no lane gets through");
    let inside = office.metric("relay", "hedgerow_relay_connections_total", "inside_websocket");
    assert!(inside >= 5.0, "enrolment, activation and three links came inside: {inside}");
    let plain = office.metric("relay", "hedgerow_relay_connections_total", "kind=\"link\"");
    assert!(plain < 0.5, "a link came past the inspector");
    assert!(inspector.has_read(b"GET /hedgerow-link HTTP/1.1"), "the inspector reads the outer TLS");
    for secret in [&b"the page behind"[..], b"anna@example.com", b"S12345678", b"wiki.intranet"] {
        assert!(!inspector.has_read(secret), "it reads the inner one too: {}", String::from_utf8_lossy(secret));
    }
}

#[test]
fn p11_a_node_where_tls_is_opened_still_brings_its_lane_legs_inside_a_websocket() {
    let mut office = Office::open();
    let direct = format!("{}:443", office.address);
    let both = vec![&rustls::version::TLS13, &rustls::version::TLS12];
    let inspector = Inspector::before(&direct, &office.path(""), both);
    let mut ways = Ways::all(&[direct], "");
    ways.node_relay = vec![inspector.address.to_string()];
    let outbound = format!("inspected_ok = true\ninspection_ca_file = {:?}", inspector.ca);
    ways.outbound.insert("node", outbound);
    office.move_in(ways);

    assert_eq!(office.load_page(), "lane", "the device's own leg is direct");
    assert!(office.at_relay().iter().any(|s| s["path"] == "copy"), "{:#?}", office.at_relay());
    assert!(!inspector.has_read(b"the page behind"));
}

#[test]
fn p11_an_inspector_whose_ca_is_trusted_is_noticed_by_the_exporter() {
    let mut office = Office::open();
    let both = vec![&rustls::version::TLS13, &rustls::version::TLS12];
    let inspector = Inspector::copying(&format!("{}:443", office.address), &office.path(""), both);
    let mut ways = Ways::all(
        &[inspector.address.to_string()],
        &format!("inspected_ok = true\ninspection_ca_file = {:?}", inspector.ca),
    );
    ways.more_ca = std::fs::read_to_string(&inspector.ca).unwrap();
    office.move_in(ways);

    assert_eq!(office.load_page(), "link");
    for role in ["core", "device"] {
        let log = office.log(role);
        assert!(log.contains("cannot open the link"), "{role} was let in through the inspector: {log}");
    }
    assert!(!inspector.has_read(b"the page behind") && !inspector.has_read(b"wiki.intranet"));
}

#[test]
fn p11_an_inspector_whose_ca_is_trusted_is_noticed_before_activation_too_and_its_issuer_named() {
    let mut office = Office::open();
    office.move_in(Ways::all(&[format!("{}:443", office.address)], ""));
    let inspector = Inspector::copying(
        &format!("{}:443", office.address),
        &office.path(""),
        vec![&rustls::version::TLS13, &rustls::version::TLS12],
    );
    let both = office.path("both-ca.pem");
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    std::fs::write(&both, read(&office.path("relay/relay-ca.pem")) + &read(&inspector.ca)).unwrap();
    let at = inspector.address.to_string();
    let output = office.try_activate_trusting(&both, &at, "");
    let said = String::from_utf8_lossy(&output.stderr);
    let words = [CA, RELAY, "bypass", &at, "inspected_ok"];
    assert!(!output.status.success() && words.iter().all(|w| said.contains(w)), "{said}");
    // It has seen who asks for whom, as the relay does, and nothing of what would have been said inside.
    assert!(inspector.has_read(b"/lookup") && inspector.has_read(b"CONNECT "));
    assert!(!inspector.has_read(read(&office.path("password")).trim().as_bytes()));
    let inside = || office.metric("relay", "hedgerow_relay_connections_total", "inside_websocket");
    let before = inside();
    let output = office.try_activate_trusting(&both, &at, "inspected_ok = true");
    assert!(inside() > before, "allowed, it goes inside a WebSocket: {}", String::from_utf8_lossy(&output.stderr));
}
