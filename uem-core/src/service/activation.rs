//! The core's half of activation. What a stranger sees is alike for everybody: the same messages, the same curve
//! work, one durable write per wrong attempt, one error.

use std::fmt;
use std::sync::Arc;

use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::Identity;
use hedgerow_shared::{EntityId, Role, SessionId, TenantId, UnixTime};

use super::{Actor, Call, Core, Plan};
use crate::CoreError;
use crate::account::{self, Device, DeviceState, User};
use crate::activation::pake::{Confirmation, Context, EXPORTER, Offer, PakeError, Proof, Responder, Sealed, Start};
use crate::activation::{
    ActivationError, ActivationPassword, Confirmed, EnrolReply, EnrolRequest, Known, MAX_WRONG, PasswordState, Refusal,
    SESSION_SECONDS, Started,
};
use crate::ca::CertificateRequest;
use crate::profile::{self, Activation, ActivationType, Barred, Category, Platform};
use crate::random;
use crate::store::{Change, Store};

impl<S: Store> Core<S> {
    /// Begins an activation: the offer goes to the device, `Started` stays with the TLS session whose exporter it
    /// is. Who may not activate gets an offer too, made with a random password. The caller limits how often
    /// strangers may ask: each time costs milliseconds of curve arithmetic.
    ///
    /// # Errors
    /// `Core` only.
    pub async fn begin_activation(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        start: &Start,
        exporter: [u8; EXPORTER],
    ) -> Result<(Started, Offer), ActivationError> {
        let tenant = self.load(tenant).await?.id;
        let decoy = Secret::new(random::bytes::<16>(call.random).to_vec());
        let (known, password) = match self.may_activate(call.now, &tenant, start).await? {
            Ok((user, password)) => {
                let text = password.open(&self.kek)?;
                (Ok(Known { user, password: password.id }), text)
            }
            Err(refusal) => (Err(refusal), decoy),
        };
        let session = SessionId::from_random(random::bytes(call.random));
        let context = Context { user: start.user.clone(), tenant: tenant.clone(), exporter };
        let offered = Responder::offer(context, &password, session, call.random);
        let (responder, offer) = offered.map_err(|_| CoreError::Randomness)?;
        let until = call.now.plus(SESSION_SECONDS);
        Ok((Started { tenant, session, responder, known, until }, offer))
    }

    /// Checks the device's proof. A wrong one is counted, durably, before this returns; the fifth blocks the
    /// password. A proof that is right while the password is blocked is refused like a wrong one.
    ///
    /// # Errors
    /// `Refused`, `Unlicensed`, `Barred`, `Core`.
    pub async fn confirm_activation(
        &self,
        call: &mut Call<'_>,
        started: Started,
        proof: &Proof,
    ) -> Result<(Confirmed, Confirmation), ActivationError> {
        let Started { tenant, session, responder, known, until } = started;
        // The arithmetic comes first for everybody.
        let confirmed = responder.confirm(proof);
        let known = match known {
            Ok(known) if call.now < until => known,
            Ok(_) => return self.refuse(call, &tenant, Refusal::TooLate).await,
            Err(refusal) => return self.refuse(call, &tenant, refusal).await,
        };
        match confirmed {
            Ok((channel, confirmation)) => match self.still_open(call.now, &tenant, &known).await? {
                // Only now: what licence and profile allow is nobody's business who does not know a password.
                Ok(_) => {
                    if let Some(why) = self.unlicensed(&tenant, call.now).await? {
                        return self.refuse_known(call, &tenant, known.user.id, why).await;
                    }
                    if let Some(why) = self.barred_on_all(&tenant, known.user.id).await? {
                        return self.refuse_known(call, &tenant, known.user.id, why).await;
                    }
                    Ok((Confirmed { tenant, session, channel, known, until }, confirmation))
                }
                Err(refusal) => self.refuse(call, &tenant, refusal).await,
            },
            Err(PakeError::Unexpected) => self.refuse(call, &tenant, Refusal::Malformed).await,
            // A share that no honest end sends tests no guess, but whoever sends it is no friend: counted as well.
            Err(_) => self.count_wrong(call, &tenant, &known).await,
        }
    }

