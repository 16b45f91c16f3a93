//! A file of entries at one revision: a checkpoint of a store, or a backup.
//!
//! ```text
//! header | frames of entries | a frame without any: nothing is missing
//! ```
//!
//! Written and read piece by piece: a file is never in memory as a whole.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use crate::codec::{
    DecodeError, FRAME_HEADER_LEN, FileKind, HEADER_LEN, Header, VERSION, open_frame, payload_len, read_entries,
    read_frame, seal_frame, write_entry,
};
use crate::disk::to_write;
use crate::error::OpenError;
use crate::segment::fresh_salt;
use crate::types::{Entry, Revision};

/// The size frames are closed at.
const FRAME_BYTES: usize = 1 << 20;

/// A file of entries being written; nobody but its owner may read it.
pub(crate) struct EntriesWriter {
    file: File,
    frame: Vec<u8>,
    revision: Revision,
    salt: u64,
}

impl EntriesWriter {
    pub(crate) fn create(kind: FileKind, path: &Path, revision: Revision) -> io::Result<EntriesWriter> {
        let salt = fresh_salt();
        let mut file = to_write().truncate(true).open(path)?;
        file.write_all(&Header { revision, salt }.encode(kind))?;
        let mut frame = Vec::new();
        open_frame(&mut frame, revision);
        Ok(EntriesWriter { file, frame, revision, salt })
    }

    pub(crate) fn push(&mut self, entry: &Entry) -> io::Result<()> {
        write_entry(&mut self.frame, entry);
        if self.frame.len() >= FRAME_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        seal_frame(&mut self.frame, self.salt);
        self.file.write_all(&self.frame)?;
        open_frame(&mut self.frame, self.revision);
        Ok(())
    }

    /// Complete, and on the disk.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        if self.frame.len() > FRAME_HEADER_LEN {
            self.flush()?;
        }
        self.flush()?;
        self.file.sync_all()
    }
}

/// A file of entries being read.
pub(crate) struct EntriesReader {
    path: PathBuf,
    file: BufReader<File>,
    left: u64,
    offset: u64,
    header: Header,
    buffer: Vec<u8>,
}

impl EntriesReader {
    pub(crate) fn open(kind: FileKind, path: &Path) -> Result<EntriesReader, OpenError> {
        let failed = |source| OpenError::io(path, source);
        let file = File::open(path).map_err(failed)?;
        let left = file.metadata().map_err(failed)?.len();
        let file = BufReader::with_capacity(FRAME_BYTES, file);
        // The header is read over in a moment.
        let header = Header { revision: Revision(0), salt: 0 };
        let mut reader = EntriesReader { path: path.into(), file, left, offset: 0, header, buffer: Vec::new() };
        reader.take(HEADER_LEN)?;
        reader.header = Header::decode(kind, &reader.buffer).map_err(|error| reader.corrupt(error))?;
        reader.offset = HEADER_LEN as u64;
        Ok(reader)
    }

    pub(crate) fn revision(&self) -> Revision {
        self.header.revision
    }

    /// The entries of the next frame; none at the end, when the file is whole.
    pub(crate) fn entries(&mut self) -> Result<Option<Vec<Entry>>, OpenError> {
        self.buffer.clear();
        self.take(FRAME_HEADER_LEN)?;
        let len = payload_len(&self.buffer).map_err(|error| self.corrupt(error))?;
        self.take(len)?;
        let frame = read_frame(&self.buffer, self.header.salt).map_err(|error| self.corrupt(error))?;
        if frame.payload.is_empty() {
            return Ok(None);
        }
        let entries = read_entries(&frame).map_err(|error| self.corrupt(error))?;
        self.offset += self.buffer.len() as u64;
        Ok(Some(entries))
    }

    fn take(&mut self, len: usize) -> Result<(), OpenError> {
        if len as u64 > self.left {
            return Err(self.corrupt(DecodeError::Short));
        }
        self.left -= len as u64;
        let start = self.buffer.len();
        self.buffer.resize(start + len, 0);
        self.file.read_exact(&mut self.buffer[start..]).map_err(|source| OpenError::io(&self.path, source))
    }

    fn corrupt(&self, error: DecodeError) -> OpenError {
        decode_error(&self.path, self.offset, error)
    }
}

/// What undecodable bytes mean to the one who opens a file.
pub(crate) fn decode_error(path: &Path, offset: u64, error: DecodeError) -> OpenError {
    match error {
        DecodeError::Short => OpenError::corrupt(path, offset, "it ends too early"),
        DecodeError::Version(found) => OpenError::Version { path: path.into(), found, supported: VERSION },
        DecodeError::Bad(what) => OpenError::corrupt(path, offset, what),
    }
}
