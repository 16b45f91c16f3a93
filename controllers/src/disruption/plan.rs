//! How many disruptions a budget allows right now. Pure.

use crate::{
    Plan,
    events::{Kind, Note},
    patch::json,
    pods,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    apimachinery::pkg::{
        apis::meta::v1::{Condition, OwnerReference, Time},
        util::intstr::IntOrString,
    },
};
use proa_crds::Pod;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// How long an eviction may take from its grant to the pod's deletion; then it counts as not having happened
/// (Kubernetes' `DeletionTimeout`).
pub const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);
/// How soon an owner whose size could not be learned is asked again.
pub const ASK_AGAIN: Duration = Duration::from_secs(10);
/// The condition of a budget: whether a pod may be evicted now.
const DISRUPTION_ALLOWED: &str = "DisruptionAllowed";

/// How many pods an owner is meant to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Size {
    /// So many.
    Wanted(i32),
    /// Nobody has asked its scale subresource yet.
    NotAsked,
    /// It cannot be learned.
    Unknown(String),
}

/// A budget, its pods, and what scales each of them.
#[derive(Debug)]
pub struct Seen {
    /// The budget.
    pub budget: Arc<PodDisruptionBudget>,
    /// The pods it selects, with the uid of what scales them; `None` for a pod nobody controls.
    pub pods: Vec<(Arc<Pod>, Option<String>)>,
    /// What scales them, by uid.
    pub owners: BTreeMap<String, (OwnerReference, Size)>,
}

/// One thing to do.
#[derive(Debug)]
pub enum Action {
    /// Learn the sizes of these.
    Ask(Vec<OwnerReference>),
    /// Write the status, and tell what is remarkable about it.
    Status(Box<PodDisruptionBudgetStatus>, Vec<Note>),
    /// Tell that a pod was to be evicted and is still here.
    NotDeleted(Arc<Pod>),
}

/// Decides about one budget (Kubernetes' disruption controller, `trySync`).
pub fn plan(seen: &Seen, now: Timestamp) -> Plan<Action> {
    let held = seen.budget.status.clone().unwrap_or_default();
    let unknown: Vec<OwnerReference> = match needs_sizes(seen) {
        true => seen.owners.values().filter(|(_, size)| *size == Size::NotAsked).map(|(o, _)| o.clone()).collect(),
        false => Vec::new(),
    };
    if !unknown.is_empty() {
        return Plan::act(vec![Action::Ask(unknown)]);
    }
    let mut plan = Plan::nothing();
    let mut notes = Vec::new();
    let note = |kind, reason, message: String| Note { kind, reason, message };
    let mut status = held.clone();
    status.observed_generation = seen.budget.metadata.generation;
    match expected(seen) {
        Ok(Expected { pods: expected, healthy: desired, unmanaged }) => {
            if seen.pods.is_empty() {
                notes.push(note(Kind::Normal, "NoPods", "No matching pods found".to_owned()));
            }
            if unmanaged {
                notes.push(note(Kind::Warning, "UnmanagedPods", unmanaged_message(&seen.budget)));
            }
            let disrupted = disrupted(seen, &held, now, &mut plan);
            let healthy = seen.pods.iter().filter(|(pod, _)| is_healthy(pod, &disrupted)).count();
            // A budget without pods allows nothing: its first pods are safe before they have been counted.
            let allowed = if expected > 0 { (count(healthy) - desired).max(0) } else { 0 };
            status.current_healthy = Some(count(healthy));
            status.desired_healthy = Some(desired);
            status.expected_pods = Some(expected);
            status.disruptions_allowed = Some(allowed);
            status.disrupted_pods = Some(disrupted).filter(|pods| !pods.is_empty());
            let (value, reason) = match allowed > 0 {
                true => ("True", "SufficientPods"),
                false => ("False", "InsufficientPods"),
            };
            set_condition(&mut status, value, reason, String::new(), now);
        }
        Err(why) => {
            // What cannot be counted is not disrupted: the fail-safe of the controller.
            let message = format!("Failed to calculate the number of expected pods: {why}");
            notes.push(note(Kind::Warning, "CalculateExpectedPodCountFailed", message));
            status.disruptions_allowed = Some(0);
            set_condition(&mut status, "False", "SyncFailed", why, now);
            plan.look_again(ASK_AGAIN);
        }
    }
    if seen.budget.status.is_none() || json(&status) != json(&held) {
        plan.actions.push(Action::Status(Box::new(status), notes));
    }
    plan
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn is_healthy(pod: &Pod, disrupted: &BTreeMap<String, Time>) -> bool {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    pod.metadata.deletion_timestamp.is_none() && !disrupted.contains_key(name) && pods::is_ready(pod)
}

/// The evictions that were granted and whose pods have not been marked yet. A grant that led to nothing is forgotten.
fn disrupted(
    seen: &Seen,
    held: &PodDisruptionBudgetStatus,
    now: Timestamp,
    plan: &mut Plan<Action>,
) -> BTreeMap<String, Time> {
    let mut still = BTreeMap::new();
    for (pod, _) in &seen.pods {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let granted = held.disrupted_pods.as_ref().and_then(|pods| pods.get(name));
        let (Some(granted), None) = (granted, &pod.metadata.deletion_timestamp) else { continue };
        let left = DELETION_TIMEOUT - now.duration_since(granted.0);
        if left.is_negative() {
            plan.actions.push(Action::NotDeleted(pod.clone()));
            continue;
        }
        plan.look_again(Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1));
        still.insert(name.to_owned(), granted.clone());
    }
    still
}

