//! The store: names, images, unpacked layers, and what nobody needs any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::blobs::{Blobs, Stage};
use crate::build::BuildFile;
use crate::digest::Digest;
use crate::error::{ImageError, PullError};
use crate::image::{Image, ImageConfig};
use crate::manifest::{ConfigFile, Document, LOCAL_LAYER, Manifest};
use crate::pull::{Credentials, Progress};
use crate::reference::Reference;
use crate::settled::Settled;
use crate::{archive, build, pull, unpack};

/// What can be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Registries (`host:port`) that are spoken to over plain HTTP if they have no TLS. Loopback ones always are.
    pub plain_http: Vec<String>,
    /// Where the certificate authorities of single registries are: `<host[:port]>/*.crt`, in PEM.
    pub authorities: PathBuf,
}

impl Default for Options {
    /// No plain HTTP but to loopback; authorities where Docker has them.
    fn default() -> Options {
        Options { plain_http: Vec::new(), authorities: PathBuf::from("/etc/docker/certs.d") }
    }
}

/// An image store. Cheap to clone; safe to use from many threads, and by several processes on one directory: what one
/// loads, the others see.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    blobs: Blobs,
    settled: Settled,
    options: Options,
    index: Mutex<Known>,
    /// One at a time per layer or blob; others wait and find it done.
    turns: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

/// The names as last read, and how the file looked then.
#[derive(Debug, Default)]
struct Known {
    index: Index,
    stamp: Option<Stamp>,
}

/// Tells one version of the file from the next: it is only ever replaced.
type Stamp = (u64, i64, i64, u64);

/// `images.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Index {
    references: BTreeMap<String, Digest>,
    /// Lost their last name while a container may still use them.
    untagged: BTreeSet<Digest>,
}

/// Says, to every process, that work is in progress which holds blobs nobody refers to yet: until it is dropped no garbage
/// is collected. A shared lock on a file, so that it ends with its process.
pub(crate) struct Busy {
    _lock: Option<File>,
}

impl ImageStore {
    /// Opens a directory, made if absent and closed to others: a layer may hold programs with the set-uid bit. What an earlier process left unfinished is removed.
    pub fn open(dir: &Path, options: Options) -> Result<ImageStore, ImageError> {
        let failed = || ImageError::io(format!("opening the image store {}", dir.display()));
        own_dir(dir).and_then(|()| fs::create_dir_all(dir.join("layers"))).map_err(failed())?;
        // Unfinished work can only be told from work in progress when nobody is at work.
        let alone = open_lock(dir, WORK_LOCK).map_err(failed())?;
        let is_alone = alone.try_lock().is_ok();
        let blobs = Blobs::open(dir, is_alone).map_err(failed())?;
        let settled = Settled::open(dir).map_err(failed())?;
        let inner =
            Inner { dir: dir.to_owned(), blobs, settled, options, index: Mutex::default(), turns: Mutex::default() };
        let store = ImageStore { inner: Arc::new(inner) };
        // Whoever is at work has opened the store before, and in this boot.
        if is_alone {
            store.drop_doubtful()?;
        }
        store.refresh(&mut store.inner.index.lock())?;
        Ok(store)
    }

    /// Takes in an OCI layout or a `docker save` archive, compressed or not. Returns the full names it
    /// brought. On error nothing is kept. Blocking.
    pub fn load(&self, reader: impl Read) -> Result<Vec<String>, ImageError> {
        let _busy = self.busy();
        archive::load(self, reader)
    }

