//! What CSI drivers and their side-cars write: attachments, drivers, what a node has of them, capacities
//! (`pkg/apis/storage/validation`). Proa runs no driver; the objects are served whole.

use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::names;
use proa_apimachinery::quantity::Quantity;
use serde_json::json;

use super::super::at::{or_set, spec_mut};
use super::super::pod;
use super::{At, DRIVER_NAME, Op, Rules, driver_name, meta};

/// Longest message of an attachment's error, in bytes.
const ERROR_MESSAGE: usize = 1024;
/// Longest name of a node as its driver knows it, in bytes.
const NODE_ID: usize = 192;

pub(in super::super) const VOLUME_ATTACHMENT: Rules = Rules {
    prepare: |op, new, _| {
        if op == Op::Create {
            new.set(&["status"], json!({"attached": false}));
        }
    },
    validate: |_, new, old, errors| {
        let spec = At::of(new, "spec");
        driver_name(&spec.child("attacher"), errors);
        spec.child("nodeName").require(errors, names::is_dns1123_subdomain);
        let source = spec.child("source");
        let (inline, named) = (source.child("inlineVolumeSpec"), source.child("persistentVolumeName"));
        const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
        match (inline.present(), named.present()) {
            (false, false) => source.missing(errors, ONE),
            (true, true) => source.forbidden(errors, ONE),
            (false, true) if named.is_empty() => named.missing(errors, "must specify non empty persistentVolumeName"),
            _ => {}
        }
        if let Some(old) = old {
            meta::immutable(new.0.get("spec"), old.0.get("spec"), &Path::of("spec"), errors);
        }
    },
    validate_status: |new, _, errors| {
        let status = At::of(new, "status");
        for error in [status.child("attachError"), status.child("detachError")] {
            let message = error.child("message");
            if message.len() > ERROR_MESSAGE {
                errors.push(FieldError::too_long(&message.path, ERROR_MESSAGE));
            }
        }
    },
    ..Rules::WITH_STATUS
};

pub(in super::super) const CSI_DRIVER: Rules = Rules {
    default: |object| {
        let spec = spec_mut(object);
        or_set(spec, "attachRequired", true);
        or_set(spec, "podInfoOnMount", false);
        or_set(spec, "storageCapacity", false);
        or_set(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        or_set(spec, "volumeLifecycleModes", json!(["Persistent"]));
        or_set(spec, "requiresRepublish", false);
        or_set(spec, "seLinuxMount", false);
    },
    validate: |_, new, old, errors| {
        let name = At::of(new, "metadata").child("name");
        if name.len() > DRIVER_NAME {
            errors.push(FieldError::too_long(&name.path, DRIVER_NAME));
        }
        let spec = At::of(new, "spec");
        spec.child("fsGroupPolicy").one_of(errors, &["File", "None", "ReadWriteOnceWithFSType"]);
        for mode in spec.child("volumeLifecycleModes").items() {
            mode.one_of(errors, &["Ephemeral", "Persistent"]);
        }
        let mut audiences = Vec::new();
        for request in spec.child("tokenRequests").items() {
            let audience = request.child("audience");
            if audiences.contains(&audience.str()) {
                audience.duplicate(errors);
            }
            audiences.push(audience.str());
            let seconds = request.child("expirationSeconds");
            if seconds.int().is_some_and(|seconds| seconds < 600) {
                seconds.invalid(errors, "may not specify a duration less than 10 minutes");
            }
            if seconds.int().is_some_and(|seconds| seconds > 1 << 32) {
                seconds.invalid(errors, "may not specify a duration larger than 2^32 seconds");
            }
        }
        if let Some(old) = old {
            for field in ["attachRequired", "volumeLifecycleModes"] {
                let path = ["spec", field];
                meta::immutable(new.get(&path), old.get(&path), &spec.path.child(field), errors);
            }
        }
    },
    ..Rules::COUNTED
};

pub(in super::super) const CSI_NODE: Rules = Rules {
    validate: |_, new, old, errors| {
        let mut seen = Vec::new();
        for driver in At::of(new, "spec").child("drivers").items() {
            let name = driver.child("name");
            driver_name(&name, errors);
            if seen.contains(&name.str()) {
                name.duplicate(errors);
            }
            seen.push(name.str());
            let node = driver.child("nodeID");
            if node.required(errors) && node.len() > NODE_ID {
                node.invalid(errors, format!("must be {NODE_ID} characters or less"));
            }
            driver.child("allocatable").child("count").non_negative(errors);
            let mut keys = Vec::new();
            for key in driver.child("topologyKeys").items() {
                key.require(errors, names::is_qualified_name);
                if keys.contains(&key.str()) {
                    key.duplicate(errors);
                }
                keys.push(key.str());
            }
            // A driver that is listed stays as it is, but for how many volumes it takes (KEP-4876).
            let fixed = |driver: &At<'_>| {
                ["nodeID", "topologyKeys"].map(|field| driver.child(field).value.cloned().unwrap_or_default())
            };
            let before = old.map(|old| At::of(old, "spec").child("drivers"));
            let before = before.and_then(|drivers| drivers.items().find(|had| had.child("name").str() == name.str()));
            if before.is_some_and(|had| fixed(&had) != fixed(&driver)) {
                driver.invalid(errors, "field is immutable");
            }
        }
    },
    ..Rules::GENERIC
};

pub(in super::super) const CSI_STORAGE_CAPACITY: Rules = Rules {
    validate: |_, new, old, errors| {
        At::of(new, "storageClassName").require(errors, names::is_dns1123_subdomain);
        pod::label_selector(&At::of(new, "nodeTopology"), errors);
        for field in ["capacity", "maximumVolumeSize"] {
            size(&At::of(new, field), errors);
        }
        if let Some(old) = old {
            for field in ["nodeTopology", "storageClassName"] {
                meta::immutable(new.0.get(field), old.0.get(field), &Path::of(field), errors);
            }
        }
    },
    ..Rules::GENERIC
};

fn size(size: &At<'_>, errors: &mut FieldErrors) {
    match size.value.map(Quantity::from_value) {
        Some(Ok(bytes)) if bytes.sign() < 0 => {
            errors.push(FieldError::invalid(&size.path, bytes.to_string(), "must be greater than or equal to 0"));
        }
        Some(Err(error)) => size.invalid(errors, error.to_string()),
        _ => {}
    }
}
