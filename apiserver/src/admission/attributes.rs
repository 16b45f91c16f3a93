//! What admission knows of a request beside the objects themselves: one plain type for webhooks and policies.
//!
//! Owns how a request of ours is described in the words of `k8s.io/apiserver/pkg/admission` (`Attributes`). Never
//! decides anything.

use std::sync::Arc;

use proa_apimachinery::object::Object;
use proa_apimachinery::status::{ApiError, GroupResource};
use serde_json::{Value, json};

use crate::core::Core;
use crate::kinds::{Kind, Op};
use crate::registry::Call;
use crate::registry::delete::DeleteOptions;
use crate::registry::options::WriteOptions;
use crate::resources::{Resource, api_version};
use crate::user::User;

/// What a request does, as rules name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Something new: an object, or what a subresource makes (a binding, an eviction, a token).
    Create,
    /// A change of an object or of a subresource that is a part of it.
    Update,
    /// An object goes.
    Delete,
    /// A connection to what an object stands for: exec, attach, portforward, proxy.
    Connect,
}

impl Operation {
    /// The name in rules and reviews.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// A kind in a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupVersionKind {
    /// The group; empty for the core group.
    pub group: String,
    /// The version.
    pub version: String,
    /// The kind.
    pub kind: String,
}

impl GroupVersionKind {
    /// From its parts.
    pub fn new(group: &str, version: &str, kind: &str) -> GroupVersionKind {
        GroupVersionKind { group: group.into(), version: version.into(), kind: kind.into() }
    }

    /// The kind of a row.
    pub fn of(kind: &Kind) -> GroupVersionKind {
        GroupVersionKind::new(&kind.group, &kind.version, &kind.kind)
    }

    /// As reviews have it.
    pub fn to_value(&self) -> Value {
        json!({"group": self.group, "version": self.version, "kind": self.kind})
    }
}

/// A request as admission sees it.
pub struct Attributes<'a> {
    /// What it does.
    pub operation: Operation,
    /// The kind of the object that is admitted: another than the resource's for many subresources.
    pub kind: GroupVersionKind,
    /// The resource of the path.
    pub resource: Arc<Resource>,
    /// The subresource; empty for the object itself.
    pub subresource: &'a str,
    /// The namespace; empty for what is in none. A namespace's own name for the namespace itself.
    pub namespace: String,
    /// The name; empty while it is not known.
    pub name: String,
    /// Who asks.
    pub user: &'a User,
    /// Nothing will be stored.
    pub dry_run: bool,
    /// `CreateOptions`, `UpdateOptions` or `DeleteOptions`; null for a connection.
    pub options: Value,
}

/// The objects a request is about.
#[derive(Clone, Copy)]
pub struct Objects<'a> {
    /// What is to be; none when something goes.
    pub new: Option<&'a Object>,
    /// What is; none when something comes.
    pub old: Option<&'a Object>,
}

impl<'a> Attributes<'a> {
    /// A create or an update of `call`'s resource or of a subresource that is part of it.
    pub fn of_write(call: &'a Call<'_>, op: Op, options: &WriteOptions, name: &str) -> Attributes<'a> {
        // An eviction writes to a budget and deletes a pod: only the resource of the path has its subresource.
        let of_path = call.request.info.resource == *call.resource.kind.plural;
        let subresource = match op {
            _ if of_path => call.request.info.subresource.as_str(),
            Op::UpdateStatus => "status",
            _ => "",
        };
        let operation = if op == Op::Create { Operation::Create } else { Operation::Update };
        let kind = match subresource {
            "scale" => GroupVersionKind::new("autoscaling", "v1", "Scale"),
            _ => GroupVersionKind::of(&call.resource.kind),
        };
        Attributes::new(call, operation, kind, subresource, name, options.dry_run, write_options(operation, options))
    }

    /// The creation of what a subresource makes, of a kind of its own.
    pub fn of_body(
        call: &'a Call<'_>,
        (group, version, kind): (&str, &str, &str),
        options: &WriteOptions,
    ) -> Attributes<'a> {
        let kind = GroupVersionKind::new(group, version, kind);
        let subresource = call.request.info.subresource.as_str();
        let sent = write_options(Operation::Create, options);
        Attributes::new(call, Operation::Create, kind, subresource, call.name(), options.dry_run, sent)
    }

    /// A deletion.
    pub fn of_delete(call: &'a Call<'_>, options: &DeleteOptions, name: &str) -> Attributes<'a> {
        let kind = GroupVersionKind::of(&call.resource.kind);
        Attributes::new(call, Operation::Delete, kind, "", name, options.dry_run, options.to_value())
    }

    /// A connection; `kind` is that of its options.
    pub fn of_connection(call: &'a Call<'_>, kind: &str, name: &str) -> Attributes<'a> {
        let kind = GroupVersionKind::new("", "v1", kind);
        let subresource = call.request.info.subresource.as_str();
        Attributes::new(call, Operation::Connect, kind, subresource, name, false, Value::Null)
    }

    fn new(
        call: &'a Call<'_>,
        operation: Operation,
        kind: GroupVersionKind,
        subresource: &'a str,
        name: &str,
        dry_run: bool,
        options: Value,
    ) -> Attributes<'a> {
        let namespace = if is_namespaces(&call.resource) { name } else { call.namespace() };
        Attributes {
            operation,
            kind,
            resource: Arc::clone(&call.resource),
            subresource,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            user: call.user(),
            dry_run,
            options,
        }
    }

    /// Whether this is about a namespace itself.
    pub fn is_namespace(&self) -> bool {
        is_namespaces(&self.resource)
    }

    /// The namespace the request is in, looked up when somebody wants to know; none for what is in none.
    ///
    /// # Errors
    ///
    /// When there is no such namespace.
    pub async fn namespace_object(&self, core: &Core) -> Result<Option<Object>, ApiError> {
        if self.namespace.is_empty() {
            return Ok(None);
        }
        let namespaces = core.caches.resource("namespaces");
        if let Some(item) = namespaces.get("", &self.namespace) {
            return Ok(Some(item.object()));
        }
        // It may have been created an instant ago, on another connection.
        core.caches.consistent().await?;
        let item = namespaces.get("", &self.namespace);
        let missing = || ApiError::not_found(GroupResource::new("", "namespaces"), &self.namespace);
        item.map(|item| Some(item.object())).ok_or_else(missing)
    }
}

fn is_namespaces(resource: &Resource) -> bool {
    resource.kind.group.is_empty() && resource.kind.plural == "namespaces"
}

/// `CreateOptions` or `UpdateOptions` as clients send them. A patch is admitted as the update it amounts to.
fn write_options(operation: Operation, options: &WriteOptions) -> Value {
    let kind = if operation == Operation::Create { "CreateOptions" } else { "UpdateOptions" };
    let mut value = json!({"kind": kind, "apiVersion": api_version("meta.k8s.io", "v1")});
    if options.dry_run {
        value["dryRun"] = json!(["All"]);
    }
    if !options.manager.is_empty() {
        value["fieldManager"] = options.manager.as_str().into();
    }
    value["fieldValidation"] = options.validation.name().into();
    value
}
