//! Bytes to objects and back: owns the media types and the form in the store.

use bytes::Bytes;
use proa_apimachinery::Path;
use proa_apimachinery::object::Object;
use proa_apimachinery::part::Part;
use proa_apimachinery::protobuf::{self, ProtobufError};
use proa_apimachinery::status::ApiError;
use proa_apimachinery::{json, yaml};
use proa_store::Value as Stored;
use serde_json::{Map, Value};

use crate::http::{MAX_DEPTH, Request};
use crate::resources::Resource;

/// What a body may be sent as.
pub const BODY_TYPES: &[&str] = &["application/json", "application/yaml", protobuf::MEDIA_TYPE];

/// A decoded body and the paths of fields that were given twice.
pub struct Decoded {
    /// The value.
    pub value: Value,
    /// Duplicate fields, in the wording of strict decoding.
    pub duplicates: Vec<String>,
}

/// The media type of the body without its parameters, in lower case; JSON when there is none.
pub fn media_type(request: &Request) -> String {
    let header = request.header(http::header::CONTENT_TYPE).unwrap_or("application/json");
    header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Decodes a body of any form.
pub fn decode(request: &Request) -> Result<Decoded, ApiError> {
    match media_type(request).as_str() {
        "" | "application/json" | "*/*" => decode_json(&request.body),
        "application/yaml" | "application/x-yaml" | "text/yaml" => decode_yaml(&request.body),
        protobuf::MEDIA_TYPE => match protobuf::decode(&request.body) {
            Ok(value) => Ok(Decoded { value, duplicates: Vec::new() }),
            Err(ProtobufError::UnknownKind(_)) => Err(ApiError::unsupported_media_type(BODY_TYPES)),
            Err(error) => Err(ApiError::bad_request(error.to_string())),
        },
        _ => Err(ApiError::unsupported_media_type(BODY_TYPES)),
    }
}

/// Decodes JSON.
pub fn decode_json(body: &[u8]) -> Result<Decoded, ApiError> {
    let (value, duplicates) = json::from_json(body, MAX_DEPTH)
        .map_err(|error| ApiError::bad_request(format!("the body is not valid JSON: {error}")))?;
    Ok(Decoded { value, duplicates: duplicate_fields(&duplicates) })
}

fn duplicate_fields(paths: &[Path]) -> Vec<String> {
    paths.iter().map(|path| format!("duplicate field \"{}\"", path.as_str())).collect()
}

/// Decodes YAML with one document (JSON is YAML too).
pub fn decode_yaml(body: &[u8]) -> Result<Decoded, ApiError> {
    // What programs apply is JSON under the name of YAML, and a YAML parser takes ten times as long over it.
    if body.trim_ascii_start().starts_with(b"{")
        && let Ok(decoded) = decode_json(body)
    {
        return Ok(decoded);
    }
    let documents = yaml::from_yaml_strict(body)
        .map_err(|error| ApiError::bad_request(format!("the body is not valid YAML: {error}")))?;
    let mut documents: Vec<_> = documents.into_iter().filter(|(document, _)| !document.is_null()).collect();
    match documents.len() {
        1 => {
            let (value, duplicates) = documents.remove(0);
            Ok(Decoded { value, duplicates: duplicate_fields(&duplicates) })
        }
        0 => Err(ApiError::bad_request("the body holds no object")),
        _ => Err(ApiError::bad_request("the body holds more than one document")),
    }
}

/// Reads a body as an object of `resource`: right kind, right version.
pub fn object(resource: &Resource, value: Value) -> Result<Object, ApiError> {
    let mut object =
        Object::from_value(value).map_err(|_| ApiError::bad_request("the body of the request is not an object"))?;
    let kind = &resource.kind;
    if object.kind().is_empty() {
        if object.0.contains_key("kind") && !object.0.get("kind").is_some_and(Value::is_string) {
            return Err(ApiError::bad_request("Object 'Kind' is not a string"));
        }
        object.0.insert("kind".into(), Value::from(kind.kind.as_ref()));
    }
    if object.api_version().is_empty() {
        object.0.insert("apiVersion".into(), Value::from(resource.api_version()));
    }
    if object.kind() != kind.kind {
        return Err(ApiError::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: the kind in the data does not match",
            object.kind(),
            kind.version,
            kind.kind
        )));
    }
    if object.api_version() != resource.api_version() {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({})",
            object.api_version(),
            resource.api_version()
        )));
    }
    if let Some(metadata) = object.0.get("metadata").filter(|metadata| !metadata.is_object()) {
        let kind = if metadata.is_null() { None } else { Some(()) };
        if kind.is_some() {
            return Err(ApiError::bad_request("metadata: expected an object"));
        }
    }
    object.metadata_mut();
    Ok(object)
}

