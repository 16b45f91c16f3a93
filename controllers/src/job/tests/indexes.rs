//! Indexed Jobs: a limit for each index, rules of success, and completions that change.

use super::world::Case;
use serde_json::{Value, json};

fn indexed(completions: i32, more: Value) -> Case {
    let mut spec = json!({"completions": completions, "parallelism": completions, "completionMode": "Indexed"});
    crate::sim::merge(&mut spec, &more);
    Case::new(spec)
}

/// Ends the active pods, those of some indexes badly; waits out every pause.
fn rounds(case: &mut Case, fails: impl Fn(u32) -> bool, code: i32) {
    for _ in 0..20 {
        case.run();
        case.world.pass(700);
        case.run();
        for index in case.active_indexes() {
            case.exit(&case.of_index(index), if fails(index) { code } else { 0 });
        }
    }
    case.run();
}

/// Conformance: "Ensure that all indexes are executed for an indexed job with backoffLimitPerIndex despite some failing".
#[test]
fn with_a_limit_per_index_every_index_is_tried_and_only_its_own_failures_end_it() {
    let mut case = indexed(4, json!({"backoffLimitPerIndex": 1, "backoffLimit": i32::MAX}));
    rounds(&mut case, |index| index % 2 == 1, 1);
    case.says(&[("FailureTarget", "FailedIndexes"), ("Failed", "FailedIndexes")]);
    let status = case.status();
    assert_eq!((status.completed_indexes.as_deref(), status.failed_indexes.as_deref()), (Some("0,2"), Some("1,3")));
    assert_eq!((status.succeeded, status.failed), (Some(2), Some(4)), "each failing index has failed twice");
}

/// Conformance: "Terminate job execution when the maxFailedIndexes is exceeded".
#[test]
fn too_many_failed_indexes_end_the_job() {
    let mut case = indexed(4, json!({"backoffLimitPerIndex": 0, "maxFailedIndexes": 1, "backoffLimit": i32::MAX}));
    case.run();
    case.exit(&case.of_index(0), 1);
    case.run();
    case.says(&[]);
    assert_eq!(case.active_indexes(), [1, 2, 3]);
    case.exit(&case.of_index(2), 1);
    case.run();
    case.reap();
    case.run();
    case.says(&[("FailureTarget", "MaxFailedIndexesExceeded"), ("Failed", "MaxFailedIndexesExceeded")]);
    assert_eq!(case.status().failed_indexes.as_deref(), Some("0,2"));
}

