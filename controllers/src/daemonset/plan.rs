//! What to do about one daemon set. Pure.
//!
//! First each node has the pod it should have, then pods of earlier revisions are replaced. One that is not available is
//! replaced at once; the others as far as enough nodes keep an available one, or, with a surge, once the new pod beside the
//! old one is available (KEP-1591).

use super::{
    nodes::{self, Place},
    status,
};
use crate::{
    Plan,
    amount::{Round, resolve},
    backoff::left,
    guard,
    history::{self, History, Keeper, Parent},
    pods, selector,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{apps::v1::DaemonSetStatus, core::v1::PodSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{ResourceExt, core::ApiResource};
use proa_crds::{ControllerRevision, DaemonSet, Node, Pod};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// At most this many pods are created in one go, and as many deleted, as on Kubernetes.
const BURST: usize = 250;

/// A snapshot of one daemon set.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The set.
    pub set: Arc<DaemonSet>,
    /// The pods it controls.
    pub pods: Vec<Arc<Pod>>,
    /// Pods of its namespace that nobody controls and its selector selects.
    pub orphans: Vec<Arc<Pod>>,
    /// The revisions it controls.
    pub revisions: Vec<Arc<ControllerRevision>>,
    /// Revisions of its namespace that nobody controls.
    pub orphan_revisions: Vec<Arc<ControllerRevision>>,
    /// Every node.
    pub nodes: Vec<Arc<Node>>,
    /// Until when a node's pod is not made anew, because it ends as soon as it is made.
    pub pauses: BTreeMap<String, Timestamp>,
    /// How sets and pods are served.
    pub resources: (ApiResource, ApiResource),
}

/// Why a pod goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its node is not one of the set's, or has another pod of the set.
    NotWanted,
    /// It is of an earlier revision.
    Updated,
    /// It failed on that node.
    Failed(String),
    /// Its containers ended well on that node, which they must not.
    Succeeded(String),
}

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Become the controller of a pod.
    Adopt(Arc<Pod>),
    /// Give up a pod the selector no longer selects.
    Release(Arc<Pod>),
    /// Write to the history.
    Record(history::Write),
    /// Write the status.
    Status(Box<DaemonSetStatus>),
    /// Write the status, and an event that says why no pods are made.
    Refuse(selector::Refusal, Box<DaemonSetStatus>),
    /// Make pods.
    Create(Vec<Pod>),
    /// Take pods away.
    Delete(Vec<Arc<Pod>>, Why),
}

/// Decides what to do.
pub fn plan(seen: &Seen, now: Timestamp) -> Plan<Action> {
    let set = &*seen.set;
    let leaving = set.metadata.deletion_timestamp.is_some();
    let template_labels = set.spec.template.metadata.as_ref().and_then(|meta| meta.labels.as_ref());
    if let Some(why) = selector::refused(&set.spec.selector, template_labels, "daemon set").filter(|_| !leaving) {
        let status = status::refused(set, &why, now);
        let known = set.status.as_ref() == Some(&status);
        return if known { Plan::nothing() } else { Plan::act(vec![Action::Refuse(why, Box::new(status))]) };
    }
    let parent = Parent::of_daemon_set(set, &seen.resources.0);
    let history = History::of(&parent, &seen.revisions);
    let belonging = belonging(seen, &parent, &history);
    if !belonging.is_empty() {
        return Plan::act(belonging);
    }
    let current = match history.current(&parent) {
        Ok(current) => current,
        Err(history::Pending::Record(write)) if !leaving => return Plan::act(vec![Action::Record(write)]),
        Err(_) => return Plan::nothing(),
    };

    let daemons = Daemons::of(seen, &history, now);
    let mut plan = Plan::nothing();
    let status = status::of(&daemons);
    if set.status.as_ref() != Some(&status) {
        plan.actions.push(Action::Status(Box::new(status)));
    }
    if let Some(wait) = daemons.next_available() {
        plan.look_again(wait);
    }
    if leaving {
        return plan;
    }
    daemons.act(current, &mut plan);
    let in_use = |held: &ControllerRevision| {
        seen.pods.iter().any(|pod| {
            let of_pod = history.of_pod(Keeper::DaemonSet, &pod.metadata);
            of_pod.is_some_and(|of_pod| of_pod.metadata.name == held.metadata.name)
        })
    };
    plan.actions.extend(history.surplus(&parent, in_use).into_iter().map(Action::Record));
    plan
}

