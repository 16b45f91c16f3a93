//! The resources this server has right now: the built-in table of kinds plus the custom ones.
//!
//! One immutable table, swapped as a whole when a CustomResourceDefinition changes, so a request sees
//! one consistent set from start to end and reading costs no lock.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::GroupResource;

use crate::cache::{Cache, Caches};
use crate::conversion::Converted;
use crate::kinds::{Convert, Kind, Scope, Subresource};
use crate::registry::codec;

/// One served version of one resource.
pub struct Resource {
    /// Its row in the table of kinds.
    pub kind: Kind,
    /// Its objects.
    pub cache: Arc<Cache>,
    /// For a custom resource: the definition's name and the revision it was read at.
    pub custom: Option<Custom>,
    /// A custom resource's schema fills in fields: objects stored before it did get them when they are read.
    defaulted: bool,
    /// What a webhook made of objects of other versions.
    pub converted: Converted,
    /// How stored bytes of this very version begin.
    head: String,
}

/// Where a custom resource comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Custom {
    /// The CustomResourceDefinition's name.
    pub definition: String,
    /// Its resource version: part of the OpenAPI document's hash.
    pub revision: u64,
    /// It is being deleted: nothing new is created.
    pub terminating: bool,
}

/// All resources at one moment.
#[derive(Default)]
pub struct Table {
    by_name: HashMap<(String, String, String), Arc<Resource>>,
    /// The groups, in the order discovery lists them.
    pub groups: Vec<Group>,
}

/// A group in discovery.
pub struct Group {
    /// Its name; empty for the core group.
    pub name: String,
    /// Its versions, preferred first.
    pub versions: Vec<GroupVersion>,
}

/// A version of a group.
pub struct GroupVersion {
    /// Its name.
    pub version: String,
    /// Its resources.
    pub resources: Vec<Arc<Resource>>,
}

impl Resource {
    /// Whether objects live in namespaces.
    pub fn namespaced(&self) -> bool {
        self.kind.scope == Scope::Namespaced
    }

    /// Whether the bytes in the store are what clients of this version get, for every object.
    pub fn stored_as_served(&self) -> bool {
        self.kind.storage.convert.is_none() && self.kind.storage.webhook.is_none() && !self.defaulted
    }

    /// Whether these stored bytes are what clients of this version get.
    pub fn serves_as_stored(&self, stored: &[u8]) -> bool {
        if self.stored_as_served() {
            return true;
        }
        // Whatever was written after the definition has been through its defaults.
        let complete = || self.custom.as_ref().is_some_and(|custom| codec::revision(stored) > custom.revision);
        self.is_stored_in_own_version(stored) && (!self.defaulted || complete())
    }

    /// Whether these stored bytes are of this very version. A definition's objects are each of the version that was the
    /// storage version when they were written.
    pub fn is_stored_in_own_version(&self, stored: &[u8]) -> bool {
        match self.kind.storage.convert {
            Some(Convert::Functions { .. }) => false,
            _ => stored.starts_with(self.head.as_bytes()),
        }
    }

    /// Whether these stored bytes are of the version that objects are stored in now.
    pub fn is_in_storage_version(&self, stored: &[u8]) -> bool {
        match (&self.custom, &self.kind.storage.api_version) {
            (Some(_), Some(version)) => stored.starts_with(head(version).as_bytes()),
            _ => true,
        }
    }

    /// An object as clients of this version get it, from the one in the store.
    pub fn to_served(&self, stored: Object) -> Object {
        let mut object = self.kind.from_storage(stored);
        if self.defaulted {
            self.kind.strategy.default(&mut object);
        }
        object
    }

    /// The bytes clients of this version get, from those in the store.
    pub fn served(&self, stored: &Bytes) -> Bytes {
        if self.serves_as_stored(stored) {
            return stored.clone();
        }
        match serde_json::from_slice(stored) {
            Ok(object) => codec::plain(&self.to_served(object)),
            Err(_) => stored.clone(),
        }
    }

    /// The resource as messages name it.
    pub fn group_resource(&self) -> GroupResource<'_> {
        GroupResource::new(&self.kind.group, &self.kind.plural)
    }

    /// The kind as messages name it.
    pub fn group_kind(&self) -> GroupResource<'_> {
        GroupResource::new(&self.kind.group, &self.kind.kind)
    }

    /// `v1`, `apps/v1` …
    pub fn api_version(&self) -> String {
        api_version(&self.kind.group, &self.kind.version)
    }

    /// Whether the subresource `name` exists.
    pub fn has_subresource(&self, name: &str) -> bool {
        self.kind.subresources.iter().any(|have| match have {
            Subresource::Status => name == "status",
            Subresource::Scale(_) => name == "scale",
            Subresource::Named(have) => *have == name,
        })
    }
}

/// `version` or `group/version`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

