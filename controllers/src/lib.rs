//! The control loops: desired state in, actions out.
//!
//! Owns: the shared informers, the work queues, the runner that drives every [`Loop`], and the loops themselves
//! (each a pure `plan` and a thin shell around it). Never opens the store, never talks to nodes directly: everything
//! goes through the Kubernetes API with a [`kube::Client`].

pub mod clock;
pub mod context;
pub mod deployment;
pub mod events;
pub mod informer;
pub mod key;
pub mod owners;
pub mod patch;
pub mod pod_status;
pub mod pods;
pub mod queue;
pub mod replicaset;
pub mod runner;
pub mod scheduler;
pub mod selector;
#[cfg(test)]
pub(crate) mod sim;
pub mod taints;

pub use clock::Clock;
pub use context::Context;
pub use informer::{Change, Informer, Informers};
pub use key::Key;
pub use queue::Queue;
pub use runner::{ActError, Loop, Plan, Writes};

use kube::Client;
use proa_crds::Family;
use tokio_util::sync::CancellationToken;

/// How the controllers of one process run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which family's workload kinds to drive. The loops of the cluster itself (namespaces, service accounts, garbage
    /// collection …) run with the standard family alone: another API server has its own.
    pub family: Family,
    /// The name this process goes by among several.
    pub identity: String,
    /// Where the time comes from.
    pub clock: Clock,
}

/// The controllers could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

/// Runs every loop until `shutdown`.
pub async fn run(client: Client, options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let context = Context::new(client, options.family, options.clock, shutdown);
    start_loops(&context);
    context.run().await;
    Ok(())
}

/// Adding a loop is one line here.
fn start_loops(context: &Context) {
    context.start(deployment::Deployments::new(context));
    context.start(replicaset::ReplicaSets::new(context));
    scheduler::start(context);
}
