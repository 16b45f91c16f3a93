//! The laws every run must keep, whatever goes wrong.
//!
//! Owns: the record of commits that laws are judged on as they happen, and the judgement of a world at rest.

use crate::jobs::{JOBS, JobRecords};
use crate::objects::{Objects, Put};
use crate::release::Bundle;
use crate::sets::{Asked, Roster};
use crate::storage::Ledger;
use crate::templates::Templates;
use crate::world::Machines;
use crate::{nodes, quota, storage};
use jiff::Timestamp;
use proa_store::{Committed, Op, Txn};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const PODS: &str = "/registry/pods/";
const SETS: &str = "/registry/replicasets.apps/";
const DEPLOYMENTS: &str = "/registry/deployments.apps/";
const BUDGETS: &str = "/registry/poddisruptionbudgets.policy/";

/// What was committed, as far as laws need it.
#[derive(Default)]
pub(crate) struct Records {
    pub(crate) objects: Objects,
    sizes: BTreeMap<String, Size>,
    /// The claims there should be.
    pub(crate) storage: Ledger,
    /// Stateful sets and daemon sets.
    roster: Roster,
    /// Who changes templates.
    pub(crate) templates: Templates,
    jobs: JobRecords,
    quota: quota::Counted,
    /// Every change of a pod: what a watcher must see, no more and no less.
    pub(crate) pod_events: Vec<(u64, String, &'static str)>,
    /// Something other than the rollout takes pods away or hides them: bounds on availability do not hold.
    pub(crate) disrupted: bool,
    /// Laws that were broken, in words.
    pub(crate) broken: Vec<String>,
}

/// How large a deployment has been asked to be since the last rest, and how far a rollout may go.
#[derive(Clone, Copy, Debug)]
struct Size {
    least: i64,
    most: i64,
    unavailable: i64,
    surge: i64,
}

impl Records {
    /// Of a store that holds these objects.
    pub(crate) fn new(objects: Objects) -> Records {
        Records { objects, ..Records::default() }
    }

    pub(crate) fn committed(&mut self, txn: &Txn, committed: &Committed) {
        let mut entries = committed.entries.iter();
        for op in &txn.ops {
            match op {
                Op::Put { key, .. } => {
                    let Some(entry) = entries.next() else { continue };
                    if let Some(put) = self.objects.put(key, &entry.bytes) {
                        self.put(key, &put, committed.revision.0);
                    }
                }
                Op::Delete { key, .. } => {
                    let Some(gone) = self.objects.remove(key) else { continue };
                    if key.starts_with(PODS) {
                        self.pod_events.push((committed.revision.0, key.to_string(), "DELETED"));
                    }
                    self.broken.extend(storage::delete(&self.objects, key, &gone));
                    self.roster.delete(key);
                    self.templates.delete(key);
                }
                Op::Check { .. } => {}
            }
        }
        // A quota is charged in the commit of what it is charged for.
        self.broken.extend(txn.ops.iter().find_map(|op| self.quota.judge(&self.objects, op.key())));
    }

    fn put(&mut self, key: &str, put: &Put, revision: u64) {
        let object = &*put.after;
        self.broken.extend(storage::put(&self.objects, key, put));
        self.broken.extend(nodes::put(&self.objects, key, put));
        self.broken.extend(self.templates.put(key, object));
        self.roster.put(key, object);
        if key.starts_with(JOBS) {
            self.broken.extend(self.jobs.job(key, object, put.before.is_none()));
        } else if key.starts_with(DEPLOYMENTS) {
            let held = self.sizes.get(uid(object)).copied();
            let now = Size::of(object);
            let size = held.map_or(now, |held| Size {
                least: held.least.min(now.least),
                most: held.most.max(now.most),
                unavailable: held.unavailable.max(now.unavailable),
                surge: held.surge.max(now.surge),
            });
            self.sizes.insert(uid(object).to_owned(), size);
        } else if key.starts_with(PODS) {
            self.jobs.pod(object);
            let seen = if put.before.is_some() { "MODIFIED" } else { "ADDED" };
            self.pod_events.push((revision, key.to_owned(), seen));
            let node = |pod: &Value| pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
            if let Some(before) = &put.before
                && !node(before).is_empty()
                && node(before) != node(object)
            {
                self.broken.push(format!("{key} was bound twice: to {}, then to {}", node(before), node(object)));
            }
            if put.before.is_none() {
                self.judge_surge(key, &owner(object));
            }
        }
    }

