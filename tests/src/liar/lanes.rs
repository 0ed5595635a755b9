//! Lanes: tickets given, legs joined, rightly or not.

use std::collections::HashMap;
use std::sync::Arc;

use hedgerow_runtime::clock::random;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::wire::message::{LaneCall, LaneOffer, LaneRefused, LaneRequest, Vouched};
use hedgerow_shared::{Role, Ticket};

use super::conduit::{Conn, What, carry};
use super::{Answer, Known, Shared, lock, middle};

/// Whose leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Device,
    Node,
}

#[derive(Default)]
pub(super) struct Lanes {
    tickets: HashMap<Ticket, (u64, Side)>,
    waiting: HashMap<(u64, bool), Conn>,
    /// Whole lanes, and lone device legs, that wait to be joined with the wrong ones.
    odd: Vec<(Conn, Option<Conn>)>,
    /// Legs that are kept for nothing.
    held: Vec<Conn>,
    next: u64,
}

/// A device asks for a lane.
pub(super) fn offer(shared: &Shared, device: &Known, request: &LaneRequest) {
    if let Err(fault) = try_offer(shared, device, request) {
        // The link may be gone.
        let _ = device.link.mux.send_control(&LaneRefused { request: request.request, fault }.into());
    }
}

fn try_offer(shared: &Shared, device: &Known, request: &LaneRequest) -> Result<(), Fault> {
    let nodes: Vec<Known> = shared.live_links().into_iter().filter(|k| k.role == Role::Node).collect();
    let lies = lock(&shared.lies);
    if lies.gone_said && request.to.instance.is_some() {
        return Err(gone());
    }
    if lies.requests_ignored {
        return Ok(());
    }
    if lies.lanes_refused {
        // What a device takes for "no lanes on this network" is a lane that fails; a refusal would be final.
        let ticket = Ticket::from_random(random());
        let node = nodes.first().and_then(|n| n.entity).ok_or_else(no_node)?;
        let instance = nodes.first().map(|n| n.instance).ok_or_else(no_node)?;
        return device.link.mux.send_control(&LaneOffer { request: request.request, ticket, node, instance }.into());
    }
    let right = nodes.iter().rev().find(|n| n.is_meant(lies.called, &request.to)).ok_or_else(no_node)?;
    let (entity, instance) = (right.entity.ok_or_else(no_node)?, right.instance);
    let tickets = [Ticket::from_random(random()), Ticket::from_random(random())];
    {
        let mut lanes = lock(&shared.lanes);
        lanes.next += 1;
        let number = lanes.next;
        lanes.tickets.insert(tickets[0], (number, Side::Device));
        lanes.tickets.insert(tickets[1], (number, Side::Node));
    }
    let vouched = Vouched { role: Some(Role::Device), id: device.entity, address: device.link.address.clone() };
    let vouched = lies.vouched.clone().unwrap_or(vouched);
    let call = LaneCall { ticket: tickets[1], origin: request.to.origin, vouched };
    right.link.mux.send_control(&call.clone().into())?;
    if lies.called_twice {
        right.link.mux.send_control(&call.into())?;
    }
    let node = lies.named.unwrap_or(entity);
    let instance = lies.named_instance.unwrap_or(instance);
    device.link.mux.send_control(&LaneOffer { request: request.request, ticket: tickets[0], node, instance }.into())
}

/// What a relay says when another process has a node's certificate now.
pub(super) fn gone() -> Fault {
    Fault::new(Code::Gone, "the node's process has ended")
}

fn no_node() -> Fault {
    Fault::new(Code::NoRoute, "no node is linked to this relay")
}

/// A leg has come.
pub(super) fn arrive(shared: &Arc<Shared>, ticket: &Ticket, leg: Conn) {
    let (crossed, devices_joined, held, answer) = {
        let lies = lock(&shared.lies);
        (lies.lanes_crossed, lies.devices_joined, lies.legs_held, lies.node.clone())
    };
    let mut ready = Vec::new();
    {
        let mut lanes = lock(&shared.lanes);
        if held {
            return lanes.held.push(leg);
        }
        let Some((number, side)) = lanes.tickets.remove(ticket) else { return };
        if devices_joined {
            if side == Side::Device {
                lanes.odd.push((leg, None));
            }
        } else if let (Answer::Imposter(imposter), Side::Device) = (&answer, side) {
            let (shared, imposter) = (shared.clone(), imposter.clone());
            shared.scope.clone().spawn(async move { middle::answer(&shared, &imposter, leg).await });
            return;
        } else if let (Answer::Replay(bytes), Side::Device) = (&answer, side) {
            shared.scope.spawn(middle::replay(bytes.clone(), leg));
            return;
        } else if let Some(other) = lanes.waiting.remove(&(number, side == Side::Node)) {
            let (device, node) = if side == Side::Device { (leg, other) } else { (other, leg) };
            if crossed { lanes.odd.push((device, Some(node))) } else { ready.push((device, node)) }
        } else {
            lanes.waiting.insert((number, side == Side::Device), leg);
        }
        if lanes.odd.len() >= 2 {
            let (first, second) = (lanes.odd.remove(0), lanes.odd.remove(0));
            match (first, second) {
                ((a, Some(b)), (c, Some(d))) => ready.extend([(a, d), (c, b)]),
                ((a, _), (c, _)) => ready.push((a, c)),
            }
        }
    }
    for (device, node) in ready {
        let (shared, answer) = (shared.clone(), answer.clone());
        shared.scope.clone().spawn(async move {
            match answer {
                Answer::Middle(imposter) => middle::between(&shared, &imposter, device, node).await,
                _ => carry(shared, What::Lane, device, node).await,
            }
        });
    }
}
