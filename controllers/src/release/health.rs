//! Whether an object is well, by its own status, in the way of kstatus (sigs.k8s.io/cli-utils). Pure.

use jiff::Timestamp;
use proa_crds::conditions;
use serde_json::Value;

/// How an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It is what it was asked to be.
    Current,
    /// It is on its way there.
    InProgress(String),
    /// It will not get there by itself.
    Failed {
        /// One word.
        reason: String,
        /// What the object says.
        message: String,
        /// Since when it says so, if it tells.
        since: Option<Timestamp>,
    },
    /// It has failed, and went back by itself: what it is now is not what failed.
    WentBack {
        /// One word.
        reason: String,
        /// What the object says.
        message: String,
        /// Since when it says so, if it tells.
        since: Option<Timestamp>,
        /// What it is still busy with.
        busy: Option<String>,
    },
}

/// Whether an object may be judged by what it lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judging {
    /// Nothing was ever said against it.
    Always,
    /// Not now: it says that the cluster is to blame.
    Paused,
    /// The cluster was to blame until then.
    Since(Timestamp),
}

/// What the object says of the cluster around it (the condition `JudgingPaused` of workloads).
pub(super) fn judging(object: &Value) -> Judging {
    let Some(paused) = condition(object, conditions::JUDGING_PAUSED) else { return Judging::Always };
    match text(paused, "status") {
        "True" => Judging::Paused,
        _ => text(paused, "lastTransitionTime").parse().map_or(Judging::Always, Judging::Since),
    }
}

/// How a Service is, given the slices of its endpoints and the templates of the release's workloads that want pods: one that
/// selects such pods leads nowhere while none of them is ready. What selects none, or nobody's, is as it was asked for.
pub(super) fn service<'a>(
    object: &Value,
    mut slices: impl Iterator<Item = &'a Value>,
    mut wanted: impl Iterator<Item = &'a Value>,
) -> Health {
    let selector = object.pointer("/spec/selector").and_then(Value::as_object).filter(|selector| !selector.is_empty());
    let Some(selector) = selector.filter(|_| object.pointer("/spec/type") != Some(&Value::from("ExternalName"))) else {
        return Health::Current;
    };
    let selects = |labels: &Value| selector.iter().all(|(key, value)| labels.get(key) == Some(value));
    let ready = |endpoint: &Value| endpoint.pointer("/conditions/ready").and_then(Value::as_bool) != Some(false);
    let leads_somewhere =
        |slice: &Value| slice.get("endpoints").and_then(Value::as_array).is_some_and(|list| list.iter().any(ready));
    if !wanted.any(selects) || slices.any(leads_somewhere) {
        return Health::Current;
    }
    Health::InProgress("none of its endpoints is ready".into())
}

/// The labels of the pods a workload wants, when it wants any.
pub(super) fn wanted_pods(object: &Value) -> Option<&Value> {
    let daemons = object.pointer("/status/desiredNumberScheduled").and_then(Value::as_i64);
    let wanted = daemons.unwrap_or_else(|| number(object, "/spec/replicas", 1));
    let serves = object.pointer("/spec/template").is_some() && object.pointer("/spec/completions").is_none();
    object.pointer("/spec/template/metadata/labels").filter(|_| serves && wanted > 0)
}

fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    conditions.iter().find(|condition| condition.get("type").and_then(Value::as_str) == Some(type_))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn is(object: &Value, type_: &str, status: &str) -> bool {
    condition(object, type_).is_some_and(|condition| text(condition, "status") == status)
}

fn number(object: &Value, pointer: &str, default: i64) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(default)
}

fn failed(condition: &Value, otherwise: &str) -> Health {
    let reason = match text(condition, "reason") {
        "" => otherwise,
        reason => reason,
    };
    // `lastUpdateTime` moves with the message; Deployments have both.
    let since = ["lastUpdateTime", "lastTransitionTime"].iter().find_map(|field| text(condition, field).parse().ok());
    Health::Failed { reason: reason.to_owned(), message: text(condition, "message").to_owned(), since }
}

