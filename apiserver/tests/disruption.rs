//! What the disruption controller's conformance tests ask of the API, and what an eviction promises, by raw requests in
//! process; the controller's part is played by hand.

mod common;

use common::{World, world};
use proa_apiserver::User;
use serde_json::{Value, json};

const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn budget(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"kind": "test"}},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}})
}

/// A pod that runs and is ready, or not.
async fn pod(world: &World, name: &str, ready: bool) {
    let pod = json!({"metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    world.ok("POST", PODS, &pod).await;
    let status = if ready { "True" } else { "False" };
    let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}});
    world.ok("PATCH", &format!("{PODS}/{name}/status"), &status).await;
}

/// The status a controller would have written.
async fn counted(world: &World, name: &str, allowed: i64) {
    let generation = world.get(&format!("{BUDGETS}/{name}")).await["metadata"]["generation"].clone();
    let status = json!({"status": {"observedGeneration": generation, "disruptionsAllowed": allowed,
        "currentHealthy": 1 + allowed, "desiredHealthy": 1 + allowed, "expectedPods": 1 + allowed}});
    world.ok("PATCH", &format!("{BUDGETS}/{name}/status"), &status).await;
}

async fn evict(world: &World, name: &str, options: Value) -> (u16, Value) {
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}, "deleteOptions": options});
    world.call("POST", &format!("{PODS}/{name}/eviction"), &eviction).await
}

#[tokio::test]
async fn a_budget_is_created_updated_patched_and_deleted() {
    let world = world().await;
    let made = world.ok("POST", BUDGETS, &budget("b")).await;
    assert_eq!((&made["metadata"]["generation"], &made["spec"]["minAvailable"]), (&json!(1), &json!(1)));
    let uri = format!("{BUDGETS}/b");
    let mut updated = made.clone();
    updated["spec"]["minAvailable"] = json!("30%");
    let updated = world.ok("PUT", &uri, &updated).await;
    assert_eq!((&updated["spec"]["minAvailable"], &updated["metadata"]["generation"]), (&json!("30%"), &json!(2)));
    // A PUT of an older state is refused: a budget is never overwritten unseen.
    assert_eq!(world.call("PUT", &uri, &made).await.0, 409);
    let patched = world.ok("PATCH", &uri, &json!({"spec": {"minAvailable": 3}})).await;
    assert_eq!(patched["spec"]["minAvailable"], 3);
    world.ok("DELETE", &uri, &Value::Null).await;
    assert_eq!(world.call("GET", &uri, &Value::Null).await.0, 404);
    let both = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "maxUnavailable": 1}});
    let (code, refused) = world.call("POST", BUDGETS, &both).await;
    assert_eq!(code, 422, "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("minAvailable and maxUnavailable cannot be both set"));
}

#[tokio::test]
async fn budgets_are_listed_in_all_namespaces_and_deleted_as_a_collection() {
    let world = world().await;
    world.ok("POST", "/api/v1/namespaces", &json!({"metadata": {"name": "other"}})).await;
    let other = "/apis/policy/v1/namespaces/other/poddisruptionbudgets";
    world.ok("POST", BUDGETS, &budget("one")).await;
    world.ok("POST", BUDGETS, &budget("two")).await;
    world.ok("POST", other, &budget("three")).await;
    let count = async |uri: &str| {
        world.get(&format!("{uri}?labelSelector=kind%3Dtest")).await["items"].as_array().map(Vec::len)
    };
    assert_eq!(count("/apis/policy/v1/poddisruptionbudgets").await, Some(3));
    assert_eq!(count(BUDGETS).await, Some(2));
    world.ok("DELETE", &format!("{BUDGETS}?labelSelector=kind%3Dtest"), &Value::Null).await;
    assert_eq!((count(BUDGETS).await, count(other).await), (Some(0), Some(1)));
}

