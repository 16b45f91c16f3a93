//! CronJobs: a Job for every time their schedule names.
//!
//! Owns: the Jobs a CronJob makes (create, replace, history) and its status. Never touches a pod, nor a Job of someone
//! else. A Job is named after the time it is for, so that no time is started twice whatever dies in between.

mod plan;
#[cfg(test)]
mod tests;

pub use plan::{Action, Seen, plan};

use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes,
    events::{Kind, Note},
    owners,
    patch::{json, merge_diff, params},
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PostParams, Preconditions, PropagationPolicy},
};
use parking_lot::Mutex;
use proa_crds::reasons;
use serde_json::json;
use std::{collections::HashMap, sync::Arc};

const COMPONENT: &str = "cronjob-controller";

/// The CronJob loop. CronJobs exist in the standard family alone.
pub struct CronJobs {
    context: Context,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
    /// What was last said of each, so that it is said once.
    told: Mutex<HashMap<Key, (&'static str, Timestamp)>>,
}

impl CronJobs {
    /// The loop of that context.
    pub fn new(context: &Context) -> Self {
        CronJobs {
            crons: context.informers.of(),
            jobs: context.informers.of(),
            told: Mutex::default(),
            context: context.clone(),
        }
    }

    fn note(&self, cron: &CronJob, note: Note) {
        self.context.recorder.note(COMPONENT, &self.crons.resource(), cron, note);
    }

    async fn write_status(&self, cron: &CronJob, status: &CronJobStatus, writes: &Writes) -> Result<(), ActError> {
        let held = cron.status.as_ref().map_or_else(|| json!({}), json);
        let Some(change) = merge_diff(&held, &json(status)) else { return Ok(()) };
        let patch = json!({
            "metadata": {"uid": cron.metadata.uid, "resourceVersion": cron.metadata.resource_version},
            "status": change,
        });
        let api = self.crons.api(&cron.namespace().unwrap_or_default());
        let written = api.patch_status(&cron.name_any(), &params(), &Patch::Merge(&patch)).await?;
        writes.wrote(&self.crons, &written);
        Ok(())
    }

    async fn create(&self, cron: &CronJob, job: &Job, writes: &Writes) -> Result<(), ActError> {
        let api = self.jobs.api(&cron.namespace().unwrap_or_default());
        match api.create(&PostParams::default(), job).await {
            Ok(job) => {
                writes.wrote(&self.jobs, &job);
                let message = format!("Created job {}", job.name_any());
                self.note(cron, Note { kind: Kind::Normal, reason: reasons::SUCCESSFUL_CREATE, message });
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                // An answer that got lost was a yes, or the name is somebody else's: either way it must be in view.
                writes.wrote(&self.jobs, &api.get(&job.name_any()).await?);
                Err(ActError::Conflict(status.message))
            }
            Err(error) => {
                let error = ActError::from(error);
                if !matches!(error, ActError::Gone(_)) {
                    let message = format!("Error creating job: {error}");
                    self.note(cron, Note { kind: Kind::Warning, reason: reasons::FAILED_CREATE, message });
                }
                Err(error)
            }
        }
    }

    async fn delete(&self, cron: &CronJob, jobs: &[Arc<Job>], writes: &Writes) -> Result<(), ActError> {
        let mut failure = None;
        for job in jobs {
            let (key, uid) = (Key::of(job.as_ref()), job.metadata.uid.clone().unwrap_or_default());
            let deletion = DeleteParams {
                propagation_policy: Some(PropagationPolicy::Background),
                preconditions: Some(Preconditions { uid: Some(uid.clone()), resource_version: None }),
                ..Default::default()
            };
            match self.jobs.api(&key.namespace).delete(&key.name, &deletion).await.map_err(ActError::from) {
                Ok(_) => {
                    writes.deleted(&self.jobs, &key, &uid);
                    let message = format!("Deleted job {}", key.name);
                    self.note(cron, Note { kind: Kind::Normal, reason: reasons::SUCCESSFUL_DELETE, message });
                }
                Err(ActError::Gone(_)) => {}
                Err(error) => {
                    let message = format!("Deleted job: {error}");
                    self.note(cron, Note { kind: Kind::Warning, reason: reasons::FAILED_DELETE, message });
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

impl Loop for CronJobs {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "cronjob"
    }

    fn wire(&self, queue: &Queue) {
        self.jobs.index_by_controller();
        let to = queue.clone();
        self.crons.on_change(move |change| to.add(change.key.clone()));
        let to = queue.clone();
        self.jobs.on_change(move |change| {
            for job in change.states() {
                if let Some(owner) = owners::controller_of(&job.metadata)
                    && owner.kind == "CronJob"
                {
                    to.add(Key::new(job.metadata.namespace.as_deref().unwrap_or_default(), &owner.name));
                }
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            tokio::join!(self.crons.synced(), self.jobs.synced());
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let Some(cron) = self.crons.get(key) else {
            self.told.lock().remove(key);
            return None;
        };
        let uid = cron.metadata.uid.as_deref()?;
        let jobs = self.jobs.controlled_by(uid);
        let near = self
            .jobs
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|job| !owners::is_controlled_by(&job.metadata, uid) && job.name_any().starts_with(&*key.name));
        let foreign = near.map(|job| job.name_any()).collect();
        let told = self.told.lock().get(key).copied();
        Some(Seen { cron, jobs, foreign, told })
    }

    fn plan(&self, seen: &Seen, now: Timestamp) -> Plan<Action> {
        plan(seen, now)
    }

    async fn act(&self, key: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        let cron = self.crons.get(key).ok_or_else(|| ActError::Gone(key.to_string()))?;
        match action {
            Action::Status(_, version, _) if version != cron.metadata.resource_version => {
                Err(ActError::Conflict(format!("{key} changed meanwhile")))
            }
            Action::Status(status, _, notes) => {
                self.write_status(&cron, &status, writes).await?;
                notes.into_iter().for_each(|note| self.note(&cron, note));
                Ok(())
            }
            Action::Create(_, job) => {
                // Our view may be old: a CronJob that was suspended or deleted meanwhile starts nothing.
                self.crons.confirm(key).await?;
                self.create(&cron, &job, writes).await
            }
            Action::Delete(jobs) => self.delete(&cron, &jobs, writes).await,
            Action::Tell(note, about) => {
                self.told.lock().insert(key.clone(), (note.reason, about));
                self.note(&cron, note);
                Ok(())
            }
        }
    }
}
