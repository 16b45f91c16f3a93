//! The legacy Endpoints object of a service (`v1`): pure plan and loop. Standard family only.

use super::{
    backends::{
        address, families, hostname, is_headless, is_ours, is_serving, is_terminating, publishes_unready, reference,
        target_port,
    },
    plan::HEADLESS,
    wake_services_of_pods,
};
use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes,
    patch::{json, merge_diff, params},
    pods,
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints};
use kube::{
    api::{DeleteParams, Patch, PostParams, Preconditions},
    core::ObjectMeta,
};
use proa_crds::{Pod, Service};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// The most addresses in one object.
const CAPACITY: usize = 1000;

/// A service (if it is there) with what decides about its Endpoints.
#[derive(Debug)]
pub struct Seen {
    service: Option<Arc<Service>>,
    pods: Vec<Arc<Pod>>,
    held: Option<Arc<Endpoints>>,
}

/// One write.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// There was none.
    Create(Box<Endpoints>),
    /// A change.
    Patch(Value),
    /// The service is gone.
    Delete(Option<String>),
}

/// The write that makes the object say what the pods are, if any.
pub(super) fn plan(seen: &Seen) -> Plan<Action> {
    let ours = |held: &&Arc<Endpoints>| {
        held.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).is_some_and(|m| m == MANAGER)
    };
    let Some(service) = &seen.service else {
        let left = seen.held.as_ref().filter(ours).filter(|held| held.metadata.deletion_timestamp.is_none());
        return Plan::act(left.into_iter().map(|held| Action::Delete(held.metadata.uid.clone())).collect());
    };
    if !is_ours(service) {
        return Plan::nothing();
    }
    let (subsets, truncated) = subsets(service, &seen.pods);
    let mut wanted = seen.held.as_deref().cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..Default::default()
        },
        ..Default::default()
    });
    wanted.subsets = Some(subsets).filter(|subsets| !subsets.is_empty());
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    wanted.metadata.labels = Some(labels);
    let mut notes = wanted.metadata.annotations.take().unwrap_or_default();
    notes.remove(OVER_CAPACITY);
    if truncated {
        notes.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    }
    wanted.metadata.annotations = Some(notes).filter(|notes| !notes.is_empty());
    match &seen.held {
        None => Plan::act(vec![Action::Create(Box::new(wanted))]),
        Some(held) => {
            let patch = merge_diff(&json(held.as_ref()), &json(&wanted)).map(|mut patch| {
                patch["metadata"]["resourceVersion"] = json(&held.metadata.resource_version);
                Action::Patch(patch)
            });
            Plan::act(patch.into_iter().collect())
        }
    }
}

/// One subset for each list of ports, and whether addresses were left out.
fn subsets(service: &Service, all: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let Some(family) = families(service).into_iter().next() else { return (Vec::new(), false) };
    let mut subsets: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    let mut room = CAPACITY;
    for pod in all.iter().filter(|pod| !pods::is_over(pod)) {
        let Some(ip) = address(pod, &family) else { continue };
        if is_terminating(pod) && !publishes_unready(service) {
            continue;
        }
        let ports = ports(service, pod);
        // Without ports there is nothing to connect to, but names of a headless service resolve all the same.
        if ports.is_empty() && !is_headless(service) {
            continue;
        }
        if room == 0 {
            return (subsets.into_values().collect(), true);
        }
        room -= 1;
        let subset = subsets.entry(json(&ports).to_string()).or_default();
        subset.ports = Some(ports).filter(|ports| !ports.is_empty());
        let address = EndpointAddress {
            ip,
            hostname: hostname(pod, service),
            node_name: pods::node(pod).map(str::to_owned),
            target_ref: Some(reference(pod)),
        };
        let ready = is_serving(pod) || publishes_unready(service);
        let list = if ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    let mut subsets: Vec<EndpointSubset> = subsets.into_values().collect();
    for subset in &mut subsets {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses].into_iter().flatten() {
            list.sort_by(|a, b| a.ip.cmp(&b.ip));
        }
    }
    (subsets, false)
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.ports.iter().flatten().filter_map(|port| {
        Some(EndpointPort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            port: target_port(port, pod)?,
            app_protocol: port.app_protocol.clone(),
        })
    });
    ports.collect()
}

