//! Owns the arithmetic from Kubernetes quantities to cgroup figures and QoS classes.
//! Never touches a cgroup.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

type List = BTreeMap<String, Quantity>;

/// CFS period in microseconds; Kubernetes' default.
pub(crate) const CPU_PERIOD_US: u64 = 100_000;

/// A quantity in thousandths; zero when it does not parse (the API server has validated it).
pub(crate) fn milli(quantity: &Quantity) -> i128 {
    proa_apimachinery::quantity::Quantity::parse(&quantity.0).map(|q| q.as_milli()).unwrap_or(0)
}

fn whole(quantity: &Quantity) -> i64 {
    let up = milli(quantity).div_euclid(1000) + i128::from(milli(quantity).rem_euclid(1000) != 0);
    i64::try_from(up).unwrap_or(i64::MAX)
}

fn named<'a>(list: Option<&'a List>, name: &str) -> Option<&'a Quantity> {
    list.and_then(|list| list.get(name))
}

/// What a container may use, in the units of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// `cpu.shares`
    pub(crate) cpu_shares: u64,
    /// `cpu.cfs_quota_us`, none without a CPU limit
    pub(crate) cpu_quota_us: Option<i64>,
    /// `memory.limit_in_bytes`, none without a memory limit
    pub(crate) memory_bytes: Option<i64>,
}

/// Shares from thousandths of a CPU: 1024 per CPU, never under the kernel's least of 2.
pub(crate) fn shares(milli_cpu: i128) -> u64 {
    u64::try_from(milli_cpu * 1024 / 1000).unwrap_or(2).clamp(2, 262_144)
}

/// Quota from thousandths of a CPU, never under the kernel's least of 1 ms.
pub(crate) fn quota(milli_cpu: i128) -> i64 {
    i64::try_from(milli_cpu * i128::from(CPU_PERIOD_US) / 1000).unwrap_or(i64::MAX).max(1000)
}

/// The limits of one container.
pub(crate) fn limits(resources: Option<&ResourceRequirements>) -> Limits {
    let requests = resources.and_then(|r| r.requests.as_ref());
    let limits = resources.and_then(|r| r.limits.as_ref());
    // Without a request the limit is the request (API defaulting); a bare limit still counts here.
    let cpu = named(requests, "cpu").or(named(limits, "cpu")).map_or(0, milli);
    Limits {
        cpu_shares: shares(cpu),
        cpu_quota_us: named(limits, "cpu").map(milli).filter(|m| *m > 0).map(quota),
        memory_bytes: named(limits, "memory").map(whole).filter(|b| *b > 0),
    }
}

/// Why a pod can never run on a node with this much to give away: reason and message, in the kubelet's words. Whether it
/// fits beside the others is the scheduler's business; a pod may come here without having met one.
pub(crate) fn too_big(spec: &PodSpec, allocatable: &List) -> Option<(&'static str, String)> {
    [("cpu", "OutOfcpu"), ("memory", "OutOfmemory"), ("ephemeral-storage", "OutOfephemeral-storage")]
        .into_iter()
        .find_map(|(name, reason)| {
            let request = |c: &Container| {
                let r = c.resources.as_ref()?;
                named(r.requests.as_ref(), name).or(named(r.limits.as_ref(), name)).map(milli)
            };
            let together: i128 = spec.containers.iter().filter_map(request).sum();
            let alone = spec.init_containers.iter().flatten().filter_map(request).max().unwrap_or(0);
            let (requested, capacity) = (together.max(alone), milli(allocatable.get(name)?));
            // The kubelet counts CPUs in thousandths, the rest in bytes.
            let unit = if name == "cpu" { 1 } else { 1000 };
            (requested > capacity).then(|| {
                let (requested, capacity) = (requested / unit, capacity / unit);
                let facts = format!("{name}, requested: {requested}, used: 0, capacity: {capacity}");
                (reason, format!("Pod was rejected: Node didn't have enough resource: {facts}"))
            })
        })
}

/// The limits of a whole pod: the sum over its containers, a limit only when each of them has one.
pub(crate) fn pod_limits(spec: &PodSpec) -> Limits {
    let long_running: Vec<&Container> = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always")))
        .collect();
    let requests = |name: &str| -> i128 {
        long_running
            .iter()
            .filter_map(|c| {
                let r = c.resources.as_ref()?;
                named(r.requests.as_ref(), name).or(named(r.limits.as_ref(), name)).map(milli)
            })
            .sum()
    };
    let limit = |name: &str| -> Option<i128> {
        let mut sum = 0;
        for c in &long_running {
            sum += named(c.resources.as_ref().and_then(|r| r.limits.as_ref()), name).map(milli)?;
        }
        // An init container runs alone, with a limit of its own that may be greater.
        for c in spec.init_containers.iter().flatten() {
            sum = sum.max(named(c.resources.as_ref().and_then(|r| r.limits.as_ref()), name).map(milli)?);
        }
        (sum > 0).then_some(sum)
    };
    Limits {
        cpu_shares: shares(requests("cpu")),
        cpu_quota_us: limit("cpu").map(quota),
        memory_bytes: limit("memory").map(|m| i64::try_from(m / 1000).unwrap_or(i64::MAX)),
    }
}

/// Quality of service, as `status.qosClass` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qos {
    /// every container has equal requests and limits for CPU and memory
    Guaranteed,
    /// something is requested
    Burstable,
    /// nothing is requested
    BestEffort,
}

