use serde_json::json;

use super::super::{Op, crd};
use super::*;

#[test]
fn config_maps_and_secrets() {
    check("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {k: v}}", &[]);
    check(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {a/b: v}}",
        &[
            "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
        ],
    );
    let secret = created("{apiVersion: v1, kind: Secret, metadata: {name: a}, stringData: {k: v}}");
    assert_eq!((secret.0["data"].clone(), secret.0.get("stringData")), (json!({"k": "dg=="}), None));
    assert_eq!(secret.get_str(&["type"]), Some("Opaque"));
    check(
        "{apiVersion: v1, kind: Secret, type: kubernetes.io/tls, metadata: {name: a}, data: {tls.crt: ''}}",
        &["data[tls.key]: Required value"],
    );
}

#[test]
fn immutable_is_for_ever() {
    let old = stored("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, immutable: true, data: {k: v}}");
    let mut new = old.clone();
    new.set(&["data", "k"], "w");
    assert_eq!(
        update(&old, &new, Op::Update).unwrap_err(),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    let mut new = old.clone();
    new.remove(&["immutable"]);
    assert_eq!(
        update(&old, &new, Op::Update).unwrap_err(),
        ["immutable: Forbidden: field is immutable when `immutable` is set"]
    );
}

#[test]
fn namespaces_have_a_finalizer_a_label_and_a_phase() {
    let namespace = created("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}");
    assert_eq!(namespace.0["spec"], json!({"finalizers": ["kubernetes"]}));
    assert_eq!(namespace.label("kubernetes.io/metadata.name"), Some("shop"));
    assert_eq!(namespace.get_str(&["status", "phase"]), Some("Active"));
    let mut new = namespace.clone();
    new.remove(&["spec"]);
    let kept = update(&namespace, &new, Op::Update).unwrap();
    assert_eq!(kept.0["spec"], json!({"finalizers": ["kubernetes"]}));
}

#[test]
fn a_binding_keeps_its_role() {
    let old = stored(
        "{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: 'a:b'}, roleRef: {kind: Role, name: r}, subjects: [{kind: User, name: u}]}",
    );
    assert_eq!(old.0["subjects"][0]["apiGroup"], "rbac.authorization.k8s.io");
    let mut new = old.clone();
    new.set(&["roleRef", "name"], "other");
    assert!(update(&old, &new, Op::Update).unwrap_err()[0].ends_with("cannot change roleRef"));
    check(
        "{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: a}, rules: [{apiGroups: [''], resources: [pods]}]}",
        &["rules[0].verbs: Required value: verbs must contain at least one value"],
    );
}

#[test]
fn a_node_brings_its_status_others_do_not() {
    let node = created("{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {capacity: {cpu: 2}}}");
    assert_eq!(node.get(&["spec"]), Some(&json!({})), "a typed client wants one");
    assert_eq!(node.0["status"], json!({"capacity": {"cpu": 2}}));
    let volume =
        created("{apiVersion: v1, kind: PersistentVolume, metadata: {name: v}, spec: {}, status: {phase: Bound}}");
    assert_eq!(volume.0["status"], json!({"phase": "Pending"}));
}

#[test]
fn an_event_is_one_object_in_two_versions() {
    let event = parse(
        "{apiVersion: events.k8s.io/v1, kind: Event, metadata: {name: e, namespace: default}, note: hello, regarding: {kind: Pod, name: p}, reportingController: c, type: Normal}",
    );
    let kind = kind_of(&event);
    let stored = kind.to_storage(event.clone());
    assert_eq!((stored.api_version(), stored.get_str(&["message"])), ("v1", Some("hello")));
    assert_eq!(stored.get_str(&["involvedObject", "name"]), Some("p"));
    assert_eq!(kind.from_storage(stored), event);
}

#[test]
fn metadata_is_the_same_for_all_kinds() {
    const MAP: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: b}}";
    table(
        MAP,
        &[
            (
                &[("metadata.finalizers", "[mine]")],
                "metadata.finalizers[0]: Invalid value: \"mine\": name is neither a standard finalizer name nor is it fully qualified",
            ),
            (&[("metadata.finalizers", "[example.com/mine, orphan]")], ""),
            (
                &[("metadata.ownerReferences", "[{apiVersion: v1, kind: Pod, name: p}]")],
                "metadata.ownerReferences[0].uid: Invalid value: \"\": must not be empty",
            ),
            (&[("metadata.annotations", "{Example.com/A: b}")], ""),
            (&[("metadata.generation", "7")], ""),
        ],
    );
    let mut large = parse(MAP);
    large.set_annotation("a", "x".repeat(256 * 1024));
    assert_eq!(errors_of(&large), ["metadata.annotations: Too long: may not be more than 262144 bytes"]);

    let mut old = stored(MAP);
    old.metadata_mut().insert("deletionTimestamp".into(), "2026-01-01T00:00:00Z".into());
    let mut new = old.clone();
    new.metadata_mut().insert("finalizers".into(), json!(["example.com/late"]));
    assert!(update(&old, &new, Op::Update).unwrap_err()[0].contains("no new finalizers can be added"));
    let mut renamed = old.clone();
    renamed.metadata_mut().insert("uid".into(), "other".into());
    assert_eq!(
        update(&old, &renamed, Op::Update).unwrap_err(),
        ["metadata.uid: Invalid value: \"other\": field is immutable"]
    );
}

