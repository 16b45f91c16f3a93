//! Stories of pulls, from a small registry on loopback that can also lie, refuse and break off.

mod support;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use proa_images::{Credentials, Digest, ImageStore, Options, Progress, PullError};
use serde_json::json;
use support::{Made, tar};

/// What it answers.
#[derive(Default)]
struct Shelf {
    /// By path below `/v2/`.
    pages: HashMap<String, Page>,
    /// `Basic …` or `Bearer …`, if wanted.
    authorization: Option<String>,
    asked: Vec<String>,
}

#[derive(Clone)]
struct Page {
    body: Vec<u8>,
    kind: &'static str,
    /// Sends only so much of it.
    cut: Option<usize>,
}

struct Registry {
    address: String,
    shelf: Arc<Mutex<Shelf>>,
}

impl Registry {
    fn new() -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shelf: Arc<Mutex<Shelf>> = Arc::default();
        let served = Arc::clone(&shelf);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = Arc::clone(&served);
                std::thread::spawn(move || serve(stream, &served));
            }
        });
        Registry { address, shelf }
    }

    fn put(&self, path: &str, kind: &'static str, body: Vec<u8>) {
        self.shelf.lock().unwrap().pages.insert(path.to_owned(), Page { body, kind, cut: None });
    }

    fn image(&self, repository: &str, tag: &str, made: &Made) {
        let manifest = made.blob(&made.manifest);
        self.put(&format!("{repository}/manifests/{tag}"), MANIFEST, manifest.clone());
        self.put(&format!("{repository}/manifests/{}", made.manifest), MANIFEST, manifest);
        for (digest, bytes) in &made.blobs {
            self.put(&format!("{repository}/blobs/{digest}"), "application/octet-stream", bytes.clone());
        }
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    fn asked_for(&self, part: &str) -> usize {
        self.shelf.lock().unwrap().asked.iter().filter(|path| path.contains(part)).count()
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn serve(mut stream: TcpStream, shelf: &Mutex<Shelf>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let (mut path, mut authorization) = (String::new(), None);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end();
            if path.is_empty() {
                path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            } else if line.is_empty() {
                break;
            } else if let Some((name, value)) = line.split_once(": ")
                && name.eq_ignore_ascii_case("authorization")
            {
                authorization = Some(value.to_owned());
            }
        }
        let mut shelf = shelf.lock().unwrap();
        shelf.asked.push(path.clone());
        let refused = shelf.authorization.is_some() && authorization != shelf.authorization;
        let page = path.strip_prefix("/v2/").and_then(|path| shelf.pages.get(path).cloned());
        drop(shelf);
        let empty = || ("application/json", Vec::new(), None);
        let (status, extra, (kind, body, cut)) = match page {
            _ if refused => ("401 Unauthorized", "WWW-Authenticate: Basic realm=\"test\"\r\n", empty()),
            Some(page) => ("200 OK", "", (page.kind, page.body, page.cut)),
            None if path == "/v2/" => ("200 OK", "", empty()),
            None => {
                let body = json!({ "errors": [{ "code": "MANIFEST_UNKNOWN", "message": "no such thing" }] });
                ("404 Not Found", "", ("application/json", body.to_string().into_bytes(), None))
            }
        };
        let head = format!(
            "HTTP/1.1 {status}\r\n{extra}Content-Type: {kind}\r\nDocker-Content-Digest: {}\r\nContent-Length: {}\r\n\r\n",
            Digest::of(&body),
            body.len()
        );
        let sent = cut.unwrap_or(body.len());
        let fine = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..sent])).is_ok();
        if !fine || cut.is_some() {
            return;
        }
    }
}

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
