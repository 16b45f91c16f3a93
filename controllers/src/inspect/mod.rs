//! History a person can read: which revisions there are, who made them and why, what they ran, what became of them; and what
//! differs between two; and going back to one of them by hand.
//!
//! Owns: reading revisions of any kind that has them (Deployment, StatefulSet, DaemonSet in both families, Release) into one
//! shape, and its two faces, text and JSON. Never writes but an undo somebody asks for and the wish to try a failed revision
//! again, and never shows the value of a Secret unless it is asked to.

mod difference;
mod go_back;
mod history;
mod revisions;
pub mod unified;

pub(crate) use difference::field_changes;
pub use difference::{Difference, Part, diff};
pub use go_back::{RollbackError, WentBack, go_back};
pub use history::{Configuration, Entry, History, history};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::ApiResource,
};
use proa_crds::{Family, annotations, policy::WorkloadKind, release::release_resource};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fmt;

/// The user the platform's loops write as.
const CONTROLLERS: &str = "system:kube-controller-manager";

/// Who wrote a template: the value of [`annotations::CHANGED_BY`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Author {
    /// The user, as the API server knew it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// The field manager.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub manager: String,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

impl Author {
    /// Reads the annotation.
    pub fn read(text: &str) -> Option<Author> {
        serde_json::from_str(text).ok()
    }
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.user.as_str(), self.manager.as_str()) {
            // The platform's own loops: which of them did it is the news.
            ("" | CONTROLLERS, manager) => f.write_str(manager),
            (user, "") => f.write_str(user),
            (user, manager) => write!(f, "{user} ({manager})"),
        }
    }
}

/// A kind that has revisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Revisions in ReplicaSets.
    Deployment,
    /// Revisions in ControllerRevisions.
    StatefulSet,
    /// Revisions in ControllerRevisions.
    DaemonSet,
    /// Revisions in its status.
    Release,
}

/// An object that has revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its kind.
    pub kind: Kind,
    /// The API family; `None` when the user did not say: the standard one is looked at first.
    pub family: Option<Family>,
    /// Its name.
    pub name: String,
}

impl Target {
    /// Reads `KIND/NAME` as kubectl does: singular, plural, short name, with or without the group.
    ///
    /// # Errors
    /// When it is not of that form, or the kind has no revisions.
    pub fn parse(text: &str) -> Result<Target, InspectError> {
        let (kind, name) = text
            .split_once('/')
            .filter(|(_, name)| !name.is_empty())
            .ok_or_else(|| InspectError::NotATarget(text.to_owned()))?;
        let (word, group) = kind.split_once('.').unwrap_or((kind, ""));
        let found = match word.to_ascii_lowercase().as_str() {
            "deployment" | "deployments" | "deploy" | "pdeploy" => Kind::Deployment,
            "statefulset" | "statefulsets" | "sts" => Kind::StatefulSet,
            "daemonset" | "daemonsets" | "ds" => Kind::DaemonSet,
            "release" | "releases" | "rel" => Kind::Release,
            _ => return Err(InspectError::NoRevisions(kind.to_owned())),
        };
        let family = match (group, found) {
            ("", _) | ("proa.dev", Kind::Release) => None,
            ("apps", kind) if kind != Kind::Release => Some(Family::Standard),
            ("proa.dev", _) => Some(Family::Proa),
            _ => return Err(InspectError::NoRevisions(kind.to_owned())),
        };
        Ok(Target { kind: found, family, name: name.to_owned() })
    }

    /// Where it may be: one place, or the standard family's and then the custom one's.
    fn resources(&self) -> Vec<(Family, ApiResource)> {
        let families = self.family.map_or(vec![Family::Standard, Family::Proa], |family| vec![family]);
        match self.kind {
            Kind::Release => vec![(Family::Standard, release_resource())],
            kind => families.into_iter().map(|family| (family, kind.resource(family))).collect(),
        }
    }

    /// The object, its family and its resource.
    pub(crate) async fn find(
        &self,
        client: &Client,
        namespace: &str,
    ) -> Result<(Family, ApiResource, DynamicObject), InspectError> {
        for (family, resource) in self.resources() {
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
            if let Some(object) = api.get_opt(&self.name).await? {
                return Ok((family, resource, object));
            }
        }
        Err(InspectError::NotFound { target: self.to_string(), namespace: namespace.to_owned() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.word(), self.name)
    }
}

impl Kind {
    /// As kubectl names an object of the kind.
    fn word(self) -> &'static str {
        match self {
            Kind::Deployment => "deployment",
            Kind::StatefulSet => "statefulset",
            Kind::DaemonSet => "daemonset",
            Kind::Release => "release",
        }
    }

