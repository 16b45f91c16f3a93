//! Owns the strategies of HorizontalPodAutoscalers (one stored kind in two versions) and
//! PodDisruptionBudgets. Never scales or evicts.

use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::quantity::Quantity;
use proa_apimachinery::{Object, names};
use serde_json::{Map, Value, json};

use super::apps::amount;
use super::at::{At, map_at, map_in, or_set, spec_mut};
use super::{Convert, Rules, pod};

const BASE: Rules = Rules { status: true, name: names::is_dns1123_subdomain, ..Rules::GENERIC };

pub(super) const V2: Rules = Rules {
    default: |object| {
        let spec = spec_mut(object);
        or_set(spec, "minReplicas", 1);
        if spec.get("metrics").and_then(Value::as_array).is_none_or(|m| m.is_empty()) {
            spec.insert("metrics".to_owned(), json!([cpu(80)]));
        }
        default_behavior(spec);
    },
    validate: |_, new, _, errors| {
        common(new, errors);
        validate_metrics(new, errors);
        validate_behavior(new, errors);
    },
    ..BASE
};

/// An object that says something of its behaviour says all of it (KEP-853).
fn default_behavior(spec: &mut Map<String, Value>) {
    let Some(behavior) = map_at(spec, "behavior") else { return };
    let policy = |kind: &str, value: i64| json!({"type": kind, "value": value, "periodSeconds": 15});
    let up = map_in(behavior, "scaleUp");
    or_set(up, "stabilizationWindowSeconds", 0);
    or_set(up, "selectPolicy", "Max");
    or_set(up, "policies", vec![policy("Pods", 4), policy("Percent", 100)]);
    let down = map_in(behavior, "scaleDown");
    or_set(down, "selectPolicy", "Max");
    or_set(down, "policies", vec![policy("Percent", 100)]);
}

/// The kinds of sources, and the fields they are in.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

fn validate_metrics(new: &Object, errors: &mut FieldErrors) {
    for metric in At::of(new, "spec").child("metrics").items() {
        let type_ = metric.child("type");
        if type_.is_empty() {
            type_.missing(errors, "must specify a metric source type");
        }
        type_.one_of(errors, &SOURCES.map(|(name, _)| name));
        let expected = SOURCES.iter().find(|(name, _)| *name == type_.str()).map(|(_, field)| *field);
        if let Some(expected) = expected.map(|field| metric.child(field)).filter(|source| !source.present()) {
            expected.missing(errors, "must populate information for the given metric source");
        }
        let present = SOURCES.iter().map(|(_, field)| *field).filter(|field| metric.child(field).present());
        for (at, field) in present.enumerate() {
            if expected.is_some_and(|expected| expected != field) {
                metric.child(field).forbidden(errors, "must populate the given metric source only");
            }
            if at == 0 {
                source(field, &metric.child(field), errors);
            }
        }
    }
}

fn source(field: &str, source: &At<'_>, errors: &mut FieldErrors) {
    let target = source.child("target");
    let [value, average, utilization] =
        ["value", "averageValue", "averageUtilization"].map(|field| target.child(field));
    if !matches!(field, "resource" | "containerResource") {
        let name = source.child("metric").child("name");
        if name.is_empty() {
            name.missing(errors, "must specify a metric name");
        }
        name.check(errors, names::is_path_segment);
    }
    match field {
        "object" => {
            reference(&source.child("describedObject"), errors);
            if !value.present() && !average.present() {
                average.missing(errors, "must set either a target value or averageValue");
            }
        }
        "pods" => {
            if !average.present() {
                average.missing(errors, "must specify a positive target averageValue");
            }
        }
        "external" => {
            if !value.present() && !average.present() {
                average.missing(errors, "must set either a target value for metric or a per-pod target");
            }
            if value.present() && average.present() {
                value.forbidden(errors, "may not set both a target value for metric and a per-pod target");
            }
        }
        _ => {
            for (field, why) in
                [("name", "must specify a resource name"), ("container", "must specify a container name")]
            {
                let asked = field == "name" || source.path.to_string().ends_with("containerResource");
                if asked && source.child(field).is_empty() {
                    source.child(field).missing(errors, why);
                }
            }
            if !utilization.present() && !average.present() {
                utilization.missing(errors, "must set either a target raw value or a target utilization");
            }
            if utilization.present() && average.present() {
                average.forbidden(errors, "may not set both a target raw value and a target utilization");
            }
        }
    }
    let kind = target.child("type");
    match kind.str() {
        "" => kind.missing(errors, "must specify a metric target type"),
        "Utilization" | "Value" | "AverageValue" => {}
        _ => kind.invalid(errors, "must be either Utilization, Value, or AverageValue"),
    }
    for amount in [value, average] {
        let sign = amount.value.and_then(|value| Quantity::from_value(value).ok()).map(|quantity| quantity.sign());
        if sign.is_some_and(|sign| sign < 1) {
            amount.invalid(errors, "must be positive");
        }
    }
    utilization.positive(errors);
}

