//! The scheduler: which node a pod runs on.
//!
//! Owns: the decision and the binding, through the API, and who must leave for whom (preemption). Never starts a pod and
//! never moves one. `cluster` is what is known, `plugins` are the rules, `decide` and `preempt` apply them, `queue` says
//! whose turn it is, and `core` holds them together: all of it pure. This file feeds them from the informers; `carry_out`
//! does what they say. Decisions are made one after the other on one view, in microseconds; bindings are written
//! concurrently behind them.

mod carry_out;
mod cluster;
mod config;
mod core;
mod decide;
mod framework;
mod plugins;
mod preempt;
mod profile;
mod queue;
mod refusals;
#[cfg(test)]
mod tests;
mod volumes;

pub(crate) use cluster::affinity;
pub use config::{ConfigError, Configuration};

use crate::{
    Context, Informer, Key,
    informer::Watched,
    replicaset::{Replicates, ReplicationController},
};
use cluster::{Budget, terms::Selector};
use core::Core;
use futures::future::BoxFuture;
use k8s_openapi::api::{
    core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim},
    policy::v1::PodDisruptionBudget,
    storage::v1::{CSINode, StorageClass},
};
use parking_lot::Mutex;
use proa_crds::{Family, Node, Pod};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};
use volumes::Volumes;

/// How many bindings are written at the same time.
const BINDINGS: usize = 128;

/// Starts the scheduler of that context's family.
pub fn start(context: &Context, configuration: &Configuration) {
    let storage = (context.family == Family::Standard)
        .then(|| Volumes { claims: context.informers.of(), volumes: context.informers.of() });
    let scheduler = Arc::new(Scheduler {
        pods: context.informers.of_resource(context.family.pod()),
        nodes: context.informers.of_resource(context.family.node()),
        volumes: storage,
        context: context.clone(),
        core: Mutex::new(Core::new(configuration)),
        changed: Notify::new(),
        origin: Instant::now(),
        bindings: Arc::new(Semaphore::new(BINDINGS)),
    });
    let synced = scheduler.wire();
    context.spawn(scheduler.run(synced));
}

struct Scheduler {
    context: Context,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    /// Custom pods have no persistent volumes.
    volumes: Option<Volumes>,
    core: Mutex<Core>,
    changed: Notify,
    origin: Instant,
    bindings: Arc<Semaphore>,
}

