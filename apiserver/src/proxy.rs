//! Requests that somebody else answers: a node's agent (log, exec, attach, port-forward, node proxy) or a
//! pod's own port (pod and service proxy). Pods, services and nodes of the custom family are reached in the same way: a
//! request on one of them looks for the others of its family.
//!
//! Owns finding the other end and passing bytes on; an upgraded connection is spliced, its protocol
//! (WebSocket, SPDY) is not looked at.

use std::net::IpAddr;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, BodyStream, Full};
use hyper_util::rt::TokioIo;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::{ApiError, GroupResource};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::admission::chain;
use crate::agents::Pin;
use crate::core::Core;
use crate::http::{Body, Request, Response};
use crate::kinds::twins;
use crate::registry::{Call, not_allowed};

/// How long the other end may take to accept a connection.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(10);

/// Where a request goes.
struct Target {
    host: String,
    port: u16,
    tls: Tls,
    path: String,
}

#[derive(Clone, PartialEq, Eq)]
enum Tls {
    /// Plain HTTP.
    None,
    /// An agent, known by our CA or by the certificate its Node names.
    Agent(Option<Pin>),
}

/// An agent's address.
struct Agent {
    host: String,
    port: u16,
    tls: Tls,
}

/// Answers log, exec, attach, portforward and proxy.
pub async fn answer(call: &Call<'_>) -> Result<Response, ApiError> {
    let info = &call.request.info;
    call.core.caches.consistent().await?;
    if info.subresource != "log" {
        // A proxied name may carry a scheme and a port.
        let name = split_name(call.name()).map_or(call.name(), |(_, name, _)| name);
        chain::connect(call, name).await?;
    }
    let target = match (&*call.resource.kind.plural, info.subresource.as_str()) {
        ("pods", "log") if info.verb == "get" => pod_target(call, "containerLogs", LogOptions::Check)?,
        ("pods", "exec" | "attach") => pod_target(call, &info.subresource, LogOptions::No)?,
        ("pods", "portforward") => pod_target(call, "portForward", LogOptions::No)?,
        ("pods", "proxy") => pod_proxy(call)?,
        ("services", "proxy") => service_proxy(call)?,
        ("nodes", "proxy") => node_proxy(call)?,
        _ => return Err(not_allowed(call)),
    };
    forward(call, target).await
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LogOptions {
    Check,
    No,
}

/// An object of the family of `group`.
fn object(core: &Core, group: &str, resource: &str, namespace: &str, name: &str) -> Result<Object, ApiError> {
    let item = core.caches.resource(&twins::beside(group, resource)).get(namespace, name);
    item.map(|item| item.object()).ok_or_else(|| ApiError::not_found(GroupResource::new(group, resource), name))
}

/// The agent's address: its InternalIP (or the first address it has) and the port it says.
fn agent(core: &Core, group: &str, node: &str) -> Result<Agent, ApiError> {
    let node = object(core, group, "nodes", "", node)?;
    let addresses = node.get_list(&["status", "addresses"]);
    let of = |kind: &str| {
        addresses.iter().find(|address| address["type"] == kind).and_then(|address| address["address"].as_str())
    };
    let host = of("InternalIP").or_else(|| of("ExternalIP")).or_else(|| of("Hostname"));
    let host = host.ok_or_else(|| ApiError::unavailable(format!("node {} has no address yet", node.name())))?;
    let port = node
        .get_i64(&["status", "daemonEndpoints", "kubeletEndpoint", "Port"])
        .and_then(|port| u16::try_from(port).ok());
    let port = port.ok_or_else(|| {
        ApiError::unavailable(format!("the agent of node {} has not said where it listens", node.name()))
    })?;
    Ok(Agent { host: host.to_owned(), port, tls: Tls::Agent(Pin::of_node(&node)) })
}

fn pod_target(call: &Call<'_>, verb: &str, options: LogOptions) -> Result<Target, ApiError> {
    let pod = object(call.core, &call.resource.kind.group, "pods", call.namespace(), call.name())?;
    let node = pod.get_str(&["spec", "nodeName"]).unwrap_or_default();
    if node.is_empty() {
        // Kubernetes answers a log request for a pod that is not scheduled with an empty log.
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", pod.name())));
    }
    let Agent { host, port, tls } = agent(call.core, &call.resource.kind.group, node)?;
    let container = if verb == "portForward" { String::new() } else { format!("/{}", container(call, &pod)?) };
    let query = if options == LogOptions::Check { log_query(call)? } else { agent_query(call) };
    let path = format!("/{verb}/{}/{}{container}{query}", pod.namespace(), pod.name());
    Ok(Target { host, port, tls, path })
}

/// The container meant: as named, or the only (or default) one.
fn container(call: &Call<'_>, pod: &Object) -> Result<String, ApiError> {
    let names = |field: &str| -> Vec<String> {
        let list = pod.get_list(&["spec", field]);
        list.iter().filter_map(|container| container["name"].as_str()).map(str::to_owned).collect()
    };
    let all = names("containers");
    let known = |name: &str| {
        ["containers", "initContainers", "ephemeralContainers"]
            .iter()
            .any(|field| names(field).iter().any(|have| have == name))
    };
    if let Some(name) = call.request.query.get("container") {
        return if known(name) {
            Ok(name.to_owned())
        } else {
            Err(ApiError::bad_request(format!("container {name} is not valid for pod {}", pod.name())))
        };
    }
    if let Some(name) = pod.annotation("kubectl.kubernetes.io/default-container").filter(|name| known(name)) {
        return Ok(name.to_owned());
    }
    match all.as_slice() {
        [one] => Ok(one.clone()),
        _ => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            pod.name(),
            all.join(" ")
        ))),
    }
}

