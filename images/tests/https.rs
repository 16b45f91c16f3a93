//! Stories of pulls over TLS: whose certificates are trusted, who gets the token, who does not.

mod support;

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use proa_images::{Credentials, Digest, ImageStore, Options, PullError};
use serde_json::json;
use support::registry::{Authority, INDEX, Registry};
use support::{Made, tar};

/// `u:p`, as RFC 7617 writes it.
const BASIC: &str = "Basic dTpw";

struct Machine {
    dir: tempfile::TempDir,
    store: ImageStore,
}

impl Machine {
    fn new() -> Machine {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { authorities: dir.path().join("certs.d"), ..Options::default() };
        let store = ImageStore::open(&dir.path().join("images"), options).unwrap();
        Machine { dir, store }
    }

    /// As Docker's users do.
    fn trust(&self, registry: &Registry, authority: &Authority) {
        let dir = self.dir.path().join("certs.d").join(&registry.address);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("ca.crt"), authority.pem()).unwrap();
    }

    async fn pull(&self, name: &str) -> Result<proa_images::Image, PullError> {
        self.store.pull(name, None, |_| ()).await
    }

    async fn pull_as(&self, name: &str, password: &str) -> Result<proa_images::Image, PullError> {
        let auth = Credentials { username: "u".into(), password: password.into() };
        self.store.pull(name, Some(auth), |_| ()).await
    }
}

fn image() -> Made {
    Made::new(&[tar(&[("a", &[1; 100_000])]), tar(&[("b", b"2")])])
}

/// Wants a token of the service next door, for this repository, from those who have this authorization.
fn demand_token(registry: &Registry, service: &Registry, repository: &str, authorization: Option<&str>) {
    let mut shelf = registry.shelf.lock().unwrap();
    shelf.authorization = Some("Bearer opaque-token".to_owned());
    shelf.challenge = Some(format!(
        "Bearer realm=\"https://{}/token\",service=\"registry.test\",scope=\"repository:{repository}:pull\"",
        service.address
    ));
    let query = format!("scope=repository%3A{}%3Apull&service=registry.test", repository.replace('/', "%2F"));
    let asked = (authorization.map(str::to_owned), query);
    service.shelf.lock().unwrap().tokens.insert(asked, "opaque-token".to_owned());
}

#[tokio::test]
async fn an_index_a_manifest_and_its_blobs_come_over_tls_to_whoever_fetches_a_token() {
    let (authority, machine, made) = (Authority::new(), Machine::new(), image());
    let (registry, service) = (Registry::with_tls(&authority), Registry::with_tls(&authority));
    machine.trust(&registry, &authority);
    registry.image("team/app", "one", &made);
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [made.descriptor(None)] });
    registry.put("team/app/manifests/v1", INDEX, index.to_string().into_bytes());
    demand_token(&registry, &service, "team/app", None);

    let pulled = machine.pull(&registry.name("team/app:v1")).await.unwrap();
    assert_eq!((&pulled.id, &pulled.manifest), (&made.config, &made.manifest));
    assert_eq!(service.asked_for("/token"), 1, "one token serves the whole pull");
    let shelf = registry.shelf.lock().unwrap();
    let (pings, rest): (Vec<_>, Vec<_>) = shelf.asked.iter().partition(|asked| asked.path == "/v2/");
    assert_eq!((pings.len(), rest.len()), (1, 5), "the index, the manifest, the configuration and two layers");
    assert!(rest.iter().all(|asked| asked.authorization.as_deref() == Some("Bearer opaque-token")));
}

#[tokio::test]
async fn credentials_go_to_the_token_service_alone() {
    let (authority, machine, made) = (Authority::new(), Machine::new(), image());
    let (registry, service) = (Registry::with_tls(&authority), Registry::with_tls(&authority));
    machine.trust(&registry, &authority);
    registry.image("app", "v1", &made);
    demand_token(&registry, &service, "app", Some(BASIC));
    let name = registry.name("app:v1");

    let error = machine.pull(&name).await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
    let error = machine.pull_as(&name, "wrong").await.unwrap_err();
    assert!(matches!(&error, PullError::Unauthorized { message, .. } if message.contains("incorrect")), "{error}");
    assert_eq!(machine.pull_as(&name, "p").await.unwrap().id, made.config);
    let shelf = registry.shelf.lock().unwrap();
    assert!(!shelf.asked.iter().any(|asked| asked.authorization.as_deref() == Some(BASIC)));
}

#[tokio::test]
async fn a_certificate_nobody_vouches_for_is_one_clear_error_and_no_reason_for_plain_http() {
    let (authority, machine) = (Authority::new(), Machine::new());
    let registry = Registry::with_tls(&authority);
    registry.image("app", "v1", &image());
    let name = registry.name("app:v1");
    let error = machine.pull(&name).await.unwrap_err();
    assert!(matches!(&error, PullError::Untrusted { .. }), "{error:?}");
    assert!(error.is_retryable() && !error.is_definite());
    let text = error.to_string();
    let authorities = format!("certs.d/{}/*.crt", registry.address);
    for part in [name.as_str(), "certificate is not trusted", "no authority", &authorities] {
        assert_eq!(text.matches(part).count(), 1, "{text}");
    }
    assert_eq!(registry.asked_for(""), 0);

    // Another's authority, for this registry or the right one for another: neither helps.
    machine.trust(&registry, &Authority::new());
    machine.trust(&Registry::with_tls(&authority), &authority);
    assert!(matches!(machine.pull(&name).await.unwrap_err(), PullError::Untrusted { .. }));
    machine.trust(&registry, &authority);
    machine.pull(&name).await.unwrap();
}

