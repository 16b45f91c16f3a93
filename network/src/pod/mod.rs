//! The pod network: one namespace and one routed veth pair per pod.
//!
//! Owns namespaces, veth pairs, addresses and the host's route to each pod. Never looks inside a pod's processes.
//!
//! A pod has one /32 address on `eth0` and a default route through 169.254.1.1, which exists nowhere: a permanent
//! neighbour entry says it is the host's end of the pair. The host has a /32 route to the pod and a permanent
//! neighbour entry for it. So nobody ever asks by ARP, nothing has to be proxied, and a first packet is as fast as the
//! second. No bridge: a packet from pod to pod is routed by the host and passes its service rules like any other.

mod claims;
pub(crate) mod host;
mod namespace;
mod overlay;
mod removal;
mod setup;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::cidr::Cidr;
use crate::names;
use crate::netlink::{NetlinkError, Socket};
use claims::Claims;
use host::Host;
use removal::Removal;

pub use claims::ClaimError;
pub use host::HostError;
pub use namespace::NamespaceError;
pub use overlay::Peer;

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
    /// The sandbox id would not be a file name: only letters, digits, `-`, `_` and `.` inside.
    #[error("{0:?} is not a sandbox id")]
    InvalidId(String),
    /// No address; trying again helps once another pod is gone.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The namespace could not be made or released.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The kernel refused an interface, address, route or neighbour.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The host's own part could not be prepared.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The state directory failed.
    #[error("{}: {source}", .path.display())]
    State {
        /// The file or directory.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// Not built yet.
    #[error("{0} is not supported by Proa yet")]
    Unsupported(String),
    /// Several steps failed; those after each were still tried.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<PodNetError>),
}

/// The pod network of one node. Cheap to clone; all clones are the same network.
#[derive(Clone)]
pub struct PodNetwork {
    inner: Arc<Inner>,
}

struct Inner {
    config: NetConfig,
    node: IpAddr,
    mtu: u32,
    /// Whether the kernel has IPv6: then interfaces are told not to give themselves addresses.
    ipv6: bool,
    socket: Mutex<Socket>,
    removal: Removal,
    claims: Mutex<Claims>,
    host: Mutex<Host>,
    /// One lock per sandbox with something under way.
    busy: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

impl PodNetwork {
    /// Opens the network in the calling thread's network namespace and recovers what an earlier run left: claims are
    /// read back, forwarding is switched on (and recorded), the node's address and service route are put on `lo`.
    pub fn open(config: NetConfig) -> Result<PodNetwork, PodNetError> {
        for block in [Some(config.pod_cidr), Some(config.cluster_cidr), config.service_cidr].into_iter().flatten() {
            if block.base().is_ipv6() {
                return Err(PodNetError::Unsupported(format!("an IPv6 network ({block})")));
            }
        }
        let node = config.pod_cidr.nth(1).ok_or(ClaimError::Exhausted(config.pod_cidr))?;
        let pins = config.state_dir.join(PINS);
        std::fs::create_dir_all(&pins).map_err(|source| PodNetError::State { path: pins, source })?;
        // First of all: reset learns from it whose things to look for.
        let instance = config.state_dir.join(INSTANCE);
        std::fs::write(&instance, format!("{}\n", config.instance))
            .map_err(|source| PodNetError::State { path: instance, source })?;
        let mut socket = Socket::route().map_err(NetlinkError::from)?;
        let claims = Claims::open(&config.state_dir.join(CLAIMS), config.pod_cidr)?;
        let mut host = Host::open(&config.state_dir.join(HOST))?;
        host.prepare(&mut socket, node, config.service_cidr)?;
        let mtu = match config.mtu {
            Some(mtu) => mtu,
            None => uplink_mtu(&mut socket)?,
        };
        let inner = Inner {
            node,
            mtu,
            ipv6: Path::new("/proc/sys/net/ipv6").exists(),
            socket: Mutex::new(socket),
            removal: Removal::new(Socket::route().map_err(NetlinkError::from)?, names::group(&config.instance)),
            claims: Mutex::new(claims),
            host: Mutex::new(host),
            busy: Mutex::default(),
            config,
        };
        Ok(PodNetwork { inner: Arc::new(inner) })
    }

