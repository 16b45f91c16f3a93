//! Configuration as part of a revision: what its ConfigMaps and Secrets hold is kept with it.
//!
//! One Secret per revision, owned by its replica set. While the revision is current the copy follows the live objects;
//! after that it stands still. When the deployment goes back to the revision and the live objects differ, its pods
//! read the copy (`proa.dev/config-revision`).

use super::revisions::{name, note};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Container, KeyToPath, PodSpec, Secret},
};
use kube::core::{ApiResource, ObjectMeta};
use proa_crds::{Deployment, ReplicaSet, annotations};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// How long the live objects must have stood still before the copy of a *healthy* revision follows them. An apply that
/// changes a ConfigMap and, a moment later, the template, must not put the new content into the old revision's copy.
pub(super) const SETTLE: Duration = Duration::from_secs(5);

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
    /// When the content last changed, for those that changed a moment ago.
    pub changed: BTreeMap<Reference, Timestamp>,
    /// Since when changes are seen at all: what differs and was not seen to change may have changed right before.
    pub since: Timestamp,
}

/// Every ConfigMap and Secret the pod spec reads, optional ones too.
pub fn references(spec: &PodSpec) -> BTreeSet<Reference> {
    let mut found = BTreeSet::new();
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    for container in containers {
        of_container(container, &mut found);
    }
    for volume in spec.volumes.iter().flatten() {
        if let Some(source) = &volume.config_map {
            add(&mut found, Reference::ConfigMap, Some(&source.name));
        }
        if let Some(source) = &volume.secret {
            add(&mut found, Reference::Secret, source.secret_name.as_ref());
        }
        for projection in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            if let Some(source) = &projection.config_map {
                add(&mut found, Reference::ConfigMap, Some(&source.name));
            }
            if let Some(source) = &projection.secret {
                add(&mut found, Reference::Secret, Some(&source.name));
            }
        }
    }
    found
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

/// The references of a replica set's template.
pub(super) fn references_of(set: &ReplicaSet) -> BTreeSet<Reference> {
    set.spec.template.as_ref().and_then(|template| template.spec.as_ref()).map(references).unwrap_or_default()
}

/// A volume of the template that cannot be made because its ConfigMap, its Secret or a key of it is not there, in words.
/// On Kubernetes the pod's status does not show this; its containers are being created for ever.
pub(super) fn missing(set: &ReplicaSet, live: &Live) -> Option<String> {
    let spec = set.spec.template.as_ref()?.spec.as_ref()?;
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
    note(deployment, annotations::CONFIG_REVISIONS) != Some("off")
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
    /// The live objects moved a moment ago: look again after this time.
    Wait(Duration),
    /// Write this Secret.
    Write(Box<Secret>),
}

/// Compares the copy of the current revision with the live objects.
pub(super) fn keep(set: &ReplicaSet, resource: &ApiResource, live: &Live, now: Timestamp) -> Keep {
    let wanted = references_of(set);
    // A pinned revision reads its copy: the copy must stand still.
    if wanted.is_empty() || note(set, annotations::CONFIG_REVISION).is_some() {
        return Keep::Nothing;
    }
    let content = content(&wanted, live);
    let secret_name = kept_name(name(set));
    let held = live.secrets.get(&secret_name);
    if held.is_some_and(|held| {
        held.data.as_ref().is_some_and(|data| *data == content) || (held.data.is_none() && content.is_empty())
    }) {
        return Keep::Nothing;
    }
    let size = content.values().map(|bytes| bytes.0.len()).sum::<usize>();
    if size > SIZE_LIMIT {
        return Keep::TooLarge(size);
    }
    let nothing = Content::new();
    let before = held.and_then(|held| held.data.as_ref()).unwrap_or(&nothing);
    // What was never kept is kept at once; what was is overwritten only after a while.
    let overwrites = wanted.iter().filter(|reference| {
        before.get(&reference.to_string()).is_some_and(|old| content.get(&reference.to_string()) != Some(old))
    });
    if note(set, annotations::HEALTHY).is_some() {
        let moved = overwrites.map(|reference| live.changed.get(reference).unwrap_or(&live.since)).max();
        if let Some(moved) = moved {
            let stood = Duration::try_from(now.duration_since(*moved)).unwrap_or_default();
            if stood < SETTLE {
                return Keep::Wait(SETTLE - stood);
            }
        }
    }
    Keep::Write(Box::new(Secret {
        metadata: ObjectMeta {
            name: Some(secret_name),
            namespace: set.metadata.namespace.clone(),
            owner_references: Some(vec![crate::owners::controller_reference(set, resource)]),
            ..Default::default()
        },
        type_: Some(annotations::CONFIG_REVISION_SECRET_TYPE.to_owned()),
        data: Some(content),
        ..Default::default()
    }))
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
}
