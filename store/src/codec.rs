//! The bytes of a log segment and of a checkpoint: headers, checked frames, records. Pure.
//!
//! A file is a header followed by frames. All integers are little-endian.
//!
//! ```text
//! header  magic [8] | version u32 | revision u64 | salt u64 | crc32 u32           (32 bytes)
//! frame   magic u32 | payload length u32 | first revision u64 | crc32 u32 | payload
//! record  changes u32, then per change: kind u8 | key length u32 | key | [value length u32 | value]
//! entry   key length u32 | key | created u64 | modified u64 | value length u32 | value
//! ```
//!
//! The checksum of a frame starts from the file's salt, so that a frame stored as part of a value is
//! never taken for a frame of the file.

use std::sync::Arc;

use bytes::Bytes;

use crate::state::{Change, Record};
use crate::types::{Entry, Revision};

/// The version of the format that this program writes and reads.
pub(crate) const VERSION: u32 = 1;
pub(crate) const HEADER_LEN: usize = 32;
pub(crate) const FRAME_HEADER_LEN: usize = 20;
const FRAME_MAGIC: u32 = 0x6d72_6670; // "pfrm"

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Log,
    Checkpoint,
    Backup,
}

impl FileKind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            FileKind::Log => b"PROALOG\n",
            FileKind::Checkpoint => b"PROACKP\n",
            FileKind::Backup => b"PROABKP\n",
        }
    }
}

/// The first bytes of a file. In a log, `revision` is that of the first record it may hold; in a
/// checkpoint, the revision it was taken at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) revision: Revision,
    pub(crate) salt: u64,
}

/// Why bytes were not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DecodeError {
    /// The bytes end before the frame or header does.
    Short,
    /// Written by another version of the format.
    Version(u32),
    /// They are something else.
    Bad(&'static str),
}

impl Header {
    pub(crate) fn encode(self, kind: FileKind) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..8].copy_from_slice(kind.magic());
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..20].copy_from_slice(&self.revision.0.to_le_bytes());
        out[20..28].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32fast::hash(&out[..28]);
        out[28..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(kind: FileKind, bytes: &[u8]) -> Result<Header, DecodeError> {
        let mut input = Input(bytes.get(..HEADER_LEN).ok_or(DecodeError::Short)?);
        if input.take(8)? != kind.magic() {
            return Err(DecodeError::Bad("it does not begin as such a file does"));
        }
        // Before the checksum: another version may well compute it in another way.
        let version = input.u32()?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let (revision, salt, crc) = (Revision(input.u64()?), input.u64()?, input.u32()?);
        if crc != crc32fast::hash(&bytes[..28]) {
            return Err(DecodeError::Bad("the header's checksum does not match"));
        }
        Ok(Header { revision, salt })
    }
}

/// A frame whose checksum matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) first: Revision,
    pub(crate) payload: &'a [u8],
}

impl Frame<'_> {
    pub(crate) fn len(&self) -> usize {
        FRAME_HEADER_LEN + self.payload.len()
    }
}

/// Starts a frame in an empty buffer; the payload is then appended, and [`seal_frame`] completes it.
pub(crate) fn open_frame(out: &mut Vec<u8>, first: Revision) {
    out.clear();
    out.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&first.0.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
}

/// Fills in the length and the checksum of the frame that is the whole buffer.
pub(crate) fn seal_frame(out: &mut [u8], salt: u64) {
    let len = u32::try_from(out.len() - FRAME_HEADER_LEN).expect("a frame is bounded far below 4 GiB");
    out[4..8].copy_from_slice(&len.to_le_bytes());
    let crc = frame_crc(salt, &out[..16], &out[FRAME_HEADER_LEN..]);
    out[16..20].copy_from_slice(&crc.to_le_bytes());
}

fn frame_crc(salt: u64, head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}

/// The length of a frame's payload, from its header alone (not checked yet).
pub(crate) fn payload_len(head: &[u8]) -> Result<usize, DecodeError> {
    let mut input = Input(head.get(..FRAME_HEADER_LEN).ok_or(DecodeError::Short)?);
    if input.u32()? != FRAME_MAGIC {
        return Err(DecodeError::Bad("no frame begins here"));
    }
    Ok(input.u32()? as usize)
}

/// The frame at the beginning of `bytes`.
pub(crate) fn read_frame(bytes: &[u8], salt: u64) -> Result<Frame<'_>, DecodeError> {
    let len = payload_len(bytes)?;
    let payload = bytes.get(FRAME_HEADER_LEN..FRAME_HEADER_LEN + len).ok_or(DecodeError::Short)?;
    let mut input = Input(&bytes[8..FRAME_HEADER_LEN]);
    let (first, crc) = (Revision(input.u64()?), input.u32()?);
    if crc != frame_crc(salt, &bytes[..16], payload) {
        return Err(DecodeError::Bad("the frame's checksum does not match"));
    }
    Ok(Frame { first, payload })
}

