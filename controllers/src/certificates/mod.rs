//! CertificateSigningRequests: approved where rules say so, signed where somebody has approved, and forgotten.
//!
//! Owns the conditions `Approved` by rule and `Failed`, and `status.certificate`, of requests to Kubernetes' own signers.
//! Never decides for a person, and never looks at requests to other signers. Signs only when it was given the authority
//! (`Options::authority`): the API server, which runs no loops, never does.

mod authority;
mod plan;
mod request;
mod signers;
#[cfg(test)]
mod tests;

pub use authority::{Authority, AuthorityError, Content};
pub use plan::{Action, Leave, Seen, plan};
pub use request::Names;

use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes,
    patch::{json, params},
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Api, DeleteParams, Patch, PostParams, Preconditions};
use serde_json::json;
use std::sync::Arc;

/// The loop over certificate requests.
pub struct Certificates {
    requests: Informer<CertificateSigningRequest>,
    reviews: Api<SubjectAccessReview>,
    authority: Option<Arc<Authority>>,
}

impl Certificates {
    /// The loop of that context; without an authority nothing is signed.
    pub fn new(context: &Context, authority: Option<Arc<Authority>>) -> Self {
        Certificates { requests: context.informers.of(), reviews: Api::all(context.client.clone()), authority }
    }

    /// The first of these that who asks has.
    async fn first_allowed(&self, key: &Key, leaves: Vec<Leave>) -> Result<Option<Leave>, ActError> {
        let Some(object) = self.requests.get(key) else { return Ok(None) };
        for leave in leaves {
            let review = SubjectAccessReview {
                spec: SubjectAccessReviewSpec {
                    user: object.spec.username.clone(),
                    uid: object.spec.uid.clone(),
                    groups: object.spec.groups.clone(),
                    extra: object.spec.extra.clone(),
                    resource_attributes: Some(ResourceAttributes {
                        group: Some("certificates.k8s.io".into()),
                        resource: Some("certificatesigningrequests".into()),
                        verb: Some("create".into()),
                        subresource: Some(leave.subresource.into()),
                        version: Some("*".into()),
                        ..ResourceAttributes::default()
                    }),
                    ..SubjectAccessReviewSpec::default()
                },
                ..SubjectAccessReview::default()
            };
            let answer = self.reviews.create(&PostParams::default(), &review).await?;
            if answer.status.is_some_and(|status| status.allowed) {
                return Ok(Some(leave));
            }
        }
        Ok(None)
    }
}

/// 16 bytes nobody can guess: a serial number (CA/Browser Forum asks for 64 bits at least).
fn serial() -> [u8; 16] {
    let mut bytes = [0; 16];
    // The same generator that makes keys; it cannot fail once the machine has booted, and a time makes do until then.
    if rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes).is_err() {
        bytes = Timestamp::now().as_nanosecond().to_be_bytes();
    }
    // Positive, and never shorter than it looks.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    bytes
}

impl Loop for Certificates {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "certificates"
    }

    fn wire(&self, queue: &Queue) {
        let to = queue.clone();
        self.requests.on_change(move |change| to.add(change.key.clone()));
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.requests.synced())
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let authority_until = self.authority.as_ref().map(|authority| authority.not_after());
        Some(Seen { object: self.requests.get(key)?, authority_until })
    }

    fn plan(&self, seen: &Seen, now: Timestamp) -> Plan<Action> {
        plan(seen, now)
    }

    async fn act(&self, key: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        let api = self.requests.cluster_api();
        let condition = |type_: &str, reason: &str, message: &str| {
            let condition = json!({"type": type_, "status": "True", "reason": reason, "message": message});
            Patch::Merge(json!({"status": {"conditions": [condition]}}))
        };
        let written = match action {
            Action::Approve(leaves) => {
                // Who may not is waited for: somebody may look at it, or give them leave.
                let Some(leave) = self.first_allowed(key, leaves).await? else { return Ok(()) };
                let approved = condition("Approved", "AutoApproved", leave.message);
                api.patch_subresource("approval", &key.name, &params(), &approved).await?
            }
            Action::Sign(content) => {
                let Some(authority) = &self.authority else { return Ok(()) };
                let signed = authority.sign(&content, serial());
                let pem = signed.map_err(|error| ActError::Failed(format!("error auto signing csr: {error}")))?;
                let signed = Patch::Merge(json!({"status": {"certificate": json(&ByteString(pem.into_bytes()))}}));
                api.patch_status(&key.name, &params(), &signed).await?
            }
            Action::Fail(why) => {
                let failed = condition("Failed", "SignerValidationFailure", &why);
                api.patch_status(&key.name, &params(), &failed).await?
            }
            Action::Delete => {
                let Some(object) = self.requests.get(key) else { return Ok(()) };
                let preconditions = Preconditions { uid: object.metadata.uid.clone(), resource_version: None };
                let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                api.delete(&key.name, &parameters).await?;
                return Ok(());
            }
        };
        writes.wrote(&self.requests, &written);
        Ok(())
    }
}
