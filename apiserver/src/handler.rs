//! One request from its credential to its answer.
//!
//! Owns the order: read → authenticate → impersonate → limit → authorize → answer. A panic in here ends one
//! request with 500, never the process.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use hyper::upgrade::OnUpgrade;
use proa_apimachinery::status::{ApiError, GroupResource};
use serde_json::json;

use crate::authz::{self, Attributes};
use crate::core::Core;
use crate::http::{self as wire, Request, Response};
use crate::request_info::{Query, RequestInfo};
use crate::user::{AUTHENTICATED, User};
use crate::{aggregation, authn, discovery, health, openapi, registry};

/// A request before anybody knows who sends it.
pub struct Incoming {
    /// The method.
    pub method: Method,
    /// The path.
    pub path: String,
    /// The raw query.
    pub query: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The user the connection itself vouches for: its client certificate's, or the one an in-process
    /// client was made for.
    pub peer: Option<User>,
    /// The connection, if it can be upgraded.
    pub upgrade: Option<OnUpgrade>,
}

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Answers a request, whatever it is.
pub async fn handle(core: &Arc<Core>, incoming: Incoming) -> Response {
    let started = Instant::now();
    let query = Query::parse(&incoming.query);
    let info = RequestInfo::parse(&incoming.method, &incoming.path, &query);
    let answered = AssertUnwindSafe(answer(core, incoming, query, info.clone())).catch_unwind().await;
    let mut response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => wire::error(&error),
        Err(_) => {
            tracing::error!(path = %info.path, verb = info.verb, "a request handler panicked");
            wire::error(&ApiError::internal("the server failed to answer this request"))
        }
    };
    if let Ok(id) = HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()) {
        response.headers_mut().insert(AUDIT_ID, id);
    }
    core.metrics.answered(&info, response.status().as_u16(), started.elapsed());
    tracing::debug!(verb = info.verb, path = %info.path, code = response.status().as_u16(), took = ?started.elapsed(), "request");
    response
}

async fn answer(core: &Arc<Core>, incoming: Incoming, query: Query, info: RequestInfo) -> Result<Response, ApiError> {
    if incoming.body.len() > wire::BODY_LIMIT {
        return Err(ApiError::too_large(wire::BODY_LIMIT));
    }
    let user = authn::authenticate(core, &incoming.headers, incoming.peer.as_ref()).await?;
    let user = impersonated(core, &incoming.headers, user)?;
    let mutating = !matches!(incoming.method, Method::GET | Method::HEAD | Method::OPTIONS);
    // Health is asked when things go badly: it never waits behind other requests.
    let _place = if info.is_resource { core.flow.enter(&user, mutating).await? } else { None };
    let _running = core.metrics.running(mutating);
    if let Err(error) = authz::authorize(core, &user, &info) {
        // The roles may have been written an instant ago, on another connection.
        core.caches.consistent().await?;
        if authz::authorize(core, &user, &info).is_err() {
            return Err(error);
        }
    }
    let request = Request {
        method: incoming.method,
        path: incoming.path,
        query,
        headers: incoming.headers,
        body: incoming.body,
        user,
        info,
        upgrade: incoming.upgrade,
    };
    if let Some(remote) = core.aggregation.of_path(&request.path) {
        return aggregation::pass_on(core, &request, &remote).await;
    }
    if request.info.is_resource {
        return registry::dispatch(core, &request).await;
    }
    if !matches!(request.method, Method::GET | Method::HEAD) {
        return Err(ApiError::method_not_allowed(GroupResource::new("", ""), request.info.verb));
    }
    if let Some(remote) = openapi::of_remote(core, &request.path) {
        return aggregation::openapi(core, &request, &remote).await;
    }
    if let Some(answer) = health::find(core, &request)
        .or_else(|| discovery::find(core, &request))
        .or_else(|| openapi::find(core, &request))
    {
        return answer;
    }
    match request.path.as_str() {
        "/" => Ok(wire::json(
            StatusCode::OK,
            &json!({"paths": ["/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v3", "/readyz", "/version"]}),
        )),
        "/metrics" => Ok(wire::respond(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            core.metrics.text(&core.caches),
        )),
        "/.well-known/openid-configuration" => Ok(wire::json(StatusCode::OK, &core.tokens.openid())),
        "/openid/v1/jwks" => {
            Ok(wire::respond(StatusCode::OK, "application/jwk-set+json", core.tokens.jwks().to_string()))
        }
        _ => Err(ApiError::no_such_resource()),
    }
}

/// The user a request wants to be, if the caller may be them.
fn impersonated(core: &Core, headers: &HeaderMap, user: User) -> Result<User, ApiError> {
    let values = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
    };
    let names = values("impersonate-user");
    let groups = values("impersonate-group");
    let Some(name) = names.into_iter().next() else {
        if !groups.is_empty() || headers.contains_key("impersonate-uid") {
            return Err(ApiError::bad_request("requested [{Group}] without impersonating a user"));
        }
        return Ok(user);
    };
    let check = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let what =
            Attributes { verb: "impersonate", group, resource, subresource, namespace, name, ..Attributes::default() };
        if authz::allowed(core, &user, &what) { Ok(()) } else { Err(authz::forbidden(&user, true, &what)) }
    };
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, account)) => check("", "serviceaccounts", "", namespace, account)?,
        None => check("", "users", "", "", &name)?,
    }
    for group in &groups {
        check("", "groups", "", "", group)?;
    }
    let mut new = match account {
        Some((namespace, account)) => User::service_account(namespace, account, ""),
        None => User { name, ..User::default() },
    };
    new.groups.extend(groups);
    let anonymous = new.name == crate::user::ANONYMOUS;
    if !anonymous && !new.in_group(AUTHENTICATED) {
        new.groups.push(AUTHENTICATED.to_owned());
    }
    if let Some(uid) = values("impersonate-uid").into_iter().next() {
        check("authentication.k8s.io", "uids", "", "", &uid)?;
        new.uid = uid;
    }
    for (header, value) in headers {
        let Some(key) = header.as_str().strip_prefix("impersonate-extra-") else { continue };
        let value = value.to_str().unwrap_or_default();
        check("authentication.k8s.io", "userextras", key, "", value)?;
        new.extra.entry(crate::request_info::decode(key)).or_default().push(value.to_owned());
    }
    Ok(new)
}
