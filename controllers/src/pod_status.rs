//! Conditions of pods, written by several loops in one way.

use crate::{
    Informer, Key,
    patch::{params, unread},
};
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::PodCondition, apimachinery::pkg::apis::meta::v1::Time};
use kube::{ResourceExt, api::Patch, core::Request};
use proa_crds::Pod;
use serde_json::{Map, Value, json};

/// A condition as a loop wants it; when it last changed follows from what the pod has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// For instance `PodScheduled`.
    pub type_: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// One CamelCase word; empty when there is nothing to say.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

/// The pod's conditions with the wanted one in place; `None` when it is there already.
pub fn with_condition(pod: &Pod, wanted: &Wanted, now: Timestamp) -> Option<Vec<PodCondition>> {
    let mut conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let held = conditions.iter_mut().find(|condition| condition.type_ == wanted.type_);
    let same_status = held.as_ref().is_some_and(|held| held.status == wanted.status);
    if let Some(held) = &held
        && same_status
        && held.reason.as_deref().unwrap_or_default() == wanted.reason
        && held.message.as_deref().unwrap_or_default() == wanted.message
    {
        return None;
    }
    let since = held.as_ref().filter(|_| same_status).and_then(|held| held.last_transition_time.clone());
    let new = PodCondition {
        type_: wanted.type_.to_owned(),
        status: wanted.status.to_owned(),
        reason: Some(wanted.reason.to_owned()).filter(|reason| !reason.is_empty()),
        message: Some(wanted.message.clone()).filter(|message| !message.is_empty()),
        last_transition_time: Some(since.unwrap_or(Time(now))),
        ..held.as_deref().cloned().unwrap_or_default()
    };
    match held {
        Some(held) => *held = new,
        None => conditions.push(new),
    }
    Some(conditions)
}

/// Sets a condition of a pod. The list is written as a whole (custom resources know no other way), so a conflict is
/// answered by reading the pod and trying again.
///
/// # Errors
///
/// What the server answered; 404 when the pod is gone or another one has its name.
pub async fn set_condition(
    pods: &Informer<Pod>,
    pod: &Pod,
    wanted: &Wanted,
    now: Timestamp,
) -> Result<Pod, kube::Error> {
    let mut pod = pod.clone();
    for last_try in [false, false, true] {
        let Some(conditions) = with_condition(&pod, wanted, now) else { return Ok(pod) };
        let patch = over(&pod, Map::new(), conditions);
        match pods.api(&Key::of(&pod).namespace).patch_status(&pod.name_any(), &params(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 409 && !last_try => {
                pod = again(pods, &pod, status).await?;
            }
            other => return other,
        }
    }
    Ok(pod)
}

/// As [`set_condition`], with other fields of the status in the same write, which happens even if the condition is there
/// already. Nobody reads the answer.
///
/// # Errors
///
/// What the server answered; 404 when the pod is gone or another one has its name.
pub async fn set_status(
    pods: &Informer<Pod>,
    pod: &Pod,
    fields: &Map<String, Value>,
    wanted: &Wanted,
    now: Timestamp,
) -> Result<(), kube::Error> {
    let request = Request::new(pods.api(&Key::of(pod).namespace).resource_url());
    let mut newer = None;
    for last_try in [false, false, true] {
        let pod = newer.as_ref().unwrap_or(pod);
        let patch = match with_condition(pod, wanted, now) {
            Some(conditions) => over(pod, fields.clone(), conditions),
            None if fields.is_empty() => return Ok(()),
            None => Patch::Merge(json!({"metadata": {"uid": pod.metadata.uid}, "status": fields})),
        };
        let request = request.patch_subresource("status", &pod.name_any(), &params(), &patch);
        match unread(&pods.cluster_api().into_client(), request).await {
            Err(kube::Error::Api(status)) if status.code == 409 && !last_try => {
                newer = Some(again(pods, pod, status).await?);
            }
            other => return other,
        }
    }
    Ok(())
}

/// The write of a status over the state that was seen, and no other.
fn over(pod: &Pod, mut status: Map<String, Value>, conditions: Vec<PodCondition>) -> Patch<Value> {
    status.insert("conditions".into(), json!(conditions));
    let metadata = json!({"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version});
    Patch::Merge(json!({"metadata": metadata, "status": status}))
}

/// The pod as it is now, if it is still the same.
async fn again(pods: &Informer<Pod>, pod: &Pod, conflict: Box<kube::core::Status>) -> Result<Pod, kube::Error> {
    let live = pods.api(&Key::of(pod).namespace).get(&pod.name_any()).await?;
    if live.metadata.uid != pod.metadata.uid {
        return Err(kube::Error::Api(conflict));
    }
    Ok(live)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(conditions: serde_json::Value) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": "a"}, "spec": {"containers": []}, "status": {"conditions": conditions}}),
        )
        .unwrap()
    }

    const WANTED: Wanted =
        Wanted { type_: "PodScheduled", status: "False", reason: "Unschedulable", message: String::new() };

    #[test]
    fn a_condition_keeps_its_transition_time_while_its_status_stays() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let held = json!([{"type": "Ready", "status": "True"},
            {"type": "PodScheduled", "status": "False", "reason": "Other", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let set = with_condition(&pod(held), &WANTED, now).unwrap();
        assert_eq!(set.len(), 2);
        assert_eq!(set[1].last_transition_time.as_ref().unwrap().0.to_string(), "2026-01-01T00:00:00Z");
        let held = json!([{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        assert_eq!(with_condition(&pod(held), &WANTED, now).unwrap()[0].last_transition_time.as_ref().unwrap().0, now);
    }

    #[test]
    fn a_condition_that_is_there_is_not_written_again() {
        let held = json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]);
        assert_eq!(with_condition(&pod(held), &WANTED, Timestamp::UNIX_EPOCH), None);
        assert!(with_condition(&pod(json!([])), &WANTED, Timestamp::UNIX_EPOCH).is_some());
    }
}
