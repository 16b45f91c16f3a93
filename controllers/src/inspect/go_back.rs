//! `proa rollback`: what `kubectl rollout undo` does, for every kind of workload in both families.

use super::{
    InspectError, Kind, Target,
    revisions::{self, Held},
};
use crate::{
    deployment::same_template,
    patch::merge_diff,
    rollback::{effective, marks},
};
use k8s_openapi::api::core::v1::{Namespace, PodTemplateSpec};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, Patch, PatchParams},
    core::ObjectMeta,
};
use proa_crds::{Failure, Family, RolloutPolicy, annotations, policy::FailureAction, rollout_policies};
use serde::Serialize;
use serde_json::{Value, json};
use std::{fmt, sync::Arc};

/// How often a conflict with another writer is tried again.
const ATTEMPTS: u32 = 5;

/// What a rollback did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WentBack {
    /// `statefulset/db`
    pub object: String,
    /// The revision it was at.
    pub from: i64,
    /// The revision it goes back to.
    pub to: i64,
    /// It was at that revision already; nothing was written.
    pub unchanged: bool,
}

impl fmt::Display for WentBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WentBack { object, from, to, unchanged } = self;
        if *unchanged {
            write!(f, "{object} is at revision {to} already")
        } else {
            write!(f, "{object} goes back from revision {from} to revision {to}")
        }
    }
}

