//! Stories and laws of one CronJob. Time is a value: a year passes in a test.

use super::*;
use crate::sim::{World, merge};
use proptest::prelude::*;
use serde_json::Value;
use std::collections::BTreeSet;

const CRON: &str = "CronJob";
const JOB: &str = "Job";

/// One CronJob, its Jobs, and what is done to them.
#[derive(Clone, Debug)]
struct Case {
    world: World,
    told: Option<(&'static str, Timestamp)>,
    notes: Vec<Note>,
    /// Every name under which a Job was made.
    made: Vec<String>,
}

impl Case {
    /// A CronJob as the API server defaults it, made at ten o'clock.
    fn new(spec: Value) -> Case {
        let mut case = Case { world: World::new(), told: None, notes: Vec::new(), made: Vec::new() };
        let mut cron = json!({
            "metadata": {"name": "tick", "namespace": "ns"},
            "spec": {
                "schedule": "*/5 * * * *", "concurrencyPolicy": "Allow", "suspend": false,
                "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 1,
                "jobTemplate": {
                    "metadata": {"labels": {"app": "tick"}, "annotations": {"a": "b"}},
                    "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}},
                },
            },
        });
        merge(&mut cron, &json!({"spec": spec}));
        assert!(case.world.create(CRON, &cron));
        case
    }

    fn key() -> Key {
        Key::new("ns", "tick")
    }

    fn cron(&self) -> Arc<CronJob> {
        self.world.get(CRON, &Self::key()).expect("the CronJob")
    }

    fn status(&self) -> CronJobStatus {
        self.cron().status.clone().unwrap_or_default()
    }

    fn edit(&mut self, patch: Value) {
        assert!(self.world.patch(CRON, &Self::key(), &patch));
    }

    fn jobs(&self) -> Vec<Arc<Job>> {
        self.world.list(JOB)
    }

    fn names(&self) -> Vec<String> {
        self.jobs().iter().map(|job| job.name_any()).collect()
    }

    fn plan(&self) -> Plan<Action> {
        let uid = self.cron().metadata.uid.clone().unwrap_or_default();
        let (jobs, others): (Vec<_>, Vec<_>) =
            self.jobs().into_iter().partition(|job| owners::is_controlled_by(&job.metadata, &uid));
        let foreign = others.iter().map(|job| job.name_any()).collect();
        plan(&Seen { cron: self.cron(), jobs, foreign, told: self.told }, self.world.now)
    }

    /// Until there is nothing to do; what the loop then waits for, in seconds.
    #[track_caller]
    fn run(&mut self) -> Option<u64> {
        for _ in 0..100 {
            let plan = self.plan();
            if plan.actions.is_empty() {
                return plan.again.map(|again| again.as_secs());
            }
            plan.actions.into_iter().for_each(|action| self.act(action));
        }
        panic!("the loop does not come to rest: {:?}", self.plan().actions);
    }

    /// One look, killed after so many actions.
    fn stumble(&mut self, actions: usize) {
        self.plan().actions.into_iter().take(actions).for_each(|action| self.act(action));
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Status(status, version, notes) => {
                assert_eq!(version, self.cron().metadata.resource_version);
                let change = merge_diff(&json(&self.status()), &json(&*status)).unwrap_or_default();
                self.edit(json!({"status": change}));
                self.notes.extend(notes);
            }
            Action::Create(_, job) => {
                assert!(self.world.create(JOB, &*job), "{} is made twice", job.name_any());
                self.made.push(job.name_any());
            }
            Action::Delete(jobs) => jobs.iter().for_each(|job| self.world.delete(JOB, &Key::of(job.as_ref()))),
            Action::Tell(note, about) => {
                self.told = Some((note.reason, about));
                self.notes.push(note);
            }
        }
    }

    /// The Job ends.
    fn end(&mut self, name: &str, how: &str) {
        let now = self.world.now.to_string();
        let mut status =
            json!({"startTime": now, "conditions": [{"type": how, "status": "True", "lastTransitionTime": now}]});
        if how == "Complete" {
            status["completionTime"] = json!(now);
        }
        assert!(self.world.patch(JOB, &Key::new("ns", name), &json!({"status": status})));
    }

    fn at(&mut self, time: &str) {
        self.world.now = time.parse().expect("a time");
    }

    fn reasons(&self) -> Vec<&'static str> {
        self.notes.iter().map(|note| note.reason).collect()
    }
}

/// The name of the Job of that time.
fn named(time: &str) -> String {
    let at: Timestamp = time.parse().expect("a time");
    format!("tick-{}", at.as_second() / 60)
}

