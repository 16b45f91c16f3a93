//! `NodeUnschedulable` and `NodeName`: cordoned nodes take no pods, and a pod may name its node.

use crate::{
    scheduler::{
        cluster::{
            node::{NodeInfo, Slot},
            pod::PodInfo,
        },
        framework::{Cycle, Filter, News, Plugin, Prepared, Reasons, Verdict, lets_in},
    },
    taints::{NO_SCHEDULE, untolerated},
};
use k8s_openapi::api::core::v1::Taint;

/// Cordoned nodes take no pods.
#[derive(Debug)]
pub(crate) struct Unschedulable;

struct Uncordoned;

impl Filter for Uncordoned {
    fn check(&self, node: &NodeInfo, why: &mut Reasons) -> Verdict {
        Verdict::never_if(node.unschedulable, why, "node(s) were unschedulable")
    }

    fn judges_by_the_node_alone(&self) -> bool {
        true
    }
}

impl Plugin for Unschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn filter<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        if tolerates_cordon(cycle.pod) { Prepared::Skip } else { Prepared::filter(Uncordoned) }
    }

    fn helps(&self, cycle: Cycle<'_>, news: News<'_>) -> bool {
        matches!(news, News::Node(node, changes) if (changes.new || changes.schedulable) && lets_in(self, cycle, node))
    }
}

/// Cordoning is also a taint; whoever tolerates that one may be placed on a cordoned node.
fn tolerates_cordon(pod: &PodInfo) -> bool {
    if pod.tolerations().is_empty() {
        return false;
    }
    let taint =
        Taint { key: "node.kubernetes.io/unschedulable".into(), effect: NO_SCHEDULE.into(), ..Default::default() };
    untolerated(&[taint], pod.tolerations(), &[NO_SCHEDULE]).is_none()
}

/// A pod may name its node.
#[derive(Debug)]
pub(crate) struct Name;

struct Named<'a>(&'a str, Option<Slot>);

impl Filter for Named<'_> {
    fn check(&self, node: &NodeInfo, why: &mut Reasons) -> Verdict {
        Verdict::never_if(&*node.name != self.0, why, "node(s) didn't match the requested node name")
    }

    fn only(&self) -> Option<Vec<Slot>> {
        Some(self.1.into_iter().collect())
    }
}

impl Plugin for Name {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn filter<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        match crate::pods::node(&cycle.pod.pod) {
            Some(name) => Prepared::filter(Named(name, cycle.cluster.slot(name))),
            None => Prepared::Skip,
        }
    }

    fn helps(&self, cycle: Cycle<'_>, news: News<'_>) -> bool {
        matches!(news, News::Node(node, changes) if changes.new && lets_in(self, cycle, node))
    }
}
