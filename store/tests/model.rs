//! The model: random histories run against a plain map, with reopening at any moment. What the model
//! says is what the store must say.

mod cluster;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use cluster::{Below, Cluster};
use futures::{FutureExt, StreamExt};
use proa_store::{
    Batch, Chunk, CommitError, Embedded, Entry, Etcd, Event, EventKind, Expect, Key, Log, Memory, Op, Options,
    RangeError, Revision, Txn, Value, WatchError,
};
use proptest::prelude::*;

const KEYS: [&str; 8] = ["/a/1", "/a/2", "/a/20", "/b/1", "/b/1/x", "/c", "/ä", "z"];
const PREFIXES: [&str; 6] = ["", "/", "/a/", "/a/2", "/b/1", "nothing"];

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Draft>),
    /// These are sent before any is awaited.
    Together(Vec<Vec<Draft>>),
    Range {
        prefix: usize,
        back: u64,
        after: Option<usize>,
        limit: usize,
    },
    Get(usize),
    Watch {
        prefix: usize,
        back: u64,
    },
    Compact {
        back: u64,
    },
    Reopen,
}

/// A step of a transaction whose expectation is drawn relative to the model's state.
#[derive(Clone, Debug)]
struct Draft {
    key: usize,
    put: Option<(Vec<u8>, bool)>,
    /// Only what is expected matters.
    check: bool,
    last: bool,
    expect: DraftExpect,
}

#[derive(Clone, Copy, Debug)]
enum DraftExpect {
    Any,
    Absent,
    Right,
    Wrong,
}

fn draft() -> impl Strategy<Value = Draft> {
    let expect = prop_oneof![
        4 => Just(DraftExpect::Any),
        1 => Just(DraftExpect::Absent),
        3 => Just(DraftExpect::Right),
        1 => Just(DraftExpect::Wrong),
    ];
    let put = proptest::option::weighted(0.7, (proptest::collection::vec(any::<u8>(), 0..12), any::<bool>()));
    (0..KEYS.len(), put, proptest::bool::weighted(0.15), any::<bool>(), expect)
        .prop_map(|(key, put, check, last, expect)| Draft { key, put, check, last, expect })
}

fn step() -> impl Strategy<Value = Step> {
    let txn = || proptest::collection::vec(draft(), 0..4);
    prop_oneof![
        10 => txn().prop_map(Step::Commit),
        2 => proptest::collection::vec(txn(), 1..6).prop_map(Step::Together),
        4 => (0..PREFIXES.len(), 0..12u64, proptest::option::of(0..KEYS.len()), 0..4usize)
            .prop_map(|(prefix, back, after, limit)| Step::Range { prefix, back, after, limit }),
        2 => (0..KEYS.len()).prop_map(Step::Get),
        3 => (0..PREFIXES.len(), 0..12u64).prop_map(|(prefix, back)| Step::Watch { prefix, back }),
        1 => (0..12u64).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Reopen),
    ]
}

/// The whole history, forgetting nothing.
struct Model {
    /// Where the history begins.
    first: Revision,
    states: Vec<BTreeMap<Key, Entry>>, // index 0 is the first revision
    events: Vec<Event>,
    /// Whether the final bytes given with a deletion are kept. What watchers see instead is the value before, at the
    /// deletion's revision.
    keeps_last: bool,
    /// The values as they were given, to be seen once more at another revision.
    given: BTreeMap<Key, Value>,
}

impl Model {
    fn new(first: Revision, keeps_last: bool) -> Model {
        Model { first, states: vec![BTreeMap::new()], events: Vec::new(), keeps_last, given: BTreeMap::new() }
    }

    fn revision(&self) -> Revision {
        Revision(self.first.0 + self.states.len() as u64 - 1)
    }

    fn current(&self) -> &BTreeMap<Key, Entry> {
        self.states.last().unwrap()
    }

    fn at(&self, revision: Revision) -> &BTreeMap<Key, Entry> {
        &self.states[(revision.0 - self.first.0) as usize]
    }

