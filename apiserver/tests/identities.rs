//! Who one is, and as whom one goes on, by raw requests in process: the lives of service accounts and their tokens, keys
//! that change, bootstrap tokens, impersonation, certificate requests as an API.

mod common;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{World, open_with, world};
use proa_apiserver::User;
use proa_apiserver::authn::jose::{Algorithm, Jws, PublicKey};
use serde_json::{Value, json};

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const TOKEN_REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const RSA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/authn/testdata/rsa.pem");
const P384: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/authn/testdata/p384-sec1.pem");

async fn token(world: &World, spec: Value) -> String {
    let made = world.ok("POST", &format!("{ACCOUNTS}/default/token"), &json!({"spec": spec})).await;
    made["status"]["token"].as_str().expect("a token").to_owned()
}

async fn review(world: &World, token: &str) -> Value {
    world.ok("POST", TOKEN_REVIEWS, &json!({"spec": {"token": token}})).await["status"].clone()
}

async fn account(world: &World) {
    let account = json!({"metadata": {"name": "default"}});
    world.ok("POST", "/api/v1/namespaces/default/serviceaccounts", &account).await;
}

#[tokio::test]
async fn a_service_account_is_seen_patched_listed_and_deleted() {
    let world = world().await;
    let mut watch = world.watch(&format!("{ACCOUNTS}?watch=true&labelSelector=static%3Dtrue")).await;
    let made = json!({"metadata": {"name": "robot", "labels": {"static": "true"}}});
    world.ok("POST", ACCOUNTS, &made).await;
    assert_eq!(watch.what().await, ("ADDED".to_owned(), "robot".to_owned()));
    let off = json!({"automountServiceAccountToken": false});
    let patched = world.ok("PATCH", &format!("{ACCOUNTS}/robot"), &off).await;
    assert_eq!(patched["automountServiceAccountToken"], json!(false));
    assert_eq!(watch.what().await.0, "MODIFIED");
    let listed = world.get("/api/v1/serviceaccounts?labelSelector=static%3Dtrue").await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    assert_eq!(listed["items"][0]["automountServiceAccountToken"], json!(false));
    let mut updated = patched;
    updated["automountServiceAccountToken"] = json!(true);
    assert_eq!(
        world.ok("PUT", &format!("{ACCOUNTS}/robot"), &updated).await["automountServiceAccountToken"],
        json!(true)
    );
    assert_eq!(watch.what().await.0, "MODIFIED");
    world.ok("DELETE", &format!("{ACCOUNTS}?labelSelector=static%3Dtrue"), &Value::Null).await;
    assert_eq!(watch.what().await, ("DELETED".to_owned(), "robot".to_owned()));
}

#[tokio::test]
async fn a_token_that_was_asked_for_is_reviewed_without_an_error() {
    let world = world().await;
    let made = token(&world, json!({})).await;
    let status = review(&world, &made).await;
    assert_eq!((&status["authenticated"], status.get("error")), (&json!(true), None), "{status}");
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:default");
    let id = &status["user"]["extra"]["authentication.kubernetes.io/credential-id"][0];
    assert!(id.as_str().unwrap().starts_with("JTI="), "{id}");
    for (seconds, expected) in [
        (599, "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes"),
        ((1_i64 << 32) + 1, "may not specify a duration larger than 2^32 seconds"),
    ] {
        let asked = json!({"spec": {"expirationSeconds": seconds}});
        let (status, refused) = world.call("POST", &format!("{ACCOUNTS}/default/token"), &asked).await;
        assert_eq!(status, 422, "{refused}");
        assert!(refused["message"].as_str().unwrap().contains(expected), "{refused}");
    }
}

