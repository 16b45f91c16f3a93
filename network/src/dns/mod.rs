//! Cluster DNS: names of services and pods, and everything else by asking upstream.
//!
//! Owns the sockets, the wire and the cache; the names come from a [`Zone`] that its caller swaps as a whole. Answers
//! from the zone are made inline, in microseconds; only questions that go upstream get a task.

mod answer;
mod server;
mod upstream;
mod zone;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use server::Server;

pub use upstream::Resolvers;
pub use zone::{ServicePortName, Zone, ZoneEndpoint, ZoneService};

/// Where the DNS server listens and whom it asks for names outside the cluster.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// Addresses to answer at, UDP and TCP each. They must be the machine's own
    /// ([`crate::PodNetwork::add_local_address`]).
    pub listen: Vec<SocketAddr>,
    /// Resolvers for names outside the zone. None: such names get SERVFAIL.
    pub upstream: Resolvers,
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
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    server: Arc<Server>,
}

impl Dns {
    /// Binds every address. Once it returns, queries queue up in the sockets; [`Dns::serve`] answers them.
    pub async fn bind(config: DnsConfig, zone: watch::Receiver<Arc<Zone>>) -> Result<Dns, DnsError> {
        let (mut addresses, mut udp, mut tcp) = (Vec::new(), Vec::new(), Vec::new());
        for address in config.listen {
            let failed = |protocol| move |source| DnsError::Bind { address, protocol, source };
            let listener = TcpListener::bind(address).await.map_err(failed("tcp"))?;
            // The same port for both, also where the kernel was to choose.
            let bound = listener.local_addr().map_err(failed("tcp"))?;
            udp.push(UdpSocket::bind(bound).await.map_err(failed("udp"))?);
            tcp.push(listener);
            addresses.push(bound);
        }
        let servers: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
        let server = Arc::new(Server::new(zone, servers, config.upstream));
        Ok(Dns { addresses, udp, tcp, server })
    }

    /// The addresses bound, with the port the kernel chose where 0 was asked for.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Answers until `shutdown`.
    pub async fn serve(self, shutdown: CancellationToken) {
        let mut tasks = tokio::task::JoinSet::new();
        for socket in self.udp {
            tasks.spawn(self.server.clone().serve_udp(socket.into()));
        }
        for listener in self.tcp {
            tasks.spawn(self.server.clone().serve_tcp(listener));
        }
        // Dropping the set ends every loop and frees the addresses; what is under way upstream ends by its time-out.
        shutdown.cancelled().await;
    }
}

/// The resolvers of a `resolv.conf`, in order. A stub on a loopback address is fine: the agent shares the host's
/// namespace. `exclude` (the cluster DNS address) is left out: asking oneself never ends.
pub fn upstream_from_resolv_conf(text: &str, exclude: &[IpAddr]) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()).flatten()
        })
        // A scope (`fe80::1%eth0`) names an interface that a socket address cannot.
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .filter(|address| !exclude.contains(address))
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_in_order_and_never_ourselves() {
        let text = "# comment\nsearch example.org\nnameserver 10.96.0.10\n nameserver 192.0.2.1\nnameserver\t2001:db8::1\n\
                    nameserver fe80::1%eth0\nnameservers 192.0.2.9\nnameserver\n";
        let found = upstream_from_resolv_conf(text, &["10.96.0.10".parse().unwrap()]);
        let expected: Vec<SocketAddr> = ["192.0.2.1:53", "[2001:db8::1]:53"].map(|a| a.parse().unwrap()).into();
        assert_eq!(found, expected);
    }
}
