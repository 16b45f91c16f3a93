//! Owns validation errors: where in an object something is wrong, what kind of wrong, and
//! Kubernetes' words for it. Never decides what is valid.
//!
//! The wording is that of `k8s.io/apimachinery/pkg/util/validation/field`: tools and people match on it.

use std::fmt;

use serde_json::Value;

/// Where in an object a value sits: `spec.containers[0].env`, `metadata.labels[app]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(String);

impl Path {
    /// The object itself; its text is empty.
    pub fn root() -> Path {
        Path(String::new())
    }

    /// A path from its text; `"spec.ports"` is two steps.
    pub fn of(text: impl Into<String>) -> Path {
        Path(text.into())
    }

    /// One field further down.
    #[must_use]
    pub fn child(&self, name: &str) -> Path {
        if self.0.is_empty() { Path(name.to_owned()) } else { Path(format!("{}.{name}", self.0)) }
    }

    /// The element of a list.
    #[must_use]
    pub fn index(&self, index: usize) -> Path {
        Path(format!("{}[{index}]", self.0))
    }

    /// The entry of a map.
    #[must_use]
    pub fn key(&self, key: &str) -> Path {
        Path(format!("{}[{key}]", self.0))
    }

    /// The text, as it appears in messages and in `details.causes[].field`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for [`Path::root`].
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

impl From<&str> for Path {
    fn from(text: &str) -> Path {
        Path(text.to_owned())
    }
}

/// What kind of wrong a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Must be given and is not.
    Required,
    /// Malformed.
    Invalid,
    /// Not one of an enumeration.
    NotSupported,
    /// Well-formed, but not allowed here or now.
    Forbidden,
    /// Given twice where it must be unique.
    Duplicate,
    /// A string or map past its limit.
    TooLong,
    /// A list past its limit.
    TooMany,
    /// A reference to something that does not exist.
    NotFound,
    /// Of the wrong JSON type.
    TypeInvalid,
    /// Our own fault.
    Internal,
}

impl Cause {
    /// The words that open the message.
    pub fn words(self) -> &'static str {
        match self {
            Cause::Required => "Required value",
            Cause::Invalid | Cause::TypeInvalid => "Invalid value",
            Cause::NotSupported => "Unsupported value",
            Cause::Forbidden => "Forbidden",
            Cause::Duplicate => "Duplicate value",
            Cause::TooLong => "Too long",
            Cause::TooMany => "Too many",
            Cause::NotFound => "Not found",
            Cause::Internal => "Internal error",
        }
    }

    /// The `reason` of a Status cause.
    pub fn reason(self) -> &'static str {
        match self {
            Cause::Required => "FieldValueRequired",
            Cause::Invalid => "FieldValueInvalid",
            Cause::NotSupported => "FieldValueNotSupported",
            Cause::Forbidden => "FieldValueForbidden",
            Cause::Duplicate => "FieldValueDuplicate",
            Cause::TooLong => "FieldValueTooLong",
            Cause::TooMany => "FieldValueTooMany",
            Cause::NotFound => "FieldValueNotFound",
            Cause::TypeInvalid => "FieldValueTypeInvalid",
            Cause::Internal => "InternalError",
        }
    }
}

/// One thing wrong with an object. `Display` is Kubernetes' text:
/// `spec.replicas: Invalid value: -1: must be greater than or equal to 0`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// What kind of wrong.
    pub cause: Cause,
    /// Where.
    pub path: Path,
    /// The offending value, when it helps to show it.
    pub value: Option<Value>,
    /// The rest of the sentence; may be empty.
    pub detail: String,
}

/// All that is wrong with an object; empty means valid.
pub type FieldErrors = Vec<FieldError>;

impl FieldError {
    /// Must be given and is not.
    pub fn required(path: &Path, detail: impl Into<String>) -> FieldError {
        FieldError { cause: Cause::Required, path: path.clone(), value: None, detail: detail.into() }
    }

    /// Malformed value.
    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> FieldError {
        FieldError { cause: Cause::Invalid, path: path.clone(), value: Some(value.into()), detail: detail.into() }
    }

    /// Wrong JSON type.
    pub fn type_invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> FieldError {
        FieldError { cause: Cause::TypeInvalid, path: path.clone(), value: Some(value.into()), detail: detail.into() }
    }

