//! Admission policies, by raw requests in process: what Kubernetes' conformance tests of ValidatingAdmissionPolicy and
//! MutatingAdmissionPolicy ask, and what its documentation promises.

mod common;

use common::{World, world};
use proa_apiserver::User;
use serde_json::{Value, json};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn rule(group: &str, resource: &str, operations: &[&str]) -> Value {
    json!({"operations": operations, "apiGroups": [group], "apiVersions": ["v1"], "resources": [resource]})
}

/// The spec of a policy on the creation and change of a resource.
fn on(group: &str, resource: &str, more: Value) -> Value {
    let mut spec = json!({"matchConstraints": {"resourceRules": [rule(group, resource, &["CREATE", "UPDATE"])]}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

fn object(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": spec})
}

/// A policy in force.
async fn validating(world: &World, name: &str, spec: Value, binding: Value) {
    world.ok("POST", &format!("{GROUP}/validatingadmissionpolicies"), &object(name, spec)).await;
    let mut bound = json!({"policyName": name, "validationActions": ["Deny"]});
    bound.as_object_mut().unwrap().extend(binding.as_object().unwrap().clone());
    world.ok("POST", &format!("{GROUP}/validatingadmissionpolicybindings"), &object(name, bound)).await;
}

async fn mutating(world: &World, name: &str, spec: Value) {
    world.ok("POST", &format!("{GROUP}/mutatingadmissionpolicies"), &object(name, spec)).await;
    let bound = object(name, json!({"policyName": name}));
    world.ok("POST", &format!("{GROUP}/mutatingadmissionpolicybindings"), &bound).await;
}

fn deployment(name: &str, replicas: i64) -> Value {
    let labels = json!({"app": "nginx"});
    json!({"metadata": {"name": name, "labels": labels}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"containers": [{"name": "nginx", "image": "nginx:latest"}]}}}})
}

fn config_map(name: &str, data: Value) -> Value {
    json!({"metadata": {"name": name}, "data": data})
}

