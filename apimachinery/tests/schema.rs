//! Laws and stories of schemas of built-in kinds.

use proa_apimachinery::{
    Path,
    schema::{self, ListType, Type},
};
use serde_json::{Value, json};

fn of(kind: &str) -> &'static schema::Schema {
    let builtin = schema::builtin_kinds().iter().find(|k| k.kind == kind).unwrap();
    schema::definition(&builtin.definition).unwrap()
}

#[test]
fn every_generally_available_kind_resolves_with_its_list() {
    assert!(schema::builtin_kinds().len() > 70);
    for kind in schema::builtin_kinds() {
        let schema = schema::definition(&kind.definition).unwrap_or_else(|| panic!("{}", kind.definition));
        assert_eq!(schema.definition_name(), Some(&*kind.definition));
        if !kind.definition.contains(".meta.v1.") {
            assert!(schema.property("metadata").is_some() || !kind.listable, "{}", kind.definition);
        }
        if kind.listable {
            let list = schema::definition(&schema::list_definition(kind)).unwrap();
            assert_eq!(list.property("items").unwrap().element().definition_name(), Some(&*kind.definition));
            assert!(list.property("metadata").unwrap().property("continue").is_some());
        }
    }
    assert!(schema::definition("io.k8s.api.core.v1.PodSpec").is_some());
    assert!(schema::definition("io.k8s.api.core.v1.Nonsense").is_none());
    assert!(schema::definition("").is_none());
}

/// Facts ⊆ schema: the table overlays what exists and nothing else.
#[test]
fn every_fact_is_about_a_field_that_exists() {
    let mut current = "";
    let mut facts = 0;
    for line in include_str!("../src/schema/facts.tsv").lines() {
        match line.strip_prefix('\t') {
            None => current = line,
            Some(rest) => {
                let schema = schema::definition(current).unwrap_or_else(|| panic!("no definition {current}"));
                let field = rest.split('\t').next().unwrap();
                assert!(field == "." || schema.property(field).is_some(), "{current}.{field} does not exist");
                let facts_of = rest.split('\t').nth(1).unwrap();
                if let Some(keys) = facts_of.split(' ').find_map(|f| f.strip_prefix("list=map:")) {
                    let element = schema.property(field).unwrap().element();
                    for key in keys.split(',') {
                        assert!(element.property(key).is_some(), "{current}.{field}[].{key} does not exist");
                    }
                }
                facts += 1;
            }
        }
    }
    assert!(facts > 300, "{facts}");
}

#[test]
fn the_facts_that_matter_most_are_there() {
    let template = of("Deployment").property("spec").unwrap().property("template").unwrap();
    let pod = template.property("spec").unwrap();
    let containers = pod.property("containers").unwrap();
    assert_eq!(*containers.list_type(), ListType::Map(vec!["name".into()]));
    assert_eq!(containers.patch().unwrap().merge_key.as_deref(), Some("name"));
    let ports = containers.element().property("ports").unwrap();
    assert_eq!(*ports.list_type(), ListType::Map(vec!["containerPort".into(), "protocol".into()]));
    assert_eq!(ports.element().property("protocol").unwrap().default, Some(json!("TCP")));
    assert!(of("Deployment").property("spec").unwrap().property("selector").unwrap().is_atomic_map());
    assert!(of("Deployment").property("spec").unwrap().property("strategy").unwrap().patch().unwrap().retain_keys);
    assert_eq!(*of("Pod").property("metadata").unwrap().property("finalizers").unwrap().list_type(), ListType::Set);
    let limits = containers.element().property("resources").unwrap().property("limits").unwrap();
    assert_eq!(limits.field("cpu").unwrap().resolved().kind, Type::Quantity);
}

fn unknown(kind: &str, value: &Value) -> Vec<String> {
    of(kind).check(value).unknown.iter().map(|p| p.as_str().to_owned()).collect()
}

fn errors(kind: &str, value: &Value) -> Vec<String> {
    of(kind).check(value).errors.iter().map(ToString::to_string).collect()
}

fn pod(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec})
}

