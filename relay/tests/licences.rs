//! Licences over real links: shown by the core, obeyed in links, lanes, tunnels, streams and names.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::testing::Licensor;
use common::{LONG, TENANT, World, entity, service};
use hedgerow_runtime::link::{Link, LinkError};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::verify::licence::{Licence, Standing};
use hedgerow_shared::wire::message::{
    Control, Destination, LaneRequest, LicencePresent, LicenceVerdict, LinkOpen, PairRequest, Registrations, Service,
};
use hedgerow_shared::wire::names::RegisteredName;
use hedgerow_shared::{InstanceId, Origin, Role, TunnelId};
use tokio::time::timeout;

struct Licensed {
    world: World,
    core: Link,
    licensor: Licensor,
}

impl Licensed {
    async fn new(required: bool) -> Self {
        let licensor = Licensor::new();
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key.pem");
        std::fs::write(&key, licensor.key().to_pem()).unwrap();
        let world = World::with(|config| {
            config.licences.keys = vec![key.clone()];
            config.licences.required = required;
        })
        .await;
        let core = world.core().await;
        Self { world, core, licensor }
    }

    async fn show(&self, licence: &Licence) -> LicenceVerdict {
        show(&self.core, &self.licensor, licence).await
    }
}

fn licence(issued: u64, ends: i64, features: &[&str]) -> Licence {
    Licensor::licence(TENANT, issued, ends, features)
}

async fn next(link: &Link) -> Control {
    timeout(LONG, link.mux.next_control()).await.unwrap().unwrap()
}

async fn show(core: &Link, licensor: &Licensor, licence: &Licence) -> LicenceVerdict {
    let request = u32::try_from(licence.issued.0).unwrap();
    core.mux.send_control(&LicencePresent { request, licence: licensor.sign(licence) }.into()).unwrap();
    match next(core).await {
        Control::LicenceVerdict(verdict) => {
            assert_eq!(verdict.request, request);
            verdict
        }
        other => panic!("{other:?}"),
    }
}

fn refusal(result: Result<Link, LinkError>) -> Fault {
    match result {
        Err(LinkError::Refused { fault, .. } | LinkError::Failed(fault) | LinkError::Twin(fault)) => fault,
        Ok(_) => panic!("it was let in"),
    }
}

fn to(world: &World, origin: Origin) -> Destination {
    Destination { tenant: world.tenant.clone(), origin, group: None, instance: None, node: None }
}

async fn lane(world: &World, device: &Link) -> Result<(), Fault> {
    device.mux.send_control(&LaneRequest { request: 1, to: to(world, Origin::Proxy) }.into()).unwrap();
    match next(device).await {
        Control::LaneOffer(_) => Ok(()),
        Control::LaneRefused(refused) => Err(refused.fault),
        other => panic!("{other:?}"),
    }
}

async fn pair(device: &Link, node: u8) -> Result<(), Fault> {
    let tunnel = TunnelId::from_random([node; 16]);
    let request = PairRequest { request: 2, tunnel, node: entity(node), instance: InstanceId::from_random([node; 16]) };
    device.mux.send_control(&request.into()).unwrap();
    match next(device).await {
        Control::PairOffer(_) => Ok(()),
        Control::PairRefused(refused) => Err(refused.fault),
        other => panic!("{other:?}"),
    }
}

async fn stream(world: &World, link: &Link, origin: Origin) -> Fault {
    let header = LinkOpen::Through { to: to(world, origin), vouched: None, trace: None };
    timeout(LONG, link.mux.open(&header)).await.unwrap().map(drop).unwrap_err()
}

#[tokio::test]
async fn p04_what_is_not_licensed_is_refused_by_name_and_the_rest_works() {
    let it = Licensed::new(false).await;
    let (world, node, device) = (&it.world, it.world.node(10).await, it.world.device(20).await);
    assert!(lane(world, &device).await.is_ok(), "without a licence a tenant is unlimited");
    let verdict = it.show(&licence(5, 100, &["proxy"])).await;
    assert_eq!((verdict.fault.code, verdict.required), (Code::Ok, false));
    assert!(matches!(verdict.standing, Some(Standing::Valid { .. })));
    assert!(lane(world, &device).await.is_ok());
    let refused = pair(&device, 10).await.unwrap_err();
    assert_eq!(refused.code, Code::Forbidden);
    assert!(["feature tunnel", "L-5", TENANT].iter().all(|w| refused.text.contains(w)), "{refused}");
    let refused = stream(world, &device, Origin::Directory).await;
    assert!(refused.text.contains("feature directory"), "{refused}");
    // A newer one takes effect on the links that stand.
    assert_eq!(it.show(&licence(6, 100, &["tunnel", "directory"])).await.fault.code, Code::Ok);
    let refused = lane(world, &device).await.unwrap_err();
    assert!(refused.text.contains("feature proxy") && refused.text.contains("L-6"), "{refused}");
    assert!(stream(world, &device, Origin::Directory).await.code == Code::NoRoute);
    assert!(pair(&device, 10).await.is_ok());
    drop(node);
}

