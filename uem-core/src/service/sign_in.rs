//! Administrators sign in.
//!
//! ```text
//!   SignInGuard::admit ──► begin_sign_in ──► HashJob::run, off the runtime ──► finish_sign_in ──► SignInGuard::right
//!   counted as wrong                                                              └── wrong: record_wrong_sign_ins, later
//! ```
//!
//! Strangers learn from nothing in it, nor from how long it takes, whether an address is an administrator's: nothing is
//! written before they have their answer.

use std::collections::BTreeMap;

use hedgerow_shared::secret::Secret;
use hedgerow_shared::{EntityId, TenantId};

use super::{Call, Core, Decided, Plan};
use crate::CoreError;
use crate::account::{Email, User, UserSource};
use crate::admin::{Admin, Admitted, Asker, HashJob, LoginPassword, Source};
use crate::store::{AdminChange, Change, Store};

/// A sign-in that has begun.
#[derive(Debug)]
pub struct Attempt {
    /// Whose, and against what it is checked, if there is such an administrator who may.
    of: Option<(EntityId, LoginPassword)>,
    admitted: Admitted,
}

/// Who has signed in.
#[derive(Debug)]
pub struct SignedIn {
    /// The user.
    pub user: User,
    /// With what they may do.
    pub asker: Asker,
    /// Another password must be chosen before anything else.
    pub must_change: bool,
    /// For `SignInGuard::right`.
    pub admitted: Admitted,
}

/// No such administrator, or not this password; strangers are not told which.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("the address or the password is wrong")]
pub struct WrongSignIn {
    /// Whose the address is, where it is an administrator's.
    user: Option<EntityId>,
    from: Source,
}

impl<S: Store> Core<S> {
    /// Begins. Then run the job, and finish with what it answers. An address that nobody has costs the same.
    ///
    /// # Errors
    /// `Damaged`, `Store`.
    pub async fn begin_sign_in(&self, admitted: Admitted, password: Secret) -> Result<(Attempt, HashJob), CoreError> {
        let admin = self.who_signs_in(&admitted.tenant, &admitted.email).await?;
        let of = admin.and_then(|admin| Some((admin.user, admin.password?)));
        let id = of.as_ref().map(|(id, _)| id.to_string()).unwrap_or_default();
        let stored = of.as_ref().map(|(_, stored)| stored);
        let job = HashJob::new(password, stored, (&self.kek, [admitted.tenant.as_str(), &id]))?;
        Ok((Attempt { of, admitted }, job))
    }

    /// Ends a sign-in with what its job answered.
    ///
    /// # Errors
    /// Inside: `WrongSignIn`. Outside: `Busy`, `Store`.
    pub async fn finish_sign_in(
        &self,
        call: &mut Call<'_>,
        attempt: Attempt,
        right: bool,
    ) -> Result<Result<SignedIn, WrongSignIn>, CoreError> {
        let (now, Attempt { of, admitted }) = (call.now, attempt);
        let user = of.as_ref().map(|(id, _)| *id);
        let wrong = || WrongSignIn { user, from: admitted.source };
        let Some((id, checked)) = of.as_ref().filter(|_| right) else { return Ok(Err(wrong())) };
        let (tenant, email, id) = (&admitted.tenant, &admitted.email, *id);
        let found = self
            .decide(call, tenant, |_| async move {
                // Since it began they may have become nobody, or have another password.
                let again = self.who_signs_in(tenant, email).await?;
                let again = again.filter(|admin| admin.user == id && admin.password.as_ref() == Some(checked));
                let Some(admin) = again else { return Ok(Decided::Already(None)) };
                let asker = self.asker(tenant, id).await?;
                let user = self.user(tenant, id).await?;
                let admin = Admin { last_sign_in: Some(now), ..admin };
                let plan = Plan::default().change(Change::Admin(AdminChange::Put(admin)));
                let told = format!("{email} from {}", admitted.source);
                Ok(Decided::Commit(
                    plan.record("admin.sign_in", id.to_string(), told),
                    Some((user, asker, checked.must_change)),
                ))
            })
            .await?;
        Ok(match found {
            Some((user, asker, must_change)) => Ok(SignedIn { user, asker, must_change, admitted }),
            None => Err(wrong()),
        })
    }

    /// Puts wrong sign-ins into the record, each with how often there was one like it: after everybody has their answer. Of
    /// addresses that are nobody's only how many: people type passwords where the address belongs.
    ///
    /// # Errors
    /// `Busy`, `Store`.
    pub async fn record_wrong_sign_ins(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        wrong: &BTreeMap<WrongSignIn, u32>,
    ) -> Result<(), CoreError> {
        self.decide(call, tenant, |_| async move {
            let mut plan = Plan::default();
            for (WrongSignIn { user, from }, times) in wrong.iter().filter(|(wrong, _)| wrong.user.is_some()) {
                let id = user.map(|id| id.to_string()).unwrap_or_default();
                plan = plan.refused("admin.sign_in", id, format!("{times} times from {from}"));
            }
            let strangers = wrong.iter().filter(|(wrong, _)| wrong.user.is_none());
            let (sources, times) =
                strangers.fold((0u32, 0u32), |(n, sum), (_, times)| (n + 1, sum.saturating_add(*times)));
            if times > 0 {
                let told = format!("{times} times from {sources} sources, with addresses that are no administrator's");
                plan = plan.refused("admin.sign_in", tenant.to_string(), told);
            }
            Ok(if wrong.is_empty() { Decided::Already(()) } else { Decided::Commit(plan, ()) })
        })
        .await
    }

    /// The administrator with this address who may sign in here. It asks as much for an address that nobody has.
    async fn who_signs_in(&self, tenant: &TenantId, email: &Email) -> Result<Option<Admin>, CoreError> {
        let user = self.store.user_by_email(tenant, email).await.map_err(CoreError::Store)?;
        let user = user.filter(|user| user.active && user.source == UserSource::Local);
        let id = user.map_or(EntityId::from_random([0; 16]), |user| user.id);
        self.store.admin(tenant, id).await.map_err(CoreError::Store)
    }
}
