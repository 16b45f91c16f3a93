//! Protobuf, YAML and compression on the wire, as Go's clients use them.

mod common;

use common::{World, world};
use http_body_util::BodyExt;
use proa_apimachinery::protobuf;
use proa_apiserver::User;
use serde_json::{Value, json};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn admin() -> User {
    User::new("admin", &["system:masters"])
}

/// What came back: code, media type, bytes.
type Answer = (u16, String, Vec<u8>);

async fn send(world: &World, method: &str, uri: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
    let response = world.raw(admin(), method, uri, headers, body).await;
    let code = response.status().as_u16();
    let media_type = response.headers().get("content-type").map_or("", |value| value.to_str().unwrap()).to_owned();
    (code, media_type, response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

async fn get(world: &World, uri: &str, accept: &str) -> Answer {
    send(world, "GET", uri, &[("accept", accept)], Vec::new()).await
}

/// Sends and asks for protobuf, as a Go client with that content type does.
async fn exchange(world: &World, method: &str, uri: &str, body: &Value) -> (u16, Value) {
    let headers = [("content-type", PROTOBUF), ("accept", "application/vnd.kubernetes.protobuf,application/json")];
    let body = if body.is_null() { Vec::new() } else { protobuf::encode(body.to_string().as_bytes()).unwrap() };
    let (code, media_type, bytes) = send(world, method, uri, &headers, body).await;
    assert_eq!(media_type, PROTOBUF, "{method} {uri}: {}", String::from_utf8_lossy(&bytes));
    (code, protobuf::decode(&bytes).unwrap())
}

async fn custom(world: &World) -> &'static str {
    const THINGS: &str = "/apis/example.com/v1/namespaces/default/things";
    let spec = json!({"type": "object", "properties": {"replicas": {"type": "integer"}}});
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}});
    let scale = json!({"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"});
    let version =
        json!({"name": "v1", "served": true, "storage": true, "schema": schema, "subresources": {"scale": scale}});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [version],
        },
    });
    // Its schema is the hardest of all to send this way.
    let (code, made) =
        exchange(world, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made.pointer("/spec/versions/0/schema"), Some(&schema));
    world.until(THINGS, |code, _| code == 200).await;
    world.ok("POST", THINGS, &json!({"metadata": {"name": "a"}, "spec": {"replicas": 2}})).await;
    THINGS
}

#[tokio::test]
async fn every_built_in_kind_is_listed_in_protobuf() {
    let world = world().await;
    world
        .ok("POST", "/api/v1/nodes", &json!({"metadata": {"name": "n"}, "status": {"capacity": {"cpu": "2000m"}}}))
        .await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    world.ok("POST", "/api/v1/namespaces/default/pods", &pod).await;
    let mut roots = vec!["/api/v1".to_owned()];
    for group in world.get("/apis").await["groups"].as_array().unwrap() {
        for version in group["versions"].as_array().unwrap() {
            roots.push(format!("/apis/{}", version["groupVersion"].as_str().unwrap()));
        }
    }
    let (mut listed, mut missing) = (0, Vec::new());
    for root in roots {
        for resource in world.get(&root).await["resources"].as_array().unwrap() {
            let name = resource["name"].as_str().unwrap();
            if !resource["verbs"].as_array().unwrap().contains(&"list".into()) || root.contains("proa.dev") {
                continue;
            }
            let uri = format!("{root}/{name}");
            let (code, media_type, bytes) = get(&world, &uri, PROTOBUF).await;
            if code != 200 || media_type != PROTOBUF {
                missing.push(uri);
                continue;
            }
            // What Go reads out of it is what it reads out of the JSON.
            let (_, _, json) = get(&world, &uri, "application/json").await;
            assert_eq!(protobuf::decode(&bytes), protobuf::decode(&protobuf::encode(&json).unwrap()), "{uri}");
            listed += 1;
        }
    }
    assert_eq!(missing, Vec::<String>::new());
    assert!(listed > 50, "{listed}");
}

#[tokio::test]
async fn an_object_sent_and_answered_in_protobuf_is_the_one_sent_in_json() {
    let world = world().await;
    let template = json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{
            "name": "c", "image": "i", "command": ["sh", "-c", "é"],
            "env": [{"name": "A", "value": "a"}, {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}],
            "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}},
            "livenessProbe": {"httpGet": {"port": "http", "path": "/"}, "periodSeconds": 3},
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        }], "volumes": [{"name": "v", "configMap": {"name": "m", "defaultMode": 0}}]},
    });
    let deployment = |name: &str| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "annotations": {"a": "b"}},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "web"}}, "template": template,
                "strategy": {"rollingUpdate": {"maxSurge": "50%", "maxUnavailable": 0}}},
        })
    };
    const URI: &str = "/apis/apps/v1/namespaces/default/deployments";
    let (code, answer) = exchange(&world, "POST", URI, &deployment("a")).await;
    assert_eq!(code, 201, "{answer}");
    world.ok("POST", URI, &deployment("b")).await;
    let (one, other) = (world.get(&format!("{URI}/a")).await, world.get(&format!("{URI}/b")).await);
    assert_eq!(one["spec"], other["spec"]);
    assert_eq!(answer["spec"]["strategy"], one["spec"]["strategy"]);
    // Reads it, changes it, writes it back.
    let (_, mut read) = exchange(&world, "GET", &format!("{URI}/a"), &Value::Null).await;
    read["spec"]["replicas"] = 3.into();
    let (code, written) = exchange(&world, "PUT", &format!("{URI}/a"), &read).await;
    assert_eq!((code, &written["metadata"]["generation"]), (200, &2.into()));
    assert_eq!(world.get(&format!("{URI}/a")).await["spec"]["template"], one["spec"]["template"]);
    // A subresource whose body is of another kind.
    let scale = json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "a", "namespace": "default"},
        "spec": {"replicas": 5},
    });
    let (code, scale) = exchange(&world, "PUT", &format!("{URI}/a/scale"), &scale).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (200, &5.into()));
}