    fn resource(self, family: Family) -> ApiResource {
        match self {
            Kind::Deployment => family.deployment(),
            Kind::StatefulSet => family.stateful_set(),
            Kind::DaemonSet => family.daemon_set(),
            Kind::Release => release_resource(),
        }
    }

    /// What a policy calls the kind, where one can hold for it.
    fn guarded(self) -> Option<WorkloadKind> {
        match self {
            Kind::Deployment => Some(WorkloadKind::Deployment),
            Kind::StatefulSet => Some(WorkloadKind::StatefulSet),
            Kind::DaemonSet => Some(WorkloadKind::DaemonSet),
            Kind::Release => None,
        }
    }
}

/// Why history cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The text names no object.
    #[error("{0:?} is not KIND/NAME, such as deployment/web")]
    NotATarget(String),
    /// The kind has no revisions.
    #[error("a {0} has no revisions: only Deployments, StatefulSets, DaemonSets and Releases have")]
    NoRevisions(String),
    /// There is no such object.
    #[error("there is no {target} in namespace {namespace:?}")]
    NotFound {
        /// What was asked for.
        target: String,
        /// Where.
        namespace: String,
    },
    /// The history does not hold that revision.
    #[error("{target} has no revision {revision}; its history holds {held:?}")]
    NoRevision {
        /// What was asked for.
        target: String,
        /// Which revision of it.
        revision: i64,
        /// What there is.
        held: Vec<i64>,
    },
    /// No revision of it is known to fail.
    #[error("no revision of {0} is known to fail: there is nothing to try again")]
    NothingFailed(String),
    /// What a revision held cannot be read.
    #[error("revision {revision} cannot be read: {why}")]
    Unreadable {
        /// Which.
        revision: i64,
        /// Why.
        why: String,
    },
    /// The API server refused or could not be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// Asks for the failed revision of an object to be tried again: `proa.dev/retry` gets a value it did not have. What was asked.
///
/// # Errors
/// When there is no such object, none of its revisions failed, or it may not be written.
pub async fn retry(client: &Client, namespace: &str, target: &Target, now: Timestamp) -> Result<String, InspectError> {
    let held = history(client, namespace, target).await?.revisions;
    let Some(failed) = held.iter().filter(|held| held.failure.is_some()).max_by_key(|held| held.revision) else {
        return Err(InspectError::NothingFailed(target.to_string()));
    };
    let (_, resource, object) = target.find(client, namespace).await?;
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let patch = json!({"metadata": {"uid": object.metadata.uid, "annotations": {annotations::RETRY: now.to_string()}}});
    let manager = PatchParams { field_manager: Some("proa".to_owned()), ..PatchParams::default() };
    api.patch(&target.name, &manager, &Patch::Merge(&patch)).await?;
    Ok(format!("{target}: revision {}, which failed last, may be tried again", failed.revision))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_as_kubectl_reads_it() {
        let target = |text: &str| {
            Target::parse(text)
                .map(|target| (target.kind, target.family, target.name))
                .map_err(|error| error.to_string())
        };
        assert_eq!(target("deploy/web"), Ok((Kind::Deployment, None, "web".into())));
        assert_eq!(target("deployments.proa.dev/web"), Ok((Kind::Deployment, Some(Family::Proa), "web".into())));
        assert_eq!(target("statefulset.apps/db"), Ok((Kind::StatefulSet, Some(Family::Standard), "db".into())));
        assert_eq!(target("ds/logs"), Ok((Kind::DaemonSet, None, "logs".into())));
        assert_eq!(target("releases.proa.dev/shop"), Ok((Kind::Release, None, "shop".into())));
        assert!(target("pod/web").is_err_and(|why| why.contains("only Deployments")));
        assert!(target("web").is_err_and(|why| why.contains("KIND/NAME")));
        assert!(target("deployment/").is_err());
    }

    #[test]
    fn an_author_is_a_user_with_a_tool() {
        let author =
            Author::read(r#"{"user":"anna","manager":"kubectl","time":"2026-11-21T10:00:00Z"}"#).expect("an author");
        assert_eq!(author.to_string(), "anna (kubectl)");
        assert_eq!(Author { user: String::new(), ..author }.to_string(), "kubectl");
        assert_eq!(Author::read("anna"), None);
    }
}
