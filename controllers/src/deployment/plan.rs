//! What to do about one deployment. Pure.
//!
//! Order: claim replica sets → follow an undo → refuse or take back a failed revision → pause, scale, roll. A plan does
//! one step; the next is planned when the informers have seen it.

use super::{
    revisions::{Revisions, name, note, number, revision},
    status,
    undo::template_patch,
};
use crate::{
    Plan,
    events::{Kind, Note},
    patch::{json, merge_diff},
    rollback::{
        Surroundings,
        checks::{Question, Standing},
        config, marks,
    },
    selector,
};
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::DeploymentStatus, core::v1::Secret};
use proa_crds::{
    Deployment, Failure, Family, Pod, ReplicaSet, RolloutPolicySpec, annotations, conditions,
    policy::{ConfigurationChange, FailureAction},
    reasons,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// A snapshot of one deployment.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Which family the deployment is of.
    pub family: Family,
    /// The deployment.
    pub deployment: Arc<Deployment>,
    /// The replica sets it controls.
    pub replica_sets: Vec<Arc<ReplicaSet>>,
    /// Replica sets of its namespace that nobody controls and its selector selects.
    pub orphans: Vec<Arc<ReplicaSet>>,
    /// The pods of its replica sets.
    pub pods: Vec<Arc<Pod>>,
    /// The policy that holds for it.
    pub policy: Option<RolloutPolicySpec>,
    /// The configuration its templates refer to.
    pub live: config::Live,
    /// What is wrong with the cluster around its pods.
    pub around: Surroundings,
    /// How the checks of its revisions stand: by the uid of the replica set, and the name of the check.
    pub(crate) checks: BTreeMap<String, BTreeMap<String, Standing>>,
}

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Become the controller of a replica set.
    Adopt(Arc<ReplicaSet>),
    /// Give up a replica set the selector no longer selects.
    Release(Arc<ReplicaSet>),
    /// Create a replica set. A name that is taken by another template counts a hash collision.
    Create(Box<ReplicaSet>),
    /// Merge a patch into a replica set.
    PatchSet {
        /// Its name.
        name: String,
        /// The merge patch.
        patch: Value,
    },
    /// Delete a replica set with its pods.
    DeleteSet {
        /// Its name.
        name: String,
        /// Its uid: another one of that name is left alone.
        uid: String,
    },
    /// Merge a patch into the deployment. With a `metadata.resourceVersion` it fails when the deployment changed meanwhile.
    Patch(Value),
    /// Merge a patch into the deployment's status.
    PatchStatus(Value),
    /// See that the Secret that keeps a revision's configuration is there, and owned by that revision too.
    KeepConfig(Box<Secret>),
    /// Take the revision of that uid out of the owners of a kept configuration; without any it goes.
    DropConfig {
        /// The Secret.
        secret: Box<Secret>,
        /// The revision's uid.
        owner: String,
    },
    /// Read configuration that is there and was never needed before.
    Read(std::collections::BTreeSet<config::Reference>),
    /// Ask the pods of a revision what the policy wants to know.
    Ask(Box<Question>),
    /// Mark a replica set as failed, with the last log lines of the pod that showed it.
    MarkFailed {
        /// The replica set.
        name: String,
        /// Why; the log is filled in when acting.
        failure: Box<Failure>,
        /// Read the log of the container before its last restart.
        previous: bool,
    },
    /// Write an event about the deployment.
    Note(Note),
}

/// Decides what to do.
pub fn plan(seen: &Seen, now: Timestamp) -> Plan<Action> {
    let deployment = &*seen.deployment;
    if deployment.metadata.deletion_timestamp.is_none() {
        if selector::is_empty(&deployment.spec.selector) {
            return selecting_all(deployment);
        }
        let labels = deployment.spec.template.metadata.as_ref().and_then(|meta| meta.labels.as_ref());
        if !selector::matches(&deployment.spec.selector, labels) {
            return selecting_others(deployment, now);
        }
        let claims = claims(seen);
        if !claims.is_empty() {
            return Plan::act(claims);
        }
    }
    if !seen.live.unknown.is_empty() {
        return Plan::act(vec![Action::Read(seen.live.unknown.clone())]);
    }
    let configuration = configuration(seen);
    let revisions = Revisions::of(deployment, &seen.replica_sets, configuration.as_deref());
    let mut planner = Planner { seen, deployment, revisions, configuration, now, plan: Plan::nothing() };
    if deployment.metadata.deletion_timestamp.is_some() {
        let status = status::calculate(deployment, &planner.revisions, now);
        planner.write_status(&status);
    } else if !planner.go_back_or_on() {
        planner.roll();
        planner.keep_config();
        planner.tell_failed_templates();
        planner.ask();
    }
    planner.plan
}

/// The digest of the template's configuration, where the policy makes a change of it a revision of its own.
fn configuration(seen: &Seen) -> Option<String> {
    let wanted = seen.policy.as_ref().is_some_and(|policy| policy.configuration == ConfigurationChange::Rollout);
    let spec = seen.deployment.spec.template.spec.as_ref().filter(|_| wanted)?;
    let references = config::references(spec);
    (!references.is_empty() && config::is_on(&seen.deployment.metadata))
        .then(|| config::digest(&references, &seen.live))
}

