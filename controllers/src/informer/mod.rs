//! Informers: one watch per kind per process, shared by every loop.
//!
//! Owns: the typed stores of what the API server holds, their indices, and the fan-out of changes to whoever asked.
//! Never decides anything and never writes. `managedFields` are dropped on the way in (see [`Informer::keep_managed_fields`]).

mod reflect;
mod store;

pub use store::Change;

use crate::Key;
use futures::future::BoxFuture;
use kube::{
    Api, Client, Resource,
    core::{ApiResource, ObjectMeta},
    runtime::watcher,
};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use std::{
    any::{Any, TypeId},
    collections::{HashMap, HashSet},
    fmt::Debug,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use store::Store;
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

type Route<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// A handle on the store of one kind; clones share it.
pub struct Informer<K: Resource>(Arc<Inner<K>>);

impl<K: Resource> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer(self.0.clone())
    }
}

struct Inner<K: Resource> {
    api: Api<K>,
    client: Client,
    dynamic_type: K::DynamicType,
    /// Which objects of the kind: all, or those a selector selects.
    selection: watcher::Config,
    store: RwLock<Store<K>>,
    routes: RwLock<Vec<Route<K>>>,
    keep_managed_fields: AtomicBool,
    may_be_unknown: AtomicBool,
    content: Option<OnDemand<K>>,
    synced: watch::Sender<bool>,
    /// Bumped after every change of the store.
    moved: watch::Sender<u64>,
}

/// Content that is kept only of what was asked for, and of what `always` says.
struct OnDemand<K> {
    strip: fn(&mut K),
    always: fn(&K) -> bool,
    wanted: RwLock<HashSet<Key>>,
}

/// In memory alone, in a field no server writes since Kubernetes 1.20: the content was left out.
const STRIPPED: &str = "stripped";

/// Whether only the metadata of the object is here (see [`Informers::on_demand`]).
pub(crate) fn is_stripped(meta: &ObjectMeta) -> bool {
    meta.self_link.as_deref() == Some(STRIPPED)
}

impl<K: Watched> Informer<K> {
    fn new(
        client: Client,
        dynamic_type: K::DynamicType,
        selection: watcher::Config,
        content: Option<OnDemand<K>>,
    ) -> Self {
        Informer(Arc::new(Inner {
            content,
            api: Api::all_with(client.clone(), &dynamic_type),
            client,
            dynamic_type,
            selection,
            store: RwLock::default(),
            routes: RwLock::default(),
            keep_managed_fields: AtomicBool::new(false),
            may_be_unknown: AtomicBool::new(false),
            synced: watch::Sender::new(false),
            moved: watch::Sender::new(0),
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
        tokio::spawn(reflect::run(self.clone(), shutdown));
    }

    /// The object of that key, as last seen.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.0.store.read().get(key)
    }

    /// Every object, ordered by key.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.0.store.read().list()
    }

    /// The objects of one namespace, ordered by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.0.store.read().in_namespace(namespace)
    }

    /// The objects for which the index function gave `value`.
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        self.0.store.read().by_index(index, value)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.0.store.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an index: `values` gives the values an object is found under. The first definition of a name stays.
    pub fn add_index(&self, name: &'static str, values: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        self.0.store.write().add_index(name, Box::new(values));
    }

    /// Indexes by the uid of the controlling owner; objects without one are found under `orphan_of(namespace)`.
    pub fn index_by_controller(&self) {
        self.add_index(BY_CONTROLLER, |object| {
            let meta = object.meta();
            match crate::owners::controller_of(meta) {
                Some(owner) => vec![owner.uid.clone()],
                None => vec![orphan_of(meta.namespace.as_deref().unwrap_or_default())],
            }
        });
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
        self.0.routes.write().push(Box::new(route));
    }

    /// Keeps `metadata.managedFields` in the store. Only for kinds with few objects whose loop reads them.
    pub fn keep_managed_fields(&self) {
        self.0.keep_managed_fields.store(true, Ordering::Relaxed);
    }

    /// An API server that does not know the kind holds none of it; without this the first list is waited for until it does.
    pub fn may_be_unknown(&self) {
        self.0.may_be_unknown.store(true, Ordering::Relaxed);
    }

