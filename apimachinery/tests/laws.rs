//! Laws, by random objects: server-side apply, strategic merge, sets of fields; and that nothing panics.

use proa_apimachinery::{
    Object, json, managed_fields,
    managed_fields::{Element, Manager, Operation, Set},
    patch,
    schema::{self, Schema, crd},
    yaml,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn deployment() -> &'static Schema {
    schema::definition("io.k8s.api.apps.v1.Deployment").unwrap()
}

fn arbitrary_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-c.$]{0,4}".prop_map(Value::from),
        Just(json!("2024-01-01T00:00:00Z")),
    ];
    // Names that mean something somewhere, so that the interesting paths are met.
    let names = prop::sample::select(vec![
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        "status",
        "template",
        "containers",
        "name",
        "ports",
        "containerPort",
        "protocol",
        "labels",
        "annotations",
        "finalizers",
        "ownerReferences",
        "managedFields",
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "$deleteFromPrimitiveList/finalizers",
        "f:spec",
        "k:{\"name\":\"x\"}",
        "v:1",
        ".",
        "i:0",
        "fieldsV1",
        "manager",
        "operation",
        "fieldsType",
        "properties",
        "type",
        "items",
        "x-kubernetes-validations",
        "rule",
        "anyOf",
        "not",
        "default",
        "additionalProperties",
        "pattern",
        "required",
        "enum",
        "op",
        "path",
        "value",
        "from",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-int-or-string",
        "selector",
        "strategy",
        "env",
    ]);
    leaf.prop_recursive(6, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((names.clone(), inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

/// A well-formed Deployment of a few fields of every merge behaviour.
fn arbitrary_deployment() -> impl Strategy<Value = Value> {
    let labels = prop::collection::btree_map("[a-c]", "[x-z]", 0..3);
    let port = (1..4_i64, prop::option::of(prop::sample::select(vec!["TCP", "UDP"])), prop::option::of("[p-r]"));
    let ports = prop::collection::vec(port, 0..3).prop_map(|ports| {
        let mut seen = std::collections::HashSet::new();
        ports
            .into_iter()
            .filter(|(number, protocol, _)| seen.insert((*number, protocol.unwrap_or("TCP"))))
            .map(|(number, protocol, name)| {
                let mut port = json!({"containerPort": number});
                if let Some(protocol) = protocol {
                    port["protocol"] = protocol.into();
                }
                if let Some(name) = name {
                    port["name"] = name.into();
                }
                port
            })
            .collect::<Vec<Value>>()
    });
    let env = prop::collection::btree_map("[A-C]", "[0-2]", 0..3);
    let container = (prop::option::of("[i-k]"), prop::option::of(prop::collection::vec("[a-b]", 0..3)), ports, env);
    let containers = prop::collection::btree_map("[m-o]", container, 0..3);
    let finalizers = prop::collection::btree_set("x/[a-c]", 0..3);
    (labels, prop::option::of(0..5_i64), containers, finalizers, prop::option::of("[a-b]"), any::<bool>()).prop_map(
        |(labels, replicas, containers, finalizers, selector, reversed)| {
            let mut list: Vec<Value> = containers
                .into_iter()
                .map(|(name, (image, args, ports, env))| {
                    let mut container = Map::new();
                    container.insert("name".into(), name.into());
                    if let Some(image) = image {
                        container.insert("image".into(), image.into());
                    }
                    if let Some(args) = args {
                        container.insert("args".into(), args.into());
                    }
                    if !ports.is_empty() {
                        container.insert("ports".into(), ports.into());
                    }
                    if !env.is_empty() {
                        let env: Vec<Value> = env.into_iter().map(|(n, v)| json!({"name": n, "value": v})).collect();
                        container.insert("env".into(), env.into());
                    }
                    container.into()
                })
                .collect();
            if reversed {
                list.reverse();
            }
            let mut object =
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {}});
            if !labels.is_empty() {
                object["metadata"]["labels"] = json!(labels);
            }
            if !finalizers.is_empty() {
                object["metadata"]["finalizers"] = json!(finalizers);
            }
            if let Some(replicas) = replicas {
                object["spec"]["replicas"] = replicas.into();
            }
            if let Some(selector) = selector {
                object["spec"]["selector"] = json!({"matchLabels": {"s": selector}});
            }
            if !list.is_empty() {
                object["spec"]["template"] = json!({"spec": {"containers": list}});
            }
            object
        },
    )
}

fn object(value: Value) -> Object {
    Object::from_value(value).unwrap_or_default()
}

fn apply(live: Option<&Object>, config: &Value, name: &str, now: &str) -> Object {
    let manager = Manager { name, operation: Operation::Apply, api_version: "apps/v1", subresource: "" };
    managed_fields::apply(deployment(), live, &object(config.clone()), manager, true, now).unwrap()
}

fn without_records(mut object: Object) -> Value {
    object.remove(&["metadata", "managedFields"]);
    object.into_value()
}

/// Lists of elements with keys sorted, sets too: equality up to the order that merging may choose.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<(String, Value)> = map.iter().map(|(k, v)| (k.clone(), sorted(v))).collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(items)
            if items.iter().all(Value::is_object)
                || items.iter().all(|i| i.as_str().is_some_and(|s| s.contains('/'))) =>
        {
            let mut items: Vec<Value> = items.iter().map(sorted).collect();
            items.sort_by_key(Value::to_string);
            Value::Array(items)
        }
        other => other.clone(),
    }
}

