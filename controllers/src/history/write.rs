//! The writes of a history. Thin: what to write was decided before.

use super::{Parent, Write, configuration::records_the_same};
use crate::{
    ActError, Informer, Key, Writes, owners,
    patch::{MANAGER, params},
    rollback::marks,
};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PostParams, Preconditions},
};
use proa_crds::{ControllerRevision, annotations};
use serde_json::{Value, json};

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server holds what was wanted.
    Done,
    /// The name of a new revision is taken by something else: the parent must count one more collision.
    NameTaken,
}

/// Writes revisions of one family.
#[derive(Clone)]
pub struct Recorder {
    /// The revisions of every namespace.
    pub revisions: Informer<ControllerRevision>,
}

impl Recorder {
    /// Does one write. Before an adoption the caller makes sure that the parent is there and stays.
    pub async fn write(&self, parent: &Parent<'_>, write: Write, writes: &Writes) -> Result<Outcome, ActError> {
        match write {
            Write::Adopt(revision) => {
                let mut owners = owners::owners_without(&revision.metadata, "");
                owners.push(parent.reference.clone());
                self.patch(&revision, &owners::patch(&revision.metadata, &owners), writes).await
            }
            Write::Release(revision) => {
                let uid = parent.meta.uid.as_deref().unwrap_or_default();
                let owners = owners::owners_without(&revision.metadata, uid);
                self.patch(&revision, &owners::patch(&revision.metadata, &owners), writes).await
            }
            Write::Renumber(revision, number) => {
                let mut patch = json!({"metadata": {"uid": revision.metadata.uid, "resourceVersion": revision.metadata.resource_version},
                    "revision": number});
                // Who brought it back, and when, is the news of this number.
                if let Some(author) = marks::note(parent.meta, annotations::CHANGED_BY) {
                    patch["metadata"]["annotations"] = json!({annotations::CHANGED_BY: author});
                }
                self.patch(&revision, &patch, writes).await
            }
            Write::Create(revision) => self.create(parent, &revision, writes).await,
            Write::Delete(revision) => {
                let key = Key::of(revision.as_ref());
                let uid = revision.metadata.uid.clone().unwrap_or_default();
                let only_this = Preconditions { uid: Some(uid.clone()), resource_version: None };
                let deletion = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
                match self.revisions.api(&key.namespace).delete(&key.name, &deletion).await.map_err(ActError::from) {
                    Ok(_) | Err(ActError::Gone(_)) => {}
                    Err(error) => return Err(error),
                }
                writes.deleted(&self.revisions, &key, &uid);
                Ok(Outcome::Done)
            }
        }
    }

    async fn patch(&self, revision: &ControllerRevision, patch: &Value, writes: &Writes) -> Result<Outcome, ActError> {
        let api = self.revisions.api(&revision.namespace().unwrap_or_default());
        let written = api.patch(&revision.name_any(), &params(), &Patch::Merge(patch)).await?;
        writes.wrote(&self.revisions, &written);
        Ok(Outcome::Done)
    }

    async fn create(
        &self,
        parent: &Parent<'_>,
        revision: &ControllerRevision,
        writes: &Writes,
    ) -> Result<Outcome, ActError> {
        let api = self.revisions.api(&revision.namespace().unwrap_or_default());
        let post = PostParams { field_manager: Some(MANAGER.to_owned()), dry_run: false };
        let error = match api.create(&post, revision).await {
            Ok(created) => {
                writes.wrote(&self.revisions, &created);
                return Ok(Outcome::Done);
            }
            Err(error) => error,
        };
        if !matches!(&error, kube::Error::Api(status) if status.reason == "AlreadyExists") {
            return Err(error.into());
        }
        let taken = api.get(&revision.name_any()).await?;
        let ours =
            owners::is_controlled_by(&taken.metadata, &parent.reference.uid) && records_the_same(&taken, revision);
        // Ours, made in an earlier life and not yet seen.
        writes.wrote(&self.revisions, &taken);
        Ok(if ours { Outcome::Done } else { Outcome::NameTaken })
    }
}
