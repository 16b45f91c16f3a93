//! `/eviction`: a delete that disruption budgets may refuse.
//!
//! Owns the grant: one disruption is taken from the budget and the pod is named in it, in one write on what was read,
//! before the pod goes. Follows the eviction subresource of Kubernetes (`pkg/registry/core/pod/storage/eviction.go`) to
//! its words. Never counts pods: what is allowed is the disruption controller's to say.

use std::sync::Arc;

use http::StatusCode;
use parking_lot::Mutex;
use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::object::Object;
use proa_apimachinery::selector::LabelSelector;
use proa_apimachinery::status::{ApiError, GroupResource, StatusCause};
use serde_json::{Map, Value, json};

use super::admitted;
use crate::http::{Response, answer};
use crate::kinds::Op;
use crate::registry::delete::{DeleteOptions, delete_named};
use crate::registry::options::WriteOptions;
use crate::registry::write::{self, Ownership};
use crate::registry::{Call, meta};
use crate::resources::Resource;

const EVICTION: (&str, &str, &str) = ("policy", "v1", "Eviction");
/// How many evictions a budget may have granted that its controller has not confirmed yet (`MaxDisruptedPodSize`).
const MOST_UNCONFIRMED: usize = 2000;
const VIOLATED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// POST of an Eviction.
pub(super) async fn evict(call: &Call<'_>) -> Result<Response, ApiError> {
    let body = admitted(call, EVICTION).await?;
    let name = if body.name().is_empty() { call.name() } else { body.name() };
    if name != call.name() {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut options = DeleteOptions::from_value(body.get(&["deleteOptions"]).unwrap_or(&Value::Null), call)?;
    let pod = write::current(call, name).await?.ok_or_else(|| call.not_found(name))?.object;
    // What has ended, has not begun, or goes already is no disruption.
    let disrupts = !matches!(pod.get_str(&["status", "phase"]), Some("Succeeded" | "Failed" | "Pending"))
        && pod.deletion_timestamp().is_none();
    let asked_version = options.names_a_version();
    let mut spent = None;
    if disrupts && let Some((budgets, budget)) = budget_of(call, &pod)? {
        if spares(&budget, &pod) {
            // It must still not be ready when it goes.
            if !asked_version {
                options.require_version(pod.resource_version());
                spent = Some(budget.name().to_owned());
            }
        } else {
            options.check(call, &pod)?;
            take(call, budgets, budget.name(), name, options.dry_run).await?;
        }
    }
    match announce_and_delete(call, name, options).await {
        Ok(()) => Ok(answer(
            StatusCode::CREATED,
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
        )),
        // Only our own precondition was not met: the client is to try again.
        Err(error) => match spent.filter(|_| error.code == 409) {
            Some(budget) => Err(still_processing(&budget)),
            None => Err(error),
        },
    }
}

/// The one budget that selects the pod.
fn budget_of(call: &Call<'_>, pod: &Object) -> Result<Option<(Arc<Resource>, Object)>, ApiError> {
    let table = call.core.resources.table();
    let Some(budgets) = table.find("policy", "v1", "poddisruptionbudgets") else { return Ok(None) };
    let selects = |budget: &Object| {
        // Without a selector it is about no pod, with an empty one about every.
        let selector = budget.get(&["spec", "selector"]).and_then(|value| LabelSelector::from_value(value).ok());
        selector.is_some_and(|selector| selector.matches(|key| pod.label(key)))
    };
    let mut found: Vec<Object> = budgets.cache.items(call.namespace()).iter().map(|item| item.object()).collect();
    found.retain(selects);
    if found.len() > 1 {
        let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        return Err(ApiError::new(500, "InternalError", why));
    }
    Ok(found.pop().map(|budget| (Arc::clone(budgets), budget)))
}

/// Whether a pod that is not ready may go without the budget: always, if the budget says so; else while the application
/// is not disrupted (KEP-3017).
fn spares(budget: &Object, pod: &Object) -> bool {
    let ready = pod
        .get_list(&["status", "conditions"])
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    if ready {
        return false;
    }
    if budget.get_str(&["spec", "unhealthyPodEvictionPolicy"]) == Some("AlwaysAllow") {
        return true;
    }
    let count = |field| budget.get_i64(&["status", field]).unwrap_or(0);
    count("desiredHealthy") > 0 && count("currentHealthy") >= count("desiredHealthy")
}

/// Takes one disruption from the budget as it is when that is written, and names the pod in it.
async fn take(call: &Call<'_>, budgets: Arc<Resource>, budget: &str, pod: &str, dry_run: bool) -> Result<(), ApiError> {
    let on_budgets = Call { core: call.core, request: call.request, resource: budgets, warnings: Mutex::default() };
    let options = WriteOptions { dry_run, ..WriteOptions::read(call.request)? };
    let now = meta::time(call.core.now());
    let granted = |old: &Object| Ok((grant(old, pod, &now)?, FieldErrors::new()));
    write::modify(&on_budgets, Op::UpdateStatus, budget, &options, Ownership::Update, granted).await.map(drop)
}

/// The budget with one disruption less; refused when it has none to give.
fn grant(budget: &Object, pod: &str, now: &str) -> Result<Object, ApiError> {
    let status = |field| budget.get_i64(&["status", field]).unwrap_or(0);
    if status("observedGeneration") < budget.generation() {
        return Err(still_processing(budget.name()));
    }
    let forbidden =
        |why: &str| ApiError::forbidden(GroupResource::new("policy", "poddisruptionbudget"), budget.name(), why);
    let allowed = status("disruptionsAllowed");
    if allowed < 0 {
        return Err(forbidden("pdb disruptions allowed is negative"));
    }
    let mut disrupted = match budget.get(&["status", "disruptedPods"]) {
        Some(Value::Object(pods)) => pods.clone(),
        _ => Map::new(),
    };
    if disrupted.len() > MOST_UNCONFIRMED {
        return Err(forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller"));
    }
    if allowed == 0 {
        return Err(violated(budget));
    }
    disrupted.insert(pod.to_owned(), now.into());
    let mut new = budget.clone();
    new.set(&["status", "disruptedPods"], disrupted);
    new.set(&["status", "disruptionsAllowed"], allowed - 1);
    if allowed == 1 {
        exhaust(&mut new, now);
    }
    Ok(new)
}

/// The condition of a budget that has just given its last disruption.
fn exhaust(budget: &mut Object, now: &str) {
    const TYPE: &str = "DisruptionAllowed";
    let mut conditions = budget.get_list(&["status", "conditions"]).to_vec();
    let held = conditions.iter().find(|condition| condition["type"] == TYPE && condition["status"] == "False");
    let since = held.map_or_else(|| Value::from(now), |condition| condition["lastTransitionTime"].clone());
    conditions.retain(|condition| condition["type"] != TYPE);
    conditions.push(json!({"type": TYPE, "status": "False", "reason": "InsufficientPods", "message": "",
        "lastTransitionTime": since, "observedGeneration": budget.generation()}));
    budget.set(&["status", "conditions"], conditions);
}

fn violated(budget: &Object) -> ApiError {
    let status = |field| budget.get_i64(&["status", field]).unwrap_or(0);
    // Why the controller could not count, when that is the reason.
    let failed =
        budget.get_list(&["status", "conditions"]).iter().find(|condition| condition["reason"] == "SyncFailed");
    let message = match failed.and_then(|condition| condition["message"].as_str()) {
        Some(why) => format!(
            "The disruption budget {} does not allow evicting pods currently because it failed sync: {why}",
            budget.name()
        ),
        None => format!(
            "The disruption budget {} needs {} healthy pods and has {} currently",
            budget.name(),
            status("desiredHealthy"),
            status("currentHealthy")
        ),
    };
    refused(message, 0)
}

fn still_processing(budget: &str) -> ApiError {
    refused(format!("The disruption budget {budget} is still being processed by the server."), 10)
}

/// With a time to wait clients try again by themselves; without, it is theirs to decide (`kubectl drain` does).
fn refused(message: String, retry_after_seconds: i32) -> ApiError {
    let mut error = ApiError::too_many_requests(VIOLATED, retry_after_seconds);
    let cause = StatusCause { reason: "DisruptionBudget".into(), message, field: String::new() };
    error.details.get_or_insert_default().causes.push(cause);
    error
}

/// Says in the pod's status what is about to happen to it (KEP-3329), then deletes it.
async fn announce_and_delete(call: &Call<'_>, name: &str, mut options: DeleteOptions) -> Result<(), ApiError> {
    if !options.dry_run {
        let now = meta::time(call.core.now());
        let announced = |old: &Object| {
            options.check(call, old)?;
            let mut conditions = old.get_list(&["status", "conditions"]).to_vec();
            let held = conditions.iter().find(|c| c["type"] == "DisruptionTarget" && c["status"] == "True");
            let since =
                held.map_or_else(|| Value::from(now.as_str()), |condition| condition["lastTransitionTime"].clone());
            conditions.retain(|condition| condition["type"] != "DisruptionTarget");
            conditions.push(json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": since}));
            let mut new = old.clone();
            new.set(&["status", "conditions"], conditions);
            Ok((new, FieldErrors::new()))
        };
        let write = WriteOptions::read(call.request)?;
        let outcome = write::modify(call, Op::UpdateStatus, name, &write, Ownership::Update, announced).await?;
        if options.names_a_version() {
            let pod: Object = serde_json::from_slice(&outcome.bytes()).map_err(ApiError::internal)?;
            options.require_version(pod.resource_version());
        }
    }
    delete_named(call, name, &options).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(status: Value) -> Object {
        Object::from_value(json!({"metadata": {"name": "b", "generation": 2}, "status": status})).unwrap()
    }

    #[test]
    fn a_grant_takes_one_disruption_and_names_the_pod() {
        let held = json!({"observedGeneration": 2, "disruptionsAllowed": 1, "disruptedPods": {"a": "2026-11-21T09:00:00Z"},
            "conditions": [{"type": "DisruptionAllowed", "status": "True", "reason": "SufficientPods"}]});
        let new = grant(&budget(held), "p", "2026-11-21T10:00:00Z").unwrap();
        assert_eq!(new.get_i64(&["status", "disruptionsAllowed"]), Some(0));
        let named = json!({"a": "2026-11-21T09:00:00Z", "p": "2026-11-21T10:00:00Z"});
        assert_eq!(new.get(&["status", "disruptedPods"]), Some(&named));
        let conditions = new.get_list(&["status", "conditions"]);
        assert_eq!((conditions.len(), &conditions[0]["reason"]), (1, &json!("InsufficientPods")));
    }

    #[test]
    fn a_budget_with_nothing_to_give_refuses_and_says_why() {
        let refusal = |status: Value| {
            let error = grant(&budget(status), "p", "2026-11-21T10:00:00Z").unwrap_err();
            let details = error.details.unwrap_or_default();
            let cause = details.causes.first().map(|cause| cause.message.clone()).unwrap_or_default();
            (error.code, details.retry_after_seconds, if cause.is_empty() { error.message } else { cause })
        };
        assert_eq!(
            refusal(json!({"observedGeneration": 1, "disruptionsAllowed": 1})),
            (429, 10, "The disruption budget b is still being processed by the server.".to_owned())
        );
        assert_eq!(
            refusal(
                json!({"observedGeneration": 2, "disruptionsAllowed": 0, "desiredHealthy": 3, "currentHealthy": 3})
            ),
            (429, 0, "The disruption budget b needs 3 healthy pods and has 3 currently".to_owned())
        );
        let sync = json!({"observedGeneration": 2, "conditions": [{"type": "DisruptionAllowed", "status": "False", "reason": "SyncFailed", "message": "no scale"}]});
        assert!(refusal(sync).2.ends_with("because it failed sync: no scale"));
        assert_eq!(refusal(json!({"observedGeneration": 2, "disruptionsAllowed": -1})).0, 403);
        let many: Map<String, Value> = (0..=MOST_UNCONFIRMED).map(|n| (format!("p{n}"), Value::Null)).collect();
        assert_eq!(refusal(json!({"observedGeneration": 2, "disruptionsAllowed": 1, "disruptedPods": many})).0, 403);
    }

    #[test]
    fn a_pod_that_is_not_ready_goes_without_the_budget_while_the_application_is_not_disrupted() {
        let pod = |ready: &str| {
            Object::from_value(json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}})).unwrap()
        };
        let whole = budget(json!({"desiredHealthy": 2, "currentHealthy": 2}));
        let short = budget(json!({"desiredHealthy": 2, "currentHealthy": 1}));
        let mut always = short.clone();
        always.set(&["spec", "unhealthyPodEvictionPolicy"], "AlwaysAllow");
        let spared = |budget: &Object| [spares(budget, &pod("True")), spares(budget, &pod("False"))];
        assert_eq!([spared(&whole), spared(&short), spared(&always)], [[false, true], [false, false], [false, true]]);
        assert!(!spares(&budget(json!({})), &pod("False")), "nothing is desired, and so nothing is known to be whole");
    }
}
