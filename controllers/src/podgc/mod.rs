//! Pod garbage collection: pods that no node and no owner will ever finish.
//!
//! Owns: the removal of pods whose node is gone, of deleted pods that have no node or one out of service, and of the
//! oldest ended pods above a threshold. Never removes a pod that a node still answers for.

mod plan;

pub use plan::{Action, Home, KEPT_AFTER_THEIR_END, QUARANTINE, Seen, Why, plan};

use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes,
    node::{BY_NODE, index_by_node},
    patch::params,
    pod_status::{Wanted, set_condition},
    pods,
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, Preconditions},
};
use parking_lot::Mutex;
use proa_crds::{Node, Pod};
use serde_json::json;
use std::{collections::HashMap, time::Duration};

/// How often, at most, ended pods are counted.
const COUNT_EVERY: Duration = Duration::from_secs(20);

/// The pod garbage collection loop.
pub struct PodGc {
    context: Context,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    /// Since when nodes that pods name have been missing.
    missing: Mutex<HashMap<String, Timestamp>>,
}

impl PodGc {
    /// The loop of that context's family.
    pub fn new(context: &Context) -> Self {
        PodGc {
            pods: context.informers.of_resource(context.family.pod()),
            nodes: context.informers.of_resource(context.family.node()),
            missing: Mutex::default(),
            context: context.clone(),
        }
    }
}

/// Whether somebody has said that the node will not come back as it was, and it has not.
fn is_out_of_service(node: &Node) -> bool {
    let told = node.spec.taints.iter().flatten().any(|taint| taint.key == "node.kubernetes.io/out-of-service");
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    told && !conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The key that stands for all ended pods: no pod is without a namespace.
fn ended() -> Key {
    Key::new("", "ended")
}

impl Loop for PodGc {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "pod-gc"
    }

    fn wire(&self, queue: &Queue) {
        index_by_node(&self.pods);
        let (to, nodes) = (queue.clone(), self.nodes.clone());
        self.pods.on_change(move |change| {
            let Some(pod) = &change.new else { return };
            if pods::is_over(pod) && !change.old.as_ref().is_some_and(|old| pods::is_over(old)) {
                to.add_after(ended(), COUNT_EVERY);
            }
            let deleted = pod.metadata.deletion_timestamp.is_some();
            let lost = match pods::node(pod) {
                None => deleted,
                Some(node) => match nodes.get(&Key::new("", node)) {
                    None => true,
                    Some(node) => deleted && is_out_of_service(&node),
                },
            };
            if lost {
                to.add(change.key.clone());
            }
        });
        let (to, pods) = (queue.clone(), self.pods.clone());
        self.nodes.on_change(move |change| {
            if change.new.as_ref().is_none_or(|node| is_out_of_service(node)) {
                pods.by_index(BY_NODE, &change.key.name).iter().for_each(|pod| to.add(Key::of(pod.as_ref())));
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            tokio::join!(self.pods.synced(), self.nodes.synced());
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        if *key == ended() {
            let mut pods = self.pods.list();
            pods.retain(|pod| pods::is_over(pod) && pod.metadata.deletion_timestamp.is_none());
            return Some(Seen::Ended(pods));
        }
        let pod = self.pods.get(key)?;
        let home = pods::node(&pod).map_or(Home::There, |name| {
            let mut missing = self.missing.lock();
            let Some(node) = self.nodes.get(&Key::new("", name)) else {
                let since = missing.entry(name.to_owned()).or_insert_with(|| self.context.clock.now());
                return Home::Missing(*since);
            };
            missing.remove(name);
            if is_out_of_service(&node) { Home::OutOfService } else { Home::There }
        });
        Some(Seen::Pod(pod, home))
    }

    fn plan(&self, seen: &Seen, now: Timestamp) -> Plan<Action> {
        plan(seen, now)
    }

    async fn act(&self, _key: &Key, Action(pod, why): Action, writes: &Writes) -> Result<(), ActError> {
        if why == Why::Orphaned {
            // Our view of nodes may be old; the server's is not.
            if self.nodes.cluster_api().get_opt(pods::node(&pod).unwrap_or_default()).await?.is_some() {
                return Err(ActError::Conflict("the node is there after all".to_owned()));
            }
        }
        // What is held by finalizers stays for a while: whoever counts on it must see that it has failed (KEP-3329).
        match why {
            Why::Orphaned => self.give_up(&pod, true, writes).await?,
            Why::NeverPlaced | Why::OutOfService
                if pod.metadata.finalizers.as_ref().is_some_and(|held| !held.is_empty()) =>
            {
                self.give_up(&pod, false, writes).await?;
            }
            Why::NeverPlaced | Why::OutOfService | Why::Ended => {}
        }
        let (key, uid) = (Key::of(pod.as_ref()), pod.metadata.uid.clone());
        let deletion = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: uid.clone(), resource_version: None }),
            ..Default::default()
        };
        match self.pods.api(&key.namespace).delete(&key.name, &deletion).await.map_err(ActError::from) {
            Ok(_) => writes.deleted(&self.pods, &key, uid.as_deref().unwrap_or_default()),
            Err(ActError::Gone(_)) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl PodGc {
    /// A pod that nobody will ever finish has failed; one whose node is gone was disrupted.
    async fn give_up(&self, pod: &Pod, disrupted: bool, writes: &Writes) -> Result<(), ActError> {
        if pods::is_over(pod) {
            return Ok(());
        }
        if disrupted {
            match self.say_disrupted(pod).await {
                Ok(()) => {}
                Err(ActError::Gone(_)) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"phase": "Failed"}});
        let api = self.pods.api(&pod.namespace().unwrap_or_default());
        match api.patch_status(&pod.name_any(), &params(), &Patch::Merge(&patch)).await.map_err(ActError::from) {
            Ok(pod) => writes.wrote(&self.pods, &pod),
            Err(ActError::Gone(_)) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn say_disrupted(&self, pod: &Pod) -> Result<(), ActError> {
        let message = "PodGC: node no longer exists".to_owned();
        let wanted = Wanted { type_: "DisruptionTarget", status: "True", reason: "DeletionByPodGC", message };
        set_condition(&self.pods, pod, &wanted, self.context.clock.now()).await?;
        Ok(())
    }
}
