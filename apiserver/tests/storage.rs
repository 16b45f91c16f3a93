//! The storage API as Kubernetes' conformance tests use it: lifecycles, defaults, protection, growth, and what a node may
//! do about the volumes that lie on it. By raw requests in process.

mod common;

use common::{World, world};
use proa_apiserver::User;
use serde_json::{Value, json};

const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const VOLUMES: &str = "/api/v1/persistentvolumes";
const CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";
const STORAGE: &str = "/apis/storage.k8s.io/v1";

fn claim(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"test": "yes"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
}

fn volume(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"test": "yes"}}, "spec": {"accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/tmp"}, "storageClassName": "manual"}})
}

async fn merge(world: &World, user: &User, uri: &str, patch: &Value) -> (u16, Value) {
    let media = [("content-type", "application/merge-patch+json")];
    world.call_as(user.clone(), "PATCH", uri, &media, patch.to_string().into_bytes()).await
}

fn admin() -> User {
    User::new("admin", &["system:masters"])
}

/// Takes away what holds an object that was deleted, as its controller would.
async fn let_go(world: &World, uri: &str) {
    let (code, answer) = merge(world, &admin(), uri, &json!({"metadata": {"finalizers": []}})).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(world.call("GET", uri, &Value::Null).await.0, 404);
}

/// Create, read, patch, list by label, update, delete one, delete the collection: every storage conformance test of a
/// lifecycle is this walk.
async fn lifecycle(world: &World, collection: &str, object: &Value, is_held: bool) {
    let name = object["metadata"]["name"].as_str().unwrap();
    let uri = format!("{collection}/{name}");
    let of_test = format!("{collection}?labelSelector=test%3Dyes");
    let mut object = object.clone();
    object["metadata"]["labels"] = json!({"test": "yes"});
    for round in 0..2 {
        let made = world.ok("POST", collection, &object).await;
        assert_eq!(world.ok("GET", &uri, &Value::Null).await["metadata"]["uid"], made["metadata"]["uid"]);
        let (code, patched) = merge(world, &admin(), &uri, &json!({"metadata": {"labels": {"patched": "true"}}})).await;
        assert_eq!((code, &patched["metadata"]["labels"]["patched"]), (200, &json!("true")), "{patched}");
        let mut updated = patched;
        updated["metadata"]["labels"]["updated"] = json!("true");
        assert_eq!(world.ok("PUT", &uri, &updated).await["metadata"]["labels"]["updated"], "true");
        assert_eq!(world.ok("GET", &of_test, &Value::Null).await["items"].as_array().unwrap().len(), 1);
        let gone = if round == 0 { uri.as_str() } else { of_test.as_str() };
        world.ok("DELETE", gone, &Value::Null).await;
        if is_held {
            let held = world.ok("GET", &uri, &Value::Null).await;
            assert!(held["metadata"]["deletionTimestamp"].is_string());
            let_go(world, &uri).await;
        }
        assert_eq!(world.call("GET", &uri, &Value::Null).await.0, 404);
    }
}

#[tokio::test]
async fn every_storage_object_runs_through_its_lifecycle() {
    let world = world().await;
    lifecycle(&world, VOLUMES, &volume("pv"), true).await;
    lifecycle(&world, CLAIMS, &claim("pvc"), true).await;
    let class = json!({"metadata": {"name": "sc"}, "provisioner": "example.com/p"});
    lifecycle(&world, CLASSES, &class, false).await;
    let source = json!({"persistentVolumeName": "pv"});
    let attachment =
        json!({"metadata": {"name": "va"}, "spec": {"attacher": "d.example.com", "nodeName": "n", "source": source}});
    lifecycle(&world, &format!("{STORAGE}/volumeattachments"), &attachment, false).await;
    let driver = json!({"metadata": {"name": "inline-driver"}, "spec": {"volumeLifecycleModes": ["Ephemeral"]}});
    lifecycle(&world, &format!("{STORAGE}/csidrivers"), &driver, false).await;
    let drivers = json!([{"name": "d.example.com", "nodeID": "i", "topologyKeys": ["zone"]}]);
    let node = json!({"metadata": {"name": "n"}, "spec": {"drivers": drivers}});
    lifecycle(&world, &format!("{STORAGE}/csinodes"), &node, false).await;
    let capacity = json!({"metadata": {"name": "cap"}, "storageClassName": "sc", "capacity": "1Gi"});
    lifecycle(&world, &format!("{STORAGE}/namespaces/default/csistoragecapacities"), &capacity, false).await;
    let attributes = json!({"metadata": {"name": "vac"}, "driverName": "d.example.com", "parameters": {"iops": "1"}});
    lifecycle(&world, &format!("{STORAGE}/volumeattributesclasses"), &attributes, false).await;
}

