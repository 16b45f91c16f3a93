//! What the scheduler knows of a node. Pure.

use super::{
    affinity::Labels,
    pod::{Claim, PodInfo},
    resources::Amounts,
};
use k8s_openapi::api::core::v1::Taint;
use proa_apimachinery::quantity::Quantity;
use proa_crds::{HostPort, Node};
use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    ops::Deref,
    sync::Arc,
};

/// A node's place in the cluster's tables; reused after the node is gone.
pub(crate) type Slot = u32;

/// What a node's object says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Facts {
    pub(crate) name: Arc<str>,
    /// Of the name: draws between equals.
    pub(crate) lot: u64,
    pub(crate) labels: Labels,
    pub(crate) taints: Vec<Taint>,
    pub(crate) unschedulable: bool,
    pub(crate) allocatable: Amounts,
    pub(crate) allowed_pods: i64,
    /// Bytes by image name.
    pub(crate) images: BTreeMap<String, i64>,
}

/// One node with what is on it. Cheap to clone: preemption tries things out on copies.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeInfo {
    pub(crate) slot: Slot,
    /// Pods name it, and its object is (still) missing.
    pub(crate) absent: bool,
    facts: Arc<Facts>,
    /// How many pods it is promised to: room is being made for them.
    pub(crate) promised: u32,
    pub(crate) used: Usage,
    pub(crate) pods: Vec<Arc<PodInfo>>,
}

impl Deref for NodeInfo {
    type Target = Facts;

    fn deref(&self) -> &Facts {
        &self.facts
    }
}

/// What the pods of a node take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) pods: i64,
    pub(crate) amounts: Amounts,
    pub(crate) assumed_milli_cpu: i64,
    pub(crate) assumed_memory: i64,
    /// Host ports with how many pods hold them (one, but for moments of change).
    pub(crate) ports: HashMap<HostPort, u32>,
}

impl Usage {
    pub(crate) fn add(&mut self, pod: &Claim) {
        self.pods += 1;
        self.amounts.add(&pod.requests.amounts);
        self.assumed_milli_cpu += pod.requests.assumed_milli_cpu;
        self.assumed_memory += pod.requests.assumed_memory;
        for port in &pod.ports {
            *self.ports.entry(port.clone()).or_default() += 1;
        }
    }

    pub(crate) fn subtract(&mut self, pod: &Claim) {
        self.pods -= 1;
        self.amounts.subtract(&pod.requests.amounts);
        self.assumed_milli_cpu -= pod.requests.assumed_milli_cpu;
        self.assumed_memory -= pod.requests.assumed_memory;
        for port in &pod.ports {
            if let Some(count) = self.ports.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    self.ports.remove(port);
                }
            }
        }
    }
}

/// What changed in a node that could let a pod in that did not fit before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeChanges {
    pub(crate) new: bool,
    pub(crate) labels: bool,
    pub(crate) taints: bool,
    pub(crate) schedulable: bool,
    pub(crate) room: bool,
}

impl NodeChanges {
    pub(crate) fn any(self) -> bool {
        self != NodeChanges::default()
    }
}

impl NodeInfo {
    /// A node of that name that nothing is known of yet.
    pub(crate) fn unknown(slot: Slot, name: &str) -> NodeInfo {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let facts = Facts { name: name.into(), lot: hasher.finish(), ..Facts::default() };
        NodeInfo { slot, absent: true, facts: Arc::new(facts), ..NodeInfo::default() }
    }

    /// Takes in the node's object, and says what changed.
    pub(crate) fn update(&mut self, node: &Node) -> NodeChanges {
        let status = node.status.as_ref();
        let list = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        let pods = list.and_then(|list| list.get("pods"));
        let pods = pods.and_then(|q| Quantity::parse(&q.0).ok()).map(|q| q.as_int_ceil());
        let images = status.into_iter().flat_map(|s| s.images.iter().flatten()).flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (name.clone(), size))
        });
        let new = Facts {
            name: self.name.clone(),
            lot: self.lot,
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: node.spec.taints.clone().unwrap_or_default(),
            unschedulable: node.spec.unschedulable == Some(true),
            allocatable: Amounts::from_list(list),
            allowed_pods: pods.unwrap_or(0),
            images: images.collect(),
        };
        let old = &*self.facts;
        let changes = NodeChanges {
            new: self.absent,
            labels: new.labels != old.labels,
            taints: new.taints != old.taints,
            schedulable: old.unschedulable && !new.unschedulable,
            room: new.allocatable != old.allocatable || new.allowed_pods != old.allowed_pods,
        };
        self.absent = false;
        if new != *old {
            self.facts = Arc::new(new);
        }
        changes
    }

    /// The object is gone; the pods are not, yet.
    pub(crate) fn forget(&mut self) {
        let NodeInfo { slot, used, pods, facts, .. } = std::mem::take(self);
        *self = NodeInfo { used, pods, ..NodeInfo::unknown(slot, &facts.name) };
    }

    pub(crate) fn add(&mut self, pod: Arc<PodInfo>) {
        self.used.add(&pod.claim);
        self.pods.push(pod);
    }

    pub(crate) fn remove(&mut self, pod: &PodInfo) -> bool {
        let Some(at) = self.pods.iter().position(|held| held.key == pod.key) else { return false };
        let held = self.pods.swap_remove(at);
        self.used.subtract(&held.claim);
        true
    }

    /// Zone and region in one: what nodes are taken from in turn, as Kubernetes' node tree does.
    pub(crate) fn zone(&self) -> (&str, &str) {
        let label = |key: &str| self.labels.get(key).map_or("", String::as_str);
        (label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
    }
}
