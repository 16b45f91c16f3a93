//! What can go wrong when a runtime is asked for something.

use std::io;

/// Every verb of [`crate::Runtime`] fails with one of these.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No container of that id.
    #[error("container {0:?} not found")]
    ContainerNotFound(String),
    /// No sandbox of that id.
    #[error("sandbox {0:?} not found")]
    SandboxNotFound(String),
    /// The id is taken.
    #[error("{0:?} already exists")]
    AlreadyExists(String),
    /// The request contradicts itself or names something unknown; asking again cannot help.
    #[error("{0}")]
    Invalid(String),
    /// Asked of a container that is not running.
    #[error("container {id:?} is not running: it is {state}")]
    NotRunning {
        /// Which.
        id: String,
        /// What it is instead.
        state: String,
    },
    /// Setting the container up failed. The text is for people.
    #[error("failed to create container: {0}")]
    Create(String),
    /// The program could not be executed; the container has ended with code 128.
    #[error("failed to start container: {0}")]
    Start(String),
    /// An exec's program could not be executed. `code` is 127 when it does not exist, 126 otherwise.
    #[error("{message}")]
    Exec {
        /// The shell's convention.
        code: i32,
        /// For people.
        message: String,
    },
    /// Not built, or not possible on this machine; refused by name.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// The shim does not answer or answered nonsense.
    #[error("shim of container {id:?}: {message}")]
    Shim {
        /// Which.
        id: String,
        /// What happened.
        message: String,
    },
    /// The system said no.
    #[error("{context}: {source}")]
    Io {
        /// What was tried.
        context: String,
        /// What came back.
        source: io::Error,
    },
}

impl RuntimeError {
    /// Whether the same request may succeed later without anybody changing it.
    pub fn is_retryable(&self) -> bool {
        matches!(self, RuntimeError::Create(_) | RuntimeError::Shim { .. } | RuntimeError::Io { .. })
    }

    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> RuntimeError {
        let context = context.into();
        move |source| RuntimeError::Io { context, source }
    }
}
