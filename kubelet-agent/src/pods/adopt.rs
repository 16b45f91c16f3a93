//! Owns the taking back of a pod's containers after the agent was away: from the runtime's list and the API's
//! status to tracks. Pure but for its callers.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus as ApiStatus, PodStatus};
use proa_runtime::{ContainerState, ContainerStatus, Exit, ExitReason};

use super::Pod;
use super::actions::containers;
use super::start::labels;
use super::track::{ContainerId, Ended, Run, State, Track};

/// The end of a run.
pub(crate) fn ended(run: Run, exit: &Exit) -> Ended {
    Ended {
        run,
        code: exit.code,
        signal: exit.signal,
        reason: exit.reason.as_str().to_owned(),
        message: exit.message.clone(),
        finished_at: exit.finished_at,
    }
}

/// The end of a run nobody saw.
pub(crate) fn lost() -> Exit {
    Exit {
        code: 137,
        signal: None,
        reason: ExitReason::ContainerStatusUnknown,
        message: "The container could not be located when the pod was terminated".to_owned(),
        finished_at: Timestamp::now(),
    }
}

fn run_of(status: &ContainerStatus) -> Run {
    let label = |key: &str| status.labels.get(key).cloned().unwrap_or_default();
    Run {
        id: ContainerId(status.id.clone()),
        attempt: status.attempt,
        image: label(labels::IMAGE),
        image_id: label(labels::IMAGE_ID),
        started_at: status.started_at.unwrap_or(status.created_at),
    }
}

fn ended_in_api(status: &ApiStatus, terminated: &ContainerStateTerminated, attempt: u32) -> Option<Ended> {
    let finished_at = terminated.finished_at.as_ref().map_or_else(Timestamp::now, |t| t.0);
    Some(Ended {
        run: Run {
            id: ContainerId::from_wire(terminated.container_id.as_deref()?)?,
            attempt,
            image: status.image.clone(),
            image_id: status.image_id.clone(),
            started_at: terminated.started_at.as_ref().map_or(finished_at, |t| t.0),
        },
        code: terminated.exit_code,
        signal: terminated.signal,
        reason: terminated.reason.clone().unwrap_or_default(),
        message: terminated.message.clone().unwrap_or_default(),
        finished_at,
    })
}

/// Ids of the runs a later one of the same container has taken the place of. Their removal runs beside the next start and
/// may have been cut off with the agent.
pub(crate) fn superseded(found: &[ContainerStatus]) -> Vec<&str> {
    let later = |old: &ContainerStatus| {
        found.iter().any(|s| s.name == old.name && s.attempt > old.attempt && s.state != ContainerState::Created)
    };
    found.iter().filter(|old| later(old)).map(|old| old.id.as_str()).collect()
}

/// Tracks of a pod from what the runtime has of it and what the API showed last. The runtime wins.
pub(crate) fn tracks(pod: &Pod, found: &[ContainerStatus], now: Timestamp) -> Vec<Track> {
    let none = PodStatus::default();
    let shown = pod.status.as_ref().unwrap_or(&none);
    containers(&pod.spec)
        .iter()
        .map(|(role, container)| {
            let mut track = Track::new(&container.name, *role);
            let api = shown
                .init_container_statuses
                .iter()
                .chain(&shown.container_statuses)
                .chain(&shown.ephemeral_container_statuses)
                .flatten()
                .find(|s| s.name == container.name);
            let mut runs: Vec<&ContainerStatus> = found.iter().filter(|s| s.name == container.name).collect();
            runs.sort_by_key(|s| s.attempt);
            from_api(&mut track, api, now);
            match runs.iter().rev().find(|s| s.state != ContainerState::Created) {
                Some(latest) => {
                    from_runtime(&mut track, latest, api);
                    // How many short runs there were in a row is not known any more. The kubelet begins anew after its own
                    // restart; here the run that is known counts.
                    let restarted = track.next_attempt > 1;
                    track.crashes = u32::from(restarted && track.ended().is_some_and(Ended::was_short));
                }
                // The runtime keeps the last run of each container for as long as its sandbox.
                None => track.displace(),
            }
            track
        })
        .collect()
}

