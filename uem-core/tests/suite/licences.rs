//! What an installed licence changes.

use super::world::*;
use hedgerow_shared::UnixTime;
use hedgerow_shared::verify::licence::{Licence, LicenceKey, SignedLicence, Standing};
use hedgerow_uem_core::account::DeviceState;
use hedgerow_uem_core::activation::{ActivationError, PasswordState};
use hedgerow_uem_core::audit::Outcome;
use hedgerow_uem_core::ca::Key;
use hedgerow_uem_core::licence::{Overview, Unlicensed};
use hedgerow_uem_core::store::{Page, Store};
use hedgerow_uem_core::{Actor, Call, CoreError};

const DAY: u64 = 24 * 3600;

fn licence(issued: u64, seats: Option<u32>) -> Licence {
    Licence {
        id: format!("L-{issued}"),
        tenant: "S12345678".parse().unwrap(),
        licensee: "Example".into(),
        issued: UnixTime(issued),
        not_before: UnixTime(1),
        expires: NOW.plus(100 * DAY),
        grace_seconds: 10 * DAY,
        seats,
        features: ["proxy".to_owned()].into(),
    }
}

fn signed(licence: &Licence) -> String {
    let key = Key::generate(&mut Seeded(9)).unwrap();
    let payload = licence.payload().unwrap();
    let signed = SignedLicence { signature: key.sign_message(&SignedLicence::message(&payload)), payload };
    signed.verify(&[LicenceKey::from_der(&key.public_key_info()).unwrap()]).unwrap();
    signed.to_pem()
}

impl<S: Store> World<S> {
    async fn license(&mut self, licence: &Licence) {
        self.core.install_licence(call!(self), &self.tenant, &signed(licence)).await.unwrap();
    }

    async fn overview(&self, now: UnixTime) -> Option<Overview> {
        self.core.licence_overview(&self.tenant, now).await.unwrap()
    }

    async fn unlicensed(&mut self, email: &str) -> Unlicensed {
        match self.activate(email, "open sesame").await {
            Err(ActivationError::Unlicensed(why)) => why,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("it was not refused"),
        }
    }
}

pub(crate) async fn p04_a_licence_is_installed_shown_and_removed_and_audited<S: Store>(store: S) {
    let mut w = World::new(store).await;
    assert!(w.overview(NOW).await.is_none());
    w.license(&licence(10, Some(3))).await;
    let shown = w.overview(NOW).await.unwrap();
    assert_eq!((shown.installed.licence, shown.seats_used), (licence(10, Some(3)), 0));
    assert_eq!((shown.standing, shown.warning), (Standing::Valid { expires_in: 100 * DAY }, None));
    let soon = w.overview(NOW.plus(71 * DAY)).await.unwrap().warning.unwrap();
    assert!(soon.contains("ends in 29 days"), "{soon}");

    let foreign = Licence { tenant: "S87654321".parse().unwrap(), ..licence(11, None) };
    for (text, why) in
        [(signed(&foreign), "S87654321"), (signed(&licence(9, None)), "before L-10"), ("hello".into(), "no licence")]
    {
        let refused = w.core.install_licence(call!(w), &w.tenant, &text).await.unwrap_err();
        assert!(matches!(refused, CoreError::Invalid { .. }) && refused.to_string().contains(why), "{refused}");
    }
    w.license(&licence(12, None)).await;
    assert_eq!(w.core.licence(&w.tenant).await.unwrap().unwrap().licence.id, "L-12");
    w.core.remove_licence(call!(w), &w.tenant).await.unwrap();
    assert!(w.core.licence(&w.tenant).await.unwrap().is_none());
    assert!(matches!(w.core.remove_licence(call!(w), &w.tenant).await, Err(CoreError::NotFound { .. })));
    let records = w.core.audit(&w.tenant, 0, 100).await.unwrap();
    let told: Vec<_> = records.iter().map(|r| (r.action.as_str(), r.subject.as_str())).skip(1).collect();
    assert_eq!(told, [("licence.install", "L-10"), ("licence.install", "L-12"), ("licence.remove", "L-12")]);
    assert!(records[1].detail.contains("3 seats") && records[1].detail.contains("proxy"), "{records:?}");
    w.core.verify_audit(&w.tenant).await.unwrap();
}

