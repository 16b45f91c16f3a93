//! Owns finding and unmounting what is mounted below a directory. Whoever removes a tree of the agent's calls it first: a
//! volume that somebody mounted into a pod's directory is somebody else's files.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

/// Unmounts everything below `dir` and reports what cannot be. When it succeeds nothing is mounted there.
pub(crate) fn unmount_below(dir: &Path) -> Result<(), String> {
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{}: {error}", dir.display())),
    };
    let mut refused = None;
    // What is mounted last may lie on another, and a place may be mounted on more than once.
    for mount in below(&table()?, &dir).into_iter().rev() {
        if let Err(error) = umount2(&mount, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // It may have gone with another one, by propagation: what counts is what is left.
            refused.get_or_insert(format!("unmounting {}: {error}", mount.display()));
        }
    }
    match below(&table()?, &dir).first() {
        None => Ok(()),
        Some(mount) => Err(refused.unwrap_or_else(|| format!("{} is still mounted", mount.display()))),
    }
}

/// Removes a tree after unmounting everything in it; refuses while anything is mounted there. One that is not there is fine.
pub(crate) fn remove_tree(dir: &Path) -> Result<(), String> {
    unmount_below(dir)?;
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("{}: {error}", dir.display())),
        _ => Ok(()),
    }
}

fn table() -> Result<String, String> {
    const TABLE: &str = "/proc/self/mountinfo";
    std::fs::read_to_string(TABLE).map_err(|error| format!("{TABLE}: {error}"))
}

/// Mount points below a directory (proc(5), field 5, octal escapes), in the order they were mounted.
fn below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| {
            let spaces = path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n");
            PathBuf::from(spaces.replace("\\134", "\\"))
        })
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
            below(table, Path::new("/d/pods")),
            [PathBuf::from("/d/pods/u/volumes/m"), PathBuf::from("/d/pods/u/volumes/a b")]
        );
    }

    #[test]
    fn a_tree_goes_and_what_was_mounted_in_it_stays() {
        use nix::mount::{MsFlags, mount};
        let dir = tempfile::tempdir().unwrap();
        let (tree, theirs) = (dir.path().join("tree"), dir.path().join("theirs"));
        std::fs::create_dir_all(tree.join("deep/inside")).unwrap();
        std::fs::create_dir_all(theirs.join("below")).unwrap();
        std::fs::write(theirs.join("precious"), "x").unwrap();
        let bind = |target: &Path| {
            mount(Some(&theirs), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("mounting needs root")
        };
        // Twice in one place, and one on the other.
        bind(&tree.join("deep/inside"));
        bind(&tree.join("deep/inside"));
        bind(&tree.join("deep/inside/below"));
        remove_tree(&tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(theirs.join("precious").exists() && theirs.join("below").exists());
    }
}
