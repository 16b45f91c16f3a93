//! What the LimitRanges of a namespace give its containers that say nothing, and what they refuse. Pure: the core looks
//! them up and passes them in.
//!
//! Source: the LimitRanger admission plugin.

use proa_apimachinery::object::Object;
use proa_apimachinery::pod_resources::{self, Amounts, Side, amounts};
use proa_apimachinery::quantity::Quantity;
use serde_json::{Map, Value};

/// On a pod: what it was given.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

fn limits(range: &Object) -> &[Value] {
    range.get_list(&["spec", "limits"])
}

fn type_of(limit: &Value) -> &str {
    limit.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// Gives a new pod's containers the requests and limits they leave out, from the first range that has some.
pub(super) fn complete(pod: &mut Object, ranges: &[Object]) {
    for limit in ranges.iter().flat_map(limits).filter(|limit| type_of(limit) == "Container") {
        let mut given = Vec::new();
        for (field, what) in [("containers", "container"), ("initContainers", "init container")] {
            let containers = pod.get_mut(&["spec", field]).and_then(Value::as_array_mut).into_iter().flatten();
            for container in containers.filter_map(Value::as_object_mut) {
                let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
                let mut fill = |side: &str, word: &str, source: &str| {
                    let mut names = fill_in(container, side, limit.get(source));
                    names.sort_unstable();
                    if !names.is_empty() {
                        given.push(format!("{} {word} for {what} {name}", names.join(", ")));
                    }
                };
                fill("requests", "request", "defaultRequest");
                fill("limits", "limit", "default");
            }
        }
        if !given.is_empty() {
            pod.set_annotation(ANNOTATION, format!("LimitRanger plugin set: {}", given.join("; ")));
        }
    }
}

/// Sets what is absent of one side of a container's resources; the names that were.
fn fill_in(container: &mut Map<String, Value>, side: &str, defaults: Option<&Value>) -> Vec<String> {
    let mut set = Vec::new();
    for (name, amount) in defaults.and_then(Value::as_object).into_iter().flatten() {
        let resources = container.entry("resources").or_insert_with(|| Map::new().into());
        let Some(resources) = resources.as_object_mut() else { break };
        let Some(list) = resources.entry(side).or_insert_with(|| Map::new().into()).as_object_mut() else { break };
        if !list.contains_key(name) {
            list.insert(name.clone(), amount.clone());
            set.push(name.clone());
        }
    }
    set
}

/// Why the ranges do not let a new pod in; nothing when they do.
pub(super) fn refuse_pod(pod: &Object, ranges: &[Object]) -> Option<String> {
    first_refusal(ranges, |limit| {
        let mut errors = Vec::new();
        match type_of(limit) {
            "Container" => {
                let containers = ["containers", "initContainers"].iter().flat_map(|f| pod.get_list(&["spec", f]));
                for container in containers {
                    let of = |side| pod_resources::of_container(container, side);
                    Bounds::of(limit).hold(&of(Side::Requests), &of(Side::Limits), &mut errors);
                }
            }
            "Pod" => {
                let of = |side| pod_resources::of_pod(pod, side);
                Bounds::of(limit).hold(&of(Side::Requests), &of(Side::Limits), &mut errors);
            }
            _ => {}
        }
        errors
    })
}

/// Why the ranges do not let a claim in.
pub(super) fn refuse_claim(claim: &Object, ranges: &[Object]) -> Option<String> {
    let requests = amounts(claim.get(&["spec", "resources", "requests"]));
    first_refusal(ranges, |limit| {
        let mut errors = Vec::new();
        if type_of(limit) == "PersistentVolumeClaim" {
            let bounds = Bounds::of(limit);
            bounds.at_least(&requests, &Amounts::new(), &mut errors);
            bounds.requested_at_most(&requests, &mut errors);
        }
        errors
    })
}

/// Each range speaks for itself; the first that refuses is heard.
fn first_refusal(ranges: &[Object], check: impl Fn(&Value) -> Vec<String>) -> Option<String> {
    ranges.iter().find_map(|range| {
        let mut errors: Vec<String> = Vec::new();
        for error in limits(range).iter().flat_map(&check) {
            if !errors.contains(&error) {
                errors.push(error);
            }
        }
        match errors.len() {
            0 => None,
            1 => errors.pop(),
            _ => Some(format!("[{}]", errors.join(", "))),
        }
    })
}

struct Bounds<'a> {
    kind: &'a str,
    limit: &'a Value,
}

