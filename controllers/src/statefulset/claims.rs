//! The persistent volume claims of a stateful set's pods, and who owns them (KEP-1847). Pure.
//!
//! A claim is made before its pod and outlives it. Whether it outlives the set, or the pod's place in it, is what the
//! retention policy says; it is carried out by the garbage collector, by owner references.

use super::identity;
use crate::owners;
use k8s_openapi::{
    api::{apps::v1::StatefulSetPersistentVolumeClaimRetentionPolicy, core::v1::PersistentVolumeClaim},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    ResourceExt,
    core::{ApiResource, ObjectMeta},
};
use proa_crds::{Pod, StatefulSet};
use serde_json::Value;

/// The set's claim templates.
pub(super) fn templates(set: &StatefulSet) -> impl Iterator<Item = &PersistentVolumeClaim> {
    set.spec.volume_claim_templates.iter().flatten()
}

/// The name of the claim of one pod.
pub(super) fn name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i64) -> String {
    format!("{}-{}", template.name_any(), identity::pod_name(set, ordinal))
}

/// Whether a claim of that name may belong to the set.
pub(super) fn belongs(set: &StatefulSet, claim: &str) -> bool {
    templates(set).any(|template| {
        let rest = claim.strip_prefix(&template.name_any()).and_then(|rest| rest.strip_prefix('-'));
        let rest = rest.and_then(|rest| rest.strip_prefix(&set.name_any())?.strip_prefix('-'));
        rest.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()))
    })
}

