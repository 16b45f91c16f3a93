//! Laws of claims and volumes: tables of single decisions, and a whole cluster that comes to rest whatever happens.

mod laws;
mod tables;

use super::{Action, Said, claim, facts, volume};
use crate::{Key, sim::World};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::ResourceExt;
use proa_crds::{Node, Pod, annotations::HOSTNAME};
use serde_json::{Value, json};
use std::{collections::HashMap, sync::Arc};

const CLAIM: &str = "claim";
const VOLUME: &str = "volume";
const CLASS: &str = "class";
const NODE: &str = "node";
const POD: &str = "pod";

/// A cluster with nothing but the loop's plans, and the memory of what was said.
#[derive(Clone)]
struct Cluster {
    world: World,
    said: HashMap<Key, Said>,
    told: Vec<String>,
}

fn key(name: &str) -> Key {
    match name.split_once('/') {
        Some((namespace, name)) => Key::new(namespace, name),
        None => Key::new("", name),
    }
}

impl Cluster {
    fn new() -> Self {
        Cluster { world: World::new(), said: HashMap::new(), told: Vec::new() }
    }

    /// One with the class every cluster has, and one node.
    fn usual() -> Self {
        let mut cluster = Cluster::new();
        cluster.class("local", json!({"volumeBindingMode": "WaitForFirstConsumer"}));
        cluster.node("n1");
        cluster
    }

    fn class(&mut self, name: &str, more: Value) {
        let mut class = json!({"metadata": {"name": name}, "provisioner": "proa.dev/local", "reclaimPolicy": "Delete"});
        crate::sim::merge(&mut class, &more);
        self.world.create(CLASS, &class);
    }

    fn node(&mut self, name: &str) {
        self.world.create(NODE, &json!({
            "metadata": {"name": name, "labels": {HOSTNAME: name}, "annotations": {"proa.dev/volumes": "/data/volumes"}},
            "spec": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }));
    }

    /// As the API server stores it: protected, with a phase.
    fn claim(&mut self, name: &str, spec: Value) {
        let mut object = json!({
            "metadata": {"name": name, "namespace": "ns", "finalizers": ["kubernetes.io/pvc-protection"]},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Pending"},
        });
        crate::sim::merge(&mut object, &json!({"spec": spec}));
        assert!(self.world.create(CLAIM, &object));
    }

    fn volume(&mut self, name: &str, spec: Value) {
        let mut object = json!({
            "metadata": {"name": name, "finalizers": ["kubernetes.io/pv-protection"]},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "capacity": {"storage": "1Gi"},
                "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "", "hostPath": {"path": "/x"}},
            "status": {"phase": "Pending"},
        });
        crate::sim::merge(&mut object, &json!({"spec": spec}));
        assert!(self.world.create(VOLUME, &object));
    }

    fn pod(&mut self, name: &str, claim: &str, node: Option<&str>) {
        assert!(self.world.create(POD, &json!({
            "metadata": {"name": name, "namespace": "ns"},
            "spec": {"containers": [], "nodeName": node, "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]},
        })));
    }

    /// What a user or another part changes.
    fn change(&mut self, kind: &'static str, name: &str, patch: Value) {
        assert!(self.world.patch(kind, &key(name), &patch), "{name}");
    }

    /// DELETE: gone at once, unless a finalizer holds it.
    fn delete(&mut self, kind: &'static str, name: &str) {
        let key = key(name);
        self.world.patch(kind, &key, &json!({"metadata": {"deletionTimestamp": "2026-11-21T10:00:00Z"}}));
        self.finish(kind, &key);
    }

    fn finish(&mut self, kind: &'static str, key: &Key) {
        let Some(object) = self.world.raw(kind, key) else { return };
        let held =
            object.pointer("/metadata/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        if object.pointer("/metadata/deletionTimestamp").is_some() && !held {
            self.world.delete(kind, key);
        }
    }

    fn get(&self, kind: &'static str, name: &str, pointer: &str) -> Option<&str> {
        self.world.raw(kind, &key(name))?.pointer(pointer)?.as_str()
    }

    fn phase(&self, kind: &'static str, name: &str) -> &str {
        self.get(kind, name, "/status/phase").unwrap_or("gone")
    }

    fn claims(&self) -> Vec<Arc<PersistentVolumeClaim>> {
        self.world.list(CLAIM)
    }

    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.world.list(VOLUME)
    }

    fn see_claim(&self, key: &Key) -> Option<claim::Seen> {
        let claim: Arc<PersistentVolumeClaim> = self.world.get(CLAIM, key)?;
        let classes: Vec<Arc<StorageClass>> = self.world.list(CLASS);
        let class_name = facts::class_of_claim(&claim);
        let volumes = self.volumes();
        let on =
            |node: &Node| volumes.iter().filter(|v| v.labels().get(HOSTNAME) == node.metadata.name.as_ref()).count();
        Some(claim::Seen {
            class: classes.iter().find(|class| Some(&*class.name_any()) == class_name).cloned(),
            default_class: classes.iter().find(|class| facts::is_default(class)).map(|class| class.name_any()),
            volume: self.world.get(VOLUME, &Key::new("", facts::volume_name(&claim))),
            nodes: self.world.list::<Node>(NODE).into_iter().map(|node| (node.clone(), on(&node))).collect(),
            pods: self.world.list::<Pod>(POD),
            said: self.said.get(key).cloned(),
            candidates: volumes,
            claim,
        })
    }

