//! API groups that another server answers for.

mod common;
#[path = "common/hook_server.rs"]
mod hook_server;

use std::sync::Arc;

use common::{World, world};
use hook_server::HookServer;
use proa_apiserver::User;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const WARDLE: &str = "/apis/wardle.example.com/v1alpha1";
const FLUNDERS: &str = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders";
const CONFIG: &str = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";

/// A server of flunders, as the sample of Kubernetes' conformance test: it keeps none.
async fn wardle() -> HookServer {
    HookServer::start(Arc::new(|came| {
        Box::pin(async move {
            let flunder = json!({"apiVersion": "wardle.example.com/v1alpha1", "kind": "Flunder", "metadata": {"name": "a"}});
            match (came.method.as_str(), came.path()) {
                ("GET", WARDLE) => {
                    let verbs = json!(["create", "delete", "get", "list"]);
                    let flunders = json!({"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": verbs});
                    (200, json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "wardle.example.com/v1alpha1", "resources": [flunders]}))
                }
                ("GET", "/openapi/v3") => {
                    let url = "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=1";
                    (200, json!({"paths": {"apis/wardle.example.com/v1alpha1": {"serverRelativeURL": url}}}))
                }
                ("GET", "/openapi/v2") => (
                    200,
                    json!({"swagger": "2.0", "paths": {FLUNDERS: {}, "/version/": {}}, "definitions": {"com.example.wardle.Flunder": {"type": "object"}}}),
                ),
                ("GET", "/openapi/v3/apis/wardle.example.com/v1alpha1") => (200, json!({"openapi": "3.0.0", "info": {"title": "wardle"}})),
                ("GET", FLUNDERS) => (200, json!({"kind": "FlunderList", "apiVersion": "wardle.example.com/v1alpha1", "items": [flunder]})),
                ("POST", FLUNDERS) => (201, came.body.clone()),
                ("DELETE", _) => (200, json!({"kind": "Status", "status": "Success"})),
                (_, path) if path.ends_with("/echo") => (101, Value::Null),
                _ => (404, json!({"kind": "Status", "status": "Failure", "code": 404, "message": "wardle knows no such thing"})),
            }
        })
    }))
    .await
}

fn service(server: &HookServer) -> Value {
    let spec = json!({"group": "wardle.example.com", "version": "v1alpha1", "groupPriorityMinimum": 2000, "versionPriority": 200,
        "caBundle": server.ca_bundle, "service": {"name": "hook", "namespace": "default", "port": server.port}});
    json!({"metadata": {"name": "v1alpha1.wardle.example.com"}, "spec": spec})
}

fn available<'a>(service: &'a Value, status: &str) -> Option<&'a Value> {
    let conditions = service["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == "Available" && condition["status"] == status)
}

/// The APIService once its condition has that status and reason.
async fn until(world: &World, status: &str, reason: &str) -> Value {
    let uri = format!("{SERVICES}/v1alpha1.wardle.example.com");
    world.until(&uri, |_, service| available(service, status).is_some_and(|have| have["reason"] == reason)).await
}

