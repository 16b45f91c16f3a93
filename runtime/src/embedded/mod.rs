//! The runtime that needs no other program: shims, and what the agent knows about them.
//!
//! Owns the state directory: `sandboxes/<id>/` and `containers/<id>/`. Everything in it can be found
//! again by the next agent; what is only in memory here is a view.

mod check;
mod container;
mod lifecycle;
mod link;
mod recover;
mod sandbox;
mod sessions;
mod shims;
mod spawn;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::sync::{Semaphore, broadcast};

pub use recover::{layers_in_use, reset};

use crate::cgroup::Cgroups;
use crate::error::RuntimeError;
use crate::exit::Exit;
use crate::runtime::{Answer, ContainerStatus, Created, Runtime, RuntimeEvent, Sandbox, Stats};
use crate::session::Session;
use crate::shim::files;
use crate::spec::{AttachSpec, ContainerSpec, ExecSpec, Resources, SandboxSpec};
use container::{Container, Phase};
use sandbox::SandboxRecord;

/// The embedded runtime. Dropping it leaves every container running.
pub struct Embedded {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    exe: PathBuf,
    cgroups: Cgroups,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    sandboxes: Mutex<BTreeMap<String, SandboxRecord>>,
    /// Sandboxes are made and removed one by one per id.
    sandbox_turns: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// The control group the shims go into.
    shims: String,
    events: broadcast::Sender<RuntimeEvent>,
    /// Setting up a container is CPU work: more at once than cores can take only makes each later.
    launching: Semaphore,
}

/// The last part of the name of the shims' control group.
const SHIMS: &str = "shims";
/// Events a slow listener may be behind before it has to list.
const EVENTS_KEPT: usize = 4096;

impl Embedded {
    /// Opens a state directory: reconnects to the shims that live, settles the containers of those that
    /// do not, and clears away what no record speaks of. `exe` is the program to re-execute as a shim;
    /// its `main` must call [`crate::shim_main`] when [`crate::is_shim`] says so. `cgroup_root` is the control
    /// group above those of all sandboxes; the shims get one of their own in it, because whoever ends the agent's
    /// (systemd, for one) means the agent.
    pub async fn open(state_dir: &Path, exe: PathBuf, cgroup_root: &str) -> Result<Embedded, RuntimeError> {
        let cgroups = Cgroups::detect().map_err(RuntimeError::io("control groups"))?;
        let shims = format!("{}/{SHIMS}", cgroup_root.trim_matches('/'));
        if let Err(error) = cgroups.create_open(&shims) {
            tracing::warn!(%error, "containers will not outlive the control group of this process");
        }
        for dir in ["containers", "sandboxes"] {
            let dir = state_dir.join(dir);
            std::fs::create_dir_all(&dir).map_err(RuntimeError::io(format!("making {}", dir.display())))?;
        }
        let dir = std::path::absolute(state_dir).map_err(RuntimeError::io("state directory"))?;
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let inner = Arc::new(Inner {
            dir,
            exe,
            cgroups,
            containers: Mutex::default(),
            sandboxes: Mutex::default(),
            sandbox_turns: Mutex::default(),
            shims,
            events: broadcast::channel(EVENTS_KEPT).0,
            launching: Semaphore::new((cores * 2).clamp(4, 16)),
        });
        inner.recover().await?;
        Ok(Embedded { inner })
    }

    /// Runs to its end even if the caller loses interest: half a container is nobody's friend.
    fn whole<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, RuntimeError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, RuntimeError>> {
        let task = tokio::spawn(work);
        Box::pin(async move {
            task.await.unwrap_or_else(|error| Err(RuntimeError::Invalid(format!("the runtime gave up: {error}"))))
        })
    }
}

impl Inner {
    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Container>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sandboxes(&self) -> MutexGuard<'_, BTreeMap<String, SandboxRecord>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, RuntimeError> {
        self.containers().get(id).cloned().ok_or_else(|| RuntimeError::ContainerNotFound(id.to_owned()))
    }

    fn container_dir(&self, id: &str) -> PathBuf {
        self.dir.join("containers").join(id)
    }

    fn sandbox_dir(&self, id: &str) -> PathBuf {
        self.dir.join("sandboxes").join(id)
    }

    fn sandbox_turn(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.sandbox_turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(id.to_owned()).or_default())
    }

    fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        self.containers().values().filter(|container| container.record.sandbox.id == sandbox).cloned().collect()
    }
}

/// Blocking work off the async workers.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(RuntimeError::Invalid(format!("the runtime gave up: {error}"))))
}

