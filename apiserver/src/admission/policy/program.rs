//! One policy as it is written, compiled: once when it is validated, and once for all requests until it changes.
//!
//! Pure: owns which variables which of its expressions may refer to (KEP-3488, KEP-3962).

use std::sync::Arc;

use proa_apimachinery::cel::{AUTHORIZER, Environment, Expression, Type};
use serde_json::Value;

use crate::admission::hooks::FailurePolicy;
use crate::admission::matching::{Conditions, Matcher};

/// An expression, or why it is none.
pub type Compiled = Result<Arc<Expression>, String>;

/// What a policy's match conditions may refer to; `params` besides where it has any.
pub const CONDITION_VARIABLES: &[&str] = &["object", "oldObject", "request", "namespaceObject", AUTHORIZER, "params"];
/// The same where there are none.
pub const CONDITION_VARIABLES_WITHOUT_PARAMS: &[&str] =
    &["object", "oldObject", "request", "namespaceObject", AUTHORIZER];

/// A policy.
#[derive(Debug)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Which requests it is for; or why that cannot be told.
    pub matcher: Result<Matcher, String>,
    /// Of those, which ones really.
    pub conditions: Conditions,
    /// What becomes of a request about which it cannot be told.
    pub failure_policy: FailurePolicy,
    /// The kind of its parameters.
    pub param_kind: Option<ParamKind>,
    /// What its expressions share, by name, each only of those before it.
    pub variables: Vec<(String, Compiled)>,
    /// What it does.
    pub action: Action,
}

/// A group, a version and a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamKind {
    /// The group.
    pub group: String,
    /// The version.
    pub version: String,
    /// The kind.
    pub kind: String,
}

impl ParamKind {
    /// Reads a `paramKind`.
    pub fn read(value: &Value) -> Option<ParamKind> {
        let api_version = value.get("apiVersion")?.as_str()?;
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = value.get("kind")?.as_str()?;
        Some(ParamKind { group: group.into(), version: version.into(), kind: kind.into() })
    }
}

impl std::fmt::Display for ParamKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.group.is_empty() {
            write!(f, "{}/", self.group)?;
        }
        write!(f, "{}, Kind={}", self.version, self.kind)
    }
}

/// What a policy does.
#[derive(Debug)]
pub enum Action {
    /// It refuses, warns and notes.
    Validate {
        /// What has to hold.
        validations: Vec<Validation>,
        /// What the audit log is to keep, by key.
        annotations: Vec<(String, Compiled)>,
    },
    /// It changes.
    Mutate {
        /// How, one after the other.
        mutations: Vec<Mutation>,
        /// It wants to see again what others change after it.
        reinvoke: bool,
    },
}

/// Something that has to hold.
#[derive(Debug)]
pub struct Validation {
    /// What.
    pub holds: Compiled,
    /// How it is written.
    pub text: String,
    /// What is said when it does not.
    pub message: String,
    /// What makes up what is said.
    pub message_expression: Option<Compiled>,
    /// The reason of the refusal; empty: `Invalid`.
    pub reason: String,
}

/// One change.
#[derive(Debug)]
pub struct Mutation {
    /// How it is meant.
    pub kind: MutationKind,
    /// What makes it up.
    pub expression: Compiled,
}

/// How a change is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MutationKind {
    /// `Object{…}`, laid over the object as an apply would.
    ApplyConfiguration,
    /// A list of `JSONPatch{…}`.
    JsonPatch,
}

impl MutationKind {
    /// The field it is written in.
    pub fn field(self) -> &'static str {
        match self {
            MutationKind::ApplyConfiguration => "applyConfiguration",
            MutationKind::JsonPatch => "jsonPatch",
        }
    }

    /// What its expression has to come to.
    fn wanted(self) -> Type<'static> {
        match self {
            MutationKind::ApplyConfiguration => Type::Made("Object".into()),
            MutationKind::JsonPatch => Type::list(Type::Made("JSONPatch".into())),
        }
    }

    /// The kind of a mutation by its `patchType`.
    pub fn of(mutation: &Value) -> Option<MutationKind> {
        match mutation.get("patchType").and_then(Value::as_str) {
            Some("ApplyConfiguration") => Some(MutationKind::ApplyConfiguration),
            Some("JSONPatch") => Some(MutationKind::JsonPatch),
            _ => None,
        }
    }
}