#[tokio::test]
async fn questions_and_errors_are_answered_in_protobuf() {
    let world = world().await;
    let (code, status) = exchange(&world, "GET", &format!("{MAPS}/none"), &Value::Null).await;
    assert_eq!((code, &status["kind"], &status["reason"]), (404, &"Status".into(), &"NotFound".into()));
    assert_eq!(status["details"]["name"], "none");
    let bad = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "A_B"}});
    let (code, status) = exchange(&world, "POST", MAPS, &bad).await;
    assert_eq!((code, &status["details"]["causes"][0]["field"]), (422, &"metadata.name".into()));
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": "eve", "extra": {"scopes": ["a"]}, "resourceAttributes": {"verb": "get", "resource": "pods"}},
    });
    let (code, answer) = exchange(&world, "POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await;
    assert_eq!((code, &answer["status"]["allowed"]), (201, &false.into()));
    let token = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": [], "expirationSeconds": 600},
    });
    let (code, token) =
        exchange(&world, "POST", "/api/v1/namespaces/default/serviceaccounts/default/token", &token).await;
    assert_eq!(code, 201, "{token}");
    assert!(token["status"]["token"].as_str().is_some_and(|token| token.split('.').count() == 3));
    // Options too come in protobuf, and of the version of whoever sends them.
    world.ok("POST", MAPS, &json!({"metadata": {"name": "a"}})).await;
    let options = |uid: &str| json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}});
    let (code, status) = exchange(&world, "DELETE", &format!("{MAPS}/a"), &options("another")).await;
    assert_eq!((code, &status["reason"]), (409, &"Conflict".into()));
    let uid = world.get(&format!("{MAPS}/a")).await["metadata"]["uid"].as_str().unwrap().to_owned();
    let (code, status) = exchange(&world, "DELETE", &format!("{MAPS}/a"), &options(&uid)).await;
    assert_eq!((code, &status["status"]), (200, &"Success".into()));
    for (uri, kind) in
        [("/api", "APIVersions"), ("/apis", "APIGroupList"), ("/api/v1", "APIResourceList"), ("/apis/apps", "APIGroup")]
    {
        let (code, answer) = exchange(&world, "GET", uri, &Value::Null).await;
        assert_eq!((code, &answer["kind"]), (200, &kind.into()));
    }
    let aggregated = "application/vnd.kubernetes.protobuf;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let (code, media_type, bytes) = get(&world, "/apis", aggregated).await;
    assert_eq!((code, &*media_type), (200, aggregated));
    assert!(protobuf::decode(&bytes).unwrap()["items"].as_array().unwrap().len() > 10);
}

#[tokio::test]
async fn custom_resources_are_answered_in_json_and_their_metadata_in_protobuf() {
    let world = world().await;
    let things = custom(&world).await;
    let (code, media_type, _) = get(&world, things, "application/vnd.kubernetes.protobuf,application/json").await;
    assert_eq!((code, &*media_type), (200, "application/json"));
    let (code, _, bytes) = get(&world, things, PROTOBUF).await;
    assert_eq!(code, 406);
    assert_eq!(
        protobuf::decode(&bytes).unwrap()["message"],
        "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
    );
    let partial = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let (code, media_type, bytes) = get(&world, things, partial).await;
    assert_eq!((code, &*media_type), (200, PROTOBUF));
    let list = protobuf::decode(&bytes).unwrap();
    assert_eq!(
        (&list["kind"], &list["items"][0]["metadata"]["name"]),
        (&"PartialObjectMetadataList".into(), &"a".into())
    );
    let (_, scale) = exchange(&world, "GET", &format!("{things}/a/scale"), &Value::Null).await;
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&"Scale".into(), &2.into()));
    // Nor are they read from protobuf.
    let body = protobuf::encode_as("v1", "ConfigMap", b"{}").unwrap();
    let (code, ..) = send(&world, "POST", things, &[("content-type", PROTOBUF)], body).await;
    assert_eq!(code, 400);
    // There is no table in protobuf: the next best is taken.
    let table =
        "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1;g=meta.k8s.io";
    let (_, media_type, bytes) = get(&world, MAPS, table).await;
    assert_eq!(media_type, "application/json");
    assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap()["kind"], "Table");
}

