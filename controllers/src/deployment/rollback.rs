//! Automatic rollback: which revisions are healthy, which have failed, which are to be tried again. Pure.
//!
//! A revision that has completed a rollout is healthy (`proa.dev/healthy` on its replica set). For a while it is still
//! watched for a crash loop; after that it is never judged again, so going back cannot flap. A failed revision is marked
//! on its replica set (`proa.dev/failure`) and is healthy no more; while the deployment's template is a marked one, the
//! last healthy template is put back instead of being rolled out.

use super::revisions::{Revisions, name, note, number};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proa_crds::{Deployment, Pod, ReplicaSet, annotations, conditions};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// How long a revision is watched for a crash loop after its rollout was complete. Without a readiness probe a pod is
/// ready as soon as its process runs, so a rollout can be complete before the first crash. A loop shows with the second
/// crash: this is time enough for a process that gives up after half a minute to do it twice.
pub(super) const PROBATION: Duration = Duration::from_secs(90);
/// So many log lines are kept as evidence …
pub(super) const LOG_LINES: i64 = 20;
/// … and so many bytes of them, the last ones.
pub(super) const LOG_BYTES: usize = 2048;

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

/// Whether that object, a namespace or a deployment, asks for automatic rollback.
pub(super) fn is_wanted<K: kube::Resource>(object: &K) -> bool {
    note(object, annotations::ROLLBACK) == Some(annotations::ROLLBACK_ON_FAILURE)
}

/// Whether the deployment, or its namespace, wants failed revisions taken back.
pub(super) fn is_on(deployment: &Deployment, namespace_wants: bool) -> bool {
    match note(deployment, annotations::ROLLBACK) {
        Some(_) => is_wanted(deployment),
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

/// The change of its annotations that makes a revision a healthy one. Without automatic rollback one that was once
/// marked as failed may come good; then that mark is wrong.
pub(super) fn healthy_since(now: Timestamp) -> Value {
    json!({annotations::HEALTHY: crate::patch::json(&Time(now)), annotations::FAILURE: null})
}

/// The change of its annotations that makes a revision a failed one.
pub(super) fn failed_with(failure: &Failure) -> Value {
    json!({annotations::HEALTHY: null, annotations::FAILURE: crate::patch::json(failure).to_string()})
}

/// How long a healthy revision is still watched; `None` when it no longer is, and when it is not healthy.
pub(super) fn probation_left(set: &ReplicaSet, now: Timestamp) -> Option<Duration> {
    let since: Timestamp = note(set, annotations::HEALTHY)?.parse().ok()?;
    let stood = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    PROBATION.checked_sub(stood).filter(|left| !left.is_zero())
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

/// The changes that let a failed revision know of a wish that is being granted, or was meant for another: it is no news
/// to it any longer. With the names of their replica sets.
pub(super) fn spent_wishes<'a>(deployment: &Deployment, revisions: &Revisions<'a>) -> Vec<(&'a str, Value)> {
    let stamped = |set: &&'a ReplicaSet| {
        let failure = failure_of(set).filter(|failure| is_retried(deployment, failure))?;
        let failure = Failure { retry: retry(deployment).to_owned(), ..failure };
        Some((name(set), json!({annotations::FAILURE: crate::patch::json(&failure).to_string()})))
    };
    revisions.old.iter().filter_map(stamped).collect()
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

    #[test]
    fn a_revision_is_watched_for_a_while_after_its_rollout() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().expect("a time");
        let set = |annotations: Value| -> ReplicaSet {
            serde_json::from_value(
                json!({"metadata": {"name": "web-2", "annotations": annotations}, "spec": {"selector": {}}}),
            )
            .expect("a replica set")
        };
        let marked = set(json!({annotations::HEALTHY: healthy_since(now)[annotations::HEALTHY]}));
        let after = |seconds| probation_left(&marked, now + Duration::from_secs(seconds));
        assert_eq!(after(0), Some(PROBATION));
        assert_eq!(after(PROBATION.as_secs() - 1), Some(Duration::from_secs(1)));
        assert_eq!(after(PROBATION.as_secs()), None);
        assert_eq!(probation_left(&set(json!({})), now), None);
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
