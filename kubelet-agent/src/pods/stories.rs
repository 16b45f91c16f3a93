//! Stories of whole pods: a real worker between a pretended API, runtime, image store and network.

mod claims;
mod endings;
mod returns;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use kube::client::Body;
use parking_lot::Mutex;
use proa_crds::Family;
use proa_network::PodNet;
use proa_runtime::{
    Answer, AttachSpec, ContainerSpec, ContainerState, ContainerStatus, Created, ExecSpec, Exit, ExitReason, Resources,
    Runtime, RuntimeError, RuntimeEvent, Sandbox, SandboxSpec, SandboxState, Session, Stats,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Pod;
use super::context::{Context, DnsSettings, Networks, Registry};
use super::ground::GroundInfo;
use super::layout::Layout;
use super::ports::Ports;
use super::track::ContainerId;
use super::worker::{self, Begin, Message};
use crate::events::Recorder;
use crate::images::{Credentials, ImageSource, Images, LocalImage, PullFailure};
use crate::objects::Objects;
use crate::resolver::HostResolver;
use crate::services::{Services, Settings};
use crate::volumes::local::LocalVolumes;

/// A runtime whose containers do what the test says.
#[derive(Default)]
struct Pretend {
    containers: Mutex<BTreeMap<String, (ContainerSpec, ContainerState)>>,
    sandboxes: Mutex<BTreeMap<String, SandboxSpec>>,
    signals: watch::Sender<Vec<(String, i32)>>,
    registry: Mutex<Option<Arc<Context>>>,
    /// a container of this name ignores SIGTERM
    deaf: Mutex<BTreeSet<String>>,
    /// commands that were run in containers; each fails
    commands: Mutex<Vec<Vec<String>>>,
    removed: watch::Sender<BTreeSet<String>>,
}

fn exit(code: i32) -> Exit {
    let reason = if code == 0 { ExitReason::Completed } else { ExitReason::Error };
    Exit { code, signal: None, reason, message: String::new(), finished_at: Timestamp::now() }
}

impl Pretend {
    /// The container of that name ends.
    fn end(&self, name: &str, code: i32) {
        let ended: Vec<String> = self
            .containers
            .lock()
            .iter_mut()
            .filter(|(_, (spec, state))| spec.name == name && *state == ContainerState::Running)
            .map(|(id, (_, state))| {
                *state = ContainerState::Exited(exit(code));
                id.clone()
            })
            .collect();
        for id in ended {
            self.tell(&id, exit(code));
        }
    }

    fn tell(&self, id: &str, exit: Exit) {
        let ctx = self.registry.lock().clone().expect("set up");
        let id = ContainerId(id.to_owned());
        if let Some(uid) = ctx.registry.owner(&id) {
            ctx.registry.tell(&uid, Message::Exited { id, exit });
        }
    }
}

fn ok<'a, T: Send + 'a>(value: T) -> Answer<'a, T> {
    Box::pin(async move { Ok(value) })
}

fn no<'a, T: Send + 'a>() -> Answer<'a, T> {
    Box::pin(async { Err(RuntimeError::Unsupported("this in a test".into())) })
}

