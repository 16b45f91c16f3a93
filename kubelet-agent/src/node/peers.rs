//! Owns the knowledge of the other nodes: their addresses and pods, given to the overlay network as they change.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::Api;
use kube::runtime::watcher;
use proa_crds::{Decoded, Family, Node};
use proa_network::PodNetwork;
use proa_network::pod::Peer;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::services::Services;
use crate::watches::watch;

/// The part of a Node the overlay needs; `None` while it is not complete.
fn peer(node: &Node) -> Option<Peer> {
    let pod_cidr = super::block(node)?;
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let node = addresses.iter().find(|a| a.type_ == "InternalIP")?.address.parse().ok()?;
    Some(Peer { node, pod_cidr })
}

/// The node whose agent this is.
pub(crate) struct Own {
    pub(crate) name: String,
    pub(crate) ip: IpAddr,
}

/// Follows the nodes until `shutdown`; `out_of_date` is told when the own one offers other extended resources than it has,
/// `services` whether other nodes send packets to pods here.
pub(crate) async fn follow(
    client: kube::Client,
    family: Family,
    Own { name: own_name, ip: own_ip }: Own,
    network: PodNetwork,
    services: Services,
    out_of_date: Arc<Notify>,
    shutdown: CancellationToken,
) {
    let mut events = watch(Api::all_with(client, &family.node()), watcher::Config::default());
    let mut nodes: BTreeMap<String, Peer> = BTreeMap::new();
    let mut listing = None;
    let mut known: Vec<Peer> = Vec::new();
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => event,
        };
        let learn = |map: &mut BTreeMap<String, Peer>, node: &Node| {
            let name = node.metadata.name.clone().unwrap_or_default();
            if name == own_name && super::status::is_out_of_date(node.status.as_ref()) {
                out_of_date.notify_one();
            }
            // Two nodes at one address (several on a test machine) need no tunnel.
            match peer(node).filter(|p| name != own_name && p.node != own_ip) {
                Some(peer) => map.insert(name, peer),
                None => map.remove(&name),
            };
        };
        match event {
            None => return,
            Some(Err(error)) => {
                tracing::debug!(%error, "watch of nodes failed; trying again");
                continue;
            }
            Some(Ok(watcher::Event::Init)) => listing = Some(BTreeMap::new()),
            Some(Ok(watcher::Event::InitApply(node) | watcher::Event::Apply(node))) => match node.decode() {
                Decoded::Object(node) => learn(listing.as_mut().unwrap_or(&mut nodes), &node),
                Decoded::Undecodable(unread) => {
                    let name = unread.metadata.name.unwrap_or_default();
                    tracing::warn!(name, error = unread.error, "this node cannot be read and is left as it was");
                    if let (Some(listing), Some(held)) = (&mut listing, nodes.get(&name)) {
                        listing.insert(name, *held);
                    }
                }
            },
            Some(Ok(watcher::Event::InitDone)) => nodes = listing.take().unwrap_or_default(),
            Some(Ok(watcher::Event::Delete(node))) => {
                nodes.remove(node.metadata().name.as_deref().unwrap_or_default());
            }
        }
        if listing.is_some() {
            continue;
        }
        let peers: Vec<Peer> = nodes.values().copied().collect();
        services.set_alone(peers.is_empty());
        // A single node never touches the overlay.
        while peers != known {
            match network.set_peers(own_ip, peers.clone()).await {
                Ok(()) => known.clone_from(&peers),
                Err(error) => {
                    tracing::warn!(%error, "the overlay to other nodes could not be set up; trying again");
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    if shutdown.is_cancelled() {
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_peer_has_an_address_and_pods() {
        let node = |spec: serde_json::Value, status: serde_json::Value| -> Option<Peer> {
            peer(&serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec, "status": status})).unwrap())
        };
        let status = json!({"addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "192.0.2.7"}]});
        let found = node(json!({"podCIDR": "10.244.1.0/24"}), status.clone()).unwrap();
        assert_eq!((found.node.to_string(), found.pod_cidr.to_string()), ("192.0.2.7".into(), "10.244.1.0/24".into()));
        assert!(node(json!({}), status).is_none());
        assert!(node(json!({"podCIDR": "10.244.1.0/24"}), json!({})).is_none());
    }
}
