//! `VolumeBinding`, `VolumeZone`, `VolumeRestrictions` and `NodeVolumeLimits`: where a pod's persistent volumes are or can be.

use crate::scheduler::{
    cluster::{
        node::NodeInfo,
        pod::PodInfo,
        storage::{State, Storage, reaches},
    },
    framework::{Cycle, Filter, News, Plugin, Prepared, Reasons, Verdict},
};
use k8s_openapi::api::core::v1::PersistentVolume;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The volumes of a pod's bound claims.
fn bound<'a>(cycle: Cycle<'a>) -> impl Iterator<Item = Option<&'a Arc<PersistentVolume>>> {
    let storage = &cycle.cluster.storage;
    cycle.pod.claims.iter().filter_map(move |claim| match storage.state(cycle.pod, claim) {
        State::Bound(volume) => Some(storage.volumes.get(volume)),
        _ => None,
    })
}

/// Claims are bound or can be, where the pod goes.
#[derive(Debug)]
pub(crate) struct Binding;

struct Bindable<'a> {
    cycle: Cycle<'a>,
    bound: Vec<Option<&'a Arc<PersistentVolume>>>,
    waiting: bool,
}

impl Filter for Bindable<'_> {
    fn check(&self, node: &NodeInfo, why: &mut Reasons) -> Verdict {
        if self.bound.iter().any(Option::is_none) {
            let gone = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
            return Verdict::never_if(true, why, gone);
        }
        if self.bound.iter().flatten().any(|volume| !reaches(volume, node)) {
            return Verdict::never_if(true, why, "node(s) didn't match PersistentVolume's node affinity");
        }
        let nowhere = self.waiting && self.cycle.cluster.storage.plan(self.cycle.pod, node).is_none();
        Verdict::never_if(nowhere, why, "node(s) didn't find available persistent volumes to bind")
    }
}

impl Plugin for Binding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn filter<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        if cycle.pod.claims.is_empty() {
            return Prepared::Skip;
        }
        let states = cycle.pod.claims.iter().map(|claim| cycle.cluster.storage.state(cycle.pod, claim));
        let (mut immediate, mut waiting) = (false, false);
        for state in states {
            match state {
                State::Bad(why) => return Prepared::Reject(why),
                State::Immediate => immediate = true,
                State::Waiting(..) => waiting = true,
                State::Bound(_) => {}
            }
        }
        if immediate {
            return Prepared::Reject("pod has unbound immediate PersistentVolumeClaims".to_owned());
        }
        Prepared::filter(Bindable { cycle, bound: bound(cycle).collect(), waiting })
    }

    fn helps(&self, _: Cycle<'_>, news: News<'_>) -> bool {
        matches!(news, News::Storage) || matches!(news, News::Node(_, changes) if changes.new || changes.labels)
    }
}

/// Labels of volumes and nodes that must agree.
const ZONE_LABELS: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

/// A volume of a zone is used in that zone.
#[derive(Debug)]
pub(crate) struct Zone;

struct Zones<'a>(Vec<(&'static str, BTreeSet<&'a str>)>);

impl Filter for Zones<'_> {
    fn check(&self, node: &NodeInfo, why: &mut Reasons) -> Verdict {
        // A node that says nothing of zones and regions is not in the wrong one.
        let says_nothing = ZONE_LABELS.iter().all(|label| !node.labels.contains_key(*label));
        let wrong = |(label, zones): &(&'static str, BTreeSet<&str>)| {
            !node.labels.get(*label).is_some_and(|zone| zones.contains(zone.as_str()))
        };
        Verdict::never_if(!says_nothing && self.0.iter().any(wrong), why, "node(s) had no available volume zone")
    }
}

impl Plugin for Zone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn filter<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let mut zones = Vec::new();
        for volume in bound(cycle).flatten() {
            let labels = volume.metadata.labels.as_ref();
            for label in ZONE_LABELS {
                // Several zones are joined by two underscores.
                if let Some(value) = labels.and_then(|labels| labels.get(label)) {
                    zones.push((label, value.split("__").collect()));
                }
            }
        }
        if zones.is_empty() { Prepared::Skip } else { Prepared::filter(Zones(zones)) }
    }

    fn helps(&self, cycle: Cycle<'_>, news: News<'_>) -> bool {
        Binding.helps(cycle, news)
    }
}

