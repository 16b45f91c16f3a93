//! Owns the strategy of CertificateSigningRequests. Never signs.

use proa_apimachinery::Object;
use proa_apimachinery::field::{FieldErrors, Path};

use super::at::At;
use super::{Op, Rules, meta};

/// `spec.username`, `uid`, `groups` and `extra` are the core's to set from who asks.
pub(super) const CSR: Rules = Rules { status: true, validate, ..Rules::GENERIC };

fn validate(_: Op, new: &Object, old: Option<&Object>, errors: &mut FieldErrors) {
    let spec = At::of(new, "spec");
    let request = spec.child("request");
    if request.required(errors) {
        use base64::Engine;
        let pem = base64::engine::general_purpose::STANDARD.decode(request.str()).ok();
        let pem = pem.and_then(|bytes| String::from_utf8(bytes).ok());
        if pem.is_none_or(|text| !text.contains("-----BEGIN CERTIFICATE REQUEST-----")) {
            request.invalid(errors, "PEM block type must be CERTIFICATE REQUEST");
        }
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
    if let Some(old) = old {
        meta::immutable(new.0.get("spec"), old.0.get("spec"), &Path::of("spec"), errors);
    }
}
