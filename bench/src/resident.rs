//! What an API server takes in memory: alone and idle, and with a large cluster's objects in it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::Target;
use crate::platform::Platform;
use crate::process;
use crate::raw::Connection;
use crate::report::Report;

const CLIENTS: usize = 32;
const JSON: &str = "application/json";

/// A pod as a Deployment makes it, on its node.
fn pod(index: usize, nodes: usize) -> Value {
    let set = format!("service-{}-6d4cf56db6", index / 10);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{set}-{index:06}"),
            "labels": {"app": format!("service-{}", index / 10), "pod-template-hash": "6d4cf56db6"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "controller": true,
                "blockOwnerDeletion": true, "uid": format!("6f1b5a54-0f6c-4b5e-9d0a-{:012}", index / 10)}],
        },
        "spec": {
            "nodeName": format!("node-{}", index % nodes),
            "containers": [{"name": "main", "image": "registry.example/team/service:v1", "ports": [{"containerPort": 8080}],
                "env": [{"name": "MODE", "value": "production"}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}}}],
        },
    })
}

/// The same, running: what its node's agent says of it.
fn running(index: usize) -> Value {
    let time = "2026-11-01T00:00:00Z";
    let condition =
        |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": time});
    let kinds = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    let address = format!("10.{}.{}.{}", index >> 16 & 255, index >> 8 & 255, index & 255);
    json!({"status": {
        "phase": "Running", "startTime": time, "hostIP": "192.0.2.1", "hostIPs": [{"ip": "192.0.2.1"}],
        "podIP": address, "podIPs": [{"ip": address}], "qosClass": "Burstable",
        "conditions": kinds.map(condition),
        "containerStatuses": [{"name": "main", "ready": true, "started": true, "restartCount": 0,
            "image": "registry.example/team/service:v1",
            "imageID": "registry.example/team/service@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            "containerID": format!("containerd://{index:064x}"), "state": {"running": {"startedAt": time}}}],
    }})
}

fn node(index: usize) -> Value {
    let condition = |kind: &str| {
        json!({"type": kind, "status": if kind == "Ready" { "True" } else { "False" }, "reason": "Kubelet",
            "message": "kubelet is as it should be", "lastHeartbeatTime": "2026-11-01T00:00:00Z",
            "lastTransitionTime": "2026-11-01T00:00:00Z"})
    };
    let conditions = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"].map(condition);
    let room = json!({"cpu": "32", "memory": "128Gi", "pods": "110", "ephemeral-storage": "400Gi"});
    json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": format!("node-{index}"), "labels": {"kubernetes.io/hostname": format!("node-{index}"),
            "topology.kubernetes.io/zone": format!("zone-{}", index % 3), "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}},
        "status": {"capacity": room, "allocatable": room,
            "conditions": conditions,
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
            "nodeInfo": {"architecture": "amd64", "bootID": "", "containerRuntimeVersion": "containerd://2.1.0",
                "kernelVersion": "6.12.0", "kubeProxyVersion": "", "kubeletVersion": "v1.36.2", "machineID": "",
                "operatingSystem": "linux", "osImage": "Debian GNU/Linux 12", "systemUUID": ""}}})
}

async fn write(connection: &mut Connection, method: Method, path: &str, body: &Value) -> anyhow::Result<()> {
    let media_type = if method == Method::PATCH { "application/merge-patch+json" } else { JSON };
    let (status, answer) = connection.fetch(media_type, method, path, body.to_string().into()).await?;
    ensure!(
        matches!(status, StatusCode::CREATED | StatusCode::OK),
        "{path}: {status}: {}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}

/// Runs `each` for every index, over some connections at once.
async fn all<F, A>(config: &kube::Config, count: usize, each: F) -> anyhow::Result<()>
where
    F: Fn(usize, Connection) -> A + Send + Sync + 'static,
    A: Future<Output = anyhow::Result<Connection>> + Send,
{
    let each = Arc::new(each);
    let mut tasks = Vec::new();
    for client in 0..CLIENTS {
        let (each, mut connection) = (each.clone(), Connection::open(config).await?);
        tasks.push(tokio::spawn(async move {
            for index in (client..count).step_by(CLIENTS) {
                connection = each(index, connection).await?;
            }
            anyhow::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// Memory of a server that was just started and left alone; then of one with this many nodes and running pods.
pub(crate) async fn measure(target: &Target, nodes: usize, pods: usize) -> anyhow::Result<Vec<Report>> {
    let platform = Platform::server(target).await?;
    let server = platform.process().context("resident starts the server itself: leave --kubeconfig out")?;
    let mut memory = Report::new("MiB");
    // What the start left over is worked off before the measurement.
    tokio::time::sleep(Duration::from_secs(5)).await;
    memory.add("API server alone, idle", process::memory(&[server]).0);
    let config = platform.config().await?;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let mut connection = Connection::open(&config).await?;
    write(&mut connection, Method::POST, "/api/v1/namespaces/default/serviceaccounts", &account).await?;
    all(&config, nodes, |index, mut connection| async move {
        write(&mut connection, Method::POST, "/api/v1/nodes", &node(index)).await?;
        Ok(connection)
    })
    .await?;
    all(&config, pods, move |index, mut connection| async move {
        let pod = pod(index, nodes.max(1));
        let path = "/api/v1/namespaces/default/pods";
        write(&mut connection, Method::POST, path, &pod).await?;
        let path = format!("{path}/{}/status", pod["metadata"]["name"].as_str().unwrap_or_default());
        write(&mut connection, Method::PATCH, &path, &running(index)).await?;
        Ok(connection)
    })
    .await?;
    let of = format!("{pods} running pods, {nodes} nodes");
    memory.add(&format!("{of}: when the last was written"), process::memory(&[server]).0);
    // Watchers may look back five minutes; nobody does here.
    tokio::time::sleep(Duration::from_secs(30)).await;
    memory.add(&format!("{of}: half a minute later"), process::memory(&[server]).0);
    process::peak(server).into_iter().for_each(|mib| memory.add(&format!("{of}: at most"), mib));
    let mut size = Report::new("KiB");
    let name = pod(0, nodes.max(1))["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let path = format!("/api/v1/namespaces/default/pods/{name}");
    // The first connection was silent for too long to be there still.
    let mut connection = Connection::open(&config).await?;
    size.add(
        "one of the pods",
        connection.fetch(JSON, Method::GET, &path, Bytes::new()).await?.1.len() as f64 / 1024.0,
    );
    Ok(vec![memory, size])
}
