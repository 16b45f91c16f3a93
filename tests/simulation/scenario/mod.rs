//! What happens in one run: users who change their minds, and the weather.
//!
//! Owns: the drawing of a story from a seed, and playing it on a whole control plane in one thread of virtual time. What
//! happens between two rests is in `events`.

mod events;

use crate::auditor::Auditor;
use crate::faults::Weather;
use crate::hollow::Hollow;
use crate::jobs::{a_cron_job, a_job};
use crate::laws::{Wanted, Wishes, at_rest};
use crate::objects::Objects;
use crate::quota::quota;
use crate::release::Bundle;
use crate::sets::{Asked, Kind};
use crate::storage;
use crate::world::{Machines, Observed, now_from};
use http_body_util::{BodyExt, Full};
use kube::Client;
use parking_lot::Mutex;
use proa_apiserver::{Config, Entropy, Server, User};
use proa_store::{Log, Memory};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long the world may take to come to rest when nothing disturbs it any more: a silent watch is noticed after five
/// minutes, a pod of a silent node is given up after six, a crash loop pauses for five, a Job that fails for up to six.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// How long it must then stay at rest.
const STANDSTILL: Duration = Duration::from_secs(15);

/// How many events the store remembers: more than any story has.
const HISTORY: usize = 1_000_000;

/// What one run left behind.
#[derive(Default, Deserialize, Serialize)]
pub(crate) struct Story {
    /// What went wrong.
    pub(crate) broken: Vec<String>,
    /// Hash and words of each commit.
    pub(crate) trace: Vec<(u64, String)>,
    /// What was done, in words.
    pub(crate) told: Vec<String>,
}

/// What every run starts from: a server's first objects, and its keys.
pub(crate) struct Prepared {
    memory: Memory,
    objects: Objects,
    keys: tempfile::TempDir,
}

impl Prepared {
    pub(crate) fn new() -> Prepared {
        let keys = tempfile::tempdir().expect("a temporary directory");
        let (memory, objects) = virtual_time(async {
            let observed = Arc::new(Observed::new(Memory::new(HISTORY), Objects::default()));
            let server = open(&observed, keys.path(), 0).await;
            server.close();
            drop(server);
            (observed.fork(), observed.records.lock().objects.clone())
        });
        Prepared { memory, objects, keys }
    }
}

/// Runs something on this thread, in a time that jumps to the next thing that happens.
pub(crate) fn virtual_time<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(what)
}

async fn open(log: &Arc<Observed>, keys: &Path, seed: u64) -> Server {
    let now = now_from(Instant::now());
    let config = Config {
        clock: proa_apiserver::Clock::new(now),
        entropy: Entropy::seeded(seed),
        definitions: proa_crds::extension_definitions(),
        ..Config::new(keys)
    };
    Server::open(config, log.clone() as Arc<dyn Log>).await.expect("the server opens")
}

/// Plays the story of a seed.
pub(crate) fn play(prepared: &Prepared, seed: u64) -> Story {
    virtual_time(async {
        let mut play = Play::start(prepared, seed).await;
        let outcome = play.acts().await;
        play.end(outcome)
    })
}

struct Play {
    chance: StdRng,
    /// Chance of its own, so that what evictions draw changes nothing else of a story.
    evictor: StdRng,
    seed: u64,
    store: Arc<Observed>,
    server: Server,
    machines: Arc<Mutex<Machines>>,
    controllers: Weather,
    /// The weather on each node's lines.
    nodes: BTreeMap<String, Weather>,
    alive: BTreeMap<String, CancellationToken>,
    loops: CancellationToken,
    auditor: Auditor,
    wishes: Wishes,
    /// What autoscaled deployments have to carry, by name, as a server of metrics tells it.
    loads: Arc<Mutex<BTreeMap<String, i64>>>,
    told: Vec<String>,
    origin: Instant,
    clock: proa_controllers::Clock,
    incarnations: u64,
    jobs: u32,
}

