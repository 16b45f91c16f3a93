//! Owns service variables: `KUBERNETES_SERVICE_HOST` and its kin, in the form Docker links had. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use proa_crds::Service;

/// Variables of the services of a namespace (with `links`) and of `default/kubernetes` (always).
pub(super) fn build(
    services: &BTreeMap<(String, String), Arc<Service>>,
    namespace: &str,
    links: bool,
    api_address: &(String, u16),
) -> BTreeMap<String, String> {
    let mut vars = BTreeMap::new();
    let api = services.get(&("default".to_owned(), "kubernetes".to_owned()));
    match api {
        Some(service) => add(&mut vars, "kubernetes", service),
        None => {
            vars.insert("KUBERNETES_SERVICE_HOST".to_owned(), api_address.0.clone());
            vars.insert("KUBERNETES_SERVICE_PORT".to_owned(), api_address.1.to_string());
            vars.insert("KUBERNETES_SERVICE_PORT_HTTPS".to_owned(), api_address.1.to_string());
        }
    }
    if links {
        let from = (namespace.to_owned(), String::new());
        for ((of, name), service) in services.range(from..).take_while(|((of, _), _)| of == namespace) {
            debug_assert_eq!(of, namespace);
            add(&mut vars, name, service);
        }
    }
    vars
}

fn add(vars: &mut BTreeMap<String, String>, name: &str, service: &Service) {
    let spec = &service.spec;
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { return };
    let prefix = name.to_ascii_uppercase().replace('-', "_");
    vars.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let number = port.port;
        if index == 0 {
            vars.insert(format!("{prefix}_SERVICE_PORT"), number.to_string());
        }
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            let port_name = port_name.to_ascii_uppercase().replace('-', "_");
            vars.insert(format!("{prefix}_SERVICE_PORT_{port_name}"), number.to_string());
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_ascii_lowercase();
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let url = format!("{lower}://{host}:{number}");
        if index == 0 {
            vars.insert(format!("{prefix}_PORT"), url.clone());
        }
        let link = format!("{prefix}_PORT_{number}_{protocol}");
        vars.insert(format!("{link}_PROTO"), lower);
        vars.insert(format!("{link}_PORT"), number.to_string());
        vars.insert(format!("{link}_ADDR"), ip.to_owned());
        vars.insert(link, url);
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::{services, web};
    use super::*;
    use serde_json::json;

    #[test]
    fn links_look_as_they_did_with_docker() {
        let kubernetes = json!({"metadata": {"namespace": "default", "name": "kubernetes"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]}});
        let list = services(&[kubernetes, web(json!({}))]);
        let vars = build(&list, "d", true, &("x".into(), 1));
        for (name, want) in [
            ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
            ("KUBERNETES_SERVICE_PORT", "443"),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
            ("KUBERNETES_PORT", "tcp://10.96.0.1:443"),
            ("WEB_SERVICE_HOST", "10.96.0.7"),
            ("WEB_SERVICE_PORT_HTTP", "80"),
            ("WEB_PORT_80_TCP", "tcp://10.96.0.7:80"),
            ("WEB_PORT_80_TCP_PROTO", "tcp"),
            ("WEB_PORT_80_TCP_ADDR", "10.96.0.7"),
        ] {
            assert_eq!(vars.get(name).map(String::as_str), Some(want), "{name}");
        }
        let without = build(&list, "d", false, &("x".into(), 1));
        assert!(!without.contains_key("WEB_SERVICE_HOST") && without.contains_key("KUBERNETES_PORT"));
    }

    #[test]
    fn without_a_kubernetes_service_the_configured_address_stands_in() {
        let vars = build(&BTreeMap::new(), "d", true, &("192.0.2.1".into(), 6443));
        assert_eq!(vars["KUBERNETES_SERVICE_HOST"], "192.0.2.1");
        assert_eq!(vars["KUBERNETES_SERVICE_PORT"], "6443");
    }
}