fn from_api(track: &mut Track, api: Option<&ApiStatus>, now: Timestamp) {
    let Some(api) = api else { return };
    let attempt = u32::try_from(api.restart_count).unwrap_or(0);
    let terminated_of = |state: &Option<k8s_openapi::api::core::v1::ContainerState>, attempt| {
        state.as_ref().and_then(|s| s.terminated.as_ref()).and_then(|t| ended_in_api(api, t, attempt))
    };
    let last = terminated_of(&api.last_state, attempt.saturating_sub(1));
    if let Some(ended) = terminated_of(&api.state, attempt) {
        track.next_attempt = attempt + 1;
        track.state = State::Ended(ended);
        track.last = last;
    } else if let Some(running) = api.state.as_ref().and_then(|s| s.running.as_ref()) {
        // It ran when the agent was last here; unless the runtime knows better, nobody saw its end.
        let Some(id) = api.container_id.as_deref().and_then(ContainerId::from_wire) else { return };
        let run = Run {
            id,
            attempt,
            image: api.image.clone(),
            image_id: api.image_id.clone(),
            started_at: running.started_at.as_ref().map_or(now, |t| t.0),
        };
        track.next_attempt = attempt + 1;
        track.state = State::Ended(ended(run, &lost()));
        track.last = last;
    } else if let Some(mut ended) = last {
        // It was waiting for its next run: what ended is the present state.
        ended.run.attempt = attempt;
        track.next_attempt = attempt + 1;
        track.state = State::Ended(ended);
    }
}

