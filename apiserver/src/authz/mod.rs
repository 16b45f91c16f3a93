//! Who may do what. Owns the decision; never reads a request's body.

pub mod escalation;
pub mod node;
pub mod node_pods;
pub mod rbac;

use std::sync::Arc;

use proa_apimachinery::status::{ApiError, GroupResource};

use crate::core::Core;
use crate::request_info::RequestInfo;
use crate::user::{MASTERS, User};

/// What is to be done, as the authorizers see it.
#[derive(Clone, Debug, Default)]
pub struct Attributes<'a> {
    /// The verb.
    pub verb: &'a str,
    /// The API group.
    pub group: &'a str,
    /// The resource; empty for a path.
    pub resource: &'a str,
    /// The subresource.
    pub subresource: &'a str,
    /// The namespace.
    pub namespace: &'a str,
    /// The object.
    pub name: &'a str,
    /// The path, when there is no resource.
    pub path: &'a str,
    /// The fields, and their values, to which a field selector narrows a list or watch.
    pub selected: &'a [(String, String)],
    /// The labels, and their values, to which a label selector narrows it.
    pub labelled: &'a [(String, String)],
}

impl<'a> From<&'a RequestInfo> for Attributes<'a> {
    fn from(info: &'a RequestInfo) -> Self {
        Attributes {
            verb: info.verb,
            group: &info.group,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            path: &info.path,
            selected: &info.selected,
            labelled: &info.labelled,
        }
    }
}

/// What the authorizers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes: a cluster administrator.
    Master,
    /// Yes: a node at its work.
    Node,
    /// Yes: a role is bound to them; which by what binding.
    Granted(Arc<str>),
    /// Nobody allows it.
    NoOpinion,
}

impl Verdict {
    /// Whether they may.
    pub fn is_allowed(&self) -> bool {
        *self != Verdict::NoOpinion
    }

    /// Why, as Kubernetes tells in reviews and in the audit log.
    pub fn reason(&self) -> String {
        match self {
            Verdict::Granted(by) => format!("RBAC: allowed by {by}"),
            Verdict::Master | Verdict::Node | Verdict::NoOpinion => String::new(),
        }
    }
}

/// Whether `user` may, and why.
pub fn decide(core: &Core, user: &User, what: &Attributes<'_>) -> Verdict {
    if user.in_group(MASTERS) {
        return Verdict::Master;
    }
    if node::allowed(core, user, what) {
        return Verdict::Node;
    }
    core.rbac.granted(&core.caches, user, what).map_or(Verdict::NoOpinion, Verdict::Granted)
}

/// Whether `user` may.
pub fn allowed(core: &Core, user: &User, what: &Attributes<'_>) -> bool {
    decide(core, user, what).is_allowed()
}

/// The refusal of a request, worded as Kubernetes does.
pub fn forbidden(user: &User, is_resource: bool, what: &Attributes<'_>) -> ApiError {
    if !is_resource {
        let why = format!("User \"{}\" cannot {} path \"{}\"", user.name, what.verb, what.path);
        return ApiError::forbidden(GroupResource::new("", ""), "", &why);
    }
    let resource = if what.subresource.is_empty() {
        what.resource.to_owned()
    } else {
        format!("{}/{}", what.resource, what.subresource)
    };
    let mut why =
        format!("User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\"", user.name, what.verb, what.group);
    if what.namespace.is_empty() {
        why.push_str(" at the cluster scope");
    } else {
        why.push_str(&format!(" in the namespace \"{}\"", what.namespace));
    }
    ApiError::forbidden(GroupResource::new(what.group, what.resource), what.name, &why)
}
