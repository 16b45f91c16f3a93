//! What a Job wants to know about its pods. Pure.

use super::policy;
use crate::pods;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use proa_crds::Pod;

/// A pod with it has not been counted yet (KEP-2307).
pub const TRACKING_FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label of an Indexed Job's pod: its completion index.
pub const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Annotation: how many pods of this index failed before this one, and were counted (KEP-3850).
pub(super) const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Annotation: how many pods of this index failed before this one, and were ignored by the pod failure policy.
pub(super) const INDEX_IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// Whether the pod has not been counted yet.
pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == TRACKING_FINALIZER)
}

/// Deleted, and still running.
pub(super) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() && !pods::is_over(pod)
}

pub(super) fn has_succeeded(pod: &Pod) -> bool {
    pods::phase(pod) == "Succeeded"
}

/// Whether the pod counts as failed. One that is deleted does at once, unless its replacement has to wait until it has
/// ended (KEP-3939).
pub(super) fn has_failed(pod: &Pod, job: &Job) -> bool {
    pods::phase(pod) == "Failed"
        || !waits_for_the_end(job) && pod.metadata.deletion_timestamp.is_some() && !has_succeeded(pod)
}

/// `podReplacementPolicy: Failed`, which a pod failure policy brings along: it judges by how pods ended.
pub(super) fn waits_for_the_end(job: &Job) -> bool {
    job.spec.as_ref().is_some_and(|spec| {
        spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
    })
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The completion index, if the pod says one.
pub(super) fn index(pod: &Pod) -> Option<u32> {
    annotation(pod, COMPLETION_INDEX)?.parse().ok()
}

/// How often an index has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexFailures {
    /// Failures that count towards `backoffLimitPerIndex`.
    pub counted: u32,
    /// Failures the pod failure policy ignores.
    pub ignored: u32,
}

impl IndexFailures {
    /// Before this pod.
    pub(super) fn before(pod: &Pod) -> IndexFailures {
        let count = |name| annotation(pod, name).and_then(|text| text.parse().ok()).unwrap_or(0);
        IndexFailures { counted: count(INDEX_FAILURES), ignored: count(INDEX_IGNORED_FAILURES) }
    }

    /// With this pod, which has failed.
    pub(super) fn with(pod: &Pod, job: &Job) -> IndexFailures {
        let mut failures = IndexFailures::before(pod);
        match policy::judge(job, pod).counts {
            true => failures.counted = failures.counted.saturating_add(1),
            false => failures.ignored = failures.ignored.saturating_add(1),
        }
        failures
    }

    /// However they count.
    pub(super) fn total(self) -> u32 {
        self.counted.saturating_add(self.ignored)
    }
}

/// When the pod ended, as well as can be known.
pub(super) fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let containers = pods::container_statuses(pod)
        .filter_map(|status| status.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref())
        .map(|time| time.0)
        .max();
    let deletion = || {
        let meta = &pod.metadata;
        let grace = meta.deletion_grace_period_seconds.unwrap_or(0).max(0);
        let at = meta.deletion_timestamp.as_ref()?.0;
        at.checked_sub(jiff::SignedDuration::from_secs(grace)).ok()
    };
    let unready = || pods::condition(pod, "Ready")?.last_transition_time.as_ref().map(|time| time.0);
    let created = || pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    containers.or_else(deletion).or_else(unready).or_else(created)
}
