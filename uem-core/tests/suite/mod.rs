//! The domain over a store: every case runs over memory here and over SQLite in `management`.
//!
//! `suite!(with_store)` makes one test of each case; `with_store` makes a fresh, empty store and runs the case's
//! future to its end.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "cases are named by the macro")]

use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::config::{Document, LIFETIME_SECONDS};
use hedgerow_shared::verify::{
    DeviceConfig, NodeConfig, RelayConfig, Route, Rule, TenantCa, Usage, VerifiedCertificate, Version, Via,
};
use hedgerow_shared::wire::token::EnrolmentToken;
use hedgerow_shared::{EntityId, Origin, Role, TenantId, UnixTime};
use hedgerow_uem_core::account::{Device, DeviceState, Node, NodeState, TenantSettings, User};
use hedgerow_uem_core::activation::pake::{Context, Initiator, Sealed};
use hedgerow_uem_core::activation::{
    ActivationError, Confirmed, DEFAULT_LIFETIME_SECONDS, EnrolReply, EnrolRequest, MAX_WRONG, PasswordChoice,
    PasswordState, Refusal,
};
use hedgerow_uem_core::ca::Key;
use hedgerow_uem_core::seal::Kek;
use hedgerow_uem_core::service::{
    EnrolError, Holder, NewTenant, NewToken, NewUser, NodeEnrolReply, NodeEnrolRequest, TokenRefusal,
};
use hedgerow_uem_core::store::{Change, Commit, Page, Store, StoreError};
use hedgerow_uem_core::{Actor, Call, Core, CoreError, Random};
use rustls_pki_types::CertificateDer;

macro_rules! suite {
    ($with:ident) => {
        suite! { @ $with
            a_new_tenant_has_a_ca_and_a_configuration_that_denies_all
            a_tenant_is_made_once
            settings_that_peers_could_not_use_are_refused
            p18_users_have_unique_addresses_whatever_their_case
            lists_come_in_pages
            p20_a_device_activates_with_its_password_once
            p20_the_sixth_attempt_is_refused_even_with_the_right_password
            p20_a_session_begun_before_the_block_is_refused_as_well
            p20_parallel_wrong_attempts_are_all_counted
            p20_an_expired_password_is_refused_and_removed
            p20_unknown_users_are_answered_like_wrong_passwords
            p20_of_parallel_activations_with_one_password_one_succeeds
            p20_a_relay_in_between_is_refused_and_counted
            p20_a_slow_activation_is_refused
            p20_a_replaced_password_ends_the_sessions_of_the_old_one
            p20_enrolment_tokens_make_one_node_each
            expired_withdrawn_and_unknown_tokens_are_refused
            p20_a_revoked_device_is_in_the_next_configuration_and_not_admitted
            p20_a_revoked_node_is_in_the_next_configuration_and_not_admitted
            devices_of_an_inactive_user_do_not_count_while_it_lasts
            revoked_holders_leave_the_list_when_their_certificates_have_expired
            certificates_are_renewed_for_the_same_identity
            rules_and_routes_keep_their_order_and_reach_their_audience
            p02_server_names_are_kept_in_one_spelling_and_audited
            one_version_has_one_content
            configuration_is_issued_again_every_hour_and_when_the_clock_went_back
            the_configuration_keys_certificate_is_renewed_in_time
            raising_the_epoch_outranks_every_version
            the_core_gets_a_certificate_that_devices_accept
            every_change_is_audited_in_one_chain
            a_commit_on_an_old_revision_changes_nothing
            another_key_file_is_noticed
            acknowledgements_and_last_seen_are_kept
            tenants_do_not_see_each_other
        }
    };
    (@ $with:ident $($case:ident)*) => {
        $( #[test] fn $case() { $with(|store| suite::$case(store)); } )*
    };
}

const NOW: UnixTime = UnixTime(1_800_000_000);
const EXPORTER: [u8; 32] = [5; 32];

struct Seeded(u64);

impl Random for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (self.0 >> 33) as u8;
        }
    }
}

/// A core with one tenant, and a clock that cases set.
struct World<S> {
    core: Core<S>,
    tenant: TenantId,
    now: UnixTime,
    random: Seeded,
}

macro_rules! call {
    ($world:ident) => {
        &mut Call::new(Actor::Admin("root".into()), $world.now, &mut $world.random)
    };
}

fn settings() -> TenantSettings {
    TenantSettings {
        relays: vec!["relay.example:3101".into(), "[::1]:443".into()],
        relay_name: None,
        relay_ca_pem: None,
    }
}

impl<S: Store> World<S> {
    async fn new(store: S) -> Self {
        let core = Core::new(store, Kek::new(&[1; 32]));
        let tenant: TenantId = "S12345678".parse().unwrap();
        let mut world = Self { core, tenant, now: NOW, random: Seeded(1) };
        world.make_tenant("S12345678").await.unwrap();
        world
    }

    async fn make_tenant(&mut self, id: &str) -> Result<(), CoreError> {
        let new = NewTenant { id: id.parse().unwrap(), name: "Example".into(), settings: settings() };
        self.core.create_tenant(call!(self), new).await.map(drop)
    }

    async fn user(&mut self, email: &str) -> User {
        let new = NewUser { email: email.parse().unwrap(), display_name: "Anna Smith".into() };
        self.core.add_user(call!(self), &self.tenant, new).await.unwrap()
    }

