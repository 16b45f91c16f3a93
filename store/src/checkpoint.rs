//! A checkpoint: the state at the oldest revision still in history, in a file beside the log.
//!
//! The log after a checkpoint *is* the history, so that reopening restores the history too. A checkpoint
//! is complete or absent: it is written under another name, synced and renamed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::RwLock;

use crate::codec::FileKind;
use crate::disk::sync_dir;
use crate::entries::{EntriesReader, EntriesWriter};
use crate::error::OpenError;
use crate::segment::checkpoint_name;
use crate::state::{HistoryBounds, State};
use crate::types::{Entry, Revision};

/// Entries read from the state while its lock is held once.
const PAGE: usize = 512;
/// The end of a checkpoint's name while it is being written.
pub(crate) const UNFINISHED: &str = ".tmp";

/// Writes the state as of `revision` (which the caller has pinned).
pub(crate) fn write(dir: &Path, state: &RwLock<State>, revision: Revision) -> io::Result<()> {
    in_place(dir, revision, |path| write_file(path, state, revision))
}

/// Has a checkpoint written, which is complete or absent.
pub(crate) fn in_place(dir: &Path, revision: Revision, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let path = dir.join(checkpoint_name(revision));
    let unfinished = PathBuf::from(format!("{}{UNFINISHED}", path.display()));
    let written = write(&unfinished).and_then(|()| fs::rename(&unfinished, &path));
    if let Err(error) = written {
        let _ = fs::remove_file(&unfinished);
        return Err(error);
    }
    sync_dir(dir)
}

fn write_file(path: &Path, state: &RwLock<State>, revision: Revision) -> io::Result<()> {
    let mut file = EntriesWriter::create(FileKind::Checkpoint, path, revision)?;
    let mut after: Option<Entry> = None;
    loop {
        let page = state.read().page(revision, after.as_ref().map(|e| &*e.key), PAGE);
        for entry in &page {
            file.push(entry)?;
        }
        match page.into_iter().next_back() {
            Some(last) => after = Some(last),
            None => return file.finish(),
        }
    }
}

/// The state a checkpoint holds.
pub(crate) fn read(path: &Path, bounds: HistoryBounds) -> Result<State, OpenError> {
    let mut file = EntriesReader::open(FileKind::Checkpoint, path)?;
    let mut state = State::at_checkpoint(file.revision(), bounds);
    while let Some(entries) = file.entries()? {
        entries.into_iter().for_each(|entry| state.restore(entry));
    }
    Ok(state)
}