/// How the object is.
pub(super) fn health(group: &str, kind: &str, object: &Value) -> Health {
    if object.pointer("/metadata/deletionTimestamp").is_some() {
        return Health::InProgress("it is being deleted".into());
    }
    if let (Some(generation), Some(observed)) = (
        object.pointer("/metadata/generation").and_then(Value::as_i64),
        object.pointer("/status/observedGeneration").and_then(Value::as_i64),
    ) && observed < generation
    {
        return Health::InProgress("its controller has not seen the last change".into());
    }
    let now = of_kind(group, kind, object);
    // A revision that was taken back, refused or found failing: said of every workload by Proa's own loops.
    let Some(found) = conditions::OF_FAILURE.iter().find(|type_| is(object, type_, "True")) else { return now };
    let back = [conditions::ROLLED_BACK, conditions::ROLLOUT_REFUSED].contains(found);
    match (condition(object, found).map(|condition| failed(condition, found)), now) {
        (Some(Health::Failed { reason, message, since }), Health::Current) if back => {
            Health::WentBack { reason, message, since, busy: None }
        }
        (Some(Health::Failed { reason, message, since }), Health::InProgress(why)) if back => {
            Health::WentBack { reason, message, since, busy: Some(why) }
        }
        (_, now @ Health::Failed { .. }) => now,
        (said, now) => said.unwrap_or(now),
    }
}

/// How an object of that kind is, by what it has come to.
fn of_kind(group: &str, kind: &str, object: &Value) -> Health {
    let group = if group == "proa.dev" { proa_twin(kind) } else { group };
    match (group, kind) {
        ("apps", "Deployment") => deployment(object),
        ("apps", "StatefulSet") => stateful_set(object),
        ("apps", "DaemonSet") => daemon_set(object),
        ("apps", "ReplicaSet") | ("", "ReplicationController") => {
            let wanted = number(object, "/spec/replicas", 1);
            counted(number(object, "/status/availableReplicas", 0), wanted, "replicas are available")
        }
        ("batch", "Job") => job(object),
        ("batch", "CronJob") => Health::Current,
        ("", "Pod") => pod(object),
        // A claim whose class binds with the first pod that uses it waits for that pod, which is told by its own workload.
        ("", "PersistentVolumeClaim") if object.pointer("/status/phase") == Some(&Value::from("Lost")) => {
            Health::Failed { reason: "Lost".into(), message: "the volume it was bound to is gone".into(), since: None }
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") if !is(object, "Established", "True") => {
            Health::InProgress("it is not established".into())
        }
        _ => by_conditions(object),
    }
}

fn proa_twin(kind: &str) -> &'static str {
    match kind {
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" => "apps",
        "Pod" => "",
        _ => "proa.dev",
    }
}

fn counted(have: i64, wanted: i64, what: &str) -> Health {
    if have >= wanted { Health::Current } else { Health::InProgress(format!("{have} of {wanted} {what}")) }
}

/// The first that is not current.
fn all(checks: impl IntoIterator<Item = Health>) -> Health {
    checks.into_iter().find(|health| *health != Health::Current).unwrap_or(Health::Current)
}

/// As `kubectl rollout status` decides it.
fn deployment(object: &Value) -> Health {
    // As kstatus has it. Whatever else keeps it from progressing (`ReplicaSetCreateError`) is tried again.
    if let Some(progressing) = condition(object, conditions::PROGRESSING).filter(|c| text(c, "status") == "False") {
        return match text(progressing, "reason") {
            "ProgressDeadlineExceeded" => failed(progressing, "ProgressDeadlineExceeded"),
            _ => Health::InProgress(text(progressing, "message").to_owned()),
        };
    }
    let wanted = number(object, "/spec/replicas", 1);
    let updated = number(object, "/status/updatedReplicas", 0);
    let old = number(object, "/status/replicas", 0) - updated;
    all([
        seen(object),
        counted(updated, wanted, "new replicas have been updated"),
        if old > 0 {
            Health::InProgress(format!("{old} old replicas are pending termination"))
        } else {
            Health::Current
        },
        counted(number(object, "/status/availableReplicas", 0), updated, "updated replicas are available"),
    ])
}

