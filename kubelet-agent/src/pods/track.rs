//! Owns the memory of one container of a pod: what runs, what ended, how long to wait before the next run.
//! Pure data with its arithmetic; the worker fills it, [`super::actions`] and [`super::status`] read it.

use jiff::{SignedDuration, Timestamp};

/// The id the runtime knows a container by; `proa://<id>` on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ContainerId(pub(crate) String);

impl ContainerId {
    /// As `containerID` shows it.
    pub(crate) fn wire(&self) -> String {
        format!("proa://{}", self.0)
    }

    /// From `containerID`.
    pub(crate) fn from_wire(text: &str) -> Option<Self> {
        text.strip_prefix("proa://").filter(|id| !id.is_empty()).map(|id| Self(id.to_owned()))
    }
}

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// runs to its end before the next
    Init,
    /// an init container that stays (KEP-753)
    Sidecar,
    /// one of `spec.containers`
    Main,
    /// added to look into a running pod
    Ephemeral,
}

/// A container that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) id: ContainerId,
    /// counted from 0; the restart count
    pub(crate) attempt: u32,
    /// as the spec named it when it was started
    pub(crate) image: String,
    /// digest
    pub(crate) image_id: String,
    pub(crate) started_at: Timestamp,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) run: Run,
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) finished_at: Timestamp,
}

impl Ended {
    /// Whether the run was too short to show that the container is well.
    pub(crate) fn was_short(&self) -> bool {
        self.finished_at.duration_since(self.run.started_at) < SignedDuration::from_secs(HEALTHY_RUN)
    }
}

/// Why a container could not be started; `reason` is one of Kubernetes' waiting reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocked {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// when to try again
    pub(crate) retry_at: Timestamp,
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// nothing runs and nothing is under way
    Absent,
    /// image, creation, start or `postStart` are under way
    Starting,
    /// the last try to start it failed before it ran
    Blocked(Blocked),
    /// it runs
    Running(Run),
    /// it runs and is being stopped
    Stopping(Run),
    /// it has ended
    Ended(Ended),
}

/// Everything known of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Track {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) state: State,
    /// the run before the one `state` shows
    pub(crate) last: Option<Ended>,
    /// the attempt number of the next run
    pub(crate) next_attempt: u32,
    /// how many short runs came one after the other
    pub(crate) crashes: u32,
    /// the startup probe has passed, or there is none
    pub(crate) started: bool,
    /// the readiness probe passes, or there is none
    pub(crate) ready: bool,
    /// why it must be stopped: a failed liveness or startup probe
    pub(crate) unhealthy: Option<Unhealthy>,
    /// why the last try to start it failed, kept while the next one is under way
    pub(crate) hindrance: Option<Blocked>,
    /// tries to start it that failed one after the other
    pub(crate) failures: u32,
    /// it is to run again whatever the restart policy says (its definition changed)
    pub(crate) again: bool,
    /// the sandbox of its last run is gone: in the one there is now, nothing of this name has run yet
    pub(crate) displaced: bool,
}

/// A probe that decided against a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unhealthy {
    /// for the Killing event
    pub(crate) message: String,
    /// the probe's own `terminationGracePeriodSeconds`
    pub(crate) grace: Option<i64>,
}

const FIRST_DELAY: i64 = 10;
const LONGEST_DELAY: i64 = 300;
/// A run this long, in seconds, clears the count of crashes.
const HEALTHY_RUN: i64 = 600;

impl Track {
    pub(crate) fn new(name: &str, role: Role) -> Self {
        Self {
            name: name.to_owned(),
            role,
            state: State::Absent,
            last: None,
            next_attempt: 0,
            crashes: 0,
            started: false,
            ready: false,
            unhealthy: None,
            hindrance: None,
            failures: 0,
            again: false,
            displaced: false,
        }
    }

    /// Whether it has run, or was to, in the sandbox there is now.
    pub(crate) fn is_settled(&self) -> bool {
        !self.displaced && (self.ever_ran() || self.state != State::Absent)
    }

    /// A new sandbox stands where the old one was. That one's end was not the container's fault.
    pub(crate) fn displace(&mut self) {
        if matches!(self.state, State::Ended(_)) {
            self.displaced = true;
            self.crashes = 0;
        }
    }

