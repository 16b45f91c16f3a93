//! What stands around a message: the envelope of an object, the head of a list, the frame of a watch event.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;

use super::ProtobufError::{self, Malformed};
use super::decode::{self, DEPTH};
use super::encode::{Encoder, content};
use super::table::{Kind, Message, kind};
use super::wire::{Reader, Wire, put_bytes, put_varint};

/// What every object starts with.
pub const MAGIC: &[u8] = b"k8s\0";

/// The media type of watch frames.
pub const WATCH_MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// What the JSON of an object says it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    #[serde(borrow, default)]
    api_version: Cow<'a, str>,
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
}

/// An object in protobuf, given its JSON, `apiVersion` and `kind` included.
pub fn encode(json: &[u8]) -> Result<Vec<u8>, ProtobufError> {
    let head: Head<'_> = serde_json::from_slice(json).map_err(|error| ProtobufError::Json(error.to_string()))?;
    encode_as(&head.api_version, &head.kind, json)
}

/// An object of a kind that is known.
pub fn encode_as(api_version: &str, kind_name: &str, json: &[u8]) -> Result<Vec<u8>, ProtobufError> {
    let message = kind(api_version, kind_name).ok_or_else(|| unknown(api_version, kind_name))?;
    let raw = content(message, json)?;
    let mut out = head(api_version, kind_name, raw.len());
    out.extend_from_slice(&raw);
    out.extend_from_slice(TAIL);
    Ok(out)
}

fn unknown(api_version: &str, kind: &str) -> ProtobufError {
    ProtobufError::UnknownKind(format!("{api_version}, Kind={kind}"))
}

/// `contentEncoding` and `contentType`, which are strings and no pointers, and never set.
pub(super) const TAIL: &[u8] = b"\x1a\0\x22\0";

/// Everything before the message itself, which is `length` bytes.
pub(super) fn head(api_version: &str, kind: &str, length: usize) -> Vec<u8> {
    let mut type_meta = Vec::with_capacity(api_version.len() + kind.len() + 4);
    put_bytes(&mut type_meta, 1, api_version.as_bytes());
    put_bytes(&mut type_meta, 2, kind.as_bytes());
    let mut out = Vec::with_capacity(length + type_meta.len() + 24);
    out.extend_from_slice(MAGIC);
    put_bytes(&mut out, 1, &type_meta);
    out.push(2 << 3 | 2);
    put_varint(&mut out, length as u64);
    out
}

/// Reads an object: its JSON, `apiVersion` and `kind` included.
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let mut reader = Reader(body.strip_prefix(MAGIC).ok_or(ProtobufError::NoPrefix)?);
    let (mut type_meta, mut raw) = (&[][..], &[][..]);
    while let Some((number, wire)) = reader.field()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => type_meta = bytes,
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (1 | 2, _) => return Err(Malformed),
            _ => {}
        }
    }
    let (mut api_version, mut kind_name) = ("", "");
    let mut reader = Reader(type_meta);
    while let Some((number, wire)) = reader.field()? {
        let Wire::Bytes(bytes) = wire else { return Err(Malformed) };
        let text = std::str::from_utf8(bytes).map_err(|_| Malformed)?;
        match number {
            1 => api_version = text,
            2 => kind_name = text,
            _ => {}
        }
    }
    let message = kind(api_version, kind_name).ok_or_else(|| unknown(api_version, kind_name))?;
    let mut object = decode::message(message, raw, DEPTH)?;
    object["apiVersion"] = api_version.into();
    object["kind"] = kind_name.into();
    Ok(object)
}

/// A watch event: `type`, and an object in its envelope. Framed by its length in four bytes (`LengthDelimitedFramer`).
pub fn frame(event: &str, object: &[u8]) -> Vec<u8> {
    // A RawExtension, whose only field is the object.
    let mut extension = Vec::with_capacity(object.len() + 8);
    put_bytes(&mut extension, 1, object);
    let mut out = Vec::with_capacity(extension.len() + event.len() + 16);
    out.extend_from_slice(&[0; 4]);
    put_bytes(&mut out, 1, event.as_bytes());
    put_bytes(&mut out, 2, &extension);
    let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

/// Reads a watch event without its length: its type and its object's JSON.
pub fn event(bytes: &[u8]) -> Result<(String, Value), ProtobufError> {
    let message = Message::named("meta.v1.WatchEvent").ok_or(Malformed)?;
    let mut event = decode::message(message, bytes, DEPTH)?;
    let object = event["object"].take();
    Ok((event["type"].as_str().unwrap_or_default().to_owned(), object))
}

/// A list that is written item by item.
///
/// Its length stands before it, so nothing can be sent before all is written; but no more is held than what is sent.
pub struct List {
    encoder: Encoder,
    item: &'static Message,
    number: u8,
    api_version: String,
    kind: String,
    /// What comes before the items.
    start: Vec<u8>,
    length: usize,
}

impl List {
    /// A list from its JSON without items.
    pub fn new(json: &[u8]) -> Result<List, ProtobufError> {
        let head: Head<'_> = serde_json::from_slice(json).map_err(|error| ProtobufError::Json(error.to_string()))?;
        let (api_version, kind_name) = (head.api_version.into_owned(), head.kind.into_owned());
        let message = kind(&api_version, &kind_name).ok_or_else(|| unknown(&api_version, &kind_name))?;
        // The items are the last field of every list: what is written after what is before them is a list.
        let items = message.fields.last().filter(|field| field.name == "items");
        let Some((number, Kind::Message(item))) = items.map(|field| (field.number, field.kind)) else {
            return Err(unknown(&api_version, &kind_name));
        };
        let start = content(message, json)?;
        let length = start.len();
        Ok(List {
            encoder: Encoder::default(),
            item: Message::at(item),
            number,
            api_version,
            kind: kind_name,
            start,
            length,
        })
    }

    /// Appends an item.
    pub fn item(&mut self, json: &[u8], out: &mut Vec<u8>) -> Result<(), ProtobufError> {
        let before = out.len();
        put_bytes(out, self.number, self.encoder.message(self.item, json)?);
        self.length += out.len() - before;
        Ok(())
    }

    /// What goes before and after the items, now that all have been written.
    pub fn finish(self) -> (Vec<u8>, &'static [u8]) {
        let mut out = head(&self.api_version, &self.kind, self.length);
        out.extend_from_slice(&self.start);
        (out, TAIL)
    }
}