fn said(error: &Value) -> &str {
    error["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_validating_policy_holds_from_the_write_after_its_binding_and_until_it_goes() {
    let world = world().await;
    world.ok("PATCH", "/api/v1/namespaces/default", &json!({"metadata": {"labels": {"unique": "true"}}})).await;
    let mut spec = on(
        "apps",
        "deployments",
        json!({"validations": [{"expression": "object.spec.replicas > 1",
        "messageExpression": "'wants replicas > 1, got ' + object.spec.replicas"}]}),
    );
    spec["matchConstraints"]["namespaceSelector"] = json!({"matchLabels": {"unique": "true"}});
    let bound = json!({"matchResources": {"namespaceSelector": {"matchLabels": {"unique": "true"}}}});
    world.ok("POST", DEPLOYMENTS, &deployment("before", 1)).await;
    validating(&world, "replicated.policy.example.com", spec, bound).await;
    let (code, error) = world.call("POST", DEPLOYMENTS, &deployment("marker", 1)).await;
    assert_eq!((code, error["reason"].as_str()), (422, Some("Invalid")), "{error}");
    let expected = "deployments.apps \"marker\" is forbidden: ValidatingAdmissionPolicy 'replicated.policy.example.com' with \
                    binding 'replicated.policy.example.com' denied request: failed expression: object.spec.replicas > 1";
    assert_eq!(said(&error), expected);
    assert!(error["details"]["causes"][0]["message"].as_str().unwrap().starts_with("ValidatingAdmissionPolicy"));
    world.ok("POST", DEPLOYMENTS, &deployment("replicated", 2)).await;
    // Of another kind, in another namespace, and dry: only what it is for is held to it, and that always.
    let mut set = deployment("single", 1);
    set["spec"].as_object_mut().unwrap().remove("strategy");
    world.ok("POST", "/apis/apps/v1/namespaces/default/replicasets", &set).await;
    world.ok("POST", "/apis/apps/v1/namespaces/kube-public/deployments", &deployment("single", 1)).await;
    assert_eq!(world.call("POST", &format!("{DEPLOYMENTS}?dryRun=All"), &deployment("dry", 1)).await.0, 422);
    let shrink = json!({"spec": {"replicas": 1}});
    assert_eq!(world.call("PATCH", &format!("{DEPLOYMENTS}/replicated"), &shrink).await.0, 422);
    // A status and a scale are other resources.
    world.ok("PATCH", &format!("{DEPLOYMENTS}/before/status"), &json!({"status": {"replicas": 1}})).await;
    world.ok("PATCH", &format!("{DEPLOYMENTS}/replicated/scale"), &shrink).await;
    let binding = format!("{GROUP}/validatingadmissionpolicybindings/replicated.policy.example.com");
    world.ok("DELETE", &binding, &Value::Null).await;
    world.ok("POST", DEPLOYMENTS, &deployment("marker", 1)).await;
}

#[tokio::test]
async fn the_expressions_of_a_policy_refer_to_its_variables() {
    let world = world().await;
    let spec = on(
        "apps",
        "deployments",
        json!({
        "variables": [{"name": "replicas", "expression": "object.spec.replicas"},
            {"name": "oddReplicas", "expression": "variables.replicas % 2 == 1"}],
        "validations": [{"expression": "variables.replicas > 1"},
            {"expression": "variables.oddReplicas", "messageExpression": "'odd, not ' + string(variables.replicas)"}]}),
    );
    validating(&world, "odd", spec, json!({})).await;
    for (replicas, code) in [(1, 422), (2, 422), (3, 201), (4, 422), (5, 201)] {
        let (got, answer) = world.call("POST", DEPLOYMENTS, &deployment(&format!("d{replicas}"), replicas)).await;
        assert_eq!(got, code, "{replicas}: {answer}");
        assert!(replicas != 4 || said(&answer).ends_with("denied request: odd, not 4"), "{answer}");
    }
}

#[tokio::test]
async fn policies_are_told_what_their_expressions_confuse() {
    let world = world().await;
    let uri = format!("{GROUP}/validatingadmissionpolicies");
    let fine = on("apps", "deployments", json!({"validations": [{"expression": "object.spec.replicas > 1"}]}));
    let made = world.ok("POST", &uri, &object("fine", fine)).await;
    assert_eq!(made["status"], json!({"observedGeneration": 1, "typeChecking": {}}));
    let confused = on(
        "apps",
        "deployments",
        json!({
        "variables": [{"name": "n", "expression": "object.spec.replicas"}],
        "validations": [{"expression": "object.spec.replicas > '1'",
            "messageExpression": "'wants replicas > 1, got ' + variables.n"}]}),
    );
    let made = world.ok("POST", &uri, &object("confused", confused)).await;
    let warnings = &made["status"]["typeChecking"]["expressionWarnings"];
    assert_eq!(warnings[0]["fieldRef"], "spec.validations[0].expression");
    let first = warnings[0]["warning"].as_str().unwrap();
    assert!(first.starts_with("apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'"), "{first}");
    assert_eq!(warnings[1]["fieldRef"], "spec.validations[0].messageExpression");
    assert!(
        warnings[1]["warning"]
            .as_str()
            .unwrap()
            .contains("found no matching overload for '_+_' applied to '(string, int)'")
    );
    // It follows the policy, and is not its writers' to say.
    let mut mended = made.clone();
    mended["spec"]["validations"] = json!([{"expression": "object.spec.replicas > 1"}]);
    let mended = world.ok("PUT", &format!("{uri}/confused"), &mended).await;
    assert_eq!(mended["status"], json!({"observedGeneration": 2, "typeChecking": {}}));
    // The kinds of others are known by their definitions, and so are parameters.
    let definition = json!({"metadata": {"name": "boats.example.com"}, "spec": {"group": "example.com", "scope": "Cluster",
        "names": {"plural": "boats", "kind": "Boat"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"masts": {"type": "integer"}}}}}]}});
    world.ok("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    let spec = on(
        "example.com",
        "boats",
        json!({"paramKind": {"apiVersion": "example.com/v1", "kind": "Boat"},
        "validations": [{"expression": "object.masts == params.sails"}]}),
    );
    let made = world.ok("POST", &uri, &object("boats", spec)).await;
    let warning = made["status"]["typeChecking"]["expressionWarnings"][0]["warning"].as_str().unwrap();
    assert!(
        warning.contains("example.com/v1, Kind=Boat: ") && warning.contains("undefined field 'sails'"),
        "{warning}"
    );
}

