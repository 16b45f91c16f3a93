//! What the pods of a Job come to: who is active, who has ended, and what of it is put down already. Pure.
//!
//! A pod is counted in three steps, so that it is counted once whatever dies in between (KEP-2307): its uid (or its
//! completion index) is written into the Job's status; then its tracking finalizer is taken away; then the uid becomes
//! part of a number. A pod without the finalizer whose uid is not in the status has been counted.

use super::{
    pods::{self as job_pods, IndexFailures, has_failed, has_succeeded, index, is_terminating, is_tracked},
    policy, verdict,
};
use crate::pods;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus, UncountedTerminatedPods};
use proa_apimachinery::indexes::Indexes;
use proa_crds::Pod;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// At most so many pods are put down at a time: each costs a uid in the status.
const AT_ONCE: usize = 500;

pub(super) fn spec(job: &Job) -> JobSpec {
    job.spec.clone().unwrap_or_default()
}

/// The number of completions of an Indexed Job.
pub(super) fn indexed(job: &Job) -> Option<u32> {
    let spec = job.spec.as_ref().filter(|spec| spec.completion_mode.as_deref() == Some("Indexed"))?;
    Some(spec.completions.unwrap_or(0).max(0).unsigned_abs())
}

pub(super) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// The pods of a Job, seen with its status.
#[derive(Debug)]
pub(super) struct Tally {
    /// Neither ended nor deleted.
    pub(super) active: Vec<Arc<Pod>>,
    /// Deleted, and still running.
    pub(super) terminating: Vec<Arc<Pod>>,
    /// How many pods have succeeded, or how many indexes.
    pub(super) succeeded: u32,
    /// How many pods have failed.
    pub(super) failed: u32,
    /// Of an Indexed Job: the indexes that succeeded.
    pub(super) done: Indexes,
    /// With a backoff limit per index: the indexes that failed for good.
    pub(super) given_up: Option<Indexes>,
    /// With a backoff limit per index: the last pod of each index that failed and has no successor yet, which tells how
    /// often the index has failed.
    pub(super) last_failed: BTreeMap<u32, Arc<Pod>>,
    /// The status with what was put down earlier made part of its numbers.
    pub(super) settled: JobStatus,
    /// Uids that were made part of the numbers although their pods are not in view.
    pub(super) vanished: Vec<String>,
}

impl Tally {
    pub(super) fn of(job: &Job, pods: &[Arc<Pod>]) -> Tally {
        let (settled, vanished) = settle(job.status.clone().unwrap_or_default(), pods);
        let active: Vec<_> = pods.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
        let terminating: Vec<_> = pods.iter().filter(|pod| is_terminating(pod)).cloned().collect();
        let uncounted = settled.uncounted_terminated_pods.clone().unwrap_or_default();
        let put_down = |list: &Option<Vec<String>>, pod: &Pod| list.iter().flatten().any(|held| held == uid(pod));
        let (waiting_success, waiting_failure) = (&uncounted.succeeded, &uncounted.failed);
        let fresh: Vec<&Arc<Pod>> = pods.iter().filter(|pod| is_tracked(pod) && belongs(job, pod)).collect();

        let count = |n: Option<i32>| n.unwrap_or(0).max(0).unsigned_abs();
        let number = |list: &Option<Vec<String>>| u32::try_from(list.as_ref().map_or(0, Vec::len)).unwrap_or(u32::MAX);
        let new_failures = fresh
            .iter()
            .filter(|pod| has_failed(pod, job) && !put_down(waiting_failure, pod) && policy::judge(job, pod).counts);
        let failed = count(settled.failed) + number(waiting_failure) + new_failures.count() as u32;

        let mut done = held_indexes(settled.completed_indexes.as_deref(), job);
        let succeeded = if indexed(job).is_some() {
            done.extend(fresh.iter().filter(|pod| has_succeeded(pod)).filter_map(|pod| index(pod)));
            done.len()
        } else {
            let new = fresh.iter().filter(|pod| has_succeeded(pod) && !put_down(waiting_success, pod)).count() as u32;
            count(settled.succeeded) + number(waiting_success) + new
        };
        let mut tally = Tally {
            active,
            terminating,
            succeeded,
            failed,
            done,
            given_up: None,
            last_failed: BTreeMap::new(),
            settled,
            vanished,
        };
        if let Some(limit) = spec(job).backoff_limit_per_index.filter(|_| indexed(job).is_some()) {
            tally.judge_indexes(job, pods, limit.max(0).unsigned_abs());
        }
        tally
    }

    /// The indexes that failed for good, and for the others what their next pod must be told.
    fn judge_indexes(&mut self, job: &Job, pods: &[Arc<Pod>], limit: u32) {
        let mut given_up = held_indexes(self.settled.failed_indexes.as_deref(), job);
        let failed = |pod: &&Arc<Pod>| has_failed(pod, job) && belongs(job, pod);
        let for_good = pods.iter().filter(failed).filter(|pod| {
            let judgement = policy::judge(job, pod);
            is_tracked(pod)
                && (judgement.fails_index || judgement.counts && IndexFailures::before(pod).counted >= limit)
        });
        // Once the end is certain what is still running is ended, and says nothing about its index.
        let for_good = for_good.filter(|_| !verdict::is_announced(job));
        let for_good: Vec<u32> =
            for_good.filter_map(|pod| index(pod)).filter(|index| !self.done.contains(*index)).collect();
        given_up.extend(for_good);
        let active: BTreeSet<u32> = self.active.iter().filter_map(|pod| index(pod)).collect();
        for pod in pods.iter().filter(failed) {
            let Some(index) = index(pod) else { continue };
            if self.done.contains(index) || given_up.contains(index) || active.contains(&index) {
                continue;
            }
            let before = |pod: &Pod| IndexFailures::before(pod).total();
            let held = self.last_failed.get(&index);
            if held.is_none_or(|held| before(held) <= before(pod)) {
                self.last_failed.insert(index, pod.clone());
            }
        }
        self.given_up = Some(given_up);
    }

