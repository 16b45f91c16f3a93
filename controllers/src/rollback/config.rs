//! Configuration as part of a revision: what its ConfigMaps and Secrets hold is kept with it.
//!
//! One Secret per content, owned by every revision that ran with it: it is named after what it holds, never changes, and goes
//! with the last of them. Until a revision is healthy its copy follows the live objects. After that it follows what its pods
//! have shown to run with, for what changed in a ConfigMap is most often meant for the revision that comes next. Once another
//! revision is current the copy stands still. When the object goes back to the revision and the live objects differ, its pods
//! read the copy (`proa.dev/config-revision`).

use super::marks::{Revision, note};
use crate::pods;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Container, KeyToPath, PodSpec, Secret, Volume},
};
use kube::core::ObjectMeta;
use proa_crds::{Pod, annotations};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// How long every pod of a healthy revision must have been ready with changed files before they count as what it runs
/// with: pods read mounted files when they please, so only time can tell that they do well with them.
const SETTLE: Duration = Duration::from_secs(60);

/// A Secret holds at most 1 MiB; what does not fit with room to spare is not kept.
pub(crate) const SIZE_LIMIT: usize = 1_000_000;

/// A ConfigMap or Secret a template refers to. Displays as the key under which it is kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    /// A ConfigMap of that name.
    ConfigMap(String),
    /// A Secret of that name.
    Secret(String),
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reference::ConfigMap(name) => write!(f, "configmap.{name}"),
            Reference::Secret(name) => write!(f, "secret.{name}"),
        }
    }
}

/// The live objects a loop saw, and when they last changed under its eyes.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// By name.
    pub config_maps: BTreeMap<String, Arc<ConfigMap>>,
    /// By name; the kept copies among them.
    pub secrets: BTreeMap<String, Arc<Secret>>,
    /// When the content last changed, for those that were seen to.
    pub changed: BTreeMap<Reference, Timestamp>,
    /// The resource version in which it did.
    pub changed_in: BTreeMap<Reference, u64>,
    /// For pods that were seen to wait for a node: the last resource version in which they did, by uid. Whatever their containers
    /// read, they read later.
    pub waited_in: BTreeMap<String, u64>,
    /// Those that are there, and whose content has to be read first.
    pub unknown: BTreeSet<Reference>,
    /// Since when changes are seen at all: what differs and was not seen to change may have changed right before.
    pub since: Timestamp,
}

impl Live {
    /// Since when the content is what it is, at the latest.
    fn stands_since(&self, reference: &Reference) -> Timestamp {
        self.changed.get(reference).copied().unwrap_or(self.since)
    }

    /// Whether the pod started after the content became what it is.
    ///
    /// Resource versions tell exactly, where both sides were seen: they grow from write to write, over all kinds (KEP-5504 for
    /// comparing them; of our own server they are the store's revisions). Otherwise times do, which are of whole seconds.
    fn was_there_before(&self, pod: &Pod, reference: &Reference) -> bool {
        let waited = pod.metadata.uid.as_ref().and_then(|uid| self.waited_in.get(uid));
        let changed = self.changed_in.get(reference);
        waited.zip(changed).is_some_and(|(waited, changed)| waited > changed)
            || started_after(pod, self.stands_since(reference))
    }
}

/// Every ConfigMap and Secret the pod spec reads, optional ones too.
pub fn references(spec: &PodSpec) -> BTreeSet<Reference> {
    let mut found = read_at_start(spec);
    spec.volumes.iter().flatten().for_each(|volume| of_volume(volume, &mut found));
    found
}

/// What a container reads when it starts and never again: variables, and files mounted by a `subPath`.
fn read_at_start(spec: &PodSpec) -> BTreeSet<Reference> {
    let mut found = BTreeSet::new();
    let containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
    containers().for_each(|container| of_container(container, &mut found));
    let by_path: BTreeSet<&str> = containers()
        .flat_map(|container| container.volume_mounts.iter().flatten())
        .filter(|mount| mount.sub_path.is_some() || mount.sub_path_expr.is_some())
        .map(|mount| mount.name.as_str())
        .collect();
    let volumes = spec.volumes.iter().flatten().filter(|volume| by_path.contains(volume.name.as_str()));
    volumes.for_each(|volume| of_volume(volume, &mut found));
    found
}

