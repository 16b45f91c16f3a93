//! Requests of the server to itself, through the same path as everybody's.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, header};
use proa_apimachinery::status::ApiError;
use serde_json::Value;

use super::dispatch;
use crate::core::Core;
use crate::http::Request;
use crate::request_info::{Query, RequestInfo};
use crate::user::{MASTERS, User};

/// Sends a request; a null body is none, and a PATCH is a merge patch.
pub async fn send(core: &Arc<Core>, method: Method, path: &str, query: &str, body: &Value) -> Result<(), ApiError> {
    let request = request(method, path, query, body);
    Box::pin(dispatch(core, &request)).await.map(drop)
}

/// Such a request.
pub fn request(method: Method, path: &str, query: &str, body: &Value) -> Request {
    let query = Query::parse(query);
    let info = RequestInfo::parse(&method, path, &query);
    let mut headers = HeaderMap::new();
    let media = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(header::USER_AGENT, HeaderValue::from_static("proa-apiserver"));
    let body = if body.is_null() { bytes::Bytes::new() } else { bytes::Bytes::from(body.to_string()) };
    let user = User::new("system:apiserver", &[MASTERS]);
    Request {
        method,
        path: path.to_owned(),
        query,
        headers,
        body,
        user,
        info,
        upgrade: None,
        trail: Default::default(),
    }
}
