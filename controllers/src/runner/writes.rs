//! What one run over a key wrote, and waiting until the informers have seen it.

use crate::{
    Key,
    informer::{Informer, Shared, Watched, revision_of},
};
use parking_lot::Mutex;
use std::{fmt, sync::Arc, time::Duration};
use tracing::debug;

/// After this long without the event of our own write, the object is read from the server.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// The writes of one run over a key (invariant 6).
#[derive(Default)]
pub struct Writes(Mutex<Vec<Write>>);

struct Write {
    informer: Arc<Shared>,
    key: Key,
    effect: Effect,
}

enum Effect {
    /// The object is at this resource version, or later.
    At(u64),
    /// The object with this uid is gone or marked for deletion.
    Deleted(String),
}

impl Writes {
    /// Tells that `object` was written; it is as the server answered.
    pub fn wrote<K: Watched>(&self, informer: &Informer<K>, object: &K) {
        if let Some(revision) = revision_of(object) {
            self.push(informer.shared(), Key::of(object), Effect::At(revision));
        }
    }

    /// Tells that the object with this uid was deleted, or marked for deletion.
    pub fn deleted<K: Watched>(&self, informer: &Informer<K>, key: &Key, uid: &str) {
        self.push(informer.shared(), key.clone(), Effect::Deleted(uid.to_owned()));
    }

    fn push(&self, informer: &Arc<Shared>, key: Key, effect: Effect) {
        self.0.lock().push(Write { informer: informer.clone(), key, effect });
    }

    /// Waits until every write has been seen; by event, and after a time-out by a live read.
    pub(crate) async fn settled(self) {
        let deadline = tokio::time::Instant::now() + LOST_AFTER;
        for write in self.0.into_inner() {
            let mut moves = write.informer.moves();
            let seen = moves.wait_for(|_| write.is_seen());
            if tokio::time::timeout_at(deadline, seen).await.is_err() {
                debug!(key = %write.key, "own write was not seen in time, reading it");
                if let Err(error) = write.informer.refresh(&write.key).await {
                    debug!(key = %write.key, %error, "live read failed");
                }
            }
        }
    }
}

impl Write {
    fn is_seen(&self) -> bool {
        match &self.effect {
            Effect::At(revision) => self.informer.has_seen(*revision),
            Effect::Deleted(uid) => self.informer.has_lost(&self.key, uid),
        }
    }
}

impl fmt::Debug for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Writes({})", self.0.lock().len())
    }
}
