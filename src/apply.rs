//! `up --apply`: applies manifests as `kubectl apply` would, waits until what they start is rolled out, and tells where
//! it answers.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{self, Scope};
use kube::{Client, ResourceExt};
use proa_apimachinery::Object;
use proa_apimachinery::managed_fields::{self, Manager, Operation};
use proa_crds::annotations::LAST_APPLIED;
use serde_json::{Value, json};

use crate::progress::Progress;
use crate::rollout::Rollouts;

/// The field manager of `kubectl apply` without `--server-side`.
const CLIENT_SIDE_APPLY: &str = "kubectl-client-side-apply";
const MANAGER: &str = "proa";
/// How often an object may change under our hands before we give up.
const TRIES: usize = 5;

/// What became of the manifests; what failed has been told.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) applied: Vec<Applied>,
    pub(crate) failed: bool,
}

impl Outcome {
    /// Takes in a result; an error is told and no reason to stop.
    fn note<T>(&mut self, result: anyhow::Result<T>, progress: &Progress) -> Option<T> {
        result
            .map_err(|error| {
                self.failed = true;
                progress.failed(&format!("{error:#}"));
            })
            .ok()
    }
}

/// Applies every document of `files` in order, then waits for the Deployments among them.
pub(crate) async fn apply(client: &Client, files: &[PathBuf], progress: &Progress) -> Outcome {
    let mut outcome = Outcome::default();
    let Some(rollouts) = outcome.note(Rollouts::from_now(client, progress).await, progress) else { return outcome };
    for file in files {
        let Some(documents) = outcome.note(read(file), progress) else { continue };
        for document in documents {
            let applied = apply_one(client, document, progress).await;
            let applied = applied.with_context(|| format!("in {}", file.display()));
            if let Some(applied) = outcome.note(applied, progress) {
                outcome.applied.push(applied);
            }
        }
    }
    let mut results = Vec::new();
    for object in &outcome.applied {
        if let Some(deployment) = &object.deployment {
            results.push(rollouts.finished(object, deployment).await);
        }
    }
    for result in results {
        outcome.note(result, progress);
    }
    outcome
}

fn read(file: &Path) -> anyhow::Result<Vec<Value>> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let documents =
        proa_apimachinery::yaml::from_yaml(&text).with_context(|| format!("{} is no manifest", file.display()))?;
    Ok(documents.into_iter().flat_map(items).collect())
}

/// The objects of a document: of a list its items, which are of the list's kind when they say none.
fn items(document: Value) -> Vec<Value> {
    let text = |field: &str| document.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, list) = (text("apiVersion"), text("kind"));
    let (Some(kind), Some(Value::Array(items))) = (list.strip_suffix("List"), document.get("items")) else {
        return if document.is_null() { Vec::new() } else { vec![document] };
    };
    let mut all = Vec::new();
    for mut item in items.clone() {
        if let Some(item) = item.as_object_mut().filter(|_| !kind.is_empty()) {
            item.entry("apiVersion").or_insert_with(|| version.as_str().into());
            item.entry("kind").or_insert_with(|| kind.into());
        }
        all.extend(self::items(item));
    }
    all
}

/// One applied object, named as kubectl names it.
pub(crate) struct Applied {
    api_version: String,
    kind: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    /// As the API server answered, for a Deployment.
    deployment: Option<Deployment>,
}

impl std::fmt::Display for Applied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind.to_lowercase(), self.name)
    }
}

async fn apply_one(client: &Client, document: Value, progress: &Progress) -> anyhow::Result<Applied> {
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
    let name = object.metadata.name.clone().context("a document has no metadata.name")?;
    let what = format!("{}/{name}", types.kind.to_lowercase());
    let before = take_over(&api, &name, &types.api_version).await.with_context(|| what.clone())?;
    let applied = api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object)).await;
    let after = applied.with_context(|| what.clone())?;
    let verb = match before {
        None => "created",
        Some(before) if Some(&before) == after.resource_version().as_ref() => "unchanged",
        Some(_) => "configured",
    };
    progress.done(verb, what);
    let is_deployment = (types.api_version.as_str(), types.kind.as_str()) == ("apps/v1", "Deployment");
    let deployment = if is_deployment { Some(after.try_parse()?) } else { None };
    Ok(Applied { api_version: types.api_version, kind: types.kind, namespace, name, deployment })
}

/// Makes what `kubectl apply` owns of the object ours, so that a field which has left the file goes; the object's resource
/// version, if it is there.
async fn take_over(api: &Api<DynamicObject>, name: &str, api_version: &str) -> anyhow::Result<Option<String>> {
    let applier = Manager { name: MANAGER, operation: Operation::Apply, api_version, subresource: "" };
    for _ in 0..TRIES {
        let Some(live) = api.get_opt(name).await? else { return Ok(None) };
        let version = live.resource_version();
        let mut object = Object::from_value(serde_json::to_value(live)?).ok().context("the server sent no object")?;
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        if !managed_fields::take_over(&mut object, CLIENT_SIDE_APPLY, applier, &now) {
            return Ok(version);
        }
        let managed = object.get(&["metadata", "managedFields"]);
        let patch = json!({"metadata": {"resourceVersion": version, "managedFields": managed}});
        match api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(written) => return Ok(written.resource_version()),
            Err(kube::Error::Api(status)) if status.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("it is being changed all the time")
}

/// What kubectl writes into the annotation: the document with its namespace and (maybe empty) annotations spelled out, on
/// a line of its own.
fn record(mut document: Value, namespace: Option<&str>) -> String {
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        if let Some(namespace) = namespace {
            metadata.insert("namespace".into(), namespace.into());
        }
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.remove(LAST_APPLIED);
        }
    }
    document.sort_all_objects();
    format!("{document}\n")
}

