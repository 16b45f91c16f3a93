//! WATCH: a stream of changes, read from the ring of the watch cache.
//!
//! A watcher holds a cursor, no buffer: it wakes when the cache changes, reads what is new, and sends the
//! line that was encoded once for everybody. One that reads too slowly finds its cursor fallen out of the
//! ring and is told to list again (410).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream;
use http::{HeaderValue, StatusCode, header};
use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;
use proa_apimachinery::table as wire;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::selection::Selection;
use super::{Call, codec, table};
use crate::cache::{Change, ChangeKind, EventType, Item, event_line, protobuf_frame};
use crate::conversion;
use crate::core::Core;
use crate::http::negotiate::{Chosen, Encoding, STREAMS, Shape};
use crate::http::{Body, Response, respond};
use crate::metrics::Gauge;
use crate::outside::Entropy;
use crate::resources::Resource;

/// How often a watcher that allows bookmarks gets one, events or not.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// How many changes are taken at a time.
const BATCH: usize = 512;

/// What it takes to hand a change to one watcher, more or less. All watchers of a kind together are not told more often than
/// they can be: what happens meanwhile goes out in one piece. With few of them nobody waits, and never for long.
const PER_WATCHER: Duration = Duration::from_micros(10);
const ROUND: std::ops::Range<Duration> = Duration::from_millis(1)..Duration::from_millis(5);

/// How long the next round of so many watchers has to wait after the last.
fn round(watchers: usize) -> Option<Duration> {
    let round = PER_WATCHER.saturating_mul(u32::try_from(watchers).unwrap_or(u32::MAX));
    (round >= ROUND.start).then(|| round.min(ROUND.end))
}

/// Lines are joined up to this size: fewer writes when much happens at once.
const CHUNK: usize = 64 * 1024;

/// Marks the bookmark that ends the initial events (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

struct Watcher {
    core: Arc<Core>,
    resource: Arc<Resource>,
    selection: Selection,
    form: Form,
    cursor: u64,
    initial: VecDeque<Arc<Item>>,
    end_of_initial: bool,
    bookmarks: bool,
    changed: tokio::sync::watch::Receiver<u64>,
    deadline: Instant,
    next_bookmark: Instant,
    told: Option<Instant>,
    over: bool,
    _open: Gauge,
}

/// How objects are shown to this watcher.
struct Form {
    chosen: Chosen,
    include: wire::IncludeObject,
    head_sent: bool,
}

