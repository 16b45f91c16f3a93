//! Owns the end of a pod: draining, the order of stops, taking the ground away, and the removal of the object.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use tokio::time::Instant;

use super::super::actions::Ground;
use super::super::status::reasons;
use super::super::track::{Role, State, Track};
use super::super::{Pod, ground, host_network, uid};
use super::{FLUSH_LIMIT, Message, Stage, Worker};
use crate::probes::Prober;

impl Worker {
    /// Seconds a pod that ends has left, by what the API says of its deletion.
    fn grace(&self) -> Duration {
        let meta = &self.pod.metadata;
        // The disk is short now (the kubelet's grace for an eviction by a limit).
        if self.failure.as_ref().is_some_and(|(reason, _)| *reason == reasons::EVICTED) {
            return Duration::from_secs(1);
        }
        let seconds = match (meta.deletion_timestamp.is_some(), meta.deletion_grace_period_seconds) {
            (true, Some(seconds)) => seconds,
            _ => self.spec_grace(),
        };
        Duration::from_secs(seconds.max(1).unsigned_abs())
    }

    pub(super) fn begin_termination(&mut self) {
        self.ending.cancel();
        // Readiness is told until the end (KEP-1669); nothing is restarted any more.
        self.probers.values_mut().for_each(Prober::keep_readiness);
        self.retry_at = None;
        self.stage = Stage::Terminating { drained: false };
        let ips: Vec<IpAddr> = self.info.pod_ips.iter().filter_map(|ip| ip.parse().ok()).collect();
        let running = self.tracks.iter().any(|t| t.run().is_some());
        if self.gone || host_network(&self.pod) || ips.is_empty() || !running {
            self.stage = Stage::Terminating { drained: true };
            return;
        }
        let drained = self.ctx.services.drained(&self.pod.metadata, ips, self.grace().max(Duration::from_secs(2)) / 2);
        let mailbox = self.mailbox.clone();
        tokio::spawn(async move {
            drained.await;
            let _ = mailbox.send(Message::Drained);
        });
    }

    /// A second deletion may shorten the grace period, never lengthen it.
    pub(super) fn hasten(&mut self) {
        let sooner = Instant::now() + self.grace();
        if let Some(kill_at) = &mut self.kill_at
            && sooner < *kill_at
            && self.pod.metadata.deletion_grace_period_seconds.is_some()
        {
            *kill_at = sooner;
            self.bring_forward(sooner);
        }
    }

    /// No stop under way takes longer than until then.
    fn bring_forward(&self, latest: Instant) {
        for stop in self.stops.values() {
            stop.deadline.send_if_modified(|at| {
                let earlier = latest < *at;
                *at = latest.min(*at);
                earlier
            });
        }
    }

    pub(super) fn step_terminating(&mut self) {
        if self.stage != (Stage::Terminating { drained: true }) || self.retry_at.is_some_and(|at| at > Timestamp::now())
        {
            return;
        }
        let kill_at = match self.kill_at {
            Some(at) => at,
            None => {
                let at = Instant::now() + self.grace();
                self.kill_at = Some(at);
                // A restart that was stopping a container has no more time than the pod.
                self.bring_forward(at);
                at
            }
        };
        let busy = |t: &Track| matches!(t.state, State::Starting | State::Running(_) | State::Stopping(_));
        let stopping = |t: &Track| format!("Stopping container {}", t.name);
        for index in 0..self.tracks.len() {
            if self.tracks[index].role != Role::Sidecar {
                self.stop(index, stopping(&self.tracks[index]), kill_at);
            }
        }
        // Sidecars go last, the one started first last of all (KEP-753).
        if !self.tracks.iter().any(|t| t.role != Role::Sidecar && busy(t)) {
            let last = (0..self.tracks.len()).rev().find(|i| busy(&self.tracks[*i]));
            if let Some(index) = last {
                self.stop(index, stopping(&self.tracks[index]), kill_at);
            }
        }
        if !self.tracks.iter().any(busy) && self.ground != Ground::Preparing {
            self.stage = Stage::Dismantling;
            self.dismantle();
        }
    }

    pub(super) fn dismantle(&mut self) {
        self.probers.clear();
        self.give_host_ports_back();
        // The exit codes are in the API before the runtime forgets them: a crash in between loses none. An API that
        // is away does not hold addresses and cgroups back for ever.
        self.publish();
        let flushed = self.writer.flushed();
        let ctx = self.ctx.clone();
        let uid = uid(&self.pod).to_owned();
        let mailbox = self.mailbox.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(FLUSH_LIMIT, flushed).await;
            let result = ground::teardown(&ctx, &uid).await;
            let _ = mailbox.send(Message::TornDown(result));
        });
    }

    pub(super) fn step_terminated(&mut self) {
        if self.gone {
            self.stage = Stage::Done;
            return;
        }
        if self.pod.metadata.deletion_timestamp.is_none() || self.retry_at.is_some_and(|at| at > Timestamp::now()) {
            return;
        }
        self.stage = Stage::Deleting;
        self.publish();
        let flushed = self.writer.flushed();
        let namespace = self.pod.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced_with(self.ctx.client.clone(), &namespace, &self.ctx.family.pod());
        let name = self.pod.metadata.name.clone().unwrap_or_default();
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: self.pod.metadata.uid.clone(), ..Preconditions::default() }),
            ..DeleteParams::default()
        };
        let mailbox = self.mailbox.clone();
        tokio::spawn(async move {
            flushed.await;
            let result = match api.delete(&name, &params).await {
                Ok(_) => Ok(()),
                // Gone already, or another pod bears the name: the watch will say so.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
                Err(error) => Err(error.to_string()),
            };
            let _ = mailbox.send(Message::Deleted(result));
        });
    }
}
