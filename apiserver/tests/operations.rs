//! The "should support … API operations" of the conformance tests, for every kind that discovery says can be kept: what
//! `operations.json` has of each is put through all the verbs. A kind that is served and has no sample there fails the test.

mod common;

use base64::Engine;
use common::{World, world};
use proa_apiserver::User;
use serde_json::{Map, Value, json};

const SAMPLES: &str = include_str!("operations.json");
const LABEL: &str = "operations";

/// A kind as discovery lists it.
struct Served {
    /// `v1` or `GROUP/v1`.
    group_version: String,
    /// The plural, after its group where it has one: the key of its sample.
    key: String,
    kind: String,
    /// Where its collection is, and where all of them are.
    uri: String,
    all: String,
    has_status: bool,
}

/// Every kind of which objects can be kept.
async fn served(world: &World) -> Vec<Served> {
    let mut versions = vec![("/api/v1".to_owned(), "v1".to_owned())];
    for group in world.get("/apis").await["groups"].as_array().expect("groups") {
        for version in group["versions"].as_array().expect("versions") {
            let version = text(&version["groupVersion"]);
            versions.push((format!("/apis/{version}"), version));
        }
    }
    let mut kinds = Vec::new();
    for (path, group_version) in versions {
        let list = world.get(&path).await;
        let resources = list["resources"].as_array().expect("resources");
        let named = |name: &str| resources.iter().any(|resource| resource["name"] == name);
        for resource in resources {
            let name = text(&resource["name"]);
            let kept = resource["verbs"].as_array().expect("verbs").contains(&json!("deletecollection"));
            if name.contains('/') || !kept {
                continue;
            }
            let group = group_version.split_once('/').map(|(group, _)| format!("{group}/")).unwrap_or_default();
            let place = if resource["namespaced"] == true { "/namespaces/default" } else { "" };
            kinds.push(Served {
                key: format!("{group}{name}"),
                kind: text(&resource["kind"]),
                uri: format!("{path}{place}/{name}"),
                all: format!("{path}/{name}"),
                has_status: named(&format!("{name}/status")),
                group_version: group_version.clone(),
            });
        }
    }
    kinds
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What a client writes of a kind: two objects under the label, and the status one may find.
struct Sample {
    objects: [Value; 2],
    names: [String; 2],
    status: Option<Value>,
}

fn sample(samples: &Map<String, Value>, served: &Served) -> Sample {
    let written = samples.get(&served.key).unwrap_or_else(|| panic!("{} has no sample", served.key));
    let names = ["one", "two"].map(|name| {
        let given = &written["names"][if name == "one" { 0 } else { 1 }];
        given.as_str().unwrap_or(name).to_owned()
    });
    let objects = [("One", "one"), ("Two", "two")].map(|(kind, name)| {
        let plural = format!("{name}s");
        let group = format!("{name}.example.com");
        let filled = written.to_string().replace("$PLURAL", &plural).replace("$KIND", kind).replace("$GROUP", &group);
        let mut object: Value = serde_json::from_str(&filled.replace("$CSR", &request())).expect("JSON");
        let fields = object.as_object_mut().expect("a map");
        fields.remove("names");
        fields.remove("status");
        let name = if name == "one" { &names[0] } else { &names[1] };
        object["metadata"] = json!({"name": name, "labels": {LABEL: "yes"}});
        object
    });
    Sample { objects, names, status: written.get("status").cloned() }
}

/// The request of a certificate.
fn request() -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let request = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
    base64::engine::general_purpose::STANDARD.encode(request.pem().expect("PEM"))
}

async fn apply(world: &World, uri: &str, object: &Value) -> (u16, Value) {
    let headers = [("content-type", "application/apply-patch+yaml")];
    let uri = format!("{uri}?fieldManager=operations");
    let admin = User::new("admin", &["system:masters"]);
    world.call_as(admin, "PATCH", &uri, &headers, object.to_string().into_bytes()).await
}

