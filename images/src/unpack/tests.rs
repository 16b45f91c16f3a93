use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use proptest::prelude::*;
use tar::{Builder, Header};

use super::*;

/// A tar under construction, hostile names allowed.
pub(super) struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Tar {
        Tar(Builder::new(Vec::new()))
    }

    fn add(mut self, kind: EntryType, name: &str, link: &str, body: &[u8]) -> Tar {
        let mut header = Header::new_gnu();
        // Past the crate's own checks: an attacker does not use them.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(body.len() as u64);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o640 });
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_600_000_000);
        header.set_cksum();
        self.0.append(&header, body).unwrap();
        self
    }

    fn file(self, name: &str, body: &str) -> Tar {
        self.add(EntryType::Regular, name, "", body.as_bytes())
    }

    fn dir(self, name: &str) -> Tar {
        self.add(EntryType::Directory, name, "", b"")
    }

    fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

struct Unpacked {
    dir: tempfile::TempDir,
}

impl Unpacked {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("layer").join(name)
    }
}

fn unpacked(tar: &[u8]) -> Result<Unpacked, ImageError> {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("layer")).unwrap();
    fs::write(dir.path().join("outside"), "safe").unwrap();
    let result = unpack(tar, &dir.path().join("layer"));
    assert_eq!(fs::read_to_string(dir.path().join("outside")).unwrap(), "safe");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something was made outside");
    let digest = result?;
    assert_eq!(digest, Digest::of(tar));
    Ok(Unpacked { dir })
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_char_device() && found.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 4];
    rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value[..]).is_ok_and(|length| &value[..length] == b"y")
}

#[test]
fn owners_modes_times_and_links_are_kept() {
    let tar = Tar::new()
        .dir("etc")
        .file("etc/config", "x")
        .add(EntryType::Link, "etc/same", "etc/config", b"")
        .add(EntryType::Symlink, "etc/link", "/nowhere", b"")
        .add(EntryType::Fifo, "etc/pipe", "", b"")
        .done();
    let layer = unpacked(&tar).unwrap();
    let found = fs::metadata(layer.path("etc/config")).unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777, found.mtime()), (1000, 1001, 0o640, 1_600_000_000));
    assert_eq!(fs::metadata(layer.path("etc/same")).unwrap().ino(), found.ino());
    assert_eq!(fs::metadata(layer.path("etc")).unwrap().mtime(), 1_600_000_000, "a directory's time is set last");
    let link = fs::symlink_metadata(layer.path("etc/link")).unwrap();
    assert_eq!((link.uid(), link.mtime()), (1000, 1_600_000_000));
    assert!(fs::metadata(layer.path("etc/pipe")).unwrap().file_type().is_fifo());
}

#[test]
fn whiteouts_become_what_overlayfs_wants() {
    let tar = Tar::new()
        .dir("a")
        .file("a/.wh.gone", "")
        .dir("b")
        .file("b/.wh..wh..opq", "")
        .file("b/kept", "x")
        .dir("c")
        .file("c/.wh.replaced", "")
        .dir("c/replaced")
        .dir("d")
        .dir("d/both")
        .file("d/.wh.both", "")
        .file(".wh..wh.plnk", "")
        .done();
    let layer = unpacked(&tar).unwrap();
    assert!(is_whiteout(&layer.path("a/gone")));
    assert!(is_opaque(&layer.path("b")) && layer.path("b/kept").is_file());
    assert!(is_opaque(&layer.path("c/replaced")) && is_opaque(&layer.path("d/both")));
    assert!(!layer.path("b/.wh..wh..opq").exists() && !layer.path(".wh..wh.plnk").exists());
}

