//! What is remembered of pods that are alike is what a new look would find.

use super::world::*;
use crate::{
    Key,
    scheduler::core::{Core, Step},
};
use kube::ResourceExt;
use proa_crds::Pod;
use proptest::prelude::*;
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc};

#[derive(Clone, Debug)]
enum Happening {
    Wanted { vip: bool },
    Decide,
    Leaves(usize),
    Changes(usize),
    Node(u8, u8),
    NodeGone(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => Just(Happening::Wanted { vip: false }),
        4 => Just(Happening::Wanted { vip: true }),
        12 => Just(Happening::Decide),
        2 => (0..40usize).prop_map(Happening::Leaves),
        1 => (0..40usize).prop_map(Happening::Changes),
        3 => (0..5u8, 0..3u8).prop_map(|(node, kind)| Happening::Node(node, kind)),
        1 => (0..5u8).prop_map(Happening::NodeGone),
    ]
}

/// Two cores to which the same happens, one of which forgets at every step what it remembers of kinds of pods.
struct Both {
    remembers: Core,
    looks: Core,
    placed: BTreeMap<String, Arc<Pod>>,
}

impl Both {
    fn all(&mut self, mut what: impl FnMut(&mut Core)) {
        what(&mut self.remembers);
        what(&mut self.looks);
    }

    fn decide(&mut self, now: std::time::Duration) -> Result<(), TestCaseError> {
        self.looks.forget_refusals();
        let (step, wanted) = (self.remembers.next(now), self.looks.next(now));
        prop_assert_eq!(format!("{step:?}"), format!("{wanted:?}"));
        match step {
            Some(Step::Bind(binding)) => {
                let mut bound = Pod::clone(&binding.pod);
                bound.spec.node_name = Some(binding.node.to_string());
                let bound = Arc::new(bound);
                self.all(|core| tell(core, &bound, now));
                self.placed.insert(bound.name_any(), bound);
            }
            Some(Step::Preempt { pod, victims, .. }) => {
                self.all(|core| core.room_made(&pod, true, now));
                for victim in victims {
                    self.leaves(&victim, now);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn leaves(&mut self, pod: &Pod, now: std::time::Duration) {
        self.placed.remove(&pod.name_any());
        self.all(|core| core.pod_changed(&Key::of(pod), None, now));
    }

    fn nth(&self, at: usize) -> Option<Arc<Pod>> {
        self.placed.values().nth(at % self.placed.len().max(1)).cloned()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_remembered_of_a_kind_is_what_a_new_look_would_find(
        happenings in proptest::collection::vec(happening(), 0..160),
    ) {
        let mut both = Both { remembers: core(&[]), looks: core(&[]), placed: BTreeMap::new() };
        for (i, happening) in happenings.into_iter().enumerate() {
            let now = MS(i as u64 * 1000);
            match happening {
                Happening::Wanted { vip } => {
                    let extra = json!({"spec": {"priority": if vip { 1000 } else { 0 }}});
                    let pod = pod(&format!("p{i}"), if vip { "1500m" } else { "700m" }, extra);
                    both.all(|core| tell(core, &pod, now));
                }
                Happening::Decide => both.decide(now)?,
                Happening::Leaves(at) => if let Some(pod) = both.nth(at) {
                    both.leaves(&pod, now);
                },
                Happening::Changes(at) => if let Some(pod) = both.nth(at) {
                    let mut changed = Pod::clone(&pod);
                    changed.status.get_or_insert_default().start_time = serde_json::from_value(json!("2026-01-01T00:00:00Z")).ok();
                    let changed = Arc::new(changed);
                    both.all(|core| tell(core, &changed, now));
                    both.placed.insert(changed.name_any(), changed);
                },
                Happening::Node(n, kind) => {
                    let extra = [json!({}), json!({"spec": {"unschedulable": true}}), taint("k", "NoSchedule")];
                    let name = format!("n{n}");
                    let node = node(&name, extra[usize::from(kind)].clone());
                    both.all(|core| core.node_changed(&name, Some(&node), now));
                }
                Happening::NodeGone(n) => {
                    let name = format!("n{n}");
                    both.all(|core| core.node_changed(&name, None, now));
                }
            }
        }
    }
}

#[test]
fn the_second_of_a_kind_is_remembered_and_told_the_same() {
    let mut core = core(&[node("a", json!({})), node("b", json!({}))]);
    for name in ["p1", "p2", "p3"] {
        tell(&mut core, &pod(name, "3", json!({})), MS(0));
    }
    let refused = "0/2 nodes are available: 2 Insufficient cpu. \
                   preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    for (name, remembered) in [("p1", 0), ("p2", 1), ("p3", 1)] {
        assert_eq!(next(&mut core, MS(0)).unwrap(), format!("{name}: {refused}"));
        assert_eq!(core.refusals_of_kinds(), remembered);
    }
}
