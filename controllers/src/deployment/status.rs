//! The status of a deployment and its conditions, as `kubectl rollout status` reads them.

use super::{
    revisions::{Revisions, name, note, number, revision, wanted},
    scale::{fence, replicas},
};
use crate::rollback::marks;
use jiff::Timestamp;
use k8s_openapi::{
    api::apps::v1::{DeploymentCondition, DeploymentStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use proa_crds::{Deployment, annotations, conditions, reasons};
use std::time::Duration;

/// "No deadline" is written as the largest number.
const NO_DEADLINE: i32 = i32::MAX;

/// A condition of that type.
pub(super) fn condition<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// Whether that condition is `True`.
pub(super) fn is_true(status: Option<&DeploymentStatus>, type_: &str) -> bool {
    status.and_then(|status| condition(status, type_)).is_some_and(|condition| condition.status == "True")
}

/// A condition to be set.
pub(super) fn make(type_: &str, status: &str, reason: &str, message: String, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: Some(Time(now)),
        last_update_time: Some(Time(now)),
    }
}

/// Sets a condition. The same status, reason and (for Proa's own) message changes nothing; the same status keeps the
/// time of transition.
pub(super) fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    let list = status.conditions.get_or_insert_default();
    if let Some(held) = list.iter().find(|held| held.type_ == new.type_) {
        let worded = [conditions::CONFIG_REVISION, conditions::JUDGING_PAUSED]
            .iter()
            .chain(&conditions::OF_FAILURE)
            .any(|type_| *type_ == new.type_);
        if held.status == new.status && held.reason == new.reason && (!worded || held.message == new.message) {
            return;
        }
        if held.status == new.status {
            new.last_transition_time = held.last_transition_time.clone();
        }
    }
    list.retain(|held| held.type_ != new.type_);
    list.push(new);
}

/// Takes a condition out.
pub(super) fn unset(status: &mut DeploymentStatus, type_: &str) {
    if let Some(list) = status.conditions.as_mut() {
        list.retain(|held| held.type_ != type_);
        if list.is_empty() {
            status.conditions = None;
        }
    }
}

/// Turns a condition that is `True` to `False`; one that is not there stays away.
pub(super) fn end(status: &mut DeploymentStatus, type_: &str, reason: &str, message: &str, now: Timestamp) {
    if is_true(Some(status), type_) {
        set(status, make(type_, "False", reason, message.to_owned(), now));
    }
}

/// A new rollout ends what was said about going back.
pub(super) fn end_of_going_back(status: &mut DeploymentStatus, now: Timestamp) {
    let said = [conditions::CONFIG_REVISION, conditions::JUDGING_PAUSED];
    for type_ in conditions::OF_FAILURE.into_iter().chain(said) {
        end(status, type_, "NewRollout", "a new rollout has started", now);
    }
}

/// The counts of that view, `Available`, `ReplicaFailure` and `ConfigRevision`; the other conditions as they were.
pub(super) fn calculate(deployment: &Deployment, revisions: &Revisions<'_>, now: Timestamp) -> DeploymentStatus {
    let sum = |count: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
        revisions.all.iter().filter_map(|set| set.status.as_ref()).map(count).sum()
    };
    let held = deployment.status.as_ref();
    let available = sum(|status| status.available_replicas.unwrap_or(0));
    let all_wanted: i32 = revisions.all.iter().map(|set| wanted(set)).sum();
    let some = |n: i32| Some(n).filter(|n| *n > 0);
    let updated = revisions.new.and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(|status| status.replicas)),
        updated_replicas: some(updated),
        ready_replicas: some(sum(|status| status.ready_replicas.unwrap_or(0))),
        available_replicas: some(available),
        unavailable_replicas: some(all_wanted - available),
        terminating_replicas: Some(sum(|status| status.terminating_replicas.unwrap_or(0))),
        collision_count: held.and_then(|held| held.collision_count),
        conditions: held.and_then(|held| held.conditions.clone()).filter(|list| !list.is_empty()),
    };
    let available_condition = if available >= replicas(deployment) - fence(deployment).unavailable {
        make(
            conditions::AVAILABLE,
            "True",
            reasons::MINIMUM_AVAILABLE,
            "Deployment has minimum availability.".to_owned(),
            now,
        )
    } else {
        make(
            conditions::AVAILABLE,
            "False",
            reasons::MINIMUM_UNAVAILABLE,
            "Deployment does not have minimum availability.".to_owned(),
            now,
        )
    };
    set(&mut status, available_condition);
    replica_failure(revisions, &mut status, now);
    config_revision(revisions, &mut status, now);
    went_elsewhere(revisions, &mut status, now);
    status
}

/// The failure of a replica set, the new one's first, is the deployment's.
fn replica_failure(revisions: &Revisions<'_>, status: &mut DeploymentStatus, now: Timestamp) {
    let failure = revisions.new.into_iter().chain(revisions.old.iter().copied()).find_map(|set| {
        let list = set.status.as_ref()?.conditions.as_ref()?;
        list.iter().find(|condition| condition.type_ == conditions::REPLICA_FAILURE && condition.status == "True")
    });
    match failure {
        None => unset(status, conditions::REPLICA_FAILURE),
        Some(failure) => {
            let reason = failure.reason.as_deref().unwrap_or(reasons::FAILED_CREATE);
            let message = failure.message.clone().unwrap_or_default();
            set(status, make(conditions::REPLICA_FAILURE, "True", reason, message, now));
        }
    }
}

fn config_revision(revisions: &Revisions<'_>, status: &mut DeploymentStatus, now: Timestamp) {
    match revisions.new.and_then(|set| Some((set, note(set, annotations::CONFIG_REVISION)?))) {
        Some((set, secret)) => {
            let message = format!(
                "pods read the configuration kept with revision {} (secret {secret:?}), not the live objects, until the next rollout",
                number(set),
            );
            set_config(status, message, now);
        }
        None => end(status, conditions::CONFIG_REVISION, "Live", "pods read the live configuration", now),
    }
}

