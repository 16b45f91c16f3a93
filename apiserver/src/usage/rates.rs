//! From two looks at a node's counters to what it and its containers use. Pure.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::Value;

/// A counter of CPU time and an amount of memory, as they stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counter {
    /// When the counter began; unknown for a node.
    pub(super) started: Option<Timestamp>,
    /// CPU nanoseconds since.
    pub(super) cpu_ns: u64,
    /// The working set.
    pub(super) memory: u64,
}

/// What one node told at one time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    /// By the node's own clock.
    pub(super) at: Timestamp,
    pub(super) node: Counter,
    /// By uid; the containers by name.
    pub(super) pods: HashMap<String, Vec<(String, Counter)>>,
}

/// What something uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Used {
    /// Billionths of a processor.
    pub(super) cpu_nano: u64,
    /// Bytes.
    pub(super) memory: u64,
    /// Seconds the CPU figure is an average of.
    pub(super) window: f64,
}

/// The shortest time a rate is taken over: a counter is read in steps.
const SHORTEST: f64 = 0.5;

impl Sample {
    /// From a summary (`stats/v1alpha1`); nothing when it is none.
    pub(super) fn read(summary: &Value) -> Option<Sample> {
        let node = &summary["node"];
        let at = time(&node["cpu"]["time"])?;
        let pods = summary["pods"].as_array().into_iter().flatten().filter_map(|pod| {
            let uid = pod.pointer("/podRef/uid")?.as_str()?.to_owned();
            let containers = pod["containers"].as_array().into_iter().flatten();
            let counted =
                containers.map(|container| Some((container["name"].as_str()?.to_owned(), counter(container)?)));
            Some((uid, counted.collect::<Option<_>>()?))
        });
        Some(Sample { at, node: counter(node)?, pods: pods.collect() })
    }

    /// What the node uses, since an earlier look.
    pub(super) fn node_since(&self, earlier: &Sample) -> Option<Used> {
        used(&self.node, self.at, Some((&earlier.node, earlier.at)))
    }

    /// What each container of a pod uses; nothing unless all can be told.
    pub(super) fn pod_since(&self, uid: &str, earlier: &Sample) -> Option<Vec<(&str, Used)>> {
        let before = earlier.pods.get(uid);
        let containers = self.pods.get(uid)?.iter().map(|(name, now)| {
            let before = before.and_then(|before| before.iter().find(|(have, _)| have == name));
            Some((name.as_str(), used(now, self.at, before.map(|(_, counter)| (counter, earlier.at)))?))
        });
        containers.collect::<Option<Vec<_>>>().filter(|containers| !containers.is_empty())
    }
}

/// The rate between two looks at one counter; of a counter that began in between, since its beginning.
fn used(now: &Counter, at: Timestamp, earlier: Option<(&Counter, Timestamp)>) -> Option<Used> {
    let same = earlier.filter(|(before, _)| before.started == now.started && before.cpu_ns <= now.cpu_ns);
    let (from, since) = match same {
        Some((before, since)) => (before.cpu_ns, since),
        None => (0, now.started?),
    };
    let window = at.duration_since(since).as_secs_f64();
    let cpu_nano = ((now.cpu_ns - from) as f64 / window) as u64;
    (window >= SHORTEST).then_some(Used { cpu_nano, memory: now.memory, window })
}

fn counter(value: &Value) -> Option<Counter> {
    Some(Counter {
        started: time(&value["startTime"]),
        cpu_ns: value["cpu"]["usageCoreNanoSeconds"].as_u64()?,
        memory: value["memory"]["workingSetBytes"].as_u64()?,
    })
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A node at so many seconds, with one pod of one container that started then.
    fn sample(at: i64, node_ms: u64, started: i64, ms: u64) -> Sample {
        let time = |seconds| Timestamp::from_second(seconds).unwrap().to_string();
        let figures = |ms: u64| json!({"time": time(at), "usageCoreNanoSeconds": ms * 1_000_000});
        let container =
            json!({"name": "c", "startTime": time(started), "cpu": figures(ms), "memory": {"workingSetBytes": 4096}});
        Sample::read(&json!({
            "node": {"cpu": figures(node_ms), "memory": {"workingSetBytes": 1 << 30}},
            "pods": [{"podRef": {"uid": "u"}, "containers": [container]}],
        }))
        .expect("a summary")
    }

    #[test]
    fn a_rate_is_what_was_added_between_two_looks() {
        let (first, second) = (sample(100, 50_000, 10, 1_000), sample(110, 65_000, 10, 6_000));
        let node = second.node_since(&first).unwrap();
        assert_eq!((node.cpu_nano, node.window, node.memory), (1_500_000_000, 10.0, 1 << 30));
        let pod = second.pod_since("u", &first).unwrap();
        assert_eq!((pod[0].0, pod[0].1.cpu_nano, pod[0].1.memory), ("c", 500_000_000, 4096));
    }

    #[test]
    fn a_container_that_started_since_is_measured_from_its_start() {
        let first = sample(100, 50_000, 10, 9_000);
        // Started again at 106, and has worked a second since.
        let second = sample(110, 65_000, 106, 1_000);
        let pod = second.pod_since("u", &first).unwrap();
        assert_eq!((pod[0].1.cpu_nano, pod[0].1.window), (250_000_000, 4.0));
        // An instant after its start nothing is known yet.
        assert_eq!(sample(110, 65_000, 110, 1).pod_since("u", &first), None);
        assert_eq!(second.pod_since("other", &first), None);
    }

    #[test]
    fn a_node_is_not_measured_by_one_look() {
        let first = sample(100, 50_000, 10, 9_000);
        assert_eq!(first.node_since(&first), None);
        assert_eq!(Sample::read(&json!({"node": {}})), None);
    }
}
