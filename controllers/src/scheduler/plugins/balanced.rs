//! `NodeResourcesBalancedAllocation`: nodes whose resources are used evenly.

use super::fit::ResourceWeight;
use crate::scheduler::{
    cluster::{node::NodeInfo, resources::Amount},
    framework::{Cycle, MAX_SCORE, News, Plugin},
};

/// `NodeResourcesBalancedAllocationArgs`: the resources that are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BalancedArgs(pub(crate) Vec<ResourceWeight>);

impl Default for BalancedArgs {
    fn default() -> Self {
        BalancedArgs(ResourceWeight::cpu_and_memory())
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Balanced(pub(crate) BalancedArgs);

impl Plugin for Balanced {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn score(&self, cycle: Cycle<'_>, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let resources = self.0.0.iter().map(|resource| Amount::named(&resource.name));
        let asked: Vec<(Amount<'_>, i64)> =
            resources.map(|amount| (amount, amount.of(&cycle.pod.claim.requests.amounts))).collect();
        // A pod that asks for nothing changes no balance.
        let any = asked.iter().any(|(_, amount)| *amount > 0);
        any.then(|| nodes.iter().map(|node| evenness(&asked, node)).collect())
    }

    fn helps(&self, _: Cycle<'_>, _: News<'_>) -> bool {
        false
    }
}

/// 100 less the standard deviation of the shares in use, in percent. A plain loop: it runs for every node that would do.
fn evenness(asked: &[(Amount<'_>, i64)], node: &NodeInfo) -> i64 {
    let (all, used) = (&node.allocatable, &node.used.amounts);
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for (amount, asked) in asked {
        let all = amount.of(all);
        if all <= 0 {
            continue;
        }
        let share = ((amount.of(used) + asked) as f64 / all as f64).min(1.0);
        count += 1.0;
        sum += share;
        squares += share * share;
    }
    let deviation: f64 = if count < 2.0 { 0.0 } else { (squares / count - (sum / count).powi(2)).max(0.0).sqrt() };
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}
