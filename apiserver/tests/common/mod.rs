//! A server over a store in a temporary directory, and ways to talk to it.
#![allow(dead_code)]

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use http_body_util::{BodyExt, Full};
use proa_apiserver::http::Body;
use proa_apiserver::{Config, Server, User};
use proa_store::{
    Batch, Chunk, CommitError, Committed, Embedded, Entry, Log, Options, RangeError, Revision, Txn, WatchError,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::Service;

pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) dir: Arc<TempDir>,
    pub(crate) log: Arc<dyn Log>,
    /// The most commits that were under way at once.
    pub(crate) most_commits: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        self.server.close();
    }
}

async fn open(dir: Arc<TempDir>) -> World {
    open_with(dir, |_| {}).await.unwrap()
}

/// The same, told something.
pub(crate) async fn open_with(
    dir: Arc<TempDir>,
    tell: impl FnOnce(&mut Config),
) -> Result<World, proa_apiserver::Error> {
    let store = Embedded::open(&dir.path().join("store"), Options::default()).await.unwrap();
    let most_commits = Arc::new(AtomicUsize::new(0));
    let log: Arc<dyn Log> =
        Arc::new(Counted { store, under_way: AtomicUsize::new(0), most: Arc::clone(&most_commits) });
    let mut config = Config::new(dir.path());
    tell(&mut config);
    let server = Server::open(config, Arc::clone(&log)).await?;
    Ok(World { server, dir, log, most_commits, stop: CancellationToken::new() })
}

/// The store, and how many commits it is asked for at once.
struct Counted {
    store: Embedded,
    under_way: AtomicUsize,
    most: Arc<AtomicUsize>,
}

impl Log for Counted {
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Committed, CommitError>> {
        let committing = self.store.commit(txn);
        Box::pin(async move {
            self.most.fetch_max(self.under_way.fetch_add(1, SeqCst) + 1, SeqCst);
            let committed = committing.await;
            self.under_way.fetch_sub(1, SeqCst);
            committed
        })
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        at: Option<Revision>,
        after_key: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Chunk, RangeError>> {
        self.store.range(prefix, at, after_key, limit)
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<Entry>, Revision), RangeError>> {
        self.store.get(key)
    }

    fn watch(&self, prefix: &str, after: Revision) -> BoxStream<'static, Result<Batch, WatchError>> {
        self.store.watch(prefix, after)
    }

    fn revision(&self) -> Revision {
        self.store.revision()
    }

    fn current(&self) -> BoxFuture<'_, Result<Revision, RangeError>> {
        self.store.current()
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), RangeError>> {
        self.store.compact(before)
    }
}

pub(crate) async fn world() -> World {
    let world = open(Arc::new(tempfile::tempdir().unwrap())).await;
    // What a controller makes on a whole platform.
    let account = serde_json::json!({"metadata": {"name": "default"}});
    world.ok("POST", "/api/v1/namespaces/default/serviceaccounts", &account).await;
    world
}

impl World {
    /// One of several servers over a store.
    pub(crate) async fn over(dir: Arc<TempDir>, config: Config, log: Arc<dyn Log>) -> World {
        let server = Server::open(config, Arc::clone(&log)).await.unwrap();
        World { server, dir, log, most_commits: Arc::default(), stop: CancellationToken::new() }
    }

    /// The same store under a new server.
    pub(crate) async fn restarted(self) -> World {
        open(self.closed().await).await
    }

    /// Its directory, once nobody uses the store any more.
    pub(crate) async fn closed(self) -> Arc<TempDir> {
        let (dir, log) = (Arc::clone(&self.dir), Arc::downgrade(&self.log));
        drop(self);
        // The store closes when its last user is gone; the followers let go when they are told to stop.
        while log.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
        dir
    }

    /// A request as the administrator: status and JSON body.
    pub(crate) async fn call(&self, method: &str, uri: &str, body: &Value) -> (u16, Value) {
        self.call_as(User::new("admin", &["system:masters"]), method, uri, &[], body.to_string().into_bytes()).await
    }

