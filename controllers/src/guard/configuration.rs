//! A change of configuration alone as a rollout, where the policy wants it. Pure.
//!
//! This says on the object with which configuration its template is to be rolled out; the loop of the kind makes the revision
//! ([`crate::history`]). That is the live one, but for two cases: an undo names another, and what was gone back to stays until
//! the live configuration is another than the one it was gone back from.

use super::plan::{Action, Guard, Seen, of};
use crate::{
    deployment::same_template,
    history::{Wanted, configuration_of, named_in, template_of, template_with, told},
    patch::{json, merge_diff},
    rollback::{applied, config, marks, policy},
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::core::ObjectMeta;
use proa_crds::{
    ControllerRevision, RolloutPolicy, annotations,
    policy::{ConfigurationChange, WorkloadKind},
};
use serde_json::{Map, Value, json};
use std::sync::Arc;

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;

/// The digest of the live configuration of the template, where a change of it is a rollout; empty when it refers to none.
pub(super) fn live(seen: &Seen) -> Option<String> {
    let wanted = seen.policy.as_ref().is_some_and(|policy| policy.configuration == ConfigurationChange::Rollout);
    let spec = seen.ward.template.spec.as_ref().filter(|_| wanted && config::is_on(&seen.ward.meta))?;
    let references = config::references(spec);
    Some(if references.is_empty() { String::new() } else { config::digest(&references, &seen.live) })
}

/// Whether the loop of the kind has to wait for the first word of which configuration the template is to be rolled out with. A
/// revision recorded before it would name none, and stock kubectl could not tell it from the next one of that template.
pub(crate) fn is_awaited(
    kind: WorkloadKind,
    object: &ObjectMeta,
    template: &PodTemplateSpec,
    policies: &[Arc<RolloutPolicy>],
) -> bool {
    let wants = || {
        let policy = policy::effective(kind, object, policies, None);
        policy.is_some_and(|policy| policy.configuration == ConfigurationChange::Rollout) && config::is_on(object)
    };
    object.deletion_timestamp.is_none()
        && marks::note(object, annotations::CONFIGURATION_WANTED).is_none()
        && template.spec.as_ref().is_some_and(|spec| !config::references(spec).is_empty())
        && wants()
}

/// Whether what was due when that revision became the current one has been done.
pub(super) fn has_arrived(revision: &ControllerRevision) -> bool {
    marks::note(&revision.metadata, annotations::CURRENT_AS) == Some(&revision.revision.to_string())
}

/// Whether nobody applied anything since that revision was current: then an undo brought another template, or a controller.
pub(super) fn nobody_applied(seen: &Seen, since: &ControllerRevision) -> bool {
    let object = &seen.ward.meta;
    let owned = object.managed_fields.as_deref().and_then(applied::record);
    let recorded = |key| marks::note(&since.metadata, key);
    recorded(annotations::APPLIED_CONFIGURATION) == marks::note(object, annotations::LAST_APPLIED)
        && recorded(annotations::APPLIED_FIELDS) == owned.as_deref()
}

/// The patch that makes the object say which configuration is to be rolled out, and takes out of its template what an undo
/// brought along to say the same; `None` when it is said.
pub(super) fn tell(seen: &Seen) -> Option<Action> {
    let (meta, template) = (&seen.ward.meta, &seen.ward.template);
    let wanted = live(seen).map(|live| Telling { seen, live }.wanted());
    // What is told and not followed yet is not told anew: neither is an undo that came meanwhile.
    let wanted = match wanted {
        Some(None) => return None,
        Some(wanted) => wanted.map(|digest| told(template, Some(&digest))),
        None => None,
    };
    let mut patch = json!({"metadata": {"resourceVersion": meta.resource_version}});
    let says = marks::note(meta, annotations::CONFIGURATION_WANTED);
    if says != wanted.as_deref() {
        patch["metadata"]["annotations"] = json!({annotations::CONFIGURATION_WANTED: wanted});
    }
    if let Some(change) = merge_diff(&json(template), &json(&template_with(template.clone(), None))) {
        patch["spec"] = json!({"template": change});
    }
    let changes = patch["spec"].is_object() || patch["metadata"]["annotations"].is_object();
    changes.then_some(Action::Patch(patch))
}

struct Telling<'a> {
    seen: &'a Seen,
    live: String,
}

