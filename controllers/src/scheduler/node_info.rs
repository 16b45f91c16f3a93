//! What the scheduler knows of a node. Pure.

use super::{
    affinity::Labels,
    resources::{Amounts, Requests, requests},
};
use k8s_openapi::api::core::v1::{PodSpec, Taint, Toleration};
use proa_crds::{Node, Pod};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// One node with what is on it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// Its name.
    pub name: Arc<str>,
    pub(crate) labels: Labels,
    pub(crate) taints: Vec<Taint>,
    pub(crate) unschedulable: bool,
    pub(crate) allocatable: Amounts,
    pub(crate) allowed_pods: i64,
    /// Bytes by image name.
    pub(crate) images: BTreeMap<String, i64>,
    pub(crate) used: Usage,
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

/// A port of the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HostPort {
    protocol: String,
    ip: String,
    port: i32,
}

impl HostPort {
    const ANY: &str = "0.0.0.0";

    /// Two pods cannot both have it.
    pub(crate) fn collides(&self, other: &HostPort) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == Self::ANY || other.ip == Self::ANY)
    }
}

/// What a pod takes of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) requests: Requests,
    pub(crate) ports: Vec<HostPort>,
}

impl Claim {
    pub(crate) fn of(spec: &PodSpec) -> Claim {
        let host_network = spec.host_network == Some(true);
        let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
        let ports = ports.filter_map(|port| {
            // On the host's network a container port is a host port, said or not.
            let number = port.host_port.filter(|n| *n > 0).or(host_network.then_some(port.container_port))?;
            let text = |text: &Option<String>, default: &str| {
                text.as_deref().filter(|t| !t.is_empty()).unwrap_or(default).to_owned()
            };
            Some(HostPort {
                protocol: text(&port.protocol, "TCP"),
                ip: text(&port.host_ip, HostPort::ANY),
                port: number,
            })
        });
        Claim { requests: requests(spec), ports: ports.collect() }
    }
}

/// A pod that wants a node.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// The pod as last seen.
    pub pod: Arc<Pod>,
    pub(crate) claim: Claim,
}

impl PodInfo {
    /// Reads what matters once.
    pub fn of(pod: Arc<Pod>) -> PodInfo {
        PodInfo { claim: Claim::of(&pod.spec), pod }
    }

    pub(crate) fn tolerations(&self) -> &[Toleration] {
        self.pod.spec.tolerations.as_deref().unwrap_or_default()
    }
}

/// What changed in a node that could let a pod in that did not fit before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeNews {
    pub(crate) new: bool,
    pub(crate) labels: bool,
    pub(crate) taints: bool,
    pub(crate) schedulable: bool,
    pub(crate) room: bool,
}

impl NodeInfo {
    /// A node of that name that nothing is known of yet.
    pub(crate) fn unknown(name: &str) -> NodeInfo {
        NodeInfo { name: name.into(), ..NodeInfo::default() }
    }

    /// Takes in the node's object, and says what changed.
    pub(crate) fn update(&mut self, node: &Node) -> NodeNews {
        let status = node.status.as_ref();
        let list = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        let pods = list.and_then(|list| list.get("pods"));
        let pods = pods.and_then(|q| proa_apimachinery::quantity::Quantity::parse(&q.0).ok()).map(|q| q.as_int_ceil());
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let taints = node.spec.taints.clone().unwrap_or_default();
        let unschedulable = node.spec.unschedulable == Some(true);
        let allocatable = Amounts::from_list(list);
        let allowed_pods = pods.unwrap_or(0);
        let news = NodeNews {
            new: false,
            labels: labels != self.labels,
            taints: taints != self.taints,
            schedulable: self.unschedulable && !unschedulable,
            room: allocatable != self.allocatable || allowed_pods != self.allowed_pods,
        };
        let images = status.into_iter().flat_map(|s| s.images.iter().flatten()).flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (name.clone(), size))
        });
        self.images = images.collect();
        (self.labels, self.taints, self.unschedulable) = (labels, taints, unschedulable);
        (self.allocatable, self.allowed_pods) = (allocatable, allowed_pods);
        news
    }
}
