//! Nodes enrol; devices and nodes are revoked and renewed.

use super::world::*;
use hedgerow_shared::verify::{DeviceConfig, TenantCa};
use hedgerow_shared::{EntityId, Origin, Role, UnixTime};
use hedgerow_uem_core::account::{DeviceState, NodeState};
use hedgerow_uem_core::activation::PasswordChoice;
use hedgerow_uem_core::ca::Key;
use hedgerow_uem_core::service::{EnrolError, Holder, NewToken, NodeEnrolRequest, TokenRefusal};
use hedgerow_uem_core::store::{Page, Store};
use hedgerow_uem_core::{Actor, Call, CoreError};

pub(crate) async fn p20_enrolment_tokens_make_one_node_each<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let token = w.token(3600).await;
    assert_eq!(token.tenant_ca_pin, w.ca().await.key_id());
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
    let known = w.core.node(&w.tenant, node.id).await.unwrap().certificate.serial;
    assert_eq!(known, old.serial, "until it is seen to work");
    for _ in 0..2 {
        w.core.confirm_renewal(call!(w), &new).await.unwrap();
        let stored = w.core.node(&w.tenant, node.id).await.unwrap();
        assert_eq!((stored.certificate.serial, stored.last_seen), (new.serial.clone(), Some(w.now)));
    }
    // The overlap: the old one is still good, and does not become the newest again.
    w.core.confirm_renewal(call!(w), &old).await.unwrap();
    assert_eq!(w.core.node(&w.tenant, node.id).await.unwrap().certificate.serial, new.serial);
    let serials: Vec<_> =
        w.core.certificates(&w.tenant, node.id).await.unwrap().into_iter().map(|c| c.serial).collect();
    assert_eq!(serials, vec![old.serial, new.serial]);
}

/// Away for longer than the certificate lasts: the newest one is good for the next, any other is not, and not for ever.
pub(crate) async fn p20_an_expired_holder_comes_back_by_its_newest_certificate<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    let (reply, device) = w.activate("anna@example.com", "open sesame").await.unwrap();
    let first = w.verified(&reply.certificate, Role::Device).await;
    let request = |w: &mut World<S>| Key::generate(&mut w.random).unwrap().certificate_request().unwrap();
    w.now = first.renew_at();
    let csr = request(&mut w);
    let second = w.core.renew(call!(w), &first, &csr).await.unwrap();
    let second = w.verified(&second, Role::Device).await;
    // Never confirmed: it may never have arrived. The first is the newest that the device is known to have.
    w.now = second.not_after.plus(1);
    let csr = request(&mut w);
    assert!(matches!(w.core.renew(call!(w), &second, &csr).await, Err(CoreError::Lapsed)));
    let third = w.core.renew(call!(w), &first, &csr).await.unwrap();
    let third = w.verified(&third, Role::Device).await;
    w.core.confirm_renewal(call!(w), &third).await.unwrap();
    assert!(
        matches!(w.core.renew(call!(w), &first, &csr).await, Err(CoreError::Lapsed)),
        "an older one is worth nothing"
    );
    assert_eq!(w.core.device(&w.tenant, device.id).await.unwrap().certificate.serial, third.serial);
    w.now = third.not_after.plus(hedgerow_shared::wire::core_api::LAPSED_SECONDS + 1);
    assert!(matches!(w.core.renew(call!(w), &third, &csr).await, Err(CoreError::Lapsed)), "not for ever");
    w.now = third.not_after.plus(1);
    w.core.revoke_device(call!(w), &w.tenant, device.id).await.unwrap();
    assert!(matches!(w.core.renew(call!(w), &third, &csr).await, Err(CoreError::Revoked { .. })));
}

