//! PodDisruptionBudgets: how many pods may be evicted right now.
//!
//! Owns: the status of every budget, which the eviction subresource of the API server grants from, and announcements of
//! disruptions that never came ([`StaleDisruptions`]). Never evicts anything.

mod plan;
mod stale;
#[cfg(test)]
mod tests;

pub use plan::{ASK_AGAIN, Action, DELETION_TIMEOUT, Seen, Size, plan};
pub use stale::StaleDisruptions;

use crate::{
    ActError, Clock, Context, Informer, Key, Loop, Plan, Queue, Writes,
    catalogue::Catalogue,
    events::{Kind, Note},
    owners,
    patch::{json, merge_diff, params},
    scale::{Scales, Target},
    selector,
};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::api::Patch;
use parking_lot::Mutex;
use proa_crds::{Deployment, Pod, ReplicaSet};
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

const COMPONENT: &str = "controllermanager";
/// How long the size of an owner that nobody watches is believed.
const BELIEVED: SignedDuration = SignedDuration::from_secs(30);

/// The disruption loop.
pub struct Disruptions {
    context: Context,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
    scales: Scales,
    asked: Arc<Asked>,
}

/// What owners other than ReplicaSets and Deployments answered, and when; by uid.
#[derive(Default)]
struct Asked(Mutex<HashMap<String, (Size, Timestamp)>>);

impl Asked {
    fn size(&self, uid: &str, clock: &Clock) -> Size {
        let mut asked = self.0.lock();
        let now = clock.now();
        asked.retain(|_, (size, at)| {
            let limit = if matches!(size, Size::Unknown(_)) { SignedDuration::from_secs(9) } else { BELIEVED };
            now.duration_since(*at) < limit
        });
        asked.get(uid).map_or(Size::NotAsked, |(size, _)| size.clone())
    }
}

impl Disruptions {
    /// The loop of that context; owners' kinds are looked up in the catalogue.
    pub fn new(context: &Context, catalogue: &Catalogue) -> Self {
        Disruptions {
            budgets: context.informers.of(),
            pods: context.informers.of_resource(context.family.pod()),
            sets: context.informers.of_resource(context.family.replica_set()),
            deployments: context.informers.of_resource(context.family.deployment()),
            scales: Scales::new(catalogue),
            asked: Arc::default(),
            context: context.clone(),
        }
    }

    /// What scales a pod that `owner` controls: a ReplicaSet's Deployment rather than the set itself.
    fn scaler(&self, namespace: &str, owner: &OwnerReference) -> (OwnerReference, Size) {
        let is = |owner: &OwnerReference, kind: &str| owner.kind == kind && owner.api_version.starts_with("apps/");
        if is(owner, "ReplicaSet")
            && let Some(set) = self.sets.get(&Key::new(namespace, &owner.name))
            && set.metadata.uid.as_deref() == Some(&owner.uid)
        {
            return match owners::controller_of(&set.metadata) {
                Some(above) if is(above, "Deployment") => {
                    let deployment = self.deployments.get(&Key::new(namespace, &above.name));
                    let deployment = deployment.filter(|held| held.metadata.uid.as_deref() == Some(&above.uid));
                    let size = deployment.map_or_else(
                        || self.asked.size(&above.uid, &self.context.clock),
                        |held| Size::Wanted(held.spec.replicas.unwrap_or(1)),
                    );
                    (above.clone(), size)
                }
                _ => (owner.clone(), Size::Wanted(set.spec.replicas.unwrap_or(1))),
            };
        }
        (owner.clone(), self.asked.size(&owner.uid, &self.context.clock))
    }

    fn note(&self, budget: &PodDisruptionBudget, note: Note) {
        self.context.recorder.note(COMPONENT, &self.budgets.resource(), budget, note);
    }

    async fn ask(&self, namespace: &str, owner: OwnerReference) {
        let OwnerReference { api_version, kind, name, uid, .. } = owner;
        let target = Target { api_version, kind, namespace: namespace.to_owned(), name };
        let size = match self.scales.get(&target).await {
            Ok(scale) => Size::Wanted(scale.wanted),
            Err(error) => Size::Unknown(format!("{} {}: {error}", target.kind, target.name)),
        };
        self.asked.0.lock().insert(uid, (size, self.context.clock.now()));
    }

