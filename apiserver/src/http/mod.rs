//! Requests and responses as the rest of the crate sees them: plain data, whatever carried them.

mod body;
pub mod form;
pub mod negotiate;

pub use body::Body;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use proa_apimachinery::status::ApiError;
use serde_json::Value;

use self::negotiate::Encoding;
use crate::audit::Trail;
use crate::request_info::{Query, RequestInfo};
use crate::user::User;

/// A response of this server.
pub type Response = http::Response<Body>;

/// The largest body a request may have (Kubernetes' own limit).
pub const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// How deep a JSON or YAML body may nest. Kubernetes objects stay far below; deeper ones are attacks.
pub const MAX_DEPTH: usize = 256;

/// A request, read in full, its caller known.
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path as sent.
    pub path: String,
    /// The query.
    pub query: Query,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Who asks.
    pub user: User,
    /// What for.
    pub info: RequestInfo,
    /// The connection, if the client offered to upgrade it.
    pub upgrade: Option<OnUpgrade>,
    /// What the audit log is told of it.
    pub trail: Trail,
}

impl Request {
    /// A header as text.
    pub fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A response of bytes with a content type.
pub fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A JSON response that is no object of the API.
pub fn json(status: StatusCode, value: &Value) -> Response {
    respond(status, "application/json", value.to_string())
}

/// An object of the API: in the encoding that was chosen, or else in one its client takes.
pub fn object(status: StatusCode, json: impl Into<Bytes>, encoding: Option<Encoding>) -> Response {
    respond(status, "application/json", Body::Object(json.into(), encoding))
}

/// An object of the API that has one shape: a Status, a review, discovery.
pub fn answer(status: StatusCode, value: &Value) -> Response {
    object(status, value.to_string(), None)
}

/// A plain text response.
pub fn text(status: StatusCode, body: impl Into<String>) -> Response {
    respond(status, "text/plain; charset=utf-8", body.into())
}

/// An error as a Kubernetes Status.
pub fn error(error: &ApiError) -> Response {
    let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = answer(status, &error.to_status());
    let retry = error.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    if retry > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry));
    }
    if error.code == 401 {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"proa\""));
    }
    response
}

/// Adds `Warning` headers (RFC 7234 §5.5), which kubectl prints.
pub fn warn(response: &mut Response, warnings: &[String]) {
    for warning in warnings {
        let quoted: String = warning.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let quoted = quoted.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
