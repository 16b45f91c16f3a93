//! Directories of older versions: kept as they were written, opened by this one.
//!
//! `fixtures/format-N` was written by the first version with format N, by `PROA_WRITE_FIXTURE=DIR` and the test below.
//! A change of the format adds a directory and changes none.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use proa_store::{Embedded, EventKind, Expect, Log, Op, Options, Revision, Txn, Value};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Files small enough that there is a checkpoint, a sealed and an active segment.
fn options() -> Options {
    Options {
        history_events: 12,
        history_bytes: 1 << 20,
        history_age: Duration::from_secs(3600),
        segment_bytes: 400,
        checkpoint_bytes: 300,
    }
}

/// What every kept directory was filled with.
fn story() -> Vec<Txn> {
    let object = |n: u64| {
        let text = format!("{{\"resourceVersion\":\"\",\"n\":{n}}}");
        Value::with_revision_at(text, 20)
    };
    let mut story: Vec<Txn> =
        (0..30).map(|n| Txn::put(format!("/registry/pods/ns/p{}", n % 7), object(n), Expect::Any)).collect();
    story.push(Txn::delete("/registry/pods/ns/p3", Expect::Any, Some(object(99))));
    story.push(Txn::delete("/registry/pods/ns/p4", Expect::Any, None));
    let mut both = Txn::put("/registry/pods/ns/ä", object(31), Expect::Absent);
    both.ops.push(Op::Put {
        key: "/registry/quotas/ns/q".into(),
        value: Value::plain(&b"\0\xff plain"[..]),
        expect: Expect::Any,
    });
    story.push(both);
    story
}

async fn tell(store: &dyn Log) {
    for txn in story() {
        store.commit(txn).await.unwrap();
    }
}

#[tokio::test]
async fn a_directory_of_every_format_there_was_opens_with_its_history() {
    if let Some(dir) = std::env::var_os("PROA_WRITE_FIXTURE") {
        let store = Embedded::open(Path::new(&dir), options()).await.unwrap();
        tell(&store).await;
        store.close().await;
        return;
    }
    // The same story, written and read by this version.
    let now = tempfile::tempdir().unwrap();
    let fresh = Embedded::open(now.path(), options()).await.unwrap();
    tell(&fresh).await;
    let mut formats = 0;
    for kept in std::fs::read_dir(fixtures()).unwrap().flatten() {
        let copy = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(kept.path()).unwrap().flatten() {
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
        let old = Embedded::open(copy.path(), options()).await.unwrap();
        assert_eq!(old.revision(), Revision(1 + story().len() as u64));
        assert!(old.oldest() > Revision::FIRST && old.oldest() < old.revision(), "a checkpoint and a history after it");
        for at in old.oldest().0.max(fresh.oldest().0)..=old.revision().0 {
            let at = Some(Revision(at));
            assert_eq!(old.range("", at, None, 0).await, fresh.range("", at, None, 0).await);
        }
        let mut watch = old.watch("", old.oldest());
        let mut last = Vec::new();
        while let Some(Some(batch)) = watch.next().now_or_never() {
            last.extend(batch.unwrap().events.iter().filter_map(|event| match &event.kind {
                EventKind::Delete { last, .. } => Some(last.clone()),
                EventKind::Put { .. } => None,
            }));
        }
        assert_eq!(last[0], &b"{\"resourceVersion\":\"32\",\"n\":99}"[..]);
        assert!(last[1].ends_with(b"\"n\":25}"), "as it was before");
        // And it is written to.
        old.commit(Txn::put("/registry/pods/ns/new", Value::plain("new"), Expect::Absent)).await.unwrap();
        old.close().await;
        drop(old);
        let again = Embedded::open(copy.path(), options()).await.unwrap();
        assert_eq!(&again.get("/registry/pods/ns/new").await.unwrap().0.unwrap().bytes[..], b"new");
        formats += 1;
    }
    assert!(formats > 0);
}
