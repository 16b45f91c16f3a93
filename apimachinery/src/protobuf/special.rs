//! The messages that are no objects in JSON: their Go types write both forms by hand.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::encode::content;
use super::table::{Kind, Message};
use super::wire::{Reader, Wire, put_bytes, put_number};
use super::{ProtobufError, decode};
use crate::duration;
use crate::quantity::Quantity;

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// `metav1.Time`: seconds.
    Time,
    /// `metav1.MicroTime`: microseconds.
    MicroTime,
    /// `metav1.Duration`: Go's own words for it.
    Duration,
    /// `resource.Quantity`.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// `runtime.RawExtension`, `metav1.FieldsV1`, `apiextensions.JSON`: any JSON, kept as it was written.
    Raw,
    /// A slice of strings that is a type of its own.
    Strings,
    /// `apiextensions.JSONSchemaPropsOrArray`: one schema or several.
    SchemaOrSchemas,
    /// `apiextensions.JSONSchemaPropsOrBool`.
    SchemaOrBool,
    /// `apiextensions.JSONSchemaPropsOrStringArray`.
    SchemaOrStrings,
}

/// What Go's `time.Time{}` is: absent.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

impl Special {
    pub(super) fn of(message: &str) -> Option<Special> {
        let extensions = message.strip_prefix("apiextensions.").and_then(|rest| rest.split_once('.'));
        Some(match (message, extensions) {
            ("meta.v1.Time", _) => Special::Time,
            ("meta.v1.MicroTime", _) => Special::MicroTime,
            ("meta.v1.Duration", _) => Special::Duration,
            ("quantity.Quantity" | "quantity.QuantityValue", _) => Special::Quantity,
            ("intstr.IntOrString", _) => Special::IntOrString,
            ("meta.v1.FieldsV1" | "runtime.RawExtension", _) | (_, Some((_, "JSON"))) => Special::Raw,
            (_, Some((_, "JSONSchemaPropsOrArray"))) => Special::SchemaOrSchemas,
            (_, Some((_, "JSONSchemaPropsOrBool"))) => Special::SchemaOrBool,
            (_, Some((_, "JSONSchemaPropsOrStringArray"))) => Special::SchemaOrStrings,
            (name, _) if name == "meta.v1.Verbs" || name.ends_with(".ExtraValue") => Special::Strings,
            _ => return None,
        })
    }

