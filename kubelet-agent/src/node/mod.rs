//! Owns the Node object of this machine: registration, status, and the Lease that says it is alive.
//! Never decides which pods run here.

pub(crate) mod machine;
pub(crate) mod peers;
mod status;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::NodeSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use proa_crds::annotations::{SERVING_CERTIFICATE, VOLUMES};
use proa_crds::{Family, Node};
use proa_network::Cidr;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub(crate) use status::{Facts, capacity};

const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: i32 = 40;
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The whole status at least this often (kubelet's nodeStatusReportFrequency).
const REPORT: Duration = Duration::from_secs(300);
/// How long a node may be without its block of pod addresses before that is said.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often changes of the machine are looked for.
const LOOK: Duration = Duration::from_secs(60);

/// Labels every node has.
pub(crate) fn labels(name: &str, extra: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let arch = machine::architecture();
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    labels.extend(extra.iter().map(|(k, v)| (k.clone(), v.clone())));
    labels
}

/// The node's block of pod addresses, once it has one.
pub(crate) fn block(node: &Node) -> Option<Cidr> {
    node.spec.pod_cidr.as_deref()?.parse().ok()
}

/// Talks to the API about this node.
#[derive(Clone)]
pub(crate) struct Registration {
    client: kube::Client,
    nodes: Api<Node>,
    family: Family,
    name: String,
    /// What the Node says of this agent's serving certificate.
    fingerprint: String,
    /// Where it keeps the volumes of claims.
    volumes: Option<String>,
}

impl Registration {
    pub(crate) fn new(
        client: kube::Client,
        family: Family,
        name: &str,
        fingerprint: String,
        volumes: Option<&Path>,
    ) -> Self {
        let nodes = Api::all_with(client.clone(), &family.node());
        let volumes = volumes.map(|path| path.display().to_string());
        Self { client, nodes, family, name: name.to_owned(), fingerprint, volumes }
    }

    /// Creates the Node, or brings its labels and its certificate up to date; tries until the API answers.
    pub(crate) async fn register(&self, labels: BTreeMap<String, String>, pod_cidr: Option<Cidr>) -> Node {
        let mut delay = Duration::from_millis(20);
        loop {
            match self.try_register(&labels, pod_cidr).await {
                Ok(node) => return node,
                Err(error) => {
                    tracing::debug!(%error, "the node is not registered yet; trying again");
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(Duration::from_secs(5));
                }
            }
        }
    }

    async fn try_register(
        &self,
        labels: &BTreeMap<String, String>,
        pod_cidr: Option<Cidr>,
    ) -> Result<Node, kube::Error> {
        let mut annotations = BTreeMap::from([(SERVING_CERTIFICATE.to_owned(), self.fingerprint.clone())]);
        annotations.extend(self.volumes.clone().map(|path| (VOLUMES.to_owned(), path)));
        if self.nodes.get_opt(&self.name).await?.is_some() {
            let patch = json!({"metadata": {"labels": labels, "annotations": annotations}});
            return self.nodes.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        }
        let cidr = pod_cidr.map(|c| c.to_string());
        let spec = NodeSpec { pod_cidrs: cidr.clone().map(|c| vec![c]), pod_cidr: cidr, ..NodeSpec::default() };
        let mut node = Node::new(&self.name, &self.family.node(), spec);
        node.metadata.labels = Some(labels.clone());
        node.metadata.annotations = Some(annotations);
        // Somebody made it in the meantime: the next try finds it.
        self.nodes.create(&PostParams::default(), &node).await
    }

    /// The node's block of pod addresses; waits until something assigns it.
    pub(crate) async fn pod_cidr(&self) -> Cidr {
        let complain = async {
            tokio::time::sleep(PATIENCE).await;
            tracing::warn!(node = self.name, "the node waits for its podCIDR: do the controllers of its family run?");
            std::future::pending().await
        };
        tokio::select! {
            cidr = self.assigned() => cidr,
            never = complain => never,
        }
    }

    async fn assigned(&self) -> Cidr {
        loop {
            let has = |node: Option<&Node>| node.is_some_and(|node| block(node).is_some());
            match await_condition(self.nodes.clone(), &self.name, has).await {
                Ok(node) => {
                    if let Some(cidr) = node.as_ref().and_then(block) {
                        return cidr;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the node cannot be watched; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Writes the status.
    async fn write_status(&self, facts: &Facts) -> Result<(), kube::Error> {
        let node = self.nodes.get(&self.name).await?;
        let status = facts.status(node.status.as_ref(), Timestamp::now());
        let mut patch = json!({"status": status});
        for name in status::withdrawn(node.status.as_ref()) {
            patch["status"]["allocatable"][name] = serde_json::Value::Null;
        }
        // Lists of a node's status have merge keys in the standard family, and are sent whole either way.
        self.nodes.patch_status(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
    }

    /// Keeps status and Lease fresh until `shutdown`. `out_of_date` asks for a status at once.
    pub(crate) async fn keep_alive(self, mut facts: Facts, out_of_date: Arc<Notify>, shutdown: CancellationToken) {
        let mut last_report = None::<tokio::time::Instant>;
        let mut last_facts = None;
        let mut lease_held = false;
        let mut beat = tokio::time::interval(HEARTBEAT);
        let mut look = tokio::time::interval(LOOK);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = out_of_date.notified() => last_report = None,
                _ = look.tick() => {
                    facts.refresh().await;
                }
                _ = beat.tick() => match self.renew(lease_held).await {
                    Ok(()) => lease_held = true,
                    Err(error) => {
                        lease_held = false;
                        tracing::warn!(%error, "the node's lease was not renewed");
                    }
                },
            }
            let due = last_report.is_none_or(|at| at.elapsed() >= REPORT);
            let picture = facts.picture();
            if due || last_facts.as_ref() != Some(&picture) {
                match self.write_status(&facts).await {
                    Ok(()) => {
                        last_report = Some(tokio::time::Instant::now());
                        last_facts = Some(picture);
                    }
                    Err(kube::Error::Api(status)) if status.code == 404 => {
                        // Somebody deleted the Node: this machine is still here.
                        self.register(facts.labels.clone(), facts.pod_cidr).await;
                        beat.reset_immediately();
                    }
                    Err(error) => tracing::warn!(%error, "the node's status was not written"),
                }
            }
        }
    }

    async fn renew(&self, held: bool) -> Result<(), kube::Error> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), LEASE_NAMESPACE);
        let now = MicroTime(Timestamp::now());
        let patch = json!({"spec": {
            "holderIdentity": self.name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now
        }});
        if held {
            match api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => return other.map(|_| ()),
            }
        }
        let owner = self.nodes.get_opt(&self.name).await?.and_then(|node| {
            let dt = self.family.node();
            Some(OwnerReference {
                api_version: dt.api_version,
                kind: dt.kind,
                name: self.name.clone(),
                uid: node.metadata.uid?,
                ..OwnerReference::default()
            })
        });
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(LEASE_NAMESPACE.to_owned()),
                owner_references: owner.map(|o| vec![o]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.name.clone()),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        };
        match api.create(&PostParams::default(), &lease).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }
}
