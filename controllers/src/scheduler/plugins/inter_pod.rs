//! `InterPodAffinity`: pods that want to be near others or apart from them, and others that want it of them.

use crate::scheduler::{
    cluster::{
        Asks,
        census::{ByNode, Question, Wish},
        node::NodeInfo,
        pod::PodInfo,
        terms::Term,
        topology::{NOWHERE, Topology},
    },
    framework::{Cycle, Filter, MAX_SCORE, News, Plugin, Prepared, Reasons, Verdict},
};
use std::{collections::BTreeMap, sync::Arc};

/// `InterPodAffinityArgs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InterPodArgs {
    /// How welcome a pod is to one that requires it near (`hardPodAffinityWeight`).
    pub(crate) hard_weight: i64,
    /// What pods on nodes merely prefer does not count for pods that prefer nothing themselves.
    pub(crate) ignore_preferences_of_others: bool,
}

impl Default for InterPodArgs {
    fn default() -> Self {
        InterPodArgs { hard_weight: 1, ignore_preferences_of_others: false }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct InterPodAffinity(pub(crate) InterPodArgs);

/// Pods by place.
struct Counts<'a> {
    topology: Option<&'a Topology>,
    at: Vec<i64>,
    total: i64,
}

impl<'a> Counts<'a> {
    fn none(cycle: Cycle<'a>, key: &str) -> Counts<'a> {
        let topology = cycle.cluster.topologies().get(key);
        Counts { topology, at: vec![0; topology.map_or(1, Topology::size)], total: 0 }
    }

    fn of(cycle: Cycle<'a>, key: &str, by_node: Option<&ByNode>) -> Counts<'a> {
        let mut counts = Counts::none(cycle, key);
        by_node.into_iter().flatten().for_each(|(slot, count)| counts.add(*slot, *count));
        counts
    }

    fn add(&mut self, slot: u32, by: i64) {
        let place = self.place(slot);
        if place != NOWHERE as usize {
            self.at[place] += by;
            self.total += by;
        }
    }

    fn place(&self, slot: u32) -> usize {
        self.topology.map_or(NOWHERE, |topology| topology.place(slot)) as usize
    }

    /// How many there are where the node is; `None` when it is nowhere.
    fn with(&self, node: &NodeInfo) -> Option<i64> {
        let place = self.place(node.slot);
        (place != NOWHERE as usize).then(|| self.at[place])
    }
}

/// What must hold for one pod.
struct Rules<'a> {
    cycle: Cycle<'a>,
    near: Vec<Counts<'a>>,
    apart: Vec<Counts<'a>>,
    /// Pods that do not want this one, by topology key.
    unwelcome: Vec<(&'a str, Counts<'a>)>,
    /// Its own affinity means pods like itself: the first of them has nobody to be near to.
    first_of_its_kind: bool,
}

impl Filter for Rules<'_> {
    fn check(&self, node: &NodeInfo, why: &mut Reasons) -> Verdict {
        let mut present = true;
        for counts in &self.near {
            match counts.with(node) {
                None => return Verdict::never_if(true, why, "node(s) didn't match pod affinity rules"),
                Some(count) => present &= count > 0,
            }
        }
        let first = self.first_of_its_kind && self.near.iter().all(|counts| counts.total == 0);
        if !present && !first {
            return Verdict::never_if(true, why, "node(s) didn't match pod affinity rules");
        }
        if self.apart.iter().any(|counts| counts.with(node).is_some_and(|count| count > 0)) {
            return Verdict::unless(true, why, "node(s) didn't match pod anti-affinity rules");
        }
        let unwelcome = self.unwelcome.iter().any(|(_, counts)| counts.with(node).is_some_and(|count| count > 0));
        Verdict::unless(unwelcome, why, "node(s) didn't satisfy existing pods anti-affinity rules")
    }

