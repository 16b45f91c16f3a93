//! The custom resource definitions of the `proa.dev` family.
//!
//! Their schemas are those of the standard kinds: the published OpenAPI of the same types, with references inlined, made
//! structural, and without descriptions (a client-side `kubectl apply` keeps the whole manifest in one annotation of at
//! most 256 KiB).

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use proa_apimachinery::schema::openapi_components;
use serde_json::{Map, Value, json};

use crate::extensions::extension_definitions;
use crate::family::PROA_GROUP;

/// A kind of the family: what differs between them.
struct Row {
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
    definition: &'static str,
    namespaced: bool,
    status: bool,
    scale: bool,
    columns: &'static [(&'static str, &'static str, &'static str, i32)],
}

const AGE: (&str, &str, &str, i32) = ("Age", "date", ".metadata.creationTimestamp", 0);

const ROWS: [Row; 9] = [
    Row {
        kind: "Pod",
        plural: "pods",
        short: "ppod",
        definition: "io.k8s.api.core.v1.Pod",
        namespaced: true,
        status: true,
        scale: false,
        columns: &[
            ("Ready", "string", r#".status.conditions[?(@.type=="Ready")].status"#, 0),
            ("Status", "string", ".status.phase", 0),
            AGE,
            ("IP", "string", ".status.podIP", 1),
            ("Node", "string", ".spec.nodeName", 1),
        ],
    },
    Row {
        kind: "ReplicaSet",
        plural: "replicasets",
        short: "prs",
        definition: "io.k8s.api.apps.v1.ReplicaSet",
        namespaced: true,
        status: true,
        scale: true,
        columns: &[
            ("Desired", "integer", ".spec.replicas", 0),
            ("Current", "integer", ".status.replicas", 0),
            ("Ready", "integer", ".status.readyReplicas", 0),
            AGE,
        ],
    },
    Row {
        kind: "Deployment",
        plural: "deployments",
        short: "pdeploy",
        definition: "io.k8s.api.apps.v1.Deployment",
        namespaced: true,
        status: true,
        scale: true,
        columns: &[
            ("Desired", "integer", ".spec.replicas", 0),
            ("Ready", "integer", ".status.readyReplicas", 0),
            ("Up-to-date", "integer", ".status.updatedReplicas", 0),
            ("Available", "integer", ".status.availableReplicas", 0),
            AGE,
        ],
    },
    Row {
        kind: "Service",
        plural: "services",
        short: "psvc",
        definition: "io.k8s.api.core.v1.Service",
        namespaced: true,
        status: true,
        scale: false,
        columns: &[
            ("Type", "string", ".spec.type", 0),
            ("Cluster-IP", "string", ".spec.clusterIP", 0),
            ("Port", "string", ".spec.ports[*].port", 0),
            AGE,
        ],
    },
    Row {
        kind: "Node",
        plural: "nodes",
        short: "pnode",
        definition: "io.k8s.api.core.v1.Node",
        namespaced: false,
        status: true,
        scale: false,
        columns: &[
            ("Ready", "string", r#".status.conditions[?(@.type=="Ready")].status"#, 0),
            ("Version", "string", ".status.nodeInfo.kubeletVersion", 0),
            AGE,
        ],
    },
    Row {
        kind: "EndpointSlice",
        plural: "endpointslices",
        short: "peps",
        definition: "io.k8s.api.discovery.v1.EndpointSlice",
        namespaced: true,
        status: false,
        scale: false,
        columns: &[
            ("AddressType", "string", ".addressType", 0),
            ("Ports", "string", ".ports[*].port", 0),
            ("Endpoints", "string", ".endpoints[*].addresses", 0),
            AGE,
        ],
    },
    Row {
        kind: "StatefulSet",
        plural: "statefulsets",
        short: "psts",
        definition: "io.k8s.api.apps.v1.StatefulSet",
        namespaced: true,
        status: true,
        scale: true,
        columns: &[
            ("Desired", "integer", ".spec.replicas", 0),
            ("Ready", "integer", ".status.readyReplicas", 0),
            ("Up-to-date", "integer", ".status.updatedReplicas", 0),
            AGE,
        ],
    },
    Row {
        kind: "DaemonSet",
        plural: "daemonsets",
        short: "pds",
        definition: "io.k8s.api.apps.v1.DaemonSet",
        namespaced: true,
        status: true,
        scale: false,
        columns: &[
            ("Desired", "integer", ".status.desiredNumberScheduled", 0),
            ("Ready", "integer", ".status.numberReady", 0),
            ("Up-to-date", "integer", ".status.updatedNumberScheduled", 0),
            ("Available", "integer", ".status.numberAvailable", 0),
            AGE,
        ],
    },
    Row {
        kind: "ControllerRevision",
        plural: "controllerrevisions",
        short: "prev",
        definition: "io.k8s.api.apps.v1.ControllerRevision",
        namespaced: true,
        status: false,
        scale: false,
        columns: &[
            ("Controller", "string", ".metadata.ownerReferences[?(@.controller==true)].name", 0),
            ("Revision", "integer", ".revision", 0),
            AGE,
        ],
    },
];

/// The kinds of the custom family.
pub fn custom_resource_definitions() -> Vec<CustomResourceDefinition> {
    definitions().into_iter().filter_map(|definition| serde_json::from_value(definition).ok()).collect()
}

/// The same and Proa's own kinds, as YAML documents.
pub fn custom_resource_definitions_yaml() -> String {
    let all = definitions().into_iter().chain(extension_definitions());
    all.map(|definition| format!("---\n{}", yaml(&definition))).collect()
}

/// Each kind's file name under `crds/yaml/`, and what it must hold.
pub fn custom_resource_definition_files() -> Vec<(String, String)> {
    let head = "# Generated from the types in crds/; do not edit. See crds/src/definitions.rs.\n";
    let all = definitions().into_iter().chain(extension_definitions());
    all.map(|definition| {
        let plural = definition["spec"]["names"]["plural"].as_str().unwrap_or_default();
        (format!("{PROA_GROUP}_{plural}.yaml"), format!("{head}{}", yaml(&definition)))
    })
    .collect()
}

fn yaml(value: &Value) -> String {
    // A JSON value has string keys and finite numbers only: it always has a YAML form.
    serde_saphyr::to_string(value).unwrap_or_default()
}

fn definitions() -> Vec<Value> {
    let components = openapi_components(ROWS.iter().map(|row| row.definition));
    ROWS.iter().map(|row| definition(row, &components)).collect()
}

fn definition(row: &Row, components: &Map<String, Value>) -> Value {
    let columns: Vec<Value> = row
        .columns
        .iter()
        .map(|(name, type_, path, priority)| {
            let mut column = json!({"name": name, "type": type_, "jsonPath": path});
            if *priority > 0 {
                column["priority"] = json!(priority);
            }
            column
        })
        .collect();
    let mut version = json!({
        "name": "v1",
        "served": true,
        "storage": true,
        "schema": {"openAPIV3Schema": root(row, components)},
        "additionalPrinterColumns": columns,
    });
    let mut subresources = Map::new();
    if row.status {
        subresources.insert("status".to_owned(), json!({}));
    }
    if row.scale {
        let paths = json!({"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector"});
        subresources.insert("scale".to_owned(), paths);
    }
    if !subresources.is_empty() {
        version["subresources"] = Value::Object(subresources);
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.{PROA_GROUP}", row.plural)},
        "spec": {
            "group": PROA_GROUP,
            "names": {
                "kind": row.kind,
                "listKind": format!("{}List", row.kind),
                "plural": row.plural,
                "singular": row.kind.to_ascii_lowercase(),
                "shortNames": [row.short],
                "categories": ["proa"],
            },
            "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
            "versions": [version],
        },
    })
}

/// The schema of a kind: that of its definition, with `metadata` left to the API server and the defaults the standard
/// family fills in by code.
fn root(row: &Row, components: &Map<String, Value>) -> Value {
    let mut schema =
        components.get(row.definition).map(|definition| structural(definition, components)).unwrap_or_default();
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("apiVersion".to_owned(), json!({"type": "string"}));
        properties.insert("kind".to_owned(), json!({"type": "string"}));
        properties.insert("metadata".to_owned(), json!({"type": "object"}));
    }
    // Autoscalers find the pods by it: of a custom resource its scale shows a string alone.
    let status = schema.pointer_mut("/properties/status/properties").and_then(Value::as_object_mut);
    if let Some(status) = status.filter(|_| row.scale) {
        status.insert("selector".to_owned(), json!({"type": "string"}));
    }
    let defaults: &[(&str, i64)] = match row.kind {
        "Deployment" => &[("replicas", 1), ("revisionHistoryLimit", 10), ("progressDeadlineSeconds", 600)],
        "ReplicaSet" => &[("replicas", 1)],
        "StatefulSet" => &[("replicas", 1), ("revisionHistoryLimit", 10)],
        "DaemonSet" => &[("revisionHistoryLimit", 10)],
        _ => &[],
    };
    for (field, default) in defaults {
        if let Some(field) = schema.pointer_mut(&format!("/properties/spec/properties/{field}")) {
            field["default"] = json!(default);
            field["minimum"] = json!(0);
        }
    }
    if matches!(row.kind, "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet") {
        select_own_pods(&mut schema);
    }
    schema
}

