//! Cluster IPs and node ports: each handed out once, whichever server hands it out.
//!
//! Owns the claims: for each address an IPAddress, as Kubernetes has had since 1.33 (KEP-1880), for each node port an
//! entry of our own. A claim is written in the very commit that stores the Service and goes in the one that lets it go,
//! so the store says what is taken; the watch cache of the claims is only where a free one is looked for. Of two servers
//! that choose the same one, the second's commit conflicts and it chooses again.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::object::Object;
use proa_store::{Expect, Log, Op as StoreOp, Revision, Txn};
use serde_json::{Value, json};

use crate::cache::{Caches, ChangeKind, Item};
use crate::config::Cidr;
use crate::core::Core;
use crate::kinds::Allocation;
use crate::outside::Entropy;
use crate::registry::{codec, meta};

/// Where claims of addresses are stored.
const ADDRESSES: &str = "ipaddresses.networking.k8s.io";
/// Where claims of node ports are stored.
const PORTS: &str = "nodeports.proa.dev";
/// Says whose an IPAddress is (`k8s.io/kubernetes/pkg/registry/core/service/ipallocator`).
const MANAGED_BY: (&str, &str) = ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io");

/// The ranges that are handed out from.
pub struct Allocators {
    cidr: Cidr,
    ports: RangeInclusive<u16>,
}

/// What a write of a Service needs around it: where claims are looked up, and what goes into a new one.
pub struct Around<'a> {
    /// The claims.
    pub caches: &'a Caches,
    /// Where chance comes from.
    pub entropy: &'a Entropy,
    /// The time, as objects write it.
    pub now: &'a str,
}

/// What a write takes and lets go: to be committed with the object.
#[derive(Default)]
#[must_use]
pub struct Claims {
    taken: Vec<(&'static str, String)>,
    released: Vec<(&'static str, String)>,
}

impl Claims {
    /// What has to go into the transaction that stores `service`.
    pub fn writes(&self, around: &Around<'_>, service: &Object) -> Vec<StoreOp> {
        let mut writes: Vec<StoreOp> =
            self.taken.iter().map(|(resource, name)| put(around, resource, name, service)).collect();
        for (resource, name) in &self.released {
            // A claim that is somebody else's by now stays.
            let own = around.caches.resource(resource).get("", name).filter(|item| is_of(&item.object(), service));
            if let Some(item) = own {
                let expect = Expect::At(Revision(item.revision));
                writes.push(StoreOp::Delete { key: item.key.clone(), expect, last: None });
            }
        }
        writes
    }
}

/// The write that claims a name for a Service, which must be free.
fn put(around: &Around<'_>, resource: &'static str, name: &str, service: &Object) -> StoreOp {
    let parent = json!({"resource": "services", "namespace": service.namespace(), "name": service.name()});
    let mut claim = match resource {
        ADDRESSES => json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
            "metadata": {"name": name, "labels": {"ipaddress.kubernetes.io/ip-family": "IPv4", MANAGED_BY.0: MANAGED_BY.1}}}),
        _ => json!({"apiVersion": "proa.dev/v1", "kind": "NodePort", "metadata": {"name": name}}),
    };
    claim["spec"] = json!({"parentRef": parent});
    let Value::Object(claim) = claim else { unreachable!("made an object just above") };
    let mut claim = Object(claim);
    meta::stamp(&mut claim, around.now, around.entropy);
    let key = around.caches.resource(resource).key("", name).into();
    StoreOp::Put { key, value: codec::encode(&claim), expect: Expect::Absent }
}

/// Whether a claim is this Service's.
fn is_of(claim: &Object, service: &Object) -> bool {
    let of = |field: &str| claim.get_str(&["spec", "parentRef", field]).unwrap_or_default();
    of("resource") == "services" && of("namespace") == service.namespace() && of("name") == service.name()
}

impl Allocators {
    /// Allocators over these ranges.
    pub fn new(cidr: Cidr, ports: RangeInclusive<u16>) -> Self {
        Allocators { cidr, ports }
    }