/// WATCH.
pub async fn watch(call: &Call<'_>) -> Result<Response, ApiError> {
    let core = call.core;
    let query = &call.request.query;
    let chosen = call.chosen()?;
    let media_type = chosen.encoding.stream_type().ok_or_else(|| ApiError::not_acceptable(STREAMS))?;
    let include = query.get("includeObject").unwrap_or_default();
    let include = wire::IncludeObject::parse(include)
        .ok_or_else(|| ApiError::bad_request(format!("unrecognized includeObject value: {include:?}")))?;
    let mut selection = Selection::read(&call.resource, query, call.namespace())?;
    if !call.name().is_empty() {
        selection = selection.with_name(call.name());
    }
    let bookmarks = query.flag("allowWatchBookmarks");
    let send_initial = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
    let version = match query.get("resourceVersion") {
        None => None,
        Some(version) => Some(
            version
                .parse::<u64>()
                .map_err(|_| ApiError::bad_request(format!("invalid resource version {version:?}")))?,
        ),
    };
    match (send_initial, query.get("resourceVersionMatch")) {
        (Some(_), Some("NotOlderThan")) | (None, None) => {}
        (Some(_), _) => {
            return Err(ApiError::bad_request(
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        (None, Some(_)) => {
            return Err(ApiError::bad_request(
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
    }
    if send_initial == Some(true) && !bookmarks {
        return Err(ApiError::bad_request("sendInitialEvents requires allowWatchBookmarks"));
    }
    let changed = call.resource.cache.subscribe();
    match version {
        None => drop(core.caches.consistent().await?),
        Some(0) => {}
        Some(version) => drop(core.caches.at_least(version).await?),
    }
    let applied = core.caches.applied();
    let with_state = send_initial.unwrap_or(matches!(version, None | Some(0)));
    let (cursor, initial) = if with_state {
        let snapshot = call.resource.cache.snapshot(call.namespace(), applied);
        let items = conversion::items(core, &call.resource, snapshot.items).await?;
        let items = items.into_iter().filter(|item| selection.matches(&call.resource, item)).collect();
        (snapshot.revision, items)
    } else {
        (version.filter(|version| *version > 0).unwrap_or(applied), VecDeque::new())
    };
    let now = Instant::now();
    let watcher = Watcher {
        core: Arc::clone(core),
        resource: Arc::clone(&call.resource),
        selection,
        form: Form { chosen, include, head_sent: false },
        cursor,
        initial,
        end_of_initial: send_initial == Some(true),
        bookmarks,
        changed,
        deadline: now + timeout(query.get("timeoutSeconds"), &core.config.entropy)?,
        next_bookmark: now + BOOKMARK_EVERY,
        told: None,
        over: false,
        _open: core.metrics.watcher(&call.resource.kind),
    };
    let lines = stream::unfold(watcher, |mut watcher| async move {
        let lines = watcher.next().await?;
        Some((Ok(lines), watcher))
    });
    let mut response = respond(StatusCode::OK, media_type, Body::stream(lines));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

/// As asked, or between half an hour and an hour, so that watches do not all end at once.
fn timeout(given: Option<&str>, entropy: &Entropy) -> Result<Duration, ApiError> {
    match given {
        None | Some("0") => Ok(Duration::from_secs(entropy.within(1_800..3_600))),
        Some(seconds) => seconds
            .parse()
            .map(Duration::from_secs)
            .map_err(|_| ApiError::bad_request(format!("invalid timeoutSeconds {seconds:?}"))),
    }
}

impl Watcher {
    /// The next lines; nothing when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        loop {
            if !self.initial.is_empty() {
                return Some(self.initial_lines());
            }
            if std::mem::take(&mut self.end_of_initial) {
                return Some(self.bookmark(true));
            }
            if let (Some(told), Some(round)) = (self.told.take(), round(self.resource.cache.watchers())) {
                tokio::time::sleep_until(told + round).await;
            }
            self.changed.borrow_and_update();
            // Read before the changes: everything up to here is then certainly among them.
            let applied = self.core.caches.applied();
            match self.resource.cache.changes_after(self.cursor, BATCH) {
                Err(too_old) => {
                    self.over = true;
                    return Some(self.expired(too_old.floor));
                }
                Ok(changes) if changes.is_empty() => self.cursor = self.cursor.max(applied),
                Ok(changes) => {
                    let last = changes.last().map_or(self.cursor, |change| change.revision);
                    let changes = match conversion::changes(&self.core, &self.resource, changes).await {
                        Ok(changes) => changes,
                        Err(error) => {
                            self.over = true;
                            return Some(self.form.failed(&error));
                        }
                    };
                    let lines = self.lines(&changes);
                    self.cursor = last;
                    if !lines.is_empty() {
                        self.told = Some(Instant::now());
                        return Some(lines);
                    }
                    continue;
                }
            }
            let core = Arc::clone(&self.core);
            tokio::select! {
                biased;
                woken = self.changed.changed() => woken.ok()?,
                () = tokio::time::sleep_until(self.deadline) => return None,
                () = core.stop.cancelled() => return None,
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                    // Caught up with the cache just above, so this revision is true.
                    self.cursor = self.cursor.max(applied);
                    return Some(self.bookmark(false));
                }
            }
        }
    }

    fn initial_lines(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        while let Some(item) = self.initial.pop_front() {
            let object = self.form.show(&self.core, &self.resource, &item.bytes);
            out.extend_from_slice(&self.form.event(EventType::Added.name(), &object));
            if out.len() >= CHUNK {
                break;
            }
        }
        out.freeze()
    }

    fn lines(&mut self, changes: &[Arc<Change>]) -> Bytes {
        let mut single: Option<Bytes> = None;
        let mut joined = BytesMut::new();
        for change in changes {
            let Some(line) = self.line(change) else { continue };
            match single.take() {
                None if joined.is_empty() => single = Some(line),
                first => {
                    joined.extend_from_slice(&first.unwrap_or_default());
                    joined.extend_from_slice(&line);
                }
            }
        }
        // The usual case, one event, is sent from the buffer all watchers share.
        single.unwrap_or_else(|| joined.freeze())
    }

    /// The event of a change for this watcher, if it is one for it.
    fn line(&mut self, change: &Change) -> Option<Bytes> {
        let matches = |item: &Arc<Item>| self.selection.matches(&self.resource, item);
        let before = change.previous.as_ref().is_some_and(matches);
        let event = match change.kind {
            ChangeKind::Put => match (before, matches(&change.item)) {
                (false, true) => EventType::Added,
                (true, true) => EventType::Modified,
                (true, false) => return self.left_view(change),
                (false, false) => return None,
            },
            ChangeKind::Delete if before => EventType::Deleted,
            ChangeKind::Delete => return None,
        };
        if self.form.chosen.shape == Shape::Object && self.resource.serves_as_stored(&change.item.bytes) {
            return Some(match self.form.chosen.encoding {
                Encoding::Protobuf => change.protobuf_frame(event),
                _ => change.frame(event),
            });
        }
        let object = self.form.show(&self.core, &self.resource, &change.item.bytes);
        Some(self.form.event(event.name(), &object))
    }

    /// An object that no longer matches is deleted as far as this watcher sees: it gets the last state
    /// that did match, at the new revision.
    fn left_view(&mut self, change: &Change) -> Option<Bytes> {
        let mut object = change.previous.as_ref()?.object();
        object.metadata_mut().insert("resourceVersion".into(), Value::from(change.revision.to_string()));
        let object = self.form.show(&self.core, &self.resource, &codec::plain(&object));
        Some(self.form.event(EventType::Deleted.name(), &object))
    }

    fn bookmark(&self, end_of_initial: bool) -> Bytes {
        let mut metadata = Map::new();
        metadata.insert("resourceVersion".into(), Value::from(self.cursor.to_string()));
        metadata.insert("creationTimestamp".into(), Value::Null);
        if end_of_initial {
            metadata.insert("annotations".into(), json!({INITIAL_EVENTS_END: "true"}));
        }
        let kind = &self.resource.kind;
        let object = match self.form.chosen.shape {
            Shape::Object => {
                json!({"kind": kind.kind, "apiVersion": self.resource.api_version(), "metadata": metadata})
            }
            Shape::Partial => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{}", self.form.chosen.version), "metadata": metadata})
            }
            Shape::Table => {
                let partial =
                    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
                let version = codec::list_metadata(self.cursor, None, None);
                let mut table = wire::table(&[], vec![json!({"cells": [], "object": partial})], version);
                table::set_version(&mut table, self.form.chosen.version);
                table
            }
        };
        self.form.event("BOOKMARK", object.to_string().as_bytes())
    }

    fn expired(&self, floor: u64) -> Bytes {
        self.form.failed(&ApiError::expired(format!("too old resource version: {} ({floor})", self.cursor)))
    }
}

impl Form {
    /// What ends a watch before its time.
    fn failed(&self, error: &ApiError) -> Bytes {
        self.event("ERROR", error.to_status().to_string().as_bytes())
    }

    /// An event on the wire, given its object's JSON.
    fn event(&self, name: &str, object: &[u8]) -> Bytes {
        match self.chosen.encoding {
            Encoding::Protobuf => protobuf_frame(name, object),
            _ => event_line(name, object),
        }
    }

    fn show(&mut self, core: &Core, resource: &Resource, bytes: &Bytes) -> Bytes {
        let bytes = resource.served(bytes);
        if self.chosen.shape == Shape::Object {
            return bytes;
        }
        if self.chosen.shape == Shape::Partial {
            return wire::partial_metadata_bytes(&bytes, self.chosen.version).into();
        }
        let object: Object = serde_json::from_slice(&bytes).unwrap_or_default();
        let head: Vec<_> = if self.head_sent {
            Vec::new()
        } else {
            resource.kind.columns.iter().map(crate::kinds::Column::head).collect()
        };
        self.head_sent = true;
        let now = core.now();
        let cells = resource.kind.columns.iter().map(|column| column.cell(&object, now)).collect();
        let metadata = codec::list_metadata(object.resource_version().parse().unwrap_or(0), None, None);
        let mut value = wire::table(&head, vec![wire::row(cells, &object.0, self.include)], metadata);
        table::set_version(&mut value, self.chosen.version);
        Bytes::from(value.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_crowd_waits_and_never_long() {
        assert_eq!(round(1), None);
        assert_eq!(round(99), None);
        assert_eq!(round(100), Some(Duration::from_millis(1)));
        assert_eq!(round(300), Some(Duration::from_millis(3)));
        assert_eq!(round(1_000_000), Some(Duration::from_millis(5)));
    }
}
