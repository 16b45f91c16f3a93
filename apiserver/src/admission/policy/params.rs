//! Which objects are the parameters of a policy (KEP-3488, `paramRef`). Never evaluates anything.

use std::sync::Arc;

use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;

use super::active::{ParamRef, Which};
use super::program::ParamKind;
use crate::core::Core;
use crate::resources::Resource;

/// What a policy is evaluated with: once for each, and once with nothing where it has no parameters.
pub(super) enum Params {
    /// It is evaluated without.
    None,
    /// It is evaluated with each of these.
    Each(Vec<Object>),
}

/// The resource of a kind of parameters.
///
/// # Errors
///
/// When there is no such kind: the policy cannot be used then.
pub(super) fn resource(core: &Core, kind: &ParamKind) -> Result<Arc<Resource>, String> {
    let table = core.resources.table();
    let found = table.find_kind(&kind.group, &kind.version, &kind.kind).filter(|resource| !resource.kind.is_virtual);
    found.cloned().ok_or_else(|| format!("failed to find resource referenced by paramKind: '{kind}'"))
}

/// The parameters for a request in `namespace`.
///
/// # Errors
///
/// What is wrong with the reference, or that there is nothing where there has to be something.
pub(super) async fn collect(
    core: &Core,
    resource: Option<&Arc<Resource>>,
    reference: Option<&ParamRef>,
    namespace: &str,
) -> Result<Params, String> {
    let (Some(resource), Some(reference)) = (resource, reference) else { return Ok(Params::None) };
    let namespace = match (resource.namespaced(), reference.namespace.as_str()) {
        (false, "") => "",
        (false, _) => return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into()),
        (true, "") if namespace.is_empty() => {
            return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into());
        }
        (true, "") => namespace,
        (true, own) => own,
    };
    let which = reference.which.as_ref().map_err(String::clone)?;
    // They may have been written an instant ago, on another connection.
    core.caches.consistent().await.map_err(|error: ApiError| error.message)?;
    let found = look(resource, which, namespace);
    if found.is_empty() && reference.deny_when_missing {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    Ok(Params::Each(found))
}

fn look(resource: &Resource, which: &Which, namespace: &str) -> Vec<Object> {
    match which {
        Which::Named(name) => {
            let item = resource.cache.get(namespace, name);
            item.map(|item| resource.to_served(item.object())).into_iter().collect()
        }
        Which::Selected(selector) => {
            let objects = resource.cache.items(namespace).into_iter().map(|item| resource.to_served(item.object()));
            objects.filter(|object| selector.matches(|key| object.label(key))).collect()
        }
    }
}
