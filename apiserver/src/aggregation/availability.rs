//! Whether the servers behind APIServices can be asked: their `Available` condition.
//!
//! Owns the loop that looks (at once when an APIService, a Service or an endpoint changes, else twice a minute while there
//! is anybody to ask) and Kubernetes' reasons (`kube-aggregator/pkg/controllers/status`). What a look brings back is kept
//! for discovery.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Method, header};
use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;
use serde_json::{Value, json};

use super::discovery::Seen;
use super::{RESOURCE, Remote};
use crate::core::Core;
use crate::crd::set_condition;
use crate::outgoing::resolve::{self, ResolveError};
use crate::outgoing::{self, Endpoint};
use crate::registry::{itself, meta};

/// How often a server is looked at though nothing changed.
const EVERY: Duration = Duration::from_secs(30);
/// How long a look may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How many are looked at at once.
const AT_ONCE: usize = 8;

/// What a look came to: status, reason and message of the condition.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    available: bool,
    reason: &'static str,
    message: String,
}

/// Looks until the server stops.
pub async fn follow(core: Arc<Core>) {
    let mut services = core.caches.resource("services").subscribe();
    let mut slices = core.caches.resource("endpointslices.discovery.k8s.io").subscribe();
    let mut changed = core.caches.resource(RESOURCE).subscribe();
    loop {
        changed.borrow_and_update();
        services.borrow_and_update();
        slices.borrow_and_update();
        let items = core.caches.resource(RESOURCE).items("");
        let names: Vec<String> = items.iter().map(|item| item.name().to_owned()).collect();
        let objects: Vec<Object> = items.iter().map(|item| item.object()).collect();
        futures::stream::iter(objects).for_each_concurrent(AT_ONCE, |object| settle(&core, object)).await;
        core.aggregation.seen.lock().retain(|name, _| names.contains(name));
        let led = whereto(&core);
        let anybody = !led.is_empty();
        let again = tokio::time::Instant::now() + EVERY;
        loop {
            tokio::select! {
                biased;
                () = core.stop.cancelled() => return,
                woken = changed.changed() => {
                    if woken.is_err() {
                        return;
                    }
                    break;
                }
                // Most changes of Services and endpoints are about others.
                _ = services.changed(), if anybody => if whereto(&core) != led { break },
                _ = slices.changed(), if anybody => if whereto(&core) != led { break },
                () = tokio::time::sleep_until(again), if anybody => break,
            }
        }
    }
}

/// Where the Services of all APIServices lead.
fn whereto(core: &Core) -> Vec<Result<Vec<(String, u16)>, ResolveError>> {
    let remotes = core.aggregation.remotes();
    let services = remotes.iter().filter_map(|remote| match &remote.endpoint {
        Endpoint::Service { namespace, name, port } => Some(resolve::service(core, namespace, name, *port)),
        Endpoint::Host { .. } => None,
    });
    services.collect()
}

/// Looks at one and says what there is to say.
async fn settle(core: &Arc<Core>, service: Object) {
    let verdict = match Remote::read(&service) {
        Some(remote) => look(core, &remote).await,
        None => {
            Verdict { available: true, reason: "Local", message: "Local APIServices are always available".to_owned() }
        }
    };
    if let Err(error) = write(core, &service, &verdict).await {
        // A conflict wakes the loop by itself; anything else is tried again at the next look.
        tracing::debug!(name = service.name(), %error, "the APIService's status waits");
    }
}

async fn look(core: &Arc<Core>, remote: &Remote) -> Verdict {
    let Endpoint::Service { namespace, name, port } = &remote.endpoint else {
        return refused("ServiceNotFound", "no service".to_owned());
    };
    if let Err(error) = resolve::service(core, namespace, name, *port) {
        return unresolved(&error, namespace, name, *port);
    }
    let before = core.aggregation.seen(&remote.name);
    match ask(core, remote, &remote.root()).await {
        Ok(list) => {
            let seen = Seen {
                resources: list["resources"].as_array().cloned().unwrap_or_default(),
                openapi: openapi(core, remote).await,
                openapi_v2: openapi_v2(core, remote).await,
                current: true,
            };
            core.aggregation.seen.lock().insert(remote.name.clone(), Arc::new(seen));
            Verdict { available: true, reason: "Passed", message: "all checks passed".to_owned() }
        }
        Err(why) => {
            // What it last said is still the best anybody knows.
            if let Some(before) = before {
                let stale = Seen { current: false, ..(*before).clone() };
                core.aggregation.seen.lock().insert(remote.name.clone(), Arc::new(stale));
            }
            let url = format!("https://{}{}", remote.endpoint.authority(), remote.root());
            refused("FailedDiscoveryCheck", format!("failing or missing response from {url}: {why}"))
        }
    }
}

