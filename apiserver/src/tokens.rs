//! Service-account tokens: made on request (TokenRequest), checked on use, described for others (OpenID
//! discovery).

use std::path::PathBuf;

use http::StatusCode;
use jiff::Timestamp;
use proa_apimachinery::field::{FieldError, Path};
use proa_apimachinery::object::Object;
use proa_apimachinery::status::{ApiError, GroupKind, GroupResource};
use serde_json::{Value, json};

use crate::admission::{self, chain};
use crate::authn::jose::{Algorithm, Jws, KeyError, PrivateKey, PublicKey};
use crate::authn::jwt::{Bound, Claims, Reference};
use crate::http::{Response, answer};
use crate::registry::options::WriteOptions;
use crate::registry::{Call, codec, meta};

/// The shortest life of a token, in seconds (KEP-1205).
const SHORTEST: i64 = 600;
/// The longest, in seconds. Longer requests are cut, as servers may.
const LONGEST: i64 = 365 * 24 * 3600;
/// What cannot be asked for.
const SECONDS_LIMIT: i64 = (1 << 32) + 1;
/// The life of a token whose request says nothing.
const USUAL: i64 = 3600;
/// How our keys and those of other API servers sign.
const ALGORITHMS: [Algorithm; 3] = [Algorithm::ES256, Algorithm::RS256, Algorithm::ES384];

/// In the audit log: which credential was handed out (KEP-4193).
const ISSUED: &str = "authentication.kubernetes.io/issued-credential-id";

fn credential_id(claims: &[u8]) -> String {
    let claims: Value = serde_json::from_slice(claims).unwrap_or_default();
    format!("JTI={}", claims["jti"].as_str().unwrap_or_default())
}

/// The issuer of service-account tokens.
pub struct Tokens {
    signing: PrivateKey,
    /// Those that were signed with, are, and may be: whatever one of them signed is good.
    keys: Vec<PublicKey>,
    /// The first signs; tokens of the others, which were first once, are good.
    issuers: Vec<String>,
    /// For whom a token is made that names nobody.
    usual: Vec<String>,
    /// For whom one must be made to be good here.
    audiences: Vec<String>,
    jwks_uri: String,
    longest: i64,
}

/// Where keys are, and what tokens say: the flags `--service-account-…` and `--api-audiences` of Kubernetes' API server.
#[derive(Clone, Debug, Default)]
pub struct TokenOptions {
    /// The key that signs; the data directory's own when there is none.
    pub signing_key_file: Option<PathBuf>,
    /// Keys whose tokens are good as well; the signing one is always.
    pub key_files: Vec<PathBuf>,
    /// Who signs, first; and whose tokens are good.
    pub issuers: Vec<String>,
    /// Who the API server is; its issuers when nothing is said.
    pub audiences: Vec<String>,
    /// Where others find the keys, if not at the issuer's `/openid/v1/jwks`.
    pub jwks_uri: Option<String>,
    /// The longest life of a token, in seconds.
    pub max_expiration: Option<i64>,
}

/// Keys or options that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A file that cannot be read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file without a key.
    #[error("the service-account key {path}: {source}")]
    Key {
        /// Which.
        path: PathBuf,
        /// Why.
        source: KeyError,
    },
    /// An option that makes no sense.
    #[error("{0}")]
    Option(String),
}

