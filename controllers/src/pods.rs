//! What loops want to know about a pod.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};
use proa_crds::Pod;
use std::time::Duration;

/// `status.phase`, or the empty string.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Whether every container has ended for good.
pub fn is_over(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither over nor marked for deletion: counts towards a replica set's size.
pub fn is_active(pod: &Pod) -> bool {
    !is_over(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// The condition of that type.
pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// Whether the pod is ready.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// Since when the pod has been ready.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready").filter(|ready| ready.status == "True")?.last_transition_time.as_ref().map(|time| time.0)
}

/// How long until a ready pod counts as available: zero when it does; `None` when it is not ready.
pub fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    if !is_ready(pod) {
        return None;
    }
    let wanted = Duration::from_secs(min_ready_seconds.max(0).unsigned_abs().into());
    if wanted.is_zero() {
        return Some(Duration::ZERO);
    }
    // Without a transition time a pod is never known to have been ready long enough.
    let since = ready_since(pod)?;
    let been = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    Some(wanted.saturating_sub(been))
}

/// Takes out what no loop reads of a pod: volumes that have no claim (each takes some two and a half KiB whatever it is, and
/// every pod has one with its token), and the room lists were given in advance.
pub(crate) fn slim(pod: &mut Pod) {
    if let Some(volumes) = &mut pod.spec.volumes {
        volumes.retain(|volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some());
    }
    fn fit<T>(list: &mut Option<Vec<T>>) {
        match list {
            Some(items) if items.is_empty() => *list = None,
            Some(items) => items.shrink_to_fit(),
            None => {}
        }
    }
    fit(&mut pod.spec.volumes);
    fit(&mut pod.spec.tolerations);
    if let Some(status) = &mut pod.status {
        fit(&mut status.conditions);
        fit(&mut status.container_statuses);
        fit(&mut status.init_container_statuses);
    }
}

/// The statuses of init and ordinary containers.
pub fn container_statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    let ordinary = status.and_then(|status| status.container_statuses.as_ref());
    init.into_iter().flatten().chain(ordinary.into_iter().flatten())
}

/// The highest restart count of its ordinary containers.
pub fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).max().unwrap_or(0)
}

/// The node it was bound to.
pub fn node(pod: &Pod) -> Option<&str> {
    pod.spec.node_name.as_deref().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn of_a_pods_volumes_those_with_claims_stay() {
        let read = |volumes: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [], "volumes": volumes}}))
                .expect("a pod")
        };
        let claim = json!({"name": "data", "persistentVolumeClaim": {"claimName": "c"}});
        let own = json!({"name": "own", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}});
        let token = json!({"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}});
        let mut pod = read(json!([token, claim, own]));
        slim(&mut pod);
        assert_eq!(pod.spec, read(json!([claim, own])).spec);
        let mut pod = read(json!([token]));
        slim(&mut pod);
        assert_eq!(pod.spec.volumes, None);
    }
}
