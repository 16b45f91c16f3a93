//! The public face: group commit, watches, closing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use proa_store::{
    Batch, CommitError, Embedded, EventKind, Expect, Key, Log, Options, Revision, Txn, Value, WatchError,
};

async fn fresh(options: Options) -> (tempfile::TempDir, Arc<Embedded>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), options).await.unwrap();
    (dir, Arc::new(store))
}

fn put(key: impl Into<Key>, bytes: &str) -> Txn {
    Txn::put(key, Value::plain(bytes.to_string()), Expect::Any)
}

#[tokio::test]
async fn concurrent_commits_share_their_syncs() {
    let (_dir, store) = fresh(Options::default()).await;
    let commits: Vec<_> = (0..500).map(|i| store.commit(put(format!("/k/{i}"), "v"))).collect();
    let results = futures::future::join_all(commits).await;
    let mut revisions: Vec<u64> = results.into_iter().map(|r| r.unwrap().revision.0).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (2..502).collect::<Vec<_>>());
    let stats = store.stats();
    assert_eq!(stats.commits, 500);
    assert!(stats.frames < 100, "{} syncs for 500 commits", stats.frames);
}

#[tokio::test]
async fn of_two_writers_that_expect_the_same_revision_one_wins() {
    let (_dir, store) = fresh(Options::default()).await;
    let first = store.commit(put("k", "0")).await.unwrap().revision;
    let update = |v: &str| Txn::put("k", Value::plain(v.to_string()), Expect::At(first));
    let results = futures::future::join_all([store.commit(update("a")), store.commit(update("b"))]).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    assert!(results.iter().any(|r| matches!(r, Err(CommitError::Conflict { current: Some(Revision(3)), .. }))));
}

#[tokio::test]
async fn an_object_carries_its_own_revision() {
    let (_dir, store) = fresh(Options::default()).await;
    let value = Value::with_revision_at(&br#"{"resourceVersion":""}"#[..], 20);
    let done = store.commit(Txn::put("k", value.clone(), Expect::Absent)).await.unwrap();
    assert_eq!(done.entries[0].bytes, &br#"{"resourceVersion":"2"}"#[..]);
    let mut watch = store.watch("", done.revision);
    store.commit(Txn::delete("k", Expect::At(done.revision), Some(value))).await.unwrap();
    let events = watch.next().await.unwrap().unwrap();
    let EventKind::Delete { last, previous, .. } = &events.events[0].kind else { panic!("{events:?}") };
    assert_eq!(last, &br#"{"resourceVersion":"3"}"#[..]);
    assert_eq!(previous, &done.entries[0]);
}

#[tokio::test]
async fn watchers_of_the_same_keys_share_one_buffer() {
    let (_dir, store) = fresh(Options::default()).await;
    let (mut one, mut two) = (store.watch("/a/", Revision::FIRST), store.watch("", Revision::FIRST));
    let done = store.commit(put("/a/1", "value")).await.unwrap();
    let (first, second) = (one.next().await.unwrap().unwrap(), two.next().await.unwrap().unwrap());
    assert!(Arc::ptr_eq(&first.events, &second.events));
    let EventKind::Put { entry, .. } = &first.events[0].kind else { panic!() };
    assert_eq!(entry.bytes.as_ptr(), done.entries[0].bytes.as_ptr());
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_told_that_it_lagged() {
    let (_dir, store) = fresh(Options { history_events: 10, ..Options::default() }).await;
    let mut slow = store.watch("/a/", Revision::FIRST);
    for i in 0..30 {
        store.commit(put("/a/1", &i.to_string())).await.unwrap();
    }
    let lagged = slow.next().await.unwrap().unwrap_err();
    assert_eq!(lagged, WatchError::Lagged { read: Revision::FIRST, oldest: store.oldest() });
    assert!(slow.next().await.is_none());
}

#[tokio::test]
async fn a_watcher_of_quiet_keys_does_not_lag_behind_what_others_do() {
    let (_dir, store) = fresh(Options { history_events: 10, ..Options::default() }).await;
    let mut quiet = store.watch("/quiet/", Revision::FIRST);
    assert!(futures::poll!(quiet.next()).is_pending());
    for i in 0..100 {
        store.commit(put("/noisy/1", &i.to_string())).await.unwrap();
    }
    let done = store.commit(put("/quiet/1", "at last")).await.unwrap();
    let Batch { events, .. } = quiet.next().await.unwrap().unwrap();
    assert_eq!((events.len(), events[0].revision), (1, done.revision));
}

#[tokio::test]
async fn a_waiting_watcher_is_woken_and_ends_when_the_store_closes() {
    let (_dir, store) = fresh(Options::default()).await;
    let mut watch = store.watch("/a/", Revision::FIRST);
    let reader = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(batch) = watch.next().await {
            seen.extend(batch.unwrap().events.iter().map(|e| e.revision.0));
        }
        seen
    });
    for i in 0..50 {
        store.commit(put(if i % 2 == 0 { "/a/x" } else { "/b/x" }, "v")).await.unwrap();
        tokio::task::yield_now().await;
    }
    store.close().await;
    assert_eq!(reader.await.unwrap(), (0..25).map(|i| i * 2 + 2).collect::<Vec<_>>());
    assert!(matches!(store.commit(put("k", "v")).await, Err(CommitError::Closed)));
}

#[tokio::test]
async fn what_is_queued_when_the_store_closes_is_still_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), Options::default()).await.unwrap();
    let commits: Vec<_> = (0..50).map(|i| store.commit(put(format!("/k/{i}"), "v"))).collect();
    let (results, ()) = futures::future::join(futures::future::join_all(commits), store.close()).await;
    assert!(results.iter().all(Result::is_ok));
    drop(store);
    let store = Embedded::open(dir.path(), Options::default()).await.unwrap();
    assert_eq!(store.range("/k/", None, None, 0).await.unwrap().entries.len(), 50);
}

