//! Owns the taking back of what the agent itself left on a machine: mounts and files of volumes.

use std::path::Path;

use crate::mounts;

/// What could not be taken back; everything else was.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ResetError(pub Vec<String>);

/// Unmounts and removes the volumes, logs and files of all pods below `data_dir`, and the volumes of claims. Containers must be gone
/// already. Calling it again is fine.
///
/// # Errors
/// What could not be unmounted or removed, with its reason.
pub fn reset(data_dir: &Path) -> Result<(), ResetError> {
    let failures: Vec<String> =
        ["pods", "volumes"].iter().filter_map(|folder| mounts::remove_tree(&data_dir.join(folder)).err()).collect();
    if failures.is_empty() { Ok(()) } else { Err(ResetError(failures)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_emptied_and_may_be_gone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("pods/u/logs")).unwrap();
        std::fs::create_dir_all(dir.path().join("volumes/pvc-1")).unwrap();
        reset(dir.path()).unwrap();
        reset(dir.path()).unwrap();
        assert!(!dir.path().join("pods").exists() && !dir.path().join("volumes").exists());
    }
}
