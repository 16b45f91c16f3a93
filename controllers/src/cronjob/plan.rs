//! What to do about one CronJob. Pure.

use crate::{
    Plan,
    events::{Kind, Note},
    job::{completed_at, how_it_ended, is_finished},
    owners,
};
use jiff::{Timestamp, tz::TimeZone};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    ResourceExt,
    core::{ApiResource, ObjectMeta},
};
use proa_apimachinery::cron::{Schedule, time_zone};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// Annotation of a Job: the time it was scheduled for, in the CronJob's time zone (KEP-4026).
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// So many missed times are worth a warning.
const MANY: u64 = 100;
/// How long at most a schedule is waited for without a look at the clock: clocks are set, and machines sleep.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// A snapshot of one CronJob.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The CronJob.
    pub cron: Arc<CronJob>,
    /// The Jobs it controls.
    pub jobs: Vec<Arc<Job>>,
    /// Names of Jobs of its namespace that it does not control, as far as they begin with its own.
    pub foreign: BTreeSet<String>,
    /// What was last said of it that no status holds: reason, and the time it was about.
    pub told: Option<(&'static str, Timestamp)>,
}

/// One thing to do.
#[derive(Debug, Clone)]
pub enum Action {
    /// Write the status that follows from that resource version, then say this.
    Status(Box<CronJobStatus>, Option<String>, Vec<Note>),
    /// Create the Job of that time.
    Create(Timestamp, Box<Job>),
    /// Delete Jobs, and with them their pods.
    Delete(Vec<Arc<Job>>),
    /// Say something about a time, once.
    Tell(Note, Timestamp),
}

/// Decides what to do.
pub fn plan(seen: &Seen, now: Timestamp) -> Plan<Action> {
    let cron = &*seen.cron;
    let (status, notes) = status(seen);
    if cron.status.clone().unwrap_or_default() != status {
        return Plan::act(vec![Action::Status(Box::new(status), cron.metadata.resource_version.clone(), notes)]);
    }
    if cron.metadata.deletion_timestamp.is_some() {
        return Plan::nothing();
    }
    let old = surplus(seen);
    if !old.is_empty() {
        return Plan::act(vec![Action::Delete(old)]);
    }
    let spec = &cron.spec;
    if spec.suspend == Some(true) {
        return Plan::nothing();
    }
    let tell = |reason: &'static str, kind: Kind, message: String, about: Timestamp| {
        let note = Note { kind, reason, message };
        let new = seen.told != Some((reason, about));
        Plan::act(new.then_some(Action::Tell(note, about)).into_iter().collect())
    };
    // Admission lets neither of the two through; what came in before it did is said once.
    let zone = match spec.time_zone.as_deref() {
        None => Some(TimeZone::UTC),
        Some(name) => time_zone(name),
    };
    let Some(zone) = zone else {
        let name = spec.time_zone.clone().unwrap_or_default();
        let message = format!("invalid timeZone: {name:?}: unknown time zone {name}");
        return tell("UnknownTimeZone", Kind::Warning, message, Timestamp::UNIX_EPOCH);
    };
    let schedule = match Schedule::parse(&spec.schedule) {
        Ok(schedule) => schedule,
        Err(error) => {
            let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
            return tell("UnparseableSchedule", Kind::Warning, message, Timestamp::UNIX_EPOCH);
        }
    };
    let mut plan = due(seen, &schedule, &zone, now, tell);
    if let Some(next) = schedule.next(now, &zone) {
        let wait = Duration::try_from(next.duration_since(now)).unwrap_or_default();
        plan.look_again(wait.min(LONGEST_WAIT));
    }
    plan
}