#[tokio::test]
async fn what_a_binding_says_is_done_about_a_failure() {
    let world = world().await;
    let spec = |message: &str| {
        on(
            "",
            "configmaps",
            json!({"validations": [{"expression": "object.data.a == 'b'", "message": message,
        "reason": "Forbidden"}]}),
        )
    };
    validating(&world, "told", spec("say b"), json!({"validationActions": ["Warn", "Audit"]})).await;
    let body = config_map("one", json!({"a": "c"})).to_string().into_bytes();
    let response = world.raw(User::new("admin", &["system:masters"]), "POST", CONFIG_MAPS, &[], body).await;
    assert_eq!(response.status(), 201);
    let warning = response.headers()["warning"].to_str().unwrap();
    assert!(
        warning.contains("Validation failed for ValidatingAdmissionPolicy 'told' with binding 'told': say b"),
        "{warning}"
    );
    validating(&world, "refused", spec("no"), json!({})).await;
    let (code, error) = world.call("POST", CONFIG_MAPS, &config_map("two", json!({"a": "c"}))).await;
    assert_eq!((code, error["reason"].as_str()), (403, Some("Forbidden")), "{error}");
    // An error of its evaluation is a failure, unless the policy says otherwise.
    let (code, error) = world.call("POST", CONFIG_MAPS, &config_map("three", json!({}))).await;
    assert!(
        code == 422 && said(&error).contains("expression 'object.data.a == 'b'' resulted in error: no such key"),
        "{error}"
    );
    world
        .ok(
            "PATCH",
            &format!("{GROUP}/validatingadmissionpolicies/refused"),
            &json!({"spec": {"failurePolicy": "Ignore"}}),
        )
        .await;
    world.ok("POST", CONFIG_MAPS, &config_map("three", json!({}))).await;
    // What goes is seen as what was.
    let mut spec = on(
        "",
        "configmaps",
        json!({"validations": [
        {"expression": "object == null && oldObject.metadata.name != 'three' && request.operation == 'DELETE'"}]}),
    );
    spec["matchConstraints"]["resourceRules"][0]["operations"] = json!(["DELETE"]);
    validating(&world, "kept", spec, json!({})).await;
    assert_eq!(world.call("DELETE", &format!("{CONFIG_MAPS}/three"), &Value::Null).await.0, 422);
    world.ok("DELETE", &format!("{CONFIG_MAPS}/one"), &Value::Null).await;
}

#[tokio::test]
async fn parameters_are_found_by_name_and_selector_and_where_the_request_is() {
    let world = world().await;
    let spec = || {
        on(
            "apps",
            "deployments",
            json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "validations": [{"expression": "params == null || object.spec.replicas <= int(params.data.maxReplicas)",
            "messageExpression": "'at most ' + params.data.maxReplicas"}]}),
        )
    };
    let limit = |name: &str, most: &str| json!({"metadata": {"name": name, "labels": {"limit": "yes"}}, "data": {"maxReplicas": most}});
    let named = json!({"paramRef": {"name": "limit", "parameterNotFoundAction": "Deny"}});
    validating(&world, "limited", spec(), named).await;
    let (code, error) = world.call("POST", DEPLOYMENTS, &deployment("a", 1)).await;
    let expected =
        "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction";
    assert!(code == 422 && said(&error).contains(expected), "{error}");
    world.ok("POST", CONFIG_MAPS, &limit("limit", "3")).await;
    world.ok("POST", DEPLOYMENTS, &deployment("a", 3)).await;
    let (_, error) = world.call("POST", DEPLOYMENTS, &deployment("b", 4)).await;
    assert!(said(&error).ends_with("denied request: at most 3"), "{error}");
    // They are looked for where the request is, and may change.
    assert_eq!(
        world.call("POST", "/apis/apps/v1/namespaces/kube-public/deployments", &deployment("a", 1)).await.0,
        422
    );
    world.ok("PATCH", &format!("{CONFIG_MAPS}/limit"), &json!({"data": {"maxReplicas": "5"}})).await;
    world.ok("POST", DEPLOYMENTS, &deployment("b", 4)).await;
    let binding = format!("{GROUP}/validatingadmissionpolicybindings/limited");
    world.ok("DELETE", &binding, &Value::Null).await;
    // All of a selector's have to agree; none of them is no reason to refuse where the binding says so.
    let selected = json!({"policyName": "limited", "validationActions": ["Deny"], "paramRef": {
        "selector": {"matchLabels": {"limit": "yes"}}, "namespace": "default", "parameterNotFoundAction": "Allow"}});
    world.ok("POST", &format!("{GROUP}/validatingadmissionpolicybindings"), &object("all", selected)).await;
    world.ok("POST", CONFIG_MAPS, &limit("lower", "2")).await;
    let (_, error) = world.call("POST", "/apis/apps/v1/namespaces/kube-public/deployments", &deployment("c", 4)).await;
    assert!(said(&error).ends_with("denied request: at most 2"), "{error}");
    world.ok("DELETE", &format!("{CONFIG_MAPS}?labelSelector=limit=yes"), &Value::Null).await;
    world.ok("POST", DEPLOYMENTS, &deployment("c", 9)).await;
    world.ok("DELETE", &format!("{GROUP}/validatingadmissionpolicybindings/all"), &Value::Null).await;
    // A binding without parameters has the policy see none; a kind that is none makes the policy unusable.
    world
        .ok(
            "POST",
            &format!("{GROUP}/validatingadmissionpolicybindings"),
            &object("without", json!({"policyName": "limited", "validationActions": ["Deny"]})),
        )
        .await;
    world.ok("POST", DEPLOYMENTS, &deployment("d", 9)).await;
    world
        .ok(
            "PATCH",
            &format!("{GROUP}/validatingadmissionpolicies/limited"),
            &json!({"spec": {"paramKind": {"apiVersion": "example.com/v1", "kind": "Limit"}}}),
        )
        .await;
    let (_, error) = world.call("POST", DEPLOYMENTS, &deployment("e", 9)).await;
    let expected = "'limited' denied request: failed to configure policy: failed to find resource referenced by paramKind: 'example.com/v1, Kind=Limit'";
    assert!(said(&error).contains(expected), "{error}");
}

