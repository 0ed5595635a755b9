//! What the store keeps, refuses and finds.

use std::os::unix::fs::PermissionsExt;

use hedgerow_shared::wire::message::address_hash;

use super::*;
use crate::testing::TestCa;

/// Domain and hash of an address, as the look-up makes them.
fn address(store: &Store, text: &str) -> (String, [u8; 32]) {
    let domain = text.rsplit_once('@').unwrap().1.to_lowercase();
    (domain, address_hash(store.lookup_key(), text))
}

fn tenant(text: &str) -> TenantId {
    text.parse().unwrap()
}

#[test]
fn tenants_survive_a_restart_with_everything_they_had() {
    let folder = tempfile::tempdir().unwrap();
    let id = tenant("S12345678");
    let ca = TestCa::new("S12345678");
    let key;
    {
        let store = Store::open(folder.path()).unwrap();
        key = store.add(id.clone()).unwrap().srp_key.clone();
        store.claim_domain(&id, "Example.COM").unwrap();
        store.register_ca(&id, ca.der()).unwrap();
        store.put_config(&id, ca.relay_config(5, &[]), clock::now()).unwrap();
        store
            .put_registrations(&id, vec![OpenActivation { hash: [7; 32], until: u64::MAX }], vec![], |_| false)
            .unwrap();
        store.set_state(&id, TenantState::Blocked).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StoreError::InUse(_))));
    }
    let store = Store::open(folder.path()).unwrap();
    let read = store.tenant(&id).unwrap();
    assert!(read.srp_key == key && read.state == TenantState::Blocked && read.config.is_some());
    assert_eq!(read.seen, Some(Version { epoch: 0, version: 5 }));
    assert_eq!(read.domains.iter().collect::<Vec<_>>(), ["example.com"]);
    assert_eq!(read.open_activations(), 1);
    for file in ["tenants/S12345678.json", "lookup.key"] {
        assert_eq!(fs::metadata(folder.path().join(file)).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn an_older_configuration_is_refused_and_the_newer_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (id, ca) = (tenant("S12345678"), TestCa::new("S12345678"));
    store.add(id.clone()).unwrap();
    let early = store.put_config(&id, ca.relay_config(1, &[]), clock::now());
    assert!(matches!(early, Err(StoreError::NoCa)));
    store.register_ca(&id, ca.der()).unwrap();
    store.put_config(&id, ca.relay_config(5, &[]), clock::now()).unwrap();
    let old = store.put_config(&id, ca.relay_config(4, &[]), clock::now());
    assert!(matches!(old, Err(StoreError::Config(ConfigError::RolledBack { .. }))));
    let forged = store.put_config(&id, TestCa::new("S12345678").relay_config(9, &[]), clock::now());
    assert!(matches!(forged, Err(StoreError::Config(ConfigError::Signature(_)))));
    assert_eq!(store.tenant(&id).unwrap().seen, Some(Version { epoch: 0, version: 5 }));
}

#[test]
fn a_ca_key_registers_once_and_only_for_the_tenant_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (one, two) = (tenant("S12345678"), tenant("S87654321"));
    store.add(one.clone()).unwrap();
    store.add(two.clone()).unwrap();
    let ca = TestCa::new("S12345678");
    assert!(matches!(store.register_ca(&two, ca.der()), Err(StoreError::ForeignCa(_))));
    store.register_ca(&one, ca.der()).unwrap();
    store.register_ca(&one, ca.der()).unwrap();
    let same_key = ca.renamed("S87654321");
    assert!(matches!(store.register_ca(&two, same_key.der()), Err(StoreError::CaKeyTaken)));
    assert!(matches!(store.register_ca(&one, TestCa::new("S12345678").der()), Err(StoreError::CaFixed)));
    store.remove(&one).unwrap();
    store.register_ca(&two, same_key.der()).unwrap();
}

#[test]
fn addresses_are_found_by_claimed_domain_or_open_activation_only() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (one, two, now) = (tenant("S12345678"), tenant("S87654321"), UnixTime(1000));
    store.add(one.clone()).unwrap();
    store.add(two.clone()).unwrap();
    store.claim_domain(&one, "example.com").unwrap();
    assert!(matches!(store.claim_domain(&two, "EXAMPLE.com."), Err(StoreError::DomainTaken(_))));
    let find = |text: &str| {
        let (domain, hash) = address(&store, text);
        store.find(&domain, &hash, now)
    };
    assert_eq!(find("nobody@example.com"), Some(one.clone()));
    assert_eq!(find("eve@mail.test"), None);
    let eve = address(&store, "eve@mail.test").1;
    let open = |until| vec![OpenActivation { hash: eve, until }];
    store.put_registrations(&one, open(1001), vec![], |_| false).unwrap();
    store.put_registrations(&two, open(2000), vec![], |_| false).unwrap();
    assert_eq!(find("Eve@mail.test"), Some(one.clone()), "first come, first served");
    store.put_registrations(&one, open(1000), vec![], |_| false).unwrap();
    assert_eq!(find("eve@mail.test"), Some(two.clone()), "one that has closed does not block the next");
    store.put_registrations(&two, vec![], vec![], |_| false).unwrap();
    assert_eq!(find("eve@mail.test"), None);
    store.set_state(&one, TenantState::Blocked).unwrap();
    assert_eq!(find("nobody@example.com"), None);
}

#[test]
fn a_removed_tenant_leaves_nothing_to_its_successor() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let id = tenant("S12345678");
    let first = store.add(id.clone()).unwrap();
    store.claim_domain(&id, "example.com").unwrap();
    store.put_registrations(&id, vec![OpenActivation { hash: [1; 32], until: u64::MAX }], vec![], |_| false).unwrap();
    store.remove(&id).unwrap();
    let second = store.add(id.clone()).unwrap();
    assert!(first.srp_key != second.srp_key && second.domains.is_empty());
    assert_eq!(store.find("example.com", &[1; 32], UnixTime(0)), None);
}

#[test]
fn files_that_others_can_read_or_that_are_damaged_stop_the_start() {
    let folder = tempfile::tempdir().unwrap();
    Store::open(folder.path()).unwrap().add(tenant("S12345678")).unwrap();
    let path = folder.path().join("tenants/S12345678.json");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(Store::open(folder.path()), Err(StoreError::Exposed(_))));
    write_secret(&path, b"{\"id\": \"S1234").unwrap();
    assert!(matches!(Store::open(folder.path()), Err(StoreError::Damaged { .. })));
}
