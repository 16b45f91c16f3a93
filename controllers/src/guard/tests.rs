//! What a guard does about one stateful set, step by step.

use super::{
    is_held,
    plan::{Action, Seen, plan},
    reach,
    ward::Ward,
};
use crate::{
    history::data_of,
    rollback::{Live, Surroundings, marks},
    sim::merge,
};
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::PodTemplateSpec, apimachinery::pkg::apis::meta::v1::Time};
use proa_crds::{ControllerRevision, Failure, Family, Pod, annotations};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

fn now() -> Timestamp {
    "2026-11-21T10:00:00Z".parse().expect("a time")
}

fn template(image: &str) -> PodTemplateSpec {
    let volumes = json!([{"name": "v", "configMap": {"name": "conf"}}]);
    serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "image": image}], "volumes": volumes}}))
        .expect("a template")
}

fn revision(number: i64, image: &str, notes: Value) -> Arc<ControllerRevision> {
    let mut held = json!({annotations::CURRENT_AS: number.to_string()});
    merge(&mut held, &notes);
    let meta =
        json!({"name": format!("db-{image}"), "namespace": "ns", "uid": format!("uid-{image}"), "annotations": held});
    Arc::new(ControllerRevision {
        types: None,
        metadata: serde_json::from_value(meta).expect("metadata"),
        data: data_of(&template(image)),
        revision: number,
    })
}

fn pod(name: &str, status: Value) -> Arc<Pod> {
    let created = Time(now() - Duration::from_secs(60));
    let pod = json!({"metadata": {"name": name, "creationTimestamp": created}, "spec": {"containers": [], "nodeName": "n"}, "status": status});
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

fn ready() -> Value {
    json!({"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": Time(now() - Duration::from_secs(60))}]})
}

fn crashing() -> Value {
    json!({"containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 1,
        "state": {"terminated": {"exitCode": 3}}}]})
}

/// A set at the last of these revisions, of which the pods of that status run; the policy is the default.
fn seen(revisions: &[Arc<ControllerRevision>], status: Value, notes: Value) -> Seen {
    let current = revisions.last().expect("one").clone();
    let name = current.metadata.name.clone().expect("a name");
    let image = name.trim_start_matches("db-");
    let meta = json!({"name": "db", "namespace": "ns", "resourceVersion": "7", "annotations": notes});
    let map: k8s_openapi::api::core::v1::ConfigMap =
        serde_json::from_value(json!({"data": {"k": "new"}})).expect("a map");
    Seen {
        family: Family::Standard,
        ward: Ward {
            meta: serde_json::from_value(meta).expect("metadata"),
            template: template(image),
            conditions: Vec::new(),
            wanted: 1,
            complete: false,
        },
        revisions: revisions.to_vec(),
        pods: BTreeMap::from([(name, vec![pod("db-0", status)])]),
        current: Some(current),
        policy: Some(Default::default()),
        live: Live { config_maps: [("conf".to_owned(), Arc::new(map))].into(), ..Live::default() },
        around: Surroundings::default(),
        checks: BTreeMap::new(),
    }
}

fn healthy() -> Value {
    json!({annotations::HEALTHY: "2026-11-21T09:00:00Z"})
}

fn failed(to: &str) -> Value {
    let failure = Failure { reason: "CrashLoop".into(), message: "boom".into(), to: to.into(), ..Failure::default() };
    json!({annotations::FAILURE: marks::failed_with(&failure)[annotations::FAILURE]})
}

fn actions(seen: &Seen) -> Vec<Action> {
    plan(seen, now()).actions
}

/// The condition of that type as the actions leave it.
fn said(actions: &[Action], type_: &str) -> Option<(String, String)> {
    let list = actions.iter().find_map(|action| match action {
        Action::Conditions(list) => Some(list),
        _ => None,
    })?;
    let found = list.iter().find(|held| held.type_ == type_)?;
    Some((found.status.clone(), found.message.clone().unwrap_or_default()))
}

#[test]
fn a_crashing_revision_is_marked_said_and_taken_back() {
    let v1 = revision(1, "v1", healthy());
    let marked = actions(&seen(&[v1.clone(), revision(2, "v2", json!({}))], crashing(), json!({})));
    let [Action::MarkFailed { revision: name, failure, .. }] = &marked[..] else { panic!("{marked:?}") };
    assert_eq!((name.as_str(), failure.reason.as_str(), failure.to.as_str()), ("db-v2", "CrashLoop", "db-v1"));

    let mut told = seen(&[v1, revision(2, "v2", failed("db-v1"))], crashing(), json!({}));
    let first = actions(&told);
    let (status, message) = said(&first, "RolledBack").expect("it is said");
    assert_eq!(status, "True");
    assert!(
        message.starts_with("revision 2 failed (CrashLoop: boom); went back to revision 1, which is now revision 3"),
        "{message}"
    );
    assert!(matches!(&first[0], Action::Note(note) if note.reason == "RolledBack"));

    // Then the template is put back, even when its pods have gone since.
    let Some(Action::Conditions(list)) = first.into_iter().find(|action| matches!(action, Action::Conditions(_)))
    else {
        panic!("said")
    };
    told.ward.conditions = list;
    told.pods.clear();
    let second = actions(&told);
    let [Action::Patch(patch)] = &second[..] else { panic!("{second:?}") };
    assert_eq!(patch["metadata"]["resourceVersion"], "7");
    assert_eq!(patch.pointer("/spec/template/spec/containers/0/image"), Some(&json!("v1")));
}

