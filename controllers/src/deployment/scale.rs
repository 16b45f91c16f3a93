//! The arithmetic of a rollout: how many pods each replica set gets. Pure numbers.

use crate::amount::{Round, resolve};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proa_crds::Deployment;

/// How far a rolling update may leave the wanted size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fence {
    /// So many pods too many, at most.
    pub(super) surge: i32,
    /// So many pods unavailable, at most.
    pub(super) unavailable: i32,
}

/// The wanted size of a deployment; 1 when it says nothing.
pub(super) fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1).max(0)
}

/// Whether the deployment is recreated rather than rolled.
pub(super) fn recreates(deployment: &Deployment) -> bool {
    deployment.spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// The fence of a deployment. Percent of surge round up, of unavailable down; both zero would mean that nothing can
/// move, so one pod may then be unavailable.
pub(super) fn fence(deployment: &Deployment) -> Fence {
    if recreates(deployment) {
        return Fence { surge: 0, unavailable: 0 };
    }
    let total = replicas(deployment);
    let rolling = deployment.spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let default = IntOrString::String("25%".to_owned());
    let surge = resolve(rolling.and_then(|rolling| rolling.max_surge.as_ref()).unwrap_or(&default), total, Round::Up);
    let unavailable =
        resolve(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).unwrap_or(&default), total, Round::Down);
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    Fence { surge, unavailable: unavailable.min(total) }
}

/// The size the new replica set may grow to in a rolling update, with `everyone` pods wanted by all replica sets.
pub(super) fn grown(new: i32, everyone: i32, total: i32, surge: i32) -> i32 {
    let room = total.saturating_add(surge) - everyone;
    if room <= 0 || new >= total { new } else { new + room.min(total - new) }
}

/// What the arithmetic knows of one replica set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// `spec.replicas`.
    pub(super) wanted: i32,
    /// `status.availableReplicas`.
    pub(super) available: i32,
}

/// The sizes the old replica sets (oldest first) shrink to in a rolling update: first what is unavailable there, then
/// what the fence lets go.
pub(super) fn shrunk(old: &[Size], new: Size, total: i32, unavailable: i32) -> Vec<i32> {
    let mut sizes: Vec<i32> = old.iter().map(|size| size.wanted).collect();
    let everyone = sizes.iter().sum::<i32>() + new.wanted;
    let minimum = total - unavailable;
    let mut may_go = everyone - minimum - (new.wanted - new.available).max(0);
    if may_go <= 0 {
        return sizes;
    }
    for (size, of) in sizes.iter_mut().zip(old) {
        let unhealthy = (*size - of.available).max(0).min(may_go);
        *size -= unhealthy;
        may_go -= unhealthy;
    }
    let mut spare = old.iter().map(|size| size.available).sum::<i32>() + new.available - minimum;
    for size in &mut sizes {
        let go = (*size).min(spare.max(0));
        *size -= go;
        spare -= go;
    }
    sizes
}

/// One replica set in proportional scaling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// `spec.replicas`, more than 0.
    pub(super) wanted: i32,
    /// Size plus surge of the deployment when this replica set was last sized (its `max-replicas` annotation).
    pub(super) max_before: Option<i32>,
}

/// The sizes of the active replica sets after the deployment's own size changed in the middle of a rollout: each keeps
/// its share. `shares` come largest first (ties: newest first when growing, oldest first when shrinking); what rounding
/// leaves over goes to the first, and what that one cannot give to the next.
pub(super) fn proportional(shares: &[Share], total: i32, surge: i32, status_replicas: i32) -> Vec<i32> {
    let allowed = if total > 0 { total.saturating_add(surge) } else { 0 };
    let change = allowed - shares.iter().map(|share| share.wanted).sum::<i32>();
    let mut given = 0;
    let mut sizes: Vec<i32> = shares
        .iter()
        .map(|share| {
            let left = change - given;
            if left == 0 || share.wanted == 0 {
                return share.wanted;
            }
            let part = fraction(share, total, surge, status_replicas);
            let part = if change > 0 { part.min(left) } else { part.max(left) };
            given += part;
            share.wanted + part
        })
        .collect();
    let mut left = change - given;
    for size in &mut sizes {
        let part = left.max(-*size);
        *size += part;
        left -= part;
    }
    sizes
}

