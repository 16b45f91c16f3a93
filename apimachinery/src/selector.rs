//! Owns label and field selectors: the query-string grammar, the `metav1.LabelSelector` form, and
//! matching. Never reads an object: the caller hands it a lookup.
//!
//! The grammar is that of `k8s.io/apimachinery/pkg/labels` and `…/fields`.

use std::fmt;

use serde_json::Value;

use crate::names;

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// One of the values.
    In,
    /// None of the values; an absent key matches.
    NotIn,
    /// The key is present.
    Exists,
    /// The key is absent.
    DoesNotExist,
    /// An integer above the value.
    Gt,
    /// An integer below the value.
    Lt,
}

/// One term of a label selector.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label key.
    pub key: String,
    /// The comparison.
    pub operator: Operator,
    /// Sorted, without repeats.
    pub values: Vec<String>,
}

/// All requirements must hold; none is everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

/// The text is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unable to parse requirement: {0}")]
pub struct SelectorError(pub String);

impl Requirement {
    fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Requirement, SelectorError> {
        if let Some(error) = names::is_qualified_name(key).first() {
            return Err(SelectorError(format!("<nil>: Invalid value: {key:?}: {error}")));
        }
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                return Err(SelectorError(
                    "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty".into(),
                ));
            }
            Operator::Gt | Operator::Lt if values.len() != 1 || values[0].parse::<i64>().is_err() => {
                return Err(SelectorError(
                    "values[0]: Invalid value: for 'Gt', 'Lt' operators, the value must be an integer".into(),
                ));
            }
            _ => {}
        }
        for (i, value) in values.iter().enumerate() {
            if let Some(error) = names::is_label_value(value).first() {
                return Err(SelectorError(format!("values[{i}][{key}]: Invalid value: {value:?}: {error}")));
            }
        }
        values.sort();
        values.dedup();
        Ok(Requirement { key: key.to_owned(), operator, values })
    }

    /// Does a label value (or its absence) satisfy this term?
    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |v: &str| self.values.iter().any(|x| x == v);
        match (self.operator, value) {
            (Operator::In, Some(v)) => listed(v),
            (Operator::NotIn, Some(v)) => !listed(v),
            (Operator::NotIn | Operator::DoesNotExist, None) => true,
            (Operator::Exists, v) => v.is_some(),
            (Operator::DoesNotExist, Some(_)) | (Operator::In | Operator::Gt | Operator::Lt, None) => false,
            (Operator::Gt | Operator::Lt, Some(v)) => {
                match (v.parse::<i64>(), self.values.first().and_then(|x| x.parse::<i64>().ok())) {
                    (Ok(have), Some(want)) if self.operator == Operator::Gt => have > want,
                    (Ok(have), Some(want)) => have < want,
                    _ => false,
                }
            }
        }
    }
}

impl LabelSelector {
    /// Matches every object.
    pub fn everything() -> LabelSelector {
        LabelSelector::default()
    }

    /// Matches no object.
    pub fn nothing() -> LabelSelector {
        LabelSelector { requirements: Vec::new(), nothing: true }
    }

