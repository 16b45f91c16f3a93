//! What tests of the scheduler are told with: nodes and pods from a few words, and a core they happen to.

use super::super::{
    Configuration,
    cluster::{Cluster, pod::PodInfo},
    core::{Core, Step},
    decide::{Decision, decide},
    preempt::{Preemption, preempt},
    profile::{DEFAULT, Profile},
};
use crate::Key;
use kube::ResourceExt;
use proa_crds::{Node, Pod};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub(super) const MS: fn(u64) -> Duration = Duration::from_millis;

pub(super) fn node(name: &str, extra: Value) -> Node {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"}},
    });
    merge(&mut node, extra);
    serde_json::from_value(node).unwrap()
}

/// A node in a zone.
pub(super) fn zoned(name: &str, zone: &str) -> Node {
    node(name, json!({"metadata": {"labels": {"zone": zone, "topology.kubernetes.io/zone": zone}}}))
}

pub(super) fn pod(name: &str, cpu: &str, extra: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}")},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]},
    });
    merge(&mut pod, extra);
    Arc::new(serde_json::from_value(pod).unwrap())
}

/// A pod that is there already.
pub(super) fn on(node: &str, name: &str, cpu: &str, extra: Value) -> Arc<Pod> {
    let mut there = json!({"spec": {"nodeName": node}, "status": {"phase": "Running"}});
    merge(&mut there, extra);
    pod(name, cpu, there)
}

pub(super) fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// Both at once.
pub(super) fn and(mut one: Value, other: Value) -> Value {
    merge(&mut one, other);
    one
}

pub(super) fn labelled(key: &str, value: &str) -> Value {
    json!({"metadata": {"labels": {key: value}}})
}

pub(super) fn taint(key: &str, effect: &str) -> Value {
    json!({"spec": {"taints": [{"key": key, "effect": effect}]}})
}

/// A cluster of these nodes with these pods on them.
pub(super) fn cluster(nodes: &[Node], pods: &[Arc<Pod>]) -> Cluster {
    let mut cluster = Cluster::default();
    for node in nodes {
        cluster.put_node(&node.name_any(), node);
    }
    for pod in pods {
        cluster.add_pod(pod.spec.node_name.as_deref().unwrap(), Arc::new(PodInfo::of(pod.clone())));
    }
    cluster
}

/// The node, or the sentence.
pub(super) fn said_by(profile: &Profile, cluster: &mut Cluster, pod: &Arc<Pod>) -> String {
    let pod = PodInfo::of(pod.clone());
    profile.prepare(cluster, &pod);
    match decide(profile, cluster, &pod, &mut 0) {
        Decision::Node(slot) => cluster.node(slot).unwrap().name.to_string(),
        Decision::Nowhere(nowhere) => nowhere.to_string(),
    }
}

pub(super) fn said(cluster: &mut Cluster, pod: &Arc<Pod>) -> String {
    said_by(&Profile::default_named(DEFAULT), cluster, pod)
}

/// The node and its victims, or the sentence about preemption.
pub(super) fn preempted(cluster: &mut Cluster, pod: &Arc<Pod>) -> Result<(String, Vec<String>), String> {
    let (profile, pod) = (Profile::default_named(DEFAULT), PodInfo::of(pod.clone()));
    profile.prepare(cluster, &pod);
    let Decision::Nowhere(nowhere) = decide(&profile, cluster, &pod, &mut 0) else { panic!("it fits") };
    match preempt(&profile, profile.preemption.unwrap(), cluster, &pod, &nowhere, None) {
        Preemption::Node(slot, victims) => {
            let mut victims: Vec<String> = victims.iter().map(|pod| pod.key.name.to_string()).collect();
            victims.sort();
            Ok((cluster.node(slot).unwrap().name.to_string(), victims))
        }
        Preemption::No(why) | Preemption::Wait(why) => Err(why),
    }
}

pub(super) fn core(nodes: &[Node]) -> Core {
    let mut core = Core::new(&Configuration::default());
    nodes.iter().for_each(|node| core.node_changed(&node.name_any(), Some(node), MS(0)));
    core
}

/// Tells the core of a pod.
pub(super) fn tell(core: &mut Core, pod: &Arc<Pod>, now: Duration) {
    core.pod_changed(&Key::of(pod.as_ref()), Some(pod), now);
}

/// The next step in a few words.
pub(super) fn next(core: &mut Core, now: Duration) -> Option<String> {
    Some(match core.next(now)? {
        Step::Bind(binding) => format!("{} to {}", binding.pod.name_any(), binding.node),
        Step::Tell { pod, message, .. } => format!("{}: {message}", pod.name_any()),
        Step::Preempt { pod, node, victims, .. } => {
            let victims: Vec<String> = victims.iter().map(|victim| victim.name_any()).collect();
            format!("{} gets {node} of {}", pod.name_any(), victims.join(", "))
        }
    })
}

/// How many of the pods each node got, until there is nothing to do.
pub(super) fn placed(core: &mut Core, now: Duration) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    while let Some(step) = core.next(now) {
        if let Step::Bind(binding) = step {
            *counts.entry(binding.node.to_string()).or_default() += 1;
        }
    }
    counts
}
