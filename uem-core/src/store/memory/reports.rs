//! What reports look at, in memory.

use std::collections::BTreeMap;

use hedgerow_shared::{TenantId, UnixTime};

use super::{Memory, page};
use crate::account::DeviceState;
use crate::audit;
use crate::report::{AuditQuery, Count, DevicesBy, MAX_GROUPS, Quiet, state};
use crate::store::{Page, ReportStore, StoreError};

fn counts(of: impl Iterator<Item = String>) -> Vec<Count> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    of.for_each(|what| *counts.entry(what).or_insert(0) += 1);
    let mut all: Vec<_> = counts.into_iter().map(|(what, count)| Count { what, count }).collect();
    all.sort_by(|a, b| (b.count, &a.what).cmp(&(a.count, &b.what)));
    all.truncate(MAX_GROUPS as usize);
    all
}

impl ReportStore for Memory {
    async fn find_audit(&self, tenant: &TenantId, query: &AuditQuery) -> Result<Vec<audit::Record>, StoreError> {
        self.read(tenant, |d| {
            let mut found: Vec<_> = d.audit.iter().filter(|record| query.matches(record)).cloned().collect();
            found.sort_by_key(|record| (record.time, record.number));
            found.truncate(query.limit.min(Page::MAX) as usize);
            found
        })
    }

    async fn count_audit(&self, tenant: &TenantId, from: UnixTime, until: UnixTime) -> Result<Vec<Count>, StoreError> {
        self.read(tenant, |d| {
            counts(d.audit.iter().filter(|r| r.time >= from && r.time < until).map(|r| r.action.clone()))
        })
    }

    async fn count_devices(&self, tenant: &TenantId, by: DevicesBy) -> Result<Vec<Count>, StoreError> {
        self.read(tenant, |d| match by {
            DevicesBy::State => counts(d.devices.values().map(|device| state(device.state).to_owned())),
            DevicesBy::Platform => {
                let active = d.devices.values().filter(|device| device.state == DeviceState::Active);
                counts(active.map(|device| device.platform.clone()))
            }
        })
    }

    async fn count_seen(&self, tenant: &TenantId, since: UnixTime) -> Result<u64, StoreError> {
        self.read(tenant, |d| {
            let active = d.devices.values().filter(|device| device.state == DeviceState::Active);
            active.filter(|device| device.last_seen.is_some_and(|at| at >= since)).count() as u64
        })
    }

    async fn quiet(&self, tenant: &TenantId, before: UnixTime, p: Page) -> Result<Vec<Quiet>, StoreError> {
        self.read(tenant, |d| {
            let active = d.devices.iter().filter(|(_, device)| device.state == DeviceState::Active);
            let quiet = active.filter(|(_, device)| device.last_seen.is_none_or(|at| at < before));
            page(quiet, p)
                .into_iter()
                .map(|d| Quiet { device: d.id, name: d.name, user: d.user, last_seen: d.last_seen })
                .collect()
        })
    }
}
