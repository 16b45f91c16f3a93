//! The difference between two models, written as nftables changes.
//!
//! The table, in one picture (`…` is a service port):
//!
//! ```text
//! prerouting, output ─ jump ─ services ─ address.protocol.port ─ @services ──┬─ goto svc/… ─ pick ─ dnat
//!                                      └ local address: protocol.port ─ @node_ports ┤
//!                                      └ other service addresses ──────────────┴─ goto refuse
//! postrouting ─ hairpin | loopback | leaving the cluster | outside client to another node's endpoint ─ masquerade
//! ```
//!
//! A chain picks by a random number. With session affinity a rule before that looks the client up in a timed map; what
//! it finds counts only while it is still one of the endpoints.
//! Nothing is marked: which packets to masquerade follows from addresses alone, so no bit of anybody's mark is taken.

use std::cmp::Ordering;
use std::net::SocketAddrV4;

use super::model::{Backend, Destination, Model, Outcome, Sorted};
use super::{Protocol, ProxyConfig};
use crate::cidr::Cidr;
use crate::names;
use crate::nft::{
    Base, Batch, Chain, ChainKind, CmpOp, CtKey, Data, DynsetOp, Element, Expr, FibResult, FibTarget, Hook, MetaKey,
    NatKind, Reg, Reject, SetKind, SetRef, SetSpec, Verdict,
};

pub(super) const SERVICES: &str = "services";
pub(super) const NODE_PORTS: &str = "node_ports";
pub(super) const HAIRPINS: &str = "hairpins";
pub(super) const REMOTE: &str = "remote_endpoints";
pub(super) const REFUSE: &str = "refuse";

/// `nft`'s numbers of data types, so that `nft list` prints addresses as addresses.
const IPV4: u32 = 7;
const PROTOCOL: u32 = 12;
const PORT: u32 = 13;
const DESTINATION_TYPE: u32 = IPV4 << 12 | PROTOCOL << 6 | PORT;
const ENDPOINT_TYPE: u32 = IPV4 << 6 | PORT;

/// `RTN_LOCAL`: the address is the machine's own.
const LOCAL: u32 = 2;
/// `IPS_DST_NAT`: the connection's destination was rewritten.
const DESTINATION_REWRITTEN: u32 = 1 << 5;
/// Up to so many endpoints get a rule each; more share an unnamed map, which costs the kernel as much as several rules.
const FEW: usize = 4;
const ICMP_PORT_UNREACHABLE: u8 = 3;

/// Adds everything that does not depend on services; what is there of it is written anew.
pub(super) fn foundation(batch: &mut Batch, config: &ProxyConfig) {
    batch.add_table();
    for (name, key_len, kind, key_type) in [
        (SERVICES, 12, SetKind::VerdictMap, DESTINATION_TYPE),
        (NODE_PORTS, 8, SetKind::VerdictMap, PROTOCOL << 6 | PORT),
        (HAIRPINS, 8, SetKind::Set, IPV4 << 6 | IPV4),
        (REMOTE, 12, SetKind::Set, DESTINATION_TYPE),
    ] {
        batch.add_set(&SetSpec { name, key_len, kind, timeout: None, key_type, data_type: 0 });
    }
    for name in [SERVICES, REFUSE] {
        batch.add_chain(&Chain { name, hook: None });
    }
    let nat = ChainKind::Nat;
    for (name, hook) in [
        ("prerouting", (nat, Hook::Prerouting, -100)),
        ("output", (nat, Hook::Output, -100)),
        ("postrouting", (nat, Hook::Postrouting, 100)),
        ("guard", (ChainKind::Filter, Hook::Prerouting, -300)),
    ] {
        batch.add_chain(&Chain { name, hook: Some(hook) });
    }
    for name in [SERVICES, REFUSE, "prerouting", "output", "postrouting", "guard"] {
        batch.flush_chain(name);
    }
    for name in ["prerouting", "output"] {
        batch.add_rule(name, &[Expr::Verdict(Verdict::Jump(SERVICES.into()))]);
    }
    services_rules(batch, config);
    batch.add_rule(
        REFUSE,
        &[
            Expr::Meta { key: MetaKey::L4Proto, to: Reg(0) },
            Expr::Cmp { reg: Reg(0), op: CmpOp::Eq, value: vec![Protocol::Tcp.number()] },
            Expr::Reject(Reject::TcpReset),
        ],
    );
    batch.add_rule(REFUSE, &[Expr::Reject(Reject::Icmp(ICMP_PORT_UNREACHABLE))]);
    postrouting_rules(batch, config);
    // Host ends route loopback addresses (for node ports at 127.0.0.1); a pod must not reach the host's loopback so.
    let mut guard = interface(MetaKey::IifName, &pod_interfaces(config));
    guard.extend(address(DESTINATION_ADDRESS, loopback(), CmpOp::Eq));
    guard.push(Expr::Verdict(Verdict::Drop));
    batch.add_rule("guard", &guard);
}

