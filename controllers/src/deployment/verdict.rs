//! Has a revision failed: what its pods, its configuration and the clock say. Pure.

use super::{
    revisions::{name, pods_of},
    rollback::{Failure, last_lines},
};
use crate::pods;
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::DeploymentStatus,
    core::v1::{ContainerStateTerminated, ContainerStatus},
};
use proa_crds::{Pod, ReplicaSet, conditions, reasons};
use std::{sync::Arc, time::Duration};

/// A configuration error must stand this long: a manifest may bring the ConfigMap right after the Deployment.
const CONFIG_GRACE: Duration = Duration::from_secs(5);

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
    let mine = pods_of(new, pods);
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
    if let Some(failure) = crash_loop_of(&mine) {
        return Verdict::Failed(failure);
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

/// Judges a revision whose rollout was complete: it fails when every one of its pods keeps crashing.
pub(super) fn judge_complete(new: &ReplicaSet, pods: &[Arc<Pod>]) -> Verdict {
    crash_loop_of(&pods_of(new, pods)).map_or(Verdict::Fine, Verdict::Failed)
}

fn crash_loop_of(pods: &[&Pod]) -> Option<Failure> {
    let looping = pods.iter().map(|pod| Some((*pod, crash_loop(pod)?))).collect::<Option<Vec<_>>>()?;
    let (pod, container) = looping.first()?;
    Some(evidence(reasons::CRASH_LOOP, pod, container, crash_message(container)))
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
    let said = without_image(waiting.message.as_deref().unwrap_or_default(), &container.image);
    let said = said.as_str();
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

/// The message without the words that name the image or its registry: they may be called `dns-resolver:refused`.
fn without_image(message: &str, image: &str) -> String {
    let untagged = image.split_once('@').map_or(image, |(name, _)| name);
    let tag = untagged.rfind(':').filter(|at| !untagged[*at..].contains('/'));
    let repository = &untagged[..tag.unwrap_or(untagged.len())];
    let (host, path) = match repository.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), path),
        _ => (None, repository),
    };
    let names_it = |word: &str| {
        // A repository of one word, unquoted and without a tag, is more likely just that word.
        let begins = word.trim_start_matches(['"', '\'', '(']).strip_prefix(path).is_some_and(|rest| {
            path.contains('/') || rest.starts_with(['@', '"', '\'']) || rest.len() > 1 && rest.starts_with(':')
        });
        begins || word.contains(&format!("/{path}")) || host.is_some_and(|host| word.contains(host))
    };
    let rest: Vec<&str> = message.split_whitespace().filter(|word| !names_it(word)).collect();
    rest.join(" ")
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

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
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
    fn what_an_image_is_called_says_nothing_about_why_it_cannot_be_had() {
        let pull = |image: &str, message: &str| {
            let mut pod = Pod::clone(&pod("p", waiting("ErrImagePull", message), 0, 1));
            let statuses = pod.status.as_mut().and_then(|status| status.container_statuses.as_mut());
            statuses.expect("one")[0].image = image.to_owned();
            reason(&[Arc::new(pod)]).ok()
        };
        let gone =
            |image: &str, message: &str| assert_eq!(pull(image, message), Some("ImageNotFound".into()), "{message}");
        gone("example/dns-resolver:refused", "docker.io/example/dns-resolver:refused: not found: manifest unknown");
        gone("r.example:5000/a/resolve@sha256:0", "http://r.example:5000/v2/a/resolve/manifests/sha256:0: not found");
        gone("dns.example/web:v1", "dns.example/web:v1: pull access denied, the repository does not exist");
        gone("dns:v2", "failed to pull \"dns:v2\": not found");
        gone("dns", "image \"dns\" not found");
        let waits = |image: &str, message: &str| assert_eq!(pull(image, message), None, "{message}");
        waits("example/not-found:denied", "docker.io/example/not-found:denied: cannot reach the registry: timeout");
        waits("dns:v2", "docker.io/library/dns:v2: cannot reach the registry: dns error: host not found");
        waits("dns", "dns error: host not found");
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
    fn a_complete_revision_fails_by_crashing_and_by_nothing_else() {
        let looping = pod("a", waiting("CrashLoopBackOff", ""), 1, 60);
        let missing = pod("b", waiting("ErrImagePull", "not found"), 0, 60);
        assert!(matches!(judge_complete(&set(), std::slice::from_ref(&looping)), Verdict::Failed(_)));
        assert_eq!(judge_complete(&set(), &[looping, missing]), Verdict::Fine);
        assert_eq!(judge_complete(&set(), &[]), Verdict::Fine);
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
}