#[tokio::test]
async fn the_status_of_a_budget_is_updated_and_patched_on_its_own() {
    let world = world().await;
    let mut made = world.ok("POST", BUDGETS, &budget("b")).await;
    made["status"] = json!({"disruptedPods": {"p": "2026-11-21T10:00:00Z"}, "disruptionsAllowed": 0,
        "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0});
    made["spec"]["minAvailable"] = json!(7);
    let uri = format!("{BUDGETS}/b/status");
    let updated = world.ok("PUT", &uri, &made).await;
    assert_eq!(
        (&updated["status"]["disruptedPods"]["p"], &updated["spec"]["minAvailable"]),
        (&json!("2026-11-21T10:00:00Z"), &json!(1))
    );
    let patched = world.ok("PATCH", &uri, &json!({"status": {"disruptedPods": null}})).await;
    assert!(patched["status"]["disruptedPods"].is_null());
    let (code, refused) = world.call("PATCH", &uri, &json!({"status": {"disruptionsAllowed": -1}})).await;
    assert_eq!(code, 422, "{refused}");
}

#[tokio::test]
async fn an_eviction_is_blocked_until_the_budget_allows_it() {
    let world = world().await;
    world.ok("POST", BUDGETS, &budget("b")).await;
    pod(&world, "p", true).await;
    // Nobody has counted yet.
    let (code, refused) = evict(&world, "p", Value::Null).await;
    assert_eq!((code, &refused["details"]["causes"][0]["reason"]), (429, &json!("DisruptionBudget")));
    assert_eq!(refused["details"]["retryAfterSeconds"], 10);
    counted(&world, "b", 0).await;
    let (code, refused) = evict(&world, "p", Value::Null).await;
    assert_eq!(
        (code, &refused["message"]),
        (429, &json!("Cannot evict pod as it would violate the pod's disruption budget."))
    );
    assert_eq!(
        refused["details"]["causes"][0]["message"],
        "The disruption budget b needs 1 healthy pods and has 1 currently"
    );

    counted(&world, "b", 1).await;
    // Only asked whether it could: nothing changes.
    assert_eq!(evict(&world, "p", json!({"dryRun": ["All"]})).await.0, 201);
    assert_eq!(world.get(&format!("{BUDGETS}/b")).await["status"]["disruptionsAllowed"], 1);
    // Another pod of that name is meant.
    assert_eq!(evict(&world, "p", json!({"preconditions": {"uid": "other"}})).await.0, 409);
    assert_eq!(world.get(&format!("{BUDGETS}/b")).await["status"]["disruptionsAllowed"], 1);

    assert_eq!(evict(&world, "p", Value::Null).await.0, 201);
    let status = world.get(&format!("{BUDGETS}/b")).await["status"].clone();
    assert_eq!(status["disruptionsAllowed"], 0);
    assert!(status["disruptedPods"]["p"].is_string(), "{status}");
    assert_eq!(status["conditions"][0]["reason"], "InsufficientPods");
    let gone = world.get(&format!("{PODS}/p")).await;
    assert!(gone["metadata"]["deletionTimestamp"].is_string());
    let conditions = gone["status"]["conditions"].as_array().unwrap();
    let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget").expect("the announcement");
    assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("EvictionByEvictionAPI")));
    // What goes already is no disruption.
    assert_eq!(evict(&world, "p", Value::Null).await.0, 201);
}

#[tokio::test]
async fn a_pod_that_is_not_ready_goes_where_the_application_is_whole_or_the_budget_says_so() {
    let world = world().await;
    world.ok("POST", BUDGETS, &budget("b")).await;
    counted(&world, "b", 0).await;
    pod(&world, "one", false).await;
    assert_eq!(evict(&world, "one", Value::Null).await.0, 201, "all that are desired are healthy");
    let short = json!({"status": {"currentHealthy": 0}});
    world.ok("PATCH", &format!("{BUDGETS}/b/status"), &short).await;
    pod(&world, "two", false).await;
    assert_eq!(evict(&world, "two", Value::Null).await.0, 429);
    world.ok("PATCH", &format!("{BUDGETS}/b"), &json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}})).await;
    assert_eq!(evict(&world, "two", Value::Null).await.0, 201);
}

#[tokio::test]
async fn fifty_evictions_at_once_take_no_more_than_the_budget_allows() {
    let world = world().await;
    world.ok("POST", BUDGETS, &budget("b")).await;
    for n in 0..50 {
        pod(&world, &format!("p{n}"), true).await;
    }
    counted(&world, "b", 7).await;
    let evictions = (0..50).map(|n| {
        let world = &world;
        async move { evict(world, &format!("p{n}"), Value::Null).await.0 }
    });
    let codes = futures::future::join_all(evictions).await;
    assert_eq!(codes.iter().filter(|code| **code == 201).count(), 7, "{codes:?}");
    assert!(codes.iter().all(|code| matches!(code, 201 | 429)), "{codes:?}");
    let pods = world.get(PODS).await;
    let marked =
        pods["items"].as_array().unwrap().iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(marked.count(), 7);
}

#[tokio::test]
async fn a_pod_of_two_budgets_cannot_be_evicted() {
    let world = world().await;
    for name in ["a", "b"] {
        world.ok("POST", BUDGETS, &budget(name)).await;
        counted(&world, name, 1).await;
    }
    pod(&world, "p", true).await;
    let (code, refused) = evict(&world, "p", Value::Null).await;
    assert_eq!(code, 500);
    let message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
    assert_eq!(refused["message"], message);
    // A budget without a selector is about no pod, one with an empty selector about every.
    world.ok("PATCH", &format!("{BUDGETS}/a"), &json!({"spec": {"selector": null}})).await;
    assert_eq!(evict(&world, "p", Value::Null).await.0, 201);
}