fn of_volume(volume: &Volume, found: &mut BTreeSet<Reference>) {
    if let Some(source) = &volume.config_map {
        add(found, Reference::ConfigMap, Some(&source.name));
    }
    if let Some(source) = &volume.secret {
        add(found, Reference::Secret, source.secret_name.as_ref());
    }
    for projection in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
        if let Some(source) = &projection.config_map {
            add(found, Reference::ConfigMap, Some(&source.name));
        }
        if let Some(source) = &projection.secret {
            add(found, Reference::Secret, Some(&source.name));
        }
    }
}

fn of_container(container: &Container, found: &mut BTreeSet<Reference>) {
    for source in container.env_from.iter().flatten() {
        if let Some(source) = &source.config_map_ref {
            add(found, Reference::ConfigMap, Some(&source.name));
        }
        if let Some(source) = &source.secret_ref {
            add(found, Reference::Secret, Some(&source.name));
        }
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        if let Some(source) = &source.config_map_key_ref {
            add(found, Reference::ConfigMap, Some(&source.name));
        }
        if let Some(source) = &source.secret_key_ref {
            add(found, Reference::Secret, Some(&source.name));
        }
    }
}

fn add(found: &mut BTreeSet<Reference>, kind: fn(String) -> Reference, name: Option<&String>) {
    if let Some(name) = name.filter(|name| !name.is_empty()) {
        found.insert(kind(name.clone()));
    }
}

/// A volume of the template that cannot be made because its ConfigMap, its Secret or a key of it is not there, in words.
/// On Kubernetes the pod's status does not show this; its containers are being created for ever.
pub(crate) fn missing(spec: &PodSpec, live: &Live) -> Option<String> {
    let map = |name: &str, optional: Option<bool>, items: &Option<Vec<KeyToPath>>| {
        let held = live.config_maps.get(name).map(|map| {
            let text = map.data.iter().flat_map(BTreeMap::keys);
            text.chain(map.binary_data.iter().flat_map(BTreeMap::keys)).cloned().collect()
        });
        lacks("configmap", name, held, optional, items)
    };
    let secret = |name: &str, optional: Option<bool>, items: &Option<Vec<KeyToPath>>| {
        let held = live.secrets.get(name).map(|secret| secret.data.iter().flat_map(BTreeMap::keys).cloned().collect());
        lacks("secret", name, held, optional, items)
    };
    spec.volumes.iter().flatten().find_map(|volume| {
        let of_map = volume.config_map.as_ref().and_then(|source| map(&source.name, source.optional, &source.items));
        let of_secret = volume.secret.as_ref().and_then(|source| {
            secret(source.secret_name.as_deref().unwrap_or_default(), source.optional, &source.items)
        });
        let mut projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        let of_projection = || {
            projected.find_map(|source| {
                let of_map = source.config_map.as_ref().and_then(|from| map(&from.name, from.optional, &from.items));
                let of_secret =
                    || source.secret.as_ref().and_then(|from| secret(&from.name, from.optional, &from.items));
                of_map.or_else(of_secret)
            })
        };
        let why = of_map.or(of_secret).or_else(of_projection)?;
        Some(format!("volume {:?} cannot be mounted: {why}", volume.name))
    })
}

fn lacks(
    kind: &str,
    name: &str,
    held: Option<BTreeSet<String>>,
    optional: Option<bool>,
    items: &Option<Vec<KeyToPath>>,
) -> Option<String> {
    if optional == Some(true) {
        return None;
    }
    let Some(held) = held else { return Some(format!("{kind} {name:?} not found")) };
    let key = items.iter().flatten().map(|item| &item.key).find(|key| !held.contains(*key))?;
    Some(format!("{kind} {name:?} has no key {key:?}"))
}

/// Whether the object keeps configuration with its revisions.
pub(crate) fn is_on(object: &ObjectMeta) -> bool {
    is_kept(note(object, annotations::CONFIG_REVISIONS))
}

