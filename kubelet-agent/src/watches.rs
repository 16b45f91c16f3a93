//! The agent's watches of the API: one watcher for every kind, after which each object is read on its own.

use futures::StreamExt as _;
use futures::stream::BoxStream;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use proa_crds::Encoded;

/// What was seen, or why nothing could be.
pub(crate) type Seen = watcher::Result<watcher::Event<Encoded>>;

/// Lists and watches until dropped; after a failure it goes on, a little later each time.
pub(crate) fn watch(api: Api<Encoded>, selection: watcher::Config) -> BoxStream<'static, Seen> {
    watcher(api, selection).default_backoff().boxed()
}
