//! JSON to a message, in one pass over the text.
//!
//! Fields come in the order of the JSON and leave in the order of their numbers: each is written where the last one
//! ended, and when an object is over its pieces are put in order, with what was not set in between. So an object costs
//! one copy per level it nests, and no allocation: the three buffers are kept from one object to the next.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::ProtobufError;
use super::table::{Field, Kind, Label, Message, Route};
use super::wire::{FIXED64, LENGTH, VARINT, put_bytes, put_number, put_tag, put_varint};

/// Where messages are put together.
#[derive(Default)]
pub(super) struct Encoder {
    /// Fields in the order they came in.
    out: Vec<u8>,
    /// What of `out` belongs to the objects that are being read.
    pieces: Vec<Piece>,
    /// The same for maps.
    entries: Vec<Entry>,
    /// The message that was finished last.
    done: Vec<u8>,
}

/// A field of a message that is being read: where it belongs, and where it lies.
#[derive(Clone, Copy)]
struct Piece {
    route: Route,
    start: usize,
    end: usize,
}

/// An entry of a map that is being read: its key, then the field of its value.
#[derive(Clone, Copy)]
struct Entry {
    start: usize,
    key_end: usize,
    end: usize,
}

/// A message's bytes, given its JSON.
pub(super) fn content(message: &'static Message, json: &[u8]) -> Result<Vec<u8>, ProtobufError> {
    let mut encoder = Encoder::default();
    encoder.message(message, json)?;
    Ok(encoder.done)
}

impl Encoder {
    /// A message's bytes, given its JSON, until the next is asked for.
    pub(super) fn message(&mut self, message: &'static Message, json: &[u8]) -> Result<&[u8], ProtobufError> {
        self.out.clear();
        self.pieces.clear();
        self.entries.clear();
        let mut json = serde_json::Deserializer::from_slice(json);
        let read = Object { encoder: self, message }.deserialize(&mut json);
        read.and_then(|()| json.end()).map_err(|error| ProtobufError::Json(error.to_string()))?;
        Ok(&self.done)
    }

    /// Puts the fields read since the two marks in order, into `done`.
    fn finish(&mut self, message: &Message, pieces_from: usize, out_from: usize) {
        let pieces = &mut self.pieces[pieces_from..];
        pieces.sort_unstable_by_key(|piece| (piece.route, piece.start));
        self.done.clear();
        assemble(message, pieces, 0, &self.out, &mut self.done);
        self.pieces.truncate(pieces_from);
        self.out.truncate(out_from);
    }
}

fn assemble(message: &Message, pieces: &[Piece], level: usize, out: &[u8], into: &mut Vec<u8>) {
    let mut rest = pieces;
    for field in &message.fields {
        let count = rest.iter().take_while(|piece| piece.route[level] == field.number).count();
        let (mine, after) = rest.split_at(count);
        rest = after;
        match field.kind {
            _ if mine.is_empty() => into.extend_from_slice(&field.absent),
            Kind::Message(inner) if field.inline => {
                put_tag(into, field.number, LENGTH);
                let start = into.len();
                assemble(Message::at(inner), mine, level + 1, out, into);
                let mut length = Vec::with_capacity(5);
                put_varint(&mut length, (into.len() - start) as u64);
                into.splice(start..start, length);
            }
            _ => mine.iter().for_each(|piece| into.extend_from_slice(&out[piece.start..piece.end])),
        }
    }
}

/// A whole object: reads it, and leaves its message in `done`.
struct Object<'a> {
    encoder: &'a mut Encoder,
    message: &'static Message,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object of type {}", self.message.name)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Object { encoder, message } = self;
        let (pieces_from, out_from) = (encoder.pieces.len(), encoder.out.len());
        while let Some(route) = map.next_key_seed(Name(message))? {
            // What the type does not have is left out, as Go leaves it out when it reads.
            let Some((route, field)) = route.and_then(|route| Some((route, message.follow(route)?))) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let start = encoder.out.len();
            map.next_value_seed(Member { encoder, field })?;
            let end = encoder.out.len();
            if end > start {
                encoder.pieces.push(Piece { route, start, end });
            }
        }
        encoder.finish(message, pieces_from, out_from);
        Ok(())
    }
}

/// The name of a field: where it leads.
struct Name(&'static Message);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<Route>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<Route>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.route(name))
    }
}

/// The value of a field, with its label.
struct Member<'a> {
    encoder: &'a mut Encoder,
    field: &'static Field,
}

impl<'de> DeserializeSeed<'de> for Member<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        let Field { number, kind, label, .. } = *self.field;
        match label {
            Label::Many => json.deserialize_any(Items(self)),
            Label::Map => json.deserialize_any(Entries(self)),
            Label::Value | Label::Pointer => {
                Single { encoder: self.encoder, number, kind, in_list: false }.deserialize(json)
            }
        }
    }
}

struct Items<'a>(Member<'a>);

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list in {}", self.0.field.name)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Member { encoder, field } = self.0;
        let Field { number, kind, .. } = *field;
        while seq.next_element_seed(Single { encoder, number, kind, in_list: true })?.is_some() {}
        Ok(())
    }
}

