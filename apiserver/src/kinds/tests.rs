//! Laws and tables of the kinds. One helper: [`check`] takes a manifest as a user writes it, runs it
//! through defaults, preparation and validation as a create, and compares what is wrong with it.

use std::collections::BTreeSet;

use proa_apimachinery::{Object, yaml};
use serde_json::Value;

use super::{Kind, Op, builtin};

mod bounds;
mod columns;
mod jobs;
mod others;
mod pods;
mod services;
mod sets;
mod storage;
mod workloads;

fn kind_of(object: &Object) -> Kind {
    let mut kinds = builtin().into_iter();
    kinds.find(|k| k.api_version() == object.api_version() && k.kind == object.kind()).expect("a known kind")
}

/// A manifest as an object.
fn parse(manifest: &str) -> Object {
    let mut documents = yaml::from_yaml(manifest.as_bytes()).expect("the test's YAML parses");
    Object::from_value(documents.remove(0)).expect("the test's YAML is an object")
}

/// As created: defaulted and prepared.
fn created(manifest: &str) -> Object {
    let mut object = parse(manifest);
    let strategy = kind_of(&object).strategy;
    strategy.default(&mut object);
    strategy.prepare(Op::Create, &mut object, None);
    object
}

/// What is wrong with a new object.
fn errors_of(object: &Object) -> Vec<String> {
    kind_of(object).strategy.validate(Op::Create, object, None).iter().map(ToString::to_string).collect()
}

/// A create of `manifest` is refused with exactly these messages (none: accepted).
#[track_caller]
fn check(manifest: &str, expected: &[&str]) {
    let errors = errors_of(&created(manifest));
    assert_eq!(errors, expected, "{manifest}");
}

/// `manifest` with changes: each a path (dots) and a value in YAML; `~` removes.
fn with(manifest: &str, changes: &[(&str, &str)]) -> Object {
    let mut value = parse(manifest).into_value();
    for (path, text) in changes {
        let new = yaml::from_yaml(format!("v: {text}").as_bytes()).expect("a value")[0]["v"].clone();
        set(&mut value, &path.split('.').collect::<Vec<_>>(), new);
    }
    Object::from_value(value).expect("still an object")
}

fn set(value: &mut Value, path: &[&str], new: Value) {
    let Some((first, rest)) = path.split_first() else {
        *value = new;
        return;
    };
    if let (Ok(index), Value::Array(items)) = (first.parse::<usize>(), &mut *value) {
        set(&mut items[index], rest, new);
        return;
    }
    if !value.is_object() {
        *value = Value::Object(Default::default());
    }
    let map = value.as_object_mut().expect("made one");
    if rest.is_empty() && new.is_null() {
        map.shift_remove(*first);
    } else {
        set(map.entry((*first).to_owned()).or_insert(Value::Null), rest, new);
    }
}

/// Each change alone, with the one message it earns ("" for none).
#[track_caller]
fn table(manifest: &str, rows: &[(&[(&str, &str)], &str)]) {
    check(manifest, &[]);
    for (changes, expected) in rows {
        let mut object = with(manifest, changes);
        let strategy = kind_of(&object).strategy;
        strategy.default(&mut object);
        strategy.prepare(Op::Create, &mut object, None);
        let errors = errors_of(&object).join("\n");
        assert_eq!(errors, *expected, "{changes:?}");
    }
}

/// What an update from one object to the next is refused with.
#[track_caller]
fn update(old: &Object, new: &Object, op: Op) -> Result<Object, Vec<String>> {
    let strategy = kind_of(old).strategy;
    let mut new = new.clone();
    strategy.default(&mut new);
    strategy.prepare(op, &mut new, Some(old));
    let errors = strategy.validate(op, &new, Some(old));
    if errors.is_empty() { Ok(new) } else { Err(errors.iter().map(ToString::to_string).collect()) }
}

/// As if read from the store.
fn stored(manifest: &str) -> Object {
    let mut object = created(manifest);
    let metadata = object.metadata_mut();
    metadata.insert("uid".into(), "u1".into());
    metadata.insert("resourceVersion".into(), "7".into());
    metadata.insert("creationTimestamp".into(), "2026-01-01T00:00:00Z".into());
    object
}

#[test]
fn every_row_has_a_schema_and_a_name_of_its_own() {
    let mut seen = BTreeSet::new();
    let mut stored = BTreeSet::new();
    for kind in builtin() {
        assert!(kind.schema.definition().is_some());
        assert!(kind.schema.property("metadata").is_some() || kind.is_virtual, "{}", kind.kind);
        assert!(seen.insert((kind.api_version(), kind.plural.clone())), "{} twice", kind.plural);
        if kind.storage.convert.is_none() && !kind.is_virtual {
            assert!(stored.insert((kind.storage.group.clone(), kind.storage.plural.clone())), "{}", kind.kind);
        }
    }
    for kind in builtin().iter().filter(|k| k.storage.convert.is_some()) {
        let target = (kind.storage.group.clone(), kind.storage.plural.clone());
        assert!(stored.contains(&target), "{} is stored as nothing", kind.kind);
    }
}

#[test]
fn defaults_are_idempotent_for_every_kind() {
    for kind in builtin() {
        let mut once = Object::new(&kind.api_version(), &kind.kind);
        kind.strategy.default(&mut once);
        let mut twice = once.clone();
        kind.strategy.default(&mut twice);
        assert_eq!(once, twice, "{}", kind.kind);
    }
}

#[test]
fn no_kind_panics_on_nonsense() {
    let shapes = ["{}", "[]", "1", "text", "[1]", "[{}]", "{a: 1}", "~", "[[]]", "{name: 1, spec: [], type: {}}"];
    for kind in builtin() {
        let fields: Vec<String> = kind.schema.resolved().properties.keys().map(|k| k.to_string()).collect();
        for shape in shapes {
            let value = yaml::from_yaml(format!("v: {shape}").as_bytes()).unwrap()[0]["v"].clone();
            let mut object = Object::new(&kind.api_version(), &kind.kind);
            for field in fields.iter().filter(|f| !matches!(f.as_str(), "apiVersion" | "kind")) {
                object.0.insert(field.clone(), value.clone());
            }
            let before = object.clone();
            for op in [Op::Create, Op::Update, Op::UpdateStatus] {
                let mut object = object.clone();
                kind.strategy.default(&mut object);
                kind.strategy.prepare(op, &mut object, Some(&before));
                let _ = kind.strategy.validate(op, &object, Some(&before));
                let _ = kind.strategy.unsupported(&object);
                let _ = kind.strategy.warnings(&object);
                let _ = kind.strategy.allocate(op, &object, Some(&before));
                let now = "2026-01-01T00:00:00Z".parse().unwrap();
                let _: Vec<Value> = kind.columns.iter().map(|c| c.cell(&object, now)).collect();
                let _ = kind.from_storage(kind.to_storage(object));
            }
        }
    }
}
