//! Tenants and their users.

use super::world::*;
use hedgerow_shared::verify::Version;
use hedgerow_shared::verify::config::LIFETIME_SECONDS;
use hedgerow_uem_core::account::TenantSettings;
use hedgerow_uem_core::service::NewUser;
use hedgerow_uem_core::store::{Page, Store};
use hedgerow_uem_core::{Actor, Call, CoreError};

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
