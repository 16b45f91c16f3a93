//! The scheduler's memory: nodes, the pods on them, the pods that wait, and the decisions. Pure: no IO, no clock, no
//! tasks; time is a [`Duration`] since any fixed origin.

use super::{
    decide::{Decision, decide},
    node_info::{Claim, NodeInfo, PodInfo},
    queue::{News, SchedulingQueue},
};
use crate::{Key, pods};
use proa_crds::{Node, Pod};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

/// The scheduler's name, and what pods that name none get.
pub(super) const NAME: &str = "default-scheduler";

/// A pod that has its place.
#[derive(Debug)]
struct Placed {
    uid: Option<String>,
    node: Arc<str>,
    claim: Claim,
    /// The generation of the pod's spec that the claim was read from: a running pod can be resized.
    generation: Option<i64>,
    /// Decided, but not seen bound yet.
    assumed: bool,
}

/// What to do next.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Bind the pod to the node; it counts there already.
    Bind(Arc<Pod>, Arc<str>),
    /// Tell the pod's users why there is no node for it.
    Tell(Arc<Pod>, String),
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Core {
    nodes: BTreeMap<Arc<str>, NodeInfo>,
    /// Nodes that pods name but that are not there (yet).
    absent: HashMap<Arc<str>, NodeInfo>,
    placed: HashMap<Key, Placed>,
    waiting: HashMap<Key, PodInfo>,
    queue: SchedulingQueue,
}

impl Core {
    /// Takes in a pod's state; `None` when it is gone.
    pub(crate) fn pod_changed(&mut self, key: &Key, pod: Option<&Arc<Pod>>, now: Duration) {
        let Some(pod) = pod else {
            self.forget(key);
            return self.unplace(key, now);
        };
        if pods::is_over(pod) {
            self.forget(key);
            return self.unplace(key, now);
        }
        if let Some(node) = pods::node(pod) {
            self.forget(key);
            match self.placed.get_mut(key).filter(|placed| placed.uid == pod.metadata.uid && &*placed.node == node) {
                // Seen where it was put: nothing became free.
                Some(placed) if placed.generation == pod.metadata.generation => placed.assumed = false,
                Some(placed) if placed.claim == Claim::of(&pod.spec) => {
                    placed.assumed = false;
                    placed.generation = pod.metadata.generation;
                }
                _ => {
                    self.unplace(key, now);
                    self.place(key, pod, node.into(), Claim::of(&pod.spec), false);
                }
            }
            return;
        }
        if self.placed.get(key).is_some_and(|placed| placed.assumed && placed.uid == pod.metadata.uid) {
            return;
        }
        self.unplace(key, now);
        if !wants_a_node(pod) {
            return self.forget(key);
        }
        let held = self.waiting.get(key);
        let same = held.filter(|held| held.pod.metadata.uid == pod.metadata.uid);
        // Our own condition on the pod must not wake it; what was asked for must.
        let asks_the_same = same.is_some_and(|held| held.pod.spec == pod.spec);
        if same.is_none() {
            self.queue.remove(key);
        }
        self.waiting.insert(key.clone(), PodInfo::of(pod.clone()));
        if !asks_the_same {
            self.queue.add(key, pod.spec.priority.unwrap_or(0), now);
        }
    }

    /// Takes in a node's state; `None` when it is gone.
    pub(crate) fn node_changed(&mut self, name: &str, node: Option<&Node>, now: Duration) {
        let Some(node) = node else {
            if let Some(mut info) = self.nodes.remove(name)
                && info.used.pods > 0
            {
                info = NodeInfo { used: info.used, ..NodeInfo::unknown(name) };
                self.absent.insert(info.name.clone(), info);
            }
            return;
        };
        let new = !self.nodes.contains_key(name);
        let absent = &mut self.absent;
        let info = self
            .nodes
            .entry(name.into())
            .or_insert_with(|| absent.remove(name).unwrap_or_else(|| NodeInfo::unknown(name)));
        let mut news = info.update(node);
        news.new = new;
        let heard = [
            (news.new, News::Node),
            (news.labels, News::Labels),
            (news.taints, News::Taints),
            (news.schedulable, News::Schedulable),
            (news.room, News::Room),
        ];
        for (_, news) in heard.into_iter().filter(|(changed, _)| *changed) {
            self.queue.hear(news, now);
        }
    }

    /// Decides about the next pod that is due.
    pub(crate) fn next(&mut self, now: Duration) -> Option<Step> {
        loop {
            let key = self.queue.next(now)?;
            let Some(info) = self.waiting.get(&key) else {
                self.queue.remove(&key);
                continue;
            };
            let pod = info.pod.clone();
            match decide(info, self.nodes.values()) {
                Decision::Node(node) => {
                    let claim = info.claim.clone();
                    self.place(&key, &pod, node.clone(), claim, true);
                    return Some(Step::Bind(pod, node));
                }
                Decision::Nowhere(nowhere) => {
                    let message = nowhere.to_string();
                    self.queue.park(&key, nowhere, now);
                    return Some(Step::Tell(pod, message));
                }
            }
        }
    }

    /// Binding failed: the pod has no place, and is tried again after a pause.
    pub(crate) fn binding_failed(&mut self, pod: &Pod, now: Duration) {
        let key = Key::of(pod);
        if self.placed.get(&key).is_some_and(|placed| placed.assumed && placed.uid == pod.metadata.uid) {
            self.unplace(&key, now);
            self.queue.pause(&key);
        }
    }

    /// When to look again although nothing happened.
    pub(crate) fn wakes_at(&self) -> Option<Duration> {
        self.queue.wakes_at()
    }

    fn forget(&mut self, key: &Key) {
        self.waiting.remove(key);
        self.queue.remove(key);
    }

    fn place(&mut self, key: &Key, pod: &Pod, node: Arc<str>, claim: Claim, assumed: bool) {
        let info = match self.nodes.get_mut(&node) {
            Some(info) => info,
            None => self.absent.entry(node.clone()).or_insert_with(|| NodeInfo::unknown(&node)),
        };
        info.used.add(&claim);
        let (uid, generation) = (pod.metadata.uid.clone(), pod.metadata.generation);
        self.placed.insert(key.clone(), Placed { uid, node, claim, generation, assumed });
    }

    fn unplace(&mut self, key: &Key, now: Duration) {
        let Some(placed) = self.placed.remove(key) else { return };
        if let Some(info) = self.nodes.get_mut(&placed.node) {
            info.used.subtract(&placed.claim);
        } else if let Some(info) = self.absent.get_mut(&placed.node) {
            info.used.subtract(&placed.claim);
            if info.used.pods == 0 {
                self.absent.remove(&placed.node);
            }
        }
        self.queue.hear(News::PodGone, now);
    }
}

/// Whether the pod is ours to place.
fn wants_a_node(pod: &Pod) -> bool {
    let spec = &pod.spec;
    let ours = spec.scheduler_name.as_deref().is_none_or(|name| name.is_empty() || name == NAME);
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    ours && !gated && pod.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
impl Core {
    /// What nodes are said to hold is what their pods take, and it fits.
    pub(crate) fn check(&self) {
        for info in self.nodes.values().chain(self.absent.values()) {
            let mut sum = super::node_info::Usage::default();
            self.placed.values().filter(|placed| placed.node == info.name).for_each(|placed| sum.add(&placed.claim));
            assert_eq!(sum, info.used, "{}", info.name);
        }
        for info in self.nodes.values() {
            assert!(info.used.amounts.milli_cpu <= info.allocatable.milli_cpu, "{info:?}");
        }
    }
}
