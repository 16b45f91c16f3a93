//! How a container's main process ended.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Why, in the words Kubernetes uses in `containerStatuses[].state.terminated.reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Any other exit code, or a signal.
    Error,
    /// The kernel killed a process of the container for its memory limit.
    OOMKilled,
    /// It never ran: the program is missing or not executable. The code is 128.
    StartError,
    /// Its shim was killed, so nobody saw it end. The code is 137.
    ContainerStatusUnknown,
}

impl ExitReason {
    /// The wire word.
    pub fn as_str(self) -> &'static str {
        match self {
            ExitReason::Completed => "Completed",
            ExitReason::Error => "Error",
            ExitReason::OOMKilled => "OOMKilled",
            ExitReason::StartError => "StartError",
            ExitReason::ContainerStatusUnknown => "ContainerStatusUnknown",
        }
    }
}

/// The end of a container, as kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + signal number when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// See [`ExitReason`].
    pub reason: ExitReason,
    /// One line for people; empty when there is nothing to add.
    pub message: String,
    /// When its shim saw it end.
    pub finished_at: Timestamp,
}
