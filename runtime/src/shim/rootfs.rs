//! The container's root: an overlay in the shim's own mount namespace, so that no mount of a
//! container is ever seen, or left behind, on the host.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
};

use super::files;
use crate::spec::{ContainerSpec, Mount, MountKind, Propagation};

/// Leaves the host's mount namespace. Mounts of the host keep arriving here; ours never go back, but
/// for the sources of `Bidirectional` mounts, which are returned under new names, index by index.
pub(super) fn enter_namespace(spec: &ContainerSpec, dir: &Path) -> io::Result<Vec<Option<PathBuf>>> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    let shared: Vec<Option<OwnedFd>> = spec.mounts.iter().map(clone_if_shared).collect::<io::Result<_>>()?;
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    shared
        .into_iter()
        .enumerate()
        .map(|(index, tree)| tree.map(|tree| place(&tree, spec, dir, index)).transpose())
        .collect()
}

fn clone_if_shared(mount: &Mount) -> io::Result<Option<OwnedFd>> {
    if mount.kind != MountKind::Bind || mount.propagation != Propagation::Bidirectional {
        return Ok(None);
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(CWD, &mount.source, flags)
        .map_err(|error| context(error.into(), &format!("mount source {}", mount.source.display())))?;
    Ok(Some(tree))
}

fn place(tree: &OwnedFd, spec: &ContainerSpec, dir: &Path, index: usize) -> io::Result<PathBuf> {
    let target = dir.join(format!("shared-{index}"));
    if fs::metadata(&spec.mounts[index].source)?.is_dir() {
        fs::create_dir_all(&target)?;
    } else {
        fs::write(&target, "")?;
    }
    rustix::mount::move_mount(tree, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(target)
}

/// Mounts the layers below a fresh writable one; returns the root.
pub(super) fn mount(layers: &[PathBuf], dir: &Path) -> io::Result<PathBuf> {
    if layers.is_empty() {
        return Err(io::Error::other("the container has no image layers"));
    }
    if let Some(missing) = layers.iter().find(|layer| !layer.is_dir()) {
        return Err(io::Error::other(format!("image layer {} is not a directory", missing.display())));
    }
    let (upper, work, rootfs) = (dir.join(files::UPPER), dir.join("work"), dir.join("rootfs"));
    for made in [&upper, &work, &rootfs] {
        fs::create_dir_all(made)?;
    }
    // Tried without asking, an older kernel would complain in its log for every container.
    if has_lowerdir_by_parts() {
        mount_by_parts(layers, &upper, &work, &rootfs)
    } else {
        mount_by_options(layers, &upper, &work, &rootfs)
    }
    .map_err(|error| context(error, "mounting the overlay root"))?;
    Ok(rootfs)
}

/// `lowerdir+` came with Linux 6.5.
fn has_lowerdir_by_parts() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (6, 5)
}

fn mount_by_parts(layers: &[PathBuf], upper: &Path, work: &Path, rootfs: &Path) -> io::Result<()> {
    let overlay = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in layers {
        rustix::mount::fsconfig_set_string(&overlay, "lowerdir+", layer)?;
    }
    rustix::mount::fsconfig_set_string(&overlay, "upperdir", upper)?;
    rustix::mount::fsconfig_set_string(&overlay, "workdir", work)?;
    // The writable layer never outlives its container, so nothing in it needs to reach the disk:
    // without this every unmount writes the whole file system back.
    rustix::mount::fsconfig_set_flag(&overlay, "volatile")?;
    rustix::mount::fsconfig_create(&overlay)?;
    let mounted = rustix::mount::fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    rustix::mount::move_mount(&mounted, "", CWD, rootfs, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

fn mount_by_options(layers: &[PathBuf], upper: &Path, work: &Path, rootfs: &Path) -> io::Result<()> {
    let escape = |path: &Path| path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,");
    let lower: Vec<String> = layers.iter().map(|layer| escape(layer)).collect();
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), escape(upper), escape(work));
    if options.len() >= 4096 {
        return Err(io::Error::other(
            "the image has more layers than this kernel takes in one mount (Linux 6.5 has no such limit)",
        ));
    }
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount("overlay", rootfs, "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
    Ok(())
}

/// Makes the working directory if it is absent: in the root, or in the volume it lies in.
pub(super) fn make_working_directory(spec: &ContainerSpec, rootfs: &Path) -> io::Result<()> {
    let cwd = Path::new(&spec.cwd);
    let volume = spec
        .mounts
        .iter()
        .filter(|mount| cwd.starts_with(&mount.target))
        .max_by_key(|mount| mount.target.components().count());
    let (root, rest) = match volume {
        None => (rootfs, cwd),
        Some(mount) if mount.kind == MountKind::Bind && mount.source.is_dir() => {
            (mount.source.as_path(), cwd.strip_prefix(&mount.target).unwrap_or(cwd))
        }
        Some(_) => return Ok(()),
    };
    match make_dirs_in_root(root, rest) {
        // A read-only volume that lacks it: entering it will say so.
        Err(error) if volume.is_some() => {
            let _ = error;
            Ok(())
        }
        result => result.map_err(|error| context(error, &format!("making the working directory {}", spec.cwd))),
    }
}

/// `mkdir -p` where no symlink leads out of `root`.
fn make_dirs_in_root(root: &Path, path: &Path) -> io::Result<()> {
    let open = |at: &OwnedFd, path: &Path| {
        rustix::fs::openat2(at, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
    };
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut reached = PathBuf::from(".");
    let mut at = open(&root, &reached)?;
    for part in path.components() {
        let Component::Normal(part) = part else { continue };
        reached.push(part);
        at = match open(&root, &reached) {
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o755))?;
                open(&root, &reached)?
            }
            opened => opened?,
        };
    }
    Ok(())
}

/// An error with what was tried.
pub(super) fn context(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symlink_of_the_image_cannot_make_directories_on_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("real")).unwrap();
        std::os::unix::fs::symlink("/real", root.join("link")).unwrap();
        std::os::unix::fs::symlink("../../../..", root.join("out")).unwrap();
        make_dirs_in_root(&root, Path::new("/link/a/b")).unwrap();
        assert!(root.join("real/a/b").is_dir());
        make_dirs_in_root(&root, Path::new("/out/proa-test-escape")).unwrap();
        assert!(root.join("proa-test-escape").is_dir());
    }
}
