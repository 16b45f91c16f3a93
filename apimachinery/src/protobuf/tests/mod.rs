//! What Go says about every kind is written down as digests; the objects it was asked about are made here.
//!
//! `canonical.tsv` holds the canonical data of Kubernetes' own compatibility test (`k8s.io/api/testdata`), which fills
//! every field by a rule (`CompatibilityTestObject`) that [`objects::full`] follows; `canonical.py` writes it from the
//! package. That data sets everything; what is written for what is *not* set, `truth.tsv` tells: objects with every
//! mixture of set, empty and absent fields, and what Go makes of them (`apimachinery/tests/protobuf/truth.go`). Anew:
//!
//! ```sh
//! PROA_PROTOBUF_OBJECTS=/tmp/objects cargo test -p proa-apimachinery --lib protobuf
//! go run truth.go </tmp/objects >/tmp/truth
//! PROA_PROTOBUF_TRUTH=/tmp/truth cargo test -p proa-apimachinery --lib protobuf
//! ```

mod objects;

use std::collections::BTreeMap;
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::table::{Kind, Message};
use super::*;

/// Every kind that can be asked for, with the message it is.
fn kinds() -> Vec<(String, String, &'static Message)> {
    let mut all = BTreeMap::new();
    for (api_version, message) in Message::kinds() {
        let name = message.name.rsplit('.').next().unwrap();
        all.insert((api_version.to_owned(), name.to_owned()), message);
        if message.name.starts_with("meta.v1.") {
            all.entry(("v1".to_owned(), name.to_owned())).or_insert(message);
        }
    }
    all.into_iter().map(|((api_version, kind), message)| (api_version, kind, message)).collect()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..10].iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// JSON by sorted keys and with whole numbers as such, so that equal values are equal text.
fn sorted(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let map: BTreeMap<_, _> = map.iter().collect();
            let members: Vec<String> = map
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), sorted(value)))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(list) => format!("[{}]", list.iter().map(sorted).collect::<Vec<_>>().join(",")),
        Value::Number(number) => match number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 1e15) {
            Some(whole) => (whole as i64).to_string(),
            None => number.to_string(),
        },
        value => value.to_string(),
    }
}

fn protobuf(object: &Value) -> Vec<u8> {
    encode(object.to_string().as_bytes()).unwrap_or_else(|error| panic!("{error}: {object}"))
}

fn json_of(protobuf: &[u8]) -> Value {
    decode(protobuf).unwrap_or_else(|error| panic!("{error}: {protobuf:?}"))
}

#[test]
fn the_canonical_data_of_every_type_round_trips() {
    let mut wrong = Vec::new();
    for line in include_str!("canonical.tsv").lines() {
        let [name, want_protobuf, want_json] = *line.split('\t').collect::<Vec<_>>() else { panic!("{line}") };
        let (group_version, kind_name) = name.rsplit_once('.').unwrap();
        let (group, version) = group_version.rsplit_once('.').unwrap();
        let api_version = if group == "core" { version.to_owned() } else { format!("{group}/{version}") };
        let (protobuf, told) = if name == "core.v1.WatchEvent" {
            // The one among them that does not say what it is: nothing reads it but who knows.
            let message = Message::named("meta.v1.WatchEvent").unwrap();
            let event = objects::full(message).to_string();
            let raw = encode::content(message, event.as_bytes()).unwrap();
            let whole = [&envelope::head("", "", raw.len())[..], &raw, envelope::TAIL].concat();
            (whole, decode::message(message, &raw, decode::DEPTH).unwrap())
        } else {
            let message = kind(&api_version, kind_name).unwrap_or_else(|| panic!("{name} has no message"));
            let mut object = objects::full(message);
            object["apiVersion"] = api_version.into();
            object["kind"] = kind_name.into();
            let protobuf = protobuf(&object);
            let told = json_of(&protobuf);
            (protobuf, told)
        };
        if digest(&protobuf) != want_protobuf || digest(sorted(&told).as_bytes()) != want_json {
            wrong.push(name);
        }
    }
    assert_eq!(wrong, Vec::<&str>::new());
}