/// The class of a pod, by the rule of the Kubernetes documentation.
pub(crate) fn qos(spec: &PodSpec) -> Qos {
    let mut guaranteed = true;
    let mut anything = false;
    for c in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let requests = c.resources.as_ref().and_then(|r| r.requests.as_ref());
        let limits = c.resources.as_ref().and_then(|r| r.limits.as_ref());
        for name in ["cpu", "memory"] {
            let limit = named(limits, name).map_or(0, milli);
            let request = named(requests, name).map(milli).unwrap_or(limit);
            anything |= limit > 0 || request > 0;
            guaranteed &= limit > 0 && request == limit;
        }
    }
    match (anything, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// `oom_score_adj` of a container (Kubernetes: Guaranteed −997, BestEffort 1000, Burstable by its share of memory).
pub(crate) fn oom_score_adj(spec: &PodSpec, container: &Container, memory_capacity: i64) -> i32 {
    match qos(spec) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
            let request = named(requests, "memory").map_or(0, whole);
            let adjusted = 1000 - (1000 * i128::from(request)) / i128::from(memory_capacity.max(1));
            i32::try_from(adjusted.clamp(3, 999)).unwrap_or(999)
        }
    }
}

/// Value of a `resourceFieldRef`: `limits.cpu`, `requests.memory` … over its divisor, rounded up.
/// A limit that is not set reads as what the node can give.
pub(crate) fn field(
    container: &Container,
    resource: &str,
    divisor: Option<&Quantity>,
    allocatable: &List,
) -> Option<String> {
    let (which, name) = resource.split_once('.')?;
    let list = container.resources.as_ref();
    let set = match which {
        "limits" => named(list.and_then(|r| r.limits.as_ref()), name).or_else(|| {
            matches!(name, "cpu" | "memory" | "ephemeral-storage").then(|| allocatable.get(name)).flatten()
        }),
        "requests" => named(list.and_then(|r| r.requests.as_ref()), name),
        _ => return None,
    };
    let value = set.map_or(0, milli);
    let divisor = match divisor.map(milli) {
        None | Some(0) => 1000,
        Some(d) => d,
    };
    Some(((value + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_never_fit_is_named_and_the_rest_passes() {
        let spec = |cpu: &str, init: &str| -> PodSpec {
            serde_json::from_value(serde_json::json!({
                "containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}, {"name": "b", "resources": {"requests": {"cpu": "500m"}}}],
                "initContainers": [{"name": "i", "resources": {"requests": {"memory": init}}}],
            }))
            .unwrap()
        };
        let node: List = [("cpu", "2"), ("memory", "1Gi")].map(|(n, q)| (n.to_owned(), Quantity(q.to_owned()))).into();
        assert_eq!(too_big(&spec("1500m", "1Gi"), &node), None);
        let (reason, message) = too_big(&spec("1501m", "1Gi"), &node).unwrap();
        assert_eq!(reason, "OutOfcpu");
        assert_eq!(
            message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 2001, used: 0, capacity: 2000"
        );
        assert_eq!(too_big(&spec("1", "2Gi"), &node).unwrap().0, "OutOfmemory");
    }
    use serde_json::json;

    fn container(resources: serde_json::Value) -> Container {
        serde_json::from_value(json!({"name": "c", "resources": resources})).unwrap()
    }

    fn spec(resources: serde_json::Value) -> PodSpec {
        PodSpec { containers: vec![container(resources)], ..Default::default() }
    }

    #[test]
    fn cgroup_figures_are_kubernetes_own() {
        let c = container(
            json!({"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}}),
        );
        let l = limits(c.resources.as_ref());
        assert_eq!(l, Limits { cpu_shares: 256, cpu_quota_us: Some(50_000), memory_bytes: Some(128 << 20) });
        assert_eq!(limits(None), Limits { cpu_shares: 2, cpu_quota_us: None, memory_bytes: None });
        let tiny = container(json!({"limits": {"cpu": "1m"}}));
        assert_eq!(limits(tiny.resources.as_ref()).cpu_quota_us, Some(1000));
    }

    #[test]
    fn qos_classes() {
        for (resources, want) in [
            (json!({}), Qos::BestEffort),
            (json!({"requests": {"cpu": "1"}}), Qos::Burstable),
            (json!({"limits": {"cpu": "1"}}), Qos::Burstable),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), Qos::Guaranteed),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}),
                Qos::Burstable,
            ),
        ] {
            assert_eq!(qos(&spec(resources.clone())), want, "{resources}");
        }
    }

    #[test]
    fn resource_fields_round_up_by_divisor() {
        let c = container(json!({"requests": {"cpu": "1250m", "memory": "100Mi"}}));
        let node: List = [("cpu".to_owned(), Quantity("4".into()))].into();
        let q = |s: &str| Quantity(s.into());
        assert_eq!(field(&c, "requests.cpu", None, &node).as_deref(), Some("2"));
        assert_eq!(field(&c, "requests.cpu", Some(&q("1m")), &node).as_deref(), Some("1250"));
        assert_eq!(field(&c, "requests.memory", Some(&q("1Mi")), &node).as_deref(), Some("100"));
        assert_eq!(field(&c, "limits.cpu", None, &node).as_deref(), Some("4"));
        assert_eq!(field(&c, "nonsense", None, &node), None);
    }
}