impl Runtime for Pretend {
    fn run_sandbox(&self, spec: SandboxSpec) -> Answer<'_, Sandbox> {
        self.sandboxes.lock().insert(spec.id.clone(), spec.clone());
        ok(Sandbox { spec, state: SandboxState::Ready, created_at: Timestamp::now(), warnings: vec![] })
    }

    fn stop_sandbox<'a>(&'a self, _: &'a str) -> Answer<'a, ()> {
        ok(())
    }

    fn remove_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        self.sandboxes.lock().remove(id);
        self.containers.lock().clear();
        ok(())
    }

    fn list_sandboxes(&self) -> Answer<'_, Vec<Sandbox>> {
        ok(vec![])
    }

    fn create<'a>(&'a self, _: &'a str, spec: ContainerSpec) -> Answer<'a, Created> {
        self.containers.lock().insert(spec.id.clone(), (spec, ContainerState::Created));
        ok(Created::default())
    }

    fn start<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        if let Some((_, state)) = self.containers.lock().get_mut(id) {
            *state = ContainerState::Running;
        }
        ok(())
    }

    fn kill<'a>(&'a self, id: &'a str, signal: i32) -> Answer<'a, ()> {
        let name = {
            let mut containers = self.containers.lock();
            let Some((spec, state)) = containers.get_mut(id) else { return ok(()) };
            self.signals.send_modify(|sent| sent.push((spec.name.clone(), signal)));
            if signal != 9 && self.deaf.lock().contains(&spec.name) {
                return ok(());
            }
            *state = ContainerState::Exited(exit(128 + signal));
            spec.id.clone()
        };
        self.tell(&name, exit(128 + signal));
        ok(())
    }

    fn stop<'a>(&'a self, _: &'a str, _: i32, _: Duration) -> Answer<'a, Exit> {
        ok(exit(143))
    }

    fn remove<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        self.containers.lock().remove(id);
        self.removed.send_modify(|removed| removed.extend([id.to_owned()]));
        ok(())
    }

    fn list(&self) -> Answer<'_, Vec<ContainerStatus>> {
        ok(vec![])
    }

    fn status<'a>(&'a self, id: &'a str) -> Answer<'a, ContainerStatus> {
        Box::pin(async move { Err(RuntimeError::ContainerNotFound(id.to_owned())) })
    }

    fn exec<'a>(&'a self, _: &'a str, spec: ExecSpec) -> Answer<'a, Session> {
        self.commands.lock().push(spec.args);
        no()
    }

    fn attach<'a>(&'a self, _: &'a str, _: AttachSpec) -> Answer<'a, Session> {
        no()
    }

    fn update<'a>(&'a self, _: &'a str, _: Resources) -> Answer<'a, ()> {
        ok(())
    }

    fn stats<'a>(&'a self, _: &'a str) -> Answer<'a, Stats> {
        ok(Stats::default())
    }

    fn sandbox_stats<'a>(&'a self, _: &'a str) -> Answer<'a, Stats> {
        ok(Stats::default())
    }

    fn writable_layer(&self, _: &str) -> Option<PathBuf> {
        None
    }

    fn reopen_log<'a>(&'a self, _: &'a str) -> Answer<'a, ()> {
        ok(())
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        Box::pin(futures::stream::pending())
    }
}

/// Images that are there, except `missing…`, which is nowhere, and `slow…`, whose pull never ends.
#[derive(Default)]
struct Shelf {
    /// pulls under way
    pulls: Arc<watch::Sender<u32>>,
}

impl Shelf {
    fn is_here(reference: &str) -> bool {
        !reference.starts_with("missing") && !reference.starts_with("slow")
    }
}

/// One pull under way.
struct UnderWay(Arc<watch::Sender<u32>>);

