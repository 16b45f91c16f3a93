//! How pods are made, counted, claimed and let go.

use super::world::Case;
use crate::job::{COMPLETION_INDEX, TRACKING_FINALIZER, pods};
use kube::ResourceExt;
use serde_json::json;

#[test]
fn a_job_runs_its_pod_and_is_complete_when_that_has_succeeded() {
    let mut case = Case::new(json!({"completions": 1}));
    case.run();
    let [pod] = &case.active()[..] else { panic!("{:?}", case.names()) };
    assert_eq!(pod.finalizers(), [TRACKING_FINALIZER]);
    assert!(pod.name_any().starts_with("work-"));
    let status = case.status();
    assert_eq!((status.active, status.ready, status.terminating), (Some(1), Some(0), Some(0)));
    assert!(status.start_time.is_some() && status.conditions.is_none());
    case.exit(&pod.clone(), 0);
    case.run();
    case.says(&[("SuccessCriteriaMet", "CompletionsReached"), ("Complete", "CompletionsReached")]);
    let status = case.status();
    assert_eq!((status.succeeded, status.failed, status.active), (Some(1), None, None));
    assert!(status.completion_time.is_some() && case.told("Completed"));
    assert!(case.pods()[0].finalizers().is_empty(), "a counted pod is held by nothing");
}

#[test]
fn as_many_pods_run_as_parallelism_allows_and_completions_still_need() {
    let mut case = Case::new(json!({"completions": 5, "parallelism": 3}));
    case.run();
    assert_eq!(case.active().len(), 3);
    for _ in 0..3 {
        case.exit(&case.active()[0].clone(), 0);
    }
    case.run();
    assert_eq!(case.active().len(), 2, "two are still needed");
    case.edit(json!({"spec": {"parallelism": 1}}));
    case.run();
    assert_eq!(case.active().len(), 1);
    case.edit(json!({"spec": {"parallelism": 0}}));
    case.run();
    case.reap();
    case.run();
    assert_eq!((case.active().len(), case.status().failed), (0, None), "pods taken away have not failed");
}

#[test]
fn without_completions_the_first_success_decides_and_the_others_are_waited_for() {
    let mut case = Case::new(json!({"parallelism": 3}));
    case.run();
    assert_eq!(case.active().len(), 3);
    case.exit(&case.active()[0].clone(), 0);
    case.run();
    assert_eq!(case.active().len(), 2);
    case.says(&[]);
    case.exit(&case.active()[0].clone(), 1);
    case.exit(&case.active()[0].clone(), 0);
    case.run();
    case.says(&[("SuccessCriteriaMet", "CompletionsReached"), ("Complete", "CompletionsReached")]);
    assert_eq!((case.status().succeeded, case.status().failed), (Some(2), Some(1)));
}

/// Conformance: "Ensure Pods of an Indexed Job get a unique index."
#[test]
fn pods_of_an_indexed_job_get_each_index_once_with_annotation_label_variable_and_hostname() {
    let mut case = Case::new(json!({"completions": 4, "parallelism": 2, "completionMode": "Indexed"}));
    case.run();
    assert_eq!(case.active_indexes(), [0, 1]);
    let pod = case.of_index(1);
    assert!(pod.name_any().starts_with("work-1-"));
    assert_eq!(pod.spec.hostname.as_deref(), Some("work-1"));
    assert_eq!((pod.annotations()[COMPLETION_INDEX].as_str(), pod.labels()[COMPLETION_INDEX].as_str()), ("1", "1"));
    let variable = &pod.spec.containers[0].env.as_ref().expect("variables")[0];
    let source = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref()).expect("a field");
    assert_eq!(
        (variable.name.as_str(), source.field_path.as_str()),
        ("JOB_COMPLETION_INDEX", "metadata.labels['batch.kubernetes.io/job-completion-index']")
    );
    for index in [1, 0, 3, 2] {
        case.run();
        if case.active_indexes().contains(&index) {
            case.exit(&case.of_index(index), 0);
        }
    }
    case.run();
    while let Some(pod) = case.active().first().cloned() {
        case.exit(&pod, 0);
        case.run();
    }
    assert_eq!((case.status().succeeded, case.status().completed_indexes.as_deref()), (Some(4), Some("0-3")));
    case.says(&[("SuccessCriteriaMet", "CompletionsReached"), ("Complete", "CompletionsReached")]);
}