    /// The deployment a replica set belongs to.
    fn deployment_of(&self, set: &str) -> Option<&Value> {
        let set = self.objects.of(SETS).find(|held| uid(held) == set)?;
        let deployment = owner(set);
        self.objects.of(DEPLOYMENTS).find(|held| uid(held) == deployment)
    }

    fn sets_of(&self, deployment: &str) -> BTreeSet<String> {
        self.objects.of(SETS).filter(|set| owner(set) == deployment).map(|set| uid(set).to_owned()).collect()
    }

    fn judge_surge(&mut self, key: &str, set: &str) {
        let Some(deployment) = self.deployment_of(set) else { return };
        let Some(size) = self.sizes.get(uid(deployment)).copied() else { return };
        // As on Kubernetes a pod beyond what its own set asks for is on its way out and does not count, except in the
        // set that makes the new one.
        let of = |set: &str| self.objects.of(PODS).filter(|pod| owner(pod) == set && is_alive(pod)).count() as i64;
        let counted = self.objects.of(SETS).filter(|held| owner(held) == uid(deployment)).map(|held| {
            let asked = held["spec"]["replicas"].as_i64().unwrap_or(1);
            if uid(held) == set { of(set) } else { of(uid(held)).min(asked) }
        });
        let alive: i64 = counted.sum();
        if alive > size.most + size.surge {
            self.broken.push(format!("{key} makes {alive} pods where {} + {} are allowed", size.most, size.surge));
        }
    }

    /// A controller has just deleted the pod of that path: enough others must answer.
    pub(crate) fn judge_deletion(&mut self, path: &str, machines: &Machines) {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let ["api", "v1", "namespaces", namespace, "pods", name] = parts[..] else { return };
        let Some(victim) = self.objects.get(&format!("{PODS}{namespace}/{name}")) else { return };
        let answers = |pod: &Value| machines.containers.get(uid(pod)).and_then(|container| container.ready);
        if let (Some(promised), Some(_), false) = (self.roster.promise(&owner(victim)), answers(victim), self.disrupted)
        {
            let others = self.objects.of(PODS).filter(|pod| owner(pod) == owner(victim) && is_alive(pod));
            let left = others.filter(|pod| answers(pod).is_some()).count() as i64;
            if left < promised {
                self.broken.push(format!("deleting {path} leaves {left} available where {promised} must be"));
            }
        }
        let Some(deployment) = self.deployment_of(&owner(victim)) else { return };
        if self.disrupted || answers(victim).is_none() || is_leaving(deployment) {
            return;
        }
        let Some(size) = self.sizes.get(uid(deployment)) else { return };
        // Times in the API are whole seconds: a pod may count up to one second early.
        let least = deployment["spec"]["minReadySeconds"].as_u64().unwrap_or(0).saturating_sub(1);
        let sets = self.sets_of(uid(deployment));
        let left = self.objects.of(PODS).filter(|pod| sets.contains(&owner(pod)) && is_alive(pod));
        let left = left.filter(|pod| answers(pod).is_some_and(|since| since.elapsed() >= Duration::from_secs(least)));
        let left = left.count() as i64;
        if left < size.least - size.unavailable {
            let (least, may) = (size.least, size.unavailable);
            self.broken
                .push(format!("deleting {path} leaves {left} available of {least}, of which {may} may be missing"));
        }
    }

    /// Whether a pod's container really answers, whatever its status says.
    pub(crate) fn answers(&self, pod: &Value, machines: &Machines) -> bool {
        is_alive(pod) && machines.containers.get(uid(pod)).is_some_and(|container| container.ready.is_some())
    }

