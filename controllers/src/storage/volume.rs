//! What to do next for a volume. Pure.

use super::{
    Action, BOUND_BY_CONTROLLER, Said,
    claim::was_said,
    facts::{annotation, bound_by_controller, has_finalizer, is_deleting, volume_name, volume_phase, volume_spec},
};
use crate::{
    Key, Plan,
    events::{Kind, Note},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use proa_crds::annotations::{HOSTNAME, LOCAL_PROVISIONER, LOCAL_VOLUME, PROVISIONED_BY, VOLUME_IN_USE};
use serde_json::{Value, json};
use std::sync::Arc;

/// A volume, and what decides about it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The volume.
    pub volume: Arc<PersistentVolume>,
    /// The claim of the name it points to.
    pub claim: Option<Arc<PersistentVolumeClaim>>,
    /// Whether the node it lies on exists; so it does for volumes that lie on none.
    pub has_node: bool,
    /// What was last said about it.
    pub said: Option<Said>,
}

/// Decides about one volume.
pub fn plan(seen: &Seen, now: Timestamp) -> Plan<Action> {
    let volume = &*seen.volume;
    if !is_deleting(volume) && !has_finalizer(volume, VOLUME_IN_USE) {
        // From before volumes were protected, or taken off by hand.
        let finalizers: Vec<&str> = volume.finalizers().iter().map(String::as_str).chain([VOLUME_IN_USE]).collect();
        return Plan::act(vec![patch(volume, json!({"metadata": {"finalizers": finalizers}}))]);
    }
    let mut actions = state(seen, now);
    // What is still to be decided about its claim goes first: a volume is let go in the phase it ends in.
    if actions.is_empty() && is_deleting(volume) {
        actions = going(seen);
    }
    Plan::act(actions)
}

/// A patch that holds for the state it was decided on.
fn patch(volume: &PersistentVolume, mut patch: Value) -> Action {
    patch["metadata"]["uid"] = json!(volume.metadata.uid);
    patch["metadata"]["resourceVersion"] = json!(volume.metadata.resource_version);
    Action::PatchVolume(volume.name_any(), patch)
}

fn without(volume: &PersistentVolume, finalizer: &str) -> Action {
    let kept: Vec<&String> = volume.finalizers().iter().filter(|have| *have != finalizer).collect();
    patch(volume, json!({"metadata": {"finalizers": kept}}))
}

/// Brings the volume to that phase.
fn phase(volume: &PersistentVolume, phase: &str, message: &str, now: Timestamp) -> Vec<Action> {
    if volume_phase(volume) == phase {
        return Vec::new();
    }
    let message = if message.is_empty() { Value::Null } else { json!(message) };
    let status = json!({"phase": phase, "message": message, "lastPhaseTransitionTime": now.to_string()});
    let patch = json!({"metadata": {"uid": volume.metadata.uid}, "status": status});
    vec![Action::PatchVolumeStatus(volume.name_any(), patch)]
}

fn state(seen: &Seen, now: Timestamp) -> Vec<Action> {
    let volume = &*seen.volume;
    let Some(reference) = volume_spec(volume).claim_ref.as_ref() else {
        return phase(volume, "Available", "", now);
    };
    let Some(uid) = reference.uid.as_ref().filter(|uid| !uid.is_empty()) else {
        // Kept by a user for a claim that has not come yet.
        return phase(volume, "Available", "", now);
    };
    let claim = seen.claim.as_ref().filter(|claim| claim.metadata.uid.as_ref() == Some(uid));
    let Some(claim) = claim else {
        // The reference is never cleared: whose data it was stays known.
        let key =
            Key::new(reference.namespace.as_deref().unwrap_or_default(), reference.name.as_deref().unwrap_or_default());
        let mut actions = released(seen, now);
        if !actions.is_empty() {
            actions.insert(0, Action::ConfirmClaimGone(key, uid.clone()));
        }
        return actions;
    };
    match volume_name(claim) {
        // The claim's turn: it finishes the binding.
        "" => Vec::new(),
        name if name == volume.name_any() => phase(volume, "Bound", "", now),
        _ if is_provisioned(volume) && policy(volume) == "Delete" => released(seen, now),
        _ => unbind(volume, now),
    }
}

fn is_provisioned(volume: &PersistentVolume) -> bool {
    annotation(volume, PROVISIONED_BY).is_some()
}

fn policy(volume: &PersistentVolume) -> &str {
    volume_spec(volume).persistent_volume_reclaim_policy.as_deref().unwrap_or("Retain")
}

/// The claim has another volume. One we chose is free again; one a user kept for it goes on waiting.
fn unbind(volume: &PersistentVolume, now: Timestamp) -> Vec<Action> {
    let change = if bound_by_controller(volume) {
        json!({"metadata": {"annotations": {BOUND_BY_CONTROLLER: null}}, "spec": {"claimRef": null}})
    } else {
        json!({"spec": {"claimRef": {"uid": null, "resourceVersion": null}}})
    };
    let mut actions = vec![patch(volume, change)];
    actions.extend(phase(volume, "Available", "", now));
    actions
}

/// Nobody's any more: first that is said, then its policy decides.
fn released(seen: &Seen, now: Timestamp) -> Vec<Action> {
    let volume = &*seen.volume;
    if !matches!(volume_phase(volume), "Released" | "Failed") {
        return phase(volume, "Released", "", now);
    }
    if is_deleting(volume) || policy(volume) != "Delete" {
        return Vec::new();
    }
    match annotation(volume, PROVISIONED_BY) {
        Some(LOCAL_PROVISIONER) => {
            vec![Action::DeleteVolume { name: volume.name_any(), uid: volume.uid().unwrap_or_default() }]
        }
        Some(_) => Vec::new(),
        None => {
            let message = format!(
                "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
                volume.name_any()
            );
            let mut actions = phase(volume, "Failed", &message, now);
            if !actions.is_empty() {
                actions.push(Action::Note(Note { kind: Kind::Warning, reason: "VolumeFailedDelete", message }));
            }
            actions
        }
    }
}

/// It is to go: the protection falls when it is not bound; its directory is its node's to remove, if there is that node.
fn going(seen: &Seen) -> Vec<Action> {
    let volume = &*seen.volume;
    if has_finalizer(volume, VOLUME_IN_USE) {
        return if volume_phase(volume) == "Bound" { Vec::new() } else { vec![without(volume, VOLUME_IN_USE)] };
    }
    if !has_finalizer(volume, LOCAL_VOLUME) || seen.has_node {
        return Vec::new();
    }
    let node = volume.labels().get(HOSTNAME).cloned().unwrap_or_default();
    let message = format!("node {node:?} no longer exists: the volume's directory on it was not removed");
    let note = Note { kind: Kind::Warning, reason: "VolumeFailedDelete", message };
    let mut actions = vec![Action::ConfirmNodeGone(node)];
    if !was_said(seen.said.as_ref(), &note) {
        actions.push(Action::Note(note));
    }
    actions.push(without(volume, LOCAL_VOLUME));
    actions
}
