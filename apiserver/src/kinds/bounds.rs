//! Owns the strategies of the bounds per namespace, LimitRange and ResourceQuota. Never enforces a bound: that is
//! admission's.

use std::collections::BTreeSet;

use proa_apimachinery::field::{FieldError, FieldErrors};
use proa_apimachinery::names;
use proa_apimachinery::pod_resources::amounts;
use proa_apimachinery::quantity::Quantity;
use serde_json::Value;

use super::at::{At, map_at, map_in, maps_at, or_set, spec_mut};
use super::{Rules, meta, pod};

pub(super) const LIMIT_RANGE: Rules = Rules {
    default: |object| {
        for limit in maps_at(spec_mut(object), "limits") {
            for field in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
                if let Some(list) = map_at(limit, field) {
                    pod::canonical_quantities(list);
                }
            }
            // A default limit is the largest allowed, a default request the default limit or the smallest.
            if limit.get("type").and_then(Value::as_str) == Some("Container") {
                for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
                    let Some(source) = limit.get(from).and_then(Value::as_object).cloned() else { continue };
                    let target = map_in(limit, to);
                    for (name, amount) in source {
                        or_set(target, &name, amount);
                    }
                }
            }
        }
    },
    validate: |_, new, _, errors| {
        let mut seen = Vec::new();
        for limit in At::of(new, "spec").child("limits").items() {
            let type_ = limit.child("type");
            if type_.required(errors) && seen.contains(&type_.str()) {
                type_.duplicate(errors);
            }
            seen.push(type_.str());
            for field in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
                pod::quantities(&limit.child(field), errors);
            }
            agree(&limit, errors);
        }
    },
    ..Rules::GENERIC
};

/// The bounds and defaults of one limit do not contradict each other.
fn agree(limit: &At<'_>, errors: &mut FieldErrors) {
    let of = |field: &str| amounts(limit.child(field).value);
    let (max, min, ratio) = (of("max"), of("min"), of("maxLimitRequestRatio"));
    let (mut default, mut request) = (of("default"), of("defaultRequest"));
    match limit.child("type").str() {
        "Pod" => {
            for field in ["default", "defaultRequest"] {
                let at = limit.child(field);
                if at.entries().next().is_some() {
                    errors.push(FieldError::forbidden(&at.path, "may not be specified when `type` is 'Pod'"));
                }
            }
            default.clear();
            request.clear();
        }
        "PersistentVolumeClaim" if !min.contains_key("storage") && !max.contains_key("storage") => {
            let why = "either minimum or maximum storage value is required, but neither was provided";
            errors.push(FieldError::required(&limit.child("limits").path, why));
        }
        _ => {}
    }
    let names: BTreeSet<&String> =
        [&max, &min, &ratio, &default, &request].into_iter().flat_map(|a| a.keys()).collect();
    for name in names {
        let [max, min, ratio, default, request] =
            [&max, &min, &ratio, &default, &request].map(|amounts| amounts.get(name).copied());
        let mut wrong = |field: &str, value: Quantity, why: String| {
            errors.push(FieldError::invalid(&limit.child(field).path.key(name), value.to_string(), why));
        };
        let exceeds = |a: Option<Quantity>, b: Option<Quantity>| a.zip(b).filter(|(a, b)| a > b);
        if let Some((min, max)) = exceeds(min, max) {
            wrong("min", min, format!("min value {min} is greater than max value {max}"));
        }
        if let Some((min, request)) = exceeds(min, request) {
            wrong(
                "defaultRequest",
                request,
                format!("min value {min} is greater than default request value {request}"),
            );
        }
        if let Some((request, max)) = exceeds(request, max) {
            wrong(
                "defaultRequest",
                request,
                format!("default request value {request} is greater than max value {max}"),
            );
        }
        if let Some((request, default)) = exceeds(request, default) {
            let why = format!("default request value {request} is greater than default limit value {default}");
            wrong("defaultRequest", request, why);
        }
        if let Some((min, default)) = exceeds(min, default) {
            wrong("default", min, format!("min value {min} is greater than default value {default}"));
        }
        if let Some((default, max)) = exceeds(default, max) {
            wrong("default", max, format!("default value {default} is greater than max value {max}"));
        }
        let Some(ratio) = ratio else { continue };
        if ratio < Quantity::from_units(1) {
            wrong("maxLimitRequestRatio", ratio, format!("ratio {ratio} is less than 1"));
        }
        if let Some((max, min)) = max.zip(min).filter(|(_, min)| min.sign() > 0) {
            let widest = max.as_milli() as f64 / min.as_milli() as f64;
            if ratio.as_milli() as f64 > widest * 1000.0 {
                wrong("maxLimitRequestRatio", ratio, format!("ratio {ratio} is greater than max/min = {widest:.6}"));
            }
        }
    }
}