impl<'a> Bounds<'a> {
    fn of(limit: &'a Value) -> Self {
        Bounds { kind: type_of(limit), limit }
    }

    fn each(&self, field: &str) -> impl Iterator<Item = (String, Quantity)> {
        amounts(self.limit.get(field)).into_iter()
    }

    fn hold(&self, requests: &Amounts, limits: &Amounts, errors: &mut Vec<String>) {
        self.at_least(requests, limits, errors);
        self.at_most(requests, limits, errors);
        self.in_proportion(requests, limits, errors);
    }

    fn at_least(&self, requests: &Amounts, limits: &Amounts, errors: &mut Vec<String>) {
        for (name, bound) in self.each("min") {
            let must = format!("minimum {name} usage per {} is {bound}", self.kind);
            match (requests.get(&name), limits.get(&name)) {
                (None, _) => errors.push(format!("{must}.  No request is specified")),
                (Some(request), _) if *request < bound => errors.push(format!("{must}, but request is {request}")),
                (_, Some(limit)) if *limit < bound => errors.push(format!("{must}, but limit is {limit}")),
                _ => {}
            }
        }
    }

    fn at_most(&self, requests: &Amounts, limits: &Amounts, errors: &mut Vec<String>) {
        for (name, bound) in self.each("max") {
            let must = format!("maximum {name} usage per {} is {bound}", self.kind);
            match (requests.get(&name), limits.get(&name)) {
                (_, None) => errors.push(format!("{must}.  No limit is specified")),
                (_, Some(limit)) if *limit > bound => errors.push(format!("{must}, but limit is {limit}")),
                (Some(request), _) if *request > bound => errors.push(format!("{must}, but request is {request}")),
                _ => {}
            }
        }
    }

    fn requested_at_most(&self, requests: &Amounts, errors: &mut Vec<String>) {
        for (name, bound) in self.each("max") {
            let must = format!("maximum {name} usage per {} is {bound}", self.kind);
            match requests.get(&name) {
                None => errors.push(format!("{must}.  No request is specified")),
                Some(request) if *request > bound => errors.push(format!("{must}, but request is {request}")),
                _ => {}
            }
        }
    }

