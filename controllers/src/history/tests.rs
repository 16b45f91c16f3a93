//! Laws of a history, in a world of revisions alone.

use super::*;
use crate::sim::World;
use proa_crds::{Family, annotations};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const REVISIONS: &str = "controllerrevisions";

fn daemon_set(image: &str, limit: i32) -> DaemonSet {
    serde_json::from_value(json!({
        "metadata": {"name": "agent", "namespace": "shop", "uid": "u1", "annotations": {
            annotations::CHANGE_CAUSE: format!("to {image}"), annotations::LAST_APPLIED: "{}"}},
        "spec": {
            "revisionHistoryLimit": limit,
            "selector": {"matchLabels": {"app": "agent"}},
            "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
        },
    }))
    .expect("a daemon set")
}

fn parent(set: &DaemonSet) -> Parent<'_> {
    Parent::of_daemon_set(set, &Family::Standard.daemon_set())
}

fn controlled(world: &World) -> Vec<Arc<ControllerRevision>> {
    world.controlled_by(REVISIONS, "u1")
}

/// Writes until the history of that set is as it should be: the current revision.
fn record(world: &mut World, set: &DaemonSet, live: &BTreeSet<String>) -> Arc<ControllerRevision> {
    for _ in 0..10 {
        let history = History::of(&parent(set), &controlled(world));
        let is_live = |held: &ControllerRevision| live.contains(held.metadata.name.as_deref().unwrap_or_default());
        let mut wanted = history.surplus(&parent(set), is_live);
        match history.current(&parent(set)) {
            Ok(current) if wanted.is_empty() => return current.clone(),
            Ok(_) => {}
            Err(Pending::Record(write)) => wanted.insert(0, write),
            Err(Pending::Configuration) => panic!("nobody says with which configuration"),
        }
        for write in wanted {
            let key = |held: &ControllerRevision| crate::Key::of(held);
            match write {
                Write::Create(revision) => assert!(world.create(REVISIONS, &*revision), "a name is free"),
                Write::Renumber(held, number) => {
                    assert!(world.patch(REVISIONS, &key(&held), &json!({"revision": number})))
                }
                Write::Delete(held) => world.delete(REVISIONS, &key(&held)),
                other => panic!("{other:?}"),
            }
        }
    }
    panic!("the history does not come to rest");
}

#[test]
fn a_revision_records_the_patch_that_brings_its_template_back() {
    let set = daemon_set("v1", 10);
    let Err(Pending::Record(Write::Create(revision))) = History::of(&parent(&set), &[]).current(&parent(&set)) else {
        panic!("nothing is recorded yet")
    };
    let hash = hash_of(&revision).expect("a hash");
    assert_eq!(revision.metadata.name, Some(format!("agent-{hash}")));
    assert_eq!(revision.revision, 1);
    let labels = revision.metadata.labels.clone().expect("labels");
    assert_eq!(labels["app"], "agent", "found by the selector of its set");
    assert_eq!(
        (labels[annotations::REVISION_HASH].as_str(), labels["controller-revision-hash"].as_str()),
        (hash, hash)
    );
    let notes = revision.metadata.annotations.clone().expect("annotations");
    assert_eq!(notes.into_iter().collect::<Vec<_>>(), [(annotations::CHANGE_CAUSE.to_owned(), "to v1".to_owned())]);
    assert_eq!(
        serde_json::to_string(undo(&revision)).expect("JSON"),
        r#"{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"app":"agent"}},"spec":{"containers":[{"image":"v1","name":"c"}]}}}}"#
    );
    assert!(same_template(&template_of(&revision).expect("a template"), &set.spec.template));
    let owner = &revision.metadata.owner_references.as_ref().expect("an owner")[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.controller), ("DaemonSet", "u1", Some(true)));
}

#[test]
fn names_are_the_same_for_the_same_template_and_differ_after_a_collision() {
    let name = |image: &str, collisions: Option<i32>| {
        let set = daemon_set(image, 10);
        record::revision(&Parent { collisions, ..parent(&set) }, 1).metadata.name
    };
    assert_eq!(name("v1", None), name("v1", None));
    assert_ne!(name("v1", None), name("v2", None));
    assert_ne!(name("v1", None), name("v1", Some(1)));
}

#[test]
fn a_template_that_comes_back_gets_its_old_revision_with_a_new_number() {
    let (mut world, live) = (World::new(), BTreeSet::new());
    let first = record(&mut world, &daemon_set("v1", 10), &live);
    let second = record(&mut world, &daemon_set("v2", 10), &live);
    assert_eq!((first.revision, second.revision), (1, 2));
    let back = record(&mut world, &daemon_set("v1", 10), &live);
    assert_eq!((back.metadata.name.clone(), back.revision), (first.metadata.name.clone(), 3));
    assert_eq!(controlled(&world).len(), 2);
}

