//! Opening and running a server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use futures::StreamExt;
use proa_apimachinery::object::Object;
use proa_store::Log;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admission::hooks::Hooks;
use crate::admission::policy::Policies;
use crate::agents::Agents;
use crate::aggregation::{Aggregation, availability, registration};
use crate::allocate::{Allocators, Around};
use crate::audit::Audit;
use crate::audit::policy::Policy;
use crate::audit::sink::Sink;
use crate::authn::oidc::{Issuers, Settings};
use crate::cache::{Caches, LoadError};
use crate::config::{AuditOptions, Authentication, Config, Shared};
use crate::core::Core;
use crate::encryption::{EncryptedLog, Encryption};
use crate::local::LocalService;
use crate::pki::{Identity, Pki, PkiError};
use crate::registry::meta;
use crate::resources::{Resource, Resources};
use crate::tokens::{TokenError, Tokens};
use crate::user::{MASTERS, User};
use crate::{accept, bootstrap, crd, expiry, kinds, members, reload};

/// Why a server could not be opened or served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The keys.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The keys of service-account tokens.
    #[error(transparent)]
    Tokens(#[from] TokenError),
    /// The store belongs to a cluster with other keys.
    #[error(
        "the store belongs to a cluster with other keys than those in {directory}: copy the pki directory of one of its API servers there, or name it with --pki-dir"
    )]
    OtherKeys {
        /// Where ours are.
        directory: String,
    },
    /// A configuration file.
    #[error("{path}: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The objects every cluster starts with cannot be written.
    #[error("writing the first objects: {0}")]
    Bootstrap(String),
}

/// An API server over a store.
#[derive(Clone)]
pub struct Server {
    pub(crate) core: Arc<Core>,
}

impl Server {
    /// Opens a server: keys, caches, the objects every cluster starts with, custom resources.
    pub async fn open(config: Config, log: Arc<dyn Log>) -> Result<Server, Error> {
        let pki = Arc::new(Pki::open(&config.pki(), config.clock.clone())?);
        let stop = CancellationToken::new();
        let encryption = config.encryption.as_deref().map(encryption).transpose()?;
        let encrypted = encryption.map(|keys| Arc::new(EncryptedLog::new(Arc::clone(&log), keys)));
        let log: Arc<dyn Log> = match &encrypted {
            Some(encrypted) => Arc::clone(encrypted) as Arc<dyn Log>,
            None => log,
        };
        let audit = config.audit.as_ref().map(|options| audit(options, &config)).transpose()?;
        let caches = Caches::load(Arc::clone(&log), stop.clone()).await?;
        let tokens = Tokens::new(pki.service_account_key(), &config.tokens, &config.cluster_domain)?;
        let settings = settings(&config.authentication, tokens.issuers())?;
        let allocators = Allocators::new(config.service_cidr, config.node_port_range.clone());
        if config.shared == Shared::Yes {
            members::same_keys(&*log, &pki).await?;
        }
        let now = meta::time(config.clock.now());
        let around = Around { caches: &caches, entropy: &config.entropy, now: &now };
        allocators.repair(&*log, &around).await.map_err(|error| Error::Bootstrap(error.to_string()))?;
        caches.consistent().await.map_err(|error| Error::Bootstrap(error.to_string()))?;
        let core = Arc::new(Core {
            resources: Resources::new(&caches, kinds::builtin().into_iter().chain(kinds::metrics::kinds()).collect()),
            agents: Agents::new(&pki, config.clock.clone())?,
            config,
            log,
            rbac: Default::default(),
            node_pods: Default::default(),
            pki,
            tokens,
            allocators,
            metrics: Default::default(),
            openapi: Default::default(),
            definitions: Default::default(),
            quota_turns: Default::default(),
            usage: Default::default(),
            flow: Default::default(),
            aggregation: Aggregation::new(&caches),
            issuers: ArcSwap::from_pointee(Issuers::new(settings)),
            audit,
            encrypted,
            hooks: Hooks::new(&caches),
            policies: Policies::new(&caches),
            outgoing: Default::default(),
            open: Default::default(),
            caches,
            stop,
        });
        let server = Server { core };
        first_objects(&server).await?;
        crd::load(&server.core);
        server.core.open.store(true, Ordering::Release);
        tokio::spawn(crd::follow(Arc::clone(&server.core)));
        tokio::spawn(availability::follow(Arc::clone(&server.core)));
        tokio::spawn(registration::follow(Arc::clone(&server.core)));
        tokio::spawn(expiry::run(Arc::clone(&server.core)));
        tokio::spawn(Allocators::keep(Arc::clone(&server.core)));
        if server.core.config.shared == Shared::Yes {
            tokio::spawn(members::run(server.clone()));
        }
        server.follow_files();
        Ok(server)
    }

