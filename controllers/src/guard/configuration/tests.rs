//! Stories of a stateful set whose configuration is rolled out: the guard and the history it steers, in a world where a set has
//! one pod, which does what its configuration says.

use super::super::{
    configuration::is_awaited,
    configured, is_held,
    plan::{Action, Seen, plan},
    ward::{Guarded, Ward},
};
use crate::{
    Key,
    history::{History, Parent, Pending, Write},
    patch::{json, merge_diff},
    rollback::{Live, Surroundings, marks},
    sim::World,
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;
use proa_crds::{
    ControllerRevision, Family, Pod, RolloutPolicy, RolloutPolicySpec, StatefulSet, annotations, policy::WorkloadKind,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

const SETS: &str = "statefulsets";
const REVISIONS: &str = "controllerrevisions";

pub(super) struct Sim {
    pub(super) world: World,
    pub(super) policy: Option<RolloutPolicySpec>,
    /// What the pods that were made read first, in order.
    pub(super) read: Vec<String>,
}

pub(super) fn key(name: &str) -> Key {
    Key::new("ns", name)
}

impl Sim {
    /// A set that reads its variables from the ConfigMap `conf`, at rest.
    pub(super) fn new(value: &str) -> Sim {
        let mut world = World::new();
        world.create("configmaps", &json!({"metadata": {"name": "conf", "namespace": "ns"}, "data": {"k": value}}));
        world.create(SETS, &json!({
            "metadata": {"name": "db", "namespace": "ns"},
            "spec": {"replicas": 1, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}}, "template": {
                "metadata": {"labels": {"app": "db"}},
                "spec": {"containers": [{"name": "c", "image": "v1", "envFrom": [{"configMapRef": {"name": "conf"}}]}]}}},
        }));
        let policy = serde_json::from_value(json!({"configuration": "Rollout"})).expect("a policy");
        let mut sim = Sim { world, policy: Some(policy), read: Vec::new() };
        sim.settle();
        sim
    }

    fn set(&self) -> Arc<StatefulSet> {
        self.world.get(SETS, &key("db")).expect("the set")
    }

    fn revisions(&self) -> Vec<Arc<ControllerRevision>> {
        self.world.controlled_by(REVISIONS, &self.set().uid().expect("a uid"))
    }

    pub(super) fn numbers(&self) -> Vec<i64> {
        let mut numbers: Vec<i64> = self.revisions().iter().map(|held| held.revision).collect();
        numbers.sort_unstable();
        numbers
    }

    pub(super) fn configure(&mut self, value: &str) {
        assert!(self.world.patch("configmaps", &key("conf"), &json!({"data": {"k": value}})));
        self.world.pass(1);
        self.settle();
    }

    pub(super) fn edit(&mut self, patch: Value) {
        assert!(self.world.patch(SETS, &key("db"), &patch));
    }

    /// As stock kubectl: the template of that revision as it was recorded.
    pub(super) fn undo(&mut self, number: i64) {
        let held = self.revisions().into_iter().find(|held| held.revision == number).expect("that revision");
        let template = json(&crate::history::template_of(&held).expect("a template"));
        if let Some(change) = merge_diff(&self.template(), &template) {
            self.edit(json!({"spec": {"template": change}}));
        }
        self.settle();
    }

    /// What a pod reads.
    fn value(&self, pod: &Pod) -> String {
        match marks::note(&pod.metadata, annotations::CONFIG_REVISION) {
            Some(copy) => {
                let secret: Arc<Secret> = self.world.get("secrets", &key(copy)).expect("the copy");
                let kept = &secret.data.as_ref().expect("data")["configmap.conf"].0;
                let kept: Value = serde_json::from_slice(kept).expect("JSON");
                kept["data"]["k"].as_str().expect("text").to_owned()
            }
            None => {
                let map: Arc<ConfigMap> = self.world.get("configmaps", &key("conf")).expect("it");
                map.data.as_ref().expect("data")["k"].clone()
            }
        }
    }

    pub(super) fn pod(&self) -> Arc<Pod> {
        self.world.get("pods", &key("db-0")).expect("the pod")
    }

    fn running(&self) -> String {
        self.value(&self.pod())
    }

    pub(super) fn condition(&self, type_: &str) -> Option<(String, String)> {
        let status = self.set().status.clone()?;
        let held = status.conditions.into_iter().flatten().find(|held| held.type_ == type_)?;
        Some((held.status, held.message.unwrap_or_default()))
    }

    pub(super) fn settle(&mut self) {
        for _ in 0..60 {
            let before = self.world.clone();
            self.step_loop();
            self.step_guard();
            let same = |kind| self.world.list::<Value>(kind) == before.list::<Value>(kind);
            if [SETS, REVISIONS, "pods"].into_iter().all(same) {
                return;
            }
        }
        panic!("the set does not come to rest: {:?}", self.numbers());
    }

    /// What the loop of the kind does that matters here: the history, and a pod of the current revision.
    fn step_loop(&mut self) {
        let (set, kind) = (self.set(), Family::Standard.stateful_set());
        let policy =
            |spec: &RolloutPolicySpec| Arc::new(RolloutPolicy::new("p", &proa_crds::rollout_policies(), spec.clone()));
        let policies: Vec<_> = self.policy.iter().map(policy).collect();
        if is_awaited(WorkloadKind::StatefulSet, &set.metadata, &set.spec.template, &policies) {
            return;
        }
        let parent = Parent::of_stateful_set(&set, &kind);
        let history = History::of(&parent, &self.revisions());
        let current = match history.current(&parent) {
            Ok(current) => current.clone(),
            Err(Pending::Configuration) => return,
            Err(Pending::Record(Write::Create(revision))) => {
                assert!(self.world.create(REVISIONS, &*revision), "a name of its own");
                return;
            }
            Err(Pending::Record(Write::Renumber(held, number))) => {
                assert!(self.world.patch(REVISIONS, &key(&held.name_any()), &json!({"revision": number})));
                return;
            }
            Err(other) => panic!("{other:?}"),
        };
        let pod: Option<Arc<Pod>> = self.world.get("pods", &key("db-0"));
        let made_of = |pod: &Arc<Pod>| pod.labels().get(annotations::CONTROLLER_REVISION_HASH).cloned();
        if is_held(&set.metadata, &current) || pod.as_ref().and_then(made_of) == Some(current.name_any()) {
            return;
        }
        self.world.delete("pods", &key("db-0"));
        let labels = json!({annotations::CONTROLLER_REVISION_HASH: current.name_any()});
        let pod = json!({"metadata": {"name": "db-0", "namespace": "ns", "labels": labels}, "spec": {"containers": [], "nodeName": "n"}});
        let mut pod = configured(serde_json::from_value(pod).expect("a pod"), &current);
        let value = self.value(&pod);
        let status = match value.as_str() {
            "bad" => json!({"containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": false,
                "restartCount": 1, "state": {"terminated": {"exitCode": 3}}}]}),
            _ => json!({"conditions": [{"type": "Ready", "status": "True"}]}),
        };
        pod.status = Some(serde_json::from_value(status).expect("a status"));
        self.read.push(value);
        assert!(self.world.create("pods", &pod));
    }

    fn seen(&self) -> Seen {
        let (set, kind) = (self.set(), Family::Standard.stateful_set());
        let parent = set.parent(&kind);
        let history = History::of(&parent, &self.revisions());
        let current = history.current(&parent).ok().cloned();
        let pod: Option<Arc<Pod>> = self.world.get("pods", &key("db-0"));
        let of = |held: &Arc<ControllerRevision>| {
            let made =
                |pod: &&Arc<Pod>| pod.labels().get(annotations::CONTROLLER_REVISION_HASH) == Some(&held.name_any());
            (held.name_any(), pod.iter().filter(made).cloned().collect::<Vec<_>>())
        };
        let pods: BTreeMap<_, _> = history.all().iter().map(of).collect();
        let ready = |pod: &Arc<Pod>| crate::pods::is_ready(pod);
        let complete = current.as_ref().is_some_and(|current| pods[&current.name_any()].iter().any(ready));
        let by_name = |map: Arc<ConfigMap>| (map.name_any(), map);
        Seen {
            family: Family::Standard,
            ward: Ward {
                meta: set.metadata.clone(),
                template: set.spec.template.clone(),
                conditions: set.conditions(),
                wanted: 1,
                complete,
            },
            revisions: history.all().to_vec(),
            current,
            pods,
            policy: self.policy.clone(),
            live: Live {
                config_maps: self.world.list::<ConfigMap>("configmaps").into_iter().map(by_name).collect(),
                secrets: self.world.list::<Secret>("secrets").into_iter().map(|held| (held.name_any(), held)).collect(),
                ..Live::default()
            },
            around: Surroundings::default(),
            checks: BTreeMap::new(),
        }
    }

    fn step_guard(&mut self) {
        let now = self.world.now + Duration::from_secs(1);
        for action in plan(&self.seen(), now).actions {
            let annotate = |changes: &Value| json!({"metadata": {"annotations": changes}});
            match action {
                Action::Mark { revision, changes } => {
                    assert!(self.world.patch(REVISIONS, &key(&revision), &annotate(&changes)))
                }
                Action::MarkFailed { revision, failure, .. } => {
                    let changes = marks::failed_with(&failure);
                    assert!(self.world.patch(REVISIONS, &key(&revision), &annotate(&changes)));
                }
                // What changed meanwhile is a conflict, and looked at again.
                Action::Patch(patch) => _ = self.world.patch(SETS, &key("db"), &patch),
                Action::Conditions(list) => self.edit(json!({"status": {"conditions": json(&list)}})),
                Action::PointToConfig { pods, secret } => {
                    for pod in pods {
                        let changes = json!({annotations::CONFIG_REVISION: secret});
                        self.world.patch("pods", &key(&pod), &annotate(&changes));
                    }
                }
                // Equal content is kept once.
                Action::KeepConfig(secret) => _ = self.world.create("secrets", &*secret),
                Action::DropConfig { .. } | Action::Ask(_) | Action::Note(_) => {}
                Action::Read(unknown) => panic!("{unknown:?} is known"),
            }
        }
    }

    pub(super) fn template(&self) -> Value {
        json(&self.set().spec.template)
    }
}

