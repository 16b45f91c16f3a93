//! The rules of Kubernetes' default profile, one file each. A new one is a file and a line in [`table`].

mod balanced;
mod fit;
mod images;
mod inter_pod;
mod node;
mod node_affinity;
mod ports;
mod spread;
mod taints;
mod volumes;

pub(crate) use fit::{FitArgs, ResourceWeight, Strategy};
pub(crate) use inter_pod::InterPodArgs;
pub(crate) use spread::{Spread, SpreadArgs};

use super::framework::Plugin;
use k8s_openapi::api::core::v1::NodeAffinity;
use std::sync::Arc;

/// What a profile's `pluginConfig` says, as far as it is honoured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Args {
    pub(crate) fit: FitArgs,
    pub(crate) balanced: balanced::BalancedArgs,
    pub(crate) inter_pod: InterPodArgs,
    pub(crate) spread: SpreadArgs,
    pub(crate) added_affinity: Option<NodeAffinity>,
}

/// A plugin as the default profile has it.
pub(crate) struct Row {
    pub(crate) plugin: Arc<dyn Plugin>,
    pub(crate) filters: bool,
    /// The weight of its score; zero for those that give none.
    pub(crate) weight: i64,
}

/// Every plugin, in the order in which filters are asked and with the weights of scores (Kubernetes' default profile).
pub(crate) fn table(args: &Args) -> Vec<Row> {
    fn row(plugin: impl Plugin + 'static, filters: bool, weight: i64) -> Row {
        Row { plugin: Arc::new(plugin), filters, weight }
    }
    vec![
        row(node::Unschedulable, true, 0),
        row(node::Name, true, 0),
        row(taints::TaintToleration, true, 3),
        row(node_affinity::NodeAffinity { added: args.added_affinity.clone() }, true, 2),
        row(ports::NodePorts, true, 0),
        row(fit::Fit(args.fit.clone()), true, 1),
        row(volumes::Restrictions, true, 0),
        row(volumes::Limits, true, 0),
        row(volumes::Binding, true, 0),
        row(volumes::Zone, true, 0),
        row(Spread(args.spread.clone()), true, 2),
        row(inter_pod::InterPodAffinity(args.inter_pod), true, 2),
        row(balanced::Balanced(args.balanced.clone()), false, 1),
        row(images::ImageLocality, false, 1),
    ]
}
