//! What the kernel should hold, worked out from the desired table. Pure.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use super::{HostPort, Protocol, ProxyConfig, ServicePort, ServiceTable};

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
    Chain(Arc<str>),
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

/// Pairs in order of their keys, each key once. Sorted vectors rather than trees: a sync makes all of it anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sorted<K, V>(Vec<(K, V)>);

impl<K: Ord, V> Sorted<K, V> {
    /// Where a key occurs more than once, the first one counts.
    fn first_wins(mut pairs: Vec<(K, V)>) -> Sorted<K, V> {
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        pairs.dedup_by(|later, first| later.0 == first.0);
        Sorted(pairs)
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.0.binary_search_by(|(k, _)| k.cmp(key)).ok().map(|at| &self.0[at].1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        self.0.iter()
    }
}

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Sorted(Vec::new())
    }
}

/// The variable part of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Model {
    /// By chain name.
    pub(super) backends: Sorted<Arc<str>, Backend>,
    /// Cluster, external and host addresses.
    pub(super) services: Sorted<Destination, Outcome>,
    /// Ports at every local address of the node.
    pub(super) node_ports: Sorted<(Protocol, u16), Outcome>,
    /// Addresses of endpoints on this node: they may be their own clients.
    pub(super) hairpins: Sorted<Ipv4Addr, ()>,
    /// Endpoints not among this node's pods: clients from outside the cluster are masqueraded to them.
    pub(super) remote: Sorted<Destination, ()>,
}

impl Model {
    /// Works out what `table` means on this node. IPv6 addresses are left out (services of two families work by their
    /// IPv4 half). Where two entries want the same destination, the first in the table has it.
    pub(super) fn of(table: &ServiceTable, config: &ProxyConfig) -> Model {
        let mut draft = Draft::default();
        for port in &table.ports {
            draft.add_port(port, &table.answered_here);
        }
        for published in &table.host_ports {
            draft.add_host_port(published);
        }
        draft.finish(config)
    }

    /// A model from what was read back, in any order.
    pub(super) fn read_back(
        backends: Vec<(Arc<str>, Backend)>,
        services: Vec<(Destination, Outcome)>,
        node_ports: Vec<((Protocol, u16), Outcome)>,
        hairpins: Vec<(Ipv4Addr, ())>,
        remote: Vec<(Destination, ())>,
    ) -> Model {
        Model {
            backends: Sorted::first_wins(backends),
            services: Sorted::first_wins(services),
            node_ports: Sorted::first_wins(node_ports),
            hairpins: Sorted::first_wins(hairpins),
            remote: Sorted::first_wins(remote),
        }
    }
}

/// A model being put together, in the table's order.
#[derive(Default)]
struct Draft {
    backends: Vec<(Arc<str>, (Backend, Protocol))>,
    services: Vec<(Destination, Outcome)>,
    node_ports: Vec<((Protocol, u16), Outcome)>,
}

impl Draft {
    fn finish(self, config: &ProxyConfig) -> Model {
        let services = Sorted::first_wins(self.services);
        let node_ports = Sorted::first_wins(self.node_ports);
        // Chains that lost every destination to an earlier entry are not made.
        let outcomes = services.iter().map(|(_, o)| o).chain(node_ports.iter().map(|(_, o)| o));
        let mut used: Vec<&Arc<str>> =
            outcomes.filter_map(|o| if let Outcome::Chain(name) = o { Some(name) } else { None }).collect();
        used.sort_unstable();
        let mut backends = Sorted::first_wins(self.backends).0;
        backends.retain(|(name, _)| used.binary_search(&name).is_ok());
        let (mut hairpins, mut remote) = (Vec::new(), Vec::new());
        for (_, (backend, protocol)) in &backends {
            for endpoint in &backend.endpoints {
                if config.pod_cidr.contains((*endpoint.ip()).into()) {
                    hairpins.push((*endpoint.ip(), ()));
                } else {
                    let to = Destination { ip: *endpoint.ip(), protocol: *protocol, port: endpoint.port() };
                    remote.push((to, ()));
                }
            }
        }
        Model {
            backends: Sorted(backends.into_iter().map(|(name, (backend, _))| (name, backend)).collect()),
            services,
            node_ports,
            hairpins: Sorted::first_wins(hairpins),
            remote: Sorted::first_wins(remote),
        }
    }

