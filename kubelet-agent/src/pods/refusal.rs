//! Owns the reasons not to begin with a pod at all, and what is told of one that asks for more than it gets.

use k8s_openapi::api::core::v1::PodSpec;
use proa_apimachinery::at::At;
use proa_apimachinery::field::{Path, join};
use proa_apimachinery::unsupported;
use proa_crds::Family;
use serde_json::Value;

use super::Pod;
use super::context::Context;
use crate::resources;

/// Why this node will not run the pod: reason and message of a pod that has failed.
pub(crate) fn why(ctx: &Context, pod: &Pod) -> Option<(&'static str, String)> {
    // Proa's own server has refused by the same list; any other keeps whatever its schema lets through.
    if ctx.family == Family::Proa
        && let Some(message) = unsupported(pod)
    {
        return Some(("PodFeatureUnsupported", message));
    }
    resources::too_big(&pod.spec, &ctx.allocatable)
}

/// What the pod asks for and does not get, though it runs.
pub(crate) fn ignored(pod: &Pod) -> Vec<String> {
    unsupported::ignored(&At::new(Some(&spec(pod)), Path::of("spec")))
}

fn unsupported(pod: &Pod) -> Option<String> {
    let refused = unsupported::refused(&At::new(Some(&spec(pod)), Path::of("spec")));
    (!refused.is_empty()).then(|| format!("Pod was rejected: {}", join(&refused)))
}

/// The spec as it was when the pod was made: ephemeral containers come later, by a subresource of their own.
fn spec(pod: &Pod) -> Value {
    let made = PodSpec { ephemeral_containers: None, ..pod.spec.clone() };
    serde_json::to_value(made).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn what_no_node_does_yet_is_refused_by_name() {
        assert_eq!(
            unsupported(&pod(json!({"containers": [{"name": "a"}], "runtimeClassName": "gvisor"}))).as_deref(),
            Some("Pod was rejected: spec.runtimeClassName: Forbidden: runtime classes are not supported by Proa yet")
        );
        let debugged = json!({"containers": [{"name": "a"}], "ephemeralContainers": [{"name": "debug"}]});
        assert_eq!(unsupported(&pod(debugged)), None);
    }

    #[test]
    fn what_has_no_effect_is_told() {
        let asked = json!({"containers": [], "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}});
        assert_eq!(ignored(&pod(asked)).len(), 1);
        assert!(ignored(&pod(json!({"containers": [{"name": "a"}]}))).is_empty());
    }
}
