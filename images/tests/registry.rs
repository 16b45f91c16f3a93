//! Stories of pulls, from a registry in plain HTTP.

mod support;

use std::fs;
use std::net::TcpListener;
use std::sync::Mutex;

use proa_images::{Credentials, Digest, ImageStore, Options, Progress, PullError};
use serde_json::json;
use support::registry::{INDEX, MANIFEST, Page, Registry};
use support::{Made, tar};

fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images"), Options::default()).unwrap();
    (dir, store)
}

fn image() -> Made {
    Made::new(&[tar(&[("a", &[1; 100_000])]), tar(&[("b", b"2")])])
}

fn blobs(dir: &tempfile::TempDir) -> usize {
    fs::read_dir(dir.path().join("images/blobs/sha256")).unwrap().count()
}

#[tokio::test]
async fn an_image_is_pulled_with_progress_and_not_twice() {
    let (registry, (dir, store), made) = (Registry::new(), store(), image());
    registry.image("team/app", "v1", &made);
    let seen = Mutex::new(Vec::new());
    let name = registry.name("team/app:v1");
    let pulled = store.pull(&name, None, |word| seen.lock().unwrap().push(word)).await.unwrap();
    assert_eq!((&pulled.id, &pulled.manifest), (&made.config, &made.manifest));
    assert_eq!(pulled.references, [name.as_str()]);
    let seen = seen.into_inner().unwrap();
    let Progress::Begin { layers: 2, bytes } = seen[0] else { panic!("{seen:?}") };
    let received: u64 = seen.iter().map(|word| if let Progress::Received { bytes } = word { *bytes } else { 0 }).sum();
    assert_eq!(received, bytes);
    assert_eq!(blobs(&dir), 4);
    let layers = store.clone();
    let image = pulled.clone();
    let layers = tokio::task::spawn_blocking(move || layers.layers(&image)).await.unwrap().unwrap();
    assert_eq!(fs::read(layers[0].join("b")).unwrap(), b"2");
    let before = registry.asked_for("/blobs/");
    assert_eq!(store.pull(&name, None, |_| ()).await.unwrap(), pulled);
    assert_eq!(registry.asked_for("/blobs/"), before, "what is here is not fetched again");
}

#[tokio::test]
async fn an_index_gives_the_image_for_this_machine() {
    let (registry, (_dir, store), made) = (Registry::new(), store(), image());
    registry.image("app", "other", &made);
    let mut other = made.descriptor(None);
    other["platform"]["architecture"] = json!("riscv64");
    other["digest"] = json!(Digest::of(b"other"));
    let index = |entries: &[&serde_json::Value]| {
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }).to_string()
    };
    registry.put("app/manifests/multi", INDEX, index(&[&other, &made.descriptor(None)]).into_bytes());
    assert_eq!(store.pull(&registry.name("app:multi"), None, |_| ()).await.unwrap().id, made.config);
    registry.put("app/manifests/foreign", INDEX, index(&[&other]).into_bytes());
    let error = store.pull(&registry.name("app:foreign"), None, |_| ()).await.unwrap_err();
    assert!(matches!(&error, PullError::NotFound { message, .. } if message.contains("linux/riscv64")), "{error}");
}

#[tokio::test]
async fn pulled_by_digest_is_pulled_exactly() {
    let (registry, (_dir, store), made) = (Registry::new(), store(), image());
    registry.image("app", "v1", &made);
    let name = registry.name(&format!("app@{}", made.manifest));
    assert_eq!(store.pull(&name, None, |_| ()).await.unwrap().references, [name.as_str()]);
    assert!(store.get(&name).is_some());
}

#[tokio::test]
async fn what_goes_wrong_has_a_kind_and_leaves_nothing() {
    let (registry, (dir, store), made) = (Registry::new(), store(), image());
    let kind = async |name: String, auth: Option<Credentials>| {
        let error = store.pull(&name, auth, |_| ()).await.unwrap_err();
        let kind = match &error {
            PullError::NotFound { .. } => "not found",
            PullError::Unauthorized { .. } => "unauthorized",
            PullError::Unreachable { .. } => "unreachable",
            PullError::Untrusted { .. } => "untrusted",
            PullError::Corrupt { .. } => "corrupt",
            PullError::InvalidName(_) => "invalid name",
            PullError::Store(_) => "store",
        };
        assert!(store.list().is_empty());
        (kind, error.is_retryable())
    };
    assert_eq!(kind("Not A Name".to_owned(), None).await, ("invalid name", false));
    assert_eq!(kind(registry.name("nosuch:v1"), None).await, ("not found", true));
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(kind(format!("{closed}/app:v1"), None).await, ("unreachable", true));

    registry.image("app", "v1", &made);
    registry.shelf.lock().unwrap().authorization = Some("Basic dTpw".to_owned());
    assert_eq!(kind(registry.name("app:v1"), None).await, ("unauthorized", true));
    let wrong = Credentials { username: "u".into(), password: "wrong".into() };
    assert_eq!(kind(registry.name("app:v1"), Some(wrong)).await, ("unauthorized", true));
    registry.shelf.lock().unwrap().authorization = None;

    let layer = format!("app/blobs/{}", made.layers[0]);
    let true_page = registry.shelf.lock().unwrap().pages[&layer].clone();
    let with = |change: &dyn Fn(&mut Page)| {
        let mut page = true_page.clone();
        change(&mut page);
        registry.shelf.lock().unwrap().pages.insert(layer.clone(), page);
    };
    with(&|page| page.body[50] ^= 1);
    assert_eq!(kind(registry.name("app:v1"), None).await, ("corrupt", true));
    with(&|page| page.body.extend(b"more"));
    assert_eq!(kind(registry.name("app:v1"), None).await, ("corrupt", true));
    with(&|page| page.cut = Some(60));
    assert_eq!(kind(registry.name("app:v1"), None).await, ("unreachable", true));
    let digest = Digest::of(b"something else");
    registry.put(&format!("app/manifests/{digest}"), MANIFEST, made.blob(&made.manifest));
    assert_eq!(kind(registry.name(&format!("app@{digest}")), None).await, ("corrupt", true));
    registry.put("app/manifests/nonsense", MANIFEST, b"{}".to_vec());
    assert_eq!(kind(registry.name("app:nonsense"), None).await, ("corrupt", true));

    with(&|_| ());
    assert!(store.pull(&registry.name("app:v1"), None, |_| ()).await.is_ok(), "and afterwards all is well");
    assert_eq!(fs::read_dir(dir.path().join("images/staging")).unwrap().count(), 0);
}

#[tokio::test]
async fn credentials_open_a_closed_registry() {
    let (registry, (_dir, store), made) = (Registry::new(), store(), image());
    registry.image("app", "v1", &made);
    registry.shelf.lock().unwrap().authorization = Some("Basic dTpw".to_owned());
    let right = Credentials { username: "u".into(), password: "p".into() };
    assert!(!format!("{right:?}").contains("\"p\""));
    store.pull(&registry.name("app:v1"), Some(right), |_| ()).await.unwrap();
}

#[tokio::test]
async fn pulls_of_one_image_at_the_same_time_fetch_each_blob_once() {
    let (registry, (_dir, store), made) = (Registry::new(), store(), image());
    registry.image("app", "v1", &made);
    let name = registry.name("app:v1");
    let pulls = (0..8).map(|_| store.pull(&name, None, |_| ()));
    for pulled in futures::future::join_all(pulls).await {
        assert_eq!(pulled.unwrap().id, made.config);
    }
    assert_eq!(registry.asked_for(made.layers[0].as_str()), 1);
}
