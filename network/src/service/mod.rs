//! The service proxy: cluster addresses, node ports and host ports, in one nftables table.

use std::net::{IpAddr, SocketAddr};

use crate::cidr::Cidr;

/// A transport protocol a service port can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// One port of one service, as it should be served on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Unique in the table: `namespace/name` or `namespace/name:port-name`.
    pub name: String,
    /// Addresses inside the cluster; empty for what has none (a headless service need not be in the table at all).
    pub cluster_ips: Vec<IpAddr>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port at the cluster and external addresses.
    pub port: u16,
    /// Port at every address of the node.
    pub node_port: Option<u16>,
    /// External and load balancer addresses that arrive at this node.
    pub external_ips: Vec<IpAddr>,
    /// Everything that serves it, anywhere in the cluster (ready endpoints; terminating ones only when nothing else is left).
    pub endpoints: Vec<SocketAddr>,
    /// Those of them on this node; used when a traffic policy is `Local`.
    pub local_endpoints: Vec<SocketAddr>,
    /// `sessionAffinity: ClientIP` and its time-out in seconds.
    pub affinity_seconds: Option<u32>,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
}

/// A container port published at the host's addresses (`hostPort`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Only at this address of the host; `None` (or the unspecified address) means at every one.
    pub host_ip: Option<IpAddr>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the host.
    pub port: u16,
    /// The pod's address and port.
    pub target: SocketAddr,
}

/// The whole desired state of the proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceTable {
    /// Every service port.
    pub ports: Vec<ServicePort>,
    /// Every host port of this node's pods.
    pub host_ports: Vec<HostPort>,
    /// Service addresses this node answers by itself (cluster DNS put on `lo`): never rewritten here.
    pub answered_here: Vec<IpAddr>,
}

/// What the proxy needs to know of its node.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// Same as [`crate::NetConfig::instance`]: the table is named after it.
    pub instance: String,
    /// This node's pods.
    pub pod_cidr: Cidr,
    /// All pods of the cluster; what pods send elsewhere is masqueraded.
    pub cluster_cidr: Cidr,
    /// Service addresses: what nobody serves is refused at once instead of leaving by the default route.
    pub service_cidr: Option<Cidr>,
}

/// What one [`ServiceProxy::sync`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Synced {
    /// Netlink messages in the transaction; 0 when nothing differed.
    pub messages: usize,
    /// Stale UDP conntrack entries removed.
    pub flows_removed: usize,
}

/// Why the proxy could not be brought to the desired state.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Not built yet.
    #[error("{0} is not supported by Proa yet")]
    Unsupported(String),
}

/// The service proxy of one node. Cheap to clone; all clones are the same proxy.
#[derive(Clone)]
pub struct ServiceProxy {
    config: std::sync::Arc<ProxyConfig>,
}

impl ServiceProxy {
    /// Opens the proxy in the calling thread's network namespace. Nothing changes there until the first `sync`, which
    /// replaces whatever an earlier run left in one transaction; established connections are kept.
    pub fn open(config: ProxyConfig) -> Result<ServiceProxy, ProxyError> {
        Ok(ServiceProxy { config: config.into() })
    }

    /// Brings the kernel to `table`: works out the difference and applies it in one transaction.
    pub async fn sync(&self, table: ServiceTable) -> Result<Synced, ProxyError> {
        let _ = (table, &self.config);
        Err(ProxyError::Unsupported("service proxy".into()))
    }
}
