//! What to do about one guarded object. Pure.
//!
//! The loop of the kind records revisions and moves pods. This plan marks revisions, and changes the object: its template
//! when it goes back, its annotations so that the loop and the API server know what is held back. Order: say which
//! configuration is rolled out → follow an undo → refuse or take back a failed revision → judge → mark what did well → keep its
//! configuration.

use super::{
    configuration,
    ward::{Condition, Ward},
};
use crate::{
    Plan,
    deployment::same_template,
    events::{Kind, Note},
    history::{configuration_of, template_of, template_with},
    patch::{json, merge_diff},
    pods,
    rollback::{
        Live, Revision, Surroundings,
        checks::{self, Question, Standing},
        config, marks, policy,
        steps::{self, Pace},
        surroundings::LOOK_AGAIN,
        verdict::{Case, Verdict, is_of_previous_run},
    },
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{PodTemplateSpec, Secret},
    apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
};
use proa_crds::{
    ControllerRevision, Failure, Family, Pod, RolloutPolicySpec, annotations, conditions, policy::FailureAction,
    reasons,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// These kinds have no progress deadline of their own: a pod that is not ready for so long holds up the rollout. As long as
/// a Deployment's, unless it says otherwise.
const DEADLINE: Duration = Duration::from_secs(600);

/// A snapshot of one guarded object.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) family: Family,
    pub(crate) ward: Ward,
    /// Its revisions, the oldest first.
    pub(crate) revisions: Vec<Arc<ControllerRevision>>,
    /// Which of them its template is, if that one has the highest number.
    pub(crate) current: Option<Arc<ControllerRevision>>,
    /// The pods of each revision that stay, by its name.
    pub(crate) pods: BTreeMap<String, Vec<Arc<Pod>>>,
    pub(crate) policy: Option<RolloutPolicySpec>,
    pub(crate) live: Live,
    pub(crate) around: Surroundings,
    pub(crate) checks: BTreeMap<String, BTreeMap<String, Standing>>,
}

/// One thing to do.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Change the annotations of a revision.
    Mark { revision: String, changes: Value },
    /// Merge a patch into the object. With a `metadata.resourceVersion` it fails when the object changed meanwhile.
    Patch(Value),
    /// Replace the conditions of the object's status.
    Conditions(Vec<Condition>),
    /// Mark a revision as failed, with what its pod left behind.
    MarkFailed { revision: String, failure: Box<Failure>, previous: bool },
    /// Let pods read a kept copy of their configuration, or the live objects again.
    PointToConfig { pods: Vec<String>, secret: Value },
    /// See that the Secret that keeps a revision's configuration is there, and owned by that revision too.
    KeepConfig(Box<Secret>),
    /// Take the revision of that uid out of the owners of a kept configuration.
    DropConfig { secret: Box<Secret>, owner: String },
    /// Read configuration that is there and was never needed before.
    Read(std::collections::BTreeSet<config::Reference>),
    /// Ask the pods of a revision what the policy wants to know.
    Ask(Box<Question>),
    /// Write an event about the object.
    Note(Note),
}

/// Decides what to do.
pub(crate) fn plan(seen: &Seen, now: Timestamp) -> Plan<Action> {
    if seen.ward.meta.deletion_timestamp.is_some() {
        return Plan::nothing();
    }
    if !seen.live.unknown.is_empty() {
        return Plan::act(vec![Action::Read(seen.live.unknown.clone())]);
    }
    if let Some(telling) = configuration::tell(seen) {
        return Plan::act(vec![telling]);
    }
    // Until its loop has recorded the template there is nothing to look at.
    let Some(current) = &seen.current else { return Plan::nothing() };
    let template = template_of(current).unwrap_or_default();
    let mut guard = Guard { seen, current, template, now, plan: Plan::nothing() };
    let busy = guard.arrive() || guard.keep_what_runs() || guard.respond() || guard.judge();
    if !busy {
        guard.record_appliers();
        guard.pace();
        guard.mark_healthy();
        guard.keep_config();
        guard.tell_failed_templates();
        guard.ask();
    }
    guard.plan
}

/// The revision among others.
pub(crate) fn of(revision: &ControllerRevision) -> Revision<'_> {
    Revision { meta: &revision.metadata, number: revision.revision }
}

pub(super) struct Guard<'a> {
    pub(super) seen: &'a Seen,
    pub(super) current: &'a ControllerRevision,
    template: PodTemplateSpec,
    pub(super) now: Timestamp,
    pub(super) plan: Plan<Action>,
}