/// What is adopted and released before anything else.
fn belonging(seen: &Seen, parent: &Parent<'_>, history: &History) -> Vec<Action> {
    let set = &*seen.set;
    if set.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let selected = |pod: &&Arc<Pod>| selector::matches(&set.spec.selector, pod.metadata.labels.as_ref());
    let stays = |pod: &&Arc<Pod>| pod.metadata.deletion_timestamp.is_none();
    let adopt = seen.orphans.iter().filter(stays).filter(selected).cloned().map(Action::Adopt);
    let release = seen.pods.iter().filter(stays).filter(|pod| !selected(pod)).cloned().map(Action::Release);
    let revisions = history.claims(parent, &seen.orphan_revisions).into_iter().map(Action::Record);
    adopt.chain(release).chain(revisions).collect()
}

/// One pod, as the plan sees it.
#[derive(Clone, Debug)]
pub(super) struct Daemon<'a> {
    pub(super) pod: &'a Arc<Pod>,
    /// It was made from the template as it is now.
    pub(super) is_updated: bool,
    /// How long until it is available, if it is ready.
    pub(super) available_in: Option<Duration>,
    /// It is on its way out.
    is_leaving: bool,
}

impl Daemon<'_> {
    /// It runs, or is to, and stays.
    pub(super) fn is_live(&self) -> bool {
        !self.is_leaving && !pods::is_over(self.pod)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.is_live() && self.available_in.is_some()
    }

    pub(super) fn is_available(&self) -> bool {
        self.is_live() && self.available_in.is_some_and(|wait| wait.is_zero())
    }
}

/// A node and the set's pods there, the best to keep first.
#[derive(Clone, Debug, Default)]
pub(super) struct OnNode<'a> {
    pub(super) place: Place,
    /// There is such a node.
    pub(super) exists: bool,
    pub(super) daemons: Vec<Daemon<'a>>,
}

impl<'a> OnNode<'a> {
    pub(super) fn live(&self) -> impl Iterator<Item = &Daemon<'a>> {
        self.daemons.iter().filter(|daemon| daemon.is_live())
    }

    pub(super) fn is_available(&self) -> bool {
        self.daemons.iter().any(Daemon::is_available)
    }
}

/// Every node that is, or has a pod of the set.
#[derive(Debug)]
pub(super) struct Daemons<'a> {
    pub(super) seen: &'a Seen,
    pub(super) nodes: BTreeMap<String, OnNode<'a>>,
    spec: PodSpec,
    now: Timestamp,
}

/// What is to be done, before it is put in order.
#[derive(Debug, Default)]
struct Deeds {
    unwanted: Vec<Arc<Pod>>,
    ended: Vec<(Arc<Pod>, Why)>,
    outdated: Vec<Arc<Pod>>,
    /// Nodes that get a pod.
    bare: Vec<String>,
}

