//! One daemon set `agent` in a simulated world: its loop, nodes, and pods that do what their image says.

use super::super::{Action, Seen, Why, nodes, plan};
use crate::{
    Key,
    history::Write,
    patch::{json, merge_diff},
    pods,
    sim::{World, merge},
};
use kube::ResourceExt;
use proa_crds::{ControllerRevision, DaemonSet, Family, Node, Pod};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const SETS: &str = "daemonsets";
const PODS: &str = "pods";
const REVISIONS: &str = "controllerrevisions";
const NODES: &str = "nodes";

pub(super) struct Sim {
    pub(super) world: World,
    /// Why pods were taken away: `node-1 Updated`.
    pub(super) deleted: Vec<String>,
    pub(super) created: usize,
    pauses: BTreeMap<String, jiff::Timestamp>,
}

pub(super) fn agent() -> Key {
    Key::new("ns", "agent")
}

impl Sim {
    /// A set as the API server stores it, and that many nodes.
    pub(super) fn new(nodes: usize, image: &str, edit: Value) -> Sim {
        let mut manifest = json!({
            "metadata": {"name": "agent", "namespace": "ns"},
            "spec": {
                "revisionHistoryLimit": 10,
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
                "selector": {"matchLabels": {"app": "agent"}},
                "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
            },
        });
        merge(&mut manifest, &edit);
        let mut sim = Sim { world: World::new(), deleted: Vec::new(), created: 0, pauses: BTreeMap::new() };
        assert!(sim.world.create(SETS, &manifest));
        for n in 0..nodes {
            sim.join(&format!("node-{n}"), json!({}));
        }
        sim
    }