impl<'a> Guard<'a> {
    pub(super) fn act(&mut self, action: Action) {
        self.plan.actions.push(action);
    }

    pub(super) fn mark(&mut self, revision: &str, changes: Value) {
        self.act(Action::Mark { revision: revision.to_owned(), changes });
    }

    /// All revisions but the current.
    pub(super) fn others(&self) -> impl Iterator<Item = Revision<'a>> + use<'a> {
        let current = self.current.metadata.uid.clone();
        self.seen.revisions.iter().map(|held| of(held)).filter(move |held| held.meta.uid != current)
    }

    fn named(&self, found: Revision<'_>) -> Option<&'a ControllerRevision> {
        self.seen.revisions.iter().map(AsRef::as_ref).find(|held| held.metadata.name == found.meta.name)
    }

    pub(super) fn pods_of(&self, revision: Revision<'_>) -> Vec<&'a Pod> {
        self.seen.pods.get(revision.name()).into_iter().flatten().map(AsRef::as_ref).collect()
    }

    pub(super) fn condition(&self, type_: &str) -> Option<&'a Condition> {
        self.seen.ward.conditions.iter().find(|held| held.type_ == type_)
    }

    fn is_true(&self, type_: &str) -> bool {
        self.condition(type_).is_some_and(|held| held.status == "True")
    }

    fn action(&self) -> Option<FailureAction> {
        self.seen.policy.as_ref().map(|policy| policy.action)
    }

    // ---- conditions -------------------------------------------------------------------------------------------------

    /// Sets conditions; the same status keeps its time of transition. Whether anything changed.
    fn set(&mut self, wanted: &[(&str, &str, &str, String)]) -> bool {
        let mut all = self.seen.ward.conditions.clone();
        for (type_, status, reason, message) in wanted {
            let held = all.iter().find(|held| held.type_ == *type_ && held.status == *status);
            let since = held.and_then(|held| held.last_transition_time.clone()).unwrap_or(Time(self.now));
            all.retain(|held| held.type_ != *type_);
            all.push(Condition {
                type_: (*type_).to_owned(),
                status: (*status).to_owned(),
                reason: Some((*reason).to_owned()),
                message: Some(message.clone()),
                last_transition_time: Some(since),
            });
        }
        let changed = wanted.iter().any(|(type_, status, reason, message)| {
            self.condition(type_).is_none_or(|held| {
                held.status != *status
                    || held.reason.as_deref() != Some(reason)
                    || held.message.as_ref() != Some(message)
            })
        });
        if changed {
            self.act(Action::Conditions(all));
        }
        changed
    }

    /// Turns those of these conditions that are `True` to `False`.
    fn end(&mut self, types: &[&'static str], reason: &str, message: &str) -> bool {
        let wanted: Vec<_> = types
            .iter()
            .filter(|type_| self.is_true(type_))
            .map(|type_| (*type_, "False", reason, message.to_owned()))
            .collect();
        self.set(&wanted)
    }

    /// Says something by a condition and an event, unless the condition says it already.
    fn say(&mut self, type_: &str, reason: &str, event: &'static str, message: String) -> bool {
        if !self.set(&[(type_, "True", reason, message.clone())]) {
            return false;
        }
        self.plan.actions.insert(0, Action::Note(Note { kind: Kind::Warning, reason: event, message }));
        true
    }

    // ---- arriving at a revision -------------------------------------------------------------------------------------

    /// What is due once when a revision has become the current one: what was said of another ends, and after an undo what it
    /// ran with comes back.
    fn arrive(&mut self) -> bool {
        if configuration::has_arrived(self.current) {
            return self.tell_config();
        }
        let back = marks::last_failed(self.others()).is_some_and(|(_, failure)| failure.to == of(self.current).name());
        let went = [conditions::ROLLED_BACK, conditions::ROLLOUT_REFUSED].iter().any(|type_| self.is_true(type_));
        let mut said = vec![conditions::ROLLOUT_FAILED, conditions::ROLLOUT_PAUSED, conditions::JUDGING_PAUSED];
        if !back {
            said.extend([conditions::ROLLED_BACK, conditions::ROLLOUT_REFUSED]);
        }
        if self.end(&said, "NewRollout", "a new rollout has started") {
            return true;
        }
        for (name, changes) in marks::spent_wishes(&self.seen.ward.meta, self.others()) {
            self.mark(name, changes);
        }
        self.follow(back && went);
        true
    }

    /// Says whether pods read a kept copy, and lets those that do not yet.
    fn tell_config(&mut self) -> bool {
        let secret = marks::note(&self.current.metadata, annotations::CONFIG_REVISION);
        self.point(&self.pods_of(of(self.current)), secret);
        let number = self.current.revision;
        let changed = match secret {
            Some(secret) => {
                let message = format!(
                    "pods read the configuration kept with revision {number} (secret {secret:?}), not the live objects, until the next rollout"
                );
                self.set(&[(conditions::CONFIG_REVISION, "True", reasons::GONE_BACK, message)])
            }
            None => self.end(&[conditions::CONFIG_REVISION], "Live", "pods read the live configuration"),
        };
        changed || !self.plan.actions.is_empty()
    }

    /// Lets those of these pods read that copy, or the live objects, that do not yet.
    pub(super) fn point(&mut self, pods: &[&Pod], secret: Option<&str>) {
        let wrong = |pod: &&&Pod| marks::note(&pod.metadata, annotations::CONFIG_REVISION) != secret;
        let wrong: Vec<String> = pods.iter().filter(wrong).filter_map(|pod| pod.metadata.name.clone()).collect();
        if !wrong.is_empty() {
            self.act(Action::PointToConfig { pods: wrong, secret: json!(secret) });
        }
    }

    // ---- a failed revision ------------------------------------------------------------------------------------------

    /// The last healthy revision apart from the current. One of the same template comes back with its configuration alone, so
    /// that must be known.
    fn last_healthy(&self) -> Option<&'a ControllerRevision> {
        let differs = |other: &Revision<'_>| {
            let held = self.named(*other);
            held.is_some_and(|held| {
                configuration_of(held).is_some()
                    || !template_of(held).is_some_and(|recorded| same_template(&recorded, &self.template))
            })
        };
        self.named(marks::last_healthy(self.others().filter(differs))?)
    }