impl Play {
    async fn start(prepared: &Prepared, seed: u64) -> Play {
        let origin = Instant::now();
        let store = Arc::new(Observed::new(prepared.memory.fork(HISTORY), prepared.objects.clone()));
        let server = open(&store, prepared.keys.path(), seed).await;
        let machines: Arc<Mutex<Machines>> = Arc::default();
        let witness = {
            let (store, machines) = (store.clone(), machines.clone());
            Arc::new(move |method: &http::Method, path: &str| {
                if method == http::Method::DELETE {
                    store.records.lock().judge_deletion(path, &machines.lock());
                }
            })
        };
        let loads: Arc<Mutex<BTreeMap<String, i64>>> = Arc::default();
        let metrics = {
            let loads = loads.clone();
            Arc::new(move |path: &str| metric(path, &loads.lock()))
        };
        let auditor = Auditor::start(server.local(User::new("auditor", &["system:masters"])), store.revision().0, seed);
        let mut play = Play {
            chance: StdRng::seed_from_u64(seed),
            evictor: StdRng::seed_from_u64(seed ^ 0xE71C7),
            seed,
            controllers: Weather::new(seed ^ 0xC0, Some(witness), Some(metrics)),
            nodes: BTreeMap::new(),
            alive: BTreeMap::new(),
            loops: CancellationToken::new(),
            auditor,
            wishes: Wishes::default(),
            loads,
            told: Vec::new(),
            origin,
            clock: proa_controllers::Clock::simulated(crate::world::START.parse().expect("a time")),
            incarnations: 0,
            jobs: 0,
            store,
            server,
            machines,
        };
        play.start_controllers();
        for node in 0..play.chance.random_range(2..=3) {
            play.start_node(&format!("node-{node}"));
        }
        play
    }

    fn tell(&mut self, what: String) {
        let line = format!("{:>9.3} {what}", self.origin.elapsed().as_secs_f64());
        if std::env::var_os("PROA_TRACE").is_some() {
            eprintln!("== {line}");
        }
        self.told.push(line);
    }

    fn start_controllers(&mut self) {
        let user = User::new("controllers", &["system:masters"]);
        let client = Client::new(self.controllers.line(self.server.local(user)), "default");
        let family = proa_crds::Family::Standard;
        let options = proa_controllers::Options {
            clock: self.clock.clone(),
            node_blocks: proa_controllers::Blocks::new([10, 244, 0, 0].into(), 16, 24),
            ..proa_controllers::Options::new(family)
        };
        self.loops = CancellationToken::new();
        let loops = self.loops.clone();
        tokio::spawn(async move {
            let Ok(()) = proa_controllers::run(client, options, loops).await;
        });
    }

    /// As if the process had been killed and started again: what it had in hand is lost.
    fn restart_controllers(&mut self) {
        self.tell("the controllers die, and are started again".into());
        self.controllers.kill();
        self.loops.cancel();
        self.start_controllers();
    }

    fn start_node(&mut self, name: &str) {
        self.incarnations += 1;
        let (user, seed) = (User::node(name), self.seed ^ 0x90DE ^ self.incarnations << 32);
        let weather = self.nodes.entry(name.to_owned()).or_insert_with(|| Weather::new(seed, None, None));
        let hollow = Hollow {
            name: name.to_owned(),
            client: Client::new(weather.line(self.server.local(user)), "default"),
            clock: proa_apiserver::Clock::new(now_from(self.origin)),
            machines: self.machines.clone(),
            seed: self.seed.wrapping_mul(31).wrapping_add(self.incarnations),
        };
        let stop = CancellationToken::new();
        self.alive.insert(name.to_owned(), stop.clone());
        tokio::spawn(hollow.run(stop));
    }

    async fn call(&self, method: &str, path: &str, content_type: &str, body: &Value) -> (u16, Value) {
        let mut server = self.server.local(User::new("alice", &["system:masters"]));
        let request = http::Request::builder().method(method).uri(path).header("content-type", content_type);
        let request = request.body(Full::new(bytes::Bytes::from(body.to_string()))).expect("a request");
        let Ok(response) = tower::Service::call(&mut server, request).await;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (code, serde_json::from_slice(&body).unwrap_or_default())
    }

