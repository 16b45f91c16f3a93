//! nftables over netlink: what `nft` does, without the program.
//!
//! Owns the encoding of tables, chains, rules, sets and their elements, the one-transaction batch they travel in, and
//! the dumps to look at what is there. Never decides what a rule should say. Numbers are those of
//! `linux/netfilter/nf_tables.h`; the IPv4 family (`ip`) throughout.

mod batch;
mod dump;
mod expr;

pub use batch::{Batch, Chain, ChainKind, Element, Hook, SetKind, SetSpec, delete_table};
pub use dump::{DumpedElement, chains, elements, sets, tables};
pub(crate) use expr::interface_name;
pub use expr::{
    Base, CmpOp, CtKey, Data, DynsetOp, Expr, FibResult, FibTarget, MetaKey, NatKind, Reg, Reject, SetRef, Verdict,
};

/// Message and attribute numbers used by more than one part.
mod uapi {
    pub(super) const SUBSYSTEM: u16 = 10 << 8;
    pub(super) const NFPROTO_IPV4: u8 = 2;
    pub(super) const LIST_ELEM: u16 = 1;
    pub(super) const DATA_VALUE: u16 = 1;
    pub(super) const DATA_VERDICT: u16 = 2;
    pub(super) const VERDICT_CODE: u16 = 1;
    pub(super) const VERDICT_CHAIN: u16 = 2;
    pub(super) const TABLE_NAME: u16 = 1;
    pub(super) const CHAIN_TABLE: u16 = 1;
    pub(super) const CHAIN_NAME: u16 = 3;
    pub(super) const ELEM_KEY: u16 = 1;
    pub(super) const ELEM_DATA: u16 = 2;
    pub(super) const ELEM_LIST_TABLE: u16 = 1;
    pub(super) const ELEM_LIST_SET: u16 = 2;
    pub(super) const ELEM_LIST_ELEMENTS: u16 = 3;
}

/// Numbers of `enum nf_tables_msg_types`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Msg {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    DelChain = 5,
    NewRule = 6,
    DelRule = 8,
    NewSet = 9,
    GetSet = 10,
    DelSet = 11,
    NewSetElem = 12,
    GetSetElem = 13,
    DelSetElem = 14,
}

impl Msg {
    fn kind(self) -> u16 {
        uapi::SUBSYSTEM | self as u16
    }
}

/// `struct nfgenmsg` of our family.
const HEADER: [u8; 4] = [uapi::NFPROTO_IPV4, 0, 0, 0];