/// What protects or finishes an object goes, where there is such a thing: its controllers are not here.
async fn let_go(world: &World, uri: &str) {
    let (code, held) = world.call("GET", uri, &Value::Null).await;
    if code == 404 {
        return;
    }
    assert!(held["metadata"]["deletionTimestamp"].is_string(), "{uri} is not even marked: {held}");
    if held["metadata"]["finalizers"].is_array() {
        // A definition's is the server's own to take away: it may have done so meanwhile.
        let (code, answer) = world.call("PATCH", uri, &json!({"metadata": {"finalizers": null}})).await;
        assert!(matches!(code, 200 | 404), "{uri}: {answer}");
    } else {
        let mut done = held;
        done["spec"]["finalizers"] = json!([]);
        world.ok("PUT", &format!("{uri}/finalize"), &done).await;
    }
    world.until(uri, |code, _| code == 404).await;
}

async fn selected(world: &World, uri: &str, label: &str) -> usize {
    world.get(&format!("{uri}?labelSelector={label}")).await["items"].as_array().expect("items").len()
}

/// Everything one can do with the status of an object leaves the rest of it alone, and can be read.
async fn status_is_written_alone(world: &World, this: &str, status: &Value) {
    let uri = format!("{this}/status");
    let before = world.get(&uri).await;
    let patched = world.ok("PATCH", &uri, &json!({"status": status})).await;
    assert_eq!(patched["spec"], before["spec"], "{uri}");
    for (field, value) in status.as_object().expect("a map") {
        let found = &patched["status"][field];
        match value.as_array().and_then(|list| list.first()) {
            // A list that merges may hold the platform's own beside it.
            Some(condition) if condition["type"].is_string() => {
                let types: Vec<&Value> = found.as_array().expect("a list").iter().map(|each| &each["type"]).collect();
                assert!(types.contains(&&condition["type"]), "{uri}: {found}");
            }
            Some(_) => assert_eq!(found[0]["ip"], value[0]["ip"], "{uri}"),
            None if value.is_array() => {}
            None => assert_eq!(found, value, "{uri}"),
        }
    }
    // Of some kinds the server itself writes the status too: then what is read anew is put once more.
    let mut latest = patched;
    for _ in 0..20 {
        let (code, put) = world.call("PUT", &uri, &latest).await;
        assert!(code == 200 || code == 409, "PUT {uri}: {code} {put}");
        let wanted = std::mem::replace(&mut latest, world.get(this).await);
        if code == 200 {
            assert_eq!(put["status"], wanted["status"], "{uri}");
            if latest["status"] == put["status"] {
                return;
            }
        }
    }
    panic!("{this}: what was put is not what every reader sees: {latest}");
}

/// Conformance: all of "should support … API operations", and "Lease API should be available", the lifecycles of events,
/// service accounts and pod templates as far as they are one.
#[tokio::test]
async fn every_kind_that_is_served_supports_every_operation_of_the_api() {
    let world = world().await;
    let samples: Map<String, Value> = serde_json::from_str(SAMPLES).expect("JSON");
    let kinds = served(&world).await;
    assert!(kinds.len() > 55, "{}", kinds.len());
    for kind in &kinds {
        supports_every_operation(&world, kind, &sample(&samples, kind)).await;
    }
    let unused: Vec<&String> = samples.keys().filter(|key| !kinds.iter().any(|kind| &kind.key == *key)).collect();
    assert!(unused.is_empty(), "samples of what is not served: {unused:?}");
}