    async fn password(&mut self, user: &User, password: &str) {
        let choice = PasswordChoice::Set(Secret::new(password.as_bytes().to_vec()));
        self.core
            .set_activation_password(call!(self), &self.tenant, user.id, choice, DEFAULT_LIFETIME_SECONDS)
            .await
            .unwrap();
    }

    /// Up to confirmation; the device's half of the channel comes back sealed with a request.
    async fn confirm(
        &mut self,
        email: &str,
        password: &str,
        exporters: [[u8; 32]; 2],
    ) -> Result<(Confirmed, Sealed, DeviceHalf), ActivationError> {
        let context = Context { user: email.parse().unwrap(), tenant: self.tenant.clone(), exporter: exporters[0] };
        let (initiator, start) = Initiator::start(context, &Secret::new(password.as_bytes().to_vec())).unwrap();
        let (started, offer) = self.core.begin_activation(call!(self), &self.tenant, &start, exporters[1]).await?;
        let (waiting, proof) = initiator.respond(&offer, &mut self.random).unwrap();
        let (confirmed, confirmation) = self.core.confirm_activation(call!(self), started, &proof).await?;
        let mut channel = waiting.confirm(&confirmation).unwrap();
        let key = Key::generate(&mut self.random).unwrap();
        let request = EnrolRequest {
            csr: key.certificate_request().unwrap(),
            name: "anna's\u{1b} laptop".into(),
            platform: "Linux".into(),
        };
        let sealed = channel.seal(&serde_json::to_vec(&request).unwrap(), &mut self.random).unwrap();
        Ok((confirmed, sealed, DeviceHalf { channel }))
    }

    async fn activate(&mut self, email: &str, password: &str) -> Result<(EnrolReply, Device), ActivationError> {
        let (confirmed, sealed, mut half) = self.confirm(email, password, [EXPORTER; 2]).await?;
        let (reply, device) = self.core.finish_activation(call!(self), confirmed, &sealed).await?;
        Ok((half.open(&reply), device))
    }

    async fn refusal(&mut self, email: &str, password: &str) -> Refusal {
        refusal(self.activate(email, password).await)
    }

    async fn state(&self, user: &User) -> Option<(PasswordState, u8)> {
        let state = self.core.activation_state(&self.tenant, user.id, self.now).await.unwrap();
        state.map(|(state, _, wrong)| (state, wrong))
    }

    async fn ca(&self) -> TenantCa {
        self.core.tenant_ca(&self.tenant).await.unwrap()
    }

    async fn configs(&self) -> (RelayConfig, NodeConfig, DeviceConfig) {
        let configs = self.core.configs(&self.tenant).await.unwrap();
        let ca = self.ca().await;
        let relay: RelayConfig = configs.relay.verify(&ca, None, self.now).unwrap();
        assert_eq!(relay.head().version, configs.version);
        (relay, configs.node.verify(&ca, None, self.now).unwrap(), configs.device.verify(&ca, None, self.now).unwrap())
    }

    async fn token(&mut self, lifetime_seconds: u64) -> EnrolmentToken {
        let group = "berlin".parse().unwrap();
        let new = NewToken { name: "node one".into(), group, origins: vec![Origin::Proxy], lifetime_seconds };
        self.core.create_token(call!(self), &self.tenant, new).await.unwrap().1
    }

    async fn enrol(&mut self, token: &EnrolmentToken) -> Result<(NodeEnrolReply, Node), EnrolError> {
        let csr = Key::generate(&mut self.random).unwrap().certificate_request().unwrap();
        let request = NodeEnrolRequest { token: token.id, secret: token.secret, csr, name: None };
        let request = serde_json::from_str(&serde_json::to_string(&request).unwrap()).unwrap();
        self.core.enrol_node(call!(self), &self.tenant, &request).await
    }

    async fn verified(&self, certificate: &[u8], role: Role) -> VerifiedCertificate {
        self.ca().await.verify(&CertificateDer::from(certificate), role, Usage::Client, self.now).unwrap()
    }
}

struct DeviceHalf {
    channel: hedgerow_uem_core::activation::pake::Channel,
}

impl DeviceHalf {
    fn open(&mut self, sealed: &Sealed) -> EnrolReply {
        serde_json::from_slice(&self.channel.open(sealed).unwrap()).unwrap()
    }
}

fn refusal<T>(result: Result<T, ActivationError>) -> Refusal {
    match result {
        Err(ActivationError::Refused(refusal)) => refusal,
        Err(ActivationError::Core(error)) => panic!("the core failed: {error:?}"),
        Ok(_) => panic!("it was not refused"),
    }
}

fn token_refusal<T>(result: Result<T, EnrolError>) -> TokenRefusal {
    match result {
        Err(EnrolError::Refused(refusal)) => refusal,
        Err(EnrolError::Core(error)) => panic!("the core failed: {error:?}"),
        Ok(_) => panic!("it was not refused"),
    }
}

pub(crate) async fn a_new_tenant_has_a_ca_and_a_configuration_that_denies_all<S: Store>(store: S) {
    let w = World::new(store).await;
    assert_eq!(w.ca().await.tenant(), &w.tenant);
    let (relay, node, device) = w.configs().await;
    assert!(relay.revoked.ids.is_empty() && node.rules.is_empty() && device.routes.is_empty());
    assert_eq!(relay.head.version, Version { epoch: 0, version: 1 });
    assert_eq!(relay.head.expires, NOW.plus(LIFETIME_SECONDS));
    assert_eq!(w.core.tenants().await.unwrap(), vec![w.tenant.clone()]);
    assert_eq!(w.core.tenant(&w.tenant).await.unwrap().settings, settings());
}