/// A claim of mode `ReadWriteOncePod` is one pod's (KEP-2485).
#[derive(Debug)]
pub(crate) struct Restrictions;

struct Exclusive<'a> {
    pod: &'a PodInfo,
    storage: &'a Storage,
    /// Users of its exclusive claims, by pods that are on nodes.
    users: i64,
}

impl Exclusive<'_> {
    fn shared_with(&self, pod: &PodInfo) -> i64 {
        let exclusive = self.pod.claims.iter().filter(|claim| self.storage.is_exclusive(&claim.key));
        exclusive.filter(|claim| pod.claims.iter().any(|held| held.key == claim.key)).count() as i64
    }
}

impl Filter for Exclusive<'_> {
    fn check(&self, _: &NodeInfo, why: &mut Reasons) -> Verdict {
        let taken = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
        Verdict::unless(self.users > 0, why, taken)
    }

    fn moved(&mut self, pod: &PodInfo, _: &NodeInfo, by: i64) {
        self.users += by * self.shared_with(pod);
    }
}

impl Plugin for Restrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn filter<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let (pod, storage) = (cycle.pod, &cycle.cluster.storage);
        let mut exclusive = pod.claims.iter().filter(|claim| storage.is_exclusive(&claim.key)).peekable();
        if exclusive.peek().is_none() {
            return Prepared::Skip;
        }
        let users = exclusive.map(|claim| i64::from(storage.users(&claim.key))).sum();
        Prepared::filter(Exclusive { pod, storage, users })
    }

    fn helps(&self, cycle: Cycle<'_>, news: News<'_>) -> bool {
        match news {
            News::PodGone(_, gone) => {
                cycle.pod.claims.iter().any(|claim| gone.claims.iter().any(|held| held.key == claim.key))
            }
            News::Storage => true,
            _ => false,
        }
    }
}

/// A node takes so many volumes of a driver.
#[derive(Debug)]
pub(crate) struct Limits;

struct Room<'a> {
    cycle: Cycle<'a>,
    /// Volumes the pod brings: driver and handle.
    brings: BTreeSet<(&'a str, &'a str)>,
}

/// The volumes of a pod that count against a limit: driver and handle.
fn handles<'a>(storage: &'a Storage, pod: &'a PodInfo) -> impl Iterator<Item = (&'a str, &'a str)> {
    pod.claims.iter().filter_map(move |wanted| {
        let claim = storage.claims.get(&wanted.key)?;
        let volume = storage.volumes.get(claim.spec.as_ref()?.volume_name.as_ref()?)?;
        let csi = volume.spec.as_ref()?.csi.as_ref()?;
        Some((csi.driver.as_str(), csi.volume_handle.as_str()))
    })
}

impl Filter for Room<'_> {
    fn check(&self, node: &NodeInfo, why: &mut Reasons) -> Verdict {
        let storage = &self.cycle.cluster.storage;
        let Some(limits) = storage.limits.get(&*node.name) else { return Verdict::Fits };
        let mut volumes: BTreeSet<(&str, &str)> = node.pods.iter().flat_map(|pod| handles(storage, pod)).collect();
        let mut added: BTreeMap<&str, i64> = BTreeMap::new();
        for volume in self.brings.iter().filter(|volume| !volumes.contains(*volume)) {
            *added.entry(volume.0).or_default() += 1;
        }
        volumes.extend(&self.brings);
        let held = |driver: &str| volumes.iter().filter(|volume| volume.0 == driver).count() as i64;
        let over = added.keys().any(|driver| limits.get(*driver).is_some_and(|limit| held(driver) > *limit));
        Verdict::unless(over, why, "node(s) exceed max volume count")
    }
}

impl Plugin for Limits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }

    fn filter<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let brings: BTreeSet<_> = handles(&cycle.cluster.storage, cycle.pod).collect();
        if brings.is_empty() { Prepared::Skip } else { Prepared::filter(Room { cycle, brings }) }
    }

    fn helps(&self, _: Cycle<'_>, news: News<'_>) -> bool {
        match news {
            News::PodGone(_, gone) => !gone.claims.is_empty(),
            News::Node(_, changes) => changes.new,
            News::Storage => true,
            _ => false,
        }
    }
}
