//! Calls of this server to servers of others: webhooks, conversions, aggregated APIs.
//!
//! Owns where such a server is ([`ClientConfig`], [`resolve`]), by what it is known, the connections to it (kept open
//! between calls) and the limits of a call. Never decides what an answer means.

mod connect;
pub mod resolve;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use connect::Lease;
pub use connect::{Destination, Outgoing, Trust};

use crate::core::Core;

/// An answer longer than this is none: four times what a request to this server may hold.
const ANSWER_LIMIT: usize = 4 * crate::http::BODY_LIMIT;

/// How long a connection may take to be made, within what the call may take.
pub const CONNECT: Duration = Duration::from_secs(10);

/// Where a server is, as `WebhookClientConfig` and `APIService` say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// Its address.
    pub endpoint: Endpoint,
    /// The path calls go to, with a slash in front.
    pub path: String,
    /// What its certificate is known by.
    pub trust: Trust,
}

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A host outside of the cluster's Services.
    Host {
        /// Its name or address.
        host: String,
        /// Its port.
        port: u16,
        /// As the URL has it.
        authority: String,
    },
    /// A Service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The port of the Service.
        port: u16,
    },
}

/// The texts of a list.
pub fn strings(list: Option<&Value>) -> Vec<String> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Base64 as JSON has bytes.
fn bytes(value: Option<&Value>) -> Result<Vec<u8>, String> {
    use base64::Engine;
    let text = value.and_then(Value::as_str).unwrap_or_default();
    base64::engine::general_purpose::STANDARD.decode(text).map_err(|error| format!("caBundle: {error}"))
}

impl ClientConfig {
    /// Reads a `WebhookClientConfig`.
    ///
    /// # Errors
    ///
    /// Why it leads nowhere; validation lets none of those in.
    pub fn read(config: &Value) -> Result<ClientConfig, String> {
        let bundle = bytes(config.get("caBundle"))?;
        let trust = if bundle.is_empty() { Trust::System } else { Trust::Bundle(bundle) };
        if let Some(service) = config.get("service").filter(|service| service.is_object()) {
            let path = service.get("path").and_then(Value::as_str).unwrap_or_default();
            let path = format!("/{}", path.trim_start_matches('/'));
            return Ok(ClientConfig { endpoint: Endpoint::service(service)?, path, trust });
        }
        let url = config.get("url").and_then(Value::as_str).ok_or("neither a url nor a service")?;
        let uri: http::Uri = url.parse().map_err(|error| format!("{url:?}: {error}"))?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("https"));
        let authority = authority.ok_or_else(|| format!("{url:?} is not https://host[:port]/path"))?;
        let endpoint = Endpoint::Host {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(443),
            authority: authority.to_string(),
        };
        Ok(ClientConfig { endpoint, path: uri.path().to_owned(), trust })
    }

    /// The URL of the calls, as messages have it.
    pub fn url(&self) -> String {
        format!("https://{}{}", self.endpoint.authority(), self.path)
    }
}

impl Endpoint {
    /// Reads a reference to a Service.
    ///
    /// # Errors
    ///
    /// When it names none.
    pub fn service(reference: &Value) -> Result<Endpoint, String> {
        let text = |field: &str| reference.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        let (Some(namespace), Some(name)) = (text("namespace"), text("name")) else {
            return Err("the service has no name or namespace".to_owned());
        };
        let port = reference.get("port").and_then(Value::as_u64).unwrap_or(443);
        let port = u16::try_from(port).map_err(|_| format!("port {port} is none"))?;
        Ok(Endpoint::Service { namespace: namespace.to_owned(), name: name.to_owned(), port })
    }

    /// Host and port as a URL has them.
    pub fn authority(&self) -> String {
        match self {
            Endpoint::Host { authority, .. } => authority.clone(),
            Endpoint::Service { namespace, name, port } => format!("{name}.{namespace}.svc:{port}"),
        }
    }

    /// The name its certificate must be for.
    pub fn server_name(&self) -> String {
        match self {
            Endpoint::Host { host, .. } => host.clone(),
            Endpoint::Service { namespace, name, .. } => format!("{name}.{namespace}.svc"),
        }
    }

