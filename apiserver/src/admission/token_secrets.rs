//! Secrets of type `kubernetes.io/service-account-token`: whoever writes one gets it back with a token of the account
//! it names, the CA and the namespace.
//!
//! On Kubernetes a controller fills them in a moment later; here the write itself does, for this server holds the
//! key. The Secret belongs to its account: the garbage collector removes it after the account, and the token, bound
//! to both, is void before that.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;
use serde_json::{Value, json};

use crate::authn::jwt::Reference;
use crate::registry::Call;

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// Fills in what is missing of a token's Secret; every other Secret passes.
pub(super) async fn admit(call: &Call<'_>, new: &mut Object, old: Option<&Object>) -> Result<(), ApiError> {
    let name = new.annotation(ACCOUNT).unwrap_or_default().to_owned();
    // What has no account's name is validation's to refuse.
    if new.get_str(&["type"]) != Some(TYPE) || name.is_empty() || new.deletion_timestamp().is_some() {
        return Ok(());
    }
    let account = match account(call, &name).await? {
        Some(account) if belongs(new, &account) => account,
        // Its account has gone, and the Secret is about to: whoever still has to write it may.
        _ if old.is_some() => return Ok(()),
        Some(account) => {
            let why = format!("the annotation {ACCOUNT_UID} is not the uid of serviceaccount \"{}\"", account.name());
            return Err(ApiError::forbidden(call.resource.group_resource(), new.name(), &why));
        }
        None => {
            let namespace = call.namespace();
            let why =
                format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
            return Err(ApiError::forbidden(call.resource.group_resource(), new.name(), &why));
        }
    };
    new.set_annotation(ACCOUNT_UID, account.uid());
    own(new, &account);
    let missing = |key: &str| new.get_str(&["data", key]).is_none_or(str::is_empty);
    let (token, ca, namespace) = (missing("token"), missing("ca.crt"), missing("namespace"));
    if token {
        // A PUT need not repeat the uid.
        let uid = old.map_or(new.uid(), Object::uid).to_owned();
        let secret = Reference { name: new.name().to_owned(), uid };
        let token = call.core.tokens.for_secret(&account, secret, call.core.now()).map_err(ApiError::internal)?;
        new.set(&["data", "token"], STANDARD.encode(token));
    }
    if ca {
        new.set(&["data", "ca.crt"], STANDARD.encode(call.core.pki.ca_pem()));
    }
    if namespace {
        new.set(&["data", "namespace"], STANDARD.encode(call.namespace()));
    }
    Ok(())
}

async fn account(call: &Call<'_>, name: &str) -> Result<Option<Object>, ApiError> {
    let accounts = call.core.caches.resource("serviceaccounts");
    if let Some(item) = accounts.get(call.namespace(), name) {
        return Ok(Some(item.object()));
    }
    // It may have been created an instant ago, on another connection.
    call.core.caches.consistent().await?;
    Ok(accounts.get(call.namespace(), name).map(|item| item.object()))
}

/// Whether the Secret may be this account's: one made for an earlier account of the name is not.
fn belongs(secret: &Object, account: &Object) -> bool {
    secret.annotation(ACCOUNT_UID).is_none_or(|uid| uid.is_empty() || uid == account.uid())
}

/// Makes the account an owner.
fn own(secret: &mut Object, account: &Object) {
    if secret.owner_references().iter().any(|owner| owner.uid == account.uid()) {
        return;
    }
    let owner = json!({"apiVersion": "v1", "kind": "ServiceAccount", "name": account.name(), "uid": account.uid()});
    match secret.metadata_mut().get_mut("ownerReferences") {
        Some(Value::Array(owners)) => owners.push(owner),
        _ => drop(secret.metadata_mut().insert("ownerReferences".into(), json!([owner]))),
    }
}