/// The frames of a watch in protobuf: each four bytes of length, then a `WatchEvent`.
struct Frames {
    body: proa_apiserver::http::Body,
    buffer: Vec<u8>,
}

impl Frames {
    async fn open(world: &World, uri: &str, accept: &str) -> Frames {
        let response = world.raw(admin(), "GET", uri, &[("accept", accept)], Vec::new()).await;
        assert_eq!(response.headers()["content-type"], protobuf::WATCH_MEDIA_TYPE);
        Frames { body: response.into_body(), buffer: Vec::new() }
    }

    async fn next(&mut self) -> (String, Value) {
        loop {
            if let Some((length, rest)) = self.buffer.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if rest.len() >= length {
                    let event = protobuf::event(&rest[..length]).unwrap();
                    self.buffer.drain(..length + 4);
                    return event;
                }
            }
            let frame = tokio::time::timeout(std::time::Duration::from_secs(10), self.body.frame());
            let frame = frame.await.expect("an event in time").expect("an event").unwrap();
            self.buffer.extend_from_slice(frame.data_ref().unwrap());
        }
    }

    async fn what(&mut self) -> (String, String, String) {
        let (event, object) = self.next().await;
        (event, object["kind"].as_str().unwrap().into(), object["metadata"]["name"].as_str().unwrap_or_default().into())
    }
}

#[tokio::test]
async fn a_watch_in_protobuf_sees_what_one_in_json_sees() {
    let world = world().await;
    let map =
        |name: &str, value: &str| json!({"metadata": {"name": name, "labels": {"v": value}}, "data": {"v": value}});
    world.ok("POST", MAPS, &map("a", "1")).await;
    let initial = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut all =
        Frames::open(&world, &format!("{MAPS}?{initial}"), "application/vnd.kubernetes.protobuf;stream=watch").await;
    let mut some = Frames::open(&world, &format!("{MAPS}?watch=true&labelSelector=v%3D1"), PROTOBUF).await;
    let partial = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let mut metadata = Frames::open(&world, &format!("{MAPS}?watch=true"), partial).await;
    let told = |event: &str, kind: &str, name: &str| (event.to_owned(), kind.to_owned(), name.to_owned());
    assert_eq!(all.what().await, told("ADDED", "ConfigMap", "a"));
    let (event, bookmark) = all.next().await;
    assert_eq!(event, "BOOKMARK");
    assert_eq!(bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(some.what().await, told("ADDED", "ConfigMap", "a"));
    assert_eq!(metadata.what().await, told("ADDED", "PartialObjectMetadata", "a"));
    world.ok("PUT", &format!("{MAPS}/a"), &map("a", "2")).await;
    let (event, object) = all.next().await;
    assert_eq!((&*event, &object["data"]["v"]), ("MODIFIED", &"2".into()));
    assert_eq!(some.what().await, told("DELETED", "ConfigMap", "a"));
    assert_eq!(metadata.what().await, told("MODIFIED", "PartialObjectMetadata", "a"));
    world.ok("DELETE", &format!("{MAPS}/a"), &Value::Null).await;
    assert_eq!(all.what().await, told("DELETED", "ConfigMap", "a"));
    // There is no stream of YAML.
    let (code, media_type, _) = get(&world, &format!("{MAPS}?watch=true"), "application/yaml").await;
    assert_eq!((code, &*media_type), (406, "application/yaml"));
}

#[tokio::test]
async fn lists_are_paged_compressed_and_in_yaml_for_those_who_ask() {
    let world = world().await;
    for at in 0..6 {
        let map = json!({"metadata": {"name": format!("m{at}")}, "data": {"v": "x".repeat(40_000)}});
        world.ok("POST", MAPS, &map).await;
    }
    let (_, first) = exchange(&world, "GET", &format!("{MAPS}?limit=4"), &Value::Null).await;
    assert_eq!(first["items"].as_array().unwrap().len(), 4);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, second) = exchange(&world, "GET", &format!("{MAPS}?limit=4&continue={token}"), &Value::Null).await;
    assert_eq!(second["items"][1]["metadata"]["name"], "m5");
    for accept in [PROTOBUF, "application/json"] {
        let (_, _, plain) = get(&world, MAPS, accept).await;
        let response =
            world.raw(admin(), "GET", MAPS, &[("accept", accept), ("accept-encoding", "gzip")], Vec::new()).await;
        assert_eq!(response.headers()["content-encoding"], "gzip");
        let packed = response.into_body().collect().await.unwrap().to_bytes();
        assert!(packed.len() < plain.len() / 10);
        let mut unpacked = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut unpacked).unwrap();
        assert_eq!(unpacked, plain);
    }
    let (_, media_type, yaml) = get(&world, &format!("{MAPS}?limit=1"), "application/yaml").await;
    assert_eq!(media_type, "application/yaml");
    let yaml = String::from_utf8(yaml).unwrap();
    assert!(yaml.contains("kind: ConfigMapList\n") && yaml.contains("name: m0\n"), "{}", &yaml[..300]);
}