impl Table {
    /// The resource of a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        // Three short strings per request; a borrowed key would need a key type of its own.
        self.by_name.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// The resource of a kind.
    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.group_version(group, version)?.resources.iter().find(|resource| resource.kind.kind == kind)
    }

    /// A group and version.
    pub fn group_version(&self, group: &str, version: &str) -> Option<&GroupVersion> {
        self.group(group)?.versions.iter().find(|have| have.version == version)
    }

    /// A group.
    pub fn group(&self, group: &str) -> Option<&Group> {
        self.groups.iter().find(|have| have.name == group)
    }

    /// Every resource.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.groups.iter().flat_map(|group| &group.versions).flat_map(|version| &version.resources)
    }

    fn build(resources: impl IntoIterator<Item = Arc<Resource>>) -> Table {
        let mut table = Table::default();
        for resource in resources {
            let kind = &resource.kind;
            let key = (kind.group.to_string(), kind.version.to_string(), kind.plural.to_string());
            if table.by_name.insert(key, Arc::clone(&resource)).is_some() {
                continue;
            }
            let at = table.groups.iter().position(|group| group.name == kind.group).unwrap_or_else(|| {
                table.groups.push(Group { name: kind.group.to_string(), versions: Vec::new() });
                table.groups.len() - 1
            });
            let versions = &mut table.groups[at].versions;
            match versions.iter_mut().find(|version| version.version == kind.version) {
                Some(version) => version.resources.push(resource),
                None => versions.push(GroupVersion { version: kind.version.to_string(), resources: vec![resource] }),
            }
        }
        for group in &mut table.groups {
            group.versions.sort_by_key(|version| std::cmp::Reverse(version_rank(&version.version)));
        }
        // Core first, then the built-in groups as the table of kinds lists them, then custom ones by name.
        table.groups.sort_by_cached_key(|group| {
            let custom =
                group.versions.iter().all(|version| version.resources.iter().all(|resource| resource.custom.is_some()));
            (!group.name.is_empty(), custom, if custom { group.name.clone() } else { String::new() })
        });
        table
    }
}

/// Kubernetes' order of versions: stable before beta before alpha, then higher numbers first
/// (`k8s.io/apimachinery/pkg/version`).
pub fn version_rank(version: &str) -> (u8, u64, u64) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u64 = rest[..digits].parse().ok()?;
        let (stage, minor) = match &rest[digits..] {
            "" => (3, ""),
            beta if beta.starts_with("beta") => (2, &beta[4..]),
            alpha if alpha.starts_with("alpha") => (1, &alpha[5..]),
            _ => return None,
        };
        Some((stage, major, minor.parse().unwrap_or(0)))
    };
    parse().unwrap_or((0, 0, 0))
}

/// The current table and how it changes.
pub struct Resources {
    current: ArcSwap<Table>,
    builtin: Vec<Arc<Resource>>,
    custom: Mutex<HashMap<String, Vec<Arc<Resource>>>>,
}

impl Resources {
    /// The built-in kinds.
    pub fn new(caches: &Caches, kinds: Vec<Kind>) -> Resources {
        let builtin: Vec<Arc<Resource>> =
            kinds.into_iter().map(|kind| Arc::new(resource(caches, kind, None))).collect();
        let table = Table::build(builtin.iter().cloned());
        Resources { current: ArcSwap::from_pointee(table), builtin, custom: Mutex::default() }
    }

    /// The table now.
    pub fn table(&self) -> Arc<Table> {
        self.current.load_full()
    }

    /// Sets what a definition serves.
    pub fn set_custom(&self, caches: &Caches, definition: Custom, kinds: Vec<Kind>) {
        let mut custom = self.custom.lock();
        let name = definition.definition.clone();
        let served = |kind| Arc::new(resource(caches, kind, Some(definition.clone())));
        match kinds.is_empty() {
            true => custom.remove(&name),
            false => custom.insert(name, kinds.into_iter().map(served).collect()),
        };
        self.publish(&custom);
    }

    /// Ends what a definition served.
    pub fn remove_custom(&self, definition: &str) {
        let mut custom = self.custom.lock();
        if custom.remove(definition).is_some() {
            self.publish(&custom);
        }
    }

    fn publish(&self, custom: &HashMap<String, Vec<Arc<Resource>>>) {
        let all = self.builtin.iter().cloned().chain(custom.values().flatten().cloned());
        self.current.store(Arc::new(Table::build(all)));
    }
}

fn resource(caches: &Caches, kind: Kind, custom: Option<Custom>) -> Resource {
    let cache = caches.resource(&storage_name(&kind));
    let defaulted = custom.is_some() && kind.schema.has_defaults();
    let head = head(&kind.api_version());
    Resource { kind, cache, custom, defaulted, converted: Converted::default(), head }
}

/// How the bytes of an object of this version begin ([`codec::encode`]).
fn head(api_version: &str) -> String {
    format!("{{\"apiVersion\":\"{api_version}\",")
}

/// The stored resource of a kind: `pods`, `deployments.apps`.
pub fn storage_name(kind: &Kind) -> String {
    let storage = &kind.storage;
    if storage.group.is_empty() { storage.plural.to_string() } else { format!("{}.{}", storage.plural, storage.group) }
}

#[cfg(test)]
mod tests {
    use super::version_rank;

    #[test]
    fn versions_sort_as_kubernetes_sorts_them() {
        let mut versions = ["v1alpha1", "foo", "v2", "v1", "v1beta2", "v10", "v1beta1"];
        versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version)));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }
}
