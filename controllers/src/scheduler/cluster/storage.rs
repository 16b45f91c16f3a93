//! What the scheduler knows of persistent storage: claims, volumes, classes, and what it has decided about them. Pure.

use super::{
    affinity::{Labels, selects_node},
    node::NodeInfo,
    pod::{PodInfo, VolumeClaim},
    terms::Selector,
};
use crate::Key;
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm},
    storage::v1::{CSINode, StorageClass},
};
use proa_apimachinery::quantity::Quantity;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// On a claim: the node its pod was decided for, written by the scheduler for the provisioner.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// What is to be written before a pod with claims is bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct VolumePlan {
    /// Volumes to reserve for claims.
    pub(crate) bind: Vec<(String, Key)>,
    /// Claims a volume is to be made for.
    pub(crate) provision: Vec<Key>,
    /// Claims that must be bound before the pod is.
    pub(crate) all: Vec<Key>,
}

impl VolumePlan {
    pub(crate) fn is_empty(&self) -> bool {
        self.bind.is_empty() && self.provision.is_empty()
    }
}

/// How far a claim of a pod is.
#[derive(Clone, Debug)]
pub(crate) enum State<'a> {
    /// It has its volume.
    Bound(&'a str),
    /// It waits for a pod to be placed.
    Waiting(&'a PersistentVolumeClaim, &'a StorageClass),
    /// It gets its volume without us.
    Immediate,
    /// The pod cannot be placed, and why.
    Bad(String),
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Storage {
    pub(crate) claims: HashMap<Key, Arc<PersistentVolumeClaim>>,
    pub(crate) volumes: BTreeMap<String, Arc<PersistentVolume>>,
    pub(crate) classes: HashMap<String, Arc<StorageClass>>,
    /// How many volumes of each driver a node takes.
    pub(crate) limits: HashMap<String, BTreeMap<String, i64>>,
    /// Volumes decided for claims, until the objects say so themselves.
    reserved: HashMap<String, Key>,
    /// Claims that one pod alone may use, and by how many pods on nodes they are used.
    used: HashMap<Key, u32>,
}

impl Storage {
    pub(crate) fn node_limits_changed(&mut self, name: &str, node: Option<&CSINode>) {
        let Some(node) = node else {
            self.limits.remove(name);
            return;
        };
        let drivers = node.spec.drivers.iter();
        let counted =
            drivers.filter_map(|driver| Some((driver.name.clone(), i64::from(driver.allocatable.as_ref()?.count?))));
        self.limits.insert(name.to_owned(), counted.collect());
    }

    pub(crate) fn reserve(&mut self, plan: &VolumePlan) {
        self.reserved.extend(plan.bind.iter().cloned());
    }

    pub(crate) fn release(&mut self, plan: &VolumePlan) {
        for (volume, claim) in &plan.bind {
            if self.reserved.get(volume) == Some(claim) {
                self.reserved.remove(volume);
            }
        }
    }

    /// A pod came to a node (`by` is 1) or left it.
    pub(crate) fn moved(&mut self, pod: &PodInfo, by: i64) {
        for claim in &pod.claims {
            let count = self.used.entry(claim.key.clone()).or_default();
            *count = if by > 0 { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                self.used.remove(&claim.key);
            }
        }
    }

    pub(crate) fn users(&self, claim: &Key) -> u32 {
        self.used.get(claim).copied().unwrap_or(0)
    }

    pub(crate) fn is_exclusive(&self, claim: &Key) -> bool {
        let claim = self.claims.get(claim);
        let modes = claim.and_then(|claim| claim.spec.as_ref()?.access_modes.as_ref());
        modes.is_some_and(|modes| modes.iter().any(|mode| mode == "ReadWriteOncePod"))
    }

    /// How far a claim is; the texts are Kubernetes'.
    pub(crate) fn state(&self, pod: &PodInfo, wanted: &VolumeClaim) -> State<'_> {
        let name = &wanted.key.name;
        let Some(claim) = self.claims.get(&wanted.key) else {
            return State::Bad(match wanted.ephemeral {
                true => {
                    format!("waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\"")
                }
                false => format!("persistentvolumeclaim \"{name}\" not found"),
            });
        };
        let owned = || claim.metadata.owner_references.iter().flatten().any(|owner| Some(&owner.uid) == pod.uid());
        if wanted.ephemeral && !owned() {
            let (pod, key) = (&pod.key, &wanted.key);
            return State::Bad(format!("PVC {key} was not created for pod {pod} (pod is not owner)"));
        }
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let spec = claim.spec.as_ref();
        let volume = spec.and_then(|spec| spec.volume_name.as_deref()).filter(|volume| !volume.is_empty());
        if phase == "Lost" {
            let volume = volume.unwrap_or_default();
            return State::Bad(format!(
                "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
            ));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return State::Bad(format!("persistentvolumeclaim \"{name}\" is being deleted"));
        }
        if let Some(volume) = volume {
            let completed =
                claim.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(BIND_COMPLETED));
            return if completed || phase == "Bound" { State::Bound(volume) } else { State::Immediate };
        }
        let class = spec.and_then(|spec| spec.storage_class_name.as_ref()).and_then(|name| self.classes.get(name));
        match class {
            Some(class) if class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer") => {
                State::Waiting(claim, class)
            }
            _ => State::Immediate,
        }
    }

    /// What would be written if the pod went to this node; `None` when its claims can have no volumes there.
    pub(crate) fn plan(&self, pod: &PodInfo, node: &NodeInfo) -> Option<VolumePlan> {
        let mut plan =
            VolumePlan { all: pod.claims.iter().map(|claim| claim.key.clone()).collect(), ..Default::default() };
        let mut taken = BTreeSet::new();
        for wanted in &pod.claims {
            let State::Waiting(claim, class) = self.state(pod, wanted) else { continue };
            let selected = claim.metadata.annotations.as_ref().and_then(|annotations| annotations.get(SELECTED_NODE));
            if selected.is_some_and(|selected| **selected != *node.name) {
                return None;
            }
            let found = if selected.is_some() { None } else { self.smallest(&wanted.key, claim, node, &taken) };
            if let Some(volume) = found {
                taken.insert(volume);
                plan.bind.push((volume.to_owned(), wanted.key.clone()));
            } else if class.provisioner != NO_PROVISIONER && allowed(class.allowed_topologies.as_deref(), &node.labels)
            {
                plan.provision.push(wanted.key.clone());
            } else {
                return None;
            }
        }
        Some(plan)
    }

    /// The smallest free volume that will do.
    fn smallest<'a>(
        &'a self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        node: &NodeInfo,
        taken: &BTreeSet<&str>,
    ) -> Option<&'a str> {
        let spec = claim.spec.as_ref()?;
        let asked = spec.resources.as_ref().and_then(|r| r.requests.as_ref()).and_then(|list| list.get("storage"));
        let asked = asked.and_then(|quantity| Quantity::parse(&quantity.0).ok()).map_or(0, |q| q.as_int_ceil());
        let selector = spec.selector.as_ref().map(|selector| Selector::of(Some(selector)));
        let mode = |mode: Option<&str>| mode.unwrap_or("Filesystem") == "Filesystem";
        let fits = |volume: &'a Arc<PersistentVolume>| -> Option<(i64, &'a str)> {
            let name = volume.metadata.name.as_deref()?;
            let held = volume.spec.as_ref()?;
            let free = match (&held.claim_ref, self.reserved.get(name)) {
                (_, Some(other)) => other == key,
                (None, None) => volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available"),
                (Some(claim_ref), None) => {
                    claim_ref.namespace.as_deref() == Some(&*key.namespace)
                        && claim_ref.name.as_deref() == Some(&*key.name)
                        && claim_ref.uid.as_ref().is_none_or(|uid| Some(uid) == claim.metadata.uid.as_ref())
                }
            };
            let size = held.capacity.as_ref()?.get("storage").and_then(|q| Quantity::parse(&q.0).ok())?.as_int_ceil();
            let modes = held.access_modes.as_deref().unwrap_or_default();
            let will_do = free
                && !taken.contains(name)
                && volume.metadata.deletion_timestamp.is_none()
                && size >= asked
                && held.storage_class_name.as_deref().unwrap_or("") == spec.storage_class_name.as_deref().unwrap_or("")
                && mode(held.volume_mode.as_deref()) == mode(spec.volume_mode.as_deref())
                && spec.access_modes.iter().flatten().all(|mode| modes.contains(mode))
                && selector
                    .as_ref()
                    .is_none_or(|selector| selector.matches(volume.metadata.labels.as_ref().unwrap_or(&Labels::new())))
                && reaches(volume, node);
            will_do.then_some((size, name))
        };
        self.volumes.values().filter_map(fits).min().map(|(_, name)| name)
    }
}

/// Whether the volume can be used on the node (`spec.nodeAffinity`).
pub(crate) fn reaches(volume: &PersistentVolume, node: &NodeInfo) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    affinity.is_none_or(|required| selects_node(required, &node.name, &node.labels))
}

fn allowed(terms: Option<&[TopologySelectorTerm]>, labels: &Labels) -> bool {
    let terms = terms.unwrap_or_default();
    let holds = |term: &TopologySelectorTerm| {
        let mut requirements = term.match_label_expressions.iter().flatten();
        requirements
            .all(|requirement| labels.get(&requirement.key).is_some_and(|held| requirement.values.contains(held)))
    };
    terms.is_empty() || terms.iter().any(holds)
}
