//! Stories of going back: by hand, by itself, with configuration, and what appliers remember.

use super::world::{Sim, manifest};
use crate::deployment::revisions::number;
use kube::ResourceExt;
use proa_crds::annotations;
use serde_json::{Value, json};

pub(super) fn images(sim: &Sim) -> Vec<(String, usize)> {
    sim.images().into_iter().collect()
}

pub(super) fn on_failure() -> Value {
    json!({"metadata": {"annotations": {annotations::ROLLBACK: "on-failure"}}})
}

/// The deployment's annotations hold nothing that belongs on a replica set.
pub(super) fn assert_clean(sim: &Sim) {
    for key in annotations::REPLICA_SET_ONLY {
        assert!(!sim.deployment().annotations().contains_key(key), "{key} is left on the deployment");
    }
}

fn applied(sim: &Sim) -> Value {
    serde_json::from_str(&sim.deployment().annotations()[annotations::LAST_APPLIED]).expect("JSON")
}

#[test]
fn an_undo_of_stock_kubectl_is_followed_and_leaves_no_marks() {
    let mut sim = Sim::new();
    let first = manifest(2, "v1", json!({"metadata": {"annotations": {annotations::CHANGE_CAUSE: "one"}}}));
    sim.roll_out(&first);
    sim.roll_out(&manifest(2, "v2", json!({"metadata": {"annotations": {annotations::CHANGE_CAUSE: "two"}}})));
    sim.undo(None);
    sim.settle();
    assert_eq!(images(&sim), [("v1".into(), 2)]);
    assert_clean(&sim);
    assert_eq!(applied(&sim), first);
    assert_eq!(sim.deployment().annotations()[annotations::CHANGE_CAUSE], "one");
    assert_eq!(
        (number(&sim.set_of("v1").expect("it")), sim.deployment().annotations()[annotations::REVISION].as_str()),
        (3, "3")
    );
}

#[test]
fn undo_does_not_poison_the_next_apply() {
    let with_node =
        |image| manifest(1, image, json!({"spec": {"template": {"spec": {"nodeSelector": {"disk": "ssd"}}}}}));
    let mut sim = Sim::new();
    sim.roll_out(&with_node("v1"));
    sim.roll_out(&manifest(1, "v2", json!({})));
    sim.undo(None);
    sim.settle();
    assert!(
        sim.deployment().spec.template.spec.as_ref().is_some_and(|spec| spec.node_selector.is_some()),
        "it came back"
    );
    sim.roll_out(&manifest(1, "v3", json!({})));
    let spec = sim.deployment().spec.template.spec.clone().expect("a spec");
    assert_eq!(spec.node_selector.filter(|selector| !selector.is_empty()), None, "the manifest does not say so");
}

#[test]
fn a_failing_revision_is_taken_back_with_its_evidence() {
    for (image, why) in [("crash", "CrashLoop"), ("missing", "ImageNotFound")] {
        let mut sim = Sim::new();
        sim.roll_out(&manifest(4, "v1", on_failure()));
        sim.roll_out(&manifest(4, image, on_failure()));
        assert_eq!(images(&sim), [("v1".into(), 4)]);
        let (status, reason, message) = sim.condition("RolledBack").expect("it");
        assert_eq!((status.as_str(), reason.as_str()), ("True", why));
        assert!(
            message.contains("revision 2 failed")
                && message.contains("went back to revision 1")
                && message.contains("boom"),
            "{message}"
        );
        assert!(sim.events.iter().any(|event| event.starts_with("RolledBack revision 2 failed")), "{:?}", sim.events);
        assert_clean(&sim);
        assert_eq!(sim.deployment().annotations()[annotations::ROLLBACK], "on-failure");
        assert_eq!(sim.deployment().annotations()[annotations::REVISION], "3");
        assert_eq!(applied(&sim), manifest(4, "v1", on_failure()));
        assert_eq!(sim.condition("Progressing").expect("it").1, "NewReplicaSetAvailable");
    }
}

