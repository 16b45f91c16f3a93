//! Reading back what an earlier run left in the kernel, so that taking over interrupts nothing.
//!
//! Replacing a table as a whole is one transaction, and still a packet that is half through the old rules when it
//! happens finds the old maps empty. So the maps stay, and only what differs changes in them.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::Protocol;
use super::model::{Backend, Destination, Model, Outcome};
use super::render::{HAIRPINS, NODE_PORTS, REFUSE, REMOTE, SERVICES};
use crate::netlink::{NetlinkError, Socket};
use crate::nft::{self, Data, DumpedElement, Verdict};

/// What the kernel holds in `table`, as far as it can be told from outside: which chains there are, not what their rules
/// say. `None` when there is no such table, or one that this version cannot have written.
pub(super) fn recover(socket: &mut Socket, table: &str) -> Result<Recovered, NetlinkError> {
    if !nft::tables(socket)?.iter().any(|t| t == table) {
        return Ok(Recovered::Nothing);
    }
    let sets = nft::sets(socket, table)?;
    if ![SERVICES, NODE_PORTS, HAIRPINS, REMOTE].iter().all(|name| sets.iter().any(|s| s == name)) {
        return Ok(Recovered::Foreign);
    }
    let mut read = |set: &str| nft::elements(socket, table, set);
    let services = read(SERVICES)?.iter().map(|e| Some((destination(&e.key)?, outcome(e)?))).collect::<Option<_>>();
    let node_ports = read(NODE_PORTS)?.iter().map(|e| Some((node_port(&e.key)?, outcome(e)?))).collect::<Option<_>>();
    let hairpins = read(HAIRPINS)?.iter().map(|e| Some((address(&e.key)?, ()))).collect::<Option<_>>();
    let remote = read(REMOTE)?.iter().map(|e| Some((destination(&e.key)?, ()))).collect::<Option<_>>();
    let chains = nft::chains(socket, table)?;
    let ours = chains.iter().filter(|name| ["svc/", "ext/", "host/"].iter().any(|kind| name.starts_with(kind)));
    let backends = ours.map(|name| (Arc::from(name.as_str()), unknown(name, &sets))).collect();
    let model = || Some(Model::read_back(backends, services?, node_ports?, hairpins?, remote?));
    Ok(model().map_or(Recovered::Foreign, Recovered::Ours))
}

/// What was found.
pub(super) enum Recovered {
    /// No table.
    Nothing,
    /// A table to go on from.
    Ours(Model),
    /// A table to replace.
    Foreign,
}

/// A backend whose rules are not known: no endpoints, which no wanted one has, so that it is written anew. Its affinity
/// map is known by its name, and kept with what clients it remembers.
fn unknown(chain: &str, sets: &[String]) -> Backend {
    let seconds = |set: &String| {
        let (seconds, of) = set.strip_prefix("aff")?.split_once('/')?;
        (of == chain).then(|| seconds.parse().ok()).flatten()
    };
    Backend { endpoints: Vec::new(), affinity: sets.iter().find_map(seconds) }
}

fn outcome(element: &DumpedElement) -> Option<Outcome> {
    match &element.data {
        Some(Data::Verdict(Verdict::Goto(chain))) if chain == REFUSE => Some(Outcome::Refuse),
        Some(Data::Verdict(Verdict::Goto(chain))) => Some(Outcome::Chain(chain.as_str().into())),
        Some(Data::Verdict(Verdict::Drop)) => Some(Outcome::Drop),
        _ => None,
    }
}

fn address(key: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(key.get(..4)?).ok()?))
}

fn destination(key: &[u8]) -> Option<Destination> {
    let (protocol, port) = node_port(key.get(4..)?)?;
    Some(Destination { ip: address(key)?, protocol, port })
}

fn node_port(key: &[u8]) -> Option<(Protocol, u16)> {
    let protocol = match key.first()? {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        132 => Protocol::Sctp,
        _ => return None,
    };
    Some((protocol, u16::from_be_bytes([*key.get(4)?, *key.get(5)?])))
}
