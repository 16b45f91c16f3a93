//! Owns a platform in its parts, each a process of its own, so that one can be stopped and measured alone: API server,
//! controllers, hollow nodes.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};

use crate::Target;
use crate::platform::Platform;
use crate::podstart::default_service_account;
use crate::process;

const PATIENCE: Duration = Duration::from_secs(300);

/// The platform under measurement, and the parts of it that were started here.
pub(crate) struct Parts {
    pub(crate) platform: Platform,
    proa: PathBuf,
    controllers: Option<Child>,
    hollow: Option<Child>,
    server: Option<Server>,
}

/// The API server and its directory, which go with their owner.
struct Server {
    child: Child,
    _data: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

impl Parts {
    /// What the kubeconfig names; or a server with that many hollow nodes, all of them ready, and no controllers.
    pub(crate) async fn get(target: &Target, nodes: u32) -> anyhow::Result<Parts> {
        let proa = target.proa.clone();
        if target.kubeconfig.is_some() {
            let platform = Platform::get(target).await?;
            return Ok(Parts { platform, proa, controllers: None, hollow: None, server: None });
        }
        ensure!(
            proa.exists(),
            "{} does not exist: cargo build --release, or name the binary with --proa",
            proa.display()
        );
        let data = tempfile::Builder::new().prefix("proa-bench-").tempdir()?;
        let kubeconfig = data.path().join("admin.kubeconfig");
        let mut command = Command::new(&proa);
        command.args(["server", "--data-dir"]).arg(data.path());
        let server = Server { child: spawn(command)?, _data: data };
        let platform = Platform::reached_by(kubeconfig);
        platform.api_ready().await?;
        let mut parts = Parts { platform, proa, controllers: None, hollow: None, server: Some(server) };
        parts.start_controllers()?;
        let count = nodes.to_string();
        parts.hollow = Some(spawn(parts.command(&["agent", "--hollow", &count]))?);
        parts.nodes_ready(nodes as usize).await?;
        default_service_account(&parts.platform.client().await?).await?;
        Ok(parts)
    }

    /// Whether controllers are started and stopped here.
    pub(crate) fn are_ours(&self) -> bool {
        self.server.is_some()
    }

    pub(crate) fn start_controllers(&mut self) -> anyhow::Result<()> {
        if self.are_ours() {
            self.controllers = Some(spawn(self.command(&["controllers"]))?);
        }
        Ok(())
    }

    pub(crate) fn stop_controllers(&mut self) {
        self.controllers.take().iter_mut().for_each(end);
    }

    /// The nodes stay, and stay ready until somebody misses their signs of life (50 s).
    pub(crate) fn stop_hollow(&mut self) {
        self.hollow.take().iter_mut().for_each(end);
    }

    /// The most memory the controllers have had, in MiB.
    pub(crate) fn controllers_memory(&self) -> Option<f64> {
        process::peak(self.controllers.as_ref()?.id())
    }

    /// CPU seconds used so far by the API server and by the controllers that run now.
    pub(crate) fn cpu(&self) -> (f64, f64) {
        let of = |pid: Option<u32>| pid.map_or(0.0, |pid| process::cpu_seconds(&[pid]));
        (of(self.server.as_ref().map(|server| server.child.id())), of(self.controllers.as_ref().map(Child::id)))
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.proa);
        command.args(words).arg("--kubeconfig").arg(&self.platform.kubeconfig);
        command
    }

    async fn nodes_ready(&self, count: usize) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(self.platform.client().await?);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let list = nodes.list(&ListParams::default()).await?;
            let free = |node: &&Node| {
                node.spec.as_ref().is_none_or(|spec| spec.taints.as_ref().is_none_or(|taints| taints.is_empty()))
                    && node.status.as_ref().is_some_and(|status| status.allocatable.is_some())
            };
            if list.items.iter().filter(free).count() >= count {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the hollow nodes do not become ready");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.stop_controllers();
        self.stop_hollow();
    }
}

fn spawn(mut command: Command) -> anyhow::Result<Child> {
    // What goes wrong is said on stderr; a quiet part says nothing.
    let child = command.stdout(Stdio::null()).spawn();
    child.with_context(|| format!("cannot start {:?}", command.get_program()))
}