/// Whether everything in `part` is in `whole` as well.
fn covers(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(k, v)| whole.get(k).is_some_and(|w| covers(w, v)))
        }
        (Value::Array(whole), Value::Array(part)) if part.iter().all(Value::is_object) => {
            part.iter().all(|p| whole.iter().any(|w| covers(w, p)))
        }
        (Value::Array(whole), Value::Array(part)) => part.iter().all(|p| whole.contains(p)),
        (whole, part) => whole == part,
    }
}

/// What `kubectl apply` sends: three-way, here for maps and lists of named objects of our deployments.
fn diff(schema: &Schema, from: &Map<String, Value>, to: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for name in from.keys().filter(|name| !to.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, new) in to {
        let field = schema.field(name).unwrap_or_else(|| Schema::any());
        match (from.get(name), new) {
            (Some(old), new) if old == new => {}
            (Some(Value::Object(old)), Value::Object(new)) => {
                patch.insert(name.clone(), Value::Object(diff(field, old, new)));
            }
            (Some(Value::Array(old)), Value::Array(new)) if field.patch().is_some_and(|p| p.merge) => {
                let strategy = field.patch().unwrap();
                match &strategy.merge_key {
                    Some(key) => {
                        let find =
                            |list: &[Value], item: &Value| list.iter().find(|o| o[&**key] == item[&**key]).cloned();
                        let mut changes = Vec::new();
                        for item in new {
                            match find(old, item) {
                                None => changes.push(item.clone()),
                                Some(before) if before == *item => {}
                                Some(before) => {
                                    let mut change =
                                        diff(field.element(), before.as_object().unwrap(), item.as_object().unwrap());
                                    change.insert(key.to_string(), item[&**key].clone());
                                    changes.push(Value::Object(change));
                                }
                            }
                        }
                        for item in old.iter().filter(|o| find(new, o).is_none()) {
                            changes.push(json!({&**key: item[&**key], "$patch": "delete"}));
                        }
                        let order: Vec<Value> = new.iter().map(|n| json!({&**key: n[&**key]})).collect();
                        patch.insert(format!("$setElementOrder/{name}"), order.into());
                        if !changes.is_empty() {
                            patch.insert(name.clone(), changes.into());
                        }
                    }
                    None => {
                        let gone: Vec<Value> = old.iter().filter(|o| !new.contains(o)).cloned().collect();
                        let added: Vec<Value> = new.iter().filter(|n| !old.contains(n)).cloned().collect();
                        patch.insert(format!("$deleteFromPrimitiveList/{name}"), gone.into());
                        patch.insert(format!("$setElementOrder/{name}"), new.clone().into());
                        if !added.is_empty() {
                            patch.insert(name.clone(), added.into());
                        }
                    }
                }
            }
            _ => {
                patch.insert(name.clone(), new.clone());
            }
        }
    }
    patch
}

