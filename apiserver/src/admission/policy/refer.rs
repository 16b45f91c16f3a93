//! Who writes a policy or a binding must be able to read what it makes the server read for them: its parameters
//! (`pkg/registry/admissionregistration`, authz).

use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;
use serde_json::Value;

use super::program::{ParamKind, text};
use crate::authz;
use crate::registry::Call;

/// Whether the writer may refer to the parameters they refer to.
pub async fn may_refer(call: &Call<'_>, new: &Object, old: Option<&Object>) -> Result<(), ApiError> {
    let spec = new.get(&["spec"]).unwrap_or(&Value::Null);
    let same = |field: &str| old.is_some_and(|old| old.get(&["spec", field]) == spec.get(field));
    match &*call.resource.kind.plural {
        "validatingadmissionpolicies" | "mutatingadmissionpolicies" => {
            match spec.get("paramKind").and_then(ParamKind::read) {
                Some(kind) if !same("paramKind") => policy(call, new, &kind),
                _ => Ok(()),
            }
        }
        "validatingadmissionpolicybindings" | "mutatingadmissionpolicybindings" => {
            match spec.get("paramRef").filter(|reference| !reference.is_null()) {
                Some(reference) if !(same("paramRef") && same("policyName")) => binding(call, new, reference).await,
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn policy(call: &Call<'_>, new: &Object, kind: &ParamKind) -> Result<(), ApiError> {
    let what = authz::Attributes {
        verb: "get",
        group: &kind.group,
        resource: &plural(call, kind),
        namespace: "*",
        name: "*",
        ..authz::Attributes::default()
    };
    if authz::allowed(call.core, call.user(), &what) {
        return Ok(());
    }
    let api_version = crate::resources::api_version(&kind.group, &kind.version);
    let why = format!(
        "user {} must have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={api_version})",
        call.user().name,
        kind.kind
    );
    Err(ApiError::forbidden(call.resource.group_resource(), new.name(), &why))
}

async fn binding(call: &Call<'_>, new: &Object, reference: &Value) -> Result<(), ApiError> {
    let policies = call.resource.kind.plural.replace("policybindings", "policies");
    call.core.caches.consistent().await?;
    let cache = call.core.caches.resource(&format!("{policies}.{}", call.resource.kind.group));
    let policy = cache.get("", new.get_str(&["spec", "policyName"]).unwrap_or_default());
    let kind = policy.and_then(|item| item.object().get(&["spec", "paramKind"]).and_then(ParamKind::read));
    let name = text(reference, "name");
    let what = authz::Attributes {
        // A selector reads them all, and so does a reference whose kind is not known yet.
        verb: if name.is_empty() { "list" } else { "get" },
        group: kind.as_ref().map_or("*", |kind| kind.group.as_str()),
        resource: &kind.as_ref().map_or_else(|| "*".to_owned(), |kind| plural(call, kind)),
        namespace: text(reference, "namespace"),
        name: if name.is_empty() { "*" } else { name },
        ..authz::Attributes::default()
    };
    let what = authz::Attributes { namespace: if what.namespace.is_empty() { "*" } else { what.namespace }, ..what };
    if authz::allowed(call.core, call.user(), &what) {
        return Ok(());
    }
    let why = format!(
        "user {} does not have {:?} permission on the object referenced by paramRef",
        call.user().name,
        what.verb
    );
    Err(ApiError::forbidden(call.resource.group_resource(), new.name(), &why))
}

/// The resource of a kind; any, where the kind is not known.
fn plural(call: &Call<'_>, kind: &ParamKind) -> String {
    let table = call.core.resources.table();
    let known = table.find_kind(&kind.group, &kind.version, &kind.kind);
    known.map_or_else(|| "*".to_owned(), |resource| resource.kind.plural.to_string())
}
