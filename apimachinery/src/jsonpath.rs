//! Owns the subset of JSONPath that printer columns and selectable fields use: fields, quoted fields,
//! indexes, `[*]` and `[?(@.a=="b")]`. Never formats what it finds.

use serde_json::Value;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// Children whose value at the inner path equals (or does not equal) a literal; `None`: is present.
    Filter(JsonPath, Option<(bool, Value)>),
}

/// The text is not a path we read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid JSON path {path:?}: {why}")]
pub struct PathError {
    /// The path as given.
    pub path: String,
    /// What is wrong with it.
    pub why: String,
}

impl JsonPath {
    /// Reads `.spec.replicas`, `.status.conditions[?(@.type=="Ready")].status`, `.metadata.labels.a\.b`.
    pub fn parse(text: &str) -> Result<JsonPath, PathError> {
        let trimmed = text.trim();
        let inner = trimmed.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(trimmed);
        let inner = inner.strip_prefix('$').unwrap_or(inner);
        let steps = parse_steps(inner).map_err(|why| PathError { path: text.to_owned(), why })?;
        Ok(JsonPath { steps })
    }

    /// Everything the path leads to, in document order.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        follow(&self.steps, value)
    }

    /// The same, starting at a map, as [`crate::object::Object`] is.
    pub fn find_in_map<'a>(&self, map: &'a serde_json::Map<String, Value>) -> Vec<&'a Value> {
        match self.steps.split_first() {
            Some((Step::Field(name), rest)) => map.get(name).map(|value| follow(rest, value)).unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// True when the path is nothing but field names, as selectable fields must be.
    pub fn is_simple(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(|s| matches!(s, Step::Field(_)))
    }

    /// The field names of a simple path; empty when it is not one.
    pub fn fields(&self) -> Vec<&str> {
        if !self.is_simple() {
            return Vec::new();
        }
        self.steps.iter().filter_map(|s| if let Step::Field(name) = s { Some(name.as_str()) } else { None }).collect()
    }
}

fn follow<'a>(steps: &[Step], value: &'a Value) -> Vec<&'a Value> {
    let mut current = vec![value];
    for step in steps {
        let mut next = Vec::new();
        for value in current {
            step.walk(value, &mut next);
        }
        current = next;
        if current.is_empty() {
            break;
        }
    }
    current
}

impl Step {
    fn walk<'a>(&self, value: &'a Value, out: &mut Vec<&'a Value>) {
        match (self, value) {
            (Step::Field(name), Value::Object(map)) => out.extend(map.get(name)),
            (Step::Index(i), Value::Array(items)) => {
                let at = if *i < 0 { items.len() as i64 + i } else { *i };
                out.extend(usize::try_from(at).ok().and_then(|at| items.get(at)));
            }
            (Step::All, Value::Array(items)) => out.extend(items),
            (Step::All, Value::Object(map)) => out.extend(map.values()),
            (Step::Filter(path, want), Value::Array(items)) => {
                out.extend(items.iter().filter(|item| {
                    let found = path.find(item);
                    match want {
                        None => !found.is_empty(),
                        Some((equal, literal)) => found.iter().any(|f| (same(f, literal)) == *equal),
                    }
                }));
            }
            _ => {}
        }
    }
}

fn same(a: &Value, b: &Value) -> bool {
    a == b || matches!((a.as_f64(), b.as_f64()), (Some(x), Some(y)) if x == y)
}

