//! The scheduler's view of the cluster: what a decision looks at. Kept up to date in place, change by change, so that no
//! decision begins with a copy. Pure: no IO, no clock, no tasks.

pub(crate) mod affinity;
pub(crate) mod census;
pub(crate) mod changes;
pub(crate) mod node;
pub(crate) mod owners;
pub(crate) mod pod;
pub(crate) mod resources;
pub(crate) mod storage;
pub(crate) mod terms;
pub(crate) mod topology;

use census::{Census, Question};
use changes::Changes;
use node::{NodeChanges, NodeInfo, Slot};
use owners::Owners;
use pod::PodInfo;
use proa_crds::Node;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use storage::Storage;
use terms::Namespaces;
use topology::Topologies;

use crate::Key;
use affinity::Labels;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// What a decision will want to know of the cluster beyond what is always known.
#[derive(Debug, Default)]
pub(crate) struct Asks {
    pub(crate) topologies: Vec<String>,
    pub(crate) questions: Vec<Question>,
}

/// A disruption budget, as far as preemption looks at it.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    pub(crate) selector: Option<LabelSelector>,
    pub(crate) allowed: i64,
    /// Pods that were let go already, though they are still seen.
    pub(crate) disrupted: Vec<String>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    nodes: Vec<Option<NodeInfo>>,
    by_name: HashMap<Arc<str>, Slot>,
    free: Vec<Slot>,
    order: Vec<Slot>,
    order_is_stale: bool,
    soft_taints: usize,
    census: Census,
    topologies: Topologies,
    images: HashMap<String, BTreeMap<Slot, i64>>,
    namespaces: Namespaces,
    pub(crate) storage: Storage,
    pub(crate) owners: Owners,
    pub(crate) budgets: BTreeMap<Key, Budget>,
    nominated: BTreeMap<Slot, BTreeMap<Key, Arc<PodInfo>>>,
    nominee: HashMap<Key, Slot>,
    /// How many of the nominated want to be apart from others.
    loners: usize,
    changes: Changes,
}

impl Cluster {
    /// The node of that name, there or absent.
    pub(crate) fn slot(&self, name: &str) -> Option<Slot> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn node(&self, slot: Slot) -> Option<&NodeInfo> {
        self.nodes.get(slot as usize)?.as_ref()
    }

    /// The nodes that are there, in the order they are tried: zone by zone in turn.
    pub(crate) fn order(&self) -> &[Slot] {
        &self.order
    }

