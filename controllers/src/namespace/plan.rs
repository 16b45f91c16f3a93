//! How a namespace that is going away is emptied. Pure.

use crate::{
    Plan,
    catalogue::{Remaining, Resource},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Namespace, NamespaceCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use std::{collections::BTreeMap, sync::Arc};

/// The finalizer in `spec.finalizers` that is ours.
pub const FINALIZER: &str = "kubernetes";

/// A namespace and what is left in it.
#[derive(Debug)]
pub struct Seen {
    /// The namespace.
    pub namespace: Arc<Namespace>,
    /// What is left, by resource.
    pub remaining: BTreeMap<String, Remaining>,
    /// What could not be discovered: it may hold more.
    pub failures: Vec<String>,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Delete every object of a resource in the namespace.
    DeleteAll(Arc<Resource>),
    /// Tell what is waited for.
    Conditions(Vec<NamespaceCondition>),
    /// Make sure that nothing is left, and let the namespace go.
    Finish,
}

/// Decides about one namespace.
pub fn plan(seen: &Seen, now: Timestamp) -> Plan<Action> {
    let namespace = &seen.namespace;
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    if namespace.metadata.deletion_timestamp.is_none()
        || !finalizers.into_iter().flatten().any(|name| name == FINALIZER)
    {
        return Plan::nothing();
    }
    // Pods first: they may need their configuration and their policies until they have ended (KEP-5080).
    let is_pods =
        |remaining: &&Remaining| remaining.resource.api.plural == "pods" && remaining.resource.api.group.is_empty();
    let pods = seen.remaining.values().find(is_pods);
    let next: Vec<&Remaining> = pods.map_or_else(|| seen.remaining.values().collect(), |pods| vec![pods]);
    let untouched: Vec<Action> = next
        .iter()
        .filter(|remaining| remaining.untouched > 0)
        .map(|remaining| Action::DeleteAll(remaining.resource.clone()))
        .collect();
    if !untouched.is_empty() {
        return Plan::act(untouched);
    }
    if seen.remaining.is_empty() && seen.failures.is_empty() {
        return Plan::act(vec![Action::Finish]);
    }
    Plan::act(conditions(seen, now).map(Action::Conditions).into_iter().collect())
}

/// The conditions that tell what is waited for; `None` when they are there already.
fn conditions(seen: &Seen, now: Timestamp) -> Option<Vec<NamespaceCondition>> {
    let held = seen.namespace.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let mut conditions = held.clone();
    for (type_, status, reason, message) in told(seen) {
        let status = if status { "True" } else { "False" };
        let before = conditions.iter_mut().find(|condition| condition.type_ == type_);
        let since = before
            .as_ref()
            .filter(|before| before.status == status)
            .and_then(|before| before.last_transition_time.clone());
        let condition = NamespaceCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(since.unwrap_or(Time(now))),
        };
        match before {
            Some(before) => *before = condition,
            None => conditions.push(condition),
        }
    }
    (conditions != held).then_some(conditions)
}