    /// Brings the claims in line with the stored Services: of a store that was written before there were claims, or by
    /// Kubernetes. Run before anything is handed out.
    pub async fn repair(&self, log: &dyn Log, around: &Around<'_>) -> Result<(), proa_store::CommitError> {
        let mut wanted: HashMap<(&'static str, String), Object> = HashMap::new();
        for item in around.caches.resource("services").items("") {
            let service = item.object();
            for name in held(&service) {
                wanted.entry(name).or_insert_with(|| service.clone());
            }
        }
        let mut writes = Vec::new();
        for resource in [ADDRESSES, PORTS] {
            for item in around.caches.resource(resource).items("") {
                let known = wanted.remove(&(resource, item.name().to_owned()));
                if known.is_none() && is_ours(&item) {
                    let expect = Expect::At(Revision(item.revision));
                    writes.push(StoreOp::Delete { key: item.key.clone(), expect, last: None });
                }
            }
        }
        writes.extend(wanted.iter().map(|((resource, name), service)| put(around, resource, name, service)));
        for write in writes {
            match log.commit(Txn { ops: vec![write] }).await {
                // Another server that starts at the same time was faster.
                Ok(_) | Err(proa_store::CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Claims an address anew whose claim was deleted while its Service has it, as Kubernetes' repair loop does; until the
    /// server stops.
    pub async fn keep(core: Arc<Core>) {
        let claims = core.caches.resource(ADDRESSES);
        let mut changed = claims.subscribe();
        let mut cursor = claims.last_revision().max(core.caches.applied());
        loop {
            tokio::select! {
                biased;
                () = core.stop.cancelled() => return,
                woken = changed.changed() => if woken.is_err() { return },
            }
            // What went with its Service went in one commit: it is looked at once all of that is here.
            if core.caches.consistent().await.is_err() {
                continue;
            }
            let now = meta::time(core.now());
            let around = Around { caches: &core.caches, entropy: &core.config.entropy, now: &now };
            let Ok(changes) = claims.changes_after(cursor, usize::MAX) else {
                cursor = claims.last_revision();
                if let Err(error) = core.allocators.repair(&*core.log, &around).await {
                    tracing::warn!(%error, "the claims of addresses were not looked over");
                }
                continue;
            };
            for change in changes {
                cursor = change.revision;
                if change.kind != ChangeKind::Delete || claims.get("", change.item.name()).is_some() {
                    continue;
                }
                let Some(service) = holder(&core.caches, &change.item) else { continue };
                let again = put(&around, ADDRESSES, change.item.name(), &service);
                if let Err(error) = core.log.commit(Txn { ops: vec![again] }).await {
                    tracing::debug!(%error, address = change.item.name(), "claimed by somebody else");
                }
            }
        }
    }

    /// Does what a strategy asks for, writing the results into the object.
    pub fn fulfil(
        &self,
        wanted: Vec<Allocation>,
        object: &mut Object,
        around: &Around<'_>,
    ) -> Result<Claims, FieldErrors> {
        let mut claims = Claims::default();
        let spec = Path::root().child("spec");
        for allocation in wanted {
            match allocation {
                Allocation::ClusterIp { index, requested, ipv6 } => {
                    let path = spec.child("clusterIPs").index(index);
                    if ipv6 {
                        return Err(vec![FieldError::invalid(
                            &path,
                            requested.unwrap_or_default(),
                            "IPv6 is not configured on this cluster",
                        )]);
                    }
                    let address = self.address(&mut claims, &path, requested, around)?;
                    put_address(object, index, &address.to_string());
                }
                Allocation::NodePort { index, requested } => {
                    let path = spec.child("ports").index(index).child("nodePort");
                    let port = self.port(&mut claims, &path, requested, around)?;
                    if let Some(slot) = object.get_mut(&["spec", "ports"]).and_then(|ports| ports.get_mut(index)) {
                        slot["nodePort"] = Value::from(port);
                    }
                }
                Allocation::HealthCheckNodePort { requested } => {
                    let port = self.port(&mut claims, &spec.child("healthCheckNodePort"), requested, around)?;
                    object.set(&["spec", "healthCheckNodePort"], Value::from(port));
                }
                Allocation::ReleaseClusterIp(address) => claims.released.push((ADDRESSES, address)),
                Allocation::ReleaseNodePort(port) => claims.released.push((PORTS, port.to_string())),
            }
        }
        Ok(claims)
    }

    fn address(
        &self,
        claims: &mut Claims,
        path: &Path,
        requested: Option<String>,
        around: &Around<'_>,
    ) -> Result<Ipv4Addr, FieldErrors> {
        let refuse = |address: &str, why: String| vec![FieldError::invalid(path, address, why)];
        let cache = around.caches.resource(ADDRESSES);
        let taken = |offset: u32| cache.get("", &self.cidr.nth(offset).to_string()).is_some();
        let last = self.cidr.size().saturating_sub(1);
        let offset = match requested {
            Some(address) => {
                let offset = address.parse().ok().and_then(|address| self.cidr.offset(address));
                let offset = offset.filter(|offset| (1..last).contains(offset));
                let offset = offset.ok_or_else(|| refuse(&address, format!("failed to allocate IP {address}: the provided IP is not in the valid range. The range of valid IPs is {}", self.cidr)))?;
                if taken(offset) {
                    return Err(refuse(
                        &address,
                        format!("failed to allocate IP {address}: provided IP is already allocated"),
                    ));
                }
                offset
            }
            None => {
                // The lower part is left to addresses asked for by name (KEP-3070): 16 to 256 of them.
                let static_part = (self.cidr.size() / 16).clamp(16, 256).min(last);
                let start = around.entropy.within(0..u64::from(last.max(1))) as u32;
                let candidates = |from: u32, to: u32| {
                    let span = to.saturating_sub(from);
                    (0..span).map(move |step| from + (start + step) % span)
                };
                let free = |offset: &u32| !taken(*offset);
                let found = candidates(static_part, last).find(free).or_else(|| candidates(1, static_part).find(free));
                found
                    .ok_or_else(|| vec![FieldError::internal(path, "failed to allocate a serviceIP: range is full")])?
            }
        };
        let address = self.cidr.nth(offset);
        claims.taken.push((ADDRESSES, address.to_string()));
        Ok(address)
    }

    fn port(
        &self,
        claims: &mut Claims,
        path: &Path,
        requested: Option<u16>,
        around: &Around<'_>,
    ) -> Result<u16, FieldErrors> {
        let cache = around.caches.resource(PORTS);
        let own =
            |port: u16| claims.taken.iter().any(|(resource, name)| *resource == PORTS && *name == port.to_string());
        let taken = |port: u16| cache.get("", &port.to_string()).is_some();
        let port = match requested {
            Some(port) => {
                if !self.ports.contains(&port) {
                    let why = format!(
                        "provided port is not in the valid range. The range of valid ports is {}-{}",
                        self.ports.start(),
                        self.ports.end()
                    );
                    return Err(vec![FieldError::invalid(path, port, why)]);
                }
                // The same Service may use one number for TCP and UDP.
                if own(port) {
                    return Ok(port);
                }
                if taken(port) {
                    return Err(vec![FieldError::invalid(path, port, "provided port is already allocated")]);
                }
                port
            }
            None => {
                let (low, span) =
                    (u32::from(*self.ports.start()), u32::from(*self.ports.end() - *self.ports.start()) + 1);
                let start = around.entropy.within(0..u64::from(span)) as u32;
                let mut candidates = (0..span).filter_map(|step| u16::try_from(low + (start + step) % span).ok());
                let found = candidates.find(|port| !own(*port) && !taken(*port));
                found.ok_or_else(|| vec![FieldError::internal(path, "failed to allocate a nodePort: range is full")])?
            }
        };
        claims.taken.push((PORTS, port.to_string()));
        Ok(port)
    }
}

/// The Service that has the address of a claim, if it still does.
fn holder(caches: &Caches, claim: &Item) -> Option<Object> {
    let parent = claim.object();
    let of = |field: &str| parent.get_str(&["spec", "parentRef", field]).unwrap_or_default();
    let service = caches.resource("services").get(of("namespace"), of("name"))?.object();
    held(&service).iter().any(|(resource, name)| *resource == ADDRESSES && *name == claim.name()).then_some(service)
}

/// Whether an allocator wrote a claim; users may keep addresses by IPAddresses of their own.
fn is_ours(item: &Item) -> bool {
    item.key.contains(PORTS) || item.object().label(MANAGED_BY.0) == Some(MANAGED_BY.1)
}

/// The claims a stored Service needs.
fn held(service: &Object) -> Vec<(&'static str, String)> {
    let addresses = service.get_list(&["spec", "clusterIPs"]).iter().chain(service.get(&["spec", "clusterIP"]));
    let addresses = addresses.filter_map(Value::as_str).filter(|text| text.parse::<Ipv4Addr>().is_ok());
    let ports = service.get_list(&["spec", "ports"]).iter().filter_map(|port| port.get("nodePort"));
    let ports = ports.chain(service.get(&["spec", "healthCheckNodePort"]));
    let ports = ports.filter_map(Value::as_u64).filter_map(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
    let mut all: Vec<_> = addresses.map(|address| (ADDRESSES, address.to_owned())).collect();
    all.extend(ports.map(|port| (PORTS, port.to_string())));
    all
}

fn put_address(object: &mut Object, index: usize, address: &str) {
    if index == 0 {
        object.set(&["spec", "clusterIP"], Value::from(address));
    }
    let mut all: Vec<Value> = object.get_list(&["spec", "clusterIPs"]).to_vec();
    while all.len() <= index {
        all.push(Value::from(""));
    }
    all[index] = Value::from(address);
    object.set(&["spec", "clusterIPs"], Value::from(all));
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokio_util::sync::CancellationToken;

    use super::*;

    /// A store that two servers' allocators share, each with a cache of its own.
    struct World {
        log: Arc<dyn Log>,
        caches: [Arc<Caches>; 2],
        entropy: Entropy,
        allocators: Allocators,
        stop: CancellationToken,
    }

    impl World {
        async fn new(cidr: &str, ports: RangeInclusive<u16>) -> World {
            let log: Arc<dyn Log> = Arc::new(proa_store::Memory::new(10_000));
            let stop = CancellationToken::new();
            let caches = [
                Caches::load(Arc::clone(&log), stop.clone()).await.unwrap(),
                Caches::load(Arc::clone(&log), stop.clone()).await.unwrap(),
            ];
            let allocators = Allocators::new(cidr.parse().unwrap(), ports);
            World { log, caches, entropy: Entropy::seeded(1), allocators, stop }
        }

        fn around(&self, server: usize) -> Around<'_> {
            Around { caches: &self.caches[server], entropy: &self.entropy, now: "2026-11-21T00:00:00Z" }
        }

        async fn consistent(&self) {
            for caches in &self.caches {
                caches.consistent().await.unwrap();
            }
        }

        /// What server `server` would commit for a Service of this name.
        fn prepared(&self, server: usize, name: &str, wanted: Vec<Allocation>) -> Result<(Object, Txn), FieldErrors> {
            let mut service = service(name);
            let claims = self.allocators.fulfil(wanted, &mut service, &self.around(server))?;
            let key = self.caches[server].resource("services").key("default", name);
            let mut txn = Txn::put(key, codec::encode(&service), Expect::Any);
            txn.ops.extend(claims.writes(&self.around(server), &service));
            Ok((service, txn))
        }

        async fn stored(&self, name: &str, wanted: Vec<Allocation>) -> Result<Object, FieldErrors> {
            let (service, txn) = self.prepared(0, name, wanted)?;
            self.log.commit(txn).await.unwrap();
            self.consistent().await;
            Ok(service)
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    fn service(name: &str) -> Object {
        Object::from_value(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "default", "name": name}, "spec": {"ports": [{"port": 80}]}}))
        .unwrap()
    }

    fn any() -> Vec<Allocation> {
        vec![
            Allocation::ClusterIp { index: 0, requested: None, ipv6: false },
            Allocation::NodePort { index: 0, requested: None },
        ]
    }

    fn port(number: u16) -> Vec<Allocation> {
        vec![Allocation::NodePort { index: 0, requested: Some(number) }]
    }

    #[tokio::test]
    async fn every_address_of_a_range_is_handed_out_once_and_no_more() {
        let world = World::new("10.0.0.0/28", 30000..=30020).await;
        let mut seen = HashSet::new();
        for n in 0..14 {
            let service = world.stored(&n.to_string(), any()).await.unwrap();
            assert!(seen.insert(service.get_str(&["spec", "clusterIP"]).unwrap().to_owned()));
        }
        assert!(world.prepared(0, "more", any()).is_err());
        let holder = (0..14).map(|n| n.to_string()).find(|n| {
            let claim = world.caches[0].resource(ADDRESSES).get("", "10.0.0.3").unwrap().object();
            is_of(&claim, &service(n))
        });
        world.stored(&holder.unwrap(), vec![Allocation::ReleaseClusterIp("10.0.0.3".into())]).await.unwrap();
        let service = world.stored("more", any()).await.unwrap();
        assert_eq!(service.get_str(&["spec", "clusterIP"]), Some("10.0.0.3"));
    }

    #[tokio::test]
    async fn of_two_servers_that_choose_the_same_one_the_second_conflicts_and_then_sees_it_is_taken() {
        let world = World::new("10.0.0.0/28", 30000..=30000).await;
        let (_, first) = world.prepared(0, "a", port(30000)).unwrap();
        let (_, second) = world.prepared(1, "b", port(30000)).unwrap();
        world.log.commit(first).await.unwrap();
        let conflict = world.log.commit(second).await.unwrap_err();
        assert!(matches!(conflict, proa_store::CommitError::Conflict { key, .. } if key.ends_with("/30000")));
        world.consistent().await;
        let refused = world.prepared(1, "b", port(30000)).unwrap_err();
        assert!(refused[0].to_string().contains("provided port is already allocated"), "{refused:?}");
    }

    #[tokio::test]
    async fn what_is_not_committed_takes_nothing_and_nobody_lets_go_what_is_anothers() {
        let world = World::new("10.0.0.0/28", 30000..=30000).await;
        for _ in 0..3 {
            drop(world.prepared(0, "a", any()).unwrap());
        }
        world.stored("a", port(30000)).await.unwrap();
        world.stored("b", vec![Allocation::ReleaseNodePort(30000)]).await.unwrap();
        assert!(world.prepared(0, "c", port(30000)).is_err());
        assert!(world.prepared(0, "c", port(80)).is_err(), "out of range");
        world.stored("a", vec![Allocation::ReleaseNodePort(30000)]).await.unwrap();
        assert!(world.prepared(0, "c", port(30000)).is_ok());
    }

    #[tokio::test]
    async fn claims_are_made_for_what_was_stored_without_and_forgotten_for_what_is_gone() {
        let world = World::new("10.0.0.0/28", 30000..=30001).await;
        let mut old = service("old");
        old.set(&["spec", "clusterIP"], Value::from("10.0.0.9"));
        old.set(&["spec", "ports"], json!([{"port": 80, "nodePort": 30001}]));
        world.log.commit(Txn::put("/registry/services/default/old", codec::encode(&old), Expect::Any)).await.unwrap();
        let orphan = put(&world.around(0), PORTS, "30000", &service("gone"));
        world.log.commit(Txn { ops: vec![orphan] }).await.unwrap();
        world.consistent().await;
        for _ in 0..2 {
            world.allocators.repair(&*world.log, &world.around(0)).await.unwrap();
            world.consistent().await;
            assert!(world.prepared(1, "new", port(30001)).is_err());
            assert!(world.prepared(1, "new", port(30000)).is_ok());
            assert!(world.caches[1].resource(ADDRESSES).get("", "10.0.0.9").is_some());
        }
    }
}
