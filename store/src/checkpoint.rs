//! A checkpoint: the state at the oldest revision still in history, in a file beside the log.
//!
//! The log after a checkpoint *is* the history, so that reopening restores the history too. A checkpoint
//! is complete or absent: it is written under another name, synced and renamed.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use parking_lot::RwLock;

use crate::codec::{
    DecodeError, FRAME_HEADER_LEN, FileKind, HEADER_LEN, Header, VERSION, open_frame, payload_len, read_entries,
    read_frame, seal_frame, write_entry,
};
use crate::disk::{sync_dir, to_write};
use crate::error::OpenError;
use crate::segment::{checkpoint_name, fresh_salt};
use crate::state::{HistoryBounds, State};
use crate::types::{Entry, Revision};

/// The size frames are closed at.
const FRAME_BYTES: usize = 1 << 20;
/// Entries read from the state while its lock is held once.
const PAGE: usize = 512;
/// The end of a checkpoint's name while it is being written.
pub(crate) const UNFINISHED: &str = ".tmp";

/// Writes the state as of `revision` (which the caller has pinned).
pub(crate) fn write(dir: &Path, state: &RwLock<State>, revision: Revision) -> io::Result<()> {
    let path = dir.join(checkpoint_name(revision));
    let unfinished = PathBuf::from(format!("{}{UNFINISHED}", path.display()));
    let written = write_file(&unfinished, state, revision).and_then(|()| fs::rename(&unfinished, &path));
    if let Err(error) = written {
        let _ = fs::remove_file(&unfinished);
        return Err(error);
    }
    sync_dir(dir)
}

fn write_file(path: &Path, state: &RwLock<State>, revision: Revision) -> io::Result<()> {
    let salt = fresh_salt();
    let mut file = to_write().truncate(true).open(path)?;
    file.write_all(&Header { revision, salt }.encode(FileKind::Checkpoint))?;
    let mut frame = Vec::new();
    open_frame(&mut frame, revision);
    let mut after: Option<Entry> = None;
    loop {
        let page = state.read().page(revision, after.as_ref().map(|e| &*e.key), PAGE);
        for entry in &page {
            write_entry(&mut frame, entry);
            if frame.len() >= FRAME_BYTES {
                seal_frame(&mut frame, salt);
                file.write_all(&frame)?;
                open_frame(&mut frame, revision);
            }
        }
        match page.into_iter().next_back() {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    if frame.len() > FRAME_HEADER_LEN {
        seal_frame(&mut frame, salt);
        file.write_all(&frame)?;
    }
    // An empty frame says that nothing is missing.
    open_frame(&mut frame, revision);
    seal_frame(&mut frame, salt);
    file.write_all(&frame)?;
    file.sync_all()
}

/// The state a checkpoint holds.
pub(crate) fn read(path: &Path, bounds: HistoryBounds) -> Result<State, OpenError> {
    let failed = |source| OpenError::io(path, source);
    let corrupt = |offset, error: DecodeError| decode_error(path, offset, error);
    let file = File::open(path).map_err(failed)?;
    let mut left = file.metadata().map_err(failed)?.len();
    let mut file = BufReader::with_capacity(FRAME_BYTES, file);
    let mut take = |buffer: &mut Vec<u8>, len: usize, offset: u64| {
        let start = buffer.len();
        if len as u64 > left {
            return Err(corrupt(offset, DecodeError::Short));
        }
        left -= len as u64;
        buffer.resize(start + len, 0);
        file.read_exact(&mut buffer[start..]).map_err(failed)
    };
    let mut buffer = Vec::new();
    take(&mut buffer, HEADER_LEN, 0)?;
    let header = Header::decode(FileKind::Checkpoint, &buffer).map_err(|e| corrupt(0, e))?;
    let mut state = State::at_checkpoint(header.revision, bounds);
    let mut offset = HEADER_LEN as u64;
    loop {
        buffer.clear();
        take(&mut buffer, FRAME_HEADER_LEN, offset)?;
        let len = payload_len(&buffer).map_err(|e| corrupt(offset, e))?;
        take(&mut buffer, len, offset)?;
        let frame = read_frame(&buffer, header.salt).map_err(|e| corrupt(offset, e))?;
        if frame.payload.is_empty() {
            return Ok(state);
        }
        for entry in read_entries(&frame).map_err(|e| corrupt(offset, e))? {
            state.restore(entry);
        }
        offset += frame.len() as u64;
    }
}

/// What undecodable bytes mean to the one who opens the store.
pub(crate) fn decode_error(path: &Path, offset: u64, error: DecodeError) -> OpenError {
    match error {
        DecodeError::Short => OpenError::corrupt(path, offset, "it ends too early"),
        DecodeError::Version(found) => OpenError::Version { path: path.into(), found, supported: VERSION },
        DecodeError::Bad(what) => OpenError::corrupt(path, offset, what),
    }
}
