//! Whether a Job has succeeded or failed, and how its conditions say so. Pure.
//!
//! An end is said in two steps (KEP-3998, KEP-4368): `SuccessCriteriaMet` or `FailureTarget` as soon as it is certain;
//! `Complete` or `Failed` when every pod has ended and is counted.

use super::{
    plan::{Action, fails_job, is_suspended, restarts},
    policy,
    tally::{Tally, indexed, spec},
};
use crate::{
    Plan,
    events::{Kind, Note},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::batch::v1::{Job, JobCondition, JobStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use proa_crds::Pod;
use std::{sync::Arc, time::Duration};

const SUCCESS_CRITERIA_MET: &str = "SuccessCriteriaMet";
const FAILURE_TARGET: &str = "FailureTarget";
const COMPLETE: &str = "Complete";
const FAILED: &str = "Failed";

/// How a Job ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Success { reason: &'static str, message: String },
    Failure { reason: &'static str, message: String },
}

/// The reasons Kubernetes gives, to be told again after a restart.
const REASONS: [&str; 7] = [
    "PodFailurePolicy",
    "BackoffLimitExceeded",
    "DeadlineExceeded",
    "MaxFailedIndexesExceeded",
    "FailedIndexes",
    "SuccessPolicy",
    "CompletionsReached",
];

/// The verdict, if there is one. What was once said stands.
pub(super) fn of(
    job: &Job,
    pods: &[Arc<Pod>],
    tally: &Tally,
    now: Timestamp,
    plan: &mut Plan<Action>,
) -> Option<Verdict> {
    said(job).or_else(|| failure(job, pods, tally, now, plan)).or_else(|| success(job, tally))
}

fn said(job: &Job) -> Option<Verdict> {
    let held =
        |type_| job.status.as_ref().and_then(|status| condition(status, type_)).filter(|held| held.status == "True");
    let parts = |held: &JobCondition| {
        let reason = held.reason.as_deref().unwrap_or_default();
        let known = REASONS.iter().find(|known| **known == reason).copied();
        (known.unwrap_or_default(), held.message.clone().unwrap_or_default())
    };
    if let Some(held) = held(SUCCESS_CRITERIA_MET) {
        let (reason, message) = parts(held);
        return Some(Verdict::Success { reason, message });
    }
    let (reason, message) = parts(held(FAILURE_TARGET)?);
    Some(Verdict::Failure { reason, message })
}

fn failure(job: &Job, pods: &[Arc<Pod>], tally: &Tally, now: Timestamp, plan: &mut Plan<Action>) -> Option<Verdict> {
    let spec = spec(job);
    let fails = |reason, message: &str| Some(Verdict::Failure { reason, message: message.to_owned() });
    if let Some(message) = fails_job(job, pods) {
        return fails("PodFailurePolicy", &message);
    }
    let limit = spec.backoff_limit.unwrap_or(6).max(0).unsigned_abs();
    let in_place = spec.template.spec.as_ref().is_some_and(|pod| pod.restart_policy.as_deref() == Some("OnFailure"));
    if tally.failed > limit || in_place && restarts(pods) >= limit.max(1) {
        return fails("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if let Some(left) = deadline(job, now) {
        if left.is_zero() {
            return fails("DeadlineExceeded", "Job was active longer than specified deadline");
        }
        plan.look_again(left);
    }
    let given_up = tally.given_up.as_ref()?.len();
    if spec.max_failed_indexes.is_some_and(|most| given_up > most.max(0).unsigned_abs()) {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return fails("MaxFailedIndexesExceeded", message);
    }
    if given_up > 0 && given_up + tally.done.len() >= indexed(job).unwrap_or(0) {
        return fails("FailedIndexes", "Job has failed indexes");
    }
    None
}

/// How long the Job may still be active, if there is an end to it.
fn deadline(job: &Job, now: Timestamp) -> Option<Duration> {
    let seconds = spec(job).active_deadline_seconds.filter(|_| !is_suspended(job))?;
    let status = job.status.as_ref()?;
    // The time of a Job that is being resumed begins anew.
    let began = if holds(status, "Suspended") { now } else { status.start_time.as_ref()?.0 };
    // A deadline past the end of time is none.
    let ends = began.checked_add(SignedDuration::from_secs(seconds)).ok()?;
    Some(Duration::try_from(ends.duration_since(now)).unwrap_or_default())
}

fn success(job: &Job, tally: &Tally) -> Option<Verdict> {
    let spec = spec(job);
    if let (Some(policy), Some(_)) = (&spec.success_policy, indexed(job))
        && let Some(message) = policy::is_enough(policy, &tally.done)
    {
        return Some(Verdict::Success { reason: "SuccessPolicy", message });
    }
    let enough = match spec.completions {
        // Whoever succeeds knows that the work is done; the others are waited for.
        None => tally.succeeded > 0,
        Some(completions) => tally.succeeded >= completions.max(0).unsigned_abs(),
    };
    let message = "Reached expected number of succeeded pods".to_owned();
    (enough && tally.active.is_empty()).then_some(Verdict::Success { reason: "CompletionsReached", message })
}

impl Verdict {
    /// Says what is certain.
    pub(super) fn announce(&self, status: &mut JobStatus, now: Timestamp) {
        let (type_, (reason, message)) = match self {
            Verdict::Success { reason, message } => (SUCCESS_CRITERIA_MET, (reason, message)),
            Verdict::Failure { reason, message } => (FAILURE_TARGET, (reason, message)),
        };
        if !holds(status, type_) {
            set(status, type_, "True", reason, message, now);
        }
    }

    /// Says that it is over.
    pub(super) fn conclude(&self, job: &Job, status: &mut JobStatus, notes: &mut Vec<Note>, now: Timestamp) {
        match self {
            Verdict::Success { reason, message } => {
                set(status, COMPLETE, "True", reason, message, now);
                status.completion_time = Some(Time(now));
                if spec(job).completions.is_some_and(|wanted| status.succeeded.unwrap_or(0) > wanted) {
                    let message = "Too many succeeded pods running after completion count reached".to_owned();
                    notes.push(Note { kind: Kind::Warning, reason: "TooManySucceededPods", message });
                }
                let message = "Job completed".to_owned();
                notes.push(Note { kind: Kind::Normal, reason: "Completed", message });
            }
            Verdict::Failure { reason, message } => {
                set(status, FAILED, "True", reason, message, now);
                notes.push(Note { kind: Kind::Warning, reason, message: message.clone() });
            }
        }
        // A finished Job has begun, also when it was suspended all the time.
        status.start_time.get_or_insert(Time(now));
    }
}

/// The condition of that type.
fn condition<'a>(status: &'a JobStatus, type_: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

/// Whether the condition of that type is true.
pub(super) fn holds(status: &JobStatus, type_: &str) -> bool {
    condition(status, type_).is_some_and(|condition| condition.status == "True")
}

/// The condition that ends a Job.
fn end(job: &Job) -> Option<&JobCondition> {
    let status = job.status.as_ref()?;
    [COMPLETE, FAILED].iter().find_map(|type_| condition(status, type_).filter(|held| held.status == "True"))
}

/// Whether the Job is complete or failed.
pub fn is_finished(job: &Job) -> bool {
    end(job).is_some()
}

/// Whether how the Job ends has been said.
pub(super) fn is_announced(job: &Job) -> bool {
    job.status
        .as_ref()
        .is_some_and(|status| [SUCCESS_CRITERIA_MET, FAILURE_TARGET].iter().any(|type_| holds(status, type_)))
}

/// Whether the Job is complete, and when it was; for a failed one `None`.
pub fn completed_at(job: &Job) -> Option<Timestamp> {
    let status = job.status.as_ref().filter(|status| holds(status, COMPLETE))?;
    status.completion_time.as_ref().map(|time| time.0)
}

/// `Complete` or `Failed`, for a Job that is finished.
pub fn how_it_ended(job: &Job) -> Option<&str> {
    end(job).map(|end| end.type_.as_str())
}

/// When the Job finished.
pub(super) fn finished_at(job: &Job) -> Option<Timestamp> {
    end(job)?.last_transition_time.as_ref().map(|time| time.0)
}

/// Sets a condition; when it last changed follows from what it was.
pub(super) fn set(status: &mut JobStatus, type_: &str, value: &str, reason: &str, message: &str, now: Timestamp) {
    let list = status.conditions.get_or_insert_default();
    let condition = JobCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    match list.iter_mut().find(|held| held.type_ == type_) {
        Some(held) => *held = condition,
        None => list.push(condition),
    }
}
