//! A core without a relay: connections to it are made in memory.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::sync::Arc;

use bytes::Bytes;
use hedgerow_management::app::{App, call};
use hedgerow_management::{bws, services, store};
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls::{self, Own, SigningKey};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::TenantCa;
use hedgerow_shared::wire::core_api::{self, ALPN_HTTP, Activated, EnrolNode, NodeEnrolled};
use hedgerow_shared::{EntityId, Origin, Role, TenantId};
use hedgerow_uem_core::Actor;
use hedgerow_uem_core::account::TenantSettings;
use hedgerow_uem_core::activation::pake::{Confirmation, Context, Initiator, Offer, Sealed};
use hedgerow_uem_core::activation::{EnrolReply, EnrolRequest, PasswordChoice};
use hedgerow_uem_core::ca::Key;
use hedgerow_uem_core::service::{NewTenant, NewToken, NewUser};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

pub const EMAIL: &str = "anna@example.com";
pub const PASSWORD: &str = "open sesame";

pub fn random(bytes: &mut [u8]) {
    rand::fill(bytes);
}

pub fn tenant() -> TenantId {
    "S12345678".parse().unwrap()
}

pub struct World {
    pub app: Arc<App>,
    pub scope: Scope,
    pub user: EntityId,
    _dir: tempfile::TempDir,
}

impl World {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("core");
        let state = store::State::open(&state_dir, &store::Place::in_directory(&state_dir)).await.unwrap();
        let settings =
            TenantSettings { relays: vec!["relay.example:443".into()], relay_name: None, relay_ca_pem: None };
        let new = NewTenant { id: tenant(), name: "Test".into(), settings };
        let app =
            App::open(state, new, &["relay.example".to_owned()], None, published(), Timers::default()).await.unwrap();
        let new = NewUser { email: EMAIL.parse().unwrap(), display_name: "Anna".into() };
        let user = app.domain.add_user(&mut call(Actor::System), &app.tenant, new).await.unwrap().id;
        Self { app, scope: Scope::new(), user, _dir: dir }
    }

    /// Gives Anna the password, made `age` seconds ago and good for `lifetime`.
    pub async fn password(&self, age: u64, lifetime: u64) {
        let mut call = call(Actor::System);
        call.now.0 -= age;
        let choice = PasswordChoice::Set(Secret::from_text(PASSWORD.into()));
        let domain = &self.app.domain;
        domain.set_activation_password(&mut call, &self.app.tenant, self.user, choice, lifetime).await.unwrap();
    }

    /// A token made `age` seconds ago and good for `lifetime`.
    pub async fn token(&self, age: u64, lifetime: u64) -> hedgerow_shared::wire::token::EnrolmentToken {
        let mut call = call(Actor::System);
        call.now.0 -= age;
        let new = NewToken {
            name: "berlin-1".into(),
            group: "berlin".parse().unwrap(),
            origins: vec![Origin::Proxy],
            lifetime_seconds: lifetime,
        };
        self.app.domain.create_token(&mut call, &self.app.tenant, new).await.unwrap().1
    }

    /// The far end of a connection that the core serves as `origin`.
    pub fn dial(&self, origin: Origin) -> tokio::io::DuplexStream {
        let (ours, theirs) = tokio::io::duplex(256 * 1024);
        let app = self.app.clone();
        self.scope.spawn(async move {
            match origin {
                Origin::Bws => bws::serve(&app, theirs, "test").await,
                _ => services::serve_core(&app, theirs, "test").await,
            }
        });
        ours
    }

    pub async fn connect(&self, config: Arc<ClientConfig>) -> std::io::Result<Client> {
        Client::over(self.dial(Origin::Core), config, &self.scope).await
    }

    pub async fn stranger(&self) -> Client {
        self.connect(tls::to_anyone(&[ALPN_HTTP]).unwrap()).await.unwrap()
    }

    pub async fn as_holder(&self, own: &Own) -> std::io::Result<Client> {
        self.connect(tls::to_tenant(self.app.ca.clone(), Role::Core, None, Some(own), &[ALPN_HTTP]).unwrap()).await
    }

    /// A whole activation with this password; the status of the first refusal and the step it came at.
    pub async fn activate(&self, password: &str) -> Result<Device, (&'static str, StatusCode)> {
        self.stranger().await.activate(EMAIL, password).await
    }

    pub async fn enrol(
        &self,
        token: &hedgerow_shared::wire::token::EnrolmentToken,
    ) -> Result<Node, (StatusCode, String)> {
        let key = Key::generate(&mut random).unwrap();
        let request = EnrolNode {
            token: token.id,
            secret: token.secret.to_vec(),
            csr: key.certificate_request().unwrap(),
            name: None,
        };
        let config = tls::to_pinned_tenant(token.tenant_ca_pin, &[ALPN_HTTP]).unwrap();
        let mut client = self.connect(config).await.unwrap();
        let (status, body) = client.post(core_api::ENROL_NODE, &request).await;
        if status != StatusCode::OK {
            let refused: core_api::Refused = serde_json::from_slice(&body).unwrap();
            return Err((status, refused.error));
        }
        let reply: NodeEnrolled = serde_json::from_slice(&body).unwrap();
        let own = own(&key, &reply.certificate, &reply.ca);
        Ok(Node { own, reply })
    }
}

