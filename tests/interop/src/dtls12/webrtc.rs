//! webrtc-dtls: certificates on both sides, echoes of every size, goodbyes, refusals, lost datagrams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use hedgerow_secure_connect::session::dtls::Own;
use hedgerow_shared::Role;
use hedgerow_shared::fault::Code;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use tokio::net::UdpSocket;
use webrtc_dtls::Error;
use webrtc_dtls::config::{ClientAuthType, Config, ExtendedMasterSecretType};
use webrtc_dtls::conn::DTLSConn;
use webrtc_dtls::crypto::{Certificate, CryptoPrivateKey, CryptoPrivateKeyKind};
use webrtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;

use super::{Line, TIME};
use crate::tenant::{NAME, Tenant};

const BYE: &[u8] = b"bye";

/// What webrtc-dtls shows and believes.
struct Theirs {
    shows: Vec<Certificate>,
    roots: RootCertStore,
    /// For each thing that it waits for.
    patience: Duration,
}

impl Theirs {
    fn new(own: Option<&Own>, tenant: &Tenant) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(tenant.root()).unwrap();
        Self { shows: own.map(certificate).into_iter().collect(), roots, patience: TIME }
    }

    /// Whom nobody will answer.
    fn impatient(own: Option<&Own>, tenant: &Tenant) -> Self {
        Self { patience: Duration::from_secs(2), ..Self::new(own, tenant) }
    }

    /// Connects from `socket` to `to`, then echoes.
    fn run(self, socket: std::net::UdpSocket, to: SocketAddr, is_client: bool) -> Result<(), Error> {
        let config = Config {
            certificates: self.shows,
            client_auth: ClientAuthType::RequireAndVerifyClientCert,
            client_cas: self.roots.clone(),
            roots_cas: self.roots,
            server_name: NAME.to_owned(),
            extended_master_secret: ExtendedMasterSecretType::Require,
            // Our library asks every server for SRTP in 1.2, and a server of webrtc-dtls without a profile refuses that
            // (ErrServerNoMatchingSrtpProfile); nothing comes of it.
            srtp_protection_profiles: vec![SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm],
            flight_interval: Duration::from_millis(200),
            ..Config::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            socket.set_nonblocking(true).unwrap();
            let socket = UdpSocket::from_std(socket).unwrap();
            socket.connect(to).await.unwrap();
            let connection = DTLSConn::new(Arc::new(socket), config, is_client, None);
            let connection =
                tokio::time::timeout(self.patience, connection).await.map_err(|_| Error::ErrDeadlineExceeded)??;
            echo(&connection, self.patience).await
        })
    }
}

/// Until it is told to say goodbye, or hears one.
async fn echo(connection: &DTLSConn, patience: Duration) -> Result<(), Error> {
    let mut room = [0; 2048];
    loop {
        let length = connection.read(&mut room, Some(patience)).await?;
        if &room[..length] == BYE {
            return connection.close().await;
        }
        connection.write(&room[..length], Some(patience)).await?;
    }
}

fn certificate(own: &Own) -> Certificate {
    let pkcs8 = own.key.expose();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8, &SystemRandom::new()).unwrap();
    Certificate {
        certificate: vec![CertificateDer::from(own.certificate.clone())],
        private_key: CryptoPrivateKey { kind: CryptoPrivateKeyKind::Ecdsa256(key), serialized_der: pkcs8.to_vec() },
    }
}

/// Runs both; `ours` is handed our end, and can ask whether the other has ended. Returns what webrtc-dtls ended with.
fn with(
    we_are_client: bool,
    theirs: Theirs,
    line: impl FnOnce(Option<SocketAddr>) -> Line,
    ours: impl FnOnce(&mut Line, &dyn Fn() -> bool),
) -> Result<(), Error> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let there = socket.local_addr().unwrap();
    let mut line = line(we_are_client.then_some(there));
    let here = line.address();
    thread::scope(|scope| {
        let other = scope.spawn(move || theirs.run(socket, here, !we_are_client));
        ours(&mut line, &|| other.is_finished());
        other.join().unwrap()
    })
}

/// The roles of our end and of the other.
fn roles(we_are_client: bool) -> (Role, Role) {
    if we_are_client { (Role::Device, Role::Node) } else { (Role::Node, Role::Device) }
}

