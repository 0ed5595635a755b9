//! The catalogue of apps, configurations, groups of apps, lists.

use hedgerow_shared::{EntityId, TenantId};
use serde_json::{Map, Value};

use super::groups::checked_description;
use super::{Call, Core, Decided, Plan};
use crate::app::{
    self, App, AppConfig, AppGroup, Listing, MAX_CATALOGUE, MAX_CONFIG, MAX_CONFIGS, MAX_IN_GROUP, MAX_LISTED,
    MAX_VERSIONS, Source,
};
use crate::group::name_key;
use crate::profile::Platform;
use crate::store::{AppChange, Change, Page, Store};
use crate::{CoreError, account};

/// An app to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewApp {
    /// On which platform.
    pub platform: Platform,
    /// Unique on its platform.
    pub identifier: String,
    /// For people.
    pub name: String,
    /// Who makes it; may be empty.
    pub vendor: String,
    /// The newest first.
    pub versions: Vec<String>,
    /// Where it comes from.
    pub source: Source,
}

impl<S: Store> Core<S> {
    /// Adds an app to the catalogue.
    ///
    /// # Errors
    /// `Exists`, `Invalid`, `NotFound` (the tenant), `Busy`, `Store`.
    pub async fn add_app(&self, call: &mut Call<'_>, tenant: &TenantId, new: NewApp) -> Result<App, CoreError> {
        if new.versions.len() > MAX_VERSIONS {
            return Err(CoreError::invalid("the versions", format!("at most {MAX_VERSIONS} are kept")));
        }
        let vendor = match new.vendor.trim() {
            "" => String::new(),
            vendor => account::name("the vendor", vendor)?,
        };
        let source = match new.source {
            Source::Store(at) if at.trim().is_empty() => Source::Store(String::new()),
            Source::Store(at) => Source::Store(app::text("the source", &at)?),
            Source::File(at) => Source::File(app::text("the source", &at)?),
        };
        let app = &App {
            tenant: tenant.clone(),
            id: call.id(),
            platform: new.platform,
            identifier: app::text("the identifier", &new.identifier)?,
            name: account::name("the name", &new.name)?,
            vendor,
            versions: new.versions.iter().map(|v| app::text("the version", v)).collect::<Result<_, _>>()?,
            source,
            created: call.now,
            modified: call.now,
        };
        self.decide(call, tenant, |_| async move {
            let there = self.store.app_by_identifier(tenant, app.platform, &app.identifier).await;
            if there.map_err(CoreError::Store)?.is_some() {
                return Err(CoreError::Exists { kind: "app", name: named(app) });
            }
            if self.store.count_apps(tenant).await.map_err(CoreError::Store)? >= MAX_CATALOGUE {
                return Err(CoreError::invalid("the app", format!("the catalogue has {MAX_CATALOGUE} already")));
            }
            let plan = Plan::default().change(Change::App(AppChange::Put(app.clone())));
            Ok(Decided::Commit(plan.record("app.add", app.id.to_string(), named(app)), app.clone()))
        })
        .await
    }

