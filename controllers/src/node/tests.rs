//! Stories of nodes that are not well.

use super::*;
use serde_json::json;
use std::time::Duration;

const T0: &str = "2026-01-01T00:00:00Z";

fn at(seconds: u64) -> Timestamp {
    T0.parse::<Timestamp>().unwrap() + Duration::from_secs(seconds)
}

fn node(ready: Option<&str>, taints: Value) -> Arc<Node> {
    let conditions: Vec<Value> = ready.iter().map(|status| json!({"type": "Ready", "status": status})).collect();
    let node = json!({"metadata": {"name": "n"}, "spec": {"taints": taints}, "status": {"conditions": conditions}});
    Arc::new(serde_json::from_value(node).unwrap())
}

fn pod(tolerations: Value) -> Arc<Pod> {
    let pod = json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
        "spec": {"nodeName": "n", "containers": [], "tolerations": tolerations},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn seen(node: Arc<Node>, pods: Vec<Arc<Pod>>) -> Seen {
    let taints = node.spec.taints.clone().unwrap_or_default().into_iter();
    let tainted = taints.filter(|taint| taint.effect == NO_EXECUTE).map(|taint| (taint, at(0))).collect();
    Seen { node, pods, heard: at(0), tainted, marked: Default::default() }
}

fn keys(actions: &[Action]) -> Vec<String> {
    let taints = actions.iter().find_map(|action| match action {
        Action::Taints(taints) => Some(taints.iter().map(|t| format!("{}:{}", t.key, t.effect)).collect()),
        _ => None,
    });
    taints.unwrap_or_default()
}

#[test]
fn a_node_that_becomes_ready_loses_its_taint_at_once() {
    let fresh = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}, {"key": "mine", "effect": "NoExecute"}]);
    let plan = plan(&seen(node(Some("True"), fresh), vec![]), at(1));
    assert_eq!(keys(&plan.actions), ["mine:NoExecute"]);
    assert_eq!(plan.again, Some(GRACE - Duration::from_secs(1)));
}

#[test]
fn taints_follow_from_conditions() {
    let cases = [
        (None, vec!["not-ready:NoSchedule"]),
        (Some("False"), vec!["not-ready:NoSchedule", "not-ready:NoExecute"]),
        (Some("Unknown"), vec!["unreachable:NoSchedule", "unreachable:NoExecute"]),
    ];
    for (ready, expected) in cases {
        let plan = plan(&seen(node(ready, json!([])), vec![]), at(1));
        let expected: Vec<_> = expected.iter().map(|taint| format!("node.kubernetes.io/{taint}")).collect();
        assert_eq!(keys(&plan.actions), expected, "{ready:?}");
    }
    let mut pressed = Node::clone(&node(Some("True"), json!([])));
    pressed.spec.unschedulable = Some(true);
    let pressure = NodeCondition { type_: "DiskPressure".into(), status: "True".into(), ..Default::default() };
    pressed.status.as_mut().unwrap().conditions.as_mut().unwrap().push(pressure);
    let plan = plan(&seen(Arc::new(pressed), vec![]), at(1));
    assert_eq!(
        keys(&plan.actions),
        ["node.kubernetes.io/disk-pressure:NoSchedule", "node.kubernetes.io/unschedulable:NoSchedule"]
    );
}

#[test]
fn a_silent_node_is_unknown_after_the_grace_and_its_pods_are_not_ready() {
    let here = seen(node(Some("True"), json!([])), vec![pod(json!([]))]);
    assert!(plan(&here, at(49)).actions.is_empty());
    let plan = plan(&here, at(50));
    let [Action::Conditions(conditions), Action::Taints(_), Action::NotReady(_)] = plan.actions.as_slice() else {
        panic!("{plan:?}")
    };
    assert!(conditions.iter().all(|c| c.status == "Unknown"));
    assert_eq!(conditions[0].message.as_deref(), Some("Kubelet stopped posting node status."));
    assert_eq!(conditions.len(), 4);
}

#[test]
fn a_pod_is_marked_once_in_a_silence_and_what_its_node_says_after_that_stands() {
    let mut here = seen(node(Some("Unknown"), json!([])), vec![pod(json!([]))]);
    let marks = |here: &Seen| {
        let actions = plan(here, at(60)).actions;
        actions.iter().filter(|action| matches!(action, Action::NotReady(_))).count()
    };
    assert_eq!(marks(&here), 1);
    here.marked.insert("u".to_owned());
    assert_eq!(marks(&here), 0, "the node has said that it is ready: two would contradict each other for ever");
    here.marked = ["another".to_owned()].into();
    assert_eq!(marks(&here), 1, "a pod of the same name that has come since");
}

#[test]
fn what_was_said_about_a_silent_node_is_not_said_again() {
    let told = json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}, {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]);
    let first = plan(&seen(node(Some("True"), told.clone()), vec![]), at(60)).actions;
    let Some(Action::Conditions(conditions)) = first.first() else { panic!("{first:?}") };
    let mut silent = Node::clone(&node(None, told));
    silent.status.as_mut().unwrap().conditions = Some(conditions.clone());
    assert!(plan(&seen(Arc::new(silent), vec![]), at(500)).actions.is_empty());
}

#[test]
fn a_pod_leaves_when_its_toleration_ends() {
    let unreachable = json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}, {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]);
    let tolerates = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]);
    let mut here = seen(node(Some("Unknown"), unreachable), vec![pod(tolerates)]);
    here.heard = at(250);
    let evicts = |plan: &Plan<Action>| plan.actions.iter().any(|action| matches!(action, Action::Evict(_)));
    let early = plan(&here, at(290));
    assert!(!evicts(&early));
    assert_eq!(early.again, Some(Duration::from_secs(10)));
    assert!(evicts(&plan(&here, at(300))));
}

#[test]
fn a_users_own_taint_evicts_those_that_do_not_tolerate_it_at_once() {
    let drained = node(Some("True"), json!([{"key": "maintenance", "effect": "NoExecute"}]));
    let stays = pod(json!([{"key": "maintenance", "operator": "Exists"}]));
    let goes = pod(json!([]));
    let plan = plan(&seen(drained, vec![stays, goes.clone()]), at(0));
    assert!(matches!(plan.actions.as_slice(), [Action::Evict(pod)] if Arc::ptr_eq(pod, &goes)), "{plan:?}");
}