    /// Where to connect to, in the order to try.
    async fn addresses(&self, core: &Core) -> Result<Vec<(String, u16)>, CallError> {
        match self {
            Endpoint::Host { host, port, .. } => Ok(vec![(host.clone(), *port)]),
            Endpoint::Service { namespace, name, port } => {
                let mut found = resolve::service(core, namespace, name, *port);
                // It may have been written an instant ago, on another connection.
                if found.is_err() && core.caches.consistent().await.is_ok() {
                    found = resolve::service(core, namespace, name, *port);
                }
                let mut addresses = found.map_err(|error| CallError::Unreachable(error.to_string()))?;
                // Load is spread by beginning anywhere.
                let first = core.config.entropy.within(0..addresses.len().max(1) as u64) as usize;
                addresses.rotate_left(first);
                Ok(addresses)
            }
        }
    }
}

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It took too long.
    #[error("context deadline exceeded")]
    Timeout,
    /// Nobody is there, or not who should be.
    #[error("{0}")]
    Unreachable(String),
    /// The connection broke.
    #[error("{0}")]
    Broken(String),
    /// The answer is none.
    #[error("{0}")]
    Answer(String),
    /// One of the others, in a call to this URL.
    #[error("{method} {url:?}: {source}")]
    To {
        /// `Post`, `Get`
        method: &'static str,
        /// The URL.
        url: String,
        /// What happened.
        source: Box<CallError>,
    },
}

/// A request to send out.
pub struct Call<'a> {
    /// Where to.
    pub endpoint: &'a Endpoint,
    /// By what the other end is known.
    pub trust: &'a Trust,
    /// Whether this server says who it is, with its front-proxy certificate.
    pub identify: bool,
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// The headers, `Host` left out.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Sends a request; its answer, and the connection it comes on.
///
/// # Errors
///
/// When nobody can be reached, or the connection breaks.
pub async fn send(core: &Core, call: Call<'_>) -> Result<(http::Response<Incoming>, Lease), CallError> {
    let mut request = http::Request::new(Full::new(call.body));
    *request.method_mut() = call.method;
    *request.uri_mut() =
        call.path.parse().map_err(|_| CallError::Unreachable("the path cannot be passed on".into()))?;
    *request.headers_mut() = call.headers;
    let host =
        HeaderValue::from_str(&call.endpoint.authority()).map_err(|error| CallError::Unreachable(error.to_string()))?;
    request.headers_mut().insert(header::HOST, host);
    let server_name = call.endpoint.server_name();
    let destinations = call.endpoint.addresses(core).await?.into_iter().map(|(host, port)| Destination {
        host,
        port,
        server_name: server_name.clone(),
        trust: call.trust.clone(),
        identify: call.identify,
    });
    core.outgoing.send(core, destinations.collect(), request).await
}

/// Posts JSON and returns the JSON that is answered, all within `limit`.
///
/// # Errors
///
/// Why there is no answer, with the URL, worded as Go's HTTP client does: operators search for these sentences.
pub async fn post(core: &Core, client: &ClientConfig, limit: Duration, body: Bytes) -> Result<Bytes, CallError> {
    // The other end learns how long it has.
    let path = format!("{}?timeout={}s", client.path, limit.as_secs());
    let url = format!("https://{}{path}", client.endpoint.authority());
    let mut headers = HeaderMap::new();
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json.clone());
    headers.insert(header::ACCEPT, json);
    headers.insert(header::USER_AGENT, HeaderValue::from_static("kube-apiserver-admission"));
    let call = Call {
        endpoint: &client.endpoint,
        trust: &client.trust,
        identify: false,
        method: Method::POST,
        path,
        headers,
        body,
    };
    let answered = async {
        let (answer, lease) = send(core, call).await?;
        whole(core, answer, lease).await
    };
    let answered = tokio::time::timeout(limit, answered).await.unwrap_or(Err(CallError::Timeout));
    answered.map_err(|source| CallError::To { method: "Post", url, source: Box::new(source) })
}