    /// Waits until the first list is in.
    pub async fn synced(&self) {
        let mut synced = self.0.synced.subscribe();
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Whether the first list is in.
    pub fn is_synced(&self) -> bool {
        *self.0.synced.borrow()
    }

    /// Group, version and kind of what this informer holds.
    pub fn resource(&self) -> ApiResource {
        ApiResource::erase::<K>(&self.0.dynamic_type)
    }

    /// The type information to make an [`Api`] with.
    pub fn dynamic_type(&self) -> &K::DynamicType {
        &self.0.dynamic_type
    }

    /// The client that reads and writes this kind in every namespace.
    pub fn cluster_api(&self) -> Api<K> {
        self.0.api.clone()
    }

    fn report(&self, changes: &[Change<K>]) {
        self.0.moved.send_modify(|count| *count = count.wrapping_add(1));
        let routes = self.0.routes.read();
        for change in changes {
            for route in routes.iter() {
                route(change);
            }
        }
    }

    fn trim(&self, object: &mut K) {
        if !self.0.keep_managed_fields.load(Ordering::Relaxed) {
            object.meta_mut().managed_fields = None;
        }
        if let Some(OnDemand { strip, always, wanted }) = &self.0.content
            && !always(object)
            && !wanted.read().contains(&Key::of(object))
        {
            strip(object);
            object.meta_mut().self_link = Some(STRIPPED.to_owned());
        }
    }

    /// From now on the content of that object is kept too. What is held of it may still be stripped: read it anew then.
    pub(crate) fn want(&self, key: &Key) {
        if let Some(content) = &self.0.content
            && !content.wanted.read().contains(key)
        {
            content.wanted.write().insert(key.clone());
        }
    }
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

/// The resource version as a number. Since Kubernetes 1.35 (KEP-5504) clients may compare them.
pub(crate) fn revision_of<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_deref()?.parse().ok()
}

/// What the runner asks an informer after a write of its own (invariant 6).
pub(crate) trait Observes: Send + Sync {
    /// The object has been seen at this resource version or later, or everything up to it has.
    fn has_seen(&self, key: &Key, revision: u64) -> bool;
    /// The object is gone, replaced, or marked for deletion.
    fn has_lost(&self, key: &Key, uid: &str) -> bool;
    /// Told of every change.
    fn moves(&self) -> watch::Receiver<u64>;
    /// Reads the object from the server and takes it in: for when an event got lost.
    fn refresh<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), kube::Error>>;
}

impl<K: Watched> Informer<K> {
    /// Reads the object from the server before something is made in its name. When it is not as it was seen, the new
    /// state is taken in and the caller has to look again.
    pub(crate) async fn confirm(&self, key: &Key) -> Result<(), crate::ActError> {
        let seen = self.get(key);
        self.refresh(key).await?;
        let live = self.get(key).ok_or_else(|| crate::ActError::Gone(key.to_string()))?;
        let same = |seen: &K| {
            seen.meta().uid == live.meta().uid
                && seen.meta().generation == live.meta().generation
                && seen.meta().deletion_timestamp == live.meta().deletion_timestamp
        };
        match seen.as_deref().is_some_and(same) {
            true => Ok(()),
            false => Err(crate::ActError::Conflict(format!("{key} was seen as it no longer is"))),
        }
    }

    /// The same for an owner that must not only be as it was seen but stay: what one that is being deleted makes or adopts
    /// goes with it.
    pub(crate) async fn confirm_staying(&self, key: &Key) -> Result<(), crate::ActError> {
        self.confirm(key).await?;
        match self.get(key) {
            Some(live) if live.meta().deletion_timestamp.is_none() => Ok(()),
            _ => Err(crate::ActError::Gone(key.to_string())),
        }
    }
}

impl<K: Watched> Observes for Informer<K> {
    fn has_seen(&self, key: &Key, revision: u64) -> bool {
        let store = self.0.store.read();
        store.revision() >= revision || store.get(key).and_then(|held| revision_of(&*held)) >= Some(revision)
    }

    fn has_lost(&self, key: &Key, uid: &str) -> bool {
        match self.get(key) {
            None => true,
            Some(object) => object.meta().uid.as_deref() != Some(uid) || object.meta().deletion_timestamp.is_some(),
        }
    }

    fn moves(&self) -> watch::Receiver<u64> {
        self.0.moved.subscribe()
    }

    fn refresh<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), kube::Error>> {
        Box::pin(async move {
            let found = read_one::<K>(&self.0.client, &self.resource(), key).await?;
            let change = match found {
                Some(mut object) => {
                    self.trim(&mut object);
                    self.0.store.write().put_alone(object)
                }
                None => self.0.store.write().remove(key, None),
            };
            self.report(&change.into_iter().collect::<Vec<_>>());
            Ok(())
        })
    }
}

