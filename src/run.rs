//! Starting the parts: all in one process (`up`), or each in its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use kube::Client;
use proa_crds::Family;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli;
use crate::paths::{DataDir, Part};
use crate::progress::Progress;
use crate::{apply, identity, node, preflight, samples};

/// `proa up`: store, API server, controllers and agent in this process.
pub(crate) async fn up(args: cli::Up) -> anyhow::Result<()> {
    let progress = Progress::new();
    preflight::check_machine()?;
    let node_name = args.node_name.map_or_else(node::host_name, Ok)?;
    let parts = Parts::new();
    let control = ControlPlane::start(&args.server, &parts, &progress).await?;
    let _lock = control.data.lock(Part::Agent)?;

    parts.spawn("controllers", {
        let (client, shutdown) = (control.client("system:kube-controller-manager")?, parts.shutdown.clone());
        // The lock on the data directory lets one such process live at a time: the next one leads again at once.
        let options = controller_options(Family::Standard, control.ca(), format!("up-{node_name}"));
        async move { Ok(proa_controllers::run(client, options, shutdown).await?) }
    });
    let tls = {
        let ip = node::node_ip();
        let identity = control.server.pki().server(
            &format!("system:node:{node_name}"),
            std::slice::from_ref(&node_name),
            &[ip],
        )?;
        proa_kubelet_agent::Tls { certificate: identity.certificate, key: identity.key, client_ca: control.ca() }
    };
    // The agent is a node like any other: what it may do, one on another machine may too.
    let as_node = control.server.local(proa_apiserver::User::node(&node_name));
    let agent = node::config(
        Client::new(as_node, "default"),
        Family::Standard,
        node_name.clone(),
        &control.data,
        tls,
        control.address,
    )
    .await?;
    let images = agent.images.clone();
    parts.spawn("agent", {
        let shutdown = parts.shutdown.clone();
        async move { Ok(proa_kubelet_agent::run(agent, shutdown).await?) }
    });
    tokio::task::spawn_blocking(move || samples::ensure(&images)).await??;
    progress.done("images", "example/echo v1, v2, broken");

    parts
        .until_stopped(async {
            let client = control.client("system:admin")?;
            node_ready(&client, &node_name).await?;
            progress.done("node", format!("{node_name} is ready"));
            let mut applied = Vec::new();
            for file in &args.apply {
                applied.extend(apply::apply(&client, file, &progress).await?);
            }
            announce(&progress, &control, &apply::answering_at(&client, &applied).await);
            Ok(())
        })
        .await
}

/// `proa server`: the API server alone.
pub(crate) async fn server(args: cli::Server) -> anyhow::Result<()> {
    let progress = Progress::new();
    let parts = Parts::new();
    let control = ControlPlane::start(&args.server, &parts, &progress).await?;
    parts
        .until_stopped(async {
            announce(&progress, &control, &[]);
            Ok(())
        })
        .await
}

/// `proa controllers`: the loops and the scheduler, against any API server.
pub(crate) async fn controllers(args: cli::Controllers) -> anyhow::Result<()> {
    let client = client_from(&args.kubeconfig).await?;
    let parts = Parts::new();
    let shutdown = parts.shutdown.clone();
    let host = node::host_name()?;
    let identity = identity::of_this_process(&host);
    let mut options = controller_options(args.family.into(), node::certificate_authority(&args.kubeconfig)?, identity);
    options.has_ended = Arc::new(move |holder| identity::has_ended(&host, holder));
    parts.spawn("controllers", async move { Ok(proa_controllers::run(client, options, shutdown).await?) });
    parts.until_stopped(async { Ok(()) }).await
}

/// `proa agent`: one node, against any API server.
pub(crate) async fn agent(args: cli::Agent) -> anyhow::Result<()> {
    preflight::check_machine()?;
    preflight::create_data_dir(&args.data.data_dir)?;
    let data = DataDir::new(&args.data.data_dir)?;
    let _lock = data.lock(Part::Agent)?;
    let client = client_from(&args.kubeconfig).await?;
    let node_name = args.node_name.map_or_else(node::host_name, Ok)?;
    let authority = node::certificate_authority(&args.kubeconfig)?;
    let api = api_address(&args.kubeconfig)?;
    let parts = Parts::new();
    let tls = node::self_signed(&node_name, authority)?;
    let config = node::config(client, args.family.into(), node_name, &data, tls, api).await?;
    let images = config.images.clone();
    let shutdown = parts.shutdown.clone();
    parts.spawn("agent", async move { Ok(proa_kubelet_agent::run(config, shutdown).await?) });
    tokio::task::spawn_blocking(move || samples::ensure(&images)).await??;
    parts.until_stopped(async { Ok(()) }).await
}

/// The loops of one family; `root_ca` is what pods shall trust the API server by, `identity` the name to lead under.
fn controller_options(family: Family, root_ca: String, identity: String) -> proa_controllers::Options {
    proa_controllers::Options { identity, root_ca: Some(root_ca), ..proa_controllers::Options::new(family) }
}

/// Tasks that make up this process; when one ends by itself, the process ends with its error.
struct Parts {
    shutdown: CancellationToken,
    tasks: std::sync::Mutex<JoinSet<(&'static str, anyhow::Result<()>)>>,
}

impl Parts {
    fn new() -> Parts {
        Parts { shutdown: CancellationToken::new(), tasks: std::sync::Mutex::default() }
    }

    fn spawn(&self, name: &'static str, part: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        tasks.spawn(async move { (name, part.await) });
    }

