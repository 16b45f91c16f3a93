//! Strategic merge patch, by a table: what is there, the patch, what should come of it.

use proa_apimachinery::{
    patch::{PatchError, strategic},
    schema::{self, Schema},
};
use serde_json::{Value, json};

fn definition(name: &str) -> &'static Schema {
    schema::definition(name).unwrap()
}

fn pod_spec() -> &'static Schema {
    definition("io.k8s.api.core.v1.PodSpec")
}

#[track_caller]
fn check(schema: &Schema, original: Value, patch: Value, expected: Value) {
    match strategic(schema, &original, &patch) {
        // The order of elements and of fields is part of the promise.
        Ok(got) => assert_eq!(got.to_string(), expected.to_string(), "{original} + {patch}"),
        Err(error) => panic!("{error}: {original} + {patch}"),
    }
}

#[track_caller]
fn refused(schema: &Schema, original: Value, patch: Value, words: &str) {
    let error = strategic(schema, &original, &patch).unwrap_err();
    assert!(matches!(error, PatchError::Malformed(_)), "{error:?}");
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn maps_merge_field_by_field() {
    let table = [
        (json!({"nodeName": "a"}), json!({"hostname": "b"}), json!({"nodeName": "a", "hostname": "b"})),
        (json!({"nodeName": "a"}), json!({"nodeName": "b"}), json!({"nodeName": "b"})),
        (json!({"nodeName": "a", "hostname": "h"}), json!({"nodeName": null}), json!({"hostname": "h"})),
        (json!({}), json!({"nodeName": null}), json!({})),
        (
            json!({"nodeSelector": {"a": "1"}}),
            json!({"nodeSelector": {"b": "2"}}),
            json!({"nodeSelector": {"a": "1", "b": "2"}}),
        ),
        (
            json!({"nodeSelector": {"a": "1", "b": "2"}}),
            json!({"nodeSelector": {"a": null}}),
            json!({"nodeSelector": {"b": "2"}}),
        ),
        (
            json!({"nodeSelector": {"a": "1"}}),
            json!({"nodeSelector": {"$patch": "replace", "b": "2"}}),
            json!({"nodeSelector": {"b": "2"}}),
        ),
        (
            json!({"nodeSelector": {"a": "1"}}),
            json!({"nodeSelector": {"$patch": "delete"}}),
            json!({"nodeSelector": {}}),
        ),
        (
            json!({"nodeSelector": {"a": "1"}}),
            json!({"nodeSelector": {"$patch": "merge", "b": "2"}}),
            json!({"nodeSelector": {"a": "1", "b": "2"}}),
        ),
        (json!({"nodeSelector": {"a": "1"}}), json!({"nodeSelector": "odd"}), json!({"nodeSelector": "odd"})),
        (json!({"nodeName": "a"}), json!({"$patch": "replace", "hostname": "b"}), json!({"hostname": "b"})),
        (json!({"nodeName": "a"}), json!({"$patch": "delete"}), json!({})),
        (
            json!({}),
            json!({"securityContext": {"runAsUser": 1, "fsGroup": null}}),
            json!({"securityContext": {"runAsUser": 1}}),
        ),
    ];
    for (original, patch, expected) in table {
        check(pod_spec(), original, patch, expected);
    }
}

#[test]
fn lists_of_objects_merge_by_key() {
    let a = || json!({"name": "a", "image": "1"});
    let b = || json!({"name": "b", "image": "1"});
    let table = [
        (json!([a()]), json!([{"name": "b", "image": "1"}]), json!([a(), b()])),
        (json!([a(), b()]), json!([{"name": "b", "image": "2"}]), json!([a(), {"name": "b", "image": "2"}])),
        (json!([a(), b()]), json!([{"name": "a", "$patch": "delete"}]), json!([b()])),
        (json!([a(), b()]), json!([{"name": "z", "$patch": "delete"}]), json!([a(), b()])),
        (json!([a(), b()]), json!([{"$patch": "replace"}, {"name": "c"}]), json!([{"name": "c"}])),
        (json!([a(), b()]), json!([{"$patch": "replace"}]), json!([])),
        (json!([a()]), json!([{"name": "a", "image": null}]), json!([{"name": "a"}])),
        (json!([a()]), json!([]), json!([a()])),
        (json!([a()]), json!([{"name": "a", "args": ["x"]}]), json!([{"name": "a", "image": "1", "args": ["x"]}])),
        (
            json!([{"name": "a", "args": ["x", "y"]}]),
            json!([{"name": "a", "args": ["z"]}]),
            json!([{"name": "a", "args": ["z"]}]),
        ),
        (
            json!([{"name": "a", "env": [{"name": "A", "value": "1"}]}]),
            json!([{"name": "a", "env": [{"name": "B", "value": "2"}]}]),
            json!([{"name": "a", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}]),
        ),
        (
            json!([{"name": "a", "env": [{"name": "A", "value": "1"}]}]),
            json!([{"name": "a", "env": [{"name": "A", "$patch": "delete"}]}]),
            json!([{"name": "a", "env": []}]),
        ),
        (
            json!([]),
            json!([{"name": "c", "image": null, "env": [{"name": "A", "$patch": "delete"}, {"name": "B"}]}]),
            json!([{"name": "c", "env": [{"name": "B"}]}]),
        ),
        (
            json!([{"name": "a", "volumeMounts": [{"mountPath": "/x", "name": "v"}]}]),
            json!([{"name": "a", "volumeMounts": [{"mountPath": "/y", "name": "v"}]}]),
            json!([{"name": "a", "volumeMounts": [{"mountPath": "/x", "name": "v"}, {"mountPath": "/y", "name": "v"}]}]),
        ),
    ];
    for (original, patch, expected) in table {
        check(
            pod_spec(),
            json!({"containers": original}),
            json!({"containers": patch}),
            json!({"containers": expected}),
        );
    }
    check(
        pod_spec(),
        json!({}),
        json!({"containers": [{"name": "a"}, {"name": "b", "$patch": "delete"}]}),
        json!({"containers": [{"name": "a"}]}),
    );
}

#[test]
fn lists_without_a_merge_strategy_are_replaced() {
    check(
        pod_spec(),
        json!({"tolerations": [{"key": "a"}]}),
        json!({"tolerations": [{"key": "b"}]}),
        json!({"tolerations": [{"key": "b"}]}),
    );
}

#[test]
fn the_order_a_patch_asks_for_is_kept() {
    let list = |names: &[&str]| -> Value { names.iter().map(|n| json!({"name": n})).collect() };
    type Names = &'static [&'static str];
    let table: [(Names, Names, Names, Names); 7] = [
        (&["a", "b"], &[], &["b", "a"], &["b", "a"]),
        (&["a", "b"], &["c"], &["c", "a", "b"], &["c", "a", "b"]),
        // z is only the server's: it keeps its place before b.
        (&["a", "z", "b"], &[], &["a", "b"], &["a", "z", "b"]),
        (&["z", "a", "b"], &[], &["b", "a"], &["z", "b", "a"]),
        (&["a", "b", "z"], &["c"], &["a", "b", "c"], &["a", "b", "c", "z"]),
        (&["a"], &["c"], &["c"], &["c", "a"]),
        (&["a", "b"], &["a"], &["b", "a", "gone"], &["b", "a"]),
    ];
    for (original, patch, order, expected) in table {
        let mut change = json!({"$setElementOrder/containers": list(order)});
        if !patch.is_empty() {
            change["containers"] = list(patch);
        }
        check(pod_spec(), json!({"containers": list(original)}), change, json!({"containers": list(expected)}));
    }
    refused(
        pod_spec(),
        json!({"containers": list(&["a"])}),
        json!({"containers": list(&["a", "b"]), "$setElementOrder/containers": list(&["b", "a"])}),
        "$setElementOrder",
    );
    // kubectl deletes and orders in one patch.
    check(
        pod_spec(),
        json!({"containers": list(&["a", "b", "c"])}),
        json!({"containers": [{"$patch": "delete", "name": "b"}], "$setElementOrder/containers": list(&["c", "a"])}),
        json!({"containers": list(&["c", "a"])}),
    );
}

