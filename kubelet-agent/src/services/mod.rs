//! Owns the node's view of Services: informers of Services, EndpointSlices and namespaces, the table given to the service
//! proxy, the zone given to DNS, the health checks of load balancers, and the service variables of containers. Event-driven; bursts become one sync.
//! Never programs the kernel itself.

mod health;
mod table;
mod variables;
mod zone;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::core::{ApiResource, ObjectMeta, PartialObjectMeta};
use kube::runtime::watcher;
use parking_lot::RwLock;
use proa_crds::{Decoded, Encoded, EndpointSlice, Family, Service};
use proa_network::{HostPort, ServiceProxy, ServiceTable, Zone};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::watches;

/// A burst of changes within this time is one sync.
const COALESCE: Duration = Duration::from_millis(3);
/// The longest a termination waits for the proxies: long enough for controllers that are busy, not for ever for controllers
/// that are away.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// What other nodes' proxies get on top: nobody tells when they are done, but they hear of the same change at the same
/// time, so that they are behind by no more than one of them takes.
const ELSEWHERE: Duration = Duration::from_millis(100);
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
    /// names alone: DNS has names of pods in each
    namespaces: BTreeMap<(String, String), Arc<PartialObjectMeta<Namespace>>>,
    host_ports: HashMap<String, Vec<HostPort>>,
}

