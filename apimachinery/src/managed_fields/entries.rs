//! Owns `metadata.managedFields`: reading and writing it, and which entries are one manager's.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{Manager, Operation, path::Element, set::Set};

/// Objects remember this many managers that update; the oldest are folded into one beyond that.
const MOST_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// Fields nobody owns: they identify the object, or the server alone sets them.
const NEVER_OWNED: [&str; 9] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
];

/// Who an entry belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Id {
    pub(super) manager: String,
    pub(super) operation: Operation,
    pub(super) api_version: String,
    pub(super) subresource: String,
}

impl Id {
    pub(super) fn of(manager: Manager<'_>) -> Id {
        Id {
            manager: manager.name.to_owned(),
            operation: manager.operation,
            api_version: manager.api_version.to_owned(),
            subresource: manager.subresource.to_owned(),
        }
    }

    /// Whether two entries are the same manager's. An applier stays itself when it changes versions.
    fn is(&self, other: &Id) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }
}

/// One manager's fields.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) id: Id,
    pub(super) time: String,
    pub(super) fields: Set,
    /// The set as it was read, to be written again as it is when nothing has changed.
    pub(super) read: Option<(Set, Value)>,
}

impl Entry {
    pub(super) fn new(id: Id, time: String, fields: Set) -> Entry {
        Entry { id, time, fields, read: None }
    }
}

/// All managers of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Entries(pub(super) Vec<Entry>);

impl Entries {
    /// Reads the list. `None` when any entry cannot be understood: half an ownership is worse than none.
    pub(super) fn read(value: Option<Value>) -> Option<Entries> {
        let list = match value {
            None | Some(Value::Null) => return Some(Entries::default()),
            Some(Value::Array(list)) => list,
            Some(_) => return None,
        };
        let mut entries = Entries::default();
        for mut item in list {
            let wire = item.get_mut("fieldsV1").map(Value::take).filter(|wire| !wire.is_null());
            let text = |field: &str| item.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
            let operation = match item.get("operation").and_then(Value::as_str)? {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            };
            if item.get("fieldsType").and_then(Value::as_str) != Some("FieldsV1") {
                return None;
            }
            let id = Id {
                manager: text("manager"),
                operation,
                api_version: text("apiVersion"),
                subresource: text("subresource"),
            };
            let fields = match &wire {
                None => Set::default(),
                Some(wire) => Set::from_fields_v1(wire)?,
            };
            match entries.0.iter_mut().find(|entry| entry.id.is(&id)) {
                Some(entry) => entry.fields.absorb(fields),
                None => entries.0.push(Entry::read(id, text("time"), fields, wire)),
            }
        }
        Some(entries)
    }

    /// Writes the list in the order Kubernetes keeps: appliers first, then by age. Empty: no list.
    pub(super) fn write(mut self, metadata: &mut Map<String, Value>) {
        self.0.retain(|entry| !entry.fields.is_empty());
        self.cap();
        if self.0.is_empty() {
            metadata.shift_remove("managedFields");
            return;
        }
        self.0.sort_by(|a, b| {
            let key = |e: &Entry| {
                (
                    e.id.operation,
                    e.time.clone(),
                    e.id.manager.clone(),
                    e.id.api_version.clone(),
                    e.id.subresource.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
        let list = self.0.iter_mut().map(Entry::write).collect();
        metadata.insert("managedFields".into(), Value::Array(list));
    }

    /// Takes a manager's entry out.
    pub(super) fn take(&mut self, id: &Id) -> Option<Entry> {
        let index = self.0.iter().position(|entry| entry.id.is(id))?;
        Some(self.0.swap_remove(index))
    }

    /// Every field anyone owns.
    pub(super) fn union(&self) -> Set {
        let mut all = Set::default();
        for entry in &self.0 {
            all.absorb(entry.fields.clone());
        }
        all
    }

    /// Folds the oldest updaters of the object itself into one, until few enough are left.
    fn cap(&mut self) {
        let is_updater = |e: &Entry| e.id.operation == Operation::Update && e.id.subresource.is_empty();
        while self.0.iter().filter(|e| is_updater(e)).count() > MOST_UPDATERS {
            let foldable = self.0.iter().enumerate().filter(|(_, e)| is_updater(e) && e.id.manager != ANCIENT);
            let Some(oldest) = foldable.min_by(|(_, a), (_, b)| a.time.cmp(&b.time)).map(|(index, _)| index) else {
                return;
            };
            let entry = self.0.remove(oldest);
            let id = Id { manager: ANCIENT.to_owned(), ..entry.id };
            match self.0.iter_mut().find(|e| e.id.is(&id)) {
                Some(bucket) => {
                    bucket.fields.absorb(entry.fields);
                    bucket.time = std::mem::take(&mut bucket.time).max(entry.time);
                }
                None => self.0.push(Entry { id, ..entry }),
            }
        }
    }
}

impl Entry {
    fn read(id: Id, time: String, fields: Set, wire: Option<Value>) -> Entry {
        let read = wire.map(|wire| (fields.clone(), wire));
        Entry { read, ..Entry::new(id, time, fields) }
    }

    fn write(&mut self) -> Value {
        let fields = match self.read.take() {
            Some((fields, wire)) if Arc::ptr_eq(&fields.nodes, &self.fields.nodes) => wire,
            _ => self.fields.to_fields_v1(),
        };
        let mut entry = json!({
            "manager": self.id.manager,
            "operation": self.id.operation.as_str(),
            "apiVersion": self.id.api_version,
        });
        if let Some(map) = entry.as_object_mut() {
            if !self.time.is_empty() {
                map.insert("time".into(), self.time.as_str().into());
            }
            map.insert("fieldsType".into(), "FieldsV1".into());
            map.insert("fieldsV1".into(), fields);
            if !self.id.subresource.is_empty() {
                map.insert("subresource".into(), self.id.subresource.as_str().into());
            }
        }
        entry
    }
}

/// Takes what nobody may own out of a set of an object's fields.
pub(super) fn strip(set: &mut Set) {
    for field in ["apiVersion", "kind"] {
        set.nodes_mut().remove(&Element::field(field));
    }
    let metadata = Element::field("metadata");
    if let Some(node) = set.nodes_mut().get_mut(&metadata) {
        node.member = false;
        for field in NEVER_OWNED {
            node.below.nodes_mut().remove(&Element::field(field));
        }
        if node.below.is_empty() {
            set.nodes_mut().remove(&metadata);
        }
    }
}