async fn read_one<K: DeserializeOwned>(
    client: &Client,
    resource: &ApiResource,
    key: &Key,
) -> Result<Option<K>, kube::Error> {
    let root = if resource.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}", resource.api_version) };
    let path = if key.namespace.is_empty() {
        format!("{root}/{}", resource.plural)
    } else {
        format!("{root}/namespaces/{}/{}", key.namespace, resource.plural)
    };
    let request = kube::core::Request::new(path)
        .get(&key.name, &kube::api::GetParams::default())
        .map_err(kube::Error::BuildRequest)?;
    match client.request::<K>(request).await {
        Ok(object) => Ok(Some(object)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every informer of the process. Asking twice for a kind gives the same one.
#[derive(Clone)]
pub struct Informers(Arc<Registry>);

struct Registry {
    client: Client,
    shutdown: CancellationToken,
    held: Mutex<HashMap<Asked, Box<dyn Any + Send + Sync>>>,
    started: Mutex<Option<Vec<Start>>>,
}

/// What an informer is known by: its type, its resource, and how it was asked for.
type Asked = (TypeId, ApiResource, &'static str);
type Start = Box<dyn FnOnce() + Send>;

impl Informers {
    /// No informer yet. Their watches begin with [`Informers::start`].
    pub fn new(client: Client, shutdown: CancellationToken) -> Self {
        Informers(Arc::new(Registry {
            client,
            shutdown,
            held: Mutex::default(),
            started: Mutex::new(Some(Vec::new())),
        }))
    }

    /// The informer of a kind known at compile time.
    pub fn of<K: Watched>(&self) -> Informer<K>
    where
        K::DynamicType: Default,
    {
        self.of_resource(K::DynamicType::default())
    }

    /// The informer of a kind whose group and version are a value (see `proa_crds::Family`).
    pub fn of_resource<K: Watched>(&self, dynamic_type: K::DynamicType) -> Informer<K> {
        self.seen_as("", dynamic_type, watcher::Config::default(), None)
    }

    /// Of a kind with many and large objects the metadata, and the content of those asked for with [`Informer::want`] or
    /// that `always` names. `strip` takes the content out.
    pub(crate) fn on_demand<K: Watched>(&self, strip: fn(&mut K), always: fn(&K) -> bool) -> Informer<K>
    where
        K::DynamicType: Default,
    {
        let content = OnDemand { strip, always, wanted: RwLock::default() };
        self.seen_as("on demand", K::DynamicType::default(), watcher::Config::default(), Some(content))
    }

    /// The objects of that name in every namespace.
    pub(crate) fn named<K: Watched>(&self, name: &'static str) -> Informer<K>
    where
        K::DynamicType: Default,
    {
        let selection = watcher::Config::default().fields(&format!("metadata.name={name}"));
        self.seen_as(name, K::DynamicType::default(), selection, None)
    }

    fn seen_as<K: Watched>(
        &self,
        how: &'static str,
        dynamic_type: K::DynamicType,
        selection: watcher::Config,
        content: Option<OnDemand<K>>,
    ) -> Informer<K> {
        let id = (TypeId::of::<K>(), ApiResource::erase::<K>(&dynamic_type), how);
        let mut held = self.0.held.lock();
        if let Some(informer) = held.get(&id).and_then(|held| held.downcast_ref::<Informer<K>>()) {
            return informer.clone();
        }
        let informer = Informer::<K>::new(self.0.client.clone(), dynamic_type, selection, content);
        held.insert(id, Box::new(informer.clone()));
        let task = reflect::run(informer.clone(), self.0.shutdown.clone());
        let start: Start = Box::new(move || {
            tokio::spawn(task);
        });
        match self.0.started.lock().as_mut() {
            Some(waiting) => waiting.push(start),
            None => start(),
        }
        informer
    }

    /// Begins the watches, after the loops have added their indices and routes. Later informers begin at once.
    pub fn start(&self) {
        for start in self.0.started.lock().take().into_iter().flatten() {
            start();
        }
    }
}

// `Hash` of ApiResource is what keys the registry; named here so that its loss is a compile error in one place.
const _: fn() = || {
    fn needs_hash<T: Hash + Eq>() {}
    needs_hash::<ApiResource>();
};
