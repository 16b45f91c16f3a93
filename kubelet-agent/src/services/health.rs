//! Owns the health checks of load balancers: at a Service's `healthCheckNodePort` a node says how many endpoints it has itself
//! (`externalTrafficPolicy: Local`), so that a load balancer leaves out the nodes that would drop its packets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proa_crds::{EndpointSlice, Service};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::table::{by_service, ready};

/// What is said at one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    namespace: String,
    name: String,
    /// ready ones on this node
    endpoints: usize,
}

/// The checks a node has to answer, by port. Pure.
pub(super) fn wanted(
    services: &BTreeMap<(String, String), Arc<Service>>,
    slices: &BTreeMap<(String, String), Arc<EndpointSlice>>,
    node: &str,
) -> BTreeMap<u16, Check> {
    let checked: Vec<_> = services.iter().filter_map(|(key, service)| Some((port(service)?, key))).collect();
    if checked.is_empty() {
        return BTreeMap::new();
    }
    let slices = by_service(slices);
    let check = |key: &(String, String)| {
        let own = slices.get(key).into_iter().flatten().flat_map(|slice| slice.endpoints.iter().flatten());
        let local = own.filter(|endpoint| endpoint.node_name.as_deref() == Some(node) && ready(endpoint));
        // One pod stands in a slice for each set of ports.
        let addresses: BTreeSet<&String> = local.flat_map(|endpoint| &endpoint.addresses).collect();
        Check { namespace: key.0.clone(), name: key.1.clone(), endpoints: addresses.len() }
    };
    checked.into_iter().map(|(port, key)| (port, check(key))).collect()
}

fn port(service: &Service) -> Option<u16> {
    let spec = &service.spec;
    let local =
        spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local");
    u16::try_from(spec.health_check_node_port.filter(|_| local)?).ok().filter(|port| *port > 0)
}

/// The ports that are answered.
#[derive(Default)]
pub(super) struct Checks {
    open: HashMap<u16, Open>,
}

struct Open {
    check: watch::Sender<Check>,
    _task: AbortOnDropHandle<()>,
}

impl Checks {
    /// Answers at exactly these ports. One that is taken is tried again the next time.
    pub(super) async fn sync(&mut self, wanted: BTreeMap<u16, Check>) {
        self.open.retain(|port, _| wanted.contains_key(port));
        for (port, check) in wanted {
            if let Some(open) = self.open.get(&port) {
                open.check.send_replace(check);
                continue;
            }
            match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await {
                Ok(listener) => {
                    let (check, seen) = watch::channel(check);
                    let task = AbortOnDropHandle::new(tokio::spawn(serve(listener, seen)));
                    self.open.insert(port, Open { check, _task: task });
                }
                Err(error) => tracing::warn!(port, %error, "health checks of a load balancer are not answered"),
            }
        }
    }
}

async fn serve(listener: TcpListener, check: watch::Receiver<Check>) {
    // Ends with the port: nobody is left in the middle of an answer for long.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, as a rule: some will come free.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let check = check.clone();
        let answer = service_fn(move |_| {
            let answer = answer(&check.borrow());
            async move { Ok::<_, Infallible>(answer) }
        });
        connections.spawn(async move {
            if let Err(error) =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await
            {
                tracing::debug!(%error, "a health check broke off");
            }
        });
    }
}

/// In kube-proxy's form: load balancers read the code, some the body or the weight.
fn answer(check: &Check) -> Response<Full<Bytes>> {
    let body = json!({
        "service": {"namespace": check.namespace, "name": check.name},
        "localEndpoints": check.endpoints,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = if check.endpoints > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    headers.insert("x-load-balancing-endpoint-weight", check.endpoints.into());
    response
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::{services, slice, slices, web};
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[test]
    fn the_ready_endpoints_of_the_node_are_counted_where_they_matter() {
        let balanced = |policy: &str| {
            services(&[web(
                json!({"type": "LoadBalancer", "externalTrafficPolicy": policy, "healthCheckNodePort": 31000}),
            )])
        };
        let endpoints = slices(&[slice(json!([
            {"addresses": ["10.1.0.2"], "nodeName": "n1"},
            {"addresses": ["10.1.0.3"], "nodeName": "n1", "conditions": {"ready": false}},
            {"addresses": ["10.1.1.2"], "nodeName": "n2"}
        ]))]);
        let found = wanted(&balanced("Local"), &endpoints, "n1");
        assert_eq!(found[&31000], Check { namespace: "d".into(), name: "web".into(), endpoints: 1 });
        assert_eq!(wanted(&balanced("Local"), &endpoints, "n3")[&31000].endpoints, 0);
        assert!(wanted(&balanced("Cluster"), &endpoints, "n1").is_empty());
    }

    async fn ask(port: u16) -> Option<String> {
        let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n").await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    }

    #[tokio::test]
    async fn a_port_is_answered_for_as_long_as_its_service_wants() {
        let free = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut checks = Checks::default();
        let mut say = async |endpoints: Option<usize>| {
            let check =
                endpoints.map(|endpoints| (port, Check { namespace: "d".into(), name: "web".into(), endpoints }));
            checks.sync(check.into_iter().collect()).await;
            ask(port).await
        };
        assert!(say(Some(0)).await.unwrap().starts_with("HTTP/1.1 503 "));
        let answer = say(Some(2)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"localEndpoints\":2"), "{answer}");
        assert!(say(None).await.is_none_or(|answer| answer.is_empty()));
    }
}
