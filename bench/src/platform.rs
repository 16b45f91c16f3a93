//! Owns the platform under measurement: started here in a directory of its own, or reached by a kubeconfig.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kube::Client;

use crate::{Target, process};

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running platform and how to reach it. One started here is stopped and reset when dropped.
pub(crate) struct Platform {
    pub(crate) kubeconfig: PathBuf,
    pub(crate) begun: Instant,
    started: Option<Started>,
}

struct Started {
    child: Child,
    proa: PathBuf,
    data: tempfile::TempDir,
    all: bool,
}

/// How much of Proa is started.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// `proa up`
    All,
    /// `proa server`
    Server,
}

impl Platform {
    /// Starts Proa, or takes what the kubeconfig names.
    pub(crate) async fn get(target: &Target) -> anyhow::Result<Platform> {
        let platform = match &target.kubeconfig {
            Some(file) => Platform::reached_by(file.clone()),
            None => Platform::start(target)?,
        };
        platform.api_ready().await?;
        Ok(platform)
    }

    /// Starts the API server alone, or takes what the kubeconfig names.
    pub(crate) async fn server(target: &Target) -> anyhow::Result<Platform> {
        let platform = match &target.kubeconfig {
            Some(file) => Platform::reached_by(file.clone()),
            None => Platform::spawn(target, Extent::Server)?,
        };
        platform.api_ready().await?;
        Ok(platform)
    }

    /// CPU seconds the process started here has used so far.
    pub(crate) fn cpu(&self) -> Option<f64> {
        self.process().map(|pid| process::cpu_seconds(&[pid]))
    }

    /// The process started here, if one was.
    pub(crate) fn process(&self) -> Option<u32> {
        self.started.as_ref().map(|started| started.child.id())
    }

    /// Starts Proa on an empty directory and returns at once.
    pub(crate) fn start(target: &Target) -> anyhow::Result<Platform> {
        Platform::spawn(target, Extent::All)
    }

    fn spawn(target: &Target, extent: Extent) -> anyhow::Result<Platform> {
        if !target.proa.exists() {
            bail!("{} does not exist: cargo build --release, or name the binary with --proa", target.proa.display());
        }
        let data = tempfile::Builder::new().prefix("proa-bench-").tempdir()?;
        let begun = Instant::now();
        let words: &[&str] = match extent {
            Extent::All => &["up", "--node-name", "bench", "--data-dir"],
            Extent::Server => &["server", "--data-dir"],
        };
        let child = Command::new(&target.proa)
            .args(words)
            .arg(data.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", target.proa.display()))?;
        let kubeconfig = data.path().join("admin.kubeconfig");
        Ok(Platform {
            kubeconfig,
            begun,
            started: Some(Started { child, proa: target.proa.clone(), data, all: extent == Extent::All }),
        })
    }

    /// One that is started, and stopped, elsewhere.
    pub(crate) fn reached_by(kubeconfig: PathBuf) -> Platform {
        Platform { kubeconfig, begun: Instant::now(), started: None }
    }

    /// Since the start until `/readyz` says yes.
    pub(crate) async fn api_ready(&self) -> anyhow::Result<Duration> {
        let deadline = self.begun + PATIENCE;
        while Instant::now() < deadline {
            // Until the file is there and the port answers there is nothing to wait on but time.
            if self.kubeconfig.exists()
                && let Ok(client) = self.client().await
                && client.request_text(http_get("/readyz")).await.is_ok()
            {
                return Ok(self.begun.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("the API was not ready after {PATIENCE:?}")
    }

    pub(crate) async fn config(&self) -> anyhow::Result<kube::Config> {
        let file = kube::config::Kubeconfig::read_from(&self.kubeconfig)?;
        Ok(kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?)
    }

    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::try_from(self.config().await?)?)
    }
}

fn http_get(path: &str) -> hyper::Request<Vec<u8>> {
    let mut request = hyper::Request::new(Vec::new());
    *request.uri_mut() = path.parse().unwrap_or_default();
    request
}

impl Drop for Platform {
    fn drop(&mut self) {
        let Some(started) = &mut self.started else { return };
        // The platform may be gone already; reset says what is left in any case.
        let _ = started.child.kill();
        let _ = started.child.wait();
        if !started.all {
            return;
        }
        let reset = Command::new(&started.proa)
            .args(["reset", "--data-dir"])
            .arg(started.data.path())
            .stdout(Stdio::null())
            .status();
        if !reset.is_ok_and(|status| status.success()) {
            eprintln!("proa reset of {} failed", started.data.path().display());
        }
    }
}
