//! Jobs: pods that run until enough of them have succeeded, each counted exactly once.
//!
//! Owns: the pods a Job controls (create, delete, adopt, release, count), its status, and its removal when its time to
//! live has passed. Never touches a pod's spec, a pod of someone else, or a Job that somebody else drives
//! (`spec.managedBy`).

mod backoff;
mod make;
mod plan;
mod pods;
mod policy;
mod tally;
#[cfg(test)]
mod tests;
mod verdict;

pub use plan::{Action, Order, Outcome, Seen, plan};
pub use pods::{COMPLETION_INDEX, IndexFailures, TRACKING_FINALIZER};
pub use verdict::{completed_at, how_it_ended, is_finished};

use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes, owners,
    patch::{json, merge_diff, params},
    pod_control::{Owner, PodControl, guarded, words},
    selector,
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, Preconditions, PropagationPolicy},
    core::ApiResource,
};
use proa_crds::Pod;
use serde_json::json;
use std::sync::Arc;

const COMPONENT: &str = "job-controller";
/// The index of pods that wait to be counted, by namespace and name of their Job.
const TRACKED: &str = "tracked-by-job";
/// The label that names a pod's Job when its owner reference is gone.
const JOB_NAME: &str = "batch.kubernetes.io/job-name";

/// The Job loop. Jobs exist in the standard family alone.
pub struct Jobs {
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    control: PodControl,
}

impl Jobs {
    /// The loop of that context.
    pub fn new(context: &Context) -> Self {
        let pods = context.informers.of_resource(context.family.pod());
        Jobs { jobs: context.informers.of(), control: PodControl::new(context, COMPONENT, words), pods }
    }

    fn owner(&self, job: &Job) -> Owner {
        let selector = job.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
        Owner::new(&job.metadata, &self.jobs.resource(), &selector)
    }

    /// Writes the status, unless the Job is not as it was seen: two views must not both count.
    async fn write_status(&self, job: &Job, outcome: &Outcome, writes: &Writes) -> Result<(), ActError> {
        let Outcome { status, version, .. } = outcome;
        if *version != job.metadata.resource_version {
            return Err(ActError::Conflict(format!("{} changed meanwhile", job.name_any())));
        }
        let held = job.status.as_ref().map_or_else(|| json!({}), json);
        let Some(change) = merge_diff(&held, &json(status)) else { return Ok(()) };
        let patch = json!({
            "metadata": {"uid": job.metadata.uid, "resourceVersion": job.metadata.resource_version},
            "status": change,
        });
        let api = self.jobs.api(&job.namespace().unwrap_or_default());
        let written = api.patch_status(&job.name_any(), &params(), &Patch::Merge(&patch)).await?;
        writes.wrote(&self.jobs, &written);
        Ok(())
    }

    /// Pods that were put down and are not in view are gone, or our view of pods is older than that of their Job.
    async fn confirm_gone(&self, owner: &Owner, vanished: &[String], writes: &Writes) -> Result<(), ActError> {
        if vanished.is_empty() {
            return Ok(());
        }
        let held = self.control.held(owner).await?;
        let alive: Vec<_> = held
            .iter()
            .filter(|pod| pods::is_tracked(pod) && vanished.contains(&pod.metadata.uid.clone().unwrap_or_default()))
            .collect();
        if alive.is_empty() {
            return Ok(());
        }
        alive.iter().for_each(|pod| writes.wrote(&self.pods, *pod));
        Err(ActError::Conflict("pods that are not counted yet were not in view".to_owned()))
    }

    async fn adopt(&self, job: &Job, pod: &Arc<Pod>, writes: &Writes) -> Result<(), ActError> {
        // Our view may be old: a Job that is being deleted must not adopt (its pods would be deleted with it).
        self.jobs.confirm_staying(&Key::of(job)).await?;
        let owners = self.owner(job).joined(pod);
        let mut finalizers = untracked(pod);
        finalizers.push(TRACKING_FINALIZER.to_owned());
        let claim = |pod: &Pod| guarded(pod, json!({"ownerReferences": owners, "finalizers": finalizers}));
        self.control.patch(std::slice::from_ref(pod), claim, writes).await
    }

    async fn release(&self, job: &Job, pod: &Arc<Pod>, writes: &Writes) -> Result<(), ActError> {
        let owners = self.owner(job).left(pod);
        let give_up = |pod: &Pod| guarded(pod, json!({"ownerReferences": owners, "finalizers": untracked(pod)}));
        self.control.patch(std::slice::from_ref(pod), give_up, writes).await
    }

    async fn untrack(&self, pods: &[Arc<Pod>], writes: &Writes) -> Result<(), ActError> {
        // The list is written as a whole, so a pod that changed meanwhile is looked at again.
        let tracked: Vec<_> = pods.iter().filter(|pod| pods::is_tracked(pod)).cloned().collect();
        self.control.patch(&tracked, |pod| guarded(pod, json!({"finalizers": untracked(pod)})), writes).await
    }

