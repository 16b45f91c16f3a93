//! Owns the pods of one node: one worker each, from the API to running and back.
//! Never decides where a pod runs.

pub(crate) mod actions;
pub(crate) mod adopt;
pub(crate) mod context;
pub(crate) mod ground;
pub(crate) mod hooks;
pub(crate) mod layout;
pub(crate) mod ports;
pub(crate) mod refusal;
pub(crate) mod security;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod stop;
#[cfg(test)]
mod stories;
pub(crate) mod supervisor;
pub(crate) mod track;
pub(crate) mod worker;
pub(crate) mod writer;

pub use ground::cgroup_root;
pub(crate) use proa_crds::Pod;

/// Key of a pod in messages and logs: `namespace/name`.
pub(crate) fn key(pod: &Pod) -> String {
    format!(
        "{}/{}",
        pod.metadata.namespace.as_deref().unwrap_or_default(),
        pod.metadata.name.as_deref().unwrap_or_default()
    )
}

/// The uid, empty when the API server gave none (it always does).
pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// Whether the pod shares the node's network.
pub(crate) fn host_network(pod: &Pod) -> bool {
    pod.spec.host_network == Some(true)
}
