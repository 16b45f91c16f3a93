//! What a plugin is: a rule about where a pod may or should go. Each lives in one file of `plugins/` and has one line in its
//! table. Pure: a plugin reads the cluster and the pod, and nothing else.

use super::cluster::{
    Asks, Cluster,
    node::{NodeChanges, NodeInfo, Slot},
    pod::PodInfo,
};
use std::{borrow::Cow, fmt};

/// The highest score of a node, before weights.
pub(crate) const MAX_SCORE: i64 = 100;

/// What one decision is about.
#[derive(Clone, Copy)]
pub(crate) struct Cycle<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) pod: &'a PodInfo,
}

/// Why a node is no place for a pod, in Kubernetes' words.
pub(crate) type Reason = Cow<'static, str>;

/// Reasons, and how many nodes have each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reasons(Vec<(Reason, usize)>);

impl Reasons {
    pub(crate) fn add(&mut self, reason: impl Into<Reason>) {
        self.add_many(reason, 1);
    }

    pub(crate) fn add_many(&mut self, reason: impl Into<Reason>, count: usize) {
        let reason = reason.into();
        match self.0.iter_mut().find(|(held, _)| *held == reason) {
            Some((_, held)) => *held += count,
            None => self.0.push((reason, count)),
        }
    }

    pub(crate) fn merge(&mut self, other: Reasons) {
        other.0.into_iter().for_each(|(reason, count)| self.add_many(reason, count));
    }

    /// Takes back what was merged.
    pub(crate) fn take_out(&mut self, other: &Reasons) {
        for (reason, count) in &other.0 {
            if let Some((_, held)) = self.0.iter_mut().find(|(held, _)| held == reason) {
                *held = held.saturating_sub(*count);
            }
        }
        self.0.retain(|(_, count)| *count > 0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Reasons {
    /// `1 Insufficient cpu, 2 node(s) had untolerated taint(s)`, in the order of the text, counts included, as Kubernetes does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut texts: Vec<String> = self.0.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        texts.sort();
        f.write_str(&texts.join(", "))
    }
}

/// What a filter says of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// The pod may go there.
    Fits,
    /// Not as things are; with fewer pods there it might.
    Unschedulable,
    /// Not, whoever leaves.
    Unresolvable,
}

impl Verdict {
    /// Fits, or does not for a reason that pods on the node have to do with.
    pub(crate) fn unless(obstacle: bool, why: &mut Reasons, reason: &'static str) -> Verdict {
        if obstacle {
            why.add(reason);
            return Verdict::Unschedulable;
        }
        Verdict::Fits
    }

    /// As [`Verdict::unless`], for reasons that pods have nothing to do with.
    pub(crate) fn never_if(obstacle: bool, why: &mut Reasons, reason: &'static str) -> Verdict {
        if obstacle {
            why.add(reason);
            return Verdict::Unresolvable;
        }
        Verdict::Fits
    }
}

/// A filter made ready for one pod.
pub(crate) trait Filter {
    /// What it says of a node; reasons go into `why`.
    fn check(&self, node: &NodeInfo, why: &mut Reasons) -> Verdict;

    /// Something is tried out: a pod is on the node besides (`by` is 1) or has left it (-1).
    fn moved(&mut self, _pod: &PodInfo, _node: &NodeInfo, _by: i64) {}

    /// Whether it judges by the pod and the node alone, so that its word holds until one of them changes.
    fn judges_by_the_node_alone(&self) -> bool {
        false
    }

    /// The only nodes that are worth a look, if they are few.
    fn only(&self) -> Option<Vec<Slot>> {
        None
    }
}

/// What a plugin's filter says before any node is looked at.
pub(crate) enum Prepared<'a> {
    /// It has nothing to say about this pod.
    Skip,
    /// No node will do, and why.
    Reject(String),
    /// It looks at each node.
    Filter(Box<dyn Filter + 'a>),
}

impl<'a> Prepared<'a> {
    pub(crate) fn filter(filter: impl Filter + 'a) -> Prepared<'a> {
        Prepared::Filter(Box::new(filter))
    }
}

/// Something changed that may let pods in.
#[derive(Clone, Copy)]
pub(crate) enum News<'a> {
    /// A node came or changed.
    Node(&'a NodeInfo, NodeChanges),
    /// A pod left its node, or takes less of it.
    PodGone(&'a NodeInfo, &'a PodInfo),
    /// A pod came to a node, or changed there.
    PodCame(&'a PodInfo),
    /// A claim, a volume, a class or a node's limits of volumes.
    Storage,
    /// Labels of a namespace.
    Namespace,
}

/// A rule. What it does not override it has nothing to say about.
pub(crate) trait Plugin: Send + Sync + fmt::Debug {
    /// Its name in Kubernetes' scheduler configuration.
    fn name(&self) -> &'static str;

    /// What it will want to know of the cluster about this pod.
    fn asks(&self, _cycle: Cycle<'_>, _asks: &mut Asks) {}

    /// Where the pod may go.
    fn filter<'a>(&'a self, _cycle: Cycle<'a>) -> Prepared<'a> {
        Prepared::Skip
    }

    /// Where the pod should go: a number from 0 to 100 for each node; `None` when all are the same to it.
    fn score(&self, _cycle: Cycle<'_>, _nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        None
    }

    /// Whether the news may let a pod in that this plugin has kept out (KEP-4247).
    fn helps(&self, cycle: Cycle<'_>, news: News<'_>) -> bool;
}

/// Whether the plugin has nothing against the pod on that node, as far as can be told from the node alone.
pub(crate) fn lets_in(plugin: &dyn Plugin, cycle: Cycle<'_>, node: &NodeInfo) -> bool {
    match plugin.filter(cycle) {
        Prepared::Skip => true,
        Prepared::Reject(_) => false,
        Prepared::Filter(filter) => filter.check(node, &mut Reasons::default()) == Verdict::Fits,
    }
}

/// Scales scores so that the highest is 100; with `reverse` the lowest is best (Kubernetes' `DefaultNormalizeScore`).
pub(crate) fn normalize(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if max == 0 { 0 } else { MAX_SCORE * *score / max };
        *score = if reverse { MAX_SCORE - scaled } else { scaled };
    }
}
