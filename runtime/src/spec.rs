//! What a caller asks for: sandboxes, containers, execs. Plain data; everything is checked where it is used.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::session::TerminalSize;

/// The shared ground of a pod's containers: namespaces and a parent cgroup. There is no pause process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxSpec {
    /// Unique among the sandboxes of one state directory: letters, digits, `_`, `+`, `-`, `.`.
    pub id: String,
    /// Host name inside the UTS namespace. Ignored with the host's network, as on Kubernetes: such a
    /// sandbox also shares the host's UTS namespace.
    pub hostname: String,
    /// A pinned network namespace, made by the caller. `None`: the host's.
    pub netns: Option<PathBuf>,
    /// Below the cgroup root, without a leading slash, e.g. `proa/node1/pod6d4b`. Made and removed with the sandbox.
    pub cgroup_parent: String,
    /// Share the host's process ids.
    pub host_pid: bool,
    /// Share the host's System V IPC and POSIX message queues.
    pub host_ipc: bool,
    /// Namespaced kernel parameters (`net.…`, `kernel.shm…`, `kernel.msg…`, `kernel.sem`, `fs.mqueue.…`).
    pub sysctls: BTreeMap<String, String>,
    /// Carried along and given back, never read.
    pub labels: BTreeMap<String, String>,
    /// Limits of the pod as a whole.
    pub resources: Option<Resources>,
}

/// One container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// Unique among the containers of one state directory: letters, digits, `_`, `+`, `-`, `.`.
    pub id: String,
    /// The container's name within its pod.
    pub name: String,
    /// 0 for the first run, counted up at each restart.
    pub attempt: u32,
    /// Unpacked image layers, top first; one plain directory is fine. Never written to.
    pub layers: Vec<PathBuf>,
    /// Program and arguments. A bare program name is looked up in the container's `PATH`.
    pub args: Vec<String>,
    /// Environment, later entries win.
    pub env: Vec<(String, String)>,
    /// Working directory, made if absent. Empty: `/`.
    pub cwd: String,
    /// Who runs it.
    pub user: User,
    /// Mounts on top of the defaults (`/proc`, `/dev`, `/dev/shm`, `/sys` …), in order of their targets' depth.
    pub mounts: Vec<Mount>,
    /// The final capability set (`CAP_NET_BIND_SERVICE` or `NET_BIND_SERVICE`); what this process does
    /// not hold itself is left out with a warning.
    pub capabilities: Vec<String>,
    /// All devices, no masked paths, writable `/sys` and cgroups, every capability we hold.
    pub privileged: bool,
    /// The root file system is mounted read-only.
    pub readonly_rootfs: bool,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// Limits.
    pub resources: Resources,
    /// A terminal instead of three pipes. The log then holds everything as `stdout`.
    pub tty: bool,
    /// Keep standard input open for attachments. Otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Close standard input when the first attachment's input ends.
    pub stdin_once: bool,
    /// Where the log in CRI format is appended. Parent directories are made.
    pub log_path: PathBuf,
    /// −1000 … 1000. Where the host forbids lowering it, the lowest allowed value is taken with a warning.
    pub oom_score_adj: Option<i32>,
    /// Resource limits; a hard limit beyond ours is lowered with a warning where the host forbids it.
    pub rlimits: Vec<Rlimit>,
    /// Paths hidden from the container. `None`: the usual ones.
    pub masked_paths: Option<Vec<String>>,
    /// Paths made read-only. `None`: the usual ones.
    pub readonly_paths: Option<Vec<String>>,
    /// Devices beyond the default ones.
    pub devices: Vec<Device>,
    /// Carried along and given back, never read.
    pub labels: BTreeMap<String, String>,
}

/// Numeric identities. Names are resolved beforehand with `users::resolve`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

/// What a mount shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A file or directory of the host, with all mounts below it.
    #[default]
    Bind,
    /// A fresh memory file system; `source` is ignored.
    Tmpfs,
}

/// How mounts made later travel between the host and the container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Neither way (Kubernetes `None`).
    #[default]
    Private,
    /// Host to container.
    HostToContainer,
    /// Both ways. The source must be a shared mount of the host.
    Bidirectional,
}

/// A mount inside the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Path on the host. A missing source is an error: whoever wants it made makes it.
    pub source: PathBuf,
    /// Absolute path in the container; made if absent.
    pub target: PathBuf,
    /// Writes fail with `EROFS`.
    pub readonly: bool,
    /// See [`Propagation`].
    pub propagation: Propagation,
    /// See [`MountKind`].
    pub kind: MountKind,
    /// Only for [`MountKind::Tmpfs`]: size limit in bytes.
    pub size_bytes: Option<u64>,
}

/// Limits; 0 and `None` mean "no limit of its own".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Relative weight, 2 … 262144 (1024 is one core's worth on Kubernetes). Converted to `cpu.weight` on cgroup v2.
    pub cpu_shares: Option<u64>,
    /// CPU time per period, microseconds.
    pub cpu_quota_us: Option<i64>,
    /// Length of the period, microseconds. Default 100000.
    pub cpu_period_us: Option<u64>,
    /// Memory limit, bytes. Swap is not allowed beyond it.
    pub memory_bytes: Option<i64>,
    /// Number of processes and threads.
    pub pids: Option<i64>,
}

/// One resource limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` or `NOFILE`, any case.
    pub name: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// A device of the host shown to the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Device node on the host.
    pub host_path: PathBuf,
    /// Where it appears in the container.
    pub container_path: PathBuf,
    /// Any of `r`, `w`, `m`.
    pub permissions: String,
}

/// A further process in a running container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecSpec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Added to the container's environment; later entries win.
    pub env: Vec<(String, String)>,
    /// `None`: the container's.
    pub cwd: Option<String>,
    /// `None`: the container's.
    pub user: Option<User>,
    /// A terminal; standard error is then part of standard output.
    pub tty: bool,
    /// Initial size of the terminal.
    pub size: Option<TerminalSize>,
    /// Wanted: the session's `stdin` is there.
    pub stdin: bool,
    /// Wanted: the session's `stdout` is there; otherwise output is discarded.
    pub stdout: bool,
    /// Wanted: the session's `stderr` is there; otherwise it is discarded.
    pub stderr: bool,
    /// After this long the process and everything it started are killed and the exit says `timed_out`.
    pub timeout: Option<Duration>,
}

/// Which streams of a container's main process an attachment wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AttachSpec {
    /// Feed the container's standard input (only with `ContainerSpec::stdin`).
    pub stdin: bool,
    /// Output from now on.
    pub stdout: bool,
    /// Errors from now on (with a terminal they are part of the output).
    pub stderr: bool,
}
