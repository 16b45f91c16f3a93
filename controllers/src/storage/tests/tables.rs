//! One law each, in Kubernetes' words where it has some.

use super::super::{SELECTED_NODE, ephemeral, facts::volume_spec};
use super::*;

#[test]
fn the_smallest_volume_that_does_is_bound_both_ways() {
    let mut cluster = Cluster::new();
    cluster.volume("large", json!({"capacity": {"storage": "10Gi"}}));
    cluster.volume("right", json!({"capacity": {"storage": "2Gi"}}));
    cluster.volume("small", json!({"capacity": {"storage": "1Mi"}}));
    cluster.volume("open", json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce", "ReadWriteMany"]}));
    cluster.volume("other", json!({"storageClassName": "fast"}));
    cluster.volume("block", json!({"volumeMode": "Block"}));
    cluster.claim("c", json!({"storageClassName": ""}));
    cluster.settle();
    assert_eq!(cluster.get(CLAIM, "ns/c", "/spec/volumeName"), Some("right"));
    assert_eq!(cluster.get(VOLUME, "right", "/spec/claimRef/name"), Some("c"));
    assert_eq!(cluster.get(VOLUME, "right", "/spec/claimRef/uid"), cluster.get(CLAIM, "ns/c", "/metadata/uid"));
    for (kind, name) in [(CLAIM, "ns/c"), (VOLUME, "right")] {
        assert_eq!(cluster.phase(kind, name), "Bound");
        assert_eq!(cluster.get(kind, name, "/metadata/annotations/pv.kubernetes.io~1bound-by-controller"), Some("yes"));
    }
    assert_eq!(cluster.get(CLAIM, "ns/c", "/status/capacity/storage"), Some("2Gi"));
    assert_eq!(cluster.world.raw(CLAIM, &key("ns/c")).unwrap()["status"]["accessModes"], json!(["ReadWriteOnce"]));
    assert_eq!(cluster.phase(VOLUME, "large"), "Available");
    // A second claim takes the next: ways of access before size.
    cluster.claim("d", json!({"storageClassName": ""}));
    assert_eq!(cluster.settle().get(CLAIM, "ns/d", "/spec/volumeName"), Some("large"));
}

#[test]
fn a_selector_and_a_named_volume_narrow_the_choice() {
    let mut cluster = Cluster::new();
    for name in ["a", "b"] {
        cluster.volume(name, json!({}));
    }
    cluster.change(VOLUME, "b", json!({"metadata": {"labels": {"disk": "ssd"}}}));
    cluster.claim("selects", json!({"storageClassName": "", "selector": {"matchLabels": {"disk": "ssd"}}}));
    cluster.claim("names", json!({"storageClassName": "", "volumeName": "a"}));
    cluster.settle();
    assert_eq!(cluster.get(CLAIM, "ns/selects", "/spec/volumeName"), Some("b"));
    assert_eq!(cluster.phase(CLAIM, "ns/names"), "Bound");
    // What a user chose is not marked as ours to undo.
    let marked = |kind, name| cluster.get(kind, name, "/metadata/annotations/pv.kubernetes.io~1bound-by-controller");
    assert_eq!((marked(CLAIM, "ns/names"), marked(VOLUME, "a")), (None, Some("yes")));
    for (spec, why) in [
        (json!({"capacity": {"storage": "1Mi"}}), "requested PV is too small"),
        (json!({"storageClassName": "other"}), "storageClassName does not match"),
        (json!({"volumeMode": "Block"}), "incompatible volumeMode"),
        (json!({"accessModes": ["ReadOnlyMany"]}), "incompatible accessMode"),
    ] {
        let mut cluster = Cluster::new();
        cluster.volume("v", spec);
        cluster.claim("c", json!({"storageClassName": "", "volumeName": "v"}));
        cluster.settle();
        assert_eq!((cluster.phase(CLAIM, "ns/c"), cluster.phase(VOLUME, "v")), ("Pending", "Available"));
        assert_eq!(cluster.told, [format!("VolumeMismatch: Cannot bind to requested volume \"v\": {why}")]);
    }
}

#[test]
fn a_volume_kept_for_a_claim_waits_for_it_and_is_no_one_elses() {
    let mut cluster = Cluster::new();
    cluster.volume("kept", json!({"claimRef": {"namespace": "ns", "name": "late"}}));
    cluster.claim("early", json!({"storageClassName": ""}));
    cluster.claim("greedy", json!({"storageClassName": "", "volumeName": "kept"}));
    cluster.settle();
    assert_eq!((cluster.phase(VOLUME, "kept"), cluster.phase(CLAIM, "ns/early")), ("Available", "Pending"));
    assert!(cluster.told.contains(
        &"FailedBinding: no persistent volumes available for this claim and no storage class is set".to_owned()
    ));
    assert!(cluster.told.contains(&"FailedBinding: volume \"kept\" already bound to a different claim.".to_owned()));
    cluster.claim("late", json!({"storageClassName": ""}));
    cluster.settle();
    assert_eq!((cluster.phase(VOLUME, "kept"), cluster.phase(CLAIM, "ns/late")), ("Bound", "Bound"));
    // What is said once is not said again.
    let told = cluster.told.len();
    assert_eq!(cluster.settle().told.len(), told);
}

#[test]
fn a_claim_of_a_class_that_waits_is_bound_when_a_node_was_chosen_for_its_pod() {
    let mut cluster = Cluster::usual();
    cluster.node("n2");
    cluster.claim("c", json!({"storageClassName": "local"}));
    cluster.settle();
    assert_eq!(cluster.told, ["WaitForFirstConsumer: waiting for first consumer to be created before binding"]);
    cluster.pod("p", "c", None);
    cluster.settle();
    assert_eq!(cluster.told[1], "WaitForPodScheduled: waiting for pod p to be scheduled");
    assert!(cluster.volumes().is_empty());

    cluster.change(CLAIM, "ns/c", json!({"metadata": {"annotations": {SELECTED_NODE: "n2"}}}));
    cluster.settle();
    let volume = cluster.volumes().remove(0);
    let name = format!("pvc-{}", cluster.get(CLAIM, "ns/c", "/metadata/uid").unwrap());
    assert_eq!((volume.name_any(), cluster.phase(CLAIM, "ns/c")), (name.clone(), "Bound"));
    assert_eq!(cluster.told[2], format!("ProvisioningSucceeded: Successfully provisioned volume {name}"));
    let spec = volume_spec(&volume);
    assert_eq!(spec.local.as_ref().unwrap().path, format!("/data/volumes/{name}"));
    let required = spec.node_affinity.as_ref().unwrap().required.as_ref().unwrap();
    assert!(proa_crds::selects_node(required, "n2", &[(HOSTNAME.to_owned(), "n2".to_owned())].into()));
    assert!(!proa_crds::selects_node(required, "n1", &[(HOSTNAME.to_owned(), "n1".to_owned())].into()));
    assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Delete"));
    for name in super::super::PROVISIONER {
        let pointer = format!("/metadata/annotations/{}", name.replace('/', "~1"));
        assert_eq!(cluster.get(CLAIM, "ns/c", &pointer), Some("proa.dev/local"));
    }
}

#[test]
fn a_class_that_does_not_wait_takes_the_node_with_the_fewest_volumes() {
    let mut cluster = Cluster::usual();
    cluster.node("n2");
    cluster.node("lame");
    cluster.change(NODE, "lame", json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}));
    cluster.node("cordoned");
    cluster.change(NODE, "cordoned", json!({"spec": {"unschedulable": true}}));
    cluster.node("foreign");
    cluster.change(NODE, "foreign", json!({"metadata": {"annotations": {"proa.dev/volumes": null}}}));
    cluster.class("now", json!({"volumeBindingMode": "Immediate"}));
    for name in ["a", "b", "c", "d"] {
        cluster.claim(name, json!({"storageClassName": "now"}));
    }
    cluster.settle();
    let mut on: Vec<String> = cluster.volumes().iter().map(|volume| volume.labels()[HOSTNAME].clone()).collect();
    on.sort();
    assert_eq!(on, ["n1", "n1", "n2", "n2"]);
    let mut cluster = Cluster::usual();
    cluster.node("zoned");
    cluster.change(NODE, "zoned", json!({"metadata": {"labels": {"zone": "z"}}}));
    let topology = json!([{"matchLabelExpressions": [{"key": "zone", "values": ["y", "z"]}]}]);
    cluster.class("now", json!({"volumeBindingMode": "Immediate", "allowedTopologies": topology}));
    cluster.claim("c", json!({"storageClassName": "now"}));
    cluster.settle();
    assert_eq!(cluster.volumes()[0].labels()[HOSTNAME], "zoned");
}

