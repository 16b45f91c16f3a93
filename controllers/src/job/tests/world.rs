//! One Job, its pods, and a node that ends them; everything the loop plans is done to them, or half of it.

use crate::{
    Key, Plan,
    events::Note,
    job::{Action, Outcome, Seen, TRACKING_FINALIZER, make::pod_of, plan, pods},
    owners,
    patch::{json, merge_diff},
    selector,
    sim::{World, merge},
};
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use kube::{ResourceExt, core::ApiResource};
use proa_crds::{Family, Pod};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

const JOB: &str = "Job";
const POD: &str = "Pod";

#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) world: World,
    pub(super) notes: Vec<Note>,
    /// Every pod that ended or was deleted while it was tracked, and whether it ended well.
    pub(super) ended: BTreeMap<String, bool>,
}

fn job_key() -> Key {
    Key::new("ns", "work")
}

impl Case {
    /// A Job as the API server defaults it, with this spec.
    pub(super) fn new(spec: Value) -> Case {
        let mut case = Case { world: World::new(), notes: Vec::new(), ended: BTreeMap::new() };
        let labels = json!({"batch.kubernetes.io/controller-uid": "Job-1", "batch.kubernetes.io/job-name": "work"});
        let mut job = json!({
            "metadata": {"name": "work", "namespace": "ns"},
            "spec": {
                "parallelism": 1, "backoffLimit": 6, "completionMode": "NonIndexed", "suspend": false,
                "podReplacementPolicy": "TerminatingOrFailed",
                "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": "Job-1"}},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "i"}]},
                },
            },
        });
        merge(&mut job, &json!({"spec": spec}));
        assert!(case.world.create(JOB, &job));
        case
    }

    pub(super) fn job(&self) -> Option<Arc<Job>> {
        self.world.get(JOB, &job_key())
    }

    pub(super) fn status(&self) -> JobStatus {
        self.job().and_then(|job| job.status.clone()).unwrap_or_default()
    }

    /// Changes the Job, as a user does.
    pub(super) fn edit(&mut self, patch: Value) {
        assert!(self.world.patch(JOB, &job_key(), &patch));
    }

    /// Takes the Job away and leaves its pods (`kubectl delete --cascade=orphan`).
    pub(super) fn orphan(&mut self) {
        for pod in self.pods() {
            self.patch_pod(&pod, json!({"metadata": {"ownerReferences": []}}));
        }
        self.world.delete(JOB, &job_key());
    }

    pub(super) fn pods(&self) -> Vec<Arc<Pod>> {
        self.world.list(POD)
    }

    pub(super) fn active(&self) -> Vec<Arc<Pod>> {
        self.pods().into_iter().filter(|pod| crate::pods::is_active(pod)).collect()
    }

    /// The active pod of an index.
    pub(super) fn of_index(&self, index: u32) -> Arc<Pod> {
        self.active().into_iter().find(|pod| pods::index(pod) == Some(index)).expect("a pod of that index")
    }

    /// The indexes of the active pods, in order.
    pub(super) fn active_indexes(&self) -> Vec<u32> {
        let mut indexes: Vec<u32> = self.active().iter().filter_map(|pod| pods::index(pod)).collect();
        indexes.sort_unstable();
        indexes
    }

    pub(super) fn patch_pod(&mut self, pod: &Pod, patch: Value) {
        self.world.patch(POD, &Key::of(pod), &patch);
        self.clear_away();
    }

    /// The conditions that are true, in the order they were said, with their reasons.
    pub(super) fn said(&self) -> Vec<(String, String)> {
        let conditions = self.status().conditions.unwrap_or_default();
        let held = conditions.into_iter().filter(|held| held.status == "True");
        held.map(|held| (held.type_, held.reason.unwrap_or_default())).collect()
    }

    /// What is true is exactly this.
    #[track_caller]
    pub(super) fn says(&self, expected: &[(&str, &str)]) {
        let said = self.said();
        assert_eq!(said.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect::<Vec<_>>(), expected);
    }

    // The node and the users.

    fn mark_ended(&mut self, pod: &Pod, well: bool) {
        if pods::is_tracked(pod) {
            let entry = self.ended.entry(pod.metadata.uid.clone().unwrap_or_default()).or_insert(well);
            *entry |= well;
        }
    }

    /// The pod's container ends with that code.
    pub(super) fn exit(&mut self, pod: &Pod, code: i32) {
        let now = self.world.now;
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        let ended = json!({"exitCode": code, "finishedAt": now.to_string(), "reason": "Error"});
        let container = json!({"name": "main", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": ended}});
        self.mark_ended(pod, code == 0);
        self.patch_pod(pod, json!({"status": {"phase": phase, "containerStatuses": [container]}}));
    }

    /// Somebody deletes the pod; its node ends it later.
    pub(super) fn delete(&mut self, pod: &Pod) {
        self.mark_ended(pod, false);
        self.mark_deleted(pod);
    }

    fn mark_deleted(&mut self, pod: &Pod) {
        let now = self.world.now.to_string();
        self.patch_pod(pod, json!({"metadata": {"deletionTimestamp": now}}));
    }

    /// The node ends every pod that is being deleted.
    pub(super) fn reap(&mut self) {
        for pod in self.pods().into_iter().filter(|pod| pods::is_terminating(pod)) {
            let already = self.ended.clone();
            self.exit(&pod, 143);
            // Its end was its deletion.
            self.ended = already;
        }
    }

    /// What is deleted, has ended, and waits for nobody is gone.
    fn clear_away(&mut self) {
        for pod in self.pods() {
            let waits = pod.metadata.finalizers.iter().flatten().next().is_some();
            if pod.metadata.deletion_timestamp.is_some() && crate::pods::is_over(&pod) && !waits {
                self.world.delete(POD, &Key::of(pod.as_ref()));
            }
        }
    }

    // The loop.

    fn seen(&self) -> Seen {
        let job = self.job();
        let (uid, chosen) = match &job {
            Some(job) => {
                (job.metadata.uid.clone().unwrap_or_default(), job.spec.as_ref().and_then(|s| s.selector.clone()))
            }
            None => (String::new(), None),
        };
        let chosen = chosen.unwrap_or_default();
        let (mine, others): (Vec<_>, Vec<_>) =
            self.pods().into_iter().partition(|pod| owners::is_controlled_by(&pod.metadata, &uid));
        let (orphans, strays) = others.into_iter().partition(|pod| {
            job.is_some()
                && owners::controller_of(&pod.metadata).is_none()
                && selector::matches(&chosen, pod.metadata.labels.as_ref())
        });
        let mut strays: Vec<Arc<Pod>> = strays;
        strays.retain(|pod| pods::is_tracked(pod));
        Seen { job, pods: mine, orphans, strays }
    }

    pub(super) fn plan(&self) -> Plan<Action> {
        plan(&self.seen(), self.world.now)
    }

    /// Until there is nothing to do; what the loop then waits for, in seconds.
    #[track_caller]
    pub(super) fn run(&mut self) -> Option<u64> {
        for _ in 0..200 {
            let plan = self.plan();
            if plan.actions.is_empty() {
                return plan.again.map(|again| again.as_secs());
            }
            for action in plan.actions {
                self.act(action, usize::MAX);
            }
        }
        panic!("the loop does not come to rest: {:?}", self.plan().actions);
    }

    /// One look, killed after so many writes.
    pub(super) fn stumble(&mut self, mut writes: usize) {
        for action in self.plan().actions {
            writes -= self.act(action, writes);
            if writes == 0 {
                return;
            }
        }
    }

    /// Does an action, at most so many writes of it; how many it took.
    fn act(&mut self, action: Action, most: usize) -> usize {
        match action {
            Action::Status(outcome) => {
                let Outcome { status, vanished, notes, version } = *outcome;
                assert_eq!(version, self.job().and_then(|job| job.metadata.resource_version.clone()));
                let held: BTreeSet<String> = self.pods().iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
                assert!(vanished.iter().all(|uid| !held.contains(uid)));
                let held = json(&self.job().and_then(|job| job.status.clone()).unwrap_or_default());
                if let Some(change) = merge_diff(&held, &json(&status)) {
                    self.edit(json!({"status": change}));
                }
                self.notes.extend(notes);
                1
            }
            Action::Untrack(pods) => self.each(pods, most, |case, pod| case.untrack(pod)),
            Action::Create(orders, _) => {
                let job = self.job().expect("a Job");
                let done = orders.len().min(most);
                for order in orders.into_iter().take(most) {
                    let mut pod = json(&pod_of(&job, &order, &ApiResource::erase::<Job>(&()), &Family::Standard.pod()));
                    merge(&mut pod, &json!({"status": {"phase": "Running"}}));
                    assert!(self.world.create(POD, &pod));
                }
                done
            }
            Action::Discard(pods) => {
                let half = self.each(pods.clone(), most, |case, pod| case.untrack(pod));
                half + self.each(pods, most - half, |case, pod| case.mark_deleted(pod))
            }
            Action::Delete(pods) => self.each(pods, most, |case, pod| case.delete(pod)),
            Action::Adopt(pod) => {
                let job = self.job().expect("a Job");
                let owner = owners::controller_reference(job.as_ref(), &ApiResource::erase::<Job>(&()));
                let claim = json!({"metadata": {"ownerReferences": [owner], "finalizers": [TRACKING_FINALIZER]}});
                self.patch_pod(&pod, claim);
                1
            }
            Action::Release(pod) => {
                self.patch_pod(&pod, json!({"metadata": {"ownerReferences": [], "finalizers": []}}));
                1
            }
            Action::Expire => {
                self.world.delete(JOB, &job_key());
                1
            }
        }
    }

    fn each(&mut self, pods: Vec<Arc<Pod>>, most: usize, act: impl Fn(&mut Case, &Pod)) -> usize {
        let done = pods.len().min(most);
        pods.iter().take(most).for_each(|pod| act(self, pod));
        done
    }

    fn untrack(&mut self, pod: &Pod) {
        self.patch_pod(pod, json!({"metadata": {"finalizers": []}}));
    }

    /// Whether an event with that reason was written.
    pub(super) fn told(&self, reason: &str) -> bool {
        self.notes.iter().any(|note| note.reason == reason)
    }

    /// The names of all pods.
    pub(super) fn names(&self) -> Vec<String> {
        self.pods().iter().map(|pod| pod.name_any()).collect()
    }
}