#[test]
fn the_namespace_can_ask_for_it_and_the_deployment_can_decline() {
    let mut sim = Sim::new();
    sim.namespace_wants_rollback = true;
    sim.roll_out(&manifest(2, "v1", json!({})));
    sim.roll_out(&manifest(2, "crash", json!({})));
    assert_eq!(images(&sim), [("v1".into(), 2)]);
    let mut sim = Sim::new();
    sim.namespace_wants_rollback = true;
    let off = json!({"metadata": {"annotations": {annotations::ROLLBACK: "off"}}});
    sim.roll_out(&manifest(2, "v1", off.clone()));
    sim.roll_out(&manifest(2, "crash", off));
    assert!(sim.images().contains_key("crash"));
    assert_eq!(sim.condition("RolledBack"), None);
}

#[test]
fn a_deadline_that_passes_takes_the_revision_back() {
    let edit = json!({"metadata": {"annotations": {annotations::ROLLBACK: "on-failure"}}, "spec": {"progressDeadlineSeconds": 20}});
    let mut sim = Sim::new();
    sim.roll_out(&manifest(4, "v1", edit.clone()));
    sim.roll_out(&manifest(4, "slow", edit));
    assert_eq!(sim.images().get("slow"), Some(&2));
    sim.world.pass(21);
    sim.settle();
    assert_eq!(images(&sim), [("v1".into(), 4)]);
    assert_eq!(sim.condition("RolledBack").expect("it").1, "ProgressDeadlineExceeded");
}

#[test]
fn the_first_revision_has_nothing_to_go_back_to() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(2, "crash", on_failure()));
    assert_eq!(images(&sim), [("crash".into(), 2)]);
    assert_eq!(sim.condition("RolledBack"), None);
}

#[test]
fn a_failed_template_applied_again_is_refused_without_a_single_pod() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(3, "v1", on_failure()));
    sim.roll_out(&manifest(3, "crash", on_failure()));
    let made = sim.created["crash"];
    for _ in 0..5 {
        sim.roll_out(&manifest(3, "crash", on_failure()));
        assert_eq!(images(&sim), [("v1".into(), 3)]);
        assert_clean(&sim);
    }
    assert_eq!(sim.created["crash"], made);
    let (status, reason, message) = sim.condition("RolloutRefused").expect("it");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "CrashLoop"));
    assert!(message.contains("revision 2 is known to fail") && message.contains(annotations::RETRY), "{message}");
    assert_eq!(applied(&sim), manifest(3, "v1", on_failure()));
    assert_eq!(number(&sim.set_of("v1").expect("it")), 3, "a refusal makes no new revisions");
}

#[test]
fn a_setting_that_comes_with_a_refused_template_stays() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(3, "v1", on_failure()));
    sim.roll_out(&manifest(3, "crash", on_failure()));
    let mut edit = on_failure();
    let setting = json!({"metadata": {"annotations": {annotations::CONFIG_REVISIONS: "off"}}});
    crate::sim::merge(&mut edit, &setting);
    sim.roll_out(&manifest(3, "crash", edit));
    assert_eq!(sim.condition("RolloutRefused").expect("it").0, "True");
    assert_eq!(sim.deployment().annotations()[annotations::CONFIG_REVISIONS], "off");
}

#[test]
fn an_undo_to_the_failed_revision_is_refused_too() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(3, "v1", on_failure()));
    sim.roll_out(&manifest(3, "crash", on_failure()));
    let made = sim.created["crash"];
    sim.undo(None);
    sim.settle();
    assert_eq!(images(&sim), [("v1".into(), 3)]);
    assert_eq!(sim.created["crash"], made);
    assert_clean(&sim);
    assert_eq!(sim.condition("RolloutRefused").expect("it").0, "True");
}

#[test]
fn another_template_ends_the_refusal() {
    let mut sim = Sim::new();
    for image in ["v1", "crash", "crash", "v3"] {
        sim.roll_out(&manifest(3, image, on_failure()));
    }
    assert_eq!(images(&sim), [("v3".into(), 3)]);
    for condition in ["RolledBack", "RolloutRefused"] {
        assert_eq!(sim.condition(condition).expect("it").0, "False");
    }
}

