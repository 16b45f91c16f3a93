//! Forgets what is older than five minutes, as every `kube-apiserver` on an etcd does, and in step with them.
//!
//! All of them share a key, whose version is the time: who moves it on compacts, at the revision it saw one interval
//! before; the others see that it was moved (`storage/etcd3/compact.go` in Kubernetes).

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::channel::CallError;
use super::messages::{self, RangeRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse, compare_version, put};
use crate::types::Revision;

/// Kubernetes' name for the key.
const KEY: &[u8] = b"compact_rev_key";

/// What a compactor remembers from one turn to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Turn {
    /// The version of the key that it last saw.
    time: u64,
    /// The revision of the store then.
    revision: Revision,
}

/// Compacts every `interval` until the store is closed.
pub(super) async fn run(shared: Arc<Shared>, interval: Duration) {
    let mut closed = shared.closed.subscribe();
    let mut turn = Turn::default();
    loop {
        tokio::select! {
            biased;
            _ = closed.changed() => return,
            () = tokio::time::sleep(interval) => {}
        }
        match take(&shared, turn).await {
            Ok(next) => turn = next,
            Err(error) => tracing::warn!(%error, "etcd was not compacted"),
        }
    }
}

async fn take(shared: &Shared, turn: Turn) -> Result<Turn, CallError> {
    let answer = shared.ask(messages::TXN, &request(turn).encode()).await?;
    let response = TxnResponse::decode(answer).map_err(|error| CallError::Lost(error.to_string()))?;
    let (next, compact) = decide(turn, &response);
    if let Some(revision) = compact {
        shared.compact(revision).await?;
    }
    Ok(next)
}

fn request(turn: Turn) -> TxnRequest {
    let look = RangeRequest { key: KEY, ..RangeRequest::default() }.encode();
    TxnRequest {
        compare: vec![compare_version(KEY, turn.time)],
        success: vec![RequestOp::Put(put(KEY, turn.revision.to_string().as_bytes()))],
        failure: vec![RequestOp::Range(look)],
    }
}

/// What to remember, and what to compact at.
fn decide(turn: Turn, response: &TxnResponse) -> (Turn, Option<Revision>) {
    if response.succeeded {
        let compact = (turn.revision > Revision(0)).then_some(turn.revision);
        return (Turn { time: turn.time + 1, revision: response.revision }, compact);
    }
    let time = match response.responses.first() {
        Some(ResponseOp::Range(range)) => range.kvs.first().map_or(0, |kv| kv.version),
        _ => 0,
    };
    (Turn { time, revision: response.revision }, None)
}

#[cfg(test)]
mod tests {
    use super::super::messages::{KeyValue, RangeResponse};
    use super::*;

    /// The key as a cluster holds it: only its version and the revision of the store matter.
    struct Cluster {
        version: u64,
        revision: u64,
    }

    impl Cluster {
        fn answer(&mut self, turn: Turn) -> TxnResponse {
            self.revision += 1;
            let succeeded = turn.time == self.version;
            self.version += u64::from(succeeded);
            let kv = KeyValue { version: self.version, ..KeyValue::default() };
            let seen = ResponseOp::Range(RangeResponse { kvs: vec![kv], ..RangeResponse::default() });
            TxnResponse { revision: Revision(self.revision), succeeded, responses: vec![seen] }
        }
    }

    #[test]
    fn of_several_compactors_one_compacts_each_time_and_never_what_is_younger_than_an_interval() {
        let mut cluster = Cluster { version: 0, revision: 10 };
        let mut turns = [Turn::default(); 3];
        let mut compacted = Vec::new();
        for interval in 0..6u64 {
            let began = cluster.revision;
            cluster.revision += 100;
            let mut here = 0;
            for turn in &mut turns {
                let (next, compact) = decide(*turn, &cluster.answer(*turn));
                *turn = next;
                if let Some(revision) = compact {
                    assert!(revision.0 <= began, "interval {interval}: {revision} is too young, it began at {began}");
                    compacted.push(revision);
                    here += 1;
                }
            }
            assert!(here <= 1);
        }
        assert!(compacted.len() >= 4 && compacted.is_sorted(), "{compacted:?}");
    }
}