/// The form in the store: JSON with `metadata.resourceVersion` first and empty; the store fills the
/// revision in when it commits, so the object is never encoded again.
pub fn encode(object: &Object) -> Stored {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(b"{\"apiVersion\":");
    write(&mut out, &Value::from(object.api_version()));
    out.extend_from_slice(b",\"kind\":");
    write(&mut out, &Value::from(object.kind()));
    out.extend_from_slice(b",\"metadata\":{\"resourceVersion\":\"");
    let at = out.len();
    out.push(b'"');
    for (key, value) in object.metadata().into_iter().flatten().filter(|(key, _)| *key != "resourceVersion") {
        field(&mut out, key, value);
    }
    out.push(b'}');
    for (key, value) in object.0.iter().filter(|(key, _)| !matches!(key.as_str(), "apiVersion" | "kind" | "metadata")) {
        field(&mut out, key, value);
    }
    out.push(b'}');
    out.shrink_to_fit();
    Stored { bytes: Bytes::from(out), revision_at: Some(at) }
}

/// An object as the store gives it back, its resource version as the object has it.
pub fn with_revision(object: &Object) -> Bytes {
    let Stored { bytes, revision_at } = encode(object);
    let Some(at) = revision_at else { return bytes };
    let mut out = Vec::with_capacity(bytes.len() + object.resource_version().len());
    out.extend_from_slice(&bytes[..at]);
    out.extend_from_slice(object.resource_version().as_bytes());
    out.extend_from_slice(&bytes[at..]);
    Bytes::from(out)
}

/// The stored form of an object that was read in `part` and changed there, from the bytes it was read from; nothing when those
/// are in another form than [`encode`]'s.
pub fn encode_part(part: &Part, whole: &Bytes, mut object: Object) -> Option<Stored> {
    let metadata = object.metadata_mut();
    metadata.shift_remove("resourceVersion");
    metadata.shift_insert(0, "resourceVersion".into(), "".into());
    let out = part.put_back(std::str::from_utf8(whole).ok()?, &object.0).ok()?;
    reopened(&Bytes::from(out))
}

/// Bytes of [`encode`] as they were before a revision was filled in; nothing when they are in another form.
pub fn reopened(stored: &Bytes) -> Option<Stored> {
    let after_version = text(stored, b"{\"apiVersion\":\"")?;
    let after_kind = text(after_version, b",\"kind\":\"")?;
    let digits = after_kind.strip_prefix(b",\"metadata\":{\"resourceVersion\":\"")?;
    let at = stored.len() - digits.len();
    let filled = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits.get(filled) != Some(&b'"') {
        return None;
    }
    if filled == 0 {
        return Some(Stored { bytes: stored.clone(), revision_at: Some(at) });
    }
    let bytes = [&stored[..at], &stored[at + filled..]].concat();
    Some(Stored { bytes: bytes.into(), revision_at: Some(at) })
}

/// What follows a plain text that begins so.
fn text<'a>(bytes: &'a [u8], begin: &[u8]) -> Option<&'a [u8]> {
    let rest = bytes.strip_prefix(begin)?;
    let end = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')).filter(|end| rest[*end] == b'"')?;
    Some(&rest[end + 1..])
}