#[test]
fn a_new_retry_value_starts_the_failed_template_again_and_only_once() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(3, "v1", on_failure()));
    sim.roll_out(&manifest(3, "crash", on_failure()));
    let made = sim.created["crash"];
    sim.edit(json!({"metadata": {"annotations": {annotations::RETRY: "1"}}}));
    sim.settle();
    assert!(sim.created["crash"] > made, "it was tried again");
    assert_eq!(images(&sim), [("v1".into(), 3)], "it failed again");
    assert_eq!(sim.condition("RolledBack").expect("it").0, "True");
    let made = sim.created["crash"];
    sim.settle();
    sim.roll_out(&manifest(
        3,
        "crash",
        json!({"metadata": {"annotations": {annotations::ROLLBACK: "on-failure", annotations::RETRY: "1"}}}),
    ));
    assert_eq!(sim.created["crash"], made, "the same value is no new wish");
    sim.roll_out(&manifest(
        3,
        "crash",
        json!({"metadata": {"annotations": {annotations::ROLLBACK: "on-failure", annotations::RETRY: "2"}}}),
    ));
    assert!(sim.created["crash"] > made);
    assert_eq!(images(&sim), [("v1".into(), 3)]);
}

#[test]
fn a_retry_together_with_another_template_rolls_that_one_out() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(2, "v1", on_failure()));
    sim.roll_out(&manifest(2, "crash", on_failure()));
    let made = sim.created["crash"];
    sim.roll_out(&manifest(
        2,
        "v3",
        json!({"metadata": {"annotations": {annotations::ROLLBACK: "on-failure", annotations::RETRY: "1"}}}),
    ));
    assert_eq!(images(&sim), [("v3".into(), 2)]);
    assert_eq!(sim.created["crash"], made);
}

#[test]
fn the_failed_revision_stays_known_without_any_history() {
    let mut edit = on_failure();
    crate::sim::merge(&mut edit, &json!({"spec": {"revisionHistoryLimit": 0}}));
    let mut sim = Sim::new();
    sim.roll_out(&manifest(2, "v1", edit.clone()));
    sim.roll_out(&manifest(2, "crash", edit.clone()));
    let made = sim.created["crash"];
    sim.roll_out(&manifest(2, "crash", edit));
    assert_eq!(sim.created["crash"], made);
}

#[test]
fn settings_survive_an_undo_of_stock_kubectl_and_one_taken_away_stays_away() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(2, "v1", json!({})));
    sim.roll_out(&manifest(2, "v2", json!({})));
    sim.edit(on_failure());
    sim.settle();
    sim.undo(None);
    sim.settle();
    assert_eq!(sim.deployment().annotations()[annotations::ROLLBACK], "on-failure");
    assert_eq!(sim.set_of("v1").expect("it").annotations()[annotations::ROLLBACK], "on-failure");
    sim.edit(json!({"metadata": {"annotations": {annotations::ROLLBACK: null}}}));
    sim.settle();
    // v2 was current while the setting stood: its undo must not bring it back.
    sim.undo(None);
    sim.settle();
    assert_eq!(images(&sim), [("v2".into(), 2)]);
    assert!(!sim.deployment().annotations().contains_key(annotations::ROLLBACK));
    assert_clean(&sim);
}

#[test]
fn what_a_later_manifest_set_outside_of_the_template_goes_with_the_manifest_after_an_undo() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(2, "v1", json!({})));
    sim.roll_out(&manifest(2, "v2", json!({"spec": {"minReadySeconds": 0, "progressDeadlineSeconds": 77}})));
    sim.undo(None);
    sim.settle();
    assert_eq!(sim.deployment().spec.progress_deadline_seconds, Some(77), "an undo is of the template");
    sim.roll_out(&manifest(2, "v3", json!({})));
    assert_eq!(sim.deployment().spec.progress_deadline_seconds, None);
}

