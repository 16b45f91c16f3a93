//! Service-account tokens: JSON Web Tokens signed with ES256 (RFC 7515, RFC 7518 §3.4).
//!
//! Owns the signature and the claims' form; whether the account still exists is the caller's to check.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The claims of a token, as Kubernetes writes them (KEP-1205).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// Who may accept the token.
    #[serde(default)]
    pub aud: Vec<String>,
    /// Seconds since 1970 after which it is void; one kept in a Secret lives as long as that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp: Option<i64>,
    /// When it was made.
    #[serde(default)]
    pub iat: i64,
    /// Who made it.
    #[serde(default)]
    pub iss: String,
    /// Its own id.
    #[serde(default)]
    pub jti: String,
    /// When it starts to hold.
    #[serde(default)]
    pub nbf: i64,
    /// `system:serviceaccount:<namespace>:<name>`.
    pub sub: String,
    /// What it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Bound,
}

/// The objects a token is bound to: it dies with any of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// The account's namespace.
    pub namespace: String,
    /// The account.
    pub serviceaccount: Reference,
    /// The pod it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The secret it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// The node it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
}

/// An object by name and uid.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// Its uid.
    #[serde(default)]
    pub uid: String,
}

/// Signs and verifies tokens with one P-256 key.
pub struct Signer {
    key: EcdsaKeyPair,
    random: SystemRandom,
    key_id: String,
}

/// The key file is not a P-256 key.
#[derive(Debug, thiserror::Error)]
#[error("the service-account signing key cannot be used: {0}")]
pub struct KeyError(String);

impl Signer {
    /// A signer from PKCS#8.
    pub fn new(pkcs8: &[u8]) -> Result<Signer, KeyError> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)
            .map_err(|error| KeyError(error.to_string()))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        let key_id = URL_SAFE_NO_PAD.encode(digest.as_ref());
        Ok(Signer { key, random, key_id })
    }

    /// A signed token.
    pub fn sign(&self, claims: &Claims) -> Result<String, KeyError> {
        let header = json!({"alg": "ES256", "kid": self.key_id}).to_string();
        let claims = serde_json::to_vec(claims).map_err(|error| KeyError(error.to_string()))?;
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.key.sign(&self.random, signed.as_bytes()).map_err(|error| KeyError(error.to_string()))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }

    /// The claims of a token with a good signature; times are not looked at.
    pub fn verify(&self, token: &str) -> Option<Claims> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        // The algorithm is ours to choose, never the token's (RFC 8725 §3.1).
        if header.get("alg").and_then(Value::as_str) != Some("ES256") {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }

    /// The public key as a JSON Web Key Set (RFC 7517).
    pub fn jwks(&self) -> Value {
        // An uncompressed point: 0x04, then 32 bytes of x and 32 of y.
        let point = self.key.public_key().as_ref();
        let (x, y) = (point.get(1..33).unwrap_or_default(), point.get(33..65).unwrap_or_default());
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims {
            aud: vec!["api".into()],
            exp: Some(10),
            iat: 1,
            iss: "me".into(),
            jti: "j".into(),
            nbf: 1,
            sub: "system:serviceaccount:a:b".into(),
            kubernetes: Bound { namespace: "a".into(), ..Bound::default() },
        }
    }

    #[test]
    fn a_token_changed_anywhere_is_refused() {
        let key = rcgen::KeyPair::generate().unwrap().serialize_der();
        let signer = Signer::new(&key).unwrap();
        let token = signer.sign(&claims()).unwrap();
        assert_eq!(signer.verify(&token), Some(claims()));
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            // The last character of a base64 group may carry unused bits; those variants do not decode.
            assert_ne!(signer.verify(&changed), Some(claims()).filter(|_| changed != token), "at {at}");
        }
        let other = Signer::new(&rcgen::KeyPair::generate().unwrap().serialize_der()).unwrap();
        assert_eq!(other.verify(&token), None);
        assert_eq!(signer.verify("a.b"), None);
        assert_eq!(signer.verify(""), None);
    }
}
