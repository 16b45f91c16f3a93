//! Persistent storage: what a claim is given, how long it lasts, and what is left when nobody wants it any more.

use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::harness::{Cluster, eventually};

/// Volumes that are made at once, in both ways to end.
const CLASSES: &str = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: now}
provisioner: proa.dev/local
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: keep}
provisioner: proa.dev/local
reclaimPolicy: Retain
";

const DIARY: &str = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: diary}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: writer}
spec:
  strategy: {type: Recreate}
  selector: {matchLabels: {app: writer}}
  template:
    metadata: {labels: {app: writer}}
    spec:
      terminationGracePeriodSeconds: 0
      securityContext: {runAsUser: 1000, fsGroup: 2000}
      volumes: [{name: data, persistentVolumeClaim: {claimName: diary}}]
      containers:
      - name: main
        image: test/busybox:1
        command: [sh, -c, 'echo started >> /data/log && exec sleep 1000']
        volumeMounts: [{name: data, mountPath: /data}]
";

fn directories(cluster: &Cluster) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(cluster.data().join("agent/volumes")).expect("the node's volumes");
    folder.map(|entry| entry.expect("an entry").path()).collect()
}

fn lines(cluster: &Cluster) -> usize {
    cluster.kubectl(&["rollout", "status", "deployment/writer", "--timeout=60s"]);
    cluster.kubectl(&["exec", "deployment/writer", "--", "cat", "/data/log"]).lines().count()
}

#[test]
fn data_outlives_its_pods_and_the_platform_and_goes_with_its_claim() {
    let mut cluster = Cluster::up();
    cluster.load_busybox();
    cluster.apply(DIARY);
    assert_eq!(lines(&cluster), 1);
    let volume = cluster.kubectl(&["get", "pvc", "diary", "-o", "jsonpath={.spec.volumeName}"]);
    let shown = cluster.kubectl(&["get", "pv", &volume, "--no-headers"]);
    for said in ["1Gi", "RWO", "Delete", "Bound", "default/diary", "local"] {
        assert!(shown.contains(said), "{shown}");
    }
    let described = cluster.kubectl(&["describe", "pvc", "diary"]);
    assert!(described.contains("WaitForFirstConsumer") && described.contains("ProvisioningSucceeded"), "{described}");

    // Another pod, another platform, another Deployment of the name: the data stays.
    cluster.kubectl(&["delete", "pod", "-l", "app=writer"]);
    assert_eq!(lines(&cluster), 2);
    cluster.stop(Signal::SIGKILL);
    cluster.start(&[]);
    assert_eq!(lines(&cluster), 2, "the container went on");
    cluster.kubectl(&["delete", "deployment", "writer"]);
    cluster.kubectl(&["wait", "pod", "-l", "app=writer", "--for=delete", "--timeout=30s"]);
    cluster.apply(DIARY);
    assert_eq!(lines(&cluster), 3);

    // A claim in use waits for its pod, whatever becomes of the platform meanwhile.
    cluster.kubectl(&["delete", "pvc", "diary", "--wait=false"]);
    cluster.stop(Signal::SIGKILL);
    cluster.start(&[]);
    assert!(cluster.kubectl(&["get", "pvc", "diary", "--no-headers"]).contains("Terminating"));
    assert_eq!(lines(&cluster), 3);
    assert_eq!(directories(&cluster), [cluster.data().join("agent/volumes").join(&volume)]);
    cluster.kubectl(&["delete", "deployment", "writer"]);
    cluster.kubectl(&["wait", "pvc/diary", &format!("pv/{volume}"), "--for=delete", "--timeout=30s"]);
    assert!(directories(&cluster).is_empty());
    cluster.assert_nothing_was_forbidden();
}

#[test]
fn what_is_retained_stays_and_what_is_ephemeral_goes_with_its_pod() {
    let cluster = Cluster::up();
    cluster.load_busybox();
    cluster.apply(CLASSES);
    cluster.apply(
        "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept}
spec: {storageClassName: keep, accessModes: [ReadWriteOncePod], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: both}
spec:
  terminationGracePeriodSeconds: 0
  volumes:
  - {name: kept, persistentVolumeClaim: {claimName: kept}}
  - name: scratch
    ephemeral: {volumeClaimTemplate: {spec: {storageClassName: now, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}}
  containers:
  - name: main
    image: test/busybox:1
    command: [sh, -c, 'echo precious > /kept/file && echo x > /scratch/file && exec sleep 1000']
    volumeMounts: [{name: kept, mountPath: /kept, subPath: deep/inside}, {name: scratch, mountPath: /scratch}]
",
    );
    cluster.kubectl(&["wait", "pod/both", "--for=condition=Ready", "--timeout=60s"]);
    assert_eq!(directories(&cluster).len(), 2);
    let owner = cluster.kubectl(&["get", "pvc", "both-scratch", "-o", "jsonpath={.metadata.ownerReferences[0].name}"]);
    assert_eq!(owner, "both");
    cluster.kubectl(&["delete", "pod", "both"]);
    cluster.kubectl(&["wait", "pvc/both-scratch", "--for=delete", "--timeout=30s"]);
    eventually("its directory goes", || (directories(&cluster).len() == 1).then_some(()));

    // Who may only read finds what was written, and writes nothing.
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  restartPolicy: Never
  volumes: [{name: kept, persistentVolumeClaim: {claimName: kept, readOnly: true}}]
  containers:
  - name: main
    image: test/busybox:1
    command: [sh, -c, 'cat /kept/deep/inside/file; touch /kept/x 2>&1']
    volumeMounts: [{name: kept, mountPath: /kept}]
",
    );
    cluster.wait_for("pod/reader", ".status.phase", "Failed");
    let log = cluster.kubectl(&["logs", "reader"]);
    assert!(log.starts_with("precious\n") && log.contains("Read-only file system"), "{log}");

    // Nobody claims it, nobody lists it: the data is still there.
    cluster.kubectl(&["delete", "pod/reader", "pvc/kept"]);
    let volume = cluster.kubectl(&["get", "pv", "-o", "jsonpath={.items[*].metadata.name}"]);
    cluster.wait_for(&format!("pv/{volume}"), ".status.phase", "Released");
    cluster.kubectl(&["delete", "pv", &volume, "--timeout=30s"]);
    let left = directories(&cluster).remove(0);
    assert_eq!(std::fs::read_to_string(left.join("deep/inside/file")).expect("the file"), "precious\n");
    cluster.assert_nothing_was_forbidden();
}
