//! What a tenant's licence lets it do here: which features, how many devices, until when.
//!
//! ```text
//!   core: LicencePresent --> signature, tenant, order --> store --> admission of links, openings, seats
//! ```
//! The newest licence of a tenant lies in the store, so that it counts while the tenant's core is away and after a
//! restart. It counts as long as the key that signed it stands in `licences.keys`. A tenant without a licence that
//! counts is unlimited, or where `licences.required` is set, refused.
//!
//! What happens to what runs: a licence that ends, or a newer one with fewer features or seats, refuses new openings
//! and further devices, and cuts nothing. Only the end of the grace, where a licence is required, cuts: links, lanes and
//! tunnels of devices and nodes, and what is passed through by name to anything but the core, within 5 s. The core's link,
//! its services for devices and the web services go on, so that the tenant can be mended. Where none is required, a
//! licence that has ended keeps its limits and refuses nothing more.

use std::collections::HashMap;
use std::sync::Arc;

use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::verify::licence::{Feature, Licence, LicenceError, LicenceKey, SignedLicence, Standing};
use hedgerow_shared::{EntityId, Role, TenantId, UnixTime};
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};

use crate::registry::Registry;
use crate::store::{Store, StoreError, Tenant};

/// How often a tenant's operator is reminded of a licence that ends or has ended.
const REMIND_SECONDS: u64 = 24 * 3600;

/// A licence that the store keeps, and which key signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// As it came.
    pub signed: SignedLicence,
    /// What it says.
    pub licence: Licence,
    /// `LicenceKey::id` of the key that it was verified with.
    pub key: [u8; 32],
}

/// Why something was refused. Each is a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A licence is required and none counts.
    Missing,
    /// It is not valid yet.
    NotYet,
    /// It has ended, and its grace too.
    Expired,
    /// It does not include the feature.
    Feature,
    /// As many devices are linked as it allows.
    Seats,
}

impl Reason {
    const ALL: [Self; 5] = [Self::Missing, Self::NotYet, Self::Expired, Self::Feature, Self::Seats];

    fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::NotYet => "not_yet",
            Self::Expired => "expired",
            Self::Feature => "feature",
            Self::Seats => "seats",
        }
    }
}

/// A refusal that is not counted yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    fault: Fault,
}

impl Refused {
    fn new(reason: Reason, text: String) -> Self {
        let code = if reason == Reason::Seats { Code::Limited } else { Code::Forbidden };
        Self { reason, fault: Fault::new(code, text) }
    }

    /// Its words, for those who are told of it without being refused now.
    #[must_use]
    pub fn fault(self) -> Fault {
        self.fault
    }

    /// What the peer is told; from here on it counts in `hedgerow_relay_licence_refused_total`.
    #[must_use]
    pub fn counted(self) -> Fault {
        metrics::counter!("hedgerow_relay_licence_refused_total", "reason" => self.reason.label()).increment(1);
        self.fault
    }
}

/// What came of a licence that was shown: metric labels.
const RESULTS: [&str; 9] =
    ["accepted", "unchanged", "no_keys", "signature", "malformed", "tenant", "not_yet", "older", "failed"];

#[derive(Debug, Default)]
struct Rules {
    keys: Vec<LicenceKey>,
    required: bool,
}

/// The relay's licence keys, and what follows from them.
#[derive(Debug, Default)]
pub struct Licensing {
    /// Read by every admission and opening, written by a reload.
    rules: RwLock<Arc<Rules>>,
    /// When each tenant's operator was reminded last. Only housekeeping takes it.
    reminded: Mutex<HashMap<TenantId, UnixTime>>,
}

impl Licensing {
    /// Other keys from now on. A licence whose key is gone does not count any more.
    pub fn set(&self, keys: Vec<LicenceKey>, required: bool) {
        *self.rules.write() = Arc::new(Rules { keys, required });
    }

    /// Whether tenants without a licence that works are refused.
    #[must_use]
    pub fn required(&self) -> bool {
        self.rules.read().required
    }

