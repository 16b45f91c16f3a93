//! Tokens of other issuers: OpenID Connect ("OpenID Connect Tokens", KEP-3331).
//!
//! Owns who those issuers are, their keys (fetched when they are needed, and again when a token is signed with one that is
//! not among them), and the step from a token to a user. Never keeps a token.

pub mod config;
pub mod mapping;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

pub use config::{Anonymous, ConfigError, Issuer, OidcFlags, Settings};

use super::jose::{Jws, PublicKey};
use crate::core::Core;
use crate::outgoing::{self, ClientConfig};
use crate::user::User;

/// How long an issuer may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How often, at most, an issuer is asked for its keys: whoever sends nonsense must not make us ask all the time.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// By how much the clocks of two machines may differ, in seconds, where a token is not good yet.
const EARLY: i64 = 300;

/// Everybody whose tokens are good, with their keys.
pub struct Issuers {
    /// Who comes without a credential.
    pub anonymous: Anonymous,
    known: Vec<Known>,
}

struct Known {
    issuer: Issuer,
    keys: Mutex<Keys>,
}

/// The keys of one issuer as last heard.
#[derive(Default)]
struct Keys {
    keys: Arc<[PublicKey]>,
    /// When the issuer was last asked although there were keys, or had no answer.
    asked: Option<Instant>,
}

impl Issuers {
    /// Those a configuration names; nobody is asked for keys yet.
    pub fn new(settings: Settings) -> Issuers {
        let known = settings.issuers.into_iter().map(|issuer| Known { issuer, keys: Mutex::default() });
        Issuers { anonymous: settings.anonymous, known: known.collect() }
    }

    /// The bearer of a token; `None` when it is none of these issuers'.
    ///
    /// # Errors
    /// Why it is not good.
    pub async fn user(&self, core: &Core, token: &str) -> Option<Result<User, String>> {
        if self.known.is_empty() {
            return None;
        }
        let jws = Jws::parse(token)?;
        let claims: Value = serde_json::from_slice(&jws.claims).ok()?;
        let known = self.known.iter().find(|known| claims["iss"] == known.issuer.url.as_str())?;
        Some(known.user(core, &jws, &claims).await)
    }
}

impl Known {
    async fn user(&self, core: &Core, jws: &Jws<'_>, claims: &Value) -> Result<User, String> {
        let issuer = &self.issuer;
        // What costs nothing is looked at first.
        timely(claims, core.now().as_second())?;
        meant(claims, &issuer.audiences)?;
        let mut keys = self.keys(core, None).await?;
        if !jws.is_signed_by(&keys, &issuer.algorithms) && !jws.knows_key(&keys) {
            keys = self.keys(core, Some(&keys)).await?;
        }
        if !jws.is_signed_by(&keys, &issuer.algorithms) {
            return Err("oidc: verify token: failed to verify id token signature".into());
        }
        issuer.mapping.user(claims)
    }

    /// The keys; others than `outdated`, if the issuer has others now.
    async fn keys(&self, core: &Core, outdated: Option<&Arc<[PublicKey]>>) -> Result<Arc<[PublicKey]>, String> {
        let mut held = self.keys.lock().await;
        let renewed = outdated.is_some_and(|outdated| !Arc::ptr_eq(outdated, &held.keys));
        let recently = held.asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY);
        if renewed || outdated.is_none() && !held.keys.is_empty() || recently {
            if held.keys.is_empty() {
                return Err(format!("oidc: authenticator for issuer {:?} is not initialized", self.issuer.url));
            }
            return Ok(Arc::clone(&held.keys));
        }
        let first = held.keys.is_empty();
        let fetched = fetch_keys(core, &self.issuer).await;
        if !first || fetched.is_err() {
            held.asked = Some(Instant::now());
        }
        match fetched {
            Ok(keys) => held.keys = keys.into(),
            Err(why) => {
                tracing::warn!(issuer = self.issuer.url, why, "the keys of an issuer of tokens cannot be had");
                if held.keys.is_empty() {
                    return Err(format!(
                        "oidc: authenticator for issuer {:?} is not initialized: {why}",
                        self.issuer.url
                    ));
                }
            }
        }
        Ok(Arc::clone(&held.keys))
    }
}

/// A token of another time is none (RFC 7519 §4.1.4, §4.1.5).
fn timely(claims: &Value, now: i64) -> Result<(), String> {
    let second = |claim: &str| {
        let value = claims.get(claim)?;
        value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64))
    };
    let expires = second("exp").ok_or("oidc: verify token: oidc: the token says not when it expires")?;
    if expires <= now {
        return Err("oidc: verify token: oidc: token is expired".into());
    }
    if second("nbf").is_some_and(|from| from > now + EARLY) {
        return Err("oidc: verify token: oidc: current time is before the nbf (not before) time".into());
    }
    Ok(())
}

fn meant(claims: &Value, audiences: &[String]) -> Result<(), String> {
    let for_one = |audience: &Value| audience.as_str().is_some_and(|text| audiences.iter().any(|own| own == text));
    let good = match &claims["aud"] {
        Value::Array(list) => list.iter().any(for_one),
        one => for_one(one),
    };
    if good {
        Ok(())
    } else {
        Err(format!("oidc: verify token: oidc: expected audience in {audiences:?} got {}", claims["aud"]))
    }
}

/// The discovery document (OpenID Connect Discovery 1.0 §4), and the key set it leads to.
async fn fetch_keys(core: &Core, issuer: &Issuer) -> Result<Vec<PublicKey>, String> {
    let document = fetch(core, &issuer.discovery_url, &issuer.authority).await?;
    if document["issuer"] != issuer.url.as_str() {
        let url = &issuer.url;
        return Err(format!(
            "issuer URL provided to client ({url:?}) did not match the issuer URL returned by provider ({})",
            document["issuer"]
        ));
    }
    let at = document["jwks_uri"].as_str().ok_or("the discovery document names no jwks_uri")?;
    let set = fetch(core, at, &issuer.authority).await?;
    let keys = set["keys"].as_array().ok_or("the key set has no keys")?;
    Ok(keys.iter().filter_map(PublicKey::of_jwk).collect())
}

async fn fetch(core: &Core, url: &str, authority: &[u8]) -> Result<Value, String> {
    let client = ClientConfig::read(&json!({"url": url, "caBundle": STANDARD.encode(authority)}))?;
    let body = outgoing::fetch(core, &client, ANSWER_WITHIN).await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body).map_err(|error| format!("{url}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_in_its_time_and_for_whom_it_is_meant() {
        for (claims, good) in [
            (json!({"exp": 101}), true),
            (json!({"exp": 100}), false),
            (json!({"exp": 100.5}), false),
            (json!({}), false),
            (json!({"exp": 500, "nbf": 400}), true),
            (json!({"exp": 500, "nbf": 401}), false),
        ] {
            assert_eq!(timely(&claims, 100).is_ok(), good, "{claims}");
        }
        let own = ["a".to_owned(), "b".to_owned()];
        for (audience, good) in [
            (json!("a"), true),
            (json!(["x", "b"]), true),
            (json!("x"), false),
            (json!([]), false),
            (json!(null), false),
        ] {
            assert_eq!(meant(&json!({"aud": audience}), &own).is_ok(), good, "{audience}");
        }
    }
}