impl UnderWay {
    fn begin(pulls: &Arc<watch::Sender<u32>>) -> Self {
        pulls.send_modify(|n| *n += 1);
        Self(pulls.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

impl ImageSource for Shelf {
    fn get<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Option<LocalImage>> {
        Box::pin(async move {
            Self::is_here(reference).then(|| LocalImage {
                id: "sha256:1".into(),
                references: vec![reference.into()],
                entrypoint: vec!["/app".into()],
                env: vec!["FROM=image".into()],
                ..LocalImage::default()
            })
        })
    }

    fn pull<'a>(&'a self, name: &'a str, _: Option<Credentials>) -> BoxFuture<'a, Result<LocalImage, PullFailure>> {
        Box::pin(async move {
            let _under_way = UnderWay::begin(&self.pulls);
            if name.starts_with("slow") {
                std::future::pending::<()>().await;
            }
            Err(PullFailure::Failed("not found".into()))
        })
    }

    fn layers<'a>(&'a self, _: &'a LocalImage) -> BoxFuture<'a, Result<Vec<PathBuf>, String>> {
        Box::pin(async { Ok(vec!["/nowhere".into()]) })
    }

    fn list(&self) -> BoxFuture<'_, Vec<LocalImage>> {
        Box::pin(async { vec![] })
    }
}

struct OneAddress;

impl Networks for OneAddress {
    fn setup<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<PodNet, String>> {
        Box::pin(async move {
            Ok(PodNet {
                id: id.to_owned(),
                netns: "/proc/self/ns/net".into(),
                ip: "10.244.0.5".parse().unwrap(),
                interface: "veth".into(),
            })
        })
    }

    fn teardown<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<PodNet>, String>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn sweep<'a>(&'a self, _: &'a BTreeSet<String>) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

/// The pod as the pretended API has it.
#[derive(Clone)]
struct Api {
    pod: watch::Sender<Value>,
    deleted: watch::Sender<bool>,
    objects: Arc<Mutex<BTreeMap<String, Value>>>,
}

impl Api {
    fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let bytes = body.collect().await.unwrap().to_bytes();
                let (code, answer) = api.answer(&parts.method, parts.uri.path(), &bytes);
                let response = http::Response::builder()
                    .status(code)
                    .header("content-type", "application/json")
                    .body(Body::from(serde_json::to_vec(&answer).unwrap()));
                Ok::<_, std::convert::Infallible>(response.unwrap())
            }
        });
        kube::Client::new(service, "default")
    }

    fn answer(&self, method: &http::Method, path: &str, body: &[u8]) -> (u16, Value) {
        let missing = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
            "reason": "NotFound", "message": "not found", "metadata": {}});
        match (method.as_str(), path) {
            ("PATCH", p) if p.ends_with("/pods/web/status") => {
                let patch: Value = serde_json::from_slice(body).unwrap();
                self.pod.send_modify(|pod| pod["status"] = patch["status"].clone());
                (200, self.pod.borrow().clone())
            }
            ("DELETE", p) if p.ends_with("/pods/web") => {
                let options: Value = serde_json::from_slice(body).unwrap();
                assert_eq!(options["gracePeriodSeconds"], 0);
                assert_eq!(options["preconditions"]["uid"], "u1");
                self.deleted.send_replace(true);
                (200, self.pod.borrow().clone())
            }
            ("GET", p) => match self.objects.lock().get(p) {
                Some(object) => (200, object.clone()),
                None => (404, missing),
            },
            _ => (404, missing),
        }
    }
}

