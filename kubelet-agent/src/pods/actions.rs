//! Owns the decision what to do next for one pod. Pure: a spec, what is known of its containers, and the
//! time, to actions. Never does them, and never learns why it was asked.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::status::reasons;
use super::track::{Role, State, Track};

/// The ground the containers stand on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ground {
    /// nothing is set up
    Missing,
    /// being set up
    Preparing,
    /// the last try failed
    Failed { retry_at: Timestamp },
    /// namespaces, network and volumes are there
    Ready,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// set up volumes, network and sandbox
    Prepare,
    /// start the container of this index
    Start(usize),
    /// stop the container of this index; `grace` overrides the pod's own
    Stop { index: usize, why: String, grace: Option<i64> },
    /// the pod is to end as Failed
    Fail { reason: &'static str, message: String },
    /// every container has ended for good: take the ground away
    Finish,
}

/// What to do now, and when to ask again if nothing happens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) actions: Vec<Action>,
    pub(crate) wake_at: Option<Timestamp>,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }
}

/// What [`pod_actions`] looks at.
pub(crate) struct Seen<'a> {
    pub(crate) spec: &'a PodSpec,
    /// init containers, then containers, then ephemeral ones: the order of [`containers`]
    pub(crate) tracks: &'a [Track],
    pub(crate) ground: &'a Ground,
    /// when the node took the pod
    pub(crate) start_time: Timestamp,
    pub(crate) now: Timestamp,
}

/// The containers of a pod in the order tracks have.
pub(crate) fn containers(spec: &PodSpec) -> Vec<(Role, Container)> {
    let init = spec.init_containers.iter().flatten().map(|c| {
        let sidecar = c.restart_policy.as_deref() == Some("Always");
        (if sidecar { Role::Sidecar } else { Role::Init }, c.clone())
    });
    let main = spec.containers.iter().map(|c| (Role::Main, c.clone()));
    let ephemeral = spec.ephemeral_containers.iter().flatten().filter_map(|e| {
        // An ephemeral container has a container's fields and a target; JSON is the shortest bridge.
        let value = serde_json::to_value(e).ok()?;
        serde_json::from_value(value).ok().map(|c| (Role::Ephemeral, c))
    });
    init.chain(main).chain(ephemeral).collect()
}

/// Whether a container that ended runs again.
pub(crate) fn restarts(spec: &PodSpec, container: Option<&Container>, role: Role, code: i32) -> bool {
    if role == Role::Ephemeral {
        return false;
    }
    if role == Role::Sidecar {
        return true;
    }
    if role == Role::Init && code == 0 {
        return false;
    }
    // Rules of the container itself come first (KEP-5307).
    for rule in container.and_then(|c| c.restart_policy_rules.as_ref()).into_iter().flatten() {
        if let Some(codes) = &rule.exit_codes {
            let listed = codes.values.iter().flatten().any(|v| *v == code);
            if rule.action == "Restart" && listed == (codes.operator == "In") {
                return true;
            }
        }
    }
    let own = container.and_then(|c| c.restart_policy.as_deref());
    match own.or(spec.restart_policy.as_deref()).unwrap_or("Always") {
        "Always" => true,
        "OnFailure" => code != 0,
        _ => false,
    }
}

/// Whether a track is over for good.
pub(crate) fn is_over(spec: &PodSpec, container: Option<&Container>, track: &Track) -> bool {
    match &track.state {
        State::Ended(ended) => !track.again && !restarts(spec, container, track.role, ended.code),
        _ => false,
    }
}

