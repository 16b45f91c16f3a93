//! Amounts of resources, and what a pod asks for. Pure.

use k8s_openapi::{
    api::core::v1::{Container, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use std::collections::BTreeMap;

/// What a container without a request counts as when nodes are compared (never when they are filtered).
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;

/// Amounts by resource name: `cpu` in thousandths of a core, everything else in whole units.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Amounts {
    /// Thousandths of a core.
    pub(crate) milli_cpu: i64,
    /// Bytes.
    pub(crate) memory: i64,
    /// `ephemeral-storage`, huge pages and extended resources.
    pub(crate) other: BTreeMap<String, i64>,
}

impl Amounts {
    /// Reads a resource list. A quantity that does not parse counts as nothing: validation refused it long before.
    pub(crate) fn from_list(list: Option<&BTreeMap<String, Quantity>>) -> Amounts {
        let mut amounts = Amounts::default();
        for (name, quantity) in list.into_iter().flatten() {
            let Ok(quantity) = proa_apimachinery::quantity::Quantity::parse(&quantity.0) else { continue };
            match name.as_str() {
                "cpu" => amounts.milli_cpu = i64::try_from(quantity.as_milli()).unwrap_or(i64::MAX),
                name => amounts.set(name, quantity.as_int_ceil()),
            }
        }
        amounts
    }

    fn set(&mut self, name: &str, amount: i64) {
        match name {
            "cpu" => self.milli_cpu = amount,
            "memory" => self.memory = amount,
            // The count of pods is kept apart.
            "pods" => {}
            name => {
                self.other.insert(name.to_owned(), amount);
            }
        }
    }

    /// Adds.
    pub(crate) fn add(&mut self, more: &Amounts) {
        self.milli_cpu = self.milli_cpu.saturating_add(more.milli_cpu);
        self.memory = self.memory.saturating_add(more.memory);
        for (name, amount) in &more.other {
            let sum = self.other.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    /// Takes away what was added.
    pub(crate) fn subtract(&mut self, less: &Amounts) {
        self.milli_cpu = self.milli_cpu.saturating_sub(less.milli_cpu);
        self.memory = self.memory.saturating_sub(less.memory);
        for (name, amount) in &less.other {
            if let Some(sum) = self.other.get_mut(name) {
                *sum = sum.saturating_sub(*amount);
            }
        }
        self.other.retain(|_, amount| *amount != 0);
    }

    /// The larger of each.
    fn raise_to(&mut self, than: &Amounts) {
        self.milli_cpu = self.milli_cpu.max(than.milli_cpu);
        self.memory = self.memory.max(than.memory);
        for (name, amount) in &than.other {
            let held = self.other.entry(name.clone()).or_default();
            *held = (*held).max(*amount);
        }
    }
}

/// Which of the amounts: names are compared once for a pod, not for every node.
#[derive(Clone, Copy)]
pub(crate) enum Amount<'a> {
    Cpu,
    Memory,
    Other(&'a str),
}

impl Amount<'_> {
    pub(crate) fn named(name: &str) -> Amount<'_> {
        match name {
            "cpu" => Amount::Cpu,
            "memory" => Amount::Memory,
            name => Amount::Other(name),
        }
    }

    #[inline]
    pub(crate) fn of(self, amounts: &Amounts) -> i64 {
        match self {
            Amount::Cpu => amounts.milli_cpu,
            Amount::Memory => amounts.memory,
            Amount::Other(name) => amounts.other.get(name).copied().unwrap_or(0),
        }
    }
}

/// What a pod asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Requests {
    /// What must fit.
    pub(crate) amounts: Amounts,
    /// CPU and memory with a default for containers that ask for none: for comparing nodes.
    pub(crate) assumed_milli_cpu: i64,
    /// See `assumed_milli_cpu`.
    pub(crate) assumed_memory: i64,
}

