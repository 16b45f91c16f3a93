//! Kubernetes' protobuf bodies, read into the JSON they stand for.
//!
//! kubectl's `create` commands (1.33) and Go operators send built-in kinds this way. Owns the walk over the
//! wire format (protobuf encoding guide) by a table of field numbers; answers are never protobuf, which
//! those clients accept. Total: bad input is an error, never a panic, and nesting is bounded.

use std::collections::HashMap;
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// What the body of every such request starts with.
pub const MAGIC: &[u8] = b"k8s\0";

/// How deep messages may nest.
const DEPTH: usize = 64;

/// Why a body was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// It does not start as Kubernetes' protobuf does, or ends in the middle.
    #[error("the body is not a Kubernetes protobuf object")]
    Malformed,
    /// It nests too deeply.
    #[error("the body nests too deeply")]
    TooDeep,
    /// Its kind is not one we have a table of fields for.
    #[error("{0} cannot be sent as protobuf")]
    UnknownKind(String),
}

use ProtobufError::Malformed;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    One,
    Many,
    Map,
}

struct Field {
    label: Label,
    kind: &'static str,
    name: &'static str,
}

type Messages = HashMap<&'static str, HashMap<u64, Field>>;

/// The table, read once when the first protobuf body comes.
fn messages() -> &'static Messages {
    static MESSAGES: OnceLock<Messages> = OnceLock::new();
    MESSAGES.get_or_init(|| {
        let mut messages = Messages::new();
        let mut current = "";
        for line in include_str!("fields.txt").lines().filter(|line| !line.starts_with('#')) {
            let Some(field) = line.strip_prefix(' ') else {
                current = line;
                messages.entry(current).or_default();
                continue;
            };
            let mut parts = field.split(' ');
            let (Some(number), Some(label), Some(kind), Some(name)) =
                (parts.next(), parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            let label = match label {
                "r" => Label::Many,
                "m" => Label::Map,
                _ => Label::One,
            };
            if let Ok(number) = number.parse() {
                messages.entry(current).or_default().insert(number, Field { label, kind, name });
            }
        }
        messages
    })
}

/// Reads a body: the object as JSON, `apiVersion` and `kind` included.
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let unknown = message("runtime.Unknown", body.strip_prefix(MAGIC).ok_or(Malformed)?, DEPTH)?;
    let text = |pointer: &str| unknown.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("/typeMeta/apiVersion"), text("/typeMeta/kind"));
    let raw = STANDARD.decode(text("/raw")).map_err(|_| Malformed)?;
    let name =
        message_name(&api_version, &kind).ok_or_else(|| ProtobufError::UnknownKind(format!("{api_version} {kind}")))?;
    let mut object = message(name, &raw, DEPTH)?;
    object["apiVersion"] = api_version.into();
    object["kind"] = kind.into();
    Ok(object)
}

/// `apps/v1` and `Deployment` are `apps.v1.Deployment`; options are the same in every group.
fn message_name(api_version: &str, kind: &str) -> Option<&'static str> {
    let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
    let group = group.split('.').next().unwrap_or_default();
    let own = format!("{group}.{version}.{kind}");
    let meta = format!("meta.v1.{kind}");
    let find = |name: &str| messages().get_key_value(name).map(|(name, _)| *name);
    if kind == "DeleteOptions" { find(&meta) } else { find(&own).or_else(|| find(&meta)) }
}

enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Malformed)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], ProtobufError> {
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn little_endian(&mut self, length: u64) -> Result<u64, ProtobufError> {
        Ok(self.take(length)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, ProtobufError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let wire = match key & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Number(self.little_endian(8)?),
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Number(self.little_endian(4)?),
            _ => return Err(Malformed),
        };
        Ok(Some((key >> 3, wire)))
    }
}