#[test]
fn a_change_of_configuration_alone_is_a_rollout_of_its_own_and_the_template_stays_as_it_was_written() {
    let mut sim = Sim::new("one");
    let written = sim.template();
    assert_eq!((sim.numbers(), sim.running().as_str()), (vec![1], "one"));
    sim.configure("two");
    assert_eq!((sim.numbers(), sim.running().as_str()), (vec![1, 2], "two"));
    sim.configure("one");
    assert_eq!((sim.numbers(), sim.running().as_str()), (vec![2, 3], "one"), "it is the first revision again");
    assert_eq!((sim.read.join(" "), sim.template()), ("one two one".to_owned(), written));
    assert_eq!(sim.condition("ConfigRevision").map(|(status, _)| status), None, "all of it was live");
}

#[test]
fn configuration_gone_wrong_goes_back_and_stays_back_until_it_changes() {
    let mut sim = Sim::new("one");
    let written = sim.template();
    sim.configure("bad");
    let (status, message) = sim.condition("RolledBack").expect("it is said");
    assert!(status == "True" && message.contains("went back to revision 1, which is now revision 3"), "{message}");
    assert_eq!((sim.numbers(), sim.running().as_str()), (vec![2, 3], "one"));
    assert_eq!(sim.condition("ConfigRevision").expect("it").0, "True");
    assert_eq!(sim.template(), written);
    sim.settle();
    assert_eq!(sim.read.join(" "), "one bad one", "what is known to fail is not tried again");
    sim.configure("mended");
    assert_eq!((sim.numbers(), sim.running().as_str()), (vec![2, 3, 4], "mended"));
    assert_eq!(sim.condition("RolledBack").expect("it").0, "False");
    assert_eq!(sim.condition("ConfigRevision").expect("it").0, "False");
}

