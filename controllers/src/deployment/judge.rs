//! Judging the new revision, and saying what became of it. Pure.

use super::{
    plan::{Action, Planner},
    revisions::{name, note, pod_spec, pods_of, revision},
    status,
};
use crate::{
    events::Kind,
    pods,
    rollback::{
        checks, config, marks, policy,
        surroundings::LOOK_AGAIN,
        verdict::{Case, Verdict, is_of_previous_run},
    },
};
use proa_crds::{Failure, ReplicaSet, annotations, conditions, policy::FailureAction, reasons};
use std::time::Duration;

impl Planner<'_> {
    /// Marks the new revision as failed when it cannot succeed, and says so of one that is marked and not taken back. Whether
    /// there was something to do.
    pub(super) fn judge(&mut self) -> bool {
        let Some(new) = self.revisions.new else { return false };
        let Some(policy) = &self.seen.policy else { return self.end_pause() };
        if let Some((new, failure)) = self.failed() {
            return self.end_pause() || self.say_failed(new, &failure);
        }
        let to = self.last_healthy();
        let complete = marks::is_healthy(&new.metadata);
        if complete && marks::soak_left(&new.metadata, policy::soak(policy), self.now).is_none() {
            return self.end_pause();
        }
        let mine = pods_of(new, &self.seen.pods);
        let earlier = to.map(|to| pods_of(to, &self.seen.pods)).unwrap_or_default();
        let nothing = Default::default();
        // What reads a kept copy misses nothing that is gone since.
        let pinned = note(new, annotations::CONFIG_REVISION).is_some();
        let missing = || pod_spec(new).and_then(|spec| config::missing(spec, &self.seen.live));
        let timed_out = self.timed_out(new);
        if let Err(left) = timed_out {
            self.plan.look_again(left);
        }
        let verdict = Case {
            policy,
            pods: &mine,
            earlier: &earlier,
            complete,
            missing: if complete || pinned { None } else { missing() },
            timed_out: timed_out.unwrap_or_default(),
            checks: new.metadata.uid.as_ref().and_then(|uid| self.seen.checks.get(uid)).unwrap_or(&nothing),
            around: &self.seen.around,
            now: self.now,
        }
        .judge();
        match verdict {
            Verdict::Unwell { reason, message } => {
                self.plan.look_again(LOOK_AGAIN);
                self.say(conditions::JUDGING_PAUSED, reason, reason, message)
            }
            _ if self.end_pause() => true,
            Verdict::Fine => false,
            Verdict::Wait(delay) => {
                self.plan.look_again(delay);
                false
            }
            Verdict::Failed(failure) => {
                let back = self.action() == Some(FailureAction::Rollback);
                let failure =
                    marks::found(&self.deployment.metadata, *failure, to.filter(|_| back).map(revision), self.now);
                let previous = is_of_previous_run(&failure, &mine);
                self.act(Action::MarkFailed { name: name(new).to_owned(), failure: Box::new(failure), previous });
                true
            }
        }
    }

    /// That the progress deadline of this revision has passed, in words. After the cluster was unwell it runs anew: `Err`
    /// with how long it still does.
    fn timed_out(&self, new: &ReplicaSet) -> Result<Option<String>, Duration> {
        let Some(status) = self.deployment.status.as_ref() else { return Ok(None) };
        let said = status::condition(status, conditions::PROGRESSING)
            .filter(|condition| condition.reason.as_deref() == Some(reasons::PROGRESS_DEADLINE_EXCEEDED))
            .and_then(|condition| condition.message.clone())
            .filter(|message| message.contains(&format!("{:?}", name(new))));
        let Some(said) = said else { return Ok(None) };
        let unwell_until = status::condition(status, conditions::JUDGING_PAUSED)
            .filter(|paused| paused.status == "False")
            .and_then(|paused| paused.last_transition_time.as_ref());
        let left = unwell_until.zip(status::deadline(self.deployment)).and_then(|(until, deadline)| {
            deadline.checked_sub(Duration::try_from(self.now.duration_since(until.0)).unwrap_or_default())
        });
        match left.filter(|left| !left.is_zero()) {
            Some(left) => Err(left),
            None => Ok(Some(said)),
        }
    }

    /// Says that the cluster is no longer to blame.
    fn end_pause(&mut self) -> bool {
        if !status::is_true(self.deployment.status.as_ref(), conditions::JUDGING_PAUSED) {
            return false;
        }
        let mut status = status::calculate(self.deployment, &self.revisions, self.now);
        let message = "the cluster is no longer to blame for what the pods show";
        status::end(&mut status, conditions::JUDGING_PAUSED, "Judging", message, self.now);
        self.write_status(&status);
        true
    }

    /// Says of a failed revision that is not taken back what becomes of it.
    fn say_failed(&mut self, new: &ReplicaSet, failure: &Failure) -> bool {
        let fallback = self.last_healthy().is_some();
        match self.action() {
            None => false,
            Some(FailureAction::Pause) => {
                let message = marks::standing_still(revision(new), failure);
                self.say(conditions::ROLLOUT_PAUSED, &failure.reason, reasons::ROLLOUT_PAUSED, message)
            }
            Some(_) => {
                let message = marks::going_on(revision(new), failure, fallback);
                self.say(conditions::ROLLOUT_FAILED, &failure.reason, reasons::ROLLOUT_FAILED, message)
            }
        }
    }

    /// Says something by a condition and an event, unless the condition says it already.
    fn say(&mut self, type_: &str, reason: &str, event: &'static str, message: String) -> bool {
        let held = self.deployment.status.as_ref().and_then(|status| status::condition(status, type_));
        if held.is_some_and(|held| held.status == "True" && held.message.as_ref() == Some(&message)) {
            return false;
        }
        self.note(Kind::Warning, event, message.clone());
        let mut status = status::calculate(self.deployment, &self.revisions, self.now);
        status::set(&mut status, status::make(type_, "True", reason, message, self.now));
        self.write_status(&status);
        true
    }

    /// Asks the ready pods of the revision that has yet to prove itself what the policy wants to know.
    pub(super) fn ask(&mut self) {
        let Some(policy) = self.seen.policy.as_ref().filter(|policy| !policy.checks.is_empty()) else { return };
        let Some(new) = self.revisions.new.filter(|new| note(*new, annotations::FAILURE).is_none()) else { return };
        let complete = marks::is_healthy(&new.metadata);
        let over = complete && marks::soak_left(&new.metadata, policy::soak(policy), self.now).is_none();
        if over {
            return;
        }
        let ready = pods_of(new, &self.seen.pods).into_iter().filter(|pod| pods::is_ready(pod));
        let names = ready.filter_map(|pod| pod.metadata.name.clone()).collect();
        let uid = new.metadata.uid.as_deref().unwrap_or_default();
        let nothing = Default::default();
        let standing = self.seen.checks.get(uid).unwrap_or(&nothing);
        let (questions, next) = checks::due(&policy.checks, standing, uid, names, self.now);
        for question in questions {
            self.act(Action::Ask(Box::new(question)));
        }
        if let Some(next) = next {
            self.plan.look_again(next);
        }
    }
}
