//! Owns the host's own resolvers: what pods are told of them, and whom the cluster's DNS asks.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use parking_lot::Mutex;
use proa_network::dns::{Resolvers, upstream_from_resolv_conf};

/// What the host's own programs read.
const HOST: &str = "/etc/resolv.conf";
/// Where systemd-resolved writes the servers behind its stub, which listens on a loopback address.
const BEHIND_THE_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// The files that name the host's resolvers.
#[derive(Clone, Debug)]
pub(crate) struct HostResolver {
    pub(crate) host: PathBuf,
    pub(crate) behind_the_stub: PathBuf,
}

impl Default for HostResolver {
    fn default() -> Self {
        Self { host: HOST.into(), behind_the_stub: BEHIND_THE_STUB.into() }
    }
}

impl HostResolver {
    /// The `resolv.conf` a pod may be given: a loopback address of the host means nothing in its network.
    pub(crate) fn for_pods(&self) -> String {
        let own = std::fs::read_to_string(&self.host).unwrap_or_default();
        let servers = upstream_from_resolv_conf(&own, &[]);
        if servers.iter().any(|server| !server.ip().is_loopback()) {
            return own;
        }
        std::fs::read_to_string(&self.behind_the_stub).unwrap_or(own)
    }

    /// The resolvers as the host has them at any moment: DHCP and VPNs change them. The file is read again when it is
    /// another one. `own` is left out: asking oneself never ends.
    pub(crate) fn upstream(&self, own: IpAddr) -> Resolvers {
        let path = self.host.clone();
        let known: Mutex<(Option<Stamp>, Vec<SocketAddr>)> = Mutex::default();
        Resolvers::new(move || {
            let mut known = known.lock();
            let now = stamp(&path);
            if known.0.is_none() || known.0 != now {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                *known = (now, upstream_from_resolv_conf(&text, &[own]));
            }
            known.1.clone()
        })
    }
}

/// Tells one version of a file from the next: inode, time and size, of what a link leads to.
type Stamp = (u64, SystemTime, u64);

fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(path).ok()?;
    Some((found.ino(), found.modified().ok()?, found.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> (tempfile::TempDir, HostResolver) {
        let dir = tempfile::tempdir().unwrap();
        let files = HostResolver { host: dir.path().join("etc"), behind_the_stub: dir.path().join("run") };
        (dir, files)
    }

    #[test]
    fn pods_get_the_servers_behind_a_stub() {
        let (_dir, files) = files();
        std::fs::write(&files.host, "nameserver 127.0.0.53\noptions edns0\n").unwrap();
        assert_eq!(files.for_pods(), "nameserver 127.0.0.53\noptions edns0\n", "there is nothing better");
        std::fs::write(&files.behind_the_stub, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(files.for_pods(), "nameserver 192.0.2.1\n");
        std::fs::write(&files.host, "nameserver 192.0.2.2\n").unwrap();
        assert_eq!(files.for_pods(), "nameserver 192.0.2.2\n");
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let (dir, files) = files();
        let resolvers = files.upstream("10.96.0.10".parse().unwrap());
        let shown = || format!("{resolvers:?}");
        assert_eq!(shown(), "Resolvers([])");
        std::fs::write(&files.host, "nameserver 192.0.2.1\nnameserver 10.96.0.10\n").unwrap();
        assert_eq!(shown(), "Resolvers([192.0.2.1:53])");
        std::fs::write(dir.path().join("new"), "nameserver 192.0.2.2\n").unwrap();
        std::fs::rename(dir.path().join("new"), &files.host).unwrap();
        assert_eq!(shown(), "Resolvers([192.0.2.2:53])");
    }
}
