//! In which order objects are written and removed: what others need comes first and goes last. Pure.

use super::content::Id;

/// The ranks of the kinds others depend on, first to last. Kinds that are not named come after the workloads: a custom
/// resource is mostly read by a controller that is one.
const RANKS: [&[(&str, &str)]; 9] = [
    &[("", "Namespace")],
    &[("apiextensions.k8s.io", "CustomResourceDefinition")],
    &[
        ("", "PersistentVolume"),
        ("", "ResourceQuota"),
        ("", "LimitRange"),
        ("networking.k8s.io", "IngressClass"),
        ("node.k8s.io", "RuntimeClass"),
        ("scheduling.k8s.io", "PriorityClass"),
        ("storage.k8s.io", "CSIDriver"),
        ("storage.k8s.io", "StorageClass"),
    ],
    &[("", "ServiceAccount"), ("rbac.authorization.k8s.io", "ClusterRole"), ("rbac.authorization.k8s.io", "Role")],
    &[("rbac.authorization.k8s.io", "ClusterRoleBinding"), ("rbac.authorization.k8s.io", "RoleBinding")],
    &[("", "ConfigMap"), ("", "Secret")],
    &[("", "PersistentVolumeClaim")],
    &[
        ("", "Service"),
        ("", "Endpoints"),
        ("discovery.k8s.io", "EndpointSlice"),
        ("networking.k8s.io", "NetworkPolicy"),
        ("policy", "PodDisruptionBudget"),
        ("proa.dev", "RolloutPolicy"),
    ],
    &[
        ("", "Pod"),
        ("", "PodTemplate"),
        ("", "ReplicationController"),
        ("apps", "ControllerRevision"),
        ("apps", "DaemonSet"),
        ("apps", "Deployment"),
        ("apps", "ReplicaSet"),
        ("apps", "StatefulSet"),
        ("batch", "CronJob"),
        ("batch", "Job"),
    ],
];
/// What stands in the way of others, and may refuse them, comes last of all.
const LAST: [(&str, &str); 5] = [
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ("apiregistration.k8s.io", "APIService"),
];

/// The place of an object in the order of writing. The workload kinds of the `proa.dev` family have the rank of their
/// standard twins.
pub(super) fn rank(id: &Id) -> usize {
    let is = |(group, kind): &(&str, &str)| {
        *kind == id.kind && (*group == id.group || (id.group == "proa.dev" && matches!(*group, "" | "apps" | "batch")))
    };
    if let Some(rank) = RANKS.iter().position(|kinds| kinds.iter().any(is)) {
        return rank;
    }
    RANKS.len() + usize::from(LAST.iter().any(is))
}

/// Sorts for writing; read from the back, for removing.
pub(super) fn sort_by_rank<T>(items: &mut [T], id: impl Fn(&T) -> &Id) {
    items.sort_by(|a, b| (rank(id(a)), id(a)).cmp(&(rank(id(b)), id(b))));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(group: &str, kind: &str) -> Id {
        Id { group: group.into(), kind: kind.into(), namespace: "ns".into(), name: "x".into() }
    }

    #[test]
    fn what_others_need_comes_first() {
        let mut ids = [
            id("networking.k8s.io", "Ingress"),
            id("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
            id("apps", "Deployment"),
            id("example.com", "Widget"),
            id("", "Service"),
            id("", "PersistentVolumeClaim"),
            id("", "Secret"),
            id("rbac.authorization.k8s.io", "RoleBinding"),
            id("", "ServiceAccount"),
            id("apiextensions.k8s.io", "CustomResourceDefinition"),
            id("", "Namespace"),
        ];
        sort_by_rank(&mut ids, |id| id);
        let kinds: Vec<&str> = ids.iter().map(|id| id.kind.as_str()).collect();
        assert_eq!(
            kinds,
            [
                "Namespace",
                "CustomResourceDefinition",
                "ServiceAccount",
                "RoleBinding",
                "Secret",
                "PersistentVolumeClaim",
                "Service",
                "Deployment",
                "Widget",
                "Ingress",
                "ValidatingWebhookConfiguration",
            ]
        );
        assert_eq!(rank(&id("proa.dev", "Deployment")), rank(&id("apps", "Deployment")));
    }
}
