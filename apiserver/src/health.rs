//! `/healthz`, `/livez`, `/readyz`.

use http::StatusCode;
use proa_apimachinery::status::ApiError;

use crate::core::Core;
use crate::http::{Request, Response, text};

/// Answers a health path; nothing when the path is none.
pub fn find(core: &Core, request: &Request) -> Option<Result<Response, ApiError>> {
    let (root, check) = request.path[1..].split_once('/').unwrap_or((&request.path[1..], ""));
    if !matches!(root, "healthz" | "livez" | "readyz") {
        return None;
    }
    let stopping = core.stop.is_cancelled();
    let behind = core.caches.applied() < core.log.revision().0.saturating_sub(10_000);
    let mut checks = vec![("ping", true), ("log", true), ("etcd", core.log.is_available()), ("watch-cache", !behind)];
    if root == "readyz" {
        checks.push(("shutdown", !stopping));
    }
    if !check.is_empty() {
        return Some(match checks.iter().find(|(name, _)| *name == check) {
            None => Err(ApiError::no_such_resource()),
            Some((_, true)) => Ok(text(StatusCode::OK, "ok")),
            Some((_, false)) => Ok(text(StatusCode::INTERNAL_SERVER_ERROR, "internal server error: not ok")),
        });
    }
    let excluded: Vec<&str> = request.query.all("exclude").collect();
    checks.retain(|(name, _)| !excluded.contains(name));
    let good = checks.iter().all(|(_, good)| *good);
    let status = if good { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    if good && !request.query.raw().contains("verbose") {
        return Some(Ok(text(status, "ok")));
    }
    let lines: String = checks
        .iter()
        .map(|(name, good)| {
            format!("[{}]{name} {}\n", if *good { '+' } else { '-' }, if *good { "ok" } else { "failed" })
        })
        .collect();
    Some(Ok(text(status, format!("{lines}{root} check {}\n", if good { "passed" } else { "failed" }))))
}
