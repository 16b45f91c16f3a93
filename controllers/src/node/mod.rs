//! Node lifecycle: what follows when a node is not ready, or not heard of.
//!
//! Owns: the conditions of silent nodes, the taints that follow from conditions, the eviction of pods that do not
//! tolerate them. Never talks to a node: it knows a node by its lease and its status.

mod plan;
#[cfg(test)]
mod tests;

pub use plan::{Action, GRACE, STARTUP_GRACE, Seen, plan};

use crate::{
    ActError, Clock, Context, Informer, Key, Loop, Plan, Queue, Writes,
    events::{Kind, Note},
    patch::params,
    pod_status::{Wanted, set_condition},
    pods,
    taints::NO_EXECUTE,
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{NodeCondition, Taint},
};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, Preconditions},
};
use parking_lot::Mutex;
use proa_crds::{Node, Pod};
use serde_json::{Value, json};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// Where nodes keep their leases.
pub const LEASES: &str = "kube-node-lease";
/// The index of pods by the node they are bound to.
pub(crate) const BY_NODE: &str = "node";
const COMPONENT: &str = "node-controller";

/// Adds the index of pods by node.
pub(crate) fn index_by_node(pods: &Informer<Pod>) {
    pods.add_index(BY_NODE, |pod| pods::node(pod).map(str::to_owned).into_iter().collect());
}

/// The node lifecycle loop.
pub struct NodeLifecycle {
    context: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    leases: Informer<Lease>,
    memory: Arc<Mutex<HashMap<Key, Memory>>>,
}

/// What this process remembers of a node: when things changed, by its own clock.
#[derive(Debug)]
struct Memory {
    heard: Timestamp,
    sign_of_life: SignOfLife,
    tainted: Vec<(Taint, Timestamp)>,
    /// The pods, by uid, that were marked as not ready since the node became silent.
    marked: HashSet<String>,
}

/// What changes while a node is alive.
#[derive(Clone, Debug, Default, PartialEq)]
struct SignOfLife {
    uid: Option<String>,
    renewed: Option<Timestamp>,
    heartbeat: Option<Timestamp>,
}

impl NodeLifecycle {
    /// The loop of that context's family.
    pub fn new(context: &Context) -> Self {
        NodeLifecycle {
            nodes: context.informers.of_resource(context.family.node()),
            pods: context.informers.of_resource(context.family.pod()),
            leases: context.informers.of(),
            memory: Arc::default(),
            context: context.clone(),
        }
    }
}

/// Remembers when the node was last seen to change, and since when it has its taints.
fn remember(memory: &mut HashMap<Key, Memory>, leases: &Informer<Lease>, node: &Node, clock: &Clock) {
    let (key, now) = (Key::of(node), clock.now());
    let lease = leases.get(&Key::new(LEASES, &key.name));
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let heartbeat = |condition: &NodeCondition| condition.last_heartbeat_time.as_ref().map(|time| time.0);
    let sign = SignOfLife {
        uid: node.metadata.uid.clone(),
        renewed: lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref().map(|time| time.0)),
        heartbeat: conditions.filter(|condition| condition.status != "Unknown").filter_map(heartbeat).max(),
    };
    let held = memory.entry(key).or_insert_with(|| Memory {
        heard: now,
        sign_of_life: sign.clone(),
        tainted: Vec::new(),
        marked: HashSet::new(),
    });
    if held.sign_of_life != sign {
        (held.heard, held.sign_of_life) = (now, sign);
    }
    let taints = node.spec.taints.iter().flatten().filter(|taint| taint.effect == NO_EXECUTE);
    let tainted = taints.map(|taint| {
        let same = |known: &&(Taint, Timestamp)| known.0.key == taint.key && known.0.value == taint.value;
        let since = held.tainted.iter().find(same).map(|known| known.1);
        // A taint that says when it was added survives our own restart.
        let since = since.or(taint.time_added.as_ref().map(|time| time.0)).unwrap_or(now);
        (taint.clone(), since)
    });
    held.tainted = tainted.collect();
}