fn validate_behavior(new: &Object, errors: &mut FieldErrors) {
    let behavior = At::of(new, "spec").child("behavior");
    for rules in ["scaleUp", "scaleDown"].map(|field| behavior.child(field)) {
        if !rules.present() {
            continue;
        }
        let bounded = |at: &At<'_>, least: i64, most: i64, errors: &mut FieldErrors| match at.int() {
            Some(number) if number < least => {
                let bound = if least == 0 { "greater than or equal to zero" } else { "greater than zero" };
                at.invalid(errors, format!("must be {bound}"));
            }
            Some(number) if number > most => at.invalid(errors, format!("must be less than or equal to {most}")),
            _ => {}
        };
        bounded(&rules.child("stabilizationWindowSeconds"), 0, 3600, errors);
        rules.child("selectPolicy").one_of(errors, &["Disabled", "Max", "Min"]);
        let tolerance = rules.child("tolerance");
        let sign = tolerance.value.and_then(|value| Quantity::from_value(value).ok()).map(|quantity| quantity.sign());
        if sign.is_some_and(|sign| sign < 0) {
            tolerance.invalid(errors, "must be greater than or equal to zero");
        }
        let policies = rules.child("policies");
        if policies.is_empty() {
            policies.missing(errors, "must specify at least one Policy");
        }
        for policy in policies.items() {
            policy.child("type").required(errors);
            policy.child("type").one_of(errors, &["Percent", "Pods"]);
            bounded(&policy.child("value"), 1, i64::from(i32::MAX), errors);
            bounded(&policy.child("periodSeconds"), 1, 1800, errors);
        }
    }
}

fn reference(target: &At<'_>, errors: &mut FieldErrors) {
    target.child("kind").require(errors, names::is_path_segment);
    target.child("name").require(errors, names::is_path_segment);
}

pub(super) const V1: Rules = Rules {
    default: |object| or_set(spec_mut(object), "minReplicas", 1),
    validate: |_, new, _, errors| {
        common(new, errors);
        At::of(new, "spec").child("targetCPUUtilizationPercentage").positive(errors);
    },
    ..BASE
};

fn common(new: &Object, errors: &mut FieldErrors) {
    let spec = At::of(new, "spec");
    let (low, high) = (spec.child("minReplicas"), spec.child("maxReplicas"));
    if low.int().is_some_and(|n| n < 1) {
        low.invalid(errors, "must be greater than or equal to 1");
    }
    match high.int() {
        Some(max) if max >= 1 => {
            if low.int().is_some_and(|min| max < min) {
                high.invalid(errors, "must be greater than or equal to `minReplicas`");
            }
        }
        _ => high.invalid(errors, "must be greater than 0"),
    }
    reference(&spec.child("scaleTargetRef"), errors);
}

fn cpu(percent: i64) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
}

/// What v1 cannot say travels in annotations, so that a v1 client's read and write loses nothing.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const COUNTS: [&str; 2] = ["currentReplicas", "desiredReplicas"];
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

pub(super) const CONVERT: Convert = Convert::Functions { to_storage: to_v2, from_storage: to_v1 };

fn is_cpu(metric: &Value) -> bool {
    metric.get("type").and_then(Value::as_str) == Some("Resource")
        && metric.get("resource").and_then(|r| r.get("name")).and_then(Value::as_str) == Some("cpu")
}

