//! Scores: which of the nodes that could take a pod should. Pure; each from 0 to 100 before its weight.

use super::node_info::{NodeInfo, PodInfo};
use crate::taints::{PREFER_NO_SCHEDULE, tolerates};
use std::collections::HashMap;

const MAX: i64 = 100;
/// Images smaller than this together are not worth choosing a node for; more than the upper bound count the same.
const IMAGE_BYTES: (i64, i64) = (23 << 20, 1000 << 20);

/// The weighted sum for every node, with Kubernetes' default weights: taints 3, preferred affinity 2, the others 1.
pub(crate) fn total<'a>(
    pod: &PodInfo,
    nodes: &[&NodeInfo],
    preferences: &[i64],
    all: impl Iterator<Item = &'a NodeInfo>,
) -> Vec<i64> {
    let taints: Vec<i64> = nodes.iter().map(|node| intolerable(pod, node)).collect();
    let (worst, strongest) = (highest(&taints), highest(preferences));
    let spread = image_spread(pod, all);
    let score = |(i, node): (usize, &&NodeInfo)| {
        // Fewer taints that one would rather avoid are better; stronger preferences are better.
        let taint = if worst == 0 { MAX } else { MAX - MAX * taints[i] / worst };
        let preference = if strongest == 0 { 0 } else { MAX * preferences[i] / strongest };
        3 * taint + 2 * preference + least_allocated(pod, node) + balanced(pod, node) + images(pod, node, &spread)
    };
    nodes.iter().enumerate().map(score).collect()
}

fn highest(values: &[i64]) -> i64 {
    values.iter().copied().max().unwrap_or(0)
}

fn intolerable(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let soft = node.taints.iter().filter(|taint| taint.effect == PREFER_NO_SCHEDULE);
    soft.filter(|taint| !pod.tolerations().iter().any(|toleration| tolerates(toleration, taint))).count() as i64
}

/// CPU and memory with the pod: what would be used, and what there is.
fn shares(pod: &PodInfo, node: &NodeInfo) -> [(i64, i64); 2] {
    let asked = &pod.claim.requests;
    [
        (node.used.assumed_milli_cpu + asked.assumed_milli_cpu, node.allocatable.milli_cpu),
        (node.used.assumed_memory + asked.assumed_memory, node.allocatable.memory),
    ]
}

/// The emptier the better.
pub(crate) fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let free = |(used, total): (i64, i64)| {
        if total <= 0 || used > total {
            0
        } else {
            (i128::from(total - used) * i128::from(MAX) / i128::from(total)) as i64
        }
    };
    shares(pod, node).map(free).iter().sum::<i64>() / 2
}

/// The more evenly CPU and memory are used the better.
pub(crate) fn balanced(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let fraction = |(used, total): (i64, i64)| if total <= 0 { 1.0 } else { (used as f64 / total as f64).min(1.0) };
    let [cpu, memory] = shares(pod, node).map(fraction);
    // The standard deviation of two values is half their difference.
    ((1.0 - (cpu - memory).abs() / 2.0) * MAX as f64) as i64
}

/// For each image of the pod, on what part of all nodes it is: an image on one node only must not draw everything there.
fn image_spread<'a>(pod: &PodInfo, all: impl Iterator<Item = &'a NodeInfo>) -> HashMap<String, f64> {
    let names: Vec<String> =
        pod.pod.spec.containers.iter().filter_map(|c| c.image.as_deref()).map(normalized).collect();
    let (mut counts, mut nodes) = (HashMap::<String, f64>::new(), 0.0);
    for node in all {
        nodes += 1.0;
        for name in names.iter().filter(|name| node.images.contains_key(*name)) {
            *counts.entry(name.clone()).or_default() += 1.0;
        }
    }
    counts.into_iter().map(|(name, count)| (name, count / nodes)).collect()
}

fn images(pod: &PodInfo, node: &NodeInfo, spread: &HashMap<String, f64>) -> i64 {
    let containers = &pod.pod.spec.containers;
    let present = containers.iter().filter_map(|container| {
        let name = normalized(container.image.as_deref()?);
        Some(*node.images.get(&name)? as f64 * spread.get(&name).copied().unwrap_or(0.0))
    });
    let (low, high) = (IMAGE_BYTES.0, IMAGE_BYTES.1 * containers.len().max(1) as i64);
    let bytes = (present.sum::<f64>() as i64).clamp(low, high);
    MAX * (bytes - low) / (high - low)
}

/// Node status lists tags in full.
fn normalized(image: &str) -> String {
    let after_host = image.rsplit('/').next().unwrap_or(image);
    if after_host.contains(':') || image.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}
