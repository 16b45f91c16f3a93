//! The API servers that share a store: where each can be reached, and that they are of one cluster.
//!
//! Each keeps a Lease in `kube-system`, as every `kube-apiserver` does (KEP-1965), which also says its address; those
//! whose Lease still moves stand behind the `kubernetes` Service. Whether one moves is told by this server's own clock,
//! as in leader election: the clocks of several machines are not compared.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proa_apimachinery::object::Object;
use proa_store::{CommitError, Expect, Log, Txn};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::pki::Pki;
use crate::registry::{codec, meta};
use crate::server::{Error, Server, stand_behind, write};

/// How often a server says that it is there.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// A server whose Lease has not moved for so long is not there (Kubernetes' `masterleases` live as long).
const GONE_AFTER: Duration = Duration::from_secs(15);
/// Kubernetes' mark of these Leases.
const IDENTITY: (&str, &str) = ("apiserver.kubernetes.io/identity", "kube-apiserver");
/// The address in a Lease.
const ADDRESS: &str = "proa.dev/api-server-address";
/// Which keys the cluster has.
const KEYS: &str = "/registry/clusterkeys.proa.dev/cluster";

/// Makes sure that the store belongs to a cluster with these keys; the first server to come says which they are.
pub(crate) async fn same_keys(log: &dyn Log, pki: &Pki) -> Result<(), Error> {
    let fingerprint = pki.fingerprint()?;
    let failed = |error: &dyn std::fmt::Display| Error::Bootstrap(error.to_string());
    let record = json!({"apiVersion": "proa.dev/v1", "kind": "ClusterKeys", "metadata": {"name": "cluster"}, "fingerprint": fingerprint});
    let record =
        Object::from_value(record).map_err(|_| Error::Bootstrap("the record of keys is no object".to_owned()))?;
    match log.commit(Txn::put(KEYS, codec::encode(&record), Expect::Absent)).await {
        Ok(_) => return Ok(()),
        Err(CommitError::Conflict { .. }) => {}
        Err(error) => return Err(failed(&error)),
    }
    let (entry, _) = log.get(KEYS).await.map_err(|error| failed(&error))?;
    let known: Object = entry.and_then(|entry| serde_json::from_slice(&entry.bytes).ok()).unwrap_or_default();
    match known.get_str(&["fingerprint"]) == Some(&fingerprint) {
        true => Ok(()),
        false => Err(Error::OtherKeys { directory: pki.directory().display().to_string() }),
    }
}

/// What is known of the servers of a cluster.
#[derive(Default)]
struct Members {
    /// By the Lease's name: its revision, and since when it is that.
    seen: HashMap<String, (u64, Instant)>,
}

/// A Lease as it was found.
struct Sighting {
    name: String,
    revision: u64,
    address: SocketAddr,
}

impl Members {
    /// The servers that are there. One that is seen for the first time counts: it has all its time still.
    fn present(&mut self, sightings: Vec<Sighting>, now: Instant) -> BTreeSet<SocketAddr> {
        let mut seen = HashMap::new();
        let mut present = BTreeSet::new();
        for sighting in sightings {
            let since = match self.seen.get(&sighting.name) {
                Some((revision, since)) if *revision == sighting.revision => *since,
                _ => now,
            };
            if now.saturating_duration_since(since) < GONE_AFTER {
                present.insert(sighting.address);
            }
            seen.insert(sighting.name, (sighting.revision, since));
        }
        self.seen = seen;
        present
    }
}

/// Those that can stand behind one Service: it has one port, which is the one most of them serve at.
fn behind_one_port(servers: &BTreeSet<SocketAddr>) -> Option<(u16, Vec<IpAddr>)> {
    let mut ports: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
    for server in servers {
        ports.entry(server.port()).or_default().push(server.ip());
    }
    // Of two as good the lower one: every server must come to the same.
    ports.into_iter().rev().max_by_key(|(_, addresses)| addresses.len())
}

