//! Who may do what, by raw requests in process: nodes and what runs on them, tokens and the objects they are bound
//! to, certificates, roles that gather other roles.

mod common;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{World, world};
use proa_apiserver::User;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

async fn as_user(world: &World, user: &User, method: &str, uri: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    world.call_as(user.clone(), method, uri, &[], body).await
}

/// Who the bearer of a token is.
async fn whoami(world: &World, token: &str) -> (u16, Value) {
    let bearer = format!("Bearer {token}");
    let review = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let credential = [("authorization", bearer.as_str())];
    let (status, me) = world.call_as(User::anonymous(), "POST", review, &credential, b"{}".to_vec()).await;
    (status, me["status"]["userInfo"].clone())
}

/// A running pod of `node` that reads the Secret and the ConfigMap of its own name.
async fn pod(world: &World, name: &str, node: &str) -> Value {
    let env = json!([{"secretRef": {"name": name}}, {"configMapRef": {"name": name}}]);
    let containers = json!([{"name": "c", "image": "i", "envFrom": env}]);
    let spec = json!({"nodeName": node, "containers": containers});
    world.ok("POST", PODS, &json!({"metadata": {"name": name, "labels": {"on": node}}, "spec": spec})).await
}

async fn two_nodes() -> World {
    let world = world().await;
    for node in ["a", "b"] {
        let (status, made) =
            as_user(&world, &User::node(node), "POST", "/api/v1/nodes", &json!({"metadata": {"name": node}})).await;
        assert_eq!(status, 201, "{made}");
        let name = format!("on-{node}");
        world.ok("POST", SECRETS, &json!({"metadata": {"name": name}})).await;
        pod(&world, &name, node).await;
    }
    world
}

