//! Backups: all entries at one revision in one file, taken of a store in use and put into an empty one.
//!
//! A backup is consistent (one revision), complete or refused (each frame is checksummed, the last says that it is the
//! last), and for its owner alone: Secrets lie in it as they are. The store that it is put into goes on at a revision
//! past every one that anybody was told of, so that what clients remember is never taken for something newer.

use std::fs;
use std::path::{Path, PathBuf};

use crate::checkpoint;
use crate::codec::FileKind;
use crate::disk::own_dir;
use crate::embedded::Options;
use crate::entries::{EntriesReader, EntriesWriter};
use crate::error::OpenError;
use crate::recovery::{is_empty, look};
use crate::state::State;
use crate::types::{Entry, Revision};

/// Entries taken from a state at a time.
const PAGE: usize = 512;

/// How far past the revision of a backup a restored store goes on: more than anybody committed after it was taken. etcd's
/// own tools are told as much to (`--bump-revision`), a year of writes at thirty a second.
pub const AFTER_BACKUP: u64 = 1_000_000_000;

/// The newest state of an embedded store, read from its directory beside the process that has it open.
pub struct Snapshot(State);

impl Snapshot {
    /// Reads the directory; everything acknowledged before the call is in it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn of(dir: &Path) -> Result<Snapshot, OpenError> {
        let options = Options::default();
        Ok(Snapshot(look(dir, options.bounds())?))
    }

    /// The revision it is of.
    pub fn revision(&self) -> Revision {
        self.0.revision()
    }

    /// The entries after a key, some at a time; none at the end.
    pub fn page(&self, after_key: Option<&str>) -> Vec<Entry> {
        self.0.page(self.0.revision(), after_key, PAGE)
    }
}

/// A backup being written. Under its name only once it is complete.
pub struct BackupWriter {
    file: EntriesWriter,
    path: PathBuf,
    unfinished: PathBuf,
}

impl BackupWriter {
    /// Begins a file; one that is there is replaced in the end.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(path: &Path, revision: Revision) -> Result<BackupWriter, OpenError> {
        let unfinished = PathBuf::from(format!("{}{}", path.display(), checkpoint::UNFINISHED));
        let file = EntriesWriter::create(FileKind::Backup, &unfinished, revision);
        let file = file.map_err(|source| OpenError::io(&unfinished, source))?;
        Ok(BackupWriter { file, path: path.into(), unfinished })
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// When there is no room.
    pub fn push(&mut self, entry: &Entry) -> Result<(), OpenError> {
        self.file.push(entry).map_err(|source| OpenError::io(&self.unfinished, source))
    }

    /// The file is complete and on the disk.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn finish(self) -> Result<(), OpenError> {
        let BackupWriter { file, path, unfinished } = self;
        let done = file.finish().and_then(|()| fs::rename(&unfinished, &path));
        done.map_err(|source| OpenError::io(path, source))
    }
}

/// A backup being read.
pub struct BackupReader(EntriesReader);

impl BackupReader {
    /// Opens a file.
    ///
    /// # Errors
    /// When it is none, or one of a newer version.
    pub fn open(path: &Path) -> Result<BackupReader, OpenError> {
        EntriesReader::open(FileKind::Backup, path).map(BackupReader)
    }

    /// The revision the backup is of.
    pub fn revision(&self) -> Revision {
        self.0.revision()
    }

    /// Some entries, in the order they were written; `None` at the end, and an error where that is missing.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn entries(&mut self) -> Result<Option<Vec<Entry>>, OpenError> {
        self.0.entries()
    }
}

/// A store being filled for the first time; empty until it is complete.
pub struct Filling {
    file: EntriesWriter,
    dir: PathBuf,
    unfinished: PathBuf,
    revision: Revision,
}

impl Filling {
    /// Begins to fill an empty directory with what will be the store at `revision`.
    ///
    /// # Errors
    /// [`OpenError::NotEmpty`] when there is a store.
    pub fn begin(dir: &Path, revision: Revision) -> Result<Filling, OpenError> {
        own_dir(dir).map_err(|source| OpenError::io(dir, source))?;
        if !is_empty(dir)? {
            return Err(OpenError::NotEmpty { dir: dir.into() });
        }
        let unfinished = dir.join(format!("restore{}", checkpoint::UNFINISHED));
        let file = EntriesWriter::create(FileKind::Checkpoint, &unfinished, revision);
        let file = file.map_err(|source| OpenError::io(&unfinished, source))?;
        Ok(Filling { file, dir: dir.into(), unfinished, revision })
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// When there is no room.
    pub fn push(&mut self, entry: &Entry) -> Result<(), OpenError> {
        self.file.push(entry).map_err(|source| OpenError::io(&self.unfinished, source))
    }

    /// The store is complete and on the disk.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn finish(self) -> Result<(), OpenError> {
        let Filling { file, dir, unfinished, revision } = self;
        let done = file.finish();
        let done = done.and_then(|()| checkpoint::in_place(&dir, revision, |path| fs::rename(&unfinished, path)));
        done.map_err(|source| OpenError::io(dir, source))
    }
}

/// Whether a directory holds a store.
///
/// # Errors
/// When it cannot be read.
pub fn holds_a_store(dir: &Path) -> Result<bool, OpenError> {
    is_empty(dir).map(|empty| !empty)
}