    /// The nodes that are there.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.iter().flatten().filter(|node| !node.absent)
    }

    /// Which nodes changed, or what is on them, or whom they are promised to.
    pub(crate) fn changes(&self) -> &Changes {
        &self.changes
    }

    pub(crate) fn census(&self) -> &Census {
        &self.census
    }

    pub(crate) fn topologies(&self) -> &Topologies {
        &self.topologies
    }

    pub(crate) fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// The nodes that have the image, and its size there.
    pub(crate) fn image(&self, name: &str) -> Option<&BTreeMap<Slot, i64>> {
        self.images.get(name)
    }

    /// Whether any node has a taint that only keeps pods away if there is another one.
    pub(crate) fn has_soft_taints(&self) -> bool {
        self.soft_taints > 0
    }

    /// Makes ready what a decision will look at.
    pub(crate) fn ask(&mut self, asks: Asks) {
        if self.order_is_stale {
            self.arrange();
        }
        for key in asks.topologies {
            self.topologies.ask(&key, self.nodes.iter().flatten());
        }
        for question in asks.questions {
            let nodes = self.nodes.iter().flatten();
            let pods = nodes.flat_map(|node| node.pods.iter().map(move |pod| (node.slot, pod.as_ref())));
            self.census.ask(question, &self.namespaces, pods);
        }
    }

    /// Takes from the zones in turn, so that a part of all nodes is a part of each zone.
    fn arrange(&mut self) {
        let mut zones: BTreeMap<(&str, &str), Vec<Slot>> = BTreeMap::new();
        let mut nodes: Vec<&NodeInfo> = self.nodes.iter().flatten().filter(|node| !node.absent).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes.iter().for_each(|node| zones.entry(node.zone()).or_default().push(node.slot));
        let longest = zones.values().map(Vec::len).max().unwrap_or(0);
        let turns = (0..longest).flat_map(|turn| zones.values().filter_map(move |zone| zone.get(turn).copied()));
        self.order = turns.collect();
        self.order_is_stale = false;
    }

    /// Takes in a node's object.
    pub(crate) fn put_node(&mut self, name: &str, node: &Node) -> (Slot, NodeChanges) {
        let slot = self.slot_for(name);
        self.changes.add(slot);
        let Some(info) = self.nodes[slot as usize].as_mut() else { return (slot, NodeChanges::default()) };
        let (soft, zone) = (soft_taints(info), (info.zone().0.to_owned(), info.zone().1.to_owned()));
        for image in info.images.keys() {
            remove_image(&mut self.images, image, slot);
        }
        let changes = info.update(node);
        for (image, size) in &info.images {
            self.images.entry(image.clone()).or_default().insert(slot, *size);
        }
        self.soft_taints = self.soft_taints + soft_taints(info) - soft;
        self.order_is_stale |= changes.new || (zone.0.as_str(), zone.1.as_str()) != info.zone();
        if changes.labels || changes.new {
            self.topologies.changed(info);
        }
        (slot, changes)
    }

    /// A node's object is gone.
    pub(crate) fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.slot(name) else { return };
        self.changes.add(slot);
        let Some(info) = self.nodes[slot as usize].as_mut() else { return };
        self.soft_taints -= soft_taints(info);
        for image in info.images.keys() {
            remove_image(&mut self.images, image, slot);
        }
        info.forget();
        self.topologies.changed(info);
        self.order_is_stale = true;
        for (key, pod) in self.nominated.remove(&slot).unwrap_or_default() {
            self.nominee.remove(&key);
            self.loners -= usize::from(!pod.company.apart.is_empty());
        }
        self.release(slot);
    }

    /// A pod came to a node, by decision or seen there.
    pub(crate) fn add_pod(&mut self, name: &str, pod: Arc<PodInfo>) -> Slot {
        let slot = self.slot_for(name);
        self.changes.add(slot);
        self.census.moved(&pod, slot, 1, &self.namespaces);
        self.storage.moved(&pod, 1);
        if let Some(node) = self.nodes[slot as usize].as_mut() {
            node.add(pod);
        }
        slot
    }

    /// A pod on a node, as it is now; it counts as before.
    pub(crate) fn refresh_pod(&mut self, slot: Slot, pod: Arc<PodInfo>) {
        self.changes.add(slot);
        if let Some(node) = self.nodes.get_mut(slot as usize).and_then(Option::as_mut)
            && let Some(held) = node.pods.iter_mut().find(|held| held.key == pod.key)
        {
            *held = pod;
        }
    }

    /// A pod left its node.
    pub(crate) fn remove_pod(&mut self, slot: Slot, pod: &PodInfo) {
        self.changes.add(slot);
        let node = self.nodes.get_mut(slot as usize).and_then(Option::as_mut);
        if node.is_some_and(|node| node.remove(pod)) {
            self.census.moved(pod, slot, -1, &self.namespaces);
            self.storage.moved(pod, -1);
        }
        self.release(slot);
    }

    /// Labels of a namespace; `None` when it is gone.
    pub(crate) fn namespace_changed(&mut self, name: &str, labels: Option<Labels>) {
        let changed = match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels.clone()) != Some(labels),
            None => self.namespaces.remove(name).is_some(),
        };
        if changed {
            self.census.namespaces_changed();
        }
    }

    /// Room was made, or is being made, for the pod on that node: pods of no more importance must leave it.
    pub(crate) fn nominate(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.denominate(&pod.key);
        let Some(slot) = self.slot(node) else { return };
        self.changes.add(slot);
        self.nominated.entry(slot).or_default().insert(pod.key.clone(), pod.clone());
        self.nominee.insert(pod.key.clone(), slot);
        self.loners += usize::from(!pod.company.apart.is_empty());
        if let Some(node) = self.nodes[slot as usize].as_mut() {
            node.promised += 1;
        }
    }

    pub(crate) fn denominate(&mut self, key: &Key) {
        let Some(slot) = self.nominee.remove(key) else { return };
        self.changes.add(slot);
        let Some(pods) = self.nominated.get_mut(&slot) else { return };
        if let Some(pod) = pods.remove(key) {
            self.loners -= usize::from(!pod.company.apart.is_empty());
        }
        if pods.is_empty() {
            self.nominated.remove(&slot);
        }
        if let Some(node) = self.nodes.get_mut(slot as usize).and_then(Option::as_mut) {
            node.promised = node.promised.saturating_sub(1);
        }
    }

    /// The node the pod is nominated for.
    pub(crate) fn nomination(&self, key: &Key) -> Option<Slot> {
        self.nominee.get(key).copied()
    }

    /// Pods nominated for that node.
    pub(crate) fn nominees(&self, slot: Slot) -> impl Iterator<Item = &Arc<PodInfo>> {
        self.nominated.get(&slot).into_iter().flat_map(BTreeMap::values)
    }

    /// Pods nominated for any node that want to be apart from others.
    pub(crate) fn nominated_loners(&self) -> impl Iterator<Item = &Arc<PodInfo>> {
        let nominated = (self.loners > 0).then_some(&self.nominated);
        nominated.into_iter().flat_map(BTreeMap::values).flat_map(BTreeMap::values)
    }

    fn slot_for(&mut self, name: &str) -> Slot {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            (self.nodes.len() - 1) as Slot
        });
        let node = NodeInfo::unknown(slot, name);
        self.by_name.insert(node.name.clone(), slot);
        self.nodes[slot as usize] = Some(node);
        slot
    }

    /// Forgets a node that is absent and that no pod names any more.
    fn release(&mut self, slot: Slot) {
        let held = self.nodes.get(slot as usize).and_then(Option::as_ref);
        if let Some(name) = held.filter(|node| node.absent && node.pods.is_empty()).map(|node| node.name.clone()) {
            self.by_name.remove(&name);
            self.nodes[slot as usize] = None;
            self.free.push(slot);
        }
    }
}

fn soft_taints(node: &NodeInfo) -> usize {
    node.taints.iter().filter(|taint| taint.effect == crate::taints::PREFER_NO_SCHEDULE).count()
}

fn remove_image(images: &mut HashMap<String, BTreeMap<Slot, i64>>, image: &str, slot: Slot) {
    if let Some(nodes) = images.get_mut(image) {
        nodes.remove(&slot);
        if nodes.is_empty() {
            images.remove(image);
        }
    }
}

#[cfg(test)]
impl Cluster {
    /// Every pod on a node, there or absent.
    pub(crate) fn pods(&self) -> impl Iterator<Item = (Slot, &PodInfo)> {
        let nodes = self.nodes.iter().flatten();
        nodes.flat_map(|node| node.pods.iter().map(move |pod| (node.slot, pod.as_ref())))
    }

    /// What nodes are said to hold is what their pods take.
    pub(crate) fn check(&self) {
        for node in self.nodes.iter().flatten() {
            let mut sum = node::Usage::default();
            node.pods.iter().for_each(|pod| sum.add(&pod.claim));
            assert_eq!(sum, node.used, "{}", node.name);
        }
    }
}
