//! Claims of a set's pods, through its whole life (KEP-1847).

use super::world::Sim;
use kube::ResourceExt;
use serde_json::{Value, json};

fn with_claims(scaled: &str, deleted: &str) -> Value {
    json!({"spec": {
        "persistentVolumeClaimRetentionPolicy": {"whenScaled": scaled, "whenDeleted": deleted},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
        "template": {"spec": {"volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]}},
    }})
}

#[test]
fn each_pod_has_a_claim_of_its_own_that_is_there_before_it_and_stays_with_its_name() {
    let mut sim = Sim::new(2, "v1", with_claims("Retain", "Retain"));
    sim.settle();
    assert_eq!(sim.claims(), ["data-web-0", "data-web-1"]);
    let volumes = sim.pod("web-1").expect("a pod").spec.volumes.expect("volumes");
    let claimed: Vec<_> = volumes
        .iter()
        .map(|v| (v.name.as_str(), v.persistent_volume_claim.as_ref().map(|c| c.claim_name.as_str())))
        .collect();
    assert_eq!(
        claimed,
        [("data", Some("data-web-1")), ("tmp", None)],
        "a claim takes the place of a volume of its name"
    );
    let before = sim.claim("data-web-1").uid();
    sim.image("v2");
    sim.settle();
    sim.scale(1);
    sim.settle();
    sim.scale(2);
    sim.settle();
    assert_eq!(sim.claim("data-web-1").uid(), before, "what it holds is still there");
}

#[test]
fn a_claim_goes_with_its_ordinal_where_the_policy_says_so_and_a_new_pod_waits_for_that() {
    let mut sim = Sim::new(2, "v1", with_claims("Delete", "Retain"));
    sim.settle();
    assert!(sim.claim("data-web-1").owner_references().is_empty());
    sim.scale(1);
    sim.run();
    assert_eq!(sim.claim("data-web-1").owner_references()[0].kind, "Pod");
    // The pod is gone and wanted again before its claim is collected.
    let claim = sim.claim("data-web-1");
    sim.world.delete("pods", &crate::Key::new("ns", "web-1"));
    assert!(sim.world.create("claims", &claim));
    sim.scale(2);
    sim.run();
    assert!(sim.pod("web-1").is_none(), "it waits for the claim of the earlier one to go");
    sim.settle();
    assert!(sim.claim("data-web-1").owner_references().is_empty(), "a new one");
    assert_eq!(sim.claims(), ["data-web-0", "data-web-1"]);
}

#[test]
fn a_pod_that_is_wanted_again_before_it_is_gone_keeps_its_claim() {
    let mut sim = Sim::new(3, "v1", with_claims("Delete", "Delete"));
    sim.settle();
    assert_eq!(sim.claim("data-web-1").owner_references()[0].kind, "StatefulSet");
    sim.status("web-0", "Running", false);
    sim.scale(1);
    sim.run();
    sim.status("web-0", "Running", true);
    sim.step(2);
    sim.scale(3);
    sim.run();
    assert_eq!(sim.claim("data-web-1").owner_references()[0].kind, "StatefulSet");
}

#[test]
fn a_claim_taken_away_under_a_waiting_pod_is_made_again() {
    let mut sim = Sim::new(1, "v1", with_claims("Retain", "Retain"));
    sim.run();
    sim.world.delete("claims", &crate::Key::new("ns", "data-web-0"));
    sim.run();
    assert_eq!(sim.claims(), ["data-web-0"]);
}
