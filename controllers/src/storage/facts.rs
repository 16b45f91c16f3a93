//! What claims, volumes and classes say, read as Kubernetes reads it. Pure.

use super::{BIND_COMPLETED, BOUND_BY_CONTROLLER};
use k8s_openapi::{
    api::{
        core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeSpec},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::api::resource::Quantity as Text,
};
use kube::{Resource, ResourceExt};
use proa_apimachinery::quantity::Quantity;
use proa_crds::Pod;
use std::{collections::BTreeMap, sync::LazyLock};

/// The annotation that named a class before there was a field; it goes first.
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

pub(super) fn annotation<'a, K: Resource>(object: &'a K, name: &str) -> Option<&'a str> {
    object.meta().annotations.as_ref()?.get(name).map(String::as_str)
}

/// A claim's spec; the API does not store a claim without one.
pub(super) fn claim_spec(claim: &PersistentVolumeClaim) -> &PersistentVolumeClaimSpec {
    static NONE: LazyLock<PersistentVolumeClaimSpec> = LazyLock::new(PersistentVolumeClaimSpec::default);
    claim.spec.as_ref().unwrap_or(&NONE)
}

/// A volume's spec; the API does not store a volume without one.
pub(super) fn volume_spec(volume: &PersistentVolume) -> &PersistentVolumeSpec {
    static NONE: LazyLock<PersistentVolumeSpec> = LazyLock::new(PersistentVolumeSpec::default);
    volume.spec.as_ref().unwrap_or(&NONE)
}

/// The class a claim asks for: `None` when it leaves it to the default, the empty one when it wants none.
pub(super) fn class_of_claim(claim: &PersistentVolumeClaim) -> Option<&str> {
    annotation(claim, BETA_CLASS).or(claim_spec(claim).storage_class_name.as_deref())
}

/// The class a volume is of; the empty one when it is of none.
pub(super) fn class_of_volume(volume: &PersistentVolume) -> &str {
    annotation(volume, BETA_CLASS).or(volume_spec(volume).storage_class_name.as_deref()).unwrap_or_default()
}

pub(super) fn is_default(class: &StorageClass) -> bool {
    DEFAULT_CLASS.iter().any(|name| annotation(class, name) == Some("true"))
}

pub(super) fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

pub(super) fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    annotation(claim, BIND_COMPLETED).is_some()
}

pub(super) fn bound_by_controller<K: Resource>(object: &K) -> bool {
    annotation(object, BOUND_BY_CONTROLLER).is_some()
}

pub(super) fn claim_phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub(super) fn volume_phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The name of the volume a claim is bound to, or is to be.
pub(super) fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim_spec(claim).volume_name.as_deref().unwrap_or_default()
}

/// Whether the volume is, or is to be, that claim's. A reference without a uid is one a user made: any claim of the name
/// will do.
pub(super) fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    volume_spec(volume).claim_ref.as_ref().is_some_and(|reference| {
        reference.name.as_deref() == Some(&*claim.name_any())
            && reference.namespace == claim.namespace()
            && reference
                .uid
                .as_ref()
                .filter(|uid| !uid.is_empty())
                .is_none_or(|uid| Some(uid) == claim.meta().uid.as_ref())
    })
}

fn storage(list: Option<&BTreeMap<String, Text>>) -> Quantity {
    list.and_then(|list| list.get("storage")).and_then(|size| Quantity::parse(&size.0).ok()).unwrap_or(Quantity::ZERO)
}

pub(super) fn wanted_size(claim: &PersistentVolumeClaim) -> Quantity {
    storage(claim_spec(claim).resources.as_ref().and_then(|resources| resources.requests.as_ref()))
}

/// The size the claim was last told it has.
pub(super) fn told_size(claim: &PersistentVolumeClaim) -> Quantity {
    storage(claim.status.as_ref().and_then(|status| status.capacity.as_ref()))
}

pub(super) fn size_of(volume: &PersistentVolume) -> Quantity {
    storage(volume_spec(volume).capacity.as_ref())
}

pub(super) fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

/// Whether the volume can be reached in every way the claim asks for.
pub(super) fn reached_as_asked(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let offered = volume_spec(volume).access_modes.as_deref().unwrap_or_default();
    claim_spec(claim).access_modes.iter().flatten().all(|wanted| offered.contains(wanted))
}

pub(super) fn is_deleting<K: Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}

pub(super) fn has_finalizer<K: Resource>(object: &K, name: &str) -> bool {
    object.finalizers().iter().any(|finalizer| finalizer == name)
}

/// The names of the claims a pod uses, each with whether it is that of an ephemeral volume.
pub(super) fn claims_of(pod: &Pod) -> impl Iterator<Item = (String, bool)> {
    pod.spec.volumes.iter().flatten().filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some((source.claim_name.clone(), false)),
        (_, Some(_)) => Some((ephemeral_claim(pod, &volume.name), true)),
        _ => None,
    })
}

/// How the claim of an ephemeral volume is called (KEP-1698).
pub(super) fn ephemeral_claim(pod: &Pod, volume: &str) -> String {
    format!("{}-{volume}", pod.name_any())
}
