//! Asks for what a failed pod left behind: its log and its events.

use crate::Informer;
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
    let both = futures::future::join(log, events_of(client, namespace, &pod));
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

async fn events_of(client: &Client, namespace: &str, pod: &str) -> Vec<FailureEvent> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let of_pod = ListParams::default().fields(&format!("involvedObject.kind=Pod,involvedObject.name={pod}"));
    let mut events = api.list(&of_pod).await.map(|list| list.items).unwrap_or_default();
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