fn seen(object: &Value) -> Health {
    match object.pointer("/status/observedGeneration") {
        Some(_) => Health::Current,
        None => Health::InProgress("its controller has not seen it".into()),
    }
}

fn stateful_set(object: &Value) -> Health {
    let wanted = number(object, "/spec/replicas", 1);
    let on_delete = object.pointer("/spec/updateStrategy/type") == Some(&Value::from("OnDelete"));
    let partition = number(object, "/spec/updateStrategy/rollingUpdate/partition", 0);
    let updated = if on_delete { 0 } else { (wanted - partition).max(0) };
    all([
        seen(object),
        counted(number(object, "/status/readyReplicas", 0), wanted, "replicas are ready"),
        counted(number(object, "/status/updatedReplicas", 0), updated, "new replicas have been updated"),
    ])
}

fn daemon_set(object: &Value) -> Health {
    let wanted = number(object, "/status/desiredNumberScheduled", 0);
    let on_delete = object.pointer("/spec/updateStrategy/type") == Some(&Value::from("OnDelete"));
    let updated = if on_delete { 0 } else { wanted };
    all([
        seen(object),
        counted(number(object, "/status/updatedNumberScheduled", 0), updated, "pods have been updated"),
        counted(number(object, "/status/numberAvailable", 0), wanted, "pods are available"),
    ])
}

fn job(object: &Value) -> Health {
    if let Some(condition) = condition(object, "Failed").filter(|condition| text(condition, "status") == "True") {
        return failed(condition, "Failed");
    }
    if is(object, "Complete", "True") || object.pointer("/spec/suspend") == Some(&Value::Bool(true)) {
        return Health::Current;
    }
    Health::InProgress("it is not complete".into())
}

fn pod(object: &Value) -> Health {
    match text(object.get("status").unwrap_or(&Value::Null), "phase") {
        "Succeeded" => Health::Current,
        "Failed" => {
            let status = object.get("status").unwrap_or(&Value::Null);
            let reason = match text(status, "reason") {
                "" => "Failed",
                reason => reason,
            };
            Health::Failed { reason: reason.into(), message: text(status, "message").into(), since: None }
        }
        _ if is(object, conditions::READY, "True") => Health::Current,
        _ => Health::InProgress("it is not ready".into()),
    }
}

