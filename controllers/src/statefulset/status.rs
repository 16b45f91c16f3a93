//! What a stateful set's status says. Pure.

use super::plan::{Replica, Replicas};
use crate::selector::{self, Refusal};
use jiff::Timestamp;
use k8s_openapi::{
    api::apps::v1::{StatefulSetCondition, StatefulSetStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use proa_crds::{StatefulSet, conditions};

/// The status of that view. Conditions others wrote stay.
pub(super) fn of(replicas: &Replicas<'_>) -> StatefulSetStatus {
    let set = &replicas.seen.set;
    let held = set.status.clone().unwrap_or_default();
    let all = || replicas.wanted.iter().chain(&replicas.condemned).filter(|replica| replica.pod.is_some());
    let count = |which: fn(&Replica<'_>) -> bool| {
        i32::try_from(all().filter(|replica| which(replica)).count()).unwrap_or(i32::MAX)
    };
    let some = |count: i32| Some(count).filter(|count| *count > 0);
    let mut status = StatefulSetStatus {
        replicas: count(|_| true),
        ready_replicas: some(count(|replica| replica.is_ready)),
        available_replicas: Some(count(|replica| replica.available_in.is_some_and(|wait| wait.is_zero()))),
        current_replicas: some(count(|replica| replica.is_current && !replica.is_leaving())),
        updated_replicas: some(count(|replica| replica.is_updated && !replica.is_leaving())),
        current_revision: replicas.current.metadata.name.clone(),
        update_revision: replicas.update.metadata.name.clone(),
        collision_count: Some(held.collision_count.unwrap_or(0)),
        observed_generation: set.metadata.generation,
        conditions: held
            .conditions
            .map(|list| list.into_iter().filter(|held| !is_refusal(held)).collect::<Vec<_>>())
            .filter(|list| !list.is_empty()),
    };
    let wanted = i32::try_from(replicas.wanted.len()).unwrap_or(i32::MAX);
    let counts = [Some(status.replicas), status.ready_replicas, status.updated_replicas];
    if replicas.is_rolling() && counts.iter().all(|count| count.unwrap_or(0) == wanted) {
        status.current_revision.clone_from(&status.update_revision);
        status.current_replicas = status.updated_replicas;
    }
    status
}

fn is_refusal(condition: &StatefulSetCondition) -> bool {
    condition.type_ == conditions::REPLICA_FAILURE
        && condition.reason.as_deref().is_some_and(|reason| selector::REFUSALS.contains(&reason))
}

/// The status of a set that selects other pods than it makes.
pub(super) fn refused(set: &StatefulSet, why: &Refusal, now: Timestamp) -> StatefulSetStatus {
    let mut status = set.status.clone().unwrap_or_default();
    status.observed_generation = set.metadata.generation;
    let list = status.conditions.get_or_insert_default();
    if !list.iter().any(|held| is_refusal(held) && held.reason.as_deref() == Some(why.reason)) {
        list.retain(|held| !is_refusal(held));
        list.push(StatefulSetCondition {
            type_: conditions::REPLICA_FAILURE.to_owned(),
            status: "True".to_owned(),
            reason: Some(why.reason.to_owned()),
            message: Some(why.message.clone()),
            last_transition_time: Some(Time(now)),
        });
    }
    status
}
