//! Laws that hold whatever happens, in whatever order.

use super::world::*;
use crate::{
    Key,
    scheduler::core::{Core, Step},
};
use kube::ResourceExt;
use proa_crds::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

const APPS: [&str; 3] = ["web", "db", "job"];

#[derive(Clone, Debug)]
enum Happening {
    Pod(u8, Wants),
    Bound(u8),
    Gone(u8),
    Node(u8, bool),
    Decide,
    Fails(u8),
}

#[derive(Clone, Debug)]
struct Wants {
    cpu: u8,
    app: usize,
    priority: i32,
    apart: bool,
    near: bool,
    spread: bool,
    port: bool,
}

fn wants() -> impl Strategy<Value = Wants> {
    let chances = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (1..5u8, 0..APPS.len(), 0..3i32, chances).prop_map(|(cpu, app, priority, (apart, near, spread, port))| Wants {
        cpu,
        app,
        priority,
        apart: apart && !near,
        near,
        spread: spread && !apart,
        port,
    })
}

impl Wants {
    fn extra(&self) -> Value {
        let app = APPS[self.app];
        let term = |app: &str, key: &str| json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}});
        let mut extra = and(labelled("app", app), json!({"spec": {"priority": self.priority}}));
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        if self.apart {
            extra = and(
                extra,
                json!({"spec": {"affinity": {"podAntiAffinity": {required: [term(app, "kubernetes.io/hostname")]}}}}),
            );
        }
        if self.near {
            extra = and(extra, json!({"spec": {"affinity": {"podAffinity": {required: [term(app, "zone")]}}}}));
        }
        if self.spread {
            let constraint = json!({"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": app}}});
            extra = and(extra, json!({"spec": {"topologySpreadConstraints": [constraint]}}));
        }
        if self.port {
            let port = json!({"containerPort": 80, "hostPort": 8080});
            extra = and(
                extra,
                json!({"spec": {"initContainers": [{"name": "s", "restartPolicy": "Always", "ports": [port]}]}}),
            );
        }
        extra
    }
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        5 => (0..16u8, wants()).prop_map(|(p, wants)| Happening::Pod(p, wants)),
        3 => (0..16u8).prop_map(Happening::Bound),
        2 => (0..16u8).prop_map(Happening::Gone),
        1 => (0..4u8, any::<bool>()).prop_map(|(n, there)| Happening::Node(n, there)),
        7 => Just(Happening::Decide),
        1 => (0..16u8).prop_map(Happening::Fails),
    ]
}

/// What is known from outside: which pods are where, as the decisions said.
#[derive(Default)]
struct Outside {
    seen: HashMap<u8, Arc<Pod>>,
    /// Decided and not undone, with what the pod wants.
    decided: HashMap<u8, (Arc<Pod>, Arc<str>)>,
    nodes: BTreeMap<String, bool>,
}

fn number(pod: &Pod) -> u8 {
    pod.name_any().parse().unwrap()
}

fn app(pod: &Pod) -> &str {
    &pod.metadata.labels.as_ref().unwrap()["app"]
}

fn zone(node: &str) -> usize {
    usize::from(node.ends_with(['2', '3']))
}

impl Outside {
    fn decide(&mut self, core: &mut Core, now: std::time::Duration) -> Result<(), TestCaseError> {
        match core.next(now) {
            Some(Step::Bind(binding)) => {
                let pod = binding.pod;
                self.judge(&pod, &binding.node)?;
                self.decided.insert(number(&pod), (pod, binding.node));
            }
            Some(Step::Preempt { pod, node, victims, .. }) => {
                prop_assert!(!victims.is_empty());
                for victim in victims {
                    prop_assert!(victim.spec.priority < pod.spec.priority, "only the less important leave");
                    let (_, on) = &self.decided[&number(&victim)];
                    prop_assert_eq!(on, &node);
                }
                core.room_made(&pod, true, now);
            }
            _ => {}
        }
        Ok(())
    }

