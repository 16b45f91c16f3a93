//! From what the metrics ask for to what is done now: stabilisation windows, policies of speed, the bounds of the object
//! (KEP-853; "Configurable scaling behavior" in Kubernetes' documentation). Pure.

use super::calculator::{TOLERANCE, Tolerance};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};
use proa_apimachinery::quantity::Quantity;

/// How long a higher recommendation holds off a lower one, unless the object says (`--horizontal-pod-autoscaler-downscale-stabilization`).
const DOWN_WINDOW: i32 = 300;
/// Longest period a policy may look back on (API validation).
const LONGEST: SignedDuration = SignedDuration::from_secs(3600);

/// A number of replicas that was recommended, or by how many a target was resized, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// When.
    pub at: Timestamp,
    /// How many.
    pub replicas: i32,
}

/// What has been recommended and done of late. It lives as long as its process, as on Kubernetes: the first
/// recommendation after a start is the size found, which holds off a hasty decrease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// Recommendations before stabilisation.
    pub recommended: Vec<Moment>,
    /// Increases.
    pub added: Vec<Moment>,
    /// Decreases, as positive numbers.
    pub removed: Vec<Moment>,
}

impl Past {
    /// Forgets what no window and no policy can reach.
    pub fn forget(&mut self, now: Timestamp) {
        for moments in [&mut self.recommended, &mut self.added, &mut self.removed] {
            moments.retain(|moment| now.duration_since(moment.at) <= LONGEST);
        }
    }

    /// Remembers that the target was resized.
    pub fn resized(&mut self, from: i32, to: i32, now: Timestamp) {
        match to - from {
            change if change > 0 => self.added.push(Moment { at: now, replicas: change }),
            change => self.removed.push(Moment { at: now, replicas: -change }),
        }
    }
}

/// One direction's rules with nothing left out.
#[derive(Clone, Debug, PartialEq)]
struct Rules {
    window: SignedDuration,
    select: Select,
    policies: Vec<HPAScalingPolicy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Select {
    Max,
    Min,
    Disabled,
}

fn rules(given: Option<&HPAScalingRules>, window: i32, policies: Vec<HPAScalingPolicy>) -> Rules {
    let given = given.cloned().unwrap_or_default();
    let seconds = given.stabilization_window_seconds.unwrap_or(window);
    Rules {
        window: SignedDuration::from_secs(seconds.into()),
        select: match given.select_policy.as_deref() {
            Some("Min") => Select::Min,
            Some("Disabled") => Select::Disabled,
            _ => Select::Max,
        },
        policies: given.policies.filter(|list| !list.is_empty()).unwrap_or(policies),
    }
}

fn policy(type_: &str, value: i32) -> HPAScalingPolicy {
    HPAScalingPolicy { type_: type_.to_owned(), value, period_seconds: 15 }
}

/// The tolerance of an object (KEP-4951).
pub(super) fn tolerance(behavior: Option<&HorizontalPodAutoscalerBehavior>) -> Tolerance {
    let of = |rules: Option<&HPAScalingRules>| {
        let quantity = rules?.tolerance.as_ref()?;
        Some(Quantity::parse(&quantity.0).ok()?.as_milli() as f64 / 1000.0)
    };
    Tolerance {
        up: of(behavior.and_then(|b| b.scale_up.as_ref())).unwrap_or(TOLERANCE),
        down: of(behavior.and_then(|b| b.scale_down.as_ref())).unwrap_or(TOLERANCE),
    }
}

/// What is asked, and within which bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) current: i32,
    pub(super) desired: i32,
    pub(super) min: i32,
    pub(super) max: i32,
}

/// A condition's status, reason and message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Why {
    pub(super) status: bool,
    pub(super) reason: &'static str,
    pub(super) message: &'static str,
}

/// What is done now, and how the conditions `AbleToScale` and `ScalingLimited` explain it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Limited {
    pub(super) replicas: i32,
    pub(super) able: Why,
    pub(super) limited: Why,
}

const fn yes(reason: &'static str, message: &'static str) -> Why {
    Why { status: true, reason, message }
}

