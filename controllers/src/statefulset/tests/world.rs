//! One stateful set `web` in a simulated world: its loop, the garbage collector for its claims, and pods that do what
//! their image says.

use super::super::{Action, Seen, Why, plan};
use crate::{
    Key,
    history::Write,
    patch::{json, merge_diff},
    pods,
    sim::{World, merge},
};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use proa_crds::{ControllerRevision, Family, Pod, StatefulSet, annotations};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const SETS: &str = "statefulsets";
const PODS: &str = "pods";
const REVISIONS: &str = "controllerrevisions";
const CLAIMS: &str = "claims";

pub(super) struct Sim {
    pub(super) world: World,
    /// Why pods were taken away, in order: `web-2 Updated`.
    pub(super) deleted: Vec<String>,
    /// Names in the order of their creation, with the image.
    pub(super) created: Vec<String>,
    pauses: BTreeMap<String, jiff::Timestamp>,
}

pub(super) fn web() -> Key {
    Key::new("ns", "web")
}

fn key(name: &str) -> Key {
    Key::new("ns", name)
}

impl Sim {
    /// A set as the API server stores it.
    pub(super) fn new(replicas: i32, image: &str, edit: Value) -> Sim {
        let mut manifest = json!({
            "metadata": {"name": "web", "namespace": "ns"},
            "spec": {
                "replicas": replicas, "serviceName": "web", "revisionHistoryLimit": 10,
                "podManagementPolicy": "OrderedReady",
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
            },
        });
        merge(&mut manifest, &edit);
        let mut sim = Sim { world: World::new(), deleted: Vec::new(), created: Vec::new(), pauses: BTreeMap::new() };
        assert!(sim.world.create(SETS, &manifest));
        sim
    }

    pub(super) fn set(&self) -> StatefulSet {
        (*self.world.get::<StatefulSet>(SETS, &web()).expect("web")).clone()
    }

    pub(super) fn pod(&self, name: &str) -> Option<Pod> {
        self.world.get::<Pod>(PODS, &key(name)).map(|pod| (*pod).clone())
    }

    pub(super) fn revisions(&self) -> Vec<ControllerRevision> {
        let mut list: Vec<_> = self.world.list::<ControllerRevision>(REVISIONS).iter().map(|r| (**r).clone()).collect();
        list.sort_by_key(|revision| revision.revision);
        list
    }

    pub(super) fn claims(&self) -> Vec<String> {
        self.world.list::<PersistentVolumeClaim>(CLAIMS).iter().map(|claim| claim.name_any()).collect()
    }

    pub(super) fn claim(&self, name: &str) -> PersistentVolumeClaim {
        (*self.world.get::<PersistentVolumeClaim>(CLAIMS, &key(name)).expect("a claim")).clone()
    }

    pub(super) fn edit(&mut self, patch: Value) {
        assert!(self.world.patch(SETS, &web(), &patch));
    }

