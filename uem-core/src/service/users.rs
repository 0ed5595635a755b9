//! Users and their activation passwords.

use hedgerow_shared::{EntityId, TenantId, UnixTime};

use super::{Call, Core, Plan};
use crate::CoreError;
use crate::account::{self, Email, User, UserSource};
use crate::activation::{self, ActivationPassword, MAX_LIFETIME_SECONDS, PasswordChoice, PasswordState, ShownPassword};
use crate::store::{Change, Page, Store};

/// A user to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUser {
    /// Unique in the tenant.
    pub email: Email,
    /// For people.
    pub display_name: String,
}

/// What of a user is to be another; `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserChange {
    /// Unique in the tenant.
    pub email: Option<Email>,
    /// For people.
    pub display_name: Option<String>,
}

/// An address that may activate, for the relay's look-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenAddress {
    /// The address.
    pub email: Email,
    /// Until when.
    pub expires: UnixTime,
}

impl<S: Store> Core<S> {
    /// Adds an active user.
    ///
    /// # Errors
    /// `Exists`, `Invalid`, `NotFound` (the tenant), `Busy`, `Store`.
    pub async fn add_user(&self, call: &mut Call<'_>, tenant: &TenantId, new: NewUser) -> Result<User, CoreError> {
        let display_name = account::name("the display name", &new.display_name)?;
        let id = call.id();
        let user = User {
            tenant: tenant.clone(),
            id,
            email: new.email,
            display_name,
            active: true,
            created: call.now,
            source: UserSource::Local,
        };
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            if self.store.user_by_email(tenant, &user.email).await.map_err(CoreError::Store)?.is_some() {
                return Err(CoreError::Exists { kind: "user", name: user.email.to_string() });
            }
            let plan = Plan::default().change(Change::PutUser(user.clone())).record(
                "user.add",
                id.to_string(),
                user.email.as_str(),
            );
            if self.commit(call, row, plan).await? {
                return Ok(user);
            }
        }
    }

    /// The user with this address.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn user_by_email(&self, tenant: &TenantId, email: &Email) -> Result<User, CoreError> {
        let found = self.store.user_by_email(tenant, email).await.map_err(CoreError::Store)?;
        found.ok_or_else(|| CoreError::not_found("user", email))
    }

    /// One user.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn user(&self, tenant: &TenantId, id: EntityId) -> Result<User, CoreError> {
        self.store.user(tenant, id).await.map_err(CoreError::Store)?.ok_or_else(|| CoreError::not_found("user", id))
    }

    /// Users, in the order of ids.
    ///
    /// # Errors
    /// `Store`.
    pub async fn users(&self, tenant: &TenantId, page: Page) -> Result<Vec<User>, CoreError> {
        self.store.users(tenant, page).await.map_err(CoreError::Store)
    }

    /// Gives a user another address or name. Their devices, groups and activation password stay theirs.
    ///
    /// # Errors
    /// `NotFound`; `Exists`: somebody else has the address; `Invalid`: the name, or their directory keeps both; `Busy`,
    /// `Store`.
    pub async fn change_user(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        id: EntityId,
        change: UserChange,
    ) -> Result<User, CoreError> {
        let display_name = change.display_name.map(|name| account::name("the display name", &name)).transpose()?;
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let old = self.user(tenant, id).await?;
            let mut user = old.clone();
            user.email = change.email.clone().unwrap_or(user.email);
            user.display_name = display_name.clone().unwrap_or(user.display_name);
            if user == old {
                return Ok(user);
            }
            if user.source != UserSource::Local {
                return Err(CoreError::invalid(
                    "the user",
                    "their directory keeps address and name: change them there",
                ));
            }
            if user.email != old.email
                && self.store.user_by_email(tenant, &user.email).await.map_err(CoreError::Store)?.is_some()
            {
                return Err(CoreError::Exists { kind: "user", name: user.email.to_string() });
            }
            let told = format!("{} ({}), now {} ({})", old.email, old.display_name, user.email, user.display_name);
            let plan = Plan::default().change(Change::PutUser(user.clone()));
            if self.commit(call, row, plan.record("user.change", id.to_string(), told)).await? {
                return Ok(user);
            }
        }
    }

    /// Switches a user on or off. While a user is off nothing activates for them and their devices count as revoked;
    /// an open activation password is withdrawn.
    ///
    /// # Errors
    /// `NotFound`; `Invalid`: the last administrator with the security role stays; `Busy`, `Store`.
    pub async fn set_user_active(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        id: EntityId,
        active: bool,
    ) -> Result<User, CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let mut user = self.user(tenant, id).await?;
            if user.active == active {
                return Ok(user);
            }
            if !active {
                self.keep_a_security_admin(tenant, id, None).await?;
            }
            user.active = active;
            let action = if active { "user.activate" } else { "user.deactivate" };
            let mut plan = Plan::default().publish().change(Change::PutUser(user.clone()));
            if !active {
                plan = plan.change(Change::DeletePassword(id));
            }
            if self.commit(call, row, plan.record(action, id.to_string(), user.email.as_str())).await? {
                return Ok(user);
            }
        }
    }

    /// Gives a user an activation password, in place of the one they may have. `lifetime_seconds` is 1 to
    /// `MAX_LIFETIME_SECONDS` (`DEFAULT_LIFETIME_SECONDS` is a good value).
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (an inactive user; a password too short or too long), `Busy`, `Store`.
    pub async fn set_activation_password(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        user: EntityId,
        choice: PasswordChoice,
        lifetime_seconds: u64,
    ) -> Result<ShownPassword, CoreError> {
        if !(1..=MAX_LIFETIME_SECONDS).contains(&lifetime_seconds) {
            return Err(CoreError::invalid("the lifetime", "use one second to 90 days"));
        }
        let password = match choice {
            PasswordChoice::Generate => activation::generate(call.random),
            PasswordChoice::Set(password) => activation::normal(&password)?,
        };
        let expires = call.now.plus(lifetime_seconds);
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let user = self.user(tenant, user).await?;
            if !user.active {
                return Err(CoreError::invalid("the user", "an inactive user cannot get an activation password"));
            }
            let record = ActivationPassword::new(
                tenant.clone(),
                user.id,
                &password,
                (call.now, expires),
                &self.kek,
                call.random,
            );
            let plan = Plan::default().change(Change::PutPassword(record));
            let plan =
                plan.record("activation.password", user.id.to_string(), format!("{}, until {}", user.email, expires.0));
            if self.commit(call, row, plan).await? {
                return Ok(ShownPassword { password, expires });
            }
        }
    }

    /// Withdraws a user's activation password, if there is one.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Store`.
    pub async fn clear_activation_password(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        user: EntityId,
    ) -> Result<(), CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let user = self.user(tenant, user).await?;
            if self.password(tenant, user.id).await?.is_none() {
                return Ok(());
            }
            let plan = Plan::default().change(Change::DeletePassword(user.id));
            if self
                .commit(call, row, plan.record("activation.withdraw", user.id.to_string(), user.email.as_str()))
                .await?
            {
                return Ok(());
            }
        }
    }

    /// A user's activation password as the administrator may see it: state, expiry, wrong attempts; never itself.
    ///
    /// # Errors
    /// `Store`.
    pub async fn activation_state(
        &self,
        tenant: &TenantId,
        user: EntityId,
        now: UnixTime,
    ) -> Result<Option<(PasswordState, UnixTime, u8)>, CoreError> {
        Ok(self.password(tenant, user).await?.map(|p| (p.state(now), p.expires, p.wrong)))
    }

    /// Addresses with an open activation at `now`: what the relay's look-up may know of.
    ///
    /// # Errors
    /// `Store`.
    pub async fn open_addresses(&self, tenant: &TenantId, now: UnixTime) -> Result<Vec<OpenAddress>, CoreError> {
        let mut open = Vec::new();
        for password in self.store.passwords(tenant).await.map_err(CoreError::Store)? {
            if password.state(now) != PasswordState::Open {
                continue;
            }
            let user = self.store.user(tenant, password.user).await.map_err(CoreError::Store)?;
            open.extend(user.filter(|u| u.active).map(|u| OpenAddress { email: u.email, expires: password.expires }));
        }
        Ok(open)
    }

    pub(super) async fn password(
        &self,
        tenant: &TenantId,
        user: EntityId,
    ) -> Result<Option<ActivationPassword>, CoreError> {
        self.store.password(tenant, user).await.map_err(CoreError::Store)
    }
}
