//! What the cluster's names are: plain data, built by the caller, swapped as a whole.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::service::Protocol;

/// All names of the cluster at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// Cluster domain, lower case, without dots at the ends: `cluster.local`.
    pub domain: String,
    /// Time to live of positive and negative answers, in seconds.
    pub ttl: u32,
    /// Every namespace, even those without services: pod names exist in them.
    pub namespaces: HashSet<String>,
    /// Services by (namespace, name).
    pub services: HashMap<(String, String), ZoneService>,
}

/// What a service's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ZoneService {
    /// Has cluster addresses.
    Cluster {
        /// A and AAAA records.
        ips: Vec<IpAddr>,
        /// SRV records.
        ports: Vec<ServicePortName>,
    },
    /// `clusterIP: None`: its name stands for its endpoints.
    Headless {
        /// Ready endpoints (all, with `publishNotReadyAddresses`).
        endpoints: Vec<ZoneEndpoint>,
    },
    /// `type: ExternalName`: a CNAME.
    External(String),
}

/// A named port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePortName {
    /// The port's name; unnamed ports have no SRV record of their own.
    pub name: Option<String>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Number.
    pub port: u16,
}

/// One endpoint of a headless service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneEndpoint {
    /// Its address.
    pub ip: IpAddr,
    /// The pod's hostname when it has one of its own; otherwise the dashed address is the name.
    pub hostname: Option<String>,
    /// Its ports.
    pub ports: Vec<ServicePortName>,
}

impl ZoneEndpoint {
    /// The label under the service's name that stands for this endpoint alone.
    pub fn label(&self) -> String {
        self.hostname.as_ref().map_or_else(|| dashed(self.ip), |name| name.to_ascii_lowercase())
    }
}

impl Zone {
    /// An empty zone, time to live 5 s (a client sees a change within that).
    pub fn new(domain: &str) -> Zone {
        Zone {
            domain: domain.trim_matches('.').to_ascii_lowercase(),
            ttl: 5,
            namespaces: HashSet::new(),
            services: HashMap::new(),
        }
    }

    /// Adds or replaces a service; its namespace comes to exist.
    pub fn insert(&mut self, namespace: &str, name: &str, service: ZoneService) {
        self.namespaces.insert(namespace.to_owned());
        self.services.insert((namespace.to_owned(), name.to_owned()), service);
    }
}

/// An address as a label: `10-244-0-7`, `fd00--7`.
pub(super) fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

/// The address a label of a pod's name stands for.
pub(super) fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse().map(IpAddr::V6)).ok()
}
