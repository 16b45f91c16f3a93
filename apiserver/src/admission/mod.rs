//! What guards or completes a write beyond the kind's own rules.
//!
//! Owns what is built in, in a fixed order, and the [`chain`] it forms with policies and webhooks.

pub mod attributes;
mod authorizer;
mod authors;
mod certificates;
pub mod chain;
pub mod hooks;
mod known_to_fail;
mod limit_range;
pub mod matching;
mod node;
mod pod_security;
mod pods;
pub mod policy;
mod priority;
pub mod quota;
mod round;
mod storage;
mod token_secrets;

use std::sync::Arc;

use proa_apimachinery::object::Object;
use proa_apimachinery::status::{ApiError, GroupResource, StatusCause};

use crate::agents::SERVING_CERTIFICATE;
use crate::cache::Item;
use crate::kinds::Op;
use crate::registry::Call;
use crate::user::MASTERS;

pub use node::may_request_token;

/// Namespaces the system needs.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// What is built in completes an object before anybody else sees it.
async fn complete(call: &Call<'_>, op: Op, new: &mut Object, old: Option<&Object>) -> Result<(), ApiError> {
    node::admit(call, op, new, old)?;
    let kind = &call.resource.kind;
    match (&*kind.group, &*kind.plural) {
        ("", "pods") if op == Op::Create => pods::admit(call, new).await,
        ("", "nodes") => own_certificate(call, new, old),
        ("", "persistentvolumeclaims") => storage::claim(call, op, new, old).await,
        ("", "persistentvolumes") => {
            storage::volume(op, new);
            Ok(())
        }
        ("", "secrets") => token_secrets::admit(call, new, old).await,
        ("apps" | "proa.dev", "deployments" | "statefulsets" | "daemonsets") => {
            if op == Op::Update {
                known_to_fail::warning(new, old).into_iter().for_each(|warning| call.warn(warning));
            }
            authors::note(call, op, new, old)
        }
        ("certificates.k8s.io", "certificatesigningrequests") => certificates::admit(call, op, new, old),
        _ => Ok(()),
    }
}

/// What is built in refuses what is complete and valid in itself and yet may not be here.
async fn refuse(call: &Call<'_>, op: Op, new: &Object, old: Option<&Object>) -> Result<(), ApiError> {
    let kind = &call.resource.kind;
    let refusal = match (&*kind.group, &*kind.plural, op) {
        ("", "pods", Op::Create) => limit_range::refuse_pod(new, &limit_ranges(call)),
        ("", "persistentvolumeclaims", Op::Create | Op::Update)
            if old.is_none_or(|old| old.deletion_timestamp().is_none()) =>
        {
            call.core.caches.consistent().await?;
            limit_range::refuse_claim(new, &limit_ranges(call))
        }
        ("admissionregistration.k8s.io", ..) => return policy::may_refer(call, new, old).await,
        ("scheduling.k8s.io", "priorityclasses", Op::Create | Op::Update) => {
            call.core.caches.consistent().await?;
            priority::refuse_default(new, &priority::classes(call))
        }
        _ => None,
    };
    match refusal {
        Some(why) => Err(ApiError::forbidden(call.resource.group_resource(), new.name(), &why)),
        None => pod_security::admit(call, op, new, old),
    }
}

/// The LimitRanges of the namespace, by name.
fn limit_ranges(call: &Call<'_>) -> Vec<Object> {
    call.core.caches.resource("limitranges").items(call.namespace()).iter().map(|item| item.object()).collect()
}

/// By which certificate an agent is known is for its node to say, and for administrators: whoever else could
/// write a Node would take its place.
fn own_certificate(call: &Call<'_>, new: &Object, old: Option<&Object>) -> Result<(), ApiError> {
    let before = old.and_then(|old| old.annotation(SERVING_CERTIFICATE));
    let user = call.user();
    if new.annotation(SERVING_CERTIFICATE) == before || user.in_group(MASTERS) || user.node_name() == Some(new.name()) {
        return Ok(());
    }
    let why = format!("the annotation {SERVING_CERTIFICATE} may be set only by the node itself");
    Err(ApiError::forbidden(call.resource.group_resource(), new.name(), &why))
}

/// Nothing is created in a namespace that does not exist or is going away (NamespaceLifecycle).
///
/// What it was decided by is to be unchanged when the object is committed.
pub async fn namespace_accepts(call: &Call<'_>, namespace: &str, name: &str) -> Result<Option<Arc<Item>>, ApiError> {
    if namespace.is_empty() || !call.resource.namespaced() {
        return Ok(None);
    }
    let namespaces = call.core.caches.resource("namespaces");
    let item = match namespaces.get("", namespace) {
        Some(item) => item,
        // It may have been created an instant ago, on another connection.
        None => {
            call.core.caches.consistent().await?;
            namespaces
                .get("", namespace)
                .ok_or_else(|| ApiError::not_found(GroupResource::new("", "namespaces"), namespace))?
        }
    };
    if !item.is_terminating() {
        return Ok(Some(item));
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut error = ApiError::forbidden(call.resource.group_resource(), name, &why);
    let cause = StatusCause {
        reason: "NamespaceTerminating".into(),
        message: format!("namespace {namespace} is being terminated"),
        field: "metadata.namespace".into(),
    };
    error.details.get_or_insert_default().causes.push(cause);
    Err(error)
}

/// The namespaces everything rests on stay; a node ends its own pods only.
fn may_delete(call: &Call<'_>, old: &Object) -> Result<(), ApiError> {
    let kind = &call.resource.kind;
    if kind.group.is_empty() && kind.plural == "namespaces" && IMMORTAL.contains(&old.name()) {
        return Err(ApiError::forbidden(
            call.resource.group_resource(),
            old.name(),
            "this namespace may not be deleted",
        ));
    }
    node::may_delete(call, old)
}
