//! Gradual rollouts: how many pods may be of the new revision now. Pure numbers; the position is kept with the revision
//! (`proa.dev/rollout-step`), so that a controller that starts anew goes on where the last one stood.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proa_crds::policy::Step;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Where a gradual rollout stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    /// The index of the step; past the last one the rollout is free.
    step: usize,
    /// When its pods were all available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reached: Option<Time>,
}

/// What a step allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// No limit (any longer).
    Free,
    /// At most so many pods of the new revision.
    UpTo(i32),
    /// At most so many, all of which are there: how long until the next step.
    Waiting(i32, Duration),
    /// The position changed: this is to be recorded, and the next look tells more.
    Record(String),
}

/// How far a rollout to `total` pods may go, with `available` of them of the new revision and available. `recorded` is what
/// [`Pace::Record`] said last.
pub(crate) fn pace(steps: &[Step], recorded: Option<&str>, total: i32, available: i32, now: Timestamp) -> Pace {
    let position: Position = recorded.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let Some(step) = steps.get(position.step) else { return Pace::Free };
    let limit = share(step.percent, total);
    if limit >= total {
        return Pace::Free;
    }
    if available < limit {
        return Pace::UpTo(limit);
    }
    let Some(reached) = position.reached else {
        return record(Position { reached: Some(Time(now)), ..position });
    };
    let stood = Duration::try_from(now.duration_since(reached.0)).unwrap_or_default();
    match Duration::from_secs(step.wait_seconds.into()).checked_sub(stood).filter(|left| !left.is_zero()) {
        Some(left) => Pace::Waiting(limit, left),
        None => record(Position { step: position.step + 1, reached: None }),
    }
}

fn record(position: Position) -> Pace {
    Pace::Record(crate::patch::json(&position).to_string())
}

/// So many of a hundred, rounded up, at least one.
fn share(percent: u32, total: i32) -> i32 {
    let part = (i64::from(percent) * i64::from(total) + 99) / 100;
    i32::try_from(part).unwrap_or(i32::MAX).max(1)
}

/// The sizes of the old replica sets (newest last) with which they and `limit` new pods are still `total`: where a strategy
/// let more of them go, they stay.
pub(crate) fn kept(mut shrunk: Vec<i32>, held: &[i32], total: i32, limit: i32) -> Vec<i32> {
    let mut lack = (total - limit) - shrunk.iter().sum::<i32>();
    for (size, held) in shrunk.iter_mut().zip(held).rev() {
        let back = (held - *size).min(lack).max(0);
        *size += back;
        lack -= back;
    }
    shrunk
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).expect("a time")
    }

    #[test]
    fn a_step_is_reached_waited_for_and_left() {
        let steps = [Step { percent: 10, wait_seconds: 60 }, Step { percent: 50, wait_seconds: 0 }];
        assert_eq!(pace(&steps, None, 8, 0, at(0)), Pace::UpTo(1));
        let Pace::Record(first) = pace(&steps, None, 8, 1, at(10)) else { panic!("reached") };
        assert_eq!(pace(&steps, Some(&first), 8, 1, at(30)), Pace::Waiting(1, Duration::from_secs(40)));
        assert_eq!(pace(&steps, Some(&first), 8, 0, at(80)), Pace::UpTo(1), "what is gone is waited for");
        let Pace::Record(second) = pace(&steps, Some(&first), 8, 1, at(70)) else { panic!("left") };
        assert_eq!(pace(&steps, Some(&second), 8, 3, at(70)), Pace::UpTo(4));
        let Pace::Record(third) = pace(&steps, Some(&second), 8, 4, at(71)) else { panic!("reached") };
        let Pace::Record(last) = pace(&steps, Some(&third), 8, 4, at(71)) else { panic!("left") };
        assert_eq!(pace(&steps, Some(&last), 8, 4, at(71)), Pace::Free);
        assert_eq!(pace(&[], None, 8, 0, at(0)), Pace::Free);
        assert_eq!(pace(&steps, None, 1, 0, at(0)), Pace::Free, "one pod is all of them");
        assert_eq!(pace(&steps, Some("nonsense"), 8, 0, at(0)), Pace::UpTo(1));
    }

    proptest! {
        #[test]
        fn while_a_step_holds_old_and_new_pods_are_as_many_as_wanted(
            held in proptest::collection::vec(0..20i32, 1..4), gone in 0..60i32, limit in 0..20i32, total in 1..40i32,
        ) {
            let mut gone = gone;
            let shrunk: Vec<i32> = held.iter().map(|size| { let go = gone.min(*size); gone -= go; size - go }).collect();
            let kept = kept(shrunk.clone(), &held, total, limit);
            let sum = |sizes: &[i32]| sizes.iter().sum::<i32>();
            prop_assert!(kept.iter().zip(&shrunk).zip(&held).all(|((kept, shrunk), held)| kept >= shrunk && kept <= held));
            prop_assert!(sum(&kept) >= (total - limit).min(sum(&held)));
            prop_assert!(sum(&kept) <= sum(&shrunk).max(total - limit));
        }
    }
}
