//! Pods with persistent volumes.

use super::world::*;
use crate::{
    Key,
    scheduler::{
        cluster::{Cluster, storage::VolumePlan},
        core::Step,
    },
};
use serde_json::{Value, json};
use std::sync::Arc;

fn claim(cluster: &mut Cluster, name: &str, class: &str, extra: Value) {
    let value = json!({"metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}")},
        "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"}});
    let object = serde_json::from_value(and(value, extra)).unwrap();
    cluster.storage.claims.insert(Key::new("ns", name), Arc::new(object));
}

fn volume(cluster: &mut Cluster, name: &str, node: &str, size: &str, extra: Value) {
    let on_node = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [node]});
    let value = json!({"metadata": {"name": name}, "status": {"phase": "Available"},
        "spec": {"storageClassName": "static", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": size},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on_node]}]}}}});
    let object = serde_json::from_value(and(value, extra)).unwrap();
    cluster.storage.volumes.insert(name.to_owned(), Arc::new(object));
}

fn classes(cluster: &mut Cluster) {
    for (name, provisioner, mode) in [
        ("local", "proa.dev/local", "WaitForFirstConsumer"),
        ("static", "kubernetes.io/no-provisioner", "WaitForFirstConsumer"),
        ("fast", "example.com/fast", "Immediate"),
    ] {
        let value = json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
        cluster.storage.classes.insert(name.to_owned(), Arc::new(serde_json::from_value(value).unwrap()));
    }
}

fn with_claims(names: &[&str]) -> Value {
    let volumes: Vec<Value> =
        names.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}})).collect();
    json!({"spec": {"volumes": volumes}})
}

fn bound_to(volume: &str) -> Value {
    json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": volume},
        "status": {"phase": "Bound"}})
}

fn two_nodes() -> Cluster {
    let mut cluster = cluster(&["a", "b"].map(|name| node(name, json!({}))), &[]);
    classes(&mut cluster);
    cluster
}

#[test]
fn what_is_wrong_with_a_claim_is_told_in_kubernetes_words() {
    let cases: [(&str, Value, &str); 5] = [
        ("absent", json!(null), "persistentvolumeclaim \"absent\" not found"),
        (
            "going",
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            "persistentvolumeclaim \"going\" is being deleted",
        ),
        (
            "lost",
            json!({"status": {"phase": "Lost"}, "spec": {"volumeName": "v"}}),
            "persistentvolumeclaim \"lost\" bound to non-existent persistentvolume \"v\"",
        ),
        ("fast", json!({"spec": {"storageClassName": "fast"}}), "pod has unbound immediate PersistentVolumeClaims"),
        ("gone", bound_to("nothing"), "2 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"),
    ];
    for (name, extra, expected) in cases {
        let mut cluster = two_nodes();
        if !extra.is_null() {
            claim(&mut cluster, name, "local", extra);
        }
        let pod = pod("p", "1m", with_claims(&[name]));
        assert_eq!(said(&mut cluster, &pod), format!("0/2 nodes are available: {expected}."));
    }
}

#[test]
fn a_bound_claim_draws_its_pod_to_where_the_volume_is() {
    let mut cluster = two_nodes();
    volume(&mut cluster, "v", "b", "1Gi", json!({}));
    claim(&mut cluster, "data", "static", bound_to("v"));
    assert_eq!(said(&mut cluster, &pod("p", "1m", with_claims(&["data"]))), "b");
    volume(&mut cluster, "v", "elsewhere", "1Gi", json!({}));
    assert_eq!(
        said(&mut cluster, &pod("p", "1m", with_claims(&["data"]))),
        "0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity."
    );
}

