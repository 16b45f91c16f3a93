//! Preemption: which pods of less importance leave, so that one can come (Kubernetes' `DefaultPreemption`). Pure.

use super::{
    cluster::{
        Budget, Cluster,
        node::{NodeInfo, Slot},
        pod::PodInfo,
    },
    decide::{Checks, Nowhere},
    framework::{Cycle, Reasons, Verdict},
    profile::Profile,
    refusals::Kind,
};
use crate::{Key, selector};
use jiff::Timestamp;
use std::{
    cmp::Reverse,
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// `DefaultPreemptionArgs`: how many nodes are tried before the best of those found is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PreemptionArgs {
    /// Of the nodes.
    pub(crate) percentage: usize,
    /// At least.
    pub(crate) absolute: usize,
}

impl Default for PreemptionArgs {
    fn default() -> Self {
        PreemptionArgs { percentage: 10, absolute: 100 }
    }
}

/// What preemption came to.
#[derive(Debug)]
pub(crate) enum Preemption {
    /// The pod gets the node once these have left.
    Node(Slot, Vec<Arc<PodInfo>>),
    /// It does not help; Kubernetes' words for why.
    No(String),
    /// Room is being made already.
    Wait(String),
}

/// Who would have to leave a node, or why nobody's leaving helps.
pub(crate) type Outcome = Result<Victims, Failed>;

/// Who would have to leave a node.
#[derive(Debug)]
pub(crate) struct Victims {
    /// The more important first, those protected by a budget before the others.
    pods: Vec<Arc<PodInfo>>,
    /// How many of them no budget allows.
    violations: usize,
    cost: Cost,
}

/// What makes one node better than another, in Kubernetes' order: fewer violated budgets, a less important most important
/// victim, a smaller sum of priorities, fewer victims, most important victims that started later.
type Cost = (usize, i32, i64, usize, Reverse<Timestamp>);

impl Victims {
    fn new(pods: Vec<Arc<PodInfo>>, violations: usize) -> Victims {
        let highest = pods.iter().map(|pod| pod.priority).max().unwrap_or(i32::MIN);
        // Priorities below zero must not make a node with more victims look better.
        let sum = pods.iter().map(|pod| i64::from(pod.priority) + i64::from(i32::MAX) + 1).sum();
        let earliest = pods.iter().filter(|pod| pod.priority == highest).map(|pod| pod.started()).min();
        let cost = (violations, highest, sum, pods.len(), Reverse(earliest.unwrap_or(Timestamp::MAX)));
        Victims { pods, violations, cost }
    }
}

/// Looks for pods whose leaving would let this one in. `known` is what was found for pods like it.
pub(crate) fn preempt(
    profile: &Profile,
    args: PreemptionArgs,
    cluster: &Cluster,
    pod: &PodInfo,
    nowhere: &Nowhere,
    known: Option<&Kind>,
) -> Preemption {
    if pod.pod.spec.preemption_policy.as_deref() == Some("Never") {
        return Preemption::No("not eligible due to preemptionPolicy=Never.".to_owned());
    }
    let nominated = cluster.nomination(&pod.key).and_then(|slot| cluster.node(slot));
    if let Some(node) = nominated.filter(|node| nowhere.full.contains(&node.slot))
        && node.pods.iter().any(|other| other.leaving && other.priority < pod.priority)
    {
        return Preemption::Wait("not eligible due to a terminating pod on the nominated node.".to_owned());
    }
    let mut failed = Reasons::default();
    let hopeless = nowhere.nodes - nowhere.full.len();
    if hopeless > 0 {
        failed.add_many("Preemption is not helpful for scheduling", hopeless);
    }
    let cycle = Cycle { cluster, pod };
    // Budgets are of the whole cluster: what would violate them is worked out each time.
    let known = known.filter(|_| cluster.budgets.is_empty());
    let mut best: Option<(Arc<Outcome>, Cost, Slot)> = None;
    if let Ok(mut checks) = Checks::prepare(profile, cycle) {
        let enough = (nowhere.nodes * args.percentage / 100).max(args.absolute);
        let (mut found, mut harmless) = (0, 0);
        let begin = offset(pod, nowhere.full.len());
        for slot in nowhere.full[begin..].iter().chain(&nowhere.full[..begin]) {
            let Some(node) = cluster.node(*slot) else { continue };
            let mut find = || victims(&mut checks, cycle, node, &cluster.budgets);
            let outcome = match known {
                Some(kind) => kind.victims(*slot, find),
                None => Arc::new(find()),
            };
            match &*outcome {
                Ok(victims) => {
                    found += 1;
                    harmless += usize::from(victims.violations == 0);
                    if best.as_ref().is_none_or(|(_, least, _)| victims.cost < *least) {
                        best = Some((outcome.clone(), victims.cost, *slot));
                    }
                    if found >= enough && harmless > 0 {
                        break;
                    }
                }
                Err(Failed::NoVictims) => failed.add("No preemption victims found for incoming pod"),
                Err(Failed::StillNot(reasons)) => failed.merge(reasons.clone()),
            }
        }
    }
    match best {
        Some((outcome, _, slot)) => {
            let pods = outcome.as_ref().as_ref().map(|victims| victims.pods.clone());
            Preemption::Node(slot, pods.unwrap_or_default())
        }
        None => Preemption::No(Nowhere { nodes: nowhere.nodes, reasons: failed, ..Nowhere::default() }.to_string()),
    }
}

