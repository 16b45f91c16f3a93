//! Owns what the agent is told at its start. Never read again from anywhere else.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use proa_crds::Family;
use proa_images::ImageStore;
use proa_network::Cidr;
use proa_runtime::Runtime;

/// Everything an agent needs to run one node.
#[derive(Clone)]
pub struct Config {
    /// Speaks to the API server, in process or over TLS.
    pub client: kube::Client,
    /// Which family of workload kinds this node serves.
    pub family: Family,
    /// Name of the Node object; also `kubernetes.io/hostname`.
    pub node_name: String,
    /// The node's `InternalIP`: the API server dials it for logs and exec, and it is the `hostIP` of pods.
    pub node_ip: IpAddr,
    /// Labels added to the node's own.
    pub node_labels: BTreeMap<String, String>,
    /// The agent's own directory: volumes, logs, files it makes for pods.
    pub data_dir: PathBuf,
    /// Starts and stops containers.
    pub runtime: Arc<dyn Runtime>,
    /// Holds and pulls images.
    pub images: Arc<ImageStore>,
    /// Pod network, service proxy and DNS.
    pub network: NetworkConfig,
    /// Where the HTTPS API (logs, exec, attach, port-forward) listens; port 0 takes any, and the Node says which.
    pub listen: SocketAddr,
    /// Certificates of that API.
    pub tls: Tls,
    /// `KUBERNETES_SERVICE_HOST` and `_PORT` for pods while there is no `kubernetes` Service to read them from.
    pub api_address: (String, u16),
}

/// The node's network.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Tells installations on one machine apart; part of cgroup, interface and table names.
    pub instance: String,
    /// This node's block of pod addresses; `None` waits for the Node's `spec.podCIDR`.
    pub pod_cidr: Option<Cidr>,
    /// Addresses of all pods.
    pub cluster_cidr: Cidr,
    /// Addresses of all services.
    pub service_cidr: Cidr,
    /// MTU of pods, bytes; `None` derives it from the host.
    pub mtu: Option<u32>,
    /// Address of the cluster's DNS service; the agent answers there itself.
    pub cluster_dns: IpAddr,
    /// `cluster.local`, as a rule.
    pub cluster_domain: String,
}

/// PEM texts of the HTTPS API.
#[derive(Clone)]
pub struct Tls {
    /// Serving certificate, leaf first.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// The authority whose client certificates are let in: the cluster's CA.
    pub client_ca: String,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls { .. }")
    }
}
