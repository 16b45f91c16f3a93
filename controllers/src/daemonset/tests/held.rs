//! How far a rollout may go: what its guard says of a revision.

use super::world::Sim;
use kube::ResourceExt;
use proa_crds::{ControllerRevision, annotations};
use serde_json::{Value, json};

fn limit(sim: &mut Sim, notes: Value) {
    let all = sim.world.list::<ControllerRevision>("controllerrevisions");
    let last = all.iter().max_by_key(|held| held.revision).expect("one").name_any();
    let key = crate::Key::new("ns", &last);
    assert!(sim.world.patch("controllerrevisions", &key, &json!({"metadata": {"annotations": notes}})));
}

#[test]
fn a_gradual_rollout_reaches_so_many_nodes_and_what_is_known_to_fail_none() {
    let gradual = json!({"metadata": {"annotations": {annotations::GRADUAL: "true"}}});
    let mut sim = Sim::new(4, "v1", gradual);
    sim.settle();
    sim.image("v2");
    sim.settle();
    assert_eq!(sim.show(), ["node-0 v1", "node-1 v1", "node-2 v1", "node-3 v1"], "nobody has said how far it may go");
    limit(&mut sim, json!({annotations::ROLLOUT_LIMIT: "2"}));
    sim.settle();
    assert_eq!(sim.show(), ["node-0 v2", "node-1 v2", "node-2 v1", "node-3 v1"]);
    limit(&mut sim, json!({annotations::ROLLOUT_LIMIT: annotations::ROLLOUT_UNLIMITED}));
    sim.settle();
    assert_eq!(sim.show(), ["node-0 v2", "node-1 v2", "node-2 v2", "node-3 v2"]);

    sim.image("v3");
    sim.run();
    let failure = json!({"reason": "CrashLoop", "message": "boom"}).to_string();
    limit(&mut sim, json!({annotations::FAILURE: failure}));
    sim.edit(json!({"metadata": {"annotations": {annotations::GRADUAL: null, annotations::FAILED_REVISIONS: "[]"}}}));
    sim.settle();
    assert_eq!(sim.show(), ["node-0 v2", "node-1 v2", "node-2 v2", "node-3 v2"], "known to fail");
    sim.edit(json!({"metadata": {"annotations": {annotations::RETRY: "1"}}}));
    sim.settle();
    assert_eq!(sim.show(), ["node-0 v3", "node-1 v3", "node-2 v3", "node-3 v3"], "somebody wants it tried again");
}
