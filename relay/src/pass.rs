//! Connections that are passed through by server name: a TLS client asked for a name that a tenant registered, and its
//! unread bytes become a stream to that tenant's `gateway`, `mdm` or `core`. The relay never opens them.
//!
//! ```text
//!   accept: ClientHello read, name found --> limits --> stream over a link --> bytes both ways, as they came
//! ```
//! Such a connection lives as long as its name: when the tenant is blocked or removed, or the name withdrawn, it is cut.
//! Tunnels by CONNECT stand in the same table, so that an operator sees and cuts them too.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use hedgerow_runtime::clock;
use hedgerow_runtime::link::{Channel, Stream};
use hedgerow_runtime::telemetry::dropped;
use hedgerow_shared::fault::{Code, DropReason, Fault};
use hedgerow_shared::verify::Feature;
use hedgerow_shared::wire::message::{Destination, Vouched};
use hedgerow_shared::wire::names::RefusedName;
use hedgerow_shared::{Origin, SessionId, TenantId, UnixTime};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::accept::Place;
use crate::fair::Meter;
use crate::limit::{Share, client_key};
use crate::probe::Probe;
use crate::pump;
use crate::registry::Live;
use crate::state::{Relay, count_refusal};

/// Where a connection goes by the name that it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The server name, lower case; of a CONNECT the authority.
    pub name: String,
    /// Who registered it.
    pub tenant: TenantId,
    /// Where its connections go.
    pub origin: Origin,
}

/// Where a connection came from.
#[derive(Debug, Clone, Copy)]
pub struct From {
    /// Its address.
    pub address: SocketAddr,
    /// Of its socket.
    pub probe: Option<Probe>,
}

/// How a connection said where it wants to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// By the server name of its TLS.
    Name,
    /// By CONNECT: the name is the authority, which nothing depends on.
    Connect,
}

/// One connection that is passed through.
#[derive(Debug)]
pub struct Pass {
    /// For `GET /sessions` and for cutting it.
    pub id: SessionId,
    /// How it asked.
    pub asked: Asked,
    /// Where it goes.
    pub to: Named,
    /// Where it came from.
    pub from: From,
    /// What its bytes are charged to and counted in.
    pub meter: Meter,
    /// When it was opened.
    pub since: UnixTime,
    end: CancellationToken,
}

impl Pass {
    /// Ends it now.
    pub fn cut(&self) {
        self.end.cancel();
    }

    /// Moves its bytes until it ends or is cut.
    pub(crate) async fn carry(&self, io: impl AsyncRead + AsyncWrite + Unpin, stream: Stream, by: &Live<Channel>) {
        tokio::select! {
            () = pump::client(io, (stream, &by.stalls), &self.meter) => {}
            () = self.end.cancelled() => {
                count_refusal(&Fault::new(Code::Forbidden, ""));
                tracing::info!(tenant = %self.to.tenant, origin = %self.to.origin, "a connection passed through was cut");
            }
        }
    }
}

/// Every connection that is passed through now.
#[derive(Debug, Default)]
pub struct Passes {
    /// Short critical sections without await: one entry and one exit a connection.
    live: Mutex<HashMap<SessionId, Arc<Pass>>>,
}

impl Passes {
    /// Those that live.
    #[must_use]
    pub fn live(&self) -> Vec<Arc<Pass>> {
        self.live.lock().values().cloned().collect()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: SessionId) -> Option<Arc<Pass>> {
        self.live.lock().get(&id).cloned()
    }

    /// Puts a connection into the table; dropping what comes back takes it out.
    pub(crate) fn enter(&self, asked: Asked, to: Named, from: From, meter: Meter) -> Entered<'_> {
        let id = SessionId::from_random(clock::random());
        let pass = Arc::new(Pass { id, asked, to, from, meter, since: clock::now(), end: CancellationToken::new() });
        self.live.lock().insert(id, pass.clone());
        Entered { passes: self, pass }
    }

    /// Ends those for which `which` holds; how many.
    pub fn cut(&self, which: impl Fn(&Pass) -> bool) -> usize {
        let cut: Vec<_> = self.live().into_iter().filter(|pass| which(pass)).collect();
        cut.iter().for_each(|pass| pass.cut());
        cut.len()
    }
}

/// A pass in the table; dropping it takes it out.
pub(crate) struct Entered<'a> {
    passes: &'a Passes,
    pass: Arc<Pass>,
}

