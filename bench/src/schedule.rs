//! Pods bound per second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::ValueEnum;
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::Target;
use crate::parts::Parts;
use crate::raw::Connection;
use crate::report::Report;

const PATIENCE: Duration = Duration::from_secs(300);
const PODS: &str = "/api/v1/namespaces/default/pods";
const CREATORS: usize = 16;

/// What pods ask for besides room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum With {
    /// Spread over zones, which must hold
    Spread,
    /// To be in the zone of their kind
    Affinity,
    /// No other of their kind (there are four) on the node
    AntiAffinity,
    /// That another pod leaves: each node is full of a less important one
    Preemption,
}

fn pod(index: usize, with: Option<With>, cpu: &str, priority: Option<&str>) -> Value {
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let term = |key: &str, group: &str| json!({"topologyKey": key, "labelSelector": {"matchLabels": {"group": group}}});
    let group = match with {
        Some(With::AntiAffinity) => format!("{}", index % 4),
        _ => "all".to_owned(),
    };
    let mut spec = json!({
        "terminationGracePeriodSeconds": 0,
        "priorityClassName": priority,
        "containers": [{"name": "main", "image": "pause", "resources": {"requests": {"cpu": cpu, "memory": "500Mi"}}}],
    });
    match with {
        Some(With::Spread) => {
            spec["topologySpreadConstraints"] = json!([{"maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"group": "all"}}}]);
        }
        Some(With::Affinity) => {
            spec["affinity"] = json!({"podAffinity": {required: [term("topology.kubernetes.io/zone", "all")]}});
        }
        Some(With::AntiAffinity) => {
            spec["affinity"] = json!({"podAntiAffinity": {required: [term("kubernetes.io/hostname", &group)]}});
        }
        Some(With::Preemption) | None => {}
    }
    let name = format!("{}-{index}", priority.unwrap_or("pod"));
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"group": group}}, "spec": spec})
}

async fn create(config: &kube::Config, bodies: Vec<(String, Bytes)>) -> anyhow::Result<()> {
    let bodies = Arc::new(bodies);
    let mut tasks = Vec::new();
    for creator in 0..CREATORS {
        let (bodies, mut connection) = (bodies.clone(), Connection::open(config).await?);
        tasks.push(tokio::spawn(async move {
            for (path, body) in bodies.iter().skip(creator).step_by(CREATORS) {
                let (status, _) = connection.call(Method::POST, path, body.clone()).await?;
                ensure!(matches!(status, StatusCode::CREATED | StatusCode::CONFLICT), "create: {status}");
            }
            anyhow::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// Counts pods that get a node, from now on; gives the time of the first and of the last of `count`.
async fn bound(
    config: &kube::Config,
    count: usize,
) -> anyhow::Result<tokio::task::JoinHandle<anyhow::Result<(Instant, Instant)>>> {
    let mut connection = Connection::open(config).await?;
    let path = format!("{PODS}?watch=1&fieldSelector=spec.nodeName!%3D");
    let (status, revision) = newest(config).await?;
    ensure!(status == StatusCode::OK, "list: {status}");
    let response = connection.send(Method::GET, &format!("{path}&resourceVersion={revision}"), Bytes::new()).await?;
    ensure!(response.status() == StatusCode::OK, "watch: {}", response.status());
    Ok(tokio::spawn(async move {
        let _open = connection;
        let mut body = response.into_body();
        let (mut seen, mut first, mut at_start) = (0, None, true);
        // A pod that gets its node enters what is watched: one event of type ADDED, one event a line.
        while seen < count {
            let frame = tokio::time::timeout(PATIENCE, body.frame()).await.context("no pod gets a node")?;
            let frame = frame.context("the watch ended early")??;
            let Some(data) = frame.data_ref() else { continue };
            for line in data.split_inclusive(|byte| *byte == b'\n') {
                if at_start && line.starts_with(b"{\"type\":\"ADDED\"") {
                    seen += 1;
                    first.get_or_insert_with(Instant::now);
                }
                at_start = line.ends_with(b"\n");
            }
        }
        let now = Instant::now();
        Ok((first.unwrap_or(now), now))
    }))
}

async fn newest(config: &kube::Config) -> anyhow::Result<(StatusCode, String)> {
    let mut connection = Connection::open(config).await?;
    let response = connection.send(Method::GET, &format!("{PODS}?limit=1"), Bytes::new()).await?;
    let status = response.status();
    let list: Value = serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
    Ok((status, list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned()))
}

/// Low-priority pods that fill a node: three of the four must leave for one that preempts, as in Kubernetes' own benchmark.
const LOW_PER_NODE: usize = 4;

pub(crate) async fn measure(
    target: &Target,
    nodes: u32,
    pods: usize,
    with: Option<With>,
) -> anyhow::Result<Vec<Report>> {
    let preempts = with == Some(With::Preemption);
    ensure!(!preempts || pods <= nodes as usize, "a node takes one pod that preempts: --pods at most --nodes");
    let mut parts = Parts::get(target, nodes).await?;
    let config = parts.platform.config().await?;
    if preempts {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": "bench-high"}, "value": 1000});
        let path = "/apis/scheduling.k8s.io/v1/priorityclasses".to_owned();
        create(&config, vec![(path, class.to_string().into())]).await?;
        let count = nodes as usize * LOW_PER_NODE;
        let low = (0..count).map(|index| (PODS.to_owned(), pod(index, with, "900m", None).to_string().into()));
        let filled = bound(&config, count).await?;
        create(&config, low.collect()).await?;
        filled.await??;
    }
    let bodies = |from: usize, count: usize| -> Vec<(String, Bytes)> {
        let (cpu, priority) = if preempts { ("3", Some("bench-high")) } else { ("100m", None) };
        let pod = |index| (PODS.to_owned(), pod(index, with, cpu, priority).to_string().into());
        (from..from + count).map(pod).collect()
    };
    let mut report = Report::new("pods/s");
    if !parts.are_ours() {
        let all = bound(&config, pods).await?;
        let begun = Instant::now();
        create(&config, bodies(0, pods)).await?;
        let (_, last) = all.await??;
        report.add("created and bound", pods as f64 / (last - begun).as_secs_f64());
        return Ok(vec![report]);
    }
    // As in Kubernetes' own scheduler benchmark nobody runs the pods: what is measured is how they get their nodes.
    parts.stop_controllers();
    parts.stop_hollow();
    create(&config, bodies(0, pods)).await?;
    let all = bound(&config, pods).await?;
    let (server_before, _) = parts.cpu();
    let begun = Instant::now();
    parts.start_controllers()?;
    let (first, last) = all.await??;
    let (server, controllers) = parts.cpu();
    report.add("bound, pods there before", pods as f64 / (last - first).as_secs_f64());
    report.add("… counted from the start of the controllers", pods as f64 / (last - begun).as_secs_f64());
    let (mut memory, mut cpu) = (Report::new("MiB"), Report::new("µs per pod"));
    // Of the controllers with their start: what is read then is the same pods.
    cpu.add("CPU of the API server", (server - server_before) * 1e6 / pods as f64);
    cpu.add("CPU of the controllers", controllers * 1e6 / pods as f64);
    parts.controllers_memory().into_iter().for_each(|mib| memory.add("controllers at most", mib));
    if !preempts {
        // The scheduler runs now: pods that come are bound as they come, while the clients still create.
        let all = bound(&config, pods).await?;
        let begun = Instant::now();
        create(&config, bodies(pods, pods)).await?;
        let (_, last) = all.await??;
        report.add("created and bound", pods as f64 / (last - begun).as_secs_f64());
    }
    Ok(vec![report, cpu, memory])
}
