//! What holds whatever happens: users who change their minds, plans cut short, decisions on views that are old.

use super::super::{SELECTED_NODE, facts::volume_spec};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// What somebody does, or what goes wrong.
#[derive(Clone, Debug)]
enum Step {
    Claim(u8, bool),
    Volume(u8, bool),
    Select(u8),
    DeleteClaim(u8),
    DeleteVolume(u8),
    Use(u8),
    Leave(u8),
    /// The agent does its part.
    Agent,
    /// A key is looked at and its plan done, as far as so many actions: then comes a crash.
    Look(u8, u8),
    /// A plan is made now, and done only after so many further steps.
    Stale(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..3u8, any::<bool>()).prop_map(|(n, local)| Step::Claim(n, local)),
        2 => (0..3u8, any::<bool>()).prop_map(|(n, kept)| Step::Volume(n, kept)),
        1 => (0..3u8).prop_map(Step::Select),
        1 => (0..3u8).prop_map(Step::DeleteClaim),
        1 => (0..3u8).prop_map(Step::DeleteVolume),
        1 => (0..3u8).prop_map(Step::Use),
        1 => (0..3u8).prop_map(Step::Leave),
        1 => Just(Step::Agent),
        8 => (any::<u8>(), 1..5u8).prop_map(|(key, acts)| Step::Look(key, acts)),
        2 => any::<u8>().prop_map(Step::Stale),
    ]
}

/// At every instant: a complete binding is one of one claim and one volume, and a used claim is there with its volume. A volume
/// that somebody deletes in the instant of the binding is gone: its claim says so when the controller has seen it.
fn invariants(cluster: &Cluster) -> Result<(), TestCaseError> {
    let mut taken = BTreeSet::new();
    for claim in cluster.claims().iter().filter(|claim| facts::claim_phase(claim) == "Bound") {
        let name = facts::volume_name(claim).to_owned();
        prop_assert!(taken.insert(name.clone()), "two claims have {name}");
        let Some(volume) = cluster.world.get::<PersistentVolume>(VOLUME, &Key::new("", &name)) else { continue };
        let reference = volume_spec(&volume).claim_ref.clone();
        prop_assert_eq!(
            reference.and_then(|reference| reference.uid),
            claim.metadata.uid.clone(),
            "{} and {} do not belong together",
            claim.name_any(),
            name
        );
    }
    Ok(())
}

fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut cluster = Cluster::usual();
    let mut old: Option<(Key, Vec<Action>)> = None;
    for step in steps {
        let claim = |n: u8| format!("c{n}");
        match step {
            Step::Claim(n, local) => {
                if cluster.world.raw(CLAIM, &Key::new("ns", &claim(n))).is_none() {
                    cluster.claim(&claim(n), json!({"storageClassName": if local { "local" } else { "" }}));
                }
            }
            Step::Volume(n, kept) => {
                if cluster.world.raw(VOLUME, &Key::new("", &format!("v{n}"))).is_none() {
                    let spec =
                        if kept { json!({"claimRef": {"namespace": "ns", "name": claim(n)}}) } else { json!({}) };
                    cluster.volume(&format!("v{n}"), spec);
                }
            }
            Step::Select(n) => {
                let patch = json!({"metadata": {"annotations": {SELECTED_NODE: "n1"}}});
                cluster.world.patch(CLAIM, &Key::new("ns", &claim(n)), &patch);
            }
            Step::DeleteClaim(n) => cluster.delete(CLAIM, &format!("ns/{}", claim(n))),
            Step::DeleteVolume(n) => cluster.delete(VOLUME, &format!("v{n}")),
            Step::Use(n) => {
                let held = cluster.world.get::<PersistentVolumeClaim>(CLAIM, &Key::new("ns", &claim(n)));
                let name = format!("p{n}");
                let free = cluster.world.raw(POD, &Key::new("ns", &name)).is_none();
                if free
                    && held
                        .is_some_and(|held| !facts::is_deleting(held.as_ref()) && facts::claim_phase(&held) == "Bound")
                {
                    cluster.pod(&name, &claim(n), Some("n1"));
                }
            }
            Step::Leave(n) => cluster.delete(POD, &format!("ns/p{n}")),
            Step::Agent => cluster.agent(),
            Step::Look(pick, acts) => {
                let keys = cluster.keys();
                let Some(key) = keys.get(usize::from(pick) % keys.len().max(1)) else { continue };
                let plan = cluster.plan(key);
                let _ = plan.iter().take(acts.into()).all(|action| cluster.act(key, action));
            }
            Step::Stale(pick) => match old.take() {
                Some((key, plan)) => _ = plan.iter().all(|action| cluster.act(&key, action)),
                None => {
                    let keys = cluster.keys();
                    old = keys.get(usize::from(pick) % keys.len().max(1)).map(|key| (key.clone(), cluster.plan(key)));
                }
            },
        }
        invariants(&cluster)?;
        for pod in cluster.world.list::<Pod>(POD) {
            for (name, _) in facts::claims_of(&pod) {
                prop_assert!(
                    cluster.world.raw(CLAIM, &Key::new("ns", &name)).is_some(),
                    "{} lost {name}",
                    pod.name_any()
                );
            }
        }
    }
    // Left alone, it comes to rest: what can be bound is, and what is to go goes.
    cluster.settle();
    cluster.agent();
    cluster.settle();
    invariants(&cluster)?;
    for claim in cluster.claims().iter().filter(|claim| facts::claim_phase(claim) == "Bound") {
        let volume = cluster.world.get::<PersistentVolume>(VOLUME, &Key::new("", facts::volume_name(claim)));
        prop_assert!(volume.is_some(), "{} is bound to what is gone", claim.name_any());
    }
    for volume in cluster.volumes() {
        let claim = volume_spec(&volume).claim_ref.as_ref().and_then(|reference| {
            let claim =
                cluster.world.get::<PersistentVolumeClaim>(CLAIM, &Key::new("ns", reference.name.as_deref()?))?;
            (claim.metadata.uid == reference.uid).then_some(claim)
        });
        let bound = claim.is_some_and(|claim| facts::volume_name(&claim) == volume.name_any());
        prop_assert_eq!(facts::volume_phase(&volume) == "Bound", bound, "{}", volume.name_any());
        let leaked = volume.name_any().starts_with("pvc-") && !bound && facts::volume_phase(&volume) != "Pending";
        prop_assert!(!leaked, "nobody has {} and nobody removes it", volume.name_any());
        prop_assert!(!facts::is_deleting(volume.as_ref()) || bound, "{} does not go", volume.name_any());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_binding_is_of_one_claim_and_one_volume_and_everything_comes_to_rest(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        run(steps)?;
    }
}
