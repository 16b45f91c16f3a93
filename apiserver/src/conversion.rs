//! Objects from one version of their kind to another.
//!
//! Owns the way between what is stored and what is served.

use std::sync::Arc;

use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;

use crate::core::Core;
use crate::resources::Resource;

/// An object of `from`, as clients of `to` have it: two versions of one stored kind.
///
/// # Errors
///
/// When nobody can convert it.
pub async fn between(_: &Core, from: &Arc<Resource>, to: &Arc<Resource>, object: Object) -> Result<Object, ApiError> {
    if Arc::ptr_eq(from, to) {
        return Ok(object);
    }
    Ok(to.kind.from_storage(from.kind.to_storage(object)))
}