#[tokio::test]
async fn others_can_verify_a_token_by_what_is_published() {
    let world = world().await;
    let document = world.get("/.well-known/openid-configuration").await;
    let set = world.get("/openid/v1/jwks").await;
    let made = token(&world, json!({"audiences": ["somebody"]})).await;
    let jws = Jws::parse(&made).unwrap();
    let keys: Vec<PublicKey> = set["keys"].as_array().unwrap().iter().filter_map(PublicKey::of_jwk).collect();
    let named = document["id_token_signing_alg_values_supported"].as_array().unwrap().iter();
    let algorithms: Vec<Algorithm> = named.filter_map(|name| Algorithm::named(name.as_str()?)).collect();
    assert!(jws.is_signed_by(&keys, &algorithms));
    let claims: Value = serde_json::from_slice(&jws.claims).unwrap();
    assert_eq!(claims["iss"], document["issuer"]);
    assert_eq!(claims["aud"], json!(["somebody"]));
    assert_eq!(claims["sub"], "system:serviceaccount:default:default");
    assert!(document["jwks_uri"].as_str().unwrap().ends_with("/openid/v1/jwks"), "{document}");
    // Every account may read both, and nobody without one.
    let robot = User::service_account("default", "default", "");
    for uri in ["/.well-known/openid-configuration", "/openid/v1/jwks"] {
        assert_eq!(world.call_as(robot.clone(), "GET", uri, &[], Vec::new()).await.0, 200);
        assert_eq!(world.call_as(User::anonymous(), "GET", uri, &[], Vec::new()).await.0, 403);
    }
}