/// How long an address is waited for: pods are ready a moment before the packets of their Service find them.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// Addresses on this machine under which the applied Services answer. Returns when they do, or after a short while.
pub(crate) async fn answering_at(client: &Client, applied: &[Applied]) -> Vec<String> {
    let addresses = addresses_of(client, applied).await;
    let reached = futures::future::join_all(addresses.iter().map(|address| reached(*address)));
    // One that does not answer is told nevertheless: its Service may wait for pods that are still to come.
    let _ = tokio::time::timeout(ANSWER_WITHIN, reached).await;
    addresses.into_iter().map(|address| format!("http://{address}")).collect()
}

async fn reached(address: SocketAddr) {
    // Only trying tells.
    while tokio::net::TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn addresses_of(client: &Client, applied: &[Applied]) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    let mut push = |ip: IpAddr, port: i32| addresses.extend(u16::try_from(port).map(|port| SocketAddr::new(ip, port)));
    for object in applied.iter().filter(|object| object.kind == "Service" && object.api_version == "v1") {
        let services: Api<Service> = Api::namespaced(client.clone(), object.namespace.as_deref().unwrap_or("default"));
        let Ok(service) = services.get(&object.name).await else { continue };
        let Some(spec) = service.spec else { continue };
        for port in spec.ports.iter().flatten().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP") {
            match (port.node_port, spec.cluster_ip.as_deref()) {
                (Some(node_port), _) => push(IpAddr::from([127, 0, 0, 1]), node_port),
                // A headless Service has none of its own: "None" is no address.
                (None, Some(ip)) => ip.parse().into_iter().for_each(|ip| push(ip, port.port)),
                _ => {}
            }
        }
    }
    addresses
}

/// What a person may want to type next: about the first Deployment that was applied.
pub(crate) fn next_steps(applied: &[Applied]) -> Vec<String> {
    let Some((object, deployment)) = applied.iter().find_map(|object| Some((object, object.deployment.as_ref()?)))
    else {
        return Vec::new();
    };
    let kubectl = match object.namespace.as_deref() {
        None | Some("default") => "kubectl".to_owned(),
        Some(namespace) => format!("kubectl -n {namespace}"),
    };
    let template = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let sample = template.iter().flat_map(|spec| &spec.containers).find_map(|container| {
        let version = container.image.as_deref()?.strip_prefix("example/echo:")?;
        Some(format!("{}=example/echo:{}", container.name, if version == "v2" { "v1" } else { "v2" }))
    });
    let first = match sample {
        Some(image) => format!("{kubectl} set image {object} {image} && {kubectl} rollout status {object}"),
        None => format!("{kubectl} rollout history {object}"),
    };
    vec![first, format!("{kubectl} rollout undo {object}")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_its_items_in_order() {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}},
            {"apiVersion": "v1", "kind": "ConfigMapList", "items": [{"metadata": {"name": "b"}}]},
        ]});
        let named: Vec<String> =
            items(list).iter().map(|o| format!("{} {}", o["kind"], o["metadata"]["name"])).collect();
        assert_eq!(named, [r#""Service" "a""#, r#""ConfigMap" "b""#]);
        let custom = json!({"apiVersion": "x.dev/v1", "kind": "AllowList", "metadata": {"name": "no list of objects"}});
        assert_eq!(items(custom.clone()), [custom]);
        assert!(items(Value::Null).is_empty());
    }

    #[test]
    fn the_next_steps_are_about_what_was_applied() {
        let deployment = |namespace: &str, image: &str| {
            let spec =
                json!({"selector": {}, "template": {"spec": {"containers": [{"name": "main", "image": image}]}}});
            Applied {
                api_version: "apps/v1".into(),
                kind: "Deployment".into(),
                namespace: Some(namespace.into()),
                name: "front".into(),
                deployment: Some(serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("a deployment")),
            }
        };
        assert_eq!(
            next_steps(&[deployment("shop", "example/echo:v2")]),
            [
                "kubectl -n shop set image deployment/front main=example/echo:v1 && kubectl -n shop rollout status deployment/front",
                "kubectl -n shop rollout undo deployment/front",
            ]
        );
        assert_eq!(
            next_steps(&[deployment("default", "nginx")]),
            ["kubectl rollout history deployment/front", "kubectl rollout undo deployment/front"]
        );
        assert!(next_steps(&[]).is_empty());
    }
}
