//! What to do about one Job. Pure.

use super::{
    backoff,
    pods::{IndexFailures, ended_at, has_failed, index, is_tracked, waits_for_the_end},
    policy,
    tally::{Tally, all_settled, indexed, nonzero, spec},
    verdict::{self, Verdict},
};
use crate::{
    Plan,
    events::{Kind, Note},
    pods,
    replicaset::to_delete,
    selector,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::batch::v1::{Job, JobStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use proa_crds::Pod;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// At most this many pods are created or deleted in one go, as on Kubernetes.
const BURST: usize = 500;
/// Who drives a Job that names nobody.
const CONTROLLER: &str = "kubernetes.io/job-controller";

/// A snapshot of one Job.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The Job; `None` when it is gone.
    pub job: Option<Arc<Job>>,
    /// The pods it controls.
    pub pods: Vec<Arc<Pod>>,
    /// Pods of its namespace that nobody controls and its selector selects.
    pub orphans: Vec<Arc<Pod>>,
    /// Pods that wait to be counted by a Job of this name that is not this one.
    pub strays: Vec<Arc<Pod>>,
}

/// A pod to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    /// Its completion index.
    pub index: Option<u32>,
    /// How often its index has failed, where that is counted.
    pub failures: Option<IndexFailures>,
}

/// A status to be written, and what is said once it is.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The status.
    pub status: JobStatus,
    /// The resource version of the Job it follows from.
    pub version: Option<String>,
    /// Pods counted in it that were not in view: if the server still tracks one of them, the view is too old to count.
    pub vanished: Vec<String>,
    /// Events.
    pub notes: Vec<Note>,
}

/// One thing to do.
#[derive(Debug, Clone)]
pub enum Action {
    /// Become the controller of a pod, and count it.
    Adopt(Arc<Pod>),
    /// Give up a pod the selector no longer selects, uncounted.
    Release(Arc<Pod>),
    /// Write the status.
    Status(Box<Outcome>),
    /// Take the tracking finalizer off pods: they are counted, or will never be.
    Untrack(Vec<Arc<Pod>>),
    /// Create pods. When that fails, this is written.
    Create(Vec<Order>, Box<Outcome>),
    /// Delete pods that shall not be counted: untracked first, for an untracked pod is never counted.
    Discard(Vec<Arc<Pod>>),
    /// Delete pods that are counted when they have ended.
    Delete(Vec<Arc<Pod>>),
    /// Delete the Job: it ended long enough ago (`ttlSecondsAfterFinished`).
    Expire,
}

/// Decides what to do.
pub fn plan(seen: &Seen, now: Timestamp) -> Plan<Action> {
    let Some(job) = &seen.job else { return untrack(seen.strays.clone()) };
    if verdict::is_finished(job) {
        // What comes too late to be counted holds nobody up.
        let late = seen.pods.iter().chain(&seen.strays).filter(|pod| is_tracked(pod)).cloned().collect();
        let plan = untrack(late);
        return if plan.actions.is_empty() { expire(job, now) } else { plan };
    }
    if spec(job).managed_by.is_some_and(|by| by != CONTROLLER) {
        return Plan::nothing();
    }
    if !seen.strays.is_empty() {
        return untrack(seen.strays.clone());
    }
    let chosen = spec(job).selector.unwrap_or_default();
    let (kept, strangers): (Vec<_>, Vec<_>) =
        seen.pods.iter().cloned().partition(|pod| selector::matches(&chosen, pod.metadata.labels.as_ref()));
    if job.metadata.deletion_timestamp.is_none() && !selector::is_empty(&chosen) {
        let free = seen.orphans.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let claims: Vec<_> =
            free.cloned().map(Action::Adopt).chain(strangers.into_iter().map(Action::Release)).collect();
        if !claims.is_empty() {
            return Plan::act(claims);
        }
    }
    run(job, &kept, now)
}

fn untrack(pods: Vec<Arc<Pod>>) -> Plan<Action> {
    if pods.is_empty() { Plan::nothing() } else { Plan::act(vec![Action::Untrack(pods)]) }
}

/// A finished Job with a time to live goes when that has passed (KEP-592).
fn expire(job: &Job, now: Timestamp) -> Plan<Action> {
    let mut plan = Plan::nothing();
    let (Some(ttl), Some(ended)) = (spec(job).ttl_seconds_after_finished, verdict::finished_at(job)) else {
        return plan;
    };
    if job.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let left = ended
        .saturating_add(SignedDuration::from_secs(ttl.into()))
        .map_or(SignedDuration::ZERO, |at| at.duration_since(now));
    match Duration::try_from(left) {
        Ok(left) if !left.is_zero() => plan.look_again(left),
        _ => plan.actions.push(Action::Expire),
    }
    plan
}