    /// Not one of `supported`.
    pub fn not_supported(path: &Path, value: impl Into<Value>, supported: &[&str]) -> FieldError {
        let quoted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = if quoted.is_empty() { String::new() } else { format!("supported values: {}", quoted.join(", ")) };
        FieldError { cause: Cause::NotSupported, path: path.clone(), value: Some(value.into()), detail }
    }

    /// Not allowed here.
    pub fn forbidden(path: &Path, detail: impl Into<String>) -> FieldError {
        FieldError { cause: Cause::Forbidden, path: path.clone(), value: None, detail: detail.into() }
    }

    /// Given twice.
    pub fn duplicate(path: &Path, value: impl Into<Value>) -> FieldError {
        FieldError { cause: Cause::Duplicate, path: path.clone(), value: Some(value.into()), detail: String::new() }
    }

    /// A string longer than `limit` bytes.
    pub fn too_long(path: &Path, limit: usize) -> FieldError {
        let detail = format!("may not be more than {limit} bytes");
        FieldError { cause: Cause::TooLong, path: path.clone(), value: None, detail }
    }

    /// A list of `actual` items, past `limit`.
    pub fn too_many(path: &Path, actual: usize, limit: usize) -> FieldError {
        let items = if limit == 1 { "item" } else { "items" };
        let detail = format!("must have at most {limit} {items}");
        FieldError { cause: Cause::TooMany, path: path.clone(), value: Some(actual.into()), detail }
    }

    /// A reference that leads nowhere.
    pub fn not_found(path: &Path, value: impl Into<Value>) -> FieldError {
        FieldError { cause: Cause::NotFound, path: path.clone(), value: Some(value.into()), detail: String::new() }
    }

    /// Our own fault.
    pub fn internal(path: &Path, detail: impl Into<String>) -> FieldError {
        FieldError { cause: Cause::Internal, path: path.clone(), value: None, detail: detail.into() }
    }

    /// The message without the path: what a Status cause carries.
    pub fn body(&self) -> String {
        let mut text = self.cause.words().to_owned();
        let shown = matches!(
            self.cause,
            Cause::Invalid
                | Cause::TypeInvalid
                | Cause::NotSupported
                | Cause::Duplicate
                | Cause::NotFound
                | Cause::TooMany
        );
        if let (true, Some(value)) = (shown, &self.value) {
            text.push_str(": ");
            text.push_str(&value.to_string());
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

impl std::error::Error for FieldError {}

/// `[a, b]` for several errors, `a` for one, as Kubernetes joins them; repeated texts appear once.
pub fn join(errors: &[FieldError]) -> String {
    let mut texts: Vec<String> = Vec::with_capacity(errors.len());
    for error in errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    if texts.len() == 1 { texts.remove(0) } else { format!("[{}]", texts.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_as_kubernetes_writes_them() {
        let path = Path::root().child("spec").child("containers").index(0).child("env").key("A");
        assert_eq!(path.as_str(), "spec.containers[0].env[A]");
        assert_eq!(Path::root().to_string(), "<nil>");
    }

    #[test]
    fn errors_read_as_kubernetes_writes_them() {
        let at = Path::of("spec.x");
        let table = [
            (FieldError::required(&at, ""), "spec.x: Required value"),
            (FieldError::required(&at, "why"), "spec.x: Required value: why"),
            (FieldError::invalid(&at, -1, "no"), "spec.x: Invalid value: -1: no"),
            (FieldError::invalid(&at, "q", "no"), "spec.x: Invalid value: \"q\": no"),
            (
                FieldError::not_supported(&at, "q", &["A", "B"]),
                "spec.x: Unsupported value: \"q\": supported values: \"A\", \"B\"",
            ),
            (FieldError::forbidden(&at, "not now"), "spec.x: Forbidden: not now"),
            (FieldError::duplicate(&at, "a"), "spec.x: Duplicate value: \"a\""),
            (FieldError::too_long(&at, 63), "spec.x: Too long: may not be more than 63 bytes"),
            (FieldError::too_many(&at, 3, 2), "spec.x: Too many: 3: must have at most 2 items"),
            (FieldError::not_found(&at, "v"), "spec.x: Not found: \"v\""),
        ];
        for (error, text) in table {
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn one_error_stands_alone_several_stand_in_brackets() {
        let one = FieldError::required(&Path::of("a"), "");
        let two = FieldError::required(&Path::of("b"), "");
        assert_eq!(join(&[one.clone(), one.clone()]), "a: Required value");
        assert_eq!(join(&[one, two]), "[a: Required value, b: Required value]");
    }
}