#[tokio::test]
async fn the_status_of_claims_volumes_and_attachments_is_written_through_its_own_path() {
    let world = world().await;
    world.ok("POST", VOLUMES, &volume("pv")).await;
    world.ok("POST", CLAIMS, &claim("pvc")).await;
    let condition =
        json!({"type": "StatusPatched", "status": "True", "reason": "E2E patchedStatus", "message": "Set from e2e"});
    for (uri, patch, pointer) in [
        (format!("{CLAIMS}/pvc"), json!({"status": {"conditions": [condition]}}), "/status/conditions/0/reason"),
        (format!("{VOLUMES}/pv"), json!({"status": {"reason": "E2E patchedStatus", "message": "m"}}), "/status/reason"),
    ] {
        let status = format!("{uri}/status");
        assert_eq!(world.ok("GET", &status, &Value::Null).await["status"]["phase"], "Pending");
        let (code, patched) = merge(&world, &admin(), &status, &patch).await;
        assert_eq!((code, patched.pointer(pointer)), (200, Some(&json!("E2E patchedStatus"))), "{patched}");
        let mut updated = patched;
        *updated.pointer_mut(pointer).unwrap() = json!("updated");
        assert_eq!(world.ok("PUT", &status, &updated).await.pointer(pointer), Some(&json!("updated")));
        // The object's own path leaves it alone.
        *updated.pointer_mut(pointer).unwrap() = json!("sneaked");
        updated["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        assert_eq!(world.ok("PUT", &uri, &updated).await.pointer(pointer), Some(&json!("updated")));
    }
    let attachments = format!("{STORAGE}/volumeattachments");
    let attachment = json!({"metadata": {"name": "va"}, "spec": {"attacher": "d.example.com", "nodeName": "n", "source": {"persistentVolumeName": "pv"}}});
    assert_eq!(world.ok("POST", &attachments, &attachment).await["status"]["attached"], false);
    let status = format!("{attachments}/va/status");
    let (_, mut patched) = merge(&world, &admin(), &status, &json!({"status": {"attached": true}})).await;
    assert_eq!(patched["status"]["attached"], true);
    patched["status"]["attached"] = json!(false);
    assert_eq!(world.ok("PUT", &status, &patched).await["status"]["attached"], false);
}

#[tokio::test]
async fn a_claim_without_a_class_gets_the_default_and_both_sides_are_protected() {
    let world = world().await;
    let made = world.ok("POST", CLAIMS, &claim("c")).await;
    assert_eq!(made["spec"]["storageClassName"], "local");
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    let mut none = claim("none");
    none["spec"]["storageClassName"] = json!("");
    assert_eq!(world.ok("POST", CLAIMS, &none).await["spec"]["storageClassName"], "");
    let mut old = claim("old");
    old["metadata"]["annotations"] = json!({"volume.beta.kubernetes.io/storage-class": "slow"});
    assert_eq!(world.ok("POST", CLAIMS, &old).await["spec"].get("storageClassName"), None);
    // Of several defaults the first by name among the youngest.
    let default = json!({"storageclass.kubernetes.io/is-default-class": "true"});
    let class = json!({"metadata": {"name": "a", "annotations": default}, "provisioner": "example.com/p"});
    let (name, local) = ("/a", format!("{CLASSES}/local"));
    world.ok("POST", CLASSES, &class).await;
    let chosen = world.ok("POST", CLAIMS, &claim("d")).await["spec"]["storageClassName"].clone();
    assert_eq!(chosen, "a", "a class made later, or in the same second and first by name");
    world.ok("DELETE", &format!("{CLASSES}{name}"), &Value::Null).await;
    world.ok("DELETE", &local, &Value::Null).await;
    assert_eq!(world.ok("POST", CLAIMS, &claim("e")).await["spec"].get("storageClassName"), None);
    let held = world.ok("POST", VOLUMES, &volume("v")).await;
    assert_eq!(held["metadata"]["finalizers"], json!(["kubernetes.io/pv-protection"]));
    // Whoever deleted the class has it deleted.
    let world = world.restarted().await;
    assert_eq!(world.call("GET", &local, &Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_cluster_is_given_its_first_class_once() {
    let world = world().await;
    let class = world.ok("GET", &format!("{CLASSES}/local"), &Value::Null).await;
    assert_eq!(class["provisioner"], "proa.dev/local");
    assert_eq!(class["volumeBindingMode"], "WaitForFirstConsumer");
    assert_eq!(class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"], "true");
    let patch = json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "false"}}});
    merge(&world, &admin(), &format!("{CLASSES}/local"), &patch).await;
    let world = world.restarted().await;
    let kept = world.ok("GET", &format!("{CLASSES}/local"), &Value::Null).await;
    assert_eq!(kept["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"], "false");
}

#[tokio::test]
async fn a_claim_grows_when_its_class_lets_it() {
    let world = world().await;
    world.ok("POST", CLASSES, &json!({"metadata": {"name": "fixed"}, "provisioner": "example.com/p"})).await;
    let mut fixed = claim("fixed");
    fixed["spec"]["storageClassName"] = json!("fixed");
    world.ok("POST", CLAIMS, &fixed).await;
    world.ok("POST", CLAIMS, &claim("c")).await;
    let larger = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    let grow = |name: &'static str| {
        let (world, larger) = (&world, &larger);
        async move {
            let (code, answer) = merge(world, &admin(), &format!("{CLAIMS}/{name}"), larger).await;
            (code, answer["message"].as_str().unwrap_or_default().to_owned())
        }
    };
    let (code, why) = grow("c").await;
    assert_eq!(
        (code, why.as_str()),
        (403, "persistentvolumeclaims \"c\" is forbidden: Only bound persistent volume claims can be expanded")
    );
    for name in ["c", "fixed"] {
        let bound = json!({"status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}});
        merge(&world, &admin(), &format!("{CLAIMS}/{name}/status"), &bound).await;
    }
    assert_eq!(grow("c").await.0, 200);
    let (code, why) = grow("fixed").await;
    assert_eq!(code, 403);
    assert!(why.ends_with("the storageclass that provisions the pvc must support resize"), "{why}");
}

#[tokio::test]
async fn a_pod_may_have_inline_csi_volumes_refused_by_name() {
    let world = world().await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "csi": {"driver": "e2e.example.com"}}]}});
    let (code, answer) = world.call("POST", "/api/v1/namespaces/default/pods", &pod).await;
    assert_eq!(code, 403);
    assert!(answer["message"].as_str().unwrap().contains("csi volumes are not supported by Proa yet"), "{answer}");
}

