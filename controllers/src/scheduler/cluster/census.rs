//! Who is where: counts of pods by what asks for them, and of the terms that pods on nodes hold themselves, kept up to date
//! with every pod that comes or goes. A decision adds up counts; it never walks over pods. Pure.

use super::{
    affinity::Labels,
    node::Slot,
    pod::PodInfo,
    terms::{Namespaces, Scope, Term},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// Counts that nobody asked for lately go; they are made anew from the pods when asked for again.
const COUNTERS: usize = 8192;

/// Pods by node.
pub(crate) type ByNode = BTreeMap<Slot, i64>;

/// Which pods a count is of: those that all of these scopes mean.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    pub(crate) all: Vec<Scope>,
    /// Pods on their way out do not count (topology spread; affinity counts them).
    pub(crate) staying: bool,
}

impl Question {
    pub(crate) fn matches(&self, pod: &PodInfo, namespaces: &Namespaces) -> bool {
        !(self.staying && pod.leaving)
            && self.all.iter().all(|scope| scope.matches(&pod.key.namespace, &pod.labels, namespaces))
    }
}

/// What a pod on a node wants of those that come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Wish {
    /// Required anti-affinity: they must not come.
    Apart,
    /// Required affinity: they are as welcome as the profile says (`hardPodAffinityWeight`).
    Near,
    /// Preferred affinity, or anti-affinity below zero.
    Preferred(i64),
}

#[derive(Debug)]
struct Held {
    wish: Wish,
    term: Arc<Term>,
    by_node: ByNode,
}

#[derive(Debug)]
struct Counter {
    by_node: ByNode,
    asked: u64,
}

/// Things found by a label that whatever they match must have.
#[derive(Debug)]
struct Anchored<T> {
    by_label: HashMap<String, HashMap<String, BTreeSet<T>>>,
    loose: BTreeSet<T>,
}

impl<T: Ord + Clone> Anchored<T> {
    fn insert(&mut self, anchor: Option<(&str, &str)>, thing: T) {
        match anchor {
            Some((key, value)) => {
                let values = self.by_label.entry(key.to_owned()).or_default();
                values.entry(value.to_owned()).or_default().insert(thing);
            }
            None => {
                self.loose.insert(thing);
            }
        }
    }

    fn remove(&mut self, anchor: Option<(&str, &str)>, thing: &T) {
        let Some((key, value)) = anchor else {
            self.loose.remove(thing);
            return;
        };
        let Some(values) = self.by_label.get_mut(key) else { return };
        if let Some(things) = values.get_mut(value) {
            things.remove(thing);
            if things.is_empty() {
                values.remove(value);
            }
        }
        if values.is_empty() {
            self.by_label.remove(key);
        }
    }

    fn candidates<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a T> {
        let found = labels.iter().filter_map(|(key, value)| self.by_label.get(key)?.get(value)).flatten();
        self.loose.iter().chain(found)
    }
}

