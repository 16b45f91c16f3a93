//! The decision: a snapshot and a pod give a node, or the reasons why there is none. Pure and deterministic.

use super::{
    affinity::{preferred_weight, required_matches},
    node_info::{NodeInfo, PodInfo},
    scores,
};
use crate::taints::{NO_EXECUTE, NO_SCHEDULE, untolerated};
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// Why a node cannot take a pod, in the order filters are asked; the text is Kubernetes'.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// `spec.unschedulable`.
    Unschedulable,
    /// Another node is named.
    NodeName,
    /// A taint is not tolerated.
    Taint,
    /// `nodeSelector` or required affinity.
    Affinity,
    /// A host port is taken.
    Ports,
    /// The node takes no more pods.
    PodCount,
    /// Too little of a resource.
    Insufficient(String),
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Obstacle::Unschedulable => f.write_str("node(s) were unschedulable"),
            Obstacle::NodeName => f.write_str("node(s) didn't match the requested node name"),
            Obstacle::Taint => f.write_str("node(s) had untolerated taint(s)"),
            Obstacle::Affinity => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Obstacle::Ports => f.write_str("node(s) didn't have free ports for the requested pod ports"),
            Obstacle::PodCount => f.write_str("Too many pods"),
            Obstacle::Insufficient(resource) => write!(f, "Insufficient {resource}"),
        }
    }
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// This node.
    Node(Arc<str>),
    /// None, and how many nodes have each obstacle.
    Nowhere(Nowhere),
}

/// Why no node fits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nowhere {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many of them have each obstacle.
    pub obstacles: BTreeMap<Obstacle, usize>,
}

impl std::fmt::Display for Nowhere {
    /// Kubernetes' sentence: `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s).`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        let mut reasons: Vec<String> = self.obstacles.iter().map(|(why, count)| format!("{count} {why}")).collect();
        reasons.sort();
        write!(f, "0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }
}

/// Decides where a pod goes.
pub fn decide<'a>(pod: &PodInfo, nodes: impl Iterator<Item = &'a NodeInfo> + Clone) -> Decision {
    let mut feasible = Vec::new();
    let mut nowhere = Nowhere::default();
    for node in nodes.clone() {
        nowhere.nodes += 1;
        let found = obstacles(pod, node);
        if found.is_empty() {
            feasible.push(node);
        }
        for obstacle in found {
            *nowhere.obstacles.entry(obstacle).or_default() += 1;
        }
    }
    match feasible.as_slice() {
        [] => Decision::Nowhere(nowhere),
        [only] => Decision::Node(only.name.clone()),
        several => Decision::Node(best(pod, several, nodes)),
    }
}

/// What speaks against this node; the first filter that finds something ends the search.
pub fn obstacles(pod: &PodInfo, node: &NodeInfo) -> Vec<Obstacle> {
    let spec = &pod.pod.spec;
    if node.unschedulable && !tolerates_cordon(pod) {
        return vec![Obstacle::Unschedulable];
    }
    if spec.node_name.as_deref().is_some_and(|name| !name.is_empty() && name != &*node.name) {
        return vec![Obstacle::NodeName];
    }
    if untolerated(&node.taints, pod.tolerations(), &[NO_SCHEDULE, NO_EXECUTE]).is_some() {
        return vec![Obstacle::Taint];
    }
    if !required_matches(spec, &node.name, &node.labels) {
        return vec![Obstacle::Affinity];
    }
    if pod.claim.ports.iter().any(|wanted| node.used.ports.keys().any(|held| held.collides(wanted))) {
        return vec![Obstacle::Ports];
    }
    fit(pod, node)
}

/// Cordoning is also a taint; whoever tolerates that one may be placed on a cordoned node.
fn tolerates_cordon(pod: &PodInfo) -> bool {
    let taint = k8s_openapi::api::core::v1::Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: NO_SCHEDULE.into(),
        ..Default::default()
    };
    untolerated(&[taint], pod.tolerations(), &[NO_SCHEDULE]).is_none()
}

fn fit(pod: &PodInfo, node: &NodeInfo) -> Vec<Obstacle> {
    let (asked, free, used) = (&pod.claim.requests.amounts, &node.allocatable, &node.used.amounts);
    let mut short = Vec::new();
    if node.used.pods + 1 > node.allowed_pods {
        short.push(Obstacle::PodCount);
    }
    let mut check = |name: &str, asked: i64, allocatable: i64, used: i64| {
        if asked > 0 && asked > allocatable.saturating_sub(used) {
            short.push(Obstacle::Insufficient(name.to_owned()));
        }
    };
    check("cpu", asked.milli_cpu, free.milli_cpu, used.milli_cpu);
    check("memory", asked.memory, free.memory, used.memory);
    for (name, amount) in &asked.other {
        let of = |amounts: &super::resources::Amounts| amounts.other.get(name).copied().unwrap_or(0);
        check(name, *amount, of(free), of(used));
    }
    short
}

/// The node with the highest score. Of equals one is drawn by the pod's uid, so that they share the load and the same
/// question always has the same answer.
fn best<'a>(pod: &PodInfo, feasible: &[&NodeInfo], all: impl Iterator<Item = &'a NodeInfo> + Clone) -> Arc<str> {
    let preferences: Vec<i64> =
        feasible.iter().map(|node| preferred_weight(&pod.pod.spec, &node.name, &node.labels)).collect();
    let scores = scores::total(pod, feasible, &preferences, all);
    let draw = |node: &NodeInfo| {
        let mut hasher = DefaultHasher::new();
        (&pod.pod.metadata.uid, &pod.pod.metadata.name, &node.name).hash(&mut hasher);
        hasher.finish()
    };
    let ranked = feasible.iter().zip(scores).max_by_key(|(node, score)| (*score, draw(node)));
    ranked.map(|(node, _)| node.name.clone()).unwrap_or_default()
}
