//! Every operation of the API on the kinds that keep or run pods, as the conformance tests of [sig-apps] make them.

mod common;

use common::{World, world};
use serde_json::{Value, json};

/// A kind, what a client writes of it, and a status one may find.
struct Sample {
    uri: &'static str,
    all: &'static str,
    object: Value,
    status: Value,
    /// A field of the status, and what it becomes.
    update: (&'static str, Value),
    scaled: bool,
}

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "main", "image": "i:1"}]}})
}

fn once() -> Value {
    json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "i:1"}]}})
}

fn samples() -> Vec<Sample> {
    let counted = json!({"replicas": 1, "readyReplicas": 1, "conditions": [{"type": "Test", "status": "True", "reason": "E2E", "message": "set by a test"}]});
    let keeps = |api_version: &str, kind: &str, selector: Value| {
        json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "web", "labels": {"test": "here"}},
            "spec": {"replicas": 1, "selector": selector, "template": template()}})
    };
    let chosen = json!({"matchLabels": {"app": "web"}});
    let observed = ("observedGeneration", json!(1));
    let mut stateful = keeps("apps/v1", "StatefulSet", chosen.clone());
    stateful["spec"]["serviceName"] = "web".into();
    let mut daemon = keeps("apps/v1", "DaemonSet", chosen.clone());
    daemon["spec"].as_object_mut().expect("a map").remove("replicas");
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "web", "labels": {"test": "here"}}, "spec": {"suspend": true, "template": once()}});
    let cron = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "web", "labels": {"test": "here"}},
        "spec": {"schedule": "*/1 * * * ?", "jobTemplate": {"spec": {"template": once()}}}});
    vec![
        Sample {
            uri: "/apis/apps/v1/namespaces/default/deployments",
            all: "/apis/apps/v1/deployments",
            object: keeps("apps/v1", "Deployment", chosen.clone()),
            status: counted.clone(),
            update: observed.clone(),
            scaled: true,
        },
        Sample {
            uri: "/apis/apps/v1/namespaces/default/replicasets",
            all: "/apis/apps/v1/replicasets",
            object: keeps("apps/v1", "ReplicaSet", chosen.clone()),
            status: counted.clone(),
            update: observed.clone(),
            scaled: true,
        },
        Sample {
            uri: "/api/v1/namespaces/default/replicationcontrollers",
            all: "/api/v1/replicationcontrollers",
            object: keeps("v1", "ReplicationController", json!({"app": "web"})),
            status: counted.clone(),
            update: observed.clone(),
            scaled: true,
        },
        Sample {
            uri: "/apis/apps/v1/namespaces/default/statefulsets",
            all: "/apis/apps/v1/statefulsets",
            object: stateful,
            status: counted.clone(),
            update: observed.clone(),
            scaled: true,
        },
        Sample {
            uri: "/apis/apps/v1/namespaces/default/daemonsets",
            all: "/apis/apps/v1/daemonsets",
            object: daemon,
            status: json!({"numberReady": 1, "conditions": counted["conditions"]}),
            update: observed,
            scaled: false,
        },
        Sample {
            uri: "/apis/batch/v1/namespaces/default/jobs",
            all: "/apis/batch/v1/jobs",
            object: job,
            status: json!({"startTime": "2026-11-21T10:00:00Z", "active": 1}),
            update: ("active", json!(2)),
            scaled: false,
        },
        Sample {
            uri: "/apis/batch/v1/namespaces/default/cronjobs",
            all: "/apis/batch/v1/cronjobs",
            object: cron,
            status: json!({"lastScheduleTime": "2026-11-21T10:00:00Z"}),
            update: ("lastScheduleTime", json!("2026-11-21T11:00:00Z")),
            scaled: false,
        },
    ]
}

fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned()
}