fn services_rules(batch: &mut Batch, config: &ProxyConfig) {
    let mut known = destination();
    known.push(Expr::VerdictMap { set: SetRef::named(SERVICES), key: Reg(0) });
    batch.add_rule(SERVICES, &known);
    if let Some(services) = config.service_cidr {
        let mut nobody = address(DESTINATION_ADDRESS, services, CmpOp::Eq);
        nobody.extend(local_destination(CmpOp::Neq));
        nobody.push(Expr::Verdict(Verdict::Goto(REFUSE.into())));
        batch.add_rule(SERVICES, &nobody);
    }
    let mut node_port = local_destination(CmpOp::Eq);
    node_port.extend([
        Expr::Meta { key: MetaKey::L4Proto, to: Reg(0) },
        Expr::Payload { base: Base::Transport, offset: 2, len: 2, to: Reg(1) },
        Expr::VerdictMap { set: SetRef::named(NODE_PORTS), key: Reg(0) },
    ]);
    batch.add_rule(SERVICES, &node_port);
}

fn postrouting_rules(batch: &mut Batch, config: &ProxyConfig) {
    let chain = "postrouting";
    // Nothing that stays on the machine.
    let mut stays = interface(MetaKey::OifName, "lo");
    stays.push(Expr::Verdict(Verdict::Accept));
    batch.add_rule(chain, &stays);
    // A pod that reached itself through a service: its own address as a source would confuse it.
    batch.add_rule(
        chain,
        &[
            Expr::Payload { base: Base::Network, offset: SOURCE_ADDRESS, len: 8, to: Reg(0) },
            Expr::InSet { set: SetRef::named(HAIRPINS), key: Reg(0), invert: false },
            Expr::Masquerade,
        ],
    );
    // The host's 127.0.0.1 to a pod: a node port used on the machine itself.
    let mut from_loopback = interface(MetaKey::OifName, &pod_interfaces(config));
    from_loopback.extend(address(SOURCE_ADDRESS, loopback(), CmpOp::Eq));
    from_loopback.push(Expr::Masquerade);
    batch.add_rule(chain, &from_loopback);
    // This node's pods to the world.
    let mut leaving = address(SOURCE_ADDRESS, config.pod_cidr, CmpOp::Eq);
    leaving.extend(address(DESTINATION_ADDRESS, config.cluster_cidr, CmpOp::Neq));
    leaving.push(Expr::Masquerade);
    batch.add_rule(chain, &leaving);
    // The world, through us, to an endpoint elsewhere: the answer must come back through us.
    let mut through = vec![
        Expr::Ct { key: CtKey::Status, to: Reg(0) },
        Expr::Bitwise { from: Reg(0), to: Reg(0), mask: DESTINATION_REWRITTEN.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        Expr::Cmp { reg: Reg(0), op: CmpOp::Neq, value: vec![0; 4] },
    ];
    through.extend(address(SOURCE_ADDRESS, config.cluster_cidr, CmpOp::Neq));
    through.extend(destination());
    through.extend([Expr::InSet { set: SetRef::named(REMOTE), key: Reg(0), invert: false }, Expr::Masquerade]);
    batch.add_rule(chain, &through);
}

/// Adds what leads from `old` to `new`. Order: what leads to a chain goes before the chain, and comes after it.
pub(super) fn difference(batch: &mut Batch, old: &Model, new: &Model) {
    let services = Changes::between(&old.services, &new.services, service_element);
    let node_ports = Changes::between(&old.node_ports, &new.node_ports, node_port_element);
    let hairpins = Changes::between(&old.hairpins, &new.hairpins, |ip, ()| Element {
        key: [ip.octets(), ip.octets()].concat(),
        data: None,
    });
    let remote = Changes::between(&old.remote, &new.remote, |to, ()| Element { key: destination_key(*to), data: None });
    let sets = [(SERVICES, &services), (NODE_PORTS, &node_ports), (HAIRPINS, &hairpins), (REMOTE, &remote)];
    for (set, changes) in sets {
        batch.delete_elements(set, &changes.gone);
    }
    for change in changed(&old.backends, &new.backends) {
        let name = change.key;
        let map = |backend: Option<&Backend>| backend.and_then(|b| affinity_map(name, b));
        let (before, after) = (map(change.old), map(change.new));
        if change.old.is_some() {
            batch.flush_chain(name);
        }
        if let Some(gone) = before.as_deref().filter(|_| before != after) {
            batch.delete_set(gone);
        }
        let Some(backend) = change.new else {
            batch.delete_chain(name);
            continue;
        };
        if change.old.is_none() {
            batch.add_chain(&Chain { name, hook: None });
        }
        if let Some(come) = after.as_deref().filter(|_| before != after) {
            batch.add_set(&SetSpec {
                name: come,
                key_len: 4,
                kind: SetKind::Map(8),
                timeout: backend.affinity,
                key_type: IPV4,
                data_type: ENDPOINT_TYPE,
            });
        }
        backend_rules(batch, name, backend, after);
    }
    for (set, changes) in sets {
        batch.add_elements(set, &changes.come);
    }
}

/// The rules that pick one of a backend's endpoints.
fn backend_rules(batch: &mut Batch, chain: &str, backend: &Backend, affinity: Option<String>) {
    // Registers 0 and 1 hold the endpoint, 2 the random number or the client.
    let (endpoint, port, scratch) = (Reg(0), Reg(1), Reg(2));
    let rewrite = Expr::Nat { kind: NatKind::Destination, address: endpoint, port: Some(port) };
    let client = Expr::Payload { base: Base::Network, offset: SOURCE_ADDRESS, len: 4, to: scratch };
    let remember = |map: &str, op| Expr::Dynset { set: SetRef::named(map), op, key: scratch, data: Some(endpoint) };
    if let Some(map) = &affinity {
        let current: Vec<Element> =
            backend.endpoints.iter().map(|e| Element { key: endpoint_value(*e), data: None }).collect();
        let current = batch.anonymous_set(8, SetKind::Set, &current);
        batch.add_rule(
            chain,
            &[
                client.clone(),
                Expr::MapTo { set: SetRef::named(map), key: scratch, to: endpoint },
                Expr::InSet { set: current, key: endpoint, invert: false },
                remember(map, DynsetOp::Update),
                rewrite.clone(),
            ],
        );
    }
    let finish = |mut pick: Vec<Expr>| {
        if let Some(map) = &affinity {
            // Delete first: an element with an endpoint that is gone would keep its data.
            pick.extend([client.clone(), remember(map, DynsetOp::Delete), remember(map, DynsetOp::Update)]);
        }
        pick.push(rewrite.clone());
        pick
    };
    let constant = |e: &SocketAddrV4| {
        [
            Expr::Immediate { value: e.ip().octets().to_vec(), to: endpoint },
            Expr::Immediate { value: e.port().to_be_bytes().to_vec(), to: port },
        ]
    };
    if backend.endpoints.len() <= FEW {
        // One rule each: the first takes one of N, the next one of the N - 1 left …
        for (left, one) in (1u32..=FEW as u32).rev().skip(FEW - backend.endpoints.len()).zip(&backend.endpoints) {
            let mut pick = Vec::new();
            if left > 1 {
                pick.push(Expr::Random { modulus: left, to: scratch });
                pick.push(Expr::Cmp { reg: scratch, op: CmpOp::Eq, value: vec![0; 4] });
            }
            pick.extend(constant(one));
            batch.add_rule(chain, &finish(pick));
        }
        return;
    }
    let indexed: Vec<Element> = (0u32..)
        .zip(&backend.endpoints)
        .map(|(i, e)| Element { key: i.to_ne_bytes().to_vec(), data: Some(Data::Value(endpoint_value(*e))) })
        .collect();
    let map = batch.anonymous_set(4, SetKind::Map(8), &indexed);
    let number = Expr::Random { modulus: backend.endpoints.len() as u32, to: scratch };
    batch.add_rule(chain, &finish(vec![number, Expr::MapTo { set: map, key: scratch, to: endpoint }]));
    // A packet that is half through this chain when it is replaced finds the map empty: it must not leave unrewritten.
    if let Some(one) = backend.endpoints.first() {
        batch.add_rule(chain, &finish(constant(one).into()));
    }
}

/// Elements to take out of a set and to put in; what maps to something else now is in both.
struct Changes {
    gone: Vec<Element>,
    come: Vec<Element>,
}

impl Changes {
    fn between<K: Ord, V: PartialEq>(
        old: &Sorted<K, V>,
        new: &Sorted<K, V>,
        element: impl Fn(&K, &V) -> Element,
    ) -> Changes {
        let mut changes = Changes { gone: Vec::new(), come: Vec::new() };
        for change in changed(old, new) {
            changes.gone.extend(change.old.map(|value| element(change.key, value)));
            changes.come.extend(change.new.map(|value| element(change.key, value)));
        }
        changes
    }
}

/// A key whose value differs: absent before, absent after, or another one.
struct Changed<'a, K, V> {
    key: &'a K,
    old: Option<&'a V>,
    new: Option<&'a V>,
}

