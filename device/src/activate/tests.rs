//! The device's half against the domain's own half, over TLS in memory, honest and not.

use std::convert::Infallible;
use std::sync::Arc;

use hedgerow_runtime::tls::Own;
use hedgerow_shared::UnixTime;
use hedgerow_shared::wire::core_api::{ACTIVATE_CONFIRM, ACTIVATE_FINISH, ACTIVATE_START, Refused};
use hedgerow_uem_core::account::TenantSettings;
use hedgerow_uem_core::activation::pake::{Proof, Start};
use hedgerow_uem_core::activation::{Confirmed, PasswordChoice, Started};
use hedgerow_uem_core::seal::Kek;
use hedgerow_uem_core::service::{NewTenant, NewUser};
use hedgerow_uem_core::store::Memory;
use hedgerow_uem_core::{Actor, Call, Core};
use hyper::body::Incoming;
use hyper::service::service_fn;
use parking_lot::Mutex;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::state::DeviceState;

const EMAIL: &str = "anna@example.com";

fn random(bytes: &mut [u8]) {
    rand::rngs::OsRng.unwrap_err().fill_bytes(bytes);
}

fn call() -> Call<'static> {
    Call::new(Actor::System, clock::now(), Box::leak(Box::new(random)))
}

struct World {
    core: Core<Memory>,
    tenant: TenantId,
    own: Own,
}

impl World {
    async fn new() -> Arc<Self> {
        let tenant: TenantId = "S12345678".parse().unwrap();
        let core = Core::new(Memory::new(), Kek::new(&[7; 32]));
        let settings =
            TenantSettings { relays: vec!["relay.example:443".into()], relay_name: None, relay_ca_pem: None };
        core.create_tenant(&mut call(), NewTenant { id: tenant.clone(), name: "Test".into(), settings }).await.unwrap();
        let new = NewUser { email: EMAIL.parse().unwrap(), display_name: "Anna".into() };
        let user = core.add_user(&mut call(), &tenant, new).await.unwrap();
        let choice = PasswordChoice::Set(Secret::from_text("open sesame".into()));
        core.set_activation_password(&mut call(), &tenant, user.id, choice, 600).await.unwrap();
        let identity = core.core_identity(&mut call(), &tenant).await.unwrap();
        let key = SigningKey::from_pkcs8(&identity.key).unwrap();
        let own = Own { chain: vec![identity.certificate.into(), identity.ca.into()], key };
        Arc::new(Self { core, tenant, own })
    }