/// Conformance: "CronJob API Operations", "Jobs, manage lifecycle", "Jobs, apply changes to status", "Deployment, status
/// sub-resource", "Deployment, completes the scaling of a Deployment subresource", "ReplicaSet, status sub-resource",
/// "ReplicaSet, completes the scaling of a ReplicaSet subresource", "ReplicaSet, is created, Replaced and Patched",
/// "ReplicaSet, list and delete a collection of ReplicaSets", "Replication Controller, lifecycle", "Replication Controller,
/// get and update ReplicationController scale", "StatefulSet should list, patch and delete a collection of StatefulSets",
/// "… have a working scale subresource", "… validate Statefulset Status endpoints", "Daemon set should list and delete a
/// collection of DaemonSets", "… verify changes to a daemon set status".
#[tokio::test]
async fn every_operation_of_the_api_works_on_every_workload() {
    let world = world().await;
    for sample in samples() {
        let Sample { uri, all, object, status, update, scaled } = &sample;
        let this = format!("{uri}/web");
        let created = world.ok("POST", uri, object).await;
        let mut watch =
            world.watch(&format!("{all}?watch=1&labelSelector=test&resourceVersion={}", version(&created))).await;

        let selected = |list: &Value| list["items"].as_array().map_or(0, Vec::len);
        assert_eq!(selected(&world.get(&format!("{uri}?labelSelector=test%3Dhere")).await), 1, "{uri}");
        assert_eq!(selected(&world.get(&format!("{all}?labelSelector=test%3Dhere")).await), 1, "{uri}");
        assert_eq!(selected(&world.get(&format!("{all}?labelSelector=test%3Dthere")).await), 0, "{uri}");

        let patched = world.ok("PATCH", &this, &json!({"metadata": {"labels": {"patched": "true"}}})).await;
        assert_eq!(patched["metadata"]["labels"]["patched"], "true");
        let mut replaced = patched.clone();
        replaced["metadata"]["annotations"]["updated"] = "true".into();
        let replaced = world.ok("PUT", &this, &replaced).await;
        assert_eq!(replaced["metadata"]["annotations"]["updated"], "true");
        for expected in ["MODIFIED", "MODIFIED"] {
            assert_eq!(watch.what().await, (expected.to_owned(), "web".to_owned()), "{uri}");
        }

        status_can_be_written(&world, &this, status, update).await;
        if *scaled {
            scale_can_be_written(&world, &this).await;
        }
        let gone = world
            .ok("DELETE", &format!("{uri}?labelSelector=test%3Dhere"), &json!({"propagationPolicy": "Background"}))
            .await;
        assert_eq!(selected(&gone), 1, "{uri}");
        while watch.what().await.0 != "DELETED" {}
        assert_eq!(selected(&world.get(uri).await), 0);

        // And alone.
        world.ok("POST", uri, object).await;
        world.ok("DELETE", &this, &json!({"propagationPolicy": "Background"})).await;
        assert_eq!(world.call("GET", &this, &Value::Null).await.0, 404);
    }
}

/// The status is written through its subresource, read back, and leaves the spec alone.
async fn status_can_be_written(world: &World, this: &str, status: &Value, (field, value): &(&str, Value)) {
    let uri = format!("{this}/status");
    let before = world.get(&uri).await;
    let patch = json!({"metadata": {"annotations": {"patched-status": "true"}}, "status": status, "spec": {"suspend": false, "replicas": 9}});
    let patched = world.ok("PATCH", &uri, &patch).await;
    for (field, value) in status.as_object().expect("a map") {
        assert_eq!(&patched["status"][field], value, "{uri}");
    }
    assert_eq!(
        (&patched["spec"], patched["metadata"]["annotations"]["patched-status"].as_str()),
        (&before["spec"], Some("true"))
    );
    let mut updated = patched.clone();
    updated["status"][field] = value.clone();
    assert_eq!(&world.ok("PUT", &uri, &updated).await["status"][field], value);
    assert_eq!(&world.get(this).await["status"][field], value, "visible to every reader");
}

