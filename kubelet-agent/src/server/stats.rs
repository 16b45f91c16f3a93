//! Owns what the node tells of its pods: `/pods`, `/stats/summary`, `/metrics`, in the kubelet's forms.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::node::machine;
use crate::pods::context::{Context, View};

/// A PodList of the pods on this node; with `running` those that run only.
pub(super) fn pods(ctx: &Context, running: bool) -> Value {
    let items: Vec<Value> = ctx
        .registry
        .views()
        .into_iter()
        .filter(|v| !running || v.tracks.iter().any(|t| t.run().is_some()))
        .filter_map(|v| serde_json::to_value(&*v.pod).ok())
        .collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

struct Usage {
    pod: View,
    containers: Vec<Used>,
}

/// What one run of a container has used.
struct Used {
    name: String,
    /// The counter of CPU time begins here.
    started: Timestamp,
    cpu_ns: u64,
    memory_bytes: u64,
    working_set: u64,
}

async fn usage(ctx: &Context) -> Vec<Usage> {
    let mut list = Vec::new();
    for pod in ctx.registry.views() {
        let mut containers = Vec::new();
        for track in pod.tracks.iter() {
            let Some(run) = track.run() else { continue };
            // A container that ends just now has no figures.
            if let Ok(stats) = ctx.runtime.stats(&run.id.0).await {
                containers.push(Used {
                    name: track.name.clone(),
                    started: run.started_at,
                    cpu_ns: stats.cpu_ns,
                    memory_bytes: stats.memory_bytes,
                    working_set: stats.memory_working_set,
                });
            }
        }
        list.push(Usage { pod, containers });
    }
    list
}

/// The summary API (`stats/v1alpha1`).
pub(super) async fn summary(ctx: &Context) -> Value {
    let now = Timestamp::now().to_string();
    let mut pods = Vec::new();
    for usage in usage(ctx).await {
        let meta = &usage.pod.pod.metadata;
        let figures = |cpu: u64, memory: u64, working: u64| {
            (
                json!({"time": now, "usageCoreNanoSeconds": cpu}),
                json!({"time": now, "usageBytes": memory, "workingSetBytes": working}),
            )
        };
        let (mut sum_cpu, mut sum_memory, mut sum_working) = (0, 0, 0);
        let mut containers = Vec::new();
        for used in &usage.containers {
            let (cpu, memory) = figures(used.cpu_ns, used.memory_bytes, used.working_set);
            let started = used.started.to_string();
            containers.push(json!({"name": used.name, "startTime": started, "cpu": cpu, "memory": memory}));
            sum_cpu += used.cpu_ns;
            sum_memory += used.memory_bytes;
            sum_working += used.working_set;
        }
        let (pod_cpu, pod_memory) = figures(sum_cpu, sum_memory, sum_working);
        pods.push(json!({
            "podRef": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
            "startTime": usage.pod.pod.status.as_ref().and_then(|s| s.start_time.clone()),
            "containers": containers, "cpu": pod_cpu, "memory": pod_memory
        }));
    }
    let (disk, free) = machine::disk_of(ctx.layout.root());
    let used = machine::memory_in_use();
    json!({
        "node": {
            "nodeName": ctx.node_name,
            "cpu": {"time": now, "usageCoreNanoSeconds": machine::cpu_used()},
            "memory": {"time": now, "usageBytes": used, "workingSetBytes": used,
                       "availableBytes": u64::try_from(ctx.memory_capacity).unwrap_or(0).saturating_sub(used)},
            "fs": {"time": now, "capacityBytes": disk, "availableBytes": free, "usedBytes": disk.saturating_sub(free)}
        },
        "pods": pods
    })
}

/// The node's own metrics.
pub(super) async fn metrics(ctx: &Context) -> String {
    let views = ctx.registry.views();
    let containers = views.iter().flat_map(|v| v.tracks.iter()).filter(|t| t.run().is_some()).count();
    let pods = views.iter().filter(|v| v.tracks.iter().any(|t| t.run().is_some())).count();
    format!(
        "# HELP kubelet_running_pods Number of pods that have a running container\n\
         # TYPE kubelet_running_pods gauge\nkubelet_running_pods {pods}\n\
         # HELP kubelet_running_containers Number of containers currently running\n\
         # TYPE kubelet_running_containers gauge\n\
         kubelet_running_containers{{container_state=\"running\"}} {containers}\n\
         # HELP kubelet_desired_pods Number of pods this node was asked to run\n\
         # TYPE kubelet_desired_pods gauge\nkubelet_desired_pods {}\n",
        views.len()
    )
}

/// What containers use, in the form metrics servers read.
pub(super) async fn resource_metrics(ctx: &Context) -> String {
    let mut cpu = String::from("# TYPE container_cpu_usage_seconds_total counter\n");
    let mut memory = String::from("# TYPE container_memory_working_set_bytes gauge\n");
    for usage in usage(ctx).await {
        let meta = &usage.pod.pod.metadata;
        let (namespace, pod) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        for Used { name, cpu_ns: nanos, working_set: working, .. } in usage.containers {
            let labels = format!("{{container=\"{name}\",namespace=\"{namespace}\",pod=\"{pod}\"}}");
            // Writing to a string cannot fail.
            let _ = writeln!(cpu, "container_cpu_usage_seconds_total{labels} {:.6}", nanos as f64 / 1e9);
            let _ = writeln!(memory, "container_memory_working_set_bytes{labels} {working}");
        }
    }
    cpu + &memory
}
