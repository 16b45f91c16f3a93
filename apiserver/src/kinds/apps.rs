//! Owns the strategies of the kinds that keep pods alive: Deployment, ReplicaSet, StatefulSet,
//! DaemonSet, ReplicationController, and the ControllerRevisions some of them keep. Never rolls
//! anything out.

use proa_apimachinery::Object;
use proa_apimachinery::field::{FieldErrors, Path};
use proa_apimachinery::names;
use serde_json::{Value, json};

use super::at::{At, map_in, maps_at, or_set, spec_mut};
use super::{Op, Rules, meta, settings, storage, template};

const WORKLOAD: Rules =
    Rules { unsupported: template::unsupported, warnings: template::warnings, validate_status, ..Rules::WITH_STATUS };

pub(super) const DEPLOYMENT: Rules = Rules {
    default: |object| {
        let spec = spec_mut(object);
        template::defaults_in(spec);
        or_set(spec, "replicas", 1);
        let strategy = map_in(spec, "strategy");
        or_set(strategy, "type", "RollingUpdate");
        if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
            let rolling = map_in(strategy, "rollingUpdate");
            or_set(rolling, "maxSurge", "25%");
            or_set(rolling, "maxUnavailable", "25%");
        }
        or_set(spec, "revisionHistoryLimit", 10);
        or_set(spec, "progressDeadlineSeconds", 600);
    },
    prepare: |op, new, old| {
        // Annotations steer a rollout (kubectl rollout restart, change causes), so they count too.
        if let (Op::Update, Some(old)) = (op, old) {
            let annotations = |o: &Object| o.get(&["metadata", "annotations"]).cloned();
            if new.generation() == old.generation() && annotations(new) != annotations(old) {
                let next = old.generation() + 1;
                new.set(&["metadata", "generation"], next);
            }
        }
    },
    validate: |_, new, old, errors| {
        template::selected(new, "deployment", errors);
        let spec = At::of(new, "spec");
        numbers(&spec, &["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"], errors);
        strategy(&spec.child("strategy"), errors);
        let deadline = spec.child("progressDeadlineSeconds");
        let ready = spec.child("minReadySeconds").int().unwrap_or(0);
        if deadline.int().is_some_and(|d| d >= 0 && d <= ready) {
            deadline.invalid(errors, "must be greater than minReadySeconds");
        }
        fixed_selector(new, old, errors);
    },
    warnings: guarded_warnings,
    ..WORKLOAD
};

pub(super) const REPLICA_SET: Rules = Rules {
    default: |object| {
        let spec = spec_mut(object);
        template::defaults_in(spec);
        or_set(spec, "replicas", 1);
    },
    validate: |_, new, old, errors| {
        template::selected(new, "ReplicaSet", errors);
        numbers(&At::of(new, "spec"), &["replicas", "minReadySeconds"], errors);
        fixed_selector(new, old, errors);
    },
    ..WORKLOAD
};