    /// Reads the query-string form: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1,m<2`.
    pub fn parse(text: &str) -> Result<LabelSelector, SelectorError> {
        let mut lexer = Lexer { text, at: 0 };
        let mut requirements = Vec::new();
        if lexer.peek() == Token::End {
            return Ok(LabelSelector::default());
        }
        loop {
            requirements.push(lexer.requirement()?);
            match lexer.next() {
                Token::End => break,
                Token::Comma if lexer.peek() == Token::End => {
                    return Err(SelectorError("found '', expected: identifier after ','".into()));
                }
                Token::Comma => {}
                other => return Err(SelectorError(format!("found '{other}', expected: ',' or 'end of string'"))),
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// Reads the object form (`matchLabels`, `matchExpressions`). `null` matches nothing, `{}` everything.
    pub fn from_value(value: &Value) -> Result<LabelSelector, SelectorError> {
        let Some(map) = value.as_object() else {
            return if value.is_null() {
                Ok(LabelSelector::nothing())
            } else {
                Err(SelectorError("a label selector must be an object".into()))
            };
        };
        let mut requirements = Vec::new();
        if let Some(labels) = map.get("matchLabels").and_then(Value::as_object) {
            for (key, value) in labels {
                let value = value.as_str().unwrap_or_default().to_owned();
                requirements.push(Requirement::new(key, Operator::In, vec![value])?);
            }
        }
        for expression in map.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = expression.get("key").and_then(Value::as_str).unwrap_or_default();
            let values: Vec<String> = expression
                .get("values")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect();
            let name = expression.get("operator").and_then(Value::as_str).unwrap_or_default();
            let operator = match name {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => return Err(SelectorError(format!("{name:?} is not a valid label selector operator"))),
            };
            let values = if matches!(operator, Operator::Exists | Operator::DoesNotExist) { vec![] } else { values };
            requirements.push(Requirement::new(key, operator, values)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// A selector of equalities, as Services and ReplicationControllers have.
    pub fn from_map<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> LabelSelector {
        let mut requirements: Vec<Requirement> = labels
            .into_iter()
            .map(|(k, v)| Requirement { key: k.to_owned(), operator: Operator::In, values: vec![v.to_owned()] })
            .collect();
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        LabelSelector { requirements, nothing: false }
    }

    /// Does an object with these labels match?
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }

    /// True when every object matches.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// The terms, sorted by key.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match (r.operator, r.values.as_slice()) {
                (Operator::In, [one]) => write!(f, "{}={one}", r.key)?,
                (Operator::In, many) => write!(f, "{} in ({})", r.key, many.join(","))?,
                (Operator::NotIn, [one]) => write!(f, "{}!={one}", r.key)?,
                (Operator::NotIn, many) => write!(f, "{} notin ({})", r.key, many.join(","))?,
                (Operator::Exists, _) => f.write_str(&r.key)?,
                (Operator::DoesNotExist, _) => write!(f, "!{}", r.key)?,
                (Operator::Gt, v) => write!(f, "{}>{}", r.key, v.join(","))?,
                (Operator::Lt, v) => write!(f, "{}<{}", r.key, v.join(","))?,
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    End,
    Comma,
    Open,
    Close,
    Not,
    Equal,
    NotEqual,
    Greater,
    Less,
    Word(&'a str),
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Token::End => "",
            Token::Comma => ",",
            Token::Open => "(",
            Token::Close => ")",
            Token::Not => "!",
            Token::Equal => "=",
            Token::NotEqual => "!=",
            Token::Greater => ">",
            Token::Less => "<",
            Token::Word(word) => word,
        })
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn peek(&mut self) -> Token<'a> {
        let at = self.at;
        let token = self.next();
        self.at = at;
        token
    }

    fn next(&mut self) -> Token<'a> {
        let rest = &self.text[self.at..];
        let rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        self.at = self.text.len() - rest.len();
        let symbols = [
            ("==", Token::Equal),
            ("!=", Token::NotEqual),
            ("=", Token::Equal),
            ("!", Token::Not),
            (",", Token::Comma),
            ("(", Token::Open),
            (")", Token::Close),
            (">", Token::Greater),
            ("<", Token::Less),
        ];
        if rest.is_empty() {
            return Token::End;
        }
        for (symbol, token) in symbols {
            if rest.starts_with(symbol) {
                self.at += symbol.len();
                return token;
            }
        }
        let end = rest.find([' ', '\t', '\r', '\n', '=', '!', ',', '(', ')', '>', '<']).unwrap_or(rest.len());
        self.at += end;
        Token::Word(&rest[..end])
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let found = |token: Token<'_>, want: &str| Err(SelectorError(format!("found '{token}', expected: {want}")));
        let key = match self.next() {
            Token::Not => {
                return match self.next() {
                    Token::Word(key) => Requirement::new(key, Operator::DoesNotExist, vec![]),
                    other => found(other, "identifier"),
                };
            }
            Token::Word(key) => key,
            other => return found(other, "!, identifier, or 'end of string'"),
        };
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Requirement::new(key, Operator::Exists, vec![]);
        }
        match self.next() {
            Token::Equal => Requirement::new(key, Operator::In, vec![self.value()]),
            Token::NotEqual => Requirement::new(key, Operator::NotIn, vec![self.value()]),
            Token::Greater => Requirement::new(key, Operator::Gt, vec![self.value()]),
            Token::Less => Requirement::new(key, Operator::Lt, vec![self.value()]),
            Token::Word("in") => Requirement::new(key, Operator::In, self.values()?),
            Token::Word("notin") => Requirement::new(key, Operator::NotIn, self.values()?),
            other => found(other, "in, notin, =, ==, !=, gt, lt"),
        }
    }

    /// The word after an operator; nothing there is the empty value.
    fn value(&mut self) -> String {
        match self.peek() {
            Token::Word(word) => {
                self.next();
                word.to_owned()
            }
            _ => String::new(),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        match self.next() {
            Token::Open => {}
            other => return Err(SelectorError(format!("found '{other}', expected: '('"))),
        }
        let mut values = vec![self.value()];
        loop {
            match self.next() {
                Token::Comma => values.push(self.value()),
                Token::Close => return Ok(values),
                other => return Err(SelectorError(format!("found '{other}', expected: ',', or ')'"))),
            }
        }
    }
}

/// `path=value` or `path!=value`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldRequirement {
    /// The dotted path: `metadata.name`, `spec.nodeName`.
    pub field: String,
    /// False for `!=`.
    pub equal: bool,
    /// The value, unescaped.
    pub value: String,
}

