//! What going back writes, one step at a time, and the releases of ApplySets.
//!
//! Owns: creating, changing and removing members, saying what stands in the way, and telling an ApplySet's parent what comes
//! back. Decides nothing: the plan did.

use super::{
    Releases, Step, content, content::Content, content::Id, core_resource, member, membership, membership::Parent,
    status, steps,
};
use crate::{
    ActError, Key, Writes,
    events::{Kind, Note},
    owners,
    patch::MANAGER,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
    core::{ApiResource, ObjectMeta},
};
use proa_crds::{
    Family, annotations, conditions,
    release::{Members, Parent as ApplySetParent, Release, ReleaseSpec, release_resource},
};
use serde_json::{Value, json};

/// Parameters that name what goes back as the field manager.
fn mine() -> PatchParams {
    PatchParams { field_manager: Some(content::MANAGER.to_owned()), ..PatchParams::default() }
}

impl Releases {
    /// Lets the set's tool know of members that are about to come back, in the name it writes under itself: its next apply
    /// finds what it expects, and prunes what it should.
    pub(super) async fn grow(&self, key: &Key, members: &[Id]) -> Result<(), ActError> {
        let release = self.held(key)?;
        let Some((resource, mut meta)) = self.parent_object(&release) else { return Ok(()) };
        if membership::is_to_be_parent(&release) {
            meta = Parent::founded(&meta, &resource);
        }
        let mut kinds = Vec::new();
        for id in members {
            // What is not served yet comes with its definition; then this is done again.
            kinds.extend(self.resource(id).ok().map(|(resource, _)| resource));
        }
        let kinds: Vec<&ApiResource> = kinds.iter().collect();
        let namespaces: Vec<&str> = members.iter().map(|id| id.namespace.as_str()).collect();
        let mut object = json!({"apiVersion": resource.api_version, "kind": resource.kind});
        object["metadata"] = Parent::grown(&meta, &kinds, &namespaces);
        let name = meta.name.unwrap_or_default();
        object["metadata"]["name"] = json!(name);
        let api: Api<DynamicObject> = Api::namespaced_with(self.context.client.clone(), &key.namespace, &resource);
        let as_tool = PatchParams::apply(annotations::APPLY_SET_MANAGER).force();
        let written = api.patch(&name, &as_tool, &Patch::Apply(&object)).await?;
        // Seen, or looked at again with the old state: then it is done once more, to no effect.
        let at = written.resource_version();
        self.catalogue
            .until(|graph| {
                graph.get(&written.uid().unwrap_or_default()).is_some_and(|item| Some(&item.version) == at.as_ref())
            })
            .await;
        Ok(())
    }

    pub(super) async fn step(&self, key: &Key, step: Step, writes: &Writes) -> Result<(), ActError> {
        let release = self.held(key)?;
        let force =
            release.status.as_ref().and_then(|status| status.rollback.as_ref()).is_some_and(|going| going.force);
        let id = step.id().clone();
        let said = step.to_string();
        let done = match step {
            Step::Create(content) => self.create(key, &release, &content, force, writes).await,
            Step::Change { id, patch } => self.change(key, &release, &id, &patch, force, writes).await,
            Step::Return { id, patch } => {
                let outcome = self.change(key, &release, &id, &patch, false, writes).await;
                if outcome.is_ok() {
                    // Once is enough, whatever the server makes of it.
                    self.memory.lock().entry(key.clone()).or_default().returned.insert(id);
                }
                outcome
            }
            Step::Remove { id, uid } => self.remove(&id, uid).await,
            Step::Await(_) => Ok(()),
        };
        match done {
            Err(ActError::Refused(why)) => {
                let why = format!("cannot {said}: {why}");
                self.stall(key, &id, &why, writes).await;
                Err(ActError::Refused(why))
            }
            other => other,
        }
    }

    /// Says once that going back needs help.
    pub(super) async fn stall(&self, key: &Key, id: &Id, why: &str, writes: &Writes) {
        let Some(held) = self.releases.get(key) else { return };
        let status = held.status.clone().unwrap_or_default();
        let mut conditions = status.conditions.clone();
        let now = self.context.clock.now();
        status::set(&mut conditions, conditions::STALLED, "True", "MemberRefused", why, held.metadata.generation, now);
        if conditions == status.conditions {
            return;
        }
        self.note(&held, Note { kind: Kind::Warning, reason: "RollbackBlocked", message: format!("{id}: {why}") });
        let patch = json!({"metadata": {"resourceVersion": held.metadata.resource_version}, "status": {"conditions": conditions}});
        // The refusal itself is what is reported; saying it again has time until the next try.
        let _ = self.patch_status(key, &patch, writes).await;
    }

