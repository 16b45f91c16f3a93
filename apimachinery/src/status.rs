//! Owns API errors and their wire form, the Kubernetes `Status` object. Never decides that something
//! is an error.
//!
//! Codes, reasons and wording follow `k8s.io/apimachinery/pkg/api/errors`.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use crate::field::{FieldErrors, join};

/// What a failed request is answered with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status.
    pub code: u16,
    /// The machine-readable reason: `NotFound`, `Invalid` …
    pub reason: Cow<'static, str>,
    /// The sentence people read.
    pub message: String,
    /// What it is about, boxed because most code passes errors by value.
    pub details: Option<Box<Details>>,
}

/// The `details` of a Status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// The object's name.
    pub name: String,
    /// The API group.
    pub group: String,
    /// The resource (plural) or, for `Invalid`, the kind.
    pub kind: String,
    /// The object's UID.
    pub uid: String,
    /// Each single thing that is wrong.
    pub causes: Vec<StatusCause>,
    /// Seconds after which to try again; 0 is unset.
    pub retry_after_seconds: i32,
    /// With an expired page of a list: where an inconsistent list can go on (`metadata.continue`).
    pub go_on: String,
}

/// One single cause of a Status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatusCause {
    /// `FieldValueRequired`, `FieldManagerConflict` …
    pub reason: String,
    /// The sentence.
    pub message: String,
    /// The path.
    pub field: String,
}

/// A resource with its group, as messages name it: `pods`, `deployments.apps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupResource<'a> {
    /// The API group; empty for the core group.
    pub group: &'a str,
    /// The plural.
    pub resource: &'a str,
}

impl<'a> GroupResource<'a> {
    /// `group` is empty for the core group.
    pub fn new(group: &'a str, resource: &'a str) -> GroupResource<'a> {
        GroupResource { group, resource }
    }
}

impl std::fmt::Display for GroupResource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.group.is_empty() { f.write_str(self.resource) } else { write!(f, "{}.{}", self.resource, self.group) }
    }
}

/// A kind with its group, as `Invalid` messages name it: `Pod`, `Deployment.apps`.
pub type GroupKind<'a> = GroupResource<'a>;

impl ApiError {
    /// An error with nothing but a message.
    pub fn new(code: u16, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> ApiError {
        ApiError { code, reason: reason.into(), message: message.into(), details: None }
    }

    fn about(mut self, gr: GroupResource<'_>, name: &str) -> ApiError {
        self.details = Some(Box::new(Details {
            name: name.to_owned(),
            group: gr.group.to_owned(),
            kind: gr.resource.to_owned(),
            ..Details::default()
        }));
        self
    }

    fn details_mut(&mut self) -> &mut Details {
        self.details.get_or_insert_default()
    }

    /// 404: there is no such object.
    pub fn not_found(gr: GroupResource<'_>, name: &str) -> ApiError {
        ApiError::new(404, "NotFound", format!("{gr} \"{name}\" not found")).about(gr, name)
    }

    /// 404: there is no such path, kind or subresource.
    pub fn no_such_resource() -> ApiError {
        let mut error = ApiError::new(404, "NotFound", "the server could not find the requested resource");
        error.details = Some(Box::default());
        error
    }

    /// 409: the name is taken.
    pub fn already_exists(gr: GroupResource<'_>, name: &str) -> ApiError {
        ApiError::new(409, "AlreadyExists", format!("{gr} \"{name}\" already exists")).about(gr, name)
    }

    /// 409: the object is not what the writer thinks it is.
    pub fn conflict(gr: GroupResource<'_>, name: &str, why: &str) -> ApiError {
        let message = format!("Operation cannot be fulfilled on {gr} \"{name}\": {why}");
        ApiError::new(409, "Conflict", message).about(gr, name)
    }

    /// 409: a write with an old resource version.
    pub fn stale(gr: GroupResource<'_>, name: &str) -> ApiError {
        const WHY: &str = "the object has been modified; please apply your changes to the latest version and try again";
        ApiError::conflict(gr, name, WHY)
    }

    /// 422: the object's content is wrong.
    pub fn invalid(gk: GroupKind<'_>, name: &str, errors: FieldErrors) -> ApiError {
        let message = if errors.is_empty() {
            format!("{gk} \"{name}\" is invalid")
        } else {
            format!("{gk} \"{name}\" is invalid: {}", join(&errors))
        };
        let mut error = ApiError::new(422, "Invalid", message).about(gk, name);
        error.details_mut().causes = errors
            .iter()
            .map(|e| StatusCause {
                reason: e.cause.reason().to_owned(),
                message: e.body(),
                field: e.path.as_str().to_owned(),
            })
            .collect();
        error
    }

    /// 400: the request itself is malformed.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(400, "BadRequest", message)
    }

