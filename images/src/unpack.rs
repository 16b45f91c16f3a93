//! From a layer's tar to a directory as overlayfs wants it.
//!
//! The input is hostile until proven otherwise: every path is resolved inside the target directory by
//! the kernel (`openat2` with `RESOLVE_IN_ROOT`), no symlink leads out, names with `..` are refused,
//! and what an unpacked layer may cost has limits.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use tar::{Archive, Entry, EntryType};

use crate::digest::{Digest, HashingReader};
use crate::error::ImageError;

/// Unpacked bytes of one layer.
const SIZE_LIMIT: u64 = 64 << 30;
/// Files of one layer.
const ENTRY_LIMIT: u64 = 4_000_000;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// A stream, decompressed by what its first bytes say: gzip, zstd, or nothing.
pub(crate) fn decompress<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut reader = BufReader::with_capacity(128 << 10, reader);
    let mut head = Vec::new();
    reader.by_ref().take(4).read_to_end(&mut head)?;
    let whole = io::Cursor::new(head.clone()).chain(reader);
    Ok(match head.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(BufReader::with_capacity(128 << 10, flate2::read::MultiGzDecoder::new(whole))),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(BufReader::with_capacity(128 << 10, Zstd::new(whole)?)),
        _ => Box::new(whole),
    })
}

/// A zstd stream: frames one after the other, with skippable ones between (RFC 8878; zstd:chunked layers
/// have both). The decoder takes one frame at a time.
struct Zstd<R: Read> {
    frame: Option<ruzstd::decoding::StreamingDecoder<Peeked<R>, ruzstd::decoding::FrameDecoder>>,
}

impl<R: Read> Zstd<R> {
    fn new(reader: R) -> io::Result<Zstd<R>> {
        let mut zstd = Zstd { frame: None };
        zstd.next(Peeked { head: io::Cursor::default(), rest: reader })?;
        Ok(zstd)
    }

    fn next(&mut self, mut reader: Peeked<R>) -> io::Result<()> {
        loop {
            let mut magic = Vec::new();
            reader.by_ref().take(4).read_to_end(&mut magic)?;
            match *magic.as_slice() {
                [] => return Ok(()),
                [low, 0x2a, 0x4d, 0x18] if low & 0xf0 == 0x50 => {
                    let mut length = [0; 4];
                    reader.read_exact(&mut length)?;
                    io::copy(&mut reader.by_ref().take(u32::from_le_bytes(length).into()), &mut io::sink())?;
                }
                _ => {
                    reader.head = io::Cursor::new(magic);
                    let frame = ruzstd::decoding::StreamingDecoder::new(reader).map_err(io::Error::other)?;
                    self.frame = Some(frame);
                    return Ok(());
                }
            }
        }
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(mut frame) = self.frame.take() {
            let read = frame.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                self.frame = Some(frame);
                return Ok(read);
            }
            self.next(frame.into_inner())?;
        }
        Ok(0)
    }
}

/// A reader some of whose bytes were looked at and put back.
struct Peeked<R> {
    head: io::Cursor<Vec<u8>>,
    rest: R,
}

impl<R: Read> Read for Peeked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.head.read(buffer)? {
            0 => self.rest.read(buffer),
            read => Ok(read),
        }
    }
}

/// Unpacks a layer into an empty directory and tells the digest of its tar (the diff id).
pub(crate) fn unpack(layer: impl Read, target: &Path) -> Result<Digest, ImageError> {
    let stream = decompress(layer).map_err(ImageError::io("reading a layer"))?;
    let mut archive = Archive::new(HashingReader::new(stream));
    let root = rustix::fs::open(target, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| ImageError::io("opening a layer's directory")(error.into()))?;
    let mut unpacker = Unpacker { root, bytes: 0, dirs: Vec::new() };
    let entries = archive.entries().map_err(broken)?;
    for (count, entry) in entries.enumerate() {
        let mut entry = entry.map_err(broken)?;
        if count as u64 >= ENTRY_LIMIT {
            return Err(ImageError::TooLarge(format!("a layer holds more than {ENTRY_LIMIT} files")));
        }
        unpacker.entry(&mut entry)?;
    }
    unpacker.finish();
    let (digest, _) = archive.into_inner().finish().map_err(broken)?;
    Ok(digest)
}

/// Errors while reading are the archive's fault; those of writing are told where they happen.
fn broken(error: io::Error) -> ImageError {
    ImageError::corrupt(format!("the layer cannot be read: {error}"))
}

struct Unpacker {
    root: OwnedFd,
    bytes: u64,
    /// Directories get their times last: what is put into them changes them.
    dirs: Vec<(PathBuf, Timestamps)>,
}

struct Meta {
    uid: u32,
    gid: u32,
    mode: u32,
    times: Timestamps,
}

