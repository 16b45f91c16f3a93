//! Informers: one watch per kind per process, shared by every loop.
//!
//! Owns: the typed stores of what the API server holds, their indices, and the fan-out of changes to whoever asked.
//! Never decides anything and never writes. `managedFields` are dropped on the way in (see [`Informer::keep_managed_fields`]).

mod object;
mod reflect;
mod registry;
mod shared;
mod store;

pub use registry::Informers;
pub(crate) use shared::{Shared, is_stripped, revision_in};
pub use store::Change;

use crate::Key;
use kube::{
    Api, Client, Resource,
    core::{ApiResource, ObjectMeta},
    runtime::watcher,
};
use object::{Object, decode, typed, typed_ref};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use shared::{OnDemand, Tell};
use std::{
    fmt::Debug,
    sync::{Arc, atomic::Ordering},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What an informer can hold.
pub trait Watched:
    Resource<DynamicType: Clone + Send + Sync> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}
impl<K> Watched for K
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Clone + Send + Sync,
{
}

/// A handle on the store of one kind; clones share it.
pub struct Informer<K: Resource>(Arc<Inner<K>>);

impl<K: Resource> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer(self.0.clone())
    }
}

struct Inner<K: Resource> {
    api: Api<K>,
    dynamic_type: K::DynamicType,
    routes: Arc<Routes<K>>,
    shared: Arc<Shared>,
}

type Route<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

struct Routes<K>(RwLock<Vec<Route<K>>>);

impl<K: Watched> Tell for Arc<Routes<K>> {
    fn tell(&self, changes: Vec<Change<dyn Object>>) {
        let routes = self.0.read();
        for change in changes {
            let change = Change { key: change.key, old: change.old.map(typed), new: change.new.map(typed) };
            routes.iter().for_each(|route| route(&change));
        }
    }
}

impl<K: Watched> Informer<K> {
    fn new(
        client: Client,
        dynamic_type: K::DynamicType,
        selection: watcher::Config,
        content: Option<OnDemand>,
    ) -> Self {
        let routes = Arc::new(Routes(RwLock::default()));
        let resource = ApiResource::erase::<K>(&dynamic_type);
        Informer(Arc::new(Inner {
            api: Api::all_with(client.clone(), &dynamic_type),
            dynamic_type,
            shared: Arc::new(Shared::new(
                client,
                resource,
                selection,
                decode::<K>(),
                Box::new(routes.clone()),
                content,
            )),
            routes,
        }))
    }

    /// An informer of its own, shared with nobody: of the objects a selector selects, until `shutdown`. It keeps
    /// `metadata.managedFields`, and fills once it is [started](Informer::start).
    pub fn selected(client: Client, dynamic_type: K::DynamicType, selection: watcher::Config) -> Self {
        let informer = Informer::new(client, dynamic_type, selection, None);
        informer.keep_managed_fields();
        informer
    }

    /// Begins the watch of an informer that is shared with nobody.
    pub fn start(&self, shutdown: CancellationToken) {
        tokio::spawn(reflect::run(self.0.shared.clone(), shutdown));
    }