#[test]
fn a_node_that_cannot_keep_the_volume_is_chosen_again() {
    for (gone, why) in [
        (true, "the selected node \"n1\" does not exist"),
        (false, "the selected node \"n1\" keeps no volumes of proa.dev/local"),
    ] {
        let mut cluster = Cluster::usual();
        cluster.claim("c", json!({"storageClassName": "local"}));
        cluster.change(CLAIM, "ns/c", json!({"metadata": {"annotations": {SELECTED_NODE: "n1"}}}));
        if gone {
            cluster.delete(NODE, "n1");
        } else {
            cluster.change(NODE, "n1", json!({"metadata": {"annotations": {"proa.dev/volumes": null}}}));
        }
        cluster.settle();
        assert_eq!(cluster.get(CLAIM, "ns/c", "/metadata/annotations/volume.kubernetes.io~1selected-node"), None);
        assert!(cluster.volumes().is_empty());
        assert_eq!(
            cluster.told[0],
            format!("ProvisioningFailed: failed to provision volume with StorageClass \"local\": {why}")
        );
    }
}

#[test]
fn what_a_directory_cannot_do_is_refused_by_name() {
    for (claim, class, why) in [
        (json!({"volumeMode": "Block"}), json!({}), "volumeMode Block is not supported"),
        (
            json!({"accessModes": ["ReadWriteMany"]}),
            json!({}),
            "ReadWriteMany is not supported, only ReadWriteOnce and ReadWriteOncePod",
        ),
        (json!({"selector": {"matchLabels": {"a": "b"}}}), json!({}), "claim.spec.selector is not supported"),
        (
            json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "d"}}),
            json!({}),
            "claim.spec.dataSource is not supported",
        ),
        (json!({}), json!({"parameters": {"type": "ssd"}}), "the parameter \"type\" is unknown"),
        (json!({}), json!({"mountOptions": ["noatime"]}), "mountOptions are not supported"),
    ] {
        let mut cluster = Cluster::usual();
        let mut given = json!({"volumeBindingMode": "Immediate"});
        crate::sim::merge(&mut given, &class);
        cluster.class("now", given);
        let mut spec = json!({"storageClassName": "now"});
        crate::sim::merge(&mut spec, &claim);
        cluster.claim("c", spec);
        cluster.settle();
        assert!(cluster.volumes().is_empty());
        assert!(cluster.told.len() == 1 && cluster.told[0].contains(why), "{:?}", cluster.told);
    }
}

