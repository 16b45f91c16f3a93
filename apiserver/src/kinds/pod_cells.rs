//! Owns the cells of a pod's row: what `kubectl get pods` says a pod is doing, in Kubernetes' own
//! words and with its order of precedence (`printPod` upstream). Never decides anything.

use jiff::Timestamp;
use proa_apimachinery::{Object, duration};
use serde_json::Value;

fn list<'a>(pod: &'a Object, path: &[&str]) -> &'a [Value] {
    pod.get_list(path)
}

fn string<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    path.iter().try_fold(value, |v, field| v.get(*field)).and_then(Value::as_str).unwrap_or_default()
}

fn number(value: &Value, path: &[&str]) -> i64 {
    path.iter().try_fold(value, |v, field| v.get(*field)).and_then(Value::as_i64).unwrap_or(0)
}

fn state<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status.get("state").and_then(|s| s.get(name)).filter(|v| v.is_object())
}

fn is_ready(status: &Value) -> bool {
    status.get("ready").and_then(Value::as_bool).unwrap_or(false)
}

/// An init container that keeps running (KEP-753).
fn is_sidecar(pod: &Object, name: &str) -> bool {
    list(pod, &["spec", "initContainers"])
        .iter()
        .any(|c| string(c, &["name"]) == name && string(c, &["restartPolicy"]) == "Always")
}

/// What is learned on the one walk over the container statuses.
#[derive(Default)]
struct Seen {
    reason: String,
    ready: i64,
    total: i64,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

fn signal_or_exit(terminated: &Value) -> String {
    match number(terminated, &["signal"]) {
        0 => format!("ExitCode:{}", number(terminated, &["exitCode"])),
        signal => format!("Signal:{signal}"),
    }
}

fn last_finish(status: &Value) -> Option<Timestamp> {
    string(status, &["lastState", "terminated", "finishedAt"]).parse().ok()
}

fn look(pod: &Object) -> Seen {
    let mut seen = Seen { total: list(pod, &["spec", "containers"]).len() as i64, ..Seen::default() };
    let phase = pod.get_str(&["status", "phase"]).unwrap_or_default();
    seen.reason = match pod.get_str(&["status", "reason"]) {
        Some(reason) if !reason.is_empty() => reason.to_owned(),
        _ => phase.to_owned(),
    };
    let condition = |type_: &str| list(pod, &["status", "conditions"]).iter().find(|c| string(c, &["type"]) == type_);
    if let Some(scheduled) = condition("PodScheduled")
        && string(scheduled, &["reason"]) == "SchedulingGated"
    {
        seen.reason = "SchedulingGated".to_owned();
    }
    let inits = list(pod, &["spec", "initContainers"]);
    seen.total += inits.iter().filter(|c| string(c, &["restartPolicy"]) == "Always").count() as i64;

    let (mut restarts, mut sidecar_restarts) = (0, 0);
    let (mut last, mut sidecar_last) = (None::<Timestamp>, None::<Timestamp>);
    let mut initializing = false;
    for (i, status) in list(pod, &["status", "initContainerStatuses"]).iter().enumerate() {
        let sidecar = is_sidecar(pod, string(status, &["name"]));
        restarts += number(status, &["restartCount"]);
        last = last.max(last_finish(status));
        if sidecar {
            sidecar_restarts += number(status, &["restartCount"]);
            sidecar_last = sidecar_last.max(last_finish(status));
        }
        if let Some(terminated) = state(status, "terminated") {
            if number(terminated, &["exitCode"]) == 0 {
                continue;
            }
            let reason = string(terminated, &["reason"]);
            seen.reason = if reason.is_empty() {
                format!("Init:{}", signal_or_exit(terminated))
            } else {
                format!("Init:{reason}")
            };
        } else if sidecar && status.get("started").and_then(Value::as_bool).unwrap_or(false) {
            if is_ready(status) {
                seen.ready += 1;
            }
            continue;
        } else {
            let waiting = state(status, "waiting").map_or("", |w| string(w, &["reason"]));
            seen.reason = if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{i}/{}", inits.len())
            };
        }
        initializing = true;
        break;
    }