    pub(super) fn image(&mut self, image: &str) {
        self.edit(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}));
    }

    pub(super) fn scale(&mut self, replicas: i32) {
        self.edit(json!({"spec": {"replicas": replicas}}));
    }

    /// `kubectl rollout undo`: the strategic patch of that revision, whose `$patch: replace` is done by hand here.
    pub(super) fn undo(&mut self, revision: i64) {
        let target = self.revisions().into_iter().find(|held| held.revision == revision).expect("that revision");
        let mut template = crate::history::undo(&target)["spec"]["template"].clone();
        assert_eq!(template["$patch"], "replace");
        template.as_object_mut().expect("a template").shift_remove("$patch");
        self.edit(json!({"spec": {"template": template}}));
    }

    pub(super) fn seen(&self) -> Option<Seen> {
        let set = self.world.get::<StatefulSet>(SETS, &web())?;
        let uid = set.metadata.uid.clone().expect("a uid");
        let orphan = |meta: &kube::core::ObjectMeta| crate::owners::controller_of(meta).is_none();
        Some(Seen {
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
            claims: self
                .world
                .list::<PersistentVolumeClaim>(CLAIMS)
                .into_iter()
                .map(|claim| (claim.name_any(), claim))
                .collect(),
            pauses: self.pauses.clone(),
            resources: (Family::Standard.stateful_set(), Family::Standard.pod()),
        })
    }

    /// One run of the loop; with `crash_after`, it dies after so many actions. Whether it did something.
    pub(super) fn step(&mut self, crash_after: usize) -> bool {
        let Some(seen) = self.seen() else { return false };
        let actions = plan(&seen, self.world.now).actions;
        let acted = !actions.is_empty();
        for action in actions.into_iter().take(crash_after) {
            if !self.act(action) {
                break;
            }
        }
        acted
    }

    /// Whether it succeeded.
    fn act(&mut self, action: Action) -> bool {
        let controller = crate::owners::controller_reference(&self.set(), &Family::Standard.stateful_set());
        let owned = json!({"metadata": {"ownerReferences": [controller]}});
        match action {
            Action::Adopt(pod) => self.world.patch(PODS, &Key::of(&*pod), &owned),
            Action::Release(pod) => {
                self.world.patch(PODS, &Key::of(&*pod), &json!({"metadata": {"ownerReferences": null}}))
            }
            Action::Record(Write::Adopt(held)) => self.world.patch(REVISIONS, &Key::of(&*held), &owned),
            Action::Record(Write::Release(held)) => {
                self.world.patch(REVISIONS, &Key::of(&*held), &json!({"metadata": {"ownerReferences": null}}))
            }
            Action::Record(Write::Create(revision)) => {
                let made = self.world.create(REVISIONS, &*revision);
                if !made {
                    let collisions = self.set().status.and_then(|status| status.collision_count).unwrap_or(0);
                    self.world.patch(SETS, &web(), &json!({"status": {"collisionCount": collisions + 1}}));
                }
                made
            }
            Action::Record(Write::Renumber(held, number)) => {
                self.world.patch(REVISIONS, &Key::of(&*held), &json!({"revision": number}))
            }
            Action::Record(Write::Delete(held)) => {
                self.world.delete(REVISIONS, &Key::of(&*held));
                true
            }
            Action::Status(status) | Action::Refuse(_, status) => {
                let held = json(&self.set().status);
                let change = merge_diff(&held, &json(&*status)).unwrap_or_else(|| json!({}));
                self.world.patch(SETS, &web(), &json!({"status": change}))
            }
            Action::CreateClaim(claim, _) => self.world.create(CLAIMS, &*claim),
            Action::PatchClaim(claim, patch) => self.world.patch(CLAIMS, &Key::of(&*claim), &patch),
            Action::Create(pods) => pods.iter().all(|pod| {
                let made = self.world.create(PODS, pod);
                if made {
                    self.created.push(format!("{} {}", pod.name_any(), image_of(pod)));
                    self.world.patch(PODS, &Key::of(pod), &json!({"status": {"phase": "Pending"}}));
                }
                made
            }),
            Action::PatchPod(pod, patch) => self.world.patch(PODS, &Key::of(&*pod), &patch),
            Action::Delete(pods, why) => {
                for pod in pods {
                    self.deleted.push(format!("{} {why:?}", pod.name_any()));
                    if matches!(why, Why::Failed | Why::Succeeded) {
                        let until = self.world.now.checked_add(std::time::Duration::from_secs(1)).expect("a time");
                        self.pauses.insert(pod.name_any(), until);
                    }
                    self.mark_deleted(&pod.name_any());
                }
                true
            }
        }
    }

    /// Somebody, or the loop, deletes a pod: its node lets it end.
    pub(super) fn mark_deleted(&mut self, name: &str) {
        let now = self.world.now.to_string();
        self.world.patch(PODS, &key(name), &json!({"metadata": {"deletionTimestamp": now}}));
    }

    /// A pod becomes what that status says.
    pub(super) fn status(&mut self, name: &str, phase: &str, ready: bool) {
        let ready = if ready { "True" } else { "False" };
        let condition = json!({"type": "Ready", "status": ready, "lastTransitionTime": self.world.now.to_string()});
        self.world.patch(PODS, &key(name), &json!({"status": {"phase": phase, "conditions": [condition]}}));
    }

    /// The nodes do their work on at most `most` pods: what is deleted goes, what can run gets ready. Images that begin
    /// with `bad` never get ready; those that begin with `failing` fail. Then what is owned by nobody any more goes.
    pub(super) fn nodes(&mut self, most: usize) -> bool {
        let mut left = most;
        for pod in self.world.list::<Pod>(PODS) {
            let (name, image) = (pod.name_any(), image_of(&pod));
            let idle = match pod.metadata.deletion_timestamp {
                Some(_) => {
                    self.world.delete(PODS, &key(&name));
                    false
                }
                None if image.starts_with("failing") && pods::phase(&pod) != "Failed" => {
                    self.status(&name, "Failed", false);
                    false
                }
                None if image.starts_with("bad") && pods::phase(&pod) != "Running" => {
                    self.status(&name, "Running", false);
                    false
                }
                None if !pods::is_ready(&pod) && !image.starts_with("bad") && !image.starts_with("failing") => {
                    self.status(&name, "Running", true);
                    false
                }
                None => true,
            };
            if !idle {
                left -= 1;
            }
            if left == 0 {
                return true;
            }
        }
        self.collect() || left < most
    }

    /// The garbage collector.
    fn collect(&mut self) -> bool {
        let before = self.claims().len();
        let mut uids: Vec<String> = self.world.list::<Pod>(PODS).iter().filter_map(|pod| pod.uid()).collect();
        uids.extend(self.world.get::<StatefulSet>(SETS, &web()).and_then(|set| set.uid()));
        for claim in self.world.list::<PersistentVolumeClaim>(CLAIMS) {
            let owners = claim.owner_references();
            if !owners.is_empty() && owners.iter().all(|owner| !uids.contains(&owner.uid)) {
                self.world.delete(CLAIMS, &Key::of(&*claim));
            }
        }
        self.claims().len() < before
    }

    /// Runs loop and nodes until nothing moves.
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

    /// `web-0 v1 ready` of each pod that is there.
    pub(super) fn show(&self) -> Vec<String> {
        let pods = self.world.list::<Pod>(PODS);
        let of = |pod: &Pod| {
            let state = match () {
                () if pod.metadata.deletion_timestamp.is_some() => " leaving",
                () if pods::is_ready(pod) => "",
                () => " unready",
            };
            format!("{} {}{state}", pod.name_any(), image_of(pod))
        };
        let mut shown: Vec<(usize, String)> = pods.iter().map(|pod| (pod.name_any().len(), of(pod))).collect();
        shown.sort();
        shown.into_iter().map(|(_, text)| text).collect()
    }

    pub(super) fn available(&self) -> usize {
        let pods = self.world.list::<Pod>(PODS);
        pods.iter().filter(|pod| pods::is_ready(pod) && pod.metadata.deletion_timestamp.is_none()).count()
    }

    /// The revision of a pod, by its label.
    pub(super) fn revision_of(&self, name: &str) -> String {
        self.pod(name).expect("a pod").labels()[annotations::CONTROLLER_REVISION_HASH].clone()
    }
}

pub(super) fn image_of(pod: &Pod) -> String {
    pod.spec.containers[0].image.clone().unwrap_or_default()
}
