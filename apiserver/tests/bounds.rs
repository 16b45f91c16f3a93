//! The bounds of a namespace, as a client meets them: ResourceQuota and LimitRange. What the quota controller writes is
//! written by hand here.

mod common;

use common::{World, world};
use futures::future::join_all;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";
const RANGES: &str = "/api/v1/namespaces/default/limitranges";

fn pod(name: &str, resources: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}})
}

/// A quota that the controller has taken up, nothing being used.
async fn quota(world: &World, name: &str, hard: Value) {
    let mut quota = world.ok("POST", QUOTAS, &json!({"metadata": {"name": name}, "spec": {"hard": hard}})).await;
    let none: serde_json::Map<String, Value> =
        hard.as_object().expect("a map").keys().map(|name| (name.clone(), "0".into())).collect();
    quota["status"] = json!({"hard": hard, "used": none});
    world.ok("PUT", &format!("{QUOTAS}/{name}/status"), &quota).await;
}

async fn used(world: &World, name: &str) -> Value {
    world.get(&format!("{QUOTAS}/{name}")).await["status"]["used"].clone()
}

fn message(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_let_in_than_the_quota_says_however_many_ask_at_once() {
    let world = world().await;
    quota(&world, "q", json!({"pods": "10", "requests.cpu": "4"})).await;
    let names: Vec<String> = (0..50).map(|number| format!("p{number}")).collect();
    let asking = names
        .iter()
        .map(|name| async { world.call("POST", PODS, &pod(name, json!({"requests": {"cpu": "100m"}}))).await });
    // Somebody else writes to the quota all the while.
    let meddling = async {
        let at = format!("{QUOTAS}/q");
        for number in 0..20 {
            let note = json!({"metadata": {"annotations": {"number": number.to_string()}}});
            world.ok("PATCH", &at, &note).await;
        }
    };
    let (answers, ()) = tokio::join!(join_all(asking), meddling);
    let (let_in, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|(status, _)| *status == 201);
    assert_eq!((let_in.len(), refused.len()), (10, 40), "{answers:?}");
    for (status, answer) in refused {
        assert_eq!(*status, 403, "{answer}");
        assert!(
            message(answer)
                .ends_with("is forbidden: exceeded quota: q, requested: pods=1, used: pods=10, limited: pods=10"),
            "{answer}"
        );
    }
    assert_eq!(used(&world, "q").await, json!({"pods": "10", "requests.cpu": "1"}));
    assert_eq!(world.get(PODS).await["items"].as_array().expect("a list").len(), 10);
}

/// Conformance: "ResourceQuota should create a ResourceQuota and capture the life of a pod".
#[tokio::test]
async fn a_pod_that_asks_for_more_than_is_left_is_refused_and_one_that_asks_nothing_too() {
    let world = world().await;
    quota(&world, "q", json!({"pods": "5", "requests.cpu": "1", "requests.example.com/gpu": "3"})).await;
    let asks = |cpu: &str, gpu: &str| {
        let list = json!({"cpu": cpu, "example.com/gpu": gpu});
        json!({"requests": list, "limits": {"example.com/gpu": gpu}})
    };
    world.ok("POST", PODS, &pod("a", asks("500m", "2"))).await;
    assert_eq!(used(&world, "q").await, json!({"pods": "1", "requests.cpu": "500m", "requests.example.com/gpu": "2"}));
    let (status, refused) = world.call("POST", PODS, &pod("b", asks("600m", "1"))).await;
    assert_eq!(
        (status, message(&refused)),
        (
            403,
            "pods \"b\" is forbidden: exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=500m, limited: requests.cpu=1"
        )
    );
    let (status, refused) = world.call("POST", PODS, &pod("c", asks("100m", "2"))).await;
    assert_eq!(
        (status, message(&refused)),
        (
            403,
            "pods \"c\" is forbidden: exceeded quota: q, requested: requests.example.com/gpu=2, used: requests.example.com/gpu=2, limited: requests.example.com/gpu=3"
        )
    );
    let (status, refused) = world.call("POST", PODS, &pod("d", json!({}))).await;
    assert_eq!(
        (status, message(&refused)),
        (403, "pods \"d\" is forbidden: failed quota: q: must specify requests.cpu for: c")
    );
    // A pod may always be changed: it was charged when it was made.
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    world.ok("PATCH", &format!("{PODS}/a"), &labels).await;
    assert_eq!(used(&world, "q").await["pods"], "1");
}

#[tokio::test]
async fn every_quota_is_charged_or_none() {
    let world = world().await;
    quota(&world, "a-wide", json!({"configmaps": "10", "count/configmaps": "10"})).await;
    quota(&world, "b-narrow", json!({"count/configmaps": "1"})).await;
    let map = |name: &str| json!({"metadata": {"name": name}});
    // What is not stored is not charged: neither a rehearsal nor a name that is taken.
    world.ok("POST", &format!("{MAPS}?dryRun=All"), &map("m")).await;
    assert_eq!(used(&world, "b-narrow").await, json!({"count/configmaps": "0"}));
    world.ok("POST", MAPS, &map("m")).await;
    assert_eq!(used(&world, "a-wide").await, json!({"configmaps": "1", "count/configmaps": "1"}));
    let (status, refused) = world.call("POST", MAPS, &map("n")).await;
    assert_eq!(status, 403, "{refused}");
    assert!(message(&refused).contains("exceeded quota: b-narrow, requested: count/configmaps=1"), "{refused}");
    assert_eq!(used(&world, "a-wide").await, json!({"configmaps": "1", "count/configmaps": "1"}));
    world.ok("DELETE", &format!("{QUOTAS}/b-narrow"), &Value::Null).await;
    let (status, _) = world.call("POST", MAPS, &map("m")).await;
    assert_eq!(status, 409);
    assert_eq!(used(&world, "a-wide").await, json!({"configmaps": "1", "count/configmaps": "1"}));
    world.ok("POST", "/api/v1/namespaces", &json!({"metadata": {"name": "elsewhere"}})).await;
    world.ok("POST", "/api/v1/namespaces/elsewhere/configmaps", &map("m")).await;
    assert_eq!(used(&world, "a-wide").await["configmaps"], "1", "another namespace's");
}

/// Conformance: "ResourceQuota should create a ResourceQuota and capture the life of a service".
#[tokio::test]
async fn a_service_that_becomes_more_is_charged_more() {
    let world = world().await;
    quota(&world, "q", json!({"services": "9", "services.nodeports": "1", "services.loadbalancers": "0"})).await;
    let service =
        |name: &str, type_: &str| json!({"metadata": {"name": name}, "spec": {"type": type_, "ports": [{"port": 80}]}});
    world.ok("POST", SERVICES, &service("a", "ClusterIP")).await;
    world.ok("POST", SERVICES, &service("b", "NodePort")).await;
    assert_eq!(
        used(&world, "q").await,
        json!({"services": "2", "services.nodeports": "1", "services.loadbalancers": "0"})
    );
    let (status, refused) = world.call("POST", SERVICES, &service("c", "LoadBalancer")).await;
    assert_eq!(status, 403, "{refused}");
    assert!(
        message(&refused).contains("exceeded quota: q, requested: services.loadbalancers=1,services.nodeports=1, used: services.loadbalancers=0,services.nodeports=1, limited: services.loadbalancers=0,services.nodeports=1"),
        "{refused}"
    );
    let become_type = |type_: &str| json!({"spec": {"type": type_}});
    let (status, refused) = world.call("PATCH", &format!("{SERVICES}/a"), &become_type("NodePort")).await;
    assert_eq!(status, 403, "{refused}");
    world.ok("PATCH", &format!("{SERVICES}/b"), &become_type("ClusterIP")).await;
    assert_eq!(used(&world, "q").await["services.nodeports"], "0", "given back at once");
    world.ok("PATCH", &format!("{SERVICES}/a"), &become_type("NodePort")).await;
    assert_eq!(used(&world, "q").await["services.nodeports"], "1");
}

#[tokio::test]
async fn custom_resources_are_counted_like_any_other() {
    let world = world().await;
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let definition = json!({"metadata": {"name": "widgets.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}]}});
    world.ok("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    quota(&world, "q", json!({"count/widgets.example.com": "1"})).await;
    let at = "/apis/example.com/v1/namespaces/default/widgets";
    let widget = |name: &str| json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}});
    world.ok("POST", at, &widget("a")).await;
    let (status, refused) = world.call("POST", at, &widget("b")).await;
    assert_eq!(
        (status, message(&refused)),
        (
            403,
            "widgets.example.com \"b\" is forbidden: exceeded quota: q, requested: count/widgets.example.com=1, used: count/widgets.example.com=1, limited: count/widgets.example.com=1"
        )
    );
}

#[tokio::test]
async fn a_quota_that_was_never_counted_lets_nothing_in() {
    let world = world().await;
    let mut new =
        world.ok("POST", QUOTAS, &json!({"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "5"}}})).await;
    let map = json!({"metadata": {"generateName": "m-"}});
    world.ok("POST", MAPS, &map).await;
    new["status"] = json!({"hard": {"configmaps": "5"}});
    world.ok("PUT", &format!("{QUOTAS}/q/status"), &new).await;
    let (status, refused) = world.call("POST", MAPS, &map).await;
    assert_eq!(status, 403);
    assert!(
        message(&refused).ends_with("is forbidden: status unknown for quota: q, resources: configmaps"),
        "{refused}"
    );
}

/// Conformance: "LimitRange should create a LimitRange with defaults and ensure pod has those defaults applied".
#[tokio::test]
async fn a_pod_gets_the_defaults_of_its_namespace_and_is_held_to_its_bounds() {
    let world = world().await;
    let limit = json!({"type": "Container", "min": {"cpu": "50m", "memory": "100Mi"}, "max": {"cpu": "500m", "memory": "500Mi"},
        "default": {"cpu": "500m", "memory": "500Mi"}, "defaultRequest": {"cpu": "100m", "memory": "200Mi"}});
    let range = json!({"metadata": {"name": "limits"}, "spec": {"limits": [limit]}});
    let (_, created) = world.call("POST", RANGES, &range).await;
    assert_eq!(created["spec"]["limits"][0]["defaultRequest"], json!({"cpu": "100m", "memory": "200Mi"}));
    let plain = world.ok("POST", PODS, &pod("plain", json!({}))).await;
    let both = json!({"requests": {"cpu": "100m", "memory": "200Mi"}, "limits": {"cpu": "500m", "memory": "500Mi"}});
    assert_eq!(plain["spec"]["containers"][0]["resources"], both);
    assert_eq!(plain["status"]["qosClass"], "Burstable", "it is judged with what it was given");
    let partial =
        world.ok("POST", PODS, &pod("partial", json!({"requests": {"cpu": "300m", "memory": "150Mi"}}))).await;
    assert_eq!(partial["spec"]["containers"][0]["resources"]["requests"], json!({"cpu": "300m", "memory": "150Mi"}));
    let (status, refused) = world.call("POST", PODS, &pod("less", json!({"requests": {"cpu": "10m"}}))).await;
    assert_eq!(
        (status, message(&refused)),
        (403, "pods \"less\" is forbidden: minimum cpu usage per Container is 50m, but request is 10m")
    );
    let (status, refused) =
        world.call("POST", PODS, &pod("more", json!({"limits": {"cpu": "600m"}, "requests": {"cpu": "1m"}}))).await;
    assert_eq!(
        (status, message(&refused)),
        (
            403,
            "pods \"more\" is forbidden: [minimum cpu usage per Container is 50m, but request is 1m, maximum cpu usage per Container is 500m, but limit is 600m]"
        )
    );
    // The bounds are those of now.
    world
        .ok(
            "PATCH",
            &format!("{RANGES}/limits"),
            &json!({"spec": {"limits": [{"type": "Container", "min": {"cpu": "9m"}}]}}),
        )
        .await;
    world.ok("POST", PODS, &pod("less", json!({"requests": {"cpu": "10m"}}))).await;
}

#[tokio::test]
async fn a_claim_is_held_to_the_sizes_of_its_namespace() {
    let world = world().await;
    let limit = json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}});
    world.ok("POST", RANGES, &json!({"metadata": {"name": "sizes"}, "spec": {"limits": [limit]}})).await;
    let claim = |size: &str| json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}});
    let at = "/api/v1/namespaces/default/persistentvolumeclaims";
    let (status, refused) = world.call("POST", at, &claim("3Gi")).await;
    assert_eq!(
        (status, message(&refused)),
        (
            403,
            "persistentvolumeclaims \"data\" is forbidden: maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"
        )
    );
    world.ok("POST", at, &claim("1Gi")).await;
}