/// The log options that make no sense are refused here, before the agent sees them.
fn log_query(call: &Call<'_>) -> Result<String, ApiError> {
    let query = &call.request.query;
    let positive = |name: &str, least: i64| match query.get(name).map(|value| (value, value.parse::<i64>())) {
        None => Ok(()),
        Some((_, Ok(number))) if number >= least => Ok(()),
        Some((value, _)) => {
            let path = proa_apimachinery::Path::of(name);
            let error = proa_apimachinery::FieldError::invalid(
                &path,
                value,
                format!("must be greater than or equal to {least}"),
            );
            Err(ApiError::invalid(GroupResource::new("", "PodLogOptions"), call.name(), vec![error]))
        }
    };
    positive("tailLines", 0)?;
    positive("limitBytes", 1)?;
    positive("sinceSeconds", 1)?;
    if query.get("sinceSeconds").is_some() && query.get("sinceTime").is_some() {
        return Err(ApiError::bad_request("at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    Ok(agent_query(call))
}

/// The agent's names of the options: `stdin` is `input` there.
fn agent_query(call: &Call<'_>) -> String {
    let renamed: Vec<String> = call
        .request
        .query
        .raw()
        .split('&')
        .filter(|pair| !pair.is_empty() && !pair.starts_with("container="))
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let flag = |name: &str| format!("{name}={}", if matches!(value, "true" | "1") { "1" } else { "0" });
            match key {
                "stdin" => flag("input"),
                "stdout" => flag("output"),
                "stderr" => flag("error"),
                "tty" => flag("tty"),
                _ => pair.to_owned(),
            }
        })
        .collect();
    if renamed.is_empty() { String::new() } else { format!("?{}", renamed.join("&")) }
}

/// `[scheme:]name[:port]`, as the proxy subresources write it.
fn split_name(name: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = name.split(':').collect();
    match parts.as_slice() {
        [name] => Some(("", name, "")),
        [name, port] => Some(("", name, port)),
        [scheme, name, port] => Some((scheme, name, port)),
        _ => None,
    }
}

fn proxied_path(call: &Call<'_>) -> String {
    let info = &call.request.info;
    let path = if info.tail.is_empty() { "/" } else { &info.tail };
    if call.request.query.raw().is_empty() { path.to_owned() } else { format!("{path}?{}", call.request.query.raw()) }
}

/// As [`plain_target`], of an address that whoever may write the object chose.
fn proxied_target(scheme: &str, host: &str, port: u16, path: String) -> Result<Target, ApiError> {
    if !is_proxyable(host) {
        return Err(ApiError::bad_request("address not allowed"));
    }
    plain_target(scheme, host, port, path)
}

/// Whether this server may be sent to an address that an object names: none of its own host, of its link alone or of a group
/// (Kubernetes' `IsProxyableIP`).
fn is_proxyable(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => !(ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_unspecified()),
        Ok(IpAddr::V6(ip)) => {
            !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast() || ip.is_unspecified())
        }
        Err(_) => false,
    }
}

