//! Events live for an hour.
//!
//! The ring of time is the cache itself: every few minutes the events are looked through and the old ones
//! deleted through the store, at the revision they were seen at.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proa_store::{Expect, Op, Revision, Txn};

use crate::core::Core;

/// How long an event lives (Kubernetes' `--event-ttl`).
const LIFE: SignedDuration = SignedDuration::from_hours(1);
/// How often they are looked through.
const EVERY: Duration = Duration::from_secs(300);
/// How many go in one commit: etcd takes 128 at once.
const BATCH: usize = 128;

/// Deletes old events until the server stops.
pub async fn run(core: Arc<Core>) {
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(EVERY) => {}
            () = core.stop.cancelled() => return,
        }
        sweep(&core, core.now()).await;
    }
}

async fn sweep(core: &Core, now: Timestamp) {
    let Ok(oldest) = now.checked_sub(LIFE) else { return };
    let mut ops = Vec::new();
    for item in core
        .caches
        .resource("events")
        .items("")
        .into_iter()
        .chain(core.caches.resource("events.events.k8s.io").items(""))
    {
        let object = item.object();
        // A repeated event lives an hour from its last repetition.
        let times = [
            object.get_str(&["series", "lastObservedTime"]),
            object.get_str(&["lastTimestamp"]),
            object.get_str(&["eventTime"]),
            Some(object.creation_timestamp()),
        ];
        let newest = times.into_iter().flatten().filter_map(|time| time.parse::<Timestamp>().ok()).max();
        if newest.is_some_and(|newest| newest < oldest) {
            ops.push(Op::Delete { key: item.key.clone(), expect: Expect::At(Revision(item.revision)), last: None });
        }
    }
    while !ops.is_empty() {
        let batch: Vec<Op> = ops.drain(..ops.len().min(BATCH)).collect();
        // One that changed meanwhile fails its batch; the next sweep sees to the rest.
        if let Err(error) = core.log.commit(Txn { ops: batch }).await {
            tracing::debug!(%error, "deleting old events");
        }
    }
}