    async fn must(&self, method: &str, path: &str, content_type: &str, body: &Value) -> Result<Value, String> {
        match self.call(method, path, content_type, body).await {
            (200..=299, answer) => Ok(answer),
            (code, answer) => Err(format!("{method} {path}: {code} {}", answer["message"])),
        }
    }

    async fn acts(&mut self) -> Result<(), String> {
        self.must("POST", "/api/v1/namespaces", JSON, &json!({"metadata": {"name": "shop"}})).await?;
        self.must("POST", "/apis/storage.k8s.io/v1/storageclasses", JSON, &storage::class()).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        for name in ["web", "api"].iter().take(if self.chance.random_bool(0.35) { 2 } else { 1 }) {
            self.deploy(name).await?;
        }
        for (kind, often) in [(Kind::Stateful, 0.4), (Kind::Daemon, 0.35), (Kind::Replication, 0.1)] {
            if self.chance.random_bool(often) {
                let (asked, made) = Asked::start(kind, &mut self.chance);
                for (path, object) in made {
                    self.tell(format!("{path}: {object}"));
                    self.must("POST", &path, JSON, &object).await?;
                }
                self.wishes.sets.push(asked);
            }
        }
        if self.chance.random_bool(0.25) {
            // Claims of users only are refused where there is no room: a set would wait for its own.
            let claims = if self.wishes.sets.iter().any(|set| set.kind == Kind::Stateful) { 50 } else { 2 };
            let quota = quota(claims);
            self.tell(format!("a quota: {}", quota["spec"]["hard"]));
            self.must("POST", "/api/v1/namespaces/shop/resourcequotas", JSON, &quota).await?;
        }
        if let Some(wanted) = self.wishes.deployments.first().filter(|wanted| wanted.guarded)
            && self.chance.random_bool(0.3)
        {
            let bundle = Bundle::of(&wanted.name);
            for (path, object) in bundle.objects() {
                self.tell(format!("{path}: {object}"));
                self.must("POST", path, JSON, &object).await?;
            }
            self.wishes.release = Some(bundle);
        }
        if self.chance.random_bool(0.4) {
            self.start_job().await?;
        }
        if self.chance.random_bool(0.2) {
            let cron = a_cron_job("tick", &mut self.chance);
            self.tell(format!("a CronJob: {}", cron["spec"]));
            self.must("POST", "/apis/batch/v1/namespaces/shop/cronjobs", JSON, &cron).await?;
        }
        self.rest("the start").await?;
        for act in 1..=self.chance.random_range(1..=2) {
            if self.evictor.random_bool(0.15) {
                self.evict().await?;
            }
            self.storm(act).await?;
            self.rest(&format!("act {act}")).await?;
        }
        if self.evictor.random_bool(0.5) { self.leave().await } else { Ok(()) }
    }

    async fn start_job(&mut self) -> Result<(), String> {
        self.jobs += 1;
        let job = a_job(&format!("job-{}", self.jobs), &mut self.chance);
        self.tell(format!("job {}: {}", self.jobs, job["spec"]));
        self.must("POST", "/apis/batch/v1/namespaces/shop/jobs", JSON, &job).await.map(drop)
    }

