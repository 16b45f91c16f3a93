//! Owns value validation of custom resources: everything JSON Schema can say about a value, in the words
//! of Kubernetes. Unchanged values of an update are not held against the object (KEP-4008, ratcheting).

use std::sync::OnceLock;

use regex::Regex;
use serde_json::{Map, Number, Value};

use super::{
    Additional, ListType, Schema, Type, cel,
    check::{Trail, type_fits, wrong_type},
    convert, defaulting, formats,
};
use crate::field::{Cause, FieldError, FieldErrors};

/// The value validations of one node.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub(super) one_of_values: Option<Vec<Value>>,
    minimum: Option<(Number, bool)>,
    maximum: Option<(Number, bool)>,
    multiple_of: Option<Number>,
    min_length: Option<u64>,
    pub(super) max_length: Option<u64>,
    pattern: Option<Pattern>,
    min_items: Option<u64>,
    pub(super) max_items: Option<u64>,
    unique_items: bool,
    min_properties: Option<u64>,
    pub(super) max_properties: Option<u64>,
    pub(super) all_of: Vec<Schema>,
    pub(super) any_of: Vec<Schema>,
    pub(super) one_of: Vec<Schema>,
    pub(super) not: Option<Box<Schema>>,
    pub(super) cel: Vec<cel::Rule>,
}

#[derive(Debug)]
struct Pattern {
    text: Box<str>,
    compiled: OnceLock<Option<Regex>>,
}

/// Compiled patterns may take this much memory: a hostile `(a{1000}){1000}` is refused.
const PATTERN_BYTES: usize = 1 << 20;

/// Compiles a pattern within bounds.
pub(super) fn compile_pattern(text: &str) -> Result<Regex, regex::Error> {
    regex::RegexBuilder::new(text).size_limit(PATTERN_BYTES).dfa_size_limit(PATTERN_BYTES).nest_limit(50).build()
}

impl Rules {
    pub(super) fn read(map: &Map<String, Value>) -> Option<Rules> {
        let number = |key: &str| map.get(key).and_then(Value::as_number).cloned();
        let count = |key: &str| map.get(key).and_then(Value::as_u64);
        let flag = |key: &str| map.get(key).and_then(Value::as_bool) == Some(true);
        let schemas = |key: &str| -> Vec<Schema> {
            map.get(key).and_then(Value::as_array).into_iter().flatten().map(convert::custom).collect()
        };
        let known = [
            "enum",
            "minimum",
            "maximum",
            "multipleOf",
            "minLength",
            "maxLength",
            "pattern",
            "minItems",
            "maxItems",
            "uniqueItems",
            "minProperties",
            "maxProperties",
            "allOf",
            "anyOf",
            "oneOf",
            "not",
            "x-kubernetes-validations",
        ];
        if !known.iter().any(|key| map.contains_key(*key)) {
            return None;
        }
        Some(Rules {
            one_of_values: map.get("enum").and_then(Value::as_array).cloned(),
            minimum: number("minimum").map(|n| (n, flag("exclusiveMinimum"))),
            maximum: number("maximum").map(|n| (n, flag("exclusiveMaximum"))),
            multiple_of: number("multipleOf"),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            pattern: map
                .get("pattern")
                .and_then(Value::as_str)
                .filter(|p| !p.is_empty())
                .map(|text| Pattern { text: text.into(), compiled: OnceLock::new() }),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            unique_items: flag("uniqueItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            all_of: schemas("allOf"),
            any_of: schemas("anyOf"),
            one_of: schemas("oneOf"),
            not: map.get("not").map(|schema| Box::new(convert::custom(schema))),
            cel: cel::read(map.get("x-kubernetes-validations")),
        })
    }
}

/// Errors past this many are not looked for.
const MOST: usize = 100;

impl Schema {
    /// Value validation of a custom resource; on update with the object as it was, whose unchanged parts
    /// are taken as they are. Built-in kinds have no rules here: their validation is code.
    pub fn validate(&self, value: &Value, old: Option<&Value>) -> FieldErrors {
        let mut errors = FieldErrors::new();
        walk(self, value, old, &Trail::Root, &mut errors);
        if let (Some(rules), Some(metadata)) = (&self.metadata_rules, value.get("metadata")) {
            let old = old.and_then(|old| old.get("metadata"));
            walk(rules, metadata, old, &Trail::Field(&Trail::Root, "metadata"), &mut errors);
        }
        let blocking =
            |e: &FieldError| matches!(e.cause, Cause::Required | Cause::TooLong | Cause::TooMany | Cause::TypeInvalid);
        if !errors.iter().any(blocking) {
            cel::validate(self, value, old, &mut errors);
        } else if cel::has_rules(self) {
            let detail = "some validation rules were not checked because the object was invalid; \
                correct the existing errors to complete validation";
            errors.push(FieldError::invalid(&Trail::Root.path(), Value::Null, detail));
        }
        errors
    }
}

fn walk(schema: &Schema, value: &Value, old: Option<&Value>, trail: &Trail<'_>, errors: &mut FieldErrors) {
    if errors.len() >= MOST || old == Some(value) {
        return;
    }
    let node = schema.resolved();
    if node.name.is_some() {
        return;
    }
    if value.is_null() {
        if !node.nullable && node.kind != Type::Any {
            errors.push(wrong_type(trail, node.kind, value));
        }
        return;
    }
    if !type_fits(node.kind, value) {
        errors.push(wrong_type(trail, node.kind, value));
        return;
    }
    if let Some(rules) = &node.rules {
        own(rules, value, trail, errors);
    }
    match value {
        Value::Object(map) => {
            for required in node.required.iter().filter(|field| !map.contains_key(&***field)) {
                errors.push(FieldError::required(&trail.path().child(required), ""));
            }
            for (name, child) in map {
                let below = match (node.properties.get(name.as_str()), &node.additional) {
                    (Some(property), _) => property,
                    (None, Additional::Schema(schema)) => schema,
                    _ => continue,
                };
                let old = old.and_then(|o| o.get(name.as_str()));
                walk(below, child, old, &Trail::Field(trail, name), errors);
            }
        }
        Value::Array(items) => {
            distinct(node, items, trail, errors);
            if let Some(element) = &node.items {
                for (index, item) in items.iter().enumerate() {
                    let old = old.and_then(|old| correlated(node, item, old));
                    walk(element, item, old, &Trail::Index(trail, index), errors);
                }
            }
        }
        Value::String(text) => {
            if let Some(format) = node.format.as_deref().filter(|f| !formats::holds(f, text)) {
                let detail = format!("{} in body must be of type {format}: {text:?}", shown(trail));
                errors.push(FieldError::invalid(&trail.path(), text.as_str(), detail));
            }
        }
        _ => {}
    }
}

/// The element of the old list that is the same element as this one: only list maps can tell.
pub(super) fn correlated<'a>(list: &'a Schema, item: &'a Value, old: &'a Value) -> Option<&'a Value> {
    let key = defaulting::element_key(list, item)?;
    old.as_array()?.iter().find(|other| defaulting::element_key(list, other).as_ref() == Some(&key))
}