#[tokio::test]
async fn a_node_lets_go_of_the_volumes_that_lie_on_it_and_does_nothing_else_to_any() {
    let world = world().await;
    for node in ["a", "b"] {
        let term = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]});
        let mut on = volume(&format!("on-{node}"));
        on["metadata"]["labels"] = json!({"kubernetes.io/hostname": node});
        on["metadata"]["finalizers"] = json!(["proa.dev/local-volume"]);
        on["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [term]}});
        world.ok("POST", VOLUMES, &on).await;
    }
    let node = User::node("a");
    let see = |query: &'static str| {
        let (world, node) = (&world, node.clone());
        async move { world.call_as(node, "GET", &format!("{VOLUMES}{query}"), &[], vec![]).await }
    };
    let (code, listed) = see("?labelSelector=kubernetes.io/hostname%3Da").await;
    assert_eq!((code, listed["items"].as_array().unwrap().len()), (200, 1));
    for query in
        ["", "?labelSelector=kubernetes.io/hostname%3Db", "?labelSelector=kubernetes.io/hostname+in+(a,b)", "/on-b"]
    {
        assert_eq!(see(query).await.0, 403, "{query}");
    }
    let held = json!({"metadata": {"finalizers": ["kubernetes.io/pv-protection"]}});
    let patch = |name: &'static str, patch: Value| {
        let (world, node) = (&world, node.clone());
        async move { merge(world, &node, &format!("{VOLUMES}/{name}"), &patch).await.0 }
    };
    assert_eq!(patch("on-a", held.clone()).await, 403, "it stays");
    world.ok("DELETE", &format!("{VOLUMES}/on-a"), &Value::Null).await;
    world.ok("DELETE", &format!("{VOLUMES}/on-b"), &Value::Null).await;
    for (name, change) in [
        ("on-a", json!({"metadata": {"finalizers": []}})),
        ("on-a", json!({"metadata": {"labels": {"x": "y"}, "finalizers": ["kubernetes.io/pv-protection"]}})),
        ("on-a", json!({"spec": {"capacity": {"storage": "9Gi"}}})),
        ("on-b", held.clone()),
    ] {
        assert_eq!(patch(name, change.clone()).await, 403, "{name} {change}");
    }
    assert_eq!(patch("on-a", held).await, 200);
    let left = world.ok("GET", &format!("{VOLUMES}/on-a"), &Value::Null).await;
    assert_eq!(left["metadata"]["finalizers"], json!(["kubernetes.io/pv-protection"]));
}
