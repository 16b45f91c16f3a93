//! Netlink, as little of it as the node needs: framing, attributes, acknowledged requests and dumps, and on top of them
//! the verbs for links, addresses, routes, neighbours (`route`) and connection tracking (`conntrack`).
//!
//! A layer of our own because nftables (`crate::nft`) has no usable library, and one way to speak netlink is enough.
//! Blocking on purpose: the kernel answers within the call, in microseconds to a few milliseconds.

pub(crate) mod conntrack;
mod message;
pub(crate) mod route;
mod socket;

pub use message::{Attributes, Writer};
pub use socket::{NetlinkError, Socket};
