//! Owns the status of a pod: phase, conditions and container statuses, computed from what is known. Pure.
//! Never sends anything: see [`super::writer`].

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Pod;
use super::actions::{containers, is_over};
use super::track::{Ended, Role, State, Track};

/// Names of the conditions the agent owns.
pub(crate) mod conditions {
    pub(crate) const READY_TO_START: &str = "PodReadyToStartContainers";
    pub(crate) const INITIALIZED: &str = "Initialized";
    pub(crate) const READY: &str = "Ready";
    pub(crate) const CONTAINERS_READY: &str = "ContainersReady";
    pub(crate) const SCHEDULED: &str = "PodScheduled";
    pub(crate) const OWN: [&str; 5] = [READY_TO_START, INITIALIZED, READY, CONTAINERS_READY, SCHEDULED];
}

/// Reasons of pods the node ended by itself: they stay what they are over a restart of the agent.
pub(crate) mod reasons {
    pub(crate) const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    pub(crate) const EVICTED: &str = "Evicted";
    pub(crate) const NODE_PORTS: &str = "NodePorts";
    pub(crate) const ALL: [&str; 3] = [DEADLINE_EXCEEDED, EVICTED, NODE_PORTS];
}

/// Phases, as the wire names them.
pub(crate) mod phase {
    pub(crate) const PENDING: &str = "Pending";
    pub(crate) const RUNNING: &str = "Running";
    pub(crate) const SUCCEEDED: &str = "Succeeded";
    pub(crate) const FAILED: &str = "Failed";
}

/// What the status is made from.
pub(crate) struct Facts<'a> {
    pub(crate) pod: &'a Pod,
    /// the status shown so far, foreign conditions included
    pub(crate) previous: &'a PodStatus,
    pub(crate) tracks: &'a [Track],
    /// sandbox and network are there
    pub(crate) ground_ready: bool,
    pub(crate) pod_ips: &'a [String],
    pub(crate) host_ips: &'a [String],
    pub(crate) start_time: Timestamp,
    /// the node ended the pod: reason and message
    pub(crate) failure: Option<(&'a str, &'a str)>,
    /// every container has ended and none will run again
    pub(crate) terminal: bool,
    /// it is being stopped
    pub(crate) terminating: bool,
    pub(crate) now: Timestamp,
}

/// The status a pod should show.
pub(crate) fn compute(facts: &Facts<'_>) -> PodStatus {
    let spec = &facts.pod.spec;
    let list = containers(spec);
    let previous = facts.previous;
    let phase = phase(facts, &list);
    let statuses = |wanted: &[Role]| -> Option<Vec<ContainerStatus>> {
        let list: Vec<_> = facts
            .tracks
            .iter()
            .enumerate()
            .filter(|(_, t)| wanted.contains(&t.role))
            .map(|(i, t)| container_status(facts, list.get(i).map(|(_, c)| c), t, previous))
            .collect();
        (!list.is_empty()).then_some(list)
    };
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        reason: facts.failure.map(|(reason, _)| reason.to_owned()),
        message: facts.failure.map(|(_, message)| message.to_owned()),
        host_ip: facts.host_ips.first().cloned(),
        host_ips: Some(facts.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        start_time: Some(Time(facts.start_time)),
        observed_generation: facts.pod.metadata.generation,
        qos_class: previous.qos_class.clone(),
        init_container_statuses: statuses(&[Role::Init, Role::Sidecar]),
        container_statuses: statuses(&[Role::Main]),
        ephemeral_container_statuses: statuses(&[Role::Ephemeral]),
        ..PodStatus::default()
    };
    if !facts.pod_ips.is_empty() {
        status.pod_ip = facts.pod_ips.first().cloned();
        status.pod_ips = Some(facts.pod_ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect());
    } else {
        status.pod_ip = previous.pod_ip.clone();
        status.pod_ips = previous.pod_ips.clone();
    }
    status.conditions = Some(conditions_of(facts, &list, phase, previous));
    status
}

