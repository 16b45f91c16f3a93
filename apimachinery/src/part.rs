//! Owns reading a part of an object, and putting it back changed: the fields somebody asks for, and of the others no more
//! than where they begin and end. What selectors look at is a few words of a pod; the whole of it is a hundred values.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::object::Object;

/// Which fields are read: each by its name, whole or in part in turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    fields: BTreeMap<String, Part>,
    whole: bool,
}

impl Part {
    /// What lies at these paths of field names; all of it for an empty path.
    pub fn at<'a>(paths: impl IntoIterator<Item = Vec<&'a str>>) -> Part {
        let mut part = Part::default();
        for path in paths {
            let end = path.into_iter().fold(&mut part, |part, name| part.fields.entry(name.to_owned()).or_default());
            end.whole = true;
        }
        part
    }

    /// Reads this part of an object.
    ///
    /// # Errors
    /// When the bytes are no JSON object.
    pub fn read(&self, bytes: &[u8]) -> Result<Object, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let value = self.deserialize(&mut deserializer)?;
        deserializer.end()?;
        serde_json::from_value(value)
    }

    /// The text of the object of which this part was [read](Part::read), with the part as it is now: what else the object
    /// has stays as it is written, and is not even looked at. What the part has besides is added.
    ///
    /// # Errors
    /// When the text is no JSON object.
    pub fn put_back(&self, whole: &str, part: &Map<String, Value>) -> Result<Vec<u8>, serde_json::Error> {
        let mut out = Vec::with_capacity(whole.len() + 256);
        self.merge(&mut out, whole, part)?;
        Ok(out)
    }

    fn merge(&self, out: &mut Vec<u8>, whole: &str, part: &Map<String, Value>) -> Result<(), serde_json::Error> {
        let Fields(fields) = serde_json::from_str(whole)?;
        let mut list = List { out, begun: false };
        for (name, text) in &fields {
            match (self.fields.get(&**name), part.get(&**name)) {
                (None, _) => list.field(name)?.extend_from_slice(text.get().as_bytes()),
                // Read in part, and still what it was: a part of it goes back.
                (Some(below), Some(Value::Object(value))) if !below.whole && text.get().starts_with('{') => {
                    below.merge(list.field(name)?, text.get(), value)?;
                }
                (Some(_), Some(value)) => serde_json::to_writer(list.field(name)?, value)?,
                (Some(_), None) => {}
            }
        }
        for (name, value) in part {
            if !fields.iter().any(|(have, _)| have == name) {
                serde_json::to_writer(list.field(name)?, value)?;
            }
        }
        list.out.extend_from_slice(if list.begun { b"}" } else { b"{}" });
        Ok(())
    }
}

/// An object that is being written.
struct List<'a> {
    out: &'a mut Vec<u8>,
    begun: bool,
}

impl List<'_> {
    /// Begins a field; its value goes into what is returned.
    fn field(&mut self, name: &str) -> Result<&mut Vec<u8>, serde_json::Error> {
        self.out.push(if std::mem::replace(&mut self.begun, true) { b',' } else { b'{' });
        serde_json::to_writer(&mut *self.out, name)?;
        self.out.push(b':');
        Ok(self.out)
    }
}

