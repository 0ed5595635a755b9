//! A whole core with files, socket and listener, linked to a relay that keeps what it is told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Client, EMAIL, PASSWORD, tenant};
use hedgerow_management::{CoreConfig, Running, start};
use hedgerow_runtime::admin::control;
use hedgerow_runtime::boot::Context;
use hedgerow_runtime::clock;
use hedgerow_runtime::link::Incoming;
use hedgerow_runtime::link::{self, Admit, Link, Peer};
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::SignedConfig;
use hedgerow_shared::verify::{Licence, RelayConfig, SignedLicence, Standing, TenantCa, VerifiedCertificate};
use hedgerow_shared::wire::core_api::ALPN_HTTP;
use hedgerow_shared::wire::message::{
    ALPN_LINK, Accept, CaRegistration, Claim, Control, Destination, LicenceVerdict, Limits, LinkOpen, Refuse,
    Registrations, Service, ServiceReply, Vouched, address_hash,
};
use hedgerow_shared::wire::names::RefusedName;
use hedgerow_shared::{InstanceId, Origin, Role, SessionId, TenantId};
use http::Method;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

const SRP_KEY: [u8; 32] = [0x5a; 32];
const LOOKUP_KEY: [u8; 32] = [0x11; 32];

/// What the relay was told so far.
#[derive(Clone, Default)]
struct Seen {
    links: usize,
    link: Option<Link>,
    ca: Option<TenantCa>,
    configs: Vec<RelayConfig>,
    registrations: Vec<Registrations>,
    wakes: usize,
    licences: Vec<String>,
}

/// A relay that is older than licences says nothing; others judge by what the licence is called.
fn verdict(request: u32, id: &str) -> Option<LicenceVerdict> {
    let (code, standing) = match id {
        "silent" => return None,
        "refused" => (Code::Forbidden, None),
        _ => (Code::Ok, Some(Standing::Valid { expires_in: 9 })),
    };
    let text = if code == Code::Ok { "" } else { "the licence was not signed by any licence key known here" };
    Some(LicenceVerdict { request, fault: Fault::new(code, text), standing, required: true })
}

struct Relay {
    seen: watch::Sender<Seen>,
    /// Refuses configuration while this is set.
    stubborn: watch::Sender<bool>,
    address: String,
    ca_pem: String,
    scope: Scope,
}

impl Admit for Relay {
    fn srp_key(&self, _: &TenantId) -> Option<Secret> {
        Some(Secret::new(SRP_KEY.to_vec()))
    }
    fn certificate(&self, _: &Claim, _: &CertificateDer<'_>) -> Result<VerifiedCertificate, Fault> {
        Err(Fault::new(Code::Forbidden, "only cores here"))
    }
    fn accept(&self, peer: &Peer) -> Result<Accept, Refuse> {
        assert_eq!((peer.role, &peer.tenant), (Role::Core, &tenant()));
        Ok(Accept {
            session: SessionId::from_random(clock::random()),
            relay: "relay.example".into(),
            lookup_key: Some(LOOKUP_KEY),
            config: None,
            time: clock::now().0,
        })
    }
}

impl Relay {
    async fn start() -> Arc<Self> {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(["relay.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        let der = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = tls::as_relay(vec![certificate.der().clone()], der.into(), &[ALPN_LINK]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Arc::new(Self {
            seen: watch::Sender::new(Seen::default()),
            stubborn: watch::Sender::new(false),
            address: listener.local_addr().unwrap().to_string(),
            ca_pem: certificate.pem(),
            scope: Scope::new(),
        });
        let own = relay.clone();
        relay.scope.spawn(async move {
            loop {
                let (tcp, from) = listener.accept().await.unwrap();
                let Ok(stream) = TlsAcceptor::from(config.clone()).accept(tcp).await else { continue };
                let instance = InstanceId::from_random([1; 16]);
                let (limits, timers) = (Limits::default(), Timers::default());
                let answer =
                    link::answer(stream, from.to_string(), own.as_ref(), limits, instance, &timers, &own.scope).await;
                let Ok((link, _)) = answer else { continue };
                own.scope.spawn(own.clone().serve(link));
            }
        });
        relay
    }