/// Whether a whole frame begins anywhere in `bytes`.
pub(crate) fn holds_a_frame(bytes: &[u8], salt: u64) -> bool {
    let magic = FRAME_MAGIC.to_le_bytes();
    (0..bytes.len().saturating_sub(FRAME_HEADER_LEN - 1))
        .any(|at| bytes[at..].starts_with(&magic) && read_frame(&bytes[at..], salt).is_ok())
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const DELETE_WITH_LAST: u8 = 3;

/// Appends one record to an open frame.
pub(crate) fn write_record(out: &mut Vec<u8>, changes: &[Change]) {
    out.extend_from_slice(&(changes.len() as u32).to_le_bytes());
    for change in changes {
        match change {
            Change::Put { key, bytes } => {
                out.push(PUT);
                write_bytes(out, key.as_bytes());
                write_bytes(out, bytes);
            }
            Change::Delete { key, last: None } => {
                out.push(DELETE);
                write_bytes(out, key.as_bytes());
            }
            Change::Delete { key, last: Some(last) } => {
                out.push(DELETE_WITH_LAST);
                write_bytes(out, key.as_bytes());
                write_bytes(out, last);
            }
        }
    }
}

/// The records of a frame, numbered from its first revision on.
pub(crate) fn read_records(frame: &Frame<'_>) -> Result<Vec<Record>, DecodeError> {
    let mut input = Input(frame.payload);
    let (mut records, mut revision) = (Vec::new(), frame.first);
    while !input.0.is_empty() {
        let count = input.u32()?;
        let mut changes = Vec::with_capacity(count.min(1024) as usize);
        for _ in 0..count {
            let kind = input.u8()?;
            let key = input.text()?;
            changes.push(match kind {
                PUT => Change::Put { key, bytes: input.bytes()? },
                DELETE => Change::Delete { key, last: None },
                DELETE_WITH_LAST => Change::Delete { key, last: Some(input.bytes()?) },
                _ => return Err(DecodeError::Bad("a change of unknown kind")),
            });
        }
        records.push(Record { revision, changes });
        revision = revision.next();
    }
    Ok(records)
}

/// Appends one entry to an open frame of a checkpoint.
pub(crate) fn write_entry(out: &mut Vec<u8>, entry: &Entry) {
    write_bytes(out, entry.key.as_bytes());
    out.extend_from_slice(&entry.created.0.to_le_bytes());
    out.extend_from_slice(&entry.modified.0.to_le_bytes());
    write_bytes(out, &entry.bytes);
}

/// The entries of a checkpoint's frame.
pub(crate) fn read_entries(frame: &Frame<'_>) -> Result<Vec<Entry>, DecodeError> {
    let (mut input, mut entries) = (Input(frame.payload), Vec::new());
    while !input.0.is_empty() {
        let key = input.text()?;
        let (created, modified) = (Revision(input.u64()?), Revision(input.u64()?));
        entries.push(Entry { key, bytes: input.bytes()?, created, modified });
    }
    Ok(entries)
}

fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(DecodeError::Short)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.take(N)?.try_into().map_err(|_| DecodeError::Short)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A copy with a buffer of its own: the file's buffer must not stay alive behind one small value.
    fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let len = self.u32()? as usize;
        Ok(Bytes::copy_from_slice(self.take(len)?))
    }

    fn text(&mut self) -> Result<Arc<str>, DecodeError> {
        let len = self.u32()? as usize;
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| DecodeError::Bad("a key is not UTF-8"))?;
        Ok(text.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change() -> impl Strategy<Value = Change> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        prop_oneof![
            ("[a-z/]{0,12}", bytes()).prop_map(|(key, bytes)| Change::Put { key: key.into(), bytes }),
            ("[a-z/]{0,12}", proptest::option::of(bytes()))
                .prop_map(|(key, last)| Change::Delete { key: key.into(), last }),
        ]
    }

    fn frame(salt: u64, first: Revision, records: &[Vec<Change>]) -> Vec<u8> {
        let mut out = Vec::new();
        open_frame(&mut out, first);
        for changes in records {
            write_record(&mut out, changes);
        }
        seal_frame(&mut out, salt);
        out
    }

    proptest! {
        #[test]
        fn records_read_back_as_written(
            records in proptest::collection::vec(proptest::collection::vec(change(), 0..4), 1..4),
            salt: u64,
        ) {
            let bytes = frame(salt, Revision(7), &records);
            let read = read_records(&read_frame(&bytes, salt).unwrap()).unwrap();
            prop_assert_eq!(read.iter().map(|r| r.revision.0).collect::<Vec<_>>(), (7..7 + records.len() as u64).collect::<Vec<_>>());
            prop_assert_eq!(read.into_iter().map(|r| r.changes).collect::<Vec<_>>(), records);
        }

        #[test]
        fn no_flipped_bit_goes_unseen(records in proptest::collection::vec(proptest::collection::vec(change(), 0..4), 1..3), at: proptest::sample::Index) {
            let mut bytes = frame(3, Revision(7), &records);
            let bit = at.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(read_frame(&bytes, 3).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Header::decode(FileKind::Log, &bytes);
            let _ = read_frame(&bytes, 0);
            let frame = Frame { first: Revision(1), payload: &bytes };
            let _ = read_records(&frame);
            let _ = read_entries(&frame);
        }
    }

    #[test]
    fn a_frame_inside_a_value_is_not_taken_for_one() {
        let inner = frame(1, Revision(9), &[vec![Change::Delete { key: "a".into(), last: None }]]);
        assert!(holds_a_frame(&inner, 1));
        assert!(!holds_a_frame(&inner, 2));
    }

    #[test]
    fn a_header_says_what_and_which_version_it_is() {
        let header = Header { revision: Revision(5), salt: 9 };
        let bytes = header.encode(FileKind::Log);
        assert_eq!(Header::decode(FileKind::Log, &bytes), Ok(header));
        assert!(matches!(Header::decode(FileKind::Checkpoint, &bytes), Err(DecodeError::Bad(_))));
        assert_eq!(Header::decode(FileKind::Log, &bytes[..31]), Err(DecodeError::Short));
    }
}
