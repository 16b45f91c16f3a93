//! Owns the types expressions have before anything is known of values (cel-spec, gradual type checking), and how they
//! are written: in the table of functions, and in messages.

use std::fmt;

use crate::schema::{self, Additional, Schema};

/// A type.
#[derive(Clone, Debug, PartialEq)]
pub enum Type<'a> {
    /// Of what is wrong already: nothing more is said about it.
    Error,
    /// Anything: only an evaluation can tell.
    Dyn,
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool,
    /// A signed integer of 64 bits.
    Int,
    /// An unsigned one.
    Uint,
    /// A floating-point number.
    Double,
    /// Text.
    String,
    /// Bytes.
    Bytes,
    /// `google.protobuf.Duration`.
    Duration,
    /// `google.protobuf.Timestamp`.
    Timestamp,
    /// A list.
    List(Box<Type<'a>>),
    /// A map.
    Map(Box<Type<'a>>, Box<Type<'a>>),
    /// A value that may not be there.
    Optional(Box<Type<'a>>),
    /// The type of types.
    Kind,
    /// A type of Kubernetes' libraries or of the request.
    Named(&'static str),
    /// What a schema describes.
    Object(ObjectType<'a>),
    /// `Object{…}` and `JSONPatch{…}`, which mutations make.
    Made(Box<str>),
    /// The variables of a policy, by name.
    Variables,
    /// Whatever it is first matched with: only in the table of functions.
    Param(usize),
}

/// A schema as a type: the same only as itself.
#[derive(Clone, Copy, Debug)]
pub struct ObjectType<'a>(pub(super) &'a Schema);

impl PartialEq for ObjectType<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl<'a> Type<'a> {
    /// A list of these.
    pub fn list(element: Type<'a>) -> Type<'a> {
        Type::List(Box::new(element))
    }

    /// A map.
    pub fn map(key: Type<'a>, value: Type<'a>) -> Type<'a> {
        Type::Map(Box::new(key), Box::new(value))
    }

    /// What values of a schema are to expressions (`k8s.io/apiserver/pkg/cel/common`, `SchemaDeclType`).
    pub fn of(schema: &'a Schema) -> Type<'a> {
        let schema = schema.resolved();
        match schema.kind {
            schema::Type::Any | schema::Type::IntOrString => Type::Dyn,
            schema::Type::Boolean => Type::Bool,
            schema::Type::Integer => Type::Int,
            schema::Type::Number => Type::Double,
            schema::Type::Quantity => Type::String,
            schema::Type::String => match schema.format.as_deref() {
                Some("date-time" | "date") => Type::Timestamp,
                Some("duration") => Type::Duration,
                Some("byte") => Type::Bytes,
                _ => Type::String,
            },
            schema::Type::Array => Type::list(Type::of(schema.element())),
            schema::Type::Object if !schema.properties.is_empty() => Type::Object(ObjectType(schema)),
            schema::Type::Object => match &schema.additional {
                Additional::Schema(value) => Type::map(Type::String, Type::of(value)),
                _ => Type::map(Type::String, Type::Dyn),
            },
        }
    }

    /// Whether nothing more can be said before it is evaluated.
    pub fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn | Type::Error)
    }

    /// Whether a value of the other type may be one of this: parts of which nothing is known may be anything.
    pub fn admits(&self, other: &Type<'_>) -> bool {
        match (self, other) {
            (Type::Dyn, _) | (_, Type::Dyn | Type::Error) => true,
            (Type::List(one), Type::List(other)) | (Type::Optional(one), Type::Optional(other)) => one.admits(other),
            (Type::Map(key, value), Type::Map(other_key, other_value)) => {
                key.admits(other_key) && value.admits(other_value)
            }
            (one, other) => one == other,
        }
    }

    /// Reads a type as the tables write it.
    pub(super) fn read(text: &'static str) -> Type<'static> {
        let text = text.trim();
        let inner = |name: &str| text.strip_prefix(name)?.strip_suffix(')');
        if let Some(element) = inner("list(") {
            return Type::list(Type::read(element));
        }
        if let Some(value) = inner("optional(") {
            return Type::Optional(Box::new(Type::read(value)));
        }
        if let Some((key, value)) = inner("map(").and_then(|both| both.split_once(',')) {
            return Type::map(Type::read(key), Type::read(value));
        }
        match text {
            "A" => Type::Param(0),
            "B" => Type::Param(1),
            "dyn" => Type::Dyn,
            "null" => Type::Null,
            "bool" => Type::Bool,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "type" => Type::Kind,
            "Duration" => Type::Duration,
            "Timestamp" => Type::Timestamp,
            named => Type::Named(named),
        }
    }
}

impl fmt::Display for Type<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Type::Error => "!error!",
            Type::Dyn => "dyn",
            Type::Null => "null_type",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Duration => "google.protobuf.Duration",
            Type::Timestamp => "google.protobuf.Timestamp",
            Type::Kind => "type",
            Type::Named(name) => name,
            Type::Object(ObjectType(schema)) => schema.definition_name().unwrap_or("object"),
            Type::Made(name) => name,
            Type::Variables => "kubernetes.variables",
            Type::Param(0) => "A",
            Type::Param(_) => "B",
            Type::List(element) => return write!(f, "list({element})"),
            Type::Map(key, value) => return write!(f, "map({key}, {value})"),
            Type::Optional(value) => return write!(f, "optional_type({value})"),
        };
        f.write_str(name)
    }
}