    /// 403: the user may not, or a policy says no. An empty name leaves the name out.
    pub fn forbidden(gr: GroupResource<'_>, name: &str, why: &str) -> ApiError {
        let message = match (gr.resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{gr} is forbidden: {why}"),
            (false, false) => format!("{gr} \"{name}\" is forbidden: {why}"),
        };
        ApiError::new(403, "Forbidden", message).about(gr, name)
    }

    /// 401: nobody we know.
    pub fn unauthorized() -> ApiError {
        ApiError::new(401, "Unauthorized", "Unauthorized")
    }

    /// 410: what was asked for has been compacted away; list again.
    pub fn expired(message: impl Into<String>) -> ApiError {
        ApiError::new(410, "Expired", message)
    }

    /// 410: gone for good.
    pub fn gone(message: impl Into<String>) -> ApiError {
        ApiError::new(410, "Gone", message)
    }

    /// 405: this verb is not for this resource.
    pub fn method_not_allowed(gr: GroupResource<'_>, verb: &str) -> ApiError {
        let message = if gr.resource.is_empty() {
            "the server does not allow this method on the requested resource".to_owned()
        } else {
            format!("{verb} is not supported on resources of kind \"{gr}\"")
        };
        ApiError::new(405, "MethodNotAllowed", message).about(gr, "")
    }

    /// 406: no representation the client accepts.
    pub fn not_acceptable(accepted: &[&str]) -> ApiError {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        ApiError::new(406, "NotAcceptable", message)
    }

    /// 415: a body in a form we do not read.
    pub fn unsupported_media_type(accepted: &[&str]) -> ApiError {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        ApiError::new(415, "UnsupportedMediaType", message)
    }

    /// 413: a body of more than `limit` bytes.
    pub fn too_large(limit: usize) -> ApiError {
        ApiError::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    /// 429: come back later.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: i32) -> ApiError {
        let mut error = ApiError::new(429, "TooManyRequests", message);
        error.details_mut().retry_after_seconds = retry_after_seconds;
        error
    }

    /// 500: our own fault.
    pub fn internal(message: impl std::fmt::Display) -> ApiError {
        let mut error = ApiError::new(500, "InternalError", format!("Internal error occurred: {message}"));
        error.details_mut().causes = vec![StatusCause { message: message.to_string(), ..StatusCause::default() }];
        error
    }

    /// 503: not ready, or going away.
    pub fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(503, "ServiceUnavailable", message)
    }

    /// 504: it took too long.
    pub fn timeout(message: impl Into<String>, retry_after_seconds: i32) -> ApiError {
        let mut error = ApiError::new(504, "Timeout", format!("Timeout: {}", message.into()));
        error.details_mut().retry_after_seconds = retry_after_seconds;
        error
    }

    /// 409: server-side apply met fields of other managers. Each pair is the other manager as messages
    /// name it (`"kubectl" using apps/v1`) and a path (`.spec.replicas`).
    pub fn apply_conflicts<M, F>(conflicts: impl IntoIterator<Item = (M, F)>) -> ApiError
    where
        M: Into<String>,
        F: Into<String>,
    {
        let mut by_manager: Vec<(String, Vec<String>)> = Vec::new();
        for (manager, field) in conflicts {
            let (manager, field) = (manager.into(), field.into());
            match by_manager.iter_mut().find(|(m, _)| *m == manager) {
                Some((_, fields)) => fields.push(field),
                None => by_manager.push((manager, vec![field])),
            }
        }
        let count: usize = by_manager.iter().map(|(_, f)| f.len()).sum();
        let texts: Vec<String> = by_manager
            .iter()
            .map(|(manager, fields)| match fields.as_slice() {
                [one] => format!("conflict with {manager}: {one}"),
                many => {
                    let lines: String = many.iter().map(|f| format!("\n- {f}")).collect();
                    format!("conflicts with {manager}:{lines}")
                }
            })
            .collect();
        let plural = if count == 1 { "" } else { "s" };
        let mut error =
            ApiError::new(409, "Conflict", format!("Apply failed with {count} conflict{plural}: {}", texts.join("\n")));
        error.details_mut().causes = by_manager
            .into_iter()
            .flat_map(|(manager, fields)| {
                fields.into_iter().map(move |field| StatusCause {
                    reason: "FieldManagerConflict".to_owned(),
                    message: format!("conflict with {manager}"),
                    field,
                })
            })
            .collect();
        error
    }

    /// The wire form: a `v1` `Status` with `status: Failure`.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.as_ref().into();
        }
        if let Some(details) = &self.details {
            status["details"] = details.to_value();
            if !details.go_on.is_empty() {
                status["metadata"]["continue"] = details.go_on.as_str().into();
            }
        }
        status["code"] = self.code.into();
        status
    }
}

