//! The pod network: one namespace and one routed veth pair per pod.
//!
//! Owns namespaces, veth pairs, addresses and the host's route to each pod. Never looks inside a pod's processes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::cidr::Cidr;

/// What the pod network of one node needs to know.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Where address claims, namespace pins and the record of host changes live. Owned by the network alone.
    pub state_dir: PathBuf,
    /// Tells several installations on one machine apart; any text. It goes, hashed, into interface names and, as it is,
    /// into the name of the nftables table.
    pub instance: String,
    /// Addresses of this node's pods. The first one after the base is the node's own end (on `lo`).
    pub pod_cidr: Cidr,
    /// Addresses of all pods of the cluster: traffic inside is never masqueraded.
    pub cluster_cidr: Cidr,
    /// Service addresses; a route to them lets the host itself reach services even when it has no default route.
    pub service_cidr: Option<Cidr>,
    /// MTU of pod interfaces in bytes; `None` takes it from the interface of the default route, else 1500.
    pub mtu: Option<u32>,
}

/// What a pod may ask of its network.
#[derive(Debug, Clone, Default)]
pub struct PodNetRequest {
    /// Take exactly this address, which must be free and in the node's block.
    pub address: Option<IpAddr>,
    /// MTU in bytes, when it should differ from the node's.
    pub mtu: Option<u32>,
}

/// A pod's network as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNet {
    /// The sandbox it belongs to.
    pub id: String,
    /// The pinned network namespace, for a runtime to join by path.
    pub netns: PathBuf,
    /// The pod's address.
    pub ip: IpAddr,
    /// Name of the host's end of the veth pair.
    pub interface: String,
}

/// What [`PodNetwork::sweep`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Sandboxes whose claim, namespace or interface was left over.
    pub sandboxes: Vec<String>,
    /// Interfaces that no claim spoke of.
    pub interfaces: Vec<String>,
}

/// Why a pod's network could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum PodNetError {
    /// The block has no address left.
    #[error("no free pod address left in {0}")]
    Exhausted(Cidr),
    /// Not built yet.
    #[error("{0} is not supported by Proa yet")]
    Unsupported(String),
}

/// The pod network of one node. Cheap to clone; all clones are the same network.
#[derive(Clone)]
pub struct PodNetwork {
    config: std::sync::Arc<NetConfig>,
}

impl PodNetwork {
    /// Opens the network in the calling thread's network namespace and recovers what an earlier run left: claims are
    /// read back, forwarding is switched on (and recorded), the node's address and service route are put on `lo`.
    pub fn open(config: NetConfig) -> Result<PodNetwork, PodNetError> {
        Ok(PodNetwork { config: config.into() })
    }

    /// Makes the network of sandbox `id`, or finds it made. After a crash half-way, calling it again finishes the job.
    pub async fn setup(&self, id: &str, request: PodNetRequest) -> Result<PodNet, PodNetError> {
        let _ = (id, request, &self.config);
        Err(PodNetError::Unsupported("pod network".into()))
    }

    /// Removes everything of sandbox `id`. Calling it for what is already gone is fine. Goes on past errors and reports
    /// them all.
    pub async fn teardown(&self, id: &str) -> Result<(), PodNetError> {
        let _ = id;
        Err(PodNetError::Unsupported("pod network".into()))
    }

    /// Every sandbox that has a complete network.
    pub async fn list(&self) -> Result<Vec<PodNet>, PodNetError> {
        Err(PodNetError::Unsupported("pod network".into()))
    }

    /// Removes whatever belongs to no sandbox in `known`: claims, pinned namespaces, interfaces.
    pub async fn sweep(&self, known: &BTreeSet<String>) -> Result<Swept, PodNetError> {
        let _ = known;
        Err(PodNetError::Unsupported("pod network".into()))
    }

    /// Lets this node answer at `address` (the cluster DNS service, say): puts it on `lo`, scope host, until reset.
    pub async fn add_local_address(&self, address: IpAddr) -> Result<(), PodNetError> {
        let _ = address;
        Err(PodNetError::Unsupported("pod network".into()))
    }

    /// The node's own address in the pod network: source of what the host sends to pods.
    pub fn node_address(&self) -> IpAddr {
        self.config.pod_cidr.nth(1).unwrap_or(self.config.pod_cidr.base())
    }
}
