//! Links, addresses, routes and neighbours. Verbs that make something are idempotent; verbs that remove something treat
//! its absence as done.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

use super::message::{Attributes, Writer, flags};
use super::socket::{NetlinkError, Socket};
use crate::cidr::Cidr;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const RT_TABLE_MAIN: u8 = 254;
/// Marks our routes as installed by a daemon of the administrator, not by the kernel (`RTPROT_STATIC`).
const RTPROT_STATIC: u8 = 4;

const RTNH_F_ONLINK: u32 = 4;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IF_OPER_UP: u8 = 6;
const NTF_SELF: u8 = 2;
const NUD_NOARP: u16 = 0x40;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// How far an address or route reaches (`RT_SCOPE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Universe = 0,
    Link = 253,
    Host = 254,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: Option<String>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    /// Whether it also passes packets (RFC 2863, `ifOperStatus` up). The kernel decides so a moment after both ends of
    /// a pair are up, and drops what is sent before. Asking for one link settles it (Linux 6.9).
    pub(crate) operational: bool,
}

/// What a veth pair is made of.
pub(crate) struct Veth<'a> {
    pub(crate) name: &'a str,
    pub(crate) alias: &'a str,
    pub(crate) mac: Mac,
    pub(crate) peer_name: &'a str,
    pub(crate) peer_mac: Mac,
    pub(crate) peer_namespace: BorrowedFd<'a>,
    pub(crate) mtu: u32,
    /// Whether the kernel has IPv6 (then neither end gets a link-local address by itself).
    pub(crate) ipv6: bool,
}

/// A route to `to` through interface `index`.
pub(crate) struct Route {
    pub(crate) to: Cidr,
    pub(crate) index: u32,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) scope: Scope,
    /// The gateway is reached directly although no address of the interface says so.
    pub(crate) on_link: bool,
}

