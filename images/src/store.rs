//! The store: names, images, unpacked layers, and what nobody needs any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{self, Read, Write};
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
use crate::{archive, build, pull, unpack};

/// What can be told.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Registries (`host:port`) that are spoken to over plain HTTP. Loopback ones always are.
    pub plain_http: Vec<String>,
}

/// An image store. Cheap to clone; safe to use from many threads; one process per directory.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    blobs: Blobs,
    options: Options,
    index: Mutex<Index>,
    /// One at a time per layer or blob; others wait and find it done.
    turns: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    /// Work that holds blobs nobody refers to yet. Garbage is not collected meanwhile.
    busy: Mutex<usize>,
}

/// `images.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Index {
    references: BTreeMap<String, Digest>,
    /// Lost their last name while a container may still use them.
    untagged: BTreeSet<Digest>,
}

/// Says that work is in progress, until dropped.
pub(crate) struct Busy(ImageStore);

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.inner.busy.lock() -= 1;
    }
}

impl ImageStore {
    /// Opens a directory, made if absent. What an earlier process left unfinished is removed.
    pub fn open(dir: &Path, options: Options) -> Result<ImageStore, ImageError> {
        let failed = || ImageError::io(format!("opening the image store {}", dir.display()));
        fs::create_dir_all(dir.join("layers")).map_err(failed())?;
        let blobs = Blobs::open(dir).map_err(failed())?;
        let index = match fs::read(dir.join(INDEX)) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| ImageError::corrupt(format!("{}: {error}", dir.join(INDEX).display())))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Index::default(),
            Err(error) => return Err(failed()(error)),
        };
        let inner = Inner {
            dir: dir.to_owned(),
            blobs,
            options,
            index: Mutex::new(index),
            turns: Mutex::default(),
            busy: Mutex::new(0),
        };
        Ok(ImageStore { inner: Arc::new(inner) })
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
        let index = self.inner.index.lock().clone();
        self.image(&index, &self.find(&index, name)?).ok()
    }

    /// All images, by first name.
    pub fn list(&self) -> Vec<Image> {
        let index = self.inner.index.lock().clone();
        let manifests: BTreeSet<&Digest> = index.references.values().chain(&index.untagged).collect();
        let mut images: Vec<Image> =
            manifests.into_iter().filter_map(|manifest| self.image(&index, manifest).ok()).collect();
        images.sort_by(|a, b| (&a.references, &a.id).cmp(&(&b.references, &b.id)));
        images
    }

    /// Takes a name off an image; by id, all its names. With its last name an image goes, unless its id is
    /// among `in_use`: then it is an error and nothing changes.
    pub fn remove(&self, name: &str, in_use: &BTreeSet<Digest>) -> Result<(), ImageError> {
        let not_found = || ImageError::NotFound(name.to_owned());
        {
            let mut index = self.inner.index.lock();
            let manifest = self.find(&index, name).ok_or_else(not_found)?;
            let image = self.image(&index, &manifest);
            let mut next = index.clone();
            match Reference::parse(name).ok().filter(|full| index.references.contains_key(&full.to_string())) {
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
            self.save(&next)?;
            *index = next;
        }
        self.collect_garbage(in_use)
    }

    /// Removes images without a name (unless in use), and blobs and layers no image needs. Does nothing
    /// while a pull, load or build is under way.
    pub fn collect_garbage(&self, in_use: &BTreeSet<Digest>) -> Result<(), ImageError> {
        let busy = self.inner.busy.lock();
        if *busy > 0 {
            return Ok(());
        }
        let mut index = self.inner.index.lock();
        let mut next = index.clone();
        next.untagged.retain(|manifest| self.image(&index, manifest).is_ok_and(|image| in_use.contains(&image.id)));
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
        if next != *index {
            self.save(&next)?;
            *index = next;
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
                // Aside first: a layer is never seen half removed.
                let stage = self.stage()?;
                fs::rename(entry.path(), stage.dir.join("layer")).map_err(ImageError::io("removing a layer"))?;
            }
        }
        Ok(())
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
        // Overlayfs takes no directory twice. Of equal layers only the topmost can be seen.
        let mut seen = BTreeSet::new();
        Ok(image.diff_ids.iter().rev().filter(|id| seen.insert(*id)).map(|id| self.layer_dir(id)).collect())
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
        fs::rename(&made, &target).map_err(ImageError::io("keeping a layer"))
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
        *self.inner.busy.lock() += 1;
        Busy(self.clone())
    }

    pub(crate) fn turn(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.inner.turns.lock();
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(digest.clone()).or_default())
    }

    /// Gives names to a manifest whose blobs are all here.
    pub(crate) fn name(&self, references: &[Reference], manifest: &Digest) -> Result<Image, ImageError> {
        let mut index = self.inner.index.lock();
        let mut next = index.clone();
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
        let image = self.image(&next, manifest)?;
        if next != *index {
            self.save(&next)?;
            *index = next;
        }
        Ok(image)
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
            let mut file = fs::File::create(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(index)?)?;
            file.sync_all()?;
            fs::rename(&temporary, self.inner.dir.join(INDEX))
        };
        write().map_err(ImageError::io("writing the names of images"))
    }
}

const INDEX: &str = "images.json";

/// Whatever the umask says.
pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<(), ImageError> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(ImageError::io("setting a mode"))
}