#[test]
fn a_users_own_undo_ends_what_was_said_and_keeps_the_settings_whatever_happens_on_the_way() {
    for interrupted_after in [usize::MAX, 1] {
        let mut sim = Sim::new();
        sim.roll_out(&manifest(2, "v0", json!({})));
        sim.roll_out(&manifest(2, "v1", on_failure()));
        sim.roll_out(&manifest(2, "crash", on_failure()));
        assert_eq!(sim.condition("RolledBack").expect("it").0, "True");
        // The revision of before the setting: stock kubectl takes its annotations too.
        sim.undo(Some(1));
        assert!(!sim.deployment().annotations().contains_key(annotations::ROLLBACK));
        sim.step_deployment_to(interrupted_after);
        sim.edit(json!({"metadata": {"labels": {"somebody": "else"}}}));
        sim.settle();
        assert_eq!(images(&sim), [("v0".into(), 2)]);
        assert_eq!(sim.deployment().annotations()[annotations::ROLLBACK], "on-failure");
        assert_eq!(sim.condition("RolledBack").expect("it").0, "False");
        assert_clean(&sim);
    }
}

#[test]
fn a_paused_deployment_is_left_as_it_is_whatever_is_known_of_its_template() {
    let paused = || json!({"spec": {"paused": true}});
    let with = |edit: Value| {
        let mut manifest = on_failure();
        crate::sim::merge(&mut manifest, &edit);
        manifest
    };
    let mut sim = Sim::new();
    sim.roll_out(&manifest(2, "v1", on_failure()));
    sim.roll_out(&manifest(2, "crash", on_failure()));
    let made = sim.created["crash"];
    sim.roll_out(&manifest(2, "crash", with(paused())));
    assert_eq!(sim.image(), "crash", "nobody writes the template of a paused deployment");
    assert_eq!((images(&sim), number(&sim.set_of("crash").expect("it"))), ([("v1".into(), 2)].to_vec(), 2));
    sim.roll_out(&manifest(3, "crash", with(paused())));
    assert_eq!(images(&sim), [("v1".into(), 3)], "it scales");
    sim.edit(json!({"spec": {"paused": null}}));
    sim.settle();
    assert_eq!((sim.image().as_str(), sim.created["crash"]), ("v1", made));
    assert_eq!(sim.condition("RolloutRefused").expect("it").0, "True");

    // A wish to try again waits for the end of the pause too.
    sim.edit(paused());
    sim.edit(json!({"metadata": {"annotations": {annotations::RETRY: "1"}}}));
    sim.settle();
    assert_eq!((sim.image().as_str(), sim.created["crash"]), ("v1", made));
    sim.edit(json!({"spec": {"paused": null}}));
    sim.settle();
    assert!(sim.created["crash"] > made);
}

#[test]
fn a_retry_is_for_the_revision_refused_last_and_starts_no_other_later() {
    let retry = |value: &str| json!({"metadata": {"annotations": {annotations::RETRY: value}}});
    let mut sim = Sim::new();
    for image in ["v1", "crash1", "crash2", "crash1"] {
        sim.roll_out(&manifest(2, image, on_failure()));
        sim.world.pass(1);
    }
    let made = |sim: &Sim| [sim.created["crash1"], sim.created["crash2"]];
    let before = made(&sim);
    sim.edit(retry("1"));
    sim.settle();
    let after = made(&sim);
    assert!(after[0] > before[0] && after[1] == before[1], "{before:?} {after:?}");
    let mut both = on_failure();
    crate::sim::merge(&mut both, &retry("1"));
    sim.roll_out(&manifest(2, "crash2", both.clone()));
    assert_eq!(made(&sim), after, "that wish was granted to the other");

    // A wish that came with another template was for nobody.
    crate::sim::merge(&mut both, &retry("2"));
    sim.roll_out(&manifest(2, "v3", both.clone()));
    sim.roll_out(&manifest(2, "crash1", both));
    assert_eq!(made(&sim), after);
}