    /// Does what the policy says of a current revision that has failed, or tries one again. Whether there was something to do.
    fn respond(&mut self) -> bool {
        let object = &self.seen.ward.meta;
        let Some(failure) = marks::failure_of(&self.current.metadata) else { return self.retry() };
        if marks::is_retried(object, &failure) {
            let name = of(self.current).name();
            for (name, changes) in marks::spent_wishes(object, self.others()) {
                self.mark(name, changes);
            }
            self.mark(name, json!({annotations::FAILURE: null}));
            self.end(&conditions::OF_FAILURE, "NewRollout", "the revision is tried again");
            return true;
        }
        let fallback = self.last_healthy();
        let paused = [conditions::JUDGING_PAUSED];
        match (self.action(), fallback) {
            (None, _) => false,
            (Some(FailureAction::Rollback), Some(to)) => self.go_back(failure, to),
            (Some(FailureAction::Pause), _) => {
                let message = marks::standing_still(of(self.current), &failure);
                self.end(&paused, "Judged", "the revision has failed")
                    || self.say(conditions::ROLLOUT_PAUSED, &failure.reason, reasons::ROLLOUT_PAUSED, message)
            }
            (Some(_), to) => {
                let message = marks::going_on(of(self.current), &failure, to.is_some());
                self.end(&paused, "Judged", "the revision has failed")
                    || self.say(conditions::ROLLOUT_FAILED, &failure.reason, reasons::ROLLOUT_FAILED, message)
            }
        }
    }

    /// The failed revision that was taken back from is tried again when somebody asks for it.
    fn retry(&mut self) -> bool {
        if ![conditions::ROLLED_BACK, conditions::ROLLOUT_REFUSED].iter().any(|type_| self.is_true(type_)) {
            return false;
        }
        let found = marks::to_retry(&self.seen.ward.meta, self.others(), of(self.current));
        let Some(failed) = found.and_then(|found| self.named(found)) else { return false };
        if self.has_another_configuration_by_now(failed) {
            for (name, changes) in marks::spent_wishes(&self.seen.ward.meta, self.others()) {
                self.mark(name, changes);
            }
            return true;
        }
        let message = format!("trying revision {} again", failed.revision);
        self.act(Action::Note(Note { kind: Kind::Normal, reason: reasons::ROLLOUT_RETRIED, message }));
        self.put_back(failed);
        true
    }

