//! The network of one node: addresses, routes, rules, names.
//!
//! Owns the pod network (one namespace and one routed veth pair per pod, node-local address management, an overlay to
//! other nodes), the service proxy (one nftables table), the cluster DNS server, and the little it has to change on the
//! host for that (addresses on `lo`, one route, one sysctl), each recorded so that [`reset`] can take it back.
//!
//! Never decides which pods or services exist, never talks to an API server, never runs a program: the kernel is
//! spoken to over netlink, `/proc/sys` and two system calls (`unshare`, `mount`). No Kubernetes types: callers
//! translate.
//!
//! Everything is bound to the network namespace of the *thread* that calls `open`: sockets keep the namespace they
//! were made in, so that later calls may come from any thread.

pub mod cidr;
pub mod dns;
mod names;
pub mod netlink;
pub mod nft;
pub mod pod;
mod reset;
pub mod service;

pub use cidr::Cidr;
pub use dns::{Dns, DnsConfig, DnsError, Zone};
pub use pod::{NetConfig, Peer, PodNet, PodNetError, PodNetRequest, PodNetwork, Swept};
pub use reset::{ResetError, reset};
pub use service::{HostPort, Protocol, ProxyConfig, ProxyError, ServicePort, ServiceProxy, ServiceTable, Synced};
