//! What a tenant's core registers: addresses with an open activation, and the server names whose connections the relay
//! passes through unopened. A name belongs to one tenant at a time, and the first holds it; what an operator takes away
//! stays away until he allows it again.

use std::collections::BTreeMap;
use std::sync::Arc;

use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::verify::policy::normal_name;
use hedgerow_shared::wire::message::OpenActivation;
use hedgerow_shared::wire::names::{MAX_NAMES, RefusedName, RegisteredName};
use hedgerow_shared::{Origin, TenantId};

use super::{MAX_REGISTRATIONS, Memory, Store, StoreError, Tenant, TenantState};

impl Store {
    /// Replaces the tenant's open activations and names. `own` says which names are the relay's. The names that are not
    /// passed through, each with the reason; the others are.
    ///
    /// # Errors
    /// `TooManyRegistrations`, `TooManyNames`, `UnknownTenant`, `Io`: nothing was changed.
    pub fn put_registrations(
        &self,
        id: &TenantId,
        open: Vec<OpenActivation>,
        names: Vec<RegisteredName>,
        own: impl Fn(&str) -> bool,
    ) -> Result<Vec<RefusedName>, StoreError> {
        if open.len() > MAX_REGISTRATIONS {
            return Err(StoreError::TooManyRegistrations);
        }
        if names.len() > MAX_NAMES {
            return Err(StoreError::TooManyNames);
        }
        let mut refused = Vec::new();
        self.change(id, |memory, tenant| {
            let mut taken = BTreeMap::new();
            for wanted in names {
                match may_hold(memory, tenant, &wanted, &taken, &own) {
                    Ok(()) => drop(taken.insert(wanted.name, wanted.origin)),
                    // A name of a megabyte is not sent back.
                    Err(fault) => {
                        refused.push(RefusedName { name: wanted.name.chars().take(253).collect(), fault });
                    }
                }
            }
            tenant.names = taken;
            tenant.open = Arc::new(open);
            Ok(())
        })?;
        Ok(refused)
    }

    /// Whose a server name is, and which origin of that tenant it leads to; only while the tenant may use the relay.
    #[must_use]
    pub fn name(&self, name: &str) -> Option<(TenantId, Origin)> {
        let memory = self.memory.read();
        let (id, origin) = memory.names.get(name)?;
        memory.tenants.get(id).filter(|t| t.state == TenantState::Active).map(|t| (t.id.clone(), *origin))
    }

    /// Takes a name from a tenant, whose core does not get it back by registering it again. Whether it had it.
    ///
    /// # Errors
    /// `NotADomain`, `UnknownTenant`, `Io`.
    pub fn withhold_name(&self, id: &TenantId, name: &str) -> Result<bool, StoreError> {
        let name = normal_name(name).ok_or_else(|| StoreError::NotADomain(name.to_owned()))?;
        let mut there = false;
        self.change(id, |_, tenant| {
            there = tenant.names.remove(&name).is_some();
            tenant.withheld.insert(name);
            Ok(())
        })?;
        Ok(there)
    }

    /// Undoes `withhold_name`: the tenant's core may register the name again, and tries within a minute. Whether it was
    /// withheld.
    ///
    /// # Errors
    /// `NotADomain`, `UnknownTenant`, `Io`.
    pub fn allow_name(&self, id: &TenantId, name: &str) -> Result<bool, StoreError> {
        let name = normal_name(name).ok_or_else(|| StoreError::NotADomain(name.to_owned()))?;
        let mut there = false;
        self.change(id, |_, tenant| {
            there = tenant.withheld.remove(&name);
            Ok(())
        })?;
        Ok(there)
    }
}

