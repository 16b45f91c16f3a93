//! What an agent on this machine is told: names, addresses, directories, certificates.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, ListParams};
use proa_controllers::Blocks;
use proa_crds::Family;
use proa_kubelet_agent::{Config, NetworkConfig, Tls};
use proa_network::Cidr;

use crate::paths::DataDir;

/// Addresses of all pods and of all services, as most clusters have them, and the DNS service in the latter.
const CLUSTER_CIDR: &str = "10.244.0.0/16";
/// Of these addresses a node gets 256.
const NODE_PREFIX: u8 = 24;
const SERVICE_CIDR: &str = "10.96.0.0/16";
const CLUSTER_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
const CLUSTER_DOMAIN: &str = "cluster.local";

/// What tells one machine's agent from another's.
pub(crate) struct ThisNode {
    pub(crate) name: String,
    /// Under which the other machines find this one.
    pub(crate) ip: IpAddr,
    /// `None` waits for the controllers to assign a block.
    pub(crate) pod_cidr: Option<Cidr>,
    pub(crate) registries: proa_images::Options,
}

/// The agent of this machine.
///
/// # Errors
/// When the image store or the runtime's directory cannot be used.
pub(crate) async fn config(
    client: Client,
    family: Family,
    node: ThisNode,
    data: &DataDir,
    tls: Tls,
    api: SocketAddr,
) -> anyhow::Result<Config> {
    let data_dir = data.create_agent().with_context(|| format!("cannot create {}", data.agent().display()))?;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let group = proa_kubelet_agent::cgroup_root(&data.instance());
    let runtime = proa_runtime::Embedded::open(&data.runtime(), program, &group)
        .await
        .context("cannot open the container runtime")?;
    let images =
        proa_images::ImageStore::open(&data.images(), node.registries).context("cannot open the image store")?;
    Ok(Config {
        client,
        family,
        node_ip: node.ip,
        node_labels: Default::default(),
        data_dir,
        runtime: Arc::new(runtime),
        images: Arc::new(images),
        network: NetworkConfig {
            instance: data.instance(),
            pod_cidr: node.pod_cidr,
            cluster_cidr: CLUSTER_CIDR.parse()?,
            service_cidr: SERVICE_CIDR.parse()?,
            mtu: None,
            cluster_dns: CLUSTER_DNS,
            cluster_domain: CLUSTER_DOMAIN.into(),
        },
        listen: SocketAddr::new(node.ip, 0),
        tls,
        api_address: (api.ip().to_string(), api.port()),
        node_name: node.name,
    })
}

/// The cluster's pod addresses, to be divided among its nodes.
pub(crate) fn blocks() -> anyhow::Result<Blocks> {
    let cluster: Cidr = CLUSTER_CIDR.parse()?;
    Blocks::new(cluster.base(), cluster.prefix(), NODE_PREFIX).context("the pod addresses cannot be divided")
}

/// The block of the first node of a cluster, which then need not wait for the controllers to assign one; `None` when
/// there is a node already.
///
/// # Errors
/// When the API server does not answer.
pub(crate) async fn first_block(client: &Client) -> anyhow::Result<Option<Cidr>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let alone = nodes.list_metadata(&ListParams::default().limit(1)).await?.items.is_empty();
    Ok(if alone { blocks()?.get(0).and_then(|(base, prefix)| Cidr::new(base, prefix)) } else { None })
}

/// The address under which others reach what listens at `listen`: this node's when it is any.
pub(crate) fn advertised(listen: IpAddr, node: IpAddr) -> IpAddr {
    if listen.is_unspecified() { node } else { listen }
}

/// The address under which other machines find the one that is to talk with `peer`.
pub(crate) fn ip_towards(peer: IpAddr) -> IpAddr {
    // TEST-NET-2 (RFC 5737) stands for all that is not this machine.
    let anywhere = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
    let peer = if peer.is_loopback() || peer.is_unspecified() { anywhere } else { peer };
    // Connecting a UDP socket sends nothing: it asks the kernel which source address it would take.
    let any = if peer.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let asked = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((peer, 9))?;
        socket.local_addr()
    });
    asked.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}

/// The agent's HTTPS certificate: signed by itself, as a kubelet's is by default. What guards the agent is the *client*
/// certificate it asks for.
pub(crate) fn self_signed(node_name: &str, ip: IpAddr, client_ca: String) -> anyhow::Result<Tls> {
    let made = rcgen::generate_simple_self_signed(vec![node_name.to_owned(), ip.to_string()])?;
    Ok(Tls { certificate: made.cert.pem(), key: made.signing_key.serialize_pem(), client_ca })
}

/// The node's name when none is given: the host's.
pub(crate) fn host_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .context("cannot read the host name: give one with --node-name")?;
    let name = name.trim().to_lowercase();
    if proa_apimachinery::names::is_dns1123_subdomain(&name).is_empty() {
        Ok(name)
    } else {
        bail!("the host name {name:?} cannot be a node's name (DNS-1123 wanted): give one with --node-name")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn pods_and_other_machines_find_the_api_server_where_it_listens() {
        let node = ip("192.0.2.7");
        assert_eq!(advertised(ip("0.0.0.0"), node), node);
        assert_eq!(advertised(ip("192.0.2.9"), node), ip("192.0.2.9"));
        assert_eq!(advertised(ip("127.0.0.1"), node), ip("127.0.0.1"), "on this machine alone");
    }

    #[test]
    fn the_first_block_is_what_the_controllers_would_give_first() {
        let (base, prefix) = blocks().expect("blocks").get(0).expect("one");
        assert_eq!(Cidr::new(base, prefix).expect("a block").to_string(), "10.244.0.0/24");
    }
}
