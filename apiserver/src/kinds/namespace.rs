//! Owns the strategy of Namespaces. Emptying one that goes is the namespace controller's.

use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::{Object, names};
use serde_json::{Value, json};

use super::at::At;
use super::{Op, Rules, settings};

/// Set by the server on every namespace, so that selectors can name one.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(super) const NAMESPACE: Rules = Rules {
    name: names::is_dns1123_label,
    status: true,
    default: |object| {
        let name = object.name().to_owned();
        if !name.is_empty() {
            object.set_label(NAME_LABEL, name);
        }
    },
    prepare,
    warnings: settings::warnings,
    ..Rules::GENERIC
};

/// What may stand in `spec.finalizers`, which only `/finalize` writes.
pub fn validate_finalizers(namespace: &Object) -> FieldErrors {
    let mut errors = FieldErrors::new();
    for finalizer in At::of(namespace, "spec").child("finalizers").items() {
        finalizer.check(&mut errors, names::is_qualified_name);
        if !finalizer.str().contains('/') && !matches!(finalizer.str(), "orphan" | "foregroundDeletion" | "kubernetes")
        {
            finalizer.invalid(&mut errors, "name is neither a standard finalizer name nor is it fully qualified");
        }
    }
    errors
}

fn prepare(op: Op, new: &mut Object, old: Option<&Object>) {
    match (op, old) {
        (Op::Create, _) => {
            let mut finalizers: Vec<Value> = new.get_list(&["spec", "finalizers"]).to_vec();
            if !finalizers.iter().any(|f| f == "kubernetes") {
                finalizers.push("kubernetes".into());
            }
            new.set(&["spec", "finalizers"], finalizers);
            new.set(&["status"], json!({"phase": "Active"}));
        }
        (Op::Update, Some(old)) => {
            // Only `/finalize` changes these.
            match old.get(&["spec", "finalizers"]).cloned() {
                Some(finalizers) => new.set(&["spec", "finalizers"], finalizers),
                None => {
                    new.remove(&["spec", "finalizers"]);
                }
            }
        }
        // Deletion has begun: the namespace controller empties it.
        (Op::Delete, _) => new.set(&["status", "phase"], "Terminating"),
        _ => {}
    }
}
