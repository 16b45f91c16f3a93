//! Opening: the newest checkpoint, then the log after it. Starting *is* recovering.
//!
//! A crash can only tear the frame that was being written, which is the last one of the last segment: it
//! is cut off. Damage anywhere else is an error, and nothing is changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::checkpoint::{self, UNFINISHED};
use crate::codec::{DecodeError, FileKind, HEADER_LEN, Header, holds_a_frame, read_frame, read_records};
use crate::disk::{Disk, sync_dir};
use crate::entries::decode_error;
use crate::error::OpenError;
use crate::segment::{Active, Sealed, Segments, parse_name};
use crate::state::{HistoryBounds, State};
use crate::types::Revision;

/// What a directory holds.
pub(crate) struct Recovered {
    pub(crate) state: State,
    pub(crate) segments: Segments,
    /// The revision of the newest checkpoint.
    pub(crate) checkpoint: Option<Revision>,
}

/// The state and the log of a directory. The caller holds the directory's lock.
pub(crate) fn recover(
    dir: &Path,
    disk: Arc<dyn Disk>,
    bounds: HistoryBounds,
    segment_bytes: u64,
) -> Result<Recovered, OpenError> {
    let files = Files::list(dir)?;
    let mut state = match files.checkpoints.last() {
        Some((_, path)) => checkpoint::read(path, bounds)?,
        None => State::new(bounds),
    };
    let base = state.revision();
    let first_needed = files.logs.partition_point(|(first, _)| *first <= base.next()).saturating_sub(1);
    let (unneeded, needed) = files.logs.split_at(first_needed);

    let mut sealed = Vec::new();
    let mut active = None;
    for (i, (first, path)) in needed.iter().enumerate() {
        let last_file = i + 1 == needed.len();
        match replay(path, *first, &mut state, last_file)? {
            Replayed::NeverBegun => fs::remove_file(path).map_err(|e| OpenError::io(path, e))?,
            Replayed::Whole { salt, len, file_len } if last_file => {
                active = Some(reopen(disk.as_ref(), path, salt, len, file_len)?);
            }
            Replayed::Whole { len, .. } => sealed.push(Sealed { path: path.clone(), last: state.revision(), len }),
        }
    }
    let active = match active {
        Some(active) => active,
        None => Active::create(disk.as_ref(), dir, state.revision().next()).map_err(|e| OpenError::io(dir, e))?,
    };

    let superseded = files.checkpoints.iter().rev().skip(1).chain(unneeded).map(|(_, path)| path);
    for path in superseded.chain(&files.unfinished) {
        fs::remove_file(path).map_err(|e| OpenError::io(path, e))?;
    }
    sync_dir(dir).map_err(|e| OpenError::io(dir, e))?;
    let segments = Segments { dir: dir.into(), disk, sealed, active, segment_bytes };
    Ok(Recovered { state, segments, checkpoint: files.checkpoints.last().map(|(revision, _)| *revision) })
}

/// How often a directory that changes while it is looked at is looked at again.
const LOOKS: usize = 10;

