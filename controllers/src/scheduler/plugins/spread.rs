//! `PodTopologySpread`: pods of a kind spread evenly over zones, nodes, or whatever else (KEP-895).

use crate::{
    scheduler::{
        cluster::{
            Asks,
            affinity::required_matches,
            census::Question,
            node::NodeInfo,
            pod::PodInfo,
            terms::{Constraint, Scope, Selector},
            topology::{NOWHERE, Topology},
        },
        framework::{Cycle, Filter, MAX_SCORE, News, Plugin, Prepared, Reasons, Verdict},
    },
    taints::{NO_EXECUTE, NO_SCHEDULE, untolerated},
};
use std::{borrow::Cow, collections::BTreeMap};

const HOST_NAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// `PodTopologySpreadArgs`: what holds for pods that say nothing, of a service or a controller.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum SpreadArgs {
    /// Kubernetes' own: rather over nodes (skew 3) and zones (skew 5).
    #[default]
    System,
    /// These, whose selectors are taken from the service and the controller.
    List(Vec<Constraint>),
}

impl SpreadArgs {
    fn defaults(&self) -> Vec<Constraint> {
        let wish = |topology_key: &str, max_skew| Constraint {
            topology_key: topology_key.to_owned(),
            max_skew,
            min_domains: 1,
            must_hold: false,
            selector: Selector::default(),
            honors_affinity: true,
            honors_taints: false,
        };
        match self {
            SpreadArgs::System => vec![wish(HOST_NAME, 3), wish(ZONE, 5)],
            SpreadArgs::List(list) => list.clone(),
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Spread(pub(crate) SpreadArgs);

impl Spread {
    /// The constraints of a pod, its own or by default, and whether a node must have the labels of all to count.
    fn constraints<'a>(&self, cycle: Cycle<'a>) -> (Cow<'a, [Constraint]>, bool) {
        if !cycle.pod.company.spread.is_empty() {
            return (Cow::Borrowed(&cycle.pod.company.spread), true);
        }
        let selector = cycle.cluster.owners.selector_of(cycle.pod);
        let Some(selector) = selector else { return (Cow::Borrowed(&[]), true) };
        let mut defaults = self.0.defaults();
        defaults.iter_mut().for_each(|constraint| constraint.selector = selector.clone());
        (Cow::Owned(defaults), self.0 != SpreadArgs::System)
    }
}

fn question(pod: &PodInfo, constraint: &Constraint) -> Question {
    Question { all: vec![Scope::within(&pod.key.namespace, constraint.selector.clone())], staying: true }
}

/// Whether the node counts for the constraint (KEP-3094).
fn counts(pod: &PodInfo, constraint: &Constraint, node: &NodeInfo) -> bool {
    (!constraint.honors_affinity || required_matches(&pod.pod.spec, &node.name, &node.labels))
        && (!constraint.honors_taints
            || untolerated(&node.taints, pod.tolerations(), &[NO_SCHEDULE, NO_EXECUTE]).is_none())
}

/// Whether every node counts for the constraint.
fn counts_all(pod: &PodInfo, constraint: &Constraint) -> bool {
    let spec = &pod.pod.spec;
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let picky = affinity.is_some_and(|a| a.required_during_scheduling_ignored_during_execution.is_some())
        || spec.node_selector.as_ref().is_some_and(|labels| !labels.is_empty());
    !constraint.honors_taints && (!constraint.honors_affinity || !picky)
}

/// One constraint with the pods that count.
struct Rule<'a> {
    constraint: Constraint,
    topology: Option<&'a Topology>,
    /// Pods by place; `None` where no node counts.
    at: Vec<Option<i64>>,
    /// How many places have how many pods: the least is always at hand.
    places: BTreeMap<i64, usize>,
    /// The pod itself counts where it goes.
    itself: i64,
}

impl Rule<'_> {
    fn place(&self, node: &NodeInfo) -> usize {
        self.topology.map_or(NOWHERE, |topology| topology.place(node.slot)) as usize
    }

    fn least(&self) -> i64 {
        let domains: usize = self.places.values().sum();
        if (domains as i64) < self.constraint.min_domains {
            return 0;
        }
        self.places.keys().next().copied().unwrap_or(0)
    }