    /// Makes the network of sandbox `id`, or finds it made. After a crash half-way, calling it again finishes the job.
    /// On an error nothing of it is left.
    pub async fn setup(&self, id: &str, request: PodNetRequest) -> Result<PodNet, PodNetError> {
        let id = id.to_owned();
        self.blocking(move |inner| inner.setup(&id, &request)).await
    }

    /// Removes everything of sandbox `id`. Calling it for what is already gone is fine. Goes on past errors and reports
    /// them all.
    pub async fn teardown(&self, id: &str) -> Result<(), PodNetError> {
        let id = id.to_owned();
        self.blocking(move |inner| inner.teardown(&id)).await
    }

    /// Every sandbox that has a complete network.
    pub async fn list(&self) -> Result<Vec<PodNet>, PodNetError> {
        self.blocking(|inner| inner.list()).await
    }

    /// Removes whatever belongs to no sandbox in `known`: claims, pinned namespaces, interfaces. What is being set up
    /// meanwhile must be in `known`.
    pub async fn sweep(&self, known: &BTreeSet<String>) -> Result<Swept, PodNetError> {
        let known = known.clone();
        self.blocking(move |inner| inner.sweep(&known)).await
    }

    /// Lets this node answer at `address` (the cluster DNS service, say): puts it on `lo`, scope host, until reset.
    pub async fn add_local_address(&self, address: IpAddr) -> Result<(), PodNetError> {
        if address.is_ipv6() {
            return Err(PodNetError::Unsupported(format!("an IPv6 service address ({address})")));
        }
        self.blocking(move |inner| Ok(inner.host.lock().add_local_address(&mut inner.socket.lock(), address)?)).await
    }

    /// Makes the pods of exactly these other nodes reachable, over VXLAN; none: the overlay is taken down. `local` is
    /// this node's address as the peers know it. What already is as wanted is not interrupted.
    pub async fn set_peers(&self, local: IpAddr, peers: Vec<Peer>) -> Result<(), PodNetError> {
        self.blocking(move |inner| inner.set_peers(local, &peers)).await
    }

    /// The node's own address in the pod network: source of what the host sends to pods. On `lo`, so that it does not
    /// depend on any uplink.
    pub fn node_address(&self) -> IpAddr {
        self.inner.node
    }

    /// MTU of pod interfaces, in bytes.
    pub fn mtu(&self) -> u32 {
        self.inner.mtu
    }

    /// Runs `work` where blocking for some milliseconds is fine.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, PodNetError> + Send + 'static,
    ) -> Result<T, PodNetError> {
        let inner = self.inner.clone();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }
}

/// Names inside the state directory.
pub(crate) const PINS: &str = "netns";
pub(crate) const CLAIMS: &str = "addresses";
pub(crate) const HOST: &str = "host-changes";
pub(crate) const INSTANCE: &str = "instance";

fn uplink_mtu(socket: &mut Socket) -> Result<u32, NetlinkError> {
    let index = socket.default_interface()?;
    let links = socket.links()?;
    Ok(links.iter().find(|link| Some(link.index) == index).map_or(1500, |link| link.mtu))
}

/// Removes every interface and pinned namespace of `instance`, whoever made it. For reset.
pub(crate) fn remove_all(socket: &mut Socket, state_dir: &Path, instance: &str) -> Vec<PodNetError> {
    let mut errors = Vec::new();
    let prefix = names::interface_prefix(instance);
    match socket.links() {
        Ok(links) => {
            let ours: Vec<String> = links.into_iter().map(|l| l.name).filter(|n| n.starts_with(&prefix)).collect();
            let failed = socket.delete_links(&ours, names::group(instance));
            errors.extend(failed.into_iter().map(|(_, e)| PodNetError::from(e)));
        }
        Err(e) => errors.push(e.into()),
    }
    for pin in setup::pins(&state_dir.join(PINS)) {
        errors.extend(namespace::unpin(&pin).err().map(PodNetError::from));
    }
    errors
}
