//! What to do about a release: record what its members have come to, judge it, go back. Pure.

use super::{
    content::{Content, Id},
    health::{Health, Judging},
    judge::NOTHING_TO_GO_BACK_TO,
    membership::{Want, is_to_be_parent},
    records::{self, Record},
    status,
    steps::{Live, Step, due, steps},
};
use crate::{
    Plan,
    events::{Kind, Note},
    patch::{json, merge_diff},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use proa_crds::{
    RolloutPolicySpec, annotations, conditions,
    policy::FailureAction,
    reasons,
    release::{GoingBack, Member as ListedMember, Outcome, Release, ReleaseStatus, Revision},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// Members that have not changed for so long have come to rest: an apply of many objects is one revision.
pub(super) const REST: Duration = Duration::from_secs(2);
/// What is awaited wakes us; this is the slow look behind it.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// A member as it was seen.
#[derive(Clone, Debug)]
pub struct Member {
    /// What the server has.
    pub live: Live,
    /// Whether it is well.
    pub health: Health,
    /// Whether the cluster rather than its revision is to blame for what it lacks.
    pub judging: Judging,
    /// Who wrote it, and when last.
    pub authors: BTreeMap<String, Timestamp>,
}

/// The snapshot.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The release.
    pub release: Arc<Release>,
    /// Why it cannot be told what belongs to it.
    pub unknown: Option<String>,
    /// What must be watched to know its members.
    pub wants: Vec<Want>,
    /// Whether all of that is.
    pub watching: bool,
    /// The change cause of the release or of the ApplySet's parent.
    pub cause: Option<String>,
    /// Its members.
    pub members: Vec<Member>,
    /// Since when they say what they say.
    pub stands_since: Timestamp,
    /// The policy that holds for it.
    pub policy: Option<RolloutPolicySpec>,
    /// Since when its members are as they are: the last time one came further, or fell back.
    pub progressed: Timestamp,
    /// The members of the revision that comes back, once they were read.
    pub target: Option<Arc<Vec<Content>>>,
    /// The objects of it whose kind the server does not serve (yet).
    pub unserved: BTreeSet<Id>,
    /// The objects whose appliers have got their fields back.
    pub returned: BTreeSet<Id>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Watch this and nothing else.
    Watch(Vec<Want>),
    /// Read the members of the revision that comes back.
    Load {
        /// Its record.
        record: String,
    },
    /// Keep a revision, then say so in the status.
    Record {
        /// What is kept.
        record: Box<Record>,
        /// The patch of the status.
        status: Value,
    },
    /// Change the status.
    PatchStatus(Value),
    /// Change the release itself.
    Patch(Value),
    /// Let the ApplySet's parent say that it has members of these kinds, and where these are.
    Grow(Vec<Id>),
    /// One step of going back.
    Step(Box<Step>),
    /// Remove what no revision refers to.
    Sweep(BTreeSet<String>),
    /// Tell.
    Note(Note),
}

/// Decides.
pub fn plan(seen: &Seen, now: Timestamp) -> Plan<Action> {
    let release = &seen.release;
    if release.metadata.deletion_timestamp.is_some() {
        return Plan::nothing();
    }
    if is_to_be_parent(release) {
        return Plan::act(vec![Action::Grow(Vec::new())]);
    }
    if seen.unknown.is_none() && !seen.watching {
        return Plan::act(vec![Action::Watch(seen.wants.clone())]);
    }
    let mut planner = Planner {
        seen,
        now,
        status: release.status.clone().unwrap_or_default(),
        contents: seen.members.iter().filter(|m| !m.live.deleting).map(|m| m.live.content.clone()).collect(),
        plan: Plan::nothing(),
    };
    match &seen.unknown {
        Some(why) => {
            planner.say(conditions::READY, "Unknown", "MembersUnknown", why);
            planner.say(conditions::STALLED, "True", "MembersUnknown", why);
            planner.settle();
        }
        None if planner.status.rollback.is_some() => planner.go_on(),
        None => planner.look(),
    }
    planner.plan
}

fn listed(content: &Content) -> ListedMember {
    let api_version = content.object.get("apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
    ListedMember { api_version, kind: content.id.kind.clone(), name: content.id.name.clone() }
}

fn is_named(member: &ListedMember, id: &Id) -> bool {
    let group = member.api_version.rsplit_once('/').map_or("", |(group, _)| group);
    member.name == id.name && member.kind == id.kind && group == id.group
}

pub(super) struct Planner<'a> {
    pub(super) seen: &'a Seen,
    pub(super) now: Timestamp,
    /// As it is to be.
    pub(super) status: ReleaseStatus,
    contents: Vec<Content>,
    pub(super) plan: Plan<Action>,
}

impl Planner<'_> {
    pub(super) fn say(&mut self, type_: &str, status: &str, reason: &str, message: &str) {
        let generation = self.seen.release.metadata.generation;
        status::set(&mut self.status.conditions, type_, status, reason, message, generation, self.now);
    }

    pub(super) fn act(&mut self, action: Action) {
        self.plan.actions.push(action);
    }

    pub(super) fn note(&mut self, reason: &'static str, message: String) {
        self.act(Action::Note(Note { kind: Kind::Warning, reason, message }));
    }

    /// Whether a failed revision is to be taken back.
    pub(super) fn wants_rollback(&self) -> bool {
        self.seen.policy.as_ref().is_some_and(|policy| policy.action == FailureAction::Rollback)
    }

    /// The value of `proa.dev/retry`.
    pub(super) fn retry(&self) -> &str {
        self.seen
            .release
            .metadata
            .annotations
            .as_ref()
            .and_then(|notes| notes.get(annotations::RETRY))
            .map_or("", String::as_str)
    }

    pub(super) fn is_retried(&self, failed: &Revision) -> bool {
        !self.retry().is_empty() && self.retry() != failed.retry
    }

    pub(super) fn stamp(&self) -> Option<MicroTime> {
        Some(MicroTime(self.now))
    }

    /// The patch that brings the status up to what was decided; `None` when it is. It fails when the release changed
    /// meanwhile: a list of revisions is replaced as a whole.
    fn change(&mut self) -> Option<Value> {
        self.status.observed_generation = self.seen.release.metadata.generation;
        self.status.members = i32::try_from(self.contents.len()).ok();
        self.status.revision = self.status.revisions.last().map(|last| last.revision);
        let held = self.seen.release.status.as_ref().map(json).unwrap_or_else(|| json!({}));
        let change = merge_diff(&held, &json(&self.status))?;
        let meta = &self.seen.release.metadata;
        Some(json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version}, "status": change}))
    }

    /// The end of every plan that does not go back.
    fn settle(&mut self) {
        if let Some(patch) = self.change() {
            self.plan.actions.insert(0, Action::PatchStatus(patch));
        }
    }

    /// Times on the wire are whole seconds: what is said up to now is earlier.
    pub(super) fn next_second(&self) -> MicroTime {
        MicroTime(Timestamp::from_second(self.now.as_second() + 1).unwrap_or(self.now))
    }

    fn contents_are(&self, revision: Option<&Revision>) -> bool {
        revision.is_some_and(|revision| revision.digest == records::digest(&self.contents))
    }

    /// Nothing is under way: has something changed, and is what is there well?
    fn look(&mut self) {
        let spec = &self.seen.release.spec;
        let changed = !self.contents_are(self.status.revisions.last());
        if changed && self.contents.is_empty() && self.status.revisions.is_empty() {
            self.say(conditions::READY, "False", "NoMembers", "nothing belongs to the release yet");
            self.say(conditions::STALLED, "False", "NoMembers", "");
            return self.settle();
        }
        if !changed {
            self.judge();
            if self.status.rollback.is_some() {
                return;
            }
            if spec.rollback_to.is_some() {
                return self.take_in_wish();
            }
            if let Some(failed) = self.to_retry().cloned() {
                let current = self.status.revisions.last().cloned().unwrap_or_default();
                return self.begin(self.going(&current, &failed));
            }
            return self.settle();
        }
        if spec.rollback_to.is_none() {
            if spec.paused {
                self.say(conditions::RECONCILING, "True", "Paused", "its members change while it is paused");
                return self.settle();
            }
            let digest = records::digest(&self.contents);
            let bad =
                self.status.revisions.iter().rev().find(|held| held.digest == digest && held.result == Outcome::Failed);
            if let Some(bad) = bad.filter(|bad| self.wants_rollback() && !self.is_retried(bad)).cloned()
                && let Some(to) = self.last_healthy(&bad).cloned()
            {
                let going = GoingBack {
                    automatic: true,
                    refused: true,
                    reason: bad.reason.clone(),
                    message: bad.message.clone(),
                    ..self.going(&bad, &to)
                };
                return self.begin(going);
            }
            let stood = Duration::try_from(self.now.duration_since(self.seen.stands_since)).unwrap_or_default();
            if let Some(left) = REST.checked_sub(stood).filter(|left| !left.is_zero()) {
                self.say(conditions::RECONCILING, "True", "MembersChanging", "its members change");
                self.plan.look_again(left);
                return self.settle();
            }
        }
        // A wish to go back waits for nothing, but what is there now must not be lost over it.
        self.record(None);
    }

    /// A new revision: what the members say now.
    fn record(&mut self, rolled_back: Option<&GoingBack>) {
        let record = match Record::of(&self.contents) {
            Ok(record) => record,
            Err(error) => {
                self.say(conditions::STALLED, "True", reasons::TOO_LARGE, &error.to_string());
                return self.settle();
            }
        };
        let before = self.status.revisions.last();
        let since = before.and_then(|before| before.recorded_at.as_ref()).map(|at| at.0);
        let next = self.status.revisions.iter().map(|held| held.revision).max().unwrap_or(0) + 1;
        let authors = match rolled_back {
            Some(going) if !going.by.is_empty() => vec![going.by.clone()],
            _ => status::authors(&self.seen.members, since),
        };
        let mut revision = Revision {
            revision: next,
            digest: record.digest.clone(),
            record: record.record.clone(),
            recorded_at: self.stamp(),
            members: i32::try_from(self.contents.len()).unwrap_or(i32::MAX),
            authors,
            cause: match rolled_back {
                Some(going) => Some(format!("rolled back to revision {}", going.to)),
                None => self.seen.cause.clone(),
            },
            images: record.images.clone(),
            rolled_back_to: rolled_back.map(|going| going.to),
            ..Revision::default()
        };
        // What failed before the members came to rest failed with them.
        let failure = before.filter(|_| rolled_back.is_none()).and_then(|before| self.failure_after(before));
        let well = self
            .status
            .revisions
            .iter()
            .rev()
            .find(|held| held.digest == record.digest && held.result == Outcome::Healthy && self.went_back());
        let well = well.map(|held| held.revision);
        let (retry, decided_at) = (self.retry().to_owned(), self.stamp());
        match (failure, well) {
            (None, _) => {}
            // Its members went back by themselves, and all is as it was when it was well: so has the release.
            (Some((reason, message)), Some(to)) => {
                revision.rolled_back_to = Some(to);
                revision.cause = Some(format!("rolled back to revision {to}"));
                // One that was well is what they left. One that was under way may have been changed before they did.
                if let Some(failed) = self.status.revisions.last_mut().filter(|last| last.result == Outcome::Healthy) {
                    failed.result = Outcome::Failed;
                    (failed.decided_at, failed.retry) = (decided_at, retry);
                    (failed.reason, failed.message) = (reason, message);
                }
            }
            (Some((reason, message)), None) => {
                revision = Revision { result: Outcome::Failed, decided_at, reason, message, retry, ..revision };
            }
        }
        if let Some(before) = self.status.revisions.last_mut().filter(|before| before.result == Outcome::Progressing) {
            before.result = Outcome::Superseded;
        }
        if rolled_back.is_none_or(|going| !going.automatic) {
            for type_ in [conditions::ROLLED_BACK, conditions::ROLLOUT_REFUSED] {
                if status::is_true(&self.status.conditions, type_) {
                    self.say(type_, "False", "NewRevision", "");
                }
            }
        }
        self.say(conditions::READY, "False", "Progressing", &format!("revision {next} rolls out"));
        self.say(conditions::RECONCILING, "True", "Progressing", &format!("revision {next} rolls out"));
        self.say(conditions::STALLED, "False", "Progressing", "");
        self.status.revisions.push(revision);
        let trimmed = status::trim(&mut self.status.revisions, self.seen.release.spec.revision_history_limit);
        let kept = self.status.revisions.iter().map(|held| held.record.clone()).collect();
        if let Some(status) = self.change() {
            self.act(Action::Record { record: Box::new(record), status });
        }
        if trimmed {
            self.act(Action::Sweep(kept));
        }
    }

    /// The newest healthy revision that says something else than this one.
    pub(super) fn last_healthy(&self, than: &Revision) -> Option<&Revision> {
        let healthy = |held: &&Revision| held.result == Outcome::Healthy && held.digest != than.digest;
        self.status.revisions.iter().rev().find(healthy)
    }

    /// The failed revision that was taken back or refused last, and is to be tried again now.
    fn to_retry(&self) -> Option<&Revision> {
        let back = [conditions::ROLLED_BACK, conditions::ROLLOUT_REFUSED];
        let went_back = back.iter().any(|type_| status::is_true(&self.status.conditions, type_));
        let failed = self.status.revisions.iter().rev().find(|held| held.result == Outcome::Failed)?;
        (went_back && self.is_retried(failed) && !self.contents_are(Some(failed))).then_some(failed)
    }

    pub(super) fn going(&self, from: &Revision, to: &Revision) -> GoingBack {
        GoingBack {
            from: from.revision,
            to: to.revision,
            record: to.record.clone(),
            by: "proa".to_owned(),
            started_at: self.stamp(),
            ..GoingBack::default()
        }
    }

    /// The intention comes before the first write.
    pub(super) fn begin(&mut self, going: GoingBack) {
        let message = format!("going back to revision {}", going.to);
        self.say(conditions::READY, "False", "GoingBack", &message);
        self.say(conditions::RECONCILING, "True", "GoingBack", &message);
        self.say(conditions::STALLED, "False", "GoingBack", "");
        self.status.rollback = Some(going);
        if let Some(patch) = self.change() {
            self.act(Action::PatchStatus(patch));
        }
    }

    /// Somebody wants to go back: that becomes an intention, and is no longer a wish.
    fn take_in_wish(&mut self) {
        let Some(wish) = self.seen.release.spec.rollback_to.clone() else { return };
        let from = self.status.revisions.last().cloned().unwrap_or_default();
        match status::choose(&self.status.revisions, wish.revision) {
            Ok(to) if to.digest == from.digest => {
                self.say(
                    conditions::STALLED,
                    "False",
                    "Unchanged",
                    &format!("its members are those of revision {} already", to.revision),
                );
                self.settle();
            }
            Ok(to) => {
                let by = status::wished_by(&self.seen.release);
                let going = GoingBack { force: wish.force, by, ..self.going(&from, &to.clone()) };
                self.begin(going);
            }
            Err(why) => {
                self.say(conditions::STALLED, "True", reasons::REVISION_NOT_FOUND, &why);
                self.note(reasons::REVISION_NOT_FOUND, why);
                self.settle();
            }
        }
        self.clear_wish();
    }

    fn clear_wish(&mut self) {
        let meta = &self.seen.release.metadata;
        self.act(Action::Patch(json!({"metadata": {"uid": meta.uid}, "spec": {"rollbackTo": null}})));
    }

    /// A going back is under way: what is left of it?
    fn go_on(&mut self) {
        let Some(mut going) = self.status.rollback.clone() else { return };
        if let Some(wish) = self.seen.release.spec.rollback_to.clone() {
            // The same again: only force is news. Another one: that comes instead.
            match status::choose(&self.status.revisions, Some(wish.revision.unwrap_or(going.to))) {
                Ok(to) => {
                    going.force |= wish.force;
                    (going.to, going.record) = (to.revision, to.record.clone());
                    self.status.rollback = Some(going);
                    // What stood in the way was said of the wish before.
                    self.say(conditions::STALLED, "False", "GoingBack", "");
                }
                Err(why) => self.say(conditions::STALLED, "True", reasons::REVISION_NOT_FOUND, &why),
            }
            self.settle();
            return self.clear_wish();
        }
        let Some(target) = &self.seen.target else {
            return self.act(Action::Load { record: going.record });
        };
        if let Some(grow) = self.grow(target) {
            return self.act(grow);
        }
        let live: Vec<Live> = self.seen.members.iter().map(|member| member.live.clone()).collect();
        let left = steps(target, &live, &self.seen.returned);
        if left.is_empty() {
            return self.arrive(&going);
        }
        let now = due(left);
        if now.is_empty() {
            self.plan.look_again(LOOK_AGAIN);
        }
        self.settle();
        for step in now {
            self.act(Action::Step(Box::new(step)));
        }
    }

    /// What comes back must be known as a member before it is there: to us, and to the next apply.
    fn grow(&self, target: &[Content]) -> Option<Action> {
        let members = &self.seen.release.spec.members;
        if !members.objects.is_empty() {
            let held = |id: &Id| members.objects.iter().any(|member| is_named(member, id));
            let missing: Vec<ListedMember> = target.iter().filter(|content| !held(&content.id)).map(listed).collect();
            return (!missing.is_empty()).then(|| self.list(members.objects.iter().cloned().chain(missing).collect()));
        }
        if members.selector.is_some() {
            return None;
        }
        let watched = |id: &Id| {
            self.seen.wants.iter().any(|want| want.resource.kind == id.kind && want.resource.group == id.group)
        };
        // One that is not served cannot be watched: its definition is one of the first steps.
        let served = |content: &&Content| !self.seen.unserved.contains(&content.id);
        let unwatched = target.iter().filter(served).any(|content| !watched(&content.id));
        unwatched.then(|| Action::Grow(target.iter().map(|content| content.id.clone()).collect()))
    }

    fn list(&self, objects: Vec<ListedMember>) -> Action {
        let meta = &self.seen.release.metadata;
        Action::Patch(json!({
            "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
            "spec": {"members": {"objects": objects}},
        }))
    }

    /// Every member is what it was: that is a revision of its own, as after every undo.
    fn arrive(&mut self, going: &GoingBack) {
        let listed_now = &self.seen.release.spec.members.objects;
        if let Some(target) = self.seen.target.as_deref().filter(|_| !listed_now.is_empty()) {
            let kept: Vec<ListedMember> = target.iter().map(listed).collect();
            if !kept.is_empty()
                && listed_now.iter().any(|member| !target.iter().any(|content| is_named(member, &content.id)))
            {
                let action = self.list(kept);
                return self.act(action);
            }
        }
        self.status.rollback = None;
        let why = format!("{}: {}", going.reason, going.message);
        let next = self.status.revisions.iter().map(|held| held.revision).max().unwrap_or(0) + 1;
        if going.refused {
            let message = format!(
                "revision {} is known to fail ({why}); revision {} stays. Change its members, or set the annotation {} to a new value to try it again",
                going.from,
                going.to,
                annotations::RETRY,
            );
            self.say(conditions::ROLLOUT_REFUSED, "True", &going.reason, &message);
            self.note(reasons::ROLLOUT_REFUSED, message);
        } else if going.automatic {
            let message = format!(
                "revision {} failed ({why}); went back to revision {}, which is now revision {next}",
                going.from, going.to
            );
            self.say(conditions::ROLLED_BACK, "True", &going.reason, &message);
            self.note(reasons::ROLLED_BACK, message);
        }
        if self.contents_are(self.status.revisions.last()) {
            let (went_back, next_second, retry) = (self.went_back(), self.next_second(), self.retry().to_owned());
            match self.status.revisions.last_mut() {
                // What its members say of the refusal, in this very second too, is not held against it.
                Some(last) if last.result == Outcome::Healthy => last.decided_at = Some(next_second),
                // It is what that revision was when it was well, but for sizes that somebody gave: its members had come
                // back by themselves.
                Some(last) if last.result == Outcome::Failed && went_back => {
                    *last = Revision {
                        result: Outcome::Progressing,
                        rolled_back_to: Some(going.to),
                        recorded_at: Some(next_second),
                        decided_at: None,
                        reason: String::new(),
                        message: String::new(),
                        retry,
                        ..last.clone()
                    };
                }
                // Nothing was left to change: going back from here again would go on for ever.
                Some(last) if last.result == Outcome::Failed => {
                    let message =
                        format!("revision {} failed ({why}), and revision {} asks for the same", going.from, going.to);
                    self.say(conditions::STALLED, "True", NOTHING_TO_GO_BACK_TO, &message);
                }
                _ => {}
            }
            self.judge();
            self.settle();
        } else {
            self.record(Some(going));
        }
    }
}
