//! Objects of a message: filled by the rule of Kubernetes' compatibility test, or by a seed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::protobuf::special::Special;
use crate::protobuf::table::{Field, Kind, Label, Message};

/// Every field set: strings to its name and `Value`, numbers to its number, times to as many years after 2000.
pub(super) fn full(message: &'static Message) -> Value {
    Full { path: Vec::new() }.object(message)
}

struct Full {
    /// The messages we are in: none is filled within itself.
    path: Vec<&'static str>,
}

impl Full {
    fn object(&mut self, message: &'static Message) -> Value {
        let mut object = Map::new();
        self.path.push(message.name);
        for field in &message.fields {
            let Some(value) = self.value(field) else { continue };
            let value = match field.label {
                Label::Many => json!([value]),
                Label::Map => json!({format!("{}Key", field.name): value}),
                _ => value,
            };
            match value {
                Value::Object(inner) if field.inline => object.extend(inner),
                value => drop(object.insert(field.name.to_owned(), value)),
            }
        }
        self.path.pop();
        object.into()
    }

    fn value(&mut self, field: &Field) -> Option<Value> {
        let Field { number, name, .. } = *field;
        Some(match field.kind {
            Kind::String => format!("{name}Value").into(),
            Kind::Bytes => STANDARD.encode([number]).into(),
            Kind::Bool => true.into(),
            Kind::Int => number.into(),
            Kind::Double => (f64::from(number) + 0.5).into(),
            Kind::Message(inner) => {
                let message = Message::at(inner);
                if self.path.contains(&message.name) {
                    return None;
                }
                match message.special {
                    None => self.object(message),
                    // A time that is no field is left as it is.
                    Some(Special::Time) if field.label == Label::Map => Value::Null,
                    Some(Special::Time) => format!("20{number:02}-01-01T01:01:01Z").into(),
                    Some(Special::MicroTime) => format!("20{number:02}-01-01T01:01:01.{number:06}Z").into(),
                    Some(Special::Duration) => "1ns".into(),
                    Some(Special::Quantity) => "0".into(),
                    Some(Special::IntOrString) => format!("{name}Value").into(),
                    Some(Special::Raw) if message.name == "meta.v1.FieldsV1" => json!({}),
                    Some(Special::Raw) => json!({
                        "apiVersion": "example.com/v1", "kind": "CustomType",
                        "spec": {"replicas": 1}, "status": {"available": 1},
                    }),
                    Some(Special::Strings) => json!([format!("{name}Value")]),
                    // None of the canonical kinds holds one.
                    Some(Special::SchemaOrSchemas | Special::SchemaOrBool | Special::SchemaOrStrings) => return None,
                }
            }
        })
    }
}

/// Objects with nothing set, with everything set and nothing in it, and with mixtures of both.
pub(super) fn mixtures(message: &'static Message) -> Vec<Value> {
    let mut objects = vec![full(message), json!({})];
    objects.push(Mixture { chance: Chance(1), hollow: true, path: Vec::new() }.object(message));
    // The name is the seed: a kind's objects stay the same when others come and go.
    let seed = message.name.bytes().fold(7u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    for at in 0..16 {
        objects.push(Mixture { chance: Chance(seed ^ (at << 48)), hollow: false, path: Vec::new() }.object(message));
    }
    objects
}

/// A generator of numbers (Marsaglia's xorshift), the same everywhere.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }

    fn one_of(&mut self, values: Value) -> Value {
        let Value::Array(mut values) = values else { return Value::Null };
        let at = self.below(values.len());
        values.swap_remove(at)
    }
}

struct Mixture {
    chance: Chance,
    /// Everything is there, and as empty as it can be.
    hollow: bool,
    /// The messages we are in: each is filled within itself once.
    path: Vec<&'static str>,
}