/// The newest state of a directory, whether or not a process has it open: nothing is changed there. Everything that
/// process had acknowledged before the call is in it.
pub(crate) fn look(dir: &Path, bounds: HistoryBounds) -> Result<State, OpenError> {
    let mut looks = 0;
    loop {
        looks += 1;
        match look_once(dir, bounds) {
            // A checkpoint was written meanwhile, and what it replaces removed.
            Err(OpenError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound && looks < LOOKS => {}
            outcome => return outcome,
        }
    }
}

fn look_once(dir: &Path, bounds: HistoryBounds) -> Result<State, OpenError> {
    let files = Files::list(dir)?;
    let mut state = match files.checkpoints.last() {
        Some((_, path)) => checkpoint::read(path, bounds)?,
        None => State::new(bounds),
    };
    let first_needed = files.logs.partition_point(|(first, _)| *first <= state.revision().next()).saturating_sub(1);
    let needed = &files.logs[first_needed..];
    for (i, (first, path)) in needed.iter().enumerate() {
        replay(path, *first, &mut state, i + 1 == needed.len())?;
    }
    Ok(state)
}

/// Whether there is a store in a directory, or the beginning of one.
pub(crate) fn is_empty(dir: &Path) -> Result<bool, OpenError> {
    match Files::list(dir) {
        Ok(files) => Ok(files.logs.is_empty() && files.checkpoints.is_empty()),
        Err(OpenError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// What is in the directory, each kind in revision order.
#[derive(Default)]
struct Files {
    logs: Vec<(Revision, PathBuf)>,
    checkpoints: Vec<(Revision, PathBuf)>,
    unfinished: Vec<PathBuf>,
}

impl Files {
    fn list(dir: &Path) -> Result<Files, OpenError> {
        let mut files = Files::default();
        for item in fs::read_dir(dir).map_err(|e| OpenError::io(dir, e))? {
            let path = item.map_err(|e| OpenError::io(dir, e))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            match parse_name(name) {
                Some((FileKind::Log, first)) => files.logs.push((first, path)),
                Some((FileKind::Checkpoint, revision)) => files.checkpoints.push((revision, path)),
                None if name.ends_with(UNFINISHED) => files.unfinished.push(path),
                Some((FileKind::Backup, _)) | None => {}
            }
        }
        files.logs.sort();
        files.checkpoints.sort();
        Ok(files)
    }
}

enum Replayed {
    /// The segment was being created when the process died: it holds no frame.
    NeverBegun,
    /// Everything up to `len` was replayed; what follows in the last segment is a torn tail.
    Whole { salt: u64, len: u64, file_len: u64 },
}

fn replay(path: &Path, first: Revision, state: &mut State, last_file: bool) -> Result<Replayed, OpenError> {
    let bytes = fs::read(path).map_err(|e| OpenError::io(path, e))?;
    let header = match Header::decode(FileKind::Log, &bytes) {
        Ok(header) if header.revision == first => header,
        Ok(_) => return Err(OpenError::corrupt(path, 0, "its name and its header differ")),
        Err(DecodeError::Version(found)) => return Err(decode_error(path, 0, DecodeError::Version(found))),
        Err(_) if last_file && bytes.len() <= HEADER_LEN => return Ok(Replayed::NeverBegun),
        Err(error) => return Err(decode_error(path, 0, error)),
    };
    if first > state.revision().next() {
        let missing = format!("the log between revisions {} and {first} is missing", state.revision());
        return Err(OpenError::corrupt(path, 0, missing));
    }
    let now = Instant::now();
    let mut at = HEADER_LEN;
    while at < bytes.len() {
        let frame = match read_frame(&bytes[at..], header.salt) {
            Ok(frame) => frame,
            Err(_) if last_file && !holds_a_frame(&bytes[at + 1..], header.salt) => {
                tracing::warn!(path = %path.display(), offset = at, bytes = bytes.len() - at, "cutting a torn write off the log");
                break;
            }
            Err(error) => return Err(decode_error(path, at as u64, error)),
        };
        let mut records = read_records(&frame).map_err(|e| decode_error(path, at as u64, e))?;
        records.retain(|record| record.revision > state.revision());
        if let Some(record) = records.first() {
            if record.revision != state.revision().next() {
                let gap = format!("revision {} follows revision {}", record.revision, state.revision());
                return Err(OpenError::corrupt(path, at as u64, gap));
            }
            state.apply(records, now);
        }
        at += frame.len();
    }
    Ok(Replayed::Whole { salt: header.salt, len: at as u64, file_len: bytes.len() as u64 })
}

fn reopen(disk: &dyn Disk, path: &Path, salt: u64, len: u64, file_len: u64) -> Result<Active, OpenError> {
    let failed = |e| OpenError::io(path, e);
    let mut medium = disk.open(path).map_err(failed)?;
    if file_len > len {
        medium.truncate(len).map_err(failed)?;
    }
    // Also when nothing is cut: the last frame may have reached the page cache and no further before
    // the process died. From here on it counts as committed, so it must be on the disk.
    medium.sync().map_err(failed)?;
    Ok(Active { path: path.into(), salt, len, medium, dirty: false })
}
