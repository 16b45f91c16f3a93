//! The scheduler: which node a pod runs on.
//!
//! Owns: the decision and the binding, through the API. Never starts a pod and never moves one. `decide`, `queue` and
//! `core` are pure; this file feeds them from the informers and carries out what they say. Decisions are made one
//! after the other on one view, in microseconds; bindings are written concurrently behind them.

pub(crate) mod affinity;
mod core;
mod decide;
mod node_info;
mod queue;
mod resources;
mod scores;
#[cfg(test)]
mod tests;

pub use decide::{Decision, Nowhere, Obstacle, decide, obstacles};
pub use node_info::{NodeInfo, PodInfo};
pub use resources::{Amounts, Requests, requests};

use crate::{
    Context, Informer, Key,
    events::{Kind, Note},
    patch::params,
    pod_status::{Wanted, set_condition, with_condition},
};
use core::{Core, NAME, Step};
use kube::{
    ResourceExt,
    api::{Patch, PostParams},
};
use parking_lot::Mutex;
use proa_crds::{Family, Node, Pod};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};
use tracing::{debug, warn};

/// How many bindings are written at the same time.
const BINDINGS: usize = 64;

/// Starts the scheduler of that context's family.
pub fn start(context: &Context) {
    let scheduler = Arc::new(Scheduler {
        pods: context.informers.of_resource(context.family.pod()),
        nodes: context.informers.of_resource(context.family.node()),
        context: context.clone(),
        core: Mutex::default(),
        changed: Notify::new(),
        origin: Instant::now(),
        bindings: Arc::new(Semaphore::new(BINDINGS)),
    });
    scheduler.wire();
    context.spawn(scheduler.run());
}

struct Scheduler {
    context: Context,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    core: Mutex<Core>,
    changed: Notify,
    origin: Instant,
    bindings: Arc<Semaphore>,
}

impl Scheduler {
    fn wire(self: &Arc<Self>) {
        let this = self.clone();
        self.pods.on_change(move |change| {
            this.core.lock().pod_changed(&change.key, change.new.as_ref(), this.now());
            this.changed.notify_one();
        });
        let this = self.clone();
        self.nodes.on_change(move |change| {
            this.core.lock().node_changed(&change.key.name, change.new.as_deref(), this.now());
            this.changed.notify_one();
        });
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    async fn run(self: Arc<Self>) {
        // Placing pods without knowing what runs already would overcommit nodes.
        let ready = async { tokio::join!(self.pods.synced(), self.nodes.synced()) };
        tokio::select! {
            biased;
            () = self.context.shutdown.cancelled() => return,
            _ = ready => {}
        }
        while !self.context.shutdown.is_cancelled() {
            let (step, wakes_at) = {
                let mut core = self.core.lock();
                (core.next(self.now()), core.wakes_at())
            };
            if let Some(step) = step {
                tokio::spawn(self.clone().carry_out(step));
                tokio::task::yield_now().await;
                continue;
            }
            let pause = async {
                match wakes_at {
                    Some(at) => tokio::time::sleep_until(self.origin + at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.context.shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                () = pause => {}
            }
        }
    }

    async fn carry_out(self: Arc<Self>, step: Step) {
        let Ok(_slot) = self.bindings.clone().acquire_owned().await else { return };
        match step {
            Step::Bind(pod, node) => {
                if let Err(error) = self.bind(&pod, &node).await {
                    debug!(pod = %Key::of(pod.as_ref()), %node, %error, "binding failed, trying again");
                    self.core.lock().binding_failed(&pod, self.now());
                    self.changed.notify_one();
                    return;
                }
                let message = format!("Successfully assigned {} to {node}", Key::of(pod.as_ref()));
                self.note(&pod, Kind::Normal, "Scheduled", message);
            }
            Step::Tell(pod, message) => self.tell(&pod, message).await,
        }
    }

    /// A pod of the standard family has a `binding` subresource; a custom resource cannot have one.
    async fn bind(&self, pod: &Pod, node: &str) -> Result<(), kube::Error> {
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

    async fn tell(&self, pod: &Pod, message: String) {
        let wanted = Wanted { type_: "PodScheduled", status: "False", reason: "Unschedulable", message };
        let now = self.context.clock.now();
        // The pod may have a newer status than the one that was tried.
        let latest = self.pods.get(&Key::of(pod)).filter(|latest| latest.metadata.uid == pod.metadata.uid);
        let pod = latest.as_deref().unwrap_or(pod);
        if with_condition(pod, &wanted, now).is_none() {
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
        self.context.recorder.note(NAME, self.pods.dynamic_type(), pod, Note { kind, reason, message });
    }
}