#[tokio::test]
async fn a_transaction_that_makes_no_sense_is_refused_and_harms_no_one() {
    let (_dir, store) = fresh(Options::default()).await;
    let mut twice = put("k", "1");
    twice.ops.extend(put("k", "2").ops);
    let beyond = Txn::put("k", Value::with_revision_at("short", 99), Expect::Any);
    for txn in [twice, beyond] {
        assert!(matches!(store.commit(txn).await, Err(CommitError::Invalid(_))));
    }
    assert_eq!(store.commit(put("k", "3")).await.unwrap().revision, Revision(2));
}

#[tokio::test]
async fn removing_what_is_not_there_takes_no_revision() {
    let (_dir, store) = fresh(Options::default()).await;
    let done = store.commit(Txn::delete("k", Expect::Any, None)).await.unwrap();
    assert_eq!((done.revision, store.stats().frames), (Revision::FIRST, 0));
    let refused = store.commit(Txn::delete("k", Expect::At(Revision(1)), None)).await;
    assert!(matches!(refused, Err(CommitError::Conflict { current: None, .. })));
}

/// Prints rates for people; asserts only what holds on a busy machine and in a debug build.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_writers_get_ten_thousand_commits_through_in_seconds() {
    let (_dir, store) = fresh(Options::default()).await;
    let value = "v".repeat(1024);
    let started = Instant::now();
    let writers = (0..50).map(|w| {
        let (store, value) = (store.clone(), value.clone());
        tokio::spawn(async move {
            for i in 0..200 {
                store.commit(put(format!("/k/{w}/{i}"), &value)).await.unwrap();
            }
        })
    });
    futures::future::join_all(writers.collect::<Vec<_>>()).await;
    let (all, stats) = (started.elapsed(), store.stats());
    let started = Instant::now();
    for _ in 0..100 {
        store.commit(put("/k/one", &value)).await.unwrap();
    }
    let one = started.elapsed() / 100;
    println!("{:.0} commits/s in {} syncs; one at a time {one:?}", 10_000.0 / all.as_secs_f64(), stats.frames);
    assert!(all < Duration::from_secs(20) && stats.frames < 5_000);
}
