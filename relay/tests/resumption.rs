//! Links whose TLS is resumed: cheaper, and asked everything that any other link is asked.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{World, entity, service};
use hedgerow_relay::store::TenantState;
use hedgerow_runtime::dial::RelayTarget;
use hedgerow_runtime::link::{Credentials, Link, LinkError, Transport, connect, connect_quic};
use hedgerow_runtime::telemetry::Metrics;
use hedgerow_runtime::tls::RelayRoots;
use hedgerow_shared::fault::Code;
use hedgerow_shared::wire::message::Service;
use hedgerow_shared::{InstanceId, Role};
use tokio::sync::Mutex;

/// Metrics belong to the process: one test at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

const BOTH: [Transport; 2] = [Transport::Tls, Transport::Quic];

/// Hand-shakes that were resumed.
fn resumed() -> f64 {
    let text = Metrics::install().render();
    let of = text.lines().filter_map(|l| l.strip_prefix("hedgerow_tls_tickets_taken_total ")?.parse::<f64>().ok());
    of.sum()
}

async fn dial(world: &World, by: Transport, to: &RelayTarget, who: &Credentials) -> Result<Link, LinkError> {
    let (timers, instance) = (world.relay.relay().timers, InstanceId::from_random([6; 16]));
    match by {
        Transport::Tls => connect(to, who, instance, &timers, &world.scope).await,
        Transport::Quic => connect_quic(to, who, instance, &timers, &world.scope).await,
    }
}

fn code(result: Result<Link, LinkError>) -> Code {
    result.map(drop).unwrap_err().fault().code
}

#[tokio::test]
async fn p01_a_link_that_comes_back_resumes_its_tls_and_is_asked_everything_anew() {
    let _alone = ALONE.lock().await;
    for by in BOTH {
        let world = World::new().await;
        let core = world.core().await;
        let (to, device) = (world.target(), world.credentials(Role::Device, 6));
        let mut before = resumed();
        let mut more = || {
            let now = resumed();
            now - std::mem::replace(&mut before, now)
        };
        dial(&world, by, &to, &device).await.unwrap();
        assert_eq!(more(), 0.0, "{by:?}: the first begins from nothing");
        dial(&world, by, &to, &device).await.unwrap();
        assert_eq!(more(), 1.0, "{by:?}");
        dial(&world, by, &world.target(), &device).await.unwrap();
        assert_eq!(more(), 0.0, "{by:?}: another dialler has nothing to resume");
        world.relay.relay().store.set_state(&world.tenant, TenantState::Blocked).unwrap();
        assert_eq!(code(dial(&world, by, &to, &device).await), Code::Forbidden, "{by:?}: the tenant is blocked");
        assert_eq!(more(), 1.0, "{by:?}: refused by what was asked, not by TLS");
        world.relay.relay().store.set_state(&world.tenant, TenantState::Active).unwrap();
        service(&core, Service::PutConfig, &world.ca.relay_config(2, &[entity(6)])).await.unwrap();
        assert_eq!(code(dial(&world, by, &to, &device).await), Code::Revoked, "{by:?}");
        assert_eq!(more(), 1.0, "{by:?}: refused by what was asked, not by TLS");
    }
}

#[tokio::test]
async fn nothing_is_resumed_after_the_certificate_was_replaced_or_by_whoever_trusts_another() {
    let _alone = ALONE.lock().await;
    for by in BOTH {
        let world = World::new().await;
        let _core = world.core().await;
        let (to, device) = (world.target(), world.credentials(Role::Device, 6));
        dial(&world, by, &to, &device).await.unwrap();
        let before = resumed();
        world.relay.certificate.reload().unwrap();
        dial(&world, by, &to, &device).await.unwrap();
        assert_eq!(resumed(), before, "{by:?}: tickets of the old certificate count no more");
        dial(&world, by, &to, &device).await.unwrap();
        assert_eq!(resumed(), before + 1.0, "{by:?}: those of the new one do");
        let other = RelayTarget { roots: RelayRoots::Pin([1; 32]), ..to.clone() };
        assert_eq!(code(dial(&world, by, &other, &device).await), Code::Unauthenticated, "{by:?}");
        assert_eq!(resumed(), before + 1.0, "{by:?}");
    }
}