fn plain_target(scheme: &str, host: &str, port: u16, path: String) -> Result<Target, ApiError> {
    match scheme {
        "" | "http" => Ok(Target { host: host.to_owned(), port, tls: Tls::None, path }),
        other => Err(ApiError::bad_request(format!("proxying to {other} is not supported by Proa yet"))),
    }
}

fn pod_proxy(call: &Call<'_>) -> Result<Target, ApiError> {
    let (scheme, name, port) = split_name(call.name())
        .ok_or_else(|| ApiError::bad_request(format!("invalid pod request {:?}", call.name())))?;
    let pod = object(call.core, &call.resource.kind.group, "pods", call.namespace(), name)?;
    let host = pod
        .get_str(&["status", "podIP"])
        .filter(|ip| !ip.is_empty())
        .ok_or_else(|| ApiError::unavailable("address not allowed: the pod has no IP"))?;
    let containers = pod.get_list(&["spec", "containers"]);
    let mut ports = containers.iter().flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let port = if port.is_empty() {
        ports.next().and_then(|port| port["containerPort"].as_u64()).unwrap_or(80)
    } else if let Ok(port) = port.parse() {
        port
    } else {
        ports
            .find(|have| have["name"] == port)
            .and_then(|port| port["containerPort"].as_u64())
            .ok_or_else(|| ApiError::unavailable(format!("no port {port:?} in pod {name:?}")))?
    };
    let port = u16::try_from(port).map_err(|_| ApiError::bad_request("invalid port"))?;
    proxied_target(scheme, host, port, proxied_path(call))
}

/// One ready endpoint of a service's port.
fn service_proxy(call: &Call<'_>) -> Result<Target, ApiError> {
    let (scheme, name, wanted) = split_name(call.name())
        .ok_or_else(|| ApiError::bad_request(format!("invalid service request {:?}", call.name())))?;
    let service = object(call.core, &call.resource.kind.group, "services", call.namespace(), name)?;
    let none = || ApiError::unavailable(format!("no endpoints available for service {name:?}"));
    let ports = service.get_list(&["spec", "ports"]);
    let port = ports.iter().find(|port| {
        wanted.is_empty()
            || port["name"] == wanted
            || port["port"].as_u64().is_some_and(|number| number.to_string() == wanted)
    });
    let port_name = port
        .ok_or_else(|| ApiError::unavailable(format!("no service port {wanted:?} found for service {name:?}")))?["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let slices = twins::beside(&call.resource.kind.group, "endpointslices.discovery.k8s.io");
    for item in call.core.caches.resource(&slices).items(call.namespace()) {
        let slice = item.object();
        if slice.label("kubernetes.io/service-name") != Some(name) {
            continue;
        }
        let number = slice
            .get_list(&["ports"])
            .iter()
            .find(|port| port["name"].as_str().unwrap_or_default() == port_name)
            .and_then(|port| port["port"].as_u64());
        let Some(number) = number.and_then(|number| u16::try_from(number).ok()) else { continue };
        let ready: Vec<&str> = slice
            .get_list(&["endpoints"])
            .iter()
            .filter(|endpoint| endpoint.pointer("/conditions/ready").and_then(Value::as_bool).unwrap_or(true))
            .filter_map(|endpoint| endpoint["addresses"].get(0).and_then(Value::as_str))
            .collect();
        if ready.is_empty() {
            continue;
        }
        let host = ready[rand::random_range(0..ready.len())];
        return proxied_target(scheme, host, number, proxied_path(call));
    }
    Err(none())
}

fn node_proxy(call: &Call<'_>) -> Result<Target, ApiError> {
    let (_, name, port) = split_name(call.name())
        .ok_or_else(|| ApiError::bad_request(format!("invalid node request {:?}", call.name())))?;
    let Agent { host, port: own, tls } = agent(call.core, &call.resource.kind.group, name)?;
    let path = proxied_path(call);
    match port.parse() {
        Ok(port) if port != own => plain_target("", &host, port, path),
        _ => Ok(Target { host, port: own, tls, path }),
    }
}

/// A byte stream to the other end.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(core: &Core, target: &Target) -> Result<Box<dyn Stream>, ApiError> {
    let failed = |error: &dyn std::fmt::Display| {
        ApiError::internal(format!("error dialing backend: {}:{}: {error}", target.host, target.port))
    };
    let tcp = timeout(CONNECT, TcpStream::connect((target.host.as_str(), target.port))).await;
    let tcp = tcp.map_err(|_| failed(&"timed out"))?.map_err(|error| failed(&error))?;
    // Interactive sessions send small frames; a failure here costs latency only.
    let _ = tcp.set_nodelay(true);
    match &target.tls {
        Tls::None => Ok(Box::new(tcp)),
        Tls::Agent(pin) => {
            let name = ServerName::try_from(target.host.clone()).map_err(|error| failed(&error))?;
            let tls = timeout(CONNECT, core.agents.connect(name, pin.clone(), tcp)).await;
            Ok(Box::new(tls.map_err(|_| failed(&"TLS handshake timed out"))?.map_err(|error| failed(&error))?))
        }
    }
}