/// Where to begin: not all pods look at the same nodes first.
fn offset(pod: &PodInfo, nodes: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    (pod.uid(), &pod.key.name).hash(&mut hasher);
    (hasher.finish() % nodes.max(1) as u64) as usize
}

#[derive(Debug)]
pub(crate) enum Failed {
    /// Nobody there is less important.
    NoVictims,
    /// It would not fit even then.
    StillNot(Reasons),
}

/// The fewest pods that would have to leave the node: first all less important ones go, then each comes back that can, the
/// protected and more important ones first.
fn victims(checks: &mut Checks<'_>, cycle: Cycle<'_>, node: &NodeInfo, budgets: &BTreeMap<Key, Budget>) -> Outcome {
    let mut lower: Vec<Arc<PodInfo>> =
        node.pods.iter().filter(|other| other.priority < cycle.pod.priority).cloned().collect();
    if lower.is_empty() {
        return Err(Failed::NoVictims);
    }
    let mut trial = node.clone();
    for other in &lower {
        trial.remove(other);
        checks.moved(other, node, -1);
    }
    let mut why = Reasons::default();
    if checks.check(&trial, &mut why, &mut 0) != Verdict::Fits {
        lower.iter().for_each(|other| checks.moved(other, node, 1));
        return Err(Failed::StillNot(why));
    }
    lower.sort_by_key(|other| (Reverse(other.priority), other.started(), other.key.clone()));
    let (protected, free) = by_budgets(&lower, budgets);
    let (mut victims, mut violations) = (Vec::new(), 0);
    for (other, violates) in
        protected.into_iter().map(|pod| (pod, true)).chain(free.into_iter().map(|pod| (pod, false)))
    {
        trial.add(other.clone());
        checks.moved(&other, node, 1);
        if checks.check(&trial, &mut Reasons::default(), &mut 0) != Verdict::Fits {
            trial.remove(&other);
            checks.moved(&other, node, -1);
            violations += usize::from(violates);
            victims.push(other);
        }
    }
    victims.iter().for_each(|other| checks.moved(other, node, 1));
    Ok(Victims::new(victims, violations))
}

/// Parts pods into those whose leaving would violate a budget, and the others.
fn by_budgets(pods: &[Arc<PodInfo>], budgets: &BTreeMap<Key, Budget>) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut left: Vec<i64> = budgets.values().map(|budget| budget.allowed).collect();
    pods.iter().cloned().partition(|pod| {
        let mut violates = false;
        for (left, (key, budget)) in left.iter_mut().zip(budgets) {
            let Some(wanted) = &budget.selector else { continue };
            let protects = key.namespace == pod.key.namespace
                && !pod.labels.is_empty()
                && selector::matches(wanted, Some(&pod.labels))
                && !budget.disrupted.iter().any(|name| **name == *pod.key.name);
            if protects {
                *left -= 1;
                violates |= *left < 0;
            }
        }
        violates
    })
}
