//! Whether a release is well, and what is done when it is not. Pure.
//!
//! A revision has failed when one of its members says so, or when it is not complete and no member has come any further for as
//! long as its deadline says. What the cluster is to blame for is held against no revision.

use super::{
    health::{Health, Judging},
    plan::Planner,
};
use jiff::Timestamp;
use proa_crds::{
    conditions, reasons,
    release::{DEFAULT_DEADLINE, GoingBack, Outcome, Revision},
};
use std::time::Duration;

/// How long a healthy revision may still be found failing where no policy says: as a Deployment's is.
pub(super) const PROBATION: Duration = Duration::from_secs(90);
/// Why a release is stalled whose revision has failed, and what it would go back to is what it is.
pub(super) const NOTHING_TO_GO_BACK_TO: &str = "NothingToGoBackTo";

impl Planner<'_> {
    fn probation(&self) -> Duration {
        self.seen.policy.as_ref().map_or(PROBATION, crate::rollback::policy::soak)
    }

    /// The first member that is on its way, and where it stands.
    fn ailing(&self) -> Option<String> {
        self.seen.members.iter().find_map(|member| match &member.health {
            Health::InProgress(why) | Health::WentBack { busy: Some(why), .. } => {
                Some(format!("{}: {why}", member.live.content.id))
            }
            _ => None,
        })
    }

    /// Whether the members that have failed all went back by themselves: what they are now is not what failed.
    pub(super) fn went_back(&self) -> bool {
        !self.seen.members.iter().any(|member| matches!(member.health, Health::Failed { .. }))
    }

    /// That the revision has stood still for as long as it may, on account of that member. While a member says that the cluster is
    /// to blame the time does not run, and afterwards it runs anew.
    fn timed_out(&mut self, revision: &Revision, ailing: Option<&str>) -> Option<(String, String)> {
        let open = matches!(revision.result, Outcome::Progressing | Outcome::Superseded);
        let ignored = self.seen.policy.as_ref().is_some_and(|policy| policy.failure.progress_deadline.ignore);
        let paused = self.seen.members.iter().any(|member| member.judging == Judging::Paused);
        let ailing = ailing.filter(|_| open && !ignored && !paused && !self.seen.release.spec.paused)?;
        let resumed = self.seen.members.iter().filter_map(|member| match member.judging {
            Judging::Since(since) => Some(since),
            Judging::Always | Judging::Paused => None,
        });
        let recorded = revision.recorded_at.as_ref().map(|at| at.0);
        let since = resumed.chain(recorded).fold(self.seen.progressed, Timestamp::max);
        let seconds = self.seen.release.spec.progress_deadline_seconds.unwrap_or(DEFAULT_DEADLINE).max(1);
        let deadline = Duration::from_secs(seconds.unsigned_abs().into());
        let stood = Duration::try_from(self.now.duration_since(since)).unwrap_or_default();
        if let Some(left) = deadline.checked_sub(stood).filter(|left| !left.is_zero()) {
            self.plan.look_again(left);
            return None;
        }
        let message = format!("{ailing}; nothing has come further for {seconds} s");
        Some((reasons::PROGRESS_DEADLINE_EXCEEDED.to_owned(), message))
    }

    /// The first member that has failed since that time. `strictly`: a failure of that very second is an older one's.
    fn failure(&self, since: Option<Timestamp>, strictly: bool) -> Option<(String, String)> {
        let from = since.map_or(i64::MIN, |since| since.as_second() + i64::from(strictly));
        self.seen.members.iter().find_map(|member| match &member.health {
            Health::Failed { reason, message, since } | Health::WentBack { reason, message, since, .. }
                if since.is_none_or(|since| since.as_second() >= from) =>
            {
                Some((reason.clone(), format!("{}: {message}", member.live.content.id)))
            }
            _ => None,
        })
    }

    /// The first member that has failed since that revision was there, or was last found well. One that was gone back to
    /// does not answer for what its members said in the second they came back: times on the wire are whole seconds.
    pub(super) fn failure_after(&self, revision: &Revision) -> Option<(String, String)> {
        let times = [&revision.recorded_at, &revision.decided_at];
        let since = times.into_iter().flatten().map(|at| at.0).max();
        self.failure(since, revision.rolled_back_to.is_some())
    }

    /// Whether the current revision is well. Its members are what it says.
    pub(super) fn judge(&mut self) {
        let Some(current) = self.status.revisions.last().cloned() else { return };
        let number = current.revision;
        let mut held = current.clone();
        if held.result == Outcome::Failed && self.is_retried(&held) {
            held = Revision {
                result: Outcome::Progressing,
                recorded_at: self.stamp(),
                decided_at: None,
                reason: String::new(),
                message: String::new(),
                retry: self.retry().to_owned(),
                ..held
            };
        }
        // What failed before its members came to rest has failed it: that stands until no member says so any longer.
        let failure = match held.result {
            Outcome::Failed => self.failure(None, false),
            // It was well as it is now, and members that went back have come back to that: what they left is not held
            // against it, nor against what comes after it.
            Outcome::Healthy if self.went_back() => {
                if self.failure_after(&held).is_some() {
                    held.decided_at = Some(self.next_second());
                }
                None
            }
            _ => self.failure_after(&held),
        };
        let ailing = self.ailing();
        let open = match held.result {
            Outcome::Progressing | Outcome::Superseded => true,
            Outcome::Healthy => held.decided_at.as_ref().is_some_and(|at| {
                Duration::try_from(self.now.duration_since(at.0)).is_ok_and(|stood| stood < self.probation())
            }),
            Outcome::Failed => false,
        };
        let failure = failure.or_else(|| self.timed_out(&held, ailing.as_deref()));
        match (&failure, &ailing) {
            (Some((reason, message)), _) if open => {
                held.result = Outcome::Failed;
                held.decided_at = self.stamp();
                held.retry = self.retry().to_owned();
                (held.reason, held.message) = (reason.clone(), message.clone());
                self.note(reasons::ROLLOUT_FAILED, format!("revision {number} failed ({reason}: {message})"));
            }
            // What was found failing may come good; then the mark is wrong.
            (None, None) if held.result != Outcome::Healthy => {
                held.result = Outcome::Healthy;
                held.decided_at = self.stamp();
                (held.reason, held.message) = (String::new(), String::new());
            }
            _ => {}
        }
        let failed = held.result == Outcome::Failed;
        let why = format!("{}: {}", held.reason, held.message);
        if let Some(last) = self.status.revisions.last_mut() {
            *last = held.clone();
        }
        match (&ailing, failed) {
            (_, true) => {
                let why = why.lines().next().unwrap_or_default();
                self.say(conditions::READY, "False", "Failed", &format!("revision {number} failed ({why})"));
            }
            (Some(why), false) => self.say(conditions::READY, "False", "Progressing", why),
            (None, false) if held.result == Outcome::Healthy => {
                self.say(conditions::READY, "True", "Healthy", &format!("revision {number} is healthy"))
            }
            (None, false) => {}
        }
        let busy = if ailing.is_some() && !failed { "True" } else { "False" };
        let reason = if failed {
            "Failed"
        } else if busy == "True" {
            "Progressing"
        } else {
            "Healthy"
        };
        self.say(conditions::RECONCILING, busy, reason, "");
        // A wish that could not be granted stands there until there is another one, or a new revision.
        let refused = self.status.conditions.iter().find(|held| {
            held.type_ == conditions::STALLED && held.status == "True" && held.reason == reasons::REVISION_NOT_FOUND
        });
        let refused = refused.map(|held| held.message.clone());
        let stuck = self.status.conditions.iter().any(|held| {
            held.type_ == conditions::STALLED && held.status == "True" && held.reason == NOTHING_TO_GO_BACK_TO
        });
        if failed && stuck {
            return;
        }
        match refused {
            _ if failed => self.say(conditions::STALLED, "True", reason, &why),
            Some(message) => self.say(conditions::STALLED, "True", reasons::REVISION_NOT_FOUND, &message),
            None => self.say(conditions::STALLED, "False", reason, ""),
        }
        let spec = &self.seen.release.spec;
        if failed && self.wants_rollback() && !spec.paused && spec.rollback_to.is_none() {
            match self.last_healthy(&held).cloned() {
                Some(to) => {
                    let going = GoingBack {
                        automatic: true,
                        reason: held.reason.clone(),
                        message: held.message.clone(),
                        ..self.going(&held, &to)
                    };
                    self.begin(going);
                }
                None => self.say(
                    conditions::STALLED,
                    "True",
                    "NoHealthyRevision",
                    &format!("revision {number} failed ({why}), and there is no healthy one to go back to"),
                ),
            }
        }
    }
}
