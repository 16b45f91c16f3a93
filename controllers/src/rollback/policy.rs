//! Which policy holds for an object.

use super::marks::note;
use crate::selector;
use kube::core::ObjectMeta;
use proa_crds::{
    RolloutPolicy, RolloutPolicySpec, annotations,
    policy::{FailureAction, WorkloadKind},
};
use std::{sync::Arc, time::Duration};

/// The policy of an object, if it has one. `policies` are those of its namespace; `namespace` is the value of
/// `proa.dev/rollback` there. The rules are told at [`proa_crds::policy`].
pub fn effective(
    kind: WorkloadKind,
    object: &ObjectMeta,
    policies: &[Arc<RolloutPolicy>],
    namespace: Option<&str>,
) -> Option<RolloutPolicySpec> {
    let wish = note(object, annotations::ROLLBACK);
    let on_failure = wish == Some(annotations::ROLLBACK_ON_FAILURE);
    if wish.is_some() && !on_failure {
        return None;
    }
    let chosen = policies.iter().filter(|policy| selects(&policy.spec, kind, object)).min_by_key(|policy| {
        let meta = &policy.metadata;
        (selector::is_empty(&policy.spec.selector), meta.creation_timestamp.clone(), meta.name.clone())
    });
    match chosen {
        Some(policy) if on_failure => {
            Some(RolloutPolicySpec { action: FailureAction::Rollback, ..policy.spec.clone() })
        }
        Some(policy) => Some(policy.spec.clone()),
        None => (on_failure || namespace == Some(annotations::ROLLBACK_ON_FAILURE)).then(RolloutPolicySpec::default),
    }
}

fn selects(policy: &RolloutPolicySpec, kind: WorkloadKind, object: &ObjectMeta) -> bool {
    let kind = policy.kinds.is_empty() || policy.kinds.contains(&kind);
    kind && (selector::is_empty(&policy.selector) || selector::matches(&policy.selector, object.labels.as_ref()))
}

/// How long a revision is watched after its rollout.
pub(crate) fn soak(policy: &RolloutPolicySpec) -> Duration {
    Duration::from_secs(policy.soak_seconds.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(name: &str, spec: Value, created: &str) -> Arc<RolloutPolicy> {
        let metadata = json!({"name": name, "namespace": "ns", "creationTimestamp": format!("2026-11-21T{created}Z")});
        Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a policy"))
    }

    /// The soak of the policy that holds: what tells them apart here.
    fn holds(policies: &[Arc<RolloutPolicy>], annotation: Option<&str>, namespace: Option<&str>) -> Option<u32> {
        let mut object =
            ObjectMeta { labels: Some([("app".to_owned(), "web".to_owned())].into()), ..ObjectMeta::default() };
        if let Some(value) = annotation {
            object.annotations = Some([(annotations::ROLLBACK.to_owned(), value.to_owned())].into());
        }
        effective(WorkloadKind::Deployment, &object, policies, namespace).map(|policy| policy.soak_seconds)
    }

    #[test]
    fn the_annotation_is_the_short_way_and_off_wins_over_every_policy() {
        assert_eq!(holds(&[], None, None), None);
        assert_eq!(holds(&[], Some("on-failure"), None), Some(90));
        assert_eq!(holds(&[], None, Some("on-failure")), Some(90));
        assert_eq!(holds(&[], Some("off"), Some("on-failure")), None);
        let all = [policy("p", json!({"soakSeconds": 1, "action": "Alert"}), "10:00:00")];
        assert_eq!(holds(&all, None, None), Some(1));
        assert_eq!(holds(&all, Some("off"), None), None);
        let object = ObjectMeta {
            annotations: Some([(annotations::ROLLBACK.to_owned(), "on-failure".to_owned())].into()),
            ..ObjectMeta::default()
        };
        let held = effective(WorkloadKind::Deployment, &object, &all, None).expect("a policy");
        assert_eq!((held.action, held.soak_seconds), (FailureAction::Rollback, 1));
    }

    #[test]
    fn of_several_policies_the_closer_then_the_older_then_the_first_by_name_holds() {
        let selected = |name, value: &str, soak: u32, created| {
            policy(name, json!({"selector": {"matchLabels": {"app": value}}, "soakSeconds": soak}), created)
        };
        let all = |name, soak: u32, created| policy(name, json!({"soakSeconds": soak}), created);
        let held = |policies: &[Arc<RolloutPolicy>]| holds(policies, None, None);
        assert_eq!(held(&[all("a", 1, "09:00:00"), selected("b", "web", 2, "10:00:00")]), Some(2));
        assert_eq!(held(&[all("a", 1, "10:00:00"), selected("b", "api", 2, "09:00:00")]), Some(1));
        assert_eq!(held(&[all("a", 1, "10:00:00"), all("b", 2, "09:00:00")]), Some(2));
        assert_eq!(held(&[all("b", 2, "10:00:00"), all("a", 1, "10:00:00")]), Some(1));
        assert_eq!(held(&[policy("a", json!({"kinds": ["DaemonSet"]}), "10:00:00")]), None);
    }
}
