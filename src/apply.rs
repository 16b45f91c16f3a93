//! `up --apply`: applies manifests as `kubectl apply` would, then watches until what they start is rolled out.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::TryStreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Service};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{self, Scope};
use kube::{Client, ResourceExt};

use crate::progress::Progress;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// How long a rollout may take before `up` stops waiting for it (the platform goes on).
const PATIENCE: Duration = Duration::from_secs(120);

/// Applies every document of `file` in order and waits for the Deployments among them.
///
/// # Errors
/// When the file cannot be read, an object is refused, or a rollout fails or takes longer than two minutes.
pub(crate) async fn apply(client: &Client, file: &Path, progress: &Progress) -> anyhow::Result<Vec<Applied>> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let documents =
        proa_apimachinery::yaml::from_yaml(&text).with_context(|| format!("{} is no manifest", file.display()))?;
    let mut applied = Vec::new();
    for document in documents {
        applied.push(apply_one(client, document, progress).await.with_context(|| format!("in {}", file.display()))?);
    }
    for object in applied.iter().filter(|object| object.kind == "Deployment" && object.api_version == "apps/v1") {
        tokio::time::timeout(PATIENCE, rolled_out(client, object, progress))
            .await
            .with_context(|| format!("{object} is not rolled out after {PATIENCE:?}: kubectl describe {object}"))??;
    }
    Ok(applied)
}

/// One applied object, named as kubectl names it.
pub(crate) struct Applied {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

impl std::fmt::Display for Applied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind.to_lowercase(), self.name)
    }
}

async fn apply_one(client: &Client, document: serde_json::Value, progress: &Progress) -> anyhow::Result<Applied> {
    let mut object: DynamicObject =
        serde_json::from_value(document.clone()).context("a document is no Kubernetes object")?;
    let types = object.types.clone().context("a document has no apiVersion and kind")?;
    let gvk = GroupVersionKind::try_from(&types)?;
    let (resource, capabilities) = discovery::pinned_kind(client, &gvk)
        .await
        .with_context(|| format!("no kind {} in {}", types.kind, types.api_version))?;
    let namespace =
        (capabilities.scope == Scope::Namespaced).then(|| object.namespace().unwrap_or_else(|| "default".into()));
    let api: Api<DynamicObject> = match &namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    // With kubectl's own record of what was applied, a later `kubectl apply -f` of the same file finds what it expects.
    object.annotations_mut().insert(LAST_APPLIED.into(), record(document, namespace.as_deref()));
    let name = object.name_any();
    let before = api.get_metadata_opt(&name).await?.and_then(|object| object.resource_version());
    let after = api.patch(&name, &PatchParams::apply("proa").force(), &Patch::Apply(&object)).await?;
    let verb = match before {
        None => "created",
        Some(before) if Some(&before) == after.resource_version().as_ref() => "unchanged",
        Some(_) => "configured",
    };
    let applied = Applied { api_version: types.api_version, kind: types.kind, namespace, name };
    progress.done(verb, applied.to_string());
    Ok(applied)
}

/// What kubectl writes into the annotation: the document with its namespace and (maybe empty) annotations spelled out, on
/// a line of its own.
fn record(mut document: serde_json::Value, namespace: Option<&str>) -> String {
    if let Some(metadata) = document.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
        if let Some(namespace) = namespace {
            metadata.insert("namespace".into(), namespace.into());
        }
        let annotations = metadata.entry("annotations").or_insert_with(|| serde_json::json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.remove(LAST_APPLIED);
        }
    }
    document.sort_all_objects();
    format!("{document}\n")
}