    async fn serve(self: Arc<Self>, link: Link) {
        self.seen.send_modify(|s| {
            s.links += 1;
            s.link = Some(link.clone());
        });
        let (own, mux) = (self.clone(), link.mux.clone());
        self.scope.spawn(async move {
            while let Some(message) = mux.next_control().await {
                match message {
                    Control::Wake(wake) => {
                        assert_eq!(wake.roles, [Role::Node, Role::Device]);
                        own.seen.send_modify(|s| s.wakes += 1);
                    }
                    Control::LicencePresent(shown) => {
                        let id = shown.licence.unverified().unwrap().id;
                        if let Some(verdict) = verdict(shown.request, &id) {
                            mux.send_control(&verdict.into()).unwrap();
                        }
                        own.seen.send_modify(|s| s.licences.push(id));
                    }
                    other => panic!("{other:?}"),
                }
            }
        });
        while let Some(incoming) = link.mux.accept().await {
            self.take(incoming).await;
        }
    }

    async fn take(&self, incoming: Incoming) {
        let LinkOpen::Service { service } = incoming.read_header().unwrap() else { panic!("a service is asked") };
        let mut stream = incoming.accept();
        let mut request = Vec::new();
        while let Some(chunk) = stream.read_chunk().await.unwrap() {
            request.extend_from_slice(&chunk);
        }
        let mut reply = ServiceReply::new(Fault::new(Code::Ok, ""));
        let ca = self.seen.borrow().ca.clone();
        match service {
            Service::RegisterCa => {
                let CaRegistration { certificate } = minicbor::decode(&request).unwrap();
                self.seen.send_modify(|s| s.ca = Some(TenantCa::from_der(&certificate).unwrap()));
            }
            Service::PutConfig if *self.stubborn.borrow() => reply.fault = Fault::new(Code::Internal, "disk full"),
            Service::PutConfig => {
                let signed: SignedConfig = minicbor::decode(&request).unwrap();
                let config: RelayConfig = signed.verify(&ca.expect("the CA comes first"), None, clock::now()).unwrap();
                reply.version = Some(config.head.version);
                self.seen.send_modify(|s| s.configs.push(config));
            }
            Service::PutRegistrations => {
                let registrations: Registrations = minicbor::decode(&request).unwrap();
                let taken = registrations.names.iter().filter(|n| n.name.starts_with("taken."));
                let fault = Fault::new(Code::Forbidden, "another tenant holds this name");
                let refused = taken.map(|n| RefusedName { name: n.name.clone(), fault: fault.clone() });
                reply.refused = Some(refused.collect());
                reply.web = vec!["http://relay.example:8080".into()];
                self.seen.send_modify(|s| s.registrations.push(registrations));
            }
        }
        stream.write_chunk(Bytes::from(minicbor::to_vec(&reply).unwrap())).await.unwrap();
        stream.finish();
    }

    /// Waits until what was seen is so.
    async fn until(&self, what: &str, is_so: impl FnMut(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(20), seen.wait_for(is_so)).await;
        waited.unwrap_or_else(|_| panic!("never: {what}")).unwrap().clone()
    }

    /// A stream to the core, as a client's CONNECT becomes one.
    async fn through(&self, origin: Origin) -> Result<hedgerow_runtime::link::Stream, Fault> {
        let link = self.seen.borrow().link.clone().unwrap();
        let to = Destination { tenant: tenant(), origin, group: None, instance: None, node: None };
        let vouched = Some(Vouched { role: None, id: None, address: "192.0.2.1:5".into() });
        link.mux.open(&LinkOpen::Through { to, vouched, trace: None }).await
    }
}

struct World {
    relay: Arc<Relay>,
    core: Running,
    context: Context,
    _dir: tempfile::TempDir,
}

