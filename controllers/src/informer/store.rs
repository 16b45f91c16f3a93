//! The objects of one kind, with indices. Pure: no IO, no tasks.

use super::{
    object::{Held, Object},
    shared::{is_stripped, revision_in},
};
use crate::Key;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// What happened to one object.
#[derive(Debug)]
pub struct Change<K: ?Sized> {
    /// The object's key.
    pub key: Key,
    /// The object before, if the store held it.
    pub old: Option<Arc<K>>,
    /// The object now; `None` after a deletion.
    pub new: Option<Arc<K>>,
}

impl<K: ?Sized> Clone for Change<K> {
    fn clone(&self) -> Self {
        Change { key: self.key.clone(), old: self.old.clone(), new: self.new.clone() }
    }
}

impl<K: ?Sized> Change<K> {
    /// The object now, or as it last was.
    pub fn latest(&self) -> Option<&Arc<K>> {
        self.new.as_ref().or(self.old.as_ref())
    }

    /// Both states, old first.
    pub fn states(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(self.new.iter())
    }
}

type IndexFn = Box<dyn Fn(&dyn Object) -> Vec<String> + Send + Sync>;

struct Index {
    values: IndexFn,
    keys: HashMap<String, BTreeSet<Key>>,
}

/// An ordered map of objects with indices.
#[derive(Default)]
pub(crate) struct Store {
    objects: BTreeMap<Key, Held>,
    indices: HashMap<&'static str, Index>,
    revision: u64,
}

impl Store {
    pub(crate) fn add_index(&mut self, name: &'static str, values: IndexFn) {
        if self.indices.contains_key(name) {
            return;
        }
        let mut index = Index { values, keys: HashMap::new() };
        for (key, object) in &self.objects {
            index.follow(key, None, Some(&**object));
        }
        self.indices.insert(name, index);
    }

    /// Takes in the next object of the watch; `None` when the store already holds it, or something newer.
    pub(crate) fn put(&mut self, object: Held) -> Option<Change<dyn Object>> {
        self.saw(revision_in(object.metadata()).unwrap_or(0));
        self.put_alone(object)
    }

    /// Takes in an object that was read by itself. It says nothing of others: what of them was written before it may still
    /// be on its way.
    pub(crate) fn put_alone(&mut self, object: Held) -> Option<Change<dyn Object>> {
        let new = object.metadata();
        let key = Key::in_metadata(new);
        let same = self.objects.get(&key).is_some_and(|held| {
            let held = held.metadata();
            held.uid == new.uid
                && !is_stripped(held)
                && revision_in(new).is_some_and(|at| revision_in(held) == Some(at))
        });
        if same { None } else { self.insert(key, object) }
    }

    fn insert(&mut self, key: Key, new: Held) -> Option<Change<dyn Object>> {
        let revision = revision_in(new.metadata());
        if let (Some(held), Some(revision)) = (self.objects.get(&key), revision)
            && held.metadata().uid == new.metadata().uid
            && revision_in(held.metadata()).is_some_and(|held| held > revision)
        {
            return None;
        }
        let old = self.objects.insert(key.clone(), new.clone());
        for index in self.indices.values_mut() {
            index.follow(&key, old.as_deref(), Some(&*new));
        }
        Some(Change { key, old, new: Some(new) })
    }

