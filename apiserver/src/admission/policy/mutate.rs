//! What mutating policies make of an object (KEP-3962, `k8s.io/apiserver/pkg/admission/plugin/policy/mutating`).
//!
//! Owns how a change is laid over the object, one policy after the other, before any webhook sees it.

use proa_apimachinery::cel::{BUDGET, Scope};
use proa_apimachinery::managed_fields;
use proa_apimachinery::object::Object;
use proa_apimachinery::patch;
use proa_apimachinery::schema::{Schema, builtin_kinds, definition};
use proa_apimachinery::status::{ApiError, StatusCause};
use serde_json::Value;

use super::find::{self, Invocation, Met, Problem};
use super::program::{Action, Mutation, MutationKind};
use super::resulted_in;
use crate::admission::attributes::{Attributes, GroupVersionKind, Objects};
use crate::admission::hooks::{FailurePolicy, Subject, keep_system_fields};
use crate::admission::matching::Verdict;
use crate::conversion;
use crate::registry::Call;
use crate::resources::Resource;

/// Which policies are asked, once or again: by policy, binding, and namespace and name of the parameters.
pub type Round = crate::admission::round::Round<(String, String, String)>;

/// Lets the mutating policies in force change an object, one after the other.
pub async fn mutate(
    call: &Call<'_>,
    attributes: &Attributes<'_>,
    subject: &mut Subject<'_>,
    round: &mut Round,
) -> Result<(), ApiError> {
    let active = call.core.policies.mutating.active();
    if active.is_empty() {
        return Ok(());
    }
    let objects = Objects { new: subject.new.as_deref(), old: subject.old };
    let met = find::find(call, attributes, objects, &active).await?;
    if met.is_empty() {
        return Ok(());
    }
    let namespace = find::namespace_object(call.core, attributes).await?;
    let mut problems = Vec::new();
    for met in met {
        let invocation = match met {
            Met::Invocation(invocation) => invocation,
            Met::Problem(problem) => {
                problems.push((problem, ""));
                continue;
            }
        };
        let failed = |message: String| {
            let problem = Problem {
                policy: invocation.program.name.clone(),
                binding: Some(invocation.binding.name.clone()),
                message,
            };
            (invocation.program.failure_policy == FailurePolicy::Fail).then_some((problem, "Invalid"))
        };
        let Action::Mutate { mutations, reinvoke } = &invocation.program.action else { continue };
        let objects = Objects { new: subject.new.as_deref(), old: subject.old };
        let shown = shown(call, attributes, objects, &invocation.shown).await?;
        let base = shown.scope(call, attributes, &invocation, &namespace);
        match invocation.program.conditions.judge(&find::scope_of(&base, &invocation)) {
            Verdict::Match => {}
            Verdict::NoMatch => continue,
            Verdict::Error(why) => {
                problems.extend(failed(why));
                continue;
            }
        }
        let who = key(&invocation);
        if round.skips(&who) {
            continue;
        }
        let (Some(now), Some(new)) = (shown.new.clone(), subject.new.as_deref_mut()) else {
            round.note(who, false, *reinvoke);
            continue;
        };
        let mut changed = Shown { new: Some(now), old: shown.old };
        for mutation in mutations {
            let scope = changed.scope(call, attributes, &invocation, &namespace);
            let scope = find::scope_of(&scope, &invocation);
            let schema = schema_of(attributes, &invocation.shown);
            let Some(before) = &changed.new else { break };
            match apply(schema, before, mutation, &scope) {
                Ok(after) => changed.new = Some(after),
                Err(why) => problems.extend(failed(why)),
            }
        }
        let Some(after) = changed.new else { continue };
        let mut after = conversion::between(call.core, &invocation.shown, &attributes.resource, after).await?;
        keep_system_fields(&mut after, new);
        (subject.settle)(&mut after)?;
        let differs = after != *new;
        if differs {
            *new = after;
        }
        round.note(who, differs, *reinvoke);
    }
    if problems.is_empty() { Ok(()) } else { Err(refusal(attributes, &problems)) }
}

/// The objects of a request in the version a policy asked for.
struct Shown {
    new: Option<Object>,
    old: Option<Object>,
}

impl Shown {
    fn scope(&self, call: &Call<'_>, attributes: &Attributes<'_>, invocation: &Invocation, namespace: &Value) -> Scope {
        let objects = Objects { new: self.new.as_ref(), old: self.old.as_ref() };
        find::scope(call, attributes, objects, &invocation.shown, namespace)
    }
}

async fn shown(
    call: &Call<'_>,
    attributes: &Attributes<'_>,
    objects: Objects<'_>,
    resource: &std::sync::Arc<Resource>,
) -> Result<Shown, ApiError> {
    let mut shown = Shown { new: None, old: None };
    for (from, to) in [(objects.new, &mut shown.new), (objects.old, &mut shown.old)] {
        if let Some(object) = from {
            *to = Some(conversion::between(call.core, &attributes.resource, resource, object.clone()).await?);
        }
    }
    Ok(shown)
}

fn key(invocation: &Invocation) -> (String, String, String) {
    let params = invocation.params.as_ref().map(|object| format!("{}/{}", object.namespace(), object.name()));
    (invocation.program.name.clone(), invocation.binding.name.clone(), params.unwrap_or_default())
}

/// The schema of what is mutated: of the resource, or of what a subresource makes (a Scale, a Binding).
fn schema_of<'r>(attributes: &Attributes<'_>, shown: &'r Resource) -> &'r Schema {
    let kind = &attributes.kind;
    if *kind == GroupVersionKind::of(&attributes.resource.kind) {
        return &shown.kind.schema;
    }
    let known = builtin_kinds().iter().find(|known| {
        (known.group, known.version, known.kind) == (kind.group.as_str(), kind.version.as_str(), kind.kind.as_str())
    });
    known.and_then(|known| definition(&known.definition)).unwrap_or_else(|| Schema::any())
}

