//! Networks with one family of addresses, and with an IPv6 that leads nowhere: the whole product, each time in a network
//! namespace of its own, where `relay.corp.test` has the addresses that the network gives it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use hedgerow_runtime::dial;
use hedgerow_tests::curl::{curl, text};
use hedgerow_tests::office::{Office, RELAY, Ways};
use hedgerow_tests::process::run;

/// Set for the second run of this program, inside the namespace.
const INSIDE: &str = "HEDGEROW_TEST_NETWORK";
const PORT: u16 = 8443;

/// Runs the named test of this program again, in a namespace that `setup` makes and with these lines in /etc/hosts;
/// `true` inside.
fn in_network(test: &str, setup: &str, hosts: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hosts");
    std::fs::write(&file, format!("127.0.0.1 localhost\n::1 localhost\n{hosts}")).unwrap();
    let script = format!(
        "ip link set lo up; ip link add d0 type veth peer name d1; ip link set d0 up; ip link set d1 up\n{setup}\nmount --bind {} /etc/hosts\n\
         exec \"$0\" {test} --exact --nocapture",
        file.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--propagation", "private", "sh", "-ec", &script]);
    command.arg(std::env::current_exe().unwrap()).env(INSIDE, "1");
    let output = run(&mut command, Duration::from_secs(240));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("1 passed"), "{said}");
    false
}

/// Core, node and device with the relay at its name; the site at these addresses. A page has come by a lane.
fn working_office(site: &[&str]) -> Office {
    let mut office = Office::open_at(&[format!("[::]:{PORT}")]);
    let relay = vec![format!("{RELAY}:{PORT}")];
    let ways = Ways::all(&relay, "");
    office.move_in(Ways { node_relay: relay, site: site.iter().map(|s| (*s).to_owned()).collect(), ..ways });
    assert_eq!(office.load_page(), "lane");
    office
}

/// Every address that the relay knows of its peers.
fn peers(office: &Office) -> Vec<String> {
    let of =
        |s: serde_json::Value| ["address", "device_address", "node_address"].map(|k| s[k].as_str().map(str::to_owned));
    office.at_relay().into_iter().flat_map(of).flatten().collect()
}

fn page_over_ipv6_loopback(office: &Office) -> String {
    let url = format!("http://wiki.intranet.example.com:{}/page", office.site().port);
    text(curl().args(["--proxy", &office.socks().replace("127.0.0.1", "[::1]"), &url]))
}

#[test]
fn n02_everything_works_where_there_is_only_ipv6() {
    let setup = "ip -6 addr add 2001:db8::1/64 dev d0 nodad";
    if !in_network("n02_everything_works_where_there_is_only_ipv6", setup, &format!("2001:db8::1 {RELAY}\n")) {
        return;
    }
    let office = working_office(&["::1"]);
    let peers = peers(&office);
    assert!(peers.len() >= 5 && peers.iter().all(|a| a.starts_with("[2001:db8::1]:")), "{peers:?}");
    assert!(page_over_ipv6_loopback(&office).contains("page"));
}

#[test]
fn n02_everything_works_where_there_is_only_ipv4() {
    let setup = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; ip addr add 192.0.2.1/24 dev d0";
    if !in_network("n02_everything_works_where_there_is_only_ipv4", setup, &format!("192.0.2.1 {RELAY}\n")) {
        return;
    }
    assert!(std::net::TcpListener::bind("[::1]:0").is_err(), "there is IPv6");
    let office = working_office(&["127.0.0.1"]);
    let peers = peers(&office);
    assert!(peers.len() >= 5 && peers.iter().all(|a| a.starts_with("192.0.2.1:")), "{peers:?}");
}

/// Answers every question for an IPv4 address, and swallows every other one, as some firewalls do.
fn half_a_resolver(address: [u8; 4]) {
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            // RFC 1035, 4.1: a header of 12 bytes, the name up to its empty label, its type (1 is A) and class.
            let name = question[12..length].iter().position(|b| *b == 0).unwrap() + 13;
            if question[name..name + 2] != [0, 1] {
                continue;
            }
            let mut answer = question[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            answer.extend(&question[12..name + 4]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(address);
            socket.send_to(&answer, from).unwrap();
        }
    });
}