#[test]
fn set_empty_or_absent_every_field_is_written_and_read_as_go_does() {
    let corpus: Vec<(String, String, Vec<Value>)> = kinds()
        .into_iter()
        .map(|(api_version, kind, message)| {
            let mut objects = objects::mixtures(message);
            for object in &mut objects {
                object["apiVersion"] = api_version.as_str().into();
                object["kind"] = kind.as_str().into();
            }
            (api_version, kind, objects)
        })
        .collect();
    if let Ok(path) = std::env::var("PROA_PROTOBUF_OBJECTS") {
        let lines: String =
            corpus.iter().flat_map(|(_, _, objects)| objects).map(|object| format!("{object}\n")).collect();
        std::fs::write(path, lines).unwrap();
        return;
    }
    if let Ok(path) = std::env::var("PROA_PROTOBUF_TRUTH") {
        let fixture = told_by_go(&corpus, &std::fs::read_to_string(path).unwrap());
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/protobuf/tests/truth.tsv"), fixture).unwrap();
        return;
    }
    let ours: BTreeMap<String, String> = corpus
        .iter()
        .map(|(api_version, kind, objects)| {
            let protobuf: Vec<Vec<u8>> = objects.iter().map(protobuf).collect();
            let json: String = protobuf.iter().map(|bytes| sorted(&json_of(bytes))).collect();
            (format!("{api_version} {kind}"), format!("{}\t{}", digest(&protobuf.concat()), digest(json.as_bytes())))
        })
        .collect();
    let wrong: Vec<&str> = include_str!("truth.tsv")
        .lines()
        .map(|line| line.split_once('\t').unwrap())
        .filter(|(kind, want)| ours.get(*kind).is_none_or(|have| have != want))
        .map(|(kind, _)| kind)
        .collect();
    assert_eq!(wrong, Vec::<&str>::new());
}

