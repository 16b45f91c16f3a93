//! What happens to files: torn tails, flipped bits, full disks, two openers, missing pieces.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proa_store::{CommitError, Embedded, Expect, Log, OpenError, Options, Revision, Txn, Value};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

async fn open(dir: &Path) -> Result<Embedded, OpenError> {
    Embedded::open(dir, Options::default()).await
}

async fn put(store: &Embedded, key: &str, value: &str) -> Result<Revision, CommitError> {
    let txn = Txn::put(key, Value::plain(value.to_string()), Expect::Any);
    store.commit(txn).await.map(|done| done.revision)
}

async fn keys(store: &Embedded) -> Vec<String> {
    store.range("", None, None, 0).await.unwrap().entries.iter().map(|e| e.key.to_string()).collect()
}

fn only_log(dir: &Path) -> PathBuf {
    let mut logs = files(dir, "log-");
    assert_eq!(logs.len(), 1);
    logs.remove(0)
}

fn files(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
    found.retain(|p| p.file_name().unwrap().to_str().unwrap().starts_with(prefix));
    found.sort();
    found
}

/// A log of three commits, and its length after each of them.
async fn three_commits(dir: &Path) -> (Vec<u8>, Vec<usize>) {
    let store = open(dir).await.unwrap();
    let mut lengths = Vec::new();
    for key in ["a", "b", "c"] {
        lengths.push(fs::metadata(only_log(dir)).unwrap().len() as usize);
        put(&store, key, "some value").await.unwrap();
    }
    store.close().await;
    let bytes = fs::read(only_log(dir)).unwrap();
    lengths.push(bytes.len());
    (bytes, lengths)
}

#[tokio::test]
async fn a_log_torn_at_any_byte_opens_with_every_whole_commit_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, lengths) = three_commits(dir.path()).await;
    let log = only_log(dir.path());
    for cut in 0..bytes.len() {
        fs::remove_file(&log).unwrap();
        fs::write(&log, &bytes[..cut]).unwrap();
        let store = open(dir.path()).await.unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
        let whole = lengths.iter().skip(1).filter(|len| **len <= cut).count();
        assert_eq!(keys(&store).await, ["a", "b", "c"][..whole], "cut at {cut}");
        // The store goes on from there, and what it writes next is found again.
        assert_eq!(put(&store, "d", "x").await.unwrap(), Revision(whole as u64 + 2));
        store.close().await;
        let store = open(dir.path()).await.unwrap();
        assert_eq!(keys(&store).await.last().unwrap(), "d");
        store.close().await;
    }
}

#[tokio::test]
async fn garbage_where_the_last_write_was_torn_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, lengths) = three_commits(dir.path()).await;
    for filler in [0u8, 0xff, b'p'] {
        let mut torn = bytes[..lengths[2]].to_vec();
        torn.extend(std::iter::repeat_n(filler, 5000));
        fs::write(only_log(dir.path()), &torn).unwrap();
        let store = open(dir.path()).await.unwrap();
        assert_eq!(keys(&store).await, ["a", "b"]);
        store.close().await;
        assert_eq!(fs::metadata(only_log(dir.path())).unwrap().len() as usize, lengths[2]);
    }
}

#[tokio::test]
async fn a_flipped_bit_before_the_last_commit_is_an_error_that_names_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, lengths) = three_commits(dir.path()).await;
    let log = only_log(dir.path());
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(&log, &damaged).unwrap();
        match open(dir.path()).await {
            Err(OpenError::Corrupt { path, offset, .. }) => {
                assert!(at < lengths[2], "byte {at} is in the last frame");
                assert_eq!(path, log);
                let frame = lengths.iter().rfind(|start| **start <= at).copied().unwrap_or(0);
                assert_eq!(offset as usize, frame, "byte {at}");
            }
            Err(OpenError::Version { .. }) => assert!((8..12).contains(&at)),
            Err(other) => panic!("byte {at}: {other}"),
            Ok(store) => {
                // In the last frame it cannot be told from a torn write; the rest is whole.
                assert!(at >= lengths[2], "byte {at} went unseen");
                assert_eq!(keys(&store).await, ["a", "b"]);
                store.close().await;
            }
        }
        assert!(at >= lengths[2] || fs::read(&log).unwrap() == damaged, "an error changes nothing");
    }
}

/// Small files: many segments, and checkpoints.
fn small() -> Options {
    Options { history_events: 20, segment_bytes: 600, checkpoint_bytes: 1200, ..Options::default() }
}

async fn many_files(dir: &Path) -> u64 {
    let store = Embedded::open(dir, small()).await.unwrap();
    for i in 0..200 {
        put(&store, &format!("key/{}", i % 30), &format!("value {i}")).await.unwrap();
    }
    store.close().await;
    assert_eq!(files(dir, "checkpoint-").len(), 1);
    assert!(files(dir, "log-").len() > 1);
    store.revision().0
}

