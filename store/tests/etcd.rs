//! An etcd cluster as a store: members that die, watches, TLS.

mod cluster;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::{Below, Cluster};
use futures::StreamExt;
use futures::stream::BoxStream;
use proa_store::{
    Batch, CommitError, Etcd, EtcdError, EtcdOptions, EtcdServers, EventKind, Expect, Log, RangeError, Revision, Txn,
    Value, WatchError,
};

fn form() -> Below {
    Below("test".to_owned())
}

fn put(key: impl Into<proa_store::Key>, value: &str) -> Txn {
    Txn::put(key, Value::plain(value.to_owned()), Expect::Any)
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

/// Waits until a watch has told everything up to `revision`.
async fn reaches(watch: &mut BoxStream<'static, Result<Batch, WatchError>>, revision: Revision) -> Vec<u64> {
    let mut revisions = Vec::new();
    loop {
        let batch = within("the watch", watch.next()).await.expect("it goes on").expect("it does not lag");
        revisions.extend(batch.events.iter().map(|event| event.revision.0));
        if batch.upto >= revision {
            return revisions;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_loses_no_acknowledged_write_and_watches_go_on_without_gap_or_duplicate() {
    let mut members = Cluster::start(3);
    let store = Arc::new(members.open(form()).await);
    let start = store.current().await.unwrap();
    let mut watch = store.watch("", start);
    let (done, stop) = (tokio::sync::watch::Sender::new(0), Arc::new(AtomicBool::new(false)));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (store, done, stop) = (store.clone(), done.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut acknowledged, mut doubtful) = (Vec::new(), HashSet::new());
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let key = format!("/{writer}/{n}");
                    let value = Value::with_revision_at(format!("{key} at "), key.len() + 4);
                    match store.commit(Txn::put(key.as_str(), value, Expect::Absent)).await {
                        Ok(committed) => {
                            done.send_modify(|done| *done += 1);
                            acknowledged.push((key, committed.revision));
                        }
                        Err(CommitError::Uncertain(_)) => drop(doubtful.insert(key)),
                        Err(error) => panic!("{key}: {error}"),
                    }
                }
                (acknowledged, doubtful)
            })
        })
        .collect();
    let committed = |more: usize| {
        let mut done = done.subscribe();
        let target = *done.borrow() + more;
        async move { done.wait_for(|done| *done >= target).await.map(drop).expect("writers write") }
    };
    within("the first writes", committed(200)).await;
    let leader = members.leader();
    members.kill(leader);
    within("writes without the first leader", committed(200)).await;
    members.revive(leader);
    // The revived member is heard of again by the others before the next one dies.
    within("writes with it back", committed(200)).await;
    let second = loop {
        let leads = members.leader();
        if leads != leader {
            break leads;
        }
    };
    members.kill(second);
    within("writes without the second leader", committed(100)).await;
    stop.store(true, Ordering::SeqCst);

    let (mut acknowledged, mut doubtful) = (BTreeMap::new(), HashSet::new());
    for writer in writers {
        let (more, doubts) = within("the writers", writer).await.unwrap();
        acknowledged.extend(more);
        doubtful.extend(doubts);
    }
    let end = within("a consistent read", store.current()).await.unwrap();
    let mut seen = BTreeMap::new();
    let mut position = start;
    while position < end {
        let batch = within("the watch", watch.next()).await.unwrap().unwrap();
        for event in batch.events.iter() {
            assert!(event.revision > position, "{} comes again", event.key());
            let EventKind::Put { entry, previous: None } = &event.kind else { panic!("{event:?}") };
            assert_eq!(entry.bytes, format!("{} at {}", entry.key, event.revision));
            assert_eq!(seen.insert(entry.key.to_string(), event.revision), None);
        }
        position = batch.upto;
    }
    for (key, revision) in &acknowledged {
        assert_eq!(seen.get(key), Some(revision), "{key}");
    }
    let stored: BTreeMap<_, _> = store
        .range("/", None, None, 0)
        .await
        .unwrap()
        .entries
        .into_iter()
        .map(|e| (e.key.to_string(), e.modified))
        .collect();
    assert_eq!(stored, seen);
    let unasked: Vec<_> =
        seen.keys().filter(|key| !acknowledged.contains_key(*key) && !doubtful.contains(*key)).collect();
    assert!(unasked.is_empty(), "{unasked:?}");
    println!("{} acknowledged, {} doubtful, {} stored", acknowledged.len(), doubtful.len(), seen.len());
}

#[tokio::test]
async fn a_watch_passes_what_others_write_when_somebody_wants_to_read_consistently() {
    let members = Cluster::start(1);
    let other = members.open(Below("other".to_owned())).await;
    for ask_progress in [Some(true), Some(false)] {
        let options = EtcdOptions { compact_every: None, ask_progress, ..EtcdOptions::new(members.servers()) };
        let store = Etcd::open(options, form()).await.unwrap();
        let begun = store.commit(put("/a", "1")).await.unwrap().revision;
        let mut watch = store.watch("", begun);
        // It stands, and has been told everything that was before it stood.
        let stands = watch.next().await.unwrap().unwrap();
        assert_eq!(stands.upto, begun);
        let own = store.commit(put("/a", "2")).await.unwrap().revision;
        assert_eq!(reaches(&mut watch, own).await, [own.0]);
        other.commit(put("/b", "1")).await.unwrap();
        let now = store.current().await.unwrap();
        assert!(now > own);
        assert_eq!(reaches(&mut watch, now).await, [], "asked: {ask_progress:?}");
    }
}

