//! When a release has failed, and what a policy makes of it.

use super::*;

/// Two revisions, the second of which makes its Deployment wait.
fn waiting(policy: Value) -> World {
    let mut world = two_revisions();
    world.policy = Some(serde_json::from_value(policy).expect("a policy"));
    world.apply(&[("ConfigMap", "settings", "c"), ("Deployment", "web", "c")]);
    world.slow.insert(id("Deployment", "web"), "0 of 2 updated replicas are available".into());
    world.pass(REST);
    look(&mut world);
    assert_eq!(world.revisions().last(), Some(&(3, Outcome::Progressing)));
    world
}

/// Acts until there is nothing to do now; no time passes.
fn look(world: &mut World) {
    loop {
        let actions = plan(&world.seen(), world.now).actions;
        if actions.is_empty() {
            return;
        }
        actions.into_iter().for_each(|action| world.act(action));
        if world.typed().status.is_none_or(|status| status.rollback.is_none()) {
            world.crash();
        }
    }
}

#[test]
fn a_release_in_which_nothing_comes_further_until_its_deadline_goes_back() {
    let mut world = waiting(json!({}));
    world.pass(Duration::from_secs(590));
    look(&mut world);
    assert_eq!(world.revisions().last(), Some(&(3, Outcome::Progressing)));
    assert!(
        plan(&world.seen(), world.now).again.is_some_and(|again| again <= Duration::from_secs(10)),
        "it looks again"
    );
    world.pass(Duration::from_secs(10));
    look(&mut world);
    world.slow.clear();
    look(&mut world);
    assert_eq!(world.revisions()[2..], [(3, Outcome::Failed), (4, Outcome::Healthy)]);
    let said = world.condition(conditions::ROLLED_BACK).expect("it is said");
    assert!(said.contains("ProgressDeadlineExceeded") && said.contains("nothing has come further for 600 s"), "{said}");
}

#[test]
fn the_deadline_is_the_releases_own_and_runs_from_the_last_progress() {
    let mut world = waiting(json!({"action": "Alert"}));
    merge(&mut world.release, &json!({"spec": {"progressDeadlineSeconds": 60}}));
    world.pass(Duration::from_secs(50));
    world.slow.insert(id("Deployment", "web"), "1 of 2 updated replicas are available".into());
    world.progressed = world.now;
    world.pass(Duration::from_secs(50));
    look(&mut world);
    assert_eq!(world.revisions().last(), Some(&(3, Outcome::Progressing)));
    world.pass(Duration::from_secs(10));
    look(&mut world);
    assert_eq!(world.revisions().last(), Some(&(3, Outcome::Failed)), "and an alert takes nothing back");
    assert!(world.condition(conditions::STALLED).is_some_and(|said| said.contains("for 60 s")));
    world.slow.clear();
    look(&mut world);
    assert_eq!(world.revisions().last(), Some(&(3, Outcome::Healthy)), "it came good");
}

#[test]
fn a_cluster_that_is_unwell_is_not_blamed_on_the_release() {
    let mut world = waiting(json!({}));
    world.judging = Judging::Paused;
    world.pass(Duration::from_secs(3600));
    look(&mut world);
    assert_eq!(world.revisions().last(), Some(&(3, Outcome::Progressing)));
    world.judging = Judging::Since(world.now);
    world.pass(Duration::from_secs(599));
    look(&mut world);
    assert_eq!(world.revisions().last(), Some(&(3, Outcome::Progressing)), "it runs anew");
    world.pass(Duration::from_secs(1));
    look(&mut world);
    assert!(world.revisions().contains(&(3, Outcome::Failed)));
}

#[test]
fn a_policy_may_ignore_the_deadline_and_says_how_long_a_release_is_watched() {
    let mut world = waiting(json!({"failure": {"progressDeadline": {"ignore": true}}, "soakSeconds": 300}));
    world.pass(Duration::from_secs(7200));
    look(&mut world);
    assert_eq!(world.revisions().last(), Some(&(3, Outcome::Progressing)));
    world.slow.clear();
    look(&mut world);
    world.pass(Duration::from_secs(299));
    world.failing.insert(id("Deployment", "web"), world.now);
    look(&mut world);
    assert_eq!(world.revisions()[2], (3, Outcome::Failed), "still within its soak");
}
