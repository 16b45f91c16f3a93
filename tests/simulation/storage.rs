//! Claims and volumes in the simulation: what a hollow node does about the volumes that lie on it, and the laws of both.
//!
//! Owns: the ledger of claims and volumes that is kept with every commit. A directory is a name here: it is gone when its
//! node lets go of the volume.

use crate::hollow::Hollow;
use futures::StreamExt;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

const CLAIMS: &str = "/registry/persistentvolumeclaims/";
const VOLUMES: &str = "/registry/persistentvolumes/";

/// A class whose volumes are made at once: the simulation's pods use none.
pub(crate) fn class() -> Value {
    json!({"metadata": {"name": "now"}, "provisioner": "proa.dev/local"})
}

/// A claim of it.
pub(crate) fn claim(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"storageClassName": "now", "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}})
}

/// Claims and volumes as they are committed.
#[derive(Default)]
pub(crate) struct Ledger {
    claims: BTreeMap<String, Value>,
    volumes: BTreeMap<String, Value>,
    /// The names of the claims there should be.
    pub(crate) wanted: BTreeSet<String>,
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Whether the claim is bound to the volume, and the volume to the claim.
fn are_bound(claim: &Value, volume: &Value) -> bool {
    text(claim, "/spec/volumeName") == text(volume, "/metadata/name")
        && text(claim, "/metadata/uid") == text(volume, "/spec/claimRef/uid")
}

impl Ledger {
    /// Takes in an object that was written; the law it breaks.
    pub(crate) fn put(&mut self, key: &str, bytes: &[u8]) -> Option<String> {
        let object = || serde_json::from_slice::<Value>(bytes).expect("objects are stored as JSON");
        if key.starts_with(VOLUMES) {
            self.volumes.insert(key.to_owned(), object());
            return None;
        }
        if !key.starts_with(CLAIMS) {
            return None;
        }
        let claim = object();
        let is_whole = |claim: &Value| self.volumes.values().any(|volume| are_bound(claim, volume));
        let broken = match text(&claim, "/status/phase") {
            "Bound" if !is_whole(&claim) => Some(format!("{key} says that it is bound, and no volume is bound to it")),
            "Lost" => Some(format!("{key} has lost its volume")),
            _ => None,
        };
        self.claims.insert(key.to_owned(), claim);
        broken
    }

    /// Takes an object out; the law its going breaks.
    pub(crate) fn delete(&mut self, key: &str) -> Option<String> {
        self.claims.remove(key);
        let volume = self.volumes.remove(key)?;
        let claim = self.claims.iter().find(|(_, claim)| are_bound(claim, &volume));
        claim.map(|(claim, _)| format!("{key} goes while {claim} is bound to it"))
    }

    /// Every claim has a volume of its own, and no volume is left without a claim.
    pub(crate) fn at_rest(&self) -> Result<(), String> {
        let names: BTreeSet<&str> = self.claims.values().map(|claim| text(claim, "/metadata/name")).collect();
        if names != self.wanted.iter().map(String::as_str).collect() {
            return Err(format!("there are claims {names:?}, wanted are {:?}", self.wanted));
        }
        if let Some((key, _)) = self.claims.iter().find(|(_, claim)| text(claim, "/status/phase") != "Bound") {
            return Err(format!("{key} is not bound"));
        }
        for (key, volume) in &self.volumes {
            if text(volume, "/status/phase") != "Bound" || !self.claims.values().any(|claim| are_bound(claim, volume)) {
                return Err(format!("{key} is {} and nobody's", text(volume, "/status/phase")));
            }
        }
        Ok(())
    }
}

impl Hollow {
    /// Lets go of the volumes that are to go, as an agent that has removed their directories.
    pub(crate) async fn keep_volumes(&self) {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let mine = watcher::Config::default().labels(&format!("kubernetes.io/hostname={}", self.name));
        let mut events = watcher::watcher(volumes.clone(), mine).boxed();
        let mut leaving: BTreeMap<String, PersistentVolume> = BTreeMap::new();
        let mut again = None;
        loop {
            let due = async {
                match again {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                event = events.next() => match event {
                    Some(Ok(Event::Apply(volume) | Event::InitApply(volume))) => {
                        let alone = volume.finalizers() == ["proa.dev/local-volume"];
                        if volume.metadata.deletion_timestamp.is_some() && alone {
                            leaving.insert(volume.name_any(), volume);
                        }
                    }
                    Some(Ok(Event::Delete(volume))) => _ = leaving.remove(&volume.name_any()),
                    Some(Ok(Event::Init)) => leaving.clear(),
                    Some(Ok(Event::InitDone)) => {}
                    Some(Err(_)) => tokio::time::sleep(Duration::from_millis(200)).await,
                    None => return,
                },
                () = due => {}
            }
            again = None;
            for (name, volume) in leaving.clone() {
                let patch =
                    json!({"metadata": {"resourceVersion": volume.metadata.resource_version, "finalizers": []}});
                match volumes.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                    Ok(_) => _ = leaving.remove(&name),
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => _ = leaving.remove(&name),
                    Err(_) => again = Some(Instant::now() + Duration::from_secs(1)),
                }
            }
        }
    }
}
