//! GET of one object, and answering with one object in the form the client wants.

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;
use proa_apimachinery::table as wire;

use super::{Call, table};
use crate::conversion;
use crate::http::negotiate::{Encoding, Shape};
use crate::http::{Response, object};

/// GET.
pub async fn get(call: &Call<'_>) -> Result<Response, ApiError> {
    let core = call.core;
    // resourceVersion=0 is content with whatever the cache holds; everything else reads consistently.
    match call.request.query.get("resourceVersion") {
        Some("0") => {}
        Some(version) => {
            let version: u64 =
                version.parse().map_err(|_| ApiError::bad_request(format!("invalid resource version {version:?}")))?;
            core.caches.at_least(version).await?;
        }
        None => drop(core.caches.consistent().await?),
    }
    let item = call.resource.cache.get(call.namespace(), call.name()).ok_or_else(|| call.not_found(call.name()))?;
    let item = conversion::item(core, &call.resource, &item).await?;
    answer(call, StatusCode::OK, call.resource.served(&item.bytes))
}

/// Answers with one object, given its JSON.
pub fn answer(call: &Call<'_>, status: StatusCode, stored: Bytes) -> Result<Response, ApiError> {
    let chosen = call.chosen()?;
    let json = match chosen.shape {
        Shape::Object => stored,
        Shape::Partial => {
            let object: Object = decode(&stored)?;
            let mut partial = wire::partial_metadata(&object.0);
            table::set_version(&mut partial, chosen.version);
            Bytes::from(partial.to_string())
        }
        Shape::Table => {
            let object: Object = decode(&stored)?;
            let revision = object.resource_version().parse().unwrap_or(0);
            Bytes::from(
                table::of(call, &[object], super::codec::list_metadata(revision, None, None), true, chosen.version)?
                    .to_string(),
            )
        }
    };
    Ok(encoded(status, chosen.encoding, json))
}

/// A response in the chosen encoding, given its JSON.
pub fn encoded(status: StatusCode, encoding: Encoding, json: Bytes) -> Response {
    let mut response = object(status, json, Some(encoding));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

fn decode(bytes: &[u8]) -> Result<Object, ApiError> {
    serde_json::from_slice(bytes).map_err(ApiError::internal)
}