    /// The object of that key, as last seen.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.0.shared.store.read().get(key).map(typed)
    }

    /// Every object, ordered by key.
    pub fn list(&self) -> Vec<Arc<K>> {
        all(self.0.shared.store.read().list())
    }

    /// The objects of one namespace, ordered by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        all(self.0.shared.store.read().in_namespace(namespace))
    }

    /// The objects for which the index function gave `value`.
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        all(self.0.shared.store.read().by_index(index, value))
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.0.shared.store.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an index: `values` gives the values an object is found under. The first definition of a name stays.
    pub fn add_index(&self, name: &'static str, values: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        let values = move |object: &dyn Object| values(typed_ref(object));
        self.0.shared.store.write().add_index(name, Box::new(values));
    }

    /// Indexes by the uid of the controlling owner; objects without one are found under `orphan_of(namespace)`.
    pub fn index_by_controller(&self) {
        self.0.shared.store.write().add_index(BY_CONTROLLER, Box::new(controller_or_orphan));
    }

    /// The objects controlled by that uid (needs [`Informer::index_by_controller`]).
    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.by_index(BY_CONTROLLER, uid)
    }

    /// The objects of that namespace that nobody controls (needs [`Informer::index_by_controller`]).
    pub fn orphans(&self, namespace: &str) -> Vec<Arc<K>> {
        self.by_index(BY_CONTROLLER, &orphan_of(namespace))
    }

    /// Calls `route` after every change, in order, on the informer's task: add keys to a queue and return.
    /// What the store already holds is reported at once.
    pub fn on_change(&self, route: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let held = self.list();
        for object in held {
            route(&Change { key: Key::of(object.as_ref()), old: None, new: Some(object) });
        }
        self.0.routes.0.write().push(Box::new(route));
    }

    /// Keeps `metadata.managedFields` in the store. Only for kinds with few objects whose loop reads them.
    pub fn keep_managed_fields(&self) {
        self.0.shared.keep_managed_fields.store(true, Ordering::Relaxed);
    }

    /// Of every object that comes in, `slim` takes out what no loop reads: what is held of a kind with many objects is most of
    /// a process's memory. To be said before the first object comes in; the first word stays.
    pub(crate) fn leave_out(&self, slim: fn(&mut K)) {
        let _ = self.0.shared.slim.set(shared::of_type(slim));
    }

    /// An API server that does not know the kind holds none of it; without this the first list is waited for until it does.
    pub fn may_be_unknown(&self) {
        self.0.shared.may_be_unknown.store(true, Ordering::Relaxed);
    }

    /// Waits until the first list is in.
    pub async fn synced(&self) {
        let mut synced = self.0.shared.synced.subscribe();
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Whether the first list is in.
    pub fn is_synced(&self) -> bool {
        *self.0.shared.synced.borrow()
    }

    /// Group, version and kind of what this informer holds.
    pub fn resource(&self) -> ApiResource {
        self.0.shared.resource.clone()
    }

    /// The type information to make an [`Api`] with.
    pub fn dynamic_type(&self) -> &K::DynamicType {
        &self.0.dynamic_type
    }

    /// The client that reads and writes this kind in every namespace.
    pub fn cluster_api(&self) -> Api<K> {
        self.0.api.clone()
    }

    /// From now on the content of that object is kept too. What is held of it may still be stripped: read it anew then.
    pub(crate) fn want(&self, key: &Key) {
        self.0.shared.want(key);
    }

    /// What waits for the event of a write of its own asks without knowing the type (invariant 6).
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// Told of every change.
    pub(crate) fn moves(&self) -> watch::Receiver<u64> {
        self.0.shared.moves()
    }

    /// Reads the object from the server and takes it in: for when an event got lost.
    pub(crate) async fn refresh(&self, key: &Key) -> Result<(), kube::Error> {
        self.0.shared.refresh(key).await
    }

    /// Reads the object from the server before something is made in its name. When it is not as it was seen, the new
    /// state is taken in and the caller has to look again.
    pub(crate) async fn confirm(&self, key: &Key) -> Result<(), crate::ActError> {
        self.0.shared.confirm(key).await.map(drop)
    }

    /// The same for an owner that must not only be as it was seen but stay: what one that is being deleted makes or adopts
    /// goes with it.
    pub(crate) async fn confirm_staying(&self, key: &Key) -> Result<(), crate::ActError> {
        match self.0.shared.confirm(key).await?.metadata().deletion_timestamp {
            None => Ok(()),
            Some(_) => Err(crate::ActError::Gone(key.to_string())),
        }
    }
}

fn all<K: Watched>(held: Vec<object::Held>) -> Vec<Arc<K>> {
    held.into_iter().map(typed).collect()
}

impl<K: Watched> Informer<K>
where
    K::Scope: kube::core::NamespaceScope,
{
    /// The client for this kind in one namespace.
    pub fn api(&self, namespace: &str) -> Api<K> {
        self.0.api.clone().constrain(namespace)
    }
}

const BY_CONTROLLER: &str = "controller";

fn orphan_of(namespace: &str) -> String {
    format!("none:{namespace}")
}

fn controller_or_orphan(object: &dyn Object) -> Vec<String> {
    let metadata: &ObjectMeta = object.metadata();
    match crate::owners::controller_of(metadata) {
        Some(owner) => vec![owner.uid.clone()],
        None => vec![orphan_of(metadata.namespace.as_deref().unwrap_or_default())],
    }
}

/// The resource version as a number (see [`revision_in`]).
pub(crate) fn revision_of<K: Resource>(object: &K) -> Option<u64> {
    revision_in(object.meta())
}
