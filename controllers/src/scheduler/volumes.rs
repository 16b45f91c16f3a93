//! Volumes of a pod that has got its node: reserved or asked for, and waited for, before the pod is bound there.
//!
//! The contract is Kubernetes': a claim of a class that waits for its first consumer gets the annotation
//! `volume.kubernetes.io/selected-node`, and its provisioner takes it from there; a volume that exists already gets its
//! `claimRef`, and the volume controller does the rest.

use super::cluster::storage::{SELECTED_NODE, VolumePlan};
use crate::{Informer, Key, patch::params};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::Patch;
use serde_json::json;
use std::time::Duration;

/// The informers of claims and volumes.
#[derive(Clone)]
pub(super) struct Volumes {
    pub(super) claims: Informer<PersistentVolumeClaim>,
    pub(super) volumes: Informer<PersistentVolume>,
}

/// Why a pod's volumes are not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum VolumeError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("persistentvolumeclaim {0} is gone")]
    Gone(Key),
    #[error("the provisioner gave up node {node} for persistentvolumeclaim {claim}")]
    GivenUp { claim: Key, node: String },
    #[error("binding volumes: context deadline exceeded")]
    TooLong,
}

impl Volumes {
    /// Writes what was decided, and waits until every claim is bound.
    pub(super) async fn bind(&self, plan: &VolumePlan, node: &str, within: Duration) -> Result<(), VolumeError> {
        if plan.is_empty() {
            return Ok(());
        }
        for (volume, claim) in &plan.bind {
            let held = self.claims.get(claim).ok_or_else(|| VolumeError::Gone(claim.clone()))?;
            let reference = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": &*claim.name,
                "namespace": &*claim.namespace, "uid": held.metadata.uid});
            let seen = self.volumes.get(&Key::new("", volume));
            let patch = json!({
                // Somebody else may have taken it since.
                "metadata": {"annotations": {"pv.kubernetes.io/bound-by-controller": "yes"},
                    "resourceVersion": seen.and_then(|volume| volume.metadata.resource_version.clone())},
                "spec": {"claimRef": reference},
            });
            self.volumes.cluster_api().patch(volume, &params(), &Patch::Merge(&patch)).await?;
        }
        for claim in &plan.provision {
            let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
            self.claims.api(&claim.namespace).patch(&claim.name, &params(), &Patch::Merge(&patch)).await?;
        }
        tokio::time::timeout(within, self.all_bound(plan, node)).await.map_err(|_| VolumeError::TooLong)?
    }

    async fn all_bound(&self, plan: &VolumePlan, node: &str) -> Result<(), VolumeError> {
        let mut moves = self.claims.moves();
        let mut asked: Vec<&Key> = Vec::new();
        loop {
            moves.borrow_and_update();
            let mut open = false;
            for key in &plan.all {
                let claim = self.claims.get(key).ok_or_else(|| VolumeError::Gone(key.clone()))?;
                let bound = claim.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Bound"));
                open |= !bound;
                if bound || !plan.provision.contains(key) {
                    continue;
                }
                let annotations = claim.metadata.annotations.as_ref();
                let selected = annotations.and_then(|annotations| annotations.get(SELECTED_NODE));
                // The annotation was written before this loop; once seen, its absence is the provisioner's word.
                match selected {
                    Some(held) if held == node => asked.push(key),
                    _ if asked.contains(&key) => {
                        return Err(VolumeError::GivenUp { claim: key.clone(), node: node.to_owned() });
                    }
                    _ => {}
                }
            }
            if !open {
                return Ok(());
            }
            if moves.changed().await.is_err() {
                return Err(VolumeError::TooLong);
            }
        }
    }
}
