//! The verbs: sandboxes and containers come and go.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::container::{Container, Phase};
use super::sandbox::SandboxRecord;
use super::{Inner, blocking, check, sandbox, spawn};
use crate::cgroup::Cgroups;
use crate::error::RuntimeError;
use crate::exit::Exit;
use crate::protocol::{Record, Request};
use crate::runtime::{Created, Sandbox, SandboxState};
use crate::spec::{ContainerSpec, SandboxSpec};

/// A shim that has not spoken by then never will.
const GREETING: Duration = Duration::from_secs(60);
/// SIGKILL works at once, but for a process in the kernel's hands (a dead network disk).
const AFTER_KILL: Duration = Duration::from_secs(30);

impl Inner {
    pub(super) async fn run_sandbox(self: Arc<Self>, spec: SandboxSpec) -> Result<Sandbox, RuntimeError> {
        check::sandbox(&spec)?;
        let turn = self.sandbox_turn(&spec.id);
        let _turn = turn.lock().await;
        let dir = self.sandbox_dir(&spec.id);
        let known = self.sandboxes().get(&spec.id).cloned();
        if let Some(record) = known {
            let sandbox = record.sandbox(&dir);
            match sandbox.state {
                SandboxState::Ready if record.spec == spec => return Ok(sandbox),
                SandboxState::Ready => return Err(RuntimeError::AlreadyExists(spec.id)),
                // It was stopped, or lost its namespaces when the machine was started again.
                SandboxState::NotReady => self.dismantle(record).await?,
            }
        }
        let (cgroups, made_dir, made_spec) = (self.cgroups.clone(), dir.clone(), spec.clone());
        let record = blocking(move || sandbox::make(&made_dir, &made_spec, &cgroups)).await?;
        let sandbox = record.sandbox(&dir);
        self.sandboxes().insert(spec.id, record);
        Ok(sandbox)
    }

    pub(super) async fn stop_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let Some(mut record) = self.sandboxes().get(id).cloned() else { return Ok(()) };
        let dir = self.sandbox_dir(id);
        if !record.stopped {
            record.stopped = true;
            record.save(&dir).map_err(RuntimeError::io("keeping the sandbox"))?;
            self.sandboxes().insert(id.to_owned(), record);
        }
        let containers = self.containers_of(id);
        let stopped = futures::future::join_all(containers.iter().map(|c| c.stop(9, Duration::ZERO))).await;
        stopped.into_iter().try_for_each(|result| result.map(|_| ()))
    }

    pub(super) async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        self.stop_sandbox(id).await?;
        let turn = self.sandbox_turn(id);
        let _turn = turn.lock().await;
        let record = self.sandboxes().get(id).cloned();
        match record {
            Some(record) => self.dismantle(record).await,
            None => Ok(()),
        }
    }

    /// Removes a sandbox that takes no more containers, with those it has. The caller holds its turn.
    async fn dismantle(&self, record: SandboxRecord) -> Result<(), RuntimeError> {
        let id = record.spec.id.clone();
        let containers = self.containers_of(&id);
        let removed = futures::future::join_all(containers.iter().map(|c| self.remove(c.id()))).await;
        removed.into_iter().collect::<Result<(), _>>()?;
        let (cgroups, dir) = (self.cgroups.clone(), self.sandbox_dir(&id));
        blocking(move || sandbox::unmake(&dir, &record.spec, &cgroups)).await?;
        self.sandboxes().remove(&id);
        Ok(())
    }

    pub(super) async fn create(self: Arc<Self>, sandbox: &str, spec: ContainerSpec) -> Result<Created, RuntimeError> {
        check::container(&spec)?;
        let dir = self.container_dir(&spec.id);
        let container = {
            let record = self.sandboxes().get(sandbox).cloned();
            let record = record.ok_or_else(|| RuntimeError::SandboxNotFound(sandbox.to_owned()))?;
            if record.stopped {
                return Err(RuntimeError::Invalid(format!("sandbox {sandbox:?} was stopped")));
            }
            let record = Record {
                spec,
                sandbox: record.spec,
                sandbox_dir: self.sandbox_dir(sandbox),
                shims: self.shims.clone(),
                created_at: Timestamp::now(),
            };
            let mut containers = self.containers();
            if containers.contains_key(&record.spec.id) {
                return Err(RuntimeError::AlreadyExists(record.spec.id));
            }
            let container = Arc::new(Container::new(record, dir, Phase::Creating));
            containers.insert(container.id().to_owned(), Arc::clone(&container));
            container
        };
        let _turn = container.turn.lock().await;
        match self.launch(&container).await {
            Ok(created) => Ok(created),
            Err(error) => {
                let (failed, cgroups) = (Arc::clone(&container), self.cgroups.clone());
                let cleaned = blocking(move || clear(&failed, Shim::Unknown, &cgroups)).await;
                if let Err(leftover) = cleaned {
                    tracing::warn!(container = container.id(), %leftover, "a container that failed could not be cleaned up");
                }
                self.containers().remove(container.id());
                Err(error)
            }
        }
    }

    async fn launch(&self, container: &Arc<Container>) -> Result<Created, RuntimeError> {
        // Closed never: the semaphore lives as long as `self`.
        let _permit = self.launching.acquire().await;
        let (made, exe) = (Arc::clone(container), self.exe.clone());
        let socket = blocking(move || spawn::spawn(&exe, &made)).await?;
        let greeting = container.hear(socket, self.cgroups.clone(), self.events.clone());
        match tokio::time::timeout(GREETING, greeting).await {
            Ok(hello) => Ok(Created { warnings: hello?.warnings }),
            Err(_) => Err(RuntimeError::Create(format!("its shim said nothing for {} s", GREETING.as_secs()))),
        }
    }

    pub(super) async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        container.stop(9, Duration::ZERO).await?;
        let _turn = container.turn.lock().await;
        let shim = match container.link.get() {
            Some(link) => {
                // Its end of the connection is the last thing a shim lets go of.
                link.closed().await;
                Shim::Gone
            }
            None => Shim::Unknown,
        };
        let (removed, cgroups) = (Arc::clone(&container), self.cgroups.clone());
        blocking(move || clear(&removed, shim, &cgroups)).await?;
        self.containers().remove(id);
        Ok(())
    }
}