fn to_v1(mut object: Object) -> Object {
    object.set(&["apiVersion"], "autoscaling/v1");
    let metrics = match object.remove(&["spec", "metrics"]) {
        Some(Value::Array(metrics)) => metrics,
        _ => Vec::new(),
    };
    let percent = |m: &Value| m.pointer("/resource/target/averageUtilization").and_then(Value::as_i64);
    let first = metrics.iter().position(|m| is_cpu(m) && percent(m).is_some());
    let mut rest = metrics;
    if let Some(index) = first {
        let metric = rest.remove(index);
        if let Some(percent) = percent(&metric) {
            object.set(&["spec", "targetCPUUtilizationPercentage"], percent);
        }
    }
    if !rest.is_empty() {
        object.set_annotation(METRICS, Value::Array(rest).to_string());
    }
    if let Some(behavior) = object.remove(&["spec", "behavior"]) {
        object.set_annotation(BEHAVIOR, behavior.to_string());
    }
    if let Some(Value::Array(current)) = object.remove(&["status", "currentMetrics"]) {
        let now = current.iter().find(|m| is_cpu(m));
        let now = now.and_then(|m| m.pointer("/resource/current/averageUtilization")).and_then(Value::as_i64);
        if let Some(now) = now {
            object.set(&["status", "currentCPUUtilizationPercentage"], now);
        }
        object.set_annotation(CURRENT, Value::Array(current).to_string());
    }
    if let Some(conditions) = object.remove(&["status", "conditions"]) {
        object.set_annotation(CONDITIONS, conditions.to_string());
    }
    // Of a status v1 requires both numbers (Go fields without `omitempty`); v2 leaves out one that is nought.
    if object.get(&["status"]).is_some() {
        for field in COUNTS.map(|field| ["status", field]) {
            if object.get_i64(&field).is_none() {
                object.set(&field, 0);
            }
        }
    }
    object
}

fn to_v2(mut object: Object) -> Object {
    object.set(&["apiVersion"], "autoscaling/v2");
    let mut taken = |key: &str| {
        let text = object.remove_annotation(key)?;
        serde_json::from_str::<Value>(text.as_str()?).ok()
    };
    let (metrics, behavior, current, conditions) = (taken(METRICS), taken(BEHAVIOR), taken(CURRENT), taken(CONDITIONS));
    let mut all: Vec<Value> = Vec::new();
    if let Some(percent) = object.remove(&["spec", "targetCPUUtilizationPercentage"]).and_then(|v| v.as_i64()) {
        all.push(cpu(percent));
    }
    if let Some(Value::Array(rest)) = metrics {
        all.extend(rest);
    }
    if all.is_empty() {
        all.push(cpu(80));
    }
    object.set(&["spec", "metrics"], all);
    object.remove(&["status", "currentCPUUtilizationPercentage"]);
    if object.get_i64(&["status", "currentReplicas"]) == Some(0) {
        object.remove(&["status", "currentReplicas"]);
    }
    for (path, value) in [
        (["spec", "behavior"], behavior),
        (["status", "currentMetrics"], current),
        (["status", "conditions"], conditions),
    ] {
        if let Some(value) = value {
            object.set(&path, value);
        }
    }
    object
}

pub(super) const PDB: Rules = Rules {
    validate: |_, new, _, errors| {
        let spec = At::of(new, "spec");
        let (min, max) = (spec.child("minAvailable"), spec.child("maxUnavailable"));
        if min.present() && max.present() {
            spec.invalid(errors, "minAvailable and maxUnavailable cannot be both set");
        }
        amount(&min, errors);
        amount(&max, errors);
        pod::label_selector(&spec.child("selector"), errors);
        spec.child("unhealthyPodEvictionPolicy").one_of(errors, &["AlwaysAllow", "IfHealthyBudget"]);
    },
    validate_status: |new, _, errors| {
        for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
            At::of(new, "status").child(field).non_negative(errors);
        }
    },
    ..Rules::WITH_STATUS
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_v1_cannot_say_survives_the_round_trip() {
        let v2 = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "behavior": {"scaleDown": {"selectPolicy": "Min"}}, "metrics": [cpu(50),
                {"type": "Pods", "pods": {"metric": {"name": "q"}}}]}});
        let v2 = Object::from_value(v2).unwrap();
        let v1 = to_v1(v2.clone());
        assert_eq!(v1.get_i64(&["spec", "targetCPUUtilizationPercentage"]), Some(50));
        assert_eq!(to_v2(v1), v2);
    }

    #[test]
    fn a_status_read_in_v1_has_the_numbers_its_schema_requires() {
        let v2 = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "metrics": [cpu(80)]}, "status": {"desiredReplicas": 0}});
        let v2 = Object::from_value(v2).unwrap();
        let v1 = to_v1(v2.clone());
        assert_eq!(COUNTS.map(|field| v1.get_i64(&["status", field])), [Some(0), Some(0)]);
        assert_eq!(to_v2(v1), v2);
    }
}