async fn aggregated() -> (World, HookServer) {
    let (world, server) = (world().await, wardle().await);
    let outside = json!({"metadata": {"name": "hook"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    world.ok("POST", "/api/v1/namespaces/default/services", &outside).await;
    world.ok("POST", SERVICES, &service(&server)).await;
    until(&world, "True", "Passed").await;
    (world, server)
}

#[tokio::test]
async fn a_registered_server_answers_for_its_group_until_it_is_unregistered() {
    let (world, server) = aggregated().await;
    let flunder = json!({"apiVersion": "wardle.example.com/v1alpha1", "kind": "Flunder", "metadata": {"name": "a"}});
    assert_eq!(world.ok("POST", FLUNDERS, &flunder).await, flunder);
    assert_eq!(world.get(FLUNDERS).await["items"][0]["metadata"]["name"], "a");
    world.ok("DELETE", &format!("{FLUNDERS}/a?gracePeriodSeconds=0"), &Value::Null).await;
    let came = server.came.lock().iter().find(|came| came.method == "DELETE").cloned().unwrap();
    assert!(came.uri.ends_with("/flunders/a?gracePeriodSeconds=0"), "{}", came.uri);
    let unknown = world.call("GET", &format!("{WARDLE}/whatever"), &Value::Null).await;
    assert_eq!((unknown.0, &unknown.1["message"]), (404, &json!("wardle knows no such thing")));
    // The group is in every list of groups, and gone from them with its APIService.
    let groups = world.get("/apis").await;
    let group =
        groups["groups"].as_array().unwrap().iter().find(|group| group["name"] == "wardle.example.com").unwrap();
    assert_eq!(group["preferredVersion"]["groupVersion"], "wardle.example.com/v1alpha1");
    assert_eq!(world.get("/apis/wardle.example.com").await["versions"][0]["version"], "v1alpha1");
    assert_eq!(world.get(WARDLE).await["resources"][0]["name"], "flunders");
    let accept = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let (_, all) = world.call_as(User::new("admin", &["system:masters"]), "GET", "/apis", &accept, Vec::new()).await;
    let found = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|group| group["metadata"]["name"] == "wardle.example.com")
        .unwrap();
    let version = &found["versions"][0];
    assert_eq!((&version["freshness"], &version["resources"][0]["resource"]), (&json!("Current"), &json!("flunders")));
    // So are its schemas.
    let index = world.get("/openapi/v3").await;
    let url = index["paths"]["apis/wardle.example.com/v1alpha1"]["serverRelativeURL"].as_str().unwrap();
    assert_eq!(world.get(url).await["info"]["title"], "wardle");
    let document = world.get("/openapi/v2").await;
    assert_eq!(document["definitions"]["com.example.wardle.Flunder"]["type"], "object");
    assert!(document["paths"].get(FLUNDERS).is_some() && document["paths"].get("/version/").is_none());
    // It is listed, patched and deleted like anything else.
    let uri = format!("{SERVICES}/v1alpha1.wardle.example.com");
    let labelled = world.ok("PATCH", &uri, &json!({"metadata": {"labels": {"e2e": "yes"}}})).await;
    assert_eq!(labelled["spec"]["versionPriority"], 200);
    assert_eq!(world.get(&format!("{SERVICES}?labelSelector=e2e%3Dyes")).await["items"].as_array().unwrap().len(), 1);
    world.ok("DELETE", &format!("{SERVICES}?labelSelector=e2e%3Dyes"), &Value::Null).await;
    assert_eq!(world.call("GET", FLUNDERS, &Value::Null).await.0, 404);
    assert!(!world.get("/apis").await.to_string().contains("wardle"));
}

#[tokio::test]
async fn the_other_server_learns_who_asks_from_a_certificate_it_can_check_and_from_nobody_else() {
    let (world, server) = aggregated().await;
    let role = json!({"metadata": {"name": "flunders"}, "rules": [{"apiGroups": ["wardle.example.com"], "resources": ["flunders"], "verbs": ["list"]}]});
    world.ok("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", &role).await;
    let binding = json!({"metadata": {"name": "flunders"}, "subjects": [{"kind": "Group", "name": "devs", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "flunders"}});
    world.ok("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await;
    let mut jane = User::new("jane", &["devs"]);
    jane.extra.insert("example.com/scopes".into(), vec!["a".into()]);
    // What the client says of itself does not go on.
    let forged = [("x-remote-user", "root"), ("x-remote-group", "system:masters")];
    let (status, _) = world.call_as(jane.clone(), "GET", FLUNDERS, &forged, Vec::new()).await;
    assert_eq!(status, 200);
    let came = server.at(FLUNDERS);
    let all = |name: &str| -> Vec<String> {
        came[0].headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(all("x-remote-user"), ["jane"]);
    assert_eq!(all("x-remote-group"), ["devs", "system:authenticated"]);
    assert_eq!(all("x-remote-extra-example.com%2fscopes"), ["a"]);
    assert_eq!(all("authorization"), Vec::<String>::new());
    // By the authority in the ConfigMap, and under the one name it allows, the other server knows us.
    let config = world.get(CONFIG).await;
    let authority = config["data"]["requestheader-client-ca-file"].as_str().unwrap();
    assert_eq!(config["data"]["requestheader-allowed-names"], "[\"front-proxy-client\"]");
    assert_ne!(config["data"]["client-ca-file"], config["data"]["requestheader-client-ca-file"]);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(proa_apiserver::pki::certificates(authority).unwrap().remove(0)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let shown = rustls::pki_types::CertificateDer::from(came[0].client[0].clone());
    verifier.verify_client_cert(&shown, &[], rustls::pki_types::UnixTime::now()).unwrap();
    // Who may not is stopped here.
    let before = server.came.lock().len();
    assert_eq!(world.call_as(jane, "DELETE", &format!("{FLUNDERS}/a"), &[], Vec::new()).await.0, 403);
    assert_eq!(server.came.lock().len(), before);
}

#[tokio::test]
async fn who_runs_such_a_server_may_read_what_it_needs_and_ask_who_may_what() {
    let world = world().await;
    let account = User::service_account("default", "wardle", "");
    let reader = json!({"metadata": {"name": "wardle-reader", "namespace": "kube-system"},
        "subjects": [{"kind": "ServiceAccount", "name": "wardle", "namespace": "default"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "extension-apiserver-authentication-reader"}});
    let delegator = json!({"metadata": {"name": "wardle-delegator"}, "subjects": reader["subjects"],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator"}});
    assert_eq!(world.call_as(account.clone(), "GET", CONFIG, &[], Vec::new()).await.0, 403);
    world.ok("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/rolebindings", &reader).await;
    world.ok("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &delegator).await;
    assert_eq!(world.call_as(account.clone(), "GET", CONFIG, &[], Vec::new()).await.0, 200);
    let others = "/api/v1/namespaces/kube-system/configmaps/other";
    assert_eq!(world.call_as(account.clone(), "GET", others, &[], Vec::new()).await.0, 403);
    for (review, spec) in [
        ("authentication.k8s.io/v1/tokenreviews", json!({"token": "x"})),
        (
            "authorization.k8s.io/v1/subjectaccessreviews",
            json!({"user": "jane", "nonResourceAttributes": {"path": "/", "verb": "get"}}),
        ),
    ] {
        let body = json!({"spec": spec}).to_string().into_bytes();
        assert_eq!(
            world.call_as(account.clone(), "POST", &format!("/apis/{review}"), &[], body).await.0,
            201,
            "{review}"
        );
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_asked_says_why_in_its_condition() {
    let (world, server) = (world().await, wardle().await);
    world.ok("POST", SERVICES, &service(&server)).await;
    let missing = until(&world, "False", "ServiceNotFound").await;
    assert_eq!(available(&missing, "False").unwrap()["message"], "service/hook in \"default\" is not present");
    let refused = world.raw(User::new("admin", &["system:masters"]), "GET", FLUNDERS, &[], Vec::new()).await;
    assert_eq!(refused.status(), 503);
    // Discovery goes on without it, and says so.
    let accept = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let (_, all) = world.call_as(User::new("admin", &["system:masters"]), "GET", "/apis", &accept, Vec::new()).await;
    let found = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|group| group["metadata"]["name"] == "wardle.example.com")
        .unwrap();
    assert_eq!(found["versions"], json!([{"version": "v1alpha1", "freshness": "Stale", "resources": []}]));
    let services = "/api/v1/namespaces/default/services";
    let other_port = json!({"metadata": {"name": "hook"}, "spec": {"ports": [{"port": 1}]}});
    world.ok("POST", services, &other_port).await;
    until(&world, "False", "ServicePortError").await;
    world.ok("PATCH", &format!("{services}/hook"), &json!({"spec": {"ports": [{"port": server.port}]}})).await;
    until(&world, "False", "EndpointsNotFound").await;
    let slice = json!({"metadata": {"name": "hook", "labels": {"kubernetes.io/service-name": "hook"}}, "addressType": "IPv4",
        "endpoints": [], "ports": [{"port": 1}]});
    world.ok("POST", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice).await;
    until(&world, "False", "MissingEndpoints").await;
    world.ok("DELETE", &format!("{services}/hook"), &Value::Null).await;
    // There at last, but not with a certificate that this APIService trusts.
    let outside = json!({"metadata": {"name": "hook"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    world.ok("POST", services, &outside).await;
    until(&world, "True", "Passed").await;
    let other = wardle().await;
    let uri = format!("{SERVICES}/v1alpha1.wardle.example.com");
    world.ok("PATCH", &uri, &json!({"spec": {"caBundle": other.ca_bundle}})).await;
    // A connection that was made before is of the bundle before: the look goes by the new one.
    let failed = until(&world, "False", "FailedDiscoveryCheck").await;
    let message = available(&failed, "False").unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("failing or missing response from https://hook.default.svc:"), "{message}");
    assert!(message.ends_with("x509: certificate signed by unknown authority"), "{message}");
}

#[tokio::test]
async fn what_this_server_answers_for_itself_is_local_and_always_available() {
    let world = world().await;
    let services = world.get(SERVICES).await;
    for service in services["items"].as_array().unwrap() {
        let condition = available(service, "True").unwrap_or_else(|| panic!("{service}"));
        assert_eq!(condition["reason"], "Local");
    }
    // What is given to another server and taken back is local again.
    let uri = format!("{SERVICES}/v1.batch");
    let elsewhere = json!({"spec": {"service": {"name": "no", "namespace": "default"}, "insecureSkipTLSVerify": true}});
    world.ok("PATCH", &uri, &elsewhere).await;
    world.until(&uri, |_, service| available(service, "False").is_some()).await;
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    assert_eq!(world.call("GET", jobs, &Value::Null).await.0, 503);
    world.ok("PATCH", &uri, &json!({"spec": {"service": null, "insecureSkipTLSVerify": null}})).await;
    world.get(jobs).await;
    world.until(&uri, |_, service| available(service, "True").is_some_and(|have| have["reason"] == "Local")).await;
}

#[tokio::test]
async fn a_connection_that_becomes_something_else_is_passed_on_both_ways() {
    let (world, _server) = aggregated().await;
    let headers = [("connection", "Upgrade"), ("upgrade", "echo")];
    let admin = User::new("admin", &["system:masters"]);
    let mut response = world.raw(admin, "GET", &format!("{FLUNDERS}/a/echo"), &headers, Vec::new()).await;
    assert_eq!(response.status(), 101);
    let upgraded = hyper::upgrade::on(&mut response).await.unwrap();
    let mut stream = hyper_util::rt::TokioIo::new(upgraded);
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
}

#[tokio::test]
async fn the_versions_of_custom_resources_are_registered_and_go_with_their_definition() {
    let world = world().await;
    let schema = json!({"openAPIV3Schema": {"type": "object"}});
    let versions = json!([{"name": "v1", "served": true, "storage": true, "schema": schema},
        {"name": "v1beta1", "served": false, "storage": false, "schema": schema}]);
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let definition = json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Cluster",
        "names": {"plural": "widgets", "kind": "Widget"}, "versions": versions}});
    world.ok("POST", crds, &definition).await;
    let uri = format!("{SERVICES}/v1.example.com");
    let made = world.until(&uri, |_, service| available(service, "True").is_some()).await;
    assert_eq!(available(&made, "True").unwrap()["reason"], "Local");
    assert_eq!(world.call("GET", &format!("{SERVICES}/v1beta1.example.com"), &Value::Null).await.0, 404);
    world.ok("DELETE", &format!("{crds}/widgets.example.com"), &Value::Null).await;
    world.until(&uri, |status, _| status == 404).await;
}