impl Socket {
    /// Every interface of the namespace.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut writer = Writer::new();
        writer.begin(libc::RTM_GETLINK, flags::DUMP).raw(&ifinfo(0, 0, 0));
        let mut links = Vec::new();
        self.dump(&writer, |_, payload| links.extend(read_link(payload)))?;
        Ok(links)
    }

    /// The interface of that name.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut writer = Writer::new();
        writer.begin(libc::RTM_GETLINK, 0).raw(&ifinfo(0, 0, 0)).text(IFLA_IFNAME, name);
        let mut link = None;
        match self.dump(&writer, |_, payload| link = read_link(payload)) {
            Ok(()) => Ok(link),
            Err(e) if e.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes a veth pair whose other end is born inside `peer_namespace` (ten times faster than moving it there), and
    /// brings this end up. The host end may route loopback addresses: that is what lets 127.0.0.1 reach a node port.
    pub(crate) fn add_veth(&mut self, veth: &Veth<'_>) -> Result<(), NetlinkError> {
        let mut writer = Writer::new();
        writer
            .begin(libc::RTM_NEWLINK, flags::ACK | flags::CREATE | flags::EXCL)
            .raw(&ifinfo(0, 0, 0))
            .text(IFLA_IFNAME, veth.name)
            .u32(IFLA_MTU, veth.mtu)
            .attr(IFLA_ADDRESS, &veth.mac)
            .nest(IFLA_LINKINFO, |w| {
                w.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |w| {
                    w.nest(VETH_INFO_PEER, |w| {
                        w.raw(&ifinfo(0, 0, 0))
                            .text(IFLA_IFNAME, veth.peer_name)
                            .u32(IFLA_MTU, veth.mtu)
                            .attr(IFLA_ADDRESS, &veth.peer_mac)
                            .u32(IFLA_NET_NS_FD, veth.peer_namespace.as_raw_fd() as u32);
                    });
                });
            });
        writer
            .begin(libc::RTM_SETLINK, flags::ACK)
            .raw(&ifinfo(0, 0, 0))
            .text(IFLA_IFNAME, veth.name)
            .text(IFLA_IFALIAS, veth.alias)
            .nest(IFLA_AF_SPEC, |w| {
                w.nest(libc::AF_INET as u16, |w| {
                    w.nest(IFLA_INET_CONF, |w| {
                        w.u32(IPV4_DEVCONF_ROUTE_LOCALNET, 1);
                    });
                });
                if veth.ipv6 {
                    no_link_local(w);
                }
            });
        up(&mut writer, veth.name);
        self.request(&writer, |_| format!("interface {}", veth.name))
    }

    /// Brings interfaces up; those called `eth0` get no IPv6 link-local address first when the kernel has IPv6.
    pub(crate) fn set_up(&mut self, names: &[&str], ipv6: bool) -> Result<(), NetlinkError> {
        let mut writer = Writer::new();
        for name in names {
            if ipv6 && *name != "lo" {
                writer
                    .begin(libc::RTM_SETLINK, flags::ACK)
                    .raw(&ifinfo(0, 0, 0))
                    .text(IFLA_IFNAME, name)
                    .nest(IFLA_AF_SPEC, no_link_local);
            }
            up(&mut writer, name);
        }
        self.request(&writer, |_| format!("bringing up {}", names.join(", ")))
    }

    /// Takes an interface down.
    pub(crate) fn set_down(&mut self, name: &str) -> Result<(), NetlinkError> {
        let mut writer = Writer::new();
        let header = ifinfo(0, 0, libc::IFF_UP as u32);
        writer.begin(libc::RTM_SETLINK, flags::ACK).raw(&header).text(IFLA_IFNAME, name);
        self.request(&writer, |_| format!("taking down {name}"))
    }

    /// Removes an interface (and the other end of a pair).
    pub(crate) fn delete_link(&mut self, name: &str) -> Result<(), NetlinkError> {
        let mut writer = Writer::new();
        writer.begin(libc::RTM_DELLINK, flags::ACK).raw(&ifinfo(0, 0, 0)).text(IFLA_IFNAME, name);
        gone_is_fine(self.request(&writer, |_| format!("removing interface {name}")))
    }

    /// Removes several interfaces in one go, marked by an otherwise unused `group`. Returns what failed, by name.
    pub(crate) fn delete_links(&mut self, names: &[String], group: u32) -> Vec<(String, NetlinkError)> {
        let mut failed = Vec::new();
        if let [name] = names {
            failed.extend(self.delete_link(name).err().map(|e| (name.clone(), e)));
            return failed;
        }
        let mut marked = Vec::new();
        for name in names {
            let mut writer = Writer::new();
            let message = writer.begin(libc::RTM_SETLINK, flags::ACK).raw(&ifinfo(0, 0, 0)).text(IFLA_IFNAME, name);
            message.u32(IFLA_GROUP, group);
            match self.request(&writer, |_| format!("marking interface {name}")) {
                Ok(()) => marked.push(name),
                Err(e) if e.errno() == Some(Errno::ENODEV) => {}
                Err(e) => failed.push((name.clone(), e)),
            }
        }
        if !marked.is_empty() {
            let mut writer = Writer::new();
            writer.begin(libc::RTM_DELLINK, flags::ACK).raw(&ifinfo(0, 0, 0)).u32(IFLA_GROUP, group);
            if gone_is_fine(self.request(&writer, |_| "removing interfaces".into())).is_err() {
                // One by one, to know which.
                for name in marked {
                    failed.extend(self.delete_link(name).err().map(|e| (name.clone(), e)));
                }
            }
        }
        failed
    }

    /// Puts a host address (/32, /128) on an interface.
    pub(crate) fn add_address(&mut self, index: u32, address: IpAddr, scope: Scope) -> Result<(), NetlinkError> {
        let mut writer = Writer::new();
        writer.begin(libc::RTM_NEWADDR, flags::ACK | flags::CREATE | flags::REPLACE);
        address_body(&mut writer, index, address, scope);
        there_is_fine(self.request(&writer, |_| format!("adding address {address}")))
    }

    /// Takes a host address off an interface.
    pub(crate) fn delete_address(&mut self, index: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut writer = Writer::new();
        writer.begin(libc::RTM_DELADDR, flags::ACK);
        address_body(&mut writer, index, address, Scope::Universe);
        gone_is_fine(self.request(&writer, |_| format!("removing address {address}")))
    }

    /// Adds a route in the main table, or replaces the one to the same place.
    pub(crate) fn add_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let mut writer = Writer::new();
        write_route(&mut writer, route);
        self.request(&writer, |_| format!("adding the route to {}", route.to))
    }

    /// Adds permanent neighbours and routes in one exchange, in that order.
    pub(crate) fn add_neighbours_and_routes(
        &mut self,
        neighbours: &[(u32, IpAddr, Mac)],
        routes: &[Route],
    ) -> Result<(), NetlinkError> {
        let mut writer = Writer::new();
        for (index, address, mac) in neighbours {
            writer.begin(libc::RTM_NEWNEIGH, flags::ACK | flags::CREATE | flags::REPLACE).raw(&neighbour(
                family(*address),
                *index,
                NUD_PERMANENT,
                0,
            ));
            octets(&mut writer, NDA_DST, *address);
            writer.attr(NDA_LLADDR, mac);
        }
        for route in routes {
            write_route(&mut writer, route);
        }
        let what = || routes.first().map(|r| r.to.to_string()).unwrap_or_default();
        self.request(&writer, |_| format!("adding neighbour or route to {}", what()))
    }

    /// Makes a VXLAN interface with this network id and port that learns nothing, and brings it up.
    pub(crate) fn add_vxlan(
        &mut self,
        name: &str,
        mac: Mac,
        mtu: u32,
        (id, port): (u32, u16),
        local: IpAddr,
    ) -> Result<(), NetlinkError> {
        let mut writer = Writer::new();
        writer
            .begin(libc::RTM_NEWLINK, flags::ACK | flags::CREATE | flags::EXCL)
            .raw(&ifinfo(0, 0, 0))
            .text(IFLA_IFNAME, name)
            .u32(IFLA_MTU, mtu)
            .attr(IFLA_ADDRESS, &mac)
            .nest(IFLA_LINKINFO, |w| {
                w.text(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, |w| {
                    w.u32(IFLA_VXLAN_ID, id).attr(IFLA_VXLAN_LEARNING, &[0]).attr(IFLA_VXLAN_PORT, &port.to_be_bytes());
                    octets(w, IFLA_VXLAN_LOCAL, local);
                });
            });
        up(&mut writer, name);
        self.request(&writer, |_| format!("overlay interface {name}"))
    }

    /// Sets the text an interface is described by.
    pub(crate) fn set_alias(&mut self, name: &str, alias: &str) -> Result<(), NetlinkError> {
        let mut writer = Writer::new();
        let message = writer.begin(libc::RTM_SETLINK, flags::ACK).raw(&ifinfo(0, 0, 0));
        message.text(IFLA_IFNAME, name).text(IFLA_IFALIAS, alias);
        self.request(&writer, |_| format!("describing interface {name}"))
    }

    /// Frames to `mac` go to the node at `to`.
    pub(crate) fn add_forwarding(&mut self, index: u32, mac: Mac, to: IpAddr) -> Result<(), NetlinkError> {
        let mut writer = Writer::new();
        let message = writer.begin(libc::RTM_NEWNEIGH, flags::ACK | flags::CREATE | flags::REPLACE);
        message.raw(&neighbour(libc::AF_BRIDGE as u8, index, NUD_PERMANENT | NUD_NOARP, NTF_SELF));
        message.attr(NDA_LLADDR, &mac);
        octets(message, NDA_DST, to);
        self.request(&writer, |_| format!("forwarding to node {to}"))
    }

    /// Forgets where frames to `mac` go.
    pub(crate) fn delete_forwarding(&mut self, index: u32, mac: Mac) -> Result<(), NetlinkError> {
        let mut writer = Writer::new();
        let header = neighbour(libc::AF_BRIDGE as u8, index, 0, NTF_SELF);
        writer.begin(libc::RTM_DELNEIGH, flags::ACK).raw(&header).attr(NDA_LLADDR, &mac);
        gone_is_fine(self.request(&writer, |_| "removing a forwarding entry".into()))
    }

    /// Forgets a permanent neighbour.
    pub(crate) fn delete_neighbour(&mut self, index: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut writer = Writer::new();
        writer.begin(libc::RTM_DELNEIGH, flags::ACK).raw(&neighbour(family(address), index, 0, 0));
        octets(&mut writer, NDA_DST, address);
        gone_is_fine(self.request(&writer, |_| format!("removing neighbour {address}")))
    }

    /// Where the IPv4 routes of the main table through an interface lead.
    pub(crate) fn routes_through(&mut self, index: u32) -> Result<Vec<Cidr>, NetlinkError> {
        let mut found = Vec::new();
        self.main_routes(|prefix, attributes| {
            let base = attributes.be32(RTA_DST).map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from_bits);
            if attributes.u32(RTA_OIF) == Some(index) {
                found.extend(Cidr::new(base.into(), prefix));
            }
        })?;
        Ok(found)
    }

    /// Removes the route to `to` through interface `index` (any interface when 0) from the main table.
    pub(crate) fn delete_route(&mut self, to: Cidr, index: u32) -> Result<(), NetlinkError> {
        let mut writer = Writer::new();
        writer.begin(libc::RTM_DELROUTE, flags::ACK).raw(&[
            family(to.base()),
            to.prefix(),
            0,
            0,
            RT_TABLE_MAIN,
            0,
            255, // RT_SCOPE_NOWHERE: whatever the scope
            0,
            0,
            0,
            0,
            0,
        ]);
        octets(&mut writer, RTA_DST, to.base());
        if index != 0 {
            writer.u32(RTA_OIF, index);
        }
        gone_is_fine(self.request(&writer, |_| format!("removing the route to {to}")))
    }

    /// The interface that the IPv4 default route with the best metric leaves by.
    pub(crate) fn default_interface(&mut self) -> Result<Option<u32>, NetlinkError> {
        let mut best: Option<(u32, u32)> = None;
        self.main_routes(|prefix, attributes| {
            if let (0, Some(index)) = (prefix, attributes.u32(RTA_OIF)) {
                let candidate = (attributes.u32(RTA_PRIORITY).unwrap_or(0), index);
                best = Some(best.map_or(candidate, |b| b.min(candidate)));
            }
        })?;
        Ok(best.map(|(_, index)| index))
    }

    /// Hands prefix length and attributes of every IPv4 route of the main table to `each`.
    fn main_routes(&mut self, mut each: impl FnMut(u8, Attributes<'_>)) -> Result<(), NetlinkError> {
        let mut writer = Writer::new();
        writer.begin(libc::RTM_GETROUTE, flags::DUMP).raw(&[libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        self.dump(&writer, |_, payload| {
            let (Some(header), Some(rest)) = (payload.get(..12), payload.get(12..)) else { return };
            let attributes = Attributes(rest);
            if attributes.u32(RTA_TABLE).unwrap_or(u32::from(header[4])) == u32::from(RT_TABLE_MAIN) {
                each(header[1], attributes);
            }
        })
    }
}

/// `struct ndmsg`.
fn neighbour(family: u8, index: u32, state: u16, flags: u8) -> [u8; 12] {
    let [a, b, c, d] = index.to_ne_bytes();
    let [low, high] = state.to_ne_bytes();
    [family, 0, 0, 0, a, b, c, d, low, high, flags, 0]
}

fn ifinfo(index: u32, set: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&set.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

fn up(writer: &mut Writer, name: &str) {
    let flag = libc::IFF_UP as u32;
    writer.begin(libc::RTM_SETLINK, flags::ACK).raw(&ifinfo(0, flag, flag)).text(IFLA_IFNAME, name);
}

fn no_link_local(writer: &mut Writer) {
    writer.nest(libc::AF_INET6 as u16, |w| {
        w.attr(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
    });
}

fn address_body(writer: &mut Writer, index: u32, address: IpAddr, scope: Scope) {
    let prefix = Cidr::host(address).prefix();
    writer.raw(&[family(address), prefix, 0, scope as u8]).raw(&index.to_ne_bytes());
    octets(writer, IFA_LOCAL, address);
    octets(writer, IFA_ADDRESS, address);
}

fn write_route(writer: &mut Writer, route: &Route) {
    writer.begin(libc::RTM_NEWROUTE, flags::ACK | flags::CREATE | flags::REPLACE).raw(&[
        family(route.to.base()),
        route.to.prefix(),
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_STATIC,
        route.scope as u8,
        libc::RTN_UNICAST,
    ]);
    writer.raw(&(if route.on_link { RTNH_F_ONLINK } else { 0 }).to_ne_bytes());
    if route.to.prefix() > 0 {
        octets(writer, RTA_DST, route.to.base());
    }
    writer.u32(RTA_OIF, route.index);
    if let Some(gateway) = route.gateway {
        octets(writer, RTA_GATEWAY, gateway);
    }
    if let Some(source) = route.source {
        octets(writer, RTA_PREFSRC, source);
    }
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(writer: &mut Writer, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => writer.attr(kind, &v4.octets()),
        IpAddr::V6(v6) => writer.attr(kind, &v6.octets()),
    };
}

fn read_link(payload: &[u8]) -> Option<Link> {
    let header = payload.get(..16)?;
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let attributes = Attributes(&payload[16..]);
    Some(Link {
        index: word(4),
        up: word(8) & libc::IFF_UP as u32 != 0,
        name: attributes.text(IFLA_IFNAME)?,
        alias: attributes.text(IFLA_IFALIAS),
        operational: attributes.get(IFLA_OPERSTATE) == Some(&[IF_OPER_UP]),
        mtu: attributes.u32(IFLA_MTU).unwrap_or(1500),
    })
}

fn gone_is_fine(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(e) if matches!(e.errno(), Some(Errno::ENODEV | Errno::EADDRNOTAVAIL | Errno::ESRCH | Errno::ENOENT)) => {
            Ok(())
        }
        other => other,
    }
}

fn there_is_fine(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(e) if e.errno() == Some(Errno::EEXIST) => Ok(()),
        other => other,
    }
}