fn config(dir: &std::path::Path, relay: &Relay, key: [u8; 32]) -> CoreConfig {
    let write = |name: &str, text: &str| -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let srp = write("srp.key", &key.iter().map(|b| format!("{b:02x}")).collect::<String>());
    let ca = write("relay-ca.pem", &relay.ca_pem);
    let text = format!(
        "tenant = \"S12345678\"\nstate = {:?}\nsrp_key_file = {srp:?}\nadmin.listen = \"127.0.0.1:0\"\n\
         [[relays]]\nname = \"relay.example\"\naddresses = [{:?}]\nca_file = {ca:?}\n",
        dir.join("core"),
        relay.address
    );
    hedgerow_runtime::config::parse("core.toml", &text).unwrap()
}

impl World {
    async fn new() -> Self {
        let (dir, relay) = (tempfile::tempdir().unwrap(), Relay::start().await);
        let context = Context::new(Duration::from_secs(5));
        let core = start(config(dir.path(), &relay, SRP_KEY), &context).await.unwrap();
        let world = Self { relay, core, context, _dir: dir };
        world.relay.until("registrations", |s| !s.registrations.is_empty()).await;
        world
    }

    async fn verb(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, String> {
        control::request(&self.core.control, method, path, body.as_ref()).await.map_err(|e| e.to_string())
    }

    async fn activate(&self) -> common::Device {
        let add = json!({ "email": EMAIL, "name": "Anna" });
        self.verb(Method::POST, "/users", Some(add)).await.unwrap();
        let set = json!({ "password": PASSWORD });
        self.verb(Method::PUT, &format!("/users/{EMAIL}/activation"), Some(set)).await.unwrap();
        let stream = self.relay.through(Origin::Core).await.unwrap();
        let config = tls::to_anyone(&[ALPN_HTTP]).unwrap();
        let mut client = Client::over(stream, config, &self.context.scope).await.unwrap();
        client.activate(EMAIL, PASSWORD).await.unwrap()
    }
}

#[tokio::test]
async fn p03_the_relay_learns_ca_configuration_and_open_activations_and_forgets_them() {
    let world = World::new().await;
    let seen = world.relay.seen.borrow().clone();
    assert_eq!(seen.ca.unwrap(), world.core.app.ca);
    assert!(seen.registrations.last().unwrap().open.is_empty() && seen.wakes > 0);
    let device = world.activate().await;
    let hash = address_hash(&LOOKUP_KEY, EMAIL);
    let open =
        |s: &Seen| s.registrations.iter().any(|r| r.open.iter().any(|o| o.hash == hash && o.until > clock::now().0));
    world.relay.until("an open activation", open).await;
    world.relay.until("none open", |s| s.registrations.last().is_some_and(|r| r.open.is_empty())).await;
    assert_eq!(device.reply.relays, std::slice::from_ref(&world.relay.address));
    assert_eq!(device.reply.relay_name.as_deref(), Some("relay.example"));
    assert_eq!(world.context.readiness.failing(), None);
}

#[tokio::test]
async fn p20_a_revocation_reaches_the_relay_and_is_shown_where_it_does_not() {
    let world = World::new().await;
    let device = world.activate().await.reply.device;
    let before = world.relay.seen.borrow().wakes;
    world.relay.stubborn.send_replace(true);
    let answer = world.verb(Method::DELETE, &format!("/devices/{device}?wait=1"), None).await.unwrap();
    assert_eq!(answer["not_yet"], json!(["relay:relay.example"]), "{answer}");
    assert_eq!(answer["device"]["state"], "revoked");
    let status = world.verb(Method::GET, "/status", None).await.unwrap();
    assert_eq!(status["not_yet"], json!(["relay:relay.example"]));
    assert!(status["relays"][0]["error"].as_str().unwrap().contains("disk full"), "{status}");
    world.relay.stubborn.send_replace(false);
    let named = |s: &Seen| s.configs.last().is_some_and(|c| c.revoked.ids.contains(&device)) && s.wakes > before;
    world.relay.until("the revocation and a wake-up", named).await;
    // Revoked already: asked again it only waits for everybody.
    let answer = world.verb(Method::DELETE, &format!("/devices/{device}"), None).await.unwrap();
    assert_eq!(answer["not_yet"], json!([]), "{answer}");
}

#[tokio::test]
async fn p02_names_reach_the_relay_and_a_refusal_reaches_the_administrator() {
    let world = World::new().await;
    let add = |name: &str, origin: &str| json!({ "name": name, "origin": origin });
    let added = world.verb(Method::POST, "/names", Some(add("Mail.Example.COM", "gateway"))).await.unwrap();
    assert_eq!((&added["name"], &added["not_yet"]), (&json!("mail.example.com"), &json!([])), "{added}");
    assert_eq!(added["relays"], json!([{ "relay": "relay.example", "state": "passed", "reason": null }]));
    let registered = world.relay.seen.borrow().registrations.last().unwrap().clone();
    assert_eq!((registered.names[0].name.as_str(), registered.names[0].origin), ("mail.example.com", Origin::Gateway));
    assert!(registered.serves.is_empty(), "this core publishes nothing");
    let added = world.verb(Method::POST, "/names", Some(add("taken.example.com", "core"))).await.unwrap();
    assert_eq!(added["relays"][0]["state"], "refused");
    let status = world.verb(Method::GET, "/status", None).await.unwrap();
    let relay = &status["relays"][0];
    assert_eq!((&relay["names"], &relay["web"][0]), (&json!(1), &json!("http://relay.example:8080")), "{status}");
    let refused = &relay["names_refused"][0];
    assert!(refused["name"] == "taken.example.com" && refused["reason"].as_str().unwrap().contains("another tenant"));
    for bad in [add("mail.example.com", "mdm"), add("192.0.2.1", "mdm"), add("a.example", "bws")] {
        assert!(world.verb(Method::POST, "/names", Some(bad)).await.is_err());
    }
    let removed = world.verb(Method::DELETE, "/names/mail.example.com", None).await.unwrap();
    assert_eq!(removed["not_yet"], json!([]));
    let names =
        |s: &Seen| s.registrations.last().is_some_and(|r| r.names.len() == 1 && r.names[0].name.starts_with("taken"));
    world.relay.until("one name less", names).await;
    // A relay that was away is told again.
    world.relay.seen.borrow().link.clone().unwrap().mux.close(Fault::new(Code::Lost, "a test"));
    world.relay.until("a second link, told the names", |s| s.links == 2 && names(s)).await;
}

#[tokio::test]
async fn p01_a_lost_link_comes_back_and_the_relay_is_told_again() {
    let world = World::new().await;
    let link = world.relay.seen.borrow().link.clone().unwrap();
    world.relay.seen.send_modify(|s| s.registrations.clear());
    link.mux.close(Fault::new(Code::Lost, "a test"));
    world.relay.until("a second link, told everything", |s| s.links == 2 && !s.registrations.is_empty()).await;
    let config = tls::to_anyone(&[ALPN_HTTP]).unwrap();
    let stream = world.relay.through(Origin::Bws).await.unwrap();
    let mut client = Client::over(stream, config, &world.context.scope).await.unwrap();
    assert_eq!(client.get("/S12345678/api/v1/util/ping").await.0.status, 200);
}

#[tokio::test]
async fn streams_for_others_are_refused() {
    let world = World::new().await;
    assert_eq!(world.relay.through(Origin::Proxy).await.unwrap_err().code, Code::NoRoute);
    let link = world.relay.seen.borrow().link.clone().unwrap();
    let to = Destination {
        tenant: "S99999999".parse().unwrap(),
        origin: Origin::Core,
        group: None,
        instance: None,
        node: None,
    };
    let refused = link.mux.open(&LinkOpen::Through { to, vouched: None, trace: None }).await.unwrap_err();
    assert_eq!(refused.code, Code::NoRoute);
}

#[tokio::test]
async fn p01_a_wrong_srp_key_is_named_and_the_core_is_not_ready() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Relay::start().await);
    let context = Context::new(Duration::from_secs(5));
    let core = start(config(dir.path(), &relay, [0; 32]), &context).await.unwrap();
    let failing = async {
        loop {
            match context.readiness.failing() {
                Some(why) if why.contains("SRP authentication key") => return,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), failing).await.unwrap();
    let status = control::request(&core.control, Method::GET, "/status", None).await.unwrap();
    assert!(status["relays"][0]["up"] == false && status["relays"][0]["error"].is_string(), "{status}");
}