    /// What is written of one that was never set.
    pub(super) fn zero(self) -> &'static [u8] {
        match self {
            Special::Quantity => b"\x0a\x010",
            Special::IntOrString => b"\x08\0\x10\0\x1a\0",
            Special::Duration | Special::SchemaOrBool => b"\x08\0",
            _ => b"",
        }
    }

    /// Appends one to `out`, given its JSON, which is not null. `message` is the one this is about.
    pub(super) fn encode(self, message: &Message, json: &str, out: &mut Vec<u8>) -> Result<(), ProtobufError> {
        match self {
            Special::Time | Special::MicroTime => {
                let text = text(json)?;
                if text == ZERO_TIME {
                    return Ok(());
                }
                let time: Timestamp = text.parse().map_err(|_| ProtobufError::Json(format!("{json} is no time")))?;
                // jiff counts away from 1970; Go's seconds are rounded down and its nanoseconds never negative.
                let seconds = time.as_nanosecond().div_euclid(1_000_000_000) as i64;
                let nanos = time.as_nanosecond().rem_euclid(1_000_000_000) as u64;
                put_number(out, 1, seconds as u64);
                put_number(out, 2, if self == Special::Time { 0 } else { nanos / 1000 * 1000 });
            }
            Special::Duration => {
                let text = text(json)?;
                let (negative, rest) = text.strip_prefix('-').map_or((false, &*text), |rest| (true, rest));
                let nanos = duration::parse_go(rest).map_err(|error| ProtobufError::Json(error.to_string()))?;
                let nanos = i64::try_from(nanos.as_nanos()).unwrap_or(i64::MAX);
                put_number(out, 1, if negative { -nanos } else { nanos } as u64);
            }
            Special::Quantity => {
                let text = if json.starts_with('"') { text(json)? } else { json.into() };
                put_bytes(out, 1, quantity(&text)?.as_bytes());
            }
            Special::IntOrString if json.starts_with('"') => {
                put_number(out, 1, 1);
                put_number(out, 2, 0);
                put_bytes(out, 3, text(json)?.as_bytes());
            }
            Special::IntOrString => {
                put_number(out, 1, 0);
                put_number(out, 2, parse::<i32>(json)? as u64);
                put_bytes(out, 3, b"");
            }
            Special::Raw => put_bytes(out, 1, json.as_bytes()),
            Special::Strings => strings(out, 1, json)?,
            Special::SchemaOrSchemas if json.starts_with('[') => {
                for schema in parse::<Vec<&RawValue>>(json)? {
                    put_bytes(out, 2, &content(schema_of(message)?, schema.get().as_bytes())?);
                }
            }
            Special::SchemaOrStrings if json.starts_with('[') => strings(out, 2, json)?,
            Special::SchemaOrSchemas | Special::SchemaOrStrings => {
                put_bytes(out, 1, &content(schema_of(message)?, json.as_bytes())?);
            }
            Special::SchemaOrBool if json.starts_with('{') => {
                put_number(out, 1, 1);
                put_bytes(out, 2, &content(schema_of(message)?, json.as_bytes())?);
            }
            Special::SchemaOrBool => put_number(out, 1, u64::from(parse::<bool>(json)?)),
        }
        Ok(())
    }

    /// One as JSON.
    pub(super) fn decode(self, message: &Message, bytes: &[u8], depth: usize) -> Result<Value, ProtobufError> {
        let mut numbers = [0u64; 3];
        let (mut first, mut many) = (None, Vec::new());
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.field()? {
            match (number, wire) {
                (1..=2, Wire::Number(value)) => numbers[number as usize] = value,
                (1, Wire::Bytes(bytes)) if self == Special::Strings => many.push(bytes),
                (1, Wire::Bytes(bytes)) => first = Some(bytes),
                (2..=3, Wire::Bytes(bytes)) => many.push(bytes),
                _ => {}
            }
        }
        let [_, one, two] = numbers;
        let schema = |bytes| decode::message(schema_of(message)?, bytes, depth);
        let list = |many: Vec<&[u8]>| many.into_iter().map(decode::text).collect::<Result<Vec<Value>, _>>();
        Ok(match self {
            Special::Time | Special::MicroTime if bytes.is_empty() => Value::Null,
            Special::Time => time(one, 0, "%Y-%m-%dT%H:%M:%SZ")?,
            Special::MicroTime => time(one, two, "%Y-%m-%dT%H:%M:%S.%6fZ")?,
            Special::Duration => duration::format_go(one as i64).into(),
            Special::Quantity => {
                let text = std::str::from_utf8(first.unwrap_or(b"0")).map_err(|_| ProtobufError::Malformed)?;
                quantity(if text.is_empty() { "0" } else { text })?.into()
            }
            Special::IntOrString if one == 1 => many.last().map_or(Ok("".into()), |bytes| decode::text(bytes))?,
            Special::IntOrString if one == 0 => Value::from(two as i64 as i32),
            Special::IntOrString => return Err(ProtobufError::Malformed),
            Special::Raw => match first {
                None | Some([]) => Value::Null,
                // An object in an object: what a watch event holds.
                Some(object) if object.starts_with(super::envelope::MAGIC) => super::decode(object)?,
                Some(json) => serde_json::from_slice(json).map_err(|error| ProtobufError::Json(error.to_string()))?,
            },
            Special::Strings => list(many)?.into(),
            Special::SchemaOrSchemas if !many.is_empty() => {
                many.into_iter().map(schema).collect::<Result<Vec<_>, _>>()?.into()
            }
            Special::SchemaOrStrings if !many.is_empty() => list(many)?.into(),
            Special::SchemaOrSchemas | Special::SchemaOrStrings => first.map_or(Ok(Value::Null), schema)?,
            Special::SchemaOrBool => many.last().map_or(Ok(Value::from(one != 0)), |bytes| schema(bytes))?,
        })
    }
}

/// A quantity as Go prints it.
fn quantity(text: &str) -> Result<String, ProtobufError> {
    Ok(Quantity::parse(text).map_err(|error| ProtobufError::Json(error.to_string()))?.to_string())
}

fn parse<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, ProtobufError> {
    serde_json::from_str(json).map_err(|error| ProtobufError::Json(error.to_string()))
}

/// A string in JSON; nearly none has anything to unescape.
fn text(json: &str) -> Result<Cow<'_, str>, ProtobufError> {
    match json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(plain) if !plain.contains('\\') => Ok(plain.into()),
        _ => parse::<String>(json).map(Cow::Owned),
    }
}

fn strings(out: &mut Vec<u8>, number: u8, json: &str) -> Result<(), ProtobufError> {
    for text in parse::<Vec<Cow<'_, str>>>(json)? {
        put_bytes(out, number, text.as_bytes());
    }
    Ok(())
}

/// The schema that one of apiextensions' unions may hold: its only field that is a message.
fn schema_of(message: &Message) -> Result<&'static Message, ProtobufError> {
    let inner = message.fields.iter().find_map(|field| match field.kind {
        Kind::Message(inner) => Some(Message::at(inner)),
        _ => None,
    });
    inner.ok_or_else(|| ProtobufError::UnknownKind(message.name.to_owned()))
}

fn time(seconds: u64, nanos: u64, format: &str) -> Result<Value, ProtobufError> {
    let nanos = i32::try_from(nanos).map_err(|_| ProtobufError::Malformed)?;
    let time = Timestamp::new(seconds as i64, nanos).map_err(|error| ProtobufError::Json(error.to_string()))?;
    Ok(time.strftime(format).to_string().into())
}