/// The differences, found by walking both in step.
fn changed<'a, K: Ord, V: PartialEq>(
    old: &'a Sorted<K, V>,
    new: &'a Sorted<K, V>,
) -> impl Iterator<Item = Changed<'a, K, V>> {
    let (mut before, mut after) = (old.iter().peekable(), new.iter().peekable());
    std::iter::from_fn(move || {
        loop {
            let order = match (before.peek(), after.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((a, _)), Some((b, _))) => a.cmp(b),
            };
            let old = if order.is_le() { before.next() } else { None };
            let new = if order.is_ge() { after.next() } else { None };
            let (key, _) = old.or(new)?;
            let (old, new) = (old.map(|(_, v)| v), new.map(|(_, v)| v));
            if old != new {
                return Some(Changed { key, old, new });
            }
        }
    })
}

fn affinity_map(chain: &str, backend: &Backend) -> Option<String> {
    // The time-out cannot be changed, so it is part of the name.
    backend.affinity.map(|seconds| format!("aff{seconds}/{chain}"))
}

fn service_element(to: &Destination, outcome: &Outcome) -> Element {
    Element { key: destination_key(*to), data: Some(Data::Verdict(verdict(outcome))) }
}

fn node_port_element((protocol, port): &(Protocol, u16), outcome: &Outcome) -> Element {
    let [high, low] = port.to_be_bytes();
    Element { key: vec![protocol.number(), 0, 0, 0, high, low, 0, 0], data: Some(Data::Verdict(verdict(outcome))) }
}

