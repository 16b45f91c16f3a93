//! `ImageLocality`: nodes that have the pod's images already.

use crate::scheduler::{
    cluster::node::NodeInfo,
    framework::{Cycle, MAX_SCORE, News, Plugin},
};
use std::collections::BTreeMap;

/// Images smaller than this together are not worth choosing a node for; more than the upper bound count the same.
const BYTES: (i64, i64) = (23 << 20, 1000 << 20);

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct ImageLocality;

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn score(&self, cycle: Cycle<'_>, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let spec = &cycle.pod.pod.spec;
        let containers: Vec<&str> = spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .filter_map(|container| container.image.as_deref())
            .collect();
        let all = cycle.cluster.order().len().max(1) as i64;
        let mut bytes: BTreeMap<u32, i64> = BTreeMap::new();
        for image in &containers {
            let Some(held) = cycle.cluster.image(&normalized(image)) else { continue };
            for (slot, size) in held {
                // An image on one node only must not draw everything there: it counts by the part of nodes that have it.
                *bytes.entry(*slot).or_default() += size * held.len() as i64 / all;
            }
        }
        if bytes.is_empty() {
            return None;
        }
        let (low, high) = (BYTES.0, BYTES.1 * containers.len().max(1) as i64);
        let score = |node: &&NodeInfo| {
            let bytes = bytes.get(&node.slot).copied().unwrap_or(0).clamp(low, high);
            MAX_SCORE * (bytes - low) / (high - low)
        };
        Some(nodes.iter().map(score).collect())
    }

    fn helps(&self, _: Cycle<'_>, _: News<'_>) -> bool {
        false
    }
}

/// Node status lists tags in full.
fn normalized(image: &str) -> String {
    let after_host = image.rsplit('/').next().unwrap_or(image);
    if after_host.contains(':') || image.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}