#[test]
fn the_failed_configuration_is_tried_again_when_somebody_asks() {
    let mut sim = Sim::new("one");
    sim.configure("bad");
    sim.edit(json!({"metadata": {"annotations": {annotations::RETRY: "1"}}}));
    sim.settle();
    assert_eq!((sim.read.join(" ").as_str(), sim.running().as_str()), ("one bad one bad one", "one"));
}

#[test]
fn an_undo_of_stock_kubectl_brings_that_configuration_back_until_the_live_one_changes() {
    let mut sim = Sim::new("one");
    let written = sim.template();
    sim.configure("two");
    sim.undo(1);
    assert_eq!((sim.numbers(), sim.running().as_str()), (vec![2, 3], "one"));
    assert_eq!(sim.template(), written, "what the undo named is taken out again");
    sim.undo(2);
    assert_eq!((sim.numbers(), sim.running().as_str()), (vec![3, 4], "two"), "an undo of an undo");
    assert_eq!(marks::note(&sim.pod().metadata, annotations::CONFIG_REVISION), None);
    sim.undo(3);
    sim.configure("three");
    assert_eq!((sim.numbers(), sim.running().as_str()), (vec![4, 5, 6], "three"));
}

#[test]
fn template_and_configuration_that_change_together_are_one_revision() {
    let mut sim = Sim::new("one");
    let image = |image: &str| {
        json!({"spec": {"template": {"spec": {"containers": [
        {"name": "c", "image": image, "envFrom": [{"configMapRef": {"name": "conf"}}]}]}}}})
    };
    sim.edit(image("v2"));
    sim.configure("two");
    assert_eq!((sim.numbers(), sim.read.join(" ").as_str()), (vec![1, 2], "one two"));
    sim.undo(1);
    assert_eq!((sim.numbers(), sim.running().as_str()), (vec![2, 3], "one"), "both come back");
}

