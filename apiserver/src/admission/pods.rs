//! What a new pod gets that must be looked up: its namespace's limits, its priority and its service account.

use std::sync::Arc;
use std::time::Duration;

use proa_apimachinery::object::Object;
use proa_apimachinery::status::{ApiError, GroupResource};

use super::{limit_range, priority};
use crate::cache::Item;
use crate::kinds::pod::{MIRROR, admit_service_account, service_account_name};
use crate::registry::{Call, meta};

pub(super) async fn admit(call: &Call<'_>, pod: &mut Object) -> Result<(), ApiError> {
    // What bounds it may have been written an instant ago, on another connection.
    call.core.caches.consistent().await?;
    limit_range::complete(pod, &super::limit_ranges(call));
    priority::admit(pod, &priority::classes(call)).map_err(|why| refuse(pod, &why))?;
    // Mirror pods stand for what a node runs by itself: nothing is injected into them.
    if pod.annotation(MIRROR).is_none() {
        service_account(call, pod).await?;
    }
    Ok(())
}

fn refuse(pod: &Object, why: &str) -> ApiError {
    ApiError::forbidden(GroupResource::new("", "pods"), pod.name(), why)
}

/// How long a pod waits for the account that every namespace is given.
const DEFAULT_ACCOUNT_WAIT: Duration = Duration::from_secs(1);

/// The pod's account. It may have come an instant ago; and the `default` one of a namespace that was made in
/// the same file as the pod is about to (Kubernetes waits as long).
async fn account(call: &Call<'_>, name: &str) -> Result<Option<Arc<Item>>, ApiError> {
    let accounts = call.core.caches.resource("serviceaccounts");
    let mut changed = accounts.subscribe();
    call.core.caches.consistent().await?;
    let arrives = async {
        loop {
            changed.borrow_and_update();
            if let Some(item) = accounts.get(call.namespace(), name) {
                return Some(item);
            }
            if name != "default" || changed.changed().await.is_err() {
                return None;
            }
        }
    };
    Ok(tokio::time::timeout(DEFAULT_ACCOUNT_WAIT, arrives).await.unwrap_or(None))
}

async fn service_account(call: &Call<'_>, pod: &mut Object) -> Result<(), ApiError> {
    let name = service_account_name(pod).to_owned();
    let have = call.core.caches.resource("serviceaccounts").get(call.namespace(), &name);
    let found = match have {
        Some(item) => Some(item),
        None => account(call, &name).await?,
    };
    match found {
        Some(item) => {
            admit_service_account(pod, &item.object(), &meta::generate_name("", &call.core.config.entropy));
            Ok(())
        }
        None => {
            let why = format!(
                "error looking up service account {}/{name}: serviceaccount \"{name}\" not found",
                call.namespace()
            );
            Err(refuse(pod, &why))
        }
    }
}
