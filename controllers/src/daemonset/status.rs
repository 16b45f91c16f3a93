//! What a daemon set's status says. Pure.

use super::plan::{Daemon, Daemons};
use crate::selector::{self, Refusal};
use jiff::Timestamp;
use k8s_openapi::{
    api::apps::v1::{DaemonSetCondition, DaemonSetStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use proa_crds::{DaemonSet, conditions};

/// The status of that view. Conditions others wrote stay.
pub(super) fn of(daemons: &Daemons<'_>) -> DaemonSetStatus {
    let set = &daemons.seen.set;
    let held = set.status.clone().unwrap_or_default();
    let desired = daemons.desired();
    let (mut scheduled, mut misscheduled, mut ready, mut available, mut updated) = (0, 0, 0, 0, 0);
    for on_node in daemons.nodes.values() {
        let has_one = !on_node.daemons.is_empty();
        if !on_node.place.wanted {
            misscheduled += i32::from(has_one && on_node.exists);
            continue;
        }
        scheduled += i32::from(has_one);
        ready += i32::from(on_node.daemons.iter().any(Daemon::is_ready));
        available += i32::from(on_node.is_available());
        // Beside an old pod a new one does not count yet: the rollout is not done there.
        updated += i32::from(on_node.live().count() > 0 && on_node.live().all(|daemon| daemon.is_updated));
    }
    let some = |count: i32| Some(count).filter(|count| *count > 0);
    DaemonSetStatus {
        desired_number_scheduled: desired,
        current_number_scheduled: scheduled,
        number_misscheduled: misscheduled,
        number_ready: ready,
        number_available: some(available),
        number_unavailable: some(desired - available),
        updated_number_scheduled: some(updated),
        observed_generation: set.metadata.generation,
        collision_count: held.collision_count,
        conditions: held
            .conditions
            .map(|list| list.into_iter().filter(|held| !is_refusal(held)).collect::<Vec<_>>())
            .filter(|list| !list.is_empty()),
    }
}

fn is_refusal(condition: &DaemonSetCondition) -> bool {
    condition.type_ == conditions::REPLICA_FAILURE
        && condition.reason.as_deref().is_some_and(|reason| selector::REFUSALS.contains(&reason))
}

/// The status of a set that selects other pods than it makes.
pub(super) fn refused(set: &DaemonSet, why: &Refusal, now: Timestamp) -> DaemonSetStatus {
    let mut status = set.status.clone().unwrap_or_default();
    status.observed_generation = set.metadata.generation;
    let list = status.conditions.get_or_insert_default();
    if !list.iter().any(|held| is_refusal(held) && held.reason.as_deref() == Some(why.reason)) {
        list.retain(|held| !is_refusal(held));
        list.push(DaemonSetCondition {
            type_: conditions::REPLICA_FAILURE.to_owned(),
            status: "True".to_owned(),
            reason: Some(why.reason.to_owned()),
            message: Some(why.message.clone()),
            last_transition_time: Some(Time(now)),
        });
    }
    status
}
