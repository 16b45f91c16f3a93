//! Tokens of other issuers: a fake one over TLS, and the server told of it by a file.

mod common;

use std::sync::Arc;

use common::{World, open_with};
use parking_lot::Mutex;
use proa_apiserver::User;
use proa_apiserver::authn::jose::{PrivateKey, PublicKey};
use proa_apiserver::config::Authentication;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const FIRST: &str = include_str!("../src/authn/testdata/rsa.pem");
const SECOND: &str = include_str!("../src/authn/testdata/p256-sec1.pem");

/// An issuer: serves its discovery document and the keys it has just then, and counts how often it is asked for them.
struct Issuer {
    url: String,
    authority: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    keys: Vec<PublicKey>,
    asked: usize,
}

impl Issuer {
    async fn new(key: &str) -> Issuer {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], private)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { keys: PublicKey::of_pem(key).unwrap(), asked: 0 }));
        let (served, issuer) = (Arc::clone(&state), url.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, state, issuer) = (acceptor.clone(), Arc::clone(&served), issuer.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(socket).await else { return };
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => request.push(byte),
                            Err(_) => return,
                        }
                    }
                    let request = String::from_utf8(request).unwrap();
                    let body = match request.split(' ').nth(1).unwrap() {
                        "/.well-known/openid-configuration" => {
                            json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")})
                        }
                        _ => {
                            let mut state = state.lock();
                            state.asked += 1;
                            json!({"keys": state.keys.iter().map(PublicKey::jwk).collect::<Vec<_>>()})
                        }
                    };
                    let body = body.to_string();
                    let head =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Issuer { url, authority: made.cert.pem(), state }
    }

    fn configuration(&self, mappings: &str) -> String {
        let authority = self.authority.replace('\n', "\n      ");
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer:\n    url: {}\n    \
             audiences: [kubernetes]\n    certificateAuthority: |\n      {authority}\n  claimMappings: {mappings}\n",
            self.url
        )
    }

    /// A token of this issuer that is good for an hour, but for these claims.
    fn token(&self, key: &str, claims: Value) -> String {
        let now = jiff::Timestamp::now().as_second();
        let mut all = json!({"iss": self.url, "aud": "kubernetes", "sub": "jane", "exp": now + 3600, "iat": now});
        for (claim, value) in claims.as_object().unwrap() {
            all[claim] = value.clone();
        }
        PrivateKey::of_pem(key).unwrap().sign(all.to_string().as_bytes()).unwrap()
    }
}

const MAPPINGS: &str = "{username: {claim: sub, prefix: 'oidc:'}, groups: {claim: groups, prefix: 'oidc:'}}";

async fn started(issuer: &Issuer) -> World {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let file = dir.path().join("authentication.yaml");
    std::fs::write(&file, issuer.configuration(MAPPINGS)).unwrap();
    open_with(dir, |config| config.authentication = Authentication::File(file)).await.unwrap()
}

async fn whoami(world: &World, token: &str) -> (u16, Value) {
    let bearer = format!("Bearer {token}");
    let review = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let credential = [("authorization", bearer.as_str())];
    let (status, me) = world.call_as(User::anonymous(), "POST", review, &credential, b"{}".to_vec()).await;
    (status, me["status"]["userInfo"].clone())
}

