//! Following a rollout to its end, telling every step.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::TryStreamExt;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition};
use k8s_openapi::api::core::v1::Event;
use kube::Client;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use proa_crds::conditions::{PROGRESSING, ROLLED_BACK, ROLLOUT_REFUSED};

use crate::apply::Applied;
use crate::progress::Progress;

/// How long a rollout may take before `up` stops waiting for it (the platform goes on).
const PATIENCE: Duration = Duration::from_secs(120);

/// Follows rollouts from one moment on.
pub(crate) struct Rollouts<'a> {
    client: &'a Client,
    progress: &'a Progress,
    /// The resource version of that moment: what happened before is not told.
    since: String,
}

impl<'a> Rollouts<'a> {
    /// From now on.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub(crate) async fn from_now(client: &'a Client, progress: &'a Progress) -> anyhow::Result<Rollouts<'a>> {
        let events = Api::<Event>::all(client.clone()).list_metadata(&ListParams::default().limit(1)).await?;
        Ok(Rollouts { client, progress, since: events.metadata.resource_version.unwrap_or_default() })
    }

    /// Waits until the newest revision of a Deployment serves. `applied` is the Deployment as the apply left it.
    ///
    /// # Errors
    /// When the rollout fails, goes back, or takes longer than two minutes.
    pub(crate) async fn finished(&self, object: &Applied, applied: &Deployment) -> anyhow::Result<()> {
        let namespace = object.namespace.as_deref().unwrap_or("default");
        let events = Api::namespaced(self.client.clone(), namespace);
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(PATIENCE, follow(self.client, object, applied, self.progress)) => outcome,
            never = tell_events(events, &object.name, &self.since, self.progress) => never,
        };
        outcome.with_context(|| format!("{object} is not rolled out after {PATIENCE:?}: kubectl describe {object}"))?
    }
}

async fn follow(client: &Client, object: &Applied, applied: &Deployment, progress: &Progress) -> anyhow::Result<()> {
    let namespace = object.namespace.as_deref().unwrap_or("default");
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let settled = |deployment: &Deployment| -> anyhow::Result<bool> {
        match judge(deployment, applied) {
            State::Failed(why) => bail!("{object}: {why}"),
            State::Complete { ready, wanted } => {
                progress.done(&object.to_string(), format!("{ready} of {wanted} pods ready"));
                Ok(true)
            }
            State::Rolling { ready, wanted } => {
                progress.waiting(format!("{object}: {ready} of {wanted} pods ready"));
                Ok(false)
            }
        }
    };
    let selector = format!("metadata.name={}", object.name);
    loop {
        let list = deployments.list(&ListParams::default().fields(&selector)).await?;
        let version = list.metadata.resource_version.clone().unwrap_or_default();
        let Some(deployment) = list.items.first() else { bail!("{object} was deleted while it was rolling out") };
        if settled(deployment)? {
            return Ok(());
        }
        let mut events = std::pin::pin!(deployments.watch(&WatchParams::default().fields(&selector), &version).await?);
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(deployment) | WatchEvent::Modified(deployment) => {
                    if settled(&deployment)? {
                        return Ok(());
                    }
                }
                WatchEvent::Deleted(_) => bail!("{object} was deleted while it was rolling out"),
                // The watch ended or grew too old: list again.
                WatchEvent::Error(_) => break,
                WatchEvent::Bookmark(_) => {}
            }
        }
    }
}

/// Where a rollout stands.
#[derive(Debug, PartialEq)]
enum State {
    Rolling { ready: i32, wanted: i32 },
    Complete { ready: i32, wanted: i32 },
    Failed(String),
}

/// Whether the rollout is over, as `kubectl rollout status` decides it, and whether it went back. What a Deployment says of
/// rollouts before the apply is not held against this one.
fn judge(deployment: &Deployment, applied: &Deployment) -> State {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let ready = status.available_replicas.unwrap_or(0);
    if status.observed_generation < deployment.metadata.generation {
        return State::Rolling { ready, wanted };
    }
    // A refusal says more than the rollback it repeats.
    let failed = [ROLLOUT_REFUSED, ROLLED_BACK, PROGRESSING].into_iter().find_map(|type_| {
        let mut conditions = status.conditions.iter().flatten().filter(|condition| condition.type_ == type_);
        conditions.find(|condition| is_failure(condition, deployment, applied))
    });
    if let Some(failed) = failed {
        return State::Failed(failed.message.clone().unwrap_or_else(|| "the rollout failed".to_owned()));
    }
    let updated = status.updated_replicas.unwrap_or(0);
    if updated >= wanted && ready >= wanted && status.replicas.unwrap_or(0) == updated {
        State::Complete { ready, wanted }
    } else {
        State::Rolling { ready, wanted }
    }
}

fn is_failure(condition: &DeploymentCondition, now: &Deployment, applied: &Deployment) -> bool {
    let template = |deployment: &Deployment| deployment.spec.as_ref().map(|spec| spec.template.clone());
    match (condition.type_.as_str(), condition.status.as_str()) {
        // Going back puts another template in the place of the one that was applied. While that one is still there, it
        // was an earlier rollout that went back.
        (ROLLED_BACK | ROLLOUT_REFUSED, "True") => template(now) != template(applied),
        (PROGRESSING, "False") => {
            let before =
                applied.status.iter().filter(|status| status.observed_generation < applied.metadata.generation);
            !before.flat_map(|status| status.conditions.iter().flatten()).any(|held| held == condition)
        }
        _ => false,
    }
}

