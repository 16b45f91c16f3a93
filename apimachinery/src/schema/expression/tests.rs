use std::sync::Arc;

use serde_json::json;

use super::authorizer::{Authorizer, Decision, Question};
use super::*;

const VARIABLES: &[&str] = &["object", "oldObject", "request", "authorizer"];

fn evaluate(text: &str) -> Result<Answer, String> {
    let mut scope = Scope::default();
    scope.bind("object", &json!({"metadata": {"name": "a", "namespace": "default", "labels": {"a-b/c": "d"}}, "n": 3}));
    scope.bind("oldObject", &Value::Null);
    scope.bind("request", &json!({"operation": "CREATE", "namespace": "default", "dryRun": false}));
    struct Pods;
    impl Authorizer for Pods {
        fn decide(&self, question: &Question) -> Decision {
            let allowed = question.resource == "pods" && question.verb == "create" && question.namespace == "default";
            let who = question.service_account.as_ref().map(|(_, name)| name.clone());
            Decision { allowed, reason: who.unwrap_or_else(|| question.path.clone().unwrap_or_default()) }
        }
    }
    let request = Question { resource: "pods".into(), namespace: "default".into(), ..Question::default() };
    scope.bind_authorizer(Arc::new(Pods), request);
    Expression::compile(text, VARIABLES)?.evaluate(&scope, &mut REQUEST_BUDGET.clone())
}

#[test]
fn expressions_see_requests_as_they_are_sent() {
    for (text, expected) in [
        ("object.metadata.name == 'a'", true),
        // Names that are words of CEL are not escaped here, as they are in rules of schemas.
        ("request.namespace == 'default' && object.metadata.namespace == request.namespace", true),
        ("object.metadata.labels['a-b/c'] == 'd'", true),
        ("has(object.metadata.labels) && 'x' in object.metadata.labels", false),
        ("oldObject == null", true),
        ("request.operation in ['UPDATE', 'DELETE']", false),
        ("object.?metadata.?annotations[?'x'].orValue('none') == 'none'", true),
        ("object.n > 2", true),
        ("authorizer.requestResource.check('create').allowed()", true),
        ("authorizer.requestResource.check('delete').allowed()", false),
        ("authorizer.group('').resource('pods').namespace('default').name('x').check('create').allowed()", true),
        ("authorizer.group('apps').resource('deployments').subresource('scale').check('create').allowed()", false),
        ("authorizer.path('/healthz').check('get').reason() == '/healthz'", true),
        ("authorizer.serviceAccount('default', 'bot').resource('pods').check('get').reason() == 'bot'", true),
        ("authorizer.path('/healthz').check('get').errored()", false),
    ] {
        assert_eq!(evaluate(text), Ok(Answer::Bool(expected)), "{text}");
    }
    assert_eq!(evaluate("'deployment ' + object.metadata.name"), Ok(Answer::Text("deployment a".into())));
    assert_eq!(evaluate("object.n + 1"), Ok(Answer::Other("number")));
}

#[test]
fn what_is_no_expression_does_not_compile() {
    for (text, part) in [
        ("object.metadata.name == '", "compilation failed"),
        ("[] bad expression", "compilation failed"),
        ("unknown.field == 1", "undeclared reference to 'unknown'"),
        ("object.steal()", "the function"),
        ("'a string'", "must evaluate to bool"),
    ] {
        let error = Expression::condition(text, VARIABLES).err().unwrap_or_default();
        assert!(error.contains(part), "{text}: {error}");
    }
    assert!(Expression::compile("authorizer.path('/x').check('get').allowed()", &["object"]).is_err());
}

#[test]
fn what_fails_at_evaluation_says_so_and_what_costs_too_much_is_not_run() {
    assert!(evaluate("object.missing == 1").is_err());
    let mut scope = Scope::default();
    scope.bind("object", &json!({"list": (0..500).collect::<Vec<_>>()}));
    let text = "object.list.all(a, object.list.all(b, object.list.all(c, a + b + c >= 0)))";
    let mut budget = REQUEST_BUDGET;
    let error = Expression::compile(text, &["object"]).unwrap().evaluate(&scope, &mut budget).unwrap_err();
    assert!(error.contains("cost budget"), "{error}");
}