#[tokio::test]
async fn a_node_may_do_its_work_and_nothing_else() {
    let world = two_nodes().await;
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "disk"}}]);
    let spec = json!({"nodeName": "a", "containers": [{"name": "c", "image": "i"}], "volumes": volumes});
    world.ok("POST", PODS, &json!({"metadata": {"name": "claimer"}, "spec": spec})).await;
    let claim = json!({"namespace": "default", "name": "disk"});
    let volume = json!({"metadata": {"name": "volume"}, "spec": {"claimRef": claim, "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}});
    world.ok("POST", "/api/v1/persistentvolumes", &volume).await;

    let storage = "storage.k8s.io";
    // Verb, group, resource, namespace, name, and whether node `a` may.
    for (verb, group, resource, namespace, name, may) in [
        ("list", "", "nodes", "", "", true),
        ("create", "", "nodes", "", "", true),
        ("update", "", "nodes", "", "a", true),
        ("patch", "", "nodes/status", "", "a", true),
        ("patch", "", "nodes/status", "", "b", false),
        ("update", "", "nodes", "", "b", false),
        ("delete", "", "nodes", "", "a", false),
        ("get", "", "nodes/proxy", "", "b", false),
        ("watch", "", "services", "", "", true),
        ("watch", "", "namespaces", "", "", true),
        ("update", "", "namespaces", "", "default", false),
        ("watch", "discovery.k8s.io", "endpointslices", "", "", true),
        ("create", "", "services", "default", "", false),
        ("get", "", "pods", "default", "on-a", true),
        ("get", "", "pods", "default", "on-b", false),
        ("list", "", "pods", "", "", false),
        ("watch", "", "pods", "default", "", false),
        ("patch", "", "pods", "default", "on-a", false),
        ("create", "", "pods/exec", "default", "on-a", false),
        ("create", "", "pods/binding", "default", "on-a", false),
        ("patch", "", "pods/status", "default", "on-a", true),
        ("deletecollection", "", "pods", "default", "", false),
        ("get", "", "secrets", "default", "on-a", true),
        ("watch", "", "secrets", "default", "on-a", true),
        ("get", "", "secrets", "default", "on-b", false),
        ("get", "", "secrets", "kube-system", "on-a", false),
        ("list", "", "secrets", "default", "", false),
        ("list", "", "secrets", "", "", false),
        ("update", "", "secrets", "default", "on-a", false),
        ("get", "", "configmaps", "default", "on-a", true),
        ("get", "", "configmaps", "default", "kube-root-ca.crt", true),
        ("get", "", "configmaps", "kube-system", "kube-root-ca.crt", false),
        ("get", "", "configmaps", "default", "on-b", false),
        ("get", "", "persistentvolumeclaims", "default", "disk", true),
        ("get", "", "persistentvolumeclaims", "default", "other", false),
        ("get", "", "persistentvolumes", "", "volume", true),
        ("get", "", "persistentvolumes", "", "other", false),
        ("list", "", "persistentvolumes", "", "", false),
        ("create", "", "serviceaccounts/token", "default", "default", true),
        ("create", "", "serviceaccounts/token", "kube-system", "default", false),
        ("create", "", "serviceaccounts/token", "default", "other", false),
        ("get", "coordination.k8s.io", "leases", "kube-node-lease", "a", true),
        ("patch", "coordination.k8s.io", "leases", "kube-node-lease", "b", false),
        ("patch", "coordination.k8s.io", "leases", "kube-system", "a", false),
        ("list", "coordination.k8s.io", "leases", "kube-node-lease", "", false),
        ("get", storage, "csinodes", "", "a", true),
        ("get", storage, "csinodes", "", "b", false),
        ("create", "authorization.k8s.io", "subjectaccessreviews", "", "", true),
        ("create", "certificates.k8s.io", "certificatesigningrequests", "", "", true),
        ("update", "certificates.k8s.io", "certificatesigningrequests/approval", "", "x", false),
        ("list", "rbac.authorization.k8s.io", "clusterroles", "", "", false),
    ] {
        let (kind, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let what = json!({"verb": verb, "group": group, "resource": kind, "subresource": subresource,
            "namespace": namespace, "name": name});
        assert_eq!(review(&world, &what).await, may, "{verb} {group} {resource} {namespace}/{name}");
    }
    for (node, may) in [("a", true), ("b", false)] {
        let requirements = json!([{"key": "spec.nodeName", "operator": "In", "values": [node]}]);
        let what = json!({"verb": "list", "resource": "pods", "fieldSelector": {"requirements": requirements}});
        assert_eq!(review(&world, &what).await, may, "pods of {node}");
    }
}

/// What the server says of node `a`.
async fn review(world: &World, what: &Value) -> bool {
    let spec = json!({"user": "system:node:a", "groups": ["system:nodes"], "resourceAttributes": what});
    let uri = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let answer = world.ok("POST", uri, &json!({"spec": spec})).await;
    answer["status"]["allowed"].as_bool().unwrap()
}

#[tokio::test]
async fn a_node_does_nothing_to_the_pods_of_another() {
    let world = two_nodes().await;
    let node = User::node("a");
    let running = json!({"status": {"phase": "Running"}});
    let eviction = |name: &str| json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "default"}});
    let bound = |pod: &Value| {
        let of =
            json!({"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]});
        json!({"spec": {"boundObjectRef": of}})
    };
    let (mine, other) = (world.get(&format!("{PODS}/on-a")).await, world.get(&format!("{PODS}/on-b")).await);
    let token = format!("{ACCOUNTS}/default/token");
    let selected = |node: &str| format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}");
    let at = |name: &str, sub: &str| format!("{PODS}/{name}{sub}");
    // Refused for what is another node's …
    for (method, uri, body) in [
        ("GET", "/api/v1/pods".to_owned(), Value::Null),
        ("GET", selected("b"), Value::Null),
        ("GET", format!("{}&watch=1", selected("b")), Value::Null),
        ("GET", at("on-b", ""), Value::Null),
        ("GET", at("on-b", "/log"), Value::Null),
        ("GET", format!("/api/v1/watch/namespaces/default/pods/{}", "on-b"), Value::Null),
        ("PATCH", at("on-b", "/status"), running.clone()),
        ("PATCH", at("on-b", ""), json!({"metadata": {"labels": {"x": "y"}}})),
        ("POST", at("on-b", "/eviction"), eviction("on-b")),
        ("POST", at("on-b", "/exec"), Value::Null),
        ("DELETE", at("on-b", ""), json!({"gracePeriodSeconds": 0})),
        ("DELETE", PODS.to_owned(), Value::Null),
        ("POST", token.clone(), bound(&other)),
        ("POST", token.clone(), json!({"spec": {}})),
        ("GET", format!("{SECRETS}/on-b"), Value::Null),
        ("GET", SECRETS.to_owned(), Value::Null),
        ("GET", format!("{SECRETS}?fieldSelector=metadata.name%3Don-b"), Value::Null),
        // … and for what would make it its own.
        ("PATCH", at("on-a", "/status"), json!({"metadata": {"annotations": {"proa.dev/config-revision": "on-b"}}})),
        (
            "POST",
            PODS.to_owned(),
            json!({"metadata": {"name": "thief"}, "spec": {"nodeName": "a",
            "containers": [{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": "on-b"}}]}]}}),
        ),
    ] {
        let (status, answer) = as_user(&world, &node, method, &uri, &body).await;
        assert_eq!(status, 403, "{method} {uri}: {answer}");
    }
    assert_eq!(world.get(&format!("{PODS}/on-b")).await, other, "nothing about it has changed");
    // Allowed for what is its own.
    let audience = json!({"spec": {"audiences": ["vault"], "boundObjectRef": bound(&mine)["spec"]["boundObjectRef"]}});
    assert_eq!(as_user(&world, &node, "POST", &token, &audience).await.0, 403, "the pod wants no such token");
    for (method, uri, body, code) in [
        ("GET", selected("a"), Value::Null, 200),
        ("GET", at("on-a", ""), Value::Null, 200),
        ("GET", format!("{SECRETS}/on-a"), Value::Null, 200),
        ("GET", format!("{SECRETS}?fieldSelector=metadata.name%3Don-a"), Value::Null, 200),
        ("PATCH", at("on-a", "/status"), running, 200),
        ("POST", token, bound(&mine), 201),
        ("POST", at("on-a", "/eviction"), eviction("on-a"), 201),
        ("DELETE", at("on-a", ""), json!({"gracePeriodSeconds": 0}), 200),
        // What it did not know to be gone, or to be another pod by now, is that, not forbidden.
        ("DELETE", at("on-b", ""), json!({"preconditions": {"uid": mine["metadata"]["uid"]}}), 409),
        ("DELETE", at("on-a", ""), json!({"gracePeriodSeconds": 0}), 404),
        // And with its pod goes what it may read.
        ("GET", format!("{SECRETS}/on-a"), Value::Null, 403),
    ] {
        let (status, answer) = as_user(&world, &node, method, &uri, &body).await;
        assert_eq!(status, code, "{method} {uri}: {answer}");
    }
}

#[tokio::test]
async fn a_node_writes_its_own_node_and_lease_within_bounds() {
    let world = two_nodes().await;
    let node = User::node("a");
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {"holderIdentity": "a"}});
    let label = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    for (method, uri, body, code) in [
        ("PATCH", "/api/v1/nodes/a", label("kubernetes.io/hostname"), 200),
        ("PATCH", "/api/v1/nodes/a/status", json!({"status": {"phase": "Running"}}), 200),
        ("PATCH", "/api/v1/nodes/a", label("node-role.kubernetes.io/control-plane"), 403),
        ("PATCH", "/api/v1/nodes/a/status", label("node-restriction.kubernetes.io/pool"), 403),
        ("PATCH", "/api/v1/nodes/a", json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}), 403),
        ("PATCH", "/api/v1/nodes/b", label("mine"), 403),
        ("PATCH", "/api/v1/nodes/b/status", json!({"status": {}}), 403),
        ("POST", "/api/v1/nodes", json!({"metadata": {"name": "c"}}), 403),
        ("DELETE", "/api/v1/nodes/a", Value::Null, 403),
        ("POST", LEASES, lease("a"), 201),
        ("POST", LEASES, lease("b"), 403),
        ("POST", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases", lease("a"), 403),
        ("PATCH", &format!("{LEASES}/a"), lease("a"), 200),
    ] {
        let (status, answer) = as_user(&world, &node, method, uri, &body).await;
        assert_eq!(status, code, "{method} {uri} {body}: {answer}");
    }
    let uri = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let (_, rules) = as_user(&world, &node, "POST", uri, &json!({"spec": {"namespace": "default"}})).await;
    assert_eq!(rules["status"]["incomplete"], true, "what a node may read depends on its pods: {rules}");
}

#[tokio::test]
async fn a_role_that_gathers_roles_is_for_those_who_hold_everything() {
    let world = world().await;
    let roles = format!("{RBAC}/clusterroles");
    let rule = |group: &str, resource: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
    let writer = json!({"metadata": {"name": "writer"}, "rules": [
        rule("rbac.authorization.k8s.io", "clusterroles", &["create", "update", "patch"]), rule("", "pods", &["get"])]});
    world.ok("POST", &roles, &writer).await;
    let bind = |role: &str, user: &str| {
        json!({"metadata": {"name": user}, "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}})
    };
    world.ok("POST", &format!("{RBAC}/clusterrolebindings"), &bind("writer", "eve")).await;
    world.ok("POST", &format!("{RBAC}/clusterrolebindings"), &bind("cluster-admin", "ada")).await;
    let own = json!({"metadata": {"name": "own"}, "rules": [rule("", "pods", &["get"])]});
    let gathers = json!({"aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}});
    let mut new = own.clone();
    new["metadata"]["name"] = "new".into();
    new["aggregationRule"] = gathers["aggregationRule"].clone();
    let (eve, ada) = (User::new("eve", &[]), User::new("ada", &[]));
    for (user, method, uri, body, code) in [
        (&eve, "POST", roles.clone(), &own, 201),
        (&eve, "PATCH", format!("{roles}/own"), &json!({"metadata": {"labels": {"a": "b"}}}), 200),
        (&eve, "PATCH", format!("{roles}/own"), &gathers, 403),
        (&eve, "POST", roles.clone(), &new, 403),
        (&ada, "POST", roles.clone(), &new, 201),
        (&eve, "PATCH", format!("{roles}/new"), &json!({"aggregationRule": null}), 403),
        // A label alone would make its rules part of what others hold.
        (&eve, "PATCH", format!("{roles}/cluster-admin"), &json!({"metadata": {"labels": {"a": "b"}}}), 403),
        (&eve, "PATCH", format!("{roles}/cluster-admin"), &json!({"metadata": {"finalizers": ["a.b/c"]}}), 200),
    ] {
        let (status, answer) = as_user(&world, user, method, &uri, body).await;
        assert_eq!(status, code, "{} {method} {uri} {body}: {answer}", user.name);
    }
}

#[tokio::test]
async fn a_selector_that_only_looks_narrow_does_not_open_a_collection() {
    let world = world().await;
    let rule = json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine"], "verbs": ["list"]});
    let namespaced = format!("{RBAC}/namespaces/default");
    world.ok("POST", &format!("{namespaced}/roles"), &json!({"metadata": {"name": "r"}, "rules": [rule]})).await;
    let subject = json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "eve"});
    let binding = json!({"metadata": {"name": "r"}, "subjects": [subject],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}});
    world.ok("POST", &format!("{namespaced}/rolebindings"), &binding).await;
    for (selector, code) in [("metadata.name%3Dmine", 200), ("type!%3Dx%5C%2Cmetadata.name%3Dmine", 403)] {
        let uri = format!("{SECRETS}?fieldSelector={selector}");
        let (status, answer) = as_user(&world, &User::new("eve", &[]), "GET", &uri, &Value::Null).await;
        assert_eq!(status, code, "{selector}: {answer}");
    }
}

#[tokio::test]
async fn a_secret_of_an_account_holds_its_token_for_as_long_as_both_live() {
    let world = world().await;
    let secret = |name: &str, account: &str| {
        json!({"metadata": {"name": name, "annotations": {"kubernetes.io/service-account.name": account}},
            "type": "kubernetes.io/service-account-token"})
    };
    assert_eq!(world.call("POST", SECRETS, &secret("early", "robot")).await.0, 403, "there is no such account");
    let account = world.ok("POST", ACCOUNTS, &json!({"metadata": {"name": "robot"}})).await;
    let made = world.ok("POST", SECRETS, &secret("key", "robot")).await;
    let data = |secret: &Value, key: &str| {
        String::from_utf8(STANDARD.decode(secret["data"][key].as_str().unwrap()).unwrap()).unwrap()
    };
    assert_eq!(data(&made, "namespace"), "default");
    assert!(data(&made, "ca.crt").starts_with("-----BEGIN CERTIFICATE-----"));
    assert_eq!(made["metadata"]["annotations"]["kubernetes.io/service-account.uid"], account["metadata"]["uid"]);
    assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], account["metadata"]["uid"]);
    let token = data(&made, "token");
    let (status, me) = whoami(&world, &token).await;
    assert_eq!((status, me["username"].as_str()), (201, Some("system:serviceaccount:default:robot")), "{me}");

    // Whoever replaces it without a token gets another one; whoever keeps it, keeps it.
    let kept = world.ok("PATCH", &format!("{SECRETS}/key"), &json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!(data(&kept, "token"), token);
    let replaced = world.ok("PUT", &format!("{SECRETS}/key"), &secret("key", "robot")).await;
    assert_eq!(whoami(&world, &data(&replaced, "token")).await.0, 201);

    world.ok("DELETE", &format!("{SECRETS}/key"), &Value::Null).await;
    world.get(SECRETS).await;
    assert_eq!(whoami(&world, &token).await.0, 401, "its Secret is gone");
    let token = data(&world.ok("POST", SECRETS, &secret("key", "robot")).await, "token");
    world.ok("DELETE", &format!("{ACCOUNTS}/robot"), &Value::Null).await;
    world.get(ACCOUNTS).await;
    assert_eq!(whoami(&world, &token).await.0, 401, "its account is gone");
    // Until the garbage collector comes, what is left can still be written to.
    world.ok("PATCH", &format!("{SECRETS}/key"), &json!({"metadata": {"finalizers": null}})).await;
}

#[tokio::test]
async fn a_token_bound_to_a_node_dies_with_it() {
    let world = two_nodes().await;
    let node = world.get("/api/v1/nodes/a").await;
    let reference = json!({"apiVersion": "v1", "kind": "Node", "name": "a", "uid": node["metadata"]["uid"]});
    let uri = format!("{ACCOUNTS}/default/token");
    let answer = world.ok("POST", &uri, &json!({"spec": {"boundObjectRef": reference}})).await;
    let token = answer["status"]["token"].as_str().unwrap();
    let (_, me) = whoami(&world, token).await;
    assert_eq!(me["extra"]["authentication.kubernetes.io/node-name"], json!(["a"]), "{me}");
    assert_eq!(me["extra"]["authentication.kubernetes.io/node-uid"], json!([node["metadata"]["uid"]]));
    // A new node of the same name is not the one.
    world.ok("DELETE", "/api/v1/nodes/a", &Value::Null).await;
    world.ok("POST", "/api/v1/nodes", &json!({"metadata": {"name": "a"}})).await;
    world.get("/api/v1/nodes").await;
    assert_eq!(whoami(&world, token).await.0, 401);
}

#[tokio::test]
async fn a_review_names_the_audiences_a_token_is_meant_for() {
    let world = world().await;
    let uri = format!("{ACCOUNTS}/default/token");
    let answer = world.ok("POST", &uri, &json!({"spec": {"audiences": ["vault", "registry"]}})).await;
    let account = answer["status"]["token"].as_str().unwrap().to_owned();
    let text = |value: &str| STANDARD.encode(value);
    let data = json!({"token-id": text("abcdef"), "token-secret": text("0123456789abcdef"),
        "usage-bootstrap-authentication": text("true")});
    let secret =
        json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token", "data": data});
    world.ok("POST", "/api/v1/namespaces/kube-system/secrets", &secret).await;
    let own = "https://kubernetes.default.svc";
    let bootstrap = "abcdef.0123456789abcdef".to_owned();
    for (token, asked, known) in [
        (&account, json!(["vault", "mail"]), json!(["vault"])),
        (&account, json!(["registry", "vault"]), json!(["registry", "vault"])),
        (&account, json!(["mail"]), Value::Null),
        (&account, json!([]), Value::Null),
        (&bootstrap, json!(["vault"]), Value::Null),
        (&bootstrap, json!(["vault", own]), json!([own])),
    ] {
        let uri = "/apis/authentication.k8s.io/v1/tokenreviews";
        let review = world.ok("POST", uri, &json!({"spec": {"token": token, "audiences": asked}})).await;
        assert_eq!(review["status"]["authenticated"], !known.is_null(), "{asked}: {review}");
        assert_eq!(review["status"]["audiences"], known, "{asked}: {review}");
    }
    assert_eq!(whoami(&world, &bootstrap).await.1["username"], "system:bootstrap:abcdef");
}

/// A certificate request of `signer` for this subject.
fn signing_request(name: &str, signer: &str, common_name: &str, organization: &str) -> Value {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
    params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
    let pem = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    json!({"metadata": {"name": name}, "spec": {"request": STANDARD.encode(pem), "signerName": signer,
        "usages": ["client auth"], "username": "somebody-else", "groups": ["system:masters"]},
        "status": {"conditions": [{"type": "Approved", "status": "True"}]}})
}

#[tokio::test]
async fn a_certificate_request_says_who_asked_and_is_decided_by_whom_the_signer_lets() {
    let world = world().await;
    let role = |name: &str, rules: Value| json!({"metadata": {"name": name}, "rules": rules});
    let requests = json!({"apiGroups": ["certificates.k8s.io"], "verbs": ["create", "update", "patch"],
        "resources": ["certificatesigningrequests", "certificatesigningrequests/approval", "certificatesigningrequests/status"]});
    let signers = json!({"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "verbs": ["approve"],
        "resourceNames": ["example.com/*"]});
    world.ok("POST", &format!("{RBAC}/clusterroles"), &role("asker", json!([requests]))).await;
    world.ok("POST", &format!("{RBAC}/clusterroles"), &role("approver", json!([requests, signers]))).await;
    for (user, role) in [("eve", "asker"), ("ada", "approver")] {
        let subject = json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user});
        let binding = json!({"metadata": {"name": user}, "subjects": [subject],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}});
        world.ok("POST", &format!("{RBAC}/clusterrolebindings"), &binding).await;
    }
    let (eve, ada) = (User::new("eve", &[]), User::new("ada", &[]));
    let mut request = signing_request("a", "example.com/signer", "eve", "team");
    let (status, made) = as_user(&world, &eve, "POST", REQUESTS, &request).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!((&made["spec"]["username"], &made["spec"]["groups"]), (&json!("eve"), &json!(["system:authenticated"])));
    assert_eq!(made["status"].get("conditions"), None, "nobody comes approved");
    request["spec"]["request"] = STANDARD.encode("nonsense").into();
    assert_eq!(as_user(&world, &eve, "POST", REQUESTS, &request).await.0, 422);
    let masters = signing_request("m", "kubernetes.io/kube-apiserver-client", "eve", "system:masters");
    assert_eq!(as_user(&world, &eve, "POST", REQUESTS, &masters).await.0, 403);
    let serving = signing_request("n", "kubernetes.io/kubelet-serving", "system:node:b", "system:nodes");
    assert_eq!(as_user(&world, &User::node("a"), "POST", REQUESTS, &serving).await.0, 403);

    let condition = |type_: &str| json!({"type": type_, "status": "True", "reason": "r"});
    let patch = |type_: &str| json!({"status": {"conditions": [condition(type_)]}});
    let approval = format!("{REQUESTS}/a/approval");
    let state = format!("{REQUESTS}/a/status");
    assert_eq!(as_user(&world, &eve, "PATCH", &approval, &patch("Approved")).await.0, 403);
    assert_eq!(as_user(&world, &eve, "PATCH", &state, &json!({"status": {"certificate": "YQ=="}})).await.0, 403);
    // By the other path the approval is nobody's to give.
    let (_, unchanged) = as_user(&world, &ada, "PATCH", &state, &patch("Approved")).await;
    assert_eq!(unchanged["status"].get("conditions"), None, "{unchanged}");
    // A JSON patch is one: it adds a condition, and touches nothing but the approval.
    let operations = json!([{"op": "add", "path": "/status", "value": {"certificate": "YQ==",
        "conditions": [condition("Approved"), condition("Failed")]}}]);
    let json_patch = [("content-type", "application/json-patch+json")];
    let body = operations.to_string().into_bytes();
    let (status, approved) = world.call_as(ada.clone(), "PATCH", &approval, &json_patch, body).await;
    assert_eq!(status, 200, "{approved}");
    let types = |request: &Value| -> Vec<String> {
        let conditions = request["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().map(|condition| condition["type"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(types(&approved), ["Approved"]);
    assert_eq!(approved["status"].get("certificate"), None);
    assert!(approved["status"]["conditions"][0]["lastTransitionTime"].is_string(), "{approved}");
    assert_eq!(as_user(&world, &ada, "PATCH", &approval, &patch("Denied")).await.0, 422, "what is decided stays");
    // The signer, here the administrator, adds the certificate and loses no approval by what it does not repeat.
    let signed = json!({"status": {"certificate": "YQ==", "conditions": [condition("Failed")]}});
    let signed = world.ok("PATCH", &state, &signed).await;
    assert_eq!(types(&signed), ["Approved", "Failed"]);
}