/// Types, reasons and sentences are Kubernetes'.
fn told(seen: &Seen) -> Vec<(&'static str, bool, &'static str, String)> {
    let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, count) in seen.remaining.values().flat_map(|remaining| &remaining.finalizers) {
        *finalizers.entry(name).or_default() += count;
    }
    let resources =
        seen.remaining.iter().map(|(label, remaining)| format!("{label} has {} resource instances", remaining.count));
    let holders = finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances"));
    let join = |parts: &mut dyn Iterator<Item = String>| parts.collect::<Vec<_>>().join(", ");
    let (resources, holders) = (join(&mut resources.into_iter()), join(&mut holders.into_iter()));
    let discovery = match seen.failures.as_slice() {
        [] => (
            "NamespaceDeletionDiscoveryFailure",
            false,
            "ResourcesDiscovered",
            "All resources successfully discovered".to_owned(),
        ),
        failures => (
            "NamespaceDeletionDiscoveryFailure",
            true,
            "DiscoveryFailed",
            format!("Discovery failed for some groups, {} failing: {}", failures.len(), failures.join(", ")),
        ),
    };
    vec![
        discovery,
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".to_owned(),
        ),
        (
            "NamespaceDeletionContentFailure",
            false,
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization".to_owned(),
        ),
        match resources.as_str() {
            "" => ("NamespaceContentRemaining", false, "ContentRemoved", "All content successfully removed".to_owned()),
            some => (
                "NamespaceContentRemaining",
                true,
                "SomeResourcesRemain",
                format!("Some resources are remaining: {some}"),
            ),
        },
        match holders.as_str() {
            "" => (
                "NamespaceFinalizersRemaining",
                false,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished".to_owned(),
            ),
            some => (
                "NamespaceFinalizersRemaining",
                true,
                "SomeFinalizersRemain",
                format!("Some content in the namespace has finalizers remaining: {some}"),
            ),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::tests::resource;
    use serde_json::json;

    fn seen(remaining: &[(&str, usize, usize, &[&str])]) -> Seen {
        let namespace = json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"finalizers": ["kubernetes"]}});
        let remaining = remaining.iter().map(|(kind, count, untouched, finalizers)| {
            let finalizers = finalizers.iter().map(|name| ((*name).to_owned(), 1)).collect();
            let left = Remaining { resource: resource(kind, true), count: *count, untouched: *untouched, finalizers };
            (left.resource.label(), left)
        });
        Seen {
            namespace: Arc::new(serde_json::from_value(namespace).unwrap()),
            remaining: remaining.collect(),
            failures: vec![],
        }
    }

    fn said(seen: &Seen) -> Vec<String> {
        let say = |action: &Action| match action {
            Action::DeleteAll(resource) => format!("delete {}", resource.api.plural),
            Action::Conditions(_) => "tell".to_owned(),
            Action::Finish => "finish".to_owned(),
        };
        plan(seen, Timestamp::UNIX_EPOCH).actions.iter().map(say).collect()
    }

    #[test]
    fn pods_go_first_then_the_rest_then_the_namespace() {
        assert_eq!(said(&seen(&[("Pod", 2, 2, &[]), ("Secret", 1, 1, &[])])), ["delete pods"]);
        assert_eq!(said(&seen(&[("Pod", 2, 0, &[]), ("Secret", 1, 1, &[])])), ["tell"]);
        assert_eq!(
            said(&seen(&[("Secret", 1, 1, &[]), ("ConfigMap", 1, 1, &[])])),
            ["delete configmaps", "delete secrets"]
        );
        assert_eq!(said(&seen(&[])), ["finish"]);
    }

    #[test]
    fn a_namespace_that_stays_or_is_held_by_others_only_is_left_alone() {
        let mut staying = seen(&[]);
        Arc::make_mut(&mut staying.namespace).metadata.deletion_timestamp = None;
        assert!(said(&staying).is_empty());
        let mut done = seen(&[]);
        Arc::make_mut(&mut done.namespace).spec.as_mut().unwrap().finalizers = Some(vec!["example.com/mine".into()]);
        assert!(said(&done).is_empty());
    }

    #[test]
    fn what_is_waited_for_is_told_in_kubernetes_words_once() {
        let mut here = seen(&[("Secret", 2, 0, &["example.com/hold"])]);
        let Some(Action::Conditions(conditions)) = plan(&here, Timestamp::UNIX_EPOCH).actions.pop() else { panic!() };
        let message =
            |type_: &str| conditions.iter().find(|c| c.type_ == type_).and_then(|c| c.message.clone()).unwrap();
        assert_eq!(
            message("NamespaceContentRemaining"),
            "Some resources are remaining: secrets. has 2 resource instances"
        );
        assert_eq!(
            message("NamespaceFinalizersRemaining"),
            "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
        );
        Arc::make_mut(&mut here.namespace).status = serde_json::from_value(json!({"conditions": conditions})).unwrap();
        assert!(said(&here).is_empty());
    }

    #[test]
    fn a_namespace_does_not_go_while_a_group_does_not_answer() {
        let mut here = seen(&[]);
        here.failures = vec!["metrics.k8s.io/v1: unavailable".into()];
        assert_eq!(said(&here), ["tell"]);
    }
}
