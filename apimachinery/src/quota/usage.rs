//! What an object uses of the resources a quota may bound, and which names those are.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::Subject;
use crate::Object;
use crate::pod_resources::{Amounts, Side, amounts, of_pod};
use crate::quantity::Quantity;

/// Kinds of the core group that are counted by their bare plural, too, from the time before `count/…`.
const BARE: [&str; 7] =
    ["configmaps", "persistentvolumeclaims", "pods", "replicationcontrollers", "resourcequotas", "secrets", "services"];
const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
const HUGE_PAGES: &str = "hugepages-";
/// `gold.storageclass.storage.k8s.io/requests.storage`
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";

/// `count/deployments.apps`: counts objects of any namespaced kind, custom ones too.
fn count_name(subject: Subject<'_>) -> String {
    if subject.group.is_empty() {
        format!("count/{}", subject.plural)
    } else {
        format!("count/{}.{}", subject.plural, subject.group)
    }
}

/// Whether a resource name of a quota is about objects of this resource.
pub fn concerns(name: &str, subject: Subject<'_>) -> bool {
    if let Some(counted) = name.strip_prefix("count/") {
        let rest = counted.strip_prefix(subject.plural);
        return rest.is_some_and(|rest| rest.strip_prefix('.').unwrap_or_default() == subject.group && rest != ".");
    }
    if !subject.group.is_empty() {
        return false;
    }
    match subject.plural {
        "pods" => {
            let of = |prefix| name.strip_prefix(prefix).is_some_and(|rest| COMPUTE.contains(&rest));
            let requested = name.strip_prefix("requests.");
            name == "pods"
                || COMPUTE.contains(&name)
                || of("requests.")
                || of("limits.")
                || name.starts_with(HUGE_PAGES)
                || requested.is_some_and(|rest| rest.starts_with(HUGE_PAGES) || is_extended(rest))
        }
        "services" => matches!(name, "services" | "services.nodeports" | "services.loadbalancers"),
        "persistentvolumeclaims" => {
            let per_class = name.split_once(OF_CLASS).map(|(_, rest)| rest);
            matches!(per_class.unwrap_or(name), "persistentvolumeclaims" | "requests.storage")
        }
        plural => name == plural && BARE.contains(&plural),
    }
}

/// A resource that is not Kubernetes' own: `example.com/gpu`.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

/// What an object uses.
pub fn usage(subject: Subject<'_>, object: &Object, now: Timestamp) -> Amounts {
    let one = Quantity::from_units(1);
    let mut usage = Amounts::from([(count_name(subject), one)]);
    if !subject.group.is_empty() {
        return usage;
    }
    match subject.plural {
        "pods" => {
            // Beside `count/pods` a pod that has ended uses nothing.
            if counts_until(object).is_some_and(|end| now > end) || is_over(object) {
                return usage;
            }
            usage.insert("pods".to_owned(), one);
            pod(object, &mut usage);
        }
        "services" => {
            usage.insert("services".to_owned(), one);
            service(object, &mut usage);
        }
        "persistentvolumeclaims" => {
            usage.insert("persistentvolumeclaims".to_owned(), one);
            claim(object, &mut usage);
        }
        plural if BARE.contains(&plural) => drop(usage.insert(plural.to_owned(), one)),
        _ => {}
    }
    usage
}

fn is_over(pod: &Object) -> bool {
    matches!(pod.get_str(&["status", "phase"]), Some("Succeeded" | "Failed"))
}

/// A pod that should be gone and is not (its node may be lost) uses nothing: its owner must be able to replace it.
/// `None`: it is not going.
pub fn counts_until(pod: &Object) -> Option<Timestamp> {
    let deleted: Timestamp = pod.deletion_timestamp()?.parse().ok()?;
    let grace = pod.get_i64(&["metadata", "deletionGracePeriodSeconds"])?;
    deleted.checked_add(SignedDuration::from_secs(grace)).ok()
}

fn pod(pod: &Object, usage: &mut Amounts) {
    for (name, amount) in of_pod(pod, Side::Requests) {
        if COMPUTE.contains(&name.as_str()) || name.starts_with(HUGE_PAGES) {
            usage.insert(format!("requests.{name}"), amount);
            usage.insert(name, amount);
        } else if is_extended(&name) {
            usage.insert(format!("requests.{name}"), amount);
        }
    }
    for (name, amount) in of_pod(pod, Side::Limits) {
        if COMPUTE.contains(&name.as_str()) {
            usage.insert(format!("limits.{name}"), amount);
        }
    }
}

fn service(service: &Object, usage: &mut Amounts) {
    let ports = service.get_list(&["spec", "ports"]);
    let all = ports.len();
    let named = || ports.iter().filter(|port| port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) != 0).count();
    let (node_ports, balancers) = match service.get_str(&["spec", "type"]) {
        Some("NodePort") => (all, 0),
        Some("LoadBalancer") if service.get_bool(&["spec", "allocateLoadBalancerNodePorts"]) == Some(false) => {
            (named(), 1)
        }
        Some("LoadBalancer") => (all, 1),
        _ => (0, 0),
    };
    let units = |count: usize| Quantity::from_units(i64::try_from(count).unwrap_or(i64::MAX));
    usage.insert("services.nodeports".to_owned(), units(node_ports));
    usage.insert("services.loadbalancers".to_owned(), units(balancers));
}

fn claim(claim: &Object, usage: &mut Amounts) {
    // The annotation was there before the field.
    let class = claim.annotation("volume.beta.kubernetes.io/storage-class");
    let class = class.or_else(|| claim.get_str(&["spec", "storageClassName"])).unwrap_or_default();
    let storage = |path: &[&str]| amounts(claim.get(path)).get("storage").copied();
    // While a volume shrinks back after an expansion that failed, the larger size counts (KEP-1790).
    let requested = storage(&["spec", "resources", "requests"]).max(storage(&["status", "allocatedResources"]));
    let mut both = |name: &str, amount: Quantity| {
        usage.insert(name.to_owned(), amount);
        if !class.is_empty() {
            usage.insert(format!("{class}{OF_CLASS}{name}"), amount);
        }
    };
    both("persistentvolumeclaims", Quantity::from_units(1));
    if let Some(requested) = requested {
        both("requests.storage", requested);
    }
}