fn parse_steps(text: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let end = closing_bracket(after).ok_or("unterminated '['")?;
            steps.push(parse_bracket(after[..end].trim())?);
            rest = &after[end + 1..];
        } else if let Some(after) = rest.strip_prefix('.') {
            if after.starts_with('[') {
                rest = after;
                continue;
            }
            if after.starts_with('.') {
                return Err("recursive descent is not supported".to_owned());
            }
            if let Some(after) = after.strip_prefix('*') {
                steps.push(Step::All);
                rest = after;
                continue;
            }
            let (name, remaining) = field_name(after);
            if name.is_empty() {
                if remaining.is_empty() && steps.is_empty() {
                    break; // "." is the object itself
                }
                return Err("empty field name".to_owned());
            }
            steps.push(Step::Field(name));
            rest = remaining;
        } else if steps.is_empty() {
            let (name, remaining) = field_name(rest);
            if name.is_empty() {
                return Err(format!("unexpected {rest:?}"));
            }
            steps.push(Step::Field(name));
            rest = remaining;
        } else {
            return Err(format!("unexpected {rest:?}"));
        }
    }
    Ok(steps)
}

/// A name up to an unescaped `.` or `[`, and what follows.
fn field_name(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (name, &text[i..]),
            c => name.push(c),
        }
    }
    (name, "")
}

/// The `]` that closes, outside quotes and inner brackets.
fn closing_bracket(text: &str) -> Option<usize> {
    let (mut quote, mut depth, mut escaped) = (None, 0, false);
    for (i, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (_, '\\') => escaped = true,
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(i),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn parse_bracket(text: &str) -> Result<Step, String> {
    if text == "*" {
        return Ok(Step::All);
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        let (left, want) = if let Some((left, right)) = filter.split_once("==") {
            (left, Some((true, literal(right.trim())?)))
        } else if let Some((left, right)) = filter.split_once("!=") {
            (left, Some((false, literal(right.trim())?)))
        } else {
            (filter, None)
        };
        let inner = left.trim().strip_prefix('@').ok_or("a filter must start with '@'")?;
        return Ok(Step::Filter(JsonPath { steps: parse_steps(inner)? }, want));
    }
    if let Ok(Value::String(name)) = literal(text) {
        return Ok(Step::Field(name));
    }
    text.parse().map(Step::Index).map_err(|_| format!("unexpected [{text}]"))
}

fn literal(text: &str) -> Result<Value, String> {
    for quote in ['\'', '"'] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|t| t.strip_suffix(quote)) {
            return Ok(Value::String(inner.replace('\\', "")));
        }
    }
    serde_json::from_str(text).map_err(|_| format!("unexpected {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn paths_of_printer_columns() {
        let doc = json!({
            "spec": {"replicas": 3, "a.b": 1, "list": [{"n": "x", "v": 1}, {"n": "y", "v": 2}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Ok", "status": "False"}]},
        });
        let table = [
            (".spec.replicas", json!([3])),
            ("{.spec.replicas}", json!([3])),
            ("spec.replicas", json!([3])),
            (r".spec.a\.b", json!([1])),
            (".spec['a.b']", json!([1])),
            (".spec.list[0].n", json!(["x"])),
            (".spec.list[-1].n", json!(["y"])),
            (".spec.list[*].v", json!([1, 2])),
            (".spec.list[?(@.v==2)].n", json!(["y"])),
            (r#".status.conditions[?(@.type=="Ready")].status"#, json!(["True"])),
            (".status.conditions[?(@.type!='Ready')].status", json!(["False"])),
            (".none.such", json!([])),
            (".spec.list[9]", json!([])),
        ];
        for (path, want) in table {
            let path = JsonPath::parse(path).unwrap();
            assert_eq!(json!(path.find(&doc)), want, "{path:?}");
            assert_eq!(json!(path.find_in_map(doc.as_object().unwrap())), want);
        }
        for bad in ["..a", ".a[", ".a[x]", ".a..b", ".a[?(b)]"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
        assert!(JsonPath::parse(".spec.a").unwrap().is_simple());
        assert!(!JsonPath::parse(".spec.a[0]").unwrap().is_simple());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[.a@?()='\"\\[\\]\\\\*0-9$-]{0,24}") {
            if let Ok(path) = JsonPath::parse(&text) {
                let _ = path.find(&json!({"a": [{"a": 1}]}));
            }
        }
    }
}
