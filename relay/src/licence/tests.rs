use hedgerow_runtime::clock;

use super::*;
use crate::testing::Licensor;

const ID: &str = "S12345678";

struct World {
    store: Store,
    licences: Licensing,
    licensor: Licensor,
    folder: tempfile::TempDir,
}

impl World {
    fn new(required: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        for id in [ID, "S87654321"] {
            store.add(id.parse().unwrap()).unwrap();
        }
        let (licences, licensor) = (Licensing::default(), Licensor::new());
        licences.set(vec![licensor.key()], required);
        Self { store, licences, licensor, folder }
    }

    fn id() -> TenantId {
        ID.parse().unwrap()
    }

    fn tenant(&self) -> Arc<Tenant> {
        self.store.tenant(&Self::id()).unwrap()
    }

    fn show(&self, licence: &Licence) -> Result<Standing, Fault> {
        self.licences.present(&self.store, &Self::id(), self.licensor.sign(licence), clock::now())
    }

    fn grants(&self, feature: Feature) -> Result<(), Reason> {
        self.licences.grants(&self.tenant(), feature, clock::now()).map_err(|r| r.reason)
    }

    fn held(&self) -> Option<String> {
        self.licences.of(&self.tenant()).map(|l| l.id.clone())
    }
}

fn licence(issued: u64, ends: i64, features: &[&str]) -> Licence {
    Licensor::licence(ID, issued, ends, features)
}

#[test]
fn p04_the_newest_licence_is_kept_and_survives_a_restart() {
    let world = World::new(false);
    assert!(world.show(&licence(20, 100, &["proxy"])).is_ok());
    assert!(world.show(&licence(20, 100, &["proxy"])).is_ok(), "the same again is no error");
    let refused = world.show(&licence(10, 9000, &["proxy", "tunnel"])).unwrap_err();
    assert!(refused.text.contains("L-10") && refused.text.contains("before L-20"), "{refused}");
    assert_eq!(world.held().as_deref(), Some("L-20"));
    assert!(world.show(&licence(30, 100, &["tunnel"])).is_ok());
    let World { store, licences, folder, licensor } = world;
    drop(store);
    let world = World { store: Store::open(folder.path()).unwrap(), licences, folder, licensor };
    assert_eq!(world.held().as_deref(), Some("L-30"));
    assert_eq!((world.grants(Feature::Tunnel), world.grants(Feature::Proxy)), (Ok(()), Err(Reason::Feature)));
}

#[test]
fn p04_foreign_forged_early_and_unverifiable_licences_are_refused_by_name() {
    let world = World::new(false);
    let of = |tenant: &str| Licensor::licence(tenant, 1, 100, &[]);
    assert!(world.show(&of("S87654321")).unwrap_err().text.contains("S87654321"));
    let forged = Licensor::new().sign(&of(ID));
    let refused = world.licences.present(&world.store, &World::id(), forged, clock::now()).unwrap_err();
    assert!(refused.text.contains("not signed by any licence key known here"), "{refused}");
    // It would take the place of one that works.
    assert!(world.show(&licence(1, 100, &[])).is_ok());
    let early = Licence { not_before: clock::now().plus(50), ..licence(9, 100, &[]) };
    assert!(world.show(&early).unwrap_err().text.contains("not valid yet"));
    assert_eq!(world.held().as_deref(), Some("L-1"));
    world.licences.set(vec![], false);
    assert!(world.show(&licence(2, 100, &[])).unwrap_err().text.contains("no licence keys"));
    assert_eq!(world.held(), None, "its key is gone");
}

#[test]
fn p04_without_a_licence_a_tenant_is_unlimited_or_refused() {
    for (required, expected) in [(false, Ok(())), (true, Err(Reason::Missing))] {
        let world = World::new(required);
        assert!(Feature::ALL.iter().all(|f| world.grants(*f) == expected));
        assert_eq!(world.licences.admits(&world.tenant(), clock::now()).map_err(|r| r.reason), expected);
        assert!(world.licences.seat(&world.tenant(), 1_000_000).is_ok());
    }
}

#[test]
fn p04_after_its_grace_a_required_licence_refuses_and_another_keeps_its_limits() {
    for (required, after) in [(false, Ok(())), (true, Err(Reason::Expired))] {
        let world = World::new(required);
        let grace = Licence { grace_seconds: 1000, seats: Some(2), ..licence(1, -500, &["proxy"]) };
        assert!(matches!(world.show(&grace), Ok(Standing::Grace { .. })));
        assert_eq!((world.grants(Feature::Proxy), world.grants(Feature::Mdm)), (Ok(()), Err(Reason::Feature)));
        assert!(world.licences.seat(&world.tenant(), 1).is_ok());
        assert_eq!(world.licences.seat(&world.tenant(), 2).unwrap_err().reason, Reason::Seats);
        let later = clock::now().plus(600);
        let tenant = world.tenant();
        assert_eq!(world.licences.grants(&tenant, Feature::Proxy, later).map_err(|r| r.reason), after);
        assert!(world.licences.grants(&tenant, Feature::Mdm, later).is_err());
        let fault = world.licences.seat(&tenant, 2).unwrap_err().fault();
        assert_eq!(fault.code, Code::Limited);
        assert!(["L-1", ID, "2 devices"].iter().all(|w| fault.text.contains(w)), "{fault}");
    }
}

/// Every text arrives whole: the id has its greatest length.
#[test]
fn p04_what_a_peer_is_told_names_feature_tenant_and_licence() {
    let world = World::new(true);
    let long = Licence { id: "L".repeat(64), seats: Some(u32::MAX), grace_seconds: 5, ..licence(1, 100, &[]) };
    assert!(world.show(&long).is_ok());
    let tenant = world.tenant();
    let (now, over) = (clock::now(), clock::now().plus(200));
    for (refused, end) in [
        (world.licences.grants(&tenant, Feature::Directory, now), "needed"),
        (world.licences.admits(&tenant, over), "new one"),
        (world.licences.seat(&tenant, usize::MAX), "leave"),
    ] {
        let fault = refused.unwrap_err().fault();
        assert!(fault.text.contains(&long.id) && fault.text.contains(ID) && fault.text.ends_with(end), "{fault}");
    }
    let refused = world.licences.grants(&tenant, Feature::Directory, now).unwrap_err();
    assert!(refused.fault().text.contains("feature directory"));
}

#[test]
fn p04_operators_see_every_licence_that_counts() {
    let world = World::new(true);
    assert!(world.show(&Licence { seats: Some(4), ..licence(1, 10 * 24 * 3600, &["proxy"]) }).is_ok());
    let shown = world.licences.show(&world.store, &Registry::<()>::default(), clock::now());
    assert_eq!((&shown["required"], &shown["keys"]), (&json!(true), &json!(1)));
    let one = &shown["tenants"][0];
    assert_eq!((&one["standing"], &one["seats"], &one["seats_used"]), (&json!("valid"), &json!(4), &json!(0)));
    assert!(one["warning"].as_str().unwrap().contains("ends in 10 days"), "{one}");
}
