//! Owns the one schema type for built-in kinds and custom resources: what fields an object may have,
//! of which types, how lists and maps merge, which defaults apply, and how that is published as OpenAPI.
//!
//! Built-in definitions are made lazily from k8s-openapi's generated schemas, written down in [`definitions`], overlaid
//! with the table of facts those leave out (`facts.tsv`: list types, map keys, patch strategies, defaults). Custom resources
//! bring their own ([`crd`]). Never knows a kind by name beyond its definition.

mod builtin;
mod canonical;
mod cel;
mod cel_values;
mod check;
mod convert;
pub mod crd;
mod defaulting;
mod definitions;
mod facts;
mod formats;
mod openapi;
mod structural;
mod validate;

use std::sync::{Arc, OnceLock};

use indexmap::IndexMap;
use serde_json::Value;

pub use builtin::{BuiltinKind, builtin_kinds, definition, list_definition};
pub use check::Checked;
pub(crate) use check::Trail;
pub(crate) use defaulting::element_key;
pub use openapi::openapi_components;

/// The JSON types Kubernetes tells apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Type {
    /// Anything goes.
    #[default]
    Any,
    /// A map: a struct when it has properties.
    Object,
    /// A list.
    Array,
    /// A string.
    String,
    /// A whole number.
    Integer,
    /// Any number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// An integer or a string (`x-kubernetes-int-or-string`).
    IntOrString,
    /// A `resource.Quantity`: a string or a number.
    Quantity,
}

impl Type {
    /// The name JSON Schema uses.
    pub fn name(self) -> &'static str {
        match self {
            Type::Any => "any",
            Type::Object => "object",
            Type::Array => "array",
            Type::String | Type::Quantity => "string",
            Type::Integer => "integer",
            Type::Number => "number",
            Type::Boolean => "boolean",
            Type::IntOrString => "integer,string",
        }
    }
}

/// How the elements of a list are told apart (KEP-555, `x-kubernetes-list-type`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    /// The list is one value.
    #[default]
    Atomic,
    /// Each scalar element is its own value.
    Set,
    /// Each element is an object known by these fields.
    Map(Vec<Box<str>>),
}

/// What strategic merge patch does with a field (`x-kubernetes-patch-strategy`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// Lists merge instead of being replaced.
    pub merge: bool,
    /// Maps are replaced instead of being merged.
    pub replace: bool,
    /// The patch lists the fields to keep (`$retainKeys`).
    pub retain_keys: bool,
    /// The field by which elements of a merged list are matched.
    pub merge_key: Option<Box<str>>,
}

/// What keys a map may have beyond its named properties.
#[derive(Debug, Default)]
pub enum Additional {
    /// None.
    #[default]
    Nothing,
    /// Any key, any value.
    Anything,
    /// Any key, values of this schema.
    Schema(Box<Schema>),
}

/// One node of a schema.
#[derive(Debug, Default)]
pub struct Schema {
    /// Type of the value.
    pub kind: Type,
    /// May be null (custom resources only; in built-in kinds null means absent everywhere).
    pub nullable: bool,
    /// Named fields.
    pub properties: IndexMap<Box<str>, Schema>,
    /// Fields that must be given.
    pub required: Vec<Box<str>>,
    /// Elements of a list.
    pub items: Option<Box<Schema>>,
    /// Unnamed fields.
    pub additional: Additional,
    /// JSON Schema format (`int32`, `date-time`, `byte` …).
    pub format: Option<Box<str>>,
    /// The value an absent field gets.
    pub default: Option<Value>,
    /// How a list merges.
    pub list_type: ListType,
    /// The map is one value, owned as a whole.
    pub atomic_map: bool,
    /// What strategic merge patch does.
    pub patch: Option<Box<Patch>>,
    /// Unknown fields are kept at this level.
    pub preserve_unknown: bool,
    /// The value is a whole API object with apiVersion, kind and metadata.
    pub embedded_resource: bool,
    /// Value validations (custom resources only).
    pub(crate) rules: Option<Box<validate::Rules>>,
    /// What a custom resource's author asks of metadata.name (on the root only).
    pub(crate) metadata_rules: Option<Box<Schema>>,
    /// The built-in definition this node stands for.
    pub(crate) reference: Option<Reference>,
    /// Definition name of a built-in (on the definition itself).
    pub(crate) name: Option<Box<str>>,
    /// What a custom resource's author wrote, served as OpenAPI (on the root only).
    pub(crate) source: Option<Arc<Value>>,
}

