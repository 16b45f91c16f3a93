//! What to do next for a claim. Pure.

use super::{
    Action, BIND_COMPLETED, BOUND_BY_CONTROLLER, PROVISIONER, SELECTED_NODE, Said,
    facts::{
        annotation, bound_by_controller, claim_phase, claims_of, class_of_claim, has_finalizer, is_bound, is_bound_to,
        is_deleting, size_of, told_size, volume_name, volume_spec, waits_for_consumer, wanted_size,
    },
    local, matching,
};
use crate::{
    Plan,
    events::{Kind, Note},
    pods,
};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::ResourceExt;
use proa_crds::{
    Node, Pod,
    annotations::{CLAIM_IN_USE, LOCAL_PROVISIONER, PROVISIONED_BY},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// A claim, and what decides about it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The claim.
    pub claim: Arc<PersistentVolumeClaim>,
    /// The class it names, if there is one of the name.
    pub class: Option<Arc<StorageClass>>,
    /// The name of the default class, for a claim that names none.
    pub default_class: Option<String>,
    /// The volume it names, if there is one of the name.
    pub volume: Option<Arc<PersistentVolume>>,
    /// For a claim that is not bound: the volumes of its class that are free, and those that point to it.
    pub candidates: Vec<Arc<PersistentVolume>>,
    /// For a claim whose volume is ours to make: the nodes, and how many local volumes each has.
    pub nodes: Vec<(Arc<Node>, usize)>,
    /// The pods that use it.
    pub pods: Vec<Arc<Pod>>,
    /// What was last said about it.
    pub said: Option<Said>,
}

/// Decides about one claim.
pub fn plan(seen: &Seen) -> Plan<Action> {
    let claim = &*seen.claim;
    if is_deleting(claim) {
        // Nothing is bound to it any more; it waits for its users.
        let free = has_finalizer(claim, CLAIM_IN_USE) && !seen.pods.iter().any(|pod| uses(pod, claim));
        return Plan::act(if free { let_go(claim) } else { Vec::new() });
    }
    if !has_finalizer(claim, CLAIM_IN_USE) {
        // From before claims were protected, or taken off by hand.
        let finalizers: Vec<&str> = claim.finalizers().iter().map(String::as_str).chain([CLAIM_IN_USE]).collect();
        return Plan::act(vec![Action::PatchClaim(expecting(claim, json!({"metadata": {"finalizers": finalizers}})))]);
    }
    Plan::act(if is_bound(claim) { bound(seen) } else { unbound(seen) })
}

fn let_go(claim: &PersistentVolumeClaim) -> Vec<Action> {
    let kept: Vec<&String> = claim.finalizers().iter().filter(|finalizer| *finalizer != CLAIM_IN_USE).collect();
    let patch = expecting(claim, json!({"metadata": {"finalizers": kept}}));
    vec![Action::ConfirmUnused, Action::PatchClaim(patch)]
}

/// Whether the pod keeps the claim from going: it has a node, whose agent may be using it. An ephemeral volume's claim
/// is not waited for by a pod that is as good as gone, or each would wait for the other.
pub(super) fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let meta = &pod.metadata;
    let shut_down = meta.deletion_timestamp.is_some() && meta.deletion_grace_period_seconds == Some(0);
    let own = |ephemeral: bool| {
        !ephemeral
            || !shut_down && crate::owners::is_controlled_by(&claim.metadata, meta.uid.as_deref().unwrap_or_default())
    };
    pods::node(pod).is_some() && claims_of(pod).any(|(name, ephemeral)| name == claim.name_any() && own(ephemeral))
}

/// A patch that holds for the state it was decided on.
fn expecting(claim: &PersistentVolumeClaim, mut patch: Value) -> Value {
    patch["metadata"]["uid"] = json!(claim.metadata.uid);
    patch["metadata"]["resourceVersion"] = json!(claim.metadata.resource_version);
    patch
}

fn status(claim: &PersistentVolumeClaim, status: Value) -> Action {
    Action::PatchClaimStatus(json!({"metadata": {"uid": claim.metadata.uid}, "status": status}))
}

