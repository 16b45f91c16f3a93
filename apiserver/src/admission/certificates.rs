//! Who asks for a certificate, and who may decide about it. Source: Kubernetes' CertificateApproval,
//! CertificateSigning and CertificateSubjectRestriction.

use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;
use serde_json::{Value, json};

use crate::authz::{Attributes, allowed};
use crate::kinds::Op;
use crate::kinds::certificates::subject;
use crate::registry::{Call, meta};
use crate::user::MASTERS;

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

/// The conditions `/approval` writes; all others are `/status`'s.
const APPROVAL: [&str; 2] = ["Approved", "Denied"];

pub(super) fn admit(call: &Call<'_>, op: Op, new: &mut Object, old: Option<&Object>) -> Result<(), ApiError> {
    match (op, old) {
        (Op::Create, _) => ask(call, new),
        (Op::UpdateStatus, Some(old)) => decide(call, new, old),
        _ => Ok(()),
    }
}

/// The request says who asks, whatever it said before.
fn ask(call: &Call<'_>, new: &mut Object) -> Result<(), ApiError> {
    let user = call.user();
    let said = [
        ("username", json!(user.name)),
        ("uid", json!(user.uid)),
        ("groups", json!(user.groups)),
        ("extra", json!(user.extra)),
    ];
    for (field, value) in said {
        if value.as_str() == Some("") || value.as_object().is_some_and(|map| map.is_empty()) {
            new.remove(&["spec", field]);
        } else {
            new.set(&["spec", field], value);
        }
    }
    // What it cannot be read from is validation's to refuse.
    let Some(subject) = subject(new) else { return Ok(()) };
    let signer = new.get_str(&["spec", "signerName"]).unwrap_or_default();
    if signer == CLIENT && subject.organizations.iter().any(|group| group == MASTERS) {
        return Err(refuse(call, new, &format!("use of {CLIENT} signer with {MASTERS} group is not allowed")));
    }
    let of_node = user.node_name().is_some() && matches!(signer, KUBELET_CLIENT | KUBELET_SERVING);
    if of_node && subject.common_name != user.name {
        return Err(refuse(call, new, &format!("can only create a node CSR with CN={}", user.name)));
    }
    Ok(())
}

/// `/approval` writes the approval alone, `/status` all but the approval; each needs leave from the signer.
fn decide(call: &Call<'_>, new: &mut Object, old: &Object) -> Result<(), ApiError> {
    let approving = call.request.info.subresource == "approval";
    let own = |type_: &str| APPROVAL.contains(&type_) == approving;
    let before = old.get_list(&["status", "conditions"]);
    let mut conditions = merged(before, new.get_list(&["status", "conditions"]), own);
    stamp(&mut conditions, before, &meta::time(call.core.now()));
    if approving {
        // The rest of the status is not this writer's.
        match old.0.get("status") {
            Some(status) => new.0.insert("status".to_owned(), status.clone()),
            None => new.0.shift_remove("status"),
        };
    }
    if conditions.is_empty() {
        new.remove(&["status", "conditions"]);
    } else {
        new.set(&["status", "conditions"], conditions);
    }
    let changed = |field: &str| new.get(&["status", field]) != old.get(&["status", field]);
    let (verb, needed) =
        if approving { ("approve", true) } else { ("sign", changed("certificate") || changed("conditions")) };
    let signer = old.get_str(&["spec", "signerName"]).unwrap_or_default();
    if !needed || may(call, verb, signer) {
        return Ok(());
    }
    Err(refuse(call, old, &format!("user not permitted to {verb} requests with signerName \"{signer}\"")))
}

fn refuse(call: &Call<'_>, request: &Object, why: &str) -> ApiError {
    ApiError::forbidden(call.resource.group_resource(), request.name(), why)
}

/// Whether the caller may do `verb` for a signer, by its name or by that of all signers of its domain.
fn may(call: &Call<'_>, verb: &str, signer: &str) -> bool {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    [signer, &domain].iter().any(|name| {
        let what =
            Attributes { verb, group: "certificates.k8s.io", resource: "signers", name, ..Attributes::default() };
        allowed(call.core, call.user(), &what)
    })
}

fn type_of(condition: &Value) -> &str {
    condition.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The conditions as they will be: of those that are the writer's `own` the new ones, of all others the old ones, in
/// the order they had.
fn merged(old: &[Value], new: &[Value], own: impl Fn(&str) -> bool) -> Vec<Value> {
    let find = |type_: &str| new.iter().find(|condition| type_of(condition) == type_).cloned();
    let has = |type_: &str| old.iter().any(|condition| type_of(condition) == type_);
    let kept = old.iter().filter_map(|condition| match type_of(condition) {
        type_ if own(type_) => find(type_),
        _ => Some(condition.clone()),
    });
    let added = new.iter().filter(|condition| own(type_of(condition)) && !has(type_of(condition))).cloned();
    kept.chain(added).collect()
}

/// Fills in when a condition was written and when it last changed, where its writer left that out.
fn stamp(conditions: &mut [Value], old: &[Value], now: &str) {
    for condition in conditions {
        let before = old.iter().find(|other| type_of(other) == type_of(condition));
        let held = before.filter(|before| before.get("status") == condition.get("status"));
        let since = held.and_then(|before| before.get("lastTransitionTime")).cloned();
        let Some(fields) = condition.as_object_mut() else { continue };
        for (field, value) in [("lastUpdateTime", None), ("lastTransitionTime", since)] {
            if fields.get(field).is_none_or(Value::is_null) {
                fields.insert(field.to_owned(), value.unwrap_or_else(|| now.into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_touches_its_own_conditions_and_nobody_elses() {
        let is = |type_: &str, reason: &str| json!({"type": type_, "reason": reason});
        let old = [is("Other", "a"), is("Approved", "a"), is("Failed", "a")];
        let new = [is("Approved", "b"), is("Denied", "b"), is("Failed", "b"), is("More", "b")];
        let approving = |type_: &str| APPROVAL.contains(&type_);
        assert_eq!(
            merged(&old, &new, approving),
            [is("Other", "a"), is("Approved", "b"), is("Failed", "a"), is("Denied", "b")]
        );
        assert_eq!(
            merged(&old, &new, |type_| !approving(type_)),
            [is("Approved", "a"), is("Failed", "b"), is("More", "b")]
        );
    }
}
