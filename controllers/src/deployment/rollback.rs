//! Automatic rollback: has the new revision failed, and what then. Pure.
//!
//! A revision that once completed a rollout (`proa.dev/healthy` on its replica set) is never judged again, so going back
//! cannot flap. A failed revision is marked on its replica set (`proa.dev/failure`); while the deployment's template is a
//! marked one, the last healthy template is put back instead of being rolled out.

use super::revisions::{Revisions, name, note, number};
use crate::pods;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::DeploymentStatus,
        core::v1::{ContainerStateTerminated, ContainerStatus},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use proa_crds::{Deployment, Pod, ReplicaSet, annotations, conditions, reasons};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

/// A configuration error must stand this long: a manifest may bring the ConfigMap right after the Deployment.
const CONFIG_GRACE: Duration = Duration::from_secs(5);
/// So many log lines are kept as evidence …
pub(super) const LOG_LINES: i64 = 20;
/// … and so many bytes of them, the last ones.
pub(super) const LOG_BYTES: usize = 2048;

/// What a registry's answer says when an image cannot be had, now or later.
const GONE: [&str; 9] = [
    "not found",
    "notfound",
    "does not exist",
    "manifest unknown",
    "no such",
    "name unknown",
    "unauthorized",
    "denied",
    "forbidden",
];

/// Why a revision failed: the value of `proa.dev/failure`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Failure {
    /// One of [`reasons::IMAGE_NOT_FOUND`], [`reasons::CONFIGURATION_ERROR`], [`reasons::CRASH_LOOP`],
    /// [`reasons::PROGRESS_DEADLINE_EXCEEDED`].
    pub reason: String,
    /// What the pod said.
    pub message: String,
    /// The pod that showed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The container that showed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Its last log lines.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub log: String,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// The deployment's `proa.dev/retry` at that time.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub retry: String,
    /// The replica set to go back to.
    pub to: String,
}

/// Whether the deployment, or its namespace, wants failed revisions taken back.
pub(super) fn is_on(deployment: &Deployment, namespace_wants: bool) -> bool {
    match note(deployment, annotations::ROLLBACK) {
        Some(value) => value == annotations::ROLLBACK_ON_FAILURE,
        None => namespace_wants,
    }
}

/// The failure recorded on a replica set.
pub(super) fn failure_of(set: &ReplicaSet) -> Option<Failure> {
    serde_json::from_str(note(set, annotations::FAILURE)?).ok()
}

/// Whether the revision has completed a rollout and was never found failing.
pub(super) fn is_healthy(set: &ReplicaSet) -> bool {
    note(set, annotations::HEALTHY).is_some() && note(set, annotations::FAILURE).is_none()
}

/// The last healthy revision apart from the new one.
pub(super) fn last_healthy<'a>(revisions: &Revisions<'a>) -> Option<&'a ReplicaSet> {
    revisions.old.iter().copied().filter(|set| is_healthy(set)).max_by_key(|set| number(set))
}

/// The value of `proa.dev/retry`.
fn retry(deployment: &Deployment) -> &str {
    note(deployment, annotations::RETRY).unwrap_or_default()
}

/// Whether someone asked for the failed revision to be tried again since it failed.
pub(super) fn is_retried(deployment: &Deployment, failure: &Failure) -> bool {
    let wish = retry(deployment);
    !wish.is_empty() && wish != failure.retry
}

/// The failed revision that was taken back from or refused last and is to be tried again now.
pub(super) fn to_retry<'a>(deployment: &Deployment, revisions: &Revisions<'a>) -> Option<&'a ReplicaSet> {
    let status = deployment.status.as_ref();
    let back = [conditions::ROLLED_BACK, conditions::ROLLOUT_REFUSED]
        .iter()
        .any(|type_| super::status::is_true(status, type_));
    let current = revisions.new.filter(|_| back)?;
    let (set, failure) = revisions
        .old
        .iter()
        .filter_map(|set| Some((*set, failure_of(set)?)))
        .max_by_key(|(_, failure)| failure.at.clone())?;
    (failure.to == name(current) && is_retried(deployment, &failure)).then_some(set)
}