impl<'a> Telling<'a> {
    /// The digest to tell; `None` while the one that is told waits for its loop or for the guard.
    fn wanted(self) -> Option<String> {
        let last = self.seen.revisions.last();
        let is_told = match Wanted::of(&self.seen.ward.meta, &self.seen.ward.template) {
            Wanted::Of(digest) => Some(digest),
            Wanted::Any | Wanted::Untold => None,
        };
        let told = is_told.as_deref().and_then(|told| self.same().rfind(|held| configuration_of(held) == Some(told)));
        if let Some(told) = told {
            let is_last = last.is_some_and(|last| last.metadata.uid == told.metadata.uid);
            if !is_last || !has_arrived(told) {
                return None;
            }
        }
        let named = named_in(&self.seen.ward.template).filter(|named| is_told.as_deref() != Some(named));
        if let Some(named) = named {
            let found = self.same().rfind(|held| configuration_of(held) == Some(named));
            return Some(self.kept(found).unwrap_or(self.live));
        }
        // What was gone back to stays; also when the policy came later.
        let standing = told.or(last.filter(|last| self.has_template(last)));
        let stays = |held: &&Arc<ControllerRevision>| match marks::note(&held.metadata, annotations::CONFIGURATION_LEFT)
        {
            Some(left) => left == self.live,
            None => marks::note(&held.metadata, annotations::CONFIG_REVISION).is_some(),
        };
        if let Some(stays) = standing.filter(stays).and_then(|held| configuration_of(held)) {
            return Some(stays.to_owned());
        }
        // An undo of a revision that names none: one from before the policy.
        let undone = last.filter(|last| !self.has_template(last) && nobody_applied(self.seen, last));
        let back = undone.and_then(|_| self.kept(self.same().next_back()));
        Some(back.unwrap_or(self.live))
    }

    fn has_template(&self, held: &ControllerRevision) -> bool {
        template_of(held).is_some_and(|recorded| same_template(&recorded, &self.seen.ward.template))
    }

    /// The revisions of the object's template, the oldest first.
    fn same(&self) -> impl DoubleEndedIterator<Item = &'a Arc<ControllerRevision>> {
        self.seen.revisions.iter().filter(|held| self.has_template(held))
    }

    /// The digest of what that revision ran with, where it can come back: it is kept, and the revision not known to fail.
    fn kept(&self, revision: Option<&Arc<ControllerRevision>>) -> Option<String> {
        let revision = revision.filter(|held| marks::failure_of(&held.metadata).is_none())?;
        config::pin(&revision.metadata, self.seen.ward.template.spec.as_ref(), &self.seen.live)?;
        configuration_of(revision).map(str::to_owned)
    }
}

impl Guard<'_> {
    /// What is recorded of the live configuration when the current revision is gone back to and reads a copy instead: it stays
    /// the current one until the configuration changes again. Also without a policy that makes a rollout of that: one may come.
    pub(super) fn left(&self, pinned: bool) -> Option<String> {
        let spec = self.seen.ward.template.spec.as_ref().filter(|_| pinned)?;
        let live = config::digest(&config::references(spec), &self.seen.live);
        (configuration_of(self.current) != Some(live.as_str())).then_some(live)
    }

    /// Where a change of configuration is a rollout, the pods it replaces go on with what they had; and what was gone back to
    /// reads the live objects again once they hold what it was made for. Whether there was something to do.
    pub(super) fn keep_what_runs(&mut self) -> bool {
        let Some(live) = live(self.seen) else { return false };
        let pinned = |held: &ControllerRevision| marks::note(&held.metadata, annotations::CONFIG_REVISION).is_some();
        if pinned(self.current) && configuration_of(self.current) == Some(live.as_str()) {
            let of_a_rollout = [annotations::CONFIG_REVISION, annotations::CONFIGURATION_LEFT];
            let changes = of_a_rollout.into_iter().map(|key| (key.to_owned(), Value::Null));
            self.mark(of(self.current).name(), Value::Object(Map::from_iter(changes)));
            return true;
        }
        let left = marks::note(&self.current.metadata, annotations::CONFIGURATION_LEFT);
        if left.is_none()
            && let Some(left) = self.left(pinned(self.current))
        {
            self.mark(of(self.current).name(), json!({annotations::CONFIGURATION_LEFT: left}));
            return true;
        }
        let before = self.plan.actions.len();
        for other in self.seen.revisions.iter().filter(|held| held.metadata.uid != self.current.metadata.uid) {
            let pods = self.pods_of(of(other));
            if pods.is_empty() {
                continue;
            }
            let spec = template_of(other).and_then(|template| template.spec);
            let secret = match marks::note(&other.metadata, annotations::CONFIG_REVISION) {
                Some(secret) => secret.to_owned(),
                None => {
                    let Some(secret) = config::pin(&other.metadata, spec.as_ref(), &self.seen.live) else { continue };
                    self.mark(of(other).name(), json!({annotations::CONFIG_REVISION: secret}));
                    secret.to_owned()
                }
            };
            self.point(&pods, Some(&secret));
        }
        self.plan.actions.len() > before
    }
}
