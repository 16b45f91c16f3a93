//! Owns the definitions of the built-in kinds as data: what k8s-openapi's generated code says about every type, written
//! down once (`tests/definitions.rs`), for the code that could say it anew takes megabytes of a program.
//!
//! Two files, read with `zcat`: `definitions.tsv.gz` holds what a write must know, `descriptions.tsv.gz` the prose that
//! `kubectl explain` shows and nothing else needs. In both a definition is one line, its name, a tab and JSON, in the
//! order of the names. The first is kept from its first use on, the second only while it is read.

use std::{collections::HashMap, io::Read, sync::OnceLock};

use serde_json::{Map, Value};

const DEFINITIONS: &[u8] = include_bytes!("definitions.tsv.gz");
const DESCRIPTIONS: &[u8] = include_bytes!("descriptions.tsv.gz");

/// The text of one of the files. It was read back when it was written: nothing can be wrong with it here.
fn text(compressed: &[u8]) -> String {
    let mut text = String::new();
    let _ = flate2::read::GzDecoder::new(compressed).read_to_string(&mut text);
    text
}

fn lines(text: &str) -> HashMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once('\t')).collect()
}

/// A definition without its prose.
pub(super) fn bare(name: &str) -> Option<Value> {
    static TEXT: OnceLock<String> = OnceLock::new();
    static LINES: OnceLock<HashMap<&str, &str>> = OnceLock::new();
    let lines = LINES.get_or_init(|| lines(TEXT.get_or_init(|| text(DEFINITIONS))));
    serde_json::from_str(lines.get(name)?).ok()
}

/// The prose of all definitions, for as long as it is needed.
pub(super) struct Descriptions(String);

impl Descriptions {
    pub(super) fn read() -> Descriptions {
        Descriptions(text(DESCRIPTIONS))
    }

    /// A definition with its prose: by field, and under "" what it says of itself.
    pub(super) fn described(&self, name: &str) -> Option<Value> {
        let mut definition = bare(name)?;
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('\t'));
        let prose: Map<String, Value> = line.and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
        for (field, description) in prose {
            let of = if field.is_empty() {
                Some(&mut definition)
            } else {
                definition.get_mut("properties").and_then(|properties| properties.get_mut(&field))
            };
            if let Some(of) = of.and_then(Value::as_object_mut) {
                // Where k8s-openapi puts it: first, or after a reference.
                let place = if of.contains_key("$ref") { of.len() } else { 0 };
                of.shift_insert(place, "description".to_owned(), description);
            }
        }
        Some(definition)
    }
}
