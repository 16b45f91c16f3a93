//! The transaction: everything in it happens, or nothing does.

use super::expr::{Data, Expr, SetRef};
use super::{HEADER, Msg, uapi};
use crate::netlink::{Attributes, NetlinkError, Socket, Writer};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `nfgenmsg` of the batch marks: no family, and the subsystem in network order.
const BATCH_HEADER: [u8; 4] = [0, 0, 0, 10];
const ACK: u16 = 0x04;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

const SET_ANONYMOUS: u32 = 0x1;
const SET_CONSTANT: u32 = 0x2;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;

/// Below the 64 KiB that a nested attribute can say it is long.
const ELEMENTS_PER_MESSAGE: usize = 56 * 1024;

/// What kind of base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of each connection.
    Nat,
}

/// Where in the packet path a base chain sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the field's own words")]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain<'a> {
    /// Its name, at most 255 bytes.
    pub name: &'a str,
    /// For a base chain: kind, place and priority (lower goes first). Its policy is accept.
    pub hook: Option<(ChainKind, Hook, i32)>,
}

/// What a set maps its keys to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetKind {
    /// Nothing: it is a set.
    Set,
    /// Values of that many bytes.
    Map(u32),
    /// Verdicts.
    VerdictMap,
}

/// A set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetSpec<'a> {
    /// Its name, at most 255 bytes.
    pub name: &'a str,
    /// Bytes of a key; each part of a concatenation padded to 4.
    pub key_len: u32,
    /// Set or map.
    pub kind: SetKind,
    /// For sets the packet path writes: how long an element lives, in seconds. At most 65,535 elements then.
    pub timeout: Option<u32>,
    /// How `nft` should print the key: its data type number; 0 when it need not.
    pub key_type: u32,
    /// How `nft` should print mapped values.
    pub data_type: u32,
}

/// A key and, in a map, what it maps to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Element {
    /// The key, each part of a concatenation padded to 4 bytes.
    pub key: Vec<u8>,
    /// The value, in a map.
    pub data: Option<Data>,
}

/// A transaction on one table, being written.
pub struct Batch {
    writer: Writer,
    table: String,
    sets: u32,
}

impl Batch {
    /// An empty transaction on `table`.
    pub fn new(table: &str) -> Batch {
        let mut writer = Writer::new();
        writer.begin(BATCH_BEGIN, 0).raw(&BATCH_HEADER);
        Batch { writer, table: table.to_owned(), sets: 0 }
    }