/// Tells what the nodes do for the pods of one workload: each distinct event once, for as long as it is polled. Without
/// events the rollout is the same.
async fn tell_events<T>(events: Api<Event>, workload: &str, since: &str, progress: &Progress) -> T {
    let prefix = format!("{workload}-");
    let mut told = BTreeSet::new();
    if let Ok(stream) = events.watch(&WatchParams::default(), since).await {
        let mut stream = std::pin::pin!(stream);
        while let Ok(Some(event)) = stream.try_next().await {
            let (WatchEvent::Added(event) | WatchEvent::Modified(event)) = event else { continue };
            let about = event.involved_object.name.unwrap_or_default();
            let (reason, message) = (event.reason.unwrap_or_default(), event.message.unwrap_or_default());
            if about.starts_with(&prefix) && told.insert((reason.clone(), message.clone())) {
                match event.type_.as_deref() {
                    Some("Warning") => progress.warn(&reason.to_lowercase(), format!("{about}: {message}")),
                    _ if matches!(reason.as_str(), "Pulling" | "Pulled" | "Started") => {
                        progress.doing(&reason.to_lowercase(), message)
                    }
                    _ => {}
                }
            }
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn deployment(generation: i64, image: &str, status: Value) -> Deployment {
        let template = json!({"spec": {"containers": [{"name": "main", "image": image}]}});
        let spec = json!({"replicas": 2, "selector": {}, "template": template});
        let object = json!({"metadata": {"name": "web", "generation": generation}, "spec": spec, "status": status});
        serde_json::from_value(object).expect("a deployment")
    }

    fn status(observed: i64, ready: i32, conditions: Value) -> Value {
        json!({"observedGeneration": observed, "replicas": 2, "updatedReplicas": 2, "availableReplicas": ready,
            "conditions": conditions})
    }

    fn condition(type_: &str, status: &str) -> Value {
        json!([{"type": type_, "status": status, "message": format!("{type_} says why")}])
    }

    const DONE: State = State::Complete { ready: 2, wanted: 2 };

    #[test]
    fn a_rollback_of_the_past_is_no_failure_of_what_is_applied_now() {
        for type_ in [ROLLED_BACK, ROLLOUT_REFUSED] {
            let now = deployment(3, "v1", status(3, 2, condition(type_, "True")));
            assert_eq!(judge(&now, &now), DONE, "{type_}: applied again, unchanged");
            let next = deployment(4, "v2", status(3, 2, condition(type_, "True")));
            assert_eq!(judge(&next, &next), State::Rolling { ready: 2, wanted: 2 }, "{type_}: not yet seen");
        }
    }

    #[test]
    fn a_rollback_of_what_was_applied_is_one() {
        let both = json!([condition(ROLLED_BACK, "True")[0], condition(ROLLOUT_REFUSED, "True")[0]]);
        let (applied, back) = (deployment(4, "bad", json!({})), deployment(5, "v1", status(5, 2, both)));
        assert_eq!(judge(&back, &applied), State::Failed(format!("{ROLLOUT_REFUSED} says why")));
        for type_ in [ROLLED_BACK, ROLLOUT_REFUSED] {
            let applied = deployment(4, "bad", status(3, 2, condition(type_, "True")));
            let back = deployment(5, "v1", status(5, 2, condition(type_, "True")));
            assert_eq!(judge(&back, &applied), State::Failed(format!("{type_} says why")));
            let refused_before = deployment(5, "v1", status(4, 2, condition(type_, "True")));
            assert_eq!(judge(&refused_before, &applied), State::Rolling { ready: 2, wanted: 2 });
        }
    }

    #[test]
    fn a_deadline_that_passed_before_the_apply_does_not_count_unless_it_changed_nothing() {
        let stuck = status(3, 1, condition(PROGRESSING, "False"));
        let same = deployment(3, "v1", stuck.clone());
        assert_eq!(judge(&same, &same), State::Failed("Progressing says why".into()), "nothing new was asked for");
        let applied = deployment(4, "v2", stuck);
        let observed = deployment(4, "v2", status(4, 1, condition(PROGRESSING, "False")));
        assert_eq!(judge(&observed, &applied), State::Rolling { ready: 1, wanted: 2 });
        let mut later = condition(PROGRESSING, "False");
        later[0]["lastUpdateTime"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(
            judge(&deployment(4, "v2", status(4, 1, later)), &applied),
            State::Failed("Progressing says why".into())
        );
    }

    #[test]
    fn the_end_is_when_every_wanted_pod_is_new_and_available() {
        let some = deployment(1, "v1", status(1, 1, json!([])));
        assert_eq!(judge(&some, &some), State::Rolling { ready: 1, wanted: 2 });
        let all = deployment(1, "v1", status(1, 2, json!([])));
        assert_eq!(judge(&all, &all), DONE);
    }
}
