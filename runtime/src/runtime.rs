//! The trait: CRI's verbs without CRI's types, safe to use as `Arc<dyn Runtime>`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::RuntimeError;
use crate::exit::Exit;
use crate::session::Session;
use crate::spec::{AttachSpec, ContainerSpec, ExecSpec, Resources, SandboxSpec};

/// The answer of every verb.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, RuntimeError>>;

/// Whether new containers may be put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    /// Namespaces and cgroup are there.
    Ready,
    /// Stopped, or its namespaces were lost (a reboot).
    NotReady,
}

/// A sandbox as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Sandbox {
    /// As asked for.
    pub spec: SandboxSpec,
    /// See [`SandboxState`].
    pub state: SandboxState,
    /// When it was made.
    pub created_at: Timestamp,
    /// What the host forbade and was done without.
    pub warnings: Vec<String>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Set up; its program has not been executed yet.
    Created,
    /// Its program runs.
    Running,
    /// Over. The log is complete.
    Exited(Exit),
}

/// A container as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerStatus {
    /// Container id.
    pub id: String,
    /// Sandbox id.
    pub sandbox: String,
    /// Name within the pod.
    pub name: String,
    /// Which run of that name.
    pub attempt: u32,
    /// See [`ContainerState`].
    pub state: ContainerState,
    /// Process id of the container's init on the host, while there is one.
    pub pid: Option<u32>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its program was executed.
    pub started_at: Option<Timestamp>,
    /// As asked for.
    pub labels: BTreeMap<String, String>,
    /// As asked for.
    pub log_path: PathBuf,
}

/// A created container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Created {
    /// What the host forbade and was done without (a negative `oom_score_adj`, a hard limit), one sentence each.
    pub warnings: Vec<String>,
}

/// What a container uses now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time since its start, nanoseconds.
    pub cpu_ns: u64,
    /// Memory charged to it, page cache included, bytes.
    pub memory_bytes: u64,
    /// Memory without the inactive page cache, bytes: what Kubernetes calls the working set.
    pub memory_working_set: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container's program was executed.
    Started {
        /// Container id.
        id: String,
    },
    /// A container ended; its exit is on disk and its log complete.
    Exited {
        /// Container id.
        id: String,
        /// How.
        exit: Exit,
    },
    /// The listener was too slow and missed events: it should `list()`.
    Lagged,
}

/// A container runtime. Implementations are cheap to share and every verb may run at the same time as
/// every other; verbs on one container are put in order by the implementation.
pub trait Runtime: Send + Sync + 'static {
    /// Makes a sandbox's namespaces and cgroup. Asking again with the same spec returns the one there is; one that is not
    /// ready any more is removed first, with its containers.
    fn run_sandbox(&self, spec: SandboxSpec) -> Answer<'_, Sandbox>;
    /// Kills every container in it. The namespaces stay until `remove_sandbox`. Unknown ids are fine.
    fn stop_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// Removes it with all its containers, cgroup and pins. Unknown ids are fine.
    fn remove_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// All sandboxes of this state directory.
    fn list_sandboxes(&self) -> Answer<'_, Vec<Sandbox>>;

    /// Sets a container up, all but executing its program. On error nothing is left behind.
    fn create<'a>(&'a self, sandbox: &'a str, spec: ContainerSpec) -> Answer<'a, Created>;
    /// Executes its program. On `RuntimeError::Start` the container has exited with `StartError`, 128.
    fn start<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// Sends a signal to the container's init.
    fn kill<'a>(&'a self, id: &'a str, signal: i32) -> Answer<'a, ()>;
    /// Sends `signal`, waits up to `grace` for the end, then kills. Returns when it has ended. A
    /// container that has ended already is fine.
    fn stop<'a>(&'a self, id: &'a str, signal: i32, grace: Duration) -> Answer<'a, Exit>;
    /// Kills it if need be and removes every trace but the log. Unknown ids are fine.
    fn remove<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// All containers of this state directory, the ended ones too.
    fn list(&self) -> Answer<'_, Vec<ContainerStatus>>;
    /// One container.
    fn status<'a>(&'a self, id: &'a str) -> Answer<'a, ContainerStatus>;

    /// Runs a further process in a running container.
    fn exec<'a>(&'a self, id: &'a str, spec: ExecSpec) -> Answer<'a, Session>;
    /// Joins the streams of the container's main process.
    fn attach<'a>(&'a self, id: &'a str, spec: AttachSpec) -> Answer<'a, Session>;
    /// Changes limits of a running container; `None` fields stay as they are.
    fn update<'a>(&'a self, id: &'a str, resources: Resources) -> Answer<'a, ()>;
    /// What it uses now.
    fn stats<'a>(&'a self, id: &'a str) -> Answer<'a, Stats>;
    /// What a whole sandbox uses now.
    fn sandbox_stats<'a>(&'a self, id: &'a str) -> Answer<'a, Stats>;
    /// Where on this machine a container's writable layer lies, for who measures it; `None` when it is not to be seen.
    fn writable_layer(&self, id: &str) -> Option<PathBuf>;
    /// Opens the log file anew, after it was renamed by a rotation.
    fn reopen_log<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;

    /// Events from now on. They can be lost (`Lagged`): `list()` is the slow relist behind it.
    fn events(&self) -> BoxStream<'static, RuntimeEvent>;
}