#[tokio::test]
async fn p04_a_seat_is_a_device_that_is_linked_and_who_has_one_comes_back() {
    let it = Licensed::new(false).await;
    let world = &it.world;
    let first = world.device(20).await;
    assert_eq!(it.show(&Licence { seats: Some(1), ..licence(5, 100, &["proxy"]) }).await.fault.code, Code::Ok);
    let refused = refusal(world.dial(&world.credentials(Role::Device, 21), 21).await);
    assert_eq!(refused.code, Code::Limited);
    assert!(refused.text.contains("is for 1 devices") && refused.text.contains("L-5"), "{refused}");
    let again = world.device(20).await;
    let _node = world.node(10).await;
    assert!(lane(world, &again).await.is_ok());
    drop((first, again));
    // The seat is free once both links are gone.
    let free = async {
        while world.relay.relay().registry.devices(&world.tenant) > 0 {
            for live in world.relay.relay().registry.select(Some(&world.tenant), |f| f.role == Role::Device) {
                live.handle.close(Fault::new(Code::Lost, "the test ends it"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, free).await.unwrap();
    let _second = world.device(21).await;
    assert_eq!(world.control(http::Method::GET, "/status", None).await["licences"]["tenants"][0]["seats_used"], 1);
}

#[tokio::test]
async fn p04_of_devices_that_come_at_once_as_many_stay_as_there_are_seats() {
    let it = Licensed::new(false).await;
    let world = &it.world;
    assert_eq!(it.show(&Licence { seats: Some(3), ..licence(5, 100, &[]) }).await.fault.code, Code::Ok);
    let credentials: Vec<_> = (20..32).map(|id| (world.credentials(Role::Device, id), id)).collect();
    let dials = credentials.iter().map(|(credentials, id)| world.dial(credentials, *id));
    let links = futures_util::future::join_all(dials).await;
    let settled = async {
        while world.relay.relay().registry.devices(&world.tenant) != 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, settled).await.unwrap();
    assert!(links.iter().filter(|l| l.is_ok()).count() >= 3);
}

#[tokio::test]
async fn p04_after_the_grace_devices_and_nodes_go_and_the_core_stays_to_mend_it() {
    let it = Licensed::new(true).await;
    let world = &it.world;
    let refused = refusal(world.dial(&world.credentials(Role::Node, 10), 10).await);
    assert!(refused.text.contains("has no licence that counts"), "{refused}");
    let grace = Licence { grace_seconds: 3600, ..licence(5, -1800, &["proxy", "tunnel"]) };
    let verdict = it.show(&grace).await;
    assert!(matches!(verdict.standing, Some(Standing::Grace { .. })) && verdict.required, "{verdict:?}");
    let (node, device) = (world.node(10).await, world.device(20).await);
    assert!(lane(world, &device).await.is_ok() && pair(&device, 10).await.is_ok());
    let status = world.control(http::Method::GET, "/status", None).await;
    let one = &status["licences"]["tenants"][0];
    assert!(one["standing"] == "grace" && one["warning"].as_str().unwrap().contains("has ended"), "{one}");

    // One whose grace is over, issued later: everything is cut, and the core's link is not.
    assert_eq!(it.show(&licence(6, -10, &["proxy"])).await.standing, Some(Standing::Expired));
    for link in [&node, &device] {
        let fault = timeout(LONG, link.mux.closed()).await.unwrap();
        assert!(fault.text.contains("has ended, and its grace too"), "{fault}");
    }
    assert!(refusal(world.dial(&world.credentials(Role::Device, 20), 20).await).text.contains("L-6"));
    assert_eq!(world.relay.relay().pairings.len(), 0);
    assert_eq!(it.show(&licence(7, 100, &["proxy"])).await.fault.code, Code::Ok);
    let _node = world.node(10).await;
    assert!(lane(world, &world.device(20).await).await.is_ok());
}

#[tokio::test]
async fn p04_a_name_whose_feature_is_missing_is_held_and_told_and_not_passed() {
    let it = Licensed::new(false).await;
    let mail = RegisteredName { name: "mail.tenant.example".into(), origin: Origin::Gateway };
    let wanted = Registrations { names: vec![mail], ..Registrations::default() };
    assert_eq!(it.show(&licence(5, 100, &["mdm"])).await.fault.code, Code::Ok);
    let reply = service(&it.core, Service::PutRegistrations, &wanted).await.unwrap();
    let refused = &reply.refused.unwrap()[0];
    assert!(refused.name == "mail.tenant.example" && refused.fault.text.contains("feature gateway"), "{refused:?}");
    assert!(it.world.tls("mail.tenant.example", b"x").await.is_err());
    assert_eq!(it.show(&licence(6, 100, &["gateway"])).await.fault.code, Code::Ok);
    let reply = service(&it.core, Service::PutRegistrations, &wanted).await.unwrap();
    assert_eq!(reply.refused, Some(vec![]));
}

#[tokio::test]
async fn p04_keys_are_read_again_and_only_cores_show_licences() {
    let it = Licensed::new(false).await;
    let (world, other) = (&it.world, Licensor::new());
    assert_eq!(show(&it.core, &other, &licence(5, 100, &[])).await.fault.code, Code::Forbidden);
    let mut config = world.relay.relay().config.clone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.pem");
    config.licences.keys = vec![path.clone()];
    let why = world.relay.relay().reload(&config).unwrap_err().to_string();
    assert!(why.contains("licences.keys") && why.contains("other.pem"), "{why}");
    std::fs::write(&path, other.key().to_pem()).unwrap();
    assert!(world.relay.relay().reload(&config).unwrap().is_empty());
    assert_eq!(show(&it.core, &other, &licence(5, 100, &[])).await.fault.code, Code::Ok);
    let device = world.device(20).await;
    let shown = LicencePresent { request: 1, licence: other.sign(&licence(9, 100, &[])) };
    device.mux.send_control(&shown.into()).unwrap();
    assert_eq!(timeout(LONG, device.mux.closed()).await.unwrap().code, Code::Protocol);
}
