//! How Jobs fail, and what is left of them.

use super::world::Case;
use serde_json::{Value, json};

#[test]
fn a_job_fails_when_more_pods_have_failed_than_its_limit() {
    let mut case = Case::new(json!({"completions": 1, "backoffLimit": 1}));
    case.run();
    case.exit(&case.active()[0].clone(), 1);
    assert_eq!(case.run(), Some(10), "the next one waits");
    assert!(case.active().is_empty());
    case.world.pass(10);
    case.run();
    case.exit(&case.active()[0].clone(), 1);
    case.run();
    case.says(&[("FailureTarget", "BackoffLimitExceeded"), ("Failed", "BackoffLimitExceeded")]);
    assert_eq!((case.status().failed, case.status().completion_time), (Some(2), None));
    assert!(case.told("BackoffLimitExceeded"));
    assert_eq!(case.pods().len(), 2, "failed pods stay to be looked at");
}

#[test]
fn the_pause_doubles_with_each_failure_up_to_ten_minutes_and_a_success_ends_it() {
    let mut case = Case::new(json!({"completions": 2, "backoffLimit": 100}));
    case.run();
    for pause in [10, 20, 40, 80, 160, 320, 600, 600] {
        case.exit(&case.active()[0].clone(), 1);
        assert_eq!(case.run(), Some(pause));
        case.world.pass(i64::try_from(pause).expect("small"));
        case.run();
        assert_eq!(case.active().len(), 1);
    }
    case.exit(&case.active()[0].clone(), 0);
    case.run();
    case.world.pass(1);
    case.exit(&case.active()[0].clone(), 1);
    assert_eq!(case.run(), Some(10));
}

#[test]
fn where_the_node_restarts_containers_their_restarts_are_what_counts() {
    let template = json!({"spec": {"restartPolicy": "OnFailure"}});
    let mut case = Case::new(json!({"completions": 1, "backoffLimit": 2, "template": template}));
    case.run();
    let restarts = |n: i32| json!({"status": {"containerStatuses": [{"name": "main", "image": "", "imageID": "", "ready": true, "restartCount": n}]}});
    case.patch_pod(&case.active()[0].clone(), restarts(1));
    case.run();
    case.says(&[]);
    case.patch_pod(&case.active()[0].clone(), restarts(2));
    case.run();
    case.says(&[("FailureTarget", "BackoffLimitExceeded")]);
    case.reap();
    case.run();
    case.says(&[("FailureTarget", "BackoffLimitExceeded"), ("Failed", "BackoffLimitExceeded")]);
}

/// The end is announced at once, and said when the last pod has ended (KEP-3939).
#[test]
fn a_job_past_its_deadline_fails_once_its_pods_have_ended() {
    let mut case = Case::new(json!({"completions": 2, "parallelism": 2, "activeDeadlineSeconds": 30}));
    assert_eq!(case.run(), Some(30));
    case.world.pass(30);
    case.run();
    case.says(&[("FailureTarget", "DeadlineExceeded")]);
    assert_eq!((case.active().len(), case.status().terminating), (0, Some(2)));
    case.reap();
    case.run();
    case.says(&[("FailureTarget", "DeadlineExceeded"), ("Failed", "DeadlineExceeded")]);
    assert_eq!((case.status().failed, case.status().terminating), (Some(2), Some(0)));
    let uncounted = case.status().uncounted_terminated_pods.expect("a field");
    assert!(uncounted.failed.is_none() && uncounted.succeeded.is_none());
}

fn with_policy(rules: Value, more: Value) -> Case {
    let mut spec = json!({"completions": 2, "parallelism": 2, "backoffLimit": 0, "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": rules}});
    crate::sim::merge(&mut spec, &more);
    Case::new(spec)
}

/// Conformance: "Verify Pod Failure policy allows to fail job early on exit code."
#[test]
fn an_exit_code_can_fail_the_whole_job_at_once() {
    let rules =
        json!([{"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}}]);
    let mut case = with_policy(rules, json!({"backoffLimit": 6}));
    case.run();
    let victim = case.active()[0].clone();
    case.exit(&victim, 42);
    case.run();
    case.reap();
    case.run();
    case.says(&[("FailureTarget", "PodFailurePolicy"), ("Failed", "PodFailurePolicy")]);
    let conditions = case.status().conditions.unwrap_or_default();
    let name = victim.metadata.name.clone().unwrap_or_default();
    assert_eq!(
        conditions[0].message.as_deref(),
        Some(
            format!("Container main for pod ns/{name} failed with exit code 42 matching FailJob rule at index 0")
                .as_str()
        )
    );
    assert_eq!(conditions[1].message, conditions[0].message);
}

/// Conformance: "Ensure pod failure policy allows to ignore failure matching on the DisruptionTarget condition".
#[test]
fn a_disrupted_pod_does_not_count_where_the_policy_ignores_it() {
    let rules = json!([{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]);
    let mut case = with_policy(rules, json!({"completionMode": "Indexed"}));
    case.run();
    for pod in case.active() {
        let disrupted = json!({"status": {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]}});
        case.patch_pod(&pod, disrupted);
        case.delete(&pod);
    }
    case.run();
    assert_eq!(case.pods().len(), 2, "nobody is replaced before it has ended");
    case.reap();
    case.run();
    case.world.pass(60);
    case.run();
    assert_eq!((case.active_indexes(), case.status().failed), (vec![0, 1], None));
    for pod in case.active() {
        case.exit(&pod, 0);
    }
    case.run();
    case.says(&[("SuccessCriteriaMet", "CompletionsReached"), ("Complete", "CompletionsReached")]);
}

#[test]
fn the_first_rule_that_matches_decides() {
    let rules = json!([
        {"action": "Count", "onExitCodes": {"operator": "In", "values": [1]}},
        {"action": "Ignore", "onExitCodes": {"operator": "NotIn", "values": [7]}},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [7]}},
    ]);
    let ends = |code: i32| {
        let mut case = with_policy(rules.clone(), json!({}));
        case.run();
        case.exit(&case.active()[0].clone(), code);
        case.run();
        case.reap();
        case.run();
        case.said().last().map(|(_, reason)| reason.clone())
    };
    assert_eq!(ends(1).as_deref(), Some("BackoffLimitExceeded"), "it counts, and the limit is none");
    assert_eq!(ends(3), None, "it is ignored");
    assert_eq!(ends(7).as_deref(), Some("PodFailurePolicy"));
}

#[test]
fn a_finished_job_goes_when_its_time_to_live_has_passed() {
    let mut case = Case::new(json!({"completions": 1, "ttlSecondsAfterFinished": 60}));
    case.run();
    case.exit(&case.active()[0].clone(), 0);
    assert_eq!(case.run(), Some(60));
    case.world.pass(59);
    case.run();
    assert!(case.job().is_some());
    case.edit(json!({"spec": {"ttlSecondsAfterFinished": 100}}));
    assert_eq!(case.run(), Some(41));
    case.world.pass(41);
    case.run();
    assert!(case.job().is_none());
}

#[test]
fn a_job_of_no_completions_is_complete_at_once() {
    let mut case = Case::new(json!({"completions": 0}));
    case.run();
    assert!(case.pods().is_empty());
    case.says(&[("SuccessCriteriaMet", "CompletionsReached"), ("Complete", "CompletionsReached")]);
}
