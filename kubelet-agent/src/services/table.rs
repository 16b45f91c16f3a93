//! Owns the translation of Services and EndpointSlices to the proxy's table. Pure.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::Endpoint;
use proa_crds::{EndpointSlice, Service};
use proa_network::{Protocol, ServicePort, ServiceTable};

type Services = BTreeMap<(String, String), Arc<Service>>;
type Slices = BTreeMap<(String, String), Arc<EndpointSlice>>;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const DEFAULT_AFFINITY: u32 = 10_800;

pub(super) fn protocol(name: Option<&str>) -> Protocol {
    match name {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

/// Slices by the service they belong to.
pub(super) fn by_service(slices: &Slices) -> BTreeMap<(String, String), Vec<Arc<EndpointSlice>>> {
    let mut map: BTreeMap<(String, String), Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for ((namespace, _), slice) in slices {
        if let Some(name) = slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME)) {
            map.entry((namespace.clone(), name.clone())).or_default().push(slice.clone());
        }
    }
    map
}

/// Whether an endpoint takes new connections. Unset means ready (API: "nil should be interpreted as true").
pub(super) fn ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
}

/// Whether an endpoint that ends still answers.
fn serving_while_terminating(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().is_some_and(|c| c.terminating == Some(true) && c.serving == Some(true))
}

/// What a table says of single pods.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// addresses that stand in any slice as taking new connections and not ending
    pub(super) serving: HashSet<IpAddr>,
    /// uids of pods that stand in any slice as ending
    pub(super) ending: HashSet<String>,
}

pub(super) fn told(slices: &Slices) -> Told {
    let mut told = Told::default();
    for endpoint in slices.values().flat_map(|slice| slice.endpoints.iter().flatten()) {
        if endpoint.conditions.as_ref().and_then(|conditions| conditions.terminating) == Some(true) {
            told.ending.extend(endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()));
        } else if ready(endpoint) {
            told.serving.extend(endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok()));
        }
    }
    told
}

/// Addresses of a service's list field, `None` and empty ones left out.
pub(super) fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let spec = &service.spec;
    let list = spec
        .cluster_ips
        .iter()
        .flatten()
        .chain(spec.cluster_ips.is_none().then_some(spec.cluster_ip.as_ref()).flatten());
    list.filter_map(|ip| ip.parse().ok()).collect()
}

/// The table a node serves.
pub(super) fn build(services: &Services, slices: &Slices, node: &str) -> ServiceTable {
    let by_service = by_service(slices);
    let mut ports = Vec::new();
    for (key, service) in services {
        if service.spec.type_.as_deref() == Some("ExternalName") {
            continue;
        }
        let ips = cluster_ips(service);
        if ips.is_empty() {
            continue;
        }
        let none = Vec::new();
        let own = by_service.get(key).unwrap_or(&none);
        service_ports(key, service, &ips, own, node, &mut ports);
    }
    ServiceTable { ports, ..ServiceTable::default() }
}

fn service_ports(
    key: &(String, String),
    service: &Service,
    ips: &[IpAddr],
    slices: &[Arc<EndpointSlice>],
    node: &str,
    out: &mut Vec<ServicePort>,
) {
    let spec = &service.spec;
    let external_ips: Vec<IpAddr> = spec
        .external_ips
        .iter()
        .flatten()
        .map(String::as_str)
        // A source range is a filter, and there is none yet: closed is the safe side. Proa's own server refuses such services.
        .chain(
            load_balancer_ips(service).filter(|_| spec.load_balancer_source_ranges.as_ref().is_none_or(Vec::is_empty)),
        )
        .filter_map(|ip| ip.parse().ok())
        .collect();
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        spec.session_affinity_config
            .as_ref()
            .and_then(|c| c.client_ip.as_ref())
            .and_then(|c| c.timeout_seconds)
            .and_then(|t| u32::try_from(t).ok())
            .unwrap_or(DEFAULT_AFFINITY)
    });
    for port in spec.ports.iter().flatten() {
        let name = match port.name.as_deref().filter(|n| !n.is_empty()) {
            Some(port_name) => format!("{}/{}:{port_name}", key.0, key.1),
            None => format!("{}/{}", key.0, key.1),
        };
        let protocol = protocol(port.protocol.as_deref());
        let Ok(number) = u16::try_from(port.port) else { continue };
        let (endpoints, local_endpoints) = endpoints(slices, port.name.as_deref().unwrap_or(""), protocol, node);
        out.push(ServicePort {
            name,
            cluster_ips: ips.to_vec(),
            protocol,
            port: number,
            node_port: port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0),
            external_ips: external_ips.clone(),
            endpoints,
            local_endpoints,
            affinity_seconds: affinity,
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        });
    }
}

fn load_balancer_ips(service: &Service) -> impl Iterator<Item = &str> {
    service
        .status
        .iter()
        .filter_map(|s| s.load_balancer.as_ref())
        .flat_map(|l| l.ingress.iter().flatten())
        .filter_map(|i| i.ip.as_deref())
}

