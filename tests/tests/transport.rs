//! Which transport carries the links of real processes, and that work passes over it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hedgerow_tests::curl::{curl, text};
use hedgerow_tests::nginx::{Nginx, sha256};
use hedgerow_tests::world::{Options, World};

#[test]
fn n02_links_take_quic_and_work_passes_over_it_where_lanes_are_off() {
    let nginx = Nginx::start("a page from inside\n");
    let allow = vec![format!("127.0.0.1:{}", nginx.port)];
    let world = World::start(&Options { allow, without_lanes: true, ..Options::default() });
    let url = |path: &str| format!("http://127.0.0.1:{}/{path}", nginx.port);
    assert_eq!(text(curl().args(["--proxy", &world.socks(), &url("page")])), "a page from inside\n");
    let expected = nginx.put_file("large", 16 << 20);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large");
    let _ = text(curl().args(["--proxy", &world.socks(), "--output"]).arg(&file).arg(url("large")));
    assert_eq!(sha256(&file), expected);

    let status = world.get("device.admin", "/status");
    assert!(status.contains("\"path\":\"link\""), "{status}");
    for (role, path) in [("device.admin", "/status"), ("node.admin", "/node"), ("core.admin", "/status")] {
        let status = world.get(role, path);
        assert!(
            status.contains("\"transport\":\"quic\"") && status.contains("\"transport_reason\":\"udp_"),
            "{status}"
        );
        assert_eq!(world.metric(role, "hedgerow_link_transport", "transport=\"quic\""), 1.0, "{role}");
    }
}
