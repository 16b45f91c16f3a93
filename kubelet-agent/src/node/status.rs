//! Owns the status of the Node object, made from facts about the machine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proa_network::Cidr;

use super::machine::{self, Machine, Pressure};
use crate::images::ImageSource;

/// Pods a node takes (kubelet's default).
const MOST_PODS: u64 = 110;
/// Images listed in a status (kubelet's default).
const MOST_IMAGES: usize = 50;
/// What this agent answers for: the version of the API it speaks.
const KUBELET_VERSION: &str = concat!("v1.36.0+proa-", env!("CARGO_PKG_VERSION"));

/// What the status is made from.
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) addresses: Vec<String>,
    pub(crate) port: u16,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) pod_cidr: Option<Cidr>,
    pub(crate) data_dir: PathBuf,
    pub(crate) machine: Machine,
    pub(crate) pressure: Pressure,
    pub(crate) images: Vec<ContainerImage>,
    pub(crate) image_source: Arc<dyn ImageSource>,
}

/// What of the facts can change; a change is reported at once.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Picture {
    machine: Machine,
    pressure: Pressure,
    images: Vec<ContainerImage>,
}

/// What a machine offers to pods.
pub(crate) fn capacity(machine: &Machine) -> BTreeMap<String, Quantity> {
    [
        ("cpu", machine.cpus.to_string()),
        ("memory", format!("{}Ki", machine.memory_bytes / 1024)),
        ("ephemeral-storage", format!("{}Ki", machine.disk_bytes / 1024)),
        ("pods", MOST_PODS.to_string()),
        ("hugepages-1Gi", "0".to_owned()),
        ("hugepages-2Mi", "0".to_owned()),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), Quantity(v)))
    .collect()
}

/// What others have added to the node's capacity (extended resources): it is theirs to say, and offered to pods as it is.
fn extended(status: Option<&NodeStatus>) -> impl Iterator<Item = (&String, &Quantity)> {
    let capacity = status.and_then(|status| status.capacity.as_ref());
    capacity.into_iter().flatten().filter(|(name, _)| name.contains('/'))
}

/// Extended resources that are offered and are no longer there.
pub(crate) fn withdrawn(status: Option<&NodeStatus>) -> Vec<String> {
    let offered = status.and_then(|status| status.allocatable.as_ref());
    let is_there = |name: &String| extended(status).any(|(held, _)| held == name);
    let offered = offered.into_iter().flatten().map(|(name, _)| name).filter(|name| name.contains('/'));
    offered.filter(|name| !is_there(name)).cloned().collect()
}

/// Whether extended resources are offered other than they are.
pub(crate) fn is_out_of_date(status: Option<&NodeStatus>) -> bool {
    let offered = status.and_then(|status| status.allocatable.as_ref());
    let offers = |(name, amount): (&String, &Quantity)| offered.and_then(|list| list.get(name)) == Some(amount);
    !extended(status).all(offers) || !withdrawn(status).is_empty()
}

impl Facts {
    /// Looks at the machine again.
    pub(crate) async fn refresh(&mut self) {
        self.pressure = machine::pressure(&self.data_dir);
        self.machine = machine::read(&self.data_dir);
        let mut images: Vec<_> = self
            .image_source
            .list()
            .await
            .into_iter()
            .filter(|i| !i.references.is_empty())
            .map(|i| ContainerImage { names: Some(i.references), size_bytes: i64::try_from(i.size).ok() })
            .collect();
        images.sort_by_key(|i| std::cmp::Reverse(i.size_bytes));
        images.truncate(MOST_IMAGES);
        self.images = images;
    }

    pub(crate) fn picture(&self) -> Picture {
        Picture { machine: self.machine.clone(), pressure: self.pressure, images: self.images.clone() }
    }

    /// The status; what the API showed so far keeps the times of unchanged conditions, and foreign conditions.
    pub(crate) fn status(&self, previous: Option<&NodeStatus>, now: Timestamp) -> NodeStatus {
        let mut capacity = capacity(&self.machine);
        capacity.extend(extended(previous).map(|(name, amount)| (name.clone(), amount.clone())));
        let before = previous.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let own = [
            pressure(
                "MemoryPressure",
                self.pressure.memory,
                "KubeletHasInsufficientMemory",
                "KubeletHasSufficientMemory",
                "memory available",
            ),
            pressure(
                "DiskPressure",
                self.pressure.disk,
                "KubeletHasDiskPressure",
                "KubeletHasNoDiskPressure",
                "disk pressure",
            ),
            pressure(
                "PIDPressure",
                self.pressure.pids,
                "KubeletHasInsufficientPID",
                "KubeletHasSufficientPID",
                "PID available",
            ),
            ("Ready", true, "KubeletReady".to_owned(), "kubelet is posting ready status".to_owned()),
        ];
        let mut conditions: Vec<NodeCondition> = own
            .into_iter()
            .map(|(type_, is, reason, message)| {
                let status = if is { "True" } else { "False" };
                let since = before
                    .iter()
                    .find(|c| c.type_ == type_ && c.status == status)
                    .and_then(|c| c.last_transition_time.clone());
                NodeCondition {
                    type_: type_.to_owned(),
                    status: status.to_owned(),
                    reason: Some(reason),
                    message: Some(message),
                    last_heartbeat_time: Some(Time(now)),
                    last_transition_time: since.or(Some(Time(now))),
                }
            })
            .collect();
        let foreign: Vec<_> =
            before.iter().filter(|c| !conditions.iter().any(|own| own.type_ == c.type_)).cloned().collect();
        conditions.extend(foreign);
        let mut addresses: Vec<NodeAddress> =
            self.addresses.iter().map(|a| NodeAddress { address: a.clone(), type_: "InternalIP".to_owned() }).collect();
        addresses.push(NodeAddress { address: self.name.clone(), type_: "Hostname".to_owned() });
        NodeStatus {
            addresses: Some(addresses),
            allocatable: Some(capacity.clone()),
            capacity: Some(capacity),
            conditions: Some(conditions),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(self.port) }),
            }),
            images: Some(self.images.clone()),
            node_info: Some(NodeSystemInfo {
                architecture: machine::architecture().to_owned(),
                boot_id: self.machine.boot_id.clone(),
                container_runtime_version: concat!("proa://", env!("CARGO_PKG_VERSION")).to_owned(),
                kernel_version: self.machine.kernel.clone(),
                kube_proxy_version: KUBELET_VERSION.to_owned(),
                kubelet_version: KUBELET_VERSION.to_owned(),
                machine_id: self.machine.machine_id.clone(),
                operating_system: "linux".to_owned(),
                os_image: self.machine.os_image.clone(),
                swap: None,
                system_uuid: self.machine.system_uuid.clone(),
            }),
            ..NodeStatus::default()
        }
    }
}

fn pressure(type_: &'static str, is: bool, bad: &str, good: &str, what: &str) -> (&'static str, bool, String, String) {
    let message = match (is, what) {
        (false, "disk pressure") => "kubelet has no disk pressure".to_owned(),
        (true, "disk pressure") => "kubelet has disk pressure".to_owned(),
        (false, what) => format!("kubelet has sufficient {what}"),
        (true, what) => format!("kubelet has insufficient {what}"),
    };
    (type_, is, if is { bad } else { good }.to_owned(), message)
}
