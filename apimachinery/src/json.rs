//! Owns the way JSON comes in: bounded in depth before it is parsed, and with a note of fields that are
//! given twice (strict field validation refuses those). Never decides what the JSON should hold.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::field::Path;

/// Nothing in the API nests deeper, and everything that walks a value may recurse this far.
pub const MAX_DEPTH: usize = 120;

/// At most this many repeated fields are reported.
const MOST_DUPLICATES: usize = 100;

/// Why bytes are not JSON we take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Objects and lists nest too deep.
    #[error("exceeded max depth: nesting of more than {limit} levels")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// Not JSON; the text says where and what.
    #[error("{0}")]
    Syntax(String),
}

/// Parses JSON that nests no deeper than `max_depth` (and [`MAX_DEPTH`]). Of a field given twice the last
/// value counts, as everywhere in Kubernetes; its path is in the second half of the answer.
pub fn from_json(bytes: &[u8], max_depth: usize) -> Result<(Value, Vec<Path>), JsonError> {
    let limit = max_depth.min(MAX_DEPTH);
    if nests_deeper(bytes, limit) {
        return Err(JsonError::TooDeep { limit });
    }
    let syntax = |error: serde_json::Error| JsonError::Syntax(error.to_string());
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Tracking { at: Step::Root, duplicates: &mut duplicates, depth: limit }
        .deserialize(&mut deserializer)
        .map_err(syntax)?;
    deserializer.end().map_err(syntax)?;
    Ok((value, duplicates))
}

/// The whole number a float stands for, where there is one: Go's encoder prints such a float without a fraction.
pub(crate) fn whole(number: f64) -> Option<i64> {
    // Below 2^63, so the conversion is exact.
    (number.fract() == 0.0 && number.abs() < 9_223_372_036_854_775_808.0).then_some(number as i64)
}

/// Counts brackets outside of strings: linear, and no deeper on the stack than this function.
fn nests_deeper(bytes: &[u8], limit: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in bytes {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a Step<'a>, &'a str),
    Index(&'a Step<'a>, usize),
}

impl Step<'_> {
    fn path(&self) -> Path {
        match self {
            Step::Root => Path::root(),
            Step::Field(parent, name) => parent.path().child(name),
            Step::Index(parent, index) => parent.path().index(*index),
        }
    }
}

/// Builds a value from any self-describing format, noting repeated fields.
struct Tracking<'a, 'd> {
    at: Step<'a>,
    duplicates: &'d mut Vec<Path>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Tracking<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tracking<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| A::Error::custom("exceeded max depth"))?;
        let mut items = Vec::new();
        loop {
            let at = Step::Index(&self.at, items.len());
            match access.next_element_seed(Tracking { at, duplicates: &mut *self.duplicates, depth })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| A::Error::custom("exceeded max depth"))?;
        let mut map = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            let at = Step::Field(&self.at, &name);
            let value = access.next_value_seed(Tracking { at, duplicates: &mut *self.duplicates, depth })?;
            if map.contains_key(&name) && self.duplicates.len() < MOST_DUPLICATES {
                self.duplicates.push(Step::Field(&self.at, &name).path());
            }
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

/// A value and its repeated fields, for formats that drive deserialization themselves.
pub(crate) struct Tracked {
    pub(crate) value: Value,
    pub(crate) duplicates: Vec<Path>,
}

impl<'de> serde::Deserialize<'de> for Tracked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tracked, D::Error> {
        let mut duplicates = Vec::new();
        let seed = Tracking { at: Step::Root, duplicates: &mut duplicates, depth: MAX_DEPTH };
        let value = seed.deserialize(deserializer)?;
        Ok(Tracked { value, duplicates })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn repeated_fields_are_named_and_the_last_one_counts() {
        let (value, duplicates) =
            from_json(br#"{"a": 1, "b": [{"c": 1, "c": 2}], "a": {"x": null}}"#, MAX_DEPTH).unwrap();
        assert_eq!(value, json!({"a": {"x": null}, "b": [{"c": 2}]}));
        assert_eq!(duplicates.iter().map(Path::as_str).collect::<Vec<_>>(), ["b[0].c", "a"]);
    }

    #[test]
    fn ten_thousand_levels_are_an_error_not_a_crash() {
        for open in ["[", "{\"a\":"] {
            let text = open.repeat(10_000);
            assert_eq!(from_json(text.as_bytes(), MAX_DEPTH), Err(JsonError::TooDeep { limit: MAX_DEPTH }));
        }
        let fine = format!("{}1{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
        assert!(from_json(fine.as_bytes(), usize::MAX).is_ok());
        assert!(from_json(b"\"[[[[[[[[\\\"[[[[\"", 2).is_ok());
    }

    #[test]
    fn what_is_no_json_is_said_with_its_place() {
        for text in ["", "{", "{\"a\"}", "nul", "1 2", "{\"a\":1,}", "\u{feff}{}", "[1e999]"] {
            assert!(matches!(from_json(text.as_bytes(), MAX_DEPTH), Err(JsonError::Syntax(_))), "{text}");
        }
        let error = from_json(b"{\n \"a\": }", MAX_DEPTH).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn agrees_with_serde_json() {
        let text = r#"{"a":[1,-2,3.5,1e3,18446744073709551615,true,null,"\u00e9"],"b":{}}"#;
        assert_eq!(from_json(text.as_bytes(), MAX_DEPTH).unwrap().0, serde_json::from_str::<Value>(text).unwrap());
    }
}