    /// Fetches an image, all but what is here already. A name that is here is fetched again: its tag may
    /// have moved. `progress` is called often and must be quick.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<Credentials>,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<Image, PullError> {
        let _busy = self.busy();
        pull::pull(self, reference, auth, &progress).await
    }

    /// Makes an image of files on disk, without a copy where the file system allows. Blocking, fast.
    pub fn build_from_files(
        &self,
        reference: &str,
        files: &[BuildFile],
        config: ImageConfig,
    ) -> Result<Image, ImageError> {
        let _busy = self.busy();
        build::build(self, reference, files, config)
    }

    /// By name (short or full), by digest, or by id (`sha256:…`, or at least its first 12 digits).
    pub fn get(&self, name: &str) -> Option<Image> {
        let index = self.names();
        self.image(&index, &self.find(&index, name)?).ok()
    }

    /// All images, by first name.
    pub fn list(&self) -> Vec<Image> {
        let index = self.names();
        let manifests: BTreeSet<&Digest> = index.references.values().chain(&index.untagged).collect();
        let mut images: Vec<Image> =
            manifests.into_iter().filter_map(|manifest| self.image(&index, manifest).ok()).collect();
        images.sort_by(|a, b| (&a.references, &a.id).cmp(&(&b.references, &b.id)));
        images
    }

    /// Takes a name off an image; by id, all its names. With its last name an image goes, unless its id is
    /// among `in_use`: then it is an error and nothing changes.
    pub fn remove(&self, name: &str, in_use: &BTreeSet<Digest>) -> Result<(), ImageError> {
        self.change(|store, next| {
            let manifest = store.find(next, name).ok_or_else(|| ImageError::NotFound(name.to_owned()))?;
            let image = store.image(next, &manifest);
            match Reference::parse(name).ok().filter(|full| next.references.contains_key(&full.to_string())) {
                Some(full) => {
                    next.references.remove(&full.to_string());
                }
                None => next.references.retain(|_, named| *named != manifest),
            }
            if !next.references.values().any(|named| *named == manifest) {
                // A damaged image may always go.
                if image.is_ok_and(|image| in_use.contains(&image.id)) {
                    return Err(ImageError::InUse(name.to_owned()));
                }
                next.untagged.remove(&manifest);
            }
            Ok(())
        })?;
        self.collect_garbage(in_use)
    }

    /// Removes images without a name (unless in use), and blobs and layers no image needs. Does nothing
    /// while a pull, load or build is under way.
    pub fn collect_garbage(&self, in_use: &BTreeSet<Digest>) -> Result<(), ImageError> {
        let alone = open_lock(&self.inner.dir, WORK_LOCK).map_err(ImageError::io("locking the image store"))?;
        if alone.try_lock().is_err() {
            return Ok(());
        }
        let next = self.change(|store, next| {
            let before = next.clone();
            next.untagged
                .retain(|manifest| store.image(&before, manifest).is_ok_and(|image| in_use.contains(&image.id)));
            Ok(next.clone())
        })?;
        let (mut blobs, mut layers) = (BTreeSet::new(), BTreeSet::new());
        for digest in next.references.values().chain(&next.untagged) {
            blobs.insert(digest.clone());
            // What cannot be read protects nothing more; its name stays until somebody removes or mends it.
            let Ok(manifest) = self.manifest(digest) else { continue };
            blobs.extend(manifest.layers.iter().map(|layer| layer.digest.clone()));
            blobs.insert(manifest.config.digest.clone());
            if let Ok(config) = self.config(&manifest) {
                layers.extend(config.rootfs.diff_ids);
            }
        }
        for digest in self.inner.blobs.all() {
            if !blobs.contains(&digest) {
                self.inner.blobs.remove(&digest).map_err(ImageError::io("removing a blob"))?;
            }
        }
        let unpacked = fs::read_dir(self.inner.dir.join("layers")).map_err(ImageError::io("reading layers"))?;
        for entry in unpacked.flatten() {
            let name = entry.file_name();
            let digest = Digest::parse(&format!("sha256:{}", name.to_string_lossy()));
            if !digest.is_some_and(|digest| layers.contains(&digest)) {
                self.remove_layer(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Unpacked layers the machine went down too early for are unpacked again when they are needed.
    fn drop_doubtful(&self) -> Result<(), ImageError> {
        let failed = || ImageError::io("looking for layers that never reached the disk");
        for layer in self.inner.settled.doubtful().map_err(failed())? {
            tracing::info!(layer = %layer.display(), "the machine went down before this layer was on the disk");
            self.remove_layer(&layer)?;
        }
        self.inner.settled.believe().map_err(failed())
    }

    fn remove_layer(&self, layer: &Path) -> Result<(), ImageError> {
        let failed = || ImageError::io("removing a layer");
        if let Some(name) = layer.file_name() {
            self.inner.settled.forget(&name.to_string_lossy()).map_err(failed())?;
        }
        // Aside first: a layer is never seen half removed.
        let stage = self.stage()?;
        fs::rename(layer, stage.dir.join("layer")).map_err(failed())
    }

    /// Makes sure that a power cut takes no unpacked layer away. Blocking, for as long as the disk needs; nothing waits
    /// for it: a layer that goes before is unpacked again.
    pub fn settle(&self) -> Result<(), ImageError> {
        let _busy = self.busy();
        self.inner.settled.settle().map_err(ImageError::io("writing layers through"))
    }

    /// The image's unpacked layers, top first: unpacked now where they are not yet. Blocking.
    pub fn layers(&self, image: &Image) -> Result<Vec<PathBuf>, ImageError> {
        let _busy = self.busy();
        let manifest = self.manifest(&image.manifest)?;
        let todo: Vec<(&Digest, &crate::manifest::Descriptor)> = image
            .diff_ids
            .iter()
            .zip(&manifest.layers)
            .filter(|(diff_id, _)| !self.layer_dir(diff_id).is_dir())
            .collect();
        let workers = std::thread::available_parallelism().map_or(2, usize::from).min(todo.len());
        let next = std::sync::atomic::AtomicUsize::new(0);
        let work = || -> Result<(), ImageError> {
            while let Some((diff_id, layer)) = todo.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                self.unpack(diff_id, layer)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            running.into_iter().try_for_each(|worker| {
                worker.join().unwrap_or_else(|_| Err(ImageError::corrupt("unpacking a layer panicked")))
            })
        })?;
        Ok(self.layer_paths(image))
    }

    fn unpack(&self, diff_id: &Digest, layer: &crate::manifest::Descriptor) -> Result<(), ImageError> {
        let turn = self.turn(diff_id);
        // Never called on an async worker: `layers` spawns its own threads.
        let _turn = turn.blocking_lock();
        let target = self.layer_dir(diff_id);
        if target.is_dir() {
            return Ok(());
        }
        if layer.media_type == LOCAL_LAYER {
            return Err(ImageError::corrupt(format!(
                "layer {diff_id} is missing from the store: build the image again"
            )));
        }
        let blob = self.inner.blobs.open_blob(&layer.digest)?;
        let stage = self.stage()?;
        let made = stage.dir.join("layer");
        fs::create_dir(&made).map_err(ImageError::io("making a layer"))?;
        set_mode(&made, 0o755)?;
        let found = unpack::unpack(blob, &made)?;
        if found != *diff_id {
            return Err(ImageError::corrupt(format!("layer {} unpacks to {found}, not to {diff_id}", layer.digest)));
        }
        self.inner.settled.forget(diff_id.hex()).map_err(ImageError::io("keeping a layer"))?;
        fs::rename(&made, &target).map_err(ImageError::io("keeping a layer"))
    }

    /// Where the image's unpacked layers are or would be, top first.
    pub fn layer_paths(&self, image: &Image) -> Vec<PathBuf> {
        // Overlayfs takes no directory twice. Of equal layers only the topmost can be seen.
        let mut seen = BTreeSet::new();
        image.diff_ids.iter().rev().filter(|id| seen.insert(*id)).map(|id| self.layer_dir(id)).collect()
    }

    // ── for archive, build and pull ──────────────────────────────────────────────────────────────

    pub(crate) fn blobs(&self) -> &Blobs {
        &self.inner.blobs
    }

    pub(crate) fn options(&self) -> &Options {
        &self.inner.options
    }

    pub(crate) fn stage(&self) -> Result<Stage, ImageError> {
        self.inner.blobs.stage()
    }

    pub(crate) fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.inner.dir.join("layers").join(diff_id.hex())
    }

    pub(crate) fn busy(&self) -> Busy {
        // Without the lock the work itself is as safe; only a removal at the same moment could take its blobs away.
        let lock = open_lock(&self.inner.dir, WORK_LOCK).and_then(|file| file.lock_shared().map(|()| file));
        Busy { _lock: lock.inspect_err(|error| tracing::warn!(%error, "cannot lock the image store")).ok() }
    }

    pub(crate) fn turn(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.inner.turns.lock();
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(digest.clone()).or_default())
    }

    /// Gives names to a manifest whose blobs are all here.
    pub(crate) fn name(&self, references: &[Reference], manifest: &Digest) -> Result<Image, ImageError> {
        self.change(|store, next| {
            for reference in references {
                if let Some(before) = next.references.insert(reference.to_string(), manifest.clone())
                    && before != *manifest
                    && !next.references.values().any(|named| *named == before)
                {
                    next.untagged.insert(before);
                }
            }
            if references.is_empty() && !next.references.values().any(|named| named == manifest) {
                next.untagged.insert(manifest.clone());
            } else {
                next.untagged.remove(manifest);
            }
            store.image(next, manifest)
        })
    }

    /// The names as they are now, whoever wrote them.
    fn names(&self) -> Index {
        let mut known = self.inner.index.lock();
        if let Err(error) = self.refresh(&mut known) {
            tracing::warn!(%error, "cannot read the names of images again");
        }
        known.index.clone()
    }

    /// Reads the file again if another process has replaced it.
    fn refresh(&self, known: &mut Known) -> Result<(), ImageError> {
        let path = self.inner.dir.join(INDEX);
        let stamp = stamp(&path);
        if stamp == known.stamp {
            return Ok(());
        }
        known.index = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| ImageError::corrupt(format!("{}: {error}", path.display())))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Index::default(),
            Err(error) => return Err(ImageError::io(format!("reading {}", path.display()))(error)),
        };
        known.stamp = stamp;
        Ok(())
    }

    /// Changes the names: one process and one thread at a time, and nothing at all when `work` fails.
    fn change<T>(&self, work: impl FnOnce(&ImageStore, &mut Index) -> Result<T, ImageError>) -> Result<T, ImageError> {
        let failed = || ImageError::io("locking the names of images");
        let mut known = self.inner.index.lock();
        let lock = open_lock(&self.inner.dir, INDEX_LOCK).map_err(failed())?;
        lock.lock().map_err(failed())?;
        self.refresh(&mut known)?;
        let mut next = known.index.clone();
        let done = work(self, &mut next)?;
        if next != known.index {
            self.save(&next)?;
            *known = Known { index: next, stamp: stamp(&self.inner.dir.join(INDEX)) };
        }
        Ok(done)
    }

    pub(crate) fn manifest(&self, digest: &Digest) -> Result<Manifest, ImageError> {
        match Document::parse(&self.inner.blobs.read_json(digest)?)? {
            Document::Manifest(manifest) => Ok(manifest),
            Document::Index(_) => Err(ImageError::corrupt(format!("{digest} is an index, not an image"))),
        }
    }

    fn config(&self, manifest: &Manifest) -> Result<ConfigFile, ImageError> {
        ConfigFile::parse(&self.inner.blobs.read_json(&manifest.config.digest)?, manifest.layers.len())
    }

    fn image(&self, index: &Index, digest: &Digest) -> Result<Image, ImageError> {
        let manifest = self.manifest(digest)?;
        let config = self.config(&manifest)?;
        let size = self.inner.blobs.size(&manifest.config.digest)
            + manifest.layers.iter().map(|layer| layer.size).sum::<u64>();
        Ok(Image {
            id: manifest.config.digest,
            manifest: digest.clone(),
            references: index
                .references
                .iter()
                .filter(|(_, named)| *named == digest)
                .map(|(name, _)| name.clone())
                .collect(),
            size,
            created: config.created.as_deref().and_then(|text| text.parse::<Timestamp>().ok()),
            config: config.config.map(ImageConfig::from).unwrap_or_default(),
            diff_ids: config.rootfs.diff_ids,
        })
    }

    fn find(&self, index: &Index, name: &str) -> Option<Digest> {
        if let Ok(reference) = Reference::parse(name) {
            if let Some(manifest) = index.references.get(&reference.to_string()) {
                return Some(manifest.clone());
            }
            if let Some(digest) = reference.digest() {
                // By digest, whatever tag it came with; only from the same repository.
                let of_repository = |(known, named): &(&String, &Digest)| {
                    *named == digest && Reference::parse(known).is_ok_and(|known| known.name() == reference.name())
                };
                return index.references.iter().find(of_repository).map(|(_, named)| named.clone());
            }
        }
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if hex.len() < 12 || hex.len() > 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut manifests = index.references.values().chain(&index.untagged);
        manifests
            .find(|digest| {
                digest.hex().starts_with(hex)
                    || self.manifest(digest).is_ok_and(|manifest| manifest.config.digest.hex().starts_with(hex))
            })
            .cloned()
    }

    /// Durable before it is believed.
    fn save(&self, index: &Index) -> Result<(), ImageError> {
        let stage = self.stage()?;
        let temporary = stage.dir.join(INDEX);
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(index)?)?;
            file.sync_all()?;
            fs::rename(&temporary, self.inner.dir.join(INDEX))
        };
        write().map_err(ImageError::io("writing the names of images"))
    }
}

const INDEX: &str = "images.json";
/// Held while the names change.
const INDEX_LOCK: &str = "images.lock";
/// Held shared by work in progress, alone by who removes things.
const WORK_LOCK: &str = "work.lock";

fn own_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

fn open_lock(dir: &Path, name: &str) -> io::Result<File> {
    File::options().write(true).create(true).truncate(false).open(dir.join(name))
}

fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let found = fs::metadata(path).ok()?;
    Some((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
}

/// Whatever the umask says.
pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<(), ImageError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(ImageError::io("setting a mode"))
}
