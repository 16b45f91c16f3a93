//! What an autoscaler does next: look at its target and metrics every so often, and conclude from each look once. Pure.

use super::{
    calculator::Population,
    limits::{Ask, Moment, Past, Why, limit, tolerance},
    measure::Measured,
    metric::{Failure, Wish, wish},
};
use crate::{
    Plan,
    events::{Kind, Note},
    scale::Scale,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::autoscaling::v2::{
        HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec,
        HorizontalPodAutoscalerStatus, MetricStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use proa_crds::Pod;
use std::{sync::Arc, time::Duration};

/// How often the metrics are looked at (`--horizontal-pod-autoscaler-sync-period`).
pub const PERIOD: SignedDuration = SignedDuration::from_secs(15);

const ABLE_TO_SCALE: &str = "AbleToScale";
const SCALING_ACTIVE: &str = "ScalingActive";
const SCALING_LIMITED: &str = "ScalingLimited";

/// What a look at the target and the metrics found.
#[derive(Clone, Debug)]
pub struct Look {
    /// When.
    pub at: Timestamp,
    /// What was asked for then: a changed object is looked at anew.
    pub spec: HorizontalPodAutoscalerSpec,
    /// The target's size, or why it is not known.
    pub scale: Result<Scale, String>,
    /// The metrics, in the order of the object.
    pub metrics: Vec<Measured>,
    /// The pods the target's selector selects, where they are of the custom family: nobody here watches these.
    pub pods: Option<Vec<Arc<Pod>>>,
    /// It has been concluded from.
    pub concluded: bool,
}

/// An autoscaler, its last look, and what it has done before.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The autoscaler.
    pub autoscaler: Arc<HorizontalPodAutoscaler>,
    /// What was last found.
    pub look: Option<Look>,
    /// The pods the target's selector selects.
    pub pods: Vec<Arc<Pod>>,
    /// Other autoscalers that scale some of these pods.
    pub rivals: Vec<String>,
    /// Recommendations and resizes of before.
    pub past: Past,
}

/// One thing to do.
#[derive(Debug)]
pub enum Action {
    /// Ask for the scale and the metrics.
    Look,
    /// Resize the target, if it must be, and say what was found.
    Conclude(Box<Conclusion>),
}

/// What follows from one look.
#[derive(Clone, Debug, PartialEq)]
pub struct Conclusion {
    /// Of the look concluded from.
    pub at: Timestamp,
    /// From which size to which, and why.
    pub rescale: Option<Rescale>,
    /// What to remember as recommended, before stabilisation.
    pub recommended: Vec<Moment>,
    /// The status when all goes well.
    pub status: HorizontalPodAutoscalerStatus,
    /// What to tell.
    pub notes: Vec<Note>,
}

/// A change of the target's size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rescale {
    /// The scale as it was read.
    pub scale: Scale,
    /// The new size.
    pub to: i32,
    /// Why, as the event says it.
    pub reason: String,
}

impl Conclusion {
    /// The status and the event once the resize has been tried at `now`.
    pub fn tried(mut self, outcome: &Result<(), String>, now: Timestamp) -> (HorizontalPodAutoscalerStatus, Vec<Note>) {
        if let Some(Rescale { scale, to, reason }) = &self.rescale {
            let size = format!("New size: {to}; reason: {reason}");
            match outcome {
                Ok(()) => {
                    let message = format!("the HPA controller was able to update the target scale to {to}");
                    set(&mut self.status, ABLE_TO_SCALE, "True", "SucceededRescale", message, now);
                    self.status.last_scale_time = Some(Time(now));
                    self.notes.push(Note { kind: Kind::Normal, reason: "SuccessfulRescale", message: size });
                }
                Err(why) => {
                    let message = format!("the HPA controller was unable to update the target scale: {why}");
                    set(&mut self.status, ABLE_TO_SCALE, "False", "FailedUpdateScale", message, now);
                    self.status.desired_replicas = scale.wanted;
                    let message = format!("{size}; error: {why}");
                    self.notes.push(Note { kind: Kind::Warning, reason: "FailedRescale", message });
                }
            }
        }
        (self.status, self.notes)
    }
}