/// What the detector found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing speaks against the revision.
    Fine,
    /// Something does, but it may pass: look again after this time.
    Wait(Duration),
    /// It cannot succeed.
    Failed(Failure),
}

/// Judges the new revision by its pods, by the configuration its volumes miss (in words), and by the deadline.
pub(super) fn judge(
    new: &ReplicaSet,
    pods: &[Arc<Pod>],
    status: Option<&DeploymentStatus>,
    missing: Option<String>,
    now: Timestamp,
) -> Verdict {
    let uid = new.metadata.uid.as_deref().unwrap_or_default();
    let mine: Vec<&Pod> = pods
        .iter()
        .map(AsRef::as_ref)
        .filter(|pod| crate::owners::is_controlled_by(&pod.metadata, uid) && pod.metadata.deletion_timestamp.is_none())
        .collect();
    let mut wait: Option<Duration> = None;
    for pod in &mine {
        for container in pods::container_statuses(pod) {
            match cannot_start(pod, container, now) {
                Some(Verdict::Failed(failure)) => return Verdict::Failed(failure),
                Some(Verdict::Wait(left)) => wait = Some(wait.map_or(left, |wait| wait.min(left))),
                Some(Verdict::Fine) | None => {}
            }
        }
    }
    if let Some(missing) = missing
        && let Some(pod) = mine.iter().find(|pod| !pods::is_ready(pod))
    {
        match after_grace(pod, now) {
            None => {
                return Verdict::Failed(Failure {
                    reason: reasons::CONFIGURATION_ERROR.to_owned(),
                    message: missing,
                    pod: pod.metadata.name.clone(),
                    ..Failure::default()
                });
            }
            Some(left) => wait = Some(wait.map_or(left, |wait| wait.min(left))),
        }
    }
    let looping: Vec<_> = mine.iter().filter_map(|pod| Some((*pod, crash_loop(pod)?))).collect();
    if !mine.is_empty() && looping.len() == mine.len() {
        let (pod, container) = looping[0];
        return Verdict::Failed(evidence(reasons::CRASH_LOOP, pod, container, crash_message(container)));
    }
    let timed_out = status
        .and_then(|status| super::status::condition(status, conditions::PROGRESSING))
        .filter(|condition| condition.reason.as_deref() == Some(reasons::PROGRESS_DEADLINE_EXCEEDED))
        .filter(|condition| {
            condition.message.as_deref().is_some_and(|message| message.contains(&format!("{:?}", name(new))))
        });
    if let Some(condition) = timed_out {
        let message = condition.message.clone().unwrap_or_default();
        let worst = mine
            .iter()
            .filter(|pod| !pods::is_ready(pod))
            .map(|pod| (*pod, pods::container_statuses(pod).find(|container| !container.ready)))
            .max_by_key(|(_, container)| container.is_some());
        let reason = reasons::PROGRESS_DEADLINE_EXCEEDED;
        return Verdict::Failed(match worst {
            Some((pod, Some(container))) => {
                evidence(reason, pod, container, format!("{message} {}", held_up(container)))
            }
            Some((pod, None)) => {
                let why = unscheduled(pod).unwrap_or_else(|| "its containers were not started".to_owned());
                let (message, pod) = (format!("{message} Pod: {why}"), pod.metadata.name.clone());
                Failure { reason: reason.to_owned(), message, pod, ..Failure::default() }
            }
            None => Failure { reason: reason.to_owned(), message, ..Failure::default() },
        });
    }
    wait.map_or(Verdict::Fine, Verdict::Wait)
}