    /// Runs `story` beside the parts, then stays until SIGINT or SIGTERM or until a part fails; stops all of them cleanly.
    async fn until_stopped(self, story: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        let mut tasks = self.tasks.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut story = std::pin::pin!(story);
        let mut told = false;
        let outcome = loop {
            tokio::select! {
                _ = interrupt.recv() => break Ok(()),
                _ = terminate.recv() => break Ok(()),
                Some(ended) = tasks.join_next() => break Err(part_ended(ended)),
                result = &mut story, if !told => match result {
                    Ok(()) => told = true,
                    // What was asked for on the command line failed; the platform itself is well and goes on, so that it can be looked at.
                    Err(error) => {
                        eprintln!("proa: {error:#}");
                        told = true;
                    }
                },
            }
        };
        self.shutdown.cancel();
        let drained = tokio::time::timeout(STOP_WITHIN, async { while tasks.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!("parts did not stop within {STOP_WITHIN:?}");
        }
        outcome
    }
}

/// Well under the two seconds promised for Ctrl-C.
const STOP_WITHIN: std::time::Duration = std::time::Duration::from_millis(1500);

fn part_ended(ended: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok((name, Ok(()))) => anyhow::anyhow!("the {name} ended"),
        Ok((name, Err(error))) => error.context(format!("the {name} failed")),
        Err(panic) => anyhow::anyhow!("a part of the platform crashed: {panic}"),
    }
}

/// Store and API server, listening.
struct ControlPlane {
    data: DataDir,
    server: proa_apiserver::Server,
    address: SocketAddr,
    _lock: std::fs::File,
}

impl ControlPlane {
    async fn start(args: &cli::ServerArgs, parts: &Parts, progress: &Progress) -> anyhow::Result<ControlPlane> {
        preflight::create_data_dir(&args.data.data_dir)?;
        let data = DataDir::new(&args.data.data_dir)?;
        let lock = data.lock(Part::Server)?;
        let listener: TcpListener = preflight::bind(args.listen).await?;
        let listen = listener.local_addr()?;
        let store = proa_store::Embedded::open(&data.store(), proa_store::Options::default())
            .await
            .with_context(|| format!("cannot open the store in {}", data.store().display()))?;
        let config = proa_apiserver::Config { listen: Some(listen), ..proa_apiserver::Config::new(data.root()) };
        let server =
            proa_apiserver::Server::open(config, Arc::new(store)).await.context("cannot start the API server")?;
        let url = format!("https://{listen}");
        let kubeconfig = server.kubeconfig(&url, "kubernetes-admin", &["system:masters"])?;
        write_private(&data.admin_kubeconfig(), &kubeconfig)?;
        if let Some(file) = &args.kubeconfig {
            write_private(file, &kubeconfig)?;
        }
        parts.spawn("API server", {
            let (server, shutdown) = (server.clone(), parts.shutdown.clone());
            async move { Ok(server.serve(listener, shutdown).await?) }
        });
        progress.done("API server", &url);
        Ok(ControlPlane { data, server, address: listen, _lock: lock })
    }

    /// A client in this process: no socket, no TLS, the same code.
    fn client(&self, user: &str) -> anyhow::Result<Client> {
        let service = self.server.local(proa_apiserver::User::new(user, &["system:masters"]));
        Ok(Client::new(service, "default"))
    }
}

impl ControlPlane {
    fn ca(&self) -> String {
        self.server.pki().ca_pem().to_owned()
    }
}

/// The last words before the platform is the user's.
fn announce(progress: &Progress, control: &ControlPlane, addresses: &[String]) {
    let mut text = format!("\nReady in {:.2} s.", progress.elapsed().as_secs_f64());
    for address in addresses {
        text.push_str(&format!("  {address}"));
    }
    text.push_str(&format!(
        "\n\n  export KUBECONFIG={}\n  kubectl get pods -o wide\n",
        control.data.admin_kubeconfig().display()
    ));
    if !addresses.is_empty() {
        text.push_str(
            "  kubectl set image deployment/web echo=example/echo:v2 && kubectl rollout status deployment/web\n  kubectl rollout undo deployment/web\n",
        );
    }
    text.push_str("\nCtrl-C stops the control plane; containers keep running until `proa reset`.");
    progress.say(&text);
}

/// Where pods reach the API server when no `kubernetes` Service says so.
fn api_address(kubeconfig: &Path) -> anyhow::Result<SocketAddr> {
    use std::net::ToSocketAddrs;
    let file = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let server =
        file.clusters.into_iter().find_map(|named| named.cluster?.server).context("the kubeconfig names no server")?;
    let url: warp::http::Uri = server.parse().with_context(|| format!("{server:?} is no URL"))?;
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let found =
        (host, url.port_u16().unwrap_or(443)).to_socket_addrs().with_context(|| format!("cannot find {host}"))?.next();
    found.with_context(|| format!("{host} has no address"))
}

async fn node_ready(client: &Client, name: &str) -> anyhow::Result<()> {
    use k8s_openapi::api::core::v1::Node;
    use kube::runtime::wait::{Condition, await_condition};
    fn ready() -> impl Condition<Node> {
        |node: Option<&Node>| {
            node.and_then(|node| node.status.as_ref())
                .into_iter()
                .flat_map(|status| status.conditions.iter().flatten())
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        }
    }
    await_condition(kube::Api::<Node>::all(client.clone()), name, ready())
        .await
        .context("the node did not become ready")?;
    Ok(())
}

pub(crate) async fn client_from(kubeconfig: &Path) -> anyhow::Result<Client> {
    let file = kube::config::Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("cannot read the kubeconfig {}", kubeconfig.display()))?;
    let config = kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
        .await
        .with_context(|| format!("{} is not a usable kubeconfig", kubeconfig.display()))?;
    Ok(Client::try_from(config)?)
}

/// Writes a file only its owner may read: it holds a private key.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let mut temporary: PathBuf = path.to_owned();
    temporary.as_mut_os_string().push(".new");
    std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
