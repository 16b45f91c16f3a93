//! Stories of configuration that is part of a revision.

use super::{
    going_back::{images, on_failure},
    world::{Sim, manifest, web},
};
use crate::rollback::config;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use proa_crds::annotations;
use serde_json::{Value, json};

fn with_config(image: &str) -> Value {
    manifest(
        2,
        image,
        json!({"spec": {"template": {"spec": {"volumes": [{"name": "v", "configMap": {"name": "conf"}}]}}}}),
    )
}

fn kept(sim: &Sim, image: &str) -> String {
    let secret = config::copy_of(&sim.set_of(image).expect("it").metadata);
    let secret = sim.world.get::<Secret>("secrets", &crate::Key::new("ns", &secret)).expect("kept");
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
    let secret = config::copy_of(&sim.set_of("v1").expect("it").metadata);
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
    sim.world.pass(59);
    sim.settle();
    assert_eq!(kept(&sim, "v1"), "one", "not at once");
    sim.world.pass(1);
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
    sim.world.pass(1);
    sim.roll_out(&with_config("v2"));
    sim.roll_out(&with_config("v1"));
    assert_eq!(pointers(&sim), [None]);
    assert_eq!(kept(&sim, "v1"), "two", "its pods started with it");
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
    assert!(sim.world.list::<Secret>("secrets").is_empty());
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

/// Variables are read once, when a container starts.
fn with_variables(image: &str) -> Value {
    let mut manifest = manifest(2, image, json!({}));
    manifest["spec"]["template"]["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "conf"}}]);
    manifest
}

#[test]
fn configuration_edited_long_before_the_rollout_comes_back_with_the_revision() {
    let mut sim = Sim::new();
    sim.config_map("conf", "one");
    sim.roll_out(&with_variables("v1"));
    sim.world.pass(3600);
    sim.config_map("conf", "two");
    sim.world.pass(3600);
    sim.settle();
    assert_eq!(kept(&sim, "v1"), "one", "no pod has seen anything else");
    sim.roll_out(&with_variables("v2"));
    sim.undo(None);
    sim.settle();
    assert!(pointers(&sim)[0].is_some());
    assert_eq!((kept(&sim, "v1").as_str(), kept(&sim, "v2").as_str()), ("one", "two"));
}

#[test]
fn configuration_that_a_pod_started_with_and_became_ready_is_the_revisions() {
    let mut sim = Sim::new();
    sim.config_map("conf", "one");
    sim.roll_out(&with_variables("v1"));
    sim.config_map("conf", "two");
    sim.world.pass(1);
    sim.delete_pods();
    sim.step_deployment();
    sim.step_sets();
    sim.step_deployment();
    assert_eq!((kept(&sim, "v1").as_str(), sim.pods().len()), ("one", 2), "its pods are not ready yet");
    sim.settle();
    assert_eq!(kept(&sim, "v1"), "two");
}

#[test]
fn changed_files_are_the_revisions_only_when_its_pods_do_well_with_them() {
    let mut sim = Sim::new();
    sim.config_map("conf", "one");
    sim.roll_out(&with_config("v1"));
    sim.world.pass(10);
    sim.config_map("conf", "broken");
    sim.world.pass(5);
    sim.crash("v1");
    sim.settle();
    sim.world.pass(3600);
    sim.settle();
    assert_eq!(kept(&sim, "v1"), "one");
}

#[test]
fn what_is_no_more_stays_in_the_copy() {
    let mut sim = Sim::new();
    sim.config_map("conf", "one");
    sim.roll_out(&with_config("v1"));
    sim.world.delete("configmaps", &crate::Key::new("ns", "conf"));
    sim.world.pass(3600);
    sim.delete_pods();
    sim.settle();
    assert_eq!(kept(&sim, "v1"), "one");
    sim.roll_out(&manifest(2, "v2", json!({})));
    sim.undo(None);
    sim.settle();
    assert!(pointers(&sim)[0].is_some());
}

fn copies(sim: &Sim) -> usize {
    sim.world.list::<Secret>("secrets").len()
}

#[test]
fn revisions_that_ran_with_the_same_share_one_copy_and_it_goes_with_the_last_of_them() {
    let mut sim = Sim::new();
    sim.config_map("conf", "one");
    for image in ["v1", "v2", "v3"] {
        sim.roll_out(&with_config(image));
    }
    assert_eq!(copies(&sim), 1);
    let shared = config::copy_of(&sim.set_of("v1").expect("it").metadata);
    let owners = |sim: &Sim| {
        let secret: std::sync::Arc<Secret> = sim.world.get("secrets", &crate::Key::new("ns", &shared)).expect("it");
        secret.metadata.owner_references.as_ref().map_or(0, Vec::len)
    };
    assert_eq!(owners(&sim), 3);
    sim.config_map("conf", "two");
    sim.world.pass(60);
    sim.settle();
    assert_eq!(
        (copies(&sim), owners(&sim)),
        (2, 2),
        "the current revision follows, and leaves what it had to the others"
    );
    sim.config_map("conf", "three");
    sim.world.pass(60);
    sim.settle();
    assert_eq!(copies(&sim), 2, "what nobody ran with last is gone");
    assert_eq!((kept(&sim, "v1").as_str(), kept(&sim, "v3").as_str()), ("one", "three"));
}

#[test]
fn undo_brings_back_configuration_that_had_another_name_and_is_gone() {
    let named = |image: &str, name: &str| {
        let mut manifest = manifest(2, image, json!({}));
        manifest["spec"]["template"]["spec"]["containers"][0]["env"] =
            json!([{"name": "K", "valueFrom": {"configMapKeyRef": {"name": name, "key": "k"}}}]);
        manifest["spec"]["template"]["spec"]["volumes"] =
            json!([{"name": "v", "projected": {"sources": [{"configMap": {"name": name}}]}}]);
        manifest
    };
    let mut sim = Sim::new();
    sim.config_map("conf-1", "one");
    sim.roll_out(&named("v1", "conf-1"));
    sim.config_map("conf-2", "two");
    sim.roll_out(&named("v2", "conf-2"));
    // What kustomize and Helm do: the name carries a hash, and what is no longer used is pruned.
    sim.world.delete("configmaps", &crate::Key::new("ns", "conf-1"));
    sim.undo(None);
    sim.settle();
    let copy = config::copy_of(&sim.set_of("v1").expect("it").metadata);
    assert_eq!((images(&sim), pointers(&sim)), ([("v1".into(), 2)].to_vec(), vec![Some(copy)]));
    assert_eq!(sim.condition("ConfigRevision").expect("it").0, "True");
}

/// The policy makes a change of configuration a rollout.
fn rolled_by_configuration() -> Sim {
    let mut sim = Sim::new();
    sim.policy(json!({"configuration": "Rollout"}));
    sim.config_map("conf", "one");
    sim.roll_out(&with_config("v1"));
    sim.world.pass(3600);
    sim
}

fn values(sim: &Sim) -> Vec<String> {
    let mut sets = sim.sets();
    sets.sort_by_key(|set| crate::deployment::revisions::number(set));
    let copy = |set: &proa_crds::ReplicaSet| {
        let secret: std::sync::Arc<Secret> =
            sim.world.get("secrets", &crate::Key::new("ns", &config::copy_of(&set.metadata))).expect("kept");
        let content: Value =
            serde_json::from_slice(&secret.data.as_ref().expect("data")["configmap.conf"].0).expect("JSON");
        content["data"]["k"].as_str().expect("text").to_owned()
    };
    sets.iter().map(|set| copy(set)).collect()
}

#[test]
fn a_change_of_configuration_alone_is_a_rollout_of_its_own_when_the_policy_wants_it() {
    let mut sim = rolled_by_configuration();
    let template = crate::patch::json(&sim.deployment().spec.template);
    let made = sim.created["v1"];
    sim.config_map("conf", "two");
    sim.settle();
    assert_eq!(values(&sim), ["one", "two"]);
    assert_eq!(sim.created["v1"], made + 2, "its pods were made anew");
    assert_eq!(crate::patch::json(&sim.deployment().spec.template), template, "nobody touched the template");
    sim.undo(None);
    sim.settle();
    assert_eq!(values(&sim), ["two", "one"], "back to the first, which has the highest number now");
    assert!(pointers(&sim)[0].is_some(), "its pods read the copy");
    assert_eq!(crate::patch::json(&sim.deployment().spec.template), template);
    sim.config_map("conf", "three");
    sim.settle();
    assert_eq!(values(&sim), ["two", "one", "three"]);
    assert_eq!(pointers(&sim), [None], "the next change is the next rollout");
    sim.config_map("conf", "one");
    sim.settle();
    assert_eq!(values(&sim), ["two", "three", "one"], "what was once is found again");
}

#[test]
fn configuration_gone_wrong_goes_back_and_is_refused_until_it_changes() {
    let mut sim = rolled_by_configuration();
    // A pod without the map is not told from any other here: the volume says so.
    sim.world.delete("configmaps", &crate::Key::new("ns", "conf"));
    sim.step_deployment();
    sim.step_sets();
    let waiting = json!({"phase": "Pending", "containerStatuses": [{"name": "c", "image": "v1", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}]});
    for _ in 0..20 {
        for pod in sim.pods().iter().filter(|pod| pod.status.is_none()) {
            let key = crate::Key::new("ns", &pod.name_any());
            if pod.annotations().get(annotations::CONFIG_REVISION).is_none() {
                sim.world.patch("pods", &key, &json!({"status": waiting}));
            }
        }
        sim.world.pass(1);
        sim.step_deployment();
        sim.step_sets();
        sim.step_nodes(usize::MAX);
    }
    sim.settle();
    let (status, reason, message) = sim.condition("RolledBack").expect("it");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "ConfigurationError"), "{message}");
    assert!(pointers(&sim)[0].is_some(), "the pods read what is no longer there");
    sim.config_map("conf", "mended");
    sim.settle();
    assert_eq!(pointers(&sim), [None]);
    assert_eq!(sim.condition("RolledBack").expect("it").0, "False");
}

