//! What the core decided, written to the API.

use super::{
    Scheduler,
    core::{Binding, Step},
    profile::DEFAULT,
    volumes::VolumeError,
};
use crate::{
    Key,
    events::{Kind, Note},
    patch::params,
    pod_status::{Wanted, set_condition, with_condition},
};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PostParams, Preconditions},
};
use proa_crds::{Family, Pod};
use serde_json::{Value, json};
use std::sync::Arc;
use tracing::{debug, warn};

impl Scheduler {
    pub(super) async fn carry_out(self: Arc<Self>, step: Step) {
        match step {
            Step::Bind(binding) => self.bind(&binding).await,
            Step::Tell { pod, message, gives_up_its_node } => {
                let Ok(_slot) = self.bindings.clone().acquire_owned().await else { return };
                if gives_up_its_node && let Err(error) = self.nominate(&pod, None).await {
                    debug!(pod = %Key::of(pod.as_ref()), %error, "cannot take a nomination back");
                }
                self.tell(&pod, message).await;
            }
            Step::Preempt { pod, node, message, victims, outranked } => {
                let Ok(_slot) = self.bindings.clone().acquire_owned().await else { return };
                let made = self.preempt(&pod, &node, &victims, &outranked).await;
                if let Err(error) = &made {
                    debug!(pod = %Key::of(pod.as_ref()), %node, %error, "preemption failed, trying again");
                }
                self.core.lock().room_made(&pod, made.is_ok(), self.now());
                self.changed.notify_one();
                self.tell(&pod, message).await;
            }
        }
    }

    async fn bind(&self, binding: &Binding) {
        let Binding { pod, node, .. } = binding;
        if let Err(error) = self.try_bind(binding).await {
            debug!(pod = %Key::of(pod.as_ref()), %node, %error, "binding failed, trying again");
            if !matches!(error, VolumeError::Api(_)) {
                self.note(pod, Kind::Warning, "FailedScheduling", error.to_string());
            }
            self.core.lock().binding_failed(pod, self.now());
            self.changed.notify_one();
            return;
        }
        self.core.lock().bound(pod, self.now());
        let message = format!("Successfully assigned {} to {node}", Key::of(pod.as_ref()));
        self.note(pod, Kind::Normal, "Scheduled", message);
    }

    async fn try_bind(&self, binding: &Binding) -> Result<(), VolumeError> {
        if let Some(volumes) = &self.volumes {
            // Waiting for volumes holds no other pod up.
            volumes.bind(&binding.volumes, &binding.node, binding.volumes_within).await?;
        }
        let Ok(_slot) = self.bindings.acquire().await else { return Ok(()) };
        Ok(self.write_binding(&binding.pod, &binding.node).await?)
    }

    /// A pod of the standard family has a `binding` subresource; a custom resource cannot have one.
    async fn write_binding(&self, pod: &Pod, node: &str) -> Result<(), kube::Error> {
        let api = self.pods.api(&pod.namespace().unwrap_or_default());
        let (name, uid) = (pod.name_any(), &pod.metadata.uid);
        match self.context.family {
            Family::Standard => {
                let binding = json!({
                    "apiVersion": "v1",
                    "kind": "Binding",
                    "metadata": {"name": name, "namespace": pod.namespace(), "uid": uid},
                    "target": {"apiVersion": "v1", "kind": "Node", "name": node},
                });
                api.create_subresource::<_, Value>("binding", &name, &PostParams::default(), &binding).await?;
            }
            Family::Proa => {
                let patch = json!({"metadata": {"uid": uid}, "spec": {"nodeName": node}});
                api.patch(&name, &params(), &Patch::Merge(&patch)).await?;
            }
        }
        Ok(())
    }

    /// The promise is written before the first victim goes: whoever starts anew in between knows for whom the room is.
    async fn preempt(
        &self,
        pod: &Pod,
        node: &str,
        victims: &[Arc<Pod>],
        outranked: &[Arc<Pod>],
    ) -> Result<(), kube::Error> {
        self.nominate(pod, Some(node)).await?;
        for other in outranked {
            gone_is_fine(self.nominate(other, None).await)?;
        }
        for victim in victims {
            gone_is_fine(self.evict(pod, node, victim).await)?;
        }
        Ok(())
    }

    /// A victim knows why it goes (KEP-3329), and goes gracefully.
    async fn evict(&self, pod: &Pod, node: &str, victim: &Pod) -> Result<(), kube::Error> {
        if victim.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let scheduler = pod.spec.scheduler_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(DEFAULT);
        let wanted = Wanted {
            type_: "DisruptionTarget",
            status: "True",
            reason: "PreemptionByScheduler",
            message: format!("{scheduler}: preempting to accommodate a higher priority pod"),
        };
        let latest = self.pods.get(&Key::of(victim)).filter(|latest| latest.metadata.uid == victim.metadata.uid);
        set_condition(&self.pods, latest.as_deref().unwrap_or(victim), &wanted, self.context.clock.now()).await?;
        let only_this = Preconditions { uid: victim.metadata.uid.clone(), resource_version: None };
        let options = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
        self.pods.api(&victim.namespace().unwrap_or_default()).delete(&victim.name_any(), &options).await?;
        let by = pod.metadata.uid.as_deref().unwrap_or_default();
        self.note(victim, Kind::Normal, "Preempted", format!("Preempted by pod {by} on node {node}"));
        Ok(())
    }

    async fn nominate(&self, pod: &Pod, node: Option<&str>) -> Result<(), kube::Error> {
        let api = self.pods.api(&pod.namespace().unwrap_or_default());
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"nominatedNodeName": node}});
        api.patch_status(&pod.name_any(), &params(), &Patch::Merge(&patch)).await.map(drop)
    }

    async fn tell(&self, pod: &Pod, message: String) {
        let wanted = Wanted { type_: "PodScheduled", status: "False", reason: "Unschedulable", message };
        let now = self.context.clock.now();
        // The pod may have a newer status than the one that was tried.
        let latest = self.pods.get(&Key::of(pod)).filter(|latest| latest.metadata.uid == pod.metadata.uid);
        let pod = latest.as_deref().unwrap_or(pod);
        // Bound meanwhile, perhaps by us: the server has said otherwise in the same field.
        if crate::pods::node(pod).is_some() || with_condition(pod, &wanted, now).is_none() {
            return;
        }
        self.note(pod, Kind::Warning, "FailedScheduling", wanted.message.clone());
        match set_condition(&self.pods, pod, &wanted, now).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => warn!(pod = %Key::of(pod), %error, "cannot tell why the pod has no node"),
        }
    }

    fn note(&self, pod: &Pod, kind: Kind, reason: &'static str, message: String) {
        self.context.recorder.note(DEFAULT, self.pods.dynamic_type(), pod, Note { kind, reason, message });
    }
}

fn gone_is_fine(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other,
    }
}
