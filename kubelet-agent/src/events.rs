//! Owns the node's Events: what a user should see of a pod's life. Recording never waits and never fails:
//! events go through a bounded queue to one task that aggregates repeats and talks to the API.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, PersistentVolume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;

use crate::pods::Pod;

const QUEUE: usize = 1000;
/// How many distinct events are remembered for aggregation.
const REMEMBERED: usize = 4096;
/// Tries before an event is given up.
const TRIES: u32 = 5;

/// Good news or bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Severity {
    /// the expected happened
    Normal,
    /// something to look at
    Warning,
}

impl Severity {
    fn wire(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

#[derive(Debug)]
struct Entry {
    object: ObjectReference,
    severity: Severity,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

/// Records events; cheap to clone.
#[derive(Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Entry>,
    api_version: Arc<str>,
}

impl Recorder {
    /// Starts the sending task. `api_version` is that of the pods of the family served.
    pub(crate) fn start(client: kube::Client, node: &str, api_version: &str) -> Self {
        let (queue, entries) = mpsc::channel(QUEUE);
        tokio::spawn(send(client, node.to_owned(), entries));
        Self { queue, api_version: api_version.into() }
    }

    /// An event about a pod, or about one of its containers.
    pub(crate) fn pod(
        &self,
        pod: &Pod,
        container: Option<&str>,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let meta = &pod.metadata;
        let field = container.map(|name| {
            let init = pod.spec.init_containers.iter().flatten().any(|c| c.name == name);
            format!("spec.{}{{{name}}}", if init { "initContainers" } else { "containers" })
        });
        self.record(
            ObjectReference {
                api_version: Some(self.api_version.to_string()),
                kind: Some("Pod".to_owned()),
                namespace: meta.namespace.clone(),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
                field_path: field,
            },
            severity,
            reason,
            message.into(),
        );
    }

    /// An event about the node itself.
    pub(crate) fn node(&self, node: &str, severity: Severity, reason: &'static str, message: impl Into<String>) {
        let object = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            // The kubelet's convention: the uid of a node event is the node's name.
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        };
        self.record(object, severity, reason, message.into());
    }

    /// An event about a persistent volume.
    pub(crate) fn volume(
        &self,
        volume: &PersistentVolume,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let object = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("PersistentVolume".to_owned()),
            name: volume.metadata.name.clone(),
            uid: volume.metadata.uid.clone(),
            resource_version: volume.metadata.resource_version.clone(),
            ..ObjectReference::default()
        };
        self.record(object, severity, reason, message.into());
    }

    fn record(&self, object: ObjectReference, severity: Severity, reason: &'static str, message: String) {
        tracing::debug!(pod = object.name, reason, message, "event");
        let entry = Entry { object, severity, reason, message, at: Timestamp::now() };
        if self.queue.try_send(entry).is_err() {
            tracing::warn!(reason, "the event queue is full; an event is dropped");
        }
    }
}

type Key = (Option<String>, Option<String>, Option<String>, &'static str, String);

async fn send(client: kube::Client, node: String, mut entries: mpsc::Receiver<Entry>) {
    let mut seen: HashMap<Key, (String, i32)> = HashMap::new();
    while let Some(entry) = entries.recv().await {
        let namespace = entry.object.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let key: Key = (
            entry.object.namespace.clone(),
            entry.object.uid.clone(),
            entry.object.field_path.clone(),
            entry.reason,
            entry.message.clone(),
        );
        if let Some((name, count)) = seen.get_mut(&key) {
            *count += 1;
            let patch = json!({"count": *count, "lastTimestamp": Time(entry.at), "message": entry.message});
            match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => continue,
                // Its time to live has passed: it begins anew.
                Err(error) => tracing::debug!(%error, "event could not be counted up; making it anew"),
            }
            seen.remove(&key);
        }
        let object_name = entry.object.name.clone().unwrap_or_default();
        let name = format!("{object_name}.{:x}", entry.at.as_nanosecond());
        let event = Event {
            metadata: ObjectMeta { name: Some(name.clone()), namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: entry.object,
            reason: Some(entry.reason.to_owned()),
            message: Some(entry.message),
            type_: Some(entry.severity.wire().to_owned()),
            first_timestamp: Some(Time(entry.at)),
            last_timestamp: Some(Time(entry.at)),
            count: Some(1),
            source: Some(EventSource { component: Some("kubelet".to_owned()), host: Some(node.clone()) }),
            reporting_component: Some("kubelet".to_owned()),
            reporting_instance: Some(node.clone()),
            ..Event::default()
        };
        for attempt in 0..TRIES {
            match api.create(&PostParams::default(), &event).await {
                Ok(_) => {
                    if seen.len() >= REMEMBERED {
                        seen.clear();
                    }
                    seen.insert(key, (name, 1));
                    break;
                }
                Err(kube::Error::Api(status)) => {
                    tracing::debug!(message = status.message, "event refused");
                    break;
                }
                Err(error) => {
                    tracing::debug!(%error, "event not sent; trying again");
                    tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
                }
            }
        }
    }
}