/// Where the resource version of stored bytes begins: it comes first in their metadata ([`encode`]).
pub fn revision_place(stored: &[u8]) -> Option<usize> {
    const BEFORE: &[u8] = b"\"resourceVersion\":\"";
    // Kind and version are short: further in it is somebody else's.
    let head = &stored[..stored.len().min(512)];
    head.windows(BEFORE.len()).position(|window| window == BEFORE).map(|at| at + BEFORE.len())
}

/// The resource version of stored bytes. 0 when they have none.
pub fn revision(stored: &[u8]) -> u64 {
    let Some(at) = revision_place(stored) else { return 0 };
    let digits = stored[at..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |value: u64, byte| value.wrapping_mul(10).wrapping_add(u64::from(byte - b'0')))
}

fn field(out: &mut Vec<u8>, key: &str, value: &Value) {
    out.push(b',');
    write(out, &Value::from(key));
    out.push(b':');
    write(out, value);
}

fn write(out: &mut Vec<u8>, value: &Value) {
    // Writing a value into memory cannot fail: its keys are strings and a Vec takes every byte.
    let _ = serde_json::to_writer(out, value);
}

/// The bytes of an object that is not (or not yet) stored.
pub fn plain(object: &Object) -> Bytes {
    Bytes::from(serde_json::to_vec(object).unwrap_or_default())
}

/// `metadata` of a list.
pub fn list_metadata(revision: u64, token: Option<String>, remaining: Option<usize>) -> Map<String, Value> {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), Value::from(revision.to_string()));
    if let Some(token) = token {
        metadata.insert("continue".into(), Value::from(token));
    }
    if let Some(remaining) = remaining {
        metadata.insert("remainingItemCount".into(), Value::from(remaining));
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_under_the_name_of_yaml_reads_as_the_yaml_it_is() {
        let yaml = "\n{a: 1, 'b': [x, {c: null}]}";
        let json = "\n{\"a\": 1, \"b\": [\"x\", {\"c\": null}]}";
        let twice = "{\"a\": 1, \"a\": 2}";
        let read = |text: &str| decode_yaml(text.as_bytes()).unwrap_or_else(|error| panic!("{}", error.message));
        assert_eq!(read(yaml).value, read(json).value);
        assert_eq!(read(json).value, yaml::from_yaml_strict(json.as_bytes()).unwrap().remove(0).0);
        assert_eq!(read(twice).duplicates, ["duplicate field \"a\""]);
    }

    #[test]
    fn an_object_is_encoded_once_with_a_place_for_its_revision() {
        let object = Object::from_value(json!({
            "metadata": {"name": "a\"b", "resourceVersion": "7", "labels": {"x": "y"}},
            "spec": {"n": 1}, "kind": "K", "apiVersion": "g/v1",
        }))
        .unwrap();
        let stored = encode(&object);
        let at = stored.revision_at.unwrap();
        let mut bytes = stored.bytes.to_vec();
        bytes.splice(at..at, *b"42");
        let back: Value = serde_json::from_slice(&bytes).unwrap();
        let expected = json!({
            "apiVersion": "g/v1", "kind": "K", "spec": {"n": 1},
            "metadata": {"name": "a\"b", "resourceVersion": "42", "labels": {"x": "y"}},
        });
        assert_eq!(back, expected);
        assert_eq!(revision(&bytes), 42);

        let part = Part::at([vec!["metadata"], vec!["spec", "n"]]);
        let mut read = part.read(&bytes).unwrap();
        read.set(&["spec", "n"], 2);
        let whole = Bytes::from(bytes);
        let stored = encode_part(&part, &whole, read).unwrap();
        assert_eq!(revision(&stored.bytes), 0);
        let mut bytes = stored.bytes.to_vec();
        bytes.splice(stored.revision_at.unwrap()..stored.revision_at.unwrap(), *b"43");
        let mut expected = expected;
        expected["spec"]["n"] = 2.into();
        expected["metadata"]["resourceVersion"] = "43".into();
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), expected);
        assert_eq!(revision(b"{}"), 0);
    }
}
