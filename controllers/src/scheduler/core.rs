//! The scheduler's memory: the cluster, the pods that wait, and the decisions. Pure: no IO, no clock, no tasks; time is a
//! [`Duration`] since any fixed origin.

use super::{
    cluster::{
        Cluster,
        node::{NodeChanges, NodeInfo, Slot},
        pod::PodInfo,
        storage::VolumePlan,
    },
    config::Configuration,
    decide::{Decision, Nowhere, Rejectors, decide},
    framework::{Cycle, News},
    preempt::{Preemption, preempt},
    profile::Profile,
    queue::SchedulingQueue,
    refusals::Refusals,
};
use crate::{Key, pods};
use proa_crds::{Node, Pod};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

/// A binding that the server took and that is not seen for so long is no longer believed.
const BELIEVED: Duration = Duration::from_secs(300);

/// How sure it is that a pod is where it counts.
#[derive(Debug)]
enum Standing {
    /// Seen there.
    Seen,
    /// Decided; this is written besides.
    Decided(VolumePlan),
    /// The server took the binding; it must be seen until then.
    Bound(Duration),
}

/// A pod that has its place.
#[derive(Debug)]
struct Placed {
    slot: Slot,
    pod: Arc<PodInfo>,
    standing: Standing,
}

/// What to do next.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Bind the pod to the node; it counts there already.
    Bind(Binding),
    /// Tell the pod's users why there is no node for it.
    Tell {
        pod: Arc<Pod>,
        message: String,
        /// Room was being made for it, and is no longer.
        gives_up_its_node: bool,
    },
    /// Make room: these pods leave, and the pod gets their node.
    Preempt {
        pod: Arc<Pod>,
        node: Arc<str>,
        message: String,
        victims: Vec<Arc<Pod>>,
        /// Less important pods that the node was promised to.
        outranked: Vec<Arc<Pod>>,
    },
}

/// A decision to be written.
#[derive(Clone, Debug)]
pub(crate) struct Binding {
    pub(crate) pod: Arc<Pod>,
    pub(crate) node: Arc<str>,
    pub(crate) volumes: VolumePlan,
    pub(crate) volumes_within: Duration,
}

/// News, by where they happened.
enum Heard {
    Node(Slot, NodeChanges),
    PodGone(Slot, Arc<PodInfo>),
    PodCame(Slot, Arc<PodInfo>),
    Storage,
    Namespace,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) cluster: Cluster,
    profiles: Vec<Profile>,
    placed: HashMap<Key, Placed>,
    /// When bindings are no longer believed.
    doubts: BTreeSet<(Duration, Key)>,
    waiting: HashMap<Key, Arc<PodInfo>>,
    /// Pods whose victims are being asked to leave, and whether news came for them meanwhile (KEP-4832).
    making_room: HashMap<Key, bool>,
    queue: SchedulingQueue,
    refusals: Refusals,
    turn: usize,
}

impl Core {
    pub(crate) fn new(configuration: &Configuration) -> Core {
        Core {
            cluster: Cluster::default(),
            profiles: configuration.profiles.clone(),
            placed: HashMap::new(),
            doubts: BTreeSet::new(),
            waiting: HashMap::new(),
            making_room: HashMap::new(),
            queue: SchedulingQueue::new(configuration.backoff),
            refusals: Refusals::default(),
            turn: 0,
        }
    }

    /// Takes in a pod's state; `None` when it is gone.
    pub(crate) fn pod_changed(&mut self, key: &Key, pod: Option<&Arc<Pod>>, now: Duration) {
        let Some(pod) = pod.filter(|pod| !pods::is_over(pod)) else {
            self.forget(key);
            return self.unplace(key, now);
        };
        if let Some(node) = pods::node(pod) {
            self.forget(key);
            return self.seen_on(key, pod, node, now);
        }
        let placed = self.placed.get(key);
        if placed.is_some_and(|p| !matches!(p.standing, Standing::Seen) && p.pod.uid() == pod.metadata.uid.as_ref()) {
            return;
        }
        self.unplace(key, now);
        if !self.wants_a_node(pod) {
            return self.forget(key);
        }
        let info = Arc::new(PodInfo::of(pod.clone()));
        let held = self.waiting.get(key);
        let same = held.filter(|held| held.is(&info));
        // Our own condition on the pod must not wake it; what was asked for must.
        let asks_the_same = same.is_some_and(|held| held.pod.spec == pod.spec && held.labels == info.labels);
        if same.is_none() {
            self.forget(key);
        }
        if let Some(node) = info.nominated()
            && self.cluster.nomination(key).is_none()
        {
            self.cluster.nominate(&info, node);
        }
        let priority = info.priority;
        self.waiting.insert(key.clone(), info);
        if !asks_the_same {
            self.queue.add(key, priority, now);
        }
    }

