//! Owns the atomic directory of ConfigMap-like volumes: files are links into `..data`, itself a link to a
//! directory made complete before it is shown. A reader sees the old set or the new one, never a mixture.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path};

/// One file to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileOf {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
    /// owner, when it is not root
    pub(crate) uid: Option<u32>,
}

/// Files by their path below the volume.
pub(crate) type Payload = BTreeMap<String, FileOf>;

/// Whether a path may be written below the volume: relative, without `..`, not one of our own names.
pub(crate) fn is_safe(path: &str) -> bool {
    let path = Path::new(path);
    path.components().next().is_some()
        && path.components().all(|c| matches!(c, Component::Normal(_)))
        && !path.to_string_lossy().starts_with("..")
}

/// Brings `dir` to `payload`; true when something changed. `group` owns every file (fsGroup).
pub(crate) fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    fs::create_dir_all(dir)?;
    if let Some(bad) = payload.keys().find(|p| !is_safe(p)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {bad:?}")));
    }
    let data = dir.join("..data");
    let old = fs::read_link(&data).ok();
    if old.is_some() && same(&data, payload)? {
        return Ok(false);
    }
    let stamp = jiff::Timestamp::now();
    let name = format!("..{}", stamp.as_nanosecond());
    let fresh = dir.join(&name);
    fs::create_dir(&fresh)?;
    set_mode(&fresh, 0o755, group)?;
    for (path, file) in payload {
        let target = fresh.join(path);
        make_parents(&fresh, &target, group)?;
        fs::write(&target, &file.bytes)?;
        if file.uid.is_some() || group.is_some() {
            std::os::unix::fs::chown(&target, file.uid, group)?;
        }
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
    }
    let next = dir.join("..data_tmp");
    remove_any(&next)?;
    symlink(&name, &next)?;
    fs::rename(&next, &data)?;
    link_tops(dir, payload)?;
    if let Some(old) = old {
        remove_any(&dir.join(old))?;
    }
    Ok(true)
}

fn set_mode(path: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    if group.is_some() {
        std::os::unix::fs::chown(path, None, group)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn make_parents(base: &Path, target: &Path, group: Option<u32>) -> io::Result<()> {
    let mut missing = Vec::new();
    let mut at = target.parent();
    while let Some(dir) = at.filter(|d| *d != base && !d.exists()) {
        missing.push(dir);
        at = dir.parent();
    }
    for dir in missing.into_iter().rev() {
        fs::create_dir(dir)?;
        set_mode(dir, 0o755, group)?;
    }
    Ok(())
}

/// The first part of each path is a link through `..data`; links of what is gone are removed.
fn link_tops(dir: &Path, payload: &Payload) -> io::Result<()> {
    let top = |path: &str| path.split('/').next().unwrap_or_default().to_owned();
    let wanted: std::collections::BTreeSet<String> = payload.keys().map(|p| top(p)).collect();
    for name in &wanted {
        let link = dir.join(name);
        let target = Path::new("..data").join(name);
        if fs::read_link(&link).is_ok_and(|now| now == target) {
            continue;
        }
        remove_any(&link)?;
        symlink(target, &link)?;
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !wanted.contains(&name) {
            remove_any(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_any(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn same(data: &Path, payload: &Payload) -> io::Result<bool> {
    let mut count = 0;
    for (path, file) in payload {
        let target = data.join(path);
        match fs::read(&target) {
            Ok(bytes) if bytes == file.bytes => {}
            _ => return Ok(false),
        }
        if fs::metadata(&target)?.permissions().mode() & 0o7777 != file.mode {
            return Ok(false);
        }
        count += 1;
    }
    Ok(count == files_below(data)?)
}

fn files_below(dir: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { files_below(&entry.path())? } else { 1 };
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(p, b)| ((*p).to_owned(), FileOf { bytes: b.as_bytes().to_vec(), mode: 0o644, uid: None }))
            .collect()
    }

    fn shown(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| !n.starts_with(".."))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_set_replaces_the_old_one_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        assert!(write(&path, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert_eq!(fs::read_to_string(path.join("sub/b")).unwrap(), "2");
        assert!(!write(&path, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap(), "nothing changed");
        assert!(write(&path, &payload(&[("a", "3"), ("c", "4")]), None).unwrap());
        assert_eq!(shown(&path), ["a", "c"]);
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "3");
        let generations = fs::read_dir(&path).unwrap().filter(|e| {
            let name = e.as_ref().unwrap().file_name().into_string().unwrap();
            name.starts_with("..") && name != "..data"
        });
        assert_eq!(generations.count(), 1, "the old generation is gone");
    }

    #[test]
    fn an_empty_payload_is_an_empty_directory_that_can_fill() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &Payload::new(), None).unwrap());
        assert!(shown(dir.path()).is_empty());
        assert!(write(dir.path(), &payload(&[("k", "v")]), None).unwrap());
        assert_eq!(shown(dir.path()), ["k"]);
    }

    #[test]
    fn paths_cannot_leave_the_volume() {
        for (path, safe) in [
            ("a", true),
            ("a/b", true),
            ("../a", false),
            ("/a", false),
            ("a/../b", false),
            ("", false),
            ("..data", false),
        ] {
            assert_eq!(is_safe(path), safe, "{path}");
        }
    }
}