    /// The run that is there, also while it is being stopped.
    pub(crate) fn run(&self) -> Option<&Run> {
        match &self.state {
            State::Running(run) | State::Stopping(run) => Some(run),
            _ => None,
        }
    }

    /// The last end: of the present state, else of the run before.
    pub(crate) fn ended(&self) -> Option<&Ended> {
        match &self.state {
            State::Ended(ended) => Some(ended),
            _ => self.last.as_ref(),
        }
    }

    /// Whether anything ever ran under this name.
    pub(crate) fn ever_ran(&self) -> bool {
        self.run().is_some() || self.ended().is_some()
    }

    /// Delay before the next run, by the number of short runs so far: none, 10 s, 20 s … 5 min.
    pub(crate) fn delay(&self) -> SignedDuration {
        match self.crashes {
            0 => SignedDuration::ZERO,
            n => SignedDuration::from_secs((FIRST_DELAY << (n - 1).min(10)).min(LONGEST_DELAY)),
        }
    }

    /// When the next run may begin.
    pub(crate) fn not_before(&self) -> Timestamp {
        match &self.state {
            State::Ended(ended) => ended.finished_at.saturating_add(self.delay()).unwrap_or(Timestamp::MAX),
            State::Blocked(blocked) => blocked.retry_at,
            _ => Timestamp::MIN,
        }
    }

    /// A start is under way.
    pub(crate) fn begin_start(&mut self) {
        match std::mem::replace(&mut self.state, State::Starting) {
            State::Ended(ended) => {
                self.last = Some(ended);
                self.crashes += 1;
            }
            State::Blocked(blocked) => self.hindrance = Some(blocked),
            _ => {}
        }
        self.again = false;
        self.displaced = false;
    }

    /// It runs.
    pub(crate) fn begin_run(&mut self, run: Run, has_startup_probe: bool, has_readiness_probe: bool) {
        self.next_attempt = run.attempt + 1;
        self.state = State::Running(run);
        self.started = !has_startup_probe;
        self.ready = !has_startup_probe && !has_readiness_probe;
        self.unhealthy = None;
        self.hindrance = None;
        self.failures = 0;
    }

    /// It could not be started. `first_delay` doubles with each failure, up to 5 minutes.
    pub(crate) fn block(&mut self, reason: &'static str, message: String, now: Timestamp, first_delay: i64) {
        let seconds = (first_delay << self.failures.min(10)).min(LONGEST_DELAY);
        self.failures += 1;
        self.hindrance = None;
        let retry_at = now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
        self.state = State::Blocked(Blocked { reason, message, retry_at });
    }

    /// It ended.
    pub(crate) fn end(&mut self, ended: Ended) {
        if !ended.was_short() {
            self.crashes = 0;
        }
        self.next_attempt = ended.run.attempt + 1;
        self.state = State::Ended(ended);
        self.started = false;
        self.ready = false;
        self.unhealthy = None;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    pub(crate) fn run(attempt: u32, started: i64) -> Run {
        Run {
            id: ContainerId(format!("c{attempt}")),
            attempt,
            image: "img".into(),
            image_id: "sha256:1".into(),
            started_at: at(started),
        }
    }

    pub(crate) fn ended(attempt: u32, code: i32, started: i64, finished: i64) -> Ended {
        Ended {
            run: run(attempt, started),
            code,
            signal: None,
            reason: if code == 0 { "Completed" } else { "Error" }.into(),
            message: String::new(),
            finished_at: at(finished),
        }
    }

    #[test]
    fn delays_double_from_ten_seconds_to_five_minutes() {
        let mut track = Track::new("c", Role::Main);
        let mut delays = Vec::new();
        for attempt in 0..8 {
            track.begin_start();
            track.begin_run(run(attempt, 0), false, false);
            track.end(ended(attempt, 1, 0, 1));
            delays.push(track.delay().as_secs());
        }
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_minutes_of_health_forget_the_crashes() {
        let mut track = Track::new("c", Role::Main);
        for attempt in 0..4 {
            track.begin_start();
            track.begin_run(run(attempt, 0), false, false);
            track.end(ended(attempt, 1, 0, 1));
        }
        track.begin_start();
        track.begin_run(run(4, 100), false, false);
        track.end(ended(4, 1, 100, 701));
        assert_eq!(track.delay(), SignedDuration::ZERO);
        assert_eq!(track.next_attempt, 5);
    }
}
