//! Stateful sets, daemon sets and replication controllers in the simulation: what becomes of them, and the laws they keep.
//!
//! Owns: the record of these kinds, what was asked of them last, and the judgement of their pods and claims.

use crate::laws::{answers, image_of, is_alive, is_bad, is_leaving, is_named, is_ready, keeps_evidence, owner, uid};
use crate::objects::Objects;
use crate::storage;
use crate::world::Machines;
use rand::{Rng, rngs::StdRng};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const STATEFUL: &str = "/registry/statefulsets.apps/";
const DAEMON: &str = "/registry/daemonsets.apps/";
const REVISIONS: &str = "/registry/controllerrevisions.apps/";
const CLAIMS: &str = "/registry/persistentvolumeclaims/shop/";
const IMAGES: [&str; 5] = ["v1", "v2", "v3", "broken1", "missing1"];

/// A set that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) kind: Kind,
    image: String,
    replicas: i64,
    guard: Option<Guard>,
    claims: Option<Claims>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Stateful,
    Daemon,
    /// A ReplicationController: it rolls nothing out.
    Replication,
}

/// What becomes of a rollout that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    GoesBack,
    StandsStill,
}

/// Each pod of a stateful set has a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claims {
    /// Those of places that are not wanted any longer go.
    shrink: bool,
    /// They go with the set.
    leave: bool,
}

