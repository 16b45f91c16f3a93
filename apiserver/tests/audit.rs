//! The audit log, by raw requests in process and the file they leave behind.

mod common;

use common::{World, open_with};
use proa_apiserver::User;
use proa_apiserver::audit::sink::{Mode, SinkOptions};
use proa_apiserver::config::AuditOptions;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// A server whose audit log goes by these rules. What it does while it starts is nobody's here.
async fn audited(rules: &str) -> World {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let policy = dir.path().join("policy.yaml");
    let start = "- {level: None, users: ['system:apiserver']}";
    std::fs::write(&policy, format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n{start}\n{rules}\n")).unwrap();
    let path = dir.path().join("audit.log");
    let sink = SinkOptions { path, max_size: 100, max_age: 0, max_backups: 0, mode: Mode::Blocking };
    let world = open_with(dir, |config| config.audit = Some(AuditOptions { policy, sink })).await.unwrap();
    let account = json!({"metadata": {"name": "default"}});
    world.ok("POST", "/api/v1/namespaces/default/serviceaccounts", &account).await;
    world
}

fn events(world: &World) -> Vec<Value> {
    let text = std::fs::read_to_string(world.dir.path().join("audit.log")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The events of requests with this URI.
fn about(world: &World, uri: &str) -> Vec<Value> {
    events(world).into_iter().filter(|event| event["requestURI"] == uri).collect()
}

fn stages(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["stage"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_request_is_written_down_as_far_as_its_rule_says() {
    let world = audited(
        "- {level: Metadata, resources: [{group: '', resources: [secrets]}], omitStages: [RequestReceived]}\n\
         - {level: RequestResponse, resources: [{group: '', resources: [configmaps]}], omitManagedFields: true}\n\
         - {level: Request, resources: [{group: '', resources: [pods]}]}\n\
         - {level: None}",
    )
    .await;
    let map = json!({"metadata": {"name": "a"}, "data": {"k": "v"}});
    let headers = [("user-agent", "kubectl/v1.33"), ("x-forwarded-for", "192.0.2.7, 192.0.2.8")];
    let admin = User::new("ada", &["system:masters"]);
    world.call_as(admin, "POST", MAPS, &headers, map.to_string().into_bytes()).await;
    let told = about(&world, MAPS);
    assert_eq!(stages(&told), ["RequestReceived", "ResponseComplete"]);
    let [received, complete] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(received["auditID"], complete["auditID"]);
    assert_eq!((&received["kind"], &received["apiVersion"]), (&json!("Event"), &json!("audit.k8s.io/v1")));
    assert_eq!(complete["verb"], "create");
    assert_eq!(complete["level"], "RequestResponse");
    assert_eq!(complete["user"], json!({"username": "ada", "groups": ["system:masters", "system:authenticated"]}));
    assert_eq!(complete["sourceIPs"], json!(["192.0.2.7", "192.0.2.8", "127.0.0.1"]));
    assert_eq!(complete["userAgent"], "kubectl/v1.33");
    let reference = json!({"resource": "configmaps", "namespace": "default", "name": "a", "apiVersion": "v1"});
    assert_eq!(complete["objectRef"], reference, "a new object's name is in its body");
    assert_eq!(complete["responseStatus"], json!({"metadata": {}, "code": 201}));
    assert_eq!(complete["requestObject"]["data"], json!({"k": "v"}));
    assert_eq!(complete["responseObject"]["data"], json!({"k": "v"}));
    assert_eq!(complete["responseObject"]["metadata"].get("managedFields"), None);
    assert_eq!(complete["annotations"]["authorization.k8s.io/decision"], "allow");
    let times = ["requestReceivedTimestamp", "stageTimestamp"].map(|field| complete[field].as_str().unwrap().len());
    assert_eq!(times, [27, 27], "microseconds: {complete}");
    assert_eq!(received.get("responseStatus"), None);

    world.ok("POST", SECRETS, &json!({"metadata": {"name": "s"}, "stringData": {"password": "hunter2"}})).await;
    let told = about(&world, SECRETS);
    assert_eq!(stages(&told), ["ResponseComplete"]);
    assert_eq!(told[0]["objectRef"]["name"], "s");
    let all = std::fs::read_to_string(world.dir.path().join("audit.log")).unwrap();
    assert!(!all.contains("hunter2") && !all.contains("aHVudGVyMg"), "metadata is no content");

    world.get("/api/v1/namespaces/default/services").await;
    assert!(about(&world, "/api/v1/namespaces/default/services").is_empty());
    let list = world.get(MAPS).await;
    let told = about(&world, MAPS).pop().unwrap();
    assert_eq!(told["responseObject"]["items"].as_array().unwrap().len(), list["items"].as_array().unwrap().len());
    assert_eq!(told["responseObject"]["items"][0]["metadata"].get("managedFields"), None, "of a list neither");
}

#[tokio::test]
async fn who_was_refused_and_why_is_written_down() {
    let world = audited("- {level: Metadata}").await;
    let eve = User::new("eve", &[]);
    let (status, _) = world.call_as(eve.clone(), "GET", SECRETS, &[], Vec::new()).await;
    assert_eq!(status, 403);
    let told = about(&world, SECRETS).pop().unwrap();
    assert_eq!(told["annotations"]["authorization.k8s.io/decision"], "forbid");
    let said = &told["responseStatus"];
    assert_eq!(
        (&said["code"], &said["reason"], &said["status"]),
        (&json!(403), &json!("Forbidden"), &json!("Failure"))
    );
    assert!(said["message"].as_str().unwrap().contains("User \"eve\" cannot list resource \"secrets\""), "{said}");

    let binding = json!({"metadata": {"name": "read"}, "subjects": [{"kind": "User", "name": "eve",
        "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}});
    world.ok("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", &binding).await;
    let (status, _) = world.call_as(eve, "GET", MAPS, &[], Vec::new()).await;
    assert_eq!(status, 200);
    let told = about(&world, MAPS).pop().unwrap();
    let why = "RBAC: allowed by RoleBinding \"read/default\" of ClusterRole \"view\" to User \"eve\"";
    assert_eq!(told["annotations"]["authorization.k8s.io/reason"], why);

    let bearer = [("authorization", "Bearer nonsense")];
    let (status, _) = world.call_as(User::anonymous(), "GET", "/version", &bearer, Vec::new()).await;
    assert_eq!(status, 401);
    let told = about(&world, "/version").pop().unwrap();
    assert_eq!((&told["stage"], &told["responseStatus"]["code"]), (&json!("ResponseStarted"), &json!(401)));
    assert_eq!(told["responseStatus"]["message"], "Authentication failed, attempted: bearer");
    assert!(!told.to_string().contains("nonsense"), "a credential is never written down");

    let as_bob = [("impersonate-user", "bob"), ("impersonate-group", "devs")];
    let admin = User::new("ada", &["system:masters"]);
    world.call_as(admin, "GET", "/api", &as_bob, Vec::new()).await;
    let told = about(&world, "/api").pop().unwrap();
    assert_eq!(told["user"]["username"], "ada");
    assert_eq!(told["impersonatedUser"], json!({"username": "bob", "groups": ["devs", "system:authenticated"]}));
}

#[tokio::test]
async fn a_watch_has_an_event_when_it_starts_and_one_when_it_ends() {
    let world = audited("- {level: RequestResponse}").await;
    let uri = format!("{MAPS}?watch=true");
    let mut watch = world.watch(&uri).await;
    assert_eq!(stages(&about(&world, &uri)), ["RequestReceived", "ResponseStarted"]);
    world.ok("POST", MAPS, &json!({"metadata": {"name": "a"}})).await;
    while watch.what().await.1 != "a" {}
    assert_eq!(stages(&about(&world, &uri)).len(), 2, "it goes on");
    drop(watch);
    let told = about(&world, &uri);
    assert_eq!(stages(&told), ["RequestReceived", "ResponseStarted", "ResponseComplete"]);
    assert_eq!(told[2]["verb"], "watch");
    assert_eq!(told[2].get("responseObject"), None, "what streams by is not kept");
}

#[tokio::test]
async fn what_a_namespace_only_notes_of_its_pods_is_noted() {
    let world = audited("- {level: Metadata, resources: [{group: '', resources: [pods]}, {group: apps}]}").await;
    let labels =
        json!({"pod-security.kubernetes.io/audit": "restricted", "pod-security.kubernetes.io/enforce": "baseline"});
    world.ok("PATCH", "/api/v1/namespaces/default", &json!({"metadata": {"labels": labels}})).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    world.ok("POST", PODS, &pod).await;
    let told = about(&world, PODS).pop().unwrap();
    assert_eq!(told["annotations"]["pod-security.kubernetes.io/enforce-policy"], "baseline:latest");
    let violations = told["annotations"]["pod-security.kubernetes.io/audit-violations"].as_str().unwrap();
    assert!(violations.starts_with("would violate PodSecurity \"restricted:latest\": "), "{violations}");
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": pod["spec"]});
    let deployment =
        json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    world.ok("POST", deployments, &deployment).await;
    let told = about(&world, deployments).pop().unwrap();
    assert!(told["annotations"]["pod-security.kubernetes.io/audit-violations"].is_string(), "{told}");
}

#[tokio::test]
async fn without_a_policy_nothing_is_kept_and_the_id_of_a_request_is_its_senders() {
    let world = common::world().await;
    let headers = [("audit-id", "from-a-proxy")];
    let response = world.raw(User::anonymous(), "GET", "/version", &headers, Vec::new()).await;
    assert_eq!(response.headers()["audit-id"], "from-a-proxy");
    let response = world.raw(User::anonymous(), "GET", "/version", &[], Vec::new()).await;
    assert_eq!(response.headers()["audit-id"].len(), 36);
    assert!(!world.dir.path().join("audit.log").exists());
}

#[tokio::test]
async fn the_log_keeps_what_a_policy_notes_of_a_request() {
    let world =
        audited("- {level: Metadata, resources: [{group: '', resources: [configmaps]}]}\n- {level: None}").await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let rule = json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]});
    let spec = json!({"matchConstraints": {"resourceRules": [rule]},
        "validations": [{"expression": "true"}, {"expression": "'k' in object.data", "message": "no k"}],
        "auditAnnotations": [{"key": "keys", "valueExpression": "string(object.data.size()) + ' keys'"},
            {"key": "nothing", "valueExpression": "null"}]});
    let policy = json!({"metadata": {"name": "noted"}, "spec": spec});
    world.ok("POST", &format!("{group}/validatingadmissionpolicies"), &policy).await;
    let spec = json!({"policyName": "noted", "validationActions": ["Audit"]});
    let bindings = format!("{group}/validatingadmissionpolicybindings");
    world.ok("POST", &bindings, &json!({"metadata": {"name": "noted"}, "spec": spec})).await;
    world.ok("POST", MAPS, &json!({"metadata": {"name": "a"}, "data": {"x": "y"}})).await;
    let told = about(&world, MAPS);
    let annotations = &told.last().unwrap()["annotations"];
    assert_eq!(annotations["noted/keys"], "1 keys");
    assert!(annotations.get("noted/nothing").is_none());
    let failure = annotations["validation.policy.admission.k8s.io/validation_failure"].as_str().unwrap();
    let failure: Value = serde_json::from_str(failure).unwrap();
    let expected = json!([{"message": "no k", "policy": "noted", "binding": "noted", "expressionIndex": 1,
        "validationActions": ["Audit"]}]);
    assert_eq!(failure, expected);
}
