//! The messages of etcd's v3 API that are needed here, by their field numbers (`rpc.proto`, `kv.proto`). Pure.

use bytes::Bytes;

use super::wire::{Field, Malformed, Message, read};
use crate::types::Revision;

pub(crate) const RANGE: &str = "/etcdserverpb.KV/Range";
pub(crate) const PUT: &str = "/etcdserverpb.KV/Put";
pub(crate) const TXN: &str = "/etcdserverpb.KV/Txn";
pub(crate) const COMPACT: &str = "/etcdserverpb.KV/Compact";
pub(crate) const WATCH: &str = "/etcdserverpb.Watch/Watch";
pub(crate) const STATUS: &str = "/etcdserverpb.Maintenance/Status";

/// The end of the range of all keys that start with `prefix`: the prefix with its last byte that can be increased
/// increased, and cut there. Of nothing but 0xff there is no end: a single zero byte means all keys from there.
pub(crate) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    match prefix.iter().rposition(|byte| *byte < 0xff) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end
        }
        None => vec![0],
    }
}

/// The first key a range or a watch of all keys with `prefix` may hold: etcd has no empty key.
pub(crate) fn prefix_start(prefix: &[u8]) -> &[u8] {
    if prefix.is_empty() { &[0] } else { prefix }
}

/// What is read of keys.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RangeRequest<'a> {
    pub(crate) key: &'a [u8],
    /// Empty: this key alone.
    pub(crate) end: &'a [u8],
    pub(crate) limit: usize,
    /// 0: now.
    pub(crate) at: Revision,
    pub(crate) keys_only: bool,
}

impl RangeRequest<'_> {
    pub(crate) fn encode(self) -> Message {
        Message::default()
            .bytes(1, self.key)
            .bytes(2, self.end)
            .number(3, self.limit as u64)
            .number(4, self.at.0)
            .number(8, self.keys_only.into())
    }
}

pub(crate) fn put(key: &[u8], value: &[u8]) -> Message {
    Message::default().bytes(1, key).bytes(2, value)
}

/// A key is as it was last modified at this revision (0: it does not exist).
pub(crate) fn compare_modified(key: &[u8], revision: u64) -> Message {
    const MOD: u64 = 2;
    Message::default().number(2, MOD).bytes(3, key).number(6, revision)
}

/// A key was written so many times since it was created.
pub(crate) fn compare_version(key: &[u8], version: u64) -> Message {
    Message::default().bytes(3, key).number(4, version)
}

/// One operation inside a transaction.
#[derive(Debug)]
pub(crate) enum RequestOp {
    Range(Message),
    Put(Message),
    Delete(Vec<u8>),
}

/// A transaction: what must hold, what is done then, what is done otherwise.
#[derive(Debug, Default)]
pub(crate) struct TxnRequest {
    pub(crate) compare: Vec<Message>,
    pub(crate) success: Vec<RequestOp>,
    pub(crate) failure: Vec<RequestOp>,
}

impl TxnRequest {
    pub(crate) fn encode(self) -> Vec<u8> {
        let op = |op| match op {
            RequestOp::Range(range) => Message::default().message(1, range),
            RequestOp::Put(put) => Message::default().message(2, put),
            RequestOp::Delete(key) => Message::default().message(3, Message::default().bytes(1, &key)),
        };
        let mut out = Message::default();
        for compare in self.compare {
            out = out.message(1, compare);
        }
        for request in self.success {
            out = out.message(2, op(request));
        }
        for request in self.failure {
            out = out.message(3, op(request));
        }
        out.finish()
    }
}

/// A watch of `[key, end)` from a revision on, with what was there before each change.
pub(crate) fn watch_create(key: &[u8], end: &[u8], start: Revision) -> Vec<u8> {
    let create = Message::default().bytes(1, key).bytes(2, end).number(3, start.0).number(4, 1).number(6, 1);
    Message::default().message(1, create).finish()
}

/// Asks how far the watches of the stream have got.
pub(crate) fn watch_progress() -> Vec<u8> {
    Message::default().message(3, Message::default()).finish()
}

pub(crate) fn compact(revision: Revision) -> Vec<u8> {
    Message::default().number(1, revision.0).finish()
}

/// A key with its value and revisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyValue {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) created: Revision,
    pub(crate) modified: Revision,
    pub(crate) version: u64,
}

