//! OpenSSL, as the program: `s_server` and `s_client` with their input and output in our hands.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use hedgerow_secure_connect::session::dtls::Own;
use hedgerow_shared::Role;
use hedgerow_shared::fault::Code;

use super::{Line, TIME};
use crate::tenant::Tenant;

/// A running `openssl`; what it prints is read all the time, so that it never waits for us.
struct OpenSsl {
    child: Child,
    input: ChildStdin,
    said: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
    _files: tempfile::TempDir,
}

impl OpenSsl {
    /// With a certificate, if it has one, and the tenant's CA to believe in.
    fn start(arguments: &[&str], own: Option<&Own>, tenant: &Tenant) -> Self {
        let files = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = files.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let mut command = Command::new("openssl");
        command.args(arguments).arg("-dtls1_2").arg("-verify_return_error");
        command.arg("-CAfile").arg(file("ca.pem", tenant.root_pem().as_bytes()));
        if let Some(own) = own {
            command.args(["-certform", "DER", "-keyform", "DER", "-cert"]).arg(file("leaf.der", &own.certificate));
            command.arg("-key").arg(file("key.der", own.key.expose()));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (output, errors) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let readers = vec![keep(output, said.clone()), keep(errors, said.clone())];
        Self { input: child.stdin.take().unwrap(), child, said, readers, _files: files }
    }

    fn server(own: &Own, tenant: &Tenant) -> (Self, SocketAddr) {
        let openssl = Self::start(&["s_server", "-accept", "127.0.0.1:0", "-Verify", "1"], Some(own), tenant);
        assert!(openssl.says("ACCEPT 127.0.0.1:"), "{}", openssl.text());
        assert!(openssl.within(|text| text.split("ACCEPT ").nth(1).is_some_and(|rest| rest.contains('\n'))));
        let text = openssl.text();
        let address = text.split("ACCEPT ").nth(1).and_then(|rest| rest.lines().next()).unwrap().parse().unwrap();
        (openssl, address)
    }

    fn client(own: Option<&Own>, tenant: &Tenant, to: SocketAddr) -> Self {
        Self::start(&["s_client", "-connect", &to.to_string()], own, tenant)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Whether it prints this, now or soon.
    fn says(&self, what: &str) -> bool {
        self.within(|text| text.contains(what))
    }

    fn within(&self, is_so: impl Fn(&str) -> bool) -> bool {
        let end = Instant::now() + TIME;
        while !is_so(&self.text()) {
            if Instant::now() > end {
                return false;
            }
            thread::sleep(std::time::Duration::from_millis(10));
        }
        true
    }

    /// One write to its input becomes one record. A line that begins with `Q` ends the connection.
    fn tell(&mut self, line: &str) {
        self.input.write_all(line.as_bytes()).unwrap();
        self.input.flush().unwrap();
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

fn keep(mut from: impl Read + Send + 'static, said: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut room = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut room) {
            said.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&room[..length]);
        }
    })
}

/// Both connected, in one tenant.
fn connected(we_are_client: bool) -> (Line, OpenSsl) {
    let tenant = Tenant::new();
    let (device, node) = (tenant.issue(Role::Device), tenant.issue(Role::Node));
    let (mut line, openssl) = if we_are_client {
        let (openssl, address) = OpenSsl::server(&node, &tenant);
        (Line::new(&device, tenant.check(Role::Node), Some(address)), openssl)
    } else {
        let line = Line::new(&node, tenant.check(Role::Device), None);
        let openssl = OpenSsl::client(Some(&device), &tenant, line.address());
        (line, openssl)
    };
    assert!(line.connect(), "client {we_are_client}: {:?}\n{}", line.ours.ended, openssl.text());
    (line, openssl)
}

