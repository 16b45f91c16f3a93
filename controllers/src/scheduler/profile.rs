//! A profile: which plugins decide about the pods that name it, and how much each counts.

use super::{
    cluster::{Asks, Cluster, pod::PodInfo},
    decide::Rejectors,
    framework::{Cycle, News, Plugin},
    plugins::{self, Args},
    preempt::PreemptionArgs,
};
use std::{sync::Arc, time::Duration};

/// The scheduler's name, and what pods that name none get.
pub(crate) const DEFAULT: &str = "default-scheduler";

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    /// What pods call it (`spec.schedulerName`).
    pub(crate) name: String,
    /// How many nodes that would do are enough, in percent of all; 0 lets the size of the cluster decide.
    pub(crate) percentage: usize,
    pub(crate) filters: Vec<Arc<dyn Plugin>>,
    pub(crate) scores: Vec<(Arc<dyn Plugin>, i64)>,
    /// Whether pods of less importance may be asked to leave, and how hard is looked for them.
    pub(crate) preemption: Option<PreemptionArgs>,
    /// How long a pod waits for its claims to be bound once its node is known.
    pub(crate) volumes_within: Duration,
}

impl Profile {
    /// Kubernetes' default profile under that name.
    pub(crate) fn default_named(name: &str) -> Profile {
        let rows = plugins::table(&Args::default());
        let scoring = rows.iter().filter(|row| row.weight > 0).map(|row| (row.plugin.clone(), row.weight)).collect();
        Profile {
            name: name.to_owned(),
            percentage: 0,
            filters: rows.into_iter().filter(|row| row.filters).map(|row| row.plugin).collect(),
            scores: scoring,
            preemption: Some(PreemptionArgs::default()),
            volumes_within: Duration::from_secs(600),
        }
    }

    /// Makes ready in the cluster what a decision about this pod will look at.
    pub(crate) fn prepare(&self, cluster: &mut Cluster, pod: &PodInfo) {
        let mut asks = Asks::default();
        let cycle = Cycle { cluster, pod };
        self.filters.iter().for_each(|plugin| plugin.asks(cycle, &mut asks));
        let only_scoring = |plugin: &&Arc<dyn Plugin>| !self.filters.iter().any(|held| held.name() == plugin.name());
        self.scores.iter().map(|(plugin, _)| plugin).filter(only_scoring).for_each(|p| p.asks(cycle, &mut asks));
        cluster.ask(asks);
    }

    /// Whether the news may let in a pod that these plugins kept out.
    pub(crate) fn helps(&self, rejectors: Rejectors, cycle: Cycle<'_>, news: News<'_>) -> bool {
        let mut rejected = self.filters.iter().enumerate().filter(|(at, _)| rejectors & (1 << at) != 0);
        rejected.any(|(_, plugin)| plugin.helps(cycle, news))
    }
}