fn evidence(reason: &str, pod: &Pod, container: &ContainerStatus, message: String) -> Failure {
    Failure {
        reason: reason.to_owned(),
        message,
        pod: pod.metadata.name.clone(),
        container: Some(container.name.clone()),
        // Where the log cannot be read, what the container left behind is better than nothing.
        log: last_ended(container).and_then(|ended| ended.message.as_deref()).map(last_lines).unwrap_or_default(),
        ..Failure::default()
    }
}

fn last_ended(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    [container.state.as_ref(), container.last_state.as_ref()]
        .into_iter()
        .flatten()
        .find_map(|state| state.terminated.as_ref())
}

/// Image and configuration errors: one pod speaks for all, because all would meet the same.
fn cannot_start(pod: &Pod, container: &ContainerStatus, now: Timestamp) -> Option<Verdict> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let said = waiting.message.as_deref().unwrap_or_default();
    let reason = waiting.reason.as_deref()?;
    let message = || held_up(container);
    match reason {
        "InvalidImageName" | "ErrImageNeverPull" => {
            Some(Verdict::Failed(evidence(reasons::IMAGE_NOT_FOUND, pod, container, message())))
        }
        "ErrImagePull" | "ImagePullBackOff" => {
            // A registry that cannot be reached may come back; the progress deadline bounds the wait.
            let unreachable = says(said, &["cannot reach", "unreachable", "no route", "dns", "resolve", "refused"]);
            let may_pass = unreachable
                || says(
                    said,
                    &["timeout", "timed out", "reset", "temporary", "too many requests", "eof", "unavailable"],
                );
            let gone = says(said, &GONE) && !unreachable;
            let failed = gone || (reason == "ImagePullBackOff" && !may_pass);
            failed.then(|| Verdict::Failed(evidence(reasons::IMAGE_NOT_FOUND, pod, container, message())))
        }
        "CreateContainerConfigError" => Some(after_grace(pod, now).map_or_else(
            || Verdict::Failed(evidence(reasons::CONFIGURATION_ERROR, pod, container, message())),
            Verdict::Wait,
        )),
        _ => None,
    }
}

/// What keeps a container from being ready, in words.
fn held_up(container: &ContainerStatus) -> String {
    let state = container.state.as_ref();
    let what = if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        match waiting.message.as_deref().filter(|said| !said.is_empty()) {
            Some(said) => format!("{reason}: {said}"),
            None => reason.to_owned(),
        }
    } else if state.is_some_and(|state| state.running.is_some()) {
        "runs but does not get ready".to_owned()
    } else {
        "has ended".to_owned()
    };
    format!("container {:?} with image {:?}: {what}", container.name, container.image)
}

/// Why the pod has no node, if it has none.
fn unscheduled(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    Some(format!("{}: {}", found.reason.as_deref().unwrap_or_default(), found.message.as_deref().unwrap_or_default()))
}

/// How long until a configuration error of that pod has stood long enough; `None` when it has.
fn after_grace(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let since = pod.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let stood = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    (stood < CONFIG_GRACE).then(|| CONFIG_GRACE - stood)
}

fn says(message: &str, words: &[&str]) -> bool {
    let message = message.to_ascii_lowercase();
    words.iter().any(|word| message.contains(word))
}

/// The container that keeps crashing: it has been restarted at least once and is waiting to be again, or it has ended
/// with an error twice or more and is not ready.
fn crash_loop(pod: &Pod) -> Option<&ContainerStatus> {
    if pods::is_ready(pod) {
        return None;
    }
    pods::container_statuses(pod).find(|container| {
        let waiting = container
            .state
            .as_ref()
            .and_then(|state| state.waiting.as_ref())
            .and_then(|waiting| waiting.reason.as_deref());
        let backs_off = waiting == Some("CrashLoopBackOff") && container.restart_count >= 1;
        let ended_badly = |state: Option<&k8s_openapi::api::core::v1::ContainerState>| {
            state.and_then(|state| state.terminated.as_ref()).is_some_and(|ended| ended.exit_code != 0)
        };
        let keeps_ending = container.restart_count >= 2
            && (ended_badly(container.last_state.as_ref()) || ended_badly(container.state.as_ref()));
        !container.ready && (backs_off || keeps_ending)
    })
}

