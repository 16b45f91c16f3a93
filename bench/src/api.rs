//! The API server alone: writes, lists, watchers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};

use crate::Target;
use crate::platform::Platform;
use crate::raw::Connection;
use crate::report::Report;

/// A ConfigMap of about one KiB.
pub(crate) fn config_map(name: &str) -> Bytes {
    let filling = "x".repeat(880);
    let object = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"filling": filling}});
    Bytes::from(object.to_string())
}

/// A namespace that is used by one measurement alone.
pub(crate) async fn namespace(config: &kube::Config, name: &str) -> anyhow::Result<String> {
    let object = serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let (status, _) =
        Connection::open(config).await?.call(Method::POST, "/api/v1/namespaces", object.to_string().into()).await?;
    ensure!(status == StatusCode::CREATED, "namespace {name}: {status}");
    Ok(format!("/api/v1/namespaces/{name}/configmaps"))
}

pub(crate) fn unique(what: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("bench-{what}-{}", now.as_millis())
}

pub(crate) async fn delete_namespace(config: &kube::Config, path: &str) -> anyhow::Result<()> {
    let namespace = path.trim_end_matches("/configmaps");
    let mut connection = Connection::open(config).await?;
    connection.call(Method::DELETE, namespace, Bytes::new()).await?;
    // Taking it away is work of its own, and not what the next measurement is of.
    let deadline = Instant::now() + Duration::from_secs(120);
    while connection.call(Method::GET, namespace, Bytes::new()).await?.0 != StatusCode::NOT_FOUND {
        ensure!(Instant::now() < deadline, "{namespace} does not go away");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

pub(crate) async fn writes(target: &Target, clients: &[usize], seconds: u64) -> anyhow::Result<Vec<Report>> {
    let platform = Platform::get(target).await?;
    let config = platform.config().await?;
    let (mut report, mut cpu) = (Report::new("creates/s"), Report::new("µs"));
    for run in 0..target.runs {
        for &count in clients {
            let path = namespace(&config, &unique(&format!("writes-{run}-{count}"))).await?;
            let into = path.clone();
            let before = platform.cpu();
            let per_second = closed_loop(&config, count, seconds, move |client, index, mut connection| {
                let path = into.clone();
                async move {
                    let object = config_map(&format!("c{client}-{index}"));
                    let (status, _) = connection.call(Method::POST, &path, object).await?;
                    ensure!(status == StatusCode::CREATED, "create: {status}");
                    Ok(connection)
                }
            });
            let per_second = per_second.await?;
            report.add(&format!("creates of 1 KiB, {count} clients"), per_second.rate);
            if let (Some(before), Some(after)) = (before, platform.cpu()) {
                cpu.add(&format!("CPU of a create, {count} clients"), (after - before) * 1e6 / per_second.answers);
            }
            delete_namespace(&config, &path).await?;
        }
    }
    Ok(vec![report, cpu])
}

/// What clients got done.
pub(crate) struct Answered {
    /// Answers.
    pub(crate) answers: f64,
    /// Answers per second.
    pub(crate) rate: f64,
}

/// So many clients, each with a connection of its own, each asking again as soon as it is answered.
pub(crate) async fn closed_loop<F, A>(
    config: &kube::Config,
    clients: usize,
    seconds: u64,
    ask: F,
) -> anyhow::Result<Answered>
where
    F: Fn(usize, usize, Connection) -> A + Clone + Send + 'static,
    A: Future<Output = anyhow::Result<Connection>> + Send,
{
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(Connection::open(config).await?);
    }
    let answered = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs(seconds);
    let tasks = connections.into_iter().enumerate().map(|(client, mut connection)| {
        let (ask, answered) = (ask.clone(), answered.clone());
        tokio::spawn(async move {
            for index in 0.. {
                if Instant::now() >= deadline {
                    break;
                }
                connection = ask(client, index, connection).await?;
                answered.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        })
    });
    for task in futures::future::join_all(tasks).await {
        task??;
    }
    let answers = answered.load(Ordering::Relaxed) as f64;
    Ok(Answered { answers, rate: answers / begun.elapsed().as_secs_f64() })
}

pub(crate) async fn lists(target: &Target, objects: usize) -> anyhow::Result<Vec<Report>> {
    let platform = Platform::get(target).await?;
    let config = platform.config().await?;
    let path = namespace(&config, &unique("lists")).await?;
    let mut fill = Vec::new();
    for client in 0..8 {
        let (path, mut connection) = (path.clone(), Connection::open(&config).await?);
        fill.push(tokio::spawn(async move {
            for index in (client..objects).step_by(8) {
                let object = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("object-{index:06}")}, "data": {"filling": "x".repeat(300)}});
                let (status, _) = connection.call(Method::POST, &path, object.to_string().into()).await?;
                ensure!(status == StatusCode::CREATED, "create: {status}");
            }
            anyhow::Ok(())
        }));
    }
    for task in fill {
        task.await??;
    }
    let mut report = Report::new("ms");
    let mut connection = Connection::open(&config).await?;
    let mut bytes = 0;
    for _ in 0..target.runs.max(5) {
        for (what, query) in [("list of all", ""), ("page of 500", "?limit=500")] {
            let begun = Instant::now();
            let (status, length) = connection.call(Method::GET, &format!("{path}{query}"), Bytes::new()).await?;
            ensure!(status == StatusCode::OK, "list: {status}");
            report.add_time(&format!("{what}, {objects} objects"), begun.elapsed());
            bytes = bytes.max(length);
        }
    }
    let mut size = Report::new("MB");
    size.add("size of the whole list", bytes as f64 / 1e6);
    delete_namespace(&config, &path).await?;
    Ok(vec![report, size])
}

pub(crate) async fn watchers(target: &Target, watchers: &[usize], events: usize) -> anyhow::Result<Vec<Report>> {
    let platform = Platform::get(target).await?;
    let config = platform.config().await?;
    let mut report = Report::new("events/s");
    for run in 0..target.runs {
        for &count in watchers {
            let path = namespace(&config, &unique(&format!("watch-{run}-{count}"))).await?;
            let mut tasks = Vec::new();
            for _ in 0..count {
                let mut connection = Connection::open(&config).await?;
                let response =
                    connection.send(Method::GET, &format!("{path}?watch=1&resourceVersion=0"), Bytes::new()).await?;
                ensure!(response.status() == StatusCode::OK, "watch: {}", response.status());
                tasks.push(tokio::spawn(async move {
                    let _open = connection;
                    let mut body = response.into_body();
                    let mut seen = 0;
                    while seen < events {
                        let frame = body.frame().await.context("a watch ended early")??;
                        // Each event is one line.
                        seen += frame.data_ref().map_or(0, |data| data.iter().filter(|byte| **byte == b'\n').count());
                    }
                    anyhow::Ok(())
                }));
            }
            let begun = Instant::now();
            let mut writers = Vec::new();
            for writer in 0..4 {
                let (path, mut connection) = (path.clone(), Connection::open(&config).await?);
                writers.push(tokio::spawn(async move {
                    for index in (writer..events).step_by(4) {
                        connection.call(Method::POST, &path, config_map(&format!("event-{index}"))).await?;
                    }
                    anyhow::Ok(())
                }));
            }
            for task in writers.into_iter().chain(tasks) {
                task.await??;
            }
            report.add(
                &format!("delivered in all, {count} watchers"),
                (count * events) as f64 / begun.elapsed().as_secs_f64(),
            );
            delete_namespace(&config, &path).await?;
        }
    }
    Ok(vec![report])
}