/// Says that this server is there, and who is, until it stops.
pub(crate) async fn run(server: Server) {
    let core = Arc::clone(&server.core);
    let own = SocketAddr::new(core.config.advertise, core.config.port());
    let mut members = Members::default();
    let mut refused = BTreeSet::new();
    loop {
        if let Err(error) = renew(&server, own).await {
            tracing::warn!(%error, "this API server cannot say that it is there");
        }
        let sightings = core.caches.resource("leases.coordination.k8s.io").items("kube-system");
        let sightings = sightings.iter().filter_map(|item| sighting(item.name(), item.revision, &item.object()));
        let mut present = members.present(sightings.collect(), Instant::now());
        present.insert(own);
        if let Some((port, addresses)) = behind_one_port(&present) {
            for other in present.iter().filter(|server| server.port() != port) {
                if refused.insert(*other) {
                    tracing::warn!(%other, port, "an API server on another port than the others cannot stand behind the kubernetes Service");
                }
            }
            if port == own.port()
                && let Err(error) = stand_behind(&server, &addresses).await
            {
                tracing::warn!(%error, "the API servers behind the kubernetes Service cannot be written");
            }
        }
        tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(RENEW_EVERY) => {}
        }
    }
}

fn sighting(name: &str, revision: u64, lease: &Object) -> Option<Sighting> {
    if lease.label(IDENTITY.0) != Some(IDENTITY.1) {
        return None;
    }
    Some(Sighting { name: name.to_owned(), revision, address: lease.annotation(ADDRESS)?.parse().ok()? })
}

/// The name of a server's Lease: the same after a restart.
fn lease_name(address: SocketAddr) -> String {
    format!("apiserver-{}", address.to_string().replace(|c: char| !c.is_ascii_alphanumeric(), "-").trim_matches('-'))
}

async fn renew(server: &Server, own: SocketAddr) -> Result<(), Error> {
    const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
    let core = &server.core;
    let name = lease_name(own);
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-system", "labels": {IDENTITY.0: IDENTITY.1},
            "annotations": {ADDRESS: own.to_string()}},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": GONE_AFTER.as_secs(), "renewTime": meta::micro_time(core.now())}});
    let Value::Object(lease) = lease else { unreachable!("made an object just above") };
    let lease = Object(lease);
    let known = core.caches.resource("leases.coordination.k8s.io").get("kube-system", &name).is_some();
    let (method, uri) = match known {
        true => (http::Method::PATCH, format!("{LEASES}/{name}")),
        false => (http::Method::POST, LEASES.to_owned()),
    };
    write(server, method, uri, &lease, &lease).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(name: &str, revision: u64) -> Sighting {
        Sighting { name: name.to_owned(), revision, address: format!("10.0.0.{name}:6443").parse().unwrap() }
    }

    #[test]
    fn a_server_whose_lease_no_longer_moves_is_gone_whatever_its_clock_says() {
        let (mut members, start) = (Members::default(), Instant::now());
        assert_eq!(members.present(vec![at("1", 5), at("2", 6)], start).len(), 2);
        let later = start + GONE_AFTER - Duration::from_millis(1);
        assert_eq!(members.present(vec![at("1", 9), at("2", 6)], later).len(), 2);
        let present = members.present(vec![at("1", 9), at("2", 6)], start + GONE_AFTER);
        assert_eq!(present.into_iter().collect::<Vec<_>>(), ["10.0.0.1:6443".parse().unwrap()]);
        let back = members.present(vec![at("1", 9), at("2", 20)], start + GONE_AFTER);
        assert_eq!(back.len(), 2);
    }

    #[test]
    fn one_service_has_one_port_and_all_servers_agree_which() {
        let servers = |list: &[&str]| list.iter().map(|server| server.parse().unwrap()).collect();
        let (port, addresses) =
            behind_one_port(&servers(&["10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:7443"])).unwrap();
        assert_eq!((port, addresses.len()), (6443, 2));
        assert_eq!(behind_one_port(&servers(&["10.0.0.9:6443", "10.0.0.1:7443"])).unwrap().0, 6443);
        assert!(behind_one_port(&BTreeSet::new()).is_none());
    }

    #[tokio::test]
    async fn a_server_with_other_keys_than_its_cluster_is_refused_by_name() {
        let log = proa_store::Memory::new(100);
        let dir = tempfile::tempdir().unwrap();
        let [ours, theirs] =
            ["ours", "theirs"].map(|name| Pki::open(&dir.path().join(name), crate::outside::Clock::system()).unwrap());
        for _ in 0..2 {
            same_keys(&log, &ours).await.unwrap();
        }
        let refused = same_keys(&log, &theirs).await.unwrap_err().to_string();
        assert!(refused.contains("theirs") && refused.contains("--pki-dir"), "{refused}");
    }
}
