//! Administrators, and users that come from directories.

use hedgerow_shared::secret::Secret;
use hedgerow_shared::{EntityId, TenantId};

use super::{Call, Core, Decided, NewUser, Plan};
use crate::account::{User, UserSource};
use crate::admin::{
    Admin, Asker, Denied, LoginPassword, MAX_ADMINS, Permission, Predefined, RoleId, Subject, authorise,
    checked_password, may_grant,
};
use crate::store::{AdminChange, Change, Store};
use crate::{CoreError, account};

/// Longest name of a user in a directory, characters.
const MAX_EXTERNAL: usize = 255;

impl<S: Store> Core<S> {
    /// A user as somebody who asks, with the role that they have now.
    ///
    /// # Errors
    /// `Denied`: they are no administrator, inactive, or their role is gone; `Store`.
    pub async fn asker(&self, tenant: &TenantId, user: EntityId) -> Result<Asker, CoreError> {
        let admin = self.store.admin(tenant, user).await.map_err(CoreError::Store)?.ok_or(Denied::Permission)?;
        let found = self.store.user(tenant, user).await.map_err(CoreError::Store)?;
        if !found.is_some_and(|user| user.active) {
            return Err(Denied::Permission.into());
        }
        match self.role(tenant, admin.role).await {
            Ok(role) => Ok(Asker::Admin { user, role }),
            Err(CoreError::NotFound { .. }) => Err(Denied::Permission.into()),
            Err(error) => Err(error),
        }
    }

    /// Whether somebody may do something to a user or one of their devices: `admin::authorise`, with the user's groups.
    ///
    /// # Errors
    /// `Denied`, `NotFound` (the user, for whom it would be allowed), `Store`.
    pub async fn authorise_for_user(
        &self,
        tenant: &TenantId,
        asker: &Asker,
        permission: Permission,
        user: EntityId,
    ) -> Result<(), CoreError> {
        let groups = self.groups_of_user(tenant, user).await?.into_keys().collect();
        authorise(asker, permission, Subject::User { groups: &groups })?;
        self.user(tenant, user).await.map(drop)
    }

    /// Administrators, in the order of users' ids.
    ///
    /// # Errors
    /// `Store`.
    pub async fn admins(&self, tenant: &TenantId) -> Result<Vec<Admin>, CoreError> {
        self.store.admins(tenant).await.map_err(CoreError::Store)
    }