#[tokio::test]
async fn every_verb_answers_in_the_documented_form() {
    let world = World::new().await;
    let get = async |path: &str| world.verb(Method::GET, path, None).await.unwrap();
    let shown = get("/tenant").await;
    assert!(shown["id"] == "S12345678" && shown["ca_pem"].as_str().unwrap().starts_with("-----BEGIN CERT"), "{shown}");

    let device = world.activate().await.reply.device.to_string();
    let users = get("/users").await;
    assert!(
        users["next"].is_null() && users["items"][0]["email"] == EMAIL && users["items"][0]["activation"].is_null()
    );
    let again = world.verb(Method::POST, "/users", Some(json!({ "email": EMAIL }))).await.unwrap_err();
    assert!(again.contains("already"), "{again}");
    let set = world.verb(Method::PUT, &format!("/users/{EMAIL}/activation"), None).await.unwrap();
    assert!(set["password"].as_str().unwrap().len() == 14 && set["expires"].is_u64(), "{set}");
    assert_eq!(get(&format!("/users/{EMAIL}/activation")).await["state"], "open");
    world.verb(Method::DELETE, &format!("/users/{EMAIL}/activation"), None).await.unwrap();
    assert!(world.verb(Method::GET, &format!("/users/{EMAIL}/activation"), None).await.is_err());

    let devices = get(&format!("/devices?user={EMAIL}")).await;
    assert!(devices["items"][0]["id"] == device.as_str() && devices["items"][0]["email"] == EMAIL, "{devices}");
    assert_eq!(get(&format!("/devices/{device}")).await["certificates"].as_array().unwrap().len(), 1);

    let token = world.verb(Method::POST, "/tokens", Some(json!({ "name": "node 1" }))).await.unwrap();
    assert!(token["text"].as_str().unwrap().starts_with("hedgerow1.") && token["token"]["state"] == "open", "{token}");
    let id = token["token"]["id"].as_str().unwrap();
    assert_eq!(world.verb(Method::DELETE, &format!("/tokens/{id}"), None).await.unwrap()["state"], "revoked");
    assert_eq!(get("/tokens").await["items"].as_array().unwrap().len(), 1);
    assert_eq!(get("/nodes").await, json!({ "items": [], "next": null }));

    let rule = |target: &str| json!({ "rule": { "action": "allow", "target": target }, "at": 0 });
    world.verb(Method::POST, "/rules", Some(rule("a.example"))).await.unwrap();
    world.verb(Method::POST, "/rules", Some(rule("b.example"))).await.unwrap();
    let moved = world.verb(Method::POST, "/rules/0/move", Some(json!({ "to": 1 }))).await.unwrap();
    let targets: Vec<_> = moved["items"].as_array().unwrap().iter().map(|r| r["target"].as_str().unwrap()).collect();
    assert_eq!(targets, ["a.example", "b.example"]);
    let bad = world.verb(Method::POST, "/rules", Some(rule("a b"))).await.unwrap_err();
    assert!(bad.contains("not valid"), "{bad}");
    assert!(world.verb(Method::DELETE, "/rules/7", None).await.unwrap_err().contains("no position 7"));
    world.verb(Method::PUT, "/rules", Some(json!({ "items": [] }))).await.unwrap();

    let route = json!({ "route": { "target": "*.example", "via": "group:default" } });
    world.verb(Method::POST, "/routes", Some(route)).await.unwrap();
    let routes = world.verb(Method::PUT, "/routes/default", Some(json!({ "via": "deny" }))).await.unwrap();
    assert!(routes["default"] == "deny" && routes["items"][0]["via"] == "group:default", "{routes}");

    let config = get("/config").await;
    assert!(config["device"]["default_route"] == "deny" && config["node"]["rules"] == json!([]), "{config}");
    let audit = get("/audit?limit=2").await;
    assert!(audit["items"][0]["number"] == 1 && audit["next"] == "2", "{audit}");
    let verified = world.verb(Method::POST, "/audit/verify", None).await.unwrap();
    assert!(verified["records"].as_u64().unwrap() > 10);
    assert!(
        world.verb(Method::POST, "/tenant/epoch", None).await.unwrap()["version"].as_str().unwrap().starts_with("1.")
    );

    assert_eq!(world.verb(Method::DELETE, &format!("/users/{EMAIL}"), None).await.unwrap()["active"], false);
    assert_eq!(get(&format!("/devices/{device}")).await["state"], "revoked");
    assert!(world.verb(Method::GET, "/users?nonsense=1", None).await.unwrap_err().contains("nonsense"));
    assert!(world.verb(Method::GET, "/else", None).await.unwrap_err().contains("no such verb"));
}

