//! Unified diffs of lines, and field-by-field changes of values. Pure.

use serde::Serialize;
use serde_json::Value;

/// So many unchanged lines are shown around a change.
const CONTEXT: usize = 3;
/// Texts with more pairs of differing lines than this are shown as replaced: nobody reads such a diff.
const MOST_PAIRS: usize = 4_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit {
    Keep,
    Remove,
    Add,
}

/// The difference of two texts in the unified format; empty when there is none.
pub fn unified(from_name: &str, to_name: &str, from: &str, to: &str) -> String {
    if from == to {
        return String::new();
    }
    let (a, b): (Vec<&str>, Vec<&str>) = (from.lines().collect(), to.lines().collect());
    let edits = edits(&a, &b);
    let mut text = format!("--- {from_name}\n+++ {to_name}\n");
    let mut at = 0;
    while let Some(first) = (at..edits.len()).find(|index| edits[*index] != Edit::Keep) {
        let start = first.saturating_sub(CONTEXT).max(at);
        let mut end = first + 1;
        // Changes with at most twice the context between them share a hunk.
        while let Some(next) = (end..edits.len()).find(|index| edits[*index] != Edit::Keep) {
            if next - end > 2 * CONTEXT {
                break;
            }
            end = next + 1;
        }
        end = (end + CONTEXT).min(edits.len());
        hunk(&mut text, &edits, start..end, &a, &b);
        at = end;
    }
    text
}

fn hunk(text: &mut String, edits: &[Edit], range: std::ops::Range<usize>, a: &[&str], b: &[&str]) {
    let count = |edits: &[Edit], other: Edit| edits.iter().filter(|edit| **edit != other).count();
    let (mut old, mut new) = (count(&edits[..range.start], Edit::Add), count(&edits[..range.start], Edit::Remove));
    let (olds, news) = (count(&edits[range.clone()], Edit::Add), count(&edits[range.clone()], Edit::Remove));
    let place = |at: usize, lines: usize| if lines == 0 { format!("{at},0") } else { format!("{},{lines}", at + 1) };
    text.push_str(&format!("@@ -{} +{} @@\n", place(old, olds), place(new, news)));
    for edit in &edits[range] {
        let (sign, line) = match edit {
            Edit::Keep => (' ', a[old]),
            Edit::Remove => ('-', a[old]),
            Edit::Add => ('+', b[new]),
        };
        old += usize::from(*edit != Edit::Add);
        new += usize::from(*edit != Edit::Remove);
        text.push(sign);
        text.push_str(line);
        text.push('\n');
    }
}

/// The shortest way from `a` to `b`, by their longest common subsequence.
fn edits(a: &[&str], b: &[&str]) -> Vec<Edit> {
    let before = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let (rest_a, rest_b) = (&a[before..], &b[before..]);
    let after = rest_a.iter().rev().zip(rest_b.iter().rev()).take_while(|(a, b)| a == b).count();
    let (a, b) = (&rest_a[..rest_a.len() - after], &rest_b[..rest_b.len() - after]);
    let mut edits = vec![Edit::Keep; before];
    if a.len().saturating_mul(b.len()) > MOST_PAIRS {
        edits.extend(std::iter::repeat_n(Edit::Remove, a.len()));
        edits.extend(std::iter::repeat_n(Edit::Add, b.len()));
    } else {
        // common[i][j]: how much a[i..] and b[j..] have in common.
        let width = b.len() + 1;
        let mut common = vec![0u32; (a.len() + 1) * width];
        for i in (0..a.len()).rev() {
            for j in (0..b.len()).rev() {
                common[i * width + j] = if a[i] == b[j] {
                    common[(i + 1) * width + j + 1] + 1
                } else {
                    common[(i + 1) * width + j].max(common[i * width + j + 1])
                };
            }
        }
        let (mut i, mut j) = (0, 0);
        while i < a.len() || j < b.len() {
            if i < a.len() && j < b.len() && a[i] == b[j] {
                edits.push(Edit::Keep);
                (i, j) = (i + 1, j + 1);
            } else if j == b.len() || (i < a.len() && common[(i + 1) * width + j] >= common[i * width + j + 1]) {
                edits.push(Edit::Remove);
                i += 1;
            } else {
                edits.push(Edit::Add);
                j += 1;
            }
        }
    }
    edits.extend(std::iter::repeat_n(Edit::Keep, after));
    edits
}