fn crash_message(container: &ContainerStatus) -> String {
    let ended = last_ended(container);
    let mut message = format!(
        "container {:?} with image {:?} crashed {} times",
        container.name,
        container.image,
        container.restart_count + 1
    );
    if let Some(ended) = ended {
        message.push_str(&format!(", the last time with exit code {}", ended.exit_code));
        if let Some(reason) = ended.reason.as_deref().filter(|reason| !reason.is_empty() && *reason != "Error") {
            message.push_str(&format!(" ({reason})"));
        }
    }
    message
}

/// The condition that says what is being done about a failed revision, and whether it is a refusal.
pub(super) fn going_back(
    revisions: &Revisions<'_>,
    failed: &ReplicaSet,
    failure: &Failure,
    to: &ReplicaSet,
    pods: &[Arc<Pod>],
) -> (bool, String) {
    let uid = failed.metadata.uid.as_deref().unwrap_or_default();
    let started = super::revisions::wanted(failed) > 0
        || pods.iter().any(|pod| crate::owners::is_controlled_by(&pod.metadata, uid));
    debug_assert!(revisions.all.iter().any(|set| name(set) == name(to)));
    let (from, back) = (number(failed), number(to));
    let why = format!("{}: {}", failure.reason, failure.message);
    let mut message = if started {
        // As every undo, this one gives the template the next number.
        let next = revisions.all.iter().map(|set| number(set)).max().unwrap_or(0) + 1;
        format!("revision {from} failed ({why}); went back to revision {back}, which is now revision {next}")
    } else {
        format!(
            "revision {from} is known to fail ({why}); revision {back} stays. Change the template, or set the annotation {} to a new value to try it again",
            annotations::RETRY,
        )
    };
    if let Some(pod) = &failure.pod {
        message.push_str(&format!(". Pod {pod}"));
        if failure.log.is_empty() {
            message.push_str(" left no log");
        } else {
            message.push_str(&format!(", last log lines:\n{}", failure.log));
        }
    }
    (!started, message)
}

