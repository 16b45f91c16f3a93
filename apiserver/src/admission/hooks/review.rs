//! AdmissionReview (admission.k8s.io, v1 and v1beta1): the question, and what the answer means.
//!
//! Pure: owns the wire form and Kubernetes' wording of refusals (`k8s.io/apiserver/pkg/admission/plugin/webhook`).

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::{ApiError, Details, StatusCause};
use serde_json::{Map, Value, json};

use crate::admission::attributes::{Attributes, GroupVersionKind, Objects};
use crate::resources::Resource;
use crate::reviews::user_info;

/// The versions of the review this server speaks.
const SPOKEN: [&str; 2] = ["v1", "v1beta1"];

/// The request of a review, without its uid and objects: what conditions see as `request`, too. `shown` is the resource
/// the webhook asked for, which may be another version of the request's own.
pub(in crate::admission) fn request(attributes: &Attributes<'_>, shown: &Resource) -> Map<String, Value> {
    let own = &attributes.resource.kind;
    let resource =
        |group: &str, version: &str, plural: &str| json!({"group": group, "version": version, "resource": plural});
    let mut request = Map::new();
    // A kind of another group than the resource (Scale, Eviction) is the same in all of the resource's versions.
    let kind = match attributes.kind == GroupVersionKind::of(own) {
        true => GroupVersionKind::of(&shown.kind),
        false => attributes.kind.clone(),
    };
    request.insert("kind".into(), kind.to_value());
    request.insert("resource".into(), resource(&shown.kind.group, &shown.kind.version, &shown.kind.plural));
    request.insert("requestKind".into(), attributes.kind.to_value());
    request.insert("requestResource".into(), resource(&own.group, &own.version, &own.plural));
    if !attributes.subresource.is_empty() {
        request.insert("subResource".into(), attributes.subresource.into());
        request.insert("requestSubResource".into(), attributes.subresource.into());
    }
    for (field, text) in [("name", &attributes.name), ("namespace", &attributes.namespace)] {
        if !text.is_empty() {
            request.insert(field.into(), text.as_str().into());
        }
    }
    request.insert("operation".into(), attributes.operation.name().into());
    request.insert("userInfo".into(), user_info(attributes.user));
    request.insert("dryRun".into(), attributes.dry_run.into());
    request.insert("options".into(), attributes.options.clone());
    request
}

/// The version to speak with a webhook that understands `versions`: its first that this server does.
pub(super) fn version(versions: &[String]) -> Option<&'static str> {
    versions.iter().find_map(|version| SPOKEN.into_iter().find(|spoken| spoken == version))
}

/// The whole review.
pub(super) fn review(version: &str, uid: &str, request: &Map<String, Value>, objects: Objects<'_>) -> Value {
    let mut request = request.clone();
    request.insert("uid".into(), uid.into());
    let value = |object: Option<&Object>| object.map_or(Value::Null, Object::to_value);
    request.insert("object".into(), value(objects.new));
    request.insert("oldObject".into(), value(objects.old));
    json!({"kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": request})
}

/// What a webhook said.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    /// It has nothing against it; or what it refuses it with.
    pub verdict: Result<(), Box<ApiError>>,
    /// A JSON patch to what it saw.
    pub patch: Option<Value>,
    /// What the client is to be told.
    pub warnings: Vec<String>,
    /// What the audit log is to keep, by keys of the webhook's own.
    pub annotations: BTreeMap<String, String>,
}

/// Reads an answer to the review `uid` in `version` by the webhook `hook`.
///
/// # Errors
///
/// What is wrong with it.
pub(super) fn answer(hook: &str, version: &str, uid: &str, body: &[u8], mutating: bool) -> Result<Answer, String> {
    let review: Value =
        serde_json::from_slice(body).map_err(|error| format!("couldn't decode the response: {error}"))?;
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let wanted = format!("admission.k8s.io/{version}");
    let (kind, api_version) = (text(&review, "kind"), text(&review, "apiVersion"));
    // v1beta1 was not strict about what it is answered with.
    if version == "v1" && (kind != "AdmissionReview" || api_version != wanted) {
        return Err(format!(
            "expected webhook response of {wanted}, Kind=AdmissionReview, got {api_version}, Kind={kind}"
        ));
    }
    let response = review
        .get("response")
        .filter(|response| response.is_object())
        .ok_or_else(|| "webhook response was absent".to_owned())?;
    let answered = text(response, "uid");
    if version == "v1" && answered != uid {
        return Err(format!("expected response.uid={uid:?}, got {answered:?}"));
    }
    let patch = match response.get("patch").and_then(Value::as_str).filter(|patch| !patch.is_empty()) {
        None if version == "v1" && !text(response, "patchType").is_empty() => {
            return Err("webhook returned response.patchType but not response.patch".to_owned());
        }
        None => None,
        Some(_) if !mutating => None,
        Some(patch) => Some(read_patch(patch, &text(response, "patchType"), version)?),
    };
    let allowed = response.get("allowed").and_then(Value::as_bool) == Some(true);
    let status = response.get("status").or_else(|| response.get("result")).cloned().unwrap_or_default();
    let texts = response.get("warnings").and_then(Value::as_array).into_iter().flatten();
    let annotations = response.get("auditAnnotations").and_then(Value::as_object).into_iter().flatten();
    Ok(Answer {
        verdict: if allowed { Ok(()) } else { Err(Box::new(refusal(hook, &status))) },
        patch,
        warnings: texts.filter_map(Value::as_str).map(str::to_owned).collect(),
        annotations: annotations.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect(),
    })
}

