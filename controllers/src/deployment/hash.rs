//! The `pod-template-hash` label: what tells the replica sets of one deployment apart.

use crate::hash::name_hash;
use k8s_openapi::api::core::v1::PodTemplateSpec;

/// The hash of a template; another one for each collision counted.
pub(super) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    name_hash(crate::patch::json(template).to_string().as_bytes(), collisions)
}
