//! What a loop sees besides its own objects: policies, configuration, nodes, registries, answers of checks; and the writes of
//! kept configuration. The same for every kind.

use super::{
    checks::{Answers, Proxies, Standing},
    config::{Live, Reference, copy_of, references},
    marks::note,
    policy::effective,
    surroundings::{Surroundings, is_well, unreachable_registries},
};
use crate::{
    ActError, Change, Clock, Context, Informer, Key, Queue, Writes,
    informer::{Watched, is_stripped, revision_in},
    owners,
    patch::{MANAGER, params},
    pods,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::{
    Resource, ResourceExt,
    api::{DeleteParams, Patch, PostParams, Preconditions},
    core::ObjectMeta,
};
use parking_lot::Mutex;
use proa_crds::{Node, Pod, RolloutPolicy, RolloutPolicySpec, annotations, policy::WorkloadKind, rollout_policies};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

const BY_CONFIG: &str = "config";
const BY_REGISTRY: &str = "unreachable-registry";
const BY_REVISION: &str = "kept-for";

/// A change of content.
#[derive(Clone, Copy, Debug)]
struct Changed {
    /// When it was seen.
    at: Timestamp,
    /// The resource version it came in.
    version: Option<u64>,
}

/// The informers a judgement needs.
pub(crate) struct Sight {
    kind: WorkloadKind,
    policies: Informer<RolloutPolicy>,
    namespaces: Informer<Namespace>,
    config_maps: Informer<ConfigMap>,
    secrets: Informer<Secret>,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    clock: Clock,
    /// How checks stand.
    pub(crate) answers: Answers,
    /// Where they are asked.
    pub(crate) proxies: Proxies,
    /// When the content of an object that is there was seen to change, by namespace.
    changed: Arc<Mutex<HashMap<(String, Reference), Changed>>>,
    /// The last resource version in which a pod that reads configuration was seen to wait for a node, by uid.
    waited: Arc<Mutex<HashMap<String, u64>>>,
    /// Since when changes of content are seen.
    since: Timestamp,
}

impl Sight {
    /// For the loop of that kind.
    pub(crate) fn new(context: &Context, kind: WorkloadKind) -> Self {
        let policies = context.informers.of_resource::<RolloutPolicy>(rollout_policies());
        // Another API server need not know the kind.
        policies.may_be_unknown();
        Sight {
            kind,
            policies,
            namespaces: context.informers.of(),
            // A cluster has many that no template refers to.
            config_maps: context
                .informers
                .on_demand(|map: &mut ConfigMap| (map.data, map.binary_data) = (None, None), |_: &ConfigMap| false),
            secrets: context.informers.on_demand(
                |secret: &mut Secret| secret.data = None,
                |secret: &Secret| secret.type_.as_deref() == Some(annotations::CONFIG_REVISION_SECRET_TYPE),
            ),
            nodes: context.informers.of_resource(context.family.node()),
            pods: context.informers.of_resource(context.family.pod()),
            clock: context.clock.clone(),
            answers: Answers::default(),
            proxies: Proxies::new(context.client.clone(), context.family),
            changed: Arc::default(),
            waited: Arc::default(),
            since: context.clock.now(),
        }
    }

    /// Wakes the workloads that a change of what is seen here concerns; `read` tells what a workload's template refers to.
    pub(crate) fn wire<K: Watched>(
        &self,
        queue: &Queue,
        workloads: &Informer<K>,
        read: impl Fn(&K) -> BTreeSet<Reference> + Send + Sync + 'static,
    ) {
        workloads.add_index(BY_CONFIG, move |workload| {
            let namespace = workload.meta().namespace.as_deref().unwrap_or_default();
            read(workload).iter().map(|reference| config_index(namespace, reference)).collect()
        });
        self.pods.add_index(BY_REGISTRY, unreachable_registries);
        self.secrets.add_index(BY_REVISION, |secret| {
            let kept = secret.type_.as_deref() == Some(annotations::CONFIG_REVISION_SECRET_TYPE);
            let owners = secret.metadata.owner_references.iter().flatten().filter(|_| kept);
            owners.map(|owner| owner.uid.clone()).collect()
        });
        let (to, all) = (queue.clone(), workloads.clone());
        self.namespaces.on_change(move |change| {
            let wish = |namespace: &Option<Arc<Namespace>>| {
                namespace.as_ref().and_then(|namespace| namespace.annotations().get(annotations::ROLLBACK).cloned())
            };
            if wish(&change.old) != wish(&change.new) {
                wake_all(&to, &all, &change.key.name);
            }
        });
        let (to, all) = (queue.clone(), workloads.clone());
        self.policies.on_change(move |change| {
            let spec = |policy: &Option<Arc<RolloutPolicy>>| policy.as_ref().map(|policy| policy.spec.clone());
            if spec(&change.old) != spec(&change.new) {
                wake_all(&to, &all, &change.key.namespace);
            }
        });
        let waited = self.waited.clone();
        self.pods.on_change(move |change| {
            let uid = |pod: &Arc<Pod>| pod.metadata.uid.clone().unwrap_or_default();
            match (&change.old, &change.new) {
                (Some(old), None) => drop(waited.lock().remove(&uid(old))),
                (_, Some(new)) if pods::node(new).is_none() && !references(&new.spec).is_empty() => {
                    if let Some(version) = revision_in(&new.metadata) {
                        waited.lock().insert(uid(new), version);
                    }
                }
                _ => {}
            }
        });
        self.route_config(queue, workloads, &self.config_maps, Reference::ConfigMap, |a, b| {
            a.data == b.data && a.binary_data == b.binary_data
        });
        self.route_config(queue, workloads, &self.secrets, Reference::Secret, |a, b| a.data == b.data);
    }

    /// Wakes the workloads that read a ConfigMap or Secret whose content changed, and remembers when it did.
    fn route_config<K: Watched, C: Watched>(
        &self,
        queue: &Queue,
        workloads: &Informer<K>,
        informer: &Informer<C>,
        reference: fn(String) -> Reference,
        same: fn(&C, &C) -> bool,
    ) {
        let (to, workloads, changed, clock, since) =
            (queue.clone(), workloads.clone(), self.changed.clone(), self.clock.clone(), self.since);
        informer.on_change(move |change: &Change<C>| {
            if let (Some(old), Some(new)) = (&change.old, &change.new)
                && (old.meta().resource_version == new.meta().resource_version || same(old, new))
            {
                return;
            }
            let reference = reference(change.key.name.to_string());
            let id = (change.key.namespace.to_string(), reference.clone());
            match &change.new {
                None => drop(changed.lock().remove(&id)),
                // What was there before us and is listed for the first time has not changed.
                Some(new) if change.old.is_some() || is_made_since(new.as_ref(), since) => {
                    changed.lock().insert(id, Changed { at: clock.now(), version: revision_in(new.meta()) });
                }
                Some(_) => {}
            }
            for workload in workloads.by_index(BY_CONFIG, &config_index(&change.key.namespace, &reference)) {
                to.add(Key::of(workload.as_ref()));
            }
        });
    }

    /// Waits for the first lists.
    pub(crate) async fn synced(&self) {
        self.policies.synced().await;
        self.namespaces.synced().await;
        self.config_maps.synced().await;
        self.secrets.synced().await;
        self.nodes.synced().await;
    }

    /// The policy that holds for an object.
    pub(crate) fn policy(&self, object: &ObjectMeta) -> Option<RolloutPolicySpec> {
        let namespace = object.namespace.as_deref().unwrap_or_default();
        let held = self.namespaces.get(&Key::new("", namespace));
        let wish = held.as_ref().and_then(|held| note(&held.metadata, annotations::ROLLBACK));
        effective(self.kind, object, &self.policies.in_namespace(namespace), wish)
    }

    /// What these references hold now, the copies kept with these revisions, and what is known of when these pods read them.
    pub(crate) fn live<'a>(
        &self,
        namespace: &str,
        wanted: BTreeSet<Reference>,
        revisions: impl Iterator<Item = &'a ObjectMeta>,
        pods: &[Arc<Pod>],
    ) -> Live {
        let mut live = Live { since: self.since, ..Live::default() };
        let waited = self.waited.lock();
        let of_pod = |pod: &Arc<Pod>| {
            let uid = pod.metadata.uid.clone()?;
            let version = *waited.get(&uid)?;
            Some((uid, version))
        };
        live.waited_in = pods.iter().filter_map(of_pod).collect();
        drop(waited);
        let changed = self.changed.lock();
        for reference in wanted {
            let (Reference::ConfigMap(name) | Reference::Secret(name)) = &reference;
            let key = Key::new(namespace, name);
            let stripped = match &reference {
                Reference::ConfigMap(name) => {
                    self.config_maps.want(&key);
                    let held = self.config_maps.get(&key);
                    let stripped = held.as_ref().is_some_and(|map| is_stripped(&map.metadata));
                    live.config_maps.extend(held.map(|map| (name.clone(), map)));
                    stripped
                }
                Reference::Secret(name) => {
                    self.secrets.want(&key);
                    let held = self.secrets.get(&key);
                    let stripped = held.as_ref().is_some_and(|secret| is_stripped(&secret.metadata));
                    live.secrets.extend(held.map(|secret| (name.clone(), secret)));
                    stripped
                }
            };
            if stripped {
                live.unknown.insert(reference.clone());
            }
            if let Some(Changed { at, version }) = changed.get(&(namespace.to_owned(), reference.clone())) {
                live.changed_in.extend(version.map(|version| (reference.clone(), version)));
                live.changed.insert(reference, *at);
            }
        }
        drop(changed);
        for revision in revisions {
            let named = self.secrets.get(&Key::new(namespace, &copy_of(revision)));
            let owned = self.secrets.by_index(BY_REVISION, revision.uid.as_deref().unwrap_or_default());
            live.secrets.extend(named.into_iter().chain(owned).map(|secret| (secret.name_any(), secret)));
        }
        live
    }

    /// Reads what is there and was left out so far.
    pub(crate) async fn read(&self, key: &Key, unknown: &BTreeSet<Reference>) -> Result<(), ActError> {
        for reference in unknown {
            let (Reference::ConfigMap(name) | Reference::Secret(name)) = reference;
            let of = Key::new(&key.namespace, name);
            match reference {
                Reference::ConfigMap(_) => self.config_maps.refresh(&of).await?,
                Reference::Secret(_) => self.secrets.refresh(&of).await?,
            }
        }
        Ok(())
    }

    /// What is wrong with the cluster around these pods of one object.
    pub(crate) fn around(&self, mine: &[Arc<Pod>]) -> Surroundings {
        let unwell = |name: &&str| self.nodes.get(&Key::new("", name)).is_none_or(|node| !is_well(&node));
        let unwell_nodes = mine.iter().filter_map(|pod| pods::node(pod)).filter(unwell).map(str::to_owned).collect();
        let waits = mine.iter().any(|pod| pods::node(pod).is_none() && pods::is_active(pod));
        let missing_node =
            waits.then(|| self.nodes.list().iter().find(|node| !is_well(node)).map(|node| node.name_any()));
        let registries: BTreeSet<String> = mine.iter().flat_map(|pod| unreachable_registries(pod)).collect();
        let another = |registry: String| {
            let others = self.pods.by_index(BY_REGISTRY, &registry);
            let other = others.iter().find(|pod| !mine.iter().any(|own| own.metadata.uid == pod.metadata.uid))?;
            Some((registry, other.name_any()))
        };
        let unreachable = registries.into_iter().filter_map(another).collect();
        Surroundings { unwell_nodes, missing_node: missing_node.flatten(), unreachable }
    }

    /// How the checks of these revisions stand, by uid.
    pub(crate) fn checks<'a>(
        &self,
        revisions: impl Iterator<Item = &'a ObjectMeta>,
    ) -> BTreeMap<String, BTreeMap<String, Standing>> {
        let uids = revisions.filter_map(|revision| revision.uid.clone());
        uids.map(|uid| (uid.clone(), self.answers.of(&uid))).filter(|(_, standing)| !standing.is_empty()).collect()
    }

    /// Sees that a kept configuration is there and that its revision is among its owners.
    pub(crate) async fn keep_config(&self, key: &Key, secret: &Secret, writes: &Writes) -> Result<(), ActError> {
        let api = self.secrets.api(&key.namespace);
        let name = secret.name_any();
        let wanted = secret.metadata.owner_references.iter().flatten();
        let written = match self.secrets.get(&Key::new(&key.namespace, &name)) {
            Some(held) if held.type_ != secret.type_ => {
                return Err(ActError::Refused(format!("the secret {name} is not a kept configuration")));
            }
            Some(held) => {
                let mut all: Vec<_> = held.metadata.owner_references.clone().unwrap_or_default();
                let before = all.len();
                for owner in wanted {
                    if !all.iter().any(|held| held.uid == owner.uid) {
                        all.push(owner.clone());
                    }
                }
                if all.len() == before {
                    return Ok(());
                }
                let patch = json!({"metadata": {"ownerReferences": all, "uid": held.metadata.uid, "resourceVersion": held.metadata.resource_version}});
                api.patch(&name, &params(), &Patch::Merge(&patch)).await?
            }
            None => api.create(&PostParams { field_manager: Some(MANAGER.to_owned()), dry_run: false }, secret).await?,
        };
        writes.wrote(&self.secrets, &written);
        Ok(())
    }

    /// Takes a revision out of the owners of a kept configuration; the last one takes it along.
    pub(crate) async fn drop_config(
        &self,
        key: &Key,
        secret: &Secret,
        owner: &str,
        writes: &Writes,
    ) -> Result<(), ActError> {
        let api = self.secrets.api(&key.namespace);
        let name = secret.name_any();
        let (uid, version) = (secret.metadata.uid.clone(), secret.metadata.resource_version.clone());
        let left = owners::owners_without(&secret.metadata, owner);
        if left.is_empty() {
            let deletion = DeleteParams {
                preconditions: Some(Preconditions { uid: uid.clone(), resource_version: version }),
                ..DeleteParams::default()
            };
            match api.delete(&name, &deletion).await.map_err(ActError::from) {
                Ok(_) | Err(ActError::Gone(_)) => {}
                Err(error) => return Err(error),
            }
            writes.deleted(&self.secrets, &Key::new(&key.namespace, &name), uid.as_deref().unwrap_or_default());
            return Ok(());
        }
        let patch = json!({"metadata": {"ownerReferences": left, "uid": uid, "resourceVersion": version}});
        let written = api.patch(&name, &params(), &Patch::Merge(&patch)).await?;
        writes.wrote(&self.secrets, &written);
        Ok(())
    }
}

fn wake_all<K: Watched>(queue: &Queue, workloads: &Informer<K>, namespace: &str) {
    for workload in workloads.in_namespace(namespace) {
        queue.add(Key::of(workload.as_ref()));
    }
}

/// Whether the object was made after that time. Times on the wire are whole seconds, rounded down.
fn is_made_since<K: Resource>(object: &K, since: Timestamp) -> bool {
    object.meta().creation_timestamp.as_ref().is_some_and(|made| made.0.as_second() >= since.as_second())
}

fn config_index(namespace: &str, reference: &Reference) -> String {
    format!("{namespace}/{reference}")
}
