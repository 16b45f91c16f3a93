//! Pod addresses of the nodes: each gets a block of the cluster's.
//!
//! Owns: `spec.podCIDR` and `spec.podCIDRs` of nodes that came without. Never takes a block away or moves it.

mod plan;

pub use plan::{Action, Blocks, Seen, plan};

use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes,
    events::{Kind, Note, Recorder},
    patch::params,
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use kube::{ResourceExt, api::Patch};
use proa_crds::Node;
use serde_json::json;

const COMPONENT: &str = "cidrAllocator";

/// The loop over all nodes at once: who gets which block depends on all of them.
pub struct NodeIpam {
    nodes: Informer<Node>,
    recorder: Recorder,
    blocks: Blocks,
}

impl NodeIpam {
    /// The loop of that context's family.
    pub fn new(context: &Context, blocks: Blocks) -> Self {
        let nodes = context.informers.of_resource(context.family.node());
        NodeIpam { nodes, recorder: context.recorder.clone(), blocks }
    }
}

/// The only key: all nodes.
fn all() -> Key {
    Key::new("", "")
}

impl Loop for NodeIpam {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "node-ipam"
    }

    fn wire(&self, queue: &Queue) {
        let to = queue.clone();
        self.nodes.on_change(move |change| {
            // A heartbeat wakes nobody. A node that is gone may have left the block that another waits for.
            if change.new.as_ref().is_none_or(|node| plan::waits(node)) {
                to.add(all());
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.nodes.synced())
    }

    fn see(&self, _: &Key) -> Option<Seen> {
        Some(Seen { nodes: self.nodes.list(), blocks: self.blocks })
    }

    fn plan(&self, seen: &Seen, _now: Timestamp) -> Plan<Action> {
        plan(seen)
    }

    async fn act(&self, _: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        match action {
            Action::Assign(node, cidr) => {
                // On what was read, or not at all: who came with a block meanwhile keeps it.
                let patch = json!({
                    "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
                    "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
                });
                match self.nodes.cluster_api().patch(&node.name_any(), &params(), &Patch::Merge(&patch)).await {
                    Ok(written) => writes.wrote(&self.nodes, &written),
                    Err(error) => match ActError::from(error) {
                        // The others still wait.
                        ActError::Gone(_) => {}
                        error => return Err(error),
                    },
                }
            }
            Action::Exhausted(nodes) => {
                for node in &nodes {
                    let message = format!("Node {} status is now: CIDRNotAvailable", node.name_any());
                    let note = Note { kind: Kind::Normal, reason: "CIDRNotAvailable", message };
                    self.recorder.note(COMPONENT, self.nodes.dynamic_type(), node.as_ref(), note);
                }
                return Err(ActError::Refused(format!("no pod addresses are left for {} nodes", nodes.len())));
            }
        }
        Ok(())
    }
}
