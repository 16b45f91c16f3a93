//! Members that went back by themselves, and what that says of their release.

use super::{FIRST, REST, SECOND, World, id, two_revisions};
use proa_crds::{conditions, release::Outcome};
use serde_json::json;
use std::time::Duration;

/// Found by the simulation (seed 202): the release took a healthy revision back because a member had left another one.
#[test]
fn members_that_went_back_by_themselves_do_not_take_a_healthy_revision_with_them() {
    const BAD: [(&str, &str, &str); 4] = [
        ("ConfigMap", "settings", "b"),
        ("Deployment", "web", "bad"),
        ("Deployment", "worker", "b"),
        ("Secret", "key", "b"),
    ];
    // Whether the failure came before the members had been at rest, or after that.
    for rests in [false, true] {
        let mut world = two_revisions();
        world.automatic = true;
        world.apply(&BAD);
        if rests {
            world.settle();
            world.pass(Duration::from_secs(5));
        }
        world.apply(&SECOND);
        world.went_back.insert(id("Deployment", "web"), world.now);
        world.written.clear();
        world.settle();
        assert_eq!(world.written, [] as [&str; 0], "nothing is left to take back");
        let mut expected = vec![(1, Outcome::Healthy), (2, Outcome::Healthy)];
        if rests {
            expected.extend([(3, Outcome::Failed), (4, Outcome::Healthy)]);
        }
        assert_eq!(world.revisions(), expected);
        assert!(world.condition(conditions::READY).is_some());
    }
}

/// Found by the simulation (seed 450): a size that somebody gave since is kept, so what it went back to never became what
/// was wanted, and it went back again and again.
#[test]
fn going_back_to_what_differs_in_its_size_alone_ends() {
    let mut world = World::new();
    world.apply(&FIRST);
    let web = id("Deployment", "web");
    world.objects.get_mut(&web).expect("it")["spec"]["replicas"] = json!(1);
    world.settle();
    world.pass(Duration::from_secs(10));
    let scaled = json!({"manager": "kubectl", "operation": "Update", "apiVersion": "apps/v1", "subresource": "scale",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}}});
    let object = world.objects.get_mut(&web).expect("it");
    object["spec"]["replicas"] = json!(5);
    object["metadata"]["managedFields"].as_array_mut().expect("entries").push(scaled);
    world.changed = world.now;
    world.settle();
    assert_eq!(world.revisions(), [(1, Outcome::Healthy), (2, Outcome::Healthy)]);
    world.automatic = true;
    world.failing.insert(web.clone(), world.now);
    world.settle();
    assert_eq!(world.revisions(), [(1, Outcome::Healthy), (2, Outcome::Failed)]);
    assert_eq!(world.objects[&web]["spec"]["replicas"], 5);
    assert!(world.condition(conditions::STALLED).is_some_and(|why| why.ends_with("revision 1 asks for the same")));
    world.failing.clear();
    world.settle();
    assert_eq!(world.revisions(), [(1, Outcome::Healthy), (2, Outcome::Healthy)], "it came good");
}

/// Found by the simulation (seed 1058): what a member left long ago was held against the next change.
#[test]
fn a_change_that_comes_later_does_not_answer_for_what_a_member_left() {
    let mut world = two_revisions();
    world.automatic = true;
    world.went_back.insert(id("Deployment", "web"), world.now);
    world.settle();
    world.pass(Duration::from_secs(20));
    let mut third = SECOND;
    third[0].2 = "c";
    world.apply(&third);
    world.settle();
    assert_eq!(world.revisions().last(), Some(&(3, Outcome::Healthy)));
    assert_eq!(world.objects[&id("ConfigMap", "settings")]["spec"]["value"], "c", "and it stays");
}

/// Found by the simulation (seed 1268): one that had once gone back was taken for well in the middle of a rollout.
#[test]
fn a_member_that_once_went_back_is_waited_for_as_any_other() {
    let mut world = two_revisions();
    let web = id("Deployment", "web");
    world.went_back.insert(web.clone(), world.now);
    world.settle();
    world.pass(Duration::from_secs(20));
    let mut third = SECOND;
    third[1].2 = "c";
    world.apply(&third);
    world.slow.insert(web, "0 of 1 new replicas have been updated".into());
    world.pass(REST);
    assert_eq!(world.run(2), 2, "it is recorded, and judged");
    assert_eq!(world.revisions().last(), Some(&(3, Outcome::Progressing)));
}