/// What is due now, if anything is.
fn due(
    seen: &Seen,
    schedule: &Schedule,
    zone: &TimeZone,
    now: Timestamp,
    tell: impl Fn(&'static str, Kind, String, Timestamp) -> Plan<Action>,
) -> Plan<Action> {
    let cron = &*seen.cron;
    let spec = &cron.spec;
    let began = began(cron);
    let deadline = spec.starting_deadline_seconds.map(|seconds| seconds.max(0));
    // Nothing is started for a time that is longer ago than the deadline.
    let earliest = deadline.and_then(|seconds| now.checked_sub(jiff::SignedDuration::from_secs(seconds)).ok());
    let after = earliest.map_or(began, |earliest| earliest.max(began));
    if schedule.next(began, zone).is_none() {
        let message = format!("invalid schedule: {} : there is no such day", spec.schedule);
        return tell("InvalidSchedule", Kind::Warning, message, Timestamp::UNIX_EPOCH);
    }
    let Some(last) = schedule.last(after, now, zone) else {
        // It was due, and nobody was there in time.
        return match schedule.last(began, now, zone) {
            Some(missed) if earliest.is_some() => {
                let message = format!("Missed scheduled time to start a job: {}", rfc1123(missed.at));
                tell("MissSchedule", Kind::Warning, message, missed.at)
            }
            _ => Plan::nothing(),
        };
    };
    let mut plan = Plan::nothing();
    if last.times > MANY && seen.told != Some(("TooManyMissedTimes", last.at)) {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.actions.extend(tell("TooManyMissedTimes", Kind::Warning, message.to_owned(), last.at).actions);
    }
    let active: Vec<_> = active(seen).into_iter().filter(|job| job.metadata.deletion_timestamp.is_none()).collect();
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            return tell("JobAlreadyActive", Kind::Normal, message.to_owned(), last.at);
        }
        Some("Replace") if !active.is_empty() => {
            plan.actions.push(Action::Delete(active));
            return plan;
        }
        _ => {}
    }
    let job = job_of(cron, last.at, zone);
    if seen.foreign.contains(&job.name_any()) {
        let message = format!("Error creating job: jobs.batch {:?} already exists", job.name_any());
        return tell("FailedCreate", Kind::Warning, message, last.at);
    }
    plan.actions.push(Action::Create(last.at, Box::new(job)));
    plan
}