#[test]
fn a_job_is_made_at_each_time_of_the_schedule_and_named_after_it() {
    let mut case = Case::new(json!({}));
    assert_eq!((case.run(), case.jobs().len()), (Some(300), 0), "made at ten, first due at five past");
    case.at("2026-11-21T10:05:00Z");
    assert_eq!(case.run(), Some(300));
    let name = named("2026-11-21T10:05:00Z");
    assert_eq!(case.names(), std::slice::from_ref(&name));
    let job = case.jobs()[0].clone();
    assert_eq!(job.labels()["app"], "tick");
    assert_eq!(
        (
            job.annotations()["a"].as_str(),
            job.annotations()["batch.kubernetes.io/cronjob-scheduled-timestamp"].as_str()
        ),
        ("b", "2026-11-21T10:05:00Z")
    );
    let owner = owners::controller_of(&job.metadata).expect("an owner");
    assert_eq!((owner.kind.as_str(), owner.api_version.as_str(), owner.name.as_str()), ("CronJob", "batch/v1", "tick"));
    let status = case.status();
    assert_eq!(status.last_schedule_time.map(|time| time.0), "2026-11-21T10:05:00Z".parse().ok());
    assert_eq!(status.active.expect("it runs")[0].name.as_deref(), Some(name.as_str()));
    case.at("2026-11-21T10:06:00Z");
    case.end(&name, "Complete");
    case.run();
    let status = case.status();
    assert_eq!((status.active, status.last_successful_time.map(|time| time.0)), (None, Some(case.world.now)));
    assert_eq!(case.reasons(), ["SawCompletedJob"]);
}

/// Conformance: "CronJob AllowConcurrent".
#[test]
fn jobs_may_run_side_by_side() {
    let mut case = Case::new(json!({"concurrencyPolicy": "Allow"}));
    for time in ["2026-11-21T10:05:00Z", "2026-11-21T10:10:00Z"] {
        case.at(time);
        case.run();
    }
    assert_eq!(case.status().active.map(|active| active.len()), Some(2));
}

/// Conformance: "CronJob ForbidConcurrent".
#[test]
fn where_it_is_forbidden_one_job_runs_at_a_time_and_the_missed_one_follows() {
    let mut case = Case::new(json!({"concurrencyPolicy": "Forbid"}));
    case.at("2026-11-21T10:05:00Z");
    case.run();
    case.at("2026-11-21T10:10:00Z");
    case.run();
    case.run();
    assert_eq!((case.jobs().len(), case.reasons()), (1, vec!["JobAlreadyActive"]), "said once");
    case.at("2026-11-21T10:11:00Z");
    case.end(&named("2026-11-21T10:05:00Z"), "Complete");
    case.run();
    assert!(case.names().contains(&named("2026-11-21T10:10:00Z")));
}

/// Conformance: "CronJob ReplaceConcurrent".
#[test]
fn where_it_is_replaced_the_older_job_goes() {
    let mut case = Case::new(json!({"concurrencyPolicy": "Replace"}));
    case.at("2026-11-21T10:05:00Z");
    case.run();
    case.at("2026-11-21T10:10:00Z");
    case.run();
    assert_eq!(case.names(), [named("2026-11-21T10:10:00Z")]);
    assert_eq!(case.status().active.map(|active| active.len()), Some(1));
}

/// Conformance: "CronJob Suspend".
#[test]
fn a_suspended_one_starts_nothing_and_goes_on_with_the_latest_time() {
    let mut case = Case::new(json!({"suspend": true}));
    case.at("2026-11-21T10:22:00Z");
    assert_eq!((case.run(), case.jobs().len()), (None, 0));
    case.edit(json!({"spec": {"suspend": false}}));
    case.run();
    assert_eq!(case.names(), [named("2026-11-21T10:20:00Z")]);
}

#[test]
fn what_is_longer_ago_than_the_deadline_is_missed() {
    let mut case = Case::new(json!({"startingDeadlineSeconds": 60}));
    case.at("2026-11-21T10:07:00Z");
    case.run();
    case.run();
    assert_eq!((case.jobs().len(), case.reasons()), (0, vec!["MissSchedule"]));
    assert_eq!(case.notes[0].message, "Missed scheduled time to start a job: Sat, 21 Nov 2026 10:05:00 +0000");
    case.at("2026-11-21T10:10:59Z");
    case.run();
    assert_eq!(case.names(), [named("2026-11-21T10:10:00Z")]);
}

#[test]
fn of_many_missed_times_the_last_is_started_and_more_than_a_hundred_are_told() {
    for (days, told) in [(0, vec![]), (30, vec!["TooManyMissedTimes"])] {
        let mut case = Case::new(json!({}));
        case.world.pass(days * 24 * 3600 + 8 * 60);
        case.run();
        assert_eq!((case.jobs().len(), case.reasons()), (1, told), "{days}");
    }
}

