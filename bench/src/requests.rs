//! The API server's single requests: updates with a condition, gets, server-side apply.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use bytes::Bytes;
use hyper::{Method, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::Target;
use crate::api::{closed_loop, config_map, namespace, unique};
use crate::platform::Platform;
use crate::raw::Connection;
use crate::report::Report;

const JSON: &str = "application/json";

/// Each client has an object of its own, and writes it again over the state that it was answered last time: a condition
/// that holds, checked by the server each time.
pub(crate) async fn updates(target: &Target, clients: &[usize], seconds: u64) -> anyhow::Result<Vec<Report>> {
    let platform = Platform::server(target).await?;
    let config = platform.config().await?;
    let (mut report, mut cpu) = (Report::new("updates/s"), Report::new("µs"));
    for run in 0..target.runs {
        for &count in clients {
            let path = namespace(&config, &unique(&format!("updates-{run}-{count}"))).await?;
            let mut last = Vec::new();
            let mut connection = Connection::open(&config).await?;
            for client in 0..count {
                let object = config_map(&format!("c{client}"));
                let (status, bytes) = connection.fetch(JSON, Method::POST, &path, object).await?;
                ensure!(status == StatusCode::CREATED, "create: {status}");
                last.push(Arc::new(Mutex::new(bytes)));
            }
            let per_second = closed_loop(&config, count, seconds, move |client, index, mut connection| {
                let (path, last) = (format!("{path}/c{client}"), last[client].clone());
                async move {
                    let body = changed(&last.lock(), index);
                    let (status, bytes) = connection.fetch(JSON, Method::PUT, &path, body).await?;
                    ensure!(status == StatusCode::OK, "update: {status}");
                    *last.lock() = bytes;
                    Ok(connection)
                }
            });
            let before = platform.cpu();
            let per_second = per_second.await?;
            report.add(&format!("updates with a condition, {count} clients"), per_second.rate);
            if let (Some(before), Some(after)) = (before, platform.cpu()) {
                cpu.add(&format!("CPU of an update, {count} clients"), (after - before) * 1e6 / per_second.answers);
            }
        }
    }
    Ok(vec![report, cpu])
}

/// The object with other data of the same length; its resource version stays as it was answered.
fn changed(object: &[u8], index: usize) -> Bytes {
    let mut body = object.to_vec();
    const FILLING: &[u8] = b"\"filling\":\"";
    if let Some(at) = body.windows(FILLING.len()).position(|window| window == FILLING) {
        let number = format!("{index:08}");
        body[at + FILLING.len()..][..number.len()].copy_from_slice(number.as_bytes());
    }
    body.into()
}

pub(crate) async fn gets(target: &Target, clients: &[usize], seconds: u64) -> anyhow::Result<Vec<Report>> {
    let platform = Platform::server(target).await?;
    let config = platform.config().await?;
    let path = namespace(&config, &unique("gets")).await?;
    let (status, _) = Connection::open(&config).await?.call(Method::POST, &path, config_map("read")).await?;
    ensure!(status == StatusCode::CREATED, "create: {status}");
    let (mut report, mut cpu) = (Report::new("gets/s"), Report::new("µs"));
    for _ in 0..target.runs {
        for &count in clients {
            let path = format!("{path}/read");
            let per_second = closed_loop(&config, count, seconds, move |_, _, mut connection| {
                let path = path.clone();
                async move {
                    let (status, _) = connection.call(Method::GET, &path, Bytes::new()).await?;
                    ensure!(status == StatusCode::OK, "get: {status}");
                    Ok(connection)
                }
            });
            let before = platform.cpu();
            let per_second = per_second.await?;
            report.add(&format!("gets of 1 KiB, {count} clients"), per_second.rate);
            if let (Some(before), Some(after)) = (before, platform.cpu()) {
                cpu.add(&format!("CPU of a get, {count} clients"), (after - before) * 1e6 / per_second.answers);
            }
        }
    }
    Ok(vec![report, cpu])
}

/// A Deployment of about ten KiB: containers with environments, as charts write them.
fn deployment(revision: usize) -> Bytes {
    let variable = |index: usize| json!({"name": format!("SETTING_{index}"), "value": format!("a value that says {index} and more")});
    let container = |index: usize| {
        json!({
            "name": format!("container-{index}"),
            "image": format!("registry.example/team/part-{index}:v{revision}"),
            "args": ["--listen=:8080", "--log-level=info", "--config=/etc/part/config.yaml"],
            "env": (0..19).map(variable).collect::<Vec<_>>(),
            "ports": [{"name": "http", "containerPort": 8080 + index}],
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 5},
            "livenessProbe": {"httpGet": {"path": "/live", "port": "http"}, "initialDelaySeconds": 10},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/part"}, {"name": "scratch", "mountPath": "/tmp"}],
        })
    };
    let object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "large", "labels": {"app": "large"}, "annotations": {"revision": revision.to_string()}},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "large"}},
            "template": {
                "metadata": {"labels": {"app": "large"}},
                "spec": {
                    "containers": (0..6).map(container).collect::<Vec<Value>>(),
                    "volumes": [{"name": "config", "configMap": {"name": "config"}}, {"name": "scratch", "emptyDir": {}}],
                },
            },
        },
    });
    object.to_string().into()
}

/// Server-side apply of a Deployment that changed, one after the other: committed, and as a dry run, which is the same
/// work without the disk.
pub(crate) async fn applies(target: &Target, count: usize) -> anyhow::Result<Vec<Report>> {
    let platform = Platform::server(target).await?;
    let config = platform.config().await?;
    let configmaps = namespace(&config, &unique("apply")).await?;
    let space = configmaps.trim_end_matches("/configmaps").rsplit('/').next().context("a namespace has a name")?;
    let path = format!("/apis/apps/v1/namespaces/{space}/deployments/large?fieldManager=bench&force=true");
    let mut connection = Connection::open(&config).await?;
    let (mut times, mut size) = (Report::new("ms"), Report::new("KiB"));
    size.add("the Deployment as it is sent", deployment(0).len() as f64 / 1024.0);
    for index in 0..count.max(1) {
        for (what, query) in [("applied", ""), ("applied as a dry run: without the disk", "&dryRun=All")] {
            let body = deployment(index);
            let begun = Instant::now();
            let (status, _) = connection
                .fetch("application/apply-patch+yaml", Method::PATCH, &format!("{path}{query}"), body)
                .await?;
            let took = begun.elapsed();
            ensure!(status.is_success(), "apply: {status}");
            // The first creates, and warms up.
            if index > 0 {
                times.add_time(what, took);
            }
        }
    }
    Ok(vec![times, size])
}
