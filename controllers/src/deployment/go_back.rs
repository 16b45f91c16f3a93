//! `proa rollback`: what `kubectl rollout undo` does, for both families.

use super::{
    revisions::{number, same_template},
    undo::template_patch,
};
use crate::{
    owners,
    rollback::{effective, marks},
};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use proa_crds::{
    Deployment, Failure, Family, ReplicaSet, RolloutPolicy, annotations,
    policy::{FailureAction, WorkloadKind},
    rollout_policies,
};
use std::{fmt, sync::Arc};

/// How often a conflict with another writer is tried again.
const ATTEMPTS: u32 = 5;

/// What a rollback did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The deployment.
    pub name: String,
    /// The revision the deployment was at.
    pub from: i64,
    /// The revision it goes back to.
    pub to: i64,
    /// The template was that revision's already; nothing was written.
    pub unchanged: bool,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { name, from, to, unchanged } = self;
        if *unchanged {
            write!(f, "deployment/{name} is at revision {to} already")
        } else {
            write!(f, "deployment/{name} goes back from revision {from} to revision {to}")
        }
    }
}

/// Why a rollback could not be done.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// There is no such deployment.
    #[error("deployment {0:?} not found")]
    NotFound(String),
    /// A paused deployment does not roll, back or forth.
    #[error("deployment {0:?} is paused; resume it first with 'kubectl rollout resume deployment/{0}'")]
    Paused(String),
    /// There is no other revision, or none that is not known to fail.
    #[error("deployment {0:?} has no earlier revision that is not known to fail")]
    NoHistory(String),
    /// The revision asked for is known to fail: automatic rollback would refuse it.
    #[error(
        "revision {revision} of deployment {name:?} is known to fail ({why}) and would be refused; to try it again: kubectl annotate {resource} {name} --overwrite {}=<a new value>",
        annotations::RETRY
    )]
    KnownToFail {
        /// The deployment.
        name: String,
        /// The resource kubectl knows deployments of that family by.
        resource: String,
        /// What was asked for.
        revision: i64,
        /// How it failed.
        why: String,
    },
    /// The history does not hold that revision.
    #[error("deployment {name:?} has no revision {revision}; its history holds {held:?}")]
    NoRevision {
        /// The deployment.
        name: String,
        /// What was asked for.
        revision: i64,
        /// What there is.
        held: Vec<i64>,
    },
    /// The API server refused or could not be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
}

impl RollbackError {
    /// Whether there is no such deployment (in that family).
    pub fn is_not_found(&self) -> bool {
        matches!(self, RollbackError::NotFound(_))
    }
}