/// The time that was started last, or since when there is something to start.
fn began(cron: &CronJob) -> Timestamp {
    let last = cron.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
    last.or(cron.metadata.creation_timestamp.as_ref()).map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

/// The time a Job of ours was made for: its name says it, and so the same time is never started twice.
fn scheduled_for(cron: &CronJob, job: &Job) -> Option<Timestamp> {
    let name = job.name_any();
    let minutes: i64 = name.strip_prefix(&cron.name_any())?.strip_prefix('-')?.parse().ok()?;
    job.metadata.annotations.as_ref()?.get(SCHEDULED_AT)?;
    Timestamp::from_second(minutes.checked_mul(60)?).ok()
}

/// The Jobs that run for this CronJob: those in its status, and those it made and could not put down any more. One made
/// by hand (`kubectl create job --from`) is not in its way.
fn active(seen: &Seen) -> Vec<Arc<Job>> {
    let held: BTreeSet<&str> = seen
        .cron
        .status
        .iter()
        .flat_map(|status| status.active.iter().flatten())
        .filter_map(|reference| reference.uid.as_deref())
        .collect();
    let ours = |job: &Job| {
        job.metadata.uid.as_deref().is_some_and(|uid| held.contains(uid)) || scheduled_for(&seen.cron, job).is_some()
    };
    seen.jobs.iter().filter(|job| !is_finished(job) && ours(job)).cloned().collect()
}

/// The status that follows from the Jobs, and what is to be said of the change.
fn status(seen: &Seen) -> (CronJobStatus, Vec<Note>) {
    let held = seen.cron.status.clone().unwrap_or_default();
    let mut running: Vec<_> = active(seen).iter().map(|job| reference(job)).collect();
    // Those that are known stay in their order.
    let known: Vec<_> = held.active.iter().flatten().map(|reference| reference.uid.clone()).collect();
    running.sort_by_key(|job| {
        let at = known.iter().position(|uid| *uid == job.uid);
        (at.unwrap_or(usize::MAX), job.name.clone())
    });
    let mut notes = Vec::new();
    for gone in held.active.iter().flatten().filter(|held| !running.iter().any(|job| job.uid == held.uid)) {
        let name = gone.name.clone().unwrap_or_default();
        let job = seen.jobs.iter().find(|job| job.metadata.uid == gone.uid);
        let (reason, message) = match job.and_then(|job| how_it_ended(job)) {
            Some(end) => ("SawCompletedJob", format!("Saw completed job: {name}, condition: {end}")),
            None => ("MissingJob", format!("Active job went missing: {name}")),
        };
        notes.push(Note { kind: Kind::Normal, reason, message });
    }
    // What is known already keeps the form it was written in.
    let running: Vec<_> = running
        .into_iter()
        .map(|job| held.active.iter().flatten().find(|held| held.uid == job.uid).cloned().unwrap_or(job))
        .collect();
    let later = |held: Option<Time>, new: Option<Timestamp>| match (&held, new) {
        (Some(held), Some(new)) if held.0 < new => Some(Time(new)),
        (None, Some(new)) => Some(Time(new)),
        _ => held,
    };
    let started = seen.jobs.iter().filter_map(|job| scheduled_for(&seen.cron, job)).max();
    let succeeded = seen.jobs.iter().filter_map(|job| completed_at(job)).max();
    let status = CronJobStatus {
        active: Some(running).filter(|list| !list.is_empty()),
        last_schedule_time: later(held.last_schedule_time, started),
        last_successful_time: later(held.last_successful_time, succeeded),
    };
    (status, notes)
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".to_owned()),
        kind: Some("Job".to_owned()),
        namespace: job.namespace(),
        name: Some(job.name_any()),
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
        field_path: None,
    }
}

/// The oldest finished Jobs above what the history keeps.
fn surplus(seen: &Seen) -> Vec<Arc<Job>> {
    let spec = &seen.cron.spec;
    let mut ended: BTreeMap<bool, Vec<Arc<Job>>> = BTreeMap::new();
    for job in seen.jobs.iter().filter(|job| job.metadata.deletion_timestamp.is_none()) {
        if let Some(end) = how_it_ended(job) {
            ended.entry(end == "Complete").or_default().push(job.clone());
        }
    }
    let surplus = ended.into_iter().flat_map(|(succeeded, mut jobs)| {
        let limit = if succeeded { spec.successful_jobs_history_limit } else { spec.failed_jobs_history_limit };
        let kept = limit.map_or(usize::MAX, |limit| limit.max(0).unsigned_abs() as usize);
        let started = |job: &Job| job.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
        jobs.sort_by_key(|job| (started(job).is_none(), started(job), job.name_any()));
        jobs.truncate(jobs.len().saturating_sub(kept));
        jobs
    });
    surplus.collect()
}

/// The Job of that time.
fn job_of(cron: &CronJob, at: Timestamp, zone: &TimeZone) -> Job {
    let template = cron.spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_AT.to_owned(), rfc3339(at, zone));
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", cron.name_any(), at.as_second().div_euclid(60))),
            namespace: cron.namespace(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owners::controller_reference(cron, &ApiResource::erase::<CronJob>(&()))]),
            ..Default::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// As Go writes a time: `Z` for UTC, else the offset.
fn rfc3339(at: Timestamp, zone: &TimeZone) -> String {
    let offset = zone.to_offset(at);
    let shown = at.display_with_offset(offset).to_string();
    if offset.is_zero() { shown.replace("+00:00", "Z") } else { shown }
}

/// The form of times in Kubernetes' message about missed schedules.
fn rfc1123(at: Timestamp) -> String {
    at.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
}
