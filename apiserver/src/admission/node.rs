//! What a node's agent may write into what it may write to (Kubernetes' NodeRestriction): its own Node without
//! steering who is scheduled there, its own pods' status and end, its own lease, and tokens for its own pods.
//!
//! Anybody but a node passes.

use std::collections::BTreeSet;

use proa_apimachinery::object::Object;
use proa_apimachinery::status::{ApiError, GroupResource};
use serde_json::Value;

use crate::authz::node::{LEASES, local_to};
use crate::kinds::Op;
use crate::kinds::pod::{CONFIG_REVISION, MIRROR, Referent, references};
use crate::registry::Call;

/// Holds a volume until its node has removed what is left of it.
const LOCAL_VOLUME: &str = "proa.dev/local-volume";

/// Labels under `kubernetes.io` and `k8s.io` that a node may give itself.
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
];
/// The prefixes (and their subdomains) under which a node may choose its labels …
const OWN_PREFIXES: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];
/// … and the one that is for administrators to isolate nodes by.
const RESTRICTED_PREFIX: &str = "node-restriction.kubernetes.io";

/// Checks a create or update.
pub(super) fn admit(call: &Call<'_>, op: Op, new: &Object, old: Option<&Object>) -> Result<(), ApiError> {
    let Some(node) = call.user().node_name() else { return Ok(()) };
    let kind = &call.resource.kind;
    let verdict = match (&*kind.group, &*kind.plural, op, old) {
        ("", "pods", Op::Create, _) => {
            let uid = call.core.caches.resource("nodes").get("", node).map(|item| item.object().uid().to_owned());
            mirror_pod(node, uid.as_deref(), new)
        }
        ("", "pods", Op::UpdateStatus, Some(old)) => pod_status(node, new, old),
        ("", "pods", ..) => Err(format!("node \"{node}\" can only create and delete mirror pods")),
        ("", "nodes", ..) => own_node(node, new, old),
        ("coordination.k8s.io", "leases", ..) if new.namespace() != LEASES => {
            Err(format!("can only access leases in the \"{LEASES}\" system namespace"))
        }
        ("coordination.k8s.io", "leases", ..) if new.name() != node => {
            Err("can only access node lease with the same name as the requesting node".to_owned())
        }
        ("", "persistentvolumes", Op::Update, Some(old)) => let_go(node, new, old),
        ("", "persistentvolumes", ..) => Err(format!("node \"{node}\" can only let go of volumes that lie on it")),
        ("storage.k8s.io", "csinodes", ..) if new.name() != node => {
            Err("can only access CSINode with the same name as the requesting node".to_owned())
        }
        _ => Ok(()),
    };
    verdict.map_err(|why| ApiError::forbidden(call.resource.group_resource(), new.name(), &why))
}

/// Checks a delete or an eviction.
pub(super) fn may_delete(call: &Call<'_>, old: &Object) -> Result<(), ApiError> {
    let Some(node) = call.user().node_name() else { return Ok(()) };
    let kind = &call.resource.kind;
    if (&*kind.group, &*kind.plural) != ("", "pods") || runs_on(node, old) {
        return Ok(());
    }
    let done = if call.request.info.subresource == "eviction" { "evict" } else { "delete" };
    let why = format!("node \"{node}\" can only {done} pods with spec.nodeName set to itself");
    Err(ApiError::forbidden(call.resource.group_resource(), old.name(), &why))
}

/// Checks a request for a token: it must die with a pod of the node, and be meant for whom that pod wants it.
pub fn may_request_token(call: &Call<'_>, spec: &Value) -> Result<(), ApiError> {
    let Some(node) = call.user().node_name() else { return Ok(()) };
    let refuse = |why: &str| ApiError::forbidden(call.resource.group_resource(), call.name(), why);
    let text = |pointer: &str| spec.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let name = text("/boundObjectRef/name");
    if text("/boundObjectRef/kind") != "Pod" || name.is_empty() {
        return Err(refuse("node requested token not bound to a pod"));
    }
    if text("/boundObjectRef/uid").is_empty() {
        return Err(refuse("node requested token with a pod binding without a uid"));
    }
    let pod = call.core.caches.resource("pods").get(call.namespace(), name);
    let pod = pod.ok_or_else(|| ApiError::not_found(GroupResource::new("", "pods"), name))?.object();
    if !runs_on(node, &pod) {
        return Err(refuse("node requested token bound to a pod scheduled on a different node"));
    }
    let audience = match spec.get("audiences").and_then(Value::as_array).map(Vec::as_slice) {
        None | Some([]) => "",
        Some([one]) => one.as_str().unwrap_or_default(),
        Some(_) => return Err(refuse("node may only request 0 or 1 audiences")),
    };
    if audiences(&pod).any(|wanted| wanted == audience) {
        return Ok(());
    }
    Err(refuse(&format!("audience {audience:?} not found in pod spec volume")))
}