/// A holder that asks again and again fills no table.
pub(crate) async fn p20_certificates_of_one_holder_are_bounded<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let token = w.token(3600).await;
    let (reply, node) = w.enrol(&token).await.unwrap();
    let own = w.verified(&reply.certificate, Role::Node).await;
    let csr = Key::generate(&mut w.random).unwrap().certificate_request().unwrap();
    let mut issued = 0;
    let refused = loop {
        match w.core.renew(call!(w), &own, &csr).await {
            Ok(_) => issued += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, CoreError::TooMany { most, .. } if most == issued + 1), "{refused}");
    assert_eq!(w.core.certificates(&w.tenant, node.id).await.unwrap().len(), issued + 1);
    w.now = w.now.plus(25 * 3600);
    w.core.renew(call!(w), &own, &csr).await.unwrap();
}

/// A new device or node under an old name is another one: the old certificate stays out (and the new one is not).
pub(crate) async fn a10_who_is_made_again_under_the_same_name_leaves_the_old_certificate_revoked<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    let mut devices = Vec::new();
    let mut nodes = Vec::new();
    for _ in 0..2 {
        w.password(&anna, "open sesame").await;
        let (reply, device) = w.activate("anna@example.com", "open sesame").await.unwrap();
        devices.push((w.verified(&reply.certificate, Role::Device).await, device.clone()));
        let token = w.token(3600).await;
        let (reply, node) = w.enrol(&token).await.unwrap();
        nodes.push((w.verified(&reply.certificate, Role::Node).await, node.clone()));
        if devices.len() == 1 {
            w.core.revoke_device(call!(w), &w.tenant, device.id).await.unwrap();
            w.core.revoke_node(call!(w), &w.tenant, node.id).await.unwrap();
        }
    }
    assert_eq!((&devices[0].1.name, &nodes[0].1.name), (&devices[1].1.name, &nodes[1].1.name));
    assert!(devices[0].1.id != devices[1].1.id && nodes[0].1.id != nodes[1].1.id);
    let (relay, document, _) = w.configs().await;
    for (old, new) in [(&devices[0].0, &devices[1].0), (&nodes[0].0, &nodes[1].0)] {
        assert!(matches!(w.core.admit(old, w.now).await, Err(CoreError::Revoked { .. })));
        w.core.admit(new, w.now).await.unwrap();
        for revoked in [&relay.revoked, &document.revoked] {
            assert!(revoked.names(&old.identity.id, &old.serial) && !revoked.names(&new.identity.id, &new.serial));
        }
    }
}

