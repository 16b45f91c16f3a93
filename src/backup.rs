//! `proa backup`, `proa restore`, `proa etcd export|import`: what a cluster stores, from one place to another.
//!
//! A backup holds the objects at one revision and the cluster's keys, without which tokens, nodes and kubeconfigs would be
//! worth nothing to the restored cluster. It is read beside a running server: of a data directory from its files, of an
//! etcd at a revision.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use futures::StreamExt;
use proa_store::{
    AFTER_BACKUP, BackupReader, BackupWriter, Entry, Etcd, EtcdOptions, Filling, Log, Revision, Snapshot, holds_a_store,
};

use crate::cli::{Backup, EtcdArgs, EtcdMove};
use crate::paths::{DataDir, Part};
use crate::store::open_etcd;

/// Where objects lie in every store.
const ROOT: &str = "/registry/";
/// Where keys lie in a backup.
const KEYS: &str = "pki/";
/// The keys of a cluster.
const KEY_FILES: [&str; 3] = ["ca.crt", "ca.key", "sa.key"];
/// Objects read from an etcd at a time.
const PAGE: usize = 1_000;
/// Objects written to an etcd at a time.
const UNDER_WAY: usize = 64;
/// How far past a backup's revision an etcd goes on. Each revision is a write there, so it is what is surely enough for a
/// minute of writes rather than for a year: what clients remember from later than that is newer than what they will find.
const AFTER_BACKUP_IN_ETCD: u64 = 100_000;

/// Where objects come from.
enum Source {
    Embedded(Snapshot),
    Etcd { etcd: Etcd, at: Revision },
}

impl Source {
    async fn open(data: Option<&DataDir>, etcd: &EtcdArgs) -> anyhow::Result<Source> {
        if !etcd.servers.is_empty() {
            let etcd = open_etcd(etcd, only_visiting).await?;
            let at = etcd.current().await?;
            return Ok(Source::Etcd { etcd, at });
        }
        let data = data.context("there is no data directory to take the objects from")?;
        if !holds_a_store(&data.store())? {
            bail!("{} holds no store", data.store().display());
        }
        let dir = data.store();
        let snapshot = tokio::task::spawn_blocking(move || Snapshot::of(&dir)).await??;
        Ok(Source::Embedded(snapshot))
    }

    fn revision(&self) -> Revision {
        match self {
            Source::Embedded(snapshot) => snapshot.revision(),
            Source::Etcd { at, .. } => *at,
        }
    }

    /// Hands every object to `take`, some at a time.
    async fn each(&self, mut take: impl AsyncFnMut(Vec<Entry>) -> anyhow::Result<()>) -> anyhow::Result<usize> {
        let (mut after, mut count) = (None::<String>, 0);
        loop {
            let (entries, more) = match self {
                Source::Embedded(snapshot) => {
                    let entries = snapshot.page(after.as_deref());
                    let more = !entries.is_empty();
                    (entries, more)
                }
                Source::Etcd { etcd, at } => {
                    let chunk = etcd.range(ROOT, Some(*at), after.as_deref(), PAGE).await?;
                    if chunk.more && chunk.entries.is_empty() {
                        bail!("etcd holds more than {PAGE} keys in a row under {ROOT} that are no objects");
                    }
                    (chunk.entries, chunk.more)
                }
            };
            count += entries.len();
            after = entries.last().map(|entry| entry.key.to_string()).or(after);
            take(entries).await?;
            if !more {
                return Ok(count);
            }
        }
    }
}

/// Commands compact nothing.
fn only_visiting(servers: proa_store::EtcdServers) -> EtcdOptions {
    EtcdOptions { compact_every: None, ..EtcdOptions::new(servers) }
}

/// `proa backup`.
pub(crate) async fn backup(args: Backup) -> anyhow::Result<()> {
    let data = DataDir::find(&args.data.data_dir)?;
    let source = Source::open(data.as_ref(), &args.etcd).await?;
    let pki = args.keys.pki_dir.clone().or_else(|| data.as_ref().map(DataDir::pki));
    let pki = pki.with_context(|| {
        format!(
            "the keys of the cluster are not in {}: name their directory with --pki-dir",
            args.data.data_dir.display()
        )
    })?;
    let mut file = BackupWriter::create(&args.file, source.revision())?;
    for name in KEY_FILES {
        file.push(&key_entry(&pki, name)?)?;
    }
    let count = source
        .each(async |entries| {
            for entry in &entries {
                file.push(entry)?;
            }
            Ok(())
        })
        .await?;
    file.finish()?;
    println!("{}: {count} objects at revision {}, and the keys of the cluster", args.file.display(), source.revision());
    Ok(())
}

fn key_entry(pki: &Path, name: &str) -> anyhow::Result<Entry> {
    let path = pki.join(name);
    let bytes = fs::read(&path)
        .with_context(|| format!("the keys of the cluster are needed: {} (see --pki-dir)", path.display()))?;
    let key = format!("{KEYS}{name}").into();
    Ok(Entry { key, bytes: bytes.into(), created: Revision::FIRST, modified: Revision::FIRST })
}