/// Decides what a pod that is wanted needs next.
pub(crate) fn pod_actions(seen: &Seen<'_>) -> Plan {
    let mut plan = Plan::default();
    let list = containers(seen.spec);
    if deadline(seen, &mut plan) {
        return plan;
    }
    let container = |i: usize| list.get(i).map(|(_, c)| c);
    let over = |i: usize| is_over(seen.spec, container(i), &seen.tracks[i]);
    let of = |role: Role| (0..seen.tracks.len()).filter(move |i| seen.tracks[*i].role == role);

    // An init container that failed for good takes the pod with it.
    let init_failed = of(Role::Init).any(|i| over(i) && seen.tracks[i].ended().is_some_and(|e| e.code != 0));
    let main_over = of(Role::Main).all(over);
    if init_failed || main_over {
        return finishing(seen);
    }
    match seen.ground {
        Ground::Ready => {}
        Ground::Preparing => return plan,
        Ground::Failed { retry_at } if *retry_at > seen.now => {
            plan.wake(*retry_at);
            return plan;
        }
        Ground::Missing | Ground::Failed { .. } => {
            plan.actions.push(Action::Prepare);
            return plan;
        }
    }
    stop_unwell(seen, &list, &mut plan);
    let initialized = of(Role::Main).any(|i| seen.tracks[i].is_settled());
    if !initialize(seen, &list, initialized, &mut plan) {
        return plan;
    }
    for i in of(Role::Main) {
        start_if_due(seen, i, &list, &mut plan);
        // A `postStart` hook holds the later containers back, as it does on Kubernetes.
        let hooked = container(i).and_then(|c| c.lifecycle.as_ref()).is_some_and(|l| l.post_start.is_some());
        let first = !seen.tracks[i].ever_ran();
        if hooked && first && matches!(seen.tracks[i].state, State::Absent | State::Starting) {
            break;
        }
    }
    if initialized {
        for i in of(Role::Ephemeral) {
            start_if_due(seen, i, &list, &mut plan);
        }
    }
    plan
}

/// Walks the init containers in order; true when the main ones may run.
fn initialize(seen: &Seen<'_>, list: &[(Role, Container)], initialized: bool, plan: &mut Plan) -> bool {
    for (i, track) in seen.tracks.iter().enumerate() {
        match track.role {
            Role::Init => {
                let done = matches!(&track.state, State::Ended(e) if e.code == 0) && !track.displaced;
                if initialized || done {
                    continue;
                }
                start_if_due(seen, i, list, plan);
                return false;
            }
            Role::Sidecar => {
                start_if_due(seen, i, list, plan);
                let up = matches!(track.state, State::Running(_)) && track.started;
                if !up && !initialized {
                    return false;
                }
            }
            Role::Main | Role::Ephemeral => {}
        }
    }
    true
}

fn start_if_due(seen: &Seen<'_>, i: usize, list: &[(Role, Container)], plan: &mut Plan) {
    let track = &seen.tracks[i];
    let due = match &track.state {
        State::Absent => true,
        State::Blocked(_) => track.not_before() <= seen.now,
        State::Ended(ended) => {
            // In a new sandbox the init containers run again, whatever became of them in the old one.
            let again = track.again || (track.displaced && track.role == Role::Init);
            if !again && !restarts(seen.spec, list.get(i).map(|(_, c)| c), track.role, ended.code) {
                return;
            }
            track.not_before() <= seen.now
        }
        State::Starting | State::Running(_) | State::Stopping(_) => return,
    };
    if due {
        plan.actions.push(Action::Start(i));
    } else {
        plan.wake(track.not_before());
    }
}

fn stop_unwell(seen: &Seen<'_>, list: &[(Role, Container)], plan: &mut Plan) {
    for (index, track) in seen.tracks.iter().enumerate() {
        let State::Running(run) = &track.state else { continue };
        if let Some(unhealthy) = &track.unhealthy {
            plan.actions.push(Action::Stop { index, why: unhealthy.message.clone(), grace: unhealthy.grace });
        } else if track.role != Role::Ephemeral
            && list.get(index).and_then(|(_, c)| c.image.as_deref()).is_some_and(|image| image != run.image)
        {
            let why = format!("Container {} definition changed, will be restarted", track.name);
            plan.actions.push(Action::Stop { index, why, grace: None });
        }
    }
}

/// The main containers are over: sidecars and ephemeral containers are stopped, then the ground goes.
fn finishing(seen: &Seen<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut quiet = true;
    for (index, track) in seen.tracks.iter().enumerate() {
        match track.state {
            State::Running(_) => {
                plan.actions.push(Action::Stop {
                    index,
                    why: format!("Stopping container {}", track.name),
                    grace: None,
                });
                quiet = false;
            }
            State::Starting | State::Stopping(_) => quiet = false,
            State::Absent | State::Blocked(_) | State::Ended(_) => {}
        }
    }
    if quiet && *seen.ground != Ground::Preparing {
        plan.actions.push(Action::Finish);
    }
    plan
}

