//! Owns the order in which an agent starts, and its end.

use std::sync::Arc;

use proa_crds::Family;
use proa_network::{Dns, DnsConfig, NetConfig, PodNetwork, ProxyConfig, ServiceProxy};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::events::{Recorder, Severity};
use crate::images::{ImageSource, Images};
use crate::node::{self, Registration, machine};
use crate::objects::Objects;
use crate::pods::context::{Context, DnsSettings, Registry};
use crate::pods::layout::Layout;
use crate::pods::ports::Ports;
use crate::pods::supervisor;
use crate::resolver::HostResolver;
use crate::server;
use crate::services::{Services, Settings};
use crate::store_images::StoreImages;
use crate::volumes::{self, local::LocalVolumes};

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The HTTPS API's address cannot be had.
    #[error("the agent cannot listen on {address}: {source}")]
    Listen {
        /// As configured.
        address: std::net::SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The certificates of the HTTPS API are not usable.
    #[error("the agent's certificates: {0}")]
    Tls(String),
    /// The pod network cannot be made.
    #[error("the pod network: {0}")]
    Network(#[from] proa_network::PodNetError),
    /// The service proxy cannot be made.
    #[error("the service proxy: {0}")]
    Proxy(#[from] proa_network::ProxyError),
    /// A directory cannot be made.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Runs a node until `shutdown`. Containers keep running after it: the next agent takes them back.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), AgentError> {
    let layout = Layout::new(&config.data_dir);
    std::fs::create_dir_all(layout.root())
        .map_err(|source| AgentError::Io { path: layout.root().display().to_string(), source })?;
    let local_volumes = LocalVolumes::open(&config.data_dir)
        .map_err(|source| AgentError::Io { path: config.data_dir.join("volumes").display().to_string(), source })?;
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|source| AgentError::Listen { address: config.listen, source })?;
    let port = listener.local_addr().map_or(config.listen.port(), |a| a.port());
    let acceptor = server::tls::acceptor(&config.tls).map_err(AgentError::Tls)?;

    let machine = machine::read(&config.data_dir);
    let fingerprint = server::tls::fingerprint(&config.tls).map_err(AgentError::Tls)?;
    // Claims are of the cluster the node is a node of.
    let volumes = (config.family == Family::Standard).then(|| local_volumes.root().to_owned());
    let registration =
        Registration::new(config.client.clone(), config.family, &config.node_name, fingerprint, volumes.as_deref());
    let labels = node::labels(&config.node_name, &config.node_labels);
    let registered = tokio::select! {
        node = registration.register(labels.clone(), config.network.pod_cidr) => node,
        () = shutdown.cancelled() => return Ok(()),
    };
    let pod_cidr = match node::block(&registered).or(config.network.pod_cidr) {
        Some(cidr) => cidr,
        None => tokio::select! {
            cidr = registration.pod_cidr() => cidr,
            () = shutdown.cancelled() => return Ok(()),
        },
    };

    let net = &config.network;
    let network = PodNetwork::open(NetConfig {
        state_dir: config.data_dir.join("network"),
        instance: net.instance.clone(),
        pod_cidr,
        cluster_cidr: net.cluster_cidr,
        service_cidr: Some(net.service_cidr),
        mtu: net.mtu,
    })?;
    let proxy = ServiceProxy::open(ProxyConfig {
        instance: net.instance.clone(),
        pod_cidr,
        cluster_cidr: net.cluster_cidr,
        service_cidr: Some(net.service_cidr),
    })?;
    let recorder = Recorder::start(config.client.clone(), &config.node_name, &config.family.pod().api_version);
    let services = Services::new(Settings {
        node_name: config.node_name.clone(),
        domain: net.cluster_domain.clone(),
        answered_here: vec![net.cluster_dns],
        api_address: config.api_address.clone(),
    });
    services.start(config.client.clone(), config.family, Arc::new(proxy), shutdown.clone());
    serve_dns(&config, &network, &services, &recorder, &shutdown).await;
    let out_of_date = Arc::new(tokio::sync::Notify::new());
    tokio::spawn(node::peers::follow(
        config.client.clone(),
        config.family,
        node::peers::Own { name: config.node_name.clone(), ip: config.node_ip },
        network.clone(),
        services.clone(),
        out_of_date.clone(),
        shutdown.clone(),
    ));

    let source: Arc<dyn ImageSource> = Arc::new(StoreImages::new(config.images.clone()));
    let ctx = Arc::new(Context {
        client: config.client.clone(),
        family: config.family,
        node_name: config.node_name.clone(),
        host_ips: vec![config.node_ip.to_string()],
        instance: net.instance.clone(),
        layout,
        local_volumes,
        runtime: config.runtime.clone(),
        images: Images::new(source.clone()),
        network: Arc::new(network),
        objects: Objects::new(config.client.clone()),
        recorder: recorder.clone(),
        services: services.clone(),
        dns: DnsSettings { server: net.cluster_dns, domain: net.cluster_domain.clone(), host: HostResolver::default() },
        allocatable: node::capacity(&machine),
        memory_capacity: i64::try_from(machine.memory_bytes).unwrap_or(i64::MAX),
        registry: Registry::default(),
        host_ports: Ports::default(),
    });
    let mut facts = node::Facts {
        name: config.node_name.clone(),
        addresses: vec![config.node_ip.to_string()],
        port,
        labels,
        pod_cidr: Some(pod_cidr),
        data_dir: config.data_dir.clone(),
        pressure: machine::pressure(&config.data_dir),
        machine,
        images: Vec::new(),
        image_source: source,
    };
    facts.refresh().await;
    recorder.node(&config.node_name, Severity::Normal, "Starting", "Starting kubelet.");
    tokio::spawn(registration.keep_alive(facts, out_of_date, shutdown.clone()));
    if config.family == Family::Standard {
        tokio::spawn(volumes::local::run(ctx.clone(), shutdown.clone()));
    }
    tokio::spawn(server::serve(ctx.clone(), listener, acceptor, shutdown.clone()));
    tokio::spawn(server::rotation::run(ctx.clone(), shutdown.clone()));
    tokio::select! {
        () = services.listed() => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    supervisor::run(ctx, shutdown).await;
    Ok(())
}

/// The node answers the cluster's names itself. A port that is taken costs names, not pods: it is said, once.
async fn serve_dns(
    config: &Config,
    network: &PodNetwork,
    services: &Services,
    recorder: &Recorder,
    shutdown: &CancellationToken,
) {
    let address = config.network.cluster_dns;
    let complain = |why: String| {
        tracing::error!(why, "cluster DNS does not answer on this node");
        recorder.node(&config.node_name, Severity::Warning, "DNSUnavailable", why);
    };
    if let Err(error) = network.add_local_address(address).await {
        return complain(error.to_string());
    }
    let dns = DnsConfig {
        listen: vec![std::net::SocketAddr::new(address, 53)],
        upstream: HostResolver::default().upstream(address),
    };
    match Dns::bind(dns, services.zone()).await {
        Ok(dns) => {
            tokio::spawn(dns.serve(shutdown.clone()));
        }
        Err(error) => complain(error.to_string()),
    }
}