impl Tokens {
    /// An issuer. `own` is the data directory's signing key (PKCS #8): its tokens are good for as long as the key is there,
    /// also when another one signs.
    ///
    /// # Errors
    /// When a key cannot be read, or an issuer is no URL.
    pub fn new(own: &[u8], options: &TokenOptions, cluster_domain: &str) -> Result<Tokens, TokenError> {
        let own = PrivateKey::of_pkcs8(own)
            .map_err(|source| TokenError::Key { path: PathBuf::from("pki/sa.key"), source })?;
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|source| TokenError::File { path: path.clone(), source })
        };
        let unusable = |path: &PathBuf| {
            let path = path.clone();
            move |source| TokenError::Key { path, source }
        };
        let mut keys = vec![own.public().clone()];
        let signing = match &options.signing_key_file {
            Some(path) => PrivateKey::of_pem(&read(path)?).map_err(unusable(path))?,
            None => own,
        };
        keys.insert(0, signing.public().clone());
        for path in &options.key_files {
            keys.extend(PublicKey::of_pem(&read(path)?).map_err(unusable(path))?);
        }
        let mut seen = Vec::new();
        keys.retain(|key| {
            !seen.contains(&key.id) && {
                seen.push(key.id.clone());
                true
            }
        });
        let mut issuers = options.issuers.clone();
        if let Some(empty) = issuers.iter().find(|issuer| issuer.trim().is_empty()) {
            return Err(TokenError::Option(format!("{empty:?} cannot be an issuer of service-account tokens")));
        }
        if issuers.is_empty() {
            issuers.push(format!("https://kubernetes.default.svc.{cluster_domain}"));
        }
        let longest = options.max_expiration.unwrap_or(LONGEST);
        // The bounds of --service-account-max-token-expiration.
        if !(3600..=1 << 32).contains(&longest) {
            let why = "the service-account-max-token-expiration must be between 1 hour and 2^32 seconds";
            return Err(TokenError::Option(why.into()));
        }
        let (usual, mut audiences) = if options.audiences.is_empty() {
            let well_known = ["https://kubernetes.default.svc".to_owned(), "proa".to_owned()];
            (issuers[..1].to_vec(), issuers.iter().cloned().chain(well_known).collect::<Vec<_>>())
        } else {
            (options.audiences.clone(), options.audiences.clone())
        };
        let mut seen = Vec::new();
        audiences.retain(|audience| {
            !seen.contains(audience) && {
                seen.push(audience.clone());
                true
            }
        });
        let jwks_uri = options.jwks_uri.clone().unwrap_or_else(|| format!("{}/openid/v1/jwks", issuers[0]));
        Ok(Tokens { signing, keys, issuers, usual, audiences, jwks_uri, longest })
    }

    /// Whether we signed, or did once.
    pub fn is_issuer(&self, issuer: &str) -> bool {
        self.issuers.iter().any(|own| own == issuer)
    }

    /// Everybody whose tokens we sign or did.
    pub fn issuers(&self) -> &[String] {
        &self.issuers
    }

    /// The API server's own audiences, the default first.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// A token to be kept in a Secret: it lives as long as the Secret and the account do.
    pub fn for_secret(&self, account: &Object, secret: Reference, now: Timestamp) -> Result<String, KeyError> {
        let bound = Bound { secret: Some(secret), ..bound_to(account) };
        self.sign(bound, self.audiences.clone(), now, None)
    }

    /// A token for what `bound` says, for `seconds`; for ever when there are none.
    fn sign(
        &self,
        bound: Bound,
        audiences: Vec<String>,
        now: Timestamp,
        seconds: Option<i64>,
    ) -> Result<String, KeyError> {
        let now = now.as_second();
        let claims = Claims {
            aud: audiences,
            exp: seconds.map(|seconds| now + seconds),
            iat: now,
            iss: self.issuers[0].clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            nbf: now,
            sub: format!("system:serviceaccount:{}:{}", bound.namespace, bound.serviceaccount.name),
            kubernetes: bound,
        };
        self.signing.sign(&serde_json::to_vec(&claims).map_err(|error| KeyError(error.to_string()))?)
    }

    /// The claims of a token with a good signature; times are not looked at.
    pub fn verify(&self, token: &str) -> Option<Claims> {
        let jws = Jws::parse(token)?;
        if !jws.is_signed_by(&self.keys, &ALGORITHMS) {
            return None;
        }
        serde_json::from_slice(&jws.claims).ok()
    }

    /// The key set others verify with.
    pub fn jwks(&self) -> Value {
        json!({"keys": self.keys.iter().map(PublicKey::jwk).collect::<Vec<_>>()})
    }

    /// The OpenID discovery document.
    pub fn openid(&self) -> Value {
        let mut algorithms: Vec<String> = Vec::new();
        for key in &self.keys {
            let algorithm = key.jwk()["alg"].as_str().unwrap_or_default().to_owned();
            if !algorithms.contains(&algorithm) {
                algorithms.push(algorithm);
            }
        }
        json!({
            "issuer": self.issuers[0],
            "jwks_uri": self.jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })
    }
}

fn bound_to(account: &Object) -> Bound {
    Bound {
        namespace: account.namespace().to_owned(),
        serviceaccount: Reference { name: account.name().to_owned(), uid: account.uid().to_owned() },
        ..Bound::default()
    }
}