    /// An eviction has just been granted where nothing else disturbs: the budget must still hold.
    pub(crate) fn judge_eviction(&mut self, app: &str, machines: &Machines) {
        let named = |object: &&Value| object["metadata"]["name"] == *app;
        let deployment = self.objects.of(DEPLOYMENTS).find(named);
        let (Some(deployment), Some(budget)) = (deployment, self.objects.of(BUDGETS).find(named)) else { return };
        let replicas = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
        let of = |value: &Value| match value.as_str().and_then(|text| text.strip_suffix('%')) {
            None => value.as_i64().unwrap_or(0),
            Some(percent) => (replicas * percent.parse::<i64>().unwrap_or(0) + 99) / 100,
        };
        let spec = &budget["spec"];
        let least = match &spec["maxUnavailable"] {
            Value::Null => of(&spec["minAvailable"]),
            most => replicas - of(most),
        };
        let mine = |pod: &&Value| pod["metadata"]["labels"]["app"] == *app;
        let left = self.objects.of(PODS).filter(mine).filter(|pod| self.answers(pod, machines)).count() as i64;
        if left < least {
            self.broken.push(format!("an eviction leaves {left} of {app} where its budget asks for {least}: {budget}"));
        }
    }

    /// The world is at rest: bounds are counted anew from what is wanted now.
    pub(crate) fn rested(&mut self) {
        let size = |object: &Value| {
            let (uid, now) = (uid(object).to_owned(), Size::of(object));
            // What ran before a rollout that hangs does not grow to a size asked for meanwhile.
            let held = self.sizes.get(&uid).filter(|_| is_bad(&image_of(object)));
            let least = held.map_or(now.least, |held| held.least.min(now.least));
            (uid, Size { least, ..now })
        };
        self.sizes = self.objects.of(DEPLOYMENTS).map(size).collect();
        self.roster.rested();
        self.disrupted = false;
    }
}

impl Size {
    fn of(deployment: &Value) -> Size {
        let replicas = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
        let strategy = &deployment["spec"]["strategy"];
        if strategy["type"] == "Recreate" {
            return Size { least: replicas, most: replicas, unavailable: replicas, surge: 0 };
        }
        let part = |value: &Value, up: bool| match value.as_str().and_then(|text| text.strip_suffix('%')) {
            None => value.as_i64().unwrap_or(1),
            Some(percent) => {
                let whole = replicas * percent.parse::<i64>().unwrap_or(25);
                if up { (whole + 99) / 100 } else { whole / 100 }
            }
        };
        let rolling = &strategy["rollingUpdate"];
        let (surge, unavailable) = (part(&rolling["maxSurge"], true), part(&rolling["maxUnavailable"], false));
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable.min(replicas) };
        Size { least: replicas, most: replicas, unavailable, surge }
    }
}

/// What the scenario asked for last.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) replicas: i64,
    /// The image asked for last.
    pub(crate) image: String,
    /// Every image that works and was ever asked for.
    pub(crate) good: BTreeSet<String>,
    /// Whether a failed rollout goes back by itself.
    pub(crate) guarded: bool,
    /// Whether an autoscaler says how many there are to be.
    pub(crate) autoscaled: bool,
}

impl Wanted {
    pub(crate) fn is_bad(&self) -> bool {
        is_bad(&self.image)
    }
}

/// An image no container of which ever answers.
pub(crate) fn is_bad(image: &str) -> bool {
    image.starts_with("broken") || image.starts_with("missing")
}

/// What users want of the world.
#[derive(Default)]
pub(crate) struct Wishes {
    pub(crate) deployments: Vec<Wanted>,
    pub(crate) sets: Vec<Asked>,
    pub(crate) release: Option<Bundle>,
}

impl Wishes {
    /// Where a rollout went back, what was asked for last is no longer what is wanted.
    pub(crate) fn rested(&mut self, objects: &Objects) {
        for wanted in self.deployments.iter_mut().filter(|wanted| wanted.guarded && wanted.is_bad()) {
            let mut all = objects.of(DEPLOYMENTS);
            let now = all.find(|object| is_named(object, &wanted.namespace, &wanted.name));
            wanted.image = now.map(image_of).unwrap_or_default();
        }
        self.sets.iter_mut().for_each(|set| set.rested(objects));
        self.release.iter_mut().for_each(|release| release.rested(objects));
    }
}