impl Details {
    fn to_value(&self) -> Value {
        let mut map = Map::new();
        for (key, text) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if !text.is_empty() {
                map.insert(key.to_owned(), text.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            let causes: Vec<Value> = self.causes.iter().map(StatusCause::to_value).collect();
            map.insert("causes".to_owned(), causes.into());
        }
        if self.retry_after_seconds > 0 {
            map.insert("retryAfterSeconds".to_owned(), self.retry_after_seconds.into());
        }
        Value::Object(map)
    }
}

impl StatusCause {
    fn to_value(&self) -> Value {
        let mut map = Map::new();
        for (key, text) in [("reason", &self.reason), ("message", &self.message), ("field", &self.field)] {
            if !text.is_empty() {
                map.insert(key.to_owned(), text.as_str().into());
            }
        }
        Value::Object(map)
    }
}

/// The Status a successful delete is answered with.
pub fn success(gr: GroupResource<'_>, name: &str, uid: &str) -> Value {
    let details = Details {
        name: name.to_owned(),
        group: gr.group.to_owned(),
        kind: gr.resource.to_owned(),
        uid: uid.to_owned(),
        ..Details::default()
    };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details.to_value()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::{FieldError, Path};

    #[test]
    fn messages_are_kubernetes_own() {
        let pods = GroupResource::new("", "pods");
        let deployments = GroupResource::new("apps", "deployments");
        assert_eq!(ApiError::not_found(pods, "a").message, "pods \"a\" not found");
        assert_eq!(ApiError::not_found(deployments, "a").message, "deployments.apps \"a\" not found");
        assert_eq!(
            ApiError::stale(pods, "a").message,
            "Operation cannot be fulfilled on pods \"a\": the object has been modified; please apply your changes to the latest version and try again"
        );
        assert_eq!(ApiError::forbidden(pods, "", "no").message, "pods is forbidden: no");
        let invalid = ApiError::invalid(
            GroupKind::new("apps", "Deployment"),
            "web",
            vec![FieldError::required(&Path::of("spec.selector"), "")],
        );
        assert_eq!(invalid.message, "Deployment.apps \"web\" is invalid: spec.selector: Required value");
        assert_eq!(
            invalid.to_status()["details"]["causes"][0],
            json!({"reason": "FieldValueRequired", "message": "Required value", "field": "spec.selector"})
        );
    }

    #[test]
    fn apply_conflicts_name_the_other_manager_and_the_fields() {
        let one = ApiError::apply_conflicts([("\"hpa\" using apps/v1", ".spec.replicas")]);
        assert_eq!(one.message, "Apply failed with 1 conflict: conflict with \"hpa\" using apps/v1: .spec.replicas");
        let two = ApiError::apply_conflicts([("\"a\"", ".x"), ("\"a\"", ".y")]);
        assert_eq!(two.message, "Apply failed with 2 conflicts: conflicts with \"a\":\n- .x\n- .y");
        assert_eq!(two.to_status()["code"], 409);
    }
}