const READY: Why = yes("ReadyForNewScale", "recommended size matches current size");
const UP_STABILIZED: Why = yes(
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_STABILIZED: Why = yes(
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const WITHIN: Why =
    Why { status: false, reason: "DesiredWithinRange", message: "the desired count is within the acceptable range" };
const TOO_FAST_UP: Why =
    yes("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const TOO_FAST_DOWN: Why =
    yes("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const TOO_MANY: Why = yes("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: Why = yes("TooFewReplicas", "the desired replica count is less than the minimum replica count");

/// Brings what the metrics ask for within what may be done now.
pub(super) fn limit(
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    past: &Past,
    ask: Ask,
    now: Timestamp,
) -> Limited {
    match behavior {
        None => by_default(past, ask, now),
        Some(behavior) => by_behavior(behavior, past, ask, now),
    }
}

/// An object that says nothing: no increase beyond twice the size (or four), no decrease within five minutes of a
/// higher recommendation.
fn by_default(past: &Past, ask: Ask, now: Timestamp) -> Limited {
    let window = SignedDuration::from_secs(DOWN_WINDOW.into());
    let stable = recent(&past.recommended, window, now).fold(ask.desired, i32::max);
    let fastest = ask.current.saturating_mul(2).max(4);
    let (most, too_many) = if ask.max > fastest { (fastest, TOO_FAST_UP) } else { (ask.max, TOO_MANY) };
    let (replicas, limited) = match stable {
        _ if stable < ask.min => (ask.min, TOO_FEW),
        _ if stable > most => (most, too_many),
        _ => (stable, WITHIN),
    };
    Limited { replicas, able: if stable == ask.desired { READY } else { DOWN_STABILIZED }, limited }
}

fn by_behavior(behavior: &HorizontalPodAutoscalerBehavior, past: &Past, ask: Ask, now: Timestamp) -> Limited {
    let up = rules(behavior.scale_up.as_ref(), 0, vec![policy("Pods", 4), policy("Percent", 100)]);
    let down = rules(behavior.scale_down.as_ref(), DOWN_WINDOW, vec![policy("Percent", 100)]);
    let lowest = recent(&past.recommended, up.window, now).fold(ask.desired, i32::min);
    let highest = recent(&past.recommended, down.window, now).fold(ask.desired, i32::max);
    // As near to the present size as the window allows.
    let stable = ask.current.max(lowest).min(highest);
    let able = match () {
        () if stable == ask.desired => READY,
        () if ask.desired >= ask.current => UP_STABILIZED,
        () => DOWN_STABILIZED,
    };
    let (replicas, limited) = if stable > ask.current {
        let fastest = up.limit_up(past, ask.current, now).max(ask.current);
        let (most, why) = if ask.max > fastest { (fastest, TOO_FAST_UP) } else { (ask.max, TOO_MANY) };
        if stable > most { (most, why) } else { (stable, WITHIN) }
    } else if stable < ask.current {
        let fastest = down.limit_down(past, ask.current, now).min(ask.current);
        let (least, why) = if ask.min < fastest { (fastest, TOO_FAST_DOWN) } else { (ask.min, TOO_FEW) };
        if stable < least { (least, why) } else { (stable, WITHIN) }
    } else {
        (stable, WITHIN)
    };
    Limited { replicas, able, limited }
}

/// The numbers of a window that ends now.
fn recent(moments: &[Moment], window: SignedDuration, now: Timestamp) -> impl Iterator<Item = i32> {
    moments.iter().filter(move |moment| now.duration_since(moment.at) < window).map(|moment| moment.replicas)
}

impl Rules {
    /// The size at the beginning of a policy's period.
    fn at_start(policy: &HPAScalingPolicy, past: &Past, current: i32, now: Timestamp) -> i32 {
        let period = SignedDuration::from_secs(policy.period_seconds.into());
        let sum = |moments: &[Moment]| recent(moments, period, now).sum::<i32>();
        current - sum(&past.added) + sum(&past.removed)
    }

    fn limit_up(&self, past: &Past, current: i32, now: Timestamp) -> i32 {
        let proposals = self.policies.iter().map(|policy| {
            let start = Self::at_start(policy, past, current, now);
            match policy.type_.as_str() {
                "Pods" => start.saturating_add(policy.value),
                // Rounded up, or a small share of few pods would never let anything grow.
                _ => (f64::from(start) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32,
            }
        });
        match self.select {
            Select::Disabled => current,
            Select::Min => proposals.min().unwrap_or(current),
            Select::Max => proposals.max().unwrap_or(current),
        }
    }

    fn limit_down(&self, past: &Past, current: i32, now: Timestamp) -> i32 {
        let proposals = self.policies.iter().map(|policy| {
            let start = Self::at_start(policy, past, current, now);
            match policy.type_.as_str() {
                "Pods" => start.saturating_sub(policy.value),
                _ => (f64::from(start) * (1.0 - f64::from(policy.value) / 100.0)) as i32,
            }
        });
        // The smallest change leaves the most.
        match self.select {
            Select::Disabled => current,
            Select::Min => proposals.max().unwrap_or(current),
            Select::Max => proposals.min().unwrap_or(current),
        }
    }
}
