//! Asks for what a failed pod left behind: its log and its events.

use crate::{Informer, Key};
use k8s_openapi::api::core::v1::Event;
use kube::{
    Api, Client,
    api::{ListParams, LogParams},
};
use proa_crds::{Failure, FailureEvent, Pod};
use std::time::Duration;

/// Evidence is worth waiting for, but not for long: the healthy revision is to come back.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The failure with what can be had of its pod in time; `previous` asks for the log of the container before its last start.
pub(crate) async fn gather(
    client: &Client,
    pods: &Informer<Pod>,
    namespace: &str,
    mut failure: Failure,
    previous: bool,
) -> Failure {
    let Some(pod) = failure.pod.clone() else { return failure };
    let log = async {
        match failure.container.as_deref() {
            Some(container) => log_of(client, pods, namespace, &pod, container, previous).await,
            None => String::new(),
        }
    };
    // Pods of a StatefulSet have the name of those before them.
    let uid = pods.get(&Key::new(namespace, &pod)).and_then(|pod| pod.metadata.uid.clone());
    let both = futures::future::join(log, events_of(client, namespace, &pod, uid.as_deref()));
    let Ok((log, events)) = tokio::time::timeout(TIMEOUT, both).await else { return failure };
    // Where the log cannot be read, what the container left as its last message is better than nothing.
    if !log.is_empty() {
        failure.log = log;
    }
    failure.events = events;
    failure
}

async fn log_of(
    client: &Client,
    pods: &Informer<Pod>,
    namespace: &str,
    pod: &str,
    container: &str,
    previous: bool,
) -> String {
    let resource = pods.resource();
    let root = if resource.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}", resource.api_version) };
    let wanted = LogParams {
        container: Some(container.to_owned()),
        previous,
        tail_lines: i64::try_from(Failure::LOG_LINES).ok(),
        ..LogParams::default()
    };
    let path = format!("{root}/namespaces/{namespace}/{}", resource.plural);
    let Ok(request) = kube::core::Request::new(path).logs(pod, &wanted) else { return String::new() };
    client.request_text(request).await.map(|log| Failure::last_lines(&log)).unwrap_or_default()
}

async fn events_of(client: &Client, namespace: &str, pod: &str, uid: Option<&str>) -> Vec<FailureEvent> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let of_pod = ListParams::default().fields(&format!("involvedObject.kind=Pod,involvedObject.name={pod}"));
    let events = api.list(&of_pod).await.map(|list| list.items).unwrap_or_default();
    last_of(events, uid)
}

/// The last events of the pod of that uid, oldest first.
fn last_of(mut events: Vec<Event>, uid: Option<&str>) -> Vec<FailureEvent> {
    events.retain(|event| uid.is_none() || event.involved_object.uid.as_deref() == uid);
    events.sort_by_key(|event| event.last_timestamp.clone().or_else(|| event.metadata.creation_timestamp.clone()));
    let from = events.len().saturating_sub(Failure::EVENTS);
    events.drain(from..).map(told).collect()
}

fn told(event: Event) -> FailureEvent {
    let mut message = event.message.unwrap_or_default();
    let end = (0..=Failure::EVENT_BYTES.min(message.len())).rev().find(|end| message.is_char_boundary(*end));
    message.truncate(end.unwrap_or(0));
    FailureEvent { reason: event.reason.unwrap_or_default(), message, count: event.count.unwrap_or(1).max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn evidence_is_of_the_pod_that_failed_not_of_one_of_its_name_before() {
        let event = |uid: &str, at: u32, reason: &str| -> Event {
            serde_json::from_value(json!({"metadata": {}, "involvedObject": {"name": "db-0", "uid": uid},
                "lastTimestamp": format!("2026-11-21T10:00:{at:02}Z"), "reason": reason}))
            .expect("an event")
        };
        let all = vec![event("new", 9, "BackOff"), event("old", 5, "Killing"), event("new", 7, "Started")];
        let told = |uid| last_of(all.clone(), uid).into_iter().map(|event| event.reason).collect::<Vec<_>>();
        assert_eq!(told(Some("new")), ["Started", "BackOff"]);
        assert_eq!(told(None), ["Killing", "Started", "BackOff"], "when the pod is gone its name is all there is");
        let many: Vec<Event> = (0..50).map(|at| event("new", at, "BackOff")).collect();
        assert_eq!(last_of(many, Some("new")).len(), Failure::EVENTS);
    }
}