    pub(crate) async fn call_as(
        &self,
        user: User,
        method: &str,
        uri: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> (u16, Value) {
        let response = self.raw(user, method, uri, headers, body).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes).into_owned()));
        (status, value)
    }

    pub(crate) async fn raw(
        &self,
        user: User,
        method: &str,
        uri: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> http::Response<Body> {
        let default_type = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let mut request = http::Request::builder().method(method).uri(uri);
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", default_type);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let Ok(response) =
            self.server.local(user).call(request.body(Full::new(bytes::Bytes::from(body))).unwrap()).await;
        response
    }

    pub(crate) async fn ok(&self, method: &str, uri: &str, body: &Value) -> Value {
        let (status, value) = self.call(method, uri, body).await;
        assert!((200..300).contains(&status), "{method} {uri}: {status} {value}");
        value
    }

    pub(crate) async fn get(&self, uri: &str) -> Value {
        self.ok("GET", uri, &Value::Null).await
    }

    /// Waits until an object looks right; fails with its last state after ten seconds.
    pub(crate) async fn until(&self, uri: &str, good: impl Fn(u16, &Value) -> bool) -> Value {
        let mut last = (0, Value::Null);
        for _ in 0..500 {
            last = self.call("GET", uri, &Value::Null).await;
            if good(last.0, &last.1) {
                return last.1;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{uri} never got there: {last:?}");
    }

    /// A watch: its events one by one.
    pub(crate) async fn watch(&self, uri: &str) -> Events {
        let response = self.raw(User::new("admin", &["system:masters"]), "GET", uri, &[], Vec::new()).await;
        assert_eq!(response.status(), 200);
        Events { body: response.into_body(), buffer: Vec::new() }
    }

    /// Serves TLS on a loopback port; the path of an administrator's kubeconfig.
    pub(crate) async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let path = self.dir.path().join("admin.kubeconfig");
        std::fs::write(&path, self.server.kubeconfig(&url, "kubernetes-admin", &["system:masters"]).unwrap()).unwrap();
        let (server, stop) = (self.server.clone(), self.stop.clone());
        tokio::spawn(async move { server.serve(listener, stop).await });
        path.display().to_string()
    }
}

pub(crate) struct Events {
    body: Body,
    buffer: Vec<u8>,
}

impl Events {
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=at).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame =
                tokio::time::timeout(Duration::from_secs(10), self.body.frame()).await.expect("an event in time")?;
            self.buffer.extend_from_slice(frame.unwrap().data_ref().unwrap());
        }
    }

    /// The type and name of the next event.
    pub(crate) async fn what(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        (
            event["type"].as_str().unwrap().into(),
            event["object"]["metadata"]["name"].as_str().unwrap_or_default().into(),
        )
    }
}

/// A kubectl of some version.
#[derive(Clone)]
pub(crate) struct Kubectl {
    program: String,
    kubeconfig: String,
    home: String,
}

impl Kubectl {
    /// The oldest and the newest kubectl of this machine; one from the path where those are not installed.
    pub(crate) fn all(kubeconfig: &str, home: &std::path::Path) -> Vec<Kubectl> {
        let known = ["/usr/lib/google-cloud-sdk/bin/kubectl.1.27", "/usr/lib/google-cloud-sdk/bin/kubectl.1.33"];
        let mut programs: Vec<&str> = known.into_iter().filter(|path| std::path::Path::new(path).exists()).collect();
        if programs.is_empty() {
            programs.push("kubectl");
        }
        let home = home.display().to_string();
        programs
            .into_iter()
            .map(|program| Kubectl { program: program.into(), kubeconfig: kubeconfig.into(), home: home.clone() })
            .collect()
    }

    pub(crate) fn run(&self, args: &[&str], stdin: &str) -> Output {
        let mut child = Command::new(&self.program)
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl must be installed for these tests");
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Must work; what it printed.
    pub(crate) fn ok(&self, args: &[&str], stdin: &str) -> String {
        let output = self.run(args, stdin);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{} {args:?}: {}\n{text}",
            self.program,
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// Must fail; what it said.
    pub(crate) fn fails(&self, args: &[&str], stdin: &str) -> String {
        let output = self.run(args, stdin);
        assert!(
            !output.status.success(),
            "{} {args:?} should have failed: {}",
            self.program,
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}
