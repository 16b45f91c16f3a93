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
    patch::{params, unread},
    pod_status::{Wanted, set_status, with_condition},
};
use futures::future::try_join_all;
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PostParams, Preconditions},
    core::Request,
};
use proa_crds::{Family, Pod};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tracing::{debug, warn};

impl Scheduler {
    pub(super) async fn carry_out(self: Arc<Self>, step: Step) {
        match step {
            Step::Bind(binding) => self.bind(&binding).await,
            Step::Tell { pod, message, gives_up_its_node } => {
                let Ok(_slot) = self.bindings.clone().acquire_owned().await else { return };
                let fields = if gives_up_its_node { nominated(None) } else { Map::new() };
                if let Err(error) = gone_is_fine(self.tell(&pod, fields, message).await) {
                    warn!(pod = %Key::of(pod.as_ref()), %error, "cannot tell why the pod has no node");
                }
            }
            Step::Preempt { pod, node, message, victims, outranked } => {
                let Ok(_slot) = self.bindings.clone().acquire_owned().await else { return };
                let made = self.preempt(&pod, &node, message, &victims, &outranked).await;
                if let Err(error) = &made {
                    debug!(pod = %Key::of(pod.as_ref()), %node, %error, "preemption failed, trying again");
                }
                self.core.lock().room_made(&pod, made.is_ok(), self.now());
                self.changed.notify_one();
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
        let (name, uid, requests) = (pod.name_any(), &pod.metadata.uid, self.requests(pod));
        let request = match self.context.family {
            Family::Standard => {
                let binding = json!({
                    "apiVersion": "v1",
                    "kind": "Binding",
                    "metadata": {"name": name, "namespace": pod.namespace(), "uid": uid},
                    "target": {"apiVersion": "v1", "kind": "Node", "name": node},
                });
                let body = binding.to_string().into_bytes();
                requests.create_subresource("binding", &name, &PostParams::default(), body)
            }
            Family::Proa => {
                let patch = json!({"metadata": {"uid": uid}, "spec": {"nodeName": node}});
                requests.patch(&name, &params(), &Patch::Merge(&patch))
            }
        };
        unread(&self.context.client, request).await
    }

    /// Where the pods of its namespace are written.
    fn requests(&self, pod: &Pod) -> Request {
        Request::new(self.pods.api(&pod.namespace().unwrap_or_default()).resource_url())
    }

    /// The promise is written before the first victim goes: whoever starts anew in between knows for whom the room is.
    async fn preempt(
        &self,
        pod: &Pod,
        node: &str,
        message: String,
        victims: &[Arc<Pod>],
        outranked: &[Arc<Pod>],
    ) -> Result<(), kube::Error> {
        if self.latest(pod).is_none_or(|latest| crate::pods::node(&latest).is_some()) {
            return Ok(());
        }
        self.tell(pod, nominated(Some(node)), message).await?;
        let renounce = |other: &Arc<Pod>| {
            let patch = json!({"metadata": {"uid": other.metadata.uid}, "status": nominated(None)});
            let patch = Patch::Merge(patch);
            let request = self.requests(other).patch_subresource("status", &other.name_any(), &params(), &patch);
            async move { gone_is_fine(unread(&self.context.client, request).await) }
        };
        try_join_all(outranked.iter().map(renounce)).await?;
        try_join_all(victims.iter().map(|victim| async { gone_is_fine(self.evict(pod, node, victim).await) })).await?;
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
        let latest = self.latest(victim);
        let latest = latest.as_deref().unwrap_or(victim);
        set_status(&self.pods, latest, &Map::new(), &wanted, self.context.clock.now()).await?;
        let only_this = Preconditions { uid: victim.metadata.uid.clone(), resource_version: None };
        let options = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
        unread(&self.context.client, self.requests(victim).delete(&victim.name_any(), &options)).await?;
        let by = pod.metadata.uid.as_deref().unwrap_or_default();
        self.note(victim, Kind::Normal, "Preempted", format!("Preempted by pod {by} on node {node}"));
        Ok(())
    }

    /// Says on the pod why it has no node, and other fields of its status in the same write.
    async fn tell(&self, pod: &Pod, fields: Map<String, Value>, message: String) -> Result<(), kube::Error> {
        let wanted = Wanted { type_: "PodScheduled", status: "False", reason: "Unschedulable", message };
        let now = self.context.clock.now();
        // The pod may have a newer status than the one that was tried.
        let latest = self.latest(pod);
        let pod = latest.as_deref().unwrap_or(pod);
        // Bound meanwhile, perhaps by us: the server has said otherwise in the same field.
        if crate::pods::node(pod).is_some() {
            return Ok(());
        }
        if with_condition(pod, &wanted, now).is_some() {
            self.note(pod, Kind::Warning, "FailedScheduling", wanted.message.clone());
        }
        set_status(&self.pods, pod, &fields, &wanted, now).await
    }

    /// The same pod as it was last seen.
    fn latest(&self, pod: &Pod) -> Option<Arc<Pod>> {
        self.pods.get(&Key::of(pod)).filter(|latest| latest.metadata.uid == pod.metadata.uid)
    }

    fn note(&self, pod: &Pod, kind: Kind, reason: &'static str, message: String) {
        self.context.recorder.note(DEFAULT, self.pods.dynamic_type(), pod, Note { kind, reason, message });
    }
}

/// The field of a pod's status that says where room is being made for it.
fn nominated(node: Option<&str>) -> Map<String, Value> {
    Map::from_iter([("nominatedNodeName".to_owned(), json!(node))])
}

fn gone_is_fine(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other,
    }
}