/// All requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Reads `a=b,c!=d`; `\`, `,` and `=` in values are escaped by `\`.
    pub fn parse(text: &str) -> Result<FieldSelector, SelectorError> {
        let invalid = |why: String| SelectorError(why);
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            let (field, equal, value) = if let Some((f, v)) = split_operator(term, "!=") {
                (f, false, v)
            } else if let Some((f, v)) = split_operator(term, "==") {
                (f, true, v)
            } else if let Some((f, v)) = split_operator(term, "=") {
                (f, true, v)
            } else {
                return Err(invalid(format!("invalid selector: '{text}'; can't understand '{term}'")));
            };
            let value = unescape(value)
                .ok_or_else(|| invalid(format!("invalid field selector: invalid escape sequence in '{term}'")))?;
            requirements.push(FieldRequirement { field: field.to_owned(), equal, value });
        }
        Ok(FieldSelector { requirements })
    }

    /// The terms.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    /// True when every object matches.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Does an object with these field values match? An absent field reads as empty.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> Option<std::borrow::Cow<'a, str>>) -> bool {
        self.requirements.iter().all(|r| (field(&r.field).unwrap_or_default() == r.value.as_str()) == r.equal)
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, b) in text.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// Splits at the first unescaped operator, which must be exactly `operator`.
fn split_operator<'a>(term: &'a str, operator: &str) -> Option<(&'a str, &'a str)> {
    let at = term.find(['=', '!'])?;
    let rest = term[at..].strip_prefix(operator)?;
    Some((&term[..at], rest))
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                e @ ('\\' | ',' | '=') => out.push(e),
                _ => return None,
            },
            ',' | '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let selector = LabelSelector::parse(selector).unwrap();
        selector.matches(|key| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v))
    }

    #[test]
    fn label_selectors_match_as_on_kubernetes() {
        let labels = [("a", "b"), ("n", "5"), ("e", "")];
        for (selector, want) in [
            ("", true),
            ("a", true),
            ("!a", false),
            ("a=b", true),
            ("a==b", true),
            ("a = b , n", true),
            ("a!=b", false),
            ("x!=b", true),
            ("a in (b,c)", true),
            ("a in (c)", false),
            ("a notin (c)", true),
            ("x notin (c)", true),
            ("x in (c)", false),
            ("n>4", true),
            ("n<5", false),
            ("e=", true),
            ("e in ()", true),
            ("a=b,x", false),
        ] {
            assert_eq!(matches(selector, &labels), want, "{selector}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["a=b=c", "a in", "a in (b", ",", "a,", "=b", "!", "a b", "-a=b", "a=-", "a>b", "(a)"] {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_object_form_is_the_same_selector() {
        let value = json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "DoesNotExist"}]});
        let selector = LabelSelector::from_value(&value).unwrap();
        assert_eq!(selector, LabelSelector::parse("a=b,c in (d,e),!f").unwrap());
        assert!(!LabelSelector::from_value(&Value::Null).unwrap().matches(|_| None));
        assert!(LabelSelector::from_value(&json!({})).unwrap().is_everything());
        assert!(LabelSelector::from_value(&json!({"matchExpressions": [{"key": "a", "operator": "Is"}]})).is_err());
    }

    #[test]
    fn field_selectors() {
        let selector = FieldSelector::parse(r"metadata.name=a\,b,spec.nodeName!=").unwrap();
        assert_eq!(selector.requirements()[0].value, "a,b");
        assert!(!selector.requirements()[1].equal);
        let at = |name: &'static str, node: &'static str| {
            selector.matches(move |f| Some(if f == "metadata.name" { name.into() } else { node.into() }))
        };
        assert!(at("a,b", "n1"));
        assert!(!at("a,b", ""));
        assert!(FieldSelector::parse("nonsense").is_err());
        assert!(FieldSelector::parse("").unwrap().is_everything());
    }

    proptest! {
        #[test]
        fn printing_then_parsing_gives_the_same_selector(
            terms in prop::collection::vec(("[a-z][a-z0-9]{0,3}", 0u8..6, prop::collection::vec("[a-z0-9]{1,3}", 1..3)), 0..4)
        ) {
            let text: Vec<String> = terms.iter().map(|(k, op, v)| match op {
                0 => format!("{k}={}", v[0]),
                1 => format!("{k}!={}", v[0]),
                2 => format!("{k} in ({})", v.join(",")),
                3 => format!("{k} notin ({})", v.join(",")),
                4 => k.clone(),
                _ => format!("!{k}"),
            }).collect();
            let selector = LabelSelector::parse(&text.join(",")).unwrap();
            prop_assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
        }

        #[test]
        fn a_term_and_its_negation_never_both_match(key in "[a-z]{1,2}", value in "[a-z]{1,2}", has in prop::option::of("[a-z]{1,2}")) {
            let yes = LabelSelector::parse(&format!("{key}={value}")).unwrap();
            let no = LabelSelector::parse(&format!("{key}!={value}")).unwrap();
            prop_assert_ne!(yes.matches(|_| has.as_deref()), no.matches(|_| has.as_deref()));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }
    }
}
