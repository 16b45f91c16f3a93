//! What an etcd does by itself, for what Proa does on it to be held against.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proa_store::{Etcd, EtcdOptions, EtcdServers, Expect, Form, Key, Log, Txn, Value};

use crate::Target;
use crate::report::Report;

/// A ConfigMap of 1 KiB as a server stores it, its metadata included.
const VALUE: usize = 1_280;

/// Keys and values as they are.
struct AsIs;

impl Form for AsIs {
    fn key_out(&self, key: &str) -> String {
        key.to_owned()
    }

    fn key_in(&self, key: &str) -> Option<Key> {
        Some(key.into())
    }

    fn value_out(&self, value: &Value) -> Bytes {
        value.bytes.clone()
    }

    fn value_in(&self, _key: &str, kept: &Bytes) -> Result<Value, String> {
        Ok(Value::plain(kept.clone()))
    }

    fn mark(&self) -> String {
        "/proa-bench/mark".to_owned()
    }
}

pub(crate) async fn creates(
    target: &Target,
    servers: &[String],
    clients: &[usize],
    seconds: u64,
) -> anyhow::Result<Vec<Report>> {
    let servers = EtcdServers { urls: servers.to_vec(), ..EtcdServers::default() };
    let options = EtcdOptions { compact_every: None, ..EtcdOptions::new(servers) };
    let etcd = Arc::new(Etcd::open(options, AsIs).await?);
    let mut report = Report::new("creates/s");
    for run in 0..target.runs {
        for &count in clients {
            let begun = Instant::now();
            let deadline = begun + Duration::from_secs(seconds);
            let written = Arc::new(AtomicUsize::new(0));
            let stamp =
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
            let tasks = (0..count).map(|client| {
                let (etcd, written) = (etcd.clone(), written.clone());
                tokio::spawn(async move {
                    for index in 0.. {
                        if Instant::now() >= deadline {
                            break;
                        }
                        let key = format!("/proa-bench/{stamp}-{run}-{count}/c{client}-{index}");
                        etcd.commit(Txn::put(key, Value::plain(vec![b'x'; VALUE]), Expect::Absent)).await?;
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                    anyhow::Ok(())
                })
            });
            for task in futures::future::join_all(tasks).await {
                task??;
            }
            report.add(
                &format!("creates of 1 KiB, {count} clients"),
                written.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64(),
            );
        }
    }
    Ok(vec![report])
}
