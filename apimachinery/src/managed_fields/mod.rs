//! Owns server-side apply: who owns which field of an object, what an apply changes because of it, and
//! when it conflicts (KEP-555). The ownership is recorded in `metadata.managedFields`.
//!
//! Never reads a clock (the time of an entry is an argument) and never looks at a kind: how a value
//! splits into fields is the schema's to say. Values without a schema are split by their own shape.

mod conflict;
mod entries;
mod extract;
mod overlay;
mod ownership;
mod path;
mod set;
mod take_over;
mod typed;
mod wire;

use serde_json::Value;

pub use conflict::{Conflict, Conflicts};
pub use path::Element;
pub use set::Set;

use crate::{field::FieldErrors, object::Object, schema::Schema};

/// How a manager changes objects: an apply states all it wants, any other write only what it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Server-side apply.
    Apply,
    /// Create, update, patch.
    Update,
}

impl Operation {
    /// As `managedFields[].operation` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// Who makes a change, and how.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    /// Name of the field manager: the `fieldManager` parameter, or the first word of the user agent.
    pub name: &'a str,
    /// Apply or not.
    pub operation: Operation,
    /// Group and version the object is written in.
    pub api_version: &'a str,
    /// `status`, `scale` …, or "" for the object itself.
    pub subresource: &'a str,
}

/// Why an apply is refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ApplyError {
    /// Other managers own what the configuration changes: 409 Conflict, reason Conflict, each conflict a
    /// cause `FieldManagerConflict`.
    #[error("{0}")]
    Conflicts(Conflicts),
    /// The configuration holds `metadata.managedFields`: 400 Bad Request.
    #[error("metadata.managedFields must be nil")]
    ManagedFieldsGiven,
    /// The configuration cannot be taken apart into fields, say because of a duplicate key: 400 Bad Request.
    #[error("failed to create typed patch object: {}", crate::field::join(.0))]
    Malformed(FieldErrors),
}

/// Server-side apply: the object that results when `config` is applied to `live`, its managedFields set.
///
/// With `force`, conflicts are won and the fields taken from their owners. `now` is RFC 3339, in seconds.
/// The caller has removed from `config` what this endpoint resets (`status` on the main resource), and
/// afterwards prunes, defaults and validates the result as it would any write.
///
/// An apply that changes neither the object nor who owns what gives `live` back, times included.
pub fn apply(
    schema: &Schema,
    live: Option<&Object>,
    config: &Object,
    manager: Manager<'_>,
    force: bool,
    now: &str,
) -> Result<Object, ApplyError> {
    ownership::apply(schema, live, config, manager, force, now)
}

/// After any other write: records in `new.metadata.managedFields` that `manager` owns what it changed.
///
/// `live` is the object before (None on create). A `new` that carries managedFields of its own, sent to
/// change them, is believed on the main resource; `[{}]` wipes them all.
pub fn update(schema: &Schema, live: Option<&Object>, new: &mut Object, manager: Manager<'_>, now: &str) {
    ownership::update(schema, live, new, manager, now);
}

/// Before an object that `from` kept by client-side apply is applied by `applier`: makes the applier own all that `from`
/// owns, so that it can remove what is no longer wanted. Whether anything changed.
pub fn take_over(object: &mut Object, from: &str, applier: Manager<'_>, now: &str) -> bool {
    take_over::take_over(object, from, applier, now)
}

/// The object with an apply configuration laid over it whose fields nobody comes to own.
///
/// # Errors
///
/// What is wrong with the configuration: unknown fields, elements without their keys, values that are replaced as a whole.
pub fn overlay(schema: &Schema, object: &Object, config: &Value) -> Result<Object, String> {
    overlay::overlay(schema, object, config)
}

/// The set of fields a value consists of.
pub fn fields(schema: &Schema, value: &Value) -> Set {
    extract::fields(schema, value)
}