    /// Everything up to this resource version has been seen, though nothing of it was taken in.
    pub(crate) fn saw(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// Takes an object out. `last` is the resource version of its final state on the wire.
    pub(crate) fn remove(&mut self, key: &Key, last: Option<u64>) -> Option<Change<dyn Object>> {
        self.saw(last.unwrap_or(0));
        let old = self.objects.remove(key)?;
        for index in self.indices.values_mut() {
            index.follow(key, Some(&*old), None);
        }
        Some(Change { key: key.clone(), old: Some(old), new: None })
    }

    /// Replaces everything by a fresh list, except what the list holds in a state that cannot be read (`unread`).
    /// Reports every object, changed or not: the slow relist behind the watch, which wakes everybody (invariant 10).
    pub(crate) fn replace(&mut self, objects: Vec<Held>, unread: &[Key]) -> Vec<Change<dyn Object>> {
        let mut gone: BTreeSet<Key> = self.objects.keys().cloned().collect();
        gone.retain(|key| !unread.contains(key));
        let mut changes = Vec::with_capacity(objects.len());
        for object in objects {
            let key = Key::in_metadata(object.metadata());
            gone.remove(&key);
            self.saw(revision_in(object.metadata()).unwrap_or(0));
            changes.extend(self.insert(key, object));
        }
        for key in gone {
            changes.extend(self.remove(&key, None));
        }
        changes
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Held> {
        self.objects.get(key).cloned()
    }

    pub(crate) fn list(&self) -> Vec<Held> {
        self.objects.values().cloned().collect()
    }

    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Held> {
        let from = Key::new(namespace, "");
        self.objects
            .range(from..)
            .take_while(|(key, _)| &*key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    pub(crate) fn by_index(&self, name: &str, value: &str) -> Vec<Held> {
        let Some(keys) = self.indices.get(name).and_then(|index| index.keys.get(value)) else { return Vec::new() };
        keys.iter().filter_map(|key| self.objects.get(key).cloned()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    /// The newest resource version seen.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }
}

impl Index {
    /// An object came, changed or went. Most changes leave it where it is found.
    fn follow(&mut self, key: &Key, old: Option<&dyn Object>, new: Option<&dyn Object>) {
        let values = |object: Option<&dyn Object>| object.map(&self.values).unwrap_or_default();
        let (old, new) = (values(old), values(new));
        if old == new {
            return;
        }
        for value in old {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
        for value in new {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::ObjectMeta;

    fn object(name: &str, revision: u64, app: &str) -> Arc<ConfigMap> {
        Arc::new(ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("ns".into()),
                uid: Some(format!("uid-{name}")),
                resource_version: Some(revision.to_string()),
                labels: Some([("app".to_owned(), app.to_owned())].into()),
                ..Default::default()
            },
            ..Default::default()
        })
    }

    fn store() -> Store {
        let mut store = Store::default();
        store.add_index(
            "app",
            Box::new(|map: &dyn Object| map.metadata().labels.iter().flatten().map(|(_, v)| v.clone()).collect()),
        );
        store
    }

    fn names(found: &[Held]) -> Vec<&str> {
        found.iter().filter_map(|o| o.metadata().name.as_deref()).collect()
    }

    #[test]
    fn an_index_follows_its_objects() {
        let mut store = store();
        store.put(object("a", 1, "x"));
        store.put(object("b", 2, "x"));
        assert_eq!(names(&store.by_index("app", "x")), ["a", "b"]);
        store.put(object("a", 3, "y"));
        assert_eq!(names(&store.by_index("app", "x")), ["b"]);
        assert_eq!(names(&store.by_index("app", "y")), ["a"]);
        store.remove(&Key::new("ns", "b"), None);
        assert!(store.by_index("app", "x").is_empty());
        assert_eq!(store.revision(), 3);
    }

    #[test]
    fn what_is_older_than_what_is_held_changes_nothing() {
        let mut store = store();
        store.put(object("a", 5, "new"));
        assert!(store.put(object("a", 4, "old")).is_none());
        assert!(store.put(object("a", 5, "new")).is_none(), "seen again, it wakes nobody");
        assert_eq!(names(&store.by_index("app", "new")), ["a"]);
    }

    #[test]
    fn an_object_read_by_itself_says_nothing_of_others() {
        let mut store = store();
        store.put(object("a", 5, "x"));
        assert!(store.put_alone(object("b", 9, "x")).is_some());
        assert_eq!((names(&store.list()), store.revision()), (vec!["a", "b"], 5));
        assert!(store.put(object("b", 9, "x")).is_none());
        assert_eq!(store.revision(), 9);
    }

    #[test]
    fn a_fresh_list_takes_out_what_it_does_not_hold() {
        let mut store = store();
        store.put(object("a", 1, "x"));
        store.put(object("b", 2, "x"));
        let changes = store.replace(vec![object("b", 2, "x"), object("c", 3, "x")], &[]);
        assert_eq!(changes.len(), 3);
        assert!(changes.iter().any(|c| &*c.key.name == "a" && c.new.is_none()));
        assert_eq!(names(&store.list()), ["b", "c"]);
    }

    #[test]
    fn what_was_stripped_is_replaced_by_the_whole_of_the_same_revision() {
        let mut store = store();
        let mut stub = object("a", 5, "x");
        Arc::make_mut(&mut stub).metadata.self_link = Some("stripped".into());
        store.put(stub);
        let whole = store.put(object("a", 5, "x")).expect("a change");
        assert!(!is_stripped(whole.new.expect("it").metadata()));
        assert!(store.put(object("a", 5, "x")).is_none());
    }

    #[test]
    fn a_namespace_is_a_range() {
        let mut store = store();
        store.put(object("a", 1, "x"));
        let mut other = object("z", 2, "x");
        Arc::make_mut(&mut other).metadata.namespace = Some("nt".into());
        store.put(other);
        assert_eq!(names(&store.in_namespace("ns")), ["a"]);
        assert_eq!(names(&store.in_namespace("nt")), ["z"]);
        assert!(store.in_namespace("n").is_empty());
    }
}