/// Conformance: "Mark indexes as failed when the FailIndex action is matched in podFailurePolicy".
#[test]
fn a_rule_can_give_up_an_index_without_a_second_try() {
    let rules = json!([{"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [42]}}]);
    let policy = json!({"backoffLimitPerIndex": 3, "backoffLimit": i32::MAX, "podReplacementPolicy": "Failed", "podFailurePolicy": {"rules": rules}});
    let mut case = indexed(2, policy);
    rounds(&mut case, |index| index == 1, 42);
    case.says(&[("FailureTarget", "FailedIndexes"), ("Failed", "FailedIndexes")]);
    let status = case.status();
    assert_eq!((status.failed_indexes.as_deref(), status.failed), (Some("1"), Some(1)));
}

#[test]
fn the_failures_of_an_index_are_told_to_its_next_pod_before_their_witness_may_go() {
    let mut case = indexed(2, json!({"backoffLimitPerIndex": 5, "backoffLimit": i32::MAX}));
    case.run();
    let first = case.of_index(1);
    case.exit(&first, 1);
    assert_eq!(case.run(), Some(10), "index 1 waits; index 0 is held up by nobody");
    let witness = case.pods().into_iter().find(|pod| pod.metadata.uid == first.metadata.uid).expect("still there");
    assert!(crate::job::pods::is_tracked(&witness));
    case.delete(&witness);
    case.world.pass(10);
    case.run();
    let next = case.of_index(1);
    assert_eq!(
        next.metadata.annotations.as_ref().expect("annotations")["batch.kubernetes.io/job-index-failure-count"],
        "1"
    );
    assert!(case.pods().iter().all(|pod| pod.metadata.uid != first.metadata.uid), "it may go now");
    assert_eq!(case.status().failed, Some(1));
    case.exit(&next, 1);
    assert_eq!(case.run(), Some(20));
}

fn with_rule(rule: Value) -> Case {
    indexed(5, json!({"successPolicy": {"rules": [rule]}}))
}

/// Conformance: "Ensure that job with successPolicy succeededIndexes rule succeeded even when some indexes remain pending".
#[test]
fn named_indexes_can_be_enough() {
    let mut case = with_rule(json!({"succeededIndexes": "0-1,3"}));
    case.run();
    for index in [0, 3] {
        case.exit(&case.of_index(index), 0);
        case.run();
        case.says(&[]);
    }
    case.exit(&case.of_index(1), 0);
    case.run();
    case.says(&[("SuccessCriteriaMet", "SuccessPolicy")]);
    assert!(case.active().is_empty(), "the others are ended");
    case.reap();
    case.run();
    case.says(&[("SuccessCriteriaMet", "SuccessPolicy"), ("Complete", "SuccessPolicy")]);
    assert_eq!(case.status().completed_indexes.as_deref(), Some("0,1,3"));
    assert_eq!(case.status().conditions.unwrap_or_default()[1].message.as_deref(), Some("Matched rules at index 0"));
}

/// Conformance: "Ensure that job with successPolicy succeededCount rule succeeded even when some indexes remain pending".
#[test]
fn a_number_of_indexes_can_be_enough() {
    let mut case = with_rule(json!({"succeededCount": 2}));
    case.run();
    case.exit(&case.of_index(4), 0);
    case.run();
    case.says(&[]);
    case.exit(&case.of_index(2), 0);
    case.run();
    case.reap();
    case.run();
    case.says(&[("SuccessCriteriaMet", "SuccessPolicy"), ("Complete", "SuccessPolicy")]);
}

#[test]
fn a_number_of_named_indexes_can_be_enough() {
    let mut case = with_rule(json!({"succeededCount": 1, "succeededIndexes": "2-3"}));
    case.run();
    case.exit(&case.of_index(0), 0);
    case.run();
    case.says(&[]);
    case.exit(&case.of_index(3), 0);
    case.run();
    case.says(&[("SuccessCriteriaMet", "SuccessPolicy")]);
}

/// Conformance: "Ensure that job with successPolicy succeeded when all indexes succeeded".
#[test]
fn all_indexes_are_enough_for_any_rule_that_names_them() {
    let mut case = with_rule(json!({"succeededIndexes": "0-4"}));
    rounds(&mut case, |_| false, 0);
    case.says(&[("SuccessCriteriaMet", "SuccessPolicy"), ("Complete", "SuccessPolicy")]);
}

/// Elastic Indexed Jobs (KEP-3715).
#[test]
fn completions_may_grow_and_shrink_and_only_indexes_within_them_count() {
    let mut case = indexed(4, json!({}));
    case.run();
    case.exit(&case.of_index(3), 0);
    case.exit(&case.of_index(0), 0);
    case.run();
    assert_eq!(case.status().completed_indexes.as_deref(), Some("0,3"));
    case.edit(json!({"spec": {"completions": 2, "parallelism": 2}}));
    case.run();
    case.reap();
    case.run();
    assert_eq!((case.active_indexes(), case.status().succeeded), (vec![1], Some(1)));
    case.edit(json!({"spec": {"completions": 3, "parallelism": 3}}));
    case.run();
    assert_eq!(case.active_indexes(), [1, 2]);
    rounds(&mut case, |_| false, 0);
    assert_eq!(case.status().completed_indexes.as_deref(), Some("0-2"));
    case.says(&[("SuccessCriteriaMet", "CompletionsReached"), ("Complete", "CompletionsReached")]);
}
