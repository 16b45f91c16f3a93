//! Bytes by digest on disk. What is there is whole and true: it was digested while it was written.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::digest::{Digest, HashingWriter};
use crate::error::ImageError;
use crate::manifest::JSON_LIMIT;

/// The blobs, and the place for unfinished ones.
#[derive(Debug, Clone)]
pub(crate) struct Blobs {
    dir: PathBuf,
    staging: PathBuf,
}

impl Blobs {
    /// Makes the directories; when nobody else is at work, what earlier processes left unfinished is removed.
    pub(crate) fn open(root: &Path, alone: bool) -> io::Result<Blobs> {
        let blobs = Blobs { dir: root.join("blobs/sha256"), staging: root.join("staging") };
        fs::create_dir_all(&blobs.dir)?;
        if alone && blobs.staging.exists() {
            fs::remove_dir_all(&blobs.staging)?;
        }
        fs::create_dir_all(&blobs.staging)?;
        Ok(blobs)
    }

    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// A directory for work in progress; removed when dropped.
    pub(crate) fn stage(&self) -> Result<Stage, ImageError> {
        Stage::new(&self.staging)
    }

    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<File, ImageError> {
        File::open(self.path(digest)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                ImageError::corrupt(format!("blob {digest} is missing from the store: load or pull the image again"))
            }
            _ => ImageError::io(format!("reading blob {digest}"))(error),
        })
    }

    /// A manifest or configuration: small, or refused.
    pub(crate) fn read_json(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        read_small(self.open_blob(digest)?, &format!("blob {digest}"))
    }

    pub(crate) fn size(&self, digest: &Digest) -> u64 {
        fs::metadata(self.path(digest)).map_or(0, |found| found.len())
    }

    /// Keeps bytes.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let stage = self.stage()?;
        let mut incoming = stage.incoming()?;
        incoming.write_all(bytes).map_err(ImageError::io("writing a blob"))?;
        self.keep(incoming, None)
    }

    /// Keeps a finished file; with `expected`, only if it is that.
    pub(crate) fn keep(&self, incoming: Incoming, expected: Option<&Digest>) -> Result<Digest, ImageError> {
        let (file, digest, _) = incoming.file.finish();
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return Err(ImageError::corrupt(format!("digest mismatch: expected {expected}, got {digest}")));
        }
        file.sync_data().map_err(ImageError::io("writing a blob"))?;
        fs::rename(&incoming.path, self.path(&digest)).map_err(ImageError::io("keeping a blob"))?;
        Ok(digest)
    }

    pub(crate) fn all(&self) -> Vec<Digest> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
        entries.flatten().filter_map(name).filter_map(|hex| Digest::parse(&format!("sha256:{hex}"))).collect()
    }

    pub(crate) fn remove(&self, digest: &Digest) -> io::Result<()> {
        match fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Reads something that is known to be small.
pub(crate) fn read_small(reader: impl Read, what: &str) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    reader.take(JSON_LIMIT + 1).read_to_end(&mut bytes).map_err(ImageError::io(format!("reading {what}")))?;
    if bytes.len() as u64 > JSON_LIMIT {
        return Err(ImageError::TooLarge(format!("{what} is larger than {JSON_LIMIT} bytes")));
    }
    Ok(bytes)
}

/// A directory of unfinished work.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) dir: PathBuf,
}

impl Stage {
    fn new(parent: &Path) -> Result<Stage, ImageError> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let dir = parent.join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&dir).map_err(ImageError::io("making a staging directory"))?;
        Ok(Stage { dir })
    }

    /// A file to be filled and kept.
    pub(crate) fn incoming(&self) -> Result<Incoming, ImageError> {
        self.incoming_named("blob")
    }

    pub(crate) fn incoming_named(&self, name: &str) -> Result<Incoming, ImageError> {
        let path = self.dir.join(name);
        let file = File::create(&path).map_err(ImageError::io("making a staging file"))?;
        Ok(Incoming { file: HashingWriter::new(file), path })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A blob that is being written.
pub(crate) struct Incoming {
    file: HashingWriter<File>,
    pub(crate) path: PathBuf,
}

impl Incoming {
    pub(crate) fn written(&self) -> u64 {
        self.file.count
    }

    /// Finishes without keeping: where it is, and what it is.
    pub(crate) fn set_aside(self) -> (PathBuf, Digest, u64) {
        let (_, digest, size) = self.file.finish();
        (self.path, digest, size)
    }
}

impl Write for Incoming {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
