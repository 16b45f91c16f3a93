//! Revision history in ControllerRevisions, as StatefulSets and DaemonSets keep it and kubectl reads it.
//!
//! Owns: what a revision records and how it is named, which recorded revision a template is, the numbers, whom a
//! revision belongs to, and which are too many. Pure but for [`Recorder`], which does the writes. Never decides which pod
//! runs which revision.
//!
//! The face: a [`Parent`] is what an owner of revisions is here; [`History::of`] sorts what it controls;
//! [`History::current`] says which revision its template is, or what is missing for that; [`History::claims`] and
//! [`History::surplus`] are the other writes; [`template_of`] and [`undo`] read a revision back.

mod configuration;
mod record;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use configuration::{Wanted, configuration_of, named_in, template_with, told};
pub use record::{data_of, hash_of, template_of, undo};
pub use write::{Outcome, Recorder};

use crate::{
    deployment::same_template,
    owners,
    rollback::{Revision, marks},
    selector,
};
use k8s_openapi::{
    api::core::v1::PodTemplateSpec,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference},
};
use kube::core::{ApiResource, ObjectMeta};
use proa_crds::{ControllerRevision, DaemonSet, StatefulSet};
use std::sync::Arc;

/// Which kind keeps the history: they label what belongs to a revision differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// Pods carry the revision's name.
    StatefulSet,
    /// Pods and revisions carry the revision's hash.
    DaemonSet,
}

/// An owner of revisions.
#[derive(Clone, Debug)]
pub struct Parent<'a> {
    /// Which kind it is.
    pub keeper: Keeper,
    /// Its metadata.
    pub meta: &'a ObjectMeta,
    /// What its revisions refer to it by.
    pub reference: OwnerReference,
    /// What is recorded.
    pub template: &'a PodTemplateSpec,
    /// Which configuration is recorded with it.
    pub(crate) configuration: Wanted,
    /// Which revisions may be its own.
    pub selector: &'a LabelSelector,
    /// How many names were found taken by something else.
    pub collisions: Option<i32>,
    /// How many revisions are kept beside those in use.
    pub limit: usize,
}

/// Kubernetes' default of `revisionHistoryLimit`.
const LIMIT: i32 = 10;

