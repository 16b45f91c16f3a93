//! Who is there, in which namespace, and who owns whom: the metadata of every object. Pure.

use crate::Key;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::ApiResource;
use proa_crds::Ties;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

/// How many uids are remembered that are known to be gone: uids never come back.
const REMEMBERED: usize = 20_000;

/// A resource as discovery tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Group, version, kind, plural.
    pub api: ApiResource,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// What it can do.
    pub verbs: Vec<String>,
}

impl Resource {
    /// Whether the resource has this verb.
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|held| held == verb)
    }

    /// `pods.`, `deployments.apps`: as Kubernetes writes it in messages.
    pub fn label(&self) -> String {
        format!("{}.{}", self.api.plural, self.api.group)
    }
}

/// What the catalogue knows of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Its uid.
    pub uid: Arc<str>,
    /// What it is.
    pub resource: Arc<Resource>,
    /// Where it is.
    pub key: Key,
    /// Its `resourceVersion`.
    pub version: String,
    /// Its owners.
    pub owners: Vec<OwnerReference>,
    /// Its finalizers.
    pub finalizers: Vec<String>,
    /// Whether it is marked for deletion.
    pub deleting: bool,
}

impl Item {
    /// Reads an object's metadata; `None` without a uid.
    pub fn of(resource: Arc<Resource>, meta: Ties) -> Option<Item> {
        Some(Item {
            uid: meta.uid?.into(),
            resource,
            key: Key::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default()),
            version: meta.resource_version.unwrap_or_default(),
            owners: meta.owner_references.unwrap_or_default(),
            finalizers: meta.finalizers.unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        })
    }

    /// Whether it is found where the other is, under the same names.
    fn is_filed_as(&self, other: &Item) -> bool {
        self.uid == other.uid
            && self.key == other.key
            && self.owners == other.owners
            && Arc::ptr_eq(&self.resource, &other.resource)
    }

    /// Whether it has this finalizer.
    pub fn has_finalizer(&self, name: &str) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == name)
    }

    /// Being deleted, after what it owns (foreground cascading deletion).
    pub fn deletes_dependents_first(&self) -> bool {
        self.deleting && self.has_finalizer(FOREGROUND)
    }

    /// Its references to that owner.
    pub fn owned_by<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a OwnerReference> {
        self.owners.iter().filter(move |owner| owner.uid == uid)
    }
}

/// The finalizer of foreground cascading deletion.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of orphaning deletion.
pub const ORPHAN: &str = "orphan";

/// Whether an owner is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    Present,
    /// It is, and waits for its dependents to go first.
    DeletesDependentsFirst,
    /// It is not.
    Absent,
    /// We have not seen it: only the server can tell.
    Unknown,
}

/// What happened to an object.
#[derive(Clone, Debug)]
pub struct Change {
    /// Before.
    pub old: Option<Arc<Item>>,
    /// Now.
    pub new: Option<Arc<Item>>,
}

/// Every object by uid, place, owner and namespace.
#[derive(Debug, Default)]
pub struct Graph {
    items: HashMap<Arc<str>, Arc<Item>>,
    places: HashMap<(String, Key), Arc<str>>,
    dependents: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    namespaces: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Seen being deleted.
    gone: Remembered<Arc<str>>,
    /// Asked for in vain: an owner's uid, and the namespace it was looked for in.
    absent: Remembered<(Arc<str>, Arc<str>)>,
    /// Answered for by the server although we do not watch it (yet).
    vouched: Remembered<(Arc<str>, Arc<str>)>,
}

/// A set that forgets the oldest.
#[derive(Debug)]
struct Remembered<T> {
    set: HashSet<T>,
    order: VecDeque<T>,
}

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Remembered { set: HashSet::new(), order: VecDeque::new() }
    }
}

impl<T: Clone + Eq + std::hash::Hash> Remembered<T> {
    fn insert(&mut self, value: T) {
        if self.set.insert(value.clone()) {
            self.order.push_back(value);
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.set.remove(&oldest);
            }
        }
    }
}

impl Graph {
    /// The object with that uid.
    pub fn get(&self, uid: &str) -> Option<&Arc<Item>> {
        self.items.get(uid)
    }

    /// Takes in an object.
    pub fn put(&mut self, item: Item) -> Change {
        // Most changes leave everything where it is.
        if let Some(held) = self.items.get_mut(&item.uid).filter(|held| held.is_filed_as(&item)) {
            let new = Arc::new(Item { uid: held.uid.clone(), key: held.key.clone(), ..item });
            return Change { old: Some(std::mem::replace(held, new.clone())), new: Some(new) };
        }
        let place = place(&item);
        // Another object at the same place: its deletion was missed.
        if let Some(before) = self.places.get(&place).filter(|uid| **uid != item.uid).cloned() {
            self.remove(&before);
        }
        let old = self.detach(&item.uid);
        let new = Arc::new(item);
        self.places.insert(place, new.uid.clone());
        for owner in &new.owners {
            self.dependents.entry(owner.uid.as_str().into()).or_default().insert(new.uid.clone());
        }
        self.namespaces.entry(new.key.namespace.clone()).or_default().insert(new.uid.clone());
        self.items.insert(new.uid.clone(), new.clone());
        Change { old, new: Some(new) }
    }