pub(crate) async fn p04_activations_stop_at_the_last_seat_and_leave_the_password_as_it_was<S: Store>(store: S) {
    let mut w = World::new(store).await;
    w.license(&licence(10, Some(1))).await;
    let (anna, bert) = (w.user("anna@example.com").await, w.user("bert@example.com").await);
    for user in [&anna, &bert] {
        w.password(user, "open sesame").await;
    }
    let (_, device) = w.activate("anna@example.com", "open sesame").await.unwrap();
    let full = w.core.licence_overview(&w.tenant, w.now).await.unwrap().unwrap();
    assert!(full.seats_used == 1 && full.warning.unwrap().contains("all 1 seats"));

    // Who does not know the password learns nothing of licences.
    assert_eq!(
        w.refusal("bert@example.com", "wrong guess").await,
        hedgerow_uem_core::activation::Refusal::WrongPassword
    );
    let why = w.unlicensed("bert@example.com").await;
    assert_eq!(why, Unlicensed::Seats { licence: "L-10".into(), seats: 1 });
    assert_eq!(w.state(&bert).await, Some((PasswordState::Open, 1)), "only the wrong guess was counted");
    let last = w.core.audit(&w.tenant, 0, 100).await.unwrap().pop().unwrap();
    assert_eq!((last.action.as_str(), last.outcome), ("activation.refuse", Outcome::Refused));
    assert!(last.detail.contains("L-10") && last.subject == bert.id.to_string(), "{last:?}");

    // The one that is active stays what it is, and its seat is free when it is revoked.
    let stands = w.core.device(&w.tenant, device.id).await.unwrap();
    assert_eq!(stands.state, DeviceState::Active);
    w.core.revoke_device(call!(w), &w.tenant, device.id).await.unwrap();
    w.activate("bert@example.com", "open sesame").await.unwrap();
}

pub(crate) async fn p04_after_the_grace_nothing_new_becomes_active<S: Store>(store: S) {
    let mut w = World::new(store).await;
    w.license(&licence(10, None)).await;
    for (name, day, works) in [("anna", 99, true), ("bert", 109, true), ("carol", 110, false)] {
        w.now = NOW.plus(day * DAY);
        let email = format!("{name}@example.com");
        let user = w.user(&email).await;
        w.password(&user, "open sesame").await;
        if works {
            w.activate(&email, "open sesame").await.unwrap();
        } else {
            assert_eq!(w.unlicensed(&email).await, Unlicensed::Expired { licence: "L-10".into() });
        }
    }
    w.license(&Licence { expires: w.now.plus(DAY), ..licence(11, None) }).await;
    w.activate("carol@example.com", "open sesame").await.unwrap();
}

pub(crate) async fn p04_of_activations_at_once_no_more_succeed_than_there_are_seats<S: Store>(store: S) {
    let mut w = World::new(store).await;
    w.license(&licence(10, Some(1))).await;
    let mut confirmed = Vec::new();
    for name in ["anna", "bert", "carol"] {
        let email = format!("{name}@example.com");
        let user = w.user(&email).await;
        w.password(&user, "open sesame").await;
        confirmed.push(w.confirm(&email, "open sesame", [EXPORTER; 2]).await.unwrap());
    }
    let mut done = 0;
    for (confirmed, sealed, _half) in confirmed {
        match w.core.finish_activation(call!(w), confirmed, &sealed).await {
            Ok(_) => done += 1,
            Err(ActivationError::Unlicensed(Unlicensed::Seats { .. })) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(done, 1);
    assert_eq!(w.core.devices(&w.tenant, None, Page::first()).await.unwrap().len(), 1);
}
