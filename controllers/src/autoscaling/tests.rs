//! Tables from the published algorithm: what is used, what is wanted, how many replicas follow; and whole autoscalers
//! through looks and conclusions.

use super::{
    Action, Conclusion, Figure, Look, Measured, Moment, PERIOD, Past, Reading, Seen,
    calculator::{self, Figures, Population, TOLERANCE, Tolerance},
    limits::{Ask, limit},
    plan,
};
use crate::{Plan, scale::Scale};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerBehavior};
use proa_crds::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Arc;

fn now() -> Timestamp {
    "2026-11-21T10:00:00Z".parse().expect("a time")
}

fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

/// A pod that has been ready for an hour and requests one CPU.
fn pod(name: &str, edit: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
        "status": {"phase": "Running", "startTime": ago(3600).to_string(),
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": ago(3590).to_string()}]}});
    crate::sim::merge(&mut pod, &edit);
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

fn unready() -> Value {
    json!({"status": {"startTime": ago(60).to_string(),
        "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": ago(60).to_string()}]}})
}

fn figure(value: i64) -> Figure {
    Figure { value, at: now(), window: SignedDuration::from_secs(15) }
}

fn population(pods: &[Arc<Pod>], current: i32) -> Population<'_> {
    Population { pods, current, held: current, tolerance: Tolerance { up: TOLERANCE, down: TOLERANCE }, now: now() }
}

/// Pods by what they use in thousandths of a CPU: `Some` has figures, `None` has none; `edits` by place.
fn replicas(used: &[Option<i64>], edits: &[(usize, Value)], target: i32) -> Result<i32, String> {
    let edit = |n: usize| edits.iter().find(|(at, _)| *at == n).map_or_else(|| json!({}), |(_, edit)| edit.clone());
    let pods: Vec<_> = (0..used.len()).map(|n| pod(&format!("p{n}"), edit(n))).collect();
    let figures: Figures =
        used.iter().enumerate().filter_map(|(n, used)| Some((format!("p{n}"), figure((*used)?)))).collect();
    let of = population(&pods, i32::try_from(used.len()).unwrap());
    calculator::utilization(&of, &figures, "cpu", None, target).map(|proposal| proposal.replicas)
}

#[test]
fn replicas_follow_the_ratio_of_use_to_target() {
    let table: [(&[i64], i32, i32); 8] = [
        (&[300, 500, 700], 30, 5),
        (&[100, 300, 500, 250, 250], 50, 3),
        (&[1000, 1000, 1000], 100, 3),
        // Within a tenth nothing happens.
        (&[1010, 1030, 1020], 100, 3),
        (&[1110, 1110, 1110], 100, 4),
        (&[890, 890, 890], 100, 3),
        (&[880, 880, 880, 880, 880, 880, 880, 880], 100, 8),
        (&[0, 0, 0], 50, 0),
    ];
    for (used, target, expected) in table {
        let used: Vec<_> = used.iter().copied().map(Some).collect();
        assert_eq!(replicas(&used, &[], target), Ok(expected), "{used:?} for {target} %");
    }
}

#[test]
fn pods_that_cannot_say_what_they_use_damp_the_change() {
    // Growing, a pod that is not ready counts as using nothing.
    assert_eq!(replicas(&[Some(300), Some(500), Some(700)], &[(0, unready())], 30), Ok(4));
    // So much so that nothing is done.
    assert_eq!(replicas(&[Some(100), Some(400), Some(500)], &[(0, unready()), (1, unready())], 30), Ok(3));
    // One that starts does too, whatever it uses, and one that is pending.
    let pending = json!({"status": {"phase": "Pending"}});
    assert_eq!(replicas(&[Some(300), Some(500), None], &[(2, pending)], 30), Ok(3));
    // Shrinking, a pod without figures counts as using all it requests.
    assert_eq!(replicas(&[Some(100), Some(300), None], &[], 50), Ok(3));
    assert_eq!(replicas(&[Some(100), Some(100), Some(100), None, None], &[], 100), Ok(3));
    // A pod that goes or has failed counts for nothing.
    let gone = json!({"metadata": {"deletionTimestamp": ago(5).to_string()}});
    assert_eq!(replicas(&[Some(900), Some(900), Some(9000)], &[(2, gone)], 90), Ok(3));
    let failed = json!({"status": {"phase": "Failed"}});
    assert_eq!(replicas(&[Some(500), Some(500), None], &[(2, failed)], 100), Ok(1));
}

