//! What is remembered of revisions: which are healthy, which have failed, which are to be tried again.
//!
//! A revision that has completed a rollout is healthy (`proa.dev/healthy`). For a while it is still watched; after that it is
//! never judged again, so going back cannot flap. A failed revision is marked (`proa.dev/failure`) and is healthy no more;
//! while the object's template is a marked one, what the policy says is done instead of rolling it out.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::ObjectMeta;
use proa_crds::{FailedTemplate, Failure, annotations};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// So many bytes of a log are repeated in a condition.
const LOG_IN_CONDITION: usize = 2048;
/// So many templates known to fail are told to the API server, the last ones …
const FAILED_TEMPLATES: usize = 10;
/// … each with so many bytes of its reason.
const WHY: usize = 300;

/// A revision: the object that stands for it, and its number.
#[derive(Clone, Copy, Debug)]
pub struct Revision<'a> {
    /// Of its ReplicaSet or ControllerRevision.
    pub meta: &'a ObjectMeta,
    /// As `kubectl rollout history` shows it.
    pub number: i64,
}

impl<'a> Revision<'a> {
    /// The name of the object that stands for it.
    pub fn name(&self) -> &'a str {
        self.meta.name.as_deref().unwrap_or_default()
    }
}

/// The value of an annotation.
pub(crate) fn note<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The failure recorded on a revision.
pub(crate) fn failure_of(meta: &ObjectMeta) -> Option<Failure> {
    Failure::recorded(meta.annotations.as_ref())
}

/// Whether the revision has completed a rollout and was never found failing.
pub(crate) fn is_healthy(meta: &ObjectMeta) -> bool {
    note(meta, annotations::HEALTHY).is_some() && note(meta, annotations::FAILURE).is_none()
}

/// The change of its annotations that makes a revision a healthy one. One that was once marked as failed and not taken
/// back may come good; then that mark is wrong.
pub(crate) fn healthy_since(now: Timestamp) -> Value {
    json!({annotations::HEALTHY: crate::patch::json(&Time(now)), annotations::FAILURE: null})
}

/// The change of its annotations that makes a revision a failed one.
pub(crate) fn failed_with(failure: &Failure) -> Value {
    json!({annotations::HEALTHY: null, annotations::FAILURE: crate::patch::json(failure).to_string()})
}

/// How long a healthy revision is still watched; `None` when it no longer is, and when it is not healthy.
pub(crate) fn soak_left(meta: &ObjectMeta, soak: Duration, now: Timestamp) -> Option<Duration> {
    let since: Timestamp = note(meta, annotations::HEALTHY)?.parse().ok()?;
    let stood = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    soak.checked_sub(stood).filter(|left| !left.is_zero())
}

/// The last healthy revision of these.
pub(crate) fn last_healthy<'a>(old: impl Iterator<Item = Revision<'a>>) -> Option<Revision<'a>> {
    old.filter(|revision| is_healthy(revision.meta)).max_by_key(|revision| revision.number)
}

/// The failed revision of these that was marked, taken back from or refused last: the one that must stay known.
pub(crate) fn last_failed<'a>(old: impl Iterator<Item = Revision<'a>>) -> Option<(Revision<'a>, Failure)> {
    old.filter_map(|revision| Some((revision, failure_of(revision.meta)?)))
        .max_by_key(|(_, failure)| failure.at.clone())
}

/// The value of `proa.dev/retry`.
fn retry(object: &ObjectMeta) -> &str {
    note(object, annotations::RETRY).unwrap_or_default()
}

/// Whether someone asked for the failed revision to be tried again since it failed.
pub(crate) fn is_retried(object: &ObjectMeta, failure: &Failure) -> bool {
    let wish = retry(object);
    !wish.is_empty() && wish != failure.retry
}

/// The failure as it is recorded when it is found now.
pub(crate) fn found(object: &ObjectMeta, failure: Failure, to: Option<Revision<'_>>, now: Timestamp) -> Failure {
    Failure {
        at: Some(Time(now)),
        retry: retry(object).to_owned(),
        to: to.map(|to| to.name().to_owned()).unwrap_or_default(),
        ..failure
    }
}

/// The failed revision that was taken back from or refused last and is to be tried again now that the object is at
/// `current`.
pub(crate) fn to_retry<'a>(
    object: &ObjectMeta,
    old: impl Iterator<Item = Revision<'a>>,
    current: Revision<'_>,
) -> Option<Revision<'a>> {
    let (revision, failure) = last_failed(old)?;
    (failure.to == current.name() && is_retried(object, &failure)).then_some(revision)
}

/// The changes that let a failed revision know of a wish that is being granted, or was meant for another: it is no news
/// to it any longer. With the names of their revisions.
pub(crate) fn spent_wishes<'a>(object: &ObjectMeta, old: impl Iterator<Item = Revision<'a>>) -> Vec<(&'a str, Value)> {
    let stamped = |revision: Revision<'a>| {
        let failure = failure_of(revision.meta).filter(|failure| is_retried(object, failure))?;
        let failure = Failure { retry: retry(object).to_owned(), ..failure };
        Some((revision.name(), json!({annotations::FAILURE: crate::patch::json(&failure).to_string()})))
    };
    old.filter_map(stamped).collect()
}

/// The change of an object's annotations that makes its change cause that of the revision it goes back to, as an undo of
/// kubectl does for a Deployment.
pub(crate) fn cause_comes_back(object: &ObjectMeta, cause: Option<&str>) -> Map<String, Value> {
    let changes = (cause != note(object, annotations::CHANGE_CAUSE)).then(|| json!(cause));
    changes.map(|cause| (annotations::CHANGE_CAUSE.to_owned(), cause)).into_iter().collect()
}

