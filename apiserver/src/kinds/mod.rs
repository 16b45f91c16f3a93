//! Owns the one table of kinds: a kind is a row (group, version, names, scope, subresources, columns,
//! schema) and a [`Strategy`] (defaults, validation, what an update may touch). Built-in kinds and
//! custom resources are the same row. Never reads or writes the store, never sees a request.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

use jiff::Timestamp;
use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::jsonpath::JsonPath;
use proa_apimachinery::schema::{self, Schema};
use proa_apimachinery::{Object, duration, table};
use serde_json::Value;

use crate::conversion::ConversionWebhook;

mod admissionregistration;
mod apps;
mod at;
mod autoscaling;
mod batch;
mod bounds;
mod cells;
pub mod certificates;
mod columns;
mod config;
pub mod crd;
mod discovery;
mod events;
pub mod meta;
pub mod metrics;
pub mod namespace;
mod networking;
mod node;
pub mod pod;
mod pod_cells;
mod policies;
mod rbac;
mod rows;
mod rules;
mod service;
mod settings;
pub mod storage;
mod template;
pub mod twins;

#[cfg(test)]
mod tests;

pub use rows::builtin;
pub use rules::Rules;

/// One kind in one version, as the server serves it.
#[derive(Clone)]
pub struct Kind {
    /// The API group; empty for the core group.
    pub group: Cow<'static, str>,
    /// `v1`
    pub version: Cow<'static, str>,
    /// `Deployment`
    pub kind: Cow<'static, str>,
    /// `DeploymentList`
    pub list_kind: Cow<'static, str>,
    /// `deployments`, the path segment.
    pub plural: Cow<'static, str>,
    /// `deployment`
    pub singular: Cow<'static, str>,
    /// `deploy`
    pub short_names: Vec<Cow<'static, str>>,
    /// `all`
    pub categories: Vec<Cow<'static, str>>,
    /// In a namespace or not.
    pub scope: Scope,
    /// What hangs below an object's path.
    pub subresources: Vec<Subresource>,
    /// What a table of these shows.
    pub columns: Vec<Column>,
    /// What `fieldSelector` may name beside `metadata.name` and `metadata.namespace`.
    pub selectable_fields: Vec<SelectableField>,
    /// The fields.
    pub schema: SchemaRef,
    /// The rules.
    pub strategy: Arc<dyn Strategy>,
    /// Where and in which form it is stored.
    pub storage: Storage,
    /// A PUT may leave out the resource version and overwrite whatever there is (`AllowUnconditionalUpdate`).
    pub unconditional_update: bool,
    /// A delete answers with what the object was, not with a `Status` (`ReturnDeletedObject` of Kubernetes' registries;
    /// its OpenAPI document says it of the same kinds, and clients made from that decode nothing else).
    pub returns_deleted: bool,
    /// Answered at once and never stored: reviews, `bindings`, what is measured.
    pub is_virtual: bool,
    /// What can be done with the resource.
    pub verbs: &'static [&'static str],
}

/// What can be done with every kind that is stored.
pub const STORED: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Kind {
    /// `v1`, `apps/v1`
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// True when objects live in namespaces.
    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// True when status is written through `/status` only.
    pub fn has_status(&self) -> bool {
        self.subresources.contains(&Subresource::Status)
    }

    /// The paths of `/scale`, when there is one.
    pub fn scale(&self) -> Option<&ScalePaths> {
        self.subresources.iter().find_map(|s| if let Subresource::Scale(paths) = s { Some(paths) } else { None })
    }

    /// The object as it is stored, from the form of this version.
    pub fn to_storage(&self, object: Object) -> Object {
        match &self.storage.convert {
            Some(Convert::Functions { to_storage, .. }) => to_storage(object),
            Some(Convert::ApiVersion { stored, .. }) => with_version(object, stored),
            None => object,
        }
    }

    /// The object in the form of this version, from what is stored.
    pub fn from_storage(&self, object: Object) -> Object {
        match &self.storage.convert {
            Some(Convert::Functions { from_storage, .. }) => from_storage(object),
            Some(Convert::ApiVersion { served, .. }) => with_version(object, served),
            None => object,
        }
    }

    /// The value of a selectable field; absent reads as empty. `None` when the field is not selectable.
    pub fn field<'a>(&self, object: &'a Object, name: &str) -> Option<Cow<'a, str>> {
        match name {
            "metadata.name" => return Some(object.name().into()),
            "metadata.namespace" => return Some(object.namespace().into()),
            _ => {}
        }
        let field = self.selectable_fields.iter().find(|f| f.name == name)?;
        Some(match field.path.find_in_map(&object.0).first() {
            Some(Value::String(text)) => text.as_str().into(),
            None | Some(Value::Null) => field.default.into(),
            Some(other) => other.to_string().into(),
        })
    }
}

