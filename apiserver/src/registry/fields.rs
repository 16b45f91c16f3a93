//! Field validation: whether what was decoded is what its schema says, before anybody looks at it.
//!
//! Owns the answer to wrong types, unknown and duplicate fields (KEP-2885). Missing fields are left for
//! validation to report.

use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::object::Object;
use proa_apimachinery::schema::{self, Schema};
use proa_apimachinery::status::{ApiError, GroupResource};
use serde_json::Value;

use super::Call;
use super::options::FieldValidation;

/// What an object is held to, and how messages name it.
struct Form<'a> {
    schema: &'a Schema,
    group: &'a str,
    version: &'a str,
    kind: &'a str,
    /// Wrong values of a custom resource are found by its validation, those of a built-in kind by decoding.
    custom: bool,
}

/// Brings an object of the call's resource into its canonical form and checks it against its schema: wrong
/// types are refused, unknown and duplicate fields are warned of or refused, and dropped. What is missing is
/// returned.
pub fn check(
    call: &Call<'_>,
    object: &mut Object,
    duplicates: Vec<String>,
    validation: FieldValidation,
) -> Result<FieldErrors, ApiError> {
    let kind = &call.resource.kind;
    let form = Form {
        schema: &kind.schema,
        group: &kind.group,
        version: &kind.version,
        kind: &kind.kind,
        custom: call.resource.custom.is_some(),
    };
    // The schemas inside a definition hold values of any type (`default`, `enum`, `example`): whether they
    // are right is for its strategy to say, which reads them as what they are.
    let schemas = take_schemas(call, object);
    let checked = form.check(call, object, duplicates, validation);
    put_schemas(object, schemas);
    checked
}

/// As [`check`], for the body of a subresource that is a kind of its own: a Scale, a Binding, an Eviction.
/// `kind` may be left out of the body, as everywhere; another one is refused.
pub fn check_body(
    call: &Call<'_>,
    (group, version, kind): (&str, &str, &str),
    body: &mut Object,
    duplicates: Vec<String>,
    validation: FieldValidation,
) -> Result<FieldErrors, ApiError> {
    let sent = (body.api_version(), body.kind());
    let api_version = crate::resources::api_version(group, version);
    if !(sent.1.is_empty() || sent.1 == kind) || !(sent.0.is_empty() || sent.0 == api_version) {
        return Err(ApiError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {kind}: the body must be a {kind} of {api_version}",
            sent.1, sent.0,
        )));
    }
    let row = schema::builtin_kinds().iter().find(|row| (row.group, row.version, row.kind) == (group, version, kind));
    let schema = row.and_then(|row| schema::definition(&row.definition)).ok_or_else(ApiError::no_such_resource)?;
    Form { schema, group, version, kind, custom: false }.check(call, body, duplicates, validation)
}

impl Form<'_> {
    fn check(
        &self,
        call: &Call<'_>,
        object: &mut Object,
        duplicates: Vec<String>,
        validation: FieldValidation,
    ) -> Result<FieldErrors, ApiError> {
        let mut value = Value::Object(std::mem::take(&mut object.0));
        self.schema.canonicalize(&mut value);
        let checked = self.schema.check(&value);
        self.schema.prune(&mut value);
        if let Value::Object(map) = value {
            object.0 = map;
        }
        if !checked.errors.is_empty() {
            return Err(self.wrong(object.name(), checked.errors));
        }
        let mut problems: Vec<String> =
            checked.unknown.iter().map(|path| format!("unknown field \"{}\"", path.as_str())).collect();
        problems.extend(duplicates);
        match validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => problems.into_iter().for_each(|problem| call.warn(problem)),
            FieldValidation::Strict if !problems.is_empty() => {
                return Err(ApiError::bad_request(format!(
                    "{0} in version \"{1}\" cannot be handled as a {0}: strict decoding error: {2}",
                    self.kind,
                    self.version,
                    problems.join(", ")
                )));
            }
            FieldValidation::Strict => {}
        }
        Ok(checked.missing)
    }

    fn wrong(&self, name: &str, errors: FieldErrors) -> ApiError {
        let group_kind = GroupResource::new(self.group, self.kind);
        if self.custom {
            return ApiError::invalid(group_kind, name, errors);
        }
        let what: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let mut error = ApiError::bad_request(format!(
            "{0} in version \"{1}\" cannot be handled as a {0}: json: cannot unmarshal: {2}",
            self.kind,
            self.version,
            what.join(", ")
        ));
        // The causes name the fields; the code stays 400, as for everything that does not decode.
        error.details = ApiError::invalid(group_kind, name, errors).details;
        error
    }
}

fn versions_of(object: &mut Object) -> impl Iterator<Item = &mut Value> {
    object.get_mut(&["spec", "versions"]).and_then(Value::as_array_mut).into_iter().flatten()
}

fn take_schemas(call: &Call<'_>, object: &mut Object) -> Vec<Option<Value>> {
    if call.resource.kind.plural != "customresourcedefinitions" {
        return Vec::new();
    }
    let slot = |version: &mut Value| {
        version.pointer_mut("/schema/openAPIV3Schema").filter(|schema| schema.is_object()).map(std::mem::take)
    };
    versions_of(object).map(slot).collect()
}

fn put_schemas(object: &mut Object, schemas: Vec<Option<Value>>) {
    for (version, schema) in versions_of(object).zip(schemas) {
        if let (Some(slot), Some(schema)) = (version.get_mut("schema").and_then(Value::as_object_mut), schema) {
            slot.insert("openAPIV3Schema".into(), schema);
        }
    }
}
