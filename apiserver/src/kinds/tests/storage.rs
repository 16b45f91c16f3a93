use serde_json::json;

use super::super::Op;
use super::*;

const CLAIM: &str = "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: c, namespace: ns}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}";
const VOLUME: &str = "{apiVersion: v1, kind: PersistentVolume, metadata: {name: v}, spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /x}}}";
const CLASS: &str =
    "{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: s}, provisioner: example.com/p}";
const NODE_TERM: &str =
    "{required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [a]}]}]}}";

#[test]
fn a_claim_asks_for_a_size_and_a_way_of_access() {
    table(
        CLAIM,
        &[
            (&[("spec.accessModes", "~")], "spec.accessModes: Required value: at least 1 access mode is required"),
            (
                &[("spec.accessModes", "[ReadWriteOncePod, ReadWriteOnce]")],
                "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
            ),
            (&[("spec.resources", "~")], "spec.resources.requests[storage]: Required value"),
            (
                &[("spec.resources.requests.storage", "0")],
                "spec.resources.requests[storage]: Invalid value: \"0\": must be greater than zero",
            ),
            (
                &[("spec.volumeMode", "Tape")],
                "spec.volumeMode: Unsupported value: \"Tape\": supported values: \"Block\", \"Filesystem\"",
            ),
            (
                &[("spec.dataSource", "{kind: Pod, name: p}")],
                "spec.dataSource: Invalid value: {\"kind\":\"Pod\",\"name\":\"p\"}: must be 'PersistentVolumeClaim' when referencing the default apiGroup\nspec.dataSourceRef: Invalid value: {\"kind\":\"Pod\",\"name\":\"p\"}: must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            ),
        ],
    );
    let claim = created(CLAIM);
    assert_eq!(
        (claim.get_str(&["spec", "volumeMode"]), claim.get_str(&["status", "phase"])),
        (Some("Filesystem"), Some("Pending"))
    );
    let source = created(&CLAIM.replace("spec: {", "spec: {dataSource: {kind: PersistentVolumeClaim, name: d}, "));
    assert_eq!(source.get(&["spec", "dataSourceRef"]), source.get(&["spec", "dataSource"]));
}

#[test]
fn of_a_claim_only_its_size_grows_and_only_once_it_is_bound() {
    const IMMUTABLE: &str = "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
    let pending = stored(CLAIM);
    let mut bound = pending.clone();
    bound.set(&["spec", "volumeName"], "v");
    assert!(update(&pending, &bound, Op::Update).is_ok(), "binding fills in the volume");
    bound.set(&["status"], json!({"phase": "Bound", "capacity": {"storage": "1Gi"}}));
    let change = |old: &Object, path: &[&str], value: serde_json::Value| {
        let mut new = old.clone();
        new.set(path, value);
        update(old, &new, Op::Update).map(drop).map_err(|errors| errors.join("\n"))
    };
    let size = ["spec", "resources", "requests", "storage"];
    assert_eq!(change(&bound, &size, json!("2Gi")), Ok(()));
    assert_eq!(change(&bound, &size, json!("1024Mi")), Ok(()), "the same in other words");
    assert_eq!(change(&pending, &size, json!("2Gi")), Err(IMMUTABLE.to_owned()));
    assert_eq!(
        change(&bound, &size, json!("500Mi")),
        Err("spec.resources.requests.storage: Forbidden: field can not be less than status.capacity".to_owned())
    );
    // KEP-1790: too much asked for may be taken back, down to what is there.
    let mut growing = bound.clone();
    growing.set(&size, "9Gi");
    assert_eq!(change(&growing, &size, json!("2Gi")), Ok(()));
    assert!(change(&growing, &size, json!("1Gi")).is_err());
    for (path, value) in [
        (["spec", "accessModes"], json!(["ReadWriteMany"])),
        (["spec", "volumeName"], json!("w")),
        (["spec", "volumeMode"], json!("Block")),
        (["spec", "selector"], json!({"matchLabels": {"a": "b"}})),
        (["spec", "storageClassName"], json!("late")),
    ] {
        assert_eq!(change(&bound, &path, value), Err(IMMUTABLE.to_owned()), "{path:?}");
    }
    // KEP-3333: a claim that waits without a class may be given one.
    assert_eq!(change(&pending, &["spec", "storageClassName"], json!("late")), Ok(()));
    let mut none = pending.clone();
    none.set(&["spec", "storageClassName"], "");
    assert_eq!(change(&none, &["spec", "storageClassName"], json!("late")), Err(IMMUTABLE.to_owned()));
}

#[test]
fn a_volume_has_one_source_that_never_changes() {
    table(
        VOLUME,
        &[
            (&[("spec.hostPath", "~")], "spec: Required value: must specify a volume type"),
            (&[("spec.nfs", "{server: s, path: /}")], "spec.nfs: Forbidden: may not specify more than 1 volume type"),
            (
                &[("spec.hostPath.path", "/a/../b")],
                "spec.hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
            ),
            (&[("spec.capacity", "~")], "spec.capacity: Required value"),
            (
                &[("spec.hostPath", "~"), ("spec.local", "{path: /d}")],
                "spec.nodeAffinity: Required value: Local volume requires node affinity",
            ),
            (&[("spec.hostPath", "~"), ("spec.local", "{path: /d}"), ("spec.nodeAffinity", NODE_TERM)], ""),
            (
                &[("spec.nodeAffinity", "{}")],
                "spec.nodeAffinity.required: Required value: must specify required node constraints",
            ),
            (
                &[("spec.hostPath", "~"), ("spec.csi", "{driver: d.example.com}")],
                "spec.csi.volumeHandle: Required value",
            ),
        ],
    );
    let old = stored(VOLUME);
    let change = |path: &[&str], value: serde_json::Value| {
        let mut new = old.clone();
        new.set(path, value);
        update(&old, &new, Op::Update).map(drop).map_err(|errors| errors.join("\n"))
    };
    assert_eq!(
        change(&["spec", "hostPath", "path"], json!("/y")),
        Err("spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"
            .to_owned())
    );
    assert!(change(&["spec", "volumeMode"], json!("Block")).unwrap_err().ends_with("field is immutable"));
    for (path, value) in [
        (&["spec", "capacity", "storage"][..], json!("2Gi")),
        (&["spec", "persistentVolumeReclaimPolicy"], json!("Delete")),
        (&["spec", "claimRef"], json!({"namespace": "ns", "name": "c"})),
        (&["spec", "nodeAffinity"], parse(&format!("{{apiVersion: v1, kind: X, a: {NODE_TERM}}}")).0["a"].clone()),
        (&["spec", "mountOptions"], json!(["ro"])),
    ] {
        assert_eq!(change(path, value), Ok(()), "{path:?}");
    }
    let recycled = created(&VOLUME.replace("spec: {", "spec: {persistentVolumeReclaimPolicy: Recycle, "));
    assert_eq!(
        kind_of(&recycled).strategy.unsupported(&recycled)[0].to_string(),
        "spec.persistentVolumeReclaimPolicy: Forbidden: the Recycle policy, deprecated in Kubernetes, is not supported by Proa"
    );
}

#[test]
fn a_pod_of_a_stateful_set_mounts_what_its_claims_bring() {
    const SET: &str = "{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: s}, spec: {serviceName: s, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i, volumeMounts: [{name: data, mountPath: /d}]}]}}, volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}]}}";
    table(
        SET,
        &[(
            &[("spec.volumeClaimTemplates.0.metadata.name", "other")],
            "spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"data\"",
        )],
    );
}

#[test]
fn what_a_class_is_made_of_never_changes() {
    table(
        CLASS,
        &[
            (&[("provisioner", "~")], "provisioner: Required value"),
            (
                &[("reclaimPolicy", "Recycle")],
                "reclaimPolicy: Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\"",
            ),
            (
                &[("allowedTopologies", "[{matchLabelExpressions: [{key: zone, values: []}]}]")],
                "allowedTopologies[0].matchLabelExpressions[0].values: Required value",
            ),
        ],
    );
    let old = stored(CLASS);
    assert_eq!(
        (old.get_str(&["reclaimPolicy"]), old.get_str(&["volumeBindingMode"])),
        (Some("Delete"), Some("Immediate"))
    );
    for (field, value, why) in [
        ("provisioner", json!("b"), "provisioner: Forbidden: updates to provisioner are forbidden."),
        ("parameters", json!({"a": "b"}), "parameters: Forbidden: updates to parameters are forbidden."),
        ("reclaimPolicy", json!("Retain"), "reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden."),
        ("allowVolumeExpansion", json!(true), ""),
        ("mountOptions", json!(["ro"]), ""),
    ] {
        let mut new = old.clone();
        new.set(&[field], value);
        let errors = update(&old, &new, Op::Update).map(drop).map_err(|errors| errors.join("\n"));
        assert_eq!(errors.err().unwrap_or_default(), why, "{field}");
    }
}

#[test]
fn what_csi_drivers_write_is_checked_as_on_kubernetes() {
    const ATTACHMENT: &str = "{apiVersion: storage.k8s.io/v1, kind: VolumeAttachment, metadata: {name: a}, spec: {attacher: d.example.com, nodeName: node-1, source: {persistentVolumeName: v}}}";
    const DRIVER: &str = "{apiVersion: storage.k8s.io/v1, kind: CSIDriver, metadata: {name: d.example.com}, spec: {}}";
    const NODE: &str = "{apiVersion: storage.k8s.io/v1, kind: CSINode, metadata: {name: node-1}, spec: {drivers: [{name: d.example.com, nodeID: i, topologyKeys: [zone]}]}}";
    const CAPACITY: &str = "{apiVersion: storage.k8s.io/v1, kind: CSIStorageCapacity, metadata: {name: c, namespace: ns}, storageClassName: s, capacity: 1Gi}";
    table(
        ATTACHMENT,
        &[
            (&[("spec.attacher", "~")], "spec.attacher: Required value"),
            (
                &[("spec.source.persistentVolumeName", "~")],
                "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            ),
        ],
    );
    table(
        DRIVER,
        &[(
            &[("spec.fsGroupPolicy", "Never")],
            "spec.fsGroupPolicy: Unsupported value: \"Never\": supported values: \"File\", \"None\", \"ReadWriteOnceWithFSType\"",
        )],
    );
    table(
        NODE,
        &[
            (&[("spec.drivers.0.nodeID", "''")], "spec.drivers[0].nodeID: Required value"),
            (
                &[("spec.drivers", "[{name: d, nodeID: i}, {name: d, nodeID: j}]")],
                "spec.drivers[1].name: Duplicate value: \"d\"",
            ),
        ],
    );
    table(CAPACITY, &[(&[("capacity", "-1")], "capacity: Invalid value: \"-1\": must be greater than or equal to 0")]);
    for (manifest, path, value) in [
        (ATTACHMENT, &["spec", "nodeName"][..], json!("other")),
        (DRIVER, &["spec", "attachRequired"], json!(false)),
        (CAPACITY, &["storageClassName"], json!("other")),
    ] {
        let old = stored(manifest);
        let mut new = old.clone();
        new.set(path, value);
        assert!(update(&old, &new, Op::Update).unwrap_err()[0].ends_with("field is immutable"), "{path:?}");
    }
    let attachment = stored(ATTACHMENT);
    assert_eq!(attachment.get_bool(&["status", "attached"]), Some(false));
}