/// For whom a pod's projected tokens are; empty is the API server.
fn audiences(pod: &Object) -> impl Iterator<Item = &str> {
    let volumes = pod.get_list(&["spec", "volumes"]).iter();
    let sources = volumes.filter_map(|volume| volume.pointer("/projected/sources")?.as_array()).flatten();
    sources
        .filter_map(|source| source.get("serviceAccountToken").filter(|token| token.is_object()))
        .map(|token| token.get("audience").and_then(Value::as_str).unwrap_or_default())
}

fn runs_on(node: &str, pod: &Object) -> bool {
    pod.get_str(&["spec", "nodeName"]) == Some(node)
}

/// A pod a node may create: the image of one it runs by itself, which refers to nothing in the API.
fn mirror_pod(node: &str, uid: Option<&str>, pod: &Object) -> Result<(), String> {
    if pod.annotation(MIRROR).is_none() {
        return Err(format!("pod does not have \"{MIRROR}\" annotation, node \"{node}\" can only create mirror pods"));
    }
    if !runs_on(node, pod) {
        return Err(format!("node \"{node}\" can only create pods with spec.nodeName set to itself"));
    }
    let owners = pod.owner_references();
    let [owner] = owners.as_slice() else {
        return Err(format!("node \"{node}\" can only create pods with a single owner reference set to itself"));
    };
    let itself = owner.api_version == "v1" && owner.kind == "Node" && owner.name == node && uid == Some(&*owner.uid);
    if !itself || !owner.controller || owner.block_owner_deletion {
        return Err(format!(
            "node \"{node}\" can only create pods with an owner reference set to itself, as controller, and without \
             blockOwnerDeletion"
        ));
    }
    match references(pod).first() {
        None => Ok(()),
        Some((to, _)) => {
            let what = match to {
                Referent::ConfigMap => "configmaps",
                Referent::Secret => "secrets",
                Referent::PersistentVolumeClaim => "persistentvolumeclaims",
                Referent::ServiceAccount => "a service account",
            };
            Err(format!("node \"{node}\" can not create pods that reference {what}"))
        }
    }
}

fn pod_status(node: &str, new: &Object, old: &Object) -> Result<(), String> {
    if !runs_on(node, old) {
        return Err(format!("node \"{node}\" can only update pod status for pods with spec.nodeName set to itself"));
    }
    if !changed_labels(new, Some(old)).is_empty() {
        return Err(format!("node \"{node}\" cannot update labels through pod status"));
    }
    // By this annotation the node would let itself read another Secret.
    if new.annotation(CONFIG_REVISION) != old.annotation(CONFIG_REVISION) {
        return Err(format!("node \"{node}\" cannot update the annotation {CONFIG_REVISION}"));
    }
    Ok(())
}

fn own_node(node: &str, new: &Object, old: Option<&Object>) -> Result<(), String> {
    if new.name() != node {
        return Err(format!("node \"{node}\" is not allowed to modify node \"{}\"", new.name()));
    }
    let labels: Vec<&str> = changed_labels(new, old).into_iter().filter(|label| !may_label(label)).collect();
    if !labels.is_empty() {
        let verb = if old.is_some() { "modify" } else { "set" };
        return Err(format!("is not allowed to {verb} the following labels: {}", labels.join(", ")));
    }
    let owners = |node: &Object| node.metadata().and_then(|metadata| metadata.get("ownerReferences")).cloned();
    match old {
        Some(old) if new.get(&["spec", "taints"]) != old.get(&["spec", "taints"]) => {
            Err(format!("node \"{node}\" is not allowed to modify taints"))
        }
        old if owners(new) != old.and_then(owners) => {
            Err(format!("node \"{node}\" is not allowed to modify ownerReferences"))
        }
        _ => Ok(()),
    }
}

/// A node takes its own finalizer off a volume of its that goes away, and changes nothing else.
fn let_go(node: &str, new: &Object, old: &Object) -> Result<(), String> {
    let only = || format!("node \"{node}\" can only remove the finalizer {LOCAL_VOLUME} from volumes that lie on it");
    if old.deletion_timestamp().is_none() || local_to(old) != Some(node) {
        return Err(only());
    }
    let kept: Vec<&str> = old.finalizers().filter(|finalizer| *finalizer != LOCAL_VOLUME).collect();
    let rest = |volume: &Object| {
        let mut volume = volume.clone();
        for field in ["finalizers", "managedFields", "resourceVersion"] {
            volume.metadata_mut().shift_remove(field);
        }
        volume
    };
    if new.finalizers().eq(kept) && rest(new) == rest(old) { Ok(()) } else { Err(only()) }
}

/// The labels that differ.
fn changed_labels<'a>(new: &'a Object, old: Option<&'a Object>) -> BTreeSet<&'a str> {
    let old_labels = || old.into_iter().flat_map(Object::labels);
    let set = new.labels().filter(|(key, value)| old.and_then(|old| old.label(key)) != Some(*value));
    let removed = old_labels().filter(|(key, _)| new.label(key).is_none());
    set.chain(removed).map(|(key, _)| key).collect()
}