    fn draw(&self, drafts: &[Draft]) -> Txn {
        let op = |draft: &Draft| {
            let key: Key = KEYS[draft.key].into();
            let modified = self.current().get(&key).map(|e| e.modified);
            let expect = match (draft.expect, modified) {
                (DraftExpect::Any, _) => Expect::Any,
                (DraftExpect::Absent, _) | (DraftExpect::Right, None) => Expect::Absent,
                (DraftExpect::Right, Some(revision)) => Expect::At(revision),
                (DraftExpect::Wrong, revision) => Expect::At(Revision(revision.map_or(1, |r| r.0 + 1))),
            };
            let value = |bytes: &[u8], splice: bool| Value {
                bytes: Bytes::copy_from_slice(bytes),
                revision_at: splice.then_some(bytes.len() / 2),
            };
            match &draft.put {
                _ if draft.check => Op::Check { key, expect },
                Some((bytes, splice)) => Op::Put { key, value: value(bytes, *splice), expect },
                None => Op::Delete { key, expect, last: draft.last.then(|| value(b"last:", true)) },
            }
        };
        Txn { ops: drafts.iter().map(op).collect() }
    }

    fn commit(&mut self, txn: &Txn) -> Result<(Revision, Vec<Entry>), String> {
        let revision = self.revision().next();
        let (mut state, mut events, mut entries) = (self.current().clone(), Vec::new(), Vec::new());
        let mut given = self.given.clone();
        for (i, op) in txn.ops.iter().enumerate() {
            if txn.ops[..i].iter().any(|o| o.key() == op.key()) {
                return Err("twice".into());
            }
        }
        for op in &txn.ops {
            let current = state.get(op.key()).cloned();
            let holds = match op.expect() {
                Expect::Any => true,
                Expect::Absent => current.is_none(),
                Expect::At(revision) => current.as_ref().map(|e| e.modified) == Some(revision),
            };
            if !holds {
                return Err(format!("conflict {} {:?}", op.key(), current.map(|e| e.modified)));
            }
            match op {
                Op::Put { key, value, .. } => {
                    let created = current.as_ref().map_or(revision, |e| e.created);
                    let entry = Entry { key: key.clone(), bytes: splice(value, revision), created, modified: revision };
                    state.insert(key.clone(), entry.clone());
                    given.insert(key.clone(), value.clone());
                    entries.push(entry.clone());
                    events.push(Event { revision, kind: EventKind::Put { entry, previous: current } });
                }
                Op::Delete { key, last, .. } => {
                    let Some(previous) = state.remove(key) else { continue };
                    let last = match self.keeps_last {
                        true => last.as_ref().map_or(previous.bytes.clone(), |v| splice(v, revision)),
                        false => splice(&given[key], revision),
                    };
                    events.push(Event { revision, kind: EventKind::Delete { key: key.clone(), last, previous } });
                }
                Op::Check { .. } => {}
            }
        }
        if events.is_empty() {
            return Ok((self.revision(), entries));
        }
        self.states.push(state);
        self.given = given;
        self.events.extend(events);
        Ok((revision, entries))
    }

    fn range(&self, prefix: &str, at: Revision, after: Option<&str>, limit: usize) -> Chunk {
        let wanted = |e: &&Entry| e.key.starts_with(prefix) && after.is_none_or(|a| &*e.key > a);
        let all: Vec<Entry> = self.at(at).values().filter(wanted).cloned().collect();
        let taken = if limit == 0 { all.len() } else { limit.min(all.len()) };
        let remaining = all.len() - taken;
        Chunk { entries: all[..taken].to_vec(), revision: at, more: remaining > 0, remaining }
    }

    fn events(&self, prefix: &str, after: Revision) -> Vec<Event> {
        self.events.iter().filter(|e| e.revision > after && e.key().starts_with(prefix)).cloned().collect()
    }
}

fn splice(value: &Value, revision: Revision) -> Bytes {
    let Some(at) = value.revision_at else { return value.bytes.clone() };
    let mut out = value.bytes[..at].to_vec();
    out.extend_from_slice(revision.0.to_string().as_bytes());
    out.extend_from_slice(&value.bytes[at..]);
    out.into()
}

/// Small files and a short history, so that rolling over, forgetting and checkpoints happen all the time.
fn options() -> Options {
    Options {
        history_events: 12,
        history_bytes: 1 << 20,
        history_age: Duration::from_secs(3600),
        segment_bytes: 150,
        checkpoint_bytes: 300,
    }
}

fn said(result: Result<proa_store::Committed, CommitError>) -> Result<(Revision, Vec<Entry>), String> {
    match result {
        Ok(done) => Ok((done.revision, done.entries)),
        Err(CommitError::Conflict { key, current }) => Err(format!("conflict {key} {current:?}")),
        Err(CommitError::Invalid(_)) => Err("twice".into()),
        Err(other) => panic!("{other}"),
    }
}