/// Whether the budget is in terms of what the owners want.
fn needs_sizes(seen: &Seen) -> bool {
    let spec = seen.budget.spec.as_ref();
    let min = spec.and_then(|spec| spec.min_available.as_ref());
    spec.is_some_and(|spec| spec.max_unavailable.is_some()) || matches!(min, Some(IntOrString::String(_)))
}

struct Expected {
    pods: i32,
    healthy: i32,
    unmanaged: bool,
}

fn expected(seen: &Seen) -> Result<Expected, String> {
    let spec = seen.budget.spec.as_ref();
    let (min, max) = (spec.and_then(|s| s.min_available.as_ref()), spec.and_then(|s| s.max_unavailable.as_ref()));
    if let (None, Some(IntOrString::Int(min))) = (max, min) {
        return Ok(Expected { pods: count(seen.pods.len()), healthy: *min, unmanaged: false });
    }
    let (pods, unmanaged) = wanted(seen)?;
    let healthy = match (max, min) {
        (Some(max), _) => pods.saturating_sub(resolve(max, pods)?).max(0),
        (None, Some(min)) => resolve(min, pods)?,
        (None, None) => return Ok(Expected { pods: 0, healthy: 0, unmanaged: false }),
    };
    Ok(Expected { pods, healthy, unmanaged })
}

/// How many pods the owners of the selected ones want together; and whether there are pods without an owner.
fn wanted(seen: &Seen) -> Result<(i32, bool), String> {
    let owners: BTreeSet<&String> = seen.pods.iter().filter_map(|(_, owner)| owner.as_ref()).collect();
    let mut sum = 0i32;
    for owner in owners {
        match seen.owners.get(owner) {
            Some((_, Size::Wanted(wanted))) => sum = sum.saturating_add(*wanted),
            Some((_, Size::Unknown(why))) => return Err(why.clone()),
            _ => return Err(format!("found no controllers for the pods of {owner:?}")),
        }
    }
    Ok((sum, seen.pods.iter().any(|(_, owner)| owner.is_none())))
}

/// A number of pods or a share of them, rounded up (`GetScaledValueFromIntOrPercent`).
fn resolve(value: &IntOrString, total: i32) -> Result<i32, String> {
    match value {
        IntOrString::Int(number) => Ok(*number),
        IntOrString::String(text) => {
            let percent = text.strip_suffix('%').and_then(|number| number.parse::<i64>().ok());
            let percent = percent.ok_or_else(|| {
                format!("invalid value for IntOrString: invalid type: string is not a percentage: {text:?}")
            })?;
            let pods = (percent.saturating_mul(i64::from(total))).div_euclid(100)
                + i64::from(percent.saturating_mul(i64::from(total)).rem_euclid(100) != 0);
            Ok(i32::try_from(pods).unwrap_or(i32::MAX))
        }
    }
}

fn set_condition(status: &mut PodDisruptionBudgetStatus, value: &str, reason: &str, message: String, now: Timestamp) {
    let observed_generation = status.observed_generation;
    let conditions = status.conditions.get_or_insert_default();
    let held = conditions.iter_mut().find(|condition| condition.type_ == DISRUPTION_ALLOWED);
    let since = held.as_ref().filter(|held| held.status == value).map(|held| held.last_transition_time.clone());
    let new = Condition {
        type_: DISRUPTION_ALLOWED.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation,
        last_transition_time: since.unwrap_or(Time(now)),
    };
    match held {
        Some(held) => *held = new,
        None => conditions.push(new),
    }
}

fn unmanaged_message(budget: &PodDisruptionBudget) -> String {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()).map(json).unwrap_or_default();
    format!(
        "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
    )
}