pub(super) const RESOURCE_QUOTA: Rules = Rules {
    status: true,
    default: |object| {
        if let Some(hard) = map_at(spec_mut(object), "hard") {
            pod::canonical_quantities(hard);
        }
    },
    validate: |_, new, old, errors| {
        let spec = At::of(new, "spec");
        let hard: Vec<&str> = spec.child("hard").entries().map(|(name, _)| name).collect();
        for (name, amount) in spec.child("hard").entries() {
            quota_name(name, &amount, errors);
            match amount.value.map(Quantity::from_value) {
                Some(Err(error)) => amount.invalid(errors, error.to_string()),
                Some(Ok(q)) if q.sign() < 0 => amount.invalid(errors, "must be greater than or equal to 0"),
                Some(Ok(q)) if COUNTED.contains(&name) && !q.is_integer() => {
                    amount.invalid(errors, "must be an integer")
                }
                _ => {}
            }
        }
        scopes(&spec.child("scopes"), &hard, errors);
        scope_selector(&spec.child("scopeSelector"), &hard, errors);
        if let Some(old) = old {
            let scopes = spec.child("scopes");
            meta::immutable(scopes.value, old.get(&["spec", "scopes"]), &scopes.path, errors);
        }
    },
    ..Rules::GENERIC
};

/// What a quota counts in whole numbers.
const COUNTED: [&str; 9] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
const COMPUTE: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// A name that a quota knows, as far as names without a slash go.
fn is_standard(name: &str) -> bool {
    let storage = matches!(
        name,
        "ephemeral-storage" | "requests.ephemeral-storage" | "limits.ephemeral-storage" | "requests.storage"
    );
    let pages = name.starts_with("hugepages-") || name.starts_with("requests.hugepages-");
    storage || pages || COUNTED.contains(&name) || COMPUTE.contains(&name)
}

fn quota_name(name: &str, at: &At<'_>, errors: &mut FieldErrors) {
    for detail in names::is_qualified_name(name) {
        errors.push(FieldError::invalid(&at.path, name, detail));
    }
    if !name.contains('/') && !is_standard(name) {
        errors.push(FieldError::invalid(&at.path, name, "must be a standard resource for quota"));
    }
}

const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

/// Whether a scope makes sense for a resource: what has none cannot be told apart by it.
fn applies(scope: &str, name: &str) -> bool {
    match scope {
        "BestEffort" => name == "pods",
        "VolumeAttributesClass" => matches!(name, "persistentvolumeclaims" | "requests.storage"),
        _ => name == "pods" || COMPUTE.contains(&name),
    }
}

fn is_out_of_place(scope: &str, hard: &[&str]) -> bool {
    hard.iter().any(|name| is_standard(name) && !applies(scope, name))
}

fn scopes(scopes: &At<'_>, hard: &[&str], errors: &mut FieldErrors) {
    let all: Vec<&str> =
        scopes.value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    for scope in &all {
        if !SCOPES.contains(scope) {
            scopes.invalid(errors, "unsupported scope");
        }
        if is_out_of_place(scope, hard) {
            scopes.invalid(errors, "unsupported scope applied to resource");
        }
    }
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|scope| all.contains(scope)) {
            scopes.invalid(errors, "conflicting scopes");
        }
    }
}

fn scope_selector(selector: &At<'_>, hard: &[&str], errors: &mut FieldErrors) {
    for expression in selector.child("matchExpressions").items() {
        let (name, operator, values) =
            (expression.child("scopeName"), expression.child("operator"), expression.child("values"));
        if !SCOPES.contains(&name.str()) {
            name.invalid(errors, "unsupported scope");
        }
        if is_out_of_place(name.str(), hard) {
            selector.invalid(errors, "unsupported scope applied to resource");
        }
        // The others have values to select by.
        let by_value = matches!(name.str(), "PriorityClass" | "VolumeAttributesClass");
        if SCOPES.contains(&name.str()) && !by_value && operator.str() != "Exists" {
            operator.invalid(
                errors,
                "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, \
                 ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
            );
        }
        let given = values.items().next().is_some();
        match operator.str() {
            "In" | "NotIn" if !given => errors.push(FieldError::required(
                &values.path,
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            )),
            "Exists" | "DoesNotExist" if given => {
                values.invalid(
                    errors,
                    "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => operator.invalid(errors, "not a valid selector operator"),
        }
    }
}
