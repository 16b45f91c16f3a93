//! POST to a collection.

use http::StatusCode;
use proa_apimachinery::status::ApiError;

use super::options::WriteOptions;
use super::write::{self, Ownership};
use super::{Call, codec, fields, get, meta};
use crate::http::Response;

/// POST.
pub async fn create(call: &Call<'_>) -> Result<Response, ApiError> {
    let options = WriteOptions::read(call.request)?;
    let decoded = codec::decode(call.request)?;
    let mut object = codec::object(&call.resource, decoded.value)?;
    meta::place(&call.resource, &mut object, call.namespace(), None)?;
    if !object.resource_version().is_empty() {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let missing = fields::check(call, &mut object, decoded.duplicates, options.validation)?;
    let bytes = write::create(call, object, &options, Ownership::Update, missing).await?;
    get::answer(call, StatusCode::CREATED, bytes)
}