    fn moved(&mut self, pod: &PodInfo, node: &NodeInfo, by: i64) {
        let (own, namespaces) = (self.cycle.pod, self.cycle.cluster.namespaces());
        let means = |term: &Term, pod: &PodInfo| term.scope.matches(&pod.key.namespace, &pod.labels, namespaces);
        if !own.company.near.is_empty() && own.company.near.iter().all(|term| means(term, pod)) {
            self.near.iter_mut().for_each(|counts| counts.add(node.slot, by));
        }
        for (term, counts) in own.company.apart.iter().zip(&mut self.apart) {
            if means(term, pod) {
                counts.add(node.slot, by);
            }
        }
        for term in pod.company.apart.iter().filter(|term| means(term, own)) {
            let known = self.unwelcome.iter().position(|(key, _)| *key == term.topology_key);
            if let Some(at) = known {
                self.unwelcome[at].1.add(node.slot, by);
            }
        }
    }
}

/// All terms of a required affinity mean the same pod.
fn near_question(pod: &PodInfo) -> Question {
    Question { all: pod.company.near.iter().map(|term| term.scope.clone()).collect(), staying: false }
}

fn question(term: &Term) -> Question {
    Question { all: vec![term.scope.clone()], staying: false }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn asks(&self, cycle: Cycle<'_>, asks: &mut Asks) {
        let company = &cycle.pod.company;
        if !company.near.is_empty() {
            asks.questions.push(near_question(cycle.pod));
        }
        let preferred = company.preferred.iter().map(|(_, term)| term);
        asks.questions.extend(company.apart.iter().chain(preferred.clone()).map(|term| question(term)));
        let own = company.near.iter().chain(&company.apart).chain(preferred).map(|term| &term.topology_key);
        let theirs = cycle.cluster.census().wishes_about(cycle.pod, cycle.cluster.namespaces());
        asks.topologies.extend(own.chain(theirs.map(|(_, term, _)| &term.topology_key)).cloned());
        let nominees = cycle.cluster.nominated_loners().flat_map(|pod| &pod.company.apart);
        asks.topologies.extend(nominees.map(|term| term.topology_key.clone()));
    }

    fn filter<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let Cycle { cluster, pod } = cycle;
        let (census, company) = (cluster.census(), &pod.company);
        let mut unwelcome: BTreeMap<&str, Counts<'_>> = BTreeMap::new();
        for (wish, term, by_node) in census.wishes_about(pod, cluster.namespaces()) {
            if wish == Wish::Apart {
                let counts =
                    unwelcome.entry(&term.topology_key).or_insert_with(|| Counts::none(cycle, &term.topology_key));
                by_node.iter().for_each(|(slot, count)| counts.add(*slot, *count));
            }
        }
        for term in cluster.nominated_loners().flat_map(|nominee| &nominee.company.apart) {
            unwelcome.entry(&term.topology_key).or_insert_with(|| Counts::none(cycle, &term.topology_key));
        }
        if company.near.is_empty() && company.apart.is_empty() && unwelcome.is_empty() {
            return Prepared::Skip;
        }
        let of = |term: &Arc<Term>, question: &Question| Counts::of(cycle, &term.topology_key, census.answer(question));
        let near_question = near_question(pod);
        let means_itself = |term: &Arc<Term>| term.scope.matches(&pod.key.namespace, &pod.labels, cluster.namespaces());
        Prepared::filter(Rules {
            cycle,
            near: company.near.iter().map(|term| of(term, &near_question)).collect(),
            apart: company.apart.iter().map(|term| of(term, &question(term))).collect(),
            unwelcome: unwelcome.into_iter().collect(),
            first_of_its_kind: company.near.iter().all(means_itself),
        })
    }

    fn score(&self, cycle: Cycle<'_>, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let Cycle { cluster, pod } = cycle;
        let census = cluster.census();
        let mut by_key: BTreeMap<String, Counts<'_>> = BTreeMap::new();
        let mut add = |term: &Term, by_node: &ByNode, weight: i64| {
            if weight != 0 && !by_node.is_empty() {
                let key = &term.topology_key;
                let counts = by_key.entry(key.clone()).or_insert_with(|| Counts::none(cycle, key));
                by_node.iter().for_each(|(slot, count)| counts.add(*slot, count * weight));
            }
        };
        for (weight, term) in &pod.company.preferred {
            if let Some(by_node) = census.answer(&question(term)) {
                add(term, by_node, *weight);
            }
        }
        let prefers_nothing = pod.company.preferred.is_empty();
        for (wish, term, by_node) in census.wishes_about(pod, cluster.namespaces()) {
            match wish {
                Wish::Near => add(term, by_node, self.0.hard_weight),
                Wish::Preferred(_) if prefers_nothing && self.0.ignore_preferences_of_others => {}
                Wish::Preferred(weight) => add(term, by_node, weight),
                Wish::Apart => {}
            }
        }
        if by_key.is_empty() {
            return None;
        }
        let score = |node: &&NodeInfo| by_key.values().filter_map(|counts| counts.with(node)).sum();
        let mut scores: Vec<i64> = nodes.iter().map(score).collect();
        let (min, max) = (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0));
        for score in &mut scores {
            *score = if max > min { MAX_SCORE * (*score - min) / (max - min) } else { 0 };
        }
        Some(scores)
    }

    fn helps(&self, cycle: Cycle<'_>, news: News<'_>) -> bool {
        let (own, namespaces) = (cycle.pod, cycle.cluster.namespaces());
        let means = |term: &Arc<Term>, pod: &PodInfo| term.scope.matches(&pod.key.namespace, &pod.labels, namespaces);
        match news {
            News::Node(_, changes) => changes.new || changes.labels,
            News::PodCame(came) => own.company.near.iter().any(|term| means(term, came)),
            News::PodGone(_, gone) => {
                own.company.apart.iter().any(|term| means(term, gone))
                    || gone.company.apart.iter().any(|term| means(term, own))
                    // With the last of its kind gone the next may be the first again.
                    || own.company.near.iter().any(|term| means(term, gone))
            }
            News::Namespace => true,
            News::Storage => false,
        }
    }
}
