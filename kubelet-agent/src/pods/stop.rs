//! Owns the stop of one container: `preStop`, the image's stop signal, the grace period, SIGKILL.
//! Never decides that a container should stop.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use proa_runtime::{ContainerState, Exit};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::track::Run;
use super::{Pod, hooks};
use crate::events::Severity;

const SIGKILL: i32 = 9;
/// What is left for the signal when `preStop` has used the grace period up (Kubernetes: 2 s).
const LEAST_AFTER_HOOK: Duration = Duration::from_secs(2);
/// How long a kill may take before the runtime is asked itself.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// One stop.
pub(crate) struct Stop {
    pub(crate) ctx: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) container: Container,
    pub(crate) run: Run,
    pub(crate) signal: i32,
    pub(crate) pod_ips: Vec<String>,
    /// when to kill; may come nearer while the stop goes on
    pub(crate) deadline: watch::Receiver<Instant>,
    /// cancelled when the run has ended
    pub(crate) gone: CancellationToken,
    /// text of the Killing event
    pub(crate) why: String,
}

impl Stop {
    /// Stops it. An exit comes back when it was learned here and not by an event.
    pub(crate) async fn run(mut self) -> Option<Exit> {
        let name = self.container.name.clone();
        self.ctx.recorder.pod(&self.pod, Some(&name), Severity::Normal, "Killing", self.why.clone());
        self.pre_stop().await;
        if self.gone.is_cancelled() {
            return None;
        }
        let id = self.run.id.0.clone();
        if let Err(error) = self.ctx.runtime.kill(&id, self.signal).await {
            tracing::debug!(container = name, %error, "stop signal not sent");
            if let Some(exit) = self.exit().await {
                return Some(exit);
            }
        }
        self.until_deadline().await;
        loop {
            if self.gone.is_cancelled() {
                return None;
            }
            if let Err(error) = self.ctx.runtime.kill(&id, SIGKILL).await {
                tracing::debug!(container = name, %error, "kill not sent");
            }
            tokio::select! {
                () = self.gone.cancelled() => return None,
                () = tokio::time::sleep(KILL_PATIENCE) => {}
            }
            // An event may have been lost: the runtime is asked.
            if let Some(exit) = self.exit().await {
                return Some(exit);
            }
        }
    }

    async fn exit(&self) -> Option<Exit> {
        match self.ctx.runtime.status(&self.run.id.0).await {
            Ok(status) => match status.state {
                ContainerState::Exited(exit) => Some(exit),
                ContainerState::Created | ContainerState::Running => None,
            },
            Err(proa_runtime::RuntimeError::ContainerNotFound(_)) => Some(super::adopt::lost()),
            Err(_) => None,
        }
    }

    /// Waits until the run is over or its time is up, also when that time is brought forward.
    async fn until_deadline(&mut self) {
        loop {
            let at = *self.deadline.borrow_and_update();
            tokio::select! {
                () = self.gone.cancelled() => return,
                () = tokio::time::sleep_until(at) => return,
                changed = self.deadline.changed() => {
                    if changed.is_err() {
                        // Nobody can bring it forward any more.
                        tokio::select! {
                            () = self.gone.cancelled() => {}
                            () = tokio::time::sleep_until(at) => {}
                        }
                        return;
                    }
                }
            }
        }
    }

    async fn pre_stop(&mut self) {
        let Some(hook) = self.container.lifecycle.as_ref().and_then(|l| l.pre_stop.clone()) else { return };
        let began = Instant::now();
        let end = *self.deadline.borrow();
        if end <= began {
            return;
        }
        let failure = {
            let target =
                hooks::Target { ctx: &self.ctx, container: &self.container, id: &self.run.id, pod_ips: &self.pod_ips };
            let mut deadline = self.deadline.clone();
            let cut = async {
                loop {
                    let at = *deadline.borrow_and_update();
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => return,
                        changed = deadline.changed() => if changed.is_err() { return tokio::time::sleep_until(at).await },
                    }
                }
            };
            tokio::select! {
                done = hooks::run(&target, &hook) => done.err(),
                () = self.gone.cancelled() => None,
                () = cut => Some("the grace period is over".to_owned()),
            }
        };
        if let Some(why) = failure {
            self.ctx.recorder.pod(
                &self.pod,
                Some(&self.container.name),
                Severity::Warning,
                "FailedPreStopHook",
                format!("PreStopHook failed: {why}"),
            );
        }
        // The signal gets its two seconds even when the hook took everything.
        let least = Instant::now() + LEAST_AFTER_HOOK;
        if *self.deadline.borrow() < least {
            let (_, fixed) = watch::channel(least);
            self.deadline = fixed;
        }
    }
}
