//! What Kubernetes' conformance tests ask of the API itself, by raw requests in process: watches, lists in pages,
//! field validation, definitions, discovery, namespaces.

mod common;

use std::collections::BTreeSet;

use common::world;
use proa_apiserver::User;
use proa_store::Revision;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const BOATS: &str = "/apis/example.com/v1/namespaces/default/boats";

fn admin() -> User {
    User::new("admin", &["system:masters"])
}

fn map(name: &str, value: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"value": value}}, "data": {"k": value}})
}

/// A definition of boats whose `spec` has these properties.
fn boats(properties: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "boats.example.com", "labels": {"test": "boats"}},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "boats", "kind": "Boat"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "selectableFields": [{"jsonPath": ".spec.hull"}],
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": properties},
                }}},
            }],
        },
    })
}

fn boat(name: &str, hull: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"hull": hull}})
}

fn hull() -> Value {
    json!({"hull": {"type": "string"}})
}

#[tokio::test]
async fn a_definition_that_was_answered_is_served() {
    let world = world().await;
    world.ok("POST", DEFINITIONS, &boats(hull())).await;
    world.ok("POST", BOATS, &boat("proa", "slim")).await;
    let found = world.get("/apis/example.com/v1").await;
    assert_eq!(found["resources"][0]["name"], "boats", "{found}");
    let definition = world
        .until(&format!("{DEFINITIONS}/boats.example.com"), |_, now| {
            now["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Established")
        })
        .await;
    assert_eq!(definition["status"]["storedVersions"], json!(["v1"]));
}

#[tokio::test]
async fn objects_stored_before_a_default_was_made_are_read_with_it() {
    let world = world().await;
    world.ok("POST", DEFINITIONS, &boats(hull())).await;
    world.ok("POST", BOATS, &boat("old", "slim")).await;
    let uri = format!("{DEFINITIONS}/boats.example.com");
    let defaulting = boats(json!({"hull": {"type": "string"}, "sails": {"type": "integer", "default": 2}}));
    world.ok("PATCH", &uri, &json!({"spec": defaulting["spec"]})).await;
    assert_eq!(world.get(&format!("{BOATS}/old")).await["spec"]["sails"], 2);
    assert_eq!(world.get(BOATS).await["items"][0]["spec"]["sails"], 2);
    let mut events = world.watch(&format!("{BOATS}?watch=1")).await;
    assert_eq!(events.next().await.unwrap()["object"]["spec"]["sails"], 2);
    // What was stored with it keeps it when the default goes.
    world.ok("POST", BOATS, &boat("new", "slim")).await;
    let without = boats(json!({"hull": {"type": "string"}, "sails": {"type": "integer"}}));
    world.ok("PATCH", &uri, &json!({"spec": without["spec"]})).await;
    assert!(world.get(&format!("{BOATS}/old")).await["spec"]["sails"].is_null());
    assert_eq!(world.get(&format!("{BOATS}/new")).await["spec"]["sails"], 2);
}

#[tokio::test]
async fn a_watch_on_definitions_observes_create_modify_and_delete() {
    let world = world().await;
    let mut events = world.watch(&format!("{DEFINITIONS}?watch=1&labelSelector=test%3Dboats")).await;
    world.ok("POST", DEFINITIONS, &boats(hull())).await;
    let uri = format!("{DEFINITIONS}/boats.example.com");
    world.ok("PATCH", &uri, &json!({"metadata": {"annotations": {"a": "b"}}})).await;
    world.ok("DELETE", &format!("{DEFINITIONS}?labelSelector=test%3Dboats"), &Value::Null).await;
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last| last != "DELETED") {
        seen.push(events.what().await.0);
    }
    assert_eq!(seen[0], "ADDED");
    assert!(seen.contains(&"MODIFIED".to_owned()), "{seen:?}");
    world.until(BOATS, |status, _| status == 404).await;
}