#[tokio::test]
async fn custom_resources_are_parameters_and_are_held_to_policies() {
    let world = world().await;
    let definition = |plural: &str, kind: &str, scope: &str| {
        json!({"metadata": {"name": format!("{plural}.rules.example.com")},
        "spec": {"group": "rules.example.com", "scope": scope, "names": {"plural": plural, "kind": kind},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
                "properties": {"maxReplicas": {"type": "integer"}}}}}]}})
    };
    for (plural, kind, scope) in [("replicalimits", "ReplicaLimit", "Namespaced"), ("fleets", "Fleet", "Cluster")] {
        world
            .ok("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition(plural, kind, scope))
            .await;
    }
    let params = json!({"apiVersion": "rules.example.com/v1", "kind": "ReplicaLimit"});
    let spec = |group: &str, resource: &str, field: &str| {
        on(
            group,
            resource,
            json!({"paramKind": params, "validations": [
        {"expression": format!("{field} <= params.maxReplicas"), "reason": "Invalid"}]}),
        )
    };
    let bound = |namespace: Value| {
        let mut reference = json!({"name": "limit", "parameterNotFoundAction": "Deny"});
        if namespace != Value::Null {
            reference["namespace"] = namespace;
        }
        json!({"paramRef": reference})
    };
    let limit = json!({"apiVersion": "rules.example.com/v1", "kind": "ReplicaLimit", "metadata": {"name": "limit"}, "maxReplicas": 3});
    world.ok("POST", "/apis/rules.example.com/v1/namespaces/default/replicalimits", &limit).await;
    validating(&world, "deployments", spec("apps", "deployments", "object.spec.replicas"), bound(Value::Null)).await;
    validating(&world, "fleets", spec("rules.example.com", "fleets", "object.maxReplicas"), bound(Value::Null)).await;
    world.ok("POST", DEPLOYMENTS, &deployment("a", 3)).await;
    assert_eq!(world.call("POST", DEPLOYMENTS, &deployment("b", 4)).await.0, 422);
    let fleet = |most: i64| json!({"apiVersion": "rules.example.com/v1", "kind": "Fleet", "metadata": {"name": format!("f{most}")}, "maxReplicas": most});
    let fleets = "/apis/rules.example.com/v1/fleets";
    let (_, error) = world.call("POST", fleets, &fleet(1)).await;
    assert!(
        said(&error).contains("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"),
        "{error}"
    );
    let patch = json!({"spec": {"paramRef": {"namespace": "default"}}});
    world.ok("PATCH", &format!("{GROUP}/validatingadmissionpolicybindings/fleets"), &patch).await;
    world.ok("POST", fleets, &fleet(3)).await;
    assert_eq!(world.call("POST", fleets, &fleet(4)).await.0, 422);
}