fn message(name: &str, bytes: &[u8], depth: usize) -> Result<Value, ProtobufError> {
    let depth = depth.checked_sub(1).ok_or(ProtobufError::TooDeep)?;
    let fields = messages().get(name).ok_or_else(|| ProtobufError::UnknownKind(name.to_owned()))?;
    let mut object = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        // Fields of newer versions are skipped, as unknown JSON fields are.
        let Some(field) = fields.get(&number) else { continue };
        match field.label {
            Label::Map => {
                let Wire::Bytes(entry) = wire else { return Err(Malformed) };
                let (key, value) = map_entry(field.kind, entry, depth)?;
                if let Value::Object(map) = object.entry(json_name(name, field)).or_insert_with(|| json!({})) {
                    map.insert(key, value);
                }
            }
            Label::Many => {
                let item = value(field.kind, wire, depth)?;
                if let Value::Array(list) = object.entry(json_name(name, field)).or_insert_with(|| json!([])) {
                    list.push(item);
                }
            }
            Label::One => {
                let item = value(field.kind, wire, depth)?;
                if inline(name, field) {
                    if let Value::Object(inner) = item {
                        object.extend(inner);
                    }
                } else if !unset(field, &item) {
                    object.insert(json_name(name, field), item);
                }
            }
        }
    }
    Ok(special(name, object))
}

fn map_entry(kind: &str, bytes: &[u8], depth: usize) -> Result<(String, Value), ProtobufError> {
    let mut reader = Reader(bytes);
    let (mut key, mut found) = (String::new(), None);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => key = text(bytes)?,
            (2, wire) => found = Some(value(kind, wire, depth)?),
            _ => {}
        }
    }
    let found = found.unwrap_or_else(|| if matches!(kind, "string" | "bytes") { Value::from("") } else { json!({}) });
    Ok((key, found))
}

fn text(bytes: &[u8]) -> Result<String, ProtobufError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed)
}

