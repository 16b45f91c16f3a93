//! Owns the strategies of the storage kinds. Never provisions, attaches or mounts.

mod claim;
mod classes;
mod csi;
mod volume;

use proa_apimachinery::field::{FieldError, FieldErrors};
use proa_apimachinery::{Object, names};
use serde_json::json;

use super::at::At;
use super::{Op, Rules, meta, pod};

pub use claim::class_name;
pub(super) use claim::{PERSISTENT_VOLUME_CLAIM, claim_defaults, template};
pub(super) use classes::{STORAGE_CLASS, VOLUME_ATTRIBUTES_CLASS};
pub(super) use csi::{CSI_DRIVER, CSI_NODE, CSI_STORAGE_CAPACITY, VOLUME_ATTACHMENT};
pub(super) use volume::PERSISTENT_VOLUME;

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// The annotation that named a class before `spec.storageClassName` did; it still goes first.
pub const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

fn pending(op: Op, new: &mut Object, _: Option<&Object>) {
    if op == Op::Create {
        new.set(&["status"], json!({"phase": "Pending"}));
    }
}

/// `accessModes` and `volumeMode`, which claims and volumes have alike.
fn modes(spec: &At<'_>, errors: &mut FieldErrors) {
    let modes = spec.child("accessModes");
    if modes.is_empty() {
        modes.missing(errors, "at least 1 access mode is required");
    }
    for mode in modes.items() {
        mode.one_of(errors, &MODES);
    }
    let alone = modes.items().any(|m| m.str() == "ReadWriteOncePod");
    if alone && modes.len() > 1 {
        modes.forbidden(errors, "may not use ReadWriteOncePod with other access modes");
    }
    spec.child("volumeMode").one_of(errors, &["Block", "Filesystem"]);
}

/// Longest name of a CSI driver, in bytes.
const DRIVER_NAME: usize = 63;

/// `ValidateCSIDriverName`: a DNS subdomain, in either case, of at most 63 bytes.
fn driver_name(name: &At<'_>, errors: &mut FieldErrors) {
    if !name.required(errors) {
        return;
    }
    if name.len() > DRIVER_NAME {
        errors.push(FieldError::too_long(&name.path, DRIVER_NAME));
    }
    for detail in names::is_dns1123_subdomain(&name.str().to_lowercase()) {
        name.invalid(errors, detail);
    }
}