/// The fields of an object, their values as they are written.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Fields<'de>, M::Error> {
                let mut fields = Vec::with_capacity(8);
                while let Some((Name(name), value)) = map.next_entry()? {
                    fields.push((name, value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// A name, borrowed where it is written without escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> DeserializeSeed<'de> for &Part {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.whole { Value::deserialize(deserializer) } else { deserializer.deserialize_any(self) }
    }
}

impl<'de> Visitor<'de> for &Part {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Value, M::Error> {
        let mut read = Map::new();
        while let Some(found) = map.next_key_seed(Named(self))? {
            match found {
                Some((name, part)) => drop(read.insert(name.clone(), map.next_value_seed(part)?)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(read))
    }

    // A path goes through fields: what is no object has nothing at it, and is kept for whoever wants to say so.
    fn visit_seq<S: SeqAccess<'de>>(self, seq: S) -> Result<Value, S::Error> {
        Value::deserialize(SeqAccessDeserializer::new(seq))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

/// The field of that name, if it is asked for.
struct Named<'p>(&'p Part);

impl<'de, 'p> DeserializeSeed<'de> for Named<'p> {
    type Value = Option<(&'p String, &'p Part)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'p> Visitor<'_> for Named<'p> {
    type Value = Option<(&'p String, &'p Part)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.fields.get_key_value(name))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_asked_for_is_read_and_nothing_else() {
        let part = Part::at([vec!["metadata", "labels"], vec!["spec", "nodeName"], vec!["type"]]);
        let object = json!({
            "type": "Opaque", "kind": "Pod",
            "metadata": {"name": "a", "labels": {"app": "web"}},
            "spec": {"nodeName": "n", "containers": [{"nodeName": "not this"}]},
            "status": {"spec": {"nodeName": "nor this"}},
        });
        let read = part.read(object.to_string().as_bytes()).unwrap().into_value();
        let wanted = json!({"type": "Opaque", "metadata": {"labels": {"app": "web"}}, "spec": {"nodeName": "n"}});
        assert_eq!(read, wanted);
        for odd in [json!({"metadata": [1, {"labels": 2}], "spec": null}), json!({"metadata": 1.5, "spec": "x"})] {
            assert_eq!(part.read(odd.to_string().as_bytes()).unwrap().into_value(), odd);
        }
        for text in ["[]", "{", "{} x", "7"] {
            assert!(part.read(text.as_bytes()).is_err(), "{text}");
        }
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![Just(Value::Null), any::<i64>().prop_map(Value::from), "[a\\\\\"ü]{0,3}".prop_map(Value::from)];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[a-c]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn whole() -> impl Strategy<Value = Map<String, Value>> {
        proptest::collection::btree_map("[a-c]", tree(), 0..4).prop_map(|fields| fields.into_iter().collect())
    }

    fn paths() -> impl Strategy<Value = Vec<Vec<String>>> {
        proptest::collection::vec(proptest::collection::vec("[a-c]", 1..4), 0..4)
    }

    fn part_at(paths: &[Vec<String>]) -> Part {
        Part::at(paths.iter().map(|path| path.iter().map(String::as_str).collect()))
    }

    /// Sets or removes what is at a path, through objects only.
    fn set(value: &mut Value, path: &[String], new: &Option<Value>) {
        let Value::Object(map) = value else { return };
        match path {
            [] => {}
            [name] => match new {
                Some(new) => drop(map.insert(name.clone(), new.clone())),
                None => drop(map.shift_remove(name)),
            },
            [name, rest @ ..] => {
                if let Some(below) = map.get_mut(name) {
                    set(below, rest, new);
                }
            }
        }
    }

    #[test]
    fn what_was_not_read_goes_back_as_it_was_written() {
        let part = Part::at([vec!["metadata"], vec!["spec", "nodeName"], vec!["status", "conditions"]]);
        let text =
            r#"{"a":[1.0,2e3],"metadata":{"name":"p"},"spec":{"x":"\u00fc","y":[{}]},"status":{"phase":"Pending"}}"#;
        let mut read = part.read(text.as_bytes()).unwrap();
        let same = part.put_back(text, &read.0).unwrap();
        assert_eq!(String::from_utf8(same).unwrap(), text);
        read.set(&["spec", "nodeName"], "n");
        read.set(&["status", "conditions"], json!([{"type": "A"}]));
        let changed = String::from_utf8(part.put_back(text, &read.0).unwrap()).unwrap();
        assert_eq!(
            changed,
            r#"{"a":[1.0,2e3],"metadata":{"name":"p"},"spec":{"x":"\u00fc","y":[{}],"nodeName":"n"},"status":{"phase":"Pending","conditions":[{"type":"A"}]}}"#
        );
    }

    proptest! {
        #[test]
        fn to_change_a_part_is_to_change_the_whole_there(
            whole in whole(),
            paths in paths(),
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), proptest::option::of(tree())), 0..4),
        ) {
            let (part, mut whole) = (part_at(&paths), Value::Object(whole));
            let text = whole.to_string();
            let mut read = part.read(text.as_bytes()).unwrap().into_value();
            for (at, new) in changes.iter().filter(|_| !paths.is_empty()) {
                let path = at.get(&paths);
                set(&mut read, path, new);
                set(&mut whole, path, new);
            }
            let Value::Object(read) = read else { unreachable!("an object") };
            let back: Value = serde_json::from_slice(&part.put_back(&text, &read).unwrap()).unwrap();
            prop_assert_eq!(back, whole);
        }

        #[test]
        fn at_every_path_asked_for_is_what_is_there_in_the_whole(
            whole in whole(),
            paths in paths(),
        ) {
            let (part, whole) = (part_at(&paths), Value::Object(whole));
            let read = part.read(whole.to_string().as_bytes()).unwrap().into_value();
            for path in paths {
                let find = |value: &Value| path.iter().try_fold(value.clone(), |value, name| value.get(name).cloned());
                prop_assert_eq!(find(&read), find(&whole));
            }
        }
    }
}
