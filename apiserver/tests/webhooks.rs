//! Admission webhooks: who is asked, what becomes of the answers, and what does not depend on anybody's answer.

mod common;
#[path = "common/hook_server.rs"]
mod hook_server;

use common::world;
use hook_server::{Came, HookServer, admission, allow, deny, patch};
use proa_apiserver::User;
use serde_json::{Value, json};

const API: &str = "/apis/admissionregistration.k8s.io/v1";
const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const CRONTABS: &str = "/apis/stable.example.com/v1/namespaces/default/crontabs";
const BOTH: [&str; 2] = [MUTATING, VALIDATING];

fn rule(operations: &[&str], group: &str, version: &str, resource: &str) -> Value {
    json!({"operations": operations, "apiGroups": [group], "apiVersions": [version], "resources": [resource]})
}

/// A webhook of that name, its other fields overlaid with `more`.
fn hook(name: &str, client: &Value, rules: &[Value], more: &Value) -> Value {
    let mut hook = json!({"name": format!("{name}.example.com"), "clientConfig": client, "rules": rules,
        "sideEffects": "None", "admissionReviewVersions": ["v1", "v1beta1"], "timeoutSeconds": 5});
    hook.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    hook
}

fn configuration(name: &str, hooks: &[Value]) -> Value {
    json!({"metadata": {"name": name, "labels": {"of": "test"}}, "webhooks": hooks})
}

fn map(name: &str, data: &Value) -> Value {
    json!({"metadata": {"name": name}, "data": data})
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn message(answer: &(u16, Value)) -> &str {
    answer.1["message"].as_str().unwrap_or_default()
}

/// A definition of CronTabs, in `versions`: their names, and the properties of `data` they know (none: any).
fn crontabs(versions: &[&str], stored: &str, properties: &[&str]) -> Value {
    let fields: serde_json::Map<String, Value> =
        properties.iter().map(|name| ((*name).to_owned(), json!({"type": "string"}))).collect();
    let data = match properties {
        [] => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        _ => json!({"type": "object", "properties": fields}),
    };
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"data": data}}});
    let versions: Vec<Value> = versions
        .iter()
        .map(|name| json!({"name": name, "served": true, "storage": *name == stored, "schema": schema}))
        .collect();
    json!({"metadata": {"name": "crontabs.stable.example.com"}, "spec": {"group": "stable.example.com", "scope": "Namespaced",
        "names": {"plural": "crontabs", "kind": "CronTab"}, "versions": versions}})
}

fn crontab(version: &str, name: &str, data: &Value) -> Value {
    json!({"apiVersion": format!("stable.example.com/{version}"), "kind": "CronTab", "metadata": {"name": name}, "data": data})
}

/// Answers as the webhook of Kubernetes' own conformance tests does, by path.
async fn samples() -> HookServer {
    HookServer::answering(|came: &Came| {
        let object = &came.request()["object"];
        let has = |key: &str| object["data"].get(key).is_some();
        let add = |field: &str| json!([{"op": "add", "path": field, "value": "yes"}]);
        match came.path() {
            "/deny" => deny(came, "denied by the test"),
            "/deny-offending" => {
                let gone = &came.request()["oldObject"]["data"];
                let offends = |data: &Value| data["webhook-e2e-test"] == "webhook-disallow";
                if offends(&object["data"]) || (object.is_null() && offends(gone)) {
                    deny(came, "the object contains unwanted key and value")
                } else {
                    allow(came)
                }
            }
            "/add-stage-1" if has("mutation-start") => patch(came, &add("/data/mutation-stage-1")),
            "/add-stage-2" if has("mutation-stage-1") => patch(came, &add("/data/mutation-stage-2")),
            "/add-init-container" => {
                let container = json!([{"name": "webhook-added-init-container", "image": "i"}]);
                patch(came, &json!([{"op": "add", "path": "/spec/initContainers", "value": container}]))
            }
            "/label" => patch(came, &json!([{"op": "add", "path": "/metadata/labels", "value": {"by": "webhook"}}])),
            _ => allow(came),
        }
    })
    .await
}