    fn add(&mut self, place: usize, by: i64) {
        let Some(count) = self.at.get_mut(place).and_then(Option::as_mut) else { return };
        if let Some(held) = self.places.get_mut(count) {
            *held -= 1;
            if *held == 0 {
                self.places.remove(count);
            }
        }
        *count += by;
        *self.places.entry(*count).or_default() += 1;
    }
}

struct Rules<'a> {
    cycle: Cycle<'a>,
    all: Vec<Rule<'a>>,
}

impl Rules<'_> {
    fn has_all_keys(&self, node: &NodeInfo) -> bool {
        self.all.iter().all(|rule| rule.place(node) != NOWHERE as usize)
    }
}

impl Filter for Rules<'_> {
    fn check(&self, node: &NodeInfo, why: &mut Reasons) -> Verdict {
        for rule in &self.all {
            let place = rule.place(node);
            if place == NOWHERE as usize {
                let missing = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Verdict::never_if(true, why, missing);
            }
            let there = rule.at[place].unwrap_or(0);
            if there + rule.itself - rule.least() > rule.constraint.max_skew {
                return Verdict::unless(true, why, "node(s) didn't match pod topology spread constraints");
            }
        }
        Verdict::Fits
    }

    fn moved(&mut self, pod: &PodInfo, node: &NodeInfo, by: i64) {
        let (own, namespaces) = (self.cycle.pod, self.cycle.cluster.namespaces());
        if !self.has_all_keys(node) {
            return;
        }
        for rule in &mut self.all {
            if question(own, &rule.constraint).matches(pod, namespaces) && counts(own, &rule.constraint, node) {
                let place = rule.place(node);
                rule.add(place, by);
            }
        }
    }
}