/// The loop that keeps legacy Endpoints.
pub struct LegacyEndpoints {
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
}

impl LegacyEndpoints {
    /// The loop of that context.
    pub fn new(context: &Context) -> Self {
        LegacyEndpoints {
            services: context.informers.of_resource(context.family.service()),
            pods: context.informers.of_resource(context.family.pod()),
            endpoints: context.informers.of(),
        }
    }
}

impl Loop for LegacyEndpoints {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "endpoints"
    }

    fn wire(&self, queue: &Queue) {
        wake_services_of_pods(&self.services, &self.pods, queue);
        let to = queue.clone();
        self.endpoints.on_change(move |change| to.add(change.key.clone()));
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            tokio::join!(self.services.synced(), self.pods.synced(), self.endpoints.synced());
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let service = self.services.get(key);
        let held = self.endpoints.get(key);
        if service.is_none() && held.is_none() {
            return None;
        }
        let pods = service.iter().flat_map(|service| super::pods_of(&self.pods, service)).collect();
        Some(Seen { service, pods, held })
    }

    fn plan(&self, seen: &Seen, _now: Timestamp) -> Plan<Action> {
        plan(seen)
    }

    async fn act(&self, key: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        let api = self.endpoints.api(&key.namespace);
        match action {
            Action::Create(endpoints) => {
                let made = api.create(&PostParams::default(), &endpoints).await?;
                writes.wrote(&self.endpoints, &made);
            }
            Action::Patch(patch) => {
                let patched = api.patch(&key.name, &params(), &Patch::Merge(&patch)).await?;
                writes.wrote(&self.endpoints, &patched);
            }
            Action::Delete(uid) => {
                let only_this = Preconditions { uid: uid.clone(), resource_version: None };
                api.delete(&key.name, &DeleteParams { preconditions: Some(only_this), ..Default::default() }).await?;
                writes.deleted(&self.endpoints, key, uid.as_deref().unwrap_or_default());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn seen(held: Option<Endpoints>) -> Seen {
        let service = json!({"metadata": {"name": "web", "namespace": "ns"},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.7", "ports": [{"port": 80, "targetPort": 8080}]}});
        let pod = |n: u32, ready: &str, going: bool| {
            let mut pod = json!({"metadata": {"name": format!("web-{n}"), "namespace": "ns", "uid": format!("u{n}")},
                "spec": {"containers": []},
                "status": {"podIP": format!("10.0.0.{n}"), "conditions": [{"type": "Ready", "status": ready}]}});
            if going {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        Seen {
            service: Some(Arc::new(serde_json::from_value(service).unwrap())),
            pods: vec![pod(2, "True", false), pod(1, "True", false), pod(3, "False", false), pod(4, "True", true)],
            held: held.map(Arc::new),
        }
    }

    #[test]
    fn ready_and_unready_addresses_are_told_apart_and_those_that_go_are_left_out() {
        let mut actions = plan(&seen(None)).actions;
        let Some(Action::Create(made)) = actions.pop() else { panic!("{actions:?}") };
        let subset = &made.subsets.as_ref().unwrap()[0];
        let ips = |list: &Option<Vec<EndpointAddress>>| list.iter().flatten().map(|a| a.ip.clone()).collect::<Vec<_>>();
        assert_eq!(ips(&subset.addresses), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(ips(&subset.not_ready_addresses), ["10.0.0.3"]);
        assert_eq!(subset.ports.as_ref().unwrap()[0].port, 8080);
        assert!(plan(&seen(Some(*made))).actions.is_empty(), "what is right is not written again");
    }

    #[test]
    fn with_the_service_its_endpoints_go_and_nobody_elses() {
        let mut actions = plan(&seen(None)).actions;
        let Some(Action::Create(made)) = actions.pop() else { panic!("{actions:?}") };
        let gone = |held: Endpoints| Seen { service: None, pods: vec![], held: Some(Arc::new(held)) };
        assert_eq!(plan(&gone(*made)).actions, [Action::Delete(None)]);
        assert!(plan(&gone(Endpoints::default())).actions.is_empty());
    }
}
