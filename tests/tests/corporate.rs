//! Out of a corporate network: through its proxies, with their passwords, by lane and by link.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hedgerow_tests::corporate::{CorporateProxy, PASSWORD, SQUID, USER, password_file};
use hedgerow_tests::office::{Office, RELAY, Ways};

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
