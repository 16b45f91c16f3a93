//! What is wrong with the cluster rather than with a revision: a revision is not blamed for it.

use k8s_openapi::api::core::v1::ContainerStatus;
use proa_crds::{Node, Pod};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How long until a cluster that is unwell is looked at again, with or without an event.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What a loop saw around the pods of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Nodes that some of the pods are bound to and that are gone or not ready.
    pub unwell_nodes: BTreeSet<String>,
    /// A node of the cluster, if one is not ready: what cannot be scheduled may have had its place there.
    pub missing_node: Option<String>,
    /// Registries that pods of other objects cannot reach, each with one such pod.
    pub unreachable: BTreeMap<String, String>,
}

/// Whether a node can run pods.
pub(crate) fn is_well(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// What the image of a container that waits for a registry nobody answers at is pulled from.
pub(crate) fn unreachable_registry(container: &ContainerStatus) -> Option<&str> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let pulls = matches!(waiting.reason.as_deref(), Some("ErrImagePull" | "ImagePullBackOff"));
    let message = super::verdict::without_image(waiting.message.as_deref().unwrap_or_default(), &container.image);
    (pulls && super::verdict::is_unreachable(&message)).then(|| registry(&container.image))
}

/// The registries that pod waits for.
pub(crate) fn unreachable_registries(pod: &Pod) -> Vec<String> {
    crate::pods::container_statuses(pod).filter_map(unreachable_registry).map(str::to_owned).collect()
}

/// The registry part of an image's name; that of Docker Hub where there is none.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_of_an_image_is_its_first_part_when_that_looks_like_a_host() {
        assert_eq!(registry("nginx"), "docker.io");
        assert_eq!(registry("example/echo:v1"), "docker.io");
        assert_eq!(registry("r.example/a/b@sha256:0"), "r.example");
        assert_eq!(registry("localhost/a"), "localhost");
        assert_eq!(registry("10.0.0.1:5000/a"), "10.0.0.1:5000");
    }
}
