//! The work queue of one loop.
//!
//! Owns: which key is worked on next. One key at a time, never two workers on one key, delays of which the earliest
//! wins, per-key exponential pauses after failures, a shutdown that drains. Never knows why a key was added.

mod core;

use crate::Key;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::{sync::Notify, time::Instant};

/// A handle on a work queue; clones share the queue.
#[derive(Clone, Debug)]
pub struct Queue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    core: Mutex<core::Core>,
    changed: Notify,
    origin: Instant,
}

impl Default for Queue {
    fn default() -> Self {
        Self::new()
    }
}

impl Queue {
    /// An empty queue.
    pub fn new() -> Self {
        Queue(Arc::new(Shared { core: Mutex::default(), changed: Notify::new(), origin: Instant::now() }))
    }

    /// Asks for `key` to be worked on soon.
    pub fn add(&self, key: Key) {
        self.0.core.lock().add(key);
        self.0.changed.notify_one();
    }

    /// Asks for `key` to be worked on after `delay`; of several wishes the earliest wins.
    pub fn add_after(&self, key: Key, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = self.0.origin.elapsed() + delay;
        self.0.core.lock().add_at(key, at);
        self.0.changed.notify_one();
    }

    /// Tries `key` again after a pause that doubles with each failure.
    pub(crate) fn retry(&self, key: Key) -> Duration {
        let pause = self.0.core.lock().failed(&key);
        self.add_after(key, pause);
        pause
    }

    /// A run over `key` went well. One that acted is looked at again, at once unless it never comes to rest.
    pub(crate) fn succeeded(&self, key: &Key, acted: bool) {
        let pause = self.0.core.lock().succeeded(key, acted);
        if acted {
            self.add_after(key.clone(), pause);
        }
    }

    /// The next key; `None` once the queue is closed and empty. The caller says [`Queue::done`] afterwards.
    pub(crate) async fn next(&self) -> Option<Key> {
        loop {
            let wakes_at = {
                let mut core = self.0.core.lock();
                if let Some(key) = core.next(self.0.origin.elapsed()) {
                    return Some(key);
                }
                if core.drained() {
                    return None;
                }
                core.wakes_at()
            };
            match wakes_at {
                Some(at) => {
                    let _ = tokio::time::timeout_at(self.0.origin + at, self.0.changed.notified()).await;
                }
                None => self.0.changed.notified().await,
            }
        }
    }

    pub(crate) fn done(&self, key: &Key) {
        self.0.core.lock().done(key);
        self.0.changed.notify_one();
    }

    /// Takes no more keys; those ready are still handed out, delayed ones are dropped.
    pub fn close(&self) {
        self.0.core.lock().close();
        self.0.changed.notify_one();
    }

    /// How many keys wait to be worked on now.
    pub fn depth(&self) -> usize {
        self.0.core.lock().depth()
    }
}
