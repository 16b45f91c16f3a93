//! What the scheduler knows of a pod: read from its object once. Pure.

use super::{
    affinity::Labels,
    resources::{Requests, requests},
    terms::{Constraint, Term},
};
use crate::{Key, owners::controller_of};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PodSpec, Toleration, WeightedPodAffinityTerm};
use proa_crds::{HostPort, Pod};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// What a pod takes of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    pub(crate) requests: Requests,
    pub(crate) ports: Vec<HostPort>,
}

impl Claim {
    pub(crate) fn of(spec: &PodSpec) -> Claim {
        Claim { requests: requests(spec), ports: HostPort::all(spec) }
    }
}

/// What a pod wants of other pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Company {
    /// Required affinity.
    pub(crate) near: Vec<Arc<Term>>,
    /// Required anti-affinity.
    pub(crate) apart: Vec<Arc<Term>>,
    /// Preferred affinity (weights above zero) and anti-affinity (below).
    pub(crate) preferred: Vec<(i64, Arc<Term>)>,
    pub(crate) spread: Vec<Constraint>,
}

impl Company {
    fn of(spec: &PodSpec, namespace: &str, labels: &Labels) -> Company {
        let mut company = Company::default();
        let term = |term| Arc::new(Term::of(term, namespace, labels));
        let weighted = |sign: i64| {
            move |preferred: &WeightedPodAffinityTerm| {
                let weight = sign * i64::from(preferred.weight);
                (weight, Arc::new(Term::of(&preferred.pod_affinity_term, namespace, labels)))
            }
        };
        if let Some(affinity) = spec.affinity.as_ref().and_then(|affinity| affinity.pod_affinity.as_ref()) {
            let required = affinity.required_during_scheduling_ignored_during_execution.iter().flatten();
            company.near.extend(required.map(term));
            let preferred = affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten();
            company.preferred.extend(preferred.map(weighted(1)));
        }
        if let Some(affinity) = spec.affinity.as_ref().and_then(|affinity| affinity.pod_anti_affinity.as_ref()) {
            let required = affinity.required_during_scheduling_ignored_during_execution.iter().flatten();
            company.apart.extend(required.map(term));
            let preferred = affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten();
            company.preferred.extend(preferred.map(weighted(-1)));
        }
        let constraints = spec.topology_spread_constraints.iter().flatten();
        company.spread = constraints.map(|constraint| Constraint::of(constraint, labels)).collect();
        company
    }
}

/// A pod, with what matters read once.
#[derive(Clone, Debug)]
pub(crate) struct PodInfo {
    /// The pod as last seen.
    pub(crate) pod: Arc<Pod>,
    pub(crate) key: Key,
    pub(crate) priority: i32,
    pub(crate) labels: Arc<Labels>,
    pub(crate) claim: Claim,
    pub(crate) company: Company,
    /// Keys of the claims its volumes name, with the volume they come from if the pod brings the claim along
    /// (generic ephemeral volumes, KEP-1698).
    pub(crate) claims: Vec<VolumeClaim>,
    /// It is on its way out.
    pub(crate) leaving: bool,
}

/// A persistent volume claim of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeClaim {
    pub(crate) key: Key,
    /// Made for this pod alone, and owned by it.
    pub(crate) ephemeral: bool,
}

impl PodInfo {
    /// Reads what matters once.
    pub(crate) fn of(pod: Arc<Pod>) -> PodInfo {
        let (key, labels) = (Key::of(pod.as_ref()), pod.metadata.labels.clone().unwrap_or_default());
        let claims = pod.spec.volumes.iter().flatten().filter_map(|volume| {
            if let Some(source) = &volume.persistent_volume_claim {
                return Some(VolumeClaim { key: Key::new(&key.namespace, &source.claim_name), ephemeral: false });
            }
            let name = format!("{}-{}", key.name, volume.name);
            volume.ephemeral.as_ref().map(|_| VolumeClaim { key: Key::new(&key.namespace, &name), ephemeral: true })
        });
        PodInfo {
            claims: claims.collect(),
            priority: pod.spec.priority.unwrap_or(0),
            claim: Claim::of(&pod.spec),
            company: Company::of(&pod.spec, &key.namespace, &labels),
            leaving: pod.metadata.deletion_timestamp.is_some(),
            labels: Arc::new(labels),
            key,
            pod,
        }
    }

    /// The same pod as it is now. What follows from a spec and labels that are still the same is not read again.
    pub(crate) fn now(&self, pod: &Arc<Pod>) -> PodInfo {
        let (old, new) = (&self.pod.metadata, &pod.metadata);
        let same = old.uid == new.uid
            && old.generation.is_some()
            && old.generation == new.generation
            && new.labels.as_ref().map_or(self.labels.is_empty(), |labels| *labels == *self.labels);
        if !same {
            return PodInfo::of(pod.clone());
        }
        PodInfo { pod: pod.clone(), leaving: new.deletion_timestamp.is_some(), ..self.clone() }
    }

    pub(crate) fn tolerations(&self) -> &[Toleration] {
        self.pod.spec.tolerations.as_deref().unwrap_or_default()
    }

    pub(crate) fn uid(&self) -> Option<&String> {
        self.pod.metadata.uid.as_ref()
    }

    pub(crate) fn is(&self, other: &PodInfo) -> bool {
        self.key == other.key && self.uid() == other.uid()
    }

    /// The same for pods that are alike to every plugin: news that help one help the other.
    pub(crate) fn signature(&self) -> u64 {
        let (mut hasher, spec) = (DefaultHasher::new(), &self.pod.spec);
        (&self.key.namespace, &*self.labels, self.priority, &self.claim, &self.company).hash(&mut hasher);
        (&spec.node_name, &spec.node_selector, &spec.scheduler_name).hash(&mut hasher);
        for claim in &self.claims {
            claim.key.hash(&mut hasher);
        }
        if let Some(affinity) = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref()) {
            format!("{affinity:?}").hash(&mut hasher);
        }
        format!("{:?}", self.tolerations()).hash(&mut hasher);
        if let Some(owner) = controller_of(&self.pod.metadata) {
            owner.uid.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// When its node took it in; a pod that nobody has yet counts as the youngest.
    pub(crate) fn started(&self) -> Timestamp {
        let start = self.pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        start.map_or(Timestamp::MAX, |time| time.0)
    }

    /// Whether the other counts in the same way for every other pod.
    pub(crate) fn counts_as(&self, other: &PodInfo) -> bool {
        self.uid() == other.uid()
            && self.labels == other.labels
            && self.leaving == other.leaving
            && self.priority == other.priority
            && (self.pod.metadata.generation.is_some() && self.pod.metadata.generation == other.pod.metadata.generation
                || self.claim == other.claim && self.company == other.company)
    }

    /// The node preemption has made room on for it.
    pub(crate) fn nominated(&self) -> Option<&str> {
        let status = self.pod.status.as_ref()?;
        status.nominated_node_name.as_deref().filter(|name| !name.is_empty())
    }
}
