//! What a validating policy's expressions confuse, told in its status (KEP-3488, `status.typeChecking`): they are checked
//! against the schemas of what the policy is for. A hint for its author, which changes nothing about the policy.
//!
//! Where Kubernetes has a controller for it, the write itself fills it in: the schemas are here.

use std::sync::Arc;

use proa_apimachinery::cel::{AUTHORIZER, Environment, Expression, Type};
use proa_apimachinery::object::Object;
use serde_json::{Map, Value, json};

use super::program::{ParamKind, list, text, variables};
use crate::kinds::Op;
use crate::registry::Call;
use crate::resources::{Resource, Table};

/// So many kinds are checked against; more would tell nobody anything new (`maxTypesToCheck`).
const MOST_KINDS: usize = 10;

/// Fills in the status of a policy that is written.
pub fn check_types(call: &Call<'_>, op: Op, new: &mut Object, old: Option<&Object>) {
    let kind = &call.resource.kind;
    let is_policy = kind.group == "admissionregistration.k8s.io" && kind.plural == "validatingadmissionpolicies";
    let unchanged = old.is_some_and(|old| old.generation() == new.generation());
    if !is_policy || op == Op::UpdateStatus || unchanged {
        return;
    }
    let spec = new.get(&["spec"]).cloned().unwrap_or_default();
    let table = call.core.resources.table();
    let warnings = warnings(&table, &spec);
    let mut checked = Map::new();
    if !warnings.is_empty() {
        checked.insert("expressionWarnings".into(), warnings.into());
    }
    let generation = new.generation();
    new.set(&["status", "observedGeneration"], generation);
    new.set(&["status", "typeChecking"], checked);
}

/// What is wrong with which field.
fn warnings(table: &Table, spec: &Value) -> Vec<Value> {
    let kinds = kinds(table, spec);
    let params = spec.get("paramKind").and_then(ParamKind::read);
    let params = params.map(|kind| table.find_kind(&kind.group, &kind.version, &kind.kind).cloned());
    let mut warnings = Vec::new();
    for (at, validation) in list(spec, "validations").enumerate() {
        for field in ["expression", "messageExpression"] {
            let expression = text(validation, field);
            if expression.is_empty() {
                continue;
            }
            let issues =
                kinds.iter().filter_map(|kind| issue(kind, params.as_ref().map(Option::as_ref), spec, expression));
            let issues: Vec<String> = issues.collect();
            if !issues.is_empty() {
                let reference = format!("spec.validations[{at}].{field}");
                warnings.push(json!({"fieldRef": reference, "warning": issues.join("\n")}));
            }
        }
    }
    warnings
}

/// What is wrong with an expression where the object is of a kind.
fn issue(
    resource: &Resource,
    params: Option<Option<&Arc<Resource>>>,
    spec: &Value,
    expression: &str,
) -> Option<String> {
    let mut names = vec!["object", "oldObject", "request", "namespaceObject", AUTHORIZER];
    names.extend(params.map(|_| "params"));
    let object = Type::of(&resource.kind.schema);
    let mut environment = Environment::of(&names).typed("object", object.clone()).typed("oldObject", object);
    if let Some(Some(params)) = params {
        environment = environment.typed("params", Type::of(&params.kind.schema));
    }
    let (environment, _) = variables(environment.composing(), spec);
    let error = Expression::typed(expression, &environment).err()?;
    let kind = &resource.kind;
    let error = error.strip_prefix("compilation failed: ").unwrap_or(&error);
    Some(format!("{}, Kind={}: {error}\n", resource.api_version(), kind.kind))
}

/// The kinds a policy is for, as far as its rules name them.
fn kinds(table: &Table, spec: &Value) -> Vec<Arc<Resource>> {
    let mut kinds: Vec<Arc<Resource>> = Vec::new();
    let rules = spec.get("matchConstraints").unwrap_or(&Value::Null);
    for rule in list(rules, "resourceRules") {
        let names = |field: &str| -> Vec<&str> { list(rule, field).filter_map(Value::as_str).collect() };
        let (groups, versions) = (names("apiGroups"), names("apiVersions"));
        if groups.iter().chain(&versions).any(|name| name.contains('*')) {
            continue;
        }
        for group in &groups {
            for version in &versions {
                for plural in names("resources") {
                    let found = table.find(group, version, plural);
                    kinds.extend(found.filter(|found| !kinds.iter().any(|have| Arc::ptr_eq(have, found))).cloned());
                }
            }
        }
    }
    kinds.sort_by_cached_key(|found| {
        let kind = &found.kind;
        (kind.group.to_string(), kind.version.to_string(), kind.kind.to_string())
    });
    kinds.truncate(MOST_KINDS);
    kinds
}
