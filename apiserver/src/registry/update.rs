//! PUT of an object or of its status.

use http::StatusCode;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::{ApiError, StatusCause};

use super::options::WriteOptions;
use super::write::{self, Ownership};
use super::{Call, codec, fields, get, meta};
use crate::http::Response;
use crate::kinds::Op;

/// Kinds that a PUT may create, as on Kubernetes (`AllowCreateOnUpdate`).
const CREATE_ON_UPDATE: &[(&str, &str)] = &[
    ("", "endpoints"),
    ("", "events"),
    ("events.k8s.io", "events"),
    ("", "services"),
    ("", "limitranges"),
    ("", "podtemplates"),
    ("coordination.k8s.io", "leases"),
    ("node.k8s.io", "runtimeclasses"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
];

/// PUT.
pub async fn update(call: &Call<'_>) -> Result<Response, ApiError> {
    let options = WriteOptions::read(call.request)?;
    let decoded = codec::decode(call.request)?;
    let mut object = codec::object(&call.resource, decoded.value)?;
    let name = call.name().to_owned();
    meta::place(&call.resource, &mut object, call.namespace(), Some(&name))?;
    let missing = fields::check(call, &mut object, decoded.duplicates, options.validation)?;
    let op = call.update_op();
    let kind = &call.resource.kind;
    let may_create = op == Op::Update
        && CREATE_ON_UPDATE.iter().any(|(group, plural)| *group == kind.group && *plural == kind.plural);
    if may_create && object.resource_version().is_empty() && write::current(call, &name).await?.is_none() {
        let bytes = write::create(call, object, &options, Ownership::Update, missing).await?;
        return get::answer(call, StatusCode::CREATED, bytes);
    }
    let change = |_: &Object| {
        if matches!(object.resource_version(), "" | "0") && !kind.unconditional_update {
            return Err(unconditional(call, &name));
        }
        Ok((object.clone(), missing.clone()))
    };
    let outcome = write::modify(call, op, &name, &options, Ownership::Update, change).await?;
    get::answer(call, StatusCode::OK, outcome.bytes())
}

/// A PUT that does not say which state it replaces, on a kind where it must. Kubernetes names the resource where
/// other refusals name the kind, and prints the version as Go prints a `uint64`: tools look for these words.
fn unconditional(call: &Call<'_>, name: &str) -> ApiError {
    let why = "Invalid value: 0x0: must be specified for an update";
    let mut error = ApiError::invalid(call.resource.group_resource(), name, Vec::new());
    error.message = format!("{}: metadata.resourceVersion: {why}", error.message);
    error.details.get_or_insert_default().causes = vec![StatusCause {
        reason: "FieldValueInvalid".into(),
        message: why.into(),
        field: "metadata.resourceVersion".into(),
    }];
    error
}