/// Whether a node may choose this label of itself: all but those by which administrators keep workloads apart.
fn may_label(label: &str) -> bool {
    let Some((prefix, _)) = label.split_once('/') else { return true };
    let under = |domain: &str| prefix == domain || prefix.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    if under(RESTRICTED_PREFIX) {
        return false;
    }
    let reserved = under("kubernetes.io") || under("k8s.io");
    !reserved || OWN_LABELS.contains(&label) || OWN_PREFIXES.iter().any(|domain| under(domain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    #[test]
    fn a_node_labels_itself_but_not_into_an_isolated_pool() {
        for (label, may) in [
            ("disk", true),
            ("example.com/pool", true),
            ("kubernetes.io/hostname", true),
            ("topology.kubernetes.io/zone", true),
            ("node.kubernetes.io/anything", true),
            ("x.kubelet.kubernetes.io/anything", true),
            ("node-role.kubernetes.io/control-plane", false),
            ("kubernetes.io/anything", false),
            ("x.k8s.io/anything", false),
            ("node-restriction.kubernetes.io/pci", false),
            ("example.node-restriction.kubernetes.io/pci", false),
            ("notkubernetes.io/anything", true),
        ] {
            assert_eq!(may_label(label), may, "{label}");
        }
    }

    #[test]
    fn a_node_writes_itself_without_steering_the_scheduler() {
        let node = |labels: Value, taints: Value| {
            object(json!({"metadata": {"name": "a", "labels": labels}, "spec": {"taints": taints}}))
        };
        let taint = json!([{"key": "k", "effect": "NoSchedule"}]);
        let old = node(json!({"node-restriction.kubernetes.io/pool": "x", "mine": "1"}), taint.clone());
        let same = json!({"node-restriction.kubernetes.io/pool": "x", "mine": "2", "kubernetes.io/os": "linux"});
        assert_eq!(own_node("a", &node(same.clone(), taint.clone()), Some(&old)), Ok(()));
        assert_eq!(own_node("a", &node(json!({}), taint.clone()), None), Ok(()), "a new node may bring taints");
        for (what, by, new, old) in [
            ("another node", "b", node(same.clone(), taint.clone()), Some(&old)),
            ("no taints", "a", node(same.clone(), json!([])), Some(&old)),
            ("a label taken off", "a", node(json!({"mine": "1"}), taint.clone()), Some(&old)),
            ("a label brought along", "a", node(same, taint), None),
        ] {
            assert!(own_node(by, &new, old).is_err(), "{what}");
        }
        let owned = object(json!({"metadata": {"name": "a", "ownerReferences": [{"name": "x"}]}}));
        assert!(own_node("a", &owned, None).is_err());
    }

    type Change<'a> = &'a dyn Fn(&mut Value);

    #[test]
    fn a_node_creates_only_the_image_of_what_it_runs_by_itself() {
        let pod = |change: Change<'_>| {
            let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "u", "controller": true});
            let mut pod = json!({
                "metadata": {"name": "p", "annotations": {MIRROR: "x"}, "ownerReferences": [owner]},
                "spec": {"nodeName": "a", "containers": [{"name": "c", "image": "i"}]},
            });
            change(&mut pod);
            mirror_pod("a", Some("u"), &object(pod))
        };
        assert_eq!(pod(&|_| {}), Ok(()));
        let wrong: [(&str, Change<'_>); 7] = [
            ("no mirror", &|pod| pod["metadata"]["annotations"] = json!({})),
            ("another node's", &|pod| pod["spec"]["nodeName"] = "b".into()),
            ("no owner", &|pod| pod["metadata"]["ownerReferences"] = json!([])),
            ("an earlier node of that name", &|pod| pod["metadata"]["ownerReferences"][0]["uid"] = "v".into()),
            ("two owners", &|pod| {
                let owner = pod["metadata"]["ownerReferences"][0].clone();
                pod["metadata"]["ownerReferences"] = json!([owner, owner]);
            }),
            ("a Secret", &|pod| pod["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s"}}])),
            ("an account", &|pod| pod["spec"]["serviceAccountName"] = "admin".into()),
        ];
        for (what, change) in wrong {
            assert!(pod(change).is_err(), "{what}");
        }
    }

    #[test]
    fn a_status_changes_neither_labels_nor_what_the_node_may_read() {
        let pod = |node: &str, labels: Value, kept: &str| {
            let annotations = json!({CONFIG_REVISION: kept});
            object(json!({"metadata": {"labels": labels, "annotations": annotations}, "spec": {"nodeName": node}}))
        };
        let mine = pod("a", json!({"app": "web"}), "one");
        assert_eq!(pod_status("a", &mine, &mine), Ok(()));
        assert!(pod_status("a", &mine, &pod("b", json!({"app": "web"}), "one")).is_err());
        assert!(pod_status("a", &pod("a", json!({"app": "db"}), "one"), &mine).is_err());
        assert!(pod_status("a", &pod("a", json!({"app": "web"}), "another"), &mine).is_err());
    }
}