fn value(kind: &str, wire: Wire<'_>, depth: usize) -> Result<Value, ProtobufError> {
    Ok(match (kind, wire) {
        ("string", Wire::Bytes(bytes)) => text(bytes)?.into(),
        ("bytes", Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        ("bool", Wire::Number(number)) => (number != 0).into(),
        // Negative numbers come as their 64-bit two's complement.
        ("int32" | "int64", Wire::Number(number)) => (number as i64).into(),
        ("uint32" | "uint64", Wire::Number(number)) => number.into(),
        ("double", Wire::Number(number)) => f64::from_bits(number).into(),
        (_, Wire::Bytes(bytes)) => message(kind, bytes, depth)?,
        _ => return Err(Malformed),
    })
}

/// Messages that are not objects in JSON.
fn special(name: &str, object: Map<String, Value>) -> Value {
    let number = |field: &str| object.get(field).and_then(Value::as_i64).unwrap_or(0);
    let bytes = |field: &str| object.get(field).and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
    match name {
        "meta.v1.Time" | "meta.v1.MicroTime" | "meta.v1.Timestamp" => {
            if object.is_empty() {
                return Value::Null;
            }
            let nanos = i32::try_from(number("nanos")).unwrap_or(0);
            let Ok(time) = Timestamp::new(number("seconds"), nanos) else { return Value::Null };
            let format = if name == "meta.v1.Time" { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S.%6fZ" };
            time.strftime(format).to_string().into()
        }
        "api.resource.Quantity" | "api.resource.QuantityValue" => {
            object.get("string").cloned().unwrap_or_else(|| "0".into())
        }
        "util.intstr.IntOrString" => {
            if number("type") == 1 {
                object.get("strVal").cloned().unwrap_or_else(|| "".into())
            } else {
                number("intVal").into()
            }
        }
        "meta.v1.FieldsV1" => {
            bytes("Raw").and_then(|raw| serde_json::from_slice(&raw).ok()).unwrap_or_else(|| json!({}))
        }
        "runtime.RawExtension" => bytes("raw").and_then(|raw| serde_json::from_slice(&raw).ok()).unwrap_or(Value::Null),
        "meta.v1.Duration" => format!("{}s", number("duration") / 1_000_000_000).into(),
        _ if name.ends_with(".ExtraValue") || name == "meta.v1.Verbs" => {
            object.get("items").cloned().unwrap_or_else(|| json!([]))
        }
        _ => Value::Object(object),
    }
}

/// Fields whose message is a part of the outer object in JSON (Go's embedded structs).
fn inline(message: &str, field: &Field) -> bool {
    match field.name {
        "volumeSource" | "persistentVolumeSource" | "ephemeralContainerCommon" => true,
        "ingressRuleValue" | "deviceConfiguration" | "ruleWithOperations" => true,
        "rule" => message.ends_with(".RuleWithOperations"),
        "handler" => message == "core.v1.Probe",
        "localObjectReference" => message.starts_with("core.v1."),
        _ => false,
    }
}

/// The field's name in JSON, where it is not the same.
fn json_name(message: &str, field: &Field) -> String {
    match (message, field.name) {
        ("meta.v1.FieldsV1" | "core.v1.DaemonEndpoint", name) => name.to_owned(),
        (_, "uID") => "uid".to_owned(),
        (_, "aPIGroup") => "apiGroup".to_owned(),
        // Go's own names, where the authors wrote none for protobuf.
        (_, name) if name.starts_with(|first: char| first.is_ascii_uppercase()) => {
            name.chars().enumerate().map(|(at, c)| if at == 0 { c.to_ascii_lowercase() } else { c }).collect()
        }
        (_, name) => name.strip_prefix('_').unwrap_or(name).to_owned(),
    }
}

/// Go writes strings, numbers and flags that were never set as zero; those say nothing. Where zero can be
/// meant, it stays.
fn unset(field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty() && !matches!(field.name, "storageClassName" | "string" | "strVal"),
        Value::Number(number) => {
            number.as_i64() == Some(0)
                && matches!(
                    field.name,
                    "hostPort"
                        | "nodePort"
                        | "healthCheckNodePort"
                        | "generation"
                        | "observedGeneration"
                        | "minReadySeconds"
                        | "initialDelaySeconds"
                        | "timeoutSeconds"
                        | "periodSeconds"
                        | "successThreshold"
                        | "failureThreshold"
                        | "expirationSeconds"
                        | "count"
                        | "restartCount"
                        | "limit"
                )
        }
        Value::Bool(false) => matches!(
            field.name,
            "hostNetwork"
                | "hostPID"
                | "hostIPC"
                | "readOnly"
                | "paused"
                | "stdin"
                | "stdinOnce"
                | "tty"
                | "publishNotReadyAddresses"
                | "unschedulable"
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [bytes_field(1, api_version.as_bytes()), bytes_field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), bytes_field(1, &meta), bytes_field(2, raw)].concat()
    }

    #[test]
    fn a_config_map_is_read_as_its_json() {
        let metadata = bytes_field(1, b"web");
        let entry = [bytes_field(1, b"a"), bytes_field(2, b"b")].concat();
        let raw = [bytes_field(1, &metadata), bytes_field(2, &entry)].concat();
        let object = decode(&envelope("v1", "ConfigMap", &raw)).unwrap();
        assert_eq!(
            object,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"}, "data": {"a": "b"}})
        );
    }

    /// The schema of a message; nothing for those that are no objects in JSON.
    fn schema_of(name: &str) -> Option<&'static proa_apimachinery::schema::Schema> {
        let definition = match name.strip_prefix("meta.") {
            Some(name) => format!("io.k8s.apimachinery.pkg.apis.meta.{name}"),
            None => format!("io.k8s.api.{name}"),
        };
        let schema = proa_apimachinery::schema::definition(&definition)?.resolved();
        (!schema.properties.is_empty()).then_some(schema)
    }

    #[test]
    fn every_field_has_the_name_it_has_in_json() {
        let mut wrong = Vec::new();
        for (name, fields) in messages() {
            let Some(schema) = schema_of(name) else { continue };
            for field in fields.values().filter(|field| !inline(name, field)) {
                if schema.property(&json_name(name, field)).is_none() {
                    wrong.push(format!("{name}.{}", field.name));
                }
            }
        }
        wrong.sort();
        assert_eq!(wrong, Vec::<String>::new());
    }

    #[test]
    fn kinds_without_a_table_are_refused_by_name() {
        assert_eq!(
            decode(&envelope("example.com/v1", "Thing", b"")),
            Err(ProtobufError::UnknownKind("example.com/v1 Thing".into()))
        );
        assert_eq!(decode(b"{}"), Err(Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&[MAGIC.to_vec(), body.clone()].concat());
            let _ = message("core.v1.Pod", &body, DEPTH);
        }
    }
}