struct Story {
    ctx: Arc<Context>,
    /// pulls under way
    pulls: Arc<watch::Sender<u32>>,
    runtime: Arc<Pretend>,
    api: Api,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Story {
    async fn begins(spec: Value, objects: &[(&str, Value)]) -> Self {
        Self::goes_on(spec, Value::Null, objects, vec![], None)
    }

    /// A pod of which the API shows a status already, and the runtime has containers.
    fn goes_on(
        spec: Value,
        status: Value,
        objects: &[(&str, Value)],
        found: Vec<ContainerStatus>,
        ground: Option<GroundInfo>,
    ) -> Self {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "default", "uid": "u1"}, "spec": spec, "status": status});
        let api = Api {
            pod: watch::Sender::new(pod.clone()),
            deleted: watch::Sender::new(false),
            objects: Arc::new(Mutex::new(objects.iter().map(|(p, o)| ((*p).to_owned(), o.clone())).collect())),
        };
        let client = api.client();
        let dir = tempfile::tempdir().unwrap();
        let runtime = Arc::new(Pretend::default());
        let shelf = Shelf::default();
        let pulls = shelf.pulls.clone();
        let ctx = Arc::new(Context {
            recorder: Recorder::start(client.clone(), "n1", "v1"),
            objects: Objects::new(client.clone()),
            client,
            family: Family::Standard,
            node_name: "n1".into(),
            host_ips: vec!["192.0.2.1".into()],
            instance: "t".into(),
            layout: Layout::new(dir.path()),
            local_volumes: LocalVolumes::open(dir.path()).unwrap(),
            runtime: runtime.clone(),
            images: Images::new(Arc::new(shelf)),
            network: Arc::new(OneAddress),
            services: Services::new(Settings {
                node_name: "n1".into(),
                domain: "cluster.local".into(),
                answered_here: vec![],
                api_address: ("192.0.2.9".into(), 6443),
            }),
            dns: DnsSettings {
                server: "10.96.0.10".parse().unwrap(),
                domain: "cluster.local".into(),
                host: HostResolver { host: "/nonexistent".into(), behind_the_stub: "/nonexistent".into() },
            },
            allocatable: BTreeMap::new(),
            memory_capacity: 1 << 30,
            registry: Registry::default(),
            host_ports: Ports::default(),
        });
        *runtime.registry.lock() = Some(ctx.clone());
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let task = worker::spawn(Begin { ctx: ctx.clone(), pod: Arc::new(pod), found, ground });
        Self { ctx, pulls, runtime, api, task, _dir: dir }
    }

    async fn until(&self, what: &str, seen: impl Fn(&Value) -> bool) -> Value {
        let mut pod = self.api.pod.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(20), pod.wait_for(|p| seen(&p["status"]))).await;
        match waited {
            Ok(pod) => pod.unwrap()["status"].clone(),
            Err(_) => panic!("not seen: {what}; status is {:#}", self.api.pod.borrow()["status"]),
        }
    }

    fn delete(&self, grace: i64) {
        let mut pod = self.api.pod.borrow().clone();
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.ctx.registry.tell("u1", Message::Pod(Arc::new(serde_json::from_value(pod).unwrap())));
    }

    async fn ends(self) {
        let mut deleted = self.api.deleted.subscribe();
        tokio::time::timeout(Duration::from_secs(20), deleted.wait_for(|d| *d)).await.expect("deleted").unwrap();
        self.ctx.registry.tell("u1", Message::Gone);
        tokio::time::timeout(Duration::from_secs(20), self.task).await.expect("over").unwrap();
        assert!(self.ctx.registry.uids().is_empty());
        assert!(!self.ctx.layout.pod("u1").exists(), "nothing is left on the disk");
    }
}

fn ready(status: &Value) -> bool {
    status["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn waiting(status: &Value, index: usize) -> &Value {
    &status["containerStatuses"][index]["state"]["waiting"]["reason"]
}

#[tokio::test]
async fn a_pod_runs_is_stopped_and_leaves_nothing() {
    let story = Story::begins(json!({"containers": [{"name": "app", "image": "img:1"}]}), &[]).await;
    let status = story.until("running", |s| s["phase"] == "Running" && ready(s)).await;
    assert_eq!(status["podIP"], "10.244.0.5");
    assert_eq!(status["hostIP"], "192.0.2.1");
    assert_eq!(status["containerStatuses"][0]["imageID"], "sha256:1");
    {
        let containers = story.runtime.containers.lock();
        let (spec, _) = containers.values().next().unwrap();
        assert_eq!(spec.args, ["/app"]);
        let value = |n: &str| spec.env.iter().find(|(name, _)| name == n).map(|(_, v)| v.as_str());
        assert_eq!(
            (value("FROM"), value("KUBERNETES_SERVICE_HOST"), value("HOSTNAME")),
            (Some("image"), Some("192.0.2.9"), Some("web"))
        );
        assert!(spec.mounts.iter().any(|m| m.target == std::path::Path::new("/etc/hosts")));
    }
    story.delete(30);
    let status = story.until("terminated", |s| s["phase"] == "Failed").await;
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 143);
    assert_eq!(*story.runtime.signals.borrow(), [("app".to_owned(), 15)]);
    story.ends().await;
}

