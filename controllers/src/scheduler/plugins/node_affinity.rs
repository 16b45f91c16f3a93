//! `NodeAffinity`: `nodeSelector` and node affinity of the pod, and the affinity a profile adds to all of its pods.

use crate::scheduler::{
    cluster::{
        affinity::{only_names, preferences, preferred_weight, required_matches, selects_node},
        node::{NodeInfo, Slot},
    },
    framework::{Cycle, Filter, News, Plugin, Prepared, Reasons, Verdict, lets_in, normalize},
};
use k8s_openapi::api::core::v1 as core;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct NodeAffinity {
    /// `addedAffinity` of the plugin's arguments.
    pub(crate) added: Option<core::NodeAffinity>,
}

struct Matching<'a> {
    cycle: Cycle<'a>,
    enforced: Option<&'a core::NodeSelector>,
}

impl Filter for Matching<'_> {
    fn check(&self, node: &NodeInfo, why: &mut Reasons) -> Verdict {
        if self.enforced.is_some_and(|enforced| !selects_node(enforced, &node.name, &node.labels)) {
            return Verdict::never_if(true, why, "node(s) didn't match scheduler-enforced node affinity");
        }
        let matches = required_matches(&self.cycle.pod.pod.spec, &node.name, &node.labels);
        Verdict::never_if(!matches, why, "node(s) didn't match Pod's node affinity/selector")
    }

    fn only(&self) -> Option<Vec<Slot>> {
        let names = only_names(&self.cycle.pod.pod.spec)?;
        Some(names.into_iter().filter_map(|name| self.cycle.cluster.slot(name)).collect())
    }

    fn judges_by_the_node_alone(&self) -> bool {
        true
    }
}

impl NodeAffinity {
    fn enforced(&self) -> Option<&core::NodeSelector> {
        self.added.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
    }

    fn wished(&self) -> &[core::PreferredSchedulingTerm] {
        let added = self.added.as_ref();
        let preferred = added.and_then(|added| added.preferred_during_scheduling_ignored_during_execution.as_deref());
        preferred.unwrap_or_default()
    }
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn filter<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let (spec, enforced) = (&cycle.pod.pod.spec, self.enforced());
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity.is_some_and(|a| a.required_during_scheduling_ignored_during_execution.is_some());
        if enforced.is_none() && !required && spec.node_selector.as_ref().is_none_or(|labels| labels.is_empty()) {
            return Prepared::Skip;
        }
        Prepared::filter(Matching { cycle, enforced })
    }

    fn score(&self, cycle: Cycle<'_>, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let (own, wished) = (preferences(&cycle.pod.pod.spec), self.wished());
        if own.is_empty() && wished.is_empty() {
            return None;
        }
        let weight = |node: &&NodeInfo| {
            preferred_weight(own, &node.name, &node.labels) + preferred_weight(wished, &node.name, &node.labels)
        };
        let mut scores: Vec<i64> = nodes.iter().map(weight).collect();
        normalize(&mut scores, false);
        Some(scores)
    }

    fn helps(&self, cycle: Cycle<'_>, news: News<'_>) -> bool {
        matches!(news, News::Node(node, changes) if (changes.new || changes.labels) && lets_in(self, cycle, node))
    }
}