/// What a request is warned of.
async fn warnings(world: &World, method: &str, uri: &str, body: &Value) -> (u16, Vec<String>) {
    let admin = proa_apiserver::User::new("admin", &["system:masters"]);
    let response = world.raw(admin, method, uri, &[], body.to_string().into_bytes()).await;
    let told = response.headers().get_all("warning").iter();
    (response.status().as_u16(), told.map(|value| value.to_str().expect("text").to_owned()).collect())
}

#[tokio::test]
async fn a_namespace_says_what_its_pods_may_do() {
    let world = world().await;
    let labelled = |level: &str| json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
    let privileged = |name: &str| {
        let mut pod = pod(name, json!({}));
        pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
        pod
    };
    world.ok("POST", PODS, &privileged("before")).await;
    let (status, refused) = world.call("PATCH", "/api/v1/namespaces/default", &labelled("strict")).await;
    assert_eq!(
        (status, message(&refused)),
        (
            422,
            "Namespace \"default\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted"
        )
    );
    let (status, told) = warnings(&world, "PATCH", "/api/v1/namespaces/default", &labelled("baseline")).await;
    assert_eq!(
        (status, told),
        (200, vec![
            "299 - \"existing pods in namespace \\\"default\\\" violate the new PodSecurity enforce level \\\"baseline:latest\\\"\"".to_owned(),
            "299 - \"before: privileged\"".to_owned(),
        ])
    );
    let (status, refused) = world.call("POST", PODS, &privileged("after")).await;
    assert_eq!(
        (status, message(&refused)),
        (
            403,
            "pods \"after\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"c\" must not set securityContext.privileged=true)"
        )
    );
    world.ok("POST", PODS, &pod("plain", json!({}))).await;
    // What runs may be labelled; another image is another matter.
    let before = format!("{PODS}/before");
    world.ok("PATCH", &before, &json!({"metadata": {"labels": {"a": "b"}}})).await;
    let image = json!({"spec": {"containers": [{"name": "c", "image": "j", "securityContext": {"privileged": true}}]}});
    let (status, refused) = world
        .call_as(
            proa_apiserver::User::new("admin", &["system:masters"]),
            "PATCH",
            &before,
            &[("content-type", "application/strategic-merge-patch+json")],
            image.to_string().into_bytes(),
        )
        .await;
    assert_eq!(status, 403, "{refused}");
    // Who makes pods by way of a controller is told before its pods are refused.
    let labels = json!({"app": "web"});
    let deployment = json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": privileged("")["spec"]}}});
    let (status, told) = warnings(&world, "POST", "/apis/apps/v1/namespaces/default/deployments", &deployment).await;
    assert_eq!(status, 201);
    assert!(
        told.iter().any(|warning| warning.contains("would violate PodSecurity \\\"baseline:latest\\\": privileged")),
        "{told:?}"
    );
}

#[tokio::test]
async fn one_priority_class_is_the_default_and_pods_do_not_choose_their_number() {
    let world = world().await;
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let class = |name: &str| json!({"metadata": {"name": name}, "value": 7, "globalDefault": true, "preemptionPolicy": "Never"});
    world.ok("POST", classes, &class("usual")).await;
    let (status, refused) = world.call("POST", classes, &class("other")).await;
    assert_eq!(
        (status, message(&refused)),
        (
            403,
            "priorityclasses.scheduling.k8s.io \"other\" is forbidden: PriorityClass usual is already marked as default. Only one default can exist"
        )
    );
    let made = world.ok("POST", PODS, &pod("a", json!({}))).await;
    assert_eq!(
        (&made["spec"]["priority"], &made["spec"]["priorityClassName"], &made["spec"]["preemptionPolicy"]),
        (&json!(7), &json!("usual"), &json!("Never"))
    );
    let mut chosen = pod("b", json!({}));
    chosen["spec"]["priority"] = json!(8);
    let (status, refused) = world.call("POST", PODS, &chosen).await;
    assert_eq!(status, 403);
    assert!(
        message(&refused)
            .starts_with("pods \"b\" is forbidden: the integer value of priority (8) must not be provided"),
        "{refused}"
    );
}
