//! Owner references: who controls whom.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Resource, ResourceExt,
    core::{ApiResource, ObjectMeta},
};
use serde_json::{Value, json};

/// The owner that controls the object; there is at most one.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))
}

/// Whether `uid` controls the object.
pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// A controlling, deletion-blocking reference to `owner`.
pub fn controller_reference<K: Resource>(owner: &K, resource: &ApiResource) -> OwnerReference {
    OwnerReference {
        api_version: resource.api_version.clone(),
        kind: resource.kind.clone(),
        name: owner.name_any(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The object's owner references with `uid` taken out, or with `add` put in.
pub fn owners_without(meta: &ObjectMeta, uid: &str) -> Vec<OwnerReference> {
    meta.owner_references.iter().flatten().filter(|owner| owner.uid != uid).cloned().collect()
}

/// A merge patch of the owner references that fails with a conflict when the object changed meanwhile.
pub fn patch(meta: &ObjectMeta, owners: &[OwnerReference]) -> Value {
    json!({"metadata": {"ownerReferences": owners, "uid": meta.uid, "resourceVersion": meta.resource_version}})
}
