//! Owns the translation of Services and EndpointSlices to the names of the cluster. Pure.
//! Source: the Kubernetes DNS specification, version 1.1.

use std::collections::BTreeMap;
use std::sync::Arc;

use proa_crds::{EndpointSlice, Service};
use proa_network::Zone;
use proa_network::dns::{ServicePortName, ZoneEndpoint, ZoneService};

use super::table::{by_service, cluster_ips, protocol, ready};

/// The zone of all services.
pub(super) fn build(
    services: &BTreeMap<(String, String), Arc<Service>>,
    slices: &BTreeMap<(String, String), Arc<EndpointSlice>>,
    domain: &str,
) -> Zone {
    let by_service = by_service(slices);
    let mut zone = Zone::new(domain);
    for (key, service) in services {
        let spec = &service.spec;
        if spec.type_.as_deref() == Some("ExternalName") {
            if let Some(name) = &spec.external_name {
                zone.insert(&key.0, &key.1, ZoneService::External(name.clone()));
            }
            continue;
        }
        let ips = cluster_ips(service);
        let entry = if ips.is_empty() {
            let own = by_service.get(key).map(Vec::as_slice).unwrap_or_default();
            ZoneService::Headless { endpoints: endpoints(own, spec.publish_not_ready_addresses == Some(true)) }
        } else {
            let ports = spec.ports.iter().flatten().filter_map(|p| {
                Some(ServicePortName {
                    name: p.name.clone(),
                    protocol: protocol(p.protocol.as_deref()),
                    port: u16::try_from(p.port).ok()?,
                })
            });
            ZoneService::Cluster { ips, ports: ports.collect() }
        };
        zone.insert(&key.0, &key.1, entry);
    }
    zone
}

fn endpoints(slices: &[Arc<EndpointSlice>], not_ready_too: bool) -> Vec<ZoneEndpoint> {
    let mut list = Vec::new();
    for slice in slices {
        let ports: Vec<ServicePortName> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|p| {
                Some(ServicePortName {
                    name: p.name.clone().filter(|n| !n.is_empty()),
                    protocol: protocol(p.protocol.as_deref()),
                    port: u16::try_from(p.port?).ok()?,
                })
            })
            .collect();
        for endpoint in slice.endpoints.iter().flatten().filter(|e| not_ready_too || ready(e)) {
            for ip in endpoint.addresses.iter().filter_map(|a| a.parse().ok()) {
                list.push(ZoneEndpoint { ip, hostname: endpoint.hostname.clone(), ports: ports.clone() });
            }
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::{services, slice, slices, web};
    use super::*;
    use serde_json::json;

    fn of(service: serde_json::Value, endpoints: serde_json::Value) -> ZoneService {
        let zone = build(&services(&[service]), &slices(&[slice(endpoints)]), "cluster.local");
        zone.services.into_values().next().unwrap()
    }

    #[test]
    fn a_cluster_service_has_its_addresses_and_ports() {
        let ZoneService::Cluster { ips, ports } = of(web(json!({})), json!([])) else { panic!() };
        assert_eq!(ips, ["10.96.0.7".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!((ports[0].name.as_deref(), ports[0].port), (Some("http"), 80));
    }

    #[test]
    fn a_headless_service_stands_for_its_ready_endpoints() {
        let endpoints = json!([
            {"addresses": ["10.1.0.2"], "hostname": "web-0", "conditions": {"ready": true}},
            {"addresses": ["10.1.0.3"], "conditions": {"ready": false}}
        ]);
        let headless =
            |extra| web(json!({"clusterIP": "None", "clusterIPs": ["None"], "publishNotReadyAddresses": extra}));
        let ZoneService::Headless { endpoints: ready } = of(headless(false), endpoints.clone()) else { panic!() };
        assert_eq!(ready.len(), 1);
        assert_eq!((ready[0].hostname.as_deref(), ready[0].ports[0].port), (Some("web-0"), 8080));
        let ZoneService::Headless { endpoints: all } = of(headless(true), endpoints) else { panic!() };
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn an_external_name_is_an_alias() {
        let service = json!({"metadata": {"namespace": "d", "name": "x"}, "spec": {"type": "ExternalName", "externalName": "example.org"}});
        assert_eq!(of(service, json!([])), ZoneService::External("example.org".into()));
    }
}