pub(crate) async fn a_tenant_is_made_once<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let ca = w.ca().await.pin();
    assert!(matches!(w.make_tenant("s12345678").await, Err(CoreError::Exists { .. })));
    assert_eq!(w.ca().await.pin(), ca);
}

pub(crate) async fn settings_that_peers_could_not_use_are_refused<S: Store>(store: S) {
    let mut w = World::new(store).await;
    for relay in ["", "relay", "relay:0", "relay:70000", ":443", "::1:443", "re lay:443", "[relay]:443"] {
        let bad = TenantSettings { relays: vec![relay.into()], ..settings() };
        assert!(
            matches!(w.core.set_settings(call!(w), &w.tenant, bad).await, Err(CoreError::Invalid { .. })),
            "{relay:?}"
        );
    }
    let bad = TenantSettings { relay_ca_pem: Some("no certificate".into()), ..settings() };
    assert!(w.core.set_settings(call!(w), &w.tenant, bad).await.is_err());
    let good = TenantSettings {
        relays: vec!["127.0.0.1:3101".into()],
        relay_name: Some("relay.test".into()),
        relay_ca_pem: None,
    };
    w.core.set_settings(call!(w), &w.tenant, good.clone()).await.unwrap();
    assert_eq!(w.core.tenant(&w.tenant).await.unwrap().settings, good);
}

pub(crate) async fn p18_users_have_unique_addresses_whatever_their_case<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("Anna@Example.com").await;
    let again = NewUser { email: "anna@EXAMPLE.com".parse().unwrap(), display_name: "Other".into() };
    assert!(matches!(w.core.add_user(call!(w), &w.tenant, again).await, Err(CoreError::Exists { .. })));
    assert_eq!(w.core.user_by_email(&w.tenant, &"ANNA@example.com".parse().unwrap()).await.unwrap(), anna);
    assert_eq!(w.core.user(&w.tenant, anna.id).await.unwrap(), anna);
    let nobody = "nobody@example.com".parse().unwrap();
    assert!(matches!(w.core.user_by_email(&w.tenant, &nobody).await, Err(CoreError::NotFound { .. })));
    for name in ["", "   ", "a\nb", &"x".repeat(101)] {
        let bad = NewUser { email: "b@example.com".parse().unwrap(), display_name: name.into() };
        assert!(w.core.add_user(call!(w), &w.tenant, bad).await.is_err(), "{name:?}");
    }
}

pub(crate) async fn lists_come_in_pages<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let mut ids = Vec::new();
    for i in 0..7 {
        ids.push(w.user(&format!("user{i}@example.com")).await.id);
    }
    ids.sort();
    let mut seen = Vec::new();
    let mut page = Page { after: None, limit: 3 };
    loop {
        let users = w.core.users(&w.tenant, page).await.unwrap();
        let Some(last) = users.last() else { break };
        assert!(users.len() <= 3);
        page.after = Some(last.id);
        seen.extend(users.iter().map(|u| u.id));
    }
    assert_eq!(seen, ids);
}

pub(crate) async fn p20_a_device_activates_with_its_password_once<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    let choice = PasswordChoice::Generate;
    let shown = w.core.set_activation_password(call!(w), &w.tenant, anna.id, choice, 600).await.unwrap();
    let open = w.core.open_addresses(&w.tenant, w.now).await.unwrap();
    assert_eq!((open[0].email.as_str(), open[0].expires), ("anna@example.com", NOW.plus(600)));
    let password = shown.password.expose_text().unwrap().to_owned();

    let (reply, device) = w.activate("Anna@example.com", &password).await.unwrap();
    assert_eq!(reply.ca, w.ca().await.der().as_ref());
    assert_eq!(reply.relays, settings().relays);
    let verified = w.verified(&reply.certificate, Role::Device).await;
    assert_eq!((verified.identity.id, device.id, device.user), (reply.device, reply.device, anna.id));
    assert_eq!(device.certificate.fingerprint, verified.fingerprint);
    assert_eq!(device.name, "anna's laptop", "control characters are dropped");
    assert_eq!(w.core.devices(&w.tenant, Some(anna.id), Page::first()).await.unwrap(), vec![device.clone()]);
    assert_eq!(w.core.certificates(&w.tenant, device.id).await.unwrap(), vec![device.certificate.clone()]);
    assert!(matches!(w.core.admit(&verified, w.now).await.unwrap(), Holder::Device(d) if d.id == device.id));

    assert_eq!(w.refusal("anna@example.com", &password).await, Refusal::NoPassword);
    assert_eq!(w.state(&anna).await, None);
    assert!(w.core.open_addresses(&w.tenant, w.now).await.unwrap().is_empty());
}

pub(crate) async fn p20_the_sixth_attempt_is_refused_even_with_the_right_password<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    for attempt in 1..=MAX_WRONG {
        assert_eq!(w.refusal("anna@example.com", "wrong guess").await, Refusal::WrongPassword);
        let expected = if attempt == MAX_WRONG { PasswordState::Blocked } else { PasswordState::Open };
        assert_eq!(w.state(&anna).await, Some((expected, attempt)));
    }
    assert_eq!(w.refusal("anna@example.com", "open sesame").await, Refusal::Blocked);
    // The password itself is gone from the store.
    assert!(w.core.store().password(&w.tenant, anna.id).await.unwrap().unwrap().sealed.is_none());
    assert!(w.core.open_addresses(&w.tenant, w.now).await.unwrap().is_empty());
    // A new one opens the door again.
    w.password(&anna, "open sesame").await;
    w.activate("anna@example.com", "open sesame").await.unwrap();
}

