//! One deployment `web` in a simulated world: its loop, the loop of its replica sets, and pods that do what their image
//! says.

use super::super::{Action, Seen, plan, revisions};
use crate::{
    Key,
    patch::{json, merge_diff},
    pods, replicaset,
    rollback::{Surroundings, checks::Standing, config, effective, marks},
    selector,
    sim::{World, merge},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;
use proa_crds::{Deployment, Family, Pod, ReplicaSet, RolloutPolicy, annotations, policy::WorkloadKind};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// A deployment, its replica sets, its pods.
pub(super) struct Sim {
    pub(super) world: World,
    pub(super) events: Vec<String>,
    pub(super) namespace_wants_rollback: bool,
    pub(super) policies: Vec<Arc<RolloutPolicy>>,
    pub(super) around: Surroundings,
    /// How every check of every revision stands.
    pub(super) checks: BTreeMap<String, Standing>,
    /// What was asked.
    pub(super) asked: Vec<String>,
    /// When the content of a reference changed.
    changed: BTreeMap<config::Reference, Timestamp>,
    /// Since when the loop sees such changes: long ago, but for a restart.
    since: Timestamp,
    /// How many pods were created, by image.
    pub(super) created: BTreeMap<String, usize>,
}

pub(super) fn web() -> Key {
    Key::new("ns", "web")
}

/// A manifest of `web`.
pub(super) fn manifest(replicas: i32, image: &str, edit: Value) -> Value {
    let mut manifest = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "ns"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
        },
    });
    merge(&mut manifest, &edit);
    manifest
}

impl Sim {
    pub(super) fn new() -> Self {
        Sim {
            world: World::new(),
            events: Vec::new(),
            namespace_wants_rollback: false,
            policies: Vec::new(),
            around: Surroundings::default(),
            checks: BTreeMap::new(),
            asked: Vec::new(),
            changed: BTreeMap::new(),
            since: Timestamp::UNIX_EPOCH,
            created: BTreeMap::new(),
        }
    }

    /// `kubectl apply` from the client: what was applied last time and is not in the manifest goes; the rest is set.
    pub(super) fn apply(&mut self, manifest: &Value) {
        let applied = manifest.to_string();
        let mut wanted = manifest.clone();
        merge(&mut wanted, &json!({"metadata": {"annotations": {annotations::LAST_APPLIED: applied}}}));
        let Some(live) = self.world.raw("deployments", &web()).cloned() else {
            // What the API server defaults.
            let limit = wanted.pointer("/spec/revisionHistoryLimit").cloned().unwrap_or(json!(10));
            merge(&mut wanted, &json!({"spec": {"revisionHistoryLimit": limit}}));
            assert!(self.world.create("deployments", &wanted));
            return;
        };
        let last = live
            .pointer("/metadata/annotations")
            .and_then(|map| map.get(annotations::LAST_APPLIED))
            .and_then(Value::as_str)
            .unwrap_or("{}");
        let last: Value = serde_json::from_str(last).expect("what was applied is JSON");
        // Deletions of the last manifest against this one, then everything this one says.
        let mut result = live.clone();
        if let Some(removals) = merge_diff(&last, manifest) {
            merge(&mut result, &only_removals(&removals));
        }
        merge(&mut result, &wanted);
        if let Some(patch) = merge_diff(&live, &result) {
            self.world.patch("deployments", &web(), &patch);
        }
    }

    /// `kubectl rollout undo`: replaces the template and the annotations, as kubectl's JSON patch does.
    pub(super) fn undo(&mut self, to: Option<i64>) {
        let deployment = self.deployment();
        let mut sets = self.sets();
        sets.sort_by_key(|set| revisions::number(set));
        let target = match to {
            Some(to) => sets.iter().find(|set| revisions::number(set) == to).expect("that revision").clone(),
            None => sets[sets.len() - 2].clone(),
        };
        let skipped = [
            annotations::LAST_APPLIED,
            annotations::REVISION,
            annotations::REVISION_HISTORY,
            annotations::DESIRED_REPLICAS,
            annotations::MAX_REPLICAS,
            annotations::DEPRECATED_ROLLBACK_TO,
        ];
        let mut notes: BTreeMap<String, String> = deployment.annotations().clone();
        notes.retain(|key, _| skipped.contains(&key.as_str()));
        notes.extend(
            target
                .annotations()
                .iter()
                .filter(|(key, _)| !skipped.contains(&key.as_str()))
                .map(|(k, v)| (k.clone(), v.clone())),
        );
        let live = self.world.raw("deployments", &web()).expect("web").clone();
        let mut result = live.clone();
        result["spec"]["template"] = json(&revisions::without_hash(target.spec.template.as_ref().expect("a template")));
        result["metadata"]["annotations"] = json(&notes);
        if let Some(patch) = merge_diff(&live, &result) {
            self.world.patch("deployments", &web(), &patch);
        }
    }

