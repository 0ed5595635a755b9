//! One connection of a device: header → room → rules → dial → answer → bytes, and its line in the audit trail.

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;

use hedgerow_proxy::dial::{DialError, Dialer, Dialled};
use hedgerow_proxy::splice::{Outbound, ReadAhead, splice};
use hedgerow_proxy::target::{Host, Target};
use hedgerow_runtime::mux::{Incoming, Stream};
use hedgerow_shared::EntityId;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::verify::VerifiedCertificate;
use hedgerow_shared::wire::message::{SessionOpen, TunnelAsk};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use crate::serve::Service;
use crate::sessions::Registered;

/// What stands behind the node.
#[derive(Debug, Clone)]
pub enum Inside {
    /// The network that this machine is in.
    Network(Dialer),
    /// A world that is only modelled.
    Given(Arc<dyn Servers>),
}

/// The servers of such a world.
pub trait Servers: Debug + Send + Sync {
    /// Serves one connection that the rules allow, to its end.
    fn serve(&self, target: Target, stream: Stream) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Serves one stream of a session until it has ended.
pub(crate) async fn connection(
    service: Arc<Service>,
    device: VerifiedCertificate,
    registered: Arc<Registered>,
    incoming: Incoming,
) {
    let open: SessionOpen = match incoming.read_header() {
        Ok(open) => open,
        Err(fault) => return refuse(incoming, "malformed", fault),
    };
    if let Some(ask) = &open.tunnel {
        return tunnel(&service, &device, ask, incoming).await;
    }
    let trace =
        open.trace.as_deref().filter(|t| t.len() == 32 && t.bytes().all(|b| b.is_ascii_hexdigit())).unwrap_or("");
    let device = device.identity.id;
    let target = match Target::new(&open.host, open.port) {
        Ok(target) => target,
        Err(error) => {
            tracing::info!(target: "audit", %device, trace, result = "refused", reason = error.to_string().escape_debug().to_string(), "connection");
            return refuse(incoming, "bad_target", Fault::new(Code::DeniedByPolicy, error.to_string()));
        }
    };
    let _room = match registered.room() {
        Ok(room) => room,
        Err(fault) => {
            tracing::info!(target: "audit", %device, trace, %target, result = "refused", reason = %fault, "connection");
            return refuse(incoming, "limited", fault);
        }
    };
    let started = Instant::now();
    let dialled = match &service.inside {
        Inside::Network(dialer) => dialer.dial(&target, &service.policies.current().rules(&device).acl).await,
        Inside::Given(servers) => match allowed(&service, &device, &target) {
            Ok(()) => return servers.serve(target, incoming.accept()).await,
            Err(error) => Err(error),
        },
    };
    let Dialled { tcp, address, permit } = match dialled {
        Ok(dialled) => dialled,
        Err(error) => {
            let reason = match &error {
                DialError::Denied { denial, .. } => denial.reason.label(),
                other => other.code().label(),
            };
            tracing::info!(target: "audit", %device, trace, %target, result = "refused", reason = %error, "connection");
            return refuse(incoming, reason, error.fault());
        }
    };
    metrics::counter!("hedgerow_node_connections_total").increment(1);
    metrics::histogram!("hedgerow_node_connect_seconds").record(started.elapsed().as_secs_f64());
    // Written when it opens, too: a connection may live for days, and the process may not.
    let rule = permit.as_ref().map_or(0, |p| p.rule + 1);
    let client = registered.client();
    let from = client.map(|c| c.to_string()).unwrap_or_default();
    tracing::info!(target: "audit", %device, from, trace, %target, %address, rule, result = "open", "connection");
    let header = service.told.header(&target, address, client);
    let mut closing = Closing { device: device.to_string(), trace: trace.to_owned(), target, started, ended: None };
    let ahead = ReadAhead { down: header, ..ReadAhead::default() };
    let outcome = splice(tcp, Outbound::Tunnel(incoming.accept()), ahead).await;
    closing.ended = Some((
        outcome.down,
        outcome.up,
        outcome.fault.map_or_else(|| "closed".to_owned(), |f| f.code.label().to_owned()),
    ));
}

/// What the rules say of a target that no resolver is asked about.
fn allowed(service: &Service, device: &EntityId, target: &Target) -> Result<(), DialError> {
    let policy = service.policies.current();
    let acl = &policy.rules(device).acl;
    let asked = match &target.host {
        Host::Address(address) => acl.address(*address, target.port).map(|_| ()),
        Host::Name(name) => acl.before_resolving(name, target.port).map(|_| ()),
    };
    asked.map_err(|denial| DialError::Denied { target: target.clone(), denial })
}

fn refuse(incoming: Incoming, reason: &'static str, fault: Fault) {
    metrics::counter!("hedgerow_node_connections_refused_total", "reason" => reason).increment(1);
    incoming.refuse(fault);
}

/// Writes the closing line, also when the connection is cut with its session.
struct Closing {
    device: String,
    trace: String,
    target: Target,
    started: Instant,
    ended: Option<(u64, u64, String)>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        let (to_server, to_device, result) = self.ended.take().unwrap_or((0, 0, "cut".to_owned()));
        let seconds = self.started.elapsed().as_secs_f64();
        let Self { device, trace, target, .. } = self;
        tracing::info!(target: "audit", device, trace, %target, result, to_server, to_device, seconds, "connection");
    }
}

/// Answers a device that asks for an IP tunnel; the stream carries the answer and no more.
async fn tunnel(service: &Service, device: &VerifiedCertificate, ask: &TunnelAsk, incoming: Incoming) {
    let Some(tunnels) = &service.tunnels else {
        let fault = Fault::new(Code::NoRoute, "this node has no IP tunnels: [tunnel] enabled in its configuration");
        return refuse(incoming, "no_tunnels", fault);
    };
    match tunnels.grant(device, ask) {
        Ok(grant) => {
            let mut stream = incoming.accept();
            let answer = minicbor::to_vec(&grant).unwrap_or_default();
            // A device that does not read it asks again.
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
        Err(fault) => {
            tracing::info!(target: "audit", device = %device.identity.id, result = "refused", reason = %fault, "tunnel");
            refuse(incoming, "tunnel", fault);
        }
    }
}
