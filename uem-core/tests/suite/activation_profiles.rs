//! What activation profiles decide.

use super::world::*;
use hedgerow_uem_core::activation::{ActivationError, PasswordState, Refusal};
use hedgerow_uem_core::audit::Outcome;
use hedgerow_uem_core::group::Principal;
use hedgerow_uem_core::profile::{ActivationType, Bar, Barred, Category, Platform, Profile};
use hedgerow_uem_core::service::{NewProfile, ProfileChange};
use hedgerow_uem_core::store::{Page, Store};
use hedgerow_uem_core::{Actor, Call, CoreError};
use serde_json::{Value, json};

impl<S: Store> World<S> {
    async fn activation_profile(&mut self, name: &str, settings: Value) -> Result<Profile, CoreError> {
        let Value::Object(settings) = settings else { panic!("an object") };
        let new = NewProfile { category: Category::Activation, name: name.into(), settings, ..NewProfile::default() };
        self.core.add_profile(call!(self), &self.tenant, new).await
    }

    async fn barred(&mut self, email: &str) -> Barred {
        match self.activate(email, "open sesame").await {
            Err(ActivationError::Barred(why)) => why,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("it was not refused"),
        }
    }
}

pub(crate) async fn p21_an_activation_profile_decides_how_many_and_which_devices_and_as_what<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let (anna, bert) = (w.user("anna@example.com").await, w.user("bert@example.com").await);
    for user in [&anna, &bert] {
        w.password(user, "open sesame").await;
    }
    let wrong = w.activation_profile("wrong", json!({ "types": { "linux": ["MDM_CONTROLS"] } })).await.unwrap_err();
    assert!(wrong.to_string().contains("no type of linux"), "{wrong}");
    let settings = json!({
        "devices": 1, "platforms": ["android", "linux"], "colour": "green",
        "types": { "android": ["WORK_SPACE_ONLY_AFW", "USER_PRIVACY_AFW"] },
    });
    let few = w.activation_profile("few", settings.clone()).await.unwrap();
    assert_eq!(Value::Object(w.core.profile(&w.tenant, few.id).await.unwrap().settings), settings, "all is kept");
    w.core.assign_profile(call!(w), &w.tenant, few.id, Principal::User(anna.id)).await.unwrap();

    for (platform, at) in [("iOS 26", Some(Platform::Ios)), ("PalmOS 5", None)] {
        w.platform = platform;
        let why = w.barred("anna@example.com").await;
        assert_eq!((why.profile.as_str(), why.bar), ("few", Bar::Platform(at)));
    }
    w.platform = "Android 16";
    let (reply, phone) = w.activate("anna@example.com", "open sesame").await.unwrap();
    assert_eq!(reply.activation.as_deref(), Some("WORK_SPACE_ONLY_AFW"));
    let stored = w.core.device(&w.tenant, phone.id).await.unwrap();
    assert_eq!((stored.activation, phone.activation), (Some(ActivationType::WorkSpaceOnlyAfw), stored.activation));

    // The second of hers: refused with words, audited, and the password stays. Others are not concerned.
    w.password(&anna, "open sesame").await;
    w.platform = "Debian GNU/Linux 12";
    let why = w.barred("anna@example.com").await;
    assert_eq!(why.bar, Bar::Devices { allowed: 1, active: 1 });
    assert_eq!(w.state(&anna).await, Some((PasswordState::Open, 0)));
    let last = w.core.audit(&w.tenant, 0, 100).await.unwrap().pop().unwrap();
    assert_eq!((last.action.as_str(), last.outcome), ("activation.refuse", Outcome::Refused));
    assert!(last.subject == anna.id.to_string() && last.detail.contains("profile few allows 1"), "{last:?}");
    let (_, laptop) = w.activate("bert@example.com", "open sesame").await.unwrap();
    assert_eq!(laptop.activation, Some(ActivationType::LinuxAgent), "without a profile: the platform's first");

    // What is active stays what it is; one revoked makes room, and so does another profile.
    w.core.revoke_device(call!(w), &w.tenant, phone.id).await.unwrap();
    w.activate("anna@example.com", "open sesame").await.unwrap();
    w.password(&anna, "open sesame").await;
    assert_eq!(w.barred("anna@example.com").await.bar, Bar::Devices { allowed: 1, active: 1 });
    let Value::Object(settings) = json!({ "devices": 2 }) else { panic!("an object") };
    let change = ProfileChange { settings: Some(settings), ..ProfileChange::default() };
    w.core.change_profile(call!(w), &w.tenant, few.id, change).await.unwrap();
    w.activate("anna@example.com", "open sesame").await.unwrap();
    assert_eq!(w.core.devices(&w.tenant, Some(anna.id), Page::first()).await.unwrap().len(), 3);
    let records = w.core.audit(&w.tenant, 0, 100).await.unwrap();
    assert!(records.iter().any(|r| r.action == "device.activate" && r.detail.ends_with("WORK_SPACE_ONLY_AFW")));
    w.core.verify_audit(&w.tenant).await.unwrap();
}

pub(crate) async fn p20_what_an_activation_profile_says_is_told_only_to_who_knows_the_password<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let anna = w.user("anna@example.com").await;
    w.password(&anna, "open sesame").await;
    let none = w.activation_profile("nobody", json!({ "devices": 0 })).await.unwrap();
    w.core.set_default_profile(call!(w), &w.tenant, none.id, true).await.unwrap();
    assert_eq!(w.refusal("anna@example.com", "wrong guess").await, Refusal::WrongPassword);
    assert_eq!(w.refusal("bert@example.com", "wrong guess").await, Refusal::UnknownUser);
    // Where no platform is let in it is told before the device asks for its certificate.
    let early = w.confirm("anna@example.com", "open sesame", [EXPORTER; 2]).await;
    assert!(matches!(early, Err(ActivationError::Barred(_))));

    // Not there for Linux: decided when the device has said what it is.
    let disabled = Some([Platform::Linux].into());
    let change = ProfileChange { disabled, ..ProfileChange::default() };
    w.core.change_profile(call!(w), &w.tenant, none.id, change).await.unwrap();
    let (confirmed, sealed, _half) = w.confirm("anna@example.com", "open sesame", [EXPORTER; 2]).await.unwrap();
    w.platform = "iOS 26";
    assert_eq!(w.barred("anna@example.com").await.bar, Bar::Devices { allowed: 0, active: 0 });
    // Set between the proof and the commit: it counts.
    let change = ProfileChange { disabled: Some([].into()), ..ProfileChange::default() };
    w.core.change_profile(call!(w), &w.tenant, none.id, change).await.unwrap();
    let late = w.core.finish_activation(call!(w), confirmed, &sealed).await;
    assert!(matches!(late, Err(ActivationError::Barred(_))));
    assert_eq!(w.state(&anna).await, Some((PasswordState::Open, 1)), "only the wrong guess was counted");
    assert!(w.core.devices(&w.tenant, None, Page::first()).await.unwrap().is_empty());
}