    fn add_host_port(&mut self, published: &HostPort) {
        let SocketAddr::V4(target) = published.target else { return };
        let name = format!("host/{}/{}/{target}", published.protocol.name(), published.port).replace(':', "/");
        let outcome = self.chain(name, vec![target], None, published.protocol);
        match published.host_ip.filter(|ip| !ip.is_unspecified()) {
            Some(IpAddr::V4(ip)) => {
                let key = Destination { ip, protocol: published.protocol, port: published.port };
                self.services.push((key, outcome));
            }
            Some(IpAddr::V6(_)) => {}
            None => self.node_ports.push(((published.protocol, published.port), outcome)),
        }
    }

    fn add_port(&mut self, port: &ServicePort, answered_here: &[IpAddr]) {
        let all = v4(&port.endpoints);
        let local = v4(&port.local_endpoints);
        let inside = v4_ips(&port.cluster_ips, answered_here);
        let outside = v4_ips(&port.external_ips, answered_here);
        let key = |ip| Destination { ip, protocol: port.protocol, port: port.port };
        if !inside.is_empty() {
            let outcome = self.outcome("svc", port, &all, &local, port.internal_local);
            self.services.extend(inside.into_iter().map(|ip| (key(ip), outcome.clone())));
        }
        if outside.is_empty() && port.node_port.is_none() {
            return;
        }
        // The same choice from inside and outside shares one chain.
        let kind = if port.external_local == port.internal_local { "svc" } else { "ext" };
        let outcome = self.outcome(kind, port, &all, &local, port.external_local);
        self.services.extend(outside.into_iter().map(|ip| (key(ip), outcome.clone())));
        if let Some(number) = port.node_port {
            self.node_ports.push(((port.protocol, number), outcome));
        }
    }

    fn outcome(
        &mut self,
        kind: &str,
        port: &ServicePort,
        all: &[SocketAddrV4],
        local: &[SocketAddrV4],
        only_local: bool,
    ) -> Outcome {
        let endpoints = if only_local { local } else { all };
        match (endpoints.is_empty(), all.is_empty()) {
            (true, true) => Outcome::Refuse,
            (true, false) => Outcome::Drop,
            _ => {
                // The protocol is part of the name: a service may serve one port in two protocols.
                let name = format!("{kind}/{}/{}", port.name.replace(':', "/"), port.protocol.name());
                self.chain(name, endpoints.to_vec(), port.affinity_seconds, port.protocol)
            }
        }
    }

    fn chain(
        &mut self,
        mut name: String,
        endpoints: Vec<SocketAddrV4>,
        affinity: Option<u32>,
        protocol: Protocol,
    ) -> Outcome {
        // Names of Kubernetes objects stay well below the kernel's 255; anything else is cut to what it takes.
        while name.len() > 240 {
            name.pop();
        }
        let name: Arc<str> = name.into();
        self.backends.push((name.clone(), (Backend { endpoints, affinity }, protocol)));
        Outcome::Chain(name)
    }
}

fn v4(addresses: &[SocketAddr]) -> Vec<SocketAddrV4> {
    let mut only: Vec<SocketAddrV4> =
        addresses.iter().filter_map(|a| if let SocketAddr::V4(v4) = a { Some(*v4) } else { None }).collect();
    only.sort_unstable();
    only.dedup();
    only
}