    async fn create(
        &self,
        key: &Key,
        release: &Release,
        content: &Content,
        force: bool,
        writes: &Writes,
    ) -> Result<(), ActError> {
        let (id, api) = (&content.id, self.api(&content.id)?);
        let object: DynamicObject = serde_json::from_value(steps::anew(content))
            .map_err(|error| ActError::Refused(format!("what is kept of it is no object: {error}")))?;
        let post = PostParams { field_manager: Some(content::MANAGER.to_owned()), dry_run: false };
        match api.create(&post, &object).await {
            Ok(created) => {
                self.wrote(key, release, &created, id, writes);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                // It is there, and no member: it came to belong to somebody else.
                if !force {
                    let why = "it exists and does not belong to the release; with --force it is taken";
                    return Err(ActError::Refused(why.to_owned()));
                }
                let taken = api.get(&id.name).await?;
                let (resource, _) = self.resource(id)?;
                let live = member(&resource, &taken).live;
                match steps::change(content, &live) {
                    Some(patch) => self.change(key, release, id, &patch, force, writes).await,
                    None => Ok(()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn change(
        &self,
        key: &Key,
        release: &Release,
        id: &Id,
        patch: &Value,
        force: bool,
        writes: &Writes,
    ) -> Result<(), ActError> {
        let api = self.api(id)?;
        match api.patch(&id.name, &mine(), &Patch::Merge(patch)).await {
            Ok(written) => {
                self.wrote(key, release, &written, id, writes);
                Ok(())
            }
            // What cannot be changed in place was made anew when it came to be what it is.
            Err(kube::Error::Api(status)) if status.code == 422 && force => {
                let uid = patch.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
                self.remove(id, uid.to_owned()).await
            }
            Err(kube::Error::Api(status)) if status.code == 422 => {
                Err(ActError::Refused(format!("{}; with --force it is removed and made anew", status.message)))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn remove(&self, id: &Id, uid: String) -> Result<(), ActError> {
        let deletion = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(uid.clone()), resource_version: None }),
            // What it controls goes first: what follows may be what those need.
            propagation_policy: Some(PropagationPolicy::Foreground),
            ..DeleteParams::default()
        };
        match self.api(id)?.delete(&id.name, &deletion).await.map_err(ActError::from) {
            Ok(_) | Err(ActError::Gone(_)) => {}
            Err(error) => return Err(error),
        }
        self.catalogue.until(|graph| graph.get(&uid).is_none_or(|item| item.deleting)).await;
        Ok(())
    }

    pub(super) async fn create_release(&self, key: &Key, writes: &Writes) -> Result<(), ActError> {
        let Some((kind, parent)) = self.without_release(key) else { return Ok(()) };
        let api_version = "v1".to_owned();
        let owner = ApiResource { api_version, kind: kind.to_owned(), ..core_resource(kind, "") };
        let mut reference = owners::controller_reference(parent.as_ref(), &owner);
        // The release goes with the set, and never keeps it.
        (reference.controller, reference.block_owner_deletion) = (None, None);
        let release = Release {
            types: Some(kube::core::TypeMeta { api_version: release_resource().api_version, kind: "Release".into() }),
            metadata: ObjectMeta {
                name: Some(key.name.to_string()),
                namespace: Some(key.namespace.to_string()),
                owner_references: Some(vec![reference]),
                ..ObjectMeta::default()
            },
            spec: ReleaseSpec {
                members: Members {
                    apply_set: Some(ApplySetParent { kind: kind.to_owned(), name: key.name.to_string() }),
                    ..Default::default()
                },
                family: (self.context.family == Family::Proa).then(|| self.context.family.to_string()),
                ..ReleaseSpec::default()
            },
            status: None,
        };
        let post = PostParams { field_manager: Some(MANAGER.to_owned()), dry_run: false };
        match self.releases.api(&key.namespace).create(&post, &release).await {
            Ok(created) => writes.wrote(&self.releases, &created),
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