#[tokio::test]
async fn webhooks_are_listed_by_label_and_hold_until_the_collection_is_deleted() {
    let (world, server) = (world().await, samples().await);
    for (place, path) in [(VALIDATING, "/deny-offending"), (MUTATING, "/add-stage-1")] {
        for n in 0..3 {
            let hooks = [hook("a", &server.client(path), &[rule(&["CREATE"], "", "v1", "configmaps")], &json!({}))];
            world.ok("POST", place, &configuration(&format!("c{n}"), &hooks)).await;
        }
        let listed = world.get(&format!("{place}?labelSelector=of%3Dtest")).await;
        assert_eq!(listed["items"].as_array().unwrap().len(), 3, "{place}");
    }
    // The very next write is subject to what was acknowledged.
    let offending = map("bad", &json!({"webhook-e2e-test": "webhook-disallow"}));
    assert_eq!(world.call("POST", MAPS, &offending).await.0, 403);
    let made = world.ok("POST", MAPS, &map("start", &json!({"mutation-start": "yes"}))).await;
    assert_eq!(made["data"], json!({"mutation-start": "yes", "mutation-stage-1": "yes"}));
    for place in BOTH {
        world.ok("DELETE", &format!("{place}?labelSelector=of%3Dtest"), &Value::Null).await;
    }
    world.ok("POST", MAPS, &offending).await;
    let made = world.ok("POST", MAPS, &map("again", &json!({"mutation-start": "yes"}))).await;
    assert_eq!(made["data"], json!({"mutation-start": "yes"}));
}

#[tokio::test]
async fn a_webhook_follows_its_configuration_when_that_is_updated_and_patched() {
    let (world, server) = (world().await, samples().await);
    for (place, path) in [(VALIDATING, "/deny"), (MUTATING, "/deny")] {
        let uri = format!("{place}/c");
        let on = |operation: &str| {
            let rules = [rule(&[operation], "", "v1", "configmaps")];
            configuration("c", &[hook("a", &server.client(path), &rules, &json!({}))])
        };
        let mut configured = world.ok("POST", place, &on("CREATE")).await;
        assert_eq!(world.call("POST", MAPS, &map("a", &json!({}))).await.0, 403);
        configured["webhooks"][0]["rules"][0]["operations"] = json!(["UPDATE"]);
        world.ok("PUT", &uri, &configured).await;
        world.ok("POST", MAPS, &map("a", &json!({}))).await;
        assert_eq!(world.call("PUT", &format!("{MAPS}/a"), &map("a", &json!({"x": "y"}))).await.0, 403);
        world.ok("DELETE", &format!("{MAPS}/a"), &Value::Null).await;
        world.ok("PATCH", &uri, &json!({"webhooks": on("CREATE")["webhooks"]})).await;
        assert_eq!(world.call("POST", MAPS, &map("a", &json!({}))).await.0, 403);
        world.ok("DELETE", &uri, &Value::Null).await;
    }
}

#[tokio::test]
async fn match_conditions_are_kept_updated_and_decide_who_is_asked() {
    let (world, server) = (world().await, samples().await);
    let condition = |expression: &str| json!([{"name": "only", "expression": expression}]);
    for place in BOTH {
        let rules = [rule(&["*"], "*", "*", "*")];
        let not_me = json!({"matchConditions": condition("object == null || object.metadata.name != 'skip-me'"),
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}});
        let hooks = [hook("a", &server.client("/deny"), &rules, &not_me)];
        world.ok("POST", place, &configuration("c", &hooks)).await;
        // Everything is refused but the one the condition leaves out.
        assert_eq!(world.call("POST", MAPS, &map("other", &json!({}))).await.0, 403);
        assert_eq!(world.call("POST", PODS, &pod("other")).await.0, 403);
        world.ok("POST", MAPS, &map("skip-me", &json!({}))).await;
        let uri = format!("{place}/c");
        let mut configured = world.get(&uri).await;
        assert_eq!(configured["webhooks"][0]["matchConditions"][0]["name"], "only");
        let by_user = "request.userInfo.username == 'someone' || authorizer.path('/x').check('get').allowed() == false";
        configured["webhooks"][0]["matchConditions"] = condition(by_user);
        world.ok("PUT", &uri, &configured).await;
        world.ok("DELETE", &format!("{MAPS}/skip-me"), &Value::Null).await;
        // One that fails refuses, for the failure policy is Fail; and it does so without asking.
        configured = world.get(&uri).await;
        configured["webhooks"][0]["matchConditions"] = condition("object.data.missing == 'x'");
        world.ok("PUT", &uri, &configured).await;
        let refused = world.call("POST", MAPS, &map("a", &json!({}))).await;
        assert!(refused.0 == 403 && message(&refused).contains("\"only\""), "{refused:?}");
        world.ok("DELETE", &uri, &Value::Null).await;
    }
}

