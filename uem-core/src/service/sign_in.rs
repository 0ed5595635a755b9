//! Administrators sign in.
//!
//! ```text
//!   begin_sign_in: counted as wrong, on disk ──► HashJob::run, off the runtime ──► finish_sign_in: right? the count is zero
//! ```

use hedgerow_shared::secret::Secret;
use hedgerow_shared::{EntityId, TenantId};

use super::{Call, Core, Decided, Plan};
use crate::CoreError;
use crate::account::{Email, User, UserSource};
use crate::admin::{Admin, Asker, HashJob};
use crate::store::{AdminChange, Change, Store};

/// A sign-in that has begun.
#[derive(Debug)]
pub struct Attempt {
    /// Whose, if there is such an administrator who may.
    user: Option<EntityId>,
    email: Email,
}

/// Who has signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedIn {
    /// The user.
    pub user: User,
    /// With what they may do.
    pub asker: Asker,
    /// Another password must be chosen before anything else.
    pub must_change: bool,
}

/// Why somebody is not signed in. Strangers are told no more than this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignInRefusal {
    /// No such administrator, or not this password; which of them is not said.
    #[error("the address or the password is wrong")]
    Wrong,
    /// Too many wrong attempts; try again later.
    #[error("too many wrong attempts: try again later")]
    Locked,
}

impl<S: Store> Core<S> {
    /// Begins: the attempt is counted, as a wrong one, before anything is checked. Then run the job, and finish with what it
    /// answers. An address that nobody has costs the same job.
    ///
    /// # Errors
    /// Inside: `Locked`. Outside: `Damaged`, `Busy`, `Store`.
    pub async fn begin_sign_in(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        email: &Email,
        password: Secret,
    ) -> Result<Result<(Attempt, HashJob), SignInRefusal>, CoreError> {
        let now = call.now;
        let counted = self
            .decide(call, tenant, |_| async move {
                let Some(admin) = self.who_signs_in(tenant, email).await? else {
                    return Ok(Decided::Already(Ok(None)));
                };
                let Some(stored) = &admin.password else { return Ok(Decided::Already(Ok(None))) };
                let Some(attempted) = stored.attempted(now) else {
                    return Ok(Decided::Already(Err(SignInRefusal::Locked)));
                };
                let locks = attempted.locked_until.is_some();
                let admin = Admin { password: Some(attempted), ..admin };
                let mut plan = Plan::default().change(Change::Admin(AdminChange::Put(admin.clone())));
                if locks {
                    plan = plan.refused("admin.lock", admin.user.to_string(), email.as_str());
                }
                Ok(Decided::Commit(plan, Ok(Some(admin))))
            })
            .await?;
        let admin = match counted {
            Ok(admin) => admin,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let user = admin.as_ref().map(|admin| admin.user);
        let id = user.map(|id| id.to_string()).unwrap_or_default();
        let stored = admin.as_ref().and_then(|admin| admin.password.as_ref());
        let job = HashJob::new(password, stored, (&self.kek, [tenant.as_str(), &id]))?;
        Ok(Ok((Attempt { user, email: email.clone() }, job)))
    }

    /// Ends a sign-in with what its job answered.
    ///
    /// # Errors
    /// Inside: `Wrong`. Outside: `Busy`, `Store`.
    pub async fn finish_sign_in(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        attempt: Attempt,
        right: bool,
    ) -> Result<Result<SignedIn, SignInRefusal>, CoreError> {
        let (now, attempt) = (call.now, &attempt);
        self.decide(call, tenant, |_| async move {
            let Some(id) = attempt.user else {
                // Of addresses that are nobody's nothing is kept: they would fill the record.
                return Ok(Decided::Already(Err(SignInRefusal::Wrong)));
            };
            let again = self.who_signs_in(tenant, &attempt.email).await?;
            let admin = again.filter(|admin| right && admin.user == id);
            let Some((admin, stored)) = admin.and_then(|admin| Some((admin.clone(), admin.password?))) else {
                let plan = Plan::default().refused("admin.sign_in", id.to_string(), attempt.email.as_str());
                return Ok(Decided::Commit(plan, Err(SignInRefusal::Wrong)));
            };
            let asker = self.asker(tenant, id).await?;
            let user = self.user(tenant, id).await?;
            let must_change = stored.must_change;
            let admin = Admin { password: Some(stored.right()), last_sign_in: Some(now), ..admin };
            let plan = Plan::default().change(Change::Admin(AdminChange::Put(admin)));
            let plan = plan.record("admin.sign_in", id.to_string(), attempt.email.as_str());
            Ok(Decided::Commit(plan, Ok(SignedIn { user, asker, must_change })))
        })
        .await
    }

    /// The administrator with this address who may sign in here.
    async fn who_signs_in(&self, tenant: &TenantId, email: &Email) -> Result<Option<Admin>, CoreError> {
        let user = self.store.user_by_email(tenant, email).await.map_err(CoreError::Store)?;
        let Some(user) = user.filter(|user| user.active && user.source == UserSource::Local) else { return Ok(None) };
        self.store.admin(tenant, user.id).await.map_err(CoreError::Store)
    }
}
