//! ControllerRevision of either family.
//!
//! Its fields are not under `spec`, so `kube::core::Object` does not fit.

use kube::core::{ObjectMeta, TypeMeta};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::dynamic::dynamic_resource;

/// One recorded state of a StatefulSet or DaemonSet (`apps/v1` or `proa.dev/v1`).
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ControllerRevision {
    /// `apiVersion` and `kind`.
    #[serde(flatten, default)]
    pub types: Option<TypeMeta>,
    /// Standard metadata.
    pub metadata: ObjectMeta,
    /// What was recorded; it never changes. Of the kinds that record here: a strategic merge patch of the owner.
    #[serde(default)]
    pub data: Value,
    /// Which revision this is: higher numbers are later ones.
    #[serde(default)]
    pub revision: i64,
}

dynamic_resource!(ControllerRevision);