/// Gets a document, within `limit`, as `core`'s front proxy.
///
/// # Errors
///
/// Why there is none, with the URL.
pub async fn get(
    core: &Core,
    (endpoint, trust): (&Endpoint, &Trust),
    path: &str,
    headers: HeaderMap,
    limit: Duration,
) -> Result<Bytes, CallError> {
    let url = format!("https://{}{path}", endpoint.authority());
    let call = Call {
        endpoint,
        trust,
        identify: true,
        method: Method::GET,
        path: path.to_owned(),
        headers,
        body: Bytes::new(),
    };
    let answered = async {
        let (answer, lease) = send(core, call).await?;
        whole(core, answer, lease).await
    };
    let answered = tokio::time::timeout(limit, answered).await.unwrap_or(Err(CallError::Timeout));
    answered.map_err(|source| CallError::To { method: "Get", url, source: Box::new(source) })
}

/// Gets a document as nobody in particular, within `limit`.
///
/// # Errors
///
/// Why there is none, with the URL.
pub async fn fetch(core: &Core, client: &ClientConfig, limit: Duration) -> Result<Bytes, CallError> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static("kube-apiserver"));
    let call = Call {
        endpoint: &client.endpoint,
        trust: &client.trust,
        identify: false,
        method: Method::GET,
        path: client.path.clone(),
        headers,
        body: Bytes::new(),
    };
    let answered = async {
        let (answer, lease) = send(core, call).await?;
        whole(core, answer, lease).await
    };
    let answered = tokio::time::timeout(limit, answered).await.unwrap_or(Err(CallError::Timeout));
    answered.map_err(|source| CallError::To { method: "Get", url: client.url(), source: Box::new(source) })
}

/// A whole answer, if it is a good one; the connection goes back to wait for the next call.
async fn whole(core: &Core, answer: http::Response<Incoming>, lease: Lease) -> Result<Bytes, CallError> {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
    let body = body.map_err(|error| CallError::Broken(error.to_string()))?.to_bytes();
    core.outgoing.give_back(lease);
    if status == StatusCode::OK || status == StatusCode::CREATED {
        return Ok(body);
    }
    let said: String = String::from_utf8_lossy(&body).chars().take(500).collect();
    Err(CallError::Answer(match status {
        StatusCode::NOT_FOUND => "the server could not find the requested resource".to_owned(),
        _ if said.trim().is_empty() => format!("the server responded with the status code {}", status.as_u16()),
        _ => format!("the server responded with the status code {} ({:?})", status.as_u16(), said.trim()),
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_client_configuration_is_a_url_or_a_service() {
        let read = |value: Value| ClientConfig::read(&value);
        for (value, url, server_name) in [
            (json!({"url": "https://hooks.example.com/a/b"}), "https://hooks.example.com/a/b", "hooks.example.com"),
            (json!({"url": "https://127.0.0.1:8443"}), "https://127.0.0.1:8443/", "127.0.0.1"),
            (json!({"url": "https://[::1]:8443/x"}), "https://[::1]:8443/x", "::1"),
            (
                json!({"service": {"name": "hook", "namespace": "ns", "path": "/admit", "port": 8443}}),
                "https://hook.ns.svc:8443/admit",
                "hook.ns.svc",
            ),
            (json!({"service": {"name": "hook", "namespace": "ns"}}), "https://hook.ns.svc:443/", "hook.ns.svc"),
        ] {
            let config = read(value).unwrap();
            assert_eq!((config.url().as_str(), config.endpoint.server_name().as_str()), (url, server_name));
            assert_eq!(config.trust, Trust::System);
        }
        assert_eq!(read(json!({"url": "https://a", "caBundle": "YQ=="})).unwrap().trust, Trust::Bundle(b"a".to_vec()));
        for bad in [
            json!({}),
            json!({"url": "http://a"}),
            json!({"url": "https://a", "caBundle": "?"}),
            json!({"service": {"name": "a"}}),
        ] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }
}
