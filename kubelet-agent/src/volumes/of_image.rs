//! Owns the directories an image declares as volumes (`VOLUME`).
//!
//! What a container writes there lives as long as its writable layer does, so that a directory of the image needs no volume.
//! A read-only root has no such layer: there the directory is a volume with a copy of what the image has in it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use proa_runtime::{Mount, Propagation};

/// The volumes of one run.
pub(crate) struct Declared {
    /// as the image names them
    pub(crate) targets: Vec<String>,
    /// its unpacked layers, top first
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) readonly_root: bool,
    /// where the run's volumes may lie; nobody else's do
    pub(crate) place: PathBuf,
}

impl Declared {
    /// What is to be mounted beside `mounts`; those come first, and what lies below one of them is theirs. Blocking.
    pub(crate) fn mounts(&self, mounts: &[Mount]) -> Result<Vec<Mount>, String> {
        let mut extra = Vec::new();
        for (index, target) in self.targets.iter().enumerate() {
            let target = PathBuf::from(target);
            if !target.is_absolute() || mounts.iter().any(|m| target.starts_with(&m.target)) {
                continue;
            }
            let inside = directory(&self.layers, &target);
            if inside.is_some() && !self.readonly_root {
                continue;
            }
            let source = self.place.join(index.to_string());
            fill(&source, &inside.unwrap_or_default()).map_err(|e| format!("{}: {e}", source.display()))?;
            extra.push(Mount { source, target, propagation: Propagation::Private, ..Mount::default() });
        }
        Ok(extra)
    }
}

/// Something in an image, seen through its layers as overlayfs shows it.
enum Entry {
    /// the directories it is merged from, top first
    Directory(Vec<PathBuf>),
    Other(PathBuf),
}

/// The entry of that name in a merged directory.
fn entry(dirs: &[PathBuf], name: &OsStr) -> Option<Entry> {
    let mut merged = Vec::new();
    for dir in dirs {
        let path = dir.join(name);
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        if !found.is_dir() {
            // A whiteout (character device 0:0) hides what is below, as anything but a directory does.
            let whiteout = found.file_type().is_char_device() && found.rdev() == 0;
            if merged.is_empty() && !whiteout {
                return Some(Entry::Other(path));
            }
            break;
        }
        let opaque = is_opaque(&path);
        merged.push(path);
        if opaque {
            break;
        }
    }
    (!merged.is_empty()).then_some(Entry::Directory(merged))
}

fn is_opaque(dir: &Path) -> bool {
    let mut value = [0; 1];
    rustix::fs::getxattr(dir, "trusted.overlay.opaque", &mut value).is_ok_and(|n| n == 1 && value == *b"y")
}

/// The directory of that path. Symbolic links are not followed: what lies behind one counts as not there.
fn directory(layers: &[PathBuf], path: &Path) -> Option<Vec<PathBuf>> {
    let mut dirs = layers.to_vec();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => match entry(&dirs, name)? {
                Entry::Directory(next) => dirs = next,
                Entry::Other(_) => return None,
            },
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(dirs)
}

/// Makes the directory with the content of the merged one. Made aside and renamed: one that is there is whole.
fn fill(target: &Path, from: &[PathBuf]) -> io::Result<()> {
    if target.exists() {
        return Ok(());
    }
    let aside = target.with_extension("new");
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    fs::create_dir_all(&aside)?;
    copy(&aside, from)?;
    fs::rename(&aside, target)
}

fn copy(to: &Path, from: &[PathBuf]) -> io::Result<()> {
    let mut names: BTreeSet<OsString> = BTreeSet::new();
    for dir in from {
        for entry in fs::read_dir(dir)? {
            names.insert(entry?.file_name());
        }
    }
    for name in names {
        let target = to.join(&name);
        match entry(from, &name) {
            None => {}
            Some(Entry::Directory(dirs)) => {
                fs::create_dir(&target)?;
                copy(&target, &dirs)?;
            }
            Some(Entry::Other(path)) => {
                let found = fs::symlink_metadata(&path)?;
                if found.is_symlink() {
                    std::os::unix::fs::symlink(fs::read_link(&path)?, &target)?;
                    std::os::unix::fs::lchown(&target, Some(found.uid()), Some(found.gid()))?;
                } else if found.is_file() {
                    fs::copy(&path, &target)?;
                    as_was(&target, &found)?;
                }
                // Sockets, pipes and devices are no content: a container makes its own.
            }
        }
    }
    match from.first() {
        Some(top) => as_was(to, &fs::symlink_metadata(top)?),
        None => Ok(()),
    }
}