impl Program {
    /// Compiles a policy.
    pub fn read(name: &str, spec: &Value, mutating: bool) -> Program {
        let param_kind = spec.get("paramKind").and_then(ParamKind::read);
        let names = condition_variables(param_kind.is_some());
        let (environment, variables) = variables(environment(names, mutating), spec);
        let compiled =
            |text: &str, wanted: &[Type<'static>]| Expression::compile(text, &environment, wanted).map(Arc::new);
        let action = if mutating {
            let mutations = list(spec, "mutations").filter_map(|mutation| {
                let kind = MutationKind::of(mutation)?;
                let expression = text(mutation.get(kind.field()).unwrap_or(&Value::Null), "expression");
                Some(Mutation { kind, expression: compiled(expression, &[kind.wanted()]) })
            });
            Action::Mutate { mutations: mutations.collect(), reinvoke: text(spec, "reinvocationPolicy") == "IfNeeded" }
        } else {
            // What is said of a refusal asks nobody (`HasAuthorizer: false`).
            let quiet: Vec<&str> = names.iter().copied().filter(|name| *name != AUTHORIZER).collect();
            let (quiet, _) = self::variables(self::environment(&quiet, false), spec);
            let validation = |value: &Value| {
                let message = text(value, "messageExpression");
                let message_expression = || Expression::compile(message, &quiet, &[Type::String]).map(Arc::new);
                Validation {
                    holds: compiled(text(value, "expression"), &[Type::Bool]),
                    text: text(value, "expression").trim().to_owned(),
                    message: text(value, "message").trim().to_owned(),
                    message_expression: (!message.trim().is_empty()).then(message_expression),
                    reason: text(value, "reason").to_owned(),
                }
            };
            let annotation = |value: &Value| {
                let expression = compiled(text(value, "valueExpression").trim(), &[Type::String, Type::Null]);
                (text(value, "key").to_owned(), expression)
            };
            Action::Validate {
                validations: list(spec, "validations").map(validation).collect(),
                annotations: list(spec, "auditAnnotations").map(annotation).collect(),
            }
        };
        Program {
            name: name.to_owned(),
            matcher: Matcher::read(spec.get("matchConstraints").unwrap_or(&Value::Null)),
            conditions: Conditions::read(spec.get("matchConditions"), names),
            failure_policy: match text(spec, "failurePolicy") {
                "Ignore" => FailurePolicy::Ignore,
                _ => FailurePolicy::Fail,
            },
            param_kind,
            variables,
            action,
        }
    }
}

/// The variables of a policy's match conditions.
pub fn condition_variables(params: bool) -> &'static [&'static str] {
    if params { CONDITION_VARIABLES } else { CONDITION_VARIABLES_WITHOUT_PARAMS }
}

fn environment<'a>(names: &[&'a str], mutating: bool) -> Environment<'a> {
    let environment = Environment::of(names).composing();
    if mutating { environment.making_objects() } else { environment }
}

/// Compiles the variables of a policy in their order: each knows those before it.
pub(super) fn variables<'a>(
    mut environment: Environment<'a>,
    spec: &Value,
) -> (Environment<'a>, Vec<(String, Compiled)>) {
    let mut compiled = Vec::new();
    for variable in list(spec, "variables") {
        let name = text(variable, "name");
        let expression = match Expression::typed(text(variable, "expression"), &environment) {
            Ok((expression, of)) => {
                environment.compose(name, of);
                Ok(Arc::new(expression))
            }
            Err(why) => {
                environment.compose(name, Type::Dyn);
                Err(why)
            }
        };
        compiled.push((name.to_owned(), expression));
    }
    (environment, compiled)
}

pub(super) fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}
