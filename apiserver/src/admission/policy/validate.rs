//! What validating policies make of a request: it is refused, its client is told, the audit log is told.
//!
//! Owns the decisions, which are pure, and Kubernetes' wording of them
//! (`k8s.io/apiserver/pkg/admission/plugin/policy/validating`).

use std::collections::{BTreeMap, HashMap};

use proa_apimachinery::cel::{Answer, BUDGET, OUT_OF_BUDGET, Scope};
use proa_apimachinery::status::{ApiError, StatusCause};
use serde_json::json;

use super::active::Binding;
use super::find::{self, Invocation, Met};
use super::program::{Action, Compiled, Program, Validation};
use super::resulted_in;
use crate::admission::attributes::{Attributes, Objects};
use crate::admission::hooks::FailurePolicy;
use crate::admission::matching::Verdict;
use crate::conversion;
use crate::registry::Call;

/// A message an expression makes may be this long, in bytes (`MaxEvaluatedMessageExpressionSizeBytes`).
const LONGEST_MESSAGE: usize = 5 << 10;
/// What an audit annotation is cut at.
const LONGEST_ANNOTATION: usize = 10 << 10;

/// A validation that did not hold, or could not be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Decision {
    /// Which of the policy's.
    index: usize,
    message: String,
    reason: String,
}

/// What one policy came to with one set of parameters.
#[derive(Debug, Default, PartialEq, Eq)]
struct Judged {
    decisions: Vec<Decision>,
    /// What the audit log is to keep.
    annotations: Vec<(String, String)>,
    /// What could not be kept, and refuses therefore, whatever the binding says.
    failures: Vec<String>,
}

/// The first refusal is the request's.
struct Denial {
    policy: String,
    binding: Option<String>,
    message: String,
    reason: String,
}

/// Holds a request against the validating policies in force.
pub async fn validate(call: &Call<'_>, attributes: &Attributes<'_>, objects: Objects<'_>) -> Result<(), ApiError> {
    let active = call.core.policies.validating.active();
    if active.is_empty() {
        return Ok(());
    }
    let met = find::find(call, attributes, objects, &active).await?;
    if met.is_empty() {
        return Ok(());
    }
    let namespace = find::namespace_object(call.core, attributes).await?;
    // Objects are converted and turned into values once for all that see them alike.
    let mut converted = HashMap::new();
    for invocation in met.iter().filter_map(Met::invocation) {
        let version = invocation.shown.api_version();
        if converted.contains_key(&version) {
            continue;
        }
        let (mut new, mut old) = (None, None);
        for (from, to) in [(objects.new, &mut new), (objects.old, &mut old)] {
            if let Some(object) = from {
                let shown = &invocation.shown;
                *to = Some(conversion::between(call.core, &attributes.resource, shown, object.clone()).await?);
            }
        }
        converted.insert(version, (new, old));
    }
    let mut scopes: HashMap<String, Scope> = HashMap::new();
    let mut denied = Vec::new();
    let mut noted = Noted::new();
    for met in met {
        let invocation = match met {
            Met::Invocation(invocation) => invocation,
            Met::Problem(problem) => {
                let (policy, binding, message) = (problem.policy, problem.binding, problem.message);
                denied.push(Denial { policy, binding, message, reason: String::new() });
                continue;
            }
        };
        let version = invocation.shown.api_version();
        let base = scopes.entry(version.clone()).or_insert_with(|| {
            let (new, old) = converted.get(&version).map_or((None, None), |(new, old)| (new.as_ref(), old.as_ref()));
            find::scope(call, attributes, Objects { new, old }, &invocation.shown, &namespace)
        });
        let judged = judge(&invocation.program, &find::scope_of(base, &invocation));
        act(call, &invocation, judged, &mut denied, &mut noted);
    }
    for (key, values) in noted {
        call.request.trail.annotate(&key, || values.join(", "));
    }
    match denied.into_iter().next() {
        None => Ok(()),
        Some(denial) => Err(refusal(attributes, denial)),
    }
}

/// The audit annotations of policies by key: each value once, whatever bindings and parameters it came of.
type Noted = BTreeMap<String, Vec<String>>;

/// What the binding says is done about it.
fn act(call: &Call<'_>, invocation: &Invocation, judged: Judged, denied: &mut Vec<Denial>, noted: &mut Noted) {
    let Invocation { program, binding, .. } = invocation;
    let denial = |message: String, reason: String| Denial {
        policy: program.name.clone(),
        binding: Some(binding.name.clone()),
        message,
        reason,
    };
    for decision in judged.decisions {
        if binding.actions.audit {
            let key = "validation.policy.admission.k8s.io/validation_failure";
            call.request.trail.annotate(key, || failure(program, binding, &decision));
        }
        if binding.actions.warn {
            call.warn(format!(
                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                program.name, binding.name, decision.message
            ));
        }
        if binding.actions.deny {
            denied.push(denial(decision.message, decision.reason));
        }
    }
    for (key, value) in judged.annotations {
        let values = noted.entry(format!("{}/{key}", program.name)).or_default();
        if !values.contains(&value) {
            values.push(value);
        }
    }
    denied.extend(judged.failures.into_iter().map(|failure| denial(failure, String::new())));
}

