//! The decision: the cluster and a pod give a node, or the reasons why there is none. Pure and deterministic.

use super::{
    cluster::{
        Cluster,
        node::{NodeInfo, Slot},
        pod::PodInfo,
    },
    framework::{Cycle, Filter, Prepared, Reasons, Verdict},
    profile::Profile,
};
use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
};

/// Fewer nodes than this are always looked at all (Kubernetes' `minFeasibleNodesToFind`).
const LEAST_NODES: usize = 100;

/// Which plugins kept a pod out: a bit for each by its place in the profile.
pub(crate) type Rejectors = u32;

/// What was decided.
#[derive(Debug)]
pub(crate) enum Decision {
    /// This node.
    Node(Slot),
    /// None.
    Nowhere(Nowhere),
}

/// Why no node will do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nowhere {
    /// How many nodes there are.
    pub(crate) nodes: usize,
    /// How many of them have each obstacle.
    pub(crate) reasons: Reasons,
    /// What was wrong before any node was looked at.
    pub(crate) at_all: Option<String>,
    pub(crate) rejectors: Rejectors,
    /// Nodes where it might do with fewer pods.
    pub(crate) full: Vec<Slot>,
}

impl fmt::Display for Nowhere {
    /// Kubernetes' sentence: `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s).`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available:", self.nodes)?;
        match &self.at_all {
            Some(why) => write!(f, " {why}."),
            None if self.reasons.is_empty() => Ok(()),
            None => write!(f, " {}.", self.reasons),
        }
    }
}

/// The filters of a profile, made ready for one pod.
pub(crate) struct Checks<'a> {
    cycle: Cycle<'a>,
    filters: Vec<(Rejectors, Box<dyn Filter + 'a>)>,
}

impl<'a> Checks<'a> {
    /// # Errors
    /// What is wrong with the pod whatever the node, and whose word that is.
    pub(crate) fn prepare(profile: &'a Profile, cycle: Cycle<'a>) -> Result<Checks<'a>, (Rejectors, String)> {
        let mut filters = Vec::new();
        for (at, plugin) in profile.filters.iter().enumerate() {
            match plugin.filter(cycle) {
                Prepared::Skip => {}
                Prepared::Reject(why) => return Err((1 << at, why)),
                Prepared::Filter(filter) => filters.push((1 << at, filter)),
            }
        }
        Ok(Checks { cycle, filters })
    }

    /// What the filters say of a node; the first that says no ends the search. Pods that room was made for there count as
    /// if they were there, unless they are less important; and the pod must fit without them as well, for they may not come.
    pub(crate) fn check(&mut self, node: &NodeInfo, why: &mut Reasons, who: &mut Rejectors) -> Verdict {
        let Cycle { cluster, pod } = self.cycle;
        if node.promised == 0 {
            return self.ask(node, why, who);
        }
        let mut expected = cluster.nominees(node.slot).filter(|other| other.priority >= pod.priority && !other.is(pod));
        if let Some(first) = expected.next() {
            let expected: Vec<_> = std::iter::once(first).chain(expected).cloned().collect();
            let mut crowded = node.clone();
            for other in &expected {
                crowded.add(other.clone());
                self.moved(other, node, 1);
            }
            let verdict = self.ask(&crowded, why, who);
            expected.iter().for_each(|other| self.moved(other, node, -1));
            if verdict != Verdict::Fits {
                return verdict;
            }
        }
        self.ask(node, why, who)
    }

    fn ask(&self, node: &NodeInfo, why: &mut Reasons, who: &mut Rejectors) -> Verdict {
        for (bit, filter) in &self.filters {
            let verdict = filter.check(node, why);
            if verdict != Verdict::Fits {
                *who |= bit;
                return verdict;
            }
        }
        Verdict::Fits
    }

    /// See [`Filter::moved`].
    pub(crate) fn moved(&mut self, pod: &PodInfo, node: &NodeInfo, by: i64) {
        self.filters.iter_mut().for_each(|(_, filter)| filter.moved(pod, node, by));
    }

    /// Whether every filter's word on a node holds until the node changes.
    pub(crate) fn judge_by_the_node_alone(&self) -> bool {
        self.filters.iter().all(|(_, filter)| filter.judges_by_the_node_alone())
    }

    /// The only nodes worth a look, and which plugins say so.
    fn only(&self) -> Option<(Vec<Slot>, Rejectors)> {
        let lists = self.filters.iter().filter_map(|(bit, filter)| Some((filter.only()?, *bit)));
        lists.reduce(|(mut slots, who), (other, bit)| {
            slots.retain(|slot| other.contains(slot));
            (slots, who | bit)
        })
    }
}