pub(crate) async fn p20_a_session_begun_before_the_block_is_refused_as_well<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    let context = Context { user: anna.email.clone(), tenant: w.tenant.clone(), exporter: EXPORTER };
    let (initiator, start) = Initiator::start(context, &Secret::new(b"open sesame".to_vec())).unwrap();
    let (started, offer) = w.core.begin_activation(call!(w), &w.tenant, &start, EXPORTER).await.unwrap();
    let (early, sealed, _half) = w.confirm("anna@example.com", "open sesame", [EXPORTER; 2]).await.unwrap();
    for _ in 0..MAX_WRONG {
        w.refusal("anna@example.com", "wrong guess").await;
    }
    let (_, proof) = initiator.respond(&offer, &mut w.random).unwrap();
    assert_eq!(refusal(w.core.confirm_activation(call!(w), started, &proof).await), Refusal::Blocked);
    assert_eq!(refusal(w.core.finish_activation(call!(w), early, &sealed).await), Refusal::Blocked);
    assert!(w.core.devices(&w.tenant, None, Page::first()).await.unwrap().is_empty());
}

pub(crate) async fn p20_parallel_wrong_attempts_are_all_counted<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    let mut begun = Vec::new();
    for _ in 0..10 {
        let context = Context { user: anna.email.clone(), tenant: w.tenant.clone(), exporter: EXPORTER };
        let (initiator, start) = Initiator::start(context, &Secret::new(b"wrong guess".to_vec())).unwrap();
        let (started, offer) = w.core.begin_activation(call!(w), &w.tenant, &start, EXPORTER).await.unwrap();
        begun.push((started, initiator.respond(&offer, &mut w.random).unwrap().1));
    }
    let mut refusals = Vec::new();
    for (started, proof) in begun {
        refusals.push(refusal(w.core.confirm_activation(call!(w), started, &proof).await));
    }
    assert_eq!(refusals[..5], [Refusal::WrongPassword; 5]);
    assert_eq!(refusals[5..], [Refusal::Blocked; 5]);
    assert_eq!(w.state(&anna).await, Some((PasswordState::Blocked, MAX_WRONG)));
}

pub(crate) async fn p20_an_expired_password_is_refused_and_removed<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    w.now = NOW.plus(DEFAULT_LIFETIME_SECONDS);
    assert_eq!(w.refusal("anna@example.com", "open sesame").await, Refusal::Expired);
    assert!(w.core.open_addresses(&w.tenant, w.now).await.unwrap().is_empty());
    w.core.reissue_if_due(call!(w), &w.tenant).await.unwrap();
    assert_eq!(w.state(&anna).await, None);
    for lifetime in [0, 91 * 24 * 3600] {
        let result =
            w.core.set_activation_password(call!(w), &w.tenant, anna.id, PasswordChoice::Generate, lifetime).await;
        assert!(matches!(result, Err(CoreError::Invalid { .. })));
    }
}

pub(crate) async fn p20_unknown_users_are_answered_like_wrong_passwords<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    let bert = w.user("bert@example.com").await;
    let mut offers = Vec::new();
    let mut texts = Vec::new();
    for email in ["anna@example.com", "bert@example.com", "nobody@example.com", "nobody@elsewhere.example"] {
        let context = Context { user: email.parse().unwrap(), tenant: w.tenant.clone(), exporter: EXPORTER };
        let (initiator, start) = Initiator::start(context, &Secret::new(b"wrong guess".to_vec())).unwrap();
        let (started, offer) = w.core.begin_activation(call!(w), &w.tenant, &start, EXPORTER).await.unwrap();
        offers.push(serde_json::to_string(&offer).unwrap().len());
        let before = w.core.tenant(&w.tenant).await.unwrap().revision;
        let (_, proof) = initiator.respond(&offer, &mut w.random).unwrap();
        let error = w.core.confirm_activation(call!(w), started, &proof).await.err().unwrap();
        texts.push(error.to_string());
        assert_eq!(w.core.tenant(&w.tenant).await.unwrap().revision, before + 1, "one durable write, as for {email}");
    }
    assert!(offers.iter().all(|l| *l == offers[0]) && texts.iter().all(|t| *t == texts[0]), "{offers:?} {texts:?}");
    assert_eq!(w.state(&bert).await, None);
    assert_eq!(w.refusal("nobody@example.com", "wrong guess").await, Refusal::UnknownUser);
    assert_eq!(w.refusal("bert@example.com", "wrong guess").await, Refusal::NoPassword);
    // Strangers cannot fill the audit record with addresses they make up.
    let audit = w.core.audit(&w.tenant, 0, 100).await.unwrap();
    assert!(!audit.iter().any(|r| r.detail.contains("nobody")));
    assert_eq!(audit.iter().filter(|r| r.action == "activation.refuse").count(), 1);
}

