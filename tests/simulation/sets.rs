//! Stateful sets and daemon sets in the simulation: what becomes of them, and the laws they keep.
//!
//! Owns: the record of both kinds, what was asked of them last, and the judgement of their pods.

use crate::laws::{answers, image_of, is_alive, is_bad, is_leaving, is_ready, owner, uid};
use crate::world::Machines;
use rand::{Rng, rngs::StdRng};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const STATEFUL: &str = "/registry/statefulsets.apps/";
const DAEMON: &str = "/registry/daemonsets.apps/";
const IMAGES: [&str; 5] = ["v1", "v2", "v3", "broken1", "missing1"];

/// A set that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) kind: Kind,
    image: String,
    replicas: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Stateful,
    Daemon,
}

impl Asked {
    /// Where sets of the kind are made, and what the new one is.
    pub(crate) fn start(kind: Kind, chance: &mut StdRng) -> (Asked, Value) {
        let replicas = chance.random_range(1..=4);
        let asked = Asked { kind, image: "v1".to_owned(), replicas };
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
            }
            Kind::Daemon if chance.random_bool(0.5) => {
                spec["updateStrategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
            }
            Kind::Daemon => {}
        }
        (asked.clone(), json!({"metadata": {"name": asked.name()}, "spec": spec}))
    }

    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Stateful => "db",
            Kind::Daemon => "agent",
        }
    }

    /// Where the kind is served; with the name for the set itself.
    pub(crate) fn path(&self, with_name: bool) -> String {
        let plural = match self.kind {
            Kind::Stateful => "statefulsets",
            Kind::Daemon => "daemonsets",
        };
        let name = if with_name { format!("/{}", self.name()) } else { String::new() };
        format!("/apis/apps/v1/namespaces/shop/{plural}{name}")
    }

    /// A user changes their mind: the patch, and what it is in words.
    pub(crate) fn change(&mut self, chance: &mut StdRng) -> (Value, String) {
        if self.kind == Kind::Stateful && chance.random_bool(0.4) {
            self.replicas = chance.random_range(0..=4);
            let patch = json!({"spec": {"replicas": self.replicas}});
            return (patch, format!("db is scaled to {}", self.replicas));
        }
        self.image = IMAGES[chance.random_range(0..IMAGES.len())].to_owned();
        let containers = json!([{"name": "main", "image": self.image}]);
        let patch = json!({"spec": {"template": {"spec": {"containers": containers}}}});
        (patch, format!("{} becomes {}", self.name(), self.image))
    }

    /// Whether everything is as asked for; what is missing, if not.
    pub(crate) fn at_rest(&self, objects: &[(String, Value)], machines: &Machines) -> Result<(), String> {
        let name = self.name();
        self.look(objects, machines).map_err(|why| format!("{name}: {why}"))
    }

    fn look(&self, objects: &[(String, Value)], machines: &Machines) -> Result<(), String> {
        let prefix = if self.kind == Kind::Stateful { STATEFUL } else { DAEMON };
        let of = |prefix: &str| {
            let prefix = prefix.to_owned();
            objects.iter().filter(move |(key, _)| key.starts_with(&prefix)).map(|(_, object)| object)
        };
        let set = of(prefix).find(|set| set["metadata"]["name"] == self.name()).ok_or("it is gone")?;
        if set["status"]["observedGeneration"] != set["metadata"]["generation"] {
            return Err("its generation has not been observed".to_owned());
        }
        let revisions = of("/registry/controllerrevisions.apps/").filter(|held| owner(held) == uid(set)).count();
        if revisions == 0 || revisions > 14 {
            return Err(format!("{revisions} revisions are kept"));
        }
        let pods: Vec<&Value> = of("/registry/pods/").filter(|pod| owner(pod) == uid(set) && is_alive(pod)).collect();
        let places: Vec<String> = match self.kind {
            Kind::Stateful => {
                let start = set["spec"]["ordinals"]["start"].as_i64().unwrap_or(0);
                (start..start + self.replicas).map(|ordinal| format!("db-{ordinal}")).collect()
            }
            Kind::Daemon => of("/registry/nodes/").map(|node| text(&node["metadata"]["name"])).collect(),
        };
        let place = |pod: &Value| match self.kind {
            Kind::Stateful => text(&pod["metadata"]["name"]),
            Kind::Daemon => text(&pod["spec"]["nodeName"]),
        };
        if is_bad(&self.image) {
            // It hangs where it may: nothing is there that is not wanted.
            let strange =
                pods.iter().map(|pod| place(pod)).find(|held| self.kind == Kind::Daemon && !places.contains(held));
            return strange.map_or(Ok(()), |held| Err(format!("there is a pod at {held:?}")));
        }
        let mut held: BTreeMap<String, &Value> = BTreeMap::new();
        for pod in &pods {
            if held.insert(place(pod), pod).is_some() {
                return Err(format!("{} has two pods", place(pod)));
            }
            let image = text(&pod["spec"]["containers"][0]["image"]);
            if image != self.image || !is_ready(pod) || !answers(machines, pod) {
                return Err(format!("{} runs {image}, wanted is {}; ready: {}", place(pod), self.image, is_ready(pod)));
            }
        }
        if held.len() != places.len() || places.iter().any(|place| !held.contains_key(place)) {
            return Err(format!("there are pods at {:?}, wanted are {places:?}", held.keys()));
        }
        let (status, total) = (&set["status"], places.len() as i64);
        let fields: &[&str] = match self.kind {
            Kind::Stateful => &["replicas", "readyReplicas", "availableReplicas", "updatedReplicas", "currentReplicas"],
            Kind::Daemon => &["desiredNumberScheduled", "numberReady", "numberAvailable", "updatedNumberScheduled"],
        };
        match fields.iter().find(|field| status[**field].as_i64().unwrap_or(0) != total) {
            Some(field) => Err(format!("status.{field} is {}, not {total}", status[*field])),
            None if image_of(set) != self.image => Err(format!("its template says {}", image_of(set))),
            None => Ok(()),
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Both kinds as they are committed, and the fewest pods each has been asked to be since the last rest.
#[derive(Default)]
pub(crate) struct Roster(BTreeMap<String, (Value, i64)>);

impl Roster {
    /// Takes in an object that was written.
    pub(crate) fn put(&mut self, key: &str, bytes: &[u8]) {
        if key.starts_with(STATEFUL) || key.starts_with(DAEMON) {
            let set: Value = serde_json::from_slice(bytes).expect("objects are stored as JSON");
            let size = size_of(&set);
            let least = self.0.get(key).map_or(size, |(_, least)| size.min(*least));
            self.0.insert(key.to_owned(), (set, least));
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
