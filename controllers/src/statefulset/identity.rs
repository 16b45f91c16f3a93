//! Who the pods of a stateful set are: names, ordinals, labels, and what a template becomes for one of them. Pure.

use super::claims;
use crate::{history, owners};
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Volume};
use kube::{
    ResourceExt,
    core::{ApiResource, ObjectMeta, TypeMeta},
};
use proa_crds::{ControllerRevision, Pod, StatefulSet, annotations};
use serde_json::{Map, Value, json};

/// The ordinals a set wants, ascending (KEP-3335: they may begin elsewhere than at 0).
pub(super) fn ordinals(set: &StatefulSet) -> std::ops::Range<i64> {
    let start = set.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0).max(0);
    let replicas = set.spec.replicas.unwrap_or(1).max(0);
    i64::from(start)..i64::from(start) + i64::from(replicas)
}

/// The name of the pod with that ordinal.
pub(super) fn pod_name(set: &StatefulSet, ordinal: i64) -> String {
    format!("{}-{ordinal}", set.name_any())
}

/// The ordinal of a pod by its name; `None` when it is none of the set's.
pub(super) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i64> {
    let digits = pod.metadata.name.as_deref()?.strip_prefix(set.metadata.name.as_deref()?)?.strip_prefix('-')?;
    let ordinal: i64 = digits.parse().ok()?;
    (ordinal >= 0 && ordinal.to_string() == digits).then_some(ordinal)
}

/// The pod with that ordinal, from a revision of the set's template.
pub(super) fn pod_of(
    set: &StatefulSet,
    ordinal: i64,
    revision: &ControllerRevision,
    set_resource: &ApiResource,
    pod_resource: &ApiResource,
) -> Pod {
    let template = history::template_of(revision).unwrap_or_else(|| set.spec.template.clone());
    let (meta, name) = (template.metadata.unwrap_or_default(), pod_name(set, ordinal));
    let mut labels = meta.labels.unwrap_or_default();
    labels.extend(own_labels(&name, ordinal));
    labels.insert(annotations::CONTROLLER_REVISION_HASH.to_owned(), revision.name_any());
    let mut spec = template.spec.unwrap_or_default();
    spec.hostname = Some(name.clone());
    spec.subdomain = set.spec.service_name.clone();
    let claimed = claims::templates(set).map(|template| Volume {
        name: template.name_any(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claims::name(set, template, ordinal),
            read_only: None,
        }),
        ..Volume::default()
    });
    let mut volumes: Vec<Volume> = claimed.collect();
    // A claim takes the place of the template's volume of that name (API documentation of `volumeClaimTemplates`).
    let taken: Vec<String> = volumes.iter().map(|volume| volume.name.clone()).collect();
    volumes.extend(spec.volumes.into_iter().flatten().filter(|volume| !taken.contains(&volume.name)));
    spec.volumes = Some(volumes).filter(|volumes| !volumes.is_empty());
    Pod {
        types: Some(TypeMeta { api_version: pod_resource.api_version.clone(), kind: pod_resource.kind.clone() }),
        metadata: ObjectMeta {
            name: Some(name),
            namespace: set.namespace(),
            labels: Some(labels),
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owners::controller_reference(set, set_resource)]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

/// The labels that say which pod it is (KEP-4017 for the index).
fn own_labels(name: &str, ordinal: i64) -> [(String, String); 2] {
    [(annotations::POD_NAME.to_owned(), name.to_owned()), (annotations::POD_INDEX.to_owned(), ordinal.to_string())]
}

/// The patch that gives a pod back the labels that say which one it is; `None` when it has them.
pub(super) fn missing_labels(pod: &Pod, ordinal: i64) -> Option<Value> {
    let held = pod.metadata.labels.as_ref();
    let missing: Map<String, Value> = own_labels(&pod.name_any(), ordinal)
        .into_iter()
        .filter(|(key, value)| held.and_then(|held| held.get(key)) != Some(value))
        .map(|(key, value)| (key, value.into()))
        .collect();
    (!missing.is_empty()).then(|| json!({"metadata": {"labels": missing, "uid": pod.metadata.uid}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_known_by_the_name_of_its_set_and_a_number_written_as_we_write_it() {
        let set: StatefulSet = serde_json::from_value(
            json!({"metadata": {"name": "web-1"}, "spec": {"selector": {}, "template": {}, "replicas": 3, "ordinals": {"start": 5}}}),
        )
        .expect("a set");
        let of = |name: &str| {
            ordinal(
                &set,
                &serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"containers": []}}))
                    .expect("a pod"),
            )
        };
        assert_eq!((of("web-1-0"), of("web-1-12"), of("web-1-007")), (Some(0), Some(12), None));
        assert_eq!(
            (of("web-1"), of("web-1-"), of("web-1-a"), of("web-12-1"), of("web-1--1")),
            (None, None, None, None, None)
        );
        assert_eq!(ordinals(&set), 5..8);
    }
}