pub(crate) async fn p20_of_parallel_activations_with_one_password_one_succeeds<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    let (first, first_sealed, _half) = w.confirm("anna@example.com", "open sesame", [EXPORTER; 2]).await.unwrap();
    let (second, second_sealed, _half) = w.confirm("anna@example.com", "open sesame", [EXPORTER; 2]).await.unwrap();
    w.core.finish_activation(call!(w), second, &second_sealed).await.unwrap();
    assert_eq!(refusal(w.core.finish_activation(call!(w), first, &first_sealed).await), Refusal::NoPassword);
    assert_eq!(w.core.devices(&w.tenant, None, Page::first()).await.unwrap().len(), 1);
}

pub(crate) async fn p20_a_relay_in_between_is_refused_and_counted<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    let result = w.confirm("anna@example.com", "open sesame", [[1; 32], [2; 32]]).await;
    assert_eq!(refusal(result.map(drop)), Refusal::WrongPassword);
    assert_eq!(w.state(&anna).await, Some((PasswordState::Open, 1)));
    // A request sealed in another session does not open in this one.
    let (_, foreign, _half) = w.confirm("anna@example.com", "open sesame", [EXPORTER; 2]).await.unwrap();
    let (confirmed, _, _half) = w.confirm("anna@example.com", "open sesame", [EXPORTER; 2]).await.unwrap();
    assert_eq!(refusal(w.core.finish_activation(call!(w), confirmed, &foreign).await), Refusal::Malformed);
}

pub(crate) async fn p20_a_slow_activation_is_refused<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    let (confirmed, sealed, _half) = w.confirm("anna@example.com", "open sesame", [EXPORTER; 2]).await.unwrap();
    w.now = w.now.plus(120);
    assert_eq!(refusal(w.core.finish_activation(call!(w), confirmed, &sealed).await), Refusal::TooLate);
}

pub(crate) async fn p20_a_replaced_password_ends_the_sessions_of_the_old_one<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    let (confirmed, sealed, _half) = w.confirm("anna@example.com", "open sesame", [EXPORTER; 2]).await.unwrap();
    w.password(&anna, "open sesame").await;
    assert_eq!(refusal(w.core.finish_activation(call!(w), confirmed, &sealed).await), Refusal::NoPassword);
    w.core.clear_activation_password(call!(w), &w.tenant, anna.id).await.unwrap();
    assert_eq!(w.refusal("anna@example.com", "open sesame").await, Refusal::NoPassword);
}

pub(crate) async fn p20_enrolment_tokens_make_one_node_each<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let token = w.token(3600).await;
    assert_eq!(token.tenant_ca_pin, *w.ca().await.key_id());
    assert_eq!(token.relays, settings().relays);
    let (reply, node) = w.enrol(&token).await.unwrap();
    let verified = w.verified(&reply.certificate, Role::Node).await;
    assert_eq!(verified.identity.origins, vec![Origin::Proxy]);
    assert_eq!(verified.identity.group.as_ref().map(|g| g.as_str()), Some("berlin"));
    assert_eq!((node.id, node.name.as_str(), reply.name.as_str()), (verified.identity.id, "node one", "node one"));
    assert_eq!(w.core.nodes(&w.tenant, Page::first()).await.unwrap(), vec![node.clone()]);
    assert_eq!(token_refusal(w.enrol(&token).await), TokenRefusal::Used);
    let stored = w.core.tokens(&w.tenant, Page::first()).await.unwrap().remove(0);
    assert_eq!(stored.used, Some((NOW, node.id)));
    assert_ne!(stored.secret_hash, token.secret);
    assert!(!serde_json::to_string(&stored).unwrap().contains("secret"));
}

pub(crate) async fn expired_withdrawn_and_unknown_tokens_are_refused<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let expired = w.token(60).await;
    let withdrawn = w.token(3600).await;
    let good = w.token(3600).await;
    w.core.revoke_token(call!(w), &w.tenant, withdrawn.id).await.unwrap();
    w.now = NOW.plus(60);
    assert_eq!(token_refusal(w.enrol(&expired).await), TokenRefusal::Expired);
    assert_eq!(token_refusal(w.enrol(&withdrawn).await), TokenRefusal::Revoked);
    // Without the secret nothing is told about a token's state.
    for mut unknown in [expired, withdrawn, good.clone()] {
        unknown.secret[31] ^= 1;
        assert_eq!(token_refusal(w.enrol(&unknown).await), TokenRefusal::Unknown);
    }
    let bad = NodeEnrolRequest { token: good.id, secret: good.secret, csr: vec![0; 10], name: None };
    assert_eq!(token_refusal(w.core.enrol_node(call!(w), &w.tenant, &bad).await), TokenRefusal::Request);
    w.enrol(&good).await.unwrap();
    for origins in [vec![], vec![Origin::Core], vec![Origin::Proxy, Origin::Bws]] {
        let new = NewToken { name: "x".into(), group: Default::default(), origins, lifetime_seconds: 60 };
        assert!(w.core.create_token(call!(w), &w.tenant, new).await.is_err());
    }
}

