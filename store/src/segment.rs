//! The files of the log: their names, appending to the active one, rolling over to the next.
//!
//! Owns what is on disk after the newest checkpoint. An append either is on the disk as a whole or is
//! cut off again; until the cut has succeeded nothing else is written.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codec::{FileKind, HEADER_LEN, Header};
use crate::disk::{Disk, Medium, sync_dir};
use crate::types::Revision;

/// The name of the segment whose first record is `first`.
pub(crate) fn log_name(first: Revision) -> String {
    format!("log-{:016x}", first.0)
}

/// The name of the checkpoint taken at `revision`.
pub(crate) fn checkpoint_name(revision: Revision) -> String {
    format!("checkpoint-{:016x}", revision.0)
}

/// What a file name says, the inverse of [`log_name`] and [`checkpoint_name`].
pub(crate) fn parse_name(name: &str) -> Option<(FileKind, Revision)> {
    let (kind, digits) = match name.split_once('-')? {
        ("log", digits) => (FileKind::Log, digits),
        ("checkpoint", digits) => (FileKind::Checkpoint, digits),
        _ => return None,
    };
    (digits.len() == 16).then_some(())?;
    Some((kind, Revision(u64::from_str_radix(digits, 16).ok()?)))
}

/// A number nobody who writes values can foresee (see [`crate::codec`]).
pub(crate) fn fresh_salt() -> u64 {
    RandomState::new().hash_one(0)
}

/// A segment that is no longer written to.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    pub(crate) path: PathBuf,
    pub(crate) last: Revision,
    pub(crate) len: u64,
}

/// The segment that is written to.
pub(crate) struct Active {
    pub(crate) path: PathBuf,
    pub(crate) salt: u64,
    pub(crate) len: u64,
    pub(crate) medium: Box<dyn Medium>,
    /// Whether there may be bytes past `len` that must go before the next append.
    pub(crate) dirty: bool,
}

impl Active {
    /// Makes an empty segment, durably.
    pub(crate) fn create(disk: &dyn Disk, dir: &Path, first: Revision) -> io::Result<Active> {
        let (path, salt) = (dir.join(log_name(first)), fresh_salt());
        let mut medium = disk.open(&path)?;
        let header = Header { revision: first, salt }.encode(FileKind::Log);
        let made = medium
            .truncate(0)
            .and_then(|()| medium.write_at(0, &header))
            .and_then(|()| medium.sync())
            .and_then(|()| sync_dir(dir));
        if let Err(error) = made {
            // An empty segment is also what recovery expects of an interrupted creation.
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        Ok(Active { path, salt, len: HEADER_LEN as u64, medium, dirty: false })
    }

    /// Cuts off what a failed append left behind.
    fn repair(&mut self) -> io::Result<()> {
        if self.dirty {
            self.medium.truncate(self.len)?;
            self.medium.sync()?;
            self.dirty = false;
        }
        Ok(())
    }

    fn append(&mut self, frame: &[u8]) -> io::Result<()> {
        self.repair()?;
        // Even a failed sync may leave the frame on the disk: it was not acknowledged, so it goes.
        if let Err(error) = self.medium.write_at(self.len, frame).and_then(|()| self.medium.sync()) {
            self.dirty = true;
            if let Err(again) = self.repair() {
                tracing::error!(path = %self.path.display(), error = %again, "cannot cut a failed append off yet");
            }
            return Err(error);
        }
        self.len += frame.len() as u64;
        Ok(())
    }
}

/// The log on disk.
pub(crate) struct Segments {
    pub(crate) dir: PathBuf,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) sealed: Vec<Sealed>,
    pub(crate) active: Active,
    pub(crate) segment_bytes: u64,
}

impl Segments {
    /// The salt that the next frame must be sealed with. Rolls over to a new segment when the active one
    /// is long enough; `last` is the newest revision written.
    pub(crate) fn prepare(&mut self, last: Revision) -> u64 {
        if self.active.len >= self.segment_bytes && !self.active.dirty {
            match Active::create(self.disk.as_ref(), &self.dir, last.next()) {
                Ok(next) => {
                    let done = std::mem::replace(&mut self.active, next);
                    self.sealed.push(Sealed { path: done.path, last, len: done.len });
                }
                // The active segment still works; it just grows.
                Err(error) => tracing::warn!(%error, "cannot begin a new log segment"),
            }
        }
        self.active.salt
    }

    /// Appends one frame; on the disk when this returns `Ok`, cut off otherwise.
    pub(crate) fn append(&mut self, frame: &[u8]) -> io::Result<()> {
        self.active.append(frame)
    }

    /// Bytes of the segments that only hold what a checkpoint at `floor` would hold too.
    pub(crate) fn dead_bytes(&self, floor: Revision) -> u64 {
        self.sealed.iter().filter(|s| s.last <= floor).map(|s| s.len).sum()
    }

    /// Takes the segments that a checkpoint at `revision` replaces off the list.
    pub(crate) fn take_dead(&mut self, revision: Revision) -> Vec<PathBuf> {
        self.sealed.extract_if(.., |s| s.last <= revision).map(|s| s.path).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_in_revision_order_and_read_back() {
        assert!(log_name(Revision(9)) < log_name(Revision(10)));
        assert_eq!(parse_name(&log_name(Revision(255))), Some((FileKind::Log, Revision(255))));
        assert_eq!(parse_name(&checkpoint_name(Revision(1))), Some((FileKind::Checkpoint, Revision(1))));
        assert_eq!(parse_name("log-1"), None);
        assert_eq!(parse_name("LOCK"), None);
    }
}
