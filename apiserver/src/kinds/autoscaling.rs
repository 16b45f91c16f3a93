//! Owns the strategies of HorizontalPodAutoscalers (one stored kind in two versions) and
//! PodDisruptionBudgets. Never scales or evicts.

use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::{Object, names};
use serde_json::{Value, json};

use super::apps::amount;
use super::at::{At, or_set, spec_mut};
use super::{Convert, Rules, pod};

const BASE: Rules = Rules { status: true, name: names::is_dns1123_subdomain, ..Rules::GENERIC };

pub(super) const V2: Rules = Rules {
    default: |object| {
        let spec = spec_mut(object);
        or_set(spec, "minReplicas", 1);
        if spec.get("metrics").and_then(Value::as_array).is_none_or(|m| m.is_empty()) {
            spec.insert("metrics".to_owned(), json!([cpu(80)]));
        }
    },
    validate: |_, new, _, errors| {
        common(new, errors);
        for metric in At::of(new, "spec").child("metrics").items() {
            let type_ = metric.child("type");
            if type_.required(errors) {
                type_.one_of(errors, &["ContainerResource", "External", "Object", "Pods", "Resource"]);
            }
            let resource = metric.child("resource");
            if type_.str() == "Resource" {
                if !resource.present() {
                    resource.missing(errors, "must populate information for the given metric source");
                    continue;
                }
                resource.child("name").required(errors);
                let target = resource.child("target");
                let (utilization, value) = (target.child("averageUtilization"), target.child("averageValue"));
                if !utilization.present() && !value.present() {
                    utilization.missing(errors, "must set either a target raw value or a target utilization");
                }
                utilization.positive(errors);
            }
        }
    },
    ..BASE
};

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
    let target = spec.child("scaleTargetRef");
    target.child("kind").require(errors, names::is_path_segment);
    target.child("name").require(errors, names::is_path_segment);
}

fn cpu(percent: i64) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
}

/// What v1 cannot say travels in annotations, so that a v1 client's read and write loses nothing.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
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
}