/// What is known of a container's shim.
enum Shim {
    Gone,
    /// It may live: looking for it costs a walk over all processes.
    Unknown,
}

/// Removes a container's processes, as far as there are any left, its cgroup and its directory.
fn clear(container: &Container, shim: Shim, cgroups: &Cgroups) -> Result<(), RuntimeError> {
    match shim {
        Shim::Gone => container.clear_cgroup(cgroups)?,
        Shim::Unknown => container.end(cgroups)?,
    }
    sandbox::remove_dir(&container.dir).map_err(RuntimeError::io(format!("removing {}", container.dir.display())))
}

impl Container {
    pub(super) async fn start(&self) -> Result<(), RuntimeError> {
        let _turn = self.turn.lock().await;
        if !matches!(&*self.phase.borrow(), Phase::Created { .. }) {
            let state = self.phase.borrow().word();
            return Err(RuntimeError::Invalid(format!("container {:?} cannot be started: it is {state}", self.id())));
        }
        match self.shim()?.call(Request::Start, Vec::new()).await {
            Ok(_) => Ok(()),
            Err(failure) => {
                let error = self.error(failure);
                if matches!(error, RuntimeError::Start(_)) {
                    // So that whoever asks next sees it ended.
                    let _ = tokio::time::timeout(AFTER_KILL, self.exited()).await;
                }
                Err(error)
            }
        }
    }

    pub(super) async fn signal(&self, signal: i32) -> Result<(), RuntimeError> {
        self.tell(Request::Signal { signal }).await
    }

    pub(super) async fn reopen_log(&self) -> Result<(), RuntimeError> {
        self.tell(Request::ReopenLog).await
    }

    async fn tell(&self, request: Request) -> Result<(), RuntimeError> {
        if self.exit().is_some() {
            return Err(self.not_running());
        }
        self.shim()?.call(request, Vec::new()).await.map(|_| ()).map_err(|failure| self.error(failure))
    }

    pub(super) async fn stop(&self, signal: i32, grace: Duration) -> Result<Exit, RuntimeError> {
        if *self.phase.borrow() == Phase::Creating {
            // `create` holds the turn until it is one or the other.
            drop(self.turn.lock().await);
        }
        if let Some(exit) = self.exit() {
            return Ok(exit);
        }
        let running = matches!(&*self.phase.borrow(), Phase::Running { .. });
        // That it has just ended is no error: the end is what is waited for.
        if running
            && !grace.is_zero()
            && self.tell(Request::Signal { signal }).await.is_ok()
            && let Ok(exit) = tokio::time::timeout(grace, self.exited()).await
        {
            return Ok(exit);
        }
        if self.link.get().is_none() {
            return Err(self.not_running());
        }
        let _ = self.tell(Request::Kill).await;
        tokio::time::timeout(AFTER_KILL, self.exited()).await.map_err(|_| RuntimeError::Shim {
            id: self.id().to_owned(),
            message: format!("not dead {} s after SIGKILL", AFTER_KILL.as_secs()),
        })
    }
}
