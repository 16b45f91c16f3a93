//! Owns the node's view of Services: informers of Services and EndpointSlices, the table given to the service
//! proxy, the zone given to DNS, and the service variables of containers. Event-driven; bursts become one sync.
//! Never programs the kernel itself.

mod table;
mod variables;
mod zone;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use parking_lot::RwLock;
use proa_crds::{EndpointSlice, Family, Service};
use proa_network::{HostPort, ServiceProxy, ServiceTable, Zone};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// A burst of changes within this time is one sync.
const COALESCE: Duration = Duration::from_millis(3);
/// The longest a termination waits for the proxies.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// A slow sync behind the events, in case the kernel's table was touched.
const RESYNC: Duration = Duration::from_secs(300);

/// The kernel's side; a recorder in tests.
pub(crate) trait Proxy: Send + Sync + 'static {
    /// Makes the kernel serve exactly this table.
    fn sync(&self, table: ServiceTable) -> BoxFuture<'_, Result<(), String>>;
}

impl Proxy for ServiceProxy {
    fn sync(&self, table: ServiceTable) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { ServiceProxy::sync(self, table).await.map(|_| ()).map_err(|e| e.to_string()) })
    }
}

/// What the whole module is told of its node.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) node_name: String,
    pub(crate) domain: String,
    /// service addresses this node answers itself
    pub(crate) answered_here: Vec<IpAddr>,
    /// where the API answers when there is no `kubernetes` Service
    pub(crate) api_address: (String, u16),
}

#[derive(Default)]
struct Seen {
    services: BTreeMap<(String, String), Arc<Service>>,
    slices: BTreeMap<(String, String), Arc<EndpointSlice>>,
    host_ports: HashMap<String, Vec<HostPort>>,
}

struct Inner {
    settings: Settings,
    seen: RwLock<Seen>,
    dirty: Notify,
    /// addresses that take new connections, as far as the kernel has been told
    serving: watch::Sender<Arc<HashSet<IpAddr>>>,
    /// both informers have listed
    listed: watch::Sender<[bool; 2]>,
    zone: watch::Sender<Arc<Zone>>,
}

/// Handle to the services of a node; cheap to clone.
#[derive(Clone)]
pub(crate) struct Services {
    inner: Arc<Inner>,
}

impl Services {
    pub(crate) fn new(settings: Settings) -> Self {
        let zone = watch::Sender::new(Arc::new(Zone::new(&settings.domain)));
        Self {
            inner: Arc::new(Inner {
                settings,
                seen: RwLock::default(),
                dirty: Notify::new(),
                serving: watch::Sender::new(Arc::default()),
                listed: watch::Sender::new([false; 2]),
                zone,
            }),
        }
    }

    /// The DNS zone, always the newest.
    pub(crate) fn zone(&self) -> watch::Receiver<Arc<Zone>> {
        self.inner.zone.subscribe()
    }

    /// Runs informers and syncs until `shutdown`.
    pub(crate) fn start(
        &self,
        client: kube::Client,
        family: Family,
        proxy: Arc<dyn Proxy>,
        shutdown: CancellationToken,
    ) {
        let services: Api<Service> = Api::all_with(client.clone(), &family.service());
        let slices: Api<EndpointSlice> = Api::all_with(client, &family.endpoint_slice());
        let (this, dt) = (self.clone(), family.service());
        spawn_until(&shutdown, async move {
            this.follow(watcher(services, watcher::Config::default()), 0, |seen| &mut seen.services, &dt).await;
        });
        let (this, dt) = (self.clone(), family.endpoint_slice());
        spawn_until(&shutdown, async move {
            this.follow(watcher(slices, watcher::Config::default()), 1, |seen| &mut seen.slices, &dt).await;
        });
        let this = self.clone();
        spawn_until(&shutdown, async move { this.sync_forever(proxy).await });
    }

    /// Resolves when both informers have listed once: before that service variables would be missing.
    pub(crate) async fn listed(&self) {
        let mut listed = self.inner.listed.subscribe();
        // The sender lives as long as `self`.
        let _ = listed.wait_for(|l| l.iter().all(|x| *x)).await;
    }

