//! Owns `x-kubernetes-validations` (KEP-2876): reading rules, refusing bad ones when the definition is
//! made, and evaluating them on objects within a budget. A rule that cannot be evaluated rejects the
//! object; it never hangs the server, and a panic in the interpreter is an error like any other.

use kube_cel::cel::Value as Cel;
use serde_json::{Map, Value};

use super::{
    Additional, Schema,
    cel_values::convert,
    check::{Trail, type_name},
    validate::correlated,
};
use crate::cel::{BUDGET, Environment, Expression, Scope, values};
use crate::field::{FieldError, FieldErrors, Path};

/// One rule of a node.
#[derive(Debug)]
pub(crate) struct Rule {
    text: Box<str>,
    message: Option<Box<str>>,
    reason: Option<Box<str>>,
    field_path: Option<Box<str>>,
    optional_old_self: bool,
    uses_old_self: bool,
    program: Result<Expression, String>,
    message_program: Option<Expression>,
}

/// Rules of one definition altogether.
#[derive(Default)]
pub(super) struct Tally {
    rules: usize,
    bytes: usize,
}

/// The variable that holds what was.
const OLD_SELF: &str = "oldSelf";
const MOST_RULES: usize = 1_000;
const MOST_RULE_BYTES: usize = 1 << 20;
const REASONS: [&str; 4] = ["FieldValueRequired", "FieldValueForbidden", "FieldValueInvalid", "FieldValueDuplicate"];

fn compile(text: &str) -> Result<Expression, String> {
    Expression::typed(text, &Environment::of(&["self", OLD_SELF])).map(|(expression, _)| expression)
}

/// The rules of a node, compiled.
pub(super) fn read(rules: Option<&Value>) -> Vec<Rule> {
    rules.and_then(Value::as_array).into_iter().flatten().take(MOST_RULES).map(Rule::read).collect()
}

impl Rule {
    fn read(value: &Value) -> Rule {
        let text = |field: &str| value.get(field).and_then(Value::as_str).filter(|t| !t.is_empty()).map(Into::into);
        let rule: Box<str> = text("rule").unwrap_or_default();
        let program = compile(&rule);
        let uses_old_self = program.as_ref().is_ok_and(|program| program.uses(OLD_SELF));
        let message_expression: Option<Box<str>> = text("messageExpression");
        Rule {
            message: text("message"),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old_self: value.get("optionalOldSelf").and_then(Value::as_bool) == Some(true),
            uses_old_self,
            program,
            message_program: message_expression.and_then(|text| compile(&text).ok()),
            text: rule,
        }
    }
}

/// What is wrong with the rules of a node of a definition.
pub(super) fn problems(
    rules: &Value,
    node: &Map<String, Value>,
    at: &Path,
    tally: &mut Tally,
    errors: &mut FieldErrors,
) {
    let Some(rules) = rules.as_array() else {
        errors.push(FieldError::type_invalid(at, type_name(rules), "must be a list of rules"));
        return;
    };
    for (index, rule) in rules.iter().enumerate() {
        let at = at.index(index);
        let text = |field: &str| rule.get(field).and_then(Value::as_str).unwrap_or_default();
        tally.rules += 1;
        tally.bytes += text("rule").len() + text("messageExpression").len();
        if tally.rules > MOST_RULES || tally.bytes > MOST_RULE_BYTES {
            errors.push(FieldError::forbidden(&at, "the definition has too many validation rules"));
            return;
        }
        if text("rule").trim().is_empty() {
            errors.push(FieldError::required(&at.child("rule"), "rule is not specified"));
            continue;
        }
        match compile(text("rule")) {
            Err(error) => errors.push(FieldError::invalid(&at.child("rule"), text("rule"), error)),
            Ok(program) => {
                let optional = rule.get("optionalOldSelf").and_then(Value::as_bool) == Some(true);
                if optional && !program.uses(OLD_SELF) {
                    let detail = "may not be set if oldSelf is not used in rule";
                    errors.push(FieldError::invalid(&at.child("optionalOldSelf"), true, detail));
                }
            }
        }
        if text("message").contains('\n') {
            let detail = "message must not contain line breaks";
            errors.push(FieldError::invalid(&at.child("message"), text("message"), detail));
        }
        if let (false, Err(error)) = (text("messageExpression").is_empty(), compile(text("messageExpression"))) {
            errors.push(FieldError::invalid(&at.child("messageExpression"), text("messageExpression"), error));
        }
        if !text("reason").is_empty() && !REASONS.contains(&text("reason")) {
            errors.push(FieldError::not_supported(&at.child("reason"), text("reason"), &REASONS));
        }
        let field_path = text("fieldPath");
        if !field_path.is_empty() && !leads_somewhere(field_path, node) {
            let detail = "fieldPath must refer to a field of the schema";
            errors.push(FieldError::invalid(&at.child("fieldPath"), field_path, detail));
        }
    }
}

fn leads_somewhere(field_path: &str, node: &Map<String, Value>) -> bool {
    let Some(steps) = steps(field_path) else { return false };
    let mut node = Some(node);
    for step in &steps {
        let below = node.and_then(|node| {
            let properties = node.get("properties").and_then(|p| p.get(step));
            properties.or_else(|| node.get("additionalProperties")).and_then(Value::as_object)
        });
        if below.is_none() {
            return false;
        }
        node = below;
    }
    !steps.is_empty()
}

