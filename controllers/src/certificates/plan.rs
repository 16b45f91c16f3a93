//! What becomes of a certificate request: approved by rule, signed, failed, forgotten. Pure.
//!
//! Source: Kubernetes' controllers csrapproving, csrsigning and csrcleaner.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};

use super::authority::{Content, unknown_usages};
use super::request::Request;
use super::signers;
use crate::Plan;

/// The longest life of what is signed: a year (`--cluster-signing-duration`).
const LIFE: SignedDuration = SignedDuration::from_hours(365 * 24);
/// The shortest, whatever was asked.
const SHORTEST: SignedDuration = SignedDuration::from_mins(10);
/// Certificates are good a little before they are made: clocks differ.
const BEFORE: SignedDuration = SignedDuration::from_mins(5);
/// What lives shorter is not cut by that.
const SHORT: SignedDuration = SignedDuration::from_hours(8);

/// Decided ones are forgotten after an hour, undecided ones after a day.
const DECIDED_KEPT: SignedDuration = SignedDuration::from_hours(1);
const PENDING_KEPT: SignedDuration = SignedDuration::from_hours(24);

/// A request, and until when the authority is good; `None` when nobody here signs.
pub struct Seen {
    /// The object.
    pub object: Arc<CertificateSigningRequest>,
    /// The end of the authority.
    pub authority_until: Option<Timestamp>,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Approve it if who asks may do any of these with certificate requests.
    Approve(Vec<Leave>),
    /// Sign it.
    Sign(Box<Content>),
    /// Say that it will never be signed.
    Fail(String),
    /// Forget it.
    Delete,
}

/// A permission by which a request is approved without anybody looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leave {
    /// The subresource of certificatesigningrequests to be created.
    pub subresource: &'static str,
    /// What the approval says.
    pub message: &'static str,
}

/// An agent renews its own certificate.
const SELF: Leave = Leave {
    subresource: "selfnodeclient",
    message: "Auto approving self kubelet client certificate after SubjectAccessReview.",
};
/// Somebody asks for an agent's first.
const NODE: Leave = Leave {
    subresource: "nodeclient",
    message: "Auto approving kubelet client certificate after SubjectAccessReview.",
};

fn condition<'a>(object: &'a CertificateSigningRequest, type_: &str) -> Option<&'a CertificateSigningRequestCondition> {
    let conditions = object.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().find(|condition| condition.type_ == type_)
}

fn certificate(object: &CertificateSigningRequest) -> Option<&[u8]> {
    let held = object.status.as_ref().and_then(|status| status.certificate.as_ref());
    held.map(|bytes| bytes.0.as_slice()).filter(|bytes| !bytes.is_empty())
}

/// Decides.
pub fn plan(seen: &Seen, now: Timestamp) -> Plan<Action> {
    let object = &*seen.object;
    if object.metadata.deletion_timestamp.is_some() {
        return Plan::nothing();
    }
    let mut plan = Plan::nothing();
    match kept_until(object) {
        Some(until) if until <= now => return Plan::act(vec![Action::Delete]),
        Some(until) => plan.look_again(Duration::try_from(until.duration_since(now)).unwrap_or_default()),
        None => {}
    }
    let over =
        certificate(object).is_some() || ["Denied", "Failed"].iter().any(|type_| condition(object, type_).is_some());
    let signer = object.spec.signer_name.as_str();
    if over || !signers::ALL.contains(&signer) {
        return plan;
    }
    let usages = object.spec.usages.as_deref().unwrap_or_default();
    let request = Request::of(object);
    if condition(object, "Approved").is_none() {
        plan.actions.extend(request.ok().and_then(|request| approval(object, &request, usages)));
    } else if let Some(until) = seen.authority_until {
        plan.actions.push(match request.and_then(|request| content(object, request, usages, until, now)) {
            Ok(content) => Action::Sign(Box::new(content)),
            Err(why) => Action::Fail(why),
        });
    }
    plan
}

/// Agents' client certificates are approved by rule, and no others.
fn approval(object: &CertificateSigningRequest, request: &Request, usages: &[String]) -> Option<Action> {
    if object.spec.signer_name != signers::KUBELET_CLIENT || signers::kubelet_client(request, usages).is_err() {
        return None;
    }
    let own = object.spec.username.as_deref() == Some(request.common_name.as_str());
    Some(Action::Approve(if own { vec![SELF, NODE] } else { vec![NODE] }))
}

/// What the certificate says.
fn content(
    object: &CertificateSigningRequest,
    request: Request,
    usages: &[String],
    authority_until: Timestamp,
    now: Timestamp,
) -> Result<Content, String> {
    signers::check(&object.spec.signer_name, &request, usages)?;
    let unknown = unknown_usages(usages);
    if !unknown.is_empty() {
        return Err(format!("unrecognized usage values: {unknown:?}"));
    }
    let asked = object.spec.expiration_seconds.map(|seconds| SignedDuration::from_secs(seconds.into()));
    let life = asked.map_or(LIFE, |asked| asked.clamp(SHORTEST, LIFE));
    let not_before = now.checked_sub(BEFORE).map_err(|error| error.to_string())?;
    let from = if life >= SHORT { not_before } else { now };
    let not_after = from.checked_add(life).map_err(|error| error.to_string())?.min(authority_until);
    if not_after <= now {
        return Err("the signer has expired".into());
    }
    let Request { subject, key, names, .. } = request;
    Ok(Content { subject, key, names, usages: usages.to_vec(), not_before, not_after })
}

/// When a request is forgotten.
fn kept_until(object: &CertificateSigningRequest) -> Option<Timestamp> {
    let decided = ["Approved", "Denied", "Failed"].iter().filter_map(|type_| {
        let condition = condition(object, type_)?;
        let since = condition.last_update_time.as_ref().or(condition.last_transition_time.as_ref())?;
        since.0.checked_add(DECIDED_KEPT).ok()
    });
    let made = object.metadata.creation_timestamp.as_ref()?.0;
    let pending = || made.checked_add(PENDING_KEPT).ok();
    let until = decided.min().or_else(pending);
    // One that has run out is of no use to anybody.
    let ended = certificate(object).and_then(|pem| {
        let der = rustls_pemfile::certs(&mut &*pem).next()?.ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
        Timestamp::from_second(parsed.validity().not_after.timestamp()).ok()
    });
    until.into_iter().chain(ended).min()
}