#[test]
fn a_claim_waits_for_its_class_for_its_provisioner_and_for_a_default() {
    let mut cluster = Cluster::usual();
    cluster.class("others", json!({"provisioner": "ebs.csi.aws.com"}));
    cluster.class("static", json!({"provisioner": "kubernetes.io/no-provisioner"}));
    for (name, class) in [("none", "nowhere"), ("external", "others"), ("by-hand", "static")] {
        cluster.claim(name, json!({"storageClassName": class}));
    }
    cluster.claim("default", json!({}));
    cluster.settle();
    assert!(cluster.told.contains(&"ProvisioningFailed: storageclass.storage.k8s.io \"nowhere\" not found".to_owned()));
    assert!(cluster.told.iter().any(|told| told.starts_with(
        "ExternalProvisioning: Waiting for a volume to be created either by the external provisioner 'ebs.csi.aws.com'"
    )));
    assert!(
        cluster
            .told
            .contains(&"ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner".to_owned())
    );
    assert_eq!(
        cluster.get(CLAIM, "ns/external", "/metadata/annotations/volume.kubernetes.io~1storage-provisioner"),
        Some("ebs.csi.aws.com")
    );
    // A volume that somebody makes for it is bound as any other.
    cluster.volume("made", json!({"storageClassName": "others", "claimRef": {"namespace": "ns", "name": "external"}}));
    assert_eq!(cluster.settle().phase(CLAIM, "ns/external"), "Bound");
    // KEP-3333: a default that comes later.
    assert_eq!(cluster.get(CLAIM, "ns/default", "/spec/storageClassName"), None);
    let default = json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
    cluster.change(CLASS, "local", default);
    assert_eq!(cluster.settle().get(CLAIM, "ns/default", "/spec/storageClassName"), Some("local"));
}