fn deadline(seen: &Seen<'_>, plan: &mut Plan) -> bool {
    let Some(seconds) = seen.spec.active_deadline_seconds else { return false };
    let at = seen.start_time.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
    if at > seen.now {
        plan.wake(at);
        return false;
    }
    plan.wake_at = None;
    plan.actions.push(Action::Fail {
        reason: reasons::DEADLINE_EXCEEDED,
        message: "Pod was active on the node longer than the specified deadline".to_owned(),
    });
    true
}

#[cfg(test)]
mod tests {
    use super::super::track::tests::{at, ended, run};
    use super::super::track::{Blocked, Unhealthy};
    use super::*;
    use serde_json::{Value, json};

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    struct Case {
        spec: PodSpec,
        tracks: Vec<Track>,
        ground: Ground,
    }

    impl Case {
        fn new(value: Value) -> Self {
            let spec = spec(value);
            let tracks = containers(&spec).iter().map(|(role, c)| Track::new(&c.name, *role)).collect();
            Self { spec, tracks, ground: Ground::Ready }
        }

        fn plan(&self, now: i64) -> Plan {
            pod_actions(&Seen {
                spec: &self.spec,
                tracks: &self.tracks,
                ground: &self.ground,
                start_time: at(0),
                now: at(now),
            })
        }

        fn running(&mut self, i: usize) -> &mut Self {
            let attempt = self.tracks[i].next_attempt;
            self.tracks[i].begin_start();
            self.tracks[i].begin_run(run(attempt, 0), false, false);
            self
        }

        fn ends(&mut self, i: usize, code: i32, at: i64) -> &mut Self {
            let attempt = self.tracks[i].run().map_or(0, |r| r.attempt);
            self.tracks[i].end(ended(attempt, code, 0, at));
            self
        }
    }

    fn two() -> Value {
        json!({"initContainers": [{"name": "i1", "image": "img"}, {"name": "i2", "image": "img"}],
               "containers": [{"name": "a", "image": "img"}, {"name": "b", "image": "img"}]})
    }

    #[test]
    fn the_ground_comes_first_and_a_failure_is_tried_again_later() {
        let mut case = Case::new(two());
        case.ground = Ground::Missing;
        assert_eq!(case.plan(0).actions, [Action::Prepare]);
        case.ground = Ground::Preparing;
        assert_eq!(case.plan(0), Plan::default());
        case.ground = Ground::Failed { retry_at: at(5) };
        assert_eq!(case.plan(0), Plan { actions: vec![], wake_at: Some(at(5)) });
        assert_eq!(case.plan(5).actions, [Action::Prepare]);
    }

    #[test]
    fn init_containers_run_one_after_the_other_then_all_main_ones() {
        let mut case = Case::new(two());
        assert_eq!(case.plan(0).actions, [Action::Start(0)]);
        case.running(0);
        assert_eq!(case.plan(0).actions, []);
        case.ends(0, 0, 1);
        assert_eq!(case.plan(1).actions, [Action::Start(1)]);
        case.running(1).ends(1, 0, 2);
        assert_eq!(case.plan(2).actions, [Action::Start(2), Action::Start(3)]);
    }

    #[test]
    fn a_failed_init_container_is_tried_again_or_fails_the_pod() {
        let mut case = Case::new(two());
        case.running(0).ends(0, 1, 1);
        assert_eq!(case.plan(1).actions, [Action::Start(0)]);
        case.running(0).ends(0, 1, 2);
        assert_eq!(case.plan(2), Plan { actions: vec![], wake_at: Some(at(12)) });
        case.spec.restart_policy = Some("Never".into());
        assert_eq!(case.plan(2).actions, [Action::Finish]);
    }

    #[test]
    fn in_a_new_sandbox_init_containers_run_again_before_what_is_to_run_on() {
        let mut case = Case::new(two());
        case.spec.restart_policy = Some("OnFailure".into());
        for i in 0..2 {
            case.running(i).ends(i, 0, 1);
        }
        case.running(2).ends(2, 0, 2);
        case.running(3).ends(3, 137, 3);
        assert_eq!(case.plan(3).actions, [Action::Start(3)], "in the same sandbox");
        case.tracks.iter_mut().for_each(Track::displace);
        assert_eq!(case.plan(3).actions, [Action::Start(0)]);
        case.running(0).ends(0, 0, 4);
        assert_eq!(case.plan(4).actions, [Action::Start(1)]);
        case.running(1).ends(1, 0, 5);
        assert_eq!(case.plan(5).actions, [Action::Start(3)], "what has succeeded stays so");
        case.running(3);
        assert_eq!(case.plan(6).actions, []);

        case.tracks.iter_mut().for_each(Track::displace);
        assert_eq!(case.plan(6).actions, [], "what runs is where it runs");
    }