impl KeyValue {
    fn decode(bytes: Bytes) -> Result<KeyValue, Malformed> {
        let mut kv = KeyValue::default();
        read(bytes, |number, field| {
            match number {
                1 => kv.key = field.bytes()?,
                2 => kv.created = Revision(field.number()?),
                3 => kv.modified = Revision(field.number()?),
                4 => kv.version = field.number()?,
                5 => kv.value = field.bytes()?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(kv)
    }
}

/// The revision in an answer's header.
fn header(field: Field) -> Result<Revision, Malformed> {
    let mut revision = Revision(0);
    read(field.bytes()?, |number, field| {
        if number == 3 {
            revision = Revision(field.number()?);
        }
        Ok(())
    })?;
    Ok(revision)
}

/// An answer of which only the header's revision matters.
pub(crate) fn header_of(answer: Bytes) -> Result<Revision, Malformed> {
    let mut revision = Revision(0);
    read(answer, |number, field| {
        if number == 1 {
            revision = header(field)?;
        }
        Ok(())
    })?;
    Ok(revision)
}

#[derive(Clone, Debug, Default)]
pub(crate) struct RangeResponse {
    pub(crate) revision: Revision,
    pub(crate) kvs: Vec<KeyValue>,
    pub(crate) more: bool,
    /// How many keys the range has, whatever the limit.
    pub(crate) count: u64,
}

impl RangeResponse {
    pub(crate) fn decode(bytes: Bytes) -> Result<RangeResponse, Malformed> {
        let mut response = RangeResponse::default();
        read(bytes, |number, field| {
            match number {
                1 => response.revision = header(field)?,
                2 => response.kvs.push(KeyValue::decode(field.bytes()?)?),
                3 => response.more = field.number()? != 0,
                4 => response.count = field.number()?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(response)
    }
}

#[derive(Clone, Debug)]
pub(crate) enum ResponseOp {
    Range(RangeResponse),
    /// Something was written or deleted.
    Done,
}

impl ResponseOp {
    fn decode(bytes: Bytes) -> Result<ResponseOp, Malformed> {
        let mut op = Err(Malformed);
        read(bytes, |number, field| {
            op = Ok(match number {
                1 => ResponseOp::Range(RangeResponse::decode(field.bytes()?)?),
                2 | 3 => ResponseOp::Done,
                _ => return Ok(()),
            });
            Ok(())
        })?;
        op
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct TxnResponse {
    pub(crate) revision: Revision,
    pub(crate) succeeded: bool,
    pub(crate) responses: Vec<ResponseOp>,
}

impl TxnResponse {
    pub(crate) fn decode(bytes: Bytes) -> Result<TxnResponse, Malformed> {
        let mut response = TxnResponse::default();
        read(bytes, |number, field| {
            match number {
                1 => response.revision = header(field)?,
                2 => response.succeeded = field.number()? != 0,
                3 => response.responses.push(ResponseOp::decode(field.bytes()?)?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(response)
    }
}

/// One change, as a watch tells it.
#[derive(Clone, Debug, Default)]
pub(crate) struct WatchEvent {
    pub(crate) deleted: bool,
    /// Of a deleted key: its name and the revision of the deletion.
    pub(crate) kv: KeyValue,
    pub(crate) previous: Option<KeyValue>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct WatchResponse {
    pub(crate) revision: Revision,
    pub(crate) created: bool,
    pub(crate) canceled: bool,
    /// Of a watch from a revision that is gone: the oldest one that is there.
    pub(crate) compacted: Revision,
    pub(crate) reason: String,
    pub(crate) events: Vec<WatchEvent>,
}

impl WatchResponse {
    pub(crate) fn decode(bytes: Bytes) -> Result<WatchResponse, Malformed> {
        let mut response = WatchResponse::default();
        read(bytes, |number, field| {
            match number {
                1 => response.revision = header(field)?,
                3 => response.created = field.number()? != 0,
                4 => response.canceled = field.number()? != 0,
                5 => response.compacted = Revision(field.number()?),
                6 => response.reason = field.text()?,
                11 => {
                    let mut event = WatchEvent::default();
                    read(field.bytes()?, |number, field| {
                        match number {
                            1 => event.deleted = field.number()? == 1,
                            2 => event.kv = KeyValue::decode(field.bytes()?)?,
                            3 => event.previous = Some(KeyValue::decode(field.bytes()?)?),
                            _ => {}
                        }
                        Ok(())
                    })?;
                    response.events.push(event);
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(response)
    }
}

/// The version a member says it has, such as `3.4.23`.
pub(crate) fn version(status: Bytes) -> Result<String, Malformed> {
    let mut version = String::new();
    read(status, |number, field| {
        if number == 2 {
            version = field.text()?;
        }
        Ok(())
    })?;
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_a_prefix_ends_where_its_last_key_does() {
        for (prefix, end) in
            [(&b"/a/"[..], &b"/a0"[..]), (b"a", b"b"), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"", b"\0")]
        {
            assert_eq!(prefix_end(prefix), end, "{prefix:?}");
        }
        assert_eq!(prefix_start(b""), b"\0");
    }

    #[test]
    fn a_transaction_says_which_operation_each_is() {
        let txn = TxnRequest {
            compare: vec![compare_modified(b"k", 7)],
            success: vec![RequestOp::Put(put(b"k", b"v")), RequestOp::Delete(b"d".to_vec())],
            failure: vec![RequestOp::Range(RangeRequest { key: b"k", keys_only: true, ..Default::default() }.encode())],
        };
        // Written out by hand from rpc.proto.
        let expected: &[u8] = &[
            0x0a, 7, 0x10, 2, 0x1a, 1, b'k', 0x30, 7, // compare: target MOD, key, mod_revision
            0x12, 8, 0x12, 6, 0x0a, 1, b'k', 0x12, 1, b'v', // success: put
            0x12, 5, 0x1a, 3, 0x0a, 1, b'd', // success: delete
            0x1a, 7, 0x0a, 5, 0x0a, 1, b'k', 0x40, 1, // failure: range, keys only
        ];
        assert_eq!(txn.encode(), expected);
    }
}
