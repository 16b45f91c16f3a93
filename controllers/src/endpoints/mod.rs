//! EndpointSlices, and the legacy Endpoints: the addresses behind a service.
//!
//! Owns: the objects that say which pods a service leads to. Never routes anything: that is the node's proxy. A pod
//! that is going away stays in its slice, no longer ready, until it is gone (KEP-1672).

mod backends;
mod legacy;
mod plan;
#[cfg(test)]
mod tests;

pub use legacy::LegacyEndpoints;
pub use plan::{Action, MANAGED_BY, MANAGER, SERVICE_NAME, Seen, plan};

use crate::{ActError, Context, Informer, Key, Loop, Plan, Queue, Writes, patch::params};
use backends::selects;
use futures::future::BoxFuture;
use jiff::Timestamp;
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PostParams},
};
use proa_crds::{EndpointSlice, Node, Pod, Service};
use std::{collections::BTreeMap, sync::Arc};

const ZONE: &str = "topology.kubernetes.io/zone";
const BY_SERVICE: &str = "service";

/// The loop that keeps EndpointSlices.
pub struct EndpointSlices {
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
}

impl EndpointSlices {
    /// The loop of that context's family.
    pub fn new(context: &Context) -> Self {
        EndpointSlices {
            services: context.informers.of_resource(context.family.service()),
            pods: context.informers.of_resource(context.family.pod()),
            nodes: context.informers.of_resource(context.family.node()),
            slices: context.informers.of_resource(context.family.endpoint_slice()),
        }
    }
}

/// The pods a service selects.
fn pods_of(pods: &Informer<Pod>, service: &Service) -> Vec<Arc<Pod>> {
    let mut found = pods.in_namespace(service.metadata.namespace.as_deref().unwrap_or_default());
    found.retain(|pod| selects(service, pod));
    found
}

/// Wakes a service when it changes, and when a pod changes that it selects or selected.
fn wake_services_of_pods(services: &Informer<Service>, pods: &Informer<Pod>, queue: &Queue) {
    let to = queue.clone();
    services.on_change(move |change| to.add(change.key.clone()));
    let (to, services) = (queue.clone(), services.clone());
    pods.on_change(move |change| {
        for service in services.in_namespace(&change.key.namespace) {
            if change.states().any(|pod| selects(&service, pod)) {
                to.add(Key::of(service.as_ref()));
            }
        }
    });
}

/// The service a slice of ours belongs to.
fn service_of(slice: &EndpointSlice) -> Option<String> {
    let ours = slice.labels().get(MANAGED_BY).is_some_and(|manager| manager == MANAGER);
    ours.then(|| slice.labels().get(SERVICE_NAME).cloned()).flatten()
}

fn zone(node: &Node) -> Option<&String> {
    node.labels().get(ZONE)
}

impl Loop for EndpointSlices {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "endpointslice"
    }

    fn wire(&self, queue: &Queue) {
        self.slices.add_index(BY_SERVICE, |slice| {
            let index =
                service_of(slice).map(|service| Key::new(&slice.namespace().unwrap_or_default(), &service).to_string());
            index.into_iter().collect()
        });
        wake_services_of_pods(&self.services, &self.pods, queue);
        let to = queue.clone();
        self.slices.on_change(move |change| {
            for service in change.states().filter_map(|slice| service_of(slice)) {
                to.add(Key::new(&change.key.namespace, &service));
            }
        });
        let (to, services) = (queue.clone(), self.services.clone());
        self.nodes.on_change(move |change| {
            let [old, new] = [&change.old, &change.new].map(|node| node.as_ref().and_then(|node| zone(node)));
            if old != new {
                services.list().iter().for_each(|service| to.add(Key::of(service.as_ref())));
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            tokio::join!(self.services.synced(), self.pods.synced(), self.nodes.synced(), self.slices.synced());
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let service = self.services.get(key)?;
        let zones = self
            .nodes
            .list()
            .iter()
            .filter_map(|node| Some((node.name_any(), zone(node)?.clone())))
            .collect::<BTreeMap<_, _>>();
        Some(Seen {
            pods: pods_of(&self.pods, &service),
            slices: self.slices.by_index(BY_SERVICE, &key.to_string()),
            zones,
            resources: (self.services.resource(), self.slices.resource()),
            service,
        })
    }

    fn plan(&self, seen: &Seen, _now: Timestamp) -> Plan<Action> {
        plan(seen)
    }

    async fn act(&self, key: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        let api = self.slices.api(&key.namespace);
        match action {
            Action::Create(slice) => {
                let made = api.create(&PostParams::default(), &slice).await?;
                writes.wrote(&self.slices, &made);
            }
            Action::Patch(name, patch) => {
                let patched = api.patch(&name, &params(), &Patch::Merge(&patch)).await?;
                writes.wrote(&self.slices, &patched);
            }
            Action::Delete(name) => {
                let held = self.slices.get(&Key::new(&key.namespace, &name));
                api.delete(&name, &DeleteParams::default()).await?;
                if let Some(uid) = held.and_then(|slice| slice.metadata.uid.clone()) {
                    writes.deleted(&self.slices, &Key::new(&key.namespace, &name), &uid);
                }
            }
        }
        Ok(())
    }
}