/// The claim a pod of that ordinal needs.
pub(super) fn claim(
    set: &StatefulSet,
    template: &PersistentVolumeClaim,
    ordinal: i64,
    set_resource: &ApiResource,
) -> PersistentVolumeClaim {
    let mut labels = template.metadata.labels.clone().unwrap_or_default();
    labels.extend(set.spec.selector.match_labels.clone().unwrap_or_default());
    let owned = Policy::of(set).deleted_with_set;
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name(set, template, ordinal)),
            namespace: set.namespace(),
            labels: Some(labels).filter(|labels| !labels.is_empty()),
            annotations: template.metadata.annotations.clone(),
            finalizers: template.metadata.finalizers.clone(),
            owner_references: owned.then(|| vec![owners::controller_reference(set, set_resource)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// What the retention policy says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// The claims go when the set does.
    pub(super) deleted_with_set: bool,
    /// A claim goes when its ordinal is scaled away.
    pub(super) deleted_when_scaled: bool,
}

impl Policy {
    pub(super) fn of(set: &StatefulSet) -> Policy {
        let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
        let deletes = |choice: fn(&StatefulSetPersistentVolumeClaimRetentionPolicy) -> &Option<String>| {
            policy.is_some_and(|policy| choice(policy).as_deref() == Some("Delete"))
        };
        Policy {
            deleted_with_set: deletes(|policy| &policy.when_deleted),
            deleted_when_scaled: deletes(|policy| &policy.when_scaled),
        }
    }
}

/// The patch that makes a claim owned as the policy says; `None` when it is, or is on its way out.
///
/// While a pod is wanted its claim is the set's, if it is anybody's; one that is scaled away takes its claim along. A
/// claim that somebody else controls is never ours.
pub(super) fn owned_right(
    claim: &PersistentVolumeClaim,
    set: &StatefulSet,
    pod: &Pod,
    wanted: bool,
    set_resource: &ApiResource,
    pod_resource: &ApiResource,
) -> Option<Value> {
    if claim.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let uid = |meta: &ObjectMeta| meta.uid.clone().unwrap_or_default();
    let (set_uid, pod_uid) = (uid(&set.metadata), uid(&pod.metadata));
    let held: Vec<OwnerReference> = claim.metadata.owner_references.clone().unwrap_or_default();
    let is_ours = |owner: &OwnerReference| owner.uid == set_uid || owner.uid == pod_uid;
    let others = held.iter().filter(|owner| !is_ours(owner));
    let mut right: Vec<OwnerReference> = others.cloned().collect();
    if !right.iter().any(|owner| owner.controller == Some(true)) {
        let policy = Policy::of(set);
        if !wanted && policy.deleted_when_scaled {
            right.push(owners::controller_reference(pod, pod_resource));
        } else if policy.deleted_with_set {
            right.push(owners::controller_reference(set, set_resource));
        }
    }
    let ids =
        |list: &[OwnerReference]| list.iter().map(|owner| (owner.uid.clone(), owner.controller)).collect::<Vec<_>>();
    let (mut before, mut after) = (ids(&held), ids(&right));
    before.sort();
    after.sort();
    (before != after).then(|| owners::patch(&claim.metadata, &right))
}

/// Whether a claim is of an earlier pod of that name, and goes with it: a new pod waits until it is gone.
pub(super) fn is_stale(
    claim: &PersistentVolumeClaim,
    set: &StatefulSet,
    pod_name: &str,
    pod_kind: &ApiResource,
) -> bool {
    let earlier = |owner: &OwnerReference| {
        owner.kind == pod_kind.kind && owner.api_version == pod_kind.api_version && owner.name == pod_name
    };
    Policy::of(set).deleted_when_scaled && claim.metadata.owner_references.iter().flatten().any(earlier)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_crds::Family;
    use serde_json::json;

    fn set(scaled: &str, deleted: &str) -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "ns", "uid": "set"},
            "spec": {
                "selector": {"matchLabels": {"app": "db"}}, "template": {},
                "persistentVolumeClaimRetentionPolicy": {"whenScaled": scaled, "whenDeleted": deleted},
                "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"tier": "disk"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
            },
        }))
        .expect("a set")
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "db-2", "uid": "pod"}, "spec": {"containers": []}}))
            .expect("a pod")
    }

    fn owned_by(owners: &[(&str, bool)]) -> PersistentVolumeClaim {
        let owners: Vec<_> = owners
            .iter()
            .map(|(uid, controller)| json!({"apiVersion": "v1", "kind": "Pod", "name": "db-2", "uid": uid, "controller": controller}))
            .collect();
        serde_json::from_value(json!({"metadata": {"name": "data-db-2", "ownerReferences": owners}})).expect("a claim")
    }

    #[test]
    fn a_claim_is_named_after_its_template_and_pod_and_found_by_the_sets_labels() {
        let set = set("Retain", "Retain");
        let template = templates(&set).next().expect("one");
        let claim = claim(&set, template, 2, &Family::Standard.stateful_set());
        assert_eq!(claim.metadata.name.as_deref(), Some("data-db-2"));
        let labels: Vec<_> = claim.metadata.labels.expect("labels").into_iter().collect();
        assert_eq!(labels, [("app".to_owned(), "db".to_owned()), ("tier".to_owned(), "disk".to_owned())]);
        assert!(claim.metadata.owner_references.is_none(), "it is retained by default");
        assert!(belongs(&set, "data-db-2") && belongs(&set, "data-db-17"));
        assert!(!belongs(&set, "data-db-") && !belongs(&set, "data-other-2") && !belongs(&set, "data-db-x"));
    }

    #[test]
    fn who_owns_a_claim_follows_the_retention_policy() {
        let standard = Family::Standard;
        // Policy when scaled and when the set is deleted; owned before; owned while the pod is wanted, and once it is not.
        type Owners = &'static [(&'static str, bool)];
        let cases: [(&str, &str, Owners, Owners, Owners); 6] = [
            ("Retain", "Retain", &[("set", true), ("pod", true)], &[], &[]),
            ("Retain", "Delete", &[], &[("set", true)], &[("set", true)]),
            ("Delete", "Retain", &[("pod", true)], &[], &[("pod", true)]),
            ("Delete", "Delete", &[("set", true)], &[("set", true)], &[("pod", true)]),
            ("Delete", "Delete", &[("x", false)], &[("x", false), ("set", true)], &[("x", false), ("pod", true)]),
            // What somebody else controls is not ours.
            ("Delete", "Delete", &[("x", true), ("set", true)], &[("x", true)], &[("x", true)]),
        ];
        for (scaled, deleted, before, wanted, unwanted) in cases {
            for (is_wanted, expected) in [(true, wanted), (false, unwanted)] {
                let (set, claim) = (set(scaled, deleted), owned_by(before));
                let patch = owned_right(&claim, &set, &pod(), is_wanted, &standard.stateful_set(), &standard.pod());
                let mut after = crate::patch::json(&claim);
                crate::sim::merge(&mut after, &patch.unwrap_or_else(|| json!({})));
                let owners = after["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
                let said: Vec<_> =
                    owners.iter().map(|o| (o["uid"].as_str().unwrap_or_default(), o["controller"] == true)).collect();
                assert_eq!(said, expected, "{scaled} {deleted} {before:?}, wanted {is_wanted}");
            }
        }
    }

    #[test]
    fn a_claim_that_goes_with_an_earlier_pod_of_the_name_is_waited_for() {
        let kind = Family::Standard.pod();
        assert!(is_stale(&owned_by(&[("earlier", true)]), &set("Delete", "Retain"), "db-2", &kind));
        assert!(!is_stale(&owned_by(&[("earlier", true)]), &set("Retain", "Retain"), "db-2", &kind));
        assert!(!is_stale(&owned_by(&[]), &set("Delete", "Delete"), "db-2", &kind));
    }
}