#[tokio::test]
async fn selectable_fields_narrow_lists_and_watches_of_custom_resources() {
    let world = world().await;
    world.ok("POST", DEFINITIONS, &boats(hull())).await;
    for (name, hull) in [("a", "slim"), ("b", "wide"), ("c", "slim")] {
        world.ok("POST", BOATS, &boat(name, hull)).await;
    }
    let list = world.get(&format!("{BOATS}?fieldSelector=spec.hull%3Dslim")).await;
    let names: Vec<&str> =
        list["items"].as_array().unwrap().iter().map(|boat| boat["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "c"]);
    let mut events = world.watch(&format!("{BOATS}?watch=1&fieldSelector=spec.hull%3Dwide")).await;
    assert_eq!(events.what().await, ("ADDED".into(), "b".into()));
    world.ok("PATCH", &format!("{BOATS}/a"), &json!({"spec": {"hull": "wide"}})).await;
    assert_eq!(events.what().await, ("ADDED".into(), "a".into()));
    world.ok("PATCH", &format!("{BOATS}/b"), &json!({"spec": {"hull": "slim"}})).await;
    assert_eq!(events.what().await, ("DELETED".into(), "b".into()));
    let (status, error) = world.call("GET", &format!("{BOATS}?fieldSelector=spec.sails%3D1"), &Value::Null).await;
    assert_eq!((status, error["message"].as_str()), (400, Some("field label not supported: spec.sails")));
}

#[tokio::test]
async fn published_openapi_follows_the_definition() {
    let world = world().await;
    let mut definition = boats(hull());
    let mut second = definition["spec"]["versions"][0].clone();
    (second["name"], second["storage"]) = ("v2".into(), false.into());
    definition["spec"]["versions"].as_array_mut().unwrap().push(second);
    world.ok("POST", DEFINITIONS, &definition).await;
    let v1 = world.get("/openapi/v3/apis/example.com/v1").await;
    assert!(v1["components"]["schemas"]["com.example.v1.Boat"]["properties"]["spec"].is_object(), "{v1}");
    let one = "/apis/example.com/v1/namespaces/{namespace}/boats/{name}";
    let patches = v1["paths"][one]["patch"]["requestBody"]["content"].as_object().expect("patches").clone();
    assert!(patches.contains_key("application/merge-patch+json"));
    assert!(!patches.contains_key("application/strategic-merge-patch+json"), "kubectl would send what is refused");
    assert_eq!(world.call("GET", "/openapi/v3/apis/example.com/v2", &Value::Null).await.0, 200);
    let stop = json!([{"op": "replace", "path": "/spec/versions/1/served", "value": false}]).to_string().into_bytes();
    let json_patch = [("content-type", "application/json-patch+json")];
    let uri = format!("{DEFINITIONS}/boats.example.com");
    assert_eq!(world.call_as(admin(), "PATCH", &uri, &json_patch, stop).await.0, 200);
    world.until("/openapi/v3/apis/example.com/v2", |status, _| status == 404).await;
    assert!(world.get("/openapi/v3").await["paths"]["apis/example.com/v1"].is_object());
}

#[tokio::test]
async fn strict_validation_names_unknown_and_duplicate_fields_wherever_they_are() {
    let world = world().await;
    let template =
        json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true});
    let properties = json!({"hull": {"type": "string"}, "cargo": template, "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    world.ok("POST", DEFINITIONS, &boats(properties)).await;
    let cargo = |metadata: &str| {
        format!(
            r#"{{"metadata":{{"name":"a"}},"spec":{{"cargo":{{"apiVersion":"v1","kind":"Pod","metadata":{{{metadata}}}}}}}}}"#
        )
    };
    for (uri, body, expected) in [
        (MAPS, r#"{"metadata":{"name":"a","unknownMeta":1}}"#.to_owned(), "unknown field \"metadata.unknownMeta\""),
        (MAPS, r#"{"metadata":{"name":"a"},"data":{"a":"b"},"data":{"a":"c"}}"#.to_owned(), "duplicate field \"data\""),
        (BOATS, r#"{"metadata":{"name":"a","unknownMeta":1}}"#.to_owned(), "unknown field \"metadata.unknownMeta\""),
        (BOATS, r#"{"metadata":{"name":"a"},"spec":{"hul":"x"}}"#.to_owned(), "unknown field \"spec.hul\""),
        (
            BOATS,
            r#"{"metadata":{"name":"a"},"spec":{"any":{"x":1,"x":2}}}"#.to_owned(),
            "duplicate field \"spec.any.x\"",
        ),
        (BOATS, cargo(r#""name":"x","unknownSub":1"#), "unknown field \"spec.cargo.metadata.unknownSub\""),
    ] {
        let (status, error) =
            world.call_as(admin(), "POST", &format!("{uri}?fieldValidation=Strict"), &[], body.clone().into()).await;
        assert_eq!(status, 400, "{body}: {error}");
        assert!(error["message"].as_str().unwrap().contains(expected), "{body}: {error}");
    }
    let kept = r#"{"metadata":{"name":"a"},"spec":{"any":{"x":1}}}"#;
    world.call_as(admin(), "POST", &format!("{BOATS}?fieldValidation=Strict"), &[], kept.into()).await;
    assert_eq!(world.get(&format!("{BOATS}/a")).await["spec"]["any"], json!({"x": 1}));
}

#[tokio::test]
async fn custom_resources_may_carry_finalizers_without_a_domain() {
    let world = world().await;
    world.ok("POST", DEFINITIONS, &boats(hull())).await;
    let with = |mut object: Value| {
        object["metadata"]["finalizers"] = json!(["finalizers.fluxcd.io"]);
        object
    };
    world.ok("POST", BOATS, &with(boat("a", "slim"))).await;
    let (status, error) = world.call("POST", MAPS, &with(map("a", "1"))).await;
    assert_eq!((status, error["details"]["causes"][0]["field"].as_str()), (422, Some("metadata.finalizers[0]")));
}

#[tokio::test]
async fn concurrent_watches_observe_the_same_order() {
    let world = world().await;
    let start = world.get(MAPS).await["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let uri = format!("{MAPS}?watch=1&resourceVersion={start}");
    let mut first = world.watch(&uri).await;
    let writes = (0..40).map(|at| {
        let world = &world;
        async move {
            world.ok("POST", MAPS, &map(&format!("m{at}"), "x")).await;
            world.ok("DELETE", &format!("{MAPS}/m{at}"), &Value::Null).await;
        }
    });
    futures::future::join_all(writes).await;
    let version = |event: Value| event["object"]["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut versions = Vec::new();
    for _ in 0..80 {
        versions.push(version(first.next().await.unwrap()));
    }
    // A watch from any event on sees exactly what the first saw after it.
    for at in [0, 17, 55] {
        let mut other = world.watch(&format!("{MAPS}?watch=1&resourceVersion={}", versions[at])).await;
        for expected in &versions[at + 1..] {
            assert_eq!(version(other.next().await.unwrap()), *expected);
        }
    }
}

#[tokio::test]
async fn a_page_whose_revision_is_gone_can_go_on_inconsistently() {
    let world = world().await;
    for at in 0..5 {
        world.ok("POST", MAPS, &map(&format!("m{at}"), "x")).await;
    }
    let selected = format!("{MAPS}?limit=2&labelSelector=value%3Dx");
    let page = world.get(&selected).await;
    let token = page["metadata"]["continue"].as_str().unwrap().to_owned();
    world.ok("POST", MAPS, &map("m5", "x")).await;
    let now = world.log.revision();
    world.log.compact(Revision(now.0)).await.unwrap();
    let (status, error) = world.call("GET", &format!("{selected}&continue={token}"), &Value::Null).await;
    assert_eq!((status, error["reason"].as_str()), (410, Some("Expired")), "{error}");
    let mut token = error["metadata"]["continue"].as_str().expect("where to go on").to_owned();
    let mut names = Vec::new();
    while !token.is_empty() {
        let page = world.get(&format!("{selected}&continue={token}")).await;
        let items = page["items"].as_array().unwrap();
        names.extend(items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()));
        token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
    }
    assert_eq!(names, ["m2", "m3", "m4", "m5"]);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector_and_preconditions_hold() {
    let world = world().await;
    for (name, value) in [("a", "1"), ("b", "2"), ("c", "1")] {
        world.ok("POST", MAPS, &map(name, value)).await;
    }
    world.ok("DELETE", &format!("{MAPS}?labelSelector=value%3D1"), &Value::Null).await;
    assert_eq!(world.get(&format!("{MAPS}?labelSelector=value")).await["items"].as_array().unwrap().len(), 1);
    let wrong = json!({"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}});
    let (status, error) = world.call("DELETE", &format!("{MAPS}/b"), &wrong).await;
    assert_eq!((status, error["reason"].as_str()), (409, Some("Conflict")));
    assert_eq!(world.call("GET", &format!("{MAPS}/b"), &Value::Null).await.0, 200);
}

#[tokio::test]
async fn a_namespace_takes_updates_patches_and_finalizers_and_nothing_new_while_it_ends() {
    let world = world().await;
    let mut space = world.ok("POST", "/api/v1/namespaces", &json!({"metadata": {"name": "team"}})).await;
    assert_eq!(space["status"]["phase"], "Active");
    assert_eq!(space["metadata"]["labels"]["kubernetes.io/metadata.name"], "team");
    space["metadata"]["labels"]["updated"] = "yes".into();
    space = world.ok("PUT", "/api/v1/namespaces/team", &space).await;
    space["spec"]["finalizers"] = json!(["kubernetes", "e2e.example.com/fake"]);
    space = world.ok("PUT", "/api/v1/namespaces/team/finalize", &space).await;
    assert_eq!(space["spec"]["finalizers"].as_array().unwrap().len(), 2);
    let condition = json!({"status": {"conditions": [{"type": "StatusPatched", "status": "True"}]}});
    let patched = world.ok("PATCH", "/api/v1/namespaces/team/status", &condition).await;
    assert_eq!(patched["status"]["conditions"][0]["type"], "StatusPatched");
    world.ok("DELETE", "/api/v1/namespaces/team", &Value::Null).await;
    assert_eq!(world.get("/api/v1/namespaces/team").await["status"]["phase"], "Terminating");
    let (status, error) = world.call("POST", "/api/v1/namespaces/team/configmaps", &map("late", "1")).await;
    assert_eq!(status, 403);
    assert_eq!(error["details"]["causes"][0]["reason"], "NamespaceTerminating", "{error}");
    let empty = json!({"metadata": {"name": "team"}, "spec": {"finalizers": []}});
    world.ok("PUT", "/api/v1/namespaces/team/finalize", &empty).await;
    assert_eq!(world.call("GET", "/api/v1/namespaces/team", &Value::Null).await.0, 404);
}

#[tokio::test]
async fn discovery_prefers_a_version_of_each_group_and_lists_its_resources() {
    let world = world().await;
    let groups = world.get("/apis").await["groups"].as_array().unwrap().clone();
    assert!(groups.len() >= 20, "{groups:?}");
    for group in groups {
        let preferred = group["preferredVersion"]["groupVersion"].as_str().unwrap().to_owned();
        assert!(
            group["versions"].as_array().unwrap().iter().any(|version| version["groupVersion"] == preferred.as_str())
        );
        let list = world.get(&format!("/apis/{preferred}")).await;
        assert_eq!(list["groupVersion"], preferred.as_str());
        assert!(!list["resources"].as_array().unwrap().is_empty(), "{preferred}");
    }
    let version = world.get("/version").await;
    for part in ["major", "minor"] {
        assert!(version[part].as_str().unwrap().bytes().all(|byte| byte.is_ascii_digit()), "{version}");
    }
}

/// Every kind that is generally available in Kubernetes 1.36: what kubectl calls it and where it lives.
const GENERALLY_AVAILABLE: &[(&str, &str)] = &[
    (
        "api/v1",
        "bindings/ns componentstatuses//cs configmaps/ns/cm endpoints/ns/ep events/ns/ev limitranges/ns/limits namespaces//ns
         nodes//no persistentvolumeclaims/ns/pvc persistentvolumes//pv pods/ns/po podtemplates/ns
         replicationcontrollers/ns/rc resourcequotas/ns/quota secrets/ns serviceaccounts/ns/sa services/ns/svc",
    ),
    ("apis/apps/v1", "controllerrevisions/ns daemonsets/ns/ds deployments/ns/deploy replicasets/ns/rs statefulsets/ns/sts"),
    ("apis/batch/v1", "cronjobs/ns/cj jobs/ns"),
    ("apis/autoscaling/v1", "horizontalpodautoscalers/ns/hpa"),
    ("apis/autoscaling/v2", "horizontalpodautoscalers/ns/hpa"),
    ("apis/policy/v1", "poddisruptionbudgets/ns/pdb"),
    (
        "apis/networking.k8s.io/v1",
        "ingressclasses ingresses/ns/ing ipaddresses//ip networkpolicies/ns/netpol servicecidrs",
    ),
    ("apis/discovery.k8s.io/v1", "endpointslices/ns"),
    ("apis/events.k8s.io/v1", "events/ns/ev"),
    ("apis/coordination.k8s.io/v1", "leases/ns"),
    ("apis/node.k8s.io/v1", "runtimeclasses"),
    ("apis/rbac.authorization.k8s.io/v1", "clusterrolebindings clusterroles rolebindings/ns roles/ns"),
    ("apis/scheduling.k8s.io/v1", "priorityclasses//pc"),
    (
        "apis/storage.k8s.io/v1",
        "csidrivers csinodes csistoragecapacities/ns storageclasses//sc volumeattachments volumeattributesclasses//vac",
    ),
    ("apis/resource.k8s.io/v1", "deviceclasses resourceclaims/ns resourceclaimtemplates/ns resourceslices"),
    ("apis/flowcontrol.apiserver.k8s.io/v1", "flowschemas prioritylevelconfigurations"),
    ("apis/certificates.k8s.io/v1", "certificatesigningrequests//csr"),
    ("apis/authentication.k8s.io/v1", "selfsubjectreviews tokenreviews"),
    (
        "apis/authorization.k8s.io/v1",
        "localsubjectaccessreviews/ns selfsubjectaccessreviews selfsubjectrulesreviews subjectaccessreviews",
    ),
    (
        "apis/admissionregistration.k8s.io/v1",
        "mutatingadmissionpolicies mutatingadmissionpolicybindings mutatingwebhookconfigurations validatingadmissionpolicies
         validatingadmissionpolicybindings validatingwebhookconfigurations",
    ),
    ("apis/apiextensions.k8s.io/v1", "customresourcedefinitions//crd,crds"),
    ("apis/apiregistration.k8s.io/v1", "apiservices"),
];

#[tokio::test]
async fn every_generally_available_kind_is_discovered_under_its_names() {
    let world = world().await;
    for (path, expected) in GENERALLY_AVAILABLE {
        let list = world.get(&format!("/{path}")).await;
        let found = list["resources"].as_array().unwrap().iter();
        let found = found.filter(|resource| !resource["name"].as_str().unwrap().contains('/')).map(|resource| {
            let names: Vec<&str> =
                resource["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let place = if resource["namespaced"] == true { "ns" } else { "" };
            format!("{}/{place}/{}", resource["name"].as_str().unwrap(), names.join(","))
                .trim_end_matches('/')
                .to_owned()
        });
        let found: BTreeSet<String> = found.collect();
        assert_eq!(found, expected.split_whitespace().map(str::to_owned).collect(), "{path}");
    }
}

#[tokio::test]
async fn openapi_v2_holds_every_definition_it_refers_to() {
    let world = world().await;
    world.ok("POST", DEFINITIONS, &boats(hull())).await;
    let document = world.get("/openapi/v2").await;
    let definitions = document["definitions"].as_object().unwrap();
    let text = document.to_string();
    let mut references = 0;
    for piece in text.split("\"#/definitions/").skip(1) {
        let name = piece.split('"').next().unwrap();
        assert!(definitions.contains_key(name), "{name} is referred to and missing");
        references += 1;
    }
    assert!(references > 1_000 && !text.contains("#/components/"), "{references}");
    let kind = json!([{"group": "example.com", "version": "v1", "kind": "Boat"}]);
    assert_eq!(definitions["com.example.v1.Boat"]["x-kubernetes-group-version-kind"], kind);
    assert_eq!(definitions["com.example.v1.Boat"]["properties"]["spec"]["properties"], hull());
    assert!(document["paths"]["/apis/example.com/v1/namespaces/{namespace}/boats/{name}"]["patch"].is_object());
}

#[tokio::test]
async fn what_has_no_metadata_has_no_table() {
    let world = world().await;
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let body = json!({"spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}}).to_string();
    let (status, error) = world.call_as(admin(), "POST", review, &table, body.into_bytes()).await;
    assert_eq!((status, error["reason"].as_str()), (406, Some("NotAcceptable")));
    let (status, table) = world.call_as(admin(), "GET", "/api/v1/nodes", &table, Vec::new()).await;
    assert_eq!((status, table["kind"].as_str()), (200, Some("Table")));
}

#[tokio::test]
async fn only_a_node_itself_says_by_which_certificate_it_is_known() {
    let world = world().await;
    let node = |pin: &str| {
        let annotations = json!({"proa.dev/serving-certificate": pin});
        json!({"metadata": {"name": "a", "annotations": annotations}}).to_string().into_bytes()
    };
    let itself = || User::new("system:node:a", &["system:nodes"]);
    let other = || User::new("system:node:b", &["system:nodes"]);
    let controller = || User::new("system:serviceaccount:kube-system:node-controller", &["system:serviceaccounts"]);
    assert_eq!(world.call_as(other(), "POST", "/api/v1/nodes", &[], node("00")).await.0, 403);
    assert_eq!(world.call_as(itself(), "POST", "/api/v1/nodes", &[], node("00")).await.0, 201);
    let merge = [("content-type", "application/merge-patch+json")];
    for (user, code) in [(itself(), 200), (other(), 403), (controller(), 403), (admin(), 200)] {
        let pin = uuid::Uuid::new_v4().to_string();
        let (status, answer) = world.call_as(user.clone(), "PATCH", "/api/v1/nodes/a", &merge, node(&pin)).await;
        assert_eq!(status, code, "{}: {answer}", user.name);
    }
}
