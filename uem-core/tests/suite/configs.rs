//! What is signed for relays, nodes and devices.

use super::world::*;
use hedgerow_shared::verify::config::LIFETIME_SECONDS;
use hedgerow_shared::verify::{NodeConfig, RelayConfig, Route, Rule, Usage, Version, Via};
use hedgerow_shared::{Origin, Role, UnixTime};
use hedgerow_uem_core::ca::Key;
use hedgerow_uem_core::store::Store;
use hedgerow_uem_core::{Actor, Call, CoreError};
use rustls_pki_types::CertificateDer;

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