    /// One app.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn app(&self, tenant: &TenantId, id: EntityId) -> Result<App, CoreError> {
        self.store.app(tenant, id).await.map_err(CoreError::Store)?.ok_or_else(|| CoreError::not_found("app", id))
    }

    /// The app with this identifier on a platform.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn app_by_identifier(
        &self,
        tenant: &TenantId,
        platform: Platform,
        identifier: &str,
    ) -> Result<App, CoreError> {
        let found = self.store.app_by_identifier(tenant, platform, identifier).await.map_err(CoreError::Store)?;
        found.ok_or_else(|| CoreError::not_found("app", format!("{platform}/{identifier}")))
    }

    /// Apps, in the order of ids.
    ///
    /// # Errors
    /// `Store`.
    pub async fn apps(&self, tenant: &TenantId, page: Page) -> Result<Vec<App>, CoreError> {
        self.store.apps(tenant, page).await.map_err(CoreError::Store)
    }

    /// Removes an app with its configurations and assignments. Where it is installed it stays.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Store`.
    pub async fn remove_app(&self, call: &mut Call<'_>, tenant: &TenantId, id: EntityId) -> Result<App, CoreError> {
        self.decide(call, tenant, |_| async move {
            let app = self.app(tenant, id).await?;
            let plan = Plan::default().change(Change::App(AppChange::Delete(id)));
            Ok(Decided::Commit(plan.record("app.remove", id.to_string(), named(&app)), app))
        })
        .await
    }

    /// Configurations of an app, the first in rank first.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn app_configs(&self, tenant: &TenantId, app: EntityId) -> Result<Vec<AppConfig>, CoreError> {
        self.app(tenant, app).await?;
        self.store.app_configs(tenant, app).await.map_err(CoreError::Store)
    }

    /// Sets an app's configuration of this name: adds it behind all others, or replaces what it sets. Settings may hold
    /// secrets: they are not in the audit record.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`, `Busy`, `Store`.
    pub async fn put_app_config(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        app: EntityId,
        (name, settings): (&str, Map<String, Value>),
    ) -> Result<AppConfig, CoreError> {
        let (name, settings, id) = (&account::name("the name", name)?, &settings, call.id());
        let size = serde_json::to_string(settings).map_or(usize::MAX, |text| text.len());
        if size > MAX_CONFIG {
            return Err(CoreError::invalid("the settings", format!("{size} bytes; at most {MAX_CONFIG} are kept")));
        }
        self.decide(call, tenant, |_| async move {
            let of = self.app(tenant, app).await?;
            let others = self.store.app_configs(tenant, app).await.map_err(CoreError::Store)?;
            let config = match others.iter().find(|other| name_key(&other.name) == name_key(name)) {
                Some(there) => AppConfig { settings: settings.clone(), ..there.clone() },
                None if others.len() >= MAX_CONFIGS => {
                    return Err(CoreError::invalid("the configuration", format!("there are {MAX_CONFIGS} of its app")));
                }
                None => AppConfig {
                    tenant: tenant.clone(),
                    id,
                    app,
                    name: name.clone(),
                    rank: others.last().map_or(1, |last| last.rank + 1),
                    settings: settings.clone(),
                },
            };
            let plan = Plan::default().change(Change::App(AppChange::PutConfig(config.clone())));
            let told = format!("{}, {}", named(&of), config.name);
            Ok(Decided::Commit(plan.record("app.config.set", config.id.to_string(), told), config))
        })
        .await
    }

    /// Gives a configuration another place among its app's, from 1; those between move by one. Beyond the last is the last.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`, `Busy`, `Store`.
    pub async fn rank_app_config(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        id: EntityId,
        to: u32,
    ) -> Result<Vec<AppConfig>, CoreError> {
        let at = usize::try_from(to).unwrap_or(usize::MAX).checked_sub(1);
        let at = at.ok_or_else(|| CoreError::invalid("the rank", "ranks begin with 1"))?;
        self.decide(call, tenant, |_| async move {
            let config = self.app_config(tenant, id).await?;
            let mut order = self.store.app_configs(tenant, config.app).await.map_err(CoreError::Store)?;
            order.retain(|other| other.id != id);
            order.insert(at.min(order.len()), config.clone());
            let mut plan = Plan::default();
            for (rank, moved) in (1..).zip(&mut order).filter(|(rank, config)| config.rank != *rank) {
                moved.rank = rank;
                plan = plan.change(Change::App(AppChange::PutConfig(moved.clone())));
            }
            if plan.changes.is_empty() {
                return Ok(Decided::Already(order));
            }
            let told = format!("{}, place {to}", config.name);
            Ok(Decided::Commit(plan.record("app.config.rank", id.to_string(), told), order))
        })
        .await
    }

    /// Removes a configuration; assignments with it stay, without one.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Store`.
    pub async fn remove_app_config(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        id: EntityId,
    ) -> Result<AppConfig, CoreError> {
        self.decide(call, tenant, |_| async move {
            let config = self.app_config(tenant, id).await?;
            let plan = Plan::default().change(Change::App(AppChange::DeleteConfig(id)));
            Ok(Decided::Commit(plan.record("app.config.remove", id.to_string(), config.name.as_str()), config))
        })
        .await
    }

    /// One configuration.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn app_config(&self, tenant: &TenantId, id: EntityId) -> Result<AppConfig, CoreError> {
        let found = self.store.app_config(tenant, id).await.map_err(CoreError::Store)?;
        found.ok_or_else(|| CoreError::not_found("app configuration", id))
    }

    /// Adds a group of apps with none in it.
    ///
    /// # Errors
    /// `Exists`, `Invalid`, `NotFound` (the tenant), `Busy`, `Store`.
    pub async fn add_app_group(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        name: &str,
        description: &str,
    ) -> Result<AppGroup, CoreError> {
        let (name, description) = (account::name("the name", name)?, checked_description(description)?);
        let group = &AppGroup { tenant: tenant.clone(), id: call.id(), name, description, created: call.now };
        self.decide(call, tenant, |_| async move {
            let there = self.store.app_group_by_name(tenant, &name_key(&group.name)).await.map_err(CoreError::Store)?;
            if there.is_some() {
                return Err(CoreError::Exists { kind: "group of apps", name: group.name.clone() });
            }
            let plan = Plan::default().change(Change::App(AppChange::PutGroup(group.clone())));
            let plan = plan.record("app.group.add", group.id.to_string(), group.name.as_str());
            Ok(Decided::Commit(plan, group.clone()))
        })
        .await
    }

    /// One group of apps.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn app_group(&self, tenant: &TenantId, id: EntityId) -> Result<AppGroup, CoreError> {
        let found = self.store.app_group(tenant, id).await.map_err(CoreError::Store)?;
        found.ok_or_else(|| CoreError::not_found("group of apps", id))
    }

    /// The group of apps of this name, whatever its case.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn app_group_by_name(&self, tenant: &TenantId, name: &str) -> Result<AppGroup, CoreError> {
        let found = self.store.app_group_by_name(tenant, &name_key(name)).await.map_err(CoreError::Store)?;
        found.ok_or_else(|| CoreError::not_found("group of apps", name))
    }

    /// Groups of apps, in the order of ids.
    ///
    /// # Errors
    /// `Store`.
    pub async fn app_groups(&self, tenant: &TenantId, page: Page) -> Result<Vec<AppGroup>, CoreError> {
        self.store.app_groups(tenant, page).await.map_err(CoreError::Store)
    }

    /// Apps of a group, in the order of ids, at most `MAX_IN_GROUP`.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn apps_in_group(&self, tenant: &TenantId, group: EntityId) -> Result<Vec<App>, CoreError> {
        self.app_group(tenant, group).await?;
        self.store.apps_in_group(tenant, group).await.map_err(CoreError::Store)
    }

    /// Removes a group of apps and its assignments.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Store`.
    pub async fn remove_app_group(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        id: EntityId,
    ) -> Result<AppGroup, CoreError> {
        self.decide(call, tenant, |_| async move {
            let group = self.app_group(tenant, id).await?;
            let plan = Plan::default().change(Change::App(AppChange::DeleteGroup(id)));
            Ok(Decided::Commit(plan.record("app.group.remove", id.to_string(), group.name.as_str()), group))
        })
        .await
    }

    /// Puts an app into a group of apps, or takes it out. Done already is done.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (too many), `Busy`, `Store`.
    pub async fn set_in_app_group(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        (group, app): (EntityId, EntityId),
        is_in: bool,
    ) -> Result<(), CoreError> {
        self.decide(call, tenant, |_| async move {
            let (into, of) = (self.app_group(tenant, group).await?, self.app(tenant, app).await?);
            let there = self.store.apps_in_group(tenant, group).await.map_err(CoreError::Store)?;
            if there.iter().any(|other| other.id == app) == is_in {
                return Ok(Decided::Already(()));
            }
            if is_in && there.len() >= MAX_IN_GROUP {
                return Err(CoreError::invalid("the group of apps", format!("it has {MAX_IN_GROUP} already")));
            }
            let (action, change) = match is_in {
                true => ("app.group.join", AppChange::PutMember { group, app }),
                false => ("app.group.leave", AppChange::DeleteMember { group, app }),
            };
            let plan = Plan::default().change(Change::App(change));
            let told = format!("{}, {}", named(&of), into.name);
            Ok(Decided::Commit(plan.record(action, group.to_string(), told), ()))
        })
        .await
    }

    /// Puts an identifier, or the begin of identifiers and `*`, on a list, or takes it off. Done already is done.
    ///
    /// # Errors
    /// `Invalid`, `NotFound` (the tenant), `Busy`, `Store`.
    pub async fn set_listed(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        listing: Listing,
        is_on: bool,
    ) -> Result<(), CoreError> {
        let identifier = app::text("the identifier", &listing.identifier)?;
        if identifier.strip_suffix('*').unwrap_or(&identifier).contains('*') {
            return Err(CoreError::invalid("the identifier", "a * stands at the end"));
        }
        let listing = &Listing { identifier, ..listing };
        self.decide(call, tenant, |_| async move {
            let there = self.store.listings(tenant, Some(listing.platform)).await.map_err(CoreError::Store)?;
            if there.contains(listing) == is_on {
                return Ok(Decided::Already(()));
            }
            if is_on && there.iter().filter(|other| other.list == listing.list).count() >= MAX_LISTED {
                return Err(CoreError::invalid("the list", format!("it has {MAX_LISTED} entries already")));
            }
            let (action, change) = match is_on {
                true => ("app.list.add", AppChange::List(listing.clone())),
                false => ("app.list.remove", AppChange::Unlist(listing.clone())),
            };
            let subject = format!("{}/{}", listing.platform, listing.identifier);
            let plan = Plan::default().change(Change::App(change));
            Ok(Decided::Commit(plan.record(action, subject, listing.list.as_str()), ()))
        })
        .await
    }

    /// The lists, of one platform or of all.
    ///
    /// # Errors
    /// `Store`.
    pub async fn listings(&self, tenant: &TenantId, platform: Option<Platform>) -> Result<Vec<Listing>, CoreError> {
        self.store.listings(tenant, platform).await.map_err(CoreError::Store)
    }
}

/// For the audit record and refusals.
pub(super) fn named(app: &App) -> String {
    format!("{}/{}", app.platform, app.identifier)
}
