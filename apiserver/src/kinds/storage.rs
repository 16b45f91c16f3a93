//! Owns the strategies of the storage kinds. Never provisions, attaches or mounts.

use proa_apimachinery::Object;
use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::names;
use serde_json::{Map, Value, json};

use super::at::{At, map_at, or_set, spec_mut};
use super::{Op, Rules, meta, pod};

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn pending(op: Op, new: &mut Object, _: Option<&Object>) {
    if op == Op::Create {
        new.set(&["status"], json!({"phase": "Pending"}));
    }
}

/// Defaults of a claim's spec, also inside StatefulSets.
pub(super) fn claim_defaults(spec: &mut Map<String, Value>) {
    or_set(spec, "volumeMode", "Filesystem");
    if let Some(resources) = map_at(spec, "resources") {
        for field in ["requests", "limits"] {
            if let Some(list) = map_at(resources, field) {
                pod::canonical_quantities(list);
            }
        }
    }
}

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
    spec.child("storageClassName").check(errors, names::is_dns1123_subdomain);
}

pub(super) const PERSISTENT_VOLUME_CLAIM: Rules = Rules {
    status: true,
    default: |object| claim_defaults(spec_mut(object)),
    prepare: pending,
    validate: |op, new, old, errors| {
        let spec = At::of(new, "spec");
        modes(&spec, errors);
        let storage = spec.child("resources").child("requests").child("storage");
        if storage.is_empty() {
            errors.push(FieldError::required(&spec.child("resources").path.key("storage"), ""));
        }
        pod::resources(&spec.child("resources"), errors);
        if let (Op::Update, Some(old)) = (op, old) {
            let fixed = |o: &Object| {
                let mut spec = o.0.get("spec").cloned().unwrap_or(Value::Null);
                if let Value::Object(map) = &mut spec {
                    for field in ["resources", "volumeAttributesClassName"] {
                        map.shift_remove(field);
                    }
                    // Binding fills this in.
                    if o.get_str(&["spec", "volumeName"]).is_none_or(str::is_empty)
                        || old.get_str(&["spec", "volumeName"]).is_none_or(str::is_empty)
                    {
                        map.shift_remove("volumeName");
                    }
                }
                spec
            };
            if fixed(new) != fixed(old) {
                spec.forbidden(errors, "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims");
            }
        }
    },
    ..Rules::GENERIC
};

pub(super) const PERSISTENT_VOLUME: Rules = Rules {
    status: true,
    default: |object| {
        let spec = spec_mut(object);
        or_set(spec, "persistentVolumeReclaimPolicy", "Retain");
        or_set(spec, "volumeMode", "Filesystem");
        if let Some(list) = map_at(spec, "capacity") {
            pod::canonical_quantities(list);
        }
        if let Some(path) = map_at(spec, "hostPath") {
            path.entry("type").or_insert_with(|| "".into());
        }
    },
    prepare: pending,
    validate: |_, new, _, errors| {
        let spec = At::of(new, "spec");
        modes(&spec, errors);
        let capacity = spec.child("capacity");
        if capacity.child("storage").is_empty() {
            capacity.not_supported(errors, &["storage"]);
        }
        pod::quantities(&capacity, errors);
        spec.child("persistentVolumeReclaimPolicy").one_of(errors, &["Delete", "Recycle", "Retain"]);
        const OTHER: [&str; 10] = [
            "capacity",
            "accessModes",
            "claimRef",
            "persistentVolumeReclaimPolicy",
            "storageClassName",
            "mountOptions",
            "volumeMode",
            "nodeAffinity",
            "volumeAttributesClassName",
            "",
        ];
        let sources: Vec<&String> =
            spec.map().into_iter().flatten().map(|(k, _)| k).filter(|k| !OTHER.contains(&k.as_str())).collect();
        match sources.as_slice() {
            [] => spec.missing(errors, "must specify a volume type"),
            [_] => {}
            [_, extra, ..] => spec.child(extra).forbidden(errors, "may not specify more than 1 volume type"),
        }
        if spec.child("local").present() && !spec.child("nodeAffinity").present() {
            spec.child("nodeAffinity").missing(errors, "Local volume requires node affinity");
        }
    },
    ..Rules::GENERIC
};

pub(super) const STORAGE_CLASS: Rules = Rules {
    default: |object| {
        or_set(&mut object.0, "reclaimPolicy", "Delete");
        or_set(&mut object.0, "volumeBindingMode", "Immediate");
    },
    validate: |_, new, old, errors| {
        At::of(new, "provisioner").require(errors, names::is_qualified_name);
        At::of(new, "reclaimPolicy").one_of(errors, &["Delete", "Retain"]);
        At::of(new, "volumeBindingMode").one_of(errors, &["Immediate", "WaitForFirstConsumer"]);
        if let Some(old) = old {
            for field in ["parameters", "provisioner", "reclaimPolicy"] {
                if new.0.get(field) != old.0.get(field) {
                    At::of(new, field).forbidden(errors, format!("updates to {field} are forbidden."));
                }
            }
            let field = "volumeBindingMode";
            meta::immutable(new.0.get(field), old.0.get(field), &Path::of(field), errors);
        }
    },
    ..Rules::GENERIC
};

pub(super) const VOLUME_ATTRIBUTES_CLASS: Rules = Rules {
    validate: |_, new, old, errors| {
        At::of(new, "driverName").required(errors);
        if let Some(old) = old {
            for field in ["driverName", "parameters"] {
                if new.0.get(field) != old.0.get(field) {
                    At::of(new, field).forbidden(errors, format!("updates to {field} are forbidden."));
                }
            }
        }
    },
    ..Rules::GENERIC
};

pub(super) const CSI_DRIVER: Rules = Rules {
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
    ..Rules::COUNTED
};