#[tokio::test]
async fn expressions_see_the_request_its_namespace_and_what_its_user_may() {
    let world = world().await;
    world.ok("PATCH", "/api/v1/namespaces/default", &json!({"metadata": {"labels": {"env": "prod"}}})).await;
    let spec = on(
        "",
        "configmaps",
        json!({
        "matchConditions": [{"name": "not-the-system", "expression": "!('system:nodes' in request.userInfo.groups)"}],
        "validations": [
            {"expression": "namespaceObject.metadata.labels.env == 'prod' && namespaceObject.metadata.name == request.namespace", "message": "1"},
            {"expression": "request.kind.kind == 'ConfigMap' && request.resource.resource == 'configmaps' && request.operation == 'CREATE'", "message": "2"},
            {"expression": "authorizer.group('').resource('secrets').namespace(request.namespace).check('get').allowed()", "message": "3"},
            {"expression": "authorizer.requestResource.check('create').allowed() && request.dryRun == false", "message": "4"},
            {"expression": "request.userInfo.username.startsWith('a')", "message": "5"}]}),
    );
    validating(&world, "sees", spec, json!({})).await;
    world.ok("POST", CONFIG_MAPS, &config_map("a", json!({}))).await;
    let role = json!({"metadata": {"name": "writer"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}]});
    world.ok("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", &role).await;
    let binding = json!({"metadata": {"name": "writer"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
        "name": "writer"}, "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}]});
    world.ok("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await;
    let body = || config_map("b", json!({})).to_string().into_bytes();
    let (code, error) =
        world.call_as(User::new("ann", &["system:authenticated"]), "POST", CONFIG_MAPS, &[], body()).await;
    assert!(code == 422 && said(&error).ends_with("denied request: 3"), "{error}");
}

#[tokio::test]
async fn a_policy_that_cannot_work_is_not_stored() {
    let world = world().await;
    let (policies, bindings) =
        (format!("{GROUP}/validatingadmissionpolicies"), format!("{GROUP}/validatingadmissionpolicybindings"));
    let refused = async |uri: &str, body: Value| {
        let (code, error) = world.call("POST", uri, &body).await;
        assert_eq!(code, 422, "{body} {error}");
        said(&error).to_owned()
    };
    let validation = |validation: Value| on("", "pods", json!({"validations": [validation]}));
    let more = |more: Value| {
        let mut spec = validation(json!({"expression": "true"}));
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    for (spec, words) in [
        (json!({"validations": [{"expression": "true"}]}), "spec.matchConstraints: Required value"),
        (on("", "pods", json!({})), "validations or auditAnnotations must contain at least one item"),
        (
            validation(json!({"expression": " "})),
            "spec.validations[0].expression: Required value: expression is not specified",
        ),
        (
            validation(json!({"expression": "object.x in [1, 2, "})),
            "compilation failed: ERROR: <input>:1:20: Syntax error",
        ),
        (
            validation(json!({"expression": "x == 1"})),
            "compilation failed: ERROR: <input>:1:1: undeclared reference to 'x' (in container '')",
        ),
        (validation(json!({"expression": "params.x == 1"})), "undeclared reference to 'params'"),
        (
            validation(json!({"expression": "'text'"})),
            "spec.validations[0].expression: Invalid value: \"'text'\": must evaluate to bool",
        ),
        (validation(json!({"expression": "true", "messageExpression": "1"})), "must evaluate to string"),
        (
            validation(
                json!({"expression": "true", "messageExpression": "authorizer.path('/').check('get').reason()"}),
            ),
            "undeclared reference to 'authorizer'",
        ),
        (validation(json!({"expression": "true", "message": "a\nb"})), "message must not contain line breaks"),
        (validation(json!({"expression": "true", "message": " "})), "message must be non-empty if specified"),
        (
            validation(json!({"expression": "true", "reason": "Because"})),
            "Unsupported value: \"Because\": supported values: \"Forbidden\", \"Invalid\", \"RequestEntityTooLarge\", \"Unauthorized\"",
        ),
        (more(json!({"variables": [{"name": "a-b", "expression": "1"}]})), "name is not a valid CEL identifier"),
        (
            more(json!({"variables": [{"name": "a", "expression": "variables.b"}, {"name": "b", "expression": "1"}]})),
            "undefined field 'b'",
        ),
        (more(json!({"paramKind": {"apiVersion": "a/b/c", "kind": "X"}})), "unexpected GroupVersion string: a/b/c"),
        (
            more(json!({"matchConditions": [{"name": "a", "expression": "1"}]})),
            "spec.matchConditions[0].expression: Invalid value: \"1\": must evaluate to bool",
        ),
        (
            more(
                json!({"matchConditions": [{"name": "a", "expression": "true"}, {"name": "a", "expression": "true"}]}),
            ),
            "Duplicate value: \"a\"",
        ),
        (
            more(json!({"auditAnnotations": [{"key": "k", "valueExpression": "1"}]})),
            "must evaluate to one of [string null_type]",
        ),
        (
            more(json!({"auditAnnotations": [{"key": "k k", "valueExpression": "'a'"}]})),
            "spec.auditAnnotations[0].key: Invalid value",
        ),
    ] {
        let error = refused(&policies, object("p", spec)).await;
        assert!(error.contains(words), "{error}");
    }
    for (spec, words) in [
        (json!({"validationActions": ["Deny"]}), "spec.policyName: Required value"),
        (json!({"policyName": "p"}), "at least one validation action is required"),
        (json!({"policyName": "p", "validationActions": ["Deny", "Warn"]}), "must not contain both Deny and Warn"),
        (json!({"policyName": "p", "validationActions": ["Deny", "Deny"]}), "Duplicate value: \"Deny\""),
        (
            json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": {"parameterNotFoundAction": "Deny"}}),
            "one of name or selector must be specified",
        ),
        (
            json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": {"name": "a"}}),
            "spec.paramRef.parameterNotFoundAction: Required value",
        ),
        (
            json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": {"name": "a", "selector": {}, "parameterNotFoundAction": "Deny"}}),
            "name and selector are mutually exclusive",
        ),
    ] {
        let error = refused(&bindings, object("b", spec)).await;
        assert!(error.contains(words), "{error}");
    }
    let mutations = format!("{GROUP}/mutatingadmissionpolicies");
    let mutation = |mutation: Value| object("m", on("", "pods", json!({"mutations": [mutation]})));
    for (body, words) in [
        (object("m", on("", "pods", json!({"mutations": []}))), "spec.mutations: Required value"),
        (mutation(json!({"patchType": "Merge"})), "Unsupported value: \"Merge\""),
        (mutation(json!({"patchType": "JSONPatch"})), "spec.mutations[0].jsonPatch: Required value"),
        (
            mutation(json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "{'a': 1}"}})),
            "must evaluate to Object",
        ),
        (
            mutation(json!({"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 1}]"}})),
            "compilation failed",
        ),
        (
            mutation(json!({"patchType": "JSONPatch", "jsonPatch": {"expression": "Object{}"}})),
            "must evaluate to list(JSONPatch)",
        ),
    ] {
        let error = refused(&mutations, body).await;
        assert!(error.contains(words), "{error}");
    }
    // Who may not read the parameters may not have the server read them.
    let role = json!({"metadata": {"name": "author"}, "rules": [{"apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"], "verbs": ["*"]}]});
    world.ok("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", &role).await;
    let binding = json!({"metadata": {"name": "author"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
        "name": "author"}, "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}]});
    world.ok("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await;
    let ann = || User::new("ann", &["system:authenticated"]);
    let body = object("p", more(json!({"paramKind": {"apiVersion": "v1", "kind": "Secret"}}))).to_string().into_bytes();
    let (code, error) = world.call_as(ann(), "POST", &policies, &[], body).await;
    assert!(
        code == 403
            && said(&error).contains(
                "must have \"get\" permission on all objects of the referenced paramKind (kind=Secret, apiVersion=v1)"
            ),
        "{error}"
    );
    let body = object("p", more(json!({}))).to_string().into_bytes();
    assert_eq!(world.call_as(ann(), "POST", &policies, &[], body).await.0, 201);
}

fn annotate(annotations: &str) -> Value {
    let expression = format!("Object{{metadata: Object.metadata{{annotations: {annotations}}}}}");
    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
}

#[tokio::test]
async fn a_mutating_policy_changes_a_deployment() {
    let world = world().await;
    let patch = "[JSONPatch{op: 'replace', path: '/spec/replicas', value: object.spec.replicas + 1}]";
    let spec = on(
        "apps",
        "deployments",
        json!({"reinvocationPolicy": "Never", "mutations": [
        {"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}]}),
    );
    mutating(&world, "one-more", spec).await;
    let made = world.ok("POST", DEPLOYMENTS, &deployment("a", 2)).await;
    assert_eq!(made["spec"]["replicas"], 3);
    // What a policy sets is nobody's: whoever applied the object does not own it, and does not take it away again.
    let fields = made["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"].clone();
    assert!(fields.get("f:replicas").is_some(), "the writer owns what it wrote: {fields}");
    let dry = world.ok("POST", &format!("{DEPLOYMENTS}?dryRun=All"), &deployment("b", 5)).await;
    assert_eq!(dry["spec"]["replicas"], 6);
    world.ok("DELETE", &format!("{GROUP}/mutatingadmissionpolicies/one-more"), &Value::Null).await;
    assert_eq!(world.ok("POST", DEPLOYMENTS, &deployment("b", 5)).await["spec"]["replicas"], 5);
}

#[tokio::test]
async fn a_mutating_policy_adds_annotations_to_a_deployment() {
    let world = world().await;
    let spec = on(
        "apps",
        "deployments",
        json!({"reinvocationPolicy": "Never",
        "mutations": [annotate("{'mutated-by': 'admission-policy', ?'for': has(object.metadata.labels) ? optional.of(object.metadata.name) : optional.none()}")]}),
    );
    mutating(&world, "annotates", spec).await;
    let mut given = deployment("a", 2);
    given["metadata"]["annotations"] = json!({"own": "1"});
    let made = world.ok("POST", DEPLOYMENTS, &given).await;
    assert_eq!(made["metadata"]["annotations"]["mutated-by"], "admission-policy");
    assert_eq!(
        (&made["metadata"]["annotations"]["own"], &made["metadata"]["annotations"]["for"]),
        (&json!("1"), &json!("a"))
    );
    let fields = made["metadata"]["managedFields"][0]["fieldsV1"]["f:metadata"]["f:annotations"].clone();
    assert!(fields.get("f:own").is_some() && fields.get("f:mutated-by").is_none(), "{fields}");
}

#[tokio::test]
async fn policies_mutate_one_after_the_other_and_again_if_they_ask_to() {
    let world = world().await;
    // In the order of their names: the first sees nothing of the second's in the first round.
    let count = "has(object.metadata.annotations) && 'late' in object.metadata.annotations ? 'seen' : 'unseen'";
    for (name, again) in [("a", "IfNeeded"), ("b", "Never")] {
        let spec = on(
            "",
            "configmaps",
            json!({"reinvocationPolicy": again, "mutations": [annotate(&format!("{{'{name}': {count}}}"))]}),
        );
        mutating(&world, name, spec).await;
    }
    mutating(&world, "c", on("", "configmaps", json!({"mutations": [annotate("{'late': 'yes'}")]}))).await;
    let made = world.ok("POST", CONFIG_MAPS, &config_map("x", json!({}))).await;
    let annotations = &made["metadata"]["annotations"];
    assert_eq!((&annotations["a"], &annotations["b"]), (&json!("seen"), &json!("unseen")), "{annotations}");
    // A validating policy sees what they made of it.
    let spec =
        on("", "configmaps", json!({"validations": [{"expression": "object.metadata.annotations.late == 'no'"}]}));
    validating(&world, "after", spec, json!({})).await;
    assert_eq!(world.call("POST", CONFIG_MAPS, &config_map("y", json!({}))).await.0, 422);
}

#[tokio::test]
async fn a_mutation_that_fails_is_kept_to_or_left_out() {
    let world = world().await;
    let spec = on(
        "",
        "pods",
        json!({"mutations": [{"patchType": "JSONPatch", "jsonPatch": {
        "expression": "[JSONPatch{op: 'add', path: '/metadata/labels/team', value: object.metadata.labels.squad}]"}}]}),
    );
    mutating(&world, "team", spec).await;
    let pod = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let made = world.ok("POST", PODS, &pod("a", json!({"squad": "s"}))).await;
    assert_eq!(made["metadata"]["labels"], json!({"squad": "s", "team": "s"}));
    let (code, error) = world.call("POST", PODS, &pod("b", json!({"x": "y"}))).await;
    let expected = "policy 'team' with binding 'team' denied request: expression '[JSONPatch{op: 'add'";
    assert!(
        code == 403
            && said(&error).starts_with(expected)
            && said(&error).ends_with("resulted in error: no such key: squad"),
        "{error}"
    );
    assert_eq!(error["reason"], "Invalid");
    world
        .ok("PATCH", &format!("{GROUP}/mutatingadmissionpolicies/team"), &json!({"spec": {"failurePolicy": "Ignore"}}))
        .await;
    world.ok("POST", PODS, &pod("b", json!({"x": "y"}))).await;
    // What is built in completes what a policy adds, and the kind's own rules hold for it.
    let sidecar = |container: &str| {
        json!({"mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
        format!("Object{{spec: Object.spec{{containers: [Object.spec.containers{{{container}}}]}}}}")}}]})
    };
    mutating(&world, "sidecar", on("", "pods", sidecar("name: 'side', image: 's'"))).await;
    let made = world.ok("POST", PODS, &pod("c", json!({"squad": "s"}))).await;
    let containers = made["spec"]["containers"].as_array().unwrap();
    let side = containers.iter().find(|container| container["name"] == "side").unwrap();
    assert_eq!((containers.len(), &side["imagePullPolicy"]), (2, &json!("Always")));
    let bad = json!({"spec": sidecar("name: 'Not A Name', image: 's'")});
    world.ok("PATCH", &format!("{GROUP}/mutatingadmissionpolicies/sidecar"), &bad).await;
    let (code, error) = world.call("POST", PODS, &pod("d", json!({"squad": "s"}))).await;
    assert!(code == 422 && said(&error).contains("spec.containers"), "{error}");
}

/// What every test of an API asks of a resource: discovery, every verb, and a watch that tells of a patch.
async fn supports_api_operations(plural: &str, spec: Value, change: Value) {
    let world = world().await;
    let groups = world.get("/apis").await;
    assert!(groups["groups"].as_array().unwrap().iter().any(|group| group["name"] == "admissionregistration.k8s.io"));
    let group = world.get("/apis/admissionregistration.k8s.io").await;
    assert!(group["versions"].as_array().unwrap().iter().any(|version| version["version"] == "v1"));
    let resources = world.get(GROUP).await;
    let names: Vec<&str> =
        resources["resources"].as_array().unwrap().iter().filter_map(|resource| resource["name"].as_str()).collect();
    assert!(names.contains(&plural), "{names:?}");
    assert_eq!(names.contains(&&*format!("{plural}/status")), plural == "validatingadmissionpolicies");
    let uri = format!("{GROUP}/{plural}");
    let template = json!({"metadata": {"generateName": "e2e-example-", "labels": {"test": "x"}}, "spec": spec});
    world.ok("POST", &uri, &template).await;
    world.ok("POST", &uri, &template).await;
    let made = world.ok("POST", &uri, &template).await;
    let one = format!("{uri}/{}", made["metadata"]["name"].as_str().unwrap());
    assert_eq!(world.get(&one).await["metadata"]["uid"], made["metadata"]["uid"]);
    let list = world.get(&format!("{uri}?labelSelector=test=x")).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 3);
    let since = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watch = world.watch(&format!("{uri}?watch=true&labelSelector=test=x&resourceVersion={since}")).await;
    let patch = json!({"metadata": {"annotations": {"patched": "true"}}, "spec": change});
    let patched = world.ok("PATCH", &one, &patch).await;
    assert_eq!(patched["metadata"]["annotations"]["patched"], "true");
    for (field, value) in change.as_object().unwrap() {
        assert_eq!(&patched["spec"][field], value);
    }
    let event = watch.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["metadata"]["annotations"]["patched"]),
        (&json!("MODIFIED"), &json!("true"))
    );
    let mut updated = patched.clone();
    updated["metadata"]["annotations"]["updated"] = json!("true");
    let updated = world.ok("PUT", &one, &updated).await;
    assert_eq!(updated["metadata"]["annotations"]["updated"], "true");
    if plural == "validatingadmissionpolicies" {
        let condition = json!({"type": "Odd", "status": "True", "reason": "Test", "message": "m", "lastTransitionTime": "2024-01-01T00:00:00Z"});
        let status = world.ok("PATCH", &format!("{one}/status"), &json!({"status": {"conditions": [condition]}})).await;
        assert_eq!(status["status"]["conditions"][0]["type"], "Odd");
        assert_eq!(world.get(&format!("{one}/status")).await["status"], status["status"]);
    }
    world.ok("DELETE", &one, &Value::Null).await;
    assert_eq!(world.call("GET", &one, &Value::Null).await.0, 404);
    assert_eq!(world.get(&format!("{uri}?labelSelector=test=x")).await["items"].as_array().unwrap().len(), 2);
    world.ok("DELETE", &format!("{uri}?labelSelector=test=x"), &Value::Null).await;
    assert_eq!(world.get(&format!("{uri}?labelSelector=test=x")).await["items"], json!([]));
}