    /// How many active pods are ready.
    pub(super) fn ready(&self) -> usize {
        self.active.iter().filter(|pod| pods::is_ready(pod)).count()
    }

    /// The pods whose count is due, and the status that puts them down. `decided`: the Job's end is certain, and every
    /// pod that is not active counts as ended; `failing`: as failed.
    pub(super) fn put_down(
        &self,
        job: &Job,
        pods: &[Arc<Pod>],
        decided: bool,
        failing: bool,
    ) -> (JobStatus, Vec<Arc<Pod>>) {
        let mut status = self.settled.clone();
        let mut uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
        let leaving = job.metadata.deletion_timestamp.is_some();
        let mut due = Vec::new();
        let mut done = held_indexes(status.completed_indexes.as_deref(), job);
        let mut fresh = Vec::new();
        for pod in pods.iter().filter(|pod| is_tracked(pod)) {
            let (succeeded, failed) = (has_succeeded(pod), has_failed(pod, job));
            let awaited =
                index(pod).and_then(|index| self.last_failed.get(&index)).is_some_and(|last| uid(last) == uid(pod));
            let ended = decided && !pods::is_active(pod);
            if !(leaving || ended || succeeded || failed && !awaited) {
                continue;
            }
            due.push(pod.clone());
            let held = |list: &Option<Vec<String>>| list.iter().flatten().any(|held| held == uid(pod));
            let known = held(&uncounted.succeeded) || held(&uncounted.failed);
            if known || !belongs(job, pod) {
                continue;
            }
            if succeeded && indexed(job).is_some() {
                // The index is enough not to count it again.
                fresh.extend(index(pod).filter(|index| !done.contains(*index)));
            } else if succeeded {
                uncounted.succeeded.get_or_insert_default().push(uid(pod).to_owned());
            } else if (failed || ended && failing) && policy::judge(job, pod).counts {
                uncounted.failed.get_or_insert_default().push(uid(pod).to_owned());
            }
            let length = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len);
            if fresh.len() + length(&uncounted.succeeded) + length(&uncounted.failed) >= AT_ONCE {
                break;
            }
        }
        if indexed(job).is_some() {
            done.extend(fresh);
            status.succeeded = nonzero(done.len() as usize);
            status.completed_indexes = Some(done.to_string()).filter(|text| !text.is_empty());
            status.failed_indexes = self.given_up.as_ref().map(ToString::to_string);
        }
        status.uncounted_terminated_pods = Some(uncounted);
        (status, due)
    }
}

/// Whether the pod's result is one the Job asks for: with indexes, those within its completions.
fn belongs(job: &Job, pod: &Pod) -> bool {
    indexed(job).is_none_or(|completions| job_pods::index(pod).is_some_and(|index| index < completions))
}

/// The indexes a status holds; those past the completions, which may shrink, left out.
fn held_indexes(text: Option<&str>, job: &Job) -> Indexes {
    let held = text.and_then(|text| Indexes::parse(text, None).ok()).unwrap_or_default();
    held.below(indexed(job).unwrap_or(0))
}

/// What was put down and has lost its finalizer becomes part of the numbers. Also tells which of these pods are not in
/// view at all.
fn settle(mut status: JobStatus, pods: &[Arc<Pod>]) -> (JobStatus, Vec<String>) {
    let mut uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
    let tracked: BTreeSet<&str> = pods.iter().filter(|pod| is_tracked(pod)).map(|pod| uid(pod)).collect();
    let seen: BTreeSet<&str> = pods.iter().map(|pod| uid(pod)).collect();
    let mut vanished = Vec::new();
    let mut move_over = |list: &mut Option<Vec<String>>, number: &mut Option<i32>| {
        let (kept, gone): (Vec<_>, Vec<_>) =
            list.take().unwrap_or_default().into_iter().partition(|uid| tracked.contains(uid.as_str()));
        *number = nonzero(gone.len() + number.unwrap_or(0).max(0).unsigned_abs() as usize);
        *list = Some(kept).filter(|kept| !kept.is_empty());
        vanished.extend(gone.into_iter().filter(|uid| !seen.contains(uid.as_str())));
    };
    move_over(&mut uncounted.succeeded, &mut status.succeeded);
    move_over(&mut uncounted.failed, &mut status.failed);
    status.uncounted_terminated_pods = Some(uncounted);
    (status, vanished)
}

/// A counter as the API holds it: none for zero.
pub(super) fn nonzero(n: usize) -> Option<i32> {
    Some(i32::try_from(n).unwrap_or(i32::MAX)).filter(|n| *n > 0)
}

/// Whether nothing is put down and not yet part of a number.
pub(super) fn all_settled(status: &JobStatus) -> bool {
    status.uncounted_terminated_pods.as_ref().is_none_or(|UncountedTerminatedPods { failed, succeeded }| {
        failed.as_ref().is_none_or(Vec::is_empty) && succeeded.as_ref().is_none_or(Vec::is_empty)
    })
}