#[tokio::test]
async fn match_conditions_that_do_not_compile_are_refused() {
    let world = world().await;
    let client = json!({"url": "https://127.0.0.1/x"});
    for place in BOTH {
        for (expression, why) in [
            ("object.metadata.name == '", "compilation failed"),
            ("[] bad expression", "compilation failed"),
            ("nothing.of.mine", "undeclared reference to 'nothing'"),
        ] {
            let conditions = json!({"matchConditions": [{"name": "invalid", "expression": expression}]});
            let hooks = [hook("a", &client, &[rule(&["*"], "*", "*", "*")], &conditions)];
            let refused = world.call("POST", place, &configuration("c", &hooks)).await;
            assert_eq!(refused.0, 422, "{refused:?}");
            let cause = &refused.1["details"]["causes"][0];
            assert_eq!(cause["field"], "webhooks[0].matchConditions[0].expression");
            assert!(cause["message"].as_str().unwrap().contains(why), "{cause}");
        }
    }
}

#[tokio::test]
async fn a_configuration_that_could_never_work_is_refused() {
    let world = world().await;
    let good = hook("a", &json!({"url": "https://127.0.0.1/x"}), &[rule(&["*"], "*", "*", "*/*")], &json!({}));
    let with = |path: &str, value: Value| {
        let mut hook = good.clone();
        match path.split_once('/') {
            Some((field, below)) => hook[field][below] = value,
            None => hook[path] = value,
        }
        configuration("c", &[hook])
    };
    let many: Vec<Value> = (0..65).map(|n| json!({"name": format!("n{n}"), "expression": "true"})).collect();
    for (body, field, why) in [
        (with("name", json!("a.b")), "webhooks[0].name", "at least three segments"),
        (configuration("c", &[good.clone(), good.clone()]), "webhooks[1].name", "Duplicate value"),
        (
            with("clientConfig/url", json!("http://a")),
            "webhooks[0].clientConfig.url",
            "'https' is the only allowed URL scheme",
        ),
        (with("clientConfig/url", json!("https://a/?b=c")), "webhooks[0].clientConfig.url", "query parameters"),
        (with("clientConfig/url", json!("https://u@a/")), "webhooks[0].clientConfig.url", "user information"),
        (
            with("clientConfig/service", json!({"name": "a", "namespace": "b"})),
            "webhooks[0].clientConfig",
            "exactly one of",
        ),
        (
            with("clientConfig", json!({"service": {"name": "a", "namespace": "b", "path": "x"}})),
            "webhooks[0].clientConfig.service.path",
            "must start with a '/'",
        ),
        (with("timeoutSeconds", json!(31)), "webhooks[0].timeoutSeconds", "between 1 and 30 seconds"),
        (with("sideEffects", json!("Some")), "webhooks[0].sideEffects", "Unsupported value"),
        (
            with("admissionReviewVersions", json!(["v2"])),
            "webhooks[0].admissionReviewVersions",
            "at least one of v1, v1beta1",
        ),
        (with("matchConditions", json!(many)), "webhooks[0].matchConditions", "must have at most 64 items"),
        (
            with(
                "rules",
                json!([{"operations": ["*", "CREATE"], "apiGroups": ["*"], "apiVersions": ["v1"], "resources": ["a"]}]),
            ),
            "webhooks[0].rules[0].operations",
            "if '*' is present",
        ),
        (
            with(
                "rules",
                json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["v1"], "resources": ["a/*", "a/b"]}]),
            ),
            "webhooks[0].rules[0].resources[1]",
            "if 'a/*' is present",
        ),
    ] {
        let refused = world.call("POST", VALIDATING, &body).await;
        assert_eq!(refused.0, 422, "{field}: {refused:?}");
        let causes = refused.1["details"]["causes"].as_array().unwrap();
        let found =
            causes.iter().any(|cause| cause["field"] == field && cause["message"].as_str().unwrap().contains(why));
        assert!(found, "{field} {why}: {causes:?}");
    }
    let made = world.ok("POST", VALIDATING, &configuration("c", &[good])).await;
    let hook = &made["webhooks"][0];
    let defaults =
        json!([hook["failurePolicy"], hook["matchPolicy"], hook["rules"][0]["scope"], hook["objectSelector"]]);
    assert_eq!(defaults, json!(["Fail", "Equivalent", "*", {}]));
}