fn set(
    status: &mut HorizontalPodAutoscalerStatus,
    type_: &str,
    value: &str,
    reason: &str,
    message: impl Into<String>,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let held = conditions.iter_mut().find(|condition| condition.type_ == type_);
    let since = held.as_ref().filter(|held| held.status == value).and_then(|held| held.last_transition_time.clone());
    let new = HorizontalPodAutoscalerCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.into()),
        last_transition_time: Some(since.unwrap_or(Time(now))),
    };
    match held {
        Some(held) => *held = new,
        None => conditions.push(new),
    }
}

fn explain(status: &mut HorizontalPodAutoscalerStatus, type_: &str, why: Why, now: Timestamp) {
    set(status, type_, if why.status { "True" } else { "False" }, why.reason, why.message, now);
}

/// Decides what to do next for one autoscaler.
pub fn plan(seen: &Seen, now: Timestamp) -> Plan<Action> {
    let look = seen.look.as_ref().filter(|look| look.spec == seen.autoscaler.spec);
    let Some(look) = look.filter(|look| now.duration_since(look.at) < PERIOD) else {
        return Plan::act(vec![Action::Look]);
    };
    let mut plan = match look.concluded {
        true => Plan::nothing(),
        false => Plan::act(vec![Action::Conclude(Box::new(conclude(seen, look, now)))]),
    };
    let left = PERIOD - now.duration_since(look.at);
    plan.look_again(Duration::try_from(left).unwrap_or_default());
    plan
}

/// What follows from a look (Kubernetes' `reconcileAutoscaler`).
fn conclude(seen: &Seen, look: &Look, now: Timestamp) -> Conclusion {
    let spec = &seen.autoscaler.spec;
    let mut status = seen.autoscaler.status.clone().unwrap_or_default();
    let mut notes = Vec::new();
    let end = |status, notes, recommended, rescale| Conclusion { at: look.at, rescale, recommended, status, notes };
    let scale = match &look.scale {
        Ok(scale) => scale,
        Err(why) => {
            let message = format!("the HPA controller was unable to get the target's current scale: {why}");
            set(&mut status, ABLE_TO_SCALE, "False", "FailedGetScale", message, now);
            notes.push(Note { kind: Kind::Warning, reason: "FailedGetScale", message: why.clone() });
            return end(status, notes, Vec::new(), None);
        }
    };
    let message = "the HPA controller was able to get the target's current scale";
    set(&mut status, ABLE_TO_SCALE, "True", "SucceededGetScale", message, now);
    let current = scale.wanted;
    let (min, max) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
    let mut past = seen.past.clone();
    let mut recommended = Vec::new();
    if past.recommended.is_empty() {
        // The size found is as good as recommended: whoever has just started does not shrink in haste.
        recommended.push(Moment { at: now, replicas: current });
        past.recommended.push(Moment { at: now, replicas: current });
    }
    let (mut desired, mut reason) = (current, String::new());
    if current == 0 && min != 0 {
        let message = "scaling is disabled since the replica count of the target is zero";
        set(&mut status, SCALING_ACTIVE, "False", "ScalingDisabled", message, now);
        status.current_metrics = None;
    } else if current > max {
        (desired, reason) = (max, "Current number of replicas above Spec.MaxReplicas".to_owned());
        status.current_metrics = None;
    } else if current < min {
        (desired, reason) = (min, "Current number of replicas below Spec.MinReplicas".to_owned());
        status.current_metrics = None;
    } else {
        let wishes = of_metrics(seen, look, scale, &mut status, &mut notes, now);
        status.current_replicas = Some(current);
        let Some(Chosen { replicas, name }) = wishes else { return end(status, notes, recommended, None) };
        let ask = Ask { current, desired: replicas, min, max };
        let limited = limit(spec.behavior.as_ref(), &past, ask, now);
        recommended.push(Moment { at: now, replicas });
        explain(&mut status, ABLE_TO_SCALE, limited.able, now);
        explain(&mut status, SCALING_LIMITED, limited.limited, now);
        desired = limited.replicas;
        reason = match replicas > current {
            true => format!("{name} above target"),
            false => "All metrics below target".to_owned(),
        };
    }
    status.current_replicas = Some(current);
    status.desired_replicas = desired;
    let rescale = (desired != current).then(|| Rescale { scale: scale.clone(), to: desired, reason });
    end(status, notes, recommended, rescale)
}

