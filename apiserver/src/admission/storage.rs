//! What claims and volumes get when they are made, and what of a claim may grow: Kubernetes' plugins
//! DefaultStorageClass, StorageObjectInUseProtection and PersistentVolumeClaimResize.

use proa_apimachinery::object::Object;
use proa_apimachinery::quantity::Quantity;
use proa_apimachinery::status::ApiError;
use serde_json::{Value, json};

use crate::kinds::Op;
use crate::kinds::storage::class_name;
use crate::registry::Call;

/// Holds a claim for as long as a pod uses it.
const CLAIM_IN_USE: &str = "kubernetes.io/pvc-protection";
/// Holds a volume for as long as it is bound.
const VOLUME_IN_USE: &str = "kubernetes.io/pv-protection";

/// A class with one of these set to `true` is the default.
const DEFAULT: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

pub(super) fn volume(op: Op, new: &mut Object) {
    if op == Op::Create {
        protect(new, VOLUME_IN_USE);
    }
}

pub(super) async fn claim(call: &Call<'_>, op: Op, new: &mut Object, old: Option<&Object>) -> Result<(), ApiError> {
    match (op, old) {
        (Op::Create, _) => {
            protect(new, CLAIM_IN_USE);
            if class_name(new).is_none() {
                // It may have become the default an instant ago, in the same file as the claim.
                call.core.caches.consistent().await?;
                if let Some(class) = default_class(call) {
                    new.set(&["spec", "storageClassName"], class);
                }
            }
            Ok(())
        }
        (Op::Update, Some(old)) => may_grow(call, new, old),
        _ => Ok(()),
    }
}

fn protect(new: &mut Object, finalizer: &str) {
    if new.finalizers().any(|have| have == finalizer) {
        return;
    }
    match new.metadata_mut().get_mut("finalizers") {
        Some(Value::Array(finalizers)) => finalizers.push(finalizer.into()),
        _ => drop(new.metadata_mut().insert("finalizers".into(), json!([finalizer]))),
    }
}

/// The default class; of several the youngest, and of those the first by name (Kubernetes since 1.26).
fn default_class(call: &Call<'_>) -> Option<String> {
    let classes = call.core.caches.resource("storageclasses.storage.k8s.io").items("");
    let classes = classes.iter().map(|item| item.object());
    let default = classes.filter(|class| DEFAULT.iter().any(|key| class.annotation(key) == Some("true")));
    let mut all: Vec<(String, String)> =
        default.map(|class| (class.creation_timestamp().to_owned(), class.name().to_owned())).collect();
    all.sort_by(|(since, name), (other_since, other)| other_since.cmp(since).then(name.cmp(other)));
    all.into_iter().next().map(|(_, name)| name)
}

/// A claim grows when it is bound and its class says that its volumes can.
fn may_grow(call: &Call<'_>, new: &Object, old: &Object) -> Result<(), ApiError> {
    const SIZE: [&str; 4] = ["spec", "resources", "requests", "storage"];
    let size = |claim: &Object| claim.get(&SIZE).and_then(|size| Quantity::from_value(size).ok());
    if size(new).zip(size(old)).is_none_or(|(wanted, before)| wanted <= before) {
        return Ok(());
    }
    let refuse = |why: &str| Err(ApiError::forbidden(call.resource.group_resource(), new.name(), why));
    if old.get_str(&["status", "phase"]) != Some("Bound") {
        return refuse("Only bound persistent volume claims can be expanded");
    }
    let classes = call.core.caches.resource("storageclasses.storage.k8s.io");
    let class = class_name(new).filter(|name| !name.is_empty()).and_then(|name| classes.get("", name));
    if class.is_some_and(|class| class.object().get_bool(&["allowVolumeExpansion"]) == Some(true)) {
        return Ok(());
    }
    refuse(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support \
         resize",
    )
}