#[test]
fn a_claim_in_use_stays_until_its_last_pod_is_gone() {
    let mut cluster = bound();
    cluster.pod("waiting", "c", None);
    cluster.pod("running", "c", Some("n1"));
    cluster.delete(CLAIM, "ns/c");
    cluster.settle();
    assert_eq!((cluster.phase(CLAIM, "ns/c"), cluster.volumes().len()), ("Bound", 1));
    cluster.delete(POD, "ns/running");
    cluster.settle();
    assert_eq!(cluster.phase(CLAIM, "ns/c"), "gone", "a pod without a node uses nothing");
}

/// A claim `c` that has its volume.
fn bound() -> Cluster {
    let mut cluster = Cluster::usual();
    cluster.claim("c", json!({"storageClassName": "local"}));
    cluster.change(CLAIM, "ns/c", json!({"metadata": {"annotations": {SELECTED_NODE: "n1"}}}));
    cluster.settle();
    assert_eq!(cluster.phase(CLAIM, "ns/c"), "Bound");
    cluster
}

#[test]
fn the_reclaim_policy_decides_what_becomes_of_a_volume_nobody_claims() {
    // Delete: the object waits for its directory, and goes with it.
    let mut cluster = bound();
    cluster.delete(CLAIM, "ns/c");
    cluster.settle();
    let left = cluster.volumes().remove(0);
    assert_eq!(left.finalizers(), ["proa.dev/local-volume"]);
    assert_eq!(cluster.phase(VOLUME, &left.name_any()), "Released");
    cluster.agent();
    assert!(cluster.settle().volumes().is_empty());
    // Retain: it keeps its data, and whose it was.
    let mut cluster = Cluster::new();
    cluster.volume("v", json!({}));
    cluster.claim("c", json!({"storageClassName": ""}));
    cluster.settle().delete(CLAIM, "ns/c");
    cluster.settle();
    assert_eq!((cluster.phase(VOLUME, "v"), cluster.get(VOLUME, "v", "/spec/claimRef/name")), ("Released", Some("c")));
    // Another claim of the name is not the one it was.
    cluster.claim("c", json!({"storageClassName": ""}));
    assert_eq!(cluster.settle().phase(CLAIM, "ns/c"), "Pending");
    // Until a user says that it may be given again.
    cluster.change(VOLUME, "v", json!({"spec": {"claimRef": null}}));
    assert_eq!(cluster.settle().phase(CLAIM, "ns/c"), "Bound");
    // Delete without anybody who could.
    let mut cluster = Cluster::new();
    cluster.volume("v", json!({"persistentVolumeReclaimPolicy": "Delete"}));
    cluster.claim("c", json!({"storageClassName": ""}));
    cluster.settle().delete(CLAIM, "ns/c");
    cluster.settle();
    assert_eq!(cluster.phase(VOLUME, "v"), "Failed");
    assert!(cluster.told.last().unwrap().ends_with("no deletable volume plugin matched"), "{:?}", cluster.told);
}