fn fraction(share: &Share, total: i32, surge: i32, status_replicas: i32) -> i32 {
    if total == 0 {
        return -share.wanted;
    }
    let before = share.max_before.filter(|before| *before > 0).unwrap_or(status_replicas);
    if before <= 0 {
        return 0;
    }
    let size = f64::from(share.wanted) * f64::from(total.saturating_add(surge)) / f64::from(before);
    // Halves go away from zero, as on Kubernetes; sizes fit an i32 by far.
    #[expect(clippy::cast_possible_truncation, reason = "clamped to the range of i32")]
    let size = size.round().clamp(0.0, f64::from(i32::MAX)) as i32;
    size - share.wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn deployment(replicas: i32, surge: serde_json::Value, unavailable: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {},
            "spec": {
                "replicas": replicas, "selector": {}, "template": {},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
            },
        }))
        .expect("a deployment")
    }

    #[test]
    fn percent_of_surge_round_up_and_of_unavailable_down() {
        for (replicas, surge, unavailable, expected) in [
            (10, json!("25%"), json!("25%"), (3, 2)),
            (1, json!("25%"), json!("25%"), (1, 0)),
            (4, json!("25%"), json!("25%"), (1, 1)),
            (10, json!(0), json!("5%"), (0, 1)),
            (10, json!(0), json!(0), (0, 1)),
            (10, json!(2), json!(20), (2, 10)),
            (0, json!("25%"), json!("25%"), (0, 0)),
            (10, json!("100%"), json!(0), (10, 0)),
        ] {
            let fence = fence(&deployment(replicas, surge.clone(), unavailable.clone()));
            assert_eq!((fence.surge, fence.unavailable), expected, "{replicas} {surge} {unavailable}");
        }
    }

    #[test]
    fn growing_in_proportion() {
        let share = |wanted, max_before| Share { wanted, max_before: Some(max_before) };
        // Kubernetes' own example: 10 with surge 3, five and eight running, scaled to 15.
        assert_eq!(proportional(&[share(8, 13), share(5, 13)], 15, 3, 13), [11, 7]);
        assert_eq!(proportional(&[share(5, 10), share(5, 10)], 5, 0, 10), [2, 3]);
        assert_eq!(proportional(&[share(8, 13), share(5, 13)], 0, 0, 13), [0, 0]);
        assert_eq!(
            proportional(&[Share { wanted: 5, max_before: None }, Share { wanted: 5, max_before: None }], 20, 0, 10),
            [10, 10]
        );
    }

    proptest! {
        #[test]
        fn proportional_sizes_add_up_and_are_never_negative(
            wanted in proptest::collection::vec(1..50i32, 1..6), total in 0..200i32, surge in 0..50i32, before in 0..200i32,
        ) {
            let shares: Vec<_> = wanted.iter().map(|wanted| Share { wanted: *wanted, max_before: Some(before) }).collect();
            let sizes = proportional(&shares, total, surge, 0);
            prop_assert!(sizes.iter().all(|size| *size >= 0), "{sizes:?}");
            let allowed = if total > 0 { total + surge } else { 0 };
            prop_assert_eq!(sizes.iter().sum::<i32>(), allowed);
        }

        #[test]
        fn growing_never_passes_the_surge_and_shrinking_never_the_bound_of_what_is_available(
            old in proptest::collection::vec((0..20i32, 0..20i32), 0..5), new in (0..20i32, 0..20i32), total in 0..40i32,
            surge in 0..10i32, unavailable in 0..10i32,
        ) {
            let size = |(wanted, available): (i32, i32)| Size { wanted, available: available.min(wanted) };
            let old: Vec<_> = old.into_iter().map(size).collect();
            let new = size(new);
            let everyone = old.iter().map(|size| size.wanted).sum::<i32>() + new.wanted;
            let grown = grown(new.wanted, everyone, total, surge);
            prop_assert!(grown >= new.wanted);
            prop_assert!(everyone - new.wanted + grown <= (total + surge).max(everyone));
            let sizes = shrunk(&old, new, total, unavailable);
            // The unavailable go first, so what stays of the available ones is:
            let stays: i32 = old.iter().zip(&sizes).map(|(old, size)| old.available.min(*size)).sum::<i32>() + new.available;
            let before = old.iter().map(|size| size.available).sum::<i32>() + new.available;
            prop_assert!(stays >= (total - unavailable).min(before), "{stays} of {before}");
            prop_assert!(sizes.iter().zip(&old).all(|(size, old)| (0..=old.wanted).contains(size)));
        }
    }
}
