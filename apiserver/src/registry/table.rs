//! Tables, as `kubectl get` asks for them: one row per object, the kind's columns.

use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;
use proa_apimachinery::table::{IncludeObject, row, table};
use serde_json::{Map, Value};

use super::Call;

/// A table of objects. `head` says whether the column definitions go along (later events of a watch
/// leave them out).
pub fn of(
    call: &Call<'_>,
    objects: &[Object],
    metadata: Map<String, Value>,
    head: bool,
    version: &str,
) -> Result<Value, ApiError> {
    let include = call.request.query.get("includeObject").unwrap_or_default();
    let include = IncludeObject::parse(include)
        .ok_or_else(|| ApiError::bad_request(format!("unrecognized includeObject value: {include:?}")))?;
    let now = call.core.now();
    let kind = &call.resource.kind;
    let rows = objects
        .iter()
        .map(|object| {
            let cells = kind.columns.iter().map(|column| column.cell(object, now)).collect();
            row(cells, &object.0, include)
        })
        .collect();
    let columns: Vec<_> = if head { kind.columns.iter().map(crate::kinds::Column::head).collect() } else { Vec::new() };
    let mut table = table(&columns, rows, metadata);
    set_version(&mut table, version);
    Ok(table)
}

/// Sets the version of the `meta.k8s.io` group the client asked for; kubectl 1.27 still knows v1beta1.
pub fn set_version(value: &mut Value, version: &str) {
    if version != "v1" {
        value["apiVersion"] = Value::from(format!("meta.k8s.io/{version}"));
    }
}