/// Whether the world has come to rest as wanted; what is still missing, if not.
pub(crate) fn at_rest(records: &Records, machines: &Machines, wishes: &Wishes, now: Timestamp) -> Result<(), String> {
    let objects = &records.objects;
    let uids: BTreeSet<&str> = objects.all().map(|(_, object)| uid(object)).collect();
    for (key, object) in objects.all() {
        if is_leaving(object) {
            return Err(format!("{key} is still being deleted"));
        }
        for owner in object["metadata"]["ownerReferences"].as_array().into_iter().flatten() {
            if !uids.contains(owner["uid"].as_str().unwrap_or_default()) {
                return Err(format!("{key} is owned by {} that is no more", owner["name"]));
            }
        }
    }
    let of = |prefix: &str| objects.of(prefix).collect::<Vec<_>>();
    let (deployments, sets, pods) = (of(DEPLOYMENTS), of(SETS), of(PODS));
    if deployments.len() != wishes.deployments.len() {
        return Err(format!("{} deployments where {} are wanted", deployments.len(), wishes.deployments.len()));
    }
    let (slices, legacy) = (of("/registry/endpointslices.discovery.k8s.io/"), of("/registry/endpoints/"));
    for wanted in &wishes.deployments {
        let name = format!("{}/{}", wanted.namespace, wanted.name);
        let deployment = deployments.iter().find(|object| is_named(object, &wanted.namespace, &wanted.name));
        let deployment = deployment.ok_or_else(|| format!("no deployment {name}"))?;
        // What was lost to something else while a rollout hangs does not come back.
        let size = records.sizes.get(uid(deployment)).filter(|_| !records.disrupted);
        let least = size.map_or(0, |size| size.least);
        deployment_at_rest(wanted, deployment, &sets, &pods, machines, least)
            .map_err(|why| format!("{name}: {why}"))?;
        endpoints_at_rest(wanted, &slices, &legacy, &pods).map_err(|why| format!("{name}: {why}"))?;
        let mut budgets = objects.of(BUDGETS);
        let budget = budgets.find(|object| is_named(object, &wanted.namespace, &wanted.name));
        if let Some(status) = budget.map(|budget| &budget["status"]) {
            let selected = |pod: &&&Value| pod["metadata"]["labels"]["app"] == *wanted.name;
            let ready = pods.iter().filter(selected).filter(|pod| is_ready(pod) && !is_leaving(pod)).count();
            if status["currentHealthy"].as_u64() != Some(ready as u64) {
                return Err(format!("{name}: its budget counts {}, {ready} are ready", status["currentHealthy"]));
            }
        }
    }
    for namespace in objects.of("/registry/namespaces/") {
        let name = namespace["metadata"]["name"].as_str().unwrap_or_default();
        if objects.get(&format!("/registry/serviceaccounts/{name}/default")).is_none() {
            return Err(format!("{name} has no service account"));
        }
    }
    nodes::at_rest(objects)?;
    quota::at_rest(objects)?;
    records.storage.at_rest(objects)?;
    for set in &wishes.sets {
        set.at_rest(objects, machines)?;
    }
    if let Some(release) = &wishes.release {
        release.at_rest(objects)?;
    }
    records.jobs.at_rest(objects, now)?;
    let running: BTreeSet<&str> = pods.iter().map(|pod| uid(pod)).collect();
    match machines.containers.iter().find(|(uid, _)| !running.contains(uid.as_str())) {
        Some((uid, container)) => Err(format!("{} still runs a container of {uid}, which is gone", container.node)),
        None => Ok(()),
    }
}

