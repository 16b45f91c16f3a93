//! Looking at what is in the kernel: tables, chains, elements.

use super::expr::{Data, Verdict};
use super::{HEADER, Msg, uapi};
use crate::netlink::{Attributes, NetlinkError, Socket, Writer};

const DUMP: u16 = 0x300;

/// An element as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpedElement {
    /// The key.
    pub key: Vec<u8>,
    /// What it maps to.
    pub data: Option<Data>,
}

/// The names of all tables of the family.
pub fn tables(socket: &mut Socket) -> Result<Vec<String>, NetlinkError> {
    let mut writer = Writer::new();
    writer.begin(Msg::GetTable.kind(), DUMP).raw(&HEADER);
    collect(socket, &writer, |attributes| attributes.text(uapi::TABLE_NAME))
}

/// The names of all chains of a table.
pub fn chains(socket: &mut Socket, table: &str) -> Result<Vec<String>, NetlinkError> {
    let mut writer = Writer::new();
    writer.begin(Msg::GetChain.kind(), DUMP).raw(&HEADER);
    collect(socket, &writer, |attributes| {
        // The kernel filters dumps of chains in some versions only.
        (attributes.text(uapi::CHAIN_TABLE)? == table).then(|| attributes.text(uapi::CHAIN_NAME)).flatten()
    })
}

/// The names of all sets and maps of a table.
pub fn sets(socket: &mut Socket, table: &str) -> Result<Vec<String>, NetlinkError> {
    let mut writer = Writer::new();
    writer.begin(Msg::GetSet.kind(), DUMP).raw(&HEADER).text(uapi::TABLE_NAME, table);
    collect(socket, &writer, |attributes| {
        (attributes.text(uapi::TABLE_NAME)? == table).then(|| attributes.text(2)).flatten()
    })
}

/// The elements of a set or map.
pub fn elements(socket: &mut Socket, table: &str, set: &str) -> Result<Vec<DumpedElement>, NetlinkError> {
    let mut writer = Writer::new();
    writer
        .begin(Msg::GetSetElem.kind(), DUMP)
        .raw(&HEADER)
        .text(uapi::ELEM_LIST_TABLE, table)
        .text(uapi::ELEM_LIST_SET, set);
    let lists = collect(socket, &writer, |attributes| {
        Some(
            attributes.nested(uapi::ELEM_LIST_ELEMENTS).filter_map(|(_, e)| element(Attributes(e))).collect::<Vec<_>>(),
        )
    })?;
    Ok(lists.into_iter().flatten().collect())
}

fn element(attributes: Attributes<'_>) -> Option<DumpedElement> {
    let key = attributes.nested(uapi::ELEM_KEY).get(uapi::DATA_VALUE)?.to_vec();
    let data = attributes.nested(uapi::ELEM_DATA);
    let value = data.get(uapi::DATA_VALUE).map(|bytes| Data::Value(bytes.to_vec()));
    let verdict = || Some(Data::Verdict(verdict(data.nested(uapi::DATA_VERDICT))?));
    Some(DumpedElement { key, data: value.or_else(verdict) })
}

fn verdict(attributes: Attributes<'_>) -> Option<Verdict> {
    let chain = || attributes.text(uapi::VERDICT_CHAIN);
    Some(match attributes.be32(uapi::VERDICT_CODE)?.cast_signed() {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -5 => Verdict::Return,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        _ => return None,
    })
}

fn collect<T>(
    socket: &mut Socket,
    writer: &Writer,
    read: impl Fn(Attributes<'_>) -> Option<T>,
) -> Result<Vec<T>, NetlinkError> {
    let mut found = Vec::new();
    socket.dump(writer, |_, payload| found.extend(payload.get(4..).and_then(|rest| read(Attributes(rest)))))?;
    Ok(found)
}