#[test]
fn p14_openssl_and_we_pass_plaintexts_of_all_sizes_over_dtls_1_2() {
    for we_are_client in [true, false] {
        let (mut line, mut openssl) = connected(we_are_client);
        for (letter, size) in ('a'..).zip([2, 17, 255, 576, 1200, 1280, 1400]) {
            // Letters of both cases: OpenSSL takes some capitals at the beginning for commands.
            let up = format!("<{}>\n", letter.to_string().repeat(size));
            line.ours.seal(up.as_bytes());
            line.talk(std::time::Duration::from_millis(10), |_| false);
            assert!(openssl.says(&up), "{size} bytes of ours do not arrive:\n{}", openssl.text());
            let down = format!("{}\n", letter.to_string().repeat(size - 1));
            openssl.tell(&format!("-{down}"));
            assert!(line.next() == Some(format!("-{down}").into_bytes()), "{size} bytes of OpenSSL's do not arrive");
        }
    }
}

#[test]
fn p14_openssl_agrees_on_the_extended_master_secret_and_an_authenticated_cipher() {
    let (_line, openssl) = connected(false);
    assert!(openssl.says("Extended master secret: yes"), "{}", openssl.text());
    assert!(openssl.says("Protocol  : DTLSv1.2") && openssl.says("Cipher is ECDHE-ECDSA-AES"), "{}", openssl.text());
    assert!(openssl.text().contains("GCM"), "{}", openssl.text());
}

#[test]
fn p14_goodbyes_pass_between_openssl_and_us() {
    for we_are_client in [true, false] {
        let (mut line, openssl) = connected(we_are_client);
        line.ours.close();
        line.talk(std::time::Duration::from_millis(10), |_| false);
        let heard = if we_are_client { "DONE\n" } else { "closed\n" };
        assert!(openssl.says(heard), "{}", openssl.text());
    }
    // Not of `s_server`: over DTLS it closes its socket before it says goodbye.
    let (mut line, mut openssl) = connected(false);
    openssl.tell("Q\n");
    assert!(line.talk(TIME, |ours| ours.closed), "{:?}\n{}", line.ours.ended, openssl.text());
}

#[test]
fn p14_we_refuse_an_openssl_whose_certificate_another_ca_signed() {
    let (tenant, stranger) = (Tenant::new(), Tenant::new());
    let (openssl, address) = OpenSsl::server(&stranger.issue(Role::Node), &tenant);
    let mut line = Line::new(&tenant.issue(Role::Device), tenant.check(Role::Node), Some(address));
    assert!(!line.connect(), "{}", openssl.text());
    assert_eq!(line.ours.ended.as_ref().map(|fault| fault.code), Some(Code::Unauthenticated));

    let mut line = Line::new(&tenant.issue(Role::Node), tenant.check(Role::Device), None);
    let openssl = OpenSsl::client(Some(&stranger.issue(Role::Device)), &tenant, line.address());
    assert!(!line.connect(), "{}", openssl.text());
    assert_eq!(line.ours.ended.as_ref().map(|fault| fault.code), Some(Code::Unauthenticated));
}

/// Whether OpenSSL does not believe us, and we notice that we are not connected.
fn refuses(openssl: &OpenSsl, line: &mut Line) -> bool {
    const REFUSED: &str = "certificate verify failed";
    line.talk(TIME, |ours| ours.is_connected() || openssl.text().contains(REFUSED));
    openssl.says(REFUSED) && !line.ours.is_connected()
}

#[test]
fn p14_openssl_refuses_a_certificate_of_ours_that_its_ca_did_not_sign() {
    let (tenant, stranger) = (Tenant::new(), Tenant::new());
    let (openssl, address) = OpenSsl::server(&tenant.issue(Role::Node), &tenant);
    let mut line = Line::new(&stranger.issue(Role::Device), tenant.check(Role::Node), Some(address));
    assert!(refuses(&openssl, &mut line), "{}", openssl.text());

    let mut line = Line::new(&stranger.issue(Role::Node), tenant.check(Role::Device), None);
    let openssl = OpenSsl::client(Some(&tenant.issue(Role::Device)), &tenant, line.address());
    assert!(refuses(&openssl, &mut line), "{}", openssl.text());
}

#[test]
fn p14_an_openssl_client_without_a_certificate_is_refused() {
    let tenant = Tenant::new();
    let mut line = Line::new(&tenant.issue(Role::Node), tenant.check(Role::Device), None);
    let openssl = OpenSsl::client(None, &tenant, line.address());
    assert!(!line.connect(), "{}", openssl.text());
    assert!(line.ours.ended.is_some(), "a client that shows nothing is waited for\n{}", openssl.text());
}