/// What a watch has to say. Of a store in this process all of it is there at once; what comes over a wire is waited
/// for until there is as much as there should be.
async fn drain(
    stream: &mut futures::stream::BoxStream<'static, Result<Batch, WatchError>>,
    at_least: usize,
) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let next = match events.len() < at_least {
            true => {
                tokio::time::timeout(Duration::from_secs(10), stream.next()).await.expect("the events that are missing")
            }
            false => stream.next().now_or_never().flatten(),
        };
        match next {
            Some(batch) => {
                events.extend_from_slice(&batch.expect("a watcher that is read after each step does not lag").events)
            }
            None => return events,
        }
    }
}

/// What the model is compared with.
enum Store {
    Embedded(tempfile::TempDir, Embedded),
    Memory(Memory),
    /// With the oldest revision it was compacted at.
    Etcd(Etcd, Below, Cluster, Revision),
}

impl Store {
    /// A prefix of an etcd nobody used before.
    async fn etcd(cluster: Cluster, case: usize) -> Store {
        let form = Below(format!("case-{case}"));
        let store = cluster.open(form.clone()).await;
        // Past the revisions nobody can tell from the beginning of everything. What was before is no part of this history.
        let other = cluster.open(Below("another".to_owned())).await;
        other.go_on_at(Revision(20), |_| {}).await.unwrap();
        let (_, begun) = store.get("z").await.unwrap();
        store.compact(begun).await.unwrap();
        Store::Etcd(store, form, cluster, begun)
    }

    async fn embedded() -> Store {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path(), options()).await.unwrap();
        Store::Embedded(dir, store)
    }

    fn log(&self) -> &dyn Log {
        match self {
            Store::Embedded(_, store) => store,
            Store::Memory(store) => store,
            Store::Etcd(store, ..) => store,
        }
    }

    async fn oldest(&self) -> Revision {
        match self {
            Store::Embedded(_, store) => store.oldest(),
            Store::Memory(store) => store.oldest(),
            Store::Etcd(.., oldest) => *oldest,
        }
    }

    /// Whether commits that are under way at once happen in the order they were asked for.
    fn keeps_order(&self) -> bool {
        !matches!(self, Store::Etcd(..))
    }

    /// Closed, with what it leaves behind opened anew.
    async fn reopened(self) -> Store {
        match self {
            Store::Embedded(dir, store) => {
                store.close().await;
                assert!(matches!(store.get("z").await, Err(RangeError::Closed)));
                drop(store);
                let store = Embedded::open(dir.path(), options()).await.unwrap();
                Store::Embedded(dir, store)
            }
            Store::Memory(store) => {
                let forked = store.fork(options().history_events);
                store.close();
                assert!(matches!(store.get("z").await, Err(RangeError::Closed)));
                Store::Memory(forked)
            }
            Store::Etcd(store, form, cluster, oldest) => {
                store.close();
                assert!(matches!(store.get("z").await, Err(RangeError::Closed)));
                let store = cluster.open(form.clone()).await;
                Store::Etcd(store, form, cluster, oldest)
            }
        }
    }
}

/// A watch of `/a/` that stands.
async fn watch_a(store: &Store, after: Revision) -> futures::stream::BoxStream<'static, Result<Batch, WatchError>> {
    let mut watch = store.log().watch("/a/", after);
    if matches!(store, Store::Etcd(..)) {
        let stands = watch.next().await.unwrap().unwrap();
        assert_eq!((stands.events.len(), stands.upto), (0, after));
    }
    watch
}

