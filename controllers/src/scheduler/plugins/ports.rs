//! `NodePorts`: a port of the host belongs to one pod.

use crate::scheduler::{
    cluster::node::NodeInfo,
    framework::{Cycle, Filter, News, Plugin, Prepared, Reasons, Verdict, lets_in},
};
use proa_crds::HostPort;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct NodePorts;

struct Free<'a>(&'a [HostPort]);

impl Filter for Free<'_> {
    fn check(&self, node: &NodeInfo, why: &mut Reasons) -> Verdict {
        let taken = self.0.iter().any(|wanted| node.used.ports.keys().any(|held| held.collides(wanted)));
        Verdict::unless(taken, why, HostPort::TAKEN)
    }

    fn judges_by_the_node_alone(&self) -> bool {
        true
    }
}

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn filter<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let ports = cycle.pod.claim.ports.as_slice();
        if ports.is_empty() { Prepared::Skip } else { Prepared::filter(Free(ports)) }
    }

    fn helps(&self, cycle: Cycle<'_>, news: News<'_>) -> bool {
        match news {
            News::Node(node, changes) => changes.new && lets_in(self, cycle, node),
            News::PodGone(node, gone) => !gone.claim.ports.is_empty() && lets_in(self, cycle, node),
            _ => false,
        }
    }
}