pub(super) const STATEFUL_SET: Rules = Rules {
    warnings: guarded_warnings,
    // A pod's host name is the set's name and a number.
    name: names::is_dns1123_label,
    default: |object| {
        let spec = spec_mut(object);
        template::defaults_in(spec);
        or_set(spec, "podManagementPolicy", "OrderedReady");
        let strategy = map_in(spec, "updateStrategy");
        or_set(strategy, "type", "RollingUpdate");
        if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
            or_set(map_in(strategy, "rollingUpdate"), "partition", 0);
        }
        let retention = map_in(spec, "persistentVolumeClaimRetentionPolicy");
        or_set(retention, "whenDeleted", "Retain");
        or_set(retention, "whenScaled", "Retain");
        or_set(spec, "replicas", 1);
        or_set(spec, "revisionHistoryLimit", 10);
        for claim in maps_at(spec, "volumeClaimTemplates") {
            or_set(claim, "apiVersion", "v1");
            or_set(claim, "kind", "PersistentVolumeClaim");
            storage::claim_defaults(map_in(claim, "spec"));
            or_set(claim, "status", json!({"phase": "Pending"}));
        }
    },
    validate: |_, new, old, errors| {
        template::selected(new, "statefulset", errors);
        let spec = At::of(new, "spec");
        numbers(&spec, &["replicas", "minReadySeconds", "revisionHistoryLimit"], errors);
        spec.child("podManagementPolicy").one_of(errors, &["OrderedReady", "Parallel"]);
        let strategy = spec.child("updateStrategy");
        strategy.child("type").one_of(errors, &["OnDelete", "RollingUpdate"]);
        let rolling = strategy.child("rollingUpdate");
        if strategy.child("type").str() == "OnDelete" && rolling.present() {
            rolling.invalid(errors, "only allowed for updateStrategy 'RollingUpdate'");
        }
        rolling.child("partition").non_negative(errors);
        let unavailable = rolling.child("maxUnavailable");
        if unavailable.present() {
            amount(&unavailable, errors);
            whole(&unavailable, errors);
            if zero(&unavailable) {
                unavailable.invalid(errors, "cannot be 0");
            }
        }
        let retention = spec.child("persistentVolumeClaimRetentionPolicy");
        for field in ["whenScaled", "whenDeleted"] {
            retention.child(field).one_of(errors, &["Delete", "Retain"]);
        }
        spec.child("ordinals").child("start").non_negative(errors);
        if let Some(old) = old {
            const MAY: [&str; 9] = [
                "replicas",
                "ordinals",
                "template",
                "updateStrategy",
                "revisionHistoryLimit",
                "persistentVolumeClaimRetentionPolicy",
                "minReadySeconds",
                "selector",
                "volumeClaimTemplates",
            ];
            let differs = |field: &str| new.get(&["spec", field]) != old.get(&["spec", field]);
            let fields = ["serviceName", "podManagementPolicy"];
            if fields.iter().chain(&MAY[7..]).any(|f| differs(f)) {
                spec.forbidden(errors, "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden");
            }
        }
    },
    ..WORKLOAD
};

pub(super) const DAEMON_SET: Rules = Rules {
    warnings: guarded_warnings,
    default: |object| {
        let spec = spec_mut(object);
        template::defaults_in(spec);
        let strategy = map_in(spec, "updateStrategy");
        or_set(strategy, "type", "RollingUpdate");
        if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
            let rolling = map_in(strategy, "rollingUpdate");
            or_set(rolling, "maxUnavailable", 1);
            or_set(rolling, "maxSurge", 0);
        }
        or_set(spec, "revisionHistoryLimit", 10);
    },
    validate: |_, new, old, errors| {
        template::selected(new, "daemonset", errors);
        let spec = At::of(new, "spec");
        numbers(&spec, &["minReadySeconds", "revisionHistoryLimit"], errors);
        let strategy = spec.child("updateStrategy");
        strategy.child("type").one_of(errors, &["OnDelete", "RollingUpdate"]);
        if strategy.child("type").str() == "RollingUpdate" {
            let rolling = strategy.child("rollingUpdate");
            let (unavailable, surge) = (rolling.child("maxUnavailable"), rolling.child("maxSurge"));
            for part in [&unavailable, &surge] {
                amount(part, errors);
                whole(part, errors);
            }
            match (zero(&unavailable), zero(&surge)) {
                (false, false) => surge.invalid(errors, "may not be set when maxUnavailable is non-zero"),
                (true, true) => unavailable.missing(errors, "cannot be 0 when maxSurge is 0"),
                _ => {}
            }
        }
        fixed_selector(new, old, errors);
    },
    ..WORKLOAD
};

pub(super) const REPLICATION_CONTROLLER: Rules = Rules {
    default: |object| {
        let labels = object.get(&["spec", "template", "metadata", "labels"]).cloned();
        if let Some(labels) = labels {
            let empty = |v: Option<&Value>| v.and_then(Value::as_object).is_none_or(|m| m.is_empty());
            if empty(object.get(&["metadata", "labels"])) {
                object.set(&["metadata", "labels"], labels.clone());
            }
            if empty(object.get(&["spec", "selector"])) {
                object.set(&["spec", "selector"], labels);
            }
        }
        let spec = spec_mut(object);
        template::defaults_in(spec);
        or_set(spec, "replicas", 1);
    },
    validate: |_, new, _, errors| {
        let spec = At::of(new, "spec");
        numbers(&spec, &["replicas", "minReadySeconds"], errors);
        let (selector, template) = (spec.child("selector"), spec.child("template"));
        if selector.is_empty() {
            selector.missing(errors, "");
        }
        if !template.present() {
            template.missing(errors, "");
            return;
        }
        let labels = template.child("metadata").child("labels");
        let matches = selector.entries().all(|(k, v)| labels.value.and_then(|l| l.get(k)) == v.value);
        if !matches {
            labels.invalid(errors, "`selector` does not match template `labels`");
        }
        template::content(&template, &["Always"], errors);
    },
    ..WORKLOAD
};