    async fn follow<K>(
        &self,
        events: impl futures::Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send,
        index: usize,
        map: impl Fn(&mut Seen) -> &mut BTreeMap<(String, String), Arc<K>>,
        _: &K::DynamicType,
    ) where
        K: kube::Resource + Clone + Send + Sync + 'static,
    {
        let key = |object: &K| {
            let meta = object.meta();
            (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
        };
        let mut events = std::pin::pin!(events.default_backoff());
        let mut listing = BTreeMap::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listing = BTreeMap::new(),
                Ok(watcher::Event::InitApply(object)) => {
                    listing.insert(key(&object), Arc::new(object));
                    continue;
                }
                Ok(watcher::Event::InitDone) => {
                    *map(&mut self.inner.seen.write()) = std::mem::take(&mut listing);
                    self.inner.listed.send_modify(|l| l[index] = true);
                }
                Ok(watcher::Event::Apply(object)) => {
                    map(&mut self.inner.seen.write()).insert(key(&object), Arc::new(object));
                }
                Ok(watcher::Event::Delete(object)) => {
                    map(&mut self.inner.seen.write()).remove(&key(&object));
                }
                Err(error) => {
                    tracing::debug!(%error, "watch of services failed; trying again");
                    continue;
                }
            }
            self.inner.dirty.notify_one();
        }
    }

    async fn sync_forever(&self, proxy: Arc<dyn Proxy>) {
        self.listed().await;
        let mut failures = 0_u32;
        loop {
            let (table, zone, serving) = {
                let seen = self.inner.seen.read();
                let mut table = table::build(&seen.services, &seen.slices, &self.inner.settings.node_name);
                table.host_ports = seen.host_ports.values().flatten().cloned().collect();
                table.answered_here.clone_from(&self.inner.settings.answered_here);
                let zone = zone::build(&seen.services, &seen.slices, &self.inner.settings.domain);
                (table, zone, table::serving(&seen.slices))
            };
            self.inner.zone.send_if_modified(|now| {
                let different = **now != zone;
                if different {
                    *now = Arc::new(zone);
                }
                different
            });
            match proxy.sync(table).await {
                Ok(()) => {
                    failures = 0;
                    self.inner.serving.send_replace(Arc::new(serving));
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, "the service proxy could not be synced; trying again");
                    tokio::time::sleep(Duration::from_millis(100 << failures.min(6))).await;
                    continue;
                }
            }
            // A lost wake-up is impossible: `Notify` keeps one permit.
            let _ = tokio::time::timeout(RESYNC, self.inner.dirty.notified()).await;
            tokio::time::sleep(COALESCE).await;
        }
    }

    /// The service variables of a container.
    pub(crate) fn environment(&self, namespace: &str, links: bool) -> BTreeMap<String, String> {
        variables::build(&self.inner.seen.read().services, namespace, links, &self.inner.settings.api_address)
    }

    /// Publishes container ports at the host's addresses; an empty list takes them back.
    pub(crate) fn set_host_ports(&self, uid: &str, ports: Vec<HostPort>) {
        let changed = {
            let map = &mut self.inner.seen.write().host_ports;
            if ports.is_empty() {
                map.remove(uid).is_some()
            } else {
                map.insert(uid.to_owned(), ports.clone()) != Some(ports)
            }
        };
        if changed {
            self.inner.dirty.notify_one();
        }
    }

    /// Resolves when no proxy of this node sends new connections to these addresses, or after a second: an
    /// endpoint that nobody takes out must not keep its pod alive.
    pub(crate) fn drained(&self, ips: Vec<IpAddr>) -> impl Future<Output = ()> + Send + 'static {
        let mut serving = self.inner.serving.subscribe();
        async move {
            let left = serving.wait_for(|serving| !ips.iter().any(|ip| serving.contains(ip)));
            if tokio::time::timeout(DRAIN_LIMIT, left).await.is_err() {
                tracing::debug!(?ips, "the endpoint is still there; stopping the pod anyway");
            }
        }
    }
}

fn spawn_until(shutdown: &CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = work => {}
            () = shutdown.cancelled() => {}
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_drained_when_the_kernel_knows_or_after_a_second() {
        let services = Services::new(Settings {
            node_name: "n".into(),
            domain: "cluster.local".into(),
            answered_here: vec![],
            api_address: ("127.0.0.1".into(), 6443),
        });
        let ip: IpAddr = "10.1.0.2".parse().unwrap();
        services.drained(vec![ip]).await;
        services.inner.serving.send_replace(Arc::new([ip].into()));
        let began = tokio::time::Instant::now();
        services.drained(vec![ip]).await;
        assert_eq!(began.elapsed(), DRAIN_LIMIT);
        let waiting = tokio::spawn(services.drained(vec![ip]));
        tokio::task::yield_now().await;
        services.inner.serving.send_replace(Arc::default());
        waiting.await.unwrap();
        assert_eq!(began.elapsed(), DRAIN_LIMIT);
    }
}
