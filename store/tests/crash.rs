//! The crash test: a child process writes, is killed at a random moment, and everything it acknowledged
//! is there afterwards, with no half of any transaction. 200 rounds on one directory.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proa_store::{Embedded, Expect, Log, Op, Options, Revision, Txn, Value};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const DIR: &str = "PROA_STORE_CRASH_DIR";
const CLIENTS: usize = 32;
const ROUNDS: u32 = 200;
/// How many of its past writes a client keeps; the older ones go in the same transaction.
const KEPT: u64 = 4;

/// Small files, so that rolling over and checkpoints are killed in the middle too.
fn options() -> Options {
    Options { history_events: 500, segment_bytes: 32 << 10, checkpoint_bytes: 64 << 10, ..Options::default() }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// How many transactions each client has committed. Panics when half of one is there.
async fn counts(store: &Embedded) -> Vec<u64> {
    let mut by_client: BTreeMap<usize, Vec<(String, u64, Revision)>> = BTreeMap::new();
    for entry in store.range("/c/", None, None, 0).await.unwrap().entries {
        let (client, rest) = entry.key["/c/".len()..].split_once('/').unwrap();
        let text = std::str::from_utf8(&entry.bytes).unwrap();
        let (n, revision) = text.split_once('@').unwrap();
        assert_eq!(revision, entry.modified.to_string(), "the revision inside {} is its own", entry.key);
        let item = (rest.to_string(), n.parse().unwrap(), entry.modified);
        by_client.entry(client.parse().unwrap()).or_default().push(item);
    }
    let mut counts = vec![0; CLIENTS];
    for (client, mut items) in by_client {
        let n = items[0].1;
        let find = |name: &str| items.iter().find(|i| i.0 == name).map(|i| (i.1, i.2));
        assert_eq!(find("first"), find("second"), "client {client} has half of a transaction");
        assert_eq!(find("first").map(|i| i.0), Some(n));
        items.retain(|i| i.0.starts_with('n'));
        let mut names: Vec<u64> = items.iter().map(|i| i.0[1..].parse().unwrap()).collect();
        names.sort_unstable();
        let expected: Vec<u64> = (n.saturating_sub(KEPT - 1).max(1)..=n).collect();
        assert_eq!(names, expected, "client {client} at {n} has half of a transaction");
        counts[client] = n;
    }
    let total: u64 = counts.iter().sum();
    assert_eq!(store.revision(), Revision(total + 1), "every commit has one revision, and there is no gap");
    counts
}

async fn client(store: Arc<Embedded>, client: usize, done: u64) {
    for n in done + 1.. {
        let text = format!("{n}@{}", "");
        let value = || Value::with_revision_at(text.clone(), text.len());
        let put =
            |name: &str| Op::Put { key: format!("/c/{client}/{name}").into(), value: value(), expect: Expect::Any };
        let mut ops = vec![put("first"), put(&format!("n{n:08}")), put("second")];
        if n > KEPT {
            let key = format!("/c/{client}/n{:08}", n - KEPT).into();
            ops.push(Op::Delete { key, expect: Expect::Any, last: None });
        }
        let revision = store.commit(Txn { ops }).await.unwrap().revision;
        // One write of less than PIPE_BUF bytes: whole or not at all.
        std::io::stdout().lock().write_all(format!("ack {client} {n} {revision}\n").as_bytes()).unwrap();
    }
}

/// The writing half: does nothing unless the test below started it.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    runtime().block_on(async {
        let store = Arc::new(Embedded::open(Path::new(&dir), options()).await.unwrap());
        let done = counts(&store).await;
        let clients = done.into_iter().enumerate().map(|(i, n)| tokio::spawn(client(store.clone(), i, n)));
        futures::future::join_all(clients.collect::<Vec<_>>()).await;
    });
}

#[test]
fn no_acknowledged_write_is_lost_and_no_half_is_kept_when_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = StdRng::seed_from_u64(2026);
    let mut floor = vec![0; CLIENTS];
    let (mut acknowledged_in_all, mut checkpoints) = (0, 0);
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
        let mut acknowledged = floor.clone();
        let mut read = |line: Vec<u8>| {
            let line = String::from_utf8(line).unwrap();
            let mut words = line.split(' ').skip_while(|word| !word.ends_with("ack"));
            let Some([client, n]) = words.next().and_then(|_| Some([words.next()?, words.next()?])) else {
                return false;
            };
            let (client, n): (usize, u64) = (client.parse().unwrap(), n.parse().unwrap());
            acknowledged[client] = acknowledged[client].max(n);
            true
        };
        // Killed while starting in some rounds, and after the first acknowledged write in the others.
        if round % 8 == 0 {
            std::thread::sleep(Duration::from_millis(random.random_range(0..30)));
        } else {
            for line in lines.by_ref() {
                if read(line.unwrap()) {
                    break;
                }
            }
            let until = Instant::now() + Duration::from_micros(random.random_range(0..60_000));
            while Instant::now() < until {
                match lines.next() {
                    Some(line) => read(line.unwrap()),
                    None => break,
                };
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What the pipe still holds was acknowledged before the kill; the last line may be cut short.
        let rest: Vec<Vec<u8>> = lines.map(Result::unwrap).collect();
        for line in rest {
            if line.iter().filter(|b| **b == b' ').count() >= 3 {
                read(line);
            }
        }
        let found = runtime().block_on(async {
            let store = Embedded::open(dir.path(), options()).await.unwrap();
            let found = counts(&store).await;
            store.close().await;
            found
        });
        for client in 0..CLIENTS {
            let (promised, there) = (acknowledged[client], found[client]);
            assert!(there >= promised, "round {round}: client {client} was promised {promised}, {there} are there");
        }
        checkpoints += std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|f| f.as_ref().unwrap().file_name().to_string_lossy().starts_with("checkpoint"))
            .count();
        acknowledged_in_all = found.iter().sum();
        floor = found;
    }
    assert!(acknowledged_in_all > u64::from(ROUNDS) * 32, "only {acknowledged_in_all} writes in all");
    assert!(checkpoints > 0, "no checkpoint was ever written");
    println!("{acknowledged_in_all} transactions over {ROUNDS} kills");
}