#[tokio::test]
async fn commits_at_once_get_a_revision_each_and_of_two_that_expect_the_same_one_wins() {
    let members = Cluster::start(1);
    let store = members.open(form()).await;
    let before = store.current().await.unwrap();
    let many = (0..100).map(|n| store.commit(put(format!("/{n}"), "v")));
    let mut revisions: Vec<u64> =
        futures::future::join_all(many).await.into_iter().map(|done| done.unwrap().revision.0).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (before.0 + 1..=before.0 + 100).collect::<Vec<_>>());

    let at = store.commit(put("/k", "0")).await.unwrap().revision;
    let update = |value: &str| Txn::put("/k", Value::plain(value.to_owned()), Expect::At(at));
    let results = futures::future::join_all([store.commit(update("a")), store.commit(update("b"))]).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(
        results
            .iter()
            .any(|result| matches!(result, Err(CommitError::Conflict { current: Some(now), .. }) if *now == at.next()))
    );
}

#[tokio::test]
async fn what_is_compacted_or_has_not_happened_is_said_to_be() {
    let members = Cluster::start(1);
    let store = members.open(form()).await;
    let first = store.commit(put("/k", "1")).await.unwrap().revision;
    let second = store.commit(put("/k", "2")).await.unwrap().revision;
    let third = store.commit(put("/k", "3")).await.unwrap().revision;
    assert_eq!(store.range("/", Some(first), None, 0).await.unwrap().entries[0].bytes, "1");
    store.compact(second).await.unwrap();
    store.compact(first).await.unwrap();
    assert!(
        matches!(store.range("/", Some(first), None, 0).await, Err(RangeError::Compacted { requested, .. }) if requested == first)
    );
    assert_eq!(store.range("/", Some(second), None, 0).await.unwrap().entries[0].bytes, "2");
    let late = store.watch("/", first).filter(|batch| std::future::ready(batch.is_err())).boxed().next().await;
    assert_eq!(late, Some(Err(WatchError::Compacted { requested: first, oldest: second })));
    assert_eq!(reaches(&mut store.watch("/", second), third).await, [third.0]);
    let future = Revision(third.0 + 5);
    assert_eq!(
        store.range("/", Some(future), None, 0).await,
        Err(RangeError::FutureRevision { requested: future, current: third })
    );
    assert!(matches!(store.compact(future).await, Err(RangeError::FutureRevision { .. })));
    for size in [1_600_000, 3_000_000] {
        let large = store.commit(put("/large", &"x".repeat(size))).await;
        assert!(matches!(large, Err(CommitError::TooLarge(_))), "{large:?}");
    }
}

#[tokio::test]
async fn an_etcd_that_is_away_is_waited_for() {
    let mut members = Cluster::start(1);
    let store = members.open(form()).await;
    let begun = store.commit(put("/a", "1")).await.unwrap().revision;
    let mut watch = store.watch("", begun);
    assert_eq!(watch.next().await.unwrap().unwrap().upto, begun);
    members.kill(0);
    let (commit, ()) = futures::future::join(store.commit(put("/b", "1")), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        members.revive(0);
    })
    .await;
    let revision = commit.unwrap().revision;
    assert_eq!(reaches(&mut watch, revision).await.last(), Some(&revision.0));
}

/// A certificate authority with a server's and a client's certificate, in files.
fn certificates(dir: &std::path::Path) {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    std::fs::write(dir.join("ca.crt"), ca.pem()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&ca.pem(), key).unwrap();
    for (name, names, usage) in [
        ("server", vec!["127.0.0.1".to_owned()], ExtendedKeyUsagePurpose::ServerAuth),
        ("client", vec![], ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![usage];
        std::fs::write(dir.join(format!("{name}.crt")), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

#[tokio::test]
async fn over_tls_each_side_knows_the_other_by_its_certificate() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let file = |name: &str| dir.path().join(name);
    let arguments = [("--cert-file", "server.crt"), ("--key-file", "server.key"), ("--trusted-ca-file", "ca.crt")];
    let mut arguments: Vec<String> =
        arguments.into_iter().flat_map(|(name, path)| [name.to_owned(), file(path).display().to_string()]).collect();
    arguments.push("--client-cert-auth".to_owned());
    let members = Cluster::start_with(1, "https", &arguments);
    let servers = EtcdServers {
        ca_file: Some(file("ca.crt")),
        certificate_file: Some(file("client.crt")),
        key_file: Some(file("client.key")),
        ..members.servers()
    };
    let store = Etcd::open(EtcdOptions::new(servers.clone()), form()).await.unwrap();
    store.commit(put("/k", "over TLS")).await.unwrap();

    let missing = EtcdServers { key_file: Some(file("nowhere.key")), ..servers.clone() };
    let refused = Etcd::open(EtcdOptions::new(missing), form()).await.map(drop).unwrap_err();
    assert!(matches!(&refused, EtcdError::Settings(why) if why.contains("nowhere.key: No such file")), "{refused}");
    let half = EtcdServers { key_file: None, ..servers };
    let refused = Etcd::open(EtcdOptions::new(half), form()).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("both a certificate and a key"), "{refused}");
}
