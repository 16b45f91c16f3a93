//! Real clients that are not kubectl: the official ones for Python and JavaScript, each with a day of its own in
//! `tests/clients`, and kube-rs, which the platform's own parts use too. What they need `.ci/clients` installs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{AttachParams, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams, WatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, WatchEvent};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Error, ResourceExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Cluster, text};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Where `.ci/clients` put something.
fn installed(path: &str) -> PathBuf {
    let folder = Path::new(ROOT).join("target/test-clients");
    let folder = std::env::var_os("PROA_TEST_CLIENTS").map_or(folder, PathBuf::from);
    let path = folder.join(path);
    assert!(path.exists(), "the client tests need {}: run .ci/clients", path.display());
    path
}

/// A story of another language against a platform of its own, to its end and without an error.
fn told(interpreter: impl AsRef<OsStr>, story: &Path) {
    let cluster = Cluster::up();
    cluster.load_busybox();
    let mut command = cluster.namespace.command(interpreter);
    command.arg(story).env("KUBECONFIG", cluster.kubeconfig()).env("HOME", cluster.scratch());
    let output = command.output().expect("the interpreter runs");
    assert!(output.status.success() && text(&output).contains("day is over"), "{}", text(&output));
}

#[test]
fn the_python_client_writes_patches_applies_watches_runs_commands_and_reads_logs() {
    told(installed("python/bin/python"), &Path::new(ROOT).join("tests/clients/python/story.py"));
}

#[test]
fn the_javascript_client_writes_patches_applies_watches_runs_commands_and_reads_logs() {
    // Node looks for packages beside the story: `.ci/clients` copies it to where they are.
    let story = installed("javascript/story.mjs");
    let ours = std::fs::read(Path::new(ROOT).join("tests/clients/javascript/story.mjs")).expect("the story");
    assert_eq!(std::fs::read(&story).expect("its copy"), ours, "run .ci/clients: the story has changed");
    told("node", &story);
}

#[test]
fn kube_rs_writes_patches_applies_watches_runs_commands_and_reads_logs() {
    let cluster = Cluster::up();
    cluster.load_busybox();
    let file = kube::config::Kubeconfig::read_from(cluster.kubeconfig()).expect("a kubeconfig");
    cluster.namespace.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let options = kube::config::KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(file, &options);
            let client = Client::try_from(config.await.expect("a usable kubeconfig")).expect("a client");
            let namespace = serde_json::from_value(json!({"metadata": {"name": "rust"}})).expect("a namespace");
            let namespaces: Api<Namespace> = Api::all(client.clone());
            namespaces.create(&PostParams::default(), &namespace).await.expect("created");
            typed(client.clone()).await;
            patches(client.clone()).await;
            pods(client).await;
        });
    });
}

/// The status code of a refusal.
fn code<T: std::fmt::Debug>(answer: Result<T, Error>) -> u16 {
    match answer {
        Err(Error::Api(status)) => status.code,
        other => panic!("not refused by the API: {other:?}"),
    }
}

/// Creates, reads, replaces, lists and deletes while a watcher follows.
async fn typed(client: Client) {
    let maps: Api<ConfigMap> = Api::namespaced(client, "rust");
    let config = watcher::Config::default().labels("of=typed").streaming_lists();
    let mut seen = watcher(maps.clone(), config).default_backoff().boxed();
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "typed", "labels": {"of": "typed"}}, "data": {"a": "1"}}))
            .expect("a config map");
    loop {
        // An empty list first: what is created after it is an event.
        if matches!(seen.next().await.expect("it goes on").expect("an event"), watcher::Event::InitDone) {
            break;
        }
    }
    let mut made = maps.create(&PostParams::default(), &map).await.expect("created");
    assert_eq!(code(maps.create(&PostParams::default(), &map).await), 409);
    assert_eq!(maps.get("typed").await.expect("read"), made);
    made.data = Some([("a".to_owned(), "2".to_owned())].into());
    maps.replace("typed", &PostParams::default(), &made).await.expect("replaced");
    assert_eq!(code(maps.replace("typed", &PostParams::default(), &made).await), 409, "a stale version");
    let list = maps.list(&ListParams::default().labels("of=typed").limit(1)).await.expect("a list");
    assert_eq!(list.items.len(), 1);
    let gone = maps.delete("typed", &DeleteParams::default()).await.expect("deleted");
    assert!(gone.right().expect("a status").is_success());
    let mut kinds = Vec::new();
    while kinds.last() != Some(&"gone") {
        match seen.try_next().await.expect("an event").expect("it goes on") {
            watcher::Event::Apply(map) => kinds.push(if map.data == made.data { "changed" } else { "new" }),
            watcher::Event::Delete(_) => kinds.push("gone"),
            _ => {}
        }
    }
    assert_eq!(kinds, ["new", "changed", "gone"]);
}