async fn supports_every_operation(world: &World, kind: &Served, sample: &Sample) {
    let Served { uri, all, key, .. } = kind;
    let this = format!("{uri}/{}", sample.names[0]);
    let dry = world.ok("POST", &format!("{uri}?dryRun=All"), &sample.objects[0]).await;
    assert_eq!((text(&dry["kind"]), world.call("GET", &this, &Value::Null).await.0), (kind.kind.clone(), 404), "{key}");

    let made = world.ok("POST", uri, &sample.objects[0]).await;
    assert_eq!(world.call("POST", uri, &sample.objects[0]).await.0, 409, "{key} is there already");
    let version = text(&made["metadata"]["resourceVersion"]);
    let mut watch = world.watch(&format!("{all}?watch=1&labelSelector={LABEL}&resourceVersion={version}")).await;
    assert_eq!(world.get(&this).await["metadata"]["uid"], made["metadata"]["uid"], "{key}");
    for (selector, count) in [("operations%3Dyes", 1), ("operations%3Dno", 0)] {
        assert_eq!(selected(world, uri, selector).await, count, "{key}");
        assert_eq!(selected(world, all, selector).await, count, "{key} in all namespaces");
    }

    let patched = world.ok("PATCH", &this, &json!({"metadata": {"labels": {"patched": "yes"}}})).await;
    assert_eq!(patched["metadata"]["labels"]["patched"], "yes", "{key}");
    let intent = json!({"apiVersion": kind.group_version, "kind": kind.kind,
        "metadata": {"name": sample.names[0], "annotations": {"applied": "yes"}}});
    let (code, applied) = apply(world, &this, &intent).await;
    assert_eq!(
        (code, text(&applied["metadata"]["annotations"]["applied"])),
        (200, "yes".to_owned()),
        "{key}: {applied}"
    );
    let mut replaced = applied.clone();
    replaced["metadata"]["annotations"]["updated"] = "yes".into();
    let replaced = world.ok("PUT", &this, &replaced).await;
    assert_eq!(replaced["metadata"]["annotations"]["updated"], "yes", "{key}");
    assert_eq!(world.call("PUT", &this, &applied).await.0, 409, "{key}: what was read is stale");
    for _ in 0..3 {
        assert_eq!(watch.what().await, ("MODIFIED".to_owned(), sample.names[0].clone()), "{key}");
    }
    assert_eq!(sample.status.is_some(), kind.has_status, "{key}");
    if let Some(status) = &sample.status {
        status_is_written_alone(world, &this, status).await;
    }

    world.ok("DELETE", &this, &Value::Null).await;
    let_go(world, &this).await;
    while watch.what().await.0 != "DELETED" {}
    let other = format!("{uri}/{}", sample.names[1]);
    world.ok("POST", uri, &sample.objects[1]).await;
    if !key.eq("namespaces") {
        world.ok("DELETE", &format!("{uri}?labelSelector=operations%3Dyes"), &Value::Null).await;
    } else {
        world.ok("DELETE", &other, &Value::Null).await;
    }
    let_go(world, &other).await;
    assert_eq!(selected(world, uri, LABEL).await, 0, "{key}");
}

/// Python's and kube-rs's generated types decode the answer to a delete as what Kubernetes' OpenAPI document says it is.
#[tokio::test]
async fn a_delete_answers_with_the_object_where_its_registry_returns_it_and_else_with_a_status() {
    let world = world().await;
    let samples: Map<String, Value> = serde_json::from_str(SAMPLES).expect("JSON");
    let returned = [
        "persistentvolumeclaims",
        "persistentvolumes",
        "pods",
        "podtemplates",
        "resource.k8s.io/deviceclasses",
        "resource.k8s.io/resourceclaims",
        "resource.k8s.io/resourceclaimtemplates",
        "resource.k8s.io/resourceslices",
        "resourcequotas",
        "serviceaccounts",
        "services",
        "storage.k8s.io/csidrivers",
        "storage.k8s.io/csinodes",
        "storage.k8s.io/storageclasses",
        "storage.k8s.io/volumeattachments",
        "storage.k8s.io/volumeattributesclasses",
    ];
    let document = world.get("/openapi/v2").await;
    for kind in served(&world).await {
        let Sample { objects, names, .. } = sample(&samples, &kind);
        let made = world.ok("POST", &kind.uri, &objects[0]).await;
        let this = format!("{}/{}", kind.uri, names[0]);
        let gone = world.ok("DELETE", &this, &Value::Null).await;
        // Somebody has work to do before it goes: the answer is the object, marked.
        let held = ["/metadata/finalizers", "/spec/finalizers"].iter().any(|at| gone.pointer(at).is_some());
        let_go(&world, &this).await;
        let returns = returned.contains(&kind.key.as_str());
        let expected = if returns || held { kind.kind.as_str() } else { "Status" };
        assert_eq!(gone["kind"], expected, "{}: {gone}", kind.key);
        let uid = if expected == "Status" { &gone["details"]["uid"] } else { &gone["metadata"]["uid"] };
        assert_eq!(uid, &made["metadata"]["uid"], "{}", kind.key);
        let path = format!("{}/{{name}}", kind.uri.replace("/default/", "/{namespace}/"));
        let said = &document["paths"][&path]["delete"]["responses"]["200"]["schema"]["$ref"];
        let said = text(said).rsplit('.').next().unwrap_or_default().to_owned();
        assert_eq!(said, if returns { kind.kind.as_str() } else { "Status" }, "{path}");
    }
}
