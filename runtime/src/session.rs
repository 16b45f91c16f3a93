//! A conversation with a process: the streams of an exec or an attachment, and its control.

use std::sync::Arc;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::RuntimeError;

/// An owned byte source.
pub type BoxedRead = Box<dyn AsyncRead + Send + Unpin>;
/// An owned byte sink; dropping it is end of file for the process.
pub type BoxedWrite = Box<dyn AsyncWrite + Send + Unpin>;

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// What a session's process is told and asked.
pub trait SessionControl: Send + Sync {
    /// Sets the terminal's size. Without a terminal nothing happens.
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, Result<(), RuntimeError>>;
    /// Exit code of the exec, or of the container for an attachment; 128 + signal when a signal ended it.
    fn wait(&self) -> BoxFuture<'_, Result<i32, RuntimeError>>;
    /// Kills the exec's process and what it started. An attachment is merely ended.
    fn kill(&self) -> BoxFuture<'_, Result<(), RuntimeError>>;
}

/// An exec or an attachment. Take the streams out and move them where they are copied; keep the control.
pub struct Session {
    /// There when asked for.
    pub stdin: Option<BoxedWrite>,
    /// There when asked for.
    pub stdout: Option<BoxedRead>,
    /// There when asked for and there is no terminal.
    pub stderr: Option<BoxedRead>,
    /// Shared freely; all of it may be called at the same time.
    pub control: Arc<dyn SessionControl>,
}

impl Session {
    /// See [`SessionControl::resize`].
    pub async fn resize(&self, size: TerminalSize) -> Result<(), RuntimeError> {
        self.control.resize(size).await
    }

    /// See [`SessionControl::wait`]. A timed-out exec is `RuntimeError::Exec` with code 124.
    pub async fn wait(&self) -> Result<i32, RuntimeError> {
        self.control.wait().await
    }

    /// See [`SessionControl::kill`].
    pub async fn kill(&self) -> Result<(), RuntimeError> {
        self.control.kill().await
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .finish_non_exhaustive()
    }
}