#[test]
fn a_policy_that_comes_after_an_undo_leaves_what_was_gone_back_to() {
    let mut sim = Sim::new();
    sim.config_map("conf", "one");
    sim.roll_out(&with_variables("v1"));
    sim.config_map("conf", "two");
    sim.roll_out(&with_variables("v2"));
    sim.undo(None);
    sim.settle();
    let made = sim.created["v1"];
    sim.policy(json!({"configuration": "Rollout"}));
    sim.settle();
    assert_eq!(
        (sim.created["v1"], values(&sim)),
        (made, vec!["two".to_owned(), "one".to_owned()]),
        "nobody changed anything"
    );
    sim.config_map("conf", "three");
    sim.settle();
    assert_eq!((sim.created["v1"], values(&sim).last().map(String::as_str)), (made + 2, Some("three")));
}

#[test]
fn a_policy_that_no_longer_wants_it_leaves_the_last_revision_as_it_is() {
    let mut sim = rolled_by_configuration();
    sim.config_map("conf", "two");
    sim.settle();
    let made = sim.created["v1"];
    sim.policies.clear();
    sim.config_map("conf", "three");
    sim.settle();
    assert_eq!((values(&sim).len(), sim.created["v1"]), (2, made));
    sim.policy(json!({"configuration": "Rollout"}));
    sim.settle();
    assert_eq!(sim.created["v1"], made + 2, "and is rolled out when it does again");
}