#[test]
fn a_refused_revision_can_be_retried_although_another_is_healthy_by_now() {
    let mut sim = Sim::new();
    for image in ["v1", "crash", "v2", "crash"] {
        sim.roll_out(&manifest(2, image, on_failure()));
    }
    assert_eq!(sim.condition("RolloutRefused").expect("it").0, "True");
    let made = sim.created["crash"];
    sim.edit(json!({"metadata": {"annotations": {annotations::RETRY: "1"}}}));
    sim.settle();
    assert!(sim.created["crash"] > made);
    assert_eq!(images(&sim), [("v2".into(), 2)]);
}

#[test]
fn what_is_done_about_a_failed_revision_is_told_with_the_condition_and_once() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(2, "v1", on_failure()));
    sim.apply(&manifest(2, "crash", on_failure()));
    while sim.condition("RolledBack").is_none() {
        sim.step_deployment();
        sim.step_sets();
        sim.step_nodes(usize::MAX);
    }
    let told = |sim: &Sim| sim.events.iter().filter(|event| event.starts_with("RolledBack")).count();
    assert_eq!((told(&sim), sim.image().as_str()), (1, "crash"), "before the template is written");
    sim.settle();
    assert_eq!(told(&sim), 1);
}

#[test]
fn a_selector_that_does_not_select_the_templates_own_pods_rolls_nothing_out_and_says_so_once() {
    let mut sim = Sim::new();
    let other = json!({"spec": {"selector": {"matchLabels": {"app": "other"}}}});
    sim.roll_out(&manifest(2, "v1", other));
    assert!(sim.sets().is_empty());
    assert_eq!(sim.condition("ReplicaFailure").expect("it").1, "SelectorMismatch");
    assert_eq!(sim.events, ["SelectorMismatch `selector` does not match template `labels`"]);
    sim.edit(json!({"spec": {"template": {"metadata": {"labels": {"app": "other"}}}}}));
    sim.settle();
    assert_eq!((images(&sim), sim.condition("ReplicaFailure")), ([("v1".into(), 2)].to_vec(), None));
}

#[test]
fn numbers_go_on_past_255_and_99_and_an_undo_finds_the_one_before_by_number_not_by_spelling() {
    for start in [98, 254] {
        let mut sim = Sim::new();
        sim.roll_out(&manifest(1, "v1", on_failure()));
        let set = crate::Key::new("ns", &sim.set_of("v1").expect("it").name_any());
        let notes = json!({annotations::REVISION: start.to_string()});
        sim.world.patch("replicasets", &set, &json!({"metadata": {"annotations": notes}}));
        for (image, number_of) in [("v2", start + 1), ("v3", start + 2), ("v4", start + 3)] {
            sim.roll_out(&manifest(1, image, on_failure()));
            assert_eq!(number(&sim.set_of(image).expect("it")), number_of);
        }
        sim.undo(None);
        sim.settle();
        assert_eq!((images(&sim), number(&sim.set_of("v3").expect("it"))), ([("v3".into(), 1)].to_vec(), start + 4));
        sim.roll_out(&manifest(1, "crash", on_failure()));
        assert_eq!((images(&sim), number(&sim.set_of("v3").expect("it"))), ([("v3".into(), 1)].to_vec(), start + 6));
    }
}

#[test]
fn an_undo_of_an_undo_is_where_it_began() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(2, "v1", json!({})));
    let second = manifest(2, "v2", json!({}));
    sim.roll_out(&second);
    sim.undo(None);
    sim.settle();
    sim.undo(None);
    sim.settle();
    assert_eq!((images(&sim), number(&sim.set_of("v2").expect("it"))), ([("v2".into(), 2)].to_vec(), 4));
    assert_eq!(applied(&sim), second);
}

#[test]
fn an_undo_in_the_middle_of_a_rollout_turns_it_round() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(4, "v1", on_failure()));
    sim.apply(&manifest(4, "v2", on_failure()));
    for _ in 0..3 {
        sim.step_deployment();
        sim.step_sets();
        sim.step_nodes(1);
    }
    assert!(sim.images().len() == 2, "{:?}", sim.images());
    sim.undo(None);
    sim.settle();
    assert_eq!((images(&sim), sim.condition("RolledBack")), ([("v1".into(), 4)].to_vec(), None));
}