    /// Certifies the device's key; the password is used up in the same commit. The reply goes to the device.
    ///
    /// # Errors
    /// `Refused`, `Unlicensed` and `Barred` (the password is not used up then), `Core`.
    pub async fn finish_activation(
        &self,
        call: &mut Call<'_>,
        confirmed: Confirmed,
        sealed: &Sealed,
    ) -> Result<(Sealed, Device), ActivationError> {
        let Confirmed { tenant, mut channel, known, until, .. } = confirmed;
        if call.now >= until {
            return Err(ActivationError::Refused(Refusal::TooLate));
        }
        let malformed = ActivationError::Refused(Refusal::Malformed);
        let Ok(plaintext) = channel.open(sealed) else { return Err(malformed) };
        let Ok(request) = serde_json::from_slice::<EnrolRequest>(&plaintext) else { return Err(malformed) };
        let Ok(csr) = CertificateRequest::from_der(&request.csr) else { return Err(malformed) };
        let id = call.id();
        call.actor = Actor::Device(id);
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(&tenant).await?;
            let user = match self.still_open(call.now, &tenant, &known).await? {
                Ok(user) => user,
                Err(refusal) => return Err(ActivationError::Refused(refusal)),
            };
            // Others may have taken the last seat since; the commit below fails where somebody takes it meanwhile.
            if let Some(why) = self.unlicensed(&tenant, call.now).await? {
                drop(turn);
                return self.refuse_known(call, &tenant, user.id, why).await;
            }
            let platform = account::told(&request.platform);
            let activation = match self.admitted(&tenant, user.id, Platform::told(&platform)).await? {
                Ok(activation) => activation,
                Err(why) => {
                    drop(turn);
                    return self.refuse_known(call, &tenant, user.id, why).await;
                }
            };
            let identity =
                Identity { tenant: tenant.clone(), role: Role::Device, id, group: None, origins: Vec::new() };
            let authority = self.authority(&row)?;
            let issued = authority.issue(&csr, &identity, call.now, call.random).map_err(CoreError::from)?;
            let device = Device {
                tenant: tenant.clone(),
                id,
                user: user.id,
                name: account::told(&request.name),
                platform,
                certificate: issued.record.clone(),
                state: DeviceState::Active,
                created: call.now,
                revoked: None,
                last_seen: Some(call.now),
                obeys: None,
                activation,
            };
            let reply = EnrolReply {
                device: id,
                email: user.email.clone(),
                display_name: user.display_name.clone(),
                ca: row.ca_certificate.clone(),
                certificate: issued.certificate,
                relays: row.settings.relays.clone(),
                relay_name: row.settings.relay_name.clone(),
                relay_ca_pem: row.settings.relay_ca_pem.clone(),
                activation: activation.map(|activation| activation.to_string()),
            };
            let plan = Plan::default()
                .change(Change::DeletePassword(user.id))
                .change(Change::PutDevice(device.clone()))
                .change(Change::AddCertificate(issued.record))
                .record(
                    "device.activate",
                    id.to_string(),
                    format!(
                        "{}, {}, {}, {}",
                        user.email,
                        device.name,
                        device.platform,
                        activation.map_or("no type", ActivationType::as_str)
                    ),
                );
            if self.commit(call, row, plan).await? {
                let reply = serde_json::to_vec(&reply).map_err(|e| CoreError::invalid("the reply", e.to_string()))?;
                let sealed =
                    channel.seal(&reply, call.random).map_err(|_| CoreError::invalid("the reply", "it is too long"))?;
                return Ok((sealed, device));
            }
        }
    }

    /// The user with an open password, or why not.
    async fn may_activate(
        &self,
        now: UnixTime,
        tenant: &TenantId,
        start: &Start,
    ) -> Result<Result<(User, ActivationPassword), Refusal>, CoreError> {
        let user = self.store.user_by_email(tenant, &start.user).await.map_err(CoreError::Store)?;
        // Asked for unknown users too, with an id that nobody has, so that the same questions go to the store.
        let id = user.as_ref().map_or(EntityId::from_random([0; 16]), |u| u.id);
        let password = self.password(tenant, id).await?;
        let Some(user) = user else { return Ok(Err(Refusal::UnknownUser)) };
        let Some(password) = password else { return Ok(Err(Refusal::NoPassword)) };
        Ok(match password.state(now) {
            _ if !user.active => Err(Refusal::InactiveUser),
            PasswordState::Open => Ok((user, password)),
            PasswordState::Expired => Err(Refusal::Expired),
            PasswordState::Blocked => Err(Refusal::Blocked),
        })
    }

    /// Whether the password that a session was begun with is still the user's and open.
    async fn still_open(
        &self,
        now: UnixTime,
        tenant: &TenantId,
        known: &Known,
    ) -> Result<Result<User, Refusal>, CoreError> {
        let start = Start { user: known.user.email.clone() };
        Ok(match self.may_activate(now, tenant, &start).await? {
            Ok((user, password)) if password.id == known.password => Ok(user),
            Ok(_) => Err(Refusal::NoPassword),
            Err(refusal) => Err(refusal),
        })
    }

    /// Counts a wrong attempt; the fifth wipes the password.
    async fn count_wrong<T>(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        known: &Known,
    ) -> Result<T, ActivationError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let mut password = match self.password(tenant, known.user.id).await? {
                Some(password) if password.id == known.password => password,
                Some(_) | None => {
                    drop(turn);
                    return self.refuse(call, tenant, Refusal::NoPassword).await;
                }
            };
            if password.state(call.now) == PasswordState::Blocked {
                drop(turn);
                return self.refuse(call, tenant, Refusal::Blocked).await;
            }
            password.wrong = password.wrong.saturating_add(1);
            if password.wrong >= MAX_WRONG {
                password.sealed = None;
            }
            let detail = format!("{}, wrong attempt {} of {MAX_WRONG}", known.user.email, password.wrong);
            let plan = Plan::default().change(Change::PutPassword(password));
            if self.commit(call, row, plan.refused("activation.refuse", known.user.id.to_string(), detail)).await? {
                return Err(ActivationError::Refused(Refusal::WrongPassword));
            }
        }
    }

    /// Whether the user's activation profile lets one more device of this platform in, and as what.
    async fn admitted(
        &self,
        tenant: &TenantId,
        user: EntityId,
        platform: Option<Platform>,
    ) -> Result<Result<Option<ActivationType>, Barred>, CoreError> {
        let of = self.profiles_for(tenant, user).await?;
        let active = self.store.active_devices(tenant, Some(user)).await.map_err(CoreError::Store)?;
        by_profile(of, platform, active)
    }

    /// Why no device of the user may activate, whatever its platform, which is not known before the last message. A profile
    /// may be switched off for a platform, so each is asked for.
    async fn barred_on_all(&self, tenant: &TenantId, user: EntityId) -> Result<Option<Barred>, CoreError> {
        let of = self.profiles_for(tenant, user).await?;
        let active = self.store.active_devices(tenant, Some(user)).await.map_err(CoreError::Store)?;
        let mut first = None;
        for platform in [None].into_iter().chain(Platform::ALL.map(Some)) {
            match by_profile(of.clone(), platform, active)? {
                Ok(_) => return Ok(None),
                Err(why) => first = first.or(Some(why)),
            }
        }
        Ok(first)
    }

    /// Refuses for want of a licence or by a profile, audited: who gets here knows the password, which stays as it is.
    async fn refuse_known<T>(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        user: EntityId,
        why: impl fmt::Display + Into<ActivationError>,
    ) -> Result<T, ActivationError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let plan = Plan::default().refused("activation.refuse", user.to_string(), why.to_string());
            if self.commit(call, row, plan).await? {
                return Err(why.into());
            }
        }
    }

    /// Refuses with the same durable write that a counted attempt makes, so that the time taken does not tell
    /// whether there is such a user. Not audited: strangers must not be able to fill the record.
    async fn refuse<T>(&self, call: &mut Call<'_>, tenant: &TenantId, refusal: Refusal) -> Result<T, ActivationError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            if self.commit(call, row, Plan::default()).await? {
                return Err(ActivationError::Refused(refusal));
            }
        }
    }
}

/// What the activation profile among these says to a device of the platform.
fn by_profile(
    (assigned, defaults): (Vec<profile::Assigned>, Vec<Arc<profile::Profile>>),
    platform: Option<Platform>,
    active: u64,
) -> Result<Result<Option<ActivationType>, Barred>, CoreError> {
    let found = profile::effective(assigned, defaults, platform);
    let found = found.into_iter().find(|one| one.profile.category == Category::Activation);
    let (name, settings) = match &found {
        Some(found) => (found.profile.name.as_str(), Activation::read(&found.profile.settings)?),
        None => ("", Activation::default()),
    };
    Ok(settings.admits(platform, active).map_err(|bar| Barred { profile: name.to_owned(), bar }))
}