/// Owner first: a change of owner takes set-id bits away.
fn as_was(path: &Path, was: &fs::Metadata) -> io::Result<()> {
    std::os::unix::fs::chown(path, Some(was.uid()), Some(was.gid()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(was.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Image {
        dir: tempfile::TempDir,
    }

    impl Image {
        /// `top` hides `data/gone` and changes `data/both`; the rest of `data` is in `low`.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (top, low) = (dir.path().join("top"), dir.path().join("low"));
            for layer in [&top, &low] {
                fs::create_dir_all(layer.join("data/sub")).unwrap();
                fs::write(layer.join("data/both"), layer.file_name().unwrap().as_encoded_bytes()).unwrap();
            }
            fs::set_permissions(top.join("data"), fs::Permissions::from_mode(0o1770)).unwrap();
            fs::write(low.join("data/sub/deep"), "x").unwrap();
            fs::set_permissions(low.join("data/sub/deep"), fs::Permissions::from_mode(0o640)).unwrap();
            fs::write(low.join("data/gone"), "").unwrap();
            let whiteout = top.join("data/gone");
            rustix::fs::mknodat(rustix::fs::CWD, &whiteout, rustix::fs::FileType::CharacterDevice, 0o000.into(), 0)
                .unwrap();
            std::os::unix::fs::symlink("/etc", low.join("link")).unwrap();
            Self { dir }
        }

        fn declared(&self, target: &str, readonly_root: bool) -> Declared {
            Declared {
                targets: vec![target.to_owned()],
                layers: ["top", "low"].map(|l| self.dir.path().join(l)).into(),
                readonly_root,
                place: self.dir.path().join("volumes"),
            }
        }
    }

    #[test]
    fn a_directory_of_the_image_stays_in_the_writable_layer() {
        let image = Image::new();
        assert_eq!(image.declared("/data", false).mounts(&[]).unwrap(), []);
        // What the image does not have has to be made.
        let made = image.declared("/none", false).mounts(&[]).unwrap();
        assert!(made.len() == 1 && fs::read_dir(&made[0].source).unwrap().next().is_none());
    }

    #[test]
    fn below_a_read_only_root_content_owner_and_mode_are_copied() {
        let image = Image::new();
        let made = image.declared("/data", true).mounts(&[]).unwrap();
        let copy = &made[0].source;
        assert_eq!(made[0].target, Path::new("/data"));
        assert_eq!(fs::metadata(copy).unwrap().mode() & 0o7777, 0o1770);
        assert_eq!(fs::read_to_string(copy.join("both")).unwrap(), "top");
        assert!(!copy.join("gone").exists());
        assert_eq!(fs::metadata(copy.join("sub/deep")).unwrap().mode() & 0o7777, 0o640);
        // Another start of the same run finds it as the first left it.
        fs::write(copy.join("mine"), "").unwrap();
        image.declared("/data", true).mounts(&[]).unwrap();
        assert!(copy.join("mine").exists());
        // Nothing of the host comes in by a link.
        let linked = Declared { place: image.dir.path().join("w"), ..image.declared("/link", true) };
        assert!(fs::read_dir(&linked.mounts(&[]).unwrap()[0].source).unwrap().next().is_none());
    }

    #[test]
    fn what_an_upper_layer_replaces_hides_what_is_below() {
        let image = Image::new();
        fs::remove_dir_all(image.dir.path().join("top/data")).unwrap();
        fs::write(image.dir.path().join("top/data"), "a file").unwrap();
        assert!(directory(&image.declared("", false).layers, Path::new("/data")).is_none());
    }

    #[test]
    fn what_lies_below_a_mount_of_the_pod_is_the_pods() {
        let image = Image::new();
        let mount = Mount { target: "/var".into(), ..Mount::default() };
        assert_eq!(image.declared("/var/lib", true).mounts(&[mount]).unwrap(), []);
    }
}