fn unique_port_numbers(value: &Value) -> bool {
    let containers = value["spec"]["template"]["spec"]["containers"].as_array();
    containers.into_iter().flatten().all(|c| {
        let ports: Vec<i64> =
            c["ports"].as_array().into_iter().flatten().filter_map(|p| p["containerPort"].as_i64()).collect();
        ports.iter().collect::<std::collections::HashSet<_>>().len() == ports.len()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn applying_twice_is_applying_once(first in arbitrary_deployment(), second in arbitrary_deployment()) {
        let live = apply(None, &first, "other", "t1");
        let once = apply(Some(&live), &second, "me", "t2");
        let twice = apply(Some(&once), &second, "me", "t3");
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn what_is_applied_is_there(first in arbitrary_deployment(), second in arbitrary_deployment()) {
        let live = apply(None, &first, "other", "t1");
        let result = without_records(apply(Some(&live), &second, "me", "t2"));
        let mut wanted = second.clone();
        if wanted["spec"] == json!({}) {
            wanted.as_object_mut().unwrap().shift_remove("spec");
        }
        prop_assert!(covers(&result, &wanted), "{result} does not hold {wanted}");
    }

    #[test]
    fn a_lone_applier_gets_exactly_its_configuration(first in arbitrary_deployment(), second in arbitrary_deployment()) {
        let live = apply(None, &first, "me", "t1");
        let result = apply(Some(&live), &second, "me", "t2");
        let fresh = apply(None, &second, "me", "t2");
        let mut got = sorted(&without_records(result));
        let mut wanted = sorted(&without_records(fresh));
        for value in [&mut got, &mut wanted] {
            if value["spec"] == json!({}) {
                value.as_object_mut().unwrap().shift_remove("spec");
            }
        }
        prop_assert_eq!(got, wanted);
    }

    #[test]
    fn the_order_of_managers_who_agree_does_not_matter(config in arbitrary_deployment(), split in any::<u64>()) {
        // Two disjoint parts of one configuration.
        let mut parts = [config.clone(), config.clone()];
        for (bit, path) in [["metadata", "labels"], ["metadata", "finalizers"], ["spec", "replicas"], ["spec", "selector"], ["spec", "template"]].iter().enumerate() {
            let loser = usize::from(split >> bit & 1 == 1);
            if let Some(map) = parts[loser][path[0]].as_object_mut() {
                map.shift_remove(path[1]);
            }
        }
        let [a, b] = parts;
        let ab = apply(Some(&apply(None, &a, "a", "t")), &b, "b", "t");
        let ba = apply(Some(&apply(None, &b, "b", "t")), &a, "a", "t");
        prop_assert_eq!(sorted(&ab.into_value()), sorted(&ba.into_value()));
    }

    #[test]
    fn nothing_of_others_is_lost(mine in arbitrary_deployment(), next in arbitrary_deployment(), theirs in arbitrary_deployment()) {
        let live = apply(None, &mine, "me", "t1");
        let live = apply(Some(&live), &theirs, "them", "t2");
        let owned = |object: &Object| -> Set {
            let entries = object.get_list(&["metadata", "managedFields"]);
            entries.iter().find(|e| e["manager"] == "them").map(|e| Set::from_fields_v1(&e["fieldsV1"]).unwrap()).unwrap_or_default()
        };
        let before = owned(&live);
        let after = apply(Some(&live), &next, "me", "t3");
        // What they still own after I won my conflicts is as they applied it.
        let kept = owned(&after);
        prop_assert!(kept.difference(&before).is_empty());
        let present = managed_fields::fields(deployment(), &after.to_value());
        kept.each(&mut |path| assert!(present.contains(path) || path.len() < 3, "{path:?} is gone"));
    }

    #[test]
    fn field_sets_survive_the_wire(value in arbitrary_deployment()) {
        let set = managed_fields::fields(deployment(), &value);
        let back = Set::from_fields_v1(&set.to_fields_v1()).unwrap();
        prop_assert_eq!(&back, &set);
        prop_assert_eq!(back.len(), set.len());
        prop_assert_eq!(Set::from_fields_v1(&serde_json::from_str(&set.to_fields_v1().to_string()).unwrap()).unwrap(), set);
    }

    #[test]
    fn field_sets_are_sets(a in arbitrary_deployment(), b in arbitrary_deployment()) {
        let (a, b) = (managed_fields::fields(deployment(), &a), managed_fields::fields(deployment(), &b));
        prop_assert_eq!(a.union(&b), b.union(&a));
        prop_assert_eq!(a.intersection(&b), b.intersection(&a));
        prop_assert!(a.difference(&b).intersection(&b).is_empty());
        prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
        prop_assert!(a.difference(&a).is_empty());
        prop_assert_eq!(a.union(&b).len(), a.len() + b.len() - a.intersection(&b).len());
        prop_assert_eq!(a.without(&b).difference(&a), Set::default());
    }

    #[test]
    fn a_strategic_diff_leads_from_one_to_the_other(from in arbitrary_deployment(), to in arbitrary_deployment()) {
        prop_assume!(unique_port_numbers(&from) && unique_port_numbers(&to));
        let change = Value::Object(diff(deployment(), from.as_object().unwrap(), to.as_object().unwrap()));
        let got = patch::strategic(deployment(), &from, &change).unwrap();
        prop_assert_eq!(got, to, "{}", change);
    }

    #[test]
    fn a_merge_patch_of_itself_changes_nothing(value in arbitrary_deployment()) {
        let mut merged = value.clone();
        patch::merge(&mut merged, &value);
        prop_assert_eq!(&merged, &value);
        prop_assert_eq!(patch::strategic(deployment(), &value, &value).unwrap(), value);
    }

    #[test]
    fn updates_never_own_more_than_there_is(first in arbitrary_deployment(), second in arbitrary_deployment()) {
        let manager = |name| Manager { name, operation: Operation::Update, api_version: "apps/v1", subresource: "" };
        let mut live = object(first);
        managed_fields::update(deployment(), None, &mut live, manager("a"), "t1");
        let mut new = object(second);
        managed_fields::update(deployment(), Some(&live), &mut new, manager("b"), "t2");
        let value = without_records(new.clone());
        let holds = |path: &[Element]| -> bool {
            let mut set = Set::default();
            set.insert(path);
            let mut present = managed_fields::fields(deployment(), &value);
            // Parents are there as well.
            let mut parents = Set::default();
            present.each(&mut |p| (1..p.len()).for_each(|n| parents.insert(&p[..n])));
            present.absorb(parents);
            present.contains(path)
        };
        for entry in new.get_list(&["metadata", "managedFields"]) {
            Set::from_fields_v1(&entry["fieldsV1"]).unwrap().each(&mut |path| {
                let text: String = path.iter().map(ToString::to_string).collect();
                assert!(holds(path) || value.pointer(&text.replace('.', "/")).is_some(), "{text} is owned and not there");
            });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Total functions: whatever a client sends, an answer comes back.
    #[test]
    fn nothing_panics(a in arbitrary_json(), b in arbitrary_json(), c in arbitrary_json()) {
        let pod = schema::definition("io.k8s.api.core.v1.Pod").unwrap();
        let crds = schema::definition("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition").unwrap();
        let custom = crd::from_openapi_v3(&a);
        let schemas = [deployment(), pod, crds, Schema::any()];
        for schema in schemas.into_iter().chain(custom.as_ref().ok()) {
            schema.check(&a);
            schema.validate(&b, Some(&a));
            schema.validate(&b, None);
            let mut value = b.clone();
            schema.canonicalize(&mut value);
            schema.prune(&mut value);
            schema.default(&mut value);
            let mut pruned_again = value.clone();
            schema.prune(&mut pruned_again);
            schema.to_openapi();
            let _ = patch::strategic(schema, &a, &b);
            managed_fields::fields(schema, &a);
            let (live, mut new, config) = (object(a.clone()), object(b.clone()), object(c.clone()));
            for operation in [Operation::Apply, Operation::Update] {
                let manager = Manager { name: "kubectl", operation, api_version: "v1", subresource: "" };
                for live in [None, Some(&live)] {
                    for force in [false, true] {
                        let _ = managed_fields::apply(schema, live, &config, manager, force, "t");
                    }
                    managed_fields::update(schema, live, &mut new, manager, "t");
                }
            }
        }
        let _ = patch::json(&a, &b);
        let _ = patch::json(&a, &json!([b.clone()]));
        let mut merged = a.clone();
        patch::merge(&mut merged, &b);
        if let Some(set) = Set::from_fields_v1(&a) {
            prop_assert_eq!(Set::from_fields_v1(&set.to_fields_v1()), Some(set));
        }
        let _ = json::from_json(a.to_string().as_bytes(), json::MAX_DEPTH);
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,60}", yamlish in "[a-c:\\-\\[\\]{}&*!|>'\"#, \\n]{0,80}", rule in "[a-c.()\\[\\]?:!&|+ 0-9'self]{0,60}") {
        let _ = json::from_json(text.as_bytes(), json::MAX_DEPTH);
        let _ = yaml::from_yaml(text.as_bytes());
        let _ = yaml::from_yaml(yamlish.as_bytes());
        let schema = crd::from_openapi_v3(&json!({"type": "object", "properties": {"a": {"type": "string", "pattern": text.clone()}},
            "x-kubernetes-validations": [{"rule": rule, "messageExpression": rule, "fieldPath": text}]}));
        if let Ok(schema) = schema {
            schema.validate(&json!({"a": text}), None);
        }
        Element::from_wire(&text);
    }

    #[test]
    fn yaml_writes_what_it_reads(value in arbitrary_json()) {
        prop_assume!(!value.is_null());
        let text = yaml::to_yaml(&value);
        let back = yaml::from_yaml(text.as_bytes());
        prop_assert!(back.is_ok(), "{back:?}: {text}");
    }
}

#[test]
fn a_ten_kilobyte_deployment_applies_in_no_time() {
    let env: Vec<Value> =
        (0..60).map(|n| json!({"name": format!("VARIABLE_{n}"), "value": "a value of some length"})).collect();
    let container = |n: usize| {
        json!({"name": format!("c{n}"), "image": "registry/some/image:v1", "env": env, "ports": [{"containerPort": 80 + n}],
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}, "livenessProbe": {"httpGet": {"path": "/", "port": 80}}})
    };
    let config = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"a": "b"}},
        "spec": {"replicas": 1, "template": {"spec": {"containers": [container(0), container(1), container(2)]}}}});
    assert!(config.to_string().len() > 10_000);
    let live = apply(None, &config, "a", "t");
    let mut changed = config.clone();
    changed["spec"]["replicas"] = json!(2);
    let once = || {
        let begun = std::time::Instant::now();
        std::hint::black_box(apply(Some(&live), &changed, "a", "t2"));
        begun.elapsed()
    };
    let each = (0..20).map(|_| once()).min().unwrap();
    eprintln!("{each:?} for {} bytes", config.to_string().len());
    // Far above what it takes, unoptimized on a busy machine: this guards against quadratic work.
    assert!(each.as_millis() < 100, "{each:?}");
}
