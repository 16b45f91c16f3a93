//! Placeholder until the rules land.
use serde_json::{Map, Value};
use super::Schema;
use crate::field::{FieldError, FieldErrors, Path};
#[derive(Debug)]
pub(crate) struct Rule;
#[derive(Default)]
pub(super) struct Tally;
pub(super) fn read(_: Option<&Value>) -> Vec<Rule> { Vec::new() }
pub(super) fn has_rules(_: &Schema) -> bool { false }
pub(super) fn problems(_: &Value, _: &Map<String, Value>, at: &Path, _: &mut Tally, errors: &mut FieldErrors) {
    errors.push(FieldError::forbidden(at, "CEL rules are not supported by Proa yet"));
}
pub(super) fn validate(_: &Schema, _: &Value, _: Option<&Value>, _: &mut FieldErrors) {}