#[tokio::test]
async fn attaching_to_a_pod_can_be_denied() {
    let (world, server) = (world().await, samples().await);
    let rules = [rule(&["CONNECT"], "", "v1", "pods/attach")];
    world.ok("POST", VALIDATING, &configuration("c", &[hook("a", &server.client("/deny"), &rules, &json!({}))])).await;
    world.ok("POST", PODS, &pod("web")).await;
    let refused = world.call("POST", &format!("{PODS}/web/attach?stdin=true&container=c"), &Value::Null).await;
    assert_eq!(refused.0, 403);
    assert_eq!(message(&refused), "admission webhook \"a.example.com\" denied the request: denied by the test");
    let came = server.at("/deny");
    let request = came[0].request();
    assert_eq!(request["operation"], "CONNECT");
    assert_eq!(request["subResource"], "attach");
    assert_eq!(
        request["object"],
        json!({"kind": "PodAttachOptions", "apiVersion": "v1", "stdin": true, "container": "c"})
    );
    // Another connection is none of its business: that one fails for want of a node.
    let other = world.call("POST", &format!("{PODS}/web/exec?command=x"), &Value::Null).await;
    assert!(other.0 == 400 && message(&other).contains("does not have a host"), "{other:?}");
}

#[tokio::test]
async fn pods_and_config_maps_are_denied_whatever_the_verb_and_exempt_namespaces_are_left_alone() {
    let (world, server) = (world().await, samples().await);
    let rules = [rule(&["CREATE", "UPDATE", "DELETE"], "", "v1", "configmaps"), rule(&["CREATE"], "", "v1", "pods")];
    let skip =
        json!({"namespaceSelector": {"matchExpressions": [{"key": "skip", "operator": "NotIn", "values": ["yes"]}]}});
    let hooks = [hook("a", &server.client("/deny-offending"), &rules, &skip)];
    world.ok("POST", VALIDATING, &configuration("c", &hooks)).await;
    let bad = json!({"webhook-e2e-test": "webhook-disallow"});
    let refused = world.call("POST", MAPS, &map("bad", &bad)).await;
    assert_eq!(refused.0, 403);
    assert!(
        message(&refused).ends_with("denied the request: the object contains unwanted key and value"),
        "{refused:?}"
    );
    assert_eq!(refused.1["reason"], "Forbidden");
    world.ok("POST", MAPS, &map("good", &json!({}))).await;
    let good = format!("{MAPS}/good");
    assert_eq!(world.call("PUT", &good, &map("good", &bad)).await.0, 403);
    assert_eq!(world.call("PATCH", &good, &json!({"data": bad})).await.0, 403);
    world.ok("POST", "/api/v1/namespaces", &json!({"metadata": {"name": "exempt", "labels": {"skip": "yes"}}})).await;
    let exempt = "/api/v1/namespaces/exempt/configmaps";
    world.ok("POST", exempt, &map("bad", &bad)).await;
    // Collections go one by one, and each may be held.
    world.ok("DELETE", &format!("{exempt}/bad"), &Value::Null).await;
    world.ok("DELETE", VALIDATING, &Value::Null).await;
    world.ok("POST", MAPS, &map("bad", &bad)).await;
    world.ok("POST", VALIDATING, &configuration("c", &hooks)).await;
    assert_eq!(world.call("DELETE", MAPS, &Value::Null).await.0, 403);
    assert_eq!(world.call("GET", &good, &Value::Null).await.0, 404);
    world.get(&format!("{MAPS}/bad")).await;
}

#[tokio::test]
async fn custom_resources_are_denied_creation_update_and_deletion() {
    let (world, server) = (world().await, samples().await);
    world.ok("POST", CRDS, &crontabs(&["v1"], "v1", &[])).await;
    let rules = [rule(&["CREATE", "UPDATE", "DELETE"], "stable.example.com", "*", "crontabs")];
    let hooks = [hook("a", &server.client("/deny-offending"), &rules, &json!({}))];
    let bad = json!({"webhook-e2e-test": "webhook-disallow"});
    world.ok("POST", CRONTABS, &crontab("v1", "kept", &bad)).await;
    world.ok("POST", VALIDATING, &configuration("c", &hooks)).await;
    assert_eq!(world.call("POST", CRONTABS, &crontab("v1", "new", &bad)).await.0, 403);
    world.ok("POST", CRONTABS, &crontab("v1", "good", &json!({}))).await;
    assert_eq!(world.call("PATCH", &format!("{CRONTABS}/good"), &json!({"data": bad})).await.0, 403);
    let kept = format!("{CRONTABS}/kept");
    let refused = world.call("DELETE", &kept, &Value::Null).await;
    assert!(refused.0 == 403 && message(&refused).contains("denied the request"), "{refused:?}");
    let came = server.at("/deny-offending");
    let request = came.last().unwrap().request();
    assert_eq!((&request["operation"], &request["object"]), (&json!("DELETE"), &Value::Null));
    assert_eq!(request["oldObject"]["metadata"]["name"], "kept");
    assert_eq!(request["options"]["kind"], "DeleteOptions");
    // Once it no longer offends it may go.
    world.ok("PATCH", &kept, &json!({"data": {"webhook-e2e-test": "webhook-allow"}})).await;
    world.ok("DELETE", &kept, &Value::Null).await;
}