impl Plugin for Spread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn asks(&self, cycle: Cycle<'_>, asks: &mut Asks) {
        for constraint in self.constraints(cycle).0.iter() {
            asks.topologies.push(constraint.topology_key.clone());
            asks.questions.push(question(cycle.pod, constraint));
        }
    }

    fn filter<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let Cycle { cluster, pod } = cycle;
        let (constraints, _) = self.constraints(cycle);
        let hard: Vec<&Constraint> = constraints.iter().filter(|constraint| constraint.must_hold).collect();
        if hard.is_empty() {
            return Prepared::Skip;
        }
        let rule = |constraint: &Constraint| {
            let topology = cluster.topologies().get(&constraint.topology_key);
            let own = question(pod, constraint);
            Rule {
                at: vec![None; topology.map_or(1, Topology::size)],
                topology,
                places: BTreeMap::new(),
                // As on Kubernetes: labels decide, also for a pod that is being deleted.
                itself: i64::from(
                    own.all.iter().all(|s| s.matches(&pod.key.namespace, &pod.labels, cluster.namespaces())),
                ),
                constraint: constraint.clone(),
            }
        };
        let mut rules = Rules { cycle, all: hard.into_iter().map(rule).collect() };
        let single = rules.all.len() == 1;
        let keyed: Vec<bool> = match single {
            true => Vec::new(),
            false => {
                let mut keyed = Vec::new();
                for node in cluster.nodes() {
                    if keyed.len() <= node.slot as usize {
                        keyed.resize(node.slot as usize + 1, false);
                    }
                    keyed[node.slot as usize] = rules.has_all_keys(node);
                }
                keyed
            }
        };
        let has_keys = |slot: u32| single || keyed.get(slot as usize).copied().unwrap_or(false);
        for rule in &mut rules.all {
            let Some(topology) = rule.topology else { continue };
            let all = counts_all(pod, &rule.constraint);
            let there = |slot: u32| {
                let node = || cluster.node(slot).filter(|node| !node.absent);
                has_keys(slot) && (all || node().is_some_and(|node| counts(pod, &rule.constraint, node)))
            };
            if single && all {
                for place in 1..topology.size() {
                    rule.at[place] = (topology.nodes_at(place as u32) > 0).then_some(0);
                }
            } else {
                for node in cluster.nodes().filter(|node| there(node.slot)) {
                    rule.at[topology.place(node.slot) as usize] = Some(0);
                }
                rule.at[NOWHERE as usize] = None;
            }
            for (slot, count) in cluster.census().answer(&question(pod, &rule.constraint)).into_iter().flatten() {
                if there(*slot)
                    && let Some(at) = rule.at[topology.place(*slot) as usize].as_mut()
                {
                    *at += count;
                }
            }
            for count in rule.at.iter().flatten() {
                *rule.places.entry(*count).or_default() += 1;
            }
        }
        Prepared::filter(rules)
    }

    fn score(&self, cycle: Cycle<'_>, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let Cycle { cluster, pod } = cycle;
        let (constraints, all_keys) = self.constraints(cycle);
        let soft: Vec<(&Constraint, Option<&Topology>)> = constraints
            .iter()
            .filter(|constraint| !constraint.must_hold)
            .map(|constraint| (constraint, cluster.topologies().get(&constraint.topology_key)))
            .collect();
        if soft.is_empty() {
            return None;
        }
        let place = |topology: &Option<&Topology>, slot| topology.map_or(NOWHERE, |topology| topology.place(slot));
        let keyed = |slot: u32| soft.iter().all(|(_, topology)| place(topology, slot) != NOWHERE);
        // A node without one of the labels gets the lowest score.
        let counted: Vec<bool> = nodes.iter().map(|node| !all_keys || keyed(node.slot)).collect();
        let size = counted.iter().filter(|counted| **counted).count();
        let mut sums = vec![0.0; nodes.len()];
        for (constraint, topology) in &soft {
            let Some(answer) = cluster.census().answer(&question(pod, constraint)) else { continue };
            let by_host = constraint.topology_key == HOST_NAME;
            let mut at: Vec<Option<i64>> = vec![None; topology.map_or(1, Topology::size)];
            let mut places = 0;
            for (node, _) in nodes.iter().zip(&counted).filter(|(_, counted)| **counted) {
                let held = &mut at[place(topology, node.slot) as usize];
                places += usize::from(held.is_none());
                *held = Some(0);
            }
            at[NOWHERE as usize] = None;
            let everywhere = counts_all(pod, constraint);
            for (slot, count) in answer {
                let node = || cluster.node(*slot).filter(|node| !node.absent);
                let there = (!all_keys || keyed(*slot))
                    && (by_host || everywhere || node().is_some_and(|node| counts(pod, constraint, node)));
                if there && let Some(held) = at[place(topology, *slot) as usize].as_mut() {
                    *held += count;
                }
            }
            // The more places there are, the less one pod more in one of them weighs.
            let weight = ((if by_host { size } else { places } + 2) as f64).ln();
            for (sum, node) in sums.iter_mut().zip(nodes) {
                if let Some(count) = at[place(topology, node.slot) as usize] {
                    *sum += count as f64 * weight + (constraint.max_skew - 1) as f64;
                }
            }
        }
        let sums: Vec<i64> = sums.into_iter().map(|sum| sum.round() as i64).collect();
        let those = || sums.iter().zip(&counted).filter(|(_, counted)| **counted).map(|(sum, _)| *sum);
        let (min, max) = (those().min().unwrap_or(0), those().max().unwrap_or(0));
        let score = |(sum, counted): (&i64, &bool)| match (counted, max) {
            (false, _) => 0,
            (true, 0) => MAX_SCORE,
            (true, max) => MAX_SCORE * (max + min - sum) / max,
        };
        Some(sums.iter().zip(&counted).map(score).collect())
    }

    fn helps(&self, cycle: Cycle<'_>, news: News<'_>) -> bool {
        let (constraints, _) = self.constraints(cycle);
        let mut hard = constraints.iter().filter(|constraint| constraint.must_hold);
        match news {
            News::Node(_, changes) => changes.new || changes.labels || changes.taints,
            News::PodCame(pod) | News::PodGone(_, pod) => hard.any(|constraint| {
                pod.key.namespace == cycle.pod.key.namespace && constraint.selector.matches(&pod.labels)
            }),
            News::Storage | News::Namespace => false,
        }
    }
}
