//! Backups of a store in use, and stores made from them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use proa_store::{
    AFTER_BACKUP, BackupReader, BackupWriter, Embedded, Entry, Expect, Filling, Log, OpenError, Options, Revision,
    Snapshot, Txn, Value,
};

/// Small files, so that segments and checkpoints come and go while the directory is looked at.
fn options() -> Options {
    Options { history_events: 10, segment_bytes: 500, checkpoint_bytes: 1_000, ..Options::default() }
}

fn all(snapshot: &Snapshot) -> Vec<Entry> {
    let (mut all, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = snapshot.page(after.as_deref());
        let Some(last) = page.last() else { return all };
        after = Some(last.key.to_string());
        all.extend(page);
    }
}

fn pair(n: u64) -> Txn {
    let value = || Value::plain(n.to_string());
    let mut txn = Txn::put("/left", value(), Expect::Any);
    txn.ops.extend(Txn::put("/right", value(), Expect::Any).ops);
    txn.ops.extend(Txn::put(format!("/n/{}", n % 50), value(), Expect::Any).ops);
    txn
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_beside_a_writer_is_of_one_revision_and_holds_all_that_was_acknowledged_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(dir.path(), options()).await.unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, stop) = (store.clone(), stop.clone());
        async move {
            let mut n = 0;
            while !stop.load(Ordering::SeqCst) {
                n += 1;
                store.commit(pair(n)).await.unwrap();
            }
        }
    });
    let mut looks = 0;
    // Until files came and went often enough.
    while looks < 40 || store.stats().checkpoints < 3 {
        looks += 1;
        let acknowledged = store.revision();
        let path = dir.path().to_owned();
        let snapshot = tokio::task::spawn_blocking(move || Snapshot::of(&path)).await.unwrap().unwrap();
        assert!(snapshot.revision() >= acknowledged);
        let entries: BTreeMap<String, Bytes> =
            all(&snapshot).into_iter().map(|entry| (entry.key.to_string(), entry.bytes)).collect();
        assert_eq!(entries.get("/left"), entries.get("/right"));
    }
    stop.store(true, Ordering::SeqCst);
    writer.await.unwrap();
}

async fn filled(dir: &Path) -> Vec<Entry> {
    let store = Embedded::open(dir, options()).await.unwrap();
    for n in 0..200 {
        store.commit(pair(n)).await.unwrap();
    }
    store.commit(Txn::delete("/n/7", Expect::Any, None)).await.unwrap();
    let entries = store.range("", None, None, 0).await.unwrap().entries;
    store.close().await;
    entries
}

fn written(from: &Path, file: &Path) -> Revision {
    let snapshot = Snapshot::of(from).unwrap();
    let mut writer = BackupWriter::create(file, snapshot.revision()).unwrap();
    all(&snapshot).iter().for_each(|entry| writer.push(entry).unwrap());
    assert!(!file.exists(), "not before it is complete");
    writer.finish().unwrap();
    snapshot.revision()
}

#[tokio::test]
async fn a_restored_store_holds_what_was_backed_up_and_goes_on_past_every_revision_there_was() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to, file) = (dir.path().join("from"), dir.path().join("to"), dir.path().join("file"));
    let entries = filled(&from).await;
    let revision = written(&from, &file);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let mut reader = BackupReader::open(&file).unwrap();
    assert_eq!(reader.revision(), revision);
    let at = Revision(revision.0 + AFTER_BACKUP);
    let mut filling = Filling::begin(&to, at).unwrap();
    while let Some(some) = reader.entries().unwrap() {
        some.iter().for_each(|entry| filling.push(entry).unwrap());
    }
    filling.finish().unwrap();
    let store = Embedded::open(&to, options()).await.unwrap();
    assert_eq!(store.range("", None, None, 0).await.unwrap().entries, entries);
    assert_eq!((store.revision(), store.oldest()), (at, at), "who watched before reads all anew");
    assert_eq!(store.commit(pair(1)).await.unwrap().revision, at.next());
    store.close().await;
    assert!(matches!(Filling::begin(&to, at).map(drop), Err(OpenError::NotEmpty { .. })));
}

#[tokio::test]
async fn what_is_cut_short_while_being_filled_is_an_empty_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut filling = Filling::begin(dir.path(), Revision(9)).unwrap();
    let entry = Entry { key: "/k".into(), bytes: "v".into(), created: Revision(2), modified: Revision(2) };
    filling.push(&entry).unwrap();
    drop(filling);
    drop(Filling::begin(dir.path(), Revision(9)).unwrap());
    let store = Embedded::open(dir.path(), Options::default()).await.unwrap();
    assert_eq!(store.revision(), Revision::FIRST);
}

#[tokio::test]
async fn no_damaged_backup_is_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (from, file) = (dir.path().join("from"), dir.path().join("file"));
    filled(&from).await;
    written(&from, &file);
    let whole = std::fs::read(&file).unwrap();
    let read = |bytes: &[u8]| -> Result<(), OpenError> {
        std::fs::write(&file, bytes).unwrap();
        let mut reader = BackupReader::open(&file)?;
        while reader.entries()?.is_some() {}
        Ok(())
    };
    read(&whole).unwrap();
    for at in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        assert!(read(&whole[..at]).is_err(), "cut at {at}");
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        assert!(read(&flipped).is_err(), "flipped at {at}");
    }
    let log =
        std::fs::read_dir(&from).unwrap().flatten().find(|file| file.file_name().to_string_lossy().starts_with("log-"));
    assert!(BackupReader::open(&log.unwrap().path()).is_err(), "a log is no backup");
}
