//! The watches behind the members of releases: each is there while a release wants it, and shared by those that want the same.

use super::membership::Want;
use crate::{Informer, Key, Queue};
use kube::{Client, core::DynamicObject, runtime::watcher};
use parking_lot::Mutex;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How long a new watch may take to list; after that the release is looked at again when it has.
const LIST_WITHIN: Duration = Duration::from_secs(5);

/// A handle; clones share the watches.
#[derive(Clone)]
pub(super) struct Watches(Arc<Inner>);

struct Inner {
    client: Client,
    shutdown: CancellationToken,
    queue: OnceLock<Queue>,
    held: Mutex<HashMap<Want, Held>>,
}

struct Held {
    informer: Informer<DynamicObject>,
    stop: CancellationToken,
    /// The releases that want it.
    by: Arc<Mutex<BTreeSet<Key>>>,
}

impl Watches {
    pub(super) fn new(client: Client, shutdown: CancellationToken) -> Self {
        Watches(Arc::new(Inner { client, shutdown, queue: OnceLock::new(), held: Mutex::default() }))
    }

    /// Where changes wake the releases.
    pub(super) fn wake(&self, queue: &Queue) {
        // Wired once, before anything runs.
        let _ = self.0.queue.set(queue.clone());
    }

    /// The informer of a want of that release, once it has listed.
    pub(super) fn get(&self, key: &Key, want: &Want) -> Option<Informer<DynamicObject>> {
        let held = self.0.held.lock();
        let held = held.get(want).filter(|held| held.by.lock().contains(key) && held.informer.is_synced())?;
        Some(held.informer.clone())
    }

    /// Watches what the release wants, and no longer what it wanted before; returns when the new watches have listed.
    pub(super) async fn follow(&self, key: &Key, wants: &[Want]) {
        self.drop_but(key, wants);
        let mut informers = Vec::new();
        {
            let mut held = self.0.held.lock();
            for want in wants {
                let entry = held.entry(want.clone()).or_insert_with(|| self.start(want));
                entry.by.lock().insert(key.clone());
                informers.push(entry.informer.clone());
            }
        }
        let listed = async {
            for informer in informers {
                informer.synced().await;
            }
        };
        let _ = tokio::time::timeout(LIST_WITHIN, listed).await;
    }

    /// The release is gone.
    pub(super) fn forget(&self, key: &Key) {
        self.drop_but(key, &[]);
    }

    fn drop_but(&self, key: &Key, wants: &[Want]) {
        self.0.held.lock().retain(|want, held| {
            let mut by = held.by.lock();
            if !wants.contains(want) {
                by.remove(key);
            }
            if by.is_empty() {
                held.stop.cancel();
            }
            !by.is_empty()
        });
    }

    fn start(&self, want: &Want) -> Held {
        let mut selection = watcher::Config::default();
        if !want.labels.is_empty() {
            selection = selection.labels(&want.labels);
        }
        if !want.namespace.is_empty() {
            selection = selection.fields(&format!("metadata.namespace={}", want.namespace));
        }
        let informer = Informer::selected(self.0.client.clone(), want.resource.clone(), selection);
        let by: Arc<Mutex<BTreeSet<Key>>> = Arc::default();
        if let Some(queue) = self.0.queue.get() {
            let (to, wake) = (queue.clone(), by.clone());
            informer.on_change(move |_| wake.lock().iter().for_each(|key| to.add(key.clone())));
        }
        let stop = self.0.shutdown.child_token();
        informer.start(stop.clone());
        Held { informer, stop, by }
    }
}