#[tokio::test]
async fn validating_policies_support_api_operations() {
    let spec = on("apps", "deployments", json!({"validations": [{"expression": "object.spec.replicas <= 100"}]}));
    supports_api_operations("validatingadmissionpolicies", spec, json!({"failurePolicy": "Ignore"})).await;
}

#[tokio::test]
async fn validating_policy_bindings_support_api_operations() {
    let spec = json!({"policyName": "replicalimit-policy.example.com", "validationActions": ["Deny"]});
    supports_api_operations("validatingadmissionpolicybindings", spec, json!({"policyName": "other.example.com"}))
        .await;
}

#[tokio::test]
async fn mutating_policies_support_api_operations() {
    let spec = on(
        "apps",
        "deployments",
        json!({"reinvocationPolicy": "Never", "mutations": [annotate("{'my-foo-annotation': 'myAnnotationValue'}")]}),
    );
    supports_api_operations("mutatingadmissionpolicies", spec, json!({"failurePolicy": "Ignore"})).await;
}

#[tokio::test]
async fn mutating_policy_bindings_support_api_operations() {
    let spec = json!({"policyName": "replicalimit-policy.example.com"});
    supports_api_operations("mutatingadmissionpolicybindings", spec, json!({"policyName": "other.example.com"})).await;
}
