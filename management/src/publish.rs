//! Keeps each relay up to date: licence, CA, configuration, look-up entries. One task a relay; it works when the link comes up
//! and whenever something was committed, and tries again by itself when the relay did not take it.
//!
//! A change made by another process on the same database is noticed by `housekeep`, which compares the tenant's
//! revision every two seconds; our own changes wake the tasks at once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hedgerow_runtime::clock;
use hedgerow_runtime::link::{Link, Uplink, UplinkStatus};
use hedgerow_runtime::scope::Scope;
use hedgerow_shared::Role;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::verify::{SignedLicence, Version};
use hedgerow_shared::wire::message::{
    CaRegistration, Control, LicencePresent, LinkOpen, OpenActivation, Registrations, Service, ServiceReply, Wake,
    address_hash,
};
use hedgerow_shared::wire::names::RegisteredName;
use hedgerow_uem_core::store::Page;
use hedgerow_uem_core::{Actor, CoreError};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout};

use crate::app::{App, LicenceAt, RelayState, Standing, call};
use crate::available::{Availability, Clocks};
use crate::services;

/// The first pause after a relay did not take something; it doubles up to `LONGEST`.
const FIRST: Duration = Duration::from_secs(1);
/// The longest such pause.
const LONGEST: Duration = Duration::from_secs(30);
/// How often the tenant's revision is compared: half of what a revocation may take.
const LOOK: Duration = Duration::from_secs(2);
/// Between two looks at who is under which profile.
const PLACE_PAUSE: Duration = Duration::from_millis(500);
/// After this long it is looked at in any case.
const PLACED_AGAIN: Duration = Duration::from_secs(30);
/// How often re-issue, expiry and our own certificate are looked after.
const CHORES: Duration = Duration::from_secs(10);
/// How often people are reminded of the licence.
const REMIND: Duration = Duration::from_secs(24 * 3600);
/// The largest answer of a relay's service, bytes: every name refused, with its reason.
const MAX_REPLY: usize = 256 * 1024;
/// How often what a relay refused is asked for again: another tenant may have let go of a name, an operator may have
/// brought a licence key.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

/// What this link has been told.
#[derive(Default)]
struct Told {
    ca: bool,
    config: Option<Version>,
    registrations: Option<Registrations>,
    /// Some of its names were refused.
    refused: bool,
    /// How often a licence was shown,
    shown: u32,
    /// and the last one.
    licence: Option<SignedLicence>,
}

impl Told {
    /// Forgets what the relay refused, so that it is asked for again.
    fn ask_again(&mut self, state: &RelayState) {
        if self.refused {
            self.registrations = None;
        }
        if let LicenceAt::Judged { verdict, .. } = &state.standing.lock().licence
            && verdict.fault.code != Code::Ok
        {
            self.licence = None;
        }
    }
}