fn with_version(mut object: Object, api_version: &str) -> Object {
    object.0.insert("apiVersion".to_owned(), api_version.into());
    object
}

/// Where objects of a kind live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In a namespace.
    Namespaced,
    /// In none.
    Cluster,
}

/// What hangs below an object's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// `/status`
    Status,
    /// `/scale`
    Scale(ScalePaths),
    /// `binding`, `eviction`, `token`, `log`, `exec`, `attach`, `portforward`, `proxy`, `resize`,
    /// `ephemeralcontainers`, `finalize`, `approval`
    Named(&'static str),
}

/// Where `autoscaling/v1 Scale` finds its numbers, as dotted paths starting with a dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    /// `.spec.replicas`
    pub spec_replicas: String,
    /// `.status.replicas`
    pub status_replicas: String,
    /// Either a `metav1.LabelSelector` (`.spec.selector`), a map of labels, or a serialized selector; if any.
    pub label_selector: Option<String>,
}

/// One column of a table.
#[derive(Clone, Debug)]
pub struct Column {
    /// The heading.
    pub name: Cow<'static, str>,
    /// `string`, `integer`, `number`, `boolean`, `date`
    pub type_: Cow<'static, str>,
    /// `name` on the column that identifies the object.
    pub format: Cow<'static, str>,
    /// What it shows.
    pub description: Cow<'static, str>,
    /// 0 is always shown.
    pub priority: i32,
    /// How it is computed.
    pub cell: Cell,
}

impl Column {
    /// The wire form of the heading.
    pub fn head(&self) -> table::Column {
        table::Column {
            name: self.name.to_string(),
            type_: self.type_.to_string(),
            format: self.format.to_string(),
            description: self.description.to_string(),
            priority: self.priority,
        }
    }