impl<'a> Daemons<'a> {
    fn of(seen: &'a Seen, history: &History, now: Timestamp) -> Daemons<'a> {
        let spec = nodes::spec_of(&seen.set);
        let min_ready = seen.set.spec.min_ready_seconds.unwrap_or(0);
        let mut nodes: BTreeMap<String, OnNode<'a>> = BTreeMap::new();
        for node in &seen.nodes {
            let place = nodes::place(&spec, node);
            nodes.insert(node.name_any(), OnNode { place, exists: true, daemons: Vec::new() });
        }
        for pod in &seen.pods {
            let is_leaving = pod.metadata.deletion_timestamp.is_some();
            // What has ended and is being taken away stands in nobody's way.
            let Some(node) = nodes::node_of(pod).filter(|_| !(is_leaving && pods::is_over(pod))) else { continue };
            nodes.entry(node.to_owned()).or_default().daemons.push(Daemon {
                pod,
                is_updated: history.is_updated(Keeper::DaemonSet, &pod.metadata),
                available_in: pods::available_in(pod, min_ready, now),
                is_leaving,
            });
        }
        for on_node in nodes.values_mut() {
            on_node.daemons.sort_by_key(|daemon| {
                let meta = &daemon.pod.metadata;
                let made = meta.creation_timestamp.as_ref().map(|time| time.0);
                (!daemon.is_available(), pods::node(daemon.pod).is_none(), made, meta.name.clone())
            });
        }
        Daemons { seen, nodes, spec, now }
    }

    /// When the next ready pod becomes available.
    fn next_available(&self) -> Option<Duration> {
        let waits = self.nodes.values().flat_map(|on_node| &on_node.daemons).filter_map(|daemon| daemon.available_in);
        waits.filter(|wait| !wait.is_zero()).min()
    }

    /// How many nodes are to have a pod.
    pub(super) fn desired(&self) -> i32 {
        i32::try_from(self.nodes.values().filter(|on_node| on_node.place.wanted).count()).unwrap_or(i32::MAX)
    }

    /// How many nodes may be without an available pod in an update, and how many may have a second one. Percentages
    /// round up.
    fn fence(&self) -> (usize, usize) {
        let rolling = self.seen.set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let (one, none, total) = (IntOrString::Int(1), IntOrString::Int(0), self.desired());
        let part = |value: &IntOrString| usize::try_from(resolve(value, total, Round::Up)).unwrap_or(0);
        let surge = part(rolling.and_then(|rolling| rolling.max_surge.as_ref()).unwrap_or(&none));
        let unavailable = part(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).unwrap_or(&one));
        // Both at nothing would mean that nothing can move.
        (if surge == 0 { unavailable.max(1) } else { unavailable }, surge)
    }

    fn is_rolling(&self) -> bool {
        let strategy = self.seen.set.spec.update_strategy.as_ref();
        strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
    }

    fn act(&self, current: &ControllerRevision, plan: &mut Plan<Action>) {
        let hash = history::hash_of(current).unwrap_or_default();
        let mut deeds = Deeds::default();
        // What is known to fail replaces nothing, and a step of a gradual rollout only so many.
        let reach = guard::reach(&self.seen.set.metadata, current);
        // Where no old pod stays there is a new one, or is about to be.
        let reached = self.updatable().filter(|(_, _, old, new)| old.is_none() || new.is_some()).count();
        let room = reach.map_or(usize::MAX, |reach| reach.saturating_sub(reached));
        let surges = self.is_rolling() && self.fence().1 > 0;
        for (name, on_node) in &self.nodes {
            self.keep(name, on_node, surges, &mut deeds, plan);
        }
        match (self.is_rolling(), surges) {
            (false, _) => {}
            (true, false) => self.roll(room, &mut deeds),
            (true, true) => self.surge(room, &mut deeds),
        }
        let Deeds { mut unwanted, mut ended, mut outdated, mut bare } = deeds;
        unwanted.truncate(BURST);
        ended.truncate(BURST);
        outdated.truncate(BURST);
        bare.truncate(BURST);
        for (pod, why) in ended {
            plan.actions.push(Action::Delete(vec![pod], why));
        }
        for (pods, why) in [(unwanted, Why::NotWanted), (outdated, Why::Updated)] {
            if !pods.is_empty() {
                plan.actions.push(Action::Delete(pods, why));
            }
        }
        // Last: where pods are refused, what must go still goes.
        if !bare.is_empty() {
            let (set_kind, pod_kind) = &self.seen.resources;
            let pod = |node: &String| {
                let pod = nodes::pod_of(&self.seen.set, &self.spec, node, hash, set_kind, pod_kind);
                guard::configured(pod, current)
            };
            plan.actions.push(Action::Create(bare.iter().map(pod).collect()));
        }
    }

