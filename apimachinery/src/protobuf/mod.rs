//! Kubernetes' protobuf, both ways: an object's JSON to the bytes Go would write for it, and back.
//!
//! Owns the envelope (`k8s\0`, then `runtime.Unknown`), watch frames and the table of messages. An object's JSON is
//! read in one pass and written in the order of field numbers; no tree of it is built. What is written is, byte for byte,
//! what gogo-protobuf writes for the same Go value (`api-conventions.md`; the canonical data of `k8s.io/api/testdata`):
//! fields by number, maps by key, and every field that is no pointer, set or not. Back, it is what `encoding/json` writes.
//!
//! Total: bad input is an error, never a panic, and nesting is bounded. Never knows which kinds a server serves.

mod decode;
mod encode;
mod envelope;
mod special;
mod table;
#[cfg(test)]
mod tests;
mod wire;

pub use envelope::{List, MAGIC, WATCH_MEDIA_TYPE, decode, encode, encode_as, event, frame};
pub use table::{Message, kind};

/// The media type (`runtime.ContentTypeProtobuf`).
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// Why something cannot be read or written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// It does not start as Kubernetes' protobuf does.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoPrefix,
    /// It is not the wire format, or ends in the middle.
    #[error("the body is not a Kubernetes protobuf object")]
    Malformed,
    /// It nests too deeply.
    #[error("the body nests too deeply")]
    TooDeep,
    /// Its kind is none of those that have a form in protobuf.
    #[error(
        "object {0} does not implement the protobuf marshalling interface and cannot be encoded to a protobuf message"
    )]
    UnknownKind(String),
    /// The JSON is not what the kind's Go type reads.
    #[error("{0}")]
    Json(String),
}