pub(crate) async fn p20_a_revoked_device_is_in_the_next_configuration_and_not_admitted<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    let (reply, device) = w.activate("anna@example.com", "open sesame").await.unwrap();
    let verified = w.verified(&reply.certificate, Role::Device).await;
    let before = w.core.config_version(&w.tenant).await.unwrap();
    let revoked = w.core.revoke_device(call!(w), &w.tenant, device.id).await.unwrap();
    assert_eq!((revoked.state, revoked.revoked), (DeviceState::Revoked, Some(NOW)));
    let (relay, node, _) = w.configs().await;
    assert!(relay.head.version > before);
    assert!(relay.revoked.names(&device.id, &verified.serial) && node.revoked.names(&device.id, ""));
    assert!(matches!(w.core.admit(&verified, w.now).await, Err(CoreError::Revoked { .. })));
    let csr = Key::generate(&mut w.random).unwrap().certificate_request().unwrap();
    assert!(matches!(w.core.renew(call!(w), &verified, &csr).await, Err(CoreError::Revoked { .. })));
    // Once more changes nothing.
    let version = w.core.config_version(&w.tenant).await.unwrap();
    w.core.revoke_device(call!(w), &w.tenant, device.id).await.unwrap();
    assert_eq!(w.core.config_version(&w.tenant).await.unwrap(), version);
    let nothing = EntityId::from_random([1; 16]);
    assert!(matches!(w.core.revoke_device(call!(w), &w.tenant, nothing).await, Err(CoreError::NotFound { .. })));
}

pub(crate) async fn p20_a_revoked_node_is_in_the_next_configuration_and_not_admitted<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let token = w.token(3600).await;
    let (reply, node) = w.enrol(&token).await.unwrap();
    let verified = w.verified(&reply.certificate, Role::Node).await;
    assert!(matches!(w.core.admit(&verified, w.now).await.unwrap(), Holder::Node(_)));
    w.core.revoke_node(call!(w), &w.tenant, node.id).await.unwrap();
    let (relay, document, _) = w.configs().await;
    assert!(relay.revoked.ids == vec![node.id] && document.revoked.ids == vec![node.id]);
    assert!(matches!(w.core.admit(&verified, w.now).await, Err(CoreError::Revoked { .. })));
    assert_eq!(w.core.node(&w.tenant, node.id).await.unwrap().state, NodeState::Revoked);
}

pub(crate) async fn devices_of_an_inactive_user_do_not_count_while_it_lasts<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    let (reply, device) = w.activate("anna@example.com", "open sesame").await.unwrap();
    w.password(&anna, "open sesame").await;
    let verified = w.verified(&reply.certificate, Role::Device).await;
    w.core.set_user_active(call!(w), &w.tenant, anna.id, false).await.unwrap();
    assert_eq!(w.configs().await.0.revoked.ids, vec![device.id]);
    assert!(w.core.admit(&verified, w.now).await.is_err());
    assert_eq!(w.state(&anna).await, None);
    let result = w.core.set_activation_password(call!(w), &w.tenant, anna.id, PasswordChoice::Generate, 60).await;
    assert!(matches!(result, Err(CoreError::Invalid { .. })));
    w.core.set_user_active(call!(w), &w.tenant, anna.id, true).await.unwrap();
    assert!(w.configs().await.0.revoked.ids.is_empty());
    w.core.admit(&verified, w.now).await.unwrap();
}

pub(crate) async fn revoked_holders_leave_the_list_when_their_certificates_have_expired<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let token = w.token(3600).await;
    let (_, node) = w.enrol(&token).await.unwrap();
    w.core.revoke_node(call!(w), &w.tenant, node.id).await.unwrap();
    w.now = node.certificate.not_after.plus(1);
    w.core.reissue_if_due(call!(w), &w.tenant).await.unwrap();
    assert!(w.configs().await.0.revoked.ids.is_empty());
}

pub(crate) async fn certificates_are_renewed_for_the_same_identity<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let token = w.token(3600).await;
    let (reply, node) = w.enrol(&token).await.unwrap();
    let old = w.verified(&reply.certificate, Role::Node).await;
    w.now = NOW.plus(200 * 24 * 3600);
    let csr = Key::generate(&mut w.random).unwrap().certificate_request().unwrap();
    let renewed = w.core.renew(call!(w), &old, &csr).await.unwrap();
    let new = w.verified(&renewed, Role::Node).await;
    assert_eq!(new.identity, old.identity);
    assert!(new.not_after > old.not_after && new.serial != old.serial);
    let stored = w.core.node(&w.tenant, node.id).await.unwrap();
    assert_eq!((stored.certificate.serial, stored.last_seen), (new.serial.clone(), Some(w.now)));
    let serials: Vec<_> =
        w.core.certificates(&w.tenant, node.id).await.unwrap().into_iter().map(|c| c.serial).collect();
    assert_eq!(serials, vec![old.serial, new.serial]);
}

pub(crate) async fn rules_and_routes_keep_their_order_and_reach_their_audience<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let rules: Vec<Rule> = serde_json::from_str(
        r#"[{"action":"deny","target":"secret.corp.example"},{"action":"allow","target":"*.corp.example","ports":"443,8000-8999"},
            {"action":"allow","target":"10.1.0.0/16","group":"berlin"}]"#,
    )
    .unwrap();
    let routes: Vec<Route> = serde_json::from_str(
        r#"[{"target":"*.corp.example","via":"group:berlin"},{"target":"*","ports":"25","via":"deny"}]"#,
    )
    .unwrap();
    w.core.set_rules(call!(w), &w.tenant, rules.clone()).await.unwrap();
    w.core.set_routes(call!(w), &w.tenant, routes.clone(), Via::Deny).await.unwrap();
    assert_eq!(w.core.rules(&w.tenant).await.unwrap(), rules);
    assert_eq!(w.core.routes(&w.tenant).await.unwrap(), (routes.clone(), Via::Deny));
    let (_, node, device) = w.configs().await;
    assert_eq!((node.rules, device.routes, device.default_route), (rules.clone(), routes, Via::Deny));
    let relay = w.core.configs(&w.tenant).await.unwrap().relay;
    assert!(
        !String::from_utf8(relay.payload).unwrap().contains("corp.example"),
        "the relay learns nothing of rules and routes"
    );
    w.core.set_rules(call!(w), &w.tenant, rules[1..].to_vec()).await.unwrap();
    assert_eq!(w.configs().await.1.rules, rules[1..]);
}

