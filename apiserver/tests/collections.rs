//! Conformance's walks through the operations of an API on kinds that no loop of ours fills in: limit ranges, priority
//! classes, revisions. By raw requests in process.

mod common;

use common::{World, world};
use serde_json::{Value, json};

const CLASSES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";
const REVISIONS: &str = "/apis/apps/v1/namespaces/default/controllerrevisions";

/// How many a list has.
async fn count(world: &World, uri: &str) -> usize {
    world.get(uri).await["items"].as_array().expect("a list").len()
}

/// Conformance: "LimitRange should list, patch and delete a LimitRange by collection"; and of "should create a LimitRange
/// with defaults" what it asks of the kind itself.
#[tokio::test]
async fn limit_ranges_are_watched_listed_patched_and_deleted_as_a_collection() {
    let world = world().await;
    world.ok("POST", "/api/v1/namespaces", &json!({"metadata": {"name": "other"}})).await;
    let ranges = |namespace: &str| format!("/api/v1/namespaces/{namespace}/limitranges");
    let (here, there) = (ranges("default"), ranges("other"));
    let version = world.get(&here).await["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
    let mut watch = world.watch(&format!("{here}?watch=1&labelSelector=test%3Dyes&resourceVersion={version}")).await;
    let range = json!({"metadata": {"name": "bounds", "labels": {"test": "yes"}}, "spec": {"limits": [
        {"type": "Container", "min": {"cpu": "50m"}, "max": {"cpu": "500m"}, "default": {"cpu": "400m"}}]}});
    world.ok("POST", &here, &range).await;
    world.ok("POST", &there, &range).await;
    assert_eq!(watch.what().await, ("ADDED".to_owned(), "bounds".to_owned()));
    assert_eq!(count(&world, "/api/v1/limitranges?labelSelector=test%3Dyes").await, 2);

    let patch = json!({"metadata": {"labels": {"bounds": "patched"}},
        "spec": {"limits": [{"type": "Container", "min": {"cpu": "30m"}, "max": {"cpu": "400m"}}]}});
    let patched = world.ok("PATCH", &format!("{here}/bounds"), &patch).await;
    // Where the most is said and no default, the most is the default, and what is asked for by default.
    assert_eq!(
        patched["spec"]["limits"][0],
        json!({"type": "Container", "min": {"cpu": "30m"}, "max": {"cpu": "400m"}, "default": {"cpu": "400m"},
            "defaultRequest": {"cpu": "400m"}})
    );
    let mut updated = world.get(&format!("{there}/bounds")).await;
    updated["spec"]["limits"][0]["min"] = json!({"cpu": "9m"});
    assert_eq!(world.ok("PUT", &format!("{there}/bounds"), &updated).await["spec"]["limits"][0]["min"]["cpu"], "9m");

    world.ok("DELETE", &format!("{here}?labelSelector=bounds%3Dpatched"), &Value::Null).await;
    assert_eq!((count(&world, &here).await, count(&world, &there).await), (0, 1));
    while watch.what().await.0 != "DELETED" {}
    world.ok("DELETE", &format!("{there}/bounds"), &Value::Null).await;
    assert_eq!(count(&world, "/api/v1/limitranges").await, 0);
}

/// Conformance: "PriorityClass endpoints verify PriorityClass endpoints can be operated with different HTTP methods".
#[tokio::test]
async fn of_a_priority_class_the_description_changes_and_the_value_never() {
    let world = world().await;
    for (name, value) in [("p1", 1), ("p2", 2)] {
        let class = json!({"metadata": {"name": name, "labels": {"test": "yes"}}, "value": value});
        let made = world.ok("POST", CLASSES, &class).await;
        assert_eq!((&made["value"], &made["preemptionPolicy"]), (&json!(value), &json!("PreemptLowerPriority")));
    }
    // The two of every cluster beside them.
    let names: Vec<String> = world.get(CLASSES).await["items"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|class| class["metadata"]["name"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(names, ["p1", "p2", "system-cluster-critical", "system-node-critical"]);

    let uri = format!("{CLASSES}/p1");
    let patched = world.ok("PATCH", &uri, &json!({"description": "updated"})).await;
    assert_eq!(patched["description"], "updated");
    let mut replaced = patched.clone();
    replaced["description"] = json!("updated once more");
    let replaced = world.ok("PUT", &uri, &replaced).await;
    assert_eq!(replaced["description"], "updated once more");

    for (field, value) in [("value", json!(7)), ("preemptionPolicy", json!("Never"))] {
        let mut other = replaced.clone();
        other[field] = value.clone();
        for (method, body) in [("PATCH", json!({field: value})), ("PUT", other)] {
            let (code, refused) = world.call(method, &uri, &body).await;
            assert_eq!(code, 422, "{method} {field}: {refused}");
        }
        assert_eq!(world.get(&uri).await[field], replaced[field]);
    }
    world.ok("DELETE", &format!("{CLASSES}/p2"), &Value::Null).await;
    world.ok("DELETE", &format!("{CLASSES}?labelSelector=test%3Dyes"), &Value::Null).await;
    assert_eq!(count(&world, CLASSES).await, 2);
}

/// Conformance: "ControllerRevision [Serial] should manage the lifecycle of a ControllerRevision", what it asks of the API.
#[tokio::test]
async fn revisions_are_listed_labelled_and_deleted_one_by_one_and_as_a_collection() {
    let world = world().await;
    let owner = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "u", "controller": true});
    let revision = |name: &str, number: u32| {
        json!({"metadata": {"name": name, "labels": {"app": "agent"}, "ownerReferences": [owner]},
            "data": {"spec": {"template": {"$patch": "replace", "spec": {}}}}, "revision": number})
    };
    let mut first = world.ok("POST", REVISIONS, &revision("first", 1)).await;
    assert_eq!(count(&world, &format!("{REVISIONS}?labelSelector=app%3Dagent")).await, 1);
    assert_eq!(count(&world, "/apis/apps/v1/controllerrevisions?labelSelector=app%3Dagent").await, 1);
    let first_uri = format!("{REVISIONS}/first");
    let patched = world.ok("PATCH", &first_uri, &json!({"metadata": {"labels": {"first": "patched"}}})).await;
    assert_eq!((&patched["metadata"]["labels"]["first"], &patched["data"]), (&json!("patched"), &first["data"]));

    world.ok("POST", REVISIONS, &revision("second", 2)).await;
    assert_eq!(count(&world, &format!("{REVISIONS}?labelSelector=app%3Dagent")).await, 2);
    // What was read before the patch is an older state.
    first["metadata"]["labels"]["first"] = json!("updated");
    assert_eq!(world.call("PUT", &first_uri, &first).await.0, 409);
    world.ok("DELETE", &first_uri, &Value::Null).await;
    assert_eq!(count(&world, &format!("{REVISIONS}?labelSelector=app%3Dagent")).await, 1);

    let mut second = world.get(&format!("{REVISIONS}/second")).await;
    second["metadata"]["labels"]["second"] = json!("updated");
    second["revision"] = json!(5);
    let updated = world.ok("PUT", &format!("{REVISIONS}/second"), &second).await;
    assert_eq!((&updated["metadata"]["labels"]["second"], &updated["revision"]), (&json!("updated"), &json!(5)));
    // What it recorded never changes.
    second["metadata"]["resourceVersion"] = updated["metadata"]["resourceVersion"].clone();
    second["data"]["spec"]["template"]["spec"] = json!({"hostNetwork": true});
    assert_eq!(world.call("PUT", &format!("{REVISIONS}/second"), &second).await.0, 422);

    world.ok("POST", REVISIONS, &revision("third", 6)).await;
    world.ok("DELETE", &format!("{REVISIONS}?labelSelector=second%3Dupdated"), &Value::Null).await;
    let left = world.get(&format!("{REVISIONS}?labelSelector=app%3Dagent")).await;
    assert_eq!((&left["items"][0]["metadata"]["name"], &left["items"][1]), (&json!("third"), &Value::Null));
}
