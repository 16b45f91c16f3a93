//! What a node agent may do: read what its pods may need, write its own node, its pods' status, leases
//! and events. Simple on purpose: it does not follow which pod uses which secret.

use super::Attributes;
use crate::user::User;

const READ: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "pods",
            "nodes",
            "services",
            "endpoints",
            "configmaps",
            "secrets",
            "persistentvolumes",
            "persistentvolumeclaims",
            "namespaces",
            "serviceaccounts",
            "limitranges",
            "replicationcontrollers",
        ],
    ),
    ("apps", &["replicasets"]),
    ("discovery.k8s.io", &["endpointslices"]),
    ("node.k8s.io", &["runtimeclasses"]),
    ("storage.k8s.io", &["csidrivers", "csinodes", "volumeattachments", "storageclasses"]),
    ("networking.k8s.io", &["networkpolicies", "servicecidrs", "ipaddresses"]),
    ("coordination.k8s.io", &["leases"]),
    ("certificates.k8s.io", &["certificatesigningrequests"]),
];

const WRITE: &[(&str, &str, &[&str])] = &[
    ("", "nodes", &["create", "update", "patch"]),
    ("", "nodes/status", &["update", "patch"]),
    ("", "pods", &["create", "delete", "patch"]),
    ("", "pods/status", &["update", "patch"]),
    ("", "pods/eviction", &["create"]),
    ("", "events", &["create", "update", "patch"]),
    ("events.k8s.io", "events", &["create", "update", "patch"]),
    ("", "serviceaccounts/token", &["create"]),
    ("coordination.k8s.io", "leases", &["create", "update", "patch", "delete"]),
    ("authentication.k8s.io", "tokenreviews", &["create"]),
    ("authorization.k8s.io", "subjectaccessreviews", &["create"]),
    ("authorization.k8s.io", "localsubjectaccessreviews", &["create"]),
    ("certificates.k8s.io", "certificatesigningrequests", &["create"]),
    ("storage.k8s.io", "csinodes", &["create", "update", "patch", "delete"]),
];

/// Whether `user` is a node and `what` is a node's work.
pub fn allowed(user: &User, what: &Attributes<'_>) -> bool {
    let Some(node) = user.name.strip_prefix("system:node:").filter(|_| user.in_group("system:nodes")) else {
        return false;
    };
    if matches!(what.verb, "get" | "list" | "watch") {
        let known = READ.iter().any(|(group, resources)| *group == what.group && resources.contains(&what.resource));
        return known && (what.subresource.is_empty() || what.subresource == "status");
    }
    let own_object = match what.resource {
        // A node writes itself only; creation carries no name in the path.
        "nodes" | "csinodes" => what.name.is_empty() || what.name == node,
        "leases" => what.namespace == "kube-node-lease" && (what.name.is_empty() || what.name == node),
        _ => true,
    };
    let resource = if what.subresource.is_empty() {
        what.resource.to_owned()
    } else {
        format!("{}/{}", what.resource, what.subresource)
    };
    own_object
        && WRITE
            .iter()
            .any(|(group, have, verbs)| *group == what.group && *have == resource && verbs.contains(&what.verb))
}