    /// Whether that revision failed by its configuration alone, and that is no longer the live one: there is nothing to try.
    fn has_another_configuration_by_now(&self, failed: &ControllerRevision) -> bool {
        template_of(failed).is_some_and(|recorded| same_template(&recorded, &self.template))
            && configuration::live(self.seen).is_some_and(|live| configuration_of(failed) != Some(live.as_str()))
    }

    /// First says what is done, then puts the healthy template in the place of the failed one.
    fn go_back(&mut self, failure: Failure, to: &ControllerRevision) -> bool {
        let current = of(self.current);
        let started = !self.pods_of(current).is_empty();
        let highest = self.seen.revisions.iter().map(|held| held.revision).max().unwrap_or(0);
        let message = marks::going_back(current, &failure, of(to), highest, started);
        let (type_, event) = if started {
            (conditions::ROLLED_BACK, reasons::ROLLED_BACK)
        } else {
            (conditions::ROLLOUT_REFUSED, reasons::ROLLOUT_REFUSED)
        };
        let said =
            self.is_true(conditions::ROLLED_BACK) && failure.to == of(to).name() && self.was_said(current.number);
        if !said && self.say(type_, &failure.reason, event, message) {
            let latest = marks::found(&self.seen.ward.meta, failure.clone(), Some(of(to)), self.now);
            self.mark(current.name(), marks::failed_with(&Failure { retry: failure.retry, ..latest }));
            return true;
        }
        self.put_back(to);
        true
    }

    /// Whether going back from the revision of that number has been said already: its pods may have gone since.
    fn was_said(&self, number: i64) -> bool {
        let said = self.condition(conditions::ROLLED_BACK).and_then(|held| held.message.as_deref());
        said.is_some_and(|said| said.starts_with(&format!("revision {number} failed")))
    }

    /// Puts the template of a revision into the object, as `kubectl rollout undo` does.
    fn put_back(&mut self, to: &ControllerRevision) {
        let Some(template) = template_of(to) else { return };
        // Of revisions of one template this names the one that is meant.
        let named = configuration_of(to).filter(|_| configuration::live(self.seen).is_some());
        let template = template_with(template, named);
        let meta = &self.seen.ward.meta;
        let mut patch = json!({"metadata": {"resourceVersion": meta.resource_version}});
        let notes = marks::cause_comes_back(meta, marks::note(&to.metadata, annotations::CHANGE_CAUSE));
        if !notes.is_empty() {
            patch["metadata"]["annotations"] = Value::Object(notes);
        }
        if let Some(change) = merge_diff(&json(&self.seen.ward.template), &json(&template)) {
            patch["spec"] = json!({"template": change});
        }
        self.act(Action::Patch(patch));
    }

    // ---- judging ----------------------------------------------------------------------------------------------------

    fn judge(&mut self) -> bool {
        let paused = [conditions::JUDGING_PAUSED];
        let well = "the cluster is no longer to blame for what the pods show";
        let Some(policy) = self.seen.policy.as_ref() else { return self.end(&paused, "Judging", well) };
        let meta = &self.current.metadata;
        let complete = marks::is_healthy(meta);
        let over = complete && marks::soak_left(meta, policy::soak(policy), self.now).is_none();
        if over || marks::failure_of(meta).is_some() {
            return self.end(&paused, "Judging", well);
        }
        let to = self.last_healthy();
        let mine = self.pods_of(of(self.current));
        let earlier = to.map(|to| self.pods_of(of(to))).unwrap_or_default();
        let nothing = BTreeMap::new();
        let pinned = marks::note(meta, annotations::CONFIG_REVISION).is_some();
        let missing = || self.template.spec.as_ref().and_then(|spec| config::missing(spec, &self.seen.live));
        let timed_out = self.timed_out(&mine);
        let case = Case {
            policy,
            pods: &mine,
            earlier: &earlier,
            complete,
            missing: if complete || pinned { None } else { missing() },
            timed_out: timed_out.as_ref().ok().cloned().flatten(),
            checks: meta.uid.as_ref().and_then(|uid| self.seen.checks.get(uid)).unwrap_or(&nothing),
            around: &self.seen.around,
            now: self.now,
        };
        let verdict = case.judge();
        if let Err(left) = timed_out {
            self.plan.look_again(left);
        }
        match verdict {
            Verdict::Unwell { reason, message } => {
                self.plan.look_again(LOOK_AGAIN);
                self.say(conditions::JUDGING_PAUSED, reason, reason, message)
            }
            _ if self.end(&paused, "Judging", well) => true,
            Verdict::Fine => false,
            Verdict::Wait(delay) => {
                self.plan.look_again(delay);
                false
            }
            Verdict::Failed(failure) => {
                let back = self.action() == Some(FailureAction::Rollback);
                let failure = marks::found(&self.seen.ward.meta, *failure, to.filter(|_| back).map(of), self.now);
                let previous = is_of_previous_run(&failure, &mine);
                let revision = of(self.current).name().to_owned();
                self.act(Action::MarkFailed { revision, failure: Box::new(failure), previous });
                true
            }
        }
    }

