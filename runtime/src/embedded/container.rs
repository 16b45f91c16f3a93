//! One container as the agent knows it, and the task that listens to its shim.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use jiff::Timestamp;
use tokio::sync::{broadcast, oneshot, watch};

use super::link::{Link, Listener};
use super::shims;
use crate::cgroup::Cgroups;
use crate::disk::{self, Ended};
use crate::error::RuntimeError;
use crate::exit::{Exit, ExitReason};
use crate::oci;
use crate::protocol::{Failure, FailureKind, Hello, Message, Record};
use crate::runtime::{ContainerState, ContainerStatus, RuntimeEvent};
use crate::shim::files;

/// Where it is in its life.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Phase {
    Creating,
    Created { pid: Option<u32> },
    Running { pid: u32, started_at: Timestamp },
    Exited { started_at: Option<Timestamp>, exit: Exit },
}

impl Phase {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Phase::Creating => "being created",
            Phase::Created { .. } => "created",
            Phase::Running { .. } => "running",
            Phase::Exited { .. } => "exited",
        }
    }
}

pub(super) struct Container {
    pub(super) record: Record,
    pub(super) dir: PathBuf,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) link: OnceLock<Arc<Link>>,
    /// Start, stop and remove take turns.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Names for execs and attachments, never used twice with one shim.
    pub(super) names: AtomicU64,
    execs: Mutex<HashMap<u64, watch::Sender<Option<i32>>>>,
}