#[test]
fn a_cpu_figure_of_the_start_is_not_of_the_work() {
    let started = |start: i64, ready: &str, changed: i64| {
        json!({"status": {"startTime": ago(start).to_string(),
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": ago(changed).to_string()}]}})
    };
    // Only the second pod counts: 900 of 1000 against 50 % asks for two of one; the first uses nothing.
    let rows = [
        // Ready within the initialisation period, a whole window ago: both count.
        (started(60, "True", 20), 4),
        // Ready less than a window ago, or not ready at all: not yet.
        (started(60, "True", 10), 2),
        (started(60, "False", 40), 2),
        // Later it counts, unless it has never been ready.
        (started(3600, "False", 3590), 2),
        (started(3600, "False", 600), 4),
    ];
    for (edit, expected) in rows {
        assert_eq!(replicas(&[Some(900), Some(900)], &[(0, edit.clone())], 50), Ok(expected), "{edit}");
    }
}

#[test]
fn what_is_not_known_is_said_as_kubernetes_says_it() {
    let of = |pods: &[Arc<Pod>], figures: &Figures, container: Option<&str>| {
        calculator::utilization(&population(pods, 1), figures, "cpu", container, 50).unwrap_err()
    };
    let one = [pod("p0", json!({}))];
    let figures = Figures::from([("p0".to_owned(), figure(100))]);
    assert_eq!(of(&[], &figures, None), "no pods returned by selector while calculating replica count");
    assert_eq!(of(&one, &Figures::new(), None), "did not receive metrics for targeted pods (pods might be unready)");
    assert_eq!(of(&one, &figures, Some("x")), "container x not found in Pod p0");
    let bare = [pod("p0", json!({"spec": {"containers": [{"name": "c"}]}}))];
    assert_eq!(of(&bare, &figures, None), "missing request for cpu in container c of Pod p0");
}

#[test]
fn values_are_shared_by_the_pods_that_are_ready() {
    let pods: Vec<_> = (0..4).map(|n| pod(&format!("p{n}"), if n == 3 { unready() } else { json!({}) })).collect();
    let of = population(&pods, 4);
    let value = |usage, target| calculator::value(&of, usage, target).unwrap().replicas;
    assert_eq!([value(2000, 1000), value(1050, 1000), value(500, 1000)], [6, 4, 2]);
    assert_eq!(calculator::value(&population(&[], 0), 3500, 1000).unwrap().replicas, 4);
    let each = |usage| calculator::value_per_pod(&of, usage, 1000);
    assert_eq!((each(8000).replicas, each(8000).usage), (8, 2000));
    assert_eq!((each(4200).replicas, each(4200).usage), (4, 1050));
    // Plain averages do the same as utilization, without requests.
    let figures: Figures = (0..3).map(|n| (format!("p{n}"), figure(3000))).collect();
    assert_eq!(calculator::average(&of, &figures, "", 1000).unwrap().replicas, 9);
}

fn behavior(value: Value) -> HorizontalPodAutoscalerBehavior {
    serde_json::from_value(value).expect("a behaviour")
}

fn moments(list: &[(i64, i32)]) -> Vec<Moment> {
    list.iter().map(|(seconds, replicas)| Moment { at: ago(*seconds), replicas: *replicas }).collect()
}

#[test]
fn an_object_that_says_nothing_grows_by_twice_at_most_and_shrinks_after_five_minutes() {
    let done = |recommended: &[(i64, i32)], current, desired| {
        let past = Past { recommended: moments(recommended), ..Past::default() };
        let limited = limit(None, &past, Ask { current, desired, min: 2, max: 20 }, now());
        (limited.replicas, limited.able.reason, limited.limited.reason)
    };
    assert_eq!(done(&[], 3, 5), (5, "ReadyForNewScale", "DesiredWithinRange"));
    assert_eq!(done(&[], 1, 9), (4, "ReadyForNewScale", "ScaleUpLimit"));
    assert_eq!(done(&[], 3, 9), (6, "ReadyForNewScale", "ScaleUpLimit"));
    assert_eq!(done(&[], 15, 25), (20, "ReadyForNewScale", "TooManyReplicas"));
    assert_eq!(done(&[], 3, 1), (2, "ReadyForNewScale", "TooFewReplicas"));
    assert_eq!(done(&[(299, 8), (100, 6)], 8, 3), (8, "ScaleDownStabilized", "DesiredWithinRange"));
    assert_eq!(done(&[(301, 8), (100, 6)], 8, 3), (6, "ScaleDownStabilized", "DesiredWithinRange"));
}

#[test]
fn policies_limit_the_speed_in_each_direction() {
    let up =
        |policies: Value, select: &str| behavior(json!({"scaleUp": {"selectPolicy": select, "policies": policies}}));
    let down = |policies: Value, select: &str| {
        behavior(json!({"scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": select, "policies": policies}}))
    };
    let pods = json!({"type": "Pods", "value": 3, "periodSeconds": 60});
    let percent = json!({"type": "Percent", "value": 50, "periodSeconds": 60});
    let both = json!([pods, percent]);
    let past = Past { added: moments(&[(30, 2), (90, 4)]), removed: moments(&[(10, 1)]), ..Past::default() };
    let none = Past::default();
    // behaviour, past, current, desired; done, why
    let table = [
        (up(both.clone(), "Max"), &none, 10, 100, 15, "ScaleUpLimit"),
        (up(both.clone(), "Min"), &none, 10, 100, 13, "ScaleUpLimit"),
        (up(both.clone(), "Disabled"), &none, 10, 100, 10, "ScaleUpLimit"),
        (up(json!([percent]), "Max"), &none, 1, 100, 2, "ScaleUpLimit"),
        // Ten now were nine a minute ago: two came, one went.
        (up(json!([pods]), "Max"), &past, 10, 100, 12, "ScaleUpLimit"),
        (up(both.clone(), "Max"), &none, 10, 12, 12, "DesiredWithinRange"),
        (
            up(json!([{"type": "Percent", "value": 900, "periodSeconds": 60}]), "Max"),
            &none,
            10,
            100,
            50,
            "TooManyReplicas",
        ),
        (down(both.clone(), "Max"), &none, 10, 1, 5, "ScaleDownLimit"),
        (down(both.clone(), "Min"), &none, 10, 1, 7, "ScaleDownLimit"),
        (down(both.clone(), "Disabled"), &none, 10, 1, 10, "ScaleDownLimit"),
        (down(json!([pods]), "Max"), &past, 10, 1, 6, "ScaleDownLimit"),
        (
            down(json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]), "Max"),
            &none,
            10,
            1,
            2,
            "TooFewReplicas",
        ),
    ];
    for (behavior, past, current, desired, expected, reason) in table {
        let limited = limit(Some(&behavior), past, Ask { current, desired, min: 2, max: 50 }, now());
        assert_eq!(
            (limited.replicas, limited.limited.reason),
            (expected, reason),
            "{behavior:?} {current} → {desired}"
        );
    }
}

