//! Making, removing, listing and sweeping pod networks: the blocking work behind [`super::PodNetwork`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Inner, PINS, PodNet, PodNetError, PodNetRequest, Swept, namespace};
use crate::cidr::Cidr;
use crate::names;
use crate::netlink::NetlinkError;
use crate::netlink::route::{Mac, Route, Scope, Veth};

/// Where every pod's default route leads; see the module documentation.
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));

/// The host's end of every pair; locally administered. The same everywhere: each pair is a link of its own.
const HOST_MAC: Mac = [0xfe, 0x70, 0x72, 0x6f, 0x61, 0x01];

/// How long the kernel may take to let packets through a new pair: it takes a millisecond, or a second when it is busy
/// with many interfaces and older than Linux 6.9.
const OPERATIONAL: Duration = Duration::from_secs(5);

const EVERYWHERE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

impl Inner {
    pub(super) fn setup(&self, id: &str, request: &PodNetRequest) -> Result<PodNet, PodNetError> {
        if !names::is_sandbox_id(id) {
            return Err(PodNetError::InvalidId(id.to_owned()));
        }
        let lock = self.lock(id);
        let _held = lock.lock();
        let claim = self.claims.lock().claim(id, request.address)?;
        let net = self.describe(id, claim.address);
        if claim.ready && namespace::is_pinned(&net.netns) && self.socket.lock().link(&net.interface)?.is_some() {
            return Ok(net);
        }
        let made =
            self.make(&net, request.mtu.unwrap_or(self.mtu)).and_then(|()| Ok(self.claims.lock().complete(id)?));
        match made {
            Ok(()) => Ok(net),
            Err(error) => {
                // The first error tells more than whatever goes wrong while clearing up after it.
                let _ = self.unmake(&net);
                Err(error)
            }
        }
    }

    pub(super) fn teardown(&self, id: &str) -> Result<(), PodNetError> {
        if !names::is_sandbox_id(id) {
            return Err(PodNetError::InvalidId(id.to_owned()));
        }
        let lock = self.lock(id);
        let _held = lock.lock();
        let address = self.claims.lock().get(id).map_or(EVERYWHERE.into(), |claim| claim.address);
        self.unmake(&self.describe(id, address))
    }

    pub(super) fn list(&self) -> Result<Vec<PodNet>, PodNetError> {
        let claims = self.claims.lock();
        let ready = claims.iter().filter(|(_, claim)| claim.ready);
        // After a reboot the claims are still there and nothing else is.
        let nets =
            ready.map(|(id, claim)| self.describe(id, claim.address)).filter(|net| namespace::is_pinned(&net.netns));
        Ok(nets.collect())
    }

    pub(super) fn sweep(&self, known: &BTreeSet<String>) -> Result<Swept, PodNetError> {
        let mut swept = Swept::default();
        let mut errors = Vec::new();
        let pinned = pins(&self.config.state_dir.join(PINS));
        let mut left: BTreeSet<String> =
            pinned.iter().filter_map(|p| p.file_name()?.to_str()).map(str::to_owned).collect();
        left.extend(self.claims.lock().iter().map(|(id, _)| id.to_owned()));
        for id in left.difference(known) {
            match self.teardown(id) {
                Ok(()) => swept.sandboxes.push(id.clone()),
                Err(e) => errors.push(e),
            }
        }
        let mut wanted: BTreeSet<String> = known.iter().map(|id| names::interface(&self.config.instance, id)).collect();
        wanted.insert(names::overlay(&self.config.instance));
        let prefix = names::interface_prefix(&self.config.instance);
        let links = self.socket.lock().links()?;
        for link in links.into_iter().filter(|l| l.name.starts_with(&prefix) && !wanted.contains(&l.name)) {
            let removed = self.removal.remove(&link.name);
            match removed {
                Ok(()) => swept.interfaces.push(link.name),
                Err(e) => errors.push(e.into()),
            }
        }
        collected(errors).map(|()| swept)
    }

    fn describe(&self, id: &str, ip: IpAddr) -> PodNet {
        PodNet {
            id: id.to_owned(),
            netns: self.config.state_dir.join(PINS).join(id),
            ip,
            interface: names::interface(&self.config.instance, id),
        }
    }

