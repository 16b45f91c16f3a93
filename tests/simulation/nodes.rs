//! The laws of nodes: the block of pod addresses of each is its own and stays.

use crate::objects::{Objects, Put};
use serde_json::Value;

const NODES: &str = "/registry/nodes/";

fn block(node: &Value) -> &str {
    node["spec"]["podCIDR"].as_str().unwrap_or_default()
}

/// The law that a write of an object breaks.
pub(crate) fn put(objects: &Objects, key: &str, put: &Put) -> Option<String> {
    if !key.starts_with(NODES) {
        return None;
    }
    let mine = block(&put.after);
    let held = put.before.as_deref().filter(|before| before["metadata"]["uid"] == put.after["metadata"]["uid"]);
    if let Some(held) = held.map(block).filter(|held| !held.is_empty() && *held != mine) {
        return Some(format!("{key} had the block {held} and has {mine:?}"));
    }
    let mut others = objects.keyed(NODES).filter(|(other, _)| *other != key);
    let rival = others.find(|(_, other)| !mine.is_empty() && block(other) == mine);
    rival.map(|(other, _)| format!("{key} and {other} both have the block {mine}"))
}

/// Every node has a block, and no pod is bound to a node that is not there.
pub(crate) fn at_rest(objects: &Objects) -> Result<(), String> {
    if let Some((key, _)) = objects.keyed(NODES).find(|(_, node)| block(node).is_empty()) {
        return Err(format!("{key} has no block of addresses"));
    }
    for (key, pod) in objects.keyed("/registry/pods/") {
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if !node.is_empty() && objects.get(&format!("{NODES}{node}")).is_none() {
            return Err(format!("{key} is bound to {node}, which is not there"));
        }
    }
    Ok(())
}