impl Mixture {
    fn object(&mut self, message: &'static Message) -> Value {
        let mut object = Map::new();
        let again = self.path.iter().filter(|outer| **outer == message.name).count();
        self.path.push(message.name);
        for field in &message.fields {
            // The deeper, the fewer.
            let scarce = 2 + self.path.len() / 3;
            if again > 1 || !self.hollow && !field.inline && self.chance.below(scarce) != 0 {
                continue;
            }
            let value = match field.label {
                Label::Many => (0..self.count()).map(|_| self.value(field)).collect(),
                Label::Map => {
                    let keys = ["b", "a", "", "\u{e9}\u{1f6a3}"].into_iter().take(self.count() * 2);
                    keys.map(|key| (key.to_owned(), self.value(field))).collect()
                }
                Label::Pointer if !self.hollow && self.chance.below(8) == 0 => Value::Null,
                _ => self.value(field),
            };
            match value {
                Value::Object(inner) if field.inline => object.extend(inner),
                value => drop(object.insert(field.name.to_owned(), value)),
            }
        }
        self.path.pop();
        // Members come in any order.
        let mut members: Vec<(String, Value)> = object.into_iter().collect();
        if self.chance.below(2) == 0 {
            members.reverse();
        }
        Map::from_iter(members).into()
    }

    fn count(&mut self) -> usize {
        if self.hollow { 1 } else { self.chance.below(3) }
    }

    fn value(&mut self, field: &Field) -> Value {
        let (zero, values) = match field.kind {
            Kind::String => (json!(""), json!(["", "x", "a \"b\" \\ \n \u{e9} \u{1f6a3} <&>", "web-7"])),
            Kind::Bytes => (json!(""), json!(["", "AAEC", "/+8="])),
            Kind::Bool => (json!(false), json!([false, true])),
            Kind::Int => (json!(0), json!([0, 1, -1, 200, i32::MAX, i32::MIN])),
            Kind::Double => (json!(0), json!([0, 0.5, -1.25, 3, 2.25])),
            Kind::Message(inner) => {
                let message = Message::at(inner);
                let Some(special) = message.special else { return self.object(message) };
                match special {
                    Special::Time => (
                        Value::Null,
                        json!([
                            "2026-11-21T19:43:31Z",
                            "1969-12-31T23:59:58Z",
                            "2026-11-21T19:43:31+02:00",
                            "0001-01-01T00:00:00Z"
                        ]),
                    ),
                    Special::MicroTime => {
                        (Value::Null, json!(["2026-11-21T19:43:31.123456Z", "1969-12-31T23:59:58.500000Z", null]))
                    }
                    Special::Duration => (json!("0s"), json!(["0s", "1h15m0s", "1.5s", "-2m", "7ms", "10m30s"])),
                    Special::Quantity => (
                        json!("0"),
                        json!([
                            "0", "1", "1000m", "1.5Gi", "100Mi", "0.1", "1e3", "5E", "1500u", "1024Ki", "-5", "3k", 4,
                            "1.0", "0.5Mi"
                        ]),
                    ),
                    Special::IntOrString => (json!(0), json!([0, 80, -1, "", "http", "25%"])),
                    Special::Raw => (json!({}), json!([{}, {"f:a": {}, "n": [1, 2.5, "x", null]}, {"k": "v"}])),
                    Special::Strings => (json!([]), json!([[], ["a"], ["a", ""]])),
                    Special::SchemaOrSchemas | Special::SchemaOrBool | Special::SchemaOrStrings => {
                        return self.union(special, message);
                    }
                }
            }
        };
        if self.hollow { zero } else { self.chance.one_of(values) }
    }

    fn union(&mut self, special: Special, message: &Message) -> Value {
        let schema = message.fields.iter().find_map(|field| match field.kind {
            Kind::Message(inner) => Some(Message::at(inner)),
            _ => None,
        });
        let schema = self.object(schema.unwrap());
        match (special, self.chance.below(2)) {
            (_, 0) => schema,
            (Special::SchemaOrSchemas, _) => json!([schema, {}]),
            (Special::SchemaOrBool, _) => self.chance.one_of(json!([true, false])),
            _ => json!(["a", "b"]),
        }
    }
}
