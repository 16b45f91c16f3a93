//! Which volume a claim gets. Pure.

use super::facts::{
    claim_spec, class_of_claim, class_of_volume, is_bound_to, is_deleting, mode, reached_as_asked, size_of,
    volume_spec, wanted_size,
};
use crate::selector;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use std::sync::Arc;

/// The best of `volumes` for the claim: one that is already its own, else the one that offers least beyond what is
/// asked, by ways of access first and by size then. Volumes of a class that waits for its first consumer are the
/// scheduler's to choose (`delayed`): of those only its own counts.
pub(super) fn best<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [Arc<PersistentVolume>],
    delayed: bool,
) -> Option<&'a Arc<PersistentVolume>> {
    let fits = |volume: &&Arc<PersistentVolume>| {
        !is_deleting(volume.as_ref())
            && size_of(volume) >= wanted_size(claim)
            && mode(volume_spec(volume).volume_mode.as_ref()) == mode(claim_spec(claim).volume_mode.as_ref())
            && reached_as_asked(volume, claim)
    };
    if let Some(own) = volumes.iter().filter(fits).find(|volume| is_bound_to(volume, claim)) {
        return Some(own);
    }
    if delayed {
        return None;
    }
    let free = volumes.iter().filter(fits).filter(|volume| {
        let selector = claim_spec(claim).selector.as_ref();
        volume_spec(volume).claim_ref.is_none()
            && class_of_volume(volume) == class_of_claim(claim).unwrap_or_default()
            && volume_spec(volume).volume_attributes_class_name == claim_spec(claim).volume_attributes_class_name
            && selector.is_none_or(|selector| selector::matches(selector, volume.metadata.labels.as_ref()))
    });
    free.min_by(|a, b| {
        let ways = |volume: &PersistentVolume| volume_spec(volume).access_modes.as_ref().map_or(0, Vec::len);
        let size = size_of(a).partial_cmp(&size_of(b)).unwrap_or(std::cmp::Ordering::Equal);
        ways(a).cmp(&ways(b)).then(size).then_with(|| a.name_any().cmp(&b.name_any()))
    })
}

/// Why a claim cannot have the volume it names, in Kubernetes' words.
pub(super) fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<&'static str> {
    let (have, want) = (volume_spec(volume), claim_spec(claim));
    if size_of(volume) < wanted_size(claim) {
        Some("requested PV is too small")
    } else if class_of_volume(volume) != class_of_claim(claim).unwrap_or_default() {
        Some("storageClassName does not match")
    } else if have.volume_attributes_class_name != want.volume_attributes_class_name {
        Some("volumeAttributesClassName does not match")
    } else if mode(have.volume_mode.as_ref()) != mode(want.volume_mode.as_ref()) {
        Some("incompatible volumeMode")
    } else if !reached_as_asked(volume, claim) {
        Some("incompatible accessMode")
    } else {
        None
    }
}