#[tokio::test]
async fn the_state_is_there_after_a_restart_and_a_drain_ends() {
    let world = World::new().await;
    let device = world.activate().await.reply.device;
    world.context.drain();
    world.core.drain(&world.context).await;
    assert_eq!(world.context.scope.stop(Duration::from_secs(10)).await, 0);
    let World { relay, core, context, _dir: dir } = world;
    let ca = core.app.ca.clone();
    drop((core, context));
    let context = Context::new(Duration::from_secs(5));
    let core = start(config(dir.path(), &relay, SRP_KEY), &context).await.unwrap();
    assert_eq!(core.app.ca, ca);
    let shown = control::request(&core.control, Method::GET, &format!("/devices/{device}"), None).await.unwrap();
    assert_eq!(shown["state"], "active");
    relay.until("the second core's link", |s| s.links >= 2).await;
}

/// The core does not verify it, so anybody's signature does.
fn licence(id: &str) -> Value {
    let now = clock::now();
    let licence = Licence {
        id: id.into(),
        tenant: tenant(),
        licensee: "Example".into(),
        issued: now,
        not_before: now,
        expires: now.plus(10 * 24 * 3600),
        grace_seconds: 0,
        seats: Some(5),
        features: ["proxy".to_owned()].into(),
    };
    let signed = SignedLicence { payload: licence.payload().unwrap(), signature: vec![0; 70] };
    json!({ "licence": signed.to_pem() })
}