fn unbound(seen: &Seen) -> Vec<Action> {
    let claim = &*seen.claim;
    let wanted = volume_name(claim);
    if wanted.is_empty() {
        let delayed = seen.class.as_ref().is_some_and(|class| waits_for_consumer(class));
        return match matching::best(claim, &seen.candidates, delayed) {
            Some(volume) => bind(claim, volume),
            None => without_volume(seen, delayed),
        };
    }
    match &seen.volume {
        None => pending(seen, None),
        Some(volume) if is_bound_to(volume, claim) => bind(claim, volume),
        Some(volume) if volume_spec(volume).claim_ref.is_none() => match matching::mismatch(volume, claim) {
            None => bind(claim, volume),
            Some(why) => {
                let message = format!("Cannot bind to requested volume {wanted:?}: {why}");
                pending(seen, Some(Note { kind: Kind::Warning, reason: "VolumeMismatch", message }))
            }
        },
        Some(_) => {
            let message = format!("volume {wanted:?} already bound to a different claim.");
            pending(seen, Some(Note { kind: Kind::Warning, reason: "FailedBinding", message }))
        }
    }
}

/// No volume there is fits.
fn without_volume(seen: &Seen, delayed: bool) -> Vec<Action> {
    let claim = &*seen.claim;
    let class = match class_of_claim(claim) {
        Some(class) => class,
        None => match &seen.default_class {
            // A default class that came later is as good as one that was there (KEP-3333).
            Some(class) => {
                return vec![Action::PatchClaim(expecting(claim, json!({"spec": {"storageClassName": class}})))];
            }
            None => "",
        },
    };
    if delayed && annotation(claim, SELECTED_NODE).is_none() {
        return pending(seen, Some(waiting(seen)));
    }
    if class.is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set".to_owned();
        return pending(seen, Some(Note { kind: Kind::Normal, reason: "FailedBinding", message }));
    }
    provision(seen, class)
}

/// What a claim of a class that binds late waits for.
fn waiting(seen: &Seen) -> Note {
    let mut names: Vec<String> = seen
        .pods
        .iter()
        .filter(|pod| pods::node(pod).is_none() && pods::is_active(pod))
        .map(|pod| pod.name_any())
        .collect();
    names.sort();
    let (reason, message) = match names.as_slice() {
        [] => ("WaitForFirstConsumer", "waiting for first consumer to be created before binding".to_owned()),
        [name] => ("WaitForPodScheduled", format!("waiting for pod {name} to be scheduled")),
        names => ("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", names.join(","))),
    };
    Note { kind: Kind::Normal, reason, message }
}

fn provision(seen: &Seen, class: &str) -> Vec<Action> {
    let claim = &*seen.claim;
    let failed = |message: String| Note { kind: Kind::Warning, reason: "ProvisioningFailed", message };
    let Some(class) = &seen.class else {
        return pending(seen, Some(failed(format!("storageclass.storage.k8s.io {class:?} not found"))));
    };
    let provisioner = &class.provisioner;
    // Kubernetes' own are built in there, and here none of them is.
    if provisioner.starts_with("kubernetes.io/") {
        return pending(seen, Some(failed(format!("no volume plugin matched name: {provisioner}"))));
    }
    let mut actions = Vec::new();
    if PROVISIONER.iter().any(|name| annotation(claim, name) != Some(provisioner)) {
        let named: BTreeMap<&str, &String> = PROVISIONER.iter().map(|name| (*name, provisioner)).collect();
        actions.push(Action::PatchClaim(expecting(claim, json!({"metadata": {"annotations": named}}))));
    }
    if provisioner != LOCAL_PROVISIONER {
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
             system administrator. If volume creation is delayed, please verify that the provisioner is running and \
             correctly registered."
        );
        actions.extend(pending(seen, Some(Note { kind: Kind::Normal, reason: "ExternalProvisioning", message })));
        return actions;
    }
    match local::provision(claim, class, &seen.nodes) {
        Ok(volume) => {
            let message = format!("Successfully provisioned volume {}", volume.name_any());
            actions.push(Action::CreateVolume(Box::new(volume)));
            actions.push(Action::Note(Note { kind: Kind::Normal, reason: "ProvisioningSucceeded", message }));
        }
        Err(local::Refusal { why, reschedule }) => {
            if reschedule {
                // The scheduler is to choose again (KEP-490).
                actions = vec![Action::PatchClaim(expecting(
                    claim,
                    json!({"metadata": {"annotations": {SELECTED_NODE: null}}}),
                ))];
            }
            actions.extend(pending(
                seen,
                Some(failed(format!("failed to provision volume with StorageClass {:?}: {why}", class.name_any()))),
            ));
        }
    }
    actions
}

