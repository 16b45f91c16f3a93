//! Starting the parts: all in one process (`up`), or each in its own.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use kube::Client;
use proa_controllers::certificates::Authority;
use proa_crds::Family;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use warp::http;

use crate::cli;
use crate::kubeconfig::{AGENT, Access, COMMAND_LINE, CONTROLLERS, UserAgent};
use crate::node::ThisNode;
use crate::paths::{DataDir, Part, UNFINISHED};
use crate::progress::Progress;
use crate::{apply, identity, join, node, preflight, samples, store};

/// `proa up`: store, API server, controllers and agent in this process.
pub(crate) async fn up(args: cli::Up) -> anyhow::Result<()> {
    let progress = Progress::new();
    preflight::check_machine()?;
    let node_name = args.node.name.map_or_else(node::host_name, Ok)?;
    let parts = Parts::new();
    let control = ControlPlane::start(&args.server, &parts, &progress).await?;
    let _lock = control.data.lock(Part::Agent)?;

    let as_controllers = control.client(administrator("system:kube-controller-manager"), CONTROLLERS);
    let this_node = ThisNode {
        name: node_name.clone(),
        ip: control.node_ip,
        // Asked before the controllers start: then nobody assigns the same to another. Beside other API servers the
        // controllers that lead assign it.
        pod_cidr: if args.server.etcd.servers.is_empty() { node::first_block(&as_controllers).await? } else { None },
        registries: args.node.registries.into(),
    };
    parts.spawn("controllers", {
        let shutdown = parts.shutdown.clone();
        // The lock on the data directory lets one such process live at a time: the next one leads again at once.
        let mut options =
            controller_options(Family::Standard, control.ca(), format!("up-{node_name}"), &args.scheduler)?;
        let pki = control.server.pki();
        options.authority = Some(Arc::new(Authority::from_pem(pki.ca_pem(), pki.ca_key_pem())?));
        async move { Ok(proa_controllers::run(as_controllers, options, shutdown).await?) }
    });
    let tls = node::self_signed(&node_name, control.node_ip, control.ca())?;
    // The agent is a node like any other: what it may do, one on another machine may too.
    let client = control.client(proa_apiserver::User::node(&node_name), AGENT);
    let agent = node::config(client, Family::Standard, this_node, &control.data, tls, control.address).await?;
    let images = agent.images.clone();
    parts.spawn("agent", {
        let shutdown = parts.shutdown.clone();
        async move { Ok(proa_kubelet_agent::run(agent, shutdown).await?) }
    });
    tokio::task::spawn_blocking(move || samples::ensure(&images)).await??;
    progress.done("images", "example/echo v1, v2, broken");

    let client = control.client(administrator("system:admin"), COMMAND_LINE);
    parts
        .until_stopped(async {
            let outcome = match node_ready(&client, &node_name).await {
                Ok(()) => {
                    progress.done("node", format!("{node_name} is ready"));
                    apply::apply(&client, &args.apply, &progress).await
                }
                Err(error) => {
                    progress.failed(&format!("{error:#}"));
                    apply::Outcome { failed: true, ..Default::default() }
                }
            };
            let addresses = apply::answering_at(&client, &outcome.applied).await;
            announce(&progress, &control, &outcome, &addresses);
        })
        .await
}

/// `proa server`: the API server alone.
pub(crate) async fn server(args: cli::Server) -> anyhow::Result<()> {
    let progress = Progress::new();
    let parts = Parts::new();
    let control = ControlPlane::start(&args.server, &parts, &progress).await?;
    parts.until_stopped(async { announce(&progress, &control, &Default::default(), &[]) }).await
}

/// `proa controllers`: the loops and the scheduler, against any API server.
pub(crate) async fn controllers(args: cli::Controllers) -> anyhow::Result<()> {
    let access = Access::read(&args.kubeconfig)?;
    let client = access.client(CONTROLLERS).await?;
    let parts = Parts::new();
    let shutdown = parts.shutdown.clone();
    let host = node::host_name()?;
    let identity = identity::of_this_process(&host);
    let mut options =
        controller_options(args.family.into(), access.certificate_authority()?, identity, &args.scheduler)?;
    if let (Some(certificate), Some(key)) = (&args.cluster_signing_cert_file, &args.cluster_signing_key_file) {
        let read =
            |file: &PathBuf| std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
        let authority = Authority::from_pem(&read(certificate)?, &read(key)?);
        options.authority = Some(Arc::new(authority.with_context(|| certificate.display().to_string())?));
    }
    options.has_ended = Arc::new(move |holder| identity::has_ended(&host, holder));
    parts.spawn("controllers", async move { Ok(proa_controllers::run(client, options, shutdown).await?) });
    parts.until_stopped(async {}).await
}