/// Follows a Deployment until its newest revision serves, telling every step.
async fn rolled_out(client: &Client, object: &Applied, progress: &Progress) -> anyhow::Result<()> {
    let namespace = object.namespace.as_deref().unwrap_or("default");
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let told =
        tokio::spawn(tell_events(Api::namespaced(client.clone(), namespace), object.name.clone(), progress.clone()));
    let _told = scopeguard(told);
    let selector = format!("metadata.name={}", object.name);
    loop {
        let list = deployments.list(&ListParams::default().fields(&selector)).await?;
        let version = list.metadata.resource_version.clone().unwrap_or_default();
        let Some(deployment) = list.items.first() else { bail!("{object} was deleted while it was rolling out") };
        if settled(deployment, object, progress)? {
            return Ok(());
        }
        let mut events = std::pin::pin!(deployments.watch(&WatchParams::default().fields(&selector), &version).await?);
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(deployment) | WatchEvent::Modified(deployment) => {
                    if settled(&deployment, object, progress)? {
                        return Ok(());
                    }
                }
                WatchEvent::Deleted(_) => bail!("{object} was deleted while it was rolling out"),
                // The watch ended or grew too old: list again.
                WatchEvent::Error(_) => break,
                WatchEvent::Bookmark(_) => {}
            }
        }
    }
}

/// Whether the rollout is over. `kubectl rollout status` decides in the same way.
fn settled(deployment: &Deployment, object: &Applied, progress: &Progress) -> anyhow::Result<bool> {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    if let Some(failed) = status.conditions.iter().flatten().find(|condition| {
        (condition.type_ == "Progressing" && condition.status == "False")
            || (condition.type_ == "RolledBack" && condition.status == "True")
    }) {
        bail!("{object}: {}", failed.message.as_deref().unwrap_or("the rollout failed"));
    }
    let current = status.observed_generation >= deployment.metadata.generation;
    let (updated, available) = (status.updated_replicas.unwrap_or(0), status.available_replicas.unwrap_or(0));
    let done = current && updated >= wanted && available >= wanted && status.replicas.unwrap_or(0) == updated;
    if done {
        progress.done(&object.to_string(), format!("{available} of {wanted} pods ready"));
    } else {
        progress.waiting(format!("{object}: {available} of {wanted} pods ready"));
    }
    Ok(done)
}

/// Tells what the node does for the pods of one workload: each distinct event once.
async fn tell_events(events: Api<Event>, workload: String, progress: Progress) -> Result<(), kube::Error> {
    let prefix = format!("{workload}-");
    let mut told: BTreeMap<(String, String), ()> = BTreeMap::new();
    let mut stream = std::pin::pin!(events.watch(&WatchParams::default(), "").await?);
    while let Some(event) = stream.try_next().await? {
        let (WatchEvent::Added(event) | WatchEvent::Modified(event)) = event else { continue };
        let about = event.involved_object.name.unwrap_or_default();
        let (reason, message) = (event.reason.unwrap_or_default(), event.message.unwrap_or_default());
        if about.starts_with(&prefix) && told.insert((reason.clone(), message.clone()), ()).is_none() {
            match event.type_.as_deref() {
                Some("Warning") => progress.warn(&reason.to_lowercase(), format!("{about}: {message}")),
                _ if matches!(reason.as_str(), "Pulling" | "Pulled" | "Started") => {
                    progress.doing(&reason.to_lowercase(), message)
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Ends the task when the waiting ends, whichever way.
fn scopeguard(task: tokio::task::JoinHandle<Result<(), kube::Error>>) -> impl Drop {
    struct Abort(tokio::task::JoinHandle<Result<(), kube::Error>>);
    impl Drop for Abort {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    Abort(task)
}

/// Addresses on this machine under which the applied Services answer.
pub(crate) async fn answering_at(client: &Client, applied: &[Applied]) -> Vec<String> {
    let mut addresses = Vec::new();
    for object in applied.iter().filter(|object| object.kind == "Service" && object.api_version == "v1") {
        let services: Api<Service> = Api::namespaced(client.clone(), object.namespace.as_deref().unwrap_or("default"));
        let Ok(service) = services.get(&object.name).await else { continue };
        let Some(spec) = service.spec else { continue };
        for port in spec.ports.iter().flatten() {
            match (port.node_port, spec.cluster_ip.as_deref()) {
                (Some(node_port), _) => addresses.push(format!("http://127.0.0.1:{node_port}")),
                (None, Some(ip)) if ip != "None" => addresses.push(format!("http://{ip}:{}", port.port)),
                _ => {}
            }
        }
    }
    addresses
}
