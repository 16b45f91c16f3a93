//! Owns the strategies of admission policies and their bindings
//! (`pkg/apis/admissionregistration/validation`). Expressions are compiled here, so that no request finds out later; never
//! evaluates one.

use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::{Object, names};
use serde_json::{Map, Value};

use super::admissionregistration::{conditions, rules, selector};
use super::at::{At, map_at, map_in, maps_at, or_set, spec_mut};
use super::{Op, Rules};
use crate::admission::policy::program::{Action, Compiled, MutationKind, Program, condition_variables};

/// The most audit annotations of a policy, and the longest expression of one, in bytes.
const MOST_ANNOTATIONS: usize = 20;
const LONGEST_ANNOTATION: usize = 5 << 10;

/// What was not empty and says nothing all the same.
const BLANK_MESSAGE: &str = "message must be non-empty if specified";

pub(super) const VALIDATING_POLICY: Rules = Rules { status: true, ..MUTATING_POLICY };

pub(super) const MUTATING_POLICY: Rules = Rules { default: policy_defaults, validate: policy, ..Rules::COUNTED };

fn policy_defaults(object: &mut Object) {
    let mutating = is_mutating(object);
    let spec = spec_mut(object);
    or_set(spec, "failurePolicy", "Fail");
    if let Some(constraints) = map_at(spec, "matchConstraints") {
        match_defaults(constraints);
    }
    if mutating {
        or_set(spec, "reinvocationPolicy", "Never");
    }
}

fn match_defaults(resources: &mut Map<String, Value>) {
    or_set(resources, "matchPolicy", "Equivalent");
    map_in(resources, "namespaceSelector");
    map_in(resources, "objectSelector");
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in maps_at(resources, list) {
            or_set(rule, "scope", "*");
        }
    }
}

fn is_mutating(object: &Object) -> bool {
    object.kind() == "MutatingAdmissionPolicy"
}

fn policy(_: Op, new: &Object, old: Option<&Object>, errors: &mut FieldErrors) {
    let spec = At::of(new, "spec");
    let mutating = is_mutating(new);
    let program = Program::read(new.name(), spec.value.unwrap_or(&Value::Null), mutating);
    let expressions = Expressions::stored(old);
    spec.child("failurePolicy").one_of(errors, &["Fail", "Ignore"]);
    param_kind(&spec.child("paramKind"), errors);
    let constraints = spec.child("matchConstraints");
    if constraints.required(errors) {
        match_resources(&constraints, errors);
        constraints.child("resourceRules").required(errors);
    }
    let names = condition_variables(program.param_kind.is_some());
    conditions(&spec.child("matchConditions"), names, expressions.0.iter().map(String::as_str).collect(), errors);
    for (variable, (_, compiled)) in spec.child("variables").items().zip(&program.variables) {
        let (name, expression) = (variable.child("name"), variable.child("expression"));
        if name.str().trim().is_empty() {
            name.missing(errors, "name is not specified");
        } else if !is_identifier(name.str()) {
            name.invalid(errors, "name is not a valid CEL identifier");
        }
        expressions.check(&expression, compiled, "expression is not specified", errors);
    }
    match &program.action {
        Action::Validate { validations, annotations } => {
            let (listed, noted) = (spec.child("validations"), spec.child("auditAnnotations"));
            if listed.is_empty() && noted.is_empty() {
                for list in [&listed, &noted] {
                    list.missing(errors, "validations or auditAnnotations must contain at least one item");
                }
            }
            for (at, validation) in listed.items().zip(validations) {
                expressions.check(&at.child("expression"), &validation.holds, "expression is not specified", errors);
                said(&at, validation.message_expression.as_ref(), &expressions, errors);
            }
            let compiled: Vec<_> = annotations.iter().map(|(_, compiled)| compiled).collect();
            audit_annotations(new.name(), &noted, &compiled, &expressions, errors);
        }
        Action::Mutate { mutations, .. } => {
            let listed = spec.child("mutations");
            if listed.is_empty() {
                listed.missing(errors, "mutations must contain at least one item");
            }
            spec.child("reinvocationPolicy").one_of(errors, &["IfNeeded", "Never"]);
            // Those of no known kind are not compiled.
            let mut compiled = mutations.iter();
            for at in listed.items() {
                let kind = at.value.and_then(MutationKind::of);
                mutation(
                    &at,
                    kind.and_then(|_| compiled.next()).map(|mutation| &mutation.expression),
                    &expressions,
                    errors,
                );
            }
        }
    }
}

