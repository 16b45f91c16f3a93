//! LIST: the first page from the watch cache, later pages from the store at the revision of the first.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::StatusCode;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;
use proa_apimachinery::table as wire;
use proa_store::{RangeError, Revision};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::selection::Selection;
use super::{Call, codec, get, table};
use crate::cache::Item;
use crate::conversion;
use crate::http::negotiate::{Encoding, Shape};
use crate::http::{Body, Response, respond};

/// Where a paged list goes on. Opaque to clients.
#[derive(Serialize, Deserialize)]
struct Token {
    /// The revision all pages are read at; 0 where the list goes on though that one is gone.
    rv: u64,
    /// The last key of the page before, without the resource's prefix.
    start: String,
}

/// A page of a list.
pub struct Page {
    /// Its items.
    pub items: Vec<Arc<Item>>,
    /// The revision they are true at.
    pub revision: u64,
    next: Option<String>,
    remaining: Option<usize>,
}

/// LIST.
pub async fn list(call: &Call<'_>) -> Result<Response, ApiError> {
    let selection = Selection::read(&call.resource, &call.request.query, call.namespace())?;
    let page = page(call, &selection).await?;
    answer(call, page)
}

/// Answers with a page in the form the client wants.
pub fn answer(call: &Call<'_>, page: Page) -> Result<Response, ApiError> {
    let chosen = call.chosen()?;
    let metadata = codec::list_metadata(page.revision, page.next.clone(), page.remaining);
    match chosen.shape {
        Shape::Object => Ok(items(call, page, metadata, chosen.encoding)),
        Shape::Table => {
            let objects: Vec<Object> = page.items.iter().map(|item| item.object()).collect();
            let table = table::of(call, &objects, metadata, true, chosen.version)?;
            Ok(get::encoded(StatusCode::OK, chosen.encoding, Bytes::from(table.to_string())))
        }
        Shape::Partial => {
            let objects: Vec<Object> = page.items.iter().map(|item| item.object()).collect();
            let mut list = wire::partial_metadata_list(objects.iter().map(|object| &object.0), metadata);
            table::set_version(&mut list, chosen.version);
            Ok(get::encoded(StatusCode::OK, chosen.encoding, Bytes::from(list.to_string())))
        }
    }
}

fn items(call: &Call<'_>, page: Page, metadata: Map<String, Value>, encoding: Encoding) -> Response {
    let head = format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{},\"items\":[",
        Value::from(call.resource.kind.list_kind.as_ref()),
        Value::from(call.resource.api_version()),
        Value::Object(metadata)
    );
    let items: Vec<Arc<Item>> = if call.resource.stored_as_served() {
        page.items
    } else {
        page.items
            .iter()
            .map(|item| {
                Arc::new(Item::new(item.key.clone(), call.resource.served(&item.bytes), item.created, item.revision))
            })
            .collect()
    };
    let body = Body::list(Bytes::from(head), items, Bytes::from_static(b"]}\n"), encoding);
    respond(StatusCode::OK, "application/json", body)
}

/// The page a request asks for.
pub async fn page(call: &Call<'_>, selection: &Selection) -> Result<Page, ApiError> {
    let query = &call.request.query;
    let limit: usize = match query.get("limit") {
        None => 0,
        Some(limit) => limit.parse().map_err(|_| ApiError::bad_request(format!("invalid limit {limit:?}")))?,
    };
    let version = match query.get("resourceVersion") {
        None => None,
        Some(version) => Some(
            version
                .parse::<u64>()
                .map_err(|_| ApiError::bad_request(format!("invalid resource version {version:?}")))?,
        ),
    };
    let matching = query.get("resourceVersionMatch");
    if let Some(token) = query.get("continue") {
        if version.is_some_and(|version| version != 0) {
            return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
        }
        let token: Token = URL_SAFE_NO_PAD
            .decode(token)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .ok_or_else(|| ApiError::bad_request("continue key is not valid"))?;
        let after = format!("{}{}", call.resource.cache.prefix(""), token.start);
        let at = match token.rv {
            0 => call.core.log.current().await.map_err(range_error)?.0,
            revision => revision,
        };
        let page = from_store(call, selection, limit, at, Some(after)).await;
        return page.map_err(|error| go_on(error, token));
    }
    match (version, matching) {
        (None, Some(_)) => {
            return Err(ApiError::bad_request("resourceVersionMatch is forbidden unless resourceVersion is provided"));
        }
        (Some(0), Some("Exact")) => {
            return Err(ApiError::bad_request("resourceVersionMatch \"Exact\" is forbidden for resourceVersion 0"));
        }
        (Some(exact), Some("Exact")) => {
            let page = from_store(call, selection, limit, exact, None).await;
            return page.map_err(|error| match error.code {
                410 => ApiError::expired("The resourceVersion for the provided list is too old."),
                _ => error,
            });
        }
        (_, Some(other)) if other != "NotOlderThan" => {
            return Err(ApiError::bad_request(format!("invalid resourceVersionMatch {other:?}")));
        }
        (Some(0), _) => {}
        (Some(version), _) => drop(call.core.caches.at_least(version).await?),
        (None, None) => drop(call.core.caches.consistent().await?),
    }
    from_cache(call, selection, limit).await
}

