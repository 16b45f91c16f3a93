//! PUT of an object or of its status.

use http::StatusCode;
use proa_apimachinery::status::ApiError;

use super::options::WriteOptions;
use super::write::{self, Ownership};
use super::{Call, codec, get, meta};
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
    let missing = write::check_fields(call, &mut object, decoded.duplicates, options.validation)?;
    let op = call.update_op();
    let kind = &call.resource.kind;
    let may_create = op == Op::Update
        && CREATE_ON_UPDATE.iter().any(|(group, plural)| *group == kind.group && *plural == kind.plural);
    if may_create && object.resource_version().is_empty() && write::current(call, &name).await?.is_none() {
        let bytes = write::create(call, object, &options, Ownership::Update, missing).await?;
        return get::answer(call, StatusCode::CREATED, bytes);
    }
    let outcome =
        write::modify(call, op, &name, &options, Ownership::Update, |_| Ok((object.clone(), missing.clone()))).await?;
    get::answer(call, StatusCode::OK, outcome.bytes())
}