    fn in_proportion(&self, requests: &Amounts, limits: &Amounts, errors: &mut Vec<String>) {
        for (name, bound) in self.each("maxLimitRequestRatio") {
            let must = format!("{name} max limit to request ratio per {} is {bound}", self.kind);
            let given = |amounts: &Amounts| amounts.get(&name).copied().filter(|amount| !amount.is_zero());
            match (given(requests), given(limits)) {
                (None, _) => errors.push(format!("{must}, but no request is specified or request is 0")),
                (_, None) => errors.push(format!("{must}, but no limit is specified or limit is 0")),
                (Some(request), Some(limit)) => {
                    let ratio = limit.as_milli() as f64 / request.as_milli() as f64;
                    if ratio * 1000.0 > bound.as_milli() as f64 {
                        errors.push(format!("{must}, but provided ratio is {ratio:.6}"));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Object {
        Object::from_value(value).expect("an object")
    }

    fn range(limit: Value) -> Vec<Object> {
        vec![object(json!({"spec": {"limits": [limit]}}))]
    }

    fn pod(requests: Value, limits: Value) -> Object {
        object(json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests, "limits": limits}}]}}))
    }

    /// Conformance: "LimitRange should create a LimitRange with defaults and ensure pod has those defaults applied".
    #[test]
    fn a_container_gets_what_it_leaves_out_and_keeps_what_it_says() {
        let ranges = range(json!({"type": "Container",
            "default": {"cpu": "500m", "memory": "500Mi"}, "defaultRequest": {"cpu": "100m", "memory": "200Mi"}}));
        let mut partial = object(json!({"spec": {
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "300m"}}}, {"name": "b"}],
            "initContainers": [{"name": "i", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]}}));
        complete(&mut partial, &ranges);
        let resources = |field: &str, at: usize| partial.get_list(&["spec", field])[at]["resources"].clone();
        assert_eq!(
            resources("containers", 0),
            json!({"requests": {"cpu": "300m", "memory": "200Mi"}, "limits": {"cpu": "500m", "memory": "500Mi"}})
        );
        assert_eq!(resources("initContainers", 0)["limits"], json!({"cpu": "1", "memory": "1Gi"}));
        assert_eq!(
            partial.annotation(ANNOTATION),
            Some(
                "LimitRanger plugin set: memory request for container a; cpu, memory limit for container a; \
                 cpu, memory request for container b; cpu, memory limit for container b; \
                 cpu, memory request for init container i"
            )
        );
        let mut full = pod(json!({"cpu": "1", "memory": "1"}), json!({"cpu": "1", "memory": "1"}));
        let before = full.clone();
        complete(&mut full, &ranges);
        assert_eq!(full.0, before.0, "nothing to give, nothing to say");
    }

    #[test]
    fn bounds_are_refused_in_kubernetes_words() {
        let table = [
            (
                json!({"type": "Container", "min": {"cpu": "50m"}}),
                pod(json!({"cpu": "10m"}), json!({})),
                Some("minimum cpu usage per Container is 50m, but request is 10m"),
            ),
            (
                json!({"type": "Container", "min": {"cpu": "50m"}}),
                pod(json!({}), json!({})),
                Some("minimum cpu usage per Container is 50m.  No request is specified"),
            ),
            (
                json!({"type": "Container", "min": {"cpu": "50m"}}),
                pod(json!({"cpu": "50m"}), json!({"cpu": "50m"})),
                None,
            ),
            (
                json!({"type": "Container", "max": {"memory": "1Gi"}}),
                pod(json!({}), json!({"memory": "2Gi"})),
                Some("maximum memory usage per Container is 1Gi, but limit is 2Gi"),
            ),
            (
                json!({"type": "Container", "max": {"memory": "1Gi"}}),
                pod(json!({"memory": "1Mi"}), json!({})),
                Some("maximum memory usage per Container is 1Gi.  No limit is specified"),
            ),
            (
                json!({"type": "Container", "max": {"memory": "1Gi"}, "min": {"cpu": "1"}}),
                pod(json!({"cpu": "1m"}), json!({"memory": "2Gi"})),
                Some(
                    "[minimum cpu usage per Container is 1, but request is 1m, maximum memory usage per Container is 1Gi, but limit is 2Gi]",
                ),
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                pod(json!({"cpu": "100m"}), json!({"cpu": "250m"})),
                Some("cpu max limit to request ratio per Container is 2, but provided ratio is 2.500000"),
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                pod(json!({"cpu": "100m"}), json!({"cpu": "200m"})),
                None,
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                pod(json!({}), json!({"cpu": "1"})),
                Some("cpu max limit to request ratio per Container is 2, but no request is specified or request is 0"),
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                pod(json!({"cpu": "1"}), json!({})),
                Some("cpu max limit to request ratio per Container is 2, but no limit is specified or limit is 0"),
            ),
            (
                json!({"type": "Pod", "max": {"cpu": "1"}}),
                pod(json!({}), json!({"cpu": "2"})),
                Some("maximum cpu usage per Pod is 1, but limit is 2"),
            ),
            (json!({"type": "PersistentVolumeClaim", "max": {"cpu": "1"}}), pod(json!({}), json!({"cpu": "2"})), None),
        ];
        for (limit, pod, wanted) in table {
            assert_eq!(refuse_pod(&pod, &range(limit.clone())).as_deref(), wanted, "{limit}");
        }
    }

    #[test]
    fn a_pod_is_bounded_as_a_whole() {
        let two = object(json!({"spec": {"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "600m"}}},
            {"name": "b", "resources": {"limits": {"cpu": "600m"}}}]}}));
        let refused = refuse_pod(&two, &range(json!({"type": "Pod", "max": {"cpu": "1"}})));
        assert_eq!(refused.as_deref(), Some("maximum cpu usage per Pod is 1, but limit is 1200m"));
    }

    #[test]
    fn a_claim_is_held_to_its_size() {
        let of = |size: &str| object(json!({"spec": {"resources": {"requests": {"storage": size}}}}));
        let ranges =
            range(json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}));
        let table = [
            ("1Gi", None),
            ("500Mi", Some("minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 500Mi")),
            ("3Gi", Some("maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi")),
        ];
        for (size, wanted) in table {
            assert_eq!(refuse_claim(&of(size), &ranges).as_deref(), wanted);
        }
    }
}
