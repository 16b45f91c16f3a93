//! The provisioner `proa.dev/local`: a claim's volume is a directory on one node. Pure; what it makes is the object, the
//! directory is made by the node's agent when a pod first uses it.

use super::{
    SELECTED_NODE,
    facts::{annotation, claim_spec, mode},
};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm},
    storage::v1::StorageClass,
};
use kube::ResourceExt;
use proa_crds::{
    Node,
    annotations::{HOSTNAME, LOCAL_PROVISIONER, LOCAL_VOLUME, PROVISIONED_BY, VOLUMES},
};
use serde_json::json;
use std::sync::Arc;

/// Why no volume is made.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) why: String,
    /// Another node may do: the scheduler is to choose again.
    pub(super) reschedule: bool,
}

fn refuse(why: impl Into<String>) -> Refusal {
    Refusal { why: why.into(), reschedule: false }
}

/// The volume for a claim: on the node the scheduler chose, or on the one with the fewest.
pub(super) fn provision(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    nodes: &[(Arc<Node>, usize)],
) -> Result<PersistentVolume, Refusal> {
    unsupported(claim, class)?;
    let node = match annotation(claim, SELECTED_NODE) {
        Some(name) => chosen(name, nodes)?,
        None => roomiest(class, nodes)?,
    };
    Ok(volume(claim, class, node))
}

/// What a directory cannot do is refused by name.
fn unsupported(claim: &PersistentVolumeClaim, class: &StorageClass) -> Result<(), Refusal> {
    let spec = claim_spec(claim);
    if mode(spec.volume_mode.as_ref()) != "Filesystem" {
        return Err(refuse(format!(
            "{LOCAL_PROVISIONER} makes directories, no block devices: volumeMode Block is not supported"
        )));
    }
    let many =
        spec.access_modes.iter().flatten().find(|way| !matches!(way.as_str(), "ReadWriteOnce" | "ReadWriteOncePod"));
    if let Some(way) = many {
        return Err(refuse(format!(
            "a volume of {LOCAL_PROVISIONER} lies on one node: {way} is not supported, only ReadWriteOnce and ReadWriteOncePod"
        )));
    }
    if spec.selector.is_some() {
        return Err(refuse("claim.spec.selector is not supported for dynamic provisioning"));
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Err(refuse("claim.spec.dataSource is not supported"));
    }
    if spec.volume_attributes_class_name.as_ref().is_some_and(|class| !class.is_empty()) {
        return Err(refuse("claim.spec.volumeAttributesClassName is not supported"));
    }
    if let Some(name) = class.parameters.iter().flatten().map(|(name, _)| name).next() {
        return Err(refuse(format!("the parameter {name:?} is unknown: there are none")));
    }
    if class.mount_options.as_ref().is_some_and(|options| !options.is_empty()) {
        return Err(refuse("mountOptions are not supported"));
    }
    Ok(())
}

fn chosen<'a>(name: &str, nodes: &'a [(Arc<Node>, usize)]) -> Result<&'a Node, Refusal> {
    let again = |why: String| Refusal { why, reschedule: true };
    let node = nodes.iter().map(|(node, _)| node).find(|node| node.metadata.name.as_deref() == Some(name));
    let node = node.ok_or_else(|| again(format!("the selected node {name:?} does not exist")))?;
    match annotation(node.as_ref(), VOLUMES) {
        Some(_) => Ok(node),
        None => Err(again(format!("the selected node {name:?} keeps no volumes of {LOCAL_PROVISIONER}"))),
    }
}

fn roomiest<'a>(class: &StorageClass, nodes: &'a [(Arc<Node>, usize)]) -> Result<&'a Node, Refusal> {
    let able = nodes.iter().filter(|(node, _)| {
        annotation(node.as_ref(), VOLUMES).is_some()
            && node.spec.unschedulable != Some(true)
            && is_ready(node)
            && allowed(class.allowed_topologies.as_deref().unwrap_or_default(), node)
    });
    let best = able.min_by(|(a, held), (b, other)| held.cmp(other).then_with(|| a.name_any().cmp(&b.name_any())));
    best.map(|(node, _)| &**node)
        .ok_or_else(|| refuse(format!("no node is ready to keep volumes of {LOCAL_PROVISIONER}")))
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The terms are alternatives; none allows every node.
fn allowed(terms: &[TopologySelectorTerm], node: &Node) -> bool {
    terms.is_empty()
        || terms.iter().any(|term| {
            term.match_label_expressions.iter().flatten().all(|requirement| {
                node.labels().get(&requirement.key).is_some_and(|value| requirement.values.contains(value))
            })
        })
}

fn volume(claim: &PersistentVolumeClaim, class: &StorageClass, node: &Node) -> PersistentVolume {
    let host = node.labels().get(HOSTNAME).cloned().unwrap_or_else(|| node.name_any());
    let name = format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default());
    let folder = annotation(node, VOLUMES).unwrap_or_default().trim_end_matches('/');
    let spec = claim_spec(claim);
    let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let value = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": name,
            "labels": {HOSTNAME: host},
            "annotations": {PROVISIONED_BY: LOCAL_PROVISIONER},
            "finalizers": [LOCAL_VOLUME],
        },
        "spec": {
            "capacity": {"storage": requests.and_then(|requests| requests.get("storage"))},
            "accessModes": spec.access_modes,
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.metadata.name,
            "volumeMode": "Filesystem",
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.metadata.namespace,
                "name": claim.metadata.name, "uid": claim.metadata.uid,
                "resourceVersion": claim.metadata.resource_version,
            },
            "local": {"path": format!("{folder}/{name}")},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [host]}]},
            ]}},
        },
    });
    // Holds because every field above is of the type the API gives it.
    serde_json::from_value(value).unwrap_or_default()
}
