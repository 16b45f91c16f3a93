//! Owns processes, cgroups, namespaces, logs and exit codes; never knows a Kubernetes type.
//!
//! [`Runtime`] is one trait in the shape of CRI's verbs. [`Embedded`] is the implementation that
//! needs no other program: per container, our own binary re-executes itself as a small
//! single-threaded *shim* ([`shim_main`]) that owns the container's stdio, its log, its exit code
//! and a socket. The agent may die and come back; shims and containers do not notice.
//!
//! ```text
//! agent ── Embedded ──unix socket── shim (one per container, outlives the agent)
//!                                     └─ container init (libcontainer: namespaces, rootfs, caps)
//! ```
//!
//! Not here on purpose: pulling and unpacking images (the caller names unpacked layers), network
//! set-up (the caller names a network namespace), restart policies, probes. Seccomp profiles are not
//! applied: `RuntimeDefault` is accepted by the agent and means "what the kernel and the capability
//! sets allow".

mod cgroup;
mod disk;
mod embedded;
mod error;
mod exit;
mod fds;
mod host;
pub mod logs;
mod oci;
mod protocol;
mod runtime;
mod session;
mod shim;
mod spec;
pub mod users;

pub use embedded::{Embedded, layers_in_use, reset};
pub use error::RuntimeError;
pub use exit::{Exit, ExitReason};
pub use host::offers_filesystem;
pub use runtime::{
    Answer, ContainerState, ContainerStatus, Created, Runtime, RuntimeEvent, Sandbox, SandboxState, Stats,
};
pub use session::{BoxedRead, BoxedWrite, Session, SessionControl, TerminalSize};
pub use shim::{is_shim, shim_main};
pub use spec::{
    AttachSpec, ContainerSpec, Device, ExecSpec, Mount, MountKind, Propagation, Resources, Rlimit, SandboxSpec, User,
};
