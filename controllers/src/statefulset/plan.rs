//! What to do about one stateful set. Pure.
//!
//! Pods are made in ascending order and go in descending order, one at a time where the set is ordered; nothing is scaled
//! while a pod that is to stay is not available. An update replaces pods from the highest ordinal down. What differs from
//! Kubernetes is that an update does not wait for a pod of an earlier revision that is not ready (kubernetes#67250): see
//! [`Replicas::is_stuck`].

use super::{claims, identity, status};
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
    api::{apps::v1::StatefulSetStatus, core::v1::PersistentVolumeClaim},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::core::ApiResource;
use proa_crds::{ControllerRevision, Pod, StatefulSet};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// A snapshot of one stateful set.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The set.
    pub set: Arc<StatefulSet>,
    /// The pods it controls.
    pub pods: Vec<Arc<Pod>>,
    /// Pods of its namespace that nobody controls and its selector selects.
    pub orphans: Vec<Arc<Pod>>,
    /// The revisions it controls.
    pub revisions: Vec<Arc<ControllerRevision>>,
    /// Revisions of its namespace that nobody controls.
    pub orphan_revisions: Vec<Arc<ControllerRevision>>,
    /// The claims of its namespace that may be its pods', by name.
    pub claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
    /// Until when the pod of that name is not made anew, because it ends as soon as it is made.
    pub pauses: BTreeMap<String, Timestamp>,
    /// How sets and pods are served.
    pub resources: (ApiResource, ApiResource),
}

/// Why a pod goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its ordinal is not wanted any more.
    ScaledDown,
    /// It is of an earlier revision.
    Updated,
    /// It is of an earlier revision and not ready: nothing is lost with it, and waiting for it leads nowhere.
    Stuck,
    /// It failed, or was evicted.
    Failed,
    /// Its containers ended well, which they must not.
    Succeeded,
}

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Become the controller of a pod.
    Adopt(Arc<Pod>),
    /// Give up a pod that is not the set's.
    Release(Arc<Pod>),
    /// Write to the history.
    Record(history::Write),
    /// Write the status.
    Status(Box<StatefulSetStatus>),
    /// Write the status, and an event that says why no pods are made.
    Refuse(selector::Refusal, Box<StatefulSetStatus>),
    /// Make the claim of a pod.
    CreateClaim(Box<PersistentVolumeClaim>, String),
    /// Patch a claim.
    PatchClaim(Arc<PersistentVolumeClaim>, Value),
    /// Make pods.
    Create(Vec<Pod>),
    /// Patch a pod.
    PatchPod(Arc<Pod>, Value),
    /// Take pods away.
    Delete(Vec<Arc<Pod>>, Why),
}

/// Decides what to do.
pub fn plan(seen: &Seen, now: Timestamp) -> Plan<Action> {
    let set = &*seen.set;
    let leaving = set.metadata.deletion_timestamp.is_some();
    let template_labels = set.spec.template.metadata.as_ref().and_then(|meta| meta.labels.as_ref());
    if let Some(why) = selector::refused(&set.spec.selector, template_labels, "stateful set").filter(|_| !leaving) {
        let status = status::refused(set, &why, now);
        let known = set.status.as_ref() == Some(&status);
        return if known { Plan::nothing() } else { Plan::act(vec![Action::Refuse(why, Box::new(status))]) };
    }
    let parent = Parent::of_stateful_set(set, &seen.resources.0);
    let history = History::of(&parent, &seen.revisions);
    let belonging = belonging(seen, &parent, &history);
    if !belonging.is_empty() {
        return Plan::act(belonging);
    }
    let update = match history.current(&parent) {
        Ok(update) => update,
        Err(history::Pending::Record(write)) if !leaving => return Plan::act(vec![Action::Record(write)]),
        Err(_) => return Plan::nothing(),
    };
    let current = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
    let current = current.and_then(|name| history.named(name)).unwrap_or(update);

    let replicas = Replicas::of(seen, &history, update, current, now);
    let mut plan = Plan::nothing();
    let status = status::of(&replicas);
    if set.status.as_ref() != Some(&status) {
        plan.actions.push(Action::Status(Box::new(status)));
    }
    if let Some(wait) = replicas.next_available() {
        plan.look_again(wait);
    }
    if leaving {
        return plan;
    }
    replicas.keep(&mut plan);
    let in_use = |held: &ControllerRevision| {
        let name = held.metadata.name.as_deref();
        name == current.metadata.name.as_deref()
            || seen.pods.iter().any(|pod| {
                let of_pod = history.of_pod(Keeper::StatefulSet, &pod.metadata);
                of_pod.is_some_and(|of_pod| of_pod.metadata.name.as_deref() == name)
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
    let is_member = |pod: &&Arc<Pod>| {
        identity::ordinal(set, pod).is_some() && selector::matches(&set.spec.selector, pod.metadata.labels.as_ref())
    };
    let stays = |pod: &&Arc<Pod>| pod.metadata.deletion_timestamp.is_none();
    let adopt = seen.orphans.iter().filter(stays).filter(is_member).cloned().map(Action::Adopt);
    let release = seen.pods.iter().filter(stays).filter(|pod| !is_member(pod)).cloned().map(Action::Release);
    let revisions = history.claims(parent, &seen.orphan_revisions).into_iter().map(Action::Record);
    adopt.chain(release).chain(revisions).collect()
}

/// One pod, as the plan sees it.
#[derive(Clone, Debug)]
pub(super) struct Replica<'a> {
    pub(super) ordinal: i64,
    pub(super) name: String,
    pub(super) pod: Option<&'a Arc<Pod>>,
    /// It was made from the template as it is now.
    pub(super) is_updated: bool,
    /// It was made from the revision the last complete rollout was of.
    pub(super) is_current: bool,
    /// It runs and is ready.
    pub(super) is_ready: bool,
    /// It has been ready long enough, and stays.
    pub(super) is_available: bool,
    /// How long until a ready one has been ready long enough.
    pub(super) available_in: Option<Duration>,
}

impl Replica<'_> {
    pub(super) fn is_leaving(&self) -> bool {
        self.pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_some())
    }
}

