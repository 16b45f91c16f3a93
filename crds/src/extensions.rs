//! The definitions of Proa's own kinds: plain custom resources, of no family.
//!
//! Their schemas are written by hand, with descriptions: they are small, and `kubectl explain` is how people learn them.
//! A kind is one entry of [`extension_definitions`].

use kube::core::ApiResource;
use serde_json::{Value, json};

use crate::family::PROA_GROUP;

/// Where a kind of our own is served.
pub(crate) fn resource(kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: PROA_GROUP.to_owned(),
        version: "v1".to_owned(),
        api_version: format!("{PROA_GROUP}/v1"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// The CustomResourceDefinitions of all our own kinds, as JSON: what `proa up` serves from the start, and `proa crds`
/// prints for other API servers.
pub fn extension_definitions() -> Vec<Value> {
    vec![rollout_policies(), releases()]
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn one_of(values: &[&str], default: &str, description: &str) -> Value {
    json!({"type": "string", "enum": values, "default": default, "description": description})
}

fn number(least: u32, most: u32, description: &str) -> Value {
    json!({"type": "integer", "format": "int32", "minimum": least, "maximum": most, "description": description})
}

fn number_or(least: u32, most: u32, default: u32, description: &str) -> Value {
    let mut schema = number(least, most, description);
    schema["default"] = json!(default);
    schema
}

fn object(description: &str, properties: Value) -> Value {
    json!({"type": "object", "description": description, "properties": properties})
}

/// Seconds: at most a week.
const WEEK: u32 = 7 * 24 * 3600;

fn lasting(after: u32, description: &str) -> Value {
    object(
        description,
        json!({
            "ignore": {"type": "boolean", "description": "It does not count as failed."},
            "afterSeconds": number_or(0, WEEK, after, "How long it must have stood."),
        }),
    )
}

fn labels(description: &str) -> Value {
    json!({"type": "object", "description": description, "additionalProperties": {"type": "string"}})
}

fn port() -> Value {
    json!({"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true,
        "description": "The number or name of the port."})
}

fn quantity(description: &str) -> Value {
    json!({"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true,
        "description": description, "pattern": r"^-?[0-9]+(\.[0-9]+)?(m|k|M|G|Ki|Mi|Gi)?$"})
}

fn selector() -> Value {
    let expression = json!({
        "type": "object", "required": ["key", "operator"],
        "properties": {
            "key": {"type": "string"},
            "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
            "values": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic"},
        },
    });
    object(
        "Which objects of those kinds it guards, by their own labels; empty: all of the namespace.",
        json!({
            "matchLabels": labels("The labels an object must have."),
            "matchExpressions": {"type": "array", "items": expression, "x-kubernetes-list-type": "atomic"},
        }),
    )
}

fn rollout_policies() -> Value {
    let failure = object(
        "What counts as failed, and how sure one must be of it.",
        json!({
            "progressDeadline": lasting(0, "No progress within progressDeadlineSeconds (600 for StatefulSets and DaemonSets)."),
            "image": lasting(0, "An image does not exist or may not be pulled."),
            "configuration": lasting(5, "The configuration a pod asks for is not there."),
            "crashLoop": object("Every new pod has crashed, and none is ready.", json!({
                "ignore": {"type": "boolean", "description": "It does not count as failed."},
                "crashes": number_or(1, 1000, 2, "So many crashes of all new pods together."),
            })),
            "readiness": lasting(15, "During the soak no pod of the revision is ready any longer."),
        }),
    );
    let mut http = object(
        "A GET request to every ready pod of the new revision.",
        json!({
            "service": text("Ask this Service instead of each new pod."),
            "port": port(),
            "path": {"type": "string", "default": "/", "pattern": "^/", "maxLength": 1024, "description": "The path, with its query."},
            "status": {"type": "array", "maxItems": 32, "x-kubernetes-list-type": "set", "items": number(100, 599, "A status code."),
                "description": "The status codes that are well; empty: 200 to 399."},
        }),
    );
    http["required"] = json!(["port"]);
    let mut metric = object(
        "A threshold on a metric the new pods serve in the Prometheus text format: the mean over the pods of the sum of a pod's samples.",
        json!({
            "port": port(),
            "path": {"type": "string", "default": "/metrics", "pattern": "^/", "maxLength": 1024, "description": "The path."},
            "metric": {"type": "string", "pattern": "^[a-zA-Z_:][a-zA-Z0-9_:]*$", "maxLength": 256, "description": "The metric's name."},
            "labels": labels("Labels a sample must have."),
            "perSecond": {"type": "boolean", "description": "Compare the growth per second since the check before, as of a counter."},
            "min": quantity("Less is a failed answer."),
            "max": quantity("More is a failed answer."),
        }),
    );
    metric["required"] = json!(["port", "metric"]);
    metric["x-kubernetes-validations"] =
        json!([{"rule": "has(self.min) || has(self.max)", "message": "min, max or both must be set"}]);
    let mut check = object(
        "A question to the new pods.",
        json!({
            "name": {"type": "string", "minLength": 1, "maxLength": 63, "description": "What it is called in conditions and events."},
            "http": http,
            "metric": metric,
            "periodSeconds": number_or(1, 3600, 5, "How often it is asked."),
            "failureThreshold": number_or(1, 1000, 3, "So many failed answers in a row are a failure of the revision."),
        }),
    );
    check["required"] = json!(["name"]);
    check["x-kubernetes-validations"] = json!([{"rule": "has(self.http) != has(self.metric)", "message": "exactly one of http and metric must be set"}]);
    let mut step = object(
        "A step of a gradual rollout.",
        json!({
            "percent": number(1, 100, "So many of a hundred pods are of the new revision, rounded up."),
            "waitSeconds": number_or(0, WEEK, 0, "How long the revision must do well there before the next step."),
        }),
    );
    step["required"] = json!(["percent"]);
    let mut spec = object(
        "When a revision has failed, and what is done then. An empty spec is what the annotation proa.dev/rollback=on-failure asks for.",
        json!({
            "kinds": {"type": "array", "maxItems": 4, "x-kubernetes-list-type": "set",
                "items": {"type": "string", "enum": ["Deployment", "StatefulSet", "DaemonSet", "Release"]},
                "description": "Which kinds it guards; empty: all."},
            "selector": selector(),
            "action": one_of(&["Rollback", "Pause", "Alert"], "Rollback", "What is done when a revision has failed: the last healthy one comes back, the rollout stands still, or it is only said."),
            "configuration": one_of(&["Live", "Rollout"], "Live", "Whether a change of a ConfigMap or Secret the template refers to is a rollout of its own."),
            "soakSeconds": number_or(0, WEEK, 90, "How long a revision is watched after its rollout was complete."),
            "failure": failure,
            "checks": {"type": "array", "maxItems": 8, "items": check, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "description": "What else the new pods must answer, from the moment the first is ready to the end of the soak."},
            "steps": {"type": "array", "maxItems": 20, "items": step, "x-kubernetes-list-type": "atomic",
                "description": "Gradual steps; empty: as fast as the object's own strategy allows.",
                "x-kubernetes-validations": [{"rule": "self.map(step, step.percent).isSorted()", "message": "steps must rise"}]},
        }),
    );
    // An empty one says enough, and so does none.
    spec["default"] = json!({});
    let schema = json!({
        "type": "object",
        "description": "RolloutPolicy says when a revision of a workload has failed, how sure one must be, and what is done then.",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
        },
    });
    definition(
        "RolloutPolicy",
        "rolloutpolicies",
        &["rop"],
        schema,
        json!([
            {"name": "Action", "type": "string", "jsonPath": ".spec.action"},
            {"name": "Kinds", "type": "string", "jsonPath": ".spec.kinds"},
            {"name": "Configuration", "type": "string", "jsonPath": ".spec.configuration"},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ]),
        json!({}),
    )
}

fn releases() -> Value {
    let (schema, columns) = (crate::release::schema(), crate::release::columns());
    let mut made = definition("Release", "releases", &["rel"], schema, columns, json!({"status": {}}));
    // A release may itself be the parent of an ApplySet (KEP-3659).
    made["metadata"]["labels"] = json!({crate::annotations::APPLY_SET_PARENT_TYPE: "true"});
    made
}

/// A namespaced definition of one version. `subresources` as in the definition: `{"status": {}}` or nothing.
fn definition(kind: &str, plural: &str, short: &[&str], schema: Value, columns: Value, subresources: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{PROA_GROUP}")},
        "spec": {
            "group": PROA_GROUP,
            "names": {
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": plural,
                "singular": kind.to_ascii_lowercase(),
                "shortNames": short,
                "categories": ["proa"],
            },
            "scope": "Namespaced",
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": schema},
                "subresources": subresources,
                "additionalPrinterColumns": columns,
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::*;
    use proa_apimachinery::schema::{Schema, crd::from_openapi_v3};

    fn schema() -> Schema {
        let definition = &extension_definitions()[0];
        let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema").expect("a schema");
        from_openapi_v3(schema).unwrap_or_else(|errors| panic!("{errors:?}"))
    }

    fn policy(spec: Value) -> Value {
        json!({"apiVersion": "proa.dev/v1", "kind": "RolloutPolicy", "metadata": {"name": "p"}, "spec": spec})
    }

    #[test]
    fn what_the_types_write_is_in_the_schema() {
        let full = json!({
            "kinds": ["Deployment"],
            "selector": {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "k", "operator": "Exists"}]},
            "action": "Pause", "configuration": "Rollout", "soakSeconds": 10,
            "failure": {
                "progressDeadline": {"ignore": true, "afterSeconds": 0}, "image": {"afterSeconds": 1},
                "configuration": {"afterSeconds": 2}, "crashLoop": {"crashes": 3}, "readiness": {"afterSeconds": 4},
            },
            "checks": [
                {"name": "a", "http": {"service": "web", "port": "http", "path": "/x", "status": [200]}, "periodSeconds": 1, "failureThreshold": 2},
                {"name": "b", "metric": {"port": 80, "path": "/metrics", "metric": "m", "labels": {"l": "v"}, "perSecond": true, "min": "1", "max": "500m"},
                    "periodSeconds": 5, "failureThreshold": 3},
            ],
            "steps": [{"percent": 10, "waitSeconds": 60}, {"percent": 50, "waitSeconds": 0}],
        });
        let read: RolloutPolicySpec = serde_json::from_value(full.clone()).expect("it is of the type");
        assert_eq!(serde_json::to_value(&read).expect("JSON"), full);
        let schema = schema();
        let said: Vec<_> = schema.validate(&policy(full.clone()), None).iter().map(ToString::to_string).collect();
        assert!(said.is_empty(), "{said:?}");
        let mut pruned = policy(full.clone());
        schema.prune(&mut pruned);
        assert_eq!(pruned["spec"], full, "every field is known to the schema");
    }

    #[test]
    fn an_empty_policy_means_the_defaults_of_the_types() {
        let schema = schema();
        let mut empty = policy(json!({"failure": {"configuration": {}, "readiness": {}, "crashLoop": {}}}));
        schema.default(&mut empty);
        let read: RolloutPolicySpec = serde_json::from_value(empty["spec"].clone()).expect("it is of the type");
        assert_eq!(read, RolloutPolicySpec::default());
    }

    #[test]
    fn a_policy_that_cannot_be_meant_is_refused() {
        let schema = schema();
        let refused = |spec: Value, why: &str| {
            let said: Vec<_> = schema.validate(&policy(spec), None).iter().map(ToString::to_string).collect();
            assert!(said.iter().any(|said| said.contains(why)), "{said:?}");
        };
        refused(json!({"checks": [{"name": "a"}]}), "exactly one of http and metric");
        refused(json!({"checks": [{"name": "a", "metric": {"port": 1, "metric": "m"}}]}), "min, max or both");
        refused(json!({"kinds": ["Deployment"], "steps": [{"percent": 50}, {"percent": 10}]}), "steps must rise");
        refused(json!({"steps": [{"percent": 0}]}), "spec.steps[0].percent");
        refused(json!({"action": "Explode"}), "Rollback");
    }
}
