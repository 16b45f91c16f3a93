//! Claims and volumes in the simulation: what a hollow node does about the volumes that lie on it, and the laws of both.
//!
//! Owns: the list of the claims there should be, and the judgement of claims and volumes. A directory is a name here: it is gone when its
//! node lets go of the volume.

use crate::hollow::Hollow;
use crate::objects::{Objects, Put};
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

/// A class whose volumes are made at once: where a pod comes to run is not known then. Of the default class (`local`) they
/// are made where the first pod that uses the claim is placed.
pub(crate) fn class() -> Value {
    json!({"metadata": {"name": "now"}, "provisioner": "proa.dev/local"})
}

/// What begins the names of claims that a set makes; nobody else knows which there should be.
pub(crate) const OF_SETS: &str = "data-";

/// A claim of a class.
pub(crate) fn claim(name: &str, class: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}})
}

/// The claims there should be.
#[derive(Default)]
pub(crate) struct Ledger {
    /// The names of those that users made.
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

/// The law that a write breaks: a claim that says it is bound has a volume that is bound to it, and what is bound once is
/// never bound to anything else.
pub(crate) fn put(objects: &Objects, key: &str, put: &Put) -> Option<String> {
    let (after, before) = (&*put.after, put.before.as_deref());
    let held = |pointer: &str| before.map_or("", |before| text(before, pointer));
    if key.starts_with(VOLUMES) {
        let (was, is) = (held("/spec/claimRef/uid"), text(after, "/spec/claimRef/uid"));
        return (!was.is_empty() && was != is).then(|| format!("{key} was bound to {was}, and is to {is:?}"));
    }
    if !key.starts_with(CLAIMS) {
        return None;
    }
    let same = held("/metadata/uid") == text(after, "/metadata/uid");
    let (was, is) = (held("/spec/volumeName"), text(after, "/spec/volumeName"));
    if same && !was.is_empty() && was != is {
        return Some(format!("{key} was bound to {was}, and is to {is:?}"));
    }
    let is_whole = || objects.of(VOLUMES).any(|volume| are_bound(after, volume));
    match text(after, "/status/phase") {
        "Bound" if !is_whole() => Some(format!("{key} says that it is bound, and no volume is bound to it")),
        "Lost" => Some(format!("{key} has lost its volume")),
        _ => None,
    }
}

/// The law that the going of an object breaks.
pub(crate) fn delete(objects: &Objects, key: &str, gone: &Value) -> Option<String> {
    let mut claims = objects.keyed(CLAIMS).filter(|_| key.starts_with(VOLUMES));
    claims
        .find(|(_, claim)| are_bound(claim, gone))
        .map(|(claim, _)| format!("{key} goes while {claim} is bound to it"))
}

impl Ledger {
    /// Every claim has a volume of its own, and no volume is left without a claim.
    pub(crate) fn at_rest(&self, objects: &Objects) -> Result<(), String> {
        let names = objects.of(CLAIMS).map(|claim| text(claim, "/metadata/name"));
        let names: BTreeSet<&str> = names.filter(|name| !name.starts_with(OF_SETS)).collect();
        if names != self.wanted.iter().map(String::as_str).collect() {
            return Err(format!("there are claims {names:?}, wanted are {:?}", self.wanted));
        }
        // What is made for the first pod that uses it waits for that pod.
        let waits = |claim: &Value| {
            text(claim, "/metadata/name").starts_with(OF_SETS) && text(claim, "/spec/volumeName").is_empty()
        };
        let mut unbound = objects.keyed(CLAIMS).filter(|(_, claim)| text(claim, "/status/phase") != "Bound");
        if let Some((key, _)) = unbound.find(|(_, claim)| !waits(claim)) {
            return Err(format!("{key} is not bound"));
        }
        for (key, volume) in objects.keyed(VOLUMES) {
            let mine = objects.of(CLAIMS).any(|claim| are_bound(claim, volume));
            if text(volume, "/status/phase") != "Bound" || !mine {
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
