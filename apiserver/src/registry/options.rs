//! The query parameters of writes (`CreateOptions`, `UpdateOptions`, `PatchOptions`).

use proa_apimachinery::status::ApiError;

use crate::http::Request;

/// What to do about unknown and duplicate fields (KEP-2885).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them and say so: the default.
    Warn,
    /// Refuse the request.
    Strict,
}

/// The options of a write.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Do everything except storing.
    pub dry_run: bool,
    /// Who owns the fields written.
    pub manager: String,
    /// About unknown fields.
    pub validation: FieldValidation,
    /// Whether an apply takes fields from other managers.
    pub force: bool,
}

impl WriteOptions {
    /// Reads the options of a request.
    pub fn read(request: &Request) -> Result<WriteOptions, ApiError> {
        let query = &request.query;
        let validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "invalid fieldValidation {other:?}: must be Ignore, Warn or Strict"
                )));
            }
        };
        Ok(WriteOptions {
            dry_run: dry_run(query.all("dryRun"))?,
            manager: manager(request)?,
            validation,
            force: query.flag("force"),
        })
    }
}

/// `dryRun=All` or nothing.
pub fn dry_run<'a>(values: impl Iterator<Item = &'a str>) -> Result<bool, ApiError> {
    let mut dry = false;
    for value in values.filter(|value| !value.is_empty()) {
        if value != "All" {
            return Err(ApiError::bad_request(format!("invalid dryRun value {value:?}: only \"All\" is supported")));
        }
        dry = true;
    }
    Ok(dry)
}

/// The field manager: as given, or the user agent up to its first slash, as Kubernetes derives it.
fn manager(request: &Request) -> Result<String, ApiError> {
    if let Some(manager) = request.query.get("fieldManager") {
        if manager.chars().count() > 128 || manager.chars().any(char::is_control) {
            return Err(ApiError::bad_request("fieldManager must be printable and at most 128 characters"));
        }
        return Ok(manager.to_owned());
    }
    let agent = request.header(http::header::USER_AGENT).unwrap_or("unknown");
    Ok(agent.split('/').next().unwrap_or(agent).chars().take(128).collect())
}
