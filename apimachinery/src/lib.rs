//! The API's algebra: what can be said about Kubernetes objects with nothing but the objects themselves.
//!
//! Owns: reading JSON and YAML within bounds, schemas (built-in kinds and custom resources alike),
//! pruning, defaulting and validation, the patch formats, server-side apply with field ownership,
//! selectors, quantities, names, printed tables and the errors of all of these in Kubernetes' words.
//!
//! Never does IO, never reads a clock or a random number, never panics: every function is total over
//! any input a client may send, and bounded in the work it does for it. Time comes in as an argument.
//! No function here knows which kinds a server serves; a kind is told apart only by its schema. Two do know a shape:
//! [`unsupported`], what nodes do not do yet in a pod, which server and agents must read alike, and [`quota`] with
//! [`pod_resources`], what objects use, which server and controllers must count alike.

pub mod at;
pub mod cel;
pub mod cron;
pub mod der;
pub mod duration;
pub mod field;
pub mod indexes;
pub mod json;
pub mod jsonpath;
pub mod managed_fields;
pub mod names;
pub mod object;
pub mod part;
pub mod patch;
pub mod pod_resources;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod schema;
pub mod selector;
pub mod status;
pub mod table;
pub mod template;
pub mod unsupported;
pub mod yaml;

pub use field::{Cause, FieldError, FieldErrors, Path};
pub use object::Object;