    async fn write(&self, key: &Key, status: &PodDisruptionBudgetStatus, writes: &Writes) -> Result<(), ActError> {
        let budget = self.budgets.get(key).ok_or_else(|| ActError::Gone(key.to_string()))?;
        let held = budget.status.as_ref().map_or_else(|| json!({}), json);
        let change = merge_diff(&held, &json(status)).unwrap_or_else(|| json!({}));
        // An eviction that was granted meanwhile must not be overwritten: on what was read, or not at all.
        let patch = json!({"metadata": {"resourceVersion": budget.metadata.resource_version}, "status": change});
        let written =
            self.budgets.api(&key.namespace).patch_status(&key.name, &params(), &Patch::Merge(&patch)).await?;
        writes.wrote(&self.budgets, &written);
        Ok(())
    }
}

/// Whether the budget is about pods with the labels of this one. Without a selector it is about none.
fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selector::matches(selector, pod.metadata.labels.as_ref()))
}

impl Loop for Disruptions {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "disruption"
    }

    fn wire(&self, queue: &Queue) {
        let to = queue.clone();
        self.budgets.on_change(move |change| to.add(change.key.clone()));
        let (to, budgets, asked) = (queue.clone(), self.budgets.clone(), self.asked.clone());
        self.pods.on_change(move |change| {
            if change.old.is_none() || change.new.is_none() {
                // Its owner has been resized, as likely as not.
                let owner = change.latest().and_then(|pod| owners::controller_of(&pod.metadata));
                owner.and_then(|owner| asked.0.lock().remove(&owner.uid));
            }
            for budget in budgets.in_namespace(&change.key.namespace) {
                if change.states().any(|pod| selects(&budget, pod)) {
                    to.add(Key::of(budget.as_ref()));
                }
            }
        });
        let wake = |to: &Queue, budgets: &Informer<PodDisruptionBudget>, namespace: &str| {
            budgets.in_namespace(namespace).iter().for_each(|budget| to.add(Key::of(budget.as_ref())));
        };
        let (to, budgets) = (queue.clone(), self.budgets.clone());
        self.deployments.on_change(move |change| {
            let [old, new] = [&change.old, &change.new].map(|state| state.as_ref().and_then(|d| d.spec.replicas));
            if old != new {
                wake(&to, &budgets, &change.key.namespace);
            }
        });
        let (to, budgets) = (queue.clone(), self.budgets.clone());
        self.sets.on_change(move |change| {
            let [old, new] = [&change.old, &change.new].map(|state| state.as_ref().and_then(|set| set.spec.replicas));
            if old != new {
                wake(&to, &budgets, &change.key.namespace);
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            tokio::join!(
                self.budgets.synced(),
                self.pods.synced(),
                self.sets.synced(),
                self.deployments.synced(),
                self.scales.ready()
            );
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let budget = self.budgets.get(key)?;
        let mut seen = Seen { budget, pods: Vec::new(), owners: BTreeMap::new() };
        for pod in self.pods.in_namespace(&key.namespace) {
            if !selects(&seen.budget, &pod) {
                continue;
            }
            let owner = owners::controller_of(&pod.metadata).map(|owner| {
                let (scaler, size) = self.scaler(&key.namespace, owner);
                let uid = scaler.uid.clone();
                seen.owners.entry(uid.clone()).or_insert((scaler, size));
                uid
            });
            seen.pods.push((pod, owner));
        }
        Some(seen)
    }

    fn plan(&self, seen: &Seen, now: Timestamp) -> Plan<Action> {
        plan(seen, now)
    }

    async fn act(&self, key: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        match action {
            Action::Ask(owners) => {
                futures::future::join_all(owners.into_iter().map(|owner| self.ask(&key.namespace, owner))).await;
            }
            Action::Status(status, notes) => {
                self.write(key, &status, writes).await?;
                if let Some(budget) = self.budgets.get(key) {
                    notes.into_iter().for_each(|note| self.note(&budget, note));
                }
            }
            Action::NotDeleted(pod) => {
                let message = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
                let note = Note { kind: Kind::Warning, reason: "NotDeleted", message };
                self.context.recorder.note(COMPONENT, self.pods.dynamic_type(), pod.as_ref(), note);
            }
        }
        Ok(())
    }
}
