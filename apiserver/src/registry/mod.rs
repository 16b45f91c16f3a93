//! The one generic path from a request on a resource to the store and back.
//!
//! Owns every verb on every kind. What differs between kinds is asked of the kind's row and its
//! strategy; nothing here names a kind except where Kubernetes gives one kind a rule of its own in the
//! protocol itself (namespaces and their `spec.finalizers`).

pub mod codec;
pub mod create;
pub mod delete;
pub mod fields;
pub mod get;
pub mod itself;
pub mod list;
pub mod meta;
pub mod options;
pub mod patch;
pub mod selection;
pub mod table;
pub mod update;
pub mod watch;
pub mod write;

use std::sync::Arc;

use parking_lot::Mutex;
use proa_apimachinery::protobuf;
use proa_apimachinery::status::ApiError;

use crate::core::Core;
use crate::http::negotiate::{ACCEPTED, Chosen, Shape, choose};
use crate::http::{Request, Response, warn};
use crate::kinds::{Op, twins};
use crate::resources::Resource;
use crate::user::User;
use crate::{proxy, subresource};

/// One request on one resource.
pub struct Call<'a> {
    /// The server.
    pub core: &'a Arc<Core>,
    /// The request.
    pub request: &'a Request,
    /// The resource it is about.
    pub resource: Arc<Resource>,
    /// What the client is to be warned of.
    pub warnings: Mutex<Vec<String>>,
}

impl Call<'_> {
    /// Who asks.
    pub fn user(&self) -> &User {
        &self.request.user
    }

    /// The namespace of the path; empty for cluster-scoped resources and lists over all namespaces.
    pub fn namespace(&self) -> &str {
        if self.resource.namespaced() { &self.request.info.namespace } else { "" }
    }

    /// The name of the path.
    pub fn name(&self) -> &str {
        &self.request.info.name
    }

    /// What a PUT or PATCH here changes: the object, or only what others observe of it.
    pub fn update_op(&self) -> Op {
        match self.request.info.subresource.as_str() {
            "status" | "approval" => Op::UpdateStatus,
            _ => Op::Update,
        }
    }

    /// The form the client wants the answer in.
    pub fn chosen(&self) -> Result<Chosen, ApiError> {
        let kind = &self.resource.kind;
        // The body of a scale is of the same kind whatever is scaled.
        let scale = self.request.info.subresource == "scale";
        choose(&self.request.headers, || scale || protobuf::kind(&self.resource.api_version(), &kind.kind).is_some())
    }

    /// Tells the client something, once.
    pub fn warn(&self, warning: impl Into<String>) {
        let warning = warning.into();
        let mut warnings = self.warnings.lock();
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// The object of this name does not exist.
    pub fn not_found(&self, name: &str) -> ApiError {
        ApiError::not_found(self.resource.group_resource(), name)
    }
}

/// Answers a request on a resource.
pub async fn dispatch(core: &Arc<Core>, request: &Request) -> Result<Response, ApiError> {
    let info = &request.info;
    let table = core.resources.table();
    let resource =
        table.find(&info.group, &info.version, &info.resource).cloned().ok_or_else(ApiError::no_such_resource)?;
    if resource.namespaced() {
        let needs_namespace = !matches!(info.verb, "list" | "watch" | "deletecollection")
            && (!info.name.is_empty() || info.verb == "create");
        // Reviews and the like are namespaced in name only; anything stored has to say where.
        if info.namespace.is_empty() && needs_namespace {
            return Err(ApiError::no_such_resource());
        }
    } else if !info.namespace.is_empty() && info.resource != "namespaces" {
        return Err(ApiError::no_such_resource());
    }
    let call = Call { core, request, resource, warnings: Mutex::default() };
    let mut answer = answer(&call).await;
    if let Ok(response) = &mut answer {
        warn(response, &call.warnings.lock());
    }
    answer
}

async fn answer(call: &Call<'_>) -> Result<Response, ApiError> {
    let info = &call.request.info;
    if let Some(review) = crate::reviews::find(&call.resource) {
        if info.verb != "create" || !info.name.is_empty() {
            return Err(not_allowed(call));
        }
        // What is answered and never stored has neither metadata to show nor a table.
        if call.chosen()?.shape != Shape::Object {
            return Err(ApiError::not_acceptable(ACCEPTED));
        }
        return review(call).await;
    }
    if let Some(measured) = crate::usage::find(&call.resource) {
        return measured(call).await;
    }
    match info.subresource.as_str() {
        "" => {}
        // Refused by name before it is looked for: the client learns that it is known and not done.
        "resize" | "ephemeralcontainers" if call.resource.kind.plural == "pods" => {
            let why = format!("the subresource {:?} is not supported by Proa yet", info.subresource);
            return Err(ApiError::forbidden(call.resource.group_resource(), &info.name, &why));
        }
        "eviction" if call.resource.kind.plural == "pods" && call.resource.kind.group == twins::GROUP => {
            let why = "pods of this family are not evicted: a PodDisruptionBudget counts standard pods alone";
            return Err(ApiError::forbidden(call.resource.group_resource(), &info.name, why));
        }
        name if !call.resource.has_subresource(name) => return Err(ApiError::no_such_resource()),
        "status" | "approval" => {
            return match info.verb {
                "get" => get::get(call).await,
                "update" => update::update(call).await,
                "patch" => patch::patch(call).await,
                _ => Err(not_allowed(call)),
            };
        }
        "log" | "exec" | "attach" | "portforward" | "proxy" => return proxy::answer(call).await,
        _ => return subresource::serve(call).await,
    }
    match info.verb {
        "get" => get::get(call).await,
        "list" => list::list(call).await,
        "watch" => watch::watch(call).await,
        "create" if info.name.is_empty() => create::create(call).await,
        "update" if !info.name.is_empty() => update::update(call).await,
        "patch" if !info.name.is_empty() => patch::patch(call).await,
        "delete" => delete::delete(call).await,
        "deletecollection" => delete::collection(call).await,
        _ => Err(not_allowed(call)),
    }
}

/// This verb does not exist here.
pub fn not_allowed(call: &Call<'_>) -> ApiError {
    ApiError::method_not_allowed(call.resource.group_resource(), call.request.info.verb)
}