/// Whether one of these revisions keeps why that image failed.
pub(crate) fn keeps_evidence<'a>(revisions: impl Iterator<Item = &'a Value>, image: &str) -> bool {
    revisions.filter(|revision| revision_image(revision) == image).any(|revision| {
        let failure = revision["metadata"]["annotations"]["proa.dev/failure"].as_str();
        let failure = failure.and_then(|text| serde_json::from_str::<Value>(text).ok()).unwrap_or_default();
        ["reason", "message"].iter().all(|field| failure[*field].as_str().is_some_and(|said| !said.is_empty()))
    })
}

/// The image of a ReplicaSet or a ControllerRevision.
fn revision_image(revision: &Value) -> String {
    if revision["data"].is_null() { image_of(revision) } else { image_of(&revision["data"]) }
}

fn deployment_at_rest(
    wanted: &Wanted,
    deployment: &Value,
    sets: &[&Value],
    pods: &[&Value],
    machines: &Machines,
    least: i64,
) -> Result<(), String> {
    let (replicas, status) = (wanted.replicas, &deployment["status"]);
    if status["observedGeneration"] != deployment["metadata"]["generation"] {
        return Err("its generation has not been observed".to_owned());
    }
    if deployment["spec"]["replicas"].as_i64() != Some(replicas) {
        return Err(format!("asks for {}, {replicas} were asked for", deployment["spec"]["replicas"]));
    }
    let image = image_of(deployment);
    let sets: Vec<&&Value> = sets.iter().filter(|set| owner(set) == uid(deployment)).collect();
    let is_current = |set: &Value| image_of(set) == image;
    let current: Vec<_> = sets.iter().filter(|set| is_current(set)).collect();
    let [current] = current[..] else { return Err(format!("{} replica sets of {image}", current.len())) };
    let answers = |pod: &Value| machines.containers.get(uid(pod)).is_some_and(|container| container.ready.is_some());
    let of_set = |set: &Value| {
        let set = uid(set).to_owned();
        pods.iter().filter(move |pod| owner(pod) == set && is_alive(pod)).copied().collect::<Vec<_>>()
    };
    if wanted.is_bad() && !wanted.guarded {
        // It hangs where it may: what ran before still answers, as far as the bound says.
        if image != wanted.image {
            return Err(format!("runs {image}, not {}", wanted.image));
        }
        let size = Size::of(deployment);
        let all: Vec<_> = sets.iter().flat_map(|set| of_set(set)).collect();
        let left = all.iter().filter(|pod| answers(pod)).count() as i64;
        let over = all.len() as i64 > replicas + size.surge;
        // A rollout that hangs does not grow what ran before to a size asked for meanwhile.
        if left < least - size.unavailable || over {
            return Err(format!("hangs with {left} of {replicas} available, {} pods in all", all.len()));
        }
        return Ok(());
    }
    if wanted.is_bad() || wanted.guarded {
        // A rollout that failed went back to a revision that works.
        if !wanted.good.contains(&image) {
            return Err(format!("runs {image}; wanted one of {:?}", wanted.good));
        }
        if wanted.is_bad() && !keeps_evidence(sets.iter().map(|set| **set), &wanted.image) {
            return Err(format!("nothing says why {} failed", wanted.image));
        }
    }
    if !wanted.is_bad() && image != wanted.image {
        return Err(format!("runs {image}, not {}", wanted.image));
    }
    for set in &sets {
        let (alive, mine) = (of_set(set), uid(set) == uid(current));
        let want = if mine { replicas } else { 0 };
        let name = set["metadata"]["name"].as_str().unwrap_or_default();
        if set["spec"]["replicas"].as_i64() != Some(want) || alive.len() as i64 != want {
            return Err(format!(
                "{name} has {} pods, asks for {}; {want} wanted",
                alive.len(),
                set["spec"]["replicas"]
            ));
        }
        if let Some(pod) = alive.iter().find(|pod| !answers(pod) || !is_ready(pod)) {
            return Err(format!("{} is not ready", pod["metadata"]["name"]));
        }
    }
    for field in ["replicas", "readyReplicas", "availableReplicas", "updatedReplicas"] {
        if status[field].as_i64().unwrap_or(0) != replicas {
            return Err(format!("status.{field} is {}, not {replicas}", status[field]));
        }
    }
    if sets.len() > 11 {
        return Err(format!("{} replica sets are kept", sets.len()));
    }
    Ok(())
}

