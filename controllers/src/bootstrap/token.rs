//! Bootstrap tokens: Secrets of type `bootstrap.kubernetes.io/token` in `kube-system`. Pure.
//!
//! Source: Kubernetes, "Authenticating with Bootstrap Tokens".

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::core::ObjectMeta;

/// The type of their Secrets.
pub const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Where they are.
pub const NAMESPACE: &str = "kube-system";
/// What the name of their Secrets starts with; the id follows.
pub const PREFIX: &str = "bootstrap-token-";
/// The group of those who may ask for a node's certificate, and get it.
pub const NODES: &str = "system:bootstrappers:kubeadm:default-node-token";

/// A token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// The public part: six characters.
    pub id: String,
    /// The secret part: sixteen characters.
    pub secret: String,
    /// When it is void; never, if nothing is said.
    pub expires: Option<Timestamp>,
    /// Its bearer may come in.
    pub authenticates: bool,
    /// It signs what the cluster tells newcomers about itself.
    pub signs: bool,
    /// Groups its bearer is in, besides `system:bootstrappers`.
    pub groups: Vec<String>,
    /// What it is for.
    pub description: String,
}

impl Token {
    /// The token of a Secret; `None` when that holds none.
    pub fn of(secret: &Secret) -> Option<Token> {
        let data = secret.data.as_ref()?;
        let text = |key: &str| data.get(key).and_then(|value| std::str::from_utf8(&value.0).ok()).unwrap_or_default();
        let id = text("token-id").to_owned();
        let named = secret.metadata.name.as_deref()?.strip_prefix(PREFIX)? == id;
        let ours = secret.type_.as_deref() == Some(TYPE) && named && is_id(&id) && is_secret(text("token-secret"));
        let expiration = text("expiration");
        let expires = match expiration {
            "" => None,
            // What cannot be read has run out: nobody is let in by mistake.
            text => Some(text.parse().unwrap_or(Timestamp::MIN)),
        };
        ours.then(|| Token {
            secret: text("token-secret").to_owned(),
            expires,
            authenticates: text("usage-bootstrap-authentication") == "true",
            signs: text("usage-bootstrap-signing") == "true",
            groups: text("auth-extra-groups").split(',').filter(|group| !group.is_empty()).map(str::to_owned).collect(),
            description: text("description").to_owned(),
            id,
        })
    }

    /// The token `<id>.<secret>` says.
    pub fn parse(text: &str) -> Option<Token> {
        let (id, secret) = text.split_once('.')?;
        let good = is_id(id) && is_secret(secret);
        good.then(|| Token { id: id.to_owned(), secret: secret.to_owned(), ..Token::default() })
    }

    /// The Secret that keeps it.
    pub fn to_secret(&self) -> Secret {
        let mut data: BTreeMap<String, ByteString> = BTreeMap::new();
        let mut say = |key: &str, value: String| {
            if !value.is_empty() {
                data.insert(key.to_owned(), ByteString(value.into_bytes()));
            }
        };
        say("token-id", self.id.clone());
        say("token-secret", self.secret.clone());
        say("expiration", self.expires.map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default());
        say("usage-bootstrap-authentication", if self.authenticates { "true".into() } else { String::new() });
        say("usage-bootstrap-signing", if self.signs { "true".into() } else { String::new() });
        say("auth-extra-groups", self.groups.join(","));
        say("description", self.description.clone());
        Secret {
            metadata: ObjectMeta {
                name: Some(format!("{PREFIX}{}", self.id)),
                namespace: Some(NAMESPACE.into()),
                ..ObjectMeta::default()
            },
            type_: Some(TYPE.into()),
            data: Some(data),
            ..Secret::default()
        }
    }

    /// Whether it is void by then.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// The signature of `text` by this token, detached: a JSON Web Signature without its middle (RFC 7515 appendix F), as
    /// kubeadm and Kubernetes' signer have it.
    pub fn signature(&self, text: &str) -> String {
        let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"HS256\",\"kid\":\"{}\"}}", self.id));
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(text));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.secret.as_bytes());
        let signature = ring::hmac::sign(&key, signed.as_bytes());
        format!("{header}..{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// Whether that is this token's signature of `text`.
    pub fn signed(&self, text: &str, signature: &str) -> bool {
        let Some((header, signature)) = signature.split_once("..") else { return false };
        let expected = self.signature(text);
        let ours = expected.split_once("..").map_or("", |(header, _)| header);
        let Ok(signature) = URL_SAFE_NO_PAD.decode(signature) else { return false };
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.secret.as_bytes());
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(text));
        header == ours && ring::hmac::verify(&key, signed.as_bytes(), &signature).is_ok()
    }
}

fn plain(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

fn is_id(text: &str) -> bool {
    plain(text, 6)
}

fn is_secret(text: &str) -> bool {
    plain(text, 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_and_its_secret_say_the_same() {
        let token = Token {
            id: "abcdef".into(),
            secret: "0123456789abcdef".into(),
            expires: Some("2026-11-22T20:00:00Z".parse().unwrap()),
            authenticates: true,
            signs: true,
            groups: vec![NODES.into()],
            description: "for the new rack".into(),
        };
        let secret = token.to_secret();
        assert_eq!(Token::of(&secret), Some(token.clone()));
        assert!(!token.is_over("2026-11-22T19:59:59Z".parse().unwrap()));
        assert!(token.is_over("2026-11-22T20:00:00Z".parse().unwrap()));
        let renamed = Secret {
            metadata: ObjectMeta { name: Some("bootstrap-token-other1".into()), ..secret.metadata.clone() },
            ..secret.clone()
        };
        assert_eq!(Token::of(&renamed), None, "the name is the id's");
        assert_eq!(Token::of(&Secret { type_: Some("Opaque".into()), ..secret.clone() }), None);
        let mut unreadable = secret;
        unreadable.data.as_mut().unwrap().insert("expiration".into(), ByteString(b"tomorrow".to_vec()));
        assert!(Token::of(&unreadable).unwrap().is_over(Timestamp::MIN), "what cannot be read has run out");
        for text in
            ["abcdef", "abcde.0123456789abcdef", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcdeF", "abcdef.short"]
        {
            assert_eq!(Token::parse(text), None, "{text}");
        }
        assert_eq!(Token::parse("abcdef.0123456789abcdef").unwrap().id, "abcdef");
    }

    #[test]
    fn a_detached_signature_is_that_of_kubernetes_and_of_one_token_only() {
        // From the tests of Kubernetes' bootstrap signer (cluster-bootstrap/token/jws).
        let token = Token { id: "joshua".into(), secret: "my voice is my passcode".into(), ..Token::default() };
        let known = "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8";
        let said = "Hello from the other side. I must have called a thousand times.";
        assert_eq!(token.signature(said), known);
        assert!(token.signed(said, known));
        assert!(!token.signed("Hello from the other side.", known));
        let other = Token { secret: "another".into(), ..token.clone() };
        assert!(!other.signed(said, known));
        assert!(!token.signed("", "") && !token.signed("", ".."));
    }
}