#[test]
fn a_revision_known_to_fail_is_refused_without_a_pod_and_tried_again_when_asked() {
    let revisions = [revision(3, "v1", healthy()), revision(4, "v2", failed("db-v1"))];
    let mut applied = seen(&revisions, crashing(), json!({}));
    applied.pods.clear();
    let (status, message) = said(&actions(&applied), "RolloutRefused").expect("it is said");
    assert!(status == "True" && message.contains("known to fail") && message.contains("revision 3 stays"), "{message}");
    let again = seen(&revisions, crashing(), json!({annotations::RETRY: "1"}));
    let again = actions(&again);
    assert!(
        matches!(&again[0], Action::Mark { revision, changes } if revision == "db-v2" && changes[annotations::FAILURE].is_null()),
        "{again:?}"
    );
}

#[test]
fn a_policy_that_pauses_or_alerts_says_so_and_leaves_the_template() {
    let revisions = [revision(1, "v1", healthy()), revision(2, "v2", failed(""))];
    for (action, condition) in [("Pause", "RolloutPaused"), ("Alert", "RolloutFailed")] {
        let mut seen = seen(&revisions, crashing(), json!({}));
        seen.policy = Some(serde_json::from_value(json!({"action": action})).expect("a policy"));
        let done = actions(&seen);
        assert_eq!(said(&done, condition).expect("it is said").0, "True");
        assert!(!done.iter().any(|action| matches!(action, Action::Patch(_))), "{done:?}");
    }
}

#[test]
fn the_loop_of_the_kind_holds_still_while_the_object_tells_that_its_revision_failed() {
    let object = |notes: Value| serde_json::from_value(json!({"annotations": notes})).expect("metadata");
    let bad = revision(2, "v2", failed("db-v1"));
    let told = json!({annotations::FAILED_REVISIONS: "[]"});
    assert!(is_held(&object(told.clone()), &bad));
    assert!(!is_held(&object(json!({})), &bad), "no policy wants it held");
    assert!(!is_held(&object(told.clone()), &revision(1, "v1", healthy())));
    let again = revision(3, "v1", json!({annotations::CURRENT_AS: "1"}));
    assert!(is_held(&object(json!({})), &again), "until it is known what its pods read");
    let mut retried = told;
    merge(&mut retried, &json!({annotations::RETRY: "1"}));
    assert!(!is_held(&object(retried), &bad));
}

#[test]
fn a_gradual_rollout_reaches_as_many_pods_as_its_step_says_and_no_pod_before_it_has_one() {
    let object = |notes: Value| serde_json::from_value(json!({"annotations": notes})).expect("metadata");
    let gradual = || object(json!({annotations::GRADUAL: "true"}));
    let limited = |limit: &str| revision(2, "v2", json!({annotations::ROLLOUT_LIMIT: limit}));
    assert_eq!(reach(&gradual(), &revision(2, "v2", json!({}))), Some(0));
    assert_eq!(reach(&gradual(), &limited("3")), Some(3));
    assert_eq!(reach(&gradual(), &limited("all")), None);
    assert_eq!(reach(&gradual(), &revision(2, "v2", healthy())), None, "what has proven itself comes back at once");
    assert_eq!(reach(&object(json!({})), &revision(2, "v2", json!({}))), None);

    let of = |status: Value, notes: Value| {
        let mut seen = seen(
            &[revision(1, "v1", healthy()), revision(2, "v2", notes)],
            status,
            json!({annotations::GRADUAL: "true"}),
        );
        seen.policy =
            Some(serde_json::from_value(json!({"steps": [{"percent": 25, "waitSeconds": 60}]})).expect("a policy"));
        seen.ward.wanted = 4;
        seen.pods.insert("db-v1".into(), vec![pod("db-0", ready())]);
        seen
    };
    let marked = |seen: &Seen, key: &str| {
        actions(seen).iter().find_map(|action| match action {
            Action::Mark { changes, .. } => changes.get(key).and_then(Value::as_str).map(str::to_owned),
            _ => None,
        })
    };
    let starting = json!({"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": Time(now())}]});
    assert_eq!(marked(&of(starting, json!({})), annotations::ROLLOUT_LIMIT).as_deref(), Some("1"));
    let reached =
        marked(&of(ready(), json!({annotations::ROLLOUT_LIMIT: "1"})), annotations::STEP).expect("the step is reached");
    let waiting = of(ready(), json!({annotations::ROLLOUT_LIMIT: "1", annotations::STEP: reached}));
    assert_eq!(plan(&waiting, now()).again, Some(Duration::from_secs(60)));
    let past = json!({annotations::ROLLOUT_LIMIT: "1", annotations::STEP: json!({"step": 1}).to_string()});
    assert_eq!(marked(&of(ready(), past), annotations::ROLLOUT_LIMIT).as_deref(), Some("all"));
    let mut alone = of(ready(), json!({}));
    alone.pods.remove("db-v1");
    assert_eq!(marked(&alone, annotations::ROLLOUT_LIMIT).as_deref(), Some("all"), "it replaces nothing");
}

