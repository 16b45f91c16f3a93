//! The service proxy: cluster addresses, node ports and host ports, in one nftables table.
//!
//! Owns that table and nothing else of the machine's rules. Never watches anything: it is told the whole desired state
//! and finds out the difference to what it applied last.

mod flows;
mod model;
mod recover;
mod render;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::cidr::Cidr;
use crate::names;
use crate::netlink::{NetlinkError, Socket};
use crate::nft::Batch;
use model::Model;
use recover::{Recovered, recover};

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

impl Protocol {
    /// Its number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// Its name in lower case, as in SRV records.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
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
    /// How long working it out and the kernel's part took, without waiting for a thread (for metrics).
    pub took: Duration,
}

/// Why the proxy could not be brought to the desired state.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The kernel refused; nothing of the transaction happened, and the next `sync` looks at what is there first.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Not built yet.
    #[error("{0} is not supported by Proa yet")]
    Unsupported(String),
}

/// The service proxy of one node. Cheap to clone; all clones are the same proxy.
#[derive(Clone)]
pub struct ServiceProxy {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    config: ProxyConfig,
    socket: Socket,
    /// What the kernel holds; `None` when that is not known.
    applied: Option<Model>,
    /// Looking for stale flows failed last time.
    flows_due: bool,
}

impl ServiceProxy {
    /// Opens the proxy in the calling thread's network namespace. Nothing changes there until the first `sync`, which
    /// takes over whatever an earlier run left, in one transaction; no connection notices.
    pub fn open(config: ProxyConfig) -> Result<ServiceProxy, ProxyError> {
        for block in [Some(config.pod_cidr), Some(config.cluster_cidr), config.service_cidr].into_iter().flatten() {
            if block.base().is_ipv6() {
                return Err(ProxyError::Unsupported(format!("an IPv6 network ({block})")));
            }
        }
        let socket = Socket::netfilter().map_err(NetlinkError::from)?;
        Ok(ServiceProxy { inner: Arc::new(Mutex::new(Inner { config, socket, applied: None, flows_due: false })) })
    }

    /// Brings the kernel to `table`: works out the difference and applies it in one transaction. A connection that is
    /// established stays where it is, whatever happens to its endpoint's place in the table; UDP flows to endpoints
    /// that no longer serve are forgotten, so that their next datagram finds one that does.
    pub async fn sync(&self, table: ServiceTable) -> Result<Synced, ProxyError> {
        let inner = self.inner.clone();
        match tokio::task::spawn_blocking(move || inner.lock().sync(&table)).await {
            Ok(result) => result,
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }
}

impl Inner {
    fn sync(&mut self, table: &ServiceTable) -> Result<Synced, ProxyError> {
        let begun = Instant::now();
        let new = Model::of(table, &self.config);
        // Taken, so that an error leaves "not known": the next sync then finds out.
        let old = self.applied.take();
        let messages = match &old {
            Some(old) => {
                let mut batch = self.batch();
                render::difference(&mut batch, old, &new);
                batch.commit(&mut self.socket)?
            }
            None => self.take_over(&new)?,
        };
        let look = self.flows_due || old.as_ref().is_none_or(|old| flows::may_be_stale(old, &new));
        let forgotten = if look { self.forget_stale_flows(old.as_ref(), &new) } else { Ok(0) };
        // The table is right whatever became of the flows: they are looked at again with the next sync.
        self.applied = Some(new);
        self.flows_due = forgotten.is_err();
        let flows_removed = forgotten.unwrap_or_else(|error| {
            tracing::warn!(%error, "stale UDP flows could not be looked for");
            0
        });
        Ok(Synced { messages, flows_removed, took: begun.elapsed() })
    }

    fn batch(&self) -> Batch {
        Batch::new(&names::table(&self.config.instance))
    }

    /// Goes on from what an earlier run left, or from nothing.
    fn take_over(&mut self, new: &Model) -> Result<usize, NetlinkError> {
        let found = recover(&mut self.socket, &names::table(&self.config.instance))?;
        if let Recovered::Ours(found) = &found {
            let mut batch = self.batch();
            render::foundation(&mut batch, &self.config);
            render::difference(&mut batch, found, new);
            match batch.commit(&mut self.socket) {
                Ok(messages) => return Ok(messages),
                // Another version's table, or somebody changed it meanwhile.
                Err(error) => tracing::warn!(%error, "the service table cannot be taken over and is replaced"),
            }
        }
        let mut batch = self.batch();
        // Adding first lets the removal succeed whether or not there was one.
        batch.add_table();
        batch.delete_table();
        render::foundation(&mut batch, &self.config);
        render::difference(&mut batch, &Model::default(), new);
        batch.commit(&mut self.socket)
    }

    fn forget_stale_flows(&mut self, old: Option<&Model>, new: &Model) -> Result<usize, NetlinkError> {
        let mut flows = self.socket.udp_flows()?;
        flows.retain(|flow| flows::is_stale(flow, old, new, &self.config));
        self.socket.forget_flows(&flows)
    }
}
