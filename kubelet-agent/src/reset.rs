//! Owns the taking back of what the agent itself left on a machine: mounts and files of volumes.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

/// What could not be taken back; everything else was.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ResetError(pub Vec<String>);

/// Unmounts and removes the volumes, logs and files of all pods below `data_dir`. Containers must be gone
/// already. Calling it again is fine.
///
/// # Errors
/// What could not be unmounted or removed, each with its reason.
pub fn reset(data_dir: &Path) -> Result<(), ResetError> {
    let pods = data_dir.join("pods");
    let mut errors = Vec::new();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let real = pods.canonicalize().unwrap_or_else(|_| pods.clone());
    // What was mounted last goes first.
    for mount in mounts_below(&table, &real).into_iter().rev() {
        if let Err(error) = umount2(&mount, MntFlags::MNT_DETACH) {
            errors.push(format!("{}: {error}", mount.display()));
        }
    }
    // A volume that is still mounted is not emptied.
    if errors.is_empty()
        && let Err(error) = std::fs::remove_dir_all(&pods)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        errors.push(format!("{}: {error}", pods.display()));
    }
    if errors.is_empty() { Ok(()) } else { Err(ResetError(errors)) }
}

/// Mount points below a directory, in the order they were mounted.
fn mounts_below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")))
        .filter(|path| path.starts_with(dir) && path != dir)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_their_place() {
        let table = "1 0 8:1 / / rw - ext4 /dev/sda rw\n\
                     2 1 0:9 / /d/pods/u/volumes/m rw - tmpfs tmpfs rw\n\
                     3 1 0:9 / /d/podsx/m rw - tmpfs tmpfs rw\n\
                     4 1 0:9 / /d/pods/u/volumes/a\\040b rw - tmpfs tmpfs rw\n";
        assert_eq!(
            mounts_below(table, Path::new("/d/pods")),
            [PathBuf::from("/d/pods/u/volumes/m"), PathBuf::from("/d/pods/u/volumes/a b")]
        );
    }

    #[test]
    fn a_directory_is_emptied_and_may_be_gone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("pods/u/logs")).unwrap();
        reset(dir.path()).unwrap();
        reset(dir.path()).unwrap();
        assert!(!dir.path().join("pods").exists());
    }
}