async fn from_cache(call: &Call<'_>, selection: &Selection, limit: usize) -> Result<Page, ApiError> {
    let cache = &call.resource.cache;
    let applied = call.core.caches.applied();
    let snapshot = match &selection.name {
        // One name: no need to walk everything.
        Some(name) if !call.namespace().is_empty() || !call.resource.namespaced() => crate::cache::Snapshot {
            items: cache.get(call.namespace(), name).into_iter().collect(),
            revision: applied.max(cache.last_revision()),
        },
        _ => cache.snapshot(call.namespace(), applied),
    };
    let everything = selection.is_everything();
    // Before anything is selected: fields are those of the version asked for.
    let mut items = conversion::items(call.core, &call.resource, snapshot.items).await?;
    if !everything {
        items.retain(|item| selection.matches(&call.resource, item));
    }
    let (mut next, mut remaining) = (None, None);
    if limit > 0 && items.len() > limit {
        remaining = everything.then_some(items.len() - limit);
        items.truncate(limit);
        next = token(call, snapshot.revision, items.last().map(|item| &*item.key));
    }
    Ok(Page { items, revision: snapshot.revision, next, remaining })
}

async fn from_store(
    call: &Call<'_>,
    selection: &Selection,
    limit: usize,
    at: u64,
    after: Option<String>,
) -> Result<Page, ApiError> {
    let prefix = call.resource.cache.prefix(call.namespace());
    let everything = selection.is_everything();
    let mut items: Vec<Arc<Item>> = Vec::new();
    let mut after = after;
    loop {
        let wanted = if limit == 0 {
            5_000
        } else if everything {
            limit - items.len()
        } else {
            limit.max(500)
        };
        let chunk =
            call.core.log.range(&prefix, Some(Revision(at)), after.as_deref(), wanted).await.map_err(range_error)?;
        after = chunk.entries.last().map(|entry| entry.key.to_string());
        let received = chunk.entries.len();
        let (mut full, mut taken) = (false, 0);
        let stored = chunk.entries.into_iter().map(|entry| Arc::new(Item::from_entry(entry))).collect();
        for item in conversion::items(call.core, &call.resource, stored).await? {
            taken += 1;
            if everything || selection.matches(&call.resource, &item) {
                items.push(item);
                if limit > 0 && items.len() == limit {
                    full = true;
                    break;
                }
            }
        }
        if full {
            // Without selectors a chunk is exactly what was wanted. With selectors nobody knows whether more
            // will match: the next page may be empty, as on Kubernetes.
            let more = chunk.more || taken < received;
            let next = if more { token(call, at, items.last().map(|item| &*item.key)) } else { None };
            let remaining = (everything && more).then_some(chunk.remaining);
            return Ok(Page { items, revision: at, next, remaining });
        }
        if !chunk.more {
            return Ok(Page { items, revision: at, next: None, remaining: None });
        }
    }
}

fn token(call: &Call<'_>, revision: u64, last: Option<&str>) -> Option<String> {
    let start = last?.strip_prefix(&call.resource.cache.prefix(""))?.to_owned();
    encoded(&Token { rv: revision, start })
}

fn encoded(token: &Token) -> Option<String> {
    Some(URL_SAFE_NO_PAD.encode(serde_json::to_vec(token).ok()?))
}

/// A list whose revision is gone may go on at a newer one, if its reader can do with that.
fn go_on(mut error: ApiError, token: Token) -> ApiError {
    if error.code == 410 {
        error.details.get_or_insert_default().go_on = encoded(&Token { rv: 0, ..token }).unwrap_or_default();
    }
    error
}

fn range_error(error: RangeError) -> ApiError {
    match error {
        RangeError::Compacted { .. } => ApiError::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to read on in a newer, inconsistent one.",
        ),
        RangeError::FutureRevision { requested, current } => {
            ApiError::timeout(format!("Too large resource version: {requested}, current: {current}"), 1)
        }
        RangeError::Closed => ApiError::unavailable("the store is closed"),
        RangeError::Unavailable(_) => ApiError::unavailable(error.to_string()),
        RangeError::Unreadable { .. } => ApiError::internal(error),
    }
}
