//! Hollow nodes: everything an agent does towards the API, for thousands of nodes in one small process, and nothing runs.
//!
//! Owns: its Nodes with their Leases, and the statuses of the pods bound to them. A pod is Running and Ready as soon as it
//! is seen, and goes when it is asked to; one that does not restart succeeds after a while ([`RUN_SECONDS`]). Never starts
//! a container, never touches the network of the machine.

mod nodes;
mod pods;

use kube::Client;
use proa_crds::Family;
use tokio_util::sync::CancellationToken;

/// On a pod that does not restart: how many seconds it runs before it succeeds (1 without; 0 is for ever).
pub const RUN_SECONDS: &str = "proa.dev/hollow-run-seconds";
/// On every hollow Node: the prefix of its name, so that one process finds its own.
pub const LABEL: &str = "proa.dev/hollow";

/// What hollow nodes are made of.
#[derive(Clone, Debug)]
pub struct Hollow {
    /// How many.
    pub count: u32,
    /// Their names are this with a number behind.
    pub prefix: String,
    /// Which family their Nodes and pods are of.
    pub family: Family,
    /// Over how many zones they are spread (`topology.kubernetes.io/zone`).
    pub zones: u32,
}

impl Hollow {
    fn name(&self, number: u32) -> String {
        format!("{}-{number}", self.prefix)
    }

    /// The number of one of its nodes.
    fn number(&self, name: &str) -> Option<u32> {
        let number: u32 = name.strip_prefix(&self.prefix)?.strip_prefix('-')?.parse().ok()?;
        (number < self.count && self.name(number) == name).then_some(number)
    }
}

/// Runs the nodes until `shutdown`. Pods and Nodes stay as they are then, as those of a machine that is off.
pub async fn run(client: Client, hollow: Hollow, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = nodes::run(&client, &hollow) => {}
        () = pods::run(&client, &hollow) => {}
    }
}

/// Whether trying again can help: the server is busy, away, or was asked too early.
fn passing(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 429 || status.code >= 500,
        _ => true,
    }
}

/// A write, tried until it is done or refused.
async fn insist<T, F: Future<Output = Result<T, kube::Error>>>(mut write: impl FnMut() -> F) -> Option<T> {
    let mut pause = std::time::Duration::from_millis(50);
    loop {
        match write().await {
            Ok(done) => return Some(done),
            Err(error) if passing(&error) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(std::time::Duration::from_secs(5));
            }
            Err(error) => {
                tracing::debug!(%error, "a write of a hollow node was refused");
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_its_own_nodes_by_name() {
        let hollow = Hollow { count: 10, prefix: "hollow".into(), family: Family::Standard, zones: 1 };
        assert_eq!(hollow.number(&hollow.name(7)), Some(7));
        for other in ["hollow-10", "hollow-07", "hollow-", "hollow", "other-1", "hollow-1-2"] {
            assert_eq!(hollow.number(other), None, "{other}");
        }
    }
}