/// Headers that are about one connection (RFC 9110 §7.6.1); the credential is ours, not the agent's.
const HOP: &[HeaderName] = &[
    header::CONNECTION,
    header::UPGRADE,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::HOST,
    header::CONTENT_LENGTH,
    header::AUTHORIZATION,
];

/// The headers of a request or an answer that go on.
pub fn passed_headers(headers: &HeaderMap, upgrade: bool) -> HeaderMap {
    let mut out = HeaderMap::new();
    for (name, value) in headers {
        if !HOP.contains(name) && !name.as_str().starts_with("impersonate-") {
            out.append(name.clone(), value.clone());
        }
    }
    if upgrade {
        out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Some(protocol) = headers.get(header::UPGRADE) {
            out.insert(header::UPGRADE, protocol.clone());
        }
    }
    out
}

/// What a node's agent answers to a GET, whole; at most as long as two connections may take.
///
/// # Errors
///
/// When the node is not there, its agent has said no address or gives no good answer.
pub async fn ask_agent(core: &Core, node: &str, path: &str) -> Result<Bytes, ApiError> {
    let Agent { host, port, tls } = agent(core, "", node)?;
    let target = Target { host, port, tls, path: path.to_owned() };
    let failed = |error: hyper::Error| ApiError::internal(format!("error talking to the agent of {node}: {error}"));
    let asked = async {
        let stream = connect(core, &target).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let answered = async {
            let mut request = http::Request::new(Full::<Bytes>::default());
            *request.uri_mut() =
                target.path.parse().map_err(|_| ApiError::bad_request("the path cannot be passed on"))?;
            let host =
                HeaderValue::from_str(&format!("{}:{}", target.host, target.port)).map_err(ApiError::internal)?;
            request.headers_mut().insert(header::HOST, host);
            let answer = sender.send_request(request).await.map_err(failed)?;
            if !answer.status().is_success() {
                return Err(ApiError::internal(format!("the agent of {node} answers {}", answer.status())));
            }
            Ok(answer.into_body().collect().await.map_err(failed)?.to_bytes())
        };
        tokio::pin!(answered);
        tokio::select! {
            answer = &mut answered => answer,
            // The connection is driven here; it may end an instant before its last answer is taken.
            _ = connection => answered.await,
        }
    };
    timeout(CONNECT * 2, asked).await.map_err(|_| ApiError::timeout(format!("the agent of {node} is silent"), 0))?
}

