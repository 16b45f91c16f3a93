//! A transaction in etcd's terms, and what its answer means. Pure.

use super::form::{Form, own_bytes};
use super::messages::{KeyValue, RangeRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse, compare_modified, put};
use crate::error::CommitError;
use crate::types::{Committed, Entry, Expect, Op, Revision, Txn};

/// The most operations etcd takes in one transaction (`--max-txn-ops`, by default).
const MAX_OPS: usize = 128;

/// How a transaction is asked for: its expectations compared, its steps, and what is to be seen when an expectation
/// does not hold (`values`: the values too, by which our own work is known again).
pub(crate) fn request(form: &dyn Form, txn: &Txn, values: bool) -> Result<TxnRequest, CommitError> {
    let mut request = TxnRequest::default();
    for op in &txn.ops {
        let key = form.key_out(op.key()).into_bytes();
        match op.expect() {
            Expect::Any => {}
            Expect::Absent => request.compare.push(compare_modified(&key, 0)),
            Expect::At(revision) => request.compare.push(compare_modified(&key, revision.0)),
        }
        let look = |keys_only| RequestOp::Range(RangeRequest { key: &key, keys_only, ..Default::default() }.encode());
        request.failure.push(look(!values));
        match op {
            Op::Put { value, expect, .. } => {
                request.success.push(RequestOp::Put(put(&key, &form.value_out(value))));
                if *expect != Expect::Absent {
                    // By which revision was it created?
                    request.success.push(look(true));
                }
            }
            Op::Delete { .. } => request.success.push(RequestOp::Delete(key)),
            Op::Check { .. } => {}
        }
    }
    let most = request.success.len().max(request.failure.len());
    if most > MAX_OPS {
        return Err(CommitError::Invalid(format!("{most} operations are more than the {MAX_OPS} etcd takes at once")));
    }
    Ok(request)
}

/// What became of a transaction.
pub(crate) fn outcome(txn: &Txn, response: &TxnResponse) -> Result<Committed, CommitError> {
    if !response.succeeded {
        return Err(conflict(txn, response));
    }
    let mut ranges = response.responses.iter().filter_map(|op| match op {
        ResponseOp::Range(range) => Some(range),
        _ => None,
    });
    let mut entries = Vec::new();
    for op in &txn.ops {
        let Op::Put { key, value, expect } = op else { continue };
        let modified = response.revision;
        let created = match expect {
            Expect::Absent => modified,
            _ => ranges.next().and_then(|range| range.kvs.first()).map_or(modified, |kv| kv.created),
        };
        entries.push(Entry { key: key.clone(), bytes: own_bytes(value, modified), created, modified });
    }
    Ok(Committed { revision: response.revision, entries })
}

/// The keys of the transaction as they are, in its order.
fn seen(response: &TxnResponse) -> impl Iterator<Item = Option<&KeyValue>> {
    response.responses.iter().map(|op| match op {
        ResponseOp::Range(range) => range.kvs.first(),
        _ => None,
    })
}

fn conflict(txn: &Txn, response: &TxnResponse) -> CommitError {
    let mut broken = None;
    for (op, current) in txn.ops.iter().zip(seen(response).map(|kv| kv.map(|kv| kv.modified))) {
        let holds = match op.expect() {
            Expect::Any => true,
            Expect::Absent => current.is_none(),
            Expect::At(revision) => current == Some(revision),
        };
        if !holds {
            broken = Some((op, current));
            break;
        }
    }
    match broken {
        Some((op, current)) => CommitError::Conflict { key: op.key().clone(), current },
        None => CommitError::Unavailable("etcd refused a transaction whose expectations hold".to_owned()),
    }
}

/// After an attempt nobody heard the end of, an expectation does not hold. When everything is as the transaction would
/// have left it, at one revision, it was that attempt's work; `None` when that cannot be said.
pub(crate) fn done_before(form: &dyn Form, txn: &Txn, response: &TxnResponse) -> Option<Committed> {
    let mut written: Option<Revision> = None;
    let mut entries = Vec::new();
    for (op, current) in txn.ops.iter().zip(seen(response)) {
        match (op, current) {
            (Op::Put { key, value, .. }, Some(kv)) if form.value_out(value) == kv.value => {
                if written.is_some_and(|written| written != kv.modified) {
                    return None;
                }
                written = Some(kv.modified);
                let bytes = own_bytes(value, kv.modified);
                entries.push(Entry { key: key.clone(), bytes, created: kv.created, modified: kv.modified });
            }
            (Op::Put { .. }, _) | (Op::Delete { .. }, Some(_)) => return None,
            (Op::Delete { .. }, None) | (Op::Check { .. }, _) => {}
        }
    }
    Some(Committed { revision: written.unwrap_or(response.revision), entries })
}

#[cfg(test)]
mod tests {
    use super::super::messages::RangeResponse;
    use super::super::tests::AsIs;
    use super::*;
    use crate::types::Value;

    fn kv(value: &str, modified: u64) -> KeyValue {
        let value = AsIs.value_out(&Value::plain(value.to_owned()));
        KeyValue { key: "k".into(), value, created: Revision(3), modified: Revision(modified), version: 2 }
    }

    fn saw(kvs: Vec<Option<KeyValue>>) -> TxnResponse {
        let range = |kv: Option<KeyValue>| {
            ResponseOp::Range(RangeResponse { kvs: kv.into_iter().collect(), ..RangeResponse::default() })
        };
        TxnResponse { revision: Revision(9), succeeded: false, responses: kvs.into_iter().map(range).collect() }
    }

    fn update() -> Txn {
        Txn::put("k", Value::plain("new"), Expect::At(Revision(5)))
    }

    #[test]
    fn the_first_key_that_is_not_as_expected_is_the_conflict() {
        let mut txn = update();
        txn.ops.push(Op::Check { key: "ns".into(), expect: Expect::At(Revision(2)) });
        let refused = outcome(&txn, &saw(vec![Some(kv("old", 5)), None])).unwrap_err();
        assert!(matches!(refused, CommitError::Conflict { key, current: None } if &*key == "ns"));
    }

    #[test]
    fn our_own_work_is_known_again_and_nobody_elses_is_taken_for_it() {
        let ours = done_before(&AsIs, &update(), &saw(vec![Some(kv("new", 7))])).unwrap();
        assert_eq!((ours.revision, ours.entries[0].created), (Revision(7), Revision(3)));
        assert!(done_before(&AsIs, &update(), &saw(vec![Some(kv("theirs", 7))])).is_none());
        assert!(done_before(&AsIs, &update(), &saw(vec![None])).is_none());
        let delete = Txn::delete("k", Expect::At(Revision(5)), None);
        assert_eq!(done_before(&AsIs, &delete, &saw(vec![None])).unwrap().revision, Revision(9));
        assert!(done_before(&AsIs, &delete, &saw(vec![Some(kv("new", 7))])).is_none());
    }

    #[test]
    fn more_operations_than_etcd_takes_are_refused_by_their_number() {
        let many =
            Txn { ops: (0..65).flat_map(|n| Txn::put(n.to_string(), Value::plain("v"), Expect::Any).ops).collect() };
        let refused = request(&AsIs, &many, false).unwrap_err().to_string();
        assert!(refused.contains("130 operations are more than the 128"), "{refused}");
    }
}
