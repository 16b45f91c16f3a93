//! What a write may be, and what it does, beyond the verbs' usual way: subresources, definitions, limits, restarts.

mod common;

use std::sync::atomic::Ordering::SeqCst;

use common::{World, world};
use proa_apiserver::User;
use proa_store::Revision;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const PODS: &str = "/api/v1/namespaces/default/pods";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const APPLY: [(&str, &str); 1] = [("content-type", "application/apply-patch+yaml")];

fn admin() -> User {
    User::new("admin", &["system:masters"])
}

/// A definition of `<plural>.example.com` whose `spec` holds anything.
fn definition(plural: &str, kind: &str) -> Value {
    let spec = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}});
    json!({
        "metadata": {"name": format!("{plural}.example.com")},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": plural, "kind": kind},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}],
        },
    })
}

fn of(plural: &str) -> String {
    format!("/apis/example.com/v1/namespaces/default/{plural}")
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn deployment(strategy: Value) -> Value {
    let labels = json!({"app": "web"});
    let template = json!({"metadata": {"labels": labels}, "spec": pod("")["spec"]});
    json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": labels}, "template": template, "strategy": strategy}})
}

async fn apply(world: &World, uri: &str, query: &str, body: &Value) -> (u16, Value) {
    world.call_as(admin(), "PATCH", &format!("{uri}?{query}"), &APPLY, body.to_string().into_bytes()).await
}

fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_writer_of_a_template_is_noted_and_nobody_else_can_write_that_note() {
    let world = world().await;
    let anna = || User::new("anna", &["system:masters"]);
    let note = |object: &Value| -> Value {
        let text = object["metadata"]["annotations"]["proa.dev/changed-by"].as_str().expect("a note");
        serde_json::from_str(text).expect("JSON")
    };
    let web = format!("{DEPLOYMENTS}/web");
    let merge = [("content-type", "application/merge-patch+json")];
    let made = world.ok("POST", DEPLOYMENTS, &deployment(json!({}))).await;
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "j"}]}}}});
    let uri = format!("{web}?fieldManager=sewing");
    let (_, changed) = world.call_as(anna(), "PATCH", &uri, &merge, image.to_string().into_bytes()).await;
    assert_eq!((&note(&changed)["user"], &note(&changed)["manager"]), (&json!("anna"), &json!("sewing")));
    assert_ne!(note(&made)["user"], "anna");
    let forged = json!({"metadata": {"annotations": {"proa.dev/changed-by": "{}"}}, "spec": {"replicas": 3}});
    let (_, kept) = world.call_as(admin(), "PATCH", &web, &merge, forged.to_string().into_bytes()).await;
    assert_eq!((note(&kept), &kept["spec"]["replicas"]), (note(&changed), &json!(3)), "the template is anna's still");
    // An undo says which revision it meant; its loop takes that out again.
    let named = |digest: Value| json!({"spec": {"template": {"metadata": {"annotations": {"proa.dev/configuration": digest}}}}});
    let berta = User::new("berta", &["system:masters"]);
    let (_, undone) = world.call_as(berta, "PATCH", &web, &merge, named(json!("x")).to_string().into_bytes()).await;
    assert_eq!(note(&undone)["user"], "berta");
    let (_, followed) =
        world.call_as(admin(), "PATCH", &web, &merge, named(Value::Null).to_string().into_bytes()).await;
    assert_eq!(followed["spec"]["template"]["metadata"]["annotations"].get("proa.dev/configuration"), None);
    assert_eq!(note(&followed), note(&undone), "it was berta who undid");
}

