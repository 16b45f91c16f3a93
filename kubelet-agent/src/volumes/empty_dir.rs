//! Owns `emptyDir` volumes: a directory of the pod's own, on disk or in memory. Never empties one.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;
use nix::mount::MsFlags;

use super::{VolumeError, io_error, is_mount_point};
use crate::resources;

/// Everybody may write to an `emptyDir`.
const MODE: u32 = 0o777;

/// Makes the volume `name` at `path`, or finds it made. `group` is the pod's `fsGroup`.
pub(super) fn setup(
    path: &Path,
    name: &str,
    source: &EmptyDirVolumeSource,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    let io = |e| io_error(name, path)(e);
    match source.medium.as_deref().unwrap_or("") {
        "" => on_disk(path, name, group).map_err(io),
        "Memory" => {
            std::fs::create_dir_all(path).map_err(io)?;
            if is_mount_point(path) {
                return Ok(());
            }
            let options = memory_options(source, group);
            nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
                .map_err(|e| io(e.into()))
        }
        other if other.starts_with("HugePages") => {
            Err(VolumeError::Unsupported { volume: name.to_owned(), kind: "huge page".to_owned() })
        }
        other => {
            let why = format!("unknown storage medium {other:?}");
            Err(VolumeError::Source { volume: name.to_owned(), why })
        }
    }
}

/// Made aside and renamed: a directory that is there has its owner and mode, whenever the agent was killed.
fn on_disk(path: &Path, name: &str, group: Option<u32>) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    // No volume is called so: names are DNS labels.
    let aside = path.with_file_name(format!(".{name}"));
    std::fs::create_dir_all(&aside)?;
    if group.is_some() {
        std::os::unix::fs::chown(&aside, None, group)?;
    }
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(mode(group)))?;
    std::fs::rename(&aside, path)
}

/// With `fsGroup` files inherit the group.
fn mode(group: Option<u32>) -> u32 {
    if group.is_some() { MODE | 0o2000 } else { MODE }
}

fn memory_options(source: &EmptyDirVolumeSource, group: Option<u32>) -> String {
    let mut options = format!("mode={:o}", mode(group));
    if let Some(group) = group {
        options.push_str(&format!(",gid={group}"));
    }
    if let Some(bytes) = size_limit(source) {
        options.push_str(&format!(",size={bytes}"));
    }
    options
}

/// `sizeLimit` in bytes; zero means none.
pub(crate) fn size_limit(source: &EmptyDirVolumeSource) -> Option<u64> {
    let bytes = source.size_limit.as_ref().map(resources::milli)? / 1000;
    u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mode_of(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_directory_that_was_begun_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        // Killed between the making of the directory and its mode.
        std::fs::create_dir(dir.path().join(".v")).unwrap();
        let path = dir.path().join("v");
        setup(&path, "v", &EmptyDirVolumeSource::default(), None).unwrap();
        assert_eq!(mode_of(&path), 0o777);
        assert!(!dir.path().join(".v").exists());
        std::fs::write(path.join("kept"), "").unwrap();
        setup(&path, "v", &EmptyDirVolumeSource::default(), None).unwrap();
        assert!(path.join("kept").exists());

        let group = nix::unistd::getgid().as_raw();
        setup(&dir.path().join("w"), "w", &EmptyDirVolumeSource::default(), Some(group)).unwrap();
        assert_eq!(mode_of(&dir.path().join("w")), 0o2777);
    }

    #[test]
    fn memory_comes_with_owner_mode_and_limit() {
        let source: EmptyDirVolumeSource = serde_json::from_value(json!({"sizeLimit": "1Mi"})).unwrap();
        assert_eq!(memory_options(&source, None), "mode=777,size=1048576");
        assert_eq!(memory_options(&EmptyDirVolumeSource::default(), Some(7)), "mode=2777,gid=7");
    }
}
