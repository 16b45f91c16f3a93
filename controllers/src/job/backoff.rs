//! How long a failed pod's replacement waits. Pure.
//!
//! Kubernetes remembers failures in the controller's memory; here they are read off the pods that failed, so that a
//! restart forgets none.

use super::pods::{ended_at, has_failed, has_succeeded, is_tracked};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use proa_crds::Pod;
use std::{sync::Arc, time::Duration};

/// The first pause, and the longest; doubling in between.
const PAUSES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// What is left of the pause after so many failures, the last of which was then.
pub(super) fn left(failures: u32, last: Timestamp, now: Timestamp) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
    let pause = PAUSES.0.saturating_mul(1 << doublings.min(16)).min(PAUSES.1);
    pause.saturating_sub(Duration::try_from(now.duration_since(last)).unwrap_or_default())
}

/// What is left of the pause after the failures since the last success.
pub(super) fn of_job(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Duration {
    let ends = |which: &dyn Fn(&Pod) -> bool| -> Vec<Timestamp> {
        pods.iter().filter(|pod| which(pod)).filter_map(|pod| ended_at(pod)).collect()
    };
    let success = ends(&|pod| has_succeeded(pod)).into_iter().max();
    let began = job.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0.as_second());
    // What was taken away because the Job was suspended or shrunk is deleted, not counted, and has not failed.
    let mut failures =
        ends(&|pod| has_failed(pod, job) && (is_tracked(pod) || pod.metadata.deletion_timestamp.is_none()));
    failures
        .retain(|at| success.is_none_or(|success| *at > success) && began.is_none_or(|began| at.as_second() >= began));
    let last = failures.iter().max().copied();
    last.map_or(Duration::ZERO, |last| left(u32::try_from(failures.len()).unwrap_or(u32::MAX), last, now))
}