/// The phase, by the rules of the Kubernetes documentation ("Pod phase").
fn phase(facts: &Facts<'_>, list: &[(Role, Container)]) -> &'static str {
    if facts.failure.is_some() {
        return phase::FAILED;
    }
    let (mut running, mut waiting, mut succeeded, mut failed, mut restarting) = (0, 0, 0, 0, 0);
    let mut init_failed = false;
    let mut initializing = false;
    let main_ran = facts.tracks.iter().any(|t| t.role == Role::Main && t.ever_ran());
    for (i, track) in facts.tracks.iter().enumerate() {
        let over = is_over(&facts.pod.spec, list.get(i).map(|(_, c)| c), track);
        match track.role {
            Role::Init => match &track.state {
                State::Ended(e) if e.code == 0 => {}
                State::Ended(_) if over => init_failed = true,
                _ => initializing |= !main_ran,
            },
            Role::Sidecar => initializing |= !(main_ran || track.started && track.run().is_some()),
            Role::Main => match &track.state {
                State::Running(_) | State::Stopping(_) => running += 1,
                State::Ended(e) if over || facts.terminal => {
                    if e.code == 0 {
                        succeeded += 1;
                    } else {
                        failed += 1;
                    }
                }
                _ if track.ever_ran() => restarting += 1,
                _ => waiting += 1,
            },
            Role::Ephemeral => {}
        }
    }
    if facts.terminal {
        // A container that never ran was kept from running: the pod did not do its work.
        let all_done = !init_failed && failed == 0 && waiting == 0 && restarting == 0 && succeeded > 0;
        return if all_done { phase::SUCCEEDED } else { phase::FAILED };
    }
    if init_failed {
        return phase::FAILED;
    }
    if initializing || waiting > 0 {
        return phase::PENDING;
    }
    if running > 0 || restarting > 0 {
        return phase::RUNNING;
    }
    if failed > 0 { phase::FAILED } else { phase::SUCCEEDED }
}

fn terminated(ended: &Ended) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(ended.run.id.wire()),
            exit_code: ended.code,
            signal: ended.signal,
            reason: Some(ended.reason.clone()),
            message: Some(ended.message.clone()).filter(|m| !m.is_empty()),
            started_at: Some(Time(ended.run.started_at)),
            finished_at: Some(Time(ended.finished_at)),
        }),
        ..ContainerState::default()
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    }
}

fn container_status(
    facts: &Facts<'_>,
    container: Option<&Container>,
    track: &Track,
    previous: &PodStatus,
) -> ContainerStatus {
    let meta = &facts.pod.metadata;
    let has_init = facts.tracks.iter().any(|t| matches!(t.role, Role::Init | Role::Sidecar));
    let not_yet = if has_init && track.role == Role::Main { "PodInitializing" } else { "ContainerCreating" };
    let over = is_over(&facts.pod.spec, container, track);
    let mut last = track.last.as_ref().map(terminated);
    let state = match &track.state {
        State::Absent => waiting(
            if track.role == Role::Main && !has_init || facts.terminal {
                "ContainerCreating"
            } else {
                "PodInitializing"
            },
            None,
        ),
        State::Starting => match (&track.last, &track.hindrance) {
            // Trying again does not hide why it has not run so far.
            (_, Some(blocked)) => waiting(blocked.reason, Some(blocked.message.clone())),
            // Between two runs the end of the first is what there is to see.
            (Some(ended), None) => {
                last = None;
                terminated(ended)
            }
            (None, None) => waiting(not_yet, None),
        },
        State::Blocked(blocked) => waiting(blocked.reason, Some(blocked.message.clone()).filter(|m| !m.is_empty())),
        State::Running(run) | State::Stopping(run) => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(run.started_at)) }),
            ..ContainerState::default()
        },
        State::Ended(ended) if over || facts.terminal || facts.terminating || track.not_before() <= facts.now => {
            terminated(ended)
        }
        State::Ended(ended) => {
            last = Some(terminated(ended));
            waiting(
                "CrashLoopBackOff",
                Some(format!(
                    "back-off {} restarting failed container={} pod={}_{}({})",
                    go_duration(track.delay().as_secs()),
                    track.name,
                    meta.name.as_deref().unwrap_or(""),
                    meta.namespace.as_deref().unwrap_or(""),
                    meta.uid.as_deref().unwrap_or(""),
                )),
            )
        }
    };
    let shown = track.run().or_else(|| track.ended().map(|e| &e.run));
    let before = previous
        .init_container_statuses
        .iter()
        .chain(&previous.container_statuses)
        .flatten()
        .find(|s| s.name == track.name);
    let running = matches!(track.state, State::Running(_) | State::Stopping(_));
    ContainerStatus {
        name: track.name.clone(),
        image: shown.map(|r| r.image.clone()).or_else(|| container.and_then(|c| c.image.clone())).unwrap_or_default(),
        image_id: shown.map(|r| r.image_id.clone()).or_else(|| before.map(|s| s.image_id.clone())).unwrap_or_default(),
        container_id: shown.map(|r| r.id.wire()),
        ready: match track.role {
            // A finished init container is ready; that is how kubectl counts them.
            Role::Init => matches!(&track.state, State::Ended(e) if e.code == 0),
            _ => running && track.ready,
        },
        started: Some(running && track.started),
        restart_count: i32::try_from(shown.map_or(0, |r| r.attempt)).unwrap_or(i32::MAX),
        resources: container.and_then(|c| c.resources.clone()).filter(|_| running),
        allocated_resources: container
            .and_then(|c| c.resources.as_ref())
            .and_then(|r| r.requests.clone())
            .filter(|_| running),
        state: Some(state),
        last_state: Some(last.unwrap_or_default()),
        ..ContainerStatus::default()
    }
}

