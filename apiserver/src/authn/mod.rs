//! Who is asking: client certificates, bearer tokens, or nobody.
//!
//! Owns the step from a credential to a `User`. Never decides what the user may do.

pub mod jwt;
pub mod x509;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;

use crate::core::Core;
use crate::user::{AUTHENTICATED, User};

/// The identity behind a request: the connection's certificate or a bearer token; anonymous otherwise. A
/// credential that does not hold is an error, never anonymous.
pub fn authenticate(core: &Core, headers: &HeaderMap, peer: Option<&User>) -> Result<User, ApiError> {
    if let Some(token) = bearer(headers) {
        return token_user(core, token, &[]).ok_or_else(ApiError::unauthorized);
    }
    Ok(peer.cloned().unwrap_or_else(User::anonymous))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(http::header::AUTHORIZATION) {
        let value = value.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty());
    }
    None
}

/// The user of a token: a service account's, or a bootstrap token. `audiences` empty means the API server's own.
pub fn token_user(core: &Core, token: &str, audiences: &[String]) -> Option<User> {
    match token.bytes().filter(|byte| *byte == b'.').count() {
        2 => service_account(core, token, audiences),
        1 => bootstrap_token(core, token),
        _ => None,
    }
}

fn service_account(core: &Core, token: &str, audiences: &[String]) -> Option<User> {
    let claims = core.tokens.verify(token)?;
    let now = core.now().as_second();
    if claims.iss != core.tokens.issuer() || claims.exp <= now || claims.nbf > now + 5 {
        return None;
    }
    let own = core.tokens.audiences();
    let wanted = if audiences.is_empty() { own } else { audiences };
    if !claims.aud.iter().any(|audience| wanted.contains(audience)) {
        return None;
    }
    let bound = &claims.kubernetes;
    let lives = |resource: &str, name: &str, uid: &str| {
        let item = core.caches.resource(resource).get(&bound.namespace, name)?;
        let object = item.object();
        (object.uid() == uid).then_some(object)
    };
    lives("serviceaccounts", &bound.serviceaccount.name, &bound.serviceaccount.uid)?;
    let mut user = User::service_account(&bound.namespace, &bound.serviceaccount.name, &bound.serviceaccount.uid);
    user.extra.insert("authentication.kubernetes.io/credential-id".into(), vec![format!("JTI={}", claims.jti)]);
    if let Some(pod) = &bound.pod {
        let object = lives("pods", &pod.name, &pod.uid)?;
        user.extra.insert("authentication.kubernetes.io/pod-name".into(), vec![pod.name.clone()]);
        user.extra.insert("authentication.kubernetes.io/pod-uid".into(), vec![pod.uid.clone()]);
        if let Some(node) = object.get_str(&["spec", "nodeName"]) {
            user.extra.insert("authentication.kubernetes.io/node-name".into(), vec![node.to_owned()]);
        }
    }
    if let Some(secret) = &bound.secret {
        lives("secrets", &secret.name, &secret.uid)?;
    }
    Some(user)
}

/// A bootstrap token `<id>.<secret>`, kept in the secret `kube-system/bootstrap-token-<id>`.
fn bootstrap_token(core: &Core, token: &str) -> Option<User> {
    let (id, secret) = token.split_once('.')?;
    let object = core.caches.resource("secrets").get("kube-system", &format!("bootstrap-token-{id}"))?.object();
    if object.get_str(&["type"]) != Some("bootstrap.kubernetes.io/token") {
        return None;
    }
    if data(&object, "token-id")? != id || data(&object, "usage-bootstrap-authentication")? != "true" {
        return None;
    }
    let expected = data(&object, "token-secret")?;
    if !same(expected.as_bytes(), secret.as_bytes()) {
        return None;
    }
    if let Some(expiration) = data(&object, "expiration")
        && expiration.parse::<jiff::Timestamp>().ok()? <= core.now()
    {
        return None;
    }
    let mut groups = vec!["system:bootstrappers".to_owned(), AUTHENTICATED.to_owned()];
    groups.extend(
        data(&object, "auth-extra-groups")
            .iter()
            .flat_map(|extra| extra.split(','))
            .filter(|group| group.starts_with("system:bootstrappers:"))
            .map(str::to_owned),
    );
    Some(User { name: format!("system:bootstrap:{id}"), groups, ..User::default() })
}

fn data(object: &Object, key: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(object.get_str(&["data", key])?).ok()?).ok()
}

/// Compares without telling by its duration where the difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0u8, |different, (x, y)| different | (x ^ y)) == 0
}