#[test]
fn windows_hold_off_in_each_direction() {
    let slow = behavior(
        json!({"scaleUp": {"stabilizationWindowSeconds": 60}, "scaleDown": {"stabilizationWindowSeconds": 120}}),
    );
    let done = |recommended: &[(i64, i32)], current, desired| {
        let past = Past { recommended: moments(recommended), ..Past::default() };
        let limited = limit(Some(&slow), &past, Ask { current, desired, min: 1, max: 50 }, now());
        (limited.replicas, limited.able.reason)
    };
    assert_eq!(done(&[(30, 4)], 3, 5), (4, "ScaleUpStabilized"));
    assert_eq!(done(&[(30, 2)], 3, 5), (3, "ScaleUpStabilized"));
    assert_eq!(done(&[(61, 2)], 3, 5), (5, "ReadyForNewScale"));
    assert_eq!(done(&[(100, 9)], 8, 5), (8, "ScaleDownStabilized"));
    assert_eq!(done(&[(100, 6)], 8, 5), (6, "ScaleDownStabilized"));
    assert_eq!(done(&[(121, 6)], 8, 5), (5, "ReadyForNewScale"));
}

fn autoscaler(spec: Value) -> Arc<HorizontalPodAutoscaler> {
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
    let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}});
    let mut whole = json!({"metadata": {"name": "web", "namespace": "ns"},
        "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 10, "metrics": [cpu]}});
    crate::sim::merge(&mut whole, &json!({"spec": spec}));
    Arc::new(serde_json::from_value(whole).expect("an autoscaler"))
}

fn scale(wanted: i32) -> Scale {
    Scale { wanted, held: wanted, selector: "app=web".into(), ..Scale::default() }
}

/// An autoscaler of `used.len()` pods just after a look.
fn looked(spec: Value, used: &[i64]) -> Seen {
    let autoscaler = autoscaler(spec);
    let names = (0..used.len()).map(|n| format!("p{n}"));
    let figures = names.clone().zip(used).map(|(name, used)| (name, figure(*used))).collect();
    let metrics = vec![Ok(Reading::Pods(figures)); autoscaler.spec.metrics.as_ref().map_or(0, Vec::len)];
    Seen {
        look: Some(Look {
            pods: None,
            at: now(),
            spec: autoscaler.spec.clone(),
            scale: Ok(scale(used.len() as i32)),
            metrics,
            concluded: false,
        }),
        pods: names.map(|name| pod(&name, json!({}))).collect(),
        rivals: Vec::new(),
        past: Past::default(),
        autoscaler,
    }
}

fn concluded(seen: &Seen) -> Conclusion {
    let Plan { mut actions, .. } = plan(seen, now());
    match (actions.pop(), actions.is_empty()) {
        (Some(Action::Conclude(conclusion)), true) => *conclusion,
        other => panic!("no conclusion: {other:?}"),
    }
}

/// A condition as `Status Reason Message`.
fn condition(conclusion: &Conclusion, type_: &str) -> String {
    let conditions = conclusion.status.conditions.iter().flatten();
    let held = conditions.into_iter().find(|condition| condition.type_ == type_).expect("the condition");
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{} {} {}", held.status, text(&held.reason), text(&held.message))
}

fn reasons(conclusion: &Conclusion) -> Vec<&str> {
    conclusion.notes.iter().map(|note| note.reason).collect()
}

#[test]
fn a_look_is_concluded_from_once_and_taken_again_after_fifteen_seconds() {
    let mut seen = looked(json!({}), &[500]);
    seen.look = None;
    assert!(matches!(plan(&seen, now()).actions.as_slice(), [Action::Look]));
    let mut seen = looked(json!({}), &[500]);
    concluded(&seen);
    seen.look.as_mut().unwrap().concluded = true;
    let rest = plan(&seen, now() + SignedDuration::from_secs(5));
    assert_eq!((rest.actions.len(), rest.again), (0, Some(std::time::Duration::from_secs(10))));
    assert!(matches!(plan(&seen, now() + PERIOD).actions.as_slice(), [Action::Look]));
    // Another wish is looked at anew, at once.
    seen.autoscaler = autoscaler(json!({"maxReplicas": 20}));
    assert!(matches!(plan(&seen, now()).actions.as_slice(), [Action::Look]));
}

#[test]
fn what_was_found_and_done_is_said_in_status_conditions_and_events() {
    let conclusion = concluded(&looked(json!({}), &[900, 900]));
    let rescale = conclusion.rescale.clone().expect("a resize");
    assert_eq!((rescale.to, &*rescale.reason), (4, "cpu resource utilization (percentage of request) above target"));
    assert_eq!(
        condition(&conclusion, "ScalingActive"),
        "True ValidMetricFound the HPA was able to successfully calculate a replica count from cpu resource utilization (percentage of request)"
    );
    assert_eq!(conclusion.recommended.iter().map(|m| m.replicas).collect::<Vec<_>>(), [2, 4]);
    let current = &conclusion.status.current_metrics.as_ref().unwrap()[0].resource.as_ref().unwrap().current;
    assert_eq!((current.average_utilization, current.average_value.as_ref().unwrap().0.as_str()), (Some(90), "900m"));

    let (status, notes) = conclusion.clone().tried(&Ok(()), now());
    assert_eq!((status.current_replicas, status.desired_replicas), (Some(2), 4));
    assert!(status.last_scale_time.is_some());
    assert_eq!(notes[0].message, "New size: 4; reason: cpu resource utilization (percentage of request) above target");
    let (status, notes) = conclusion.clone().tried(&Err("no".into()), now());
    assert_eq!((status.desired_replicas, notes[0].reason), (2, "FailedRescale"));
    let failed = condition(&Conclusion { status, ..conclusion }, "AbleToScale");
    assert_eq!(failed, "False FailedUpdateScale the HPA controller was unable to update the target scale: no");
}

#[test]
fn bounds_of_the_object_hold_whatever_the_metrics_say() {
    let above = concluded(&looked(json!({"maxReplicas": 1}), &[500, 500]));
    let rescale = above.rescale.unwrap();
    assert_eq!((rescale.to, &*rescale.reason), (1, "Current number of replicas above Spec.MaxReplicas"));
    let below = concluded(&looked(json!({"minReplicas": 3}), &[500, 500])).rescale.unwrap();
    assert_eq!((below.to, &*below.reason), (3, "Current number of replicas below Spec.MinReplicas"));
    let mut off = looked(json!({}), &[]);
    off.look.as_mut().unwrap().scale = Ok(scale(0));
    let off = concluded(&off);
    assert_eq!(off.rescale, None);
    assert!(condition(&off, "ScalingActive").starts_with("False ScalingDisabled"));
}

#[test]
fn after_a_start_nothing_shrinks_in_haste() {
    // Four pods that do nothing: the size found holds for five minutes.
    let conclusion = concluded(&looked(json!({}), &[0, 0, 0, 0]));
    assert_eq!(conclusion.rescale, None);
    assert!(condition(&conclusion, "AbleToScale").starts_with("True ScaleDownStabilized"));
    let mut later = looked(json!({}), &[0, 0, 0, 0]);
    later.past.recommended = moments(&[(301, 4), (10, 0)]);
    assert_eq!(concluded(&later).rescale.unwrap().to, 1);
}

#[test]
fn with_a_metric_missing_nothing_shrinks_but_it_may_grow() {
    let why: Measured =
        Err("unable to get metrics for resource cpu: no metrics returned from resource metrics API".into());
    let mut alone = looked(json!({}), &[500]);
    alone.look.as_mut().unwrap().metrics = vec![why.clone()];
    let conclusion = concluded(&alone);
    assert_eq!(
        (conclusion.rescale.as_ref(), reasons(&conclusion)),
        (None, vec!["FailedGetResourceMetric", "FailedComputeMetricsReplicas"])
    );
    assert_eq!(
        condition(&conclusion, "ScalingActive"),
        "False FailedGetResourceMetric the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for resource cpu: no metrics returned from resource metrics API"
    );
    assert_eq!(
        conclusion.notes[1].message,
        "invalid metrics (1 invalid out of 1), first error is: failed to get cpu resource metric value: failed to get cpu utilization: unable to get metrics for resource cpu: no metrics returned from resource metrics API"
    );

    let external = json!({"type": "External", "external": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "1"}}});
    let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}});
    let both = |queue: i64| {
        let mut seen = looked(json!({"metrics": [cpu, external]}), &[100, 100]);
        seen.past.recommended = moments(&[(400, 2)]);
        seen.look.as_mut().unwrap().metrics = vec![why.clone(), Ok(Reading::Value(queue))];
        concluded(&seen)
    };
    assert_eq!(both(1000).rescale, None);
    let grown = both(4000);
    let rescale = grown.rescale.clone().unwrap();
    assert_eq!((rescale.to, &*rescale.reason), (4, "external metric q() above target"));
    assert!(condition(&grown, "ScalingActive").starts_with("True ValidMetricFound"));
}

