//! Stories of policies: what is done about a failed revision, gradual steps, checks, and a cluster that is unwell.

use super::{
    going_back::{images, on_failure},
    world::{Sim, manifest},
};
use crate::rollback::checks::Standing;
use kube::ResourceExt;
use proa_crds::{FailedTemplate, annotations};
use serde_json::{Value, json};

fn with(spec: Value) -> Sim {
    let mut sim = Sim::new();
    sim.policy(spec);
    sim
}

fn is_true(sim: &Sim, type_: &str) -> bool {
    sim.condition(type_).is_some_and(|(status, ..)| status == "True")
}

#[test]
fn a_policy_that_pauses_stops_where_it_is_and_says_so_and_the_template_stays() {
    let mut sim = with(json!({"action": "Pause"}));
    sim.roll_out(&manifest(4, "v1", json!({})));
    sim.roll_out(&manifest(4, "crash", json!({})));
    let (status, reason, message) = sim.condition("RolloutPaused").expect("it");
    assert_eq!((status.as_str(), reason.as_str(), sim.image().as_str()), ("True", "CrashLoop", "crash"));
    assert!(message.contains("revision 2 failed") && message.contains("boom"), "{message}");
    let standing = images(&sim);
    sim.world.pass(3600);
    sim.settle();
    assert_eq!(images(&sim), standing);
    assert_eq!(sim.condition("Progressing").expect("it").0, "True", "no deadline runs");
    // Scaled, it keeps its shares; going on is a matter of a new value.
    sim.edit(json!({"spec": {"replicas": 8}}));
    sim.settle();
    assert!(images(&sim).iter().all(|(_, count)| *count > 0), "{:?}", images(&sim));
    sim.edit(json!({"metadata": {"annotations": {annotations::RETRY: "1"}}}));
    sim.step_deployment();
    assert!(!is_true(&sim, "RolloutPaused"), "it goes on");
    sim.roll_out(&manifest(8, "v3", json!({})));
    assert_eq!((images(&sim), is_true(&sim, "RolloutPaused")), ([("v3".into(), 8)].to_vec(), false));
}

#[test]
fn a_policy_that_alerts_says_so_and_the_rollout_goes_on() {
    let mut sim = with(json!({"action": "Alert"}));
    sim.roll_out(&manifest(2, "v1", json!({})));
    sim.roll_out(&manifest(2, "crash", json!({})));
    let (status, reason, message) = sim.condition("RolloutFailed").expect("it");
    assert_eq!((status.as_str(), reason.as_str(), sim.image().as_str()), ("True", "CrashLoop", "crash"));
    assert!(message.contains("its rollout goes on"), "{message}");
    assert_eq!(sim.events.iter().filter(|event| event.starts_with("RolloutFailed")).count(), 1);
    sim.roll_out(&manifest(2, "v3", json!({})));
    assert!(!is_true(&sim, "RolloutFailed"));
}