#[tokio::test]
async fn a_container_that_does_not_listen_is_killed_when_its_grace_is_over() {
    let story = Story::begins(json!({"containers": [{"name": "app", "image": "img:1"}]}), &[]).await;
    story.runtime.deaf.lock().insert("app".into());
    story.until("running", ready).await;
    story.delete(1);
    story.until("terminated", |s| s["phase"] == "Failed").await;
    assert_eq!(*story.runtime.signals.borrow(), [("app".to_owned(), 15), ("app".to_owned(), 9)]);
    story.ends().await;
}

#[tokio::test]
async fn a_crashing_container_is_restarted_and_then_backs_off() {
    let story = Story::begins(json!({"containers": [{"name": "app", "image": "img:1"}]}), &[]).await;
    story.until("running", ready).await;
    story.runtime.end("app", 1);
    story.until("restarted", |s| s["containerStatuses"][0]["restartCount"] == 1 && ready(s)).await;
    story.runtime.end("app", 1);
    let status = story.until("backing off", |s| waiting(s, 0) == "CrashLoopBackOff").await;
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 1);
    story.delete(0);
    story.ends().await;
}

#[tokio::test]
async fn a_job_succeeds_and_keeps_its_status() {
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "first", "image": "img:1"}],
        "containers": [{"name": "app", "image": "img:1"}]});
    let story = Story::begins(spec, &[]).await;
    story.until("first runs", |s| s["initContainerStatuses"][0]["state"]["running"].is_object()).await;
    story.runtime.end("first", 0);
    story.until("app runs", |s| s["phase"] == "Running").await;
    story.runtime.end("app", 0);
    let status = story.until("succeeded", |s| s["phase"] == "Succeeded").await;
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    story.delete(0);
    story.ends().await;
}

#[tokio::test]
async fn an_image_that_is_not_there_is_told() {
    let story = Story::begins(json!({"containers": [{"name": "app", "image": "missing:1"}]}), &[]).await;
    let status = story.until("told", |s| waiting(s, 0) == "ErrImagePull").await;
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"]["message"],
        "Failed to pull image \"missing:1\": not found"
    );
    story.delete(0);
    story.ends().await;
}

#[tokio::test]
async fn a_missing_configuration_is_told_and_a_kept_revision_is_read() {
    let spec = json!({"containers": [{"name": "app", "image": "img:1",
        "env": [{"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "greeting"}}}]}]});
    let story = Story::begins(spec.clone(), &[]).await;
    let status = story.until("told", |s| waiting(s, 0) == "CreateContainerConfigError").await;
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["message"], "configmap \"cfg\" not found");
    story.delete(0);
    story.ends().await;

    let kept = json!({"metadata": {"name": "web-1-config"}, "type": "proa.dev/config-revision",
        "data": {"configmap.cfg": "eyJkYXRhIjp7ImdyZWV0aW5nIjoib2xkIn19"}});
    let live = json!({"metadata": {"name": "cfg"}, "data": {"greeting": "new"}});
    let objects = [
        ("/api/v1/namespaces/default/configmaps/cfg", live),
        ("/api/v1/namespaces/default/secrets/web-1-config", kept),
    ];
    for (annotations, want) in [(json!({}), "new"), (json!({"proa.dev/config-revision": "web-1-config"}), "old")] {
        let story = Story::begins(json!({"containers": []}), &objects).await;
        let mut pod = story.api.pod.borrow().clone();
        pod["metadata"]["annotations"] = annotations;
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let reference = crate::objects::ObjectRef::config_map("cfg");
        let found = story.ctx.objects.read_for(&pod, std::slice::from_ref(&reference)).await.unwrap();
        assert_eq!(found[&reference].as_ref().unwrap().entries["greeting"], want.as_bytes());
    }
}

#[tokio::test]
async fn a_pod_past_its_deadline_fails() {
    let spec = json!({"activeDeadlineSeconds": 1, "containers": [{"name": "app", "image": "img:1"}]});
    let story = Story::begins(spec, &[]).await;
    let status = story.until("failed", |s| s["phase"] == "Failed").await;
    assert_eq!(status["reason"], "DeadlineExceeded");
    story.delete(0);
    story.ends().await;
}
