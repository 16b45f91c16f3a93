//! Laws of the API, driven by raw requests in process.

mod common;

use common::world;
use proa_apiserver::User;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"value": value}}, "data": {"k": value}})
}

#[tokio::test]
async fn a_write_with_an_old_version_is_a_conflict_and_changes_nothing() {
    let world = world().await;
    let first = world.ok("POST", MAPS, &map("a", "1")).await;
    let mut stale = first.clone();
    world.ok("PUT", &format!("{MAPS}/a"), &map("a", "2")).await;
    stale["data"]["k"] = "3".into();
    let (status, error) = world.call("PUT", &format!("{MAPS}/a"), &stale).await;
    assert_eq!(status, 409);
    assert_eq!(
        error["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    assert_eq!(world.get(&format!("{MAPS}/a")).await["data"]["k"], "2");
}

#[tokio::test]
async fn a_write_that_changes_nothing_makes_no_revision() {
    let world = world().await;
    world.ok("POST", MAPS, &map("a", "1")).await;
    let before = world.ok("PUT", &format!("{MAPS}/a"), &map("a", "1")).await;
    let after = world.ok("PATCH", &format!("{MAPS}/a"), &json!({"data": {"k": "1"}})).await;
    assert_eq!(before["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn a_dry_run_answers_and_stores_nothing() {
    let world = world().await;
    world.ok("POST", &format!("{MAPS}?dryRun=All"), &map("a", "1")).await;
    assert_eq!(world.call("GET", &format!("{MAPS}/a"), &Value::Null).await.0, 404);
}

#[tokio::test]
async fn concurrent_patches_without_version_all_land() {
    let world = world().await;
    world.ok("POST", MAPS, &map("a", "1")).await;
    let patches = (0..32).map(|at| {
        let world = &world;
        async move { world.ok("PATCH", &format!("{MAPS}/a"), &json!({"data": {format!("k{at}"): "x"}})).await }
    });
    futures::future::join_all(patches).await;
    let data = world.get(&format!("{MAPS}/a")).await["data"].as_object().unwrap().len();
    assert_eq!(data, 33);
}

#[tokio::test]
async fn a_finalizer_holds_a_deleted_object_until_it_goes() {
    let world = world().await;
    let mut object = map("a", "1");
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    world.ok("POST", MAPS, &object).await;
    let marked = world.ok("DELETE", &format!("{MAPS}/a"), &Value::Null).await;
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    assert!(world.get(&format!("{MAPS}/a")).await["metadata"]["deletionTimestamp"].is_string());
    world.ok("PATCH", &format!("{MAPS}/a"), &json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(world.call("GET", &format!("{MAPS}/a"), &Value::Null).await.0, 404);
}

#[tokio::test]
async fn pages_are_one_snapshot_whatever_is_written_between() {
    let world = world().await;
    for at in 0..7 {
        world.ok("POST", MAPS, &map(&format!("m{at}"), "x")).await;
    }
    let mut names = Vec::new();
    let mut uri = format!("{MAPS}?limit=3&labelSelector=value%3Dx");
    loop {
        let page = world.get(&uri).await;
        assert!(page["items"].as_array().unwrap().len() <= 3);
        names.extend(
            page["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        world.ok("POST", MAPS, &map(&format!("m9{}", names.len()), "x")).await;
        uri = format!("{MAPS}?limit=3&labelSelector=value%3Dx&continue={token}");
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
}

#[tokio::test]
async fn a_watch_sees_each_change_once_in_order() {
    let world = world().await;
    let start = world.get(MAPS).await["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut events = world.watch(&format!("{MAPS}?watch=1&resourceVersion={start}")).await;
    world.ok("POST", MAPS, &map("a", "1")).await;
    world.ok("PATCH", &format!("{MAPS}/a"), &json!({"data": {"k": "2"}})).await;
    world.ok("DELETE", &format!("{MAPS}/a"), &Value::Null).await;
    for expected in ["ADDED", "MODIFIED", "DELETED"] {
        assert_eq!(events.what().await, (expected.to_owned(), "a".to_owned()));
    }
    let mut late = world.watch(&format!("{MAPS}?watch=1&resourceVersion={start}")).await;
    assert_eq!(late.what().await.0, "ADDED");
}

#[tokio::test]
async fn a_watch_with_a_selector_sees_objects_come_and_go() {
    let world = world().await;
    let mut events = world.watch(&format!("{MAPS}?watch=1&labelSelector=value%3D1")).await;
    world.ok("POST", MAPS, &map("a", "0")).await;
    for value in ["1", "1", "2", "1"] {
        let patch =
            json!({"metadata": {"labels": {"value": value}, "annotations": {"n": uuid::Uuid::new_v4().to_string()}}});
        world.ok("PATCH", &format!("{MAPS}/a"), &patch).await;
    }
    world.ok("DELETE", &format!("{MAPS}/a"), &Value::Null).await;
    for expected in ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"] {
        assert_eq!(events.what().await.0, expected);
    }
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let world = world().await;
    world.ok("POST", MAPS, &map("a", "1")).await;
    let uri = format!(
        "{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&labelSelector=value"
    );
    let mut events = world.watch(&uri).await;
    assert_eq!(events.what().await, ("ADDED".to_owned(), "a".to_owned()));
    let bookmark = events.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
}

#[tokio::test]
async fn without_a_credential_one_gets_health_and_the_version_and_nothing_else() {
    let world = world().await;
    for (uri, status) in [
        ("/healthz", 200),
        ("/livez", 200),
        ("/readyz", 200),
        ("/version", 200),
        ("/api", 403),
        ("/openapi/v3", 403),
        (MAPS, 403),
        ("/metrics", 403),
        ("/api/v1/nodes", 403),
    ] {
        let (got, body) = world.call_as(User::anonymous(), "GET", uri, &[], Vec::new()).await;
        assert_eq!(got, status, "{uri}: {body}");
    }
    let (status, _) =
        world.call_as(User::anonymous(), "GET", "/api", &[("authorization", "Bearer not.a.token")], Vec::new()).await;
    assert_eq!(status, 401);
}

#[tokio::test]
async fn a_token_dies_with_its_account() {
    let world = world().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    world.ok("POST", accounts, &json!({"metadata": {"name": "robot"}})).await;
    let token =
        world.ok("POST", &format!("{accounts}/robot/token"), &json!({"spec": {"expirationSeconds": 600}})).await;
    let bearer = format!("Bearer {}", token["status"]["token"].as_str().unwrap());
    let review = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let credential = [("authorization", bearer.as_str())];
    let ask = || world.call_as(User::anonymous(), "POST", review, &credential, b"{}".to_vec());
    let (status, me) = ask().await;
    assert_eq!(
        (status, me["status"]["userInfo"]["username"].as_str()),
        (201, Some("system:serviceaccount:default:robot")),
        "{me}"
    );
    world.ok("DELETE", &format!("{accounts}/robot"), &Value::Null).await;
    world.get(accounts).await;
    assert_eq!(ask().await.0, 401);
}

#[tokio::test]
async fn who_one_is_is_answered_in_the_version_of_the_question() {
    let world = world().await;
    for version in ["authentication.k8s.io/v1", "authentication.k8s.io/v1beta1"] {
        let question = json!({"apiVersion": version, "kind": "SelfSubjectReview"});
        let answer = world.ok("POST", &format!("/apis/{version}/selfsubjectreviews"), &question).await;
        assert_eq!(answer["apiVersion"], version);
        assert!(answer["status"]["userInfo"]["username"].is_string(), "{answer}");
    }
}

#[tokio::test]
async fn what_pods_cannot_do_yet_is_refused_by_name_before_anything_is_looked_for() {
    let world = world().await;
    for (verb, subresource) in [("GET", "resize"), ("PATCH", "resize"), ("PATCH", "ephemeralcontainers")] {
        let uri = format!("/api/v1/namespaces/default/pods/web/{subresource}");
        let admin = User::new("admin", &["system:masters"]);
        let media = [("content-type", "application/merge-patch+json")];
        let (status, refusal) = world.call_as(admin, verb, &uri, &media, b"{}".to_vec()).await;
        assert_eq!(status, 403, "{verb} {refusal}");
        let message = refusal["message"].as_str().unwrap();
        assert!(message.contains(&format!("{subresource:?} is not supported by Proa yet")), "{message}");
    }
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_hold() {
    let world = world().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
    let rules = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["create"]}, {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    world.ok("POST", roles, &json!({"metadata": {"name": "maker"}, "rules": rules})).await;
    let binding = json!({"metadata": {"name": "maker"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "maker"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "eve"}]});
    world.ok("POST", &roles.replace("/roles", "/rolebindings"), &binding).await;
    let role = |resource: &str| {
        json!({"metadata": {"name": resource}, "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]}).to_string().into_bytes()
    };
    let eve = || User::new("eve", &[]);
    assert_eq!(world.call_as(eve(), "POST", roles, &[], role("pods")).await.0, 201);
    let (status, refusal) = world.call_as(eve(), "POST", roles, &[], role("secrets")).await;
    assert_eq!(status, 403, "{refusal}");
    assert!(refusal["message"].as_str().unwrap().contains("not currently held"), "{refusal}");
}

#[tokio::test]
async fn bad_input_gets_a_status_and_changes_nothing() {
    let world = world().await;
    let admin = || User::new("admin", &["system:masters"]);
    let deep = format!("{{\"data\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000)).into_bytes();
    let large = vec![b' '; 3 * 1024 * 1024 + 1];
    for (what, content_type, body, code) in [
        ("not JSON", "application/json", b"{".to_vec(), 400),
        ("not YAML", "application/yaml", b"a: [".to_vec(), 400),
        ("wrong type", "application/json", br#"{"metadata":{"name":"a"},"data":[1]}"#.to_vec(), 400),
        ("not an object", "application/json", b"[]".to_vec(), 400),
        (
            "wrong kind",
            "application/json",
            br#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"a"}}"#.to_vec(),
            400,
        ),
        ("no name", "application/json", b"{}".to_vec(), 422),
        ("bad name", "application/json", br#"{"metadata":{"name":"A_B"}}"#.to_vec(), 422),
        ("unknown form", "application/cbor", b"x".to_vec(), 415),
        ("bad protobuf", "application/vnd.kubernetes.protobuf", b"k8s\0\xff".to_vec(), 400),
        ("too deep", "application/json", deep, 400),
        ("too large", "application/json", large, 413),
    ] {
        let (status, error) = world.call_as(admin(), "POST", MAPS, &[("content-type", content_type)], body).await;
        assert_eq!(status, code, "{what}: {error}");
        assert_eq!(error["kind"], "Status", "{what}");
    }
    let strict = json!({"metadata": {"name": "a"}, "dat": {}});
    let (status, error) = world.call("POST", &format!("{MAPS}?fieldValidation=Strict"), &strict).await;
    assert_eq!(status, 400);
    assert!(error["message"].as_str().unwrap().contains("strict decoding error: unknown field \"dat\""), "{error}");
    assert!(
        world.get(&format!("{MAPS}?fieldSelector=metadata.name%3Da")).await["items"].as_array().unwrap().is_empty()
    );
    for (uri, code) in [
        ("/api/v1/nothing", 404),
        ("/apis/none.example.com/v1/things", 404),
        ("/nothing", 404),
        (&format!("{MAPS}/none"), 404),
    ] {
        assert_eq!(world.call("GET", uri, &Value::Null).await.0, code, "{uri}");
    }
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let mut world = world().await;
    let ports =
        |service: &Value| (service["spec"]["clusterIP"].clone(), service["spec"]["ports"][0]["nodePort"].clone());
    let services = "/api/v1/namespaces/default/services";
    let body = json!({"metadata": {"generateName": "web-"}, "spec": {"type": "NodePort", "ports": [{"port": 80}], "selector": {"a": "b"}}});
    let mut seen = Vec::new();
    for round in 0..2 {
        let made = world.ok("POST", services, &body).await;
        assert!(!seen.contains(&ports(&made)), "round {round}");
        seen.push(ports(&made));
        let list = world.get(services).await;
        for one in &seen {
            assert!(list["items"].as_array().unwrap().iter().any(|service| ports(service) == *one), "round {round}");
        }
        world = world.restarted().await;
    }
}