    /// The licence that counts for a tenant.
    #[must_use]
    pub fn of<'a>(&self, tenant: &'a Tenant) -> Option<&'a Licence> {
        let rules = self.rules.read();
        tenant.licence.as_deref().filter(|kept| rules.knows(kept)).map(|kept| &kept.licence)
    }

    /// Whether devices and nodes of the tenant may be here now.
    ///
    /// # Errors
    /// Why not; only where a licence is required.
    pub fn admits(&self, tenant: &Tenant, now: UnixTime) -> Result<(), Refused> {
        if !self.required() {
            return Ok(());
        }
        let id = &tenant.id;
        let Some(licence) = self.of(tenant) else {
            let text = format!(
                "tenant {id} has no licence that counts at this relay, which requires one: its core has to install it"
            );
            return Err(Refused::new(Reason::Missing, text));
        };
        let number = &licence.id;
        match licence.standing(now) {
            Standing::Valid { .. } | Standing::Grace { .. } => Ok(()),
            Standing::NotYet { .. } => {
                let text = format!("licence {number} of tenant {id} is not valid yet by this relay's clock");
                Err(Refused::new(Reason::NotYet, text))
            }
            Standing::Expired => {
                let text = format!(
                    "licence {number} of tenant {id} has ended, and its grace too: its core has to install a new one"
                );
                Err(Refused::new(Reason::Expired, text))
            }
        }
    }

    /// Whether the tenant may open something that needs this feature now.
    ///
    /// # Errors
    /// As `admits`; or the tenant's licence does not include it.
    pub fn grants(&self, tenant: &Tenant, feature: Feature, now: UnixTime) -> Result<(), Refused> {
        self.admits(tenant, now)?;
        match self.of(tenant) {
            Some(licence) if !licence.grants(feature) => {
                let (number, id) = (&licence.id, &tenant.id);
                let text = format!(
                    "feature {feature} is not in licence {number} of tenant {id}: a licence that has it is needed"
                );
                Err(Refused::new(Reason::Feature, text))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether a device may have a seat when `linked` others have one. One that is linked already is not asked for.
    ///
    /// # Errors
    /// All are taken.
    pub fn seat(&self, tenant: &Tenant, linked: usize) -> Result<(), Refused> {
        let Some((licence, seats)) = self.of(tenant).and_then(|l| Some((l, l.seats?))) else { return Ok(()) };
        if linked < usize::try_from(seats).unwrap_or(usize::MAX) {
            return Ok(());
        }
        let (number, id) = (&licence.id, &tenant.id);
        let text =
            format!("licence {number} of tenant {id} is for {seats} devices, and as many are linked: one has to leave");
        Err(Refused::new(Reason::Seats, text))
    }

    /// Takes a licence that a core shows for its tenant: verified, its own, valid already, and not older than the one
    /// that counts. On disk before it counts. Waits for the disk: call it off the async threads.
    ///
    /// # Errors
    /// Why it was not taken; what was kept before stays.
    pub fn present(
        &self,
        store: &Store,
        tenant: &TenantId,
        signed: SignedLicence,
        now: UnixTime,
    ) -> Result<Standing, Fault> {
        let (result, answer) = self.judge(store, tenant, signed, now);
        metrics::counter!("hedgerow_relay_licences_shown_total", "result" => result).increment(1);
        answer
    }

    fn judge(
        &self,
        store: &Store,
        tenant: &TenantId,
        signed: SignedLicence,
        now: UnixTime,
    ) -> (&'static str, Result<Standing, Fault>) {
        let refuse = |result, code, text: String| (result, Err(Fault::new(code, text)));
        let rules = self.rules.read().clone();
        let (licence, key) = match signed.verify(&rules.keys) {
            Ok(verified) => verified,
            Err(error) => {
                let result = match error {
                    LicenceError::NoKeys => "no_keys",
                    LicenceError::Signature => "signature",
                    LicenceError::Malformed(_) | LicenceError::BadKey(_) | LicenceError::WrongTenant(_) => "malformed",
                };
                return refuse(result, Code::Forbidden, error.to_string());
            }
        };
        if licence.tenant != *tenant {
            return refuse("tenant", Code::Forbidden, LicenceError::WrongTenant(licence.tenant).to_string());
        }
        let standing = licence.standing(now);
        // Taken now, it would take the place of one that is valid; its core shows it again until it is.
        if let Standing::NotYet { .. } = standing {
            let text = format!("licence {} is not valid yet; until it is, the one shown before counts", licence.id);
            return refuse("not_yet", Code::Forbidden, text);
        }
        let id = licence.id.clone();
        let kept = Kept { signed, licence, key };
        match store.put_licence(tenant, kept, |held| rules.knows(held)) {
            Ok(true) => {
                tracing::info!(%tenant, licence = id, standing = standing.as_str(), "a licence is in force");
                self.reminded.lock().remove(tenant);
                ("accepted", Ok(standing))
            }
            Ok(false) => ("unchanged", Ok(standing)),
            Err(error @ StoreError::OlderLicence { .. }) => refuse("older", Code::Forbidden, error.to_string()),
            Err(error) => {
                tracing::error!(%tenant, %error, "a licence could not be stored");
                refuse("failed", Code::Internal, "the relay could not store the licence: its log has the reason".into())
            }
        }
    }

    /// Sets the gauges, and reminds of licences that end soon or have ended, once a day each.
    pub fn look<H>(&self, store: &Store, links: &Registry<H>, now: UnixTime) {
        let tenants = store.tenants();
        let mut reminded = self.reminded.lock();
        reminded.retain(|id, _| tenants.iter().any(|t| t.id == *id));
        for tenant in &tenants {
            let Some(licence) = self.of(tenant) else { continue };
            let of = || tenant.id.to_string();
            let gauge = |name: &'static str, value: f64| metrics::gauge!(name, "tenant" => of()).set(value);
            gauge("hedgerow_relay_licence_expires_seconds", licence.expires.0 as f64);
            gauge("hedgerow_relay_licence_grace_ends_seconds", licence.grace_until().0 as f64);
            gauge("hedgerow_relay_licence_seats", licence.seats.map_or(f64::INFINITY, f64::from));
            gauge("hedgerow_relay_licence_seats_used", links.devices(&tenant.id) as f64);
            let Some(warning) = licence.warning(now) else { continue };
            if reminded.get(&tenant.id).is_none_or(|last| now.since(*last) >= REMIND_SECONDS) {
                reminded.insert(tenant.id.clone(), now);
                tracing::warn!(tenant = %tenant.id, required = self.required(), "{warning}");
            }
        }
    }

    /// For `GET /status`.
    #[must_use]
    pub fn show<H>(&self, store: &Store, links: &Registry<H>, now: UnixTime) -> Value {
        let tenants = store.tenants();
        let list: Vec<Value> = tenants.iter().filter_map(|t| self.show_one(t, links, now)).collect();
        let rules = self.rules.read();
        json!({ "required": rules.required, "keys": rules.keys.len(), "tenants": list })
    }

    /// One tenant's licence, if one counts.
    #[must_use]
    pub fn show_one<H>(&self, tenant: &Tenant, links: &Registry<H>, now: UnixTime) -> Option<Value> {
        self.of(tenant).map(|licence| {
            json!({
                "tenant": tenant.id,
                "id": licence.id,
                "licensee": licence.licensee,
                "standing": licence.standing(now).as_str(),
                "expires": licence.expires,
                "grace_until": licence.grace_until(),
                "seats": licence.seats,
                "seats_used": links.devices(&tenant.id),
                "features": licence.features,
                "warning": licence.warning(now),
            })
        })
    }
}

impl Rules {
    fn knows(&self, kept: &Kept) -> bool {
        self.keys.iter().any(|key| key.id() == kept.key)
    }
}

/// Whether a link takes a seat: devices do, each one, however many links it has.
#[must_use]
pub fn seated(role: Role, entity: Option<EntityId>) -> Option<EntityId> {
    entity.filter(|_| role == Role::Device)
}

/// Metrics are visible before they happen.
pub(crate) fn describe_metrics() {
    use metrics::{describe_counter as counter, describe_gauge as gauge};
    counter!("hedgerow_relay_licence_refused_total", "Links and openings refused or cut by a licence, by reason");
    for reason in Reason::ALL {
        metrics::counter!("hedgerow_relay_licence_refused_total", "reason" => reason.label()).increment(0);
    }
    counter!("hedgerow_relay_licences_shown_total", "Licences that cores have shown, by result");
    for result in RESULTS {
        metrics::counter!("hedgerow_relay_licences_shown_total", "result" => result).increment(0);
    }
    gauge!("hedgerow_relay_licence_expires_seconds", "End of a tenant's licence, seconds since 1970");
    gauge!("hedgerow_relay_licence_grace_ends_seconds", "End of its grace, seconds since 1970");
    gauge!("hedgerow_relay_licence_seats", "Devices that a tenant's licence lets link at once; +Inf without a bound");
    gauge!("hedgerow_relay_licence_seats_used", "Devices of a licensed tenant that are linked");
}

#[cfg(test)]
mod tests;