#[test]
fn a_revision_from_before_the_policy_comes_back_with_what_it_ran_with() {
    let mut sim = Sim::new("one");
    let policy = sim.policy.take();
    sim.settle();
    sim.edit(json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 3}}}}));
    sim.settle();
    sim.policy = policy;
    sim.configure("two");
    assert_eq!(sim.running(), "two");
    sim.undo(1);
    assert_eq!(sim.running(), "one");
    sim.settle();
    assert_eq!(sim.running(), "one");
}

#[test]
fn a_policy_that_comes_after_an_undo_leaves_what_was_gone_back_to() {
    let mut sim = Sim::new("one");
    let policy = sim.policy.replace(RolloutPolicySpec::default());
    sim.settle();
    sim.edit(json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 3}}}}));
    sim.configure("two");
    sim.undo(1);
    assert_eq!((sim.running().as_str(), sim.read.len()), ("one", 3));
    sim.policy = policy;
    sim.settle();
    assert_eq!((sim.running().as_str(), sim.read.len()), ("one", 3), "nobody changed anything");
    sim.configure("three");
    assert_eq!((sim.running().as_str(), sim.read.len()), ("three", 4));
}

#[test]
fn a_policy_that_no_longer_wants_it_leaves_the_last_revision_as_it_is() {
    let mut sim = Sim::new("one");
    sim.configure("two");
    let policy = sim.policy.take();
    sim.configure("three");
    assert_eq!((sim.numbers(), sim.read.join(" ").as_str()), (vec![1, 2], "one two"));
    sim.policy = policy;
    sim.settle();
    assert_eq!(
        (sim.numbers(), sim.running().as_str()),
        (vec![1, 2, 3], "three"),
        "and rolls it out when it does again"
    );
}