impl<T> Default for Anchored<T> {
    fn default() -> Self {
        Anchored { by_label: HashMap::new(), loose: BTreeSet::new() }
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Census {
    held: BTreeMap<u64, Held>,
    held_ids: HashMap<(Wish, Arc<Term>), u64>,
    held_index: Anchored<u64>,
    counters: HashMap<Arc<Question>, u64>,
    counted: BTreeMap<u64, (Arc<Question>, Counter)>,
    counter_index: Anchored<u64>,
    /// Counters by when they were last asked for.
    recent: BTreeMap<u64, u64>,
    ids: u64,
}

impl Census {
    /// A pod came to a node (`by` is 1) or left it (-1).
    pub(crate) fn moved(&mut self, pod: &PodInfo, slot: Slot, by: i64, namespaces: &Namespaces) {
        for id in self.counter_index.candidates(&pod.labels) {
            if let Some((question, counter)) = self.counted.get_mut(id)
                && question.matches(pod, namespaces)
            {
                add(&mut counter.by_node, slot, by);
            }
        }
        let company = &pod.company;
        let wishes = company.apart.iter().map(|term| (Wish::Apart, term));
        let wishes = wishes.chain(company.near.iter().map(|term| (Wish::Near, term)));
        let wishes = wishes.chain(company.preferred.iter().map(|(weight, term)| (Wish::Preferred(*weight), term)));
        for (wish, term) in wishes {
            self.hold(wish, term, slot, by);
        }
    }

    fn hold(&mut self, wish: Wish, term: &Arc<Term>, slot: Slot, by: i64) {
        let identity = (wish, term.clone());
        let id = match self.held_ids.get(&identity) {
            Some(id) => *id,
            None => {
                self.ids += 1;
                self.held_ids.insert(identity.clone(), self.ids);
                self.held.insert(self.ids, Held { wish, term: term.clone(), by_node: ByNode::new() });
                self.held_index.insert(term.scope.anchor(), self.ids);
                self.ids
            }
        };
        let Some(held) = self.held.get_mut(&id) else { return };
        add(&mut held.by_node, slot, by);
        if held.by_node.is_empty() {
            self.held.remove(&id);
            self.held_index.remove(term.scope.anchor(), &id);
            self.held_ids.remove(&identity);
        }
    }

    /// The wishes of pods on nodes that mean this pod.
    pub(crate) fn wishes_about<'a>(
        &'a self,
        pod: &'a PodInfo,
        namespaces: &'a Namespaces,
    ) -> impl Iterator<Item = (Wish, &'a Term, &'a ByNode)> {
        let held = self.held_index.candidates(&pod.labels).filter_map(|id| self.held.get(id));
        let held = held.filter(|held| held.term.scope.matches(&pod.key.namespace, &pod.labels, namespaces));
        held.map(|held| (held.wish, &*held.term, &held.by_node))
    }

    /// Makes sure that the question is counted from now on; `pods` are all there are.
    pub(crate) fn ask<'a>(
        &mut self,
        question: Question,
        namespaces: &Namespaces,
        pods: impl Iterator<Item = (Slot, &'a PodInfo)>,
    ) {
        self.ids += 1;
        let now = self.ids;
        if let Some(id) = self.counters.get(&question) {
            if let Some((_, counter)) = self.counted.get_mut(id) {
                self.recent.remove(&counter.asked);
                self.recent.insert(now, *id);
                counter.asked = now;
            }
            return;
        }
        let mut by_node = ByNode::new();
        for (slot, _) in pods.filter(|(_, pod)| question.matches(pod, namespaces)) {
            add(&mut by_node, slot, 1);
        }
        if self.counted.len() >= COUNTERS {
            let oldest = self.recent.first_key_value().map(|(_, id)| *id);
            oldest.into_iter().for_each(|id| self.drop_counter(id));
        }
        let question = Arc::new(question);
        self.counter_index.insert(question.all.iter().find_map(Scope::anchor), now);
        self.counters.insert(question.clone(), now);
        self.recent.insert(now, now);
        self.counted.insert(now, (question, Counter { by_node, asked: now }));
    }

    /// The count of a question that was asked.
    pub(crate) fn answer(&self, question: &Question) -> Option<&ByNode> {
        self.counted.get(self.counters.get(question)?).map(|(_, counter)| &counter.by_node)
    }

    /// Labels of a namespace changed: whatever looks at those is counted anew.
    pub(crate) fn namespaces_changed(&mut self) {
        let touched = |question: &Question| question.all.iter().any(Scope::looks_at_namespaces);
        let stale = self.counted.iter().filter(|(_, (question, _))| touched(question)).map(|(id, _)| *id);
        for id in stale.collect::<Vec<_>>() {
            self.drop_counter(id);
        }
    }

    fn drop_counter(&mut self, id: u64) {
        if let Some((question, counter)) = self.counted.remove(&id) {
            self.recent.remove(&counter.asked);
            self.counter_index.remove(question.all.iter().find_map(Scope::anchor), &id);
            self.counters.remove(&question);
        }
    }
}

fn add(counts: &mut ByNode, slot: Slot, by: i64) {
    let count = counts.entry(slot).or_default();
    *count += by;
    if *count == 0 {
        counts.remove(&slot);
    }
}
