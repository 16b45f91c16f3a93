//! Jobs and CronJobs: what a story starts of them, and the laws that a pod is counted exactly once and a time is started
//! at most once, whatever dies in between.
//!
//! Owns: the record of how the pods of Jobs ended, judged at every commit, and the judgement of Jobs at rest.

use crate::objects::Objects;
use jiff::{Timestamp, tz::TimeZone};
use proa_apimachinery::cron::Schedule;
use rand::{Rng, rngs::StdRng};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const JOBS: &str = "/registry/jobs.batch/";
pub(crate) const CRON_JOBS: &str = "/registry/cronjobs.batch/";
const TRACKING: &str = "batch.kubernetes.io/job-tracking";

/// How often a CronJob of a story fires.
const EVERY: &str = "*/3 * * * *";
/// How long after its time a Job of a CronJob must be there when nothing disturbs.
const LATE: i64 = 20;

/// What was committed of Jobs and their pods.
#[derive(Default)]
pub(crate) struct JobRecords {
    /// By Job uid: the pods that ended, or were deleted, while they were tracked; and whether they succeeded.
    ended: BTreeMap<String, BTreeMap<String, bool>>,
    /// By CronJob uid: the names of all Jobs it ever made.
    made: BTreeMap<String, BTreeSet<String>>,
}

impl JobRecords {
    /// A pod as it was committed.
    pub(crate) fn pod(&mut self, pod: &Value) {
        let Some(job) = controller(pod, "Job") else { return };
        let tracked = pod["metadata"]["finalizers"].as_array().is_some_and(|held| held.iter().any(|f| f == TRACKING));
        let phase = pod["status"]["phase"].as_str();
        let over = matches!(phase, Some("Succeeded" | "Failed"));
        if tracked && (over || pod["metadata"]["deletionTimestamp"].is_string()) {
            let entry = self.ended.entry(job).or_default().entry(uid(pod).to_owned()).or_default();
            *entry |= phase == Some("Succeeded");
        }
    }

    /// A Job as it was committed; what is wrong with that.
    pub(crate) fn job(&mut self, key: &str, job: &Value, new: bool) -> Option<String> {
        if let (true, Some(cron)) = (new, controller(job, "CronJob")) {
            let name = job["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if !self.made.entry(cron).or_default().insert(name) {
                return Some(format!("{key} is started a second time"));
            }
        }
        let none = BTreeMap::new();
        let ended = self.ended.get(uid(job)).unwrap_or(&none);
        let waiting = |field: &str| job["status"]["uncountedTerminatedPods"][field].as_array().map_or(0, Vec::len);
        let counted = |field: &str| job["status"][field].as_u64().unwrap_or(0) as usize;
        let well = ended.values().filter(|well| **well).count();
        let claims = (counted("succeeded") + waiting("succeeded"), counted("failed") + waiting("failed"));
        if claims.0 > well || claims.0 + claims.1 > ended.len() {
            let (succeeded, failed) = claims;
            let really = ended.len();
            return Some(format!(
                "{key} claims {succeeded} successes of {well}, with {failed} failures of {really} ends"
            ));
        }
        None
    }

    /// Whether every Job is complete and has counted every pod, and every CronJob has started what was due.
    pub(crate) fn at_rest(&self, objects: &Objects, now: Timestamp) -> Result<(), String> {
        for (key, job) in objects.keyed(JOBS) {
            self.job_at_rest(job).map_err(|why| format!("{key}: {why}"))?;
        }
        for (key, cron) in objects.keyed(CRON_JOBS) {
            cron_at_rest(cron, now).map_err(|why| format!("{key}: {why}"))?;
        }
        for (key, pod) in objects.keyed("/registry/pods/") {
            if pod["metadata"]["finalizers"].as_array().is_some_and(|held| !held.is_empty()) {
                return Err(format!("{key} is not counted"));
            }
        }
        Ok(())
    }

    fn job_at_rest(&self, job: &Value) -> Result<(), String> {
        let (spec, status) = (&job["spec"], &job["status"]);
        let conditions = status["conditions"].as_array();
        let complete =
            conditions.into_iter().flatten().any(|held| held["type"] == "Complete" && held["status"] == "True");
        if !complete {
            return Err(format!("is not complete: {status}"));
        }
        let count = |value: &Value| value.as_u64().unwrap_or(0) as usize;
        let (wanted, succeeded) = (count(&spec["completions"]), count(&status["succeeded"]));
        let ended = self.ended.get(uid(job)).map_or(0, BTreeMap::len);
        if spec["completionMode"] == "Indexed" {
            let all = (0..wanted as u32).collect::<proa_apimachinery::indexes::Indexes>().to_string();
            if succeeded != wanted || status["completedIndexes"] != *all {
                return Err(format!("has {} of {all}", status["completedIndexes"]));
            }
        } else if succeeded < wanted || succeeded + count(&status["failed"]) != ended {
            return Err(format!(
                "counts {succeeded} of {wanted} and {} failures; {ended} pods ended",
                status["failed"]
            ));
        }
        for field in ["active", "ready", "terminating"] {
            if count(&status[field]) != 0 {
                return Err(format!("status.{field} is {}", status[field]));
            }
        }
        Ok(())
    }
}

fn cron_at_rest(cron: &Value, now: Timestamp) -> Result<(), String> {
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let created = time(&cron["metadata"]["creationTimestamp"]).unwrap_or(now);
    let schedule = Schedule::parse(EVERY).expect("a schedule");
    let settled = Timestamp::from_second(now.as_second() - LATE).expect("in range");
    let due = schedule.last(created, settled, &TimeZone::UTC).map(|due| due.at);
    let started = time(&cron["status"]["lastScheduleTime"]);
    if started < due {
        return Err(format!("{due:?} was due, {started:?} was started last"));
    }
    Ok(())
}

fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// The uid of the controller, if it is of that kind.
fn controller(object: &Value, kind: &str) -> Option<String> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == true && owner["kind"] == kind)?;
    owner["uid"].as_str().map(str::to_owned)
}

/// A Job that will be complete in the end, whatever happens to its pods.
pub(crate) fn a_job(name: &str, chance: &mut StdRng) -> Value {
    let (completions, parallelism) = (chance.random_range(1..=4), chance.random_range(1..=3));
    let mode = if chance.random_bool(0.5) { "Indexed" } else { "NonIndexed" };
    let replaced = if chance.random_bool(0.3) { "Failed" } else { "TerminatingOrFailed" };
    let image = if chance.random_bool(0.5) { "done1" } else { "flaky1" };
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {
            "completions": completions, "parallelism": parallelism, "completionMode": mode, "backoffLimit": 1_000,
            "podReplacementPolicy": replaced, "template": template(image),
        },
    })
}

/// A CronJob that fires every few minutes.
pub(crate) fn a_cron_job(name: &str, chance: &mut StdRng) -> Value {
    let policy = ["Allow", "Forbid", "Replace"][chance.random_range(0..3)];
    json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name},
        "spec": {
            "schedule": EVERY, "concurrencyPolicy": policy, "successfulJobsHistoryLimit": 1,
            "jobTemplate": {"spec": {"backoffLimit": 1_000, "template": template("done1")}},
        },
    })
}

fn template(image: &str) -> Value {
    json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": image}]}})
}