    pub(super) fn join(&mut self, name: &str, edit: Value) {
        let mut node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {}});
        merge(&mut node, &edit);
        assert!(self.world.create(NODES, &node));
    }

    pub(super) fn edit_node(&mut self, name: &str, patch: Value) {
        self.world.patch(NODES, &Key::new("", name), &patch);
    }

    pub(super) fn leave(&mut self, name: &str) {
        self.world.delete(NODES, &Key::new("", name));
    }

    pub(super) fn set(&self) -> DaemonSet {
        (*self.world.get::<DaemonSet>(SETS, &agent()).expect("agent")).clone()
    }

    pub(super) fn edit(&mut self, patch: Value) {
        assert!(self.world.patch(SETS, &agent(), &patch));
    }

    pub(super) fn image(&mut self, image: &str) {
        self.edit(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}));
    }

    pub(super) fn revisions(&self) -> Vec<i64> {
        let mut list: Vec<i64> =
            self.world.list::<ControllerRevision>(REVISIONS).iter().map(|held| held.revision).collect();
        list.sort_unstable();
        list
    }

    pub(super) fn pods(&self) -> Vec<Pod> {
        self.world.list::<Pod>(PODS).iter().map(|pod| (**pod).clone()).collect()
    }

    fn seen(&self) -> Seen {
        let set = self.world.get::<DaemonSet>(SETS, &agent()).expect("agent");
        let uid = set.metadata.uid.clone().expect("a uid");
        let orphan = |meta: &kube::core::ObjectMeta| crate::owners::controller_of(meta).is_none();
        Seen {
            set,
            pods: self.world.controlled_by(PODS, &uid),
            orphans: self.world.list::<Pod>(PODS).into_iter().filter(|pod| orphan(&pod.metadata)).collect(),
            revisions: self.world.controlled_by(REVISIONS, &uid),
            orphan_revisions: self
                .world
                .list::<ControllerRevision>(REVISIONS)
                .into_iter()
                .filter(|held| orphan(&held.metadata))
                .collect(),
            nodes: self.world.list::<Node>(NODES),
            pauses: self.pauses.clone(),
            resources: (Family::Standard.daemon_set(), Family::Standard.pod()),
        }
    }

    /// One run of the loop; it dies after so many writes. Whether it did something.
    pub(super) fn step(&mut self, crash_after: usize) -> bool {
        let actions = plan(&self.seen(), self.world.now).actions;
        let acted = !actions.is_empty();
        for action in actions.into_iter().take(crash_after) {
            self.act(action);
        }
        acted
    }

    fn act(&mut self, action: Action) {
        let controller = crate::owners::controller_reference(&self.set(), &Family::Standard.daemon_set());
        let owned = json!({"metadata": {"ownerReferences": [controller]}});
        let released = json!({"metadata": {"ownerReferences": null}});
        match action {
            Action::Adopt(pod) => drop(self.world.patch(PODS, &Key::of(&*pod), &owned)),
            Action::Release(pod) => drop(self.world.patch(PODS, &Key::of(&*pod), &released)),
            Action::Record(Write::Adopt(held)) => drop(self.world.patch(REVISIONS, &Key::of(&*held), &owned)),
            Action::Record(Write::Release(held)) => drop(self.world.patch(REVISIONS, &Key::of(&*held), &released)),
            Action::Record(Write::Create(revision)) => assert!(self.world.create(REVISIONS, &*revision)),
            Action::Record(Write::Renumber(held, number)) => {
                self.world.patch(REVISIONS, &Key::of(&*held), &json!({"revision": number}));
            }
            Action::Record(Write::Delete(held)) => self.world.delete(REVISIONS, &Key::of(&*held)),
            Action::Status(status) | Action::Refuse(_, status) => {
                let held = json(&self.set().status);
                let change = merge_diff(&held, &json(&*status)).unwrap_or_else(|| json!({}));
                self.world.patch(SETS, &agent(), &json!({"status": change}));
            }
            Action::Create(pods) => {
                for pod in pods {
                    self.created += 1;
                    assert!(self.world.create(PODS, &pod));
                }
            }
            Action::Delete(pods, why) => {
                for pod in pods {
                    let node = nodes::node_of(&pod).expect("a node").to_owned();
                    let said = match why {
                        Why::Failed(_) => "Failed".to_owned(),
                        Why::Succeeded(_) => "Succeeded".to_owned(),
                        ref other => format!("{other:?}"),
                    };
                    if matches!(why, Why::Failed(_) | Why::Succeeded(_)) {
                        let until = self.world.now.checked_add(std::time::Duration::from_secs(1)).expect("a time");
                        self.pauses.insert(node.clone(), until);
                    }
                    self.deleted.push(format!("{node} {said}"));
                    self.mark_deleted(&pod);
                }
            }
        }
    }

    pub(super) fn mark_deleted(&mut self, pod: &Pod) {
        let now = self.world.now.to_string();
        self.world.patch(PODS, &Key::of(pod), &json!({"metadata": {"deletionTimestamp": now}}));
    }

    /// The pod of a node becomes what that says.
    pub(super) fn status(&mut self, node: &str, phase: &str, ready: bool) {
        let ready = if ready { "True" } else { "False" };
        let condition = json!({"type": "Ready", "status": ready, "lastTransitionTime": self.world.now.to_string()});
        for pod in self.pods().iter().filter(|pod| nodes::node_of(pod) == Some(node)) {
            let status = json!({"status": {"phase": phase, "conditions": [condition]}});
            self.world.patch(PODS, &Key::of(pod), &status);
        }
    }

    /// The scheduler and the nodes do their work on at most `most` pods. Images that begin with `bad` never get ready;
    /// those that begin with `failing` fail.
    pub(super) fn nodes(&mut self, most: usize) -> bool {
        let mut left = most;
        let there: Vec<String> = self.world.list::<Node>(NODES).iter().map(|node| node.name_any()).collect();
        for pod in self.pods() {
            let image = image_of(&pod);
            let node = nodes::node_of(&pod).unwrap_or_default().to_owned();
            if pod.metadata.deletion_timestamp.is_some() || (pods::node(&pod).is_some() && !there.contains(&node)) {
                self.world.delete(PODS, &Key::of(&pod));
            } else if pods::node(&pod).is_none() {
                if !there.contains(&node) {
                    continue;
                }
                let bound = json!({"spec": {"nodeName": node}, "status": {"phase": "Pending"}});
                self.world.patch(PODS, &Key::of(&pod), &bound);
            } else if image.starts_with("failing") && pods::phase(&pod) != "Failed" {
                self.world.patch(PODS, &Key::of(&pod), &json!({"status": {"phase": "Failed"}}));
            } else if !pods::is_over(&pod)
                && !pods::is_ready(&pod)
                && !image.starts_with("bad")
                && !image.starts_with("failing")
            {
                let condition =
                    json!({"type": "Ready", "status": "True", "lastTransitionTime": self.world.now.to_string()});
                let status = json!({"status": {"phase": "Running", "conditions": [condition]}});
                self.world.patch(PODS, &Key::of(&pod), &status);
            } else {
                continue;
            }
            left -= 1;
            if left == 0 {
                return true;
            }
        }
        left < most
    }

    pub(super) fn settle(&mut self) {
        for _ in 0..400 {
            let (loop_moved, nodes_moved) = (self.step(usize::MAX), self.nodes(usize::MAX));
            if !loop_moved && !nodes_moved {
                return;
            }
            self.world.pass(1);
        }
        panic!("no rest: {:?}", self.deleted);
    }

    /// Runs the loop alone until it waits.
    pub(super) fn run(&mut self) {
        for _ in 0..100 {
            if !self.step(usize::MAX) {
                return;
            }
        }
        panic!("the loop does not wait: {:?}", self.deleted);
    }

    /// `node-0 v1` of each pod, in order.
    pub(super) fn show(&self) -> Vec<String> {
        let of = |pod: &Pod| {
            let state = match () {
                () if pod.metadata.deletion_timestamp.is_some() => " leaving",
                () if pods::is_ready(pod) => "",
                () => " unready",
            };
            format!("{} {}{state}", nodes::node_of(pod).unwrap_or("nowhere"), image_of(pod))
        };
        let mut shown: Vec<String> = self.pods().iter().map(of).collect();
        shown.sort();
        shown
    }

    /// On how many nodes a ready pod stays.
    pub(super) fn available(&self) -> usize {
        let ready = |pod: &&Pod| pods::is_ready(pod) && pods::is_active(pod);
        let pods = self.pods();
        let nodes: std::collections::BTreeSet<_> = pods.iter().filter(ready).filter_map(nodes::node_of).collect();
        nodes.len()
    }
}

pub(super) fn image_of(pod: &Pod) -> String {
    pod.spec.containers[0].image.clone().unwrap_or_default()
}