#[test]
fn pods_made_of_a_revision_that_was_gone_back_to_read_its_copy() {
    let gone_back = revision(3, "v1", json!({annotations::CONFIG_REVISION: "db-config-1"}));
    let made = super::configured(Pod::clone(&pod("db-0", ready())), &gone_back);
    assert_eq!(marks::note(&made.metadata, annotations::CONFIG_REVISION), Some("db-config-1"));
    let plain = super::configured(Pod::clone(&pod("db-0", ready())), &revision(3, "v1", json!({})));
    assert_eq!(plain.metadata.annotations, None);
}

#[test]
fn an_undo_brings_back_configuration_and_what_appliers_remember_and_an_apply_does_not() {
    let record = |image: &str| json!({"spec": {"template": {"image": image}}}).to_string();
    let kept = |image: &str| {
        let mut notes = healthy();
        merge(
            &mut notes,
            &json!({annotations::APPLIED_CONFIGURATION: record(image), annotations::CONFIG_COPY: "db-config-1"}),
        );
        notes
    };
    let arrived = |last_applied: String| {
        let v2 = revision(2, "v2", kept("v2"));
        let mut notes = kept("v1");
        merge(&mut notes, &json!({annotations::CURRENT_AS: "1"}));
        let v1 = revision(3, "v1", notes);
        let mut seen = seen(&[v2, v1], ready(), json!({annotations::LAST_APPLIED: last_applied}));
        let copy = json!({"type": annotations::CONFIG_REVISION_SECRET_TYPE, "metadata": {"name": "db-config-1"},
            "data": {"configmap.conf": k8s_openapi::ByteString(b"{}".to_vec())}});
        seen.live.secrets.insert("db-config-1".into(), Arc::new(serde_json::from_value(copy).expect("a secret")));
        actions(&seen)
    };
    let mark = |actions: &[Action]| {
        actions.iter().find_map(|action| match action {
            Action::Mark { revision, changes } if revision == "db-v1" => Some(changes.clone()),
            _ => None,
        })
    };
    let undone = arrived(record("v2"));
    assert_eq!(mark(&undone).expect("marked")[annotations::CONFIG_REVISION], "db-config-1");
    let patch = undone.iter().find_map(|action| match action {
        Action::Patch(patch) => Some(patch.clone()),
        _ => None,
    });
    let followed = patch.expect("the record follows")["metadata"]["annotations"][annotations::LAST_APPLIED].clone();
    assert!(followed.as_str().is_some_and(|record| record.contains("v1")), "{followed}");
    let applied = arrived(record("v1"));
    assert!(mark(&applied).expect("marked")[annotations::CONFIG_REVISION].is_null(), "live configuration");
    assert!(!applied.iter().any(|action| matches!(action, Action::Patch(_))));
}

#[test]
fn what_did_well_is_marked_and_its_configuration_kept() {
    let mut done = seen(&[revision(1, "v1", json!({}))], ready(), json!({}));
    done.ward.complete = true;
    let actions = actions(&done);
    let marks = |key: &str| {
        actions.iter().any(|action| matches!(action, Action::Mark { changes, .. } if changes.get(key).is_some_and(|value| !value.is_null())))
    };
    assert!(marks(annotations::HEALTHY) && marks(annotations::CONFIG_COPY), "{actions:?}");
    assert!(actions.iter().any(|action| matches!(action, Action::KeepConfig(_))));
}

#[test]
fn a_pod_that_is_not_ready_for_ten_minutes_holds_up_the_rollout() {
    let waiting = |seconds: u64| {
        let at = Time(now() - Duration::from_secs(seconds));
        json!({"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": at}]})
    };
    let revisions = [revision(1, "v1", healthy()), revision(2, "v2", json!({}))];
    let early = plan(&seen(&revisions, waiting(590), json!({})), now());
    assert_eq!(early.again, Some(Duration::from_secs(10)));
    let late = actions(&seen(&revisions, waiting(600), json!({})));
    assert!(
        matches!(&late[..], [Action::MarkFailed { failure, .. }] if failure.reason == "ProgressDeadlineExceeded"),
        "{late:?}"
    );
}
