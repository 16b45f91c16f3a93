//! Owns `x-kubernetes-validations` (KEP-2876): reading rules, refusing bad ones when the definition is
//! made, and evaluating them on objects within a budget. A rule that cannot be evaluated rejects the
//! object; it never hangs the server, and a panic in the interpreter is an error like any other.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use kube_cel::cel::{IdedExpr, Value as Cel, objects::OptionalValue, parser::Parser};
use serde_json::{Map, Value};

use super::{
    Additional, Schema,
    cel_budget::{self, OBJECT_BUDGET, Size},
    cel_values::{convert, rewrite_optionals, with_scope},
    check::{Trail, type_name},
    validate::correlated,
};
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
    program: Result<IdedExpr, String>,
    message_program: Option<IdedExpr>,
}

/// Rules of one definition altogether.
#[derive(Default)]
pub(super) struct Tally {
    rules: usize,
    bytes: usize,
}

const MOST_RULES: usize = 1_000;
const MOST_RULE_BYTES: usize = 1 << 20;
const REASONS: [&str; 4] = ["FieldValueRequired", "FieldValueForbidden", "FieldValueInvalid", "FieldValueDuplicate"];

fn compile(text: &str) -> Result<(IdedExpr, cel_budget::Names), String> {
    compiled(text, &["self", "oldSelf"], "", |_| {})
}

/// An expression over `variables` that may also call `functions` (words between blanks), after `rewrite`.
pub(super) fn compiled(
    text: &str,
    variables: &[&str],
    functions: &str,
    rewrite: impl FnOnce(&mut IdedExpr),
) -> Result<(IdedExpr, cel_budget::Names), String> {
    if let Some(problem) = cel_budget::text_problem(text) {
        return Err(problem.to_owned());
    }
    let parsed = catch_unwind(|| Parser::new().enable_optional_syntax(true).parse(text));
    let mut expression = match parsed {
        Ok(Ok(expression)) => expression,
        Ok(Err(error)) => return Err(format!("compilation failed: {error}")),
        Err(_) => return Err("compilation failed: the rule cannot be parsed".to_owned()),
    };
    // What recurses over the tree from here on does so within these bounds.
    if cel_budget::names(&expression, variables, functions).too_deep {
        return Err("compilation failed: the rule nests too deep".to_owned());
    }
    rewrite(&mut expression);
    let names = cel_budget::names(&expression, variables, functions);
    if let Some(name) = names.unknown_variables.first() {
        return Err(format!("compilation failed: undeclared reference to '{name}' (in container '')"));
    }
    if let Some(name) = names.unknown_functions.first() {
        return Err(format!("compilation failed: the function {name:?} is not supported by Proa"));
    }
    rewrite_optionals(&mut expression);
    Ok((expression, names))
}

/// The rules of a node, compiled.
pub(super) fn read(rules: Option<&Value>) -> Vec<Rule> {
    rules.and_then(Value::as_array).into_iter().flatten().take(MOST_RULES).map(Rule::read).collect()
}

impl Rule {
    fn read(value: &Value) -> Rule {
        let text = |field: &str| value.get(field).and_then(Value::as_str).filter(|t| !t.is_empty()).map(Into::into);
        let rule: Box<str> = text("rule").unwrap_or_default();
        let (program, uses_old_self) = match compile(&rule) {
            Ok((program, names)) => (Ok(program), names.uses_old_self),
            Err(error) => (Err(error), false),
        };
        let message_expression: Option<Box<str>> = text("messageExpression");
        Rule {
            message: text("message"),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old_self: value.get("optionalOldSelf").and_then(Value::as_bool) == Some(true),
            uses_old_self,
            program,
            message_program: message_expression.and_then(|text| compile(&text).ok()).map(|(program, _)| program),
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
            Ok((_, names)) => {
                let optional = rule.get("optionalOldSelf").and_then(Value::as_bool) == Some(true);
                if optional && !names.uses_old_self {
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
        let mut budget = OBJECT_BUDGET;
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
    let size = Size::of(value).and(old.map_or(Size::default(), Size::of));
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
            (Some(before), true) => Cel::Opaque(Arc::new(OptionalValue::of(before.clone()))),
            (None, _) => Cel::Opaque(Arc::new(OptionalValue::none())),
        };
        let failure = match &rule.program {
            Ok(program) => match run(program, &this, &old_self, size, budget) {
                Ok(Cel::Bool(true)) => continue,
                Ok(Cel::Bool(false)) => None,
                Ok(_) => Some("the rule must evaluate to a bool".to_owned()),
                Err(error) => Some(format!("rule evaluation error: {error}")),
            },
            Err(error) => Some(error.clone()),
        };
        errors.push(rule.error(failure, schema, value, (&this, &old_self), size, trail, budget));
    }
}

fn run(program: &IdedExpr, this: &Cel, old_self: &Cel, size: Size, budget: &mut u64) -> Result<Cel, String> {
    let spent = "the cost budget of the object is used up";
    resolve(program, [("self", this), ("oldSelf", old_self)], size, budget, spent)
}

/// What a program makes of its variables, whose values are of `size`; its cost is taken from `budget`.
pub(super) fn resolve<'v>(
    program: &IdedExpr,
    variables: impl IntoIterator<Item = (&'v str, &'v Cel)>,
    size: Size,
    budget: &mut u64,
    spent: &str,
) -> Result<Cel, String> {
    let cost = cel_budget::cost(program, size).ok_or("a value would grow too big")?;
    *budget = budget.checked_sub(cost).ok_or(spent)?;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        with_scope(|context| {
            for (name, value) in variables {
                context.add_variable_from_value(name, value.clone());
            }
            context.resolve(program).map_err(|error| {
                let text = error.to_string();
                text.chars().take(500).collect::<String>()
            })
        })
    }));
    outcome.unwrap_or_else(|_| Err("the rule cannot be evaluated".to_owned()))
}

impl Rule {
    #[allow(clippy::too_many_arguments)]
    fn error(
        &self,
        failure: Option<String>,
        schema: &Schema,
        value: &Value,
        variables: (&Cel, &Cel),
        size: Size,
        trail: &Trail<'_>,
        budget: &mut u64,
    ) -> FieldError {
        let mut path = trail.path();
        for step in self.field_path.as_deref().and_then(steps).unwrap_or_default() {
            path = path.child(&step);
        }
        let mut made = || {
            let program = self.message_program.as_ref().filter(|_| failure.is_none())?;
            match run(program, variables.0, variables.1, size, budget) {
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