struct Entries<'a>(Member<'a>);

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a map in {}", self.0.field.name)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Member { encoder, field } = self.0;
        let (entries_from, out_from) = (encoder.entries.len(), encoder.out.len());
        let mut start = out_from;
        while map.next_key_seed(Text(&mut encoder.out))?.is_some() {
            let key_end = encoder.out.len();
            map.next_value_seed(Single { encoder, number: 2, kind: field.kind, in_list: true })?;
            let end = encoder.out.len();
            encoder.entries.push(Entry { start, key_end, end });
            start = end;
        }
        let Encoder { out, entries, done, .. } = encoder;
        let entries_here = &mut entries[entries_from..];
        // By key, as gogo-protobuf sorts them for a stable form.
        entries_here.sort_unstable_by(|a, b| out[a.start..a.key_end].cmp(&out[b.start..b.key_end]));
        done.clear();
        for entry in entries_here {
            let (key, value) = (&out[entry.start..entry.key_end], &out[entry.key_end..entry.end]);
            put_tag(done, field.number, LENGTH);
            let at = done.len();
            put_bytes(done, 1, key);
            let key_length = done.len() - at;
            done.truncate(at);
            put_varint(done, (key_length + value.len()) as u64);
            put_bytes(done, 1, key);
            done.extend_from_slice(value);
        }
        out.truncate(out_from);
        out.extend_from_slice(done);
        entries.truncate(entries_from);
        Ok(())
    }
}

/// A string's bytes.
struct Text<'a>(&'a mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Text<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// One value: tag and all.
struct Single<'a> {
    encoder: &'a mut Encoder,
    number: u8,
    kind: Kind,
    /// In a list or a map `null` is a value nothing is set in; a field that is `null` is not set.
    in_list: bool,
}

impl Single<'_> {
    fn number<E: Error>(self, value: u64) -> Result<(), E> {
        match self.kind {
            Kind::Int => put_number(&mut self.encoder.out, self.number, value),
            Kind::Double => return self.double(value as i64 as f64),
            _ => return Err(E::custom(format_args!("cannot unmarshal number into Go value of type {:?}", self.kind))),
        }
        Ok(())
    }

    fn double<E: Error>(self, value: f64) -> Result<(), E> {
        let out = &mut self.encoder.out;
        match self.kind {
            Kind::Double => {
                put_tag(out, self.number, FIXED64);
                out.extend_from_slice(&value.to_bits().to_le_bytes());
                Ok(())
            }
            Kind::Int if value.fract() == 0.0 && value.abs() < 9e18 => {
                put_number(out, self.number, value as i64 as u64);
                Ok(())
            }
            _ => Err(E::custom(format_args!("cannot unmarshal number {value} into Go value of type {:?}", self.kind))),
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        put_bytes(&mut self.encoder.out, self.number, bytes);
    }

    /// The message that was just read.
    fn done(self) {
        let Encoder { out, done, .. } = self.encoder;
        put_bytes(out, self.number, done);
    }
}

impl<'de> DeserializeSeed<'de> for Single<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        let Kind::Message(inner) = self.kind else { return json.deserialize_any(self) };
        let message = Message::at(inner);
        let Some(special) = message.special else { return json.deserialize_any(self) };
        let json = <&RawValue>::deserialize(json)?.get();
        if json == "null" {
            return self.visit_unit();
        }
        self.encoder.done.clear();
        special.encode(message, json, &mut self.encoder.done).map_err(D::Error::custom)?;
        self.done();
        Ok(())
    }
}

impl<'de> Visitor<'de> for Single<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Message(inner) => write!(f, "an object of type {}", Message::at(inner).name),
            kind => write!(f, "a value of type {kind:?}"),
        }
    }

    fn visit_unit<E: Error>(mut self) -> Result<(), E> {
        match self.kind {
            _ if !self.in_list => {}
            Kind::Bytes => {}
            Kind::String => self.bytes(b""),
            Kind::Bool | Kind::Int => put_number(&mut self.encoder.out, self.number, 0),
            Kind::Double => self.double(0.0)?,
            Kind::Message(inner) => self.bytes(&Message::at(inner).zero),
        }
        Ok(())
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<(), E> {
        match self.kind {
            Kind::String => self.bytes(text.as_bytes()),
            Kind::Bytes => {
                let done = &mut self.encoder.done;
                done.clear();
                STANDARD.decode_vec(text, done).map_err(|_| E::custom("illegal base64 data"))?;
                self.done();
            }
            _ => return Err(E::invalid_type(serde::de::Unexpected::Str(text), &self)),
        }
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        if self.kind != Kind::Bool {
            return Err(E::invalid_type(serde::de::Unexpected::Bool(value), &self));
        }
        put_tag(&mut self.encoder.out, self.number, VARINT);
        self.encoder.out.push(u8::from(value));
        Ok(())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.number(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        // Negative numbers are their 64-bit two's complement, `int32` too.
        self.number(value as u64)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.double(value)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let Kind::Message(inner) = self.kind else {
            return Err(A::Error::invalid_type(serde::de::Unexpected::Map, &self));
        };
        Object { encoder: self.encoder, message: Message::at(inner) }.visit_map(map)?;
        self.done();
        Ok(())
    }
}