impl Scheduler {
    /// Feeds the core from the informers; what is returned must be in before the first decision.
    fn wire(self: &Arc<Self>) -> Vec<BoxFuture<'static, ()>> {
        let informers = &self.context.informers;
        let mut synced = vec![
            self.feed(&self.pods, |core, key, pod, now| core.pod_changed(key, pod, now)),
            self.feed(&self.nodes, |core, key, node, now| core.node_changed(&key.name, node.map(|n| &**n), now)),
            self.feed(&informers.of::<Namespace>(), |core, key, namespace, now| {
                let labels = namespace.map(|namespace| namespace.metadata.labels.clone().unwrap_or_default());
                core.namespace_changed(&key.name, labels, now);
            }),
        ];
        if let Some(Volumes { claims, volumes }) = &self.volumes {
            synced.push(self.feed(claims, |core, key, claim: Option<&Arc<PersistentVolumeClaim>>, now| {
                set(&mut core.cluster.storage.claims, key.clone(), claim);
                core.storage_changed(now);
            }));
            synced.push(self.feed(volumes, |core, key, volume: Option<&Arc<PersistentVolume>>, now| {
                match volume {
                    Some(volume) => core.cluster.storage.volumes.insert(key.name.to_string(), volume.clone()),
                    None => core.cluster.storage.volumes.remove(&*key.name),
                };
                core.storage_changed(now);
            }));
            synced.push(self.feed(&informers.of::<StorageClass>(), |core, key, class, now| {
                set(&mut core.cluster.storage.classes, key.name.to_string(), class);
                core.storage_changed(now);
            }));
            synced.push(self.feed(&informers.of::<CSINode>(), |core, key, node, now| {
                core.cluster.storage.node_limits_changed(&key.name, node.map(|node| &**node));
                core.storage_changed(now);
            }));
            self.wire_owners(&mut synced);
        }
        synced
    }

    /// Who makes, serves and protects pods.
    fn wire_owners(self: &Arc<Self>, synced: &mut Vec<BoxFuture<'static, ()>>) {
        let informers = &self.context.informers;
        synced.push(self.feed(&informers.of_resource(self.context.family.service()), |core, key, service, _| {
            let selector = service.and_then(|service: &Arc<proa_crds::Service>| service.spec.selector.clone());
            core.cluster.owners.service_changed(key, selector);
        }));
        synced.push(self.feed(&informers.of_resource(self.context.family.replica_set()), |core, key, set, _| {
            let selector = set.map(|set: &Arc<proa_crds::ReplicaSet>| Selector::of(Some(&set.spec.selector)));
            core.cluster.owners.controller_changed("ReplicaSet", key, selector);
        }));
        synced.push(self.feed(&informers.of_resource(self.context.family.stateful_set()), |core, key, set, _| {
            let selector = set.map(|set: &Arc<proa_crds::StatefulSet>| Selector::of(Some(&set.spec.selector)));
            core.cluster.owners.controller_changed("StatefulSet", key, selector);
        }));
        let controllers = informers.of_resource(ReplicationController::resource(self.context.family));
        synced.push(self.feed(&controllers, |core, key, controller: Option<&Arc<ReplicationController>>, _| {
            let selector = controller.and_then(|controller| controller.spec.0.selector.match_labels.as_ref());
            core.cluster.owners.controller_changed("ReplicationController", key, selector.map(Selector::labels));
        }));
        synced.push(self.feed(&informers.of::<PodDisruptionBudget>(), |core, key, budget, _| {
            let Some(budget) = budget else {
                core.cluster.budgets.remove(key);
                return;
            };
            let status = budget.status.as_ref();
            let disrupted = status.and_then(|status| status.disrupted_pods.as_ref());
            let known = Budget {
                selector: budget.spec.as_ref().and_then(|spec| spec.selector.clone()),
                allowed: status.and_then(|status| status.disruptions_allowed).map_or(0, i64::from),
                disrupted: disrupted.into_iter().flat_map(|pods| pods.keys().cloned()).collect(),
            };
            core.cluster.budgets.insert(key.clone(), known);
        }));
    }

    fn feed<K: Watched>(
        self: &Arc<Self>,
        informer: &Informer<K>,
        take_in: impl Fn(&mut Core, &Key, Option<&Arc<K>>, Duration) + Send + Sync + 'static,
    ) -> BoxFuture<'static, ()> {
        let this = self.clone();
        informer.on_change(move |change| {
            take_in(&mut this.core.lock(), &change.key, change.new.as_ref(), this.now());
            this.changed.notify_one();
        });
        let informer = informer.clone();
        Box::pin(async move { informer.synced().await })
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    async fn run(self: Arc<Self>, synced: Vec<BoxFuture<'static, ()>>) {
        // Placing pods without knowing what runs already would overcommit nodes.
        tokio::select! {
            biased;
            () = self.context.shutdown.cancelled() => return,
            _ = futures::future::join_all(synced) => {}
        }
        while !self.context.shutdown.is_cancelled() {
            let (step, wakes_at) = {
                let mut core = self.core.lock();
                (core.next(self.now()), core.wakes_at())
            };
            if let Some(step) = step {
                tokio::spawn(self.clone().carry_out(step));
                tokio::task::yield_now().await;
                continue;
            }
            let pause = async {
                match wakes_at {
                    Some(at) => tokio::time::sleep_until(self.origin + at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.context.shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                () = pause => {}
            }
        }
    }
}

fn set<K: std::hash::Hash + Eq, V>(map: &mut std::collections::HashMap<K, Arc<V>>, key: K, value: Option<&Arc<V>>) {
    match value {
        Some(value) => map.insert(key, value.clone()),
        None => map.remove(&key),
    };
}