/// POST `serviceaccounts/<name>/token`.
pub async fn request(call: &Call<'_>) -> Result<Response, ApiError> {
    let core = call.core;
    let mut asked = Object::from_value(codec::decode(call.request)?.value)
        .map_err(|_| ApiError::bad_request("the body of the request is not a TokenRequest"))?;
    asked.0.insert("kind".into(), "TokenRequest".into());
    asked.0.insert("apiVersion".into(), "authentication.k8s.io/v1".into());
    let options = WriteOptions::read(call.request)?;
    chain::create_body(call, ("authentication.k8s.io", "v1", "TokenRequest"), &options, &mut asked).await?;
    let mut body = asked.into_value();
    core.caches.consistent().await?;
    let accounts = core.caches.resource("serviceaccounts");
    let account = accounts.get(call.namespace(), call.name()).ok_or_else(|| call.not_found(call.name()))?.object();
    let spec = body.get("spec").cloned().unwrap_or_else(|| json!({}));
    let seconds = spec.get("expirationSeconds").and_then(Value::as_i64).unwrap_or(USUAL);
    let outside = match seconds {
        ..SHORTEST => Some("may not specify a duration less than 10 minutes"),
        SECONDS_LIMIT.. => Some("may not specify a duration larger than 2^32 seconds"),
        _ => None,
    };
    if let Some(why) = outside {
        let errors = vec![FieldError::invalid(&Path::of("spec.expirationSeconds"), seconds, why)];
        return Err(ApiError::invalid(GroupKind::new("authentication.k8s.io", "TokenRequest"), call.name(), errors));
    }
    let seconds = seconds.min(core.tokens.longest);
    let mut audiences: Vec<String> = spec
        .get("audiences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if audiences.is_empty() {
        audiences = core.tokens.usual.clone();
    }
    admission::may_request_token(call, &spec)?;
    let mut bound = bound_to(&account);
    if let Some(reference) = spec.get("boundObjectRef").filter(|reference| !reference.is_null()) {
        bind(call, reference, &mut bound)?;
    }
    let token = core.tokens.sign(bound, audiences.clone(), core.now(), Some(seconds)).map_err(ApiError::internal)?;
    call.request
        .trail
        .annotate(ISSUED, || Jws::parse(&token).map(|jws| credential_id(&jws.claims)).unwrap_or_default());
    let expires = core.now().checked_add(jiff::SignedDuration::from_secs(seconds)).map_err(ApiError::internal)?;
    body["kind"] = "TokenRequest".into();
    body["apiVersion"] = "authentication.k8s.io/v1".into();
    body["spec"] = json!({"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": spec.get("boundObjectRef").cloned().unwrap_or(Value::Null)});
    body["status"] = json!({"token": token, "expirationTimestamp": meta::time(expires)});
    body["metadata"] =
        json!({"name": account.name(), "namespace": call.namespace(), "creationTimestamp": meta::time(core.now())});
    Ok(answer(StatusCode::CREATED, &body))
}

/// Ties a token to a pod, secret or node: it must exist and, for a pod, run as this account.
fn bind(call: &Call<'_>, reference: &Value, bound: &mut Bound) -> Result<(), ApiError> {
    let text = |field: &str| reference.get(field).and_then(Value::as_str).unwrap_or_default();
    let (resource, namespace) = match text("kind") {
        "Pod" => ("pods", call.namespace()),
        "Secret" => ("secrets", call.namespace()),
        "Node" => ("nodes", ""),
        other => {
            return Err(ApiError::bad_request(format!(
                "spec.boundObjectRef.kind: cannot bind token for serviceaccount to object of kind {other:?}"
            )));
        }
    };
    let group_resource = GroupResource::new("", resource);
    let item = call
        .core
        .caches
        .resource(resource)
        .get(namespace, text("name"))
        .ok_or_else(|| ApiError::not_found(group_resource, text("name")))?;
    let object = item.object();
    if !text("uid").is_empty() && text("uid") != object.uid() {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            text("uid")
        );
        return Err(ApiError::conflict(group_resource, object.name(), &why));
    }
    let target = Reference { name: object.name().to_owned(), uid: object.uid().to_owned() };
    match resource {
        "pods" => {
            let runs_as = object.get_str(&["spec", "serviceAccountName"]).unwrap_or("default");
            if runs_as != bound.serviceaccount.name {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    bound.serviceaccount.name
                )));
            }
            // The node of the pod goes in too (KEP-4193).
            if let Some(node) = object.get_str(&["spec", "nodeName"]) {
                let node = call.core.caches.resource("nodes").get("", node).map(|item| item.object());
                bound.node = node.map(|node| Reference { name: node.name().to_owned(), uid: node.uid().to_owned() });
            }
            bound.pod = Some(target);
        }
        "secrets" => bound.secret = Some(target),
        _ => bound.node = Some(target),
    }
    Ok(())
}