/// The next CA is believed because the one in force vouches for it; nothing moves before it may, and nobody is left behind
/// unsaid.
pub(crate) async fn p20_the_ca_is_replaced_step_by_step<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    let (reply, device) = w.activate("anna@example.com", "open sesame").await.unwrap();
    let own = w.verified(&reply.certificate, Role::Device).await;
    let token = w.token(30 * 24 * 3600).await;
    let relays = ["relay.example".to_owned()];
    // A holder of before: it has the one CA, and goes by what is announced.
    let holder = TenantCa::from_der(&w.ca().await.der()).unwrap();
    let hears = |w: &World<S>, holder: &TenantCa, configs: &hedgerow_uem_core::config::Configs| {
        let config: DeviceConfig = configs.device.verify(holder, None, w.now).unwrap();
        if let Some(believed) = holder.after(&config.authorities).unwrap() {
            holder.replace(&believed).unwrap();
        }
    };
    assert!(matches!(w.core.switch_rollover(call!(w), &w.tenant, &relays, true).await, Err(CoreError::Invalid { .. })));
    w.core.begin_rollover(call!(w), &w.tenant).await.unwrap();
    assert!(matches!(w.core.begin_rollover(call!(w), &w.tenant).await, Err(CoreError::Exists { .. })));
    let csr = Key::generate(&mut w.random).unwrap().certificate_request().unwrap();
    let early = w.core.renew(call!(w), &own, &csr).await.unwrap();
    assert!(holder.is_by_first(&early.as_slice().into()), "nobody knows the next CA yet");
    let Err(CoreError::Invalid { why, .. }) = w.core.switch_rollover(call!(w), &w.tenant, &relays, false).await else {
        panic!("the relay does not know it")
    };
    assert!(why.contains("relay:relay.example"), "{why}");
    let version = w.core.config_version(&w.tenant).await.unwrap();
    w.core.acknowledge(&w.tenant, "relay:relay.example", version, w.now).await.unwrap();
    w.core.switch_rollover(call!(w), &w.tenant, &relays, false).await.unwrap();

    // It was away meanwhile, and still verifies what the core says.
    let configs = w.core.configs(&w.tenant).await.unwrap();
    hears(&w, &holder, &configs);
    assert_eq!(holder.ders().len(), 2);
    assert!(!holder.is_by_first(&reply.certificate.as_slice().into()), "it is to ask for another certificate");
    let status = w.core.rollover(&w.tenant, &relays).await.unwrap().unwrap();
    assert_eq!(status.behind, [("device", device.id)]);
    assert!(matches!(w.core.finish_rollover(call!(w), &w.tenant, false).await, Err(CoreError::Invalid { .. })));
    let moved = w.core.renew(call!(w), &own, &csr).await.unwrap();
    assert!(holder.is_by_first(&moved.as_slice().into()));
    let moved = w.verified(&moved, Role::Device).await;
    w.core.confirm_renewal(call!(w), &moved).await.unwrap();
    assert_eq!(w.core.rollover(&w.tenant, &relays).await.unwrap().unwrap().behind, []);

    let row = w.core.finish_rollover(call!(w), &w.tenant, false).await.unwrap();
    assert_eq!(holder.der().as_ref(), row.ca_certificate);
    hears(&w, &holder, &w.core.configs(&w.tenant).await.unwrap());
    assert_eq!(holder.ders().len(), 1, "the old one is not believed any more");
    assert_eq!(w.core.rollover(&w.tenant, &relays).await.unwrap(), None);
    let refused = w.enrol(&token).await.unwrap_err();
    assert!(matches!(refused, EnrolError::Refused(TokenRefusal::Revoked)), "its pin is the old CA's: {refused:?}");
    // Whoever heard nothing of it believes nothing new.
    let late = TenantCa::from_der(&own_ca(&configs)).unwrap();
    assert!(w.core.configs(&w.tenant).await.unwrap().device.verify::<DeviceConfig>(&late, None, w.now).is_err());
}

/// The CA that was in force while these documents were.
fn own_ca(configs: &hedgerow_uem_core::config::Configs) -> Vec<u8> {
    let config: DeviceConfig = serde_json::from_slice(&configs.device.payload).unwrap();
    config.authorities[1].certificate.clone()
}

/// A certificate that its holder has taken and never shown counts against it as well.
pub(crate) async fn a10_a_revoked_holder_stays_revoked_as_long_as_any_of_its_certificates_lasts<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    let (reply, device) = w.activate("anna@example.com", "open sesame").await.unwrap();
    let first = w.verified(&reply.certificate, Role::Device).await;
    let token = w.token(3600).await;
    let (reply, node) = w.enrol(&token).await.unwrap();
    let of_node = w.verified(&reply.certificate, Role::Node).await;
    w.now = UnixTime(first.not_after.0 - 10);
    let csr = Key::generate(&mut w.random).unwrap().certificate_request().unwrap();
    let second = w.core.renew(call!(w), &first, &csr).await.unwrap();
    let second = w.verified(&second, Role::Device).await;
    w.core.renew(call!(w), &of_node, &csr).await.unwrap();
    w.core.revoke_device(call!(w), &w.tenant, device.id).await.unwrap();
    w.core.revoke_node(call!(w), &w.tenant, node.id).await.unwrap();
    let mut both = [device.id, node.id];
    both.sort_unstable();
    for now in [first.not_after.plus(1), UnixTime(second.not_after.0 - 1)] {
        assert_eq!(w.core.store().revoked(&w.tenant, now).await.unwrap(), both);
    }
    assert!(w.core.store().revoked(&w.tenant, second.not_after.plus(1)).await.unwrap().is_empty());
}