    /// The cell of one object. Dates become ages.
    pub fn cell(&self, object: &Object, now: Timestamp) -> Value {
        match &self.cell {
            Cell::Call(call) => call(object, now),
            Cell::Path(path) => {
                let found = path.find_in_map(&object.0);
                let Some(first) = found.first() else { return Value::Null };
                match (&*self.type_, first) {
                    ("date", value) => duration::age(value.as_str(), now).into(),
                    ("string", Value::String(_)) if found.len() == 1 => (*first).clone(),
                    ("string", _) if found.len() > 1 => {
                        let texts: Vec<String> = found.iter().map(|v| plain(v)).collect();
                        texts.join(",").into()
                    }
                    ("string", value) => plain(value).into(),
                    ("integer" | "number", Value::Number(_)) | ("boolean", Value::Bool(_)) => (*first).clone(),
                    _ => Value::Null,
                }
            }
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// How a cell is computed.
#[derive(Clone, Debug)]
pub enum Cell {
    /// What a path leads to.
    Path(JsonPath),
    /// By code, for what kubectl users know from built-in kinds.
    Call(fn(&Object, Timestamp) -> Value),
}

/// A field `fieldSelector` may name.
#[derive(Clone, Debug)]
pub struct SelectableField {
    /// As in the query: `spec.nodeName`.
    pub name: Cow<'static, str>,
    /// Where it is.
    pub path: JsonPath,
    /// What an absent field reads as: `0` and `false` where Kubernetes prints the zero value.
    pub default: &'static str,
}

/// The schema of a kind: shared, made on first use for built-ins.
#[derive(Clone, Debug)]
pub enum SchemaRef {
    /// By definition name: `io.k8s.api.apps.v1.Deployment`.
    Builtin(&'static str),
    /// Of a custom resource.
    Custom(Arc<Schema>),
}

impl SchemaRef {
    /// The definition name OpenAPI refers to, for built-ins.
    pub fn definition(&self) -> Option<&'static str> {
        match self {
            SchemaRef::Builtin(name) => Some(name),
            SchemaRef::Custom(_) => None,
        }
    }
}

impl Deref for SchemaRef {
    type Target = Schema;
    fn deref(&self) -> &Schema {
        match self {
            // Holds for every row: the test `every_row_has_a_schema_and_a_name_of_its_own` walks them all.
            SchemaRef::Builtin(name) => schema::definition(name).expect("a built-in kind has a definition"),
            SchemaRef::Custom(schema) => schema,
        }
    }
}

/// Where a kind is stored. Two rows with the same `group` and `plural` here are one stored kind in
/// two versions.
#[derive(Clone, Debug)]
pub struct Storage {
    /// The group of the stored kind.
    pub group: Cow<'static, str>,
    /// The plural of the stored kind.
    pub plural: Cow<'static, str>,
    /// Group and version objects are stored in; `None` for this row's own.
    pub api_version: Option<Cow<'static, str>>,
    /// How to get there and back; `None` when nothing is to be done, or `webhook` does it.
    pub convert: Option<Convert>,
    /// Who converts custom resources whose versions are more than names ([`crate::conversion`]).
    pub webhook: Option<Arc<ConversionWebhook>>,
}

/// How objects get from one version to another; total both ways.
#[derive(Clone, Debug)]
pub enum Convert {
    /// By code.
    Functions {
        /// From this version to the stored one.
        to_storage: fn(Object) -> Object,
        /// From the stored version to this one.
        from_storage: fn(Object) -> Object,
    },
    /// Only the version's name differs: custom resources with conversion strategy `None`.
    ApiVersion {
        /// Group and version stored.
        stored: String,
        /// Group and version of this row.
        served: String,
    },
}

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A new object.
    Create,
    /// The object itself changes.
    Update,
    /// Only `/status` changes.
    UpdateStatus,
    /// It goes.
    Delete,
}

/// What differs between kinds.
pub trait Strategy: Send + Sync {
    /// Fills in what the user left out. Idempotent.
    fn default(&self, _object: &mut Object) {}

    /// Makes a decoded object fit to be stored: generation, status reset, subresource isolation.
    fn prepare(&self, op: Op, new: &mut Object, old: Option<&Object>) {
        rules::prepare(op, new, old, true, true);
    }

    /// What is wrong with it.
    fn validate(&self, op: Op, new: &Object, old: Option<&Object>) -> FieldErrors;

    /// What the user should know though it is accepted (`Warning` headers).
    fn warnings(&self, _new: &Object) -> Vec<String> {
        Vec::new()
    }

    /// What the core's allocators must hand out or take back in this write.
    fn allocate(&self, _op: Op, _new: &Object, _old: Option<&Object>) -> Vec<Allocation> {
        Vec::new()
    }

    /// Whether a delete waits, and how long.
    fn graceful(&self, _object: &Object, _requested: Option<i64>) -> Graceful {
        Graceful::Now
    }

    /// What Proa does not do yet: refused at admission, by name.
    fn unsupported(&self, _new: &Object) -> FieldErrors {
        Vec::new()
    }
}

/// Whether a delete waits for someone to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Graceful {
    /// Gone at once (finalizers aside).
    Now,
    /// `deletionTimestamp` is set this many seconds ahead; the node's agent deletes it for good.
    After(i64),
}

/// Something the core's allocators do inside a Service's write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// A cluster IP into `spec.clusterIPs[index]` (and `spec.clusterIP` for index 0).
    ClusterIp {
        /// The place in `spec.clusterIPs`.
        index: usize,
        /// The address the user asked for; `None`: any.
        requested: Option<String>,
        /// An IPv6 address is wanted.
        ipv6: bool,
    },
    /// A node port into `spec.ports[index].nodePort`.
    NodePort {
        /// The place in `spec.ports`.
        index: usize,
        /// The port the user asked for; `None`: any.
        requested: Option<u16>,
    },
    /// A node port into `spec.healthCheckNodePort`.
    HealthCheckNodePort {
        /// The port the user asked for; `None`: any.
        requested: Option<u16>,
    },
    /// An address the object no longer holds.
    ReleaseClusterIp(String),
    /// A node port the object no longer holds.
    ReleaseNodePort(u16),
}