/// For kinds nobody knows: what the API conventions and kstatus say of conditions.
fn by_conditions(object: &Value) -> Health {
    if let Some(stalled) = condition(object, "Stalled").filter(|condition| text(condition, "status") == "True") {
        return failed(stalled, "Stalled");
    }
    let pending = |condition: &Value| match text(condition, "message") {
        "" => Health::InProgress("it is not ready".into()),
        message => Health::InProgress(message.to_owned()),
    };
    if let Some(reconciling) = condition(object, "Reconciling").filter(|c| text(c, "status") == "True") {
        return pending(reconciling);
    }
    match condition(object, conditions::READY) {
        Some(ready) if text(ready, "status") != "True" => pending(ready),
        _ => Health::Current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_workload_is_current_when_its_rollout_is_over() {
        let deployment = |status: Value| {
            health(
                "apps",
                "Deployment",
                &json!({"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": status}),
            )
        };
        let done = json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2});
        assert_eq!(deployment(done.clone()), Health::Current);
        let without = |field: &str, value: i64| {
            let mut status = done.clone();
            status[field] = json!(value);
            deployment(status)
        };
        for (field, value) in
            [("observedGeneration", 1), ("replicas", 3), ("updatedReplicas", 1), ("availableReplicas", 1)]
        {
            assert!(matches!(without(field, value), Health::InProgress(_)), "{field}");
        }
        assert!(matches!(deployment(json!({})), Health::InProgress(_)), "nobody has seen it yet");
        let set = json!({"spec": {"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 2}}},
            "status": {"observedGeneration": 1, "readyReplicas": 3, "updatedReplicas": 1}});
        assert_eq!(health("apps", "StatefulSet", &set), Health::Current);
        assert_eq!(
            health(
                "proa.dev",
                "Deployment",
                &json!({"spec": {}, "status": {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}})
            ),
            Health::Current
        );
    }

    #[test]
    fn a_service_of_pods_the_release_wants_is_well_when_one_of_them_is_ready() {
        let of = |selector: Value, ready: Option<bool>, labels: Value, replicas: i64| {
            let object = json!({"spec": {"selector": selector}});
            let slice = json!({"endpoints": [{"conditions": {"ready": ready}}]});
            let slices: Vec<&Value> = ready.iter().map(|_| &slice).collect();
            let workload = json!({"spec": {"replicas": replicas, "template": {"metadata": {"labels": labels}}}});
            service(&object, slices.into_iter(), wanted_pods(&workload).into_iter())
        };
        let none = Health::InProgress("none of its endpoints is ready".into());
        let (web, labels) = (json!({"app": "web"}), json!({"app": "web", "x": "y"}));
        assert_eq!(of(web.clone(), Some(true), labels.clone(), 1), Health::Current);
        assert_eq!(of(web.clone(), Some(false), labels.clone(), 1), none);
        assert_eq!(of(web.clone(), None, labels.clone(), 1), none);
        assert_eq!(of(web.clone(), None, labels.clone(), 0), Health::Current, "nobody wants pods");
        assert_eq!(of(web, None, json!({"app": "db"}), 1), Health::Current, "they are somebody else's");
        assert_eq!(of(json!({}), None, labels, 1), Health::Current, "its endpoints are written by hand");
        let job = json!({"spec": {"completions": 1, "template": {"metadata": {"labels": {"app": "web"}}}}});
        assert_eq!(wanted_pods(&job), None);
    }

    #[test]
    fn what_will_not_come_by_itself_has_failed() {
        let with = |group: &str, kind: &str, type_: &str, status: &str| {
            let condition = json!({"type": type_, "status": status, "reason": "R", "message": "m", "lastTransitionTime": "2026-11-21T10:00:00Z"});
            health(group, kind, &json!({"spec": {}, "status": {"observedGeneration": 1, "conditions": [condition]}}))
        };
        let failed =
            Health::Failed { reason: "R".into(), message: "m".into(), since: "2026-11-21T10:00:00Z".parse().ok() };
        let deployment = |reason: &str| {
            let condition = json!({"type": "Progressing", "status": "False", "reason": reason, "message": "m"});
            health(
                "apps",
                "Deployment",
                &json!({"spec": {}, "status": {"observedGeneration": 1, "conditions": [condition]}}),
            )
        };
        assert!(matches!(deployment("ProgressDeadlineExceeded"), Health::Failed { .. }));
        // Found by the simulation (seed 845): a revision was taken back because one request had failed.
        assert_eq!(deployment("ReplicaSetCreateError"), Health::InProgress("m".into()));
        let went_back = |type_| matches!(with("apps", "DaemonSet", type_, "True"), Health::WentBack { .. });
        assert!(went_back("RolledBack") && went_back("RolloutRefused"));
        // Found by the simulation (seed 1268): one that went back long ago was well while it rolled something else out.
        assert!(matches!(with("apps", "Deployment", "RolledBack", "True"), Health::WentBack { busy: Some(_), .. }));
        assert_eq!(with("apps", "DaemonSet", "RolloutPaused", "True"), failed);
        assert_eq!(with("batch", "Job", "Failed", "True"), failed);
        assert_eq!(with("example.com", "Widget", "Stalled", "True"), failed);
        assert!(matches!(with("batch", "Job", "Failed", "False"), Health::InProgress(_)));
        assert!(matches!(with("example.com", "Widget", "Ready", "False"), Health::InProgress(_)));
        assert_eq!(with("example.com", "Widget", "Ready", "True"), Health::Current);
        assert_eq!(health("", "ConfigMap", &json!({"data": {}})), Health::Current);
    }
}
