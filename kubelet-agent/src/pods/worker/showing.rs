//! Owns what a worker shows: the status for the API, and the view for the node's own HTTP API.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;

use super::super::actions::Ground;
use super::super::context::View;
use super::super::status::{self, Facts};
use super::super::track::State;
use super::{Stage, Worker};

impl Worker {
    /// Shows what changed: to the API, and to the node's own HTTP API.
    pub(super) fn publish(&mut self) {
        let now = Timestamp::now();
        let previous = self.previous();
        let mut status = status::compute(&Facts {
            pod: &self.pod,
            previous: &previous,
            tracks: &self.tracks,
            ground_ready: self.ground == Ground::Ready,
            pod_ips: &self.info.pod_ips,
            host_ips: &self.ctx.host_ips,
            start_time: self.start_time,
            failure: self.failure.as_ref().map(|(reason, message)| (*reason, message.as_str())),
            terminal: matches!(self.stage, Stage::Dismantling | Stage::Terminated | Stage::Deleting | Stage::Done),
            terminating: self.stage != Stage::Sync,
            now,
        });
        // A phase once final stays.
        if let Some(phase) = previous.phase.as_deref().filter(|p| matches!(*p, "Succeeded" | "Failed")) {
            status.phase = Some(phase.to_owned());
            status.reason = status.reason.or_else(|| previous.reason.clone());
            status.message = status.message.or_else(|| previous.message.clone());
        }
        self.view.send_if_modified(|view| {
            let same = view.tracks[..] == self.tracks[..]
                && Arc::ptr_eq(&view.pod, &self.pod)
                && view.netns == self.info.netns
                && view.pod_ips == self.info.pod_ips;
            if same {
                return false;
            }
            *view = View {
                pod: self.pod.clone(),
                tracks: self.tracks.clone().into(),
                pod_ips: self.info.pod_ips.clone(),
                netns: self.info.netns.clone(),
            };
            true
        });
        if self.gone || previous == status {
            return;
        }
        let creating = status.phase.as_deref() == Some("Pending")
            && self.tracks.iter().all(|t| matches!(t.state, State::Absent | State::Starting) && t.hindrance.is_none());
        let status = Arc::new(status);
        self.shown = Some(status.clone());
        self.writer.show(status, !creating);
    }

    /// What is shown so far: our own last word, with the conditions others wrote since.
    fn previous(&self) -> PodStatus {
        let api = self.pod.status.clone().unwrap_or_default();
        let Some(shown) = &self.shown else { return api };
        let mut previous = PodStatus::clone(shown);
        let own = status::conditions::OWN;
        let mut conditions: Vec<_> = previous
            .conditions
            .take()
            .unwrap_or_default()
            .into_iter()
            .filter(|c| own.contains(&c.type_.as_str()))
            .collect();
        conditions.extend(api.conditions.into_iter().flatten().filter(|c| !own.contains(&c.type_.as_str())));
        previous.conditions = Some(conditions);
        previous.qos_class = api.qos_class;
        previous
    }
}
