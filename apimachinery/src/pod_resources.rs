//! Owns what a pod asks for and what it may use at most, summed over its life: what bounds per namespace are held
//! against. Works on objects as they are on the wire; an amount that does not parse counts as absent, for validation
//! refuses it. Never knows a bound.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::Object;
use crate::quantity::Quantity;

/// Amounts by the name of their resource.
pub type Amounts = BTreeMap<String, Quantity>;

/// Which of the two lists of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What it is given at least.
    Requests,
    /// What it is given at most.
    Limits,
}

impl Side {
    fn field(self) -> &'static str {
        match self {
            Side::Requests => "requests",
            Side::Limits => "limits",
        }
    }
}

/// A resource list.
pub fn amounts(list: Option<&Value>) -> Amounts {
    let entries = list.and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), Quantity::from_value(value).ok()?))).collect()
}

/// What one container asks for.
pub fn of_container(container: &Value, side: Side) -> Amounts {
    amounts(container.get("resources").and_then(|resources| resources.get(side.field())))
}

/// Adds, name by name.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let held = sum.entry(name.clone()).or_insert(Quantity::ZERO);
        *held = *held + *amount;
    }
}

fn raise_to(held: &mut Amounts, than: &Amounts) {
    for (name, amount) in than {
        let held = held.entry(name.clone()).or_insert(*amount);
        *held = (*held).max(*amount);
    }
}

/// The most a pod needs at any moment of its life: either all its containers with its sidecars, or one init container
/// with the sidecars started before it (KEP-753); what is said of the pod as a whole instead, where it is (KEP-2837); and
/// its overhead (KEP-688), which raises a limit only where there is one.
pub fn of_pod(pod: &Object, side: Side) -> Amounts {
    let mut running = Amounts::new();
    for container in pod.get_list(&["spec", "containers"]) {
        add(&mut running, &of_container(container, side));
    }
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in pod.get_list(&["spec", "initContainers"]) {
        let asked = of_container(container, side);
        if container.get("restartPolicy").and_then(Value::as_str) == Some("Always") {
            add(&mut running, &asked);
            add(&mut sidecars, &asked);
            raise_to(&mut starting, &sidecars);
        } else {
            let mut peak = asked;
            add(&mut peak, &sidecars);
            raise_to(&mut starting, &peak);
        }
    }
    raise_to(&mut running, &starting);
    running.extend(amounts(pod.get(&["spec", "resources", side.field()])));
    for (name, amount) in amounts(pod.get(&["spec", "overhead"])) {
        match running.get_mut(&name) {
            Some(held) if side == Side::Requests || !held.is_zero() => *held = *held + amount,
            None if side == Side::Requests => drop(running.insert(name, amount)),
            _ => {}
        }
    }
    running
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(spec: Value, side: Side, name: &str) -> Option<String> {
        let pod = Object::from_value(json!({"spec": spec})).expect("an object");
        of_pod(&pod, side).get(name).map(ToString::to_string)
    }

    fn container(cpu: &str, always: bool) -> Value {
        let mut container = json!({"resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}});
        if always {
            container["restartPolicy"] = json!("Always");
        }
        container
    }

    #[test]
    fn a_pod_asks_for_the_peak_of_its_life() {
        let table = [
            (json!([container("1", false), container("500m", false)]), json!([]), "1500m"),
            (json!([container("1", false)]), json!([container("3", false)]), "3"),
            (json!([container("1", false)]), json!([container("1", true), container("3", false)]), "4"),
            (json!([container("1", false)]), json!([container("3", false), container("1", true)]), "3"),
            (json!([container("3", false)]), json!([container("1", true), container("1", false)]), "4"),
        ];
        for (containers, init, wanted) in table {
            let spec = json!({"containers": containers, "initContainers": init});
            for side in [Side::Requests, Side::Limits] {
                assert_eq!(of(spec.clone(), side, "cpu").as_deref(), Some(wanted), "{spec}");
            }
        }
    }

    #[test]
    fn overhead_raises_requests_and_those_limits_that_there_are() {
        let spec = json!({"containers": [container("1", false)], "overhead": {"cpu": "250m", "memory": "1Mi"}});
        assert_eq!(of(spec.clone(), Side::Requests, "cpu").as_deref(), Some("1250m"));
        assert_eq!(of(spec.clone(), Side::Requests, "memory").as_deref(), Some("1Mi"));
        assert_eq!(of(spec.clone(), Side::Limits, "cpu").as_deref(), Some("1250m"));
        assert_eq!(of(spec, Side::Limits, "memory"), None);
    }

    #[test]
    fn what_is_said_of_the_whole_pod_stands_instead_of_its_containers() {
        let spec = json!({"containers": [container("1", false)], "resources": {"requests": {"cpu": "2"}}});
        assert_eq!(of(spec.clone(), Side::Requests, "cpu").as_deref(), Some("2"));
        assert_eq!(of(spec, Side::Limits, "cpu").as_deref(), Some("1"));
    }
}
