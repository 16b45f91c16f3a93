//! The control loops: desired state in, actions out.
//!
//! Owns: the shared informers, the work queues, the runner that drives every [`Loop`], and the loops themselves
//! (each a pure `plan` and a thin shell around it). Never opens the store, never talks to nodes directly: everything
//! goes through the Kubernetes API with a [`kube::Client`].

pub mod aggregation;
mod amount;
pub mod autoscaling;
mod backoff;
pub mod bootstrap;
pub mod catalogue;
pub mod certificates;
pub mod clock;
pub mod context;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod disruption;
mod election;
pub mod endpoints;
pub mod events;
pub mod garbage;
mod guard;
mod hash;
pub mod history;
pub mod informer;
pub mod inspect;
pub mod job;
pub mod key;
pub mod namespace;
pub mod node;
pub mod nodeipam;
pub mod owners;
pub mod patch;
mod pod_control;
pub mod pod_status;
pub mod podgc;
pub mod pods;
pub mod queue;
pub mod release;
pub mod replicaset;
pub mod resourcequota;
pub mod rollback;
pub mod runner;
pub mod scale;
pub mod scheduler;
pub mod selector;
pub mod serviceaccount;
#[cfg(test)]
pub(crate) mod sim;
pub mod statefulset;
pub mod storage;
pub mod taints;

pub use clock::Clock;
pub use context::Context;
pub use election::HasEnded;
pub use informer::{Change, Informer, Informers};
pub use key::Key;
pub use nodeipam::Blocks;
pub use queue::Queue;
pub use runner::{ActError, Loop, Plan, Writes};

use election::Election;
use futures::future::BoxFuture;
use kube::Client;
use proa_crds::Family;
use tokio_util::sync::CancellationToken;

/// How the controllers of one process run.
#[derive(Clone)]
pub struct Options {
    /// Which family's workload kinds to drive, and collect the garbage of. The loops of the cluster itself (namespaces,
    /// service accounts …) run with the standard family alone: another API server has its own.
    pub family: Family,
    /// The name this process goes by among several: of all that have one, one acts at a time. Two processes must not
    /// share a name; the next life of the same one should, for it leads again at once. Without one (empty) there is no
    /// election, and the process acts alone.
    pub identity: String,
    /// Tells of another process, by its name, whether it is known to be no more; its lease need not run out then.
    pub has_ended: HasEnded,
    /// Where the time comes from.
    pub clock: Clock,
    /// The certificate of the API server's CA, PEM, to be published in every namespace. Without one nothing is
    /// published. Standard family only.
    pub root_ca: Option<String>,
    /// The authority that signs certificates others ask for; without one nothing is signed. Standard family only.
    pub authority: Option<std::sync::Arc<certificates::Authority>>,
    /// The pod addresses to divide among the nodes. Without, nodes bring their own.
    pub node_blocks: Option<Blocks>,
    /// How the scheduler decides.
    pub scheduler: scheduler::Configuration,
}

impl Options {
    /// The family's loops with the machine's clock, and no certificate to publish.
    pub fn new(family: Family) -> Options {
        Options {
            family,
            identity: String::new(),
            has_ended: std::sync::Arc::new(|_| false),
            clock: Clock::default(),
            root_ca: None,
            authority: None,
            node_blocks: None,
            scheduler: scheduler::Configuration::default(),
        }
    }
}

/// The controllers could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

/// Runs every loop until `shutdown`.
pub async fn run(client: Client, options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let election = (!options.identity.is_empty()).then(|| Election::new(client.clone(), &options));
    let act = move |term| -> BoxFuture<'static, ()> {
        let (client, options) = (client.clone(), options.clone());
        Box::pin(async move {
            let context = Context::new(client, options.family, options.clock.clone(), term);
            start_loops(&context, &options);
            context.run().await;
        })
    };
    match election {
        Some(election) => election.lead(shutdown, act).await,
        None => act(shutdown).await,
    }
    Ok(())
}

/// Adding a loop is one line here.
fn start_loops(context: &Context, options: &Options) {
    context.informers.of_resource::<proa_crds::Pod>(context.family.pod()).leave_out(pods::slim);
    context.start(deployment::Deployments::new(context));
    context.start(replicaset::ReplicaSets::<proa_crds::ReplicaSet>::new(context));
    context.start(statefulset::StatefulSets::new(context));
    context.start(daemonset::DaemonSets::new(context));
    guard::start(context);
    scheduler::start(context, &options.scheduler);
    context.start(endpoints::EndpointSlices::new(context));
    context.start(node::NodeLifecycle::new(context));
    if let Some(blocks) = options.node_blocks {
        context.start(nodeipam::NodeIpam::new(context, blocks));
    }
    context.start(podgc::PodGc::new(context));
    let catalogue = catalogue::Catalogue::start(
        context,
        match context.family {
            Family::Standard => catalogue::Scope::Everything,
            // The API server's own collector may do the same: every deletion names what it was decided on.
            Family::Proa => catalogue::Scope::Group(context.family.deployment().group),
        },
    );
    context.start(garbage::GarbageCollector::new(&catalogue));
    context.start(release::Releases::new(context, &catalogue));
    if context.family == Family::Standard {
        context.start(replicaset::ReplicaSets::<replicaset::ReplicationController>::new(context));
        context.start(job::Jobs::new(context));
        context.start(cronjob::CronJobs::new(context));
        context.start(aggregation::Aggregation::new(context));
        context.start(bootstrap::TokenCleaner::new(context));
        context.start(bootstrap::BootstrapSigner::new(context));
        context.start(certificates::Certificates::new(context, options.authority.clone()));
        context.start(autoscaling::Autoscalers::new(context, &catalogue));
        context.start(disruption::Disruptions::new(context, &catalogue));
        context.start(disruption::StaleDisruptions::new(context));
        context.start(endpoints::LegacyEndpoints::new(context));
        context.start(namespace::Namespaces::new(context, &catalogue));
        context.start(resourcequota::ResourceQuotas::new(context, &catalogue));
        context.start(storage::PersistentVolumes::new(context));
        context.start(storage::EphemeralVolumes::new(context));
        context.start(serviceaccount::ServiceAccounts::new(context, options.root_ca.as_deref()));
    }
}