    /// Takes out an object that is gone.
    pub fn remove(&mut self, uid: &str) -> Change {
        let old = self.detach(uid);
        if let Some(old) = &old {
            self.gone.insert(old.uid.clone());
        }
        Change { old, new: None }
    }

    /// Takes out what a fresh list of a resource does not hold.
    pub fn keep_only(&mut self, resource: &Resource, listed: &HashSet<Arc<str>>) -> Vec<Change> {
        let of = |item: &Item| {
            item.resource.api.group == resource.api.group && item.resource.api.plural == resource.api.plural
        };
        let stale: Vec<Arc<str>> = self
            .items
            .values()
            .filter(|item| of(item) && !listed.contains(&item.uid))
            .map(|item| item.uid.clone())
            .collect();
        stale.iter().map(|uid| self.remove(uid)).collect()
    }

    fn detach(&mut self, uid: &str) -> Option<Arc<Item>> {
        let item = self.items.remove(uid)?;
        self.places.remove(&place(&item));
        for owner in &item.owners {
            if let Some(dependents) = self.dependents.get_mut(owner.uid.as_str()) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(owner.uid.as_str());
                }
            }
        }
        if let Some(content) = self.namespaces.get_mut(&item.key.namespace) {
            content.remove(uid);
            if content.is_empty() {
                self.namespaces.remove(&item.key.namespace);
            }
        }
        Some(item)
    }

    /// What the object with that uid owns.
    pub fn dependents(&self, uid: &str) -> Vec<Arc<Item>> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|uid| self.items.get(uid).cloned()).collect()
    }

    /// What is in a namespace.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Item>> {
        self.namespaces.get(namespace).into_iter().flatten().filter_map(|uid| self.items.get(uid))
    }

    /// Whether an owner of an object in `namespace` is there. An owner lives in the same namespace or in none.
    pub fn presence(&self, owner: &OwnerReference, namespace: &str) -> Presence {
        let group = owner.api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let same = |item: &&Arc<Item>| {
            item.resource.api.kind == owner.kind
                && item.resource.api.group == group
                && *item.key.name == *owner.name
                && (item.key.namespace.is_empty() || *item.key.namespace == *namespace)
        };
        if let Some(item) = self.items.get(owner.uid.as_str()).filter(same) {
            return if item.deletes_dependents_first() { Presence::DeletesDependentsFirst } else { Presence::Present };
        }
        let asked = (Arc::from(owner.uid.as_str()), Arc::from(namespace));
        if self.gone.set.contains(owner.uid.as_str()) || self.absent.set.contains(&asked) {
            return Presence::Absent;
        }
        if self.vouched.set.contains(&asked) { Presence::Present } else { Presence::Unknown }
    }

    /// What the server answered about an owner of an object in `namespace`.
    pub fn learn(&mut self, uid: &str, namespace: &str, there: bool) {
        let asked = (Arc::from(uid), Arc::from(namespace));
        if there { self.vouched.insert(asked) } else { self.absent.insert(asked) }
    }

    /// Counts, by resource, what is left in a namespace.
    pub fn remaining(&self, namespace: &str) -> BTreeMap<String, Remaining> {
        let mut remaining: BTreeMap<String, Remaining> = BTreeMap::new();
        for item in self.in_namespace(namespace).filter(|item| !item.key.namespace.is_empty()) {
            let entry = remaining.entry(item.resource.label()).or_insert_with(|| Remaining::of(item.resource.clone()));
            entry.count += 1;
            entry.untouched += usize::from(!item.deleting);
            for finalizer in &item.finalizers {
                *entry.finalizers.entry(finalizer.clone()).or_default() += 1;
            }
        }
        remaining
    }
}

/// What is left of a resource in a namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Remaining {
    /// The resource.
    pub resource: Arc<Resource>,
    /// How many objects.
    pub count: usize,
    /// How many of them are not marked for deletion.
    pub untouched: usize,
    /// How many of them have each finalizer.
    pub finalizers: BTreeMap<String, usize>,
}

impl Remaining {
    /// Nothing yet.
    pub fn of(resource: Arc<Resource>) -> Remaining {
        Remaining { resource, count: 0, untouched: 0, finalizers: BTreeMap::new() }
    }
}

fn place(item: &Item) -> (String, Key) {
    (item.resource.label(), item.key.clone())
}