    fn seen_on(&mut self, key: &Key, pod: &Arc<Pod>, node: &str, now: Duration) {
        let info = match self.placed.get(key) {
            Some(placed) => Arc::new(placed.pod.now(pod)),
            None => Arc::new(PodInfo::of(pod.clone())),
        };
        if let Some(placed) = self.placed.get_mut(key)
            && placed.pod.counts_as(&info)
            && self.cluster.slot(node) == Some(placed.slot)
        {
            // Seen where it was put: nothing became free.
            match std::mem::replace(&mut placed.standing, Standing::Seen) {
                Standing::Seen => {}
                Standing::Decided(plan) => self.cluster.storage.release(&plan),
                Standing::Bound(until) => {
                    self.doubts.remove(&(until, key.clone()));
                }
            }
            placed.pod = info.clone();
            let (slot, first) = (placed.slot, info.clone());
            self.cluster.refresh_pod(slot, info);
            return self.hear(&Heard::PodCame(slot, first), now);
        }
        // Both states at once: what a pod takes less of is free, and what it keeps is not.
        let before = self.take_out(key);
        let slot = self.cluster.add_pod(node, info.clone());
        self.placed.insert(key.clone(), Placed { slot, pod: info.clone(), standing: Standing::Seen });
        if let Some(before) = before {
            self.hear(&Heard::PodGone(before.slot, before.pod), now);
        }
        self.hear(&Heard::PodCame(slot, info), now);
    }

    /// Takes in a node's state; `None` when it is gone.
    pub(crate) fn node_changed(&mut self, name: &str, node: Option<&Node>, now: Duration) {
        let Some(node) = node else { return self.cluster.remove_node(name) };
        let (slot, changes) = self.cluster.put_node(name, node);
        if changes.any() {
            self.hear(&Heard::Node(slot, changes), now);
        }
    }

    /// Claims, volumes, classes or limits changed.
    pub(crate) fn storage_changed(&mut self, now: Duration) {
        self.hear(&Heard::Storage, now);
    }

    /// Labels of a namespace; `None` when it is gone.
    pub(crate) fn namespace_changed(
        &mut self,
        name: &str,
        labels: Option<std::collections::BTreeMap<String, String>>,
        now: Duration,
    ) {
        self.cluster.namespace_changed(name, labels);
        self.hear(&Heard::Namespace, now);
    }

    /// Decides about the next pod that is due.
    pub(crate) fn next(&mut self, now: Duration) -> Option<Step> {
        self.doubt(now);
        loop {
            let key = self.queue.next(now)?;
            let Some(pod) = self.waiting.get(&key).cloned() else {
                self.queue.remove(&key);
                continue;
            };
            let Some(profile) = profile_of(&self.profiles, &pod.pod) else {
                self.forget(&key);
                continue;
            };
            if let Some(news) = self.making_room.get_mut(&key) {
                // Half of the victims gone is no reason to choose others.
                *news = true;
                self.queue.park(&key, (0, pod.signature()), now);
                continue;
            }
            profile.prepare(&mut self.cluster, &pod);
            if let Some(nowhere) = self.refusals.recall(profile, &self.cluster, &pod, self.turn) {
                return Some(self.nowhere(&pod, &nowhere, now));
            }
            return Some(match decide(profile, &self.cluster, &pod, &mut self.turn) {
                Decision::Node(slot) => self.bind(&pod, slot),
                Decision::Nowhere(nowhere) => {
                    self.refusals.learn(profile, &self.cluster, &pod);
                    self.nowhere(&pod, &nowhere, now)
                }
            });
        }
    }

    fn bind(&mut self, pod: &Arc<PodInfo>, slot: Slot) -> Step {
        let profile = profile_of(&self.profiles, &pod.pod);
        let volumes_within = profile.map_or(Duration::ZERO, |profile| profile.volumes_within);
        let node = self.cluster.node(slot);
        let name = node.map(|node| node.name.clone()).unwrap_or_default();
        let volumes = match node {
            Some(node) if !pod.claims.is_empty() => self.cluster.storage.plan(pod, node).unwrap_or_default(),
            _ => VolumePlan::default(),
        };
        self.cluster.storage.reserve(&volumes);
        self.cluster.denominate(&pod.key);
        self.cluster.add_pod(&name, pod.clone());
        let standing = Standing::Decided(volumes.clone());
        self.placed.insert(pod.key.clone(), Placed { slot, pod: pod.clone(), standing });
        Step::Bind(Binding { pod: pod.pod.clone(), node: name, volumes, volumes_within })
    }