#[test]
fn a_claim_that_waits_takes_the_smallest_volume_that_will_do_and_two_claims_never_the_same() {
    let mut cluster = two_nodes();
    for (name, node, size) in [("big", "a", "9Gi"), ("small", "a", "2Gi"), ("tiny", "a", "1Mi"), ("other", "b", "1Gi")]
    {
        volume(&mut cluster, name, node, size, json!({}));
    }
    claim(&mut cluster, "one", "static", json!({}));
    claim(&mut cluster, "two", "static", json!({}));
    let both = pod("p", "1m", with_claims(&["one", "two"]));
    assert_eq!(said(&mut cluster, &both), "a", "only there are two that will do");
    let info = crate::scheduler::cluster::pod::PodInfo::of(both);
    let a = cluster.node(cluster.slot("a").unwrap()).unwrap();
    let plan = cluster.storage.plan(&info, a).unwrap();
    let expected = [("small", "one"), ("big", "two")].map(|(volume, claim)| (volume.to_owned(), Key::new("ns", claim)));
    assert_eq!(plan.bind, expected);
    // What is decided is taken, before anybody has seen it.
    cluster
        .storage
        .reserve(&VolumePlan { bind: vec![("small".into(), Key::new("ns", "third"))], ..Default::default() });
    assert_eq!(
        said(&mut cluster, &pod("q", "1m", with_claims(&["one", "two"]))),
        "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind."
    );
}

#[test]
fn a_claim_with_a_provisioner_goes_anywhere_once_and_then_stays() {
    let mut core = core(&["a", "b"].map(|name| node(name, json!({}))));
    classes(&mut core.cluster);
    claim(&mut core.cluster, "data", "local", json!({}));
    let waits = pod("p", "1m", with_claims(&["data"]));
    tell(&mut core, &waits, MS(0));
    let Some(Step::Bind(binding)) = core.next(MS(0)) else { panic!() };
    assert_eq!(binding.volumes.provision, [Key::new("ns", "data")]);
    // The provisioner is told; the annotation names the other node by now, and the next decision respects it.
    core.binding_failed(&waits, MS(1));
    let other = if &*binding.node == "a" { "b" } else { "a" };
    let selected = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": other}}});
    claim(&mut core.cluster, "data", "local", selected);
    assert_eq!(next(&mut core, MS(100)).unwrap(), format!("p to {other}"));
}

#[test]
fn a_claim_that_appears_lets_its_pod_in() {
    let mut core = core(&[node("a", json!({}))]);
    classes(&mut core.cluster);
    tell(&mut core, &pod("p", "1m", with_claims(&["data"])), MS(0));
    assert!(
        next(&mut core, MS(0))
            .unwrap()
            .starts_with("p: 0/1 nodes are available: persistentvolumeclaim \"data\" not found.")
    );
    claim(&mut core.cluster, "data", "local", json!({}));
    core.storage_changed(MS(1000));
    assert_eq!(next(&mut core, MS(1000)).unwrap(), "p to a");
}

#[test]
fn a_claim_for_one_pod_is_for_one_pod() {
    let mut cluster = two_nodes();
    volume(&mut cluster, "v", "a", "1Gi", json!({"spec": {"accessModes": ["ReadWriteOncePod"]}}));
    claim(&mut cluster, "data", "static", and(bound_to("v"), json!({"spec": {"accessModes": ["ReadWriteOncePod"]}})));
    let holder = on("a", "holder", "1m", with_claims(&["data"]));
    cluster.add_pod("a", Arc::new(crate::scheduler::cluster::pod::PodInfo::of(holder)));
    let said = said(&mut cluster, &pod("p", "1m", with_claims(&["data"])));
    let why = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
    assert_eq!(said, format!("0/2 nodes are available: 2 {why}."));
    let important = pod("vip", "1m", and(with_claims(&["data"]), json!({"spec": {"priority": 5}})));
    assert_eq!(preempted(&mut cluster, &important), Ok(("a".to_owned(), vec!["holder".to_owned()])));
}

#[test]
fn zones_of_volumes_and_limits_of_nodes_hold() {
    let mut cluster = cluster(&[zoned("a1", "a"), zoned("b1", "b")], &[]);
    classes(&mut cluster);
    let csi = |handle: &str| {
        json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "b"}},
        "spec": {"nodeAffinity": null, "csi": {"driver": "example.com", "volumeHandle": handle}}})
    };
    volume(&mut cluster, "v", "", "1Gi", csi("1"));
    claim(&mut cluster, "data", "fast", bound_to("v"));
    assert_eq!(said(&mut cluster, &pod("p", "1m", with_claims(&["data"]))), "b1");
    cluster.storage.limits.insert("b1".to_owned(), [("example.com".to_owned(), 0)].into());
    assert_eq!(
        said(&mut cluster, &pod("p", "1m", with_claims(&["data"]))),
        "0/2 nodes are available: 1 node(s) exceed max volume count, 1 node(s) had no available volume zone."
    );
}