#[test]
fn a_first_revision_that_fails_is_said_with_its_evidence_and_comes_good_when_its_pods_do() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(1, "crash", on_failure()));
    let (_, reason, message) = sim.condition("RolloutFailed").expect("it");
    assert_eq!(reason, "CrashLoop");
    assert!(message.contains("there is no healthy revision to go back to") && message.contains("boom"), "{message}");
    let pod = crate::Key::new("ns", &sim.pods()[0].name_any());
    let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(sim.world.now);
    let ready = json!({"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at}], "containerStatuses": null});
    sim.world.patch("pods", &pod, &json!({"status": ready}));
    sim.settle();
    assert!(is_true(&sim, "RolloutFailed"), "one moment proves nothing");
    sim.world.pass(90);
    sim.settle();
    assert!(!is_true(&sim, "RolloutFailed"));
    assert!(sim.set_of("crash").expect("it").annotations().contains_key(annotations::HEALTHY));
}

#[test]
fn the_api_server_is_told_which_templates_would_not_be_rolled_out() {
    let mut sim = Sim::new();
    let told = |sim: &Sim| -> Vec<FailedTemplate> {
        let deployment = sim.deployment();
        let text = deployment.annotations().get(annotations::FAILED_REVISIONS).cloned();
        text.map(|text| serde_json::from_str(&text).expect("a list")).unwrap_or_default()
    };
    sim.roll_out(&manifest(1, "v1", on_failure()));
    assert!(told(&sim).is_empty());
    let bad = manifest(1, "crash", on_failure());
    sim.roll_out(&bad);
    let [one] = &told(&sim)[..] else { panic!("one") };
    assert_eq!(one.template, proa_apimachinery::template::digest(&bad["spec"]["template"]));
    assert!(one.revision == 2 && one.why.starts_with("CrashLoop: "), "{one:?}");
    // An undo of stock kubectl takes every annotation along; it is told again.
    sim.roll_out(&manifest(1, "v3", on_failure()));
    sim.undo(Some(3));
    sim.settle();
    assert_eq!(told(&sim).len(), 1);
    sim.roll_out(&manifest(1, "v3", json!({"metadata": {"annotations": {annotations::ROLLBACK: "off"}}})));
    assert!(told(&sim).is_empty(), "nothing is held back any longer");
}

#[test]
fn a_gradual_rollout_goes_from_step_to_step_and_keeps_the_rest_as_it_was() {
    let mut sim = with(json!({"steps": [{"percent": 25, "waitSeconds": 60}, {"percent": 50, "waitSeconds": 10}]}));
    sim.roll_out(&manifest(8, "v1", json!({})));
    assert_eq!(images(&sim), [("v1".into(), 8)], "what replaces nothing goes at once");
    sim.roll_out(&manifest(8, "v2", json!({})));
    assert_eq!(images(&sim), [("v1".into(), 6), ("v2".into(), 2)]);
    sim.world.pass(59);
    sim.settle();
    assert_eq!(images(&sim), [("v1".into(), 6), ("v2".into(), 2)]);
    sim.world.pass(1);
    sim.settle();
    assert_eq!(images(&sim), [("v1".into(), 4), ("v2".into(), 4)]);
    sim.world.pass(10);
    sim.settle();
    assert_eq!(images(&sim), [("v2".into(), 8)]);
    sim.undo(None);
    sim.settle();
    assert_eq!(images(&sim), [("v1".into(), 8)], "what has proven itself comes back at once");
}

#[test]
fn a_step_that_waits_longer_than_the_deadline_is_not_late() {
    let mut sim = with(json!({"steps": [{"percent": 50, "waitSeconds": 7200}]}));
    sim.roll_out(&manifest(2, "v1", json!({})));
    sim.roll_out(&manifest(2, "v2", json!({})));
    for _ in 0..8 {
        sim.world.pass(899);
        sim.settle();
    }
    assert_eq!((images(&sim).len(), sim.condition("RolledBack")), (2, None));
    sim.world.pass(900);
    sim.settle();
    assert_eq!(images(&sim), [("v2".into(), 2)]);
}

#[test]
fn a_failure_in_the_first_step_takes_back_the_few_pods_it_had() {
    let mut sim = with(json!({"steps": [{"percent": 10, "waitSeconds": 60}]}));
    sim.roll_out(&manifest(10, "v1", json!({})));
    sim.roll_out(&manifest(10, "crash", json!({})));
    assert_eq!((images(&sim), sim.created["crash"]), ([("v1".into(), 10)].to_vec(), 1));
}

#[test]
fn a_check_is_asked_of_the_ready_pods_until_the_soak_is_over_and_its_failing_goes_back() {
    let mut sim =
        with(json!({"soakSeconds": 30, "checks": [{"name": "home", "http": {"port": 80}, "periodSeconds": 10}]}));
    sim.roll_out(&manifest(2, "v1", json!({})));
    for _ in 0..10 {
        sim.world.pass(10);
        sim.settle();
    }
    let asked = sim.asked.len();
    assert!((3..=5).contains(&asked), "{:?}", sim.asked);
    sim.checks.clear();
    sim.roll_out(&manifest(2, "v2", json!({})));
    assert!(sim.asked.len() > asked);
    let standing = Standing {
        failures: 3,
        said: "GET / was answered with 503".into(),
        asked: Some(sim.world.now),
        ..Standing::default()
    };
    sim.checks.insert("home".into(), standing);
    sim.settle();
    assert_eq!(images(&sim), [("v1".into(), 2)]);
    let (_, reason, message) = sim.condition("RolledBack").expect("it");
    assert!(reason == "CheckFailed" && message.contains("answered with 503"), "{message}");
}

#[test]
fn lost_nodes_pause_the_judgement_and_the_deadline_runs_anew_when_they_are_back() {
    let mut sim = with(json!({}));
    sim.roll_out(&manifest(1, "v1", json!({})));
    sim.roll_out(&manifest(1, "slow", json!({})));
    for pod in sim.pods() {
        sim.world.patch("pods", &crate::Key::new("ns", &pod.name_any()), &json!({"spec": {"nodeName": "n"}}));
    }
    sim.around.unwell_nodes = ["n".to_owned()].into();
    sim.world.pass(601);
    sim.settle();
    let (status, reason, message) = sim.condition("JudgingPaused").expect("it");
    assert!(status == "True" && reason == "NodesUnwell" && message.contains("n"), "{message}");
    assert_eq!((sim.image().as_str(), sim.condition("RolledBack")), ("slow", None));
    sim.around.unwell_nodes.clear();
    sim.settle();
    assert!(!is_true(&sim, "JudgingPaused"));
    sim.world.pass(599);
    sim.settle();
    assert_eq!(sim.image(), "slow");
    sim.world.pass(1);
    sim.settle();
    assert_eq!(sim.image(), "v1");
}

#[test]
fn when_old_and_new_fail_alike_nothing_goes_back_until_the_old_does_well() {
    let mut sim = with(json!({}));
    sim.roll_out(&manifest(4, "v1", json!({})));
    sim.apply(&manifest(4, "crash", json!({})));
    sim.step_deployment();
    sim.step_sets();
    sim.crash("v1");
    sim.settle();
    assert!(is_true(&sim, "JudgingPaused"), "{:?}", sim.condition("JudgingPaused"));
    assert_eq!(sim.image(), "crash");
}