#[tokio::test]
async fn p04_an_installed_licence_is_shown_at_once_and_what_each_relay_makes_of_it_is_told() {
    let world = World::new().await;
    let none = world.verb(Method::GET, "/licence", None).await.unwrap_err();
    assert!(none.contains("no licence is installed"), "{none}");
    let bad = json!({ "licence": "-----BEGIN NOTHING-----" });
    assert!(world.verb(Method::PUT, "/licence", Some(bad)).await.unwrap_err().contains("no licence"));

    let answer = world.verb(Method::PUT, "/licence", Some(licence("good"))).await.unwrap();
    assert_eq!((&answer["verified"], &answer["not_yet"]), (&json!(true), &json!([])), "{answer}");
    let relay = &answer["relays"][0];
    let told = (&relay["state"], &relay["standing"], &relay["required"]);
    assert_eq!(told, (&json!("accepted"), &json!("valid"), &json!(true)));

    let answer = world.verb(Method::PUT, "/licence", Some(licence("refused"))).await.unwrap();
    assert_eq!((&answer["verified"], &answer["relays"][0]["state"]), (&json!(false), &json!("refused")));
    assert!(answer["relays"][0]["reason"].as_str().unwrap().contains("not signed by any licence key"), "{answer}");

    let answer = world.verb(Method::PUT, "/licence", Some(licence("silent"))).await.unwrap();
    assert_eq!(
        (&answer["relays"][0]["state"], &answer["not_yet"]),
        (&json!("not_yet"), &json!(["relay:relay.example"]))
    );
    let status = world.verb(Method::GET, "/status", None).await.unwrap();
    assert!(status["licence"]["warning"].as_str().unwrap().contains("ends in 10 days"), "{status}");

    // A new link is shown it again.
    let shown = world.relay.seen.borrow().licences.len();
    let link = world.relay.seen.borrow().link.clone().unwrap();
    link.mux.close(Fault::new(Code::Lost, "the test cuts it"));
    world.relay.until("it is shown again", |s| s.licences.len() > shown).await;
    let removed = world.verb(Method::DELETE, "/licence", None).await.unwrap();
    assert_eq!(removed["id"], "silent");
    assert!(world.verb(Method::GET, "/status", None).await.unwrap()["licence"].is_null());
}