/// The pods of a set: wanted ones by ascending ordinal, those to go by descending ordinal.
#[derive(Clone, Debug)]
pub(super) struct Replicas<'a> {
    pub(super) seen: &'a Seen,
    pub(super) update: &'a Arc<ControllerRevision>,
    pub(super) current: &'a Arc<ControllerRevision>,
    pub(super) wanted: Vec<Replica<'a>>,
    pub(super) condemned: Vec<Replica<'a>>,
    /// So many of the wanted may be unavailable for an update.
    max_unavailable: usize,
    /// The first of the wanted, by place, that an update reaches.
    partition: usize,
    /// See [`Replicas::is_held_back`].
    held_back: bool,
    now: Timestamp,
}

impl<'a> Replicas<'a> {
    fn of(
        seen: &'a Seen,
        history: &History,
        update: &'a Arc<ControllerRevision>,
        current: &'a Arc<ControllerRevision>,
        now: Timestamp,
    ) -> Replicas<'a> {
        let (set, ordinals) = (&*seen.set, identity::ordinals(&seen.set));
        let by_ordinal: BTreeMap<i64, &Arc<Pod>> =
            seen.pods.iter().filter_map(|pod| Some((identity::ordinal(set, pod)?, pod))).collect();
        let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
        let is_current_updated = update.metadata.name == current.metadata.name;
        let replica = |ordinal: i64| {
            let pod = by_ordinal.get(&ordinal).copied();
            let is_updated = pod.is_some_and(|pod| history.is_updated(Keeper::StatefulSet, &pod.metadata));
            let of_current = |pod: &Arc<Pod>| {
                let revision = history.of_pod(Keeper::StatefulSet, &pod.metadata);
                revision.is_some_and(|revision| revision.metadata.name == current.metadata.name)
            };
            let running = pod.filter(|pod| pods::phase(pod) == "Running");
            let available_in = running.and_then(|pod| pods::available_in(pod, min_ready, now));
            let leaving = pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_some());
            Replica {
                ordinal,
                name: identity::pod_name(set, ordinal),
                pod,
                is_updated,
                is_current: if is_current_updated { is_updated } else { pod.is_some_and(of_current) },
                is_ready: available_in.is_some(),
                is_available: available_in.is_some_and(|wait| wait.is_zero()) && !leaving,
                available_in,
            }
        };
        let wanted: Vec<_> = ordinals.clone().map(replica).collect();
        let unwanted = by_ordinal.keys().rev().filter(|ordinal| !ordinals.contains(ordinal));
        let condemned: Vec<_> = unwanted.map(|ordinal| replica(*ordinal)).collect();
        let rolling = set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        // As Kubernetes counts: percentages round down, and one may always be missing (KEP-961).
        let total = i32::try_from(wanted.len()).unwrap_or(i32::MAX);
        let one = IntOrString::Int(1);
        let missing = rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).unwrap_or(&one);
        let max_unavailable = usize::try_from(resolve(missing, total, Round::Down)).unwrap_or(0).max(1);
        let partition = rolling.and_then(|rolling| rolling.partition).unwrap_or(0);
        // What is known to fail reaches no pod, and a step of a gradual rollout only the highest ordinals.
        let reach = guard::reach(&set.metadata, update);
        let beyond = reach.map_or(0, |reach| wanted.len().saturating_sub(reach));
        let partition = usize::try_from(partition).unwrap_or(0).max(beyond);
        let mut replicas =
            Replicas { seen, update, current, wanted, condemned, max_unavailable, partition, held_back: false, now };
        replicas.held_back = replicas.is_held_back();
        replicas
    }

    fn set(&self) -> &'a StatefulSet {
        &self.seen.set
    }

    fn is_ordered(&self) -> bool {
        self.set().spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    pub(super) fn is_rolling(&self) -> bool {
        let strategy = self.set().spec.update_strategy.as_ref();
        strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
    }

    /// When the next ready pod becomes available.
    fn next_available(&self) -> Option<Duration> {
        let waits = self.wanted.iter().chain(&self.condemned).filter_map(|replica| replica.available_in);
        waits.filter(|wait| !wait.is_zero()).min()
    }

    /// Makes what is missing, takes away what is not wanted, and updates.
    fn keep(&self, plan: &mut Plan<Action>) {
        let ordered = self.is_ordered();
        let (mut new, mut stuck) = (Vec::new(), Vec::new());
        for (place, replica) in self.wanted.iter().enumerate() {
            let halted = match replica.pod {
                None => {
                    self.make(place, replica, &mut new, plan);
                    true
                }
                Some(pod) if pods::is_over(pod) => {
                    self.make_way(pod, replica, plan);
                    true
                }
                Some(pod) => {
                    self.keep_identity(pod, replica, plan);
                    if self.is_stuck(place, replica) {
                        stuck.push(pod.clone());
                    }
                    !replica.is_available
                }
            };
            if ordered && halted {
                push(plan, new, Action::Create);
                push(plan, stuck, |pods| Action::Delete(pods, Why::Stuck));
                return;
            }
        }
        push(plan, new, Action::Create);
        push(plan, stuck, |pods| Action::Delete(pods, Why::Stuck));
        if self.scale_down(plan) && ordered {
            return;
        }
        self.roll(plan);
    }

    /// A pod and its claims are made; not before the claims of an earlier pod of the name, that go with it, are gone.
    fn make(&self, place: usize, replica: &Replica<'_>, new: &mut Vec<Pod>, plan: &mut Plan<Action>) {
        let set = self.set();
        let (set_kind, pod_kind) = &self.seen.resources;
        if let Some(wait) = left(&self.seen.pauses, &replica.name, self.now) {
            return plan.look_again(wait);
        }
        let mut missing = Vec::new();
        for template in claims::templates(set) {
            match self.seen.claims.get(&claims::name(set, template, replica.ordinal)) {
                Some(claim) if claim.metadata.deletion_timestamp.is_some() => return,
                Some(claim) if claims::is_stale(claim, set, &replica.name, pod_kind) => return,
                Some(_) => {}
                None => missing.push(claims::claim(set, template, replica.ordinal, set_kind)),
            }
        }
        let claim = |claim| Action::CreateClaim(Box::new(claim), replica.name.clone());
        plan.actions.extend(missing.into_iter().map(claim));
        let revision = self.revision_for(place);
        let pod = identity::pod_of(set, replica.ordinal, revision, set_kind, pod_kind);
        new.push(guard::configured(pod, revision));
    }

    /// A pod that ended is taken away, so that the next one can have its name.
    fn make_way(&self, pod: &Arc<Pod>, replica: &Replica<'_>, plan: &mut Plan<Action>) {
        if replica.is_leaving() {
            return;
        }
        if let Some(wait) = left(&self.seen.pauses, &replica.name, self.now) {
            return plan.look_again(wait);
        }
        let why = if pods::phase(pod) == "Failed" { Why::Failed } else { Why::Succeeded };
        plan.actions.push(Action::Delete(vec![pod.clone()], why));
    }

    /// Labels, claims and their owners are kept right while a pod lives.
    fn keep_identity(&self, pod: &Arc<Pod>, replica: &Replica<'_>, plan: &mut Plan<Action>) {
        if replica.is_leaving() {
            return;
        }
        let set = self.set();
        if pods::phase(pod) != "Running" {
            // It waits for a claim that somebody took away.
            for template in claims::templates(set) {
                if !self.seen.claims.contains_key(&claims::name(set, template, replica.ordinal)) {
                    let claim = claims::claim(set, template, replica.ordinal, &self.seen.resources.0);
                    plan.actions.push(Action::CreateClaim(Box::new(claim), replica.name.clone()));
                }
            }
        }
        if let Some(patch) = identity::missing_labels(pod, replica.ordinal) {
            plan.actions.push(Action::PatchPod(pod.clone(), patch));
        }
        self.keep_owners(pod, replica.ordinal, true, plan);
    }

    fn keep_owners(&self, pod: &Pod, ordinal: i64, wanted: bool, plan: &mut Plan<Action>) {
        let (set_kind, pod_kind) = &self.seen.resources;
        for template in claims::templates(self.set()) {
            let Some(claim) = self.seen.claims.get(&claims::name(self.set(), template, ordinal)) else { continue };
            if let Some(patch) = claims::owned_right(claim, self.set(), pod, wanted, set_kind, pod_kind) {
                plan.actions.push(Action::PatchClaim(claim.clone(), patch));
            }
        }
    }

    /// Takes away pods that are not wanted; whether there still are some.
    ///
    /// In an ordered set one goes at a time, and none while a pod below it is not available. But what is not ready and of an
    /// earlier revision is not waited for (see [`Self::is_stuck`]): it goes first.
    fn scale_down(&self, plan: &mut Plan<Action>) -> bool {
        for replica in &self.condemned {
            if let Some(pod) = replica.pod {
                self.keep_owners(pod, replica.ordinal, false, plan);
            }
        }
        let staying = |replica: &&Replica<'a>| !replica.is_leaving();
        if !self.is_ordered() {
            let gone = self.condemned.iter().filter(staying).filter_map(|replica| replica.pod.cloned()).collect();
            push(plan, gone, |pods| Action::Delete(pods, Why::ScaledDown));
            return !self.condemned.is_empty();
        }
        let Some(last) = self.condemned.first() else { return false };
        let lowest_unavailable = self.condemned.iter().rev().find(|replica| !replica.is_available);
        let waited_for = lowest_unavailable.filter(|lowest| !last.is_available && lowest.ordinal != last.ordinal);
        let next = match waited_for {
            None => Some(last),
            Some(lowest) => Some(lowest).filter(|_| self.is_rolling() && !lowest.is_ready && !lowest.is_updated),
        };
        if let Some(pod) = next.filter(|next| !next.is_leaving()).and_then(|next| next.pod) {
            plan.actions.push(Action::Delete(vec![pod.clone()], Why::ScaledDown));
        }
        true
    }

    /// Takes pods of earlier revisions away, the highest ordinals first, as far as enough others are available.
    fn roll(&self, plan: &mut Plan<Action>) {
        if !self.is_rolling() {
            return;
        }
        let unavailable = self.wanted.iter().filter(|replica| !replica.is_available).count();
        let may_go = self.max_unavailable.saturating_sub(unavailable);
        let old = self.wanted.iter().skip(self.partition).rev().filter(|it| !it.is_updated && it.is_available);
        let gone = old.take(may_go).filter_map(|replica| replica.pod.cloned()).collect();
        push(plan, gone, |pods| Action::Delete(pods, Why::Updated));
    }

    /// The update reaches this place, and the pod there is of an earlier revision.
    fn is_outdated(&self, place: usize, replica: &Replica<'_>) -> bool {
        self.is_rolling() && place >= self.partition && replica.pod.is_some() && !replica.is_updated
    }

    /// A pod of an earlier revision that is not ready: it is replaced, not waited for. Waiting would be for ever where
    /// its revision is what keeps it from getting ready.
    fn is_stuck(&self, place: usize, replica: &Replica<'_>) -> bool {
        self.is_outdated(place, replica) && !replica.is_leaving() && !replica.is_ready && !self.held_back
    }

    /// The update has as many unavailable pods as it may have while pods of the revision before it work: until these are
    /// ready it gets no more, neither by an update nor in the place of pods that got lost.
    fn is_held_back(&self) -> bool {
        let reached = self.wanted.iter().skip(self.partition);
        let unavailable = reached.filter(|it| it.pod.is_some() && it.is_updated && !it.is_available).count();
        unavailable >= self.max_unavailable && self.wanted.iter().any(|it| it.is_available && !it.is_updated)
    }

    /// Which revision a pod that is to be made gets.
    fn revision_for(&self, place: usize) -> &'a ControllerRevision {
        let before = self.is_rolling() && (place < self.partition || self.held_back);
        if before { self.current } else { self.update }
    }
}

fn push<T>(plan: &mut Plan<Action>, list: Vec<T>, action: impl Fn(Vec<T>) -> Action) {
    if !list.is_empty() {
        plan.actions.push(action(list));
    }
}