#[test]
fn a_bound_volume_that_is_deleted_stays_until_its_claim_is_gone() {
    let mut cluster = bound();
    let name = cluster.volumes()[0].name_any();
    cluster.delete(VOLUME, &name);
    cluster.settle();
    cluster.agent();
    cluster.settle();
    assert_eq!((cluster.phase(VOLUME, &name), cluster.phase(CLAIM, "ns/c")), ("Bound", "Bound"));
    cluster.delete(CLAIM, "ns/c");
    cluster.settle();
    assert_eq!(cluster.volumes()[0].finalizers(), ["proa.dev/local-volume"]);
}

#[test]
fn a_volume_whose_node_is_gone_goes_without_its_directory() {
    let mut cluster = bound();
    cluster.delete(NODE, "n1");
    cluster.settle();
    assert_eq!(cluster.phase(CLAIM, "ns/c"), "Bound", "the node may come back");
    cluster.delete(CLAIM, "ns/c");
    assert!(cluster.settle().volumes().is_empty());
    assert_eq!(
        cluster.told.last().unwrap(),
        "VolumeFailedDelete: node \"n1\" no longer exists: the volume's directory on it was not removed"
    );
}

#[test]
fn a_claim_whose_volume_is_lost_says_so_and_stays_lost() {
    let mut cluster = bound();
    let name = cluster.volumes()[0].name_any();
    cluster.world.delete(VOLUME, &key(&name));
    cluster.settle();
    assert_eq!(cluster.phase(CLAIM, "ns/c"), "Lost");
    assert_eq!(
        cluster.told.last().unwrap(),
        "ClaimLost: Bound claim has lost its PersistentVolume. Data on the volume is lost!"
    );
    let mut cluster = bound();
    let name = cluster.volumes()[0].name_any();
    cluster.change(VOLUME, &name, json!({"spec": {"claimRef": {"uid": "another", "name": "d"}}}));
    cluster.settle();
    assert_eq!(
        cluster.told.last().unwrap(),
        "ClaimMisbound: Two claims are bound to the same volume, this one is bound incorrectly"
    );
}

#[test]
fn of_two_volumes_for_one_claim_the_one_it_did_not_take_is_given_back() {
    let mut cluster = Cluster::new();
    for name in ["ours", "theirs", "taken"] {
        cluster.volume(name, json!({}));
    }
    cluster.claim("c", json!({"storageClassName": "", "volumeName": "taken"}));
    let uid = cluster.get(CLAIM, "ns/c", "/metadata/uid").unwrap().to_owned();
    // As if a crash had left the first half of two other bindings.
    let reference = json!({"spec": {"claimRef": {"namespace": "ns", "name": "c", "uid": uid}}});
    cluster.change(VOLUME, "ours", reference.clone());
    cluster.change(
        VOLUME,
        "ours",
        json!({"metadata": {"annotations": {"pv.kubernetes.io/bound-by-controller": "yes"}}}),
    );
    cluster.change(VOLUME, "theirs", reference);
    cluster.settle();
    assert_eq!(cluster.get(VOLUME, "taken", "/status/phase"), Some("Bound"));
    assert_eq!(cluster.world.raw(VOLUME, &key("ours")).unwrap().pointer("/spec/claimRef"), None);
    assert_eq!(cluster.get(VOLUME, "theirs", "/spec/claimRef/name"), Some("c"), "a user kept it for the claim");
    assert_eq!(cluster.get(VOLUME, "theirs", "/spec/claimRef/uid"), None);
}

#[test]
fn a_claim_grows_with_its_directory() {
    let mut cluster = bound();
    cluster.change(CLAIM, "ns/c", json!({"spec": {"resources": {"requests": {"storage": "5Gi"}}}}));
    cluster.settle();
    let name = cluster.volumes()[0].name_any();
    assert_eq!(cluster.get(VOLUME, &name, "/spec/capacity/storage"), Some("5Gi"));
    assert_eq!(cluster.get(CLAIM, "ns/c", "/status/capacity/storage"), Some("5Gi"));
    assert!(cluster.told.last().unwrap().starts_with("VolumeResizeSuccessful"));
    // A volume of somebody else's grows by its own resizer.
    let mut cluster = Cluster::new();
    cluster.volume("v", json!({}));
    cluster.claim("c", json!({"storageClassName": ""}));
    cluster.settle();
    cluster.change(CLAIM, "ns/c", json!({"spec": {"resources": {"requests": {"storage": "5Gi"}}}}));
    assert_eq!(cluster.settle().get(CLAIM, "ns/c", "/status/capacity/storage"), Some("1Gi"));
}

