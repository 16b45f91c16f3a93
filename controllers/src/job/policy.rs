//! The pod failure policy (KEP-3329) and the success policy (KEP-3998) of a Job. Pure.

use crate::pods;
use k8s_openapi::api::{
    batch::v1::{Job, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule, SuccessPolicy},
    core::v1::ContainerStatus,
};
use kube::ResourceExt;
use proa_apimachinery::indexes::Indexes;
use proa_crds::Pod;

/// What a failed pod means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    /// It counts towards the limits.
    pub(super) counts: bool,
    /// Its index has failed for good.
    pub(super) fails_index: bool,
    /// The whole Job has failed, for this reason.
    pub(super) fails_job: Option<String>,
}

/// What the Job's policy says of a failed pod: the first rule that matches decides; without one it counts.
pub(super) fn judge(job: &Job, pod: &Pod) -> Judgement {
    let mut judgement = Judgement { counts: true, fails_index: false, fails_job: None };
    let Some(spec) = &job.spec else { return judgement };
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    for (at, rule) in rules.enumerate() {
        let Some(why) = matches(rule, pod) else { continue };
        match rule.action.as_str() {
            "Ignore" => judgement.counts = false,
            "FailIndex" if spec.backoff_limit_per_index.is_some() => judgement.fails_index = true,
            "FailJob" => judgement.fails_job = Some(format!("{why} matching FailJob rule at index {at}")),
            "Count" => {}
            // An action of a later version means nothing here, as on Kubernetes.
            _ => continue,
        }
        break;
    }
    judgement
}

/// In what the pod matches the rule, in words.
fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    if let Some(wanted) = &rule.on_exit_codes {
        let status = pod.status.as_ref();
        let ordinary = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
        let init = status.and_then(|status| status.init_container_statuses.as_ref()).into_iter().flatten();
        let (container, code) = ordinary.chain(init).find_map(|status| Some((&status.name, exit(wanted, status)?)))?;
        return Some(format!("Container {container} for pod {namespace}/{name} failed with exit code {code}"));
    }
    let pattern = rule.on_pod_conditions.iter().flatten().find(|pattern| {
        let status = pattern.status.as_deref().unwrap_or("True");
        pods::condition(pod, &pattern.type_).is_some_and(|condition| condition.status == status)
    })?;
    Some(format!("Pod {namespace}/{name} has condition {}", pattern.type_))
}

/// The exit code, if the container failed with one the rule asks for.
fn exit(wanted: &PodFailurePolicyOnExitCodesRequirement, status: &ContainerStatus) -> Option<i32> {
    let code = status.state.as_ref()?.terminated.as_ref()?.exit_code;
    let of_this = wanted.container_name.as_ref().is_none_or(|name| *name == status.name);
    let listed = wanted.values.contains(&code);
    let asked_for = match wanted.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    };
    // Code 0 is no failure, and no rule is about it.
    (of_this && code != 0 && asked_for).then_some(code)
}

/// What the success policy says of the indexes that succeeded, if that is enough.
pub(super) fn is_enough(policy: &SuccessPolicy, succeeded: &Indexes) -> Option<String> {
    let met = policy.rules.iter().position(|rule| {
        let count = rule.succeeded_count.map(|count| count.max(0).unsigned_abs());
        match rule.succeeded_indexes.as_deref().map(|text| Indexes::parse(text, None)) {
            Some(Ok(wanted)) => {
                let have = wanted.common(succeeded);
                have == wanted.len() || count.is_some_and(|count| have >= count)
            }
            // Admission refuses it; should it be there all the same, it is never met.
            Some(Err(_)) => false,
            None => count.is_some_and(|count| succeeded.len() >= count),
        }
    });
    met.map(|at| format!("Matched rules at index {at}"))
}
