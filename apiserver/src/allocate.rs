//! Cluster IPs and node ports: each handed out once.
//!
//! Owns the sets of what is taken, recovered from the Services at start. One process writes to an
//! embedded store, so the sets are the truth; a write that fails gives back what it took.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;
use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::object::Object;
use serde_json::Value;

use crate::cache::Caches;
use crate::config::Cidr;
use crate::kinds::Allocation;
use crate::outside::Entropy;

/// The allocators.
pub struct Allocators {
    cidr: Cidr,
    ports: RangeInclusive<u16>,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    addresses: HashSet<u32>,
    ports: HashSet<u16>,
}

/// What a write has taken: given back when dropped, unless the write was done.
#[must_use]
pub struct Held {
    taken: Arc<Mutex<Taken>>,
    addresses: Vec<u32>,
    ports: Vec<u16>,
    releases: Vec<Allocation>,
}

impl Held {
    /// The write is done: what was taken stays taken, what it let go is free.
    pub fn keep(mut self, allocators: &Allocators) {
        self.addresses.clear();
        self.ports.clear();
        allocators.release(std::mem::take(&mut self.releases));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.addresses.is_empty() && self.ports.is_empty() {
            return;
        }
        let mut taken = self.taken.lock();
        for address in &self.addresses {
            taken.addresses.remove(address);
        }
        for port in &self.ports {
            taken.ports.remove(port);
        }
    }
}

impl Allocators {
    /// Empty allocators over these ranges.
    pub fn new(cidr: Cidr, ports: RangeInclusive<u16>) -> Self {
        Allocators { cidr, ports, taken: Arc::default() }
    }

    /// Takes what the stored Services hold.
    pub fn recover(&self, caches: &Caches) {
        let mut taken = self.taken.lock();
        for item in caches.resource("services").items("") {
            let object = item.object();
            let addresses = object.get_list(&["spec", "clusterIPs"]).iter().chain(object.get(&["spec", "clusterIP"]));
            taken.addresses.extend(addresses.filter_map(Value::as_str).filter_map(|text| self.offset(text)));
            let ports = object.get_list(&["spec", "ports"]).iter().filter_map(|port| port.get("nodePort"));
            let ports = ports.chain(object.get(&["spec", "healthCheckNodePort"]));
            taken.ports.extend(ports.filter_map(Value::as_u64).filter_map(|port| u16::try_from(port).ok()));
        }
    }

