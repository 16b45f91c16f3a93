//! Stories and laws of one replica set.

use super::*;
use crate::sim::merge;
use serde_json::Value;

fn now() -> Timestamp {
    "2026-11-21T10:00:00Z".parse().expect("a time")
}

fn set(replicas: i32, edit: Value) -> Arc<ReplicaSet> {
    let mut set = json!({
        "metadata": {"name": "web-1", "namespace": "ns", "uid": "set", "generation": 3},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web", "tier": "front"}, "annotations": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}},
        },
    });
    merge(&mut set, &edit);
    Arc::new(serde_json::from_value(set).expect("a replica set"))
}

fn pod(name: &str, edit: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {
            "name": name, "namespace": "ns", "uid": name, "labels": {"app": "web", "tier": "front"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "set", "controller": true}],
        },
        "spec": {"containers": [{"name": "c"}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-21T09:59:55Z"}]},
    });
    merge(&mut pod, &edit);
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

fn planned(set: Arc<ReplicaSet>, pods: Vec<Arc<Pod>>) -> Plan<Action> {
    let (pods, orphans) = pods.into_iter().partition(|pod| owners::controller_of(&pod.metadata).is_some());
    plan(&Seen { replica_set: set, pods, orphans, related: Vec::new() }, now())
}

fn only_status(plan: Plan<Action>) -> ReplicaSetStatus {
    match plan.actions.as_slice() {
        [Action::Status(status)] => *status.clone(),
        other => panic!("not only a status: {other:?}"),
    }
}

#[test]
fn a_selector_that_does_not_select_the_templates_own_pods_makes_none_and_says_so_once() {
    let mismatch = json!({"spec": {"selector": {"matchLabels": {"app": "other"}}}});
    for replicas in [0, 3] {
        let refused = set(replicas, mismatch.clone());
        let plan = planned(refused.clone(), vec![pod("a", json!({}))]);
        let [Action::Refuse(status)] = plan.actions.as_slice() else { panic!("{plan:?}") };
        let condition = &status.conditions.as_ref().expect("conditions")[0];
        assert_eq!(
            (condition.type_.as_str(), condition.reason.as_deref(), condition.message.as_deref()),
            ("ReplicaFailure", Some("SelectorMismatch"), Some("`selector` does not match template `labels`"))
        );
        let told = Arc::new(ReplicaSet { status: Some(*status.clone()), ..ReplicaSet::clone(&refused) });
        assert!(planned(told, vec![]).actions.is_empty());
    }
}