    /// That a pod of the revision has not been ready for as long as a rollout may stand still, in words; otherwise, `Err`,
    /// how long until one has. After the cluster was unwell it counts anew.
    fn timed_out(&self, mine: &[&Pod]) -> Result<Option<String>, Duration> {
        let well_since = self
            .condition(conditions::JUDGING_PAUSED)
            .filter(|held| held.status == "False")
            .and_then(|held| held.last_transition_time.as_ref())
            .map(|time| time.0);
        let since = |pod: &&Pod| {
            let ready = pods::condition(pod, "Ready").and_then(|ready| ready.last_transition_time.as_ref());
            let since = ready.or(pod.metadata.creation_timestamp.as_ref())?.0;
            Some((
                well_since.map_or(since, |well| since.max(well)),
                pod.metadata.name.as_deref().unwrap_or_default().to_owned(),
            ))
        };
        let longest = mine.iter().filter(|pod| !pods::is_ready(pod)).filter_map(since).min();
        let Some((since, pod)) = longest else { return Ok(None) };
        let stood = Duration::try_from(self.now.duration_since(since)).unwrap_or_default();
        match DEADLINE.checked_sub(stood).filter(|left| !left.is_zero()) {
            Some(left) => Err(left),
            None => Ok(Some(format!("pod {pod:?} has not been ready for {} s.", DEADLINE.as_secs()))),
        }
    }

    /// Asks the ready pods of the revision that has yet to prove itself what the policy wants to know.
    fn ask(&mut self) {
        let meta = &self.current.metadata;
        let Some(policy) = self.seen.policy.as_ref().filter(|policy| !policy.checks.is_empty()) else { return };
        let over = marks::is_healthy(meta) && marks::soak_left(meta, policy::soak(policy), self.now).is_none();
        if over || marks::failure_of(meta).is_some() {
            return;
        }
        let ready = self.pods_of(of(self.current)).into_iter().filter(|pod| pods::is_ready(pod));
        let names = ready.filter_map(|pod| pod.metadata.name.clone()).collect();
        let uid = meta.uid.as_deref().unwrap_or_default();
        let nothing = BTreeMap::new();
        let standing = self.seen.checks.get(uid).unwrap_or(&nothing);
        let (questions, next) = checks::due(&policy.checks, standing, uid, names, self.now);
        questions.into_iter().for_each(|question| self.act(Action::Ask(Box::new(question))));
        next.into_iter().for_each(|next| self.plan.look_again(next));
    }

    /// Lets the loop of the kind know how far the policy lets the rollout go now.
    fn pace(&mut self) {
        let steps = self.seen.policy.as_ref().map_or(&[][..], |policy| policy.steps.as_slice());
        let gradual = Some("true").filter(|_| !steps.is_empty());
        if marks::note(&self.seen.ward.meta, annotations::GRADUAL) != gradual {
            self.act(Action::Patch(json!({"metadata": {"annotations": {annotations::GRADUAL: gradual}}})));
        }
        let (meta, name) = (&self.current.metadata, of(self.current).name());
        if steps.is_empty() || marks::is_healthy(meta) || marks::failure_of(meta).is_some() {
            return;
        }
        let ready = self.pods_of(of(self.current)).into_iter().filter(|pod| pods::is_ready(pod)).count();
        let replaces = self.seen.pods.iter().any(|(revision, pods)| revision != name && !pods.is_empty());
        let recorded = marks::note(meta, annotations::STEP);
        let ready = i32::try_from(ready).unwrap_or(i32::MAX);
        let limit = match steps::pace(steps, recorded, self.seen.ward.wanted, ready, self.now) {
            _ if !replaces => annotations::ROLLOUT_UNLIMITED.to_owned(),
            Pace::Free => annotations::ROLLOUT_UNLIMITED.to_owned(),
            Pace::UpTo(limit) => limit.to_string(),
            Pace::Waiting(limit, left) => {
                self.plan.look_again(left);
                limit.to_string()
            }
            Pace::Record(position) => return self.mark(name, json!({annotations::STEP: position})),
        };
        if marks::note(meta, annotations::ROLLOUT_LIMIT) != Some(&limit) {
            self.mark(name, json!({annotations::ROLLOUT_LIMIT: limit}));
        }
    }