/// As `openssl req -x509` makes them, which rustls does not take.
#[tokio::test]
async fn an_authority_that_serves_by_its_own_certificate_is_told_apart() {
    let (authority, machine) = (Authority::new(), Machine::new());
    let registry = Registry::with_own_certificate(&authority);
    machine.trust(&registry, &authority);
    let error = machine.pull(&registry.name("app:v1")).await.unwrap_err();
    assert!(matches!(&error, PullError::Untrusted { message, .. } if message.contains("CA:TRUE")), "{error}");
}

#[tokio::test]
async fn blobs_may_be_elsewhere_and_the_token_does_not_go_there() {
    let (authority, machine, made) = (Authority::new(), Machine::new(), image());
    let (registry, service) = (Registry::with_tls(&authority), Registry::with_tls(&authority));
    let elsewhere = Registry::with_tls(&authority);
    machine.trust(&registry, &authority);
    registry.image("app", "v1", &made);
    demand_token(&registry, &service, "app", None);
    let move_blobs = |made: &Made| {
        elsewhere.image("cdn", "unused", made);
        for (path, page) in &mut registry.shelf.lock().unwrap().pages {
            if let Some(digest) = path.strip_prefix("app/blobs/") {
                page.moved = Some(format!("https://{}/v2/cdn/blobs/{digest}?signature=abc", elsewhere.address));
            }
        }
    };
    move_blobs(&made);
    // The signature is part of the page's name there.
    let pages = std::mem::take(&mut elsewhere.shelf.lock().unwrap().pages);
    let signed = |(path, page)| (format!("{path}?signature=abc"), page);
    elsewhere.shelf.lock().unwrap().pages = pages.into_iter().map(signed).collect();

    let layer = format!("cdn/blobs/{}?signature=abc", made.layers[0]);
    let flip = || elsewhere.shelf.lock().unwrap().pages.get_mut(&layer).unwrap().body[50] ^= 1;
    flip();
    let error = machine.pull(&registry.name("app:v1")).await.unwrap_err();
    assert!(matches!(&error, PullError::Corrupt { message, .. } if message.contains("digest")), "{error}");
    assert!(machine.store.list().is_empty(), "a wrong digest is refused");
    flip();
    assert_eq!(machine.pull(&registry.name("app:v1")).await.unwrap().id, made.config);
    let shelf = elsewhere.shelf.lock().unwrap();
    assert!(shelf.asked.len() >= 3);
    assert!(shelf.asked.iter().all(|asked| asked.authorization.is_none()));
}

#[tokio::test]
async fn a_manifest_with_another_digest_is_refused() {
    let (authority, machine, made) = (Authority::new(), Machine::new(), image());
    let registry = Registry::with_tls(&authority);
    machine.trust(&registry, &authority);
    let mut entry = made.descriptor(None);
    let other = Digest::of(b"other");
    entry["digest"] = json!(other);
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
    registry.image("app", &other.to_string(), &made);
    registry.put("app/manifests/v1", INDEX, index.to_string().into_bytes());
    let error = machine.pull(&registry.name("app:v1")).await.unwrap_err();
    assert!(matches!(error, PullError::Corrupt { .. }), "{error}");
}

/// Every address of this machine leads here, but only loopback's own may go without TLS.
#[tokio::test]
async fn plain_http_is_spoken_where_it_is_allowed_alone() {
    let (registry, machine) = (Registry::new(), Machine::new());
    registry.image("app", "v1", &image());
    let port = registry.address.rsplit_once(':').unwrap().1;
    let named = format!("0.0.0.0:{port}");
    let name = format!("{named}/app:v1");
    let error = machine.pull(&name).await.unwrap_err();
    assert!(matches!(error, PullError::Unreachable { .. }), "{error}");
    assert_eq!(registry.asked_for("app"), 0);
    let options = Options { plain_http: vec![named], ..Options::default() };
    let allowed = ImageStore::open(&machine.dir.path().join("allowed"), options).unwrap();
    allowed.pull(&name, None, |_| ()).await.unwrap();
}

const PULL: &str = "PROA_TEST_PULL";

/// The environment is the process's own, so a second one looks at it: this test again, told what to pull.
#[tokio::test]
async fn the_authorities_of_the_environment_are_trusted() {
    if let Ok(name) = env::var(PULL) {
        match Machine::new().pull(&name).await {
            Ok(_) => println!("pulled"),
            Err(error) => println!("{error}"),
        }
        return;
    }
    let (authority, made) = (Authority::new(), image());
    let registry = Registry::with_tls(&authority);
    registry.image("app", "v1", &made);
    let dir = tempfile::tempdir().unwrap();
    let with_file = |file: &Path| {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "the_authorities_of_the_environment_are_trusted", "--nocapture"])
            .env_remove("SSL_CERT_DIR")
            .env("SSL_CERT_FILE", file)
            .env(PULL, registry.name("app:v1"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let (right, wrong) = (dir.path().join("right.pem"), dir.path().join("wrong.pem"));
    fs::write(&right, authority.pem()).unwrap();
    fs::write(&wrong, Authority::new().pem()).unwrap();
    assert!(with_file(&right).contains("pulled"));
    assert!(with_file(&wrong).contains("certificate is not trusted"));
    let nothing = with_file(&dir.path().join("nosuch.pem"));
    assert!(nothing.contains("this machine knows no certificate authorities"), "{nothing}");
}
