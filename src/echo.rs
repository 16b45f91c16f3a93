//! `proa echo`: the web service of the samples.
//!
//! Listens on 8080. `GET /` answers one line with version, pod and node, `GET /env/NAME` one environment variable,
//! `GET /healthz` 200. On SIGTERM it stops accepting and finishes what it has begun. The version `broken` prints why
//! and exits with 1, so that a failing rollout can be shown.

use std::env;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use warp::Filter;

const PORT: u16 = 8080;

pub(crate) async fn run() -> anyhow::Result<()> {
    let version = env::var("ECHO_VERSION").unwrap_or_else(|_| "dev".into());
    if version == "broken" {
        anyhow::bail!("echo: this version is broken on purpose: it cannot find its settings file");
    }
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let line = format!("echo {version} pod={} node={}\n", pod_name(), env::var("NODE_NAME").unwrap_or_default());
    println!("echo {version} listening on {PORT}");

    let root = warp::path::end().map(move || line.clone());
    let health = warp::path!("healthz").map(|| "ok\n");
    let variable = warp::path!("env" / String).map(|name: String| match env::var(&name) {
        Ok(value) => warp::reply::with_status(format!("{value}\n"), warp::http::StatusCode::OK),
        Err(_) => warp::reply::with_status(format!("{name} is not set\n"), warp::http::StatusCode::NOT_FOUND),
    });
    warp::serve(root.or(health).or(variable))
        .bind(([0, 0, 0, 0], PORT))
        .await
        .graceful(async move {
            terminate.recv().await;
            println!("echo {version} draining");
        })
        .run()
        .await;
    Ok(())
}

/// A pod's host name is its name unless the pod says otherwise.
fn pod_name() -> String {
    env::var("POD_NAME")
        .or_else(|_| std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()))
        .unwrap_or_default()
}

/// Asks `url` twice a second until it answers with 200: what an init container waits for.
///
/// # Errors
/// When `url` is not of the form `http://HOST[:PORT]/PATH`.
pub(crate) async fn wait_for(url: &str) -> anyhow::Result<()> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url:?} does not begin with http://"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    println!("waiting for {url}");
    while !answers(&address, host, path).await {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!("{url} answers");
    Ok(())
}

async fn answers(address: &str, host: &str, path: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        Ok::<bool, std::io::Error>(status.ends_with(b"200"))
    };
    matches!(tokio::time::timeout(Duration::from_secs(2), ask).await, Ok(Ok(true)))
}
