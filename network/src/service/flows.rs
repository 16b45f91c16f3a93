//! Which UDP flows are stale: their client would go on talking to an endpoint that no longer serves. Pure.
//!
//! TCP is left alone: an established connection ends when one of its ends does, and a rollout lets it finish.

use super::Protocol;
use super::ProxyConfig;
use super::model::{Destination, Model, Outcome};
use crate::netlink::conntrack::Flow;

/// Whether anything about UDP differs, so that looking through the flows is worth it.
pub(super) fn may_be_stale(old: &Model, new: &Model) -> bool {
    udp(old).ne(udp(new))
}

/// Every UDP destination with who serves it.
fn udp(model: &Model) -> impl Iterator<Item = (Option<Destination>, u16, &Outcome, Option<&super::model::Backend>)> {
    let backend = |outcome: &Outcome| match outcome {
        Outcome::Chain(name) => model.backends.get(name),
        Outcome::Refuse | Outcome::Drop => None,
    };
    let services = model.services.iter().filter(|(to, _)| to.protocol == Protocol::Udp);
    let ports = model.node_ports.iter().filter(|((protocol, _), _)| *protocol == Protocol::Udp);
    services
        .map(move |(to, o)| (Some(*to), to.port, o, backend(o)))
        .chain(ports.map(move |((_, port), o)| (None, *port, o, backend(o))))
}

/// Whether `flow` must be forgotten now that `new` holds instead of `old` (`None`: unknown, after a start).
pub(super) fn is_stale(flow: &Flow, old: Option<&Model>, new: &Model, config: &ProxyConfig) -> bool {
    let serves = |model: &Model, outcome: &Outcome| match outcome {
        Outcome::Chain(name) => model.backends.get(name).is_some_and(|b| b.endpoints.contains(&flow.answered_by)),
        Outcome::Refuse | Outcome::Drop => false,
    };
    let to = Destination { ip: *flow.aimed_at.ip(), protocol: Protocol::Udp, port: flow.aimed_at.port() };
    if let Some(outcome) = new.services.get(&to) {
        return !serves(new, outcome);
    }
    if old.is_some_and(|old| old.services.get(&to).is_some()) {
        return true;
    }
    // A node port may be at any address: only flows that were rewritten to a pod are surely ours.
    let rewritten = flow.aimed_at != flow.answered_by && config.cluster_cidr.contains((*flow.answered_by.ip()).into());
    let key = (Protocol::Udp, flow.aimed_at.port());
    match new.node_ports.get(&key) {
        Some(outcome) => rewritten && !serves(new, outcome),
        None => rewritten && old.is_some_and(|old| old.node_ports.get(&key).is_some()),
    }
}