/// A label's value is no longer (the API's own limit).
const LABEL_VALUE: usize = 63;
/// So many labels of a selector are compared: a rule over a map without end would cost too much to be accepted.
const SELECTED_LABELS: usize = 64;

/// Adds the rule that the labels a workload selects by are those its template gives: pods it does not find again it would
/// make without end. Selectors by expression are left to the controllers, which refuse the same.
fn select_own_pods(schema: &mut Value) {
    let Some(spec) = schema.pointer_mut("/properties/spec") else { return };
    let labels = json!({"type": "string", "maxLength": LABEL_VALUE});
    if let Some(selected) = spec.pointer_mut("/properties/selector/properties/matchLabels") {
        selected["additionalProperties"] = labels.clone();
        selected["maxProperties"] = json!(SELECTED_LABELS);
    }
    if let Some(given) = spec.pointer_mut("/properties/template/properties/metadata/properties/labels") {
        given["additionalProperties"] = labels;
    }
    spec["x-kubernetes-validations"] = json!([{
        "rule": "!has(self.selector.matchLabels) || self.selector.matchLabels.all(name, has(self.template) \
                 && has(self.template.metadata) && has(self.template.metadata.labels) \
                 && name in self.template.metadata.labels \
                 && self.template.metadata.labels[name] == self.selector.matchLabels[name])",
        "message": "`selector` does not match template `labels`",
    }]);
}

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// What of a schema is kept as it is.
const KEPT: [&str; 10] = [
    "type",
    "format",
    "required",
    "enum",
    "nullable",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields",
    "default",
];

