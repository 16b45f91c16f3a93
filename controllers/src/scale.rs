//! The scale subresource of anything that has one (`autoscaling/v1` Scale), built-in or custom.

use crate::{
    catalogue::{Catalogue, Resource},
    selector,
};
use k8s_openapi::{api::autoscaling::v1::Scale as Wire, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::{api::Patch, core::ApiResource};
use proa_crds::Family;
use serde_json::{Value, json};
use std::sync::Arc;

/// An object's size, as its scale subresource tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scale {
    /// `spec.replicas`: how many are wanted.
    pub wanted: i32,
    /// `status.replicas`: how many there are.
    pub held: i32,
    /// `status.selector`, in text form; empty when the kind has none.
    pub selector: String,
    /// Guards a write against one that came between.
    pub resource_version: String,
}

impl From<Wire> for Scale {
    fn from(wire: Wire) -> Scale {
        let status = wire.status.unwrap_or_default();
        Scale {
            wanted: wire.spec.and_then(|spec| spec.replicas).unwrap_or(0),
            held: status.replicas,
            selector: status.selector.unwrap_or_default(),
            resource_version: wire.metadata.resource_version.unwrap_or_default(),
        }
    }
}

/// An object by its kind and name, as `scaleTargetRef` and owner references name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Group and version; of several served versions any leads to the same object.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The change of a status, with the selector in the text form in which the scale subresource of a custom resource shows it
/// (`labelSelectorPath` names a string); of built-in kinds the API server writes it down itself.
pub(crate) fn status_with_selector(resource: &ApiResource, selector: &LabelSelector, mut change: Value) -> Value {
    if resource.group == Family::Proa.deployment().group
        && let Some(change) = change.as_object_mut()
    {
        change.insert("selector".to_owned(), selector::query(selector).into());
    }
    change
}

/// Why a scale cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ScaleError {
    /// The server has no such kind (Kubernetes' wording).
    #[error("no matches for kind \"{kind}\" in group \"{group}\"")]
    NoSuchKind {
        /// The kind asked for.
        kind: String,
        /// Its group.
        group: String,
    },
    /// What the server answered.
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// Reads and writes scales; which resource a kind is comes from the catalogue.
#[derive(Clone)]
pub struct Scales(Catalogue);

impl Scales {
    /// Those of the catalogue's server.
    pub fn new(catalogue: &Catalogue) -> Scales {
        Scales(catalogue.clone())
    }

    /// Waits until it is known which kinds there are.
    pub async fn ready(&self) {
        self.0.discovered().await;
    }

    fn resource(&self, target: &Target) -> Result<Arc<Resource>, ScaleError> {
        self.0.known().find(&target.api_version, &target.kind).ok_or_else(|| {
            let group = target.api_version.rsplit_once('/').map_or("", |(group, _)| group);
            ScaleError::NoSuchKind { kind: target.kind.clone(), group: group.to_owned() }
        })
    }

    /// The scale now.
    ///
    /// # Errors
    ///
    /// When the kind is not known, the object is not there, or it has no scale.
    pub async fn get(&self, target: &Target) -> Result<Scale, ScaleError> {
        let api = self.0.api(self.resource(target)?.as_ref(), &target.namespace);
        Ok(api.get_scale(&target.name).await?.into())
    }

    /// Asks for another size, if the object is still as it was read.
    ///
    /// # Errors
    ///
    /// A conflict when it is not; else as [`Scales::get`].
    pub async fn set(&self, target: &Target, read: &Scale, wanted: i32) -> Result<(), ScaleError> {
        let api = self.0.api(self.resource(target)?.as_ref(), &target.namespace);
        let patch = json!({"metadata": {"resourceVersion": read.resource_version}, "spec": {"replicas": wanted}});
        api.patch_scale(&target.name, &crate::patch::params(), &Patch::Merge(&patch)).await?;
        Ok(())
    }
}
