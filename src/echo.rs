//! `proa echo`: the web service of the samples.
//!
//! Listens on 8080. `GET /` answers one line with version, pod and node, `GET /env/NAME` one environment variable,
//! `GET /healthz` 200. On SIGTERM it stops accepting and finishes what it has begun. The version `broken` prints why
//! and exits with 1, so that a failing rollout can be shown.

use std::env;

use anyhow::Context;
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