async fn forward(call: &Call<'_>, target: Target) -> Result<Response, ApiError> {
    let request = call.request;
    let upgrading = request.headers.contains_key(header::UPGRADE);
    let stream = connect(call.core, &target).await?;
    let failed = |error: hyper::Error| ApiError::internal(format!("error talking to backend: {error}"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let stop = call.core.stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            result = connection.with_upgrades() => if let Err(error) = result { tracing::debug!(%error, "a proxied connection ended") },
            () = stop.cancelled() => {}
        }
    });
    let host = HeaderValue::from_str(&format!("{}:{}", target.host, target.port)).map_err(ApiError::internal)?;
    let mut outgoing = http::Request::new(Full::new(request.body.clone()));
    *outgoing.method_mut() = if request.method == Method::HEAD { Method::GET } else { request.method.clone() };
    *outgoing.uri_mut() = target.path.parse().map_err(|_| ApiError::bad_request("the path cannot be passed on"))?;
    *outgoing.headers_mut() = passed_headers(&request.headers, upgrading);
    outgoing.headers_mut().insert(header::HOST, host);
    let incoming = sender.send_request(outgoing).await.map_err(failed)?;
    // The sender goes along: dropping it would end the connection while the body still comes.
    relay(call.core, request, incoming, sender, drop)
}

/// Passes an answer of somebody else's on: its body as it comes, or the connection itself where both ends agree to speak
/// something else. `connection` is what keeps it open; `done` gets it back when the body has come to its end.
pub fn relay<C: Send + 'static>(
    core: &Core,
    request: &Request,
    mut incoming: http::Response<hyper::body::Incoming>,
    connection: C,
    done: fn(C),
) -> Result<Response, ApiError> {
    if incoming.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = request.upgrade.clone() else {
            return Err(ApiError::bad_request("the connection cannot be upgraded"));
        };
        let other = hyper::upgrade::on(&mut incoming);
        let stop = core.stop.clone();
        // The answer is complete when the session ends, and not before.
        let trail = request.trail.clone();
        tokio::spawn(async move {
            let _trail = trail;
            let (Ok(client), Ok(other)) = tokio::join!(client, other) else { return };
            let (mut client, mut other) = (TokioIo::new(client), TokioIo::new(other));
            tokio::select! {
                // Either end closing is how these sessions end.
                _ = tokio::io::copy_bidirectional(&mut client, &mut other) => {}
                () = stop.cancelled() => {}
            }
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = incoming.headers().clone();
        return Ok(response);
    }
    let (parts, body) = incoming.into_parts();
    let chunks =
        futures::stream::unfold((BodyStream::new(body), Some(connection)), move |(mut body, connection)| async move {
            loop {
                match body.next().await {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => return Some((Ok(data), (body, connection))),
                        Err(_) => continue,
                    },
                    Some(Err(error)) => return Some((Err(std::io::Error::other(error)), (body, None))),
                    None => {
                        connection.map(done);
                        return None;
                    }
                }
            }
        });
    let mut response = Response::new(Body::stream(chunks));
    *response.status_mut() = parts.status;
    *response.headers_mut() = passed_headers(&parts.headers, false);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::{is_proxyable, split_name};

    #[test]
    fn an_object_cannot_send_this_server_to_its_own_host() {
        for host in ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "0.0.0.0", "::", "224.0.0.1", "localhost"] {
            assert!(!is_proxyable(host), "{host}");
        }
        assert!(is_proxyable("10.244.0.7") && is_proxyable("fd00::7"));
    }

    #[test]
    fn a_proxied_name_may_carry_a_scheme_and_a_port() {
        assert_eq!(split_name("web"), Some(("", "web", "")));
        assert_eq!(split_name("web:80"), Some(("", "web", "80")));
        assert_eq!(split_name("http:web:http"), Some(("http", "web", "http")));
        assert_eq!(split_name("https:web:"), Some(("https", "web", "")));
        assert_eq!(split_name("a:b:c:d"), None);
    }
}
