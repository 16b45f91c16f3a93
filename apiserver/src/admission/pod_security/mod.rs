//! Pod Security admission (KEP-2579): what the pods of a namespace may do, by the three levels of the Pod Security
//! Standards. A pod that violates what is enforced is refused; who makes pods, or what makes them, is warned, and the audit
//! log annotated. Nobody is exempt: what needs more runs in a namespace that allows it.

mod checks;
mod policy;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};

use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;
use serde_json::Value;

use crate::kinds::Op;
use crate::registry::Call;
use checks::{Judged, violations};
use policy::{Level, Standard};

/// In the audit log: the policy that was enforced, and what a pod has against it of the one that is only noted.
const ENFORCED: &str = "pod-security.kubernetes.io/enforce-policy";
const VIOLATIONS: &str = "pod-security.kubernetes.io/audit-violations";

/// How many pods of a namespace are looked at when it asks for more.
const CHECKED: usize = 3000;

/// Holds a write to what its namespace asks for.
pub(super) fn admit(call: &Call<'_>, op: Op, new: &Object, old: Option<&Object>) -> Result<(), ApiError> {
    let kind = &call.resource.kind;
    match (&*kind.group, &*kind.plural) {
        ("", "namespaces") => namespace(call, new, old),
        ("", "pods") => match old {
            Some(old) if op != Op::Create && !shows_anew(new, old) => Ok(()),
            _ => pod(call, new),
        },
        _ => {
            if let Some(template) = template(&kind.group, &kind.plural, new) {
                warn(call, template);
            }
            Ok(())
        }
    }
}

/// What a controller makes pods from.
fn template<'a>(group: &str, plural: &str, object: &'a Object) -> Option<&'a Value> {
    match (group, plural) {
        ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("", "replicationcontrollers")
        | ("batch", "jobs") => object.get(&["spec", "template"]),
        ("batch", "cronjobs") => object.get(&["spec", "jobTemplate", "spec", "template"]),
        ("", "podtemplates") => object.get(&["template"]),
        _ => None,
    }
}

/// The policy of the namespace the write goes to. One that has gone asks for nothing: nothing is created there.
fn policy(call: &Call<'_>) -> Option<policy::Policy> {
    let item = call.core.caches.resource("namespaces").get("", call.namespace())?;
    let (policy, _) = policy::of(&item.object());
    let asks = |standard: Standard| standard.level != Level::Privileged;
    (asks(policy.enforce) || asks(policy.warn) || asks(policy.audit)).then_some(policy)
}

fn pod(call: &Call<'_>, pod: &Object) -> Result<(), ApiError> {
    let (Some(policy), Some(judged)) = (policy(call), Judged::pod(pod)) else { return Ok(()) };
    call.request.trail.annotate(ENFORCED, || policy.enforce.to_string());
    note(call, policy.audit, &judged);
    if let Some((_, details)) = against(policy.enforce, &judged) {
        let why = format!("violates PodSecurity \"{}\": {details}", policy.enforce);
        return Err(ApiError::forbidden(call.resource.group_resource(), pod.name(), &why));
    }
    tell(call, policy.warn, &judged);
    Ok(())
}

fn warn(call: &Call<'_>, template: &Value) {
    if let (Some(policy), Some(judged)) = (policy(call), Judged::template(template)) {
        note(call, policy.audit, &judged);
        tell(call, policy.warn, &judged);
    }
}

/// What the audit log is told of.
fn note(call: &Call<'_>, standard: Standard, judged: &Judged<'_>) {
    if !call.request.trail.is_kept() {
        return;
    }
    if let Some((_, details)) = against(standard, judged) {
        call.request.trail.annotate(VIOLATIONS, || format!("would violate PodSecurity \"{standard}\": {details}"));
    }
}

fn tell(call: &Call<'_>, standard: Standard, judged: &Judged<'_>) {
    if let Some((_, details)) = against(standard, judged) {
        call.warn(format!("would violate PodSecurity \"{standard}\": {details}"));
    }
}

/// What a standard has against a pod: in a word each, and in detail.
fn against(standard: Standard, judged: &Judged<'_>) -> Option<(String, String)> {
    let found = violations(standard.level, standard.version.minor(), judged);
    let reasons: Vec<&str> = found.iter().map(|violation| violation.reason.as_str()).collect();
    let details: Vec<String> =
        found.iter().map(|violation| format!("{} ({})", violation.reason, violation.detail)).collect();
    (!found.is_empty()).then(|| (reasons.join(", "), details.join(", ")))
}

/// Whether an update of a pod can change how it is judged: other images, more containers. All else that matters is fixed.
fn shows_anew(new: &Object, old: &Object) -> bool {
    ["containers", "initContainers", "ephemeralContainers"].iter().any(|list| {
        let images = |pod: &Object| -> Vec<Option<String>> {
            let containers = pod.get_list(&["spec", list]).iter();
            containers.map(|container| container.get("image")?.as_str().map(str::to_owned)).collect()
        };
        images(new) != images(old)
    })
}

/// The labels can be read; and who asks for more learns which pods would not be let in again.
fn namespace(call: &Call<'_>, new: &Object, old: Option<&Object>) -> Result<(), ApiError> {
    let (policy, errors) = policy::of(new);
    let before = old.map(policy::of);
    let known = before.as_ref().map(|(_, errors)| errors);
    if !errors.is_empty() && known.is_none_or(|known| words(known) != words(&errors)) {
        return Err(ApiError::invalid(call.resource.group_kind(), new.name(), errors));
    }
    let Some((before, _)) = before else { return Ok(()) };
    let (now, then) = (policy.enforce, before.enforce);
    let relaxed = now.version == then.version && now.level <= then.level;
    if now != then && now.level != Level::Privileged && !relaxed {
        let pods: Vec<Object> =
            call.core.caches.resource("pods").items(new.name()).iter().map(|item| item.object()).collect();
        for warning in existing(new.name(), now, pods) {
            call.warn(warning);
        }
    }
    Ok(())
}

fn words(errors: &FieldErrors) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// What is told of the pods that are there when a namespace begins to ask for more: of each controller's pods one is
/// looked at before any other of them, for they are alike.
fn existing(namespace: &str, standard: Standard, pods: Vec<Object>) -> Vec<String> {
    let mut controllers = HashSet::new();
    let (first, more): (Vec<Object>, Vec<Object>) =
        pods.into_iter().partition(|pod| pod.controller().is_none_or(|owner| controllers.insert(owner.uid)));
    let all = first.len() + more.len();
    let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for pod in first.iter().chain(&more).take(CHECKED) {
        let Some((reasons, _)) = Judged::pod(pod).and_then(|judged| against(standard, &judged)) else { continue };
        let (name, count) = found.entry(reasons).or_insert_with(|| (pod.name().to_owned(), 0));
        *count += 1;
        if pod.name() < name.as_str() {
            *name = pod.name().to_owned();
        }
    }
    let mut warnings = Vec::new();
    if all > CHECKED {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {CHECKED} of {all} existing pods"
        ));
    }
    if !found.is_empty() {
        let which = format!("existing pods in namespace \"{namespace}\" violate the new PodSecurity enforce level");
        warnings.push(format!("{which} \"{standard}\""));
    }
    let mut told: Vec<String> = found
        .into_iter()
        .map(|(reasons, (name, count))| match count {
            1 => format!("{name}: {reasons}"),
            2 => format!("{name} (and 1 other pod): {reasons}"),
            count => format!("{name} (and {} other pods): {reasons}", count - 1),
        })
        .collect();
    told.sort_unstable();
    warnings.extend(told);
    warnings
}
