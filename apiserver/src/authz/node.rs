//! What the agent of a node may do.
//!
//! Owns the node authorizer: what every node may do, and what only its own pods, by what they refer to, let it
//! read. What depends on the content of a write (whose status, which labels) is admission's to judge
//! ([`crate::admission`]). Source: Kubernetes, "Using Node Authorization".

use std::sync::LazyLock;

use proa_apimachinery::Object;
use serde_json::Value;

use super::Attributes;
use super::rbac::Rule;
use crate::core::Core;
use crate::kinds::pod::Referent;
use crate::user::User;

/// A node's name, as a label of it and of the volumes that lie on it.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// Where the leases of nodes are.
pub const LEASES: &str = "kube-node-lease";

/// Verbs, group and resources that are every node's work, whatever runs there. Admission narrows the writes. Other
/// nodes are read for the way to their pods, Services and their endpoints for the way to those, namespaces for the
/// names of pods in the cluster's DNS.
const GENERAL: &[(&[&str], &str, &[&str])] = &[
    (READ, "", &["nodes", "services", "endpoints", "namespaces"]),
    (READ, "discovery.k8s.io", &["endpointslices"]),
    (READ, "node.k8s.io", &["runtimeclasses"]),
    (READ, "storage.k8s.io", &["csidrivers"]),
    (&["create"], "", &["nodes", "pods", "pods/eviction"]),
    (&["delete"], "", &["pods"]),
    (&["patch", "update"], "", &["pods/status"]),
    (&["create", "patch", "update"], "", &["events"]),
    (&["create", "patch", "update"], "events.k8s.io", &["events"]),
    (&["create"], "authentication.k8s.io", &["tokenreviews"]),
    (&["create"], "authorization.k8s.io", &["localsubjectaccessreviews", "subjectaccessreviews"]),
    (&["create", "get", "list", "watch"], "certificates.k8s.io", &["certificatesigningrequests"]),
];

const READ: &[&str] = &["get", "list", "watch"];

static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    let rule = |(verbs, group, resources): &(&[&str], &str, &[&str])| Rule {
        verbs: texts(verbs),
        groups: texts(&[group]),
        resources: texts(resources),
        ..Rule::default()
    };
    GENERAL.iter().map(rule).collect()
});

/// What every node may do: all that can be said without asking about one object.
pub fn general_rules() -> &'static [Rule] {
    &RULES
}

/// Whether `user` is a node and `what` is its work.
pub fn allowed(core: &Core, user: &User, what: &Attributes<'_>) -> bool {
    let Some(node) = user.node_name() else { return false };
    general_rules().iter().any(|rule| rule.allows(what)) || own_objects(core, node, what)
}

/// What the node may do with this one object.
fn own_objects(core: &Core, node: &str, what: &Attributes<'_>) -> bool {
    let verb = |verbs: &[&str]| verbs.contains(&what.verb);
    let refer = |to: Referent| core.node_pods.refer(&core.caches, node, to, what.namespace, what.name);
    match (what.group, what.resource, what.subresource) {
        ("", "nodes", "" | "status") => what.name == node && verb(&["get", "patch", "update"]),
        ("", "pods", "" | "status") => {
            let narrowed = what.selected.iter().any(|(field, value)| field == "spec.nodeName" && value == node);
            verb(&["list", "watch"]) && narrowed
                || verb(READ) && core.node_pods.runs(&core.caches, node, what.namespace, what.name)
        }
        ("", "secrets", "") => verb(READ) && refer(Referent::Secret),
        ("", "configmaps", "") => verb(READ) && refer(Referent::ConfigMap),
        ("", "persistentvolumeclaims", "" | "status") => verb(&["get"]) && refer(Referent::PersistentVolumeClaim),
        // Those that lie on the node: its agent removes what is left of them.
        ("", "persistentvolumes", "") => {
            let narrowed = what.labelled.iter().any(|(label, value)| label == HOSTNAME && value == node);
            verb(&["list", "watch"]) && narrowed
                || verb(&["get"]) && claimed(core, node, what.name)
                || verb(&["get", "patch"]) && lies_on(core, node, what.name)
        }
        ("", "serviceaccounts", "") => verb(&["get"]) && refer(Referent::ServiceAccount),
        ("", "serviceaccounts", "token") => verb(&["create"]) && refer(Referent::ServiceAccount),
        ("coordination.k8s.io", "leases", "") => {
            what.namespace == LEASES && own(node, what, &["get", "patch", "update", "delete"])
        }
        ("storage.k8s.io", "csinodes", "") => own(node, what, &["get", "patch", "update", "delete"]),
        ("storage.k8s.io", "volumeattachments", "") => verb(&["get"]) && attached(core, node, what.name),
        _ => false,
    }
}

/// The object called after the node. Creation carries no name in the path: admission looks at the object's.
fn own(node: &str, what: &Attributes<'_>, verbs: &[&str]) -> bool {
    what.verb == "create" && what.name.is_empty() || what.name == node && verbs.contains(&what.verb)
}

/// Whether the volume says that it is reached from this node alone.
fn lies_on(core: &Core, node: &str, volume: &str) -> bool {
    let item = core.caches.resource("persistentvolumes").get("", volume);
    item.is_some_and(|item| item.object().label(HOSTNAME) == Some(node) && local_to(&item.object()) == Some(node))
}

/// The one node a volume can be reached from, by the affinity a provisioner of local storage gives it.
pub fn local_to(volume: &Object) -> Option<&str> {
    let terms = volume.get_list(&["spec", "nodeAffinity", "required", "nodeSelectorTerms"]);
    let [term] = terms else { return None };
    let [requirement] = term.get("matchExpressions")?.as_array()?.as_slice() else { return None };
    let text = |field: &str| requirement.get(field).and_then(Value::as_str);
    match (text("key"), text("operator"), requirement.get("values")?.as_array()?.as_slice()) {
        (Some(HOSTNAME), Some("In"), [node]) => node.as_str(),
        _ => None,
    }
}

/// Whether the volume is bound to a claim that a pod of the node names.
fn claimed(core: &Core, node: &str, volume: &str) -> bool {
    let Some(item) = core.caches.resource("persistentvolumes").get("", volume) else { return false };
    let object = item.object();
    let claim = |field: &str| object.get_str(&["spec", "claimRef", field]).unwrap_or_default();
    let to = Referent::PersistentVolumeClaim;
    core.node_pods.refer(&core.caches, node, to, claim("namespace"), claim("name"))
}

fn attached(core: &Core, node: &str, attachment: &str) -> bool {
    let item = core.caches.resource("volumeattachments.storage.k8s.io").get("", attachment);
    item.is_some_and(|item| item.object().get_str(&["spec", "nodeName"]) == Some(node))
}