#[tokio::test]
async fn the_creation_of_a_definition_can_be_denied() {
    let (world, server) = (world().await, samples().await);
    let rules = [rule(&["CREATE"], "apiextensions.k8s.io", "*", "customresourcedefinitions")];
    let labelled = json!({"objectSelector": {"matchLabels": {"e2e": "yes"}}});
    world.ok("POST", VALIDATING, &configuration("c", &[hook("a", &server.client("/deny"), &rules, &labelled)])).await;
    let mut definition = crontabs(&["v1"], "v1", &[]);
    definition["metadata"]["labels"] = json!({"e2e": "yes"});
    let refused = world.call("POST", CRDS, &definition).await;
    assert!(refused.0 == 403 && message(&refused).contains("denied the request"), "{refused:?}");
    definition["metadata"]["labels"] = json!({"e2e": "no"});
    world.ok("POST", CRDS, &definition).await;
}

#[tokio::test]
async fn a_webhook_that_takes_too_long_is_given_up_as_its_policy_says() {
    let world = world().await;
    let server = HookServer::start(std::sync::Arc::new(|came| {
        Box::pin(async move {
            if came.path() == "/never" {
                std::future::pending::<()>().await;
            }
            (200, allow(&came))
        })
    }))
    .await;
    let rules = [rule(&["CREATE"], "", "v1", "configmaps")];
    for (path, policy, fine) in [("/never", "Fail", false), ("/never", "Ignore", true), ("/at-once", "Fail", true)] {
        let short = json!({"timeoutSeconds": 1, "failurePolicy": policy});
        let hooks = [hook("a", &server.client(path), &rules, &short)];
        world.ok("POST", VALIDATING, &configuration("c", &hooks)).await;
        let answer = world.call("POST", MAPS, &map(&format!("m-{}", policy.to_lowercase()), &json!({}))).await;
        assert_eq!(answer.0 == 201, fine, "{answer:?}");
        if !fine {
            let url = format!("https://127.0.0.1:{}/never?timeout=1s", server.port);
            let expected = format!(
                "Internal error occurred: failed calling webhook \"a.example.com\": failed to call webhook: Post \"{url}\": context deadline exceeded"
            );
            assert_eq!((answer.0, message(&answer)), (500, expected.as_str()));
        }
        let gone = world.call("DELETE", &format!("{MAPS}/m-{}", policy.to_lowercase()), &Value::Null).await;
        assert_eq!(gone.0 == 200, fine);
        world.ok("DELETE", &format!("{VALIDATING}/c"), &Value::Null).await;
    }
}

#[tokio::test]
async fn webhook_kinds_are_in_every_discovery_document() {
    let world = world().await;
    let groups = world.get("/apis").await;
    let group =
        groups["groups"].as_array().unwrap().iter().find(|g| g["name"] == "admissionregistration.k8s.io").unwrap();
    assert!(
        group["versions"].as_array().unwrap().iter().any(|v| v["groupVersion"] == "admissionregistration.k8s.io/v1")
    );
    let group = world.get("/apis/admissionregistration.k8s.io").await;
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let resources = world.get(API).await;
    let names: Vec<&str> =
        resources["resources"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
    for name in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
        assert!(names.contains(&name), "{names:?}");
    }
}

#[tokio::test]
async fn mutating_webhooks_see_what_those_before_them_made() {
    let (world, server) = (world().await, samples().await);
    let rules = [rule(&["CREATE"], "", "v1", "configmaps")];
    let hooks = [
        hook("one", &server.client("/add-stage-1"), &rules, &json!({})),
        hook("two", &server.client("/add-stage-2"), &rules, &json!({})),
    ];
    world.ok("POST", MUTATING, &configuration("c", &hooks)).await;
    let made = world.ok("POST", MAPS, &map("a", &json!({"mutation-start": "yes"}))).await;
    assert_eq!(made["data"], json!({"mutation-start": "yes", "mutation-stage-1": "yes", "mutation-stage-2": "yes"}));
    // What a webhook added belongs to nobody: whoever applies the object again does not take it away.
    let owned = made["metadata"]["managedFields"][0]["fieldsV1"]["f:data"].clone();
    assert_eq!(owned, json!({".": {}, "f:mutation-start": {}}));
}