/// A failed validation as the audit log has it (`ValidationFailureValue`).
fn failure(program: &Program, binding: &Binding, decision: &Decision) -> String {
    let actions = binding.actions;
    let named = [(actions.deny, "Deny"), (actions.warn, "Warn"), (actions.audit, "Audit")];
    let actions: Vec<_> = named.into_iter().filter(|(done, _)| *done).map(|(_, name)| name).collect();
    json!([{"message": decision.message, "policy": program.name, "binding": binding.name,
        "expressionIndex": decision.index, "validationActions": actions}])
    .to_string()
}

/// Evaluates a policy.
fn judge(program: &Program, scope: &Scope) -> Judged {
    let Action::Validate { validations, annotations } = &program.action else { return Judged::default() };
    let fails = program.failure_policy == FailurePolicy::Fail;
    let failed = |message: String| Judged {
        decisions: if fails { vec![Decision { message, ..Decision::default() }] } else { Vec::new() },
        ..Judged::default()
    };
    match program.conditions.judge(scope) {
        Verdict::Match => {}
        Verdict::NoMatch => return Judged::default(),
        Verdict::Error(why) => return failed(why),
    }
    let mut budget = BUDGET;
    let mut judged = Judged::default();
    let mut unsaid = Vec::new();
    for (index, validation) in validations.iter().enumerate() {
        match evaluate(&validation.holds, scope, &mut budget) {
            Ok(Answer::Bool(true)) => {}
            Ok(_) => {
                unsaid.push((judged.decisions.len(), validation));
                let reason = validation.reason.clone();
                judged.decisions.push(Decision { index, message: String::new(), reason });
            }
            // What is not evaluated for want of budget is all of the policy's.
            Err(why) if why == OUT_OF_BUDGET => return failed(why),
            Err(message) if fails => judged.decisions.push(Decision { index, message, reason: String::new() }),
            Err(_) => {}
        }
    }
    for (at, validation) in unsaid {
        judged.decisions[at].message = message(validation, scope, &mut budget);
    }
    let mut budget = BUDGET;
    for (key, expression) in annotations {
        match evaluate(expression, scope, &mut budget) {
            Ok(Answer::Null) => {}
            Ok(Answer::Text(value)) => {
                let value = value.trim();
                let cut = value.floor_char_boundary(LONGEST_ANNOTATION);
                if !value.is_empty() {
                    judged.annotations.push((key.clone(), value[..cut].to_owned()));
                }
            }
            Ok(other) if fails => {
                let kind = match other {
                    Answer::Bool(_) => "bool".to_owned(),
                    Answer::Other(kind) => kind,
                    Answer::Text(_) | Answer::Null => continue,
                };
                let text = expression.as_ref().map_or("", |expression| expression.text());
                judged.failures.push(format!(
                    "valueExpression '{text}' resulted in unsupported return type: {kind}. Return type must be either \
                     string or null."
                ));
            }
            Err(why) if fails => judged.failures.push(why),
            Ok(_) | Err(_) => {}
        }
    }
    judged
}

fn evaluate(expression: &Compiled, scope: &Scope, budget: &mut u64) -> Result<Answer, String> {
    let expression = expression.as_ref().map_err(|why| format!("compilation error: {why}"))?;
    expression.evaluate(scope, budget).map_err(|why| resulted_in(expression.text(), &why))
}

/// What is said of a validation that does not hold: what its expression makes up, if that can be said in a line; what is
/// written; or how the validation is written.
fn message(validation: &Validation, scope: &Scope, budget: &mut u64) -> String {
    let made = validation.message_expression.as_ref().and_then(|expression| evaluate(expression, scope, budget).ok());
    if let Some(Answer::Text(made)) = made {
        let made = made.trim();
        if !made.is_empty() && made.len() <= LONGEST_MESSAGE && !made.contains('\n') {
            return made.to_owned();
        }
    }
    if validation.message.is_empty() {
        return format!("failed expression: {}", validation.text);
    }
    validation.message.clone()
}

