//! Expressions: the instructions rules are made of. Pure encoding.

use super::uapi;
use crate::netlink::Writer;

/// One of the sixteen 32-bit registers of the rule machine. Longer values take the following ones too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reg(pub u8);

impl Reg {
    fn number(self) -> u32 {
        8 + u32::from(self.0)
    }
}

/// What a packet's traversal does next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Drop the packet.
    Drop,
    /// Accept it in this hook.
    Accept,
    /// Back to the calling chain.
    Return,
    /// Into that chain and back.
    Jump(String),
    /// Into that chain for good.
    Goto(String),
}

impl Verdict {
    pub(super) fn write(&self, writer: &mut Writer) {
        let (code, chain) = match self {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Return => (-5, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
        };
        writer.nest(uapi::DATA_VERDICT, |w| {
            w.be32(uapi::VERDICT_CODE, i32::cast_unsigned(code));
            if let Some(chain) = chain {
                w.text(uapi::VERDICT_CHAIN, chain);
            }
        });
    }
}

/// A constant: bytes as the packet has them, or a verdict.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Data {
    /// Bytes.
    Value(Vec<u8>),
    /// A verdict.
    Verdict(Verdict),
}

impl Data {
    /// Writes it as attribute `kind`.
    pub(super) fn write(&self, writer: &mut Writer, kind: u16) {
        writer.nest(kind, |w| match self {
            Data::Value(bytes) => {
                w.attr(uapi::DATA_VALUE, bytes);
            }
            Data::Verdict(verdict) => verdict.write(w),
        });
    }
}

/// Where payload offsets count from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The IP header.
    Network = 1,
    /// The TCP, UDP or SCTP header.
    Transport = 2,
}

/// Facts about a packet that are not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    /// The packet mark.
    Mark = 3,
    /// Incoming interface's name, 16 bytes.
    IifName = 6,
    /// Outgoing interface's name, 16 bytes.
    OifName = 7,
    /// Transport protocol number, 1 byte.
    L4Proto = 16,
}

/// Facts about a packet's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtKey {
    /// State bit mask.
    State = 0,
    /// Status bit mask (`IPS_*`).
    Status = 2,
    /// Connection mark.
    Mark = 3,
}

/// Comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CmpOp {
    /// Equal.
    Eq = 0,
    /// Not equal.
    Neq = 1,
    /// Less (bytes compared in network order).
    Lt = 2,
    /// Less or equal.
    Lte = 3,
    /// Greater.
    Gt = 4,
    /// Greater or equal.
    Gte = 5,
}

/// Which side of a connection is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
    /// Source.
    Source = 0,
    /// Destination.
    Destination = 1,
}

/// What a routing lookup is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FibTarget {
    /// The packet's source address.
    Source = 1,
    /// The packet's destination address.
    Destination = 2,
}

/// What a routing lookup returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FibResult {
    /// Interface index, 4 bytes host order.
    Interface = 1,
    /// `RTN_*` type, 4 bytes host order; 2 is local.
    AddressType = 3,
}

/// How a packet is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// ICMP destination unreachable with this code (3: port).
    Icmp(u8),
    /// TCP reset; only for TCP.
    TcpReset,
}

/// What the packet path does to a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DynsetOp {
    /// Add; an element that is there stays as it is.
    Add = 0,
    /// Add, or start the element's time-out anew (its data stay).
    Update = 1,
    /// Delete.
    Delete = 2,
}

/// A set: by name, or an anonymous one of the same transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetRef {
    pub(super) name: String,
    pub(super) id: Option<u32>,
}

impl SetRef {
    /// A set that has a name.
    pub fn named(name: impl Into<String>) -> SetRef {
        SetRef { name: name.into(), id: None }
    }
}

/// One instruction. A rule goes on to the next while each "matches".
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are named after what nf_tables.h calls them")]
pub enum Expr {
    /// Loads a fact about the packet.
    Meta { key: MetaKey, to: Reg },
    /// Sets the packet mark.
    SetMark { from: Reg },
    /// Loads bytes of the packet; no match where the packet has none.
    Payload { base: Base, offset: u32, len: u32, to: Reg },
    /// Compares a register with a constant.
    Cmp { reg: Reg, op: CmpOp, value: Vec<u8> },
    /// Matches when the register lies between two constants, both included.
    Range { reg: Reg, from: Vec<u8>, to: Vec<u8> },
    /// `to = from & mask ^ xor`.
    Bitwise { from: Reg, to: Reg, mask: Vec<u8>, xor: Vec<u8> },
    /// Matches when the set holds the key (or does not, with `invert`).
    InSet { set: SetRef, key: Reg, invert: bool },
    /// Loads what the map holds for the key; no match without.
    MapTo { set: SetRef, key: Reg, to: Reg },
    /// Carries out the verdict the map holds for the key; no match without.
    VerdictMap { set: SetRef, key: Reg },
    /// Loads a constant.
    Immediate { value: Vec<u8>, to: Reg },
    /// Ends with a verdict.
    Verdict(Verdict),
    /// Rewrites an address and, where given, a port.
    Nat { kind: NatKind, address: Reg, port: Option<Reg> },
    /// Source becomes an address of the interface the packet leaves by, any port.
    Masquerade,
    /// Routing lookup.
    Fib { target: FibTarget, result: FibResult, to: Reg },
    /// A random number below `modulus`, 4 bytes host order.
    Random { modulus: u32, to: Reg },
    /// Loads a fact about the connection.
    Ct { key: CtKey, to: Reg },
    /// Counts packets and bytes.
    Counter,
    /// Changes a set from the packet path.
    Dynset { set: SetRef, op: DynsetOp, key: Reg, data: Option<Reg> },
    /// Turns the packet away.
    Reject(Reject),
}