#[test]
fn a_time_zone_says_when_a_day_begins() {
    let mut case = Case::new(json!({"schedule": "0 9 * * *", "timeZone": "Europe/Berlin"}));
    case.at("2026-11-22T08:00:00Z");
    case.run();
    assert_eq!(case.names(), [named("2026-11-22T08:00:00Z")]);
    let job = case.jobs()[0].clone();
    assert_eq!(job.annotations()["batch.kubernetes.io/cronjob-scheduled-timestamp"], "2026-11-22T09:00:00+01:00");
}

#[test]
fn what_cannot_be_meant_is_said_once_and_starts_nothing() {
    for (spec, reason) in [
        (json!({"timeZone": "Europe/Atlantis"}), "UnknownTimeZone"),
        (json!({"schedule": "every day"}), "UnparseableSchedule"),
        (json!({"schedule": "0 0 31 2 *"}), "InvalidSchedule"),
    ] {
        let mut case = Case::new(spec);
        case.world.pass(1_000_000);
        case.run();
        case.run();
        assert_eq!((case.jobs().len(), case.reasons()), (0, vec![reason]));
    }
}

#[test]
fn the_history_keeps_as_many_jobs_as_it_says() {
    let mut case = Case::new(json!({"successfulJobsHistoryLimit": 2, "failedJobsHistoryLimit": 1}));
    for n in 1..=8 {
        case.world.pass(300);
        case.run();
        let name = case.made.last().expect("one was made").clone();
        case.end(&name, if n % 2 == 0 { "Failed" } else { "Complete" });
    }
    case.run();
    let kept: BTreeSet<String> = case.names().into_iter().collect();
    let expected = [4, 6, 7].map(|n| case.made[n].clone());
    assert_eq!(kept, expected.into_iter().collect());
}

/// `kubectl create job --from=cronjob/tick` makes a Job that the CronJob owns.
#[test]
fn a_job_made_by_hand_is_in_nobodys_way() {
    let mut case = Case::new(json!({"concurrencyPolicy": "Forbid"}));
    let owner = owners::controller_reference(case.cron().as_ref(), &kube::core::ApiResource::erase::<CronJob>(&()));
    let by_hand = json!({"metadata": {"name": "tick-now", "namespace": "ns", "ownerReferences": [owner],
        "annotations": {"cronjob.kubernetes.io/instantiate": "manual"}}, "spec": {"template": {}}});
    assert!(case.world.create(JOB, &by_hand));
    case.at("2026-11-21T10:05:00Z");
    case.run();
    assert_eq!(case.jobs().len(), 2);
    assert_eq!(case.status().active.map(|active| active.len()), Some(1));
    case.end("tick-now", "Complete");
    case.run();
    assert!(case.status().last_successful_time.is_some(), "its success is one of the CronJob's");
}

#[test]
fn a_name_that_is_taken_is_told_once_and_taken_from_nobody() {
    let mut case = Case::new(json!({}));
    let foreign =
        json!({"metadata": {"name": named("2026-11-21T10:05:00Z"), "namespace": "ns"}, "spec": {"template": {}}});
    assert!(case.world.create(JOB, &foreign));
    case.at("2026-11-21T10:05:00Z");
    case.run();
    case.run();
    assert_eq!((case.jobs().len(), case.reasons()), (1, vec!["FailedCreate"]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_time_is_started_twice_and_none_of_a_living_schedule_is_lost(
        steps in proptest::collection::vec((1..400i64, 0..3usize, any::<bool>()), 1..60),
    ) {
        let mut case = Case::new(json!({"schedule": "*/7 * * * *", "successfulJobsHistoryLimit": 1}));
        let mut due = BTreeSet::new();
        let schedule = proa_apimachinery::cron::Schedule::parse("*/7 * * * *").expect("a schedule");
        for (seconds, killed, ends) in steps {
            let before = case.world.now;
            case.world.pass(seconds);
            if let Some(last) = schedule.last(before, case.world.now, &jiff::tz::TimeZone::UTC) {
                due.insert(last.at.as_second() / 60);
            }
            // The loop is killed between two writes, and started again.
            for _ in 0..killed {
                case.stumble(1);
            }
            case.told = None;
            case.run();
            if ends && let Some(job) = case.jobs().into_iter().find(|job| !crate::job::is_finished(job)) {
                case.end(&job.name_any(), "Complete");
            }
        }
        let made: BTreeSet<i64> = case.made.iter().map(|name| name["tick-".len()..].parse().expect("minutes")).collect();
        prop_assert_eq!(made.len(), case.made.len());
        prop_assert_eq!(made, due);
    }
}
