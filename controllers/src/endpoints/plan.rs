//! Which slices a service should have, and the fewest writes that lead there. Pure.

use super::backends::{
    address, families, hostname, is_headless, is_ours, is_serving, is_terminating, publishes_unready, reference,
    target_port,
};
use crate::{
    Plan, owners,
    patch::{json, merge_diff},
    pods,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use kube::core::{ApiResource, ObjectMeta, TypeMeta};
use proa_crds::{EndpointSlice, Pod, Service};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The label that leads from a slice to its service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that says who writes a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Our value of [`MANAGED_BY`]: Kubernetes' own, because tools look for it.
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
/// The label of slices of services without an address of their own.
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";
/// The most endpoints in one slice that we write.
const PER_SLICE: usize = 100;

/// A service with everything that decides about its slices.
#[derive(Debug)]
pub struct Seen {
    /// The service.
    pub service: Arc<Service>,
    /// The pods it selects.
    pub pods: Vec<Arc<Pod>>,
    /// The slices we wrote for it.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// The zones of nodes that have one.
    pub zones: BTreeMap<String, String>,
    /// How services and slices are served.
    pub resources: (ApiResource, ApiResource),
}

/// One write.
#[derive(Debug)]
pub enum Action {
    /// A new slice.
    Create(Box<EndpointSlice>),
    /// A change of one.
    Patch(String, Value),
    /// A slice is not needed any more.
    Delete(String),
}

/// Endpoints that share their kind of address and their ports, and so may share a slice.
#[derive(Debug)]
struct Group {
    address_type: String,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
}

/// The fewest writes that make the slices say what the pods are.
pub fn plan(seen: &Seen) -> Plan<Action> {
    if !is_ours(&seen.service) {
        return Plan::nothing();
    }
    let (mut slices, mut emptied) = (Vec::new(), Vec::new());
    let mut unused: Vec<Arc<EndpointSlice>> =
        seen.slices.iter().filter(|s| s.metadata.deletion_timestamp.is_none()).cloned().collect();
    for group in groups(seen) {
        let (same, other) = unused.into_iter().partition(|slice| holds_such(slice, &group));
        unused = other;
        emptied.extend(distribute(group, same, &mut slices));
    }
    let mut actions = Vec::new();
    let mut taken: BTreeSet<String> = seen.slices.iter().filter_map(|slice| slice.metadata.name.clone()).collect();
    for Slice { held, group } in slices {
        match held {
            Some(held) => {
                let wanted = dress(
                    seen,
                    EndpointSlice { endpoints: Some(group.endpoints), ports: Some(group.ports), ..(*held).clone() },
                );
                if let Some(mut patch) = merge_diff(&json(&*held), &json(&wanted)) {
                    // What was read is what is changed: anything else is a conflict.
                    patch["metadata"]["resourceVersion"] = json(&held.metadata.resource_version);
                    actions.push(Action::Patch(held.metadata.name.clone().unwrap_or_default(), patch));
                }
            }
            None => {
                let name = free_name(&seen.service, &taken);
                taken.insert(name.clone());
                let slice = EndpointSlice {
                    types: Some(TypeMeta {
                        api_version: seen.resources.1.api_version.clone(),
                        kind: seen.resources.1.kind.clone(),
                    }),
                    metadata: ObjectMeta {
                        name: Some(name),
                        namespace: seen.service.metadata.namespace.clone(),
                        ..Default::default()
                    },
                    address_type: group.address_type,
                    endpoints: Some(group.endpoints),
                    ports: Some(group.ports),
                };
                actions.push(Action::Create(Box::new(dress(seen, slice))));
            }
        }
    }
    // Last: an endpoint that moves is never in no slice at all.
    actions
        .extend(unused.into_iter().chain(emptied).filter_map(|slice| slice.metadata.name.clone()).map(Action::Delete));
    Plan::act(actions)
}

fn groups(seen: &Seen) -> Vec<Group> {
    let mut groups: BTreeMap<(String, String), Group> = BTreeMap::new();
    let families = families(&seen.service);
    for family in &families {
        for pod in seen.pods.iter().filter(|pod| !pods::is_over(pod)) {
            let Some(ip) = address(pod, family) else { continue };
            let ports = ports(&seen.service, pod);
            let id = (family.clone(), json(&ports).to_string());
            let group = groups.entry(id).or_insert_with(|| Group {
                address_type: family.clone(),
                ports,
                endpoints: Vec::new(),
            });
            group.endpoints.push(endpoint(seen, pod, ip));
        }
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    for family in families {
        // A service with nothing behind it has one empty slice, so that readers can tell it from one not looked at yet.
        if !groups.iter().any(|group| group.address_type == family) {
            groups.push(Group { address_type: family, ports: Vec::new(), endpoints: Vec::new() });
        }
    }
    groups
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.ports.iter().flatten().filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            port: Some(target_port(port, pod)?),
            app_protocol: port.app_protocol.clone(),
        })
    });
    ports.collect()
}

