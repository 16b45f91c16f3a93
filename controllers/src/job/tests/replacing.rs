//! When a pod that goes is replaced (KEP-3939).

use super::world::Case;
use serde_json::json;

#[test]
fn a_deleted_pod_counts_as_failed_and_is_replaced_while_it_still_runs() {
    let mut case = Case::new(json!({"completions": 1}));
    case.run();
    case.delete(&case.active()[0].clone());
    case.run();
    assert_eq!((case.status().failed, case.status().terminating), (Some(1), Some(1)));
    assert_eq!(case.active().len(), 1, "it was deleted, it did not crash: nothing is waited for");
}

#[test]
fn where_failed_pods_alone_are_replaced_a_terminating_one_is_waited_for() {
    for mode in ["NonIndexed", "Indexed"] {
        let mut case = Case::new(json!({"completions": 1, "podReplacementPolicy": "Failed", "completionMode": mode}));
        case.run();
        case.delete(&case.active()[0].clone());
        case.run();
        assert_eq!((case.status().failed, case.status().terminating), (None, Some(1)), "{mode}");
        assert!(case.active().is_empty());
        case.reap();
        case.run();
        case.world.pass(10);
        case.run();
        assert_eq!((case.status().failed, case.active().len()), (Some(1), 1), "{mode}");
    }
}