fn selecting_all(deployment: &Deployment) -> Plan<Action> {
    let message = "This deployment is selecting all pods. A non-empty selector is required.".to_owned();
    let seen = deployment.status.as_ref().and_then(|status| status.observed_generation);
    if seen == deployment.metadata.generation {
        return Plan::nothing();
    }
    Plan::act(vec![
        Action::Note(Note { kind: Kind::Warning, reason: reasons::SELECTING_ALL, message }),
        Action::PatchStatus(json!({"observedGeneration": deployment.metadata.generation})),
    ])
}

/// Replica sets of such a template would never be found again, and be made without end. In the standard family the API
/// server refuses it.
fn selecting_others(deployment: &Deployment, now: Timestamp) -> Plan<Action> {
    let message = selector::MISMATCH.to_owned();
    let mut status = deployment.status.clone().unwrap_or_default();
    status.observed_generation = deployment.metadata.generation;
    let reason = reasons::SELECTOR_MISMATCH;
    status::set(&mut status, status::make(conditions::REPLICA_FAILURE, "True", reason, message.clone(), now));
    let held = deployment.status.as_ref().map_or_else(|| json!({}), json);
    let Some(change) = merge_diff(&held, &json(&status)) else { return Plan::nothing() };
    Plan::act(vec![Action::Note(Note { kind: Kind::Warning, reason, message }), Action::PatchStatus(change)])
}

fn claims(seen: &Seen) -> Vec<Action> {
    let selects = |set: &ReplicaSet| selector::matches(&seen.deployment.spec.selector, set.metadata.labels.as_ref());
    let adopt = seen
        .orphans
        .iter()
        .filter(|set| selects(set) && set.metadata.deletion_timestamp.is_none())
        .cloned()
        .map(Action::Adopt);
    let release = seen.replica_sets.iter().filter(|set| !selects(set)).cloned().map(Action::Release);
    adopt.chain(release).collect()
}

pub(super) struct Planner<'a> {
    pub(super) seen: &'a Seen,
    pub(super) deployment: &'a Deployment,
    pub(super) revisions: Revisions<'a>,
    /// The digest of the configuration, where a change of it is a rollout.
    pub(super) configuration: Option<String>,
    pub(super) now: Timestamp,
    pub(super) plan: Plan<Action>,
}

impl<'a> Planner<'a> {
    pub(super) fn act(&mut self, action: Action) {
        self.plan.actions.push(action);
    }

    pub(super) fn note(&mut self, kind: Kind, reason: &'static str, message: String) {
        self.act(Action::Note(Note { kind, reason, message }));
    }

    pub(super) fn write_status(&mut self, status: &DeploymentStatus) {
        let held = self.deployment.status.as_ref().map_or_else(|| json!({}), json);
        if let Some(change) = merge_diff(&held, &json(status)) {
            self.act(Action::PatchStatus(change));
        }
    }

    /// What is done about a revision that failed, where anything is.
    pub(super) fn action(&self) -> Option<FailureAction> {
        self.seen.policy.as_ref().map(|policy| policy.action)
    }

    fn is_paused(&self) -> bool {
        self.deployment.spec.paused == Some(true)
    }