/// Bytes of an interface name for a comparison; `prefix*` compares only the prefix.
pub(crate) fn interface_name(name: &str) -> Vec<u8> {
    match name.strip_suffix('*') {
        Some(prefix) => prefix.as_bytes().to_vec(),
        None => {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(16, 0);
            bytes
        }
    }
}

impl Expr {
    /// The kernel's name of the expression.
    fn name(&self) -> &'static str {
        match self {
            Expr::Meta { .. } | Expr::SetMark { .. } => "meta",
            Expr::Payload { .. } => "payload",
            Expr::Cmp { .. } => "cmp",
            Expr::Range { .. } => "range",
            Expr::Bitwise { .. } => "bitwise",
            Expr::InSet { .. } | Expr::MapTo { .. } | Expr::VerdictMap { .. } => "lookup",
            Expr::Immediate { .. } | Expr::Verdict(_) => "immediate",
            Expr::Nat { .. } => "nat",
            Expr::Masquerade => "masq",
            Expr::Fib { .. } => "fib",
            Expr::Random { .. } => "numgen",
            Expr::Ct { .. } => "ct",
            Expr::Counter => "counter",
            Expr::Dynset { .. } => "dynset",
            Expr::Reject(_) => "reject",
        }
    }

    /// Writes it as one element of a rule's expression list.
    pub(super) fn write(&self, writer: &mut Writer) {
        writer.nest(uapi::LIST_ELEM, |w| {
            w.text(1, self.name()).nest(2, |w| self.write_data(w));
        });
    }

    fn write_data(&self, w: &mut Writer) {
        let value = |w: &mut Writer, kind: u16, bytes: &[u8]| {
            w.nest(kind, |w| {
                w.attr(uapi::DATA_VALUE, bytes);
            });
        };
        match self {
            Expr::Meta { key, to } => {
                w.be32(1, to.number()).be32(2, *key as u32);
            }
            Expr::SetMark { from } => {
                w.be32(2, MetaKey::Mark as u32).be32(3, from.number());
            }
            Expr::Payload { base, offset, len, to } => {
                w.be32(1, to.number()).be32(2, *base as u32).be32(3, *offset).be32(4, *len);
            }
            Expr::Cmp { reg, op, value: bytes } => {
                w.be32(1, reg.number()).be32(2, *op as u32);
                value(w, 3, bytes);
            }
            Expr::Range { reg, from, to } => {
                w.be32(1, reg.number()).be32(2, 0);
                value(w, 3, from);
                value(w, 4, to);
            }
            Expr::Bitwise { from, to, mask, xor } => {
                w.be32(1, from.number()).be32(2, to.number()).be32(3, mask.len() as u32);
                value(w, 4, mask);
                value(w, 5, xor);
            }
            Expr::InSet { set, key, invert } => {
                lookup(w, set, *key, None);
                if *invert {
                    w.be32(5, 1);
                }
            }
            Expr::MapTo { set, key, to } => lookup(w, set, *key, Some(to.number())),
            // Register 0 is the verdict.
            Expr::VerdictMap { set, key } => lookup(w, set, *key, Some(0)),
            Expr::Immediate { value: bytes, to } => {
                w.be32(1, to.number());
                value(w, 2, bytes);
            }
            Expr::Verdict(verdict) => {
                w.be32(1, 0).nest(2, |w| verdict.write(w));
            }
            Expr::Nat { kind, address, port } => {
                w.be32(1, *kind as u32).be32(2, u32::from(uapi::NFPROTO_IPV4)).be32(3, address.number());
                if let Some(port) = port {
                    w.be32(5, port.number());
                }
            }
            // NF_NAT_RANGE_PROTO_RANDOM_FULLY: two flows racing for a port do not lose their first packet.
            Expr::Masquerade => {
                w.be32(1, 16);
            }
            Expr::Fib { target, result, to } => {
                w.be32(1, to.number()).be32(2, *result as u32).be32(3, *target as u32);
            }
            Expr::Random { modulus, to } => {
                w.be32(1, to.number()).be32(2, *modulus).be32(3, 1);
            }
            Expr::Ct { key, to } => {
                w.be32(1, to.number()).be32(2, *key as u32);
            }
            Expr::Counter => {
                w.be64(1, 0).be64(2, 0);
            }
            Expr::Dynset { set, op, key, data } => {
                w.text(1, &set.name);
                if let Some(id) = set.id {
                    w.be32(2, id);
                }
                w.be32(3, *op as u32).be32(4, key.number());
                if let Some(data) = data {
                    w.be32(5, data.number());
                }
            }
            Expr::Reject(Reject::Icmp(code)) => {
                w.be32(1, 0).attr(2, &[*code]);
            }
            Expr::Reject(Reject::TcpReset) => {
                w.be32(1, 1).attr(2, &[0]);
            }
        }
    }
}

