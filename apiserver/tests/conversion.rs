//! Custom resources in several versions that a webhook converts.

mod common;
#[path = "common/hook_server.rs"]
mod hook_server;

use common::{World, world};
use hook_server::{Came, HookServer};
use proa_apiserver::User;
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const CRD: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/e2etests.stable.example.com";
const V1: &str = "/apis/stable.example.com/v1/namespaces/default/e2etests";
const V2: &str = "/apis/stable.example.com/v2/namespaces/default/e2etests";

/// In v1 an object has `hostPort`, in v2 `host` and `port`.
fn convert(object: &Value, to: &str) -> Value {
    let mut new = object.clone();
    new["apiVersion"] = to.into();
    let map = new.as_object_mut().unwrap();
    if to.ends_with("/v2") {
        let both = map.shift_remove("hostPort").unwrap_or_default();
        let (host, port) = both.as_str().unwrap_or_default().split_once(':').unwrap_or_default();
        map.insert("host".into(), host.into());
        map.insert("port".into(), port.into());
    } else {
        let text = |value: Option<Value>| value.and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        let (host, port) = (text(map.shift_remove("host")), text(map.shift_remove("port")));
        map.insert("hostPort".into(), format!("{host}:{port}").into());
    }
    new
}

fn answer(came: &Came) -> Value {
    let request = came.request();
    let to = request["desiredAPIVersion"].as_str().unwrap();
    let objects = request["objects"].as_array().unwrap();
    let broken = objects.iter().any(|object| object["metadata"]["labels"]["broken"] == "yes");
    let response = if broken {
        json!({"uid": request["uid"], "result": {"status": "Failure", "message": "cannot convert what is broken"}})
    } else {
        let converted: Vec<Value> = objects.iter().map(|object| convert(object, to)).collect();
        json!({"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": converted})
    };
    json!({"kind": "ConversionReview", "apiVersion": came.body["apiVersion"], "response": response})
}

fn definition(server: &HookServer, storage: &str) -> Value {
    let text = json!({"type": "string"});
    let version = |name: &str, properties: Value| {
        json!({"name": name, "served": true, "storage": name == storage,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}}})
    };
    let conversion = json!({"strategy": "Webhook", "webhook": {"clientConfig": server.client("/crdconvert"),
        "conversionReviewVersions": ["v1", "v1beta1"]}});
    json!({"metadata": {"name": "e2etests.stable.example.com"}, "spec": {"group": "stable.example.com", "scope": "Namespaced",
        "names": {"plural": "e2etests", "kind": "E2eTest"}, "conversion": conversion,
        "versions": [version("v1", json!({"hostPort": text})), version("v2", json!({"host": text, "port": text}))]}})
}

fn object(version: &str, name: &str, fields: Value) -> Value {
    let mut object = fields;
    object["apiVersion"] = format!("stable.example.com/{version}").into();
    object["kind"] = "E2eTest".into();
    object["metadata"] = json!({"name": name});
    object
}

async fn store_in(world: &World, version: &str) {
    let mut stored = world.get(CRD).await;
    for have in stored["spec"]["versions"].as_array_mut().unwrap() {
        have["storage"] = (have["name"] == version).into();
    }
    world.ok("PUT", CRD, &stored).await;
}

async fn started() -> (World, HookServer) {
    let (world, server) = (world().await, HookServer::answering(answer).await);
    world.ok("POST", CRDS, &definition(&server, "v1")).await;
    (world, server)
}