#[test]
fn unknown_fields_are_named_as_kubernetes_names_them() {
    let value =
        pod(json!({"containers": [{"name": "a", "foo": 1, "resources": {"limits": {"anything": "1"}}}], "bar": {}}));
    assert_eq!(unknown("Pod", &value), ["spec.containers[0].foo", "spec.bar"]);
    let labels = json!({"metadata": {"labels": {"any.thing/x": "y"}, "lables": {}}});
    assert_eq!(unknown("ConfigMap", &labels), ["metadata.lables"]);
    assert_eq!(unknown("ConfigMap", &json!({"data": {"a.b": "c"}})), Vec::<String>::new());
    let revision = json!({"revision": 1, "data": {"any": {"depth": [1]}}});
    assert_eq!(unknown("ControllerRevision", &revision), Vec::<String>::new());
    let crd =
        json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {"properties": {"a": {"items": {"typo": 1}}}}}}]}});
    // items may be a schema or a list of them: k8s-openapi leaves that open.
    assert_eq!(unknown("CustomResourceDefinition", &crd), Vec::<String>::new());
}

#[test]
fn wrong_types_are_errors_with_a_path() {
    let table = [
        (
            pod(json!({"containers": {}})),
            Some(
                "spec.containers: Invalid value: \"object\": spec.containers in body must be of type array: \"object\"",
            ),
        ),
        (
            pod(json!({"containers": [{"env": [{"name": "A", "value": 1}]}]})),
            Some(
                "spec.containers[0].env[0].value: Invalid value: \"integer\": spec.containers[0].env[0].value in body must be of type string: \"integer\"",
            ),
        ),
        (
            pod(json!({"hostNetwork": "true"})),
            Some(
                "spec.hostNetwork: Invalid value: \"string\": spec.hostNetwork in body must be of type boolean: \"string\"",
            ),
        ),
        (
            pod(json!({"priority": 1.5})),
            Some("spec.priority: Invalid value: \"number\": spec.priority in body must be of type integer: \"number\""),
        ),
        (
            pod(json!({"priority": 1.0})),
            Some("spec.priority: Invalid value: \"1.0\": spec.priority in body must be of type int32: 1.0"),
        ),
        (
            pod(json!({"priority": 3_000_000_000_i64})),
            Some(
                "spec.priority: Invalid value: \"3000000000\": spec.priority in body must be of type int32: 3000000000",
            ),
        ),
        (pod(json!({"containers": [{"resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}]})), None),
        (
            pod(json!({"containers": [{"resources": {"limits": {"cpu": true}}}]})),
            Some(
                "spec.containers[0].resources.limits.cpu: Invalid value: \"boolean\": spec.containers[0].resources.limits.cpu in body must be of type string: \"boolean\"",
            ),
        ),
        (
            pod(
                json!({"containers": [{"livenessProbe": {"httpGet": {"port": "http"}}}, {"livenessProbe": {"httpGet": {"port": 80}}}]}),
            ),
            None,
        ),
        (
            pod(json!({"containers": [{"livenessProbe": {"httpGet": {"port": 4_294_967_296_i64}}}]})),
            Some("port in body must be of type int32: 4294967296"),
        ),
        (
            pod(json!({"containers": [{"livenessProbe": {"httpGet": {"port": []}}}]})),
            Some("must be of type integer,string"),
        ),
        (pod(json!({"restartPolicy": null, "containers": null})), None),
        (json!({"metadata": {"creationTimestamp": null}}), None),
        (json!({"metadata": {"creationTimestamp": "yesterday"}}), Some("RFC 3339")),
        (json!({"metadata": {"creationTimestamp": "9999-12-31T23:59:59-12:00"}}), Some("RFC 3339")),
        (json!([]), Some("<nil>: Invalid value: \"array\"")),
    ];
    for (value, expected) in table {
        let found = errors("Pod", &value);
        match expected {
            None => assert!(found.is_empty(), "{value}: {found:?}"),
            Some(text) => assert!(found.len() == 1 && found[0].contains(text), "{value}: {found:?}"),
        }
    }
    let secret = json!({"data": {"a": "aGVsbG8=", "b": "not base64!"}});
    assert_eq!(errors("Secret", &secret).len(), 1);
    let quantity = pod(json!({"containers": [{"resources": {"requests": {"cpu": "1 core"}}}]}));
    assert!(errors("Pod", &quantity)[0].starts_with("spec.containers[0].resources.requests.cpu: Invalid value"));
}

#[test]
fn values_are_stored_in_one_form_whatever_they_were_sent_in() {
    let container = json!({
        "name": "a", "args": [null, "b"], "resources": {"limits": {"cpu": 0.5, "memory": "1024Ki"}},
        "env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": 1}}}],
    });
    let mut value = pod(json!({"containers": [container], "nodeSelector": {"zone": null}, "priority": 1.0}));
    value["metadata"]["finalizers"] = json!([null]);
    value["metadata"]["creationTimestamp"] = json!("2026-01-01T01:00:00.25+01:00");
    of("Pod").canonicalize(&mut value);
    assert_eq!(value["metadata"]["finalizers"], json!([""]));
    assert_eq!(value["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");
    assert_eq!(value["spec"]["nodeSelector"], json!({"zone": ""}));
    assert_eq!(value["spec"]["priority"], json!(1.0), "refused as it is: Go's decoder takes no fraction");
    let container = &value["spec"]["containers"][0];
    assert_eq!(container["args"], json!(["", "b"]));
    assert_eq!(container["resources"]["limits"], json!({"cpu": "500m", "memory": "1Mi"}));
    assert_eq!(container["env"][0]["valueFrom"]["resourceFieldRef"]["divisor"], "1");
    let mut lease = json!({"spec": {"renewTime": "2026-01-01T00:00:00Z"}});
    of("Lease").canonicalize(&mut lease);
    assert_eq!(lease["spec"]["renewTime"], "2026-01-01T00:00:00.000000Z");
    let mut secret = json!({"data": {"a": "aGVs\nbG8=", "b": null}});
    of("Secret").canonicalize(&mut secret);
    assert_eq!(secret["data"], json!({"a": "aGVsbG8=", "b": ""}));
}

#[test]
fn missing_fields_are_told_apart_from_errors() {
    let checked = of("Pod").check(&pod(json!({"containers": [{}]})));
    assert!(checked.errors.is_empty());
    assert_eq!(
        checked.missing.iter().map(|e| e.path.clone()).collect::<Vec<_>>(),
        [Path::of("spec.containers[0].name")]
    );
}

#[test]
fn pruning_drops_unknown_fields_and_nulls_of_builtins() {
    let mut value =
        pod(json!({"containers": [{"name": "a", "foo": 1, "image": null}], "bar": 1, "nodeSelector": {"x": "y"}}));
    value["metadata"]["creationTimestamp"] = Value::Null;
    of("Pod").prune(&mut value);
    assert_eq!(
        value,
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
        "spec": {"containers": [{"name": "a"}], "nodeSelector": {"x": "y"}}})
    );
}

#[test]
fn openapi_components_are_closed_and_carry_the_facts() {
    let components = schema::openapi_components(["io.k8s.api.apps.v1.Deployment", "io.k8s.api.apps.v1.DeploymentList"]);
    let text = serde_json::to_string(&components).unwrap();
    assert!(!text.contains("#/$defs/"));
    let mut refs = 0;
    for piece in text.split("\"#/components/schemas/").skip(1) {
        let name = piece.split('"').next().unwrap();
        assert!(components.contains_key(name), "{name} is referred to and missing");
        refs += 1;
    }
    assert!(refs > 100);
    let deployment = &components["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(
        deployment["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "kind": "Deployment", "version": "v1"}])
    );
    assert_eq!(
        deployment["properties"]["spec"]["allOf"],
        json!([{"$ref": "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"}])
    );
    assert!(deployment["properties"]["spec"]["description"].is_string());
    assert!(deployment.get("required").is_none());
    let containers = &components["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(containers["items"], json!({"$ref": "#/components/schemas/io.k8s.api.core.v1.Container"}));
    assert!(!components.contains_key("io.k8s.api.core.v1.Service"));
}

#[test]
fn facts_cover_what_openapi_of_every_kind_needs() {
    let names: Vec<&str> = schema::builtin_kinds().iter().map(|k| &*k.definition).collect();
    let components = schema::openapi_components(names);
    assert!(components.len() > 500, "{}", components.len());
}
