//! Owns YAML in and out, as kubectl reads and writes it: YAML 1.1 booleans and octals, many documents,
//! merge keys; aliases, depth and size bounded. Never lets a YAML type through that JSON does not have.

use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;

use crate::{field::Path, json::Tracked};

/// Documents nest no deeper: what reads them needs much stack for each level.
const MAX_DEPTH: usize = 60;

/// Why a text is not YAML we take; the message names line and column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("error converting YAML to JSON: yaml: {0}")]
pub struct YamlError(pub String);

/// Reads every document; empty ones are left out.
pub fn from_yaml(bytes: &[u8]) -> Result<Vec<Value>, YamlError> {
    Ok(from_yaml_strict(bytes)?.into_iter().map(|(value, _)| value).collect())
}

/// Reads every document, with the paths of fields that are given twice: the last one counts, and strict
/// field validation refuses them.
pub fn from_yaml_strict(bytes: &[u8]) -> Result<Vec<(Value, Vec<Path>)>, YamlError> {
    let text = std::str::from_utf8(bytes).map_err(|error| YamlError(format!("not UTF-8: {error}")))?;
    if text.contains('\0') {
        return Err(YamlError("control characters are not allowed".to_owned()));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_aliases: 10_000,
            max_anchors: 10_000,
            max_nodes: 1_000_000,
            max_events: 2_000_000,
            max_total_scalar_bytes: 16 << 20,
            flow_nesting_limit: MAX_DEPTH + 1,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let documents: Vec<Option<Tracked>> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| YamlError(error.to_string()))?;
    let documents = documents.into_iter().flatten().map(|mut tracked| {
        as_json(&mut tracked.value);
        (tracked.value, tracked.duplicates)
    });
    Ok(documents.filter(|(value, _)| !value.is_null()).collect())
}

/// On its way to JSON a YAML float passes through Go's encoder: `replicas: 3.0` arrives as 3 (sigs.k8s.io/yaml).
fn as_json(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            if let Some(whole) = number.as_f64().and_then(crate::json::whole) {
                *value = whole.into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(as_json),
        Value::Object(map) => map.values_mut().for_each(as_json),
        _ => {}
    }
}

/// Writes one document, ending in a newline. Strings that YAML 1.1 would read as something else are quoted.
pub fn to_yaml(value: &Value) -> String {
    let options = serde_saphyr::ser_options! { empty_as_braces: true };
    match serde_saphyr::to_string_with_options(value, options) {
        Ok(mut text) => {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text
        }
        // JSON is YAML: whatever the writer could not do, this says the same.
        Err(_) => format!("{value}\n"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_reads_as_kubectl_reads_it() {
        let table = [
            ("a: on", json!({"a": true})),
            ("a: \"on\"", json!({"a": "on"})),
            ("a: no", json!({"a": false})),
            ("a: 0644", json!({"a": 420})),
            ("a: 1e3", json!({"a": 1000})),
            ("a: [3.0, -0.5]", json!({"a": [3, -0.5]})),
            ("a: ~", json!({"a": null})),
            ("a: 1.5", json!({"a": 1.5})),
            ("a: 1h", json!({"a": "1h"})),
            ("1: x", json!({"1": "x"})),
            ("x: &x {a: 1}\ny: {<<: *x, b: 2}", json!({"x": {"a": 1}, "y": {"a": 1, "b": 2}})),
            ("a: |\n  l1\n  l2\n", json!({"a": "l1\nl2\n"})),
            ("a: >\n  l1\n  l2\n", json!({"a": "l1 l2\n"})),
            ("{\"json\": [1, {}]}", json!({"json": [1, {}]})),
        ];
        for (text, expected) in table {
            assert_eq!(from_yaml(text.as_bytes()).unwrap(), [expected], "{text}");
        }
    }

    #[test]
    fn documents_come_apart_and_empty_ones_vanish() {
        let documents = from_yaml(b"---\na: 1\n---\n# nothing\n---\nb: 2\n").unwrap();
        assert_eq!(documents, [json!({"a": 1}), json!({"b": 2})]);
        assert!(from_yaml(b"").unwrap().is_empty());
    }

    #[test]
    fn repeated_fields_are_named() {
        let documents = from_yaml_strict(b"a:\n  b: 1\n  b: 2\n").unwrap();
        assert_eq!(documents[0].0, json!({"a": {"b": 2}}));
        assert_eq!(documents[0].1, [Path::of("a.b")]);
    }

    #[test]
    fn errors_name_the_line() {
        let error = from_yaml(b"a: 1\nb: [1\nc: 2\n").unwrap_err().to_string();
        assert!(error.contains("line"), "{error}");
        assert!(from_yaml(b"a: \"x").is_err());
        assert!(from_yaml(b"\xff\xfe").is_err());
    }

    #[test]
    fn bombs_are_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let last = level - 1;
            let items = vec![format!("*a{last}"); 9].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{items}]\n"));
        }
        assert!(from_yaml(bomb.as_bytes()).is_err());
        for open in ["[", "{a: ", "- ", "? ", "- ? ", "[{a: ["] {
            eprintln!("{open}");
            assert!(from_yaml(open.repeat(10_000).as_bytes()).is_err(), "{open}");
        }
        let mut stairs = String::new();
        for level in 0..1_000 {
            stairs.push_str(&format!("{}a:\n", " ".repeat(level)));
        }
        assert!(from_yaml(stairs.as_bytes()).is_err());
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let values = [
            json!({"a": ["on", "yes", "0644", "1", "null", "~", "", " x", "1e3", "true", "0x1", "1_000", "a: b", "# c"]}),
            json!({"m": {}, "l": [], "n": null, "t": "line\nline\n", "deep": [[{"x": [1, 2.5, -3]}]]}),
            json!({"on": 1, "y": "n", "multi": "a\n\n  b", "tab": "\t", "u": "é\u{1F600}", "colon:": "-"}),
            json!({"long": "word ".repeat(60), "trail": "x  ", "quote": "it's \"quoted\"", "time": "2024-01-01"}),
        ];
        for value in values {
            let text = to_yaml(&value);
            assert_eq!(from_yaml(text.as_bytes()).unwrap(), [value], "{text}");
        }
    }
}