    /// Does what a strategy asks for, writing the results into the object.
    pub fn fulfil(&self, wanted: Vec<Allocation>, object: &mut Object, entropy: &Entropy) -> Result<Held, FieldErrors> {
        let mut held =
            Held { taken: Arc::clone(&self.taken), addresses: Vec::new(), ports: Vec::new(), releases: Vec::new() };
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
                    let address = self.address(&mut held, &path, requested, entropy)?;
                    put_address(object, index, &address.to_string());
                }
                Allocation::NodePort { index, requested } => {
                    let path = spec.child("ports").index(index).child("nodePort");
                    let port = self.port(&mut held, &path, requested, entropy)?;
                    if let Some(slot) = object.get_mut(&["spec", "ports"]).and_then(|ports| ports.get_mut(index)) {
                        slot["nodePort"] = Value::from(port);
                    }
                }
                Allocation::HealthCheckNodePort { requested } => {
                    let port = self.port(&mut held, &spec.child("healthCheckNodePort"), requested, entropy)?;
                    object.set(&["spec", "healthCheckNodePort"], Value::from(port));
                }
                release => held.releases.push(release),
            }
        }
        Ok(held)
    }

    /// Frees what objects no longer hold.
    pub fn release(&self, releases: Vec<Allocation>) {
        if releases.is_empty() {
            return;
        }
        let mut taken = self.taken.lock();
        for release in releases {
            match release {
                Allocation::ReleaseClusterIp(address) => {
                    if let Some(offset) = self.offset(&address) {
                        taken.addresses.remove(&offset);
                    }
                }
                Allocation::ReleaseNodePort(port) => {
                    taken.ports.remove(&port);
                }
                Allocation::ClusterIp { .. } | Allocation::NodePort { .. } | Allocation::HealthCheckNodePort { .. } => {
                }
            }
        }
    }

    fn offset(&self, address: &str) -> Option<u32> {
        self.cidr.offset(address.parse::<Ipv4Addr>().ok()?)
    }

    fn address(
        &self,
        held: &mut Held,
        path: &Path,
        requested: Option<String>,
        entropy: &Entropy,
    ) -> Result<Ipv4Addr, FieldErrors> {
        let refuse = |address: &str, why: String| vec![FieldError::invalid(path, address, why)];
        let mut taken = self.taken.lock();
        let last = self.cidr.size().saturating_sub(1);
        let offset = match requested {
            Some(address) => {
                let offset = self.offset(&address).filter(|offset| (1..last).contains(offset));
                let offset = offset.ok_or_else(|| refuse(&address, format!("failed to allocate IP {address}: the provided IP is not in the valid range. The range of valid IPs is {}", self.cidr)))?;
                if taken.addresses.contains(&offset) {
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
                let start = entropy.within(0..u64::from(last.max(1))) as u32;
                let candidates = |from: u32, to: u32| {
                    let span = to.saturating_sub(from);
                    (0..span).map(move |step| from + (start + step) % span)
                };
                let free = |offset: &u32| !taken.addresses.contains(offset);
                let found = candidates(static_part, last).find(free).or_else(|| candidates(1, static_part).find(free));
                found
                    .ok_or_else(|| vec![FieldError::internal(path, "failed to allocate a serviceIP: range is full")])?
            }
        };
        taken.addresses.insert(offset);
        held.addresses.push(offset);
        Ok(self.cidr.nth(offset))
    }

    fn port(
        &self,
        held: &mut Held,
        path: &Path,
        requested: Option<u16>,
        entropy: &Entropy,
    ) -> Result<u16, FieldErrors> {
        let mut taken = self.taken.lock();
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
                if taken.ports.contains(&port) && !held.ports.contains(&port) {
                    return Err(vec![FieldError::invalid(path, port, "provided port is already allocated")]);
                }
                port
            }
            None => {
                let (low, span) =
                    (u32::from(*self.ports.start()), u32::from(*self.ports.end() - *self.ports.start()) + 1);
                let start = entropy.within(0..u64::from(span)) as u32;
                let mut candidates = (0..span).filter_map(|step| u16::try_from(low + (start + step) % span).ok());
                let found = candidates.find(|port| !taken.ports.contains(port));
                found.ok_or_else(|| vec![FieldError::internal(path, "failed to allocate a nodePort: range is full")])?
            }
        };
        if taken.ports.insert(port) {
            held.ports.push(port);
        }
        Ok(port)
    }
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
    use super::*;
    use serde_json::json;

    fn service() -> Object {
        Object::from_value(json!({"spec": {"ports": [{"port": 80}]}})).unwrap()
    }

    fn any() -> Vec<Allocation> {
        vec![
            Allocation::ClusterIp { index: 0, requested: None, ipv6: false },
            Allocation::NodePort { index: 0, requested: None },
        ]
    }

    #[test]
    fn every_address_of_a_range_is_handed_out_once_and_no_more() {
        let allocators = Allocators::new("10.0.0.0/28".parse().unwrap(), 30000..=30020);
        let mut seen = HashSet::new();
        for _ in 0..14 {
            let mut object = service();
            allocators.fulfil(any(), &mut object, &Entropy::system()).unwrap().keep(&allocators);
            assert!(seen.insert(object.get_str(&["spec", "clusterIP"]).unwrap().to_owned()));
        }
        assert!(allocators.fulfil(any(), &mut service(), &Entropy::system()).is_err());
        allocators.release(vec![Allocation::ReleaseClusterIp("10.0.0.3".into())]);
        let mut object = service();
        allocators.fulfil(any(), &mut object, &Entropy::system()).unwrap().keep(&allocators);
        assert_eq!(object.get_str(&["spec", "clusterIP"]), Some("10.0.0.3"));
    }

    #[test]
    fn a_write_that_fails_gives_back_what_it_took() {
        let allocators = Allocators::new("10.0.0.0/28".parse().unwrap(), 30000..=30000);
        for _ in 0..3 {
            drop(allocators.fulfil(any(), &mut service(), &Entropy::system()).unwrap());
        }
        let named = Allocation::NodePort { index: 0, requested: Some(30000) };
        allocators.fulfil(vec![named.clone()], &mut service(), &Entropy::system()).unwrap().keep(&allocators);
        assert!(allocators.fulfil(vec![named], &mut service(), &Entropy::system()).is_err());
        assert!(
            allocators
                .fulfil(
                    vec![Allocation::NodePort { index: 0, requested: Some(80) }],
                    &mut service(),
                    &Entropy::system()
                )
                .is_err()
        );
    }
}