impl<'a> Parent<'a> {
    /// A stateful set, of the family `resource` says.
    pub fn of_stateful_set(set: &'a StatefulSet, resource: &ApiResource) -> Parent<'a> {
        Parent {
            keeper: Keeper::StatefulSet,
            meta: &set.metadata,
            reference: owners::controller_reference(set, resource),
            template: &set.spec.template,
            configuration: Wanted::of(&set.metadata, &set.spec.template),
            selector: &set.spec.selector,
            collisions: set.status.as_ref().and_then(|status| status.collision_count),
            limit: limit(set.spec.revision_history_limit),
        }
    }

    /// A daemon set, of the family `resource` says.
    pub fn of_daemon_set(set: &'a DaemonSet, resource: &ApiResource) -> Parent<'a> {
        Parent {
            keeper: Keeper::DaemonSet,
            meta: &set.metadata,
            reference: owners::controller_reference(set, resource),
            template: &set.spec.template,
            configuration: Wanted::of(&set.metadata, &set.spec.template),
            selector: &set.spec.selector,
            collisions: set.status.as_ref().and_then(|status| status.collision_count),
            limit: limit(set.spec.revision_history_limit),
        }
    }
}

fn limit(asked: Option<i32>) -> usize {
    usize::try_from(asked.unwrap_or(LIMIT)).unwrap_or(usize::MAX)
}

/// Why a parent's template has no revision yet.
#[derive(Clone, Debug)]
pub enum Pending {
    /// It is to be recorded: this leads there.
    Record(Write),
    /// Its guard has not said yet with which configuration.
    Configuration,
}

/// One write to the history.
#[derive(Clone, Debug)]
pub enum Write {
    /// Become the controller of a revision nobody controls.
    Adopt(Arc<ControllerRevision>),
    /// Give up a revision the selector no longer selects.
    Release(Arc<ControllerRevision>),
    /// Record a template that has no revision yet.
    Create(Box<ControllerRevision>),
    /// Give an earlier revision, whose template is current again, the highest number.
    Renumber(Arc<ControllerRevision>, i64),
    /// Forget a revision.
    Delete(Arc<ControllerRevision>),
}

/// The revisions of one parent.
#[derive(Clone, Debug)]
pub struct History {
    revisions: Vec<Arc<ControllerRevision>>,
    /// For each revision whether its template is the parent's, and its configuration the one that is wanted.
    is_current: Vec<bool>,
}

impl History {
    /// The history of a parent from the revisions it controls.
    pub fn of(parent: &Parent<'_>, controlled: &[Arc<ControllerRevision>]) -> History {
        let mut revisions: Vec<_> =
            controlled.iter().filter(|held| held.metadata.deletion_timestamp.is_none()).cloned().collect();
        revisions.sort_by(|a, b| {
            let place = |held: &ControllerRevision| held.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (a.revision, place(a), &a.metadata.name).cmp(&(b.revision, place(b), &b.metadata.name))
        });
        let last = revisions.len().saturating_sub(1);
        let same = |(at, held): (usize, &Arc<ControllerRevision>)| {
            parent.configuration.is_met_by(held, at == last)
                && template_of(held).is_some_and(|recorded| same_template(&recorded, parent.template))
        };
        let is_current = revisions.iter().enumerate().map(same).collect();
        History { revisions, is_current }
    }

    /// All revisions, the oldest first: by number, then by age, then by name.
    pub fn all(&self) -> &[Arc<ControllerRevision>] {
        &self.revisions
    }

    /// The revision of that name.
    pub fn named(&self, name: &str) -> Option<&Arc<ControllerRevision>> {
        self.revisions.iter().find(|held| held.metadata.name.as_deref() == Some(name))
    }

    /// The revision a pod with these labels was made from.
    pub fn of_pod(&self, keeper: Keeper, pod: &ObjectMeta) -> Option<&Arc<ControllerRevision>> {
        let mark = pod_mark(pod)?;
        self.revisions.iter().find(|held| mark_of(keeper, held) == Some(mark))
    }

    /// Whether a pod with these labels was made from the parent's template, under whichever revision that was recorded.
    pub fn is_updated(&self, keeper: Keeper, pod: &ObjectMeta) -> bool {
        let Some(mark) = pod_mark(pod) else { return false };
        let mut current = self.revisions.iter().zip(&self.is_current).filter(|(_, current)| **current);
        current.any(|(held, _)| mark_of(keeper, held) == Some(mark))
    }

    /// The revision the parent's template is, if it has the highest number; otherwise what is missing.
    ///
    /// Of several revisions with that template the latest counts (another one may have been made by hand).
    ///
    /// # Errors
    /// While there is none.
    pub fn current(&self, parent: &Parent<'_>) -> Result<&Arc<ControllerRevision>, Pending> {
        if parent.configuration == Wanted::Untold {
            return Err(Pending::Configuration);
        }
        let next = self.revisions.last().map_or(1, |last| last.revision.saturating_add(1));
        match self.is_current.iter().rposition(|current| *current) {
            Some(at) if at + 1 == self.revisions.len() => Ok(&self.revisions[at]),
            Some(at) => Err(Pending::Record(Write::Renumber(self.revisions[at].clone(), next))),
            None => Err(Pending::Record(Write::Create(Box::new(record::revision(parent, next))))),
        }
    }

    /// Adoptions and releases: what the parent's selector says of revisions it controls and of `orphans`.
    pub fn claims(&self, parent: &Parent<'_>, orphans: &[Arc<ControllerRevision>]) -> Vec<Write> {
        if parent.meta.deletion_timestamp.is_some() || selector::is_empty(parent.selector) {
            return Vec::new();
        }
        let selected =
            |held: &&Arc<ControllerRevision>| selector::matches(parent.selector, held.metadata.labels.as_ref());
        let stays = |held: &&Arc<ControllerRevision>| held.metadata.deletion_timestamp.is_none();
        let adopt = orphans.iter().filter(stays).filter(selected).cloned().map(Write::Adopt);
        let release = self.revisions.iter().filter(|held| !selected(held)).cloned().map(Write::Release);
        adopt.chain(release).collect()
    }

    /// Deletes the oldest of those that are too many. Revisions that `is_live` are kept and not counted, nor is the one
    /// the parent's template is, nor the one automatic rollback would go back to, nor the failed one it must know again.
    pub fn surplus(&self, parent: &Parent<'_>, is_live: impl Fn(&ControllerRevision) -> bool) -> Vec<Write> {
        let current = self.is_current.iter().rposition(|current| *current);
        let others = || {
            let other = self.revisions.iter().enumerate().filter(|(at, _)| Some(*at) != current);
            other.map(|(_, held)| Revision { meta: &held.metadata, number: held.revision })
        };
        let known = [marks::last_healthy(others()), marks::last_failed(others()).map(|(failed, _)| failed)];
        // Health is marked by who may go back to it; where nobody does, there is no mark.
        let known: Vec<&str> = known.iter().flatten().map(Revision::name).collect();
        let is_known =
            |held: &ControllerRevision| held.metadata.name.as_deref().is_some_and(|name| known.contains(&name));
        let spare: Vec<_> = self
            .revisions
            .iter()
            .enumerate()
            .filter(|(at, held)| Some(*at) != current && !is_live(held) && !is_known(held))
            .map(|(_, held)| held.clone())
            .collect();
        let surplus = spare.len().saturating_sub(parent.limit);
        spare.into_iter().take(surplus).map(Write::Delete).collect()
    }
}

/// What tells a pod's revision.
fn pod_mark(pod: &ObjectMeta) -> Option<&str> {
    pod.labels.as_ref()?.get(proa_crds::annotations::CONTROLLER_REVISION_HASH).map(String::as_str)
}

/// The value of `controller-revision-hash` on the pods of a revision.
pub fn mark_of(keeper: Keeper, revision: &ControllerRevision) -> Option<&str> {
    match keeper {
        Keeper::StatefulSet => revision.metadata.name.as_deref(),
        Keeper::DaemonSet => hash_of(revision),
    }
}