    async fn create(&self, job: &Job, orders: &[Order], writes: &Writes) -> Result<(), ActError> {
        let (jobs, pods): (ApiResource, _) = (self.jobs.resource(), self.pods.dynamic_type());
        let pods = orders.iter().map(|order| make::pod_of(job, order, &jobs, pods)).collect();
        self.control.create(&self.owner(job), pods, writes).await
    }

    async fn expire(&self, job: &Job, writes: &Writes) -> Result<(), ActError> {
        // As it was seen: neither its end nor its time to live may have changed.
        let meta = &job.metadata;
        let as_seen = Preconditions { uid: meta.uid.clone(), resource_version: meta.resource_version.clone() };
        let deletion = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            preconditions: Some(as_seen),
            ..Default::default()
        };
        let key = Key::of(job);
        match self.jobs.api(&key.namespace).delete(&key.name, &deletion).await.map_err(ActError::from) {
            Ok(_) => writes.deleted(&self.jobs, &key, meta.uid.as_deref().unwrap_or_default()),
            Err(ActError::Gone(_)) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// The pod's other finalizers.
fn untracked(pod: &Pod) -> Vec<String> {
    pod.metadata.finalizers.iter().flatten().filter(|held| *held != TRACKING_FINALIZER).cloned().collect()
}

/// The name of the Job that is to count the pod, or was.
fn job_name(pod: &Pod) -> Option<&str> {
    match owners::controller_of(&pod.metadata) {
        Some(owner) => (owner.kind == "Job" && owner.api_version == "batch/v1").then_some(owner.name.as_str()),
        None => pod.metadata.labels.as_ref()?.get(JOB_NAME).map(String::as_str),
    }
}

impl Loop for Jobs {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "job"
    }

    fn wire(&self, queue: &Queue) {
        self.pods.index_by_controller();
        self.pods.add_index(TRACKED, |pod| {
            let name = job_name(pod).filter(|_| pods::is_tracked(pod));
            let key =
                name.map(|name| Key::new(pod.metadata.namespace.as_deref().unwrap_or_default(), name).to_string());
            key.into_iter().collect()
        });
        let to = queue.clone();
        self.jobs.on_change(move |change| to.add(change.key.clone()));
        let (to, jobs) = (queue.clone(), self.jobs.clone());
        self.pods.on_change(move |change| {
            for pod in change.states() {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                if let Some(name) = job_name(pod) {
                    to.add(Key::new(namespace, name));
                }
                if change.new.is_some() && owners::controller_of(&pod.metadata).is_none() {
                    for job in jobs.in_namespace(namespace) {
                        let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                        if selector.is_some_and(|selector| selector::matches(selector, pod.metadata.labels.as_ref())) {
                            to.add(Key::of(job.as_ref()));
                        }
                    }
                }
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            tokio::join!(self.jobs.synced(), self.pods.synced());
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let job = self.jobs.get(key);
        let mut strays = self.pods.by_index(TRACKED, &key.to_string());
        let Some(job) = job else {
            return Some(Seen { job: None, pods: Vec::new(), orphans: Vec::new(), strays });
        };
        let uid = job.metadata.uid.as_deref()?;
        let pods = self.pods.controlled_by(uid);
        let mut orphans = self.pods.orphans(&key.namespace);
        let selector = job.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
        orphans.retain(|pod| selector::matches(&selector, pod.metadata.labels.as_ref()));
        strays.retain(|stray| {
            let same = |pod: &Arc<Pod>| pod.metadata.uid == stray.metadata.uid;
            !owners::is_controlled_by(&stray.metadata, uid) && !orphans.iter().any(same)
        });
        Some(Seen { job: Some(job), pods, orphans, strays })
    }

    fn plan(&self, seen: &Seen, now: Timestamp) -> Plan<Action> {
        plan(seen, now)
    }

    async fn act(&self, key: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        if let Action::Untrack(pods) = &action {
            return self.untrack(pods, writes).await;
        }
        let job = self.jobs.get(key).ok_or_else(|| ActError::Gone(key.to_string()))?;
        let owner = self.owner(&job);
        match action {
            Action::Untrack(_) => Ok(()),
            Action::Adopt(pod) => self.adopt(&job, &pod, writes).await,
            Action::Release(pod) => self.release(&job, &pod, writes).await,
            Action::Status(outcome) => {
                self.confirm_gone(&owner, &outcome.vanished, writes).await?;
                self.write_status(&job, &outcome, writes).await?;
                for note in outcome.notes {
                    self.control.note(&owner, note);
                }
                Ok(())
            }
            Action::Create(orders, otherwise) => {
                // Our view may be old: pods of a Job that is gone would only be taken away again.
                self.jobs.confirm(key).await?;
                let outcome = self.create(&job, &orders, writes).await;
                if let Err(ActError::Refused(_) | ActError::Failed(_)) = &outcome {
                    // The failure itself is what is reported; that the status cannot be written either adds nothing.
                    let _ = self.write_status(&job, &otherwise, writes).await;
                }
                outcome
            }
            Action::Discard(pods) => {
                self.untrack(&pods, writes).await?;
                self.control.delete(&owner, &pods, writes).await
            }
            Action::Delete(pods) => self.control.delete(&owner, &pods, writes).await,
            Action::Expire => self.expire(&job, writes).await,
        }
    }
}