#[tokio::test]
async fn the_signing_key_and_the_issuer_are_changed_and_no_token_dies_of_it() {
    let first = world().await;
    let before = token(&first, json!({})).await;
    let dir = first.closed().await;
    let second = open_with(Arc::clone(&dir), |config| {
        config.tokens.signing_key_file = Some(RSA.into());
        config.tokens.key_files = vec![P384.into()];
        let old = "https://kubernetes.default.svc.cluster.local".to_owned();
        config.tokens.issuers = vec!["https://issuer.example".into(), old];
    })
    .await
    .unwrap();
    assert_eq!(review(&second, &before).await["authenticated"], json!(true), "the old key and the old issuer are good");
    let made = token(&second, json!({})).await;
    assert_eq!(review(&second, &made).await["authenticated"], json!(true));
    let jws = Jws::parse(&made).unwrap();
    assert_eq!(jws.algorithm, Some(Algorithm::RS256));
    let claims: Value = serde_json::from_slice(&jws.claims).unwrap();
    assert_eq!(
        (&claims["iss"], &claims["aud"]),
        (&json!("https://issuer.example"), &json!(["https://issuer.example"]))
    );
    let set = second.get("/openid/v1/jwks").await;
    let kinds: Vec<_> = set["keys"].as_array().unwrap().iter().map(|key| key["alg"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["RS256", "ES256", "ES384"], "the one that signs is first");
    let dir = second.closed().await;
    let third = open_with(dir, |config| config.tokens.issuers = vec!["https://third.example".into()]).await.unwrap();
    for token in [&before, &made] {
        assert_eq!(review(&third, token).await["authenticated"], json!(false), "of no issuer that is named any more");
    }
}

#[tokio::test]
async fn a_bootstrap_token_is_who_its_secret_says_until_it_runs_out() {
    let world = world().await;
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    let secret = |id: &str, more: Value| {
        let mut data =
            json!({"token-id": id, "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"});
        for (key, value) in more.as_object().unwrap() {
            data[key] = value.clone();
        }
        json!({"metadata": {"name": format!("bootstrap-token-{id}")}, "type": "bootstrap.kubernetes.io/token", "stringData": data})
    };
    for (id, more, groups) in [
        ("plain0", json!({}), json!(["system:bootstrappers", "system:authenticated"])),
        (
            "extra0",
            json!({"auth-extra-groups": "system:bootstrappers:a,system:bootstrappers:b:c-d", "expiration": "2999-01-01T00:00:00Z"}),
            json!([
                "system:bootstrappers",
                "system:authenticated",
                "system:bootstrappers:a",
                "system:bootstrappers:b:c-d"
            ]),
        ),
        ("signer", json!({"usage-bootstrap-authentication": "false"}), Value::Null),
        ("over00", json!({"expiration": "2020-01-01T00:00:00Z"}), Value::Null),
        ("greedy", json!({"auth-extra-groups": "system:masters"}), Value::Null),
    ] {
        world.ok("POST", secrets, &secret(id, more)).await;
        let status = review(&world, &format!("{id}.0123456789abcdef")).await;
        assert_eq!(status["user"].get("groups").unwrap_or(&Value::Null), &groups, "{id}: {status}");
        assert_eq!(review(&world, &format!("{id}.0123456789abcdeX")).await["authenticated"], json!(false));
    }
}

#[tokio::test]
async fn whoever_may_be_another_is_as_far_as_they_may() {
    let world = world().await;
    let rule = |group: &str, resource: &str, names: &[&str]| json!({"apiGroups": [group], "resources": [resource], "verbs": ["impersonate"], "resourceNames": names});
    let rules = [
        rule("", "users", &["jane"]),
        rule("", "groups", &["devs"]),
        rule("", "serviceaccounts", &["default"]),
        rule("authentication.k8s.io", "userextras/scopes", &["view"]),
        rule("authentication.k8s.io", "uids", &["7"]),
    ];
    let role = json!({"metadata": {"name": "actor"}, "rules": rules});
    world.ok("POST", &format!("{RBAC}/clusterroles"), &role).await;
    let subject = json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "bob"});
    let binding = json!({"metadata": {"name": "actor"}, "subjects": [subject],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "actor"}});
    world.ok("POST", &format!("{RBAC}/clusterrolebindings"), &binding).await;
    let bob = User::new("bob", &[]);
    let as_whom = async |headers: &[(&str, &str)]| {
        let uri = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        let (status, answer) = world.call_as(bob.clone(), "POST", uri, headers, b"{}".to_vec()).await;
        (status, answer["status"]["userInfo"].clone(), answer["message"].as_str().unwrap_or_default().to_owned())
    };
    let jane = ("Impersonate-User", "jane");
    let (status, me, _) =
        as_whom(&[jane, ("Impersonate-Group", "devs"), ("Impersonate-Uid", "7"), ("Impersonate-Extra-scopes", "view")])
            .await;
    let expected = json!({"username": "jane", "groups": ["devs", "system:authenticated"], "uid": "7", "extra": {"scopes": ["view"]}});
    assert_eq!((status, me), (201, expected));
    let (status, me, _) = as_whom(&[("Impersonate-User", "system:serviceaccount:default:default")]).await;
    assert_eq!(status, 201);
    let groups = json!(["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]);
    assert_eq!(me["groups"], groups);
    for (headers, expected) in [
        (
            &[("Impersonate-User", "eve")][..],
            "User \"bob\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
        ),
        (&[jane, ("Impersonate-Group", "system:masters")], "cannot impersonate resource \"groups\""),
        (
            &[jane, ("Impersonate-Uid", "8")],
            "cannot impersonate resource \"uids\" in API group \"authentication.k8s.io\"",
        ),
        (&[jane, ("Impersonate-Extra-scopes", "edit")], "cannot impersonate resource \"userextras/scopes\""),
        (
            &[("Impersonate-User", "system:serviceaccount:default:other")],
            "resource \"serviceaccounts\" in API group \"\" in the namespace \"default\"",
        ),
    ] {
        let (status, _, message) = as_whom(headers).await;
        assert_eq!(status, 403, "{headers:?}");
        assert!(message.contains(expected), "{message}");
    }
    assert_eq!(as_whom(&[("Impersonate-Group", "devs")]).await.0, 400);
}

#[tokio::test]
async fn a_review_of_anothers_access_agrees_with_what_they_meet() {
    let world = world().await;
    let name = "system:serviceaccount:default:default";
    let binding = json!({"metadata": {"name": "view"}, "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "pods"}});
    let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]);
    world
        .ok("POST", &format!("{RBAC}/namespaces/default/roles"), &json!({"metadata": {"name": "pods"}, "rules": rules}))
        .await;
    world.ok("POST", &format!("{RBAC}/namespaces/default/rolebindings"), &binding).await;
    let admin = User::new("admin", &["system:masters"]);
    for (resource, namespace) in [("pods", "default"), ("pods", "kube-system"), ("configmaps", "default")] {
        let uri = format!("/api/v1/namespaces/{namespace}/{resource}");
        let headers = [("Impersonate-User", name)];
        let (status, _) = world.call_as(admin.clone(), "GET", &uri, &headers, Vec::new()).await;
        let attributes = json!({"verb": "list", "resource": resource, "namespace": namespace});
        let spec = json!({"user": name, "resourceAttributes": attributes});
        let group = "/apis/authorization.k8s.io/v1";
        for (uri, body) in [
            (format!("{group}/subjectaccessreviews"), json!({"spec": spec})),
            (
                format!("{group}/namespaces/{namespace}/localsubjectaccessreviews"),
                json!({"metadata": {"namespace": namespace}, "spec": spec}),
            ),
        ] {
            let review = world.ok("POST", &uri, &body).await;
            assert_eq!(review["status"]["allowed"], json!(status == 200), "{resource} in {namespace}: {review}");
            let reason = review["status"].get("reason").and_then(Value::as_str).unwrap_or_default();
            let by =
                "RBAC: allowed by RoleBinding \"view/default\" of Role \"pods\" to ServiceAccount \"default/default\"";
            assert_eq!(reason, if status == 200 { by } else { "" });
        }
    }
}

#[tokio::test]
async fn certificate_requests_have_every_operation_of_an_api() {
    let world = world().await;
    let groups = world.get("/apis").await;
    let listed = groups["groups"].as_array().unwrap().iter().find(|group| group["name"] == "certificates.k8s.io");
    assert_eq!(listed.unwrap()["versions"][0]["version"], "v1");
    let resources = world.get("/apis/certificates.k8s.io/v1").await;
    for name in ["", "/approval", "/status"] {
        let name = format!("certificatesigningrequests{name}");
        assert!(resources["resources"].as_array().unwrap().iter().any(|resource| resource["name"] == *name), "{name}");
    }
    let pem = rcgen::CertificateParams::default().serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap();
    let request = json!({"metadata": {"generateName": "e2e-", "labels": {"e2e": "1"}}, "spec": {
        "request": STANDARD.encode(pem.pem().unwrap()), "signerName": "example.com/e2e", "usages": ["client auth"],
        "expirationSeconds": 3600}});
    let mut watch = world.watch(&format!("{REQUESTS}?watch=true&labelSelector=e2e")).await;
    let admin = User::new("admin", &["system:masters"]);
    let dry = world.raw(admin, "POST", &format!("{REQUESTS}?dryRun=All"), &[], request.to_string().into_bytes()).await;
    assert_eq!((dry.status().as_u16(), dry.headers().get("warning")), (201, None), "there are loops that act on it");
    let made = world.ok("POST", REQUESTS, &request).await;
    let name = made["metadata"]["name"].as_str().unwrap().to_owned();
    let uri = format!("{REQUESTS}/{name}");
    assert_eq!(watch.what().await, ("ADDED".to_owned(), name.clone()));
    for other in [json!({}), json!({})] {
        world
            .ok("POST", REQUESTS, &{
                let mut request = request.clone();
                request["metadata"]["annotations"] = other;
                request
            })
            .await;
    }
    assert_eq!(world.get(&uri).await["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(world.get(&format!("{REQUESTS}?labelSelector=e2e")).await["items"].as_array().unwrap().len(), 3);
    assert_eq!(
        world.get(&format!("{REQUESTS}?fieldSelector=spec.signerName%3Dexample.com%2Fe2e")).await["items"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    let patched = world.ok("PATCH", &uri, &json!({"metadata": {"annotations": {"patched": "true"}}})).await;
    let mut updated = patched.clone();
    updated["metadata"]["annotations"]["updated"] = "true".into();
    updated["spec"]["signerName"] = "example.com/other".into();
    let updated = world.ok("PUT", &uri, &updated).await;
    assert_eq!(updated["spec"], made["spec"], "what was asked for never changes");
    assert_eq!(updated["metadata"]["annotations"], json!({"patched": "true", "updated": "true"}));

    let approval = format!("{uri}/approval");
    assert_eq!(world.get(&approval).await["metadata"]["name"], name.as_str());
    let condition = |type_: &str| json!({"type": type_, "status": "True", "reason": "e2e", "message": "m"});
    let approved = world
        .ok(
            "PATCH",
            &approval,
            &json!({"metadata": {"annotations": {"patchedapproval": "true"}},
            "status": {"conditions": [condition("ApprovalPatch"), condition("Approved")]}}),
        )
        .await;
    let types = |request: &Value| -> Vec<String> {
        let conditions = request["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().map(|condition| condition["type"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(types(&approved), ["Approved"], "approval is all that is decided there");
    let mut again = approved.clone();
    again["status"]["conditions"][0]["message"] = "m".into();
    world.ok("PUT", &approval, &again).await;

    let state = format!("{uri}/status");
    assert_eq!(types(&world.get(&state).await), ["Approved"]);
    let signed = json!({"status": {"certificate": STANDARD.encode(CERTIFICATE), "conditions": [condition("Approved"), condition("StatusPatch")]}});
    let signed = world.ok("PATCH", &state, &signed).await;
    assert_eq!(types(&signed), ["Approved", "StatusPatch"]);
    assert_eq!(signed["status"]["certificate"], STANDARD.encode(CERTIFICATE));
    let mut updated = signed.clone();
    updated["status"]["conditions"].as_array_mut().unwrap().push(condition("StatusUpdate"));
    let updated = world.ok("PUT", &state, &updated).await;
    assert_eq!(types(&updated), ["Approved", "StatusPatch", "StatusUpdate"]);

    world.ok("DELETE", &uri, &Value::Null).await;
    assert_eq!(world.call("GET", &uri, &Value::Null).await.0, 404);
    world.ok("DELETE", &format!("{REQUESTS}?labelSelector=e2e"), &Value::Null).await;
    assert!(world.get(&format!("{REQUESTS}?labelSelector=e2e")).await["items"].as_array().unwrap().is_empty());
    loop {
        if watch.what().await == ("DELETED".to_owned(), name.clone()) {
            break;
        }
    }
}

/// Any certificate will do: what is signed is the signer's affair.
const CERTIFICATE: &str = include_str!("../src/authn/testdata/certificate.pem");

#[tokio::test]
async fn newcomers_read_by_what_the_cluster_is_known_and_nothing_else() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let listen: std::net::SocketAddr = "192.0.2.1:6443".parse().unwrap();
    let world = open_with(dir, |config| (config.listen, config.advertise) = (Some(listen), listen.ip())).await.unwrap();
    account(&world).await;
    let public = "/api/v1/namespaces/kube-public/configmaps";
    let read = world.call_as(User::anonymous(), "GET", &format!("{public}/cluster-info"), &[], Vec::new()).await;
    assert_eq!(read.0, 200, "{}", read.1);
    let text = read.1["data"]["kubeconfig"].as_str().unwrap();
    assert!(text.contains("server: https://192.0.2.1:6443") && text.contains("certificate-authority-data"), "{text}");
    for uri in
        [public.to_owned(), format!("{public}/other"), "/api/v1/namespaces/kube-system/configmaps/cluster-info".into()]
    {
        assert_eq!(world.call_as(User::anonymous(), "GET", &uri, &[], Vec::new()).await.0, 403, "{uri}");
    }
    // The address changes; what others wrote beside it stays.
    world.ok("PATCH", &format!("{public}/cluster-info"), &json!({"data": {"jws-kubeconfig-abcdef": "x"}})).await;
    let dir = world.closed().await;
    let listen: std::net::SocketAddr = "192.0.2.2:6443".parse().unwrap();
    let world = open_with(dir, |config| (config.listen, config.advertise) = (Some(listen), listen.ip())).await.unwrap();
    let data = world.get(&format!("{public}/cluster-info")).await["data"].clone();
    assert!(data["kubeconfig"].as_str().unwrap().contains("https://192.0.2.2:6443"));
    assert_eq!(data["jws-kubeconfig-abcdef"], "x");
}