    // ---- remembering ------------------------------------------------------------------------------------------------

    /// The rollout is complete: the revision has done well. Only where somebody may go back to it.
    fn mark_healthy(&mut self) {
        let meta = &self.current.metadata;
        let Some(policy) = self.seen.policy.as_ref().filter(|_| self.seen.ward.complete && self.seen.ward.wanted > 0)
        else {
            return;
        };
        if marks::is_healthy(meta) {
            if let Some(left) = marks::soak_left(meta, policy::soak(policy), self.now) {
                self.plan.look_again(left);
            }
            return;
        }
        if marks::failure_of(meta).is_some() {
            let ready = self.pods_of(of(self.current)).into_iter().map(pods::ready_since).collect::<Option<Vec<_>>>();
            let Some(since) = ready.and_then(|ready| ready.into_iter().max()) else { return };
            let stood = Duration::try_from(self.now.duration_since(since)).unwrap_or_default();
            if let Some(left) = policy::soak(policy).checked_sub(stood).filter(|left| !left.is_zero()) {
                return self.plan.look_again(left);
            }
            self.end(&conditions::OF_FAILURE, "Healthy", "the revision does well");
        }
        self.mark(of(self.current).name(), marks::healthy_since(self.now));
    }

    /// The copy of the current revision's configuration, and those nobody needs any longer.
    fn keep_config(&mut self) {
        let ward = &self.seen.ward;
        if !config::is_on(&ward.meta) {
            return;
        }
        let resource = self.seen.family.controller_revision();
        let owner = OwnerReference {
            api_version: resource.api_version,
            kind: resource.kind,
            name: of(self.current).name().to_owned(),
            uid: self.current.metadata.uid.clone().unwrap_or_default(),
            ..OwnerReference::default()
        };
        let (of_ward, mine) = (ward.meta.name.as_deref().unwrap_or_default(), self.pods_of(of(self.current)));
        let spec = self.template.spec.as_ref();
        match config::keep(of_ward, &self.current.metadata, spec, owner, &self.seen.live, &mine, self.now) {
            config::Keep::Nothing => {}
            config::Keep::TooLarge(size) => {
                let message = format!(
                    "the ConfigMaps and Secrets of revision {} hold {size} bytes, more than the {} that can be kept with it: after going back to it, its pods read the live objects",
                    self.current.revision,
                    config::SIZE_LIMIT,
                );
                if self.set(&[(conditions::CONFIG_REVISION, "False", reasons::TOO_LARGE, message.clone())]) {
                    let note = Note { kind: Kind::Warning, reason: reasons::CONFIGURATION_TOO_LARGE, message };
                    self.act(Action::Note(note));
                }
                return;
            }
            config::Keep::Wait(delay) => self.plan.look_again(delay.max(Duration::from_millis(1))),
            config::Keep::Write(secret) => {
                let copy = secret.metadata.name.clone();
                self.act(Action::KeepConfig(secret));
                return self.mark(of(self.current).name(), json!({annotations::CONFIG_COPY: copy}));
            }
        }
        if self.plan.actions.is_empty() {
            let revisions: Vec<_> = self.seen.revisions.iter().map(|held| of(held)).collect();
            for (secret, owner) in config::left_behind(&revisions, &self.seen.live.secrets) {
                self.act(Action::DropConfig { secret: Box::new(secret.clone()), owner: owner.to_owned() });
            }
        }
    }

    /// Lets the loop of the kind and the API server know which templates would not be rolled out.
    fn tell_failed_templates(&mut self) {
        if !self.plan.actions.is_empty() {
            return;
        }
        let held_back = matches!(self.action(), Some(FailureAction::Rollback | FailureAction::Pause));
        let failed = self.seen.revisions.iter().filter(|held| held_back && marks::failure_of(&held.metadata).is_some());
        let told = failed.map(|held| (of(held), template_of(held).as_ref().map(json).unwrap_or_default()));
        if let Some(value) = marks::told(&self.seen.ward.meta, told) {
            self.act(Action::Patch(json!({"metadata": {"annotations": {annotations::FAILED_REVISIONS: value}}})));
        }
    }
}
