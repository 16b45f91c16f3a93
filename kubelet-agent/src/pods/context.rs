//! Owns what all pod workers share: the client, the runtime, images, network and the facts of the node.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;
use proa_crds::Family;
use proa_network::{PodNet, PodNetRequest, PodNetwork};
use proa_runtime::Runtime;
use tokio::sync::{mpsc, watch};

use super::Pod;
use super::layout::Layout;
use super::ports::Ports;
use super::track::{ContainerId, Track};
use super::worker::Message;
use crate::events::Recorder;
use crate::images::Images;
use crate::objects::Objects;
use crate::resolver::HostResolver;
use crate::services::Services;
use crate::volumes::local::LocalVolumes;

/// The pod network as workers use it; a table of addresses in tests.
pub(crate) trait Networks: Send + Sync + 'static {
    /// Makes the network of a sandbox, or finds it made.
    fn setup<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<PodNet, String>>;
    /// Removes it; fine when it is gone.
    fn teardown<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), String>>;
    /// All there are.
    fn list(&self) -> BoxFuture<'_, Result<Vec<PodNet>, String>>;
    /// Removes those of unknown sandboxes.
    fn sweep<'a>(&'a self, known: &'a BTreeSet<String>) -> BoxFuture<'a, Result<(), String>>;
}

impl Networks for PodNetwork {
    fn setup<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<PodNet, String>> {
        Box::pin(async move { PodNetwork::setup(self, id, PodNetRequest::default()).await.map_err(|e| e.to_string()) })
    }

    fn teardown<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move { PodNetwork::teardown(self, id).await.map_err(|e| e.to_string()) })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<PodNet>, String>> {
        Box::pin(async move { PodNetwork::list(self).await.map_err(|e| e.to_string()) })
    }

    fn sweep<'a>(&'a self, known: &'a BTreeSet<String>) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move { PodNetwork::sweep(self, known).await.map(|_| ()).map_err(|e| e.to_string()) })
    }
}

/// How pods resolve names.
#[derive(Clone, Debug)]
pub(crate) struct DnsSettings {
    pub(crate) server: IpAddr,
    pub(crate) domain: String,
    pub(crate) host: HostResolver,
}

/// Shared by every worker of a node.
pub(crate) struct Context {
    pub(crate) client: kube::Client,
    pub(crate) family: Family,
    pub(crate) node_name: String,
    pub(crate) host_ips: Vec<String>,
    pub(crate) instance: String,
    pub(crate) layout: Layout,
    pub(crate) local_volumes: LocalVolumes,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) images: Images,
    pub(crate) network: Arc<dyn Networks>,
    pub(crate) objects: Arc<Objects>,
    pub(crate) recorder: Recorder,
    pub(crate) services: Services,
    pub(crate) dns: DnsSettings,
    pub(crate) allocatable: BTreeMap<String, Quantity>,
    /// bytes
    pub(crate) memory_capacity: i64,
    pub(crate) registry: Registry,
    pub(crate) host_ports: Ports,
}

/// What the HTTP API and probes may know of a pod at any time.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) pod: Arc<Pod>,
    pub(crate) tracks: Arc<[Track]>,
    pub(crate) pod_ips: Vec<String>,
    /// `None`: the host's
    pub(crate) netns: Option<PathBuf>,
}

/// The workers there are, by pod and by container.
#[derive(Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    workers: HashMap<String, Worker>,
    containers: HashMap<ContainerId, String>,
}

struct Worker {
    mailbox: mpsc::UnboundedSender<Message>,
    view: watch::Receiver<View>,
}

impl Registry {
    pub(crate) fn add(&self, uid: &str, mailbox: mpsc::UnboundedSender<Message>, view: watch::Receiver<View>) {
        self.inner.lock().workers.insert(uid.to_owned(), Worker { mailbox, view });
    }

    pub(crate) fn remove(&self, uid: &str) {
        let mut inner = self.inner.lock();
        inner.workers.remove(uid);
        inner.containers.retain(|_, owner| owner != uid);
    }

    /// Sends to the worker of a pod; false when there is none.
    pub(crate) fn tell(&self, uid: &str, message: Message) -> bool {
        self.inner.lock().workers.get(uid).is_some_and(|w| w.mailbox.send(message).is_ok())
    }

    /// Remembers whose a container is, before it exists, so that its first event finds its worker.
    pub(crate) fn own(&self, id: &ContainerId, uid: &str) {
        self.inner.lock().containers.insert(id.clone(), uid.to_owned());
    }

    pub(crate) fn disown(&self, id: &ContainerId) {
        self.inner.lock().containers.remove(id);
    }

    /// The pod a container belongs to.
    pub(crate) fn owner(&self, id: &ContainerId) -> Option<String> {
        self.inner.lock().containers.get(id).cloned()
    }

    pub(crate) fn uids(&self) -> Vec<String> {
        self.inner.lock().workers.keys().cloned().collect()
    }

    /// What is known of every pod now.
    pub(crate) fn views(&self) -> Vec<View> {
        self.inner.lock().workers.values().map(|w| w.view.borrow().clone()).collect()
    }

    /// A pod by name, to be followed; of two with one name (the old still ending) the younger.
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<watch::Receiver<View>> {
        let inner = self.inner.lock();
        let mut found: Vec<_> = inner
            .workers
            .values()
            .filter(|w| {
                let view = w.view.borrow();
                let meta = &view.pod.metadata;
                meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
            })
            .map(|w| w.view.clone())
            .collect();
        found.sort_by_key(|v| v.borrow().pod.metadata.creation_timestamp.as_ref().map(|t| t.0));
        found.pop()
    }
}