#[tokio::test]
async fn a_webhook_may_ask_to_look_again_at_what_others_changed_after_it() {
    let (world, server) = (world().await, samples().await);
    let rules = [rule(&["CREATE"], "", "v1", "configmaps")];
    let hooks = |policy: &str| {
        [
            hook("early", &server.client("/add-stage-2"), &rules, &json!({"reinvocationPolicy": policy})),
            hook("late", &server.client("/add-stage-1"), &rules, &json!({})),
        ]
    };
    for (policy, reaches) in [("Never", false), ("IfNeeded", true)] {
        world.ok("POST", MUTATING, &configuration("c", &hooks(policy))).await;
        let before = server.came.lock().len();
        let made = world.ok("POST", MAPS, &map(&policy.to_lowercase(), &json!({"mutation-start": "yes"}))).await;
        assert_eq!(made["data"].get("mutation-stage-2").is_some(), reaches, "{policy}: {made}");
        assert_eq!(server.came.lock().len() - before, if reaches { 3 } else { 2 });
        world.ok("DELETE", &format!("{MUTATING}/c"), &Value::Null).await;
    }
}

#[tokio::test]
async fn custom_resources_are_mutated_pruned_and_shown_in_the_version_asked_for() {
    let (world, server) = (world().await, samples().await);
    let definition = crontabs(&["v1", "v2"], "v1", &["mutation-start", "mutation-stage-1"]);
    world.ok("POST", CRDS, &definition).await;
    let rules = [rule(&["CREATE", "UPDATE"], "stable.example.com", "v1", "crontabs")];
    let hooks = [
        hook("one", &server.client("/add-stage-1"), &rules, &json!({})),
        hook("two", &server.client("/add-stage-2"), &rules, &json!({})),
    ];
    world.ok("POST", MUTATING, &configuration("c", &hooks)).await;
    let made = world.ok("POST", CRONTABS, &crontab("v1", "a", &json!({"mutation-start": "yes"}))).await;
    // The schema knows nothing of a second stage.
    assert_eq!(made["data"], json!({"mutation-start": "yes", "mutation-stage-1": "yes"}));
    // The storage version changes; the webhook still asks for v1, and gets every write as that.
    let mut stored = world.get(&format!("{CRDS}/crontabs.stable.example.com")).await;
    stored["spec"]["versions"][0]["storage"] = json!(false);
    stored["spec"]["versions"][1]["storage"] = json!(true);
    world.ok("PUT", &format!("{CRDS}/crontabs.stable.example.com"), &stored).await;
    let v2 = CRONTABS.replace("/v1/", "/v2/");
    let made = world.ok("PATCH", &format!("{v2}/a"), &json!({"data": {"mutation-stage-1": null}})).await;
    assert_eq!(
        (&made["apiVersion"], &made["data"]["mutation-stage-1"]),
        (&json!("stable.example.com/v2"), &json!("yes"))
    );
    let came = server.at("/add-stage-1");
    let request = came.last().unwrap().request();
    assert_eq!(request["resource"]["version"], "v1");
    assert_eq!(request["requestResource"]["version"], "v2");
    assert_eq!((&request["kind"]["version"], &request["requestKind"]["version"]), (&json!("v1"), &json!("v2")));
    assert_eq!(request["object"]["apiVersion"], "stable.example.com/v1");
    assert_eq!(request["oldObject"]["apiVersion"], "stable.example.com/v1");
    // Whoever wants exactly v1 is not asked about v2.
    let exact = [hook("a", &server.client("/deny"), &rules, &json!({"matchPolicy": "Exact"}))];
    world.ok("POST", VALIDATING, &configuration("c", &exact)).await;
    world.ok("PATCH", &format!("{v2}/a"), &json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!(
        world.call("PATCH", &format!("{CRONTABS}/a"), &json!({"metadata": {"labels": {"x": "z"}}})).await.0,
        403
    );
}

#[tokio::test]
async fn a_mutated_pod_gets_the_defaults_of_what_was_added() {
    let (world, server) = (world().await, samples().await);
    let rules = [rule(&["CREATE"], "", "v1", "pods")];
    world
        .ok(
            "POST",
            MUTATING,
            &configuration("c", &[hook("a", &server.client("/add-init-container"), &rules, &json!({}))]),
        )
        .await;
    let made = world.ok("POST", PODS, &pod("web")).await;
    let added = &made["spec"]["initContainers"][0];
    assert_eq!(added["name"], "webhook-added-init-container");
    assert_eq!(added["terminationMessagePolicy"], "File");
    // What is built in looks again too: the new container has the account's token.
    assert!(added["volumeMounts"].as_array().is_some_and(|mounts| !mounts.is_empty()), "{added}");
}

#[tokio::test]
async fn no_webhook_sees_the_configurations_of_webhooks() {
    let (world, server) = (world().await, samples().await);
    let rules = [rule(&["*"], "admissionregistration.k8s.io", "*", "*")];
    let on_everything = |path: &str| [hook("a", &server.client(path), &rules, &json!({}))];
    world.ok("POST", VALIDATING, &configuration("deny", &on_everything("/deny"))).await;
    world.ok("POST", MUTATING, &configuration("label", &on_everything("/label"))).await;
    for place in BOTH {
        let made = world.ok("POST", place, &configuration("dummy", &[])).await;
        assert_eq!(made["metadata"]["labels"], json!({"of": "test"}));
        world.ok("DELETE", &format!("{place}/dummy"), &Value::Null).await;
    }
    world.ok("DELETE", &format!("{VALIDATING}/deny"), &Value::Null).await;
    assert_eq!(server.came.lock().len(), 0);
}

#[tokio::test]
async fn what_a_fail_closed_webhook_cannot_be_asked_is_refused() {
    let (world, server) = (world().await, samples().await);
    world
        .ok("POST", "/api/v1/namespaces", &json!({"metadata": {"name": "closed", "labels": {"fail": "closed"}}}))
        .await;
    let rules = [rule(&["CREATE"], "", "v1", "configmaps")];
    let closed = json!({"namespaceSelector": {"matchLabels": {"fail": "closed"}}});
    // Without the bundle its certificate is nobody's.
    let mut client = server.client("/ok");
    client.as_object_mut().unwrap().shift_remove("caBundle");
    world.ok("POST", VALIDATING, &configuration("c", &[hook("a", &client, &rules, &closed)])).await;
    let refused = world.call("POST", "/api/v1/namespaces/closed/configmaps", &map("a", &json!({}))).await;
    assert_eq!(refused.0, 500);
    assert!(
        message(&refused).starts_with(
            "Internal error occurred: failed calling webhook \"a.example.com\": failed to call webhook: Post"
        ),
        "{refused:?}"
    );
    assert!(message(&refused).ends_with("x509: certificate signed by unknown authority"), "{refused:?}");
    world.ok("POST", MAPS, &map("a", &json!({}))).await;
    assert_eq!(server.came.lock().len(), 0);
}

#[tokio::test]
async fn a_service_is_called_by_its_name_at_the_addresses_behind_it() {
    let (world, server) = (world().await, samples().await);
    let rules = [rule(&["CREATE"], "", "v1", "configmaps")];
    let service = json!({"service": {"name": "hook", "namespace": "default", "path": "/deny", "port": server.port},
        "caBundle": server.ca_bundle});
    world.ok("POST", VALIDATING, &configuration("c", &[hook("a", &service, &rules, &json!({}))])).await;
    let missing = world.call("POST", MAPS, &map("a", &json!({}))).await;
    assert!(message(&missing).ends_with("service \"hook\" not found"), "{missing:?}");
    let outside = json!({"metadata": {"name": "hook"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    world.ok("POST", "/api/v1/namespaces/default/services", &outside).await;
    assert_eq!(world.call("POST", MAPS, &map("a", &json!({}))).await.0, 403);
    assert_eq!(server.at("/deny")[0].headers["host"].to_str().unwrap(), format!("hook.default.svc:{}", server.port));
    // The connection is kept for the next call: it comes from the same port of ours.
    assert_eq!(world.call("POST", MAPS, &map("b", &json!({}))).await.0, 403);
}

#[tokio::test]
async fn a_dry_run_asks_only_who_has_no_side_effects_and_says_so() {
    let (world, server) = (world().await, samples().await);
    let rules = [rule(&["CREATE"], "", "v1", "configmaps")];
    world.ok("POST", VALIDATING, &configuration("c", &[hook("a", &server.client("/ok"), &rules, &json!({}))])).await;
    world.ok("POST", &format!("{MAPS}?dryRun=All"), &map("a", &json!({}))).await;
    let came = server.at("/ok");
    assert_eq!(
        (&came[0].request()["dryRun"], &came[0].request()["options"]["dryRun"]),
        (&json!(true), &json!(["All"]))
    );
    assert_eq!(world.call("GET", &format!("{MAPS}/a"), &Value::Null).await.0, 404);
}

#[tokio::test]
async fn warnings_reach_the_client_and_users_are_who_they_are() {
    let world = world().await;
    let server =
        HookServer::answering(|came| admission(came, json!({"allowed": true, "warnings": ["old news"]}))).await;
    let rules = [rule(&["*"], "*", "*", "*/*")];
    let here = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}});
    world.ok("POST", VALIDATING, &configuration("c", &[hook("a", &server.client("/"), &rules, &here)])).await;
    let user = User::new("jane", &["system:masters", "devs"]);
    let body = map("a", &json!({})).to_string().into_bytes();
    let answer = world.raw(user, "POST", MAPS, &[], body).await;
    assert_eq!(answer.headers()["warning"], "299 - \"old news\"");
    let came = server.at("/");
    let info = &came[0].request()["userInfo"];
    assert_eq!((&info["username"], &info["groups"][1]), (&json!("jane"), &json!("devs")));
}

#[tokio::test]
async fn subresources_are_admitted_as_what_they_are() {
    let world = world().await;
    let server = HookServer::answering(|came| match came.request()["subResource"].as_str() {
        Some("scale") => patch(came, &json!([{"op": "replace", "path": "/spec/replicas", "value": 2}])),
        _ => allow(came),
    })
    .await;
    let rules = [rule(&["*"], "*", "*", "deployments/*"), rule(&["*"], "", "v1", "pods/*")];
    world.ok("POST", MUTATING, &configuration("c", &[hook("a", &server.client("/"), &rules, &json!({}))])).await;
    let labels = json!({"app": "web"});
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let spec = json!({"replicas": 1, "selector": {"matchLabels": labels}, "template": template});
    world.ok("POST", deployments, &json!({"metadata": {"name": "web"}, "spec": spec})).await;
    let scaled = world.ok("PATCH", &format!("{deployments}/web/scale"), &json!({"spec": {"replicas": 9}})).await;
    assert_eq!(scaled["spec"]["replicas"], 2);
    world.ok("PATCH", &format!("{deployments}/web/status"), &json!({"status": {"replicas": 2}})).await;
    world.ok("POST", PODS, &pod("web")).await;
    world.ok("POST", &format!("{PODS}/web/binding"), &json!({"target": {"name": "node"}})).await;
    world.ok("POST", &format!("{PODS}/web/eviction"), &json!({"metadata": {"name": "web"}})).await;
    let seen: Vec<(String, String, String)> = server
        .came
        .lock()
        .iter()
        .map(|came| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let request = came.request();
            (text(&request["operation"]), text(&request["subResource"]), text(&request["kind"]["kind"]))
        })
        .collect();
    for expected in [
        ("CREATE", "", "Deployment"),
        ("UPDATE", "scale", "Scale"),
        ("UPDATE", "status", "Deployment"),
        ("CREATE", "", "Pod"),
        ("CREATE", "binding", "Binding"),
        ("CREATE", "eviction", "Eviction"),
        ("DELETE", "", "Pod"),
    ] {
        let expected = (expected.0.to_owned(), expected.1.to_owned(), expected.2.to_owned());
        assert!(seen.contains(&expected), "{expected:?} in {seen:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_none_is_a_failure_and_a_refusal_is_not() {
    let world = world().await;
    let server = HookServer::answering(|came| match came.path() {
        "/wrong-uid" => json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": {"uid": "x", "allowed": true}}),
        "/nonsense" => json!([]),
        _ => deny(came, "no"),
    })
    .await;
    let rules = [rule(&["CREATE"], "", "v1", "configmaps")];
    for (path, policy, code, why) in [
        ("/wrong-uid", "Fail", 500, "received invalid webhook response: expected response.uid="),
        ("/nonsense", "Fail", 500, "received invalid webhook response: expected webhook response of"),
        ("/nonsense", "Ignore", 201, ""),
        ("/deny", "Ignore", 403, "denied the request: no"),
    ] {
        for place in BOTH {
            let hooks = [hook("a", &server.client(path), &rules, &json!({"failurePolicy": policy}))];
            world.ok("POST", place, &configuration("c", &hooks)).await;
            let answer = world.call("POST", &format!("{MAPS}?dryRun=All"), &map("a", &json!({}))).await;
            assert!(answer.0 == code && message(&answer).contains(why), "{path} {policy} {place}: {answer:?}");
            world.ok("DELETE", &format!("{place}/c"), &Value::Null).await;
        }
    }
}

#[tokio::test]
async fn a_server_opens_whatever_webhooks_are_configured() {
    let world = world().await;
    let rules = [rule(&["*"], "*", "*", "*/*")];
    let nowhere = hook("a", &json!({"url": "https://127.0.0.1:1/x"}), &rules, &json!({}));
    world.ok("POST", VALIDATING, &configuration("c", &[nowhere])).await;
    let world = world.restarted().await;
    let refused = world.call("POST", MAPS, &map("a", &json!({}))).await;
    assert!(message(&refused).ends_with("dial tcp 127.0.0.1:1: connect: connection refused"), "{refused:?}");
    world.ok("DELETE", &format!("{VALIDATING}/c"), &Value::Null).await;
    world.ok("POST", MAPS, &map("a", &json!({}))).await;
}