/// The last lines of a log, within the limit of the evidence.
pub(super) fn last_lines(log: &str) -> String {
    let log = log.trim_end();
    let from = log.len().saturating_sub(LOG_BYTES);
    let from = (from..=log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(log.len());
    log[from..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn now() -> Timestamp {
        "2026-11-21T10:00:00Z".parse().expect("a time")
    }

    fn set() -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"name": "web-2", "uid": "rs"}, "spec": {"selector": {}}}))
            .expect("a replica set")
    }

    fn pod(name: &str, state: Value, restarts: i32, age: i64) -> Arc<Pod> {
        let created = Time(now() - jiff::SignedDuration::from_secs(age));
        let pod = json!({
            "metadata": {"name": name, "creationTimestamp": created, "ownerReferences": [{"apiVersion": "", "kind": "", "name": "", "uid": "rs", "controller": true}]},
            "spec": {"containers": []},
            "status": {"containerStatuses": [{
                "name": "c", "image": "i:v2", "imageID": "", "ready": false, "restartCount": restarts, "state": state,
                "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
            }]},
        });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn waiting(reason: &str, message: &str) -> Value {
        json!({"waiting": {"reason": reason, "message": message}})
    }

    #[expect(clippy::result_large_err, reason = "the answer of a test, made a few times")]
    fn reason(pods: &[Arc<Pod>]) -> Result<String, Verdict> {
        match judge(&set(), pods, None, None, now()) {
            Verdict::Failed(failure) => Ok(failure.reason),
            other => Err(other),
        }
    }

    #[test]
    fn an_image_that_does_not_exist_fails_the_revision_and_a_registry_that_does_not_answer_does_not() {
        let running = || pod("ok", json!({"running": {}}), 0, 60);
        let bad = |reason, message| [running(), pod("p", waiting(reason, message), 0, 1)];
        assert_eq!(reason(&bad("ErrImagePull", "manifest unknown")), Ok("ImageNotFound".into()));
        assert_eq!(reason(&bad("ImagePullBackOff", "Back-off pulling image \"x\"")), Ok("ImageNotFound".into()));
        assert_eq!(reason(&bad("InvalidImageName", "")), Ok("ImageNotFound".into()));
        assert_eq!(reason(&bad("ErrImageNeverPull", "")), Ok("ImageNotFound".into()));
        assert_eq!(
            reason(&bad("ErrImagePull", "r.example/x:v2: cannot reach the registry: host not found")),
            Err(Verdict::Fine)
        );
        assert_eq!(reason(&bad("ErrImagePull", "connection refused")), Err(Verdict::Fine));
        assert_eq!(reason(&bad("ImagePullBackOff", "i/o timeout")), Err(Verdict::Fine));
    }

    #[test]
    fn a_configuration_error_fails_the_revision_after_a_moment() {
        let missing = |age| [pod("p", waiting("CreateContainerConfigError", "configmap \"x\" not found"), 0, age)];
        assert_eq!(reason(&missing(2)), Err(Verdict::Wait(Duration::from_secs(3))));
        assert_eq!(reason(&missing(5)), Ok("ConfigurationError".into()));
    }

    #[test]
    fn a_volume_whose_source_is_missing_is_a_configuration_error_too() {
        let creating = |age| [pod("p", waiting("ContainerCreating", ""), 0, age)];
        let judge = |age| judge(&set(), &creating(age), None, Some("configmap \"x\" not found".into()), now());
        assert_eq!(judge(1), Verdict::Wait(Duration::from_secs(4)));
        assert!(matches!(judge(5), Verdict::Failed(failure) if failure.reason == "ConfigurationError"));
    }

    #[test]
    fn only_when_every_new_pod_crashes_again_and_again_is_it_a_crash_loop() {
        let looping = |name, restarts| pod(name, waiting("CrashLoopBackOff", ""), restarts, 60);
        assert_eq!(reason(&[looping("a", 1), looping("b", 3)]), Ok("CrashLoop".into()));
        assert_eq!(reason(&[looping("a", 0)]), Err(Verdict::Fine), "one crash is not a loop");
        assert_eq!(reason(&[looping("a", 1), pod("b", json!({"running": {}}), 0, 60)]), Err(Verdict::Fine));
        assert_eq!(
            reason(&[looping("a", 1), pod("b", json!({"running": {}}), 2, 60)]),
            Ok("CrashLoop".into()),
            "between two crashes"
        );
        assert_eq!(reason(&[]), Err(Verdict::Fine));
    }

    #[test]
    fn the_deadline_of_this_revision_fails_it_and_that_of_another_does_not() {
        let status = |set: &str| -> DeploymentStatus {
            let message = format!("ReplicaSet {set:?} has timed out progressing.");
            serde_json::from_value(json!({"conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": message}]}))
                .expect("a status")
        };
        let pods = [pod("p", json!({"running": {}}), 0, 700)];
        let failed = judge(&set(), &pods, Some(&status("web-2")), None, now());
        assert!(
            matches!(&failed, Verdict::Failed(failure) if failure.pod.as_deref() == Some("p") && failure.message.contains("i:v2")),
            "{failed:?}"
        );
        assert_eq!(judge(&set(), &pods, Some(&status("web-1")), None, now()), Verdict::Fine);
    }

    #[test]
    fn evidence_is_bounded_and_keeps_the_last_lines() {
        let log = format!("{}é\nlast\n", "x".repeat(LOG_BYTES * 2));
        let lines = last_lines(&log);
        assert!(lines.len() <= LOG_BYTES && lines.ends_with("é\nlast"));
        assert_eq!(last_lines("é".repeat(LOG_BYTES).as_str()).len(), LOG_BYTES);
        assert_eq!(last_lines(""), "");
    }
}
