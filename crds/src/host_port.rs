//! Ports of the host: by them the scheduler and the node know which pods cannot be on one node.

use k8s_openapi::api::core::v1::PodSpec;

/// A port of the host that belongs to one pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    protocol: String,
    ip: String,
    port: i32,
}

impl HostPort {
    const ANY: &str = "0.0.0.0";
    /// Why a pod does not get its ports, in the words of the scheduler's `NodePorts`.
    pub const TAKEN: &str = "node(s) didn't have free ports for the requested pod ports";

    /// Two pods cannot both have it: an address that stands for all of the host's meets each of them.
    pub fn collides(&self, other: &HostPort) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == Self::ANY || other.ip == Self::ANY)
    }

    /// Those of a pod; on the host's network a container port is a host port, said or not.
    pub fn all(spec: &PodSpec) -> Vec<HostPort> {
        let host_network = spec.host_network == Some(true);
        let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
        ports
            .filter_map(|port| {
                let number = port.host_port.filter(|n| *n > 0).or(host_network.then_some(port.container_port))?;
                let text = |text: &Option<String>, default: &str| {
                    text.as_deref().filter(|t| !t.is_empty()).unwrap_or(default).to_owned()
                };
                Some(HostPort {
                    protocol: text(&port.protocol, "TCP"),
                    ip: text(&port.host_ip, HostPort::ANY),
                    port: number,
                })
            })
            .collect()
    }
}
