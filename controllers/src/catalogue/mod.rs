//! The catalogue: every kind the server serves (custom ones too), and the metadata of every object.
//!
//! Owns: discovery, one metadata watch per resource, and the [`Graph`] made of them. Shared by garbage collection and
//! namespace deletion. Never decides anything and never writes. Events are not in it: nothing owns them, they expire.

mod discovery;
pub(crate) mod graph;
#[cfg(test)]
pub(crate) mod tests;

pub use discovery::discover;
pub use graph::{Change, FOREGROUND, Graph, Item, ORPHAN, Presence, Remaining, Resource};

use crate::Context;
use futures::{StreamExt, pin_mut};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
    runtime::watcher::{self, Event, watcher},
};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use proa_crds::Encoded;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// New kinds are announced by their definitions; this is the slow look behind it.
const DISCOVER_EVERY: Duration = Duration::from_secs(600);
/// A burst of new definitions is looked at once.
const SETTLE: Duration = Duration::from_millis(30);
/// How long an own write may take to be seen before work goes on without.
const SEEN_WITHIN: Duration = Duration::from_secs(2);

/// Which objects a catalogue holds.
#[derive(Clone, Debug)]
pub enum Scope {
    /// All there are.
    Everything,
    /// Those of one group, and the Secrets they own. The rest is somebody else's: the API server's own controllers.
    Group(String),
}

impl Scope {
    fn watches(&self, resource: &Resource) -> bool {
        let api = &resource.api;
        match self {
            Scope::Everything => true,
            // Definitions tell of new kinds.
            Scope::Group(group) => api.group == *group || is_secret(api) || api.plural == DEFINITIONS,
        }
    }

    fn holds(&self, item: &Item) -> bool {
        let of_group = |owner: &OwnerReference, group: &str| {
            owner.api_version.rsplit_once('/').is_some_and(|(owner_group, _)| owner_group == group)
        };
        match self {
            Scope::Group(group) if is_secret(&item.resource.api) => {
                item.owners.iter().any(|owner| of_group(owner, group))
            }
            _ => true,
        }
    }
}

const DEFINITIONS: &str = "customresourcedefinitions";

fn is_secret(api: &ApiResource) -> bool {
    api.group.is_empty() && api.plural == "secrets"
}

type Route = Box<dyn Fn(&Change) + Send + Sync>;

/// A handle; clones share the catalogue.
#[derive(Clone)]
pub struct Catalogue(Arc<Inner>);

struct Inner {
    client: Client,
    scope: Scope,
    shutdown: CancellationToken,
    graph: RwLock<Graph>,
    known: RwLock<Known>,
    watches: Mutex<HashMap<String, (Arc<Resource>, CancellationToken)>>,
    routes: RwLock<Vec<Route>>,
    /// Resources whose first list is still to come; `None` before the first discovery.
    unlisted: watch::Sender<Option<HashSet<String>>>,
    moved: watch::Sender<u64>,
    definitions_changed: Notify,
}

/// What discovery told last.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Every resource of every group that answered.
    pub resources: Vec<Arc<Resource>>,
    /// What went wrong, by group and version.
    pub failures: Vec<String>,
}

impl Known {
    /// The resource of a kind in a group, whatever the version.
    pub fn find(&self, api_version: &str, kind: &str) -> Option<Arc<Resource>> {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        self.resources.iter().find(|resource| resource.api.group == group && resource.api.kind == kind).cloned()
    }
}

impl Catalogue {
    /// An empty catalogue that begins to fill once the context runs tasks.
    pub fn start(context: &Context, scope: Scope) -> Catalogue {
        let catalogue = Catalogue(Arc::new(Inner {
            client: context.client.clone(),
            scope,
            shutdown: context.shutdown.clone(),
            graph: RwLock::default(),
            known: RwLock::default(),
            watches: Mutex::default(),
            routes: RwLock::default(),
            unlisted: watch::Sender::new(None),
            moved: watch::Sender::new(0),
            definitions_changed: Notify::new(),
        }));
        context.spawn(catalogue.clone().keep_discovering());
        catalogue
    }