    fn nowhere(&mut self, pod: &Arc<PodInfo>, nowhere: &Nowhere, now: Duration) -> Step {
        let mut message = nowhere.to_string();
        let profile = profile_of(&self.profiles, &pod.pod);
        let mut gives_up_its_node = false;
        let args = profile.and_then(|profile| Some((profile, profile.preemption?))).filter(|_| nowhere.nodes > 0);
        if let Some((profile, args)) = args {
            let known = self.refusals.known(&self.cluster, pod);
            match preempt(profile, args, &self.cluster, pod, nowhere, known) {
                Preemption::Node(slot, victims) => {
                    self.queue.park(&pod.key, (nowhere.rejectors, pod.signature()), now);
                    return self.make_room(pod, slot, victims, message);
                }
                Preemption::No(why) => {
                    gives_up_its_node = self.cluster.nomination(&pod.key).is_some() || pod.nominated().is_some();
                    self.cluster.denominate(&pod.key);
                    message.push_str(&format!(" preemption: {why}"));
                }
                Preemption::Wait(why) => message.push_str(&format!(" preemption: {why}")),
            }
        }
        self.queue.park(&pod.key, (nowhere.rejectors, pod.signature()), now);
        Step::Tell { pod: pod.pod.clone(), message, gives_up_its_node }
    }

    fn make_room(&mut self, pod: &Arc<PodInfo>, slot: Slot, victims: Vec<Arc<PodInfo>>, message: String) -> Step {
        let node = self.cluster.node(slot).map(|node| node.name.clone()).unwrap_or_default();
        let outranked: Vec<Arc<PodInfo>> =
            self.cluster.nominees(slot).filter(|other| other.priority < pod.priority).cloned().collect();
        outranked.iter().for_each(|other| self.cluster.denominate(&other.key));
        self.cluster.nominate(pod, &node);
        self.making_room.insert(pod.key.clone(), false);
        let objects = |pods: Vec<Arc<PodInfo>>| pods.into_iter().map(|pod| pod.pod.clone()).collect();
        let (victims, outranked) = (objects(victims), objects(outranked));
        Step::Preempt { pod: pod.pod.clone(), node, message, victims, outranked }
    }

    /// The server took the binding.
    pub(crate) fn bound(&mut self, pod: &Pod, now: Duration) {
        let key = Key::of(pod);
        let placed = self.placed.get_mut(&key).filter(|placed| placed.pod.uid() == pod.metadata.uid.as_ref());
        if let Some(placed) = placed
            && let Standing::Decided(plan) = &placed.standing
        {
            self.cluster.storage.release(plan);
            let until = now + BELIEVED;
            placed.standing = Standing::Bound(until);
            self.doubts.insert((until, key));
        }
    }

    /// Binding failed: the pod has no place, and is tried again after a pause.
    pub(crate) fn binding_failed(&mut self, pod: &Pod, now: Duration) {
        let key = Key::of(pod);
        let placed = self.placed.get(&key).filter(|placed| placed.pod.uid() == pod.metadata.uid.as_ref());
        if placed.is_some_and(|placed| !matches!(placed.standing, Standing::Seen)) {
            self.unplace(&key, now);
            self.queue.pause(&key);
        }
    }

    /// All victims have been asked to leave, or could not be: then the pod is tried again after a pause.
    pub(crate) fn room_made(&mut self, pod: &Pod, made: bool, now: Duration) {
        let key = Key::of(pod);
        let heard = self.making_room.remove(&key) == Some(true);
        if !made {
            self.cluster.denominate(&key);
        }
        if (!made || heard) && self.waiting.contains_key(&key) && !self.placed.contains_key(&key) {
            self.queue.wake(&key, now);
        }
    }

    /// When to look again although nothing happened.
    pub(crate) fn wakes_at(&self) -> Option<Duration> {
        let doubt = self.doubts.first().map(|(at, _)| *at);
        self.queue.wakes_at().into_iter().chain(doubt).min()
    }

    /// A binding that nobody ever saw did not happen, or its event is lost and the pod will be refused a second one.
    fn doubt(&mut self, now: Duration) {
        while let Some((at, key)) = self.doubts.first().cloned()
            && at <= now
        {
            self.unplace(&key, now);
            self.queue.pause(&key);
        }
    }