#[test]
fn n02_a_resolver_that_swallows_questions_for_ipv6_costs_less_than_a_second() {
    const NAME: &str = "n02_a_resolver_that_swallows_questions_for_ipv6_costs_less_than_a_second";
    let setup = "ip addr add 192.0.2.1/24 dev d0; echo nameserver 127.0.0.1 >/run/resolv.$$\n\
                 mount --bind /run/resolv.$$ /etc/resolv.conf; rm /run/resolv.$$";
    if !in_network(NAME, setup, "") {
        return;
    }
    half_a_resolver([192, 0, 2, 1]);
    let since = Instant::now();
    let found = std::net::ToSocketAddrs::to_socket_addrs(&(RELAY, PORT));
    assert!(since.elapsed() > Duration::from_secs(2), "the system's own look-up does not mind: {found:?}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let since = Instant::now();
    let found = runtime.block_on(dial::resolve(&format!("{RELAY}:{PORT}"))).unwrap();
    assert_eq!(found, [SocketAddr::from(([192, 0, 2, 1], PORT))]);
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    runtime.shutdown_background();
    // Everything that has a relay's name in its configuration.
    let peers = peers(&working_office(&["127.0.0.1"]));
    assert!(peers.len() >= 5 && peers.iter().all(|a| a.starts_with("192.0.2.1:")), "{peers:?}");
}

/// From here on this thread and the processes that it starts are told that the system knows no IPv6, as with
/// `ipv6.disable=1` on the kernel's command line.
fn take_ipv6_away() {
    let op = |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
    let (load, equal, give) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    // struct seccomp_data: the number of the call at 0, its first argument at 16.
    let mut program = [
        op(load, 0, 0, 0),
        op(equal, 0, 3, u32::try_from(libc::SYS_socket).unwrap()),
        op(load, 0, 0, 16),
        op(equal, 0, 1, u32::try_from(libc::AF_INET6).unwrap()),
        op(give, 0, 0, libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EAFNOSUPPORT).unwrap()),
        op(give, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: u16::try_from(program.len()).unwrap(), filter: program.as_mut_ptr() };
    // SAFETY: `filter` and the program that it points to live until the call returns; the kernel copies both.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter, 0, 0), 0);
    }
}

#[test]
fn n02_everything_works_where_the_system_knows_no_ipv6() {
    let setup = "ip addr add 192.0.2.1/24 dev d0";
    if !in_network("n02_everything_works_where_the_system_knows_no_ipv6", setup, &format!("192.0.2.1 {RELAY}\n")) {
        return;
    }
    take_ipv6_away();
    let refused = std::net::TcpListener::bind("[::]:0").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EAFNOSUPPORT));
    let office = working_office(&["127.0.0.1"]);
    let peers = peers(&office);
    assert!(peers.len() >= 5 && peers.iter().all(|a| a.starts_with("192.0.2.1:")), "{peers:?}");
    assert!(office.log("relay").contains("this system has no IPv6"));
}

#[test]
fn n02_an_ipv6_that_leads_nowhere_costs_a_quarter_of_a_second() {
    // What is sent to that neighbour leaves by an interface that swallows everything.
    let setup = "ip addr add 192.0.2.1/24 dev d0; ip -6 addr add 2001:db8::1/64 dev d0 nodad\n\
                 ip -6 neigh add 2001:db8::dead lladdr 02:00:00:00:de:ad nud permanent dev d0";
    let hosts = format!("2001:db8::dead {RELAY}\n192.0.2.1 {RELAY}\n");
    if !in_network("n02_an_ipv6_that_leads_nowhere_costs_a_quarter_of_a_second", setup, &hosts) {
        return;
    }
    let office = working_office(&["2001:db8::dead", "127.0.0.1"]);
    let peers = peers(&office);
    assert!(peers.len() >= 5 && peers.iter().all(|a| a.starts_with("192.0.2.1:")), "{peers:?}");
    assert!(page_over_ipv6_loopback(&office).contains("page"));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let since = Instant::now();
    let tcp = runtime.block_on(dial::tcp(&[format!("{RELAY}:{PORT}")], Duration::from_secs(10))).unwrap();
    let took = since.elapsed();
    assert!(tcp.peer_addr().unwrap().is_ipv4());
    let expected = Duration::from_millis(200)..Duration::from_secs(3);
    assert!(expected.contains(&took), "{took:?}: the first attempt must be the one that leads nowhere");
}