impl Loop for NodeLifecycle {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "node-lifecycle"
    }

    fn wire(&self, queue: &Queue) {
        index_by_node(&self.pods);
        let (to, memory) = (queue.clone(), self.memory.clone());
        self.nodes.on_change(move |change| {
            if change.new.is_none() {
                memory.lock().remove(&change.key);
            }
            to.add(change.key.clone());
        });
        // A renewal is remembered and nothing else: an idle node costs no plan.
        let (nodes, leases) = (self.nodes.clone(), self.leases.clone());
        let (memory, clock) = (self.memory.clone(), self.context.clock.clone());
        self.leases.on_change(move |change| {
            if &*change.key.namespace == LEASES
                && let Some(node) = nodes.get(&Key::new("", &change.key.name))
            {
                remember(&mut memory.lock(), &leases, &node, &clock);
            }
        });
        let (to, nodes) = (queue.clone(), self.nodes.clone());
        self.pods.on_change(move |change| {
            let Some(node) = change.new.as_ref().and_then(|pod| pods::node(pod)) else { return };
            let key = Key::new("", node);
            // Pods of nodes that nothing is wrong with do not matter here.
            if nodes.get(&key).is_some_and(|node| node.spec.taints.as_ref().is_some_and(|taints| !taints.is_empty())) {
                to.add(key);
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            tokio::join!(self.nodes.synced(), self.pods.synced(), self.leases.synced());
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let node = self.nodes.get(key).filter(|node| node.metadata.deletion_timestamp.is_none())?;
        let mut memory = self.memory.lock();
        remember(&mut memory, &self.leases, &node, &self.context.clock);
        let held = memory.get_mut(key)?;
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        if plan::ready(conditions) != Some("Unknown") {
            held.marked.clear();
        }
        let (heard, tainted, marked) = (held.heard, held.tainted.clone(), held.marked.clone());
        Some(Seen { pods: self.pods.by_index(BY_NODE, &key.name), node, heard, tainted, marked })
    }

    fn plan(&self, seen: &Seen, now: Timestamp) -> Plan<Action> {
        plan(seen, now)
    }

    async fn act(&self, key: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        match action {
            Action::Conditions(conditions) => {
                self.confirm_silence(key).await?;
                self.patch_node(key, "status", json!({"conditions": conditions}), writes).await
            }
            Action::Taints(taints) => self.patch_node(key, "spec", json!({"taints": taints}), writes).await,
            Action::NotReady(pod) => {
                let message = String::new();
                let wanted = Wanted { type_: "Ready", status: "False", reason: "NodeNotReady", message };
                let written = set_condition(&self.pods, &pod, &wanted, self.context.clock.now()).await;
                self.settle(written, writes)?;
                if let (Some(held), Some(uid)) = (self.memory.lock().get_mut(key), &pod.metadata.uid) {
                    held.marked.insert(uid.clone());
                }
                Ok(())
            }
            Action::Evict(pod) => self.evict(&pod, writes).await,
        }
    }
}

impl NodeLifecycle {
    /// It may be us who do not hear: a watch that says nothing more would make every node silent at once. The lease itself
    /// knows.
    async fn confirm_silence(&self, key: &Key) -> Result<(), ActError> {
        let heard = || self.memory.lock().get(key).map(|held| held.heard);
        let before = heard();
        self.leases.refresh(&Key::new(LEASES, &key.name)).await?;
        match heard() == before {
            true => Ok(()),
            false => Err(ActError::Conflict(format!("{key} was heard meanwhile"))),
        }
    }

    async fn patch_node(&self, key: &Key, part: &str, change: Value, writes: &Writes) -> Result<(), ActError> {
        let node = self.nodes.get(key).ok_or_else(|| ActError::Gone(key.to_string()))?;
        // Lists are written as a whole: on what was read, or not at all.
        let patch = json!({"metadata": {"resourceVersion": node.metadata.resource_version}, part: change});
        let api = self.nodes.cluster_api();
        let written = match part {
            "status" => {
                let note = Note {
                    kind: Kind::Normal,
                    reason: "NodeNotReady",
                    message: format!("Node {key} status is now: NodeNotReady"),
                };
                self.context.recorder.note(COMPONENT, self.nodes.dynamic_type(), node.as_ref(), note);
                api.patch_status(&key.name, &params(), &Patch::Merge(&patch)).await?
            }
            _ => api.patch(&key.name, &params(), &Patch::Merge(&patch)).await?,
        };
        writes.wrote(&self.nodes, &written);
        Ok(())
    }

    /// Says why first (KEP-3329), then deletes.
    async fn evict(&self, pod: &Pod, writes: &Writes) -> Result<(), ActError> {
        let message = "Taint manager: deleting due to NoExecute taint".to_owned();
        let wanted = Wanted { type_: "DisruptionTarget", status: "True", reason: "DeletionByTaintManager", message };
        self.settle(set_condition(&self.pods, pod, &wanted, self.context.clock.now()).await, writes)?;
        let (key, uid) = (Key::of(pod), pod.metadata.uid.clone());
        let note = Note {
            kind: Kind::Normal,
            reason: "TaintManagerEviction",
            message: format!("Marking for deletion Pod {key}"),
        };
        self.context.recorder.note("taint-eviction-controller", self.pods.dynamic_type(), pod, note);
        let only_this = Preconditions { uid: uid.clone(), resource_version: None };
        let deletion = DeleteParams { preconditions: Some(only_this), ..Default::default() };
        match self.pods.api(&key.namespace).delete(&pod.name_any(), &deletion).await.map_err(ActError::from) {
            Ok(_) => {
                writes.deleted(&self.pods, &key, uid.as_deref().unwrap_or_default());
                Ok(())
            }
            Err(ActError::Gone(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn settle(&self, written: Result<Pod, kube::Error>, writes: &Writes) -> Result<(), ActError> {
        match written.map_err(ActError::from) {
            Ok(pod) => writes.wrote(&self.pods, &pod),
            Err(ActError::Gone(_)) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