/// Compares object by object with what Go said, and gives what is written down of it.
fn told_by_go(corpus: &[(String, String, Vec<Value>)], truth: &str) -> String {
    let mut truth = truth.lines();
    let (mut fixture, mut wrong) = (String::new(), Vec::new());
    for (api_version, kind, objects) in corpus {
        let told: Vec<&str> = objects.iter().map(|_| truth.next().expect("an answer for every object")).collect();
        // Not registered: a part of another kind, which only looks like one.
        if told.contains(&"-") {
            continue;
        }
        let (mut all_protobuf, mut all_json) = (Vec::new(), String::new());
        for (object, told) in objects.iter().zip(told) {
            let (want, want_json) = told.split_once('\t').unwrap();
            let want = STANDARD.decode(want).unwrap();
            let want_json = sorted(&serde_json::from_str::<Value>(want_json).unwrap());
            match encode(object.to_string().as_bytes()) {
                Ok(have) if have == want => {}
                have => {
                    wrong.push(format!("{object}\n  have {}\n  want {}", text(&have.unwrap_or_default()), text(&want)))
                }
            }
            match decode(&want).map(|value| sorted(&value)) {
                Ok(have) if have == want_json => {}
                have => wrong.push(format!("{object}\n  have {have:?}\n  want {want_json}")),
            }
            all_protobuf.extend(want);
            all_json.push_str(&want_json);
        }
        writeln!(fixture, "{api_version} {kind}\t{}\t{}", digest(&all_protobuf), digest(all_json.as_bytes())).unwrap();
    }
    let shown: Vec<&str> = wrong.iter().take(20).map(String::as_str).collect();
    assert!(wrong.is_empty(), "{} differ, among them\n{}", wrong.len(), shown.join("\n"));
    fixture
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

#[test]
fn every_message_a_field_names_exists() {
    for message in Message::all() {
        for pair in message.fields.windows(2) {
            assert!(pair[0].number < pair[1].number, "{}", message.name);
        }
        for field in &message.fields {
            assert_ne!(field.kind, Kind::Message(u16::MAX), "{}.{}", message.name, field.name);
            assert!(!field.inline || field.name == "-" || message.special.is_some(), "{}.{}", message.name, field.name);
        }
    }
}

#[test]
fn a_kind_is_known_by_its_whole_group() {
    assert!(kind("networking.k8s.io/v1", "Ingress").is_some());
    assert!(kind("networking.example.com/v1", "Ingress").is_none());
    assert!(kind("example.com/v1", "Status").is_none());
    assert!(kind("apps/v1", "DeploymentSpec").is_none());
    assert!(kind("example.com/v1", "DeleteOptions").is_some());
    assert!(kind("meta.k8s.io/v1beta1", "PartialObjectMetadata").is_some());
    let unknown = |error: ProtobufError| matches!(error, ProtobufError::UnknownKind(_));
    assert!(unknown(encode(br#"{"apiVersion":"example.com/v1","kind":"Thing"}"#).unwrap_err()));
    assert_eq!(decode(b"{}").unwrap_err(), ProtobufError::NoPrefix);
}

#[test]
fn a_list_written_item_by_item_is_the_list_written_at_once() {
    for kind in ["Pod", "ConfigMap"] {
        let items: Vec<Value> = (0..3).map(|at| json!({"metadata": {"name": format!("item-{at}")}})).collect();
        let mut whole = json!({
            "kind": format!("{kind}List"), "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": [],
        });
        let mut list = List::new(whole.to_string().as_bytes()).unwrap();
        let mut written = Vec::new();
        for item in &items {
            list.item(item.to_string().as_bytes(), &mut written).unwrap();
        }
        let (head, tail) = list.finish();
        whole["items"] = items.into();
        assert_eq!([&head[..], &written, tail].concat(), protobuf(&whole), "{kind}");
    }
    assert!(List::new(br#"{"kind":"Pod","apiVersion":"v1"}"#).is_err());
}

#[test]
fn a_watch_event_is_framed_by_its_length() {
    let object = protobuf(&json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}}));
    let frame = frame("ADDED", &object);
    let (length, bytes) = frame.split_at(4);
    assert_eq!(u32::from_be_bytes(length.try_into().unwrap()) as usize, bytes.len());
    let (event, object) = event(bytes).unwrap();
    assert_eq!((&*event, &object["metadata"]["name"]), ("ADDED", &"a".into()));
}

#[test]
fn json_of_the_wrong_type_is_refused() {
    let table = [
        json!({"metadata": {"name": 1}}),
        json!({"metadata": []}),
        json!({"metadata": {"creationTimestamp": "yesterday"}}),
        json!({"spec": {"containers": {}}}),
        json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "lots"}}}]}}),
        json!({"spec": {"hostNetwork": "yes"}}),
        json!({"spec": {"terminationGracePeriodSeconds": 1.5}}),
    ];
    for object in table {
        let refused = encode_as("v1", "Pod", object.to_string().as_bytes());
        assert!(matches!(refused, Err(ProtobufError::Json(_))), "{object}");
    }
    let secret = encode_as("v1", "Secret", br#"{"data":{"a":"not base64"}}"#);
    assert!(matches!(secret, Err(ProtobufError::Json(_))));
}

#[test]
fn what_nests_without_end_is_refused() {
    let mut bytes = Vec::new();
    for _ in 0..2 * decode::DEPTH {
        let mut outer = Vec::new();
        // `not`, a schema in a schema.
        wire::put_bytes(&mut outer, 28, &bytes);
        bytes = outer;
    }
    let schema = Message::named("apiextensions.v1.JSONSchemaProps").unwrap();
    assert_eq!(decode::message(schema, &bytes, decode::DEPTH), Err(ProtobufError::TooDeep));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&[b"k8s\0", &body[..]].concat());
        for name in ["core.v1.Pod", "apiextensions.v1.JSONSchemaProps", "meta.v1.ObjectMeta"] {
            let _ = decode::message(Message::named(name).unwrap(), &body, decode::DEPTH);
        }
        let _ = encode_as("v1", "Pod", &body);
    }

    /// A damaged body is refused or read, never more; so is every beginning of one.
    #[test]
    fn no_damage_makes_it_panic(at in 0usize..2000, byte: u8) {
        let mut body = protobuf(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "y"}},
            "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}}, "livenessProbe": {"httpGet": {"port": "http"}}}]},
        }));
        let at = at % body.len();
        let _ = decode(&body[..at]);
        body[at] = byte;
        let _ = decode(&body);
    }
}