/// Decides where a pod goes. `turn` is where the last decision stopped looking: large clusters are looked at in part, each
/// decision at the next (Kubernetes' `percentageOfNodesToScore`).
pub(crate) fn decide(profile: &Profile, cluster: &Cluster, pod: &PodInfo, turn: &mut usize) -> Decision {
    let cycle = Cycle { cluster, pod };
    let order = cluster.order();
    let mut nowhere = Nowhere { nodes: order.len(), ..Nowhere::default() };
    let mut checks = match Checks::prepare(profile, cycle) {
        Ok(checks) => checks,
        Err((who, why)) => {
            (nowhere.rejectors, nowhere.at_all) = (who, Some(why));
            return Decision::Nowhere(nowhere);
        }
    };
    let (mut reasons, mut rejectors) = (Reasons::default(), 0);
    if let Some(node) = cluster.nomination(&pod.key).and_then(|slot| cluster.node(slot)).filter(|node| !node.absent)
        && checks.check(node, &mut Reasons::default(), &mut 0) == Verdict::Fits
    {
        return Decision::Node(node.slot);
    }
    let only = checks.only();
    let looked_at = only.as_ref().map_or(order, |(slots, _)| slots.as_slice());
    let enough = profile.enough(looked_at.len());
    let mut feasible = Vec::new();
    let begin = if only.is_some() || looked_at.is_empty() { 0 } else { *turn % looked_at.len() };
    let mut looked = 0;
    for slot in looked_at[begin..].iter().chain(&looked_at[..begin]) {
        let Some(node) = cluster.node(*slot).filter(|node| !node.absent) else { continue };
        looked += 1;
        match checks.check(node, &mut reasons, &mut rejectors) {
            Verdict::Fits => feasible.push(node),
            Verdict::Unschedulable => nowhere.full.push(*slot),
            Verdict::Unresolvable => {}
        }
        if feasible.len() >= enough {
            break;
        }
    }
    if only.is_none() && !looked_at.is_empty() {
        *turn = (begin + looked) % looked_at.len();
    }
    match feasible.as_slice() {
        [] => {
            if let Some((_, who)) = only {
                rejectors |= who;
                let plugins = profile.filters.iter().enumerate().filter(|(at, _)| who & (1 << at) != 0);
                let mut names: Vec<&str> = plugins.map(|(_, plugin)| plugin.name()).collect();
                names.sort_unstable();
                if order.len() > looked {
                    let others = format!("node(s) didn't satisfy plugin(s) [{}]", names.join(" "));
                    reasons.add_many(others, order.len() - looked);
                }
            }
            (nowhere.reasons, nowhere.rejectors) = (reasons, rejectors);
            Decision::Nowhere(nowhere)
        }
        [one] => Decision::Node(one.slot),
        several => Decision::Node(best(profile, cycle, several)),
    }
}

impl Profile {
    /// How many nodes that would do are enough to choose from (Kubernetes' `numFeasibleNodesToFind`).
    pub(crate) fn enough(&self, nodes: usize) -> usize {
        if nodes < LEAST_NODES {
            return nodes.max(1);
        }
        let percentage = match self.percentage {
            0 => 50usize.saturating_sub(nodes / 125).max(5),
            given => given.min(100),
        };
        (nodes * percentage / 100).max(LEAST_NODES)
    }
}

/// The node with the highest score. Of equals one is drawn by the pod's uid, so that they share the load and the same
/// question always has the same answer.
fn best(profile: &Profile, cycle: Cycle<'_>, feasible: &[&NodeInfo]) -> Slot {
    let mut totals = vec![0; feasible.len()];
    for (plugin, weight) in &profile.scores {
        if let Some(scores) = plugin.score(cycle, feasible) {
            totals.iter_mut().zip(scores).for_each(|(total, score)| *total += weight * score);
        }
    }
    let mut hasher = DefaultHasher::new();
    (cycle.pod.uid(), &cycle.pod.key.name).hash(&mut hasher);
    let seed = hasher.finish();
    let draw = |node: &NodeInfo| (node.lot ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
    let ranked = feasible.iter().zip(totals).max_by_key(|(node, total)| (*total, draw(node)));
    ranked.map_or(0, |(node, _)| node.slot)
}