pub(crate) async fn p02_server_names_are_kept_in_one_spelling_and_audited<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let before = w.core.configs(&w.tenant).await.unwrap().version;
    let added = w.core.add_name(call!(w), &w.tenant, " Mail.Example.COM. ", Origin::Gateway).await.unwrap();
    assert_eq!((added.name.as_str(), added.origin, added.created), ("mail.example.com", Origin::Gateway, NOW));
    let again = w.core.add_name(call!(w), &w.tenant, "mail.example.com", Origin::Mdm).await;
    assert!(matches!(again, Err(CoreError::Exists { kind: "name", .. })), "{again:?}");
    for (name, origin) in
        [("mail", Origin::Mdm), ("192.0.2.1", Origin::Mdm), ("a b.example", Origin::Mdm), ("x.example", Origin::Proxy)]
    {
        let refused = w.core.add_name(call!(w), &w.tenant, name, origin).await;
        assert!(matches!(refused, Err(CoreError::Invalid { .. })), "{name}: {refused:?}");
    }
    w.core.add_name(call!(w), &w.tenant, "core.example.com", Origin::Core).await.unwrap();
    let names: Vec<_> = w.core.names(&w.tenant).await.unwrap().into_iter().map(|n| n.name).collect();
    assert_eq!(names, ["core.example.com", "mail.example.com"]);
    w.core.remove_name(call!(w), &w.tenant, "MAIL.example.com").await.unwrap();
    let gone = w.core.remove_name(call!(w), &w.tenant, "mail.example.com").await;
    assert!(matches!(gone, Err(CoreError::NotFound { kind: "name", .. })), "{gone:?}");
    let told: Vec<_> =
        w.core.audit(&w.tenant, 0, 1000).await.unwrap().into_iter().map(|r| (r.action, r.subject)).collect();
    let told: Vec<_> =
        told.iter().filter(|(a, _)| a.starts_with("name.")).map(|(a, s)| (a.as_str(), s.as_str())).collect();
    assert_eq!(
        told,
        [("name.add", "mail.example.com"), ("name.add", "core.example.com"), ("name.remove", "mail.example.com")]
    );
    assert_eq!(w.core.configs(&w.tenant).await.unwrap().version, before, "nodes and devices need not learn of it");
}

pub(crate) async fn one_version_has_one_content<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let before = w.core.configs(&w.tenant).await.unwrap();
    assert_eq!(w.core.configs(&w.tenant).await.unwrap(), before);
    // What peers need not learn raises no version.
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    w.refusal("anna@example.com", "wrong guess").await;
    w.activate("anna@example.com", "open sesame").await.unwrap();
    assert_eq!(w.core.configs(&w.tenant).await.unwrap(), before);
    w.core.set_rules(call!(w), &w.tenant, vec![]).await.unwrap();
    let after = w.core.configs(&w.tenant).await.unwrap();
    assert_eq!(after.version, Version { epoch: 0, version: before.version.version + 1 });
    // And a peer that has the new one refuses the old one.
    assert!(before.node.verify::<NodeConfig>(&w.ca().await, Some(after.version), w.now).is_err());
}

pub(crate) async fn configuration_is_issued_again_every_hour_and_when_the_clock_went_back<S: Store>(store: S) {
    let mut w = World::new(store).await;
    w.now = NOW.plus(3599);
    assert_eq!(w.core.reissue_if_due(call!(w), &w.tenant).await.unwrap(), None);
    w.now = NOW.plus(3600);
    let version = w.core.reissue_if_due(call!(w), &w.tenant).await.unwrap().unwrap();
    let (relay, ..) = w.configs().await;
    assert_eq!(
        (relay.head.version, relay.head.issued, relay.head.expires),
        (version, w.now, w.now.plus(LIFETIME_SECONDS))
    );
    assert_eq!(w.core.reissue_if_due(call!(w), &w.tenant).await.unwrap(), None);
    w.now = NOW.plus(10);
    assert!(w.core.reissue_if_due(call!(w), &w.tenant).await.unwrap().unwrap() > version);
}

pub(crate) async fn the_configuration_keys_certificate_is_renewed_in_time<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let before = w.core.tenant(&w.tenant).await.unwrap().config_certificate;
    for day in [300, 330, 364, 400, 700] {
        w.now = NOW.plus(day * 24 * 3600);
        w.core.reissue_if_due(call!(w), &w.tenant).await.unwrap();
        // What is signed now verifies to the end of its life.
        let configs = w.core.configs(&w.tenant).await.unwrap();
        let last = UnixTime(configs.expires.0 - 1);
        configs.relay.verify::<RelayConfig>(&w.ca().await, None, last).unwrap();
    }
    assert_ne!(w.core.tenant(&w.tenant).await.unwrap().config_certificate, before);
}

pub(crate) async fn raising_the_epoch_outranks_every_version<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let raised = w.core.raise_epoch(call!(w), &w.tenant).await.unwrap();
    assert_eq!(w.configs().await.0.head.version, raised);
    assert!(raised > Version { epoch: 0, version: u64::MAX });
}

