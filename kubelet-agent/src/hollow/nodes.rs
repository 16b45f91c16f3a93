//! The Nodes and Leases of hollow nodes.

use super::{Hollow, LABEL, insist};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::Lease,
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::watcher,
};
use proa_crds::{Decoded, Encoded, Node};
use serde_json::{Value, json};
use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

/// How many writes are under way at the same time.
const AT_ONCE: usize = 32;
/// A sign of life twice within the node controller's patience (50 s).
const HEARTBEAT: Duration = Duration::from_secs(24);
const LEASE_SECONDS: i32 = 40;
const LEASES: &str = "kube-node-lease";

/// Registers the nodes, and keeps them alive and ready.
pub(super) async fn run(client: &Client, hollow: &Hollow) {
    let register = |number| async move { register(client, hollow, number).await };
    stream::iter(0..hollow.count).map(register).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
    tokio::join!(beat(client, hollow), mend(client, hollow));
}

async fn register(client: &Client, hollow: &Hollow, number: u32) {
    let nodes: Api<Node> = Api::all_with(client.clone(), &hollow.family.node());
    let name = hollow.name(number);
    let node = insist(|| async {
        match nodes.create(&PostParams::default(), &object(hollow, number)).await {
            Err(kube::Error::Api(status)) if status.code == 409 => nodes.get(&name).await,
            other => other,
        }
    });
    let Some(node) = node.await else { return };
    insist(|| write_status(&nodes, &node, number)).await;
    renew(client, &node).await;
}

/// A node of four cores, 32 GiB and 110 pods, as Kubernetes' own scheduler benchmarks have them.
fn object(hollow: &Hollow, number: u32) -> Node {
    let name = hollow.name(number);
    let labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", name.clone()),
        ("kubernetes.io/os", "linux".to_owned()),
        ("topology.kubernetes.io/zone", format!("zone-{}", number % hollow.zones.max(1))),
        (LABEL, hollow.prefix.clone()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    // A block of its own, away from the cluster's, so that nobody has to give it one.
    let block = format!("{}/24", Ipv4Addr::from(block(number)));
    let spec = k8s_openapi::api::core::v1::NodeSpec {
        pod_cidrs: Some(vec![block.clone()]),
        pod_cidr: Some(block),
        ..Default::default()
    };
    let mut node = Node::new(&name, &hollow.family.node(), spec);
    node.metadata.labels = Some(labels);
    node
}

/// The first address of a node's block, out of 100.64.0.0/10.
pub(super) fn block(number: u32) -> u32 {
    u32::from(Ipv4Addr::new(100, 64, 0, 0)) + ((number << 8) & 0x003f_ffff)
}

/// What a node offers: its own, and what others have added to its capacity (extended resources).
fn status(node: &Node, number: u32) -> Value {
    let mut room: BTreeMap<String, String> =
        [("cpu", "4"), ("memory", "32Gi"), ("pods", "110"), ("ephemeral-storage", "100Gi")]
            .map(|(name, amount)| (name.to_owned(), amount.to_owned()))
            .into();
    room.extend(extended(node).map(|(name, amount)| (name.to_owned(), amount.to_owned())));
    let now = Time(Timestamp::now());
    let condition = |type_: &str, status: &str, reason: &str| json!({"type": type_, "status": status, "reason": reason, "lastHeartbeatTime": now, "lastTransitionTime": now});
    json!({
        "capacity": room,
        "allocatable": room,
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID"),
            condition("Ready", "True", "KubeletReady"),
        ],
        "addresses": [
            {"type": "InternalIP", "address": Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + number)},
            {"type": "Hostname", "address": node.name_any()},
        ],
        "nodeInfo": {"architecture": "amd64", "operatingSystem": "linux", "kubeletVersion": "v1.36.0-hollow",
            "kernelVersion": "", "osImage": "hollow", "machineID": "", "systemUUID": "", "bootID": "",
            "containerRuntimeVersion": "hollow://0", "kubeProxyVersion": ""},
    })
}