/// Whether the pod's container answers.
pub(crate) fn answers(machines: &Machines, pod: &Value) -> bool {
    machines.containers.get(uid(pod)).is_some_and(|container| container.ready.is_some())
}

fn endpoints_at_rest(wanted: &Wanted, slices: &[&Value], legacy: &[&Value], pods: &[&Value]) -> Result<(), String> {
    let mine = |object: &Value| object["metadata"]["namespace"] == *wanted.namespace;
    let selected = |pod: &Value| mine(pod) && pod["metadata"]["labels"]["app"] == *wanted.name;
    let address = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ready = pods.iter().filter(|pod| selected(pod) && is_ready(pod) && is_alive(pod));
    let ready: BTreeSet<String> = ready.map(|pod| address(&pod["status"]["podIP"])).collect();
    let of_service =
        |slice: &&&Value| mine(slice) && slice["metadata"]["labels"]["kubernetes.io/service-name"] == *wanted.name;
    let endpoints =
        slices.iter().filter(of_service).flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    let listed: Vec<String> =
        endpoints.filter(|e| e["conditions"]["ready"] == true).map(|e| address(&e["addresses"][0])).collect();
    if listed.iter().cloned().collect::<BTreeSet<_>>() != ready || listed.len() != ready.len() {
        return Err(format!("endpoint slices say {listed:?}, ready are {ready:?}"));
    }
    let named = legacy.iter().filter(|object| is_named(object, &wanted.namespace, &wanted.name));
    let subsets = named.flat_map(|object| object["subsets"].as_array().into_iter().flatten());
    let old: BTreeSet<String> =
        subsets.flat_map(|s| s["addresses"].as_array().into_iter().flatten()).map(|a| address(&a["ip"])).collect();
    if old != ready {
        return Err(format!("endpoints say {old:?}, ready are {ready:?}"));
    }
    Ok(())
}

pub(crate) fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// The uid of the controller, or nothing.
pub(crate) fn owner(object: &Value) -> String {
    let owners = object["metadata"]["ownerReferences"].as_array();
    let controller = owners.into_iter().flatten().find(|owner| owner["controller"] == true);
    controller.and_then(|owner| owner["uid"].as_str()).unwrap_or_default().to_owned()
}

pub(crate) fn is_named(object: &Value, namespace: &str, name: &str) -> bool {
    object["metadata"]["namespace"] == *namespace && object["metadata"]["name"] == *name
}

pub(crate) fn is_leaving(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

pub(crate) fn is_alive(pod: &Value) -> bool {
    !is_leaving(pod) && !matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded"))
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// The image of a template.
pub(crate) fn image_of(object: &Value) -> String {
    object["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap_or_default().to_owned()
}

/// What a trace says of an object.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let Ok(object) = serde_json::from_slice::<Value>(bytes) else { return String::new() };
    let (spec, status) = (&object["spec"], &object["status"]);
    let mut said = String::new();
    let mut say = |name: &str, value: &Value| {
        if !value.is_null() {
            said.push_str(&format!(" {name}={value}"));
        }
    };
    say("replicas", &spec["replicas"]);
    say("node", &spec["nodeName"]);
    say("phase", &status["phase"]);
    if is_ready(&object) {
        say("ready", &Value::Bool(true));
    }
    say("has", &status["replicas"]);
    say("available", &status["availableReplicas"]);
    say("updated", &status["updatedReplicas"]);
    say("deleted", &object["metadata"]["deletionTimestamp"]);
    say("reason", &object["reason"]);
    say("message", &object["message"]);
    say("failure", &object["metadata"]["annotations"]["proa.dev/failure"]);
    say("healthy", &object["metadata"]["annotations"]["proa.dev/healthy"]);
    for revision in status["revisions"].as_array().into_iter().flatten() {
        say(&format!("r{}", revision["revision"]), &revision["result"]);
    }
    if spec["template"].is_object() {
        say("image", &Value::String(image_of(&object)));
    }
    said
}
