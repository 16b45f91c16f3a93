//! Configuration as part of a revision: what its ConfigMaps and Secrets hold is kept with it.
//!
//! One Secret per revision, owned by its replica set. Until the revision is healthy the copy follows the live objects.
//! After that it follows what its pods have shown to run with, for what changed in a ConfigMap is most often meant for
//! the revision that comes next. Once another revision is current the copy stands still. When the deployment goes back to
//! the revision and the live objects differ, its pods read the copy (`proa.dev/config-revision`).

use super::revisions::{name, note};
use crate::pods;
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Container, KeyToPath, PodSpec, Secret, Volume},
};
use kube::core::{ApiResource, ObjectMeta};
use proa_crds::{Deployment, Pod, ReplicaSet, annotations};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// How long every pod of a healthy revision must have been ready with changed files before they count as what it runs
/// with: pods read mounted files when they please, so only time can tell that they do well with them.
const SETTLE: Duration = Duration::from_secs(60);

/// A Secret holds at most 1 MiB; what does not fit with room to spare is not kept.
pub(super) const SIZE_LIMIT: usize = 1_000_000;

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
    /// Since when changes are seen at all: what differs and was not seen to change may have changed right before.
    pub since: Timestamp,
}

impl Live {
    /// Since when the content is what it is, at the latest.
    fn stands_since(&self, reference: &Reference) -> Timestamp {
        self.changed.get(reference).copied().unwrap_or(self.since)
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

fn pod_spec(set: &ReplicaSet) -> Option<&PodSpec> {
    set.spec.template.as_ref()?.spec.as_ref()
}

/// The references of a replica set's template.
pub(super) fn references_of(set: &ReplicaSet) -> BTreeSet<Reference> {
    pod_spec(set).map(references).unwrap_or_default()
}

/// A volume of the template that cannot be made because its ConfigMap, its Secret or a key of it is not there, in words.
/// On Kubernetes the pod's status does not show this; its containers are being created for ever.
pub(super) fn missing(set: &ReplicaSet, live: &Live) -> Option<String> {
    let spec = pod_spec(set)?;
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

/// Whether the deployment keeps configuration with its revisions.
pub(super) fn is_on(deployment: &Deployment) -> bool {
    is_kept(note(deployment, annotations::CONFIG_REVISIONS))
}

/// What that value of `proa.dev/config-revisions` means.
pub(super) fn is_kept(setting: Option<&str>) -> bool {
    setting != Some(annotations::CONFIG_REVISIONS_OFF)
}

/// The name of the Secret that keeps the configuration of a replica set.
pub fn kept_name(set_name: &str) -> String {
    format!("{set_name}-config")
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

/// What is to be done about the copy of the current revision.
#[derive(Debug, PartialEq)]
pub(super) enum Keep {
    /// It is as it should be.
    Nothing,
    /// So many bytes cannot be kept.
    TooLarge(usize),
    /// The pods have to show that they do well with what changed: look again after this time.
    Wait(Duration),
    /// Write this Secret.
    Write(Box<Secret>),
}

/// Compares the copy of the current revision with the live objects; `pods` are the revision's that stay.
pub(super) fn keep(set: &ReplicaSet, resource: &ApiResource, live: &Live, pods: &[&Pod], now: Timestamp) -> Keep {
    let wanted = references_of(set);
    // A pinned revision reads its copy: the copy must stand still.
    if wanted.is_empty() || note(set, annotations::CONFIG_REVISION).is_some() {
        return Keep::Nothing;
    }
    let content = content(&wanted, live);
    let secret_name = kept_name(name(set));
    let held = live.secrets.get(&secret_name);
    let mut copy = held.and_then(|held| held.data.clone()).unwrap_or_default();
    let at_start = pod_spec(set).map(read_at_start).unwrap_or_default();
    let proven = held.is_some() && note(set, annotations::HEALTHY).is_some();
    let (mut changed, mut wait) = (held.is_none(), None);
    for reference in &wanted {
        let key = reference.to_string();
        // What is gone stays in the copy: there is nothing else left of it.
        let Some(new) = content.get(&key).filter(|new| copy.get(&key) != Some(new)) else { continue };
        let shown = if proven {
            shown_in(pods, live.stands_since(reference), !at_start.contains(reference), now)
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
            name: Some(secret_name),
            namespace: set.metadata.namespace.clone(),
            owner_references: Some(vec![crate::owners::controller_reference(set, resource)]),
            ..Default::default()
        },
        type_: Some(annotations::CONFIG_REVISION_SECRET_TYPE.to_owned()),
        data: Some(copy),
        ..Default::default()
    }))
}

/// How long until these pods have shown that their revision runs with what changed at that time: now that one of them
/// started with it and is ready, or, for files that running pods see change, when all of them have been ready with it for
/// long enough. `None` while only an event can bring that about.
fn shown_in(pods: &[&Pod], changed: Timestamp, follows: bool, now: Timestamp) -> Option<Duration> {
    if pods.iter().any(|pod| pods::is_ready(pod) && started_after(pod, changed)) {
        return Some(Duration::ZERO);
    }
    if !follows || pods.is_empty() {
        return None;
    }
    let ready = pods.iter().map(|pod| pods::ready_since(pod)).collect::<Option<Vec<_>>>()?;
    let since = ready.into_iter().fold(changed, Timestamp::max);
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

/// The Secret a revision must read when the deployment goes back to it: its copy, if that differs from the live objects.
pub(super) fn pin<'a>(set: &ReplicaSet, live: &'a Live) -> Option<&'a str> {
    let wanted = references_of(set);
    let (secret_name, kept) = live.secrets.get_key_value(&kept_name(name(set)))?;
    if kept.type_.as_deref() != Some(annotations::CONFIG_REVISION_SECRET_TYPE) {
        return None;
    }
    let nothing = Content::new();
    let differs = !wanted.is_empty() && *kept.data.as_ref().unwrap_or(&nothing) != content(&wanted, live);
    differs.then_some(secret_name.as_str())
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
}