#[test]
fn lists_of_scalars_with_a_merge_strategy_are_sets() {
    let meta = definition("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
    let table = [
        (json!(["a"]), json!({"finalizers": ["b"]}), json!(["a", "b"])),
        (json!(["a"]), json!({"finalizers": ["a", "b"]}), json!(["a", "b"])),
        (json!(["a", "b"]), json!({"$deleteFromPrimitiveList/finalizers": ["a"]}), json!(["b"])),
        (
            json!(["a", "b"]),
            json!({"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}),
            json!(["b", "c"]),
        ),
        (json!(["a", "b"]), json!({"$setElementOrder/finalizers": ["b", "a"]}), json!(["b", "a"])),
        (
            json!(["a", "b"]),
            json!({"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["c", "b"], "finalizers": ["c"]}),
            json!(["c", "b"]),
        ),
    ];
    for (original, patch, expected) in table {
        check(meta, json!({"finalizers": original}), patch, json!({"finalizers": expected}));
    }
}

#[test]
fn retain_keys_clears_the_union_of_a_volume() {
    let volumes = |v: Value| json!({"volumes": [v]});
    check(
        pod_spec(),
        volumes(json!({"name": "v", "emptyDir": {}})),
        volumes(json!({"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}})),
        volumes(json!({"name": "v", "configMap": {"name": "c"}})),
    );
    let spec = definition("io.k8s.api.apps.v1.DeploymentSpec");
    check(
        spec,
        json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
        json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
        json!({"strategy": {"type": "Recreate"}}),
    );
    refused(
        spec,
        json!({"strategy": {"type": "RollingUpdate"}}),
        json!({"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}),
        "$retainKeys",
    );
}

#[test]
fn ports_of_one_number_and_two_protocols_stay_two() {
    let tcp = || json!({"containerPort": 53, "protocol": "TCP"});
    let udp = || json!({"containerPort": 53, "protocol": "UDP"});
    let container = definition("io.k8s.api.core.v1.Container");
    let table = [
        (
            json!([tcp(), udp()]),
            json!([{"containerPort": 53, "protocol": "UDP", "name": "u"}]),
            json!([tcp(), {"containerPort": 53, "protocol": "UDP", "name": "u"}]),
        ),
        (
            json!([tcp(), udp()]),
            json!([{"containerPort": 53, "name": "t"}]),
            json!([{"containerPort": 53, "protocol": "TCP", "name": "t"}, udp()]),
        ),
        (json!([]), json!([tcp(), udp()]), json!([tcp(), udp()])),
        (json!([tcp()]), json!([tcp(), udp()]), json!([tcp(), udp()])),
        // One port, one change: as on Kubernetes, the protocol of that port changes.
        (json!([tcp()]), json!([udp()]), json!([udp()])),
        (json!([tcp(), udp()]), json!([{"containerPort": 53, "protocol": "UDP", "$patch": "delete"}]), json!([tcp()])),
        (json!([tcp(), udp()]), json!([{"containerPort": 53, "$patch": "delete"}]), json!([])),
    ];
    for (original, patch, expected) in table {
        check(container, json!({"ports": original}), json!({"ports": patch}), json!({"ports": expected}));
    }
    let service = definition("io.k8s.api.core.v1.ServiceSpec");
    check(
        service,
        json!({"ports": [{"port": 80, "protocol": "TCP", "nodePort": 30000}]}),
        json!({"ports": [{"port": 80, "targetPort": 8080}]}),
        json!({"ports": [{"port": 80, "protocol": "TCP", "nodePort": 30000, "targetPort": 8080}]}),
    );
}

#[test]
fn what_is_no_patch_is_refused() {
    let list = json!({"containers": [{"name": "a"}]});
    let table = [
        (json!({"containers": [{"image": "x"}]}), "does not contain declared merge key: name"),
        (json!({"containers": ["x"]}), "not an object"),
        (json!({"containers": [{"$patch": "delete"}]}), "delete patch type with no merge key"),
        (json!({"containers": [{"$patch": "explode", "name": "a"}]}), "Unknown patch type found: explode"),
        (json!({"$patch": "explode"}), "Unknown patch type found: explode"),
        (json!({"$patch": 1}), "must be a string"),
        (json!({"$retainKeys": 1}), "$retainKeys must be a list"),
        (json!({"$setElementOrder/containers": 1}), "must be a list"),
        (json!({"$deleteFromPrimitiveList/x": 1}), "must be a list"),
        (json!([]), "is an object"),
        (json!(null), "is an object"),
    ];
    for (patch, words) in table {
        refused(pod_spec(), list.clone(), patch, words);
    }
    refused(Schema::any(), json!({}), json!({}), "custom resources");
}

#[test]
fn a_deployment_scales_and_changes_its_image_as_kubectl_does_it() {
    let deployment = definition("io.k8s.api.apps.v1.Deployment");
    check(
        deployment,
        json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "a", "image": "1", "ports": [{"containerPort": 1}]}]}}}}),
        json!({"metadata": {"annotations": {"x": "y"}}, "spec": {"replicas": 2, "template": {"spec": {
            "$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "a", "image": "2"}]}}}}),
        json!({"spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "a", "image": "2", "ports": [{"containerPort": 1}]}]}}},
            "metadata": {"annotations": {"x": "y"}}}),
    );
}

#[test]
fn a_huge_patch_takes_no_more_than_its_share_of_time() {
    let many: Vec<Value> = (0..20_000).map(|n| json!({"name": format!("n{n}")})).collect();
    let doomed: Vec<Value> = (0..20_000).map(|n| json!({"name": format!("n{n}"), "$patch": "delete"})).collect();
    let original = json!({"containers": many});
    let got =
        strategic(pod_spec(), &original, &json!({"containers": doomed, "$setElementOrder/containers": []})).unwrap();
    assert_eq!(got, json!({"containers": []}));
    let got = strategic(pod_spec(), &json!({"containers": []}), &original).unwrap();
    assert_eq!(got, original);
}