/// What was said about a failed revision holds while the deployment is at it, or at the revision it went back to.
fn went_elsewhere(revisions: &Revisions<'_>, status: &mut DeploymentStatus, now: Timestamp) {
    let Some(new) = revisions.new else { return };
    if note(new, annotations::FAILURE).is_none() {
        for type_ in [conditions::ROLLOUT_FAILED, conditions::ROLLOUT_PAUSED] {
            end(status, type_, "NewRollout", "the revision is not known to fail", now);
        }
    }
    let last = marks::last_failed(revisions.all.iter().copied().map(revision));
    if last.is_some_and(|(_, last)| last.to != name(new)) {
        for type_ in [conditions::ROLLED_BACK, conditions::ROLLOUT_REFUSED] {
            end(status, type_, "NewRollout", "the deployment was taken to another revision", now);
        }
    }
}

fn set_config(status: &mut DeploymentStatus, message: String, now: Timestamp) {
    set(status, make(conditions::CONFIG_REVISION, "True", reasons::GONE_BACK, message, now));
}

/// Whether every wanted pod is of the new revision and available, and nothing else is left.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let total = Some(replicas(deployment)).filter(|n| *n > 0);
    status.updated_replicas == total && status.replicas == total && status.available_replicas == total
}

/// The deadline, if there is one.
pub(super) fn deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.progress_deadline_seconds.unwrap_or(600);
    (seconds != NO_DEADLINE).then(|| Duration::from_secs(seconds.max(0).unsigned_abs().into()))
}

/// Whether that deployment watches its progress.
pub(super) fn has_deadline(deployment: &Deployment) -> bool {
    deadline(deployment).is_some()
}

/// Brings the `Progressing` condition of a rollout up to date; when to look again for the deadline.
pub(super) fn progress(
    deployment: &Deployment,
    revisions: &Revisions<'_>,
    status: &mut DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let Some(deadline) = deadline(deployment) else {
        unset(status, conditions::PROGRESSING);
        return None;
    };
    let nothing = DeploymentStatus::default();
    let before = deployment.status.as_ref().unwrap_or(&nothing);
    let current = condition(status, conditions::PROGRESSING).cloned();
    let reason = current.as_ref().and_then(|condition| condition.reason.as_deref()).unwrap_or_default().to_owned();
    let was_complete = status.replicas == status.updated_replicas && reason == reasons::NEW_REPLICA_SET_AVAILABLE;
    if was_complete {
        return None;
    }
    let who = match revisions.new {
        Some(set) => format!("ReplicaSet {:?}", name(set)),
        None => format!("Deployment {:?}", deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    if is_complete(deployment, status) {
        let message = format!("{who} has successfully progressed.");
        set(status, make(conditions::PROGRESSING, "True", reasons::NEW_REPLICA_SET_AVAILABLE, message, now));
        return None;
    }
    if has_progressed(before, status) {
        let mut new =
            make(conditions::PROGRESSING, "True", reasons::REPLICA_SET_UPDATED, format!("{who} is progressing."), now);
        if let Some(current) = current.filter(|current| current.status == "True") {
            new.last_transition_time = current.last_transition_time;
        }
        // Progress must move the time of update even when nothing else changes.
        unset(status, conditions::PROGRESSING);
        set(status, new);
        return Some(deadline + Duration::from_secs(1));
    }
    let current = current?;
    if reason == reasons::NEW_REPLICA_SET_AVAILABLE || reason == reasons::PROGRESS_DEADLINE_EXCEEDED {
        return None;
    }
    let updated = current.last_update_time.or(current.last_transition_time)?.0;
    let left = deadline.saturating_sub(Duration::try_from(now.duration_since(updated)).unwrap_or_default());
    if left.is_zero() {
        let message = format!("{who} has timed out progressing.");
        set(status, make(conditions::PROGRESSING, "False", reasons::PROGRESS_DEADLINE_EXCEEDED, message, now));
        return None;
    }
    // A second later, because the times on the wire are whole seconds.
    Some(left + Duration::from_secs(1))
}

fn has_progressed(before: &DeploymentStatus, now: &DeploymentStatus) -> bool {
    let n = |count: Option<i32>| count.unwrap_or(0);
    let old_ones = |status: &DeploymentStatus| n(status.replicas) - n(status.updated_replicas);
    n(now.updated_replicas) > n(before.updated_replicas)
        || old_ones(now) < old_ones(before)
        || n(now.ready_replicas) > n(before.ready_replicas)
        || n(now.available_replicas) > n(before.available_replicas)
}

/// Says that the deployment is paused, or no longer is: while paused no deadline runs.
pub(super) fn pause(deployment: &Deployment, status: &mut DeploymentStatus, now: Timestamp) {
    if !has_deadline(deployment) {
        return;
    }
    let reason = condition(status, conditions::PROGRESSING)
        .and_then(|condition| condition.reason.as_deref())
        .unwrap_or_default();
    if reason == reasons::PROGRESS_DEADLINE_EXCEEDED {
        return;
    }
    let paused = deployment.spec.paused == Some(true);
    match (paused, reason == reasons::PAUSED) {
        (true, false) => set(
            status,
            make(conditions::PROGRESSING, "Unknown", reasons::PAUSED, "Deployment is paused".to_owned(), now),
        ),
        (false, true) => set(
            status,
            make(conditions::PROGRESSING, "Unknown", reasons::RESUMED, "Deployment is resumed".to_owned(), now),
        ),
        _ => {}
    }
}