impl Asked {
    /// What is made for a new set, and where: a policy perhaps, and the set.
    pub(crate) fn start(kind: Kind, chance: &mut StdRng) -> (Asked, Vec<(String, Value)>) {
        let replicas = chance.random_range(1..=4);
        let rolls = kind != Kind::Replication;
        let guard = match chance.random_range(0..4) {
            0 | 1 if rolls => Some(Guard::GoesBack),
            2 if rolls => Some(Guard::StandsStill),
            _ => None,
        };
        let claims = (kind == Kind::Stateful && chance.random_bool(0.4))
            .then(|| Claims { shrink: chance.random_bool(0.5), leave: chance.random_bool(0.5) });
        let asked = Asked { kind, image: "v1".to_owned(), replicas, guard, claims };
        let labels = json!({"app": asked.name()});
        let template =
            json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": "v1"}]}});
        let mut spec = json!({"selector": {"matchLabels": labels}, "template": template});
        match kind {
            Kind::Stateful => {
                let policy = ["OrderedReady", "Parallel"][chance.random_range(0..2)];
                spec["replicas"] = json!(replicas);
                spec["serviceName"] = json!("db");
                spec["podManagementPolicy"] = json!(policy);
                spec["ordinals"] = json!({"start": chance.random_range(0..3)});
                if let Some(claims) = claims {
                    let class = ["now", "local"][chance.random_range(0..2)];
                    let said = |goes: bool| if goes { "Delete" } else { "Retain" };
                    spec["volumeClaimTemplates"] =
                        json!([{"metadata": {"name": "data"}, "spec": storage::claim("data", class)["spec"]}]);
                    spec["persistentVolumeClaimRetentionPolicy"] =
                        json!({"whenScaled": said(claims.shrink), "whenDeleted": said(claims.leave)});
                }
            }
            Kind::Daemon if chance.random_bool(0.5) => {
                spec["updateStrategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
            }
            Kind::Daemon => {}
            Kind::Replication => {
                spec["replicas"] = json!(replicas);
                spec["selector"] = labels.clone();
            }
        }
        let mut meta = json!({"name": asked.name(), "labels": labels});
        let mut made = Vec::new();
        // Going back is asked for by the annotation, or by a policy with steps of its own.
        if guard == Some(Guard::StandsStill) || (guard.is_some() && chance.random_bool(0.5)) {
            let action = if guard == Some(Guard::GoesBack) { "Rollback" } else { "Pause" };
            let step = json!({"percent": chance.random_range(1..=60), "waitSeconds": chance.random_range(0..8)});
            let steps = if chance.random_bool(0.5) { json!([step]) } else { json!([]) };
            let spec = json!({"selector": {"matchLabels": labels}, "action": action, "steps": steps,
                "soakSeconds": chance.random_range(0..120)});
            let policy = json!({"apiVersion": "proa.dev/v1", "kind": "RolloutPolicy",
                "metadata": {"name": asked.name()}, "spec": spec});
            made.push(("/apis/proa.dev/v1/namespaces/shop/rolloutpolicies".to_owned(), policy));
        } else if guard.is_some() {
            meta["annotations"] = json!({"proa.dev/rollback": "on-failure"});
        }
        made.push((asked.path(false), json!({"metadata": meta, "spec": spec})));
        (asked, made)
    }

    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Stateful => "db",
            Kind::Daemon => "agent",
            Kind::Replication => "old",
        }
    }

    /// Where the kind is served; with the name for the set itself.
    pub(crate) fn path(&self, with_name: bool) -> String {
        let kind = match self.kind {
            Kind::Stateful => "apis/apps/v1/namespaces/shop/statefulsets",
            Kind::Daemon => "apis/apps/v1/namespaces/shop/daemonsets",
            Kind::Replication => "api/v1/namespaces/shop/replicationcontrollers",
        };
        let name = if with_name { format!("/{}", self.name()) } else { String::new() };
        format!("/{kind}{name}")
    }

    /// A user changes their mind: the patch, what it is in words, and the image it asks for.
    pub(crate) fn change(&mut self, chance: &mut StdRng) -> (Value, String, Option<String>) {
        if self.kind == Kind::Replication || (self.kind == Kind::Stateful && chance.random_bool(0.4)) {
            self.replicas = chance.random_range(0..=4);
            let patch = json!({"spec": {"replicas": self.replicas}});
            return (patch, format!("{} is scaled to {}", self.name(), self.replicas), None);
        }
        self.image = IMAGES[chance.random_range(0..IMAGES.len())].to_owned();
        let containers = json!([{"name": "main", "image": self.image}]);
        let patch = json!({"spec": {"template": {"spec": {"containers": containers}}}});
        (patch, format!("{} becomes {}", self.name(), self.image), Some(self.image.clone()))
    }

    /// Everything has come to rest: where a rollout went back, what was asked for last is no longer what is wanted.
    pub(crate) fn rested(&mut self, objects: &Objects) {
        if let (Some(set), Some(Guard::GoesBack)) = (self.set(objects), self.guard) {
            self.image = image_of(set);
        }
    }

    fn set<'a>(&self, objects: &'a Objects) -> Option<&'a Value> {
        let prefix = match self.kind {
            Kind::Stateful => STATEFUL,
            Kind::Daemon => DAEMON,
            Kind::Replication => "/registry/replicationcontrollers/",
        };
        objects.of(prefix).find(|set| is_named(set, "shop", self.name()))
    }

    /// Whether everything is as asked for; what is missing, if not.
    pub(crate) fn at_rest(&self, objects: &Objects, machines: &Machines) -> Result<(), String> {
        let name = self.name();
        self.look(objects, machines).map_err(|why| format!("{name}: {why}"))
    }

    fn look(&self, objects: &Objects, machines: &Machines) -> Result<(), String> {
        let set = self.set(objects).ok_or("it is gone")?;
        if set["status"]["observedGeneration"] != set["metadata"]["generation"] {
            return Err("its generation has not been observed".to_owned());
        }
        let revisions = || objects.of(REVISIONS).filter(|held| owner(held) == uid(set));
        if self.kind != Kind::Replication && !(1..=14).contains(&revisions().count()) {
            return Err(format!("{} revisions are kept", revisions().count()));
        }
        let pods: Vec<&Value> =
            objects.of("/registry/pods/").filter(|pod| owner(pod) == uid(set) && is_alive(pod)).collect();
        let places: Vec<String> = match self.kind {
            Kind::Stateful => {
                let start = set["spec"]["ordinals"]["start"].as_i64().unwrap_or(0);
                (start..start + self.replicas).map(|ordinal| format!("db-{ordinal}")).collect()
            }
            Kind::Daemon => objects.of("/registry/nodes/").map(|node| text(&node["metadata"]["name"])).collect(),
            Kind::Replication => Vec::new(),
        };
        let place = |pod: &Value| match self.kind {
            Kind::Daemon => text(&pod["spec"]["nodeName"]),
            Kind::Stateful | Kind::Replication => text(&pod["metadata"]["name"]),
        };
        // Where no pod is wanted any image is as good as another.
        let fails = is_bad(&self.image) && !(self.kind == Kind::Stateful && self.replicas == 0);
        let image = match self.guard {
            Some(_) if fails && !keeps_evidence(revisions(), &self.image) => {
                return Err(format!("nothing says why {} failed", self.image));
            }
            Some(Guard::GoesBack) if is_bad(&self.image) => image_of(set),
            Some(Guard::StandsStill) if fails && !is_paused(set) => return Err("it does not stand still".to_owned()),
            _ => self.image.clone(),
        };
        if image != image_of(set) {
            return Err(format!("its template says {}, not {image}", image_of(set)));
        }
        if is_bad(&image) {
            // It hangs where it may: nothing is there that is not wanted.
            let strange =
                pods.iter().map(|pod| place(pod)).find(|held| self.kind == Kind::Daemon && !places.contains(held));
            return match strange {
                Some(held) => Err(format!("there is a pod at {held:?}")),
                None if fails && self.guard == Some(Guard::GoesBack) => Err(format!("it runs {image}")),
                None => Ok(()),
            };
        }
        let mut held: BTreeMap<String, &Value> = BTreeMap::new();
        for pod in &pods {
            if held.insert(place(pod), pod).is_some() {
                return Err(format!("{} has two pods", place(pod)));
            }
            let runs = text(&pod["spec"]["containers"][0]["image"]);
            if runs != image || !is_ready(pod) || !answers(machines, pod) {
                return Err(format!("{} runs {runs}, wanted is {image}; ready: {}", place(pod), is_ready(pod)));
            }
        }
        let right = match self.kind {
            Kind::Replication => held.len() as i64 == self.replicas,
            Kind::Stateful | Kind::Daemon => {
                held.len() == places.len() && places.iter().all(|place| held.contains_key(place))
            }
        };
        if !right {
            return Err(format!("there are pods at {:?}, wanted are {places:?}, {}", held.keys(), self.replicas));
        }
        self.claims_at_rest(objects, &places)?;
        let (status, total) = (&set["status"], held.len() as i64);
        let fields: &[&str] = match self.kind {
            Kind::Stateful => &["replicas", "readyReplicas", "availableReplicas", "updatedReplicas", "currentReplicas"],
            Kind::Daemon => &["desiredNumberScheduled", "numberReady", "numberAvailable", "updatedNumberScheduled"],
            Kind::Replication => &["replicas", "readyReplicas", "availableReplicas", "fullyLabeledReplicas"],
        };
        match fields.iter().find(|field| status[**field].as_i64().unwrap_or(0) != total) {
            Some(field) => Err(format!("status.{field} is {}, not {total}", status[*field])),
            None => Ok(()),
        }
    }

    /// Every pod has its claim, bound. Of the others there may be some: as on Kubernetes the claim of a pod that was away
    /// when its place was given up stays, whatever the policy.
    fn claims_at_rest(&self, objects: &Objects, places: &[String]) -> Result<(), String> {
        if self.claims.is_none() {
            return Ok(());
        }
        for place in places {
            let claim = objects.get(&format!("{CLAIMS}{}{place}", storage::OF_SETS));
            if claim.is_none_or(|claim| claim["status"]["phase"] != "Bound") {
                return Err(format!("{place} has no claim that is bound"));
            }
        }
        Ok(())
    }

    /// What may not be left once the set is gone.
    pub(crate) fn is_gone(&self, objects: &Objects) -> Result<(), String> {
        let left = of_sets(objects).next().filter(|_| self.claims.is_some_and(|claims| claims.leave));
        left.map_or(Ok(()), |claim| Err(format!("the claim {claim} outlives its set")))
    }
}