    /// Serves HTTPS on a listener until `shutdown`; then ends watches, lets open requests end, and returns.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
        let (server, bound) = (self.clone(), listener.local_addr().ok().map(|address| address.ip()));
        let clock = self.core.config.clock.clone();
        let tls = accept::acceptor(&self.core.pki, clock, move || server.serving_identity(bound))?;
        let core = Arc::clone(&self.core);
        // Watches would keep their connections open for ever: they end when the server is told to.
        let closing = shutdown.clone();
        let stop = core.stop.clone();
        let ends = tokio::spawn(async move {
            closing.cancelled().await;
            stop.cancel();
        });
        accept::serve(core, listener, tls, shutdown).await;
        ends.abort();
        Ok(())
    }

    /// A client's view of this server without a socket.
    pub fn local(&self, user: User) -> LocalService {
        LocalService::new(Arc::clone(&self.core), user)
    }

    /// A kubeconfig with a client certificate made on the spot.
    pub fn kubeconfig(&self, server_url: &str, user: &str, groups: &[&str]) -> Result<String, Error> {
        Ok(self.core.pki.kubeconfig(server_url, user, groups)?)
    }

    /// The keys: the CA, certificates for agents.
    pub fn pki(&self) -> &Pki {
        &self.core.pki
    }

    /// Ends watches and background tasks. What was acknowledged is in the store.
    pub fn close(&self) {
        self.core.stop.cancel();
    }

    /// Takes up configuration files when they change.
    fn follow_files(&self) {
        let core = &self.core;
        if let Authentication::File(file) = &core.config.authentication {
            let (path, server) = (file.clone(), self.clone());
            let taken_up = move |contents: &[Vec<u8>]| {
                for file in contents {
                    match Settings::parse(file, server.core.tokens.issuers()) {
                        Ok(settings) => {
                            server.core.issuers.store(Arc::new(Issuers::new(settings)));
                            tracing::info!(file = %path.display(), "the authentication configuration was read again");
                        }
                        Err(error) => {
                            tracing::error!(file = %path.display(), %error, "the authentication configuration stays as it was");
                        }
                    }
                }
            };
            tokio::spawn(reload::follow(vec![file.clone()], core.stop.clone(), taken_up));
        }
        if let (Some(file), Some(encrypted)) = (&core.config.encryption, &core.encrypted) {
            let (path, keys) = (file.clone(), Arc::clone(encrypted.encryption()));
            let taken_up = move |contents: &[Vec<u8>]| match contents.iter().try_for_each(|file| keys.replace(file)) {
                Ok(()) => tracing::info!(file = %path.display(), "the encryption keys were read again"),
                Err(error) => tracing::error!(file = %path.display(), %error, "the encryption keys stay as they were"),
            };
            tokio::spawn(reload::follow(vec![file.clone()], core.stop.clone(), taken_up));
        }
    }

    /// The server's own certificate: every name and address it can be called by.
    fn serving_identity(&self, bound: Option<IpAddr>) -> Result<Identity, PkiError> {
        let config = &self.core.config;
        let mut names: Vec<String> =
            ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned).to_vec();
        names.push(format!("kubernetes.default.svc.{}", config.cluster_domain));
        let mut addresses = vec![
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
            config.advertise,
            IpAddr::V4(config.service_cidr.nth(1)),
        ];
        addresses.extend(config.listen.map(|listen| listen.ip()));
        addresses.extend(bound);
        for extra in &config.extra_names {
            match extra.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => names.push(extra.clone()),
            }
        }
        addresses.sort();
        addresses.dedup();
        self.core.pki.server("kube-apiserver", &names, &addresses)
    }
}

fn settings(source: &Authentication, own: &[String]) -> Result<Settings, Error> {
    match source {
        Authentication::Own => Ok(Settings::none()),
        Authentication::Flags(flags) => {
            Settings::of_flags(flags, own).map_err(|error| unusable(Path::new("--oidc"), error))
        }
        Authentication::File(path) => {
            let file = std::fs::read(path).map_err(|error| unusable(path, error))?;
            Settings::parse(&file, own).map_err(|error| unusable(path, error))
        }
    }
}

fn encryption(path: &Path) -> Result<Arc<Encryption>, Error> {
    let file = std::fs::read(path).map_err(|error| unusable(path, error))?;
    Encryption::parse(&file).map(Arc::new).map_err(|error| unusable(path, error))
}

fn audit(options: &AuditOptions, config: &Config) -> Result<Audit, Error> {
    let file = std::fs::read(&options.policy).map_err(|error| unusable(&options.policy, error))?;
    let policy = Policy::parse(&file).map_err(|error| unusable(&options.policy, error))?;
    let sink = Sink::open(&options.sink, config.clock.clone()).map_err(|error| unusable(&options.sink.path, error))?;
    Ok(Audit::new(policy, sink, config.clock.clone()))
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::File { path: path.to_owned(), why: why.to_string() }
}