#[test]
fn p14_webrtc_dtls_echoes_all_sizes_and_understands_our_goodbye() {
    for we_are_client in [true, false] {
        let tenant = Tenant::new();
        let (our_role, their_role) = roles(we_are_client);
        let theirs = Theirs::new(Some(&tenant.issue(their_role)), &tenant);
        let line = |to| Line::new(&tenant.issue(our_role), tenant.check(their_role), to);
        let ended = with(we_are_client, theirs, line, |line, _| {
            assert!(line.connect(), "{we_are_client}: {:?}", line.ours.ended);
            for size in [1, 16, 255, 576, 1200, 1280, 1400] {
                assert!(line.ask(&vec![7; size]) == Some(vec![7; size]), "{size} bytes");
            }
            line.ours.close();
            line.talk(Duration::from_millis(100), |_| false);
        });
        assert!(matches!(ended, Err(Error::ErrAlertFatalOrClose)), "{ended:?}");
    }
}

#[test]
fn p14_we_understand_the_goodbye_of_webrtc_dtls() {
    for we_are_client in [true, false] {
        let tenant = Tenant::new();
        let (our_role, their_role) = roles(we_are_client);
        let theirs = Theirs::new(Some(&tenant.issue(their_role)), &tenant);
        let line = |to| Line::new(&tenant.issue(our_role), tenant.check(their_role), to);
        let ended = with(we_are_client, theirs, line, |line, _| {
            assert!(line.connect(), "{:?}", line.ours.ended);
            line.ours.seal(BYE);
            assert!(line.talk(TIME, |ours| ours.closed), "{:?}", line.ours.ended);
        });
        assert!(ended.is_ok(), "{ended:?}");
    }
}

#[test]
fn p14_a_handshake_with_webrtc_dtls_survives_lost_datagrams() {
    let lost = AtomicU32::new(0);
    thread::scope(|scope| {
        for seed in 0..8 {
            let lost = &lost;
            scope.spawn(move || {
                let we_are_client = seed % 2 == 0;
                let tenant = Tenant::new();
                let (our_role, their_role) = roles(we_are_client);
                let theirs = Theirs::new(Some(&tenant.issue(their_role)), &tenant);
                let line = |to| Line::new(&tenant.issue(our_role), tenant.check(their_role), to).bad(seed, 15);
                let ended = with(we_are_client, theirs, line, |line, _| {
                    assert!(line.connect(), "client {we_are_client}, seed {seed}: {:?}", line.ours.ended);
                    lost.fetch_add(line.counted, Ordering::Relaxed);
                    line.lost = 0;
                    assert_eq!(line.ask(b"and then?").as_deref(), Some(&b"and then?"[..]));
                    line.ours.seal(BYE);
                    assert!(line.talk(TIME, |ours| ours.closed));
                });
                assert!(ended.is_ok(), "client {we_are_client}, seed {seed}: {ended:?}");
            });
        }
    });
    assert!(lost.into_inner() >= 8, "the weather was good");
}

#[test]
fn p14_we_refuse_a_webrtc_dtls_whose_certificate_another_ca_signed() {
    for we_are_client in [true, false] {
        let (tenant, stranger) = (Tenant::new(), Tenant::new());
        let (our_role, their_role) = roles(we_are_client);
        let theirs = Theirs::impatient(Some(&stranger.issue(their_role)), &tenant);
        let line = |to| Line::new(&tenant.issue(our_role), tenant.check(their_role), to);
        let mut why = None;
        let _ = with(we_are_client, theirs, line, |line, _| {
            assert!(!line.connect());
            why = line.ours.ended.as_ref().map(|fault| fault.code);
        });
        assert_eq!(why, Some(Code::Unauthenticated));
    }
}

#[test]
fn p14_webrtc_dtls_refuses_a_certificate_of_ours_that_its_ca_did_not_sign() {
    for we_are_client in [true, false] {
        let (tenant, stranger) = (Tenant::new(), Tenant::new());
        let (our_role, their_role) = roles(we_are_client);
        let theirs = Theirs::new(Some(&tenant.issue(their_role)), &tenant);
        let line = |to| Line::new(&stranger.issue(our_role), tenant.check(their_role), to);
        let ended = with(we_are_client, theirs, line, |line, ended| {
            line.talk(TIME, |ours| ours.is_connected() || ended());
            assert!(!line.ours.is_connected(), "we were believed");
        });
        assert!(matches!(&ended, Err(Error::Other(why)) if why.contains("invalid peer certificate")), "{ended:?}");
    }
}

#[test]
fn p14_a_webrtc_dtls_client_without_a_certificate_is_refused() {
    let tenant = Tenant::new();
    let line = |to| Line::new(&tenant.issue(Role::Node), tenant.check(Role::Device), to);
    let _ = with(false, Theirs::impatient(None, &tenant), line, |line, _| {
        assert!(!line.connect());
        assert!(line.ours.ended.is_some(), "a client that shows nothing is waited for");
    });
}