#[test]
fn a_revision_made_by_hand_counts_when_it_is_the_latest_with_the_template() {
    let (mut world, set) = (World::new(), daemon_set("v1", 10));
    let first = record(&mut world, &set, &BTreeSet::new());
    let mut by_hand = (*first).clone();
    by_hand.metadata.name = Some("agent-by-hand".to_owned());
    by_hand.metadata.labels.get_or_insert_default().insert("controller-revision-hash".to_owned(), "by-hand".to_owned());
    by_hand.revision = 2;
    assert!(world.create(REVISIONS, &by_hand));
    let current = record(&mut world, &set, &BTreeSet::new());
    assert_eq!(current.metadata.name.as_deref(), Some("agent-by-hand"));
    // Pods of the other one have the same template: there is nothing to update.
    let history = History::of(&parent(&set), &controlled(&world));
    for hash in [hash_of(&first).expect("a hash"), "by-hand"] {
        let pod = ObjectMeta {
            labels: Some([("controller-revision-hash".to_owned(), hash.to_owned())].into()),
            ..ObjectMeta::default()
        };
        assert!(history.is_updated(Keeper::DaemonSet, &pod), "{hash}");
    }
    assert!(!history.is_updated(Keeper::DaemonSet, &ObjectMeta::default()));
    // And the one after it is number three (conformance: ControllerRevision, resource lifecycle).
    world.delete(REVISIONS, &crate::Key::of(first.as_ref()));
    assert_eq!(record(&mut world, &daemon_set("v2", 10), &BTreeSet::new()).revision, 3);
}

#[test]
fn revisions_are_adopted_and_released_by_the_selector() {
    let set = daemon_set("v1", 10);
    let revision = |name: &str, app: &str, deleted: bool| -> Arc<ControllerRevision> {
        let deletion = deleted.then_some("2026-11-21T10:00:00Z");
        let meta = json!({"name": name, "labels": {"app": app}, "deletionTimestamp": deletion});
        Arc::new(serde_json::from_value(json!({"metadata": meta, "data": {}, "revision": 1})).expect("a revision"))
    };
    let history = History::of(&parent(&set), &[revision("mine", "agent", false), revision("strange", "x", false)]);
    let orphans = [revision("orphan", "agent", false), revision("other", "x", false), revision("gone", "agent", true)];
    let said: Vec<String> = history
        .claims(&parent(&set), &orphans)
        .iter()
        .map(|write| match write {
            Write::Adopt(held) => format!("adopt {}", held.metadata.name.as_deref().unwrap_or_default()),
            Write::Release(held) => format!("release {}", held.metadata.name.as_deref().unwrap_or_default()),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(said, ["adopt orphan", "release strange"]);
    let mut leaving = set.clone();
    leaving.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(World::new().now));
    assert!(history.claims(&parent(&leaving), &orphans).is_empty());
}

proptest! {
    /// Whatever templates follow each other: the latest has the highest number, none is recorded twice, and as many are
    /// kept as asked for, the live ones not counted.
    #[test]
    fn histories_are_bounded_and_in_order(changes in proptest::collection::vec((0..6u8, 0..6u8), 1..25), limit in 0..4i32) {
        let mut world = World::new();
        for (image, live) in changes {
            let set = daemon_set(&format!("v{image}"), limit);
            let names: Vec<String> =
                controlled(&world).iter().filter_map(|held| held.metadata.name.clone()).collect();
            let live: BTreeSet<String> = names.get(usize::from(live)).cloned().into_iter().collect();
            let current = record(&mut world, &set, &live);
            prop_assert!(same_template(&template_of(&current).expect("a template"), &set.spec.template));
            let all = controlled(&world);
            prop_assert!(all.iter().all(|held| held.revision <= current.revision));
            let numbers: BTreeSet<i64> = all.iter().map(|held| held.revision).collect();
            let data: BTreeSet<String> = all.iter().map(|held| held.data.to_string()).collect();
            prop_assert_eq!((numbers.len(), data.len()), (all.len(), all.len()));
            prop_assert!(all.len() <= usize::try_from(limit).expect("small") + 1 + live.len());
            let held = |name: &String| all.iter().any(|held| held.metadata.name.as_ref() == Some(name));
            prop_assert!(live.iter().all(held), "a live revision is kept");
        }
    }

    /// What is recorded of a template is that template.
    #[test]
    fn what_is_recorded_is_read_back(image in "[a-z]{1,8}", grace in proptest::option::of(0..100i64), labels in
        proptest::collection::btree_map("[a-z]{1,3}", "[a-z]{0,3}", 0..4))
    {
        let template: Value = json!({"metadata": {"labels": labels},
            "spec": {"containers": [{"name": "c", "image": image}], "terminationGracePeriodSeconds": grace}});
        let template: PodTemplateSpec = serde_json::from_value(template).expect("a template");
        let revision = ControllerRevision { data: data_of(&template), ..ControllerRevision::default() };
        prop_assert!(same_template(&template_of(&revision).expect("a template"), &template));
    }
}