/// `proa agent`: one node, against any API server.
pub(crate) async fn agent(args: cli::Agent) -> anyhow::Result<()> {
    if let Some(count) = args.hollow {
        return hollow(args, count).await;
    }
    preflight::check_machine()?;
    let data = DataDir::create(&args.data.data_dir)?;
    let _lock = data.lock(Part::Agent)?;
    let name = args.node.name.map_or_else(node::host_name, Ok)?;
    let parts = Parts::new();
    let (access, client) = match &args.kubeconfig {
        Some(file) => {
            let access = Access::read(file)?;
            let client = access.client(AGENT).await?;
            (access, client)
        }
        None => {
            let member = join::Member::new(data.agent_kubeconfig(), &name, &args.join).await?;
            let client = member.client();
            let access = Access::read(member.file())?;
            let shutdown = parts.shutdown.clone();
            parts.spawn("renewal of the node's certificate", async move {
                shutdown.run_until_cancelled(member.renew()).await;
                Ok(())
            });
            (access, client)
        }
    };
    let api = access.server()?;
    let this_node =
        ThisNode { name, ip: node::ip_towards(api.ip()), pod_cidr: None, registries: args.node.registries.into() };
    let tls = node::self_signed(&this_node.name, this_node.ip, access.certificate_authority()?)?;
    let config = node::config(client, args.family.into(), this_node, &data, tls, api).await?;
    let images = config.images.clone();
    let shutdown = parts.shutdown.clone();
    parts.spawn("agent", async move { Ok(proa_kubelet_agent::run(config, shutdown).await?) });
    tokio::task::spawn_blocking(move || samples::ensure(&images)).await??;
    parts.until_stopped(async {}).await
}

/// The loops of one family; `root_ca` is what pods shall trust the API server by, `identity` the name to lead under.
fn controller_options(
    family: Family,
    root_ca: String,
    identity: String,
    scheduler: &cli::Scheduler,
) -> anyhow::Result<proa_controllers::Options> {
    Ok(proa_controllers::Options {
        identity,
        scheduler: scheduler.config.as_deref().map_or_else(|| Ok(Default::default()), scheduler_configuration)?,
        root_ca: Some(root_ca),
        node_blocks: Some(node::blocks()?),
        ..proa_controllers::Options::new(family)
    })
}

fn scheduler_configuration(file: &Path) -> anyhow::Result<proa_controllers::scheduler::Configuration> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let documents =
        proa_apimachinery::yaml::from_yaml(&text).with_context(|| format!("{} is no YAML", file.display()))?;
    let [document] = documents.as_slice() else { anyhow::bail!("{} must hold one document", file.display()) };
    proa_controllers::scheduler::Configuration::from_value(document).with_context(|| file.display().to_string())
}

/// `proa agent --hollow N`: nodes that run nothing, without a directory, a runtime or a network.
async fn hollow(args: cli::Agent, count: u32) -> anyhow::Result<()> {
    let Some(file) = &args.kubeconfig else { anyhow::bail!("hollow nodes join nothing: give them a --kubeconfig") };
    let client = Access::read(file)?.client(AGENT).await?;
    let hollow = proa_kubelet_agent::hollow::Hollow {
        count,
        prefix: args.node.name.unwrap_or_else(|| "hollow".to_owned()),
        family: args.family.into(),
        zones: ZONES,
    };
    let parts = Parts::new();
    let shutdown = parts.shutdown.clone();
    parts.spawn("hollow nodes", async move {
        proa_kubelet_agent::hollow::run(client, hollow, shutdown).await;
        Ok(())
    });
    parts.until_stopped(async {}).await
}

