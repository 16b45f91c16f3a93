//! Owns projected service account tokens: asked for through TokenRequest, bound to the pod, renewed before they
//! grow old.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ServiceAccount, ServiceAccountTokenProjection};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use proa_crds::Family;
use std::collections::HashMap;
use std::sync::LazyLock;

use crate::pods::context::Context;
use crate::pods::{Pod, uid};

/// A token and its life.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) text: String,
    /// when a new one is to be asked for
    pub(crate) renew_at: Timestamp,
}

type Key = (String, String, i64);

/// Tokens that are still good, by pod uid, audience and life time: a volume is written again for many reasons.
static GOOD: LazyLock<Mutex<HashMap<Key, Token>>> = LazyLock::new(Mutex::default);

/// A token renews at four fifths of its life, and never later than a day after it was issued (Kubernetes).
fn renewal(issued: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(issued);
    let part = (life * 4 / 5).min(SignedDuration::from_hours(24));
    issued.saturating_add(part).unwrap_or(issued)
}

/// A good token for a projection.
pub(crate) async fn token(
    ctx: &Context,
    pod: &Pod,
    projection: &ServiceAccountTokenProjection,
) -> Result<Token, kube::Error> {
    let audience = projection.audience.clone().unwrap_or_default();
    let seconds = projection.expiration_seconds.unwrap_or(3600);
    let key = (uid(pod).to_owned(), audience.clone(), seconds);
    let now = Timestamp::now();
    if let Some(good) = GOOD.lock().get(&key).filter(|t| t.renew_at > now) {
        return Ok(good.clone());
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let account = pod.spec.service_account_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
    // A custom pod is not an object the server can bind a token to.
    let bound = (ctx.family == Family::Standard).then(|| BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
    });
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: (!audience.is_empty()).then(|| vec![audience]),
            bound_object_ref: bound,
            expiration_seconds: Some(seconds),
        }),
        ..TokenRequest::default()
    };
    let api: Api<ServiceAccount> = Api::namespaced(ctx.client.clone(), namespace);
    let answer: TokenRequest = api.create_subresource("token", account, &PostParams::default(), &request).await?;
    let status = answer.status.unwrap_or_default();
    let expires = status
        .expiration_timestamp
        .map_or_else(|| now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX), |t| t.0);
    let token = Token { text: status.token.unwrap_or_default(), renew_at: renewal(now, expires) };
    let mut good = GOOD.lock();
    good.retain(|_, t| t.renew_at > now);
    good.insert(key, token.clone());
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_renew_at_four_fifths_but_at_least_daily() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        assert_eq!(renewal(at(0), at(1000)), at(800));
        assert_eq!(renewal(at(0), at(10 * 86_400)), at(86_400));
    }
}