    /// Answers one connection as the core does; `exporter` stands in for the real one.
    async fn serve<IO>(self: Arc<Self>, io: IO, exporter: Option<[u8; 32]>)
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let config = tls::as_relay(self.own.chain.clone(), self.own.key.to_rustls(), &[ALPN_HTTP]).unwrap();
        let Ok(stream) = TlsAcceptor::from(config).accept(io).await else { return };
        let exporter = exporter.unwrap_or(tls::exporter(stream.get_ref().1).unwrap());
        let stage: Mutex<(Option<Started>, Option<Confirmed>)> = Mutex::default();
        let (world, stage) = (&self, &stage);
        let service = service_fn(move |request: Request<Incoming>| async move {
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let answer = world.answer(&path, &body, exporter, stage).await;
            let (status, body) = match answer {
                Ok(body) => (StatusCode::OK, body),
                Err(error) => (StatusCode::UNAUTHORIZED, serde_json::to_vec(&Refused { error }).unwrap()),
            };
            Ok::<_, Infallible>(http::Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap())
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(
        &self,
        path: &str,
        body: &[u8],
        exporter: [u8; 32],
        stage: &Mutex<(Option<Started>, Option<Confirmed>)>,
    ) -> Result<Vec<u8>, String> {
        let text = |e: hedgerow_uem_core::activation::ActivationError| e.to_string();
        match path {
            ACTIVATE_START => {
                let start: Start = serde_json::from_slice(body).unwrap();
                let begun = self.core.begin_activation(&mut call(), &self.tenant, &start, exporter).await;
                let (started, offer) = begun.map_err(text)?;
                stage.lock().0 = Some(started);
                Ok(serde_json::to_vec(&offer).unwrap())
            }
            ACTIVATE_CONFIRM => {
                let proof: Proof = serde_json::from_slice(body).unwrap();
                let started = stage.lock().0.take().unwrap();
                let confirmed = self.core.confirm_activation(&mut call(), started, &proof).await;
                let (confirmed, confirmation) = confirmed.map_err(text)?;
                stage.lock().1 = Some(confirmed);
                Ok(serde_json::to_vec(&confirmation).unwrap())
            }
            ACTIVATE_FINISH => {
                let sealed: Sealed = serde_json::from_slice(body).unwrap();
                let confirmed = stage.lock().1.take().unwrap();
                let finished = self.core.finish_activation(&mut call(), confirmed, &sealed).await;
                let (sealed, _) = finished.map_err(text)?;
                let config = self.core.configs(&self.tenant).await.unwrap().device;
                Ok(serde_json::to_vec(&core_api::Activated { sealed, config }).unwrap())
            }
            other => Err(format!("no {other}")),
        }
    }
}

fn request(folder: &Path, password: &str) -> ActivateRequest {
    ActivateRequest {
        relay: RelayTarget::new(vec![], "relay.example", hedgerow_runtime::tls::RelayRoots::System),
        tenant: Some("S12345678".parse().unwrap()),
        email: EMAIL.into(),
        password: Secret::from_text(password.into()),
        name: "laptop".into(),
        platform: "Linux".into(),
        state: folder.to_owned(),
    }
}

async fn run(world: &Arc<World>, request: ActivateRequest, exporter: Option<[u8; 32]>) -> Result<Activated, Fault> {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let scope = Scope::new();
    scope.spawn(world.clone().serve(theirs, exporter));
    let email = EMAIL.parse().unwrap();
    enrol(request, world.tenant.clone(), email, ours, &Timers::default(), &scope).await
}

#[tokio::test]
async fn the_right_password_leaves_an_activated_device_on_disk() {
    let world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("device");
    let done = run(&world, request(&folder, "open sesame"), None).await.unwrap();
    assert_eq!((done.email.as_str(), done.relay.name.as_str()), (EMAIL, "relay.example"));
    let state = DeviceState::load(&folder).unwrap();
    assert_eq!(state.identity().id, done.device);
    let config: DeviceConfig = state.read_config().unwrap().unwrap().verify(&state.ca, None, clock::now()).unwrap();
    assert_eq!(config, done.config);
    assert!(config.head.expires > UnixTime(0));
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(folder.join(state::KEY)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    // The folder is taken now, whatever the password.
    let again = activate(request(&folder, "open sesame"), &Timers::default(), &Scope::new()).await.unwrap_err();
    assert_eq!(again.code, Code::Forbidden);
}

#[tokio::test]
async fn a_wrong_password_leaves_no_certificate_and_may_be_tried_again() {
    let world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    let fault = run(&world, request(folder.path(), "open sesamf"), None).await.unwrap_err();
    assert_eq!(fault.code, Code::Unauthenticated, "{fault}");
    assert!(!folder.path().join(state::CERTIFICATE).exists() && !folder.path().join(state::TENANT_CA).exists());
    run(&world, request(folder.path(), "open sesame"), None).await.unwrap();
}

#[tokio::test]
async fn somebody_in_between_with_tls_of_their_own_gets_nothing_believed() {
    let world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    // The core sees the exporter of its own leg, the device that of the other.
    let fault = run(&world, request(folder.path(), "open sesame"), Some([9; 32])).await.unwrap_err();
    assert_eq!(fault.code, Code::Unauthenticated, "{fault}");
    assert!(!folder.path().join(state::CERTIFICATE).exists());
}

/// A relay that knows Anna's domain and leads CONNECT to the core.
async fn relay(world: &Arc<World>, scope: &Scope) -> RelayTarget {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["relay.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = tls::as_relay(vec![certificate.der().clone()], private.into(), &[ALPN_HTTP]).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = vec![listener.local_addr().unwrap().to_string()];
    let (world, tasks) = (world.clone(), scope.clone());
    scope.spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(stream) = TlsAcceptor::from(config.clone()).accept(tcp).await else { continue };
            let (world, inner) = (world.clone(), tasks.clone());
            let service = service_fn(move |mut request: Request<Incoming>| {
                let (world, inner) = (world.clone(), inner.clone());
                async move {
                    let answer = |status: StatusCode, body: String| {
                        Ok::<_, Infallible>(
                            http::Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap(),
                        )
                    };
                    if request.method() == Method::CONNECT {
                        assert_eq!(request.headers()["origin-server-id"], "core");
                        assert_eq!(request.headers()["tenant-id"], "S12345678");
                        let upgrade = hyper::upgrade::on(&mut request);
                        inner.spawn(async move { world.serve(TokioIo::new(upgrade.await.unwrap()), None).await });
                        return answer(StatusCode::OK, String::new());
                    }
                    assert_eq!((request.method(), request.uri().path()), (&Method::POST, "/lookup"));
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    match String::from_utf8_lossy(&body).contains("@example.com") {
                        true => answer(StatusCode::OK, r#"{"tenant": "S12345678", "origin": "core"}"#.into()),
                        false => answer(StatusCode::NOT_FOUND, "nobody here is responsible for this address\n".into()),
                    }
                }
            });
            tasks.spawn(async move {
                let builder = hyper::server::conn::http1::Builder::new();
                let _ = builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
            });
        }
    });
    let roots = hedgerow_runtime::tls::RelayRoots::Ca(vec![certificate.der().clone()]);
    RelayTarget::new(addresses, "relay.example", roots)
}

#[tokio::test]
async fn p03_an_address_and_a_password_are_enough_to_find_the_core_through_the_relay() {
    let world = World::new().await;
    let scope = Scope::new();
    let relay = relay(&world, &scope).await;
    let folder = tempfile::tempdir().unwrap();
    let ask = ActivateRequest { relay, tenant: None, ..request(folder.path(), "open sesame") };
    let done = activate(ask.clone(), &Timers::default(), &scope).await.unwrap();
    assert_eq!(done.tenant.as_str(), "S12345678");
    assert_eq!(DeviceState::load(folder.path()).unwrap().identity().id, done.device);

    let other = tempfile::tempdir().unwrap();
    let ask = ActivateRequest { email: "anna@elsewhere.example".into(), state: other.path().to_owned(), ..ask };
    let fault = activate(ask, &Timers::default(), &scope).await.unwrap_err();
    assert!(fault.code == Code::NoRoute && fault.text.contains("responsible"), "{fault}");
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0, "no key is made for nothing");
}