fn v4_ips(addresses: &[IpAddr], except: &[IpAddr]) -> Vec<Ipv4Addr> {
    addresses
        .iter()
        .filter(|a| !except.contains(a))
        .filter_map(|a| if let IpAddr::V4(v4) = a { Some(*v4) } else { None })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ProxyConfig {
        ProxyConfig {
            instance: "t".into(),
            pod_cidr: "10.244.0.0/24".parse().unwrap(),
            cluster_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: None,
        }
    }

    fn port(name: &str, all: &[&str], local: &[&str]) -> ServicePort {
        let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect();
        ServicePort {
            name: name.into(),
            cluster_ips: vec!["10.96.0.1".parse().unwrap()],
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(30000),
            external_ips: vec![],
            endpoints: parse(all),
            local_endpoints: parse(local),
            affinity_seconds: None,
            external_local: false,
            internal_local: false,
        }
    }

    /// (what the cluster address leads to, what the node port leads to, endpoints of each chain)
    fn check(port: ServicePort, inside: &str, outside: &str, chains: &[(&str, usize)]) {
        let model = Model::of(&ServiceTable { ports: vec![port], ..ServiceTable::default() }, &config());
        let shown = |o: Option<&Outcome>| match o {
            Some(Outcome::Chain(name)) => name.to_string(),
            other => format!("{other:?}"),
        };
        let to = Destination { ip: Ipv4Addr::new(10, 96, 0, 1), protocol: Protocol::Tcp, port: 80 };
        assert_eq!(shown(model.services.get(&to)), inside);
        assert_eq!(shown(model.node_ports.get(&(Protocol::Tcp, 30000))), outside);
        let made: Vec<(&str, usize)> = model.backends.iter().map(|(n, b)| (&**n, b.endpoints.len())).collect();
        assert_eq!(made, chains);
    }

    #[test]
    fn traffic_policies_choose_endpoints_as_kubernetes_does() {
        let all = ["10.244.0.2:80", "10.244.1.2:80", "10.244.1.3:80"];
        let one = ["10.244.0.2:80"];
        let local = |external_local, internal_local, mine: &[&str]| ServicePort {
            external_local,
            internal_local,
            ..port("ns/s:p", &all, mine)
        };
        let (svc, ext) = ("svc/ns/s/p/tcp", "ext/ns/s/p/tcp");
        check(local(false, false, &one), svc, svc, &[(svc, 3)]);
        check(local(true, false, &one), svc, ext, &[(ext, 1), (svc, 3)]);
        check(local(false, true, &one), svc, ext, &[(ext, 3), (svc, 1)]);
        check(local(true, true, &one), svc, svc, &[(svc, 1)]);
        // Served elsewhere, wanted here: dropped. Served nowhere: refused.
        check(local(true, false, &[]), svc, "Some(Drop)", &[(svc, 3)]);
        check(local(false, true, &[]), "Some(Drop)", ext, &[(ext, 3)]);
        check(port("ns/s:p", &[], &[]), "Some(Refuse)", "Some(Refuse)", &[]);
        check(ServicePort { external_local: true, ..port("s", &[], &[]) }, "Some(Refuse)", "Some(Refuse)", &[]);
    }

    #[test]
    fn the_first_in_the_table_has_a_contested_destination_and_losers_leave_nothing() {
        let (first, second) = (port("a", &["10.244.0.2:80"], &[]), port("b", &["10.244.0.3:80"], &[]));
        let model = Model::of(&ServiceTable { ports: vec![first, second], ..ServiceTable::default() }, &config());
        let chains: Vec<&str> = model.backends.iter().map(|(n, _)| &**n).collect();
        assert_eq!(chains, ["svc/a/tcp"]);
        assert_eq!(model.hairpins.iter().count(), 1);
    }

    #[test]
    fn endpoints_are_sorted_once_each_and_of_the_tables_family() {
        let given = ["10.244.1.3:80", "10.244.0.2:80", "10.244.1.3:80", "[fd00::1]:80"];
        let model = Model::of(&ServiceTable { ports: vec![port("a", &given, &[])], ..Default::default() }, &config());
        let (_, backend) = model.backends.iter().next().unwrap();
        assert_eq!(backend.endpoints, ["10.244.0.2:80", "10.244.1.3:80"].map(|a| a.parse().unwrap()));
        let remote: Vec<Ipv4Addr> = model.remote.iter().map(|(to, ())| to.ip).collect();
        assert_eq!(remote, [Ipv4Addr::new(10, 244, 1, 3)], "those of other nodes");
        let hairpins: Vec<Ipv4Addr> = model.hairpins.iter().map(|(ip, ())| *ip).collect();
        assert_eq!(hairpins, [Ipv4Addr::new(10, 244, 0, 2)], "those of this node");
    }
}
