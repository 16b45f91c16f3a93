//! What the handles of one informer share, without the type of its objects.

use super::{
    object::{Decode, Held, Object},
    store::{Change, Store},
};
use crate::{ActError, Key};
use kube::{
    Api, Client,
    core::{ApiResource, ObjectMeta},
    runtime::watcher,
};
use parking_lot::RwLock;
use proa_crds::{Decoded, Encoded};
use serde::de::Error;
use std::{
    any::Any,
    collections::HashSet,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::watch;

/// The store of one kind, how it is filled, and who is told.
pub(crate) struct Shared {
    pub(super) client: Client,
    pub(super) resource: ApiResource,
    /// Which objects of the kind: all, or those a selector selects.
    pub(super) selection: watcher::Config,
    pub(super) store: RwLock<Store>,
    pub(super) decode: Decode,
    pub(super) routes: Box<dyn Tell>,
    pub(super) keep_managed_fields: AtomicBool,
    pub(super) may_be_unknown: AtomicBool,
    pub(super) content: Option<OnDemand>,
    pub(super) slim: OnceLock<Strip>,
    pub(super) synced: watch::Sender<bool>,
    /// Bumped after every change of the store.
    pub(super) moved: watch::Sender<u64>,
}

/// Whoever asked to be told of the changes of one kind.
pub(super) trait Tell: Send + Sync {
    /// In this order.
    fn tell(&self, changes: Vec<Change<dyn Object>>);
}

/// Takes something out of an object on its way in.
pub(super) type Strip = Box<dyn Fn(&mut dyn Object) + Send + Sync>;
type Always = Box<dyn Fn(&dyn Object) -> bool + Send + Sync>;

/// Content that is kept only of what was asked for, and of what `always` says.
pub(super) struct OnDemand {
    strip: Strip,
    always: Always,
    wanted: RwLock<HashSet<Key>>,
}

impl OnDemand {
    pub(super) fn new<K: 'static>(strip: fn(&mut K), always: fn(&K) -> bool) -> Self {
        OnDemand {
            strip: of_type(strip),
            always: Box::new(move |object| (object as &dyn Any).downcast_ref().is_some_and(always)),
            wanted: RwLock::default(),
        }
    }
}

/// The same without the type.
pub(super) fn of_type<K: 'static>(strip: fn(&mut K)) -> Strip {
    Box::new(move |object| {
        if let Some(object) = (object as &mut dyn Any).downcast_mut() {
            strip(object);
        }
    })
}

/// In memory alone, in a field no server writes since Kubernetes 1.20: the content was left out.
const STRIPPED: &str = "stripped";

/// Whether only the metadata of the object is here (see [`super::Informers::on_demand`]).
pub(crate) fn is_stripped(meta: &ObjectMeta) -> bool {
    meta.self_link.as_deref() == Some(STRIPPED)
}

/// The resource version as a number. Since Kubernetes 1.35 (KEP-5504) clients may compare them.
pub(crate) fn revision_in(metadata: &ObjectMeta) -> Option<u64> {
    metadata.resource_version.as_deref()?.parse().ok()
}

impl Shared {
    pub(super) fn new(
        client: Client,
        resource: ApiResource,
        selection: watcher::Config,
        decode: Decode,
        routes: Box<dyn Tell>,
        content: Option<OnDemand>,
    ) -> Self {
        Shared {
            client,
            resource,
            selection,
            store: RwLock::default(),
            decode,
            routes,
            keep_managed_fields: AtomicBool::new(false),
            may_be_unknown: AtomicBool::new(false),
            content,
            slim: OnceLock::new(),
            synced: watch::Sender::new(false),
            moved: watch::Sender::new(0),
        }
    }

    pub(super) fn report(&self, changes: Vec<Change<dyn Object>>) {
        self.moved.send_modify(|count| *count = count.wrapping_add(1));
        self.routes.tell(changes);
    }

    /// The object as the store keeps it.
    pub(super) fn read(&self, object: Encoded) -> Decoded<Held> {
        let whole = self.keep_managed_fields.load(Ordering::Relaxed);
        let mut read = (self.decode)(if whole { object } else { object.without_managed_fields() });
        // Nobody else holds it yet.
        if let Decoded::Object(object) = &mut read
            && let Some(object) = Arc::get_mut(object)
        {
            self.trim(object);
        }
        read
    }

    fn trim(&self, object: &mut dyn Object) {
        if let Some(slim) = self.slim.get() {
            slim(object);
        }
        if let Some(OnDemand { strip, always, wanted }) = &self.content
            && !always(object)
            && !wanted.read().contains(&Key::in_metadata(object.metadata()))
        {
            strip(object);
            object.metadata_mut().self_link = Some(STRIPPED.to_owned());
        }
    }

    /// From now on the content of that object is kept too. What is held of it may still be stripped: read it anew then.
    pub(super) fn want(&self, key: &Key) {
        if let Some(content) = &self.content
            && !content.wanted.read().contains(key)
        {
            content.wanted.write().insert(key.clone());
        }
    }

    /// The object has been seen at this resource version or later, or everything up to it has.
    pub(crate) fn has_seen(&self, key: &Key, revision: u64) -> bool {
        let store = self.store.read();
        store.revision() >= revision || store.get(key).and_then(|held| revision_in(held.metadata())) >= Some(revision)
    }

    /// The object is gone, replaced, or marked for deletion.
    pub(crate) fn has_lost(&self, key: &Key, uid: &str) -> bool {
        self.store.read().get(key).is_none_or(|object| {
            let metadata = object.metadata();
            metadata.uid.as_deref() != Some(uid) || metadata.deletion_timestamp.is_some()
        })
    }

    /// Told of every change.
    pub(crate) fn moves(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// Reads the object from the server and takes it in: for when an event got lost.
    pub(crate) async fn refresh(&self, key: &Key) -> Result<(), kube::Error> {
        let change = match self.read_live(key).await? {
            Some(object) => match self.read(object) {
                Decoded::Object(object) => self.store.write().put_alone(object),
                Decoded::Undecodable(unread) => return Err(kube::Error::SerdeError(Error::custom(unread.error))),
            },
            None => self.store.write().remove(key, None),
        };
        self.report(change.into_iter().collect());
        Ok(())
    }

    async fn read_live(&self, key: &Key) -> Result<Option<Encoded>, kube::Error> {
        let api: Api<Encoded> = if key.namespace.is_empty() {
            Api::all_with(self.client.clone(), &self.resource)
        } else {
            Api::namespaced_with(self.client.clone(), &key.namespace, &self.resource)
        };
        api.get_opt(&key.name).await
    }

    /// Reads the object from the server before something is made in its name. When it is not as it was seen, the new
    /// state is taken in and the caller has to look again.
    pub(super) async fn confirm(&self, key: &Key) -> Result<Held, ActError> {
        let get = || self.store.read().get(key);
        let seen = get();
        self.refresh(key).await?;
        let live = get().ok_or_else(|| ActError::Gone(key.to_string()))?;
        let same = |seen: &ObjectMeta, live: &ObjectMeta| {
            seen.uid == live.uid
                && seen.generation == live.generation
                && seen.deletion_timestamp == live.deletion_timestamp
        };
        match seen.is_some_and(|seen| same(seen.metadata(), live.metadata())) {
            true => Ok(live),
            false => Err(ActError::Conflict(format!("{key} was seen as it no longer is"))),
        }
    }
}