    fn see_volume(&self, key: &Key) -> Option<volume::Seen> {
        let volume: Arc<PersistentVolume> = self.world.get(VOLUME, key)?;
        let claim = facts::volume_spec(&volume).claim_ref.as_ref().and_then(|reference| {
            self.world.get(CLAIM, &Key::new(reference.namespace.as_deref()?, reference.name.as_deref()?))
        });
        let host = volume.labels().get(HOSTNAME);
        let has_node = host.is_none_or(|host| self.world.raw(NODE, &Key::new("", host)).is_some());
        Some(volume::Seen { volume, claim, has_node, said: self.said.get(key).cloned() })
    }

    /// The plan for a key, as things stand.
    fn plan(&self, key: &Key) -> Vec<Action> {
        let plan = if key.namespace.is_empty() {
            self.see_volume(key).map(|seen| volume::plan(&seen, self.world.now))
        } else {
            self.see_claim(key).map(|seen| claim::plan(&seen))
        };
        plan.map(|plan| plan.actions).unwrap_or_default()
    }

    /// Does one action as the API server would; `false`: it was refused, and the rest of its plan with it.
    fn act(&mut self, key: &Key, action: &Action) -> bool {
        let (kind, name, patch) = match action {
            Action::PatchClaim(patch) | Action::PatchClaimStatus(patch) => (CLAIM, key.clone(), patch),
            Action::PatchVolume(name, patch) | Action::PatchVolumeStatus(name, patch) => {
                (VOLUME, Key::new("", name), patch)
            }
            Action::CreateVolume(volume) => {
                let mut made = crate::patch::json(&**volume);
                made["status"] = json!({"phase": "Pending"});
                let held = made["metadata"]["finalizers"].as_array_mut().expect("it has one");
                held.push("kubernetes.io/pv-protection".into());
                self.world.create(VOLUME, &made);
                return true;
            }
            Action::DeleteVolume { name, uid } => {
                if self.get(VOLUME, name, "/metadata/uid") == Some(uid) {
                    self.delete(VOLUME, name);
                }
                return true;
            }
            Action::ConfirmClaimGone(claim, uid) => {
                let live = self.world.raw(CLAIM, claim).and_then(|claim| claim.pointer("/metadata/uid"));
                return live.and_then(Value::as_str) != Some(uid);
            }
            Action::ConfirmUnused => {
                let Some(claim) = self.world.get::<PersistentVolumeClaim>(CLAIM, key) else { return false };
                return !self.world.list::<Pod>(POD).iter().any(|pod| claim::uses(pod, &claim));
            }
            Action::ConfirmNodeGone(host) => return self.world.raw(NODE, &Key::new("", host)).is_none(),
            Action::Note(note) => {
                self.said.insert(key.clone(), (note.reason, note.message.clone()));
                self.told.push(format!("{}: {}", note.reason, note.message));
                return true;
            }
        };
        let uid = self.world.raw(kind, &name).and_then(|object| object.pointer("/metadata/uid"));
        if uid != patch.pointer("/metadata/uid") {
            return false;
        }
        let done = self.world.patch(kind, &name, patch);
        self.finish(kind, &name);
        done
    }

    /// The keys of everything there is.
    fn keys(&self) -> Vec<Key> {
        let claims = self.claims().into_iter().map(|claim| Key::of(claim.as_ref()));
        claims.chain(self.volumes().into_iter().map(|volume| Key::of(volume.as_ref()))).collect()
    }

    /// Runs every plan until none has anything to do.
    #[track_caller]
    fn settle(&mut self) -> &mut Self {
        for _ in 0..30 {
            let mut rested = true;
            for key in self.keys() {
                let actions = self.plan(&key);
                rested &= actions.is_empty();
                let _ = actions.iter().all(|action| self.act(&key, action));
            }
            if rested {
                return self;
            }
        }
        panic!("it does not come to rest: {:?}", self.keys().iter().map(|key| self.plan(key)).collect::<Vec<_>>());
    }

    /// What a node's agent does: removes the directory of what is to go, and lets go.
    fn agent(&mut self) {
        for volume in self.volumes() {
            let finalizers = volume.finalizers();
            if facts::is_deleting(volume.as_ref()) && finalizers == ["proa.dev/local-volume"] {
                let key = Key::of(volume.as_ref());
                self.world.patch(VOLUME, &key, &json!({"metadata": {"finalizers": []}}));
                self.finish(VOLUME, &key);
            }
        }
    }
}