async fn scale_can_be_written(world: &World, this: &str) {
    let uri = format!("{this}/scale");
    let mut scale = world.get(&uri).await;
    assert_eq!((scale["kind"].as_str(), &scale["spec"]["replicas"]), (Some("Scale"), &json!(1)));
    assert_eq!(scale["status"]["selector"], "app=web");
    scale["spec"]["replicas"] = 2.into();
    assert_eq!(world.ok("PUT", &uri, &scale).await["spec"]["replicas"], 2);
    assert_eq!(world.ok("PATCH", &uri, &json!({"spec": {"replicas": 4}})).await["spec"]["replicas"], 4);
    assert_eq!(world.get(this).await["spec"]["replicas"], 4);
}

/// A definition of the custom family, as far as its subresources go.
async fn define_twin(world: &World, kind: &str, scope: &str, subresources: Value) {
    let (plural, schema) = (
        format!("{}s", kind.to_lowercase()),
        json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}),
    );
    let definition = json!({"metadata": {"name": format!("{plural}.proa.dev")}, "spec": {
        "group": "proa.dev", "scope": scope, "names": {"plural": plural, "kind": kind},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema, "subresources": subresources}]}});
    world.ok("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
}

#[tokio::test]
async fn pods_of_the_custom_family_have_logs_commands_and_a_proxy_by_the_agents_of_their_family() {
    const PODS: &str = "/apis/proa.dev/v1/namespaces/default/pods";
    let world = world().await;
    define_twin(&world, "Pod", "Namespaced", json!({"status": {}})).await;
    define_twin(&world, "Node", "Cluster", json!({"status": {}})).await;
    let list = world.get("/apis/proa.dev/v1").await;
    let served: Vec<&str> =
        list["resources"].as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
    for name in ["pods/log", "pods/exec", "pods/attach", "pods/portforward", "pods/proxy", "nodes/proxy"] {
        assert!(served.contains(&name), "{name} of {served:?}");
    }
    let pod = |name: &str, node: &str| {
        json!({"apiVersion": "proa.dev/v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "i"}]}})
    };
    world.ok("POST", PODS, &pod("waiting", "")).await;
    world.ok("POST", PODS, &pod("bound", "machine")).await;
    let said = async |uri: String| {
        let (status, answer) = world.call("GET", &uri, &Value::Null).await;
        (status, answer["message"].as_str().unwrap_or_default().to_owned())
    };
    let log = |name: &str| format!("{PODS}/{name}/log");
    assert_eq!(said(log("waiting")).await, (400, "pod waiting does not have a host assigned".into()));
    assert_eq!(said(log("absent")).await, (404, "pods.proa.dev \"absent\" not found".into()));
    // The node of that name in the standard family is another machine.
    let node = json!({"metadata": {"name": "machine"}});
    world.ok("POST", "/api/v1/nodes", &node).await;
    assert_eq!(said(log("bound")).await, (404, "nodes.proa.dev \"machine\" not found".into()));
    world
        .ok(
            "POST",
            "/apis/proa.dev/v1/nodes",
            &json!({"apiVersion": "proa.dev/v1", "kind": "Node", "metadata": {"name": "machine"}}),
        )
        .await;
    assert_eq!(said(log("bound")).await, (503, "node machine has no address yet".into()));
    // Nobody is sent to this server's own host.
    let status = json!({"status": {"podIP": "127.0.0.1"}});
    world.ok("PATCH", &format!("{PODS}/bound/status"), &status).await;
    assert_eq!(said(format!("{PODS}/bound/proxy/")).await, (400, "address not allowed".into()));
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "bound"}});
    let (status, answer) = world.call("POST", &format!("{PODS}/bound/eviction"), &eviction).await;
    assert_eq!(status, 403, "{answer}");
    assert!(
        answer["message"].as_str().unwrap().contains("a PodDisruptionBudget counts standard pods alone"),
        "{answer}"
    );
}