    /// The graph, locked for reading: look and let go.
    pub fn graph(&self) -> RwLockReadGuard<'_, Graph> {
        self.0.graph.read()
    }

    /// What discovery told last.
    pub fn known(&self) -> Known {
        self.0.known.read().clone()
    }

    /// Calls `route` after every change, on a watch's task: add keys to a queue and return.
    pub fn on_change(&self, route: impl Fn(&Change) + Send + Sync + 'static) {
        self.0.routes.write().push(Box::new(route));
    }

    /// Takes in what the server answered about an owner.
    pub(crate) fn learn(&self, uid: &str, namespace: &str, there: bool) {
        self.0.graph.write().learn(uid, namespace, there);
    }

    /// Waits until the server has told for the first time what it serves.
    pub async fn discovered(&self) {
        let mut unlisted = self.0.unlisted.subscribe();
        let _ = unlisted.wait_for(Option::is_some).await;
    }

    /// Waits until every resource has been listed once.
    pub async fn synced(&self) {
        let mut unlisted = self.0.unlisted.subscribe();
        let _ = unlisted.wait_for(|unlisted| unlisted.as_ref().is_some_and(HashSet::is_empty)).await;
    }

    /// Waits until the graph shows an own write (invariant 6); not for ever, events get lost.
    pub(crate) async fn until(&self, shows: impl Fn(&Graph) -> bool) {
        let mut moved = self.0.moved.subscribe();
        let seen = moved.wait_for(|_| shows(&self.0.graph.read()));
        if tokio::time::timeout(SEEN_WITHIN, seen).await.is_err() {
            debug!("own write was not seen in time");
        }
    }

    /// The interface to the objects of a resource, in a namespace if it has those.
    pub fn api(&self, resource: &Resource, namespace: &str) -> Api<DynamicObject> {
        if resource.namespaced && !namespace.is_empty() {
            Api::namespaced_with(self.0.client.clone(), namespace, &resource.api)
        } else {
            Api::all_with(self.0.client.clone(), &resource.api)
        }
    }

    async fn keep_discovering(self) {
        let mut failures = 0u32;
        while !self.0.shutdown.is_cancelled() {
            let pause = match discovery::discover(&self.0.client).await {
                Ok(known) => {
                    failures = 0;
                    self.follow(known)
                }
                Err(error) => {
                    failures += 1;
                    warn!(%error, "cannot discover what the server serves, trying on");
                    Duration::from_millis(100 << failures.min(6))
                }
            };
            let again = async {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(pause) => {}
                    () = self.0.definitions_changed.notified() => tokio::time::sleep(SETTLE).await,
                }
            };
            tokio::select! {
                biased;
                () = self.0.shutdown.cancelled() => {}
                () = again => {}
            }
        }
    }

    /// Watches what is new, and lets go of what is no longer served. How long until the next look.
    fn follow(&self, known: Known) -> Duration {
        let watched = |resource: &&Arc<Resource>| {
            let event = resource.api.plural == "events" && matches!(resource.api.group.as_str(), "" | "events.k8s.io");
            !event
                && self.0.scope.watches(resource)
                && ["list", "watch", "delete"].iter().all(|verb| resource.can(verb))
        };
        let wanted: BTreeMap<String, Arc<Resource>> =
            known.resources.iter().filter(watched).map(|r| (r.label(), r.clone())).collect();
        let mut watches = self.0.watches.lock();
        // A group that does not answer now keeps its watches: its objects are still there.
        let whole = known.failures.is_empty();
        watches.retain(|label, (resource, token)| {
            let keep = wanted.get(label).map_or(!whole, |now| now.api == resource.api);
            if !keep {
                token.cancel();
                if !wanted.contains_key(label) {
                    let changes = self.0.graph.write().keep_only(resource, &HashSet::new());
                    self.report(&changes);
                }
            }
            keep
        });
        let new: Vec<_> = wanted.into_iter().filter(|(label, _)| !watches.contains_key(label)).collect();
        // Before anybody is told that it is known.
        *self.0.known.write() = known;
        self.0.unlisted.send_modify(|unlisted| {
            unlisted.get_or_insert_default().extend(new.iter().map(|(label, _)| label.clone()));
        });
        for (label, resource) in new {
            let token = self.0.shutdown.child_token();
            watches.insert(label, (resource.clone(), token.clone()));
            tokio::spawn(self.clone().watch(resource, token));
        }
        drop(watches);
        let pause = if whole { DISCOVER_EVERY } else { Duration::from_secs(10) };
        self.0.moved.send_modify(|count| *count = count.wrapping_add(1));
        pause
    }

    async fn watch(self, resource: Arc<Resource>, token: CancellationToken) {
        let api: Api<Encoded> = Api::all_with(self.0.client.clone(), &resource.api);
        let events = watcher(api, watcher::Config::default());
        pin_mut!(events);
        let (mut listed, mut failures) = (HashSet::new(), 0u32);
        loop {
            let event = tokio::select! {
                biased;
                () = token.cancelled() => break,
                event = events.next() => event,
            };
            match event {
                None => break,
                Some(Ok(event)) => {
                    failures = 0;
                    self.take_in(&resource, event, &mut listed);
                }
                Some(Err(error)) => {
                    debug!(resource = resource.label(), %error, "watch failed");
                    failures = failures.saturating_add(1);
                    // One resource that cannot be listed must not keep the others waiting.
                    self.listed(&resource);
                    let pause = Duration::from_millis(50 << failures.min(8));
                    tokio::select! {
                        biased;
                        () = token.cancelled() => break,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
        self.listed(&resource);
    }

    fn take_in(&self, resource: &Arc<Resource>, event: Event<Encoded>, listed: &mut HashSet<Arc<str>>) {
        let changes = match event {
            Event::Init => {
                listed.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                let Some(item) = read(resource, &object) else { return };
                listed.insert(item.uid.clone());
                self.put(item)
            }
            Event::InitDone => {
                let changes = self.0.graph.write().keep_only(resource, listed);
                self.listed(resource);
                changes
            }
            Event::Apply(object) => {
                let Some(item) = read(resource, &object) else { return };
                self.put(item)
            }
            Event::Delete(object) => {
                let Some(uid) = &object.metadata().uid else { return };
                vec![self.0.graph.write().remove(uid)]
            }
        };
        if matches!(resource.api.plural.as_str(), DEFINITIONS | "apiservices") && !changes.is_empty() {
            self.0.definitions_changed.notify_one();
        }
        self.report(&changes);
    }

    /// Takes in an object that is held, or was.
    fn put(&self, item: Item) -> Vec<Change> {
        let mut graph = self.0.graph.write();
        let known = self.0.scope.holds(&item) || graph.get(&item.uid).is_some();
        if known { vec![graph.put(item)] } else { Vec::new() }
    }

    fn listed(&self, resource: &Resource) {
        self.0
            .unlisted
            .send_if_modified(|unlisted| unlisted.as_mut().is_some_and(|unlisted| unlisted.remove(&resource.label())));
    }

    fn report(&self, changes: &[Change]) {
        self.0.moved.send_modify(|count| *count = count.wrapping_add(1));
        let routes = self.0.routes.read();
        for change in changes {
            for route in routes.iter() {
                route(change);
            }
        }
    }
}

/// What the graph wants of an object; nothing of one whose metadata is not what it should be.
fn read(resource: &Arc<Resource>, object: &Encoded) -> Option<Item> {
    match object.ties() {
        Ok(ties) => Item::of(resource.clone(), ties),
        Err(error) => {
            warn!(resource = resource.label(), name = object.metadata().name, %error, "this object cannot be read");
            None
        }
    }
}
