//! Owns the starts of a worker's containers: what is begun, and what came of it.

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::super::start::{Start, StartError, Started};
use super::super::track::{ContainerId, State};
use super::super::uid;
use super::{Message, Stage, Worker};
use crate::events::Severity;

impl Worker {
    pub(super) fn start(&mut self, index: usize) {
        let container = self.list[index].1.clone();
        let attempt = self.tracks[index].next_attempt;
        // The run before last is only kept as a log.
        if let State::Ended(ended) = &self.tracks[index].state {
            self.remove_container(ended.run.id.clone());
            if let Some(old) = attempt.checked_sub(2) {
                crate::server::logs::forget(&self.ctx.layout, uid(&self.pod), &container.name, old);
            }
        }
        self.tracks[index].begin_start();
        let start = Start {
            ctx: self.ctx.clone(),
            pod: self.pod.clone(),
            container,
            attempt,
            pod_ips: self.info.pod_ips.clone(),
            cancel: self.ending.clone(),
        };
        let mailbox = self.mailbox.clone();
        tokio::spawn(async move {
            let result = Box::new(start.run().await);
            let _ = mailbox.send(Message::Started { index, result });
        });
    }

    /// Removes a container that has ended, beside everything else.
    pub(super) fn remove_container(&self, id: ContainerId) {
        self.ctx.registry.disown(&id);
        let runtime = self.ctx.runtime.clone();
        tokio::spawn(async move {
            if let Err(error) = runtime.remove(&id.0).await {
                tracing::debug!(container = id.0, %error, "an ended container was not removed");
            }
        });
    }

    pub(super) fn started(&mut self, index: usize, result: Result<Started, StartError>) {
        let container = self.list[index].1.clone();
        match result {
            Ok(Started { run, stop_signal, hook_failed }) => {
                let id = run.id.clone();
                self.stop_signals.insert(id.clone(), stop_signal);
                self.run_over.insert(id.clone(), CancellationToken::new());
                self.tracks[index].begin_run(
                    run,
                    container.startup_probe.is_some(),
                    container.readiness_probe.is_some(),
                );
                if let Some(exit) = self.early_exits.remove(&id) {
                    self.exited(&id, &exit);
                } else if hook_failed {
                    self.tracks[index].started = false;
                    self.tracks[index].ready = false;
                    self.stop(index, "FailedPostStartHook".to_owned(), self.stop_deadline(self.spec_grace()));
                } else if self.stage == Stage::Sync {
                    self.probe(index);
                }
            }
            Err(StartError::Ended(ended)) => {
                self.early_exits.remove(&ended.run.id);
                self.tracks[index].hindrance = None;
                self.tracks[index].end(*ended);
            }
            Err(StartError::Cancelled) => {
                let last = self.tracks[index].last.take();
                self.tracks[index].state = last.map_or(State::Absent, State::Ended);
            }
            Err(StartError::Blocked { reason, message }) => self.block(index, reason, message),
        }
    }

    fn block(&mut self, index: usize, reason: &'static str, message: String) {
        let now = Timestamp::now();
        let image = self.list[index].1.image.clone().unwrap_or_default();
        let name = self.list[index].1.name.clone();
        match reason {
            "ErrImagePull" => {
                // The first failure shows what went wrong; from the second on, that it waits, as the kubelet does.
                let again = self.tracks[index].failures > 0;
                let message = if again {
                    let back_off = format!("Back-off pulling image \"{image}\"");
                    self.ctx.recorder.pod(&self.pod, Some(&name), Severity::Normal, "BackOff", back_off.clone());
                    self.ctx.recorder.pod(
                        &self.pod,
                        Some(&name),
                        Severity::Warning,
                        "Failed",
                        "Error: ImagePullBackOff",
                    );
                    format!("{back_off}: ErrImagePull: {message}")
                } else {
                    message
                };
                // The first retry comes soon: the registry may only have hiccuped.
                self.tracks[index].block(if again { "ImagePullBackOff" } else { reason }, message, now, 5);
            }
            "CreateContainerConfigError" => {
                self.tracks[index].block(reason, message, now, 5);
                let namespace = self.pod.metadata.namespace.as_deref().unwrap_or("default");
                for object in crate::env::references(&self.list[index].1) {
                    self.ctx.objects.watch(namespace, &object, &self.config_changed);
                }
            }
            _ => self.tracks[index].block(reason, message, now, 10),
        }
    }
}
