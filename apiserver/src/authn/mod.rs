//! Who is asking: client certificates, bearer tokens, or nobody.
//!
//! Owns the step from a credential to a `User`. Never decides what the user may do.

pub mod impersonation;
pub mod jose;
pub mod jwt;
pub mod oidc;
pub mod x509;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;

use crate::authn::jwt::Reference;
use crate::core::Core;
use crate::user::{AUTHENTICATED, User};

/// The identity behind a request to that path: the connection's certificate or a bearer token; anonymous otherwise. A
/// credential that does not hold is an error, never anonymous.
pub async fn authenticate(core: &Core, headers: &HeaderMap, peer: Option<&User>, path: &str) -> Result<User, ApiError> {
    if let Some(token) = bearer(headers) {
        let known = identify(core, token, core.tokens.audiences()).await?;
        return known.map(|known| known.user).map_err(|_| ApiError::unauthorized());
    }
    match peer {
        Some(peer) => Ok(peer.clone()),
        None if core.issuers.load().anonymous.may_come_to(path) => Ok(User::anonymous()),
        None => Err(ApiError::unauthorized()),
    }
}

/// The user of a token that is meant for one of `audiences`, whoever issued it; the inner error says why it is nobody's.
///
/// # Errors
/// When the server is about to end.
pub async fn identify(core: &Core, token: &str, audiences: &[String]) -> Result<Result<Known, String>, ApiError> {
    if let Some(user) = core.issuers.load_full().user(core, token).await {
        // What another issuer says, it says to this server alone: for whom else a token is meant is its own affair.
        return Ok(user.and_then(|user| meant_for(user, core.tokens.audiences(), audiences).ok_or_else(invalid)));
    }
    if let Some(known) = token_user(core, token, audiences) {
        return Ok(Ok(known));
    }
    // What it is bound to may have been created an instant ago, on another connection.
    core.caches.consistent().await?;
    Ok(token_user(core, token, audiences).ok_or_else(invalid))
}

fn invalid() -> String {
    "invalid bearer token".to_owned()
}

fn meant_for(user: User, meant: &[String], asked: &[String]) -> Option<Known> {
    let audiences: Vec<String> = asked.iter().filter(|audience| meant.contains(audience)).cloned().collect();
    (!audiences.is_empty()).then_some(Known { user, audiences })
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(http::header::AUTHORIZATION) {
        let value = value.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty());
    }
    None
}

/// Who a token says its bearer is, and to whom it says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The bearer.
    pub user: User,
    /// Those of the audiences asked about that the token is meant for.
    pub audiences: Vec<String>,
}

/// The user of a token that is meant for one of `audiences`: a service account's, or a bootstrap token.
fn token_user(core: &Core, token: &str, audiences: &[String]) -> Option<Known> {
    let (user, meant) = match token.bytes().filter(|byte| *byte == b'.').count() {
        2 => service_account(core, token)?,
        // Only this server knows bootstrap tokens: they are meant for nobody else.
        1 => (bootstrap_token(core, token)?, core.tokens.audiences().to_vec()),
        _ => return None,
    };
    meant_for(user, &meant, audiences)
}

/// By how many seconds the clocks of two machines may differ.
const LEEWAY: i64 = 60;

/// The account behind a token, and the token's audiences.
fn service_account(core: &Core, token: &str) -> Option<(User, Vec<String>)> {
    let claims = core.tokens.verify(token)?;
    let now = core.now().as_second();
    if !core.tokens.is_issuer(&claims.iss) || claims.exp.is_some_and(|exp| exp <= now) || claims.nbf > now + 5 {
        return None;
    }
    let bound = &claims.kubernetes;
    let lives = |resource: &str, namespace: &str, reference: &Reference| {
        let item = core.caches.resource(resource).get(namespace, &reference.name)?;
        let object = item.object();
        // What is being deleted counts until a minute after its time (Kubernetes' leeway for clocks that differ).
        let gone = object.deletion_timestamp().and_then(|at| at.parse::<jiff::Timestamp>().ok());
        let over = gone.is_some_and(|at| at.as_second() + LEEWAY < now);
        (object.uid() == reference.uid && !over).then_some(())
    };
    lives("serviceaccounts", &bound.namespace, &bound.serviceaccount)?;
    let mut user = User::service_account(&bound.namespace, &bound.serviceaccount.name, &bound.serviceaccount.uid);
    let mut say = |what: &str, value: &str| {
        user.extra.insert(format!("authentication.kubernetes.io/{what}"), vec![value.to_owned()]);
    };
    say("credential-id", &format!("JTI={}", claims.jti));
    if let Some(pod) = &bound.pod {
        lives("pods", &bound.namespace, pod)?;
        say("pod-name", &pod.name);
        say("pod-uid", &pod.uid);
    }
    if let Some(node) = &bound.node {
        // A pod's token says where the pod is and dies with the pod; one bound to the node alone, with the node (KEP-4193).
        if bound.pod.is_none() {
            lives("nodes", "", node)?;
        }
        say("node-name", &node.name);
        say("node-uid", &node.uid);
    }
    if let Some(secret) = &bound.secret {
        lives("secrets", &bound.namespace, secret)?;
    }
    Some((user, claims.aud))
}

/// A bootstrap token `<id>.<secret>`, kept in the secret `kube-system/bootstrap-token-<id>` ("Authenticating with
/// Bootstrap Tokens").
fn bootstrap_token(core: &Core, token: &str) -> Option<User> {
    let (id, secret) = token.split_once('.')?;
    let plain =
        |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !plain(id, 6) || !plain(secret, 16) {
        return None;
    }
    let object = core.caches.resource("secrets").get("kube-system", &format!("bootstrap-token-{id}"))?.object();
    if object.get_str(&["type"]) != Some("bootstrap.kubernetes.io/token") || object.deletion_timestamp().is_some() {
        return None;
    }
    if data(&object, "token-id")? != id || data(&object, "usage-bootstrap-authentication")? != "true" {
        return None;
    }
    let expected = data(&object, "token-secret")?;
    if !same(expected.as_bytes(), secret.as_bytes()) {
        return None;
    }
    if let Some(expiration) = data(&object, "expiration").filter(|text| !text.is_empty())
        && expiration.parse::<jiff::Timestamp>().ok()? <= core.now()
    {
        return None;
    }
    let mut groups = vec!["system:bootstrappers".to_owned(), AUTHENTICATED.to_owned()];
    let extra = data(&object, "auth-extra-groups").unwrap_or_default();
    for group in extra.split(',').filter(|group| !group.is_empty()) {
        // One group that a bootstrap token may not have makes it no token at all: nobody is to guess what was meant.
        if !is_bootstrap_group(group) {
            return None;
        }
        groups.push(group.to_owned());
    }
    Some(User { name: format!("system:bootstrap:{id}"), groups, ..User::default() })
}

/// `system:bootstrappers:` and at most 256 of `a-z0-9:-`, the last of them no sign.
fn is_bootstrap_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else { return false };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    rest.len() <= 256
        && rest.bytes().all(|b| plain(b) || b == b':' || b == b'-')
        && rest.bytes().last().is_some_and(plain)
}

fn data(object: &Object, key: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(object.get_str(&["data", key])?).ok()?).ok()
}

/// Compares without telling by its duration where the difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0u8, |different, (x, y)| different | (x ^ y)) == 0
}