#[tokio::test]
async fn nobody_but_the_owner_may_read_any_of_it() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    fs::create_dir(&store).unwrap();
    fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).unwrap();
    many_files(&store).await;
    assert_eq!(mode(&store), 0o700, "as an older version left it, and closed since");
    for file in files(&store, "") {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[tokio::test]
async fn logs_stay_bounded_and_history_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let revision = many_files(dir.path()).await;
    let total: u64 = fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
    assert!(total < 8000, "{total} bytes for 30 short values");
    let store = Embedded::open(dir.path(), small()).await.unwrap();
    assert_eq!(store.revision().0, revision);
    assert_eq!(keys(&store).await.len(), 30);
    assert_eq!(store.oldest().0, revision - 20);
    let old = store.range("", Some(store.oldest()), None, 0).await.unwrap();
    assert!(old.entries.iter().all(|e| e.modified <= store.oldest()));
    let mut watch = store.watch("", store.oldest());
    let mut seen = 0;
    while seen < 20 {
        seen += futures::StreamExt::next(&mut watch).await.unwrap().unwrap().events.len();
    }
    assert_eq!(seen, 20);
}

#[tokio::test]
async fn damage_anywhere_never_shows_a_state_that_never_was() {
    let original = tempfile::tempdir().unwrap();
    let revision = many_files(original.path()).await;
    let (mut random, mut refused) = (StdRng::seed_from_u64(11), 0);
    for _ in 0..150 {
        let dir = tempfile::tempdir().unwrap();
        for file in fs::read_dir(original.path()).unwrap().map(|f| f.unwrap().path()) {
            fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
        }
        let all = [files(dir.path(), "log-"), files(dir.path(), "checkpoint-")].concat();
        let file = &all[random.random_range(0..all.len())];
        let mut bytes = fs::read(file).unwrap();
        let bit = random.random_range(0..bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(file, bytes).unwrap();
        match Embedded::open(dir.path(), small()).await {
            Err(OpenError::Corrupt { .. } | OpenError::Version { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
            Ok(store) => {
                assert!(store.revision().0 >= revision - 1, "only the last commit can be taken for torn");
                assert_eq!(keys(&store).await.len(), 30);
                store.close().await;
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

#[tokio::test]
async fn a_missing_log_or_checkpoint_is_an_error() {
    for victim in ["checkpoint-", "log-"] {
        let dir = tempfile::tempdir().unwrap();
        many_files(dir.path()).await;
        fs::remove_file(&files(dir.path(), victim)[0]).unwrap();
        let error = open(dir.path()).await.err().expect("something is missing");
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    }
}

#[tokio::test]
async fn what_an_interrupted_checkpoint_leaves_behind_is_tidied_up() {
    let dir = tempfile::tempdir().unwrap();
    many_files(dir.path()).await;
    fs::write(dir.path().join("checkpoint-00000000000000c0.tmp"), b"half").unwrap();
    // As if it had died between the rename and the removals.
    let checkpoint = files(dir.path(), "checkpoint-").remove(0);
    let bytes = fs::read(&checkpoint).unwrap();
    fs::write(dir.path().join("checkpoint-0000000000000003"), bytes).unwrap();
    fs::write(dir.path().join("log-0000000000000002"), b"no longer needed, so never read").unwrap();
    let store = Embedded::open(dir.path(), small()).await.unwrap();
    assert_eq!(keys(&store).await.len(), 30);
    assert_eq!(files(dir.path(), "checkpoint-"), [checkpoint]);
    assert!(!dir.path().join("log-0000000000000002").exists());
    store.close().await;
}

#[tokio::test]
async fn a_second_opener_is_told_that_the_directory_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    let error = open(dir.path()).await.err().expect("two openers");
    assert!(matches!(error, OpenError::Locked { .. }));
    assert!(error.to_string().contains("in use by another process"), "{error}");
    store.close().await;
    open(dir.path()).await.unwrap().close().await;
    // Dropping lets go as closing does.
    drop(open(dir.path()).await.unwrap());
    open(dir.path()).await.unwrap().close().await;
}

/// Runs on a tmpfs of 256 KiB in a mount namespace of the thread's own: it goes when the thread does.
#[test]
fn a_full_disk_refuses_commits_and_nothing_else_and_recovers_when_there_is_room() {
    use nix::mount::{MsFlags, mount};
    assert!(nix::unistd::geteuid().is_root(), "this test mounts a small file system: run it as root");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=256k")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(fill(&path));
    });
    thread.join().unwrap();
}

async fn fill(dir: &Path) {
    let ballast = dir.join("ballast");
    fs::write(&ballast, vec![1; 100 << 10]).unwrap();
    let store = open(dir).await.unwrap();
    let value = "v".repeat(3000);
    let mut written = 0;
    let error = loop {
        match put(&store, &format!("key/{written:03}"), &value).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, CommitError::Full(_)), "{error}");
    assert!(written > 10);
    assert_eq!(keys(&store).await.len(), written);
    assert!(matches!(put(&store, "more", &value).await, Err(CommitError::Full(_))));
    assert_eq!(store.revision().0, written as u64 + 1);

    fs::remove_file(&ballast).unwrap();
    let revision = tokio::time::timeout(Duration::from_secs(5), put(&store, "more", &value)).await.unwrap().unwrap();
    assert_eq!(revision.0, written as u64 + 2);
    store.close().await;
    let store = open(dir).await.unwrap();
    assert_eq!(keys(&store).await.len(), written + 1);
    store.close().await;
}
