//! Owns the way of a pod's status to the API: coalesced (only the newest is sent), in order, by uid, tried again
//! until it is in or the pod is gone. Never computes a status.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodStatus;
use kube::Api;
use kube::api::{Patch, PatchParams};
use proa_crds::Family;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Pod;
use super::status::conditions;

/// How long "it is being created" may wait for better news: most pods run before it ends, and one write is saved.
const PATIENCE: Duration = Duration::from_millis(100);

#[derive(Clone, Default)]
struct Desired {
    number: u64,
    urgent: bool,
    status: Option<Arc<PodStatus>>,
}

/// Sends the status of one pod.
pub(crate) struct StatusWriter {
    desired: watch::Sender<Desired>,
    written: watch::Receiver<u64>,
}

impl StatusWriter {
    /// Starts the sending task; it ends when the writer is dropped.
    pub(crate) fn start(client: kube::Client, family: Family, pod: &Pod) -> Self {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let api: Api<Pod> = Api::namespaced_with(client, namespace, &family.pod());
        let (desired, receiver) = watch::channel(Desired::default());
        let (report, written) = watch::channel(0);
        let name = pod.metadata.name.clone().unwrap_or_default();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let sent_ips = pod_ips(pod.status.as_ref());
        tokio::spawn(send(api, family, name, uid, sent_ips, receiver, report));
        Self { desired, written }
    }

    /// Asks for this status to be shown.
    pub(crate) fn show(&self, status: Arc<PodStatus>, urgent: bool) {
        self.desired.send_modify(|d| {
            d.number += 1;
            d.urgent = urgent;
            d.status = Some(status);
        });
    }

    /// Resolves when what was asked for by now has been written, or never can be.
    pub(crate) fn flushed(&self) -> impl Future<Output = ()> + Send + 'static {
        let number = self.desired.borrow().number;
        let mut written = self.written.clone();
        async move {
            // An error says that the task has ended: nothing is left to wait for.
            let _ = written.wait_for(|w| *w >= number).await;
        }
    }
}

fn pod_ips(status: Option<&PodStatus>) -> Vec<String> {
    status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.clone()).collect()
}

/// The patch of a status. The standard family is patched strategically: conditions written by others stay, and
/// addresses no longer there are taken out by name. A custom resource only knows merge patches: its lists are
/// sent in full.
pub(crate) fn patch_of(family: Family, uid: &str, status: &PodStatus, gone_ips: &[String]) -> Patch<Value> {
    let mut body = json!({"metadata": {"uid": uid}, "status": status});
    match family {
        Family::Standard => {
            if let Some(list) = body.pointer_mut("/status/podIPs").and_then(Value::as_array_mut) {
                list.extend(gone_ips.iter().map(|ip| json!({"$patch": "delete", "ip": ip})));
            }
            if let Some(list) = body.pointer_mut("/status/conditions").and_then(Value::as_array_mut) {
                list.retain(|c| c["type"].as_str().is_some_and(|t| conditions::OWN.contains(&t)));
            }
            Patch::Strategic(body)
        }
        Family::Proa => Patch::Merge(body),
    }
}

async fn send(
    api: Api<Pod>,
    family: Family,
    name: String,
    uid: String,
    mut sent_ips: Vec<String>,
    mut desired: watch::Receiver<Desired>,
    report: watch::Sender<u64>,
) {
    let mut delay = Duration::from_millis(50);
    let mut retry = false;
    loop {
        if !retry && desired.changed().await.is_err() {
            return;
        }
        if !desired.borrow().urgent {
            // Nothing is lost when the wait is cut short or the writer is dropped meanwhile.
            let _ = tokio::time::timeout(PATIENCE, desired.wait_for(|d| d.urgent)).await;
        }
        let now = desired.borrow_and_update().clone();
        let Some(status) = now.status else { continue };
        let ips = pod_ips(Some(&status));
        let gone: Vec<String> = sent_ips.iter().filter(|ip| !ips.contains(ip)).cloned().collect();
        let patch = patch_of(family, &uid, &status, &gone);
        match api.patch_status(&name, &PatchParams::default(), &patch).await {
            Ok(_) => {
                sent_ips = ips;
                retry = false;
                delay = Duration::from_millis(50);
            }
            Err(kube::Error::Api(refusal))
                if refusal.code == 404 || refusal.code == 409 && is_other_pod(&refusal.message) =>
            {
                // The pod is gone, or another one bears its name: nobody reads this status any more.
                tracing::debug!(pod = name, message = refusal.message, "status has no pod to go to");
                retry = false;
            }
            Err(kube::Error::Api(refusal)) if matches!(refusal.code, 400 | 403 | 422) => {
                tracing::warn!(pod = name, message = refusal.message, "status refused");
                retry = false;
            }
            Err(error) => {
                tracing::debug!(pod = name, %error, "status not written; trying again");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(Duration::from_secs(5));
                retry = true;
                continue;
            }
        }
        report.send_replace(now.number);
    }
}

fn is_other_pod(message: &str) -> bool {
    message.contains("uid") || message.contains("UID")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_of_others_are_left_alone_where_the_api_can_merge() {
        let status: PodStatus = serde_json::from_value(json!({
            "phase": "Running", "podIPs": [{"ip": "10.0.0.2"}],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "lb", "status": "True"}]
        }))
        .unwrap();
        let Patch::Strategic(body) = patch_of(Family::Standard, "u", &status, &["10.0.0.1".into()]) else { panic!() };
        assert_eq!(body["metadata"]["uid"], "u");
        assert_eq!(body["status"]["conditions"].as_array().unwrap().len(), 1);
        assert_eq!(body["status"]["podIPs"][1], json!({"$patch": "delete", "ip": "10.0.0.1"}));
        let Patch::Merge(body) = patch_of(Family::Proa, "u", &status, &["10.0.0.1".into()]) else { panic!() };
        assert_eq!(body["status"]["conditions"].as_array().unwrap().len(), 2);
        assert_eq!(body["status"]["podIPs"].as_array().unwrap().len(), 1);
    }
}
