//! The task behind an informer: watch, keep the store, report, and list again now and then.

use super::{Informer, Watched, revision_of};
use crate::Key;
use futures::{StreamExt, pin_mut};
use kube::{
    Api,
    core::ObjectMeta,
    runtime::watcher::{self, Event},
};
use proa_crds::{Decoded, Undecodable};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Events get lost; a fresh list behind the watch finds what they missed (invariant 10).
const RELIST_EVERY: Duration = Duration::from_secs(15 * 60);

/// How long until a kind the API server does not know is asked for again.
const UNKNOWN_KIND: Duration = Duration::from_secs(10);

fn is_unknown_kind(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error)) = error else {
        return false;
    };
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// A list that is coming in.
struct Listing<K> {
    objects: Vec<K>,
    /// The objects of the list that cannot be read.
    unread: Vec<Key>,
}

impl<K> Default for Listing<K> {
    fn default() -> Self {
        Listing { objects: Vec::new(), unread: Vec::new() }
    }
}

pub(super) async fn run<K: Watched>(informer: Informer<K>, shutdown: CancellationToken) {
    let kind = informer.resource().kind;
    let mut failures = 0u32;
    while !shutdown.is_cancelled() {
        // Spread, so that the kinds do not list all at the same time.
        let relist_at = Instant::now() + RELIST_EVERY + spread(&kind);
        let api: Api<Decoded<K>> = Api::all_with(informer.0.client.clone(), informer.dynamic_type());
        let events = watcher::watcher(api, informer.0.selection.clone());
        pin_mut!(events);
        let mut listing = Listing::default();
        loop {
            let event = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep_until(relist_at) => break,
                event = events.next() => event,
            };
            match event {
                None => break,
                Some(Ok(event)) => {
                    failures = 0;
                    take_in(&informer, event, &mut listing);
                }
                Some(Err(error)) if informer.0.may_be_unknown.load(Ordering::Relaxed) && is_unknown_kind(&error) => {
                    take_in(&informer, Event::Init, &mut listing);
                    take_in(&informer, Event::InitDone, &mut listing);
                    tokio::select! {
                        biased;
                        () = shutdown.cancelled() => return,
                        () = tokio::time::sleep(UNKNOWN_KIND) => {}
                    }
                }
                Some(Err(error)) => {
                    let pause =
                        Duration::from_millis(50).saturating_mul(1 << failures.min(8)).min(Duration::from_secs(10));
                    if failures == 3 {
                        warn!(kind, %error, "cannot watch; trying on");
                    } else {
                        debug!(kind, %error, "watch failed");
                    }
                    failures = failures.saturating_add(1);
                    tokio::select! {
                        biased;
                        () = shutdown.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }
}

/// Up to a quarter more, different from kind to kind and the same each time.
fn spread(kind: &str) -> Duration {
    let sum = kind.bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    RELIST_EVERY.mul_f64(f64::from(sum % 1000) / 4000.0)
}

fn take_in<K: Watched>(informer: &Informer<K>, event: Event<Decoded<K>>, listing: &mut Listing<K>) {
    let store = &informer.0.store;
    match event {
        Event::Init => *listing = Listing::default(),
        Event::InitApply(Decoded::Object(mut object)) => {
            informer.trim(&mut object);
            listing.objects.push(object);
        }
        Event::InitApply(Decoded::Undecodable(unread)) => {
            listing.unread.push(key_of(&unread.metadata));
            skip(informer, &unread);
        }
        Event::InitDone => {
            let Listing { objects, unread } = std::mem::take(listing);
            let changes = store.write().replace(objects, &unread);
            informer.report(&changes);
            informer.0.synced.send_replace(true);
        }
        Event::Apply(Decoded::Object(mut object)) => {
            informer.trim(&mut object);
            let change = store.write().put(object);
            informer.report(&change.into_iter().collect::<Vec<_>>());
        }
        Event::Apply(Decoded::Undecodable(unread)) => skip(informer, &unread),
        Event::Delete(object) => {
            let change = store.write().remove(&Key::of(&object), revision_of(&object));
            informer.report(&change.into_iter().collect::<Vec<_>>());
        }
    }
}

fn key_of(metadata: &ObjectMeta) -> Key {
    Key::new(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

/// The store keeps the last state that could be read: to its loops the object is as it was, never gone.
fn skip<K: Watched>(informer: &Informer<K>, unread: &Undecodable) {
    let key = key_of(&unread.metadata);
    warn!(kind = informer.resource().kind, %key, error = unread.error, "this object cannot be read and is left out");
    if let Some(revision) = unread.metadata.resource_version.as_deref().and_then(|at| at.parse().ok()) {
        informer.0.store.write().saw(revision);
        informer.report(&[]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Informers;
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::{Value, json};

    fn decoded(name: &str, revision: u64, data: Value) -> Decoded<ConfigMap> {
        let metadata = json!({"name": name, "namespace": "ns", "uid": name, "resourceVersion": revision.to_string()});
        serde_json::from_str(&json!({"metadata": metadata, "data": data}).to_string()).unwrap()
    }

    #[tokio::test]
    async fn an_object_that_cannot_be_read_hides_no_other_and_does_not_vanish() {
        // Nothing is asked of it: the events come from here.
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let informers = Informers::new(kube::Client::try_from(config).unwrap(), CancellationToken::new());
        let informer = informers.of::<ConfigMap>();
        let mut listing = Listing::default();
        let (good, bad) = (json!({"a": "1"}), json!({"a": 1}));
        let mut tell = |event| take_in(&informer, event, &mut listing);
        let names = || informer.list().iter().map(|map| map.metadata.name.clone().unwrap()).collect::<Vec<_>>();
        tell(Event::Init);
        tell(Event::InitApply(decoded("never-read", 1, bad.clone())));
        tell(Event::InitApply(decoded("read", 2, good.clone())));
        tell(Event::InitDone);
        assert_eq!(names(), ["read"]);
        tell(Event::Apply(decoded("read", 5, bad.clone())));
        assert_eq!(names(), ["read"], "as it last could be read");
        assert!(
            crate::informer::Observes::has_seen(&informer, &Key::new("ns", "other"), 5),
            "nobody waits for it for ever"
        );
        tell(Event::Init);
        tell(Event::InitApply(decoded("read", 5, bad)));
        tell(Event::InitApply(decoded("new", 6, good)));
        tell(Event::InitDone);
        assert_eq!(names(), ["new", "read"]);
        tell(Event::Delete(decoded("read", 7, json!({"a": 1}))));
        assert_eq!(names(), ["new"]);
    }
}