fn extended(node: &Node) -> impl Iterator<Item = (&str, &str)> {
    let capacity = node.status.as_ref().and_then(|status| status.capacity.as_ref());
    let list = capacity.into_iter().flatten().map(|(name, amount)| (name.as_str(), amount.0.as_str()));
    list.filter(|(name, _)| name.contains('/'))
}

async fn write_status(nodes: &Api<Node>, node: &Node, number: u32) -> Result<(), kube::Error> {
    let patch = json!({"status": status(node, number)});
    nodes.patch_status(&node.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
}

async fn renew(client: &Client, node: &Node) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), LEASES);
    let (name, now) = (node.name_any(), MicroTime(Timestamp::now()));
    let spec = json!({"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now});
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": name, "uid": node.metadata.uid});
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": LEASES, "ownerReferences": [owner]}, "spec": spec});
    insist(|| async {
        let renewed = leases.patch(&name, &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await;
        match renewed {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let lease = serde_json::from_value(lease.clone()).map_err(kube::Error::SerdeError)?;
                leases.create(&PostParams::default(), &lease).await
            }
            other => other,
        }
    })
    .await;
}

/// Renews the leases, evenly over the time between two signs of life.
async fn beat(client: &Client, hollow: &Hollow) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), LEASES);
    let mut ticks = tokio::time::interval(HEARTBEAT / hollow.count.max(1));
    let mut number = 0;
    loop {
        ticks.tick().await;
        let (leases, name) = (leases.clone(), hollow.name(number));
        number = (number + 1) % hollow.count.max(1);
        tokio::spawn(async move {
            let patch = json!({"spec": {"renewTime": MicroTime(Timestamp::now())}});
            // A node that was deleted has no lease any more, and gets none.
            insist(|| async { leases.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await }).await;
        });
    }
}

/// Says again that a node is ready when somebody has said otherwise, and offers what was added to its capacity.
async fn mend(client: &Client, hollow: &Hollow) {
    let nodes: Api<Node> = Api::all_with(client.clone(), &hollow.family.node());
    let mine = watcher::Config::default().labels(&format!("{LABEL}={}", hollow.prefix));
    let seen: Api<Encoded> = Api::all_with(client.clone(), &hollow.family.node());
    let mut events = watcher::watcher(seen, mine).boxed();
    while let Some(event) = events.next().await {
        let node = match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => match object.decode::<Node>() {
                Decoded::Object(node) => node,
                Decoded::Undecodable(_) => continue,
            },
            Ok(_) => continue,
            Err(_) => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        if let Some(number) = hollow.number(&node.name_any()).filter(|_| is_off(&node)) {
            insist(|| write_status(&nodes, &node, number)).await;
        }
    }
}

fn is_off(node: &Node) -> bool {
    let status = node.status.as_ref();
    let mut conditions = status.into_iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let offered = status.and_then(|status| status.allocatable.as_ref());
    let offers =
        |(name, amount): (&str, &str)| offered.and_then(|list| list.get(name)).is_some_and(|held| held.0 == amount);
    !ready || !extended(node).all(offers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(status: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "hollow-1"}, "spec": {}, "status": status})).unwrap()
    }

    #[test]
    fn what_others_add_to_a_nodes_capacity_is_offered() {
        let fresh = node(json!({}));
        assert!(is_off(&fresh));
        let said = node(status(&fresh, 1));
        assert!(!is_off(&said));
        let mut added = status(&fresh, 1);
        added["capacity"]["example.com/foo"] = json!("5");
        let added = node(added);
        assert!(is_off(&added));
        assert_eq!(status(&added, 1)["allocatable"]["example.com/foo"], "5");
        assert!(!is_off(&node(status(&added, 1))));
    }

    #[test]
    fn blocks_of_addresses_do_not_overlap() {
        let blocks: std::collections::BTreeSet<u32> = (0..5000).map(block).collect();
        assert_eq!(blocks.len(), 5000);
        assert_eq!(Ipv4Addr::from(block(4999)).to_string(), "100.83.135.0");
    }
}