fn verdict(outcome: &Outcome) -> Verdict {
    match outcome {
        Outcome::Chain(name) => Verdict::Goto(name.to_string()),
        Outcome::Refuse => Verdict::Goto(REFUSE.into()),
        Outcome::Drop => Verdict::Drop,
    }
}

fn destination_key(to: Destination) -> Vec<u8> {
    let ([a, b, c, d], [high, low]) = (to.ip.octets(), to.port.to_be_bytes());
    vec![a, b, c, d, to.protocol.number(), 0, 0, 0, high, low, 0, 0]
}

fn endpoint_value(endpoint: SocketAddrV4) -> Vec<u8> {
    let ([a, b, c, d], [high, low]) = (endpoint.ip().octets(), endpoint.port().to_be_bytes());
    vec![a, b, c, d, high, low, 0, 0]
}

/// Offsets in the IPv4 header.
const SOURCE_ADDRESS: u32 = 12;
const DESTINATION_ADDRESS: u32 = 16;

/// Loads the destination of a packet into registers 0 to 2.
fn destination() -> Vec<Expr> {
    vec![
        Expr::Payload { base: Base::Network, offset: DESTINATION_ADDRESS, len: 4, to: Reg(0) },
        Expr::Meta { key: MetaKey::L4Proto, to: Reg(1) },
        Expr::Payload { base: Base::Transport, offset: 2, len: 2, to: Reg(2) },
    ]
}

/// Matches when an address of the packet lies in the block (or not).
fn address(offset: u32, block: Cidr, op: CmpOp) -> Vec<Expr> {
    let bytes = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let mask = u32::MAX.checked_shl(32 - u32::from(block.prefix())).unwrap_or(0);
    vec![
        Expr::Payload { base: Base::Network, offset, len: 4, to: Reg(0) },
        Expr::Bitwise { from: Reg(0), to: Reg(0), mask: mask.to_be_bytes().to_vec(), xor: vec![0; 4] },
        Expr::Cmp { reg: Reg(0), op, value: bytes(block.base()) },
    ]
}

/// Matches when the destination is one of the machine's own addresses (or not).
fn local_destination(op: CmpOp) -> Vec<Expr> {
    vec![
        Expr::Fib { target: FibTarget::Destination, result: FibResult::AddressType, to: Reg(0) },
        Expr::Cmp { reg: Reg(0), op, value: LOCAL.to_ne_bytes().to_vec() },
    ]
}

fn interface(which: MetaKey, name: &str) -> Vec<Expr> {
    vec![
        Expr::Meta { key: which, to: Reg(0) },
        Expr::Cmp { reg: Reg(0), op: CmpOp::Eq, value: crate::nft::interface_name(name) },
    ]
}

fn pod_interfaces(config: &ProxyConfig) -> String {
    names::interface_prefix(&config.instance) + "*"
}

fn loopback() -> Cidr {
    Cidr::new(std::net::Ipv4Addr::LOCALHOST.into(), 8).unwrap_or(Cidr::host(std::net::Ipv4Addr::LOCALHOST.into()))
}
