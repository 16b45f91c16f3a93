//! Which configuration a template is to be rolled out with, where a change of configuration alone is a rollout. Pure.
//!
//! The guard knows policies and configuration. It says on the object with which configuration its template is to be rolled out
//! (`proa.dev/configuration-wanted`), and the loop of the kind finds or makes the revision of that template and that
//! configuration. A revision records the digest of its configuration in its template (`proa.dev/configuration`), as a ReplicaSet
//! does: so `kubectl rollout undo` tells two revisions of one template apart, and what it writes names the one it meant.

use super::template_of;
use crate::{
    patch::json,
    rollback::{config, marks},
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::core::ObjectMeta;
use proa_crds::{ControllerRevision, annotations};

/// The configuration a template is to be rolled out with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Whatever is live: a change of it is no rollout, or the template refers to none.
    Any,
    /// The one of this digest.
    Of(String),
    /// A change of it is a rollout, and for this template nobody has said which one.
    Untold,
}

impl Wanted {
    /// What the object says of this template.
    pub(crate) fn of(object: &ObjectMeta, template: &PodTemplateSpec) -> Wanted {
        let Some(told) = marks::note(object, annotations::CONFIGURATION_WANTED) else { return Wanted::Any };
        match told.split_once('/') {
            Some((of, _)) if of != digest(template) => Wanted::Untold,
            Some((_, "")) => Wanted::Any,
            Some((_, configuration)) => Wanted::Of(configuration.to_owned()),
            None => Wanted::Untold,
        }
    }

    /// Whether a revision is for that configuration. One that does not say runs with what is live: that is known of the last
    /// one alone.
    pub(super) fn is_met_by(&self, revision: &ControllerRevision, is_last: bool) -> bool {
        match self {
            Wanted::Of(wanted) => configuration_of(revision).map_or(is_last, |held| held == wanted),
            Wanted::Any | Wanted::Untold => true,
        }
    }

    /// The digest to record.
    pub(super) fn digest(&self) -> Option<&str> {
        match self {
            Wanted::Of(digest) => Some(digest),
            Wanted::Any | Wanted::Untold => None,
        }
    }
}

/// What an object says of its template and that configuration; without a digest the template refers to none.
pub(crate) fn told(template: &PodTemplateSpec, configuration: Option<&str>) -> String {
    format!("{}/{}", digest(template), configuration.unwrap_or_default())
}

fn digest(template: &PodTemplateSpec) -> String {
    proa_apimachinery::template::digest(&json(template))
}

/// The digest of the configuration a revision was made for or, as far as it is known, runs with.
pub(crate) fn configuration_of(revision: &ControllerRevision) -> Option<&str> {
    configuration_in(revision).or_else(|| config::digest_of_copy(&revision.metadata))
}

/// The digest in the template a revision recorded.
pub(super) fn configuration_in(revision: &ControllerRevision) -> Option<&str> {
    let notes = revision.data.pointer("/spec/template/metadata/annotations")?;
    notes.get(annotations::CONFIGURATION)?.as_str()
}

/// The digest in a template: that of an undo that was not followed yet.
pub(crate) fn named_in(template: &PodTemplateSpec) -> Option<&str> {
    let notes = template.metadata.as_ref()?.annotations.as_ref()?;
    notes.get(annotations::CONFIGURATION).map(String::as_str)
}

/// The template with that digest, or with none.
pub(crate) fn template_with(mut template: PodTemplateSpec, configuration: Option<&str>) -> PodTemplateSpec {
    if named_in(&template) == configuration {
        return template;
    }
    let meta = template.metadata.get_or_insert_default();
    let notes = meta.annotations.get_or_insert_default();
    match configuration {
        Some(digest) => drop(notes.insert(annotations::CONFIGURATION.to_owned(), digest.to_owned())),
        None => drop(notes.remove(annotations::CONFIGURATION)),
    }
    if notes.is_empty() {
        meta.annotations = None;
    }
    if *meta == ObjectMeta::default() {
        template.metadata = None;
    }
    template
}

/// Whether two revisions record the same template for the same configuration.
pub(super) fn records_the_same(a: &ControllerRevision, b: &ControllerRevision) -> bool {
    let same = |a: &PodTemplateSpec, b: &PodTemplateSpec| crate::deployment::same_template(a, b);
    configuration_in(a) == configuration_in(b) && template_of(a).zip(template_of(b)).is_some_and(|(a, b)| same(&a, &b))
}