fn shown(trail: &Trail<'_>) -> String {
    let path = trail.path();
    if path.is_root() { "<root>".to_owned() } else { path.as_str().to_owned() }
}

/// Elements of sets and list maps are told apart by themselves or their keys: none may come twice.
fn distinct(node: &Schema, items: &[Value], trail: &Trail<'_>, errors: &mut FieldErrors) {
    if matches!(node.list_type, ListType::Atomic) {
        return;
    }
    let mut seen = std::collections::HashSet::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let key = match &node.list_type {
            ListType::Map(_) => match defaulting::element_key(node, item) {
                Some(fields) => Value::Object(fields.into_iter().map(|(k, v)| (k.to_owned(), v.clone())).collect()),
                None => continue,
            },
            _ => item.clone(),
        };
        if !seen.insert(key.to_string()) {
            errors.push(FieldError::duplicate(&Trail::Index(trail, index).path(), key));
        }
    }
}

/// The rules of one node on its own value; those of its children are not its own.
fn own(rules: &Rules, value: &Value, trail: &Trail<'_>, errors: &mut FieldErrors) {
    let path = || trail.path();
    let mut invalid = |value: &Value, detail: String| {
        errors.push(FieldError::invalid(&path(), value.clone(), format!("{} in body {detail}", shown(trail))));
    };
    match value {
        Value::Number(number) => numeric(rules, number, &mut |detail| invalid(value, detail)),
        Value::String(text) => {
            let length = text.chars().count() as u64;
            if let Some(least) = rules.min_length.filter(|least| length < *least) {
                invalid(value, format!("should be at least {least} chars long"));
            }
            if let Some(pattern) = &rules.pattern {
                let compiled = pattern.compiled.get_or_init(|| compile_pattern(&pattern.text).ok());
                if !compiled.as_ref().is_some_and(|regex| regex.is_match(text)) {
                    invalid(value, format!("should match '{}'", pattern.text));
                }
            }
            if let Some(most) = rules.max_length.filter(|most| length > *most) {
                errors.push(FieldError::too_long(&path(), usize::try_from(most).unwrap_or(usize::MAX)));
            }
        }
        Value::Array(items) => {
            let length = items.len() as u64;
            if let Some(least) = rules.min_items.filter(|least| length < *least) {
                invalid(&Value::from(length), format!("should have at least {least} items"));
            }
            if rules.unique_items {
                let mut seen = std::collections::HashSet::new();
                if !items.iter().all(|item| seen.insert(item.to_string())) {
                    invalid(value, "shouldn't contain duplicates".to_owned());
                }
            }
            if let Some(most) = rules.max_items.filter(|most| length > *most) {
                let most = usize::try_from(most).unwrap_or(usize::MAX);
                errors.push(FieldError::too_many(&path(), items.len(), most));
            }
        }
        Value::Object(map) => {
            let length = map.len() as u64;
            if let Some(least) = rules.min_properties.filter(|least| length < *least) {
                invalid(&Value::from(length), format!("should have at least {least} properties"));
            }
            if let Some(most) = rules.max_properties.filter(|most| length > *most) {
                let most = usize::try_from(most).unwrap_or(usize::MAX);
                errors.push(FieldError::too_many(&path(), map.len(), most));
            }
        }
        _ => {}
    }
    if let Some(allowed) = rules.one_of_values.as_ref().filter(|allowed| !allowed.contains(value)) {
        let texts: Vec<String> =
            allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        errors.push(FieldError::not_supported(&path(), value.clone(), &texts));
    }
    composed(rules, value, trail, errors);
}

