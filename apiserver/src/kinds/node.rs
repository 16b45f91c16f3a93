//! Owns the strategies of Nodes and of the small kinds about running and placing: Lease,
//! PriorityClass, RuntimeClass, and the device kinds. Never schedules.

use proa_apimachinery::Object;
use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::names;

use super::at::{At, or_set};
use super::{Op, Rules, meta};

pub(super) const NODE: Rules = Rules {
    status: true,
    status_on_create: true,
    // Kubernetes always shows a spec, and typed clients count on it.
    default: |object| or_set(&mut object.0, "spec", serde_json::json!({})),
    validate: |_, new, old, errors| {
        let spec = At::of(new, "spec");
        let mut seen = Vec::new();
        for taint in spec.child("taints").items() {
            let (key, effect) = (taint.child("key"), taint.child("effect"));
            key.require(errors, names::is_qualified_name);
            taint.child("value").check(errors, names::is_label_value);
            if effect.required(errors) {
                effect.one_of(errors, &["NoExecute", "NoSchedule", "PreferNoSchedule"]);
            }
            let pair = (key.str(), effect.str());
            if seen.contains(&pair) {
                taint.duplicate(errors);
            }
            seen.push(pair);
        }
        for cidr in spec.child("podCIDRs").items() {
            cidr.check(errors, names::is_cidr);
        }
        if let Some(old) = old {
            for field in ["podCIDR", "podCIDRs", "providerID"] {
                let before = old.get(&["spec", field]);
                if before.is_some_and(|v| v != "") && spec.child(field).value != before {
                    errors.push(FieldError::forbidden(
                        &spec.path.child(field),
                        "node updates may not change it except from nothing to something",
                    ));
                }
            }
        }
    },
    ..Rules::GENERIC
};

pub(super) const LEASE: Rules = Rules {
    validate: |_, new, _, errors| {
        let spec = At::of(new, "spec");
        spec.child("leaseDurationSeconds").positive(errors);
        spec.child("leaseTransitions").non_negative(errors);
        spec.child("strategy").one_of(errors, &["OldestEmulationVersion"]);
    },
    ..Rules::GENERIC
};

/// The largest value users' classes may have; above are the system's two.
const USER_PRIORITY_MAX: i64 = 1_000_000_000;

pub(super) const PRIORITY_CLASS: Rules = Rules {
    default: |object| or_set(&mut object.0, "preemptionPolicy", "PreemptLowerPriority"),
    validate: |_, new, old, errors| {
        let value = At::of(new, "value");
        let system = matches!(new.name(), "system-node-critical" | "system-cluster-critical");
        if !system {
            if new.name().starts_with("system-") {
                At::new(None, Path::of("metadata.name"))
                    .forbidden(errors, "priority class names with 'system-' prefix are reserved for system use only");
            }
            if value.int().is_some_and(|v| v > USER_PRIORITY_MAX) {
                value.forbidden(
                    errors,
                    format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}"),
                );
            }
        }
        At::of(new, "preemptionPolicy").one_of(errors, &["Never", "PreemptLowerPriority"]);
        if let Some(old) = old {
            if new.get_i64(&["value"]) != old.get_i64(&["value"]) {
                value.forbidden(errors, "may not be changed in an update.");
            }
            meta::immutable(
                new.0.get("preemptionPolicy"),
                old.0.get("preemptionPolicy"),
                &Path::of("preemptionPolicy"),
                errors,
            );
        }
    },
    ..Rules::COUNTED
};

pub(super) const RUNTIME_CLASS: Rules = Rules {
    validate: |_, new, old, errors| {
        At::of(new, "handler").require(errors, names::is_dns1123_label);
        if let Some(old) = old {
            meta::immutable(new.0.get("handler"), old.0.get("handler"), &Path::of("handler"), errors);
        }
    },
    ..Rules::GENERIC
};

pub(super) const DEVICE_CLASS: Rules = Rules::COUNTED;

pub(super) const RESOURCE_CLAIM: Rules = Rules { status: true, validate: fixed_spec, ..Rules::GENERIC };
pub(super) const RESOURCE_CLAIM_TEMPLATE: Rules = Rules { validate: fixed_spec, ..Rules::GENERIC };

fn fixed_spec(_: Op, new: &Object, old: Option<&Object>, errors: &mut FieldErrors) {
    if let Some(old) = old {
        meta::immutable(new.0.get("spec"), old.0.get("spec"), &Path::of("spec"), errors);
    }
}