impl Deref for Entered<'_> {
    type Target = Pass;

    fn deref(&self) -> &Pass {
        &self.pass
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.passes.live.lock().remove(&self.pass.id);
    }
}

impl Relay {
    /// Where a server name leads, if a tenant that may use the relay has registered it.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Named> {
        let (tenant, origin) = self.store.name(name)?;
        Some(Named { name: name.to_owned(), tenant, origin })
    }

    /// Cuts what is passed through under a name that does not lead there any more. How many.
    pub fn cut_lost_names(&self) -> usize {
        self.passes.cut(|pass| {
            let leads_there = || self.named(&pass.to.name).as_ref() == Some(&pass.to);
            pass.asked == Asked::Name && !(leads_there() && self.may_go_on(&pass.to))
        })
    }

    /// Whether what is passed through runs on: a licence cuts at the end of its grace only.
    fn may_go_on(&self, to: &Named) -> bool {
        let tenant = self.store.tenant(&to.tenant).filter(|_| Feature::of(to.origin).is_some());
        tenant.is_none_or(|t| self.licences.admits(&t, clock::now()).is_ok())
    }

    /// Names that the tenant holds and whose clients are turned away because its licence does not grant them.
    #[must_use]
    pub fn unlicensed_names(&self, tenant: &TenantId) -> Vec<RefusedName> {
        let Some(tenant) = self.store.tenant(tenant) else { return Vec::new() };
        let refused = tenant.names.iter().filter_map(|(name, origin)| {
            let fault = self.licences.grants(&tenant, Feature::of(*origin)?, clock::now()).err()?.fault();
            Some(RefusedName { name: name.clone(), fault })
        });
        refused.collect()
    }
}

/// Serves one connection to its end. `io` yields everything the client sent, its ClientHello first. The place among
/// those that are not known yet is kept until an endpoint has answered.
pub(crate) async fn serve<IO>(
    relay: &Arc<Relay>,
    io: IO,
    to: Named,
    from: From,
    place: Place,
    permit: OwnedSemaphorePermit,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let _permit = permit;
    let opened = tokio::select! {
        opened = open(relay, &to, from.address) => opened,
        () = place.shown_out() => return,
    };
    drop(place);
    let (stream, by, _share) = match opened {
        Ok(opened) => opened,
        Err(fault) => {
            count_refusal(&fault);
            tracing::debug!(tenant = %to.tenant, origin = %to.origin, reason = %fault, "not passed through");
            return;
        }
    };
    let meter = relay.fair.meter(&to.tenant, &[by.facts.holder()]);
    let pass = relay.passes.enter(Asked::Name, to, from, meter);
    // Whoever was blocked, and a name that was withdrawn, between the look-up and this line.
    if relay.named(&pass.to.name).as_ref() != Some(&pass.to) {
        return dropped(DropReason::UnknownName);
    }
    metrics::counter!("hedgerow_relay_passed_total", "origin" => pass.to.origin.as_str()).increment(1);
    pass.carry(io, stream, &by).await;
}

/// The limits of anonymous CONNECT, then a stream.
async fn open(
    relay: &Arc<Relay>,
    to: &Named,
    address: SocketAddr,
) -> Result<(Stream, Arc<Live<Channel>>, Share<IpAddr>), Fault> {
    let client = client_key(address.ip());
    let limited = |what: &str| {
        dropped(DropReason::RateLimited);
        Fault::new(Code::Limited, what)
    };
    relay.connect_client.take(client, Instant::now()).map_err(|_| limited("too many connections of one client"))?;
    relay
        .connect_tenant
        .take(to.tenant.clone(), Instant::now())
        .map_err(|_| limited("too many connections to one tenant"))?;
    let share = relay.tunnels.take(client).ok_or_else(|| limited("too many tunnels are open from one address"))?;
    if relay.is_draining() {
        return Err(relay.farewell().fault);
    }
    relay.licensed(&to.tenant, Feature::of(to.origin))?;
    let destination =
        Destination { tenant: to.tenant.clone(), origin: to.origin, group: None, instance: None, node: None };
    let vouched = Vouched { role: None, id: None, address: address.to_string() };
    let (stream, by) = relay.open(&destination, vouched, None, None).await?;
    Ok((stream, by, share))
}