/// What that value of `proa.dev/config-revisions` means.
pub(crate) fn is_kept(setting: Option<&str>) -> bool {
    setting != Some(annotations::CONFIG_REVISIONS_OFF)
}

/// The name of the Secret that keeps the configuration of a revision. Before copies were named after what they hold, they
/// were named after their revision.
pub(crate) fn copy_of(revision: &ObjectMeta) -> String {
    let named = note(revision, annotations::CONFIG_COPY).map(str::to_owned);
    named.unwrap_or_else(|| format!("{}-config", revision.name.as_deref().unwrap_or_default()))
}

/// The digest of what a revision's copy holds: its name ends in it.
pub(crate) fn digest_of_copy(revision: &ObjectMeta) -> Option<&str> {
    note(revision, annotations::CONFIG_COPY)?.rsplit_once('-').map(|(_, digest)| digest)
}

type Content = BTreeMap<String, ByteString>;

/// What the copy of these references would hold now. Objects that do not exist are left out.
fn content(wanted: &BTreeSet<Reference>, live: &Live) -> Content {
    let mut data = Content::new();
    for reference in wanted {
        // Always a map, never null: whoever reads the copy needs no other case.
        let held = match reference {
            Reference::ConfigMap(name) => live.config_maps.get(name).map(|map| {
                json!({"data": map.data.clone().unwrap_or_default(), "binaryData": map.binary_data.clone().unwrap_or_default()})
            }),
            Reference::Secret(name) => live.secrets.get(name).map(|secret| json!({"data": secret.data.clone().unwrap_or_default()})),
        };
        if let Some(held) = held {
            data.insert(reference.to_string(), ByteString(held.to_string().into_bytes()));
        }
    }
    data
}

/// A digest of what these references hold now.
pub(crate) fn digest(wanted: &BTreeSet<Reference>, live: &Live) -> String {
    digest_of(&content(wanted, live))
}

