//! Service-account tokens: made on request (TokenRequest), checked on use, described for others (OpenID
//! discovery).

use http::StatusCode;
use jiff::Timestamp;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::{ApiError, GroupResource};
use serde_json::{Value, json};

use crate::admission::{self, chain};
use crate::authn::jwt::{Bound, Claims, KeyError, Reference, Signer};
use crate::http::{Response, json as answer};
use crate::registry::options::WriteOptions;
use crate::registry::{Call, codec, meta};

/// The shortest life of a token, in seconds (KEP-1205).
const SHORTEST: i64 = 600;
/// The longest, in seconds. Longer requests are cut, as servers may.
const LONGEST: i64 = 365 * 24 * 3600;
/// The life of a token whose request says nothing.
const USUAL: i64 = 3600;

/// The issuer of service-account tokens.
pub struct Tokens {
    signer: Signer,
    issuer: String,
    audiences: Vec<String>,
}

impl Tokens {
    /// An issuer from the signing key.
    pub fn new(pkcs8: &[u8], cluster_domain: &str) -> Result<Tokens, KeyError> {
        let issuer = format!("https://kubernetes.default.svc.{cluster_domain}");
        let audiences = vec![issuer.clone(), "https://kubernetes.default.svc".into(), "proa".into()];
        Ok(Tokens { signer: Signer::new(pkcs8)?, issuer, audiences })
    }

    /// Who signs.
    pub fn issuer(&self) -> &str {
        &self.issuer
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
        self.signer.sign(&Claims {
            aud: audiences,
            exp: seconds.map(|seconds| now + seconds),
            iat: now,
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            nbf: now,
            sub: format!("system:serviceaccount:{}:{}", bound.namespace, bound.serviceaccount.name),
            kubernetes: bound,
        })
    }

    /// The claims of a token with a good signature.
    pub fn verify(&self, token: &str) -> Option<Claims> {
        self.signer.verify(token)
    }

    /// The key set others verify with.
    pub fn jwks(&self) -> Value {
        self.signer.jwks()
    }

    /// The OpenID discovery document.
    pub fn openid(&self) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", self.issuer),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
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
    if seconds < SHORTEST {
        return Err(ApiError::bad_request(
            "spec.expirationSeconds: Invalid value: may not specify a duration less than 10 minutes",
        ));
    }
    let seconds = seconds.min(LONGEST);
    let mut audiences: Vec<String> = spec
        .get("audiences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if audiences.is_empty() {
        audiences = core.tokens.audiences().iter().take(1).cloned().collect();
    }
    admission::may_request_token(call, &spec)?;
    let mut bound = bound_to(&account);
    if let Some(reference) = spec.get("boundObjectRef").filter(|reference| !reference.is_null()) {
        bind(call, reference, &mut bound)?;
    }
    let token = core.tokens.sign(bound, audiences.clone(), core.now(), Some(seconds)).map_err(ApiError::internal)?;
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