/// Creates what every cluster starts with and what is missing of it; never overwrites what is there, but for
/// the `kubernetes` Service and who stands behind it, which say where this server listens now, and for the definitions of
/// the platform's own kinds, which are this version's.
async fn first_objects(server: &Server) -> Result<(), Error> {
    let objects: Vec<Object> = bootstrap::objects(&server.core.config);
    for wave in bootstrap_waves(objects) {
        let mut writes =
            futures::stream::iter(wave.into_iter().map(|object| first_object(server, object))).buffer_unordered(64);
        while let Some(written) = writes.next().await {
            written?;
        }
    }
    storage_class(server).await?;
    // Servers that share a store say together where they are.
    if server.core.config.shared == Shared::No {
        stand_behind(server, &[server.core.config.advertise]).await?;
    }
    if let Some(object) = bootstrap::cluster_info(&server.core.config, server.core.pki.ca_pem()) {
        first_object(server, object.clone()).await?;
        correct(server, &object, bootstrap::told_otherwise).await?;
    }
    let trusted = bootstrap::front_proxy(&server.core.pki);
    first_object(server, trusted.clone()).await?;
    correct(server, &trusted, bootstrap::trusts).await?;
    for object in bootstrap::definitions(&server.core.config) {
        correct(server, &object, bootstrap::redefined).await?;
    }
    Ok(())
}

/// Says behind the `kubernetes` Service where API servers can be reached.
pub(crate) async fn stand_behind(server: &Server, servers: &[IpAddr]) -> Result<(), Error> {
    for object in bootstrap::kubernetes_service(&server.core.config, servers) {
        correct(server, &object, bootstrap::moved).await?;
    }
    Ok(())
}

/// Gives a cluster that has no storage class its first, once: `kube-system` remembers. A crash in between does it again.
async fn storage_class(server: &Server) -> Result<(), Error> {
    let system = server.core.caches.resource("namespaces").get("", "kube-system");
    let given = system.is_some_and(|namespace| namespace.object().annotation(bootstrap::GIVEN_CLASS).is_some());
    if given {
        return Ok(());
    }
    let class = bootstrap::storage_class();
    if server.core.caches.resource("storageclasses.storage.k8s.io").items("").is_empty() {
        first_object(server, class.clone()).await?;
    }
    let mut remember = Object::default();
    remember.set_annotation(bootstrap::GIVEN_CLASS, class.name());
    write(server, http::Method::PATCH, "/api/v1/namespaces/kube-system".to_owned(), &remember, &class).await
}

/// Patches a stored object where it differs from what it must say.
async fn correct(
    server: &Server,
    wanted: &Object,
    difference: fn(&Object, &Object) -> Option<Object>,
) -> Result<(), Error> {
    let (resource, collection) = place_of(server, wanted)?;
    let stored = resource.cache.get(wanted.namespace(), wanted.name()).map(|item| item.object());
    let Some(patch) = stored.and_then(|stored| difference(&stored, wanted)) else { return Ok(()) };
    write(server, http::Method::PATCH, format!("{collection}/{}", wanted.name()), &patch, wanted).await
}

async fn first_object(server: &Server, object: Object) -> Result<(), Error> {
    let (resource, collection) = place_of(server, &object)?;
    if resource.cache.get(object.namespace(), object.name()).is_some() {
        return Ok(());
    }
    write(server, http::Method::POST, collection, &object, &object).await
}

/// The resource of an object, and the path of the collection it is in.
fn place_of(server: &Server, object: &Object) -> Result<(Arc<Resource>, String), Error> {
    let (group, version) = object.api_version().split_once('/').unwrap_or(("", object.api_version()));
    let table = server.core.resources.table();
    let resource = table
        .find_kind(group, version, object.kind())
        .cloned()
        .ok_or_else(|| Error::Bootstrap(format!("{} {}: no such kind", object.kind(), object.name())))?;
    let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    let namespace = match object.namespace() {
        "" => String::new(),
        namespace => format!("namespaces/{namespace}/"),
    };
    let collection = format!("{root}/{namespace}{}", resource.kind.plural);
    Ok((resource, collection))
}

/// One write as the server itself. Somebody else having been faster is as good.
pub(crate) async fn write(
    server: &Server,
    method: http::Method,
    uri: String,
    body: &Object,
    about: &Object,
) -> Result<(), Error> {
    let media = if method == http::Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let request = http::Request::builder()
        .method(method)
        .uri(uri)
        .header("content-type", media)
        .header("user-agent", "proa-apiserver")
        .body(http_body_util::Full::new(crate::registry::codec::plain(body)))
        .map_err(|error| Error::Bootstrap(error.to_string()))?;
    let mut local = server.local(User::new("system:apiserver", &[MASTERS]));
    let Ok(response) = tower::Service::call(&mut local, request).await;
    let status = response.status();
    if status.is_success() || status == http::StatusCode::CONFLICT {
        return Ok(());
    }
    let body = http_body_util::BodyExt::collect(response.into_body()).await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let what = format!("{} {}", about.kind(), about.name());
    Err(Error::Bootstrap(format!("{what}: {status}: {}", String::from_utf8_lossy(&body))))
}

/// Namespaces first: what lives in them needs them.
fn bootstrap_waves(objects: Vec<Object>) -> [Vec<Object>; 2] {
    let (first, rest) = objects.into_iter().partition(|object| object.kind() == "Namespace");
    [first, rest]
}