/// Takes a deployment to revision `to`, or to the last one before the current that is not known to fail.
///
/// The loop does the rest (kept configuration, what appliers remember), as for every undo.
pub async fn rollback(
    client: Client,
    family: Family,
    namespace: &str,
    name: &str,
    to: Option<i64>,
) -> Result<Outcome, RollbackError> {
    let deployments: Api<Deployment> = Api::namespaced_with(client.clone(), namespace, &family.deployment());
    let sets: Api<ReplicaSet> = Api::namespaced_with(client.clone(), namespace, &family.replica_set());
    let mut attempt = 1;
    loop {
        let Some(deployment) = deployments.get_opt(name).await? else {
            return Err(RollbackError::NotFound(name.to_owned()));
        };
        let mut held = sets.list(&ListParams::default()).await?.items;
        let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
        held.retain(|set| owners::is_controlled_by(&set.metadata, uid));
        let (target, from) = choose(&deployment, &held, to)?;
        if let Some(failure) =
            marks::failure_of(&target.metadata).filter(|failure| !marks::is_retried(&deployment.metadata, failure))
            && would_be_refused(&client, namespace, &deployment).await
        {
            return Err(known_to_fail(family, &deployment, target, &failure));
        }
        let outcome =
            Outcome { name: name.to_owned(), from, to: number(target), unchanged: is_at(&deployment, target) };
        if outcome.unchanged {
            return Ok(outcome);
        }
        let patch = template_patch(&deployment, target);
        let manager = PatchParams { field_manager: Some("proa".to_owned()), ..PatchParams::default() };
        match deployments.patch(name, &manager, &Patch::Merge(&patch)).await {
            Ok(_) => return Ok(outcome),
            Err(kube::Error::Api(status)) if status.code == 409 && attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the policy that holds would refuse a revision known to fail. Somebody wanted that when the revision was marked:
/// to a user who may not read namespaces or policies that is the best answer.
async fn would_be_refused(client: &Client, namespace: &str, deployment: &Deployment) -> bool {
    let policies: Api<RolloutPolicy> = Api::namespaced_with(client.clone(), namespace, &rollout_policies());
    let policies = match policies.list(&ListParams::default()).await {
        Ok(list) => list.items.into_iter().map(Arc::new).collect(),
        // An API server that does not know the kind has none.
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(_) => return true,
    };
    let Ok(namespace) = Api::<Namespace>::all(client.clone()).get_metadata_opt(namespace).await else { return true };
    let wish = namespace.as_ref().and_then(|namespace| marks::note(&namespace.metadata, annotations::ROLLBACK));
    effective(WorkloadKind::Deployment, &deployment.metadata, &policies, wish)
        .is_some_and(|policy| policy.action != FailureAction::Alert)
}

fn known_to_fail(family: Family, deployment: &Deployment, set: &ReplicaSet, failure: &Failure) -> RollbackError {
    let resource = family.deployment();
    RollbackError::KnownToFail {
        name: deployment.metadata.name.clone().unwrap_or_default(),
        resource: match family {
            Family::Standard => "deployment".to_owned(),
            Family::Proa => format!("{}.{}", resource.plural, resource.group),
        },
        revision: number(set),
        why: format!("{}: {}", failure.reason, failure.message),
    }
}

fn is_at(deployment: &Deployment, set: &ReplicaSet) -> bool {
    set.spec.template.as_ref().is_some_and(|template| same_template(template, &deployment.spec.template))
}

/// The replica set to go back to, and the number of the current revision.
fn choose<'a>(
    deployment: &Deployment,
    sets: &'a [ReplicaSet],
    to: Option<i64>,
) -> Result<(&'a ReplicaSet, i64), RollbackError> {
    let name = deployment.metadata.name.clone().unwrap_or_default();
    if deployment.spec.paused == Some(true) {
        return Err(RollbackError::Paused(name));
    }
    let mut sorted: Vec<&ReplicaSet> = sets.iter().filter(|set| number(set) > 0).collect();
    sorted.sort_by_key(|set| number(set));
    let current = sorted.last().map_or(0, |set| number(set));
    let target = match to.filter(|to| *to > 0) {
        Some(wanted) => sorted.iter().find(|set| number(set) == wanted).ok_or_else(|| RollbackError::NoRevision {
            name,
            revision: wanted,
            held: sorted.iter().map(|set| number(set)).collect(),
        })?,
        None => {
            let mut earlier = sorted.iter().rev().skip(1);
            earlier.find(|set| marks::failure_of(&set.metadata).is_none()).ok_or(RollbackError::NoHistory(name))?
        }
    };
    Ok((target, current))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(revision: i64) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"name": format!("web-{revision}"), "annotations": {annotations::REVISION: revision.to_string()}}, "spec": {"selector": {}}}))
            .expect("a replica set")
    }

    fn deployment(paused: bool) -> Deployment {
        serde_json::from_value(
            json!({"metadata": {"name": "web"}, "spec": {"selector": {}, "template": {}, "paused": paused}}),
        )
        .expect("a deployment")
    }

    #[test]
    fn without_a_number_it_is_the_revision_before_the_current() {
        let sets = [set(3), set(5), set(4)];
        let found = |to| {
            choose(&deployment(false), &sets, to)
                .map(|(set, from)| (number(set), from))
                .map_err(|error| error.to_string())
        };
        assert_eq!(found(None), Ok((4, 5)));
        assert_eq!(found(Some(0)), Ok((4, 5)));
        assert_eq!(found(Some(3)), Ok((3, 5)));
        assert_eq!(found(Some(9)), Err("deployment \"web\" has no revision 9; its history holds [3, 4, 5]".into()));
    }

    #[test]
    fn a_revision_known_to_fail_is_skipped_unless_it_is_asked_for() {
        let failed = |revision| {
            let mut set = set(revision);
            let failure = json!(Failure { reason: "CrashLoop".into(), message: "boom".into(), ..Failure::default() });
            set.metadata.annotations.get_or_insert_default().insert(annotations::FAILURE.into(), failure.to_string());
            set
        };
        let found = |sets: &[ReplicaSet], to| choose(&deployment(false), sets, to).map(|(set, _)| number(set)).ok();
        assert_eq!(found(&[set(1), failed(2), set(3)], None), Some(1), "right after an automatic rollback");
        assert_eq!(found(&[set(1), failed(2), set(3)], Some(2)), Some(2));
        assert_eq!(found(&[failed(2), set(3)], None), None);
        let failure = marks::failure_of(&failed(2).metadata).expect("it");
        let said = known_to_fail(Family::Proa, &deployment(false), &failed(2), &failure).to_string();
        assert_eq!(
            said,
            "revision 2 of deployment \"web\" is known to fail (CrashLoop: boom) and would be refused; to try it again: kubectl annotate deployments.proa.dev web --overwrite proa.dev/retry=<a new value>"
        );
    }

    #[test]
    fn one_revision_is_no_history_and_a_paused_deployment_stays() {
        assert!(matches!(choose(&deployment(false), &[set(1)], None), Err(RollbackError::NoHistory(_))));
        assert!(matches!(choose(&deployment(true), &[set(1), set(2)], None), Err(RollbackError::Paused(_))));
    }
}