/// One field that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Where: `.spec.template.spec.containers[name=echo].image`.
    pub path: String,
    /// What it was; absent when there was nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// What it becomes; absent when nothing is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let say = |value: &Option<Value>| value.as_ref().map_or("(none)".to_owned(), Value::to_string);
        write!(f, "{}: {} -> {}", self.path, say(&self.from), say(&self.to))
    }
}

/// Every field that differs, in the order of the paths. Elements of a list are told apart by their names where they have one.
pub fn changes(from: &Value, to: &Value) -> Vec<Change> {
    let mut found = Vec::new();
    compare("", Some(from), Some(to), &mut found);
    found
}

fn compare(path: &str, from: Option<&Value>, to: Option<&Value>, found: &mut Vec<Change>) {
    match (from, to) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let plain = key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
                let below = if plain { format!("{path}.{key}") } else { format!("{path}[{key:?}]") };
                compare(&below, a.get(key), b.get(key), found);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => match (names(a), names(b)) {
            (Some(of_a), Some(of_b)) => {
                let order = of_a.iter().chain(of_b.iter().filter(|name| !of_a.contains(name)));
                for name in order {
                    let get = |list: &[&str], values: &'_ [Value]| {
                        list.iter().position(|held| held == name).map(|at| values[at].clone())
                    };
                    compare(&format!("{path}[name={name}]"), get(&of_a, a).as_ref(), get(&of_b, b).as_ref(), found);
                }
            }
            _ => {
                for index in 0..a.len().max(b.len()) {
                    compare(&format!("{path}[{index}]"), a.get(index), b.get(index), found);
                }
            }
        },
        (from, to) if from == to => {}
        (from, to) => found.push(Change { path: path.to_owned(), from: from.cloned(), to: to.cloned() }),
    }
}

/// The names of the elements, if each has one of its own.
fn names(list: &[Value]) -> Option<Vec<&str>> {
    let names = list.iter().map(|item| item.get("name")?.as_str()).collect::<Option<Vec<_>>>()?;
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    (distinct.len() == names.len()).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn a_diff_shows_what_changed_and_a_little_around_it() {
        let from: String = (1..=20).map(|n| format!("line {n}\n")).collect();
        let to = from.replace("line 3\n", "line three\n").replace("line 18\n", "line 18\nline 18½\n");
        let expected = "--- a\n+++ b\n@@ -1,6 +1,6 @@\n line 1\n line 2\n-line 3\n+line three\n line 4\n line 5\n line 6\n@@ -16,5 +16,6 @@\n line 16\n line 17\n line 18\n+line 18½\n line 19\n line 20\n";
        assert_eq!(unified("a", "b", &from, &to), expected);
        assert_eq!(unified("a", "b", &from, &from), "");
        assert_eq!(unified("a", "b", "", "x\n"), "--- a\n+++ b\n@@ -0,0 +1,1 @@\n+x\n");
    }

    #[test]
    fn fields_are_told_by_the_names_of_what_they_are_in() {
        let from = json!({"c": [{"name": "a", "image": "1"}, {"name": "b"}], "l": [1, 2], "x/y": 1});
        let to = json!({"c": [{"name": "a", "image": "2"}, {"name": "d"}], "l": [1], "n": true});
        let said: Vec<String> = changes(&from, &to).iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                r#".c[name=a].image: "1" -> "2""#,
                r#".c[name=b]: {"name":"b"} -> (none)"#,
                r#".c[name=d]: (none) -> {"name":"d"}"#,
                ".l[1]: 2 -> (none)",
                ".n: (none) -> true",
                r#"["x/y"]: 1 -> (none)"#,
            ]
        );
    }

    proptest! {
        #[test]
        fn a_diff_holds_both_texts(a in "[ab\n]{0,30}", b in "[ab\n]{0,30}") {
            let (a, b): (Vec<&str>, Vec<&str>) = (a.lines().collect(), b.lines().collect());
            let (mut i, mut j) = (0, 0);
            for edit in edits(&a, &b) {
                if edit == Edit::Keep {
                    prop_assert_eq!(a[i], b[j]);
                }
                i += usize::from(edit != Edit::Add);
                j += usize::from(edit != Edit::Remove);
            }
            prop_assert_eq!((i, j), (a.len(), b.len()));
        }
    }
}
