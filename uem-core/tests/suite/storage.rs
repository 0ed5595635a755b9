//! What is written, and who sees it.

use super::world::*;
use hedgerow_shared::verify::{Usage, Version};
use hedgerow_shared::{Role, TenantId};
use hedgerow_uem_core::activation::Refusal;
use hedgerow_uem_core::seal::Kek;
use hedgerow_uem_core::service::TokenRefusal;
use hedgerow_uem_core::store::{Change, Commit, Page, Store, StoreError};
use hedgerow_uem_core::{Actor, Call, CoreError};
use rustls_pki_types::CertificateDer;

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