impl Runtime for Embedded {
    fn run_sandbox(&self, spec: SandboxSpec) -> Answer<'_, Sandbox> {
        let inner = Arc::clone(&self.inner);
        self.whole(async move { inner.run_sandbox(spec).await })
    }

    fn stop_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let (inner, id) = (Arc::clone(&self.inner), id.to_owned());
        self.whole(async move { inner.stop_sandbox(&id).await })
    }

    fn remove_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let (inner, id) = (Arc::clone(&self.inner), id.to_owned());
        self.whole(async move { inner.remove_sandbox(&id).await })
    }

    fn list_sandboxes(&self) -> Answer<'_, Vec<Sandbox>> {
        let listed: Vec<(PathBuf, SandboxRecord)> =
            self.inner.sandboxes().iter().map(|(id, record)| (self.inner.sandbox_dir(id), record.clone())).collect();
        Box::pin(async move { Ok(listed.iter().map(|(dir, record)| record.sandbox(dir)).collect()) })
    }

    fn create<'a>(&'a self, sandbox: &'a str, spec: ContainerSpec) -> Answer<'a, Created> {
        let (inner, sandbox) = (Arc::clone(&self.inner), sandbox.to_owned());
        self.whole(async move { inner.create(&sandbox, spec).await })
    }

    fn start<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let (inner, id) = (Arc::clone(&self.inner), id.to_owned());
        self.whole(async move { inner.container(&id)?.start().await })
    }

    fn kill<'a>(&'a self, id: &'a str, signal: i32) -> Answer<'a, ()> {
        Box::pin(async move { self.inner.container(id)?.signal(signal).await })
    }

    fn stop<'a>(&'a self, id: &'a str, signal: i32, grace: Duration) -> Answer<'a, Exit> {
        Box::pin(async move { self.inner.container(id)?.stop(signal, grace).await })
    }

    fn remove<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let (inner, id) = (Arc::clone(&self.inner), id.to_owned());
        self.whole(async move { inner.remove(&id).await })
    }

    fn list(&self) -> Answer<'_, Vec<ContainerStatus>> {
        let listed = self
            .inner
            .containers()
            .values()
            .filter(|container| *container.phase.borrow() != Phase::Creating)
            .map(|container| container.status())
            .collect();
        Box::pin(async move { Ok(listed) })
    }

    fn status<'a>(&'a self, id: &'a str) -> Answer<'a, ContainerStatus> {
        Box::pin(async move { Ok(self.inner.container(id)?.status()) })
    }

    fn exec<'a>(&'a self, id: &'a str, spec: ExecSpec) -> Answer<'a, Session> {
        Box::pin(async move { sessions::exec(self.inner.container(id)?, spec, &self.inner.cgroups).await })
    }

    fn attach<'a>(&'a self, id: &'a str, spec: AttachSpec) -> Answer<'a, Session> {
        Box::pin(async move { sessions::attach(self.inner.container(id)?, spec).await })
    }

    fn update<'a>(&'a self, id: &'a str, resources: Resources) -> Answer<'a, ()> {
        Box::pin(async move {
            let container = self.inner.container(id)?;
            if !matches!(&*container.phase.borrow(), Phase::Created { .. } | Phase::Running { .. }) {
                return Err(container.not_running());
            }
            self.inner
                .cgroups
                .apply(&container.cgroup(), &resources)
                .map_err(RuntimeError::io(format!("limits of container {id}")))
        })
    }

    fn stats<'a>(&'a self, id: &'a str) -> Answer<'a, Stats> {
        Box::pin(async move { Ok(self.inner.cgroups.stats(&self.inner.container(id)?.cgroup())) })
    }

    fn sandbox_stats<'a>(&'a self, id: &'a str) -> Answer<'a, Stats> {
        Box::pin(async move {
            let parent = self.inner.sandboxes().get(id).map(|record| record.spec.cgroup_parent.clone());
            let parent = parent.ok_or_else(|| RuntimeError::SandboxNotFound(id.to_owned()))?;
            Ok(self.inner.cgroups.stats(&parent))
        })
    }

    fn writable_layer(&self, id: &str) -> Option<PathBuf> {
        Some(self.inner.container_dir(id).join(files::UPPER))
    }

    fn reopen_log<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { self.inner.container(id)?.reopen_log().await })
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        let receiver = self.inner.events.subscribe();
        futures::stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((RuntimeEvent::Lagged, receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        })
        .boxed()
    }
}