    /// Each rule, worked out anew from all pods.
    fn judge(&self, pod: &Pod, node: &str) -> Result<(), TestCaseError> {
        let on_node: Vec<&Arc<Pod>> =
            self.decided.values().filter(|(_, other)| &**other == node).map(|(pod, _)| pod).collect();
        let has_port = |pod: &Pod| pod.spec.init_containers.is_some();
        prop_assert!(
            !has_port(pod) || !on_node.iter().any(|other| has_port(other)),
            "a port of the host has one owner"
        );
        let affinity = |pod: &Pod| pod.spec.affinity.clone().unwrap_or_default();
        for other in on_node.iter().filter(|other| app(other) == app(pod)) {
            let apart = |pod: &Pod| affinity(pod).pod_anti_affinity.is_some();
            prop_assert!(!apart(pod) && !apart(other), "anti-affinity holds, for both");
        }
        let mut of_kind = [0i64; 2];
        self.decided.values().filter(|(other, _)| app(other) == app(pod)).for_each(|(_, n)| of_kind[zone(n)] += 1);
        if affinity(pod).pod_affinity.is_some() {
            prop_assert!(of_kind[zone(node)] > 0 || of_kind == [0, 0], "affinity holds, but for the first");
        }
        if pod.spec.topology_spread_constraints.is_some() {
            let zones: std::collections::BTreeSet<usize> =
                self.nodes.iter().filter(|(_, there)| **there).map(|(name, _)| zone(name)).collect();
            let least = zones.iter().map(|zone| of_kind[*zone]).min().unwrap_or(0);
            prop_assert!(of_kind[zone(node)] + 1 - least <= 1, "the skew is never over the bound");
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// What is placed on a node never exceeds what the node has; ports, anti-affinity, affinity and spread hold at every
    /// decision; nobody leaves for an equal.
    #[test]
    fn no_rule_is_ever_broken(happenings in proptest::collection::vec(happening(), 0..140)) {
        let mut core = core(&[]);
        let mut outside = Outside::default();
        for (i, happening) in happenings.into_iter().enumerate() {
            let now = MS(i as u64 * 1000);
            match happening {
                Happening::Pod(p, wants) => if let std::collections::hash_map::Entry::Vacant(free) = outside.seen.entry(p) {
                    let uid = json!({"metadata": {"uid": format!("{p}-{i}")}});
                    let pod = pod(&p.to_string(), &format!("{}m", u32::from(wants.cpu) * 250), and(wants.extra(), uid));
                    tell(&mut core, &pod, now);
                    free.insert(pod);
                },
                Happening::Bound(p) => if let Some((pod, node)) = outside.decided.get(&p) {
                    let mut bound = Pod::clone(pod);
                    bound.spec.node_name = Some(node.to_string());
                    tell(&mut core, &Arc::new(bound), now);
                },
                Happening::Gone(p) => if let Some(pod) = outside.seen.remove(&p) {
                    outside.decided.remove(&p);
                    core.pod_changed(&Key::of(pod.as_ref()), None, now);
                },
                Happening::Node(n, there) => {
                    let name = format!("n{n}");
                    let node = zoned(&name, ["a", "b"][zone(&name)]);
                    core.node_changed(&name, there.then_some(&node), now);
                    // Counts of pods on nodes that are gone are nobody's: the judge would have to guess.
                    if !there {
                        for (pod, _) in outside.decided.extract_if(|_, (_, node)| **node == *name).map(|(_, held)| held) {
                            outside.seen.remove(&number(&pod));
                            core.pod_changed(&Key::of(pod.as_ref()), None, now);
                        }
                    }
                    outside.nodes.insert(name, there);
                }
                Happening::Decide => outside.decide(&mut core, now)?,
                Happening::Fails(p) => if let Some((pod, _)) = outside.decided.get(&p).cloned() {
                    core.binding_failed(&pod, now);
                    // A failure that arrives after the pod was seen bound changes nothing.
                    if !core.is_placed(&Key::of(pod.as_ref())) {
                        outside.decided.remove(&p);
                    }
                },
            }
            core.check();
        }
    }
}
