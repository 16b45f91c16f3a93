//! The overlay: one VXLAN interface that carries packets to the pods of other nodes.
//!
//! Every address on the way is known beforehand, so nothing is learned and nobody is asked: the hardware address of a
//! node's end follows from its pod block, forwarding and neighbour entries are permanent. Adding a peer is one
//! forwarding entry, one neighbour and one route.

use std::net::IpAddr;

use super::setup::mac_of;
use super::{ClaimError, Inner, PodNetError};
use crate::cidr::Cidr;
use crate::names;
use crate::netlink::Socket;
use crate::netlink::route::{Route, Scope};

/// Bytes that VXLAN over IPv4 adds to a packet.
const OVERHEAD: u32 = 50;
/// The same for every cluster: packets go to named peers only.
const NETWORK_ID: u32 = 7274;
/// IANA's number; the kernel's own default is an older one.
const PORT: u16 = 4789;

/// Another node of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Where the node is reached from this one.
    pub node: IpAddr,
    /// Its pods.
    pub pod_cidr: Cidr,
}

impl Inner {
    /// Makes exactly `peers` reachable. `local` is this node's address as the peers know it.
    pub(super) fn set_peers(&self, local: IpAddr, peers: &[Peer]) -> Result<(), PodNetError> {
        for address in std::iter::once(local).chain(peers.iter().flat_map(|p| [p.node, p.pod_cidr.base()])) {
            if address.is_ipv6() {
                return Err(PodNetError::Unsupported(format!("an IPv6 overlay ({address})")));
            }
        }
        let name = names::overlay(&self.config.instance);
        let mut socket = self.socket.lock();
        if peers.is_empty() {
            return Ok(socket.delete_link(&name)?);
        }
        let index = self.overlay_interface(&mut socket, &name, local)?;
        for stale in socket.routes_through(index)? {
            if !peers.iter().any(|p| p.pod_cidr == stale) {
                socket.delete_route(stale, index)?;
                if let Some(end) = stale.nth(1) {
                    socket.delete_neighbour(index, end)?;
                    socket.delete_forwarding(index, mac_of(end))?;
                }
            }
        }
        for peer in peers {
            let end = peer.pod_cidr.nth(1).ok_or(ClaimError::Exhausted(peer.pod_cidr))?;
            socket.add_forwarding(index, mac_of(end), peer.node)?;
            let route = Route {
                to: peer.pod_cidr,
                index,
                gateway: Some(end),
                source: Some(self.node),
                scope: Scope::Universe,
                on_link: true,
            };
            socket.add_neighbours_and_routes(&[(index, end, mac_of(end))], &[route])?;
        }
        Ok(())
    }

    /// The interface, as an earlier run left it when its address is still right: traffic goes on over a restart.
    fn overlay_interface(&self, socket: &mut Socket, name: &str, local: IpAddr) -> Result<u32, PodNetError> {
        let alias = format!("proa {} overlay {local}", self.config.instance);
        match socket.link(name)? {
            Some(link) if link.up && link.alias.as_deref() == Some(&alias) => return Ok(link.index),
            Some(_) => socket.delete_link(name)?,
            None => {}
        }
        let mtu = self.mtu.saturating_sub(OVERHEAD);
        socket.add_vxlan(name, mac_of(self.node), mtu, (NETWORK_ID, PORT), local)?;
        // The alias last: it says that the rest was done.
        socket.set_alias(name, &alias)?;
        super::setup::index_of(socket, name)
    }
}