pub(super) const CONTROLLER_REVISION: Rules = Rules {
    validate: |_, new, old, errors| {
        let data = At::of(new, "data");
        if !data.present() {
            data.missing(errors, "data is mandatory");
        }
        At::of(new, "revision").non_negative(errors);
        if let Some(old) = old {
            meta::immutable(new.get(&["data"]), old.get(&["data"]), &Path::of("data"), errors);
        }
    },
    ..Rules::GENERIC
};

/// Of the template, and of the settings of those who go back by themselves.
fn guarded_warnings(object: &Object) -> Vec<String> {
    [template::warnings(object), settings::warnings(object)].concat()
}

fn numbers(spec: &At<'_>, fields: &[&str], errors: &mut FieldErrors) {
    for field in fields {
        spec.child(field).non_negative(errors);
    }
}

fn strategy(strategy: &At<'_>, errors: &mut FieldErrors) {
    let rolling = strategy.child("rollingUpdate");
    match strategy.child("type").str() {
        "Recreate" if rolling.present() => {
            rolling.forbidden(errors, "may not be specified when strategy `type` is 'Recreate'");
        }
        "Recreate" => {}
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.child("maxUnavailable"), rolling.child("maxSurge"));
            amount(&unavailable, errors);
            amount(&surge, errors);
            if zero(&unavailable) && zero(&surge) {
                unavailable.invalid(errors, "may not be 0 when `maxSurge` is 0");
            }
            whole(&unavailable, errors);
        }
        _ => strategy.child("type").not_supported(errors, &["Recreate", "RollingUpdate"]),
    }
}

/// A number or a percentage, not negative.
pub(super) fn amount(at: &At<'_>, errors: &mut FieldErrors) {
    if at.int().is_some() {
        at.non_negative(errors);
    } else {
        at.check(errors, names::is_percent);
    }
}

fn percent(at: &At<'_>) -> Option<u64> {
    at.str().strip_suffix('%')?.parse().ok()
}

/// A percentage is of no more than all.
fn whole(at: &At<'_>, errors: &mut FieldErrors) {
    if percent(at).is_some_and(|percent| percent > 100) {
        at.invalid(errors, "must not be greater than 100%");
    }
}

fn zero(at: &At<'_>) -> bool {
    at.int() == Some(0) || percent(at) == Some(0)
}

fn fixed_selector(new: &Object, old: Option<&Object>, errors: &mut FieldErrors) {
    if let Some(old) = old {
        let path = ["spec", "selector"];
        meta::immutable(new.get(&path), old.get(&path), &Path::of("spec.selector"), errors);
    }
}

/// Counts are not negative, and no more are ready than there are.
fn validate_status(new: &Object, old: &Object, errors: &mut FieldErrors) {
    let status = At::of(new, "status");
    const COUNTS: [&str; 15] = [
        "observedGeneration",
        "replicas",
        "currentReplicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "collisionCount",
        "currentNumberScheduled",
        "desiredNumberScheduled",
        "numberMisscheduled",
        "numberReady",
        "updatedNumberScheduled",
        "numberAvailable",
        "numberUnavailable",
    ];
    numbers(&status, &COUNTS, errors);
    let collisions = status.child("collisionCount");
    if collisions.int().is_some_and(|count| count < At::of(old, "status").child("collisionCount").int().unwrap_or(0)) {
        collisions.invalid(errors, "cannot be decremented");
    }
    let count = |field: &str| status.child(field).int().unwrap_or(0);
    for (less, more) in [
        ("currentReplicas", "replicas"),
        ("updatedReplicas", "replicas"),
        ("readyReplicas", "replicas"),
        ("availableReplicas", "replicas"),
        ("availableReplicas", "readyReplicas"),
    ] {
        if count(less) > count(more) {
            let what = if more == "replicas" { "status.replicas" } else { "readyReplicas" };
            status.child(less).invalid(errors, format!("cannot be greater than {what}"));
        }
    }
}
