//! What to do about one deployment. Pure.
//!
//! Order: claim replica sets → follow an undo → refuse or take back a failed revision → pause, scale, roll. A plan does
//! one step; the next is planned when the informers have seen it.

use super::{
    config,
    revisions::{Revisions, name, note, number},
    rollback::{self, Failure},
    status,
    undo::template_patch,
    verdict::{self, Verdict},
};
use crate::{
    Plan,
    events::{Kind, Note},
    patch::{json, merge_diff},
    pods, selector,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{apps::v1::DeploymentStatus, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::Time,
};
use proa_crds::{Deployment, Family, Pod, ReplicaSet, annotations, conditions, reasons};
use serde_json::{Value, json};
use std::sync::Arc;

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
    /// Whether its namespace is annotated for automatic rollback.
    pub namespace_wants_rollback: bool,
    /// The configuration its templates refer to.
    pub live: config::Live,
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
    /// Write the Secret that keeps the current revision's configuration.
    KeepConfig(Box<Secret>),
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
    let revisions = Revisions::of(deployment, &seen.replica_sets);
    let mut planner = Planner { seen, deployment, revisions, now, plan: Plan::nothing() };
    if deployment.metadata.deletion_timestamp.is_some() {
        let status = status::calculate(deployment, &planner.revisions, now);
        planner.write_status(&status);
    } else if !planner.go_back_or_on() {
        planner.roll();
        planner.keep_config();
    }
    planner.plan
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

    pub(super) fn wants_rollback(&self) -> bool {
        rollback::is_on(self.deployment, self.seen.namespace_wants_rollback)
    }

    fn is_paused(&self) -> bool {
        self.deployment.spec.paused == Some(true)
    }

    /// The failure of the new revision and the revision to go back to, if it is not to be rolled out for that.
    pub(super) fn held_back(&self) -> Option<(&'a ReplicaSet, Failure, &'a ReplicaSet)> {
        let new = self.revisions.new?;
        let failure = rollback::failure_of(new)?;
        let held = self.wants_rollback() && !rollback::is_retried(self.deployment, &failure);
        Some((new, failure, rollback::last_healthy(&self.revisions).filter(|_| held)?))
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
                rollback::failure_of(new).is_some_and(|failure| rollback::is_retried(self.deployment, &failure))
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
        if let Some(failed) = rollback::to_retry(self.deployment, &self.revisions) {
            self.note(Kind::Normal, reasons::ROLLOUT_RETRIED, format!("trying revision {} again", number(failed)));
            self.act(Action::Patch(template_patch(self.deployment, failed)));
            return true;
        }
        self.judge()
    }

    /// Marks the new revision as failed when it cannot succeed and there is one to go back to.
    fn judge(&mut self) -> bool {
        let Some(new) = self.revisions.new else { return false };
        if !self.wants_rollback() || rollback::failure_of(new).is_some() {
            return false;
        }
        let Some(to) = rollback::last_healthy(&self.revisions) else { return false };
        let verdict = if !rollback::is_healthy(new) {
            let missing = config::missing(new, &self.seen.live);
            verdict::judge(new, &self.seen.pods, self.deployment.status.as_ref(), missing, self.now)
        } else if rollback::probation_left(new, self.now).is_some() {
            verdict::judge_complete(new, &self.seen.pods)
        } else {
            Verdict::Fine
        };
        match verdict {
            Verdict::Fine => false,
            Verdict::Wait(delay) => {
                self.plan.look_again(delay);
                false
            }
            Verdict::Failed(failure) => {
                let failure = Failure {
                    at: Some(Time(self.now)),
                    retry: note(self.deployment, annotations::RETRY).unwrap_or_default().to_owned(),
                    to: name(to).to_owned(),
                    ..failure
                };
                let previous = self.seen.pods.iter().filter(|pod| pod.metadata.name == failure.pod).any(|pod| {
                    pods::container_statuses(pod).any(|container| {
                        Some(&container.name) == failure.container.as_ref()
                            && container.restart_count > 0
                            && container.state.as_ref().is_none_or(|state| state.terminated.is_none())
                    })
                });
                self.act(Action::MarkFailed { name: name(new).to_owned(), failure: Box::new(failure), previous });
                true
            }
        }
    }

    /// First says what is done, then puts the healthy template in the place of the failed one.
    fn go_back(&mut self, failed: &ReplicaSet, failure: Failure, to: &ReplicaSet) {
        let (refused, message) = rollback::going_back(&self.revisions, failed, &failure, to, &self.seen.pods);
        let (type_, event) = if refused {
            (conditions::ROLLOUT_REFUSED, reasons::ROLLOUT_REFUSED)
        } else {
            (conditions::ROLLED_BACK, reasons::ROLLED_BACK)
        };
        let held = self.deployment.status.as_ref().and_then(|status| status::condition(status, type_));
        if held.is_none_or(|held| held.status != "True" || held.message.as_ref() != Some(&message)) {
            // Rather told twice than never: the condition, once written, keeps it from being told again.
            self.note(Kind::Warning, event, message.clone());
            let mut status = status::calculate(self.deployment, &self.revisions, self.now);
            status::set(&mut status, status::make(type_, "True", &failure.reason, message, self.now));
            if refused || failure.to != name(to) {
                // Of several failed revisions the one held back last is the one a retry means.
                let latest = Failure { at: Some(Time(self.now)), to: name(to).to_owned(), ..failure };
                self.annotate_set(name(failed), rollback::failed_with(&latest));
            }
            self.write_status(&status);
            return;
        }
        self.act(Action::Patch(template_patch(self.deployment, to)));
    }

    pub(super) fn annotate_set(&mut self, name: &str, changes: Value) {
        self.act(Action::PatchSet { name: name.to_owned(), patch: json!({"metadata": {"annotations": changes}}) });
    }

    /// A rollout that starts makes the wish for a retry an old one, for every failed revision it was not meant for.
    pub(super) fn spend_retry(&mut self) {
        for (name, changes) in rollback::spent_wishes(self.deployment, &self.revisions) {
            self.annotate_set(name, changes);
        }
    }

    /// A failed revision that someone wants tried again is no longer a failed one.
    fn start_again(&mut self, set: &ReplicaSet) {
        self.spend_retry();
        self.annotate_set(name(set), json!({annotations::FAILURE: null}));
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
