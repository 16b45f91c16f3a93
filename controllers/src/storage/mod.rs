//! Persistent storage: claims find volumes, volumes are made for claims and taken back after them.
//!
//! Owns: binding (both directions, and its undoing), the phases of claims and volumes, their protection while in use,
//! reclaiming, growing, the provisioner `proa.dev/local`, and the claims of generic ephemeral volumes. Decides in
//! [`claim`] and [`volume`], acts in [`binder`]. Never touches a disk: a node's agent makes and removes directories, by
//! what it reads here (`kubelet-agent/src/volumes/local.rs`).
//!
//! Binding is two writes on two objects, made to survive a crash between them: the volume points to the claim first
//! (with the claim's uid), then the claim to the volume. Whoever looks next finishes what is half done, or undoes it.
//! Source: Kubernetes, `pkg/controller/volume/persistentvolume`.

mod binder;
pub mod claim;
mod ephemeral;
mod facts;
mod local;
mod matching;
pub mod volume;

#[cfg(test)]
mod tests;

pub use binder::PersistentVolumes;
pub use ephemeral::EphemeralVolumes;

use crate::{Key, events::Note};
use k8s_openapi::api::core::v1::PersistentVolume;
use serde_json::Value;

/// On a claim: it has once been bound completely.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or a volume: the controller chose the other side, and may undo that.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim of a class that waits for its first consumer: the node the scheduler chose.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: who is to make its volume; in the name of today and in that of older provisioners.
pub const PROVISIONER: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];

/// One thing to do about a claim or a volume.
#[derive(Debug)]
pub enum Action {
    /// Merge into the claim.
    PatchClaim(Value),
    /// Merge into the claim's status.
    PatchClaimStatus(Value),
    /// Merge into the volume of that name.
    PatchVolume(String, Value),
    /// Merge into the status of the volume of that name.
    PatchVolumeStatus(String, Value),
    /// Make a volume.
    CreateVolume(Box<PersistentVolume>),
    /// Delete the volume of that name and uid.
    DeleteVolume {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// Go on only when the server, too, has no such claim of that uid.
    ConfirmClaimGone(Key, String),
    /// Go on only when the server, too, has no pod that uses the claim.
    ConfirmUnused,
    /// Go on only when the server, too, has no such node.
    ConfirmNodeGone(String),
    /// An event.
    Note(Note),
}

/// What was last said about an object, so that it is said once: reason and message.
pub type Said = (&'static str, String);