fn lookup(w: &mut Writer, set: &SetRef, key: Reg, to: Option<u32>) {
    w.text(1, &set.name).be32(2, key.number());
    if let Some(to) = to {
        w.be32(3, to);
    }
    if let Some(id) = set.id {
        w.be32(4, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of an expression, laid out by hand from `nf_tables.h`.
    fn check(expr: &Expr, name: &str, data: &[u8]) {
        let mut writer = Writer::new();
        expr.write(&mut writer);
        let name_length = 4 + name.len() + 1;
        let mut expected = Vec::new();
        let total = 4 + name_length.next_multiple_of(4) + 4 + data.len();
        expected.extend_from_slice(&(total as u16).to_ne_bytes());
        expected.extend_from_slice(&0x8001u16.to_ne_bytes());
        expected.extend_from_slice(&(name_length as u16).to_ne_bytes());
        expected.extend_from_slice(&1u16.to_ne_bytes());
        expected.extend_from_slice(name.as_bytes());
        expected.push(0);
        expected.resize(4 + name_length.next_multiple_of(4), 0);
        expected.extend_from_slice(&((4 + data.len()) as u16).to_ne_bytes());
        expected.extend_from_slice(&0x8002u16.to_ne_bytes());
        expected.extend_from_slice(data);
        assert_eq!(writer.bytes(), expected, "{expr:?}");
    }

    /// An attribute holding a 32-bit number in network order.
    fn word(kind: u8, value: u8) -> [u8; 8] {
        [8, 0, kind, 0, 0, 0, 0, value]
    }

    #[test]
    fn expressions_are_laid_out_as_the_kernel_reads_them() {
        check(&Expr::Meta { key: MetaKey::L4Proto, to: Reg(0) }, "meta", &[word(1, 8), word(2, 16)].concat());
        check(
            &Expr::Payload { base: Base::Network, offset: 16, len: 4, to: Reg(1) },
            "payload",
            &[word(1, 9), word(2, 1), word(3, 16), word(4, 4)].concat(),
        );
        let value = [12, 0, 3, 0x80, 5, 0, 1, 0, 6, 0, 0, 0];
        check(
            &Expr::Cmp { reg: Reg(0), op: CmpOp::Eq, value: vec![6] },
            "cmp",
            &[&word(1, 8)[..], &word(2, 0), &value].concat(),
        );
        check(&Expr::Random { modulus: 3, to: Reg(2) }, "numgen", &[word(1, 10), word(2, 3), word(3, 1)].concat());
        let name = [6, 0, 1, 0, b'm', 0, 0, 0];
        check(
            &Expr::VerdictMap { set: SetRef::named("m"), key: Reg(0) },
            "lookup",
            &[name, word(2, 8), word(3, 0)].concat(),
        );
        // goto "a": verdict -4 into register 0.
        let verdict = [24, 0, 2, 0x80, 20, 0, 2, 0x80, 8, 0, 1, 0, 0xff, 0xff, 0xff, 0xfc, 6, 0, 2, 0, b'a', 0, 0, 0];
        check(&Expr::Verdict(Verdict::Goto("a".into())), "immediate", &[&word(1, 0)[..], &verdict].concat());
        check(
            &Expr::Nat { kind: NatKind::Destination, address: Reg(0), port: Some(Reg(1)) },
            "nat",
            &[word(1, 1), word(2, 2), word(3, 8), word(5, 9)].concat(),
        );
        check(&Expr::Masquerade, "masq", &word(1, 16));
        check(&Expr::Reject(Reject::Icmp(3)), "reject", &[word(1, 0), [5, 0, 2, 0, 3, 0, 0, 0]].concat());
    }
}
