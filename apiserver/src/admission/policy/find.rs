//! Which policies a request meets, bound by whom and with which parameters: the same for those that validate and those
//! that mutate (`k8s.io/apiserver/pkg/admission/plugin/policy/generic`).

use std::sync::Arc;

use proa_apimachinery::cel::Scope;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;
use serde_json::{Value, json};

use super::active::{Active, Binding};
use super::params::{self, Params};
use super::program::Program;
use crate::admission::attributes::{Attributes, Objects};
use crate::admission::hooks::{self, FailurePolicy};
use crate::admission::matching;
use crate::core::Core;
use crate::registry::Call;
use crate::resources::Resource;

/// A policy to be evaluated for a request.
pub(super) struct Invocation {
    pub program: Arc<Program>,
    pub binding: Arc<Binding>,
    pub params: Option<Object>,
    /// The version its rules asked for.
    pub shown: Arc<Resource>,
}

/// What a policy comes to for a request before anything is evaluated, in the order of policies and bindings.
pub(super) enum Met {
    Invocation(Invocation),
    Problem(Problem),
}

impl Met {
    pub(super) fn invocation(&self) -> Option<&Invocation> {
        match self {
            Met::Invocation(invocation) => Some(invocation),
            Met::Problem(_) => None,
        }
    }
}

/// A policy that cannot be used, and is to be kept to (`failurePolicy: Fail`).
pub(super) struct Problem {
    pub policy: String,
    /// None when it is the policy's own fault.
    pub binding: Option<String>,
    pub message: String,
}

/// The policies a request meets.
///
/// # Errors
///
/// When the request's own namespace does not exist.
pub(super) async fn find(
    call: &Call<'_>,
    attributes: &Attributes<'_>,
    objects: Objects<'_>,
    active: &[Active],
) -> Result<Vec<Met>, ApiError> {
    let mut met = Vec::new();
    for policy in active {
        let program = &policy.program;
        let problem = |binding: Option<&Binding>, why: &str| {
            let what = if binding.is_some() { "binding" } else { "policy" };
            let problem = || {
                Met::Problem(Problem {
                    policy: program.name.clone(),
                    binding: binding.map(|binding| binding.name.clone()),
                    message: format!("failed to configure {what}: {why}"),
                })
            };
            (program.failure_policy == FailurePolicy::Fail).then(problem)
        };
        let matcher = match &program.matcher {
            Ok(matcher) => matcher,
            Err(why) => {
                met.extend(problem(None, why));
                continue;
            }
        };
        let Some(shown) = matcher.wanted(call.core, attributes, objects).await? else { continue };
        let resource = match program.param_kind.as_ref().map(|kind| params::resource(call.core, kind)).transpose() {
            Ok(resource) => resource,
            Err(why) => {
                met.extend(problem(None, &why));
                continue;
            }
        };
        for binding in &policy.bindings {
            let bound = match &binding.matcher {
                None => true,
                Some(Ok(matcher)) => matcher.allows(call.core, attributes, objects).await?,
                Some(Err(why)) => {
                    met.extend(problem(Some(binding), why));
                    continue;
                }
            };
            if !bound {
                continue;
            }
            let reference = binding.param_ref.as_ref();
            let collected = params::collect(call.core, resource.as_ref(), reference, &attributes.namespace).await;
            let params = match collected {
                Ok(Params::None) => vec![None],
                Ok(Params::Each(objects)) => objects.into_iter().map(Some).collect(),
                Err(why) => {
                    met.extend(problem(Some(binding), &why));
                    continue;
                }
            };
            met.extend(params.into_iter().map(|params| {
                Met::Invocation(Invocation {
                    program: Arc::clone(program),
                    binding: Arc::clone(binding),
                    params,
                    shown: Arc::clone(&shown),
                })
            }));
        }
    }
    Ok(met)
}

/// The namespace of a request as expressions see it (`CreateNamespaceObject`); none for what is in none, and for
/// namespaces themselves.
pub(super) async fn namespace_object(core: &Core, attributes: &Attributes<'_>) -> Result<Value, ApiError> {
    if attributes.is_namespace() {
        return Ok(Value::Null);
    }
    let Some(namespace) = attributes.namespace_object(core).await? else { return Ok(Value::Null) };
    let metadata = namespace.metadata().into_iter().flatten();
    let shown =
        metadata.filter(|(field, _)| !matches!(field.as_str(), "managedFields" | "ownerReferences" | "selfLink"));
    let metadata: serde_json::Map<String, Value> = shown.map(|(field, value)| (field.clone(), value.clone())).collect();
    let part = |field: &str| namespace.get(&[field]).cloned().unwrap_or_else(|| json!({}));
    Ok(json!({"metadata": metadata, "spec": part("spec"), "status": part("status")}))
}

/// What the expressions of every policy are evaluated over, for a request shown as `shown`.
pub(super) fn scope(
    call: &Call<'_>,
    attributes: &Attributes<'_>,
    objects: Objects<'_>,
    shown: &Resource,
    namespace: &Value,
) -> Scope {
    let request = Value::Object(hooks::request(attributes, shown));
    let mut scope = matching::scope(call.core, attributes, objects, &request);
    scope.bind("namespaceObject", namespace);
    scope
}

/// The same for one policy: with its parameters and its variables.
pub(super) fn scope_of(base: &Scope, invocation: &Invocation) -> Scope {
    let mut scope = base.clone();
    if invocation.program.param_kind.is_some() {
        scope.bind("params", &invocation.params.as_ref().map_or(Value::Null, Object::to_value));
    }
    for (name, expression) in &invocation.program.variables {
        if let Ok(expression) = expression {
            scope.compose(name, expression);
        }
    }
    scope
}