#[tokio::test]
async fn metrics_are_discovered_and_may_be_read_by_whoever_may_view_and_written_by_nobody() {
    let world = world().await;
    let group = world.get("/apis/metrics.k8s.io/v1beta1").await;
    let resources: Vec<_> =
        group["resources"].as_array().unwrap().iter().map(|r| (&r["name"], &r["kind"], &r["verbs"])).collect();
    let verbs = json!(["get", "list"]);
    let (nodes, pods) = ((json!("nodes"), json!("NodeMetrics")), (json!("pods"), json!("PodMetrics")));
    assert_eq!(resources, [(&nodes.0, &nodes.1, &verbs), (&pods.0, &pods.1, &verbs)]);
    let service = world.get("/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io").await;
    assert_eq!(
        (&service["spec"]["service"], &service["status"]["conditions"][0]["reason"]),
        (&Value::Null, &json!("Local"))
    );

    // A node whose agent cannot be reached is left out; it is no error.
    world.ok("POST", "/api/v1/nodes", &json!({"metadata": {"name": "n"}})).await;
    pod(&world, "p", true).await;
    let here = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods";
    for uri in ["/apis/metrics.k8s.io/v1beta1/nodes", "/apis/metrics.k8s.io/v1beta1/pods", here] {
        let list = world.get(&format!("{uri}?labelSelector=a%3Db")).await;
        assert_eq!((&list["kind"].as_str().unwrap().ends_with("MetricsList"), &list["items"]), (&true, &json!([])));
        assert_eq!(world.get(uri).await["items"], json!([]));
    }
    let (code, missing) = world.call("GET", &format!("{here}/p"), &Value::Null).await;
    assert_eq!((code, &missing["message"]), (404, &json!("pods.metrics.k8s.io \"p\" not found")));
    for (method, uri) in
        [("POST", here.to_owned()), ("DELETE", format!("{here}/p")), ("GET", format!("{here}?watch=1"))]
    {
        assert_eq!(world.call(method, &uri, &json!({})).await.0, 405, "{method} {uri}");
    }
    let viewer = json!({"metadata": {"name": "v"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve"}]});
    let as_eve = async || world.call_as(User::new("eve", &[]), "GET", here, &[], Vec::new()).await.0;
    assert_eq!(as_eve().await, 403);
    world.ok("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", &viewer).await;
    assert_eq!(as_eve().await, 200);
}

#[tokio::test]
async fn an_autoscaler_is_held_to_what_kubernetes_holds_it_to() {
    let world = world().await;
    let uri = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    let with = |metrics: Value, behavior: Value| {
        json!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 5, "metrics": metrics, "behavior": behavior,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}})
    };
    let resource = |target: Value| json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]);
    let percent = || json!({"type": "Utilization", "averageUtilization": 50});
    let table = [
        (with(json!([{"type": "Pods"}]), Value::Null), "must populate information for the given metric source"),
        (
            with(
                json!([{"type": "Resource", "resource": {"name": "cpu", "target": percent()}, "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "1"}}}]),
                Value::Null,
            ),
            "must populate the given metric source only",
        ),
        (
            with(resource(json!({"type": "Utilization"})), Value::Null),
            "must set either a target raw value or a target utilization",
        ),
        (
            with(resource(json!({"type": "Share", "averageUtilization": 1})), Value::Null),
            "must be either Utilization, Value, or AverageValue",
        ),
        (with(resource(json!({"type": "AverageValue", "averageValue": "0"})), Value::Null), "must be positive"),
        (
            with(
                json!([{"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "", "target": percent()}}]),
                Value::Null,
            ),
            "must specify a container name",
        ),
        (
            with(resource(percent()), json!({"scaleDown": {"stabilizationWindowSeconds": 3601}})),
            "must be less than or equal to 3600",
        ),
        (
            with(
                resource(percent()),
                json!({"scaleUp": {"policies": [{"type": "Pods", "value": 0, "periodSeconds": 15}]}}),
            ),
            "must be greater than zero",
        ),
        (with(resource(percent()), json!({"scaleUp": {"tolerance": "-1"}})), "must be greater than or equal to zero"),
    ];
    for (object, why) in table {
        let (code, refused) = world.call("POST", uri, &object).await;
        assert!(code == 422 && refused["message"].as_str().unwrap().contains(why), "{refused}\nrather than: {why}");
    }
    // What it says of its behaviour is completed; what it does not say stays unsaid. One object in two versions.
    let made = world.ok("POST", uri, &with(resource(percent()), json!({"scaleDown": {"selectPolicy": "Min"}}))).await;
    assert_eq!(made["spec"]["behavior"]["scaleUp"]["policies"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        made["spec"]["behavior"]["scaleDown"]["policies"][0],
        json!({"type": "Percent", "value": 100, "periodSeconds": 15})
    );
    let old = world.get("/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers/a").await;
    assert_eq!(old["spec"]["targetCPUUtilizationPercentage"], 50);
}