/// The claims that sets made.
fn of_sets(objects: &Objects) -> impl Iterator<Item = &str> {
    let names = objects.of(CLAIMS).filter_map(|claim| claim["metadata"]["name"].as_str());
    names.filter(|name| name.starts_with(storage::OF_SETS))
}

fn is_paused(set: &Value) -> bool {
    let conditions = set["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|held| held["type"] == "RolloutPaused" && held["status"] == "True")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Both kinds as they are committed, and the fewest pods each has been asked to be since the last rest.
#[derive(Default)]
pub(crate) struct Roster(BTreeMap<String, (Value, i64)>);

impl Roster {
    /// Takes in an object that was written.
    pub(crate) fn put(&mut self, key: &str, set: &Value) {
        if key.starts_with(STATEFUL) || key.starts_with(DAEMON) {
            let size = size_of(set);
            let least = self.0.get(key).map_or(size, |(_, least)| size.min(*least));
            self.0.insert(key.to_owned(), (set.clone(), least));
        }
    }

    /// Takes an object out.
    pub(crate) fn delete(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// The world is at rest: bounds are counted anew.
    pub(crate) fn rested(&mut self) {
        for (set, least) in self.0.values_mut() {
            *least = size_of(set);
        }
    }

    /// How many pods of the owner with that uid must answer whatever an update does; `None` when there is no such set or
    /// it is on its way out.
    pub(crate) fn promise(&self, owner: &str) -> Option<i64> {
        let (set, least) = self.0.values().find(|(set, _)| uid(set) == owner)?;
        let surges = set["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"].as_i64().unwrap_or(0) > 0;
        (!is_leaving(set)).then_some(if surges { *least } else { least - 1 })
    }
}

fn size_of(set: &Value) -> i64 {
    match set["spec"]["replicas"].as_i64() {
        Some(replicas) => replicas,
        None => set["status"]["desiredNumberScheduled"].as_i64().unwrap_or(0),
    }
}
