//! What a new pod gets that must be looked up: its priority and its service account.

use proa_apimachinery::field::join;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::{ApiError, GroupResource};

use crate::kinds::pod::{MIRROR, admit_priority, admit_service_account, service_account_name};
use crate::registry::{Call, meta};

pub(super) fn admit(call: &Call<'_>, pod: &mut Object) -> Result<(), ApiError> {
    priority(call, pod)?;
    // Mirror pods stand for what a node runs by itself: nothing is injected into them.
    if pod.annotation(MIRROR).is_none() {
        service_account(call, pod)?;
    }
    Ok(())
}

fn refuse(pod: &Object, why: &str) -> ApiError {
    ApiError::forbidden(GroupResource::new("", "pods"), pod.name(), why)
}

fn priority(call: &Call<'_>, pod: &mut Object) -> Result<(), ApiError> {
    let classes = call.core.caches.resource("priorityclasses.scheduling.k8s.io");
    let name = pod.get_str(&["spec", "priorityClassName"]).unwrap_or_default();
    let class = if name.is_empty() {
        classes
            .items("")
            .iter()
            .map(|item| item.object())
            .find(|class| class.get_bool(&["globalDefault"]) == Some(true))
    } else {
        classes.get("", name).map(|item| item.object())
    };
    let errors = admit_priority(pod, class.as_ref());
    if errors.is_empty() { Ok(()) } else { Err(refuse(pod, &join(&errors))) }
}

fn service_account(call: &Call<'_>, pod: &mut Object) -> Result<(), ApiError> {
    let name = service_account_name(pod).to_owned();
    match call.core.caches.resource("serviceaccounts").get(call.namespace(), &name) {
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
