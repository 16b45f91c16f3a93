//! Opening and running a server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use proa_apimachinery::object::Object;
use proa_store::Log;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::allocate::Allocators;
use crate::authn::jwt::KeyError;
use crate::cache::{Caches, LoadError};
use crate::config::Config;
use crate::core::Core;
use crate::local::LocalService;
use crate::pki::{Identity, Pki, PkiError};
use crate::proxy::Agents;
use crate::resources::Resources;
use crate::tokens::Tokens;
use crate::user::{MASTERS, User};
use crate::{accept, bootstrap, crd, expiry, kinds};

/// Why a server could not be opened or served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The keys.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The token signing key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The objects every cluster starts with cannot be written.
    #[error("writing the first objects: {0}")]
    Bootstrap(String),
}

/// An API server over a store.
#[derive(Clone)]
pub struct Server {
    core: Arc<Core>,
}

impl Server {
    /// Opens a server: keys, caches, the objects every cluster starts with, custom resources.
    pub async fn open(config: Config, log: Arc<dyn Log>) -> Result<Server, Error> {
        let pki = Arc::new(Pki::open(&config.data_dir)?);
        let stop = CancellationToken::new();
        let caches = Caches::load(Arc::clone(&log), stop.clone()).await?;
        let tokens = Tokens::new(pki.service_account_key(), &config.cluster_domain)?;
        let allocators = Allocators::new(config.service_cidr, config.node_port_range.clone());
        allocators.recover(&caches);
        let core = Arc::new(Core {
            resources: Resources::new(&caches, kinds::builtin()),
            agents: Agents::new(&pki)?,
            config,
            log,
            caches,
            rbac: Default::default(),
            pki,
            tokens,
            allocators,
            metrics: Default::default(),
            openapi: Default::default(),
            definitions: Default::default(),
            flow: Default::default(),
            stop,
        });
        let server = Server { core };
        first_objects(&server).await?;
        crd::load(&server.core);
        tokio::spawn(crd::follow(Arc::clone(&server.core)));
        tokio::spawn(expiry::run(Arc::clone(&server.core)));
        Ok(server)
    }

    /// Serves HTTPS on a listener until `shutdown`; then ends watches, lets open requests end, and returns.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
        let identity = self.serving_identity(listener.local_addr().ok().map(|address| address.ip()))?;
        let tls = accept::acceptor(&self.core.pki, &identity)?;
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

/// Creates what every cluster starts with and what is missing of it; never overwrites what is there.
async fn first_objects(server: &Server) -> Result<(), Error> {
    let objects: Vec<Object> = bootstrap::objects(&server.core.config);
    let user = User::new("system:apiserver", &[MASTERS]);
    bootstrap_write(server, user, objects).await
}

async fn bootstrap_write(server: &Server, user: User, objects: Vec<Object>) -> Result<(), Error> {
    use futures::StreamExt;
    let waves = bootstrap_waves(objects);
    for wave in waves {
        let mut writes = futures::stream::iter(wave.into_iter().map(|object| {
            let mut local = server.local(user.clone());
            let table = server.core.resources.table();
            async move {
                let (group, version) = object.api_version().split_once('/').unwrap_or(("", object.api_version()));
                let what = format!("{} {}", object.kind(), object.name());
                let resource = table
                    .find_kind(group, version, object.kind())
                    .ok_or_else(|| Error::Bootstrap(format!("{what}: no such kind")))?;
                if resource.cache.get(object.namespace(), object.name()).is_some() {
                    return Ok(());
                }
                let root =
                    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
                let place = if object.namespace().is_empty() {
                    String::new()
                } else {
                    format!("namespaces/{}/", object.namespace())
                };
                let uri = format!("{root}/{place}{}", resource.kind.plural);
                let request = http::Request::post(uri)
                    .header("content-type", "application/json")
                    .header("user-agent", "proa-apiserver");
                let request = request
                    .body(http_body_util::Full::new(crate::registry::codec::plain(&object)))
                    .map_err(|error| Error::Bootstrap(error.to_string()))?;
                let Ok(response) = tower::Service::call(&mut local, request).await;
                if response.status().is_success() || response.status() == http::StatusCode::CONFLICT {
                    return Ok(());
                }
                let status = response.status();
                let body = http_body_util::BodyExt::collect(response.into_body())
                    .await
                    .map(|body| body.to_bytes())
                    .unwrap_or_default();
                Err(Error::Bootstrap(format!("{what}: {status}: {}", String::from_utf8_lossy(&body))))
            }
        }))
        .buffer_unordered(64);
        while let Some(written) = writes.next().await {
            written?;
        }
    }
    Ok(())
}

/// Namespaces first: what lives in them needs them.
fn bootstrap_waves(objects: Vec<Object>) -> [Vec<Object>; 2] {
    let (first, rest) = objects.into_iter().partition(|object| object.kind() == "Namespace");
    [first, rest]
}
