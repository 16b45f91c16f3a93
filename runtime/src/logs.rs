//! The log of a container, in CRI's format: one line per line, each with a time, a stream and a tag.
//!
//! Owns the format and the file; never reads a container's stream itself.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// A line longer than this is cut into parts (tag `P`), as containerd and CRI-O do.
pub const LINE_LIMIT: usize = 16 * 1024;

/// Where a piece of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output; everything, with a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl LogStream {
    fn word(self) -> &'static [u8] {
        match self {
            LogStream::Stdout => b" stdout ",
            LogStream::Stderr => b" stderr ",
        }
    }
}

/// One line of a log file, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// RFC 3339 with nanoseconds, as written.
    pub time: &'a str,
    /// Where it came from.
    pub stream: LogStream,
    /// More of the same line follows in a later one.
    pub partial: bool,
    /// The text, without the newline.
    pub text: &'a [u8],
}

/// Takes one line (with or without its newline) apart; `None` when it is not in the format.
pub fn parse(line: &[u8]) -> Option<LogLine<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = match parts.next()? {
        b"stdout" => LogStream::Stdout,
        b"stderr" => LogStream::Stderr,
        _ => return None,
    };
    let tag = parts.next()?;
    Some(LogLine { time, stream, partial: tag.split(|b| *b == b':').next() == Some(b"P"), text: parts.next()? })
}

/// Cuts one stream's bytes into lines. The clock is given; the output is appended to a buffer.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    pending: Vec<u8>,
}

impl Splitter {
    /// Takes a piece of the stream and writes what is complete.
    pub(crate) fn push(&mut self, now: &str, stream: LogStream, mut bytes: &[u8], out: &mut Vec<u8>) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.fill(now, stream, &bytes[..end], out);
            self.flush(now, stream, b"F ", out);
            bytes = &bytes[end + 1..];
        }
        self.fill(now, stream, bytes, out);
    }

    /// The stream has ended: an unfinished line is written as it is.
    pub(crate) fn finish(&mut self, now: &str, stream: LogStream, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.flush(now, stream, b"F ", out);
        }
    }

    fn fill(&mut self, now: &str, stream: LogStream, mut bytes: &[u8], out: &mut Vec<u8>) {
        while self.pending.len() + bytes.len() > LINE_LIMIT {
            let (head, rest) = bytes.split_at(LINE_LIMIT - self.pending.len());
            self.pending.extend_from_slice(head);
            self.flush(now, stream, b"P ", out);
            bytes = rest;
        }
        self.pending.extend_from_slice(bytes);
    }

    fn flush(&mut self, now: &str, stream: LogStream, tag: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(now.as_bytes());
        out.extend_from_slice(stream.word());
        out.extend_from_slice(tag);
        out.append(&mut self.pending);
        out.push(b'\n');
    }
}

/// The time as logs hold it.
pub(crate) fn stamp(now: Timestamp) -> String {
    format!("{now:.9}")
}

/// An open log file.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    /// Opens for appending; makes the directories above it.
    pub(crate) fn open(path: &Path) -> io::Result<LogFile> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(LogFile { path: path.to_owned(), file })
    }

    /// After a rotation renamed the file.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        *self = LogFile::open(&self.path)?;
        Ok(())
    }

    /// Appends. A full disk loses the piece: blocking the container for it would be worse.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        let _ = self.file.write_all(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<u8> {
        let mut splitter = Splitter::default();
        let mut out = Vec::new();
        for piece in pieces {
            splitter.push("T", LogStream::Stdout, piece, &mut out);
        }
        splitter.finish("T", LogStream::Stdout, &mut out);
        out
    }

    #[test]
    fn the_format_is_cri() {
        assert_eq!(
            split(&[b"one\ntw", b"o\n", b"\nthree"]),
            b"T stdout F one\nT stdout F two\nT stdout F \nT stdout F three\n"
        );
        let at: Timestamp = "2026-01-02T03:04:05.6Z".parse().unwrap();
        assert_eq!(stamp(at), "2026-01-02T03:04:05.600000000Z");
    }

    #[test]
    fn a_long_line_is_cut_at_16_kib_and_a_line_of_exactly_that_is_whole() {
        let long = vec![b'x'; LINE_LIMIT + 5];
        let out = split(&[&long, b"\n"]);
        let lines: Vec<_> = out.split_inclusive(|b| *b == b'\n').map(|l| parse(l).unwrap()).collect();
        assert_eq!(
            lines.iter().map(|l| (l.partial, l.text.len())).collect::<Vec<_>>(),
            [(true, LINE_LIMIT), (false, 5)]
        );
        let exact = vec![b'x'; LINE_LIMIT];
        let out = split(&[&exact, b"\n"]);
        assert_eq!(parse(&out).map(|l| (l.partial, l.text.len())), Some((false, LINE_LIMIT)));
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_however_the_stream_is_cut(
            text in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200), cut in 1usize..50, repeat in 1usize..400,
        ) {
            let text: Vec<u8> = text.repeat(repeat);
            let pieces: Vec<&[u8]> = text.chunks(cut * 100).collect();
            let out = split(&pieces);
            let mut back = Vec::new();
            for line in out.split_inclusive(|b| *b == b'\n') {
                let line = parse(line).unwrap();
                back.extend_from_slice(line.text);
                if !line.partial {
                    back.push(b'\n');
                }
            }
            if !text.is_empty() && !text.ends_with(b"\n") {
                prop_assert_eq!(back.pop(), Some(b'\n'));
            }
            prop_assert_eq!(back, text);
        }
    }
}