    /// The last healthy revision apart from the new one.
    pub(super) fn last_healthy(&self) -> Option<&'a ReplicaSet> {
        self.revisions.named(marks::last_healthy(self.revisions.others())?)
    }

    /// The new revision and why it failed, unless it is to be tried again.
    pub(super) fn failed(&self) -> Option<(&'a ReplicaSet, Failure)> {
        let new = self.revisions.new?;
        let failure = marks::failure_of(&new.metadata)?;
        (!marks::is_retried(&self.deployment.metadata, &failure)).then_some((new, failure))
    }

    /// The failure of the new revision and the revision to go back to, if it is not to be rolled out for that.
    pub(super) fn held_back(&self) -> Option<(&'a ReplicaSet, Failure, &'a ReplicaSet)> {
        let (new, failure) = self.failed().filter(|_| self.action() == Some(FailureAction::Rollback))?;
        Some((new, failure, self.last_healthy()?))
    }

    /// Whether the new revision failed and the policy wants its rollout to stand still for that.
    pub(super) fn stands_still(&self) -> bool {
        self.action() == Some(FailureAction::Pause) && self.failed().is_some()
    }

    // ---- going back -------------------------------------------------------------------------------------------------

    /// Steps that keep the rollout from going on: a failed revision, an undo to follow, a retry. Whether there was one.
    /// Nothing is rolled while the deployment is paused, so its template is left alone then, whatever is known of it.
    fn go_back_or_on(&mut self) -> bool {
        let undone = note(self.deployment, annotations::REVISION_OF).is_some();
        if !self.is_paused() {
            if let Some((failed, failure, to)) = self.held_back() {
                self.go_back(failed, failure, to);
                return true;
            }
            let retried = self.revisions.new.filter(|new| {
                marks::failure_of(&new.metadata)
                    .is_some_and(|failure| marks::is_retried(&self.deployment.metadata, &failure))
            });
            if let Some(new) = retried.filter(|_| !undone) {
                self.start_again(new);
                return true;
            }
        }
        if undone {
            self.follow_undo();
            return true;
        }
        if self.is_paused() {
            return false;
        }
        if let Some(failed) = self.to_retry() {
            self.note(Kind::Normal, reasons::ROLLOUT_RETRIED, format!("trying revision {} again", number(failed)));
            self.act(Action::Patch(template_patch(self.deployment, failed)));
            return true;
        }
        self.judge()
    }

    /// The failed revision that is to be tried again though the deployment was taken back from it.
    fn to_retry(&self) -> Option<&'a ReplicaSet> {
        let status = self.deployment.status.as_ref();
        let back =
            [conditions::ROLLED_BACK, conditions::ROLLOUT_REFUSED].iter().any(|type_| status::is_true(status, type_));
        let current = self.revisions.new.filter(|_| back)?;
        let found = marks::to_retry(&self.deployment.metadata, self.revisions.others(), revision(current))?;
        self.revisions.named(found)
    }

    /// First says what is done, then puts the healthy template in the place of the failed one.
    fn go_back(&mut self, failed: &ReplicaSet, failure: Failure, to: &ReplicaSet) {
        let started = self.has_pods(failed);
        let highest = self.revisions.all.iter().map(|set| number(set)).max().unwrap_or(0);
        let message = marks::going_back(revision(failed), &failure, revision(to), highest, started);
        let (type_, event) = if started {
            (conditions::ROLLED_BACK, reasons::ROLLED_BACK)
        } else {
            (conditions::ROLLOUT_REFUSED, reasons::ROLLOUT_REFUSED)
        };
        let held = self.deployment.status.as_ref().and_then(|status| status::condition(status, type_));
        if held.is_none_or(|held| held.status != "True" || held.message.as_ref() != Some(&message)) {
            // Rather told twice than never: the condition, once written, keeps it from being told again.
            self.note(Kind::Warning, event, message.clone());
            let mut status = status::calculate(self.deployment, &self.revisions, self.now);
            status::set(&mut status, status::make(type_, "True", &failure.reason, message, self.now));
            if !started || failure.to != name(to) {
                // Of several failed revisions the one held back last is the one a retry means.
                let latest = marks::found(&self.deployment.metadata, failure.clone(), Some(revision(to)), self.now);
                let latest = Failure { retry: failure.retry, ..latest };
                self.annotate_set(name(failed), marks::failed_with(&latest));
            }
            self.write_status(&status);
            return;
        }
        self.act(Action::Patch(template_patch(self.deployment, to)));
    }

    /// Whether a revision wants pods or has some.
    fn has_pods(&self, set: &ReplicaSet) -> bool {
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        super::revisions::wanted(set) > 0
            || self.seen.pods.iter().any(|pod| crate::owners::is_controlled_by(&pod.metadata, uid))
    }

    /// Lets the API server know which templates would not be rolled out, so that it can say so to whoever applies one. Only
    /// when there is nothing else to do.
    fn tell_failed_templates(&mut self) {
        if !self.plan.actions.is_empty() {
            return;
        }
        let held_back = matches!(self.action(), Some(FailureAction::Rollback | FailureAction::Pause));
        let failed = self.revisions.all.iter().filter(|set| held_back && marks::failure_of(&set.metadata).is_some());
        let told = failed.map(|set| (revision(set), set.spec.template.as_ref().map(json).unwrap_or_default()));
        if let Some(value) = marks::told(&self.deployment.metadata, told) {
            self.act(Action::Patch(json!({"metadata": {"annotations": {annotations::FAILED_REVISIONS: value}}})));
        }
    }

    pub(super) fn annotate_set(&mut self, name: &str, changes: Value) {
        self.act(Action::PatchSet { name: name.to_owned(), patch: json!({"metadata": {"annotations": changes}}) });
    }

    /// A rollout that starts makes the wish for a retry an old one, for every failed revision it was not meant for.
    pub(super) fn spend_retry(&mut self) {
        for (name, changes) in marks::spent_wishes(&self.deployment.metadata, self.revisions.others()) {
            self.annotate_set(name, changes);
        }
    }

    /// A failed revision that someone wants tried again is no longer a failed one.
    fn start_again(&mut self, set: &ReplicaSet) {
        self.spend_retry();
        self.annotate_set(name(set), json!({annotations::FAILURE: null, annotations::STEP: null}));
        let mut status = status::calculate(self.deployment, &self.revisions, self.now);
        status::end_of_going_back(&mut status, self.now);
        if status::has_deadline(self.deployment) {
            status::unset(&mut status, conditions::PROGRESSING);
            let message = format!("Found new replica set {:?}", name(set));
            status::set(
                &mut status,
                status::make(conditions::PROGRESSING, "True", reasons::FOUND_REPLICA_SET, message, self.now),
            );
        }
        self.write_status(&status);
    }
}