/// Hollow nodes are spread over so many zones.
const ZONES: u32 = 10;

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
    async fn until_stopped(self, story: impl Future<Output = ()>) -> anyhow::Result<()> {
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
                () = &mut story, if !told => told = true,
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

/// How often the administrator's kubeconfig is written anew.
const ADMINISTRATOR_AGAIN: std::time::Duration = std::time::Duration::from_hours(30 * 24);

/// Store and API server, listening.
struct ControlPlane {
    data: DataDir,
    server: proa_apiserver::Server,
    /// Where clients, pods and other machines reach it.
    address: SocketAddr,
    node_ip: IpAddr,
    _lock: std::fs::File,
}

impl ControlPlane {
    async fn start(args: &cli::ServerArgs, parts: &Parts, progress: &Progress) -> anyhow::Result<ControlPlane> {
        let data = DataDir::create(&args.data.data_dir)?;
        let lock = data.lock(Part::Server)?;
        let listener: TcpListener = preflight::bind(args.listen).await?;
        let listen = listener.local_addr()?;
        let node_ip = node::ip_towards(listen.ip());
        let address = SocketAddr::new(node::advertised(listen.ip(), node_ip), listen.port());
        let (store, shared) = store::open(&data, &args.etcd).await?;
        let mut config = proa_apiserver::Config {
            listen: Some(listen),
            pki_dir: args.keys.pki_dir.clone(),
            shared,
            advertise: address.ip(),
            definitions: proa_crds::extension_definitions(),
            ..proa_apiserver::Config::new(data.root())
        };
        args.security.configure(&mut config)?;
        let server = proa_apiserver::Server::open(config, store).await.context("cannot start the API server")?;
        let url = format!("https://{address}");
        let files: Vec<PathBuf> = std::iter::once(data.admin_kubeconfig()).chain(args.kubeconfig.clone()).collect();
        let administrator = {
            let (server, url) = (server.clone(), url.clone());
            move || -> anyhow::Result<()> {
                let kubeconfig = server.kubeconfig(&url, "kubernetes-admin", &["system:masters"])?;
                files.iter().try_for_each(|file| write_private(file, kubeconfig.as_bytes()))
            }
        };
        administrator()?;
        parts.spawn("administrator's kubeconfig", {
            let shutdown = parts.shutdown.clone();
            async move {
                // Its certificate is good for a year: long before that the file has another.
                while shutdown.run_until_cancelled(tokio::time::sleep(ADMINISTRATOR_AGAIN)).await.is_some() {
                    administrator()?;
                }
                Ok(())
            }
        });
        parts.spawn("API server", {
            let (server, shutdown) = (server.clone(), parts.shutdown.clone());
            async move { Ok(server.serve(listener, shutdown).await?) }
        });
        progress.done("API server", &url);
        Ok(ControlPlane { data, server, address, node_ip, _lock: lock })
    }

    /// A client in this process: no socket, no TLS, the same code.
    fn client(&self, user: proa_apiserver::User, agent: UserAgent) -> Client {
        let service = self.server.local(user);
        let named = service.map_request(move |mut request: http::Request<_>| {
            request.headers_mut().insert(http::header::USER_AGENT, http::HeaderValue::from_static(agent.0));
            request
        });
        Client::new(named, "default")
    }
}

impl ControlPlane {
    fn ca(&self) -> String {
        self.server.pki().ca_pem().to_owned()
    }
}

fn administrator(name: &str) -> proa_apiserver::User {
    proa_apiserver::User::new(name, &["system:masters"])
}

/// The last words before the platform is the user's. What was asked for on the command line may have failed; the platform
/// itself is well, so that it can be looked at.
fn announce(progress: &Progress, control: &ControlPlane, outcome: &apply::Outcome, addresses: &[String]) {
    let without = if outcome.failed { ", but for what failed above" } else { "" };
    let mut text = format!("\nReady in {:.2} s{without}.", progress.elapsed().as_secs_f64());
    for address in addresses {
        text.push_str(&format!("  {address}"));
    }
    let kubeconfig = format!("export KUBECONFIG={}", control.data.admin_kubeconfig().display());
    let steps =
        [kubeconfig, "kubectl get pods -o wide".to_owned()].into_iter().chain(apply::next_steps(&outcome.applied));
    text.push_str("\n\n");
    for step in steps {
        text.push_str(&format!("  {step}\n"));
    }
    let data = control.data.root();
    let of_it =
        if data == Path::new(cli::DEFAULT_DATA_DIR) { "".into() } else { format!(" --data-dir {}", data.display()) };
    text.push_str(&format!("\nCtrl-C stops the control plane; containers keep running until `proa reset{of_it}`."));
    progress.say(&text);
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

/// Writes a file only its owner may read: it holds a private key.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let mut temporary: PathBuf = path.to_owned();
    temporary.as_mut_os_string().push(UNFINISHED);
    std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