    let initialized = condition("Initialized").is_some_and(|c| string(c, &["status"]) == "True");
    if !initializing || initialized {
        restarts = sidecar_restarts;
        last = sidecar_last;
        let mut running = false;
        for status in list(pod, &["status", "containerStatuses"]).iter().rev() {
            restarts += number(status, &["restartCount"]);
            last = last.max(last_finish(status));
            let waiting = state(status, "waiting").map_or("", |w| string(w, &["reason"]));
            if !waiting.is_empty() {
                seen.reason = waiting.to_owned();
            } else if let Some(terminated) = state(status, "terminated") {
                let reason = string(terminated, &["reason"]);
                seen.reason = if reason.is_empty() { signal_or_exit(terminated) } else { reason.to_owned() };
            } else if is_ready(status) && state(status, "running").is_some() {
                running = true;
                seen.ready += 1;
            }
        }
        // One container has completed, another still runs: the pod runs.
        if seen.reason == "Completed" && running {
            let ready = condition("Ready").is_some_and(|c| string(c, &["status"]) == "True");
            seen.reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    seen.restarts = restarts;
    seen.last_restart = last;

    if pod.deletion_timestamp().is_some() {
        if pod.get_str(&["status", "reason"]) == Some("NodeLost") {
            seen.reason = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            seen.reason = "Terminating".to_owned();
        }
    }
    seen
}

pub(super) fn ready(pod: &Object, _: Timestamp) -> Value {
    let seen = look(pod);
    format!("{}/{}", seen.ready, seen.total).into()
}

pub(super) fn status(pod: &Object, _: Timestamp) -> Value {
    look(pod).reason.into()
}

pub(super) fn restarts(pod: &Object, now: Timestamp) -> Value {
    let seen = look(pod);
    match seen.last_restart {
        Some(last) if seen.restarts != 0 => {
            format!("{} ({} ago)", seen.restarts, duration::human(now.as_second() - last.as_second())).into()
        }
        _ => seen.restarts.to_string().into(),
    }
}

fn or_none(text: Option<&str>) -> Value {
    text.filter(|t| !t.is_empty()).unwrap_or("<none>").into()
}

pub(super) fn ip(pod: &Object, _: Timestamp) -> Value {
    let first = list(pod, &["status", "podIPs"]).first().map(|ip| string(ip, &["ip"]));
    or_none(first.filter(|t| !t.is_empty()).or_else(|| pod.get_str(&["status", "podIP"])))
}

pub(super) fn node(pod: &Object, _: Timestamp) -> Value {
    or_none(pod.get_str(&["spec", "nodeName"]))
}

pub(super) fn nominated_node(pod: &Object, _: Timestamp) -> Value {
    or_none(pod.get_str(&["status", "nominatedNodeName"]))
}

pub(super) fn readiness_gates(pod: &Object, _: Timestamp) -> Value {
    let gates = list(pod, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return "<none>".into();
    }
    let holds = |gate: &&Value| {
        list(pod, &["status", "conditions"])
            .iter()
            .any(|c| string(c, &["type"]) == string(gate, &["conditionType"]) && string(c, &["status"]) == "True")
    };
    format!("{}/{}", gates.iter().filter(holds).count(), gates.len()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(status: Value, spec: Value, metadata: Value, want: (&str, &str, &str)) {
        let pod = json!({"metadata": metadata, "spec": spec, "status": status});
        let pod = Object::from_value(pod).unwrap();
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        let got = (ready(&pod, now), super::status(&pod, now), restarts(&pod, now));
        assert_eq!((got.0.as_str(), got.1.as_str(), got.2.as_str()), (Some(want.0), Some(want.1), Some(want.2)));
    }

    fn one(status: Value, want: (&str, &str, &str)) {
        check(status, json!({"containers": [{"name": "a"}]}), json!({}), want);
    }

    #[test]
    fn what_kubectl_says_a_pod_is_doing() {
        one(json!({"phase": "Pending"}), ("0/1", "Pending", "0"));
        one(
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            ("0/1", "SchedulingGated", "0"),
        );
        one(
            json!({"phase": "Pending", "containerStatuses": [{"name": "a", "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}]}),
            ("0/1", "ContainerCreating", "0"),
        );
        one(
            json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}}]}),
            ("1/1", "Running", "0"),
        );
        one(
            json!({"phase": "Running", "containerStatuses": [{"name": "a", "restartCount": 3,
                "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}}, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
            ("0/1", "CrashLoopBackOff", "3 (5m ago)"),
        );
        for (terminated, want) in [
            (json!({"exitCode": 0, "reason": "Completed"}), "Completed"),
            (json!({"exitCode": 1, "reason": "Error"}), "Error"),
            (json!({"exitCode": 137, "reason": "OOMKilled"}), "OOMKilled"),
            (json!({"exitCode": 3}), "ExitCode:3"),
            (json!({"exitCode": 137, "signal": 9}), "Signal:9"),
        ] {
            one(
                json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"terminated": terminated}}]}),
                ("0/1", want, "0"),
            );
        }
        one(json!({"phase": "Failed", "reason": "Evicted"}), ("0/1", "Evicted", "0"));
    }

    #[test]
    fn init_containers_and_sidecars() {
        let spec = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]});
        let waiting = json!({"waiting": {"reason": "PodInitializing"}});
        let cases = [
            (json!({"running": {}}), json!({"waiting": {"reason": "PodInitializing"}}), "0/2", "Init:0/2"),
            (json!({"terminated": {"exitCode": 1, "reason": "Error"}}), waiting.clone(), "0/2", "Init:Error"),
            (json!({"terminated": {"exitCode": 2}}), waiting.clone(), "0/2", "Init:ExitCode:2"),
            (json!({"waiting": {"reason": "CrashLoopBackOff"}}), waiting.clone(), "0/2", "Init:CrashLoopBackOff"),
            (json!({"terminated": {"exitCode": 0}}), waiting.clone(), "0/2", "Init:1/2"),
        ];
        for (first, second, ready, want) in cases {
            let status = json!({"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "state": first}, {"name": "s", "state": second}],
                "containerStatuses": [{"name": "a", "state": waiting}]});
            check(status, spec.clone(), json!({}), (ready, want, "0"));
        }
        let status = json!({"phase": "Running", "initContainerStatuses": [
            {"name": "i", "state": {"terminated": {"exitCode": 0}}},
            {"name": "s", "started": true, "ready": true, "restartCount": 1, "state": {"running": {}}}],
            "containerStatuses": [{"name": "a", "ready": true, "state": {"running": {}}}]});
        check(status.clone(), spec.clone(), json!({}), ("2/2", "Running", "1"));
        let going = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        check(status, spec, going, ("2/2", "Terminating", "1"));
    }
}
