//! From a reference to a Service to addresses that answer for it.
//!
//! Pure but for [`service`], which reads the cache. Addresses are those of the endpoints, as with kube-apiserver's
//! `--enable-aggregator-routing`: the server may run where no service proxy does.

use proa_apimachinery::object::Object;
use serde_json::Value;

use crate::core::Core;

/// The label by which a slice says whose it is (KEP-752).
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Why a Service leads nowhere; the reasons of an APIService's condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// There is no such Service.
    #[error("service {0:?} not found")]
    NotFound(String),
    /// It has no such port.
    #[error("no service port {port} found for service {service:?}")]
    Port {
        /// The service.
        service: String,
        /// The port asked for.
        port: u16,
    },
    /// Nobody has said who stands behind it.
    #[error("no endpoints available for service {0:?}")]
    NoSlices(String),
    /// Nobody stands behind it.
    #[error("no endpoints available for service {0:?}")]
    NoEndpoints(String),
}

/// The addresses that answer for a port of a Service.
///
/// # Errors
///
/// Why there are none.
pub fn service(core: &Core, namespace: &str, name: &str, port: u16) -> Result<Vec<(String, u16)>, ResolveError> {
    let service = core.caches.resource("services").get(namespace, name);
    let service = service.ok_or_else(|| ResolveError::NotFound(name.to_owned()))?.object();
    let slices = core.caches.resource("endpointslices.discovery.k8s.io").items(namespace);
    // Most slices of a namespace are of other Services: they are told apart before they are decoded.
    let label = format!("{SERVICE_NAME:?}:{name:?}");
    let may_be = |bytes: &[u8]| bytes.windows(label.len()).any(|window| window == label.as_bytes());
    let slices: Vec<Object> = slices.iter().filter(|item| may_be(&item.bytes)).map(|item| item.object()).collect();
    addresses(&service, &slices, port)
}

/// The addresses of the ready endpoints of a Service's port, given the slices of its namespace.
///
/// # Errors
///
/// Why there are none.
pub fn addresses(service: &Object, slices: &[Object], port: u16) -> Result<Vec<(String, u16)>, ResolveError> {
    let name = service.name();
    if service.get_str(&["spec", "type"]) == Some("ExternalName") {
        let host = service.get_str(&["spec", "externalName"]).unwrap_or_default();
        return Ok(vec![(host.to_owned(), port)]);
    }
    let ports = service.get_list(&["spec", "ports"]);
    let wanted = ports.iter().find(|have| have["port"].as_u64() == Some(u64::from(port)));
    let wanted = wanted.ok_or_else(|| ResolveError::Port { service: name.to_owned(), port })?;
    let port_name = wanted["name"].as_str().unwrap_or_default();
    let mut any = false;
    let mut found = Vec::new();
    for slice in slices.iter().filter(|slice| slice.label(SERVICE_NAME) == Some(name)) {
        any = true;
        let ports = slice.get_list(&["ports"]);
        let port = ports.iter().find(|port| port["name"].as_str().unwrap_or_default() == port_name);
        let Some(port) = port.and_then(|port| port["port"].as_u64()).and_then(|port| u16::try_from(port).ok()) else {
            continue;
        };
        let ready = slice.get_list(&["endpoints"]).iter().filter(|endpoint| is_ready(endpoint));
        let addresses = ready.filter_map(|endpoint| endpoint["addresses"].get(0).and_then(Value::as_str));
        found.extend(addresses.map(|address| (address.to_owned(), port)));
    }
    match (any, found.is_empty()) {
        (_, false) => Ok(found),
        (true, true) => Err(ResolveError::NoEndpoints(name.to_owned())),
        (false, true) => Err(ResolveError::NoSlices(name.to_owned())),
    }
}

/// A condition nobody set counts as good (KEP-752).
fn is_ready(endpoint: &Value) -> bool {
    endpoint.pointer("/conditions/ready").and_then(Value::as_bool).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    #[test]
    fn a_service_leads_to_the_ready_endpoints_of_its_port() {
        let ports = json!([{"name": "https", "port": 443, "targetPort": 8443}, {"name": "metrics", "port": 9090}]);
        let service = object(json!({"metadata": {"name": "hook"}, "spec": {"ports": ports}}));
        let slice = |of: &str, port: &str, endpoints: Value| {
            object(json!({"metadata": {"labels": {"kubernetes.io/service-name": of}},
                "ports": [{"name": port, "port": 8443}], "endpoints": endpoints}))
        };
        let endpoint = |address: &str, ready: Value| json!({"addresses": [address], "conditions": {"ready": ready}});
        let slices = [
            slice("other", "https", json!([endpoint("10.0.0.9", json!(true))])),
            slice("hook", "metrics", json!([endpoint("10.0.0.8", json!(true))])),
            slice(
                "hook",
                "https",
                json!([
                    endpoint("10.0.0.1", json!(true)),
                    endpoint("10.0.0.2", json!(false)),
                    endpoint("10.0.0.3", json!(null))
                ]),
            ),
        ];
        let got = addresses(&service, &slices, 443).unwrap();
        assert_eq!(got, [("10.0.0.1".to_owned(), 8443), ("10.0.0.3".to_owned(), 8443)]);
        assert_eq!(addresses(&service, &slices, 80), Err(ResolveError::Port { service: "hook".into(), port: 80 }));
        assert_eq!(addresses(&service, &slices[..1], 443), Err(ResolveError::NoSlices("hook".into())));
        assert_eq!(addresses(&service, &slices[..2], 443), Err(ResolveError::NoEndpoints("hook".into())));
        let outside =
            json!({"metadata": {"name": "hook"}, "spec": {"type": "ExternalName", "externalName": "a.example.com"}});
        assert_eq!(addresses(&object(outside), &[], 443).unwrap(), [("a.example.com".to_owned(), 443)]);
    }
}