#[test]
fn missing_pods_are_created_and_the_dead_and_the_leaving_do_not_count() {
    let pods = vec![
        pod("a", json!({})),
        pod("b", json!({"status": {"phase": "Failed"}})),
        pod("c", json!({"metadata": {"deletionTimestamp": "2026-11-21T09:59:00Z"}})),
    ];
    match planned(set(3, json!({})), pods).actions.as_slice() {
        [Action::Create(2, _)] => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_burst_is_bounded() {
    assert!(matches!(planned(set(2000, json!({})), vec![]).actions.as_slice(), [Action::Create(500, _)]));
}

#[test]
fn surplus_pods_are_deleted_unready_first() {
    let pods = vec![pod("a", json!({})), pod("b", json!({"status": {"conditions": []}})), pod("c", json!({}))];
    match planned(set(2, json!({})), pods).actions.as_slice() {
        [Action::Delete(gone, _)] => assert_eq!(gone[0].name_any(), "b"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_status_counts_what_is_there() {
    let pods = vec![
        pod("a", json!({})),
        pod("b", json!({"metadata": {"labels": {"tier": null}}})),
        pod("c", json!({"status": {"conditions": []}})),
        pod("d", json!({"metadata": {"deletionTimestamp": "2026-11-21T09:59:00Z"}})),
    ];
    let status = only_status(planned(set(3, json!({})), pods));
    assert_eq!((status.replicas, status.ready_replicas, status.available_replicas), (3, Some(2), Some(2)));
    assert_eq!(
        (status.fully_labeled_replicas, status.terminating_replicas, status.observed_generation),
        (Some(2), Some(1), Some(3))
    );
}

#[test]
fn a_ready_pod_becomes_available_after_min_ready_seconds_and_the_set_is_looked_at_then() {
    let plan = planned(set(1, json!({"spec": {"minReadySeconds": 8}})), vec![pod("a", json!({}))]);
    assert_eq!(plan.again, Some(std::time::Duration::from_secs(3)));
    assert_eq!(only_status(plan).available_replicas, None);
}

#[test]
fn nothing_to_do_is_an_empty_plan() {
    let mut set = (*set(1, json!({}))).clone();
    set.status = Some(only_status(planned(Arc::new(set.clone()), vec![pod("a", json!({}))])));
    assert!(planned(Arc::new(set), vec![pod("a", json!({}))]).actions.is_empty());
}

#[test]
fn orphans_are_adopted_and_strangers_released_before_anything_else() {
    let orphan = pod("o", json!({"metadata": {"ownerReferences": null}}));
    let stranger = pod("s", json!({"metadata": {"labels": {"app": "other"}}}));
    match planned(set(5, json!({})), vec![orphan, stranger]).actions.as_slice() {
        [Action::Adopt(a), Action::Release(r)] => assert_eq!((a.name_any(), r.name_any()), ("o".into(), "s".into())),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_set_that_is_being_deleted_neither_creates_nor_adopts() {
    let leaving = set(5, json!({"metadata": {"deletionTimestamp": "2026-11-21T09:59:00Z"}}));
    let orphan = pod("o", json!({"metadata": {"ownerReferences": null}}));
    only_status(planned(leaving, vec![orphan]));
}

#[test]
fn pods_follow_the_kept_configuration_of_their_set_both_ways() {
    let pinned = set(1, json!({"metadata": {"annotations": {annotations::CONFIG_REVISION: "web-1-config"}}}));
    match planned(pinned, vec![pod("a", json!({}))]).actions.as_slice() {
        [Action::PointToConfig(pods, Some(secret)), ..] => {
            assert_eq!((pods.len(), secret.as_str()), (1, "web-1-config"))
        }
        other => panic!("{other:?}"),
    }
    let pinned_pod = pod("a", json!({"metadata": {"annotations": {annotations::CONFIG_REVISION: "web-1-config"}}}));
    assert!(matches!(
        planned(set(1, json!({})), vec![pinned_pod]).actions.as_slice(),
        [Action::PointToConfig(_, None), ..]
    ));
}

#[test]
fn a_failure_stands_until_the_size_is_right() {
    let status = failed(ReplicaSetStatus::default(), reasons::FAILED_CREATE, "quota".into(), now());
    let failing = set(2, json!({"status": json(&status)}));
    match planned(failing.clone(), vec![pod("a", json!({}))]).actions.as_slice() {
        [Action::Create(1, status)] => assert_eq!(status.conditions.as_ref().map(Vec::len), Some(1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(only_status(planned(failing, vec![pod("a", json!({})), pod("b", json!({}))])).conditions, None);
}

#[test]
fn a_pod_is_what_its_template_says() {
    let family = proa_crds::Family::Proa;
    let pinned = set(1, json!({"metadata": {"annotations": {annotations::CONFIG_REVISION: "kept", "other": "no"}}}));
    let pod = pod_of(&pinned, &family.replica_set(), &family.pod());
    assert_eq!(pod.metadata.generate_name.as_deref(), Some("web-1-"));
    assert_eq!(pod.annotations().keys().collect::<Vec<_>>(), ["a", annotations::CONFIG_REVISION]);
    assert_eq!(pod.labels().len(), 2);
    let owner = owners::controller_of(&pod.metadata).expect("an owner");
    assert_eq!(
        (owner.api_version.as_str(), owner.uid.as_str(), owner.block_owner_deletion),
        ("proa.dev/v1", "set", Some(true))
    );
}
