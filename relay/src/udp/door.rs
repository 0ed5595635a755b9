//! QUIC connections, until their peers have shown who they are: the same permits, the same waiting room and the same
//! deadline as for TCP.

use std::sync::Arc;

use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::telemetry::dropped;
use hedgerow_runtime::{clock, quic};
use hedgerow_shared::fault::{Code, DropReason, Fault};
use quinn::{Connecting, Endpoint, ServerConfig};
use tokio::sync::OwnedSemaphorePermit;

use super::{Forwarder, Port};
use crate::accept::{Doors, Place};
use crate::serve;

/// Hand-shakes that begin with a proof of the address (RFC 9000 section 8.1.2) when more than this part of the waiting
/// room is taken: a flood with forged addresses then costs the relay one packet each.
const CROWDED: usize = 4;

/// Serves QUIC links on a port until `scope` ends, and hands tunnel datagrams to the forwarder. What was accepted lives
/// on in the relay's own scope.
///
/// # Errors
/// The configuration that quinn refuses.
pub fn open(
    doors: &Doors,
    port: Arc<Port>,
    forwarder: Option<Arc<dyn Forwarder>>,
    scope: &Scope,
) -> std::io::Result<()> {
    let relay = &doors.relay;
    let config = quic_config(doors).map_err(std::io::Error::other)?;
    let tasks = Arc::new(quic::Tasks(relay.work.clone()));
    let endpoint = Endpoint::new_with_abstract_socket(
        quic::relay_endpoint_config(relay.store.reset_key()),
        Some(config),
        port.clone(),
        tasks,
    )?;
    // Links outlive the doors: the port is read until the relay itself ends.
    for shard in 0..port.received().len() {
        let (port, forwarder) = (port.clone(), forwarder.clone());
        relay.work.spawn(async move { port.receive(shard, forwarder).await });
    }
    let (ends, ended) = (endpoint.clone(), relay.work.clone());
    relay.work.spawn_until_done(async move {
        ended.cancelled().await;
        quic::close_endpoint(&ends, &Fault::new(Code::Draining, "the relay is shutting down"));
    });
    let (doors, own) = (doors.clone(), scope.clone());
    scope.spawn_until_done(async move {
        tokio::select! {
            () = accept(&doors, &endpoint) => {}
            () = own.cancelled() => endpoint.set_server_config(None),
        }
    });
    Ok(())
}

fn quic_config(doors: &Doors) -> Result<ServerConfig, Fault> {
    let tls = doors.tls.read().config().clone();
    quic::server_config(&tls, &doors.relay.timers)
}

async fn accept(doors: &Doors, endpoint: &Endpoint) {
    let mut tls = doors.tls.read().config().clone();
    // None: as the endpoint was made.
    let mut replaced = None;
    while let Some(incoming) = endpoint.accept().await {
        // A certificate that was replaced counts from this connection on.
        let now = doors.tls.read().config().clone();
        if !Arc::ptr_eq(&tls, &now) {
            match quic_config(doors) {
                Ok(config) => {
                    endpoint.set_server_config(Some(config.clone()));
                    replaced = Some(Arc::new(config));
                }
                Err(error) => tracing::error!(%error, "the new certificate cannot be used for QUIC"),
            }
            tls = now;
        }
        if !incoming.remote_address_validated() && doors.waiting.is_crowded(CROWDED, incoming.remote_address().ip()) {
            // Dropping refuses; that is as good.
            let _ = incoming.retry();
            continue;
        }
        if doors.relay.handshakes.take((), clock::monotonic()).is_err() {
            dropped(DropReason::HandshakesPaced);
            incoming.refuse();
            continue;
        }
        let Ok(permit) = doors.permits.clone().try_acquire_owned() else {
            doors.waiting.shed(1);
            dropped(DropReason::RateLimited);
            incoming.refuse();
            continue;
        };
        metrics::counter!("hedgerow_relay_quic_accepts_total").increment(1);
        let connecting = match replaced.clone() {
            Some(config) => incoming.accept_with(config),
            None => incoming.accept(),
        };
        let connecting = match connecting {
            Ok(connecting) => connecting,
            Err(error) => {
                failed(&error);
                continue;
            }
        };
        let (place, doors) = (doors.waiting.enter(connecting.remote_address().ip()), doors.clone());
        doors.relay.clone().work.spawn(async move { greet(&doors, connecting, place, permit).await });
    }
}

fn failed(error: &quinn::ConnectionError) {
    tracing::debug!(%error, "QUIC hand-shake failed");
    metrics::counter!("hedgerow_relay_tls_failures_total").increment(1);
}

async fn greet(doors: &Doors, connecting: Connecting, place: Place, permit: OwnedSemaphorePermit) {
    let _permit = permit;
    let address = connecting.remote_address();
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(doors.relay.timers.handshake, connecting) => shaken,
        () = place.shown_out() => return,
    };
    let connection = match shaken {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return failed(&error),
        Err(_) => return dropped(DropReason::HandshakeTimeout),
    };
    metrics::counter!("hedgerow_relay_connections_total", "kind" => "quic").increment(1);
    serve::quic_link(&doors.relay, connection, address, place).await;
}
