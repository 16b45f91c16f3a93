//! `TaintToleration`: nodes with taints that a pod does not tolerate, refused or rather avoided.

use crate::{
    scheduler::{
        cluster::{node::NodeInfo, pod::PodInfo},
        framework::{Cycle, Filter, News, Plugin, Prepared, Reasons, Verdict, lets_in, normalize},
    },
    taints::{NO_EXECUTE, NO_SCHEDULE, PREFER_NO_SCHEDULE, tolerates, untolerated},
};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct TaintToleration;

struct Tolerated<'a>(&'a PodInfo);

impl Filter for Tolerated<'_> {
    fn check(&self, node: &NodeInfo, why: &mut Reasons) -> Verdict {
        let hard = [NO_SCHEDULE, NO_EXECUTE];
        let bad = !node.taints.is_empty() && untolerated(&node.taints, self.0.tolerations(), &hard).is_some();
        Verdict::never_if(bad, why, "node(s) had untolerated taint(s)")
    }

    fn judges_by_the_node_alone(&self) -> bool {
        true
    }
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn filter<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        Prepared::filter(Tolerated(cycle.pod))
    }

    fn score(&self, cycle: Cycle<'_>, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        if !cycle.cluster.has_soft_taints() {
            return None;
        }
        let avoided = |node: &&NodeInfo| {
            let soft = node.taints.iter().filter(|taint| taint.effect == PREFER_NO_SCHEDULE);
            soft.filter(|taint| !cycle.pod.tolerations().iter().any(|held| tolerates(held, taint))).count() as i64
        };
        let mut scores: Vec<i64> = nodes.iter().map(avoided).collect();
        normalize(&mut scores, true);
        Some(scores)
    }

    fn helps(&self, cycle: Cycle<'_>, news: News<'_>) -> bool {
        matches!(news, News::Node(node, changes) if (changes.new || changes.taints) && lets_in(self, cycle, node))
    }
}