    /// The administrator that a user is.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn admin(&self, tenant: &TenantId, user: EntityId) -> Result<Admin, CoreError> {
        let found = self.store.admin(tenant, user).await.map_err(CoreError::Store)?;
        found.ok_or_else(|| CoreError::not_found("administrator", user))
    }

    /// Makes a user an administrator, or gives one another role.
    ///
    /// # Errors
    /// `Denied`: whoever asks lacks something of the new role or of the one there was; `NotFound`; `Invalid`: an inactive
    /// user, too many, or the last with the security role; `Busy`, `Store`.
    pub async fn set_admin(
        &self,
        call: &mut Call<'_>,
        (tenant, asker): (&TenantId, &Asker),
        user: EntityId,
        role: RoleId,
    ) -> Result<Admin, CoreError> {
        let now = call.now;
        self.decide(call, tenant, |_| async move {
            let (asker, who) = (self.again(tenant, asker).await?, self.user(tenant, user).await?);
            let new = self.role(tenant, role).await?;
            may_grant(&asker, &new)?;
            if !who.active {
                return Err(CoreError::invalid("the user", "an inactive user cannot be an administrator"));
            }
            let there = self.store.admin(tenant, user).await.map_err(CoreError::Store)?;
            let admin = match there {
                Some(admin) if admin.role == role => return Ok(Decided::Already(admin)),
                Some(admin) => {
                    self.may_touch(tenant, &asker, &admin).await?;
                    self.keep_a_security_admin(tenant, user, Some(role)).await?;
                    Admin { role, ..admin }
                }
                None => {
                    if self.admins(tenant).await?.len() >= MAX_ADMINS {
                        return Err(CoreError::invalid("the administrator", format!("there are {MAX_ADMINS} already")));
                    }
                    Admin { tenant: tenant.clone(), user, role, created: now, password: None, last_sign_in: None }
                }
            };
            let plan = Plan::default().change(Change::Admin(AdminChange::Put(admin.clone())));
            let told = format!("{}, {}", who.email, new.name);
            Ok(Decided::Commit(plan.record("admin.role", user.to_string(), told), admin))
        })
        .await
    }

    /// A user is no administrator any more; the user stays.
    ///
    /// # Errors
    /// `Denied`, `NotFound`; `Invalid`: the last with the security role; `Busy`, `Store`.
    pub async fn remove_admin(
        &self,
        call: &mut Call<'_>,
        (tenant, asker): (&TenantId, &Asker),
        user: EntityId,
    ) -> Result<(), CoreError> {
        self.decide(call, tenant, |_| async move {
            let (asker, admin) = (self.again(tenant, asker).await?, self.admin(tenant, user).await?);
            self.may_touch(tenant, &asker, &admin).await?;
            self.keep_a_security_admin(tenant, user, None).await?;
            let who = self.user(tenant, user).await?;
            let plan = Plan::default().change(Change::Admin(AdminChange::Delete(user)));
            Ok(Decided::Commit(plan.record("admin.remove", user.to_string(), who.email.as_str()), ()))
        })
        .await
    }

    /// Sets the password that an administrator signs in with here; `SignInGuard::forget` ends their locks. Hashing takes
    /// tens of milliseconds of the calling thread: call it where that disturbs nobody.
    ///
    /// # Errors
    /// `Denied`, `NotFound`; `Invalid`: too short, or the user's directory checks their password; `Busy`, `Store`.
    pub async fn set_admin_password(
        &self,
        call: &mut Call<'_>,
        (tenant, asker): (&TenantId, &Asker),
        user: EntityId,
        (password, must_change): (&Secret, bool),
    ) -> Result<(), CoreError> {
        let who = self.user(tenant, user).await?;
        if who.source != UserSource::Local {
            return Err(CoreError::invalid("the password", "the user's directory keeps it"));
        }
        // Before the work is done.
        let first = self.again(tenant, asker).await?;
        self.may_set_password(tenant, &first, user).await?;
        checked_password(password, who.email.as_str())?;
        let id = user.to_string();
        let place = (&self.kek, [tenant.as_str(), id.as_str()]);
        let made = &LoginPassword::make(password, must_change, place, call.now, call.random)?;
        let email = &who.email;
        self.decide(call, tenant, |_| async move {
            let asker = self.again(tenant, asker).await?;
            self.may_set_password(tenant, &asker, user).await?;
            let admin = Admin { password: Some(made.clone()), ..self.admin(tenant, user).await? };
            let plan = Plan::default().change(Change::Admin(AdminChange::Put(admin)));
            Ok(Decided::Commit(plan.record("admin.password", user.to_string(), email.as_str()), ()))
        })
        .await
    }

    /// Adds a user that a directory knows. The directory checks their password; one of their own they cannot have here.
    ///
    /// # Errors
    /// `Exists` (the address, or the directory's user), `Invalid`, `NotFound` (the tenant), `Busy`, `Store`.
    pub async fn add_directory_user(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        new: NewUser,
        (directory, external): (EntityId, &str),
    ) -> Result<User, CoreError> {
        let fits = (1..=MAX_EXTERNAL).contains(&external.chars().count()) && !external.chars().any(char::is_control);
        if !fits {
            return Err(CoreError::invalid("the directory's name", format!("use 1 to {MAX_EXTERNAL} characters")));
        }
        let user = &User {
            tenant: tenant.clone(),
            id: call.id(),
            email: new.email,
            display_name: account::name("the display name", &new.display_name)?,
            active: true,
            created: call.now,
            source: UserSource::Directory { directory, external: external.to_owned() },
        };
        self.decide(call, tenant, |_| async move {
            let same = self.store.user_by_external(tenant, directory, external).await.map_err(CoreError::Store)?;
            if same.is_some() {
                return Err(CoreError::Exists { kind: "user of the directory", name: external.to_owned() });
            }
            if self.store.user_by_email(tenant, &user.email).await.map_err(CoreError::Store)?.is_some() {
                return Err(CoreError::Exists { kind: "user", name: user.email.to_string() });
            }
            let plan = Plan::default().change(Change::PutUser(user.clone()));
            let told = format!("{}, of directory {directory}", user.email);
            Ok(Decided::Commit(plan.record("user.add", user.id.to_string(), told), user.clone()))
        })
        .await
    }

    /// That at least one active user keeps the security role when this one's becomes `role`, or goes.
    ///
    /// # Errors
    /// `Invalid`, `Store`.
    pub async fn keep_a_security_admin(
        &self,
        tenant: &TenantId,
        user: EntityId,
        role: Option<RoleId>,
    ) -> Result<(), CoreError> {
        const SECURITY: RoleId = RoleId::Predefined(Predefined::Security);
        let admins = self.store.admins(tenant).await.map_err(CoreError::Store)?;
        let has = |admin: &Admin| admin.role == SECURITY;
        if role == Some(SECURITY) || !admins.iter().any(|admin| admin.user == user && has(admin)) {
            return Ok(());
        }
        for other in admins.iter().filter(|admin| admin.user != user && has(admin)) {
            let found = self.store.user(tenant, other.user).await.map_err(CoreError::Store)?;
            if found.is_some_and(|user| user.active) {
                return Ok(());
            }
        }
        Err(CoreError::invalid(
            "the administrator",
            "it is the last with the security role; give that to another first",
        ))
    }

    /// As they stand now: what they were when they began to ask does not count.
    pub(super) async fn again(&self, tenant: &TenantId, asker: &Asker) -> Result<Asker, CoreError> {
        match asker {
            Asker::BreakGlass => Ok(Asker::BreakGlass),
            Asker::Admin { user, .. } => self.asker(tenant, *user).await,
        }
    }

    /// That whoever asks has everything that the administrator has. A role that is gone includes nothing.
    async fn may_touch(&self, tenant: &TenantId, asker: &Asker, admin: &Admin) -> Result<(), CoreError> {
        match self.role(tenant, admin.role).await {
            Ok(role) => Ok(may_grant(asker, &role)?),
            Err(CoreError::NotFound { .. }) => Ok(authorise(asker, Permission::EditAdmins, Subject::Organisation)?),
            Err(error) => Err(error),
        }
    }

    /// One's own, or that of somebody with nothing that one has not.
    async fn may_set_password(&self, tenant: &TenantId, asker: &Asker, user: EntityId) -> Result<(), CoreError> {
        let admin = self.admin(tenant, user).await?;
        match asker {
            Asker::Admin { user: own, .. } if *own == user => Ok(()),
            Asker::Admin { .. } | Asker::BreakGlass => self.may_touch(tenant, asker, &admin).await,
        }
    }
}