    fn forget(&mut self, key: &Key) {
        self.waiting.remove(key);
        self.making_room.remove(key);
        self.queue.remove(key);
        self.cluster.denominate(key);
    }

    fn unplace(&mut self, key: &Key, now: Duration) {
        if let Some(placed) = self.take_out(key) {
            self.hear(&Heard::PodGone(placed.slot, placed.pod), now);
        }
    }

    fn take_out(&mut self, key: &Key) -> Option<Placed> {
        let placed = self.placed.remove(key)?;
        match &placed.standing {
            Standing::Seen => {}
            Standing::Decided(plan) => self.cluster.storage.release(plan),
            Standing::Bound(until) => {
                self.doubts.remove(&(*until, key.clone()));
            }
        }
        self.cluster.remove_pod(placed.slot, &placed.pod);
        Some(placed)
    }

    /// Tries those again that the news may let in. Pods that a node was promised to count there for all others: what is
    /// made free for one pod must not wake everybody.
    fn hear(&mut self, heard: &Heard, now: Duration) {
        if self.queue.parked().is_empty() {
            return;
        }
        let (cluster, waiting, profiles) = (&self.cluster, &self.waiting, &self.profiles);
        let slot = match heard {
            Heard::Node(slot, _) | Heard::PodGone(slot, _) | Heard::PodCame(slot, _) => Some(*slot),
            Heard::Storage | Heard::Namespace => None,
        };
        let node = slot.and_then(|slot| cluster.node(slot));
        let mut crowded = node.cloned();
        if let Some(crowded) = &mut crowded {
            cluster.nominees(crowded.slot).for_each(|other| crowded.add(other.clone()));
        }
        let helps = |key: &Key, rejectors: Rejectors, node: Option<&NodeInfo>| -> Option<bool> {
            let pod = waiting.get(key)?;
            let profile = profile_of(profiles, &pod.pod)?;
            let news = match heard {
                Heard::Node(_, changes) => News::Node(node?, *changes),
                Heard::PodGone(_, pod) => News::PodGone(node?, pod),
                Heard::PodCame(_, pod) => News::PodCame(pod),
                Heard::Storage => News::Storage,
                Heard::Namespace => News::Namespace,
            };
            // Kept out by nobody: there was no node.
            let first_node = rejectors == 0 && matches!(heard, Heard::Node(..));
            Some(first_node || profile.helps(rejectors, Cycle { cluster, pod }, news))
        };
        let mut keys: Vec<Key> = Vec::new();
        for ((rejectors, _), alike) in self.queue.parked() {
            if alike.first().and_then(|key| helps(key, *rejectors, crowded.as_ref())) == Some(true) {
                keys.extend(alike.iter().cloned());
            }
        }
        for promised in slot.into_iter().flat_map(|slot| cluster.nominees(slot)) {
            let rejectors = self.queue.rejectors(&promised.key);
            if rejectors.and_then(|rejectors| helps(&promised.key, rejectors, node)) == Some(true) {
                keys.push(promised.key.clone());
            }
        }
        for key in keys {
            self.queue.wake(&key, now);
        }
    }

    /// Whether the pod is ours to place.
    fn wants_a_node(&self, pod: &Pod) -> bool {
        let gated = pod.spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
        profile_of(&self.profiles, pod).is_some() && !gated && pod.metadata.deletion_timestamp.is_none()
    }
}

fn profile_of<'a>(profiles: &'a [Profile], pod: &Pod) -> Option<&'a Profile> {
    let name = pod.spec.scheduler_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(super::profile::DEFAULT);
    profiles.iter().find(|profile| profile.name == name)
}

#[cfg(test)]
impl Core {
    pub(crate) fn forget_refusals(&mut self) {
        self.refusals = Refusals::default();
    }

    pub(crate) fn refusals_of_kinds(&self) -> usize {
        self.refusals.kinds()
    }

    pub(crate) fn is_placed(&self, key: &Key) -> bool {
        self.placed.contains_key(key)
    }

    /// What nodes are said to hold is what their pods take, and it fits.
    pub(crate) fn check(&self) {
        self.cluster.check();
        for node in self.cluster.nodes() {
            assert!(node.used.amounts.milli_cpu <= node.allocatable.milli_cpu, "{node:?}");
        }
        for (key, placed) in &self.placed {
            let node = self.cluster.node(placed.slot).expect("a placed pod has a node");
            assert!(node.pods.iter().any(|pod| pod.key == *key), "{key} is not on {}", node.name);
        }
        let placed = self.cluster.pods().count();
        assert_eq!(placed, self.placed.len());
    }
}