#[tokio::test]
async fn what_no_client_could_decode_is_not_stored() {
    let world = world().await;
    let surge = json!({"rollingUpdate": {"maxSurge": 4_294_967_296_i64}});
    let (status, error) = world.call("POST", DEPLOYMENTS, &deployment(surge)).await;
    assert_eq!(status, 400, "{error}");
    assert!(error["message"].as_str().unwrap().contains("of type int32: 4294967296"), "{error}");
    let mut odd = pod("odd");
    odd["metadata"]["finalizers"] = json!([null]);
    assert_eq!(world.call("POST", PODS, &odd).await.0, 422);
    let divisor = json!({"resourceFieldRef": {"resource": "limits.cpu", "divisor": 1}});
    let container = json!({"name": "c", "image": "i", "args": [null], "env": [{"name": "A", "valueFrom": divisor}]});
    odd = json!({"metadata": {"name": "odd"}, "spec": {"containers": [container]}});
    let stored = world.ok("POST", PODS, &odd).await;
    let container = &stored["spec"]["containers"][0];
    assert_eq!(
        (&container["args"], &container["env"][0]["valueFrom"]["resourceFieldRef"]["divisor"]),
        (&json!([""]), &json!("1"))
    );
    // Go reads a fraction in YAML and not in JSON.
    let text = |value: &str| format!(r#"{{"metadata":{{"name":"web"}},"spec":{{"replicas":{value}}}}}"#).into_bytes();
    world.ok("POST", DEPLOYMENTS, &deployment(json!({}))).await;
    let uri = format!("{DEPLOYMENTS}/web");
    assert_eq!(world.call_as(admin(), "PATCH", &uri, &[], text("3.0")).await.0, 400);
    let yaml = format!("apiVersion: apps/v1\nkind: Deployment\n{}", "metadata: {name: web}\nspec: {replicas: 3.0}\n");
    let applied =
        world.call_as(admin(), "PATCH", &format!("{uri}?fieldManager=a&force=true"), &APPLY, yaml.into_bytes()).await;
    assert_eq!((applied.0, applied.1["spec"]["replicas"].as_i64()), (200, Some(3)), "{}", applied.1);
}

#[tokio::test]
async fn a_watch_from_before_a_restart_hears_of_a_deletion_or_has_to_list_again() {
    let world = world().await;
    let made = world.ok("POST", SECRETS, &json!({"metadata": {"name": "last"}})).await;
    world.ok("DELETE", &format!("{SECRETS}/last"), &Value::Null).await;
    let world = world.restarted().await;
    let mut events = world.watch(&format!("{SECRETS}?watch=1&resourceVersion={}", version(&made))).await;
    let event = events.next().await.unwrap();
    assert_eq!((&event["type"], event["object"]["code"].as_u64()), (&json!("ERROR"), Some(410)), "{event}");
    assert_eq!(event["object"]["reason"], "Expired");
    assert!(events.next().await.is_none(), "the watch is over");
}

#[tokio::test]
async fn a_scale_is_a_scale_and_its_replicas_have_owners() {
    let world = world().await;
    let mut web = deployment(json!({}));
    web["spec"]["replicas"] = 2.into();
    world.ok("POST", DEPLOYMENTS, &web).await;
    let uri = format!("{DEPLOYMENTS}/web/scale");
    let scale = |replicas: Value| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": replicas}});
    let with = |field: &str, value: Value| {
        let mut scale = scale(json!(1));
        scale[field] = value;
        scale
    };
    for (what, body, code) in [
        ("nothing", json!({}), 422),
        ("another kind", with("kind", json!("Deployment")), 400),
        ("another group", with("apiVersion", json!("apps/v1")), 400),
        ("another name", with("metadata", json!({"name": "other"})), 400),
        ("another object", with("metadata", json!({"uid": "other"})), 409),
        ("too many", scale(json!(4_294_967_296_i64)), 400),
        ("a text", scale(json!("2")), 400),
        ("too few", scale(json!(-1)), 422),
    ] {
        let (status, error) = world.call("PUT", &uri, &body).await;
        assert_eq!(status, code, "{what}: {error}");
    }
    assert_eq!(world.get(&uri).await["spec"]["replicas"], 2);
    assert_eq!(world.ok("PATCH", &uri, &json!({"spec": {"replicas": 4}})).await["spec"]["replicas"], 4);
    assert_eq!(world.ok("PUT", &uri, &json!({"spec": {}})).await["spec"], json!({}), "zero, as Go's clients say it");
    let (status, refused) = apply(&world, &uri, "fieldManager=hpa", &scale(json!(7))).await;
    assert_eq!((status, &refused["reason"]), (409, &json!("Conflict")), "{refused}");
    assert_eq!(apply(&world, &uri, "fieldManager=hpa&force=true", &scale(json!(7))).await.0, 200);
    let web = world.get(&format!("{DEPLOYMENTS}/web")).await;
    assert_eq!(web["spec"]["replicas"], 7);
    let owner = |entry: &&Value| entry["fieldsV1"].pointer("/f:spec/f:replicas").is_some();
    let owners: Vec<&Value> = web["metadata"]["managedFields"].as_array().unwrap().iter().filter(owner).collect();
    let [entry] = owners[..] else { panic!("{owners:?}") };
    assert_eq!(
        json!([entry["manager"], entry["operation"], entry["apiVersion"], entry["subresource"]]),
        json!(["hpa", "Apply", "apps/v1", "scale"])
    );
}

#[tokio::test]
async fn bodies_of_subresources_are_held_to_their_schema() {
    let world = world().await;
    world.ok("POST", PODS, &pod("p")).await;
    world.ok("POST", "/api/v1/namespaces", &json!({"metadata": {"name": "team"}})).await;
    let finalize = |finalizers: Value| json!({"metadata": {"name": "team"}, "spec": {"finalizers": finalizers}});
    let (binding, eviction) = (format!("{PODS}/p/binding"), format!("{PODS}/p/eviction"));
    for (method, uri, body, code) in [
        ("PUT", "/api/v1/namespaces/team/finalize", finalize(json!([3])), 400),
        ("PUT", "/api/v1/namespaces/team/finalize", finalize(json!([null])), 422),
        ("PUT", "/api/v1/namespaces/team/finalize", finalize(json!(["mine"])), 422),
        ("POST", &binding, json!({"kind": "Pod", "target": {"name": "n"}}), 400),
        ("POST", &binding, json!({"target": {"name": 1}}), 400),
        ("POST", &binding, json!({"target": {}}), 422),
        ("POST", &binding, json!({"metadata": {"annotations": {"a": 1}}, "target": {"name": "n"}}), 400),
        ("POST", &binding, json!({"metadata": {"annotations": {"/": "x"}}, "target": {"name": "n"}}), 422),
        ("POST", &eviction, json!({"kind": "Scale"}), 400),
        ("POST", &eviction, json!({"deleteOptions": {"gracePeriodSeconds": "1"}}), 400),
    ] {
        let (status, error) = world.call(method, uri, &body).await;
        assert_eq!(status, code, "{uri} {body}: {error}");
    }
    assert!(world.get(&format!("{PODS}/p")).await["spec"]["nodeName"].is_null());
    assert_eq!(world.get("/api/v1/namespaces/team").await["spec"]["finalizers"], json!(["kubernetes"]));
}

#[tokio::test]
async fn patches_grow_an_object_only_so_far() {
    let world = world().await;
    world.ok("POST", DEFINITIONS, &definition("boats", "Boat")).await;
    world.ok("POST", &of("boats"), &json!({"metadata": {"name": "a"}, "spec": {"one": "x".repeat(900_000)}})).await;
    let uri = format!("{}/a", of("boats"));
    let (status, error) = world.call("PATCH", &uri, &json!({"spec": {"two": "x".repeat(900_000)}})).await;
    assert_eq!((status, &error["reason"]), (413, &json!("RequestEntityTooLarge")), "{error}");
    assert!(world.get(&uri).await["spec"]["two"].is_null());
    world.ok("DELETE", &uri, &Value::Null).await;
}

/// No clock: what the writer does after the answer must find the definition as it wrote it, at the first try.
#[tokio::test]
async fn a_definition_is_served_as_it_is_when_its_writer_is_answered() {
    let world = world().await;
    let round = |n: usize| {
        let world = &world;
        async move {
            let plural = format!("boats{n}");
            let mut boats = definition(&plural, &format!("Boat{n}"));
            world.ok("POST", DEFINITIONS, &boats).await;
            world.ok("POST", &of(&plural), &json!({"metadata": {"name": "a"}})).await;
            let mut second = boats["spec"]["versions"][0].take();
            (second["name"], second["storage"]) = ("v2".into(), false.into());
            boats = definition(&plural, &format!("Boat{n}"));
            boats["spec"]["versions"].as_array_mut().unwrap().push(second);
            world.ok("PATCH", &format!("{DEFINITIONS}/{plural}.example.com"), &json!({"spec": boats["spec"]})).await;
            assert_eq!(world.get(&of(&plural).replace("v1", "v2")).await["items"][0]["apiVersion"], "example.com/v2");
            let listed = world.get("/apis/example.com/v2").await;
            assert!(listed["resources"].as_array().unwrap().iter().any(|found| found["name"] == plural.as_str()));
        }
    };
    futures::future::join_all((0..20).map(round)).await;
}

#[tokio::test]
async fn a_definition_takes_its_instances_with_it() {
    let world = world().await;
    let (uri, boats) = (format!("{DEFINITIONS}/boats.example.com"), of("boats"));
    world.ok("POST", DEFINITIONS, &definition("boats", "Boat")).await;
    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    world.ok("POST", &boats, &held).await;
    world.ok("POST", &boats, &json!({"metadata": {"name": "free"}})).await;
    world.ok("DELETE", &uri, &Value::Null).await;
    let (status, error) = world.call("POST", &boats, &json!({"metadata": {"name": "late"}})).await;
    assert_eq!((status, &error["reason"]), (405, &json!("MethodNotAllowed")), "{error}");
    assert_eq!(error["message"], "create not allowed while custom resource definition is terminating");
    world.until(&format!("{boats}/free"), |status, _| status == 404).await;
    assert!(world.get(&uri).await["metadata"]["deletionTimestamp"].is_string(), "the held one holds it");
    world.ok("PATCH", &format!("{boats}/held"), &json!({"metadata": {"finalizers": null}})).await;
    world.until(&uri, |status, _| status == 404).await;
    // Nor does one that serves no version leave any behind.
    world.ok("POST", DEFINITIONS, &definition("boats", "Boat")).await;
    assert_eq!(world.get(&boats).await["items"], json!([]));
    world.ok("POST", &boats, &json!({"metadata": {"name": "hidden"}})).await;
    let unserved = json!([{"op": "replace", "path": "/spec/versions/0/served", "value": false}]).to_string();
    let json_patch = [("content-type", "application/json-patch+json")];
    assert_eq!(world.call_as(admin(), "PATCH", &uri, &json_patch, unserved.into_bytes()).await.0, 200);
    assert_eq!(world.call("GET", &boats, &Value::Null).await.0, 404);
    world.ok("DELETE", &uri, &Value::Null).await;
    world.until(&uri, |status, _| status == 404).await;
    world.ok("POST", DEFINITIONS, &definition("boats", "Boat")).await;
    assert_eq!(world.get(&boats).await["items"], json!([]));
}

#[tokio::test]
async fn a_put_says_which_state_it_replaces_where_kubernetes_asks_it_to() {
    let world = world().await;
    world.ok("POST", DEFINITIONS, &definition("boats", "Boat")).await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let object = |n: i32| json!({"metadata": {"name": "a", "labels": {"n": n.to_string()}}});
    for (collection, resource) in [(of("boats").as_str(), "boats.example.com"), (leases, "leases.coordination.k8s.io")]
    {
        let uri = format!("{collection}/a");
        let made = world.ok("POST", collection, &object(1)).await;
        let (status, error) = world.call("PUT", &uri, &object(2)).await;
        assert_eq!(status, 422, "{error}");
        assert_eq!(
            error["message"],
            format!(
                "{resource} \"a\" is invalid: metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"
            )
        );
        let mut named = object(2);
        named["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"].clone();
        world.ok("PUT", &uri, &named).await;
        assert_eq!(world.call("PUT", &format!("{collection}/none"), &named).await.0, 400, "another name");
    }
    assert_eq!(
        world.call("PUT", &format!("{}/none", of("boats")), &json!({"metadata": {"name": "none"}})).await.0,
        404
    );
    world.ok("PUT", &format!("{leases}/new"), &json!({"metadata": {"name": "new"}})).await;
    world.ok("POST", MAPS, &object(1)).await;
    world.ok("PUT", &format!("{MAPS}/a"), &object(2)).await;
}

#[tokio::test]
async fn a_deleted_collection_is_answered_with_what_it_held() {
    let world = world().await;
    let map = |n: usize| json!({"metadata": {"name": format!("m{n:03}"), "labels": {"of": "many"}}});
    futures::future::join_all((0..150).map(|n| {
        let (world, map) = (&world, map(n));
        async move { world.ok("POST", MAPS, &map).await }
    }))
    .await;
    let held = json!({"metadata": {"name": "held", "labels": {"of": "many"}, "finalizers": ["example.com/hold"]}});
    world.ok("POST", MAPS, &held).await;
    let uri = format!("{MAPS}?labelSelector=of%3Dmany");
    world.most_commits.store(0, SeqCst);
    let deleted = world.ok("DELETE", &uri, &Value::Null).await;
    assert!(world.most_commits.load(SeqCst) > 32, "one by one, each would wait for the disk");
    assert_eq!((&deleted["kind"], deleted["items"].as_array().unwrap().len()), (&json!("ConfigMapList"), 151));
    let left = world.get(&uri).await;
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    assert_eq!(left["items"][0]["metadata"]["name"], "held");
}

#[tokio::test]
async fn a_pod_waits_for_the_account_of_the_namespace_it_came_with() {
    let world = world().await;
    let account = async {
        world.ok("POST", "/api/v1/namespaces", &json!({"metadata": {"name": "team"}})).await;
        // What a controller does a moment later.
        world.ok("POST", "/api/v1/namespaces/team/serviceaccounts", &json!({"metadata": {"name": "default"}})).await
    };
    let bare = async {
        world.until("/api/v1/namespaces/team", |status, _| status == 200).await;
        world.ok("POST", "/api/v1/namespaces/team/pods", &pod("p")).await
    };
    let (bare, _) = tokio::join!(bare, account);
    assert_eq!(bare["spec"]["serviceAccountName"], "default");
    let mut other = pod("q");
    other["spec"]["serviceAccountName"] = "nobody".into();
    assert_eq!(world.call("POST", "/api/v1/namespaces/team/pods", &other).await.0, 403);
}

#[tokio::test]
async fn wrong_options_are_named_as_kubernetes_names_them() {
    let world = world().await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let (one, long) = (format!("{MAPS}/a"), "x".repeat(129));
    for (method, uri, headers, kind, field) in [
        ("PATCH", one.clone(), &APPLY[..], "PatchOptions", "fieldManager"),
        ("PATCH", format!("{one}?force=true"), &[], "PatchOptions", "force"),
        ("POST", format!("{MAPS}?fieldManager={long}"), &[], "CreateOptions", "fieldManager"),
        ("PUT", format!("{one}?dryRun=Some"), &[], "UpdateOptions", "dryRun"),
        ("POST", format!("{MAPS}?fieldValidation=Some"), &[], "CreateOptions", "fieldValidation"),
        ("DELETE", format!("{one}?propagationPolicy=Some"), &[], "DeleteOptions", "propagationPolicy"),
    ] {
        let body = if method == "DELETE" { Vec::new() } else { map.to_string().into_bytes() };
        let (status, error) = world.call_as(admin(), method, &uri, headers, body).await;
        assert_eq!((status, &error["reason"]), (422, &json!("Invalid")), "{method} {uri}: {error}");
        assert_eq!(error["details"]["causes"][0]["field"], field, "{error}");
        let text = error["message"].as_str().unwrap();
        assert!(text.starts_with(&format!("{kind}.meta.k8s.io \"\" is invalid: {field}: ")), "{text}");
    }
    world.ok("POST", PODS, &pod("p")).await;
    world.ok("POST", &format!("{PODS}/p/binding"), &json!({"target": {"name": "n"}})).await;
    let going = world.ok("DELETE", &format!("{PODS}/p?gracePeriodSeconds=-5"), &Value::Null).await;
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 1, "{going}");
}

#[tokio::test]
async fn a_list_at_a_forgotten_revision_says_that_it_is_the_revision() {
    let world = world().await;
    let old = version(&world.ok("POST", MAPS, &json!({"metadata": {"name": "a"}})).await);
    world.ok("POST", MAPS, &json!({"metadata": {"name": "b"}})).await;
    world.log.compact(Revision(world.log.revision().0)).await.unwrap();
    let (status, error) =
        world.call("GET", &format!("{MAPS}?resourceVersion={old}&resourceVersionMatch=Exact"), &Value::Null).await;
    assert_eq!((status, &error["reason"]), (410, &json!("Expired")));
    assert_eq!(error["message"], "The resourceVersion for the provided list is too old.");
}