    /// Number of changes so far.
    pub fn len(&self) -> usize {
        self.writer.count() - 1
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes the table; fine when it is there.
    pub fn add_table(&mut self) {
        self.begin(Msg::NewTable, CREATE);
    }

    /// Removes the table with everything in it; it must be there.
    pub fn delete_table(&mut self) {
        self.begin(Msg::DelTable, 0);
    }

    /// Makes a chain; fine when it is there.
    pub fn add_chain(&mut self, chain: &Chain<'_>) {
        self.begin(Msg::NewChain, CREATE).text(uapi::CHAIN_NAME, chain.name);
        if let Some((kind, hook, priority)) = chain.hook {
            let kind = match kind {
                ChainKind::Filter => "filter",
                ChainKind::Nat => "nat",
            };
            self.writer
                .nest(4, |w| {
                    w.be32(1, hook as u32).be32(2, priority.cast_unsigned());
                })
                .be32(5, 1)
                .text(7, kind);
        }
    }

    /// Removes every rule of a chain.
    pub fn flush_chain(&mut self, name: &str) {
        self.begin(Msg::DelRule, 0).text(2, name);
    }

    /// Removes a chain, which must have no rules and nothing that leads to it.
    pub fn delete_chain(&mut self, name: &str) {
        self.begin(Msg::DelChain, 0).text(uapi::CHAIN_NAME, name);
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, chain: &str, expressions: &[Expr]) {
        self.begin(Msg::NewRule, CREATE | APPEND).text(2, chain).nest(4, |w| {
            for expression in expressions {
                expression.write(w);
            }
        });
    }

    /// Makes a set or map that has a name.
    pub fn add_set(&mut self, set: &SetSpec<'_>) {
        let flags = if set.timeout.is_some() { SET_TIMEOUT | SET_EVAL } else { 0 };
        let size = set.timeout.map(|_| 65_535);
        self.write_set(set, flags, size);
    }

    /// Makes an unchangeable set or map without a name, with its elements, for one rule of this transaction.
    pub fn anonymous_set(&mut self, key_len: u32, kind: SetKind, elements: &[Element]) -> SetRef {
        let name = if kind == SetKind::Set { "__set%d" } else { "__map%d" };
        let set = SetSpec { name, key_len, kind, timeout: None, key_type: 0, data_type: 0 };
        let size = u32::try_from(elements.len()).ok();
        let id = self.write_set(&set, SET_ANONYMOUS | SET_CONSTANT, size);
        let reference = SetRef { name: name.to_owned(), id: Some(id) };
        self.write_elements(Msg::NewSetElem, CREATE, &reference, elements);
        reference
    }

    /// Removes a set or map, which no rule may use any more.
    pub fn delete_set(&mut self, name: &str) {
        self.begin(Msg::DelSet, 0).text(2, name);
    }

    /// Adds elements to a set or map that has a name.
    pub fn add_elements(&mut self, set: &str, elements: &[Element]) {
        self.write_elements(Msg::NewSetElem, CREATE, &SetRef::named(set), elements);
    }

    /// Removes elements, which must be there.
    pub fn delete_elements(&mut self, set: &str, elements: &[Element]) {
        self.write_elements(Msg::DelSetElem, 0, &SetRef::named(set), elements);
    }

    /// Carries the transaction out. On an error nothing of it happened; the error names the change that was refused.
    pub fn commit(mut self, socket: &mut Socket) -> Result<usize, NetlinkError> {
        let changes = self.len();
        if changes == 0 {
            return Ok(0);
        }
        // One acknowledgement, for the last change, is enough: the kernel sends it after the whole was carried out.
        self.writer.add_flags(ACK);
        self.writer.begin(BATCH_END, 0).raw(&BATCH_HEADER);
        socket.transaction(&self.writer, describe)?;
        Ok(changes)
    }

    /// The transaction as it would be sent, without its end mark.
    pub fn bytes(&self) -> &[u8] {
        self.writer.bytes()
    }

    fn begin(&mut self, message: Msg, flags: u16) -> &mut Writer {
        // Whatever the message, its first attribute is the table.
        self.writer.begin(message.kind(), flags).raw(&HEADER).text(uapi::TABLE_NAME, &self.table)
    }

    fn write_set(&mut self, set: &SetSpec<'_>, flags: u32, size: Option<u32>) -> u32 {
        self.sets += 1;
        let id = self.sets;
        let flags = flags | if set.kind == SetKind::Set { 0 } else { SET_MAP };
        self.begin(Msg::NewSet, CREATE).text(2, set.name).be32(3, flags).be32(4, set.key_type).be32(5, set.key_len);
        match set.kind {
            SetKind::Set => {}
            SetKind::Map(length) => {
                // Zero would say "verdict or value?": any other number is a value's type.
                self.writer.be32(6, set.data_type).be32(7, length);
            }
            SetKind::VerdictMap => {
                self.writer.be32(6, DATA_TYPE_VERDICT).be32(7, 0);
            }
        }
        if let Some(size) = size {
            self.writer.nest(9, |w| {
                w.be32(1, size);
            });
        }
        self.writer.be32(10, id);
        if let Some(seconds) = set.timeout {
            self.writer.be64(11, u64::from(seconds) * 1000);
        }
        id
    }

    fn write_elements(&mut self, message: Msg, flags: u16, set: &SetRef, elements: &[Element]) {
        let mut rest = elements;
        while !rest.is_empty() {
            let writer = self.begin(message, flags).text(uapi::ELEM_LIST_SET, &set.name);
            if let Some(id) = set.id {
                writer.be32(4, id);
            }
            let list = writer.open_nest(uapi::ELEM_LIST_ELEMENTS);
            let mut written = 0;
            for element in rest {
                writer.nest(uapi::LIST_ELEM, |w| {
                    w.nest(uapi::ELEM_KEY, |w| {
                        w.attr(uapi::DATA_VALUE, &element.key);
                    });
                    if let Some(data) = &element.data {
                        data.write(w, uapi::ELEM_DATA);
                    }
                });
                written += 1;
                if writer.len_since(list) > ELEMENTS_PER_MESSAGE {
                    break;
                }
            }
            writer.close_nest(list);
            rest = &rest[written..];
        }
    }
}

/// Removes a table with everything in it; fine when it is not there.
pub fn delete_table(socket: &mut Socket, table: &str) -> Result<(), NetlinkError> {
    let mut batch = Batch::new(table);
    batch.add_table();
    batch.delete_table();
    batch.commit(socket).map(|_| ())
}

/// What a message of a batch is about, for errors.
fn describe(message: &[u8]) -> String {
    const KINDS: [(Msg, &str, u16); 9] = [
        (Msg::NewTable, "adding table", 0),
        (Msg::DelTable, "removing table", 0),
        (Msg::NewChain, "adding chain", uapi::CHAIN_NAME),
        (Msg::DelChain, "removing chain", uapi::CHAIN_NAME),
        (Msg::NewRule, "adding a rule to chain", 2),
        (Msg::DelRule, "removing rules of chain", 2),
        (Msg::NewSet, "adding set", 2),
        (Msg::DelSet, "removing set", 2),
        (Msg::NewSetElem, "adding elements to set", uapi::ELEM_LIST_SET),
    ];
    let kind = message.get(4..6).map_or(0, |k| u16::from_ne_bytes([k[0], k[1]]));
    let attributes = Attributes(message.get(20..).unwrap_or(&[]));
    let table = attributes.text(uapi::TABLE_NAME).unwrap_or_default();
    match KINDS.iter().find(|(m, ..)| m.kind() == kind) {
        Some((_, verb, 0)) => format!("nftables: {verb} {table}"),
        Some((_, verb, name)) => format!("nftables: {verb} {table} {}", attributes.text(*name).unwrap_or_default()),
        None if kind == Msg::DelSetElem.kind() => {
            format!("nftables: removing elements of set {table} {}", attributes.text(2).unwrap_or_default())
        }
        None => "nftables transaction".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::expr::Verdict;
    use super::*;

    /// One message, taken apart by hand: type, flags and what follows the two headers.
    fn messages(batch: &Batch) -> Vec<(u16, u16, Vec<u8>)> {
        let (mut rest, mut found) = (batch.bytes(), Vec::new());
        while !rest.is_empty() {
            let number = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
            let length = usize::from(number(0));
            found.push((number(4), number(6), rest[16..length].to_vec()));
            rest = &rest[length.next_multiple_of(4)..];
        }
        found
    }

    #[test]
    fn a_transaction_is_laid_out_as_the_kernel_reads_it() {
        let mut batch = Batch::new("t");
        batch.add_table();
        batch.add_chain(&Chain { name: "c", hook: Some((ChainKind::Nat, Hook::Prerouting, -100)) });
        batch.add_elements("m", &[Element { key: vec![1, 2], data: Some(Data::Verdict(Verdict::Drop)) }]);
        assert_eq!(batch.len(), 3);
        let table = [6, 0, 1, 0, b't', 0, 0, 0];
        let messages = messages(&batch);
        // NFNL_MSG_BATCH_BEGIN for subsystem 10.
        assert_eq!(messages[0], (0x10, 1, vec![0, 0, 0, 10]));
        assert_eq!(messages[1], (0x0a00, 0x401, [&[2, 0, 0, 0][..], &table].concat()));
        let chain = [
            &[2, 0, 0, 0][..],
            &table,
            &[6, 0, 3, 0, b'c', 0, 0, 0],
            &[20, 0, 4, 0x80, 8, 0, 1, 0, 0, 0, 0, 0, 8, 0, 2, 0, 0xff, 0xff, 0xff, 0x9c],
            &[8, 0, 5, 0, 0, 0, 0, 1],
            &[8, 0, 7, 0, b'n', b'a', b't', 0],
        ];
        assert_eq!(messages[2], (0x0a03, 0x401, chain.concat()));
        let elements = [
            &[2, 0, 0, 0][..],
            &table,
            &[6, 0, 2, 0, b'm', 0, 0, 0],
            // list { element { key { value 1 2 } data { verdict { code 0 } } } }
            &[36, 0, 3, 0x80, 32, 0, 1, 0x80],
            &[12, 0, 1, 0x80, 6, 0, 1, 0, 1, 2, 0, 0],
            &[16, 0, 2, 0x80, 12, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 0],
        ];
        assert_eq!(messages[3], (0x0a0c, 0x401, elements.concat()));
    }

    #[test]
    fn many_elements_are_spread_over_messages_that_can_say_how_long_they_are() {
        let mut batch = Batch::new("t");
        let elements: Vec<Element> =
            (0u32..20_000).map(|i| Element { key: i.to_be_bytes().to_vec(), data: None }).collect();
        batch.add_elements("s", &elements);
        assert!(batch.len() > 5);
        let bytes: usize = messages_total(&batch);
        assert!(bytes > 20_000 * 16);
    }

    fn messages_total(batch: &Batch) -> usize {
        let (mut rest, mut total) = (batch.bytes(), 0);
        while let Some(header) = rest.get(..4) {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            assert!(length < 1 << 16);
            total += length;
            rest = &rest[length.next_multiple_of(4)..];
        }
        total
    }

    #[test]
    fn an_error_says_which_change_was_refused() {
        let mut batch = Batch::new("t");
        batch.flush_chain("c");
        batch.delete_elements("s", &[Element { key: vec![1], data: None }]);
        let (first, second) = (batch.writer.message(2).unwrap(), batch.writer.message(3).unwrap());
        assert_eq!(describe(first), "nftables: removing rules of chain t c");
        assert_eq!(describe(second), "nftables: removing elements of set t s");
        assert_eq!(describe(&[]), "nftables transaction");
    }
}
