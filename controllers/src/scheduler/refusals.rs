//! What keeps pods of one kind out, remembered node by node: the next of them is judged by a look at the nodes that changed
//! since, where it would be refused by every node again, and who would have to leave a node for it is known too. Deployments
//! and Jobs make pods that are alike by the thousand (Kubernetes reuses what it found for such pods for the same reason,
//! KEP-5598). Pure.
//!
//! Only for pods that no filter judges by more than the node itself: what is elsewhere changes unseen here.

use super::{
    cluster::{
        Cluster,
        changes::Mark,
        node::{NodeInfo, Slot},
        pod::PodInfo,
    },
    decide::{Checks, Nowhere, Rejectors},
    framework::{Cycle, Reasons, Verdict},
    preempt::Outcome,
    profile::Profile,
};
use std::{
    cell::OnceCell,
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// How many kinds are remembered.
const KINDS: usize = 4;

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusals {
    /// The one that was used last comes first.
    kinds: VecDeque<Kind>,
    /// The kind that was refused last: the first of its kind may be the only one.
    last: Option<u64>,
}

/// Pods that are alike ([`PodInfo::signature`]), and what every node has against them.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    signature: u64,
    seen: Mark,
    nodes: HashMap<Slot, Refusal>,
    reasons: Reasons,
    /// How many nodes' refusals each plugin has part in.
    rejectors: [usize; Rejectors::BITS as usize],
}

/// What one node has against a kind of pods.
#[derive(Clone, Debug)]
struct Refusal {
    verdict: Verdict,
    reasons: Reasons,
    who: Rejectors,
    /// Who would have to leave; worked out when first asked for.
    victims: OnceCell<Arc<Outcome>>,
}

impl Refusals {
    /// Why there is no node for the pod, if pods like it are known to have none and still have none.
    pub(crate) fn recall(
        &mut self,
        profile: &Profile,
        cluster: &Cluster,
        pod: &PodInfo,
        turn: usize,
    ) -> Option<Nowhere> {
        // A pod that a node was promised to does not count against itself: it is like no other.
        if self.kinds.is_empty() || cluster.nomination(&pod.key).is_some() {
            return None;
        }
        let signature = pod.signature();
        let at = self.kinds.iter().position(|kind| kind.signature == signature)?;
        let mut kind = self.kinds.remove(at)?;
        kind.follow(profile, Cycle { cluster, pod })?;
        let nowhere = kind.nowhere(cluster.order(), turn);
        self.kinds.push_front(kind);
        nowhere
    }

    /// The pod was just refused by every node.
    pub(crate) fn learn(&mut self, profile: &Profile, cluster: &Cluster, pod: &PodInfo) {
        let signature = pod.signature();
        if self.last.replace(signature) != Some(signature) || cluster.nomination(&pod.key).is_some() {
            return;
        }
        if let Some(kind) = Kind::of(profile, Cycle { cluster, pod }, signature) {
            self.kinds.push_front(kind);
            self.kinds.truncate(KINDS);
        }
    }

    /// What is known of the kind that was recalled or learnt last, if the pod is of it.
    pub(crate) fn known(&self, cluster: &Cluster, pod: &PodInfo) -> Option<&Kind> {
        let kind = self.kinds.front().filter(|kind| kind.seen == cluster.changes().mark())?;
        (cluster.nomination(&pod.key).is_none() && kind.signature == pod.signature()).then_some(kind)
    }
}

#[cfg(test)]
impl Refusals {
    /// How many kinds are remembered.
    pub(crate) fn kinds(&self) -> usize {
        self.kinds.len()
    }
}

/// The filters, if all of them judge by the node alone.
fn checks<'a>(profile: &'a Profile, cycle: Cycle<'a>) -> Option<Checks<'a>> {
    Checks::prepare(profile, cycle).ok().filter(Checks::judge_by_the_node_alone)
}

impl Kind {
    fn of(profile: &Profile, cycle: Cycle<'_>, signature: u64) -> Option<Kind> {
        let mut checks = checks(profile, cycle)?;
        let mut kind = Kind {
            signature,
            seen: cycle.cluster.changes().mark(),
            nodes: HashMap::new(),
            reasons: Reasons::default(),
            rejectors: [0; Rejectors::BITS as usize],
        };
        let refused = cycle.cluster.nodes().all(|node| kind.is_refused_by(node, &mut checks));
        refused.then_some(kind)
    }

    /// Looks at the nodes that changed; `None` when one of them would do, or when too much has changed.
    fn follow(&mut self, profile: &Profile, cycle: Cycle<'_>) -> Option<()> {
        let (cluster, mut checks) = (cycle.cluster, checks(profile, cycle)?);
        for slot in cluster.changes().since(self.seen)? {
            self.forget(slot);
            let node = cluster.node(slot).filter(|node| !node.absent);
            if node.is_some_and(|node| !self.is_refused_by(node, &mut checks)) {
                return None;
            }
        }
        self.seen = cluster.changes().mark();
        Some(())
    }

    fn is_refused_by(&mut self, node: &NodeInfo, checks: &mut Checks<'_>) -> bool {
        let (mut reasons, mut who) = (Reasons::default(), 0);
        let verdict = checks.check(node, &mut reasons, &mut who);
        if verdict == Verdict::Fits {
            return false;
        }
        self.reasons.merge(reasons.clone());
        self.rejectors.iter_mut().enumerate().for_each(|(at, count)| *count += usize::from(who & (1 << at) != 0));
        self.nodes.insert(node.slot, Refusal { verdict, reasons, who, victims: OnceCell::new() });
        true
    }

    fn forget(&mut self, slot: Slot) {
        if let Some(Refusal { reasons, who, .. }) = self.nodes.remove(&slot) {
            self.reasons.take_out(&reasons);
            self.rejectors.iter_mut().enumerate().for_each(|(at, count)| *count -= usize::from(who & (1 << at) != 0));
        }
    }

    /// As [`decide`](super::decide::decide) says it that looks at all nodes from `turn` on.
    fn nowhere(&self, order: &[Slot], turn: usize) -> Option<Nowhere> {
        if order.is_empty() || order.len() != self.nodes.len() {
            return None;
        }
        let (later, first) = order.split_at(turn % order.len());
        let in_turn = first.iter().chain(later).copied();
        let full = |slot: &Slot| self.nodes.get(slot).is_some_and(|held| held.verdict == Verdict::Unschedulable);
        let bits = self.rejectors.iter().enumerate().filter(|(_, count)| **count > 0);
        Some(Nowhere {
            nodes: order.len(),
            reasons: self.reasons.clone(),
            at_all: None,
            rejectors: bits.fold(0, |bits, (at, _)| bits | 1 << at),
            full: in_turn.filter(full).collect(),
        })
    }

    /// Who would have to leave the node for a pod of this kind, as `find` finds it.
    pub(crate) fn victims(&self, slot: Slot, find: impl FnOnce() -> Outcome) -> Arc<Outcome> {
        match self.nodes.get(&slot) {
            Some(refusal) => refusal.victims.get_or_init(|| Arc::new(find())).clone(),
            None => Arc::new(find()),
        }
    }
}
