//! Devices activate with a password, once.

use super::world::*;
use hedgerow_shared::Role;
use hedgerow_shared::secret::Secret;
use hedgerow_uem_core::activation::pake::{Context, Initiator};
use hedgerow_uem_core::activation::{DEFAULT_LIFETIME_SECONDS, MAX_WRONG, PasswordChoice, PasswordState, Refusal};
use hedgerow_uem_core::service::Holder;
use hedgerow_uem_core::store::{Page, Store};
use hedgerow_uem_core::{Actor, Call, CoreError};

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