    fn make(&self, net: &PodNet, mtu: u32) -> Result<(), PodNetError> {
        // Whatever an interrupted attempt left is replaced: half a network is not worth finding out about.
        let left = self.socket.lock().link(&net.interface)?.is_some();
        if left {
            self.removal.remove(&net.interface)?;
        }
        namespace::unpin(&net.netns)?;

        let mut pod = namespace::create(&net.netns)?;
        let pod_mac = mac_of(net.ip);
        let alias = format!("proa {} {}", self.config.instance, net.id);
        let veth = Veth {
            name: &net.interface,
            alias: alias.get(..255).unwrap_or(&alias),
            mac: HOST_MAC,
            peer_name: "eth0",
            peer_mac: pod_mac,
            peer_namespace: pod.descriptor.as_fd(),
            mtu,
            ipv6: self.ipv6,
        };
        let host = Cidr::host;
        {
            let mut socket = self.socket.lock();
            socket.add_veth(&veth)?;
            let index = index_of(&mut socket, &net.interface)?;
            let to_pod = Route {
                to: host(net.ip),
                index,
                gateway: None,
                source: Some(self.node),
                scope: Scope::Link,
                on_link: false,
            };
            socket.add_neighbours_and_routes(&[(index, net.ip, pod_mac)], &[to_pod])?;
        }
        pod.socket.set_up(&["lo", "eth0"], self.ipv6)?;
        let index = index_of(&mut pod.socket, "eth0")?;
        pod.socket.add_address(index, net.ip, Scope::Universe)?;
        let to_gateway =
            Route { to: host(GATEWAY), index, gateway: None, source: None, scope: Scope::Link, on_link: false };
        let everywhere = Cidr::new(EVERYWHERE.into(), 0).unwrap_or(host(GATEWAY));
        let default = Route {
            to: everywhere,
            index,
            gateway: Some(GATEWAY),
            source: None,
            scope: Scope::Universe,
            on_link: false,
        };
        pod.socket.add_neighbours_and_routes(&[(index, GATEWAY, HOST_MAC)], &[to_gateway, default])?;
        // The host's end was up first, so the kernel opens it for packets only now, in the background. A pod that asked
        // for a name before would never see the reply, and ask again after five seconds.
        let deadline = Instant::now() + OPERATIONAL;
        while !self.socket.lock().link(&net.interface)?.is_some_and(|link| link.operational) {
            if Instant::now() >= deadline {
                return Err(NetlinkError::Protocol("the interface just made does not pass packets").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Interface first: the namespace alone would take it along, but only once its last process is gone. The address
    /// is given back when nothing that bears it is left.
    fn unmake(&self, net: &PodNet) -> Result<(), PodNetError> {
        let mut errors: Vec<PodNetError> = Vec::new();
        let interface = self.removal.remove(&net.interface);
        let interface_gone = interface.is_ok();
        errors.extend(interface.err().map(PodNetError::from));
        errors.extend(namespace::unpin(&net.netns).err().map(PodNetError::from));
        if interface_gone {
            errors.extend(self.claims.lock().release(&net.id).err().map(PodNetError::from));
        }
        collected(errors)
    }

    fn lock(&self, id: &str) -> Arc<Mutex<()>> {
        let mut busy = self.busy.lock();
        busy.retain(|_, lock| Arc::strong_count(lock) > 1);
        busy.entry(id.to_owned()).or_default().clone()
    }
}

/// The pins in a directory; none when it is absent.
pub(super) fn pins(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

pub(super) fn index_of(socket: &mut crate::netlink::Socket, name: &str) -> Result<u32, PodNetError> {
    match socket.link(name)? {
        Some(link) => Ok(link.index),
        None => Err(NetlinkError::Protocol("the interface just made is not there").into()),
    }
}

/// A hardware address that follows from an IP address: locally administered, unique where the address is.
pub(super) fn mac_of(address: IpAddr) -> Mac {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [0x02, 0x70, a, b, c, d]
        }
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            [0x06, 0x70, a, b, c, d]
        }
    }
}

fn collected(mut errors: Vec<PodNetError>) -> Result<(), PodNetError> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(PodNetError::Several(errors)),
    }
}