    /// A policy of that spec holds for everything.
    pub(super) fn policy(&mut self, spec: Value) {
        let policy = json!({"metadata": {"name": "policy", "namespace": "ns"}, "spec": spec});
        self.policies = vec![Arc::new(serde_json::from_value(policy).expect("a policy"))];
    }

    pub(super) fn edit(&mut self, patch: Value) {
        assert!(self.world.patch("deployments", &web(), &patch));
    }

    pub(super) fn config_map(&mut self, name: &str, value: &str) {
        let key = Key::new("ns", name);
        if self.world.raw("configmaps", &key).is_some() {
            self.world.patch("configmaps", &key, &json!({"data": {"k": value}}));
            self.changed.insert(config::Reference::ConfigMap(name.to_owned()), self.world.now);
        } else {
            self.world
                .create("configmaps", &json!({"metadata": {"name": name, "namespace": "ns"}, "data": {"k": value}}));
        }
    }

    /// Every pod with that image crashes again and again from now on.
    pub(super) fn crash(&mut self, image: &str) {
        for pod in self.pods().iter().filter(|pod| image_of(pod) == image) {
            let status = json!({"conditions": null, "containerStatuses": crashing(image)["containerStatuses"]});
            self.world.patch("pods", &Key::new("ns", &pod.name_any()), &json!({"status": status}));
        }
    }

    /// Every pod is deleted by hand.
    pub(super) fn delete_pods(&mut self) {
        for pod in self.pods() {
            self.world.delete("pods", &Key::new("ns", &pod.name_any()));
        }
    }

    /// The controllers start anew: what changed is forgotten.
    pub(super) fn restart(&mut self) {
        self.changed.clear();
        self.since = self.world.now;
    }

    pub(super) fn deployment(&self) -> Arc<Deployment> {
        self.world.get("deployments", &web()).expect("web")
    }

    /// The image of the deployment's template.
    pub(super) fn image(&self) -> String {
        image_of_template(self.deployment().spec.template.spec.as_ref())
    }

    pub(super) fn sets(&self) -> Vec<Arc<ReplicaSet>> {
        self.world.list("replicasets")
    }

    pub(super) fn pods(&self) -> Vec<Arc<Pod>> {
        self.world.list("pods")
    }

    /// The replica set with that image.
    pub(super) fn set_of(&self, image: &str) -> Option<Arc<ReplicaSet>> {
        self.sets().into_iter().find(|set| {
            image_of_template(set.spec.template.as_ref().and_then(|template| template.spec.as_ref())) == image
        })
    }

    /// The images of the pods that are not leaving, with their number.
    pub(super) fn images(&self) -> BTreeMap<String, usize> {
        let mut images = BTreeMap::new();
        for pod in self.pods().iter().filter(|pod| pods::is_active(pod)) {
            *images.entry(image_of(pod)).or_default() += 1;
        }
        images
    }

    pub(super) fn condition(&self, type_: &str) -> Option<(String, String, String)> {
        let status = self.deployment().status.clone()?;
        let found = super::super::status::condition(&status, type_)?.clone();
        Some((found.status, found.reason.unwrap_or_default(), found.message.unwrap_or_default()))
    }

    pub(super) fn seen(&self) -> Seen {
        let deployment = self.deployment();
        let replica_sets = self.world.controlled_by("replicasets", &deployment.uid().expect("a uid"));
        let mut orphans = self.sets();
        orphans.retain(|set| {
            crate::owners::controller_of(&set.metadata).is_none()
                && selector::matches(&deployment.spec.selector, set.metadata.labels.as_ref())
        });
        let live = config::Live {
            config_maps: self
                .world
                .list::<ConfigMap>("configmaps")
                .into_iter()
                .map(|map| (map.name_any(), map))
                .collect(),
            secrets: self
                .world
                .list::<Secret>("secrets")
                .into_iter()
                .map(|secret| (secret.name_any(), secret))
                .collect(),
            changed: self.changed.clone(),
            since: self.since,
            ..config::Live::default()
        };
        let namespace = self.namespace_wants_rollback.then_some(annotations::ROLLBACK_ON_FAILURE);
        let checks = replica_sets
            .iter()
            .map(|set: &Arc<ReplicaSet>| (set.uid().unwrap_or_default(), self.checks.clone()))
            .collect();
        Seen {
            family: Family::Standard,
            policy: effective(WorkloadKind::Deployment, &deployment.metadata, &self.policies, namespace),
            around: self.around.clone(),
            checks,
            deployment,
            replica_sets,
            orphans,
            pods: self.pods(),
            live,
        }
    }