impl Unpacker {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), ImageError> {
        let path = clean(&entry.path_bytes())?;
        let kind = entry.header().entry_type();
        if matches!(
            kind,
            EntryType::XGlobalHeader | EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink
        ) {
            return Ok(());
        }
        let failed = |error: rustix::io::Errno| failed(&path, error.into());
        let meta = meta(entry)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // The root itself: only its looks.
            if kind == EntryType::Directory {
                self.looks_of_dir(Path::new("."), &meta).map_err(failed)?;
            }
            return Ok(());
        };
        let parent = self.parent(path.parent().unwrap_or(Path::new(""))).map_err(failed)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.whiteout(&parent, name.as_bytes(), OsStr::from_bytes(hidden), &path);
        }
        let xattrs = xattrs(entry)?;
        match kind {
            EntryType::Directory => {
                make_dir(&parent, &name).map_err(failed)?;
                self.looks_of_dir(&path, &meta).map_err(failed)?;
                self.xattrs(&path, &xattrs).map_err(failed)?;
                return Ok(());
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.bytes += entry.size();
                if self.bytes > SIZE_LIMIT {
                    return Err(ImageError::TooLarge(format!("a layer unpacks to more than {SIZE_LIMIT} bytes")));
                }
                clear(&parent, &name).map_err(failed)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let file = rustix::fs::openat(&parent, &name, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
                copy(entry, File::from(file.try_clone().map_err(|e| self::failed(&path, e))?), &path)?;
                own(&file, &meta).map_err(failed)?;
                for (key, value) in &xattrs {
                    rustix::fs::fsetxattr(&file, key.as_os_str(), value, XattrFlags::empty()).map_err(failed)?;
                }
                rustix::fs::futimens(&file, &meta.times).map_err(failed)?;
                return Ok(());
            }
            EntryType::Link => {
                let target = link_name(entry, &path)?;
                let target = clean(&target)?;
                let source = self.open(&target, OFlags::PATH | OFlags::NOFOLLOW).map_err(|_| {
                    ImageError::corrupt(format!(
                        "{} is a hard link to {}, which the layer does not hold",
                        path.display(),
                        target.display()
                    ))
                })?;
                clear(&parent, &name).map_err(failed)?;
                let by_fd = format!("/proc/self/fd/{}", source.as_raw_fd());
                rustix::fs::linkat(CWD, by_fd, &parent, &name, AtFlags::SYMLINK_FOLLOW).map_err(failed)?;
                return Ok(());
            }
            EntryType::Symlink => {
                let target = link_name(entry, &path)?;
                clear(&parent, &name).map_err(failed)?;
                rustix::fs::symlinkat(OsStr::from_bytes(&target), &parent, &name).map_err(failed)?;
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                let kind = match kind {
                    EntryType::Char => FileType::CharacterDevice,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let header = entry.header();
                let number = |part: io::Result<Option<u32>>| part.ok().flatten().unwrap_or(0);
                let device = rustix::fs::makedev(number(header.device_major()), number(header.device_minor()));
                if kind == FileType::CharacterDevice && device == 0 {
                    // Overlayfs would take it for a whiteout. Nobody has such a device.
                    return Ok(());
                }
                clear(&parent, &name).map_err(failed)?;
                let mode = Mode::from_raw_mode(meta.mode & 0o7777);
                rustix::fs::mknodat(&parent, &name, kind, mode, device).map_err(failed)?;
                rustix::fs::chmodat(&parent, &name, mode, AtFlags::empty()).map_err(failed)?;
            }
            other => return Err(ImageError::corrupt(format!("{} is of an unknown kind ({other:?})", path.display()))),
        }
        let (uid, gid) = ids(&meta);
        rustix::fs::chownat(&parent, &name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        rustix::fs::utimensat(&parent, &name, &meta.times, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }

    /// Opens something inside the root; symlinks lead nowhere else.
    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// The directory an entry goes into; made if the archive forgot to name it.
    fn parent(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.open(path, flags) {
            Err(rustix::io::Errno::NOENT) => {}
            opened => return opened,
        }
        let mut reached = PathBuf::new();
        for part in path.components() {
            let above = self.open(&reached, flags)?;
            reached.push(part);
            if let Err(rustix::io::Errno::NOENT) = self.open(&reached, flags) {
                make_dir(&above, part.as_os_str())?;
            }
        }
        self.open(path, flags)
    }

    fn whiteout(&self, parent: &OwnedFd, name: &[u8], hidden: &OsStr, path: &Path) -> Result<(), ImageError> {
        let failed = |error: rustix::io::Errno| failed(path, error.into());
        if name == OPAQUE {
            return self.opaque(path.parent().unwrap_or(Path::new(""))).map_err(failed);
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        if hidden.is_empty() || hidden == ".." || hidden == "." {
            return Err(ImageError::corrupt(format!("{} hides nothing", path.display())));
        }
        match rustix::fs::statat(parent, hidden, AtFlags::SYMLINK_NOFOLLOW) {
            // The layer both removes and brings it: what it brings is seen, what was below is not.
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => {
                self.opaque(&path.with_file_name(hidden)).map_err(failed)
            }
            Ok(_) => Ok(()),
            Err(_) => rustix::fs::mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0).map_err(failed),
        }
    }

    fn opaque(&self, dir: &Path) -> rustix::io::Result<()> {
        let dir = self.open(dir, OFlags::RDONLY | OFlags::DIRECTORY)?;
        rustix::fs::fsetxattr(&dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())
    }

    fn looks_of_dir(&mut self, path: &Path, meta: &Meta) -> rustix::io::Result<()> {
        let dir = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
        own(&dir, meta)?;
        self.dirs.push((path.to_owned(), meta.times.clone()));
        Ok(())
    }

    fn xattrs(&self, path: &Path, xattrs: &[(std::ffi::OsString, Vec<u8>)]) -> rustix::io::Result<()> {
        if xattrs.is_empty() {
            return Ok(());
        }
        let dir = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        xattrs
            .iter()
            .try_for_each(|(key, value)| rustix::fs::fsetxattr(&dir, key.as_os_str(), value, XattrFlags::empty()))
    }

    fn finish(&self) {
        for (path, times) in self.dirs.iter().rev() {
            // A directory that a later entry replaced has no times to keep.
            if let Ok(dir) = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
                let _ = rustix::fs::futimens(&dir, times);
            }
        }
    }
}

fn failed(path: &Path, error: io::Error) -> ImageError {
    ImageError::io(format!("unpacking {}", path.display()))(error)
}

/// A path of the archive as one below the root.
fn clean(bytes: &[u8]) -> Result<PathBuf, ImageError> {
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(bytes)).components() {
        match part {
            Component::Normal(part) if !part.as_bytes().contains(&0) => path.push(part),
            Component::RootDir | Component::CurDir => {}
            _ => {
                let name = String::from_utf8_lossy(bytes);
                return Err(ImageError::corrupt(format!("the layer holds a path that leads out of it: {name:?}")));
            }
        }
    }
    Ok(path)
}