fn refusal(attributes: &Attributes<'_>, denial: Denial) -> ApiError {
    let with = denial.binding.map(|binding| format!(" with binding '{binding}'")).unwrap_or_default();
    let message = format!("ValidatingAdmissionPolicy '{}'{with} denied request: {}", denial.policy, denial.message);
    let mut error = ApiError::forbidden(attributes.resource.group_resource(), &attributes.name, &message);
    let reason = if denial.reason.is_empty() { "Invalid".to_owned() } else { denial.reason };
    error.code = match reason.as_str() {
        "Forbidden" => 403,
        "Unauthorized" => 401,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    error.reason = reason.into();
    let cause = StatusCause { message, ..StatusCause::default() };
    error.details.get_or_insert_default().causes.push(cause);
    error
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn judged(spec: Value, object: Value) -> Judged {
        let program = Program::read("p", &spec, false);
        let mut scope = Scope::default();
        scope.bind("object", &object);
        for (name, expression) in &program.variables {
            scope.compose(name, expression.as_ref().unwrap());
        }
        judge(&program, &scope)
    }

    fn messages(spec: Value, object: Value) -> Vec<String> {
        judged(spec, object).decisions.into_iter().map(|decision| decision.message).collect()
    }

    #[test]
    fn what_is_said_of_a_refusal() {
        let say = |validation: Value| messages(json!({"validations": [validation]}), json!({"n": 1})).join("; ");
        assert_eq!(say(json!({"expression": "object.n == 1"})), "");
        assert_eq!(say(json!({"expression": " object.n > 1 "})), "failed expression: object.n > 1");
        assert_eq!(say(json!({"expression": "object.n > 1", "message": "no"})), "no");
        let made = |expression: &str| {
            say(json!({"expression": "object.n > 1", "message": "no", "messageExpression": expression}))
        };
        assert_eq!(made("'n is ' + string(object.n)"), "n is 1");
        for unusable in
            ["' '", "'a\\nb'", "'n is ' + object.n", "object.missing", "[object.n].map(x, 'a'.replace('', 'b'))[9]"]
        {
            assert_eq!(made(unusable), "no", "{unusable}");
        }
        let error = "expression 'object.missing > 1' resulted in error: no such key: missing";
        assert_eq!(say(json!({"expression": "object.missing > 1"})), error);
        assert!(say(json!({"expression": "nothing"})).starts_with("compilation error: compilation failed"));
    }

    #[test]
    fn conditions_and_failure_policies_decide_what_is_held_against_a_request() {
        let spec = |policy: &str, condition: &str, validation: &str| {
            json!({"failurePolicy": policy, "matchConditions": [{"name": "c", "expression": condition}],
                "validations": [{"expression": validation}]})
        };
        for (policy, condition, validation, refused) in [
            ("Fail", "true", "false", true),
            ("Fail", "false", "false", false),
            ("Fail", "object.missing", "true", true),
            ("Fail", "true", "object.missing", true),
            ("Ignore", "true", "false", true),
            ("Ignore", "object.missing", "false", false),
            ("Ignore", "true", "object.missing", false),
        ] {
            let found = messages(spec(policy, condition, validation), json!({}));
            assert_eq!(!found.is_empty(), refused, "{policy} {condition} {validation}: {found:?}");
        }
    }

    #[test]
    fn a_policy_without_budget_left_says_one_thing() {
        let costly = "object.all(a, object.all(b, a == b || true))";
        let validations: Vec<Value> = (0..20).map(|_| json!({"expression": costly})).collect();
        let list: Vec<u32> = (0..500).collect();
        assert_eq!(messages(json!({"validations": validations}), json!(list)), [OUT_OF_BUDGET]);
    }

    #[test]
    fn audit_annotations_are_texts_or_nothing() {
        let judged = |policy: &str, expression: &str| {
            let annotations = json!([{"key": "k", "valueExpression": expression}]);
            judged(json!({"failurePolicy": policy, "auditAnnotations": annotations}), json!({"n": 1}))
        };
        assert_eq!(judged("Fail", "'n ' + string(object.n)").annotations, [("k".to_owned(), "n 1".to_owned())]);
        assert_eq!(judged("Fail", "object.n > 1 ? dyn('many') : null"), Judged::default());
        assert!(judged("Fail", "object.n").failures[0].contains("unsupported return type: int"));
        assert_eq!(judged("Ignore", "object.n"), Judged::default());
        assert_eq!(judged("Fail", "object.missing").failures.len(), 1);
    }

    #[test]
    fn variables_are_shared_by_the_expressions_of_a_policy() {
        let spec = json!({
            "variables": [{"name": "n", "expression": "object.n * 2"}, {"name": "even", "expression": "variables.n % 2 == 0"}],
            "validations": [{"expression": "variables.even && variables.n > 4", "messageExpression": "'n is ' + string(variables.n)"}],
        });
        assert_eq!(messages(spec.clone(), json!({"n": 2})), ["n is 4"]);
        assert!(messages(spec, json!({"n": 3})).is_empty());
    }
}