#[test]
fn an_unprotected_claim_or_volume_is_protected() {
    let mut cluster = Cluster::new();
    cluster.volume("v", json!({}));
    cluster.claim("c", json!({"storageClassName": ""}));
    for (kind, name) in [(CLAIM, "ns/c"), (VOLUME, "v")] {
        cluster.change(kind, name, json!({"metadata": {"finalizers": ["example.com/mine"]}}));
    }
    cluster.settle();
    let finalizers = |kind, name| cluster.world.raw(kind, &key(name)).unwrap()["metadata"]["finalizers"].clone();
    assert_eq!(finalizers(CLAIM, "ns/c"), json!(["example.com/mine", "kubernetes.io/pvc-protection"]));
    assert_eq!(finalizers(VOLUME, "v"), json!(["example.com/mine", "kubernetes.io/pv-protection"]));
}

#[test]
fn an_ephemeral_volume_has_a_claim_of_its_pod() {
    let template = json!({"metadata": {"labels": {"tier": "data"}}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let pod = |more: Value| {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "p1"}, "spec": {"containers": [],
            "volumes": [{"name": "a", "ephemeral": {"volumeClaimTemplate": template}}, {"name": "b", "ephemeral": {"volumeClaimTemplate": template}}]}});
        crate::sim::merge(&mut pod, &more);
        Arc::new(serde_json::from_value::<Pod>(pod).unwrap())
    };
    let claim = |uid: &str| -> Arc<PersistentVolumeClaim> {
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true});
        Arc::new(serde_json::from_value(json!({"metadata": {"ownerReferences": [owner]}})).unwrap())
    };
    let resource = proa_crds::Family::Standard.pod();
    let plan = |pod: Arc<Pod>, claims: Vec<(&str, Arc<PersistentVolumeClaim>)>| {
        let claims = claims.into_iter().map(|(name, claim)| (name.to_owned(), claim)).collect();
        ephemeral::plan(&ephemeral::Seen { pod, claims, resource: resource.clone() })
    };
    let both = plan(pod(json!({})), vec![]);
    assert_eq!(ephemeral::made(&both), ["p-a", "p-b"]);
    let ephemeral::Action::Create(first) = &both.actions[0] else { panic!("{both:?}") };
    assert!(crate::owners::is_controlled_by(&first.metadata, "p1"));
    assert_eq!(first.labels()["tier"], "data");
    assert_eq!(ephemeral::made(&plan(pod(json!({})), vec![("p-a", claim("p1"))])), ["p-b"]);
    assert_eq!(ephemeral::made(&plan(pod(json!({})), vec![("p-a", claim("p0"))])), ["p-b", "p-a is taken"]);
    let going = pod(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    assert!(plan(going, vec![]).actions.is_empty());
    assert!(plan(pod(json!({"status": {"phase": "Failed"}})), vec![]).actions.is_empty());
}

#[test]
fn the_claim_of_an_ephemeral_volume_does_not_wait_for_a_pod_that_is_as_good_as_gone() {
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": {"name": "p-a", "namespace": "ns",
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p1", "controller": true}]}}))
    .unwrap();
    let pod = |more: Value| -> Pod {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "p1"},
            "spec": {"nodeName": "n1", "containers": [], "volumes": [{"name": "a", "ephemeral": {}}]}});
        crate::sim::merge(&mut pod, &more);
        serde_json::from_value(pod).unwrap()
    };
    assert!(claim::uses(&pod(json!({})), &claim));
    assert!(!claim::uses(&pod(json!({"metadata": {"uid": "p2"}})), &claim));
    let deleted = |grace: i64| json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": grace}});
    assert!(claim::uses(&pod(deleted(30)), &claim));
    assert!(!claim::uses(&pod(deleted(0)), &claim));
}