fn endpoint(seen: &Seen, pod: &Pod, ip: String) -> Endpoint {
    let (serving, terminating) = (is_serving(pod), is_terminating(pod));
    let node_name = pods::node(pod).map(str::to_owned);
    Endpoint {
        addresses: vec![ip],
        conditions: Some(EndpointConditions {
            ready: Some(publishes_unready(&seen.service) || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(pod, &seen.service),
        zone: node_name.as_ref().and_then(|node| seen.zones.get(node).cloned()),
        node_name,
        target_ref: Some(reference(pod)),
        ..Default::default()
    }
}

fn holds_such(slice: &EndpointSlice, group: &Group) -> bool {
    slice.address_type == group.address_type && slice.ports.clone().unwrap_or_default() == group.ports
}

/// A slice as it should be: one that exists, or a new one.
struct Slice {
    held: Option<Arc<EndpointSlice>>,
    group: Group,
}

/// Puts a group's endpoints into slices: each stays where it is; new ones go where something changes anyway, then where
/// there is room, then into new slices.
/// What is then empty is given back.
fn distribute(group: Group, held: Vec<Arc<EndpointSlice>>, slices: &mut Vec<Slice>) -> Vec<Arc<EndpointSlice>> {
    let id = |endpoint: &Endpoint| {
        (endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()), endpoint.addresses.clone())
    };
    let mut new: BTreeMap<_, Endpoint> =
        group.endpoints.into_iter().map(|endpoint| (id(&endpoint), endpoint)).collect();
    let mut filled: Vec<(Arc<EndpointSlice>, Vec<Endpoint>, bool)> = Vec::new();
    for slice in held {
        let before = slice.endpoints.as_deref().unwrap_or_default();
        let kept: Vec<Endpoint> =
            before.iter().filter_map(|endpoint| new.remove(&id(endpoint))).take(PER_SLICE).collect();
        let changes = kept != before;
        filled.push((slice, kept, changes));
    }
    // By name of the pod: a list people read.
    let mut new: Vec<Endpoint> = new.into_values().collect();
    new.sort_by(|a, b| name_of(b).cmp(&name_of(a)));
    for changing in [true, false] {
        // The fullest first, so that few slices stay half empty.
        filled.sort_by_key(|(_, endpoints, _)| std::cmp::Reverse(endpoints.len()));
        for (_, endpoints, changes) in filled.iter_mut().filter(|(_, _, changes)| *changes == changing) {
            while endpoints.len() < PER_SLICE
                && let Some(endpoint) = new.pop()
            {
                endpoints.push(endpoint);
                *changes = true;
            }
        }
    }
    let like = |endpoints| Group { address_type: group.address_type.clone(), ports: group.ports.clone(), endpoints };
    let empty_group = filled.iter().all(|(_, endpoints, _)| endpoints.is_empty()) && new.is_empty();
    let mut keep_one = empty_group;
    let mut unused = Vec::new();
    for (held, endpoints, _) in filled {
        // An empty slice is kept only as the one that says "nothing".
        if !endpoints.is_empty() || std::mem::take(&mut keep_one) {
            slices.push(Slice { held: Some(held), group: like(endpoints) });
        } else {
            unused.push(held);
        }
    }
    if keep_one {
        slices.push(Slice { held: None, group: like(Vec::new()) });
    }
    new.reverse();
    for chunk in new.chunks(PER_SLICE) {
        slices.push(Slice { held: None, group: like(chunk.to_vec()) });
    }
    unused
}

fn name_of(endpoint: &Endpoint) -> Option<&str> {
    endpoint.target_ref.as_ref()?.name.as_deref()
}

/// Labels and owner, as they follow from the service.
fn dress(seen: &Seen, mut slice: EndpointSlice) -> EndpointSlice {
    let service = &seen.service;
    let mut labels: BTreeMap<String, String> = service.metadata.labels.clone().unwrap_or_default();
    labels.retain(|key, _| ![SERVICE_NAME, MANAGED_BY, HEADLESS].contains(&key.as_str()));
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    slice.metadata.labels = Some(labels);
    slice.metadata.owner_references = Some(vec![owners::controller_reference(service.as_ref(), &seen.resources.0)]);
    slice
}

/// The same service gives the same names, so that a slice that was made but not seen yet is not made twice.
fn free_name(service: &Service, taken: &BTreeSet<String>) -> String {
    let (name, uid) =
        (service.metadata.name.as_deref().unwrap_or_default(), service.metadata.uid.as_deref().unwrap_or_default());
    let nth = |n: u32| {
        let digest = Sha256::digest(format!("{uid}/{n}"));
        // The letters that Kubernetes' generated names are made of: no vowels, no words.
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let suffix: String =
            digest.iter().take(5).map(|byte| LETTERS[usize::from(*byte) % LETTERS.len()] as char).collect();
        format!("{name}-{suffix}")
    };
    (0..).map(nth).find(|name| !taken.contains(name)).unwrap_or_default()
}