#[tokio::test]
async fn a_token_of_an_issuer_that_is_trusted_lets_in_whom_it_says() {
    let issuer = Issuer::new(FIRST).await;
    let world = started(&issuer).await;
    let token = issuer.token(FIRST, json!({"groups": ["devs"]}));
    let (status, me) = whoami(&world, &token).await;
    assert_eq!((status, &me["username"]), (201, &json!("oidc:jane")), "{me}");
    assert_eq!(me["groups"], json!(["oidc:devs", "system:authenticated"]));
    let binding = json!({"metadata": {"name": "devs"}, "subjects": [{"kind": "Group", "name": "oidc:devs",
        "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}});
    world.ok("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await;
    let bearer = format!("Bearer {token}");
    let listed =
        world.call_as(User::anonymous(), "GET", "/api/v1/pods", &[("authorization", &bearer)], Vec::new()).await;
    assert_eq!(listed.0, 200, "{}", listed.1);
    let review = "/apis/authentication.k8s.io/v1/tokenreviews";
    let reviewed = world.ok("POST", review, &json!({"spec": {"token": token}})).await;
    assert_eq!(reviewed["status"]["user"]["username"], "oidc:jane", "{reviewed}");
    assert_eq!(issuer.state.lock().asked, 1, "keys are kept");

    let now = jiff::Timestamp::now().as_second();
    for (why, token) in [
        ("of nobody we know", issuer.token(FIRST, json!({"iss": "https://other.example"}))),
        ("for somebody else", issuer.token(FIRST, json!({"aud": ["vault"]}))),
        ("of yesterday", issuer.token(FIRST, json!({"exp": now - 1}))),
        ("of tomorrow", issuer.token(FIRST, json!({"nbf": now + 86_400}))),
        ("without a name", issuer.token(FIRST, json!({"sub": null}))),
        ("signed by somebody else", issuer.token(SECOND, json!({}))),
    ] {
        assert_eq!(whoami(&world, &token).await.0, 401, "{why}");
    }
    let reviewed =
        world.ok("POST", review, &json!({"spec": {"token": issuer.token(FIRST, json!({"aud": "x"}))}})).await;
    assert_eq!(reviewed["status"]["authenticated"], json!(false));
    assert!(reviewed["status"]["error"].as_str().unwrap().contains("expected audience"), "{reviewed}");
}

#[tokio::test]
async fn an_issuer_changes_its_keys_and_nonsense_does_not_make_us_ask_for_them_all_the_time() {
    let issuer = Issuer::new(FIRST).await;
    let world = started(&issuer).await;
    assert_eq!(whoami(&world, &issuer.token(FIRST, json!({}))).await.0, 201);
    issuer.state.lock().keys = PublicKey::of_pem(SECOND).unwrap();
    assert_eq!(whoami(&world, &issuer.token(SECOND, json!({}))).await.0, 201, "a key we do not know is asked for");
    assert_eq!(whoami(&world, &issuer.token(FIRST, json!({}))).await.0, 401, "the old one is good no more");
    assert_eq!(whoami(&world, &issuer.token(FIRST, json!({}))).await.0, 401);
    assert_eq!(issuer.state.lock().asked, 2);
}

#[tokio::test]
async fn the_file_is_read_again_when_it_changes_and_kept_to_when_it_is_nonsense() {
    let issuer = Issuer::new(FIRST).await;
    let world = started(&issuer).await;
    let token = issuer.token(FIRST, json!({"email": "jane@example.com", "email_verified": true}));
    assert_eq!(whoami(&world, &token).await.1["username"], "oidc:jane");
    let file = world.dir.path().join("authentication.yaml");
    let write = |text: &str| {
        std::fs::write(file.with_extension("new"), text).unwrap();
        std::fs::rename(file.with_extension("new"), &file).unwrap();
    };
    write("kind: Nonsense");
    let by_mail = "{username: {expression: 'claims.email_verified ? claims.email : claims.sub'}}";
    write(&issuer.configuration(by_mail));
    for _ in 0..500 {
        let (status, me) = whoami(&world, &token).await;
        assert_eq!(status, 201, "nobody is locked out meanwhile");
        if me["username"] == "jane@example.com" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the file was not read again");
}

#[tokio::test]
async fn an_issuer_nobody_signed_for_is_not_believed() {
    let issuer = Issuer::new(FIRST).await;
    let other = Issuer::new(FIRST).await;
    let imposter = Issuer { url: issuer.url.clone(), authority: other.authority.clone(), state: Arc::default() };
    let world = started(&imposter).await;
    assert_eq!(whoami(&world, &issuer.token(FIRST, json!({}))).await.0, 401);
    assert_eq!(issuer.state.lock().asked, 0);
}
