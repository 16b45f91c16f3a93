//! The task behind an informer: watch, keep the store, report, and list again now and then.

use super::{Informer, Watched};
use crate::Key;
use futures::{StreamExt, pin_mut};
use kube::runtime::watcher::{self, Event};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Events get lost; a fresh list behind the watch finds what they missed (invariant 10).
const RELIST_EVERY: Duration = Duration::from_secs(15 * 60);

pub(super) async fn run<K: Watched>(informer: Informer<K>, shutdown: CancellationToken) {
    let kind = informer.resource().kind;
    let mut failures = 0u32;
    while !shutdown.is_cancelled() {
        // Spread, so that the kinds do not list all at the same time.
        let relist_at = Instant::now() + RELIST_EVERY + spread(&kind);
        let events = watcher::watcher(informer.cluster_api(), watcher::Config::default());
        pin_mut!(events);
        let mut listing = Vec::new();
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

fn take_in<K: Watched>(informer: &Informer<K>, event: Event<K>, listing: &mut Vec<K>) {
    match event {
        Event::Init => listing.clear(),
        Event::InitApply(mut object) => {
            informer.trim(&mut object);
            listing.push(object);
        }
        Event::InitDone => {
            let changes = informer.0.store.write().replace(std::mem::take(listing));
            informer.report(&changes);
            informer.0.synced.send_replace(true);
        }
        Event::Apply(mut object) => {
            informer.trim(&mut object);
            let change = informer.0.store.write().put(object);
            informer.report(&change.into_iter().collect::<Vec<_>>());
        }
        Event::Delete(object) => {
            let change = informer.0.store.write().remove(&Key::of(&object), Some(&object));
            informer.report(&change.into_iter().collect::<Vec<_>>());
        }
    }
}
