//! A transaction against the state it finds: do its expectations hold, and what does it change? Pure.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};

use crate::error::CommitError;
use crate::state::{Change, State};
use crate::types::{Expect, Key, Op, Revision, Txn, Value};

/// The largest transaction accepted, in bytes of keys and values.
pub(crate) const MAX_TXN_BYTES: usize = 64 << 20;

/// What the transactions before this one in the same group commit did to keys: the revision each was
/// last modified at, or `None` where it was deleted. None of it is durable yet.
#[derive(Debug, Default)]
pub(crate) struct Overlay(HashMap<Key, Option<Revision>>);

impl Overlay {
    pub(crate) fn record(&mut self, revision: Revision, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Put { key, .. } => self.0.insert(key.clone(), Some(revision)),
                Change::Delete { key, .. } => self.0.insert(key.clone(), None),
            };
        }
    }

    /// Whether the transaction read something that is not durable yet.
    pub(crate) fn touches(&self, txn: &Txn) -> bool {
        txn.ops.iter().any(|op| self.0.contains_key(op.key()))
    }
}

/// The changes `txn` makes when committed as `revision`; empty when it changes nothing.
pub(crate) fn resolve(
    state: &State,
    overlay: &Overlay,
    txn: &Txn,
    revision: Revision,
) -> Result<Vec<Change>, CommitError> {
    check_form(txn)?;
    let mut changes = Vec::with_capacity(txn.ops.len());
    for op in &txn.ops {
        let key = op.key();
        let current = match overlay.0.get(key) {
            Some(modified) => *modified,
            None => state.get(key).map(|entry| entry.modified),
        };
        let holds = match op.expect() {
            Expect::Any => true,
            Expect::Absent => current.is_none(),
            Expect::At(revision) => current == Some(revision),
        };
        if !holds {
            return Err(CommitError::Conflict { key: key.clone(), current });
        }
        match op {
            Op::Put { value, .. } => changes.push(Change::Put { key: key.clone(), bytes: finish(value, revision) }),
            Op::Delete { last, .. } if current.is_some() => {
                let last = last.as_ref().map(|value| finish(value, revision));
                changes.push(Change::Delete { key: key.clone(), last });
            }
            Op::Delete { .. } | Op::Check { .. } => {}
        }
    }
    Ok(changes)
}

pub(crate) fn check_form(txn: &Txn) -> Result<(), CommitError> {
    let mut size = 0;
    for (i, op) in txn.ops.iter().enumerate() {
        size += op.key().len();
        // Transactions have a handful of keys; a set would cost more than it saves.
        if txn.ops[..i].iter().any(|other| other.key() == op.key()) {
            return Err(CommitError::Invalid(format!("{} occurs twice", op.key())));
        }
        let value = match op {
            Op::Put { value, .. } => Some(value),
            Op::Delete { last, .. } => last.as_ref(),
            Op::Check { .. } => None,
        };
        if let Some(value) = value {
            size += value.bytes.len();
            if value.revision_at.is_some_and(|at| at > value.bytes.len()) {
                return Err(CommitError::Invalid(format!("{}: the revision's place is past the end", op.key())));
            }
        }
    }
    if size > MAX_TXN_BYTES {
        return Err(CommitError::Invalid(format!("{size} bytes are more than the {MAX_TXN_BYTES} allowed")));
    }
    Ok(())
}

/// The final bytes: the decimal revision in its place.
pub(crate) fn finish(value: &Value, revision: Revision) -> Bytes {
    let Some(at) = value.revision_at else { return value.bytes.clone() };
    let digits = revision.to_string();
    let mut out = BytesMut::with_capacity(value.bytes.len() + digits.len());
    out.put_slice(&value.bytes[..at]);
    out.put_slice(digits.as_bytes());
    out.put_slice(&value.bytes[at..]);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_is_inserted_where_it_was_left_out() {
        let value = Value::with_revision_at(&b"{\"rv\":\"\"}"[..], 7);
        assert_eq!(finish(&value, Revision(42)), &b"{\"rv\":\"42\"}"[..]);
        assert_eq!(finish(&Value::with_revision_at(Bytes::new(), 0), Revision(7)), &b"7"[..]);
    }
}