#[test]
fn no_entry_reaches_outside() {
    for name in ["../escaped", "a/../../escaped", "/../escaped"] {
        assert!(matches!(unpacked(&Tar::new().file(name, "x").done()), Err(ImageError::Corrupt(_))), "{name}");
    }
    // An absolute path means the layer's own root.
    assert!(unpacked(&Tar::new().file("/etc/x", "x").done()).unwrap().path("etc/x").is_file());
    // A symlink that points out leads to the same place inside.
    let through =
        Tar::new().add(EntryType::Symlink, "out", "../../..", b"").file("out/outside", "written through a link").done();
    assert!(unpacked(&through).unwrap().path("outside").is_file());
    let absolute = Tar::new().dir("tmp").add(EntryType::Symlink, "t", "/tmp", b"").file("t/x", "x").done();
    assert!(unpacked(&absolute).unwrap().path("tmp/x").is_file());
    // A link to a file outside is a link to nothing.
    for target in ["../outside", "/etc/passwd"] {
        let hard = Tar::new().add(EntryType::Link, "l", target, b"").done();
        assert!(matches!(unpacked(&hard), Err(ImageError::Corrupt(_))), "{target}");
    }
    // A file in a link's place replaces the link, not what it points at.
    let over = Tar::new().add(EntryType::Symlink, "l", "../outside", b"").file("l", "mine").done();
    assert_eq!(fs::read_to_string(unpacked(&over).unwrap().path("l")).unwrap(), "mine");
}

#[test]
fn a_later_entry_wins_whatever_was_there() {
    let tar = Tar::new().dir("x").file("x/y", "1").file("x", "now a file").dir("z").file("z/f", "1").dir("z").done();
    let layer = unpacked(&tar).unwrap();
    assert_eq!(fs::read_to_string(layer.path("x")).unwrap(), "now a file");
    assert!(layer.path("z/f").is_file(), "naming a directory again does not empty it");
}

#[test]
fn what_is_cut_off_or_not_a_tar_is_an_error() {
    let tar = Tar::new().file("a", &"x".repeat(5000)).done();
    assert!(unpacked(&tar[..2000]).is_err());
    assert!(unpacked(&[7; 4096]).is_err());
}

#[test]
fn gzip_and_zstd_are_told_by_their_first_bytes() {
    let tar = Tar::new().file("a", "hello").done();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(tar.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    let skippable = [0x5e, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];
    let frames = [
        ruzstd::encoding::compress_to_vec(&tar[..700], level),
        skippable.to_vec(),
        ruzstd::encoding::compress_to_vec(&tar[700..], level),
        skippable.to_vec(),
    ]
    .concat();
    for packed in [gzip.finish().unwrap(), zstd, frames] {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(unpack(packed.as_slice(), dir.path()).unwrap(), Digest::of(&tar));
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "hello");
    }
}

#[test]
fn overlay_attributes_of_an_image_are_not_believed() {
    let mut builder = Builder::new(Vec::new());
    let records: [(&str, &[u8]); 2] =
        [("SCHILY.xattr.trusted.overlay.redirect", b"/etc"), ("SCHILY.xattr.user.fine", b"yes")];
    builder.append_pax_extensions(records).unwrap();
    let mut header = Header::new_ustar();
    header.set_size(1);
    header.set_mode(0o644);
    builder.append_data(&mut header, "f", &b"x"[..]).unwrap();
    let layer = unpacked(&builder.into_inner().unwrap()).unwrap();
    let mut value = [0; 16];
    assert!(rustix::fs::getxattr(layer.path("f"), "trusted.overlay.redirect", &mut value[..]).is_err());
    assert!(rustix::fs::getxattr(layer.path("f"), "user.fine", &mut value[..]).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Links, directories and files with hostile names in any order: nothing outside is ever touched.
    #[test]
    fn no_sequence_of_entries_escapes(entries in prop::collection::vec(
        (0..4u8, "(a|b|\\.\\.|/|\\.wh\\.a)(/(a|b|\\.\\.|c))?", "(\\.\\./){0,3}(a|outside|/etc)?"), 1..12,
    )) {
        let mut tar = Tar::new();
        for (kind, name, link) in &entries {
            let kind = [EntryType::Regular, EntryType::Directory, EntryType::Symlink, EntryType::Link][*kind as usize];
            tar = tar.add(kind, name, link, if kind == EntryType::Regular { b"evil" } else { b"" });
        }
        let _ = unpacked(&tar.done());
    }
}