/// What is said of a failed revision that is taken back, or refused when it had not `started` since it was applied again.
pub(crate) fn going_back(
    failed: Revision<'_>,
    failure: &Failure,
    to: Revision<'_>,
    highest: i64,
    started: bool,
) -> String {
    let (from, back, why) = (failed.number, to.number, failure.why());
    if started {
        // As every undo, this one gives the template the next number.
        let next = highest + 1;
        with_evidence(
            format!("revision {from} failed ({why}); went back to revision {back}, which is now revision {next}"),
            failure,
        )
    } else {
        with_evidence(
            format!(
                "revision {from} is known to fail ({why}); revision {back} stays. Change the template, or set the annotation {} to a new value to try it again",
                annotations::RETRY
            ),
            failure,
        )
    }
}

/// What is said of a failed revision whose rollout goes on.
pub(crate) fn going_on(failed: Revision<'_>, failure: &Failure, fallback: bool) -> String {
    let what =
        if fallback { "its rollout goes on, as the policy says" } else { "there is no healthy revision to go back to" };
    with_evidence(format!("revision {} failed ({}); {what}", failed.number, failure.why()), failure)
}

/// What is said of a failed revision whose rollout stands still.
pub(crate) fn standing_still(failed: Revision<'_>, failure: &Failure) -> String {
    let message = format!(
        "revision {} failed ({}); its rollout stands still, as the policy says. Change the template, go back, or set the annotation {} to a new value to let it go on",
        failed.number,
        failure.why(),
        annotations::RETRY,
    );
    with_evidence(message, failure)
}

fn with_evidence(mut message: String, failure: &Failure) -> String {
    if let Some(pod) = &failure.pod {
        message.push_str(&format!(". Pod {pod}"));
        if failure.log.is_empty() {
            message.push_str(" left no log");
        } else {
            let from = failure.log.len().saturating_sub(LOG_IN_CONDITION);
            let from = (from..=failure.log.len()).find(|at| failure.log.is_char_boundary(*at)).unwrap_or_default();
            message.push_str(&format!(", last log lines:\n{}", &failure.log[from..]));
        }
    }
    message
}

/// What the object says of templates that are known to fail, for the API server to warn of; `None` when it says so already.
/// Templates of revisions are given as JSON.
pub(crate) fn told<'a>(object: &ObjectMeta, failed: impl Iterator<Item = (Revision<'a>, Value)>) -> Option<Value> {
    let mut list: Vec<FailedTemplate> = failed
        .filter_map(|(revision, template)| {
            let mut why = failure_of(revision.meta)?.why();
            let end = (0..=WHY.min(why.len())).rev().find(|end| why.is_char_boundary(*end)).unwrap_or(0);
            why.truncate(end);
            let template = proa_apimachinery::template::digest(&template);
            Some(FailedTemplate { template, revision: revision.number, why })
        })
        .collect();
    list.sort_by_key(|one| one.revision);
    let list = &list[list.len().saturating_sub(FAILED_TEMPLATES)..];
    let wanted = if list.is_empty() { Value::Null } else { Value::String(crate::patch::json(&list).to_string()) };
    (note(object, annotations::FAILED_REVISIONS) != wanted.as_str()).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(annotations: Value) -> ObjectMeta {
        serde_json::from_value(json!({"name": "web-2", "annotations": annotations})).expect("metadata")
    }

    #[test]
    fn a_revision_is_watched_for_a_while_after_its_rollout() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().expect("a time");
        let soak = Duration::from_secs(90);
        let marked = meta(json!({annotations::HEALTHY: healthy_since(now)[annotations::HEALTHY]}));
        let after = |seconds| soak_left(&marked, soak, now + Duration::from_secs(seconds));
        assert_eq!(after(0), Some(soak));
        assert_eq!(after(89), Some(Duration::from_secs(1)));
        assert_eq!(after(90), None);
        assert_eq!(soak_left(&meta(json!({})), soak, now), None);
    }

    #[test]
    fn the_change_cause_is_that_of_the_revision_or_none() {
        let object = meta(json!({annotations::CHANGE_CAUSE: "two"}));
        let changed = |cause| Value::Object(cause_comes_back(&object, cause));
        assert_eq!(changed(Some("two")), json!({}));
        assert_eq!(changed(Some("one")), json!({annotations::CHANGE_CAUSE: "one"}));
        assert_eq!(changed(None), json!({annotations::CHANGE_CAUSE: null}));
    }

    #[test]
    fn the_object_tells_the_last_failed_templates_once() {
        let failed = |number| {
            let failure = Failure { reason: "CrashLoop".into(), message: "é".repeat(WHY), ..Failure::default() };
            (number, meta(json!({annotations::FAILURE: failed_with(&failure)[annotations::FAILURE]})))
        };
        let revisions: Vec<(i64, ObjectMeta)> = (1..=12).rev().map(failed).collect();
        let of = |revisions: &[(i64, ObjectMeta)], object: &ObjectMeta| {
            let each =
                revisions.iter().map(|(number, meta)| (Revision { meta, number: *number }, json!({"spec": number})));
            told(object, each)
        };
        let wanted = of(&revisions, &meta(json!({}))).expect("a change");
        let read: Vec<FailedTemplate> = serde_json::from_str(wanted.as_str().expect("text")).expect("a list");
        assert_eq!((read.len(), read[0].revision, read[9].revision), (10, 3, 12));
        assert!(read[0].why.len() <= WHY);
        let object = meta(json!({annotations::FAILED_REVISIONS: wanted}));
        assert_eq!(of(&revisions, &object), None);
        assert_eq!(of(&[], &object), Some(Value::Null));
        assert_eq!(of(&[], &meta(json!({}))), None);
    }
}