impl Container {
    pub(super) fn new(record: Record, dir: PathBuf, phase: Phase) -> Container {
        Container {
            record,
            dir,
            phase: watch::channel(phase).0,
            link: OnceLock::new(),
            turn: tokio::sync::Mutex::new(()),
            // Execs of an agent before this one may still run: start where no agent of this shim has been.
            names: AtomicU64::new(Timestamp::now().as_microsecond().unsigned_abs() << 8),
            execs: Mutex::new(HashMap::new()),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.record.spec.id
    }

    pub(super) fn cgroup(&self) -> String {
        oci::cgroup_path(&self.record.sandbox, self.id())
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        match &*self.phase.borrow() {
            Phase::Exited { exit, .. } => Some(exit.clone()),
            _ => None,
        }
    }

    /// Waits for its end.
    pub(super) async fn exited(&self) -> Exit {
        let mut phase = self.phase.subscribe();
        loop {
            if let Phase::Exited { exit, .. } = &*phase.borrow_and_update() {
                return exit.clone();
            }
            // The sender lives in `self`.
            let _ = phase.changed().await;
        }
    }

    /// The shim, while there is one.
    pub(super) fn shim(&self) -> Result<&Arc<Link>, RuntimeError> {
        self.link.get().ok_or_else(|| self.not_running())
    }

    pub(super) fn not_running(&self) -> RuntimeError {
        RuntimeError::NotRunning { id: self.id().to_owned(), state: self.phase.borrow().word().to_owned() }
    }

    pub(super) fn error(&self, failure: Failure) -> RuntimeError {
        match failure.kind {
            FailureKind::Start => RuntimeError::Start(failure.message),
            FailureKind::Exec { code } => RuntimeError::Exec { code, message: failure.message },
            FailureKind::NotRunning => self.not_running(),
            FailureKind::Other => RuntimeError::Shim { id: self.id().to_owned(), message: failure.message },
        }
    }

    pub(super) fn status(&self) -> ContainerStatus {
        let spec = &self.record.spec;
        let (state, pid, started_at) = match self.phase.borrow().clone() {
            Phase::Creating => (ContainerState::Created, None, None),
            Phase::Created { pid } => (ContainerState::Created, pid, None),
            Phase::Running { pid, started_at } => (ContainerState::Running, Some(pid), Some(started_at)),
            Phase::Exited { started_at, exit } => (ContainerState::Exited(exit), None, started_at),
        };
        ContainerStatus {
            id: spec.id.clone(),
            sandbox: self.record.sandbox.id.clone(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            state,
            pid,
            created_at: self.record.created_at,
            started_at,
            labels: spec.labels.clone(),
            log_path: spec.log_path.clone(),
        }
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<u64, watch::Sender<Option<i32>>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wants to know how an exec ends. Asked before it is started.
    pub(super) fn expect_exec(&self, exec: u64) -> watch::Receiver<Option<i32>> {
        let (sender, receiver) = watch::channel(None);
        self.execs().insert(exec, sender);
        receiver
    }

    pub(super) fn forget_exec(&self, exec: u64) {
        self.execs().remove(&exec);
    }

    /// Connects to its shim: everything it says is heard from now on. Returns its greeting.
    pub(super) async fn hear(
        self: &Arc<Self>,
        socket: std::os::fd::OwnedFd,
        cgroups: Cgroups,
        events: broadcast::Sender<RuntimeEvent>,
    ) -> Result<Hello, RuntimeError> {
        let (greeted, greeting) = oneshot::channel();
        let ear = Ear { container: Arc::clone(self), cgroups, events, greeted: Some(greeted), welcome: false };
        let link = Link::start(socket, ear).map_err(RuntimeError::io("connection to the shim"))?;
        let _ = self.link.set(link);
        match greeting.await {
            Ok(Ok(hello)) => Ok(hello),
            Ok(Err(message)) => Err(RuntimeError::Create(message)),
            Err(_) => Err(RuntimeError::Create(self.complaint())),
        }
    }

    /// What the shim wrote before it went away.
    pub(super) fn complaint(&self) -> String {
        let text = std::fs::read_to_string(self.dir.join(files::COMPLAINTS)).unwrap_or_default();
        match text.trim() {
            "" => "its shim ended without a word".to_owned(),
            text => text.chars().take(2000).collect(),
        }
    }

    /// The shim is gone, or given up: what is on disk says how the container ended, or else it is ended now.
    fn settle(&self, cgroups: &Cgroups) -> Ended {
        if let Ok(ended) = disk::read_json::<Ended>(&self.dir.join(files::EXIT)) {
            return ended;
        }
        let started_at = match &*self.phase.borrow() {
            Phase::Running { started_at, .. } => Some(*started_at),
            _ => None,
        };
        let mut message = "the process that kept this container (its shim) was killed, so the container was stopped and its exit code is unknown".to_owned();
        if let Err(error) = self.end(cgroups) {
            message = format!("{message}; {error}");
        }
        let exit = Exit {
            code: 137,
            signal: None,
            reason: ExitReason::ContainerStatusUnknown,
            message,
            finished_at: Timestamp::now(),
        };
        let ended = Ended { started_at, exit };
        if let Err(error) = disk::write_json(&self.dir.join(files::EXIT), &ended) {
            tracing::warn!(container = self.id(), %error, "cannot keep the exit of a container");
        }
        ended
    }

    /// Ends whatever is left of its processes, its shim first: one that is just setting the container up would put more
    /// of them where the others were.
    pub(super) fn end(&self, cgroups: &Cgroups) -> Result<(), RuntimeError> {
        shims::end(&self.dir).map_err(RuntimeError::io(format!("shim of container {}", self.id())))?;
        self.clear_cgroup(cgroups)
    }

    /// Removes its cgroup, with whatever runs in it.
    pub(super) fn clear_cgroup(&self, cgroups: &Cgroups) -> Result<(), RuntimeError> {
        let group = self.cgroup();
        cgroups.clear(&group).map_err(RuntimeError::io(format!("cgroup {group}")))
    }

    /// As [`Container::settle`], for one whose shim was not there to connect to.
    pub(super) fn settle_now(&self, cgroups: &Cgroups) {
        let ended = self.settle(cgroups);
        self.phase.send_replace(Phase::Exited { started_at: ended.started_at, exit: ended.exit });
    }
}

/// What listens to a shim.
struct Ear {
    container: Arc<Container>,
    cgroups: Cgroups,
    events: broadcast::Sender<RuntimeEvent>,
    greeted: Option<oneshot::Sender<Result<Hello, String>>>,
    /// There is a container to answer for; before that, `create` cleans up.
    welcome: bool,
}

impl Ear {
    fn exited(&self, started_at: Option<Timestamp>, exit: Exit) {
        for (_, exec) in self.container.execs().drain() {
            exec.send_replace(Some(137));
        }
        self.container.phase.send_replace(Phase::Exited { started_at, exit: exit.clone() });
        let _ = self.events.send(RuntimeEvent::Exited { id: self.container.id().to_owned(), exit });
    }
}

impl Listener for Ear {
    fn hear(&mut self, message: Message) {
        let container = &self.container;
        match message {
            Message::Hello(hello) => {
                if let Some(greeted) = self.greeted.take() {
                    container.phase.send_replace(match (hello.pid, hello.started_at) {
                        (Some(pid), Some(started_at)) => Phase::Running { pid, started_at },
                        (pid, _) => Phase::Created { pid },
                    });
                    self.welcome = true;
                    let _ = greeted.send(Ok(hello));
                }
            }
            Message::CreateFailed { message } => {
                if let Some(greeted) = self.greeted.take() {
                    let _ = greeted.send(Err(message));
                }
            }
            Message::Started { at } => {
                container.phase.send_modify(|phase| {
                    if let Phase::Created { pid: Some(pid) } = phase {
                        *phase = Phase::Running { pid: *pid, started_at: at };
                    }
                });
                let _ = self.events.send(RuntimeEvent::Started { id: container.id().to_owned() });
            }
            Message::Exited(exit) => {
                let started_at = match &*container.phase.borrow() {
                    Phase::Running { started_at, .. } => Some(*started_at),
                    _ => None,
                };
                self.exited(started_at, exit);
            }
            Message::ExecExited { exec, code } => {
                if let Some(waiting) = container.execs().remove(&exec) {
                    waiting.send_replace(Some(code));
                }
            }
            Message::Reply { .. } | Message::Detached { .. } => {}
        }
    }

    fn gone(self) {
        if !self.welcome || self.container.exit().is_some() {
            return;
        }
        // Killing and waiting for the dead takes time: not here, on a worker of the async runtime.
        tokio::task::spawn_blocking(move || {
            let ended = self.container.settle(&self.cgroups);
            self.exited(ended.started_at, ended.exit);
        });
    }
}