const CRD: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, kind: Widget, shortNames: [wd]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.n, statusReplicasPath: .status.n}}
    additionalPrinterColumns: [{name: Size, type: integer, jsonPath: .spec.n}, {name: Age, type: date, jsonPath: .metadata.creationTimestamp}]
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {n: {type: integer, default: 1, minimum: 0}}}, status: {type: object, properties: {n: {type: integer}}}}}}
  - name: v1beta1
    served: true
    storage: false
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

#[test]
fn what_is_wrong_with_a_definition() {
    table(
        CRD,
        &[
            (
                &[("metadata.name", "other.example.com")],
                "metadata.name: Invalid value: \"other.example.com\": must be spec.names.plural+\".\"+spec.group",
            ),
            (
                &[("spec.scope", "Galaxy")],
                "spec.scope: Unsupported value: \"Galaxy\": supported values: \"Cluster\", \"Namespaced\"",
            ),
            (
                &[("spec.versions.1.schema", "~")],
                "spec.versions[1].schema.openAPIV3Schema: Required value: schemas are required",
            ),
        ],
    );
    let two = created(&CRD.replace("storage: false", "storage: true"));
    assert!(errors_of(&two)[0].ends_with("must have exactly one version marked as storage version"));
}

#[test]
fn a_definition_becomes_rows() {
    let kinds = crd::from_crd(&created(CRD));
    assert_eq!(kinds.iter().map(|k| &*k.version).collect::<Vec<_>>(), ["v1", "v1beta1"]);
    let kind = &kinds[0];
    assert_eq!((&*kind.kind, &*kind.list_kind, &*kind.singular), ("Widget", "WidgetList", "widget"));
    assert!(kind.has_status() && kind.namespaced());
    assert_eq!(kind.scale().unwrap().spec_replicas, ".spec.n");
    let names: Vec<&str> = kind.columns.iter().map(|c| &*c.name).collect();
    assert_eq!(names, ["Name", "Size", "Age"]);

    let mut widget = parse("{apiVersion: example.com/v1, kind: Widget, metadata: {name: a}, spec: {}, status: {n: 5}}");
    kind.strategy.default(&mut widget);
    kind.strategy.prepare(Op::Create, &mut widget, None);
    assert_eq!(widget.0["spec"], json!({"n": 1}));
    assert_eq!(widget.0.get("status"), None);
    assert_eq!(kind.strategy.validate(Op::Create, &widget, None), vec![]);
    widget.set(&["spec", "n"], -1);
    assert_eq!(kind.strategy.validate(Op::Create, &widget, None)[0].path.as_str(), "spec.n");

    let old = kinds[1].from_storage(widget.clone());
    assert_eq!(old.api_version(), "example.com/v1beta1");
    assert_eq!(kinds[1].to_storage(old).api_version(), "example.com/v1");
}