fn composed(rules: &Rules, value: &Value, trail: &Trail<'_>, errors: &mut FieldErrors) {
    let attempt = |schema: &Schema| {
        let mut found = FieldErrors::new();
        walk(schema, value, None, trail, &mut found);
        found
    };
    let quoted = || format!("{:?}", shown(trail));
    let invalid = |detail: String, errors: &mut FieldErrors| {
        errors.push(FieldError::invalid(&trail.path(), "", detail));
    };
    let failed: FieldErrors = rules.all_of.iter().flat_map(attempt).collect();
    if !failed.is_empty() {
        errors.extend(failed);
        invalid(format!("{} must validate all the schemas (allOf)", quoted()), errors);
    }
    if !rules.any_of.is_empty() {
        let attempts: Vec<FieldErrors> = rules.any_of.iter().map(attempt).collect();
        if !attempts.iter().any(Vec::is_empty) {
            invalid(format!("{} must validate at least one schema (anyOf)", quoted()), errors);
            errors.extend(attempts.into_iter().min_by_key(Vec::len).into_iter().flatten());
        }
    }
    if !rules.one_of.is_empty() {
        let attempts: Vec<FieldErrors> = rules.one_of.iter().map(attempt).collect();
        let valid = attempts.iter().filter(|a| a.is_empty()).count();
        if valid != 1 {
            let found = if valid == 0 { "none".to_owned() } else { valid.to_string() };
            let detail = format!("{} must validate one and only one schema (oneOf). Found {found} valid", quoted());
            invalid(detail, errors);
            if valid == 0 {
                errors.extend(attempts.into_iter().min_by_key(Vec::len).into_iter().flatten());
            }
        }
    }
    if rules.not.as_deref().is_some_and(|schema| attempt(schema).is_empty()) {
        invalid(format!("{} must not validate the schema (not)", quoted()), errors);
    }
}

fn numeric(rules: &Rules, number: &Number, invalid: &mut dyn FnMut(String)) {
    use std::cmp::Ordering::{Equal, Greater, Less};
    if let Some((most, exclusive)) = &rules.maximum {
        let order = compare(number, most);
        if order == Some(Greater) || (*exclusive && order == Some(Equal)) {
            invalid(format!("should be less than {}{most}", if *exclusive { "" } else { "or equal to " }));
        }
    }
    if let Some((least, exclusive)) = &rules.minimum {
        let order = compare(number, least);
        if order == Some(Less) || (*exclusive && order == Some(Equal)) {
            invalid(format!("should be greater than {}{least}", if *exclusive { "" } else { "or equal to " }));
        }
    }
    if let Some(unit) = &rules.multiple_of {
        let multiple = match (number.as_i64(), unit.as_i64()) {
            (Some(n), Some(u)) if u != 0 => n.checked_rem(u).unwrap_or(0) == 0,
            _ => {
                let (n, u) = (number.as_f64().unwrap_or(0.0), unit.as_f64().unwrap_or(1.0));
                u != 0.0 && ((n / u) - (n / u).round()).abs() < 1e-9
            }
        };
        if !multiple {
            invalid(format!("should be a multiple of {unit}"));
        }
    }
}

fn compare(left: &Number, right: &Number) -> Option<std::cmp::Ordering> {
    match (left.as_i64(), right.as_i64()) {
        (Some(l), Some(r)) => Some(l.cmp(&r)),
        _ => left.as_f64()?.partial_cmp(&right.as_f64()?),
    }
}
