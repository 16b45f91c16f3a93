//! Which pods stand behind a service, at which ports, in which state. Pure; shared by slices and legacy Endpoints.

use crate::pods;
use k8s_openapi::{
    api::core::v1::{ObjectReference, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use proa_crds::{Pod, Service};
use std::net::IpAddr;

/// Whether the service's addresses are ours to find: it selects pods and is not just a name for another host.
pub(super) fn is_ours(service: &Service) -> bool {
    let selects = service.spec.selector.as_ref().is_some_and(|selector| !selector.is_empty());
    selects && service.spec.type_.as_deref() != Some("ExternalName") && service.metadata.deletion_timestamp.is_none()
}

/// Whether the service selects the pod by its labels.
pub(crate) fn selects(service: &Service, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let has = |(key, value): (&String, &String)| labels.and_then(|labels| labels.get(key)) == Some(value);
    service.spec.selector.as_ref().is_some_and(|selector| !selector.is_empty() && selector.iter().all(has))
}

/// Whether the service has no address of its own.
pub(super) fn is_headless(service: &Service) -> bool {
    service.spec.cluster_ip.as_deref() == Some("None")
}

/// The kinds of addresses the service wants: `IPv4`, `IPv6`.
pub(super) fn families(service: &Service) -> Vec<String> {
    let named = service.spec.ip_families.clone().filter(|families| !families.is_empty());
    named.unwrap_or_else(|| {
        let ip = service.spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
        vec![if ip.is_some_and(|ip| ip.is_ipv6()) { "IPv6".to_owned() } else { "IPv4".to_owned() }]
    })
}

/// The pod's address of that kind.
pub(super) fn address(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).chain(status.pod_ip.as_deref());
    let fits = |ip: &&str| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() == (family == "IPv6"));
    all.into_iter().find(fits).map(str::to_owned)
}

/// Whether the pod passes its readiness checks, going or not.
pub(super) fn is_serving(pod: &Pod) -> bool {
    pods::is_ready(pod)
}

/// Whether the pod is on its way out.
pub(super) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether addresses that are not ready are wanted as if they were.
pub(super) fn publishes_unready(service: &Service) -> bool {
    service.spec.publish_not_ready_addresses == Some(true)
}

/// The port of the pod that a port of the service leads to; `None` when the pod has no port of that name.
pub(super) fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let protocol = |protocol: &Option<String>| protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => Some(port.port),
        Some(IntOrString::String(name)) => {
            let sidecars =
                pod.spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let mut ports =
                pod.spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
            let found =
                ports.find(|p| p.name.as_deref() == Some(name) && protocol(&p.protocol) == protocol(&port.protocol));
            found.map(|port| port.container_port)
        }
    }
}

/// The name by which DNS finds this pod under a headless service.
pub(super) fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let subdomain = set(&pod.spec.subdomain)?;
    (Some(subdomain) == service.metadata.name).then(|| set(&pod.spec.hostname)).flatten()
}

/// Points to the pod.
pub(super) fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}