/// Expressions that are stored: what once compiled does not refuse an update (ratcheting).
struct Expressions(Vec<String>);

impl Expressions {
    fn stored(old: Option<&Object>) -> Expressions {
        let mut stored = Vec::new();
        if let Some(spec) = old.and_then(|old| old.get(&["spec"])) {
            collect(spec, &mut stored);
        }
        Expressions(stored)
    }

    /// Something must be written, and be an expression.
    fn check(&self, at: &At<'_>, compiled: &Compiled, missing: &str, errors: &mut FieldErrors) {
        if at.str().trim().is_empty() {
            at.missing(errors, missing);
        } else if let Err(why) = compiled
            && !self.0.iter().any(|stored| stored == at.str())
        {
            at.invalid(errors, why.as_str());
        }
    }
}

fn collect(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (field, below) in map {
                match below.as_str() {
                    Some(text) if field.to_ascii_lowercase().ends_with("expression") => found.push(text.to_owned()),
                    _ => collect(below, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

/// What is said of a validation that does not hold.
fn said(at: &At<'_>, compiled: Option<&Compiled>, expressions: &Expressions, errors: &mut FieldErrors) {
    let (message, made) = (at.child("message"), at.child("messageExpression"));
    match compiled {
        Some(compiled) => expressions.check(&made, compiled, "", errors),
        None if !made.str().is_empty() => made.invalid(errors, "must be non-empty if specified"),
        None => {}
    }
    if !message.str().is_empty() && message.str().trim().is_empty() {
        message.invalid(errors, BLANK_MESSAGE);
    } else if message.str().trim().contains(['\n', '\r']) {
        message.invalid(errors, "message must not contain line breaks");
    }
    at.child("reason").one_of(errors, &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"]);
}

fn audit_annotations(
    policy: &str,
    list: &At<'_>,
    compiled: &[&Compiled],
    expressions: &Expressions,
    errors: &mut FieldErrors,
) {
    if list.len() > MOST_ANNOTATIONS {
        list.invalid(errors, format!("must not have more than {MOST_ANNOTATIONS} auditAnnotations"));
    }
    let mut seen = Vec::new();
    for (at, compiled) in list.items().zip(compiled) {
        let (key, value) = (at.child("key"), at.child("valueExpression"));
        for problem in names::is_qualified_name(&format!("{policy}/{}", key.str())) {
            key.invalid(errors, problem);
        }
        if seen.contains(&key.str()) {
            key.duplicate(errors);
        }
        seen.push(key.str());
        if value.str().trim().len() > LONGEST_ANNOTATION {
            value.missing(errors, format!("must not exceed {LONGEST_ANNOTATION} bytes in length"));
        } else {
            expressions.check(&value, compiled, "valueExpression is not specified", errors);
        }
    }
}

fn mutation(at: &At<'_>, compiled: Option<&Compiled>, expressions: &Expressions, errors: &mut FieldErrors) {
    let kind = at.child("patchType");
    let Some(meant) = at.value.and_then(MutationKind::of) else {
        if kind.required(errors) {
            kind.not_supported(errors, &["ApplyConfiguration", "JSONPatch"]);
        }
        return;
    };
    for other in [MutationKind::ApplyConfiguration, MutationKind::JsonPatch] {
        let field = at.child(other.field());
        match (other == meant, field.present(), compiled) {
            (true, true, Some(compiled)) => {
                expressions.check(&field.child("expression"), compiled, "expression is not specified", errors);
            }
            (true, ..) => field.missing(errors, format!("must be specified when patchType is {}", kind.str())),
            (false, true, _) => {
                field.invalid(errors, format!("{} is not allowed when patchType is {}", other.field(), kind.str()))
            }
            (false, ..) => {}
        }
    }
}

fn param_kind(at: &At<'_>, errors: &mut FieldErrors) {
    if !at.present() {
        return;
    }
    let (api_version, kind) = (at.child("apiVersion"), at.child("kind"));
    if api_version.required(errors) {
        let text = api_version.str();
        let (group, version) = text.split_once('/').unwrap_or(("", text));
        let problems = match (group, version) {
            (_, "") => vec!["version must be specified".to_owned()],
            (_, version) if version.contains('/') => vec![format!("unexpected GroupVersion string: {text}")],
            ("", version) => names::is_dns1035_label(version),
            (group, version) => [names::is_dns1123_subdomain(group), names::is_dns1035_label(version)].concat(),
        };
        problems.into_iter().for_each(|problem| api_version.invalid(errors, problem));
    }
    if kind.required(errors) {
        for problem in names::is_dns1035_label(&kind.str().to_lowercase()) {
            kind.invalid(errors, format!("may have mixed case, but should otherwise match: {problem}"));
        }
    }
}

fn match_resources(at: &At<'_>, errors: &mut FieldErrors) {
    at.child("matchPolicy").one_of(errors, &["Equivalent", "Exact"]);
    selector(&at.child("namespaceSelector"), errors);
    selector(&at.child("objectSelector"), errors);
    for list in ["resourceRules", "excludeResourceRules"] {
        let list = at.child(list);
        rules(&list, errors);
        for rule in list.items() {
            let mut seen = Vec::new();
            for name in rule.child("resourceNames").items() {
                name.check(errors, names::is_path_segment);
                if seen.contains(&name.str()) {
                    name.duplicate(errors);
                }
                seen.push(name.str());
            }
        }
    }
}

/// A name a variable may have: an identifier of CEL that is none of its words.
fn is_identifier(name: &str) -> bool {
    const WORDS: [&str; 21] = [
        "as",
        "break",
        "const",
        "continue",
        "else",
        "false",
        "for",
        "function",
        "if",
        "import",
        "in",
        "let",
        "loop",
        "namespace",
        "null",
        "package",
        "return",
        "true",
        "var",
        "void",
        "while",
    ];
    let first = name.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic());
    first && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric()) && !WORDS.contains(&name)
}

pub(super) const POLICY_BINDING: Rules = Rules {
    default: |object| {
        if let Some(resources) = map_at(spec_mut(object), "matchResources") {
            match_defaults(resources);
        }
    },
    validate: |_, new, _, errors| {
        let spec = At::of(new, "spec");
        spec.child("policyName").require(errors, names::is_dns1123_subdomain);
        param_ref(&spec.child("paramRef"), errors);
        match_resources(&spec.child("matchResources"), errors);
        if new.kind() == "ValidatingAdmissionPolicyBinding" {
            validation_actions(&spec.child("validationActions"), errors);
        }
    },
    ..Rules::COUNTED
};

fn param_ref(at: &At<'_>, errors: &mut FieldErrors) {
    if !at.present() {
        return;
    }
    let (name, select, action) = (at.child("name"), at.child("selector"), at.child("parameterNotFoundAction"));
    name.check(errors, names::is_path_segment);
    selector(&select, errors);
    match (name.str().is_empty(), select.present()) {
        (false, true) => {
            name.forbidden(errors, "name and selector are mutually exclusive");
            select.forbidden(errors, "name and selector are mutually exclusive");
        }
        (true, false) => at.missing(errors, "one of name or selector must be specified"),
        _ => {}
    }
    if action.required(errors) {
        action.one_of(errors, &["Allow", "Deny"]);
    }
}

fn validation_actions(list: &At<'_>, errors: &mut FieldErrors) {
    let mut seen = Vec::new();
    for action in list.items() {
        if !["Audit", "Deny", "Warn"].contains(&action.str()) {
            action.not_supported(errors, &["Audit", "Deny", "Warn"]);
        }
        if seen.contains(&action.str()) {
            action.duplicate(errors);
        }
        seen.push(action.str());
    }
    if seen.contains(&"Deny") && seen.contains(&"Warn") {
        list.invalid(
            errors,
            "must not contain both Deny and Warn (repeating the same validation failure information in the API response \
             and headers serves no purpose)",
        );
    }
    if seen.is_empty() {
        list.missing(errors, "at least one validation action is required");
    }
}
