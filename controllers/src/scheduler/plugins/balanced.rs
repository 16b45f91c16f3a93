//! `NodeResourcesBalancedAllocation`: nodes whose resources are used evenly.

use super::fit::ResourceWeight;
use crate::scheduler::{
    cluster::{node::NodeInfo, pod::PodInfo, resources::Amounts},
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
        let asks = |resource: &ResourceWeight| amount(&cycle.pod.claim.requests.amounts, &resource.name) > 0;
        // A pod that asks for nothing changes no balance.
        self.0.0.iter().any(asks).then(|| nodes.iter().map(|node| self.evenness(cycle.pod, node)).collect())
    }

    fn helps(&self, _: Cycle<'_>, _: News<'_>) -> bool {
        false
    }
}

fn amount(amounts: &Amounts, name: &str) -> i64 {
    match name {
        "cpu" => amounts.milli_cpu,
        "memory" => amounts.memory,
        name => amounts.other.get(name).copied().unwrap_or(0),
    }
}

impl Balanced {
    /// 100 less the standard deviation of the shares in use, in percent.
    fn evenness(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let share = |resource: &ResourceWeight| {
            let all = amount(&node.allocatable, &resource.name);
            let used = amount(&node.used.amounts, &resource.name) + amount(&pod.claim.requests.amounts, &resource.name);
            (all > 0).then(|| (used as f64 / all as f64).min(1.0))
        };
        let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for share in self.0.0.iter().filter_map(share) {
            count += 1.0;
            sum += share;
            squares += share * share;
        }
        let deviation: f64 = if count < 2.0 { 0.0 } else { (squares / count - (sum / count).powi(2)).max(0.0).sqrt() };
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}
