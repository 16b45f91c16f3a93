//! Owns the rows of `metrics.k8s.io/v1beta1`: what nodes and pods use. Nobody stores or writes these: they are measured
//! when somebody asks (`usage`).

use std::sync::Arc;

use proa_apimachinery::jsonpath::JsonPath;
use proa_apimachinery::quantity::Quantity;
use proa_apimachinery::schema::crd::from_openapi_v3;
use proa_apimachinery::{Object, duration};
use serde_json::{Value, json};

use super::{Cell, Column, Kind, Rules, SchemaRef, Scope, Storage};

/// The group.
pub const GROUP: &str = "metrics.k8s.io";
/// Its version.
pub const VERSION: &str = "v1beta1";

/// NodeMetrics and PodMetrics.
pub fn kinds() -> Vec<Kind> {
    let text = || json!({"type": "string"});
    let usage = || json!({"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": true}});
    let container = json!({"type": "object", "properties": {"name": text(), "usage": usage()}});
    let node = json!({"timestamp": text(), "window": text(), "usage": usage()});
    let pod = json!({"timestamp": text(), "window": text(), "containers": {"type": "array", "items": container}});
    vec![
        kind("NodeMetrics", "nodes", "node", Scope::Cluster, &node),
        kind("PodMetrics", "pods", "pod", Scope::Namespaced, &pod),
    ]
}

fn kind(kind: &'static str, plural: &'static str, singular: &'static str, scope: Scope, fields: &Value) -> Kind {
    // Holds because it is written above, and read by the test below.
    let schema = from_openapi_v3(&json!({"type": "object", "properties": fields})).expect("a structural schema");
    Kind {
        group: GROUP.into(),
        version: VERSION.into(),
        kind: kind.into(),
        list_kind: format!("{kind}List").into(),
        plural: plural.into(),
        singular: singular.into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        scope,
        subresources: Vec::new(),
        columns: vec![
            column("Name", "name", path(".metadata.name")),
            column("cpu", "", Cell::Call(|object, _| total(object, "cpu"))),
            column("memory", "", Cell::Call(|object, _| total(object, "memory"))),
            column("Window", "", path(".window")),
        ],
        selectable_fields: Vec::new(),
        schema: SchemaRef::Custom(Arc::new(schema)),
        strategy: Arc::new(Rules::GENERIC),
        storage: Storage {
            group: GROUP.into(),
            plural: plural.into(),
            api_version: None,
            convert: None,
            webhook: None,
        },
        unconditional_update: false,
        returns_deleted: false,
        is_virtual: true,
        verbs: &["get", "list"],
    }
}

fn path(path: &str) -> Cell {
    // Holds because the two paths are written above.
    Cell::Path(JsonPath::parse(path).expect("a path"))
}

fn column(name: &'static str, format: &'static str, cell: Cell) -> Column {
    let (name, type_, format, description) = (name.into(), "string".into(), format.into(), "".into());
    Column { name, type_, format, description, priority: 0, cell }
}

/// What a node, or all containers of a pod together, use of a resource; as `kubectl top` rounds it.
fn total(object: &Object, resource: &str) -> Value {
    let containers = object.get_list(&["containers"]).iter().map(|container| &container["usage"]);
    let used = containers.chain(object.get(&["usage"]));
    let nanos = used.filter_map(|usage| Quantity::from_value(&usage[resource]).ok()).fold(0i128, |sum, used| {
        sum + match resource {
            "cpu" => used.as_milli(),
            _ => i128::from(used.as_int_ceil()),
        }
    });
    match resource {
        "cpu" => format!("{nanos}m").into(),
        _ => format!("{}Ki", nanos / 1024).into(),
    }
}

/// A window as Go writes a duration of seconds.
pub fn window(seconds: f64) -> String {
    let text = format!("{seconds:.3}");
    let text = format!("{}s", text.trim_end_matches('0').trim_end_matches('.'));
    debug_assert!(duration::parse_go(&text).is_ok());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pod_uses_is_shown_as_the_sum_of_its_containers() {
        let usage = |cpu: &str, memory: &str| json!({"usage": {"cpu": cpu, "memory": memory}});
        let pod = json!({"containers": [usage("1500000n", "2Mi"), usage("250m", "512Ki")]});
        let pod = Object::from_value(pod).unwrap();
        assert_eq!([total(&pod, "cpu"), total(&pod, "memory")], ["252m", "2560Ki"]);
        assert_eq!(kinds().iter().map(|kind| kind.plural.to_string()).collect::<Vec<_>>(), ["nodes", "pods"]);
    }

    #[test]
    fn a_window_is_written_as_go_writes_durations() {
        assert_eq!([window(15.0), window(1.0305), window(0.5)], ["15s", "1.03s", "0.5s"]);
    }
}