/// `proa restore`.
pub(crate) async fn restore(args: Backup) -> anyhow::Result<()> {
    let mut file = BackupReader::open(&args.file)?;
    check_whole(&args.file)?;
    let data = DataDir::create(&args.data.data_dir)?;
    let _lock = data.lock(Part::Server)?;
    let pki = args.keys.pki_dir.clone().unwrap_or_else(|| data.pki());
    let mut target = Target::begin(&data, &args.etcd, file.revision(), AFTER_BACKUP, AFTER_BACKUP_IN_ETCD).await?;
    let mut count = 0;
    while let Some(entries) = file.entries()? {
        let (keys, objects): (Vec<Entry>, Vec<Entry>) =
            entries.into_iter().partition(|entry| entry.key.starts_with(KEYS));
        for key in keys {
            restore_key(&pki, &key)?;
        }
        count += objects.len();
        target.take(objects).await?;
    }
    let at = target.finish().await?;
    println!("{count} objects of revision {} restored; the store goes on at revision {at}", file.revision());
    Ok(())
}

/// Reads a backup to its end: nothing of a damaged one is restored.
fn check_whole(file: &Path) -> anyhow::Result<()> {
    let mut file = BackupReader::open(file)?;
    while file.entries()?.is_some() {}
    Ok(())
}

fn restore_key(pki: &Path, entry: &Entry) -> anyhow::Result<()> {
    let name = entry.key.strip_prefix(KEYS).unwrap_or_default();
    if !KEY_FILES.contains(&name) {
        bail!("the backup holds {}, which is no key of a cluster", entry.key);
    }
    let path = pki.join(name);
    match fs::read(&path) {
        Ok(there) if there == entry.bytes => Ok(()),
        Ok(_) => bail!("{} is of another cluster: nothing was changed there", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => crate::run::write_private(&path, &entry.bytes),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Where objects go.
enum Target {
    Embedded { filling: Filling, at: Revision },
    Etcd(Etcd),
}

impl Target {
    /// An empty store, which will go on past `revision`.
    async fn begin(
        data: &DataDir,
        etcd: &EtcdArgs,
        revision: Revision,
        past: u64,
        past_in_etcd: u64,
    ) -> anyhow::Result<Target> {
        if etcd.servers.is_empty() {
            let at = Revision(revision.0 + past);
            return Ok(Target::Embedded { filling: Filling::begin(&data.store(), at)?, at });
        }
        let target = open_etcd(etcd, only_visiting).await?;
        if !target.range(ROOT, None, None, 0).await?.entries.is_empty() {
            bail!(
                "the etcd already holds objects under {}: choose an empty one, or another --etcd-prefix",
                etcd.prefix
            );
        }
        let goal = Revision(revision.0 + past_in_etcd);
        let mut told = 0;
        let telling = |current: Revision| {
            let tenth = current.0 * 10 / goal.0.max(1);
            if tenth > told {
                told = tenth;
                eprintln!("etcd is at revision {current} of {goal}");
            }
        };
        target.go_on_at(goal, telling).await?;
        Ok(Target::Etcd(target))
    }

    async fn take(&mut self, entries: Vec<Entry>) -> anyhow::Result<()> {
        match self {
            Target::Embedded { filling, .. } => {
                for entry in &entries {
                    filling.push(entry)?;
                }
            }
            Target::Etcd(etcd) => {
                let mut writes =
                    futures::stream::iter(&entries).map(|entry| etcd.adopt(entry)).buffer_unordered(UNDER_WAY);
                while let Some(written) = writes.next().await {
                    written?;
                }
            }
        }
        Ok(())
    }

    /// Complete; the revision it goes on at.
    async fn finish(self) -> anyhow::Result<Revision> {
        match self {
            Target::Embedded { filling, at } => {
                filling.finish()?;
                Ok(at)
            }
            Target::Etcd(etcd) => {
                let at = etcd.current().await?;
                // Who watched before must read all anew.
                etcd.compact(at).await?;
                Ok(at)
            }
        }
    }
}

/// `proa etcd export`.
pub(crate) async fn export(args: EtcdMove) -> anyhow::Result<()> {
    wants_etcd(&args.etcd)?;
    let source = Source::open(None, &args.etcd).await?;
    let data = DataDir::create(&args.data.data_dir)?;
    let _lock = data.lock(Part::Server)?;
    let (none, revision) = (EtcdArgs { servers: Vec::new(), ..args.etcd.clone() }, source.revision());
    move_all(&source, Target::begin(&data, &none, revision, 0, 0).await?, &data.store()).await
}

/// `proa etcd import`.
pub(crate) async fn import(args: EtcdMove) -> anyhow::Result<()> {
    wants_etcd(&args.etcd)?;
    let data = DataDir::find(&args.data.data_dir)?
        .with_context(|| format!("{} holds nothing of Proa", args.data.data_dir.display()))?;
    // What a server would write meanwhile would stay behind.
    let _lock = data.lock(Part::Server)?;
    let none = EtcdArgs { servers: Vec::new(), ..args.etcd.clone() };
    let source = Source::open(Some(&data), &none).await?;
    let target = Target::begin(&data, &args.etcd, source.revision(), 0, 0).await?;
    move_all(&source, target, &PathBuf::from(args.etcd.servers.join(","))).await
}

fn wants_etcd(etcd: &EtcdArgs) -> anyhow::Result<()> {
    if etcd.servers.is_empty() {
        bail!("say which etcd with --etcd-servers URL[,URL…]");
    }
    Ok(())
}

async fn move_all(source: &Source, mut target: Target, to: &Path) -> anyhow::Result<()> {
    let count = source.each(async |entries| target.take(entries).await).await?;
    let at = target.finish().await?;
    println!("{count} objects copied to {}, which goes on at revision {at}", to.display());
    Ok(())
}