    #[test]
    fn a_sidecar_starts_before_the_main_ones_and_is_stopped_after_them() {
        let mut case = Case::new(json!({"restartPolicy": "Never",
            "initContainers": [{"name": "s", "image": "img", "restartPolicy": "Always"}],
            "containers": [{"name": "a", "image": "img"}]}));
        assert_eq!(case.plan(0).actions, [Action::Start(0)]);
        case.tracks[0].begin_start();
        case.tracks[0].begin_run(run(0, 0), true, false);
        assert_eq!(case.plan(0).actions, [], "its startup probe has not passed");
        case.tracks[0].started = true;
        assert_eq!(case.plan(0).actions, [Action::Start(1)]);
        case.running(1).ends(1, 0, 5);
        assert!(matches!(case.plan(5).actions[..], [Action::Stop { index: 0, .. }]));
        case.ends(0, 0, 6);
        assert_eq!(case.plan(6).actions, [Action::Finish]);
    }

    #[test]
    fn restart_policies() {
        for (policy, code, restarts) in [
            ("Always", 0, true),
            ("Always", 1, true),
            ("OnFailure", 0, false),
            ("OnFailure", 1, true),
            ("Never", 0, false),
            ("Never", 1, false),
        ] {
            let mut case = Case::new(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "img"}]}));
            case.running(0).ends(0, code, 1);
            let want = if restarts { Action::Start(0) } else { Action::Finish };
            assert_eq!(case.plan(1).actions, [want], "{policy} {code}");
        }
    }

    #[test]
    fn a_rule_on_exit_codes_restarts_what_the_policy_would_not() {
        let mut case = Case::new(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "img",
            "restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]}));
        case.running(0).ends(0, 42, 1);
        assert_eq!(case.plan(1).actions, [Action::Start(0)]);
        case.ends(0, 1, 1);
        assert_eq!(case.plan(1).actions, [Action::Finish]);
    }

    #[test]
    fn a_blocked_container_waits_for_its_time() {
        let mut case = Case::new(json!({"containers": [{"name": "a", "image": "img"}]}));
        case.tracks[0].state =
            State::Blocked(Blocked { reason: "ErrImagePull", message: String::new(), retry_at: at(10) });
        assert_eq!(case.plan(3), Plan { actions: vec![], wake_at: Some(at(10)) });
        assert_eq!(case.plan(10).actions, [Action::Start(0)]);
    }

    #[test]
    fn an_unhealthy_container_is_stopped_and_a_changed_image_too() {
        let mut case = Case::new(json!({"containers": [{"name": "a", "image": "img"}]}));
        case.running(0);
        assert_eq!(case.plan(0).actions, []);
        case.tracks[0].unhealthy = Some(Unhealthy { message: "no".into(), grace: Some(3) });
        assert_eq!(case.plan(0).actions, [Action::Stop { index: 0, why: "no".into(), grace: Some(3) }]);
        case.tracks[0].unhealthy = None;
        case.spec.containers[0].image = Some("other".into());
        assert!(matches!(case.plan(0).actions[..], [Action::Stop { index: 0, .. }]));
    }

    #[test]
    fn a_post_start_hook_holds_the_next_container_back() {
        let mut case = Case::new(json!({"containers": [
            {"name": "a", "image": "img", "lifecycle": {"postStart": {"sleep": {"seconds": 1}}}},
            {"name": "b", "image": "img"}]}));
        assert_eq!(case.plan(0).actions, [Action::Start(0)]);
        case.tracks[0].begin_start();
        assert_eq!(case.plan(0).actions, []);
        case.running(0);
        assert_eq!(case.plan(0).actions, [Action::Start(1)]);
    }

    #[test]
    fn the_active_deadline_fails_the_pod() {
        let mut case = Case::new(json!({"activeDeadlineSeconds": 30, "containers": [{"name": "a", "image": "img"}]}));
        case.running(0);
        assert_eq!(case.plan(29), Plan { actions: vec![], wake_at: Some(at(30)) });
        assert!(matches!(case.plan(30).actions[..], [Action::Fail { reason: "DeadlineExceeded", .. }]));
    }
}
