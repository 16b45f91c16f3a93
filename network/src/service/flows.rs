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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{ServicePort, ServiceTable};

    fn config() -> ProxyConfig {
        ProxyConfig {
            instance: "t".into(),
            pod_cidr: "10.244.0.0/24".parse().unwrap(),
            cluster_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: None,
        }
    }

    fn model(endpoints: Option<&[&str]>) -> Model {
        let port = endpoints.map(|list| ServicePort {
            name: "ns/dns".into(),
            cluster_ips: vec!["10.96.0.1".parse().unwrap()],
            protocol: Protocol::Udp,
            port: 53,
            node_port: Some(30053),
            external_ips: vec![],
            endpoints: list.iter().map(|a| a.parse().unwrap()).collect(),
            local_endpoints: vec![],
            affinity_seconds: None,
            external_local: false,
            internal_local: false,
        });
        Model::of(&ServiceTable { ports: port.into_iter().collect(), ..ServiceTable::default() }, &config())
    }

    #[test]
    fn only_flows_of_ours_to_endpoints_that_left_are_stale() {
        let a: &[&str] = &["10.244.0.2:53"];
        let b: &[&str] = &["10.244.0.3:53"];
        let (gone, none): (Option<&[&str]>, Option<&[&str]>) = (None, Some(&[]));
        for (aimed, answered, old, new, stale) in [
            ("10.96.0.1:53", "10.244.0.2:53", Some(a), Some(b), true),
            ("10.96.0.1:53", "10.244.0.3:53", Some(a), Some(b), false),
            ("10.96.0.1:53", "10.244.0.2:53", Some(a), none, true),
            ("10.96.0.1:53", "10.244.0.2:53", Some(a), gone, true),
            // Never rewritten: the client has waited at the service's own address since before it was served.
            ("10.96.0.1:53", "10.96.0.1:53", none, Some(b), true),
            ("10.96.0.9:53", "10.96.0.9:53", Some(a), Some(b), false),
            ("192.0.2.1:30053", "10.244.0.2:53", Some(a), Some(b), true),
            ("192.0.2.1:30053", "10.244.0.2:53", Some(a), gone, true),
            ("192.0.2.1:30053", "10.244.0.3:53", Some(a), Some(b), false),
            // Somebody else's flow that happens to use the port.
            ("192.0.2.1:30053", "192.0.2.1:30053", Some(a), Some(b), false),
            ("10.244.0.2:53", "10.244.0.2:53", Some(a), Some(b), false),
        ] {
            let flow = Flow::new(aimed.parse().unwrap(), answered.parse().unwrap());
            let (old, new) = (model(old), model(new));
            assert_eq!(is_stale(&flow, Some(&old), &new, &config()), stale, "{aimed} answered by {answered}");
        }
    }
}