/// The most a pod needs at any moment of its life: either all its containers with its sidecars, or one init container
/// with the sidecars started before it (KEP-753); pod-level requests instead where given (KEP-2837); plus overhead.
pub(crate) fn requests(spec: &PodSpec) -> Requests {
    let exact = total(spec, |container| of(container.resources.as_ref()));
    let assumed = total(spec, |container| {
        let mut amounts = of(container.resources.as_ref());
        let asks = |name| {
            let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
            requests.is_some_and(|requests| requests.contains_key(name))
        };
        if !asks("cpu") {
            amounts.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if !asks("memory") {
            amounts.memory = DEFAULT_MEMORY;
        }
        amounts
    });
    Requests { amounts: exact, assumed_milli_cpu: assumed.milli_cpu, assumed_memory: assumed.memory }
}

fn of(resources: Option<&ResourceRequirements>) -> Amounts {
    Amounts::from_list(resources.and_then(|resources| resources.requests.as_ref()))
}

fn total(spec: &PodSpec, ask: impl Fn(&Container) -> Amounts) -> Amounts {
    let mut running = Amounts::default();
    spec.containers.iter().for_each(|container| running.add(&ask(container)));
    let (mut sidecars, mut starting) = (Amounts::default(), Amounts::default());
    for container in spec.init_containers.iter().flatten() {
        let asked = ask(container);
        if container.restart_policy.as_deref() == Some("Always") {
            running.add(&asked);
            sidecars.add(&asked);
            starting.raise_to(&sidecars);
        } else {
            let mut peak = asked;
            peak.add(&sidecars);
            starting.raise_to(&peak);
        }
    }
    running.raise_to(&starting);
    if let Some(requests) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        let pod_level = Amounts::from_list(Some(requests));
        for name in requests.keys() {
            match name.as_str() {
                "cpu" => running.milli_cpu = pod_level.milli_cpu,
                "memory" => running.memory = pod_level.memory,
                name => running.set(name, pod_level.other.get(name).copied().unwrap_or(0)),
            }
        }
    }
    running.add(&Amounts::from_list(spec.overhead.as_ref()));
    running
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    fn container(name: &str, cpu: &str, always: bool) -> serde_json::Value {
        let mut container = json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
        if always {
            container["restartPolicy"] = json!("Always");
        }
        container
    }

    #[test]
    fn a_pod_asks_for_the_peak_of_its_life() {
        let cases = [
            (json!([container("a", "1", false), container("b", "500m", false)]), json!([]), 1500),
            (json!([container("a", "1", false)]), json!([container("i", "3", false)]), 3000),
            (json!([container("a", "1", false)]), json!([container("s", "1", true), container("i", "3", false)]), 4000),
            (json!([container("a", "1", false)]), json!([container("i", "3", false), container("s", "1", true)]), 3000),
            (json!([container("a", "3", false)]), json!([container("s", "1", true), container("i", "1", false)]), 4000),
        ];
        for (containers, init, milli) in cases {
            let spec = spec(json!({"containers": containers, "initContainers": init}));
            assert_eq!(requests(&spec).amounts.milli_cpu, milli, "{spec:?}");
        }
    }

    #[test]
    fn overhead_comes_on_top_and_pod_level_requests_come_instead() {
        let with = json!({"containers": [container("a", "1", false)], "overhead": {"cpu": "250m", "memory": "1Mi"}});
        let asked = requests(&spec(with)).amounts;
        assert_eq!((asked.milli_cpu, asked.memory), (1250, 1 << 20));
        let level = json!({"containers": [container("a", "1", false)], "resources": {"requests": {"cpu": "2"}}});
        assert_eq!(requests(&spec(level)).amounts.milli_cpu, 2000);
    }

    #[test]
    fn a_container_without_requests_still_counts_when_nodes_are_compared() {
        let asked = requests(&spec(json!({"containers": [{"name": "a"}, {"name": "b"}]})));
        assert_eq!(asked.amounts, Amounts::default());
        assert_eq!((asked.assumed_milli_cpu, asked.assumed_memory), (200, 400 << 20));
    }

    #[test]
    fn adding_and_taking_away_leaves_nothing() {
        let mut sum = Amounts::default();
        let more = Amounts { milli_cpu: 5, memory: 7, other: [("example.com/gpu".to_owned(), 2)].into() };
        sum.add(&more);
        sum.subtract(&more);
        assert_eq!(sum, Amounts::default());
    }
}