/// A Job that has not ended.
fn run(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Plan<Action> {
    let tally = Tally::of(job, pods);
    let mut plan = Plan::nothing();
    let verdict = verdict::of(job, pods, &tally, now, &mut plan);
    let failing = matches!(verdict, Some(Verdict::Failure { .. }));
    let (mut status, due) = tally.put_down(job, pods, verdict.is_some(), failing);
    let mut notes = Vec::new();
    match &verdict {
        Some(verdict) => verdict.announce(&mut status, now),
        None => suspension(job, &mut status, &mut notes, now),
    }
    let held = job.status.clone().unwrap_or_default();
    status.active = nonzero(tally.active.len());
    status.ready = Some(nonzero(tally.ready()).unwrap_or(0));
    status.terminating = Some(nonzero(tally.terminating.len()).unwrap_or(0));
    if status.start_time.is_none() && !is_suspended(job) {
        status.start_time = Some(Time(now));
    }
    // What was decided and what is to be counted is written down before anything is done about it.
    if binds(&held) != binds(&status) {
        let vanished = tally.vanished;
        plan.actions.push(Action::Status(Box::new(Outcome { vanished, ..outcome(job, status, notes) })));
        if !due.is_empty() {
            plan.actions.push(Action::Untrack(due));
        }
        return plan;
    }
    if !due.is_empty() {
        plan.actions.push(Action::Untrack(due));
        return plan;
    }
    if job.metadata.deletion_timestamp.is_none() {
        let act = match &verdict {
            Some(_) if !tally.active.is_empty() => Some(Action::Delete(tally.active.clone())),
            Some(verdict) if tally.terminating.is_empty() && all_settled(&status) => {
                verdict.conclude(job, &mut status, &mut notes, now);
                plan.actions.push(Action::Status(Box::new(outcome(job, status, notes))));
                return plan;
            }
            Some(_) => None,
            None => steer(job, pods, &tally, &status, now, &mut plan),
        };
        if let Some(act) = act {
            plan.actions.push(act);
            return plan;
        }
    }
    if held != status {
        plan.actions.push(Action::Status(Box::new(outcome(job, status, notes))));
    }
    plan
}

fn outcome(job: &Job, status: JobStatus, notes: Vec<Note>) -> Outcome {
    Outcome { status, version: job.metadata.resource_version.clone(), vanished: Vec::new(), notes }
}

/// What of a status must be written before anything follows from it; the rest only tells how things are.
fn binds(status: &JobStatus) -> impl PartialEq + use<> {
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    (
        (uncounted.succeeded.unwrap_or_default(), uncounted.failed.unwrap_or_default()),
        (status.succeeded.unwrap_or(0), status.failed.unwrap_or(0)),
        (status.completed_indexes.clone().unwrap_or_default(), status.failed_indexes.clone()),
        status.conditions.clone().unwrap_or_default(),
    )
}

pub(super) fn is_suspended(job: &Job) -> bool {
    job.spec.as_ref().is_some_and(|spec| spec.suspend == Some(true))
}

/// Says that the Job is suspended, or no longer is; its time begins anew then.
fn suspension(job: &Job, status: &mut JobStatus, notes: &mut Vec<Note>, now: Timestamp) {
    let said = verdict::holds(status, "Suspended");
    let (value, reason, event, message) = match (is_suspended(job), said) {
        (true, false) => ("True", "JobSuspended", "Suspended", "Job suspended"),
        (false, true) => {
            status.start_time = Some(Time(now));
            ("False", "JobResumed", "Resumed", "Job resumed")
        }
        _ => return,
    };
    verdict::set(status, "Suspended", value, reason, message, now);
    notes.push(Note { kind: Kind::Normal, reason: event, message: message.to_owned() });
}

/// More pods, or fewer.
fn steer(
    job: &Job,
    pods: &[Arc<Pod>],
    tally: &Tally,
    status: &JobStatus,
    now: Timestamp,
    plan: &mut Plan<Action>,
) -> Option<Action> {
    let active = &tally.active;
    // An active pod without the finalizer was about to be discarded, or somebody else took it off: it would never count.
    let lost: Vec<_> = active.iter().filter(|pod| is_suspended(job) || !is_tracked(pod)).cloned().collect();
    if !lost.is_empty() {
        return Some(Action::Discard(burst(lost)));
    }
    let wanted = wanted(job, tally);
    let mut surplus = if indexed(job).is_some() { misplaced(job, active, now) } else { Vec::new() };
    let excess = active.len().saturating_sub(wanted);
    if surplus.len() < excess {
        let named: BTreeSet<_> = surplus.iter().map(|pod| pod.metadata.uid.clone()).collect();
        let rest: Vec<_> = active.iter().filter(|pod| !named.contains(&pod.metadata.uid)).cloned().collect();
        surplus.extend(to_delete(rest, &[], excess - surplus.len(), now));
    }
    if !surplus.is_empty() {
        return Some(Action::Discard(burst(surplus)));
    }
    let held_up = if waits_for_the_end(job) { tally.terminating.len() } else { 0 };
    let missing = if is_suspended(job) { 0 } else { wanted.saturating_sub(active.len() + held_up).min(BURST) };
    if missing == 0 {
        return None;
    }
    let orders = if tally.given_up.is_some() {
        independent(job, tally, missing, now, plan)
    } else {
        let pause = backoff::of_job(job, pods, now);
        if !pause.is_zero() {
            plan.look_again(pause);
            return None;
        }
        match indexed(job) {
            Some(_) => {
                pending(job, tally).take(missing).map(|index| Order { index: Some(index), failures: None }).collect()
            }
            None => vec![Order::default(); missing],
        }
    };
    (!orders.is_empty()).then(|| Action::Create(orders, Box::new(outcome(job, status.clone(), Vec::new()))))
}

fn burst(mut pods: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    pods.truncate(BURST);
    pods
}

/// How many pods should be active.
fn wanted(job: &Job, tally: &Tally) -> usize {
    if is_suspended(job) {
        return 0;
    }
    let spec = spec(job);
    let parallel = spec.parallelism.unwrap_or(1).max(0).unsigned_abs();
    let wanted = match spec.completions {
        // Once one has succeeded the others may end, and no more are made.
        None if tally.succeeded > 0 => return tally.active.len(),
        None => parallel,
        Some(completions) => completions.max(0).unsigned_abs().saturating_sub(tally.succeeded).min(parallel),
    };
    wanted as usize
}

/// Active pods of an Indexed Job that have no index of it, or whose index another one has too.
fn misplaced(job: &Job, active: &[Arc<Pod>], now: Timestamp) -> Vec<Arc<Pod>> {
    let completions = indexed(job).unwrap_or(0);
    let mut of_index: BTreeMap<Option<u32>, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in active {
        of_index.entry(index(pod).filter(|index| *index < completions)).or_default().push(pod.clone());
    }
    let surplus = of_index.into_iter().flat_map(|(index, pods)| {
        let keep = usize::from(index.is_some());
        let count = pods.len() - keep;
        if count == 0 { Vec::new() } else { to_delete(pods, &[], count, now) }
    });
    surplus.collect()
}

/// The indexes that need a pod, lowest first.
fn pending<'a>(job: &Job, tally: &'a Tally) -> impl Iterator<Item = u32> + use<'a> {
    let mut taken: BTreeSet<u32> = tally.active.iter().filter_map(|pod| index(pod)).collect();
    if waits_for_the_end(job) {
        taken.extend(tally.terminating.iter().filter_map(|pod| index(pod)));
    }
    (0..indexed(job).unwrap_or(0)).filter(move |index| {
        let given_up = tally.given_up.as_ref().is_some_and(|given_up| given_up.contains(*index));
        !given_up && !tally.done.contains(*index) && !taken.contains(index)
    })
}