/// Endpoints of one port, all and local: the ready ones, or, when none is left, those that end but still serve
/// (KEP-1669). The choice is made for each of the two sets by itself.
fn endpoints(
    slices: &[Arc<EndpointSlice>],
    port_name: &str,
    protocol_wanted: Protocol,
    node: &str,
) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
    let mut all = [Vec::new(), Vec::new()];
    let mut local = [Vec::new(), Vec::new()];
    for slice in slices {
        let port = slice.ports.iter().flatten().find(|p| {
            p.name.as_deref().unwrap_or("") == port_name && protocol(p.protocol.as_deref()) == protocol_wanted
        });
        let Some(number) = port.and_then(|p| p.port).and_then(|p| u16::try_from(p).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let class = match (ready(endpoint), serving_while_terminating(endpoint)) {
                (true, _) => 0,
                (false, true) => 1,
                (false, false) => continue,
            };
            // An endpoint has one address that counts (API: "first address").
            let Some(ip) = endpoint.addresses.first().and_then(|a| a.parse().ok()) else { continue };
            let address = SocketAddr::new(ip, number);
            if !all[class].contains(&address) {
                all[class].push(address);
                if endpoint.node_name.as_deref() == Some(node) {
                    local[class].push(address);
                }
            }
        }
    }
    let choose = |[ready, ending]: [Vec<SocketAddr>; 2]| {
        let mut list = if ready.is_empty() { ending } else { ready };
        list.sort_unstable();
        list
    };
    (choose(all), choose(local))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    pub(in crate::services) fn services(list: &[Value]) -> Services {
        list.iter()
            .map(|v| {
                let s: Service = serde_json::from_value(v.clone()).unwrap();
                ((s.metadata.namespace.clone().unwrap(), s.metadata.name.clone().unwrap()), Arc::new(s))
            })
            .collect()
    }

    pub(in crate::services) fn slices(list: &[Value]) -> Slices {
        list.iter()
            .map(|v| {
                let s: EndpointSlice = serde_json::from_value(v.clone()).unwrap();
                ((s.metadata.namespace.clone().unwrap(), s.metadata.name.clone().unwrap()), Arc::new(s))
            })
            .collect()
    }

    pub(in crate::services) fn slice(endpoints: Value) -> Value {
        json!({"metadata": {"namespace": "d", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
               "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
    }

    pub(in crate::services) fn web(extra: Value) -> Value {
        let mut spec = json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}]});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"metadata": {"namespace": "d", "name": "web"}, "spec": spec})
    }

    fn one(extra: Value, endpoints: Value) -> ServicePort {
        build(&services(&[web(extra)]), &slices(&[slice(endpoints)]), "n1").ports.remove(0)
    }

    #[test]
    fn ready_endpoints_serve_and_local_ones_are_known() {
        let port = one(
            json!({"externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"}),
            json!([
                {"addresses": ["10.1.0.2"], "nodeName": "n1", "conditions": {"ready": true}},
                {"addresses": ["10.1.1.2"], "nodeName": "n2"},
                {"addresses": ["10.1.1.3"], "nodeName": "n2", "conditions": {"ready": false}},
                {"addresses": ["10.1.1.4"], "conditions": {"ready": false, "serving": true, "terminating": true}}
            ]),
        );
        assert_eq!(port.name, "d/web:http");
        assert_eq!(port.endpoints, ["10.1.0.2:8080".parse().unwrap(), "10.1.1.2:8080".parse().unwrap()]);
        assert_eq!(port.local_endpoints, ["10.1.0.2:8080".parse().unwrap()]);
        assert_eq!((port.node_port, port.affinity_seconds), (Some(30080), Some(10_800)));
        assert!(port.external_local && !port.internal_local);
    }

    #[test]
    fn a_load_balancer_with_a_filter_stays_closed() {
        let addresses = |extra: Value| {
            let mut service = web(extra);
            service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
            build(&services(&[service]), &slices(&[slice(json!([]))]), "n1").ports.remove(0).external_ips
        };
        assert_eq!(addresses(json!({})).len(), 1);
        assert!(addresses(json!({"loadBalancerSourceRanges": ["198.51.100.0/24"]})).is_empty());
    }

    #[test]
    fn when_all_are_ending_the_serving_ones_are_kept() {
        let port = one(
            json!({}),
            json!([
                {"addresses": ["10.1.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.1.0.3"], "conditions": {"ready": false, "serving": false, "terminating": true}}
            ]),
        );
        assert_eq!(port.endpoints, ["10.1.0.2:8080".parse().unwrap()]);
    }

    #[test]
    fn headless_and_external_names_are_not_in_the_table() {
        let list = services(&[
            web(json!({"clusterIP": "None", "clusterIPs": ["None"]})),
            json!({"metadata": {"namespace": "d", "name": "x"}, "spec": {"type": "ExternalName", "externalName": "example.org"}}),
        ]);
        assert!(build(&list, &Slices::new(), "n").ports.is_empty());
    }

    #[test]
    fn an_ending_endpoint_is_not_serving() {
        let list = slices(&[slice(json!([
            {"addresses": ["10.1.0.2"], "conditions": {"ready": true}},
            {"addresses": ["10.1.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            // publishNotReadyAddresses keeps ready true while ending
            {"addresses": ["10.1.0.4"], "conditions": {"ready": true, "serving": true, "terminating": true}}
        ]))]);
        assert_eq!(told(&list).serving, ["10.1.0.2".parse().unwrap()].into());
    }
}