fn from_runtime(track: &mut Track, status: &ContainerStatus, api: Option<&ApiStatus>) {
    let run = run_of(status);
    if let State::Ended(previous) = &track.state
        && previous.run.attempt < run.attempt
    {
        track.last = Some(previous.clone());
    }
    track.next_attempt = run.attempt + 1;
    match &status.state {
        ContainerState::Running => {
            let same = api.is_some_and(|a| a.container_id.as_deref() == Some(run.id.wire().as_str()));
            track.started = same && api.is_some_and(|a| a.started == Some(true));
            track.ready = same && api.is_some_and(|a| a.ready);
            track.state = State::Running(run);
        }
        ContainerState::Exited(exit) => track.end(ended(run, exit)),
        ContainerState::Created => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::track::tests::at;
    use super::*;
    use serde_json::json;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {"containers": [{"name": "a", "image": "img"}]},
            "status": {"containerStatuses": [status]}
        }))
        .unwrap()
    }

    fn status(value: serde_json::Value) -> serde_json::Value {
        let mut base = json!({"name": "a", "image": "img", "imageID": "i", "ready": false, "restartCount": 0});
        base.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        base
    }

    fn container(attempt: u32, state: ContainerState) -> ContainerStatus {
        ContainerStatus {
            id: format!("c{attempt}"),
            sandbox: "u".into(),
            name: "a".into(),
            attempt,
            state,
            pid: None,
            created_at: at(0),
            started_at: Some(at(1)),
            labels: [(labels::IMAGE.to_owned(), "img".to_owned())].into(),
            log_path: "/log".into(),
        }
    }

    #[test]
    fn a_running_container_is_taken_back_ready_as_it_was() {
        let pod = pod(status(json!({"ready": true, "started": true, "containerID": "proa://c2", "restartCount": 2,
            "state": {"running": {}}})));
        let tracks = tracks(&pod, &[container(2, ContainerState::Running)], at(9));
        assert!(matches!(&tracks[0].state, State::Running(r) if r.attempt == 2 && r.image == "img"));
        assert!(tracks[0].ready && tracks[0].started);
        assert_eq!(tracks[0].next_attempt, 3);
    }

    #[test]
    fn an_exit_while_the_agent_was_away_is_found() {
        let exit =
            Exit { code: 7, signal: None, reason: ExitReason::Error, message: String::new(), finished_at: at(5) };
        let pod = pod(status(json!({"containerID": "proa://c0", "state": {"running": {}}})));
        let tracks = tracks(&pod, &[container(0, ContainerState::Exited(exit))], at(9));
        assert!(matches!(&tracks[0].state, State::Ended(e) if e.code == 7 && e.run.attempt == 0));
        assert!(tracks[0].is_settled());
    }

    #[test]
    fn a_container_that_is_nowhere_has_ended_unseen() {
        let pod = pod(status(json!({"containerID": "proa://c0", "state": {"running": {}}})));
        let tracks = tracks(&pod, &[], at(9));
        assert!(matches!(&tracks[0].state, State::Ended(e) if e.code == 137 && e.reason == "ContainerStatusUnknown"));
        assert_eq!(tracks[0].next_attempt, 1);
        assert!(!tracks[0].is_settled(), "the runtime would know it if its sandbox were still there");
    }

    #[test]
    fn the_back_off_does_not_count_restarts_of_long_ago() {
        let ended = |started: i64, finished: i64| json!({"exitCode": 1, "containerID": "proa://c6", "startedAt": at(started).to_string(), "finishedAt": at(finished).to_string()});
        let running = |last| {
            pod(status(json!({"containerID": "proa://c7", "restartCount": 7, "state": {"running": {}},
                "lastState": {"terminated": last}})))
        };
        for (last, crashes) in [(ended(0, 9), 1), (ended(0, 100_000), 0)] {
            let tracks = tracks(&running(last), &[container(7, ContainerState::Running)], at(100_009));
            assert_eq!(tracks[0].crashes, crashes);
        }
        // The first run of all ended: its restart is no back-off yet.
        let exit =
            Exit { code: 7, signal: None, reason: ExitReason::Error, message: String::new(), finished_at: at(5) };
        let first = pod(status(json!({"containerID": "proa://c0", "state": {"running": {}}})));
        assert_eq!(tracks(&first, &[container(0, ContainerState::Exited(exit.clone()))], at(9))[0].crashes, 0);
        let later = pod(status(json!({"containerID": "proa://c7", "restartCount": 7, "state": {"running": {}}})));
        assert_eq!(tracks(&later, &[container(7, ContainerState::Exited(exit))], at(9))[0].crashes, 1);
    }

    #[test]
    fn runs_with_a_successor_are_superseded() {
        let exited = || Exit {
            code: 0,
            signal: None,
            reason: ExitReason::Completed,
            message: String::new(),
            finished_at: at(5),
        };
        let old = container(3, ContainerState::Exited(exited()));
        let new = container(4, ContainerState::Running);
        assert_eq!(superseded(&[new.clone(), old.clone()]), ["c3"]);
        // A container that was only created is not yet a run: the end before it is still the state.
        assert!(superseded(&[old, container(4, ContainerState::Created)]).is_empty());
    }

    #[test]
    fn a_container_that_was_created_only_has_not_run() {
        let mut pod = pod(status(json!({})));
        pod.status = None;
        let tracks = tracks(&pod, &[container(0, ContainerState::Created)], at(9));
        assert_eq!(tracks[0].state, State::Absent);
        assert_eq!(tracks[0].next_attempt, 0);
    }

    #[test]
    fn a_finished_init_container_is_remembered_by_the_api_alone() {
        let pod = pod(status(json!({"containerID": "proa://c0",
            "state": {"terminated": {"exitCode": 0, "containerID": "proa://c0", "reason": "Completed"}}})));
        let tracks = tracks(&pod, &[], at(9));
        assert!(matches!(&tracks[0].state, State::Ended(e) if e.code == 0));
    }
}
