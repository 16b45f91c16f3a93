//! The query parameters of writes (`CreateOptions`, `UpdateOptions`, `PatchOptions`).

use http::Method;
use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::status::{ApiError, GroupResource};

use super::codec;
use crate::http::Request;

/// The media type of server-side apply (KEP-555).
pub const APPLY: &str = "application/apply-patch+yaml";

/// The longest name of a field manager.
const MAX_MANAGER: usize = 128;

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

impl FieldValidation {
    /// As in the query.
    pub fn name(self) -> &'static str {
        match self {
            FieldValidation::Ignore => "Ignore",
            FieldValidation::Warn => "Warn",
            FieldValidation::Strict => "Strict",
        }
    }
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
        let mut errors = FieldErrors::new();
        let validation = match query.get("fieldValidation") {
            None | Some("" | "Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                let supported = ["Ignore", "Warn", "Strict"];
                errors.push(FieldError::not_supported(&Path::of("fieldValidation"), other, &supported));
                FieldValidation::Warn
            }
        };
        let manager = manager(request, &mut errors);
        let apply = request.method == Method::PATCH && codec::media_type(request) == APPLY;
        if request.method == Method::PATCH && !apply && query.get("force").is_some() {
            errors.push(FieldError::forbidden(&Path::of("force"), "may not be specified for non-apply patch"));
        }
        if apply && query.get("fieldManager").is_none_or(str::is_empty) {
            errors.push(FieldError::required(&Path::of("fieldManager"), "is required for apply patch"));
        }
        let dry_run = dry_run(query.all("dryRun"), &mut errors);
        let kind = match request.method {
            Method::PATCH => "PatchOptions",
            Method::PUT => "UpdateOptions",
            _ => "CreateOptions",
        };
        valid(kind, errors)?;
        Ok(WriteOptions { dry_run, manager, validation, force: query.flag("force") })
    }
}

/// Refuses options with errors in them, as Kubernetes words that.
pub fn valid(kind: &str, errors: FieldErrors) -> Result<(), ApiError> {
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(GroupResource::new("meta.k8s.io", kind), "", errors)) }
}

/// `dryRun=All` or nothing.
pub fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut FieldErrors) -> bool {
    let mut dry = false;
    for value in values.filter(|value| !value.is_empty()) {
        if value != "All" {
            errors.push(FieldError::not_supported(&Path::of("dryRun"), value, &["All"]));
        }
        dry = true;
    }
    dry
}

/// The field manager: as given, or the user agent up to its first slash, as Kubernetes derives it.
fn manager(request: &Request, errors: &mut FieldErrors) -> String {
    if let Some(manager) = request.query.get("fieldManager").filter(|manager| !manager.is_empty()) {
        let at = Path::of("fieldManager");
        if manager.chars().count() > MAX_MANAGER {
            errors.push(FieldError::too_long(&at, MAX_MANAGER));
        }
        if manager.chars().any(char::is_control) {
            errors.push(FieldError::invalid(&at, manager, "should only contain printable characters"));
        }
        return manager.to_owned();
    }
    let agent = request.header(http::header::USER_AGENT).unwrap_or("unknown");
    agent.split('/').next().unwrap_or(agent).chars().take(MAX_MANAGER).collect()
}