    /// Each node has the pod it should have.
    fn keep(&self, name: &str, on_node: &OnNode<'a>, surges: bool, deeds: &mut Deeds, plan: &mut Plan<Action>) {
        let staying = on_node.daemons.iter().filter(|daemon| !daemon.is_leaving);
        if !on_node.place.may_stay {
            // Pods bound to a node that is gone are the garbage collector's.
            let ours = staying.filter(|daemon| on_node.exists || pods::node(daemon.pod).is_none());
            deeds.unwanted.extend(ours.map(|daemon| daemon.pod.clone()));
            return;
        }
        for daemon in staying.filter(|daemon| pods::is_over(daemon.pod)) {
            match left(&self.seen.pauses, name, self.now) {
                Some(wait) => plan.look_again(wait),
                None if pods::phase(daemon.pod) == "Failed" => {
                    deeds.ended.push((daemon.pod.clone(), Why::Failed(name.to_owned())));
                }
                None => deeds.ended.push((daemon.pod.clone(), Why::Succeeded(name.to_owned()))),
            }
        }
        if on_node.daemons.is_empty() && on_node.place.wanted {
            return match left(&self.seen.pauses, name, self.now) {
                Some(wait) => plan.look_again(wait),
                None => deeds.bare.push(name.to_owned()),
            };
        }
        if !surges {
            deeds.unwanted.extend(on_node.live().skip(1).map(|daemon| daemon.pod.clone()));
            return;
        }
        // One of each kind may be there, the old one only as long as it is needed.
        for updated in [true, false] {
            let more = on_node.live().filter(|daemon| daemon.is_updated == updated).skip(1);
            deeds.unwanted.extend(more.map(|daemon| daemon.pod.clone()));
        }
        // The old one of a surge may be all that is left leaving: then the new one is made now.
        let nobody_stays = on_node.daemons.iter().all(|daemon| daemon.is_leaving && !daemon.is_updated);
        if nobody_stays && on_node.place.wanted && !on_node.daemons.is_empty() {
            deeds.bare.push(name.to_owned());
        }
    }

    /// Nodes whose pod an update may replace: with the first live pod of an earlier revision, and the first updated one.
    fn updatable(&self) -> impl Iterator<Item = (&String, &OnNode<'a>, Option<&Daemon<'a>>, Option<&Daemon<'a>>)> {
        self.nodes.iter().filter(|(_, on_node)| on_node.place.wanted).map(|(name, on_node)| {
            let first = |updated: bool| on_node.live().find(|daemon| daemon.is_updated == updated);
            (name, on_node, first(false), first(true))
        })
    }

    /// Takes old pods away, at most so many: the unavailable at once, of the available as many as may be missing.
    fn roll(&self, mut room: usize, deeds: &mut Deeds) {
        let (max_unavailable, _) = self.fence();
        let wanted = self.nodes.values().filter(|on_node| on_node.place.wanted);
        let unavailable = wanted.filter(|on_node| !on_node.is_available()).count();
        let mut may_go = max_unavailable.saturating_sub(unavailable);
        for (_, on_node, old, new) in self.updatable() {
            // Where there are both, one of them goes already.
            let (Some(old), None) = (old, new) else { continue };
            if room == 0 {
                break;
            }
            if on_node.is_available() {
                if may_go == 0 {
                    continue;
                }
                may_go -= 1;
            }
            room -= 1;
            deeds.outdated.push(old.pod.clone());
        }
    }

    /// Makes new pods beside old ones, on at most so many nodes, and takes the old ones away once the new ones are available.
    fn surge(&self, mut room: usize, deeds: &mut Deeds) {
        let (_, max_surge) = self.fence();
        let both = self.updatable().filter(|(_, _, old, new)| old.is_some() && new.is_some());
        let surging = both.filter(|(_, _, _, new)| new.is_some_and(|new| !new.is_available())).count();
        let mut may_come = max_surge.saturating_sub(surging);
        for (name, on_node, old, new) in self.updatable() {
            match (old, new) {
                (Some(old), Some(new)) if new.is_available() || !old.is_ready() => deeds.outdated.push(old.pod.clone()),
                // Another pod there is about to go, or is left as it ended for a while.
                (Some(_), None) if on_node.daemons.len() > 1 || room == 0 => {}
                (Some(old), None) if !old.is_ready() => {
                    room -= 1;
                    deeds.bare.push(name.clone());
                }
                (Some(_), None) if may_come > 0 => {
                    (may_come, room) = (may_come - 1, room - 1);
                    deeds.bare.push(name.clone());
                }
                _ => {}
            }
        }
    }
}
