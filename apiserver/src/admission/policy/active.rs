//! Which policies are in force: those somebody binds.
//!
//! Owns their bindings as they are written, and that a policy is compiled once per change of it.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use proa_apimachinery::object::Object;
use proa_apimachinery::selector::LabelSelector;
use serde_json::Value;

use super::program::{Program, text};
use crate::admission::matching::Matcher;
use crate::cache::{Cache, Caches};

/// A policy that somebody binds.
#[derive(Debug)]
pub struct Active {
    /// The policy.
    pub program: Arc<Program>,
    /// Who binds it, by name.
    pub bindings: Vec<Arc<Binding>>,
}

/// What puts a policy in force, somewhere and with parameters.
#[derive(Debug)]
pub struct Binding {
    /// Its name.
    pub name: String,
    /// To which of the requests the policy is for it is bound; none: to all.
    pub matcher: Option<Result<Matcher, String>>,
    /// Which objects are its parameters.
    pub param_ref: Option<ParamRef>,
    /// What is done about a validation that fails.
    pub actions: Actions,
}

/// `validationActions`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// The request is refused.
    pub deny: bool,
    /// The client is told.
    pub warn: bool,
    /// The audit log is told.
    pub audit: bool,
}

/// `paramRef`.
#[derive(Debug)]
pub struct ParamRef {
    /// By name, or all that a selector selects; or why that cannot be told.
    pub which: Result<Which, String>,
    /// The namespace; empty: that of the request.
    pub namespace: String,
    /// None of them is a reason to refuse.
    pub deny_when_missing: bool,
}

/// Which objects.
#[derive(Debug)]
pub enum Which {
    /// The one of this name.
    Named(String),
    /// All with such labels.
    Selected(LabelSelector),
}

impl Binding {
    fn read(object: &Object) -> (String, Binding) {
        let spec = object.get(&["spec"]).unwrap_or(&Value::Null);
        let actions = object.get_list(&["spec", "validationActions"]);
        let has = |action: &str| actions.iter().any(|have| have == action);
        let given = |field: &str| spec.get(field).filter(|value| !value.is_null());
        let binding = Binding {
            name: object.name().to_owned(),
            matcher: given("matchResources").map(Matcher::read),
            param_ref: given("paramRef").map(ParamRef::read),
            actions: Actions { deny: has("Deny"), warn: has("Warn"), audit: has("Audit") },
        };
        (text(spec, "policyName").to_owned(), binding)
    }
}

impl ParamRef {
    fn read(value: &Value) -> ParamRef {
        let which = match (text(value, "name"), value.get("selector").filter(|selector| !selector.is_null())) {
            ("", Some(selector)) => {
                LabelSelector::from_value(selector).map(Which::Selected).map_err(|error| error.to_string())
            }
            ("", None) => Err("one of name or selector must be provided".to_owned()),
            (_, Some(_)) => Err("paramRef.name and paramRef.selector are mutually exclusive".to_owned()),
            (name, None) => Ok(Which::Named(name.to_owned())),
        };
        ParamRef {
            which,
            namespace: text(value, "namespace").to_owned(),
            deny_when_missing: text(value, "parameterNotFoundAction") == "Deny",
        }
    }
}

/// The policies of one kind that are in force, in the order of their names.
pub struct Index {
    policies: Arc<Cache>,
    bindings: Arc<Cache>,
    mutating: bool,
    read: ArcSwap<Read>,
}

/// What was read last.
#[derive(Default)]
struct Read {
    revisions: (u64, u64),
    active: Arc<Vec<Active>>,
    /// By name, with the revision it was compiled at.
    programs: HashMap<String, (u64, Arc<Program>)>,
}

impl Index {
    fn new(caches: &Caches, policies: &str, bindings: &str, mutating: bool) -> Index {
        let group = |resource: &str| caches.resource(&format!("{resource}.admissionregistration.k8s.io"));
        Index { policies: group(policies), bindings: group(bindings), mutating, read: ArcSwap::default() }
    }

    /// The policies as they are now.
    pub fn active(&self) -> Arc<Vec<Active>> {
        let revisions = (self.policies.last_revision(), self.bindings.last_revision());
        let before = self.read.load();
        if before.revisions == revisions {
            return Arc::clone(&before.active);
        }
        // The items are read after the revisions: they are at least as new, and then read once more at worst.
        let mut bound: HashMap<String, Vec<Arc<Binding>>> = HashMap::new();
        for item in self.bindings.items("") {
            let (policy, binding) = Binding::read(&item.object());
            bound.entry(policy).or_default().push(Arc::new(binding));
        }
        let mut read = Read { revisions, ..Read::default() };
        let mut active = Vec::new();
        for item in self.policies.items("") {
            let object = item.object();
            let name = object.name();
            let known = before.programs.get(name).filter(|(revision, _)| *revision == item.revision);
            let program = known.map_or_else(
                || {
                    let spec = object.get(&["spec"]).unwrap_or(&Value::Null);
                    Arc::new(Program::read(name, spec, self.mutating))
                },
                |(_, program)| Arc::clone(program),
            );
            read.programs.insert(name.to_owned(), (item.revision, Arc::clone(&program)));
            if let Some(bindings) = bound.remove(name) {
                active.push(Active { program, bindings });
            }
        }
        read.active = Arc::new(active);
        let active = Arc::clone(&read.active);
        self.read.store(Arc::new(read));
        active
    }
}

/// All policies in force.
pub struct Policies {
    /// Those that may change what they see.
    pub mutating: Index,
    /// Those that may only refuse it.
    pub validating: Index,
}

impl Policies {
    /// Over the objects in the caches.
    pub fn new(caches: &Caches) -> Policies {
        Policies {
            mutating: Index::new(caches, "mutatingadmissionpolicies", "mutatingadmissionpolicybindings", true),
            validating: Index::new(caches, "validatingadmissionpolicies", "validatingadmissionpolicybindings", false),
        }
    }
}