fn digest_of(content: &Content) -> String {
    let mut hash = Sha256::new();
    for (key, bytes) in content {
        for part in [key.as_bytes(), &bytes.0] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is to be done about the copy of the current revision.
#[derive(Debug, PartialEq)]
pub(crate) enum Keep {
    /// It is as it should be.
    Nothing,
    /// So many bytes cannot be kept.
    TooLarge(usize),
    /// The pods have to show that they do well with what changed: look again after this time.
    Wait(Duration),
    /// See that this Secret is there and owned by the revision, then that the revision names it.
    Write(Box<Secret>),
}

/// Compares the copy of the current revision with the live objects. `of` names the workload, `owner` refers to the revision
/// (without controlling), `pods` are the revision's that stay.
pub(crate) fn keep(
    of: &str,
    revision: &ObjectMeta,
    spec: Option<&PodSpec>,
    owner: OwnerReference,
    live: &Live,
    pods: &[&Pod],
    now: Timestamp,
) -> Keep {
    let wanted = spec.map(references).unwrap_or_default();
    // A pinned revision reads its copy: the copy must stand still.
    if wanted.is_empty() || note(revision, annotations::CONFIG_REVISION).is_some() {
        return Keep::Nothing;
    }
    let content = content(&wanted, live);
    let held = live.secrets.get(&copy_of(revision));
    let mut copy = held.and_then(|held| held.data.clone()).unwrap_or_default();
    let at_start = spec.map(read_at_start).unwrap_or_default();
    let proven = held.is_some() && note(revision, annotations::HEALTHY).is_some();
    let (mut changed, mut wait) = (held.is_none(), None);
    for reference in &wanted {
        let key = reference.to_string();
        // What is gone stays in the copy: there is nothing else left of it.
        let Some(new) = content.get(&key).filter(|new| copy.get(&key) != Some(new)) else { continue };
        let shown = if proven {
            shown_in(pods, live, reference, !at_start.contains(reference), now)
        } else {
            Some(Duration::ZERO)
        };
        match shown {
            Some(Duration::ZERO) => {
                copy.insert(key, new.clone());
                changed = true;
            }
            Some(left) => wait = Some(wait.map_or(left, |wait: Duration| wait.min(left))),
            None => {}
        }
    }
    if !changed {
        return wait.map_or(Keep::Nothing, Keep::Wait);
    }
    let size = copy.values().map(|bytes| bytes.0.len()).sum::<usize>();
    if size > SIZE_LIMIT {
        return Keep::TooLarge(size);
    }
    Keep::Write(Box::new(Secret {
        metadata: ObjectMeta {
            name: Some(format!("{of}-config-{}", digest_of(&copy))),
            namespace: revision.namespace.clone(),
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        type_: Some(annotations::CONFIG_REVISION_SECRET_TYPE.to_owned()),
        immutable: Some(true),
        data: Some(copy),
        ..Default::default()
    }))
}

/// How long until these pods have shown that their revision runs with what changed last: now that one of them
/// started with it and is ready, or, for files that running pods see change, when all of them have been ready with it for
/// long enough. `None` while only an event can bring that about.
fn shown_in(pods: &[&Pod], live: &Live, of: &Reference, follows: bool, now: Timestamp) -> Option<Duration> {
    if pods.iter().any(|pod| pods::is_ready(pod) && live.was_there_before(pod, of)) {
        return Some(Duration::ZERO);
    }
    if !follows || pods.is_empty() {
        return None;
    }
    let ready = pods.iter().map(|pod| pods::ready_since(pod)).collect::<Option<Vec<_>>>()?;
    let since = ready.into_iter().fold(live.stands_since(of), Timestamp::max);
    Some(SETTLE.saturating_sub(Duration::try_from(now.duration_since(since)).unwrap_or_default()))
}

/// Whether the pod started after that time. Times on the wire are whole seconds, rounded down: of a pod made in that very
/// second the containers tell, which start a little later.
fn started_after(pod: &Pod, time: Timestamp) -> bool {
    let Some(created) = pod.metadata.creation_timestamp.as_ref().map(|time| time.0) else { return false };
    let starts = || {
        pods::container_statuses(pod).map(|container| {
            let state = container.state.as_ref()?;
            let ended = || state.terminated.as_ref()?.started_at.as_ref();
            state.running.as_ref().and_then(|running| running.started_at.as_ref()).or_else(ended)
        })
    };
    created > time
        || created.as_second() == time.as_second()
            && starts().next().is_some()
            && starts().all(|start| start.is_some_and(|start| start.0 > time))
}

/// The Secret a revision must read when the object goes back to it: its copy, if that differs from the live objects.
pub(crate) fn pin<'a>(revision: &ObjectMeta, spec: Option<&PodSpec>, live: &'a Live) -> Option<&'a str> {
    let wanted = spec.map(references).unwrap_or_default();
    let (secret_name, kept) = live.secrets.get_key_value(&copy_of(revision))?;
    if kept.type_.as_deref() != Some(annotations::CONFIG_REVISION_SECRET_TYPE) {
        return None;
    }
    let nothing = Content::new();
    let differs = !wanted.is_empty() && *kept.data.as_ref().unwrap_or(&nothing) != content(&wanted, live);
    differs.then_some(secret_name.as_str())
}

/// The copies among `held` that a revision is an owner of and no longer names: what it ran with before. `revisions` are those
/// there are.
pub(crate) fn left_behind<'a>(
    revisions: &[Revision<'a>],
    held: &'a BTreeMap<String, Arc<Secret>>,
) -> Vec<(&'a Secret, &'a str)> {
    let mut left = Vec::new();
    for secret in held.values() {
        if secret.type_.as_deref() != Some(annotations::CONFIG_REVISION_SECRET_TYPE) {
            continue;
        }
        for owner in secret.metadata.owner_references.iter().flatten() {
            let owner_is = revisions.iter().find(|revision| revision.meta.uid.as_ref() == Some(&owner.uid));
            let names = |revision: &&Revision<'_>| {
                Some(&copy_of(revision.meta)) == secret.metadata.name.as_ref()
                    || note(revision.meta, annotations::CONFIG_REVISION) == secret.metadata.name.as_deref()
            };
            if owner_is.is_some_and(|revision| !names(&revision)) {
                left.push((secret.as_ref(), owner.uid.as_str()));
            }
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(spec: serde_json::Value) -> Vec<String> {
        references(&serde_json::from_value(spec).expect("a pod spec")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_way_a_pod_reads_configuration_is_found() {
        let spec = json!({
            "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "a"}}, {"secretRef": {"name": "b", "optional": true}}]}],
            "containers": [{"name": "c", "env": [
                {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
                {"name": "Y", "valueFrom": {"secretKeyRef": {"name": "d", "key": "k"}}},
                {"name": "Z", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ]}],
            "volumes": [
                {"name": "v1", "configMap": {"name": "e"}}, {"name": "v2", "secret": {"secretName": "f"}}, {"name": "v3", "emptyDir": {}},
                {"name": "v4", "projected": {"sources": [{"configMap": {"name": "g"}}, {"secret": {"name": "h"}}, {"serviceAccountToken": {"path": "t"}}]}},
            ],
        });
        assert_eq!(
            names(spec),
            [
                "configmap.a",
                "configmap.c",
                "configmap.e",
                "configmap.g",
                "secret.b",
                "secret.d",
                "secret.f",
                "secret.h"
            ],
        );
    }

    #[test]
    fn variables_and_sub_paths_are_read_at_the_start_and_other_files_when_a_pod_pleases() {
        let spec = json!({
            "containers": [{
                "name": "c",
                "envFrom": [{"configMapRef": {"name": "a"}}],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "w", "mountPath": "/w/x", "subPath": "x"}],
            }],
            "volumes": [{"name": "v", "configMap": {"name": "b"}}, {"name": "w", "secret": {"secretName": "c"}}],
        });
        let found = read_at_start(&serde_json::from_value(spec).expect("a pod spec"));
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), ["configmap.a", "secret.c"]);
    }

    #[test]
    fn a_pod_of_the_same_second_started_after_a_change_when_its_containers_did() {
        let pod = |created: &str, started: &str| -> Pod {
            let running = json!({"state": {"running": {"startedAt": started}}});
            let mut container = json!({"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0});
            crate::sim::merge(&mut container, &running);
            serde_json::from_value(json!({
                "metadata": {"creationTimestamp": created}, "spec": {"containers": []},
                "status": {"containerStatuses": [container]},
            }))
            .expect("a pod")
        };
        let change = "2026-11-21T10:00:05.4Z".parse().expect("a time");
        let after = |created: &str, started: &str| {
            started_after(&pod(&format!("2026-11-21T{created}Z"), &format!("2026-11-21T{started}Z")), change)
        };
        assert!(after("10:00:06", "10:00:06"));
        assert!(after("10:00:05", "10:00:06"));
        assert!(!after("10:00:05", "10:00:05"), "before or after: nobody can tell");
        assert!(!after("10:00:04", "10:00:06"), "what started late may have been looked up before");
    }

    #[test]
    fn a_pod_that_waited_for_its_node_in_a_later_version_started_after_the_change_within_the_same_second_too() {
        let time = "2026-11-21T10:00:05Z";
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"uid": "u", "creationTimestamp": time}, "spec": {"containers": []},
            "status": {"containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {"startedAt": time}}}]},
        }))
        .expect("a pod");
        let conf = Reference::ConfigMap("conf".into());
        let live = |changed: Option<u64>, waited: Option<u64>| Live {
            changed: [(conf.clone(), time.parse().expect("a time"))].into(),
            changed_in: changed.map(|at| (conf.clone(), at)).into_iter().collect(),
            waited_in: waited.map(|at| ("u".to_owned(), at)).into_iter().collect(),
            ..Live::default()
        };
        assert!(live(Some(7), Some(8)).was_there_before(&pod, &conf));
        assert!(!live(Some(9), Some(8)).was_there_before(&pod, &conf), "it may have been bound before the change");
        assert!(!live(None, Some(8)).was_there_before(&pod, &conf));
        assert!(!live(Some(7), None).was_there_before(&pod, &conf));
    }
}
