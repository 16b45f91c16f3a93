//! A message to JSON: what Go's `encoding/json` would write for the struct the message was written from.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::ProtobufError::{self, Malformed};
use super::table::{Field, Kind, Label, Message};
use super::wire::{Reader, Wire};

/// How deep messages may nest.
pub(super) const DEPTH: usize = 128;

/// What came of a field.
#[derive(Default)]
enum Slot {
    #[default]
    Nothing,
    One(Value),
    Many(Vec<Value>),
    Map(Map<String, Value>),
}

/// A message as JSON.
pub(super) fn message(message: &Message, bytes: &[u8], depth: usize) -> Result<Value, ProtobufError> {
    let depth = depth.checked_sub(1).ok_or(ProtobufError::TooDeep)?;
    if let Some(special) = message.special {
        return special.decode(message, bytes, depth);
    }
    let mut slots: Vec<Slot> = message.fields.iter().map(|_| Slot::Nothing).collect();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        // Fields of newer versions are skipped, as unknown JSON fields are.
        let Some(at) = message.field(number) else { continue };
        fill(&mut slots[at], &message.fields[at], wire, depth)?;
    }
    let mut object = Map::new();
    for (field, slot) in message.fields.iter().zip(slots) {
        put(&mut object, field, slot, depth)?;
    }
    Ok(Value::Object(object))
}

fn fill(slot: &mut Slot, field: &Field, wire: Wire<'_>, depth: usize) -> Result<(), ProtobufError> {
    match (field.label, wire) {
        (Label::Map, Wire::Bytes(entry)) => {
            let (key, value) = map_entry(field.kind, entry, depth)?;
            if let Slot::Map(map) = slot {
                map.insert(key, value);
            } else {
                *slot = Slot::Map(Map::from_iter([(key, value)]));
            }
        }
        (Label::Map, Wire::Number(_)) => return Err(Malformed),
        (Label::Many, wire) => {
            if !matches!(slot, Slot::Many(_)) {
                *slot = Slot::Many(Vec::new());
            }
            let Slot::Many(list) = slot else { return Ok(()) };
            match (field.kind, wire) {
                // Numbers may come packed; readers of proto2 take both forms.
                (Kind::Bool | Kind::Int | Kind::Double, Wire::Bytes(packed)) => {
                    let mut reader = Reader(packed);
                    while !reader.0.is_empty() {
                        let number =
                            if field.kind == Kind::Double { reader.little_endian(8)? } else { reader.varint()? };
                        list.push(value(field.kind, Wire::Number(number), depth)?);
                    }
                }
                (kind, wire) => list.push(value(kind, wire, depth)?),
            }
        }
        (Label::Value | Label::Pointer, wire) => *slot = Slot::One(value(field.kind, wire, depth)?),
    }
    Ok(())
}

/// Adds a field to its object, or leaves it out, by the rules of its tags.
fn put(object: &mut Map<String, Value>, field: &Field, slot: Slot, depth: usize) -> Result<(), ProtobufError> {
    let value = match slot {
        Slot::Many(list) => Value::Array(list),
        Slot::Map(map) => Value::Object(map),
        Slot::One(value) => value,
        Slot::Nothing if field.omit_empty && !always(field) => return Ok(()),
        Slot::Nothing => match field.label {
            Label::Value => zero(field.kind, depth)?,
            Label::Pointer | Label::Many | Label::Map => Value::Null,
        },
    };
    let says_nothing = match field.label {
        Label::Value => (field.omit_empty && !always(field) || field.omit_zero) && is_zero(field.kind, &value),
        // `omitempty` looks at a slice's length, at a pointer only for nil.
        Label::Pointer => field.omit_empty && is_slice(field.kind) && is_empty(&value),
        Label::Many | Label::Map => false,
    };
    match value {
        _ if says_nothing => {}
        Value::Object(inner) if field.inline => object.extend(inner),
        value => drop(object.insert(field.name.to_owned(), value)),
    }
    Ok(())
}

/// A struct is never empty to `omitempty`.
fn always(field: &Field) -> bool {
    field.label == Label::Value && matches!(field.kind, Kind::Message(_))
}

fn is_slice(kind: Kind) -> bool {
    match kind {
        Kind::Bytes => true,
        Kind::Message(inner) => Message::at(inner).special == Some(super::special::Special::Strings),
        _ => false,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

fn is_zero(kind: Kind, value: &Value) -> bool {
    match (kind, value) {
        (_, Value::Null | Value::Bool(false)) => true,
        (_, Value::Number(number)) => number.as_f64() == Some(0.0),
        (Kind::String | Kind::Bytes, value) => is_empty(value),
        _ => false,
    }
}

fn zero(kind: Kind, depth: usize) -> Result<Value, ProtobufError> {
    match kind {
        Kind::Message(inner) => message(Message::at(inner), &[], depth),
        Kind::String | Kind::Bytes => Ok("".into()),
        Kind::Bool => Ok(false.into()),
        Kind::Int | Kind::Double => Ok(0.into()),
    }
}

fn map_entry(kind: Kind, bytes: &[u8], depth: usize) -> Result<(String, Value), ProtobufError> {
    let mut reader = Reader(bytes);
    let (mut key, mut found) = (String::new(), None);
    while let Some((number, wire)) = reader.field()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => key = utf8(bytes)?.to_owned(),
            (2, wire) => found = Some(value(kind, wire, depth)?),
            _ => {}
        }
    }
    let nothing = if kind == Kind::Bytes { Ok(Value::Null) } else { zero(kind, depth) };
    Ok((key, found.map_or(nothing, Ok)?))
}

fn utf8(bytes: &[u8]) -> Result<&str, ProtobufError> {
    std::str::from_utf8(bytes).map_err(|_| Malformed)
}

/// A string.
pub(super) fn text(bytes: &[u8]) -> Result<Value, ProtobufError> {
    utf8(bytes).map(Value::from)
}

fn value(kind: Kind, wire: Wire<'_>, depth: usize) -> Result<Value, ProtobufError> {
    Ok(match (kind, wire) {
        (Kind::String, Wire::Bytes(bytes)) => text(bytes)?,
        (Kind::Bytes, Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Kind::Bool, Wire::Number(number)) => (number != 0).into(),
        // Negative numbers come as their 64-bit two's complement.
        (Kind::Int, Wire::Number(number)) => (number as i64).into(),
        (Kind::Double, Wire::Number(bits)) => {
            let number = f64::from_bits(bits);
            // Go writes a whole number without a point.
            if number.fract() == 0.0 && number.abs() < 1e15 { (number as i64).into() } else { number.into() }
        }
        (Kind::Message(inner), Wire::Bytes(bytes)) => message(Message::at(inner), bytes, depth)?,
        _ => return Err(Malformed),
    })
}