/// The four types of patch, typed and dynamic, and the scale.
async fn patches(client: Client) {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "rust");
    let container = json!({"name": "main", "image": "test/busybox:1"});
    let side = json!({"name": "side", "image": "test/busybox:1"});
    let with = |containers: Value| json!({"spec": {"template": {"spec": {"containers": containers}}}});
    let deployment = json!({"metadata": {"name": "patched"}, "spec": {"replicas": 0,
        "selector": {"matchLabels": {"app": "patched"}},
        "template": {"metadata": {"labels": {"app": "patched"}}, "spec": {"containers": [container]}}}});
    let deployment = serde_json::from_value(deployment).expect("a deployment");
    deployments
        .create(&PostParams { field_manager: Some("first".into()), ..PostParams::default() }, &deployment)
        .await
        .expect("created");
    let patch = |patch: Patch<Value>| {
        let deployments = deployments.clone();
        async move {
            let patched = deployments.patch("patched", &PatchParams::apply("second"), &patch).await.expect("patched");
            let spec = patched.spec.and_then(|spec| spec.template.spec).expect("a pod");
            spec.containers.into_iter().map(|container| container.name).collect::<Vec<_>>()
        }
    };
    assert_eq!(patch(Patch::Strategic(with(json!([side])))).await.len(), 2, "merged by name");
    assert_eq!(patch(Patch::Merge(with(json!([container])))).await, ["main"], "a list is replaced");
    // The type for it is behind a feature that the platform has no need of; the request is the same.
    let uri = "/apis/apps/v1/namespaces/rust/deployments/patched";
    let operations = json!([{"op": "test", "path": "/spec/replicas", "value": 0},
        {"op": "add", "path": "/metadata/annotations", "value": {"by": "json"}}]);
    let request = http::Request::patch(uri).header("content-type", "application/json-patch+json");
    let request = request.body(operations.to_string().into_bytes()).expect("a request");
    let patched: Deployment = client.request(request).await.expect("patched");
    assert_eq!(patched.annotations()["by"], "json");

    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", "Deployment"));
    let dynamic: Api<DynamicObject> = Api::namespaced_with(client, "rust", &kind);
    let applied = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "patched"},
        "spec": {"replicas": 2}});
    let manager = PatchParams::apply("story");
    assert_eq!(code(dynamic.patch("patched", &manager, &Patch::Apply(&applied)).await), 409, "another's field");
    let forced = dynamic.patch("patched", &manager.force(), &Patch::Apply(&applied)).await.expect("taken");
    assert_eq!(forced.data["spec"]["replicas"], 2);
    let scale = json!({"spec": {"replicas": 1}});
    let scale = deployments.patch_scale("patched", &PatchParams::default(), &Patch::Merge(&scale)).await;
    assert_eq!(scale.expect("scaled").spec.and_then(|spec| spec.replicas), Some(1));
    deployments.delete("patched", &DeleteParams::background()).await.expect("deleted");
}

/// A real container: awaited, its logs followed, a command with all its streams, and its end.
async fn pods(client: Client) {
    let pods: Api<Pod> = Api::namespaced(client, "rust");
    let script = "echo first; echo second; exec sleep 600";
    let pod = json!({"metadata": {"name": "worker"}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": "test/busybox:1", "command": ["sh", "-c", script]}]}});
    let pod: Pod = serde_json::from_value(pod).expect("a pod");
    let made = pods.create(&PostParams::default(), &pod).await.expect("created");
    let version = made.resource_version().expect("a version");
    let mut changes =
        pods.watch(&WatchParams::default().fields("metadata.name=worker"), &version).await.expect("a watch").boxed();
    loop {
        let change = changes.try_next().await.expect("an event").expect("the watch goes on");
        if let WatchEvent::Modified(pod) = change
            && pod.status.and_then(|status| status.phase).as_deref() == Some("Running")
        {
            break;
        }
    }
    let mut log = pods.log_stream("worker", &LogParams { follow: true, ..LogParams::default() }).await.expect("a log");
    let mut said = vec![0; "first\nsecond\n".len()];
    futures::AsyncReadExt::read_exact(&mut log, &mut said).await.expect("two lines");
    assert_eq!(said, b"first\nsecond\n");
    let last = LogParams { tail_lines: Some(1), ..LogParams::default() };
    assert_eq!(pods.logs("worker", &last).await.expect("a line"), "second\n");

    let streams = AttachParams::default().stdin(true).stderr(true);
    let command = ["sh", "-c", "echo err >&2; read line; echo got $line; exit 3"];
    let mut running = pods.exec("worker", command, &streams).await.expect("it runs");
    let mut stdin = running.stdin().expect("asked for");
    let (mut stdout, mut stderr) = (running.stdout().expect("asked for"), running.stderr().expect("asked for"));
    let status = running.take_status().expect("taken once");
    stdin.write_all(b"hello\n").await.expect("it listens");
    let (mut out, mut err) = (String::new(), String::new());
    let (first, second) = tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err));
    first.and(second).expect("both end");
    assert_eq!((out.as_str(), err.as_str()), ("got hello\n", "err\n"));
    let status = status.await.expect("a status");
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"), "{status:?}");

    let gone = pods.delete("worker", &DeleteParams::default().grace_period(0)).await.expect("deleted");
    assert_eq!(gone.left().expect("what it was").uid(), made.uid());
    while !matches!(changes.try_next().await.expect("an event").expect("the watch goes on"), WatchEvent::Deleted(_)) {}
}