/// It waits, and why is said once.
fn pending(seen: &Seen, note: Option<Note>) -> Vec<Action> {
    let mut actions = Vec::new();
    if claim_phase(&seen.claim) != "Pending" {
        actions.push(status(&seen.claim, json!({"phase": "Pending"})));
    }
    actions.extend(note.filter(|note| !was_said(seen.said.as_ref(), note)).map(Action::Note));
    actions
}

pub(super) fn was_said(said: Option<&Said>, note: &Note) -> bool {
    said.is_some_and(|(reason, message)| *reason == note.reason && *message == note.message)
}

/// All that is missing for the two to be bound to each other; nothing when they are.
fn bind(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Vec<Action> {
    let mut actions = Vec::new();
    let name = volume.name_any();
    let reference = volume_spec(volume).claim_ref.as_ref();
    if reference.and_then(|reference| reference.uid.as_ref()).filter(|uid| !uid.is_empty())
        != claim.metadata.uid.as_ref()
    {
        let mut patch = json!({
            "metadata": {"uid": volume.metadata.uid, "resourceVersion": volume.metadata.resource_version},
            "spec": {"claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.metadata.namespace,
                "name": claim.metadata.name, "uid": claim.metadata.uid,
                "resourceVersion": claim.metadata.resource_version,
            }},
        });
        if reference.is_none() {
            patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
        }
        actions.push(Action::PatchVolume(name.clone(), patch));
    }
    let chosen = volume_name(claim) != name;
    if chosen || !is_bound(claim) {
        let mut patch = json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}});
        if chosen {
            patch["spec"] = json!({"volumeName": name});
            if !bound_by_controller(claim) {
                patch["metadata"]["annotations"][BOUND_BY_CONTROLLER] = json!("yes");
            }
        }
        actions.push(Action::PatchClaim(expecting(claim, patch)));
    }
    if claim_phase(claim) != "Bound" {
        let spec = volume_spec(volume);
        let mut told = json!({"phase": "Bound", "accessModes": spec.access_modes, "capacity": spec.capacity});
        if let Some(class) = &spec.volume_attributes_class_name {
            told["currentVolumeAttributesClassName"] = json!(class);
        }
        actions.push(status(claim, told));
    }
    actions
}

fn bound(seen: &Seen) -> Vec<Action> {
    let claim = &*seen.claim;
    let lost = |reason: &'static str, message: &str| {
        if claim_phase(claim) == "Lost" {
            return Vec::new();
        }
        let note = Note { kind: Kind::Warning, reason, message: message.to_owned() };
        vec![status(claim, json!({"phase": "Lost", "accessModes": null, "capacity": null})), Action::Note(note)]
    };
    let Some(volume) = &seen.volume else {
        return match volume_name(claim) {
            "" => lost("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!"),
            _ => lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!"),
        };
    };
    match volume_spec(volume).claim_ref.as_ref() {
        Some(reference) if reference.uid == claim.metadata.uid => {
            let actions = bind(claim, volume);
            if actions.is_empty() { grow(claim, volume) } else { actions }
        }
        None => bind(claim, volume),
        Some(_) => lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly"),
    }
}

/// A claim that asks for more has it at once when its volume is a directory: it had no size to begin with. Volumes of
/// others grow by their own resizers.
fn grow(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Vec<Action> {
    let wanted = wanted_size(claim);
    if wanted <= told_size(claim) || annotation(volume, PROVISIONED_BY) != Some(LOCAL_PROVISIONER) {
        return Vec::new();
    }
    let size = json!({"storage": wanted.to_string()});
    let mut actions = Vec::new();
    if size_of(volume) < wanted {
        let patch = json!({"metadata": {"uid": volume.metadata.uid}, "spec": {"capacity": size}});
        actions.push(Action::PatchVolume(volume.name_any(), patch));
    }
    actions.push(status(claim, json!({"capacity": size})));
    let message = format!("Resized volume to {wanted}; a directory keeps no limit");
    actions.push(Action::Note(Note { kind: Kind::Normal, reason: "VolumeResizeSuccessful", message }));
    actions
}