    /// One run of the deployment loop; whether it acted.
    pub(super) fn step_deployment(&mut self) -> bool {
        self.step_deployment_to(usize::MAX)
    }

    /// A run of the deployment loop that ends after so many actions, as if the next had met a conflict.
    pub(super) fn step_deployment_to(&mut self, most: usize) -> bool {
        let planned = plan(&self.seen(), self.world.now);
        let acted = !planned.actions.is_empty();
        for action in planned.actions.into_iter().take(most) {
            if !self.act(action) {
                break;
            }
        }
        acted
    }

    fn act(&mut self, action: Action) -> bool {
        let key = |name: &str| Key::new("ns", name);
        match action {
            Action::Adopt(set) => {
                let owner =
                    crate::owners::controller_reference(self.deployment().as_ref(), &Family::Standard.deployment());
                self.world.patch(
                    "replicasets",
                    &key(&set.name_any()),
                    &json!({"metadata": {"ownerReferences": [owner]}}),
                )
            }
            Action::Release(set) => {
                self.world.patch("replicasets", &key(&set.name_any()), &json!({"metadata": {"ownerReferences": null}}))
            }
            Action::Create(set) => {
                let made = self.world.create("replicasets", &set);
                if !made {
                    let collisions =
                        self.deployment().status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
                    self.world.patch("deployments", &web(), &json!({"status": {"collisionCount": collisions + 1}}));
                }
                made
            }
            Action::PatchSet { name, patch } => self.world.patch("replicasets", &key(&name), &patch),
            Action::DeleteSet { name, .. } => {
                self.world.delete("replicasets", &key(&name));
                true
            }
            Action::Patch(patch) => self.world.patch("deployments", &web(), &patch),
            Action::PatchStatus(change) => self.world.patch("deployments", &web(), &json!({"status": change})),
            Action::KeepConfig(secret) => {
                let key = key(&secret.name_any());
                match self.world.raw("secrets", &key).cloned() {
                    None => self.world.create("secrets", &secret),
                    Some(held) => {
                        assert_eq!(held["data"], json(&secret.data), "a copy never changes");
                        let mut owners = held["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
                        owners.extend(secret.metadata.owner_references.iter().flatten().map(json));
                        self.world.patch("secrets", &key, &json!({"metadata": {"ownerReferences": owners}}))
                    }
                }
            }
            Action::DropConfig { secret, owner } => {
                let left = crate::owners::owners_without(&secret.metadata, &owner);
                let key = key(&secret.name_any());
                if left.is_empty() {
                    self.world.delete("secrets", &key);
                    return true;
                }
                self.world.patch("secrets", &key, &json!({"metadata": {"ownerReferences": left}}))
            }
            Action::Read(unknown) => panic!("everything is known in this world: {unknown:?}"),
            Action::Ask(question) => {
                let standing = self.checks.entry(question.check.name.clone()).or_default();
                standing.asked = Some(self.world.now);
                self.asked.push(format!("{} of {}", question.check.name, question.pods.len()));
                true
            }
            Action::MarkFailed { name, mut failure, .. } => {
                failure.log = "boom\n".trim().to_owned();
                self.world.patch(
                    "replicasets",
                    &key(&name),
                    &json!({"metadata": {"annotations": marks::failed_with(&failure)}}),
                )
            }
            Action::Note(note) => {
                self.events.push(format!("{} {}", note.reason, note.message));
                true
            }
        }
    }

    /// One run of the replica set loop over every set; whether it acted.
    pub(super) fn step_sets(&mut self) -> bool {
        let mut acted = false;
        for set in self.sets() {
            let pods = self.world.controlled_by("pods", &set.uid().expect("a uid"));
            let seen = replicaset::Seen { replica_set: set.clone(), related: pods.clone(), pods, orphans: Vec::new() };
            for action in replicaset::plan(&seen, self.world.now).actions {
                acted = true;
                self.act_set(&set, action);
            }
        }
        acted
    }

    fn act_set(&mut self, set: &ReplicaSet, action: replicaset::Action) {
        let key = Key::new("ns", &set.name_any());
        match action {
            replicaset::Action::Create(count, _) => {
                let pod = replicaset::pod_of(set, &Family::Standard.replica_set(), &Family::Standard.pod());
                for _ in 0..count {
                    *self.created.entry(image_of(&pod)).or_default() += 1;
                    self.world.create("pods", &pod);
                }
            }
            replicaset::Action::Delete(pods, _) => {
                for pod in pods {
                    let key = Key::new("ns", &pod.name_any());
                    self.world.patch("pods", &key, &json!({"metadata": {"deletionTimestamp": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.world.now)}}));
                }
            }
            replicaset::Action::PointToConfig(pods, pointer) => {
                for pod in pods {
                    let key = Key::new("ns", &pod.name_any());
                    self.world.patch(
                        "pods",
                        &key,
                        &json!({"metadata": {"annotations": {annotations::CONFIG_REVISION: pointer}}}),
                    );
                }
            }
            replicaset::Action::Status(status) | replicaset::Action::Refuse(status) => {
                let held = set.status.as_ref().map_or_else(|| json!({}), json);
                if let Some(change) = merge_diff(&held, &json(&status)) {
                    self.world.patch("replicasets", &key, &json!({"status": change}));
                }
            }
            other => panic!("no claims in this world: {other:?}"),
        }
    }

