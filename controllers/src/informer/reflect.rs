//! The task behind an informer: watch, keep the store, report, and list again now and then.

use super::{
    object::Held,
    shared::{Shared, revision_in},
};
use crate::Key;
use futures::{StreamExt, pin_mut};
use kube::{
    Api,
    runtime::watcher::{self, Event},
};
use proa_crds::{Decoded, Encoded, Undecodable};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
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
#[derive(Default)]
struct Listing {
    objects: Vec<Held>,
    /// The objects of the list that cannot be read.
    unread: Vec<Key>,
}

pub(super) async fn run(informer: Arc<Shared>, shutdown: CancellationToken) {
    let kind = &informer.resource.kind;
    let mut failures = 0u32;
    while !shutdown.is_cancelled() {
        // Spread, so that the kinds do not list all at the same time.
        let relist_at = Instant::now() + RELIST_EVERY + spread(kind);
        let api: Api<Encoded> = Api::all_with(informer.client.clone(), &informer.resource);
        let events = watcher::watcher(api, informer.selection.clone());
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
                Some(Err(error)) if informer.may_be_unknown.load(Ordering::Relaxed) && is_unknown_kind(&error) => {
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

fn take_in(informer: &Shared, event: Event<Encoded>, listing: &mut Listing) {
    match event {
        Event::Init => *listing = Listing::default(),
        Event::InitApply(object) => match informer.read(object) {
            Decoded::Object(object) => listing.objects.push(object),
            Decoded::Undecodable(unread) => {
                listing.unread.push(Key::in_metadata(&unread.metadata));
                skip(informer, &unread);
            }
        },
        Event::InitDone => {
            let Listing { objects, unread } = std::mem::take(listing);
            let changes = informer.store.write().replace(objects, &unread);
            informer.report(changes);
            informer.synced.send_replace(true);
        }
        Event::Apply(object) => match informer.read(object) {
            Decoded::Object(object) => {
                let change = informer.store.write().put(object);
                informer.report(change.into_iter().collect());
            }
            Decoded::Undecodable(unread) => skip(informer, &unread),
        },
        Event::Delete(object) => {
            let (key, last) = (Key::of(&object), revision_in(object.metadata()));
            let change = informer.store.write().remove(&key, last);
            informer.report(change.into_iter().collect());
        }
    }
}

/// The store keeps the last state that could be read: to its loops the object is as it was, never gone.
fn skip(informer: &Shared, unread: &Undecodable) {
    let key = Key::in_metadata(&unread.metadata);
    warn!(kind = informer.resource.kind, %key, error = unread.error, "this object cannot be read and is left out");
    if let Some(revision) = revision_in(&unread.metadata) {
        informer.store.write().saw(revision);
        informer.report(Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::super::Informers;
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::{Value, json};

    fn written(name: &str, revision: u64, data: Value) -> Encoded {
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
        let mut tell = |event| take_in(informer.shared(), event, &mut listing);
        let names = || informer.list().iter().map(|map| map.metadata.name.clone().unwrap()).collect::<Vec<_>>();
        tell(Event::Init);
        tell(Event::InitApply(written("never-read", 1, bad.clone())));
        tell(Event::InitApply(written("read", 2, good.clone())));
        tell(Event::InitDone);
        assert_eq!(names(), ["read"]);
        tell(Event::Apply(written("read", 5, bad.clone())));
        assert_eq!(names(), ["read"], "as it last could be read");
        assert!(informer.shared().has_seen(&Key::new("ns", "other"), 5), "nobody waits for it for ever");
        tell(Event::Init);
        tell(Event::InitApply(written("read", 5, bad)));
        tell(Event::InitApply(written("new", 6, good)));
        tell(Event::InitDone);
        assert_eq!(names(), ["new", "read"]);
        tell(Event::Delete(written("read", 7, json!({"a": 1}))));
        assert_eq!(names(), ["new"]);
    }
}
