//! What can go wrong with images. Each variant says whether trying again can help.

use std::io;

/// From the store, archives and unpacking.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No image of that name or id.
    #[error("image {0:?} not found")]
    NotFound(String),
    /// Not a name an image can have.
    #[error("invalid reference format: {0}")]
    InvalidName(String),
    /// The bytes are not what they claim to be, or not an image at all.
    #[error("{0}")]
    Corrupt(String),
    /// More than anyone's image has; most likely made to fill the disk.
    #[error("{0}")]
    TooLarge(String),
    /// No space left where the store is.
    #[error("no space left on the disk that holds {dir} (while {doing}): free some, or move the data directory")]
    DiskFull {
        /// The store.
        dir: String,
        /// What was being written.
        doing: String,
    },
    /// Still used by containers.
    #[error("image {0} is in use by a container")]
    InUse(String),
    /// The system said no.
    #[error("{context}: {source}")]
    Io {
        /// What was tried.
        context: String,
        /// What came back.
        source: io::Error,
    },
}

impl ImageError {
    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, ImageError::DiskFull { .. } | ImageError::Io { .. } | ImageError::InUse(_))
    }

    /// An error of the system, with what was tried; a full disk is told apart.
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> ImageError {
        let context = context.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                ImageError::DiskFull { dir: "the images".to_owned(), doing: context }
            }
            _ => ImageError::Io { context, source },
        }
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> ImageError {
        ImageError::Corrupt(message.into())
    }
}

/// From a pull.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry knows no such image, or has none for this machine.
    #[error("{reference}: not found: {message}")]
    NotFound {
        /// What was asked for.
        reference: String,
        /// What the registry said.
        message: String,
    },
    /// The registry wants (other) credentials.
    #[error("{reference}: pull access denied, the repository does not exist or needs authorization: {message}")]
    Unauthorized {
        /// What was asked for.
        reference: String,
        /// What the registry said.
        message: String,
    },
    /// The registry cannot be reached, or broke off.
    #[error("{reference}: cannot reach the registry: {message}")]
    Unreachable {
        /// What was asked for.
        reference: String,
        /// What happened.
        message: String,
    },
    /// Nobody this machine trusts vouches for the registry's certificate.
    #[error("{reference}: the registry's certificate is not trusted: {message}")]
    Untrusted {
        /// What was asked for.
        reference: String,
        /// What is wrong with it, and where its authority would be looked for.
        message: String,
    },
    /// What came is not what was promised. Nothing of it was kept.
    #[error("{reference}: {message}")]
    Corrupt {
        /// What was asked for.
        reference: String,
        /// What is wrong.
        message: String,
    },
    /// Not a name an image can have.
    #[error("invalid reference format: {0}")]
    InvalidName(String),
    /// The store could not take it.
    #[error(transparent)]
    Store(#[from] ImageError),
}

impl PullError {
    /// Whether the same request may succeed later without anybody changing it. A missing image or refused
    /// credentials may be mended in the registry, so those are worth another, later try as well.
    pub fn is_retryable(&self) -> bool {
        match self {
            PullError::NotFound { .. }
            | PullError::Unauthorized { .. }
            | PullError::Unreachable { .. }
            | PullError::Untrusted { .. }
            | PullError::Corrupt { .. } => true,
            PullError::InvalidName(_) => false,
            PullError::Store(error) => error.is_retryable(),
        }
    }

    /// Whether the registry has answered that there is no such image (or none this caller may have).
    pub fn is_definite(&self) -> bool {
        matches!(self, PullError::NotFound { .. } | PullError::Unauthorized { .. } | PullError::InvalidName(_))
    }
}