#[tokio::test]
async fn an_object_is_read_and_written_in_another_version_than_it_is_stored_in() {
    let (world, server) = started().await;
    world.ok("POST", V1, &object("v1", "a", json!({"hostPort": "localhost:8080"}))).await;
    assert_eq!(server.came.lock().len(), 0);
    let read = world.get(&format!("{V2}/a")).await;
    assert_eq!((&read["apiVersion"], &read["kind"]), (&json!("stable.example.com/v2"), &json!("E2eTest")));
    assert_eq!((&read["host"], &read["port"], read.get("hostPort")), (&json!("localhost"), &json!("8080"), None));
    let asked = &server.at("/crdconvert")[0];
    assert_eq!(asked.uri, "/crdconvert?timeout=30s");
    assert_eq!(asked.request()["desiredAPIVersion"], "stable.example.com/v2");
    assert_eq!(asked.request()["objects"][0]["apiVersion"], "stable.example.com/v1");
    // What was converted is remembered until it changes.
    world.get(&format!("{V2}/a")).await;
    assert_eq!(server.came.lock().len(), 1);
    // Every way to write goes through the version asked for, and is stored in the one that is.
    world.ok("PATCH", &format!("{V2}/a"), &json!({"port": "9090"})).await;
    let applied = object("v2", "a", json!({"host": "example.com"})).to_string().into_bytes();
    let headers = [("content-type", "application/apply-patch+yaml")];
    let admin = || User::new("admin", &["system:masters"]);
    let uri = format!("{V2}/a?fieldManager=m&force=true");
    let (status, applied) = world.call_as(admin(), "PATCH", &uri, &headers, applied).await;
    assert_eq!((status, &applied["host"], &applied["port"]), (200, &json!("example.com"), &json!("9090")), "{applied}");
    assert_eq!(world.get(&format!("{V1}/a")).await["hostPort"], "example.com:9090");
    world.ok("POST", V2, &object("v2", "b", json!({"host": "h", "port": "1"}))).await;
    assert_eq!(world.get(&format!("{V1}/b")).await["hostPort"], "h:1");
    world.ok("DELETE", &format!("{V2}/b"), &Value::Null).await;
    // Tables and metadata are of the version asked for, too.
    let accept = [("accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")];
    let (_, partial) = world.call_as(admin(), "GET", V2, &accept, Vec::new()).await;
    assert_eq!(partial["items"][0]["metadata"]["name"], "a");
}

#[tokio::test]
async fn a_list_of_objects_stored_in_several_versions_comes_in_the_one_asked_for() {
    let (world, server) = started().await;
    world.ok("POST", V1, &object("v1", "a", json!({"hostPort": "localhost:8080"}))).await;
    store_in(&world, "v2").await;
    assert_eq!(world.get(CRD).await["status"]["storedVersions"], json!(["v1", "v2"]));
    world.ok("POST", V2, &object("v2", "b", json!({"host": "localhost", "port": "8081"}))).await;
    assert_eq!(server.came.lock().len(), 0, "each was written as it is stored");
    for (place, field, values) in
        [(V1, "hostPort", ["localhost:8080", "localhost:8081"]), (V2, "port", ["8080", "8081"])]
    {
        let list = world.get(place).await;
        let got: Vec<&str> =
            list["items"].as_array().unwrap().iter().map(|item| item[field].as_str().unwrap()).collect();
        assert_eq!(got, values, "{list}");
        let versions: Vec<&Value> = list["items"].as_array().unwrap().iter().map(|item| &item["apiVersion"]).collect();
        assert_eq!(versions[0], versions[1]);
    }
    // Each list asked once, for the one that is stored otherwise.
    let asked: Vec<usize> =
        server.at("/crdconvert").iter().map(|came| came.request()["objects"].as_array().unwrap().len()).collect();
    assert_eq!(asked, [1, 1]);
    // A paged list goes on from the store.
    let page = world.get(&format!("{V1}?limit=1")).await;
    let token = page["metadata"]["continue"].as_str().unwrap();
    let rest = world.get(&format!("{V1}?limit=1&continue={token}")).await;
    assert_eq!(rest["items"][0]["hostPort"], "localhost:8081");
}

#[tokio::test]
async fn a_watch_shows_the_version_asked_for() {
    let (world, _server) = started().await;
    world.ok("POST", V1, &object("v1", "a", json!({"hostPort": "h:1"}))).await;
    let mut watch = world.watch(&format!("{V2}?watch=true")).await;
    let first = watch.next().await.unwrap();
    assert_eq!((&first["type"], &first["object"]["host"]), (&json!("ADDED"), &json!("h")));
    world.ok("PATCH", &format!("{V1}/a"), &json!({"hostPort": "h:2"})).await;
    let second = watch.next().await.unwrap();
    assert_eq!((&second["type"], &second["object"]["port"]), (&json!("MODIFIED"), &json!("2")));
    world.ok("DELETE", &format!("{V1}/a"), &Value::Null).await;
    let third = watch.next().await.unwrap();
    assert_eq!((&third["type"], &third["object"]["apiVersion"]), (&json!("DELETED"), &json!("stable.example.com/v2")));
}