fn link_name<R: Read>(entry: &Entry<'_, R>, path: &Path) -> Result<Vec<u8>, ImageError> {
    match entry.link_name_bytes() {
        Some(name) if !name.is_empty() => Ok(name.into_owned()),
        _ => Err(ImageError::corrupt(format!("{} is a link to nothing", path.display()))),
    }
}

fn meta<R: Read>(entry: &mut Entry<'_, R>) -> Result<Meta, ImageError> {
    let mut modified = None;
    if let Some(extensions) = entry.pax_extensions().map_err(broken)? {
        for extension in extensions.flatten() {
            if extension.key_bytes() == b"mtime" {
                modified = extension.value().ok().and_then(parse_time);
            }
        }
    }
    let header = entry.header();
    let number = |value: io::Result<u64>| value.ok().and_then(|value| u32::try_from(value).ok()).unwrap_or(0);
    let seconds = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
    let time = modified.unwrap_or(Timespec { tv_sec: seconds, tv_nsec: 0 });
    Ok(Meta {
        uid: number(header.uid()),
        gid: number(header.gid()),
        mode: header.mode().unwrap_or(0o644) & 0o7777,
        times: Timestamps { last_access: time, last_modification: time },
    })
}

/// `1700000000.123`, as PAX headers have it.
fn parse_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let tv_sec = seconds.parse().ok()?;
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    Some(Timespec { tv_sec, tv_nsec: digits.parse().ok()? })
}

/// Only those that are the image's business: overlayfs' own (`trusted.overlay.…`) would let an image
/// point at files of the host.
fn xattrs<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<(std::ffi::OsString, Vec<u8>)>, ImageError> {
    let mut found = Vec::new();
    if let Some(extensions) = entry.pax_extensions().map_err(broken)? {
        for extension in extensions.flatten() {
            if let Some(key) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.")
                && (key.starts_with(b"user.") || key == b"security.capability")
            {
                found.push((OsStr::from_bytes(key).to_owned(), extension.value_bytes().to_vec()));
            }
        }
    }
    Ok(found)
}

fn copy<R: Read>(from: &mut Entry<'_, R>, mut to: File, path: &Path) -> Result<(), ImageError> {
    use std::io::Write;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(broken(error)),
        };
        to.write_all(&buffer[..read]).map_err(|error| failed(path, error))?;
    }
}

fn ids(meta: &Meta) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))
}

/// Owner first: changing it clears the set-id bits.
fn own(file: impl AsFd, meta: &Meta) -> rustix::io::Result<()> {
    let (uid, gid) = ids(meta);
    rustix::fs::fchown(&file, uid, gid)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(meta.mode))
}

/// Makes a directory, or keeps the one there is; whatever else is there goes.
fn make_dir(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Err(rustix::io::Errno::EXIST) => {}
        result => return result,
    }
    let found = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
        return Ok(());
    }
    let was_whiteout = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice && found.st_rdev == 0;
    rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    if was_whiteout {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        rustix::fs::fsetxattr(&dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())?;
    }
    Ok(())
}

/// Takes away what is in an entry's place: a later entry of an archive wins.
fn clear(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => clear_dir(parent, name),
        Err(error) => Err(error),
    }
}

fn clear_dir(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        let child = OsStr::from_bytes(entry.file_name().to_bytes());
        if child != "." && child != ".." {
            clear(&dir, child)?;
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

#[cfg(test)]
mod tests;