/// Seconds as Go prints a duration: `10s`, `1m20s`, `5m0s`.
pub(crate) fn go_duration(seconds: i64) -> String {
    match (seconds / 3600, seconds % 3600 / 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

fn conditions_of(
    facts: &Facts<'_>,
    list: &[(Role, Container)],
    phase: &str,
    previous: &PodStatus,
) -> Vec<PodCondition> {
    let before = previous.conditions.as_deref().unwrap_or_default();
    let names = |keep: &dyn Fn(&Track) -> bool| -> Vec<&str> {
        facts.tracks.iter().filter(|t| keep(t)).map(|t| t.name.as_str()).collect()
    };
    let incomplete = names(&|t| match t.role {
        Role::Init => !matches!(&t.state, State::Ended(e) if e.code == 0),
        Role::Sidecar => !(t.started && t.run().is_some()),
        _ => false,
    });
    let main_ran = facts.tracks.iter().any(|t| t.role == Role::Main && t.ever_ran());
    let initialized = if phase == phase::SUCCEEDED {
        verdict(true, "PodCompleted", "")
    } else if incomplete.is_empty() || main_ran {
        verdict(true, "", "")
    } else {
        verdict(
            false,
            "ContainersNotInitialized",
            &format!("containers with incomplete status: [{}]", incomplete.join(" ")),
        )
    };
    let unready = names(&|t| {
        matches!(t.role, Role::Main | Role::Sidecar)
            && !(t.ready && matches!(t.state, State::Running(_) | State::Stopping(_)))
    });
    let containers_ready = match phase {
        phase::SUCCEEDED => verdict(false, "PodCompleted", ""),
        phase::FAILED => verdict(false, "PodFailed", ""),
        _ if !unready.is_empty() => {
            verdict(false, "ContainersNotReady", &format!("containers with unready status: [{}]", unready.join(" ")))
        }
        _ if list.is_empty() => verdict(false, "UnknownContainerStatuses", ""),
        _ => verdict(true, "", ""),
    };
    let ready = if containers_ready.0 { gates(facts, before) } else { containers_ready.clone() };
    let own = [
        (conditions::READY_TO_START, verdict(facts.ground_ready, "", "")),
        (conditions::INITIALIZED, initialized),
        (conditions::READY, ready),
        (conditions::CONTAINERS_READY, containers_ready),
        (conditions::SCHEDULED, verdict(true, "", "")),
    ];
    let mut all: Vec<PodCondition> = own
        .into_iter()
        .map(|(type_, (is, reason, message))| {
            let status = if is { "True" } else { "False" };
            let old = before.iter().find(|c| c.type_ == type_);
            let since = match old {
                Some(old) if old.status == status => old.last_transition_time.clone(),
                _ => None,
            };
            PodCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: Some(reason).filter(|r| !r.is_empty()),
                message: Some(message).filter(|m| !m.is_empty()),
                last_transition_time: since.or(Some(Time(facts.now))),
                observed_generation: facts.pod.metadata.generation,
                ..PodCondition::default()
            }
        })
        .collect();
    // What others wrote (readiness gates, DisruptionTarget) stays as it is.
    let foreign = before.iter().filter(|c| !all.iter().any(|own| own.type_ == c.type_)).cloned().collect::<Vec<_>>();
    all.extend(foreign);
    all
}

type Verdict = (bool, String, String);

fn verdict(is: bool, reason: &str, message: &str) -> Verdict {
    (is, reason.to_owned(), message.to_owned())
}

fn gates(facts: &Facts<'_>, before: &[PodCondition]) -> Verdict {
    let mut complaints = Vec::new();
    for gate in facts.pod.spec.readiness_gates.iter().flatten() {
        let name = &gate.condition_type;
        match before.iter().find(|c| c.type_ == *name) {
            None => {
                complaints.push(format!("corresponding condition of pod readiness gate \"{name}\" does not exist."))
            }
            Some(c) if c.status != "True" => {
                complaints
                    .push(format!("the status of pod readiness gate \"{name}\" is not \"True\", but {}", c.status));
            }
            Some(_) => {}
        }
    }
    if complaints.is_empty() {
        verdict(true, "", "")
    } else {
        verdict(false, "ReadinessGatesNotReady", &complaints.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::super::track::Blocked;
    use super::super::track::tests::{at, ended, run};
    use super::*;
    use serde_json::{Value, json};

    struct Story {
        pod: Pod,
        tracks: Vec<Track>,
        terminal: bool,
        failure: Option<(&'static str, &'static str)>,
    }

    impl Story {
        fn new(spec: Value) -> Self {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "web", "namespace": "default", "uid": "u1", "generation": 3}, "spec": spec
            }))
            .unwrap();
            let tracks = containers(&pod.spec).iter().map(|(role, c)| Track::new(&c.name, *role)).collect();
            Self { pod, tracks, terminal: false, failure: None }
        }

        fn runs(&mut self, i: usize, attempt: u32) -> &mut Self {
            self.tracks[i].begin_start();
            self.tracks[i].begin_run(run(attempt, 0), false, false);
            self
        }

        fn ends(&mut self, i: usize, attempt: u32, code: i32) -> &mut Self {
            self.tracks[i].end(ended(attempt, code, 0, 5));
            self
        }

        fn at(&self, now: i64) -> PodStatus {
            compute(&Facts {
                pod: &self.pod,
                previous: &self.pod.status.clone().unwrap_or_default(),
                tracks: &self.tracks,
                ground_ready: true,
                pod_ips: &["10.1.0.2".into()],
                host_ips: &["192.0.2.1".into()],
                start_time: at(0),
                failure: self.failure,
                terminal: self.terminal,
                terminating: false,
                now: at(now),
            })
        }
    }

    fn condition<'a>(status: &'a PodStatus, name: &str) -> &'a PodCondition {
        status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == name).unwrap()
    }

    fn first(status: &PodStatus) -> ContainerStatus {
        status.container_statuses.as_ref().unwrap()[0].clone()
    }

    fn one(policy: &str) -> Value {
        json!({"restartPolicy": policy, "containers": [{"name": "app", "image": "img"}]})
    }

    #[test]
    fn a_pod_without_probes_is_ready_as_soon_as_it_runs() {
        let mut story = Story::new(one("Always"));
        let creating = story.at(0);
        assert_eq!(creating.phase.as_deref(), Some("Pending"));
        assert_eq!(first(&creating).state.unwrap().waiting.unwrap().reason.as_deref(), Some("ContainerCreating"));
        assert_eq!(condition(&creating, "Ready").status, "False");
        story.runs(0, 0);
        let running = story.at(0);
        assert_eq!(running.phase.as_deref(), Some("Running"));
        for name in ["Ready", "ContainersReady", "Initialized", "PodScheduled", "PodReadyToStartContainers"] {
            assert_eq!(condition(&running, name).status, "True", "{name}");
        }
        let app = first(&running);
        assert!(app.ready && app.started == Some(true) && app.restart_count == 0);
        assert_eq!(app.container_id.as_deref(), Some("proa://c0"));
        assert_eq!(running.observed_generation, Some(3));
    }

    #[test]
    fn a_crash_loop_says_how_long_it_waits() {
        let mut story = Story::new(one("Always"));
        story.runs(0, 0).ends(0, 0, 1);
        story.runs(0, 1).ends(0, 1, 1);
        let status = story.at(6);
        let app = first(&status);
        let waiting = app.state.unwrap().waiting.unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
        assert_eq!(
            waiting.message.as_deref(),
            Some("back-off 10s restarting failed container=app pod=web_default(u1)")
        );
        assert_eq!(app.last_state.unwrap().terminated.unwrap().exit_code, 1);
        assert_eq!(app.restart_count, 1);
        assert_eq!(status.phase.as_deref(), Some("Running"));
    }

    #[test]
    fn phases_of_finished_pods() {
        for (policy, code, want) in [
            ("Never", 0, "Succeeded"),
            ("Never", 3, "Failed"),
            ("OnFailure", 0, "Succeeded"),
            ("OnFailure", 1, "Running"),
            ("Always", 0, "Running"),
        ] {
            let mut story = Story::new(one(policy));
            story.runs(0, 0).ends(0, 0, code);
            assert_eq!(story.at(6).phase.as_deref(), Some(want), "{policy} {code}");
        }
        let mut stopped = Story::new(one("Always"));
        stopped.runs(0, 0).ends(0, 0, 0);
        stopped.terminal = true;
        assert_eq!(stopped.at(6).phase.as_deref(), Some("Succeeded"));
        let mut failed = Story::new(one("Always"));
        failed.failure = Some(("DeadlineExceeded", "late"));
        assert_eq!(failed.at(6).phase.as_deref(), Some("Failed"));
        assert_eq!(failed.at(6).reason.as_deref(), Some("DeadlineExceeded"));
    }

    #[test]
    fn init_containers_hold_the_others_back() {
        let mut story = Story::new(json!({"initContainers": [{"name": "i", "image": "img"}],
            "containers": [{"name": "app", "image": "img"}]}));
        story.runs(0, 0);
        let status = story.at(1);
        assert_eq!(status.phase.as_deref(), Some("Pending"));
        assert_eq!(first(&status).state.unwrap().waiting.unwrap().reason.as_deref(), Some("PodInitializing"));
        assert_eq!(
            condition(&status, "Initialized").message.as_deref(),
            Some("containers with incomplete status: [i]")
        );
        story.ends(0, 0, 0).runs(1, 0);
        let status = story.at(6);
        assert_eq!(status.phase.as_deref(), Some("Running"));
        assert!(status.init_container_statuses.unwrap()[0].ready);
    }

    #[test]
    fn a_blocked_image_shows_its_reason() {
        let mut story = Story::new(one("Always"));
        story.tracks[0].state =
            State::Blocked(Blocked { reason: "ErrImagePull", message: "no such".into(), retry_at: at(9) });
        let status = story.at(1);
        let waiting = first(&status).state.unwrap().waiting.unwrap();
        assert_eq!((waiting.reason.as_deref(), waiting.message.as_deref()), (Some("ErrImagePull"), Some("no such")));
        assert_eq!(status.phase.as_deref(), Some("Pending"));
        assert_eq!(condition(&status, "Ready").message.as_deref(), Some("containers with unready status: [app]"));
    }

    #[test]
    fn readiness_gates_and_foreign_conditions_are_kept() {
        let mut story = Story::new(json!({"readinessGates": [{"conditionType": "lb"}],
            "containers": [{"name": "app", "image": "img"}]}));
        story.runs(0, 0);
        let status = story.at(1);
        assert_eq!(
            condition(&status, "Ready").message.as_deref(),
            Some("corresponding condition of pod readiness gate \"lb\" does not exist.")
        );
        let gate = PodCondition { type_: "lb".into(), status: "True".into(), ..Default::default() };
        story.pod.status = Some(PodStatus { conditions: Some(vec![gate]), ..Default::default() });
        let status = story.at(1);
        assert_eq!(condition(&status, "Ready").status, "True");
        assert_eq!(condition(&status, "lb").status, "True");
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let mut story = Story::new(one("Always"));
        story.pod.status = Some(story.at(1));
        let later = story.at(50);
        assert_eq!(condition(&later, "Ready").last_transition_time, Some(Time(at(1))));
        story.runs(0, 0);
        assert_eq!(condition(&story.at(60), "Ready").last_transition_time, Some(Time(at(60))));
    }

    #[test]
    fn durations_print_as_go_prints_them() {
        for (seconds, want) in [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3600, "1h0m0s")] {
            assert_eq!(go_duration(seconds), want);
        }
    }
}
