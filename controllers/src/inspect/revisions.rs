//! The revisions of a workload, read from its ReplicaSets or ControllerRevisions.

use super::{Author, InspectError, Kind, Target};
use crate::{
    owners,
    rollback::{
        Reference,
        config::{copy_of, references},
    },
};
use k8s_openapi::{
    ByteString,
    api::core::v1::{PodSpec, Secret},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
};
use proa_crds::{Failure, Family, annotations};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// One revision of a workload.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    pub(super) number: i64,
    /// The name of the ReplicaSet or ControllerRevision.
    pub(super) name: String,
    /// The pod template, without what only tells revisions apart.
    pub(super) template: Value,
    /// The digest of the configuration it was made for, where a change of configuration is a revision of its own.
    pub(super) made_for: Option<String>,
    pub(super) notes: BTreeMap<String, String>,
    pub(super) made: Option<Time>,
    /// The Secret that keeps its configuration.
    pub(super) copy: String,
    /// Whether it is the one the workload is at, or on its way to.
    pub(super) current: bool,
    /// Whether its rollout is over: every pod the workload wants is of this revision, and available.
    pub(super) complete: bool,
    /// What its ConfigMaps and Secrets held.
    pub(super) configuration: BTreeMap<String, Kept>,
}

/// What a revision keeps of one object: by key, in clear. Empty when nothing is kept.
pub(super) type Kept = BTreeMap<String, Vec<u8>>;

impl Held {
    pub(super) fn note(&self, name: &str) -> Option<&str> {
        self.notes.get(name).map(String::as_str)
    }

    pub(super) fn author(&self) -> Option<Author> {
        Author::read(self.note(annotations::CHANGED_BY)?)
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        Failure::recorded(Some(&self.notes))
    }
}

/// The revisions of a workload, oldest first, with what they keep of configuration.
pub(super) async fn revisions(client: &Client, namespace: &str, target: &Target) -> Result<Vec<Held>, InspectError> {
    let (family, _, workload) = target.find(client, namespace).await?;
    let mut held = recorded(client, namespace, target.kind, family, &workload).await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for held in &mut held {
        held.configuration = configuration(&secrets, held).await?;
    }
    Ok(held)
}

/// The revisions of a workload, oldest first, without what they keep.
pub(super) async fn recorded(
    client: &Client,
    namespace: &str,
    kind: Kind,
    family: Family,
    workload: &DynamicObject,
) -> Result<Vec<Held>, kube::Error> {
    let uid = workload.metadata.uid.as_deref().unwrap_or_default();
    let of = match kind {
        Kind::Deployment => family.replica_set(),
        _ => family.controller_revision(),
    };
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &of);
    let mut items = api.list(&ListParams::default()).await?.items;
    items.retain(|item| owners::is_controlled_by(&item.metadata, uid));
    let mut held: Vec<Held> = items.iter().filter_map(|item| read(kind, item)).collect();
    held.sort_by_key(|held| held.number);
    // A StatefulSet says which revision it is on its way to; of the others it is the newest.
    let named = workload.data.pointer("/status/updateRevision").and_then(Value::as_str);
    let current = named.and_then(|name| held.iter().position(|held| held.name == name)).or(held.len().checked_sub(1));
    if let Some(current) = current {
        held[current].current = true;
        held[current].complete = is_complete(kind, workload);
    }
    Ok(held)
}

/// Whether the last rollout of a workload is over, as its status says.
fn is_complete(kind: Kind, workload: &DynamicObject) -> bool {
    let status = |field: &str| workload.data.get("status").and_then(|status| status.get(field));
    let count = |field: &str| status(field).and_then(Value::as_i64).unwrap_or(0);
    let replicas = || workload.data.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1);
    let (wanted, counts) = match kind {
        Kind::DaemonSet => (count("desiredNumberScheduled"), vec!["updatedNumberScheduled", "numberAvailable"]),
        _ => (replicas(), vec!["replicas", "updatedReplicas", "availableReplicas"]),
    };
    status("observedGeneration").and_then(Value::as_i64) == workload.metadata.generation
        && counts.into_iter().all(|field| count(field) == wanted)
        && status("currentRevision") == status("updateRevision")
}

fn read(kind: Kind, item: &DynamicObject) -> Option<Held> {
    let notes = item.metadata.annotations.clone().unwrap_or_default();
    let (number, template) = match kind {
        Kind::Deployment => (notes.get(annotations::REVISION)?.parse().ok()?, item.data.pointer("/spec/template")?),
        _ => (item.data.get("revision")?.as_i64()?, item.data.pointer("/data/spec/template")?),
    };
    let mut template = template.clone();
    if let Some(map) = template.as_object_mut() {
        // What a ControllerRevision is beside a template: a patch that replaces one.
        map.shift_remove("$patch");
    }
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.shift_remove(annotations::POD_TEMPLATE_HASH);
    }
    let made_for = take_configuration(&mut template);
    (number > 0).then(|| Held {
        number,
        made_for,
        name: item.metadata.name.clone().unwrap_or_default(),
        template,
        notes,
        made: item.metadata.creation_timestamp.clone(),
        copy: copy_of(&item.metadata),
        current: false,
        complete: false,
        configuration: BTreeMap::new(),
    })
}

