//! Stories of going back: by hand, by itself, with configuration, and what appliers remember.

use super::world::{Sim, manifest, web};
use crate::deployment::{config, revisions::number};
use kube::ResourceExt;
use proa_crds::annotations;
use serde_json::{Value, json};

fn images(sim: &Sim) -> Vec<(String, usize)> {
    sim.images().into_iter().collect()
}

fn on_failure() -> Value {
    json!({"metadata": {"annotations": {annotations::ROLLBACK: "on-failure"}}})
}

/// The deployment's annotations hold nothing that belongs on a replica set.
fn assert_clean(sim: &Sim) {
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

fn with_config(image: &str) -> Value {
    manifest(
        2,
        image,
        json!({"spec": {"template": {"spec": {"volumes": [{"name": "v", "configMap": {"name": "conf"}}]}}}}),
    )
}

fn kept(sim: &Sim, image: &str) -> String {
    let secret = config::kept_name(&sim.set_of(image).expect("it").name_any());
    let secret =
        sim.world.get::<k8s_openapi::api::core::v1::Secret>("secrets", &crate::Key::new("ns", &secret)).expect("kept");
    let bytes = &secret.data.as_ref().expect("data")["configmap.conf"].0;
    let content: Value = serde_json::from_slice(bytes).expect("JSON");
    content["data"]["k"].as_str().expect("text").to_owned()
}

fn pointers(sim: &Sim) -> Vec<Option<String>> {
    let mut found: Vec<_> =
        sim.pods().iter().map(|pod| pod.annotations().get(annotations::CONFIG_REVISION).cloned()).collect();
    found.dedup();
    found
}

#[test]
fn undo_restores_the_config_that_revision_ran_with_until_the_next_rollout() {
    let mut sim = Sim::new();
    sim.config_map("conf", "one");
    sim.roll_out(&with_config("v1"));
    assert_eq!(kept(&sim, "v1"), "one");
    // One apply changes both, the ConfigMap a moment earlier.
    sim.config_map("conf", "two");
    sim.settle();
    sim.roll_out(&with_config("v2"));
    assert_eq!((kept(&sim, "v1").as_str(), kept(&sim, "v2").as_str()), ("one", "two"));
    sim.undo(None);
    sim.settle();
    let secret = config::kept_name(&sim.set_of("v1").expect("it").name_any());
    assert_eq!(pointers(&sim), [Some(secret.clone())]);
    let (status, _, message) = sim.condition("ConfigRevision").expect("it");
    assert_eq!(status, "True");
    assert!(message.contains(&secret), "{message}");
    sim.config_map("conf", "three");
    sim.world.pass(60);
    sim.settle();
    assert_eq!(kept(&sim, "v1"), "one", "what pods read stands still");
    sim.roll_out(&with_config("v3"));
    assert_eq!(pointers(&sim), [None]);
    assert_eq!(sim.condition("ConfigRevision").expect("it").0, "False");
    assert_eq!(kept(&sim, "v3"), "three");
    assert!(sim.world.raw("deployments", &web()).is_some());
}

#[test]
fn a_current_revision_follows_live_configuration() {
    let mut sim = Sim::new();
    sim.config_map("conf", "one");
    sim.roll_out(&with_config("v1"));
    sim.config_map("conf", "edited");
    sim.settle();
    assert_eq!(kept(&sim, "v1"), "one", "not at once");
    sim.world.pass(6);
    sim.settle();
    assert_eq!(kept(&sim, "v1"), "edited");
    sim.roll_out(&with_config("v2"));
    sim.undo(None);
    sim.settle();
    assert_eq!(pointers(&sim), [None], "live and kept are the same");
}

#[test]
fn applying_an_older_manifest_is_a_rollout_with_live_configuration() {
    let mut sim = Sim::new();
    sim.config_map("conf", "one");
    sim.roll_out(&with_config("v1"));
    sim.roll_out(&with_config("v2"));
    sim.config_map("conf", "two");
    sim.undo(None);
    sim.settle();
    assert!(pointers(&sim)[0].is_some());
    sim.roll_out(&with_config("v2"));
    sim.roll_out(&with_config("v1"));
    assert_eq!(pointers(&sim), [None]);
    sim.world.pass(6);
    sim.settle();
    assert_eq!(kept(&sim, "v1"), "two");
}

#[test]
fn an_automatic_rollback_brings_the_configuration_back_too() {
    let edit = |image: &str| {
        let mut manifest = with_config(image);
        crate::sim::merge(&mut manifest, &on_failure());
        manifest
    };
    let mut sim = Sim::new();
    sim.config_map("conf", "good");
    sim.roll_out(&edit("v1"));
    sim.config_map("conf", "bad");
    sim.roll_out(&edit("crash"));
    assert_eq!(images(&sim), [("v1".into(), 2)]);
    assert_eq!(kept(&sim, "v1"), "good");
    assert!(pointers(&sim).iter().all(Option::is_some));
    assert_eq!(sim.condition("ConfigRevision").expect("it").0, "True");
}

#[test]
fn configuration_revisions_can_be_turned_off() {
    let off = json!({"metadata": {"annotations": {annotations::CONFIG_REVISIONS: "off"}}});
    let edit = |image: &str| {
        let mut manifest = with_config(image);
        crate::sim::merge(&mut manifest, &off);
        manifest
    };
    let mut sim = Sim::new();
    sim.config_map("conf", "one");
    sim.roll_out(&edit("v1"));
    sim.config_map("conf", "two");
    sim.roll_out(&edit("v2"));
    sim.undo(None);
    sim.settle();
    assert_eq!(pointers(&sim), [None]);
    assert!(sim.world.list::<k8s_openapi::api::core::v1::Secret>("secrets").is_empty());
}

#[test]
fn controllers_that_start_anew_do_not_put_new_configuration_into_the_old_revision() {
    let mut sim = Sim::new();
    sim.config_map("conf", "one");
    sim.roll_out(&with_config("v1"));
    sim.config_map("conf", "two");
    sim.restart();
    sim.settle();
    assert_eq!(kept(&sim, "v1"), "one");
    sim.roll_out(&with_config("v2"));
    assert_eq!((kept(&sim, "v1").as_str(), kept(&sim, "v2").as_str()), ("one", "two"));
}

#[test]
fn what_is_too_large_to_be_kept_is_said_and_said_no_more_when_it_shrinks() {
    let mut sim = Sim::new();
    sim.config_map("conf", &"x".repeat(1_100_000));
    sim.roll_out(&with_config("v1"));
    assert_eq!(
        sim.condition("ConfigRevision").map(|(status, reason, _)| (status, reason)),
        Some(("False".into(), "TooLarge".into()))
    );
    assert_eq!(sim.events.iter().filter(|event| event.starts_with("ConfigurationTooLarge")).count(), 1);
    sim.config_map("conf", "small");
    sim.settle();
    assert_eq!((sim.condition("ConfigRevision"), kept(&sim, "v1").as_str()), (None, "small"));
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
