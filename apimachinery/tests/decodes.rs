//! The law informers rest on: what the schema accepts, clients can decode. One stored object that a typed
//! client cannot read would stop every list that holds it.

use std::collections::HashSet;

use k8s_openapi::Resource;
use proa_apimachinery::schema::{self, Schema};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Values that some decoder somewhere takes differently from another.
fn odd() -> Vec<Value> {
    let texts = [
        "",
        "x",
        "1",
        "0.5",
        "1e3",
        "1Gi",
        "aGVsbG8=",
        "aGVs\nbG8=",
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:60z",
        "2026-01-01T00:00:00.1234567890123+01:00",
        "9999-12-31T23:59:59-23:00",
        "0000-01-01T00:00:00+23:59",
    ];
    let mut values: Vec<Value> = texts.into_iter().map(Value::from).collect();
    values.extend([
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(i32::MAX),
        json!(4_294_967_296_i64),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(3.0),
        json!(0.5),
        json!(1e300),
        json!({}),
        json!({"a": null}),
        json!({"a": "b"}),
        json!({"a": 1}),
        json!([]),
        json!([null]),
        json!([1]),
        json!([3.0]),
        json!(["a"]),
        json!([[]]),
        json!([{}]),
        json!([{"a": null}]),
    ]);
    values
}

enum Step<'a> {
    Field(&'a str),
    Element,
}

/// An object of the kind that holds `value` at the end of the way and nothing else.
fn holding(way: &[Step<'_>], value: &Value) -> Value {
    way.iter().rev().fold(value.clone(), |inner, step| match step {
        Step::Field(name) => json!({*name: inner}),
        Step::Element => json!([inner]),
    })
}

/// Every place in a schema, each definition once.
fn places<'a>(
    schema: &'a Schema,
    way: &mut Vec<Step<'a>>,
    seen: &mut HashSet<&'a str>,
    visit: &mut dyn FnMut(&[Step<'a>]),
) {
    visit(way);
    if schema.definition_name().is_some_and(|name| !seen.insert(name)) {
        return;
    }
    let node = schema.resolved();
    for (name, property) in &node.properties {
        way.push(Step::Field(name));
        places(property, way, seen, visit);
        way.pop();
    }
    if let schema::Additional::Schema(values) = &node.additional {
        way.push(Step::Field("key"));
        places(values, way, seen, visit);
        way.pop();
    }
    if let Some(items) = &node.items {
        way.push(Step::Element);
        places(items, way, seen, visit);
        way.pop();
    }
}

/// Puts every odd value at every place of the kind; how many objects were accepted.
fn accepted_means_decodable<K: Resource + DeserializeOwned>() -> usize {
    let mine = |kind: &&schema::BuiltinKind| (kind.group, kind.version, kind.kind) == (K::GROUP, K::VERSION, K::KIND);
    let kind = schema::builtin_kinds().iter().find(mine).expect("a built-in kind");
    let schema = schema::definition(&kind.definition).expect("its definition");
    let odd = odd();
    let mut accepted = 0;
    places(schema, &mut Vec::new(), &mut HashSet::new(), &mut |way| {
        // What is sent as apiVersion and kind decides which schema it is held to.
        if matches!(way, [] | [Step::Field("apiVersion" | "kind")]) {
            return;
        }
        for value in &odd {
            let sent = holding(way, value);
            let mut object = sent.clone();
            object["apiVersion"] = K::API_VERSION.into();
            object["kind"] = K::KIND.into();
            schema.canonicalize(&mut object);
            let checked = schema.check(&object);
            if !checked.errors.is_empty() || !checked.unset_times.is_empty() {
                continue;
            }
            schema.prune(&mut object);
            accepted += 1;
            if let Err(error) = serde_json::from_value::<K>(object.clone()) {
                panic!("{} accepts {sent}, stores {object}, and no client can read it: {error}", K::KIND);
            }
        }
    });
    accepted
}

#[test]
fn whatever_the_schema_accepts_a_typed_client_can_decode() {
    let mut accepted = 0;
    macro_rules! kinds {
        ($($($segment:ident)::+ [$($kind:ident)*];)*) => { $({
            use k8s_openapi::$($segment)::+ as module;
            $(accepted += accepted_means_decodable::<module::$kind>();)*
        })* };
    }
    kinds! {
        api::core::v1 [ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume PersistentVolumeClaim Pod
            ReplicationController ResourceQuota Secret Service ServiceAccount];
        api::apps::v1 [ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet];
        api::batch::v1 [CronJob Job];
        api::autoscaling::v2 [HorizontalPodAutoscaler];
        api::policy::v1 [PodDisruptionBudget];
        api::networking::v1 [Ingress IngressClass NetworkPolicy];
        api::discovery::v1 [EndpointSlice];
        api::events::v1 [Event];
        api::coordination::v1 [Lease];
        api::rbac::v1 [ClusterRole ClusterRoleBinding Role RoleBinding];
        api::scheduling::v1 [PriorityClass];
        api::storage::v1 [StorageClass];
        api::certificates::v1 [CertificateSigningRequest];
    }
    assert!(accepted > 50_000, "{accepted}: the walk must reach every place");
}