#[tokio::test]
async fn an_update_that_changes_nothing_moves_an_object_to_the_storage_version() {
    let (world, server) = started().await;
    world.ok("POST", V1, &object("v1", "a", json!({"hostPort": "h:1"}))).await;
    store_in(&world, "v2").await;
    let before = world.get(&format!("{V1}/a")).await;
    let after = world.ok("PUT", &format!("{V1}/a"), &before).await;
    assert_ne!(before["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"]);
    // It is stored in v2 now: nobody is asked to read it as that.
    let asked = server.came.lock().len();
    assert_eq!(world.get(&format!("{V2}/a")).await["host"], "h");
    assert_eq!(server.came.lock().len(), asked);
    let again = world.ok("PUT", &format!("{V2}/a"), &world.get(&format!("{V2}/a")).await).await;
    assert_eq!(again["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"]);
    // Then the old version may be forgotten.
    let forgotten = world.ok("PATCH", &format!("{CRD}/status"), &json!({"status": {"storedVersions": ["v2"]}})).await;
    assert_eq!(forgotten["status"]["storedVersions"], json!(["v2"]));
}

#[tokio::test]
async fn a_conversion_that_fails_says_why_and_changes_nothing() {
    let (world, _server) = started().await;
    world.ok("POST", V1, &object("v1", "a", json!({"hostPort": "h:1"}))).await;
    let mut broken = object("v1", "broken", json!({"hostPort": "h:1"}));
    broken["metadata"]["labels"] = json!({"broken": "yes"});
    world.ok("POST", V1, &broken).await;
    let why = "conversion webhook for stable.example.com/v1, Kind=E2eTest failed: cannot convert what is broken";
    for (method, uri, body) in [
        ("GET", format!("{V2}/broken"), Value::Null),
        ("GET", V2.to_owned(), Value::Null),
        ("PATCH", format!("{V2}/broken"), json!({"port": "2"})),
    ] {
        let (status, answer) = world.call(method, &uri, &body).await;
        assert_eq!((status, answer["message"].as_str()), (500, Some(why)), "{method} {uri}");
    }
    world.get(&format!("{V1}/broken")).await;
    world.get(&format!("{V2}/a")).await;
    // Whatever nobody can convert can go.
    world.ok("DELETE", &format!("{V1}/broken"), &Value::Null).await;
    world.ok("DELETE", &format!("{V2}/a"), &Value::Null).await;
}

#[tokio::test]
async fn without_a_webhook_every_stored_version_is_shown_as_the_one_asked_for() {
    let (world, server) = (world().await, HookServer::answering(answer).await);
    let mut plain = definition(&server, "v1");
    plain["spec"]["conversion"] = json!({"strategy": "None"});
    world.ok("POST", CRDS, &plain).await;
    world.ok("POST", V1, &object("v1", "a", json!({"hostPort": "h:1"}))).await;
    store_in(&world, "v2").await;
    world.ok("POST", V2, &object("v2", "b", json!({"host": "h"}))).await;
    for (place, version) in [(V1, "stable.example.com/v1"), (V2, "stable.example.com/v2")] {
        let list = world.get(place).await;
        assert!(list["items"].as_array().unwrap().iter().all(|item| item["apiVersion"] == version), "{list}");
    }
    assert_eq!(server.came.lock().len(), 0);
}

#[tokio::test]
async fn a_definition_must_say_how_its_objects_are_converted() {
    let (world, server) = (world().await, HookServer::answering(answer).await);
    for (conversion, field, why) in [
        (
            json!({"strategy": "Webhook"}),
            "spec.conversion.webhook.clientConfig",
            "required when strategy is set to Webhook",
        ),
        (json!({"strategy": "Magic"}), "spec.conversion.strategy", "Unsupported value"),
        (
            json!({"strategy": "None", "webhook": {"clientConfig": server.client("/"), "conversionReviewVersions": ["v1"]}}),
            "spec.conversion.webhook",
            "should not be set when strategy is not set to Webhook",
        ),
        (
            json!({"strategy": "Webhook", "webhook": {"clientConfig": server.client("/"), "conversionReviewVersions": ["v3"]}}),
            "spec.conversion.webhook.conversionReviewVersions",
            "must include at least one of v1, v1beta1",
        ),
        (
            json!({"strategy": "Webhook", "webhook": {"clientConfig": {"url": "http://a"}, "conversionReviewVersions": ["v1"]}}),
            "spec.conversion.webhook.clientConfig.url",
            "'https' is the only allowed URL scheme",
        ),
    ] {
        let mut bad = definition(&server, "v1");
        bad["spec"]["conversion"] = conversion;
        let (status, answer) = world.call("POST", CRDS, &bad).await;
        assert_eq!(status, 422, "{answer}");
        let causes = answer["details"]["causes"].as_array().unwrap();
        let found =
            causes.iter().any(|cause| cause["field"] == field && cause["message"].as_str().unwrap().contains(why));
        assert!(found, "{field}: {causes:?}");
    }
}
