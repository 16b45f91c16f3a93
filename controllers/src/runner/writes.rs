//! What one run over a key wrote, and waiting until the informers have seen it.

use crate::{
    ActError, Key,
    informer::{Informer, Shared, Watched, revision_of},
};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::{fmt, sync::Arc, time::Duration};
use tokio::time::Instant;
use tracing::{debug, warn};

/// After this long without the event of our own write, the object is read from the server.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// How long until a server that does not answer is asked again: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// The writes of one run over a key (invariant 6).
#[derive(Default)]
pub struct Writes(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    made: Vec<Write>,
    unanswered: Vec<Question>,
}

/// Finds out what came of a write; what it tells as written is waited for too.
type Question = Box<dyn Fn() -> BoxFuture<'static, Result<Writes, ActError>> + Send + Sync>;

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
            self.push(informer, Key::of(object), Effect::At(revision));
        }
    }

    /// Tells that the object with this uid was deleted, or marked for deletion.
    pub fn deleted<K: Watched>(&self, informer: &Informer<K>, key: &Key, uid: &str) {
        self.push(informer, key.clone(), Effect::Deleted(uid.to_owned()));
    }

    fn push<K: Watched>(&self, informer: &Informer<K>, key: Key, effect: Effect) {
        self.0.lock().made.push(Write { informer: informer.shared().clone(), key, effect });
    }

    /// Tells that a write was answered to nobody, and may have been made. `ask` finds out. Nobody works on the key before
    /// it has: a plan on a view without that write would make it again.
    pub(crate) fn unanswered(
        &self,
        ask: impl Fn() -> BoxFuture<'static, Result<Writes, ActError>> + Send + Sync + 'static,
    ) {
        self.0.lock().unanswered.push(Box::new(ask));
    }

    /// Waits until every write has been seen; by event, and after a time-out by a live read.
    pub(crate) async fn settled(self) {
        let Inner { mut made, unanswered } = self.0.into_inner();
        for ask in unanswered {
            if let Some(found) = insist(ask).await {
                made.extend(found.0.into_inner().made);
            }
        }
        let deadline = Instant::now() + LOST_AFTER;
        for write in made {
            let mut moves = write.informer.moves();
            let seen = moves.wait_for(|_| write.is_seen());
            if tokio::time::timeout_at(deadline, seen).await.is_err() {
                debug!(key = %write.key, "own write was not seen in time, reading it");
                let look = || async {
                    match write.is_seen() {
                        true => Ok(()),
                        false => write.informer.refresh(&write.key).await.map_err(ActError::from),
                    }
                };
                insist(look).await;
            }
        }
    }
}

/// Asks until the server answers. `None`: it answers that it will not say.
async fn insist<T, F: Future<Output = Result<T, ActError>>>(ask: impl Fn() -> F) -> Option<T> {
    let (mut pause, longest) = PAUSES;
    loop {
        match ask().await {
            Ok(found) => return Some(found),
            Err(ActError::Failed(error)) => {
                debug!(error, ?pause, "what was written is not known yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
            Err(error) => {
                warn!(%error, "what was written cannot be known");
                return None;
            }
        }
    }
}

impl Write {
    fn is_seen(&self) -> bool {
        match &self.effect {
            Effect::At(revision) => self.informer.has_seen(&self.key, *revision),
            Effect::Deleted(uid) => self.informer.has_lost(&self.key, uid),
        }
    }
}

impl fmt::Debug for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Writes({})", self.0.lock().made.len())
    }
}
