//! Stories of pods with claims.

use super::*;
use crate::volumes::local::{Removal, remove};
use k8s_openapi::api::core::v1::PersistentVolume;

const CLAIM: &str = "/api/v1/namespaces/default/persistentvolumeclaims/c";

#[tokio::test]
async fn a_volume_is_in_use_until_its_last_container_has_ended_though_the_api_forgot_the_pod() {
    let mounts = json!([{"name": "data", "mountPath": "/data"}]);
    let spec = json!({"terminationGracePeriodSeconds": 3600,
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}],
        "containers": [{"name": "app", "image": "img:1", "volumeMounts": mounts}]});
    let mut claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "status": {"phase": "Pending"},
        "metadata": {"name": "c", "namespace": "default", "uid": "c1"}, "spec": {"volumeName": "pvc-1"}});
    let story = Story::begins(spec, &[(CLAIM, claim.clone())]).await;
    story.runtime.deaf.lock().insert("app".into());

    // It starts once the claim is bound.
    let path = story.ctx.local_volumes.root().join("pvc-1");
    let mut volume = json!({"apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": "pvc-1", "finalizers": ["proa.dev/local-volume"],
            "annotations": {"pv.kubernetes.io/provisioned-by": "proa.dev/local"}},
        "spec": {"claimRef": {"name": "c", "namespace": "default", "uid": "c1"}, "local": {"path": path},
            "persistentVolumeReclaimPolicy": "Delete"}});
    claim["status"]["phase"] = json!("Bound");
    let bound = [(CLAIM.to_owned(), claim), ("/api/v1/persistentvolumes/pvc-1".to_owned(), volume.clone())];
    story.api.objects.lock().extend(bound);
    story.until("running", ready).await;
    let source = {
        let containers = story.runtime.containers.lock();
        let (spec, _) = containers.values().next().unwrap();
        spec.mounts.iter().find(|mount| mount.target == std::path::Path::new("/data")).unwrap().source.clone()
    };
    assert_eq!(source, path);
    std::fs::write(path.join("precious"), "").unwrap();

    // The volume is to go; the pod was taken out of the API by force, and its container does not listen.
    volume["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let volume: PersistentVolume = serde_json::from_value(volume).unwrap();
    let mut signals = story.runtime.signals.subscribe();
    story.ctx.registry.tell("u1", Message::Gone);
    signals.wait_for(|sent| sent.contains(&("app".to_owned(), 15))).await.unwrap();
    assert_eq!(remove(&story.ctx, &volume).await, Ok(Removal::InUse));
    assert!(path.join("precious").exists());
    story.runtime.end("app", 0);
    tokio::time::timeout(Duration::from_secs(20), story.task).await.expect("over").unwrap();
    assert_eq!(remove(&story.ctx, &volume).await, Ok(Removal::Done));
    assert!(!path.exists());
}