/// What a mutation makes of an object.
fn apply(schema: &Schema, object: &Object, mutation: &Mutation, scope: &Scope) -> Result<Object, String> {
    let expression = mutation.expression.as_ref().map_err(|why| format!("compilation error: {why}"))?;
    let made = expression.value(scope, &mut BUDGET.clone()).map_err(|why| resulted_in(expression.text(), &why))?;
    match mutation.kind {
        MutationKind::ApplyConfiguration => {
            managed_fields::overlay(schema, object, &made).map_err(|why| format!("error applying patch: {why}"))
        }
        MutationKind::JsonPatch => {
            let patched = patch::json(&object.to_value(), &made);
            let patched = patched.map_err(|error| format!("error applying JSON Patch: {error}"))?;
            Object::from_value(patched).map_err(|_| "the JSON Patch leaves no object".to_owned())
        }
    }
}

/// All that could not be done, the first of it in the message.
fn refusal(attributes: &Attributes<'_>, problems: &[(Problem, &'static str)]) -> ApiError {
    let mut error = ApiError::forbidden(attributes.resource.group_resource(), &attributes.name, "");
    for (at, (problem, reason)) in problems.iter().enumerate() {
        let message = match &problem.binding {
            Some(binding) => {
                format!("policy '{}' with binding '{binding}' denied request: {}", problem.policy, problem.message)
            }
            None => format!("policy {:?} denied request: {}", problem.policy, problem.message),
        };
        if at == 0 {
            error.message.clone_from(&message);
            if !reason.is_empty() {
                error.reason = (*reason).into();
            }
        }
        error.details.get_or_insert_default().causes.push(StatusCause { message, ..StatusCause::default() });
    }
    error
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::program::Program;
    use super::*;

    fn pod() -> Object {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "y"}},
            "spec": {"containers": [{"name": "c", "image": "i", "args": ["1"]}, {"name": "d", "image": "j"}]}});
        Object::from_value(pod).unwrap()
    }

    fn mutated(mutation: Value) -> Result<Value, String> {
        let program = Program::read("p", &json!({"mutations": [mutation]}), true);
        let Action::Mutate { mutations, .. } = &program.action else { panic!("a mutation") };
        let pod = pod();
        let mut scope = Scope::default();
        scope.bind("object", &pod.to_value());
        apply(definition("io.k8s.api.core.v1.Pod").unwrap(), &pod, &mutations[0], &scope).map(Object::into_value)
    }

    fn configured(expression: &str) -> Result<Value, String> {
        mutated(json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}))
    }

    fn patched(expression: &str) -> Result<Value, String> {
        mutated(json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}))
    }

    #[test]
    fn an_apply_configuration_merges_as_an_apply_does() {
        let made = configured("Object{metadata: Object.metadata{labels: {'a': 'b'}}}").unwrap();
        assert_eq!(made["metadata"]["labels"], json!({"x": "y", "a": "b"}));
        // A sidecar is added before or beside those that are there, and one of them is changed by its name.
        let made = configured(
            "Object{spec: Object.spec{containers: [Object.spec.containers{name: 'sidecar', image: 's'}, \
             Object.spec.containers{name: 'd', image: 'k'}]}}",
        )
        .unwrap();
        let names = |made: &Value| {
            let containers = made["spec"]["containers"].as_array().unwrap().iter();
            containers
                .map(|c| format!("{}={}", c["name"].as_str().unwrap(), c["image"].as_str().unwrap()))
                .collect::<Vec<_>>()
        };
        let mut found = names(&made);
        found.sort();
        assert_eq!(found, ["c=i", "d=k", "sidecar=s"]);
        // What is one value would lose what is not said of it.
        let atomic =
            configured("Object{spec: Object.spec{containers: [Object.spec.containers{name: 'c', args: ['2']}]}}");
        let error = atomic.unwrap_err();
        assert!(error.contains("may not mutate atomic arrays, maps or structs: .spec.containers[0].args"), "{error}");
        let error = configured("Object{spec: Object.spec{oops: 1}}").unwrap_err();
        assert!(error.contains(".spec.oops: field not declared in schema"), "{error}");
        let error = configured("Object{spec: Object.spec{replicas: object.spec.missing}}").unwrap_err();
        assert!(error.contains("resulted in error: no such key: missing"), "{error}");
    }

    #[test]
    fn a_json_patch_tests_adds_moves_and_removes() {
        let made = patched(
            "[JSONPatch{op: 'test', path: '/spec/containers/0/name', value: 'c'}, \
             JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('example.com/env'), value: 'test'}, \
             JSONPatch{op: 'replace', path: '/spec/containers/0/args', value: ['2', '3']}, \
             JSONPatch{op: 'remove', path: '/spec/containers/1'}]",
        )
        .unwrap();
        assert_eq!(made["metadata"]["labels"], json!({"x": "y", "example.com/env": "test"}));
        assert_eq!(made["spec"]["containers"], json!([{"name": "c", "image": "i", "args": ["2", "3"]}]));
        let conditional =
            patched("has(object.metadata.labels) ? [] : [JSONPatch{op: 'add', path: '/metadata/labels', value: {}}]");
        assert_eq!(conditional.unwrap(), pod().to_value());
        assert!(
            patched("[JSONPatch{op: 'remove', path: '/nothing'}]").unwrap_err().contains("error applying JSON Patch")
        );
        assert!(patched("[JSONPatch{op: 'test', path: '/kind', value: 'Cat'}]").is_err());
    }
}
