//! Owns the probing of containers: periods, thresholds, the startup probe's precedence. Reports changes to the
//! pod's worker. Never stops a container: that is the worker's decision.

pub(crate) mod check;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::events::Severity;
use crate::pods::Pod;
use crate::pods::context::Context;
use crate::pods::track::{ContainerId, Unhealthy};
use crate::pods::worker::Message;

/// The three probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// What a probe found out about a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// the startup probe passed
    Started,
    /// the readiness probe changed its mind
    Ready(bool),
    /// the container must be restarted
    Unhealthy(Unhealthy),
}

/// Counts results against thresholds; pure.
#[derive(Clone, Debug)]
pub(crate) struct Counter {
    success_threshold: u32,
    failure_threshold: u32,
    successes: u32,
    failures: u32,
    verdict: Option<bool>,
}

impl Counter {
    pub(crate) fn new(probe: &Probe) -> Self {
        let least_one =
            |n: Option<i32>, default: u32| n.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default);
        Self {
            success_threshold: least_one(probe.success_threshold, 1),
            failure_threshold: least_one(probe.failure_threshold, 3),
            successes: 0,
            failures: 0,
            verdict: None,
        }
    }

    /// Counts one result; a changed verdict comes out.
    pub(crate) fn count(&mut self, success: bool) -> Option<bool> {
        if success {
            self.failures = 0;
            self.successes += 1;
        } else {
            self.successes = 0;
            self.failures += 1;
        }
        let reached =
            if success { self.successes >= self.success_threshold } else { self.failures >= self.failure_threshold };
        if reached && self.verdict != Some(success) {
            self.verdict = Some(success);
            return self.verdict;
        }
        None
    }
}

/// The probes of one run; dropping it ends them.
pub(crate) struct Prober {
    tasks: Vec<(Kind, Task)>,
}

/// Ends when dropped.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Prober {
    /// Ends the probes that could restart a container which is being stopped already.
    pub(crate) fn keep_readiness(&mut self) {
        self.tasks.retain(|(kind, _)| *kind == Kind::Readiness);
    }
}

/// What is probed.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) ctx: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) container: Container,
    pub(crate) id: ContainerId,
    pub(crate) pod_ip: String,
    /// time since the start, when the run was taken over from an earlier agent
    pub(crate) age: Duration,
    pub(crate) mailbox: mpsc::UnboundedSender<Message>,
}

/// Starts the probes a run needs now: the startup probe alone until it has passed, then the others.
pub(crate) fn start(target: &Target, started: bool) -> Prober {
    let container = &target.container;
    let list = if started {
        vec![
            container.liveness_probe.clone().map(|p| (Kind::Liveness, p)),
            container.readiness_probe.clone().map(|p| (Kind::Readiness, p)),
        ]
    } else {
        vec![container.startup_probe.clone().map(|p| (Kind::Startup, p))]
    };
    let tasks = list
        .into_iter()
        .flatten()
        .map(|(kind, probe)| (kind, Task(tokio::spawn(watch(target.clone(), kind, probe)).abort_handle())))
        .collect();
    Prober { tasks }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default))
}

/// When the first try that counts is due. The kubelet's clock ticks once a period from before the container runs, so that
/// its first try comes up to a period after the start; a container that is just starting is not yet unhealthy.
fn first_regular(probe: &Probe, fresh: bool) -> Duration {
    let delayed = probe.initial_delay_seconds.is_some_and(|seconds| seconds > 0);
    if fresh && !delayed { seconds(probe.period_seconds, 10) } else { Duration::ZERO }
}

/// Until the first success a waiting container is asked more often than its period, so that a pod is ready as soon as
/// it can be; such early failures neither count nor are told. Commands are costly: they are asked less often.
fn first_pause(probe: &Probe) -> Duration {
    Duration::from_millis(if probe.exec.is_some() { 200 } else { 20 })
}