    /// One step of every node: what leaves is gone; what is young does what its image says. At most `most` pods move.
    pub(super) fn step_nodes(&mut self, most: usize) -> bool {
        let mut moved = 0;
        for pod in self.pods() {
            if moved >= most {
                break;
            }
            let key = Key::new("ns", &pod.name_any());
            if pod.metadata.deletion_timestamp.is_some() {
                self.world.delete("pods", &key);
                moved += 1;
                continue;
            }
            let status = pod_status(&image_of(&pod), self.world.now);
            if let Some(status) = status
                && pod.status.as_ref().and_then(|status| status.phase.as_ref()).is_none()
            {
                self.world.patch("pods", &key, &json!({"status": status}));
                moved += 1;
            }
        }
        moved > 0
    }

    /// Runs everything until nothing moves; panics when that takes too long.
    pub(super) fn settle(&mut self) {
        for _ in 0..400 {
            let moved = [self.step_deployment(), self.step_sets(), self.step_nodes(usize::MAX)];
            if moved == [false; 3] {
                return;
            }
        }
        panic!("does not come to rest: {:#?}", plan(&self.seen(), self.world.now).actions);
    }

    pub(super) fn roll_out(&mut self, manifest: &Value) {
        self.apply(manifest);
        self.settle();
    }
}

/// What only takes away, of a merge patch.
fn only_removals(patch: &Value) -> Value {
    match patch {
        Value::Object(map) => Value::Object(
            map.iter()
                .filter(|(_, value)| value.is_null() || value.is_object())
                .map(|(key, value)| (key.clone(), only_removals(value)))
                .collect(),
        ),
        other => other.clone(),
    }
}

fn image_of_template(spec: Option<&k8s_openapi::api::core::v1::PodSpec>) -> String {
    spec.and_then(|spec| spec.containers.first()).and_then(|container| container.image.clone()).unwrap_or_default()
}

pub(super) fn image_of(pod: &Pod) -> String {
    image_of_template(Some(&pod.spec))
}

fn container(image: &str, state: Value, restarts: i32) -> Value {
    json!({"phase": "Running", "containerStatuses": [{
        "name": "c", "image": image, "imageID": "", "ready": false, "restartCount": restarts, "state": state,
        "lastState": if restarts > 0 { json!({"terminated": {"exitCode": 1}}) } else { json!({}) },
    }]})
}

fn crashing(image: &str) -> Value {
    container(image, json!({"waiting": {"reason": "CrashLoopBackOff"}}), 2)
}

/// `crash…` crashes, `missing…` does not exist, `slow…` never gets ready, anything else is ready at once.
fn pod_status(image: &str, now: Timestamp) -> Option<Value> {
    let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now);
    if image.starts_with("crash") {
        Some(crashing(image))
    } else if image.starts_with("missing") {
        Some(container(image, json!({"waiting": {"reason": "ErrImagePull", "message": "not found"}}), 0))
    } else if image.starts_with("slow") {
        Some(container(image, json!({"running": {}}), 0))
    } else {
        Some(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at}]}))
    }
}
