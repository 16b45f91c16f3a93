//! Owns `facts.tsv`: what Kubernetes 1.36 says about the fields of its definitions beyond their types.
//!
//! Format: a definition's name on a line of its own, then one indented line per field, `.` being the
//! definition itself: `field<TAB>list=map:a,b|set|atomic map=atomic patch=merge,retainKeys:key default=json`.

use std::{collections::HashMap, sync::OnceLock};

use serde_json::Value;

use super::{ListType, Patch, Schema};

const TABLE: &str = include_str!("facts.tsv");

/// What is known about one field.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fact {
    pub(super) list: Option<ListType>,
    pub(super) map: Option<&'static str>,
    pub(super) patch: Option<(&'static str, Option<&'static str>)>,
    pub(super) default: Option<Value>,
}

type Table = HashMap<&'static str, Vec<(&'static str, Fact)>>;

/// The whole table, by definition.
pub(super) fn table() -> &'static Table {
    static PARSED: OnceLock<Table> = OnceLock::new();
    PARSED.get_or_init(|| {
        let mut table = Table::new();
        let mut current = "";
        for line in TABLE.lines() {
            match line.strip_prefix('\t').and_then(|l| l.split_once('\t')) {
                Some((field, facts)) => table.entry(current).or_default().push((field, Fact::parse(facts))),
                None => current = line,
            }
        }
        table
    })
}

/// Lays the facts of a definition over its schema.
pub(super) fn overlay(name: &str, schema: &mut Schema) {
    for (field, fact) in table().get(name).into_iter().flatten() {
        if *field == "." {
            fact.apply(schema);
        } else if let Some(property) = schema.properties.get_mut(*field) {
            fact.apply(property);
        }
    }
}

impl Fact {
    fn parse(text: &'static str) -> Fact {
        let mut fact = Fact::default();
        for word in text.split(' ') {
            match word.split_once('=') {
                Some(("list", "set")) => fact.list = Some(ListType::Set),
                Some(("list", "atomic")) => fact.list = Some(ListType::Atomic),
                Some(("list", value)) => {
                    let keys = value.strip_prefix("map:").unwrap_or_default();
                    fact.list = Some(ListType::Map(keys.split(',').map(Into::into).collect()));
                }
                Some(("map", value)) => fact.map = Some(value),
                Some(("patch", value)) => {
                    fact.patch = Some(value.split_once(':').map_or((value, None), |(s, key)| (s, Some(key))));
                }
                Some(("default", value)) => fact.default = serde_json::from_str(value).ok(),
                _ => {}
            }
        }
        fact
    }

    fn apply(&self, schema: &mut Schema) {
        if let Some(list) = &self.list {
            schema.list_type = list.clone();
        }
        if self.map == Some("atomic") {
            schema.atomic_map = true;
        }
        if let Some((strategies, key)) = self.patch {
            let has = |wanted: &str| strategies.split(',').any(|s| s == wanted);
            schema.patch = Some(Box::new(Patch {
                merge: has("merge"),
                replace: has("replace"),
                retain_keys: has("retainKeys"),
                merge_key: key.map(Into::into),
            }));
        }
        if self.default.is_some() {
            schema.default.clone_from(&self.default);
        }
    }

    /// Writes the fact into an OpenAPI property.
    pub(super) fn publish(&self, property: &mut serde_json::Map<String, Value>) {
        if let Some(list) = &self.list {
            let name = match list {
                ListType::Atomic => "atomic",
                ListType::Set => "set",
                ListType::Map(keys) => {
                    let keys: Vec<Value> = keys.iter().map(|k| Value::from(&**k)).collect();
                    property.insert("x-kubernetes-list-map-keys".into(), keys.into());
                    "map"
                }
            };
            property.insert("x-kubernetes-list-type".into(), name.into());
        }
        if let Some(map) = self.map {
            property.insert("x-kubernetes-map-type".into(), map.into());
        }
        if let Some((strategy, key)) = self.patch {
            if let Some(key) = key {
                property.insert("x-kubernetes-patch-merge-key".into(), key.into());
            }
            property.insert("x-kubernetes-patch-strategy".into(), strategy.into());
        }
        if let Some(default) = &self.default {
            property.insert("default".into(), default.clone());
        }
    }
}