fn read_patch(encoded: &str, kind: &str, version: &str) -> Result<Value, String> {
    match (kind, version) {
        ("JSONPatch", _) | ("", "v1beta1") => {}
        ("", _) => return Err("webhook returned response.patch but not response.patchType".to_owned()),
        (other, _) => return Err(format!("webhook returned invalid response.patchType of {other:?}")),
    }
    let bytes = STANDARD.decode(encoded).map_err(|error| format!("response.patch is not base64: {error}"))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("response.patch is not JSON: {error}"))
}

/// A webhook's refusal as the client gets it. What it says of the code and reason holds, as far as it is an error's.
fn refusal(hook: &str, status: &Value) -> ApiError {
    let text = |field: &str| status.get(field).and_then(Value::as_str).unwrap_or_default();
    let denied = format!("admission webhook {hook:?} denied the request");
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let code = status.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
    let code = code.filter(|code| (400..600).contains(code)).unwrap_or(400);
    let mut error = ApiError::new(code, text("reason").to_owned(), message);
    error.details =
        status.get("details").filter(|details| details.is_object()).map(|details| Box::new(read_details(details)));
    error
}

fn read_details(value: &Value) -> Details {
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let causes = value.get("causes").and_then(Value::as_array).into_iter().flatten();
    let cause = |cause: &Value| StatusCause {
        reason: text(cause, "reason"),
        message: text(cause, "message"),
        field: text(cause, "field"),
    };
    let seconds = value.get("retryAfterSeconds").and_then(Value::as_i64).unwrap_or(0);
    Details {
        name: text(value, "name"),
        group: text(value, "group"),
        kind: text(value, "kind"),
        uid: text(value, "uid"),
        causes: causes.map(cause).collect(),
        retry_after_seconds: i32::try_from(seconds).unwrap_or(0),
        ..Details::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(version: &str, response: &Value) -> Vec<u8> {
        json!({"kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "response": response})
            .to_string()
            .into_bytes()
    }

    fn read(version: &str, value: &Value) -> Result<Answer, String> {
        answer("a.b.c", version, "u", &response(version, value), true)
    }

    #[test]
    fn a_refusal_says_whose_it_is_and_why() {
        for (status, code, reason, message) in [
            (json!(null), 400, "", r#"admission webhook "a.b.c" denied the request without explanation"#),
            (json!({"message": "no"}), 400, "", r#"admission webhook "a.b.c" denied the request: no"#),
            (json!({"reason": "Odd"}), 400, "Odd", r#"admission webhook "a.b.c" denied the request: Odd"#),
            (
                json!({"message": "no", "code": 403, "reason": "Forbidden"}),
                403,
                "Forbidden",
                r#"admission webhook "a.b.c" denied the request: no"#,
            ),
            // A refusal is never a success.
            (json!({"message": "no", "code": 200}), 400, "", r#"admission webhook "a.b.c" denied the request: no"#),
        ] {
            let said = read("v1", &json!({"uid": "u", "allowed": false, "status": status})).unwrap();
            let error = said.verdict.unwrap_err();
            assert_eq!((error.code, &*error.reason, &*error.message), (code, reason, message));
        }
    }

    #[test]
    fn answers_are_held_to_the_version_they_are_in() {
        let patch = STANDARD.encode(r#"[{"op": "remove", "path": "/a"}]"#);
        let allowed = |more: Value| {
            let mut value = json!({"uid": "u", "allowed": true});
            value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            value
        };
        let wrong = |version: &str, value: Value| read(version, &value).unwrap_err();
        assert!(wrong("v1", json!({"uid": "x", "allowed": true})).contains("expected response.uid=\"u\", got \"x\""));
        assert!(wrong("v1", allowed(json!({"patch": patch}))).contains("response.patchType"));
        assert!(wrong("v1", allowed(json!({"patchType": "JSONPatch"}))).contains("but not response.patch"));
        assert!(
            wrong("v1", allowed(json!({"patch": patch, "patchType": "Merge"}))).contains("invalid response.patchType")
        );
        assert!(wrong("v1", allowed(json!({"patch": "?", "patchType": "JSONPatch"}))).contains("not base64"));
        assert!(answer("h", "v1", "u", b"no", true).is_err());
        assert!(
            answer("h", "v1", "u", br#"{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}"#, true)
                .is_err()
        );
        assert!(
            answer("h", "v1", "u", &response("v1beta1", &allowed(json!({}))), true)
                .unwrap_err()
                .contains("expected webhook response")
        );
        // The older version asks for less.
        assert!(read("v1beta1", &json!({"allowed": true, "patch": patch})).unwrap().patch.is_some());
        let full = read(
            "v1",
            &allowed(json!({"patch": patch, "patchType": "JSONPatch", "warnings": ["w"],
            "auditAnnotations": {"k": "v"}})),
        )
        .unwrap();
        assert_eq!(full.patch, Some(json!([{"op": "remove", "path": "/a"}])));
        assert_eq!((full.warnings, full.annotations["k"].as_str()), (vec!["w".to_owned()], "v"));
    }
}