/// Inlines references and leaves out what a structural schema may not hold or nobody needs here.
fn structural(schema: &Value, components: &Map<String, Value>) -> Value {
    let Some(map) = schema.as_object() else { return json!({"x-kubernetes-preserve-unknown-fields": true}) };
    let mut result = Map::new();
    let reference = map.get("$ref").or_else(|| map.get("allOf")?.get(0)?.get("$ref")).and_then(Value::as_str);
    if let Some(name) = reference.and_then(|reference| reference.rsplit('/').next()) {
        let target = match name {
            QUANTITY | INT_OR_STRING => {
                json!({"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true})
            }
            OBJECT_META => template_metadata(),
            _ => components.get(name).map_or_else(
                || json!({"x-kubernetes-preserve-unknown-fields": true}),
                |target| structural(target, components),
            ),
        };
        if let Value::Object(target) = target {
            result = target;
        }
    }
    for key in KEPT {
        if let Some(value) = map.get(key).filter(|value| key != "default" || is_telling(value)) {
            result.insert(key.to_owned(), value.clone());
        }
    }
    if result.get("format").and_then(Value::as_str) == Some("int-or-string") {
        return json!({"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true});
    }
    if let Some(properties) = map.get("properties").and_then(Value::as_object) {
        let inlined =
            properties.iter().map(|(name, property)| (name.clone(), structural(property, components))).collect();
        result.insert("properties".to_owned(), Value::Object(inlined));
    }
    for key in ["items", "additionalProperties"] {
        if let Some(below) = map.get(key).filter(|below| below.is_object()) {
            result.insert(key.to_owned(), structural(below, components));
        }
    }
    let says_what_it_holds =
        ["properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string"];
    if result.get("type").is_none_or(|type_| type_ == "object")
        && !says_what_it_holds.iter().any(|key| result.contains_key(*key))
    {
        result.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
    }
    Value::Object(result)
}

/// `default: {}` and `default: ""` only say that a field of Go has no pointer.
fn is_telling(default: &Value) -> bool {
    match default {
        Value::Object(map) => !map.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Null => false,
        _ => true,
    }
}

/// The metadata of a pod template. `kubectl create --dry-run` writes `creationTimestamp: null` there.
fn template_metadata() -> Value {
    let strings = json!({"type": "object", "additionalProperties": {"type": "string"}});
    json!({
        "type": "object",
        "properties": {
            "annotations": strings,
            "creationTimestamp": {"type": "string", "format": "date-time", "nullable": true},
            "finalizers": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            "generateName": {"type": "string"},
            "labels": strings,
            "name": {"type": "string"},
            "namespace": {"type": "string"},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_apimachinery::schema::crd::from_openapi_v3;

    #[test]
    fn the_kinds_are_defined_and_each_fits_a_client_side_apply() {
        let definitions = custom_resource_definitions();
        let kinds: Vec<_> = definitions.iter().map(|definition| definition.spec.names.kind.as_str()).collect();
        let (first, later) = kinds.split_at(6);
        assert_eq!(first, ["Pod", "ReplicaSet", "Deployment", "Service", "Node", "EndpointSlice"]);
        assert_eq!(later, ["StatefulSet", "DaemonSet", "ControllerRevision"]);
        for definition in &definitions {
            let size = serde_json::to_string(definition).expect("JSON").len();
            assert!(size < 200 * 1024, "{} takes {size} bytes", definition.spec.names.kind);
        }
    }

    #[test]
    fn every_schema_is_structural_by_the_api_servers_own_check() {
        for definition in definitions() {
            let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema").expect("a schema");
            if let Err(errors) = from_openapi_v3(schema) {
                panic!("{}: {errors:?}", definition["spec"]["names"]["kind"]);
            }
        }
    }

    #[test]
    fn lists_of_containers_and_ports_merge_by_their_keys() {
        let deployment = &definitions()[2];
        let spec = deployment.pointer(
            "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/template/properties/spec/properties",
        );
        let containers = spec.and_then(|spec| spec.get("containers")).expect("containers");
        assert_eq!(containers["x-kubernetes-list-type"], "map");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        let ports = &containers["items"]["properties"]["ports"];
        assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["containerPort", "protocol"]));
        assert_eq!(ports["items"]["properties"]["protocol"]["default"], "TCP");
    }

    #[test]
    fn a_workload_that_does_not_select_its_own_pods_is_refused() {
        let select = ["ReplicaSet", "Deployment", "StatefulSet", "DaemonSet"];
        for definition in
            definitions().iter().filter(|held| select.iter().any(|kind| held["spec"]["names"]["kind"] == **kind))
        {
            let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema").expect("a schema");
            let schema = from_openapi_v3(schema).expect("structural");
            let refused = |selected: Value, labels: Value| {
                let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c"}]}});
                let object = json!({"spec": {"selector": {"matchLabels": selected}, "template": template}});
                schema.validate(&object, None).iter().map(ToString::to_string).collect::<Vec<_>>()
            };
            assert!(refused(json!({"app": "a"}), json!({"app": "a", "tier": "front"})).is_empty());
            assert!(refused(json!({}), json!({"app": "a"})).is_empty(), "an empty selector is refused elsewhere");
            for labels in [json!({"app": "b"}), json!({"tier": "a"}), json!({})] {
                let said = refused(json!({"app": "a"}), labels);
                assert!(said.len() == 1 && said[0].contains("`selector` does not match template `labels`"), "{said:?}");
            }
        }
    }

    /// Run with `PROA_UPDATE=1` to write the files.
    #[test]
    fn the_files_in_yaml_are_up_to_date() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
        let update = std::env::var_os("PROA_UPDATE").is_some();
        for (name, wanted) in custom_resource_definition_files() {
            let path = folder.join(name);
            if update {
                std::fs::create_dir_all(&folder).expect("a folder");
                std::fs::write(&path, &wanted).expect("written");
            }
            let held = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                held == wanted,
                "{} is not what the types say: run `PROA_UPDATE=1 cargo test -p proa-crds`",
                path.display()
            );
        }
    }
}