pub(crate) async fn the_core_gets_a_certificate_that_devices_accept<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let identity = w.core.core_identity(call!(w), &w.tenant).await.unwrap();
    let leaf = CertificateDer::from(identity.certificate.as_slice());
    let verified = w.ca().await.verify(&leaf, Role::Core, Usage::Server, w.now).unwrap();
    assert_eq!((verified.identity.id, verified.not_after), (identity.id, identity.not_after));
    assert_eq!(identity.ca, w.ca().await.der().as_ref());
    Key::from_pkcs8(&identity.key).unwrap();
    assert!(w.core.admit(&verified, w.now).await.is_err(), "the core's own certificate opens nothing");
}

pub(crate) async fn every_change_is_audited_in_one_chain<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    w.refusal("anna@example.com", "wrong guess").await;
    let (_, device) = w.activate("anna@example.com", "open sesame").await.unwrap();
    w.core.revoke_device(call!(w), &w.tenant, device.id).await.unwrap();
    let records = w.core.audit(&w.tenant, 0, 100).await.unwrap();
    let words: Vec<_> = records.iter().map(|r| (r.action.as_str(), r.actor.as_str())).collect();
    let device_actor = format!("device:{}", device.id);
    let root = "admin:root";
    let expected = [
        ("tenant.create", root),
        ("user.add", root),
        ("activation.password", root),
        ("activation.refuse", root),
        ("device.activate", device_actor.as_str()),
        ("device.revoke", root),
    ];
    assert_eq!(words, expected);
    assert_eq!(w.core.verify_audit(&w.tenant).await.unwrap().number, 6);
    assert_eq!(w.core.audit(&w.tenant, 2, 2).await.unwrap(), records[2..4]);
    let text = serde_json::to_string(&records).unwrap();
    assert!(!text.contains("open sesame") && !text.contains("wrong guess"));
}

pub(crate) async fn a_commit_on_an_old_revision_changes_nothing<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let stale = w.core.tenant(&w.tenant).await.unwrap();
    let anna = w.user("anna@example.com").await;
    let mut renamed = anna.clone();
    renamed.display_name = "Somebody Else".into();
    for expected in [Some(stale.revision), Some(stale.revision + 7), None] {
        let changes = vec![Change::PutUser(renamed.clone()), Change::DeletePassword(anna.id)];
        let commit = Commit { expected, tenant: stale.clone(), changes, audit: vec![] };
        assert!(matches!(w.core.store().commit(commit).await, Err(StoreError::Conflict)));
    }
    assert_eq!(w.core.user(&w.tenant, anna.id).await.unwrap(), anna);
    w.core.verify_audit(&w.tenant).await.unwrap();
}

pub(crate) async fn another_key_file_is_noticed<S: Store>(store: S) {
    let mut w = World::new(store).await;
    w.core = w.core.with_kek(Kek::new(&[2; 32]));
    assert!(matches!(w.core.configs(&w.tenant).await, Err(CoreError::Damaged(_))));
    assert!(matches!(w.core.core_identity(call!(w), &w.tenant).await, Err(CoreError::Damaged(_))));
}

pub(crate) async fn acknowledgements_and_last_seen_are_kept<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let token = w.token(3600).await;
    let (reply, node) = w.enrol(&token).await.unwrap();
    let before = w.core.tenant(&w.tenant).await.unwrap().revision;
    for version in [1, 2] {
        let version = Version { epoch: 0, version };
        w.core.acknowledge(&w.tenant, "relay:relay.example", version, w.now).await.unwrap();
    }
    let acks = w.core.acknowledgements(&w.tenant).await.unwrap();
    assert_eq!((acks.len(), acks[0].holder.as_str(), acks[0].version.version), (1, "relay:relay.example", 2));
    let verified = w.verified(&reply.certificate, Role::Node).await;
    w.core.admit(&verified, NOW.plus(77)).await.unwrap();
    assert_eq!(w.core.node(&w.tenant, node.id).await.unwrap().last_seen, Some(NOW.plus(77)));
    assert_eq!(w.core.tenant(&w.tenant).await.unwrap().revision, before);
}

pub(crate) async fn tenants_do_not_see_each_other<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    let token = w.token(3600).await;
    let (reply, _) = w.enrol(&token).await.unwrap();
    let first = w.tenant.clone();
    w.make_tenant("S87654321").await.unwrap();
    w.tenant = "S87654321".parse().unwrap();
    assert!(w.core.user(&w.tenant, anna.id).await.is_err());
    assert_eq!(token_refusal(w.enrol(&token).await), TokenRefusal::Unknown);
    assert_eq!(w.refusal("anna@example.com", "open sesame").await, Refusal::UnknownUser);
    let other_anna = w.user("anna@example.com").await;
    assert_ne!(other_anna.id, anna.id);
    assert!(w.core.nodes(&w.tenant, Page::first()).await.unwrap().is_empty());
    assert!(w.ca().await.verify(&CertificateDer::from(reply.certificate), Role::Node, Usage::Client, w.now).is_err());
    assert_eq!(w.core.tenants().await.unwrap(), vec![first, w.tenant.clone()]);
    let nobody: TenantId = "S00000000".parse().unwrap();
    assert!(matches!(w.core.configs(&nobody).await, Err(CoreError::NotFound { .. })));
}
