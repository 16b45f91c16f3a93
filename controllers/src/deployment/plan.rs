//! What to do about one deployment. Pure.
//!
//! Order: claim replica sets → follow an undo → refuse or take back a failed revision → pause, scale, roll. A plan does
//! one step; the next is planned when the informers have seen it.

use super::{
    applied, config,
    revisions::{Revisions, annotation_changes, annotations_for, name, note, number, same_template, without_hash},
    rollback::{self, Failure, Verdict},
    status,
};
use crate::{
    Plan,
    events::{Kind, Note},
    patch::{json, merge_diff},
    pods, selector,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::DeploymentStatus,
        core::v1::{PodTemplateSpec, Secret},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use proa_crds::{Deployment, Family, Pod, ReplicaSet, annotations, conditions, reasons};
use serde_json::{Map, Value, json};
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

    fn wants_rollback(&self) -> bool {
        rollback::is_on(self.deployment, self.seen.namespace_wants_rollback)
    }

    // ---- going back -------------------------------------------------------------------------------------------------

    /// Steps that keep the rollout from going on: a failed revision, an undo to follow, a retry. Whether there was one.
    fn go_back_or_on(&mut self) -> bool {
        let undone_to = note(self.deployment, annotations::REVISION_OF).map(str::to_owned);
        if let Some(new) = self.revisions.new
            && let Some(failure) = rollback::failure_of(new)
        {
            if rollback::is_retried(self.deployment, &failure) {
                if undone_to.is_none() {
                    self.start_again(new);
                    return true;
                }
            } else if self.wants_rollback()
                && let Some(to) = rollback::last_healthy(&self.revisions)
            {
                self.go_back(new, &failure, to);
                return true;
            }
        }
        if undone_to.is_some() {
            self.follow_undo();
            return true;
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
        let judged = self.wants_rollback()
            && note(new, annotations::HEALTHY).is_none()
            && self.deployment.spec.paused != Some(true);
        if !judged || rollback::failure_of(new).is_some() {
            return false;
        }
        let Some(to) = rollback::last_healthy(&self.revisions) else { return false };
        let missing = config::missing(new, &self.seen.live);
        match rollback::judge(new, &self.seen.pods, self.deployment.status.as_ref(), missing, self.now) {
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
    fn go_back(&mut self, failed: &ReplicaSet, failure: &Failure, to: &ReplicaSet) {
        let (refused, message) = rollback::going_back(&self.revisions, failed, failure, to, &self.seen.pods);
        let (type_, event) = if refused {
            (conditions::ROLLOUT_REFUSED, reasons::ROLLOUT_REFUSED)
        } else {
            (conditions::ROLLED_BACK, reasons::ROLLED_BACK)
        };
        let held = self.deployment.status.as_ref().and_then(|status| status::condition(status, type_));
        if held.is_none_or(|held| held.status != "True" || held.message.as_ref() != Some(&message)) {
            let mut status = status::calculate(self.deployment, &self.revisions, self.now);
            status::set(&mut status, status::make(type_, "True", &failure.reason, message, self.now));
            self.write_status(&status);
            return;
        }
        self.act(Action::Patch(template_patch(self.deployment, to)));
        self.note(Kind::Warning, event, message);
    }

    /// A failed revision that someone wants tried again is no longer a failed one.
    fn start_again(&mut self, set: &ReplicaSet) {
        self.act(Action::PatchSet {
            name: name(set).to_owned(),
            patch: json!({"metadata": {"annotations": {annotations::FAILURE: null}}}),
        });
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

    /// An undo has arrived (stock kubectl's, ours, an automatic one): the revision gets its new number and, if it must,
    /// its kept configuration; then what the appliers remember follows, and the marks of the replica set leave the
    /// deployment.
    fn follow_undo(&mut self) {
        let held = self.deployment.metadata.annotations.as_ref();
        let mut changes: Map<String, Value> = annotations::REPLICA_SET_ONLY
            .iter()
            .filter(|key| held.is_some_and(|held| held.contains_key(**key)))
            .map(|key| ((*key).to_owned(), Value::Null))
            .collect();
        let mut managed = None;
        let named = note(self.deployment, annotations::REVISION_OF);
        // A template that is not (any longer) that replica set's was not brought by the undo.
        let target = self.revisions.new.filter(|new| {
            named == Some(name(new))
                || self.revisions.all.iter().any(|set| {
                    named == Some(name(set))
                        && set.spec.template.as_ref().is_some_and(|t| same_template(t, &self.deployment.spec.template))
                })
        });
        if let Some(new) = target {
            let revision = self.revisions.highest_old() + 1;
            let comes_back = number(new) < revision;
            let mut wanted = annotations_for(self.deployment, new.metadata.annotations.as_ref(), revision);
            let mut unwanted = Map::new();
            if comes_back && let Some(before) = self.revisions.latest_old() {
                for (key, value) in lost_settings(self.deployment, before) {
                    match &value {
                        Value::String(value) => wanted.insert(key.clone(), value.clone()),
                        _ => wanted.remove(&key),
                    };
                    unwanted.insert(key.clone(), Value::Null);
                    changes.insert(key, value);
                }
            }
            unwanted.retain(|key, _| !wanted.contains_key(key));
            let retried = rollback::failure_of(new).is_some();
            if comes_back
                && !retried
                && config::is_on(self.deployment)
                && let Some(secret) = config::pin(new, &self.seen.live)
            {
                wanted.insert(annotations::CONFIG_REVISION.to_owned(), secret.to_owned());
            }
            let mut set_changes = annotation_changes(new.metadata.annotations.as_ref(), wanted);
            set_changes.extend(unwanted);
            if !set_changes.is_empty() {
                self.act(Action::PatchSet {
                    name: name(new).to_owned(),
                    patch: json!({"metadata": {"annotations": set_changes}}),
                });
            }
            if let Some(recorded) = note(new, annotations::APPLIED_CONFIGURATION)
                && let Some(current) = note(self.deployment, annotations::LAST_APPLIED)
                && let Some(followed) = applied::follow_client(current, recorded)
            {
                changes.insert(annotations::LAST_APPLIED.to_owned(), Value::String(followed));
            }
            let entries = self.deployment.metadata.managed_fields.as_deref().unwrap_or_default();
            managed = note(new, annotations::APPLIED_FIELDS).and_then(|record| applied::follow(entries, record));
            let revision = revision.max(number(new)).to_string();
            if note(self.deployment, annotations::REVISION) != Some(&revision) {
                changes.insert(annotations::REVISION.to_owned(), Value::String(revision));
            }
            // A user's own undo ends what was said about an earlier automatic one.
            let automatic = self
                .revisions
                .all
                .iter()
                .filter_map(|set| rollback::failure_of(set))
                .max_by_key(|failure| failure.at.clone());
            if automatic.is_none_or(|failure| failure.to != name(new)) {
                let mut status = self.deployment.status.clone().unwrap_or_default();
                status::end(
                    &mut status,
                    conditions::ROLLED_BACK,
                    "NewRollout",
                    "the deployment was taken to another revision",
                    self.now,
                );
                status::end(
                    &mut status,
                    conditions::ROLLOUT_REFUSED,
                    "NewRollout",
                    "the deployment was taken to another revision",
                    self.now,
                );
                // Written by itself: the patch below is held to the resource version seen.
                if Some(&status) != self.deployment.status.as_ref() && self.deployment.status.is_some() {
                    self.write_status(&status);
                    return;
                }
            }
        }
        let mut patch =
            json!({"metadata": {"annotations": changes, "resourceVersion": self.deployment.metadata.resource_version}});
        if let (Some(managed), Some(meta)) = (managed, patch.get_mut("metadata").and_then(Value::as_object_mut)) {
            meta.insert("managedFields".to_owned(), json(&managed));
        }
        self.act(Action::Patch(patch));
    }
}

/// The settings an undo took from the deployment or put back onto it: as they were while `before` was current.
fn lost_settings(deployment: &Deployment, before: &ReplicaSet) -> Vec<(String, Value)> {
    annotations::SETTINGS
        .iter()
        .filter(|key| note(deployment, key) != note(before, key))
        .map(|key| ((*key).to_owned(), note(before, key).map_or(Value::Null, |value| Value::String(value.to_owned()))))
        .collect()
}

/// The merge patch that takes a deployment to the revision of a replica set, in the way of `kubectl rollout undo`: the
/// template and the change cause are the revision's, and [`annotations::REVISION_OF`] says so to the deployment loop.
/// It fails with a conflict when the deployment changed meanwhile.
pub(super) fn template_patch(deployment: &Deployment, set: &ReplicaSet) -> Value {
    let template = without_hash(&set.spec.template.clone().unwrap_or_default());
    let mut notes = Map::from_iter([(annotations::REVISION_OF.to_owned(), Value::String(name(set).to_owned()))]);
    let cause = note(set, annotations::CHANGE_CAUSE);
    if cause != note(deployment, annotations::CHANGE_CAUSE) {
        notes.insert(
            annotations::CHANGE_CAUSE.to_owned(),
            cause.map_or(Value::Null, |cause| Value::String(cause.to_owned())),
        );
    }
    let mut patch =
        json!({"metadata": {"annotations": notes, "resourceVersion": deployment.metadata.resource_version}});
    if let (Some(change), Some(patch)) = (template_diff(&deployment.spec.template, &template), patch.as_object_mut()) {
        patch.insert("spec".to_owned(), json!({"template": change}));
    }
    patch
}

fn template_diff(from: &PodTemplateSpec, to: &PodTemplateSpec) -> Option<Value> {
    merge_diff(&json(from), &json(to))
}