/// Where the server has its OpenAPI v3 document of the group and version. Old ones have none.
async fn openapi(core: &Core, remote: &Remote) -> Option<String> {
    let index = ask(core, remote, "/openapi/v3").await.ok()?;
    let path = format!("apis/{}/{}", remote.group, remote.version);
    Some(index["paths"][&path]["serverRelativeURL"].as_str()?.to_owned())
}

/// Its OpenAPI v2 document, the paths of others left out.
async fn openapi_v2(core: &Core, remote: &Remote) -> Option<(String, Arc<Value>)> {
    let mut document = ask(core, remote, "/openapi/v2").await.ok()?;
    let root = remote.root();
    document.get_mut("paths")?.as_object_mut()?.retain(|path, _| path.starts_with(&root));
    let kept = json!({"paths": document["paths"], "definitions": document["definitions"]});
    let digest = ring::digest::digest(&ring::digest::SHA256, kept.to_string().as_bytes());
    let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    Some((digest, Arc::new(kept)))
}

async fn ask(core: &Core, remote: &Remote, path: &str) -> Result<Value, String> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert("x-remote-user", HeaderValue::from_static("system:kube-aggregator"));
    headers.insert("x-remote-group", HeaderValue::from_static("system:masters"));
    let answer = outgoing::get(core, (&remote.endpoint, &remote.trust), path, headers, LIMIT).await;
    let body = answer.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body).map_err(|error| format!("the answer is not JSON: {error}"))
}

fn refused(reason: &'static str, message: String) -> Verdict {
    Verdict { available: false, reason, message }
}

/// Why a Service leads nowhere, as the condition says it.
fn unresolved(error: &ResolveError, namespace: &str, name: &str, port: u16) -> Verdict {
    match error {
        ResolveError::NotFound(_) => {
            refused("ServiceNotFound", format!("service/{name} in {namespace:?} is not present"))
        }
        ResolveError::Port { .. } => {
            refused("ServicePortError", format!("service/{name} in {namespace:?} is not listening on port {port}"))
        }
        ResolveError::NoSlices(_) => {
            refused("EndpointsNotFound", format!("cannot find endpointslices for service/{name} in {namespace:?}"))
        }
        ResolveError::NoEndpoints(_) => refused(
            "MissingEndpoints",
            format!(
                "endpointslices for service/{name} in {namespace:?} have no addresses that are ready for port {port}"
            ),
        ),
    }
}

async fn write(core: &Arc<Core>, service: &Object, verdict: &Verdict) -> Result<(), ApiError> {
    let mut conditions = service.get_list(&["status", "conditions"]).to_vec();
    let now = meta::time(core.now());
    let status = if verdict.available { "True" } else { "False" };
    if !set_condition(&mut conditions, "Available", status, verdict.reason, &verdict.message, &now) {
        return Ok(());
    }
    let patch =
        json!({"metadata": {"resourceVersion": service.resource_version()}, "status": {"conditions": conditions}});
    let path = format!("/apis/apiregistration.k8s.io/v1/apiservices/{}/status", service.name());
    itself::send(core, Method::PATCH, &path, "", &patch).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_leads_nowhere_says_why_in_kubernetes_words() {
        let why = |error: ResolveError| {
            let verdict = unresolved(&error, "ns", "s", 443);
            assert!(!verdict.available);
            (verdict.reason, verdict.message)
        };
        let message = "service/s in \"ns\" is not present".to_owned();
        assert_eq!(why(ResolveError::NotFound("s".into())), ("ServiceNotFound", message));
        let message = "service/s in \"ns\" is not listening on port 443".to_owned();
        assert_eq!(why(ResolveError::Port { service: "s".into(), port: 443 }), ("ServicePortError", message));
        assert_eq!(why(ResolveError::NoSlices("s".into())).0, "EndpointsNotFound");
        assert_eq!(why(ResolveError::NoEndpoints("s".into())).0, "MissingEndpoints");
    }
}