/// The steps of a field path: `.spec.a`, `['a-b'].c`.
fn steps(mut path: &str) -> Option<Vec<String>> {
    let mut steps = Vec::new();
    while !path.is_empty() {
        if let Some(rest) = path.strip_prefix("['") {
            let (name, rest) = rest.split_once("']")?;
            steps.push(name.to_owned());
            path = rest;
        } else {
            let rest = path.strip_prefix('.')?;
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            if end == 0 {
                return None;
            }
            steps.push(rest[..end].to_owned());
            path = &rest[end..];
        }
    }
    Some(steps)
}

/// Whether any node has rules.
pub(super) fn has_rules(schema: &Schema) -> bool {
    let below = match &schema.additional {
        Additional::Schema(schema) => Some(&**schema),
        _ => None,
    };
    schema.rules.as_ref().is_some_and(|rules| !rules.cel.is_empty())
        || schema.properties.values().chain(schema.items.as_deref()).chain(below).any(has_rules)
}

/// Evaluates every rule on an object.
pub(super) fn validate(schema: &Schema, value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    if has_rules(schema) {
        let mut budget = BUDGET;
        walk(schema, value, old, &Trail::Root, &mut budget, errors);
    }
}

/// Errors past this many are not looked for.
const MOST: usize = 100;

fn walk(
    schema: &Schema,
    value: &Value,
    old: Option<&Value>,
    trail: &Trail<'_>,
    budget: &mut u64,
    errors: &mut FieldErrors,
) {
    if errors.len() >= MOST || value.is_null() || schema.reference.is_some() {
        return;
    }
    let rules = schema.rules.as_ref().map_or(&[][..], |rules| &rules.cel);
    if !rules.is_empty() {
        evaluate(schema, rules, value, old, trail, budget, errors);
    }
    match value {
        Value::Object(map) => {
            for (name, child) in map {
                let below = match (schema.properties.get(name.as_str()), &schema.additional) {
                    (Some(property), _) => property,
                    (None, Additional::Schema(schema)) => schema,
                    _ => continue,
                };
                let old = old.and_then(|old| old.get(name.as_str()));
                walk(below, child, old, &Trail::Field(trail, name), budget, errors);
            }
        }
        Value::Array(items) => {
            if let Some(element) = schema.items.as_deref().filter(|element| has_rules(element)) {
                for (index, item) in items.iter().enumerate() {
                    let old = old.and_then(|old| correlated(schema, item, old));
                    walk(element, item, old, &Trail::Index(trail, index), budget, errors);
                }
            }
        }
        _ => {}
    }
}

fn evaluate(
    schema: &Schema,
    rules: &[Rule],
    value: &Value,
    old: Option<&Value>,
    trail: &Trail<'_>,
    budget: &mut u64,
    errors: &mut FieldErrors,
) {
    let this = convert(schema, value);
    let before = old.map(|old| convert(schema, old));
    for rule in rules {
        // A rule about a change has nothing to say when there is none; one about a value that has not
        // changed is not held against an update (ratcheting).
        if rule.uses_old_self && before.is_none() && !rule.optional_old_self {
            continue;
        }
        if !rule.uses_old_self && old == Some(value) {
            continue;
        }
        let old_self = match (&before, rule.optional_old_self) {
            (Some(before), false) => before.clone(),
            (before, _) => values::optional(before.clone()),
        };
        let mut scope = Scope::default();
        scope.bind_value("self", this.clone());
        scope.bind_value(OLD_SELF, old_self);
        let failure = match &rule.program {
            Ok(program) => match program.run(&scope, budget) {
                Ok(Cel::Bool(true)) => continue,
                Ok(Cel::Bool(false)) => None,
                Ok(_) => Some("the rule must evaluate to a bool".to_owned()),
                Err(error) => Some(format!("rule evaluation error: {error}")),
            },
            Err(error) => Some(error.clone()),
        };
        errors.push(rule.error(failure, (schema, value), &scope, trail, budget));
    }
}

impl Rule {
    fn error(
        &self,
        failure: Option<String>,
        (schema, value): (&Schema, &Value),
        scope: &Scope,
        trail: &Trail<'_>,
        budget: &mut u64,
    ) -> FieldError {
        let mut path = trail.path();
        for step in self.field_path.as_deref().and_then(steps).unwrap_or_default() {
            path = path.child(&step);
        }
        let mut made = || {
            let program = self.message_program.as_ref().filter(|_| failure.is_none())?;
            match program.run(scope, budget) {
                Ok(Cel::String(text)) if !text.trim().is_empty() && !text.contains('\n') && text.len() <= 5_120 => {
                    Some(text.to_string())
                }
                _ => None,
            }
        };
        let stated = made().or_else(|| failure.clone()).or_else(|| self.message.as_deref().map(str::to_owned));
        let detail = stated.unwrap_or_else(|| format!("failed rule: {}", self.text.trim()));
        let shown = match schema.resolved().kind {
            super::Type::Any | super::Type::IntOrString => type_name(value),
            kind => kind.name(),
        };
        match self.reason.as_deref() {
            Some("FieldValueRequired") => FieldError::required(&path, detail),
            Some("FieldValueForbidden") => FieldError::forbidden(&path, detail),
            Some("FieldValueDuplicate") => FieldError { detail, ..FieldError::duplicate(&path, shown) },
            _ => FieldError::invalid(&path, shown, detail),
        }
    }
}