#[test]
fn a_target_that_cannot_be_scaled_is_told_and_left_alone() {
    let with = |scale: Result<Scale, String>, rivals: &[&str]| {
        let mut seen = looked(json!({}), &[500]);
        seen.look.as_mut().unwrap().scale = scale;
        seen.rivals = rivals.iter().map(|name| (*name).to_owned()).collect();
        let conclusion = concluded(&seen);
        assert_eq!(conclusion.rescale, None);
        conclusion
    };
    let missing = with(Err("deployments.apps \"web\" not found".into()), &[]);
    assert_eq!(
        condition(&missing, "AbleToScale"),
        "False FailedGetScale the HPA controller was unable to get the target's current scale: deployments.apps \"web\" not found"
    );
    let bare = with(Ok(Scale { selector: String::new(), ..scale(1) }), &[]);
    assert_eq!(condition(&bare, "ScalingActive"), "False InvalidSelector the HPA target's scale is missing a selector");
    let shared = with(Ok(scale(1)), &["ns/other"]);
    assert!(condition(&shared, "ScalingActive").starts_with("False AmbiguousSelector"));
}

#[test]
fn each_direction_may_have_its_own_tolerance() {
    let done = |behavior: Value, used: i64| {
        let mut seen = looked(json!({"behavior": behavior}), &[used, used, used, used]);
        seen.past.recommended = moments(&[(900, 4)]);
        concluded(&seen).rescale.map_or(4, |rescale| rescale.to)
    };
    let strict = json!({"scaleUp": {"tolerance": "0"}, "scaleDown": {"tolerance": "0.5"}});
    assert_eq!([done(json!({}), 520), done(strict.clone(), 520)], [4, 5]);
    assert_eq!([done(json!({}), 300), done(strict, 300)], [3, 4]);
}

proptest! {
    /// Whatever is measured, and whatever was done before, the size stays within its bounds and moves towards what is asked.
    #[test]
    fn the_size_stays_within_its_bounds(
        used in proptest::collection::vec(0i64..5000, 1..12),
        min in 1i32..6, more in 0i32..10,
        before in proptest::collection::vec((0i64..600, 0i32..20), 0..6),
        with_behavior: bool,
    ) {
        let spec = if with_behavior { json!({"behavior": {"scaleDown": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}}}) } else { json!({}) };
        let mut seen = looked(spec, &used);
        let (min, max) = (min, min + more);
        let mut bounded = (*seen.autoscaler).clone();
        (bounded.spec.min_replicas, bounded.spec.max_replicas) = (Some(min), max);
        seen.look.as_mut().unwrap().spec = bounded.spec.clone();
        seen.autoscaler = Arc::new(bounded);
        seen.past.recommended = moments(&before);
        let conclusion = concluded(&seen);
        let size = conclusion.rescale.map_or(used.len() as i32, |rescale| rescale.to);
        prop_assert!((min..=max).contains(&size), "{size} not in {min}..={max}");
    }
}