async fn watch(target: Target, kind: Kind, probe: Probe) {
    let initial = Duration::from_secs(probe.initial_delay_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0));
    tokio::time::sleep(initial.saturating_sub(target.age)).await;
    let period = seconds(probe.period_seconds, 10);
    let mut counter = Counter::new(&probe);
    let fresh = target.age.is_zero();
    let mut eager = (fresh && kind != Kind::Liveness).then(|| first_pause(&probe));
    let mut next_regular = tokio::time::Instant::now() + first_regular(&probe, fresh);
    if kind == Kind::Liveness {
        tokio::time::sleep_until(next_regular).await;
    }
    loop {
        let regular = tokio::time::Instant::now() >= next_regular;
        let result = once(&target, &probe).await;
        let success = result.is_ok();
        if success || regular {
            if let Err(why) = &result {
                let message = format!("{} probe failed: {why}", kind.title());
                target.ctx.recorder.pod(
                    &target.pod,
                    Some(&target.container.name),
                    Severity::Warning,
                    "Unhealthy",
                    message,
                );
            }
            if let Some(verdict) = counter.count(success) {
                report(&target, kind, &probe, verdict);
                if kind == Kind::Startup {
                    return;
                }
            }
        }
        if success || regular && probe.exec.is_some() {
            eager = None;
        }
        let now = tokio::time::Instant::now();
        while next_regular <= now {
            next_regular += period;
        }
        let wait_until = match eager.as_mut() {
            Some(pause) => {
                let soon = now + *pause;
                *pause = (*pause * 3 / 2).min(Duration::from_secs(1));
                soon.min(next_regular)
            }
            None => next_regular,
        };
        tokio::time::sleep_until(wait_until).await;
    }
}

fn report(target: &Target, kind: Kind, probe: &Probe, success: bool) {
    let verdict = match (kind, success) {
        (Kind::Startup, true) => Verdict::Started,
        (Kind::Readiness, ready) => Verdict::Ready(ready),
        (Kind::Liveness, true) => return,
        (Kind::Startup | Kind::Liveness, false) => Verdict::Unhealthy(Unhealthy {
            message: format!(
                "Container {} failed {} probe, will be restarted",
                target.container.name,
                kind.title().to_ascii_lowercase()
            ),
            grace: probe.termination_grace_period_seconds,
        }),
    };
    // A worker that is gone has nothing left to restart.
    let _ = target.mailbox.send(Message::Probed { id: target.id.clone(), verdict });
}

async fn once(target: &Target, probe: &Probe) -> check::Checked {
    let timeout = seconds(probe.timeout_seconds, 1);
    let host = target.pod_ip.as_str();
    if let Some(action) = &probe.exec {
        let command = action.command.clone().unwrap_or_default();
        return check::exec(&target.ctx.runtime, &target.id.0, &command, Some(timeout)).await;
    }
    if let Some(action) = &probe.http_get {
        return check::http(&check::HttpTarget::new(&target.container, action, host)?, timeout).await;
    }
    if let Some(action) = &probe.tcp_socket {
        let port = check::port(&target.container, &action.port)?;
        let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(host);
        return check::tcp(host, port, timeout).await;
    }
    Err("gRPC probes are not supported by Proa yet".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn verdicts_follow_thresholds() {
        let probe: Probe = serde_json::from_value(json!({"successThreshold": 2, "failureThreshold": 3})).unwrap();
        let mut counter = Counter::new(&probe);
        let verdicts: Vec<_> = [true, true, true, false, false, true, false, false, false, false, true, true]
            .map(|r| counter.count(r))
            .into();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(verdicts, [None, yes, None, None, None, None, None, None, no, None, None, yes]);
    }

    #[test]
    fn a_container_that_just_starts_is_not_yet_unhealthy() {
        let probe = |json| -> Probe { serde_json::from_value(json).unwrap() };
        assert_eq!(first_regular(&probe(json!({"periodSeconds": 3})), true), Duration::from_secs(3));
        assert_eq!(first_regular(&Probe::default(), true), Duration::from_secs(10));
        assert_eq!(first_regular(&Probe::default(), false), Duration::ZERO);
        assert_eq!(first_regular(&probe(json!({"initialDelaySeconds": 2})), true), Duration::ZERO);
    }

    #[test]
    fn defaults_are_one_success_and_three_failures() {
        let mut counter = Counter::new(&Probe::default());
        assert_eq!(counter.count(true), Some(true));
        assert_eq!([counter.count(false), counter.count(false), counter.count(false)], [None, None, Some(false)]);
    }
}