fn may_hold(
    memory: &Memory,
    tenant: &Tenant,
    wanted: &RegisteredName,
    taken: &BTreeMap<String, Origin>,
    own: impl Fn(&str) -> bool,
) -> Result<(), Fault> {
    let refuse = |why: &str| Err(Fault::new(Code::Forbidden, why));
    let name = wanted.name.as_str();
    if let Err(why) = wanted.check() {
        return refuse(why);
    }
    if own(name) {
        return refuse("it is a name of the relay itself");
    }
    if tenant.withheld.contains(name) {
        return refuse("the relay's operator took this name away; ask him");
    }
    if taken.contains_key(name) {
        return refuse("it stands in the list twice");
    }
    if memory.names.get(name).is_some_and(|(holder, _)| *holder != tenant.id) {
        return refuse("another tenant holds this name; the first who registers a name holds it");
    }
    // `a.b.example` is below `b.example` and `example`.
    let mut above = Some(name);
    while let Some(domain) = above {
        if memory.domains.get(domain).is_some_and(|owner| *owner != tenant.id) {
            return refuse("it is under a domain that another tenant has shown to be its own");
        }
        above = domain.split_once('.').map(|(_, rest)| rest);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        store: Store,
        folder: tempfile::TempDir,
    }

    const A: &str = "S11111111";
    const B: &str = "S22222222";

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            for id in [A, B] {
                store.add(id.parse().unwrap()).unwrap();
            }
            Self { store, folder }
        }

        /// What was refused of these, all for the gateway.
        fn put(&self, tenant: &str, names: &[&str]) -> Vec<String> {
            let wanted = names.iter().map(|n| RegisteredName { name: (*n).to_owned(), origin: Origin::Gateway });
            let own = |name: &str| name == "relay.example";
            let refused = self.store.put_registrations(&tenant.parse().unwrap(), vec![], wanted.collect(), own);
            refused.unwrap().into_iter().map(|r| format!("{}: {}", r.name, r.fault.text)).collect()
        }

        fn holder(&self, name: &str) -> Option<String> {
            self.store.name(name).map(|(id, _)| id.to_string())
        }
    }

    #[test]
    fn the_first_holds_a_name_until_it_lets_go() {
        let world = World::new();
        assert!(world.put(A, &["mail.example", "mdm.example"]).is_empty());
        let refused = world.put(B, &["mail.example", "other.example"]);
        assert!(refused.len() == 1 && refused[0].starts_with("mail.example: another tenant"), "{refused:?}");
        assert_eq!(world.holder("mail.example").as_deref(), Some(A));
        assert_eq!(world.holder("other.example").as_deref(), Some(B));
        assert!(world.put(A, &["mdm.example"]).is_empty());
        assert_eq!(world.holder("mail.example"), None);
        assert!(world.put(B, &["mail.example"]).is_empty());
        assert_eq!((world.holder("mail.example").as_deref(), world.holder("other.example")), (Some(B), None));
    }

    #[test]
    fn what_cannot_be_held_is_refused_by_name() {
        let world = World::new();
        world.store.claim_domain(&A.parse().unwrap(), "claimed.example").unwrap();
        for bad in ["relay.example", "Mail.example", "192.0.2.1", "claimed.example", "deep.mail.claimed.example"] {
            let refused = world.put(B, &[bad, "good.example"]);
            assert!(refused.len() == 1 && refused[0].starts_with(bad), "{refused:?}");
            assert_eq!(world.holder("good.example").as_deref(), Some(B));
        }
        assert!(world.put(A, &["mail.claimed.example"]).is_empty(), "its own domain");
        assert_eq!(world.put(B, &["twice.example", "twice.example"]).len(), 1);
        let many: Vec<_> =
            (0..=MAX_NAMES).map(|n| RegisteredName { name: format!("n{n}.example"), origin: Origin::Mdm }).collect();
        let refused = world.store.put_registrations(&B.parse().unwrap(), vec![], many, |_| false);
        assert!(matches!(refused, Err(StoreError::TooManyNames)));
        assert_eq!(world.holder("twice.example").as_deref(), Some(B), "nothing was changed");
    }

    #[test]
    fn names_survive_a_restart_and_stop_with_their_tenant() {
        let world = World::new();
        assert!(world.put(A, &["mail.example"]).is_empty());
        let folder = world.folder;
        drop(world.store);
        let world = World { store: Store::open(folder.path()).unwrap(), folder };
        assert_eq!(world.holder("mail.example").as_deref(), Some(A));
        world.store.set_state(&A.parse().unwrap(), TenantState::Blocked).unwrap();
        assert_eq!(world.holder("mail.example"), None);
        assert_eq!(world.put(B, &["mail.example"]).len(), 1, "a blocked tenant still holds it");
        world.store.set_state(&A.parse().unwrap(), TenantState::Active).unwrap();
        assert_eq!(world.holder("mail.example").as_deref(), Some(A));
        world.store.remove(&A.parse().unwrap()).unwrap();
        assert_eq!(world.holder("mail.example"), None);
        assert!(world.put(B, &["mail.example"]).is_empty());
    }

    #[test]
    fn what_an_operator_takes_away_stays_away_until_he_allows_it() {
        let world = World::new();
        let id: TenantId = A.parse().unwrap();
        assert!(world.put(A, &["mail.example"]).is_empty());
        assert!(world.store.withhold_name(&id, "Mail.example.").unwrap());
        assert_eq!(world.holder("mail.example"), None);
        let refused = world.put(A, &["mail.example"]);
        assert!(refused[0].contains("operator"), "{refused:?}");
        assert!(world.put(B, &["mail.example"]).is_empty(), "it is free for others");
        assert!(world.put(B, &[]).is_empty());
        assert!(world.store.allow_name(&id, "mail.example").unwrap());
        assert!(!world.store.allow_name(&id, "mail.example").unwrap());
        assert!(world.put(A, &["mail.example"]).is_empty());
    }
}
