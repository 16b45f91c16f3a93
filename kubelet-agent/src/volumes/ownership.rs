//! Owns `fsGroup` on volumes that outlive a pod: everything in them is given to the group (KEP-695).

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::Path;

/// The group reads and writes; it enters directories, in which what is made is the group's, too.
const FILE: u32 = 0o660;
const DIRECTORY: u32 = 0o2770;

/// Gives everything below `root` to `group`, the root last: one that is found given was given whole. With the policy
/// `OnRootMismatch` such a one is left as it is.
pub(super) fn give(root: &Path, group: u32, policy: Option<&str>) -> io::Result<()> {
    let found = root.metadata()?;
    if policy == Some("OnRootMismatch") && found.gid() == group && found.mode() & DIRECTORY == DIRECTORY {
        return Ok(());
    }
    give_tree(root, group)
}

fn give_tree(path: &Path, group: u32) -> io::Result<()> {
    // Somebody else who uses the volume may remove what was just there.
    let found = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if found.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give_tree(&entry?.path(), group)?;
        }
    }
    let given = lchown(path, None, Some(group)).and_then(|()| {
        if found.is_symlink() {
            return Ok(());
        }
        let more = if found.is_dir() { DIRECTORY } else { FILE };
        let mode = found.mode() & 0o7777 | more;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    });
    match given {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> (u32, u32) {
        let found = path.symlink_metadata().unwrap();
        (found.mode() & 0o7777, found.gid())
    }

    #[test]
    fn everything_in_a_volume_is_the_groups_but_what_links_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("v");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("sub/file"), "").unwrap();
        let outside = dir.path().join("outside");
        std::fs::write(&outside, "").unwrap();
        std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        for (path, bits) in [("", 0o755), ("sub", 0o700), ("sub/file", 0o604)] {
            std::fs::set_permissions(root.join(path), std::fs::Permissions::from_mode(bits)).unwrap();
        }
        give(&root, 4321, None).unwrap();
        assert_eq!(mode(&root), (0o2775, 4321));
        assert_eq!(mode(&root.join("sub")), (0o2770, 4321));
        assert_eq!(mode(&root.join("sub/file")), (0o664, 4321));
        assert_eq!(mode(&root.join("link")).1, 4321);
        assert_eq!(mode(&outside).0, 0o600);
        assert_ne!(mode(&outside).1, 4321);

        std::fs::set_permissions(root.join("sub/file"), std::fs::Permissions::from_mode(0o600)).unwrap();
        give(&root, 4321, Some("OnRootMismatch")).unwrap();
        assert_eq!(mode(&root.join("sub/file")).0, 0o600, "the root is as it should be: nothing is looked at");
        give(&root, 4321, Some("Always")).unwrap();
        assert_eq!(mode(&root.join("sub/file")).0, 0o660);
        give(&root, 1234, Some("OnRootMismatch")).unwrap();
        assert_eq!(mode(&root.join("sub/file")), (0o660, 1234));
    }
}