/// A link to a built-in definition, looked up on first use: definitions may contain themselves.
#[derive(Debug)]
pub(crate) struct Reference {
    pub(crate) name: Box<str>,
    target: OnceLock<Option<&'static Schema>>,
}

impl Reference {
    pub(crate) fn new(name: &str) -> Reference {
        Reference { name: name.into(), target: OnceLock::new() }
    }

    fn target(&self) -> Option<&'static Schema> {
        *self.target.get_or_init(|| definition(&self.name))
    }
}

impl Schema {
    pub(crate) fn blank() -> Schema {
        <Schema as Default>::default()
    }

    /// A schema that allows anything.
    pub fn any() -> &'static Schema {
        static ANY: OnceLock<Schema> = OnceLock::new();
        ANY.get_or_init(|| Schema { preserve_unknown: true, additional: Additional::Anything, ..Schema::blank() })
    }

    /// The node itself, or the definition it stands for.
    pub fn resolved(&self) -> &Schema {
        match &self.reference {
            Some(reference) => reference.target().unwrap_or_else(|| Schema::any()),
            None => self,
        }
    }

    /// Name of the built-in definition (`io.k8s.api.core.v1.Pod`) this is or stands for.
    pub fn definition_name(&self) -> Option<&str> {
        self.name.as_deref().or(self.reference.as_ref().map(|r| &*r.name))
    }

    /// The schema of a field: a named property, or that of additional ones. `None`: no such field.
    pub fn field(&self, name: &str) -> Option<&Schema> {
        let schema = self.resolved();
        if let Some(property) = schema.properties.get(name) {
            return Some(property);
        }
        match &schema.additional {
            Additional::Schema(schema) => Some(schema),
            Additional::Anything => Some(Schema::any()),
            Additional::Nothing if schema.preserve_unknown || schema.kind == Type::Any => Some(Schema::any()),
            Additional::Nothing => None,
        }
    }

    /// Whether filling in defaults can change a value anywhere below.
    pub fn has_defaults(&self) -> bool {
        // Built-in definitions may contain themselves; what defaults they have is their strategy's to apply.
        if self.reference.is_some() {
            return false;
        }
        let additional = match &self.additional {
            Additional::Schema(below) => below.has_defaults(),
            Additional::Nothing | Additional::Anything => false,
        };
        self.default.is_some()
            || additional
            || self.items.as_deref().is_some_and(Schema::has_defaults)
            || self.properties.values().any(Schema::has_defaults)
    }

    /// A named property.
    pub fn property(&self, name: &str) -> Option<&Schema> {
        self.resolved().properties.get(name)
    }

    /// The schema of list elements.
    pub fn element(&self) -> &Schema {
        self.resolved().items.as_deref().unwrap_or_else(|| Schema::any())
    }

    /// How the list merges.
    pub fn list_type(&self) -> &ListType {
        match &self.list_type {
            ListType::Atomic => &self.resolved().list_type,
            known => known,
        }
    }

    /// Whether the map is owned as a whole.
    pub fn is_atomic_map(&self) -> bool {
        self.atomic_map || self.resolved().atomic_map
    }

    /// Whether nothing is known about the value: server-side apply then deduces structure from it.
    pub fn is_untyped(&self) -> bool {
        let schema = self.resolved();
        schema.kind == Type::Any && schema.properties.is_empty() && schema.items.is_none()
    }

    /// What strategic merge patch does with this field.
    pub fn patch(&self) -> Option<&Patch> {
        self.patch.as_deref().or(self.resolved().patch.as_deref())
    }

    /// The schema a custom resource's author wrote.
    pub fn source(&self) -> Option<&Arc<Value>> {
        self.source.as_ref()
    }
}
