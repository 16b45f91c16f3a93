//! Owns FieldsV1, the form in which a set of fields travels and is stored.

use serde_json::{Map, Value};

use super::{
    path::Element,
    set::{Node, Set},
};

impl Set {
    /// The set as FieldsV1.
    pub fn to_fields_v1(&self) -> Value {
        Value::Object(encode(self, false))
    }

    /// Reads FieldsV1; `None` when it is not. What this version does not know is not silently dropped.
    pub fn from_fields_v1(value: &Value) -> Option<Set> {
        decode(value).map(|(_, set)| set)
    }
}

fn encode(set: &Set, member: bool) -> Map<String, Value> {
    let mut map = Map::with_capacity(set.nodes.len() + 1);
    if member && !set.nodes.is_empty() {
        map.insert(".".into(), Value::Object(Map::new()));
    }
    for (element, node) in &*set.nodes {
        map.insert(element.to_wire(), Value::Object(encode(&node.below, node.member)));
    }
    map
}

/// Whether the value itself is a member, and the set below it.
fn decode(value: &Value) -> Option<(bool, Set)> {
    let map = value.as_object()?;
    let mut set = Set::default();
    // An element with nothing below it is there because it is itself in the set.
    let mut member = map.is_empty();
    for (name, below) in map {
        if name == "." {
            member = true;
        } else {
            let (member, below) = decode(below)?;
            set.nodes_mut().insert(Element::from_wire(name)?, Node { member, below });
        }
    }
    Some((member, set))
}
