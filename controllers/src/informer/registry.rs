//! The informers of one process, each made once.

use super::{
    Informer, Watched, reflect,
    shared::{OnDemand, Shared},
};
use kube::{Client, core::ApiResource, runtime::watcher};
use parking_lot::Mutex;
use std::{
    any::{Any, TypeId},
    collections::HashMap,
    hash::Hash,
    sync::Arc,
};
use tokio_util::sync::CancellationToken;

/// Every informer of the process. Asking twice for a kind gives the same one.
#[derive(Clone)]
pub struct Informers(Arc<Registry>);

struct Registry {
    client: Client,
    shutdown: CancellationToken,
    held: Mutex<HashMap<Asked, Box<dyn Any + Send + Sync>>>,
    /// What waits for [`Informers::start`]; `None` after it.
    waiting: Mutex<Option<Vec<Arc<Shared>>>>,
}

/// What an informer is known by: its type, its resource, and how it was asked for.
type Asked = (TypeId, ApiResource, &'static str);

impl Informers {
    /// No informer yet. Their watches begin with [`Informers::start`].
    pub fn new(client: Client, shutdown: CancellationToken) -> Self {
        Informers(Arc::new(Registry {
            client,
            shutdown,
            held: Mutex::default(),
            waiting: Mutex::new(Some(Vec::new())),
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
        let content = OnDemand::new(strip, always);
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

    /// The objects of that `type`, a field of theirs.
    pub(crate) fn of_type<K: Watched>(&self, type_: &'static str) -> Informer<K>
    where
        K::DynamicType: Default,
    {
        let selection = watcher::Config::default().fields(&format!("type={type_}"));
        self.seen_as(type_, K::DynamicType::default(), selection, None)
    }

    fn seen_as<K: Watched>(
        &self,
        how: &'static str,
        dynamic_type: K::DynamicType,
        selection: watcher::Config,
        content: Option<OnDemand>,
    ) -> Informer<K> {
        let id = (TypeId::of::<K>(), ApiResource::erase::<K>(&dynamic_type), how);
        let mut held = self.0.held.lock();
        if let Some(informer) = held.get(&id).and_then(|held| held.downcast_ref::<Informer<K>>()) {
            return informer.clone();
        }
        let informer = Informer::<K>::new(self.0.client.clone(), dynamic_type, selection, content);
        held.insert(id, Box::new(informer.clone()));
        let shared = informer.0.shared.clone();
        match self.0.waiting.lock().as_mut() {
            Some(waiting) => waiting.push(shared),
            None => self.begin(shared),
        }
        informer
    }

    fn begin(&self, shared: Arc<Shared>) {
        tokio::spawn(reflect::run(shared, self.0.shutdown.clone()));
    }

    /// Begins the watches, after the loops have added their indices and routes. Later informers begin at once.
    pub fn start(&self) {
        let waiting = self.0.waiting.lock().take();
        waiting.into_iter().flatten().for_each(|shared| self.begin(shared));
    }
}

// `Hash` of ApiResource is what keys the registry; named here so that its loss is a compile error in one place.
const _: fn() = || {
    fn needs_hash<T: Hash + Eq>() {}
    needs_hash::<ApiResource>();
};