/// Why a rollback could not be done.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// A paused deployment does not roll, back or forth.
    #[error("{} is paused; resume it first with 'kubectl rollout resume {}'", quoted(.0), .0)]
    Paused(Target),
    /// There is no other revision, or none that is not known to fail.
    #[error("{} has no earlier revision that is not known to fail", quoted(.0))]
    NoHistory(Target),
    /// The revision asked for is known to fail: automatic rollback would refuse it.
    #[error(
        "revision {revision} of {} is known to fail ({why}) and would be refused; to try it again: kubectl annotate {resource} {} --overwrite {}=<a new value>",
        quoted(.target), .target.name, annotations::RETRY
    )]
    KnownToFail {
        /// The workload.
        target: Target,
        /// The resource kubectl knows its kind by.
        resource: String,
        /// What was asked for.
        revision: i64,
        /// How it failed.
        why: String,
    },
    /// The history does not hold that revision.
    #[error("{} has no revision {revision}; its history holds {held:?}", quoted(.target))]
    NoRevision {
        /// The workload.
        target: Target,
        /// What was asked for.
        revision: i64,
        /// What there is.
        held: Vec<i64>,
    },
    /// The workload or its history cannot be read.
    #[error(transparent)]
    Unreadable(#[from] InspectError),
    /// The API server refused or could not be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// `deployment "web"`: as kubectl names an object in a sentence.
fn quoted(target: &Target) -> String {
    format!("{} {:?}", target.kind.word(), target.name)
}

/// Takes a workload to revision `to`, or to the last one before the current that is not known to fail.
///
/// The loops do the rest (kept configuration, what appliers remember), as for every undo.
///
/// # Errors
/// When there is no such workload or revision, it is paused, the revision would be refused, or it may not be written.
pub async fn go_back(
    client: &Client,
    namespace: &str,
    target: &Target,
    to: Option<i64>,
) -> Result<WentBack, RollbackError> {
    let mut attempt = 1;
    loop {
        let (family, resource, object) = target.find(client, namespace).await?;
        let held = revisions::recorded(client, namespace, target.kind, family, &object).await?;
        let (chosen, current) = choose(target, &object, &held, to)?;
        if let Some(failure) = chosen.failure().filter(|failure| !marks::is_retried(&object.metadata, failure))
            && would_be_refused(client, namespace, target.kind, &object.metadata).await
        {
            return Err(known_to_fail(family, target, chosen, &failure));
        }
        let unchanged = is_at(&object, chosen, current);
        let done = WentBack { object: target.to_string(), from: current.number, to: chosen.number, unchanged };
        if done.unchanged {
            return Ok(done);
        }
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        let manager = PatchParams { field_manager: Some("proa".to_owned()), ..PatchParams::default() };
        match api.patch(&target.name, &manager, &Patch::Merge(&undo_patch(target.kind, &object, chosen))).await {
            Ok(_) => return Ok(done),
            Err(kube::Error::Api(status)) if status.code == 409 && attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the policy that holds would refuse a revision known to fail. Somebody wanted that when the revision was marked:
/// to a user who may not read namespaces or policies that is the best answer.
async fn would_be_refused(client: &Client, namespace: &str, kind: Kind, object: &ObjectMeta) -> bool {
    let Some(kind) = kind.guarded() else { return false };
    let policies: Api<RolloutPolicy> = Api::namespaced_with(client.clone(), namespace, &rollout_policies());
    let policies = match policies.list(&ListParams::default()).await {
        Ok(list) => list.items.into_iter().map(Arc::new).collect(),
        // An API server that does not know the kind has none.
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(_) => return true,
    };
    let Ok(namespace) = Api::<Namespace>::all(client.clone()).get_metadata_opt(namespace).await else { return true };
    let wish = namespace.as_ref().and_then(|namespace| marks::note(&namespace.metadata, annotations::ROLLBACK));
    effective(kind, object, &policies, wish).is_some_and(|policy| policy.action != FailureAction::Alert)
}

fn known_to_fail(family: Family, target: &Target, held: &Held, failure: &Failure) -> RollbackError {
    let resource = target.kind.resource(family);
    RollbackError::KnownToFail {
        target: target.clone(),
        resource: match family {
            Family::Standard => target.kind.word().to_owned(),
            Family::Proa => format!("{}.{}", resource.plural, resource.group),
        },
        revision: held.number,
        why: failure.why(),
    }
}

fn template(object: &DynamicObject) -> Value {
    object.data.pointer("/spec/template").cloned().unwrap_or_default()
}

/// Whether there is nothing to go back to: the same template, and made for the same configuration.
fn is_at(object: &DynamicObject, chosen: &Held, current: &Held) -> bool {
    let typed = |value: &Value| serde_json::from_value::<PodTemplateSpec>(value.clone()).unwrap_or_default();
    same_template(&typed(&template(object)), &typed(&chosen.template)) && chosen.made_for == current.made_for
}

/// The merge patch that takes a workload to a revision, in the way of `kubectl rollout undo`: the template and the change
/// cause are the revision's, and for a deployment [`annotations::REVISION_OF`] says so to its loop. It fails with a conflict
/// when the workload changed meanwhile.
fn undo_patch(kind: Kind, object: &DynamicObject, to: &Held) -> Value {
    let mut notes = marks::cause_comes_back(&object.metadata, to.note(annotations::CHANGE_CAUSE));
    if kind == Kind::Deployment {
        notes.insert(annotations::REVISION_OF.to_owned(), json!(to.name));
    }
    let mut patch = json!({"metadata": {"annotations": notes, "resourceVersion": object.metadata.resource_version}});
    // The loop of a deployment goes by the name; of two revisions of a set the template says which configuration is meant.
    let mut wanted = to.template.clone();
    if let Some(configuration) = to.made_for.as_ref().filter(|_| kind != Kind::Deployment) {
        wanted["metadata"]["annotations"][annotations::CONFIGURATION] = json!(configuration);
    }
    if let Some(change) = merge_diff(&template(object), &wanted) {
        patch["spec"] = json!({"template": change});
    }
    patch
}

/// The revision to go back to, and the current one.
fn choose<'a>(
    target: &Target,
    object: &DynamicObject,
    held: &'a [Held],
    to: Option<i64>,
) -> Result<(&'a Held, &'a Held), RollbackError> {
    if object.data.pointer("/spec/paused") == Some(&Value::Bool(true)) {
        return Err(RollbackError::Paused(target.clone()));
    }
    let Some(current) = held.last() else { return Err(RollbackError::NoHistory(target.clone())) };
    let chosen = match to.filter(|to| *to > 0) {
        Some(wanted) => held.iter().find(|held| held.number == wanted).ok_or_else(|| RollbackError::NoRevision {
            target: target.clone(),
            revision: wanted,
            held: held.iter().map(|held| held.number).collect(),
        })?,
        None => {
            let mut earlier = held.iter().rev().skip(1);
            earlier.find(|held| held.failure().is_none()).ok_or_else(|| RollbackError::NoHistory(target.clone()))?
        }
    };
    Ok((chosen, current))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(number: i64) -> Held {
        let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": format!("v{number}")}]}});
        Held { number, name: format!("web-{number}"), template, ..Held::default() }
    }

    fn failed(number: i64) -> Held {
        let failure = json!(Failure { reason: "CrashLoop".into(), message: "boom".into(), ..Failure::default() });
        let notes = [(annotations::FAILURE.to_owned(), failure.to_string())];
        Held { notes: notes.into(), ..held(number) }
    }

    fn object(at: &Held, paused: bool) -> DynamicObject {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "resourceVersion": "7", "annotations": {annotations::CHANGE_CAUSE: "the last"}},
            "spec": {"template": at.template, "paused": paused},
        }))
        .expect("an object")
    }

    fn target(text: &str) -> Target {
        Target::parse(text).expect("a target")
    }

    /// The numbers of the revision that is chosen and of the current one.
    fn found(text: &str, held: &[Held], to: Option<i64>) -> Result<(i64, i64), String> {
        choose(&target(text), &object(&held[0], false), held, to)
            .map(|(chosen, current)| (chosen.number, current.number))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn without_a_number_it_is_the_revision_before_the_current() {
        let all = [held(3), held(4), held(5)];
        for kind in ["deployment/web", "statefulset/web", "daemonset/web"] {
            assert_eq!(found(kind, &all, None), Ok((4, 5)));
            assert_eq!(found(kind, &all, Some(0)), Ok((4, 5)));
            assert_eq!(found(kind, &all, Some(3)), Ok((3, 5)));
        }
        assert_eq!(
            found("ds/web", &all, Some(9)),
            Err("daemonset \"web\" has no revision 9; its history holds [3, 4, 5]".into())
        );
    }

    #[test]
    fn a_revision_known_to_fail_is_skipped_unless_it_is_asked_for() {
        let chosen = |held: &[Held], to| found("deployment/web", held, to).map(|(chosen, _)| chosen);
        assert_eq!(chosen(&[held(1), failed(2), held(3)], None), Ok(1), "right after an automatic rollback");
        assert_eq!(chosen(&[held(1), failed(2), held(3)], Some(2)), Ok(2));
        assert_eq!(
            chosen(&[failed(2), held(3)], None),
            Err("deployment \"web\" has no earlier revision that is not known to fail".into())
        );
        let failure = failed(2).failure().expect("it");
        let said = |family, text: &str| known_to_fail(family, &target(text), &failed(2), &failure).to_string();
        assert_eq!(
            said(Family::Proa, "deployment/web"),
            "revision 2 of deployment \"web\" is known to fail (CrashLoop: boom) and would be refused; to try it again: kubectl annotate deployments.proa.dev web --overwrite proa.dev/retry=<a new value>"
        );
        assert!(said(Family::Standard, "sts/web").contains("kubectl annotate statefulset web"));
    }

    #[test]
    fn one_revision_is_no_history_and_a_paused_deployment_stays() {
        assert!(found("sts/web", &[held(1)], None).is_err_and(|why| why.contains("no earlier revision")));
        let (both, web) = ([held(1), held(2)], target("deployment/web"));
        let paused = choose(&web, &object(&both[1], true), &both, None).map(|_| ()).map_err(|error| error.to_string());
        assert_eq!(
            paused,
            Err("deployment \"web\" is paused; resume it first with 'kubectl rollout resume deployment/web'".into())
        );
        assert!(matches!(choose(&web, &object(&both[1], false), &[], None), Err(RollbackError::NoHistory(_))));
    }

    #[test]
    fn going_back_writes_the_template_and_its_cause_and_tells_the_loop_of_a_deployment_alone() {
        let (to, now) = (held(1), object(&held(2), false));
        let container = json!([{"name": "c", "image": "v1"}]);
        assert_eq!(
            undo_patch(Kind::StatefulSet, &now, &to),
            json!({"metadata": {"annotations": {annotations::CHANGE_CAUSE: null}, "resourceVersion": "7"},
                "spec": {"template": {"spec": {"containers": container}}}})
        );
        let notes = &undo_patch(Kind::Deployment, &now, &to)["metadata"]["annotations"];
        assert_eq!(notes, &json!({annotations::REVISION_OF: "web-1", annotations::CHANGE_CAUSE: null}));
    }

    #[test]
    fn the_same_template_with_other_configuration_is_another_revision() {
        let made_for = |number, digest: &str| Held {
            made_for: Some(digest.to_owned()),
            template: held(1).template,
            ..held(number)
        };
        let (one, two) = (made_for(1, "a"), made_for(2, "b"));
        let now = object(&one, false);
        assert!(!is_at(&now, &one, &two), "a change of configuration alone was rolled out");
        assert!(is_at(&now, &two, &two));
        assert!(is_at(&now, &held(1), &held(3)) && !is_at(&now, &held(2), &held(3)));
    }
}
