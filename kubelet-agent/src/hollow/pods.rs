//! The pods of hollow nodes: one watch for all of them, and of each object only what matters is read.

use super::{Hollow, RUN_SECONDS, insist, nodes::block};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::watcher::{self, Event},
};
use proa_crds::{Decoded, Encoded};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::HashMap, net::Ipv4Addr, sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// How many writes are under way at the same time.
const AT_ONCE: usize = 64;

type Pod = kube::core::Object<Spec, Status>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: String,
    restart_policy: String,
    containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    name: String,
    image: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
    conditions: Vec<Value>,
}

/// What is to be done for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duty {
    /// Say that it runs, and after so long that it has succeeded.
    Run(Option<Duration>),
    /// Let it go.
    End,
}

/// What a pod asks of its node now; nothing when it was done already.
fn duty(pod: &Pod, done: Option<Duty>) -> Option<Duty> {
    let phase = pod.status.as_ref().map_or("", |status| status.phase.as_str());
    if pod.metadata.deletion_timestamp.is_some() {
        return (done != Some(Duty::End)).then_some(Duty::End);
    }
    if done.is_some() || matches!(phase, "Running" | "Succeeded" | "Failed") {
        return None;
    }
    if matches!(pod.spec.restart_policy.as_str(), "" | "Always") {
        return Some(Duty::Run(None));
    }
    let asked = pod.annotations().get(RUN_SECONDS).and_then(|seconds| seconds.parse().ok()).unwrap_or(1.0);
    Some(Duty::Run(Duration::try_from_secs_f64(asked).ok().filter(|time| !time.is_zero())))
}

/// Follows the pods of all nodes.
pub(super) async fn run(client: &Client, hollow: &Hollow) {
    let pods: Api<Encoded> = Api::all_with(client.clone(), &hollow.family.pod());
    let bound = watcher::Config::default().fields("spec.nodeName!=");
    let mut events = watcher::watcher(pods, bound).boxed();
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    // By uid; what is gone is forgotten.
    let mut done: HashMap<String, Duty> = HashMap::new();
    let mut addresses = 0;
    while let Some(event) = events.next().await {
        let pod = match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => {
                match object.without_managed_fields().decode::<Pod>() {
                    Decoded::Object(pod) => pod,
                    Decoded::Undecodable(_) => continue,
                }
            }
            Ok(Event::Delete(pod)) => {
                done.remove(pod.metadata().uid.as_deref().unwrap_or_default());
                continue;
            }
            Ok(Event::Init | Event::InitDone) => continue,
            Err(error) => {
                tracing::debug!(%error, "the watch of pods failed; trying again");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Some(number) = hollow.number(&pod.spec.node_name) else { continue };
        let uid = pod.uid().unwrap_or_default();
        let Some(duty) = duty(&pod, done.get(&uid).copied()) else { continue };
        done.insert(uid, duty);
        addresses += 1;
        let api: Api<Pod> =
            Api::namespaced_with(client.clone(), &pod.namespace().unwrap_or_default(), &hollow.family.pod());
        let (slots, address) = (slots.clone(), Ipv4Addr::from(block(number) + 1 + addresses % 250));
        tokio::spawn(async move { perform(&api, &pod, duty, address, &slots).await });
    }
}

async fn perform(api: &Api<Pod>, pod: &Pod, duty: Duty, address: Ipv4Addr, slots: &Semaphore) {
    let name = pod.name_any();
    let write = async |status: Value| {
        let Ok(_slot) = slots.acquire().await else { return };
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
        insist(|| async { api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await }).await;
    };
    match duty {
        Duty::End => {
            let Ok(_slot) = slots.acquire().await else { return };
            let only_this = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
            let now =
                DeleteParams { grace_period_seconds: Some(0), preconditions: Some(only_this), ..Default::default() };
            insist(|| api.delete(&name, &now)).await;
        }
        Duty::Run(time) => {
            write(status(pod, "Running", address)).await;
            if let Some(time) = time {
                tokio::time::sleep(time).await;
                write(status(pod, "Succeeded", address)).await;
            }
        }
    }
}

fn status(pod: &Pod, phase: &str, address: Ipv4Addr) -> Value {
    let (now, running) = (Time(Timestamp::now()), phase == "Running");
    let condition = |type_: &str, is: bool| {
        let reason = (!is).then_some("PodCompleted");
        json!({"type": type_, "status": if is { "True" } else { "False" }, "reason": reason, "lastTransitionTime": now})
    };
    let containers = pod.spec.containers.iter().map(|container| {
        let state = match running {
            true => json!({"running": {"startedAt": now}}),
            false => json!({"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}}),
        };
        json!({"name": container.name, "image": container.image, "imageID": container.image, "ready": running,
            "started": running, "restartCount": 0, "state": state, "lastState": {}})
    });
    let own = [
        ("PodReadyToStartContainers", running),
        ("Initialized", true),
        ("Ready", running),
        ("ContainersReady", running),
    ];
    // The list is written as a whole: what others have said stays.
    let held = pod.status.iter().flat_map(|status| &status.conditions);
    let foreign = held.filter(|held| !own.iter().any(|(type_, _)| held["type"] == *type_)).cloned();
    let conditions: Vec<Value> = own.iter().map(|(type_, is)| condition(type_, *is)).chain(foreign).collect();
    json!({
        "phase": phase, "conditions": conditions, "containerStatuses": containers.collect::<Vec<_>>(),
        "podIP": address, "podIPs": [{"ip": address}], "startTime": now, "qosClass": "BestEffort",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(extra: Value) -> Pod {
        let mut value = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"nodeName": "hollow-1",
            "containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Pending"}});
        for (key, change) in extra.as_object().unwrap() {
            for (field, wanted) in change.as_object().unwrap() {
                value[key][field] = wanted.clone();
            }
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_runs_once_and_goes_when_it_is_told_to() {
        let run = Duty::Run(None);
        let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        for (pod, done, expected) in [
            (pod(json!({})), None, Some(run)),
            (pod(json!({})), Some(run), None),
            (pod(json!({"status": {"phase": "Running"}})), None, None),
            (pod(leaving.clone()), Some(run), Some(Duty::End)),
            (pod(leaving.clone()), None, Some(Duty::End)),
            (pod(leaving), Some(Duty::End), None),
        ] {
            assert_eq!(duty(&pod, done), expected, "{pod:?} {done:?}");
        }
    }

    #[test]
    fn what_does_not_restart_succeeds_after_its_time() {
        let time = |annotations: Value| {
            let pod = pod(json!({"spec": {"restartPolicy": "Never"}, "metadata": {"annotations": annotations}}));
            duty(&pod, None)
        };
        assert_eq!(time(json!({})), Some(Duty::Run(Some(Duration::from_secs(1)))));
        assert_eq!(time(json!({RUN_SECONDS: "0.5"})), Some(Duty::Run(Some(Duration::from_millis(500)))));
        assert_eq!(time(json!({RUN_SECONDS: "0"})), Some(Duty::Run(None)));
    }

    #[test]
    fn what_others_have_said_of_a_pod_stays() {
        let pod = pod(
            json!({"status": {"conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}]}}),
        );
        let status = status(&pod, "Running", Ipv4Addr::LOCALHOST);
        let types: Vec<&str> = status["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|condition| condition["type"].as_str())
            .collect();
        assert_eq!(types, ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]);
    }
}
