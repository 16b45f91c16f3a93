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