/// Conformance: "Jobs, orphan pods, re-adoption".
#[test]
fn orphans_are_adopted_and_counted_and_strangers_are_let_go_uncounted() {
    let mut case = Case::new(json!({"completions": 2, "parallelism": 2}));
    case.run();
    let [one, two] = &case.active()[..] else { panic!("{:?}", case.names()) };
    case.patch_pod(&one.clone(), json!({"metadata": {"ownerReferences": []}}));
    case.patch_pod(&two.clone(), json!({"metadata": {"labels": {"batch.kubernetes.io/controller-uid": null}}}));
    case.run();
    let find = |case: &Case, name: &str| case.pods().into_iter().find(|pod| pod.name_any() == name).expect("a pod");
    let adopted = find(&case, &one.name_any());
    assert_eq!((adopted.owner_references().len(), adopted.finalizers().len()), (1, 1));
    let released = find(&case, &two.name_any());
    assert!(released.owner_references().is_empty() && released.finalizers().is_empty());
    assert_eq!(case.pods().len(), 3, "another one took its place");
}

#[test]
fn pods_of_a_job_that_is_gone_wait_for_nobody() {
    let mut case = Case::new(json!({"completions": 1}));
    case.run();
    case.orphan();
    case.run();
    assert!(case.pods()[0].finalizers().is_empty());
    assert_eq!(case.active().len(), 1, "it runs on");
}

#[test]
fn a_job_that_is_being_deleted_makes_no_pods_and_holds_none() {
    let mut case = Case::new(json!({"completions": 3, "parallelism": 2}));
    case.run();
    case.edit(json!({"metadata": {"deletionTimestamp": "2026-11-21T10:00:00Z", "finalizers": ["foregroundDeletion"]}}));
    case.delete(&case.active()[0].clone());
    case.run();
    assert!(case.pods().iter().all(|pod| !pods::is_tracked(pod)));
    assert_eq!(case.pods().len(), 2);
}

#[test]
fn a_pod_whose_finalizer_somebody_took_is_replaced_for_it_would_never_count() {
    let mut case = Case::new(json!({"completions": 1}));
    case.run();
    let lost = case.active()[0].clone();
    case.patch_pod(&lost, json!({"metadata": {"finalizers": []}}));
    case.run();
    assert_eq!(case.active().len(), 1);
    assert_ne!(case.active()[0].name_any(), lost.name_any());
}

#[test]
fn a_job_of_another_controller_is_left_alone() {
    let mut case = Case::new(json!({"completions": 1, "managedBy": "example.com/queue"}));
    assert!(case.plan().actions.is_empty());
    case.edit(json!({"spec": {"managedBy": "kubernetes.io/job-controller"}}));
    case.run();
    assert_eq!(case.active().len(), 1);
}

/// Conformance: "Jobs, manage lifecycle" (created suspended), and "… apply changes to a job status".
#[test]
fn a_suspended_job_has_no_pods_and_its_time_begins_anew_when_it_is_resumed() {
    let mut case =
        Case::new(json!({"completions": 2, "parallelism": 2, "suspend": true, "activeDeadlineSeconds": 100}));
    case.run();
    case.says(&[("Suspended", "JobSuspended")]);
    assert!(case.active().is_empty() && case.status().start_time.is_none() && case.told("Suspended"));
    case.world.pass(500);
    case.edit(json!({"spec": {"suspend": false}}));
    case.run();
    case.says(&[]);
    assert_eq!((case.active().len(), case.told("Resumed")), (2, true));
    assert_eq!(case.status().start_time.as_ref().map(|time| time.0), Some(case.world.now));
    case.world.pass(50);
    case.exit(&case.active()[0].clone(), 0);
    case.edit(json!({"spec": {"suspend": true}}));
    case.run();
    case.reap();
    case.run();
    assert_eq!((case.active().len(), case.status().succeeded, case.status().failed), (0, Some(1), None));
    case.world.pass(500);
    case.edit(json!({"spec": {"suspend": false}}));
    case.run();
    case.says(&[]);
    assert_eq!(case.active().len(), 1, "one of two is done, and no pause is owed for what was taken away");
}
