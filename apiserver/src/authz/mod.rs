//! Who may do what. Owns the decision; never reads a request's body.

pub mod escalation;
pub mod node;
pub mod node_pods;
pub mod rbac;

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

/// Whether `user` may.
pub fn allowed(core: &Core, user: &User, what: &Attributes<'_>) -> bool {
    user.in_group(MASTERS) || node::allowed(core, user, what) || core.rbac.allowed(&core.caches, user, what)
}

/// Ok, or Kubernetes' refusal.
pub fn authorize(core: &Core, user: &User, info: &RequestInfo) -> Result<(), ApiError> {
    let what = Attributes::from(info);
    if allowed(core, user, &what) { Ok(()) } else { Err(forbidden(user, info.is_resource, &what)) }
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
