//! Taints and tolerations: one meaning for the scheduler and for eviction. Pure.

use k8s_openapi::api::core::v1::{Taint, Toleration};
use std::time::Duration;

/// Pods that do not tolerate it are not placed on the node.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// Pods that do not tolerate it are rather placed elsewhere.
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";
/// Pods that do not tolerate it are not placed there, and leave.
pub const NO_EXECUTE: &str = "NoExecute";

/// Whether one toleration covers one taint (API documentation of `Toleration`).
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let some = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
    if some(&toleration.effect).is_some_and(|effect| effect != taint.effect) {
        return false;
    }
    let exists = toleration.operator.as_deref() == Some("Exists");
    match some(&toleration.key) {
        None => exists,
        Some(key) if key != taint.key => false,
        Some(_) => exists || toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or(""),
    }
}

/// The first taint with one of these effects that nothing tolerates.
pub fn untolerated<'a>(taints: &'a [Taint], tolerations: &[Toleration], effects: &[&str]) -> Option<&'a Taint> {
    let relevant = taints.iter().filter(|taint| effects.contains(&taint.effect.as_str()));
    relevant.into_iter().find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

/// How long a pod may stay on a node with these taints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    /// For ever.
    Forever,
    /// This long after the taint appeared; not at all when zero.
    For(Duration),
}

/// A node that is not ready, as a taint.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// A node that is silent, as a taint.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// How long a pod that says nothing of it may stay on a node that is not ready or silent. Admission writes that into the
/// pods of the standard family (Kubernetes' `DefaultTolerationSeconds`); nobody does into custom ones.
pub const UNTOLD: Duration = Duration::from_secs(300);

/// How long pods with these tolerations may stay under one `NoExecute` taint.
pub fn stay(taint: &Taint, tolerations: &[Toleration]) -> Stay {
    let mut covered = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
    if covered.peek().is_none() {
        let is_the_nodes = [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()) && taint.effect == NO_EXECUTE;
        return Stay::For(if is_the_nodes { UNTOLD } else { Duration::ZERO });
    }
    // Of several tolerations the shortest stay counts; without seconds there is no end.
    match covered.filter_map(|toleration| toleration.toleration_seconds).min() {
        None => Stay::Forever,
        Some(seconds) => Stay::For(Duration::from_secs(seconds.max(0).unsigned_abs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(text: &str) -> Taint {
        let (rest, effect) = text.split_once(':').unwrap();
        let (key, value) = rest.split_once('=').map_or((rest, None), |(k, v)| (k, Some(v.to_owned())));
        Taint { key: key.into(), value, effect: effect.into(), time_added: None }
    }

    fn toleration(key: &str, operator: &str, value: &str, effect: &str, seconds: Option<i64>) -> Toleration {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Toleration {
            key: some(key),
            operator: some(operator),
            value: some(value),
            effect: some(effect),
            toleration_seconds: seconds,
        }
    }

    #[test]
    fn a_toleration_covers_what_the_api_says_it_covers() {
        let cases = [
            (toleration("a", "Equal", "1", "NoSchedule", None), "a=1:NoSchedule", true),
            (toleration("a", "", "1", "NoSchedule", None), "a=1:NoSchedule", true),
            (toleration("a", "Equal", "2", "NoSchedule", None), "a=1:NoSchedule", false),
            (toleration("a", "Exists", "", "", None), "a=1:NoExecute", true),
            (toleration("", "Exists", "", "", None), "b=1:NoExecute", true),
            (toleration("", "Exists", "", "NoSchedule", None), "b:NoExecute", false),
            (toleration("", "", "", "", None), "b:NoExecute", false),
            (toleration("b", "", "", "", None), "b:NoExecute", true),
        ];
        for (toleration, text, expected) in cases {
            assert_eq!(tolerates(&toleration, &taint(text)), expected, "{toleration:?} {text}");
        }
    }

    #[test]
    fn the_shortest_toleration_decides_how_long_a_pod_stays() {
        let unreachable = taint("node.kubernetes.io/unreachable:NoExecute");
        let with = |seconds| toleration("node.kubernetes.io/unreachable", "Exists", "", "NoExecute", seconds);
        assert_eq!(stay(&taint("maintenance:NoExecute"), &[]), Stay::For(Duration::ZERO));
        assert_eq!(stay(&unreachable, &[with(None)]), Stay::Forever);
        assert_eq!(
            stay(&unreachable, &[with(Some(300)), with(None), with(Some(5))]),
            Stay::For(Duration::from_secs(5))
        );
        assert_eq!(stay(&unreachable, &[with(Some(-1))]), Stay::For(Duration::ZERO));
    }

    #[test]
    fn a_pod_that_says_nothing_stays_five_minutes_on_a_silent_node() {
        let elsewhere = toleration("maintenance", "Exists", "", "", None);
        for key in [NOT_READY, UNREACHABLE] {
            assert_eq!(stay(&taint(&format!("{key}:NoExecute")), std::slice::from_ref(&elsewhere)), Stay::For(UNTOLD));
        }
    }
}