    async fn deploy(&mut self, name: &str) -> Result<(), String> {
        let replicas = self.chance.random_range(1..=4);
        let guarded = self.chance.random_bool(0.5);
        let part = |chance: &mut StdRng, zero: bool| match chance.random_range(0..4) {
            0 => json!("25%"),
            1 => json!("50%"),
            2 => json!(1),
            _ => json!(if zero { 0 } else { 2 }),
        };
        let (surge, unavailable) = (part(&mut self.chance, false), part(&mut self.chance, true));
        let strategy = if self.chance.random_bool(0.15) {
            json!({"type": "Recreate"})
        } else {
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
        };
        // Half of them by the annotation, half by a policy with steps of its own.
        let by_policy = guarded && self.chance.random_bool(0.5);
        let notes = if guarded && !by_policy { json!({"proa.dev/rollback": "on-failure"}) } else { json!({}) };
        if by_policy {
            let step =
                json!({"percent": self.chance.random_range(1..=60), "waitSeconds": self.chance.random_range(0..8)});
            let spec = json!({"kinds": ["Deployment"], "selector": {"matchLabels": {"app": name}}, "steps": [step], "soakSeconds": self.chance.random_range(0..120)});
            self.tell(format!("a policy for {name}: {spec}"));
            let policy =
                json!({"apiVersion": "proa.dev/v1", "kind": "RolloutPolicy", "metadata": {"name": name}, "spec": spec});
            self.must("POST", "/apis/proa.dev/v1/namespaces/shop/rolloutpolicies", JSON, &policy).await?;
        }
        let ready = if self.chance.random_bool(0.3) { 3 } else { 0 };
        let labels = json!({"app": name});
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": labels, "annotations": notes},
            "spec": {"replicas": replicas, "minReadySeconds": ready, "selector": {"matchLabels": labels}, "strategy": strategy,
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": "v1"}]}}},
        });
        self.tell(format!("deploy {name}: {replicas} × v1, guarded {guarded}, {strategy}, {ready} s"));
        self.must("POST", &deployments(""), JSON, &deployment).await?;
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"selector": labels, "ports": [{"port": 80}]}});
        self.must("POST", "/api/v1/namespaces/shop/services", JSON, &service).await?;
        let good = BTreeSet::from(["v1".to_owned()]);
        let autoscaled = self.chance.random_bool(0.25);
        let (namespace, image) = ("shop".to_owned(), "v1".to_owned());
        self.wishes.deployments.push(Wanted {
            namespace,
            name: name.into(),
            replicas,
            image,
            good,
            guarded,
            autoscaled,
        });
        if autoscaled {
            self.loads.lock().insert(name.to_owned(), replicas * SHARE);
            self.tell(format!("{name} is scaled by its load"));
            let metric = json!({"type": "External", "external": {"metric": {"name": name},
                "target": {"type": "AverageValue", "averageValue": SHARE.to_string()}}});
            let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": name});
            let autoscaler = json!({"metadata": {"name": name}, "spec": {
                "scaleTargetRef": target, "minReplicas": 1, "maxReplicas": MOST, "metrics": [metric],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}});
            let path = "/apis/autoscaling/v2/namespaces/shop/horizontalpodautoscalers";
            self.must("POST", path, JSON, &autoscaler).await?;
        }
        let (field, value) = match self.evictor.random_range(0..4) {
            0 => ("minAvailable", json!(self.evictor.random_range(0..=3))),
            1 => ("minAvailable", json!(format!("{}%", self.evictor.random_range(0..=100)))),
            2 => ("maxUnavailable", json!(format!("{}%", self.evictor.random_range(0..=100)))),
            _ => ("maxUnavailable", json!(self.evictor.random_range(0..=2))),
        };
        self.tell(format!("a budget for {name}: {field} {value}"));
        let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name},
            "spec": {field: value, "selector": {"matchLabels": labels}}});
        self.must("POST", "/apis/policy/v1/namespaces/shop/poddisruptionbudgets", JSON, &budget).await?;
        Ok(())
    }

    async fn patch(&self, name: &str, patch: Value) -> Result<(), String> {
        self.must("PATCH", &deployments(&format!("/{name}")), STRATEGIC, &patch).await.map(drop)
    }

    /// Waits until everything is as wanted, and sees that it stays so.
    async fn rest(&mut self, after: &str) -> Result<(), String> {
        self.come_to_rest(after).await?;
        self.tell(format!("at rest after {after}"));
        let mut records = self.store.records.lock();
        self.wishes.rested(&records.objects);
        records.rested();
        Ok(())
    }

    async fn come_to_rest(&self, after: &str) -> Result<(), String> {
        let (deadline, mut since) = (Instant::now() + PATIENCE, None::<Instant>);
        let mut missing = None::<((u64, usize, usize), String)>;
        loop {
            if let Some(broken) = self.broken() {
                return Err(format!("during {after}: {broken}"));
            }
            // What is missing is missing until something changes.
            let state = {
                let containers = &self.machines.lock().containers;
                let ready = containers.values().filter(|container| container.ready.is_some()).count();
                (self.store.changes(), containers.len(), ready)
            };
            let found = match missing.take().filter(|(as_of, _)| *as_of == state) {
                Some((_, why)) => Err(why),
                None => at_rest(&self.store.records.lock(), &self.machines.lock(), &self.wishes, self.store.now()),
            };
            match found {
                Ok(()) if since.is_some_and(|since| since.elapsed() >= STANDSTILL) => return Ok(()),
                Ok(()) => _ = since.get_or_insert_with(Instant::now),
                Err(why) if Instant::now() > deadline => return Err(format!("no rest after {after}: {why}")),
                Err(why) => (since, missing) = (None, Some((state, why))),
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    }

    /// The first law that was broken.
    fn broken(&self) -> Option<String> {
        let records = self.store.records.lock();
        records.broken.first().or(self.machines.lock().broken.first()).cloned()
    }

    /// Everything is taken away, one way or another, and nothing may be left.
    async fn leave(&mut self) -> Result<(), String> {
        self.store.records.lock().disrupted = true;
        if self.chance.random_bool(0.4) {
            let gone = self.wishes.deployments.remove(0);
            // A release of which a member is gone for good is as it is.
            if self.wishes.release.take_if(|bundle| bundle.deployment == gone.name).is_some() {
                let release = "/apis/proa.dev/v1/namespaces/shop/releases/bundle";
                self.must("DELETE", release, JSON, &json!({})).await?;
            }
            let how = ["Foreground", "Background"][self.chance.random_range(0..2)];
            self.tell(format!("{} is deleted, {how}", gone.name));
            let body = json!({"propagationPolicy": how});
            self.must("DELETE", &deployments(&format!("/{}", gone.name)), JSON, &body).await?;
            self.rest("a deletion").await?;
        }
        if !self.wishes.sets.is_empty() && self.chance.random_bool(0.5) {
            let gone = self.wishes.sets.remove(0);
            let how = ["Foreground", "Background"][self.chance.random_range(0..2)];
            self.tell(format!("{} is deleted, {how}", gone.path(true)));
            self.must("DELETE", &gone.path(true), JSON, &json!({"propagationPolicy": how})).await?;
            self.rest("the deletion of a set").await?;
            gone.is_gone(&self.store.records.lock().objects)?;
        }
        self.tell("the namespace is deleted".into());
        self.must("DELETE", "/api/v1/namespaces/shop", JSON, &json!({})).await?;
        self.wishes = Wishes::default();
        self.store.records.lock().storage.wanted.clear();
        self.rest("the end").await?;
        let left = self.store.entries("/registry/").into_iter().find(|entry| entry.key.contains("/shop"));
        match left {
            Some(entry) => Err(format!("{} outlives its namespace", entry.key)),
            None => Ok(()),
        }
    }

    fn end(self, outcome: Result<(), String>) -> Story {
        let mut broken: Vec<String> = outcome.err().into_iter().collect();
        broken.extend(self.auditor.judge(&self.store.records.lock().pod_events));
        self.loops.cancel();
        self.server.close();
        Story { broken, trace: self.store.trace(), told: self.told }
    }
}

/// How much of a load each pod of an autoscaled deployment should carry, and how many there are at most.
const SHARE: i64 = 10;
const MOST: i64 = 5;

/// What a server of external metrics answers of the load of a name.
fn metric(path: &str, loads: &BTreeMap<String, i64>) -> Option<Value> {
    let name = path.strip_prefix("/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/")?;
    let value = loads.get(name)?.to_string();
    let item = json!({"metricName": name, "metricLabels": {}, "timestamp": crate::world::START, "value": value});
    Some(json!({"kind": "ExternalMetricValueList", "apiVersion": "external.metrics.k8s.io/v1beta1",
        "metadata": {}, "items": [item]}))
}

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

fn deployments(rest: &str) -> String {
    format!("/apis/apps/v1/namespaces/shop/deployments{rest}")
}
