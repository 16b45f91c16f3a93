//! What an agent on this machine is told: names, addresses, directories, certificates.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use kube::Client;
use proa_crds::Family;
use proa_kubelet_agent::{Config, NetworkConfig, Tls};
use proa_network::Cidr;

use crate::paths::DataDir;

/// Addresses of all pods and of all services, as most clusters have them, and the DNS service in the latter.
const CLUSTER_CIDR: &str = "10.244.0.0/16";
const NODE_CIDR: &str = "10.244.0.0/24";
const SERVICE_CIDR: &str = "10.96.0.0/16";
const CLUSTER_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
const CLUSTER_DOMAIN: &str = "cluster.local";

/// The agent of this machine.
///
/// # Errors
/// When the image store or the runtime's directory cannot be used.
pub(crate) async fn config(
    client: Client,
    family: Family,
    node_name: String,
    data: &DataDir,
    tls: Tls,
    api: SocketAddr,
) -> anyhow::Result<Config> {
    let data_dir = data.create_agent().with_context(|| format!("cannot create {}", data.agent().display()))?;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let runtime =
        proa_runtime::Embedded::open(&data.runtime(), program).await.context("cannot open the container runtime")?;
    let images = proa_images::ImageStore::open(&data.images(), proa_images::Options::default())
        .context("cannot open the image store")?;
    let node_ip = node_ip();
    Ok(Config {
        client,
        family,
        node_ip,
        node_labels: Default::default(),
        data_dir,
        runtime: Arc::new(runtime),
        images: Arc::new(images),
        network: NetworkConfig {
            instance: data.instance(),
            pod_cidr: Some(NODE_CIDR.parse::<Cidr>()?),
            cluster_cidr: CLUSTER_CIDR.parse()?,
            service_cidr: SERVICE_CIDR.parse()?,
            mtu: None,
            cluster_dns: CLUSTER_DNS,
            cluster_domain: CLUSTER_DOMAIN.into(),
        },
        listen: SocketAddr::new(node_ip, 0),
        tls,
        api_address: (api.ip().to_string(), api.port()),
        node_name,
    })
}

/// The address this machine would use to reach others; loopback where there is no way out.
pub(crate) fn node_ip() -> IpAddr {
    // Connecting a UDP socket sends nothing: it asks the kernel which source address it would take (TEST-NET-2, RFC 5737).
    let asked = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9))?;
        socket.local_addr()
    });
    asked.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}

/// The agent's HTTPS certificate: signed by itself, as a kubelet's is by default. What guards the agent is the *client*
/// certificate it asks for.
pub(crate) fn self_signed(node_name: &str, client_ca: String) -> anyhow::Result<Tls> {
    let made = rcgen::generate_simple_self_signed(vec![node_name.to_owned(), node_ip().to_string()])?;
    Ok(Tls { certificate: made.cert.pem(), key: made.signing_key.serialize_pem(), client_ca })
}

/// The certificate authority a kubeconfig names: whose client certificates the agent's API lets in.
pub(crate) fn certificate_authority(kubeconfig: &Path) -> anyhow::Result<String> {
    let file = kube::config::Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("cannot read the kubeconfig {}", kubeconfig.display()))?;
    let cluster = file.clusters.into_iter().find_map(|named| named.cluster).unwrap_or_default();
    if let Some(data) = cluster.certificate_authority_data {
        use base64::Engine;
        let pem = base64::engine::general_purpose::STANDARD
            .decode(data)
            .context("certificate-authority-data is no base64")?;
        return String::from_utf8(pem).context("certificate-authority-data is no PEM text");
    }
    match cluster.certificate_authority {
        Some(path) => std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}")),
        None => {
            bail!("{} names no certificate authority: the agent would not know whom to let in", kubeconfig.display())
        }
    }
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
