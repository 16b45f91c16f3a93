//! Owns the three patch formats of the API that need no field ownership: JSON patch (RFC 6902), merge
//! patch (RFC 7386) and Kubernetes' strategic merge patch. Server-side apply is [`crate::managed_fields`].
//!
//! Every patch is bounded in the work and the memory it may cost; a patch that fails changes nothing.

mod elements;
mod json;
mod merge;
mod strategic;

pub use json::json;
pub use merge::merge;
pub use strategic::strategic;

/// At most this many operations in one JSON patch, as in Kubernetes.
pub const MOST_OPERATIONS: usize = 10_000;

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// Not a patch of its format at all: 400 Bad Request.
    #[error("{0}")]
    Malformed(String),
    /// A fine patch, but not for this object (a `test` that fails, a path that is not there): 422 Invalid.
    #[error("{0}")]
    Unprocessable(String),
    /// Too many operations, or too much data made by them: 413 Request Entity Too Large.
    #[error("{0}")]
    TooLarge(String),
}