/// The largest wish and the metric that has it.
struct Chosen {
    replicas: i32,
    name: String,
}

/// What all metrics together ask for; nothing when they cannot be had, or when shrinking would be decided without some of
/// them.
fn of_metrics(
    seen: &Seen,
    look: &Look,
    scale: &Scale,
    status: &mut HorizontalPodAutoscalerStatus,
    notes: &mut Vec<Note>,
    now: Timestamp,
) -> Option<Chosen> {
    let mut refuse = |status: &mut _, event: &'static str, said: String, reason: &str, message: String| {
        notes.push(Note { kind: Kind::Warning, reason: event, message: said.clone() });
        notes.push(Note { kind: Kind::Warning, reason: "FailedComputeMetricsReplicas", message: said });
        set(status, SCALING_ACTIVE, "False", reason, message, now);
        None
    };
    if scale.selector.is_empty() {
        let message = "the HPA target's scale is missing a selector".to_owned();
        return refuse(status, "SelectorRequired", "selector is required".to_owned(), "InvalidSelector", message);
    }
    if !seen.rivals.is_empty() {
        let rivals = seen.rivals.join(" ");
        let said = format!("pods by selector {} are controlled by multiple HPAs: [{rivals}]", scale.selector);
        return refuse(status, "AmbiguousSelector", said.clone(), "AmbiguousSelector", said);
    }
    let population = Population {
        pods: &seen.pods,
        current: scale.wanted,
        held: scale.held,
        tolerance: tolerance(look.spec.behavior.as_ref()),
        now,
    };
    let specs = look.spec.metrics.as_deref().unwrap_or_default();
    let mut chosen: Option<Chosen> = None;
    let mut failures: Vec<Failure> = Vec::new();
    let mut statuses: Vec<MetricStatus> = Vec::new();
    for (spec, measured) in specs.iter().zip(&look.metrics) {
        match wish(&population, spec, measured) {
            Ok(Wish { replicas, name, status }) => {
                statuses.push(status);
                if chosen.as_ref().is_none_or(|chosen| chosen.replicas == 0 || replicas > chosen.replicas) {
                    chosen = Some(Chosen { replicas, name });
                }
            }
            Err(failure) => {
                let message = failure.message.clone();
                notes.push(Note { kind: Kind::Warning, reason: failure.reason, message });
                // kubectl finds a metric's status by its place.
                statuses.push(MetricStatus::default());
                failures.push(failure);
            }
        }
    }
    status.current_metrics = Some(statuses).filter(|statuses| !statuses.is_empty());
    // With a metric missing nothing shrinks: the missing one may want what there is.
    let enough = chosen.filter(|chosen| failures.is_empty() || chosen.replicas >= scale.wanted);
    match (enough, failures.first()) {
        (Some(chosen), _) => {
            let message = format!("the HPA was able to successfully calculate a replica count from {}", chosen.name);
            set(status, SCALING_ACTIVE, "True", "ValidMetricFound", message, now);
            Some(chosen)
        }
        (None, Some(first)) => {
            let message = format!("the HPA was unable to compute the replica count: {}", first.message);
            set(status, SCALING_ACTIVE, "False", first.reason, message, now);
            let (failed, all) = (failures.len(), specs.len());
            let message = format!("invalid metrics ({failed} invalid out of {all}), first error is: {}", first.error);
            notes.push(Note { kind: Kind::Warning, reason: "FailedComputeMetricsReplicas", message });
            None
        }
        // An object without a metric cannot be made.
        (None, None) => None,
    }
}