/// Serves and feeds one relay for as long as the uplink lives.
pub(crate) async fn keep(app: Arc<App>, relay: usize, uplink: Uplink, scope: Scope) {
    let Some(state) = app.relays.get(relay) else { return };
    let mut status = uplink.status();
    loop {
        let now = status.borrow_and_update().clone();
        match now {
            UplinkStatus::Up(link) => {
                *state.standing.lock() = Standing {
                    up: Some(clock::now()),
                    transport: Some((link.transport.label(), link.reason.label())),
                    ..Standing::default()
                };
                // The old link's streams end by themselves when a relay drains: each link has its own task.
                scope.spawn(services::accept(app.clone(), link.mux.clone(), scope.clone()));
                tokio::select! {
                    () = feed(&app, state, &link) => {}
                    () = wake(&app, &link) => {}
                    () = verdicts(&app, state, &link) => {}
                    _ = status.changed() => continue,
                }
            }
            UplinkStatus::Connecting(fault) => *state.standing.lock() = Standing { fault, ..Standing::default() },
            UplinkStatus::Stopped => {
                *state.standing.lock() = Standing::default();
                return;
            }
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Tells the relay what it does not know yet, again and again, until the link ends.
async fn feed(app: &App, state: &RelayState, link: &Link) {
    let mut changes = app.changes();
    let mut told = Told::default();
    let mut pause = FIRST;
    loop {
        changes.borrow_and_update();
        let again = match bring_up_to_date(app, state, link, &mut told).await {
            Ok(()) => {
                state.standing.lock().fault = None;
                pause = FIRST;
                None
            }
            Err(fault) => {
                metrics::counter!("hedgerow_core_publish_failures_total", "reason" => fault.code.label()).increment(1);
                tracing::warn!(relay = state.name, reason = %fault, "the relay is not up to date");
                state.standing.lock().fault = Some(fault);
                let again = pause;
                pause = pause.saturating_mul(2).min(LONGEST);
                Some(again)
            }
        };
        let due = async {
            match again {
                // A change does not shorten the pause: a relay that refuses is not asked faster for being asked more.
                Some(pause) => tokio::time::sleep(pause).await,
                None => {
                    if timeout(REFUSED_AGAIN, changes.changed()).await.is_err() {
                        told.ask_again(state);
                    }
                }
            }
        };
        tokio::select! {
            () = due => {}
            _ = link.mux.closed() => return,
        }
    }
}

/// Has the relay wake devices that something waits for, until the link ends.
async fn wake(app: &App, link: &Link) {
    let mut wakes = app.wakes();
    loop {
        let word = match wakes.recv().await {
            Ok(device) => Wake { roles: Vec::new(), ids: vec![device] },
            // Too many at once to name: all are.
            Err(RecvError::Lagged(_)) => Wake { roles: vec![Role::Device], ids: Vec::new() },
            Err(RecvError::Closed) => return,
        };
        if link.mux.send_control(&word.into()).is_err() && link.mux.is_closed() {
            return;
        }
    }
}

/// Takes the relay's verdicts about our licence, until the link ends.
async fn verdicts(app: &App, state: &RelayState, link: &Link) {
    let mut last = None;
    while let Some(message) = link.mux.next_control().await {
        // Relays send a core nothing else.
        let Control::LicenceVerdict(verdict) = message else { continue };
        let result = verdict.fault.code.label();
        metrics::counter!("hedgerow_core_licence_verdicts_total", "result" => result).increment(1);
        match verdict.fault.code {
            Code::Ok => {
                tracing::info!(relay = state.name, standing = ?verdict.standing, "the relay has accepted the licence")
            }
            // Shown again every minute, told once.
            _ if last.as_ref() == Some(&verdict.fault) => {}
            _ => tracing::warn!(relay = state.name, reason = %verdict.fault, "the relay has refused the licence"),
        }
        last = Some(verdict.fault.clone());
        app.licence_judged(state, verdict);
    }
}

/// Shows the licence, if the relay has not seen it on this link. First of all: with it, devices and nodes are let in.
async fn show_licence(app: &App, state: &RelayState, link: &Link, told: &mut Told) -> Result<(), Fault> {
    let installed = app.domain.licence(&app.tenant).await.map_err(internal)?;
    let Some(installed) = installed else {
        told.licence = None;
        state.standing.lock().licence = LicenceAt::NotShown;
        return Ok(());
    };
    if told.licence.as_ref() == Some(&installed.signed) {
        return Ok(());
    }
    told.shown = told.shown.wrapping_add(1);
    let (request, id) = (told.shown, installed.licence.id);
    state.standing.lock().licence = LicenceAt::Shown { request, id };
    link.mux.send_control(&LicencePresent { request, licence: installed.signed.clone() }.into())?;
    told.licence = Some(installed.signed);
    Ok(())
}

async fn bring_up_to_date(app: &App, state: &RelayState, link: &Link, told: &mut Told) -> Result<(), Fault> {
    show_licence(app, state, link, told).await?;
    if !told.ca {
        // The one that a relay has longest: it learns of the next one by a configuration.
        let request = CaRegistration { certificate: app.ca.der().to_vec() };
        ask(app, link, Service::RegisterCa, &request).await?;
        told.ca = true;
        state.standing.lock().ca = true;
    }
    let version = app.domain.config_version(&app.tenant).await.map_err(internal)?;
    if told.config != Some(version) {
        let configs = app.configs().await.map_err(internal)?;
        let reply = ask(app, link, Service::PutConfig, &configs.relay).await?;
        let in_force = reply.version.unwrap_or(configs.version);
        if in_force > configs.version {
            // Only a raised epoch gets past a relay that has seen more than this database.
            let text = format!(
                "the relay has configuration {in_force}, we have {}: was the database restored from a backup? raise the epoch",
                configs.version
            );
            return Err(Fault::new(Code::Protocol, text));
        }
        app.acknowledge(&format!("relay:{}", state.name), in_force).await.map_err(internal)?;
        state.standing.lock().config = Some(in_force);
        told.config = Some(configs.version);
        metrics::counter!("hedgerow_core_configs_published_total").increment(1);
        tracing::debug!(relay = state.name, version = %configs.version, "configuration in force at the relay");
        link.mux.send_control(&Wake { roles: vec![Role::Node, Role::Device], ids: Vec::new() }.into())?;
    }
    // Relays without a look-up key have no look-up.
    if let Some(key) = &link.accept.lookup_key {
        let open = app.domain.open_addresses(&app.tenant, clock::now()).await.map_err(internal)?;
        let addresses = open.iter().map(|o| o.email.clone()).collect();
        let open = open
            .iter()
            .map(|o| OpenActivation { hash: address_hash(key, o.email.as_str()), until: o.expires.0 })
            .collect();
        let names = app.domain.names(&app.tenant).await.map_err(internal)?;
        let names: Vec<_> = names.into_iter().map(|n| RegisteredName { name: n.name, origin: n.origin }).collect();
        let wanted = Registrations { open, names: names.clone(), serves: app.published.origins() };
        if told.registrations.as_ref() != Some(&wanted) {
            let reply = ask(app, link, Service::PutRegistrations, &wanted).await?;
            // Asked for again every minute, told once.
            let known = state.standing.lock().refused.clone();
            for refused in reply.refused.iter().flatten().filter(|r| !known.contains(r)) {
                tracing::warn!(relay = state.name, name = refused.name, reason = %refused.fault, "a name is not passed through");
            }
            told.refused = reply.refused.as_ref().is_some_and(|r| !r.is_empty());
            app.registered(state, addresses, names, reply);
            told.registrations = Some(wanted);
        }
    }
    Ok(())
}

/// One request of a relay's service.
async fn ask(
    app: &App,
    link: &Link,
    service: Service,
    request: &impl minicbor::Encode<()>,
) -> Result<ServiceReply, Fault> {
    let body = minicbor::to_vec(request).map_err(|e| Fault::new(Code::Internal, e.to_string()))?;
    let exchange = async {
        let mut stream = link.mux.open(&LinkOpen::Service { service }).await?;
        stream.write_chunk(Bytes::from(body)).await?;
        stream.finish();
        let mut answer = Vec::new();
        while let Some(chunk) = stream.read_chunk().await? {
            if answer.len() + chunk.len() > MAX_REPLY {
                return Err(Fault::new(Code::Protocol, "the relay's answer is too long"));
            }
            answer.extend_from_slice(&chunk);
        }
        minicbor::decode::<ServiceReply>(&answer)
            .map_err(|_| Fault::new(Code::Protocol, "the relay's answer is malformed"))
    };
    let reply = timeout(app.timers.request, exchange)
        .await
        .map_err(|_| Fault::new(Code::TimedOut, format!("the relay did not answer {service:?} in time")))??;
    match reply.fault.code {
        Code::Ok => Ok(reply),
        _ => Err(Fault::new(reply.fault.code, format!("{service:?}: {}", reply.fault.text))),
    }
}

fn internal(error: CoreError) -> Fault {
    tracing::error!(%error, "the domain failed");
    Fault::new(Code::Internal, "the core's own storage failed")
}

/// Says once a day that the licence ends soon, has ended, or that its seats are used up; keeps its gauges.
async fn remind(app: &App, last: &mut Option<Instant>) {
    let overview = match app.domain.licence_overview(&app.tenant, clock::now()).await {
        Ok(Some(overview)) => overview,
        Ok(None) => return *last = None,
        Err(error) => return tracing::error!(%error, "the licence cannot be read"),
    };
    let licence = &overview.installed.licence;
    for (name, value) in [
        ("hedgerow_core_licence_expires_seconds", licence.expires.0 as f64),
        ("hedgerow_core_licence_seats", licence.seats.map_or(f64::INFINITY, f64::from)),
        ("hedgerow_core_licence_seats_used", overview.seats_used as f64),
    ] {
        metrics::gauge!(name).set(value);
    }
    match overview.warning {
        None => *last = None,
        Some(warning) if last.is_none_or(|at| at.elapsed() >= REMIND) => {
            *last = Some(Instant::now());
            tracing::warn!("{warning}");
        }
        Some(_) => {}
    }
}

/// Looks for changes by others, re-issues the configuration hourly, removes what expired, renews our certificate.
pub(crate) async fn housekeep(app: Arc<App>) {
    let mut revision = None;
    let mut chores = Instant::now();
    let mut reminded = None;
    loop {
        match app.domain.tenant(&app.tenant).await {
            Ok(row) if revision != Some(row.revision) => {
                // First: a revocation waits for nothing.
                app.changed();
                revision = Some(row.revision);
                if let Err(error) = app.know_cas().await {
                    tracing::error!(error = format!("{error:#}"), "the tenant's CAs");
                    // Tried again with the next look.
                    revision = None;
                }
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "the tenant cannot be read"),
        }
        if Instant::now() >= chores {
            chores = Instant::now() + CHORES;
            match app.domain.reissue_if_due(&mut call(Actor::System), &app.tenant).await {
                Ok(Some(version)) => tracing::info!(%version, "configuration issued again"),
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "the configuration cannot be issued again"),
            }
            match app.domain.expire_commands(&mut call(Actor::System), &app.tenant).await {
                Ok(0) => {}
                Ok(expired) => tracing::info!(expired, "commands have come to the end of their time"),
                Err(error) => tracing::error!(%error, "commands whose time is over stay open"),
            }
            remind(&app, &mut reminded).await;
            if let Err(error) = app.renew_identity().await {
                tracing::error!(error = format!("{error:#}"), "the core's certificates");
            }
            if let Err(error) = app.show_expiry().await {
                tracing::error!(%error, "the tenant's certificates cannot be read");
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Puts devices under the connectivity profiles that have effect on them, and into quarantine, whenever something has
/// changed; in a task of its own, since it looks at all devices.
pub(crate) async fn keep_placed(app: Arc<App>) {
    let mut changes = app.changes();
    let mut seen = None;
    loop {
        let done = async {
            let revision = app.domain.tenant(&app.tenant).await?.revision;
            if seen == Some(revision) {
                return Ok((revision, None));
            }
            let placed = app.domain.place_if_changed(&mut call(Actor::System), &app.tenant).await?;
            Ok::<_, CoreError>((revision, placed))
        };
        match done.await {
            Ok((revision, placed)) => {
                // Not that of our own commit: what came in between is looked at once more.
                seen = Some(revision);
                if let Some(version) = placed {
                    tracing::info!(%version, "devices come under other connectivity profiles");
                    app.changed();
                }
            }
            Err(error) => tracing::error!(%error, "connectivity profiles do not come into force; it is tried again"),
        }
        // A change by another process is noticed by `housekeep`, which says so here too.
        let _ = timeout(PLACED_AGAIN, changes.changed()).await;
        tokio::time::sleep(PLACE_PAUSE).await;
    }
}

/// How often all devices are judged: as fine as an hour, which rules count in, needs.
const ROUND: Duration = Duration::from_secs(600);
/// Devices of one page of a round.
const ROUND_PAGE: u32 = 200;
/// Between two pages: whoever waits for the database comes first.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

/// Goes round all devices: time alone breaks rules, and what they told grows old.
pub(crate) async fn watch_devices(app: Arc<App>) {
    let clocks = || Clocks { wall: clock::now(), steady: clock::monotonic() };
    let mut availability = Availability::begin(clocks());
    loop {
        tokio::time::sleep(ROUND).await;
        let linked = app.relays.iter().any(|relay| relay.standing.lock().up.is_some());
        let readable = app.domain.tenant(&app.tenant).await.is_ok();
        let available = match availability.since(clocks(), linked && readable) {
            Ok(since) => since,
            Err(jumped) => {
                tracing::error!(
                    clock_seconds = jumped.wall,
                    elapsed_seconds = jumped.steady,
                    "the clock has jumped, or the machine has slept: devices are not judged in this round, and their silence \
                     counts anew; set the clock right"
                );
                continue;
            }
        };
        let mut page = Page { after: None, limit: ROUND_PAGE };
        loop {
            match app.sweep(&mut call(Actor::System).available_since(available), page).await {
                Ok(swept) => {
                    for (device, why) in swept.failed {
                        tracing::error!(%device, reason = why, "a device cannot be judged; the round goes on");
                    }
                    match swept.next {
                        Some(next) => page.after = Some(next),
                        None => break,
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the round of devices was cut short");
                    break;
                }
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }
}