/// Takes the digest of the configuration a ReplicaSet was made for out of its template: the workload's own has none.
fn take_configuration(template: &mut Value) -> Option<String> {
    let notes = template.pointer_mut("/metadata/annotations")?.as_object_mut()?;
    let digest = notes.shift_remove(annotations::CONFIGURATION)?;
    if notes.is_empty()
        && let Some(meta) = template.pointer_mut("/metadata").and_then(Value::as_object_mut)
    {
        meta.shift_remove("annotations");
    }
    digest.as_str().map(str::to_owned)
}

/// What a revision refers to, and what is kept of it. To a user who may not read Secrets nothing is kept.
async fn configuration(secrets: &Api<Secret>, held: &Held) -> Result<BTreeMap<String, Kept>, InspectError> {
    let spec = held.template.get("spec").cloned().unwrap_or_default();
    let wanted: BTreeSet<Reference> =
        serde_json::from_value::<PodSpec>(spec).map(|spec| references(&spec)).unwrap_or_default();
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let copy = match secrets.get_opt(&held.copy).await {
        Ok(copy) => copy.filter(|copy| copy.type_.as_deref() == Some(annotations::CONFIG_REVISION_SECRET_TYPE)),
        Err(kube::Error::Api(status)) if status.code == 403 => None,
        Err(error) => return Err(error.into()),
    };
    let data = copy.and_then(|copy| copy.data).unwrap_or_default();
    Ok(wanted
        .iter()
        .map(|reference| {
            let key = reference.to_string();
            let kept = data.get(&key).and_then(|bytes| serde_json::from_slice(&bytes.0).ok());
            let is_secret = matches!(reference, Reference::Secret(_));
            (key.replacen('.', "/", 1), kept.map(|kept| in_clear(&kept, is_secret)).unwrap_or_default())
        })
        .collect())
}

/// The keys of a ConfigMap or Secret, with their values as a pod reads them.
pub(super) fn in_clear(object: &Value, is_secret: bool) -> Kept {
    let part = |name: &str| object.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
    let encoded = |map: Map<String, Value>| {
        map.into_iter().filter_map(|(key, value)| Some((key, serde_json::from_value::<ByteString>(value).ok()?.0)))
    };
    let mut kept: Kept = encoded(part("binaryData")).collect();
    if is_secret {
        kept.extend(encoded(part("data")));
    } else {
        kept.extend(
            part("data").into_iter().filter_map(|(key, value)| Some((key, value.as_str()?.as_bytes().to_vec()))),
        );
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_controller_revision_is_read_as_the_template_it_brings_back() {
        let item: DynamicObject = serde_json::from_value(json!({
            "metadata": {"name": "db-1"}, "revision": 3,
            "data": {"spec": {"template": {"$patch": "replace", "spec": {"containers": []}}}},
        }))
        .expect("an object");
        let held = read(Kind::StatefulSet, &item).expect("a revision");
        assert_eq!((held.number, held.template), (3, json!({"spec": {"containers": []}})));
        assert!(read(Kind::Deployment, &item).is_none());
    }

    #[test]
    fn a_rollout_is_over_when_every_pod_is_of_the_revision_and_available() {
        let object = |status: Value| -> DynamicObject {
            serde_json::from_value(
                json!({"metadata": {"name": "db", "generation": 2}, "spec": {"replicas": 3}, "status": status}),
            )
            .expect("an object")
        };
        let of_replicas = |observed: i64, updated: i64, current: &str| {
            object(
                json!({"observedGeneration": observed, "replicas": 3, "updatedReplicas": updated, "availableReplicas": 3,
                "currentRevision": current, "updateRevision": "db-2"}),
            )
        };
        assert!(is_complete(Kind::StatefulSet, &of_replicas(2, 3, "db-2")));
        assert!(!is_complete(Kind::StatefulSet, &of_replicas(2, 3, "db-1")));
        assert!(!is_complete(Kind::Deployment, &of_replicas(1, 3, "db-2")));
        assert!(!is_complete(Kind::Deployment, &of_replicas(2, 2, "db-2")));
        let of_nodes = |available: i64| {
            object(json!({"observedGeneration": 2, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2,
                "numberAvailable": available}))
        };
        assert!(is_complete(Kind::DaemonSet, &of_nodes(2)) && !is_complete(Kind::DaemonSet, &of_nodes(1)));
    }

    #[test]
    fn what_a_replica_set_adds_to_a_template_is_not_a_part_of_the_revision() {
        let item: DynamicObject = serde_json::from_value(json!({
            "metadata": {"name": "web-1", "annotations": {annotations::REVISION: "2"}},
            "spec": {"template": {"metadata": {"labels": {"app": "web", annotations::POD_TEMPLATE_HASH: "1"},
                "annotations": {annotations::CONFIGURATION: "abc"}}}},
        }))
        .expect("an object");
        let held = read(Kind::Deployment, &item).expect("a revision");
        assert_eq!(held.template, json!({"metadata": {"labels": {"app": "web"}}}));
        assert_eq!(held.made_for.as_deref(), Some("abc"));
    }

    #[test]
    fn values_are_read_in_clear() {
        let map = json!({"data": {"a": "1"}, "binaryData": {"b": "/w=="}});
        assert_eq!(in_clear(&map, false), BTreeMap::from([("a".into(), b"1".to_vec()), ("b".into(), vec![255])]));
        assert_eq!(
            in_clear(&json!({"data": {"p": "c2VjcmV0"}}), true),
            BTreeMap::from([("p".into(), b"secret".to_vec())])
        );
    }
}