/// With a backoff limit per index each index waits for itself, and holds no other up.
fn independent(job: &Job, tally: &Tally, missing: usize, now: Timestamp, plan: &mut Plan<Action>) -> Vec<Order> {
    let mut orders = Vec::new();
    for index in pending(job, tally) {
        if orders.len() == missing {
            break;
        }
        let failures = match tally.last_failed.get(&index) {
            None => IndexFailures::default(),
            Some(last) => {
                let failures = IndexFailures::with(last, job);
                let pause = backoff::left(failures.total(), ended_at(last).unwrap_or(now), now);
                if !pause.is_zero() {
                    plan.look_again(pause);
                    continue;
                }
                failures
            }
        };
        orders.push(Order { index: Some(index), failures: Some(failures) });
    }
    orders
}

/// The reason of the first failed pod that fails the whole Job.
pub(super) fn fails_job(job: &Job, pods: &[Arc<Pod>]) -> Option<String> {
    pods.iter().filter(|pod| has_failed(pod, job)).find_map(|pod| policy::judge(job, pod).fails_job)
}

/// How often containers of pods that are not over were restarted; each counts where the node restarts them.
pub(super) fn restarts(pods: &[Arc<Pod>]) -> u32 {
    let live = pods.iter().filter(|pod| matches!(pods::phase(pod), "Running" | "Pending"));
    live.flat_map(|pod| pods::container_statuses(pod)).map(|status| status.restart_count.max(0).unsigned_abs()).sum()
}
