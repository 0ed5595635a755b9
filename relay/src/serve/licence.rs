//! The licence that a core shows over its link, and the relay's verdict.

use std::sync::Arc;

use hedgerow_runtime::clock;
use hedgerow_runtime::link::Channel;
use hedgerow_runtime::telemetry::dropped;
use hedgerow_shared::Role;
use hedgerow_shared::fault::{Code, DropReason, Fault};
use hedgerow_shared::verify::Standing;
use hedgerow_shared::wire::message::{LicencePresent, LicenceVerdict};

use crate::registry::Live;
use crate::state::Relay;

/// A core shows its tenant's licence.
pub(super) fn shown(
    relay: &Arc<Relay>,
    live: &Arc<Live<Channel>>,
    LicencePresent { request, licence }: LicencePresent,
) {
    if live.facts.role != Role::Core {
        live.handle.close(Fault::new(Code::Protocol, "only cores show licences"));
        return;
    }
    // One at a time: a core that floods waits for its own disk writes.
    if !live.begin_licence() {
        let fault = Fault::new(Code::Limited, "the licence shown before is still being looked at");
        return answer(relay, live, request, fault, None);
    }
    let (own, live) = (relay.clone(), live.clone());
    relay.work.spawn(async move {
        let (relay, tenant) = (own.clone(), live.facts.tenant.clone());
        let work = move || {
            let before = own.store.tenant(&tenant).and_then(|t| t.licence.clone());
            let answer = own.licences.present(&own.store, &tenant, licence, clock::now());
            // Shown again, as on every link, it changes nothing.
            if answer.is_ok() && own.store.tenant(&tenant).and_then(|t| t.licence.clone()) != before {
                // Whoever an older one kept out comes back by himself; whom the new one does not let stay is cut.
                own.enforce(Some(&tenant));
            }
            answer
        };
        let failed = |_| Err(Fault::new(Code::Internal, "the licence could not be looked at"));
        let answer = tokio::task::spawn_blocking(work).await.unwrap_or_else(failed);
        live.end_licence();
        verdict(&relay, &live, request, answer);
    });
}

fn verdict(relay: &Relay, live: &Live<Channel>, request: u32, result: Result<Standing, Fault>) {
    let (fault, standing) = match result {
        Ok(standing) => (Fault::new(Code::Ok, ""), Some(standing)),
        Err(fault) => {
            tracing::warn!(tenant = %live.facts.tenant, reason = %fault, "a licence was not taken");
            (fault, None)
        }
    };
    answer(relay, live, request, fault, standing);
}

fn answer(relay: &Relay, live: &Live<Channel>, request: u32, fault: Fault, standing: Option<Standing>) {
    let required = relay.licences.required();
    if live.handle.send_control(&LicenceVerdict { request, fault, standing, required }.into()).is_err() {
        dropped(DropReason::ControlQueueFull);
    }
}
