//! Owns [`Rules`]: the strategy of every built-in kind, a handful of functions over a generic base.
//! Never knows a particular kind.

use proa_apimachinery::Object;
use proa_apimachinery::field::FieldErrors;
use serde_json::{Map, Value};

use super::{Allocation, Graceful, Op, Strategy, meta};

/// The strategy of a built-in kind. What a kind does not say is generic.
#[derive(Clone, Copy)]
pub struct Rules {
    /// The grammar of `metadata.name`.
    pub name: fn(&str) -> Vec<String>,
    /// Status is written through `/status` only, and starts empty.
    pub status: bool,
    /// A new object may bring its status along, as nodes do.
    pub status_on_create: bool,
    /// `metadata.generation` counts changes of the desired state.
    pub generation: bool,
    /// Labels and annotations may change through `/status`, as on Kubernetes for built-in kinds.
    pub metadata_in_status: bool,
    /// See [`Strategy::default`].
    pub default: fn(&mut Object),
    /// Runs after the generic preparation.
    pub prepare: fn(Op, &mut Object, Option<&Object>),
    /// Runs after metadata validation; not for status updates unless `validate_status`.
    pub validate: fn(Op, &Object, Option<&Object>, &mut FieldErrors),
    /// Validates a status update.
    pub validate_status: fn(&Object, &Object, &mut FieldErrors),
    /// See [`Strategy::warnings`].
    pub warnings: fn(&Object) -> Vec<String>,
    /// See [`Strategy::allocate`].
    pub allocate: fn(Op, &Object, Option<&Object>) -> Vec<Allocation>,
    /// See [`Strategy::graceful`].
    pub graceful: fn(&Object, Option<i64>) -> Graceful,
    /// See [`Strategy::unsupported`].
    pub unsupported: fn(&Object) -> FieldErrors,
    /// Set for kinds nothing acts on yet; the user is told once per create.
    pub inert: Option<&'static str>,
}

impl Rules {
    /// Names are subdomains; no status, no generation, nothing special.
    pub const GENERIC: Rules = Rules {
        name: proa_apimachinery::names::is_dns1123_subdomain,
        status: false,
        status_on_create: false,
        generation: false,
        metadata_in_status: true,
        default: |_| {},
        prepare: |_, _, _| {},
        validate: |_, _, _, _| {},
        validate_status: |_, _, _| {},
        warnings: |_| Vec::new(),
        allocate: |_, _, _| Vec::new(),
        graceful: |_, _| Graceful::Now,
        unsupported: |_| Vec::new(),
        inert: None,
    };

    /// Desired state in `spec`, observed state in `status`.
    pub const WITH_STATUS: Rules = Rules { status: true, ..Rules::COUNTED };

    /// Changes of the desired state are counted.
    pub const COUNTED: Rules = Rules { generation: true, ..Rules::GENERIC };
}

impl Strategy for Rules {
    fn default(&self, object: &mut Object) {
        (self.default)(object);
    }

    fn prepare(&self, op: Op, new: &mut Object, old: Option<&Object>) {
        let status = self.status && !(op == Op::Create && self.status_on_create);
        prepare(op, new, old, status, self.generation);
        if op == Op::UpdateStatus
            && !self.metadata_in_status
            && let Some(old) = old
        {
            keep_user_metadata(new, old);
        }
        (self.prepare)(op, new, old);
    }

    fn validate(&self, op: Op, new: &Object, old: Option<&Object>) -> FieldErrors {
        let mut errors = FieldErrors::new();
        meta::validate(op, new, old, self.name, &mut errors);
        meta::standard_finalizers(new, &mut errors);
        match (op, old) {
            (Op::Delete, _) => return FieldErrors::new(),
            (Op::UpdateStatus, Some(old)) => (self.validate_status)(new, old, &mut errors),
            _ => (self.validate)(op, new, old, &mut errors),
        }
        errors
    }

