//! One request from its credential to its answer.
//!
//! Owns the order: read → authenticate → begin the audit trail → impersonate → limit → authorize → answer. A panic in here ends one
//! request with 500, never the process.

use std::net::{IpAddr, Ipv4Addr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use hyper::upgrade::OnUpgrade;
use proa_apimachinery::status::{ApiError, GroupResource};
use serde_json::json;

use crate::audit::{self, Trail};
use crate::authz::{self, Attributes, Verdict};
use crate::core::Core;
use crate::http::{self as wire, Request, Response};
use crate::request_info::{Query, RequestInfo};
use crate::user::User;
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
    /// Where the connection comes from; none within this process.
    pub from: Option<IpAddr>,
    /// The connection, if it can be upgraded.
    pub upgrade: Option<OnUpgrade>,
}

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Answers a request, whatever it is.
pub async fn handle(core: &Arc<Core>, incoming: Incoming) -> Response {
    let started = Instant::now();
    let query = Query::parse(&incoming.query);
    let wanted = wire::form::Wanted::of(&incoming.headers);
    let info = RequestInfo::parse(&incoming.method, &incoming.path, &query);
    // Whoever follows a request over several servers gives it its id.
    let id = incoming.headers.get(AUDIT_ID).filter(|id| !id.is_empty() && id.len() <= 64).cloned();
    let id = id.or_else(|| HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).ok());
    let mut trail = Trail::default();
    let answered =
        AssertUnwindSafe(answer(core, incoming, query, info.clone(), id.as_ref(), &mut trail)).catch_unwind();
    let mut response = match answered.await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => wire::error(&error),
        Err(_) => {
            tracing::error!(path = %info.path, verb = info.verb, "a request handler panicked");
            std::mem::take(&mut trail).panicked();
            wire::error(&ApiError::internal("the server failed to answer this request"))
        }
    };
    // The audit log is told in JSON, whatever the client wants.
    trail.answered(&mut response);
    response = wire::form::finish(response, &wanted).await;
    if let Some(id) = id {
        response.headers_mut().insert(AUDIT_ID, id);
    }
    core.metrics.answered(&info, response.status().as_u16(), started.elapsed());
    tracing::debug!(verb = info.verb, path = %info.path, code = response.status().as_u16(), took = ?started.elapsed(), "request");
    response
}

async fn answer(
    core: &Arc<Core>,
    incoming: Incoming,
    query: Query,
    info: RequestInfo,
    id: Option<&HeaderValue>,
    trail: &mut Trail,
) -> Result<Response, ApiError> {
    if incoming.body.len() > wire::BODY_LIMIT {
        return Err(ApiError::too_large(wire::BODY_LIMIT));
    }
    let seen = || audit::Seen {
        id: id.and_then(|id| id.to_str().ok()).unwrap_or_default(),
        uri: if incoming.query.is_empty() {
            incoming.path.clone()
        } else {
            format!("{}?{}", incoming.path, incoming.query)
        },
        headers: &incoming.headers,
        from: incoming.from.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        received: core.now(),
    };
    let caller = match authn::authenticate(core, &incoming.headers, incoming.peer.as_ref(), &incoming.path).await {
        Ok(caller) => caller,
        Err(refusal) => {
            if let Some(audit) = &core.audit {
                audit.refused(&info, &seen(), "bearer");
            }
            return Err(refusal);
        }
    };
    if let Some(audit) = &core.audit {
        *trail = audit.begin(&caller, &info, &seen())?;
        trail.request_body(&incoming.headers, &incoming.body);
    }
    let user = match authn::impersonation::impersonated(core, &incoming.headers, &caller).await? {
        Some(user) => {
            trail.impersonates(&user);
            user
        }
        None => caller,
    };
    let mutating = !matches!(incoming.method, Method::GET | Method::HEAD | Method::OPTIONS);
    // Health is asked when things go badly: it never waits behind other requests.
    let _place = if info.is_resource { core.flow.enter(&user, mutating).await? } else { None };
    let _running = core.metrics.running(mutating);
    let what = Attributes::from(&info);
    let mut verdict = authz::decide(core, &user, &what);
    if verdict == Verdict::NoOpinion {
        // The roles may have been written an instant ago, on another connection.
        core.caches.consistent().await?;
        verdict = authz::decide(core, &user, &what);
    }
    trail.annotate(audit::DECISION, || if verdict.is_allowed() { "allow" } else { "forbid" }.to_owned());
    trail.annotate(audit::REASON, || verdict.reason());
    if !verdict.is_allowed() {
        return Err(authz::forbidden(&user, info.is_resource, &what));
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
        trail: trail.clone(),
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
