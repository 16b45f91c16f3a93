//! Owns the strategy of CertificateSigningRequests: their form, and that what was decided about one stays decided.
//! Never signs.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proa_apimachinery::Object;
use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::at::At;
use super::{Op, Rules};

/// The conditions that say what became of a request. They are final.
const DECISIONS: [&str; 3] = ["Approved", "Denied", "Failed"];

/// `spec.username`, `uid`, `groups` and `extra` are admission's to set from who asks, and so is which conditions a
/// subresource may touch.
pub(super) const CSR: Rules = Rules {
    status: true,
    // What was asked for, and by whom, never changes.
    prepare: |_, new, old| {
        if let Some(spec) = old.and_then(|old| old.0.get("spec")) {
            new.0.insert("spec".to_owned(), spec.clone());
        }
    },
    validate,
    validate_status,
    ..Rules::GENERIC
};

/// For whom a certificate is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The common name: the user.
    pub common_name: String,
    /// The organizations: the groups.
    pub organizations: Vec<String>,
}

/// The subject of `spec.request`; `None` when that holds no certificate request (RFC 2986) in PEM.
pub fn subject(request: &Object) -> Option<Subject> {
    let pem = STANDARD.decode(request.get_str(&["spec", "request"])?).ok()?;
    let der = rustls_pemfile::csr(&mut pem.as_slice()).ok()??;
    let (_, parsed) = X509CertificationRequest::from_der(&der).ok()?;
    let name = &parsed.certification_request_info.subject;
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().ok().map(str::to_owned);
    Some(Subject {
        common_name: name.iter_common_name().find_map(text).unwrap_or_default(),
        organizations: name.iter_organization().filter_map(text).collect(),
    })
}

fn validate(_: Op, new: &Object, _: Option<&Object>, errors: &mut FieldErrors) {
    let spec = At::of(new, "spec");
    let request = spec.child("request");
    if request.required(errors) && subject(new).is_none() {
        request.invalid(errors, "PEM block type must be CERTIFICATE REQUEST");
    }
    let signer = spec.child("signerName");
    if signer.required(errors) && !signer.str().contains('/') {
        signer.invalid(errors, "must be a fully qualified domain and path of the form 'example.com/signer-name'");
    }
    if spec.child("usages").is_empty() {
        spec.child("usages").missing(errors, "usages must be provided");
    }
    let seconds = spec.child("expirationSeconds");
    if seconds.int().is_some_and(|s| s < 600) {
        seconds.invalid(errors, "may not specify a duration less than 600 seconds (10 minutes)");
    }
}

fn validate_status(new: &Object, old: &Object, errors: &mut FieldErrors) {
    let status = At::of(new, "status");
    let conditions = status.child("conditions");
    let mut seen: Vec<&str> = Vec::new();
    for condition in conditions.items() {
        let type_ = condition.child("type");
        if type_.required(errors) && seen.contains(&type_.str()) {
            type_.duplicate(errors);
        }
        let holds = condition.child("status");
        if holds.required(errors) {
            let known: &[&str] =
                if DECISIONS.contains(&type_.str()) { &["True"] } else { &["True", "False", "Unknown"] };
            holds.one_of(errors, known);
        }
        seen.push(type_.str());
    }
    if seen.contains(&"Approved") && seen.contains(&"Denied") {
        conditions.invalid(errors, "Approved and Denied conditions are mutually exclusive");
    }
    for decision in DECISIONS {
        let Some(before) = condition(old, decision) else { continue };
        match condition(new, decision) {
            None => conditions.forbidden(errors, format!("updates may not remove a condition of type \"{decision}\"")),
            Some(after) if after != before => {
                conditions.forbidden(errors, format!("updates may not modify a condition of type \"{decision}\""));
            }
            Some(_) => {}
        }
    }
    let before = old.get_str(&["status", "certificate"]).filter(|certificate| !certificate.is_empty());
    if before.is_some_and(|before| new.get_str(&["status", "certificate"]) != Some(before)) {
        let at = Path::of("status.certificate");
        errors.push(FieldError::forbidden(&at, "updates may not modify existing certificate content"));
    }
}

fn condition<'a>(request: &'a Object, type_: &str) -> Option<&'a Value> {
    request.get_list(&["status", "conditions"]).iter().find(|condition| condition["type"] == type_)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(status: Value) -> Object {
        Object::from_value(json!({"metadata": {"name": "a"}, "status": status})).unwrap()
    }

    #[test]
    fn what_was_decided_stays_decided() {
        let is = |type_: &str, status: &str| json!({"type": type_, "status": status});
        let check = |old: Value, new: Value| {
            let mut errors = FieldErrors::new();
            validate_status(&request(new), &request(old), &mut errors);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        let approved = json!({"conditions": [is("Approved", "True")]});
        for (old, new, expected) in [
            (json!({}), approved.clone(), ""),
            (approved.clone(), json!({"conditions": [is("Approved", "True"), is("Failed", "True")]}), ""),
            (approved.clone(), json!({}), "may not remove a condition of type \"Approved\""),
            (
                approved.clone(),
                json!({"conditions": [{"type": "Approved", "status": "True", "reason": "x"}]}),
                "may not modify a condition of type \"Approved\"",
            ),
            (json!({}), json!({"conditions": [is("Approved", "True"), is("Denied", "True")]}), "mutually exclusive"),
            (json!({}), json!({"conditions": [is("Denied", "False")]}), "Unsupported value: \"False\""),
            (json!({}), json!({"conditions": [is("Own", "False")]}), ""),
            (json!({"certificate": "YQ=="}), json!({"certificate": "Yg=="}), "existing certificate content"),
        ] {
            let errors = check(old, new);
            assert!(errors.contains(expected) && errors.is_empty() == expected.is_empty(), "{expected:?}: {errors}");
        }
    }
}