/// Runs a history; hands the store back.
async fn run(store: Store, steps: Vec<Step>) -> Store {
    let mut owner = store;
    // Nobody waits for a watch to get anywhere: none writes a mark, which would be a revision of its own.
    let (_, first) = owner.log().get("z").await.unwrap();
    let mut model = Model::new(first, !matches!(owner, Store::Etcd(..)));
    let (mut tail, mut tail_after) = (watch_a(&owner, first).await, first);
    let mut tail_begun = first;
    for step in steps {
        let oldest = owner.oldest().await;
        if matches!(step, Step::Reopen) {
            owner = owner.reopened().await;
            assert!(tail.next().await.is_none());
            assert!(owner.oldest().await <= model.revision());
            tail_after = model.revision();
            tail = watch_a(&owner, tail_after).await;
            tail_begun = tail_after;
        }
        let store = owner.log();
        match step {
            Step::Commit(drafts) => {
                let txn = model.draw(&drafts);
                let expected = model.commit(&txn);
                assert_eq!(said(store.commit(txn).await), expected);
            }
            Step::Together(many) => {
                let txns: Vec<Txn> = many.iter().map(|drafts| model.draw(drafts)).collect();
                let commits: Vec<_> = txns.iter().map(|txn| store.commit(txn.clone())).collect();
                let results = match owner.keeps_order() {
                    true => futures::future::join_all(commits).await,
                    false => futures::stream::iter(commits).then(|commit| commit).collect().await,
                };
                for (txn, result) in txns.iter().zip(results) {
                    let expected = model.commit(txn);
                    assert_eq!(said(result), expected);
                }
            }
            Step::Range { prefix, back, after, limit } => {
                let at = (back > 0).then(|| Revision((model.revision().0 + 1).saturating_sub(back)));
                let after = after.map(|i| KEYS[i]);
                let got = store.range(PREFIXES[prefix], at, after, limit).await;
                match at {
                    // 0 asks an etcd for what is now.
                    Some(Revision(0)) if !owner.keeps_order() => {}
                    Some(at) if at < oldest => {
                        assert!(
                            matches!(got, Err(RangeError::Compacted { requested, .. }) if requested == at),
                            "{got:?}"
                        );
                    }
                    at => {
                        let at = at.unwrap_or(model.revision());
                        assert_eq!(got, Ok(model.range(PREFIXES[prefix], at, after, limit)));
                    }
                }
            }
            Step::Get(key) => {
                let expected = (model.current().get(KEYS[key]).cloned(), model.revision());
                assert_eq!(store.get(KEYS[key]).await, Ok(expected));
            }
            Step::Watch { prefix, back } => {
                let after = Revision(model.revision().0.saturating_sub(back));
                let mut stream = store.watch(PREFIXES[prefix], after);
                if after < oldest {
                    let refused = async {
                        loop {
                            match stream.next().await {
                                // A member hears of the watch before it looks.
                                Some(Ok(batch)) if batch.events.is_empty() => {}
                                other => return other,
                            }
                        }
                    };
                    assert_eq!(refused.await, Some(Err(WatchError::Compacted { requested: after, oldest })));
                    assert_eq!(stream.next().await, None);
                } else {
                    let expected = model.events(PREFIXES[prefix], after);
                    assert_eq!(drain(&mut stream, expected.len()).await, expected);
                }
            }
            Step::Compact { back } => {
                let mut before = Revision(model.revision().0.saturating_sub(back));
                if let Store::Etcd(.., oldest) = &mut owner {
                    // A watch that has just begun still reads what was: what it has not read must stay.
                    before = before.min(tail_begun);
                    *oldest = before.max(*oldest);
                }
                owner.log().compact(before).await.unwrap();
                assert!(owner.oldest().await >= before.min(oldest));
            }
            Step::Reopen => {}
        }
        let store = owner.log();
        assert_eq!(store.revision(), model.revision());
        let expected = model.events("/a/", tail_after);
        assert_eq!(drain(&mut tail, expected.len()).await, expected);
        tail_after = model.revision();
        assert_eq!(store.range("", None, None, 0).await, Ok(model.range("", model.revision(), None, 0)));
    }
    owner
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, rng_seed: proptest::test_runner::RngSeed::Fixed(7), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_store_says_what_the_model_says(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { run(Store::embedded().await, steps).await; });
    }

    #[test]
    fn the_log_in_memory_says_what_the_model_says(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(Store::Memory(Memory::new(options().history_events)), steps));
    }
}

#[test]
fn an_etcd_says_what_the_model_says() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{RngSeed, TestRunner};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = ProptestConfig { rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    let mut cluster = Cluster::start(1);
    // One etcd for all: it takes longer to start than a history to run.
    for case in 0..25 {
        let steps = proptest::collection::vec(step(), 1..40).new_tree(&mut runner).unwrap().current();
        println!("case {case}: {steps:?}");
        let store = runtime.block_on(async { run(Store::etcd(cluster, case).await, steps).await });
        if let Store::Etcd(store, .., oldest) = &store {
            assert_eq!(runtime.block_on(store.oldest()), Ok(*oldest));
        }
        let Store::Etcd(_, _, back, _) = store else { unreachable!("it was an etcd") };
        cluster = back;
    }
}