    fn warnings(&self, new: &Object) -> Vec<String> {
        let mut warnings = (self.warnings)(new);
        // Once, when it is made: objects from the store have a resource version.
        if let (Some(what), true) = (self.inert, new.resource_version().is_empty()) {
            warnings.push(format!("{what}: stored and served, but no controller of Proa acts on it yet"));
        }
        warnings
    }

    fn allocate(&self, op: Op, new: &Object, old: Option<&Object>) -> Vec<Allocation> {
        (self.allocate)(op, new, old)
    }

    fn graceful(&self, object: &Object, requested: Option<i64>) -> Graceful {
        (self.graceful)(object, requested)
    }

    fn unsupported(&self, new: &Object) -> FieldErrors {
        (self.unsupported)(new)
    }
}

/// The generic preparation. `status`: it is isolated in its own subresource. `generation`: changes of
/// anything but metadata and status are counted.
pub(super) fn prepare(op: Op, new: &mut Object, old: Option<&Object>, status: bool, generation: bool) {
    match (op, old) {
        (Op::Create, _) | (_, None) => {
            if status {
                new.0.shift_remove("status");
            }
            meta::reset_system_fields(new);
            if generation {
                new.metadata_mut().insert("generation".to_owned(), 1.into());
            }
        }
        (Op::Update, Some(old)) => {
            meta::keep_system_fields(new, old);
            if status {
                take(new, old, "status");
            }
            if generation {
                let bump = desired(new) != desired(old);
                // Marking for deletion counts as a change too; the core bumps for that one.
                let next = old.generation() + i64::from(bump);
                new.metadata_mut().insert("generation".to_owned(), next.into());
            }
        }
        (Op::UpdateStatus, Some(old)) => {
            let own = |name: &str| matches!(name, "status" | "metadata");
            new.0.retain(|name, _| own(name) || old.0.contains_key(name));
            // Mostly it is as it was already, and looking costs less than copying.
            for (name, value) in old.0.iter().filter(|(name, _)| !own(name)) {
                if new.0.get(name) != Some(value) {
                    new.0.insert(name.clone(), value.clone());
                }
            }
            meta::keep_system_fields(new, old);
            meta::keep_ownership(new, old);
            if let Some(generation) = old.metadata().and_then(|m| m.get("generation")) {
                new.metadata_mut().insert("generation".to_owned(), generation.clone());
            }
        }
        (Op::Delete, _) => {}
    }
}

/// A status writer that may touch nothing of the metadata.
pub(super) fn keep_user_metadata(new: &mut Object, old: &Object) {
    let fields = new.metadata_mut().shift_remove("managedFields");
    if let Some(Value::Object(metadata)) = old.0.get("metadata") {
        let kept = metadata.iter().filter(|(name, _)| *name != "managedFields");
        let mut metadata: Map<String, Value> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        if let Some(version) = new.metadata().and_then(|m| m.get("resourceVersion")) {
            metadata.insert("resourceVersion".to_owned(), version.clone());
        }
        if let Some(fields) = fields {
            metadata.insert("managedFields".to_owned(), fields);
        }
        new.0.insert("metadata".to_owned(), Value::Object(metadata));
    }
}

/// Everything but metadata and status, with field order left out of account.
fn desired(object: &Object) -> Vec<(&str, &Value)> {
    let mut fields: Vec<(&str, &Value)> = object
        .0
        .iter()
        .filter(|(k, _)| !matches!(k.as_str(), "metadata" | "status" | "apiVersion" | "kind"))
        .map(|(k, v)| (k.as_str(), v))
        .collect();
    fields.sort_by_key(|(k, _)| *k);
    fields
}

fn put(object: &mut Object, field: &str, value: Option<Value>) {
    match value {
        Some(value) => {
            object.0.insert(field.to_owned(), value);
        }
        None => {
            object.0.shift_remove(field);
        }
    }
}

fn take(new: &mut Object, old: &Object, field: &str) {
    put(new, field, old.0.get(field).cloned());
}
