//! A hollow node: it does everything an agent does towards the API, and runs nothing.
//!
//! Owns: its Node and Lease, and the statuses of pods bound to it. Images called `broken…` crash, images called
//! `missing…` cannot be pulled, images called `done…` end well and `flaky…` mostly do; all others answer after a seeded
//! while.

use crate::world::Machines;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use parking_lot::Mutex;
use proa_apiserver::Clock;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often a node says that it is there; it is given up after 40 s of silence.
const HEARTBEAT: Duration = Duration::from_secs(15);

pub(crate) struct Hollow {
    pub(crate) name: String,
    pub(crate) client: Client,
    pub(crate) clock: Clock,
    pub(crate) machines: Arc<Mutex<Machines>>,
    pub(crate) seed: u64,
}

/// One pod, as this node knows it.
struct Worker {
    pod: Pod,
    stage: Stage,
    due: Option<Instant>,
    restarts: u32,
    address: String,
    /// The status to be written is not what was written last.
    dirty: bool,
    failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Starting,
    Answering,
    CannotPull,
    Crashing,
    /// Ended by itself, with this exit code.
    Ended(i32),
    Stopping,
    Stopped,
}

impl Hollow {
    /// Runs until the machine vanishes; its containers vanish with it.
    pub(crate) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.beat() => {}
            () = self.work() => {}
            () = self.keep_volumes() => {}
        }
        self.machines.lock().containers.retain(|_, container| container.node != self.name);
    }

    /// The Node and its Lease.
    async fn beat(&self) {
        loop {
            let pause = if self.beat_once().await.is_ok() { HEARTBEAT } else { Duration::from_secs(1) };
            tokio::time::sleep(pause).await;
        }
    }

    async fn beat_once(&self) -> Result<(), kube::Error> {
        let name = &self.name;
        let params = PatchParams::apply("hollow").force();
        let now = self.clock.now().to_string();
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": micro(&now)},
        });
        let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
            Api::namespaced(self.client.clone(), "kube-node-lease");
        leases.patch(name, &params, &Patch::Apply(&lease)).await?;
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = match nodes.get_opt(name).await? {
            Some(node) => node,
            None => {
                let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name},
                    "annotations": {"proa.dev/volumes": "/volumes"}}});
                let node: Node = serde_json::from_value(node).expect("a node");
                nodes.create(&Default::default(), &node).await?
            }
        };
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        if conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
            return Ok(());
        }
        let room = json!({"cpu": "16", "memory": "32Gi", "pods": "110"});
        let now = second(&now);
        let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now, "lastTransitionTime": now});
        let status = json!({"status": {"capacity": room, "allocatable": room, "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(&status)).await?;
        Ok(())
    }

    async fn work(&self) {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", self.name));
        let mut events = watcher::watcher(pods, mine).boxed();
        let mut chance = StdRng::seed_from_u64(self.seed);
        let mut workers: BTreeMap<String, Worker> = BTreeMap::new();
        let mut listed: BTreeSet<String> = BTreeSet::new();
        loop {
            let next = workers.values().filter_map(|worker| worker.due).min();
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                event = events.next() => match event {
                    Some(Ok(Event::Init)) => listed.clear(),
                    Some(Ok(Event::InitApply(pod))) => {
                        listed.insert(uid(&pod).to_owned());
                        self.saw(&mut workers, pod, &mut chance);
                    }
                    Some(Ok(Event::InitDone)) => {
                        for gone in workers.keys().filter(|uid| !listed.contains(*uid)).cloned().collect::<Vec<_>>() {
                            self.forget(&mut workers, &gone);
                        }
                    }
                    Some(Ok(Event::Apply(pod))) => self.saw(&mut workers, pod, &mut chance),
                    Some(Ok(Event::Delete(pod))) => self.forget(&mut workers, uid(&pod)),
                    Some(Err(_)) => tokio::time::sleep(Duration::from_millis(200)).await,
                    None => return,
                },
                () = due => {}
            }
            let now = Instant::now();
            for uid in workers
                .iter()
                .filter(|(_, w)| w.due.is_some_and(|due| due <= now))
                .map(|(uid, _)| uid.clone())
                .collect::<Vec<_>>()
            {
                let Some(worker) = workers.get_mut(&uid) else { continue };
                self.step(&uid, worker).await;
                if worker.stage == Stage::Stopped && worker.due.is_none() {
                    workers.remove(&uid);
                }
            }
        }
    }

    fn forget(&self, workers: &mut BTreeMap<String, Worker>, uid: &str) {
        workers.remove(uid);
        self.machines.lock().containers.remove(uid);
    }

    /// Takes in what the API says of a pod.
    fn saw(&self, workers: &mut BTreeMap<String, Worker>, pod: Pod, chance: &mut StdRng) {
        let (uid, now) = (uid(&pod).to_owned(), Instant::now());
        let leaving = pod.metadata.deletion_timestamp.is_some();
        let mut soon = |most: u64| Some(now + Duration::from_millis(chance.random_range(50..most)));
        let Some(worker) = workers.get_mut(&uid) else {
            if is_over(&pod) {
                // It ended in an earlier life of this node, and runs no more.
                if leaving {
                    let (stage, address) = (Stage::Stopping, String::new());
                    workers.insert(
                        uid,
                        Worker { pod, stage, due: soon(500), restarts: 0, address, dirty: true, failures: 0 },
                    );
                }
                return;
            }
            let named = |part: &Option<String>| part.clone().unwrap_or_default();
            let whose = format!("{}/{}", named(&pod.metadata.namespace), named(&pod.metadata.name));
            let address = self.machines.lock().start(&uid, &whose, &self.name);
            let stage = if leaving { Stage::Stopping } else { Stage::Starting };
            workers
                .insert(uid, Worker { pod, stage, due: soon(2_500), restarts: 0, address, dirty: true, failures: 0 });
            return;
        };
        worker.pod = pod;
        if leaving && !matches!(worker.stage, Stage::Stopping | Stage::Stopped) {
            worker.stage = Stage::Stopping;
            worker.due = soon(3_000);
        } else if worker.stage == Stage::Answering && !says_ready(&worker.pod) {
            // Somebody else spoke for this pod while its node was not heard.
            (worker.dirty, worker.due) = (true, Some(now));
        }
    }

    /// Something is due for a pod.
    async fn step(&self, uid: &str, worker: &mut Worker) {
        let now = Instant::now();
        if !worker.dirty || matches!(worker.stage, Stage::Starting | Stage::Stopping) {
            let image =
                worker.pod.spec.as_ref().and_then(|spec| spec.containers.first()?.image.clone()).unwrap_or_default();
            let mut machines = self.machines.lock();
            worker.stage = match worker.stage {
                Stage::Starting if image.starts_with("missing") => Stage::CannotPull,
                Stage::Starting if image.starts_with("broken") => Stage::Crashing,
                Stage::Starting if image.starts_with("done") || image.starts_with("flaky") => {
                    machines.containers.remove(uid);
                    let fails = image.starts_with("flaky") && uid.bytes().map(u32::from).sum::<u32>() % 4 == 0;
                    Stage::Ended(i32::from(fails))
                }
                Stage::Starting => {
                    if let Some(container) = machines.containers.get_mut(uid) {
                        container.ready = Some(now);
                    }
                    Stage::Answering
                }
                Stage::Crashing => {
                    worker.restarts += 1;
                    Stage::Crashing
                }
                Stage::Stopping | Stage::Stopped => {
                    machines.containers.remove(uid);
                    Stage::Stopped
                }
                other => other,
            };
            worker.dirty = true;
        }
        let written = if worker.stage == Stage::Stopped { self.end(worker).await } else { self.report(worker).await };
        match written {
            Ok(()) | Err(kube::Error::Api(_)) if !matches!(&written, Err(kube::Error::Api(status)) if status.code >= 429) =>
            {
                (worker.dirty, worker.failures) = (false, 0);
                let again = 10u64 << worker.restarts.min(5);
                worker.due = (worker.stage == Stage::Crashing).then(|| Instant::now() + Duration::from_secs(again));
            }
            _ => {
                worker.failures += 1;
                worker.due = Some(Instant::now() + Duration::from_millis(200 << worker.failures.min(4)));
            }
        }
    }

    async fn report(&self, worker: &Worker) -> Result<(), kube::Error> {
        let now = second(&self.clock.now().to_string());
        let ready = worker.stage == Stage::Answering;
        let image =
            worker.pod.spec.as_ref().and_then(|spec| spec.containers.first()?.image.clone()).unwrap_or_default();
        let waiting = |reason: &str| json!({"waiting": {"reason": reason, "message": format!("{image}: not found")}});
        let ended = |code: i32| json!({"terminated": {"exitCode": code, "reason": if code == 0 { "Completed" } else { "Error" }, "finishedAt": now}});
        let (phase, state) = match worker.stage {
            Stage::Ended(0) => ("Succeeded", ended(0)),
            Stage::Ended(code) => ("Failed", ended(code)),
            Stage::Answering => ("Running", json!({"running": {"startedAt": now}})),
            Stage::CannotPull => ("Pending", waiting("ErrImagePull")),
            _ => ("Running", waiting("CrashLoopBackOff")),
        };
        let said = if ready { "True" } else { "False" };
        let old = worker.pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let since: BTreeMap<&str, (&str, String)> = old
            .filter_map(|c| {
                Some((c.type_.as_str(), (c.status.as_str(), c.last_transition_time.as_ref()?.0.to_string())))
            })
            .collect();
        let condition = |type_: &str, status: &str| {
            let held = since.get(type_).filter(|held| held.0 == status).map(|held| second(&held.1));
            json!({"type": type_, "status": status, "lastTransitionTime": held.unwrap_or_else(|| now.clone())})
        };
        let last = (worker.stage == Stage::Crashing)
            .then(|| json!({"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": now, "startedAt": now}}));
        let status = json!({
            "phase": phase, "podIP": worker.address, "podIPs": [{"$patch": "replace"}, {"ip": worker.address}], "hostIP": "192.0.2.1",
            "conditions": [condition("Initialized", "True"), condition("ContainersReady", said), condition("Ready", said)],
            "containerStatuses": [{"name": "main", "image": image, "imageID": "", "ready": ready, "started": ready,
                "restartCount": worker.restarts, "state": state, "lastState": last.unwrap_or_else(|| json!({}))}],
        });
        self.write(worker, &json!({"metadata": {"uid": worker.pod.metadata.uid}, "status": status})).await
    }

    async fn write(&self, worker: &Worker, patch: &Value) -> Result<(), kube::Error> {
        let meta = &worker.pod.metadata;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), meta.namespace.as_deref().unwrap_or_default());
        let name = meta.name.as_deref().unwrap_or_default();
        pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
    }

    /// The container has stopped: the pod may go. Whoever holds it is told how it ended.
    async fn end(&self, worker: &Worker) -> Result<(), kube::Error> {
        let meta = &worker.pod.metadata;
        if meta.finalizers.as_ref().is_some_and(|held| !held.is_empty()) && !is_over(&worker.pod) {
            self.write(worker, &json!({"metadata": {"uid": meta.uid}, "status": {"phase": "Failed"}})).await?;
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), meta.namespace.as_deref().unwrap_or_default());
        let only_this = Preconditions { uid: meta.uid.clone(), resource_version: None };
        let now = DeleteParams { grace_period_seconds: Some(0), preconditions: Some(only_this), ..Default::default() };
        pods.delete(meta.name.as_deref().unwrap_or_default(), &now).await.map(drop)
    }
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn says_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// RFC 3339 in whole seconds, as objects hold times.
fn second(time: &str) -> String {
    format!("{}Z", &time[..19])
}

/// RFC 3339 in microseconds, as leases hold them.
fn micro(time: &str) -> String {
    let at: jiff::Timestamp = time.parse().expect("a time");
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}
