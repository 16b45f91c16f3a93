//! What the kernel should hold, worked out from the desired table. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use super::{Protocol, ProxyConfig, ServicePort, ServiceTable};

/// Transport protocol, address and port of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Destination {
    pub(super) ip: Ipv4Addr,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

/// What happens to a connection to a destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// One of a chain's endpoints gets it.
    Chain(String),
    /// Nobody serves it: refused at once.
    Refuse,
    /// Somebody serves it, but not here, and the traffic policy wants here: dropped, as on Kubernetes.
    Drop,
}

/// A set of endpoints and how one of them is picked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backend {
    /// Sorted, without doubles, never empty.
    pub(super) endpoints: Vec<SocketAddrV4>,
    /// How long a client keeps its endpoint, in seconds.
    pub(super) affinity: Option<u32>,
}

/// The variable part of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Model {
    /// By chain name.
    pub(super) backends: BTreeMap<String, Backend>,
    /// Cluster, external and host addresses.
    pub(super) services: BTreeMap<Destination, Outcome>,
    /// Ports at every local address of the node.
    pub(super) node_ports: BTreeMap<(Protocol, u16), Outcome>,
    /// Addresses of endpoints that may be their own clients.
    pub(super) hairpins: BTreeSet<Ipv4Addr>,
    /// Endpoints not among this node's pods: clients from outside the cluster are masqueraded to them.
    pub(super) remote: BTreeSet<Destination>,
}

impl Model {
    /// Works out what `table` means on this node. IPv6 addresses are left out (services of two families work by their
    /// IPv4 half). Where two entries want the same destination, the first in the table has it.
    pub(super) fn of(table: &ServiceTable, config: &ProxyConfig) -> Model {
        let mut model = Model::default();
        for port in &table.ports {
            model.add_port(port, &table.answered_here, config);
        }
        for published in &table.host_ports {
            let SocketAddr::V4(target) = published.target else { continue };
            let at = published.host_ip.filter(|ip| !ip.is_unspecified());
            let name = format!("host/{}/{}/{target}", published.protocol.name(), published.port);
            let outcome = model.chain(name, vec![target], None, published.protocol, config);
            match at {
                Some(IpAddr::V4(ip)) => {
                    let key = Destination { ip, protocol: published.protocol, port: published.port };
                    model.services.entry(key).or_insert(outcome);
                }
                Some(IpAddr::V6(_)) => {}
                None => {
                    model.node_ports.entry((published.protocol, published.port)).or_insert(outcome);
                }
            }
        }
        // Chains that lost every destination to an earlier entry are not made.
        let used: BTreeSet<&String> = model
            .services
            .values()
            .chain(model.node_ports.values())
            .filter_map(|o| if let Outcome::Chain(name) = o { Some(name) } else { None })
            .collect();
        let unused: Vec<String> = model.backends.keys().filter(|name| !used.contains(name)).cloned().collect();
        for name in unused {
            model.backends.remove(&name);
        }
        model
    }

    fn add_port(&mut self, port: &ServicePort, answered_here: &[IpAddr], config: &ProxyConfig) {
        let all = v4(&port.endpoints);
        let local = v4(&port.local_endpoints);
        let inside = v4_ips(&port.cluster_ips, answered_here);
        let outside = v4_ips(&port.external_ips, answered_here);
        if !inside.is_empty() {
            let outcome = self.outcome("svc", port, &all, &local, port.internal_local, config);
            for ip in inside {
                let key = Destination { ip, protocol: port.protocol, port: port.port };
                self.services.entry(key).or_insert_with(|| outcome.clone());
            }
        }
        if outside.is_empty() && port.node_port.is_none() {
            return;
        }
        // The same choice from inside and outside shares one chain.
        let kind = if port.external_local == port.internal_local { "svc" } else { "ext" };
        let outcome = self.outcome(kind, port, &all, &local, port.external_local, config);
        for ip in outside {
            let key = Destination { ip, protocol: port.protocol, port: port.port };
            self.services.entry(key).or_insert_with(|| outcome.clone());
        }
        if let Some(number) = port.node_port {
            self.node_ports.entry((port.protocol, number)).or_insert(outcome);
        }
    }

    fn outcome(
        &mut self,
        kind: &str,
        port: &ServicePort,
        all: &[SocketAddrV4],
        local: &[SocketAddrV4],
        only_local: bool,
        config: &ProxyConfig,
    ) -> Outcome {
        let endpoints = if only_local { local } else { all };
        match (endpoints.is_empty(), all.is_empty()) {
            (true, true) => Outcome::Refuse,
            (true, false) => Outcome::Drop,
            _ => {
                // The protocol is part of the name: a service may serve one port in two protocols.
                let name = format!("{kind}/{}/{}", port.name.replace(':', "/"), port.protocol.name());
                self.chain(name, endpoints.to_vec(), port.affinity_seconds, port.protocol, config)
            }
        }
    }

    fn chain(
        &mut self,
        mut name: String,
        endpoints: Vec<SocketAddrV4>,
        affinity: Option<u32>,
        protocol: Protocol,
        config: &ProxyConfig,
    ) -> Outcome {
        // Names of Kubernetes objects stay well below the kernel's 255; anything else is cut to what it takes.
        while name.len() > 240 {
            name.pop();
        }
        for endpoint in &endpoints {
            self.hairpins.insert(*endpoint.ip());
            if !config.pod_cidr.contains((*endpoint.ip()).into()) {
                self.remote.insert(Destination { ip: *endpoint.ip(), protocol, port: endpoint.port() });
            }
        }
        self.backends.entry(name.clone()).or_insert(Backend { endpoints, affinity });
        Outcome::Chain(name)
    }
}

fn v4(addresses: &[SocketAddr]) -> Vec<SocketAddrV4> {
    let only: BTreeSet<SocketAddrV4> =
        addresses.iter().filter_map(|a| if let SocketAddr::V4(v4) = a { Some(*v4) } else { None }).collect();
    only.into_iter().collect()
}

fn v4_ips(addresses: &[IpAddr], except: &[IpAddr]) -> Vec<Ipv4Addr> {
    addresses
        .iter()
        .filter(|a| !except.contains(a))
        .filter_map(|a| if let IpAddr::V4(v4) = a { Some(*v4) } else { None })
        .collect()
}