struct Inner {
    settings: Settings,
    seen: RwLock<Seen>,
    dirty: Notify,
    /// what the kernel has been told
    told: watch::Sender<Arc<table::Told>>,
    /// services and slices have been listed
    listed: watch::Sender<[bool; 2]>,
    zone: watch::Sender<Arc<Zone>>,
    /// other nodes send packets to pods of this one
    accompanied: AtomicBool,
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
                told: watch::Sender::new(Arc::default()),
                listed: watch::Sender::new([false; 2]),
                zone,
                accompanied: AtomicBool::new(false),
            }),
        }
    }

    /// Tells whether this is the only node.
    pub(crate) fn set_alone(&self, alone: bool) {
        self.inner.accompanied.store(!alone, Ordering::Relaxed);
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
        let all = |kind: &ApiResource| watches::watch(Api::all_with(client.clone(), kind), watcher::Config::default());
        let (services, slices) = (all(&family.service()), all(&family.endpoint_slice()));
        let namespaces = all(&ApiResource::erase::<Namespace>(&()));
        let this = self.clone();
        spawn_until(&shutdown, async move {
            this.follow(services, Some(0), |seen| &mut seen.services).await;
        });
        let this = self.clone();
        spawn_until(&shutdown, async move {
            this.follow(slices, Some(1), |seen| &mut seen.slices).await;
        });
        let this = self.clone();
        spawn_until(&shutdown, async move {
            this.follow(namespaces, None, |seen| &mut seen.namespaces).await;
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

    /// Follows one kind; with `listed`, pods wait for its first list.
    async fn follow<K>(
        &self,
        mut events: BoxStream<'static, watches::Seen>,
        listed: Option<usize>,
        map: impl Fn(&mut Seen) -> &mut BTreeMap<(String, String), Arc<K>>,
    ) where
        K: DeserializeOwned + Send + Sync + 'static,
    {
        let key =
            |meta: &ObjectMeta| (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        let mut listing = BTreeMap::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listing = BTreeMap::new(),
                Ok(watcher::Event::InitApply(object)) => {
                    let key = key(object.metadata());
                    let held = match read(&key, object) {
                        Some(object) => Some(object),
                        None => map(&mut self.inner.seen.write()).get(&key).cloned(),
                    };
                    listing.extend(held.map(|held| (key, held)));
                    continue;
                }
                Ok(watcher::Event::InitDone) => {
                    *map(&mut self.inner.seen.write()) = std::mem::take(&mut listing);
                    if let Some(index) = listed {
                        self.inner.listed.send_modify(|l| l[index] = true);
                    }
                }
                Ok(watcher::Event::Apply(object)) => {
                    let key = key(object.metadata());
                    let Some(object) = read(&key, object) else { continue };
                    map(&mut self.inner.seen.write()).insert(key, object);
                }
                Ok(watcher::Event::Delete(object)) => {
                    map(&mut self.inner.seen.write()).remove(&key(object.metadata()));
                }
                Err(error) => {
                    tracing::warn!(%error, "watch of services, endpoints or namespaces failed; trying again");
                    continue;
                }
            }
            self.inner.dirty.notify_one();
        }
    }

    async fn sync_forever(&self, proxy: Arc<dyn Proxy>) {
        self.listed().await;
        let (mut failures, mut checks) = (0_u32, health::Checks::default());
        loop {
            let (table, zone, told, checked) = {
                let seen = self.inner.seen.read();
                let mut table = table::build(&seen.services, &seen.slices, &self.inner.settings.node_name);
                table.host_ports = seen.host_ports.values().flatten().cloned().collect();
                table.answered_here.clone_from(&self.inner.settings.answered_here);
                let mut zone = zone::build(&seen.services, &seen.slices, &self.inner.settings.domain);
                zone.namespaces.extend(seen.namespaces.keys().map(|(_, name)| name.clone()));
                let checked = health::wanted(&seen.services, &seen.slices, &self.inner.settings.node_name);
                (table, zone, table::told(&seen.slices), checked)
            };
            checks.sync(checked).await;
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
                    self.inner.told.send_replace(Arc::new(told));
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

    /// Resolves when no proxy of this node sends new connections to the pod's addresses, nor will: an endpoint that is
    /// not there may be on its way, of a pod deleted in the moment it became ready. So the endpoint of a pod that is
    /// deleted and that some Service selects must be seen ending. It waits no longer than `at_most`, and than five
    /// seconds: an endpoint that nobody takes out must not keep its pod alive.
    pub(crate) fn drained(
        &self,
        pod: &ObjectMeta,
        ips: Vec<IpAddr>,
        at_most: Duration,
    ) -> impl Future<Output = ()> + Send + 'static {
        let mut told = self.inner.told.subscribe();
        let uid = pod.uid.clone().filter(|_| pod.deletion_timestamp.is_some() && self.is_selected(pod));
        let elsewhere = uid.is_some() && self.inner.accompanied.load(Ordering::Relaxed);
        async move {
            let left = told.wait_for(|told| {
                !ips.iter().any(|ip| told.serving.contains(ip))
                    && uid.as_ref().is_none_or(|uid| told.ending.contains(uid))
            });
            if tokio::time::timeout(DRAIN_LIMIT.min(at_most), left).await.is_err() {
                tracing::debug!(?ips, "the endpoint was not seen to leave; stopping the pod anyway");
            } else if elsewhere {
                tokio::time::sleep(ELSEWHERE.min(at_most)).await;
            }
        }
    }

    /// Whether a Service selects the pod.
    fn is_selected(&self, pod: &ObjectMeta) -> bool {
        let namespace = pod.namespace.as_deref().unwrap_or_default();
        let seen = self.inner.seen.read();
        seen.services.iter().filter(|((of, _), _)| of == namespace).any(|(_, service)| {
            let selector = service.spec.selector.as_ref().filter(|selector| !selector.is_empty());
            let labels = pod.labels.as_ref();
            selector.is_some_and(|selector| {
                selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
            })
        })
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

/// The object, unless it cannot be read.
fn read<K: DeserializeOwned>(key: &(String, String), object: Encoded) -> Option<Arc<K>> {
    match object.decode() {
        Decoded::Object(object) => Some(Arc::new(object)),
        Decoded::Undecodable(unread) => {
            tracing::warn!(?key, error = unread.error, "this object cannot be read and is left as it was");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services() -> Services {
        Services::new(Settings {
            node_name: "n".into(),
            domain: "cluster.local".into(),
            answered_here: vec![],
            api_address: ("127.0.0.1".into(), 6443),
        })
    }

    /// A kernel that takes every table.
    struct Willing;

    impl Proxy for Willing {
        fn sync(&self, _: ServiceTable) -> BoxFuture<'_, Result<(), String>> {
            Box::pin(async { Ok(()) })
        }
    }

    #[tokio::test]
    async fn a_namespace_without_services_has_names_of_pods() {
        let services = services();
        let quiet: PartialObjectMeta<Namespace> =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "quiet"}})).unwrap();
        services.inner.seen.write().namespaces.insert((String::new(), "quiet".into()), Arc::new(quiet));
        services.inner.listed.send_replace([true; 2]);
        let mut zone = services.zone();
        let seen = tokio::time::timeout(Duration::from_secs(10), zone.wait_for(|z| z.namespaces.contains("quiet")));
        tokio::select! {
            () = services.sync_forever(Arc::new(Willing)) => {}
            seen = seen => drop(seen.expect("the namespace is in the zone").unwrap()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_drained_when_the_kernel_knows_or_after_a_while() {
        let (services, pod) = (services(), ObjectMeta::default());
        let ip: IpAddr = "10.1.0.2".parse().unwrap();
        let drained = || services.drained(&pod, vec![ip], Duration::MAX);
        drained().await;
        services.inner.told.send_replace(Arc::new(table::Told { serving: [ip].into(), ..Default::default() }));
        let began = tokio::time::Instant::now();
        drained().await;
        assert_eq!(began.elapsed(), DRAIN_LIMIT);
        let waiting = tokio::spawn(drained());
        tokio::task::yield_now().await;
        services.inner.told.send_replace(Arc::default());
        waiting.await.unwrap();
        assert_eq!(began.elapsed(), DRAIN_LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deleted_pod_of_a_service_is_drained_when_its_endpoint_is_seen_ending_and_not_before_it_comes() {
        let services = services();
        let service =
            serde_json::json!({"metadata": {"name": "s", "namespace": "ns"}, "spec": {"selector": {"app": "web"}}});
        let service: Service = serde_json::from_value(service).unwrap();
        services.inner.seen.write().services.insert(("ns".into(), "s".into()), Arc::new(service));
        let pod = |app: &str| -> ObjectMeta {
            serde_json::from_value(serde_json::json!({
                "namespace": "ns", "uid": "u", "labels": {"app": app}, "deletionTimestamp": "2026-11-21T10:00:00Z",
            }))
            .unwrap()
        };
        let ip: IpAddr = "10.1.0.2".parse().unwrap();
        let began = tokio::time::Instant::now();
        services.drained(&pod("other"), vec![ip], Duration::MAX).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        let waiting = tokio::spawn(services.drained(&pod("web"), vec![ip], Duration::MAX));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished(), "its endpoint may still be on its way");
        services
            .inner
            .told
            .send_replace(Arc::new(table::Told { ending: ["u".to_owned()].into(), ..Default::default() }));
        waiting.await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(1));
        // Where there are other nodes, their proxies get a moment too.
        services.set_alone(false);
        services.drained(&pod("web"), vec![ip], Duration::MAX).await;
        assert_eq!(began.elapsed(), Duration::from_secs(1) + ELSEWHERE);
        services.set_alone(true);
        tokio::time::advance(Duration::from_secs(1) - ELSEWHERE).await;
        services.inner.told.send_replace(Arc::default());
        services.drained(&pod("web"), vec![ip], Duration::from_secs(2)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(4));
    }
}