/// Nothing.
fn published() -> hedgerow_proxy::publish::Published {
    let dialer = hedgerow_proxy::dial::Dialer::new(std::collections::HashMap::new(), std::time::Duration::from_secs(5));
    hedgerow_proxy::publish::Published::new(std::collections::BTreeMap::new(), dialer, 1)
}

pub struct Device {
    pub own: Own,
    pub reply: EnrolReply,
    pub config: hedgerow_shared::verify::SignedConfig,
}

pub struct Node {
    pub own: Own,
    pub reply: NodeEnrolled,
}

fn own(key: &Key, certificate: &[u8], ca: &[u8]) -> Own {
    TenantCa::from_der(ca).unwrap();
    Own { chain: vec![certificate.to_vec().into()], key: SigningKey::from_pkcs8(&key.to_pkcs8()).unwrap() }
}

pub struct Client {
    pub sender: SendRequest<Full<Bytes>>,
    pub exporter: [u8; 32],
}

impl Client {
    pub async fn over<IO>(io: IO, config: Arc<ClientConfig>, scope: &Scope) -> std::io::Result<Self>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let stream = TlsConnector::from(config).connect(tls::any_name(), io).await?;
        let exporter = tls::exporter(stream.get_ref().1).unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        scope.spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { sender, exporter })
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> (http::response::Parts, Bytes) {
        self.sender.ready().await.unwrap();
        let (head, body) = self.sender.send_request(request).await.unwrap().into_parts();
        (head, body.collect().await.unwrap().to_bytes())
    }

    pub async fn post(&mut self, path: &str, body: &impl serde::Serialize) -> (StatusCode, Bytes) {
        let body = Full::new(Bytes::from(serde_json::to_vec(body).unwrap()));
        let request = Request::builder().method(Method::POST).uri(path).header("host", "core").body(body).unwrap();
        let (head, body) = self.send(request).await;
        (head.status, body)
    }

    pub async fn get(&mut self, path: &str) -> (http::response::Parts, Bytes) {
        let request = Request::builder().uri(path).header("host", "core").body(Full::new(Bytes::new())).unwrap();
        self.send(request).await
    }

    pub async fn activate(&mut self, email: &str, password: &str) -> Result<Device, (&'static str, StatusCode)> {
        let context = Context { user: email.parse().unwrap(), tenant: tenant(), exporter: self.exporter };
        let (initiator, start) = Initiator::start(context, &Secret::from_text(password.into())).unwrap();
        let offer: Offer = ok("start", self.post(core_api::ACTIVATE_START, &start).await)?;
        let (waiting, proof) = initiator.respond(&offer, &mut random).unwrap();
        let confirmation: Confirmation = ok("confirm", self.post(core_api::ACTIVATE_CONFIRM, &proof).await)?;
        let mut channel = waiting.confirm(&confirmation).unwrap();
        let key = Key::generate(&mut random).unwrap();
        let enrol =
            EnrolRequest { csr: key.certificate_request().unwrap(), name: "laptop".into(), platform: "Linux".into() };
        let sealed = channel.seal(&serde_json::to_vec(&enrol).unwrap(), &mut random).unwrap();
        let done: Activated<Sealed> = ok("finish", self.post(core_api::ACTIVATE_FINISH, &sealed).await)?;
        let reply: EnrolReply = serde_json::from_slice(&channel.open(&done.sealed).unwrap()).unwrap();
        let own = own(&key, &reply.certificate, &reply.ca);
        Ok(Device { own, reply, config: done.config })
    }
}

fn ok<T: serde::de::DeserializeOwned>(
    step: &'static str,
    (status, body): (StatusCode, Bytes),
) -> Result<T, (&'static str, StatusCode)> {
    if status == StatusCode::OK { Ok(serde_json::from_slice(&body).unwrap()) } else { Err((step, status)) }
}
